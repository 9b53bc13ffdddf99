"""Record refused calls: each kind at once, and a flood of them in few records."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog

from interlock_chassis.clock import Clock
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.vault import DatabaseUnavailable

_WINDOW = timedelta(seconds=1)

_log = structlog.get_logger()


class AuditLog(Protocol):
    """Where records go."""

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records.

        Raises:
            DatabaseUnavailable: They are not known to be committed.
        """
        ...


@dataclass(slots=True)
class _Window:
    """One second of like refusals, after the first of them was recorded."""

    until: float
    uncounted: AuditEvent | None = None


class Refusals:
    """Coalesce refusals by caller, RPC and reason.

    The first of a kind is committed before the caller hears of it. The others
    of that second are counted, and committed as one record by `flush`.
    """

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._windows: dict[tuple[str, str, str], _Window] = {}

    async def note(self, origin: Origin, reason: str) -> None:
        """Record a refusal, or count it with its like.

        Never raises: the call is refused whether or not that can be recorded.
        """
        kind = (origin.actor, origin.rpc, reason)
        now = self._clock.monotonic()
        event = AuditEvent("call.refused", origin, outcome=reason)
        window = self._windows.get(kind)
        if window is None or now >= window.until:
            events = [window.uncounted] if window and window.uncounted else []
            self._windows[kind] = _Window(now + _WINDOW.total_seconds())
            await self._record([*events, event])
            return
        counted = window.uncounted
        # Of many, the first stands for all; its ids lead to one of them.
        window.uncounted = replace(counted, count=counted.count + 1) if counted else event

    async def flush(self) -> None:
        """Commit what was counted in seconds that are over, and forget them."""
        now = self._clock.monotonic()
        over = {kind: window for kind, window in self._windows.items() if now >= window.until}
        for kind in over:
            del self._windows[kind]
        events = [window.uncounted for window in over.values() if window.uncounted]
        if events:
            await self._record(events)

    async def close(self) -> None:
        """Commit everything counted so far; at the end of a process."""
        events = [each.uncounted for each in self._windows.values() if each.uncounted]
        self._windows.clear()
        if events:
            await self._record(events)

    async def _record(self, events: Sequence[AuditEvent]) -> None:
        try:
            await self._log.record(events)
        except DatabaseUnavailable:
            _log.error(
                "refusals_not_recorded",
                refused=[
                    f"{each.origin.actor} {each.origin.rpc} {each.outcome}" for each in events
                ],
                count=sum(each.count for each in events),
            )
