"""Who is swept, when, and what stops a sweep."""

from datetime import timedelta
from uuid import uuid4

import pytest

from interlock_identity.adapters.memory import FakeMembership, ManualClock, MemoryStore
from interlock_identity.domain.audit import OWN_WORK, AuditEvent, Origin
from interlock_identity.domain.linking import (
    LinkCodeId,
    MappingId,
    NewLinkCode,
    SlackUser,
    hash_link_code,
)
from interlock_identity.domain.people import (
    Account,
    Person,
    Role,
    Session,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import Claim, WorkspaceId, WorkspaceKey
from interlock_identity.membership import MembershipUnavailable
from interlock_identity.offboarding import Offboarding, TooManyDepartures

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
KEY = WorkspaceKey("", "T0TEAM", "A0APP")
GRACE = timedelta(hours=1)
ORIGIN = Origin("operator", "/test", "request")
EVENT = AuditEvent("tested", ORIGIN)


class _House:
    """Off-boarding around fakes, with one claimed workspace."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.membership = FakeMembership()
        self.offboarding = Offboarding(store=self.store, membership=self.membership, grace=GRACE)

    async def link(self, number: int, tenant: Tenant = NORTHWIND) -> Account:
        """Make somebody a member, and link them."""
        person = Person(UserId(f"user_{number:04}"), "Somebody", "")
        account = Account(tenant.tenant_id, person.user_id)
        self.membership.roles[account] = Role.MEMBER
        slack_user = SlackUser("T0TEAM", "", f"U0{number:04}")
        workspace_id = WorkspaceId(f"wsw_{tenant.tenant_id}")
        code = NewLinkCode(
            code_id=LinkCodeId(uuid4().hex),
            code_hash=hash_link_code(uuid4().hex),
            tenant_id=tenant.tenant_id,
            workspace_id=workspace_id,
            slack_user=slack_user,
            display_name="",
            email="",
        )
        await self.store.create_link_code(code, life=GRACE, limit=9, window=GRACE)
        session = Session(person, tenant, Role.MEMBER, "ref")
        await self.store.redeem_link_code(code.code_hash, session, MappingId(uuid4().hex), EVENT)
        return account

    async def claim(self, tenant: Tenant = NORTHWIND, key: WorkspaceKey = KEY) -> None:
        """Claim a workspace for a tenant."""
        await self.store.remember(Person(UserId("user_ada"), "Ada", ""), tenant)
        await self.store.claim(
            Claim(
                workspace_id=WorkspaceId(f"wsw_{tenant.tenant_id}"),
                tenant_id=tenant.tenant_id,
                key=key,
                name="Acme",
                installation_id=uuid4(),
                installed_by=UserId("user_ada"),
                nango=None,
            ),
            ORIGIN,
        )

    async def links(self) -> int:
        """Count the links."""
        return len(self.store._mappings)


@pytest.fixture
async def house() -> _House:
    """Give off-boarding with one claimed workspace."""
    house = _House()
    await house.claim()
    return house


async def test_whoever_left_is_swept_after_the_grace_period(house: _House) -> None:
    """The first sweep notes, the one an hour later removes; everybody else stays."""
    leaver, stayer = await house.link(1), await house.link(2)
    del house.membership.roles[leaver]
    assert await house.offboarding.sweep() == {"links": 0, "organizations": 0}
    house.clock.advance(GRACE - timedelta(seconds=1))
    assert await house.offboarding.sweep() == {"links": 0, "organizations": 0}
    house.clock.advance(timedelta(seconds=1))
    assert await house.offboarding.sweep() == {"links": 1, "organizations": 0}
    (seat,) = await house.store.list_seats(None, 10)
    assert seat.account == stayer
    ended = [each for each in house.store.audit if each.event == "user.unlinked"]
    assert [(each.origin.caller, each.purpose, each.user_id) for each in ended] == [
        (OWN_WORK, "departed", leaver.user_id)
    ]


async def test_whoever_is_back_in_time_keeps_the_link(house: _House) -> None:
    """A member table that was empty for a while costs nobody anything."""
    account = await house.link(1)
    role = house.membership.roles.pop(account)
    await house.link(2)
    await house.offboarding.sweep()
    house.membership.roles[account] = role
    await house.offboarding.sweep()
    del house.membership.roles[account]
    house.clock.advance(GRACE)
    assert await house.offboarding.sweep() == {"links": 0, "organizations": 0}
    assert await house.links() == 2


async def test_an_organization_that_is_gone_goes_with_everything(house: _House) -> None:
    """Its claims go too, so that its workspaces are free."""
    contoso = Tenant(TenantId("contoso"), "Contoso")
    other = WorkspaceKey("", "T0OTHER", "A0APP")
    await house.claim(contoso, other)
    gone = [await house.link(number, contoso) for number in range(3)]
    await house.link(9)
    for account in gone:
        del house.membership.roles[account]
    await house.offboarding.sweep()
    house.clock.advance(GRACE)
    assert await house.offboarding.sweep() == {"links": 3, "organizations": 1}
    assert await house.store.find_workspace(other) is None
    assert await house.store.find_workspace(KEY) is not None
    assert await house.links() == 1


async def test_more_than_half_gone_at_once_is_for_a_human(house: _House) -> None:
    """A source that suddenly knows hardly anybody removes nobody, for as long as it stays so."""
    accounts = [await house.link(number) for number in range(50)]
    for account in accounts[:26]:
        del house.membership.roles[account]
    await house.offboarding.sweep()
    house.clock.advance(GRACE)
    for _ in range(2):
        with pytest.raises(TooManyDepartures):
            await house.offboarding.sweep()
    assert await house.links() == 50
    house.membership.roles[accounts[0]] = Role.MEMBER
    assert await house.offboarding.sweep() == {"links": 25, "organizations": 0}


async def test_a_small_team_may_be_dissolved(house: _House) -> None:
    """Twenty people at most may always go, whoever remains."""
    accounts = [await house.link(number) for number in range(21)]
    for account in accounts[:20]:
        del house.membership.roles[account]
    await house.offboarding.sweep()
    house.clock.advance(GRACE)
    assert await house.offboarding.sweep() == {"links": 20, "organizations": 0}


async def test_a_silent_source_removes_nobody(house: _House) -> None:
    """One question without an answer ends the sweep, before anything is removed."""
    leaver = await house.link(1)
    await house.link(2)
    del house.membership.roles[leaver]
    await house.offboarding.sweep()
    house.clock.advance(GRACE)
    house.membership.fail_next(MembershipUnavailable())
    with pytest.raises(MembershipUnavailable):
        await house.offboarding.sweep()
    assert await house.links() == 2


async def test_everybody_is_asked_about_once(house: _House) -> None:
    """More people than a page holds are all asked about, whatever was removed before."""
    accounts = [await house.link(number) for number in range(1100)]
    asked = house.membership.asked
    await house.offboarding.sweep()
    assert house.membership.asked == asked + 1100
    for account in accounts[::3]:
        del house.membership.roles[account]
    await house.offboarding.sweep()
    house.clock.advance(GRACE)
    assert (await house.offboarding.sweep())["links"] == len(accounts[::3])


async def test_forgetting_counts_and_records_who_ordered_it(house: _House) -> None:
    """An operator's order ends the links, and the record names the operator."""
    account = await house.link(1)
    assert await house.offboarding.forget_user(account.user_id, ORIGIN) == 1
    assert await house.offboarding.forget_user(account.user_id, ORIGIN) == 0
    await house.link(2)
    assert await house.offboarding.forget_organization(NORTHWIND.tenant_id, ORIGIN) == 1
    assert {each.origin for each in house.store.audit if "forgotten" in each.event} == {ORIGIN}
