"""The worker's side of the gateway database in memory, for tests.

One contract suite holds this and Postgres to the same. No method gives up
control half-way, which is what a transaction is here.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.lanes import (
    Claim,
    Dead,
    Delivery,
    Done,
    LaneLost,
    Outcome,
    Policy,
    Retry,
    Settlement,
    Untouched,
)
from interlock_gateway.worker.ports import RunRecord
from interlock_gateway.worker.slack import Place
from interlock_gateway.worker.waiting import FIRST_CHECK, WAITS_FOR, WaitingQuestion

_NOBODY = Choice("", "", "")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Put:
    """An event as edge puts it.

    Attributes:
        lane: The thread's key; control events get a lane of their own beside it.
        second_key: As in edge; "" for none.
    """

    event_key: str
    lane: str
    team: str
    body: bytes
    grant: Secret[str]
    event_at: datetime
    kind: str = "event"
    second_key: str = ""
    is_control: bool = False
    trace_parent: str = ""
    request_id: str = ""


@dataclass(slots=True)
class _Event:
    event_id: int
    put: Put
    lane: str
    not_before: datetime
    state: str = "ready"
    attempts: int = 0
    reason: str = ""
    cause: str = "slack"
    resume_grant: Secret[str] | None = None
    choice: Choice = _NOBODY


@dataclass(slots=True)
class _Lane:
    team: str
    is_control: bool
    ready_at: datetime
    owner: str = ""
    lease_until: datetime = _NEVER
    fence: int = 0


class MemoryInbox:
    """The `Inbox` port, and edge's way in."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._events: list[_Event] = []
        self._lanes: dict[str, _Lane] = {}
        self._fence = 0
        self._changed = asyncio.Event()

    async def put(self, put: Put) -> str:
        """Store an event once: `stored` or `duplicate`."""
        for event in self._events:
            is_same = event.put.event_key == put.event_key
            if is_same or (put.second_key and event.put.second_key == put.second_key):
                return "duplicate"
        lane = f"control:{put.lane}" if put.is_control else put.lane
        now = self._clock.now()
        self._lanes.setdefault(lane, _Lane(put.team, put.is_control, now))
        self._events.append(_Event(len(self._events) + 1, put, lane, now))
        self._changed.set()
        return "stored"

    def state_of(self, event_key: str) -> tuple[str, str]:
        """Tell an event's state and reason."""
        event = self.find(event_key)
        return event.state, event.reason

    def find(self, event_key: str) -> _Event:
        """Find a stored event."""
        return next(event for event in self._events if event.put.event_key == event_key)

    async def claim(self, owner: str, slots: int, control_slots: int) -> Sequence[Claim]:
        """Take due lanes; see the port."""
        now = self._clock.now()
        busy = Counter(
            lane.team
            for lane in self._lanes.values()
            if lane.lease_until > now and not lane.is_control
        )
        due = sorted(
            (
                (name, lane)
                for name, lane in self._lanes.items()
                if lane.ready_at <= now and lane.lease_until <= now
            ),
            key=lambda each: (each[1].ready_at, each[0]),
        )
        turns: list[tuple[int, datetime, str]] = []
        for name, lane in due:
            if not lane.is_control:
                busy[lane.team] += 1
                turns.append((busy[lane.team], lane.ready_at, name))
        cap = self._policy.team_cap
        chosen = [name for name, lane in due if lane.is_control][:control_slots]
        chosen += [name for turn, _, name in sorted(turns) if turn <= cap][:slots]
        return [self._take(name, owner) for name in chosen]

    def _take(self, name: str, owner: str) -> Claim:
        lane = self._lanes[name]
        self._fence += 1
        lane.owner, lane.fence = owner, self._fence
        lane.lease_until = self._clock.now() + self._policy.lease
        return Claim(name, lane.fence, lane.team, lane.is_control)

    def is_held(self, claim: Claim) -> bool:
        """Tell whether a claim still holds its lane."""
        lane = self._lanes.get(claim.lane)
        return lane is not None and lane.fence == claim.fence and bool(lane.owner)

    async def step(
        self, claim: Claim, settlement: Settlement | None, *, keep: bool
    ) -> Delivery | None:
        """Settle and hand out; see the port."""
        if not self.is_held(claim):
            raise LaneLost
        now = self._clock.now()
        if settlement is not None:
            self._settle(claim, settlement.event_id, settlement.outcome)
        ready = [
            event for event in self._events if event.lane == claim.lane and event.state == "ready"
        ]
        for event in ready:
            if event.attempts > self._policy.max_attempts:
                event.state, event.reason = "dead", "GAVE_UP"
        head = next((event for event in ready if event.state == "ready"), None)
        if head is None:
            del self._lanes[claim.lane]
            return None
        lane = self._lanes[claim.lane]
        if head.not_before > now or not keep:
            lane.owner, lane.lease_until = "", _NEVER
            lane.ready_at = max(head.not_before, now)
            return None
        head.attempts += 1
        lane.lease_until = now + self._policy.lease
        return self._delivery(claim, head)

    def _settle(self, claim: Claim, event_id: int, outcome: Outcome) -> None:
        event = self._events[event_id - 1]
        if event.state != "ready" or event.lane != claim.lane:
            return
        match outcome:
            case Done():
                event.state, event.reason = "done", outcome.reason
                event.put = replace(event.put, body=b"", grant=Secret(""))
            case Dead():
                event.state, event.reason = "dead", outcome.reason
            case Retry():
                is_last = event.attempts >= self._policy.max_attempts
                event.state, event.reason = "dead" if is_last else "ready", outcome.reason
                event.not_before = self._clock.now() + outcome.after
            case Untouched():
                event.attempts -= 1

    def _delivery(self, claim: Claim, event: _Event) -> Delivery:
        return Delivery(
            event_id=event.event_id,
            event_key=event.put.event_key,
            kind=event.put.kind,
            claim=claim,
            body=event.put.body,
            grant=event.put.grant,
            event_at=event.put.event_at,
            attempt=event.attempts,
            is_last=event.attempts >= self._policy.max_attempts,
            is_given_up=event.attempts > self._policy.max_attempts,
            cause=event.cause,
            resume_grant=event.resume_grant,
            project_id=event.choice.project_id,
            agent_id=event.choice.agent_id,
            agent_name=event.choice.agent_name,
            trace_parent=event.put.trace_parent,
            request_id=event.put.request_id,
        )

    async def beat(self, claims: Sequence[Claim]) -> frozenset[Claim]:
        """Renew leases; see the port."""
        held = frozenset(claim for claim in claims if self.is_held(claim))
        for claim in held:
            self._lanes[claim.lane].lease_until = self._clock.now() + self._policy.lease
        return held

    async def news(self) -> AsyncIterator[None]:
        """Yield when something was put; see the port."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield None


class MemoryRuns:
    """The `RunRecords` port.

    Attributes:
        begun: The message id and place of every run begun, in order.
        records: What is known of each run, by event.
        outcomes: How each ended.
    """

    def __init__(self, inbox: MemoryInbox) -> None:
        self._inbox = inbox
        self.begun: list[tuple[str, Place]] = []
        self.records: dict[str, RunRecord] = {}
        self.outcomes: dict[str, str] = {}

    async def find(self, event_key: str) -> RunRecord | None:
        """Find the run of an event."""
        return self.records.get(event_key)

    async def begin(self, delivery: Delivery, message_id: str, place: Place) -> None:
        """Record that a run is about to be started."""
        self._require_held(delivery)
        self.begun.append((message_id, place))
        self.records.setdefault(delivery.event_key, RunRecord(has_ended=False))

    async def add_message(self, delivery: Delivery, ts: str) -> None:
        """Record a message of the answer."""
        self._require_held(delivery)
        record = self.records[delivery.event_key]
        if ts not in record.messages:
            messages = (*record.messages, ts)
            self.records[delivery.event_key] = replace(record, messages=messages)

    async def end(self, delivery: Delivery, outcome: str) -> None:
        """Record that the answer has its visible end."""
        self._require_held(delivery)
        record = self.records[delivery.event_key]
        self.records[delivery.event_key] = replace(record, has_ended=True)
        self.outcomes[delivery.event_key] = outcome

    async def withdraw(self, delivery: Delivery) -> None:
        """Forget a run that is known not to have started."""
        self._require_held(delivery)
        self.records.pop(delivery.event_key, None)

    async def greeted(self, delivery: Delivery) -> None:
        """Record that the person was told of the link."""
        self._require_held(delivery)
        event = self._inbox.find(delivery.event_key)
        event.cause = "greeted" if event.cause == "linked" else event.cause

    def _require_held(self, delivery: Delivery) -> None:
        if not self._inbox.is_held(delivery.claim):
            raise LaneLost


@dataclass(slots=True)
class _Waiting:
    question: WaitingQuestion
    put: Put
    awaits: str
    created_at: datetime
    next_check_at: datetime = field(default=_NEVER)


class MemoryWaiting:
    """The `WaitingQuestions` port."""

    def __init__(self, inbox: MemoryInbox, clock: Clock) -> None:
        self._inbox = inbox
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}

    async def await_link(self, delivery: Delivery, team: str, slack_user_id: str) -> None:
        """Keep a question until its user links."""
        older = await self.find_by_user(team, slack_user_id)
        if older is not None:
            await self.forget(older.event_key)
        self._keep("link", delivery, team, slack_user_id, ())

    async def await_agent(
        self, delivery: Delivery, team: str, slack_user_id: str, choices: Sequence[Choice]
    ) -> None:
        """Keep a question until its user picks an agent."""
        self._keep("agent", delivery, team, slack_user_id, choices)

    def _keep(
        self,
        awaits: str,
        delivery: Delivery,
        team: str,
        slack_user_id: str,
        choices: Sequence[Choice],
    ) -> None:
        now = self._clock.now()
        self._waiting[delivery.event_key] = _Waiting(
            WaitingQuestion(delivery.event_key, team, slack_user_id, delivery.grant, choices),
            Put(
                event_key=delivery.event_key,
                lane=delivery.claim.lane.removeprefix("control:"),
                team=team,
                body=delivery.body,
                grant=delivery.grant,
                event_at=delivery.event_at,
                kind=delivery.kind,
                trace_parent=delivery.trace_parent,
                request_id=delivery.request_id,
            ),
            awaits,
            now,
            now + FIRST_CHECK,
        )

    def _is_live(self, each: _Waiting, awaits: str) -> bool:
        return each.awaits == awaits and each.put.event_at + WAITS_FOR > self._clock.now()

    async def find_by_user(self, team: str, slack_user_id: str) -> WaitingQuestion | None:
        """Find the question that waits for a user's link."""
        for each in self._waiting.values():
            owner = (each.question.team, each.question.slack_user_id)
            if self._is_live(each, "link") and owner == (team, slack_user_id):
                return each.question
        return None

    async def find_by_key(self, event_key: str) -> WaitingQuestion | None:
        """Find a question that waits for an agent."""
        each = self._waiting.get(event_key)
        return each.question if each and self._is_live(each, "agent") else None

    async def resume_linked(self, event_key: str, resume_grant: Secret[str] | None) -> bool:
        """Put a question back into its lane."""
        return await self._resume(event_key, "linked", resume_grant, _NOBODY)

    async def resume_picked(self, event_key: str, choice: Choice) -> bool:
        """Put a question back into its lane with its agent."""
        return await self._resume(event_key, "picked", None, choice)

    async def _resume(
        self, event_key: str, cause: str, resume_grant: Secret[str] | None, choice: Choice
    ) -> bool:
        waiting = self._waiting.pop(event_key, None)
        if waiting is None:
            return False
        put = replace(waiting.put, event_key=f"{cause}:{event_key}", grant=waiting.question.grant)
        if await self._inbox.put(put) == "duplicate":
            return False
        event = self._inbox.find(put.event_key)
        event.cause, event.resume_grant, event.choice = cause, resume_grant, choice
        return True

    async def due_for_check(self, limit: int) -> Sequence[WaitingQuestion]:
        """List questions whose link should be asked about now."""
        now = self._clock.now()
        due = [
            each
            for each in self._waiting.values()
            if self._is_live(each, "link") and each.next_check_at <= now
        ]
        due = sorted(due, key=lambda each: each.next_check_at)[:limit]
        for each in due:
            pause = max(FIRST_CHECK, (now - each.created_at) / 4, timedelta())
            each.next_check_at = now + pause
        return [each.question for each in due]

    async def keep_grant(self, event_key: str, grant: Secret[str]) -> None:
        """Replace a waiting question's grant by its renewal."""
        waiting = self._waiting[event_key]
        waiting.question = replace(waiting.question, grant=grant)

    async def forget(self, event_key: str) -> None:
        """Erase a question that will never run."""
        self._waiting.pop(event_key, None)


class ManualClock:
    """A `Clock` that moves when told to."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Read the wall clock."""
        return self._now

    def monotonic(self) -> float:
        """Read the clock that never steps back."""
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self._now += by
        self._monotonic += by.total_seconds()
