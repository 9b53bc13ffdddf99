"""Kill real vault processes amid a refresh, and see that the next one goes on.

Real Postgres, files and HTTP; a Slack that keeps Slack's rules.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from interlock_chassis.clock import SystemClock
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.data_folder import choose_ports
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
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

FAILPOINTS = (
    "before_claim",
    "after_claim",
    "before_send",
    "after_send",
    "after_reply",
    "after_spool",
    "before_commit",
    "after_commit",
    "before_notify",
    "during_replay",
)
_ENVIRONMENT = "development"
_FINGERPRINT_KEY = "f" * 43
_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 40


@dataclass
class Premises:
    """A database with one install whose token is due, and what a process beside it needs."""

    slack: SlackStage
    admin: "asyncpg.Connection[asyncpg.Record]"
    environ: dict[str, str]
    spool: Path

    async def start(self, failpoint: str = "none") -> asyncio.subprocess.Process:
        """Start a vault process that dies at a failpoint."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        ops = f"127.0.0.1:{choose_ports({'ops': 0})['ops']}"
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.vault_process",
            failpoint,
            cwd=_ROOT,
            env=inherited | self.environ | {"INTERLOCK_OPS_LISTEN": ops},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def killed_at(self, failpoint: str) -> int | None:
        """Run a process until it dies; returns how it ended."""
        process = await self.start(failpoint)
        async with asyncio.timeout(_PATIENCE_S):
            return await process.wait()

    async def end_leases(self) -> None:
        """Let the minute pass that a dead holder's lease lasts."""
        await self.admin.execute(
            "UPDATE vault.rotation SET lease_until = lease_until - interval '61 s',"
            " not_before = NULL"
        )

    async def settled(self) -> str:
        """Run a whole process until the chain has come to rest; returns its standing."""
        change = asyncio.Event()

        def hear(*_: object) -> None:
            change.set()

        await self.admin.add_listener("vault_rotation", hear)
        process = await self.start()
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await process.stdout.readline()
                while (standing := await self.standing()) not in {"idle", "needs_reinstall"}:
                    await change.wait()
                    change.clear()
        finally:
            process.terminate()
            await process.wait()
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


@asynccontextmanager
async def premises(
    cluster: ScratchDatabases, folder: Path, *, grace_s: float
) -> AsyncIterator[Premises]:
    """Give a migrated database with one install, whose token is due."""
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")
    admin = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
    create_keyset(folder / "keyset.json")
    try:
        async with slack_stage(token_rotation=True, refresh_grace_s=grace_s) as slack:
            tls = ThrowAwayCa.create(folder / "ca").issue("token-vault", folder / "tls")
            files = {
                "url": urls.roles[VAULT_ROLE].reveal(),
                "secret": CLIENT_SECRET,
                "grants": make_keyset("edge-1", Family.SLACK_GRANT).public(),
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
                "SPOOL_DIR": folder / "spool",
            }
            told = {f"INTERLOCK_{name}": str(value) for name, value in environ.items()}
            answer = await slack.installed()
            await _insert(admin, folder / "keyset.json", answer)
            yield Premises(slack, admin, told, folder / "spool")
    finally:
        await admin.close()


async def _insert(
    admin: "asyncpg.Connection[asyncpg.Record]", keyset: Path, answer: dict[str, str]
) -> None:
    """Store what an install gave, due in half an hour."""
    keys = KmsKeys(
        LocalKms.load(keyset, environment=_ENVIRONMENT),
        fingerprint_key=Secret(_FINGERPRINT_KEY),
        clock=SystemClock(),
    )
    team_id = "T0NORTHWIND"
    key = InstallationKey(ClientId(CLIENT_ID), answer["app_id"], "", team_id)
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
        team_id,
        answer["bot_user_id"],
    )
    await admin.execute(
        "INSERT INTO vault.wrapped_dek VALUES ($1, $2, $3, $4)",
        wrapped.dek_id,
        installation_id,
        wrapped.kek_version,
        wrapped.wrapped,
    )
    ends = datetime.now(UTC) + timedelta(minutes=30)
    for slot, field, expires_at in (
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
        sealed = await data_key.seal(Secret(answer[field]), context, expires_at)
        await admin.execute(
            "INSERT INTO vault.sealed_token VALUES ($1, 'bot', $2, '', 1, $3, $4, $5, $6)",
            installation_id,
            slot.value,
            wrapped.dek_id,
            sealed.sealed,
            sealed.ref,
            expires_at,
        )


async def kill_and_go_on(
    cluster: ScratchDatabases, folder: Path, failpoint: str, *, grace_s: float
) -> list[str]:
    """Kill a process at a failpoint, go on with another, and list what did not hold."""
    broken: list[str] = []
    async with premises(cluster, folder, grace_s=grace_s) as here:
        first = "after_spool" if failpoint == "during_replay" else failpoint
        ends = [await here.killed_at(first)]
        if failpoint == "during_replay":
            ends.append(await here.killed_at(failpoint))
        if set(ends) != {-9}:
            broken.append(f"the process was not killed there: {ends}")
        await here.end_leases()
        standing = await here.settled()
        # Between Slack's reply and the disk, or before the reply, there is only the process.
        is_lost = grace_s == 0 and failpoint in {"after_send", "after_reply"}
        did = await here.exchanges()
        if standing != "idle" and not (is_lost and standing == "needs_reinstall"):
            broken.append(f"the chain came to stand {standing}")
        if did > (2 if failpoint in {"after_send", "after_reply"} else 1):
            broken.append(f"Slack exchanged {did} times")
        if standing == "idle" and await here.audited("token.rotated") != 1:
            broken.append("the rotation is not on record once")
        if list(here.spool.glob("*.answer")):
            broken.append("an answer was left in the spool")
    return broken


async def kill_everywhere() -> dict[str, list[str]]:
    """Kill a process at every failpoint, at a strict and at a forgiving Slack.

    Returns:
        What did not hold, by place.
    """
    folder = Path(tempfile.mkdtemp(prefix="interlock-chaos-"))
    postgres = EmbeddedPostgres(folder / "pg", binaries=find_binaries(os.environ), durable=False)
    await asyncio.to_thread(postgres.start)
    broken: dict[str, list[str]] = {}
    try:
        cluster = ScratchDatabases(postgres.admin_url)
        for failpoint in FAILPOINTS:
            for grace_s in (0, 30):
                place = folder / f"{failpoint}-{grace_s}"
                await asyncio.to_thread(place.mkdir)
                found = await kill_and_go_on(cluster, place, failpoint, grace_s=grace_s)
                broken[place.name] = found
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return broken
