"""What the audit says of a link, a token, a grant, or a refusal.

Ids only: no names, no addresses, no tokens. "" stands for absent.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, TenantId
from interlock_identity.domain.workspaces import WorkspaceId

OWN_WORK = "identity"
"""The caller of what identity does by itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a change, and with what proof.

    Attributes:
        caller: The peer's mTLS name, or `OWN_WORK`.
        rpc: The RPC, or the task of our own.
        request_id: Ties the hops of one request together.
        grant_jti: The id of the grant that was shown.
        actor_id: The account whose browser session was shown.
    """

    caller: str
    rpc: str
    request_id: str
    grant_jti: str = ""
    actor_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One fact, in the past tense.

    Attributes:
        event: What happened, such as `user.linked`.
        user_id: The account it happened to.
        token_jti: The id of the token or grant that was signed.
        purpose: What a grant is for, why a link ended, or which scopes differ.
        project_id: The project that a token opens beyond the account's own, or of a default.
        agent_id: The agent to be run, or of a default.
        channel_id: The channel that a default or an access is for.
        outcome: `allowed`, as in the vault's record, or the reason of a refusal.
        count: How many like facts it stands for.
    """

    event: str
    origin: Origin
    tenant_id: str = ""
    workspace_id: str = ""
    slack_enterprise_id: str = ""
    slack_team_id: str = ""
    slack_user_id: str = ""
    user_id: str = ""
    token_jti: str = ""
    purpose: str = ""
    project_id: str = ""
    agent_id: str = ""
    channel_id: str = ""
    outcome: str = "allowed"
    count: int = 1

    def of_workspace(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> "AuditEvent":
        """Name the workspace it happened in, and its tenant."""
        return replace(self, tenant_id=tenant_id, workspace_id=workspace_id)

    def of_account(self, account: Account) -> "AuditEvent":
        """Name the account it happened to."""
        return replace(self, tenant_id=account.tenant_id, user_id=account.user_id)

    def of_slack_user(self, slack_user: SlackUser) -> "AuditEvent":
        """Name the Slack user it happened to."""
        return replace(
            self,
            slack_enterprise_id=slack_user.enterprise_id,
            slack_team_id=slack_user.team_id,
            slack_user_id=slack_user.user_id,
        )


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A fact as it stands in the record.

    Attributes:
        number: Later facts have larger ones, with gaps.
        at: By the database's clock.
    """

    number: int
    at: datetime
    event: AuditEvent


@dataclass(frozen=True, slots=True)
class Sought:
    """Which facts are asked for; "" asks for any.

    Attributes:
        workspace_id: Of the tenant; what happened in no workspace is found with it.
        user_id: Whoever did it, or whom it happened to.
    """

    tenant_id: str = ""
    workspace_id: str = ""
    user_id: str = ""
    event: str = ""
