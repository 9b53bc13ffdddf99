"""A workspace whose token is due, and vault processes beside it that do as they are told.

Real Postgres, files and HTTP; a Slack that keeps Slack's rules.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.clock import SystemClock
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles
from interlock_cli.data_folder import choose_ports
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import make_keyset
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.local_kms import LocalKms, create_keyset
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.grants import Workspace
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_slack_grant

_ENVIRONMENT = "development"
_TEAM = "T0NORTHWIND"
_FINGERPRINT_KEY = "f" * 43
_ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


@dataclass
class VaultProcess:
    """A vault process of our own.

    Attributes:
        port: Where it serves, once it does.
        channel: To there, as the worker.
    """

    process: asyncio.subprocess.Process
    ops: str
    tls: TlsFiles
    port: int = 0

    async def told(self) -> str:
        """Wait for its next word: where it serves, or that it stands still."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def serving(self) -> None:
        """Wait until it serves."""
        self.port = int((await self.told()).removeprefix("serving "))

    async def standing_still(self) -> None:
        """Wait until it has come to its failpoint and is stopped there."""
        while not (word := await self.told()).startswith("stopped "):
            if not word:
                raise AssertionError("the process ended before its failpoint")

    def go_on(self) -> None:
        """Let it run after it stood still."""
        self.process.send_signal(signal.SIGCONT)

    async def ended(self) -> int | None:
        """Wait for its end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def is_ready(self) -> bool:
        """Ask whether it can work."""
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.ops}/readyz") as said:
            return said.status == 200

    @asynccontextmanager
    async def open(self) -> AsyncIterator[aio.Channel]:
        """Connect as the worker does."""
        where = f"127.0.0.1:{self.port}"
        async with open_channel(where, self.tls, server="token-vault") as channel:
            yield channel


@dataclass
class Premises:
    """A database with one install whose token is due, and what a process beside it needs."""

    slack: SlackStage
    admin: "asyncpg.Connection[asyncpg.Record]"
    environ: dict[str, str]
    folder: Path
    grant_keys: Keyset
    workspace: Workspace
    worker_tls: TlsFiles
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    @property
    def spool(self) -> Path:
        """The spool of the process that is named nothing else."""
        return self.folder / "spool"

    async def start(
        self, failpoint: str = "none", action: str = "kill", *, spool: str = "spool"
    ) -> VaultProcess:
        """Start a vault process that dies, or stops, at a failpoint."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        ops = f"127.0.0.1:{choose_ports({'ops': 0})['ops']}"
        own = {"INTERLOCK_OPS_LISTEN": ops, "INTERLOCK_SPOOL_DIR": str(self.folder / spool)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.vault_process",
            failpoint,
            action,
            cwd=_ROOT,
            env=inherited | self.environ | own,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return VaultProcess(process, ops, self.worker_tls)

    @asynccontextmanager
    async def running(
        self, failpoint: str = "none", action: str = "kill", *, spool: str = "spool"
    ) -> AsyncIterator[VaultProcess]:
        """Start a process as `start`, wait until it serves, and end it with the block."""
        vault = await self.start(failpoint, action, spool=spool)
        try:
            await vault.serving()
            yield vault
        finally:
            if vault.process.returncode is None:
                vault.go_on()
                vault.process.terminate()
            await vault.process.wait()

    async def killed_at(self, failpoint: str) -> int | None:
        """Run a process until it dies; returns how it ended."""
        vault = await self.start(failpoint)
        return await vault.ended()

    async def end_leases(self) -> None:
        """Let the minute pass that a dead holder's lease lasts."""
        await self.admin.execute(
            "UPDATE vault.rotation SET lease_until = lease_until - interval '61 s',"
            " not_before = NULL"
        )

    async def let_it_end(self, within: timedelta) -> None:
        """Have the stored access token end soon; Slack knows nothing of that."""
        await self.admin.execute(
            "UPDATE vault.sealed_token SET expires_at = clock_timestamp() + $1::interval"
            " WHERE slot = 'access'",
            within,
        )

    async def reconnect(self, admin_url: Secret[str]) -> None:
        """Look at the database again, after its server was started anew."""
        database = (await asyncio.to_thread(self._read_url)).path.strip("/")
        self.admin = await asyncpg.connect(admin_url.reveal(), database=database)

    def _read_url(self) -> SplitResult:
        return urlsplit((self.folder / "url").read_text())

    async def settled(self) -> str:
        """Run a whole process until the chain has come to rest; returns its standing."""
        async with self.running():
            return await self.rested()

    async def rested(self) -> str:
        """Wait until the chain has come to rest; returns its standing."""
        change = asyncio.Event()

        def hear(*_: object) -> None:
            change.set()

        await self.admin.add_listener("vault_rotation", hear)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (standing := await self.standing()) not in {"idle", "needs_reinstall"}:
                    await change.wait()
                    change.clear()
        finally:
            await self.admin.remove_listener("vault_rotation", hear)
        return standing

    async def standing(self) -> str:
        """Read where the chain stands; `due` while nothing has begun."""
        row = await self.admin.fetchrow(
            "SELECT s.standing, s.generation FROM vault.rotation s JOIN vault.installation i"
            " USING (installation_id) WHERE s.generation = i.generation"
        )
        return "due" if row is None else str(row["standing"])

    async def audited(self, action: str) -> int:
        """Count the audit log's records of an action."""
        counting = "SELECT count(*) FROM vault.audit_event WHERE action = $1"
        return int(await self.admin.fetchval(counting, action))

    async def exchanges(self) -> int:
        """Count the refreshes that Slack did."""
        calls = (await self.slack.see("calls", method="oauth.v2.access"))["calls"]
        refreshes = [call for call in calls if call["args"].get("grant_type") == "refresh_token"]
        return sum(call["acted"] for call in refreshes)

    def grant(self) -> str:
        """Sign a slackGrant as edge does."""
        now = datetime.now(UTC)
        return sign_slack_grant(
            self.grant_keys,
            now=now,
            jti=f"event-{next(self.numbers)}",
            workspace=self.workspace,
            slack_user_id="U0MIA",
            slack_user_team_id=self.workspace.team_id,
            event_key="Ev0",
            event_type="app_mention",
            body_sha256="a" * 64,
            event_at=now,
            is_stranger=False,
        ).reveal()

    async def read(self, channel: aio.Channel) -> tuple[str, int]:
        """Read the bot token as a worker does; returns it with its generation."""
        vault = services.TokenServiceStub(channel)
        with remote_errors():
            released: pb.ReadBotTokenResponse = await vault.ReadBotToken(
                pb.ReadBotTokenRequest(grant=self.grant()), timeout=5
            )
        return released.bot_token, released.generation

    async def leads_on(self, vault: VaultProcess) -> bool:
        """Refresh the chain once more, and see whether Slack takes what was stored."""
        async with vault.open() as channel:
            _, before = await self.read(channel)
            await self.let_it_end(timedelta(seconds=60))
            token, after = await self.read(channel)
        return after > before and bool((await self.slack.call("auth.test", token))["ok"])


@asynccontextmanager
async def premises(
    cluster: ScratchDatabases,
    folder: Path,
    *,
    grace_s: float,
    expires_in: timedelta = timedelta(minutes=30),
) -> AsyncIterator[Premises]:
    """Give a migrated database with one install, whose token is due unless told otherwise."""
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")
    admin = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
    create_keyset(folder / "keyset.json")
    try:
        async with slack_stage(token_rotation=True, refresh_grace_s=grace_s) as slack:
            ca, grant_keys = (
                ThrowAwayCa.create(folder / "ca"),
                make_keyset("edge-1", Family.SLACK_GRANT),
            )
            tls = ca.issue("token-vault", folder / "tls")
            files = {
                "url": urls.roles[VAULT_ROLE].reveal(),
                "secret": CLIENT_SECRET,
                "grants": grant_keys.public(),
                "fingerprint": _FINGERPRINT_KEY,
            }
            for name, text in files.items():
                (folder / name).write_text(text)
            environ = {
                "ENVIRONMENT": _ENVIRONMENT,
                "LISTEN": "127.0.0.1:0",
                "TLS_CA_FILE": tls.ca,
                "TLS_CERT_FILE": tls.cert,
                "TLS_KEY_FILE": tls.key,
                "DATABASE_URL_FILE": folder / "url",
                "SLACK_CLIENT_ID": CLIENT_ID,
                "SLACK_CLIENT_SECRET_FILE": folder / "secret",
                "SLACK_API_URL": slack.api_url,
                "GRANT_PUBLIC_KEYS_FILE": folder / "grants",
                "KMS": "local",
                "LOCAL_KEYSET_FILE": folder / "keyset.json",
                "FINGERPRINT_KEY_FILE": folder / "fingerprint",
                "IDENTITY_ADDRESS": "127.0.0.1:9",
            }
            told = {f"INTERLOCK_{name}": str(value) for name, value in environ.items()}
            answer = await slack.installed()
            await _insert(admin, folder / "keyset.json", answer, expires_in)
            here = Premises(
                slack,
                admin,
                told,
                folder,
                grant_keys,
                Workspace("", _TEAM, is_enterprise_install=False, app_id=answer["app_id"]),
                ca.issue("gateway-worker", folder / "tls"),
            )
            try:
                yield here
            finally:
                await here.admin.close()
    finally:
        await admin.close()


async def _insert(
    admin: "asyncpg.Connection[asyncpg.Record]",
    keyset: Path,
    answer: dict[str, str],
    expires_in: timedelta,
) -> None:
    """Store what an install gave."""
    keys = KmsKeys(
        LocalKms.load(keyset, environment=_ENVIRONMENT),
        fingerprint_key=Secret(_FINGERPRINT_KEY),
        clock=SystemClock(),
    )
    key = InstallationKey(ClientId(CLIENT_ID), answer["app_id"], "", _TEAM)
    installation_id = InstallationId(uuid4())
    wrapped, data_key = await keys.make(
        KeyContext(_ENVIRONMENT, ClientId(CLIENT_ID), installation_id)
    )
    await admin.execute(
        "INSERT INTO vault.installation VALUES ($1, $2, $3, '', $4, 'northwind', 'active', 1,"
        " 'Northwind', $5, '{}', clock_timestamp())",
        installation_id,
        CLIENT_ID,
        answer["app_id"],
        _TEAM,
        answer["bot_user_id"],
    )
    await admin.execute(
        "INSERT INTO vault.wrapped_dek VALUES ($1, $2, $3, $4)",
        wrapped.dek_id,
        installation_id,
        wrapped.kek_version,
        wrapped.wrapped,
    )
    ends = datetime.now(UTC) + expires_in
    for slot, name, expires_at in (
        (TokenSlot.ACCESS, "access_token", ends),
        (TokenSlot.REFRESH, "refresh_token", None),
    ):
        context = TokenContext(
            environment=_ENVIRONMENT,
            key=key,
            installation_id=installation_id,
            user_id="",
            kind=TokenKind.BOT,
            slot=slot,
            dek_id=wrapped.dek_id,
            generation=1,
        )
        sealed = await data_key.seal(Secret(answer[name]), context, expires_at)
        await admin.execute(
            "INSERT INTO vault.sealed_token VALUES ($1, 'bot', $2, '', 1, $3, $4, $5, $6)",
            installation_id,
            slot.value,
            wrapped.dek_id,
            sealed.sealed,
            sealed.ref,
            expires_at,
        )
