"""Calling our own services: mutual TLS and ids out, our errors back."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from grpc import aio
from opentelemetry import trace

from interlock_chassis import telemetry
from interlock_chassis.statuses import from_rpc_error
from interlock_chassis.telemetry import new_request_id, request_id_scope
from interlock_chassis.tls import TlsFiles, channel_credentials

__all__ = ["new_request_id", "open_channel", "remote_errors", "request_id_scope"]

if TYPE_CHECKING:
    # Generic in the stubs only.
    _OneCall = aio.UnaryUnaryCall[Any, Any]
    _StreamCall = aio.UnaryStreamCall[Any, Any]

_OPTIONS: list[tuple[str, int | str]] = [
    # Every replica behind a name gets its share of calls.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # A peer that restarts is back within seconds; gRPC's default waits up to
    # two minutes before it looks.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A peer that vanished without closing is noticed while a stream is silent.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Calls to our own services never go through a proxy of the environment.
    ("grpc.enable_http_proxy", 0),
]


@asynccontextmanager
async def open_channel(address: str, tls: TlsFiles, *, server: str) -> AsyncIterator[aio.Channel]:
    """Open a channel to one of our services, closed on leaving.

    Connects at the first call. Every call carries the request id and the
    trace in force; the caller gives each call a `timeout`, or is refused.

    Args:
        address: `host:port`, or a gRPC target such as `dns:///host:port`.
        tls: This process's certificate and the authority of the server.
        server: The server's mTLS name; a server of another name is not spoken to.

    Raises:
        ConfigError: A TLS file cannot be read.
    """
    channel = aio.secure_channel(
        address,
        channel_credentials(tls),
        options=[*_OPTIONS, ("grpc.ssl_target_name_override", server.replace("/", "-"))],
        interceptors=[_OneCallTagger(), _StreamTagger()],
    )
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


class _OneCallTagger(aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: "Callable[[aio.ClientCallDetails, Any], Awaitable[_OneCall]]",
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> "_OneCall":
        with _client_span(client_call_details) as span:
            call = await continuation(_tagged(client_call_details), request)
        call.add_done_callback(lambda _: span.end())
        return call


class _StreamTagger(aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: "Callable[[aio.ClientCallDetails, Any], Awaitable[_StreamCall]]",
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> "_StreamCall":
        with _client_span(client_call_details) as span:
            call = await continuation(_tagged(client_call_details), request)
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
