"""The spool on a disk: sealed answers that outlive the process which got them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import FakeKms, ManualClock
from interlock_token_vault.adapters.spool import FileInstallSpool, FileSpool, open_spool
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import AnswerFacts, Chain
from interlock_token_vault.install_ports import SpooledInstall
from interlock_token_vault.rotation_ports import SealedAnswer, SealedPair, SpoolFull

KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
CHAIN = Chain(InstallationId(UUID(int=7)))
SLOT_BYTES = 16 * 1024


async def _answer(epoch: int) -> SealedAnswer:
    """Seal a pair as the keeper does."""
    keys = KmsKeys(FakeKms(), fingerprint_key=Secret("k" * 32), clock=ManualClock())
    wrapped, data_key = await keys.make(
        KeyContext("development", KEY.client_id, CHAIN.installation_id)
    )
    access = TokenContext(
        environment="development",
        key=KEY,
        installation_id=CHAIN.installation_id,
        user_id="",
        kind=TokenKind.BOT,
        slot=TokenSlot.ACCESS,
        dek_id=wrapped.dek_id,
        generation=2,
    )
    ends = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(hours=12)
    pair = SealedPair(
        await data_key.seal(Secret("xoxe.xoxb-1-canary"), access, ends),
        await data_key.seal(Secret("xoxe-1-canary"), replace(access, slot=TokenSlot.REFRESH), None),
    )
    facts = AnswerFacts(
        generation=1,
        base_ref=TokenRef("r1"),
        refresh_ref=pair.refresh.ref,
        dek_id=wrapped.dek_id,
        is_odd=False,
        is_doubtful=True,
    )
    return SealedAnswer(CHAIN, epoch, facts, pair)


def _files(folder: Path) -> list[Path]:
    """List what a spool holds, the oldest first."""
    return sorted(folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name a folder that is not there yet."""
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[FileSpool]:
    """Open a spool."""
    with open_spool(folder) as opened:
        yield opened


async def test_an_answer_outlives_its_process(folder: Path) -> None:
    """A restart finds what was written, whole and the oldest first, and frees what was reserved."""
    first, second = await _answer(1), await _answer(2)
    with open_spool(folder) as before:
        await (await before.reserve()).write(first)
        await (await before.reserve()).write(second)
        await before.reserve()
    with open_spool(folder) as after:
        left = await after.list_left()
        assert [answer for _, answer in left] == [first, second]
        assert len(_files(folder)) == len(left)
        for slot, _ in left:
            await slot.clear()
        assert await after.list_left() == []


async def test_space_is_on_the_disk_before_slack_is_asked(spool: FileSpool, folder: Path) -> None:
    """A reserved slot is a file of full size, for its owner alone, and an answer fits in."""
    slot = await spool.reserve()
    [path] = _files(folder)
    assert path.stat().st_blocks * 512 >= SLOT_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    await slot.write(await _answer(1))
    [path] = _files(folder)
    assert path.stat().st_size == SLOT_BYTES


async def test_a_spool_is_bounded(folder: Path, spool: FileSpool) -> None:
    """What does not fit is not asked for; what is cleared makes room."""
    assert isinstance(spool, FileSpool)
    small = FileSpool(folder, capacity=2)
    slots = [await small.reserve() for _ in range(2)]
    with pytest.raises(SpoolFull):
        await small.reserve()
    await slots[0].clear()
    await small.reserve()


async def test_no_token_stands_in_the_spool(spool: FileSpool, folder: Path) -> None:
    """I7: sealed bytes only."""
    await (await spool.reserve()).write(await _answer(1))
    [path] = _files(folder)
    assert b"canary" not in path.read_bytes()
    assert b"xox" not in path.read_bytes()


async def test_a_spool_is_one_process_alone(spool: FileSpool, folder: Path) -> None:
    """A second one would free the space that the first has reserved."""
    await spool.reserve()
    with pytest.raises(ConfigError, match="in use"), open_spool(folder):
        pass
    assert len(_files(folder)) == 1


async def test_what_cannot_be_read_keeps_nothing_else_back(folder: Path) -> None:
    """A broken file is put aside, an unreadable one left; the start and the others go on."""
    whole = await _answer(1)
    with open_spool(folder) as before:
        await (await before.reserve()).write(whole)
        await (await before.reserve()).write(await _answer(2))
    _, torn = _files(folder)
    torn.write_bytes(torn.read_bytes()[:400])
    (folder / "folder.answer").mkdir()
    (folder / "folder.install").mkdir()
    with open_spool(folder) as after:
        assert [answer for _, answer in await after.list_left()] == [whole]
    assert torn.with_suffix(".broken").exists()
    assert await FileInstallSpool(folder).list_left() == []


async def test_an_install_outlives_its_process(folder: Path, spool: FileSpool) -> None:
    """With who allowed it; one that a vault of before left says nobody."""
    assert await spool.list_left() == []
    sealed = await _answer(1)
    installation = Installation(
        id=CHAIN.installation_id,
        key=KEY,
        tenant_id=TenantId("northwind"),
        state=InstallationState.PENDING,
        generation=1,
        name="Northwind",
        bot_user_id="U0BOT",
        bot_scopes=("chat:write",),
        installed_at=None,
        installed_by="U0ADA",
    )
    installs = FileInstallSpool(folder)
    spooled = SpooledInstall("grant-1", installation, (sealed.pair.access, sealed.pair.refresh))
    await installs.put(spooled)
    [left] = await installs.list_left()
    assert (left, left.installation.installed_by) == (spooled, "U0ADA")
    [path] = _files(folder)
    body = json.loads(path.read_bytes().partition(b"\n")[2])
    assert body.pop("installed_by") == "U0ADA"
    path.write_bytes(_signed(json.dumps(body).encode()))
    [left] = await installs.list_left()
    assert (left.installation, left.installation.installed_by) == (installation, "")


def _signed(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body
