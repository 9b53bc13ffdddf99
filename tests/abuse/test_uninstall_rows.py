"""Uninstalls that are late, doubled, forged or partial: one test id per row of the catalogue.

The real vault over mTLS gRPC with a real Postgres, asked as the worker asks it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import (
    CONTOSO,
    GRID,
    NORTHWIND,
    TIMEOUT_S,
    Away,
    House,
    ask,
    open_house,
    refusal,
)
from interlock_tokens.grants import AdminPurpose, Workspace

STALE = pb.REVOCATION_OUTCOME_STALE
PURGED = pb.REVOCATION_OUTCOME_PURGED
ALREADY = pb.REVOCATION_OUTCOME_ALREADY_PURGED
OTHER_GRID = replace(GRID, enterprise_id="E0OTHER")
ABSENT = (Kind.NOT_FOUND, "INSTALLATION_NOT_FOUND")
TABLES = ("installation", "sealed_token", "wrapped_dek", "uninstall")


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


async def _deliver(house: House, event: str, workspace: Workspace = NORTHWIND) -> int:
    bots = ["U0BOT"] if event == "tokens_revoked" else []
    return (await house.revocation(event, workspace, bots=bots)).outcome


async def _left(house: House) -> dict[str, int]:
    return {
        table: await house.admin.fetchval(f"SELECT count(*) FROM vault.{table}")  # noqa: S608 - Our own names.
        for table in TABLES
    }


@pytest.mark.parametrize("event", [pytest.param("app_uninstalled", id="EV-54"), "tokens_revoked"])
async def test_an_event_older_than_the_install_purges_nothing(house: House, event: str) -> None:
    """The event of the installation before arrives after the reinstall: 'stale_uninstall'."""
    await house.install("xoxb-1")
    house.slack.remove_app("T0NORTHWIND")
    assert await _deliver(house, "app_uninstalled") == PURGED
    await house.install("xoxb-2")
    assert await _deliver(house, event) == STALE
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-2"
    assert house.identity.claims == {("", "T0NORTHWIND"): "northwind"}
    (judged,) = await house.records("revocation.judged")
    assert judged["outcome"] == "stale_uninstall"
    assert judged["actor"] == "gateway-worker"


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(["app_uninstalled", "tokens_revoked"], id="EV-55"),
        ["tokens_revoked", "app_uninstalled"],
        ["app_uninstalled", "app_uninstalled"],
        ["tokens_revoked", "tokens_revoked", "app_uninstalled"],
    ],
)
async def test_a_doubled_end_is_one_purge(house: House, order: list[str]) -> None:
    """Any order, any number: one purge, nothing left of the key, the claim released."""
    await house.install("xoxb-1")
    await house.install("xoxb-contoso", CONTOSO)
    house.slack.remove_app("T0NORTHWIND")
    outcomes = [await _deliver(house, each) for each in order]
    assert outcomes == [PURGED] + [ALREADY] * (len(order) - 1)
    assert len(await house.records("installation.purged")) == 1
    assert await _left(house) == {
        "installation": 1,
        "sealed_token": 1,
        "wrapped_dek": 1,
        "uninstall": 0,
    }
    assert house.identity.claims == {("", "T0CONTOSO"): "northwind"}
    assert await refusal(house.read(house.slack_grant())) == ABSENT


async def test_both_events_at_the_same_moment_are_one_purge(house: House) -> None:
    """EV-55 again, with nobody waiting for the other."""
    await house.install("xoxb-1")
    house.slack.remove_app("T0NORTHWIND")
    events = ["app_uninstalled", "tokens_revoked"] * 3
    outcomes = await asyncio.gather(*(_deliver(house, each) for each in events))
    assert outcomes.count(PURGED) == 1
    assert set(outcomes) == {PURGED, ALREADY}
    assert len(await house.records("installation.purged")) == 1


@pytest.mark.parametrize("users", [pytest.param(["U0ADA"], id="EV-56")])
async def test_revoked_users_leave_the_bot_alone(house: House, users: list[str]) -> None:
    """Only user ids: the bot is not even probed."""
    await house.install("xoxb-1")
    applied = await house.revocation("tokens_revoked", users=users)
    assert (applied.outcome, applied.users_purged) == (STALE, 0)
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-1"
    assert await house.records("token.probed") == []


@pytest.mark.parametrize("workspace", [pytest.param(GRID, id="EV-57")])
async def test_an_enterprise_takes_no_other_along(house: House, workspace: Workspace) -> None:
    """The event names the Enterprise only; another one's installation answers as before."""
    await house.install("xoxb-grid", workspace)
    await house.install("xoxb-other", OTHER_GRID)
    house.slack.remove_app("E0GRID")
    assert await _deliver(house, "app_uninstalled", workspace) == PURGED
    assert await refusal(house.read(house.slack_grant(workspace))) == ABSENT
    assert (await house.read(house.slack_grant(OTHER_GRID))).bot_token == "xoxb-other"


# Who may ask, and with what.


@pytest.mark.parametrize("event_type", ["app_mention", "message", "command"])
async def test_another_events_grant_ends_nothing(house: House, event_type: str) -> None:
    """A mention's grant reads a token; it does not ask for a purge."""
    await house.install("xoxb-1")
    house.slack.remove_app("T0NORTHWIND")
    assert await refusal(house.revocation(event_type)) == (Kind.FORBIDDEN, "PURPOSE_NOT_GRANTED")
    assert (await _left(house))["installation"] == 1


@pytest.mark.parametrize("purpose", sorted(set(AdminPurpose) - {AdminPurpose.UNINSTALL}))
async def test_another_purposes_grant_uninstalls_nothing(
    house: House, purpose: AdminPurpose
) -> None:
    """An administrator's grant is good for exactly its purpose."""
    await house.install("xoxb-1")
    request = pb.UninstallRequest(grant=house.admin_grant(purpose))
    refused = await refusal(ask(house.tokens().Uninstall(request, timeout=TIMEOUT_S)))
    assert refused == (Kind.FORBIDDEN, "PURPOSE_NOT_GRANTED")
    assert house.slack.uninstalled == []


async def test_an_events_grant_is_no_administrators(house: House) -> None:
    """A thief in edge signs slackGrants; with one of them nothing can be uninstalled."""
    await house.install("xoxb-1")
    request = pb.UninstallRequest(grant=house.slack_grant(event_type="app_uninstalled"))
    refused = await refusal(ask(house.tokens().Uninstall(request, timeout=TIMEOUT_S)))
    assert refused == (Kind.UNAUTHENTICATED, "INVALID_TOKEN")
    assert house.slack.uninstalled == []


async def test_edge_may_ask_for_neither(house: House) -> None:
    """Both are the worker's to ask; whoever faces the internet is refused before the grant."""
    tokens = house.tokens("gateway-edge")
    calls = (
        tokens.Uninstall(
            pb.UninstallRequest(grant=house.admin_grant(AdminPurpose.UNINSTALL)), timeout=TIMEOUT_S
        ),
        tokens.ApplyRevocation(
            pb.ApplyRevocationRequest(grant=house.slack_grant()), timeout=TIMEOUT_S
        ),
    )
    for call in calls:
        assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")


# The button.


async def test_the_button_ends_the_app_at_slack_and_here(house: House) -> None:
    """Slack's own record shows the end; nothing of the key is left, and the log says who."""
    await house.install("xoxb-1")
    await house.uninstall()
    assert house.slack.uninstalled == ["T0NORTHWIND"]
    assert set((await _left(house)).values()) == {0}
    assert house.identity.claims == {}
    (purged,) = await house.records("installation.purged")
    assert (purged["subject"], purged["purpose"]) == ("user-ada", "uninstall")
    await house.uninstall()
    assert house.slack.uninstalled == ["T0NORTHWIND"]


async def test_a_claim_that_identity_could_not_release_goes_with_a_later_event(
    house: House,
) -> None:
    """The purge stands while identity is away; whatever comes next repairs the claim."""
    await house.install("xoxb-1")
    house.identity.error = Away()
    await house.uninstall()
    assert house.identity.claims
    house.identity.error = None
    assert await _deliver(house, "app_uninstalled") == ALREADY
    assert house.identity.claims == {}
    assert (
        await house.admin.fetchval("SELECT count(*) FROM vault.tombstone WHERE released_at IS NULL")
        == 0
    )
