"""A TCP proxy that loses the answers to some requests, as networks do."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

_READ_BYTES = 65_536


class Loss(Enum):
    """How an answer is lost."""

    CUT = "cut"
    """The connection ends where the answer would begin."""

    SILENCE = "silence"
    """The connection stays open, and nothing comes."""


@dataclass
class DroppingProxy:
    """Passes everything on, but for the answers to requests that hold a phrase.

    Attributes:
        url: Where it listens, without a slash at the end.
        losses: What happens to the next answers to such requests; with none left
            they pass.
        lost: How many were lost.
    """

    phrase: bytes
    upstream: str
    url: str = ""
    losses: deque[Loss] = field(default_factory=deque)
    lost: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        place = urlsplit(self.upstream)
        there, onward = await asyncio.open_connection(place.hostname, place.port)
        seen = bytearray()

        def asked() -> bool:
            """Tell, once, whether the request that was just passed on holds the phrase."""
            holds = self.phrase in seen
            if holds:
                seen.clear()
            return holds

        try:
            sending = asyncio.create_task(_pass_on(reader, onward, seen.extend))
            await self._answer(there, writer, asked)
            await sending
        except ConnectionError:
            # Either side may go away.
            pass
        finally:
            onward.close()
            writer.close()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: Callable[[], bool],
    ) -> None:
        """Pass answers on, until one is to be lost: the server had come to it by then."""
        while chunk := await reader.read(_READ_BYTES):
            loss = self.losses.popleft() if asked() and self.losses else None
            if loss is None:
                writer.write(chunk)
                await writer.drain()
                continue
            self.lost += 1
            if loss is Loss.CUT:
                writer.close()
                return
            while await reader.read(_READ_BYTES):
                pass
        writer.close()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], object]
) -> None:
    while chunk := await reader.read(_READ_BYTES):
        see(chunk)
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def dropping_proxy(upstream: str, phrase: bytes) -> AsyncIterator[DroppingProxy]:
    """Serve a proxy before an HTTP server on loopback.

    Args:
        upstream: The server's URL.
        phrase: What the requests hold whose answers may be lost.
    """
    proxy = DroppingProxy(phrase, upstream)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.url = f"http://127.0.0.1:{port}"
    try:
        yield proxy
    finally:
        server.close()
