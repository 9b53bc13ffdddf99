"""One administrator of a workspace is told, once, that it needs a reinstall."""

from datetime import timedelta
from uuid import UUID

import pytest

from interlock_identity.adapters.memory import FakeMembership, ManualClock, MemoryStore
from interlock_identity.domain.audit import AuditEvent, Origin
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
from interlock_identity.membership import MembershipUnavailable, RememberedMembership
from interlock_identity.noticing import Noticing

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
KEY = WorkspaceKey("", "T0TEAM", "A0APP")
INSTALLATION = UUID(int=1)
ORIGIN = Origin("token-vault", "/test", "request")
EVENT = AuditEvent("user.linked", ORIGIN)
HOUR = timedelta(hours=1)


class _House:
    """Noticing around fakes; Ada installed the app, Ben is another administrator."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.membership = FakeMembership()
        self.noticing = Noticing(
            notices=self.store,
            membership=RememberedMembership(self.membership, self.clock, life=HOUR / 12),
        )

    async def claim(self) -> None:
        """Install the app as Ada."""
        await self.store.remember(_person("ada"), NORTHWIND)
        await self.store.claim(
            Claim(
                WorkspaceId("wsw_1"),
                NORTHWIND.tenant_id,
                KEY,
                "Acme",
                INSTALLATION,
                UserId("user_ada"),
                nango=None,
            ),
            ORIGIN,
        )

    async def link(self, name: str, role: Role) -> None:
        """Link somebody in the workspace."""
        account = Account(NORTHWIND.tenant_id, UserId(f"user_{name}"))
        self.membership.roles[account] = role
        code = NewLinkCode(
            code_id=LinkCodeId(f"wslc_{name}"),
            code_hash=hash_link_code(name),
            tenant_id=NORTHWIND.tenant_id,
            workspace_id=WorkspaceId("wsw_1"),
            slack_user=SlackUser("T0TEAM", "", f"U0{name.upper()}"),
            display_name="",
            email="",
        )
        await self.store.create_link_code(code, life=HOUR, limit=1, window=HOUR)
        session = Session(_person(name), NORTHWIND, role, "ref")
        await self.store.redeem_link_code(code.code_hash, session, MappingId(f"wsum_{name}"), EVENT)
        self.clock.advance(timedelta(seconds=1))

    async def report(self, *, needs_reinstall: bool = True) -> None:
        """Say what the vault says."""
        await self.store.set_needs_reinstall(
            KEY, INSTALLATION, ORIGIN, needs_reinstall=needs_reinstall
        )

    async def told(self) -> list[str]:
        """Take the notices; returns whom they name."""
        return [each.slack_user_id for each in await self.noticing.take(ORIGIN)]


def _person(name: str) -> Person:
    return Person(UserId(f"user_{name}"), name, "")


@pytest.fixture
async def house() -> _House:
    """Give a workspace that Ada installed the app in."""
    house = _House()
    await house.claim()
    return house


async def test_the_installer_is_told_once(house: _House) -> None:
    """RF-09: of this very install, on record; not again by anybody."""
    await house.link("ben", Role.OWNER)
    await house.link("ada", Role.ADMIN)
    assert await house.told() == []
    await house.report()
    [notice] = await house.noticing.take(ORIGIN)
    assert (notice.slack_user_id, notice.installation_id) == ("U0ADA", INSTALLATION)
    assert await house.told() == []
    await house.report()
    assert await house.told() == []
    assert [each.event for each in house.store.audit].count("notice.taken") == 1


async def test_who_may_not_install_is_told_nothing(house: _House) -> None:
    """The first linked user who is an administrator now; the installer is one no more."""
    await house.link("ada", Role.MEMBER)
    await house.link("mia", Role.MEMBER)
    await house.link("ben", Role.OWNER)
    await house.report()
    assert await house.told() == ["U0BEN"]


async def test_without_an_administrator_nobody_is_named(house: _House) -> None:
    """The vault may know whom to tell; whoever links later finds the dashboard."""
    await house.link("mia", Role.MEMBER)
    await house.report()
    assert await house.told() == [""]
    taken = house.store.audit[-1]
    assert (taken.event, taken.outcome) == ("notice.taken", "NO_ADMINISTRATOR_LINKED")
    await house.link("ben", Role.OWNER)
    assert await house.told() == []


async def test_a_notice_waits_for_the_membership_source(house: _House) -> None:
    """Unknown is not nobody."""
    await house.link("ada", Role.OWNER)
    await house.report()
    house.membership.fail_next(MembershipUnavailable())
    assert await house.told() == []
    assert await house.told() == ["U0ADA"]


async def test_a_second_end_is_told_again(house: _House) -> None:
    """After a reinstall, or a recovery, the next end is another one."""
    await house.link("ada", Role.OWNER)
    await house.report()
    assert await house.told() == ["U0ADA"]
    await house.report(needs_reinstall=False)
    assert await house.told() == []
    await house.report()
    assert await house.told() == ["U0ADA"]
    await house.claim()
    await house.report()
    assert await house.told() == ["U0ADA"]
