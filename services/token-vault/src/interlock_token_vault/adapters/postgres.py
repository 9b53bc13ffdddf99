"""The vault's database, as reading needs it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Pool, query, record_of
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent
from interlock_token_vault.domain.installation import InstallationKey
from interlock_token_vault.vault import AuditCursor, DatabaseUnavailable, Judge, Verdict

# After every record there will ever be.
_END = AuditCursor(datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1), 2**63 - 1)


class PostgresStore:
    """A VaultStore on Postgres.

    Args:
        pool: Of the vault's role; lists the audit log.
        journal: Commits everything that leaves a record.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def load_recorded(self, key: InstallationKey, judge: Judge) -> Verdict:
        """Load, judge, and commit the record; see VaultStore."""
        return await self._journal.load_recorded(key, judge)

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

    async def require_ready(self) -> None:
        """Check that the audit log can be written, without which nothing is released.

        Raises:
            DatabaseUnavailable: The database is away, read-only or not migrated.
        """
        with failing_closed():
            is_ready = await self._pool.fetchval(query("check_ready"))
        if not is_ready:
            raise DatabaseUnavailable
