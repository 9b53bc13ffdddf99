"""The worker whole: real Postgres, real mTLS gRPC to its peers, the stand-in for Slack."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from google.protobuf.descriptor_pool import Default
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs
from yarl import URL

from interlock.gateway.v1 import gateway_pb2 as gateway
from interlock.gateway.v1.gateway_pb2_grpc import WorkerServiceStub
from interlock.identity.v1 import identity_pb2 as identity
from interlock.identity.v1 import identity_pb2_grpc as identity_services
from interlock.runner.v1 import runner_pb2 as runner
from interlock.runner.v1 import runner_pb2_grpc as runner_services
from interlock.token_vault.v1 import token_vault_pb2 as vault
from interlock.token_vault.v1 import token_vault_pb2_grpc as vault_services
from interlock_chassis import telemetry
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.config import Environment
from interlock_chassis.database import open_pool
from interlock_chassis.errors import Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import RpcServer, current_call
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.migrations import DATABASE, EDGE_ROLE, WORKER_ROLE
from interlock_gateway.worker.config import WorkerSettings
from interlock_gateway.worker.main import serve
from interlock_gateway.worker.rpc import CALLERS, SERVICE
from interlock_sandbox.server import running
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, example_config, install
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_admin_grant, sign_slack_grant
from tests.support.edge_site import EVENTS, event_body
from tests.support.edge_site import serving as edge_serving

TEAM, CHANNEL, MIA, BOT = "T0NORTHWIND", "C0NOGENERAL", "U0MIA", "U0BOTNO"
WORKSPACE = Workspace("", TEAM, is_enterprise_install=False, app_id="A0INTERLOCK")
PATIENCE = 20.0


class NotLinked(ServiceError):
    """The Slack user is not linked."""

    kind = Kind.PRECONDITION
    reason = "USER_NOT_LINKED"


@dataclass
class Peers:
    """Identity, vault and runner, as far as the worker asks them.

    Attributes:
        asked: Every call: who asked, the method, the request.
    """

    bot_token: str = ""
    is_linked: bool = True
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    request_ids: set[str] = field(default_factory=set)
    fail_next: dict[str, ServiceError] = field(default_factory=dict)

    def _note(self, request: Any) -> None:
        method = current_call().method.rpartition("/")[2]
        self.request_ids.add(current_call().request_id)
        self.asked.append((current_call().caller, method, request))
        if error := self.fail_next.pop(method, None):
            raise error

    def _require_linked(self) -> None:
        if not self.is_linked:
            raise NotLinked

    # Identity.

    async def ResolveUser(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """Say whether the user is linked."""
        self._note(request)
        self._require_linked()
        return identity.ResolveUserResponse(user_name="Mia Castellanos")

    async def ResolveAgent(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """Name the default agent."""
        self._note(request)
        return identity.ResolveAgentResponse(
            project_id="docs", agent_id="helper", source=identity.AGENT_SOURCE_WORKSPACE
        )

    async def IssueUserToken(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """Issue a token."""
        self._note(request)
        self._require_linked()
        return identity.IssueUserTokenResponse(user_token="user-token", tenant_id="northwind")

    async def CreateLinkCode(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """Make a code."""
        self._note(request)
        return identity.CreateLinkCodeResponse(link_code="code-of-mia")

    # Vault.

    async def ReadBotToken(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """Release the token."""
        self._note(request)
        return vault.ReadBotTokenResponse(bot_token=self.bot_token, generation=1, team_id=TEAM)

    # Runner.

    async def ListAgents(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC names it.
        """List the agents of a project."""
        self._note(request)
        agent = runner.Agent(agent_id="helper", name="Helper")
        return runner.ListAgentsResponse(agents=[agent])

    async def Run(self, request: Any, _: Any) -> AsyncIterator[Any]:  # noqa: N802 - gRPC names it.
        """Run an agent."""
        self._note(request)
        yield runner.RunResponse(started=runner.RunStarted())
        for text in ("Hello ", "Mia."):
            yield runner.RunResponse(text=runner.TextDelta(text=text))
        source = runner.Source(title="Guide", url="https://docs.example/guide")
        yield runner.RunResponse(source=source)
        outcome = runner.RUN_OUTCOME_COMPLETED
        yield runner.RunResponse(finished=runner.RunFinished(outcome=outcome))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Refuse every other method of the contract."""
        if name.startswith("_"):
            raise AttributeError(name)

        async def refuse(request: Any, _: Any) -> Any:
            raise AssertionError(f"the worker called {name}")

        return refuse

    def calls_of(self, method: str) -> list[Any]:
        """List the requests of one method."""
        return [request for _, called, request in self.asked if called == method]


SUBJECTS, LINKS = "interlock.identity.v1.SubjectService", "interlock.identity.v1.LinkService"
WORKSPACES = "interlock.identity.v1.WorkspaceService"
TOKENS, RUNS = "interlock.token_vault.v1.TokenService", "interlock.runner.v1.RunnerService"
ADDING: dict[str, dict[str, Callable[..., None]]] = {
    "identity": {
        SUBJECTS: identity_services.add_SubjectServiceServicer_to_server,
        LINKS: identity_services.add_LinkServiceServicer_to_server,
        WORKSPACES: identity_services.add_WorkspaceServiceServicer_to_server,
    },
    "token-vault": {TOKENS: vault_services.add_TokenServiceServicer_to_server},
    "runner": {RUNS: runner_services.add_RunnerServiceServicer_to_server},
}


@asynccontextmanager
async def serving(name: str, peers: Peers, ca: ThrowAwayCa, folder: Path) -> AsyncIterator[str]:
    """Serve one peer of the worker; yields its address."""
    callers = {
        f"/{service}/{method.name}": frozenset({"gateway-worker"})
        for service in ADDING[name]
        for method in Default().FindServiceByName(service).methods
    }
    server = RpcServer(
        listen="127.0.0.1:0",
        tls=ca.issue(name, folder),
        callers=callers,
        caps={f"/{RUNS}/Run": timedelta(minutes=30)} if name == "runner" else {},
    )
    for service, add in ADDING[name].items():
        server.add(add, peers, service)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(timedelta(0))


@dataclass(frozen=True, slots=True)
class World:
    """A running worker and everything around it."""

    ca: ThrowAwayCa
    folder: Path
    settings: WorkerSettings
    peers: Peers
    edge: asyncpg.Pool
    edge_url: Secret[str]
    keys: Secret[str]
    signing: Keyset
    slack: str
    http: aiohttp.ClientSession

    async def mention(self, text: str, key: str = "Ev1") -> str:
        """Mention the bot as Mia; return the message's ts."""
        said = {"team": TEAM, "user": MIA, "channel": CHANNEL, "text": text}
        ts: str = (await self.control("post", **said))["ts"]
        event = {"type": "app_mention", "channel": CHANNEL, "user": MIA, "text": text, "ts": ts}
        authorizations = [{"team_id": TEAM, "user_id": BOT, "is_bot": True}]
        body = json.dumps({"event": event, "authorizations": authorizations}).encode()
        now = datetime.now(UTC)
        grant = sign_slack_grant(
            self.signing,
            now=now,
            jti=uuid.uuid4().hex,
            workspace=WORKSPACE,
            slack_user_id=MIA,
            slack_user_team_id=TEAM,
            event_key=key,
            event_type="app_mention",
            body_sha256=hashlib.sha256(body).hexdigest(),
            event_at=now,
            is_stranger=False,
        )
        await self.edge.fetchval(
            "SELECT gateway.inbox_put($1, '', 'event', $2, $3, false, $4, $5, $6)",
            key,
            f"{TEAM}:{CHANNEL}:{ts}",
            TEAM,
            body,
            grant.reveal(),
            now,
        )
        return ts

    def admin_grant(self, purpose: AdminPurpose, slack_user_id: str = "") -> str:
        """Sign an adminGrant as identity does."""
        return sign_admin_grant(
            self.signing,
            now=datetime.now(UTC),
            jti=uuid.uuid4().hex,
            workspace=WORKSPACE,
            tenant_id="northwind",
            user_id="user_ada",
            purpose=purpose,
            slack_user_id=slack_user_id,
        ).reveal()

    async def control(self, action: str, **body: Any) -> Any:
        """Use the stand-in's control API."""
        async with self.http.post(f"{self.slack}/_control/{action}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def wait_for_message(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until Mia sees a message of ours."""
        query = {"team": TEAM, "user": MIA}
        async with (
            asyncio.timeout(PATIENCE),
            self.http.get(f"{self.slack}/_control/feed", params=query) as feed,
        ):
            await feed.content.readline()
            while True:
                channel = query | {"channel": CHANNEL}
                async with self.http.get(
                    f"{self.slack}/_control/messages", params=channel
                ) as response:
                    for message in (await response.json())["messages"]:
                        if message["user"] != MIA and wanted(message):
                            found: dict[str, Any] = message
                            return found
                # Anything at all has changed.
                await feed.content.readline()

    async def direct_messages(self) -> list[dict[str, Any]]:
        """List what the bot told Mia alone."""
        headers = {"Authorization": f"Bearer {self.peers.bot_token}"}
        opening = f"{self.slack}/api/conversations.open"
        async with self.http.post(opening, data={"users": MIA}, headers=headers) as opened:
            channel = (await opened.json())["channel"]["id"]
        query = {"team": TEAM, "channel": channel}
        async with self.http.get(f"{self.slack}/_control/messages", params=query) as response:
            messages: list[dict[str, Any]] = (await response.json())["messages"]
            return messages

    @asynccontextmanager
    async def calling(self, name: str) -> AsyncIterator[WorkerServiceStub]:
        """Open the worker's service as a caller of some name."""
        tls = self.ca.issue(name, self.folder)
        async with open_channel(self.settings.listen, tls, server="gateway-worker") as channel:
            yield WorkerServiceStub(channel)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def open_slack(peers: Peers) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """Run the stand-in for Slack with the app installed; the vault gets the token."""
    config = example_config("http://127.0.0.1:9")
    async with aiohttp.ClientSession() as http, running(config) as urls:
        code = await install(http, urls.slack, config)
        form = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "code": code,
            "redirect_uri": config.app.redirect_urls[0],
        }
        async with http.post(f"{urls.slack}/api/oauth.v2.access", data=form) as response:
            peers.bot_token = (await response.json())["access_token"]
        yield urls.slack, http


@pytest.fixture
async def world(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[World]:
    """Give a running worker."""
    ca, peers, stop = ThrowAwayCa.create(tmp_path), Peers(), asyncio.Event()
    tls = ca.issue("gateway-worker", tmp_path)
    key = generate_ed25519_key("grants-1", [Family.SLACK_GRANT, Family.ADMIN_GRANT])
    signing = Keyset.from_json(Secret(json.dumps({"keys": [key]})), variable="TEST")
    urls = await cluster.database(DATABASE)
    async with AsyncExitStack() as stack:
        addresses = {
            name: await stack.enter_async_context(serving(name, peers, ca, tmp_path))
            for name in ADDING
        }
        slack, http = await stack.enter_async_context(open_slack(peers))
        edge = await stack.enter_async_context(
            open_pool(urls.roles[EDGE_ROLE], application="test-edge")
        )
        settings = WorkerSettings(
            environment=Environment.DEVELOPMENT,
            listen=_free_address(),
            ops_listen="127.0.0.1:0",
            tls_ca_file=tls.ca,
            tls_cert_file=tls.cert,
            tls_key_file=tls.key,
            database_url_file=urls.roles[WORKER_ROLE],
            public_url=URL("http://127.0.0.1:8080"),
            grant_public_keys_file=Secret(signing.public()),
            identity_address=addresses["identity"],
            vault_address=addresses["token-vault"],
            runner_address=addresses["runner"],
            slack_api_url=URL(f"{slack}/api/"),
            drain_seconds=5,
        )
        task = asyncio.create_task(serve(settings, stop))
        keys = Secret(json.dumps({"keys": [key]}))
        edge_url = urls.roles[EDGE_ROLE]
        yield World(ca, tmp_path, settings, peers, edge, edge_url, keys, signing, slack, http)
        stop.set()
        await task


# Conversations.


async def test_mention_is_answered_as_the_user(world: World) -> None:
    """Every peer is asked with the event's grant, and the answer stands in the thread."""
    ts = await world.mention(f"<@{BOT}> What is new?")
    message = await world.wait_for_message(lambda each: "Helper" in str(each))
    assert message["text"] == "Hello Mia."
    assert message["thread_ts"] == ts
    assert {caller for caller, _, _ in world.peers.asked} == {"gateway-worker"}
    grants = {request.grant for _, _, request in world.peers.asked if hasattr(request, "grant")}
    assert len(grants) == 1
    (run,) = world.peers.calls_of("Run")
    assert run.user_token == "user-token"
    assert run.prompt == "What is new?"
    assert run.entry_point == runner.ENTRY_POINT_APP_MENTION


async def test_link_resumes_the_question(world: World) -> None:
    """The whispered link holds the code; edge's ask runs the question that waited."""
    world.peers.is_linked = False
    await world.mention(f"<@{BOT}> What is new?")
    whisper = await world.wait_for_message(lambda each: "link?code=" in str(each))
    assert "http://127.0.0.1:8080/work-apps/slack/link?code=code-of-mia" in str(whisper["blocks"])
    (asked,) = world.peers.calls_of("CreateLinkCode")
    assert asked.slack_email == "mia@northwind.example"

    world.peers.is_linked = True
    request = gateway.ResumeAfterLinkRequest(grant=world.admin_grant(AdminPurpose.RESUME, MIA))
    async with world.calling("gateway-edge") as worker:
        assert (await worker.ResumeAfterLink(request, timeout=5)).resumed
        assert not (await worker.ResumeAfterLink(request, timeout=5)).resumed
    await world.wait_for_message(lambda each: "Helper" in str(each))
    (run,) = world.peers.calls_of("Run")
    assert run.entry_point == runner.ENTRY_POINT_SMART_LINK_RESUME


async def test_a_link_without_a_question_is_told_too(world: World) -> None:
    """Whoever linked by a command reads in a direct message whose account acts, and undoes it."""
    request = gateway.ResumeAfterLinkRequest(grant=world.admin_grant(AdminPurpose.RESUME, MIA))
    async with world.calling("gateway-edge") as worker:
        assert not (await worker.ResumeAfterLink(request, timeout=5)).resumed
        (told,) = [each for each in await world.direct_messages() if "now linked" in str(each)]
        assert "Not me: unlink" in str(told["blocks"])
        # Slack away, or the link gone again: the answer is the same.
        world.peers.fail_next["ReadBotToken"] = RemoteError(Kind.UNAVAILABLE, "KMS_UNAVAILABLE")
        assert not (await worker.ResumeAfterLink(request, timeout=5)).resumed
        world.peers.is_linked = False
        assert not (await worker.ResumeAfterLink(request, timeout=5)).resumed
    assert len(await world.direct_messages()) == 1


async def test_runner_that_is_away_is_asked_again(world: World) -> None:
    """An error of a peer arrives as its reason, and what is safe is tried again."""
    world.peers.fail_next["Run"] = RemoteError(Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE")
    await world.mention(f"<@{BOT}> What is new?")
    await world.wait_for_message(lambda each: each["text"] == "Hello Mia.")
    first, second = world.peers.calls_of("Run")
    assert first.message_id == second.message_id


async def test_one_trace_runs_from_edge_to_slack(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request id that edge answers with names every call and every line that follows."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))
    changes = {"grant_keys_file": world.keys, "slack_app_id": WORKSPACE.app_id}
    said = {"team": TEAM, "user": MIA, "channel": CHANNEL, "text": f"<@{BOT}> What is new?"}
    body = event_body(
        team_id=TEAM,
        api_app_id=WORKSPACE.app_id,
        authorizations=[{"team_id": TEAM, "user_id": BOT, "is_bot": True}],
        event={
            "type": "app_mention",
            "user": MIA,
            "team": TEAM,
            "channel": CHANNEL,
            "text": said["text"],
            "ts": (await world.control("post", **said))["ts"],
        },
    )
    is_settled = asyncio.Event()

    def name_the_request(_: object, __: str, line: Any) -> Any:
        if line["event"] == "event_settled":
            is_settled.set()
        return {"request_id": telemetry.current_request_id(), **line}

    with capture_logs(processors=[name_the_request]) as lines:
        async with edge_serving(world.edge_url, changes=changes) as site:
            answer = await site.slack(EVENTS, body)
        await world.wait_for_message(lambda each: each["text"] == "Hello Mia.")
        async with asyncio.timeout(PATIENCE):
            await is_settled.wait()
    assert answer.status == 200
    request_id = answer.headers["X-Request-Id"]
    assert world.peers.request_ids == {request_id}
    (settled,) = [line for line in lines if line["event"] == "event_settled"]
    assert settled["request_id"] == request_id
    spans = exporter.get_finished_spans()
    (began,) = [span for span in spans if span.name == f"POST {EVENTS}"]
    assert began.context is not None
    ours = [
        span for span in spans if span.context and span.context.trace_id == began.context.trace_id
    ]
    names = [span.name for span in ours]
    (handled,) = [span for span in ours if span.name == "inbox event"]
    assert handled.parent is not None
    assert handled.parent.span_id == began.context.span_id
    for part in ("ReadBotToken", "IssueUserToken", "Run", "slack chat."):
        assert any(part in name for name in names), part
    assert {
        span.attributes["interlock.request_id"]
        for span in ours
        if span.attributes and "interlock.request_id" in span.attributes
    } == {request_id}


# The service.


async def refused(calling: Any) -> tuple[Kind, str]:
    """Return how a call is refused."""
    with pytest.raises(RemoteError) as error, remote_errors():
        await calling
    return error.value.kind, error.value.reason


def test_every_rpc_has_its_callers() -> None:
    """The table names each RPC of the contract, and edge and operator only."""
    methods = {each.name for each in Default().FindServiceByName(SERVICE).methods}
    assert set(CALLERS) == {f"/{SERVICE}/{method}" for method in methods}
    assert set().union(*CALLERS.values()) == {"gateway-edge", "operator"}


@pytest.mark.parametrize("name", ["gateway-worker", "runner", "token-vault", "app/reports"])
async def test_strangers_may_call_nothing(world: World, name: str) -> None:
    """A certificate of ours is not enough."""
    request = gateway.ListDeadLettersRequest()
    async with world.calling(name) as worker:
        assert await refused(worker.ListDeadLetters(request, timeout=5)) == (
            Kind.FORBIDDEN,
            "CALLER_NOT_ALLOWED",
        )


async def test_grants_open_their_purpose_alone(world: World) -> None:
    """A grant for one thing does no other, a forged one nothing."""
    health = world.admin_grant(AdminPurpose.HEALTH)
    async with world.calling("gateway-edge") as worker:
        for call in (
            worker.ListChannels(gateway.ListChannelsRequest(grant=health), timeout=5),
            worker.ResumeAfterLink(gateway.ResumeAfterLinkRequest(grant=health), timeout=5),
            worker.ListDeadLetters(gateway.ListDeadLettersRequest(grant=health), timeout=5),
        ):
            assert await refused(call) == (Kind.FORBIDDEN, "PURPOSE_NOT_GRANTED")
        forged = gateway.CheckHealthRequest(grant="x.y.z")
        expected = (Kind.UNAUTHENTICATED, "INVALID_TOKEN")
        assert await refused(worker.CheckHealth(forged, timeout=5)) == expected
        nothing = gateway.ListDeadLettersRequest()
        assert await refused(worker.ListDeadLetters(nothing, timeout=5)) == expected


async def test_administrators_see_to_their_workspace(world: World) -> None:
    """Health, channels and a test message, each through the vault with the grant given."""
    async with world.calling("gateway-edge") as worker:
        health = gateway.CheckHealthRequest(grant=world.admin_grant(AdminPurpose.HEALTH))
        assert (await worker.CheckHealth(health, timeout=10)).healthy
        assert world.peers.calls_of("ReadBotToken")[0].grant == health.grant

        channels = gateway.ListChannelsRequest(grant=world.admin_grant(AdminPurpose.CHANNELS))
        listed = (await worker.ListChannels(channels, timeout=10)).channels
        assert CHANNEL in {channel.channel_id for channel in listed}

        grant = world.admin_grant(AdminPurpose.TEST_MESSAGE)
        test = gateway.SendTestMessageRequest(grant=grant, channel_id=CHANNEL)
        await worker.SendTestMessage(test, timeout=10)
        await world.wait_for_message(lambda each: "test message" in each["text"])

        world.peers.bot_token = "xoxb-dead"
        answered = await worker.CheckHealth(health, timeout=10)
        assert (answered.healthy, answered.slack_error) == (False, "invalid_auth")


async def test_operator_replays_dead_letters(world: World) -> None:
    """An operator sees every team's; an administrator only the own team's."""
    world.peers.fail_next["ResolveUser"] = RemoteError(Kind.CORRUPT, "BROKEN")
    await world.mention(f"<@{BOT}> What is new?")
    await world.wait_for_message(lambda each: "BROKEN" in each["text"])
    async with world.calling("operator") as worker:
        letters = await _wait_for_letters(worker)
        assert [letter.reason for letter in letters] == ["BROKEN"]
        unknown = gateway.ReplayDeadLetterRequest(event_id=letters[0].event_id + 1)
        assert await refused(worker.ReplayDeadLetter(unknown, timeout=5)) == (
            Kind.NOT_FOUND,
            "DEAD_LETTER_NOT_FOUND",
        )
    async with world.calling("gateway-edge") as worker:
        grant = world.admin_grant(AdminPurpose.REPLAY)
        replay = gateway.ReplayDeadLetterRequest(grant=grant, event_id=letters[0].event_id)
        await worker.ReplayDeadLetter(replay, timeout=5)
    await world.wait_for_message(lambda each: each["text"] == "Hello Mia.")


async def _wait_for_letters(worker: WorkerServiceStub) -> list[gateway.DeadLetter]:
    """Wait until the event is settled, which comes after the person was told."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answered = await worker.ListDeadLetters(gateway.ListDeadLettersRequest(), timeout=5)
            if answered.dead_letters:
                return list(answered.dead_letters)


# The process.


async def _run(*arguments: str, **variables: str) -> tuple[int | None, str]:
    kept = {name: value for name, value in os.environ.items() if "INTERLOCK" not in name}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_gateway",
        *arguments,
        env=kept | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


async def test_unknown_command_is_refused() -> None:
    """Only edge, worker and migrate can be run."""
    assert await _run("everything") == (
        64,
        "usage: python -m interlock_gateway edge|worker|migrate\n",
    )


async def test_missing_setting_stops_the_start() -> None:
    """The process names the variable and exits with 78."""
    code, said = await _run("worker", INTERLOCK_LISTEN="127.0.0.1:0")
    assert code == 78
    assert said.startswith("interlock: INTERLOCK_")


async def test_process_starts_and_stops(world: World) -> None:
    """SIGTERM ends the worker gracefully, with exit code 0."""
    folder = world.folder
    urls = {
        "database": world.settings.database_url_file,
        "keys": world.settings.grant_public_keys_file,
    }
    for name, secret in urls.items():
        (folder / name).write_text(secret.reveal())
    tls = world.settings.tls
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_gateway",
        "worker",
        env={
            **{name: value for name, value in os.environ.items() if "INTERLOCK" not in name},
            "INTERLOCK_ENVIRONMENT": "development",
            "INTERLOCK_LISTEN": "127.0.0.1:0",
            "INTERLOCK_OPS_LISTEN": "127.0.0.1:0",
            "INTERLOCK_TLS_CA_FILE": str(tls.ca),
            "INTERLOCK_TLS_CERT_FILE": str(tls.cert),
            "INTERLOCK_TLS_KEY_FILE": str(tls.key),
            "INTERLOCK_DATABASE_URL_FILE": str(folder / "database"),
            "INTERLOCK_GRANT_PUBLIC_KEYS_FILE": str(folder / "keys"),
            "INTERLOCK_PUBLIC_URL": "http://127.0.0.1:8080",
            "INTERLOCK_IDENTITY_ADDRESS": world.settings.identity_address,
            "INTERLOCK_VAULT_ADDRESS": world.settings.vault_address,
            "INTERLOCK_RUNNER_ADDRESS": world.settings.runner_address,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while b"worker_started" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
