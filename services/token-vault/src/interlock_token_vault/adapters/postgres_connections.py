"""The vault's database, as fetched tokens need it."""

from collections.abc import Sequence

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Connection, Pool, find_held, query, snapshot
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import SealedToken
from interlock_token_vault.domain.installation import Installation, InstallationId
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.vault import Held


class PostgresConnections:
    """A ConnectionStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an installation; see ConnectionStore."""
        with failing_closed():
            async with snapshot(self._pool) as connection:
                await connection.execute(query("name_installations"), [installation_id])
                return await find_held(connection, "get_active", installation_id)

    async def renew_connection(
        self, before: Installation, sealed: SealedToken, event: AuditEvent
    ) -> None:
        """Put a connection one generation up; see ConnectionStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [before.id])
            is_raised = await connection.fetchval(
                query("raise_generation"), before.id, before.generation, sealed.generation
            )
            is_renewed = is_raised and await connection.fetchval(
                query("renew_connection"),
                before.id,
                sealed.generation,
                sealed.dek_id,
                sealed.sealed,
                sealed.ref,
            )
            if not is_renewed:
                raise StaleGeneration
            return None, [event]

        await self._journal.commit(work)
