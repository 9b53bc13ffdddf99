"""Closed and open load on one event loop, and figures of it that survive a noisy machine."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from itertools import count
from statistics import median
from typing import Any, TypeVar

import uvloop

ROUNDS = 7
ROUND = timedelta(seconds=1.5)
# What hangs is an error and no figure. No call takes a minute on the slowest machine, and no
# benchmark a quarter of an hour, a million rows to begin with included.
CALL_LIMIT = timedelta(minutes=1)
BENCHMARK_LIMIT = timedelta(minutes=15)

Work = Callable[[int], Awaitable[object]]
"""One call; gets its number, from 0."""

_T = TypeVar("_T")


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a benchmark on the loop that the services run on.

    Raises:
        TimeoutError: It has not come to its end within 15 minutes.
    """

    async def bounded() -> _T:
        async with asyncio.timeout(BENCHMARK_LIMIT.total_seconds()):
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def measure_rate(work: Work, concurrency: int, duration: timedelta = ROUND) -> float:
    """Return calls per second of callers that each make their next call after their last.

    Raises:
        TimeoutError: A call took a minute.
    """
    numbers = count()
    began = time.perf_counter()
    until = began + duration.total_seconds()

    async def call() -> int:
        done = 0
        while time.perf_counter() < until:
            await work(next(numbers))
            done += 1
        return done

    async with asyncio.timeout((duration + CALL_LIMIT).total_seconds()):
        done = sum(await asyncio.gather(*(call() for _ in range(concurrency))))
    return done / (time.perf_counter() - began)


async def interleave(
    sides: Mapping[str, Work], concurrency: int, rounds: int = ROUNDS
) -> Mapping[str, list[float]]:
    """Measure the rates of several sides in turn, after a round of each that does not count.

    Every other round goes the other way, so that none always comes second.
    """
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for side in order:
            rate = await measure_rate(sides[side], concurrency)
            if number:
                rates[side].append(rate)
    return rates


def ratio(rates: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """Return the median of the rounds' ratios: what slows a round slows both its sides."""
    return median(one / other for one, other in zip(rates[above], rates[below], strict=True))


async def measure_latencies(work: Work, per_second: int, duration: timedelta) -> list[float]:
    """Make calls at a steady pace, whatever becomes of them; returns their seconds, sorted.

    Counted from when a call was due: one that starts late was kept waiting. One
    that fails counts as one that took the whole time. This process collects no
    garbage meanwhile: its own pauses are not the answering one's.
    """
    gc.collect()
    gc.disable()
    try:
        return sorted(await _make_calls(work, per_second, duration))
    finally:
        gc.enable()


async def _make_calls(work: Work, per_second: int, duration: timedelta) -> list[float]:
    began = time.perf_counter()

    async def call(number: int, due: float) -> float:
        try:
            await work(number)
        except Exception:  # noqa: BLE001 - A vault that cannot keep up refuses, and the rest goes on.
            return duration.total_seconds()
        return time.perf_counter() - due

    calls: list[asyncio.Task[float]] = []
    for number in range(int(per_second * duration.total_seconds())):
        due = began + number / per_second
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        calls.append(asyncio.create_task(call(number, due)))
    return await asyncio.gather(*calls)


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    return sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)]
