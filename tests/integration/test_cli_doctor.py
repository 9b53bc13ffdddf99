"""`interlock doctor`: every kind of fault is found, and laid at the right variable's door."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiohttp import web
from grpc import aio
from typer.testing import CliRunner

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import DatabasePlan
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import server_credentials
from interlock_cli.__main__ import app
from interlock_cli.diagnosis import PROCESSES, Finding, Status, diagnose
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.migrations import DATABASE as GATEWAY_DATABASE
from interlock_gateway.migrations import EDGE_ROLE, WORKER_ROLE
from interlock_identity.migrations import DATABASE as IDENTITY_DATABASE
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.migrations import DATABASE as VAULT_DATABASE
from interlock_token_vault.migrations import SCANNER_ROLE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.keysets import generate_ed25519_key, generate_hs256_key

PEERS = ("identity", "token-vault", "gateway-worker", "runner")
GRANTS = [Family.RENEWED_GRANT, Family.ADMIN_GRANT, Family.INSTALL_GRANT]


class MovedClock(SystemClock):
    """This machine's clock, set wrong."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        """Read the wrong time."""
        return super().now() + self._by


@dataclass
class Outside:
    """Slack, the platform and the auth server, as one stand-in that can misbehave."""

    date_moved_by: timedelta = timedelta()
    status: int = 200
    is_slack: bool = True

    async def answer(self, request: web.Request) -> web.Response:
        """Answer anything, with a Date."""
        stamp = format_datetime(datetime.now(UTC) + self.date_moved_by, usegmt=True)
        refused = {"ok": False, "error": "not_authed"}
        body = refused if request.path.endswith("auth.test") else {"ok": True}
        return web.json_response(
            body if self.is_slack else {"hello": "proxy"},
            status=self.status,
            headers={"Date": stamp},
        )


@dataclass
class Site:
    """Everything a process needs, in order; tests break one thing each."""

    folder: Path
    outside: Outside
    authority: ThrowAwayCa
    cluster: ScratchDatabases
    ports: dict[str, int]
    urls: dict[str, Secret[str]]
    changes: dict[str, str] = field(default_factory=dict)

    def file(self, name: str, text: str) -> str:
        """Write a private file and return its path."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def environ(self, process: str) -> dict[str, str]:
        """Return the environment of a process, with the changes made."""
        http = f"http://127.0.0.1:{self.ports['outside']}"
        known = {
            "environment": "development",
            "listen": "127.0.0.1:0",
            "ops_listen": "127.0.0.1:0",
            "public_url": http,
            "slack_url": http,
            "slack_api_url": f"{http}/api/",
            "auth_url": http,
            "manage_url": http,
            "run_url": http,
            "slack_app_id": "A0INTERLOCK",
            "slack_client_id": "1000000000001.2000000000002",
            "slack_client_secret_file": self.file("client-secret", "c" * 32),
            "slack_signing_secret_file": self.file("signing-secret", "5" * 32),
            "csrf_key_file": self.file("csrf", "f" * 32),
            "fingerprint_key_file": self.file("fingerprint", "p" * 32),
            "kms": "local",
            "local_keyset_file": str(self.folder / "keyset.json"),
            "spool_dir": str(self.folder),
            "audit_checkpoint_dir": str(self.folder),
            "grant_public_keys_file": self.file("public.json", _keyset("edge-1", GRANTS)),
            "user_token_keys_file": self.file(
                "users.json", json.dumps({"keys": [generate_hs256_key("p-1", [Family.SLACK_USER])]})
            ),
            "grant_keys_file": self.file(
                "grants.json",
                _keyset("edge-1", [Family.SLACK_GRANT] if process == "gateway-edge" else GRANTS),
            ),
            "identity_address": f"127.0.0.1:{self.ports['identity']}",
            "vault_address": f"127.0.0.1:{self.ports['token-vault']}",
            "worker_address": f"127.0.0.1:{self.ports['gateway-worker']}",
            "runner_address": f"127.0.0.1:{self.ports['runner']}",
            **self._tls(process),
            **self._databases(process),
        }
        fields = PROCESSES[process].settings.model_fields
        found = {
            f"INTERLOCK_{name.upper()}": text for name, text in known.items() if name in fields
        }
        found |= {f"INTERLOCK_{name.upper()}": text for name, text in self.changes.items()}
        return {name: text for name, text in found.items() if text}

    def _tls(self, process: str) -> dict[str, str]:
        files = self.authority.issue(process, self.folder / process)
        return {
            "tls_ca_file": str(files.ca),
            "tls_cert_file": str(files.cert),
            "tls_key_file": str(files.key),
        }

    def _databases(self, process: str) -> dict[str, str]:
        role = {
            "gateway-edge": EDGE_ROLE,
            "gateway-worker": WORKER_ROLE,
            "token-vault": VAULT_ROLE,
            "identity": IDENTITY_DATABASE.roles[0],
        }.get(process)
        if role is None:
            return {}
        return {
            "database_url_file": self.file("database-url", self.urls[role].reveal()),
            "scanner_database_url_file": self.file("scanner", self.urls[SCANNER_ROLE].reveal()),
            "membership_database_url_file": self.file("members", self.urls["members"].reveal()),
        }


def _keyset(kid: str, families: list[Family], **more: int) -> str:
    return json.dumps({"keys": [generate_ed25519_key(kid, families) | more]})


@asynccontextmanager
async def _serving(outside: Outside) -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", outside.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def urls(cluster: ScratchDatabases) -> dict[str, Secret[str]]:
    """Make the services' databases, and the auth server's table in one of them."""

    async def make() -> dict[str, Secret[str]]:
        made = [await cluster.database(plan) for plan in _PLANS]
        found = {role: url for each in made for role, url in each.roles.items()}
        found |= {plan.owner: each.owner for plan, each in zip(_PLANS, made, strict=True)}
        found["members"] = found[IDENTITY_DATABASE.owner]
        await _execute(found["members"], "CREATE TABLE public.member (role text)")
        return found

    return asyncio.run(make())


_PLANS = (GATEWAY_DATABASE, VAULT_DATABASE, IDENTITY_DATABASE)


async def _execute(url: Secret[str], statement: str) -> None:
    connection = await asyncpg.connect(url.reveal())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def site(
    cluster: ScratchDatabases, urls: dict[str, Secret[str]], tmp_path: Path
) -> AsyncIterator[Site]:
    """Make databases, certificates, keys and peers that are all in order."""
    authority = ThrowAwayCa.create(tmp_path / "ca")
    create_keyset(tmp_path / "keyset.json")
    servers = [aio.server() for _ in PEERS]
    ports = {
        name: server.add_secure_port(
            "127.0.0.1:0", server_credentials(authority.issue(name, tmp_path / name))
        )
        for name, server in zip(PEERS, servers, strict=True)
    }
    await asyncio.gather(*(server.start() for server in servers))
    outside = Outside()
    async with _serving(outside) as port:
        yield Site(tmp_path, outside, authority, cluster, ports | {"outside": port}, urls)
    await asyncio.gather(*(server.stop(None) for server in servers))


async def _faults(
    site: Site, process: str, by: timedelta = timedelta(), status: Status = Status.FAILED
) -> list[Finding]:
    clock = MovedClock(by) if by else SystemClock()
    found = await diagnose(process, site.environ(process), clock=clock)
    return [each for each in found if each.status is status]


async def _closed_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


@pytest.mark.parametrize("process", PROCESSES)
async def test_a_set_up_in_order_has_no_fault(site: Site, process: str) -> None:
    """Nothing is found in a process's environment when everything works."""
    found = await diagnose(process, site.environ(process), clock=SystemClock())
    assert [each for each in found if each.status is not Status.OK] == []
    assert {"configuration", "certificate"} < {each.check for each in found}


CHANGES: dict[str, tuple[str, Callable[[Site], dict[str, str]], str, str]] = {
    "unknown-variable": (
        "runner",
        lambda _: {"manage_ulr": "https://x.example"},
        "INTERLOCK_MANAGE_ULR",
        "did you mean INTERLOCK_MANAGE_URL?",
    ),
    "bad-value": ("runner", lambda _: {"run_url": "ftp://x"}, "INTERLOCK_RUN_URL", "https"),
    "other-process-certificate": (
        "runner",
        lambda site: {
            "tls_cert_file": str(site.folder / "identity/identity.crt"),
            "tls_key_file": str(site.folder / "identity/identity.key"),
        },
        "INTERLOCK_TLS_CERT_FILE",
        "must carry the one URI name spiffe://interlock/runner",
    ),
    "other-key": (
        "runner",
        lambda site: {"tls_key_file": str(site.folder / "identity/identity.key")},
        "INTERLOCK_TLS_KEY_FILE",
        "not the certificate's",
    ),
    "no-certificate": (
        "runner",
        lambda site: {"tls_cert_file": str(site.folder / "none.crt")},
        "INTERLOCK_TLS_CERT_FILE",
        "cannot read",
    ),
    "other-authority": (
        "runner",
        lambda site: {
            "tls_ca_file": str(
                ThrowAwayCa.create(site.folder / "other").issue("x", site.folder / "other").ca
            )
        },
        "INTERLOCK_TLS_CERT_FILE",
        "not issued by the authority",
    ),
    "wrong-peer": (
        "token-vault",
        lambda site: {"identity_address": f"127.0.0.1:{site.ports['runner']}"},
        "INTERLOCK_IDENTITY_ADDRESS",
        "not as identity",
    ),
    "unknown-host": (
        "token-vault",
        lambda _: {"identity_address": "no-such-host.invalid:8443"},
        "INTERLOCK_IDENTITY_ADDRESS",
        "cannot be reached",
    ),
    "wrong-role": (
        "gateway-edge",
        lambda site: {
            "database_url_file": site.file("worker", site.urls[WORKER_ROLE].reveal()),
        },
        "INTERLOCK_DATABASE_URL_FILE",
        "it must be interlock_gateway_edge",
    ),
    "wrong-password": (
        "gateway-edge",
        lambda site: {
            "database_url_file": site.file("bad", _with(site.urls[EDGE_ROLE], "x" * 20)),
        },
        "INTERLOCK_DATABASE_URL_FILE",
        "refuses the role or its password",
    ),
    "no-database": (
        "gateway-edge",
        lambda site: {
            "database_url_file": site.file("none", _beside(site.urls[EDGE_ROLE])),
        },
        "INTERLOCK_DATABASE_URL_FILE",
        "no such database",
    ),
    "client-id": (
        "token-vault",
        lambda _: {"slack_client_id": "A0INTERLOCK"},
        "INTERLOCK_SLACK_CLIENT_ID",
        "no client id of Slack's",
    ),
    "kms": (
        "token-vault",
        lambda site: {"local_keyset_file": str(site.folder / "none.json")},
        "INTERLOCK_LOCAL_KEYSET_FILE",
        "",
    ),
    "spool": (
        "token-vault",
        lambda site: {"spool_dir": str(site.folder / "none")},
        "INTERLOCK_SPOOL_DIR",
        "no folder that this process may write to",
    ),
    "bucket": (
        "token-vault",
        lambda site: {
            "audit_checkpoint_dir": "",
            "audit_checkpoint_url": "s3://no-such-bucket/vault",
            "audit_checkpoint_region": "eu-west-1",
            "audit_checkpoint_endpoint": f"http://127.0.0.1:{site.ports['outside']}",
            "audit_checkpoint_credentials_file": site.file(
                "bucket.json", '{"access_key_id": "a", "secret_access_key": "b"}'
            ),
        },
        "INTERLOCK_AUDIT_CHECKPOINT_URL",
        "cannot be listed",
    ),
    "retired-key": (
        "gateway-edge",
        lambda site: {
            "grant_keys_file": site.file(
                "retired.json", _keyset("old", [Family.SLACK_GRANT], retire_after=1000000000)
            )
        },
        "INTERLOCK_GRANT_KEYS_FILE",
        "signs slackGrant at this time",
    ),
    "no-member-table": (
        "identity",
        lambda site: {
            "membership_database_url_file": site.file(
                "vault", site.urls[VAULT_DATABASE.owner].reveal()
            )
        },
        "INTERLOCK_MEMBERSHIP_DATABASE_URL_FILE",
        "no table `member`",
    ),
}


def _beside(url: Secret[str]) -> str:
    parts = urlsplit(url.reveal())
    return parts._replace(path=f"{parts.path}_none").geturl()


def _with(url: Secret[str], password: str) -> str:
    head, _, tail = url.reveal().partition("@")
    return f"{head.rpartition(':')[0]}:{password}@{tail}"


@pytest.mark.parametrize("fault", CHANGES)
async def test_a_wrong_setting_is_named(site: Site, fault: str) -> None:
    """One setting is wrong: it alone is named, with what to do."""
    process, change, variable, text = CHANGES[fault]
    site.environ(process)
    site.changes = change(site)
    found = await _faults(site, process)
    assert {each.variable for each in found} == {variable}
    assert any(text in each.message for each in found)


async def test_a_peer_that_is_away_is_named(site: Site) -> None:
    """Nobody listens at the vault's address: the edge's setting is named."""
    site.ports["token-vault"] = await _closed_port()
    [found] = await _faults(site, "gateway-edge")
    assert (found.check, found.variable) == ("peer", "INTERLOCK_VAULT_ADDRESS")
    assert "nobody listens there" in found.message


async def test_a_database_that_is_away_is_named(site: Site) -> None:
    """Nobody listens where the URL says: the database's setting is named, not its password."""
    port = await _closed_port()
    url = f"postgresql://interlock_identity:hidden-password@127.0.0.1:{port}/interlock_identity"
    site.changes = {"database_url_file": site.file("away", url)}
    [found] = await _faults(site, "identity")
    assert (found.check, found.variable) == ("database", "INTERLOCK_DATABASE_URL_FILE")
    assert "hidden-password" not in str(found)


async def test_a_database_behind_the_code_is_found(site: Site) -> None:
    """A database that was never migrated fails; one that is newer is a warning."""
    fresh = await _unmigrated(site.cluster, IDENTITY_DATABASE)
    site.changes = {"database_url_file": site.file("fresh", fresh.reveal())}
    [found] = await _faults(site, "identity")
    assert (found.check, found.variable) == ("migrations", "INTERLOCK_DATABASE_URL_FILE")
    newer = await site.cluster.database(IDENTITY_DATABASE)
    await _execute(newer.owner, "UPDATE identity.alembic_version SET version_num = '9999'")
    [role] = IDENTITY_DATABASE.roles
    site.changes = {"database_url_file": site.file("newer", newer.roles[role].reveal())}
    assert await _faults(site, "identity") == []
    [found] = await _faults(site, "identity", status=Status.WARNING)
    assert "newer than this code" in found.message


async def _unmigrated(cluster: ScratchDatabases, plan: DatabasePlan) -> Secret[str]:
    made = await cluster.database(plan)
    await _execute(made.owner, f"DROP SCHEMA {plan.schema} CASCADE")
    return made.roles[plan.roles[0]]


async def test_a_mighty_role_is_refused(site: Site) -> None:
    """A role that may make roles or databases is not one to serve with."""
    [role] = IDENTITY_DATABASE.roles
    await _execute(site.cluster.admin_url, f"ALTER ROLE {role} CREATEDB")
    try:
        [found] = await _faults(site, "identity")
    finally:
        await _execute(site.cluster.admin_url, f"ALTER ROLE {role} NOCREATEDB")
    assert (found.check, found.variable) == ("role", "INTERLOCK_DATABASE_URL_FILE")


async def test_a_certificate_that_ended_or_will_is_found(site: Site) -> None:
    """An ended certificate fails, one with less than a week left is a warning."""
    ended = await _faults(site, "runner", by=timedelta(days=40))
    assert [each.variable for each in ended] == ["INTERLOCK_TLS_CERT_FILE"]
    [soon] = await _faults(site, "runner", by=timedelta(days=25), status=Status.WARNING)
    assert (soon.check, soon.variable) == ("certificate", "INTERLOCK_TLS_CERT_FILE")


async def test_a_clock_that_differs_from_postgres_is_found(site: Site) -> None:
    """Seconds of difference to the database's clock fail, by its setting."""
    found = await _faults(site, "identity", by=timedelta(seconds=20))
    assert {(each.check, each.variable) for each in found} == {
        ("clock", "INTERLOCK_DATABASE_URL_FILE")
    }


@pytest.mark.parametrize(
    ("process", "variable"),
    [("gateway-edge", "INTERLOCK_SLACK_URL"), ("token-vault", "INTERLOCK_SLACK_API_URL")],
)
async def test_a_clock_that_differs_from_slacks_is_found(
    site: Site, process: str, variable: str
) -> None:
    """Ten minutes of difference to the Date of Slack's answers fail: no signature would hold."""
    site.outside.date_moved_by = timedelta(minutes=-10)
    [found] = await _faults(site, process)
    assert (found.check, found.variable) == ("clock", variable)


async def test_something_else_than_slack_is_found(site: Site) -> None:
    """What answers at the API's URL without Slack's words is not taken for Slack."""
    site.outside.is_slack = False
    [found] = await _faults(site, "gateway-worker")
    assert (found.check, found.variable) == ("Slack", "INTERLOCK_SLACK_API_URL")


@pytest.mark.parametrize(
    ("status", "variable"),
    [
        (401, "INTERLOCK_NANGO_SECRET_KEY_FILE"),
        (404, "INTERLOCK_NANGO_INTEGRATION"),
        (503, "INTERLOCK_NANGO_URL"),
    ],
)
async def test_what_nango_says_is_laid_at_the_right_setting(
    site: Site, status: int, variable: str
) -> None:
    """A refused key, an unknown integration and a Nango that fails are told apart."""
    nango = Outside(status=status)
    async with _serving(nango) as port:
        site.changes = {
            "nango_url": f"http://127.0.0.1:{port}",
            "nango_secret_key_file": site.file("nango", "n" * 32),
            "nango_webhook_keys_file": site.file("webhook", "w" * 32),
        }
        [found] = await _faults(site, "token-vault")
        assert (found.check, found.variable) == ("Nango", variable)
        nango.status = 200
        assert await _faults(site, "token-vault") == []


async def test_servers_that_fail_are_found(site: Site) -> None:
    """A platform and an auth server that answer 502 are named, each by its setting."""
    site.outside.status = 502
    found = await _faults(site, "identity")
    assert {each.variable for each in found} == {"INTERLOCK_AUTH_URL", "INTERLOCK_MANAGE_URL"}


async def test_exit_code_and_document_say_what_was_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command exits 0 when all is well and 1 when not; --json names variable and status."""
    for name in [each for each in os.environ if each.startswith("INTERLOCK_")]:
        monkeypatch.delenv(name)
    for name, text in site.environ("runner").items():
        monkeypatch.setenv(name, text)
    well = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "runner", "--json"])
    assert (well.exit_code, json.loads(well.output)["ok"]) == (0, True)
    site.outside.status = 502
    ill = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "runner", "--json"])
    assert ill.exit_code == 1
    document = json.loads(ill.output)
    assert (document["process"], document["ok"]) == ("runner", False)
    assert {each["variable"] for each in document["findings"] if each["status"] == "failed"} == {
        "INTERLOCK_MANAGE_URL",
        "INTERLOCK_RUN_URL",
    }
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "runner"])
    assert "INTERLOCK_RUN_URL" in shown.output
    assert "2 failed" in shown.output
