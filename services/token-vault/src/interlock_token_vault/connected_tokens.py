"""Read tokens that Nango keeps: fetched just before use, one request for all who wait.

The vault holds the sealed name of a connection. What comes back under it is the
installation's only if its tag and its workspace say so: whoever changes things
at Nango must not be able to swap one tenant's token for another's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_token_vault.credential_sources import (
    TENANT_TAG,
    ConnectionDead,
    ConnectionNotFound,
    ConnectionNotYours,
    ConnectionRef,
    CredentialSource,
    Fetched,
    NangoBackingOff,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import KeyContext, SealedToken, TokenContext
from interlock_token_vault.domain.install import SlackAnswerUnusable, read_facts
from interlock_token_vault.domain.installation import (
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    TenantId,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.vault import (
    Held,
    InstallationNotFound,
    Keys,
    NeedsReinstall,
    ReleasedToken,
)

# Two readers of two generations may cross once; a third look is the caller's to ask for.
_LOOKS = 3
# As long as Nango withholds a token after a failure. To force it more often
# would have Slack asked at every read.
_FORCE_EVERY = timedelta(seconds=30)

_log = structlog.get_logger()


class ConnectionStore(Protocol):
    """The vault's database, as fetched tokens need it; all raise DatabaseUnavailable."""

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find everything that is sealed for an active installation."""
        ...

    async def renew_connection(
        self, before: Installation, sealed: SealedToken, event: AuditEvent
    ) -> None:
        """Put a connection sealed one generation up in the place of the one before.

        Raises:
            StaleGeneration: The installation changed meanwhile.
        """
        ...


def connection_of(tokens: Sequence[SealedToken]) -> SealedToken | None:
    """Find the sealed connection among an installation's tokens."""
    found = [token for token in tokens if token.slot is TokenSlot.CONNECTION]
    return found[0] if found else None


def place_of(
    environment: str,
    installation: Installation,
    dek_id: DekId,
    generation: int,
) -> TokenContext:
    """Say what the sealed connection of an installation is bound to."""
    return TokenContext(
        environment=environment,
        key=installation.key,
        installation_id=installation.id,
        user_id="",
        kind=TokenKind.BOT,
        slot=TokenSlot.CONNECTION,
        dek_id=dek_id,
        generation=generation,
    )


def require_own(fetched: Fetched, tenant_id: TenantId, key: InstallationKey | None) -> None:
    """Check that a connection was made for a tenant, and still is of its workspace.

    Slack's answer is as old as the connection: a workspace may have joined its
    Enterprise since, and a team's id is one over all of Slack.

    Args:
        fetched: What Nango answered.
        tenant_id: Whose it must be.
        key: Which workspace it must be of; None for any.

    Raises:
        ConnectionNotYours: It is not.
    """
    if fetched.tags.get(TENANT_TAG) != tenant_id:
        raise ConnectionNotYours
    if key is None or fetched.answer is None:
        return
    try:
        named = read_facts(fetched.answer, key.client_id).key
    except SlackAnswerUnusable:
        raise ConnectionNotYours from None
    has_joined = bool(key.team_id) and not named.enterprise_id
    if named != (replace(key, enterprise_id="") if has_joined else key):
        raise ConnectionNotYours


class ConnectedTokens:
    """The Elsewhere port over a credential source.

    Args:
        source: Keeps the tokens.
        clock: Its monotonic side spaces out forced renewals.
    """

    def __init__(
        self,
        *,
        store: ConnectionStore,
        keys: Keys,
        source: CredentialSource,
        environment: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._keys = keys
        self._source = source
        self._environment = environment
        self._clock = clock
        self._running: dict[tuple[InstallationId, int], asyncio.Task[ReleasedToken]] = {}
        self._forced_at: dict[ConnectionRef, float] = {}

    async def read(self, installation_id: InstallationId, newer_than: int) -> ReleasedToken:
        """Fetch the token of an installation; see Elsewhere."""
        asked = (installation_id, newer_than)
        task = self._running.get(asked)
        if task is None:
            task = asyncio.create_task(self._read(installation_id, newer_than))
            self._running[asked] = task
            task.add_done_callback(lambda done: self._forget(asked, done))
        return await asyncio.shield(task)

    def _forget(
        self, asked: tuple[InstallationId, int], task: "asyncio.Task[ReleasedToken]"
    ) -> None:
        self._running.pop(asked, None)
        # Readers that went away do not fetch an error; asyncio would complain.
        if not task.cancelled():
            task.exception()

    async def _read(self, installation_id: InstallationId, newer_than: int) -> ReleasedToken:
        for _ in range(_LOOKS):
            held = await self._store.find_held(installation_id)
            if held is None:
                raise InstallationNotFound
            sealed = connection_of(held.tokens)
            if sealed is None:
                raise NeedsReinstall
            is_refused = sealed.generation <= newer_than
            fetched = await self._ask(await self._open(held, sealed), is_refused=is_refused)
            require_own(fetched, held.installation.tenant_id, held.installation.key)
            is_same = self._keys.ref(fetched.token) == sealed.ref
            if is_same and is_refused:
                # Slack refuses it, and there is no other.
                raise NeedsReinstall
            try:
                generation = (
                    sealed.generation if is_same else await self._renew(held, sealed, fetched)
                )
            except StaleGeneration:
                continue
            return ReleasedToken(
                token=fetched.token,
                generation=generation,
                expires_at=fetched.expires_at,
                bot_user_id=held.installation.bot_user_id,
                team_id="",
            )
        raise StaleGeneration

    async def _ask(self, ref: ConnectionRef, *, is_refused: bool) -> Fetched:
        try:
            try:
                return await self._source.fetch(ref, is_forced=is_refused)
            except NangoBackingOff:
                # Nango withholds even a good token; to force it has Slack asked once more.
                if not self._may_force(ref):
                    raise
                return await self._source.fetch(ref, is_forced=True)
        except (ConnectionDead, ConnectionNotFound) as gone:
            _log.error("connection_unusable", reason=gone.reason)
            raise NeedsReinstall from gone

    def _may_force(self, ref: ConnectionRef) -> bool:
        now = self._clock.monotonic()
        rest = _FORCE_EVERY.total_seconds()
        self._forced_at = {each: at for each, at in self._forced_at.items() if at + rest > now}
        if ref in self._forced_at:
            return False
        self._forced_at[ref] = now
        return True

    async def _renew(self, held: Held, sealed: SealedToken, fetched: Fetched) -> int:
        """Note that the token is another one now: its generation rises."""
        generation = max(held.installation.generation, sealed.generation) + 1
        place = place_of(self._environment, held.installation, held.wrapped.dek_id, generation)
        data_key = self._keys.take(held.wrapped, self._key_context(held))
        renewed = replace(
            await data_key.seal(fetched.ref.to_seal(), place, None),
            ref=self._keys.ref(fetched.token),
        )
        event = AuditEvent(
            "token.rotated",
            Origin(actor="token-vault", rpc="fetch"),
            installation_id=held.installation.id,
            enterprise_id=held.installation.key.enterprise_id,
            team_id=held.installation.key.team_id,
            token_kind=TokenKind.BOT.value,
            token_ref=renewed.ref,
            generation=generation,
        )
        await self._store.renew_connection(held.installation, renewed, event)
        return generation

    async def _open(self, held: Held, sealed: SealedToken) -> ConnectionRef:
        place = place_of(self._environment, held.installation, sealed.dek_id, sealed.generation)
        data_key = self._keys.take(held.wrapped, self._key_context(held))
        opened: Secret[str] = await data_key.open(sealed, place)
        return ConnectionRef.of_sealed(opened)

    def _key_context(self, held: Held) -> KeyContext:
        return KeyContext(self._environment, held.installation.key.client_id, held.installation.id)
