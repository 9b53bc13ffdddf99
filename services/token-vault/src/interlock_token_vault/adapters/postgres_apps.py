"""The vault's database, as the installations of other apps need it."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from interlock_chassis.errors import ServiceError
from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import Connection, Pool, Row, dek_of, query
from interlock_token_vault.app_installations import (
    Found,
    SaveFacts,
    SealedSecret,
    StoredPlace,
    StoredRecord,
)
from interlock_token_vault.app_keys import KeptPlace
from interlock_token_vault.domain.app_record import (
    REFRESH_OF,
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


@dataclass(frozen=True, slots=True)
class _Save:
    """What one caller saves.

    Attributes:
        dek_id: Of the key that all of it is sealed under; None where nothing is.
    """

    installation_id: InstallationId
    dek_id: DekId | None
    records: Sequence[StoredRecord]
    events: Sequence[AuditEvent]


class PostgresApps:
    """An AppStore and an AppKeyStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def look_up_save(
        self,
        place: AppPlace,
        records: Sequence[AppRecord],
        alone: Collection[tuple[SecretName, TokenRef]],
    ) -> SaveFacts | None:
        """Find what a save goes by; see AppStore."""
        asked = list(alone)
        with failing_closed():
            row = await self._pool.fetchrow(
                query("look_up_app_save"),
                place.client_id,
                place.enterprise_id,
                place.team_id,
                [record.kind.value for record in records],
                [record.user_id for record in records],
                [record.installed_at for record in records],
                [access.value for access, _ in asked],
                [REFRESH_OF[access].value for access, _ in asked],
                [ref for _, ref in asked],
            )
        if row is None:
            return None
        return SaveFacts(
            StoredPlace(InstallationId(row["installation_id"]), dek_of(row)),
            [None if found is None else RecordId(found) for found in row["record_ids"]],
            {each for each, has in zip(asked, row["has_refresh"], strict=True) if has},
        )

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
        deks = {secret.dek_id for each in records for secret in each.secrets.values()}
        # A record without secrets is bound to no key, but the place must be there.
        save = _Save(installation_id, deks.pop() if deks else None, records, events)
        await self._journal.commit_shared(_write_all, installation_id, save)

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


async def _write_all(
    connection: Connection, saves: Sequence[_Save]
) -> tuple[datetime, list[Sequence[AuditEvent] | ServiceError]]:
    """Write saves of distinct places; a stale one writes nothing, and spoils no other."""
    records = [(number, each) for number, save in enumerate(saves, 1) for each in save.records]
    secrets = [
        (number, name, secret)
        for number, (_, each) in enumerate(records, 1)
        for name, secret in each.secrets.items()
    ]
    row = await connection.fetchrow(
        query("save_app_records"),
        [save.installation_id for save in saves],
        [save.dek_id for save in saves],
        [number for number, _ in records],
        [each.id for _, each in records],
        [each.record.kind.value for _, each in records],
        [each.record.user_id for _, each in records],
        [each.record.installed_at for _, each in records],
        [json.dumps(each.record.details) for _, each in records],
        [number for number, _, _ in secrets],
        [name.value for _, name, _ in secrets],
        [secret.sealed for _, _, secret in secrets],
        [secret.ref for _, _, secret in secrets],
    )
    if row is None:
        raise AssertionError("save_app_records returns one row")
    return row["at"], [
        save.events if is_saved else StaleGeneration()
        for save, is_saved in zip(saves, row["is_saved"], strict=True)
    ]
