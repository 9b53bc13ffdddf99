"""Say which administrator of a workspace is to be told what only they can mend, once.

The vault writes to them, with a token that nobody else gets for it; who is an
administrator, and whether that was handed out before, is known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog

from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import UserMapping
from interlock_identity.domain.workspaces import Workspace
from interlock_identity.membership import MembershipUnavailable, RememberedMembership

READERS_ASKED = 20
"""How many linked users are looked at for an administrator; the installer first."""

_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class DueNotice:
    """A workspace of which an administrator has to be told.

    Attributes:
        installation_id: The vault's name of the install that came to its end.
        readers: Who is linked in it: the one who installed the app first, then
            those who linked first.
    """

    workspace: Workspace
    installation_id: UUID
    readers: tuple[UserMapping, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """Of which install to tell whom.

    Attributes:
        slack_user_id: Slack `U…` or `W…`; empty when no administrator is linked.
    """

    installation_id: UUID
    slack_user_id: str


class NoticeStore(Protocol):
    """Which notices are due; all raise DatabaseUnavailable."""

    async def list_due_notices(self, limit: int) -> Sequence[DueNotice]:
        """List workspaces that need a reinstall of which nobody was told yet."""
        ...

    async def take_notice(self, workspace: Workspace, event: AuditEvent) -> bool:
        """Mark a notice as handed out, with its record; False where that was done before."""
        ...


class Noticing:
    """Hand out notices.

    Args:
        membership: Who is an administrator now.
    """

    def __init__(self, *, notices: NoticeStore, membership: RememberedMembership) -> None:
        self._notices = notices
        self._membership = membership

    async def take(self, origin: Origin) -> list[Notice]:
        """Hand out the notices that are due, each once; each leaves a record.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        taken: list[Notice] = []
        for due in await self._notices.list_due_notices(_AT_ONCE):
            try:
                reader = await self._find_administrator(due.readers)
            except MembershipUnavailable:
                structlog.get_logger().warning("notice_put_off", reason="MEMBERSHIP_UNAVAILABLE")
                continue
            notice = await self._hand_out(due, reader, origin)
            taken += [notice] if notice else []
        return taken

    async def _find_administrator(self, readers: Sequence[UserMapping]) -> UserMapping | None:
        for reader in readers:
            confirmed = await self._membership.confirm(reader.account, reader.slack_user)
            if confirmed.role.is_administrator:
                return reader
        return None

    async def _hand_out(
        self, due: DueNotice, reader: UserMapping | None, origin: Origin
    ) -> Notice | None:
        workspace = due.workspace
        event = AuditEvent("notice.taken", origin)
        if reader is None:
            event = AuditEvent("notice.taken", origin, outcome="NO_ADMINISTRATOR_LINKED")
            structlog.get_logger().warning("notice_without_reader", tenant_id=workspace.tenant_id)
        event = event.of_workspace(workspace.tenant_id, workspace.workspace_id)
        if reader is not None:
            event = event.of_account(reader.account).of_slack_user(reader.slack_user)
        # Marked before it is sent: two messages are worse than the dashboard alone.
        if not await self._notices.take_notice(workspace, event):
            return None
        return Notice(due.installation_id, reader.slack_user.user_id if reader else "")
