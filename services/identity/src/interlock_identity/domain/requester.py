"""Who asks, as a verified grant says."""

from dataclasses import dataclass

from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, TenantId, UserId
from interlock_identity.domain.workspaces import WorkspaceKey
from interlock_tokens.errors import PurposeNotGranted
from interlock_tokens.grants import AdminGrant, AdminPurpose, SlackGrant, Workspace
from interlock_tokens.verifying import require_purpose

# Their grants let the bearer ask for a purge and nothing else.
_ENDINGS = frozenset({"app_uninstalled", "tokens_revoked"})


class SlackStranger(ServiceError):
    """The Slack user is a guest, or belongs to another workspace."""

    kind = Kind.FORBIDDEN
    reason = "SLACK_STRANGER"


@dataclass(frozen=True, slots=True)
class Requester:
    """A Slack user in an installation: all that a call may be about.

    Attributes:
        key: The installation that received the event.
        is_stranger: Whether the user is a guest or from elsewhere.
        resumed_for: The account whose question is resumed; None for an event's grant.
    """

    key: WorkspaceKey
    slack_user: SlackUser
    is_stranger: bool
    resumed_for: Account | None = None

    def require_local(self) -> None:
        """Let only full members of the installation's own workspaces pass.

        Raises:
            SlackStranger: The user is a guest, or from elsewhere.
        """
        if self.is_stranger:
            raise SlackStranger


def key_of(workspace: Workspace) -> WorkspaceKey:
    """Name the installation of a grant; an org-wide one has no team, whatever the event said."""
    team_id = "" if workspace.is_enterprise_install else workspace.team_id
    return WorkspaceKey(workspace.enterprise_id, team_id, workspace.app_id)


def workspace_of(key: WorkspaceKey) -> Workspace:
    """Name an installation for a grant."""
    return Workspace(key.enterprise_id, key.team_id, key.is_enterprise_install, key.app_id)


def requester_of_event(grant: SlackGrant) -> Requester:
    """Take the Slack user from an event's grant.

    Raises:
        PurposeNotGranted: Nobody acted, or the event ends an installation.
    """
    if not grant.slack_user_id or grant.event_type in _ENDINGS:
        raise PurposeNotGranted
    workspace = grant.workspace
    key = key_of(workspace)
    team_id = grant.slack_user_team_id or workspace.team_id or key.slot
    slack_user = SlackUser(team_id, workspace.enterprise_id, grant.slack_user_id)
    return Requester(key, slack_user, grant.is_stranger or _is_foreign(team_id, workspace))


def requester_of(grant: SlackGrant | AdminGrant) -> Requester:
    """Take the Slack user from an event's grant, or from one that resumes a question.

    Raises:
        PurposeNotGranted: As `requester_of_event`, or an adminGrant is for something else.
    """
    if isinstance(grant, SlackGrant):
        return requester_of_event(grant)
    require_purpose(grant, AdminPurpose.RESUME)
    key = key_of(grant.workspace)
    slack_user = SlackUser(key.slot, key.enterprise_id, grant.slack_user_id)
    account = Account(TenantId(grant.tenant_id), UserId(grant.user_id))
    return Requester(key, slack_user, is_stranger=False, resumed_for=account)


def _is_foreign(user_team_id: str, workspace: Workspace) -> bool:
    """Tell whether the user's own workspace cannot be one of the installation's.

    Edge marks strangers; this is for the case that it missed one. Which teams
    an Enterprise has is not known here, so inside one only another Enterprise
    is foreign.
    """
    if workspace.enterprise_id:
        return user_team_id.startswith("E") and user_team_id != workspace.enterprise_id
    return user_team_id != workspace.team_id
