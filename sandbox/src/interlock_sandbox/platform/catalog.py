"""The platform's projects and agents, and who may see and run them."""

from dataclasses import dataclass

from interlock_sandbox.directory import ADMIN, MEMBER, OWNER, Directory

_EVERYBODY = frozenset({OWNER, ADMIN, MEMBER})
_ADMINS = frozenset({OWNER, ADMIN})


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
        viewers: Roles that see it.
        users: Roles that may also run its agents, as on the real platform,
            where somebody can see agents without being allowed to run them.
    """

    id: str
    tenant_id: str
    name: str
    description: str
    agents: tuple[Agent, ...]
    viewers: frozenset[str] = _EVERYBODY
    users: frozenset[str] = _EVERYBODY

    def find_agent(self, agent_id: str) -> Agent | None:
        """Find an agent of the project by id."""
        return next((agent for agent in self.agents if agent.id == agent_id), None)


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
        users=_ADMINS,
    ),
    Project(
        "board",
        "northwind",
        "Board papers",
        "Seen and used by administrators",
        (Agent("minutes", "Minutes", "Finds past decisions", "help_desk"),),
        viewers=_ADMINS,
        users=_ADMINS,
    ),
    Project(
        "atlas",
        "contoso",
        "Atlas",
        "Contoso's only project",
        (Agent("guide", "Guide", "Knows its way around", "help_desk"),),
    ),
)


def find_project(tenant_id: str, project_id: str) -> Project | None:
    """Find a tenant's project by id."""
    wanted = (tenant_id, project_id)
    return next((each for each in PROJECTS if (each.tenant_id, each.id) == wanted), None)


def visible_projects(directory: Directory, tenant_id: str, user_id: str) -> list[Project]:
    """List what a person may see, at this moment."""
    roles = _roles(directory, tenant_id, user_id)
    return [each for each in PROJECTS if each.tenant_id == tenant_id and roles & each.viewers]


def may_run(directory: Directory, project: Project, user_id: str) -> bool:
    """Say whether a person may run a project's agents, at this moment."""
    return bool(_roles(directory, project.tenant_id, user_id) & project.users)


def _roles(directory: Directory, tenant_id: str, user_id: str) -> frozenset[str]:
    membership = directory.find_membership(tenant_id, user_id)
    return frozenset(membership.role.split(",")) if membership else frozenset()
