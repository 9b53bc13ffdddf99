"""Calling our own services: mutual TLS and ids out, our errors back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import grpc
import structlog
from grpc import aio
from opentelemetry import trace

from interlock_chassis import telemetry
from interlock_chassis.errors import ConfigError
from interlock_chassis.statuses import from_rpc_error
from interlock_chassis.telemetry import new_request_id, request_id_scope
from interlock_chassis.tls import TlsFiles, channel_credentials, stamps_of

__all__ = ["new_request_id", "open_channel", "remote_errors", "request_id_scope"]

if TYPE_CHECKING:
    # Generic in the stubs only.
    _OneCall = aio.UnaryUnaryCall[Any, Any]
    _StreamCall = aio.UnaryStreamCall[Any, Any]

_OPTIONS: list[tuple[str, int | str]] = [
    # Every replica behind a name gets its share of calls, and one that says that it
    # is stopping gets no more: calls that meet a stopping server are cancelled.
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": ""},
            }
        ),
    ),
    # A peer that restarts is back within seconds; gRPC's default waits up to
    # two minutes before it looks.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A rollout gives every replica a new address within seconds. gRPC's default
    # looks a name up twice a minute at most, and would know none of them.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A peer that vanished without closing is noticed while a stream is silent.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Calls to our own services never go through a proxy of the environment.
    ("grpc.enable_http_proxy", 0),
]

# While replicas are being replaced there is for a moment no connection, until
# the new addresses are looked up. Twice the time between two look-ups.
_CONNECTION_PATIENCE = timedelta(seconds=2)

# A renewed certificate has days before the old one ends.
_RENEWAL_CHECK = timedelta(seconds=10)
# The longest stream may still run on the connection of the old certificate.
_OLD_CONNECTION_GRACE = timedelta(minutes=31)


@asynccontextmanager
async def open_channel(address: str, tls: TlsFiles, *, server: str) -> AsyncIterator[aio.Channel]:
    """Open a channel to one of our services, closed on leaving.

    Connects at the first call. Every call carries the request id and the
    trace in force; the caller gives each call a `timeout`, or is refused. A
    renewed certificate is used without a restart, within 10 s of the next call.

    A call that finds no connection waits for one, 2 s at most and within its
    timeout, before it fails: nothing has been sent yet, so any call may wait.
    None is sent twice.

    Args:
        address: `host:port`, or a gRPC target such as `dns:///host:port`.
        tls: This process's certificate and the authority of the server.
        server: The server's mTLS name; a server of another name is not spoken to.

    Raises:
        ConfigError: A TLS file cannot be read, or key and certificate differ.
    """

    def connect() -> aio.Channel:
        connection = _Connection()
        channel = aio.secure_channel(
            address,
            channel_credentials(tls),
            options=[*_OPTIONS, ("grpc.ssl_target_name_override", server.replace("/", "-"))],
            interceptors=[_OneCallTagger(connection), _StreamTagger(connection)],
        )
        connection.channel = channel
        return channel

    channel = _RenewingChannel(connect, tls)
    try:
        yield channel
    finally:
        await channel.close()


@contextmanager
def remote_errors() -> Iterator[None]:
    """Raise a peer's error as RemoteError: same kind, reason, message and metadata.

    Also around the loop that reads a stream. A peer that cannot be reached is
    UNAVAILABLE `PEER_UNAVAILABLE`; a deadline that passed is UNAVAILABLE
    `DEADLINE_EXCEEDED`. Text that is not a ServiceError's own is dropped.

    Raises:
        RemoteError: The call failed.
    """
    try:
        yield
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from error


class _RenewingChannel(aio.Channel):
    """Stand in for a channel, and connect anew when the certificate on disk changes.

    gRPC's Python channels keep the certificate they were made with. Calls in
    flight stay on the old channel until they end.

    Attributes:
        calls: Those on the channel for the next call.
    """

    def __init__(self, connect: Callable[[], aio.Channel], tls: TlsFiles) -> None:
        self._connect = connect
        self._tls = tls
        self._stamps = stamps_of(tls)
        self._channel = connect()
        self.calls = _Calls()
        self._checked = time.monotonic()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> aio.Channel:
        """Return the channel for the next call."""
        now = time.monotonic()
        if now - self._checked < _RENEWAL_CHECK.total_seconds():
            return self._channel
        self._checked = now
        log = structlog.get_logger()
        try:
            stamps = stamps_of(self._tls)
            if stamps == self._stamps:
                return self._channel
            renewed = self._connect()
        except (ConfigError, OSError):
            # Half-written, perhaps: the next check sees the rest.
            log.warning("tls_reload_failed", certificate=str(self._tls.cert))
            return self._channel
        self._stamps, old, self._channel = stamps, self._channel, renewed
        task = asyncio.ensure_future(self.calls.retire(old))
        self.calls = _Calls()
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        log.info("tls_reloaded", certificate=str(self._tls.cert))
        return self._channel

    async def close(self, grace: float | None = None) -> None:
        """Close this channel and the old ones."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Tell the state of the connection of the next call."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another state."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until connected."""
        await self.current().channel_ready()

    def unary_unary(self, *method: Any, **codec: Any) -> Any:
        """Return a callable for an RPC."""
        return _Renewing(self, lambda channel: channel.unary_unary(*method, **codec))

    def unary_stream(self, *method: Any, **codec: Any) -> Any:
        """Return a callable for an RPC that streams its answers."""
        return _Renewing(self, lambda channel: channel.unary_stream(*method, **codec))

    def stream_unary(self, *method: Any, **codec: Any) -> Any:
        """Return a callable for an RPC that takes a stream; none of ours does."""
        return _Renewing(self, lambda channel: channel.stream_unary(*method, **codec))

    def stream_stream(self, *method: Any, **codec: Any) -> Any:
        """Return a callable for an RPC that streams both ways; none of ours does."""
        return _Renewing(self, lambda channel: channel.stream_stream(*method, **codec))


class _Calls:
    """The open calls of one channel.

    gRPC's own `close(grace)` knows of calls that it has begun to send; one that
    is held back until there is a connection would be cancelled.
    """

    def __init__(self) -> None:
        self._open = 0
        self._none = asyncio.Event()
        self._none.set()

    def add(self, call: Any) -> None:
        """Count a call until it has ended."""
        self._open += 1
        self._none.clear()
        call.add_done_callback(self._end)

    def _end(self, _: object) -> None:
        self._open -= 1
        if self._open == 0:
            self._none.set()

    async def retire(self, channel: aio.Channel) -> None:
        """Close their channel when all have ended, or after 31 minutes."""
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._none.wait(), _OLD_CONNECTION_GRACE.total_seconds())
        finally:
            await channel.close()


class _Renewing:
    """An RPC, callable, on whichever channel is current."""

    def __init__(
        self, channel: _RenewingChannel, bind: Callable[[aio.Channel], Callable[..., Any]]
    ) -> None:
        self._channel = channel
        self._bind = bind
        self._bound_to = channel.current()
        self._call = bind(self._bound_to)

    def __call__(self, *request: Any, **options: Any) -> Any:
        channel = self._channel.current()
        if channel is not self._bound_to:
            self._bound_to, self._call = channel, self._bind(channel)
        call = self._call(*request, **options)
        self._channel.calls.add(call)
        return call


class _Connection:
    """Hold back calls while no replica is connected; gRPC would fail them at once.

    gRPC's own `wait_for_ready` would hold them for their whole timeout.
    """

    channel: aio.Channel

    async def await_one(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        """Return the details of the call, its timeout shortened by what was waited."""
        if self.channel.get_state() is grpc.ChannelConnectivity.READY:
            return details
        began = time.monotonic()
        patience = _CONNECTION_PATIENCE.total_seconds()
        if details.timeout is not None:
            patience = min(patience, details.timeout)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._until_connected()
        if details.timeout is None:
            return details
        left = max(0.0, details.timeout - (time.monotonic() - began))
        return aio.ClientCallDetails(
            details.method, left, details.metadata, details.credentials, details.wait_for_ready
        )

    async def _until_connected(self) -> None:
        while True:
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            await self.channel.wait_for_state_change(state)


class _OneCallTagger(aio.UnaryUnaryClientInterceptor):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def intercept_unary_unary(
        self,
        continuation: "Callable[[aio.ClientCallDetails, Any], Awaitable[_OneCall]]",
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> "_OneCall":
        details = await self._connection.await_one(client_call_details)
        with _client_span(details) as span:
            call = await continuation(_tagged(details), request)
        call.add_done_callback(lambda _: span.end())
        return call


class _StreamTagger(aio.UnaryStreamClientInterceptor):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def intercept_unary_stream(
        self,
        continuation: "Callable[[aio.ClientCallDetails, Any], Awaitable[_StreamCall]]",
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> "_StreamCall":
        details = await self._connection.await_one(client_call_details)
        with _client_span(details) as span:
            call = await continuation(_tagged(details), request)
        call.add_done_callback(lambda _: span.end())
        return call


@contextmanager
def _client_span(details: aio.ClientCallDetails) -> Iterator[trace.Span]:
    """Start the span of a call and put it in force; whoever calls ends it."""
    # gRPC hands over bytes where its stubs say str.
    method: str | bytes = details.method
    name = str(method, "ascii") if isinstance(method, bytes) else method
    span = telemetry.tracer().start_span(
        name.removeprefix("/"), kind=trace.SpanKind.CLIENT, attributes={"rpc.system": "grpc"}
    )
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        yield span


def _tagged(details: aio.ClientCallDetails) -> aio.ClientCallDetails:
    """Add the request id and the trace to a call's metadata."""
    tags = telemetry.trace_headers()
    request_id = telemetry.current_request_id()
    if request_id:
        tags[telemetry.REQUEST_ID_HEADER] = request_id
    metadata = aio.Metadata(*(details.metadata or ()), *tags.items())
    return aio.ClientCallDetails(
        details.method,
        details.timeout,
        metadata,
        details.credentials,
        details.wait_for_ready,
    )
