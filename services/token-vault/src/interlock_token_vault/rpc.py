"""Proto in, proto out: grants are verified here, and tokens revealed here.

Whose installation a call is about comes from its grant and from nowhere else.
"""

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from typing_extensions import override

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.callers import CallerTable
from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import Refused, RpcServer, current_call
from interlock_chassis.statuses import code_of
from interlock_token_vault.credential_sources import (
    ConnectionRef,
    Hints,
    InvalidSignature,
    NangoNotConfigured,
)
from interlock_token_vault.domain.audit import ChainedEvent, Origin
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationKey,
    TenantId,
)
from interlock_token_vault.install_ports import InstallAsk
from interlock_token_vault.installing import Installing
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.uninstalling import Outcome, Revocation, Uninstalling
from interlock_token_vault.vault import (
    AuditCursor,
    InvalidPageToken,
    ReadAsk,
    ReleasedToken,
    TokenVault,
)
from interlock_tokens.errors import InvalidToken, PurposeNotGranted
from interlock_tokens.grants import AdminGrant, AdminPurpose, SlackGrant, Workspace
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import (
    require_purpose,
    verify_admin_grant,
    verify_event_or_admin,
    verify_install_grant,
    verify_slack_grant,
)

if TYPE_CHECKING:
    from typing import TypeVar

    _Q = TypeVar("_Q")
    _A = TypeVar("_A")
    # Generic in the stubs only.
    _Context = aio.ServicerContext[_Q, Awaitable[_A]]

_EDGE = frozenset({"gateway-edge"})
_WORKER = frozenset({"gateway-worker"})
_APPS = frozenset({"app/*"})
_OPERATOR = frozenset({"operator"})
_OPERATOR_NAME = "operator"

_V1 = "interlock.token_vault.v1"

_TABLE: Mapping[str, Mapping[str, frozenset[str]]] = {
    "InstallService": {
        "StartInstall": _EDGE,
        "CompleteOAuthInstall": _EDGE,
        "CompleteNangoInstall": _EDGE,
        "FindNangoInstall": _EDGE,
        "ReceiveNangoWebhook": _EDGE,
    },
    "TokenService": {
        "ReadBotToken": _WORKER,
        "ReadBotTokens": _WORKER,
        "ReadUserToken": _WORKER,
        "ApplyRevocation": _WORKER,
        "Uninstall": _WORKER,
    },
    "InstallationStoreService": {
        "FindInstallation": _APPS,
        "FindBot": _APPS,
        "SaveInstallation": _APPS,
        "SaveBot": _APPS,
        "DeleteInstallation": _APPS,
        "DeleteBot": _APPS,
    },
    "AuditService": {"ListAuditEvents": _EDGE | _OPERATOR},
    "OperatorService": {
        "ListKeys": _OPERATOR,
        "PromoteKey": _OPERATOR,
        "RewrapKeys": _OPERATOR,
        "RetireKey": _OPERATOR,
        "RotateDataKey": _OPERATOR,
        "RekeyInstallation": _OPERATOR,
        "ShredInstallation": _OPERATOR,
        "SetFreeze": _OPERATOR,
        "ImportToken": _OPERATOR,
        "ExportAudit": _OPERATOR,
        "Backup": _OPERATOR,
        "StageRestore": _OPERATOR,
        "Restore": _OPERATOR,
        "BuryInstallations": _OPERATOR,
        "ReleaseHold": _OPERATOR,
    },
}

CALLERS: CallerTable = {
    f"/{_V1}.{service}/{method}": callers
    for service, methods in _TABLE.items()
    for method, callers in methods.items()
}
"""Who may call what. An RPC that is missing here stops the start."""

# An install talks to Slack and identity; operators' streams walk all rows.
CAPS: Mapping[str, timedelta] = {
    f"/{_V1}.InstallService/CompleteOAuthInstall": timedelta(seconds=30),
    f"/{_V1}.InstallService/CompleteNangoInstall": timedelta(seconds=30),
    f"/{_V1}.TokenService/ApplyRevocation": timedelta(seconds=30),
    f"/{_V1}.TokenService/Uninstall": timedelta(seconds=30),
    f"/{_V1}.OperatorService/ImportToken": timedelta(seconds=30),
    f"/{_V1}.OperatorService/RewrapKeys": timedelta(minutes=30),
    f"/{_V1}.OperatorService/RekeyInstallation": timedelta(seconds=30),
    f"/{_V1}.OperatorService/ExportAudit": timedelta(minutes=30),
    f"/{_V1}.OperatorService/Backup": timedelta(minutes=30),
    f"/{_V1}.OperatorService/Restore": timedelta(minutes=30),
    f"/{_V1}.OperatorService/BuryInstallations": timedelta(seconds=30),
    f"/{_V1}.OperatorService/ReleaseHold": timedelta(minutes=30),
}

# What a read takes from the database, the KMS and the network once its token is there.
_RELEASE_TIME = timedelta(seconds=1)

# Purposes that end in a call of Slack with the bot's token.
_BOT_PURPOSES = (
    AdminPurpose.HEALTH,
    AdminPurpose.CHANNELS,
    AdminPurpose.TEST_MESSAGE,
    AdminPurpose.RESUME,
)

# What Slack says when the app, or a token, has gone.
_UNINSTALLED = "app_uninstalled"
_ENDINGS = frozenset({_UNINSTALLED, "tokens_revoked"})
_OUTCOMES = {
    Outcome.STALE: pb.REVOCATION_OUTCOME_STALE,
    Outcome.PURGED: pb.REVOCATION_OUTCOME_PURGED,
    Outcome.ALREADY_PURGED: pb.REVOCATION_OUTCOME_ALREADY_PURGED,
}

# About 1 kB each: the events of the last minutes, at a few hundred a second.
_MAX_VERIFIED = 4096

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Verified:
    """A grant that verified, good from then to its end.

    Attributes:
        key: The installation that it is about.
        since: When it verified, in epoch seconds; before that it does not count.
        until: The end of the grant or of a key, whichever is first.
    """

    grant: SlackGrant | AdminGrant
    key: InstallationKey
    since: float
    until: float


class GrantReader:
    """Verify grants, and record those that do not pass.

    A grant that verified for a bot is not verified again within its life, nor
    beyond that of any key: what is kept is its SHA-256 and what it said. Its
    time and its purpose are looked at whenever it is shown.

    Args:
        keyset: Public keys of the grants' signers.
        client_id: Of Interlock's own Slack app; grants are about no other.
    """

    def __init__(
        self, keyset: Keyset, *, client_id: ClientId, clock: Clock, refusals: Refusals
    ) -> None:
        self._keyset = keyset
        self._client_id = client_id
        self._clock = clock
        self._refusals = refusals
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._ends_of_keys = [key.retire_after for key in keyset.keys if key.retire_after]

    async def for_bot(self, token: str) -> tuple[InstallationKey, Origin]:
        """Take the installation from a grant that lets its bearer read the bot token.

        Raises:
            InvalidToken: The grant does not verify.
            PurposeNotGranted: An adminGrant of a purpose that needs no bot.
        """
        now, digest = self._clock.now(), hashlib.sha256(token.encode()).digest()
        known = self._recall(digest, now)
        if known is None:
            async with self._recorded():
                known = self._verify(token, now)
            self._keep(digest, known)
        if isinstance(known.grant, AdminGrant):
            async with self._recorded():
                require_purpose(known.grant, *_BOT_PURPOSES)
        return known.key, _origin_of(known.grant)

    async def for_user(self, token: str) -> tuple[InstallationKey, str, Origin]:
        """Take the installation and the Slack user from the grant of an event of theirs.

        Raises:
            InvalidToken: The grant does not verify.
        """
        async with self._recorded():
            grant = verify_slack_grant(token, self._keyset, now=self._clock.now())
            return self._key(grant.workspace), grant.slack_user_id, _origin_of(grant)

    async def for_revocation(self, token: str) -> tuple[InstallationKey, str, Origin]:
        """Take what may have ended from the grant of an event that says so.

        Returns:
            The installation, the event's type, and who asks.

        Raises:
            InvalidToken: The grant does not verify.
            PurposeNotGranted: It is of another event.
        """
        async with self._recorded():
            grant = verify_slack_grant(token, self._keyset, now=self._clock.now())
            if grant.event_type not in _ENDINGS:
                raise PurposeNotGranted
            return self._key(grant.workspace), grant.event_type, _origin_of(grant)

    async def for_uninstall(self, token: str) -> tuple[InstallationKey, Origin]:
        """Take what is to end from an administrator's grant.

        Raises:
            InvalidToken: The grant does not verify.
            PurposeNotGranted: It is for another purpose.
        """
        async with self._recorded():
            grant = verify_admin_grant(token, self._keyset, now=self._clock.now())
            require_purpose(grant, AdminPurpose.UNINSTALL)
            return self._key(grant.workspace), _origin_of(grant)

    async def for_audit(self, token: str) -> InstallationKey:
        """Take the installation from a grant that lets its bearer list the audit log.

        Raises:
            InvalidToken: The grant does not verify.
            PurposeNotGranted: It is for another purpose.
        """
        async with self._recorded():
            grant = verify_admin_grant(token, self._keyset, now=self._clock.now())
            require_purpose(grant, AdminPurpose.AUDIT)
            return self._key(grant.workspace)

    async def for_install(self, token: str) -> InstallAsk:
        """Take the wish to install from an installGrant.

        Raises:
            InvalidToken: The grant does not verify.
        """
        async with self._recorded():
            grant = verify_install_grant(token, self._keyset, now=self._clock.now())
        return InstallAsk(
            grant=Secret(token),
            tenant_id=TenantId(grant.tenant_id),
            user_id=grant.user_id,
            state_sha256=grant.state_sha256,
            source=grant.source,
            expires_at=grant.expires_at,
            origin=call_origin(purpose="install", grant_id=grant.jti, subject=grant.user_id),
        )

    async def note_refusal(self, refusal: ServiceError) -> None:
        """Have a call that proved nothing on record."""
        await self._refusals.note(call_origin(), refusal.reason)

    def named(self, installation: pb.Installation) -> InstallationKey:
        """Take an installation of our own app as a caller names it.

        Raises:
            MalformedInstallationKey: It is not named as Slack names installations.
        """
        return InstallationKey(
            client_id=self._client_id,
            app_id=installation.app_id,
            enterprise_id=installation.enterprise_id,
            team_id=installation.team_id,
        )

    def _recall(self, digest: bytes, now: datetime) -> _Verified | None:
        known = self._verified.get(digest)
        if known is None:
            return None
        if not known.since <= now.timestamp() < known.until:
            del self._verified[digest]
            return None
        self._verified.move_to_end(digest)
        return known

    def _verify(self, token: str, now: datetime) -> _Verified:
        grant = verify_event_or_admin(token, self._keyset, now)
        # Whichever key signed it, it is not taken once a key has retired since.
        since = now.timestamp()
        ends = [end for end in self._ends_of_keys if end > since]
        until = min([grant.expires_at.timestamp(), *ends])
        return _Verified(grant, self._key(grant.workspace), since, until)

    def _keep(self, digest: bytes, verified: _Verified) -> None:
        self._verified[digest] = verified
        if len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)

    @asynccontextmanager
    async def _recorded(self) -> AsyncIterator[None]:
        try:
            yield
        except (InvalidToken, PurposeNotGranted) as refusal:
            problem = refusal.problem if isinstance(refusal, InvalidToken) else ""
            _log.info("grant_refused", reason=refusal.reason, problem=problem)
            await self._refusals.note(call_origin(), refusal.reason)
            raise

    def _key(self, workspace: Workspace) -> InstallationKey:
        return InstallationKey(
            client_id=self._client_id,
            app_id=workspace.app_id,
            enterprise_id=workspace.enterprise_id,
            team_id="" if workspace.is_enterprise_install else workspace.team_id,
        )


class InstallRpc(services.InstallServiceServicer):
    """InstallService.

    Args:
        hints: Verifies Nango's webhooks; None where it has no key for that.
    """

    def __init__(self, installing: Installing, grants: GrantReader, hints: Hints | None) -> None:
        self._installing = installing
        self._grants = grants
        self._hints = hints

    @override
    async def StartInstall(
        self,
        request: pb.StartInstallRequest,
        context: "_Context[pb.StartInstallRequest, pb.StartInstallResponse]",
    ) -> pb.StartInstallResponse:
        ask = await self._grants.for_install(request.grant)
        if ask.source == "direct":
            return pb.StartInstallResponse(authorize_url=await self._installing.start(ask))
        renewed = self._grants.named(request.renews) if request.HasField("renews") else None
        session = await self._installing.start_connecting(ask, renewed)
        return pb.StartInstallResponse(
            connect_session_token=session.token.reveal(),
            connect_link=session.link,
            connect_expires_at=timestamp(session.expires_at),
        )

    @override
    async def CompleteOAuthInstall(
        self,
        request: pb.CompleteOAuthInstallRequest,
        context: "_Context[pb.CompleteOAuthInstallRequest, pb.CompleteOAuthInstallResponse]",
    ) -> pb.CompleteOAuthInstallResponse:
        ask = await self._grants.for_install(request.grant)
        installed = await self._installing.complete(ask, Secret(request.code), request.redirect_uri)
        return pb.CompleteOAuthInstallResponse(
            installation=installation_message(installed.installation),
            is_reinstall=installed.is_reinstall,
            extra_scopes=installed.extra_scopes,
        )

    @override
    async def CompleteNangoInstall(
        self,
        request: pb.CompleteNangoInstallRequest,
        context: "_Context[pb.CompleteNangoInstallRequest, pb.CompleteNangoInstallResponse]",
    ) -> pb.CompleteNangoInstallResponse:
        ask = await self._grants.for_install(request.grant)
        ref = ConnectionRef(request.provider_config_key, request.connection_id)
        installed = await self._installing.complete_connection(ask, ref)
        return pb.CompleteNangoInstallResponse(
            installation=installation_message(installed.installation),
            is_reinstall=installed.is_reinstall,
        )

    @override
    async def FindNangoInstall(
        self,
        request: pb.FindNangoInstallRequest,
        context: "_Context[pb.FindNangoInstallRequest, pb.FindNangoInstallResponse]",
    ) -> pb.FindNangoInstallResponse:
        installed = await self._installing.find_outcome(
            await self._grants.for_install(request.grant)
        )
        return pb.FindNangoInstallResponse(
            installation=installation_message(installed.installation),
            is_reinstall=installed.is_reinstall,
        )

    @override
    async def ReceiveNangoWebhook(
        self,
        request: pb.ReceiveNangoWebhookRequest,
        context: "_Context[pb.ReceiveNangoWebhookRequest, pb.ReceiveNangoWebhookResponse]",
    ) -> pb.ReceiveNangoWebhookResponse:
        if self._hints is None:
            raise NangoNotConfigured
        try:
            hint = self._hints.read(request.body, request.headers)
        except InvalidSignature as refusal:
            await self._grants.note_refusal(refusal)
            raise
        outcome = "NO_CONNECTION"
        if hint is not None:
            outcome = await self._installing.hear_of_connection(
                hint.ref,
                hint.tenant_id,
                call_origin(purpose="webhook"),
                is_renewal=hint.is_renewal,
            )
        _log.info("nango_webhook_heard", outcome=outcome)
        return pb.ReceiveNangoWebhookResponse()


class TokenRpc(services.TokenServiceServicer):
    """TokenService."""

    def __init__(self, vault: TokenVault, uninstalling: Uninstalling, grants: GrantReader) -> None:
        self._vault = vault
        self._uninstalling = uninstalling
        self._grants = grants

    @override
    async def ReadBotToken(
        self,
        request: pb.ReadBotTokenRequest,
        context: "_Context[pb.ReadBotTokenRequest, pb.ReadBotTokenResponse]",
    ) -> pb.ReadBotTokenResponse:
        return _released(await self._vault.read(await self._ask(request, _patience(context))))

    @override
    async def ReadBotTokens(
        self,
        request: pb.ReadBotTokensRequest,
        context: "_Context[pb.ReadBotTokensRequest, pb.ReadBotTokensResponse]",
    ) -> pb.ReadBotTokensResponse:
        asks: list[ReadAsk] = []
        verdicts: list[ReleasedToken | ServiceError | None] = []
        for read in request.reads:
            try:
                asks.append(await self._ask(read, _patience(context)))
                verdicts.append(None)
            except ServiceError as refusal:
                verdicts.append(refusal)
        released = iter(await self._vault.read_many(asks))
        return pb.ReadBotTokensResponse(
            verdicts=[_verdict(verdict or next(released)) for verdict in verdicts]
        )

    @override
    async def ReadUserToken(
        self,
        request: pb.ReadUserTokenRequest,
        context: "_Context[pb.ReadUserTokenRequest, pb.ReadUserTokenResponse]",
    ) -> pb.ReadUserTokenResponse:
        key, user_id, origin = await self._grants.for_user(request.grant)
        ask = ReadAsk(key, origin, request.newer_than_generation, user_id, _patience(context))
        released = await self._vault.read(ask)
        return pb.ReadUserTokenResponse(
            user_token=released.token.reveal(),
            generation=released.generation,
            expires_at=timestamp(released.expires_at),
        )

    @override
    async def ApplyRevocation(
        self,
        request: pb.ApplyRevocationRequest,
        context: "_Context[pb.ApplyRevocationRequest, pb.ApplyRevocationResponse]",
    ) -> pb.ApplyRevocationResponse:
        key, event_type, origin = await self._grants.for_revocation(request.grant)
        applied = await self._uninstalling.apply(
            Revocation(
                key=key,
                is_uninstall=event_type == _UNINSTALLED,
                user_ids=frozenset(request.user_ids),
                names_bot=bool(request.bot_user_ids),
                origin=origin,
            )
        )
        return pb.ApplyRevocationResponse(
            outcome=_OUTCOMES[applied.outcome], users_purged=applied.users_purged
        )

    @override
    async def Uninstall(
        self,
        request: pb.UninstallRequest,
        context: "_Context[pb.UninstallRequest, pb.UninstallResponse]",
    ) -> pb.UninstallResponse:
        key, origin = await self._grants.for_uninstall(request.grant)
        await self._uninstalling.uninstall(key, origin)
        return pb.UninstallResponse()

    async def _ask(self, read: pb.ReadBotTokenRequest, patience: timedelta) -> ReadAsk:
        key, origin = await self._grants.for_bot(read.grant)
        return ReadAsk(key, origin, read.newer_than_generation, patience=patience)


class AuditRpc(services.AuditServiceServicer):
    """AuditService."""

    def __init__(self, vault: TokenVault, grants: GrantReader) -> None:
        self._vault = vault
        self._grants = grants

    @override
    async def ListAuditEvents(
        self,
        request: pb.ListAuditEventsRequest,
        context: "_Context[pb.ListAuditEventsRequest, pb.ListAuditEventsResponse]",
    ) -> pb.ListAuditEventsResponse:
        is_all = not request.grant and current_call().caller == _OPERATOR_NAME
        key = None if is_all else await self._grants.for_audit(request.grant)
        records, following = await self._vault.list_audit_events(
            key, request.page_size, _read_page_token(request.page_token)
        )
        return pb.ListAuditEventsResponse(
            events=[_audit_event(record) for record in records],
            next_page_token=_page_token(following) if following else "",
        )


def add_services(
    server: RpcServer,
    *,
    vault: TokenVault,
    installing: Installing,
    uninstalling: Uninstalling,
    grants: GrantReader,
    operator: services.OperatorServiceServicer,
    store: services.InstallationStoreServiceServicer,
    hints: Hints | None = None,
) -> None:
    """Serve every service of the contract.

    What has no method here is answered UNIMPLEMENTED, after the caller check.
    """
    server.add(
        services.add_InstallServiceServicer_to_server,
        InstallRpc(installing, grants, hints),
        f"{_V1}.InstallService",
    )
    server.add(
        services.add_TokenServiceServicer_to_server,
        TokenRpc(vault, uninstalling, grants),
        f"{_V1}.TokenService",
    )
    server.add(
        services.add_AuditServiceServicer_to_server,
        AuditRpc(vault, grants),
        f"{_V1}.AuditService",
    )
    server.add(
        services.add_InstallationStoreServiceServicer_to_server,
        store,
        f"{_V1}.InstallationStoreService",
    )
    server.add(
        services.add_OperatorServiceServicer_to_server,
        operator,
        f"{_V1}.OperatorService",
    )


async def record_refused_call(refusals: Refusals, refused: Refused) -> None:
    """Record a call that no handler saw, for RpcServer's `on_refused`."""
    origin = Origin(actor=refused.caller, rpc=refused.method, request_id=refused.request_id)
    await refusals.note(origin, refused.reason)


def call_origin(*, purpose: str = "", grant_id: str = "", subject: str = "") -> Origin:
    """Say where the call being served comes from, as the audit log records it."""
    call = current_call()
    return Origin(
        actor=call.caller,
        rpc=call.method,
        purpose=purpose,
        grant_id=grant_id,
        subject=subject,
        request_id=call.request_id,
        trace_id=call.trace_id,
    )


def _origin_of(grant: SlackGrant | AdminGrant) -> Origin:
    if isinstance(grant, SlackGrant):
        return call_origin(
            purpose=grant.event_type, grant_id=grant.jti, subject=grant.slack_user_id
        )
    return call_origin(
        purpose=grant.purpose.value,
        grant_id=grant.jti,
        subject=grant.slack_user_id or grant.user_id,
    )


def _patience(context: "_Context[_Q, _A]") -> timedelta:
    """Return how long the call may wait for a new token and still release it in time."""
    left = timedelta(seconds=context.time_remaining() or 0) - _RELEASE_TIME
    return max(left, timedelta(0))


def _released(token: ReleasedToken) -> pb.ReadBotTokenResponse:
    return pb.ReadBotTokenResponse(
        bot_token=token.token.reveal(),
        generation=token.generation,
        expires_at=timestamp(token.expires_at),
        bot_user_id=token.bot_user_id,
        team_id=token.team_id,
    )


def _verdict(verdict: ReleasedToken | ServiceError) -> pb.ReadBotTokensVerdict:
    if isinstance(verdict, ReleasedToken):
        return pb.ReadBotTokensVerdict(token=_released(verdict))
    refusal = pb.Refusal(code=code_of(verdict).value[0], reason=verdict.reason)
    if verdict.retry_after is not None:
        refusal.retry_after.FromTimedelta(verdict.retry_after)
    return pb.ReadBotTokensVerdict(refusal=refusal)


def installation_message(installation: Installation) -> pb.Installation:
    """Turn an installation into the contract's form."""
    key = installation.key
    return pb.Installation(
        installation_id=str(installation.id),
        enterprise_id=key.enterprise_id,
        team_id=key.team_id,
        is_enterprise_install=key.is_enterprise_install,
        app_id=key.app_id,
        name=installation.name,
        bot_user_id=installation.bot_user_id,
        bot_scopes=installation.bot_scopes,
        installed_at=timestamp(installation.installed_at),
    )


def _audit_event(record: ChainedEvent) -> pb.AuditEvent:
    event, origin = record.event, record.event.origin
    return pb.AuditEvent(
        chain_id=str(record.chain_id),
        seq=record.seq,
        at=timestamp(record.at),
        action=event.action,
        actor=origin.actor,
        rpc=origin.rpc,
        purpose=origin.purpose,
        grant_id=origin.grant_id,
        installation_id=str(event.installation_id or ""),
        enterprise_id=event.enterprise_id,
        team_id=event.team_id,
        token_kind=event.token_kind,
        outcome=event.outcome,
        token_ref=event.token_ref,
        generation=event.generation,
        kek_version=event.kek_version,
        dek_source=event.dek_source,
        request_id=origin.request_id,
        trace_id=origin.trace_id,
        subject=origin.subject,
        count=event.count,
    )


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Turn an instant into the contract's form; None stays absent."""
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def _page_token(cursor: AuditCursor) -> str:
    text = f"{cursor.at.isoformat()}|{cursor.chain_id}|{cursor.seq}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_page_token(token: str) -> AuditCursor | None:
    """Read where a page begins; whose records it shows is the grant's to say."""
    if not token:
        return None
    try:
        at, chain_id, seq = base64.b64decode(token, altchars=b"-_", validate=True).split(b"|")
        cursor = AuditCursor(
            datetime.fromisoformat(at.decode()), UUID(chain_id.decode()), int(seq.decode())
        )
    except (ValueError, binascii.Error):
        raise InvalidPageToken from None
    # Postgres takes no larger number, and a naive instant is nobody's.
    if cursor.at.tzinfo is None or not 0 < cursor.seq < 2**63:
        raise InvalidPageToken
    return cursor
