"""A runner over real mTLS gRPC, and a platform that replays recorded answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from interlock.runner.v1 import runner_pb2
from interlock.runner.v1.runner_pb2_grpc import RunnerServiceStub as Stub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.config import Environment
from interlock_chassis.errors import RemoteError
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles
from interlock_runner.__main__ import serve_runner
from interlock_runner.config import RunnerSettings

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Put together so that scanners of this repository see no token.
TOKEN = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJ1c2VyXzEifQ" + ".c2lnbmF0dXJl-_x"
SILENCE = timedelta(seconds=1)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Platform:
    """An agents platform: answers what a test sets, and remembers what it was asked.

    `answers` are asked first, by method and path; a run without one replays
    the transcript that the prompt names.
    """

    url: URL = field(default_factory=URL)
    answers: dict[str, Handler] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a test once the first text has arrived; an answer that breaks waits for it."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a caller went away in the middle of an answer."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.requests.append(request)
        self.bodies.append(await request.read())
        handler = self.answers.get(f"{request.method} {request.path}", self.replay)
        try:
            return await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            # Who is in the middle of writing hears of it by an error.
            self.left.set()
            raise

    async def replay(self, request: web.Request) -> web.StreamResponse:
        """Answer as the transcript named by the prompt: status, headers, pieces, ending."""
        prompt = (await request.json())["messages"][0]["content"]
        head, _, body = (FIXTURES / prompt).read_bytes().partition(b"\n\n")
        status, *headers = head.decode().splitlines()
        body, broken, note = body.partition(b"\n[client error")
        response = web.StreamResponse(status=int(status.split()[1]))
        for line in headers:
            name, _, value = line.partition(": ")
            if name.lower() not in {"connection", "keep-alive", "transfer-encoding", "date"}:
                response.headers[name] = value
        await response.prepare(request)
        for piece in body.splitlines(keepends=True):
            await response.write(piece)
        if b"Timeout" in note:
            await asyncio.Event().wait()
        if broken and request.transport is not None:
            # What is on its way when a connection is reset may be lost with it.
            await self.heard.wait()
            request.transport.abort()
        return response


def stream_of(*pieces: bytes, hangs: bool = False, encoding: str = "identity") -> Handler:
    """Make a handler that streams the pieces, then ends or says no more."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Content-Encoding": encoding}
        )
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if hangs:
            await asyncio.Event().wait()
        return response

    return handler


def json_of(answer: object, status: int = 200) -> Handler:
    """Make a handler that answers JSON."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(answer, status=status)

    return handler


def piece(text: str) -> bytes:
    """Write one piece of an answer."""
    chunk = {"type": "text-delta", "id": "t", "delta": text}
    return f"data: {json.dumps(chunk)}\n\n".encode()


DONE = b'data: {"type":"finish"}\n\ndata: [DONE]\n\n'


def issuing(folder: Path) -> Callable[[str], TlsFiles]:
    """Issue certificates of one throw-away authority."""
    authority = ThrowAwayCa.create(folder / "ca")
    return lambda name: authority.issue(name, folder / name)


@asynccontextmanager
async def serving_platform() -> AsyncIterator[Platform]:
    """Run a platform on a port of its own."""
    platform = Platform()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", platform.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    platform.url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield platform
    await runner.cleanup()


@dataclass(frozen=True)
class Runner:
    """A runner being served."""

    address: str
    certificates: Callable[[str], TlsFiles]

    @asynccontextmanager
    async def connect(self, name: str = "gateway-worker") -> AsyncIterator[Stub]:
        """Connect as a caller."""
        async with open_channel(self.address, self.certificates(name), server="runner") as channel:
            yield Stub(channel)


def settings_of(platform: Platform, tls: TlsFiles, **more: Any) -> RunnerSettings:
    """Return settings for the platform."""
    return RunnerSettings(
        environment=Environment.DEVELOPMENT,
        listen="127.0.0.1:0",
        ops_listen="127.0.0.1:0",
        tls_ca_file=tls.ca,
        tls_cert_file=tls.cert,
        tls_key_file=tls.key,
        manage_url=platform.url,
        run_url=platform.url,
        run_silence_seconds=int(SILENCE.total_seconds()),
        **more,
    )


@asynccontextmanager
async def serve_worker(
    settings: RunnerSettings, certificates: Callable[[str], TlsFiles]
) -> AsyncIterator[Stub]:
    """Serve a runner of these settings and connect as the gateway's worker."""
    async with (
        serve_runner(settings) as port,
        Runner(f"127.0.0.1:{port}", certificates).connect() as stub,
    ):
        yield stub


def question(prompt: str, **fields: Any) -> runner_pb2.RunRequest:
    """Ask something."""
    ordinary: dict[str, Any] = {
        "user_token": TOKEN,
        "project_id": "project-1",
        "agent_id": "agent_1",
        "conversation_id": "T0ACME.C0GENERAL.1767225600.000100",
        "message_id": "Ev0001",
        "prompt": prompt,
        "entry_point": runner_pb2.ENTRY_POINT_APP_MENTION,
    }
    return runner_pb2.RunRequest(**(ordinary | fields))


async def run(
    stub: Stub,
    request: runner_pb2.RunRequest,
    timeout: float = 30,
    heard: asyncio.Event | None = None,
) -> list[runner_pb2.RunResponse]:
    """Run to the end; the last event, and only it, is `finished`. Tells of the first text."""
    events: list[runner_pb2.RunResponse] = []
    with remote_errors():
        async for event in stub.Run(request, timeout=timeout):
            events.append(event)
            if heard is not None and event.HasField("text"):
                heard.set()
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds.index("finished") == len(kinds) - 1
    return events


def end_of(events: list[runner_pb2.RunResponse]) -> tuple[str, str]:
    """Return outcome and reason."""
    last = events[-1].finished
    outcome = runner_pb2.RunOutcome.Name(last.outcome).removeprefix("RUN_OUTCOME_")
    return outcome, last.reason


def text_of(events: list[runner_pb2.RunResponse]) -> str:
    """Join the pieces of the answer; none is empty."""
    pieces = [event.text.text for event in events if event.HasField("text")]
    assert all(pieces)
    return "".join(pieces)


async def refusal_of(call: Awaitable[object]) -> RemoteError:
    """Await a call that must be refused."""
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await call
    return refusal.value


async def list_agents(
    stub: Stub, request: runner_pb2.ListAgentsRequest
) -> runner_pb2.ListAgentsResponse:
    """List the agents of a project."""
    answer: runner_pb2.ListAgentsResponse = await stub.ListAgents(request, timeout=5)
    return answer
