"""Link codes: made for whoever acted in Slack, redeemed by whoever is signed in."""

import json
from dataclasses import replace
from datetime import timedelta
from itertools import count
from uuid import UUID

import pytest

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.adapters.memory import ManualClock, MemoryStore
from interlock_identity.domain.audit import Origin
from interlock_identity.domain.linking import (
    CodeHash,
    EmailPolicy,
    MappingId,
    SlackUser,
    UserMapping,
    hash_link_code,
)
from interlock_identity.domain.people import (
    Person,
    Role,
    RoleNotSufficient,
    Session,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.requester import Requester, SlackStranger
from interlock_identity.domain.workspaces import Claim, WorkspaceId, WorkspaceKey
from interlock_identity.linking import (
    LINK_CODE_LIFE,
    LINK_CODE_LIMIT,
    LINK_CODE_WINDOW,
    EmailMismatch,
    EmailMustMatch,
    LinkCodeSpent,
    Linking,
    MappingNotFound,
    NotYourTenant,
    TooManyLinkCodes,
    UserAlreadyLinked,
    UserLinkedElsewhere,
)
from interlock_identity.workspaces import WorkspaceNotFound
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.verifying import verify_admin_grant

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
CONTOSO = Tenant(TenantId("contoso"), "Contoso")
KEY = WorkspaceKey("", "T0TEAM", "A0APP")
WORKSPACE_ID = WorkspaceId("wsw_1")
INSTALLATION = UUID("00000000-0000-4000-8000-000000000001")
IN_SLACK = Requester(KEY, SlackUser("T0TEAM", "", "U0MIA"), is_stranger=False)
MIA = Session(
    Person(UserId("user_mia"), "Mia", "mia@northwind.example"), NORTHWIND, Role.MEMBER, "ref"
)
BEN = Session(
    Person(UserId("user_ben"), "Ben", "ben@northwind.example"), NORTHWIND, Role.ADMIN, "ref"
)
OLGA = Session(
    Person(UserId("user_olga"), "Olga", "olga@contoso.example"), CONTOSO, Role.OWNER, "ref"
)
EMAIL = "mia@northwind.example"
ORIGIN = Origin("gateway-edge", "/test", "request")
NO_POLICY = EmailPolicy()


class _House:
    """Linking around fakes, with one claimed workspace."""

    def __init__(self, emails: EmailPolicy = NO_POLICY) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        key = generate_ed25519_key("k1", [Family.ADMIN_GRANT])
        self.keys = Keyset.from_json(Secret(json.dumps({"keys": [key]})), variable="KEYS")
        ids, codes = count(1), count(1)
        self.linking = Linking(
            workspaces=self.store,
            links=self.store,
            grant_keys=self.keys,
            emails=emails,
            clock=self.clock,
            new_id=lambda: str(next(ids)),
            entropy=lambda size: next(codes).to_bytes(size, "big"),
        )

    async def claim(self) -> None:
        await self.store.remember(BEN.person, NORTHWIND)
        await self.store.claim(
            Claim(
                workspace_id=WORKSPACE_ID,
                tenant_id=NORTHWIND.tenant_id,
                key=KEY,
                name="Acme",
                installation_id=INSTALLATION,
                installed_by=BEN.person.user_id,
                nango=None,
            ),
            ORIGIN,
        )

    async def code(self, requester: Requester = IN_SLACK, email: str = EMAIL) -> CodeHash:
        code, _ = await self.linking.create_link_code(requester, "Mia", email)
        return hash_link_code(code.reveal())

    async def link(self, session: Session = MIA, requester: Requester = IN_SLACK) -> MappingId:
        code_hash = await self.code(requester, email="")
        await self.linking.redeem(
            session, code_hash, email_difference_confirmed=False, origin=ORIGIN
        )
        mapping = await self.store.find_mapping(NORTHWIND.tenant_id, requester.slack_user)
        assert mapping is not None
        return mapping.mapping_id


@pytest.fixture
async def house() -> _House:
    """Give linking with one claimed workspace."""
    house = _House()
    await house.claim()
    return house


async def test_a_code_lives_an_hour(house: _House) -> None:
    """The code ends an hour after it was made, to the instant."""
    made_at = house.clock.now()
    code, expires_at = await house.linking.create_link_code(IN_SLACK, "Mia", EMAIL)
    assert expires_at == made_at + timedelta(hours=1)
    house.clock.advance(LINK_CODE_LIFE - timedelta(microseconds=1))
    await house.linking.describe(MIA, hash_link_code(code.reveal()))
    house.clock.advance(timedelta(microseconds=1))
    with pytest.raises(LinkCodeSpent):
        await house.linking.describe(MIA, hash_link_code(code.reveal()))


async def test_strangers_and_unclaimed_workspaces_get_no_code(house: _House) -> None:
    """A code is for members of a workspace that has a tenant."""
    with pytest.raises(SlackStranger):
        await house.code(replace(IN_SLACK, is_stranger=True))
    elsewhere = replace(IN_SLACK, key=replace(KEY, enterprise_id="E0GRID"))
    with pytest.raises(WorkspaceNotFound):
        await house.code(elsewhere)


async def test_codes_are_few(house: _House) -> None:
    """Ten minutes hold five codes; waiting as told helps."""
    for _ in range(LINK_CODE_LIMIT):
        await house.code()
    with pytest.raises(TooManyLinkCodes) as refusal:
        await house.code()
    assert refusal.value.retry_after == LINK_CODE_WINDOW
    house.clock.advance(LINK_CODE_WINDOW)
    assert await house.code()


async def test_the_confirm_page_learns_what_would_happen(house: _House) -> None:
    """Describing shows both sides of the link and changes nothing."""
    code_hash = await house.code()
    for _ in range(2):
        offer = await house.linking.describe(MIA, code_hash)
        assert offer.code.workspace.name == "Acme"
        assert (offer.code.slack_user.user_id, offer.code.display_name) == ("U0MIA", "Mia")
        assert not offer.emails_differ
    assert (await house.linking.describe(BEN, code_hash)).emails_differ


async def test_redeeming_links_and_resumes(house: _House) -> None:
    """The link is made, and the question may go on as exactly this account."""
    code_hash = await house.code()
    redeemed = await house.linking.redeem(
        MIA, code_hash, email_difference_confirmed=False, origin=ORIGIN
    )
    assert not redeemed.was_linked
    grant = verify_admin_grant(redeemed.resume_grant.reveal(), house.keys, now=house.clock.now())
    assert grant.purpose is AdminPurpose.RESUME
    assert (grant.tenant_id, grant.user_id, grant.slack_user_id) == (
        "northwind",
        "user_mia",
        "U0MIA",
    )
    assert grant.workspace.team_id == "T0TEAM"
    with pytest.raises(LinkCodeSpent):
        await house.linking.redeem(MIA, code_hash, email_difference_confirmed=False, origin=ORIGIN)


@pytest.mark.parametrize(
    ("session", "refusal"),
    [
        (OLGA, NotYourTenant),
        (replace(MIA, role=Role.NONE), RoleNotSufficient),
        (BEN, EmailMismatch),
    ],
)
async def test_a_refused_redeem_leaves_the_code_usable(
    house: _House, session: Session, refusal: type[ServiceError]
) -> None:
    """Outsiders, roles without rights and unconfirmed differences spend nothing."""
    code_hash = await house.code()
    with pytest.raises(refusal):
        await house.linking.redeem(
            session, code_hash, email_difference_confirmed=False, origin=ORIGIN
        )
    assert await house.store.find_mapping(NORTHWIND.tenant_id, IN_SLACK.slack_user) is None
    await house.linking.redeem(MIA, code_hash, email_difference_confirmed=False, origin=ORIGIN)


async def test_confirming_does_not_let_an_outsider_in(house: _House) -> None:
    """The second confirmation is about addresses, not about tenants."""
    code_hash = await house.code()
    with pytest.raises(NotYourTenant):
        await house.linking.redeem(OLGA, code_hash, email_difference_confirmed=True, origin=ORIGIN)
    redeemed = await house.linking.redeem(
        BEN, code_hash, email_difference_confirmed=True, origin=ORIGIN
    )
    assert not redeemed.was_linked


async def test_a_linked_slack_user_is_linked_once(house: _House) -> None:
    """Another account is refused, the same one is told; a new code is not made at all."""
    code_hash = await house.code()
    existing = UserMapping(
        mapping_id=MappingId("imported"),
        tenant_id=NORTHWIND.tenant_id,
        workspace_id=WORKSPACE_ID,
        slack_user=IN_SLACK.slack_user,
        person=MIA.person,
        linked_at=house.clock.now(),
        last_used_at=None,
    )
    await house.store.remember(MIA.person, NORTHWIND)
    house.store._mappings[existing.mapping_id] = existing
    with pytest.raises(UserLinkedElsewhere):
        await house.linking.redeem(BEN, code_hash, email_difference_confirmed=True, origin=ORIGIN)
    redeemed = await house.linking.redeem(
        MIA, code_hash, email_difference_confirmed=False, origin=ORIGIN
    )
    assert redeemed.was_linked
    with pytest.raises(LinkCodeSpent):
        await house.linking.describe(MIA, code_hash)
    with pytest.raises(UserAlreadyLinked):
        await house.code()


async def test_administrators_list_all_links_and_members_their_own(house: _House) -> None:
    """Pages end where the links end; a member sees no colleague."""
    for number in range(3):
        house.clock.advance(timedelta(minutes=1))
        user = SlackUser("T0TEAM", "", f"U0USER{number}")
        await house.link(MIA if number else BEN, replace(IN_SLACK, slack_user=user))
    first, after = await house.linking.list_mappings(BEN, WORKSPACE_ID, 2, None)
    assert [each.slack_user.user_id for each in first] == ["U0USER2", "U0USER1"]
    assert after is not None
    rest, end = await house.linking.list_mappings(BEN, WORKSPACE_ID, 2, after)
    assert [each.slack_user.user_id for each in rest] == ["U0USER0"]
    assert end is None
    own, _ = await house.linking.list_mappings(MIA, WORKSPACE_ID, 0, None)
    assert {each.person.user_id for each in own} == {MIA.person.user_id}
    with pytest.raises(WorkspaceNotFound):
        await house.linking.list_mappings(OLGA, WORKSPACE_ID, 0, None)
    with pytest.raises(RoleNotSufficient):
        await house.linking.list_mappings(replace(MIA, role=Role.NONE), WORKSPACE_ID, 0, None)


async def test_a_link_is_removed_by_its_person_or_an_administrator(house: _House) -> None:
    """Somebody else's link looks absent to members and to other tenants."""
    mapping_id = await house.link()
    colleague = replace(BEN, role=Role.MEMBER)
    for session in (colleague, OLGA):
        with pytest.raises(MappingNotFound):
            await house.linking.unlink(session, mapping_id, ORIGIN)
    await house.linking.unlink(MIA, mapping_id, ORIGIN)
    with pytest.raises(MappingNotFound):
        await house.linking.unlink(MIA, mapping_id, ORIGIN)
    await house.linking.unlink(BEN, await house.link(), ORIGIN)
    with pytest.raises(RoleNotSufficient):
        await house.linking.unlink(replace(MIA, role=Role.NONE), mapping_id, ORIGIN)


async def test_a_slack_user_removes_the_own_link(house: _House) -> None:
    """Unlinking from Slack is idempotent and needs no account."""
    await house.link()
    assert await house.linking.unlink_self(IN_SLACK, ORIGIN)
    assert not await house.linking.unlink_self(IN_SLACK, ORIGIN)
    with pytest.raises(WorkspaceNotFound):
        await house.linking.unlink_self(replace(IN_SLACK, key=replace(KEY, team_id="T0X")), ORIGIN)


async def test_a_strict_tenant_links_equal_verified_addresses_only() -> None:
    """Where the policy says so no confirmation helps, and an unknown address is not equal."""
    policy = EmailPolicy(strict_tenants=frozenset({NORTHWIND.tenant_id}))
    house = _House(policy)
    await house.claim()
    verified = replace(MIA, is_email_verified=True)
    for email, session in (
        ("ben@northwind.example", verified),
        ("", verified),
        (EMAIL, MIA),
        (EMAIL, replace(BEN, is_email_verified=True)),
    ):
        code_hash = await house.code(email=email)
        assert (await house.linking.describe(session, code_hash)).is_email_refused
        with pytest.raises(EmailMustMatch):
            await house.linking.redeem(
                session, code_hash, email_difference_confirmed=True, origin=ORIGIN
            )
    code_hash = await house.code(email=EMAIL.upper())
    redeemed = await house.linking.redeem(
        verified, code_hash, email_difference_confirmed=False, origin=ORIGIN
    )
    assert not redeemed.was_linked


async def test_links_and_their_ends_are_recorded(house: _House) -> None:
    """The record names the Slack user, the account, and whoever ended the link."""
    mapping_id = await house.link()
    by_ben = replace(ORIGIN, actor_id="user_ben")
    await house.linking.unlink(BEN, mapping_id, by_ben)
    await house.link()
    by_event = replace(ORIGIN, grant_jti="jti")
    await house.linking.unlink_self(IN_SLACK, by_event)
    recorded = [each for each in house.store.audit if each.event.startswith("user.")]
    assert [(each.event, each.origin) for each in recorded] == [
        ("user.linked", ORIGIN),
        ("user.unlinked", by_ben),
        ("user.linked", ORIGIN),
        ("user.unlinked", by_event),
    ]
    assert {(each.tenant_id, each.user_id, each.slack_user_id) for each in recorded} == {
        ("northwind", "user_mia", "U0MIA")
    }
