"""Cloud KMS by Google's own client: what is believed, what is asked again, what is final."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from yarl import URL

from interlock_chassis.clock import SystemClock
from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_sandbox.kms.crypto_keys import State
from interlock_sandbox.kms.server import KmsStandIn, serving_kms
from interlock_sandbox.kms.testing import KEY
from interlock_sandbox.kms.trouble import Fault
from interlock_token_vault.adapters.gcp_kms import open_gcp_kms
from interlock_token_vault.adapters.kms_keys import Kms, WrappedKey
from interlock_token_vault.adapters.remote_kms import RemoteKms
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

DEK = Secret(bytes(range(32)))
PLACE = b"environment, app and installation"
FIRST = f"{KEY}/cryptoKeyVersions/1"


@dataclass
class Stage:
    """A KMS as the vault uses it, and the stand-in that it reaches."""

    kms: Kms
    cloud: KmsStandIn

    def calls(self, method: str) -> list[str]:
        """List how the calls of a method ended."""
        return [row["code"] for row in self.cloud.trouble.rows(method)]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a KMS with one key."""
    async with (
        serving_kms([KEY]) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), KEY) as attempt,
    ):
        kms = RemoteKms(attempt, SystemClock(), pauses=(timedelta(0), timedelta(0)))
        yield Stage(kms, cloud)


async def test_what_is_sent_is_checked_and_routed(stage: Stage) -> None:
    """Calls name the key alone, and carry the header that Google routes by."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    await stage.kms.unwrap(wrapped, PLACE)
    assert [(row["method"], row["name"]) for row in stage.cloud.trouble.rows()] == [
        ("Encrypt", KEY),
        ("Decrypt", KEY),
    ]
    assert all("cryptoKeys" in row["routing"] for row in stage.cloud.trouble.rows())


@pytest.mark.parametrize("kind", ["wrong_crc", "unverified", "other_key", "unavailable"])
async def test_a_bad_answer_to_wrapping_is_discarded(stage: Stage, kind: str) -> None:
    """What arrived wrong is not stored; a good answer to the second or third question is."""
    stage.cloud.trouble.add("Encrypt", Fault(kind), 2)
    wrapped = await stage.kms.wrap(DEK, PLACE)
    assert wrapped.kek_version == FIRST
    assert len(stage.calls("Encrypt")) == 3
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK


@pytest.mark.parametrize("kind", ["wrong_crc", "unavailable"])
async def test_a_bad_answer_to_unwrapping_is_discarded(stage: Stage, kind: str) -> None:
    """A data key that arrived wrong is used for nothing."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    stage.cloud.trouble.add("Decrypt", Fault(kind), 2)
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK
    assert len(stage.calls("Decrypt")) == 3
    stage.cloud.trouble.add("Decrypt", Fault(kind), 3)
    with pytest.raises(KmsUnavailable):
        await stage.kms.unwrap(wrapped, PLACE)
    assert len(stage.calls("Decrypt")) == 6


@pytest.mark.parametrize("size", [16, 33])
async def test_another_data_key_with_right_checksums_is_none(stage: Stage, size: int) -> None:
    """Even a KMS that answers with another plaintext cannot have it taken for ours."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    stage.cloud.trouble.add("Decrypt", Fault("other_plaintext", size=size))
    with pytest.raises(CannotOpen):
        await stage.kms.unwrap(wrapped, PLACE)
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK


async def test_a_key_that_may_not_be_used_is_not_asked_again(stage: Stage) -> None:
    """A missing permission, a disabled and a destroyed version are matters for people."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    keys = stage.cloud.keys
    stage.cloud.trouble.add("Decrypt", Fault("permission_denied"))
    await _refuse_to_unwrap(stage, wrapped)
    keys.set_state(FIRST, State.DISABLED)
    await _refuse_to_unwrap(stage, wrapped)
    keys.set_state(FIRST, State.ENABLED)
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK
    keys.destroy(FIRST)
    await _refuse_to_unwrap(stage, wrapped)
    with pytest.raises(KekDisabled):
        await stage.kms.wrap(DEK, PLACE)
    not_enabled = "FAILED_PRECONDITION"
    assert stage.calls("Decrypt") == ["PERMISSION_DENIED", not_enabled, "OK", not_enabled]
    assert stage.calls("Encrypt") == ["OK", not_enabled]


async def _refuse_to_unwrap(stage: Stage, wrapped: WrappedKey) -> None:
    with pytest.raises(KekDisabled):
        await stage.kms.unwrap(wrapped, PLACE)


async def test_a_key_that_is_not_there_is_a_disabled_one() -> None:
    """A key that was deleted, or never made, stops reads without retries."""
    other = KEY.replace("/dek", "/other")
    async with (
        serving_kms([KEY]) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), other) as kms,
    ):
        with pytest.raises(KekDisabled):
            await kms.wrap(DEK, PLACE)
        assert len(cloud.trouble.rows()) == 1


async def test_a_ciphertext_of_another_key_does_not_open() -> None:
    """What another key of the same project wrapped is refused by the KMS itself."""
    other = KEY.replace("/dek", "/other")
    async with (
        serving_kms([KEY, other]) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), KEY) as ours,
        open_gcp_kms(URL(f"http://{cloud.address}"), other) as theirs,
    ):
        wrapped = await theirs.wrap(DEK, PLACE)
        with pytest.raises(KekDisabled):
            await ours.unwrap(wrapped, PLACE)
        relabelled = WrappedKey(FIRST, wrapped.wrapped)
        with pytest.raises(CannotOpen):
            await ours.unwrap(relabelled, PLACE)
        assert cloud.trouble.rows()[-1]["code"] == "INVALID_ARGUMENT"


async def test_another_primary_is_recorded_when_it_has_an_effect(stage: Stage) -> None:
    """Rotation is eventual: the recorded version is the one that wrapped, not the one told."""
    stage.cloud.keys.propagation_s = 3600
    stage.cloud.keys.create_version(KEY)
    stage.cloud.keys.set_primary(KEY, "2")
    wrapped = await stage.kms.wrap(DEK, PLACE)
    assert wrapped.kek_version == FIRST
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK


async def test_a_late_answer_within_the_budget_is_taken(stage: Stage) -> None:
    """A slow KMS is used; only a silent one is given up."""
    stage.cloud.trouble.add("Encrypt", Fault("delay", seconds=0.3))
    assert (await stage.kms.wrap(DEK, PLACE)).kek_version == FIRST


async def test_no_data_key_is_written_down(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """With everything at DEBUG, Google's client still does not log what it sends."""
    caplog.set_level(logging.DEBUG)
    wrapped = await stage.kms.wrap(DEK, PLACE)
    await stage.kms.unwrap(wrapped, PLACE)
    written = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert not [line for line in written if "plaintext" in line]


_WRAP = """
import asyncio, logging, sys
from yarl import URL
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.gcp_kms import open_gcp_kms

async def main():
    async with open_gcp_kms(URL(sys.argv[1]), sys.argv[2]) as kms:
        await kms.unwrap(await kms.wrap(Secret(bytes(range(32))), b""), b"")

asyncio.run(main())
"""


async def test_googles_own_logging_switch_does_not_write_data_keys_down(stage: Stage) -> None:
    """GOOGLE_SDK_PYTHON_LOGGING_SCOPE has Google's libraries log requests; not these."""
    scope = "google.cloud.kms_v1.services.key_management_service.transports.grpc_asyncio"
    for each in ("google", scope):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _WRAP,
            f"http://{stage.cloud.address}",
            KEY,
            env={**os.environ, "GOOGLE_SDK_PYTHON_LOGGING_SCOPE": each},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        written, _ = await process.communicate()
        assert process.returncode == 0, written
        assert b"plaintext" not in written
        assert b"AAECAwQFBgc" not in written


def test_only_a_vault_that_uses_it_loads_googles_client() -> None:
    """The other KMS do without its second and its 40 MB."""
    loaded = (
        "import interlock_token_vault.__main__, sys; print('google.cloud.kms_v1' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


async def test_without_credentials_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A vault that could not speak for itself at Google stops, by name and without quoting."""
    path = tmp_path / "credentials.json"
    path.write_text('{"type": "canary-credentials"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(ConfigError, match="no Google credentials") as refusal:
        async with open_gcp_kms(URL("https://cloudkms.googleapis.com"), KEY):
            raise AssertionError("it opened")
    assert "canary" not in str(refusal.value)


async def test_google_itself_is_reached_over_tls_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the machine's credentials a channel opens that never falls back to plaintext."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "credentials.json"
    account = {
        "type": "service_account",
        "project_id": "interlock-test",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "vault@interlock-test.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:9/token",
    }
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    async with serving_kms([KEY]) as cloud:
        url = URL(f"https://{cloud.address}")
        async with open_gcp_kms(url, KEY) as attempt:
            with pytest.raises(KmsUnavailable):
                await RemoteKms(attempt, SystemClock()).wrap(DEK, PLACE)
        assert cloud.trouble.rows() == []


@dataclass
class Process:
    """A stand-in in a process of its own."""

    process: asyncio.subprocess.Process
    address: str

    async def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def _process(folder: Path, address: str = "127.0.0.1:0") -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_sandbox.kms",
        f"--listen={address}",
        "--control=127.0.0.1:0",
        f"--key={KEY}",
        f"--state={folder / 'kms.json'}",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            started = json.loads(await process.stderr.readline())
        yield Process(process, started["address"])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_it_answers(kms: Kms) -> float:
    """Ask until the KMS answers; return how long that took, in seconds."""
    started = time.monotonic()
    while True:
        try:
            await kms.wrap(DEK, PLACE)
        except KmsUnavailable as error:
            # As a reader that comes again when it was told to.
            await asyncio.sleep((error.retry_after or timedelta(0)).total_seconds())
        else:
            return time.monotonic() - started


async def _fail(kms: Kms, times: int) -> float:
    """Have calls fail; return how long the slowest took, in seconds."""
    slowest = 0.0
    for _ in range(times):
        started = time.monotonic()
        with pytest.raises(KmsUnavailable):
            await kms.wrap(DEK, PLACE)
        slowest = max(slowest, time.monotonic() - started)
    return slowest


async def test_a_crashed_kms_is_used_again_soon_after_it_is_back(tmp_path: Path) -> None:
    """KM-12: while it is away calls fail within 2 s; within 5 s of its return they succeed."""
    async with (
        _process(tmp_path) as first,
        open_gcp_kms(URL(f"http://{first.address}"), KEY) as attempt,
    ):
        kms = RemoteKms(attempt, SystemClock())
        wrapped = await kms.wrap(DEK, PLACE)
        await first.kill()
        assert await _fail(kms, 12) < 2
        async with _process(tmp_path, first.address):
            assert await _until_it_answers(kms) < 5
            assert await kms.unwrap(wrapped, PLACE) == DEK


async def test_a_stopped_kms_is_used_again_soon_after_it_goes_on(tmp_path: Path) -> None:
    """KM-12: the same for one that takes connections and calls, and answers nothing."""
    async with (
        _process(tmp_path) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), KEY) as attempt,
    ):
        kms = RemoteKms(attempt, SystemClock())
        await kms.wrap(DEK, PLACE)
        cloud.process.send_signal(signal.SIGSTOP)
        slowest = await asyncio.gather(*(_fail(kms, 1) for _ in range(5)))
        assert max(slowest) < 2
        assert await _fail(kms, 1) < 0.1
        cloud.process.send_signal(signal.SIGCONT)
        assert await _until_it_answers(kms) < 5
