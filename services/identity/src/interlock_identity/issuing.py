"""The account behind a Slack event, and short-lived tokens that act as it.

Whether the account still belongs to the tenant is asked before every token,
and a token counts its life from the moment of asking: nobody acts longer than
that life after they left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.auditing import AuditLog
from interlock_identity.domain.agents import (
    Agent,
    AgentDefault,
    ResolvedAgent,
    find_default,
    resolve_agent,
)
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import UserMapping
from interlock_identity.domain.people import TenantId
from interlock_identity.domain.requester import Requester, key_of
from interlock_identity.domain.workspaces import Workspace
from interlock_identity.linking import LinkStore
from interlock_identity.membership import RememberedMembership
from interlock_identity.workspaces import WorkspaceNotFound, WorkspaceStore
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.grants import AuthorizationSource, ChannelAuthorization, SlackGrant
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import renew_slack_grant, sign_user_token

# An event that waited a day is no longer what anybody wants answered.
EVENT_LIFE = timedelta(hours=24)
# Slack's signature window; an event further ahead of us would outlive its day.
CLOCK_SKEW = timedelta(minutes=5)


class UserNotLinked(ServiceError):
    """The Slack user has not linked an account."""

    kind = Kind.PRECONDITION
    reason = "USER_NOT_LINKED"


class NoLongerAMember(ServiceError):
    """The linked account is no longer a member of the organization."""

    kind = Kind.FORBIDDEN
    reason = "NO_LONGER_A_MEMBER"


class EventTooOld(ServiceError):
    """The event happened more than 24 hours ago."""

    kind = Kind.PRECONDITION
    reason = "EVENT_TOO_OLD"


class WorkspaceReleased(ServiceError):
    """The app is no longer installed in the workspace."""

    kind = Kind.PRECONDITION
    reason = "WORKSPACE_RELEASED"


@dataclass(frozen=True, slots=True)
class Errand:
    """What a token is wanted for, where that is known.

    Attributes:
        agent: The agent to be run; None for browsing.
        channel_id: The channel that asks, or "".
    """

    agent: Agent | None
    channel_id: str


@dataclass(frozen=True, slots=True)
class UserToken:
    """A slackUser token.

    Attributes:
        expires_at: The first instant at which it no longer works.
    """

    token: Secret[str]
    expires_at: datetime
    tenant_id: TenantId


class Issuing:
    """Say who a Slack user is, and issue tokens and renewals that say so."""

    def __init__(
        self,
        *,
        workspaces: WorkspaceStore,
        links: LinkStore,
        membership: RememberedMembership,
        audit: AuditLog,
        grant_keys: Keyset,
        user_token_keys: Keyset,
        default_agent: Agent | None,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._workspaces = workspaces
        self._links = links
        self._membership = membership
        self._audit = audit
        self._grant_keys = grant_keys
        self._user_token_keys = user_token_keys
        self._default_agent = default_agent
        self._clock = clock
        self._new_id = new_id

    async def resolve_user(self, requester: Requester) -> UserMapping:
        """Find the link of the requester.

        Raises:
            SlackStranger: A guest, or somebody from elsewhere.
            WorkspaceNotFound: No tenant has claimed the workspace, or another
                one than the resumed question was asked in.
            UserNotLinked: There is no link, or to another account than the
                question was resumed for.
            DatabaseUnavailable: The database does not answer.
        """
        _, mapping = await self._subject(requester)
        return mapping

    async def issue_user_token(
        self, requester: Requester, errand: Errand, origin: Origin
    ) -> UserToken:
        """Issue a token that acts as the requester's account.

        It ends 5 minutes after the account was last known to be a member.
        Commits the record of it, and the use of the link, before it is given
        out; a link removed at the same time yields no token.

        Raises:
            SlackStranger, WorkspaceNotFound, UserNotLinked: As `resolve_user`.
            NoLongerAMember: The account left the tenant.
            MembershipUnavailable: Nobody can say whether it did.
            DatabaseUnavailable: The database does not answer.
        """
        workspace, mapping = await self._subject(requester)
        # A resumed question does not say where the Slack user belongs; the link does.
        acting = mapping.slack_user if requester.resumed_for else requester.slack_user
        membership = await self._membership.confirm(mapping.account, acting)
        if not membership.role.is_member:
            raise NoLongerAMember
        authorization = await self._find_authorization(workspace, errand)
        jti = self._new_id()
        token = sign_user_token(
            self._user_token_keys,
            now=membership.at,
            jti=jti,
            user_id=mapping.person.user_id,
            tenant_id=mapping.tenant_id,
            slack_team_id=acting.team_id,
            slack_user_id=acting.user_id,
            slack_enterprise_id=acting.enterprise_id,
            authorization=authorization,
        )
        event = AuditEvent(
            "token.issued",
            origin,
            token_jti=jti,
            project_id=authorization.project_id if authorization else "",
            agent_id=errand.agent.agent_id if errand.agent else "",
            channel_id=authorization.channel_id if authorization else "",
        )
        record = (
            event.of_account(mapping.account)
            .of_workspace(mapping.tenant_id, workspace.workspace_id)
            .of_slack_user(acting)
        )
        if not await self._links.use_mapping(mapping.tenant_id, mapping.mapping_id, record):
            raise UserNotLinked
        return UserToken(token, _expiry(membership.at, Family.SLACK_USER), mapping.tenant_id)

    async def resolve_agent(self, requester: Requester, channel_id: str) -> ResolvedAgent:
        """Say which agent answers the requester where they chose none.

        Args:
            requester: The Slack user; must be linked.
            channel_id: The channel that asks, or "".

        Raises:
            SlackStranger, WorkspaceNotFound, UserNotLinked: As `resolve_user`.
            DatabaseUnavailable: The database does not answer.
        """
        workspace, _ = await self._subject(requester)
        found = await self._find_default(workspace, channel_id)
        operators = self._default_agent
        if found is None and operators is not None:
            tenant_id = workspace.tenant_id
            if await self._workspaces.lacks_operator_agent(tenant_id, operators):
                operators = None
        return resolve_agent(found, operators)

    async def renew_grant(self, grant: SlackGrant, origin: Origin) -> tuple[Secret[str], datetime]:
        """Sign the grant of a younger event again, nothing added.

        Commits the record of it first.

        Args:
            grant: Verified, but perhaps expired.
            origin: For the record.

        Returns:
            The renewed grant, and the first instant at which it no longer works.

        Raises:
            InvalidToken: The event is dated ahead of us.
            EventTooOld: The event happened 24 h ago or earlier.
            WorkspaceReleased: Nobody has claimed the workspace.
            DatabaseUnavailable: The database does not answer.
        """
        now = self._clock.now()
        if grant.event_at > now + CLOCK_SKEW:
            raise InvalidToken
        if now - grant.event_at >= EVENT_LIFE:
            raise EventTooOld
        workspace = await self._workspaces.find_workspace(key_of(grant.workspace))
        if workspace is None:
            raise WorkspaceReleased
        jti = self._new_id()
        renewed = renew_slack_grant(self._grant_keys, now=now, jti=jti, grant=grant)
        event = AuditEvent(
            "grant.renewed",
            origin,
            slack_enterprise_id=grant.workspace.enterprise_id,
            slack_team_id=grant.workspace.team_id,
            slack_user_id=grant.slack_user_id,
            token_jti=jti,
        )
        await self._audit.record([event.of_workspace(workspace.tenant_id, workspace.workspace_id)])
        return renewed, _expiry(now, Family.RENEWED_GRANT)

    async def _subject(self, requester: Requester) -> tuple[Workspace, UserMapping]:
        requester.require_local()
        account = requester.resumed_for
        found = await self._links.find_subject(requester.key, requester.slack_user)
        if found is None or (account and account.tenant_id != found[0].tenant_id):
            raise WorkspaceNotFound
        workspace, mapping = found
        if mapping is None or (account and account != mapping.account):
            raise UserNotLinked
        return workspace, mapping

    async def _find_default(self, workspace: Workspace, channel_id: str) -> AgentDefault | None:
        defaults = await self._workspaces.list_agent_defaults(
            workspace.tenant_id, workspace.workspace_id
        )
        return find_default(defaults, channel_id)

    async def _find_authorization(
        self, workspace: Workspace, errand: Errand
    ) -> ChannelAuthorization | None:
        """Find the access that an administrator gave to whoever asks this agent here.

        Guests and strangers never get this far.
        """
        if errand.agent is None:
            return None
        default = await self._find_default(workspace, errand.channel_id)
        if default is None or default.agent != errand.agent or not default.grants_access:
            return None
        source = (
            AuthorizationSource.CHANNEL if default.channel_id else AuthorizationSource.WORKSPACE
        )
        return ChannelAuthorization(default.agent.project_id, source, errand.channel_id)


def _expiry(now: datetime, family: Family) -> datetime:
    """When a token signed now ends: tokens count whole seconds."""
    return now.replace(microsecond=0) + FAMILIES[family].max_life
