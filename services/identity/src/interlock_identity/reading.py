"""Read the record: all of it as an operator, a workspace's part as its administrator."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from interlock_identity.domain.audit import RecordedEvent, Sought
from interlock_identity.domain.people import UserId
from interlock_identity.domain.requester import key_of
from interlock_identity.workspaces import WorkspaceNotFound, WorkspaceStore
from interlock_tokens.grants import AdminGrant, AdminPurpose
from interlock_tokens.verifying import require_purpose

_DEFAULT_SIZE = 50


class AuditRecord(Protocol):
    """What was recorded.

    Every method raises DatabaseUnavailable when the database does not answer.
    """

    async def list_events(
        self, sought: Sought, *, before: int | None, limit: int
    ) -> list[RecordedEvent]:
        """List facts, newest first, with numbers below `before`, or from the newest on."""
        ...

    async def list_names(self, user_ids: frozenset[UserId]) -> Mapping[UserId, str]:
        """Say what the accounts are called now; whoever is unknown is left out."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Part of the record.

    Attributes:
        events: Newest first.
        names: What the accounts of the events are called now, as far as that was asked.
        following: The number below which the next part begins; None at the end.
    """

    events: list[RecordedEvent]
    names: Mapping[UserId, str]
    following: int | None


class Reading:
    """Give out the record, to each reader what is theirs."""

    def __init__(self, *, record: AuditRecord, workspaces: WorkspaceStore) -> None:
        self._record = record
        self._workspaces = workspaces

    async def read_all(self, sought: Sought, *, before: int | None, size: int) -> Part:
        """Read the record for an operator, without names.

        Args:
            sought: What is asked for.
            before: `following` of the part before; None for the newest.
            size: How many; 0 means 50.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        most = size or _DEFAULT_SIZE
        found = await self._record.list_events(sought, before=before, limit=most + 1)
        return Part(found[:most], {}, found[most - 1].number if len(found) > most else None)

    async def read_workspace(
        self, grant: AdminGrant, sought: Sought, *, before: int | None, size: int
    ) -> Part:
        """Read what happened in a workspace, and in its tenant outside of any workspace.

        Names are the tenant's own to see: every event of the part is of the tenant.

        Args:
            grant: Of an owner or admin, for reading.
            sought: What is asked for; tenant and workspace are the grant's.
            before: As of `read_all`.
            size: As of `read_all`.

        Raises:
            PurposeNotGranted: The grant is for something else.
            WorkspaceNotFound: The tenant of the grant has it no longer.
            DatabaseUnavailable: The database does not answer.
        """
        require_purpose(grant, AdminPurpose.AUDIT)
        workspace = await self._workspaces.find_workspace(key_of(grant.workspace))
        if workspace is None or workspace.tenant_id != grant.tenant_id:
            raise WorkspaceNotFound
        reach = replace(sought, tenant_id=workspace.tenant_id, workspace_id=workspace.workspace_id)
        part = await self.read_all(reach, before=before, size=size)
        named = {each.event.user_id for each in part.events}
        named |= {each.event.origin.actor_id for each in part.events}
        user_ids = frozenset(UserId(each) for each in named if each)
        return replace(part, names=await self._record.list_names(user_ids))
