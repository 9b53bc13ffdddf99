"""No secret in any database, dump, log, trace, metric, reply, spool or backup (I7).

The whole product runs, its logs at debug, its traces kept. Secrets go through
an install, reads, a rotation, a link, a backup, an export and failures of
Slack, Postgres, the keys and the platform. Then every place is searched for
each secret as it is, in base64 at three offsets, in hex and percent-encoded.
Planted beside, each of these forms is found: the search can see.
"""

import asyncio
import io
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as collector_grpc
from rich.console import Console
from slack_sdk.oauth.installation_store import Installation

from interlock.identity.v1 import identity_pb2, identity_pb2_grpc
from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as vault_grpc
from interlock_chassis.client import open_channel
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli import launch
from interlock_cli.browser import open_browser
from interlock_cli.data_folder import DataFolder, choose_ports
from interlock_cli.demo import QUESTION
from interlock_cli.embedded_postgres import find_binaries
from interlock_cli.journey import ADA, MIA, TEAM, Journey
from interlock_cli.launch import Running, launched
from interlock_cli.leak_search import Finding, LeakSearch, disguises_of, read_tables
from interlock_cli.product import AUTH_DATABASE, DATABASES, make_programs
from interlock_cli.steps import Steps
from interlock_cli.supervisor import Program
from interlock_client import RemoteError, open_installation_store

PATIENCE = 60.0
SERVICES = ("gateway-edge", "gateway-worker", "token-vault", "identity", "runner")
CLIENT = "9999.8888"
PLANTED = "canary-of-nothing-at-all-4f1d2c"
_KEYS_OF_OURS = {
    "client secret": "sandbox-client-secret",
    "signing secret": "sandbox-signing-secret",
    "CSRF key": "csrf",
    "fingerprint key": "fingerprint",
}


@dataclass
class Collector(collector_grpc.TraceServiceServicer):
    """Where spans are sent: keeps them as they came."""

    requests: list[Any] = field(default_factory=list)

    async def Export(self, request: Any, context: object) -> Any:  # noqa: N802 - gRPC's name.
        """Keep spans."""
        self.requests.append(request)
        return collector.ExportTraceServiceResponse()

    def content(self) -> bytes:
        """Return everything that was sent."""
        return b"".join(request.SerializeToString() for request in self.requests)

    def services(self) -> set[str]:
        """Name the processes that sent something."""
        return {
            attribute.value.string_value.removeprefix("interlock-")
            for request in self.requests
            for group in request.resource_spans
            for attribute in group.resource.attributes
            if attribute.key == "service.name"
        }


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """Take spans while the block runs; yields where."""
    server, kept = aio.server(), Collector()
    collector_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield kept, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@dataclass
class Premises:
    """The running product, and everything that came out of it.

    Attributes:
        app_tokens: What another app keeps in the vault, by kind.
        replies: What callers were answered, where it went wrong.
    """

    running: Running
    journey: Journey
    http: aiohttp.ClientSession
    collector: Collector
    app_tokens: dict[str, list[str]]
    replies: list[bytes] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @asynccontextmanager
    async def calling(self, caller: str, server: str) -> AsyncIterator[aio.Channel]:
        """Open a service as a caller of some name."""
        data = self.running.data
        tls = ThrowAwayCa.load(data.folder("keys", "ca")).issue(caller, data.path / "canary-tls")
        address = f"127.0.0.1:{self.ports[server]}"
        async with open_channel(address, tls, server=server) as channel:
            yield channel

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports of the processes."""
        ports: dict[str, int] = json.loads((self.running.data.path / "ports.json").read_text())
        return ports

    @asynccontextmanager
    async def database(self, name: str = "interlock_vault") -> AsyncIterator[Any]:
        """Open a database as its superuser."""
        connection = await asyncpg.connect(self.running.postgres.admin_of(name).reveal())
        try:
            yield connection
        finally:
            await connection.close()

    async def control(self, what: str, **body: object) -> None:
        """Have the stand-in for Slack do something."""
        url = f"{self.running.urls.slack}/_control/{what}"
        async with self.http.post(url, json=body) as response:
            assert response.status == 200, await response.text()

    async def fails(self, call: Awaitable[Any]) -> None:
        """Make a call that fails, and keep every byte of the answer."""
        with pytest.raises((aio.AioRpcError, RemoteError)) as failed:
            await call
        error: BaseException | None = failed.value
        while error is not None:
            self.replies.append(str(error).encode())
            if isinstance(error, aio.AioRpcError):
                self.replies.append(str(error.details()).encode())
                for metadata in (error.initial_metadata(), error.trailing_metadata()):
                    for name, value in metadata or ():
                        self.replies += [
                            str(name).encode(),
                            value if isinstance(value, bytes) else value.encode(),
                        ]
            error = error.__cause__

    async def command(self, *arguments: str) -> None:
        """Run `interlock`, and keep what it says."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "interlock_cli",
            *arguments,
            "--data-dir",
            str(self.running.data.path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said
        self.files["interlock " + " ".join(arguments[:2])] = said

    async def everything(self) -> dict[str, bytes]:
        """Read every place where a secret could lie."""
        data, postgres = self.running.data, self.running.postgres
        found = dict(self.files) | {"postgres.log": postgres.log.read_bytes()}
        for plan in (*DATABASES, AUTH_DATABASE):
            url = postgres.admin_of(plan.name)
            found[f"dump of {plan.name}"] = await asyncio.to_thread(_dump, url.reveal())
            for table, content in (await read_tables(url)).items():
                found[f"{plan.name}.{table}"] = content
        for folder in ("logs", "vault-spool", "audit-checkpoints", "canary-out"):
            for path in sorted(data.folder(folder).rglob("*")):
                if path.is_file():
                    found[str(path.relative_to(data.path))] = path.read_bytes()
        for service in SERVICES:
            url_of_metrics = f"http://127.0.0.1:{self.ports[f'{service}-ops']}/metrics"
            async with self.http.get(url_of_metrics) as response:
                found[f"metrics of {service}"] = await response.read()
        found["traces"] = self.collector.content()
        found["replies"] = b"\n".join(self.replies)
        return found


def _dump(url: str) -> bytes:
    program = find_binaries(os.environ) / "pg_dump"
    done = subprocess.run(
        [program, "--no-password", "--inserts", f"--dbname={url}"],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout


@pytest.fixture
async def premises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Premises]:
    """Run the product with rotating tokens, talkative logs and kept traces."""
    data = DataFolder(tmp_path / "data")
    apps = data.path / "apps.json"
    apps.write_text(json.dumps({"apps": {"canary": CLIENT}}))
    async with collecting() as (kept, endpoint), aiohttp.ClientSession() as http:

        def talkative(*arguments: Any, **options: Any) -> list[Program]:
            programs = make_programs(*arguments, **options)
            config = data.folder("sandbox") / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"token_rotation": True}))
            return [_talkative(program, endpoint, apps) for program in programs]

        monkeypatch.setattr(launch, "make_programs", talkative)
        steps = Steps(Console(file=io.StringIO()))
        edge_port = choose_ports({"edge": 0})["edge"]
        try:
            async with launched(data, edge_port=edge_port, steps=steps) as running:
                yield Premises(running, Journey(running.urls, http), http, kept, _app_tokens())
        finally:
            data.close()


def _talkative(program: Program, endpoint: str, apps: Path) -> Program:
    if program.name == "sandbox":
        return program
    more = {"INTERLOCK_OTLP_ENDPOINT": endpoint}
    # The vault refuses that level.
    more |= (
        {"INTERLOCK_REGISTERED_APPS_FILE": str(apps)}
        if program.name == "token-vault"
        else {"INTERLOCK_LOG_LEVEL": "debug"}
    )
    return replace(program, environ={**program.environ, **more})


def _app_tokens() -> dict[str, list[str]]:
    def of(kind: str) -> str:
        return f"{kind}-1734567890-{secrets.token_hex(16)}"

    hook = "https://hooks.slack.com/services/T0CANARY/B0CANARY"
    return {
        "bot token": [of("xoxb")],
        "bot refresh token": [of("xoxe-1")],
        "user token": [of("xoxp")],
        "user refresh token": [of("xoxe-1")],
        "webhook URL": [f"{hook}/{secrets.token_hex(12)}"],
        "webhook configuration URL": [f"https://canary.slack.com/services/{secrets.token_hex(12)}"],
        "custom value": [secrets.token_hex(16)],
    }


async def _until(what: str, look: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await look():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def _keep_for_another_app(site: Premises) -> None:
    """Save, read back and fail to read another app's tokens."""
    data = site.running.data
    tls = ThrowAwayCa.load(data.folder("keys", "ca")).issue("app/canary", data.path / "canary-tls")
    tokens = {kind: values[0] for kind, values in site.app_tokens.items()}
    saved = Installation(
        app_id="A0CANARY",
        enterprise_id=None,
        team_id="T0CANARY",
        user_id="U0CANARY",
        bot_token=tokens["bot token"],
        bot_refresh_token=tokens["bot refresh token"],
        bot_id="B0CANARY",
        bot_user_id="U0BOTCAN",
        user_token=tokens["user token"],
        user_refresh_token=tokens["user refresh token"],
        incoming_webhook_url=tokens["webhook URL"],
        incoming_webhook_configuration_url=tokens["webhook configuration URL"],
        custom_values={"canary": tokens["custom value"]},
        installed_at=datetime.now(UTC).timestamp(),
    )
    address = f"127.0.0.1:{site.ports['token-vault']}"
    async with open_installation_store(address, tls) as store, site.database() as database:
        await store.async_save(saved)
        found = await store.async_find_installation(enterprise_id=None, team_id="T0CANARY")
        assert found is not None
        assert found.bot_token == tokens["bot token"]
        assert found.incoming_webhook_url == tokens["webhook URL"]
        # A key that was meddled with: the key-encryption key refuses it, and the read fails.
        flip = """
            UPDATE vault.wrapped_dek SET wrapped = set_byte(wrapped, 40, get_byte(wrapped, 40) # 1)
            WHERE installation_id = (SELECT installation_id FROM vault.app_place)
        """
        await database.execute(flip)
        await site.fails(
            store.async_find_installation(
                enterprise_id=None, team_id="T0CANARY", user_id="U0CANARY"
            )
        )
        await database.execute(flip)


async def _rotate(site: Premises) -> None:
    """Have the bot's token refreshed while Slack is slow and the log cannot be written."""
    await site.control("faults", method="oauth.v2.access", kind="delay", seconds=2)
    async with site.database() as database:
        before = await database.fetchval("SELECT max(generation) FROM vault.sealed_token")
        await database.execute(
            "UPDATE vault.sealed_token SET expires_at = clock_timestamp() + interval '1 hour'"
            " WHERE slot = 'access'"
        )

        async def is_sent() -> bool:
            sent = await database.fetchval("SELECT count(*) FROM vault.chain WHERE standing='sent'")
            return bool(sent)

        async def is_spooled() -> bool:
            spool = site.running.data.folder("vault-spool")
            return any(path.stat().st_size for path in spool.rglob("*") if path.is_file())

        async def is_renewed() -> bool:
            now = await database.fetchval("SELECT max(generation) FROM vault.sealed_token")
            return bool(now > before)

        await _until("no refresh began", is_sent)
        await database.execute("REVOKE INSERT ON vault.audit_event FROM interlock_vault")
        await _until("no answer was spooled", is_spooled)
        spool = site.running.data.folder("vault-spool")
        for path in spool.rglob("*"):
            if path.is_file():
                site.files[f"spool while full: {path.name}"] = path.read_bytes()
        await database.execute("GRANT INSERT ON vault.audit_event TO interlock_vault")
        await _until("the answer was not stored", is_renewed)


async def _fail_everywhere(site: Premises) -> None:
    """Have calls and requests refused that hold a secret, and keep the answers."""
    tokens = [value for values in site.app_tokens.values() for value in values]
    async with site.calling("gateway-worker", "token-vault") as channel:
        for token in tokens:
            call = vault_grpc.TokenServiceStub(channel).ReadBotToken
            await site.fails(call(pb.ReadBotTokenRequest(grant=token), timeout=5))
    async with site.calling("gateway-edge", "identity") as channel:
        session = identity_pb2.BrowserSession(cookie=tokens[0])
        sessions = identity_pb2_grpc.SessionServiceStub(channel)
        request = identity_pb2.AuthenticateSessionRequest(session=session)
        await site.fails(sessions.AuthenticateSession(request, timeout=5))
    for path in (
        f"/work-apps/slack/oauth_redirect?code={quote(tokens[0])}&state={quote(tokens[1])}",
        f"/work-apps/slack/{quote(tokens[0], safe='')}",
    ):
        url = f"{site.running.urls.edge}{path}"
        async with site.http.get(url, headers={"Cookie": f"x={tokens[2]}"}) as response:
            assert response.status >= 400
            site.replies.append(await response.read())
            site.replies.append(str(response.raw_headers).encode())
    headers = {"X-Slack-Signature": tokens[0], "X-Slack-Request-Timestamp": tokens[1]}
    url = f"{site.running.urls.edge}/work-apps/slack/events"
    async with site.http.post(
        url, data=json.dumps({"token": tokens[2]}), headers=headers
    ) as refused:
        assert refused.status in {401, 415}
        site.replies.append(await refused.read())


async def _walk(site: Premises) -> None:
    """Walk the product's paths, and break things on the way."""
    journey, edge = site.journey, site.running.urls.edge
    async with open_browser(edge) as ada, open_browser(edge) as mia:
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(question), MIA)
        await journey.watch_answer(question)
        await _rotate(site)
        # Slack and the platform fail at the next question; it ends where its asker sees it.
        await site.control("faults", method="chat.startStream", kind="http_status", status=500)
        url = f"{site.running.urls.platform}/_control/faults"
        fault = {"target": "chat", "kind": "http_status", "status": 500, "count": 1}
        async with site.http.post(url, json=fault) as response:
            assert response.status == 200
        await journey.watch_answer(await journey.ask(MIA, QUESTION))
        # The log cannot be written: no token, so no answer until it can.
        async with site.database() as database:
            await database.execute("REVOKE INSERT ON vault.audit_event FROM interlock_vault")
            waiting = await journey.ask(MIA, QUESTION)

            async def is_refused() -> bool:
                log = site.running.data.folder("logs") / "gateway-worker.log"
                return b"DATABASE_UNAVAILABLE" in log.read_bytes()

            await _until("the read was not refused", is_refused)
            await database.execute("GRANT INSERT ON vault.audit_event TO interlock_vault")
        await journey.watch_answer(waiting)
        (await journey.read_audit(ada)).require("token.read")
        said = {"team": TEAM, "user": MIA.slack_user, "channel": waiting.channel}
        await site.control("command", command="/interlock", text="help", **said)

        async def are_all_done() -> bool:
            async with site.database("interlock_gateway") as gateway:
                left = "SELECT count(*) FROM gateway.inbox_event WHERE state <> 'done'"
                return bool(await gateway.fetchval(left) == 0)

        await _until("an event was not done", are_all_done)
    await _keep_for_another_app(site)
    await _fail_everywhere(site)
    out = site.running.data.folder("canary-out")
    files = ("--sealed", str(out / "sealed"), "--keys", str(out / "keys"))
    await site.command("backup", *files)
    await site.command("audit", "export", "--output", str(out / "audit.ndjson"))

    async def are_traced() -> bool:
        return set(SERVICES) <= site.collector.services()

    await _until("not every process sent its spans", are_traced)


def _search(what: Mapping[str, list[str]], places: Mapping[str, bytes]) -> list[Finding]:
    search = LeakSearch(what)
    return [found for place, content in places.items() for found in search.search(place, content)]


async def _plant(site: Premises) -> None:
    """Put a secret, in every form, into a database, a log, a trace, a reply and a file."""
    forms = [form for _, form in disguises_of(PLANTED.encode())]
    async with site.database() as database:
        await database.execute("CREATE TABLE public.planted (as_text text, as_bytes bytea)")
        for form in forms:
            await database.execute(
                "INSERT INTO public.planted VALUES ($1, $2)", form.decode(), form
            )
    whole = b"\n".join(forms)
    (site.running.data.folder("logs") / "planted.log").write_bytes(whole)
    (site.running.data.folder("vault-spool") / "planted").write_bytes(whole)
    (site.running.data.folder("canary-out") / "planted").write_bytes(whole)
    span = collector.ExportTraceServiceRequest()
    scope = span.resource_spans.add().scope_spans.add()
    for form in forms:
        scope.spans.add().name = form.decode()
    site.collector.requests.append(span)
    site.replies.append(whole)


@pytest.mark.timeout(600)
async def test_no_secret_is_anywhere(premises: Premises) -> None:
    """I7: nothing of what went through is found; what is planted is found in every place."""
    await _walk(premises)
    keys = premises.running.data.folder("keys")
    issued = await premises.journey.list_secrets()
    what = {
        **issued,
        **{f"app's {kind}": values for kind, values in premises.app_tokens.items()},
        **{kind: [(keys / name).read_text()] for kind, name in _KEYS_OF_OURS.items()},
    }
    assert all(what.values()), [kind for kind, values in what.items() if not values]
    assert len({token.partition("-")[0] for token in issued["Slack token"]}) > 1
    places = await premises.everything()
    # The search has seen what it should: our rows, each process's log, its metrics and spans.
    assert any(TEAM.encode() in content for content in places.values())
    for service in SERVICES:
        assert places[f"logs/{service}.log"]
        assert b"interlock" in places[f"metrics of {service}"]
    assert places["traces"]
    assert [name for name in places if name.startswith("spool while full")]
    assert _search(what, places) == []

    await _plant(premises)
    seen = {
        finding.place for finding in _search({"planted": [PLANTED]}, await premises.everything())
    }
    assert seen >= {
        "dump of interlock_vault",
        "interlock_vault.public.planted",
        "logs/planted.log",
        "vault-spool/planted",
        "canary-out/planted",
        "traces",
        "replies",
    }
