"""`interlock identity`, against a running identity."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from interlock_cli.__main__ import app
from interlock_cli.identity_house import House, open_house
from interlock_cli.scratch_databases import ScratchDatabases


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Start identity with one linked user."""
    async with open_house(cluster, tmp_path) as house:
        await house.claim()
        await house.redeem("user_mia", await house.code())
        yield house


async def _interlock(house: House, *arguments: str, tls: str = "operator") -> Result:
    """Run the command as the operator, in a thread of its own as it has a loop of its own."""
    files = house.tls[tls]
    folder = files.cert.parent / "for-the-operator"
    folder.mkdir(exist_ok=True)
    for name, path in (("ca.crt", files.ca), ("operator.crt", files.cert)):
        (folder / name).write_bytes(path.read_bytes())
    (folder / "operator.key").write_bytes(files.key.read_bytes())
    (folder / "operator.key").chmod(0o600)
    place = ("--address", f"127.0.0.1:{house.identity.port}", "--tls-dir", str(folder))
    return await asyncio.to_thread(
        CliRunner().invoke, app, ["identity", *arguments, *place], catch_exceptions=False
    )


def _last(done: Result) -> str:
    """Return the last line; identity logs to the same place here."""
    return done.output.splitlines()[-1]


async def test_an_operator_forgets_a_user(house: House) -> None:
    """The links are gone, and the command says how many; a second time there are none."""
    done = await _interlock(house, "forget-user", "user_mia", "--yes")
    assert (done.exit_code, _last(done)) == (0, "user_mia is forgotten; 1 link was removed.")
    assert await house.count("work_app_slack_user_mappings") == 0
    again = await _interlock(house, "forget-user", "user_mia", "--yes")
    assert _last(again) == "user_mia is forgotten; 0 links were removed."


async def test_an_operator_forgets_an_organization(house: House) -> None:
    """Its claims go with it."""
    done = await _interlock(house, "forget-organization", "northwind", "--yes")
    assert (done.exit_code, _last(done)) == (0, "northwind is forgotten; 1 link was removed.")
    assert await house.count("work_app_slack_workspaces") == 0


async def test_an_operator_reads_the_record(house: House) -> None:
    """One JSON object a line, newest first, as many as asked for, and nothing else of it."""
    done = await _interlock(house, "audit", "--limit", "2", "--organization", "northwind")
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.output.splitlines() if '"number"' in line]
    assert [line["event"] for line in lines] == ["user.linked", "workspace.claimed"]
    assert lines[0]["user_id"] == "user_mia"
    nothing = await _interlock(house, "audit", "--event", "user.unlinked")
    assert '"number"' not in nothing.output


async def test_nothing_is_forgotten_unasked(house: House) -> None:
    """Without a yes, and with another certificate, nothing happens."""
    unasked = await _interlock(house, "forget-user", "user_mia")
    assert unasked.exit_code == 2
    stranger = await _interlock(house, "forget-user", "user_mia", "--yes", tls="gateway-worker")
    assert stranger.exit_code == 1
    assert "CALLER_NOT_ALLOWED" in stranger.output
    assert await house.count("work_app_slack_user_mappings") == 1
