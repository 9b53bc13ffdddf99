"""Data keys: unwrapped once for all who want them, kept for a while, and never for longer."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters import kms_keys
from interlock_token_vault.adapters.kms_keys import KmsKeys, WrappedKey
from interlock_token_vault.adapters.local_kms import LocalKms, create_keyset
from interlock_token_vault.adapters.memory import FakeKms, ManualClock, counting_ids
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedToken,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.vault import KmsUnavailable

CONTEXT = KeyContext("development", ClientId("client"), InstallationId(UUID(int=7)))


class Stage:
    """Keys over a fake KMS, with one token sealed under one of them."""

    def __init__(self, ttl: timedelta = kms_keys.MAX_TTL) -> None:
        self.kms = FakeKms()
        self.clock = ManualClock()
        self.keys = KmsKeys(
            self.kms,
            fingerprint_key=Secret("k" * 32),
            clock=self.clock,
            new_id=counting_ids(),
            ttl=ttl,
        )

    async def seal(self, token: str = "xoxb-1") -> tuple[WrappedDek, SealedToken, TokenContext]:
        """Seal a token under a new data key."""
        wrapped, data_key = await self.keys.make(CONTEXT)
        place = TokenContext(
            environment="development",
            key=InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM"),
            installation_id=CONTEXT.installation_id,
            user_id="",
            kind=TokenKind.BOT,
            slot=TokenSlot.ACCESS,
            dek_id=wrapped.dek_id,
            generation=1,
        )
        return wrapped, await data_key.seal(Secret(token), place, None), place

    @property
    def unwraps(self) -> int:
        """How often the KMS was asked to unwrap."""
        return self.kms.faults.calls["kms.unwrap"]


async def test_a_token_opens_with_the_key_it_was_sealed_under() -> None:
    """Sealing and opening meet through the stored, wrapped key."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    data_key = stage.keys.take(wrapped, CONTEXT)
    assert data_key.source == "kms"
    assert await data_key.open(sealed, place) == Secret("xoxb-1")


async def test_a_key_is_kept_for_its_time_and_not_longer() -> None:
    """Within 300 s the KMS is asked once; after them again."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    stage.clock.advance(timedelta(seconds=299))
    assert stage.keys.take(wrapped, CONTEXT).source == "cache"
    stage.clock.advance(timedelta(seconds=1))
    assert stage.keys.take(wrapped, CONTEXT).source == "kms"


async def test_a_key_is_used_a_thousand_times_at_most() -> None:
    """The thousand-and-first use asks the KMS again, however busy the workspace."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    for _ in range(1000):
        await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert stage.unwraps == 1
    await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert stage.unwraps == 2


async def test_no_time_to_keep_means_no_cache() -> None:
    """With a time of 0 every read asks the KMS."""
    stage = Stage(ttl=timedelta(0))
    wrapped, sealed, place = await stage.seal()
    for _ in range(3):
        await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert stage.unwraps == 3


@pytest.mark.parametrize("ttl", [timedelta(seconds=301), timedelta(seconds=-1)])
def test_a_longer_time_is_refused(ttl: timedelta) -> None:
    """No setting lets a disabled key serve for longer than 300 s."""
    with pytest.raises(ValueError, match="300 s"):
        Stage(ttl=ttl)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w, c: (replace(w, wrapped=w.wrapped[::-1]), c), id="bytes"),
        pytest.param(lambda w, c: (replace(w, kek_version="fake-9"), c), id="version"),
        pytest.param(lambda w, c: (w, replace(c, environment="production")), id="context"),
        pytest.param(
            lambda w, c: (w, replace(c, installation_id=InstallationId(UUID(int=8)))),
            id="installation",
        ),
    ],
)
async def test_a_warm_cache_skips_no_check_of_the_kms(
    change: Callable[[WrappedDek, KeyContext], tuple[WrappedDek, KeyContext]],
) -> None:
    """Other bytes, another version or another context miss the cache and meet the KMS."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert stage.keys.take(*change(wrapped, CONTEXT)).source == "kms"


async def test_the_cache_forgets_what_was_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of keys in memory is bounded; the busy ones stay."""
    monkeypatch.setattr(kms_keys, "_MAX_KEYS", 2)
    stage = Stage()
    sealed = [await stage.seal() for _ in range(3)]
    for wrapped, token, place in (sealed[0], sealed[1], sealed[0], sealed[2]):
        await stage.keys.take(wrapped, CONTEXT).open(token, place)
    sources = [stage.keys.take(wrapped, CONTEXT).source for wrapped, _, _ in sealed]
    assert sources == ["cache", "kms", "cache"]


async def test_readers_at_the_same_time_ask_the_kms_once() -> None:
    """A thousand cold readers of one workspace are one question to the KMS."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    keys = [stage.keys.take(wrapped, CONTEXT) for _ in range(50)]
    tokens = await asyncio.gather(*(key.open(sealed, place) for key in keys))
    assert stage.unwraps == 1
    assert tokens == [Secret("xoxb-1")] * 50


async def test_a_failed_question_is_not_kept() -> None:
    """When the KMS is back the next reader is served."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    stage.kms.faults.fail_next("kms.unwrap", KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert await stage.keys.take(wrapped, CONTEXT).open(sealed, place) == Secret("xoxb-1")


class SilentKms(FakeKms):
    """A KMS that never answers."""

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return await super().unwrap(key, bound)


async def test_a_silent_kms_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """KM-12: no reader waits for a KMS longer than its budget of 2 s."""
    assert timedelta(seconds=2) == kms_keys._KMS_BUDGET
    monkeypatch.setattr(kms_keys, "_KMS_BUDGET", timedelta(milliseconds=10))
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    silent = KmsKeys(SilentKms(), fingerprint_key=Secret("k" * 32), clock=stage.clock)
    with pytest.raises(KmsUnavailable):
        await silent.take(wrapped, CONTEXT).open(sealed, place)


@pytest.mark.parametrize("size", [0, 16, 33])
async def test_a_data_key_of_another_size_is_no_key(size: int) -> None:
    """KM-11: what the KMS answers is checked before it is used or kept."""
    stage = Stage()
    wrapped, sealed, place = await stage.seal()
    stage.kms.answer_with(bytes(size))
    with pytest.raises(CannotOpen):
        await stage.keys.take(wrapped, CONTEXT).open(sealed, place)
    assert stage.keys.take(wrapped, CONTEXT).source == "kms"


def test_fingerprints_name_tokens_without_showing_them() -> None:
    """Equal tokens have equal fingerprints, under our own key only, 128 bits long."""
    stage, other = (
        Stage(),
        KmsKeys(FakeKms(), fingerprint_key=Secret("o" * 32), clock=ManualClock()),
    )
    ref = stage.keys.ref(Secret("xoxb-1"))
    assert ref == stage.keys.ref(Secret("xoxb-1"))
    assert ref != stage.keys.ref(Secret("xoxb-2"))
    assert ref != other.ref(Secret("xoxb-1"))
    assert len(ref) == 32


# The keyset file of development.


def _write(path: Path, keys: dict[str, bytes], *, primary: str = "local-1") -> Path:
    encoded = {version: base64.b64encode(key).decode() for version, key in keys.items()}
    path.write_text(json.dumps({"primary": primary, "keys": encoded}))
    path.chmod(0o600)
    return path


async def test_a_created_keyset_is_private_and_loads(tmp_path: Path) -> None:
    """What `create_keyset` writes is readable by its owner alone, and is never overwritten."""
    path = tmp_path / "keyset.json"
    create_keyset(path)
    assert path.stat().st_mode & 0o777 == 0o600
    kms = LocalKms.load(path, environment="development")
    wrapped = await kms.wrap(Secret(bytes(32)), b"place")
    again = LocalKms.load(path, environment="development")
    assert await again.unwrap(wrapped, b"place") == Secret(bytes(32))
    with pytest.raises(FileExistsError):
        create_keyset(path)


def test_production_refuses_keys_in_a_file(tmp_path: Path) -> None:
    """KM-15: whoever reads the file opens everything, so only development may use it."""
    path = tmp_path / "keyset.json"
    create_keyset(path)
    for environment in ("production", "", "staging"):
        with pytest.raises(ConfigError, match="development only"):
            LocalKms.load(path, environment=environment)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o400, 0o700, 0o620])
def test_a_file_of_another_mode_is_refused(tmp_path: Path, mode: int) -> None:
    """KM-15: a keyset that others could read, or that is not plainly ours, stops the start."""
    path = tmp_path / "keyset.json"
    create_keyset(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="0600"):
        LocalKms.load(path, environment="development")


def test_a_link_is_refused(tmp_path: Path) -> None:
    """KM-15: a link could be pointed elsewhere between two starts."""
    create_keyset(tmp_path / "keyset.json")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "keyset.json")
    with pytest.raises(ConfigError, match="links are refused"):
        LocalKms.load(link, environment="development")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, or nothing, stops the start by name."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="INTERLOCK_LOCAL_KEYSET_FILE"):
            LocalKms.load(path, environment="development")


@pytest.mark.parametrize("key", [bytes(31) + b"", b"x" * 31, b"x" * 33, b"", bytes(32)])
def test_a_key_of_the_wrong_size_or_all_zero_is_refused(tmp_path: Path, key: bytes) -> None:
    """KM-15: 31 bytes, 33 bytes and 32 zeros are no keys."""
    path = _write(tmp_path / "keyset.json", {"local-1": key})
    with pytest.raises(ConfigError, match=r"32 bytes|all zero"):
        LocalKms.load(path, environment="development")


def test_a_primary_key_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A keyset must hold the key that it calls its primary."""
    path = _write(tmp_path / "keyset.json", {"local-1": b"x" * 32}, primary="local-2")
    with pytest.raises(ConfigError, match="primary"):
        LocalKms.load(path, environment="development")


@pytest.mark.parametrize(
    "document", ["", "null", "[]", '{"keys": {}}', '{"primary": "a", "keys": {"a": "!"}}', "{"]
)
def test_what_is_no_keyset_is_refused_without_being_quoted(tmp_path: Path, document: str) -> None:
    """A file of another kind stops the start, and its content stays where it is."""
    path = tmp_path / "keyset.json"
    path.write_text(document)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as refusal:
        LocalKms.load(path, environment="development")
    assert refusal.value.variable == "INTERLOCK_LOCAL_KEYSET_FILE"
    assert refusal.value.__cause__ is None
