"""Link a Slack user to an account, once, with the person's own consent.

A code is made for whoever acted in Slack and redeemed by whoever is signed in
to the browser. That the two are one person is what the confirm page asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import (
    LINK_CODE_BYTES,
    CodeHash,
    EmailPolicy,
    LinkCode,
    LinkCodeId,
    MappingCursor,
    MappingId,
    NewLinkCode,
    SlackUser,
    UserMapping,
    emails_differ,
    mint_link_code,
)
from interlock_identity.domain.people import Session, TenantId, UserId
from interlock_identity.domain.requester import Requester, workspace_of
from interlock_identity.domain.workspaces import Workspace, WorkspaceId, WorkspaceKey
from interlock_identity.workspaces import WorkspaceNotFound, WorkspaceStore
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_admin_grant

# The specification's hour.
LINK_CODE_LIFE = timedelta(hours=1)
# Somebody who asks a bot five questions without linking has seen the button; more is a flood
# of ephemeral messages, or somebody fishing for a code that another person redeems.
LINK_CODE_LIMIT = 5
LINK_CODE_WINDOW = timedelta(minutes=10)
DEFAULT_PAGE_SIZE = 50


class UserAlreadyLinked(ServiceError):
    """The Slack user is linked to an account."""

    kind = Kind.CONFLICT
    reason = "USER_ALREADY_LINKED"


class TooManyLinkCodes(ServiceError):
    """The Slack user got as many link codes as there are for now."""

    kind = Kind.EXHAUSTED
    reason = "TOO_MANY_LINK_CODES"


class LinkCodeSpent(ServiceError):
    """The link code is used, has expired, or was never made."""

    kind = Kind.PRECONDITION
    reason = "LINK_CODE_SPENT"


class NotYourTenant(ServiceError):
    """The link code is of a workspace that belongs to another organization."""

    kind = Kind.FORBIDDEN
    reason = "NOT_YOUR_TENANT"


class EmailMismatch(ServiceError):
    """The Slack user's and the account's e-mail addresses differ; confirm it once more."""

    kind = Kind.PRECONDITION
    reason = "EMAIL_MISMATCH"


class EmailMustMatch(ServiceError):
    """Your organization links a Slack user only to the account with the same e-mail address."""

    kind = Kind.FORBIDDEN
    reason = "EMAIL_MUST_MATCH"


class UserLinkedElsewhere(ServiceError):
    """The Slack user is linked to another account."""

    kind = Kind.CONFLICT
    reason = "USER_LINKED_ELSEWHERE"


class MappingNotFound(ServiceError):
    """There is no such link, or it is not yours to remove."""

    kind = Kind.NOT_FOUND
    reason = "MAPPING_NOT_FOUND"


class LinkStore(Protocol):
    """Link codes and links.

    Every method raises DatabaseUnavailable when the database does not answer.
    All times are by the database's clock.
    """

    async def create_link_code(
        self, code: NewLinkCode, *, life: timedelta, limit: int, window: timedelta
    ) -> datetime:
        """Store a link code, end the Slack user's older ones, and return when it ends.

        Args:
            code: The code, as its hash.
            life: How long the code works.
            limit: How many codes a Slack user gets within the window.
            window: How far back codes count.

        Raises:
            UserAlreadyLinked: The Slack user has a link in the tenant.
            TooManyLinkCodes: The limit is reached; carries when the next one is due.
        """
        ...

    async def find_link_code(self, code_hash: CodeHash) -> LinkCode | None:
        """Find a code that works now, of a workspace that is claimed now."""
        ...

    async def redeem_link_code(
        self, code_hash: CodeHash, session: Session, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Spend a code and link its Slack user to the session's account, or do neither.

        One transaction, in which one statement spends the code: of many
        redeems at once, one succeeds. Keeps the account and the organization,
        and the record of it, too.

        Args:
            code_hash: The code.
            session: Of a member of the code's tenant.
            mapping_id: The id to use if the link is new.
            event: The record.

        Returns:
            Whether the same link existed before.

        Raises:
            LinkCodeSpent: The code does not work, or not for this tenant.
            UserLinkedElsewhere: The Slack user is linked to another account.
        """
        ...

    async def find_mapping(self, tenant_id: TenantId, slack_user: SlackUser) -> UserMapping | None:
        """Find the link of a Slack user in a tenant."""
        ...

    async def find_subject(
        self, key: WorkspaceKey, slack_user: SlackUser
    ) -> tuple[Workspace, UserMapping | None] | None:
        """Find the claim on exactly this install, and in its tenant the Slack user's link.

        None where nobody has claimed it.
        """
        ...

    async def list_mappings(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        *,
        of_user: UserId | None,
        after: MappingCursor | None,
        limit: int,
    ) -> list[UserMapping]:
        """List the links made in a workspace, newest first; of one account, or of all for None."""
        ...

    async def remove_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, *, of_user: UserId | None, origin: Origin
    ) -> bool:
        """Remove a link of the tenant, of one account or of any for None; tell if it was there.

        One transaction with the record of it.
        """
        ...

    async def use_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Note that a token is issued for a link; tell whether the link is still there.

        One transaction with the record of it: without a record there is no token.
        """
        ...


@dataclass(frozen=True, slots=True)
class LinkOffer:
    """What redeeming a code would do.

    Attributes:
        emails_differ: Whether the two addresses are known to be different.
        is_email_refused: Whether the tenant's rule forbids these two, whatever is confirmed.
    """

    code: LinkCode
    emails_differ: bool
    is_email_refused: bool


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A link that was made, or found.

    Attributes:
        resume_grant: For the question that waits.
        was_linked: Whether the same link existed before.
    """

    resume_grant: Secret[str]
    workspace: Workspace
    slack_user: SlackUser
    was_linked: bool


class Linking:
    """Make link codes, redeem them, and show and end what they made."""

    def __init__(
        self,
        *,
        workspaces: WorkspaceStore,
        links: LinkStore,
        grant_keys: Keyset,
        emails: EmailPolicy,
        clock: Clock,
        new_id: Callable[[], str],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._workspaces = workspaces
        self._links = links
        self._emails = emails
        self._grant_keys = grant_keys
        self._clock = clock
        self._new_id = new_id
        self._entropy = entropy

    async def create_link_code(
        self, requester: Requester, display_name: str, email: str
    ) -> tuple[Secret[str], datetime]:
        """Make a link code for the requester; older ones of theirs end.

        Args:
            requester: The Slack user.
            display_name: Their name, for the confirm page; untrusted text.
            email: Their address, or "" where Slack did not tell.

        Returns:
            The code, and the first instant at which it no longer works.

        Raises:
            SlackStranger: A guest, or somebody from elsewhere.
            WorkspaceNotFound: No tenant has claimed the workspace.
            UserAlreadyLinked: The Slack user is linked.
            TooManyLinkCodes: The Slack user got enough of them; carries `retry_after`.
            DatabaseUnavailable: The database does not answer.
        """
        requester.require_local()
        workspace = await self._workspaces.find_workspace(requester.key)
        if workspace is None:
            raise WorkspaceNotFound
        code, code_hash = mint_link_code(self._entropy(LINK_CODE_BYTES))
        expires_at = await self._links.create_link_code(
            NewLinkCode(
                code_id=LinkCodeId(f"wslc_{self._new_id()}"),
                code_hash=code_hash,
                tenant_id=workspace.tenant_id,
                workspace_id=workspace.workspace_id,
                slack_user=requester.slack_user,
                display_name=display_name,
                email=email,
            ),
            life=LINK_CODE_LIFE,
            limit=LINK_CODE_LIMIT,
            window=LINK_CODE_WINDOW,
        )
        return code, expires_at

    async def describe(self, session: Session, code_hash: CodeHash) -> LinkOffer:
        """Say what redeeming a code would do. Changes nothing.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            LinkCodeSpent: The code does not work.
            NotYourTenant: It is of another tenant's workspace.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_member()
        code = await self._links.find_link_code(code_hash)
        if code is None:
            raise LinkCodeSpent
        if code.workspace.tenant_id != session.tenant.tenant_id:
            raise NotYourTenant
        return LinkOffer(
            code,
            emails_differ(code.email, session.person.email),
            is_email_refused=not self._emails.allows(code.email, session),
        )

    async def redeem(
        self,
        session: Session,
        code_hash: CodeHash,
        *,
        email_difference_confirmed: bool,
        origin: Origin,
    ) -> Redeemed:
        """Link the code's Slack user to the session's account, and spend the code.

        What a code says of its tenant and address never changes, so it is
        judged before the transaction that spends it; a refusal leaves it usable.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            LinkCodeSpent: The code does not work.
            NotYourTenant: It is of another tenant's workspace.
            EmailMustMatch: The tenant allows no other address than the Slack user's.
            EmailMismatch: The addresses differ and nobody confirmed it.
            UserLinkedElsewhere: The Slack user is linked to another account.
            DatabaseUnavailable: The database does not answer.
        """
        offer = await self.describe(session, code_hash)
        if offer.is_email_refused:
            raise EmailMustMatch
        if offer.emails_differ and not email_difference_confirmed:
            raise EmailMismatch
        slack_user, workspace = offer.code.slack_user, offer.code.workspace
        tenant_id, user_id = session.tenant.tenant_id, session.person.user_id
        # Signed first: a keyset that cannot sign must not cost the code. Without the link it opens
        # nothing.
        jti = self._new_id()
        resume_grant = sign_admin_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=jti,
            workspace=workspace_of(workspace.key),
            tenant_id=tenant_id,
            user_id=user_id,
            purpose=AdminPurpose.RESUME,
            slack_user_id=slack_user.user_id,
        )
        linked = AuditEvent("user.linked", origin, user_id=user_id, token_jti=jti, purpose="resume")
        event = linked.of_workspace(tenant_id, workspace.workspace_id).of_slack_user(slack_user)
        was_linked = await self._links.redeem_link_code(
            code_hash, session, MappingId(f"wsum_{self._new_id()}"), event
        )
        structlog.get_logger().info("slack_user_linked", tenant_id=tenant_id, was_linked=was_linked)
        return Redeemed(resume_grant, workspace, slack_user, was_linked)

    async def list_mappings(
        self,
        session: Session,
        workspace_id: WorkspaceId,
        page_size: int,
        after: MappingCursor | None,
    ) -> tuple[list[UserMapping], MappingCursor | None]:
        """List the linked users of a workspace, newest first.

        Owners and admins see all of them, members their own.

        Args:
            session: Who asks.
            workspace_id: A workspace of their tenant.
            page_size: How many; 0 means 50.
            after: The last mapping of the page before.

        Returns:
            The mappings, and where the next page begins, or None at the end.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            WorkspaceNotFound: The tenant has no such workspace.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_member()
        tenant_id = session.tenant.tenant_id
        await self._workspaces.get_workspace(tenant_id, workspace_id)
        size = page_size or DEFAULT_PAGE_SIZE
        found = await self._links.list_mappings(
            tenant_id, workspace_id, of_user=_reach(session), after=after, limit=size + 1
        )
        if len(found) <= size:
            return found, None
        last = found[size - 1]
        return found[:size], MappingCursor(last.linked_at, last.mapping_id)

    async def unlink(self, session: Session, mapping_id: MappingId, origin: Origin) -> None:
        """Remove a link: one's own, or any of the tenant as owner or admin.

        Raises:
            RoleNotSufficient: The person's role allows nothing.
            MappingNotFound: There is none, or it is somebody else's.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_member()
        tenant_id = session.tenant.tenant_id
        removed = await self._links.remove_mapping(
            tenant_id, mapping_id, of_user=_reach(session), origin=origin
        )
        if not removed:
            raise MappingNotFound
        structlog.get_logger().info("slack_user_unlinked", tenant_id=tenant_id)

    async def unlink_self(self, requester: Requester, origin: Origin) -> bool:
        """Remove the requester's link; tell whether there was one.

        Raises:
            WorkspaceNotFound: No tenant has claimed the workspace.
            DatabaseUnavailable: The database does not answer.
        """
        found = await self._links.find_subject(requester.key, requester.slack_user)
        if found is None:
            raise WorkspaceNotFound
        workspace, mapping = found
        if mapping is None:
            return False
        removed = await self._links.remove_mapping(
            workspace.tenant_id, mapping.mapping_id, of_user=None, origin=origin
        )
        structlog.get_logger().info("slack_user_unlinked", tenant_id=workspace.tenant_id)
        return removed


def _reach(session: Session) -> UserId | None:
    """Whose links a person may see and end: everybody's as administrator, else their own."""
    return None if session.role.is_administrator else session.person.user_id
