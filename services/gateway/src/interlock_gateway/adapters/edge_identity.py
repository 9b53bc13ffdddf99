"""The identity service over gRPC, as edge may call it."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import (
    AuditServiceStub,
    LinkServiceStub,
    SessionServiceStub,
    WorkspaceServiceStub,
)
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret
from interlock_gateway.edge.ports import (
    AgentDefault,
    LinkOffer,
    Page,
    PeopleEvent,
    Person,
    Redeemed,
    Role,
    SessionProof,
    UserMapping,
    Workspace,
)
from interlock_tokens.grants import AdminPurpose

# A person waits for a page. Identity itself asks the auth server, within its own 5 s.
_SECONDS = 5.0
# Where identity asks the platform about an agent as well, and caps itself at 10 s.
_SECONDS_WITH_PLATFORM = 10.0

_ROLES = {
    pb.ROLE_OWNER: Role.OWNER,
    pb.ROLE_ADMIN: Role.ADMIN,
    pb.ROLE_MEMBER: Role.MEMBER,
}

_PURPOSES = {
    AdminPurpose.HEALTH: pb.ADMIN_PURPOSE_HEALTH,
    AdminPurpose.CHANNELS: pb.ADMIN_PURPOSE_CHANNELS,
    AdminPurpose.TEST_MESSAGE: pb.ADMIN_PURPOSE_TEST_MESSAGE,
    AdminPurpose.UNINSTALL: pb.ADMIN_PURPOSE_UNINSTALL,
    AdminPurpose.AUDIT: pb.ADMIN_PURPOSE_AUDIT,
}


class GrpcIdentity:
    """`interlock.identity.v1` behind edge's port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._sessions = SessionServiceStub(channel)
        self._links = LinkServiceStub(channel)
        self._workspaces = WorkspaceServiceStub(channel)
        self._audit = AuditServiceStub(channel)

    async def authenticate(self, proof: SessionProof) -> Person:
        """Say who is signed in; see `Identity`."""
        request = pb.AuthenticateSessionRequest(session=_session(proof))
        with remote_errors():
            answer = await self._sessions.AuthenticateSession(request, timeout=_SECONDS)
        return Person(
            user_id=answer.user_id,
            name=answer.name,
            email=answer.email,
            tenant_id=answer.tenant_id,
            tenant_name=answer.tenant_name,
            role=_ROLES.get(answer.role, Role.NONE),
            session_ref=answer.session_ref,
        )

    async def issue_install_grant(
        self, proof: SessionProof, state_sha256: str, *, by_nango: bool = False
    ) -> Secret[str]:
        """Sign leave to complete one install; see `Identity`."""
        source = pb.INSTALL_SOURCE_NANGO if by_nango else pb.INSTALL_SOURCE_DIRECT
        request = pb.IssueInstallGrantRequest(
            session=_session(proof), state_sha256=state_sha256, source=source
        )
        with remote_errors():
            answer = await self._sessions.IssueInstallGrant(request, timeout=_SECONDS_WITH_PLATFORM)
        return Secret(answer.grant)

    async def issue_admin_grant(
        self, proof: SessionProof, workspace_id: str, purpose: AdminPurpose
    ) -> tuple[Secret[str], Workspace]:
        """Sign leave to do one thing with one workspace; see `Identity`."""
        request = pb.IssueAdminGrantRequest(
            session=_session(proof), workspace_id=workspace_id, purpose=_PURPOSES[purpose]
        )
        with remote_errors():
            answer = await self._sessions.IssueAdminGrant(request, timeout=_SECONDS)
        return Secret(answer.grant), _workspace(answer.workspace)

    async def list_workspaces(self, proof: SessionProof) -> tuple[Workspace, ...]:
        """List the tenant's workspaces; see `Identity`."""
        request = pb.ListWorkspacesRequest(session=_session(proof))
        with remote_errors():
            answer = await self._workspaces.ListWorkspaces(request, timeout=_SECONDS)
        return tuple(_workspace(each) for each in answer.workspaces)

    async def list_agent_defaults(
        self, proof: SessionProof, workspace_id: str
    ) -> tuple[AgentDefault, ...]:
        """List the default agents of a workspace; see `Identity`."""
        request = pb.GetAgentDefaultsRequest(session=_session(proof), workspace_id=workspace_id)
        with remote_errors():
            answer = await self._workspaces.GetAgentDefaults(request, timeout=_SECONDS)
        return tuple(_default(each) for each in answer.defaults)

    async def set_agent_default(
        self, proof: SessionProof, workspace_id: str, channel_id: str, chosen: AgentDefault | None
    ) -> None:
        """Set the default agent of a place, or remove it; see `Identity`."""
        request = pb.SetAgentDefaultRequest(
            session=_session(proof), workspace_id=workspace_id, channel_id=channel_id
        )
        if chosen is not None:
            request.agent_default.channel_id = channel_id
            request.agent_default.project_id = chosen.project_id
            request.agent_default.agent_id = chosen.agent_id
            request.agent_default.grant_access_to_members = chosen.grants_access
        with remote_errors():
            await self._workspaces.SetAgentDefault(request, timeout=_SECONDS_WITH_PLATFORM)

    async def describe_link_code(self, proof: SessionProof, code: Secret[str]) -> LinkOffer:
        """Say what a code would do; see `Identity`."""
        request = pb.DescribeLinkCodeRequest(session=_session(proof), link_code=code.reveal())
        with remote_errors():
            answer = await self._links.DescribeLinkCode(request, timeout=_SECONDS)
        return LinkOffer(
            workspace=_workspace(answer.workspace),
            slack_user_id=answer.slack_user_id,
            slack_display_name=answer.slack_display_name,
            slack_email=answer.slack_email,
            emails_differ=answer.emails_differ,
            expires_at=_instant(answer.expires_at),
            is_email_refused=answer.email_refused,
        )

    async def redeem_link_code(
        self, proof: SessionProof, code: Secret[str], *, email_difference_confirmed: bool
    ) -> Redeemed:
        """Link the code's Slack user to the account; see `Identity`."""
        request = pb.RedeemLinkCodeRequest(
            session=_session(proof),
            link_code=code.reveal(),
            email_difference_confirmed=email_difference_confirmed,
        )
        with remote_errors():
            answer = await self._links.RedeemLinkCode(request, timeout=_SECONDS)
        return Redeemed(
            resume_grant=Secret(answer.resume_grant),
            workspace=_workspace(answer.workspace),
            slack_user_id=answer.slack_user_id,
            was_linked=answer.was_linked,
        )

    async def list_mappings(
        self, proof: SessionProof, workspace_id: str, page_token: str, *, page_size: int = 0
    ) -> Page[UserMapping]:
        """List linked users; see `Identity`."""
        request = pb.ListUserMappingsRequest(
            session=_session(proof),
            workspace_id=workspace_id,
            page_token=page_token,
            page_size=page_size,
        )
        with remote_errors():
            answer = await self._links.ListUserMappings(request, timeout=_SECONDS)
        return Page(tuple(_mapping(each) for each in answer.mappings), answer.next_page_token)

    async def unlink(self, proof: SessionProof, mapping_id: str) -> None:
        """Remove a link; see `Identity`."""
        request = pb.UnlinkRequest(session=_session(proof), mapping_id=mapping_id)
        with remote_errors():
            await self._links.Unlink(request, timeout=_SECONDS)

    async def list_people_events(
        self, grant: Secret[str], event: str, page_token: str
    ) -> Page[PeopleEvent]:
        """List what a workspace's people did; see `Identity`."""
        request = pb.ListAuditEventsRequest(
            grant=grant.reveal(), event=event, page_token=page_token
        )
        with remote_errors():
            answer = await self._audit.ListAuditEvents(request, timeout=_SECONDS)
        return Page(tuple(_event(each) for each in answer.events), answer.next_page_token)


def _session(proof: SessionProof) -> pb.BrowserSession:
    return pb.BrowserSession(cookie=proof.cookie.reveal(), client_address=proof.client_address)


def _workspace(message: pb.Workspace) -> Workspace:
    return Workspace(
        workspace_id=message.workspace_id,
        slack_team_id=message.slack_team_id,
        slack_enterprise_id=message.slack_enterprise_id,
        is_enterprise_install=message.is_enterprise_install,
        name=message.name,
        status=message.status,
        created_at=_instant(message.created_at),
        linked_users=message.linked_users,
        slack_app_id=message.slack_app_id,
        missing_scopes=tuple(message.missing_scopes),
        extra_scopes=tuple(message.extra_scopes),
    )


def _default(message: pb.AgentDefault) -> AgentDefault:
    return AgentDefault(
        channel_id=message.channel_id,
        project_id=message.project_id,
        agent_id=message.agent_id,
        grants_access=message.grant_access_to_members,
    )


def _mapping(message: pb.UserMapping) -> UserMapping:
    return UserMapping(
        mapping_id=message.mapping_id,
        slack_team_id=message.slack_team_id,
        slack_user_id=message.slack_user_id,
        user_id=message.user_id,
        user_name=message.user_name,
        user_email=message.user_email,
        linked_at=_instant(message.linked_at),
        last_used_at=_instant(message.last_used_at) if message.HasField("last_used_at") else None,
    )


def _event(message: pb.AuditEvent) -> PeopleEvent:
    return PeopleEvent(
        number=message.number,
        at=_instant(message.at),
        event=message.event,
        outcome=message.outcome,
        count=message.count,
        caller=message.caller,
        rpc=message.rpc,
        request_id=message.request_id,
        grant_id=message.grant_id,
        actor_id=message.actor_id,
        actor_name=message.actor_name,
        workspace_id=message.workspace_id,
        slack_enterprise_id=message.slack_enterprise_id,
        slack_team_id=message.slack_team_id,
        slack_user_id=message.slack_user_id,
        user_id=message.user_id,
        user_name=message.user_name,
        token_id=message.token_id,
        purpose=message.purpose,
        project_id=message.project_id,
        agent_id=message.agent_id,
        channel_id=message.channel_id,
    )


def _instant(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
