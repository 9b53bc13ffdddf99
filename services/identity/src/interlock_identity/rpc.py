"""Identity's six gRPC services: proto in, proto out.

Whoever a call is about comes from what it proves: the auth server's cookie, or
a grant that is verified here. Use cases see only what was proved.
"""

# ruff: noqa: N802, ARG002 - The generated base classes name the methods and their arguments.

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1 import identity_pb2_grpc as services
from interlock_chassis.callers import CallerTable
from interlock_chassis.clock import Clock
from interlock_chassis.errors import InvalidArgument, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import Refused, RpcServer, current_call
from interlock_identity.auditing import Attempt, AuditTrail
from interlock_identity.domain.agents import Agent, AgentDefault, AgentSource
from interlock_identity.domain.audit import AuditEvent, Origin, RecordedEvent, Sought
from interlock_identity.domain.linking import (
    MappingCursor,
    MappingId,
    UserMapping,
    hash_link_code,
)
from interlock_identity.domain.people import Role, Session, SessionProof, TenantId, UserId
from interlock_identity.domain.requester import requester_of, requester_of_event
from interlock_identity.domain.workspaces import (
    CountedWorkspace,
    MalformedWorkspaceKey,
    NangoConnection,
    ScopeDrift,
    Workspace,
    WorkspaceId,
    WorkspaceKey,
)
from interlock_identity.issuing import Errand, Issuing, UserNotLinked
from interlock_identity.linking import Linking
from interlock_identity.noticing import Noticing
from interlock_identity.offboarding import Offboarding
from interlock_identity.reading import Part, Reading
from interlock_identity.sessions import Sessions
from interlock_identity.workspaces import InstallFacts, Workspaces
from interlock_tokens.errors import PurposeNotGranted
from interlock_tokens.grants import (
    AdminGrant,
    AdminPurpose,
    InstallGrant,
    InstallSource,
    SlackGrant,
)
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import (
    verify_admin_grant,
    verify_event_or_admin,
    verify_install_grant,
    verify_slack_grant,
)

if TYPE_CHECKING:
    # Generic in the stubs only.
    _Context = aio.ServicerContext[Any, Any]
else:
    _Context = aio.ServicerContext

# Dead letters wait this long; their grants have expired, which is what renewing is for. Whether
# the event itself is young enough is another question, with an answer of its own.
_RENEWABLE_AFTER_EXPIRY = timedelta(days=7)

# Of a record's number; 2**63 has one more.
_MAX_DIGITS = 18

_EDGE = frozenset({"gateway-edge"})
_WORKER = frozenset({"gateway-worker"})
_VAULT = frozenset({"token-vault"})
_OPERATOR_NAME = "operator"
_OPERATOR = frozenset({_OPERATOR_NAME})

_SESSION_SERVICE = "interlock.identity.v1.SessionService"
_LINK_SERVICE = "interlock.identity.v1.LinkService"
_WORKSPACE_SERVICE = "interlock.identity.v1.WorkspaceService"
_SUBJECT_SERVICE = "interlock.identity.v1.SubjectService"
_OFFBOARDING_SERVICE = "interlock.identity.v1.OffboardingService"
_AUDIT_SERVICE = "interlock.identity.v1.AuditService"

CALLERS: CallerTable = {
    f"/{_SESSION_SERVICE}/AuthenticateSession": _EDGE,
    f"/{_SESSION_SERVICE}/IssueAdminGrant": _EDGE,
    f"/{_SESSION_SERVICE}/IssueInstallGrant": _EDGE,
    f"/{_SESSION_SERVICE}/IssueImportGrant": _OPERATOR,
    f"/{_LINK_SERVICE}/CreateLinkCode": _WORKER,
    f"/{_LINK_SERVICE}/DescribeLinkCode": _EDGE,
    f"/{_LINK_SERVICE}/RedeemLinkCode": _EDGE,
    f"/{_LINK_SERVICE}/ListUserMappings": _EDGE,
    f"/{_LINK_SERVICE}/Unlink": _EDGE,
    f"/{_LINK_SERVICE}/UnlinkSelf": _WORKER,
    f"/{_WORKSPACE_SERVICE}/ClaimWorkspace": _VAULT,
    f"/{_WORKSPACE_SERVICE}/ReleaseWorkspace": _VAULT,
    f"/{_WORKSPACE_SERVICE}/ReportWorkspace": _VAULT,
    f"/{_WORKSPACE_SERVICE}/ReportScopes": _VAULT,
    f"/{_WORKSPACE_SERVICE}/TakeNotices": _VAULT,
    f"/{_WORKSPACE_SERVICE}/ListWorkspaces": _EDGE,
    f"/{_WORKSPACE_SERVICE}/GetAgentDefaults": _EDGE,
    f"/{_WORKSPACE_SERVICE}/SetAgentDefault": _EDGE,
    f"/{_SUBJECT_SERVICE}/ResolveUser": _WORKER,
    f"/{_SUBJECT_SERVICE}/IssueUserToken": _WORKER,
    f"/{_SUBJECT_SERVICE}/ResolveAgent": _WORKER,
    f"/{_SUBJECT_SERVICE}/RenewGrant": _WORKER,
    f"/{_OFFBOARDING_SERVICE}/ForgetUser": _OPERATOR,
    f"/{_OFFBOARDING_SERVICE}/ForgetOrganization": _OPERATOR,
    f"/{_AUDIT_SERVICE}/ListAuditEvents": _EDGE | _OPERATOR,
}
"""Who may call what; the grants and cookies come on top."""

CAPS = {
    # The auth server is asked three things, and then the agents platform.
    f"/{_WORKSPACE_SERVICE}/SetAgentDefault": timedelta(seconds=10),
    f"/{_SESSION_SERVICE}/IssueInstallGrant": timedelta(seconds=10),
    # A rare fact may lie far back.
    f"/{_AUDIT_SERVICE}/ListAuditEvents": timedelta(seconds=30),
}
"""How long an RPC may take, where that is not the 5 s of all others."""

_PURPOSES = {
    pb.ADMIN_PURPOSE_HEALTH: AdminPurpose.HEALTH,
    pb.ADMIN_PURPOSE_CHANNELS: AdminPurpose.CHANNELS,
    pb.ADMIN_PURPOSE_TEST_MESSAGE: AdminPurpose.TEST_MESSAGE,
    pb.ADMIN_PURPOSE_UNINSTALL: AdminPurpose.UNINSTALL,
    pb.ADMIN_PURPOSE_REPLAY: AdminPurpose.REPLAY,
    pb.ADMIN_PURPOSE_AUDIT: AdminPurpose.AUDIT,
}
_INSTALL_SOURCES: dict[pb.InstallSource.ValueType, InstallSource] = {
    pb.INSTALL_SOURCE_DIRECT: "direct",
    pb.INSTALL_SOURCE_NANGO: "nango",
}
_ROLES = {
    Role.OWNER: pb.ROLE_OWNER,
    Role.ADMIN: pb.ROLE_ADMIN,
    Role.MEMBER: pb.ROLE_MEMBER,
    Role.NONE: pb.ROLE_UNSPECIFIED,
}
_AGENT_SOURCES = {
    AgentSource.NOWHERE: pb.AGENT_SOURCE_UNSPECIFIED,
    AgentSource.CHANNEL: pb.AGENT_SOURCE_CHANNEL,
    AgentSource.WORKSPACE: pb.AGENT_SOURCE_WORKSPACE,
    AgentSource.OPERATOR: pb.AGENT_SOURCE_OPERATOR,
}


class InvalidPageToken(InvalidArgument):
    """The page token is not one that this service gave out."""

    reason = "INVALID_PAGE_TOKEN"


class _Door:
    """How callers prove whom they ask for, and where their refusals are recorded."""

    def __init__(
        self, sessions: Sessions, trail: AuditTrail, grant_public_keys: Keyset, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._trail = trail
        self._keys = grant_public_keys
        self._clock = clock

    def attempt(
        self, answer: type[ServiceError] | None = None
    ) -> AbstractAsyncContextManager[Attempt]:
        """Begin a call whose refusal is recorded; see `AuditTrail`."""
        return self._trail.attempt(_origin(), answer)

    async def session(self, shown: pb.BrowserSession) -> Session:
        """Ask the auth server who is signed in."""
        return await self._sessions.authenticate(_proof(shown))

    def event_or_admin(self, token: str) -> SlackGrant | AdminGrant:
        """Verify a grant that speaks for a Slack user."""
        return verify_event_or_admin(token, self._keys, self._clock.now())

    def event(self, token: str) -> SlackGrant:
        """Verify an event's grant; a genuine adminGrant is told apart from a forged one."""
        grant = self.event_or_admin(token)
        if isinstance(grant, AdminGrant):
            raise PurposeNotGranted
        return grant

    def expired_event(self, token: str) -> SlackGrant:
        """Verify an event's grant, expired or not."""
        now = self._clock.now()
        return verify_slack_grant(token, self._keys, now=now, allow_expired=_RENEWABLE_AFTER_EXPIRY)

    def admin(self, token: str) -> AdminGrant:
        """Verify an adminGrant; its purpose is for the use case."""
        return verify_admin_grant(token, self._keys, now=self._clock.now())

    def install(self, token: str) -> InstallGrant:
        """Verify an installGrant."""
        return verify_install_grant(token, self._keys, now=self._clock.now())


class SessionRpc(services.SessionServiceServicer):
    """Serve `SessionService`; its contract is in the proto."""

    def __init__(self, door: _Door, sessions: Sessions, workspaces: Workspaces) -> None:
        self._door = door
        self._sessions = sessions
        self._workspaces = workspaces

    async def AuthenticateSession(
        self, request: pb.AuthenticateSessionRequest, context: _Context
    ) -> pb.AuthenticateSessionResponse:
        """Say who is signed in."""
        session = await self._door.session(request.session)
        return pb.AuthenticateSessionResponse(
            user_id=session.person.user_id,
            name=session.person.name,
            email=session.person.email,
            tenant_id=session.tenant.tenant_id,
            tenant_name=session.tenant.name,
            role=_ROLES[session.role],
            session_ref=session.ref,
        )

    async def IssueAdminGrant(
        self, request: pb.IssueAdminGrantRequest, context: _Context
    ) -> pb.IssueAdminGrantResponse:
        """Sign an adminGrant for one purpose on one workspace."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            grant, workspace = await self._sessions.issue_admin_grant(
                session,
                WorkspaceId(request.workspace_id),
                _PURPOSES[request.purpose],
                attempt.origin,
            )
        return pb.IssueAdminGrantResponse(
            grant=grant.reveal(), workspace=_show_workspace(workspace)
        )

    async def IssueInstallGrant(
        self, request: pb.IssueInstallGrantRequest, context: _Context
    ) -> pb.IssueInstallGrantResponse:
        """Sign an installGrant for the session's tenant."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            grant = await self._sessions.issue_install_grant(
                session, request.state_sha256, _INSTALL_SOURCES[request.source], attempt.origin
            )
        await self._workspaces.check_operator_agent(session, _proof(request.session))
        return pb.IssueInstallGrantResponse(
            grant=grant.reveal(), tenant_id=session.tenant.tenant_id
        )

    async def IssueImportGrant(
        self, request: pb.IssueImportGrantRequest, context: _Context
    ) -> pb.IssueImportGrantResponse:
        """Sign an installGrant for a tenant whose workspace is moved in."""
        grant = await self._sessions.issue_import_grant(
            TenantId(request.tenant_id),
            UserId(request.user_id),
            _INSTALL_SOURCES[request.source],
            _origin(),
        )
        return pb.IssueImportGrantResponse(grant=grant.reveal())


class LinkRpc(services.LinkServiceServicer):
    """Serve `LinkService`; its contract is in the proto."""

    def __init__(self, door: _Door, linking: Linking) -> None:
        self._door = door
        self._linking = linking

    async def CreateLinkCode(
        self, request: pb.CreateLinkCodeRequest, context: _Context
    ) -> pb.CreateLinkCodeResponse:
        """Make a link code for the grant's Slack user."""
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.event(request.grant))
            code, expires_at = await self._linking.create_link_code(
                requester_of_event(grant), request.slack_display_name, request.slack_email
            )
        return pb.CreateLinkCodeResponse(link_code=code.reveal(), expires_at=_timestamp(expires_at))

    async def DescribeLinkCode(
        self, request: pb.DescribeLinkCodeRequest, context: _Context
    ) -> pb.DescribeLinkCodeResponse:
        """Say what redeeming a code would do."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            offer = await self._linking.describe(session, hash_link_code(request.link_code))
        return pb.DescribeLinkCodeResponse(
            workspace=_show_workspace(offer.code.workspace),
            slack_user_id=offer.code.slack_user.user_id,
            slack_display_name=offer.code.display_name,
            slack_email=offer.code.email,
            emails_differ=offer.emails_differ,
            expires_at=_timestamp(offer.code.expires_at),
            email_refused=offer.is_email_refused,
        )

    async def RedeemLinkCode(
        self, request: pb.RedeemLinkCodeRequest, context: _Context
    ) -> pb.RedeemLinkCodeResponse:
        """Link the code's Slack user to the session's account."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            redeemed = await self._linking.redeem(
                session,
                hash_link_code(request.link_code),
                email_difference_confirmed=request.email_difference_confirmed,
                origin=attempt.origin,
            )
        return pb.RedeemLinkCodeResponse(
            resume_grant=redeemed.resume_grant.reveal(),
            workspace=_show_workspace(redeemed.workspace),
            slack_user_id=redeemed.slack_user.user_id,
            was_linked=redeemed.was_linked,
        )

    async def ListUserMappings(
        self, request: pb.ListUserMappingsRequest, context: _Context
    ) -> pb.ListUserMappingsResponse:
        """List the linked users of a workspace."""
        after = _cursor(request.page_token)
        session = await self._door.session(request.session)
        mappings, following = await self._linking.list_mappings(
            session, WorkspaceId(request.workspace_id), request.page_size, after
        )
        return pb.ListUserMappingsResponse(
            mappings=[_show_mapping(each) for each in mappings],
            next_page_token=_page_token(following),
        )

    async def Unlink(self, request: pb.UnlinkRequest, context: _Context) -> pb.UnlinkResponse:
        """Remove a mapping, as its account or as an administrator."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            await self._linking.unlink(session, MappingId(request.mapping_id), attempt.origin)
        return pb.UnlinkResponse()

    async def UnlinkSelf(
        self, request: pb.UnlinkSelfRequest, context: _Context
    ) -> pb.UnlinkSelfResponse:
        """Remove the mapping of the grant's Slack user."""
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.event(request.grant))
            was_linked = await self._linking.unlink_self(requester_of_event(grant), attempt.origin)
        return pb.UnlinkSelfResponse(was_linked=was_linked)


class WorkspaceRpc(services.WorkspaceServiceServicer):
    """Serve `WorkspaceService`; its contract is in the proto."""

    def __init__(self, door: _Door, workspaces: Workspaces, noticing: Noticing) -> None:
        self._door = door
        self._workspaces = workspaces
        self._noticing = noticing

    async def ClaimWorkspace(
        self, request: pb.ClaimWorkspaceRequest, context: _Context
    ) -> pb.ClaimWorkspaceResponse:
        """Claim a workspace for the install grant's tenant; without one, move a claim."""
        async with self._door.attempt() as attempt:
            if not request.grant:
                moved = await self._workspaces.move(_facts(request), attempt.origin)
                return pb.ClaimWorkspaceResponse(workspace=_show_counted(moved), was_claimed=True)
            grant = attempt.shows_grant(self._door.install(request.grant))
            claimed = await self._workspaces.claim(grant, _facts(request), attempt.origin)
        return pb.ClaimWorkspaceResponse(
            workspace=_show_counted(claimed.workspace), was_claimed=claimed.was_claimed
        )

    async def ReleaseWorkspace(
        self, request: pb.ReleaseWorkspaceRequest, context: _Context
    ) -> pb.ReleaseWorkspaceResponse:
        """End a claim."""
        key = WorkspaceKey(request.slack_enterprise_id, request.slack_team_id, app_id="")
        installation_id = UUID(request.installation_id)
        was_claimed = await self._workspaces.release(key, installation_id, _origin())
        return pb.ReleaseWorkspaceResponse(was_claimed=was_claimed)

    async def ReportWorkspace(
        self, request: pb.ReportWorkspaceRequest, context: _Context
    ) -> pb.ReportWorkspaceResponse:
        """Note whether a claim needs a reinstall."""
        key = WorkspaceKey(request.slack_enterprise_id, request.slack_team_id, app_id="")
        was_claimed = await self._workspaces.report(
            key,
            UUID(request.installation_id),
            _origin(),
            needs_reinstall=request.needs_reinstall,
        )
        return pb.ReportWorkspaceResponse(was_claimed=was_claimed)

    async def ReportScopes(
        self, request: pb.ReportScopesRequest, context: _Context
    ) -> pb.ReportScopesResponse:
        """Note how a claim's scopes differ from those asked for."""
        key = WorkspaceKey(request.slack_enterprise_id, request.slack_team_id, app_id="")
        drift = ScopeDrift(tuple(request.missing_scopes), tuple(request.extra_scopes))
        was_claimed = await self._workspaces.report_scopes(
            key, UUID(request.installation_id), drift, _origin()
        )
        return pb.ReportScopesResponse(was_claimed=was_claimed)

    async def TakeNotices(
        self, request: pb.TakeNoticesRequest, context: _Context
    ) -> pb.TakeNoticesResponse:
        """Hand out the notices that are due."""
        notices = await self._noticing.take(_origin())
        return pb.TakeNoticesResponse(
            notices=[
                pb.Notice(
                    installation_id=str(each.installation_id), slack_user_id=each.slack_user_id
                )
                for each in notices
            ]
        )

    async def ListWorkspaces(
        self, request: pb.ListWorkspacesRequest, context: _Context
    ) -> pb.ListWorkspacesResponse:
        """List the workspaces of the session's tenant."""
        session = await self._door.session(request.session)
        found = await self._workspaces.list_workspaces(session)
        return pb.ListWorkspacesResponse(workspaces=[_show_counted(each) for each in found])

    async def GetAgentDefaults(
        self, request: pb.GetAgentDefaultsRequest, context: _Context
    ) -> pb.GetAgentDefaultsResponse:
        """Say which agents answer by default in a workspace."""
        session = await self._door.session(request.session)
        found = await self._workspaces.list_agent_defaults(
            session, WorkspaceId(request.workspace_id)
        )
        return pb.GetAgentDefaultsResponse(defaults=[_show_default(each) for each in found])

    async def SetAgentDefault(
        self, request: pb.SetAgentDefaultRequest, context: _Context
    ) -> pb.SetAgentDefaultResponse:
        """Set or remove a default agent."""
        async with self._door.attempt() as attempt:
            session = attempt.shows_session(await self._door.session(request.session))
            chosen = _default(request.agent_default) if request.HasField("agent_default") else None
            await self._workspaces.set_agent_default(
                session,
                _proof(request.session),
                WorkspaceId(request.workspace_id),
                request.channel_id,
                chosen=chosen,
                origin=attempt.origin,
            )
        return pb.SetAgentDefaultResponse()


class SubjectRpc(services.SubjectServiceServicer):
    """Serve `SubjectService`; its contract is in the proto."""

    def __init__(self, door: _Door, issuing: Issuing) -> None:
        self._door = door
        self._issuing = issuing

    async def ResolveUser(
        self, request: pb.ResolveUserRequest, context: _Context
    ) -> pb.ResolveUserResponse:
        """Say whether the grant's Slack user is linked."""
        async with self._door.attempt(answer=UserNotLinked) as attempt:
            grant = attempt.shows_grant(self._door.event_or_admin(request.grant))
            mapping = await self._issuing.resolve_user(requester_of(grant))
        return pb.ResolveUserResponse(user_name=mapping.person.name)

    async def IssueUserToken(
        self, request: pb.IssueUserTokenRequest, context: _Context
    ) -> pb.IssueUserTokenResponse:
        """Issue a slackUser token for the grant's Slack user."""
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.event_or_admin(request.grant))
            chosen = request.project_id and request.agent_id
            agent = Agent(request.project_id, request.agent_id) if chosen else None
            issued = await self._issuing.issue_user_token(
                requester_of(grant), Errand(agent, request.channel_id), attempt.origin
            )
        return pb.IssueUserTokenResponse(
            user_token=issued.token.reveal(),
            expires_at=_timestamp(issued.expires_at),
            tenant_id=issued.tenant_id,
        )

    async def ResolveAgent(
        self, request: pb.ResolveAgentRequest, context: _Context
    ) -> pb.ResolveAgentResponse:
        """Say which agent answers where nobody chose one."""
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.event_or_admin(request.grant))
            resolved = await self._issuing.resolve_agent(requester_of(grant), request.channel_id)
        agent = resolved.agent or Agent("", "")
        return pb.ResolveAgentResponse(
            project_id=agent.project_id,
            agent_id=agent.agent_id,
            source=_AGENT_SOURCES[resolved.source],
        )

    async def RenewGrant(
        self, request: pb.RenewGrantRequest, context: _Context
    ) -> pb.RenewGrantResponse:
        """Renew the grant of an event that is still open."""
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.expired_event(request.grant))
            renewed, expires_at = await self._issuing.renew_grant(grant, attempt.origin)
        return pb.RenewGrantResponse(grant=renewed.reveal(), expires_at=_timestamp(expires_at))


class OffboardingRpc(services.OffboardingServiceServicer):
    """Serve `OffboardingService`; its contract is in the proto."""

    def __init__(self, offboarding: Offboarding) -> None:
        self._offboarding = offboarding

    async def ForgetUser(
        self, request: pb.ForgetUserRequest, context: _Context
    ) -> pb.ForgetUserResponse:
        """Remove every trace of a platform user."""
        removed = await self._offboarding.forget_user(UserId(request.user_id), _origin())
        return pb.ForgetUserResponse(mappings_removed=removed)

    async def ForgetOrganization(
        self, request: pb.ForgetOrganizationRequest, context: _Context
    ) -> pb.ForgetOrganizationResponse:
        """Remove every trace of an organization."""
        tenant_id = TenantId(request.tenant_id)
        removed = await self._offboarding.forget_organization(tenant_id, _origin())
        return pb.ForgetOrganizationResponse(mappings_removed=removed)


class AuditRpc(services.AuditServiceServicer):
    """Serve `AuditService`; its contract is in the proto."""

    def __init__(self, door: _Door, reading: Reading) -> None:
        self._door = door
        self._reading = reading

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: _Context
    ) -> pb.ListAuditEventsResponse:
        """List the record, newest first: all of it, or what a grant opens."""
        sought = Sought(tenant_id=request.tenant_id, user_id=request.user_id, event=request.event)
        before, size = _number(request.page_token), request.page_size
        if not request.grant and current_call().caller == _OPERATOR_NAME:
            return _show_part(await self._reading.read_all(sought, before=before, size=size))
        async with self._door.attempt() as attempt:
            grant = attempt.shows_grant(self._door.admin(request.grant))
            part = await self._reading.read_workspace(grant, sought, before=before, size=size)
        return _show_part(part)


def record_refusals(trail: AuditTrail) -> Callable[[Refused], Awaitable[None]]:
    """Return what records the callers that the server refuses before any RPC runs."""

    async def note(refused: Refused) -> None:
        origin = Origin(refused.caller, refused.method, refused.request_id)
        await trail.note(AuditEvent("call.refused", origin, outcome=refused.reason))

    return note


def add_services(
    server: RpcServer,
    *,
    sessions: Sessions,
    linking: Linking,
    workspaces: Workspaces,
    issuing: Issuing,
    noticing: Noticing,
    offboarding: Offboarding,
    trail: AuditTrail,
    reading: Reading,
    grant_public_keys: Keyset,
    clock: Clock,
) -> None:
    """Add identity's services to a server that was made with `CALLERS`."""
    door = _Door(sessions, trail, grant_public_keys, clock)
    server.add(
        services.add_SessionServiceServicer_to_server,
        SessionRpc(door, sessions, workspaces),
        _SESSION_SERVICE,
    )
    server.add(services.add_LinkServiceServicer_to_server, LinkRpc(door, linking), _LINK_SERVICE)
    server.add(
        services.add_WorkspaceServiceServicer_to_server,
        WorkspaceRpc(door, workspaces, noticing),
        _WORKSPACE_SERVICE,
    )
    server.add(
        services.add_SubjectServiceServicer_to_server, SubjectRpc(door, issuing), _SUBJECT_SERVICE
    )
    server.add(
        services.add_OffboardingServiceServicer_to_server,
        OffboardingRpc(offboarding),
        _OFFBOARDING_SERVICE,
    )
    server.add(services.add_AuditServiceServicer_to_server, AuditRpc(door, reading), _AUDIT_SERVICE)


def _origin() -> Origin:
    call = current_call()
    return Origin(call.caller, call.method, call.request_id)


def _proof(session: pb.BrowserSession) -> SessionProof:
    return SessionProof(Secret(session.cookie), session.client_address)


def _facts(request: pb.ClaimWorkspaceRequest) -> InstallFacts:
    if request.is_enterprise_install != (not request.slack_team_id):
        raise MalformedWorkspaceKey("an org-wide install has no team, and every other has one")
    nango = None
    if request.nango_connection_id:
        nango = NangoConnection(request.nango_provider_config_key, request.nango_connection_id)
    return InstallFacts(
        key=WorkspaceKey(request.slack_enterprise_id, request.slack_team_id, request.slack_app_id),
        name=request.name,
        installation_id=UUID(request.installation_id),
        nango=nango,
    )


def _default(message: pb.AgentDefault) -> AgentDefault:
    return AgentDefault(
        channel_id=message.channel_id,
        agent=Agent(message.project_id, message.agent_id),
        grants_access=message.grant_access_to_members,
    )


def _show_default(default: AgentDefault) -> pb.AgentDefault:
    return pb.AgentDefault(
        channel_id=default.channel_id,
        project_id=default.agent.project_id,
        agent_id=default.agent.agent_id,
        grant_access_to_members=default.grants_access,
    )


def _show_counted(counted: CountedWorkspace) -> pb.Workspace:
    shown = _show_workspace(counted.workspace)
    shown.linked_users = counted.linked_users
    return shown


def _show_workspace(workspace: Workspace) -> pb.Workspace:
    return pb.Workspace(
        workspace_id=workspace.workspace_id,
        slack_team_id=workspace.key.slot,
        slack_enterprise_id=workspace.key.enterprise_id,
        is_enterprise_install=workspace.key.is_enterprise_install,
        slack_app_id=workspace.key.app_id,
        name=workspace.name,
        status=workspace.status.value,
        created_at=_timestamp(workspace.created_at),
        missing_scopes=workspace.drift.missing,
        extra_scopes=workspace.drift.extra,
    )


def _show_mapping(mapping: UserMapping) -> pb.UserMapping:
    return pb.UserMapping(
        mapping_id=mapping.mapping_id,
        slack_team_id=mapping.slack_user.team_id,
        slack_user_id=mapping.slack_user.user_id,
        user_id=mapping.person.user_id,
        user_name=mapping.person.name,
        user_email=mapping.person.email,
        linked_at=_timestamp(mapping.linked_at),
        last_used_at=_timestamp(mapping.last_used_at) if mapping.last_used_at else None,
    )


def _show_part(part: Part) -> pb.ListAuditEventsResponse:
    return pb.ListAuditEventsResponse(
        events=[_show_event(each, part.names) for each in part.events],
        next_page_token=str(part.following) if part.following else "",
    )


def _show_event(recorded: RecordedEvent, names: Mapping[UserId, str]) -> pb.AuditEvent:
    event, origin = recorded.event, recorded.event.origin
    return pb.AuditEvent(
        number=recorded.number,
        at=_timestamp(recorded.at),
        event=event.event,
        outcome=event.outcome,
        count=event.count,
        caller=origin.caller,
        rpc=origin.rpc,
        request_id=origin.request_id,
        grant_id=origin.grant_jti,
        actor_id=origin.actor_id,
        tenant_id=event.tenant_id,
        workspace_id=event.workspace_id,
        slack_enterprise_id=event.slack_enterprise_id,
        slack_team_id=event.slack_team_id,
        slack_user_id=event.slack_user_id,
        user_id=event.user_id,
        token_id=event.token_jti,
        purpose=event.purpose,
        project_id=event.project_id,
        agent_id=event.agent_id,
        channel_id=event.channel_id,
        actor_name=names.get(UserId(origin.actor_id), ""),
        user_name=names.get(UserId(event.user_id), ""),
    )


def _number(page_token: str) -> int | None:
    if not page_token:
        return None
    if not (page_token.isascii() and page_token.isdigit() and len(page_token) <= _MAX_DIGITS):
        raise InvalidPageToken
    return int(page_token)


def _cursor(page_token: str) -> MappingCursor | None:
    if not page_token:
        return None
    try:
        at, mapping_id = json.loads(base64.urlsafe_b64decode(page_token.encode("ascii")))
        linked_at = datetime.fromisoformat(at)
    except (ValueError, TypeError, RecursionError):
        raise InvalidPageToken from None
    if linked_at.tzinfo is None or not isinstance(mapping_id, str):
        raise InvalidPageToken
    return MappingCursor(linked_at, MappingId(mapping_id))


def _page_token(cursor: MappingCursor | None) -> str:
    if cursor is None:
        return ""
    text = json.dumps([cursor.linked_at.isoformat(), cursor.mapping_id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _timestamp(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp
