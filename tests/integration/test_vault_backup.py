"""The drill: back up, lose the database, restore, and trust only what Slack confirms."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from slack_sdk.oauth.installation_store import Bot

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import CONTOSO, GRID, NORTHWIND, House, ask, open_house, refusal
from interlock_client import VaultInstallationStore
from interlock_token_vault.adapters.checkpoints import Ed25519Signer, FileCheckpoints
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, Origin
from interlock_token_vault.domain.audit_log import (
    ChainHead,
    Span,
    export_head,
    export_line,
    export_tail,
)
from interlock_token_vault.domain.installation import InstallationId

TABLES = ("installation", "sealed_token", "wrapped_dek", "app_place", "app_record", "app_secret")
BOT = Bot(
    app_id="A11",
    team_id="T11",
    bot_token="xoxb-app",
    bot_id="B11",
    bot_user_id="U99",
    installed_at=1.5,
)


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


def _files(folder: Path) -> tuple[str, ...]:
    return ("--sealed", str(folder / "sealed.backup"), "--keys", str(folder / "keys.backup"))


async def _contents(house: House) -> list[list[str]]:
    contents: list[list[str]] = []
    for table in TABLES:
        reading = f"SELECT t::text FROM vault.{table} t ORDER BY 1"  # noqa: S608 - Our own names.
        contents.append([row[0] for row in await house.admin.fetch(reading)])
    return contents


async def _lose(house: House) -> None:
    """Lose everything that a backup holds."""
    await house.admin.execute(f"TRUNCATE {', '.join(f'vault.{each}' for each in TABLES)} CASCADE")


async def _fill(house: House) -> str:
    """Install three workspaces, and another app's; returns the second one's id."""
    await house.install("xoxb-northwind")
    contoso = await house.install("xoxb-contoso", CONTOSO, "contoso")
    await house.install("xoxb-grid", GRID)
    await VaultInstallationStore(house.channels["app/reports"]).async_save_bot(BOT)
    return contoso.installation.installation_id


async def _drill(house: House, folder: Path, *options: str) -> tuple[int | None, str, str]:
    return await house.cli("restore", *_files(folder), "--yes", *options)


def _purge_export(folder: Path, installation_id: str) -> str:
    """Write an audit export that says an installation was purged."""
    event = AuditEvent(
        "installation.purged",
        Origin("operator", "x"),
        installation_id=InstallationId(UUID(installation_id)),
    )
    now = datetime.now(UTC)
    records = AuditChain(uuid4()).extend([event], now)
    path = folder / "audit.ndjson"
    path.write_bytes(
        export_head(Span(None, now)) + export_line(records[0]) + export_tail(len(records))
    )
    return str(path)


async def test_the_drill(house: House, tmp_path: Path) -> None:
    """Everything is back byte for byte; what died or was purged since is not released."""
    contoso_id = await _fill(house)
    before = await _contents(house)
    assert (await house.cli("backup", *_files(tmp_path)))[0] == 0
    await _lose(house)
    del house.slack.living["xoxb-grid"]
    code, stdout, stderr = await _drill(
        house, tmp_path, "--audit", _purge_export(tmp_path, contoso_id)
    )
    assert (code, stderr) == (0, "")
    assert stdout.replace(", ", "\n", 3).splitlines() == [
        "4 installations were restored",
        "0 were there already",
        "0 have lost their key",
        "1 had been purged since.",
        "1 installations answer again.",
        "must install again: E0GRID 'Grid' (TOKEN_DEAD)",
    ]
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    assert (await refusal(house.read(house.slack_grant(GRID)))) == (Kind.PRECONDITION, "ON_HOLD")
    assert (await refusal(house.read(house.slack_grant(CONTOSO))))[1] == "INSTALLATION_NOT_FOUND"
    store = VaultInstallationStore(house.channels["app/reports"])
    bot = await store.async_find_bot(enterprise_id=None, team_id="T11")
    assert bot is not None
    assert bot.bot_token == "xoxb-app"
    for table, rows in zip(TABLES, await _contents(house), strict=True):
        assert set(rows) <= set(before[TABLES.index(table)])
    # A reinstall is what lifts the hold of a workspace whose token died.
    await house.install("xoxb-grid-2", GRID)
    assert (await house.read(house.slack_grant(GRID))).bot_token == "xoxb-grid-2"


async def test_a_backup_opens_nothing_by_itself(house: House, tmp_path: Path) -> None:
    """Two files of mode 0600, no token in either, and no wrapped key beside a sealed token."""
    await _fill(house)
    await house.cli("backup", *_files(tmp_path))
    sealed, keys = tmp_path / "sealed.backup", tmp_path / "keys.backup"
    for path in (sealed, keys):
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"xoxb" not in path.read_bytes()
    assert b"wrapped" not in sealed.read_bytes()
    assert b'"sealed"' not in keys.read_bytes().partition(b"\n")[2]
    assert len(await house.records("vault.backed_up")) == 2


async def test_what_is_there_already_stays(house: House, tmp_path: Path) -> None:
    """Restoring over a living vault changes nothing, and stops nobody."""
    await _fill(house)
    await house.cli("backup", *_files(tmp_path))
    await house.install("xoxb-northwind-2")
    before = await _contents(house)
    code, stdout, _ = await _drill(house, tmp_path)
    assert code == 0
    assert stdout.startswith("0 installations were restored, 4 were there already")
    assert await _contents(house) == before
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind-2"


async def test_a_dry_run_only_judges(house: House, tmp_path: Path) -> None:
    """It opens everything, writes nothing, and leaves no hold."""
    await _fill(house)
    await house.cli("backup", *_files(tmp_path))
    await _lose(house)
    code, stdout, _ = await house.cli("restore", *_files(tmp_path), "--dry-run")
    assert (code, stdout) == (0, "4 installations can be restored; 0 have lost their key.\n")
    assert await _contents(house) == [[]] * len(TABLES)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _cut_at_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _drop_a_row(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def _move(path: Path) -> None:
    head, rest = path.read_bytes().split(b"\n", 1)
    document = json.loads(head) | {"environment": "production"}
    path.write_bytes(json.dumps(document).encode() + b"\n" + rest)


@pytest.mark.parametrize("name", ["sealed.backup", "keys.backup"])
@pytest.mark.parametrize("damage", [_flip, _cut, _cut_at_a_line, _drop_a_row, _move])
async def test_a_backup_that_is_not_whole_is_refused(
    house: House, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """CL-04: truncated, flipped, or another environment's: refused before any write."""
    await house.install("xoxb-northwind")
    await house.cli("backup", *_files(tmp_path))
    await _lose(house)
    damage(tmp_path / name)
    code, stdout, stderr = await _drill(house, tmp_path)
    assert (code, stdout) == (1, "")
    assert "BACKUP_REFUSED" in stderr
    assert await _contents(house) == [[]] * len(TABLES)
    assert await house.records("vault.restore_started") == []


async def test_under_another_kek_a_backup_is_refused(
    cluster: ScratchDatabases, house: House, tmp_path: Path
) -> None:
    """CL-04: a vault whose KMS does not have the key writes nothing."""
    await house.install("xoxb-northwind")
    await house.cli("backup", *_files(tmp_path))
    async with open_house(cluster, tmp_path / "other") as other:
        code, stdout, stderr = await _drill(other, tmp_path)
        assert (code, stdout) == (1, "")
        assert "does not open under this vault's keys (BACKUP_REFUSED)" in stderr
        assert await _contents(other) == [[]] * len(TABLES)


async def test_halves_of_two_backups_restore_what_they_share(house: House, tmp_path: Path) -> None:
    """An installation without its key is told as lost, and is not written."""
    await house.install("xoxb-northwind")
    await house.cli("backup", *_files(tmp_path))
    keys = (tmp_path / "keys.backup").read_bytes()
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    await house.cli("backup", *_files(tmp_path))
    (tmp_path / "keys.backup").write_bytes(keys)
    await _lose(house)
    code, stdout, _ = await _drill(house, tmp_path)
    assert code == 0
    assert stdout.startswith("1 installations were restored, 0 were there already, 1 have lost")
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    assert (await refusal(house.read(house.slack_grant(CONTOSO))))[1] == "INSTALLATION_NOT_FOUND"


async def test_pieces_out_of_order_are_refused(house: House) -> None:
    """A piece that is missing or comes twice, or half a backup, restores nothing."""
    vault, restore_id = house.operator(), str(uuid4())

    async def stage(offset: int) -> None:
        await ask(
            vault.StageRestore(
                pb.StageRestoreRequest(
                    restore_id=restore_id, part=pb.BACKUP_PART_KEYS, offset=offset, chunk=b"abc"
                ),
                timeout=5,
            )
        )

    await stage(0)
    for offset in (0, 4):
        assert (await refusal(stage(offset)))[1] == "BACKUP_REFUSED"
    await stage(3)
    walk = vault.Restore(pb.RestoreRequest(restore_id=restore_id), timeout=5)
    assert (await refusal(ask(walk.read())))[1] == "BACKUP_REFUSED"


async def _sign_a_lost_record(house: House, age: timedelta) -> None:
    """Have a checkpoint name a record that the database does not have."""
    pem, folder = house.settings.audit_checkpoint_key_file, house.settings.audit_checkpoint_dir
    assert pem is not None
    assert folder is not None
    head = ChainHead(uuid4(), 7, bytes(32), datetime.now(UTC) - age)
    await FileCheckpoints(folder).append(Ed25519Signer.from_pem(pem).sign(head))


async def test_an_older_database_holds_the_vault(cluster: ScratchDatabases, tmp_path: Path) -> None:
    """PG-08: a vault that starts over last week's database waits for its operator."""
    async with open_house(cluster, tmp_path) as house:
        await house.install("xoxb-northwind")
        await house.install("xoxb-contoso", CONTOSO, "contoso")
        await _sign_a_lost_record(house, timedelta(minutes=1))
        del house.slack.living["xoxb-contoso"]
        settings = {"ops_listen": "127.0.0.1:0"}
        second = replace(house, settings=house.settings.model_copy(update=settings))
        async with second.serving():
            for workspace in (NORTHWIND, CONTOSO):
                assert (await refusal(second.read(second.slack_grant(workspace))))[1] == "ON_HOLD"
            assert len(await second.records("vault.held")) == 1
            code, stdout, _ = await second.cli("release-hold")
            assert code == 0
            assert stdout.splitlines() == [
                "1 installations answer again.",
                "must install again: T0CONTOSO 'Northwind' (TOKEN_DEAD)",
            ]
            assert (await second.read(second.slack_grant())).bot_token == "xoxb-northwind"
        # What an operator has confirmed does not hold the next start.
        third = replace(house, settings=house.settings.model_copy(update=settings))
        async with third.serving():
            assert (await third.read(third.slack_grant())).bot_token == "xoxb-northwind"


async def test_a_database_that_kept_up_starts_freely(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """A restart finds every signed record, and records of long ago do not matter."""
    async with open_house(cluster, tmp_path) as house:
        await house.install("xoxb-northwind")
        again: dict[str, Any] = {"ops_listen": "127.0.0.1:0"}
        for _ in range(2):
            next_one = replace(house, settings=house.settings.model_copy(update=again))
            async with next_one.serving():
                assert (await next_one.read(next_one.slack_grant())).bot_token == "xoxb-northwind"
            await _sign_a_lost_record(house, timedelta(days=40))
        assert await house.records("vault.held") == []
