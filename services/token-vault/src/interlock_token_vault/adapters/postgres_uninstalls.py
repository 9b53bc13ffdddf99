"""The vault's database, as uninstalling needs it."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Connection, Pool, Row, find_held, query, snapshot
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import SealedToken
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
)
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.uninstalling import OpenUninstall, Tombstone
from interlock_token_vault.vault import Held, InstallationNotFound, Stop

_WHOLE_VAULT = UUID(int=0)


class PostgresUninstalls:
    """An UninstallStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def find_meant(self, key: InstallationKey) -> Sequence[InstallationId]:
        """Find what an event may mean; see UninstallStore."""
        with failing_closed():
            rows = await self._pool.fetch(query("find_meant"), *_name_of(key))
        return [InstallationId(row[0]) for row in rows]

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an installation; see UninstallStore."""
        with failing_closed():
            async with snapshot(self._pool) as connection:
                await _name(connection, installation_id)
                return await find_held(connection, "get_active", installation_id)

    async def is_held_back(self, installation_id: InstallationId) -> bool:
        """Tell whether it waits for a look after a restore; see UninstallStore."""
        with failing_closed():
            async with self._pool.acquire() as connection:
                for each in (installation_id, _WHOLE_VAULT):
                    if await connection.fetchval(query("is_stopped"), each, Stop.HELD.value):
                        return True
        return False

    async def begin_uninstall(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Write an uninstall down; see UninstallStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, installation_id)
            is_begun = await connection.fetchval(
                query("begin_uninstall"),
                installation_id,
                event.origin.grant_id,
                event.origin.subject,
            )
            if not is_begun:
                raise InstallationNotFound
            return None, [event]

        await self._journal.commit(work)

    async def list_open_uninstalls(self, quiet: timedelta, limit: int) -> Sequence[OpenUninstall]:
        """List uninstalls to be ended, and note the try; see UninstallStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(query("list_open_uninstalls"), quiet, limit)
                ids = [InstallationId(row["installation_id"]) for row in rows]
                await _name(connection, *ids)
                await connection.execute(query("note_uninstall_tried"), ids)
        return [
            OpenUninstall(InstallationId(row["installation_id"]), row["grant_id"], row["subject"])
            for row in rows
        ]

    async def purge(self, installation: Installation, event: AuditEvent) -> None:
        """Destroy an installation, leaving a tombstone; see UninstallStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, installation.id)
            gone = await connection.fetchval(
                query("delete_installation"),
                installation.id,
                installation.generation,
                InstallationState.ACTIVE.value,
            )
            if not gone:
                raise StaleGeneration
            await connection.execute(query("delete_deks"), installation.id)
            await connection.execute(
                query("insert_tombstone"),
                installation.id,
                *_name_of(installation.key),
                installation.tenant_id,
            )
            return None, [event]

        await self._journal.commit(work)

    async def purge_user(
        self, installation_id: InstallationId, sealed: SealedToken, event: AuditEvent
    ) -> bool:
        """Delete a user's tokens; see UninstallStore."""

        async def work(connection: Connection) -> tuple[bool, Sequence[AuditEvent]]:
            await _name(connection, installation_id)
            gone = await connection.fetchval(
                query("delete_user_tokens"),
                installation_id,
                sealed.user_id,
                sealed.generation,
                sealed.ref,
            )
            if not gone:
                return False, []
            for statement in ("delete_user_chain", "delete_user_candidates"):
                await connection.execute(query(statement), installation_id, sealed.user_id)
            return True, [event]

        return await self._journal.commit(work)

    async def list_unreleased(self, limit: int) -> Sequence[Tombstone]:
        """List tombstones with claims; see UninstallStore."""
        with failing_closed():
            rows = await self._pool.fetch(query("list_unreleased"), limit)
        return [_tombstone(row) for row in rows]

    async def find_unreleased(self, key: InstallationKey) -> Sequence[Tombstone]:
        """List those of one name; see UninstallStore."""
        with failing_closed():
            rows = await self._pool.fetch(query("find_unreleased"), *_name_of(key))
        return [_tombstone(row) for row in rows]

    async def note_released(self, installation_id: InstallationId) -> None:
        """Note that a claim is released; see UninstallStore."""
        with failing_closed():
            await self._pool.execute(query("note_released"), installation_id)

    async def prune_tombstones(self, older_than: timedelta) -> None:
        """Delete old tombstones; see UninstallStore."""
        with failing_closed():
            await self._pool.execute(query("prune_tombstones"), older_than)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see UninstallStore."""
        await self._journal.record(events)


async def _name(connection: Connection, *ids: InstallationId) -> None:
    """Name the only installations that the rest of the transaction can see."""
    await connection.execute(query("name_installations"), list(ids))


def _name_of(key: InstallationKey) -> tuple[str, str, str, str]:
    return key.client_id, key.app_id, key.enterprise_id, key.team_id


def _tombstone(row: Row) -> Tombstone:
    key = InstallationKey(
        ClientId(row["client_id"]), row["app_id"], row["enterprise_id"], row["team_id"]
    )
    return Tombstone(InstallationId(row["installation_id"]), key)
