"""Refusals are recorded before the caller hears of them, and a flood of them cheaply."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from interlock_chassis.errors import InvalidArgument, ServiceError
from interlock_identity.adapters.memory import ManualClock
from interlock_identity.auditing import AuditTrail
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.people import Person, Role, Session, Tenant, TenantId, UserId
from interlock_identity.issuing import NoLongerAMember, UserNotLinked
from interlock_identity.linking import NotYourTenant
from interlock_identity.membership import MembershipUnavailable
from interlock_identity.workspaces import DatabaseUnavailable
from interlock_tokens.grants import InstallGrant, SlackGrant, Workspace

ORIGIN = Origin("gateway-worker", "/service/Method", "request")
NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
EVENT = SlackGrant(
    jti="event-jti",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=15),
    workspace=Workspace("", "T0TEAM", is_enterprise_install=False, app_id="A0APP"),
    slack_user_id="U0MIA",
    slack_user_team_id="T0TEAM",
    event_key="Ev1",
    event_type="app_mention",
    body_sha256="ab" * 32,
    event_at=NOW,
    renewed=False,
    is_stranger=False,
)
SESSION = Session(
    Person(UserId("user_olga"), "Olga", "olga@contoso.example"),
    Tenant(TenantId("contoso"), "Contoso"),
    Role.OWNER,
    "ref",
)


class _Log:
    """An audit log that keeps what it gets, or fails."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.is_away = False

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Keep records."""
        if self.is_away:
            raise DatabaseUnavailable
        self.events += events


class _House:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = _Log()
        self.trail = AuditTrail(self.log, self.clock)

    async def call(
        self,
        error: ServiceError,
        *,
        grant: SlackGrant | None = None,
        session: Session | None = None,
    ) -> None:
        async with self.trail.attempt(ORIGIN) as attempt:
            if grant:
                attempt.shows_grant(grant)
            if session:
                attempt.shows_session(session)
            raise error

    async def refuse(self, error: ServiceError, grant: SlackGrant = EVENT) -> None:
        with pytest.raises(type(error)):
            await self.call(error, grant=grant)


@pytest.fixture
def house() -> _House:
    """Give a trail over a fresh log."""
    return _House()


async def test_a_refusal_names_what_was_proved(house: _House) -> None:
    """An event's grant names the Slack user, a session the account, each with its proof."""
    await house.refuse(NoLongerAMember())
    with pytest.raises(NotYourTenant):
        await house.call(NotYourTenant(), session=SESSION)
    by_event, by_session = house.log.events
    assert (by_event.outcome, by_event.origin.grant_jti) == ("NO_LONGER_A_MEMBER", "event-jti")
    assert (by_event.slack_team_id, by_event.slack_user_id) == ("T0TEAM", "U0MIA")
    assert (by_session.outcome, by_session.origin.actor_id) == ("NOT_YOUR_TENANT", "user_olga")
    assert (by_session.tenant_id, by_session.user_id) == ("contoso", "user_olga")


async def test_an_unproved_refusal_names_the_caller_alone(house: _House) -> None:
    """Before anything is proved nothing else is known."""
    with pytest.raises(UserNotLinked):
        await house.call(UserNotLinked())
    assert house.log.events == [AuditEvent("call.refused", ORIGIN, outcome="USER_NOT_LINKED")]


async def test_what_succeeds_is_not_the_trails_to_record(house: _House) -> None:
    """The origin carries the proof on to whoever does record it."""
    grant = InstallGrant(
        jti="install-jti",
        issued_at=NOW,
        expires_at=NOW + timedelta(minutes=15),
        tenant_id="northwind",
        user_id="user_ada",
        state_sha256="0" * 64,
        source="direct",
    )
    async with house.trail.attempt(ORIGIN) as attempt:
        assert attempt.shows_grant(grant) is grant
        assert attempt.origin == replace(ORIGIN, grant_jti="install-jti")
    assert house.log.events == []


@pytest.mark.parametrize("error", [InvalidArgument(), MembershipUnavailable()])
async def test_what_is_no_decision_is_no_refusal(house: _House, error: ServiceError) -> None:
    """A malformed call, and one that cannot be served now, are told and forgotten."""
    await house.refuse(error)
    assert house.log.events == []


async def test_what_a_call_asks_about_is_no_refusal(house: _House) -> None:
    """Whether somebody is linked may be answered with no; anything else is still a refusal."""
    for error in (UserNotLinked(), NoLongerAMember()):
        with pytest.raises(type(error)):
            async with house.trail.attempt(ORIGIN, answer=UserNotLinked):
                raise error
    assert [each.outcome for each in house.log.events] == ["NO_LONGER_A_MEMBER"]


async def test_a_flood_of_like_refusals_ends_in_two_records(house: _House) -> None:
    """The first is recorded at once; the rest of its second are counted."""
    for _ in range(1000):
        await house.refuse(UserNotLinked())
    assert [each.count for each in house.log.events] == [1]
    await house.trail.flush()
    assert [each.count for each in house.log.events] == [1]
    house.clock.advance(timedelta(seconds=1))
    await house.trail.flush()
    assert [each.count for each in house.log.events] == [1, 999]
    await house.trail.flush(all_of_them=True)
    await house.refuse(UserNotLinked())
    assert [each.count for each in house.log.events] == [1, 999, 1]


async def test_refusals_of_others_are_recorded_apart(house: _House) -> None:
    """Another user, another reason and another second each have a record of their own."""
    await house.refuse(UserNotLinked())
    await house.refuse(UserNotLinked(), replace(EVENT, slack_user_id="U0BEN"))
    await house.refuse(NoLongerAMember())
    house.clock.advance(timedelta(seconds=1))
    await house.refuse(UserNotLinked())
    assert [(each.outcome, each.slack_user_id) for each in house.log.events] == [
        ("USER_NOT_LINKED", "U0MIA"),
        ("USER_NOT_LINKED", "U0BEN"),
        ("NO_LONGER_A_MEMBER", "U0MIA"),
        ("USER_NOT_LINKED", "U0MIA"),
    ]


async def test_the_rest_is_recorded_at_the_end(house: _House) -> None:
    """Whatever was counted when the process ends is written then."""
    for _ in range(3):
        await house.refuse(UserNotLinked())
    await house.trail.flush(all_of_them=True)
    assert [each.count for each in house.log.events] == [1, 2]


async def test_a_refusal_stands_without_its_record(house: _House) -> None:
    """A log that is away changes neither the answer nor what is recorded later."""
    house.log.is_away = True
    await house.refuse(UserNotLinked())
    house.log.is_away = False
    house.clock.advance(timedelta(seconds=1))
    await house.refuse(UserNotLinked())
    assert [each.outcome for each in house.log.events] == ["USER_NOT_LINKED"]
