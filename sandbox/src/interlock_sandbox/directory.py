"""The people and organizations that the auth server and the platform share.

In the real product both read one user database; so do the two stand-ins. Who
is a member of what can change while the sandbox runs, which is how off-boarding
is tried out.
"""

from dataclasses import dataclass
from typing import Any

OWNER, ADMIN, MEMBER = "owner", "admin", "member"
ROLES = frozenset({OWNER, ADMIN, MEMBER})
# The accounts were all made on the same day.
CREATED_AT = "2026-01-05T09:00:00.000Z"


@dataclass(frozen=True)
class Person:
    """Somebody with an account at the auth server.

    Attributes:
        home: The organization that a new session of this person opens with.
    """

    id: str
    name: str
    email: str
    home: str
    introduction: str


@dataclass(frozen=True)
class Organization:
    """A tenant of the platform; its id equals its slug."""

    id: str
    name: str


@dataclass(frozen=True)
class Membership:
    """One person's role in one organization."""

    id: str
    organization_id: str
    user_id: str
    role: str


PEOPLE = (
    Person("user_ada", "Ada Lindqvist", "ada@northwind.example", "northwind", "installs the app"),
    Person("user_ben", "Ben Okafor", "ben@northwind.example", "northwind", "administers it"),
    Person("user_mia", "Mia Castellanos", "mia@northwind.example", "northwind", "asks questions"),
    Person("user_olga", "Olga Petrenko", "olga@contoso.example", "contoso", "is an outsider"),
    Person("user_greta", "Greta Vasquez", "greta@meridian.example", "meridian", "has a Grid"),
    Person("user_hugo", "Hugo Brandt", "hugo@meridian.example", "meridian", "works in the Grid"),
)
ORGANIZATIONS = (
    Organization("northwind", "Northwind"),
    Organization("contoso", "Contoso"),
    Organization("meridian", "Meridian"),
)
_FIRST_ROLES = (
    ("user_ada", "northwind", OWNER),
    ("user_ben", "northwind", ADMIN),
    ("user_mia", "northwind", MEMBER),
    ("user_olga", "contoso", OWNER),
    ("user_greta", "meridian", OWNER),
    ("user_hugo", "meridian", MEMBER),
)


class Directory:
    """People, organizations, and the memberships between them."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        rows = saved["roles"] if saved else _FIRST_ROLES
        self._roles: dict[tuple[str, str], str] = {
            (organization, user): role for user, organization, role in rows
        }

    def snapshot(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {"roles": [[user, org, role] for (org, user), role in self._roles.items()]}

    def find_person(self, user_id: str) -> Person | None:
        """Find a person by id."""
        return next((person for person in PEOPLE if person.id == user_id), None)

    def find_organization(self, organization_id: str) -> Organization | None:
        """Find an organization by id."""
        return next((each for each in ORGANIZATIONS if each.id == organization_id), None)

    def find_membership(self, organization_id: str, user_id: str) -> Membership | None:
        """Find what one person is in one organization, at this moment."""
        role = self._roles.get((organization_id, user_id))
        if role is None:
            return None
        return Membership(f"member_{organization_id}_{user_id}", organization_id, user_id, role)

    def list_memberships(self, organization_id: str) -> list[Membership]:
        """List the members of an organization."""
        found = (self.find_membership(organization_id, person.id) for person in PEOPLE)
        return [membership for membership in found if membership]

    def list_organizations(self, user_id: str) -> list[Organization]:
        """List the organizations that a person is a member of."""
        return [each for each in ORGANIZATIONS if (each.id, user_id) in self._roles]

    def set_role(self, organization_id: str, user_id: str, role: str | None) -> None:
        """Give a person a role in an organization; None ends the membership."""
        if role is None:
            self._roles.pop((organization_id, user_id), None)
        else:
            self._roles[organization_id, user_id] = role
