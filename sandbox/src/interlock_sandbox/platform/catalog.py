"""The platform's projects and agents, and who may see, run and edit them."""

from dataclasses import dataclass
from typing import Any

from interlock_sandbox.directory import ADMIN, OWNER, Directory

PROJECT_ADMIN, PROJECT_MEMBER, PROJECT_VIEWER = "project_admin", "project_member", "project_viewer"
PROJECT_ROLES = frozenset({PROJECT_ADMIN, PROJECT_MEMBER, PROJECT_VIEWER})


@dataclass(frozen=True)
class Agent:
    """An agent; `script` names what it does in `scripts`."""

    id: str
    name: str
    description: str
    script: str


@dataclass(frozen=True)
class Project:
    """A project of one tenant.

    Attributes:
        everyone: The role of every member of the tenant who has no other one.
            Viewers see agents without being allowed to run them, as on the real
            platform; without a role they do not even see the project.
    """

    id: str
    tenant_id: str
    name: str
    description: str
    agents: tuple[Agent, ...]
    everyone: str | None = PROJECT_MEMBER

    def find_agent(self, agent_id: str) -> Agent | None:
        """Find an agent of the project by id."""
        return next((agent for agent in self.agents if agent.id == agent_id), None)


@dataclass(frozen=True)
class Permissions:
    """What one person may do with one project."""

    view: bool
    use: bool
    edit: bool


PROJECTS = (
    Project(
        "support",
        "northwind",
        "Customer support",
        "Answers for customers and for those who serve them",
        (
            Agent("help-desk", "Help Desk", "Short answers with their sources", "help_desk"),
            Agent("order-desk", "Order Desk", "Looks orders up before it answers", "order_desk"),
            Agent("refunds", "Refunds", "Pays back, after somebody agreed", "refunds"),
        ),
    ),
    Project(
        "people",
        "northwind",
        "People & workplace",
        "Policies, travel, time off",
        (Agent("handbook", "Handbook", "Long answers from the staff handbook", "handbook"),),
    ),
    Project(
        "lab",
        "northwind",
        "Lab",
        "Agents that misbehave, to see what happens then",
        (
            Agent("unlucky", "Unlucky", "Fails in the middle of an answer", "unlucky"),
            Agent("silent", "Silent", "Finishes without saying anything", "silent"),
            Agent("tome", "Tome", "Says more than fits into one message", "tome"),
        ),
    ),
    Project(
        "finance",
        "northwind",
        "Finance",
        "Seen by everybody, used by administrators",
        (Agent("ledger", "Ledger", "Reads the books", "help_desk"),),
        everyone=PROJECT_VIEWER,
    ),
    Project(
        "board",
        "northwind",
        "Board papers",
        "Seen and used by administrators",
        (Agent("minutes", "Minutes", "Finds past decisions", "help_desk"),),
        everyone=None,
    ),
    Project(
        "atlas",
        "contoso",
        "Atlas",
        "Contoso's only project",
        (Agent("guide", "Guide", "Knows its way around", "help_desk"),),
    ),
    Project(
        "field",
        "meridian",
        "Field sales",
        "Meridian's only project",
        (Agent("scout", "Scout", "Knows the customers", "help_desk"),),
    ),
)


def find_project(tenant_id: str, project_id: str) -> Project | None:
    """Find a tenant's project by id."""
    wanted = (tenant_id, project_id)
    return next((each for each in PROJECTS if (each.tenant_id, each.id) == wanted), None)


class Access:
    """Who has which role in which project; owners and administrators of a tenant have all.

    Args:
        saved: What `snapshot` returned in an earlier run.
    """

    def __init__(self, directory: Directory, saved: list[list[str]] | None) -> None:
        self._directory = directory
        self._roles = {(tenant, project, user): role for tenant, project, user, role in saved or []}

    def snapshot(self) -> list[list[str]]:
        """Return what a restart needs."""
        return [[*key, role] for key, role in self._roles.items()]

    def of(self, project: Project, user_id: str) -> Permissions:
        """Return what a person may do with a project, at this moment."""
        membership = self._directory.find_membership(project.tenant_id, user_id)
        if membership is None:
            return Permissions(view=False, use=False, edit=False)
        if {OWNER, ADMIN} & set(membership.role.split(",")):
            return Permissions(view=True, use=True, edit=True)
        role = self._roles.get((project.tenant_id, project.id, user_id), project.everyone)
        return Permissions(
            view=role is not None,
            use=role in {PROJECT_ADMIN, PROJECT_MEMBER},
            edit=role == PROJECT_ADMIN,
        )

    def visible(self, tenant_id: str, user_id: str) -> list[Project]:
        """List what a person may see, at this moment."""
        mine = [each for each in PROJECTS if each.tenant_id == tenant_id]
        return [each for each in mine if self.of(each, user_id).view]

    def members(self, project: Project) -> list[dict[str, Any]]:
        """List the people with a role of their own in a project."""
        return [
            {"userId": user, "role": role}
            for (tenant, project_id, user), role in self._roles.items()
            if (tenant, project_id) == (project.tenant_id, project.id)
        ]

    def grant(self, project: Project, user_id: str, role: str) -> None:
        """Give a person a role in a project, instead of the one held before."""
        self._roles[project.tenant_id, project.id, user_id] = role

    def revoke(self, project: Project, user_id: str, role: str) -> None:
        """Take a role in a project away; nothing happens to somebody who has another."""
        key = (project.tenant_id, project.id, user_id)
        if self._roles.get(key) == role:
            del self._roles[key]
