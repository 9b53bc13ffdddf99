"""Back the vault up and restore it, without ever releasing a token that nobody looked at.

A restore is judged as a whole before anything is written: both files whole and
ours, every data key unwrapped, every sealed token opened. What is there already
stays as it is. What is restored answers nobody until Slack's auth.test passed.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, BinaryIO, Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import ServiceError
from interlock_token_vault.connected_tokens import connection_of
from interlock_token_vault.domain.app_record import (
    AppPlace,
    RecordId,
    RecordKind,
    SecretContext,
    SecretName,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.backup import (
    BackupPart,
    BackupReader,
    BackupRefused,
    BackupRow,
    backup_head,
    backup_line,
    backup_tail,
)
from interlock_token_vault.domain.envelope import (
    Bound,
    CannotOpen,
    KeyContext,
    SealedBytes,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.install_ports import Slack, TokenDead
from interlock_token_vault.vault import Held, KekDisabled, Keys

_BATCH = 50

_log = structlog.get_logger()


class BackupStore(Protocol):
    """The vault's database, as a backup and a restore need it.

    All raise DatabaseUnavailable, and ScannerMissing without the scanner's role.
    """

    def export_rows(self, table: str) -> AsyncIterator[Sequence[str]]:
        """Read a table's rows as JSON, in pages."""
        ...

    async def restore(self, rows: Sequence[BackupRow], event: AuditEvent) -> bool:
        """Write the rows of one installation, held, in one transaction.

        Returns:
            False where the installation, or another of its name, is there already.
        """
        ...

    async def hold_all(self, note: str, event: AuditEvent) -> None:
        """Hold every installation by itself, in place of the whole vault."""
        ...

    async def list_held(self, after: InstallationId | None, limit: int) -> Sequence[InstallationId]:
        """List installations on hold, by id, after one."""
        ...

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an active installation."""
        ...

    async def release_hold(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Let an installation answer again."""
        ...

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete an installation, its tokens and its data keys.

        Raises:
            InstallationNotFound: It is gone already.
        """
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """How far a restore has come.

    Attributes:
        skipped: Installations that were there already.
        lost: Installations without a data key in the other file: to be installed again.
    """

    done: int
    total: int
    skipped: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of one installation on hold.

    Attributes:
        is_released: Whether it answers again.
        reason: Why not: it must be installed again.
    """

    installation_id: InstallationId
    team_id: str
    enterprise_id: str
    name: str
    is_released: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Bundle:
    """Everything of one installation, or of one app's place."""

    rows: tuple[BackupRow, ...]
    wrapped: BackupRow | None


class Restoring:
    """Backups of the vault, and their way back.

    Args:
        slack: Asked whether a restored token lives.
        client_id: Of Interlock's own app; a backup of another is refused.
    """

    def __init__(
        self,
        *,
        store: BackupStore,
        keys: Keys,
        slack: Slack,
        client_id: ClientId,
        environment: str,
    ) -> None:
        self._store = store
        self._keys = keys
        self._slack = slack
        self._client_id = client_id
        self._environment = environment

    async def backup(self, part: BackupPart, origin: Origin) -> AsyncGenerator[bytes, None]:
        """Give one half of a backup, page by page, leaving a record."""
        await self._store.record([AuditEvent("vault.backed_up", origin, outcome=part.value)])
        mac = self._keys.new_mac()
        chunk, count = backup_head(part, self._environment, self._client_id), 0
        mac.update(chunk)
        yield chunk
        for table in part.tables:
            async for page in self._store.export_rows(table):
                chunk = b"".join(backup_line(table, row) for row in page)
                count += len(page)
                mac.update(chunk)
                yield chunk
        yield backup_tail(count, mac.hexdigest())

    async def restore(
        self, sealed: BinaryIO, keys: BinaryIO, origin: Origin, *, dry_run: bool
    ) -> AsyncGenerator[RestoreProgress, None]:
        """Judge both files as a whole, and then write what is not there yet, on hold.

        Raises:
            BackupRefused: A file is not ours or not whole, or something in it
                does not open under this vault's KMS. Nothing was written.
            KmsUnavailable, DatabaseUnavailable: Begin again; what is written stays.
        """
        bundles = self._bundle(
            self._read(sealed, BackupPart.SEALED), self._read(keys, BackupPart.KEYS)
        )
        whole = [bundle for bundle in bundles if bundle.wrapped is not None]
        progress = RestoreProgress(0, len(whole), lost=len(bundles) - len(whole))
        for bundle in whole:
            await self._require_open(bundle)
        yield progress
        if dry_run:
            return
        await self._store.record([AuditEvent("vault.restore_started", origin)])
        for number, bundle in enumerate(whole, start=1):
            rows = [*bundle.rows, *([bundle.wrapped] if bundle.wrapped else [])]
            where = _installation_id(bundle.rows[0].row)
            event = AuditEvent("installation.restored", origin, installation_id=where)
            is_new = await self._store.restore(rows, event)
            progress = replace(
                progress,
                done=progress.done + is_new,
                skipped=progress.skipped + (not is_new),
            )
            if number % _BATCH == 0:
                yield progress
        yield progress

    async def bury(self, ids: Sequence[InstallationId], origin: Origin) -> int:
        """Shred again what was purged after the backup was made; absent is fine.

        Returns:
            How many of them were there.
        """
        buried = 0
        for installation_id in ids:
            event = AuditEvent("installation.purged", origin, installation_id=installation_id)
            try:
                await self._store.shred(installation_id, event)
            except ServiceError as error:
                if error.reason != "INSTALLATION_NOT_FOUND":
                    raise
                continue
            buried += 1
        return buried

    async def release_hold(self, origin: Origin) -> AsyncGenerator[Probed, None]:
        """Ask Slack about every installation on hold, and let those answer that live.

        Other apps' installations are let answer unasked: Bolt asks auth.test
        at every event by itself.

        Raises:
            SlackUnavailable, KmsUnavailable, DatabaseUnavailable: Begin again;
                what is released stays released.
        """
        event = AuditEvent("vault.hold_divided", origin)
        await self._store.hold_all("whole vault was on hold", event)
        after: InstallationId | None = None
        while ids := await self._store.list_held(after, _BATCH):
            for installation_id in ids:
                held = await self._store.find_held(installation_id)
                if held is None:
                    await self._release(installation_id, origin)
                    continue
                yield await self._probe(held, origin)
            after = ids[-1]

    async def _probe(self, held: Held, origin: Origin) -> Probed:
        installation = held.installation
        access = [
            token
            for token in held.tokens
            if token.kind is TokenKind.BOT and token.slot is TokenSlot.ACCESS
        ]
        # Whoever keeps the token elsewhere has today's, whatever was restored here.
        reason = "" if connection_of(held.tokens) else "NO_TOKEN"
        if access:
            event = AuditEvent(
                "token.probed", origin, installation_id=installation.id, token_ref=access[0].ref
            )
            await self._store.record([event])
            context = KeyContext(self._environment, installation.key.client_id, installation.id)
            data_key = self._keys.take(held.wrapped, context)
            place = TokenContext(
                environment=self._environment,
                key=installation.key,
                installation_id=installation.id,
                user_id="",
                kind=TokenKind.BOT,
                slot=TokenSlot.ACCESS,
                dek_id=access[0].dek_id,
                generation=access[0].generation,
            )
            try:
                await self._slack.test(await data_key.open(access[0], place))
                reason = ""
            except (TokenDead, CannotOpen, KekDisabled) as error:
                reason = error.reason
        if not reason:
            await self._release(installation.id, origin)
        return _probed(installation, reason)

    async def _release(self, installation_id: InstallationId, origin: Origin) -> None:
        event = AuditEvent("hold.released", origin, installation_id=installation_id)
        await self._store.release_hold(installation_id, event)

    def _read(self, file: BinaryIO, part: BackupPart) -> list[BackupRow]:
        file.seek(0)
        reader = BackupReader(
            iter(file), part, self._environment, self._client_id, self._keys.new_mac()
        )
        return reader.rows()

    def _bundle(self, rows: Sequence[BackupRow], keys: Sequence[BackupRow]) -> list[_Bundle]:
        """Put together what belongs to one installation, in the order to write it."""
        wrapped = {_installation_id(each.row): each for each in keys}
        bundles: dict[InstallationId, list[BackupRow]] = {}
        for each in rows:
            where = _installation_id(each.row)
            if each.table in {"installation", "app_place"}:
                bundles[where] = []
            if where not in bundles:
                raise BackupRefused("a row belongs to no installation of the backup")
            bundles[where].append(each)
        return [_Bundle(tuple(each), wrapped.get(where)) for where, each in bundles.items()]

    async def _require_open(self, bundle: _Bundle) -> None:
        """Open everything of an installation, and keep none of it."""
        if bundle.wrapped is None:
            raise AssertionError("only a bundle with a key is opened")
        try:
            if bundle.rows[0].row.get("state", "active") != "active":
                raise BackupRefused("an installation is not an active one")
            wrapped, client_id = _wrapped_of(bundle.wrapped.row), _client_of(bundle)
            context = KeyContext(self._environment, client_id, wrapped.installation_id)
            data_key = self._keys.take(wrapped, context)
            for sealed, bound in self._sealed_of(bundle):
                await data_key.open_value(sealed, bound)
        except (CannotOpen, KekDisabled) as error:
            where = bundle.rows[0].row.get("installation_id")
            _log.error("backup_not_opened", installation_id=str(where), reason=error.reason)
            raise BackupRefused(
                "something in it does not open under this vault's keys",
                metadata={"cause": error.reason},
            ) from error
        except (KeyError, ValueError, TypeError, AttributeError):
            raise BackupRefused("a row is not one of this version") from None

    def _sealed_of(self, bundle: _Bundle) -> Iterator[tuple[SealedBytes, Bound]]:
        anchor = bundle.rows[0].row
        records = {
            each.row["record_id"]: each.row for each in bundle.rows if each.table == "app_record"
        }
        for each in bundle.rows:
            if each.table == "sealed_token":
                yield _bytes(each.row["sealed"]), self._token_place(anchor, each.row)
            elif each.table == "app_secret":
                record = records[each.row["record_id"]]
                yield _bytes(each.row["sealed"]), self._secret_place(anchor, record, each.row)

    def _token_place(self, anchor: Mapping[str, Any], row: Mapping[str, Any]) -> TokenContext:
        return TokenContext(
            environment=self._environment,
            key=InstallationKey(
                ClientId(anchor["client_id"]),
                anchor["app_id"],
                anchor["enterprise_id"],
                anchor["team_id"],
            ),
            installation_id=_installation_id(row),
            user_id=row["user_id"],
            kind=TokenKind(row["kind"]),
            slot=TokenSlot(row["slot"]),
            dek_id=DekId(UUID(row["dek_id"])),
            generation=row["generation"],
        )

    def _secret_place(
        self, anchor: Mapping[str, Any], record: Mapping[str, Any], row: Mapping[str, Any]
    ) -> SecretContext:
        return SecretContext(
            environment=self._environment,
            place=AppPlace(
                ClientId(anchor["client_id"]), anchor["enterprise_id"], anchor["team_id"]
            ),
            installation_id=_installation_id(row),
            record_id=RecordId(UUID(row["record_id"])),
            kind=RecordKind(record["kind"]),
            user_id=record["user_id"],
            installed_at=datetime.fromisoformat(record["installed_at"]),
            name=SecretName(row["name"]),
            dek_id=DekId(UUID(row["dek_id"])),
        )


def _installation_id(row: Mapping[str, Any]) -> InstallationId:
    try:
        return InstallationId(UUID(row["installation_id"]))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise BackupRefused("a row names no installation") from None


def _client_of(bundle: _Bundle) -> ClientId:
    return ClientId(bundle.rows[0].row["client_id"])


def _wrapped_of(row: Mapping[str, Any]) -> WrappedDek:
    return WrappedDek(
        DekId(UUID(row["dek_id"])),
        _installation_id(row),
        row["kek_version"],
        bytes(_bytes(row["wrapped"])),
    )


def _bytes(text: str) -> SealedBytes:
    return SealedBytes(bytes.fromhex(text.removeprefix("\\x")))


def _probed(installation: Installation, reason: str) -> Probed:
    key = installation.key
    return Probed(
        installation.id, key.team_id, key.enterprise_id, installation.name, not reason, reason
    )
