"""The vault's database, as a backup and a restore need it."""

import json
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.postgres_keys import PostgresKeys
from interlock_token_vault.adapters.rows import Connection, Pool, query
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.backup import KEY_TABLES, SEALED_TABLES, BackupRow
from interlock_token_vault.domain.installation import InstallationId
from interlock_token_vault.key_lifecycle import ScannerMissing
from interlock_token_vault.vault import Held, InstallationNotFound, Stop

_PAGE = 200
_ALL = UUID(int=0)
# A place where an app is installed has no row of the vault's own installations.
_FROM_PLACES = frozenset({"app_place", "app_record", "app_secret"})


class PostgresBackup:
    """A BackupStore on Postgres.

    Args:
        pool: Of the vault's role.
        scanner: Of the scanner's role; None where the vault was not given it.
        journal: Commits everything that leaves a record.
    """

    def __init__(self, pool: Pool, scanner: Pool | None, journal: Journal) -> None:
        self._pool = pool
        self._scanner = scanner
        self._journal = journal
        self._keys = PostgresKeys(pool, scanner, journal)

    async def export_rows(self, table: str) -> AsyncIterator[Sequence[str]]:
        """Read a table in pages of installations; see BackupStore."""
        if table not in {*SEALED_TABLES, *KEY_TABLES}:
            raise AssertionError("only the tables of a backup are exported")
        statement = f"SELECT row_to_json(t)::text FROM vault.{table} t"  # noqa: S608 - One of ours.
        async for ids in self._installations_in(table):
            with failing_closed():
                async with (
                    self._pool.acquire() as connection,
                    connection.transaction(readonly=True),
                ):
                    await connection.execute("SET LOCAL timezone = 'UTC'")
                    await connection.execute(query("name_installations"), ids)
                    rows = await connection.fetch(f"{statement} ORDER BY installation_id")
            yield [row[0] for row in rows]

    async def restore(self, rows: Sequence[BackupRow], event: AuditEvent) -> bool:
        """Write the rows of one installation, held; see BackupStore."""
        where = UUID(str(rows[0].row["installation_id"]))

        async def work(connection: Connection) -> tuple[bool, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [where])
            try:
                async with connection.transaction():
                    for each in rows:
                        await connection.execute(_insert_into(each.table), json.dumps(each.row))
                    await connection.execute(
                        query("stop_releases"), where, Stop.HELD.value, "restored"
                    )
            except asyncpg.UniqueViolationError:
                return False, []
            return True, [event]

        return await self._journal.commit(work)

    async def hold_all(self, note: str, event: AuditEvent) -> None:
        """Hold every installation by itself; see BackupStore."""
        with failing_closed():
            is_held = await self._pool.fetchval(query("is_stopped"), _ALL, Stop.HELD.value)
        if not is_held:
            return
        async for ids in self._installations_in("wrapped_dek"):
            with failing_closed():
                await self._pool.executemany(
                    query("stop_releases"), [(each, Stop.HELD.value, note) for each in ids]
                )

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("resume_releases"), _ALL, Stop.HELD.value)
            await connection.execute(query("confirm_loss"))
            return None, [event]

        await self._journal.commit(work)

    async def list_held(self, after: InstallationId | None, limit: int) -> Sequence[InstallationId]:
        """List installations on hold; see BackupStore."""
        with failing_closed():
            rows = await self._pool.fetch(
                query("list_stopped"), Stop.HELD.value, after or _ALL, limit
            )
        return [InstallationId(row["installation_id"]) for row in rows]

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an installation; see BackupStore."""
        return await self._keys.find_held(installation_id)

    async def release_hold(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Let an installation answer again; see BackupStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            was_held = await connection.fetchval(
                query("resume_releases"), installation_id, Stop.HELD.value
            )
            return None, [event] if was_held else []

        await self._journal.commit(work)

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete an installation, or another app's place, with its keys; see BackupStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [installation_id])
            await connection.execute(query("delete_deks"), installation_id)
            if not await connection.fetchval(query("bury_installation"), installation_id):
                raise InstallationNotFound
            return None, [event]

        await self._journal.commit(work)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see BackupStore."""
        await self._journal.record(events)

    async def _installations_in(self, table: str) -> AsyncIterator[list[UUID]]:
        """Walk by id the installations that a table has rows of."""
        if table not in _FROM_PLACES:
            async for ids in self._walk("list_installations"):
                yield ids
        if table in {*_FROM_PLACES, *KEY_TABLES}:
            async for ids in self._walk("list_app_places"):
                yield ids

    async def _walk(self, name: str) -> AsyncIterator[list[UUID]]:
        if self._scanner is None:
            raise ScannerMissing
        after = _ALL
        while True:
            with failing_closed():
                rows = await self._scanner.fetch(query(name), after, _PAGE)
            if not rows:
                return
            ids = [row["installation_id"] for row in rows]
            yield ids
            after = ids[-1]


def _insert_into(table: str) -> str:
    if table not in {*SEALED_TABLES, *KEY_TABLES}:
        raise AssertionError("only the tables of a backup are restored")
    # What a backup does not hold, such as a pending state, cannot come in by it.
    return (
        f"INSERT INTO vault.{table}"  # noqa: S608 - One of ours.
        f" SELECT * FROM jsonb_populate_record(NULL::vault.{table}, $1::jsonb)"
    )
