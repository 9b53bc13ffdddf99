"""What identity does in a second, what a full table costs it, and how long a departure takes.

A process of its own on a durable Postgres; its callers come over mutual TLS.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import asyncpg
import psutil

from bench.load import CALL_LIMIT, ROUNDS, measure_rate, run
from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import SubjectServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.clock import SystemClock
from interlock_chassis.database import DatabasePlan, DatabaseUrls, create_database, open_engine
from interlock_chassis.errors import RemoteError
from interlock_chassis.logs import configure_logging
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.postgres import PostgresStore
from interlock_identity.domain.audit import Origin
from interlock_identity.domain.linking import EmailPolicy, hash_link_code
from interlock_identity.domain.people import Person, Role, Session, Tenant, TenantId, UserId
from interlock_identity.linking import Linking
from interlock_identity.migrations import DATABASE
from interlock_tokens.families import Family
from interlock_tokens.grants import Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import sign_slack_grant

ROOT = Path(__file__).parents[1]
CALLERS = 16
LINKED = 1000
TIMEOUT_S = 5.0
# Redeems of each round and side; they are taken back, so that the tables keep their size.
REDEEMS = 200
POLL_S = 0.25
START_LIMIT_S = 60

_ROLE = "interlock_identity"
_AUTH = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=("interlock_auth_reader",),
    migrations="",
)
_TEAM = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
_BEGIN = """
INSERT INTO identity.organization (id, name) VALUES ('northwind', 'Northwind');
INSERT INTO identity.work_app_slack_workspaces (tenant_id, id, slack_team_id, slack_app_id,
    nango_connection_id, installation_id)
VALUES ('northwind', 'wsw_1', 'T0NORTHWIND', 'A0INTERLOCK', 'vault:1',
    '6f2b1d5e-0d5b-4c2e-9a57-3f1f7f0f9d10');
"""
_LINK = """
INSERT INTO identity."user" (id, name, email)
SELECT 'user-' || n, 'User ' || n, n || '@northwind.example'
FROM generate_series(1, $1::integer) AS n;
INSERT INTO identity.work_app_slack_user_mappings (tenant_id, id, slack_team_id, slack_user_id,
    inkeep_user_id, workspace_id)
SELECT 'northwind', 'wsum_' || n, 'T0NORTHWIND', 'U' || lpad(n::text, 9, '0'), 'user-' || n,
    'wsw_1'
FROM generate_series(1, $1::integer) AS n;
"""
# Of a busy week: one in twenty is open, the rest are used, and linked whom they were for.
_CODES = """
INSERT INTO identity.work_app_slack_account_link_codes (tenant_id, id, slack_team_id,
    slack_user_id, link_code_hash, expires_at, used_at, workspace_id)
SELECT 'northwind', 'wslc_' || n, 'T0NORTHWIND', 'U' || lpad(n::text, 9, '0'),
    encode(sha256(n::text::bytea), 'hex'), clock_timestamp() + interval '1 hour',
    CASE WHEN n % 20 = 0 THEN NULL ELSE clock_timestamp() END, 'wsw_1'
FROM generate_series(1, $1::integer) AS n
"""
_OPEN_CODE = """
INSERT INTO identity.work_app_slack_account_link_codes (tenant_id, id, slack_team_id,
    slack_user_id, link_code_hash, expires_at, workspace_id)
VALUES ('northwind', $1, 'T0NORTHWIND', $2, $3, clock_timestamp() + interval '1 hour', 'wsw_1')
"""
_MEMBERS = """
CREATE TABLE member ("organizationId" text, "userId" text, role text);
CREATE INDEX ON member ("userId");
GRANT USAGE ON SCHEMA public TO interlock_auth_reader;
GRANT SELECT ON member TO interlock_auth_reader;
"""
_JOIN = """
INSERT INTO member
SELECT 'northwind', 'user-' || n, 'member' FROM generate_series(1, $1::integer) AS n
"""
_TAKE_BACK = (
    "DELETE FROM identity.work_app_slack_account_link_codes WHERE id LIKE 'bench-%'",
    "DELETE FROM identity.work_app_slack_user_mappings WHERE slack_user_id LIKE 'UB%'",
)


def issue_user_token_per_s() -> Mapping[str, float]:
    """Issue user tokens for a thousand linked users, to sixteen callers."""
    with _open_site() as site:
        return run(_issue(site))


def redeem_flat_1e3_1e6() -> Mapping[str, float]:
    """Compare a redeem beside a million link codes with one beside a thousand."""
    # Otherwise each redeem prints a line.
    configure_logging("bench", "warning")
    with _open_postgres() as postgres:
        return run(_redeem(ScratchDatabases(postgres.admin_url)))


def leaving() -> Mapping[str, float]:
    """Time how long tokens are issued, and how long they work, after somebody left."""
    with _open_site() as site:
        return run(_leave(site))


@dataclass(frozen=True)
class _Site:
    """A running identity with linked members.

    Attributes:
        pid: Its process.
        port: Of its gRPC server.
        urls: Its database.
        members: The auth server's database, as its owner.
        edge: The key that signs events' grants.
    """

    pid: int
    port: int
    urls: DatabaseUrls
    members: Secret[str]
    edge: Keyset
    ca: ThrowAwayCa
    folder: Path

    def grant(self, number: int) -> str:
        """Sign the grant of an event of a linked user."""
        now = datetime.now(UTC)
        return sign_slack_grant(
            self.edge,
            now=now,
            jti=secrets.token_hex(16),
            workspace=_TEAM,
            slack_user_id=_slack_user(number),
            slack_user_team_id="T0NORTHWIND",
            event_key=f"Ev{number}",
            event_type="app_mention",
            body_sha256="a" * 64,
            event_at=now,
            is_stranger=False,
        ).reveal()

    @asynccontextmanager
    async def subjects(self) -> AsyncIterator[SubjectServiceStub]:
        """Call identity as the worker does."""
        tls = self.ca.issue("gateway-worker", self.folder / "worker")
        async with open_channel(f"127.0.0.1:{self.port}", tls, server="identity") as channel:
            yield SubjectServiceStub(channel)


async def _issue(site: _Site) -> Mapping[str, float]:
    grants = [site.grant(number) for number in range(1, LINKED + 1)]
    async with site.subjects() as subjects:

        async def issue(number: int) -> None:
            request = pb.IssueUserTokenRequest(grant=grants[number % LINKED])
            await subjects.IssueUserToken(request, timeout=TIMEOUT_S)

        await measure_rate(issue, CALLERS)
        calls = 0

        async def counted(number: int) -> None:
            nonlocal calls
            await issue(number)
            calls += 1

        before = _cpu_s(site.pid)
        rates = [await measure_rate(counted, CALLERS) for _ in range(ROUNDS)]
        cpu_s = _cpu_s(site.pid) - before
    # The second says what the first would be on a machine with nothing else to do.
    return {
        "issue_user_token_per_s": median(rates),
        "issue_user_token_cpu_ms": cpu_s / calls * 1000,
    }


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _leave(site: _Site) -> Mapping[str, float]:
    async with site.subjects() as subjects:

        async def issue() -> datetime:
            request = pb.IssueUserTokenRequest(grant=site.grant(1))
            with remote_errors():
                answer = await subjects.IssueUserToken(request, timeout=TIMEOUT_S)
            return answer.expires_at.ToDatetime(tzinfo=UTC)

        ends = [await issue()]
        members = await asyncpg.connect(site.members.reveal())
        await members.execute("""DELETE FROM member WHERE "userId" = 'user-1'""")
        await members.close()
        left_at, last_at = time.time(), 0.0
        # Identity remembers a yes for a minute.
        async with asyncio.timeout(2 * CALL_LIMIT.total_seconds()):
            while True:
                try:
                    ends.append(await issue())
                except RemoteError as error:
                    if error.reason != "NO_LONGER_A_MEMBER":
                        raise
                    break
                last_at = time.time()
                await asyncio.sleep(POLL_S)
    return {
        "leaving_to_last_issue_s": max(last_at - left_at, 0),
        "leaving_to_last_expiry_s": max(ends).timestamp() - left_at,
    }


async def _redeem(databases: ScratchDatabases) -> Mapping[str, float]:
    times: dict[int, list[float]] = {10**3: [], 10**6: []}
    sides = {size: await _code_database(databases, size) for size in times}
    for number in range(ROUNDS + 1):
        for size in sorted(times, reverse=bool(number % 2)):
            measured = await _redeem_some(sides[size])
            if number:
                times[size] += measured
    small, large = (median(times[size]) for size in sorted(times))
    return {"redeem_flat_1e3_1e6": large / small, "redeem_at_1e6_ms": large * 1000}


async def _code_database(databases: ScratchDatabases, size: int) -> DatabaseUrls:
    urls = await databases.database(DATABASE)
    owner = await asyncpg.connect(urls.owner.reveal())
    # A million rows with all their keys and checks take minutes on a busy machine.
    print(f"redeem_flat_1e3_1e6: making {size} links and link codes", file=sys.stderr, flush=True)
    try:
        await owner.execute(_BEGIN)
        for statement in filter(str.strip, _LINK.split(";")):
            await owner.execute(statement, size, timeout=600)
        await owner.execute(_CODES, size, timeout=600)
        await owner.execute("VACUUM ANALYZE")
    finally:
        await owner.close()
    return urls


async def _redeem_some(urls: DatabaseUrls) -> list[float]:
    owner = await asyncpg.connect(urls.owner.reveal())
    codes = [secrets.token_urlsafe(32) for _ in range(REDEEMS)]
    await owner.executemany(
        _OPEN_CODE,
        [
            (f"bench-{number}", f"UB{number:07}", hash_link_code(code))
            for number, code in enumerate(codes)
        ],
    )
    session = Session(
        Person(UserId("user-1"), "User 1", "1@northwind.example"),
        Tenant(TenantId("northwind"), "Northwind"),
        Role.MEMBER,
        "ref",
    )
    times = []
    try:
        async with open_engine(urls.roles[_ROLE], application="bench") as engine:
            linking = _linking(PostgresStore(engine))
            for code in codes:
                began = time.perf_counter()
                async with asyncio.timeout(CALL_LIMIT.total_seconds()):
                    await linking.redeem(
                        session,
                        hash_link_code(code),
                        email_difference_confirmed=False,
                        origin=Origin("gateway-edge", "/bench", "request"),
                    )
                times.append(time.perf_counter() - began)
    finally:
        for statement in _TAKE_BACK:
            await owner.execute(statement)
        await owner.close()
    return times


def _linking(store: PostgresStore) -> Linking:
    return Linking(
        workspaces=store,
        links=store,
        grant_keys=_keyset(generate_ed25519_key("identity-1", [Family.ADMIN_GRANT])),
        emails=EmailPolicy(),
        clock=SystemClock(),
        new_id=lambda: secrets.token_hex(16),
        entropy=secrets.token_bytes,
    )


@contextmanager
def _open_postgres() -> Iterator[EmbeddedPostgres]:
    """Give a new, durable Postgres."""
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "pg", binaries=find_binaries(os.environ))
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


@contextmanager
def _open_site() -> Iterator[_Site]:
    """Run identity with a thousand linked members."""
    with (
        _open_postgres() as postgres,
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as name,
    ):
        folder = Path(name)
        urls, members, reader = asyncio.run(_databases(postgres))
        ca = ThrowAwayCa.create(folder / "ca")
        edge = {"keys": [generate_ed25519_key("edge-1", [Family.SLACK_GRANT])]}
        environ = _environ(folder, ca, urls, reader, edge)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "interlock_identity", "serve"],
                cwd=ROOT,
                env=environ,
                stderr=log,
            )
        try:
            port = _wait_for_port(process, folder / "log")
            yield _Site(process.pid, port, urls, members, _keyset(*edge["keys"]), ca, folder)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait_for_port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    until = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < until:
        for line in log.read_text().splitlines():
            if "identity_listening" in line:
                return int(json.loads(line)["port"])
        time.sleep(0.05)
    raise RuntimeError(f"identity did not start: {log.read_text()[-2000:]}")


async def _databases(postgres: EmbeddedPostgres) -> tuple[DatabaseUrls, Secret[str], Secret[str]]:
    """Make identity's database and the auth server's; return it as its owner and its reader."""
    urls = await ScratchDatabases(postgres.admin_url).database(DATABASE)
    owner = await asyncpg.connect(urls.owner.reveal())
    await owner.execute(_BEGIN)
    for statement in filter(str.strip, _LINK.split(";")):
        await owner.execute(statement, LINKED)
    await owner.close()
    passwords = {role: Secret(secrets.token_hex(16)) for role in (_AUTH.owner, *_AUTH.roles)}
    auth = await create_database(postgres.admin_url, _AUTH, passwords)
    members = await asyncpg.connect(auth.owner.reveal())
    await members.execute(_MEMBERS)
    await members.execute(_JOIN, LINKED)
    await members.close()
    return urls, auth.owner, auth.roles["interlock_auth_reader"]


def _environ(
    folder: Path,
    ca: ThrowAwayCa,
    urls: DatabaseUrls,
    reader: Secret[str],
    edge: dict[str, list[dict[str, object]]],
) -> dict[str, str]:
    grants = [Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT]
    own = {"keys": [generate_ed25519_key("identity-1", grants)]}
    files = {
        "DATABASE_URL": urls.roles[_ROLE].reveal(),
        "MEMBERSHIP_DATABASE_URL": reader.reveal(),
        "GRANT_KEYS": json.dumps(own),
        "GRANT_PUBLIC_KEYS": Keyset.join(_keyset(*edge["keys"]), _keyset(*own["keys"])).public(),
        "USER_TOKEN_KEYS": json.dumps(
            {"keys": [generate_hs256_key("user-1", [Family.SLACK_USER])]}
        ),
    }
    tls = ca.issue("identity", folder / "identity")
    given = {
        "ENVIRONMENT": "development",
        "LISTEN": "127.0.0.1:0",
        "OPS_LISTEN": "127.0.0.1:0",
        "TLS_CA_FILE": str(tls.ca),
        "TLS_CERT_FILE": str(tls.cert),
        "TLS_KEY_FILE": str(tls.key),
        # Issuing asks nobody for a session.
        "AUTH_URL": "http://127.0.0.1:9",
    }
    for name, content in files.items():
        path = folder / name.lower()
        path.touch(0o600)
        path.write_text(content)
        given[f"{name}_FILE"] = str(path)
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return inherited | {f"INTERLOCK_{name}": value for name, value in given.items()}


def _keyset(*keys: dict[str, object]) -> Keyset:
    return Keyset.from_json(Secret(json.dumps({"keys": keys})), variable="KEYS")


def _slack_user(number: int) -> str:
    return f"U{number:09}"
