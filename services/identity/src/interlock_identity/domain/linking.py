"""One-time link codes, and the links that they make."""

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from interlock_chassis.secret import Secret
from interlock_identity.domain.people import Account, Person, Session, TenantId
from interlock_identity.domain.workspaces import Workspace, WorkspaceId

LinkCodeId = NewType("LinkCodeId", str)
MappingId = NewType("MappingId", str)
CodeHash = NewType("CodeHash", str)
"""SHA-256 of a link code, 64 lower-case hex digits: all that is ever stored of it."""

# 256 bits; the specification asks for 128.
LINK_CODE_BYTES = 32


@dataclass(frozen=True, slots=True)
class SlackUser:
    """A Slack user, in the workspace where they belong.

    Attributes:
        team_id: The user's own workspace, or Enterprise where Slack names no workspace.
        enterprise_id: Slack `E…`, or "".
        user_id: Slack `U…` or `W…`.
    """

    team_id: str
    enterprise_id: str
    user_id: str

    def is_same_as(self, other: "SlackUser") -> bool:
        """Tell whether two sightings are of one user.

        Inside an Enterprise a user keeps the id in every workspace, so that
        they link once.
        """
        return self.user_id == other.user_id and (
            self.team_id == other.team_id
            or bool(self.enterprise_id and self.enterprise_id == other.enterprise_id)
        )


@dataclass(frozen=True, slots=True)
class NewLinkCode:
    """A link code about to be stored.

    Attributes:
        display_name: The Slack user's name, for the confirm page; untrusted text.
        email: The Slack user's address, or "" where Slack did not tell.
    """

    code_id: LinkCodeId
    code_hash: CodeHash
    tenant_id: TenantId
    workspace_id: WorkspaceId
    slack_user: SlackUser
    display_name: str
    email: str


@dataclass(frozen=True, slots=True)
class LinkCode:
    """A link code that still works, and the workspace it is for.

    Attributes:
        expires_at: The first instant at which it no longer does.
    """

    workspace: Workspace
    slack_user: SlackUser
    display_name: str
    email: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class UserMapping:
    """A Slack user linked to an account.

    Attributes:
        workspace_id: The workspace in which the link was made.
        person: The account, with the name and address last seen.
        last_used_at: When a token was last issued for it, or None.
    """

    mapping_id: MappingId
    tenant_id: TenantId
    workspace_id: WorkspaceId
    slack_user: SlackUser
    person: Person
    linked_at: datetime
    last_used_at: datetime | None

    @property
    def account(self) -> Account:
        """The account in its tenant."""
        return Account(self.tenant_id, self.person.user_id)


@dataclass(frozen=True, slots=True)
class MappingCursor:
    """The last mapping of a page."""

    linked_at: datetime
    mapping_id: MappingId


def mint_link_code(entropy: bytes) -> tuple[Secret[str], CodeHash]:
    """Turn random bytes into a link code and its hash.

    Args:
        entropy: `LINK_CODE_BYTES` bytes from a cryptographic source.
    """
    if len(entropy) != LINK_CODE_BYTES:
        raise ValueError(f"a link code takes {LINK_CODE_BYTES} random bytes")
    code = base64.urlsafe_b64encode(entropy).rstrip(b"=").decode()
    return Secret(code), hash_link_code(code)


def hash_link_code(code: str) -> CodeHash:
    """Hash a link code as it is stored.

    No salt and no stretching: the code is random, so it cannot be guessed from its hash.
    """
    return CodeHash(hashlib.sha256(code.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class EmailPolicy:
    """In which tenants a Slack user links only to the account with their own address.

    Elsewhere a difference takes a second confirmation.

    Attributes:
        is_strict_everywhere: Whether it is so in every tenant.
        strict_tenants: The tenants in which it is.
    """

    is_strict_everywhere: bool = False
    strict_tenants: frozenset[TenantId] = frozenset()

    def allows(self, slack_email: str, session: Session) -> bool:
        """Tell whether the tenant's rule lets these two addresses be linked.

        Where it is strict, an address that Slack does not tell, or that the
        account has not proved to be its own, is not the same.
        """
        if not (self.is_strict_everywhere or session.tenant.tenant_id in self.strict_tenants):
            return True
        is_told = bool(slack_email.strip()) and session.is_email_verified
        return is_told and not emails_differ(slack_email, session.person.email)


def emails_differ(slack_email: str, account_email: str) -> bool:
    """Tell whether two addresses are known to be different.

    Letter case does not count. Where Slack tells no address there is nothing to compare.
    """
    ours, theirs = slack_email.strip().casefold(), account_email.strip().casefold()
    return bool(ours) and ours != theirs
