"""Scopes that come to differ from those asked for: who is told, and how often.

A real Postgres, the vault over mTLS gRPC, and a stand-in Slack and identity.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from interlock_chassis.database import open_pool
from interlock_chassis.telemetry import REGISTRY
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import CONTOSO, NORTHWIND, SCOPES, House, open_house
from interlock_token_vault.__main__ import running
from interlock_token_vault.adapters.postgres_scopes import PostgresScopes
from interlock_token_vault.domain.installation import ClientId
from interlock_token_vault.install_ports import IdentityUnavailable
from interlock_token_vault.reporting import GrantedScopes, ScopeReporting

PATIENCE_S = 30
WIDER = (*SCOPES, "im:read", "im:write")
# As the one that is there, in another workspace.
_ANOTHER = """
INSERT INTO vault.installation
SELECT (jsonb_populate_record(i, jsonb_build_object(
    'installation_id', gen_random_uuid(), 'team_id', $1::text))).*
FROM vault.installation i ORDER BY created_at LIMIT 1
"""
Told = list[tuple[str, tuple[str, ...], tuple[str, ...]]]


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


@dataclass
class Heard:
    """Identity, as it hears of scopes."""

    told: Told = field(default_factory=list)
    is_away: bool = False

    async def report_scopes(self, granted: GrantedScopes) -> None:
        """Note what is said."""
        if self.is_away:
            raise IdentityUnavailable
        self.told.append((granted.key.team_id, granted.missing, granted.extra))

    def take(self) -> Told:
        """Return what was said since the last time."""
        told, self.told = self.told, []
        return told


async def _install(house: House, token: str, scopes: Sequence[str]) -> None:
    code = f"code.{next(house.numbers)}"
    house.slack.give(code, token, NORTHWIND, scope=",".join(scopes))
    await house.complete(house.install_grant(), code)


def _counted() -> tuple[float | None, float | None]:
    name = "interlock_vault_installations_with_scope_drift"
    missing, extra = (
        REGISTRY.get_sample_value(name, {"kind": kind}) for kind in ("missing", "extra")
    )
    return missing, extra


async def test_identity_is_told_once_of_each_change(house: House) -> None:
    """Of each install, of what it lacks or has too many of, and when another is asked for."""
    async with open_pool(house.settings.database_url_file, application="test") as pool:
        heard = Heard()

        def asking(*scopes: str) -> ScopeReporting:
            return ScopeReporting(
                store=PostgresScopes(pool),
                reports=heard,
                client_id=ClientId(house.settings.slack_client_id),
                asked=scopes,
            )

        await house.install("xoxb-contoso", CONTOSO, "contoso")
        await _install(house, "xoxb-northwind", WIDER)
        await asking(*SCOPES).run()
        assert sorted(heard.take()) == [
            ("T0CONTOSO", (), ()),
            ("T0NORTHWIND", (), ("im:read", "im:write")),
        ]
        assert _counted() == (0, 1)
        await asking(*reversed(SCOPES)).run()
        assert heard.take() == []

        more = asking(*WIDER, "files:write")
        heard.is_away = True
        await more.run()
        heard.is_away = False
        await more.run()
        assert sorted(heard.take()) == [
            ("T0CONTOSO", ("files:write", "im:read", "im:write"), ()),
            ("T0NORTHWIND", ("files:write",), ()),
        ]
        assert _counted() == (2, 0)

        # Identity forgets with each claim, so that it is told again of the same.
        await _install(house, "xoxb-northwind", WIDER)
        await more.run()
        assert heard.take() == [("T0NORTHWIND", ("files:write",), ())]
        await house.uninstall(CONTOSO)
        await more.run()
        assert (heard.take(), _counted()) == ([], (1, 0))


async def test_identity_is_told_of_all_at_once(house: House) -> None:
    """However many workspaces there are, none waits for the next round."""
    teams = [f"T0MANY{number}" for number in range(60)]
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    for team in teams:
        await house.admin.execute(_ANOTHER, team)
    async with open_pool(house.settings.database_url_file, application="test") as pool:
        heard = Heard()
        await ScopeReporting(
            store=PostgresScopes(pool),
            reports=heard,
            client_id=ClientId(house.settings.slack_client_id),
            asked=SCOPES,
        ).run()
    assert sorted(team for team, _, _ in heard.take()) == sorted(["T0CONTOSO", *teams])


async def test_a_process_tells_of_other_scopes_when_it_starts(house: House) -> None:
    """Where the app asks for one more by now, identity hears of every older install."""
    wordy = [f"scope:{number}" for number in range(101)]
    await _install(house, "xoxb-northwind", [*SCOPES, *wordy, "x" * 200])
    changes = {"slack_bot_scopes": (*SCOPES, "files:write"), "ops_listen": "127.0.0.1:0"}
    async with running(house.settings.model_copy(update=changes), house.kms):
        async with asyncio.timeout(PATIENCE_S):
            while not house.identity.scopes:  # noqa: ASYNC110 - No event tells.
                await asyncio.sleep(0.02)
    [(team_id, missing, extra)] = house.identity.scopes
    assert (team_id, missing) == ("T0NORTHWIND", ["files:write"])
    # No answer of Slack's is too long to be told of.
    assert extra == sorted(wordy)[:100]
