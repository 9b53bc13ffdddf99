"""The vault process: migrate, serve, stop, and the ways it refuses to start."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import InstallServiceStub, TokenServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.database import DatabaseUrls, create_database
from interlock_chassis.errors import RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_install_grant


@dataclass
class Premises:
    """An empty database, and the environment of a process beside it."""

    folder: Path
    urls: DatabaseUrls
    identity_keys: Keyset
    environ: dict[str, str]
    ca: ThrowAwayCa

    def file(self, name: str, content: str) -> str:
        """Write a file and name its path."""
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    async def migrate(self) -> None:
        """Run `migrate`, twice: it is idempotent."""
        environ = {
            "INTERLOCK_ENVIRONMENT": "development",
            "INTERLOCK_DATABASE_URL_FILE": self.file("owner", self.urls.owner.reveal()),
        }
        for _ in range(2):
            code, stderr = await _run("migrate", environ)
            assert code == 0, stderr


@pytest.fixture
async def premises(cluster: ScratchDatabases, tmp_path: Path) -> Premises:
    """Prepare everything that `serve` needs, and nothing that `migrate` makes."""
    # The roles are the server's, so their passwords are those of the other tests.
    urls = await create_database(
        cluster.admin_url,
        DATABASE,
        {role: Secret(uuid4().hex) for role in (DATABASE.owner, *DATABASE.roles)},
        database=f"interlock_vault_{uuid4().hex}",
    )
    ca = ThrowAwayCa.create(tmp_path / "ca")
    tls = ca.issue("token-vault", tmp_path / "tls")
    keys = json.dumps({"keys": [generate_ed25519_key("identity-1", [Family.INSTALL_GRANT])]})
    identity_keys = Keyset.from_json(Secret(keys), variable="KEYS")
    create_keyset(tmp_path / "keyset.json")
    here = Premises(tmp_path, urls, identity_keys, {}, ca)
    here.environ = {
        "INTERLOCK_ENVIRONMENT": "development",
        "INTERLOCK_LISTEN": "127.0.0.1:0",
        "INTERLOCK_OPS_LISTEN": "127.0.0.1:0",
        "INTERLOCK_TLS_CA_FILE": str(tls.ca),
        "INTERLOCK_TLS_CERT_FILE": str(tls.cert),
        "INTERLOCK_TLS_KEY_FILE": str(tls.key),
        "INTERLOCK_DATABASE_URL_FILE": here.file("url", urls.roles[VAULT_ROLE].reveal()),
        "INTERLOCK_SLACK_CLIENT_ID": "1111.2222",
        "INTERLOCK_SLACK_CLIENT_SECRET_FILE": here.file("secret", "canary-client-secret"),
        "INTERLOCK_SLACK_API_URL": "http://127.0.0.1:9/api/",
        "INTERLOCK_SLACK_URL": "http://127.0.0.1:9",
        "INTERLOCK_GRANT_PUBLIC_KEYS_FILE": here.file("public.json", identity_keys.public()),
        "INTERLOCK_KMS": "local",
        "INTERLOCK_LOCAL_KEYSET_FILE": str(tmp_path / "keyset.json"),
        "INTERLOCK_FINGERPRINT_KEY_FILE": here.file("fingerprint", "f" * 43),
        "INTERLOCK_IDENTITY_ADDRESS": "127.0.0.1:9",
    }
    return here


async def _start(command: str, environ: dict[str, str]) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_token_vault",
        command,
        env={**inherited, **environ},
        stderr=asyncio.subprocess.PIPE,
    )


async def _run(command: str, environ: dict[str, str]) -> tuple[int | None, str]:
    process = await _start(command, environ)
    _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@dataclass
class Serving:
    """A process that serves, and what it has written so far."""

    port: int
    ops_port: int
    log: list[str]


@asynccontextmanager
async def _serving(premises: Premises) -> AsyncIterator[Serving]:
    """Serve until the block ends, then stop by SIGTERM; the log is whole afterwards."""
    process = await _start("serve", premises.environ)
    log: list[str] = []
    try:
        port, ops_port = await _ports(process, log)
        yield Serving(port, ops_port, log)
        process.send_signal(signal.SIGTERM)
        _, rest = await process.communicate()
        log.append(rest.decode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, "".join(log)
    assert "process_stopped" in log[-1]


async def _ports(process: asyncio.subprocess.Process, log: list[str]) -> tuple[int, int]:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            log.append(line.decode())
            if "vault_listening" in log[-1]:
                started = json.loads(log[-1])
                return started["port"], started["ops_port"]
    raise AssertionError("".join(log))


async def _readiness(ops_port: int) -> tuple[int, str]:
    url = f"http://127.0.0.1:{ops_port}/readyz"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


async def test_migrate_serve_and_stop(premises: Premises) -> None:
    """A migrated vault is ready, answers its peers, logs no secret, and ends with 0."""
    await premises.migrate()
    grant = sign_install_grant(
        premises.identity_keys,
        now=datetime.now(UTC),
        jti="install-1",
        tenant_id="northwind",
        user_id="user-ada",
        state_sha256="0" * 64,
        source="direct",
    ).reveal()
    worker = premises.ca.issue("gateway-worker", premises.folder / "peers")
    edge = premises.ca.issue("gateway-edge", premises.folder / "peers")
    async with _serving(premises) as serving:
        address = f"127.0.0.1:{serving.port}"
        assert await _readiness(serving.ops_port) == (200, "ready\n")
        async with open_channel(address, edge, server="token-vault") as channel:
            installer = InstallServiceStub(channel)
            answer = await installer.StartInstall(pb.StartInstallRequest(grant=grant), timeout=5)
            assert answer.authorize_url.startswith("http://127.0.0.1:9/oauth/v2/authorize?client_")
            complete = pb.CompleteOAuthInstallRequest(
                grant=grant, code="canary-code", redirect_uri="https://interlock.example/x"
            )
            with pytest.raises(RemoteError) as refusal, remote_errors():
                await installer.CompleteOAuthInstall(complete, timeout=20)
            assert refusal.value.reason == "SLACK_UNAVAILABLE"
        async with open_channel(address, worker, server="token-vault") as channel:
            read = pb.ReadBotTokenRequest(grant=grant)
            with pytest.raises(RemoteError) as refusal, remote_errors():
                await TokenServiceStub(channel).ReadBotToken(read, timeout=5)
            assert refusal.value.reason == "INVALID_TOKEN"
    log = "".join(serving.log)
    assert "rpc_finished" in log
    for secret in ("canary-code", "canary-client-secret", grant):
        assert secret not in log


async def test_an_unmigrated_database_is_not_ready(premises: Premises) -> None:
    """The process starts, since Postgres may come later, but says that it cannot work."""
    async with _serving(premises) as serving:
        assert await _readiness(serving.ops_port) == (503, "DATABASE_UNAVAILABLE\n")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INTERLOCK_SLACK_CLIENT_IDD", "x"),
        ("INTERLOCK_LOG_LEVEL", "debug"),
        ("INTERLOCK_KMS", "none"),
        ("INTERLOCK_GRANT_PUBLIC_KEYS_FILE", "secret"),
        ("INTERLOCK_FINGERPRINT_KEY_FILE", "secret"),
        ("INTERLOCK_LOCAL_KEYSET_FILE", "link.json"),
        ("INTERLOCK_LOCAL_KEYSET_FILE", "secret"),
    ],
)
async def test_wrong_settings_stop_the_start(premises: Premises, variable: str, value: str) -> None:
    """KM-15, CF-05: what would loosen the vault is named, with exit code 78, and not quoted."""
    (premises.folder / "link.json").symlink_to(premises.folder / "keyset.json")
    if variable.endswith("_FILE"):
        value = str(premises.folder / value)
    code, stderr = await _run("serve", {**premises.environ, variable: value})
    assert code == 78
    assert f"interlock: {variable}: " in stderr
    assert "canary-client-secret" not in stderr


async def test_production_refuses_keys_in_a_file(premises: Premises) -> None:
    """KM-15: outside development the vault does not start on a key file."""
    plain = premises.urls.roles[VAULT_ROLE].reveal().partition("?")[0]
    environ = {
        **premises.environ,
        "INTERLOCK_ENVIRONMENT": "production",
        "INTERLOCK_SLACK_API_URL": "https://slack.com/api/",
        "INTERLOCK_SLACK_URL": "https://slack.com",
        "INTERLOCK_DATABASE_URL_FILE": premises.file("url", f"{plain}?sslmode=verify-full"),
    }
    code, stderr = await _run("serve", environ)
    assert code == 78
    assert "interlock: INTERLOCK_KMS: keys in a file are for development only" in stderr
