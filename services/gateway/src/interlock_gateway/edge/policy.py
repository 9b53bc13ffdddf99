"""Who may do what: one table of roles and actions.

Identity decides again for every call; the table lets edge refuse before it asks, and
show no button that would be refused.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge.ports import Person, Role


class RoleNotSufficient(ServiceError):
    """The person's role does not allow it."""

    kind = Kind.FORBIDDEN
    reason = "ROLE_NOT_SUFFICIENT"


class Action(StrEnum):
    """What a signed-in person may want."""

    SEE_WORKSPACES = "see workspaces"
    LINK = "link"
    SEE_LINKS = "see links"
    UNLINK = "unlink"
    EXPORT_LINKS = "export links"
    SEE_SETTINGS = "see settings"
    CHANGE_SETTINGS = "change settings"
    SEE_CHANNELS = "see channels"
    CHECK_HEALTH = "check health"
    SEND_TEST_MESSAGE = "send a test message"
    READ_AUDIT = "read the audit log"
    INSTALL = "install"
    UNINSTALL = "uninstall"


_ADMINISTRATORS = frozenset({Role.OWNER, Role.ADMIN})
_EVERYBODY = _ADMINISTRATORS | {Role.MEMBER}

POLICY: Mapping[Action, frozenset[Role]] = MappingProxyType(
    {
        Action.SEE_WORKSPACES: _EVERYBODY,
        Action.LINK: _EVERYBODY,
        # Of members, identity lists and removes their own links only.
        Action.SEE_LINKS: _EVERYBODY,
        Action.UNLINK: _EVERYBODY,
        Action.EXPORT_LINKS: _ADMINISTRATORS,
        Action.SEE_SETTINGS: _EVERYBODY,
        Action.CHANGE_SETTINGS: _ADMINISTRATORS,
        Action.SEE_CHANNELS: _ADMINISTRATORS,
        Action.CHECK_HEALTH: _ADMINISTRATORS,
        Action.SEND_TEST_MESSAGE: _ADMINISTRATORS,
        Action.READ_AUDIT: _ADMINISTRATORS,
        Action.INSTALL: _ADMINISTRATORS,
        Action.UNINSTALL: _ADMINISTRATORS,
    }
)
"""The roles that may; any other role may nothing."""


def require(person: Person, action: Action) -> None:
    """Let a person pass whose role allows the action.

    Raises:
        RoleNotSufficient: It does not.
    """
    if person.role not in POLICY[action]:
        raise RoleNotSufficient
