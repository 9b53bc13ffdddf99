"""User tokens only for linked members, renewals only for young events."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.adapters.memory import FakeMembership, ManualClock, MemoryStore
from interlock_identity.domain.agents import Agent, AgentDefault, AgentSource
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
from interlock_identity.domain.requester import Requester, SlackStranger
from interlock_identity.domain.workspaces import Claim, WorkspaceId, WorkspaceKey
from interlock_identity.issuing import (
    Errand,
    EventTooOld,
    Issuing,
    NoLongerAMember,
    UserNotLinked,
    WorkspaceReleased,
)
from interlock_identity.membership import MembershipUnavailable, RememberedMembership
from interlock_identity.workspaces import WorkspaceNotFound
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import Family
from interlock_tokens.grants import AuthorizationSource, SlackGrant, SlackUserToken, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.verifying import verify_slack_grant, verify_user_token

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
KEY = WorkspaceKey("", "T0TEAM", "A0APP")
WORKSPACE_ID = WorkspaceId("wsw_1")
INSTALLATION = UUID("00000000-0000-4000-8000-000000000001")
IN_SLACK = Requester(KEY, SlackUser("T0TEAM", "", "U0MIA"), is_stranger=False)
MIA = Person(UserId("user_mia"), "Mia", "mia@northwind.example")
ACCOUNT = Account(NORTHWIND.tenant_id, MIA.user_id)
ORIGIN = Origin("gateway-worker", "/test", "request")
EVENT_OF_TEST = AuditEvent("tested", ORIGIN)
MEMBERSHIP_LIFE = timedelta(seconds=60)
BROWSING = Errand(None, "")
HELPER = Agent("docs", "helper")
OPERATORS = Agent("home", "any")
START = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
EVENT = SlackGrant(
    jti="first",
    issued_at=START,
    expires_at=START + timedelta(minutes=15),
    workspace=Workspace("", "T0TEAM", is_enterprise_install=False, app_id="A0APP"),
    slack_user_id="U0MIA",
    slack_user_team_id="T0TEAM",
    event_key="Ev1",
    event_type="app_mention",
    body_sha256="ab" * 32,
    event_at=START,
    renewed=False,
    is_stranger=False,
)


def _keyset(*keys: dict[str, object]) -> Keyset:
    return Keyset.from_json(Secret(json.dumps({"keys": keys})), variable="KEYS")


class _House:
    """Issuing around fakes, with Mia linked in one workspace."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.membership = FakeMembership()
        self.membership.roles[ACCOUNT] = Role.MEMBER
        self.grant_keys = _keyset(generate_ed25519_key("k1", [Family.RENEWED_GRANT]))
        self.user_token_keys = _keyset(generate_hs256_key("k2", [Family.SLACK_USER]))
        ids = count(1)
        self.issuing = Issuing(
            workspaces=self.store,
            links=self.store,
            membership=RememberedMembership(self.membership, self.clock, life=MEMBERSHIP_LIFE),
            audit=self.store,
            grant_keys=self.grant_keys,
            user_token_keys=self.user_token_keys,
            default_agent=OPERATORS,
            clock=self.clock,
            new_id=lambda: f"id{next(ids)}",
        )

    async def claim(self) -> None:
        await self.store.remember(MIA, NORTHWIND)
        await self.store.claim(
            Claim(
                workspace_id=WORKSPACE_ID,
                tenant_id=NORTHWIND.tenant_id,
                key=KEY,
                name="Acme",
                installation_id=INSTALLATION,
                installed_by=MIA.user_id,
                nango=None,
            ),
            ORIGIN,
        )

    async def link(self) -> None:
        code = NewLinkCode(
            code_id=LinkCodeId("wslc_1"),
            code_hash=hash_link_code("code"),
            tenant_id=NORTHWIND.tenant_id,
            workspace_id=WORKSPACE_ID,
            slack_user=IN_SLACK.slack_user,
            display_name="",
            email="",
        )
        hour = timedelta(hours=1)
        await self.store.create_link_code(code, life=hour, limit=1, window=hour)
        session = Session(MIA, NORTHWIND, Role.MEMBER, "ref")
        await self.store.redeem_link_code(
            code.code_hash, session, MappingId("wsum_1"), EVENT_OF_TEST
        )

    async def token(
        self, requester: Requester = IN_SLACK, errand: Errand = BROWSING
    ) -> SlackUserToken:
        issued = await self.issuing.issue_user_token(requester, errand, ORIGIN)
        verified = verify_user_token(
            issued.token.reveal(), self.user_token_keys, now=self.clock.now()
        )
        assert verified.expires_at == issued.expires_at
        return verified

    async def set_default(self, channel_id: str, agent: Agent, grants_access: bool) -> None:
        await self.store.set_agent_default(
            NORTHWIND.tenant_id,
            WORKSPACE_ID,
            AgentDefault(channel_id, agent, grants_access=grants_access),
            MIA.user_id,
            EVENT_OF_TEST,
        )


@pytest.fixture
async def house() -> _House:
    """Give issuing with one linked Slack user."""
    house = _House()
    await house.claim()
    await house.link()
    return house


# Tokens.


async def test_a_token_acts_as_the_linked_account(house: _House) -> None:
    """The token names account, tenant and Slack user, lives 5 minutes, and its use is noted."""
    token = await house.token()
    assert (token.user_id, token.tenant_id) == ("user_mia", "northwind")
    assert (token.slack_team_id, token.slack_user_id) == ("T0TEAM", "U0MIA")
    assert token.slack_enterprise_id == ""
    assert token.authorization is None
    assert token.expires_at - token.issued_at == timedelta(seconds=300)
    mapping = await house.issuing.resolve_user(IN_SLACK)
    assert mapping.last_used_at == house.clock.now()


@pytest.mark.parametrize(
    ("requester", "refusal"),
    [
        (replace(IN_SLACK, is_stranger=True), SlackStranger),
        (replace(IN_SLACK, key=replace(KEY, app_id="A0OTHER")), WorkspaceNotFound),
        (replace(IN_SLACK, slack_user=SlackUser("T0TEAM", "", "U0EVE")), UserNotLinked),
        (
            replace(IN_SLACK, resumed_for=Account(TenantId("contoso"), MIA.user_id)),
            WorkspaceNotFound,
        ),
        (
            replace(IN_SLACK, resumed_for=Account(NORTHWIND.tenant_id, UserId("user_eve"))),
            UserNotLinked,
        ),
    ],
)
async def test_nobody_else_gets_anything(
    house: _House, requester: Requester, refusal: type[ServiceError]
) -> None:
    """Strangers, unclaimed workspaces, unlinked users and grants resumed for others end here."""
    with pytest.raises(refusal):
        await house.issuing.resolve_user(requester)
    with pytest.raises(refusal):
        await house.issuing.issue_user_token(requester, BROWSING, ORIGIN)
    with pytest.raises(refusal):
        await house.issuing.resolve_agent(requester, "")


async def test_a_resumed_question_acts_as_its_account(house: _House) -> None:
    """A resume grant for the linked account is as good as its event."""
    account = Account(NORTHWIND.tenant_id, MIA.user_id)
    token = await house.token(replace(IN_SLACK, resumed_for=account))
    assert (token.user_id, token.slack_team_id) == ("user_mia", "T0TEAM")


async def test_an_unlinked_or_released_user_gets_no_further_token(house: _House) -> None:
    """Unlinking works at once, and so does uninstalling."""
    await house.token()
    await house.store.release(KEY, INSTALLATION, ORIGIN)
    with pytest.raises(WorkspaceNotFound):
        await house.token()
    await house.claim()
    await house.store.remove_mapping(
        NORTHWIND.tenant_id, MappingId("wsum_1"), of_user=None, origin=ORIGIN
    )
    with pytest.raises(UserNotLinked):
        await house.token()


# Membership.


async def test_whoever_left_gets_no_token_once_the_memory_ends(house: _House) -> None:
    """A yes is remembered for a minute, never longer."""
    await house.token()
    del house.membership.roles[ACCOUNT]
    house.clock.advance(MEMBERSHIP_LIFE - timedelta(seconds=1))
    await house.token()
    house.clock.advance(timedelta(seconds=1))
    with pytest.raises(NoLongerAMember):
        await house.token()
    assert house.membership.asked == 2


async def test_whoever_returns_acts_at_once(house: _House) -> None:
    """A no is never remembered."""
    house.membership.roles[ACCOUNT] = Role.NONE
    with pytest.raises(NoLongerAMember):
        await house.token()
    house.membership.roles[ACCOUNT] = Role.ADMIN
    await house.token()


async def test_no_token_while_nobody_knows(house: _House) -> None:
    """An unreachable membership source fails the call, whatever was known before."""
    await house.token()
    house.clock.advance(MEMBERSHIP_LIFE)
    for _ in range(2):
        house.membership.fail_next(MembershipUnavailable())
        with pytest.raises(MembershipUnavailable):
            await house.token()
    await house.token()


async def test_memory_is_bounded_and_kept_apart_by_tenant() -> None:
    """The oldest answer makes room, and one tenant's member is nobody in another."""
    clock, source = ManualClock(), FakeMembership()
    remembered = RememberedMembership(source, clock, life=MEMBERSHIP_LIFE, kept=2)

    async def role_of(tenant_id: TenantId, number: int) -> Role:
        account = Account(tenant_id, UserId(f"user_{number}"))
        return (await remembered.confirm(account, IN_SLACK.slack_user)).role

    for number in range(3):
        source.roles[Account(NORTHWIND.tenant_id, UserId(f"user_{number}"))] = Role.MEMBER
        await role_of(NORTHWIND.tenant_id, number)
    assert await role_of(NORTHWIND.tenant_id, 2) is Role.MEMBER
    assert source.asked == 3
    await role_of(NORTHWIND.tenant_id, 0)
    assert source.asked == 4
    assert await role_of(TenantId("contoso"), 2) is Role.NONE


async def test_a_token_ends_five_minutes_after_the_last_yes(house: _House) -> None:
    """A remembered yes makes no token that outlives it: nobody acts for longer than 5 minutes."""
    asked_at = house.clock.now()
    await house.token()
    house.clock.advance(MEMBERSHIP_LIFE - timedelta(seconds=1))
    assert (await house.token()).expires_at == asked_at + timedelta(seconds=300)
    house.clock.advance(timedelta(seconds=1))
    assert (await house.token()).expires_at == house.clock.now() + timedelta(seconds=300)


async def test_nothing_is_remembered_where_that_is_switched_off() -> None:
    """With a life of zero every token asks."""
    source = FakeMembership()
    source.roles[ACCOUNT] = Role.MEMBER
    remembered = RememberedMembership(source, ManualClock(), life=timedelta(0))
    for _ in range(3):
        await remembered.confirm(ACCOUNT, IN_SLACK.slack_user)
    assert source.asked == 3


async def test_every_token_is_recorded(house: _House) -> None:
    """The record names the grant, the token and whom it is for; a refusal leaves none."""
    token = await house.token()
    (issued,) = [each for each in house.store.audit if each.event == "token.issued"]
    assert (issued.origin, issued.token_jti) == (ORIGIN, token.jti)
    assert (issued.tenant_id, issued.user_id) == ("northwind", "user_mia")
    assert (issued.slack_team_id, issued.slack_user_id) == ("T0TEAM", "U0MIA")
    house.membership.roles.clear()
    house.clock.advance(MEMBERSHIP_LIFE)
    with pytest.raises(NoLongerAMember):
        await house.token()
    assert [each.event for each in house.store.audit].count("token.issued") == 1


# Agents.


async def test_the_nearest_default_answers(house: _House) -> None:
    """Channel before workspace before operator."""
    assert (await house.issuing.resolve_agent(IN_SLACK, "C0HELP")).agent == OPERATORS
    await house.set_default("", HELPER, grants_access=False)
    assert (await house.issuing.resolve_agent(IN_SLACK, "C0HELP")).agent == HELPER
    triage = Agent("support", "triage")
    await house.set_default("C0HELP", triage, grants_access=False)
    resolved = await house.issuing.resolve_agent(IN_SLACK, "C0HELP")
    assert (resolved.agent, resolved.source) == (triage, AgentSource.CHANNEL)


async def test_channel_members_get_the_access_an_administrator_gave(house: _House) -> None:
    """The token opens the default's project where that was granted, and nothing elsewhere."""
    await house.set_default("", HELPER, grants_access=True)
    triage = Agent("support", "triage")
    await house.set_default("C0HELP", triage, grants_access=False)
    await house.set_default("C0OPEN", triage, grants_access=True)
    whole = (await house.token(errand=Errand(HELPER, "C0ELSE"))).authorization
    assert whole is not None
    assert (whole.project_id, whole.source) == ("docs", AuthorizationSource.WORKSPACE)
    channel = (await house.token(errand=Errand(triage, "C0OPEN"))).authorization
    assert channel is not None
    assert (channel.source, channel.channel_id) == (AuthorizationSource.CHANNEL, "C0OPEN")
    for errand in (
        BROWSING,
        Errand(triage, "C0HELP"),
        Errand(HELPER, "C0OPEN"),
        Errand(Agent("docs", "other"), "C0ELSE"),
    ):
        assert (await house.token(errand=errand)).authorization is None


# Renewals.


async def test_a_renewal_says_what_the_grant_said(house: _House) -> None:
    """Only the id and the times are new."""
    house.clock.advance(timedelta(hours=20))
    token, expires_at = await house.issuing.renew_grant(EVENT, ORIGIN)
    renewed = verify_slack_grant(token.reveal(), house.grant_keys, now=house.clock.now())
    assert renewed == replace(
        EVENT,
        jti=renewed.jti,
        issued_at=renewed.issued_at,
        expires_at=expires_at,
        renewed=True,
    )
    assert renewed.jti != EVENT.jti
    assert renewed.expires_at == house.clock.now() + timedelta(minutes=15)


async def test_an_event_is_renewed_for_a_day(house: _House) -> None:
    """At 24 h it is too old, however often it was renewed."""
    house.clock.advance(timedelta(hours=24) - timedelta(seconds=1))
    token, _ = await house.issuing.renew_grant(EVENT, ORIGIN)
    renewed = verify_slack_grant(token.reveal(), house.grant_keys, now=house.clock.now())
    house.clock.advance(timedelta(seconds=1))
    for grant in (EVENT, renewed):
        with pytest.raises(EventTooOld):
            await house.issuing.renew_grant(grant, ORIGIN)


async def test_an_event_dated_ahead_is_not_renewed(house: _House) -> None:
    """A date in the future would buy more than a day."""
    ahead = replace(EVENT, event_at=START + timedelta(minutes=5, seconds=1))
    with pytest.raises(InvalidToken):
        await house.issuing.renew_grant(ahead, ORIGIN)


async def test_nothing_is_renewed_in_a_released_workspace(house: _House) -> None:
    """An uninstall ends the events that wait."""
    await house.store.release(KEY, INSTALLATION, ORIGIN)
    with pytest.raises(WorkspaceReleased):
        await house.issuing.renew_grant(EVENT, ORIGIN)
