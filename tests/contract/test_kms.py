"""What a KMS promises, asked of the fake, of the one for development, and of the remote ones.

Cloud KMS is the stand-in, reached by Google's own client; OpenBao is a real one.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from yarl import URL

from interlock_chassis.clock import SystemClock
from interlock_chassis.secret import Secret
from interlock_sandbox.kms.crypto_keys import State
from interlock_sandbox.kms.server import serving_kms
from interlock_sandbox.kms.testing import KEY, ROOT_TOKEN, serving_openbao
from interlock_token_vault.adapters.gcp_kms import open_gcp_kms
from interlock_token_vault.adapters.kms_keys import Kms, WrappedKey
from interlock_token_vault.adapters.local_kms import LocalKms
from interlock_token_vault.adapters.memory import FakeKms
from interlock_token_vault.adapters.openbao_kms import TransitKey, open_openbao_kms
from interlock_token_vault.adapters.remote_kms import RemoteKms
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled

DEK = Secret(bytes(range(32)))
PLACE = b"environment, app and installation"


@dataclass
class Stage:
    """A KMS, and what an administrator of it does.

    Attributes:
        first, second: The versions that wrap before and after `rotate`.
    """

    kms: Kms
    first: str
    second: str
    rotate: Callable[[], Awaitable[Kms]]
    disable_first: Callable[[], Awaitable[Kms]]


@asynccontextmanager
async def _fake(_: Path) -> AsyncIterator[Stage]:
    kms = FakeKms()

    async def rotate() -> Kms:
        kms.promote("fake-2")
        return kms

    async def disable_first() -> Kms:
        kms.disable("fake-1")
        return kms

    yield Stage(kms, "fake-1", "fake-2", rotate, disable_first)


@asynccontextmanager
async def _local(_: Path) -> AsyncIterator[Stage]:
    # A keyset is read at the start: an administrator's change is a restart.
    keks = {"local-1": Secret(secrets.token_bytes(32))}

    async def rotate() -> Kms:
        keks["local-2"] = Secret(secrets.token_bytes(32))
        return LocalKms(keks, "local-2")

    async def disable_first() -> Kms:
        del keks["local-1"]
        return LocalKms(keks, "local-2")

    yield Stage(LocalKms(keks, "local-1"), "local-1", "local-2", rotate, disable_first)


@asynccontextmanager
async def _gcp(_: Path) -> AsyncIterator[Stage]:
    first, second = (f"{KEY}/cryptoKeyVersions/{number}" for number in "12")
    async with (
        serving_kms([KEY]) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), KEY) as attempt,
    ):
        kms = RemoteKms(attempt, SystemClock())

        async def rotate() -> Kms:
            cloud.keys.create_version(KEY)
            cloud.keys.set_primary(KEY, "2")
            return kms

        async def disable_first() -> Kms:
            cloud.keys.set_state(first, State.DISABLED)
            return kms

        yield Stage(kms, first, second, rotate, disable_first)


@asynccontextmanager
async def _openbao(folder: Path) -> AsyncIterator[Stage]:
    token_file = folder / "token"
    token_file.write_text(ROOT_TOKEN)
    key = TransitKey("transit", "dek")
    async with (
        serving_openbao(folder) as bao,
        open_openbao_kms(URL(bao.url), key, token_file=token_file, ca_file=bao.ca_file) as attempt,
    ):
        kms = RemoteKms(attempt, SystemClock())

        async def rotate() -> Kms:
            await bao.call("POST", "transit/keys/dek/rotate")
            return kms

        async def disable_first() -> Kms:
            await bao.call("POST", "transit/keys/dek/config", {"min_decryption_version": 2})
            return kms

        yield Stage(kms, "transit/keys/dek:v1", "transit/keys/dek:v2", rotate, disable_first)


@pytest.fixture(
    params=[
        pytest.param(_fake, id="fake"),
        pytest.param(_local, id="local"),
        pytest.param(_gcp, id="gcp"),
        pytest.param(_openbao, id="openbao", marks=pytest.mark.openbao),
    ]
)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """Give a KMS with one key."""
    make: Callable[[Path], AbstractAsyncContextManager[Stage]] = request.param
    async with make(tmp_path) as made:
        yield made


async def test_a_wrapped_key_unwraps_in_its_place(stage: Stage) -> None:
    """What was wrapped comes back, and names the key that wrapped it."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    assert wrapped.kek_version == stage.first
    assert DEK.reveal() not in wrapped.wrapped
    assert await stage.kms.unwrap(wrapped, PLACE) == DEK


async def test_wrapping_twice_gives_different_bytes(stage: Stage) -> None:
    """Equal data keys cannot be told to be equal."""
    first, second = await stage.kms.wrap(DEK, PLACE), await stage.kms.wrap(DEK, PLACE)
    assert first.wrapped != second.wrapped


async def test_another_place_does_not_unwrap(stage: Stage) -> None:
    """KM-04: a wrapped key copied to another installation stays closed."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    for other in (b"", PLACE + b"x", PLACE[:-1]):
        with pytest.raises(CannotOpen):
            await stage.kms.unwrap(wrapped, other)


async def test_a_changed_wrapped_key_does_not_unwrap(stage: Stage) -> None:
    """Every flipped bit, every cut and every addition is refused."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    size = len(wrapped.wrapped)
    changed = [bytearray(wrapped.wrapped) for _ in range(size * 8)]
    for bit, each in enumerate(changed):
        each[bit // 8] ^= 1 << (bit % 8)
    cut = [wrapped.wrapped[:length] for length in range(size)]
    for other in (*map(bytes, changed), *cut, wrapped.wrapped + b"\0"):
        with pytest.raises(CannotOpen):
            await stage.kms.unwrap(replace(wrapped, wrapped=other), PLACE)


async def test_an_unknown_key_version_is_a_disabled_one(stage: Stage) -> None:
    """KM-13: a version that the KMS does not have is a matter for people, not for retries."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    with pytest.raises(KekDisabled):
        await stage.kms.unwrap(WrappedKey("unknown", wrapped.wrapped), PLACE)


async def test_an_older_key_still_unwraps_after_a_rotation(stage: Stage) -> None:
    """Promoting a key changes what is wrapped from now on, and nothing that was."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    rotated = await stage.rotate()
    assert (await rotated.wrap(DEK, PLACE)).kek_version == stage.second
    assert await rotated.unwrap(wrapped, PLACE) == DEK


async def test_a_key_wrapped_by_one_version_is_not_unwrapped_as_another(stage: Stage) -> None:
    """The version stored beside a wrapped key cannot be swapped for another."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    rotated = await stage.rotate()
    with pytest.raises(CannotOpen):
        await rotated.unwrap(replace(wrapped, kek_version=stage.second), PLACE)


async def test_a_disabled_key_unwraps_nothing(stage: Stage) -> None:
    """KM-13: once its key is gone, a wrapped data key stays closed."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    await stage.rotate()
    disabled = await stage.disable_first()
    with pytest.raises(KekDisabled):
        await disabled.unwrap(wrapped, PLACE)
