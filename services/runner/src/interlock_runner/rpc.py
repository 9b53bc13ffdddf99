"""Proto in, proto out: `interlock.runner.v1.RunnerService`."""

import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from grpc import aio

from interlock.runner.v1 import runner_pb2
from interlock_chassis.callers import CallerTable
from interlock_chassis.errors import Unimplemented
from interlock_chassis.secret import Secret
from interlock_runner.domain.events import (
    Approval,
    Finished,
    Outcome,
    RunEvent,
    Source,
    Started,
    Text,
    Tool,
    ToolState,
)
from interlock_runner.domain.redaction import Redactor
from interlock_runner.runs import Agent, Limits, Platform, Question, UserTokenRefused, run

if TYPE_CHECKING:
    # Generic in the stubs only.
    _Context = aio.ServicerContext[Any, Any]
else:
    _Context = aio.ServicerContext

SERVICE = "interlock.runner.v1.RunnerService"

_WORKER = frozenset({"gateway-worker"})
CALLERS: CallerTable = MappingProxyType(
    {
        f"/{SERVICE}/ListProjects": _WORKER,
        f"/{SERVICE}/ListAgents": _WORKER,
        f"/{SERVICE}/Run": _WORKER,
        f"/{SERVICE}/Approve": _WORKER,
        f"/{SERVICE}/Cancel": _WORKER,
    }
)
"""Who may call what."""

# As long as Slack lets an answer stream, and a person waits for one.
RUN_CAP = timedelta(minutes=30)
CAPS: Mapping[str, timedelta] = MappingProxyType(
    {
        # Several pages, and a look-up of agents for every project.
        f"/{SERVICE}/ListProjects": timedelta(seconds=10),
        f"/{SERVICE}/Run": RUN_CAP,
    }
)
"""The longest time each RPC may take, where it is not the usual one."""

# A prompt over its limit must reach the rule that names the limit; the transport would only
# say that the message is too large.
MAX_MESSAGE_BYTES = 2 * 1024 * 1024

# What a run keeps of its deadline to say how it ended.
_FAREWELL = timedelta(seconds=1)

# The token goes into a header: printable ASCII without spaces.
_TOKEN = re.compile(r"[!-~]+", re.ASCII)

_ENTRY_POINTS: Mapping[int, str] = MappingProxyType(
    {
        runner_pb2.ENTRY_POINT_APP_MENTION: "app_mention",
        runner_pb2.ENTRY_POINT_DIRECT_MESSAGE: "direct_message",
        runner_pb2.ENTRY_POINT_SLASH_COMMAND: "slash_command",
        runner_pb2.ENTRY_POINT_MESSAGE_SHORTCUT: "message_shortcut",
        runner_pb2.ENTRY_POINT_MODAL_SUBMISSION: "modal_submission",
        runner_pb2.ENTRY_POINT_SMART_LINK_RESUME: "smart_link_resume",
        runner_pb2.ENTRY_POINT_TOOL_APPROVAL: "tool_approval",
    }
)
_TOOL_STATES: Mapping[ToolState, runner_pb2.ToolState.ValueType] = MappingProxyType(
    {
        ToolState.STARTED: runner_pb2.TOOL_STATE_STARTED,
        ToolState.SUCCEEDED: runner_pb2.TOOL_STATE_SUCCEEDED,
        ToolState.FAILED: runner_pb2.TOOL_STATE_FAILED,
        ToolState.DENIED: runner_pb2.TOOL_STATE_DENIED,
    }
)
_OUTCOMES: Mapping[Outcome, runner_pb2.RunOutcome.ValueType] = MappingProxyType(
    {
        Outcome.COMPLETED: runner_pb2.RUN_OUTCOME_COMPLETED,
        Outcome.FAILED: runner_pb2.RUN_OUTCOME_FAILED,
        Outcome.INCOMPLETE: runner_pb2.RUN_OUTCOME_INCOMPLETE,
        Outcome.LIMIT_REACHED: runner_pb2.RUN_OUTCOME_LIMIT_REACHED,
    }
)


class RunnerRpc:
    """Serve the runner; the contract of each RPC stands in its proto.

    Args:
        platform: The agents platform.
        silence: How long a run may say nothing.
    """

    def __init__(self, platform: Platform, silence: timedelta) -> None:
        self._platform = platform
        self._silence = silence

    async def ListProjects(  # noqa: N802 - The name is the contract's.
        self, request: runner_pb2.ListProjectsRequest, _context: _Context
    ) -> runner_pb2.ListProjectsResponse:
        """List every project the user may see, with its agents."""
        projects = await self._platform.list_projects(_token(request.user_token), request.tenant_id)
        redactor = Redactor(request.user_token)
        return runner_pb2.ListProjectsResponse(
            projects=[
                runner_pb2.Project(
                    project_id=project.project_id,
                    name=redactor.redact(project.name),
                    agents=_agents(project.agents, redactor),
                )
                for project in projects
            ]
        )

    async def ListAgents(  # noqa: N802 - The name is the contract's.
        self, request: runner_pb2.ListAgentsRequest, _context: _Context
    ) -> runner_pb2.ListAgentsResponse:
        """List the agents of one project."""
        agents = await self._platform.list_agents(
            _token(request.user_token), request.tenant_id, request.project_id
        )
        redactor = Redactor(request.user_token)
        return runner_pb2.ListAgentsResponse(agents=_agents(agents, redactor))

    async def Run(  # noqa: N802 - The name is the contract's.
        self, request: runner_pb2.RunRequest, context: _Context
    ) -> AsyncGenerator[runner_pb2.RunResponse, None]:
        """Run an agent and stream what it says."""
        question = Question(
            project_id=request.project_id,
            agent_id=request.agent_id,
            conversation_id=request.conversation_id,
            message_id=request.message_id,
            prompt=request.prompt,
            entry_point=_ENTRY_POINTS[request.entry_point],
        )
        events = run(
            self._platform,
            _token(request.user_token),
            question,
            limits=Limits(total=_budget(context), silence=self._silence),
            redactor=Redactor(request.user_token),
        )
        # A call that ends in the middle closes the generator, and so the connection upstream.
        async with aclosing(events):
            async for event in events:
                yield _response(event)

    async def Approve(  # noqa: N802 - The name is the contract's.
        self, _request: runner_pb2.ApproveRequest, _context: _Context
    ) -> runner_pb2.ApproveResponse:
        """Answer UNIMPLEMENTED: approvals are not served yet."""
        raise Unimplemented

    async def Cancel(  # noqa: N802 - The name is the contract's.
        self, _request: runner_pb2.CancelRequest, _context: _Context
    ) -> runner_pb2.CancelResponse:
        """Answer UNIMPLEMENTED: a run is ended by cancelling its own call."""
        raise Unimplemented


def _token(text: str) -> Secret[str]:
    if not _TOKEN.fullmatch(text):
        raise UserTokenRefused("a user token holds printable ASCII only")
    return Secret(text)


def _budget(context: _Context) -> timedelta:
    """Take the time until the deadline, less what is needed to say how the run ended."""
    remaining: float | None = context.time_remaining()
    left = RUN_CAP if remaining is None else min(RUN_CAP, timedelta(seconds=max(remaining, 0)))
    return max(left - _FAREWELL, left / 2)


def _agents(agents: Iterable[Agent], redactor: Redactor) -> list[runner_pb2.Agent]:
    return [
        runner_pb2.Agent(agent_id=agent.agent_id, name=redactor.redact(agent.name))
        for agent in agents
    ]


def _response(event: RunEvent) -> runner_pb2.RunResponse:
    match event:
        case Started():
            return runner_pb2.RunResponse(started=runner_pb2.RunStarted())
        case Text(text):
            return runner_pb2.RunResponse(text=runner_pb2.TextDelta(text=text))
        case Tool(call, name, state):
            activity = runner_pb2.ToolActivity(
                tool_call_id=call, tool_name=name, state=_TOOL_STATES[state]
            )
            return runner_pb2.RunResponse(tool=activity)
        case Approval(approval, call, name):
            asked = runner_pb2.ApprovalRequest(
                approval_id=approval, tool_call_id=call, tool_name=name
            )
            return runner_pb2.RunResponse(approval_request=asked)
        case Source(title, url):
            return runner_pb2.RunResponse(source=runner_pb2.Source(title=title, url=url))
        case Finished(outcome, reason, detail):
            finished = runner_pb2.RunFinished(
                outcome=_OUTCOMES[outcome], reason=reason, detail=detail
            )
            return runner_pb2.RunResponse(finished=finished)
