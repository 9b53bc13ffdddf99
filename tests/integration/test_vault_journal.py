"""The journal on Postgres: what is loaded, what is on record, and in which order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from interlock_chassis.database import open_pool
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import Journal, open_journal
from interlock_token_vault.domain.audit import GENESIS, AuditEvent, Origin
from interlock_token_vault.domain.installation import ClientId, InstallationKey
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.vault import DatabaseUnavailable, Judge, Loaded, ReadTarget, Verdict

ORIGIN = Origin("gateway-worker", "/test/Read")
TARGET = ReadTarget(InstallationKey(ClientId("1.2"), "A0INTERLOCK", "", "T0NOWHERE"))


class Desk:
    """A journal, and a superuser beside it."""

    def __init__(self, journal: Journal, admin: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.journal = journal
        self.admin = admin
        self.judged: list[str] = []
        self._one_more = asyncio.Event()

    def judge(self, name: str) -> Judge:
        """Judge whatever is found, and note that it came to that."""

        def judged(_: Loaded | None) -> Verdict:
            self.judged.append(name)
            self._one_more.set()
            return Verdict(AuditEvent("token.read", ORIGIN, outcome=name))

        return judged

    def read(self, name: str) -> "asyncio.Task[Verdict]":
        """Begin to read."""
        return asyncio.create_task(self.journal.load_recorded(TARGET, self.judge(name)))

    async def until_judged(self, *names: str) -> None:
        """Wait until these were judged, in this order."""
        async with asyncio.timeout(10):
            while self.judged != list(names):
                self._one_more.clear()
                await self._one_more.wait()

    async def records(self) -> list[asyncpg.Record]:
        """List what is on record, in the order of the chain."""
        return await self.admin.fetch(
            "SELECT seq, outcome, prev_hash, hash FROM vault.audit_event"
            " WHERE action = 'token.read' ORDER BY seq"
        )

    @asynccontextmanager
    async def locked_log(self) -> AsyncIterator[None]:
        """Let nothing be recorded meanwhile."""
        async with self.admin.transaction():
            await self.admin.execute("LOCK TABLE vault.audit_event IN EXCLUSIVE MODE")
            yield

    async def end_sessions(self) -> None:
        """Have Postgres end the journal's sessions."""
        await self.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'journal' AND datname = current_database()"
        )


@pytest.fixture
async def desk(cluster: ScratchDatabases) -> AsyncIterator[Desk]:
    """Open a journal on a vault's database with nothing in it."""
    urls = await cluster.database(DATABASE)
    admin = await asyncpg.connect(
        cluster.admin_url.reveal(), database=urlsplit(urls.owner.reveal()).path.strip("/")
    )
    try:
        async with (
            open_pool(urls.roles[VAULT_ROLE], application="journal") as pool,
            open_journal(pool, new_id=uuid4) as journal,
        ):
            yield Desk(journal, admin)
    finally:
        await admin.close()


async def test_the_next_is_loaded_while_one_is_being_recorded(desk: Desk) -> None:
    """A read is judged while another's record waits; neither is released, nor a third loaded."""
    async with desk.locked_log():
        first = desk.read("first")
        await desk.until_judged("first")
        second = desk.read("second")
        await desk.until_judged("first", "second")
        third, fourth = desk.read("third"), desk.read("fourth")
        done, _ = await asyncio.wait([first, second, third, fourth], timeout=0.2)
        assert not done
        assert desk.judged == ["first", "second"]
    await asyncio.gather(first, second, third, fourth)
    assert [each["outcome"] for each in await desk.records()] == [
        "first",
        "second",
        "third",
        "fourth",
    ]


async def test_records_are_one_chain_whoever_waited(desk: Desk) -> None:
    """However reads and records come together, each record names the one before it."""
    events = [AuditEvent("token.read", ORIGIN, outcome=f"alone {n}") for n in range(40)]
    await asyncio.gather(
        *(desk.read(f"read {n}") for n in range(40)),
        *(desk.journal.record([event]) for event in events),
    )
    rows = await desk.admin.fetch("SELECT seq, prev_hash, hash FROM vault.audit_event ORDER BY seq")
    assert [row["seq"] for row in rows] == list(range(1, 82))
    assert [row["prev_hash"] for row in rows] == [GENESIS, *(row["hash"] for row in rows[:-1])]


async def test_a_read_whose_record_is_in_doubt_is_not_released(desk: Desk) -> None:
    """A session lost while recording releases nothing; a new chain says where the old ended."""
    await desk.read("before")
    async with desk.locked_log():
        lost = desk.read("lost")
        await desk.until_judged("before", "lost")
        await desk.end_sessions()
        with pytest.raises(DatabaseUnavailable):
            await lost
    # The other session was ended too, which shows when it is used.
    with suppress(DatabaseUnavailable):
        await desk.read("perhaps")
    await desk.read("after")
    heads = desk.journal.heads()
    assert len(heads) == 2
    subject = await desk.admin.fetchval(
        "SELECT subject FROM vault.audit_event WHERE action = 'chain.started' AND chain_id = $1",
        heads[1].chain_id,
    )
    assert subject == f"{heads[0].chain_id}/{heads[0].seq}"


async def test_records_that_postgres_refuses_leave_the_chain_as_it_was(desk: Desk) -> None:
    """What Postgres says it did not write is not released, and the chain goes on without a gap."""
    await desk.read("before")
    await desk.admin.execute("REVOKE INSERT ON vault.audit_event FROM interlock_vault")
    with pytest.raises(DatabaseUnavailable):
        await desk.read("refused")
    assert desk.journal.is_failing
    await desk.admin.execute("GRANT INSERT ON vault.audit_event TO interlock_vault")
    await desk.read("after")
    assert not desk.journal.is_failing
    assert [each["outcome"] for each in await desk.records()] == ["before", "after"]
    assert len(desk.journal.heads()) == 1


async def test_what_was_taken_is_settled_before_the_end(cluster: ScratchDatabases) -> None:
    """Closing waits for what was taken, and takes nothing more."""
    urls = await cluster.database(DATABASE)
    async with open_pool(urls.roles[VAULT_ROLE], application="journal") as pool:
        async with open_journal(pool, new_id=uuid4) as journal:
            tasks = [
                asyncio.create_task(journal.record([AuditEvent("token.read", ORIGIN)]))
                for _ in range(100)
            ]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        with pytest.raises(DatabaseUnavailable):
            await journal.record([AuditEvent("token.read", ORIGIN)])


async def test_as_many_as_came_last_time_are_loaded_together(desk: Desk) -> None:
    """After a crowd, who comes a moment later comes along; a reader alone is served too."""
    for attempt in range(10):
        await asyncio.gather(*(desk.read(f"crowd {attempt}") for _ in range(8)))
        one = desk.read(f"one {attempt}")
        # Time enough for a load to begin.
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.gather(one, desk.read(f"other {attempt}"))
        instants = await desk.admin.fetch(
            "SELECT DISTINCT at FROM vault.audit_event WHERE outcome = ANY ($1)",
            [f"one {attempt}", f"other {attempt}"],
        )
        # A machine that stands still for 10 ms parts them.
        if len(instants) == 1:
            break
    else:
        raise AssertionError("they never came together")
    await desk.read("alone")
    assert [each["outcome"] for each in await desk.records()][-1] == "alone"
