"""Let a workspace go: at an administrator's word, or because Slack says that it has gone.

An event proves nothing. It may be late, forged, or older than the newest
install; so every token that it may mean is shown to Slack, and only what Slack
no longer takes is purged. A purge destroys the data key, leaves a tombstone, and
has identity release the workspace; the sweep finishes what a crash left.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.connected_tokens import connection_of, require_own
from interlock_token_vault.credential_sources import (
    ConnectionDead,
    ConnectionNotFound,
    ConnectionRef,
    Connections,
    NangoNotConfigured,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedToken,
)
from interlock_token_vault.domain.installation import (
    Installation,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.install_ports import StaleGeneration, TokenDead
from interlock_token_vault.vault import (
    Held,
    InstallationNotFound,
    Keys,
    NeedsReinstall,
    OnHold,
    RefreshPending,
    Renewals,
)

# A reinstall or a refresh in between changes what was judged; a third look at a
# still moving target is for the event's next delivery.
_LOOKS = 3
# An exchange takes seconds. Who asks has 30 s for all of it.
_PATIENCE = timedelta(seconds=12)
_SWEEP_BATCH = 100
# A call has ended by then, whatever became of it.
QUIET = timedelta(seconds=60)
KEEP_TOMBSTONES = timedelta(days=90)
"""How long a tombstone stays; Slack repeats an event for a day."""

_T = TypeVar("_T")
_log = structlog.get_logger()


class UninstallRefused(ServiceError):
    """Slack does not let the app remove itself; remove it in Slack's own settings."""

    kind = Kind.PRECONDITION
    reason = "UNINSTALL_REFUSED"


class Outcome(Enum):
    """What became of an installation's bot."""

    STALE = "stale_uninstall"
    """It lives, or was not meant."""

    PURGED = "purged"
    ALREADY_PURGED = "already_purged"


@dataclass(frozen=True, slots=True)
class Revocation:
    """What an event says, for what that is worth.

    Attributes:
        key: What the event's verified installation may be.
        is_uninstall: It says that the app is gone; else that tokens are.
        user_ids: Users whose tokens it says are revoked.
        names_bot: It says that the bot's token is revoked.
    """

    key: InstallationKey
    is_uninstall: bool
    user_ids: frozenset[str]
    names_bot: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class Applied:
    """What a revocation came to."""

    outcome: Outcome
    users_purged: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An installation that was purged while identity had not released it yet."""

    installation_id: InstallationId
    key: InstallationKey


@dataclass(frozen=True, slots=True)
class OpenUninstall:
    """An uninstall that was begun and not ended."""

    installation_id: InstallationId
    grant_id: str
    subject: str


class SlackExit(Protocol):
    """The way out of Slack, with the app's own credentials."""

    async def test(self, token: Secret[str]) -> object:
        """Ask whose token it is; raises TokenDead, SlackUnavailable."""
        ...

    async def uninstall(self, token: Secret[str]) -> None:
        """Remove the app from where the token belongs.

        Raises:
            TokenDead: Slack no longer takes the token.
            UninstallRefused: Slack takes it, and refuses.
            SlackUnavailable: No usable answer; it may be done all the same.
        """
        ...

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; raises TokenDead, SlackUnavailable."""
        ...


class Releases(Protocol):
    """Identity's side of an end."""

    async def release(self, installation_id: InstallationId, key: InstallationKey) -> None:
        """End the claim that this installation holds; idempotent.

        Raises:
            IdentityUnavailable: Identity does not answer.
        """
        ...


class UninstallStore(Protocol):
    """The vault's database, as uninstalling needs it; all raise DatabaseUnavailable.

    Each method is one transaction that also commits the records given.
    """

    async def find_meant(self, key: InstallationKey) -> Sequence[InstallationId]:
        """Find the active installations of a team, whatever its Enterprise, or of an Enterprise.

        Both where the key names both.
        """
        ...

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find everything that is sealed for an active installation."""
        ...

    async def is_held_back(self, installation_id: InstallationId) -> bool:
        """Tell whether what is stored was restored and not looked at since."""
        ...

    async def begin_uninstall(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Write down that Slack is about to be asked; again is fine.

        Raises:
            InstallationNotFound: It is not active.
        """
        ...

    async def list_open_uninstalls(self, quiet: timedelta, limit: int) -> Sequence[OpenUninstall]:
        """List uninstalls that nobody tried to end for a while, of what was not reinstalled."""
        ...

    async def purge(self, installation: Installation, event: AuditEvent) -> None:
        """Destroy an installation with its keys and tokens, and leave a tombstone.

        Raises:
            StaleGeneration: It is not there as it was.
        """
        ...

    async def purge_user(
        self, installation_id: InstallationId, sealed: SealedToken, event: AuditEvent
    ) -> bool:
        """Delete a user's tokens; False when they are not those any more."""
        ...

    async def list_unreleased(self, limit: int) -> Sequence[Tombstone]:
        """List tombstones whose claims identity may still hold, oldest first."""
        ...

    async def find_unreleased(self, key: InstallationKey) -> Sequence[Tombstone]:
        """List those of one name."""
        ...

    async def note_released(self, installation_id: InstallationId) -> None:
        """Note that identity has released a tombstone's claim."""
        ...

    async def prune_tombstones(self, older_than: timedelta) -> None:
        """Delete tombstones that were released that long ago."""
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...


class Uninstalling:
    """End installations.

    Args:
        renewals: What makes tokens new; None where nothing does, and then
            nothing is known of a rotating token that Slack refuses.
        connections: Nango, where it is configured.
    """

    def __init__(
        self,
        *,
        store: UninstallStore,
        keys: Keys,
        slack: SlackExit,
        claims: Releases,
        renewals: Renewals | None,
        environment: str,
        connections: Connections | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._slack = slack
        self._claims = claims
        self._renewals = renewals
        self._environment = environment
        self._connections = connections
        self._running: set[asyncio.Task[Any]] = set()

    async def apply(self, revocation: Revocation) -> Applied:
        """Ask Slack whether an event is true, and purge what it no longer takes.

        Runs to its end even when the caller goes away. May be repeated.

        Raises:
            SlackUnavailable, RefreshPending: It is not known yet; repeat.
            OnHold: What is stored is not known to be the living token.
            StaleGeneration: Installs keep coming in between; repeat.
            CannotOpen, KekDisabled, KmsUnavailable: The token cannot be shown to Slack.
            DatabaseUnavailable: The database does not answer.
        """
        return await self._to_the_end(self._apply(revocation))

    async def uninstall(self, key: InstallationKey, origin: Origin) -> None:
        """Remove the app from a workspace at Slack, and purge it here.

        Runs to its end even when the caller goes away. May be repeated; what is
        gone is uninstalled.

        Raises:
            UninstallRefused: Slack refuses; nothing is purged.
            SlackUnavailable, RefreshPending: Slack may not have done it yet; the
                sweep goes on, and so does a repeat.
            CannotOpen, KekDisabled, KmsUnavailable: The token cannot be shown to Slack.
            DatabaseUnavailable: The database does not answer.
        """
        await self._to_the_end(self._uninstall(key, origin))

    async def drain(self) -> None:
        """Wait until everything that runs has come to its end."""
        if self._running:
            await asyncio.wait(set(self._running))

    async def sweep(self) -> None:
        """Finish what a crash or an outage left: uninstalls half-way, claims not released.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        for begun in await self._store.list_open_uninstalls(QUIET, _SWEEP_BATCH):
            origin = Origin(
                actor="token-vault", rpc="sweep", grant_id=begun.grant_id, subject=begun.subject
            )
            try:
                await self._remove(begun.installation_id, origin)
            except ServiceError as error:
                _log.warning(
                    "uninstall_swept",
                    installation_id=str(begun.installation_id),
                    reason=error.reason,
                )
        for tombstone in await self._store.list_unreleased(_SWEEP_BATCH):
            await self._release(tombstone.installation_id, tombstone.key)
        await self._store.prune_tombstones(KEEP_TOMBSTONES)

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        # A caller that went away does not fetch the result; asyncio would
        # complain of an exception that nobody saw.
        if not task.cancelled():
            task.exception()

    # At Slack's word.

    async def _apply(self, revocation: Revocation) -> Applied:
        meant = await self._store.find_meant(revocation.key)
        applied = [await self._judge(each, revocation) for each in meant]
        outcomes = {each.outcome for each in applied}
        if not outcomes - {Outcome.ALREADY_PURGED}:
            # The claim may have outlived a crash.
            for tombstone in await self._store.find_unreleased(revocation.key):
                await self._release(tombstone.installation_id, tombstone.key)
            event = replace(_named("revocation.judged", revocation), outcome="already_purged")
            await self._store.record([event])
            return Applied(Outcome.ALREADY_PURGED, 0)
        outcome = Outcome.PURGED if Outcome.PURGED in outcomes else Outcome.STALE
        return Applied(outcome, sum(each.users_purged for each in applied))

    async def _judge(self, installation_id: InstallationId, revocation: Revocation) -> Applied:
        """Judge one installation that the event may mean, users and bot apart."""
        users_purged = 0
        for _ in range(_LOOKS):
            held = await self._store.find_held(installation_id)
            if held is None:
                return Applied(Outcome.ALREADY_PURGED, users_purged)
            if await self._store.is_held_back(installation_id):
                raise OnHold
            try:
                is_bot_dead = (revocation.is_uninstall or revocation.names_bot) and (
                    not await self._lives(held, _access_of_bot(held), revocation.origin)
                )
                if is_bot_dead:
                    await self._end(held, revocation.origin)
                    return Applied(Outcome.PURGED, users_purged)
                users_purged += await self._judge_users(held, revocation)
            except StaleGeneration:
                continue
            event = _about("revocation.judged", revocation.origin, held.installation)
            await self._store.record([replace(event, outcome=Outcome.STALE.value)])
            return Applied(Outcome.STALE, users_purged)
        raise StaleGeneration

    async def _judge_users(self, held: Held, revocation: Revocation) -> int:
        purged = 0
        for sealed in held.tokens:
            is_meant = revocation.is_uninstall or sealed.user_id in revocation.user_ids
            if not is_meant or sealed.kind is not TokenKind.USER:
                continue
            if sealed.slot is not TokenSlot.ACCESS:
                continue
            if await self._lives(held, sealed, revocation.origin):
                continue
            event = _about("user_token.purged", revocation.origin, held.installation, sealed)
            purged += await self._store.purge_user(held.installation.id, sealed, event)
        return purged

    async def _lives(self, held: Held, sealed: SealedToken, origin: Origin) -> bool:
        """Ask Slack about a token, and about its successor where it may have one.

        Raises:
            StaleGeneration: It is not the installation's token any more.
        """
        event = _about("token.probed", origin, held.installation, sealed)
        await self._store.record([event])
        try:
            await self._slack.test(await self._open(held, sealed))
        except TokenDead:
            return await self._is_renewed(held, sealed)
        return True

    async def _is_renewed(self, held: Held, sealed: SealedToken) -> bool:
        """Have a dead token exchanged: it may have ended of age only, or been replaced.

        Returns:
            False where there is nothing to exchange, or Slack refuses that too.
        """
        if sealed.slot is TokenSlot.CONNECTION:
            return await self._is_connection_alive(held, sealed)
        is_rotating = any(
            token.slot is TokenSlot.REFRESH and token.user_id == sealed.user_id
            for token in held.tokens
        )
        if not is_rotating:
            return False
        if self._renewals is None:
            raise RefreshPending
        try:
            await self._renewals.renew(
                held.installation.id, sealed.user_id, sealed.generation, _PATIENCE
            )
        except NeedsReinstall:
            return False
        except InstallationNotFound:
            raise StaleGeneration from None
        return True

    async def _is_connection_alive(self, held: Held, sealed: SealedToken) -> bool:
        """Have a new token made where it is kept, and ask Slack about that."""
        try:
            await self._slack.test(await self._open(held, sealed, is_forced=True))
        except TokenDead:
            return False
        return True

    # At an administrator's word.

    async def _uninstall(self, key: InstallationKey, origin: Origin) -> None:
        found = [
            held
            for installation_id in await self._store.find_meant(key)
            if (held := await self._store.find_held(installation_id))
            and held.installation.key == key
        ]
        for tombstone in await self._store.find_unreleased(key):
            await self._release(tombstone.installation_id, tombstone.key)
        for held in found:
            event = _about("uninstall.asked", origin, held.installation)
            await self._store.begin_uninstall(held.installation.id, event)
            await self._remove(held.installation.id, origin)

    async def _remove(self, installation_id: InstallationId, origin: Origin) -> None:
        """Have Slack remove the app, and purge what it has removed."""
        for _ in range(_LOOKS):
            held = await self._store.find_held(installation_id)
            if held is None:
                return
            sealed = _access_of_bot(held)
            event = _about("uninstall.sent", origin, held.installation, sealed)
            await self._store.record([event])
            try:
                await self._slack.uninstall(await self._open(held, sealed))
            except TokenDead:
                if await self._is_renewed(held, sealed):
                    continue
            try:
                await self._end(held, origin)
            except StaleGeneration:
                # A refresh came in between, or an install: the next look tells.
                continue
            return
        raise StaleGeneration

    # The end.

    async def _end(self, held: Held, origin: Origin) -> None:
        """Purge an installation whose bot is dead, and have its claim released.

        Raises:
            StaleGeneration: It changed meanwhile.
        """
        for sealed in held.tokens:
            if sealed.kind is TokenKind.USER and sealed.slot is TokenSlot.ACCESS:
                await self._end_user(held, sealed, origin)
        installation = held.installation
        await self._store.purge(installation, _about("installation.purged", origin, installation))
        await self._forget_connection(held)
        _log.info("installation_purged", installation_id=str(installation.id))
        await self._release(installation.id, installation.key)

    async def _end_user(self, held: Held, sealed: SealedToken, origin: Origin) -> None:
        """End a user's token that may have outlived the bot: its record is about to go."""
        event = _about("token.revoked", origin, held.installation, sealed)
        await self._store.record([event])
        try:
            await self._slack.revoke(await self._open(held, sealed))
        except TokenDead:
            _log.info("token_dead_before_revocation")

    async def _release(self, installation_id: InstallationId, key: InstallationKey) -> None:
        """Have identity release a claim at once; what fails is the sweep's to repeat."""
        try:
            await self._claims.release(installation_id, key)
            await self._store.note_released(installation_id)
        except ServiceError as error:
            _log.warning(
                "claim_not_released", installation_id=str(installation_id), reason=error.reason
            )

    async def _open(
        self, held: Held, sealed: SealedToken, *, is_forced: bool = False
    ) -> Secret[str]:
        """Open a token, or fetch it from where it is kept.

        Raises:
            TokenDead: It is kept elsewhere, and is not there any more.
        """
        opened = await self._open_sealed(held, sealed)
        if sealed.slot is not TokenSlot.CONNECTION:
            return opened
        if self._connections is None:
            raise NangoNotConfigured
        try:
            ref = ConnectionRef.of_sealed(opened)
            fetched = await self._connections.fetch(ref, is_forced=is_forced)
        except (ConnectionDead, ConnectionNotFound) as gone:
            raise TokenDead from gone
        require_own(fetched, held.installation.tenant_id, held.installation.key)
        return fetched.token

    async def _forget_connection(self, held: Held) -> None:
        """Delete the connection that a purged installation had; what fails stays at Nango."""
        sealed = connection_of(held.tokens)
        if sealed is None or self._connections is None:
            return
        try:
            if await self._store.find_meant(held.installation.key):
                # Installed again, perhaps by the very same connection.
                return
            ref = ConnectionRef.of_sealed(await self._open_sealed(held, sealed))
            await self._connections.delete(ref)
        except ServiceError as error:
            _log.warning("connection_not_deleted", reason=error.reason)

    async def _open_sealed(self, held: Held, sealed: SealedToken) -> Secret[str]:
        key = held.installation.key
        context = KeyContext(self._environment, key.client_id, held.installation.id)
        place = sealed.place(self._environment, held.installation)
        return await self._keys.take(held.wrapped, context).open(sealed, place)


def _access_of_bot(held: Held) -> SealedToken:
    for sealed in held.tokens:
        if sealed.kind is TokenKind.BOT and sealed.slot is not TokenSlot.REFRESH:
            return sealed
    raise CannotOpen


def _named(action: str, revocation: Revocation) -> AuditEvent:
    key = revocation.key
    return AuditEvent(
        action, revocation.origin, enterprise_id=key.enterprise_id, team_id=key.team_id
    )


def _about(
    action: str, origin: Origin, installation: Installation, sealed: SealedToken | None = None
) -> AuditEvent:
    event = AuditEvent(
        action,
        origin,
        installation_id=installation.id,
        enterprise_id=installation.key.enterprise_id,
        team_id=installation.key.team_id,
        generation=installation.generation,
    )
    if sealed is None:
        return event
    return replace(
        event, token_kind=sealed.kind.value, token_ref=sealed.ref, generation=sealed.generation
    )
