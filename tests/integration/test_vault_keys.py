"""The life of keys on Postgres and from the command line, with tokens being read meanwhile."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import (
    NORTHWIND,
    TIMEOUT_S,
    Away,
    House,
    ask,
    open_house,
    refusal,
)
from interlock_token_vault.adapters import kms_keys
from interlock_token_vault.adapters.local_kms import LocalKms, add_key, create_keyset
from interlock_token_vault.key_lifecycle import KekNotFound
from interlock_tokens.grants import Workspace


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


def _workspaces(count: int) -> list[Workspace]:
    return [replace(NORTHWIND, team_id=f"T0TEAM{number:03}") for number in range(count)]


async def _install_many(house: House, count: int) -> list[Workspace]:
    workspaces = _workspaces(count)
    for workspace in workspaces:
        await house.install(f"xoxb-{workspace.team_id}", workspace)
    return workspaces


async def _versions(house: House) -> dict[str, int]:
    rows = await house.admin.fetch(
        "SELECT kek_version, count(*) AS deks FROM vault.wrapped_dek GROUP BY 1"
    )
    return {row["kek_version"]: row["deks"] for row in rows}


async def _sealed(house: House) -> list[str]:
    rows = await house.admin.fetch("SELECT t::text FROM vault.sealed_token t ORDER BY 1")
    return [row[0] for row in rows]


async def test_a_workspace_that_joined_an_enterprise_is_rekeyed(house: House) -> None:
    """From the command: identity's claim and the tokens get the new name, or neither does."""
    installed = await house.install("xoxb-northwind")
    where = installed.installation.installation_id
    rekey = ("keys", "rekey", "--installation", where, "--enterprise", "E0GRID")
    assert "NOT_IN_ENTERPRISE" in (await house.cli(*rekey))[2]
    house.slack.living["xoxb-northwind"]["enterprise_id"] = "E0GRID"
    house.identity.error = Away()
    assert "IDENTITY_UNAVAILABLE" in (await house.cli(*rekey))[2]
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    house.identity.error = None
    for _ in range(2):
        assert (await house.cli(*rekey))[:2] == (0, "1 tokens were sealed under E0GRID.\n")
    joined = replace(NORTHWIND, enterprise_id="E0GRID")
    assert (await house.read(house.slack_grant(joined))).bot_token == "xoxb-northwind"
    assert house.identity.claims == {("E0GRID", "T0NORTHWIND"): "northwind"}
    assert (await refusal(house.read(house.slack_grant())))[1] == "INSTALLATION_NOT_FOUND"


async def test_a_kek_is_rotated_under_traffic(house: House) -> None:
    """KM-14: no read fails from promotion to the old key's end, and no ciphertext is touched."""
    workspaces = await _install_many(house, 60)
    sealed = await _sealed(house)
    house.kms.promote("fake-2")
    stop = asyncio.Event()

    async def reader(number: int) -> int:
        """Read all workspaces round and round; any failure is the test's."""
        reads = 0
        while not stop.is_set() or reads < 2 * len(workspaces):
            workspace = workspaces[(reads + number * 17) % len(workspaces)]
            released = await house.read(house.slack_grant(workspace))
            assert released.bot_token == f"xoxb-{workspace.team_id}"
            reads += 1
        return reads

    readers = [asyncio.create_task(reader(number)) for number in range(4)]
    code, stdout, stderr = await house.cli("keys", "rewrap")
    assert (code, stdout, stderr) == (0, "60 data keys were wrapped again.\n", "")
    house.kms.disable("fake-1")
    stop.set()
    assert min(await asyncio.gather(*readers)) >= 2 * len(workspaces)
    for workspace in workspaces:
        await house.read(house.slack_grant(workspace))
    assert await _versions(house) == {"fake-2": 60}
    assert await _sealed(house) == sealed
    assert len(await house.records("dek.rewrapped")) == 60


async def test_an_interrupted_rewrap_goes_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """CL-03: a dry run writes nothing; after Ctrl-C the next run finishes."""
    # The KMS holds its answer until the signal has ended the command, however slow that is.
    monkeypatch.setattr(kms_keys, "_KMS_BUDGET", timedelta(seconds=TIMEOUT_S))
    await _install_many(house, 3)
    house.kms.promote("fake-2")
    code, stdout, _ = await house.cli("keys", "rewrap", "--dry-run")
    assert (code, stdout) == (0, "3 data keys would be wrapped again.\n")
    assert await _versions(house) == {"fake-1": 3}
    assert await house.records("rewrap.started") == []
    house.kms.asked.clear()
    house.kms.gate.clear()
    process = await house.start_cli("keys", "rewrap")
    async with asyncio.timeout(TIMEOUT_S):
        await house.kms.asked.wait()
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == 130
    assert stderr.decode().endswith("interlock: stopped; what is done stays done\n")
    house.kms.gate.set()
    code, _, stderr_text = await house.cli("keys", "rewrap")
    assert (code, stderr_text) == (0, "")
    assert await _versions(house) == {"fake-2": 3}


async def test_a_second_rewrap_is_locked_out(house: House) -> None:
    """CL-03: whoever holds the lock, in this process or another, the second exits 75."""
    await house.install("xoxb-northwind")
    house.kms.promote("fake-2")
    await house.admin.execute("SELECT pg_advisory_lock(hashtext('vault re-wrap'))")
    code, stdout, stderr = await house.cli("keys", "rewrap")
    assert (code, stdout) == (75, "")
    assert stderr == "interlock: locked: Another re-wrap is under way (REWRAP_RUNNING)\n"
    await house.admin.execute("SELECT pg_advisory_unlock(hashtext('vault re-wrap'))")
    assert (await house.cli("keys", "rewrap"))[0] == 0


async def test_keys_are_listed_promoted_and_retired(house: House) -> None:
    """The operator's way through a rotation, by commands."""
    await house.install("xoxb-northwind")
    house.kms.promote("fake-2")
    await house.kms.make_primary("fake-1")
    assert (await house.cli("keys", "promote", "fake-2"))[0] == 0
    code, _, stderr = await house.cli("keys", "retire", "fake-1", "--yes")
    assert code == 1
    assert "KEK_IN_USE" in stderr
    assert (await house.cli("keys", "rewrap"))[0] == 0
    assert (await house.cli("keys", "retire", "fake-1", "--yes"))[0] == 0
    code, stdout, _ = await house.cli("keys", "list")
    assert code == 0
    assert [line.split() for line in stdout.splitlines()[1:]] == [["fake-2", "yes", "1"]]
    code, _, stderr = await house.cli("keys", "promote", "fake-9")
    assert (code, "KEK_NOT_FOUND" in stderr) == (2, True)
    actions = [
        row["action"]
        for row in await house.admin.fetch(
            "SELECT action FROM vault.audit_event WHERE action LIKE 'kek.%' ORDER BY at"
        )
    ]
    assert actions == ["kek.promoted", "kek.retired"]


async def test_a_data_key_is_rotated(house: House) -> None:
    """Every token of the installation under a new key, one row of keys as before."""
    installed = await house.install("xoxb-northwind")
    before = await house.admin.fetchval("SELECT dek_id FROM vault.wrapped_dek")
    installation_id = installed.installation.installation_id
    code, stdout, _ = await house.cli("keys", "rotate-dek", "--installation", installation_id)
    assert (code, stdout) == (0, "1 tokens were sealed under a new data key.\n")
    assert await house.admin.fetchval("SELECT dek_id FROM vault.wrapped_dek") != before
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    assert (await house.install("xoxb-2")).is_reinstall
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-2"


async def test_a_workspace_joins_an_enterprise(house: House) -> None:
    """Re-keyed once Slack says so; a read under the old name finds nothing."""
    installed = await house.install("xoxb-northwind")
    request = pb.RekeyInstallationRequest(
        installation_id=installed.installation.installation_id, enterprise_id="E0GRID"
    )
    assert await refusal(ask(house.operator().RekeyInstallation(request, timeout=10))) == (
        Kind.PRECONDITION,
        "NOT_IN_ENTERPRISE",
    )
    house.slack.living["xoxb-northwind"]["enterprise_id"] = "E0GRID"
    answer = await ask(house.operator().RekeyInstallation(request, timeout=10))
    assert answer.tokens == 1
    joined = replace(NORTHWIND, enterprise_id="E0GRID")
    assert (await house.read(house.slack_grant(joined))).bot_token == "xoxb-northwind"
    assert (await refusal(house.read(house.slack_grant())))[1] == "INSTALLATION_NOT_FOUND"


async def test_shredding_asks_first(house: House) -> None:
    """CL-05: without a terminal it takes --yes; then nothing is left that opens."""
    await house.install("xoxb-northwind")
    code, stdout, stderr = await house.cli("keys", "shred", "--team", "T0NORTHWIND")
    assert (code, stdout) == (2, "")
    assert stderr == "interlock: nobody is there to confirm; add --yes\n"
    code, stdout, _ = await house.cli("keys", "shred", "--team", "T0NORTHWIND", "--dry-run")
    assert code == 0
    assert "would be shredded" in stdout
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    assert (await house.cli("keys", "shred", "--team", "T0NORTHWIND", "--yes"))[0] == 0
    assert (await refusal(house.read(house.slack_grant())))[1] == "INSTALLATION_NOT_FOUND"
    for table in ("installation", "sealed_token", "wrapped_dek"):
        counting = f"SELECT count(*) FROM vault.{table}"  # noqa: S608 - Our own names.
        assert await house.admin.fetchval(counting) == 0
    assert len(await house.records("installation.purged")) == 1


async def test_the_switch_from_the_command_line(house: House) -> None:
    """Freeze everything, and resume."""
    await house.install("xoxb-northwind")
    assert (await house.cli("freeze", "--note", "leak"))[:2] == (0, "Everything is frozen.\n")
    assert (await refusal(house.read(house.slack_grant())))[1] == "RELEASES_FROZEN"
    assert (await house.cli("unfreeze", "--note", "over"))[0] == 0
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


async def test_without_the_scanner_role_keys_are_not_walked(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """A vault that was not given the role says what is missing."""
    async with open_house(cluster, tmp_path, scanner_database_url_file=None) as house:
        call = house.operator().ListKeys(pb.ListKeysRequest(), timeout=5)
        assert await refusal(ask(call)) == (Kind.PRECONDITION, "SCANNER_MISSING")


async def test_a_local_keyset_grows_and_shrinks_while_in_use(tmp_path: Path) -> None:
    """Keys added to the file are found without a restart; a retired one is put aside, not lost."""
    path = tmp_path / "keyset.json"
    create_keyset(path)
    kms = LocalKms.load(path, environment="development")
    assert add_key(path) == "local-2"
    assert await kms.list_versions() == ["local-1", "local-2"]
    assert await kms.find_primary() == "local-1"
    await kms.make_primary("local-2")
    assert await LocalKms.load(path, environment="development").find_primary() == "local-2"
    await kms.retire("local-1")
    document = json.loads(path.read_text())
    assert (list(document["keys"]), list(document["retired"])) == (["local-2"], ["local-1"])
    assert add_key(path) == "local-3"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KekNotFound):
        await kms.make_primary("local-1")


async def test_a_key_is_added_by_command(house: House, tmp_path: Path) -> None:
    """`keys add` names the new version; a file that others may read is refused."""
    path = tmp_path / "keyset.json"
    create_keyset(path)
    assert (await house.cli("keys", "add", "--keyset", str(path)))[:2] == (0, "local-2\n")
    path.chmod(0o644)
    code, _, stderr = await house.cli("keys", "add", "--keyset", str(path))
    assert (code, "mode 0600" in stderr) == (2, True)
