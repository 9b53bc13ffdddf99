"""The gRPC server and client of the chassis, over real mutual TLS on loopback."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from interlock.runner.v1 import runner_pb2 as pb
from interlock.runner.v1 import runner_pb2_grpc as rpc
from interlock_chassis import client, telemetry
from interlock_chassis.client import open_channel, remote_errors, request_id_scope
from interlock_chassis.errors import ConfigError, Kind, RemoteError, ServiceError
from interlock_chassis.logs import configure_logging
from interlock_chassis.server import Call, Refused, RpcServer, current_call
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles

SERVICE = "interlock.runner.v1.RunnerService"
LIST, RUN, APPROVE = (f"/{SERVICE}/{name}" for name in ("ListProjects", "Run", "Approve"))
WORKER = frozenset({"gateway-worker"})
CALLERS: Mapping[str, frozenset[str]] = {
    LIST: WORKER,
    f"/{SERVICE}/ListAgents": WORKER,
    RUN: WORKER,
    APPROVE: frozenset(),
    f"/{SERVICE}/Cancel": WORKER,
}
CANARY = "xoxb-1-2-canary"
A_RUN = pb.RunRequest(
    user_token="t",
    project_id="p",
    agent_id="a",
    conversation_id="c",
    message_id="m",
    prompt="hello",
    entry_point=pb.ENTRY_POINT_APP_MENTION,
)


class LeaseHeld(ServiceError):
    """Another worker is rotating this installation."""

    kind = Kind.LOST_RACE
    reason = "LEASE_HELD"


@dataclass
class Runner:
    """A runner that does what the test says, and notes what reached it."""

    behave: Callable[[Any], Awaitable[None]] | None = None
    calls: list[Call] = field(default_factory=list)
    stream_closed: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 1
    certificates: list[bytes] = field(default_factory=list)

    async def ListProjects(  # noqa: N802 - gRPC's name.
        self, request: pb.ListProjectsRequest, context: Any
    ) -> pb.ListProjectsResponse:
        """Note the call, behave, answer with one project."""
        self.calls.append(current_call())
        self.certificates.extend(context.auth_context()["x509_pem_cert"])
        if self.behave is not None:
            await self.behave(context)
        return pb.ListProjectsResponse(projects=[pb.Project(project_id="p")])

    async def ListAgents(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name.
        """Do what the generated base class does for an RPC nobody implemented."""
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError(CANARY)

    Approve = Cancel = ListAgents

    async def Run(  # noqa: N802 - gRPC's name.
        self, request: pb.RunRequest, context: Any
    ) -> AsyncIterator[pb.RunResponse]:
        """Stream text, then behave; note when the stream is closed."""
        try:
            for number in range(self.streams):
                yield pb.RunResponse(text=pb.TextDelta(text=str(number)))
            if self.behave is not None:
                await self.behave(context)
        finally:
            self.stream_closed.set()


async def fail_with_token(_: object) -> None:
    """Raise what a careless library would."""
    raise ValueError(f"cannot use {CANARY}")


async def hang(_: object) -> None:
    """Never come back."""
    await asyncio.Event().wait()


@dataclass
class Wire:
    """A started server and how to reach it."""

    port: int
    runner: Runner
    refusals: list[Refused]
    tls: Callable[[str], TlsFiles]
    server: RpcServer

    @asynccontextmanager
    async def stub(self, caller: str = "gateway-worker") -> AsyncIterator[rpc.RunnerServiceStub]:
        """Call the server as somebody."""
        async with self.channel(caller) as channel:
            yield rpc.RunnerServiceStub(channel)

    def channel(self, caller: str = "gateway-worker") -> Any:
        """Open a channel as somebody."""
        return open_channel(f"127.0.0.1:{self.port}", self.tls(caller), server="runner")


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Wire]:
    """Serve a Runner with its own throw-away authority."""
    ca = ThrowAwayCa.create(folder / "ca")
    refusals: list[Refused] = []

    async def note(refused: Refused) -> None:
        refusals.append(refused)

    settings: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "callers": CALLERS,
        "caps": {},
        "on_refused": note,
    }
    server = RpcServer(
        tls=ca.issue("runner", folder / "runner"),
        **(settings | options),
    )
    runner = Runner()
    server.add(rpc.add_RunnerServiceServicer_to_server, runner, SERVICE)
    port = await server.start()
    try:
        yield Wire(port, runner, refusals, lambda name: ca.issue(name, folder / "clients"), server)
    finally:
        await server.stop(timedelta(0))


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """Serve with the usual table."""
    async with serving(tmp_path) as found:
        yield found


def listing(**fields: str) -> pb.ListProjectsRequest:
    """Make a valid request, with changes."""
    return pb.ListProjectsRequest(**{"user_token": "t", **fields})


async def refusal_of(call: Awaitable[object]) -> RemoteError:
    """Return the error a call ends with."""
    with pytest.raises(RemoteError) as raised, remote_errors():
        await call
    return raised.value


async def answer_of(call: Awaitable[pb.ListProjectsResponse]) -> pb.ListProjectsResponse:
    """Return the answer of a call."""
    with remote_errors():
        return await call


async def read(stream: Any) -> list[str]:
    """Read a run to its end."""
    with remote_errors():
        return [event.text.text async for event in stream]


async def test_a_listed_caller_is_served_and_known_to_the_handler(wire: Wire) -> None:
    """The handler learns caller, method and the request id the client had in force."""
    async with wire.stub() as stub:
        with request_id_scope("request-1"):
            answer = await stub.ListProjects(listing(), timeout=5)
    assert [project.project_id for project in answer.projects] == ["p"]
    assert wire.runner.calls == [Call("gateway-worker", LIST, "request-1", "")]
    assert wire.refusals == []


async def test_a_call_without_an_id_gets_one(wire: Wire) -> None:
    """Each request can be followed, whoever started it."""
    async with wire.stub() as stub:
        await stub.ListProjects(listing(), timeout=5)
        await stub.ListProjects(listing(), timeout=5)
    ids = {call.request_id for call in wire.runner.calls}
    assert len(ids) == 2
    assert all(len(one) == 16 for one in ids)


async def test_an_unlisted_caller_is_refused_and_recorded(wire: Wire) -> None:
    """GV-02: a valid certificate is not enough; the refusal is recorded before it is told."""
    async with wire.stub("gateway-edge") as stub:
        with request_id_scope("request-2"):
            error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert (error.kind, error.reason) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
    assert wire.refusals == [Refused("gateway-edge", LIST, "CALLER_NOT_ALLOWED", "request-2")]
    assert wire.runner.calls == []


async def test_an_empty_row_is_nobody(wire: Wire) -> None:
    """GV-03: an RPC with an empty row is refused to all."""
    request = pb.ApproveRequest(
        user_token="t",
        conversation_id="c",
        project_id="p",
        agent_id="a",
        approval_id="x",
        tool_call_id="y",
    )
    async with wire.stub() as stub:
        error = await refusal_of(stub.Approve(request, timeout=5))
    assert error.reason == "CALLER_NOT_ALLOWED"


async def test_a_refusal_comes_before_anything_else_is_looked_at(wire: Wire) -> None:
    """A stranger learns nothing about deadlines or fields."""
    async with wire.channel("runner") as channel:
        call = channel.unary_unary(LIST)
        error = await refusal_of(call(b"\xff\xff"))
    assert error.reason == "CALLER_NOT_ALLOWED"


async def test_a_refusal_that_cannot_be_recorded_is_still_a_refusal(tmp_path: Path) -> None:
    """An audit that fails does not let anybody in."""

    async def fail(_: Refused) -> None:
        raise ValueError(CANARY)

    async with serving(tmp_path, on_refused=fail) as wire, wire.stub("gateway-edge") as stub:
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.reason == "CALLER_NOT_ALLOWED"
    assert CANARY not in error.message


async def test_hanging_up_does_not_stop_the_record(tmp_path: Path) -> None:
    """A refused caller with a tiny deadline is recorded all the same."""
    started, release, recorded = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: Refused) -> None:
        started.set()
        await release.wait()
        recorded.set()

    async with serving(tmp_path, on_refused=slow) as wire, wire.stub("gateway-edge") as stub:
        call = stub.ListProjects(listing(), timeout=5)
        waiting = asyncio.ensure_future(refusal_of(call))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        await asyncio.wait_for(recorded.wait(), 5)


async def test_a_stranger_fails_the_handshake(wire: Wire, tmp_path: Path) -> None:
    """GV-01: a certificate of another authority does not get as far as a refusal."""
    strangers = ThrowAwayCa.create(tmp_path / "strangers").issue("gateway-worker", tmp_path / "s")
    mixed = TlsFiles(ca=wire.tls("gateway-worker").ca, cert=strangers.cert, key=strangers.key)
    async with open_channel(f"127.0.0.1:{wire.port}", mixed, server="runner") as channel:
        stub = rpc.RunnerServiceStub(channel)
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "PEER_UNAVAILABLE")
    assert wire.refusals == []


async def test_an_expired_certificate_fails_the_handshake(wire: Wire, tmp_path: Path) -> None:
    """GV-01: yesterday's certificate is nobody's."""
    ca = ThrowAwayCa.load(tmp_path / "ca")
    expired = ca.issue("gateway-worker", tmp_path / "old", life=timedelta(seconds=-1))
    async with open_channel(f"127.0.0.1:{wire.port}", expired, server="runner") as channel:
        stub = rpc.RunnerServiceStub(channel)
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.reason == "PEER_UNAVAILABLE"


async def test_no_certificate_fails_the_handshake(wire: Wire) -> None:
    """GV-01: TLS without a client certificate is not enough."""
    credentials = grpc.ssl_channel_credentials(wire.tls("gateway-worker").ca.read_bytes())
    async with aio.secure_channel(f"localhost:{wire.port}", credentials) as channel:
        stub = rpc.RunnerServiceStub(channel)
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.reason == "PEER_UNAVAILABLE"


async def test_a_client_does_not_talk_to_another_service(wire: Wire) -> None:
    """A process with a certificate of ours cannot pose as another one."""
    tls = wire.tls("gateway-worker")
    async with open_channel(f"127.0.0.1:{wire.port}", tls, server="token-vault") as channel:
        stub = rpc.RunnerServiceStub(channel)
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.reason == "PEER_UNAVAILABLE"
    assert wire.runner.calls == []


async def test_a_call_without_deadline_is_refused(wire: Wire) -> None:
    """GV-09: a caller that would wait for ever is told to say how long."""
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing()))
        stream_error = await refusal_of(read(stub.Run(A_RUN)))
    assert (error.kind, error.reason) == (Kind.INVALID, "DEADLINE_MISSING")
    assert stream_error.reason == "DEADLINE_MISSING"
    assert wire.runner.calls == []


async def test_a_cap_ends_a_call_whose_deadline_is_longer(tmp_path: Path) -> None:
    """GV-09: the server's cap holds, whatever the caller is ready to wait."""
    caps = {LIST: timedelta(milliseconds=50)}
    async with serving(tmp_path, caps=caps) as wire, wire.stub() as stub:
        wire.runner.behave = hang
        error = await refusal_of(stub.ListProjects(listing(), timeout=600))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "DEADLINE_EXCEEDED")


async def test_a_cap_ends_a_stream_and_closes_the_handler(tmp_path: Path) -> None:
    """A stream is capped as a whole; its handler is closed, not left behind."""
    caps = {RUN: timedelta(milliseconds=100)}
    async with serving(tmp_path, caps=caps) as wire, wire.stub() as stub:
        wire.runner.behave = hang
        error = await refusal_of(read(stub.Run(A_RUN, timeout=600)))
        await asyncio.wait_for(wire.runner.stream_closed.wait(), 5)
    assert error.reason == "DEADLINE_EXCEEDED"


async def test_a_timeout_of_the_handlers_own_is_not_the_cap(wire: Wire) -> None:
    """A TimeoutError that slips out of a handler is a bug, not a deadline."""

    async def time_out(_: object) -> None:
        raise TimeoutError(CANARY)

    wire.runner.behave = time_out
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.kind is Kind.INTERNAL
    assert CANARY not in error.message


async def test_streams_are_served(wire: Wire) -> None:
    """Every message of a stream arrives, in order."""
    wire.runner.streams = 500
    async with wire.stub() as stub:
        texts = await read(stub.Run(A_RUN, timeout=5))
    assert texts == [str(number) for number in range(500)]


async def test_hanging_up_closes_the_handler_of_a_stream(wire: Wire) -> None:
    """A reader that leaves ends the work upstream."""
    wire.runner.behave = hang
    async with wire.stub() as stub:
        call = stub.Run(A_RUN, timeout=60)
        async for _ in call:
            break
        call.cancel()
        await asyncio.wait_for(wire.runner.stream_closed.wait(), 5)


async def test_an_error_in_a_stream_arrives_after_what_was_sent(wire: Wire) -> None:
    """What was streamed is kept; the error follows with its reason."""

    async def refuse(_: object) -> None:
        raise LeaseHeld

    wire.runner.behave = refuse
    async with wire.stub() as stub:
        stream = stub.Run(A_RUN, timeout=5)
        first = await stream.read()
        error = await refusal_of(stream.read())
    assert isinstance(first, pb.RunResponse)
    assert first.text.text == "0"
    assert error.reason == "LEASE_HELD"


async def test_a_service_error_crosses_whole(wire: Wire) -> None:
    """Kind, reason, words, wait and metadata arrive as they were raised."""

    async def refuse(_: object) -> None:
        raise LeaseHeld(
            "wait, später", retry_after=timedelta(seconds=1.5), metadata={"generation": "4"}
        )

    wire.runner.behave = refuse
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert (error.kind, error.reason, error.message) == (
        Kind.LOST_RACE,
        "LEASE_HELD",
        "wait, später",
    )
    assert error.retry_after == timedelta(seconds=1.5)
    assert error.metadata == {"generation": "4"}


@pytest.mark.parametrize("streams", [False, True])
async def test_an_unforeseen_error_does_not_cross(
    wire: Wire, capfd: pytest.CaptureFixture[str], *, streams: bool
) -> None:
    """GV-11: the peer gets an id; its text is in neither reply nor log, its type and place are."""
    handlers = logging.getLogger().handlers[:]
    configure_logging("runner", "debug")
    wire.runner.behave = fail_with_token
    try:
        async with wire.stub() as stub:
            with request_id_scope("request-3"):
                call = (
                    read(stub.Run(A_RUN, timeout=5))
                    if streams
                    else stub.ListProjects(listing(), timeout=5)
                )
                error = await refusal_of(call)
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.reset_defaults()
    logged = capfd.readouterr().err
    assert error.kind is Kind.INTERNAL
    assert error.message == "internal error request-3"
    assert "canary" not in logged
    line = next(json.loads(line) for line in logged.splitlines() if "rpc_finished" in line)
    assert line["request_id"] == "request-3"
    assert line["level"] == "error"
    assert line["cause"][0] == "builtins.ValueError"
    assert "fail_with_token" in line["cause"][-1]


async def test_an_answer_that_cannot_be_sent_does_not_cross(wire: Wire) -> None:
    """GV-11: an answer of the wrong type fails here and not in gRPC, which would quote it."""

    async def wrong(request: object, context: object) -> str:
        return CANARY

    wire.runner.ListProjects = wrong  # type: ignore[method-assign,assignment]
    async with serving_same(wire) as stub:
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert error.kind is Kind.INTERNAL
    assert CANARY not in error.message


@asynccontextmanager
async def serving_same(wire: Wire) -> AsyncIterator[rpc.RunnerServiceStub]:
    """Serve the wire's runner as it is now, on a server of its own."""
    server = RpcServer(listen="127.0.0.1:0", tls=wire.tls("runner"), callers=CALLERS, caps={})
    server.add(rpc.add_RunnerServiceServicer_to_server, wire.runner, SERVICE)
    port = await server.start()
    try:
        address = f"127.0.0.1:{port}"
        async with open_channel(address, wire.tls("gateway-worker"), server="runner") as channel:
            yield rpc.RunnerServiceStub(channel)
    finally:
        await server.stop(timedelta(0))


async def test_an_rpc_nobody_implemented_says_so(wire: Wire) -> None:
    """The generated base class's refusal is UNIMPLEMENTED, not a bug."""
    request = pb.ListAgentsRequest(user_token="t", project_id="p")
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListAgents(request, timeout=5))
    assert (error.kind, error.reason) == (Kind.UNIMPLEMENTED, "UNIMPLEMENTED")


async def test_a_broken_rule_names_field_and_rule_and_not_the_value(wire: Wire) -> None:
    """Rules of the contract hold before the handler; values stay out of errors."""
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing(tenant_id="no spaces!"), timeout=5))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_ARGUMENT")
    assert error.metadata == {"field": "tenant_id", "rule": "string.pattern"}
    assert "spaces" not in error.message
    assert wire.runner.calls == []


UNKNOWN_FIELD = b"\x9a\x06\x02T1"  # Field 99, the text "T1".


@pytest.mark.parametrize("raw", [listing().SerializeToString() + UNKNOWN_FIELD, UNKNOWN_FIELD])
async def test_an_unknown_field_is_refused(wire: Wire, raw: bytes) -> None:
    """GV-05, GV-08: a field the server does not know never reaches a handler."""
    async with wire.channel() as channel:
        error = await refusal_of(channel.unary_unary(LIST)(raw, timeout=5))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_ARGUMENT")
    assert "does not know" in error.message
    assert wire.runner.calls == []


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x0a\x02\xff\xfe"])
async def test_a_request_that_does_not_parse_is_invalid(wire: Wire, raw: bytes) -> None:
    """Garbage, and text that is no UTF-8, are the caller's mistake and not ours."""
    async with wire.channel() as channel:
        error = await refusal_of(channel.unary_unary(LIST)(raw, timeout=5))
    assert error.message == "the request does not parse"


async def test_an_oversized_message_is_refused_by_the_transport(wire: Wire) -> None:
    """GV-07: 64 KiB + 1 is RESOURCE_EXHAUSTED; 64 KiB reaches the rules of its fields."""
    overhead = len(listing(user_token="x" * 60_000).SerializeToString()) - 60_000
    fits = "x" * (64 * 1024 - overhead)
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing(user_token=fits), timeout=5))
        assert error.metadata["rule"] == "string.max_len"
        error = await refusal_of(stub.ListProjects(listing(user_token=fits + "x"), timeout=5))
        assert (error.kind, error.reason) == (Kind.EXHAUSTED, "RESOURCE_EXHAUSTED")


async def test_one_caller_cannot_take_all_calls(tmp_path: Path) -> None:
    """GV-13: calls beyond a caller's share are refused at once, and freed ones count again."""
    async with serving(tmp_path, max_calls_per_caller=2) as wire, wire.stub() as stub:
        wire.runner.behave = hang
        streams = [stub.Run(A_RUN, timeout=60) for _ in range(2)]
        for stream in streams:
            assert await stream.read() != aio.EOF
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
        assert (error.kind, error.reason) == (Kind.EXHAUSTED, "TOO_MANY_CALLS")
        wire.runner.behave = None
        for stream in streams:
            stream.cancel()
        await asyncio.wait_for(wire.runner.stream_closed.wait(), 5)
        while not await served(stub):
            pass


async def served(stub: rpc.RunnerServiceStub) -> bool:
    """Tell whether a call gets through now."""
    try:
        with remote_errors():
            await stub.ListProjects(listing(), timeout=5)
    except RemoteError:
        return False
    return True


async def test_health_is_served_to_peers_without_a_row_or_a_deadline(wire: Wire) -> None:
    """Probes need a certificate and nothing else."""
    async with wire.channel("operator") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        f"/{SERVICE}/Unknown",
    ],
)
async def test_reflection_channelz_and_unknown_methods_are_not_served(
    wire: Wire, method: str
) -> None:
    """GV-12: nobody is told what there is."""
    async with wire.channel() as channel:
        error = await refusal_of(channel.unary_unary(method)(b"", timeout=5))
    assert error.kind is Kind.UNIMPLEMENTED


async def test_nobody_listening_is_unavailable(wire: Wire) -> None:
    """A peer that is down is told apart from a peer that refuses."""
    await wire.server.stop(timedelta(0))
    async with wire.stub() as stub:
        error = await refusal_of(stub.ListProjects(listing(), timeout=5))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "PEER_UNAVAILABLE")


async def test_a_call_waits_for_a_peer_that_is_being_replaced(wire: Wire, tmp_path: Path) -> None:
    """A call made while nobody listens is answered by the server that comes next."""
    await wire.server.stop(timedelta(0))
    async with wire.stub() as stub:
        await refusal_of(stub.ListProjects(listing(), timeout=0.2))
        call = asyncio.ensure_future(answer_of(stub.ListProjects(listing(), timeout=30)))
        # The call has begun, and found nobody.
        await asyncio.sleep(0)
        async with serving(tmp_path, listen=f"127.0.0.1:{wire.port}"):
            assert (await call).projects


async def test_replacing_replicas_fails_no_call(wire: Wire, tmp_path: Path) -> None:
    """Two servers stop and start in turns, and every call of a steady stream is answered."""
    answers: list[pb.ListProjectsResponse] = []
    async with AsyncExitStack() as stack:
        wires = [wire, await stack.enter_async_context(serving(tmp_path))]
        addresses = ",".join(f"127.0.0.1:{each.port}" for each in wires)
        tls = wire.tls("gateway-worker")
        channel = await stack.enter_async_context(
            open_channel(f"ipv4:{addresses}", tls, server="runner")
        )
        stub, is_over = rpc.RunnerServiceStub(channel), asyncio.Event()

        async def ask() -> None:
            while not is_over.is_set():
                answers.append(await answer_of(stub.ListProjects(listing(), timeout=30)))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            for number in range(4):
                old = wires[number % 2]
                await old.server.stop(timedelta(seconds=20))
                again = serving(tmp_path, listen=f"127.0.0.1:{old.port}")
                new = wires[number % 2] = await stack.enter_async_context(again)
                # The next one may stop when this one is found.
                await asked(new.runner)
            is_over.set()
    assert len(answers) > 100


async def test_connections_end_by_age_and_no_call_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that never pauses connects anew again and again, and so finds new replicas.

    Calls that are under way when a connection has reached its age are answered.
    """
    monkeypatch.setattr("interlock_chassis.server._CONNECTION_AGE", timedelta(milliseconds=200))
    connections: set[str] = set()

    async def note(context: Any) -> None:
        connections.add(context.peer())

    async with serving(tmp_path) as wire, wire.stub() as stub:
        wire.runner.behave = note
        async with asyncio.timeout(60):
            while len(connections) < 3:
                await answer_of(stub.ListProjects(listing(), timeout=30))


async def asked(runner: Runner) -> None:
    """Wait until a runner is called."""
    called = asyncio.Event()

    async def note(_: object) -> None:
        called.set()

    runner.behave = note
    await asyncio.wait_for(called.wait(), 30)


async def test_stopping_lets_running_calls_finish(wire: Wire) -> None:
    """A call within the grace is answered; a new one is not taken."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> None:
        entered.set()
        await release.wait()

    wire.runner.behave = wait
    async with wire.stub() as stub:
        running = asyncio.ensure_future(answer_of(stub.ListProjects(listing(), timeout=30)))
        await entered.wait()
        stopping = asyncio.ensure_future(wire.server.stop(timedelta(seconds=20)))
        release.set()
        assert (await running).projects
        await asyncio.wait_for(stopping, 10)


async def test_one_trace_spans_both_ends_and_holds_no_text(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client and server spans form one trace; an error's text is in neither."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))
    wire.runner.behave = fail_with_token
    async with wire.stub() as stub:
        await refusal_of(stub.ListProjects(listing(), timeout=5))
    spans = {span.kind: span for span in exporter.get_finished_spans()}
    server, sender = spans[SpanKind.SERVER], spans[SpanKind.CLIENT]
    assert server.name == sender.name == LIST.removeprefix("/")
    assert server.parent is not None
    assert sender.context is not None
    assert server.parent.span_id == sender.context.span_id
    assert wire.runner.calls[0].trace_id == f"{sender.context.trace_id:032x}"
    assert "canary" not in server.to_json() + sender.to_json()


async def test_the_request_id_is_in_force_in_the_handler(wire: Wire) -> None:
    """A handler's own calls continue its caller's request id."""
    carried: list[str] = []

    async def note(_: object) -> None:
        carried.append(telemetry.current_request_id())

    wire.runner.behave = note
    async with wire.stub() as stub:
        with request_id_scope("request-4"):
            await stub.ListProjects(listing(), timeout=5)
    assert carried == ["request-4"]


async def test_calls_are_counted_by_outcome(wire: Wire) -> None:
    """Every call is a sample under its method, code and caller; refusals are counted."""

    def samples(code: str, caller: str) -> float:
        labels = {"method": LIST, "code": code, "caller": caller}
        return telemetry.REGISTRY.get_sample_value("interlock_rpc_seconds_count", labels) or 0

    def refusals() -> float:
        labels = {"method": LIST, "caller": "gateway-edge", "reason": "CALLER_NOT_ALLOWED"}
        return telemetry.REGISTRY.get_sample_value("interlock_rpc_refused_total", labels) or 0

    before = (samples("OK", "gateway-worker"), samples("PERMISSION_DENIED", "gateway-edge"))
    refused_before = refusals()
    async with wire.stub() as stub:
        await stub.ListProjects(listing(), timeout=5)
    async with wire.stub("gateway-edge") as stub:
        await refusal_of(stub.ListProjects(listing(), timeout=5))
    after = (samples("OK", "gateway-worker"), samples("PERMISSION_DENIED", "gateway-edge"))
    assert after == (before[0] + 1, before[1] + 1)
    assert refusals() == refused_before + 1


async def test_renewed_certificates_are_used_without_a_restart(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and open channel both take up new files; calls go on."""
    monkeypatch.setattr(client, "_RENEWAL_CHECK", timedelta(0))
    ca = ThrowAwayCa.load(tmp_path / "ca")
    async with wire.stub() as stub:
        await stub.ListProjects(listing(), timeout=5)
        for name, folder in (("gateway-worker", "clients"), ("runner", "runner")):
            for path in (tmp_path / folder).glob(f"{name}.*"):
                path.unlink()
            ca.issue(name, tmp_path / folder)
        await stub.ListProjects(listing(), timeout=5)
    first, second = wire.runner.certificates
    assert first != second
    assert second == (tmp_path / "clients" / "gateway-worker.crt").read_bytes()
    served = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", wire.port))
    assert served.strip() == (tmp_path / "runner" / "runner.crt").read_text().strip()


async def test_a_renewal_leaves_running_calls_alone(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call under way when the certificate changes is answered on the old connection."""
    monkeypatch.setattr(client, "_RENEWAL_CHECK", timedelta(0))
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> None:
        entered.set()
        await release.wait()

    ca = ThrowAwayCa.load(tmp_path / "ca")
    async with wire.stub() as stub:
        wire.runner.behave = wait
        running = asyncio.ensure_future(answer_of(stub.ListProjects(listing(), timeout=30)))
        await entered.wait()
        wire.runner.behave = None
        for path in (tmp_path / "clients").glob("gateway-worker.*"):
            path.unlink()
        ca.issue("gateway-worker", tmp_path / "clients")
        await stub.ListProjects(listing(), timeout=5)
        release.set()
        assert (await running).projects


async def test_a_broken_renewal_leaves_the_certificate_in_use(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written files harm nobody who is connected or connects."""
    monkeypatch.setattr(client, "_RENEWAL_CHECK", timedelta(0))
    async with wire.stub() as stub:
        (tmp_path / "clients" / "gateway-worker.key").write_text("half")
        (tmp_path / "runner" / "runner.crt").write_text("half")
        await stub.ListProjects(listing(), timeout=5)
        await stub.ListProjects(listing(), timeout=5)
    async with wire.stub("gateway-edge") as stub:
        assert (await refusal_of(stub.ListProjects(listing(), timeout=5))).kind is Kind.FORBIDDEN


async def test_a_table_that_misses_an_rpc_stops_the_start(tmp_path: Path) -> None:
    """GV-03: an RPC without a row, or a row or cap without an RPC, is refused."""
    shorter = {method: names for method, names in CALLERS.items() if method != RUN}
    for options in (
        {"callers": shorter},
        {"callers": {**CALLERS, "/a.B/C": WORKER}},
        {"caps": {"/a.B/C": timedelta(seconds=1)}},
    ):
        with pytest.raises(ConfigError):
            async with serving(tmp_path, **options):
                pass


async def test_a_stream_handler_that_cannot_be_capped_stops_the_start(tmp_path: Path) -> None:
    """A stream is an async generator, or the gate could not close it."""

    class Coroutine:
        async def Run(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name.
            await context.write(pb.RunResponse())

    tls = ThrowAwayCa.create(tmp_path).issue("runner", tmp_path)
    server = RpcServer(listen="127.0.0.1:0", tls=tls, callers=CALLERS, caps={})
    server.add(rpc.add_RunnerServiceServicer_to_server, Coroutine(), SERVICE)
    with pytest.raises(ConfigError, match="async generator"):
        await server.start()


async def test_an_address_in_use_stops_the_start(wire: Wire, tmp_path: Path) -> None:
    """A port that somebody has is a matter of configuration."""
    server = RpcServer(listen=f"127.0.0.1:{wire.port}", tls=wire.tls("runner"), callers={}, caps={})
    with pytest.raises(ConfigError, match="INTERLOCK_LISTEN"):
        await server.start()
