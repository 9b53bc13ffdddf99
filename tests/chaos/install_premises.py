"""A workspace to install into and to leave, and vault processes that die amid it.

Real Postgres, mTLS gRPC and HTTP; a Slack that keeps a record of its tokens.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.client import open_channel
from interlock_chassis.config import load_settings
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.data_folder import choose_ports
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import (
    House,
    Identity,
    Slack,
    WatchedKms,
    ask,
    make_keyset,
    serving_identity,
)
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.adapters.memory import FakeKms, ManualClock
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset

USER, USER_SCOPE = "U0ADA", "channels:history"
PATIENCE_S = 60
_FINGERPRINT_KEY = "f" * 43
_ROOT = Path(__file__).parents[2]
_POLL_S = 0.05
_PEERS = ("gateway-edge", "gateway-worker")
# What one scene may change, as it lies in the database.
_TABLES = ("installation", "sealed_token", "wrapped_dek")
# A minute for a lease, and more than a grant's quarter of an hour.
_LATER = """
UPDATE vault.install_attempt SET lease_until = lease_until - interval '61 s',
    grant_expires_at = grant_expires_at - interval '20 min'
WHERE ended_at IS NULL;
UPDATE vault.uninstall SET tried_at = tried_at - interval '61 s';
"""


@dataclass
class Premises:
    """Everything that outlives a vault process."""

    house: House
    slack: SlackStage
    identity: Identity
    environ: Mapping[str, str]
    keys: KmsKeys
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    @asynccontextmanager
    async def running(
        self, edge: str = "none", record: Path | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a vault process that dies at an edge once it is armed, with a way in for peers."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        ops = {"INTERLOCK_OPS_LISTEN": f"127.0.0.1:{choose_ports({'ops': 0})['ops']}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.install_process",
            edge,
            str(record or os.devnull),
            cwd=_ROOT,
            env=inherited | dict(self.environ) | ops,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = (await _told(process)).removeprefix("serving ")
            async with AsyncExitStack() as stack:
                self.house.channels = {
                    peer: await stack.enter_async_context(
                        open_channel(
                            f"127.0.0.1:{port}",
                            self.house.ca.issue(peer, self.house.tls_dir),
                            server="token-vault",
                        )
                    )
                    for peer in _PEERS
                }
                yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def arm(self, process: asyncio.subprocess.Process) -> None:
        """Have a process count its steps from here."""
        process.send_signal(signal.SIGUSR1)
        if (word := await _told(process)) != "armed":
            raise AssertionError(f"the process said {word!r}")

    # What people and services do.

    async def install(self, tenant: str = "northwind", **fields: str) -> None:
        """Install as an owner does: consent at Slack, with these fields, then the callback."""
        code = await self.slack.code(user_scope=USER_SCOPE, **fields)
        grant = self.house.install_grant(tenant)
        installer = self.house.installer()
        await ask(installer.StartInstall(pb.StartInstallRequest(grant=grant), timeout=10))
        request = pb.CompleteOAuthInstallRequest(
            grant=grant, code=code, redirect_uri=self.slack.config.app.redirect_urls[0]
        )
        await ask(installer.CompleteOAuthInstall(request, timeout=20))

    async def remove_app(self) -> None:
        """Remove the app in Slack's own settings."""
        [token] = await self.living("xoxb")
        await self.slack.call(
            "apps.uninstall", token, client_id=CLIENT_ID, client_secret=CLIENT_SECRET
        )

    async def revoke_user(self) -> None:
        """End the installing person's own token at Slack."""
        for token in await self.living("xoxp"):
            await self.slack.call("auth.revoke", token)

    # What is so.

    async def living(self, kind: str = "xox") -> list[str]:
        """List the access tokens that Slack takes, of all that it ever gave out."""
        given = (await self.slack.see("secrets"))["tokens"]
        return [
            token
            for token in given
            if token.startswith(kind) and (await self.slack.call("auth.test", token))["ok"]
        ]

    async def unstored(self) -> list[str]:
        """List the living tokens that the vault has not sealed."""
        rows = await self.house.admin.fetch("SELECT ref FROM vault.sealed_token")
        refs = {row["ref"] for row in rows}
        return [token for token in await self.living() if self.keys.ref(Secret(token)) not in refs]

    async def has_open_exchange(self) -> bool:
        """Tell whether an attempt says that Slack may have given a token out."""
        asking = (
            "SELECT EXISTS (SELECT FROM vault.install_attempt"
            " WHERE state = 'exchanging' AND ended_at IS NULL)"
        )
        return bool(await self.house.admin.fetchval(asking))

    async def snapshot(self) -> dict[str, list[str]]:
        """Copy every row of installations, as text."""
        return {
            table: [
                str(row[0])
                for row in await self.house.admin.fetch(
                    f"SELECT t::text FROM vault.{table} t ORDER BY 1"  # noqa: S608 - Names of ours.
                )
            ]
            for table in _TABLES
        }

    async def audited(self, action: str) -> int:
        """Count the audit log's records of an action."""
        return len(await self.house.records(action))

    async def settled(self) -> None:
        """Wait until nothing is half-way any more."""
        asking = (
            "SELECT NOT EXISTS (SELECT FROM vault.install_attempt WHERE ended_at IS NULL)"
            " AND NOT EXISTS (SELECT FROM vault.uninstall)"
            " AND NOT EXISTS (SELECT FROM vault.tombstone WHERE released_at IS NULL)"
        )
        async with asyncio.timeout(PATIENCE_S):
            while not await self.house.admin.fetchval(asking):  # noqa: ASYNC110 - No event tells.
                await asyncio.sleep(_POLL_S)

    async def let_time_pass(self) -> None:
        """Let leases and grants run out."""
        await self.house.admin.execute(_LATER)


@asynccontextmanager
async def premises(cluster: ScratchDatabases, folder: Path, **told: str) -> AsyncIterator[Premises]:
    """Give a migrated database with nothing in it, Slack, and identity's claims.

    Args:
        cluster: Where the database is made.
        folder: For keys and certificates.
        told: Settings of the vault, without their prefix.
    """
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")
    create_keyset(folder / "keyset.json")
    ca = ThrowAwayCa.create(folder / "ca")
    edge_keys = make_keyset("edge-1", Family.SLACK_GRANT)
    identity_keys = make_keyset("identity-1", Family.ADMIN_GRANT, Family.INSTALL_GRANT)
    tenant_of: dict[str, str] = {}
    identity = Identity(tenant_of)  # type: ignore[abstract] # The vault calls no more of it.
    async with AsyncExitStack() as stack:
        slack = await stack.enter_async_context(slack_stage(token_rotation=False))
        port = await stack.enter_async_context(serving_identity(identity, ca, folder / "tls"))
        admin = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
        stack.push_async_callback(admin.close)
        environ = _environ(
            folder,
            ca,
            {
                "DATABASE_URL_FILE": urls.roles[VAULT_ROLE].reveal(),
                "SLACK_CLIENT_SECRET_FILE": CLIENT_SECRET,
                "GRANT_PUBLIC_KEYS_FILE": Keyset.join(edge_keys, identity_keys).public(),
                "FINGERPRINT_KEY_FILE": _FINGERPRINT_KEY,
            },
            {"SLACK_API_URL": slack.api_url, "IDENTITY_ADDRESS": f"127.0.0.1:{port}", **told},
        )
        settings = load_settings(VaultSettings, environ | {"INTERLOCK_OPS_LISTEN": "127.0.0.1:0"})
        house = House(
            settings=settings,
            ca=ca,
            folder=folder,
            channels={},
            edge_keys=edge_keys,
            identity_keys=identity_keys,
            kms=WatchedKms(),
            slack=Slack(),
            identity=identity,
            tenant_of=tenant_of,
            admin=admin,
        )
        # Its fingerprints are the process's; it opens nothing.
        keys = KmsKeys(FakeKms(), fingerprint_key=Secret(_FINGERPRINT_KEY), clock=ManualClock())
        yield Premises(house, slack, identity, environ, keys)


def _environ(
    folder: Path, ca: ThrowAwayCa, files: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, str]:
    tls = ca.issue("token-vault", folder / "tls")
    for name, text in files.items():
        (folder / name).write_text(text)
    told: dict[str, Any] = {
        "ENVIRONMENT": "development",
        "LISTEN": "127.0.0.1:0",
        "TLS_CA_FILE": tls.ca,
        "TLS_CERT_FILE": tls.cert,
        "TLS_KEY_FILE": tls.key,
        "SLACK_CLIENT_ID": CLIENT_ID,
        "SLACK_USER_SCOPES": USER_SCOPE,
        "KMS": "local",
        "LOCAL_KEYSET_FILE": folder / "keyset.json",
        **{name: folder / name for name in files},
        **settings,
    }
    return {f"INTERLOCK_{name}": str(value) for name, value in told.items()}


async def _told(process: asyncio.subprocess.Process) -> str:
    """Wait for a process's next word."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await process.stdout.readline()).decode().strip()
