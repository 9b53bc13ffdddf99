"""Release tokens, each against a grant and an audit record.

The order is the promise: judge, commit the audit record in the transaction that
loaded the ciphertext, open, release. No record, no token.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import InvalidArgument, Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedToken,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.installation import (
    Installation,
    InstallationKey,
    InstallationState,
    TokenKind,
    TokenRef,
    TokenSlot,
)

DEFAULT_PAGE = 50

_log = structlog.get_logger()


class InstallationNotFound(ServiceError):
    """The app is not installed there."""

    kind = Kind.NOT_FOUND
    reason = "INSTALLATION_NOT_FOUND"


class NeedsReinstall(ServiceError):
    """Slack no longer takes the stored token; an administrator must install the app again."""

    kind = Kind.PRECONDITION
    reason = "NEEDS_REINSTALL"


class KmsUnavailable(ServiceError):
    """The key service does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "KMS_UNAVAILABLE"


class KekDisabled(ServiceError):
    """The key that wraps this installation's data key is gone or disabled."""

    kind = Kind.PRECONDITION
    reason = "KEK_DISABLED"


class DatabaseUnavailable(ServiceError):
    """The vault's database does not answer, or cannot write the audit log."""

    kind = Kind.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"


class InvalidPageToken(InvalidArgument):
    """The page token is not one that this vault gave out."""

    reason = "INVALID_PAGE_TOKEN"


class DataKey(Protocol):
    """The right to use one installation's data key, once it is unwrapped.

    Attributes:
        source: `cache` or `kms`: where the key comes from, settled before the
            audit record is written.
    """

    @property
    def source(self) -> str:
        """Say where the key comes from: `cache` or `kms`."""
        ...

    async def open(self, sealed: SealedToken, context: TokenContext) -> Secret[str]:
        """Open a token in its place.

        Raises:
            CannotOpen: The token or the wrapped key is not what was stored.
            KmsUnavailable: The KMS does not answer within 2 s.
            KekDisabled: The wrapping key is gone.
        """
        ...

    async def seal(
        self, token: Secret[str], context: TokenContext, expires_at: datetime | None
    ) -> SealedToken:
        """Seal a token into its place; raises as `open`."""
        ...


class Keys(Protocol):
    """Data keys, guarded by a KMS."""

    async def make(self, context: KeyContext) -> tuple[WrappedDek, DataKey]:
        """Make a data key for an installation that has none.

        Raises:
            KmsUnavailable: The KMS does not answer within 2 s.
        """
        ...

    def take(self, wrapped: WrappedDek, context: KeyContext) -> DataKey:
        """Prepare to use a stored data key; asks nobody yet."""
        ...

    def ref(self, token: Secret[str]) -> TokenRef:
        """Fingerprint a token under a key of our own."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the store holds for an installation's bot.

    Attributes:
        at: The database's clock in the loading transaction.
        audited_generation: The highest generation that the audit log names for
            this installation, as far as this process knows; 0 for none.
    """

    installation: Installation
    sealed: SealedToken | None
    wrapped: WrappedDek | None
    at: datetime
    audited_generation: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a read came to, and the record that says so.

    Attributes:
        refusal: Why nothing is released, or None.
        loaded: What to open; None with a refusal.
        data_key: What opens it; None with a refusal.
    """

    event: AuditEvent
    refusal: ServiceError | None = None
    loaded: Loaded | None = None
    data_key: DataKey | None = None


Judge = Callable[[Loaded | None], Verdict]


@dataclass(frozen=True, slots=True)
class AuditCursor:
    """The last record of a page."""

    at: datetime
    chain_id: UUID
    seq: int


class VaultStore(Protocol):
    """The vault's database, as reading needs it."""

    async def load_recorded(self, key: InstallationKey, judge: Judge) -> Verdict:
        """Load an installation's bot, judge it, and commit the verdict's record.

        Returns after the commit. Many callers share one transaction.

        Args:
            key: The only installation that the transaction can see.
            judge: Pure and quick; called inside the transaction.

        Raises:
            DatabaseUnavailable: The record is not known to be committed.
        """
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records.

        Raises:
            DatabaseUnavailable: They are not known to be committed.
        """
        ...

    async def list_audit_events(
        self, key: InstallationKey | None, limit: int, after: AuditCursor | None
    ) -> list[ChainedEvent]:
        """List records newest first, of one installation, or of all for None.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReadAsk:
    """A verified wish for a bot token.

    Attributes:
        key: The installation, from the grant.
        origin: Who asks, and with which grant.
        newer_than: Only a generation above this one will do; 0 takes any.
    """

    key: InstallationKey
    origin: Origin
    newer_than: int = 0


@dataclass(frozen=True, slots=True)
class ReleasedToken:
    """A token on its way out.

    Attributes:
        team_id: What to pass to Web API methods; empty when the token implies it.
    """

    token: Secret[str]
    generation: int
    expires_at: datetime | None
    bot_user_id: str
    team_id: str


class TokenVault:
    """Release tokens and show the record of it."""

    def __init__(self, store: VaultStore, keys: Keys, *, environment: str) -> None:
        self._store = store
        self._keys = keys
        self._environment = environment

    async def read(self, ask: ReadAsk) -> ReleasedToken:
        """Release the bot token of the asked installation.

        Commits one audit record before the token is opened, and a second one
        if it does not open. Asks the KMS unless the data key is cached; never
        asks Slack.

        Raises:
            InstallationNotFound: The app is not installed there.
            NeedsReinstall: The token has ended, or no newer one exists.
            CannotOpen: Stored data is not what was stored.
            KmsUnavailable: The KMS does not answer.
            KekDisabled: The wrapping key is gone.
            DatabaseUnavailable: The record could not be committed.
        """
        verdict = await self._store.load_recorded(ask.key, lambda found: self._judge(ask, found))
        if verdict.refusal is not None:
            raise verdict.refusal
        loaded, data_key = verdict.loaded, verdict.data_key
        if loaded is None or loaded.sealed is None or data_key is None:
            raise AssertionError("a verdict without a refusal names what to open")
        context = TokenContext(
            environment=self._environment,
            key=ask.key,
            installation_id=loaded.installation.id,
            user_id="",
            kind=TokenKind.BOT,
            slot=TokenSlot.ACCESS,
            dek_id=loaded.sealed.dek_id,
            generation=loaded.installation.generation,
        )
        try:
            token = await data_key.open(loaded.sealed, context)
        except ServiceError as error:
            _log.error(
                "token_not_opened",
                reason=error.reason,
                installation_id=str(loaded.installation.id),
            )
            await self._record_unopened(verdict.event, error)
            raise
        return ReleasedToken(
            token=token,
            generation=loaded.sealed.generation,
            expires_at=loaded.sealed.expires_at,
            bot_user_id=loaded.installation.bot_user_id,
            team_id="",
        )

    async def read_many(self, asks: Sequence[ReadAsk]) -> list[ReleasedToken | ServiceError]:
        """Release many tokens at once, each with its own record and verdict.

        Returns:
            A token or a refusal for each, in the order asked.
        """

        async def verdict(ask: ReadAsk) -> ReleasedToken | ServiceError:
            try:
                return await self.read(ask)
            except ServiceError as error:
                return error

        return list(await asyncio.gather(*(verdict(ask) for ask in asks)))

    async def list_audit_events(
        self, key: InstallationKey | None, limit: int, after: AuditCursor | None
    ) -> tuple[list[ChainedEvent], AuditCursor | None]:
        """List audit records, newest first.

        Args:
            key: The installation, from the grant; None lists all, for operators.
            limit: Records a page; 0 means 50.
            after: The last record of the page before.

        Returns:
            The records, and where the next page begins, or None at the end.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        size = limit or DEFAULT_PAGE
        records = await self._store.list_audit_events(key, size + 1, after)
        if len(records) <= size:
            return records, None
        last = records[size - 1]
        return records[:size], AuditCursor(last.at, last.chain_id, last.seq)

    def _judge(self, ask: ReadAsk, found: Loaded | None) -> Verdict:
        refusal = _find_refusal(ask, found)
        event = AuditEvent(
            action="token.refused" if refusal else "token.read",
            origin=ask.origin,
            outcome=refusal.reason if refusal else "allowed",
            installation_id=found.installation.id if found else None,
            enterprise_id=ask.key.enterprise_id,
            team_id=ask.key.team_id,
            token_kind=TokenKind.BOT.value,
            generation=found.installation.generation if found else 0,
            token_ref=found.sealed.ref if found and found.sealed else "",
        )
        if refusal or found is None or found.wrapped is None:
            return Verdict(event, refusal)
        wrapped = found.wrapped
        data_key = self._keys.take(
            wrapped, KeyContext(self._environment, ask.key.client_id, found.installation.id)
        )
        event = replace(event, kek_version=wrapped.kek_version, dek_source=data_key.source)
        return Verdict(event, None, found, data_key)

    async def _record_unopened(self, read: AuditEvent, error: ServiceError) -> None:
        event = replace(read, action="token.unopened", outcome=error.reason)
        try:
            await self._store.record([event])
        except DatabaseUnavailable:
            # The caller must hear why the token did not open; that the read
            # was allowed is on record already.
            _log.exception("audit_record_lost", action=event.action)


def _find_refusal(ask: ReadAsk, found: Loaded | None) -> ServiceError | None:
    """Judge a read by what the database holds; None lets it pass."""
    if found is None or found.installation.state is not InstallationState.ACTIVE:
        return InstallationNotFound()
    sealed, generation = found.sealed, found.installation.generation
    if sealed is None:
        return NeedsReinstall()
    is_older = sealed.generation != generation or generation < found.audited_generation
    if found.wrapped is None or is_older:
        # A key that is gone without a purge, or a token, or the whole
        # installation, put back from an older state of the database.
        return CannotOpen()
    if generation <= ask.newer_than:
        return NeedsReinstall()
    if sealed.expires_at is not None and sealed.expires_at <= found.at:
        return NeedsReinstall()
    return None
