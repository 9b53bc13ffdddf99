"""What the vault's database refuses, whoever asks; and the journal when it stumbles."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from interlock_chassis.database import DatabaseUrls, migrate, open_pool
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import Journal, open_journal
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.rows import Connection
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.audit_log import find_first_break
from interlock_token_vault.domain.installation import ClientId, InstallationKey
from interlock_token_vault.migrations import DATABASE, SCANNER_ROLE, VAULT_ROLE
from interlock_token_vault.vault import DatabaseUnavailable, Loaded, ReadTarget, Verdict

KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
INSTALLATION = UUID(int=1)
ORIGIN = Origin(actor="gateway-worker", rpc="/x/Read")
INSERT_INSTALLATION = """
    INSERT INTO vault.installation VALUES ($1, 'client', 'A0APP', '', 'T0TEAM', 'tenant',
        'active', 3, 'Northwind', 'U0BOT', '{chat:write}', now())
"""
INSERT_PENDING = """
    INSERT INTO vault.installation VALUES ($1, 'client', 'A0APP', '', 'T0TEAM', 'other',
        'pending', 1, 'Northwind', 'U0BOT', '{}')
"""
INSERT_DEK = """
    INSERT INTO vault.wrapped_dek VALUES ('00000000-0000-0000-0000-000000000002', $1, 'local-1',
        decode(repeat('ab', 60), 'hex'))
"""
INSERT_TOKEN = """
    INSERT INTO vault.sealed_token VALUES ($1, 'bot', 'access', '', 3,
        '00000000-0000-0000-0000-000000000002', decode('01' || repeat('cd', 120), 'hex'),
        repeat('a', 32))
"""
DENIED = asyncpg.InsufficientPrivilegeError
BROKEN = asyncpg.CheckViolationError


@dataclass
class Stage:
    """A migrated database, and every role's way into it."""

    urls: DatabaseUrls
    admin: "asyncpg.Connection[asyncpg.Record]"

    @asynccontextmanager
    async def as_role(self, role: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """Connect as a role of the vault's, or as its owner."""
        url = self.urls.owner if role == DATABASE.owner else self.urls.roles[role]
        connection = await asyncpg.connect(url.reveal())
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def journal(self) -> AsyncIterator[tuple[Journal, PostgresStore]]:
        """Open a journal, and the store to look at what it wrote."""
        async with (
            open_pool(self.urls.roles[VAULT_ROLE], application="test") as pool,
            open_journal(pool, new_id=uuid4) as journal,
        ):
            yield journal, PostgresStore(pool, journal)


@pytest.fixture
async def stage(cluster: ScratchDatabases) -> AsyncIterator[Stage]:
    """Give a database with one active installation of one sealed token."""
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")
    admin = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
    for statement in (INSERT_INSTALLATION, INSERT_DEK, INSERT_TOKEN):
        await admin.execute(statement, INSTALLATION)
    try:
        yield Stage(urls, admin)
    finally:
        await admin.close()


async def _record(stage: Stage, events: int = 1) -> None:
    async with stage.journal() as (journal, _):
        await journal.record([AuditEvent("token.read", ORIGIN)] * events)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vault.audit_event SET outcome = 'x'",
        "DELETE FROM vault.audit_event",
        "TRUNCATE vault.audit_event",
        "DROP TABLE vault.audit_event",
        "ALTER TABLE vault.audit_event DISABLE ROW LEVEL SECURITY",
        "DELETE FROM vault.audit_event_default",
        "INSERT INTO vault.audit_event_default SELECT * FROM vault.audit_event",
    ],
)
async def test_the_vault_cannot_rewrite_its_log(stage: Stage, statement: str) -> None:
    """PG-03: to the role that serves, the audit log only grows."""
    await _record(stage)
    async with stage.as_role(VAULT_ROLE) as vault:
        with pytest.raises(DENIED):
            await vault.execute(statement)


@pytest.mark.parametrize("table", ["installation", "sealed_token", "wrapped_dek", "audit_event"])
async def test_without_a_named_installation_nothing_is_seen(stage: Stage, table: str) -> None:
    """Row security: the role sees no row, until a transaction names whose."""
    await _record(stage)
    counting = f"SELECT count(*) FROM vault.{table}"  # noqa: S608 - One of the four above.
    async with stage.as_role(VAULT_ROLE) as vault:
        assert await vault.fetchval(counting) == 0
        for named in ("", "{}", f"{{{UUID(int=9)}}}"):
            async with vault.transaction():
                await vault.execute("SELECT set_config('app.installations', $1, true)", named)
                assert await vault.fetchval(counting) == 0


async def test_what_a_transaction_names_ends_with_it(stage: Stage) -> None:
    """One caller's installations are not the next caller's on the same connection."""
    async with stage.as_role(VAULT_ROLE) as vault:
        async with vault.transaction():
            await vault.execute(
                "SELECT set_config('app.installations', $1, true)", f"{{{INSTALLATION}}}"
            )
            assert await vault.fetchval("SELECT count(*) FROM vault.sealed_token") == 1
        assert await vault.fetchval("SELECT count(*) FROM vault.sealed_token") == 0


async def test_rows_of_others_cannot_be_written(stage: Stage) -> None:
    """A transaction writes only rows of installations that it named."""
    async with stage.as_role(VAULT_ROLE) as vault:
        with pytest.raises(DENIED):
            await vault.execute(INSERT_DEK, INSTALLATION)
        assert await vault.execute("DELETE FROM vault.sealed_token") == "DELETE 0"


async def test_the_owner_is_bound_too(stage: Stage) -> None:
    """Row security is forced: migrations cannot read data keys or change tokens by accident."""
    async with stage.as_role(DATABASE.owner) as owner:
        assert await owner.fetchval("SELECT count(*) FROM vault.wrapped_dek") == 0
        assert await owner.execute("DELETE FROM vault.sealed_token") == "DELETE 0"
        assert await owner.execute("UPDATE vault.installation SET name = 'x'") == "UPDATE 0"


async def test_the_scanner_sees_ids_and_nothing_else(stage: Stage) -> None:
    """Schedulers find out what there is, and can open none of it."""
    async with stage.as_role(SCANNER_ROLE) as scanner:
        rows = await scanner.fetch("SELECT dek_id, kek_version FROM vault.wrapped_dek")
        assert [row["kek_version"] for row in rows] == ["local-1"]
        assert await scanner.fetchval("SELECT installation_id FROM vault.installation") is not None
        for statement in (
            "SELECT wrapped FROM vault.wrapped_dek",
            "SELECT tenant_id FROM vault.installation",
            "SELECT * FROM vault.sealed_token",
            "SELECT * FROM vault.audit_event",
            "SELECT * FROM vault.install_attempt",
            "SELECT vault.is_ref_stored('a', NULL)",
            "DELETE FROM vault.wrapped_dek",
        ):
            with pytest.raises(DENIED):
                await scanner.execute(statement)


@pytest.mark.parametrize(
    "change",
    [
        "app_id = 'a0app'",
        "app_id = E'A0APP\\nX'",
        "team_id = 'C0TEAM'",
        "enterprise_id = 'E'",
        "team_id = ''",
        "tenant_id = ''",
        "state = 'deleted'",
        "bot_user_id = ''",
        "installed_at = NULL",
        "generation = 0",
    ],
)
async def test_malformed_installations_are_refused(stage: Stage, change: str) -> None:
    """The database repeats the rules of the domain, for whoever goes past it."""
    with pytest.raises((BROKEN, asyncpg.IntegrityConstraintViolationError)):
        await stage.admin.execute(f"UPDATE vault.installation SET {change}")  # noqa: S608 - Above.


async def test_a_plaintext_token_cannot_be_stored(stage: Stage) -> None:
    """KM-08: even a superuser's mistake does not put a token there in the clear."""
    with pytest.raises(BROKEN):
        await stage.admin.execute(
            "UPDATE vault.sealed_token SET sealed = convert_to('xoxb-' || repeat('a', 120), 'UTF8')"
        )


async def test_a_generation_only_rises(stage: Stage) -> None:
    """I6: no statement lowers an installation's generation."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await stage.admin.execute("UPDATE vault.installation SET generation = 2")
    await stage.admin.execute("UPDATE vault.installation SET generation = 4")


async def test_a_workspace_has_one_active_installation(stage: Stage) -> None:
    """I13: a second active row of the same key is refused; a pending one is not."""
    await stage.admin.execute(INSERT_PENDING, uuid4())
    with pytest.raises(asyncpg.UniqueViolationError):
        await stage.admin.execute(
            "UPDATE vault.installation SET state = 'active', installed_at = now()"
        )


async def test_the_schema_can_be_taken_down_and_built_again(stage: Stage) -> None:
    """Every version can be undone, and done again."""
    await asyncio.to_thread(migrate, stage.urls.owner, DATABASE, "base")
    assert await stage.admin.fetchval("SELECT to_regclass('vault.audit_event')") is None
    await asyncio.to_thread(migrate, stage.urls.owner, DATABASE)
    await _record(stage)


async def test_records_go_into_the_month_they_belong_to(stage: Stage) -> None:
    """The default partition stays empty, so that a month can be dropped whole."""
    await _record(stage, 3)
    assert await stage.admin.fetchval("SELECT count(*) FROM vault.audit_event_default") == 0
    assert await stage.admin.fetchval("SELECT count(*) FROM vault.audit_event") == 4


async def test_an_installations_log_is_listed_by_index(stage: Stage) -> None:
    """A page of one tenant's records costs the same however long the log has grown."""
    await stage.admin.execute("SET enable_seqscan = off")
    plan = await stage.admin.fetch(
        "EXPLAIN SELECT * FROM vault.audit_event WHERE installation_id = $1"
        " ORDER BY at DESC, chain_id DESC, seq DESC LIMIT 10",
        INSTALLATION,
    )
    assert not any("Seq Scan" in row[0] for row in plan)


# The journal.


def _judge(found: Loaded | None) -> Verdict:
    outcome = str(found.installation.generation) if found else "absent"
    return Verdict(AuditEvent("token.read", ORIGIN, outcome=outcome))


async def test_a_chain_begins_by_saying_so(stage: Stage) -> None:
    """The first record of a process is that it writes; each process has its own chain."""
    for _ in range(2):
        await _record(stage)
    rows = await stage.admin.fetch("SELECT * FROM vault.audit_event ORDER BY at, seq")
    assert [row["action"] for row in rows] == ["chain.started", "token.read"] * 2
    assert [row["seq"] for row in rows] == [1, 2, 1, 2]
    assert len({row["chain_id"] for row in rows}) == 2


async def test_readers_share_a_commit(stage: Stage) -> None:
    """What waits while a transaction runs goes into the next one together."""
    async with stage.journal() as (journal, store):
        await asyncio.gather(*(journal.load_recorded(ReadTarget(KEY), _judge) for _ in range(300)))
        records = await store.list_audit_events(None, 1000, None)
    assert len(records) == 301
    assert len({record.at for record in records}) < 10
    assert find_first_break(sorted(records, key=lambda record: record.seq)) is None


async def test_after_a_lost_commit_a_new_chain_names_the_old_end(stage: Stage) -> None:
    """When it is unknown whether records were committed, the chain is left at its known end."""
    async with stage.journal() as (journal, store):
        await journal.record([AuditEvent("token.read", ORIGIN)])
        await stage.admin.execute("""
            CREATE FUNCTION vault.fail() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'lost'; END $$;
            CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON vault.audit_event
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION vault.fail();
        """)

        async def work(_: object) -> tuple[None, list[AuditEvent]]:
            return None, [AuditEvent("kek.promoted", ORIGIN)]

        with pytest.raises(DatabaseUnavailable):
            await journal.commit(work)
        await stage.admin.execute("DROP TRIGGER lose ON vault.audit_event")
        verdict = await journal.load_recorded(ReadTarget(KEY), _judge)
        assert verdict.event.outcome == "3"
        records = await store.list_audit_events(None, 10, None)
    started = records[1]
    assert started.event.action == "chain.started"
    assert started.event.origin.subject == f"{records[-1].chain_id}/2"
    assert started.chain_id != records[-1].chain_id


async def test_a_failure_before_the_commit_leaves_no_gap(stage: Stage) -> None:
    """A transaction that certainly failed takes no place in the chain."""
    async with stage.journal() as (journal, store):
        await journal.record([AuditEvent("token.read", ORIGIN)])
        await stage.admin.execute(f"REVOKE INSERT ON vault.audit_event FROM {VAULT_ROLE}")
        with pytest.raises(DatabaseUnavailable):
            await journal.load_recorded(ReadTarget(KEY), _judge)
        await stage.admin.execute(f"GRANT INSERT ON vault.audit_event TO {VAULT_ROLE}")
        await journal.load_recorded(ReadTarget(KEY), _judge)
        records = await store.list_audit_events(None, 10, None)
    assert [record.seq for record in records] == [3, 2, 1]
    assert find_first_break(reversed(records)) is None


async def test_the_journal_outlives_its_connections(stage: Stage) -> None:
    """When Postgres cuts every session, a read fails and the next one is served."""
    async with stage.journal() as (journal, _):
        await journal.load_recorded(ReadTarget(KEY), _judge)
        await stage.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        outcomes = [await _outcome(journal) for _ in range(3)]
    assert outcomes[-1] == "3"
    assert set(outcomes) <= {"3", "DATABASE_UNAVAILABLE"}


async def test_sessions_that_end_are_not_missing_afterwards(stage: Stage) -> None:
    """However often Postgres cuts the journal's session, the pool has one more to give."""
    async with stage.journal() as (journal, _):
        for _ in range(12):
            await _outcome(journal)
            await stage.admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        outcomes = [await _outcome(journal) for _ in range(3)]
    assert outcomes[-1] == "3"


async def _outcome(journal: Journal) -> str:
    try:
        verdict = await journal.load_recorded(ReadTarget(KEY), _judge)
    except DatabaseUnavailable as error:
        return error.reason
    return verdict.event.outcome


async def test_a_reader_that_went_away_is_not_recorded(stage: Stage) -> None:
    """Who no longer waits is released nothing, so there is nothing to record."""
    async with stage.journal() as (journal, store):
        reading = asyncio.create_task(journal.load_recorded(ReadTarget(KEY), _judge))
        await asyncio.sleep(0)  # Let it take its place in the queue.
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await journal.record([AuditEvent("token.read", ORIGIN, outcome="other")])
        records = await store.list_audit_events(None, 10, None)
    assert [record.event.outcome for record in records] == ["other", "allowed"]


async def test_a_closed_journal_settles_what_it_took_and_takes_no_more(stage: Stage) -> None:
    """At the end of a process nothing that was accepted is lost."""
    async with stage.journal() as (journal, _):
        last = asyncio.create_task(journal.load_recorded(ReadTarget(KEY), _judge))
        await asyncio.sleep(0)  # Let it take its place in the queue.
    assert (await last).event.outcome == "3"
    with pytest.raises(DatabaseUnavailable):
        await journal.record([AuditEvent("token.read", ORIGIN)])


async def test_work_that_refuses_itself_is_rolled_back(stage: Stage) -> None:
    """A refusal inside a transaction leaves neither rows nor records."""

    async def work(connection: Connection) -> tuple[None, list[AuditEvent]]:
        await connection.execute(
            "SELECT set_config('app.installations', $1, true)", f"{{{INSTALLATION}}}"
        )
        await connection.execute("DELETE FROM vault.installation")
        raise DatabaseUnavailable

    async with stage.journal() as (journal, store):
        with pytest.raises(DatabaseUnavailable):
            await journal.commit(work)
        assert await store.list_audit_events(None, 10, None) == []
    assert await stage.admin.fetchval("SELECT count(*) FROM vault.installation") == 1


async def test_a_silent_database_fails_readers_in_time(stage: Stage) -> None:
    """A lock that nobody lifts does not hold readers past their budget of 2 s."""
    loop = asyncio.get_running_loop()
    async with stage.journal() as (journal, _):
        await journal.load_recorded(ReadTarget(KEY), _judge)
        async with stage.admin.transaction():
            await stage.admin.execute("LOCK TABLE vault.audit_event IN ACCESS EXCLUSIVE MODE")
            started = loop.time()
            assert await _outcome(journal) == "DATABASE_UNAVAILABLE"
            assert loop.time() - started < 3
        assert await _outcome(journal) == "3"
