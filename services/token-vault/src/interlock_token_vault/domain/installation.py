"""One install of a Slack app, and how it is named.

Absent ids are the empty string everywhere, in the database too: an org-wide
install has no team, a workspace outside an Enterprise Grid no enterprise. An
empty id equals only an empty id, never "any".
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import NewType
from uuid import UUID

from interlock_chassis.errors import Kind, ServiceError

InstallationId = NewType("InstallationId", UUID)
DekId = NewType("DekId", UUID)
ClientId = NewType("ClientId", str)
TenantId = NewType("TenantId", str)
TokenRef = NewType("TokenRef", str)
"""Keyed fingerprint of a token, made when it is sealed; names it without showing it."""

# Slack's ids are a letter and 2 to 20 capitals and digits; migrations repeat it as CHECKs.
_ENTERPRISE = re.compile(r"E[A-Z0-9]{2,20}")
_TEAM = re.compile(r"T[A-Z0-9]{2,20}")
_APP = re.compile(r"A[A-Z0-9]{2,20}")
_USER = re.compile(r"[UW][A-Z0-9]{2,20}")


class MalformedInstallationKey(ServiceError):
    """The installation is not named as Slack names installations."""

    kind = Kind.INVALID
    reason = "MALFORMED_INSTALLATION_KEY"


@dataclass(frozen=True, slots=True)
class InstallationKey:
    """Names one install as Slack keys it: an enterprise alone, or a team with or without one.

    Attributes:
        client_id: The Slack client; Interlock's own, or a registered app's.
        app_id: Slack `A…`.
        enterprise_id: Slack `E…`, or empty.
        team_id: Slack `T…`, or empty for an org-wide install.

    Raises:
        MalformedInstallationKey: An id has the wrong shape, or both are empty.
    """

    client_id: ClientId
    app_id: str
    enterprise_id: str
    team_id: str

    def __post_init__(self) -> None:
        well_formed = (
            bool(self.client_id)
            and _APP.fullmatch(self.app_id)
            and (self.enterprise_id == "" or _ENTERPRISE.fullmatch(self.enterprise_id))
            and (self.team_id == "" or _TEAM.fullmatch(self.team_id))
            and (self.enterprise_id or self.team_id)
        )
        if not well_formed:
            raise MalformedInstallationKey

    @property
    def is_enterprise_install(self) -> bool:
        """Whether the whole Enterprise installed the app."""
        return not self.team_id


def is_slack_user_id(text: str) -> bool:
    """Tell whether a text is a Slack user's id, `U…` or `W…`."""
    return _USER.fullmatch(text) is not None


class TokenKind(Enum):
    """Whose credential it is."""

    BOT = "bot"
    USER = "user"
    WEBHOOK = "webhook"


class TokenSlot(Enum):
    """Which part of a credential."""

    ACCESS = "access"
    REFRESH = "refresh"
    CONNECTION = "connection"
    """Not a token, but the name under which somebody else keeps it; `ref` is the token's,
    as it was when last fetched."""


class InstallationState(Enum):
    """Whether an installation answers reads."""

    PENDING = "pending"
    """Sealed, but the workspace is not claimed yet: answers nobody."""

    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Installation:
    """One install of the app.

    Attributes:
        id: The vault's own name of it; stays over reinstalls.
        key: How Slack names it.
        tenant_id: Whose workspace it is.
        state: Whether it answers reads.
        generation: Of the bot's credential; only rises.
        name: Display name of the workspace; untrusted text.
        bot_user_id: Slack `U…` or `W…`.
        bot_scopes: What Slack granted the bot.
        installed_at: When the newest install was activated, by the database.
        installed_by: Slack `U…` or `W…` of who allowed the newest install; empty
            where Slack did not say, and where a token is only read.
    """

    id: InstallationId
    key: InstallationKey
    tenant_id: TenantId
    state: InstallationState
    generation: int
    name: str
    bot_user_id: str
    bot_scopes: tuple[str, ...]
    installed_at: datetime | None
    installed_by: str = field(default="", compare=False)
