"""The vault's database, as reading needs it."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog

from interlock_chassis.clock import Clock, SystemClock, require_agreement
from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Connection, Pool, query, record_of
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import ChainHead, Span
from interlock_token_vault.domain.installation import InstallationId, InstallationKey
from interlock_token_vault.vault import (
    AuditCursor,
    DatabaseUnavailable,
    InstallationNotFound,
    Judge,
    ReadTarget,
    Stop,
    Verdict,
    Wish,
)

# After every record there will ever be.
_END = AuditCursor(datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1), 2**63 - 1)
_log = structlog.get_logger()

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# About half a megabyte of lines.
_EXPORT_PAGE = 1000
# The months that the migration made, and a vault that is down for a while.
_MONTHS_AHEAD = 3
_SELF = Origin(actor="token-vault", rpc="readiness")
# What is stopped for all is stopped under this id, which no installation has.
_ALL = UUID(int=0)


class PostgresStore:
    """A VaultStore on Postgres.

    Args:
        pool: Of the vault's role; lists the audit log.
        journal: Commits everything that leaves a record.
        clock: Of this machine, which the database's is compared with.
    """

    def __init__(self, pool: Pool, journal: Journal, clock: Clock | None = None) -> None:
        self._pool = pool
        self._journal = journal
        self._clock = clock or SystemClock()

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """Load, judge, and commit the record; see VaultStore."""
        return await self._journal.load_recorded(target, judge)

    async def load_recorded_many(self, wishes: Sequence[Wish]) -> list[Verdict | Exception]:
        """Load, judge, and commit the records; see VaultStore."""
        return await self._journal.load_recorded_many(wishes)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see VaultStore."""
        await self._journal.record(events)

    async def list_audit_events(
        self, key: InstallationKey | None, limit: int, after: AuditCursor | None
    ) -> list[ChainedEvent]:
        """List records, newest first; see VaultStore."""
        cursor = after or _END
        place = (cursor.at, cursor.chain_id, cursor.seq, limit)
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                if key is None:
                    await connection.execute(query("name_all_audit"))
                    rows = await connection.fetch(query("list_audit"), *place)
                else:
                    await connection.execute(
                        query("name_active"),
                        key.client_id,
                        key.app_id,
                        key.enterprise_id,
                        key.team_id,
                    )
                    rows = await connection.fetch(query("list_audit_of_named"), *place)
        return [record_of(row) for row in rows]

    async def stop_releases(
        self, installation_id: InstallationId | None, stop: Stop, note: str, event: AuditEvent
    ) -> None:
        """Stop releases; see VaultStore."""

        async def work(connection: Connection) -> tuple[None, list[AuditEvent]]:
            if installation_id is not None:
                await connection.execute(query("name_installations"), [installation_id])
                if not await connection.fetchval(query("is_installation"), installation_id):
                    raise InstallationNotFound
            scope = installation_id or _ALL
            is_new = await connection.fetchval(query("stop_releases"), scope, stop.value, note)
            return None, [event] if is_new else []

        await self._journal.commit(work)

    async def resume_releases(
        self, installation_id: InstallationId | None, stop: Stop, event: AuditEvent
    ) -> None:
        """Undo stop_releases; see VaultStore."""

        async def work(connection: Connection) -> tuple[None, list[AuditEvent]]:
            scope = installation_id or _ALL
            was_so = await connection.fetchval(query("resume_releases"), scope, stop.value)
            return None, [event] if was_so else []

        await self._journal.commit(work)

    async def read_clock(self) -> datetime:
        """Read the database's clock; see AuditSource."""
        with failing_closed():
            at: datetime = await self._pool.fetchval(query("read_clock"))
        return at

    async def has_tenant(self, tenant_id: str) -> bool:
        """Tell whether a tenant has an installation; see AuditSource."""
        with failing_closed():
            found: bool = await self._pool.fetchval(query("has_tenant"), tenant_id)
        return found

    async def export_records(self, span: Span) -> AsyncIterator[Sequence[ChainedEvent]]:
        """Read the log in pages; see AuditSource."""
        name, of_tenant = "export_audit", []
        if span.tenant_id:
            name, of_tenant = "export_audit_of_tenant", [span.tenant_id]
        place: tuple[datetime, UUID, int] = (_BEGINNING, UUID(int=0), 0)
        while True:
            with failing_closed():
                async with (
                    self._pool.acquire() as connection,
                    connection.transaction(readonly=True),
                ):
                    await connection.execute(query("name_all_audit"))
                    rows = await connection.fetch(
                        query(name),
                        span.since or _BEGINNING,
                        span.until,
                        *place,
                        _EXPORT_PAGE,
                        *of_tenant,
                    )
            if not rows:
                return
            yield [record_of(row) for row in rows]
            place = (rows[-1]["at"], rows[-1]["chain_id"], rows[-1]["seq"])

    async def has_record(self, head: ChainHead) -> bool:
        """Look for a chain's record; see ContinuitySource."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(query("name_all_audit"))
                stored: bytes | None = await connection.fetchval(
                    query("get_record_hash"), head.chain_id, head.seq, head.at
                )
        return stored == head.hash

    async def find_confirmed_loss(self) -> datetime | None:
        """Find until when losses are confirmed; see ContinuitySource."""
        with failing_closed():
            at: datetime | None = await self._pool.fetchval(query("get_confirmed_loss"))
        return at

    async def make_partitions(self) -> None:
        """Make the audit log's months ahead, where one is missing.

        Raises:
            DatabaseUnavailable: They are not known to be there.
        """
        with failing_closed():
            made = await self._pool.fetchval(query("make_audit_partitions"), _MONTHS_AHEAD)
        if made:
            _log.info("audit_partitions_made", count=made)

    async def require_ready(self) -> None:
        """Check that the audit log can be written, without which nothing is released.

        After a transaction that failed, only a record that is committed counts.

        Raises:
            DatabaseUnavailable: The database is away, full, read-only or not migrated.
            ClockSkew: This machine's clock and the database's differ.
        """
        with failing_closed():
            row = await self._pool.fetchrow(query("check_ready"))
        if row is None or not row["can_write"]:
            raise DatabaseUnavailable
        require_agreement(self._clock, row["at"])
        if self._journal.is_failing:
            await self._journal.record([AuditEvent("log.resumed", _SELF)])
