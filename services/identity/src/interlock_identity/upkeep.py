"""Do recurring work once, however many replicas there are."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol

import structlog
from prometheus_client import Counter, Gauge

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_chassis.telemetry import REGISTRY

REMOVED = Counter(
    "interlock_identity_removed",
    "Rows that upkeep removed or erased, by what they were.",
    ("what",),
    registry=REGISTRY,
)
FAILED = Counter(
    "interlock_identity_upkeep_failed",
    "Runs of a task that failed, by task and reason.",
    ("task", "reason"),
    registry=REGISTRY,
)
SUCCEEDED_AT = Gauge(
    "interlock_identity_upkeep_timestamp_seconds",
    "When this process last saw to the end of a task, in seconds since 1970.",
    ("task",),
    registry=REGISTRY,
)

Task = Callable[[], Awaitable[Mapping[str, int]]]
"""Work that is safe to repeat; counts what it removed by kind."""


class Turns(Protocol):
    """Whose turn it is, shared by all replicas."""

    def take(self, task: str, every: timedelta) -> AbstractAsyncContextManager[bool]:
        """Take the turn for a task; the block is told whether it got it.

        It does when nobody else is at it and it was not finished within
        `every`, by the database's clock. A block that ends without an error
        has finished it.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...


class Upkeep:
    """Run the tasks that are due.

    Args:
        turns: Whose turn it is.
        tasks: The tasks by name.
        every: How often each is done, by all replicas together.
        clock: For the metric of the last success.
    """

    def __init__(
        self, *, turns: Turns, tasks: Mapping[str, Task], every: timedelta, clock: Clock
    ) -> None:
        self._turns = turns
        self._tasks = tasks
        self._every = every
        self._clock = clock

    async def run_due(self) -> None:
        """Run each task whose turn it is. One that fails is counted, and due again at once."""
        for name, task in self._tasks.items():
            try:
                async with self._turns.take(name, self._every) as is_ours:
                    if is_ours:
                        await self._run(name, task)
            except Exception as error:  # noqa: BLE001 - a broken task ends neither others nor serving.
                reason = error.reason if isinstance(error, ServiceError) else type(error).__name__
                FAILED.labels(name, reason).inc()
                structlog.get_logger().error("upkeep_failed", task=name, reason=reason)

    async def _run(self, name: str, task: Task) -> None:
        began = self._clock.monotonic()
        removed = await task()
        for what, count in removed.items():
            REMOVED.labels(what).inc(count)
        SUCCEEDED_AT.labels(name).set(self._clock.now().timestamp())
        structlog.get_logger().info(
            "upkeep_done",
            task=name,
            elapsed_ms=round((self._clock.monotonic() - began) * 1000),
            **{what: count for what, count in removed.items() if count},
        )
