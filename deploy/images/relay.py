"""Carry TCP connections between a container's loopback and another container.

python relay.py LISTEN=TARGET ...        each side is host:port; `self` is this container's address

The sandbox serves loopback alone, and its URLs are loopback URLs, the same for a browser
and for every service. In containers each has a loopback of its own; relays make them one.
For the sandbox only: nothing that faces a network should be wired like this.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import time

_CHUNK_BYTES = 64 * 1024
_LOOK_EVERY_S = 0.5
# The engine starts us anew only while the container whose network we share runs: a restart
# of it takes a second or two.
_WITHOUT_NETWORK_S = 4
# sysexits.h: wrong use.
_EXIT_USAGE = 2


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until it ends, and pass the end on."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()


class _Relay:
    """Serve one address by connecting to another."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")

    async def serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Carry one connection; it is closed when the target is not there."""
        try:
            far, forth = await asyncio.open_connection(self._host, int(self._port))
        except OSError:
            back.close()
            return
        try:
            await asyncio.gather(_carry(near, forth), _carry(far, back))
        finally:
            for writer in (forth, back):
                writer.close()


def _has_network() -> bool:
    return any(name != "lo" for _, name in socket.if_nameindex())


def _own_address() -> str:
    return socket.gethostbyname(socket.gethostname())


async def _run(pairs: list[tuple[str, str]]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for listen, target in pairs:
        host, _, port = listen.rpartition(":")
        await asyncio.start_server(
            _Relay(target).serve, _own_address() if host == "self" else host, int(port)
        )
    last_seen = time.monotonic()
    while not stop.is_set():
        if _has_network():
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > _WITHOUT_NETWORK_S:
            # The container whose network this was has been started anew: so must we be.
            return 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_EVERY_S)
    return 0


def main() -> int:
    """Relay until SIGTERM; 1 when the network is gone, 2 for wrong arguments."""
    pairs = [(listen, target) for listen, _, target in (a.partition("=") for a in sys.argv[1:])]
    if not pairs or not all(target for _, target in pairs):
        sys.stderr.write(__doc__ or "")
        return _EXIT_USAGE
    return asyncio.run(_run(pairs))


if __name__ == "__main__":
    sys.exit(main())
