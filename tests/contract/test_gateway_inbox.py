"""One suite for the inbox, the runs and the waiting questions: in memory and on Postgres."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.worker_memory import (
    ManualClock,
    MemoryInbox,
    MemoryRuns,
    MemoryWaiting,
    Put,
)
from interlock_gateway.adapters.worker_postgres import (
    PostgresInbox,
    PostgresRuns,
    PostgresWaiting,
    Statements,
)
from interlock_gateway.migrations import DATABASE, EDGE_ROLE, WORKER_ROLE
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.lanes import (
    Claim,
    Dead,
    Delivery,
    Done,
    Inbox,
    LaneLost,
    Outcome,
    Policy,
    Retry,
    Settlement,
    Untouched,
)
from interlock_gateway.worker.ports import RunRecord, RunRecords
from interlock_gateway.worker.slack import Place
from interlock_gateway.worker.waiting import WaitingQuestions

# Postgres lets nobody steal before it has been up for a whole lease.
POLICY = Policy(slots=8, control_slots=2, team_cap=2, max_attempts=3, lease=timedelta(seconds=1))
PICKED = Choice("project", "agent", "Agent")
PLACE = Place("C1CHANNEL", "1700000000.000100")


@dataclass(frozen=True, slots=True)
class Store:
    """One implementation under test."""

    inbox: Inbox
    runs: RunRecords
    waiting: WaitingQuestions
    put: Callable[[Put], Awaitable[str]]
    let_pass: Callable[[timedelta], Awaitable[None]]
    state_of: Callable[[str], Awaitable[tuple[str, str]]]

    async def add(self, key: str, lane: str = "T1:C1:1", team: str = "T1", **more: object) -> str:
        """Put an event of little interest in itself."""
        put = Put(
            event_key=key,
            lane=lane,
            team=team,
            body=b"{}",
            grant=Secret(f"grant of {key}"),
            event_at=datetime.now(UTC),
            **more,  # type: ignore[arg-type]
        )
        return await self.put(put)

    async def claim(self, slots: int = 8, controls: int = 2) -> list[Claim]:
        """Claim as one of several workers."""
        return list(await self.inbox.claim("worker", slots, controls))

    async def claim_one(self) -> Claim:
        """Claim the only due lane."""
        (claim,) = await self.claim()
        return claim

    async def next(
        self, claim: Claim, last: Delivery | None = None, outcome: Outcome | None = None
    ) -> Delivery | None:
        """Settle the last delivery and take the next one."""
        settlement = Settlement(last.event_id, outcome or Done()) if last else None
        return await self.inbox.step(claim, settlement, keep=True)

    async def take(self, claim: Claim) -> Delivery:
        """Take a delivery that must be there."""
        delivery = await self.next(claim)
        assert delivery is not None
        return delivery


@contextlib.asynccontextmanager
async def memory_store() -> AsyncIterator[Store]:
    """Make a store in memory."""
    clock = ManualClock()
    clock.advance(datetime.now(UTC) - clock.now())
    inbox = MemoryInbox(POLICY, clock)

    async def let_pass(by: timedelta) -> None:
        clock.advance(by)

    async def state_of(event_key: str) -> tuple[str, str]:
        return inbox.state_of(event_key)

    yield Store(
        inbox, MemoryRuns(inbox), MemoryWaiting(inbox, clock), inbox.put, let_pass, state_of
    )


@contextlib.asynccontextmanager
async def postgres_store(cluster: ScratchDatabases) -> AsyncIterator[Store]:
    """Make a store in a fresh database; edge's role puts, the worker's role takes."""
    urls = await cluster.database(DATABASE)
    async with (
        open_pool(urls.roles[EDGE_ROLE], application="test-edge") as edge,
        open_pool(urls.roles[WORKER_ROLE], application="test-worker") as worker,
    ):

        async def put(put: Put) -> str:
            stored: str = await edge.fetchval(
                "SELECT gateway.inbox_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                put.event_key,
                put.second_key,
                put.kind,
                put.lane,
                put.team,
                put.is_control,
                put.body,
                put.grant.reveal(),
                put.event_at,
                put.trace_parent,
                put.request_id,
            )
            return stored

        async def let_pass(by: timedelta) -> None:
            await _age(worker, by)

        async def state_of(event_key: str) -> tuple[str, str]:
            row = await worker.fetchrow(
                "SELECT state, reason FROM gateway.inbox_event WHERE event_key = $1", event_key
            )
            assert row is not None
            return row["state"], row["reason"]

        statements = Statements(worker)
        yield Store(
            PostgresInbox(worker, POLICY),
            PostgresRuns(statements),
            PostgresWaiting(statements),
            put,
            let_pass,
            state_of,
        )


async def _age(pool: asyncpg.Pool, by: timedelta) -> None:
    """Let time pass by making everything older."""
    await pool.execute(
        "UPDATE gateway.lane SET lease_until = lease_until - $1::interval,"
        " ready_at = ready_at - $1::interval",
        by,
    )
    await pool.execute("UPDATE gateway.inbox_event SET not_before = not_before - $1::interval", by)
    await pool.execute(
        "UPDATE gateway.resume_intent SET expires_at = expires_at - $1::interval,"
        " created_at = created_at - $1::interval, next_check_at = next_check_at - $1::interval",
        by,
    )


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Give each implementation in turn."""
    if request.param == "memory":
        async with memory_store() as made:
            yield made
    else:
        async with postgres_store(request.getfixturevalue("cluster")) as made:
            yield made


# Putting.


async def test_event_is_stored_once(store: Store) -> None:
    """The same event key is a duplicate, before and after the event was settled."""
    assert await store.add("Ev1") == "stored"
    assert await store.add("Ev1") == "duplicate"
    claim = await store.claim_one()
    await store.next(claim, await store.take(claim))
    assert await store.add("Ev1") == "duplicate"
    assert await store.claim() == []


async def test_second_key_finds_an_event_that_slack_named_anew(store: Store) -> None:
    """One message under two event ids is one event; an empty second key equals no other."""
    assert await store.add("Ev1", second_key="T1:C1:1:app_mention") == "stored"
    assert await store.add("Ev2", second_key="T1:C1:1:app_mention") == "duplicate"
    assert await store.add("Ev3") == "stored"
    assert await store.add("Ev4") == "stored"


# Lanes.


async def test_lane_hands_out_one_event_at_a_time_in_order(store: Store) -> None:
    """While one event is in hand, nobody gets the next one of its thread."""
    for key in ("Ev1", "Ev2", "Ev3"):
        await store.add(key)
    claim = await store.claim_one()
    first = await store.take(claim)
    assert await store.claim() == []
    second = await store.next(claim, first)
    assert second is not None
    third = await store.next(claim, second)
    assert third is not None
    assert [each.event_key for each in (first, second, third)] == ["Ev1", "Ev2", "Ev3"]
    assert await store.next(claim, third) is None


async def test_delivery_carries_what_was_put(store: Store) -> None:
    """Body, grant, kind and attempt come through unchanged."""
    await store.add("Ev1", kind="command")
    delivery = await store.take(await store.claim_one())
    assert delivery.body == b"{}"
    assert delivery.grant == Secret("grant of Ev1")
    assert (delivery.kind, delivery.attempt, delivery.cause) == ("command", 1, "slack")
    assert delivery.resume_grant is None
    assert not delivery.is_last


async def test_trace_and_request_id_come_along(store: Store) -> None:
    """Also with a question that waited; one that was put without them has none."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await store.add("Ev0", lane="T1:C1:0")
    bare = await store.take(await store.claim_one())
    assert (bare.trace_parent, bare.request_id) == ("", "")
    await store.add("Ev1", trace_parent=parent, request_id="request-1")
    claim = await store.claim_one()
    delivery = await store.take(claim)
    assert (delivery.trace_parent, delivery.request_id) == (parent, "request-1")
    await store.waiting.await_link(delivery, "T1", "U1")
    await store.next(claim, delivery)
    assert await store.waiting.resume_linked("Ev1", None)
    again = await store.take(await store.claim_one())
    assert (again.cause, again.trace_parent, again.request_id) == ("linked", parent, "request-1")


async def test_event_that_arrives_while_the_lane_empties_is_not_stranded(store: Store) -> None:
    """A lane that was emptied comes back with its next event, under a new fence."""
    await store.add("Ev1")
    old = await store.claim_one()
    await store.next(old, await store.take(old))
    await store.add("Ev2")
    new = await store.claim_one()
    assert new.fence > old.fence
    with pytest.raises(LaneLost):
        await store.next(old)
    assert (await store.take(new)).event_key == "Ev2"


async def test_teams_share_fairly_and_within_the_cap(store: Store) -> None:
    """A team with many threads gets no second place before each other team has one."""
    for number in range(5):
        await store.add(f"Ev1{number}", lane=f"T1:C1:{number}", team="T1")
    await store.add("Ev2", lane="T2:C1:1", team="T2")
    first, second = await store.claim(slots=2)
    assert {first.team, second.team} == {"T1", "T2"}
    assert [claim.team for claim in await store.claim(slots=8)] == ["T1"]
    assert await store.claim(slots=8) == []


async def test_control_events_do_not_wait_behind_their_thread(store: Store) -> None:
    """They have a lane and places of their own, beyond the team's cap."""
    for number in range(3):
        await store.add(f"Ev{number}", lane=f"T1:C1:{number}")
    assert len(await store.claim()) == POLICY.team_cap
    await store.add("Stop", lane="T1:C1:0", is_control=True)
    (control,) = await store.claim(slots=0)
    assert control.is_control
    assert (await store.take(control)).event_key == "Stop"


async def test_lane_given_back_can_be_claimed_at_once(store: Store) -> None:
    """`keep` false settles, hands out nothing, and lets others have the lane."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    first = await store.take(claim)
    settled = await store.inbox.step(claim, Settlement(first.event_id, Done()), keep=False)
    assert settled is None
    again = await store.claim_one()
    assert (await store.take(again)).event_key == "Ev2"


# Failing.


async def test_retry_waits_and_keeps_the_order(store: Store) -> None:
    """A retried event comes back after its pause, before what came later."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    first = await store.take(claim)
    pause = Retry(timedelta(seconds=60), "VAULT_UNAVAILABLE")
    assert await store.next(claim, first, pause) is None
    assert await store.claim() == []
    await store.let_pass(timedelta(seconds=61))
    again = await store.take(await store.claim_one())
    assert (again.event_key, again.attempt) == ("Ev1", 2)


async def test_event_is_given_up_after_its_last_attempt(store: Store) -> None:
    """The last attempt is announced as such; the thread goes on without the event."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    delivery = await store.take(claim)
    for attempt in range(1, POLICY.max_attempts):
        assert not delivery.is_last
        following = await store.next(claim, delivery, Retry(timedelta(), "TRY_AGAIN"))
        assert following is not None
        delivery = following
        assert delivery.attempt == attempt + 1
    assert delivery.is_last
    following = await store.next(claim, delivery, Retry(timedelta(), "TRY_AGAIN"))
    assert following is not None
    assert following.event_key == "Ev2"
    assert await store.state_of("Ev1") == ("dead", "TRY_AGAIN")


async def test_dead_event_does_not_block_its_thread(store: Store) -> None:
    """What cannot be retried is given up at once."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    following = await store.next(claim, await store.take(claim), Dead("INTERNAL"))
    assert following is not None
    assert following.event_key == "Ev2"
    assert await store.state_of("Ev1") == ("dead", "INTERNAL")


async def test_untouched_event_loses_no_attempt(store: Store) -> None:
    """A worker that shuts down before it begins an event costs the event nothing."""
    await store.add("Ev1")
    claim = await store.claim_one()
    first = await store.take(claim)
    await store.inbox.step(claim, Settlement(first.event_id, Untouched()), keep=False)
    assert (await store.take(await store.claim_one())).attempt == 1


# Losing a lane.


async def test_abandoned_lane_is_stolen_and_its_old_holder_fenced_off(store: Store) -> None:
    """After the lease another worker has the event; the old one settles nothing."""
    await store.add("Ev1")
    await store.add("Ev2")
    old = await store.claim_one()
    in_hand = await store.take(old)
    await store.let_pass(2 * POLICY.lease)
    new = await store.claim_one()
    assert new.fence > old.fence
    with pytest.raises(LaneLost):
        await store.next(old, in_hand)
    again = await store.take(new)
    assert (again.event_key, again.attempt) == ("Ev1", 2)


async def test_crashes_count_as_attempts(store: Store) -> None:
    """An event that kills its worker gets its attempts, one farewell, and is dead."""
    await store.add("Ev1")
    given_up = []
    for _ in range(POLICY.max_attempts + 1):
        delivery = await store.take(await store.claim_one())
        given_up.append(delivery.is_given_up)
        await store.let_pass(2 * POLICY.lease)
    assert given_up == [False, False, False, True]
    assert await store.next(await store.claim_one()) is None
    assert await store.state_of("Ev1") == ("dead", "GAVE_UP")


async def test_beat_keeps_a_lane(store: Store) -> None:
    """A renewed lease is not stolen; a lost claim is not renewed."""
    await store.add("Ev1", lane="T1:C1:1")
    await store.add("Ev2", lane="T1:C1:2")
    kept, lost = await store.claim()
    await store.let_pass(0.6 * POLICY.lease)
    assert await store.inbox.beat([kept]) == frozenset({kept})
    await store.let_pass(0.6 * POLICY.lease)
    (stolen,) = await store.claim()
    assert stolen.lane == lost.lane
    assert await store.inbox.beat([kept, lost]) == frozenset({kept})


async def test_settling_twice_settles_once(store: Store) -> None:
    """A step whose answer was lost may be repeated: it hands out the same next event."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    first = await store.take(claim)
    await store.next(claim, first)
    again = await store.next(claim, first, Dead("TOO_LATE"))
    assert again is not None
    assert again.event_key == "Ev2"
    assert await store.state_of("Ev1") == ("done", "")


# Runs.


async def test_run_is_remembered(store: Store) -> None:
    """A run is found with its messages, begun once, and ended."""
    await store.add("Ev1")
    delivery = await store.take(await store.claim_one())
    assert await store.runs.find("Ev1") is None
    await store.runs.begin(delivery, "m", PLACE)
    await store.runs.begin(delivery, "m", PLACE)
    await store.runs.add_message(delivery, "1.1")
    await store.runs.add_message(delivery, "1.1")
    await store.runs.add_message(delivery, "1.2")
    assert await store.runs.find("Ev1") == RunRecord(has_ended=False, messages=("1.1", "1.2"))
    await store.runs.end(delivery, "completed")
    assert await store.runs.find("Ev1") == RunRecord(has_ended=True, messages=("1.1", "1.2"))


async def test_withdrawn_run_is_forgotten(store: Store) -> None:
    """A run that did not start may be begun again."""
    await store.add("Ev1")
    delivery = await store.take(await store.claim_one())
    await store.runs.begin(delivery, "m", PLACE)
    await store.runs.withdraw(delivery)
    assert await store.runs.find("Ev1") is None


async def test_run_cannot_be_written_without_the_lane(store: Store) -> None:
    """A worker that lost its lane begins, extends, ends and withdraws no run."""
    await store.add("Ev1")
    delivery = await store.take(await store.claim_one())
    await store.let_pass(2 * POLICY.lease)
    await store.claim_one()
    for writing in (
        store.runs.begin(delivery, "m", PLACE),
        store.runs.add_message(delivery, "1.1"),
        store.runs.end(delivery, "completed"),
        store.runs.withdraw(delivery),
        store.runs.greeted(delivery),
    ):
        with pytest.raises(LaneLost):
            await writing
    assert await store.runs.find("Ev1") is None


# Waiting questions.


async def test_linked_question_comes_back_once_into_its_lane(store: Store) -> None:
    """However often it is asked for, a question that waited is handed out once."""
    await store.add("Ev1")
    claim = await store.claim_one()
    delivery = await store.take(claim)
    await store.waiting.await_link(delivery, "T1", "U1")
    await store.next(claim, delivery)
    assert await store.waiting.resume_linked("Ev1", Secret("resume"))
    assert not await store.waiting.resume_linked("Ev1", Secret("resume"))
    claim = await store.claim_one()
    resumed = await store.take(claim)
    assert claim.lane == delivery.claim.lane
    assert (resumed.event_key, resumed.cause) == ("linked:Ev1", "linked")
    assert (resumed.body, resumed.grant) == (delivery.body, delivery.grant)
    assert resumed.resume_grant == Secret("resume")
    await store.runs.greeted(resumed)
    assert await store.next(claim, resumed, Retry(timedelta(hours=1), "LATER")) is None
    await store.let_pass(timedelta(hours=2))
    assert (await store.take(await store.claim_one())).cause == "greeted"


async def test_newer_question_replaces_the_one_that_waits(store: Store) -> None:
    """A user has one waiting question in a workspace; other users keep theirs."""
    await store.add("Ev1")
    await store.add("Ev2")
    claim = await store.claim_one()
    first = await store.take(claim)
    await store.waiting.await_link(first, "T1", "U1")
    await store.waiting.await_link(first, "T1", "U1")
    second = await store.next(claim, first)
    assert second is not None
    await store.waiting.await_link(second, "T1", "U1")
    found = await store.waiting.find_by_user("T1", "U1")
    assert found is not None
    assert found.event_key == "Ev2"
    assert await store.waiting.find_by_user("T1", "U2") is None
    assert await store.waiting.find_by_user("T2", "U1") is None
    assert not await store.waiting.resume_linked("Ev1", None)


async def test_picked_question_comes_back_with_its_agent(store: Store) -> None:
    """The choices are kept, and the chosen agent comes along."""
    await store.add("Ev1")
    claim = await store.claim_one()
    delivery = await store.take(claim)
    await store.waiting.await_agent(delivery, "T1", "U1", [PICKED])
    await store.next(claim, delivery)
    found = await store.waiting.find_by_key("Ev1")
    assert found is not None
    assert (list(found.choices), found.slack_user_id) == ([PICKED], "U1")
    assert await store.waiting.find_by_user("T1", "U1") is None
    assert await store.waiting.resume_picked("Ev1", PICKED)
    resumed = await store.take(await store.claim_one())
    chosen = Choice(resumed.project_id, resumed.agent_id, resumed.agent_name)
    assert (resumed.cause, chosen) == ("picked", PICKED)


async def test_control_event_resumes_in_the_threads_lane(store: Store) -> None:
    """What waited after a control event runs, so it takes its turn in the thread."""
    await store.add("Ev1", is_control=True, kind="command")
    claim = await store.claim_one()
    delivery = await store.take(claim)
    await store.waiting.await_link(delivery, "T1", "U1")
    await store.next(claim, delivery)
    await store.waiting.resume_linked("Ev1", None)
    again = await store.claim_one()
    assert (again.lane, again.is_control) == ("T1:C1:1", False)


async def test_waiting_question_ends_after_a_day(store: Store) -> None:
    """No grant is renewed for longer, so nothing older is found."""
    await store.add("Ev1")
    delivery = await store.take(await store.claim_one())
    await store.waiting.await_link(delivery, "T1", "U1")
    await store.let_pass(timedelta(hours=24, minutes=1))
    assert await store.waiting.find_by_user("T1", "U1") is None
    assert await store.waiting.due_for_check(10) == []


async def test_lost_asks_are_looked_for_ever_more_seldom(store: Store) -> None:
    """A waiting question is due after 30 s, then at a quarter of its age."""
    await store.add("Ev1")
    delivery = await store.take(await store.claim_one())
    await store.waiting.await_link(delivery, "T1", "U1")
    assert await store.waiting.due_for_check(10) == []
    await store.let_pass(timedelta(hours=1))
    (due,) = await store.waiting.due_for_check(10)
    assert due.event_key == "Ev1"
    await store.let_pass(timedelta(minutes=10))
    assert await store.waiting.due_for_check(10) == []
    await store.waiting.keep_grant("Ev1", Secret("renewed"))
    await store.let_pass(timedelta(minutes=10))
    (due,) = await store.waiting.due_for_check(10)
    assert due.grant == Secret("renewed")
    await store.waiting.forget("Ev1")
    assert await store.waiting.find_by_user("T1", "U1") is None
