"""Moving workspaces in: a bot token, or a connection at Nango, that exists already.

The real vault over mTLS gRPC with a real Postgres, the sandbox's Nango and Slack.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from yarl import URL

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import TIMEOUT_S, House, ask, open_house, refusal
from interlock_sandbox.nango.testing import API_KEY
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET
from interlock_tokens.grants import IMPORT_STATE, Workspace
from tests.support.nango_stage import TEAM, NangoStage, nango_stage

NORTHWIND = Workspace("", TEAM, is_enterprise_install=False, app_id="A0INTERLOCK")


@dataclass
class Stage:
    """A vault, and a Slack and a Nango in which the app is installed already."""

    house: House
    nango: NangoStage

    async def move(
        self, *, token: str = "", connection: str = "", tenant: str = "northwind", dry: bool = False
    ) -> pb.ImportTokenResponse:
        """Import as the operator's command does."""
        grant = self.house.install_grant(
            tenant, source="nango" if connection else "direct", state_sha256=IMPORT_STATE
        )
        request = pb.ImportTokenRequest(
            grant=grant, bot_token=token, connection_id=connection, dry_run=dry
        )
        moved: pb.ImportTokenResponse = await ask(
            self.house.operator().ImportToken(request, timeout=TIMEOUT_S)
        )
        return moved

    async def existing(self, tenant: str = "northwind") -> tuple[str, str]:
        """Have the app installed by somebody else; returns connection and token."""
        ref = await self.nango.connected(tenant)
        return ref.connection_id, (await self.nango.adapter.fetch(ref)).token.reveal()

    async def read(self) -> str:
        """Read the bot token as the worker does."""
        return (await self.house.read(self.house.slack_grant(NORTHWIND))).bot_token

    async def installations(self) -> int:
        """Count what is stored."""
        return int(await self.house.admin.fetchval("SELECT count(*) FROM vault.installation"))


@pytest.fixture
async def stage(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Stage]:
    """Give a running vault with nothing in it."""
    async with nango_stage() as nango:
        changes = {
            "slack_client_id": CLIENT_ID,
            "slack_client_secret_file": Secret(CLIENT_SECRET),
            "slack_api_url": URL(f"{nango.slack_url}/api/"),
            "slack_bot_scopes": ("chat:write", "commands"),
            "nango_url": URL(nango.url),
            "nango_secret_key_file": Secret(API_KEY),
        }
        async with open_house(cluster, tmp_path, **changes) as house:
            yield Stage(house, nango)


async def test_a_token_is_moved_in_for_its_tenant(stage: Stage) -> None:
    """Slack says of which workspace it is; again is a reinstall; the log names the operator."""
    _, token = await stage.existing()
    moved = await stage.move(token=token)
    assert (moved.installation.team_id, moved.installation.app_id) == (TEAM, "A0INTERLOCK")
    assert await stage.read() == token
    assert stage.house.identity.claims == {("", TEAM): "northwind"}
    assert (await stage.move(token=token)).is_reinstall
    assert {each["actor"] for each in await stage.house.records("install.activated")} == {
        "operator"
    }


async def test_a_connection_is_moved_in_and_keeps_its_token(stage: Stage) -> None:
    """The vault holds its name only."""
    connection, token = await stage.existing()
    await stage.move(connection=connection)
    assert await stage.read() == token
    slots = await stage.house.admin.fetch("SELECT slot FROM vault.sealed_token")
    assert [row["slot"] for row in slots] == ["connection"]


async def test_a_dry_run_says_what_would_be_and_writes_nothing(stage: Stage) -> None:
    """Not even a record, and no claim."""
    connection, token = await stage.existing()
    for given in ({"token": token}, {"connection": connection}):
        found = await stage.move(**given, dry=True)
        assert found.installation.team_id == TEAM
    assert await stage.installations() == 0
    assert stage.house.identity.claims == {}
    assert await stage.house.records("install.started") == []


@pytest.mark.parametrize("dry", [True, False])
async def test_another_tenants_workspace_is_refused_and_its_token_lives(
    stage: Stage, *, dry: bool
) -> None:
    """An operator's slip takes nothing away: no token is revoked, no connection deleted."""
    connection, token = await stage.existing()
    await stage.move(token=token)
    _, other = await stage.existing("contoso")
    taken = await refusal(stage.move(token=other, tenant="contoso", dry=dry))
    assert taken == (Kind.CONFLICT, "WORKSPACE_TAKEN")
    wrong_tag = await refusal(stage.move(connection=connection, tenant="contoso", dry=dry))
    assert wrong_tag == (Kind.FORBIDDEN, "CONNECTION_NOT_YOURS")
    for each in (token, other):
        assert await stage.nango.slack_takes(Secret(each))
    assert len(await stage.nango.connections()) == 2
    assert await stage.read() == token


@pytest.mark.parametrize(
    ("token", "reason"),
    [("xoxb-of-nobody", "TOKEN_DEAD"), ("xoxe.xoxb-1-rotating", "TOKEN_ROTATES")],
)
async def test_what_cannot_be_kept_is_refused(stage: Stage, token: str, reason: str) -> None:
    """A dead token, and one that would end within hours."""
    for dry in (True, False):
        refused = await refusal(stage.move(token=token, dry=dry))
        assert refused == (Kind.PRECONDITION, reason)
    assert await stage.installations() == 0


async def test_exactly_one_is_given(stage: Stage) -> None:
    """Neither, both, or the other source's is a mistake of the caller's."""
    connection, token = await stage.existing()
    assert (await refusal(stage.move()))[0] is Kind.INVALID
    assert (await refusal(stage.move(token=token, connection=connection)))[0] is Kind.INVALID


async def test_only_an_operator_moves_in(stage: Stage) -> None:
    """Edge holds install grants too, and may not."""
    _, token = await stage.existing()
    request = pb.ImportTokenRequest(grant=stage.house.install_grant(), bot_token=token)
    call = stage.house.operator("gateway-edge").ImportToken(request, timeout=5)
    assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
