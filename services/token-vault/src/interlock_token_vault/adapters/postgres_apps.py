"""The vault's database, as the installations of other apps need it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import asyncpg

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Connection, Pool, Row, dek_of, query
from interlock_token_vault.app_installations import (
    Found,
    SealedSecret,
    StoredPlace,
    StoredRecord,
)
from interlock_token_vault.app_keys import KeptPlace
from interlock_token_vault.domain.app_record import (
    AppPlace,
    AppRecord,
    RecordId,
    RecordKind,
    SecretName,
)
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import SealedBytes, WrappedDek
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    InstallationId,
    TokenRef,
)
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.vault import InstallationNotFound, Stop


class PostgresApps:
    """An AppStore and an AppKeyStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def find_place(self, place: AppPlace) -> StoredPlace | None:
        """Find a place; see AppStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                return await _find_place(connection, place)

    async def add_place(self, place: AppPlace, stored: StoredPlace) -> None:
        """Add a place with its key; see AppStore."""
        wrapped = stored.wrapped
        if wrapped is None:
            raise AssertionError("a place is added with its data key")
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(query("name_installations"), [stored.installation_id])
                is_new = await connection.fetchval(
                    query("add_app_place"),
                    stored.installation_id,
                    place.client_id,
                    place.enterprise_id,
                    place.team_id,
                )
                if is_new:
                    await connection.execute(
                        query("insert_dek"),
                        wrapped.dek_id,
                        wrapped.installation_id,
                        wrapped.kek_version,
                        wrapped.wrapped,
                    )

    async def load_recorded(
        self,
        place: AppPlace,
        user_id: str,
        judge: Callable[[Found | None], Sequence[AuditEvent]],
    ) -> Found | None:
        """Load what a find goes by, and commit the records; see AppStore."""

        async def work(connection: Connection) -> tuple[Found | None, Sequence[AuditEvent]]:
            stored = await _find_place(connection, place)
            found = None
            if stored is not None:
                where = stored.installation_id
                bot = await connection.fetchrow(query("newest_app_bot"), where)
                base = await connection.fetchrow(query("newest_app_record"), where, user_id)
                found = Found(
                    stored,
                    await _record_of(connection, bot),
                    await _record_of(connection, base),
                )
            return found, judge(found)

        return await self._journal.commit(work)

    async def find_record_id(
        self, installation_id: InstallationId, record: AppRecord
    ) -> RecordId | None:
        """Find a record by kind, user and time; see AppStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(query("name_installations"), [installation_id])
                found: UUID | None = await connection.fetchval(
                    query("find_app_record_id"),
                    installation_id,
                    record.kind.value,
                    record.user_id,
                    record.installed_at,
                )
        return None if found is None else RecordId(found)

    async def find_by_ref(
        self, installation_id: InstallationId, name: SecretName, ref: TokenRef
    ) -> StoredRecord | None:
        """Find the newest record with a secret of this fingerprint; see AppStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(query("name_installations"), [installation_id])
                row = await connection.fetchrow(
                    query("find_app_record_by_ref"), installation_id, name.value, ref
                )
                return await _record_of(connection, row)

    async def save(
        self,
        installation_id: InstallationId,
        records: Sequence[StoredRecord],
        events: Sequence[AuditEvent],
    ) -> None:
        """Write records; see AppStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [installation_id])
            row = await connection.fetchrow(query("lock_app_dek"), installation_id)
            deks = {secret.dek_id for each in records for secret in each.secrets.values()}
            if row is None or not deks <= {row["dek_id"]}:
                raise StaleGeneration
            try:
                for each in records:
                    await _write(connection, installation_id, each)
            except asyncpg.UniqueViolationError:
                # Another save made the record of this user and time meanwhile.
                raise StaleGeneration from None
            return None, events

        await self._journal.commit(work)

    async def delete(
        self, place: AppPlace, kind: RecordKind, user_id: str, event: AuditEvent
    ) -> None:
        """Delete records with their history; see AppStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            stored = await _find_place(connection, place)
            if stored is None:
                return None, []
            where = stored.installation_id
            # Whoever saves holds the key's row, so that none saves under a key that goes.
            await connection.fetchrow(query("lock_app_dek"), where)
            gone = await connection.fetch(query("delete_app_records"), where, kind.value, user_id)
            events = [event] if gone else []
            if await connection.fetchval(query("delete_empty_app_place"), where):
                await connection.execute(query("delete_deks"), where)
                # So that a restore of an older backup does not bring it back.
                events.append(replace(event, action="installation.purged", installation_id=where))
            return None, events

        await self._journal.commit(work)

    async def find_kept(self, name: InstallationId | AppPlace) -> KeptPlace | None:
        """Find a place with its history; see AppKeyStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                if isinstance(name, AppPlace):
                    stored = await _find_place(connection, name)
                    if stored is None:
                        return None
                    name = stored.installation_id
                return await _find_kept(connection, name)

    async def reseal(
        self,
        before: KeptPlace,
        wrapped: WrappedDek,
        records: Sequence[StoredRecord],
        event: AuditEvent,
    ) -> None:
        """Put a new data key in place, and what is sealed under it; see AppKeyStore."""
        where = before.installation_id

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [where])
            # As in delete: whoever saves holds the key's row.
            await connection.fetchrow(query("lock_app_dek"), where)
            if await _find_kept(connection, where) != before:
                raise StaleGeneration
            await connection.execute(query("delete_deks"), where)
            await connection.execute(
                query("insert_dek"),
                wrapped.dek_id,
                wrapped.installation_id,
                wrapped.kek_version,
                wrapped.wrapped,
            )
            for each in records:
                for name, secret in each.secrets.items():
                    await connection.execute(
                        query("replace_app_secret"),
                        each.id,
                        name.value,
                        secret.dek_id,
                        secret.sealed,
                    )
            return None, [event]

        await self._journal.commit(work)

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete a place with its data key; see AppKeyStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await connection.execute(query("name_installations"), [installation_id])
            await connection.fetchrow(query("lock_app_dek"), installation_id)
            await connection.execute(query("delete_deks"), installation_id)
            if not await connection.fetchval(query("shred_app_place"), installation_id):
                raise InstallationNotFound
            return None, [event]

        await self._journal.commit(work)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see AppStore."""
        await self._journal.record(events)


async def _find_place(connection: Connection, place: AppPlace) -> StoredPlace | None:
    """Find a place, naming it for the rest of the transaction."""
    found = await connection.fetchval(
        query("find_app_place"), place.client_id, place.enterprise_id, place.team_id
    )
    await connection.execute(query("name_installations"), [found] if found else [])
    if found is None:
        return None
    row = await connection.fetchrow(query("get_app_place"), found)
    if row is None:
        return None
    return StoredPlace(
        InstallationId(found), dek_of(row), Stop(row["stopped"]) if row["stopped"] else None
    )


async def _find_kept(connection: Connection, installation_id: InstallationId) -> KeptPlace | None:
    await connection.execute(query("name_installations"), [installation_id])
    row = await connection.fetchrow(query("get_app_place"), installation_id)
    if row is None:
        return None
    rows = await connection.fetch(query("list_app_records"), installation_id)
    records = [await _record_of(connection, each) for each in rows]
    return KeptPlace(
        installation_id,
        AppPlace(ClientId(row["client_id"]), row["enterprise_id"], row["team_id"]),
        dek_of(row),
        tuple(each for each in records if each is not None),
    )


async def _record_of(connection: Connection, row: Row | None) -> StoredRecord | None:
    if row is None:
        return None
    secrets = await connection.fetch(query("get_app_secrets"), row["record_id"])
    return StoredRecord(
        RecordId(row["record_id"]),
        AppRecord(
            RecordKind(row["kind"]), row["user_id"], row["installed_at"], json.loads(row["details"])
        ),
        {
            SecretName(each["name"]): SealedSecret(
                DekId(each["dek_id"]), SealedBytes(each["sealed"]), TokenRef(each["ref"])
            )
            for each in secrets
        },
    )


async def _write(
    connection: Connection, installation_id: InstallationId, stored: StoredRecord
) -> None:
    record = stored.record
    await connection.execute(
        query("save_app_record"),
        stored.id,
        installation_id,
        record.kind.value,
        record.user_id,
        record.installed_at,
        json.dumps(record.details),
    )
    await connection.execute(query("delete_app_secrets"), stored.id)
    for name, secret in stored.secrets.items():
        await connection.execute(
            query("insert_app_secret"),
            stored.id,
            installation_id,
            name.value,
            secret.dek_id,
            secret.sealed,
            secret.ref,
        )
