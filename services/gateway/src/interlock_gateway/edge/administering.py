"""What people do with a workspace: see it, settle its agents, try it, remove it.

Each deed of an administrator asks identity for a grant of exactly that purpose, and
whoever acts on it gets nothing else.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge.ports import (
    AgentDefault,
    AuditEvent,
    Channel,
    Health,
    Identity,
    Page,
    PeopleEvent,
    SessionProof,
    UserMapping,
    Vault,
    Worker,
    Workspace,
)
from interlock_tokens.grants import AdminPurpose

# Ids of identity and page tokens are opaque; these are the alphabets they are made of.
_ID = re.compile(r"[A-Za-z0-9_.~-]{1,256}", re.ASCII)
_PAGE_TOKEN = re.compile(r"[A-Za-z0-9_.~=:-]{0,256}", re.ASCII)
# Ids of the platform: shown, compared and sent on, so nothing invisible and no path.
_PLATFORM_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,255}", re.ASCII)
_EVENT = re.compile(r"([a-z]{1,30}\.[a-z_]{1,30})?", re.ASCII)
_CHANNEL = re.compile(r"[CDG][A-Z0-9]{2,20}", re.ASCII)
# The most that identity gives at once.
_EXPORT_PAGE = 200

# What the vault knows of a token without asking Slack.
_KNOWN_AILMENTS = frozenset({"NEEDS_REINSTALL", "INSTALLATION_NOT_FOUND"})


class WorkspaceNotFound(ServiceError):
    """The tenant has no such workspace."""

    kind = Kind.NOT_FOUND
    reason = "WORKSPACE_NOT_FOUND"


class MappingNotFound(ServiceError):
    """There is no such link."""

    kind = Kind.NOT_FOUND
    reason = "MAPPING_NOT_FOUND"


class InvalidPageToken(ServiceError):
    """The page token is not one of ours."""

    kind = Kind.INVALID
    reason = "INVALID_PAGE_TOKEN"


class MalformedEvent(ServiceError):
    """Events have no such name."""

    kind = Kind.INVALID
    reason = "MALFORMED_EVENT"


class MalformedAgentDefault(ServiceError):
    """The project, the agent or the channel is not an id."""

    kind = Kind.INVALID
    reason = "MALFORMED_AGENT_DEFAULT"


class MalformedChannel(ServiceError):
    """The channel is not one of Slack's."""

    kind = Kind.INVALID
    reason = "MALFORMED_CHANNEL"


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of a workspace.

    Attributes:
        why_unknown: The reason for which nobody could be asked; "" when they are known.
    """

    items: tuple[Channel, ...]
    why_unknown: str


class Administering:
    """Look after the workspaces of a person's tenant.

    Every method raises WorkspaceNotFound for what cannot be an id, and the errors of the
    ports it asks.
    """

    def __init__(self, *, identity: Identity, vault: Vault, worker: Worker) -> None:
        self._identity = identity
        self._vault = vault
        self._worker = worker

    async def list_workspaces(self, proof: SessionProof) -> tuple[Workspace, ...]:
        """List the tenant's workspaces, newest first."""
        return await self._identity.list_workspaces(proof)

    async def get_workspace(self, proof: SessionProof, workspace_id: str) -> Workspace:
        """Get a workspace of the tenant.

        Raises:
            WorkspaceNotFound: The tenant has no such workspace.
        """
        for each in await self._identity.list_workspaces(proof):
            if each.workspace_id == workspace_id:
                return each
        raise WorkspaceNotFound

    async def list_links(
        self, proof: SessionProof, workspace_id: str, page_token: str
    ) -> Page[UserMapping]:
        """List linked users: all for an administrator, else one's own.

        Raises:
            InvalidPageToken: The token is not of our form.
        """
        _require_workspace_id(workspace_id)
        return await self._identity.list_mappings(proof, workspace_id, _page_token(page_token))

    async def export_links(
        self, proof: SessionProof, workspace_id: str
    ) -> AsyncIterator[tuple[UserMapping, ...]]:
        """Walk over every linked user, newest first, up to 200 at a time."""
        _require_workspace_id(workspace_id)
        token = ""
        while True:
            page = await self._identity.list_mappings(
                proof, workspace_id, token, page_size=_EXPORT_PAGE
            )
            yield page.items
            token = page.next_token
            if not token:
                return

    async def unlink(self, proof: SessionProof, workspace_id: str, mapping_id: str) -> Workspace:
        """Remove a link; returns the workspace.

        Raises:
            MappingNotFound: There is no such link, or it is not the person's to remove.
        """
        if not _ID.fullmatch(mapping_id):
            raise MappingNotFound
        workspace = await self.get_workspace(proof, workspace_id)
        await self._identity.unlink(proof, mapping_id)
        return workspace

    async def read_audit(
        self, proof: SessionProof, workspace_id: str, page_token: str
    ) -> tuple[Workspace, Page[AuditEvent]]:
        """Read a part of the vault's audit log of a workspace, newest first.

        Raises:
            InvalidPageToken: The token is not of our form.
        """
        _require_workspace_id(workspace_id)
        token = _page_token(page_token)
        grant, workspace = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.AUDIT
        )
        return workspace, await self._vault.list_audit_events(grant, token)

    async def read_people_audit(
        self, proof: SessionProof, workspace_id: str, event: str, page_token: str
    ) -> tuple[Workspace, Page[PeopleEvent]]:
        """Read a part of identity's record of a workspace, newest first.

        Args:
            proof: Of an administrator.
            workspace_id: The workspace.
            event: Only this event, such as `call.refused`; "" for all.
            page_token: Of the part before; "" for the newest.

        Raises:
            InvalidPageToken: The token is not of our form.
            MalformedEvent: The event is not of the form that events have.
        """
        _require_workspace_id(workspace_id)
        if not _EVENT.fullmatch(event):
            raise MalformedEvent
        token = _page_token(page_token)
        grant, workspace = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.AUDIT
        )
        return workspace, await self._identity.list_people_events(grant, event, token)

    async def list_defaults(
        self, proof: SessionProof, workspace_id: str
    ) -> tuple[AgentDefault, ...]:
        """List the default agents, the workspace's own first."""
        _require_workspace_id(workspace_id)
        return await self._identity.list_agent_defaults(proof, workspace_id)

    async def set_default(
        self,
        proof: SessionProof,
        workspace_id: str,
        chosen: AgentDefault,
        *,
        must_name_channel: bool = False,
    ) -> None:
        """Set the default agent of a place; identity asks the platform about it.

        Raises:
            MalformedAgentDefault: An id is not of the form that ids have, or the channel
                that must be named is not.
        """
        _require_workspace_id(workspace_id)
        ids = (chosen.project_id, chosen.agent_id)
        if not all(map(_PLATFORM_ID.fullmatch, ids)) or not _is_place(chosen.channel_id):
            raise MalformedAgentDefault
        if must_name_channel and not chosen.channel_id:
            raise MalformedAgentDefault
        await self._identity.set_agent_default(proof, workspace_id, chosen.channel_id, chosen)

    async def remove_default(self, proof: SessionProof, workspace_id: str, channel_id: str) -> None:
        """Remove the default agent of a place; none there is fine.

        Raises:
            MalformedAgentDefault: The channel is not of Slack's form.
        """
        _require_workspace_id(workspace_id)
        if not _is_place(channel_id):
            raise MalformedAgentDefault
        await self._identity.set_agent_default(proof, workspace_id, channel_id, None)

    async def list_channels(self, proof: SessionProof, workspace_id: str) -> tuple[Channel, ...]:
        """List the channels that the bot can see."""
        _require_workspace_id(workspace_id)
        grant, _ = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.CHANNELS
        )
        return await self._worker.list_channels(grant)

    async def find_channels(self, proof: SessionProof, workspace_id: str) -> Channels:
        """List the channels for a form, which also works without: nothing is raised for them.

        Raises:
            WorkspaceNotFound: The tenant has no such workspace.
        """
        _require_workspace_id(workspace_id)
        grant, _ = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.CHANNELS
        )
        try:
            return Channels(await self._worker.list_channels(grant), "")
        except ServiceError as error:
            return Channels((), error.reason)

    async def check_health(self, proof: SessionProof, workspace_id: str) -> Health:
        """Ask Slack whether the workspace's token works."""
        _require_workspace_id(workspace_id)
        grant, _ = await self._identity.issue_admin_grant(proof, workspace_id, AdminPurpose.HEALTH)
        try:
            return await self._worker.check_health(grant)
        except ServiceError as error:
            if error.reason in _KNOWN_AILMENTS:
                return Health(is_healthy=False, slack_error=error.reason.lower())
            raise

    async def send_test_message(
        self, proof: SessionProof, workspace_id: str, channel_id: str
    ) -> None:
        """Post a test message to a channel.

        Raises:
            MalformedChannel: The channel is not of Slack's form.
        """
        _require_workspace_id(workspace_id)
        if not _CHANNEL.fullmatch(channel_id):
            raise MalformedChannel
        grant, _ = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.TEST_MESSAGE
        )
        await self._worker.send_test_message(grant, channel_id)

    async def uninstall(self, proof: SessionProof, workspace_id: str) -> None:
        """Remove the app from a workspace, at Slack and in the vault.

        The worker asks the vault: edge may not, so that whoever breaks in here
        can neither read a token nor end one without a person's session.
        """
        _require_workspace_id(workspace_id)
        grant, _ = await self._identity.issue_admin_grant(
            proof, workspace_id, AdminPurpose.UNINSTALL
        )
        await self._worker.uninstall(grant)


def _require_workspace_id(workspace_id: str) -> None:
    if not _ID.fullmatch(workspace_id):
        raise WorkspaceNotFound


def _page_token(token: str) -> str:
    if not _PAGE_TOKEN.fullmatch(token):
        raise InvalidPageToken
    return token


def _is_place(channel_id: str) -> bool:
    return not channel_id or _CHANNEL.fullmatch(channel_id) is not None
