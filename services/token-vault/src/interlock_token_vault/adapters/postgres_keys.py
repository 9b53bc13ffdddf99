"""The vault's database, as the life of keys needs it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls, insert_tokens
from interlock_token_vault.adapters.rows import (
    Connection,
    Pool,
    dek_of,
    find_held,
    query,
    snapshot,
)
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import WrappedDek
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
)
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.key_lifecycle import (
    DekPlace,
    EnterpriseInstalled,
    HeldDek,
    RefreshUnsettled,
    RewrapRunning,
    ScannerMissing,
    SlackPlace,
)
from interlock_token_vault.vault import Held, InstallationNotFound

_BEFORE_ALL = DekId(UUID(int=0))


class PostgresKeys:
    """A KeyStore on Postgres.

    Args:
        pool: Of the vault's role.
        scanner: Of the scanner's role, which sees ids and key versions of all
            installations; None where the vault was not given it.
        journal: Commits everything that leaves a record.
    """

    def __init__(self, pool: Pool, scanner: Pool | None, journal: Journal) -> None:
        self._pool = pool
        self._scanner = scanner
        self._journal = journal
        self._installs = PostgresInstalls(pool, journal)

    async def count_deks(self) -> Mapping[str, int]:
        """Count the data keys by version; see KeyStore."""
        with failing_closed():
            rows = await self._scanning().fetch(query("count_deks"))
        return {row["kek_version"]: row["deks"] for row in rows}

    @asynccontextmanager
    async def rewrapping(self) -> AsyncIterator[None]:
        """Hold the right to re-wrap; see KeyStore. Its session's end gives it back."""
        with failing_closed():
            connection = await self._scanning().acquire()
        try:
            with failing_closed():
                is_ours = await connection.fetchval(query("take_rewrap_lock"))
            if not is_ours:
                raise RewrapRunning
            yield
        finally:
            # Cheaper than to be sure that a lock was given back.
            connection.terminate()
            await self._scanning().release(connection)

    async def list_deks(
        self, not_version: str, after: DekId | None, limit: int
    ) -> Sequence[DekPlace]:
        """List data keys of other versions; see KeyStore."""
        with failing_closed():
            rows = await self._scanning().fetch(
                query("list_deks"), not_version, after or _BEFORE_ALL, limit
            )
        return [
            DekPlace(DekId(row["dek_id"]), InstallationId(row["installation_id"])) for row in rows
        ]

    async def get_deks(self, places: Sequence[DekPlace]) -> Sequence[HeldDek]:
        """Get data keys by their ids; see KeyStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await _name(connection, *(place.installation_id for place in places))
                rows = await connection.fetch(
                    query("get_deks_by_id"), [place.dek_id for place in places]
                )
        return [
            HeldDek(wrapped, ClientId(row["client_id"]) if row["client_id"] else None)
            for row in rows
            if (wrapped := dek_of(row))
        ]

    async def replace_deks(
        self, changes: Sequence[tuple[WrappedDek, WrappedDek]], events: Sequence[AuditEvent]
    ) -> int:
        """Put newly wrapped keys in place; see KeyStore."""

        async def work(connection: Connection) -> tuple[int, Sequence[AuditEvent]]:
            await _name(connection, *(before.installation_id for before, _ in changes))
            written: list[AuditEvent] = []
            for (before, after), event in zip(changes, events, strict=True):
                is_replaced = await connection.fetchval(
                    query("replace_dek"),
                    before.dek_id,
                    before.kek_version,
                    before.wrapped,
                    after.kek_version,
                    after.wrapped,
                )
                written += [event] if is_replaced else []
            return len(written), written

        return await self._journal.commit(work)

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an installation; see KeyStore."""
        with failing_closed():
            async with snapshot(self._pool) as connection:
                await _name(connection, installation_id)
                return await find_held(connection, "get_active", installation_id)

    async def find_by_place(
        self, client_id: ClientId, place: SlackPlace
    ) -> Sequence[InstallationId]:
        """Find installations by Slack's name; see KeyStore."""
        with failing_closed():
            rows = await self._pool.fetch(
                query("find_by_place"), client_id, place.enterprise_id, place.team_id
            )
        return [InstallationId(row[0]) for row in rows]

    async def reseal(self, before: Held, after: Held, event: AuditEvent) -> None:
        """Put newly sealed tokens in place; see KeyStore."""
        installation_id = after.installation.id

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, installation_id)
            if await find_held(connection, "lock_active", installation_id) != before:
                raise StaleGeneration
            # What Slack answers meanwhile is sealed under the key that would go.
            if await connection.fetchval(query("is_chain_moving"), installation_id):
                raise RefreshUnsettled
            await connection.execute(query("delete_candidates"), installation_id)
            await connection.execute(query("delete_tokens"), installation_id)
            await connection.execute(query("delete_deks"), installation_id)
            try:
                await connection.execute(
                    query("set_enterprise"), installation_id, after.installation.key.enterprise_id
                )
            except asyncpg.UniqueViolationError:
                raise EnterpriseInstalled from None
            wrapped = after.wrapped
            await connection.execute(
                query("insert_dek"),
                wrapped.dek_id,
                wrapped.installation_id,
                wrapped.kek_version,
                wrapped.wrapped,
            )
            await insert_tokens(connection, installation_id, after.tokens)
            return None, [event]

        await self._journal.commit(work)

    async def find_installation(self, installation_id: InstallationId) -> Installation | None:
        """Find an installation by its id; see KeyStore."""
        return await self._installs.find_installation(installation_id)

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete an installation with its keys; see KeyStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, installation_id)
            await connection.execute(query("delete_deks"), installation_id)
            if not await connection.fetchval(query("shred_installation"), installation_id):
                raise InstallationNotFound
            return None, [event]

        await self._journal.commit(work)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see KeyStore."""
        await self._journal.record(events)

    def _scanning(self) -> Pool:
        if self._scanner is None:
            raise ScannerMissing
        return self._scanner


async def _name(connection: Connection, *ids: InstallationId) -> None:
    """Name the only installations that the rest of the transaction can see."""
    await connection.execute(query("name_installations"), list(ids))
