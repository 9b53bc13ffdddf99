"""Who reads which part of the record."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from interlock_identity.adapters.memory import ManualClock, MemoryStore
from interlock_identity.domain.audit import AuditEvent, Origin, Sought
from interlock_identity.domain.people import Person, Tenant, TenantId, UserId
from interlock_identity.domain.workspaces import Claim, WorkspaceId, WorkspaceKey
from interlock_identity.reading import Part, Reading
from interlock_identity.workspaces import WorkspaceNotFound
from interlock_tokens.errors import PurposeNotGranted
from interlock_tokens.grants import AdminGrant, AdminPurpose, Workspace

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Person(UserId("user_ada"), "Ada", "ada@northwind.example")
NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
CONTOSO = Tenant(TenantId("contoso"), "Contoso")
ORIGIN = Origin("gateway-edge", "/test", "request", actor_id="user_ada")
INSTALLATION = UUID("00000000-0000-4000-8000-000000000001")
GRANT = AdminGrant(
    jti="jti",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=5),
    workspace=Workspace("", "T0TEAM", is_enterprise_install=False, app_id="A0APP"),
    tenant_id="northwind",
    user_id="user_ada",
    purpose=AdminPurpose.AUDIT,
    slack_user_id="",
)
EVENT = AuditEvent("user.linked", ORIGIN, tenant_id="northwind", workspace_id="wsw_1")


class _House:
    """A record with the claim of one workspace."""

    def __init__(self) -> None:
        self.store = MemoryStore(ManualClock())
        self.reading = Reading(record=self.store, workspaces=self.store)

    async def claim(self) -> None:
        for tenant in (NORTHWIND, CONTOSO):
            await self.store.remember(ADA, tenant)
        await self.store.claim(
            Claim(
                workspace_id=WorkspaceId("wsw_1"),
                tenant_id=NORTHWIND.tenant_id,
                key=WorkspaceKey("", "T0TEAM", "A0APP"),
                name="Acme",
                installation_id=INSTALLATION,
                installed_by=ADA.user_id,
                nango=None,
            ),
            ORIGIN,
        )
        self.store.audit.clear()

    async def read(self, grant: AdminGrant = GRANT, *, size: int = 0) -> Part:
        return await self.reading.read_workspace(grant, Sought(), before=None, size=size)


@pytest.fixture
async def house() -> _House:
    """Give a record that is still empty."""
    house = _House()
    await house.claim()
    return house


async def test_an_administrator_reads_one_workspace_and_what_is_in_none(house: _House) -> None:
    """Neither another tenant's, nor the tenant's other workspaces, whatever is asked for."""
    mine = [EVENT, replace(EVENT, workspace_id="", event="call.refused")]
    theirs = [
        replace(EVENT, tenant_id="contoso"),
        replace(EVENT, tenant_id=""),
        replace(EVENT, workspace_id="wsw_2"),
    ]
    await house.store.record([*mine, *theirs])
    asked = Sought(tenant_id="contoso", workspace_id="wsw_2")
    part = await house.reading.read_workspace(GRANT, asked, before=None, size=0)
    assert [each.event for each in part.events] == mine[::-1]
    assert part.names == {"user_ada": "Ada"}


async def test_an_operator_reads_everything_without_names(house: _House) -> None:
    """The record holds ids, and so does what operators see of it."""
    await house.store.record([EVENT, replace(EVENT, tenant_id="contoso")])
    part = await house.reading.read_all(Sought(), before=None, size=0)
    assert (len(part.events), part.names, part.following) == (2, {}, None)


@pytest.mark.parametrize("purpose", sorted(set(AdminPurpose) - {AdminPurpose.AUDIT}))
async def test_a_grant_for_something_else_reads_nothing(
    house: _House, purpose: AdminPurpose
) -> None:
    """A purpose is exactly that purpose."""
    with pytest.raises(PurposeNotGranted):
        await house.read(replace(GRANT, purpose=purpose))


async def test_a_workspace_that_was_lost_is_read_no_more(house: _House) -> None:
    """A grant outlives a claim by minutes; neither it nor another tenant's opens the rest."""
    with pytest.raises(WorkspaceNotFound):
        await house.read(replace(GRANT, tenant_id="contoso"))
    await house.store.release(WorkspaceKey("", "T0TEAM", ""), INSTALLATION, ORIGIN)
    with pytest.raises(WorkspaceNotFound):
        await house.read()


async def test_parts_follow_each_other(house: _House) -> None:
    """Each begins where the one before ended, and the last one says so."""
    await house.store.record([replace(EVENT, purpose=str(each)) for each in range(5)])
    seen, before = [], None
    for size in (2, 2, 1):
        part = await house.reading.read_workspace(GRANT, Sought(), before=before, size=size)
        seen += [each.event.purpose for each in part.events]
        before = part.following
    assert seen == ["4", "3", "2", "1", "0"]
    assert before is None
