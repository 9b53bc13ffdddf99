"""Release tokens, each against a grant and an audit record.

The order is the promise: load, judge, commit the audit record, open, release.
No record, no token.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import InvalidArgument, Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.backup import Mac
from interlock_token_vault.domain.envelope import (
    Bound,
    CannotOpen,
    KeyContext,
    SealedBytes,
    SealedToken,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.installation import (
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import HARD_LIMIT

DEFAULT_PAGE = 50

_log = structlog.get_logger()


class InstallationNotFound(ServiceError):
    """The app is not installed there."""

    kind = Kind.NOT_FOUND
    reason = "INSTALLATION_NOT_FOUND"


class UserTokenNotFound(ServiceError):
    """The user gave the app no token."""

    kind = Kind.NOT_FOUND
    reason = "USER_TOKEN_NOT_FOUND"


class ReleasesFrozen(ServiceError):
    """An operator has stopped the release of tokens."""

    kind = Kind.PRECONDITION
    reason = "RELEASES_FROZEN"


class OnHold(ServiceError):
    """The stored tokens come from a backup and are not known to be the living ones."""

    kind = Kind.PRECONDITION
    reason = "ON_HOLD"


class NeedsReinstall(ServiceError):
    """Slack no longer takes the stored token; an administrator must install the app again."""

    kind = Kind.PRECONDITION
    reason = "NEEDS_REINSTALL"


class RefreshPending(ServiceError):
    """The token is about to end, and its successor is not there yet."""

    kind = Kind.UNAVAILABLE
    reason = "REFRESH_PENDING"


class TokenElsewhere(ServiceError):
    """The bot's token is kept by somebody else; it never crosses to a caller."""

    kind = Kind.PRECONDITION
    reason = "TOKEN_ELSEWHERE"


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

    async def open_value(self, sealed: SealedBytes, bound: Bound) -> Secret[str]:
        """Open what was sealed into any place; raises as `open`."""
        ...

    async def seal_value(self, value: Secret[str], bound: Bound) -> SealedBytes:
        """Seal a text into any place; raises as `open`."""
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

    async def rewrap(self, wrapped: WrappedDek, context: KeyContext) -> WrappedDek:
        """Wrap a stored data key again, under the primary key.

        Raises:
            CannotOpen, KmsUnavailable, KekDisabled: As DataKey.open.
        """
        ...

    def ref(self, token: Secret[str]) -> TokenRef:
        """Fingerprint a token under a key of our own."""
        ...

    def new_mac(self) -> Mac:
        """Begin a MAC under a key of our own, over more than fits in memory."""
        ...


class Stop(Enum):
    """Why nothing is released, whoever asks."""

    FROZEN = "frozen"
    """An operator wants it so."""

    HELD = "held"
    """What is stored was restored, and has not been looked at since."""


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """One token of an installation.

    Attributes:
        user_id: Whose token; empty for the bot's.
    """

    key: InstallationKey
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the store holds for a target.

    Attributes:
        at: The database's clock when it was loaded.
        audited_generation: The highest generation that the audit log names for
            this installation, as far as this process knows; 0 for none.
        stopped: Whether releases are stopped here, or in the whole vault.
    """

    installation: Installation
    sealed: SealedToken | None
    wrapped: WrappedDek | None
    at: datetime
    audited_generation: int = 0
    stopped: Stop | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Everything that is sealed for one installation."""

    installation: Installation
    tokens: tuple[SealedToken, ...]
    wrapped: WrappedDek


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

    @property
    def is_at_hand(self) -> bool:
        """Whether it takes nobody else to act on it: neither the KMS, nor Slack, nor Nango."""
        if self.data_key is None:
            return not isinstance(self.refusal, RefreshPending | TokenElsewhere)
        return self.data_key.source == "cache"


Judge = Callable[[Loaded | None], Verdict]
Wish = tuple[ReadTarget, Judge]
"""A read: of what, and who judges it."""


@dataclass(frozen=True, slots=True)
class AuditCursor:
    """The last record of a page."""

    at: datetime
    chain_id: UUID
    seq: int


class VaultStore(Protocol):
    """The vault's database, as reading needs it."""

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """Load a token, judge it, and commit the verdict's record.

        Returns after the commit. Many callers share one load and one commit.

        Args:
            target: Its installation, and those of who shares the load, are all that it sees.
            judge: Pure and quick; it keeps the others waiting.

        Raises:
            DatabaseUnavailable: The record is not known to be committed.
        """
        ...

    async def load_recorded_many(self, wishes: Sequence[Wish]) -> list[Verdict | Exception]:
        """Do as `load_recorded` for many at once, with one load and one commit.

        Returns:
            For each wish in its order the verdict, or what its judge raised.

        Raises:
            DatabaseUnavailable: The records are not known to be committed.
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

    async def stop_releases(
        self, installation_id: InstallationId | None, stop: Stop, note: str, event: AuditEvent
    ) -> None:
        """Stop releases of one installation, or of all for None; recorded if that is new.

        Raises:
            InstallationNotFound: There is no such installation.
            DatabaseUnavailable: It is not known to be stopped.
        """
        ...

    async def resume_releases(
        self, installation_id: InstallationId | None, stop: Stop, event: AuditEvent
    ) -> None:
        """Undo `stop_releases`; recorded if it was in force.

        Raises:
            DatabaseUnavailable: It is not known to be undone.
        """
        ...


class Renewals(Protocol):
    """What makes tokens new."""

    async def renew(
        self, installation_id: InstallationId, user_id: str, above: int, patience: timedelta
    ) -> None:
        """Wait until a token above a generation is stored, and see to it that one will be.

        Raises:
            InstallationNotFound: It is gone.
            NeedsReinstall: There will be none.
            RefreshPending: The patience is over.
            DatabaseUnavailable: The database does not answer.
        """
        ...


class NoRenewals:
    """Renewals of a vault that renews nothing: what ends needs a reinstall."""

    async def renew(
        self,
        installation_id: InstallationId,  # noqa: ARG002 - The signature is the port's.
        user_id: str,  # noqa: ARG002 - As above.
        above: int,  # noqa: ARG002 - As above.
        patience: timedelta,  # noqa: ARG002 - As above.
    ) -> None:
        """Refuse; see Renewals."""
        raise NeedsReinstall


class Elsewhere(Protocol):
    """Where tokens come from that the vault does not keep."""

    async def read(self, installation_id: InstallationId, newer_than: int) -> "ReleasedToken":
        """Fetch the token of an installation, one request for all who wait.

        Args:
            installation_id: An active installation without a token of its own.
            newer_than: Only a generation above this one will do.

        Raises:
            InstallationNotFound: It is gone.
            NeedsReinstall: Nobody keeps a token for it that Slack takes.
            NangoUnavailable, DatabaseUnavailable: A part does not answer.
            ConnectionNotYours: What is kept there is not this installation's.
            CannotOpen, KekDisabled, KmsUnavailable: As DataKey.open.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReadAsk:
    """A verified wish for a token.

    Attributes:
        key: The installation, from the grant.
        origin: Who asks, and with which grant.
        newer_than: Only a generation above this one will do; 0 takes any.
        user_id: Whose token, from the grant; empty for the bot's.
        patience: How long to wait for a new token where the stored one will not do.
    """

    key: InstallationKey
    origin: Origin
    newer_than: int = 0
    user_id: str = ""
    patience: timedelta = timedelta(0)

    @property
    def kind(self) -> TokenKind:
        """Whose credential is wanted."""
        return TokenKind.USER if self.user_id else TokenKind.BOT


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

    def __init__(
        self,
        store: VaultStore,
        keys: Keys,
        *,
        environment: str,
        renewals: Renewals | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._environment = environment
        self._renewals = renewals or NoRenewals()
        self._elsewhere = elsewhere

    async def read(self, ask: ReadAsk) -> ReleasedToken:
        """Release a token of the asked installation.

        Commits one audit record before the token is opened, and a second one
        if it does not open. Asks the KMS unless the data key is cached; never
        asks Slack.

        Raises:
            InstallationNotFound: The app is not installed there.
            UserTokenNotFound: The user gave it no token.
            ReleasesFrozen, OnHold: Nothing is released there for now.
            NeedsReinstall: The token has ended, or is about to, and none will follow.
            RefreshPending: A newer one is on its way; its `retry_after` says when to ask.
            CannotOpen: Stored data is not what was stored.
            KmsUnavailable: The KMS does not answer.
            KekDisabled: The wrapping key is gone.
            DatabaseUnavailable: The record could not be committed.
        """
        return await self._release(ask, await self._store.load_recorded(*self._wish(ask)))

    async def read_many(self, asks: Sequence[ReadAsk]) -> list[ReleasedToken | ServiceError]:
        """Release many tokens at once, each with its own record and verdict.

        Returns:
            A token or a refusal for each, in the order asked.
        """
        if not asks:
            return []
        try:
            verdicts = await self._store.load_recorded_many([self._wish(ask) for ask in asks])
        except DatabaseUnavailable as error:
            return [error] * len(asks)

        async def outcome(ask: ReadAsk, verdict: Verdict) -> ReleasedToken | ServiceError:
            try:
                return await self._release(ask, verdict)
            except ServiceError as error:
                return error

        outcomes: dict[int, ReleasedToken | ServiceError] = {}
        later: dict[int, tuple[ReadAsk, Verdict]] = {}
        for place, (ask, verdict) in enumerate(zip(asks, verdicts, strict=True)):
            if isinstance(verdict, Exception):
                raise verdict
            if verdict.is_at_hand:
                outcomes[place] = await outcome(ask, verdict)
            else:
                later[place] = (ask, verdict)
        # A key or a token that is on its way to one does not keep the next one waiting.
        waited = await asyncio.gather(*(outcome(*each) for each in later.values()))
        outcomes |= zip(later, waited, strict=True)
        return [outcomes[place] for place in range(len(asks))]

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

    async def freeze(
        self, installation_id: InstallationId | None, note: str, origin: Origin
    ) -> None:
        """Stop the release of tokens, of one installation or of all for None.

        No read that is loaded after this returns is released.
        Commits one audit record, with the note, unless it was frozen before.

        Raises:
            InstallationNotFound: There is no such installation.
            DatabaseUnavailable: It is not known to be frozen.
        """
        event = AuditEvent(
            "releases.frozen", replace(origin, purpose=note), installation_id=installation_id
        )
        await self._store.stop_releases(installation_id, Stop.FROZEN, note, event)

    async def unfreeze(
        self, installation_id: InstallationId | None, note: str, origin: Origin
    ) -> None:
        """Undo `freeze` of the same argument; raises as it does."""
        event = AuditEvent(
            "releases.resumed", replace(origin, purpose=note), installation_id=installation_id
        )
        await self._store.resume_releases(installation_id, Stop.FROZEN, event)

    def _wish(self, ask: ReadAsk) -> Wish:
        return ReadTarget(ask.key, ask.user_id), lambda found: self._judge(ask, found)

    async def _release(self, ask: ReadAsk, verdict: Verdict) -> ReleasedToken:
        """Open what a verdict on record lets pass; raises as `read`."""
        if isinstance(verdict.refusal, RefreshPending):
            await self._await_renewal(ask, verdict.event)
            verdict = await self._store.load_recorded(*self._wish(ask))
        if isinstance(verdict.refusal, TokenElsewhere):
            return await self._fetch(ask, verdict.event)
        if verdict.refusal is not None:
            raise verdict.refusal
        loaded, data_key = verdict.loaded, verdict.data_key
        if loaded is None or loaded.sealed is None or data_key is None:
            raise AssertionError("a verdict without a refusal names what to open")
        context = TokenContext(
            environment=self._environment,
            key=ask.key,
            installation_id=loaded.installation.id,
            user_id=ask.user_id,
            kind=ask.kind,
            slot=TokenSlot.ACCESS,
            dek_id=loaded.sealed.dek_id,
            generation=loaded.sealed.generation,
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

    async def _await_renewal(self, ask: ReadAsk, event: AuditEvent) -> None:
        """Wait for the generation after the one on record; that there is none goes on record."""
        if event.installation_id is None:
            raise AssertionError("a token that is about to end is one of an installation")
        try:
            await self._renewals.renew(
                event.installation_id, ask.user_id, event.generation, ask.patience
            )
        except DatabaseUnavailable:
            raise
        except ServiceError as error:
            refused = replace(event, action="token.refused", outcome=error.reason)
            await self._store.record([refused])
            raise

    async def _fetch(self, ask: ReadAsk, event: AuditEvent) -> ReleasedToken:
        """Release a token that is kept elsewhere, now that the read is on record."""
        if event.installation_id is None:
            raise AssertionError("a token that is kept elsewhere is one of an installation")
        try:
            if self._elsewhere is None:
                raise NeedsReinstall
            return await self._elsewhere.read(event.installation_id, ask.newer_than)
        except ServiceError as error:
            await self._record_unopened(event, error)
            raise

    def _judge(self, ask: ReadAsk, found: Loaded | None) -> Verdict:
        refusal = _find_refusal(ask, found)
        wrapped = found.wrapped if found and not refusal else None
        data_key = (
            self._keys.take(
                wrapped, KeyContext(self._environment, ask.key.client_id, found.installation.id)
            )
            if found and wrapped
            else None
        )
        event = AuditEvent(
            action=_action_of(refusal),
            origin=ask.origin,
            outcome=_outcome_of(refusal),
            installation_id=found.installation.id if found else None,
            enterprise_id=ask.key.enterprise_id,
            team_id=ask.key.team_id,
            token_kind=ask.kind.value,
            token_ref=found.sealed.ref if found and found.sealed else "",
            generation=_generation_of(ask, found),
            kek_version=wrapped.kek_version if wrapped else "",
            dek_source=_source_of(refusal, data_key),
        )
        return Verdict(event, refusal, found if data_key else None, data_key)

    async def _record_unopened(self, read: AuditEvent, error: ServiceError) -> None:
        event = replace(read, action="token.unopened", outcome=error.reason)
        try:
            await self._store.record([event])
        except DatabaseUnavailable:
            # The caller must hear why the token did not open; that the read
            # was allowed is on record already.
            _log.exception("audit_record_lost", action=event.action)


def _generation_of(ask: ReadAsk, found: Loaded | None) -> int:
    """Return the generation that a read is on record with; 0 where there is none."""
    if found is None:
        return 0
    if ask.user_id:
        return found.sealed.generation if found.sealed else 0
    return found.installation.generation


def _find_refusal(ask: ReadAsk, found: Loaded | None) -> ServiceError | None:
    """Judge a read by what the database holds; None lets it pass."""
    if found is None or found.installation.state is not InstallationState.ACTIVE:
        return InstallationNotFound()
    if found.stopped is not None:
        return ReleasesFrozen() if found.stopped is Stop.FROZEN else OnHold()
    sealed = found.sealed
    if sealed is None:
        return UserTokenNotFound() if ask.user_id else TokenElsewhere()
    if found.wrapped is None or _is_older(ask, sealed, found):
        # A key that is gone without a purge, or a token, or the whole
        # installation, put back from an older state of the database.
        return CannotOpen()
    if sealed.generation < ask.newer_than:
        # Nobody was given what the reader says it has.
        return NeedsReinstall()
    is_ending = sealed.expires_at is not None and sealed.expires_at - HARD_LIMIT <= found.at
    return RefreshPending() if is_ending or sealed.generation == ask.newer_than else None


def _outcome_of(refusal: ServiceError | None) -> str:
    is_allowed = refusal is None or isinstance(refusal, TokenElsewhere)
    return "allowed" if is_allowed or refusal is None else refusal.reason


def _source_of(refusal: ServiceError | None, data_key: DataKey | None) -> str:
    if isinstance(refusal, TokenElsewhere):
        return "elsewhere"
    return data_key.source if data_key else ""


def _action_of(refusal: ServiceError | None) -> str:
    if refusal is None or isinstance(refusal, TokenElsewhere):
        return "token.read"
    return "token.awaited" if isinstance(refusal, RefreshPending) else "token.refused"


def _is_older(ask: ReadAsk, sealed: SealedToken, found: Loaded) -> bool:
    """Tell whether something was put back; each user's token has a generation of its own."""
    generation = found.installation.generation
    is_row_older = generation < found.audited_generation
    return is_row_older or (not ask.user_id and sealed.generation != generation)
