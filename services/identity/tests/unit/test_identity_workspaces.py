"""Claims from install grants, and default agents."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest

from interlock_identity.adapters.memory import ManualClock, MemoryStore
from interlock_identity.domain.agents import Agent, AgentDefault, MalformedAgentDefault
from interlock_identity.domain.people import (
    Person,
    Role,
    RoleNotSufficient,
    Session,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import WorkspaceId, WorkspaceKey
from interlock_identity.workspaces import (
    InstallFacts,
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


@pytest.fixture
async def workspaces() -> Workspaces:
    """Give workspaces in memory, with two known organizations."""
    store = MemoryStore(ManualClock())
    await store.remember(OWNER.person, NORTHWIND)
    await store.remember(OWNER.person, CONTOSO)
    ids = count(1)
    return Workspaces(workspaces=store, new_id=lambda: str(next(ids)))


async def test_a_claim_takes_its_tenant_from_the_grant(workspaces: Workspaces) -> None:
    """The facts cannot name a tenant; claiming twice changes nothing."""
    claimed = await workspaces.claim(GRANT, FACTS)
    assert not claimed.was_claimed
    assert claimed.workspace.workspace.tenant_id == "northwind"
    assert claimed.workspace.workspace.workspace_id == "wsw_1"
    again = await workspaces.claim(GRANT, FACTS)
    assert again.was_claimed
    assert again.workspace == claimed.workspace
    with pytest.raises(WorkspaceTaken):
        await workspaces.claim(replace(GRANT, tenant_id="contoso"), FACTS)


async def test_a_released_workspace_is_free(workspaces: Workspaces) -> None:
    """A release is idempotent and lets another tenant in."""
    await workspaces.claim(GRANT, FACTS)
    assert await workspaces.release(FACTS.key, FACTS.installation_id)
    assert not await workspaces.release(FACTS.key, FACTS.installation_id)
    claimed = await workspaces.claim(replace(GRANT, tenant_id="contoso"), FACTS)
    assert claimed.workspace.workspace.tenant_id == "contoso"


async def test_members_see_workspaces_and_defaults_of_their_tenant(
    workspaces: Workspaces,
) -> None:
    """Reading takes a role, and only reaches the own tenant."""
    claimed = await workspaces.claim(GRANT, FACTS)
    workspace_id = claimed.workspace.workspace.workspace_id
    await workspaces.set_agent_default(OWNER, workspace_id, "", HELPER)
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


async def test_only_administrators_set_defaults(workspaces: Workspaces) -> None:
    """Members cannot choose for others, and administrators not for other tenants."""
    workspace_id = (await workspaces.claim(GRANT, FACTS)).workspace.workspace.workspace_id
    with pytest.raises(RoleNotSufficient):
        await workspaces.set_agent_default(
            replace(OWNER, role=Role.MEMBER), workspace_id, "", HELPER
        )
    with pytest.raises(WorkspaceNotFound):
        await workspaces.set_agent_default(replace(OWNER, tenant=CONTOSO), workspace_id, "", HELPER)
    with pytest.raises(WorkspaceNotFound):
        await workspaces.set_agent_default(OWNER, WorkspaceId("wsw_none"), "", None)


async def test_a_default_is_set_for_a_channel_and_removed(workspaces: Workspaces) -> None:
    """The channel of the call is the place; the default may repeat it or leave it out."""
    workspace_id = (await workspaces.claim(GRANT, FACTS)).workspace.workspace.workspace_id
    await workspaces.set_agent_default(OWNER, workspace_id, "C0HELP", HELPER)
    in_channel = replace(HELPER, channel_id="C0HELP")
    assert await workspaces.list_agent_defaults(OWNER, workspace_id) == [in_channel]
    await workspaces.set_agent_default(OWNER, workspace_id, "C0HELP", in_channel)
    await workspaces.set_agent_default(OWNER, workspace_id, "C0HELP", None)
    assert await workspaces.list_agent_defaults(OWNER, workspace_id) == []


@pytest.mark.parametrize(
    "chosen",
    [
        replace(HELPER, channel_id="C0ELSE"),
        replace(HELPER, agent=Agent("", "helper")),
        replace(HELPER, agent=Agent("docs", "")),
    ],
)
async def test_half_a_default_is_refused(workspaces: Workspaces, chosen: AgentDefault) -> None:
    """A default names a project, an agent, and no second place."""
    workspace_id = (await workspaces.claim(GRANT, FACTS)).workspace.workspace.workspace_id
    with pytest.raises(MalformedAgentDefault):
        await workspaces.set_agent_default(OWNER, workspace_id, "C0HELP", chosen)
