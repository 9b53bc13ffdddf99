"""What tests need of a KMS: the stand-in's key, and a real OpenBao where one is installed."""

import asyncio
import os
import shutil
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

PROJECT = "interlock-test"
KEY = f"projects/{PROJECT}/locations/europe-west3/keyRings/vault/cryptoKeys/dek"
ROOT_TOKEN = "example-root-token"  # noqa: S105 - Of a server that lives for one test.

_UNSEAL_KEY = b"Unseal Key: "
_LAST_LINE = b"Development mode should NOT be used"
_START_S = 30


def find_bao() -> str | None:
    """Find OpenBao's program beside this Python, or where programs are."""
    return shutil.which("bao", path=str(Path(sys.executable).parent)) or shutil.which("bao")


@dataclass(frozen=True)
class OpenBao:
    """A running OpenBao with a transit engine and one key, all in memory.

    Attributes:
        url: Where it is.
        ca_file: Who signed its certificate; None without TLS.
    """

    url: str
    ca_file: Path | None
    unseal_key: str

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, namespace: str = ""
    ) -> dict[str, Any]:
        """Call its API as root; return the answer's `data` or `auth`, or the whole of it."""
        headers = {"X-Vault-Token": ROOT_TOKEN, "X-Vault-Namespace": namespace}
        trust = ssl.create_default_context(cafile=self.ca_file)
        async with (
            aiohttp.ClientSession() as http,
            http.request(
                method, f"{self.url}/v1/{path}", json=body or {}, headers=headers, ssl=trust
            ) as response,
        ):
            response.raise_for_status()
            answer = await response.json() if response.status == HTTPStatus.OK else {}
        found: dict[str, Any] = answer.get("data") or answer.get("auth") or answer
        return found

    async def make_token(self, policy: str, namespace: str = "") -> str:
        """Make a token that may do what a policy says, and nothing else."""
        await self.call("POST", "sys/policies/acl/vault", {"policy": policy}, namespace)
        rights = {"policies": ["vault"], "no_default_policy": True}
        made = await self.call("POST", "auth/token/create", rights, namespace)
        return str(made["client_token"])

    async def seal(self) -> None:
        """Have it refuse everything."""
        await self.call("POST", "sys/seal")

    async def unseal(self) -> None:
        """Have it serve again."""
        await self.call("POST", "sys/unseal", {"key": self.unseal_key})


@asynccontextmanager
async def serving_openbao(
    folder: Path, *, key: str = "dek", tls: bool = False
) -> AsyncIterator[OpenBao]:
    """Serve an OpenBao until the block ends.

    Args:
        folder: What it may write to.
        key: A transit key to make, of kind aes256-gcm96.
        tls: Serve with a certificate of its own authority.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """
    program = find_bao()
    if program is None:
        raise RuntimeError("bao is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    arguments = ["-dev-tls", f"-dev-tls-cert-dir={folder}"] if tls else []
    process = await asyncio.create_subprocess_exec(
        program,
        "server",
        "-dev",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address={address}",
        "-dev-no-store-token",
        *arguments,
        env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_START_S):
            unseal_key = await _read_start(process)
        draining = asyncio.create_task(_drain(process))
        ca_file = folder / "vault-ca.pem" if tls else None
        bao = OpenBao(f"{'https' if tls else 'http'}://{address}", ca_file, unseal_key)
        await bao.call("POST", "sys/mounts/transit", {"type": "transit"})
        await bao.call("POST", f"transit/keys/{key}", {"type": "aes256-gcm96"})
        yield bao
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await draining


async def _read_start(process: asyncio.subprocess.Process) -> str:
    """Read what it says until it serves; return its unseal key."""
    lines: list[bytes] = []
    unseal_key = ""
    while process.stdout and (line := await process.stdout.readline()):
        lines.append(line)
        if line.startswith(_UNSEAL_KEY):
            unseal_key = line.removeprefix(_UNSEAL_KEY).decode().strip()
        if line.startswith(_LAST_LINE):
            return unseal_key
    raise RuntimeError(b"".join(lines[-20:]).decode(errors="replace"))


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Take what it says, so that it never waits for a reader."""
    while process.stdout and await process.stdout.readline():
        pass
