"""Listen for HTTP, and lose patience with whoever does not send a request.

aiohttp waits for the head of a request as long as its keep-alive lasts, and tells the
sender of a broken one what it choked on. Both are changed here: a head must be
complete 4.5 s after its first byte, and a broken one is answered without its bytes,
in the answer as in the log.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from interlock_chassis.errors import ConfigError
from interlock_chassis.logs import describe_exception

# With the answer, the sender of a trickled head is gone within 5 s.
HEAD_SECONDS = 4.5
# Longer than load balancers keep idle connections, or they send into a closing one.
_KEEP_ALIVE_SECONDS = 75.0
# How long the rest of a refused body is drained, so that the sender reads why.
_LINGER_SECONDS = 0.5
# An oversized signature is to get the same 401 as any other.
_MAX_HEADER_BYTES = 16 * 1024
_BACKLOG = 1024
# Slack's 3 s and our own pages; an install under way may take longer and is resumed.
_SHUTDOWN_SECONDS = 10.0

# Signatures as sent; the parser takes white space off the end of a value.
_SIGNATURE_LINE = re.compile(rb"\nX-Slack-Signature:([^\r\n]*)\r?(?=\n)", re.IGNORECASE)
_PADDING = (b" ", b"\t")

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n"
    b"Server: interlock\r\n\r\n"
)


class EdgeProtocol(RequestHandler):
    """One connection, with a time limit for the head of each request."""

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            lingering_time=_LINGER_SECONDS,
            # Its lines would hold the query, and so OAuth codes and link codes.
            access_log=None,  # type: ignore[arg-type]  # Documented; the annotation lags behind.
            max_field_size=_MAX_HEADER_BYTES,
            # A body is verified byte for byte; nothing may inflate it before.
            auto_decompress=False,
        )
        self._clock = loop
        self._patience: asyncio.TimerHandle | None = None
        self._is_handling = False
        self._has_begun = False
        self._unfinished_line = b""
        self._is_signature_padded = False

    @property
    def is_signature_padded(self) -> bool:
        """Whether white space stood behind the last signature that came."""
        return self._is_signature_padded

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Take bytes; outside of a request they are the start of a head."""
        if data and not self._is_handling:
            self._has_begun = True
            self._arm()
        self._look_for_signature(data)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop waiting."""
        self._disarm()
        super().connection_lost(exc)

    def request_began(self) -> None:
        """Note that a head is complete; whoever handles it has its own limits."""
        self._is_handling = True
        self._has_begun = False
        self._disarm()

    def request_ended(self) -> None:
        """Note that further bytes belong to the next request."""
        self._is_handling = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - It quotes the request.
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, without a byte of it."""
        log = structlog.get_logger()
        if status >= web.HTTPInternalServerError.status_code:
            log.error("request_failed", cause=describe_exception(exc) if exc else [])
        else:
            log.info("request_refused", status=status, cause=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        response = web.Response(status=status, headers={"Server": "interlock"})
        response.force_close()
        return response

    def _look_for_signature(self, data: bytes) -> None:
        """Note how a signature is written, which may come in pieces."""
        text = self._unfinished_line + data
        for line in _SIGNATURE_LINE.finditer(text):
            self._is_signature_padded = line[1].endswith(_PADDING)
        begin = max(text.rfind(b"\n"), len(text) - _MAX_HEADER_BYTES, 0)
        self._unfinished_line = bytes(text[begin:])

    def _arm(self) -> None:
        if self._patience is None:
            self._patience = self._clock.call_later(HEAD_SECONDS, self._give_up)

    def _disarm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        # Browsers open connections that they may not need; those are closed in silence.
        if self._has_begun and self.transport is not None:
            self.transport.write(_TOO_SLOW)
        self.force_close()


@asynccontextmanager
async def listening(app: web.Application, listen: str) -> AsyncIterator[int]:
    """Serve an application; yields the port.

    On leaving, no connection is accepted any more and requests under way get 10 s.

    Args:
        app: What to serve.
        listen: `host:port`; port 0 lets the system choose.

    Raises:
        ConfigError: The address is not free.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    if server is None:
        raise RuntimeError("the runner has no server")
    try:
        listener = await _listen(listen, lambda: EdgeProtocol(server, loop=loop))
        try:
            yield int(listener.sockets[0].getsockname()[1])
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def _listen(listen: str, new_protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    host, _, port = listen.rpartition(":")
    try:
        return await asyncio.get_running_loop().create_server(
            new_protocol, host.strip("[]"), int(port), backlog=_BACKLOG
        )
    except OSError as error:
        raise ConfigError("INTERLOCK_LISTEN", f"cannot listen there: {error.strerror}") from None
