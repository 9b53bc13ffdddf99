"""Who is there, and where, when a sandbox starts for the first time."""

from dataclasses import dataclass

from interlock_sandbox.slack.model import Channel, Enterprise, User, Workspace

# Channels that the app joins when it is installed, so that a newcomer can
# mention it at once. Real Slack waits for an invitation.
HOME_CHANNELS = frozenset({"general", "help"})


@dataclass(frozen=True)
class Cast:
    """The first people and places, by id."""

    workspaces: dict[str, Workspace]
    enterprises: dict[str, Enterprise]
    channels: dict[str, Channel]


def first_cast() -> Cast:
    """Return two companies that share a channel, and an Enterprise of two workspaces."""
    northwind = _workspace("T0NORTHWIND", "Northwind", _northwind())
    contoso = _workspace("T0CONTOSO", "Contoso", _contoso())
    meridian, sales, operations = _meridian()
    channels = [
        *_channels(
            northwind,
            "NO",
            {"general": "Company-wide news", "help": "Ask anything", "random": "Off topic"},
        ),
        *_channels(
            contoso, "CO", {"general": "Everyone at Contoso", "help": "Questions and answers"}
        ),
        *_channels(sales, "MS", {"general": "Everyone in sales", "help": "Ask about customers"}),
        *_channels(operations, "MO", {"general": "Everyone in operations", "help": "Ask about us"}),
        Channel(
            "C0NOLEADS",
            "leads",
            ["U0ADA", "U0BEN"],
            [northwind.id],
            is_private=True,
            purpose="Team leads only",
        ),
        Channel(
            "C0PARTNERS",
            "partners",
            ["U0ADA", "U0MIA", "U0OLGA", "U0CARL"],
            [northwind.id, contoso.id],
            purpose="Northwind and Contoso, by Slack Connect",
        ),
        Channel(
            "C0MEALLHANDS",
            "all-hands",
            list(meridian.users),
            [sales.id, operations.id],
            purpose="Every workspace of Meridian",
        ),
    ]
    workspaces = (northwind, contoso, sales, operations)
    return Cast(
        {each.id: each for each in workspaces},
        {meridian.id: meridian},
        {each.id: each for each in channels},
    )


def _northwind() -> list[User]:
    return [
        _owner("U0ADA", "ada", "Ada Lindqvist", "ada@northwind.example", "Head of IT"),
        _admin("U0BEN", "ben", "Ben Okafor", "ben@northwind.example", "IT operations"),
        User("U0MIA", "mia", "Mia Castellanos", "mia@northwind.example", "Account manager"),
        User("U0ROB", "rob", "Rob Tanaka", "rob@northwind.example", "Warehouse lead"),
    ]


def _contoso() -> list[User]:
    return [
        _owner("U0OLGA", "olga", "Olga Petrenko", "olga@contoso.example", "Founder"),
        User("U0CARL", "carl", "Carl Mbeki", "carl@contoso.example", "Analyst"),
    ]


def _meridian() -> tuple[Enterprise, Workspace, Workspace]:
    """Return an Enterprise and its workspaces; an account of the Enterprise is one everywhere."""
    greta = _owner("U0GRETA", "greta", "Greta Vasquez", "greta@meridian.example", "CIO")
    hugo = User("U0HUGO", "hugo", "Hugo Brandt", "hugo@meridian.example", "Sales")
    iris = _admin("U0IRIS", "iris", "Iris Nakamura", "iris@meridian.example", "Operations")
    sales = _workspace("T0MERSALES", "Meridian Sales", [greta, hugo])
    operations = _workspace("T0MEROPS", "Meridian Operations", [greta, iris])
    everybody = {each.id: each for each in (greta, hugo, iris)}
    meridian = Enterprise("E0MERIDIAN", "Meridian", "meridian", everybody)
    for workspace in (sales, operations):
        workspace.enterprise = meridian.id
        meridian.workspaces.append(workspace.id)
    for user in everybody.values():
        user.home = meridian.id
    return meridian, sales, operations


def _owner(user: str, name: str, real_name: str, email: str, title: str) -> User:
    return User(user, name, real_name, email, title, is_owner=True, is_admin=True)


def _admin(user: str, name: str, real_name: str, email: str, title: str) -> User:
    return User(user, name, real_name, email, title, is_admin=True)


def _workspace(team: str, name: str, users: list[User]) -> Workspace:
    for user in users:
        user.home = team
    return Workspace(team, name, name.lower().replace(" ", "-"), {user.id: user for user in users})


def _channels(workspace: Workspace, initials: str, purposes: dict[str, str]) -> list[Channel]:
    return [
        Channel(
            f"C0{initials}{name.upper()}",
            name,
            list(workspace.users),
            [workspace.id],
            purpose=purpose,
        )
        for name, purpose in purposes.items()
    ]
