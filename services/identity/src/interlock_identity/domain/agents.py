"""Which agent answers where nobody chose one."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from interlock_chassis.errors import InvalidArgument


class MalformedAgentDefault(InvalidArgument):
    """A default agent needs a project and an agent, and its channel cannot be told twice."""

    reason = "MALFORMED_AGENT_DEFAULT"


class AgentSource(Enum):
    """Where a default stands."""

    NOWHERE = "nowhere"
    CHANNEL = "channel"
    WORKSPACE = "workspace"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent of the platform."""

    project_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class AgentDefault:
    """The agent that an administrator chose for a place.

    Attributes:
        channel_id: Slack `C…`, or "" for the whole workspace.
        grants_access: Whether members who may not see the project may still run it here.
    """

    channel_id: str
    agent: Agent
    grants_access: bool


@dataclass(frozen=True, slots=True)
class ResolvedAgent:
    """The agent that answers, and who said so.

    Attributes:
        agent: None when the user must pick.
    """

    agent: Agent | None
    source: AgentSource


def find_default(defaults: Iterable[AgentDefault], channel_id: str) -> AgentDefault | None:
    """Find the default of a channel, else the workspace's.

    Args:
        defaults: The workspace's defaults.
        channel_id: The channel that asks, or "" for none.
    """
    by_channel = {default.channel_id: default for default in defaults}
    return by_channel.get(channel_id) or by_channel.get("")


def resolve_agent(found: AgentDefault | None, operator: Agent | None) -> ResolvedAgent:
    """Say which agent answers: the channel's, the workspace's, the operator's, or none."""
    if found is not None:
        source = AgentSource.CHANNEL if found.channel_id else AgentSource.WORKSPACE
        return ResolvedAgent(found.agent, source)
    if operator is not None:
        return ResolvedAgent(operator, AgentSource.OPERATOR)
    return ResolvedAgent(None, AgentSource.NOWHERE)
