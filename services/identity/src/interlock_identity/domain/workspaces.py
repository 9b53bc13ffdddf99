"""Slack workspaces, and which tenant has claimed one.

Absent ids are "" here and NULL in the tables, whose columns are given.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType
from uuid import UUID

from interlock_chassis.errors import InvalidArgument
from interlock_identity.domain.people import TenantId, UserId

WorkspaceId = NewType("WorkspaceId", str)
"""Identity's own name of a claim; opaque."""

# Interlock is one Slack app, so every row carries the one client of the specification.
CLIENT_ID = "work-apps-slack"


class MalformedWorkspaceKey(InvalidArgument):
    """The workspace is not named as Slack names workspaces."""

    reason = "MALFORMED_WORKSPACE_KEY"


class WorkspaceStatus(StrEnum):
    """What a claim is worth."""

    PENDING = "pending"
    ACTIVE = "active"
    NEEDS_REINSTALL = "needs_reinstall"
    UNINSTALLED = "uninstalled"
    """Released; the row stays so that a reinstall finds its links again."""

    @property
    def is_claimed(self) -> bool:
        """Whether events of the workspace are answered.

        A workspace that needs a reinstall still is: its token may live for hours.
        """
        return self in {WorkspaceStatus.ACTIVE, WorkspaceStatus.NEEDS_REINSTALL}

    @classmethod
    def of_claimed(cls, *, needs_reinstall: bool) -> "WorkspaceStatus":
        """Return what a claimed workspace is, as the vault says of its token."""
        return cls.NEEDS_REINSTALL if needs_reinstall else cls.ACTIVE


@dataclass(frozen=True, slots=True)
class WorkspaceKey:
    """Names one install as Slack keys it: an Enterprise, or a team, in its Enterprise if any.

    Attributes:
        enterprise_id: Slack `E…`, or "".
        team_id: Slack `T…`, or "" for an org-wide install.
        app_id: Slack `A…`.

    Raises:
        MalformedWorkspaceKey: Both the Enterprise and the team are absent.
    """

    enterprise_id: str
    team_id: str
    app_id: str

    def __post_init__(self) -> None:
        if not self.slot:
            raise MalformedWorkspaceKey

    @property
    def slot(self) -> str:
        """What `slack_team_id` holds: the team, or the Enterprise of an org-wide install."""
        return self.team_id or self.enterprise_id

    @property
    def is_enterprise_install(self) -> bool:
        """Whether the whole Enterprise installed the app."""
        return not self.team_id


@dataclass(frozen=True, slots=True)
class ScopeDrift:
    """How what Slack granted differs from what the app asks for; names of Slack's.

    Attributes:
        missing: Asked for and not granted.
        extra: Granted and not asked for.
    """

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Tell it in a line; "" for none."""
        parts = (("missing", self.missing), ("extra", self.extra))
        return "; ".join(f"{kind} {', '.join(scopes)}" for kind, scopes in parts if scopes)


NO_DRIFT = ScopeDrift()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace that a tenant has claimed.

    Attributes:
        name: Display name; untrusted text.
        created_at: When the tenant first claimed it.
        drift: As the vault says it, after the claim.
    """

    workspace_id: WorkspaceId
    tenant_id: TenantId
    key: WorkspaceKey
    name: str
    status: WorkspaceStatus
    created_at: datetime
    drift: ScopeDrift = NO_DRIFT


@dataclass(frozen=True, slots=True)
class CountedWorkspace:
    """A workspace with the number of its linked Slack users."""

    workspace: Workspace
    linked_users: int


@dataclass(frozen=True, slots=True)
class NangoConnection:
    """Where Nango keeps the credential of an install."""

    provider_config_key: str
    connection_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish for a workspace, from a verified install grant and Slack's own answer.

    Attributes:
        workspace_id: The id to use if the tenant has no row for it yet.
        installation_id: The vault's name of the install.
        installed_by: Who started the install.
        nango: The connection behind it; None for a direct install.
    """

    workspace_id: WorkspaceId
    tenant_id: TenantId
    key: WorkspaceKey
    name: str
    installation_id: UUID
    installed_by: UserId
    nango: NangoConnection | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that holds.

    Attributes:
        was_claimed: Whether it held before.
    """

    workspace: CountedWorkspace
    was_claimed: bool
