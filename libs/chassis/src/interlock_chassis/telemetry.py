"""Traces, metrics, and the ids that tie the hops of one request together."""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

from interlock_chassis.errors import ConfigError

REGISTRY = CollectorRegistry(auto_describe=True)
"""Where every metric of a process is registered: `Counter(..., registry=REGISTRY)`."""

RPC_SECONDS = Histogram(
    "interlock_rpc_seconds",
    "How long an RPC took on the server, by method, gRPC code and mTLS caller.",
    ("method", "code", "caller"),
    registry=REGISTRY,
    # Reads end within 5 s, installs within 30 s, streams within 30 min.
    buckets=(
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1,
        2.5,
        5,
        10,
        30,
        120,
        600,
        1800,
    ),
)
RPC_REFUSED = Counter(
    "interlock_rpc_refused",
    "Calls refused before their handler ran, by method, mTLS caller and reason.",
    ("method", "caller", "reason"),
    registry=REGISTRY,
)

REQUEST_ID_HEADER = "x-request-id"
"""The gRPC metadata that carries the request id."""

# W3C asks for at least 512 characters of tracestate; whoever sends more is
# filling our logs.
_MAX_TRACE_HEADER_BYTES = 512
_TRACE_HEADERS = ("traceparent", "tracestate")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_REQUEST_ID_BYTES = 12

_request_id: ContextVar[str] = ContextVar("interlock_request_id", default="")
_propagator = TraceContextTextMapPropagator()


def new_request_id() -> str:
    """Make an id for a request that arrives without one: 16 random characters."""
    return secrets.token_urlsafe(_REQUEST_ID_BYTES)


def current_request_id() -> str:
    """Return the request id in force here; empty outside of any request."""
    return _request_id.get()


def accept_request_id(offered: str | None) -> str:
    """Return the offered request id when it is well-formed, else a new one."""
    return offered if offered and _REQUEST_ID.fullmatch(offered) else new_request_id()


@contextmanager
def request_id_scope(request_id: str) -> Iterator[str]:
    """Put a request id in force: calls made inside carry it, log lines name it.

    Args:
        request_id: 8 to 64 characters of `A-Z a-z 0-9 _ -`.

    Raises:
        ValueError: The id is malformed.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError("a request id is 8 to 64 characters of A-Z a-z 0-9 _ -")
    token = _request_id.set(request_id)
    try:
        yield request_id
    finally:
        _request_id.reset(token)


@contextmanager
def hop(name: str, *, request_id: str, parent: str = "") -> Iterator[str]:
    """Work on one request under a span of its own, and under its request id.

    What is raised inside marks the span as failed, without its text.

    Args:
        name: The span's name; few different ones.
        request_id: The request's id; one that is malformed, or empty, is replaced.
        parent: The `traceparent` of another process's hop, which this one goes on
            from; empty for one that begins here.
    """
    kind = trace.SpanKind.CONSUMER if parent else trace.SpanKind.SERVER
    context = trace_context({"traceparent": parent} if parent else {})
    with (
        request_id_scope(accept_request_id(request_id)) as named,
        _span(name, kind, context) as span,
    ):
        span.set_attribute("interlock.request_id", named)
        yield named


@contextmanager
def outgoing_call(name: str) -> Iterator[None]:
    """Call somebody who is not ours under a span; a failure marks it, without its text.

    Args:
        name: The span's name; few different ones.
    """
    with _span(name, trace.SpanKind.CLIENT, None):
        yield


@contextmanager
def _span(name: str, kind: trace.SpanKind, context: Context | None) -> Iterator[trace.Span]:
    with tracer().start_as_current_span(
        name, context=context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException:
            span.set_status(trace.StatusCode.ERROR)
            raise


def trace_parent() -> str:
    """Return the `traceparent` that continues the current trace; empty when there is none."""
    return trace_headers().get("traceparent", "")


def configure_tracing(service: str, otlp_endpoint: str) -> None:
    """Send this process's spans to an OTLP/gRPC endpoint; nothing when it is empty.

    Call once per process. `http://` endpoints are sent to without TLS.

    Raises:
        ConfigError: The endpoint is no http or https URL.
    """
    if not otlp_endpoint:
        return
    parts = urlsplit(otlp_endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(
            "INTERLOCK_OTLP_ENDPOINT", "must be http://host:port or https://host:port"
        )
    # Together these take 200 ms to import, and most runs do not trace.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - Above.
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - Above.
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - Above.
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - Above.

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"interlock-{service}"}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=parts.scheme == "http")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def shut_down_tracing() -> None:
    """Send the spans still held; at the end of a process. May take seconds."""
    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shutdown is not None:
        shutdown()


@cache
def tracer() -> trace.Tracer:
    """Return the tracer that spans of ours are started with.

    Made once: OpenTelemetry reads the environment to make one, and one made
    before tracing is configured finds its way later.
    """
    return trace.get_tracer("interlock")


def trace_headers() -> dict[str, str]:
    """Return the W3C headers that continue the current trace in another process."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return {name: value for name, value in carrier.items() if _is_small(value)}


def trace_context(headers: Mapping[str, str]) -> Context:
    """Return the trace that a request continues, from its W3C headers.

    Headers of more than 512 bytes are dropped; a malformed one starts a new trace.
    """
    carrier = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
    if not carrier:
        return Context()
    return _propagator.extract(
        {name: value for name, value in carrier.items() if _is_small(value)}, context=Context()
    )


def trace_id_of(span: trace.Span) -> str:
    """Return the span's trace id in hex; empty when nothing is traced."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _is_small(value: str) -> bool:
    return len(value.encode()) <= _MAX_TRACE_HEADER_BYTES


@cache
def start_process_metrics() -> None:
    """Add the process's memory, CPU and file descriptors to the metrics, once."""
    ProcessCollector(registry=REGISTRY)


def metrics_text() -> bytes:
    """Write every metric of the process in Prometheus's text format."""
    return generate_latest(REGISTRY)
