"""Who belongs to an organization now, asked before every user token."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, Role, TenantId

# About 2 MB.
MEMBERSHIPS_KEPT = 10_000


class MembershipUnavailable(ServiceError):
    """Nobody can say now who belongs to the organization."""

    kind = Kind.UNAVAILABLE
    reason = "MEMBERSHIP_UNAVAILABLE"


class MembershipSource(Protocol):
    """Who belongs to which organization."""

    async def role_of(self, account: Account, acting_as: SlackUser) -> Role:
        """Say what a person is in an organization; NONE for a stranger to it.

        A source that knows members but no roles says MEMBER.

        Args:
            account: The person, and the organization.
            acting_as: The Slack user linked to the account; a source that is
                asked as the person names it.

        Raises:
            MembershipUnavailable: The source does not answer, or not as agreed.
        """
        ...

    async def has_organization(self, tenant_id: TenantId) -> bool:
        """Say whether an organization exists; True where the source cannot tell.

        Raises:
            MembershipUnavailable: The source does not answer, or not as agreed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a person was in an organization.

    Attributes:
        at: The moment of asking: the answer is not younger than that.
    """

    role: Role
    at: datetime


class RememberedMembership:
    """Ask a membership source once in a while for each person.

    Only a yes is remembered: whoever joins can act at once, and whoever leaves
    cannot after `life`. A failure is never papered over with an older yes.
    """

    def __init__(
        self,
        source: MembershipSource,
        clock: Clock,
        *,
        life: timedelta,
        kept: int = MEMBERSHIPS_KEPT,
    ) -> None:
        self._source = source
        self._clock = clock
        self._life_s = life.total_seconds()
        self._kept = kept
        self._yes: dict[Account, tuple[float, Role]] = {}

    async def confirm(self, account: Account, acting_as: SlackUser) -> Confirmation:
        """Say what a person is in an organization, and as of when.

        Raises:
            MembershipUnavailable: The source does not answer, or not as agreed.
        """
        now, asked_at = self._clock.now(), self._clock.monotonic()
        if known := self._yes.get(account):
            yes_at, role = known
            if asked_at - yes_at < self._life_s:
                return Confirmation(role, now - timedelta(seconds=asked_at - yes_at))
            del self._yes[account]
        role = await self._source.role_of(account, acting_as)
        if role.is_member and self._life_s:
            # From the moment of asking: the answer may have been true only then.
            self._yes[account] = (asked_at, role)
            if len(self._yes) > self._kept:
                del self._yes[next(iter(self._yes))]
        return Confirmation(role, now)
