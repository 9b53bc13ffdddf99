"""Tell one administrator of a workspace what only they can mend, once.

The worker sends the message; what it may send, to whom, and whether it was
handed out before is decided here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import UserMapping
from interlock_identity.domain.requester import workspace_of
from interlock_identity.domain.workspaces import Workspace
from interlock_identity.membership import MembershipUnavailable, RememberedMembership
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_admin_grant

READERS_ASKED = 20
"""How many linked users are looked at for an administrator; the installer first."""

_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class DueNotice:
    """A workspace of which an administrator has to be told.

    Attributes:
        readers: Who is linked in it: the one who installed the app first, then
            those who linked first.
    """

    workspace: Workspace
    readers: tuple[UserMapping, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """What may be sent to whom.

    Attributes:
        grant: An adminGrant of purpose `notice`.
        slack_user_id: Slack `U…` or `W…`.
    """

    grant: Secret[str]
    slack_user_id: str
    workspace: Workspace


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
        grant_keys: Sign the grants.
        new_id: Makes ids.
    """

    def __init__(
        self,
        *,
        notices: NoticeStore,
        membership: RememberedMembership,
        grant_keys: Keyset,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._notices = notices
        self._membership = membership
        self._grant_keys = grant_keys
        self._clock = clock
        self._new_id = new_id

    async def take(self, origin: Origin) -> list[Notice]:
        """Hand out the notices that are due, each once.

        One without an administrator to write to is over with a record.

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
            notice = await self._hand_out(due.workspace, reader, origin)
            taken += [notice] if notice else []
        return taken

    async def _find_administrator(self, readers: Sequence[UserMapping]) -> UserMapping | None:
        for reader in readers:
            confirmed = await self._membership.confirm(reader.account, reader.slack_user)
            if confirmed.role.is_administrator:
                return reader
        return None

    async def _hand_out(
        self, workspace: Workspace, reader: UserMapping | None, origin: Origin
    ) -> Notice | None:
        purpose = AdminPurpose.NOTICE
        jti = self._new_id()
        event = AuditEvent("grant.issued", origin, token_jti=jti, purpose=purpose.value)
        event = event.of_workspace(workspace.tenant_id, workspace.workspace_id)
        if reader is None:
            nobody = AuditEvent("notice.dropped", origin, outcome="NO_ADMINISTRATOR_LINKED")
            await self._notices.take_notice(
                workspace, nobody.of_workspace(workspace.tenant_id, workspace.workspace_id)
            )
            structlog.get_logger().warning("notice_without_reader", tenant_id=workspace.tenant_id)
            return None
        grant = sign_admin_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=jti,
            workspace=workspace_of(workspace.key),
            tenant_id=workspace.tenant_id,
            user_id=reader.person.user_id,
            purpose=purpose,
        )
        event = event.of_account(reader.account).of_slack_user(reader.slack_user)
        # Marked before it is sent: two messages are worse than the dashboard alone.
        if not await self._notices.take_notice(workspace, event):
            return None
        return Notice(grant, reader.slack_user.user_id, workspace)
