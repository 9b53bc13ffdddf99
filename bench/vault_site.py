"""A vault process on a durable Postgres, with installations in it, and its peers.

The Postgres is the product's own, with its settings: every commit reaches the
disk. slack_sdk's store gets a database of its own on the same server.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
from grpc import aio
from slack_sdk.oauth.installation_store import Installation as SdkInstallation
from slack_sdk.oauth.installation_store.sqlalchemy import AsyncSQLAlchemyInstallationStore
from sqlalchemy.ext.asyncio import create_async_engine

from interlock_chassis.client import open_channel
from interlock_chassis.database import DatabaseUrls
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.local_kms import LocalKms, create_keyset
from interlock_token_vault.domain.envelope import KeyContext, TokenContext, seal
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.grants import Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_slack_grant

ROOT = Path(__file__).parents[1]
ENVIRONMENT = "development"
CLIENT_ID = ClientId("1111.2222")
APP_ID = "A0INTERLOCK"
READ = 1000
"""How many installations are read, in turn; every one with a grant of its own."""

# One for each of the callers that the benchmarks have at most.
_SDK_POOL = 32
# Filling in one statement each; rows that nobody reads hold random bytes of the right size.
_FILL = """
INSERT INTO vault.installation (installation_id, client_id, app_id, enterprise_id, team_id,
    tenant_id, state, generation, name, bot_user_id, bot_scopes, installed_at)
SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, $1, $2, '',
    'T' || lpad(n::text, 9, '0'), 'tenant-' || n, 'active', 1, 'Workspace ' || n, 'U0BOT',
    ARRAY['chat:write', 'commands'], clock_timestamp()
FROM generate_series(1, $3::integer) AS n;
INSERT INTO vault.wrapped_dek (dek_id, installation_id, kek_version, wrapped)
SELECT ('00000000-0000-4000-9000-' || lpad(n::text, 12, '0'))::uuid,
    ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'local-1',
    substring(sha512(n::text::bytea) FROM 1 FOR 60)
FROM generate_series(1, $3::integer) AS n;
INSERT INTO vault.sealed_token (installation_id, kind, slot, user_id, generation, dek_id, sealed,
    ref)
SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'bot', 'access', '', 1,
    ('00000000-0000-4000-9000-' || lpad(n::text, 12, '0'))::uuid,
    '\\x01'::bytea || sha512(n::text::bytea) || sha512((n + 1)::text::bytea)
        || substring(sha512((n + 2)::text::bytea) FROM 1 FOR 21),
    md5(n::text)
FROM generate_series(1, $3::integer) AS n;
"""


@dataclass(frozen=True)
class Vault:
    """A running vault process.

    Attributes:
        grants: Of the installations that can be read, made for this run.
        teams: Those installations' teams.
    """

    pid: int
    port: int
    empty_port: int
    urls: DatabaseUrls
    grants: list[str]
    teams: list[str]


class Site:
    """A Postgres, certificates and keys, for any number of vaults.

    Args:
        folder: Where everything lives.
        postgres: Running.
    """

    def __init__(self, folder: Path, postgres: EmbeddedPostgres) -> None:
        self._folder = folder
        self._postgres = postgres
        self._databases = ScratchDatabases(postgres.admin_url)
        self._ca = ThrowAwayCa.create(folder / "ca")
        document = json.dumps({"keys": [generate_ed25519_key("edge-1", [Family.SLACK_GRANT])]})
        self._keys = Keyset.from_json(Secret(document), variable="KEYS")
        self._keyset = folder / "kek.json"
        create_keyset(self._keyset)

    async def database(self, installations: int) -> tuple[DatabaseUrls, list[str]]:
        """Make a vault's database with installations in it; returns the teams to read."""
        urls = await self._databases.database(DATABASE)
        name = urls.owner.reveal().rpartition("@")[2].split("?")[0].strip("/")
        admin = await asyncpg.connect(self._postgres.admin_of(name).reveal())
        try:
            for statement in filter(str.strip, _FILL.split(";")):
                arguments = (CLIENT_ID, APP_ID, installations)[3 - statement.count("$") :]
                await admin.execute(_renumbered(statement), *arguments, timeout=600)
            readable = min(READ, installations)
            numbers = range(1, installations + 1, installations // readable)[:readable]
            await self._seal(admin, numbers)
            await admin.execute("VACUUM ANALYZE")
        finally:
            await admin.close()
        return urls, [_team(number) for number in numbers]

    @contextmanager
    def vault(self, urls: DatabaseUrls, teams: list[str]) -> Iterator[Vault]:
        """Run a vault process on a database."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        environ = self._environ(folder, urls)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                # A benchmark that is killed leaves no vault behind.
                ["setpriv", "--pdeathsig=TERM", sys.executable, "-m", "bench.vault_process"],
                cwd=ROOT,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            ports = json.loads(line)
            grants = [self._grant(team) for team in teams]
            yield Vault(process.pid, ports["vault"], ports["empty"], urls, grants, teams)
        finally:
            process.terminate()
            process.wait(60)

    @asynccontextmanager
    async def channel(
        self, port: int, caller: str = "gateway-worker"
    ) -> AsyncIterator[aio.Channel]:
        """Open a caller's channel to a vault, as our services open theirs."""
        tls = self._ca.issue(caller, self._folder / "tls")
        async with open_channel(f"127.0.0.1:{port}", tls, server="token-vault") as channel:
            yield channel

    @asynccontextmanager
    async def sdk_store(self, teams: list[str]) -> AsyncIterator[AsyncSQLAlchemyInstallationStore]:
        """Give slack_sdk's own store, in this process, with the teams saved in it."""
        name = f"sdk_{secrets.token_hex(4)}"
        admin = await asyncpg.connect(self._postgres.admin_url.reveal())
        await admin.execute(f'CREATE DATABASE "{name}"')
        await admin.close()
        url = self._postgres.admin_of(name)
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(url.reveal(), server_settings={"jit": "off"}),
            pool_size=_SDK_POOL,
            max_overflow=0,
        )
        store = AsyncSQLAlchemyInstallationStore(CLIENT_ID, engine)
        try:
            await store.create_tables()  # type: ignore[no-untyped-call] # It has no types.
            for team in teams:
                await store.async_save(sdk_installation(team))
            yield store
        finally:
            await engine.dispose()

    def _environ(self, folder: Path, urls: DatabaseUrls) -> dict[str, str]:
        tls = self._ca.issue("token-vault", self._folder / "tls")
        kept = {
            "DATABASE_URL": urls.roles[VAULT_ROLE].reveal(),
            "SLACK_CLIENT_SECRET": "example-client-secret",
            "GRANT_PUBLIC_KEYS": self._keys.public(),
            "FINGERPRINT_KEY": "f" * 32,
            "REGISTERED_APPS": json.dumps({"apps": {"reports": "2222.3333"}}),
        }
        given = {
            "ENVIRONMENT": ENVIRONMENT,
            "LISTEN": "127.0.0.1:0",
            "OPS_LISTEN": "127.0.0.1:0",
            "TLS_CA_FILE": str(tls.ca),
            "TLS_CERT_FILE": str(tls.cert),
            "TLS_KEY_FILE": str(tls.key),
            "SLACK_CLIENT_ID": CLIENT_ID,
            "KMS": "local",
            "LOCAL_KEYSET_FILE": str(self._keyset),
            # Reading asks nobody else.
            "IDENTITY_ADDRESS": "127.0.0.1:9",
        }
        for name, content in kept.items():
            path = folder / name.lower()
            path.touch(0o600)
            path.write_text(content)
            given[f"{name}_FILE"] = str(path)
        inherited = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ
        }
        return inherited | {f"INTERLOCK_{name}": value for name, value in given.items()}

    async def _seal(self, admin: "asyncpg.Connection[asyncpg.Record]", numbers: range) -> None:
        kms = LocalKms.load(self._keyset, environment=ENVIRONMENT)
        deks, tokens = [], []
        for number in numbers:
            installation_id, dek_id = _installation_id(number), _dek_id(number)
            dek = secrets.token_bytes(32)
            bound = KeyContext(ENVIRONMENT, CLIENT_ID, installation_id).encode()
            deks.append((dek_id, (await kms.wrap(Secret(dek), bound)).wrapped))
            context = TokenContext(
                environment=ENVIRONMENT,
                key=InstallationKey(CLIENT_ID, APP_ID, "", _team(number)),
                installation_id=installation_id,
                user_id="",
                kind=TokenKind.BOT,
                slot=TokenSlot.ACCESS,
                dek_id=dek_id,
                generation=1,
            )
            salt, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
            sealed = seal(dek, _token(number).encode(), context, salt=salt, nonce=nonce)
            tokens.append((installation_id, sealed))
        await admin.executemany("UPDATE vault.wrapped_dek SET wrapped = $2 WHERE dek_id = $1", deks)
        await admin.executemany(
            "UPDATE vault.sealed_token SET sealed = $2 WHERE installation_id = $1", tokens
        )

    def _grant(self, team: str) -> str:
        now = datetime.now(UTC)
        return sign_slack_grant(
            self._keys,
            now=now,
            jti=f"event-{secrets.token_urlsafe(12)}",
            workspace=Workspace("", team, is_enterprise_install=False, app_id=APP_ID),
            slack_user_id="U0MIA",
            slack_user_team_id=team,
            event_key=f"Ev{secrets.token_hex(5).upper()}",
            event_type="app_mention",
            body_sha256="a" * 64,
            event_at=now,
            is_stranger=False,
        ).reveal()


@contextmanager
def open_site() -> Iterator[Site]:
    """Give a site on a new, durable Postgres, and take everything down afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlock-bench-")))
        postgres = EmbeddedPostgres(folder / "pg", binaries=find_binaries(os.environ))
        postgres.start()
        stack.callback(postgres.stop)
        yield Site(folder, postgres)


def sdk_installation(team: str) -> SdkInstallation:
    """Describe an installation as Bolt would save it."""
    return SdkInstallation(
        app_id=APP_ID,
        team_id=team,
        team_name="Workspace",
        bot_token=_token(int(team[1:])),
        bot_id="B0BOT",
        bot_user_id="U0BOT",
        bot_scopes=["chat:write", "commands"],
        user_id="U0ADA",
        installed_at=datetime.now(UTC).timestamp(),
    )


def _token(number: int) -> str:
    return f"xoxb-{number:012d}-{number:012d}-{'abcd' * 6}"


def _team(number: int) -> str:
    return f"T{number:09d}"


def _installation_id(number: int) -> InstallationId:
    return InstallationId(UUID(f"00000000-0000-4000-8000-{number:012d}"))


def _dek_id(number: int) -> DekId:
    return DekId(UUID(f"00000000-0000-4000-9000-{number:012d}"))


def _renumbered(statement: str) -> str:
    return statement if "$1" in statement else statement.replace("$3", "$1")
