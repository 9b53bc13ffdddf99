"""Take events out of the inbox, one at a time per lane, in order, at least once.

A lane is one Slack thread (or the control events of one). Whoever claims a lane
holds it under a lease and a fencing number: a holder that was paused past its
lease can no longer settle anything, and its handler is cancelled as soon as it
learns of it. Handing an event out counts as an attempt, so that an event that
kills its worker is given up as well.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.logs import describe_exception
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import hop

# Long enough for a slow database or a paused machine; 5 s was tried and was too short.
LEASE = timedelta(seconds=30)
# Notifications are lost while the connection that listens is made anew.
POLL = timedelta(seconds=1)
# Between two tries of a call while Postgres is away.
DATABASE_PAUSE = timedelta(milliseconds=500)
# After this many attempts, crashes included, an event is given up.
MAX_ATTEMPTS = 5
# A thread that never falls silent gives its place back after this many events.
EVENTS_PER_TURN = 10

_log = structlog.get_logger()


class LaneLost(ServiceError):
    """Somebody else holds the lane now; nothing was written."""

    kind = Kind.LOST_RACE
    reason = "LANE_LOST"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to act for one lane, until the lease ends.

    Attributes:
        fence: Larger at every claim of any lane; proves that the lane is still ours.
        is_control: It holds events that must not wait behind a run.
    """

    lane: str
    fence: int
    team: str
    is_control: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event, handed out to the holder of its lane.

    Attributes:
        kind: `event`, `interaction` or `command`.
        grant: The slackGrant that edge minted for it.
        attempt: Which attempt this is, from 1, crashes included.
        is_last: A failure now is final: say so where the person can see it.
        is_given_up: The last attempt crashed. Only say that it failed.
        cause: `slack`, or for a question that waited: `picked`, `linked`, or
            `greeted` when its user was told of the link.
        resume_grant: The grant that came with the link, if one did.
        project_id, agent_id, agent_name: The agent that was picked, else "".
        trace_parent: The W3C `traceparent` of whoever stored it, else "".
        request_id: The request's id there, else "".
    """

    event_id: int
    event_key: str
    kind: str
    claim: Claim
    body: bytes
    grant: Secret[str]
    event_at: datetime
    attempt: int
    is_last: bool
    is_given_up: bool
    cause: str = "slack"
    resume_grant: Secret[str] | None = None
    project_id: str = ""
    agent_id: str = ""
    agent_name: str = ""
    trace_parent: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The event came to its end; what it held is erased.

    Attributes:
        reason: A stable word for the record, "" for the ordinary end.
    """

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing happened that a second attempt could double."""

    after: timedelta
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The event is given up and kept 7 days for a replay."""

    reason: str


@dataclass(frozen=True, slots=True)
class Untouched:
    """The event was not begun; the attempt does not count."""


Outcome = Done | Retry | Dead | Untouched


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of the event in hand."""

    event_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Policy:
    """How lanes are shared out.

    Attributes:
        slots: Lanes of conversations this worker holds at most.
        control_slots: Lanes of control events, beside them, so that a stop
            never waits for a free slot.
        team_cap: Lanes of one team under way at most, over all workers.
    """

    slots: int = 32
    control_slots: int = 8
    team_cap: int = 8
    lease: timedelta = LEASE
    max_attempts: int = MAX_ATTEMPTS
    poll: timedelta = POLL


class Inbox(Protocol):
    """The inbox, as its consumer sees it."""

    async def claim(self, owner: str, slots: int, control_slots: int) -> Sequence[Claim]:
        """Take due lanes: of the least busy team first, none beyond the team cap.

        Raises:
            ServiceError: UNAVAILABLE while the database is away.
        """
        ...

    async def step(
        self, claim: Claim, settlement: Settlement | None, *, keep: bool
    ) -> Delivery | None:
        """Settle the event in hand and hand out the lane's next one.

        None means that the lane is no longer ours: empty, not due yet, or given
        back because `keep` is false. May be repeated when its answer was lost.

        Raises:
            LaneLost: Somebody else holds the lane; nothing was settled.
            ServiceError: UNAVAILABLE while the database is away.
        """
        ...

    async def beat(self, claims: Sequence[Claim]) -> frozenset[Claim]:
        """Renew leases; return the claims still held.

        Raises:
            ServiceError: UNAVAILABLE when there is no answer within a tenth of a lease.
        """
        ...

    def news(self) -> AsyncIterator[None]:
        """Yield whenever something may have come in; survives the database's restarts."""
        ...


Handler = Callable[[Delivery], Awaitable[Outcome]]


@dataclass(slots=True)
class _Held:
    """A claimed lane and the task that works it off."""

    claim: Claim
    renewed_at: float
    task: asyncio.Task[None] | None = field(default=None)


class LaneDriver:
    """Work lanes off until told to stop.

    Args:
        inbox: Where events come from.
        handle: Acts upon one event. Cancelled when its lane is lost.
        owner: Names this process in the inbox.
    """

    def __init__(
        self, inbox: Inbox, handle: Handler, *, owner: str, policy: Policy, clock: Clock
    ) -> None:
        self._inbox = inbox
        self._handle = handle
        self._owner = owner
        self._policy = policy
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def lanes_in_hand(self) -> int:
        """How many lanes are being worked off."""
        return len(self._held)

    async def run(self, stop: asyncio.Event, drain: timedelta) -> None:
        """Claim and work off lanes until `stop`; then let go of them.

        After `stop` nothing is claimed. What is in hand is finished and its
        lane given back; what is not finished after `drain` is cancelled and
        comes back to another worker when its lease ends.
        """
        self._stopping = stop
        beating = asyncio.create_task(self._beat())
        listening = asyncio.create_task(self._listen())
        stopped = asyncio.create_task(stop.wait())
        stopped.add_done_callback(lambda _: self._wake.set())
        try:
            while not stop.is_set():
                self._wake.clear()
                await self._claim()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._policy.poll.total_seconds())
            await self._finish(drain)
        finally:
            for task in (beating, listening, stopped):
                task.cancel()
            await asyncio.gather(beating, listening, stopped, return_exceptions=True)

    async def _finish(self, drain: timedelta) -> None:
        tasks = [held.task for held in self._held.values() if held.task]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=drain.total_seconds())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            _log.warning("lanes_abandoned", lanes=len(late))

    async def _claim(self) -> None:
        controls = sum(held.claim.is_control for held in self._held.values())
        slots = self._policy.slots - (len(self._held) - controls)
        control_slots = self._policy.control_slots - controls
        if slots <= 0 and control_slots <= 0:
            return
        asked_at = self._clock.monotonic()
        try:
            claims = await self._inbox.claim(self._owner, max(slots, 0), max(control_slots, 0))
        except ServiceError as error:
            _log.warning("claim_failed", reason=error.reason)
            return
        for claim in claims:
            held = self._held[claim.lane] = _Held(claim, asked_at)
            held.task = asyncio.create_task(self._hold(held))
        if claims:
            # There may be more than one claim takes.
            self._wake.set()

    async def _hold(self, held: _Held) -> None:
        lane = held.claim.lane
        try:
            await self._work(held.claim)
        finally:
            # An emptied lane may have come again, and been claimed, before we got here.
            if self._held.get(lane) is held:
                del self._held[lane]
            self._wake.set()

    async def _work(self, claim: Claim) -> None:
        """Work one lane off."""
        settlement: Settlement | None = None
        turns = 0
        while True:
            keep = turns < EVENTS_PER_TURN and not self._stopping.is_set()
            try:
                delivery = await self._step(claim, settlement, keep=keep)
                if delivery is None:
                    return
                is_begun = not self._stopping.is_set()
                outcome = await self._act(delivery) if is_begun else Untouched()
            except LaneLost:
                _log.warning("lane_lost", team=claim.team)
                return
            turns += 1
            settlement = Settlement(delivery.event_id, outcome)

    async def _step(
        self, claim: Claim, settlement: Settlement | None, *, keep: bool
    ) -> Delivery | None:
        """Step, and step again while the database is away; `_beat` ends this with the lease."""
        while True:
            try:
                return await self._inbox.step(claim, settlement, keep=keep)
            except LaneLost:
                raise
            except ServiceError as error:
                _log.warning("step_failed", reason=error.reason)
                await asyncio.sleep(DATABASE_PAUSE.total_seconds())

    async def _act(self, delivery: Delivery) -> Outcome:
        """Act under the trace and the id that edge received the event with."""
        with hop(
            f"inbox {delivery.kind}", request_id=delivery.request_id, parent=delivery.trace_parent
        ):
            return await self._handled(delivery)

    async def _handled(self, delivery: Delivery) -> Outcome:
        started_at = self._clock.monotonic()
        try:
            outcome = await self._handle(delivery)
        except LaneLost:
            raise
        except Exception as error:  # noqa: BLE001 - One event's bug must not end the others.
            _log.error("event_crashed", error=describe_exception(error))
            outcome = Dead("INTERNAL")
        _log.info(
            "event_settled",
            kind=delivery.kind,
            team=delivery.claim.team,
            attempt=delivery.attempt,
            outcome=type(outcome).__name__.lower(),
            reason=getattr(outcome, "reason", ""),
            elapsed_ms=round((self._clock.monotonic() - started_at) * 1000),
        )
        return outcome

    async def _beat(self) -> None:
        """Renew the leases of what is in hand; cancel what was lost."""
        lease = self._policy.lease.total_seconds()
        pause = lease / 5
        while True:
            await asyncio.sleep(pause)
            held = list(self._held.values())
            asked_at = self._clock.monotonic()
            try:
                renewed = await self._inbox.beat([each.claim for each in held])
            except ServiceError as error:
                _log.warning("beat_failed", reason=error.reason)
                self._cancel_ending(held)
                pause = lease / 30
                continue
            pause = lease / 5
            for each in held:
                if each.claim in renewed:
                    each.renewed_at = asked_at
                elif each.task and self._held.get(each.claim.lane) is each:
                    _log.warning("lane_lost", team=each.claim.team)
                    each.task.cancel()

    def _cancel_ending(self, held: Sequence[_Held]) -> None:
        """Stop acting for lanes that another worker may take before the next try to renew."""
        deadline = self._clock.monotonic() - 0.8 * self._policy.lease.total_seconds()
        for each in held:
            if each.renewed_at <= deadline and each.task:
                _log.warning("lease_ending", team=each.claim.team)
                each.task.cancel()

    async def _listen(self) -> None:
        async for _ in self._inbox.news():
            self._wake.set()
