"""The identity process: migrate, serve, stop, and the ways it refuses to start."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import SubjectServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.database import DatabaseUrls, create_database, migrate
from interlock_chassis.errors import RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.migrations import DATABASE
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key

GRANTS = [Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT]


@dataclass
class Premises:
    """An empty database, and the environment of a process beside it."""

    folder: Path
    urls: DatabaseUrls
    environ: dict[str, str]
    ca: ThrowAwayCa

    def file(self, name: str, content: str) -> str:
        """Write a file and name its path."""
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    def migration_environ(self) -> dict[str, str]:
        """Set up `migrate`."""
        return {
            "INTERLOCK_ENVIRONMENT": "development",
            "INTERLOCK_DATABASE_URL_FILE": self.file("owner", self.urls.owner.reveal()),
        }


@pytest.fixture
async def premises(cluster: ScratchDatabases, tmp_path: Path) -> Premises:
    """Prepare everything that `serve` needs, and nothing that `migrate` makes."""
    urls = await create_database(
        cluster.admin_url,
        DATABASE,
        {role: Secret(uuid4().hex) for role in (DATABASE.owner, *DATABASE.roles)},
        database=f"interlock_identity_{uuid4().hex}",
    )
    ca = ThrowAwayCa.create(tmp_path / "ca")
    tls = ca.issue("identity", tmp_path / "tls")
    here = Premises(tmp_path, urls, {}, ca)
    grant_keys = json.dumps({"keys": [generate_ed25519_key("identity-1", GRANTS)]})
    public = Keyset.from_json(Secret(grant_keys), variable="KEYS").public()
    user_keys = json.dumps({"keys": [generate_hs256_key("user-1", [Family.SLACK_USER])]})
    url = here.file("url", urls.roles["interlock_identity"].reveal())
    here.environ = {
        "INTERLOCK_ENVIRONMENT": "development",
        "INTERLOCK_LISTEN": "127.0.0.1:0",
        "INTERLOCK_OPS_LISTEN": "127.0.0.1:0",
        "INTERLOCK_TLS_CA_FILE": str(tls.ca),
        "INTERLOCK_TLS_CERT_FILE": str(tls.cert),
        "INTERLOCK_TLS_KEY_FILE": str(tls.key),
        "INTERLOCK_DATABASE_URL_FILE": url,
        "INTERLOCK_MEMBERSHIP_DATABASE_URL_FILE": url,
        "INTERLOCK_AUTH_URL": "http://127.0.0.1:9",
        "INTERLOCK_GRANT_KEYS_FILE": here.file("grants.json", grant_keys),
        "INTERLOCK_GRANT_PUBLIC_KEYS_FILE": here.file("public.json", public),
        "INTERLOCK_USER_TOKEN_KEYS_FILE": here.file("user.json", user_keys),
    }
    return here


async def _start(command: str, environ: dict[str, str]) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_identity",
        command,
        env={**inherited, **environ},
        stderr=asyncio.subprocess.PIPE,
    )


async def _run(command: str, environ: dict[str, str]) -> tuple[int | None, str]:
    process = await _start(command, environ)
    _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@asynccontextmanager
async def _serving(premises: Premises) -> AsyncIterator[tuple[int, int]]:
    """Serve until the block ends; yields the gRPC port and the operations port."""
    process = await _start("serve", premises.environ)
    lines: list[str] = []
    try:
        ports = await _ports(process, lines)
        yield ports
        process.send_signal(signal.SIGTERM)
        _, rest = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    log = "".join(lines) + rest.decode()
    assert process.returncode == 0, log
    assert "process_stopped" in log


async def _ports(process: asyncio.subprocess.Process, lines: list[str]) -> tuple[int, int]:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            lines.append(line.decode())
            if "identity_listening" in lines[-1]:
                started = json.loads(lines[-1])
                return started["port"], started["ops_port"]
    raise AssertionError("".join(lines))


async def _readiness(ops_port: int) -> tuple[int, str]:
    url = f"http://127.0.0.1:{ops_port}/readyz"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


async def test_migrate_serve_and_stop(premises: Premises) -> None:
    """A migrated identity is ready, answers its peers, and ends with 0 on SIGTERM."""
    for _ in range(2):
        code, stderr = await _run("migrate", premises.migration_environ())
        assert code == 0, stderr
    worker = premises.ca.issue("gateway-worker", premises.folder / "worker")
    async with (
        _serving(premises) as (port, ops_port),
        open_channel(f"127.0.0.1:{port}", worker, server="identity") as channel,
    ):
        assert await _readiness(ops_port) == (200, "ready\n")
        request = pb.ResolveUserRequest(grant="x")
        with pytest.raises(RemoteError) as refusal, remote_errors():
            await SubjectServiceStub(channel).ResolveUser(request, timeout=5)
        assert refusal.value.reason == "INVALID_TOKEN"


async def test_an_unmigrated_database_is_not_ready(premises: Premises) -> None:
    """The process starts, since Postgres may come later, but says that it cannot work."""
    async with _serving(premises) as (_, ops_port):
        status, _ = await _readiness(ops_port)
        assert status == 503


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INTERLOCK_DEFAULT_AGNET", "docs/helper"),
        ("INTERLOCK_DEFAULT_AGENT", "helper"),
        ("INTERLOCK_GRANT_KEYS_FILE", "public.json"),
        ("INTERLOCK_USER_TOKEN_KEYS_FILE", "grants.json"),
    ],
)
async def test_wrong_settings_stop_the_start(premises: Premises, variable: str, value: str) -> None:
    """Unknown variables and keysets that cannot sign are named, with exit code 78."""
    if variable.endswith("_FILE"):
        value = str(premises.folder / value)
    code, stderr = await _run("serve", {**premises.environ, variable: value})
    assert code == 78
    assert f"interlock: {variable}: " in stderr
    assert '"k"' not in stderr


async def test_the_tables_are_as_specified_and_can_be_taken_back(premises: Premises) -> None:
    """Names of constraints and indexes are part of the contract; the service owns nothing."""
    await _run("migrate", premises.migration_environ())
    connection = await asyncpg.connect(premises.urls.owner.reveal())
    try:
        constraints = {
            row["conname"]
            for row in await connection.fetch(
                "SELECT conname FROM pg_constraint WHERE connamespace = 'identity'::regnamespace"
            )
        }
        indexes = {
            row["indexname"]
            for row in await connection.fetch(
                "SELECT indexname FROM pg_indexes WHERE schemaname = 'identity'"
            )
        }
        owners = {
            row["tableowner"]
            for row in await connection.fetch(
                "SELECT tableowner FROM pg_tables WHERE schemaname = 'identity'"
            )
        }
    finally:
        await connection.close()
    prefix = "work_app_slack_"
    assert constraints >= {
        f"{prefix}workspaces_client_team_unique",
        f"{prefix}workspaces_organization_fk",
        f"{prefix}workspaces_installed_by_user_fk",
        f"{prefix}account_link_codes_hash_unique",
        f"{prefix}account_link_codes_organization_fk",
        f"{prefix}account_link_codes_used_by_user_fk",
        f"{prefix}user_mappings_unique",
        f"{prefix}user_mappings_organization_fk",
        f"{prefix}user_mappings_user_fk",
    }
    assert indexes >= {
        f"{prefix}workspaces_tenant_idx",
        f"{prefix}workspaces_team_idx",
        f"{prefix}account_link_codes_lookup_idx",
        f"{prefix}account_link_codes_expires_at_idx",
        f"{prefix}user_mappings_user_idx",
    }
    assert owners == {"interlock_identity_owner"}
    await asyncio.to_thread(migrate, premises.urls.owner, DATABASE, "base")
    await asyncio.to_thread(migrate, premises.urls.owner, DATABASE)
