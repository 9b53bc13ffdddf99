"""Take a workspace's token in, from Slack's code to an active installation.

Every step is written down before the next one begins, so that a crash at any
point leaves something that `sweep` brings to an end: an active installation,
or nothing. Nobody but the vault sees the token.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.connected_tokens import connection_of, require_own
from interlock_token_vault.credential_sources import (
    ConnectionAwaited,
    ConnectionDead,
    ConnectionNotFound,
    ConnectionNotYours,
    ConnectionRef,
    Connections,
    ConnectSession,
    Fetched,
    NangoNotConfigured,
)
from interlock_token_vault.domain.audit import ALLOWED, AuditEvent, Origin
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedToken,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.install import (
    AttemptState,
    BotFacts,
    InstallAttempt,
    InstallInProgress,
    InstallNotOpen,
    OAuthCodeRefused,
    ScopesMissing,
    SlackAnswerUnusable,
    WorkspaceTaken,
    read_facts,
    refusal_of,
    require_same_user,
    require_scopes,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.install_ports import (
    Activation,
    Claims,
    InstallAsk,
    Installed,
    InstallSpool,
    InstallStore,
    PendingInstall,
    Slack,
    SlackApp,
    SpooledInstall,
    StaleGeneration,
    TokenDead,
    TokenRotates,
)
from interlock_token_vault.rotation_ports import SpoolFull
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    DataKey,
    Held,
    KekDisabled,
    Keys,
    Loaded,
)
from interlock_tokens.grants import IMPORT_STATE

# A token that Slack gave out must be written down: about 8 s of trying fit
# into the 30 s of a call beside Slack's and identity's own time.
_SAVE_PAUSES = tuple(timedelta(seconds=pause) for pause in (0.1, 0.4, 1, 2, 4))
# How long one call waits for another's end: some 14 s of its 30.
_OTHERS_PAUSES = tuple(timedelta(seconds=pause) for pause in (0.1, 0.2, 0.4, 0.8, 1.5, 3, 4, 4))
# Two installs of one workspace at the same instant change what a plan was made
# upon; a third look at a still moving target is for the next sweep.
_PLANS = 3
_SWEEP_BATCH = 100
# What the audit log calls what came with a bot's token.
_BROUGHT = {TokenKind.USER: "user_token", TokenKind.WEBHOOK: "webhook"}

_log = structlog.get_logger()


# What ends an attempt for good. Anything else leaves it to a repeat or the sweep.
_FINAL = (OAuthCodeRefused, SlackAnswerUnusable, ScopesMissing, WorkspaceTaken, InstallNotOpen)


@dataclass(frozen=True, slots=True)
class _UserCredential:
    """The tokens of the person who installed, in the open."""

    user_id: str
    token: Secret[str]
    refresh_token: Secret[str] | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Credential:
    """A bot's tokens, and what came with them, in the open, between Slack and the envelope."""

    token: Secret[str]
    refresh_token: Secret[str] | None
    expires_at: datetime | None
    connection: ConnectionRef | None = None
    """Where the token is kept, if not here."""
    user: _UserCredential | None = None
    webhook_url: Secret[str] | None = None


# Gets what an install is made of, at Slack or where a connection is kept.
_Obtain = Callable[[InstallAttempt, Origin], Awaitable[tuple[BotFacts, ConnectionRef | None]]]


class Installing:
    """Bring installs to their end.

    Args:
        connections: Nango, where it is configured.
        integration: The app's integration at Nango.
        spool: Keeps what the database does not take; without it such a token is lost.
        new_id: Makes ids of installations and leases.
        sleep: Waits between tries to save a token.
    """

    def __init__(
        self,
        *,
        store: InstallStore,
        keys: Keys,
        slack: Slack,
        claims: Claims,
        app: SlackApp,
        environment: str,
        new_id: Callable[[], UUID],
        connections: Connections | None = None,
        integration: str = "",
        spool: InstallSpool | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._keys = keys
        self._slack = slack
        self._claims = claims
        self._app = app
        self._environment = environment
        self._new_id = new_id
        self._connections = connections
        self._integration = integration
        self._spool = spool
        self._sleep = sleep
        self._running: set[asyncio.Task[Installed]] = set()

    async def start(self, ask: InstallAsk) -> str:
        """Write an install down and return Slack's consent page for it.

        Commits one row and one audit record; calls nobody.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        attempt = InstallAttempt(
            grant_id=ask.origin.grant_id,
            grant=ask.grant,
            tenant_id=ask.tenant_id,
            user_id=ask.user_id,
            state_sha256=ask.state_sha256,
            source=ask.source,
            grant_expires_at=ask.expires_at,
        )
        await self._store.start_attempt(attempt, AuditEvent("install.started", ask.origin))
        return self._app.authorize_url

    async def start_connecting(
        self, ask: InstallAsk, renewed: InstallationKey | None
    ) -> ConnectSession:
        """Write an install down and let a browser connect a workspace at Nango.

        Args:
            ask: The wish to install.
            renewed: The installation to be connected again, so that no second
                connection appears; one of another tenant, or without a
                connection, counts as none.

        Raises:
            NangoNotConfigured: There is no Nango.
            NangoUnavailable, NangoRefused: No session was made.
            DatabaseUnavailable: The database does not answer.
        """
        nango = self._nango()
        await self.start(ask)
        tags = {"tenantId": ask.tenant_id}
        old = await self._find_connection(renewed, ask.tenant_id) if renewed else None
        if old is not None:
            try:
                return await nango.open_session(self._integration, tags, old.connection_id)
            except ConnectionNotFound:
                _log.info("connection_gone_before_reconnect")
        return await nango.open_session(self._integration, tags)

    async def complete_connection(self, ask: InstallAsk, ref: ConnectionRef) -> Installed:
        """Take a connection for the workspace that it is of, claim that, activate.

        Runs to its end even when the caller goes away. May be repeated with the
        same grant and connection. The token stays where it is. Where another call
        is at it, as the webhook's is more often than not, that one's end is waited for.

        Raises:
            NangoNotConfigured: There is no Nango.
            ConnectionNotYours: It is another tenant's, or of another integration.
            ConnectionNotFound, ConnectionDead: There is no living token under that name.
            NangoUnavailable, NangoBackingOff, NangoRefused: Nango gave none.
            InstallNotOpen, InstallInProgress, ScopesMissing, SlackAnswerUnusable,
                WorkspaceTaken, SlackUnavailable, IdentityUnavailable,
                KmsUnavailable, DatabaseUnavailable: As `complete`.
        """
        for pause in _OTHERS_PAUSES:
            try:
                return await self._take_connection(ask, ref)
            except InstallInProgress:
                await self._sleep(pause.total_seconds())
        return await self._take_connection(ask, ref)

    async def find_outcome(self, ask: InstallAsk) -> Installed:
        """Tell what came of an install by Nango that its webhook completes; changes nothing.

        Raises:
            ConnectionAwaited: Nothing yet.
            InstallInProgress: It is being completed.
            InstallNotOpen: No such install was started, or it was given up.
            ConnectionNotYours, ConnectionDead, ScopesMissing, SlackAnswerUnusable,
                WorkspaceTaken: It was refused.
            DatabaseUnavailable: The database does not answer.
        """
        attempt = await self._store.find_attempt(ask.origin.grant_id)
        if attempt is None or attempt.source != "nango":
            raise InstallNotOpen
        match attempt.state:
            case AttemptState.STARTED:
                raise ConnectionAwaited
            case AttemptState.EXCHANGING | AttemptState.PENDING:
                raise InstallInProgress
            case AttemptState.DONE:
                return await self._repeat(attempt)
            case AttemptState.DROPPED:
                raise _refusal_of(attempt.outcome)

    async def _take_connection(self, ask: InstallAsk, ref: ConnectionRef) -> Installed:
        nango = self._nango()
        if ref.provider_config_key != self._integration:
            raise ConnectionNotYours

        async def obtain(
            attempt: InstallAttempt, origin: Origin
        ) -> tuple[BotFacts, ConnectionRef | None]:
            return await self._fetch_facts(nango, attempt, origin, ref), ref

        return await self._to_the_end(ask, "nango", self._keys.ref(ref.to_seal()), obtain)

    async def import_token(self, ask: InstallAsk, token: Secret[str]) -> Installed:
        """Take in a bot token that exists already; what is refused lives on at Slack.

        Runs to its end even when the caller goes away. May be repeated with the
        same grant and token.

        Raises:
            TokenDead, TokenRotates: It is none that can be kept.
            ScopesMissing, SlackAnswerUnusable, WorkspaceTaken, InstallInProgress,
                SlackUnavailable, IdentityUnavailable, KmsUnavailable,
                DatabaseUnavailable: As `complete`.
        """

        async def obtain(
            attempt: InstallAttempt, origin: Origin
        ) -> tuple[BotFacts, ConnectionRef | None]:
            try:
                answer = await self._slack.describe(token)
                return read_facts(answer, self._app.client_id), None
            except (TokenDead, TokenRotates, SlackAnswerUnusable) as refusal:
                dropped = AuditEvent("install.dropped", origin, outcome=refusal.reason)
                await self._store.drop(attempt.grant_id, refusal.reason, [dropped])
                raise

        await self.start(ask)
        return await self._to_the_end(ask, "direct", self._keys.ref(token), obtain)

    async def import_connection(self, ask: InstallAsk, connection_id: str) -> Installed:
        """Take in a connection that exists already; raises as `complete_connection`."""
        await self.start(ask)
        return await self.complete_connection(ask, ConnectionRef(self._integration, connection_id))

    async def inspect(
        self, ask: InstallAsk, token: Secret[str] | None, connection_id: str
    ) -> Installation:
        """Say what an import would make, writing nothing; raises as the import does."""
        if token is not None:
            facts = read_facts(await self._slack.describe(token), self._app.client_id)
        else:
            fetched = await self._nango().fetch(ConnectionRef(self._integration, connection_id))
            require_own(fetched, ask.tenant_id, None)
            facts = _facts_of(fetched, self._app.client_id)
            require_same_user(await self._slack.test(facts.token), facts.key, facts.bot_user_id)
        require_scopes(facts.scopes, self._app.bot_scopes)
        held = await self._store.find_active(facts.key)
        if held is not None and held.installation.tenant_id != ask.tenant_id:
            raise WorkspaceTaken
        return Installation(
            id=InstallationId(UUID(int=0)),
            key=facts.key,
            tenant_id=ask.tenant_id,
            state=InstallationState.PENDING,
            generation=1,
            name=facts.name,
            bot_user_id=facts.bot_user_id,
            bot_scopes=facts.scopes,
            installed_at=None,
            installed_by=facts.installed_by,
        )

    async def hear_of_connection(
        self, ref: ConnectionRef, tenant_id: TenantId, origin: Origin, *, is_renewal: bool = False
    ) -> str:
        """Take a webhook's hint: complete the newest open install of a tenant with it.

        A new connection whose token is stored already is one that was completed
        before. One that was connected again mostly has the token that it had.

        Args:
            ref: The connection.
            tenant_id: Whose it is, as the webhook says.
            origin: The call.
            is_renewal: The webhook says that it was there before, and was connected again.

        Returns:
            What came of it, a stable word: `completed`, or why nothing did.

        Raises:
            NangoNotConfigured: There is no Nango.
            ServiceError: UNAVAILABLE: it is not known yet; have the hint sent again.
        """
        nango = self._nango()
        attempt = await self._store.find_connecting(tenant_id)
        if ref.provider_config_key != self._integration:
            return await self._note_hint(origin, "OTHER_INTEGRATION")
        if attempt is None or attempt.grant is None:
            return await self._note_hint(origin, "NO_OPEN_INSTALL")
        try:
            fetched = await nango.fetch(ref)
            require_own(fetched, tenant_id, None)
            is_stored = await self._store.is_ref_stored(self._keys.ref(fetched.token), None)
            if is_stored and not is_renewal:
                return await self._note_hint(origin, "ALREADY_STORED")
            ask = InstallAsk(
                grant=attempt.grant,
                tenant_id=attempt.tenant_id,
                user_id=attempt.user_id,
                state_sha256=attempt.state_sha256,
                source="nango",
                expires_at=attempt.grant_expires_at,
                origin=replace(
                    origin,
                    purpose="webhook",
                    grant_id=attempt.grant_id,
                    subject=attempt.user_id,
                ),
            )
            await self._take_connection(ask, ref)
        except ServiceError as refusal:
            if refusal.kind is Kind.UNAVAILABLE and not isinstance(refusal, SlackAnswerUnusable):
                raise
            return await self._note_hint(origin, refusal.reason)
        return "completed"

    async def _note_hint(self, origin: Origin, outcome: str) -> str:
        await self._store.record([AuditEvent("nango.hint_ignored", origin, outcome=outcome)])
        return outcome

    def _nango(self) -> Connections:
        if self._connections is None:
            raise NangoNotConfigured
        return self._connections

    async def _find_connection(
        self, key: InstallationKey, tenant_id: TenantId
    ) -> ConnectionRef | None:
        """Find where the token of a tenant's installation is kept."""
        held = await self._store.find_connected(key)
        sealed = connection_of(held.tokens) if held else None
        if held is None or sealed is None or held.installation.tenant_id != tenant_id:
            return None
        try:
            return ConnectionRef.of_sealed(await self._open_held(held, sealed))
        except (CannotOpen, KekDisabled):
            return None

    async def complete(self, ask: InstallAsk, code: Secret[str], redirect_uri: str) -> Installed:
        """Exchange a code, seal what Slack answers, claim the workspace, activate.

        Runs to its end even when the caller goes away: between Slack's answer
        and the sealed row, giving up would lose a living token. May be
        repeated with the same grant and code.

        Raises:
            InstallNotOpen: No install is open for the grant, or not with this code.
            InstallInProgress: Another call is completing it.
            OAuthCodeRefused: Slack does not take the code.
            ScopesMissing: Slack granted less than the app needs.
            SlackAnswerUnusable: Slack's answer makes no installation.
            WorkspaceTaken: The workspace belongs to another tenant.
            SlackUnavailable, IdentityUnavailable, KmsUnavailable,
                DatabaseUnavailable: A part does not answer; repeat.
        """

        async def obtain(
            attempt: InstallAttempt, origin: Origin
        ) -> tuple[BotFacts, ConnectionRef | None]:
            return await self._ask_for_facts(attempt, origin, code, redirect_uri), None

        return await self._to_the_end(ask, "direct", self._keys.ref(code), obtain)

    async def _to_the_end(
        self, ask: InstallAsk, source: str, code_ref: TokenRef, obtain: _Obtain
    ) -> Installed:
        task = asyncio.create_task(self._complete(ask, source, code_ref, obtain))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait until every running install has come to its end."""
        if self._running:
            await asyncio.wait(set(self._running))

    async def sweep(self) -> None:
        """Bring installs that a crash or an outage left half-way to their end.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        await self._replay()
        for attempt in await self._store.list_unfinished(_SWEEP_BATCH):
            origin = Origin(
                actor="token-vault",
                rpc="sweep",
                grant_id=attempt.grant_id,
                subject=attempt.user_id,
            )
            try:
                if attempt.state is AttemptState.PENDING:
                    await self._resume(attempt.grant_id, origin)
                else:
                    await self._give_up(attempt, origin)
            except ServiceError as error:
                _log.warning("install_swept", grant_id=attempt.grant_id, reason=error.reason)
            else:
                _log.info("install_swept", grant_id=attempt.grant_id, reason=ALLOWED)
        await self._store.prune_attempts()

    def _forget(self, task: asyncio.Task[Installed]) -> None:
        self._running.discard(task)
        # A caller that went away does not fetch the result; asyncio would
        # complain of an exception that nobody saw.
        if not task.cancelled():
            task.exception()

    async def _complete(
        self, ask: InstallAsk, source: str, code_ref: TokenRef, obtain: _Obtain
    ) -> Installed:
        attempt = await self._store.find_attempt(ask.origin.grant_id)
        if attempt is None or attempt.source != source:
            raise InstallNotOpen
        if attempt.code_ref not in {"", code_ref}:
            raise InstallNotOpen
        match attempt.state:
            case AttemptState.STARTED | AttemptState.EXCHANGING:
                return await self._exchange(attempt, ask.origin, code_ref, obtain)
            case AttemptState.PENDING:
                return await self._resume(attempt.grant_id, ask.origin)
            case AttemptState.DONE:
                return await self._repeat(attempt)
            case AttemptState.DROPPED:
                raise _refusal_of(attempt.outcome)

    async def _repeat(self, attempt: InstallAttempt) -> Installed:
        if attempt.installation_id is None:
            raise AssertionError("an attempt that is done names its installation")
        installation = await self._store.find_installation(attempt.installation_id)
        if installation is None:
            raise InstallNotOpen
        return Installed(installation, attempt.is_reinstall, attempt.extra_scopes)

    async def _exchange(
        self, attempt: InstallAttempt, origin: Origin, code_ref: TokenRef, obtain: _Obtain
    ) -> Installed:
        """Secure the data key, then the code's right, and only then ask Slack."""
        installation_id = InstallationId(self._new_id())
        wrapped, data_key = await self._keys.make(self._key_context(installation_id))
        async with self._leased(attempt.grant_id) as lease:
            at = await self._store.take_exchange(
                attempt.grant_id,
                code_ref,
                wrapped,
                lease,
                AuditEvent(
                    "install.code_taken",
                    origin,
                    installation_id=installation_id,
                    kek_version=wrapped.kek_version,
                ),
            )
            facts, connection = await obtain(attempt, origin)
            credential = self._credential_of(facts, at, connection)
            installation = _pending_installation(installation_id, attempt, facts)
            tokens = await self._seal(data_key, wrapped, installation, credential)
            pending = PendingInstall(attempt, installation, tokens, wrapped)
            await self._save(pending, origin, credential)
            if facts.user is not None and credential.user is None:
                # Whoever installed asked for it by hand.
                await self._revoke_unsaved(facts.user.token, origin)
            return await self._finish(pending, origin, credential)

    def _credential_of(
        self, facts: BotFacts, at: datetime, connection: ConnectionRef | None
    ) -> _Credential:
        """Take of an answer what the app asked for."""
        user = None
        if facts.user is not None and self._app.user_scopes:
            given = facts.user
            ends = at + given.life if given.life else None
            user = _UserCredential(given.user_id, given.token, given.refresh_token, ends)
        return _Credential(
            facts.token,
            facts.refresh_token,
            at + facts.life if facts.life else None,
            connection,
            user,
            facts.webhook_url if self._app.wants_webhook else None,
        )

    async def _ask_for_facts(
        self, attempt: InstallAttempt, origin: Origin, code: Secret[str], redirect_uri: str
    ) -> BotFacts:
        """Exchange the code; an answer of no use ends the attempt."""
        tokens: list[Secret[str]] = []
        try:
            answer = await self._slack.exchange(code, redirect_uri)
            tokens += [answer.bot_token] if answer.bot_token else []
            tokens += [answer.user.token] if answer.user else []
            return read_facts(answer, self._app.client_id)
        except (OAuthCodeRefused, SlackAnswerUnusable) as refusal:
            for token in tokens:
                await self._revoke_unsaved(token, origin)
            await self._store.drop(
                attempt.grant_id,
                refusal.reason,
                [AuditEvent("install.dropped", origin, outcome=refusal.reason)],
            )
            raise

    async def _fetch_facts(
        self, nango: Connections, attempt: InstallAttempt, origin: Origin, ref: ConnectionRef
    ) -> BotFacts:
        """Fetch a connection; one that is no use ends the attempt, and stays as it is at Nango."""
        try:
            fetched = await nango.fetch(ref)
            require_own(fetched, attempt.tenant_id, None)
            return _facts_of(fetched, self._app.client_id)
        except (ConnectionNotYours, ConnectionDead, SlackAnswerUnusable) as refusal:
            await self._store.drop(
                attempt.grant_id,
                refusal.reason,
                [AuditEvent("install.dropped", origin, outcome=refusal.reason)],
            )
            raise

    async def _save(self, pending: PendingInstall, origin: Origin, credential: _Credential) -> None:
        """Write a living token down, in spite of a database that stumbles."""
        event = _event("install.sealed", origin, pending.installation, pending.tokens[0])
        for pause in (*_SAVE_PAUSES, None):
            try:
                await self._store.save_pending(
                    pending.attempt.grant_id, pending.installation, pending.tokens, event
                )
            except DatabaseUnavailable:
                await self._keep_beside(pending)
                if pause is None:
                    # The attempt stays on record as exchanging; the sweep goes on
                    # with what is in the spool.
                    _log.error("install_token_not_saved", grant_id=pending.attempt.grant_id)
                    raise
                await self._sleep(pause.total_seconds())
            except InstallInProgress:
                # Given up for lost by another call; ours must not live on unrecorded.
                for token in _tokens_in(credential):
                    await self._revoke_unsaved(token, origin)
                await self._forget_beside(pending.attempt.grant_id)
                raise
            else:
                await self._forget_beside(pending.attempt.grant_id)
                return

    async def _keep_beside(self, pending: PendingInstall) -> None:
        """Write a sealed token to our own disk: we may end before the database is back."""
        if self._spool is None:
            return
        try:
            await self._spool.put(
                SpooledInstall(pending.attempt.grant_id, pending.installation, pending.tokens)
            )
        except SpoolFull as error:
            _log.error("install_not_spooled", reason=error.reason)

    async def _forget_beside(self, grant_id: str) -> None:
        if self._spool is not None:
            await self._spool.clear(grant_id)

    async def _replay(self) -> None:
        """Store what the database did not take when it came; the sweep then finishes it."""
        for spooled in await self._spool.list_left() if self._spool else ():
            origin = Origin(actor="token-vault", rpc="spool", grant_id=spooled.grant_id)
            event = _event("install.sealed", origin, spooled.installation, spooled.tokens[0])
            try:
                await self._store.save_pending(
                    spooled.grant_id, spooled.installation, spooled.tokens, event
                )
            except (InstallInProgress, InstallNotOpen) as over:
                # Its attempt has ended without it, and with that its data key.
                _log.error("spooled_install_lost", grant_id=spooled.grant_id, reason=over.reason)
                lost = replace(event, action="install.lost", outcome=over.reason)
                await self._store.record([lost])
            await self._forget_beside(spooled.grant_id)

    async def _resume(self, grant_id: str, origin: Origin) -> Installed:
        """Finish a pending install that an earlier call began."""
        async with self._leased(grant_id) as lease:
            resumed = AuditEvent("install.resumed", origin)
            try:
                pending = await self._store.take_pending(grant_id, lease, resumed)
                credential = await self._open(pending)
            except (CannotOpen, KekDisabled, ConnectionNotFound, ConnectionDead) as error:
                dropped = AuditEvent("install.dropped", origin, outcome=error.reason)
                await self._store.drop(grant_id, error.reason, [dropped])
                raise
            return await self._finish(pending, origin, credential)

    async def _give_up(self, attempt: InstallAttempt, origin: Origin) -> None:
        """End an attempt whose grant expired before there was a token to keep."""
        is_lost = attempt.state is AttemptState.EXCHANGING
        action = "install.lost" if is_lost else "install.abandoned"
        await self._store.drop(
            attempt.grant_id,
            InstallNotOpen.reason,
            [AuditEvent(action, origin, outcome=InstallNotOpen.reason)],
        )

    async def _finish(
        self, pending: PendingInstall, origin: Origin, credential: _Credential
    ) -> Installed:
        """Judge a sealed token, claim its workspace, and activate or drop it."""
        installation = pending.installation
        try:
            extra = require_scopes(installation.bot_scopes, self._app.bot_scopes)
            await self._require_living(installation, credential.token)
            extra += await self._require_user(pending, credential)
            return await self._claim(pending, origin, credential, extra)
        except _FINAL as refusal:
            try:
                await self._drop(pending, origin, credential, refusal)
            except ServiceError as error:
                # The row stays pending, answers nobody, and the sweep tries again.
                _log.warning("install_not_dropped", reason=error.reason)
            raise

    async def _require_living(self, installation: Installation, token: Secret[str]) -> None:
        try:
            identity = await self._slack.test(token)
        except TokenDead:
            raise SlackAnswerUnusable from None
        require_same_user(identity, installation.key, installation.bot_user_id)

    async def _require_user(
        self, pending: PendingInstall, credential: _Credential
    ) -> tuple[str, ...]:
        """Judge the token of the person who installed; none is asked of who installs otherwise.

        Returns:
            The scopes granted beyond those asked for.
        """
        attempt, asked, user = pending.attempt, self._app.user_scopes, credential.user
        if user is None:
            is_asked = attempt.source == "direct" and attempt.state_sha256 != IMPORT_STATE
            return require_scopes((), asked if is_asked else ())
        try:
            identity = await self._slack.test(user.token)
        except TokenDead:
            raise SlackAnswerUnusable from None
        require_same_user(identity, pending.installation.key, user.user_id)
        return require_scopes(identity.scopes, asked)

    async def _claim(
        self,
        pending: PendingInstall,
        origin: Origin,
        credential: _Credential,
        extra: tuple[str, ...],
    ) -> Installed:
        grant, key = pending.attempt.grant, pending.installation.key
        if grant is None:
            raise InstallNotOpen
        for _ in range(_PLANS):
            held = await self._find_replaced(key)
            replaced = await self._find_connection(key, pending.attempt.tenant_id)
            plan = replace(await self._plan(pending, credential, held), extra_scopes=extra)
            was_claimed = await self._claims.claim(
                grant, plan.target.id, key, pending.installation.name, credential.connection
            )
            plan = replace(plan, is_reinstall=plan.is_reinstall or was_claimed)
            await self._end_users_of(plan, origin)
            try:
                active = await self._store.activate(plan, _activation_events(plan, origin))
            except StaleGeneration:
                continue
            if extra:
                _log.warning("install_scopes_drifted", installation_id=str(active.id), extra=extra)
            if credential.connection is not None:
                await self._tidy(active, credential.connection, replaced)
            return Installed(active, plan.is_reinstall, extra)
        raise InstallInProgress

    async def _find_replaced(self, key: InstallationKey) -> Loaded | None:
        """Find what an install would replace, with its data key also where it has no token."""
        found = await self._store.find_active(key)
        if found is None or found.wrapped is not None:
            return found
        held = await self._store.find_connected(key)
        is_same = held is not None and held.installation == found.installation
        return replace(found, wrapped=held.wrapped) if held and is_same else found

    async def _tidy(
        self, active: Installation, connection: ConnectionRef, replaced: ConnectionRef | None
    ) -> None:
        """Label the connection at Nango, and delete the one before it; neither matters to reads."""
        key, nango = active.key, self._nango()
        labels = {
            "kind": "work-app",
            "app": "slack",
            "tenantId": active.tenant_id,
            "teamId": key.team_id or key.enterprise_id,
        }
        try:
            await nango.label(connection, labels)
            if replaced is not None and replaced != connection:
                await nango.delete(replaced)
        except ServiceError as error:
            _log.warning("connection_not_tidied", reason=error.reason)

    async def _plan(
        self, pending: PendingInstall, credential: _Credential, held: Loaded | None
    ) -> Activation:
        """Decide what the pending install becomes, before anybody is asked."""
        target, tokens, is_own = pending.installation, pending.tokens, False
        if held is not None and held.installation.tenant_id == pending.attempt.tenant_id:
            is_own = True
            renewed = await self._renew(pending.installation, credential, held)
            target, tokens = renewed or (target, tokens)
        return Activation(
            grant_id=pending.attempt.grant_id,
            pending_id=pending.installation.id,
            target=target,
            tokens=tokens,
            replaced=held.installation if held else None,
            is_reinstall=is_own,
            extra_scopes=(),
        )

    async def _renew(
        self, fresh: Installation, credential: _Credential, held: Loaded
    ) -> tuple[Installation, tuple[SealedToken, ...]] | None:
        """Seal a tenant's new token under the installation it has already.

        Returns:
            The installation one generation up with its tokens, or None where
            its data key is lost: then the fresh installation takes its place.
        """
        if held.wrapped is None:
            return None
        renewed = replace(
            fresh, id=held.installation.id, generation=held.installation.generation + 1
        )
        whole = await self._store.find_connected(fresh.key)
        user_generation = max(
            renewed.generation,
            *(
                each.generation + 1
                for each in (whole.tokens if whole else ())
                if credential.user and each.user_id == credential.user.user_id
            ),
            1,
        )
        data_key = self._keys.take(held.wrapped, self._key_context(renewed.id))
        try:
            tokens = await self._seal(data_key, held.wrapped, renewed, credential, user_generation)
        except (CannotOpen, KekDisabled):
            return None
        return renewed, tokens

    async def _drop(
        self,
        pending: PendingInstall,
        origin: Origin,
        credential: _Credential,
        refusal: ServiceError,
    ) -> None:
        """Undo a pending install, and nothing that belongs to others.

        Slack usually answers the same token to every install of a workspace:
        revoking it would take it from the tenant that holds it by right.
        """
        installation = pending.installation
        # What an operator moves in was somebody's before, and stays that.
        is_import = pending.attempt.state_sha256 == IMPORT_STATE
        is_new = not is_import and not await self._is_in_use(pending, credential.connection)
        revoked = False
        for token in _tokens_in(credential) if is_new else ():
            revoked |= await self._revoke_unless_stored(token, origin, installation)
        if credential.connection is not None and is_new:
            # It would keep a token alive that nothing here knows of.
            await self._nango().delete(credential.connection)
        event = _event("install.dropped", origin, installation, pending.tokens[0])
        await self._store.drop(
            pending.attempt.grant_id, refusal.reason, [replace(event, outcome=refusal.reason)]
        )
        if revoked and isinstance(refusal, WorkspaceTaken):
            user_id = credential.user.user_id if credential.user else ""
            await self._probe(installation.key, user_id, origin)

    async def _is_in_use(self, pending: PendingInstall, connection: ConnectionRef | None) -> bool:
        """Tell whether the tenant's installation lives by a connection, which was connected again.

        Nango keeps the newest token only: to end that one would end both.
        """
        key, tenant_id = pending.installation.key, pending.attempt.tenant_id
        return connection is not None and connection == await self._find_connection(key, tenant_id)

    async def _revoke_unless_stored(
        self, token: Secret[str], origin: Origin, pending: Installation | None
    ) -> bool:
        ref = self._keys.ref(token)
        if await self._store.is_ref_stored(ref, pending.id if pending else None):
            return False
        await self._store.record([AuditEvent("token.revoked", origin, token_ref=ref)])
        try:
            await self._slack.revoke(token)
        except TokenDead:
            _log.info("token_dead_before_revocation")
        return True

    async def _revoke_unsaved(self, token: Secret[str], origin: Origin) -> None:
        """End a token that will not be stored; that it is unwanted matters more to the caller."""
        try:
            await self._revoke_unless_stored(token, origin, None)
        except ServiceError as error:
            _log.error("unwanted_token_not_revoked", reason=error.reason)

    async def _probe(self, key: InstallationKey, user_id: str, origin: Origin) -> None:
        """Ask Slack whether the rightful tenant's tokens outlived a revocation of their like."""
        held = await self._store.find_connected(key)
        for sealed in held.tokens if held else ():
            is_like = sealed.kind is TokenKind.BOT or sealed.user_id == (user_id or None)
            if held is None or not is_like or sealed.slot is not TokenSlot.ACCESS:
                continue
            event = _event("token.probed", origin, held.installation, sealed)
            await self._store.record([event])
            try:
                await self._slack.test(await self._open_held(held, sealed))
            except TokenDead as dead:
                _log.error("stored_token_found_dead", installation_id=str(held.installation.id))
                await self._store.record(
                    [replace(event, action="token.found_dead", outcome=dead.reason)]
                )

    async def _end_users_of(self, plan: Activation, origin: Origin) -> None:
        """End the users' tokens of an installation that is about to go: no record will name them.

        The bot's is the new installation's own, or ends with it.
        """
        if plan.replaced is None or plan.replaced.id == plan.target.id:
            return
        held = await self._store.find_connected(plan.replaced.key)
        if held is None or held.installation.id != plan.replaced.id:
            return
        brought = {each.ref for each in plan.tokens}
        for sealed in held.tokens:
            is_users = sealed.kind is TokenKind.USER and sealed.slot is TokenSlot.ACCESS
            if not is_users or sealed.ref in brought:
                continue
            await self._store.record([_event("token.revoked", origin, held.installation, sealed)])
            try:
                await self._slack.revoke(await self._open_held(held, sealed))
            except (TokenDead, CannotOpen, KekDisabled) as error:
                _log.info("replaced_token_not_revoked", reason=error.reason)

    async def _seal(
        self,
        data_key: DataKey,
        wrapped: WrappedDek,
        installation: Installation,
        credential: _Credential,
        user_generation: int = 1,
    ) -> tuple[SealedToken, ...]:
        """Seal what came: the bot's access token first, and all else after it.

        Of a token that is kept elsewhere only the place is sealed, under the
        token's own fingerprint.
        """

        async def seal(
            secret: Secret[str], kind: TokenKind, slot: TokenSlot, ends: datetime | None
        ) -> SealedToken:
            is_users = kind is TokenKind.USER
            place = TokenContext(
                environment=self._environment,
                key=installation.key,
                installation_id=installation.id,
                user_id=credential.user.user_id if is_users and credential.user else "",
                kind=kind,
                slot=slot,
                dek_id=wrapped.dek_id,
                generation=user_generation if is_users else installation.generation,
            )
            return await data_key.seal(secret, place, ends)

        if (connection := credential.connection) is not None:
            sealed = await seal(connection.to_seal(), TokenKind.BOT, TokenSlot.CONNECTION, None)
            return (replace(sealed, ref=self._keys.ref(credential.token)),)
        came = [
            (credential.token, TokenKind.BOT, TokenSlot.ACCESS, credential.expires_at),
            (credential.refresh_token, TokenKind.BOT, TokenSlot.REFRESH, None),
        ]
        if (user := credential.user) is not None:
            came += [
                (user.token, TokenKind.USER, TokenSlot.ACCESS, user.expires_at),
                (user.refresh_token, TokenKind.USER, TokenSlot.REFRESH, None),
            ]
        came.append((credential.webhook_url, TokenKind.WEBHOOK, TokenSlot.ACCESS, None))
        return tuple(
            [
                await seal(secret, kind, slot, ends)
                for secret, kind, slot, ends in came
                if secret is not None
            ]
        )

    async def _open(self, pending: PendingInstall) -> _Credential:
        held = Held(pending.installation, pending.tokens, pending.wrapped)
        opened = {
            (sealed.kind, sealed.slot): (await self._open_held(held, sealed), sealed)
            for sealed in pending.tokens
        }

        def secret(kind: TokenKind, slot: TokenSlot) -> Secret[str] | None:
            return opened[kind, slot][0] if (kind, slot) in opened else None

        if (place := secret(TokenKind.BOT, TokenSlot.CONNECTION)) is not None:
            ref = ConnectionRef.of_sealed(place)
            fetched = await self._nango().fetch(ref)
            return _Credential(fetched.token, None, None, ref)
        user = None
        if (TokenKind.USER, TokenSlot.ACCESS) in opened:
            token, sealed = opened[TokenKind.USER, TokenSlot.ACCESS]
            refresh = secret(TokenKind.USER, TokenSlot.REFRESH)
            user = _UserCredential(sealed.user_id, token, refresh, sealed.expires_at)
        token, sealed = opened[TokenKind.BOT, TokenSlot.ACCESS]
        return _Credential(
            token,
            secret(TokenKind.BOT, TokenSlot.REFRESH),
            sealed.expires_at,
            user=user,
            webhook_url=secret(TokenKind.WEBHOOK, TokenSlot.ACCESS),
        )

    async def _open_held(self, held: Held, sealed: SealedToken) -> Secret[str]:
        installation = held.installation
        data_key = self._keys.take(held.wrapped, self._key_context(installation.id))
        place = sealed.place(self._environment, installation)
        return await data_key.open(sealed, place)

    def _key_context(self, installation_id: InstallationId) -> KeyContext:
        return KeyContext(self._environment, self._app.client_id, installation_id)

    @asynccontextmanager
    async def _leased(self, grant_id: str) -> AsyncIterator[UUID]:
        """Give a lease its id, and give the lease back whatever comes."""
        lease = self._new_id()
        try:
            yield lease
        except BaseException:
            # After success the attempt has ended and no lease matters any more.
            try:
                await self._store.release(grant_id, lease)
            except DatabaseUnavailable:
                _log.info("install_lease_left", grant_id=grant_id)
            raise


def _facts_of(fetched: Fetched, client_id: ClientId) -> BotFacts:
    """Take from a connection what an installation is made of; what renews its token stays there.

    Raises:
        SlackAnswerUnusable: Slack's own answer is not there, or makes no installation.
    """
    if fetched.answer is None:
        raise SlackAnswerUnusable
    answer = replace(fetched.answer, bot_token=fetched.token, refresh_token=None, expires_in_s=None)
    return read_facts(answer, client_id)


def _refusal_of(reason: str) -> ServiceError:
    """Make again the error that an attempt was dropped with, a connection's own included."""
    own = {each.reason: each for each in (ConnectionNotYours, ConnectionDead)}
    return own[reason]() if reason in own else refusal_of(reason)


def _tokens_in(credential: _Credential) -> list[Secret[str]]:
    """List what Slack can end; a webhook's address ends with the app."""
    return [credential.token, *([credential.user.token] if credential.user else [])]


def _pending_installation(
    installation_id: InstallationId, attempt: InstallAttempt, facts: BotFacts
) -> Installation:
    return Installation(
        id=installation_id,
        key=facts.key,
        tenant_id=attempt.tenant_id,
        state=InstallationState.PENDING,
        generation=1,
        name=facts.name,
        bot_user_id=facts.bot_user_id,
        bot_scopes=facts.scopes,
        installed_at=None,
        installed_by=facts.installed_by,
    )


def _event(
    action: str, origin: Origin, installation: Installation, sealed: SealedToken
) -> AuditEvent:
    return AuditEvent(
        action,
        origin,
        installation_id=installation.id,
        enterprise_id=installation.key.enterprise_id,
        team_id=installation.key.team_id,
        token_kind=sealed.kind.value,
        token_ref=sealed.ref,
        generation=sealed.generation,
    )


def _activation_events(plan: Activation, origin: Origin) -> list[AuditEvent]:
    events = [_event("install.activated", origin, plan.target, plan.tokens[0])]
    events += [
        _event(f"{action}.stored", origin, plan.target, each)
        for each in plan.tokens
        if each.slot is TokenSlot.ACCESS and (action := _BROUGHT.get(each.kind))
    ]
    if plan.replaced is not None and plan.replaced.id != plan.target.id:
        key = plan.replaced.key
        events.append(
            AuditEvent(
                "installation.purged",
                origin,
                installation_id=plan.replaced.id,
                enterprise_id=key.enterprise_id,
                team_id=key.team_id,
                generation=plan.replaced.generation,
            )
        )
    return events
