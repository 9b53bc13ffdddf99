"""Which tenant a Slack workspace belongs to, and which agents answer in it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.agents import AgentDefault, MalformedAgentDefault
from interlock_identity.domain.people import Session, TenantId, UserId
from interlock_identity.domain.workspaces import (
    Claim,
    Claimed,
    CountedWorkspace,
    NangoConnection,
    Workspace,
    WorkspaceId,
    WorkspaceKey,
)
from interlock_tokens.grants import InstallGrant


class WorkspaceNotFound(ServiceError):
    """No tenant has claimed the workspace, or another one than yours."""

    kind = Kind.NOT_FOUND
    reason = "WORKSPACE_NOT_FOUND"


class WorkspaceTaken(ServiceError):
    """The workspace belongs to another organization."""

    kind = Kind.CONFLICT
    reason = "WORKSPACE_TAKEN"


class OrganizationNotFound(ServiceError):
    """The organization was forgotten after the install began."""

    kind = Kind.NOT_FOUND
    reason = "ORGANIZATION_NOT_FOUND"


class DatabaseUnavailable(ServiceError):
    """Identity's database does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"


class WorkspaceStore(Protocol):
    """Claims and default agents.

    Every method raises DatabaseUnavailable when the database does not answer.
    Released claims are kept for a reinstall, but only `claim` sees them.
    """

    async def claim(self, claim: Claim) -> Claimed:
        """Claim a workspace for a tenant, in one transaction.

        Claims inside one Enterprise wait for each other. A released claim of
        another tenant ends for good, with its links and defaults; one of the
        same tenant comes back with them.

        Raises:
            WorkspaceTaken: Another tenant has claimed it, or the Enterprise around
                it, or a workspace inside it.
            OrganizationNotFound: The tenant is not known.
        """
        ...

    async def release(self, key: WorkspaceKey, installation_id: UUID) -> bool:
        """End a claim and its open link codes; tell whether there was one.

        Args:
            key: The workspace; its app is not compared.
            installation_id: The install that ends. A claim that has moved on to
                another install stays.
        """
        ...

    async def find_workspace(self, key: WorkspaceKey) -> Workspace | None:
        """Find the claim on exactly this install, whoever has it."""
        ...

    async def get_workspace(
        self, tenant_id: TenantId, workspace_id: WorkspaceId
    ) -> CountedWorkspace:
        """Get a claim of the tenant.

        Raises:
            WorkspaceNotFound: The tenant has no such claim.
        """
        ...

    async def list_workspaces(self, tenant_id: TenantId) -> list[CountedWorkspace]:
        """List the tenant's claims, newest first."""
        ...

    async def list_agent_defaults(
        self, tenant_id: TenantId, workspace_id: WorkspaceId
    ) -> list[AgentDefault]:
        """List the default agents of a workspace, the workspace's own first."""
        ...

    async def set_agent_default(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        agent_default: AgentDefault,
        set_by: UserId,
    ) -> None:
        """Set the default agent of a place, instead of the one before.

        The account that set it is noted where identity knows it, else left out.

        Raises:
            WorkspaceNotFound: The tenant has no such claim.
        """
        ...

    async def remove_agent_default(
        self, tenant_id: TenantId, workspace_id: WorkspaceId, channel_id: str
    ) -> None:
        """Remove the default agent of a place; none there is fine."""
        ...


@dataclass(frozen=True, slots=True)
class InstallFacts:
    """What Slack's answer to the vault says about an install.

    Attributes:
        name: Display name; untrusted text.
        nango: The connection behind it; None for a direct install.
    """

    key: WorkspaceKey
    name: str
    installation_id: UUID
    nango: NangoConnection | None


class Workspaces:
    """Claim workspaces for tenants, and settle which agents answer in them."""

    def __init__(self, *, workspaces: WorkspaceStore, new_id: Callable[[], str]) -> None:
        self._workspaces = workspaces
        self._new_id = new_id

    async def claim(self, grant: InstallGrant, facts: InstallFacts) -> Claimed:
        """Claim a workspace for the tenant of an install grant.

        Idempotent for the same tenant.

        Raises:
            WorkspaceTaken: It belongs to another tenant.
            OrganizationNotFound: The tenant was forgotten meanwhile.
            DatabaseUnavailable: The database does not answer.
        """
        claimed = await self._workspaces.claim(
            Claim(
                workspace_id=WorkspaceId(f"wsw_{self._new_id()}"),
                tenant_id=TenantId(grant.tenant_id),
                key=facts.key,
                name=facts.name,
                installation_id=facts.installation_id,
                installed_by=UserId(grant.user_id),
                nango=facts.nango,
            )
        )
        structlog.get_logger().info(
            "workspace_claimed", tenant_id=grant.tenant_id, slack_team_id=facts.key.slot
        )
        return claimed

    async def release(self, key: WorkspaceKey, installation_id: UUID) -> bool:
        """End a claim; tell whether there was one.

        Links and defaults stay for a reinstall by the same tenant.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        was_claimed = await self._workspaces.release(key, installation_id)
        if was_claimed:
            structlog.get_logger().info("workspace_released", slack_team_id=key.slot)
        return was_claimed

    async def list_workspaces(self, session: Session) -> list[CountedWorkspace]:
        """List the claims of the session's tenant, newest first.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_member()
        return await self._workspaces.list_workspaces(session.tenant.tenant_id)

    async def list_agent_defaults(
        self, session: Session, workspace_id: WorkspaceId
    ) -> list[AgentDefault]:
        """List the default agents of a workspace, the workspace's own first.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            WorkspaceNotFound: The tenant has no such workspace.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_member()
        tenant_id = session.tenant.tenant_id
        await self._workspaces.get_workspace(tenant_id, workspace_id)
        return await self._workspaces.list_agent_defaults(tenant_id, workspace_id)

    async def set_agent_default(
        self,
        session: Session,
        workspace_id: WorkspaceId,
        channel_id: str,
        chosen: AgentDefault | None,
    ) -> None:
        """Set the default agent of a place, or remove it.

        Whether the platform has such an agent is not asked; a default that
        names none fails when it is run.

        Args:
            session: An owner or admin.
            workspace_id: A workspace of their tenant.
            channel_id: The place: Slack `C…`, or "" for the whole workspace.
            chosen: The default; None removes it.

        Raises:
            RoleNotSufficient: The person is neither owner nor admin.
            MalformedAgentDefault: It names no project, no agent, or another channel.
            WorkspaceNotFound: The tenant has no such workspace.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_administrator()
        tenant_id = session.tenant.tenant_id
        await self._workspaces.get_workspace(tenant_id, workspace_id)
        if chosen is None:
            await self._workspaces.remove_agent_default(tenant_id, workspace_id, channel_id)
            return
        if not (chosen.agent.project_id and chosen.agent.agent_id):
            raise MalformedAgentDefault
        if chosen.channel_id not in {"", channel_id}:
            raise MalformedAgentDefault
        await self._workspaces.set_agent_default(
            tenant_id, workspace_id, replace(chosen, channel_id=channel_id), session.person.user_id
        )
