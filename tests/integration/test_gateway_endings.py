"""The word that an app has left a workspace, from one worker process to the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.worker_postgres import PostgresEndings, Statements
from interlock_gateway.migrations import DATABASE, WORKER_ROLE

SECONDS = 20


@pytest.fixture
async def workers(cluster: ScratchDatabases) -> AsyncIterator[list[PostgresEndings]]:
    """Give two processes' ways to say it and to hear it."""
    urls = await cluster.database(DATABASE)
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(open_pool(url, application="test"))
            for url in [urls.roles[WORKER_ROLE]] * 2
        ]
        yield [PostgresEndings(pool, Statements(pool)) for pool in pools]


async def _hear(endings: PostgresEndings, heard: asyncio.Queue[str]) -> None:
    async with aclosing(endings.hear()) as told:
        async for team in told:
            heard.put_nowait(team)


async def _until_heard(teller: PostgresEndings, heard: asyncio.Queue[str]) -> str:
    """Tell until it is heard: who does not listen yet misses the word."""
    async with asyncio.timeout(SECONDS):
        while heard.empty():
            await teller.tell("T0NORTHWIND")
            await asyncio.sleep(0.05)
    return heard.get_nowait()


async def test_every_process_hears_it(workers: list[PostgresEndings]) -> None:
    """One tells; both hear, itself too."""
    heard: list[asyncio.Queue[str]] = [asyncio.Queue(), asyncio.Queue()]
    hearing = [
        asyncio.create_task(_hear(worker, queue))
        for worker, queue in zip(workers, heard, strict=True)
    ]
    for queue in heard:
        assert await _until_heard(workers[0], queue) == "T0NORTHWIND"
    for task in hearing:
        task.cancel()
    await asyncio.gather(*hearing, return_exceptions=True)


async def test_a_broken_connection_is_made_anew(
    workers: list[PostgresEndings], cluster: ScratchDatabases
) -> None:
    """What Postgres ends while idle does not make a process deaf for good."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    hearing = asyncio.create_task(_hear(workers[1], heard))
    await _until_heard(workers[0], heard)
    await _end_listeners(cluster.admin_url)
    while not heard.empty():
        heard.get_nowait()
    assert await _until_heard(workers[0], heard) == "T0NORTHWIND"
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)


async def _end_listeners(admin_url: Secret[str]) -> None:
    async with open_pool(admin_url, application="admin") as pool:
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'test' AND query LIKE 'LISTEN%gateway_endings%'"
        )
