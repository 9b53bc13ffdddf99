"""The runner over gRPC: agents and runs as the user whose token the call carries."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from grpc import aio

from interlock.runner.v1 import runner_pb2 as pb
from interlock.runner.v1.runner_pb2_grpc import RunnerServiceStub
from interlock_chassis.client import remote_errors
from interlock_chassis.clock import Clock
from interlock_gateway.worker.answer import Choice, Project, Source
from interlock_gateway.worker.ports import (
    Agent,
    ApprovalNeeded,
    Ask,
    Finished,
    RunEvent,
    Started,
    Text,
    ToolStarted,
    UserToken,
)

_BROWSE_SECONDS = 15.0
_NAME_SECONDS = 3.0
# The contract caps a run at 30 min.
_RUN_SECONDS = 1800.0
# A name is asked for with every answer, and changes seldom.
_NAME_LIFE_SECONDS = 300.0
_MAX_NAMES = 1000

_ENTRY_POINTS: Mapping[str, "pb.EntryPoint.ValueType"] = {
    "app_mention": pb.ENTRY_POINT_APP_MENTION,
    "direct_message": pb.ENTRY_POINT_DIRECT_MESSAGE,
    "smart_link_resume": pb.ENTRY_POINT_SMART_LINK_RESUME,
}
_OUTCOMES: Mapping[int, str] = {
    pb.RUN_OUTCOME_COMPLETED: "completed",
    pb.RUN_OUTCOME_FAILED: "failed",
    pb.RUN_OUTCOME_INCOMPLETE: "incomplete",
    pb.RUN_OUTCOME_LIMIT_REACHED: "limit_reached",
}


class GrpcRunner:
    """The `Runner` port; remembers the names of agents for five minutes."""

    def __init__(self, channel: aio.Channel, clock: Clock) -> None:
        self._runner = RunnerServiceStub(channel)
        self._clock = clock
        self._names: dict[tuple[str, Agent], tuple[str, float]] = {}

    async def list_projects(self, token: UserToken) -> Sequence[Project]:
        """List the projects and agents that the user may see."""
        request = pb.ListProjectsRequest(user_token=token.token.reveal(), tenant_id=token.tenant_id)
        with remote_errors():
            answer = await self._runner.ListProjects(request, timeout=_BROWSE_SECONDS)
        return [
            Project(
                project.name,
                [
                    Choice(project.project_id, agent.agent_id, agent.name or agent.agent_id)
                    for agent in project.agents
                ],
            )
            for project in answer.projects
        ]

    async def agent_name(self, token: UserToken, agent: Agent) -> str:
        """Return an agent's display name, its id where the user may not see it."""
        key, now = (token.tenant_id, agent), self._clock.monotonic()
        name, until = self._names.get(key, ("", 0.0))
        if now < until:
            return name
        request = pb.ListAgentsRequest(
            user_token=token.token.reveal(),
            project_id=agent.project_id,
            tenant_id=token.tenant_id,
        )
        with remote_errors():
            answer = await self._runner.ListAgents(request, timeout=_NAME_SECONDS)
        names = {each.agent_id: each.name for each in answer.agents}
        name = names.get(agent.agent_id, "")
        if not name:
            return agent.agent_id
        if len(self._names) >= _MAX_NAMES:
            self._names.clear()
        self._names[key] = (name, now + _NAME_LIFE_SECONDS)
        return name

    async def run(self, token: UserToken, ask: Ask) -> AsyncGenerator[RunEvent, None]:
        """Run an agent; closing the generator ends the run."""
        request = pb.RunRequest(
            user_token=token.token.reveal(),
            project_id=ask.agent.project_id,
            agent_id=ask.agent.agent_id,
            conversation_id=ask.conversation_id,
            message_id=ask.message_id,
            prompt=ask.prompt,
            entry_point=_ENTRY_POINTS[ask.entry_point],
        )
        call = self._runner.Run(request, timeout=_RUN_SECONDS)
        try:
            with remote_errors():
                async for response in call:
                    event = _event(response)
                    if event is not None:
                        yield event
        finally:
            call.cancel()


def _event(response: pb.RunResponse) -> RunEvent | None:
    """Translate one event; None for those that nobody here acts upon."""
    read = _EVENTS.get(response.WhichOneof("event") or "")
    return read(response) if read else None


def _tool(response: pb.RunResponse) -> RunEvent | None:
    is_start = response.tool.state == pb.TOOL_STATE_STARTED
    return ToolStarted(response.tool.tool_name) if is_start else None


def _finished(response: pb.RunResponse) -> RunEvent:
    end = response.finished
    return Finished(_OUTCOMES.get(end.outcome, "incomplete"), end.reason, end.detail)


_EVENTS: Mapping[str, Callable[[pb.RunResponse], RunEvent | None]] = {
    "started": lambda _: Started(),
    "text": lambda response: Text(response.text.text),
    "tool": _tool,
    "approval_request": lambda _: ApprovalNeeded(),
    "source": lambda response: Source(response.source.title, response.source.url),
    "finished": _finished,
}
