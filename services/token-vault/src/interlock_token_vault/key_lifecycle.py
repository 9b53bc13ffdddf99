"""The life of keys while tokens are released under them: promote, re-wrap, rotate, retire, shred.

A key-encryption key (KEK) wraps data keys (DEKs), one an installation. Nothing
here stops a read: a reader holds the wrapped key that it loaded, which stays
good until its KEK is retired, and nothing may be retired that still wraps.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.connected_tokens import require_own
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
from interlock_token_vault.vault import DataKey, Held, InstallationNotFound, KekDisabled, Keys

# One transaction of re-wrapped keys: small enough that reads behind it wait
# some ten milliseconds.
_REWRAP_BATCH = 50

_log = structlog.get_logger()


class KekNotFound(ServiceError):
    """The KMS has no such key version."""

    kind = Kind.NOT_FOUND
    reason = "KEK_NOT_FOUND"


class KekInUse(ServiceError):
    """The key version is the primary one, or still wraps data keys."""

    kind = Kind.PRECONDITION
    reason = "KEK_IN_USE"


class KekManagedElsewhere(ServiceError):
    """The KMS itself decides which version is primary; promote it there."""

    kind = Kind.PRECONDITION
    reason = "KEK_MANAGED_ELSEWHERE"


class RewrapRunning(ServiceError):
    """Another re-wrap is under way."""

    kind = Kind.LOST_RACE
    reason = "REWRAP_RUNNING"


class RefreshUnsettled(ServiceError):
    """A refresh of its Slack tokens is under way, or not settled; try again later."""

    kind = Kind.LOST_RACE
    reason = "REFRESH_UNSETTLED"


class ScannerMissing(ServiceError):
    """The vault was not given the role that walks all data keys."""

    kind = Kind.PRECONDITION
    reason = "SCANNER_MISSING"


class EnterpriseInstalled(ServiceError):
    """The workspace has an installation under that name already."""

    kind = Kind.CONFLICT
    reason = "ENTERPRISE_INSTALLED"


class NotClaimed(ServiceError):
    """Identity knows no claim of this installation."""

    kind = Kind.PRECONDITION
    reason = "NOT_CLAIMED"


class NotInEnterprise(ServiceError):
    """Slack does not say that the workspace belongs to that Enterprise."""

    kind = Kind.PRECONDITION
    reason = "NOT_IN_ENTERPRISE"


@runtime_checkable
class Keks(Protocol):
    """The key-encryption keys of a KMS, as far as the vault may manage them."""

    async def find_primary(self) -> str:
        """Find the version that wraps new data keys.

        Raises:
            KmsUnavailable: No answer.
            KekDisabled: It may not be used.
        """
        ...

    async def list_versions(self) -> Sequence[str]:
        """List the versions that the vault knows to be usable."""
        ...

    async def make_primary(self, version: str) -> None:
        """Wrap new data keys under a version from now on.

        Raises:
            KekNotFound: There is none of this name.
            KekManagedElsewhere: The KMS takes no order from us.
        """
        ...

    async def retire(self, version: str) -> None:
        """Stop to use a version that wraps nothing any more; raises as make_primary."""
        ...


@dataclass(frozen=True, slots=True)
class KekUse:
    """A key-encryption key and how much hangs on it."""

    version: str
    is_primary: bool
    wrapped_deks: int


@dataclass(frozen=True, slots=True)
class DekPlace:
    """A wrapped data key by its ids."""

    dek_id: DekId
    installation_id: InstallationId


@dataclass(frozen=True, slots=True)
class HeldDek:
    """A wrapped data key and the Slack client whose installation it is for.

    Attributes:
        client_id: None while an install has not come to know its workspace.
    """

    wrapped: WrappedDek
    client_id: ClientId | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a re-wrap has come.

    Attributes:
        failed: Data keys that could not be unwrapped; they stay as they were.
    """

    done: int
    total: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class SlackPlace:
    """An installation as Slack names it, without the app."""

    enterprise_id: str
    team_id: str


class KeyStore(Protocol):
    """The vault's database, as the life of keys needs it.

    All raise DatabaseUnavailable. What walks all installations sees ids and
    key versions only, and raises ScannerMissing without its role.
    """

    async def count_deks(self) -> Mapping[str, int]:
        """Count the data keys by the version that wraps them."""
        ...

    def rewrapping(self) -> AbstractAsyncContextManager[None]:
        """Hold the one right to re-wrap, in all vault processes.

        Raises:
            RewrapRunning: Somebody else holds it.
        """
        ...

    async def list_deks(
        self, not_version: str, after: DekId | None, limit: int
    ) -> Sequence[DekPlace]:
        """List data keys that another version wraps, by id, after one."""
        ...

    async def get_deks(self, places: Sequence[DekPlace]) -> Sequence[HeldDek]:
        """Get those of the data keys that are still there."""
        ...

    async def replace_deks(
        self, changes: Sequence[tuple[WrappedDek, WrappedDek]], events: Sequence[AuditEvent]
    ) -> int:
        """Put newly wrapped keys in the place of the very ones that they were made of.

        Returns:
            How many; a key that changed meanwhile stays as it is.
        """
        ...

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an active installation."""
        ...

    async def find_by_place(
        self, client_id: ClientId, place: SlackPlace
    ) -> Sequence[InstallationId]:
        """Find installations of a client by Slack's name; a name without a match finds none."""
        ...

    async def reseal(self, before: Held, after: Held, event: AuditEvent) -> None:
        """Put newly sealed tokens, and their key, in the place of what they were made of.

        Pairs kept beside a chain that has moved on since go with the old key.

        Raises:
            StaleGeneration: It changed meanwhile.
            RefreshUnsettled: A pair that Slack may go on with is, or is about to be,
                sealed under the old key.
            EnterpriseInstalled: The new name is taken.
        """
        ...

    async def find_installation(self, installation_id: InstallationId) -> Installation | None:
        """Find an installation by its id."""
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


class ClaimMover(Protocol):
    """Identity's word on whose a workspace is, when that joined an Enterprise."""

    async def move(self, installation_id: InstallationId, key: InstallationKey, name: str) -> None:
        """Move an installation's claim to the Enterprise that the key names; idempotent.

        Raises:
            NotClaimed: The installation has no claim.
            WorkspaceTaken: The Enterprise belongs to another tenant.
            IdentityUnavailable: It is not known to be moved.
        """
        ...


class KeyLifecycle:
    """What operators do to keys.

    Args:
        slack: Asked where a workspace belongs, before it is re-keyed.
        claims: Told of it, before its tokens are.
        client_id: Of Interlock's own app.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        keys: Keys,
        keks: Keks,
        slack: Slack,
        claims: ClaimMover,
        client_id: ClientId,
        environment: str,
        connections: Connections | None = None,
    ) -> None:
        self._connections = connections
        self._claims = claims
        self._store = store
        self._keys = keys
        self._keks = keks
        self._slack = slack
        self._client_id = client_id
        self._environment = environment

    async def list_keks(self) -> list[KekUse]:
        """List the key-encryption keys, the primary one first, and what each wraps.

        Raises:
            KmsUnavailable, KekDisabled: The primary version is not known.
            ScannerMissing, DatabaseUnavailable: As KeyStore.
        """
        counts = await self._store.count_deks()
        primary = await self._keks.find_primary()
        known = dict.fromkeys([primary, *await self._keks.list_versions(), *sorted(counts)])
        return [KekUse(each, each == primary, counts.get(each, 0)) for each in known]

    async def promote(self, version: str, origin: Origin) -> None:
        """Wrap new data keys under a version; what is wrapped stays as it is.

        Raises:
            KekNotFound, KekManagedElsewhere: As Keks.
            DatabaseUnavailable: It is promoted all the same, but not on record.
        """
        await self._keks.make_primary(version)
        await self._store.record([AuditEvent("kek.promoted", origin, kek_version=version)])

    async def retire(self, version: str, origin: Origin) -> None:
        """Take a version out of use, once it wraps nothing.

        Raises:
            KekInUse: It is primary, or wraps something.
            KekNotFound: There is none of this name.
        """
        counts = await self._store.count_deks()
        if version == await self._keks.find_primary() or counts.get(version):
            raise KekInUse
        await self._keks.retire(version)
        await self._store.record([AuditEvent("kek.retired", origin, kek_version=version)])

    async def rewrap(self, origin: Origin, *, dry_run: bool) -> AsyncGenerator[Progress, None]:
        """Wrap every data key under the primary version, telling how far it has come.

        Touches no sealed token. May be stopped at any point and begun again:
        what is done stays done. A dry run writes nothing, not even a record.

        Raises:
            RewrapRunning: Another one is under way.
            KmsUnavailable, DatabaseUnavailable: Begin again later.
        """
        async with self._store.rewrapping():
            primary = await self._keks.find_primary()
            counts = await self._store.count_deks()
            total = sum(counts.values()) - counts.get(primary, 0)
            progress = Progress(0, total)
            yield progress
            if dry_run:
                return
            await self._store.record([AuditEvent("rewrap.started", origin, kek_version=primary)])
            after: DekId | None = None
            while places := await self._store.list_deks(primary, after, _REWRAP_BATCH):
                progress = await self._rewrap_some(places, progress, origin)
                yield progress
                after = places[-1].dek_id
            await self._store.record([AuditEvent("rewrap.finished", origin, kek_version=primary)])

    async def _rewrap_some(
        self, places: Sequence[DekPlace], progress: Progress, origin: Origin
    ) -> Progress:
        changes: list[tuple[WrappedDek, WrappedDek]] = []
        failed = 0
        for held in await self._store.get_deks(places):
            before = held.wrapped
            context = KeyContext(
                self._environment, held.client_id or self._client_id, before.installation_id
            )
            try:
                changes.append((before, await self._keys.rewrap(before, context)))
            except (CannotOpen, KekDisabled) as error:
                _log.error("dek_not_rewrapped", dek_id=str(before.dek_id), reason=error.reason)
                failed += 1
        events = [
            AuditEvent(
                "dek.rewrapped",
                origin,
                installation_id=after.installation_id,
                kek_version=after.kek_version,
            )
            for _, after in changes
        ]
        done = await self._store.replace_deks(changes, events) if changes else 0
        return Progress(progress.done + done, progress.total, progress.failed + failed)

    async def rotate_dek(self, installation_id: InstallationId, origin: Origin) -> int:
        """Give an installation a new data key and seal its tokens under it.

        Returns:
            How many tokens were sealed anew.

        Raises:
            InstallationNotFound: It is not active.
            StaleGeneration: It changed meanwhile.
            RefreshUnsettled: As KeyStore.
            CannotOpen, KekDisabled: What is stored does not open; nothing is written.
        """
        before = await self._get_held(installation_id)
        event = AuditEvent("dek.rotated", origin, installation_id=installation_id)
        after = await self._seal_anew(before, before.installation)
        return await self._put(before, after, event)

    async def rekey(
        self, installation_id: InstallationId, enterprise_id: str, origin: Origin
    ) -> int:
        """Seal the tokens of a workspace that joined an Enterprise under its new name.

        Asks Slack's auth.test first, with the bot token, on record. Then
        identity moves the claim, and only then the tokens change their name.
        Broken off in between, the workspace's events are answered by nobody
        until this is called again; whatever was done already stays done.

        Returns:
            How many tokens were sealed anew.

        Raises:
            NotInEnterprise: Slack says otherwise, or no longer takes the token.
            EnterpriseInstalled: The new name has an installation already.
            NotClaimed, WorkspaceTaken: Identity has no claim to move, or another
                tenant has the Enterprise.
            IdentityUnavailable: Identity does not answer.
            InstallationNotFound, StaleGeneration, RefreshUnsettled, CannotOpen,
                KekDisabled: As rotate_dek.
            SlackUnavailable: Slack does not answer.
            NangoNotConfigured, NangoUnavailable, NangoBackingOff, NangoRefused,
                ConnectionNotYours: Nango keeps the token, and does not give it.
        """
        before = await self._get_held(installation_id)
        if before.installation.key.is_enterprise_install:
            raise NotInEnterprise
        await self._require_member(before, enterprise_id, origin)
        key = replace(before.installation.key, enterprise_id=enterprise_id)
        place = SlackPlace(enterprise_id, key.team_id)
        if set(await self._store.find_by_place(self._client_id, place)) - {installation_id}:
            raise EnterpriseInstalled
        # What can fail here does so before anything has moved.
        after = await self._seal_anew(before, replace(before.installation, key=key))
        await self._claims.move(installation_id, key, before.installation.name)
        event = AuditEvent(
            "installation.rekeyed",
            origin,
            installation_id=installation_id,
            enterprise_id=enterprise_id,
            team_id=key.team_id,
        )
        return await self._put(before, after, event)

    async def shred(
        self, name: InstallationId | SlackPlace, origin: Origin, *, dry_run: bool
    ) -> Installation:
        """Destroy an installation's data keys, and delete it with its tokens.

        Nothing at Slack changes: revoke there what should end there.

        Returns:
            What was, or in a dry run would be, shredded.

        Raises:
            InstallationNotFound: There is no such installation.
        """
        if isinstance(name, SlackPlace):
            found = await self._store.find_by_place(self._client_id, name)
            if len(found) != 1:
                raise InstallationNotFound
            name = found[0]
        installation = await self._store.find_installation(name)
        if installation is None:
            raise InstallationNotFound
        if not dry_run:
            event = AuditEvent(
                "installation.purged",
                origin,
                installation_id=installation.id,
                enterprise_id=installation.key.enterprise_id,
                team_id=installation.key.team_id,
                generation=installation.generation,
            )
            await self._store.shred(installation.id, event)
        return installation

    async def _get_held(self, installation_id: InstallationId) -> Held:
        held = await self._store.find_held(installation_id)
        if held is None:
            raise InstallationNotFound
        return held

    async def _require_member(self, held: Held, enterprise_id: str, origin: Origin) -> None:
        """Ask Slack whether the workspace belongs to the Enterprise."""
        bots = [
            token
            for token in held.tokens
            if token.kind is TokenKind.BOT and token.slot is not TokenSlot.REFRESH
        ]
        if not bots:
            raise NotInEnterprise
        event = AuditEvent(
            "token.probed", origin, installation_id=held.installation.id, token_ref=bots[0].ref
        )
        await self._store.record([event])
        try:
            identity = await self._slack.test(await self._open(held, bots[0]))
        except (TokenDead, ConnectionDead, ConnectionNotFound):
            raise NotInEnterprise from None
        team_id = held.installation.key.team_id
        if (identity.enterprise_id, identity.team_id) != (enterprise_id, team_id):
            raise NotInEnterprise

    async def _open(self, held: Held, sealed: SealedToken) -> Secret[str]:
        """Open a bot's token, or fetch it from where it is kept."""
        opened = await self._take(held).open(sealed, self._place(held.installation, sealed))
        if sealed.slot is not TokenSlot.CONNECTION:
            return opened
        if self._connections is None:
            raise NangoNotConfigured
        fetched = await self._connections.fetch(ConnectionRef.of_sealed(opened))
        require_own(fetched, held.installation.tenant_id, held.installation.key)
        return fetched.token

    async def _seal_anew(self, before: Held, target: Installation) -> Held:
        """Seal what an installation holds under a new key, and under a new name if need be."""
        old_key = self._take(before)
        wrapped, new_key = await self._keys.make(
            KeyContext(self._environment, target.key.client_id, target.id)
        )
        tokens: list[SealedToken] = []
        for token in before.tokens:
            opened = await old_key.open(token, self._place(before.installation, token))
            place = replace(self._place(target, token), dek_id=wrapped.dek_id)
            sealed = await new_key.seal(opened, place, token.expires_at)
            # A connection's fingerprint is its token's, and not that of its name.
            tokens.append(replace(sealed, ref=token.ref))
        return Held(target, tuple(tokens), wrapped)

    async def _put(self, before: Held, after: Held, event: AuditEvent) -> int:
        event = replace(event, kek_version=after.wrapped.kek_version)
        await self._store.reseal(before, after, event)
        return len(after.tokens)

    def _take(self, held: Held) -> DataKey:
        installation = held.installation
        return self._keys.take(
            held.wrapped,
            KeyContext(self._environment, installation.key.client_id, installation.id),
        )

    def _place(self, installation: Installation, token: SealedToken) -> TokenContext:
        return token.place(self._environment, installation)
