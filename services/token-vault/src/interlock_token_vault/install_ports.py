"""What installing needs of others: the database, Slack, and identity's word."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol
from urllib.parse import urlencode
from uuid import UUID

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.credential_sources import ConnectionRef
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import SealedToken, WrappedDek
from interlock_token_vault.domain.install import BotIdentity, ExchangeAnswer, InstallAttempt
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    TenantId,
    TokenRef,
)
from interlock_token_vault.vault import Held, Loaded

# A call is capped at 30 s; a lease must outlive it and what it leaves running.
LEASE = timedelta(seconds=60)


class SlackUnavailable(ServiceError):
    """Slack does not answer, or not now."""

    kind = Kind.UNAVAILABLE
    reason = "SLACK_UNAVAILABLE"


class TokenDead(ServiceError):
    """Slack no longer takes the token."""

    kind = Kind.PRECONDITION
    reason = "TOKEN_DEAD"


class IdentityUnavailable(ServiceError):
    """The identity service does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "IDENTITY_UNAVAILABLE"


class StaleGeneration(ServiceError):
    """The installation changed meanwhile."""

    kind = Kind.LOST_RACE
    reason = "STALE_GENERATION"


@dataclass(frozen=True, slots=True)
class SlackApp:
    """Interlock's own app at Slack.

    Attributes:
        consent_page: Slack's page where a person allows the app.
        bot_scopes: What the app asks for, all of it needed.
        user_scopes: What it asks of the person who installs, all of it needed; none
            for no token of a person's.
    """

    client_id: ClientId
    bot_scopes: tuple[str, ...]
    consent_page: str
    user_scopes: tuple[str, ...] = ()

    @property
    def wants_webhook(self) -> bool:
        """Whether it asks for an incoming webhook."""
        return "incoming-webhook" in self.bot_scopes

    @property
    def authorize_url(self) -> str:
        """The consent page for this app; the caller appends state and redirect_uri."""
        asked = {"client_id": self.client_id, "scope": ",".join(self.bot_scopes)}
        if self.user_scopes:
            asked["user_scope"] = ",".join(self.user_scopes)
        return f"{self.consent_page}?{urlencode(asked, safe=',')}"


@dataclass(frozen=True, slots=True)
class InstallAsk:
    """A verified wish to install.

    Attributes:
        grant: The installGrant itself, which the claim needs.
        origin: Who asks; its `grant_id` names the attempt.
    """

    grant: Secret[str]
    tenant_id: TenantId
    user_id: str
    state_sha256: str
    source: Literal["direct", "nango"]
    expires_at: datetime
    origin: Origin


@dataclass(frozen=True, slots=True)
class Installed:
    """An install that came to its end.

    Attributes:
        is_reinstall: Whether the tenant had the workspace before.
        extra_scopes: Scopes granted beyond those asked for.
    """

    installation: Installation
    is_reinstall: bool
    extra_scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PendingInstall:
    """A sealed token whose workspace is not claimed yet."""

    attempt: InstallAttempt
    installation: Installation
    tokens: tuple[SealedToken, ...]
    wrapped: WrappedDek


@dataclass(frozen=True, slots=True)
class Activation:
    """What a pending install becomes.

    Attributes:
        pending_id: The pending installation; it goes, unless it is the target.
        target: The installation as it will be.
        tokens: What the target holds from now on, in the place of what it held of the
            bot, of the same user, and of the webhook; what it holds of others stays.
        replaced: The active installation of the same key, as it was when this
            was planned; the same id as the target's in a reinstall.
    """

    grant_id: str
    pending_id: InstallationId
    target: Installation
    tokens: tuple[SealedToken, ...]
    replaced: Installation | None
    is_reinstall: bool
    extra_scopes: tuple[str, ...]


class Slack(Protocol):
    """Slack's OAuth methods, with the app's own credentials."""

    async def exchange(self, code: Secret[str], redirect_uri: str) -> ExchangeAnswer:
        """Exchange a single-use code.

        Raises:
            OAuthCodeRefused: The code is unknown, used, or too old.
            SlackAnswerUnusable: Slack refuses the app, or answers nonsense.
            SlackUnavailable: No answer; the code may be used up all the same.
        """
        ...

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is.

        Raises:
            TokenDead: Slack no longer takes it.
            SlackUnavailable: No usable answer.
        """
        ...

    async def describe(self, token: Secret[str]) -> ExchangeAnswer:
        """Ask what a bot's token is: its place, its app, its scopes.

        Raises:
            TokenDead: Slack no longer takes it.
            TokenRotates: It is one of those that end within hours.
            SlackAnswerUnusable: It is no bot's, or may not ask about itself.
            SlackUnavailable: No usable answer.
        """
        ...

    async def revoke(self, token: Secret[str]) -> None:
        """End a token.

        Raises:
            TokenDead: It had ended already.
            SlackUnavailable: No usable answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpooledInstall:
    """What an exchange gave, sealed, while the database does not take it."""

    grant_id: str
    installation: Installation
    tokens: tuple[SealedToken, ...]


class InstallSpool(Protocol):
    """A place on a disk of this process's own, for tokens that are not in the database yet."""

    async def put(self, spooled: SpooledInstall) -> None:
        """Keep what an exchange gave; again is fine.

        Raises:
            SpoolFull: The disk does not take it.
        """
        ...

    async def list_left(self) -> Sequence[SpooledInstall]:
        """List what is kept, the oldest first."""
        ...

    async def clear(self, grant_id: str) -> None:
        """Forget what is in the database now."""
        ...


class TokenRotates(ServiceError):
    """The token ends within hours, and what renews it was not given: install the app instead."""

    kind = Kind.PRECONDITION
    reason = "TOKEN_ROTATES"


class Claims(Protocol):
    """Identity's word on whose a workspace is."""

    async def claim(
        self,
        grant: Secret[str],
        installation_id: InstallationId,
        key: InstallationKey,
        name: str,
        connection: ConnectionRef | None = None,
    ) -> bool:
        """Claim a workspace for the grant's tenant; idempotent.

        Returns:
            Whether the tenant had claimed it before.

        Raises:
            WorkspaceTaken: It belongs to another tenant.
            InstallNotOpen: The grant no longer verifies.
            IdentityUnavailable: Identity does not answer.
        """
        ...


class InstallStore(Protocol):
    """The vault's database, as installing needs it.

    Each method is one transaction that also commits the records given, by the
    database's clock. All raise DatabaseUnavailable; then it is not known
    whether the transaction was committed, and the method may be repeated.
    """

    async def start_attempt(self, attempt: InstallAttempt, event: AuditEvent) -> None:
        """Write an attempt down; one that is there already stays as it is."""
        ...

    async def find_attempt(self, grant_id: str) -> InstallAttempt | None:
        """Find an attempt by its grant."""
        ...

    async def find_connecting(self, tenant_id: TenantId) -> InstallAttempt | None:
        """Find the newest install of a tenant by Nango whose grant is good and that is open."""
        ...

    async def find_connected(self, key: InstallationKey) -> Held | None:
        """Find everything that is sealed for the active installation of a key."""
        ...

    async def take_exchange(
        self,
        grant_id: str,
        code_ref: TokenRef,
        wrapped: WrappedDek,
        lease: UUID,
        event: AuditEvent,
    ) -> datetime:
        """Take the right to exchange a code, and keep the data key for the answer.

        Replaces the data key of an exchange that was lost.

        Returns:
            The database's time.

        Raises:
            InstallInProgress: Another call holds the lease.
            InstallNotOpen: The attempt is not one that may exchange this code.
        """
        ...

    async def save_pending(
        self,
        grant_id: str,
        installation: Installation,
        tokens: Sequence[SealedToken],
        event: AuditEvent,
    ) -> None:
        """Store what an exchange gave, as pending; saved already is saved.

        Raises:
            InstallInProgress: The exchange was given up for lost meanwhile.
        """
        ...

    async def take_pending(self, grant_id: str, lease: UUID, event: AuditEvent) -> PendingInstall:
        """Take the right to finish a pending install.

        Raises:
            InstallInProgress: Another call holds the lease, or finished it.
            CannotOpen: A part of it is missing.
        """
        ...

    async def release(self, grant_id: str, lease: UUID) -> None:
        """Give a lease back; one held by others stays."""
        ...

    async def find_active(self, key: InstallationKey) -> Loaded | None:
        """Find the active installation of a key, with its bot's access token."""
        ...

    async def find_installation(self, installation_id: InstallationId) -> Installation | None:
        """Find an installation by the vault's own id."""
        ...

    async def activate(self, activation: Activation, events: Sequence[AuditEvent]) -> Installation:
        """Make a pending install what answers reads, and end the attempt.

        Raises:
            StaleGeneration: What was to be replaced is not there as it was, or
                something is there where nothing was, or the user's token is as new.
            InstallInProgress: The attempt is not pending any more.
        """
        ...

    async def drop(self, grant_id: str, reason: str, events: Sequence[AuditEvent]) -> None:
        """End an attempt without an installation, shredding what it had sealed.

        An attempt that has ended stays as it is, and nothing is recorded.
        """
        ...

    async def is_ref_stored(self, ref: TokenRef, except_id: InstallationId | None) -> bool:
        """Tell whether any installation but one holds the token of this fingerprint."""
        ...

    async def list_unfinished(self, limit: int) -> list[InstallAttempt]:
        """List attempts that nobody holds and that will not end by themselves.

        Pending ones, and others once their grant has expired. Oldest first.
        """
        ...

    async def prune_attempts(self) -> None:
        """Delete attempts that ended more than 30 days ago."""
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...
