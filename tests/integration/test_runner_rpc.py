"""The runner over real mTLS gRPC, against a platform that replays recorded answers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from interlock.runner.v1 import runner_pb2
from interlock.runner.v1.runner_pb2_grpc import RunnerServiceStub as Stub
from interlock_chassis.client import remote_errors
from interlock_chassis.errors import Kind
from interlock_chassis.tls import TlsFiles
from interlock_runner.__main__ import serve_runner
from tests.support.runner_stage import (
    FIXTURES,
    TOKEN,
    Handler,
    Platform,
    Runner,
    end_of,
    issuing,
    json_of,
    list_agents,
    question,
    refusal_of,
    run,
    serve_worker,
    serving_platform,
    settings_of,
    stream_of,
    text_of,
)

COMPLETED = ("COMPLETED", "")
FAILED = ("FAILED", "AGENT_FAILED")
CUT = ("INCOMPLETE", "STREAM_CUT")
# How each recorded answer ends, and the text a reader sees; None where it is long.
ANSWERS: dict[str, tuple[tuple[str, str], str | None]] = {
    "abort": (("INCOMPLETE", "RUN_ABORTED"), "partial"),
    "approval": (COMPLETED, ""),
    "data": (COMPLETED, "Here you go."),
    "denied": (COMPLETED, ""),
    "dynamic": (COMPLETED, "ok"),
    "empty": (CUT, ""),
    "eof-no-done": (CUT, "half"),
    "execute-throws": (FAILED, ""),
    "execute-throws-shown": (FAILED, ""),
    "hang": (("LIMIT_REACHED", "STREAM_SILENT"), ""),
    "interleaved": (COMPLETED, "A1A2\n\nB1"),
    "keepalive": (COMPLETED, "late"),
    "length": (("INCOMPLETE", "ANSWER_TOO_LONG"), "cut"),
    "metadata": (COMPLETED, "m"),
    "model-error": (FAILED, "partial"),
    "model-error-shown": (FAILED, ""),
    "model-throws": (FAILED, ""),
    "no-finish": (CUT, "end without finish"),
    "reasoning": (COMPLETED, "done"),
    "slow": (COMPLETED, "01234"),
    "sources": (COMPLETED, "see"),
    "text": (COMPLETED, "Hello, world!"),
    "tool": (COMPLETED, "It is 21°"),
    "tool-error": (COMPLETED, "sorry"),
    "tool-input-error": (COMPLETED, "sorry"),
    "truncated": (CUT, "half"),
    "unicode": (COMPLETED, None),
    "unknown": (COMPLETED, "still here"),
    "unknown-tool": (COMPLETED, "sorry"),
    "upstream-error": (FAILED, ""),
}
REFUSALS = {
    "http-401": (Kind.UNAUTHENTICATED, "USER_TOKEN_REFUSED"),
    "http-403": (Kind.FORBIDDEN, "AGENT_NOT_ALLOWED"),
    "http-429": (Kind.EXHAUSTED, "PLATFORM_RATE_LIMITED"),
    "http-500": (Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE"),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TlsFiles]:
    """Issue certificates of one throw-away authority."""
    return issuing(tmp_path_factory.mktemp("runner-pki"))


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    """Run a platform on a port of its own."""
    async with serving_platform() as platform:
        yield platform


@pytest.fixture
async def runner(
    platform: Platform, certificates: Callable[[str], TlsFiles]
) -> AsyncIterator[Runner]:
    """Serve a runner for the platform."""
    async with serve_runner(settings_of(platform, certificates("runner"))) as port:
        yield Runner(f"127.0.0.1:{port}", certificates)


@pytest.fixture
async def worker(runner: Runner) -> AsyncIterator[Stub]:
    """Connect as the gateway's worker."""
    async with runner.connect() as stub:
        yield stub


@pytest.mark.parametrize("version", ["ai-sdk-6-sse", "ai-sdk-7-sse"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_every_recorded_answer_ends_as_it_was(
    platform: Platform, worker: Stub, version: str, name: str
) -> None:
    """Complete, failed, cut and silent answers arrive as such, with their text."""
    outcome, text = ANSWERS[name]
    events = await run(worker, question(f"{version}/{name}.txt"), heard=platform.heard)
    assert end_of(events) == outcome
    assert text is None or text_of(events) == text


@pytest.mark.parametrize("version", ["ai-sdk-6-sse", "ai-sdk-7-sse"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_every_recorded_refusal_is_an_error(worker: Stub, version: str, name: str) -> None:
    """A run that was not started has no events, and says why by its HTTP status."""
    refusal = await refusal_of(run(worker, question(f"{version}/{name}.txt")))
    assert (refusal.kind, refusal.reason) == REFUSALS[name]
    if name == "http-429":
        assert refusal.retry_after == timedelta(seconds=2)


def test_no_recorded_answer_is_left_out() -> None:
    """Every transcript of either version has its row here."""
    for version in ("ai-sdk-6-sse", "ai-sdk-7-sse"):
        recorded = {path.stem for path in (FIXTURES / version).glob("*.txt")}
        assert recorded == set(ANSWERS) | set(REFUSALS)


@pytest.mark.parametrize(
    ("name", "outcome", "text"),
    [
        ("run_api_0.37_ok.sse.txt", COMPLETED, "Hello from the fake model."),
        ("run_api_0.37_model_failure.sse.txt", FAILED, ""),
    ],
)
async def test_the_platform_s_own_recordings_are_understood(
    platform: Platform,
    worker: Stub,
    name: str,
    outcome: tuple[str, str],
    text: str,
) -> None:
    """A real platform's answer and its failure under HTTP 200, without waiting for its end."""
    raw = (FIXTURES / "run-api-streams" / name).read_bytes()
    body = raw[raw.index(b"data: ") : raw.index(b"data: [DONE]")]
    ending = b"" if outcome == COMPLETED else b"data: [DONE]\n\n"
    platform.answers["POST /run/api/chat"] = stream_of(body + ending, hangs=True)
    events = await run(worker, question("hello"))
    assert (end_of(events), text_of(events)) == (outcome, text)


async def test_unicode_line_separators_do_not_cut_an_event(
    worker: Stub,
) -> None:
    """U+2028 stands unescaped in the platform's JSON and comes out in the answer."""
    text = text_of(await run(worker, question("ai-sdk-6-sse/unicode.txt")))
    assert "\u2028" in text
    assert "Grüße 👋🏽 日本語\n" in text


async def test_the_platform_is_asked_as_the_user(platform: Platform, worker: Stub) -> None:
    """The request upstream is the contract's: the user's token, project and agent, no tenant."""
    await run(worker, question("ai-sdk-6-sse/text.txt"))
    (request,), (body,) = platform.requests, platform.bodies
    assert (request.method, request.path) == ("POST", "/run/api/chat")
    assert request.headers.getall("Authorization") == [f"Bearer {TOKEN}"]
    named = {
        name.lower(): value
        for name, value in request.headers.items()
        if name.lower().startswith("x-")
    }
    assert named == {
        "x-inkeep-project-id": "project-1",
        "x-inkeep-agent-id": "agent_1",
        "x-inkeep-invocation-type": "slack",
        "x-inkeep-invocation-entry-point": "app_mention",
    }
    assert json.loads(body) == {
        "messages": [{"role": "user", "content": "ai-sdk-6-sse/text.txt"}],
        "conversationId": "T0ACME.C0GENERAL.1767225600.000100",
        "messageId": "Ev0001",
        "stream": True,
    }


async def test_tools_sources_and_approvals_are_events(
    worker: Stub,
) -> None:
    """What an agent does beside speaking arrives typed."""
    tool = [event.tool for event in await run(worker, question("ai-sdk-6-sse/tool.txt"))]
    states = [activity.state for activity in tool if activity.tool_call_id]
    assert states == [runner_pb2.TOOL_STATE_STARTED, runner_pb2.TOOL_STATE_SUCCEEDED]
    asked = [
        event.approval_request
        for event in await run(worker, question("ai-sdk-6-sse/approval.txt"))
        if event.HasField("approval_request")
    ]
    assert [(each.tool_call_id, each.tool_name) for each in asked] == [("call_1", "gated")]
    sources = [
        event.source
        for event in await run(worker, question("ai-sdk-6-sse/sources.txt"))
        if event.HasField("source")
    ]
    assert [(each.title, each.url) for each in sources] == [("A", "https://example.com/a")]


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Evil: 1", "tökén", "\x00"])
async def test_a_token_that_is_no_header_is_refused_here(
    platform: Platform, worker: Stub, token: str
) -> None:
    """A token with spaces, newlines or other letters cannot change the request upstream."""
    refusal = await refusal_of(run(worker, question("hello", user_token=token)))
    assert (refusal.kind, refusal.reason) == (Kind.UNAUTHENTICATED, "USER_TOKEN_REFUSED")
    assert platform.requests == []


async def test_approve_and_cancel_are_not_served_yet(
    worker: Stub,
) -> None:
    """The two RPCs of the contract that do nothing yet say so."""

    async def approve() -> object:
        request = runner_pb2.ApproveRequest(
            user_token=TOKEN,
            conversation_id="c",
            project_id="p",
            agent_id="a",
            approval_id="x",
            tool_call_id="y",
        )
        return await worker.Approve(request, timeout=5)

    async def cancel() -> object:
        request = runner_pb2.CancelRequest(user_token=TOKEN, message_id="m")
        return await worker.Cancel(request, timeout=5)

    for call in (approve, cancel):
        assert (await refusal_of(call())).kind is Kind.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["gateway-edge", "identity", "operator", "app/reports"])
async def test_only_the_worker_may_call(platform: Platform, runner: Runner, name: str) -> None:
    """Every other mTLS name is refused before anything is asked upstream."""
    async with runner.connect(name) as stub:
        refusal = await refusal_of(run(stub, question("hello")))
    assert (refusal.kind, refusal.reason) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
    assert platform.requests == []


async def test_a_call_without_deadline_is_refused(platform: Platform, worker: Stub) -> None:
    """Nothing is run for a caller that would wait for ever."""

    async def call() -> None:
        async for _ in worker.Run(question("hello")):
            pass

    assert (await refusal_of(call())).reason == "DEADLINE_MISSING"
    assert platform.requests == []


async def test_a_platform_that_is_down_is_unavailable(
    platform: Platform, certificates: Callable[[str], TlsFiles]
) -> None:
    """Nobody listening is UNAVAILABLE for runs and lists, quickly."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        platform.url = URL(f"http://127.0.0.1:{taken.getsockname()[1]}")
        settings = settings_of(platform, certificates("runner"))
        listing = runner_pb2.ListAgentsRequest(user_token=TOKEN, project_id="p")
        async with serve_worker(settings, certificates) as stub:
            for call in (run(stub, question("hello")), list_agents(stub, listing)):
                assert (await refusal_of(call)).reason == "PLATFORM_UNAVAILABLE"


async def test_a_message_that_was_run_is_not_run_again(platform: Platform, worker: Stub) -> None:
    """The platform's 409 for a known message id is a conflict of its own."""
    platform.answers["POST /run/api/chat"] = json_of({}, status=409)
    refusal = await refusal_of(run(worker, question("hello")))
    assert (refusal.kind, refusal.reason) == (Kind.CONFLICT, "MESSAGE_ALREADY_RUN")


def pages_of(rows: list[dict[str, Any]], size: int) -> Handler:
    """Make a list that answers in pages of `size`, whatever it is asked for."""

    async def handler(request: web.Request) -> web.StreamResponse:
        page = int(request.query["page"])
        assert int(request.query["limit"]) <= 100
        part = rows[(page - 1) * size : page * size]
        return web.json_response(
            {"data": part, "pagination": {"page": page, "limit": size, "total": len(rows)}}
        )

    return handler


async def list_projects(stub: Stub, tenant_id: str = "") -> list[tuple[str, str, list[str]]]:
    """List projects as (id, name, agents)."""
    request = runner_pb2.ListProjectsRequest(user_token=TOKEN, tenant_id=tenant_id)
    with remote_errors():
        answer = await stub.ListProjects(request, timeout=10)
    return [
        (project.project_id, project.name, [agent.agent_id for agent in project.agents])
        for project in answer.projects
    ]


async def test_every_page_is_read_and_every_row_comes_once(
    platform: Platform, worker: Stub
) -> None:
    """Pages are followed to the end, repeated rows and rows that cannot be run are dropped."""
    rows: list[dict[str, Any]] = [
        {"id": "p1", "name": "One", "agents": [{"agentId": "a1", "agentName": "A"}] * 2},
        {"id": "p2", "name": "", "agents": []},
        {"id": "p1", "name": "One again", "agents": []},
        {"id": "../evil", "name": "Evil", "agents": []},
        {"id": "p3", "name": f"leaks {TOKEN}", "agents": []},
    ]
    platform.answers["GET /manage/api/projects"] = pages_of(rows, 2)
    assert await list_projects(worker) == [
        ("p1", "One", ["a1"]),
        ("p2", "p2", []),
        ("p3", "leaks [redacted]", []),
    ]
    assert len(platform.requests) == 3


async def test_agents_are_asked_for_where_the_list_lacks_them(
    platform: Platform, worker: Stub
) -> None:
    """A platform that does not nest agents is asked project by project; a lost one has none."""
    rows = [{"id": f"p{number}", "name": f"P{number}"} for number in range(9)]
    platform.answers["GET /manage/api/projects"] = pages_of(rows, 100)
    for row in rows:
        agents = pages_of([{"id": f"a-{row['id']}", "name": "A"}], 100)
        platform.answers[f"GET /manage/api/projects/{row['id']}/agents"] = agents
    platform.answers["GET /manage/api/projects/p5/agents"] = json_of({}, status=404)
    listed = await list_projects(worker)
    assert [(project, agents) for project, _, agents in listed] == [
        (f"p{number}", [] if number == 5 else [f"a-p{number}"]) for number in range(9)
    ]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "USER_TOKEN_REFUSED"),
        (404, "PLATFORM_UNAVAILABLE"),
        (429, "PLATFORM_RATE_LIMITED"),
        (503, "PLATFORM_UNAVAILABLE"),
    ],
)
async def test_a_list_that_fails_says_why(
    platform: Platform, worker: Stub, status: int, reason: str
) -> None:
    """The list, or one look-up of agents, that is refused fails the whole call."""
    platform.answers["GET /manage/api/projects"] = json_of({}, status=status)
    assert (await refusal_of(list_projects(worker))).reason == reason
    if status == 404:
        return
    platform.answers["GET /manage/api/projects"] = pages_of([{"id": "p1"}, {"id": "p2"}], 100)
    for project in ("p1", "p2"):
        platform.answers[f"GET /manage/api/projects/{project}/agents"] = json_of({}, status)
    assert (await refusal_of(list_projects(worker))).reason == reason


@pytest.mark.parametrize("answer", [[], {"data": {}}, "text", {"data": None}])
async def test_a_list_of_another_shape_is_unavailable(
    platform: Platform, worker: Stub, answer: object
) -> None:
    """JSON that is no list of the contract is not guessed at."""
    platform.answers["GET /manage/api/projects"] = json_of(answer)
    assert (await refusal_of(list_projects(worker))).reason == "PLATFORM_UNAVAILABLE"


async def test_agents_of_an_unknown_project_are_not_found(platform: Platform, worker: Stub) -> None:
    """A project that is not there, or not the user's, is NOT_FOUND."""
    platform.answers["GET /manage/api/projects/p1/agents"] = json_of({}, status=403)
    request = runner_pb2.ListAgentsRequest(user_token=TOKEN, project_id="p1")
    refusal = await refusal_of(list_agents(worker, request))
    assert (refusal.kind, refusal.reason) == (Kind.NOT_FOUND, "PROJECT_NOT_FOUND")


async def test_a_platform_that_names_tenants_is_asked_so(
    platform: Platform, certificates: Callable[[str], TlsFiles]
) -> None:
    """In the tenant style the path holds the tenant, and a call without one is refused."""
    agent = {"agentId": "a1", "agentName": "A"}
    rows = [{"id": "p1", "name": "One", "agents": [agent]}]
    platform.answers["GET /manage/tenants/acme/projects"] = pages_of(rows, 100)
    settings = settings_of(platform, certificates("runner"), manage_path_style="tenant")
    async with serve_worker(settings, certificates) as stub:
        assert await list_projects(stub, "acme") == [("p1", "One", ["a1"])]
        refusal = await refusal_of(list_projects(stub))
    assert (refusal.kind, refusal.reason) == (Kind.INVALID, "TENANT_MISSING")


def free_ports() -> Iterator[int]:
    """Find ports that nobody uses now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        yield port


def environment_of(
    platform: Platform, tls: TlsFiles, listen: int, ops: int, **more: str
) -> dict[str, str]:
    """Return the environment of a real process."""
    return {
        "INTERLOCK_ENVIRONMENT": "development",
        "INTERLOCK_LISTEN": f"127.0.0.1:{listen}",
        "INTERLOCK_OPS_LISTEN": f"127.0.0.1:{ops}",
        "INTERLOCK_TLS_CA_FILE": str(tls.ca),
        "INTERLOCK_TLS_CERT_FILE": str(tls.cert),
        "INTERLOCK_TLS_KEY_FILE": str(tls.key),
        "INTERLOCK_MANAGE_URL": str(platform.url),
        "INTERLOCK_RUN_URL": str(platform.url),
        **more,
    }


async def start_process(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    """Start the runner as it is deployed."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_runner",
        *arguments,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_process_serves_and_stops_when_told(
    platform: Platform, certificates: Callable[[str], TlsFiles]
) -> None:
    """`python -m interlock_runner serve` serves over mTLS, and SIGTERM ends it with 0."""
    ports = free_ports()
    listen, ops = next(ports), next(ports)
    environment = environment_of(platform, certificates("runner"), listen, ops)
    process = await start_process(environment, "serve")
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if b"runner_started" in line:
                break
        async with Runner(f"127.0.0.1:{listen}", certificates).connect() as stub:
            events = await run(stub, question("ai-sdk-6-sse/text.txt"))
        assert text_of(events) == "Hello, world!"
    finally:
        process.send_signal(signal.SIGTERM)
        rest = await process.stderr.read()
        status = await process.wait()
    assert status == 0
    assert TOKEN.encode() not in rest


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INTERLOCK_MANAGE_URL", "http://platform.example"),
        ("INTERLOCK_RUN_SILENCE_SECONDS", "0"),
        ("INTERLOCK_MANAGE_PATH_STYLE", "other"),
        ("INTERLOCK_SLACK_TOKEN", "x"),
    ],
)
async def test_a_wrong_setting_stops_start_up(
    platform: Platform, certificates: Callable[[str], TlsFiles], variable: str, value: str
) -> None:
    """A bad or unknown variable ends the process with 78, by name and without its value."""
    environment = environment_of(platform, certificates("runner"), 0, 0, **{variable: value})
    process = await start_process(environment, "serve")
    _, complaint = await process.communicate()
    assert process.returncode == 78
    assert complaint.decode().startswith(f"interlock: {variable}: ")
    assert "platform.example" not in complaint.decode()


async def test_the_command_is_serve() -> None:
    """Anything else is a usage error."""
    process = await start_process({}, "run")
    _, complaint = await process.communicate()
    assert process.returncode == 64
    assert b"usage" in complaint
