"""Claims from install grants, and default agents."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest

from interlock_chassis.secret import Secret
from interlock_identity.adapters.memory import FakeAgents, ManualClock, MemoryStore
from interlock_identity.domain.agents import Agent, AgentDefault, MalformedAgentDefault
from interlock_identity.domain.audit import Origin
from interlock_identity.domain.people import (
    Person,
    Role,
    RoleNotSufficient,
    Session,
    SessionProof,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import WorkspaceId, WorkspaceKey
from interlock_identity.workspaces import (
    AgentNotFound,
    InstallFacts,
    PlatformUnavailable,
    WorkspaceNotFound,
    Workspaces,
    WorkspaceTaken,
)
from interlock_tokens.grants import InstallGrant

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
CONTOSO = Tenant(TenantId("contoso"), "Contoso")
OWNER = Session(Person(UserId("user_ada"), "Ada", ""), NORTHWIND, Role.OWNER, "ref")
GRANT = InstallGrant(
    jti="jti",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=15),
    tenant_id="northwind",
    user_id="user_ada",
    state_sha256="0" * 64,
    source="direct",
)
FACTS = InstallFacts(
    key=WorkspaceKey("", "T0TEAM", "A0APP"),
    name="Acme",
    installation_id=UUID("00000000-0000-4000-8000-000000000001"),
    nango=None,
)
HELPER = AgentDefault("", Agent("docs", "helper"), grants_access=False)
PROOF = SessionProof(Secret("better-auth.session_token=x"), "")
ORIGIN = Origin("gateway-edge", "/test", "request")
OPERATORS = Agent("home", "any")


class _House:
    """Workspaces around fakes, with two known organizations."""

    def __init__(self) -> None:
        self.store = MemoryStore(ManualClock())
        self.agents = FakeAgents()
        self.agents.agents.add((NORTHWIND.tenant_id, HELPER.agent))
        ids = count(1)
        self.workspaces = Workspaces(
            workspaces=self.store,
            agents=self.agents,
            operator_agent=OPERATORS,
            new_id=lambda: str(next(ids)),
        )

    async def claim(self) -> WorkspaceId:
        """Claim one workspace for the owner's tenant."""
        claimed = await self.workspaces.claim(GRANT, FACTS, ORIGIN)
        return claimed.workspace.workspace.workspace_id

    async def choose(
        self,
        workspace_id: WorkspaceId,
        channel_id: str,
        chosen: AgentDefault | None,
        session: Session = OWNER,
    ) -> None:
        """Set a default agent as somebody."""
        await self.workspaces.set_agent_default(
            session, PROOF, workspace_id, channel_id, chosen=chosen, origin=ORIGIN
        )


@pytest.fixture
async def house() -> _House:
    """Give workspaces in memory, with two known organizations."""
    house = _House()
    await house.store.remember(OWNER.person, NORTHWIND)
    await house.store.remember(OWNER.person, CONTOSO)
    return house


@pytest.fixture
def workspaces(house: _House) -> Workspaces:
    """Give the use cases alone."""
    return house.workspaces


async def test_a_claim_takes_its_tenant_from_the_grant(workspaces: Workspaces) -> None:
    """The facts cannot name a tenant; claiming twice changes nothing."""
    claimed = await workspaces.claim(GRANT, FACTS, ORIGIN)
    assert not claimed.was_claimed
    assert claimed.workspace.workspace.tenant_id == "northwind"
    assert claimed.workspace.workspace.workspace_id == "wsw_1"
    again = await workspaces.claim(GRANT, FACTS, ORIGIN)
    assert again.was_claimed
    assert again.workspace == claimed.workspace
    with pytest.raises(WorkspaceTaken):
        await workspaces.claim(replace(GRANT, tenant_id="contoso"), FACTS, ORIGIN)


async def test_a_released_workspace_is_free(workspaces: Workspaces) -> None:
    """A release is idempotent and lets another tenant in."""
    await workspaces.claim(GRANT, FACTS, ORIGIN)
    assert await workspaces.release(FACTS.key, FACTS.installation_id, ORIGIN)
    assert not await workspaces.release(FACTS.key, FACTS.installation_id, ORIGIN)
    claimed = await workspaces.claim(replace(GRANT, tenant_id="contoso"), FACTS, ORIGIN)
    assert claimed.workspace.workspace.tenant_id == "contoso"


async def test_members_see_workspaces_and_defaults_of_their_tenant(house: _House) -> None:
    """Reading takes a role, and only reaches the own tenant."""
    workspaces = house.workspaces
    claimed = await workspaces.claim(GRANT, FACTS, ORIGIN)
    workspace_id = claimed.workspace.workspace.workspace_id
    await house.choose(workspace_id, "", HELPER)
    member = replace(OWNER, role=Role.MEMBER)
    assert await workspaces.list_workspaces(member) == [claimed.workspace]
    assert await workspaces.list_agent_defaults(member, workspace_id) == [HELPER]
    outsider = replace(OWNER, tenant=CONTOSO)
    assert await workspaces.list_workspaces(outsider) == []
    with pytest.raises(WorkspaceNotFound):
        await workspaces.list_agent_defaults(outsider, workspace_id)
    nobody = replace(OWNER, role=Role.NONE)
    with pytest.raises(RoleNotSufficient):
        await workspaces.list_workspaces(nobody)
    with pytest.raises(RoleNotSufficient):
        await workspaces.list_agent_defaults(nobody, workspace_id)


async def test_only_administrators_set_defaults(house: _House) -> None:
    """Members cannot choose for others, and administrators not for other tenants."""
    workspace_id = await house.claim()
    with pytest.raises(RoleNotSufficient):
        await house.choose(workspace_id, "", HELPER, replace(OWNER, role=Role.MEMBER))
    with pytest.raises(WorkspaceNotFound):
        await house.choose(workspace_id, "", HELPER, replace(OWNER, tenant=CONTOSO))
    with pytest.raises(WorkspaceNotFound):
        await house.choose(WorkspaceId("wsw_none"), "", None)


async def test_a_default_is_set_for_a_channel_and_removed(house: _House) -> None:
    """The channel of the call is the place; the default may repeat it or leave it out."""
    workspace_id = await house.claim()
    await house.choose(workspace_id, "C0HELP", HELPER)
    in_channel = replace(HELPER, channel_id="C0HELP")
    assert await house.workspaces.list_agent_defaults(OWNER, workspace_id) == [in_channel]
    await house.choose(workspace_id, "C0HELP", in_channel)
    await house.choose(workspace_id, "C0HELP", None)
    assert await house.workspaces.list_agent_defaults(OWNER, workspace_id) == []


@pytest.mark.parametrize(
    "chosen",
    [
        replace(HELPER, channel_id="C0ELSE"),
        replace(HELPER, agent=Agent("", "helper")),
        replace(HELPER, agent=Agent("docs", "")),
    ],
)
async def test_half_a_default_is_refused(house: _House, chosen: AgentDefault) -> None:
    """A default names a project, an agent, and no second place."""
    with pytest.raises(MalformedAgentDefault):
        await house.choose(await house.claim(), "C0HELP", chosen)


async def test_a_default_names_an_agent_that_the_administrator_sees(house: _House) -> None:
    """The platform's no is told apart from its silence, and neither changes the default."""
    workspace_id = await house.claim()
    await house.choose(workspace_id, "", HELPER)
    with pytest.raises(AgentNotFound):
        await house.choose(workspace_id, "", replace(HELPER, agent=Agent("docs", "gone")))
    house.agents.fail_next(PlatformUnavailable())
    with pytest.raises(PlatformUnavailable):
        await house.choose(workspace_id, "", replace(HELPER, grants_access=True))
    assert await house.workspaces.list_agent_defaults(OWNER, workspace_id) == [HELPER]
    # Removing needs nobody's consent.
    house.agents.fail_next(PlatformUnavailable())
    await house.choose(workspace_id, "", None)


async def test_the_operators_agent_is_looked_for_as_an_administrator(house: _House) -> None:
    """What an administrator cannot see is not offered; a silent platform changes nothing."""
    tenant_id = NORTHWIND.tenant_id
    assert not await house.store.lacks_operator_agent(tenant_id, OPERATORS)
    await house.workspaces.check_operator_agent(OWNER, PROOF)
    assert await house.store.lacks_operator_agent(tenant_id, OPERATORS)
    assert not await house.store.lacks_operator_agent(tenant_id, HELPER.agent)
    house.agents.agents.add((tenant_id, OPERATORS))
    house.agents.fail_next(PlatformUnavailable())
    await house.workspaces.check_operator_agent(OWNER, PROOF)
    assert await house.store.lacks_operator_agent(tenant_id, OPERATORS)
    await house.workspaces.check_operator_agent(OWNER, PROOF)
    assert not await house.store.lacks_operator_agent(tenant_id, OPERATORS)
