"""What a verified token says, as frozen values."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

InstallSource = Literal["direct", "nango"]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The one installation a grant is about.

    Either an org-wide install (an Enterprise, no team) or a workspace's own
    (a team, with its Enterprise where it has one). Ids absent are "".

    Attributes:
        enterprise_id: Slack `E…` or "".
        team_id: Slack `T…`; "" for an org-wide install.
        is_enterprise_install: Whether the whole Enterprise installed the app.
        app_id: Slack `A…`.
    """

    enterprise_id: str
    team_id: str
    is_enterprise_install: bool
    app_id: str


@dataclass(frozen=True, slots=True)
class SlackGrant:
    """Proof that Slack sent an event of one installation.

    Attributes:
        jti: The token's id, for the audit.
        issued_at: When it was signed, in whole seconds.
        expires_at: The first instant at which it no longer works.
        workspace: The installation that received the event.
        slack_user_id: Who acted, `U…` or `W…`; "" when nobody did, as in an uninstall.
        slack_user_team_id: That user's own workspace or Enterprise; "" when not said.
        event_key: The event's key in the inbox.
        event_type: Slack's type, such as `app_mention`.
        body_sha256: SHA-256 of the verified body as it is stored, 64 lower-case hex digits.
        event_at: When it happened, in whole seconds.
        renewed: Whether identity renewed it.
        is_stranger: Whether the user belongs to another workspace (Slack Connect) or is a guest.
    """

    jti: str
    issued_at: datetime
    expires_at: datetime
    workspace: Workspace
    slack_user_id: str
    slack_user_team_id: str
    event_key: str
    event_type: str
    body_sha256: str
    event_at: datetime
    renewed: bool
    is_stranger: bool


class AdminPurpose(StrEnum):
    """What an adminGrant is for; exactly one."""

    HEALTH = "health"
    CHANNELS = "channels"
    TEST_MESSAGE = "test_message"
    UNINSTALL = "uninstall"
    REPLAY = "replay"
    AUDIT = "audit"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class AdminGrant:
    """Leave for one purpose in one workspace of a tenant.

    Attributes:
        jti: The token's id, for the audit.
        issued_at: When it was signed, in whole seconds.
        expires_at: The first instant at which it no longer works.
        workspace: The installation.
        tenant_id: The tenant that owns the workspace.
        user_id: The platform account that asked.
        purpose: The one thing it is good for.
        slack_user_id: Whose question is resumed; "" for every other purpose.
    """

    jti: str
    issued_at: datetime
    expires_at: datetime
    workspace: Workspace
    tenant_id: str
    user_id: str
    purpose: AdminPurpose
    slack_user_id: str


IMPORT_STATE = hashlib.sha256(b"interlock import").hexdigest()
"""The state of an installGrant that an operator's import is made with."""


@dataclass(frozen=True, slots=True)
class InstallGrant:
    """Leave to complete one install for one tenant.

    Attributes:
        jti: The token's id, for the audit.
        issued_at: When it was signed, in whole seconds.
        expires_at: The first instant at which it no longer works.
        tenant_id: Whose workspace it will be.
        user_id: The platform account that started it.
        state_sha256: SHA-256 of the OAuth state, 64 lower-case hex digits.
        source: Where the credential comes from.
    """

    jti: str
    issued_at: datetime
    expires_at: datetime
    tenant_id: str
    user_id: str
    state_sha256: str
    source: InstallSource


class AuthorizationSource(StrEnum):
    """Which default agent gives its channel members access."""

    CHANNEL = "channel"
    WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True)
class ChannelAuthorization:
    """Access to one project that an administrator gave to channel members.

    Attributes:
        project_id: The only project it opens.
        source: Where the administrator gave it.
        channel_id: Slack `C…`; "" when not said.
    """

    project_id: str
    source: AuthorizationSource
    channel_id: str = ""


@dataclass(frozen=True, slots=True)
class SlackUserToken:
    """A Slack user acting as a platform account, for the platform's own APIs.

    Attributes:
        jti: The token's id; "" when another issuer set none.
        issued_at: When it was signed, in whole seconds.
        expires_at: The first instant at which it no longer works.
        user_id: The platform account.
        tenant_id: The platform tenant.
        slack_team_id: The Slack user's workspace.
        slack_user_id: The Slack user.
        slack_enterprise_id: The Enterprise, or "".
        authorization: Access beyond the account's own, if any.
    """

    jti: str
    issued_at: datetime
    expires_at: datetime
    user_id: str
    tenant_id: str
    slack_team_id: str
    slack_user_id: str
    slack_enterprise_id: str
    authorization: ChannelAuthorization | None = None
