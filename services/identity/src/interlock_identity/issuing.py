"""The account behind a Slack event, and short-lived tokens that act as it.

Whether the account still belongs to the tenant is asked before every token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.domain.agents import (
    Agent,
    AgentDefault,
    ResolvedAgent,
    find_default,
    resolve_agent,
)
from interlock_identity.domain.linking import UserMapping
from interlock_identity.domain.people import Role, TenantId, UserId
from interlock_identity.domain.requester import Requester, key_of
from interlock_identity.domain.workspaces import Workspace
from interlock_identity.linking import LinkStore
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
# With the token's own 5 min, somebody who left acts for 6 min at the most; the rule is that
# no token is issued 5 min after.
MEMBERSHIP_LIFE = timedelta(seconds=60)
# About 2 MB.
MEMBERSHIPS_KEPT = 10_000


class UserNotLinked(ServiceError):
    """The Slack user has not linked an account."""

    kind = Kind.PRECONDITION
    reason = "USER_NOT_LINKED"


class NoLongerAMember(ServiceError):
    """The linked account is no longer a member of the organization."""

    kind = Kind.FORBIDDEN
    reason = "NO_LONGER_A_MEMBER"


class MembershipUnavailable(ServiceError):
    """Nobody can say now who belongs to the organization."""

    kind = Kind.UNAVAILABLE
    reason = "MEMBERSHIP_UNAVAILABLE"


class EventTooOld(ServiceError):
    """The event happened more than 24 hours ago."""

    kind = Kind.PRECONDITION
    reason = "EVENT_TOO_OLD"


class WorkspaceReleased(ServiceError):
    """The app is no longer installed in the workspace."""

    kind = Kind.PRECONDITION
    reason = "WORKSPACE_RELEASED"


class MembershipSource(Protocol):
    """Who belongs to which organization."""

    async def role_of(self, tenant_id: TenantId, user_id: UserId) -> Role:
        """Say what a person is in an organization; NONE for a stranger to it.

        Raises:
            MembershipUnavailable: The source does not answer, or not as agreed.
        """
        ...


class RememberedMembership:
    """Ask a membership source once a minute for each person.

    Only a yes is remembered: whoever joins can act at once, and whoever leaves
    cannot after `life`. A failure is never papered over with an older yes.
    """

    def __init__(
        self,
        source: MembershipSource,
        clock: Clock,
        *,
        life: timedelta = MEMBERSHIP_LIFE,
        kept: int = MEMBERSHIPS_KEPT,
    ) -> None:
        self._source = source
        self._clock = clock
        self._life_s = life.total_seconds()
        self._kept = kept
        self._roles: dict[tuple[TenantId, UserId], tuple[float, Role]] = {}

    async def role_of(self, tenant_id: TenantId, user_id: UserId) -> Role:
        """Say what a person is in an organization; see `MembershipSource`."""
        account = (tenant_id, user_id)
        asked_at = self._clock.monotonic()
        at, role = self._roles.get(account, (0.0, Role.NONE))
        if role.is_member and asked_at - at < self._life_s:
            return role
        self._roles.pop(account, None)
        role = await self._source.role_of(tenant_id, user_id)
        if role.is_member:
            # From the moment of asking: the answer may have been true only then.
            self._roles[account] = (asked_at, role)
            if len(self._roles) > self._kept:
                del self._roles[next(iter(self._roles))]
        return role


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
        membership: MembershipSource,
        grant_keys: Keyset,
        user_token_keys: Keyset,
        default_agent: Agent | None,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._workspaces = workspaces
        self._links = links
        self._membership = membership
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

    async def issue_user_token(self, requester: Requester, errand: Errand) -> UserToken:
        """Issue a token that acts as the requester's account, for 5 minutes.

        Notes the use of the link; a link removed at the same time yields no token.

        Raises:
            SlackStranger, WorkspaceNotFound, UserNotLinked: As `resolve_user`.
            NoLongerAMember: The account left the tenant.
            MembershipUnavailable: Nobody can say whether it did.
            DatabaseUnavailable: The database does not answer.
        """
        workspace, mapping = await self._subject(requester)
        tenant_id, user_id = mapping.tenant_id, mapping.person.user_id
        role = await self._membership.role_of(tenant_id, user_id)
        if not role.is_member:
            raise NoLongerAMember
        authorization = await self._find_authorization(workspace, errand)
        if not await self._links.use_mapping(tenant_id, mapping.mapping_id):
            raise UserNotLinked
        # A resumed question does not say where the Slack user belongs; the link does.
        acting = mapping.slack_user if requester.resumed_for else requester.slack_user
        now = self._clock.now()
        token = sign_user_token(
            self._user_token_keys,
            now=now,
            jti=self._new_id(),
            user_id=user_id,
            tenant_id=tenant_id,
            slack_team_id=acting.team_id,
            slack_user_id=acting.user_id,
            slack_enterprise_id=acting.enterprise_id,
            authorization=authorization,
        )
        return UserToken(token, _expiry(now, Family.SLACK_USER), tenant_id)

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
        return resolve_agent(await self._find_default(workspace, channel_id), self._default_agent)

    async def renew_grant(self, grant: SlackGrant) -> tuple[Secret[str], datetime]:
        """Sign the grant of a younger event again, nothing added.

        Args:
            grant: Verified, but perhaps expired.

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
        if await self._workspaces.find_workspace(key_of(grant.workspace)) is None:
            raise WorkspaceReleased
        renewed = renew_slack_grant(self._grant_keys, now=now, jti=self._new_id(), grant=grant)
        return renewed, _expiry(now, Family.RENEWED_GRANT)

    async def _subject(self, requester: Requester) -> tuple[Workspace, UserMapping]:
        requester.require_local()
        account = requester.resumed_for
        workspace = await self._workspaces.find_workspace(requester.key)
        if workspace is None or (account and account.tenant_id != workspace.tenant_id):
            raise WorkspaceNotFound
        mapping = await self._links.find_mapping(workspace.tenant_id, requester.slack_user)
        if mapping is None or (account and account.user_id != mapping.person.user_id):
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
