"""What edge needs of its peers, and the values it gets from them.

Texts that a person or Slack chose (names, e-mail addresses) are untrusted: they
are shown escaped and cut, never interpreted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_tokens.grants import AdminPurpose

T = TypeVar("T")


class NotSignedIn(ServiceError):
    """The browser is not signed in."""

    kind = Kind.UNAUTHENTICATED
    reason = "NOT_SIGNED_IN"


class EdgeDatabaseUnavailable(ServiceError):
    """The gateway's database does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"


class Role(StrEnum):
    """A role in the tenant; anything unknown may nothing."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SessionProof:
    """What a browser shows to prove who it is.

    Attributes:
        cookie: The auth server's cookie, `name=value`.
        client_address: The browser's address, or "".
    """

    cookie: Secret[str]
    client_address: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in, with the role held at this moment.

    Attributes:
        session_ref: Stable for the session and not secret.
    """

    user_id: str
    name: str
    email: str
    tenant_id: str
    tenant_name: str
    role: Role
    session_ref: str

    @property
    def is_administrator(self) -> bool:
        """Whether this person may install and see everybody's links."""
        return self.role in {Role.OWNER, Role.ADMIN}


@dataclass(frozen=True, slots=True)
class Workspace:
    """A Slack workspace, or a whole Enterprise, of the tenant.

    Attributes:
        slack_team_id: Slack `T…`, or `E…` for an org-wide install.
        status: `pending`, `active`, `needs_reinstall` or `uninstalled`.
        linked_users: How many Slack users are linked in it.
        missing_scopes: Asked for, and not granted by Slack.
        extra_scopes: Granted by Slack, and not asked for.
    """

    workspace_id: str
    slack_team_id: str
    slack_enterprise_id: str
    is_enterprise_install: bool
    name: str
    status: str
    created_at: datetime
    linked_users: int
    slack_app_id: str = ""
    missing_scopes: tuple[str, ...] = ()
    extra_scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserMapping:
    """A Slack user linked to an account.

    Attributes:
        last_used_at: When a token was last issued for it; None for never.
    """

    mapping_id: str
    slack_team_id: str
    slack_user_id: str
    user_id: str
    user_name: str
    user_email: str
    linked_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class AgentDefault:
    """The agent that answers in a place where nobody chose one.

    Attributes:
        channel_id: Slack `C…`; "" for the whole workspace.
        grants_access: Whether members who may not see the project may run it here.
    """

    channel_id: str
    project_id: str
    agent_id: str
    grants_access: bool


@dataclass(frozen=True, slots=True)
class Channel:
    """A Slack channel that the bot can see.

    Attributes:
        is_member: Whether the bot is in it.
    """

    channel_id: str
    name: str
    is_member: bool


@dataclass(frozen=True, slots=True)
class Health:
    """Whether Slack accepts an installation's token.

    Attributes:
        slack_error: Slack's error code, or what we know instead; "" when it does.
    """

    is_healthy: bool
    slack_error: str


@dataclass(frozen=True, slots=True)
class LinkOffer:
    """What redeeming a link code would do.

    Attributes:
        emails_differ: Whether the two addresses are known to be different.
        is_email_refused: Whether the tenant's rule forbids these two, whatever is confirmed.
    """

    workspace: Workspace
    slack_user_id: str
    slack_display_name: str
    slack_email: str
    emails_differ: bool
    expires_at: datetime
    is_email_refused: bool


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A link that exists now.

    Attributes:
        resume_grant: Lets the worker run the question that waits.
        was_linked: Whether the same link existed before.
    """

    resume_grant: Secret[str]
    workspace: Workspace
    slack_user_id: str
    was_linked: bool


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation that is active now.

    Attributes:
        slack_team_id: Slack `T…`, or `E…` for an org-wide install.
        extra_scopes: Scopes that Slack granted beyond those asked for.
    """

    slack_team_id: str
    is_reinstall: bool
    extra_scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConnectSession:
    """Leave for a browser to connect one workspace at Nango.

    Attributes:
        link: The same as a page of Nango's.
    """

    token: Secret[str]
    link: Secret[str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One fact of the vault's audit log; the fields are the contract's."""

    chain_id: str
    seq: int
    at: datetime
    action: str
    actor: str
    rpc: str
    purpose: str
    grant_id: str
    token_kind: str
    outcome: str
    token_ref: str
    generation: int
    kek_version: str
    dek_source: str
    request_id: str
    subject: str
    count: int


@dataclass(frozen=True, slots=True)
class PeopleEvent:
    """One fact of identity's record; the fields are the contract's.

    Attributes:
        outcome: `allowed`, or the reason of a refusal.
        actor_name: What the account that acted is called now, or ""; untrusted text.
        user_name: What the account that it happened to is called now, or ""; untrusted text.
    """

    number: int
    at: datetime
    event: str
    outcome: str
    count: int
    caller: str
    rpc: str
    request_id: str
    grant_id: str
    actor_id: str
    actor_name: str
    workspace_id: str
    slack_enterprise_id: str
    slack_team_id: str
    slack_user_id: str
    user_id: str
    user_name: str
    token_id: str
    purpose: str
    project_id: str
    agent_id: str
    channel_id: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list.

    Attributes:
        next_token: Where the next part begins; "" at the end.
    """

    items: tuple[T, ...]
    next_token: str


class Identity(Protocol):
    """The identity service. Every method proves the person: with the cookie, or a grant for it.

    Every method raises NotSignedIn or a RemoteError; of the latter, `reason` is
    identity's own.
    """

    async def authenticate(self, proof: SessionProof) -> Person:
        """Say who is signed in; reasons NOT_A_MEMBER, AUTH_SERVER_UNAVAILABLE."""
        ...

    async def issue_install_grant(
        self, proof: SessionProof, state_sha256: str, *, by_nango: bool = False
    ) -> Secret[str]:
        """Sign leave to complete one install; reason ROLE_NOT_SUFFICIENT."""
        ...

    async def issue_admin_grant(
        self, proof: SessionProof, workspace_id: str, purpose: AdminPurpose
    ) -> tuple[Secret[str], Workspace]:
        """Sign leave to do one thing with one workspace.

        Reasons ROLE_NOT_SUFFICIENT, WORKSPACE_NOT_FOUND.
        """
        ...

    async def list_workspaces(self, proof: SessionProof) -> tuple[Workspace, ...]:
        """List the tenant's workspaces, newest first."""
        ...

    async def list_agent_defaults(
        self, proof: SessionProof, workspace_id: str
    ) -> tuple[AgentDefault, ...]:
        """List the default agents, the workspace's own first; reason WORKSPACE_NOT_FOUND."""
        ...

    async def set_agent_default(
        self, proof: SessionProof, workspace_id: str, channel_id: str, chosen: AgentDefault | None
    ) -> None:
        """Set the default agent of a place, or remove it.

        Reasons ROLE_NOT_SUFFICIENT, WORKSPACE_NOT_FOUND, MALFORMED_AGENT_DEFAULT,
        AGENT_NOT_FOUND, PLATFORM_UNAVAILABLE.
        """
        ...

    async def describe_link_code(self, proof: SessionProof, code: Secret[str]) -> LinkOffer:
        """Say what a code would do; reasons LINK_CODE_SPENT, NOT_YOUR_TENANT."""
        ...

    async def redeem_link_code(
        self, proof: SessionProof, code: Secret[str], *, email_difference_confirmed: bool
    ) -> Redeemed:
        """Link the code's Slack user to the account.

        Reasons as `describe_link_code`, and USER_LINKED_ELSEWHERE, EMAIL_MISMATCH,
        EMAIL_MUST_MATCH.
        """
        ...

    async def list_mappings(
        self, proof: SessionProof, workspace_id: str, page_token: str, *, page_size: int = 0
    ) -> Page[UserMapping]:
        """List linked users: all for an administrator, else one's own.

        Args:
            proof: Whose session.
            workspace_id: The workspace.
            page_token: `next_token` of the page before; "" for the first.
            page_size: At most so many, up to 200; 0 lets identity choose.

        Reasons WORKSPACE_NOT_FOUND, INVALID_PAGE_TOKEN.
        """
        ...

    async def unlink(self, proof: SessionProof, mapping_id: str) -> None:
        """Remove a link; reason MAPPING_NOT_FOUND."""
        ...

    async def list_people_events(
        self, grant: Secret[str], event: str, page_token: str
    ) -> Page[PeopleEvent]:
        """List what a workspace's people did, and what was refused, newest first.

        Args:
            grant: Of an administrator, for reading.
            event: Only this event; "" for all.
            page_token: As of `list_mappings`.

        Reasons WORKSPACE_NOT_FOUND, INVALID_PAGE_TOKEN.
        """
        ...


class Vault(Protocol):
    """The token vault, as far as edge may call it: no method answers a token."""

    async def start_install(self, grant: Secret[str]) -> str:
        """Open an install; return Slack's consent page, without state and redirect_uri."""
        ...

    async def complete_install(
        self, grant: Secret[str], code: Secret[str], redirect_uri: str
    ) -> Installed:
        """Exchange the code and activate the installation.

        Reasons WORKSPACE_TAKEN, SCOPES_MISSING, OAUTH_CODE_REFUSED, INSTALL_NOT_OPEN,
        SLACK_UNAVAILABLE, SLACK_ANSWER_UNUSABLE.
        """
        ...

    async def start_connecting(
        self, grant: Secret[str], renews: Workspace | None
    ) -> ConnectSession:
        """Open an install by Nango.

        Args:
            grant: Of an install by Nango.
            renews: The tenant's workspace that is connected again, if one is.

        Reasons NANGO_NOT_CONFIGURED, NANGO_REFUSED, NANGO_UNAVAILABLE.
        """
        ...

    async def complete_connection(
        self, grant: Secret[str], provider_config_key: str, connection_id: str
    ) -> Installed:
        """Take a connection and activate the installation.

        Reasons as `complete_install`, and CONNECTION_NOT_FOUND, CONNECTION_NOT_YOURS,
        CONNECTION_DEAD, INSTALL_IN_PROGRESS, and as `start_connecting`.
        """
        ...

    async def find_connected(self, grant: Secret[str]) -> Installed:
        """Say what came of an install that Nango's webhook completes.

        Reasons as `complete_connection`; CONNECTION_AWAITED where nothing came yet.
        """
        ...

    async def receive_nango_webhook(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Hand a webhook over to be verified.

        Reasons INVALID_SIGNATURE, NANGO_NOT_CONFIGURED; UNAVAILABLE when it is to be sent again.
        """
        ...

    async def list_audit_events(self, grant: Secret[str], page_token: str) -> Page[AuditEvent]:
        """List a workspace's audit events, newest first; reason INVALID_PAGE_TOKEN."""
        ...


class Worker(Protocol):
    """The gateway worker."""

    async def resume_after_link(self, grant: Secret[str]) -> bool:
        """Run the question that waits; tell whether there was one."""
        ...

    async def check_health(self, grant: Secret[str]) -> Health:
        """Ask Slack whether the bot's token works.

        Reasons NEEDS_REINSTALL, INSTALLATION_NOT_FOUND, SLACK_UNAVAILABLE.
        """
        ...

    async def list_channels(self, grant: Secret[str]) -> tuple[Channel, ...]:
        """List the channels that the bot can see, by name; reasons as `check_health`."""
        ...

    async def send_test_message(self, grant: Secret[str], channel_id: str) -> None:
        """Post a test message; reasons as `check_health`, and SLACK_REFUSED."""
        ...

    async def uninstall(self, grant: Secret[str]) -> None:
        """Uninstall at Slack, shred the tokens, and end the running answers.

        Reasons UNINSTALL_REFUSED, SLACK_UNAVAILABLE, REFRESH_PENDING.
        """
        ...


@dataclass(frozen=True, slots=True)
class OAuthState:
    """An install under way: what its callback must match.

    Attributes:
        session_ref: The session that started it.
        grant: The install grant, opened with the vault.
        redirect_to: Where to go afterwards, one of our own paths.
    """

    session_ref: str
    grant: Secret[str]
    redirect_to: str


class InstallStates(Protocol):
    """Installs under way. Raises EdgeDatabaseUnavailable."""

    async def put_state(self, state_sha256: str, browser_sha256: str, state: OAuthState) -> None:
        """Keep a state for 10 minutes by the database's clock."""
        ...

    async def take_state(self, state_sha256: str, browser_sha256: str) -> OAuthState | None:
        """Take a live state of this browser, once: of many takers one gets it."""
        ...


class Attempts(Protocol):
    """Counters that all replicas share. Raises EdgeDatabaseUnavailable."""

    async def count(self, key: str) -> int:
        """Count an attempt; return how many there were within the minute, this one too."""
        ...
