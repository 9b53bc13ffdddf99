"""A gRPC server that refuses before it serves.

Around every handler, outermost first: errors become statuses; the hop is
traced, timed and logged; the caller is checked against the table; the deadline
is checked and capped; the request is parsed and validated. All of it happens
inside the handler that gRPC calls, because what is raised further out reaches
the peer as UNKNOWN with its text.
"""

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry import trace
from protovalidate import Validator, Violation

from interlock_chassis import telemetry
from interlock_chassis.callers import CallerTable, may_call, require_complete
from interlock_chassis.errors import (
    CallerNotAllowed,
    ConfigError,
    DeadlineMissing,
    InvalidArgument,
    Kind,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from interlock_chassis.logs import describe_exception
from interlock_chassis.statuses import DeadlineExceeded, code_of, to_status
from interlock_chassis.tls import TlsFiles, peer_name, server_credentials

_DEFAULT_CAP = timedelta(seconds=5)
_MAX_MESSAGE_BYTES = 64 * 1024

# Far above what one healthy peer keeps open; what is left is for the others.
_MAX_CALLS_PER_CALLER = 1000
_MAX_CALLS = 4 * _MAX_CALLS_PER_CALLER

# What one connection may have open; what is beyond that fails as UNAVAILABLE at its client.
_MAX_STREAMS = 2 * _MAX_CALLS
# Of the calls that wait to be looked at, whoever they are from, the transport cancels some from
# the first number on and all from the second. Its own numbers, 1000 and 3000, are within the
# reach of one connection (grpc 1.85).
_MAX_WAITING = (2 * _MAX_STREAMS, 4 * _MAX_STREAMS)

# Long enough to write one audit row, short enough that refusing stays cheap.
_REFUSAL_BUDGET = timedelta(seconds=5)

# Peers reconnect, and so spread over replicas again, this often; a stream may
# outlive that by its cap.
_CONNECTION_AGE = timedelta(minutes=15)
_CONNECTION_GRACE = timedelta(minutes=31)
# Our clients ping every 30 s while a stream is silent; gRPC's default, 5 min,
# would end their connection for it.
_PING_INTERVAL = timedelta(seconds=10)

# For clients to hear, by the health service, that they should go elsewhere.
_FAREWELL = timedelta(milliseconds=500)

_HEALTH = f"/{health.SERVICE_NAME}/"

if TYPE_CHECKING:
    # Generic in the stubs only.
    _Context = aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Context = aio.ServicerContext
    _Handler = grpc.RpcMethodHandler

_T = TypeVar("_T")


@dataclass(frozen=True)
class Call:
    """The call being served.

    Attributes:
        caller: The peer's mTLS name.
        method: `/interlock.x.v1.Service/Method`.
        request_id: Ties the hops of one request together.
        trace_id: In hex; empty when nothing is traced.
    """

    caller: str
    method: str
    request_id: str
    trace_id: str


@dataclass(frozen=True)
class Refused:
    """A call that was refused before its handler saw it.

    Attributes:
        caller: The peer's mTLS name; empty when its certificate names nobody.
        method: `/interlock.x.v1.Service/Method`.
        reason: `UNAUTHENTICATED`, `CALLER_NOT_ALLOWED`, `DEADLINE_MISSING`,
            `TOO_MANY_CALLS` or `INVALID_ARGUMENT`.
        request_id: Ties the hops of one request together.
    """

    caller: str
    method: str
    reason: str
    request_id: str


class TooManyCalls(ServiceError):
    """The caller has too many calls open."""

    kind = Kind.EXHAUSTED
    reason = "TOO_MANY_CALLS"


class _InternalError(ServiceError):
    """Stand in for an error nobody foresaw; its text stays here."""

    kind = Kind.INTERNAL
    reason = "INTERNAL"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"internal error {request_id}".rstrip(), metadata={"request_id": request_id}
        )


_AnswerOne = Callable[[Message, _Context], Awaitable[Message]]
_AnswerMany = Callable[[Message, _Context], AsyncGenerator[Message, None]]
OnRefused = Callable[[Refused], Awaitable[None]]

_current: ContextVar[Call] = ContextVar("interlock_call")


def current_call() -> Call:
    """Return the call being served here.

    Raises:
        LookupError: No call is being served here.
    """
    return _current.get()


class RpcServer:
    """Serve gRPC over mutual TLS to the callers a table lists.

    Reflection and channelz are not served. Health is, to any peer with a
    certificate of ours, without deadline.

    Args:
        listen: `host:port`; port 0 lets the system choose.
        tls: This process's certificate and the authority of its peers.
        callers: A row for every RPC served; an empty one lets nobody call it.
        caps: The longest time an RPC may take, by `/package.Service/Method`,
            where it differs from `default_cap`.
        default_cap: The longest time every other RPC may take.
        on_refused: Awaited, for at most 5 s, before the caller of a refused
            call learns that it was refused; also when that caller has hung up.
            When it fails, the call is refused all the same.
        max_message_bytes: The largest request; the transport answers
            RESOURCE_EXHAUSTED to a larger one.
        max_calls_per_caller: How many calls one caller may have open.
    """

    def __init__(
        self,
        *,
        listen: str,
        tls: TlsFiles,
        callers: CallerTable,
        caps: Mapping[str, timedelta],
        default_cap: timedelta = _DEFAULT_CAP,
        on_refused: OnRefused | None = None,
        max_message_bytes: int = _MAX_MESSAGE_BYTES,
        max_calls_per_caller: int = _MAX_CALLS_PER_CALLER,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._callers = callers
        self._caps = caps
        self._max_message_bytes = max_message_bytes
        self._gate = _Gate(
            callers=callers,
            caps=caps,
            default_cap=default_cap,
            on_refused=on_refused,
            max_calls_per_caller=max_calls_per_caller,
        )
        self._services: dict[str, tuple[Callable[..., None], object]] = {}
        self._health: health.aio.HealthServicer | None = None
        self._server: aio.Server | None = None

    def add(
        self, add_to_server: Callable[..., None], servicer: object, full_service_name: str
    ) -> None:
        """Serve a service, from the next start.

        Args:
            add_to_server: The generated `add_..._to_server`.
            servicer: Its implementation; streams are async generators.
            full_service_name: `interlock.x.v1.Service`.
        """
        self._services[full_service_name] = (add_to_server, servicer)

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            ConfigError: The caller table or the caps do not fit the RPCs
                served, an RPC has a shape that is not supported, a TLS file
                cannot be read, or the address is not free.
        """
        require_complete(self._callers, self._services)
        unknown = sorted(set(self._caps) - set(self._callers))
        if unknown:
            raise ConfigError("caps", f"a cap for an RPC not served: {', '.join(unknown)}")
        for name, (_, servicer) in self._services.items():
            _require_supported(name, servicer)
        credentials = server_credentials(self._tls)
        server = aio.server(
            interceptors=[self._gate],
            options=_options(self._max_message_bytes),
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        for add_to_server, servicer in self._services.values():
            add_to_server(servicer, _Unregistered(server))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, _Unregistered(server))
        for name in self._services:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            port = server.add_secure_port(self._listen, credentials)
        except RuntimeError:
            raise ConfigError("INTERLOCK_LISTEN", "cannot listen there") from None
        await server.start()
        self._server = server
        return port

    async def stop(self, grace: timedelta) -> None:
        """Stop serving: tell clients, refuse new calls, cancel running ones after the grace.

        Clients get half a second to turn to other replicas, unless there is no
        grace. Does nothing when not started.
        """
        server, self._server = self._server, None
        if server is None:
            return
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
            # gRPC cancels calls that arrive while it stops.
            await asyncio.sleep(min(_FAREWELL, grace).total_seconds())
        await server.stop(grace.total_seconds())
        await self._gate.finish()


class _Unregistered:
    """Stand in for a server, and have it look up methods by name when they are called.

    grpc.aio waits for the next call of every method that is registered ahead of
    time, and sets up all those waits anew for each call: with some thirty
    methods that is a tenth of a small call (grpcio 1.85).
    """

    def __init__(self, server: aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers that are asked by method name."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing: the same methods are among the generic handlers."""


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        ("grpc.server.max_pending_requests", _MAX_WAITING[0]),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_WAITING[1]),
        ("grpc.max_connection_age_ms", _milliseconds(_CONNECTION_AGE)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(_CONNECTION_GRACE)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_PING_INTERVAL)),
    ]


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _require_supported(service: str, servicer: object) -> None:
    """Refuse RPCs that the gate cannot guard; compile the rules of the others."""
    validator = Validator()
    for method in descriptor_pool.Default().FindServiceByName(service).methods:
        if method.client_streaming:
            raise ConfigError(service, f"{method.name} streams requests, which is not supported")
        handler = getattr(servicer, method.name, None)
        if method.server_streaming and inspect.iscoroutinefunction(handler):
            raise ConfigError(service, f"{method.name} must be an async generator")
        _compile_rules(validator, method)


def _compile_rules(validator: Validator, method: MethodDescriptor) -> None:
    # The first validation of a type takes milliseconds and finds rules that
    # do not compile.
    validator.collect_violations(message_factory.GetMessageClass(method.input_type)())


@dataclass(frozen=True)
class _Rpc:
    """An RPC's handler and the longest time it may take."""

    method: str
    handler: _Handler
    cap: timedelta


@dataclass
class _Hop:
    """What becomes of one call: the line, the span and the sample it leaves."""

    call: Call
    span: trace.Span
    started: float
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    cause: list[str] = field(default_factory=list)

    def fail(self, code: grpc.StatusCode, reason: str, cause: BaseException | None = None) -> None:
        """Note how the call failed; of the cause, where it came from, not its text."""
        self.code, self.reason = code, reason
        self.cause = describe_exception(cause) if cause is not None else []

    def finish(self) -> None:
        """Write the log line, the sample and the span's outcome."""
        elapsed = time.monotonic() - self.started
        call = self.call
        telemetry.RPC_SECONDS.labels(call.method, self.code.name, call.caller).observe(elapsed)
        self.span.set_attribute("rpc.grpc.status_code", self.code.value[0])
        if self.code in _PAGES:
            self.span.set_status(trace.StatusCode.ERROR)
        facts = {"reason": self.reason, "cause": self.cause, "trace_id": call.trace_id}
        structlog.get_logger().log(
            logging.ERROR if self.code in _PAGES else logging.INFO,
            "rpc_finished",
            method=call.method,
            caller=call.caller,
            request_id=call.request_id,
            code=self.code.name,
            elapsed_ms=round(elapsed * 1000, 2),
            **{name: fact for name, fact in facts.items() if fact},
        )


# What somebody has to look at, whoever called.
_PAGES = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


class _Gate(aio.ServerInterceptor):
    """Put every check around every handler."""

    def __init__(
        self,
        *,
        callers: CallerTable,
        caps: Mapping[str, timedelta],
        default_cap: timedelta,
        on_refused: OnRefused | None,
        max_calls_per_caller: int,
    ) -> None:
        self._callers = callers
        self._caps = caps
        self._default_cap = default_cap
        self._on_refused = on_refused
        self._max_calls_per_caller = max_calls_per_caller
        self._open_calls: Counter[str] = Counter()
        self._handlers: dict[str, _Handler] = {}
        self._refusals: set[asyncio.Task[None]] = set()
        self._validator = Validator()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the handler with the checks around it."""
        method = handler_call_details.method
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_HEALTH):
            return handler
        guarded = self._guard(_Rpc(method, handler, self._caps.get(method, self._default_cap)))
        self._handlers[method] = guarded
        return guarded

    async def finish(self) -> None:
        """Wait for refusals that are still being recorded."""
        await asyncio.gather(*self._refusals, return_exceptions=True)

    def _guard(self, rpc: _Rpc) -> _Handler:
        """Wrap a handler; requests and responses pass gRPC as bytes.

        So a request that does not parse, or a response that does not
        serialise, raises in here and not in gRPC, which would send the text.
        """
        pack = rpc.handler.response_serializer or _without_type
        # The stubs describe the handlers of synchronous servers.
        answer_one = cast("_AnswerOne", rpc.handler.unary_unary)
        answer_many = cast("_AnswerMany", rpc.handler.unary_stream)

        async def serve_one(raw: bytes, context: _Context) -> bytes:
            async def work(request: Message) -> bytes:
                return pack(await answer_one(request, context))

            return await self._without_texts(rpc, raw, context, work)

        async def serve_stream(raw: bytes, context: _Context) -> None:
            async def work(request: Message) -> None:
                async with aclosing(answer_many(request, context)) as responses:
                    async for response in responses:
                        await context.write(pack(response))

            await self._without_texts(rpc, raw, context, work)

        if rpc.handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(serve_stream)
        return grpc.unary_unary_rpc_method_handler(serve_one)

    async def _without_texts(
        self, rpc: _Rpc, raw: bytes, context: _Context, work: Callable[[Message], Awaitable[_T]]
    ) -> _T:
        """Turn errors into statuses; nothing but a ServiceError's own words crosses."""
        try:
            return await self._observed(rpc, raw, context, work)
        except aio.AbortError:
            raise
        except ServiceError as error:
            status = to_status(error)
        except Exception:  # noqa: BLE001 - The last door before the peer.
            status = to_status(_InternalError(""))
        return await context.abort_with_status(status)

    async def _observed(
        self, rpc: _Rpc, raw: bytes, context: _Context, work: Callable[[Message], Awaitable[_T]]
    ) -> _T:
        """Give the call its ids, and leave one log line, one sample and one span."""
        hop = _begin(rpc, context)
        _current.set(hop.call)
        with (
            telemetry.request_id_scope(hop.call.request_id),
            trace.use_span(
                hop.span, end_on_exit=True, record_exception=False, set_status_on_exception=False
            ),
        ):
            try:
                return await self._admitted(hop.call, rpc, raw, context, work)
            except ServiceError as error:
                hop.fail(code_of(error), error.reason, error.__cause__)
                raise
            except aio.AbortError:
                hop.fail(context.code(), "ABORTED")
                raise
            except asyncio.CancelledError:
                hop.fail(grpc.StatusCode.CANCELLED, "CANCELLED")
                raise
            except Exception as error:  # noqa: BLE001 - Whatever it is, it stays here.
                hidden = _hidden(error, context, hop.call)
                hop.fail(code_of(hidden), hidden.reason, error)
                raise hidden from None
            finally:
                hop.finish()

    async def _admitted(
        self,
        call: Call,
        rpc: _Rpc,
        raw: bytes,
        context: _Context,
        work: Callable[[Message], Awaitable[_T]],
    ) -> _T:
        """Check the call, then do the work within the RPC's cap."""
        try:
            self._check_caller(call)
            remaining = self._check_limits(call, context)
            request = self._parse(rpc, raw)
        except ServiceError as refusal:
            telemetry.RPC_REFUSED.labels(call.method, call.caller, refusal.reason).inc()
            if self._on_refused is not None:
                refused = Refused(call.caller, call.method, refusal.reason, call.request_id)
                await self._record(self._on_refused, refused)
            raise
        self._open_calls[call.caller] += 1
        try:
            if remaining <= rpc.cap.total_seconds():
                # gRPC itself cancels a call at the deadline that its caller gave.
                return await work(request)
            return await _within(rpc.cap, work(request))
        finally:
            self._open_calls[call.caller] -= 1

    def _check_caller(self, call: Call) -> None:
        if not call.caller:
            raise Unauthenticated
        if not may_call(self._callers, call.method, call.caller):
            raise CallerNotAllowed

    def _check_limits(self, call: Call, context: _Context) -> float:
        """Return how long the caller waits, in seconds."""
        remaining: float | None = context.time_remaining()
        if remaining is None:
            raise DeadlineMissing
        if self._open_calls[call.caller] >= self._max_calls_per_caller:
            raise TooManyCalls
        return remaining

    async def _record(self, on_refused: OnRefused, refused: Refused) -> None:
        """Have a refusal recorded; a peer that hangs up cannot stop that."""
        task = asyncio.ensure_future(_record_within_budget(on_refused, refused))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)
        await asyncio.shield(task)

    def _parse(self, rpc: _Rpc, raw: bytes) -> Message:
        parse = rpc.handler.request_deserializer or _without_type
        try:
            request: Message = parse(raw)
        except DecodeError:
            raise InvalidArgument("the request does not parse") from None
        size = request.ByteSize()
        request.DiscardUnknownFields()
        if request.ByteSize() != size:
            raise InvalidArgument("the request holds a field this server does not know")
        for violation in self._validator.collect_violations(request, fail_fast=True):
            raise _invalid(violation)
        return request


def _without_type(_: object) -> NoReturn:
    raise TypeError("a handler without message types")


async def _within(cap: timedelta, work: Awaitable[_T]) -> _T:
    limit = asyncio.timeout(cap.total_seconds())
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded from None
        raise


async def _record_within_budget(on_refused: OnRefused, refused: Refused) -> None:
    try:
        async with asyncio.timeout(_REFUSAL_BUDGET.total_seconds()):
            await on_refused(refused)
    except Exception as error:  # noqa: BLE001 - The caller is refused either way.
        structlog.get_logger().error(
            "refusal_not_recorded",
            method=refused.method,
            caller=refused.caller,
            request_id=refused.request_id,
            cause=describe_exception(error),
        )


def _begin(rpc: _Rpc, context: _Context) -> _Hop:
    """Open the hop of a call; the ids come from the peer where they are sound."""
    headers = {
        name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    try:
        caller = peer_name(context)
    except Unauthenticated:
        caller = ""
    request_id = telemetry.accept_request_id(headers.get(telemetry.REQUEST_ID_HEADER))
    span = telemetry.tracer().start_span(
        rpc.method.removeprefix("/"),
        context=telemetry.trace_context(headers),
        kind=trace.SpanKind.SERVER,
        attributes={
            "rpc.system": "grpc",
            "interlock.caller": caller,
            "interlock.request_id": request_id,
        },
    )
    call = Call(caller, rpc.method, request_id, telemetry.trace_id_of(span))
    return _Hop(call, span, time.monotonic())


def _hidden(error: Exception, context: _Context, call: Call) -> ServiceError:
    """Choose what the peer sees of an error nobody foresaw."""
    # The generated base class does both for an RPC nobody implemented.
    if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Unimplemented()
    return _InternalError(call.request_id)


def _invalid(violation: Violation) -> InvalidArgument:
    """Name the field and the rule it breaks; never the value."""
    found = violation.proto
    path = ".".join(element.field_name for element in found.field.elements) if found.field else ""
    return InvalidArgument(
        f"{path or 'the request'} breaks the rule {found.rule_id}",
        metadata={"field": path, "rule": found.rule_id},
    )
