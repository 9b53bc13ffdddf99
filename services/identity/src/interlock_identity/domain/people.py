"""Accounts of the platform, as the auth server knows them."""

from dataclasses import dataclass
from enum import Enum
from typing import NewType

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)


class RoleNotSufficient(ServiceError):
    """Your role in the organization does not allow this."""

    kind = Kind.FORBIDDEN
    reason = "ROLE_NOT_SUFFICIENT"


class Role(Enum):
    """What a person is in an organization; the value is the auth server's word."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"

    NONE = ""
    """Not in the organization, or there with a role unknown to us: may nothing."""

    @property
    def is_member(self) -> bool:
        """Whether the person belongs to the organization."""
        return self is not Role.NONE

    @property
    def is_administrator(self) -> bool:
        """Whether the person may install the app and change its settings."""
        return self in {Role.OWNER, Role.ADMIN}


def strongest_role(roles: str) -> Role:
    """Pick the role that allows the most.

    Args:
        roles: The auth server's text: a role, or a comma list of them, in which
            roles that we do not know count for nothing.
    """
    held = {role.strip() for role in roles.split(",")}
    return next((role for role in Role if role.is_member and role.value in held), Role.NONE)


@dataclass(frozen=True, slots=True)
class Account:
    """An account in a tenant."""

    tenant_id: TenantId
    user_id: UserId


@dataclass(frozen=True, slots=True)
class Person:
    """An account of the platform.

    Attributes:
        name: Display name; untrusted text.
    """

    user_id: UserId
    name: str
    email: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization of the platform.

    Attributes:
        name: Display name; untrusted text.
    """

    tenant_id: TenantId
    name: str


@dataclass(frozen=True, slots=True)
class SessionProof:
    """What a browser shows.

    Attributes:
        cookie: The auth server's session cookie, `name=value`.
        client_address: The browser's address, or "".
    """

    cookie: Secret[str]
    client_address: str


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in person, as the auth server vouched for a moment ago.

    Attributes:
        tenant: The organization that is active in the session.
        role: The role held in it now.
        ref: Stable for the session and not secret.
        is_email_verified: Whether the auth server has seen that the address is the person's.
    """

    person: Person
    tenant: Tenant
    role: Role
    ref: str
    is_email_verified: bool = False

    def require_member(self) -> None:
        """Let only people pass whose role we know.

        Raises:
            RoleNotSufficient: The role allows nothing.
        """
        if not self.role.is_member:
            raise RoleNotSufficient

    def require_administrator(self) -> None:
        """Let only owners and admins pass.

        Raises:
            RoleNotSufficient: The person is neither.
        """
        if not self.role.is_administrator:
            raise RoleNotSufficient
