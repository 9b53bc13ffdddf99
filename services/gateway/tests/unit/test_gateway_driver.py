"""Claims about the driver of lanes: places, endings, and what it never does twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from interlock_chassis.clock import SystemClock
from interlock_chassis.secret import Secret
from interlock_gateway.adapters.worker_memory import MemoryInbox, Put
from interlock_gateway.worker.lanes import (
    Delivery,
    Done,
    LaneDriver,
    LaneLost,
    Outcome,
    Policy,
)

QUICK = timedelta(milliseconds=20)


class Handler:
    """Handles events when told to, and remembers."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, Exception] = {}

    async def __call__(self, delivery: Delivery) -> Outcome:
        """Handle one event; wait at its gate, if it has one."""
        key = delivery.event_key
        self.begun.put_nowait(key)
        if key in self.errors:
            raise self.errors[key]
        try:
            if gate := self.gates.get(key):
                await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        self.ended.append(key)
        return Done()


class Worker:
    """A driver that runs until told to stop."""

    def __init__(self, policy: Policy) -> None:
        self.inbox = MemoryInbox(policy, SystemClock())
        self.handler = Handler()
        self.stop = asyncio.Event()
        self.driver = LaneDriver(
            self.inbox, self.handler, owner="worker", policy=policy, clock=SystemClock()
        )

    async def add(self, key: str, lane: str = "1", *, control: bool = False) -> None:
        """Put an event."""
        now = datetime.now(UTC)
        await self.inbox.put(Put(key, lane, "T1", b"{}", Secret("g"), now, is_control=control))

    @asynccontextmanager
    async def running(self, drain: timedelta = timedelta(seconds=5)) -> AsyncIterator[None]:
        """Run meanwhile, and stop at the end."""
        task = asyncio.create_task(self.driver.run(self.stop, drain))
        try:
            yield
        finally:
            self.stop.set()
            await task

    async def begun(self, count: int) -> list[str]:
        """Wait until so many events were begun."""
        async with asyncio.timeout(5):
            return [await self.handler.begun.get() for _ in range(count)]


@pytest.fixture
def make() -> Callable[..., Worker]:
    """Make workers of a policy."""

    def make_one(**policy: object) -> Worker:
        defaults: dict[str, object] = {"poll": QUICK, "team_cap": 99, "slots": 4}
        return Worker(Policy(**{**defaults, **policy}))  # type: ignore[arg-type]

    return make_one


Make = Callable[..., Worker]


async def test_events_of_a_lane_follow_each_other(make: Make) -> None:
    """The second event of a thread begins when the first has ended."""
    worker = make()
    worker.handler.gates["a"] = asyncio.Event()
    await worker.add("a")
    await worker.add("b")
    async with worker.running():
        assert await worker.begun(1) == ["a"]
        assert worker.handler.begun.empty()
        worker.handler.gates["a"].set()
        assert await worker.begun(1) == ["b"]
    assert worker.handler.ended == ["a", "b"]


async def test_no_more_lanes_than_places(make: Make) -> None:
    """A full worker leaves further threads to others."""
    worker = make(slots=2)
    for key in "abc":
        worker.handler.gates[key] = asyncio.Event()
        await worker.add(key, lane=key)
    async with worker.running():
        first = await worker.begun(2)
        (left,) = await worker.inbox.claim("other", 9, 0)
        assert {*first, left.lane} == {"a", "b", "c"}
        assert worker.driver.lanes_in_hand == 2
        for gate in worker.handler.gates.values():
            gate.set()


async def test_control_events_have_places_of_their_own(make: Make) -> None:
    """A stop is acted upon while every place is taken."""
    worker = make(slots=1, poll=timedelta(hours=1))
    worker.handler.gates["run"] = asyncio.Event()
    await worker.add("run")
    async with worker.running():
        await worker.begun(1)
        await worker.add("stop", control=True)
        assert await worker.begun(1) == ["stop"]
        worker.handler.gates["run"].set()


async def test_news_wake_the_driver(make: Make) -> None:
    """A new event does not wait for the next poll."""
    worker = make(poll=timedelta(hours=1))
    async with worker.running():
        await worker.add("a")
        assert await worker.begun(1) == ["a"]


async def test_stop_finishes_what_is_in_hand_and_begins_nothing(make: Make) -> None:
    """On shutdown the event in hand is ended, the next one is left untouched."""
    worker = make()
    worker.handler.gates["a"] = asyncio.Event()
    await worker.add("a")
    await worker.add("b")
    async with worker.running():
        await worker.begun(1)
        worker.stop.set()
        worker.handler.gates["a"].set()
    assert worker.handler.ended == ["a"]
    assert worker.inbox.state_of("a") == ("done", "")
    (claim,) = await worker.inbox.claim("other", 1, 0)
    delivery = await worker.inbox.step(claim, None, keep=True)
    assert delivery is not None
    assert (delivery.event_key, delivery.attempt) == ("b", 1)


async def test_stop_gives_up_waiting_after_the_drain(make: Make) -> None:
    """What does not end in time is cancelled and stays unsettled."""
    worker = make()
    worker.handler.gates["a"] = asyncio.Event()
    await worker.add("a")
    async with worker.running(drain=QUICK):
        await worker.begun(1)
    assert worker.handler.cancelled == ["a"]
    assert worker.inbox.state_of("a") == ("ready", "")


async def test_bug_in_a_handler_costs_its_event_alone(make: Make) -> None:
    """A crash gives its event up; the thread and the worker go on."""
    worker = make()
    worker.handler.errors["a"] = ZeroDivisionError()
    await worker.add("a")
    await worker.add("b")
    async with worker.running():
        assert await worker.begun(2) == ["a", "b"]
    assert worker.inbox.state_of("a") == ("dead", "INTERNAL")
    assert worker.handler.ended == ["b"]


async def test_handler_that_learns_of_a_lost_lane_settles_nothing(make: Make) -> None:
    """The event is somebody else's now."""
    worker = make()
    worker.handler.errors["a"] = LaneLost()
    await worker.add("a")
    async with worker.running():
        await worker.begun(1)
    assert worker.inbox.state_of("a") == ("ready", "")


async def test_lost_lane_cancels_its_handler(make: Make) -> None:
    """A handler whose lane was stolen stops acting at the next beat."""
    lease = timedelta(milliseconds=200)
    worker = make(lease=lease, poll=timedelta(hours=1))
    gone = asyncio.Event()
    real = worker.inbox.beat

    async def beat(claims: object) -> object:
        # As if the process had been paused past its lease, and another had come.
        worker.inbox._lanes["1"].fence += 1
        gone.set()
        return await real(claims)  # type: ignore[arg-type]

    worker.inbox.beat = beat  # type: ignore[method-assign, assignment]
    worker.handler.gates["a"] = asyncio.Event()
    await worker.add("a")
    async with worker.running():
        await worker.begun(1)
        async with asyncio.timeout(5):
            await gone.wait()
    # On a slow machine the lane may have been claimed, and lost, once more.
    assert set(worker.handler.cancelled) == {"a"}
    assert worker.handler.ended == []


async def test_lease_that_cannot_be_renewed_cancels_its_handler(make: Make) -> None:
    """While the database is away, a handler ends before another worker may begin."""
    worker = make(lease=timedelta(milliseconds=200), poll=timedelta(hours=1))
    cancelled_at: list[float] = []
    worker.handler.gates["a"] = asyncio.Event()
    clock = SystemClock()

    async def beat(_: object) -> frozenset[object]:
        raise LaneLost("the database is away")

    worker.inbox.beat = beat  # type: ignore[method-assign, assignment]
    await worker.add("a")
    real: Callable[[Delivery], Awaitable[Outcome]] = worker.handler.__call__

    async def handle(delivery: Delivery) -> Outcome:
        try:
            return await real(delivery)
        finally:
            cancelled_at.append(clock.monotonic())

    worker.driver._handle = handle
    begun_at = clock.monotonic()
    async with worker.running():
        await worker.begun(1)
        async with asyncio.timeout(5):
            while not cancelled_at:  # noqa: ASYNC110 - The driver's own time is claimed about.
                await asyncio.sleep(0.005)
    assert set(worker.handler.cancelled) == {"a"}
    assert worker.handler.ended == []
    assert cancelled_at[0] - begun_at >= 0.15


async def test_endless_thread_gives_its_place_back(make: Make) -> None:
    """With one place, another thread has its turn although the first never falls silent."""
    worker = make(slots=1)
    for number in range(15):
        await worker.add(f"a{number:02}", lane="a")
    await worker.add("b", lane="b")
    async with worker.running():
        order = await worker.begun(16)
    assert order.index("b") == 10
