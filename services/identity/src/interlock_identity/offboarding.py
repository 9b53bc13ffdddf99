"""End the links of people and organizations that are gone.

Nobody's token waits for this: membership is asked before every one. What is
swept here is what was left behind.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.audit import OWN_WORK, Origin
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, TenantId, UserId
from interlock_identity.membership import MembershipSource

_PAGE = 500
# Of a source that answers in 5 ms this makes 1,600 people a second, without being a load on it.
_QUESTIONS_AT_ONCE = 8
# Fewer than these may always go: a small team may be dissolved in one day.
_FEW = 20
# An organization is not a person, but its absence is kept beside theirs.
_NOBODY = UserId("")

_T = TypeVar("_T")


class TooManyDepartures(ServiceError):
    """More than half of all linked people seem to be gone at once; nothing was removed."""

    kind = Kind.PRECONDITION
    reason = "TOO_MANY_DEPARTURES"


@dataclass(frozen=True, slots=True)
class Seat:
    """An account with a link, and one of the Slack users linked to it."""

    account: Account
    slack_user: SlackUser


class DepartureStore(Protocol):
    """Whoever may be gone, and how to remove what is left of them.

    Every method raises DatabaseUnavailable when the database does not answer.
    """

    async def list_seats(self, after: Account | None, limit: int) -> list[Seat]:
        """List accounts with links, one row each, by tenant and user."""
        ...

    async def list_organizations(self, after: TenantId | None, limit: int) -> list[TenantId]:
        """List the organizations known here, by id."""
        ...

    async def note_attendance(
        self, present: Collection[Account], absent: Collection[Account], grace: timedelta
    ) -> list[Account]:
        """Note who was found and who was not; return who has been absent for `grace`.

        The first absence counts, by the database's clock; being found ends it.
        """
        ...

    async def remove_departed(self, account: Account, origin: Origin) -> int:
        """Remove an account's links in its tenant and unname it there; count the links."""
        ...

    async def forget_user(self, user_id: UserId, origin: Origin) -> int:
        """Remove an account and everything that stands on it; count the links removed."""
        ...

    async def forget_organization(self, tenant_id: TenantId, origin: Origin) -> int:
        """Remove an organization and everything that stands on it; count the links removed."""
        ...


class Offboarding:
    """Forget people and organizations, when told to and when they are gone.

    Args:
        store: Where their links are.
        membership: Who belongs to which organization; asked afresh.
        grace: How long somebody must be absent, at two sweeps or more, before
            their links are removed. A member table that is restored or moved
            looks empty for a while.
    """

    def __init__(
        self, *, store: DepartureStore, membership: MembershipSource, grace: timedelta
    ) -> None:
        self._store = store
        self._membership = membership
        self._grace = grace

    async def forget_user(self, user_id: UserId, origin: Origin) -> int:
        """Remove an account and everything that stands on it; count the links removed.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        removed = await self._store.forget_user(user_id, origin)
        structlog.get_logger().info("user_forgotten", links=removed)
        return removed

    async def forget_organization(self, tenant_id: TenantId, origin: Origin) -> int:
        """Remove an organization and everything that stands on it; count the links removed.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        removed = await self._store.forget_organization(tenant_id, origin)
        structlog.get_logger().info("organization_forgotten", tenant_id=tenant_id, links=removed)
        return removed

    async def sweep(self) -> Mapping[str, int]:
        """Remove the links of everybody who has been gone for the grace period; count them.

        Asks about each linked account and each organization once. Safe to
        repeat and to interrupt.

        Raises:
            TooManyDepartures: More than half of the people seem gone; a human
                must look at the membership source, or forget organizations by name.
            MembershipUnavailable: The source stopped answering; what was found
                so far is noted, and nobody removed.
            DatabaseUnavailable: The database does not answer.
        """
        origin = Origin(OWN_WORK, "sweep", request_id="")
        organizations, links = await self._sweep_organizations(origin)
        asked, gone = await self._find_departed()
        if len(gone) > max(_FEW, asked // 2):
            raise TooManyDepartures
        for account in gone:
            links += await self._store.remove_departed(account, origin)
        return {"links": links, "organizations": organizations}

    async def _sweep_organizations(self, origin: Origin) -> tuple[int, int]:
        gone: list[Account] = []
        after: TenantId | None = None
        while page := await self._store.list_organizations(after, _PAGE):
            after = page[-1]
            found = await _ask_all(page, self._membership.has_organization)
            gone += await self._note([Account(each, _NOBODY) for each in page], found)
        links = 0
        for account in gone:
            links += await self.forget_organization(account.tenant_id, origin)
        return len(gone), links

    async def _find_departed(self) -> tuple[int, list[Account]]:
        asked, gone = 0, list[Account]()
        after: Account | None = None
        while page := await self._store.list_seats(after, _PAGE):
            after = page[-1].account
            asked += len(page)
            found = await _ask_all(page, self._is_member)
            gone += await self._note([each.account for each in page], found)
        return asked, gone

    async def _is_member(self, seat: Seat) -> bool:
        return (await self._membership.role_of(seat.account, seat.slack_user)).is_member

    async def _note(self, accounts: list[Account], found: list[bool]) -> list[Account]:
        answers = list(zip(accounts, found, strict=True))
        present = [each for each, is_there in answers if is_there]
        absent = [each for each, is_there in answers if not is_there]
        return await self._store.note_attendance(present, absent, self._grace)


async def _ask_all(them: Sequence[_T], ask: Callable[[_T], Awaitable[bool]]) -> list[bool]:
    """Ask about all of them, a few at a time; the first failure ends it."""
    limit = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

    async def ask_one(it: _T) -> bool:
        async with limit:
            return await ask(it)

    try:
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(ask_one(each)) for each in them]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [each.result() for each in answers]
