"""Installs that go wrong at Slack, at another tenant, or on the way: one test id per row.

The real vault over mTLS gRPC with a real Postgres; edge's pages for the same
rows are in test_edge_rows.py.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from interlock_chassis.errors import Kind, RemoteError
from interlock_cli.data_folder import choose_ports
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import NORTHWIND, House, open_house, refusal

T = TypeVar("T")

TABLES = ("installation", "sealed_token", "wrapped_dek")


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with a spool and nothing installed."""
    async with open_house(cluster, tmp_path, spool_dir=tmp_path / "spool") as house:
        yield house


def _kept(spool: Path) -> list[Path]:
    return list(spool.glob("*.install"))


async def _until(look: Callable[[], Awaitable[list[T]]]) -> list[T]:
    """Look again until there is something, for 60 s at the most."""
    async with asyncio.timeout(60):
        # A disk and a database wake nobody.
        while not (found := await look()):  # noqa: ASYNC110 - As above.
            await asyncio.sleep(0.05)
    return found


async def _rows(house: House) -> list[list[str]]:
    return [
        [row[0] for row in await house.admin.fetch(f"SELECT t::text FROM vault.{table} t")]  # noqa: S608 - Our own names.
        for table in TABLES
    ]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"access_token": None}, id="OA-09"),
        {"team": None},
        {"token_type": "user"},
        {"app_id": ""},
        {"bot_user_id": "nobody"},
        {"refresh_token": "xoxe-1"},
    ],
)
async def test_an_answer_of_no_use_stores_nothing(house: House, changes: dict[str, Any]) -> None:
    """Nothing is left of it, its token is ended, and the attempt says why."""
    house.slack.give("code", "xoxb-1", NORTHWIND, **changes)
    refused = await refusal(house.complete(house.install_grant(), "code"))
    assert refused == (Kind.UNAVAILABLE, "SLACK_ANSWER_UNUSABLE")
    assert await _rows(house) == [[], [], []]
    assert house.slack.revoked == ([] if "access_token" in changes else ["xoxb-1"])
    (dropped,) = await house.records("install.dropped")
    assert dropped["outcome"] == "SLACK_ANSWER_UNUSABLE"


@pytest.mark.parametrize(
    ("token", "revoked"),
    [pytest.param("xoxb-1", [], id="OA-10"), ("xoxb-2", ["xoxb-2"])],
)
async def test_another_tenants_workspace_stays_as_it_is(
    house: House, token: str, revoked: list[str]
) -> None:
    """409; the row is byte-identical, a token that is stored already lives, another is ended."""
    await house.install("xoxb-1")
    before = await _rows(house)
    refused = await refusal(house.install(token, NORTHWIND, "contoso"))
    assert refused == (Kind.CONFLICT, "WORKSPACE_TAKEN")
    assert house.slack.revoked == revoked
    assert await _rows(house) == before
    assert len(await house.records("token.probed")) == len(revoked)
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-1"


@pytest.mark.parametrize(
    ("scope", "missing", "extra"),
    [
        pytest.param("chat:write", "commands", [], id="OA-11"),
        ("", "chat:write,commands", []),
        ("chat:write,commands,admin", "", ["admin"]),
    ],
)
async def test_other_scopes_than_asked_are_noticed(
    house: House, scope: str, missing: str, extra: list[str]
) -> None:
    """Fewer end the install and are named; more are stored, and told to whoever asks."""
    house.slack.give("code", "xoxb-1", NORTHWIND, scope=scope)
    grant = house.install_grant()
    if not missing:
        assert list((await house.complete(grant, "code")).extra_scopes) == extra
        return
    with pytest.raises(RemoteError) as refused:
        await house.complete(grant, "code")
    assert refused.value.reason == "SCOPES_MISSING"
    assert refused.value.metadata["missing_scopes"] == missing
    assert await _rows(house) == [[], [], []]
    assert house.slack.revoked == ["xoxb-1"]


@pytest.mark.parametrize("tokens", [pytest.param(["xoxb-1", "xoxb-1"], id="OA-13"), ["a", "b"]])
async def test_two_tenants_at_the_same_moment_are_one_winner(
    house: House, tokens: list[str]
) -> None:
    """One installation, one claim, one 409; the winner's token lives, whichever that is."""
    tenants = ("northwind", "contoso")
    settled = await asyncio.gather(
        *(
            house.install(f"xoxb-{token}", NORTHWIND, tenant)
            for token, tenant in zip(tokens, tenants, strict=True)
        ),
        return_exceptions=True,
    )
    lost = [each for each in settled if isinstance(each, BaseException)]
    assert [getattr(each, "reason", "") for each in lost] == ["WORKSPACE_TAKEN"]
    assert [len(rows) for rows in await _rows(house)] == [1, 1, 1]
    released = await house.read(house.slack_grant())
    assert released.bot_token in house.slack.living
    (owner,) = house.identity.claims.values()
    assert await house.admin.fetchval("SELECT tenant_id FROM vault.installation") == owner


@pytest.mark.parametrize("is_restarted", [pytest.param(True, id="OA-15"), False])
async def test_a_token_that_the_database_does_not_take_is_kept_and_installed(
    cluster: ScratchDatabases, tmp_path: Path, *, is_restarted: bool
) -> None:
    """The commit fails after Slack's answer: the token lies sealed on our disk until it holds.

    No token is in the file, and after a restart the next process installs it.
    """
    spool = tmp_path / "spool"
    async with (
        open_house(cluster, tmp_path, spool_dir=spool) as house,
        AsyncExitStack() as stack,
    ):
        house.slack.give("code", "xoxb-canary", NORTHWIND)
        grant = house.install_grant()
        # Only the row of the token is refused; all before it is committed.
        await house.admin.execute(
            "ALTER TABLE vault.sealed_token ADD CONSTRAINT away CHECK (false) NOT VALID"
        )
        completing = asyncio.create_task(refusal(house.complete(grant, "code")))
        (kept,) = await _until(lambda: asyncio.to_thread(_kept, spool))
        assert b"xoxb-canary" not in kept.read_bytes()
        if not is_restarted:
            await house.admin.execute("ALTER TABLE vault.sealed_token DROP CONSTRAINT away")
            with pytest.raises(AssertionError, match="not refused"):
                await completing
        else:
            assert await completing == (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            await house.admin.execute("ALTER TABLE vault.sealed_token DROP CONSTRAINT away")
            # The next process has the disk of this one, which is as good as ended.
            spool = Path(shutil.copytree(spool, tmp_path / "disk"))
            ops = f"127.0.0.1:{choose_ports({'ops': 0})['ops']}"
            changes = {"spool_dir": spool, "ops_listen": ops}
            after = replace(house, settings=house.settings.model_copy(update=changes))
            await stack.enter_async_context(after.serving())
            await _until(lambda: after.records("install.activated"))
        assert (await house.read(house.slack_grant())).bot_token == "xoxb-canary"
        assert _kept(spool) == []
        assert house.slack.revoked == []
