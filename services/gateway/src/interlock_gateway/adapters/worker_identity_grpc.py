"""Identity over gRPC, as the worker may call it: with the event's grant."""

from grpc import aio
from yarl import URL

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import (
    LinkServiceStub,
    SubjectServiceStub,
)
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret
from interlock_gateway.worker.ports import Agent, UserToken
from interlock_gateway.worker.slack import Profile

_SECONDS = 5.0
LINK_PATH = "/work-apps/slack/link"


class GrpcIdentity:
    """The port `Identity`.

    Args:
        channel: To identity.
        public_url: Where browsers reach the gateway edge.
    """

    def __init__(self, channel: aio.Channel, public_url: URL) -> None:
        self._subjects = SubjectServiceStub(channel)
        self._links = LinkServiceStub(channel)
        self._link_url = public_url.with_path(LINK_PATH)

    async def resolve_user(self, grant: Secret[str]) -> str:
        """Return the linked account's name."""
        request = pb.ResolveUserRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._subjects.ResolveUser(request, timeout=_SECONDS)
        return answer.user_name

    async def create_link(self, grant: Secret[str], profile: Profile) -> Secret[str]:
        """Make a link code and return the URL that redeems it."""
        request = pb.CreateLinkCodeRequest(
            grant=grant.reveal(), slack_display_name=profile.name, slack_email=profile.email
        )
        with remote_errors():
            answer = await self._links.CreateLinkCode(request, timeout=_SECONDS)
        return Secret(str(self._link_url.with_query(code=answer.link_code)))

    async def issue_user_token(
        self, grant: Secret[str], agent: Agent | None, channel: str
    ) -> UserToken:
        """Issue a token for a run, or for browsing."""
        request = pb.IssueUserTokenRequest(
            grant=grant.reveal(),
            project_id=agent.project_id if agent else "",
            agent_id=agent.agent_id if agent else "",
            channel_id=channel,
        )
        with remote_errors():
            answer = await self._subjects.IssueUserToken(request, timeout=_SECONDS)
        return UserToken(Secret(answer.user_token), answer.tenant_id)

    async def resolve_agent(self, grant: Secret[str], channel: str) -> Agent | None:
        """Say which agent answers where nobody chose one."""
        request = pb.ResolveAgentRequest(grant=grant.reveal(), channel_id=channel)
        with remote_errors():
            answer = await self._subjects.ResolveAgent(request, timeout=_SECONDS)
        return Agent(answer.project_id, answer.agent_id) if answer.agent_id else None

    async def renew_grant(self, grant: Secret[str]) -> Secret[str]:
        """Renew an event's grant."""
        request = pb.RenewGrantRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._subjects.RenewGrant(request, timeout=_SECONDS)
        return Secret(answer.grant)

    async def unlink_self(self, grant: Secret[str]) -> bool:
        """Remove the link of the grant's Slack user."""
        request = pb.UnlinkSelfRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._links.UnlinkSelf(request, timeout=_SECONDS)
        return answer.was_linked
