"""Record what was refused, before the caller hears of it.

What succeeds is recorded by the store, in the transaction that does it. A
flood of like refusals ends in few records.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.people import Session
from interlock_identity.workspaces import DatabaseUnavailable
from interlock_tokens.grants import AdminGrant, InstallGrant, SlackGrant

# Decisions against somebody. A call that is malformed or that cannot be served now is neither.
_REFUSALS = frozenset(
    {
        Kind.UNAUTHENTICATED,
        Kind.FORBIDDEN,
        Kind.NOT_FOUND,
        Kind.CONFLICT,
        Kind.PRECONDITION,
        Kind.EXHAUSTED,
    }
)
_WINDOW = timedelta(seconds=1)

_Grant = TypeVar("_Grant", SlackGrant | AdminGrant, SlackGrant, AdminGrant, InstallGrant)


class AuditLog(Protocol):
    """Where records go."""

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records.

        What names a Slack workspace but none of ours is noted in the claim that
        there is on it, so that its owner finds it.

        Raises:
            DatabaseUnavailable: They are not known to be committed.
        """
        ...


class Attempt:
    """One call, and what it has proved so far.

    Attributes:
        origin: Who called, and with what proof.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._about = AuditEvent("call.refused", origin)

    def shows_session(self, session: Session) -> Session:
        """Note whose browser asks; gives the session back."""
        self.origin = replace(self.origin, actor_id=session.person.user_id)
        self._about = replace(
            self._about,
            origin=self.origin,
            tenant_id=session.tenant.tenant_id,
            user_id=session.person.user_id,
        )
        return session

    def shows_grant(self, grant: _Grant) -> _Grant:
        """Note the verified grant that was shown; gives it back."""
        self.origin = replace(self.origin, grant_jti=grant.jti)
        about = replace(self._about, origin=self.origin)
        if not isinstance(grant, SlackGrant):
            about = replace(about, tenant_id=grant.tenant_id, user_id=grant.user_id)
        if not isinstance(grant, InstallGrant):
            about = replace(
                about,
                slack_enterprise_id=grant.workspace.enterprise_id,
                slack_team_id=grant.workspace.team_id,
                slack_user_id=grant.slack_user_id,
            )
        self._about = about
        return grant

    def refused(self, reason: str) -> AuditEvent:
        """Say that the call was refused."""
        return replace(self._about, outcome=reason)


@dataclass(slots=True)
class _Window:
    """One second of like refusals, after the first of them was recorded."""

    until: float
    uncounted: AuditEvent | None = None


class AuditTrail:
    """Record refusals, coalesced by caller, RPC, reason and whom they are about."""

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._windows: dict[tuple[str, ...], _Window] = {}

    @asynccontextmanager
    async def attempt(
        self, origin: Origin, answer: type[ServiceError] | None = None
    ) -> AsyncIterator[Attempt]:
        """Record the block's refusal, if it raises one, before it gets out.

        Args:
            origin: Who called.
            answer: What is no refusal here, but what the call asks about.
        """
        attempt = Attempt(origin)
        try:
            yield attempt
        except ServiceError as error:
            is_answer = answer is not None and isinstance(error, answer)
            if error.kind in _REFUSALS and not is_answer:
                await self.note(attempt.refused(error.reason))
            raise

    async def note(self, event: AuditEvent) -> None:
        """Record a refusal, or count it with its like.

        Never raises: the call is refused whether or not that can be recorded.
        """
        kind = _kind_of(event)
        now = self._clock.monotonic()
        window = self._windows.get(kind)
        if window is None or now >= window.until:
            events = [window.uncounted] if window and window.uncounted else []
            self._windows[kind] = _Window(now + _WINDOW.total_seconds())
            await self._record([*events, event])
            return
        counted = window.uncounted
        # Of many, the first stands for all; its ids lead to one of them.
        window.uncounted = replace(counted, count=counted.count + 1) if counted else event

    async def flush(self, *, all_of_them: bool = False) -> None:
        """Commit what was counted in seconds that are over, or in all, and forget them."""
        now = self._clock.monotonic()
        over = {
            kind: window
            for kind, window in self._windows.items()
            if all_of_them or now >= window.until
        }
        for kind in over:
            del self._windows[kind]
        events = [window.uncounted for window in over.values() if window.uncounted]
        if events:
            await self._record(events)

    async def _record(self, events: Sequence[AuditEvent]) -> None:
        try:
            await self._log.record(events)
        except DatabaseUnavailable:
            structlog.get_logger().error(
                "refusals_not_recorded",
                refused=[" ".join(_kind_of(each)[:3]) for each in events],
                count=sum(each.count for each in events),
            )


def _kind_of(event: AuditEvent) -> tuple[str, ...]:
    origin = event.origin
    about = (event.tenant_id, event.user_id, event.slack_team_id, event.slack_user_id)
    return (origin.caller, origin.rpc, event.outcome, *about)
