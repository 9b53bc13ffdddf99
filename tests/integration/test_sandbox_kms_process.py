"""The Cloud KMS stand-in as a process: its arguments, its signals, what it keeps."""

import asyncio
import json
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_sandbox.kms.testing import KEY
from interlock_token_vault.adapters.gcp_kms import open_gcp_kms

DEK = Secret(bytes(range(32)))
LOOPBACK = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_sandbox.kms",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def _serving(*arguments: str) -> AsyncIterator[dict[str, Any]]:
    """Serve until the block ends, then stop by SIGTERM."""
    process = await _start(*arguments)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            started = json.loads(await process.stderr.readline())
        yield started
        process.send_signal(signal.SIGTERM)
        stdout, stderr = await process.communicate()
        assert (process.returncode, stdout) == (0, b"")
        assert json.loads(stderr)["event"] == "kms_stopped"
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_keys_outlive_the_process(tmp_path: Path) -> None:
    """With --state a restarted stand-in opens what it wrapped, and nobody else reads its keys."""
    arguments = (*LOOPBACK, f"--key={KEY}", f"--state={tmp_path / 'kms.json'}")
    async with (
        _serving(*arguments) as started,
        open_gcp_kms(URL(f"http://{started['address']}"), KEY) as kms,
    ):
        wrapped = await kms.wrap(DEK, b"place")
    assert stat.S_IMODE((tmp_path / "kms.json").stat().st_mode) == 0o600
    async with (
        _serving(*arguments) as started,
        open_gcp_kms(URL(f"http://{started['address']}"), KEY) as kms,
    ):
        assert await kms.unwrap(wrapped, b"place") == DEK


async def test_a_port_is_not_shared() -> None:
    """A second process on the same port would get half of the calls; it is refused instead."""
    async with _serving(*LOOPBACK, f"--key={KEY}") as started:
        process = await _start(
            f"--listen={started['address']}", "--control=127.0.0.1:0", f"--key={KEY}"
        )
        _, stderr = await process.communicate()
    assert process.returncode == 78
    assert b"interlock: --listen: cannot listen there" in stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*LOOPBACK, "--key=dek"), 78),
        (LOOPBACK, 2),
        (("--listen=0.0.0.0:0", "--control=127.0.0.1:0", f"--key={KEY}"), 2),
        (("--listen=127.0.0.1:x", "--control=127.0.0.1:0", f"--key={KEY}"), 2),
    ],
)
async def test_wrong_arguments_are_refused(arguments: tuple[str, ...], code: int) -> None:
    """It serves this machine only, and keys that Google would take."""
    process = await _start(*arguments)
    _, stderr = await process.communicate()
    assert process.returncode == code, stderr
