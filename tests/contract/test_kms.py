"""What a KMS promises, asked of the fake and of the one for development."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import Kms, WrappedKey
from interlock_token_vault.adapters.local_kms import LocalKms
from interlock_token_vault.adapters.memory import FakeKms
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled

DEK = Secret(bytes(range(32)))
PLACE = b"environment, app and installation"


@dataclass
class Stage:
    """A KMS, and what an administrator of it does."""

    kms: Kms
    promote: Callable[[str], Kms]
    disable: Callable[[str], Kms]


def _fake() -> Stage:
    kms = FakeKms()

    def promote(version: str) -> Kms:
        kms.promote(version)
        return kms

    def disable(version: str) -> Kms:
        kms.disable(version)
        return kms

    return Stage(kms, promote, disable)


def _local() -> Stage:
    # A keyset is read at the start: an administrator's change is a restart.
    keks = {"fake-1": Secret(secrets.token_bytes(32))}

    def promote(version: str) -> Kms:
        keks[version] = Secret(secrets.token_bytes(32))
        return LocalKms(keks, version)

    def disable(version: str) -> Kms:
        del keks[version]
        return LocalKms(keks, next(iter(keks), ""))

    return Stage(LocalKms(keks, "fake-1"), promote, disable)


@pytest.fixture(params=[_fake, _local], ids=["fake", "local"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Give a KMS with one key."""
    make: Callable[[], Stage] = request.param
    return make()


async def test_a_wrapped_key_unwraps_in_its_place(stage: Stage) -> None:
    """What was wrapped comes back, and names the key that wrapped it."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    assert wrapped.kek_version == "fake-1"
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
    rotated = stage.promote("fake-2")
    assert (await rotated.wrap(DEK, PLACE)).kek_version == "fake-2"
    assert await rotated.unwrap(wrapped, PLACE) == DEK


async def test_a_key_wrapped_by_one_version_is_not_unwrapped_as_another(stage: Stage) -> None:
    """The version stored beside a wrapped key cannot be swapped for another."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    rotated = stage.promote("fake-2")
    with pytest.raises(CannotOpen):
        await rotated.unwrap(replace(wrapped, kek_version="fake-2"), PLACE)


async def test_a_disabled_key_unwraps_nothing(stage: Stage) -> None:
    """KM-13: once its key is gone, a wrapped data key stays closed."""
    wrapped = await stage.kms.wrap(DEK, PLACE)
    stage.promote("fake-2")
    disabled = stage.disable("fake-1")
    with pytest.raises(KekDisabled):
        await disabled.unwrap(wrapped, PLACE)
