"""The operations port over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from interlock_chassis import ops
from interlock_chassis.errors import ConfigError, Unavailable
from interlock_chassis.ops import ops_server


async def ready() -> None:
    """Be ready."""


@asynccontextmanager
async def get(
    ready: Callable[[], Awaitable[None]],
) -> AsyncIterator[Callable[..., Awaitable[tuple[int, str]]]]:
    """Serve, and return a way to ask."""
    async with ops_server("127.0.0.1:0", ready) as port, aiohttp.ClientSession() as session:

        async def ask(path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        yield ask


async def test_a_process_is_alive_and_ready() -> None:
    """Both questions are answered with 200 while nothing objects."""
    async with get(ready) as ask:
        assert await ask("/livez") == (200, "ok\n")
        assert await ask("/readyz") == (200, "ready\n")


async def test_a_process_that_cannot_work_says_why_and_stays_alive() -> None:
    """A ServiceError's reason is shown, any other error is NOT_READY without its text."""

    async def unavailable() -> None:
        raise Unavailable

    async def broken() -> None:
        raise ValueError("canary")

    async with get(unavailable) as ask:
        assert await ask("/readyz") == (503, "UNAVAILABLE\n")
        assert (await ask("/livez"))[0] == 200
    async with get(broken) as ask:
        assert await ask("/readyz") == (503, "NOT_READY\n")


async def test_a_check_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dependency that never answers does not hang the probe."""
    monkeypatch.setattr(ops, "_READY_BUDGET_SECONDS", 0.05)

    async def hang() -> None:
        await asyncio.Event().wait()

    async with get(hang) as ask:
        assert await ask("/readyz") == (503, "NOT_READY\n")


async def test_metrics_are_served() -> None:
    """The process's own figures and the RPCs' are there."""
    async with get(ready) as ask:
        status, text = await ask("/metrics")
    assert status == 200
    assert "process_resident_memory_bytes" in text
    assert "interlock_rpc_seconds" in text


async def test_nothing_else_is_served() -> None:
    """The port has three routes."""
    async with get(ready) as ask:
        assert (await ask("/"))[0] == 404


async def test_an_address_in_use_stops_the_start() -> None:
    """A port that somebody has is a matter of configuration."""
    async with ops_server("127.0.0.1:0", ready) as port:
        with pytest.raises(ConfigError, match="INTERLOCK_OPS_LISTEN"):
            async with ops_server(f"127.0.0.1:{port}", ready):
                pass
