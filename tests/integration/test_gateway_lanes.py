"""The inbox on a real Postgres: order, crashes, restarts, rights, and what is erased when."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import DatabaseUrls, create_database, migrate, open_pool
from interlock_chassis.secret import Secret
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.worker_postgres import (
    PostgresCron,
    PostgresDeadLetters,
    PostgresInbox,
    Statements,
)
from interlock_gateway.migrations import DATABASE, EDGE_ROLE, WORKER_ROLE
from interlock_gateway.worker.lanes import (
    Dead,
    Delivery,
    Done,
    LaneDriver,
    LaneLost,
    Outcome,
    Policy,
    Settlement,
)

POLICY = Policy(slots=8, team_cap=8, lease=timedelta(seconds=1), poll=timedelta(milliseconds=100))
PATIENCE = 30.0
WEEK = timedelta(days=7, minutes=1)


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated gateway database, open as both of its roles."""

    urls: DatabaseUrls
    edge: asyncpg.Pool
    worker: asyncpg.Pool

    async def put(self, key: str, lane: str = "T1:C1:1", team: str = "T1") -> str:
        """Put an event as edge does."""
        stored: str = await self.edge.fetchval(
            "SELECT gateway.inbox_put($1, '', 'event', $2, $3, false, $4, $5, $6)",
            key,
            lane,
            team,
            b'{"event": "private words"}',
            f"grant of {key}",
            datetime.now(UTC),
        )
        return stored


@asynccontextmanager
async def open_database(urls: DatabaseUrls) -> AsyncIterator[Database]:
    """Open a database as both roles."""
    async with (
        open_pool(urls.roles[EDGE_ROLE], application="test-edge") as edge,
        open_pool(urls.roles[WORKER_ROLE], application="test-worker", max_size=20) as worker,
    ):
        yield Database(urls, edge, worker)


@pytest.fixture
async def database(cluster: ScratchDatabases) -> AsyncIterator[Database]:
    """Give a fresh database."""
    async with open_database(await cluster.database(DATABASE)) as opened:
        yield opened


class Recorder:
    """Handles events and watches for what must not happen."""

    def __init__(self) -> None:
        self.order: dict[str, list[str]] = defaultdict(list)
        self.overlaps = 0
        self.handled = 0
        self.arrived = asyncio.Condition()
        self._in_hand: set[str] = set()

    async def __call__(self, delivery: Delivery) -> Outcome:
        """Record one event, giving others the chance to interfere."""
        lane = delivery.claim.lane
        self.overlaps += lane in self._in_hand
        self._in_hand.add(lane)
        for _ in range(3):
            await asyncio.sleep(0)
        self.order[lane].append(delivery.event_key)
        self._in_hand.discard(lane)
        async with self.arrived:
            self.handled += 1
            self.arrived.notify_all()
        return Done()

    async def wait_for(self, count: int) -> None:
        """Wait until so many events were handled."""
        async with asyncio.timeout(PATIENCE), self.arrived:
            await self.arrived.wait_for(lambda: self.handled >= count)


@asynccontextmanager
async def workers(
    database: Database, recorder: Recorder, count: int, policy: Policy = POLICY
) -> AsyncIterator[None]:
    """Run some workers meanwhile."""
    stop = asyncio.Event()
    drivers = [
        LaneDriver(
            PostgresInbox(database.worker, policy),
            recorder,
            owner=f"worker-{number}",
            policy=policy,
            clock=SystemClock(),
        )
        for number in range(count)
    ]
    tasks = [asyncio.create_task(each.run(stop, timedelta(seconds=5))) for each in drivers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


# Order and crashes.


async def test_edges_and_events_of_before_the_traces_go_on(cluster: ScratchDatabases) -> None:
    """What the first version stored is handed out, and its call still stores; both ways."""
    passwords = {role: Secret(uuid4().hex) for role in (DATABASE.owner, *DATABASE.roles)}
    name = f"{DATABASE.name}_{uuid4().hex}"
    urls = await create_database(cluster.admin_url, DATABASE, passwords, database=name)
    old = "SELECT gateway.inbox_put($1, '', 'event', $2, 'T1', false, '{}'::bytea, 'grant', now())"
    await asyncio.to_thread(migrate, urls.owner, DATABASE, "0001")
    async with open_pool(urls.roles[EDGE_ROLE], application="test") as edge:
        assert await edge.fetchval(old, "Ev1", "T1:C1:1") == "stored"
        await asyncio.to_thread(migrate, urls.owner, DATABASE)
        assert await edge.fetchval(old, "Ev2", "T1:C1:1") == "stored"
        assert await edge.fetchval(old, "Ev1", "T1:C1:1") == "duplicate"
    async with open_pool(urls.roles[WORKER_ROLE], application="test") as worker:
        inbox = PostgresInbox(worker, Policy())
        (claim,) = await inbox.claim("w", 8, 8)
        first = await inbox.step(claim, None, keep=True)
        assert first is not None
        second = await inbox.step(claim, Settlement(first.event_id, Done()), keep=True)
        assert second is not None
        found = [(each.event_key, each.trace_parent, each.request_id) for each in (first, second)]
        assert found == [("Ev1", "", ""), ("Ev2", "", "")]


async def test_two_workers_keep_every_thread_in_order(database: Database) -> None:
    """Each event is handled once, in its thread's order, never two of a thread at a time."""
    recorder = Recorder()
    threads, events = 20, 10

    async def fill(thread: int) -> None:
        for number in range(events):
            team = f"T{thread % 3}"
            await database.put(f"Ev{thread}.{number}", f"{team}:C1:{thread}", team)

    async with workers(database, recorder, 2):
        await asyncio.gather(*map(fill, range(threads)))
        await recorder.wait_for(threads * events)
    assert recorder.overlaps == 0
    assert {lane.rpartition(":")[2]: order for lane, order in recorder.order.items()} == {
        str(thread): [f"Ev{thread}.{number}" for number in range(events)]
        for thread in range(threads)
    }
    assert await database.worker.fetchval("SELECT count(*) FROM gateway.lane") == 0


async def test_event_is_announced_not_polled_for(database: Database) -> None:
    """A worker that polls once an hour still handles an event at once."""
    recorder = Recorder()
    policy = Policy(lease=timedelta(seconds=1), poll=timedelta(hours=1))
    async with workers(database, recorder, 1, policy):
        await database.put("Ev1")
        await recorder.wait_for(1)


DOOMED = """
import asyncio, os, sys
from datetime import timedelta
from interlock_chassis.clock import SystemClock
from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_gateway.adapters.worker_postgres import PostgresInbox
from interlock_gateway.worker.lanes import LaneDriver, Policy

async def handle(delivery):
    print(delivery.event_key, flush=True)
    await asyncio.Event().wait()

async def main():
    policy = Policy(lease=timedelta(seconds=1))
    async with open_pool(Secret(os.environ["DATABASE"]), application="doomed") as pool:
        driver = LaneDriver(
            PostgresInbox(pool, policy), handle, owner="doomed", policy=policy,
            clock=SystemClock(),
        )
        await driver.run(asyncio.Event(), timedelta(0))

asyncio.run(main())
"""


async def test_killed_workers_lane_is_free_after_its_lease(database: Database) -> None:
    """After kill -9 another worker handles the event, and the rest of its thread."""
    await database.put("Ev1")
    await database.put("Ev2")
    doomed = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DOOMED,
        env={**os.environ, "DATABASE": database.urls.roles[WORKER_ROLE].reveal()},
        stdout=asyncio.subprocess.PIPE,
    )
    assert doomed.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await doomed.stdout.readline() == b"Ev1\n"
    doomed.send_signal(signal.SIGKILL)
    await doomed.wait()
    recorder = Recorder()
    async with workers(database, recorder, 1):
        await recorder.wait_for(2)
    assert recorder.order["T1:C1:1"] == ["Ev1", "Ev2"]
    attempts = await database.worker.fetchval(
        "SELECT attempts FROM gateway.inbox_event WHERE event_key = 'Ev1'"
    )
    assert attempts == 2


async def test_living_workers_lane_is_not_stolen(database: Database) -> None:
    """An event that takes longer than the lease stays with its worker, which beats."""
    await database.put("Ev1")
    done = asyncio.Event()
    handled: list[int] = []

    class Slow(Recorder):
        async def __call__(self, delivery: Delivery) -> Outcome:
            handled.append(delivery.attempt)
            await done.wait()
            return await super().__call__(delivery)

    recorder = Slow()
    policy = Policy(lease=timedelta(milliseconds=400), poll=timedelta(milliseconds=50))
    async with workers(database, recorder, 2, policy):
        # Let the lease end, by the database's clock, three times over.
        await database.worker.execute("SELECT pg_sleep(1.2)")
        done.set()
        await recorder.wait_for(1)
    assert handled == [1]


async def test_late_settlement_is_refused(database: Database) -> None:
    """A holder that was paused past its lease writes nothing over the new holder's work."""
    await database.put("Ev1")
    inbox = PostgresInbox(database.worker, POLICY)
    (old,) = await inbox.claim("paused", 1, 0)
    in_hand = await inbox.step(old, None, keep=True)
    assert in_hand is not None
    await database.worker.execute("UPDATE gateway.lane SET lease_until = now()")
    (new,) = await inbox.claim("next", 1, 0)
    with pytest.raises(LaneLost):
        await inbox.step(old, Settlement(in_hand.event_id, Done()), keep=True)
    again = await inbox.step(new, None, keep=True)
    assert again is not None
    assert (again.event_key, again.attempt) == ("Ev1", 2)


# Postgres going away.


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """Give a Postgres that may be stopped without disturbing other tests."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-restart-"))
    postgres = EmbeddedPostgres(folder, binaries=find_binaries(os.environ))
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_workers_survive_a_restart_of_postgres(own_postgres: EmbeddedPostgres) -> None:
    """After a restart the event in hand is settled once, and news are heard again."""
    urls = await ScratchDatabases(own_postgres.admin_url).database(DATABASE)
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Interrupted(Recorder):
        async def __call__(self, delivery: Delivery) -> Outcome:
            if delivery.event_key == "Ev1":
                begun.set()
                await go_on.wait()
            return await super().__call__(delivery)

    recorder = Interrupted()
    policy = Policy(lease=timedelta(seconds=30), poll=timedelta(hours=1))
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(urls))
        await database.put("Ev1")
        await stack.enter_async_context(workers(database, recorder, 1, policy))
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
        own_postgres.stop()
        own_postgres.start()
        go_on.set()
        await recorder.wait_for(1)
        await _put_when_back(database, "Ev2")
        await _put_when_back(database, "Ev3", lane="T1:C1:2")
        await recorder.wait_for(3)
    assert recorder.order == {"T1:C1:1": ["Ev1", "Ev2"], "T1:C1:2": ["Ev3"]}


async def _put_when_back(database: Database, key: str, lane: str = "T1:C1:1") -> None:
    """Put an event as edge and Slack do: again after a failure."""
    for _ in range(20):
        try:
            await database.put(key, lane)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            continue
        return
    pytest.fail("Postgres did not come back")


# What edge may see.


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT body FROM gateway.inbox_event",
        "SELECT event_key FROM gateway.inbox_event",
        "SELECT grant_token FROM gateway.resume_intent",
        "SELECT lane FROM gateway.lane",
        "SELECT event_key FROM gateway.run",
        "SELECT key FROM gateway.browser_attempt",
        "INSERT INTO gateway.inbox_event DEFAULT VALUES",
        "DELETE FROM gateway.inbox_event",
        "UPDATE gateway.oauth_state SET grant_token = ''",
        "SELECT gateway.lane_claim('thief', 1, 1, 1, '1 s')",
        "SELECT gateway.lane_step('l', 1, 0, '', '', '0', 1, '1 s', true)",
        "SELECT gateway.inbox_resume('Ev1', 'linked', '', '', '', '')",
        "SELECT gateway.inbox_replay(1, '')",
        "CREATE TABLE gateway.mine (id int)",
        "CREATE TABLE public.mine (id int)",
    ],
)
async def test_edge_can_put_and_never_look(database: Database, statement: str) -> None:
    """A thief inside edge reads no event back, not even its own, and takes nothing out."""
    assert await database.put("Ev1") == "stored"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.edge.execute(statement)


async def test_worker_sees_nothing_of_installs(database: Database) -> None:
    """The worker may sweep expired browser state; it cannot read an install grant."""
    for statement in (
        "SELECT grant_token FROM gateway.oauth_state",
        "SELECT gateway.count_attempt('k', '1 s')",
        "DELETE FROM gateway.oauth_state RETURNING grant_token",
        "INSERT INTO gateway.oauth_state DEFAULT VALUES",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.worker.execute(statement)


async def test_attempts_are_counted_per_window(database: Database) -> None:
    """Replicas share a counter that starts again when its window is over."""
    minute, count = timedelta(minutes=1), "SELECT gateway.count_attempt($1, $2)"
    counted = [await database.edge.fetchval(count, "ada", minute) for _ in range(3)]
    assert counted == [1, 2, 3]
    assert await database.edge.fetchval(count, "bob", minute) == 1
    owner = await asyncpg.connect(database.urls.owner.reveal())
    try:
        await owner.execute("UPDATE gateway.browser_attempt SET expires_at = now()")
    finally:
        await owner.close()
    assert await database.edge.fetchval(count, "ada", minute) == 1


# What is kept, and how long.


async def test_settled_event_keeps_its_keys_and_nothing_else(database: Database) -> None:
    """Body and grant are erased with the settlement."""
    await database.put("Ev1")
    async with workers(database, recorder := Recorder(), 1):
        await recorder.wait_for(1)
    row = await database.worker.fetchrow("SELECT * FROM gateway.inbox_event")
    assert row is not None
    assert (row["state"], row["body"], row["grant_token"]) == ("done", b"", "")
    assert "private words" not in str(dict(row))


async def test_keys_are_kept_for_a_week(database: Database) -> None:
    """A repetition within 7 days is a duplicate; after that the row is gone."""
    await database.put("Ev1")
    async with workers(database, recorder := Recorder(), 1):
        await recorder.wait_for(1)
    cron = PostgresCron(database.worker)
    await cron.sweep()
    assert await database.put("Ev1") == "duplicate"
    await _age_events(database)
    await cron.sweep()
    assert await database.put("Ev1") == "stored"


async def test_dead_letter_is_listed_replayed_and_erased(database: Database) -> None:
    """A given-up event can be replayed for a week, by its own team only."""
    letters = PostgresDeadLetters(Statements(database.worker))
    cron = PostgresCron(database.worker)
    await _kill(database, "Ev1")
    (letter,) = await letters.list_newest("T1")
    assert (letter.reason, letter.attempts, letter.kind) == ("BROKEN", 1, "event")
    assert await letters.list_newest("T2") == []
    assert not await letters.replay(letter.event_id, "T2")
    assert (await cron.state()).dead == 1
    assert await letters.replay(letter.event_id, "T1")
    assert not await letters.replay(letter.event_id, "T1")
    async with workers(database, recorder := Recorder(), 1):
        await recorder.wait_for(1)

    await _kill(database, "Ev2")
    await _age_events(database)
    await cron.sweep()
    assert await letters.list_newest("") == []
    assert b"private" not in await database.worker.fetchval(
        "SELECT coalesce(string_agg(body, ''), '') FROM gateway.inbox_event"
    )


async def test_only_one_worker_tidies_at_a_time(database: Database) -> None:
    """A second worker finds the lock taken and does nothing."""
    first, second = PostgresCron(database.worker), PostgresCron(database.worker)

    async def meanwhile() -> str | None:
        async def work() -> str:
            return "worked twice"

        return await second.alone(work)

    async def work() -> str:
        assert await meanwhile() is None
        return "worked"

    assert await first.alone(work) == "worked"
    assert await meanwhile() == "worked twice"


async def test_inbox_tells_how_it_stands(database: Database) -> None:
    """Waiting events and the age of the oldest are known."""
    cron = PostgresCron(database.worker)
    assert (await cron.state()).waiting == 0
    await database.put("Ev1")
    await database.worker.execute(
        "UPDATE gateway.inbox_event SET received_at = received_at - interval '1 hour'"
    )
    state = await cron.state()
    assert state.waiting == 1
    assert state.oldest >= timedelta(hours=1)


async def test_migration_can_be_undone(cluster: ScratchDatabases) -> None:
    """Downgrading leaves the schema empty, and upgrading makes it anew."""
    urls = await cluster.database(DATABASE)
    migrate(urls.owner, DATABASE, "base")
    migrate(urls.owner, DATABASE)
    async with open_database(urls) as again:
        assert await again.put("Ev1") == "stored"


async def _kill(database: Database, key: str) -> None:
    """Give an event up."""
    await database.put(key)
    inbox = PostgresInbox(database.worker, POLICY)
    (claim,) = await inbox.claim("worker", 1, 0)
    delivery = await inbox.step(claim, None, keep=True)
    assert delivery is not None
    assert await inbox.step(claim, Settlement(delivery.event_id, Dead("BROKEN")), keep=True) is None


async def _age_events(database: Database) -> None:
    """Let a week pass."""
    await database.worker.execute(
        "UPDATE gateway.inbox_event SET ended_at = ended_at - $1::interval", WEEK
    )
