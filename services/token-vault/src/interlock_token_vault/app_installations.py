"""Keep the installations of other Slack apps, as Bolt for Python knows them.

The semantics are those that Bolt's SQL store is tested for, without its
defects: exact places, a history by the time of installation, the newest bot
laid over what a user installed. Refresh tokens go in and never come out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.app_record import (
    KIND_OF,
    REFRESH_OF,
    AppPlace,
    AppRecord,
    RecordId,
    RecordKind,
    SecretContext,
    SecretName,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import CannotOpen, KeyContext, SealedBytes, WrappedDek
from interlock_token_vault.domain.installation import DekId, InstallationId, TokenRef
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    InstallationNotFound,
    Keys,
    OnHold,
    ReleasesFrozen,
    Stop,
)

# The bot's part of a record: what the newest bot brings along.
_BOT_DETAILS = ("bot_id", "bot_user_id", "bot_scopes", "bot_token_expires_at")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret of a record as it is stored."""

    dek_id: DekId
    sealed: SealedBytes
    ref: TokenRef


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is stored."""

    id: RecordId
    record: AppRecord
    secrets: Mapping[SecretName, SealedSecret]


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """A place and its data key.

    Attributes:
        stopped: Whether releases are stopped here, or in the whole vault.
    """

    installation_id: InstallationId
    wrapped: WrappedDek | None
    stopped: Stop | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a find has to go by.

    Attributes:
        bot: The newest record of a bot that has a token.
        installation: The newest installation, of the user where one is named.
    """

    place: StoredPlace
    bot: StoredRecord | None
    installation: StoredRecord | None


@dataclass(frozen=True, slots=True)
class SaveFacts:
    """What a save has to go by.

    Attributes:
        record_ids: For each record the one of the same kind, user and time; None for none.
        with_refresh: The access tokens with which a refresh token is stored.
    """

    place: StoredPlace
    record_ids: Sequence[RecordId | None]
    with_refresh: Collection[tuple[SecretName, TokenRef]]


class AppStore(Protocol):
    """The vault's database, as the installations of other apps need it.

    All raise DatabaseUnavailable. A transaction sees one place only.
    """

    async def look_up_save(
        self,
        place: AppPlace,
        records: Sequence[AppRecord],
        alone: Collection[tuple[SecretName, TokenRef]],
    ) -> SaveFacts | None:
        """Find what a save goes by, or None where the place is not known.

        Args:
            place: The only one that the transaction can see.
            records: What is to be saved; their secrets are not looked at.
            alone: The access tokens that come without a refresh token.
        """
        ...

    async def add_place(self, place: AppPlace, stored: StoredPlace) -> None:
        """Add a place with its data key; one that is there stays as it is."""
        ...

    async def load_recorded(
        self,
        place: AppPlace,
        user_id: str,
        judge: Callable[[Found | None], Sequence[AuditEvent]],
    ) -> Found | None:
        """Load what a find goes by, and commit the records that the judge makes of it.

        Args:
            place: The only one that the transaction can see.
            user_id: Whose installation; empty for the newest of anybody's.
            judge: Pure and quick; called inside the transaction.
        """
        ...

    async def find_by_ref(
        self, installation_id: InstallationId, name: SecretName, ref: TokenRef
    ) -> StoredRecord | None:
        """Find the newest record that holds a secret of this fingerprint."""
        ...

    async def save(
        self,
        installation_id: InstallationId,
        records: Sequence[StoredRecord],
        events: Sequence[AuditEvent],
    ) -> None:
        """Write records, each in the place of the one with its id.

        Raises:
            StaleGeneration: The place is gone, its data key is another one by now, or
                another save made a record of the same kind, user and time.
        """
        ...

    async def delete(
        self, place: AppPlace, kind: RecordKind, user_id: str, event: AuditEvent
    ) -> None:
        """Delete records with their history; the last one takes the data key with it.

        Recorded if there was anything to delete; that the key went is a record of its own.
        """
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...


class AppInstallations:
    """The store of other apps' installations.

    Args:
        new_id: Makes ids of places and records.
    """

    def __init__(
        self, *, store: AppStore, keys: Keys, environment: str, new_id: Callable[[], UUID]
    ) -> None:
        self._store = store
        self._keys = keys
        self._environment = environment
        self._new_id = new_id

    async def save(self, place: AppPlace, records: Sequence[AppRecord], origin: Origin) -> None:
        """Save records of one place in one transaction.

        A record of the same kind, user and time is replaced. An access token
        that comes without its refresh token keeps the one that is stored for
        it: a copy that was read from here has none.

        Raises:
            CannotOpen: A stored refresh token does not open; nothing is written.
            StaleGeneration: Others change the same records again and again.
            KmsUnavailable, KekDisabled, DatabaseUnavailable: Nothing is known to be written.
        """
        for is_last in (False, False, True):
            try:
                await self._save(place, records, origin)
            except StaleGeneration:
                # Something of the place changed while the secrets were being sealed.
                if is_last:
                    raise
            else:
                return

    async def find_bot(self, place: AppPlace, origin: Origin) -> AppRecord:
        """Find the newest bot that has a token, and release it.

        Commits one audit record for every secret released, before it is opened.

        Raises:
            InstallationNotFound: There is none.
            ReleasesFrozen, OnHold: Nothing is released there for now.
            CannotOpen: What is stored is not what was stored.
            KmsUnavailable, KekDisabled, DatabaseUnavailable: Nothing was released.
        """

        def pick(found: Found) -> tuple[StoredRecord, StoredRecord | None] | None:
            return (found.bot, None) if found.bot else None

        return await self._find(place, "", origin, pick)

    async def find_installation(self, place: AppPlace, user_id: str, origin: Origin) -> AppRecord:
        """Find the newest installation, of one user or of anybody, and release it.

        The newest bot is laid over it when it is at least as new, when the
        installation has no bot token of its own, or when a user is named.
        Raises as find_bot.
        """

        def pick(found: Found) -> tuple[StoredRecord, StoredRecord | None] | None:
            base, bot = found.installation, found.bot
            if base is None:
                return None
            is_older = bot is not None and bot.record.installed_at < base.record.installed_at
            has_own = SecretName.BOT_TOKEN in base.secrets
            return (base, None if is_older and has_own and not user_id else bot)

        return await self._find(place, user_id, origin, pick)

    async def delete(self, place: AppPlace, kind: RecordKind, user_id: str, origin: Origin) -> None:
        """Delete records with their history, of one user or of anybody; absent is fine."""
        event = AuditEvent(
            "app.deleted",
            replace(origin, subject=user_id),
            enterprise_id=place.enterprise_id,
            team_id=place.team_id,
        )
        await self._store.delete(place, kind, user_id, event)

    async def _save(self, place: AppPlace, records: Sequence[AppRecord], origin: Origin) -> None:
        facts = await self._look_up(place, records)
        stored = facts.place
        sealed = [
            await self._seal(place, facts, record, record_id or RecordId(self._new_id()))
            for record, record_id in zip(records, facts.record_ids, strict=True)
        ]
        event = AuditEvent(
            "app.saved",
            origin,
            installation_id=stored.installation_id,
            enterprise_id=place.enterprise_id,
            team_id=place.team_id,
        )
        events = [
            replace(event, token_kind=KIND_OF[name], token_ref=secret.ref)
            for each in sealed
            for name, secret in each.secrets.items()
            if name in KIND_OF
        ]
        await self._store.save(stored.installation_id, sealed, events or [event])

    async def _look_up(self, place: AppPlace, records: Sequence[AppRecord]) -> SaveFacts:
        alone = {
            (access, self._keys.ref(record.secrets[access]))
            for record in records
            for access in _alone(record)
        }
        facts = await self._store.look_up_save(place, records, alone)
        if facts is None:
            installation_id = InstallationId(self._new_id())
            wrapped, _ = await self._keys.make(self._key_context(place, installation_id))
            await self._store.add_place(place, StoredPlace(installation_id, wrapped))
            facts = await self._store.look_up_save(place, records, alone)
        if facts is None:
            raise StaleGeneration
        return facts

    async def _seal(
        self, place: AppPlace, facts: SaveFacts, record: AppRecord, record_id: RecordId
    ) -> StoredRecord:
        stored, secrets = facts.place, dict(record.secrets)
        for access in _alone(record):
            if (access, self._keys.ref(secrets[access])) in facts.with_refresh:
                kept = await self._find_refresh(place, stored, access, secrets[access])
                secrets |= {REFRESH_OF[access]: kept} if kept else {}
        draft = StoredRecord(record_id, replace(record, secrets={}), {})
        wrapped = _wrapped_of(stored)
        data_key = self._keys.take(wrapped, self._key_context(place, stored.installation_id))
        sealed = {
            name: SealedSecret(
                wrapped.dek_id,
                await data_key.seal_value(secret, self._bound(place, stored, draft, name)),
                self._keys.ref(secret),
            )
            for name, secret in secrets.items()
        }
        return replace(draft, secrets=sealed)

    async def _find_refresh(
        self, place: AppPlace, stored: StoredPlace, access: SecretName, token: Secret[str]
    ) -> Secret[str] | None:
        held = await self._store.find_by_ref(stored.installation_id, access, self._keys.ref(token))
        if held is None or REFRESH_OF[access] not in held.secrets:
            return None
        return await self._open(place, stored, held, REFRESH_OF[access])

    async def _find(
        self,
        place: AppPlace,
        user_id: str,
        origin: Origin,
        pick: Callable[[Found], tuple[StoredRecord, StoredRecord | None] | None],
    ) -> AppRecord:
        """Load, decide, commit the decision's records, and only then open."""

        def judge(found: Found | None) -> list[AuditEvent]:
            refusal = _find_refusal(found, pick)
            if refusal is not None or found is None:
                return [_refused(place, found, refusal or InstallationNotFound(), origin)]
            return _released(place, found, pick(found), origin)

        found = await self._store.load_recorded(place, user_id, judge)
        if (refusal := _find_refusal(found, pick)) is not None:
            raise refusal
        picked = pick(found) if found else None
        if found is None or picked is None:
            raise AssertionError("what was not refused was found")
        base, bot = picked
        try:
            return await self._release(place, found.place, base, bot)
        except ServiceError as error:
            _log.error(
                "token_not_opened",
                reason=error.reason,
                installation_id=str(found.place.installation_id),
            )
            await self._record_unopened(_refused(place, found, error, origin))
            raise

    async def _release(
        self, place: AppPlace, stored: StoredPlace, base: StoredRecord, bot: StoredRecord | None
    ) -> AppRecord:
        hidden = frozenset(REFRESH_OF.values())
        record = base.record
        sources = {name: base for name in base.secrets if name not in hidden}
        if bot is not None:
            sources[SecretName.BOT_TOKEN] = bot
            brought = {name: bot.record.details.get(name) for name in _BOT_DETAILS}
            record = replace(record, details={**record.details, **brought})
        opened = {
            name: await self._open(place, stored, source, name) for name, source in sources.items()
        }
        return replace(record, secrets=opened)

    async def _open(
        self, place: AppPlace, stored: StoredPlace, held: StoredRecord, name: SecretName
    ) -> Secret[str]:
        secret, wrapped = held.secrets[name], _wrapped_of(stored)
        if wrapped.dek_id != secret.dek_id:
            raise CannotOpen
        data_key = self._keys.take(wrapped, self._key_context(place, stored.installation_id))
        return await data_key.open_value(secret.sealed, self._bound(place, stored, held, name))

    async def _record_unopened(self, refused: AuditEvent) -> None:
        try:
            await self._store.record([replace(refused, action="token.unopened")])
        except DatabaseUnavailable:
            # The caller must hear why it did not open; that it was allowed is on record.
            _log.exception("audit_record_lost", action="token.unopened")

    def _key_context(self, place: AppPlace, installation_id: InstallationId) -> KeyContext:
        return KeyContext(self._environment, place.client_id, installation_id)

    def _bound(
        self, place: AppPlace, stored: StoredPlace, held: StoredRecord, name: SecretName
    ) -> SecretContext:
        where, dek_id = stored.installation_id, _wrapped_of(stored).dek_id
        return secret_context(
            self._environment, place, held, name, installation_id=where, dek_id=dek_id
        )


def secret_context(
    environment: str,
    place: AppPlace,
    held: StoredRecord,
    name: SecretName,
    *,
    installation_id: InstallationId,
    dek_id: DekId,
) -> SecretContext:
    """Say what a secret of a record is bound to."""
    return SecretContext(
        environment=environment,
        place=place,
        installation_id=installation_id,
        record_id=held.id,
        kind=held.record.kind,
        user_id=held.record.user_id,
        installed_at=held.record.installed_at,
        name=name,
        dek_id=dek_id,
    )


def _alone(record: AppRecord) -> list[SecretName]:
    """List the access tokens of a record that come without their refresh token."""
    secrets = record.secrets
    return [
        each for each, refresh in REFRESH_OF.items() if each in secrets and refresh not in secrets
    ]


def _wrapped_of(stored: StoredPlace) -> WrappedDek:
    if stored.wrapped is None:
        raise CannotOpen
    return stored.wrapped


def _find_refusal(
    found: Found | None,
    pick: Callable[[Found], tuple[StoredRecord, StoredRecord | None] | None],
) -> ServiceError | None:
    """Judge a find by what the database holds; None lets it pass."""
    if found is None or pick(found) is None:
        return InstallationNotFound()
    if found.place.stopped is not None:
        return ReleasesFrozen() if found.place.stopped is Stop.FROZEN else OnHold()
    return CannotOpen() if found.place.wrapped is None else None


def _refused(
    place: AppPlace, found: Found | None, refusal: ServiceError, origin: Origin
) -> AuditEvent:
    return AuditEvent(
        "token.refused",
        origin,
        outcome=refusal.reason,
        installation_id=found.place.installation_id if found else None,
        enterprise_id=place.enterprise_id,
        team_id=place.team_id,
    )


def _released(
    place: AppPlace,
    found: Found,
    picked: tuple[StoredRecord, StoredRecord | None] | None,
    origin: Origin,
) -> list[AuditEvent]:
    """Say which secrets leave: one record each."""
    if picked is None:
        raise AssertionError("what was not refused was found")
    base, bot = picked
    refs = {name: secret.ref for name, secret in base.secrets.items()}
    if bot is not None:
        refs[SecretName.BOT_TOKEN] = bot.secrets[SecretName.BOT_TOKEN].ref
    wrapped = found.place.wrapped
    event = AuditEvent(
        "token.read",
        origin,
        installation_id=found.place.installation_id,
        enterprise_id=place.enterprise_id,
        team_id=place.team_id,
        kek_version=wrapped.kek_version if wrapped else "",
    )
    events = [
        replace(event, token_kind=kind, token_ref=refs[name])
        for name, kind in KIND_OF.items()
        if name in refs
    ]
    return events or [event]
