"""Which tenant a Slack workspace belongs to, and which agents answer in it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_identity.domain.agents import Agent, AgentDefault, MalformedAgentDefault
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.people import Session, SessionProof, TenantId, UserId
from interlock_identity.domain.workspaces import (
    NO_DRIFT,
    Claim,
    Claimed,
    CountedWorkspace,
    MalformedWorkspaceKey,
    NangoConnection,
    ScopeDrift,
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


class AgentNotFound(ServiceError):
    """The agents platform shows you no such agent."""

    kind = Kind.NOT_FOUND
    reason = "AGENT_NOT_FOUND"


class PlatformUnavailable(ServiceError):
    """The agents platform does not answer, so that nothing is known about the agent."""

    kind = Kind.UNAVAILABLE
    reason = "PLATFORM_UNAVAILABLE"


class AgentDirectory(Protocol):
    """The agents platform's list of agents, as the signed-in person sees it."""

    async def has_agent(self, proof: SessionProof, tenant_id: TenantId, agent: Agent) -> bool:
        """Say whether the person sees the agent.

        Args:
            proof: The person's browser session.
            tenant_id: The tenant that is active in it.
            agent: The agent.

        Raises:
            PlatformUnavailable: The platform does not answer, or not as agreed.
        """
        ...


def drift_event(key: WorkspaceKey, drift: ScopeDrift, origin: Origin) -> AuditEvent:
    """Return the record of scopes that came to differ, or no longer do."""
    return AuditEvent(
        "workspace.scopes_settled" if drift == NO_DRIFT else "workspace.scopes_drifted",
        origin,
        slack_enterprise_id=key.enterprise_id,
        slack_team_id=key.team_id,
        purpose=str(drift),
    )


class WorkspaceStore(Protocol):
    """Claims and default agents.

    Every method raises DatabaseUnavailable when the database does not answer.
    Released claims are kept for a reinstall, but only `claim` sees them. What
    changes something records it in the same transaction.
    """

    async def claim(self, claim: Claim, origin: Origin) -> Claimed:
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

    async def move(
        self, key: WorkspaceKey, installation_id: UUID, origin: Origin
    ) -> CountedWorkspace:
        """Name the Enterprise that a claimed workspace joined, in one transaction.

        Idempotent. Its links and defaults stay with it.

        Args:
            key: The team, and the Enterprise that it is in by now.
            installation_id: The install whose claim it must be.
            origin: For the record.

        Raises:
            WorkspaceNotFound: The install has no claim on this team.
            WorkspaceTaken: Another tenant has claimed the Enterprise.
        """
        ...

    async def release(self, key: WorkspaceKey, installation_id: UUID, origin: Origin) -> bool:
        """End a claim and its open link codes; tell whether there was one.

        Args:
            key: The workspace; its app is not compared.
            installation_id: The install that ends. A claim that has moved on to
                another install stays.
            origin: For the record.
        """
        ...

    async def set_needs_reinstall(
        self,
        key: WorkspaceKey,
        installation_id: UUID,
        origin: Origin,
        *,
        needs_reinstall: bool,
    ) -> bool:
        """Note whether a claim needs a reinstall, and record it if that is new.

        Returns:
            Whether the install has a claim.
        """
        ...

    async def set_drift(
        self, key: WorkspaceKey, installation_id: UUID, drift: ScopeDrift, origin: Origin
    ) -> bool:
        """Note how a claim's scopes differ, and record it if that is new.

        Returns:
            Whether the install has a claim.
        """
        ...

    async def find_workspace(self, key: WorkspaceKey) -> Workspace | None:
        """Find the claim on exactly this install, whoever has it."""
        ...

    async def get_workspace(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> Workspace:
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
        event: AuditEvent,
    ) -> None:
        """Set the default agent of a place, instead of the one before.

        The account that set it is noted where identity knows it, else left out.

        Raises:
            WorkspaceNotFound: The tenant has no such claim.
        """
        ...

    async def remove_agent_default(
        self, tenant_id: TenantId, workspace_id: WorkspaceId, channel_id: str, event: AuditEvent
    ) -> None:
        """Remove the default agent of a place; none there is fine, and not recorded."""
        ...

    async def note_operator_agent(
        self, tenant_id: TenantId, agent: Agent, *, is_there: bool
    ) -> None:
        """Note whether an administrator of the tenant sees the operator's default agent."""
        ...

    async def lacks_operator_agent(self, tenant_id: TenantId, agent: Agent) -> bool:
        """Tell whether an administrator was last seen not to see that agent."""
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
    """Claim workspaces for tenants, and settle which agents answer in them.

    Args:
        workspaces: The claims and defaults.
        agents: What the platform shows an administrator.
        operator_agent: The operator's default agent, if any.
        new_id: Makes ids.
    """

    def __init__(
        self,
        *,
        workspaces: WorkspaceStore,
        agents: AgentDirectory,
        operator_agent: Agent | None,
        new_id: Callable[[], str],
    ) -> None:
        self._workspaces = workspaces
        self._agents = agents
        self._operator_agent = operator_agent
        self._new_id = new_id

    async def claim(self, grant: InstallGrant, facts: InstallFacts, origin: Origin) -> Claimed:
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
            ),
            origin,
        )
        structlog.get_logger().info(
            "workspace_claimed", tenant_id=grant.tenant_id, slack_team_id=facts.key.slot
        )
        return claimed

    async def move(self, facts: InstallFacts, origin: Origin) -> CountedWorkspace:
        """Name the Enterprise that a claimed workspace joined; idempotent.

        Needs no grant: the claim must be that of the same install, and stays its tenant's.

        Raises:
            MalformedWorkspaceKey: It names no team, or no Enterprise.
            WorkspaceNotFound: The install has no claim on this team.
            WorkspaceTaken: Another tenant has claimed the Enterprise.
            DatabaseUnavailable: The database does not answer.
        """
        if not (facts.key.team_id and facts.key.enterprise_id):
            raise MalformedWorkspaceKey
        return await self._workspaces.move(facts.key, facts.installation_id, origin)

    async def release(self, key: WorkspaceKey, installation_id: UUID, origin: Origin) -> bool:
        """End a claim; tell whether there was one.

        Links and defaults stay for a reinstall by the same tenant.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        was_claimed = await self._workspaces.release(key, installation_id, origin)
        if was_claimed:
            structlog.get_logger().info("workspace_released", slack_team_id=key.slot)
        return was_claimed

    async def report(
        self, key: WorkspaceKey, installation_id: UUID, origin: Origin, *, needs_reinstall: bool
    ) -> bool:
        """Note whether a claim needs a reinstall; tell whether the install has a claim.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        was_claimed = await self._workspaces.set_needs_reinstall(
            key, installation_id, origin, needs_reinstall=needs_reinstall
        )
        if was_claimed and needs_reinstall:
            structlog.get_logger().warning("workspace_needs_reinstall", slack_team_id=key.slot)
        return was_claimed

    async def report_scopes(
        self, key: WorkspaceKey, installation_id: UUID, drift: ScopeDrift, origin: Origin
    ) -> bool:
        """Note how a claim's scopes differ; tell whether the install has a claim.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        was_claimed = await self._workspaces.set_drift(key, installation_id, drift, origin)
        if was_claimed and drift != NO_DRIFT:
            structlog.get_logger().warning(
                "scope_drift",
                slack_team_id=key.slot,
                missing_scopes=drift.missing,
                extra_scopes=drift.extra,
            )
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
        proof: SessionProof,
        workspace_id: WorkspaceId,
        channel_id: str,
        *,
        chosen: AgentDefault | None,
        origin: Origin,
    ) -> None:
        """Set the default agent of a place, or remove it.

        The platform is asked, as the person, whether there is such an agent.

        Args:
            session: An owner or admin.
            proof: What their browser showed.
            workspace_id: A workspace of their tenant.
            channel_id: The place: Slack `C…`, or "" for the whole workspace.
            chosen: The default; None removes it.
            origin: For the record.

        Raises:
            RoleNotSufficient: The person is neither owner nor admin.
            MalformedAgentDefault: It names no project, no agent, or another channel.
            WorkspaceNotFound: The tenant has no such workspace.
            AgentNotFound: The platform shows the person no such agent.
            PlatformUnavailable: The platform does not say.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_administrator()
        tenant_id = session.tenant.tenant_id
        await self._workspaces.get_workspace(tenant_id, workspace_id)
        event = AuditEvent(
            "default.removed", origin, user_id=session.person.user_id, channel_id=channel_id
        ).of_workspace(tenant_id, workspace_id)
        if chosen is None:
            await self._workspaces.remove_agent_default(tenant_id, workspace_id, channel_id, event)
            return
        await self._require_agent(proof, tenant_id, channel_id, chosen)
        await self._workspaces.set_agent_default(
            tenant_id,
            workspace_id,
            replace(chosen, channel_id=channel_id),
            session.person.user_id,
            replace(
                event,
                event="default.set",
                project_id=chosen.agent.project_id,
                agent_id=chosen.agent.agent_id,
                purpose="grants_access" if chosen.grants_access else "",
            ),
        )

    async def _require_agent(
        self, proof: SessionProof, tenant_id: TenantId, channel_id: str, chosen: AgentDefault
    ) -> None:
        agent = chosen.agent
        if not (agent.project_id and agent.agent_id) or chosen.channel_id not in {"", channel_id}:
            raise MalformedAgentDefault
        if not await self._agents.has_agent(proof, tenant_id, agent):
            raise AgentNotFound

    async def check_operator_agent(self, session: Session, proof: SessionProof) -> None:
        """Ask the platform, as an administrator, for the operator's default agent; note the answer.

        The operator has no account in the tenant to ask with. A platform that
        does not answer changes nothing.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        agent, tenant_id = self._operator_agent, session.tenant.tenant_id
        if agent is None:
            return
        try:
            is_there = await self._agents.has_agent(proof, tenant_id, agent)
        except PlatformUnavailable:
            structlog.get_logger().warning("operator_agent_not_checked", tenant_id=tenant_id)
            return
        if not is_there:
            structlog.get_logger().warning("operator_agent_missing", tenant_id=tenant_id)
        await self._workspaces.note_operator_agent(tenant_id, agent, is_there=is_there)
