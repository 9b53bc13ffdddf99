"""The runner, held to the real AI SDK: what it writes, and what its own client reads."""

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_runner.adapters.platform_http import HttpPlatform, PathStyle, open_platform
from interlock_runner.domain.events import (
    Approval,
    Finished,
    Outcome,
    RunEvent,
    Started,
    Text,
    Tool,
    ToolState,
)
from interlock_runner.domain.redaction import Redactor
from interlock_runner.runs import Agent, Limits, Platform, Project, Question, run
from interlock_sandbox.platform.catalog import PROJECTS
from interlock_sandbox.server import running
from interlock_sandbox.testing import example_config, sign_user_token, user_token_claims

pytestmark = pytest.mark.node

FIXTURES = Path(__file__).parents[1] / "fixtures"
LIMITS = Limits(total=timedelta(seconds=30), silence=timedelta(seconds=5))
# Without end and without a word; the recorder gave up on it as well.
HANG = "hang"
# By the HTTP status of a refusal: why the run was not started.
REFUSALS = {
    401: "USER_TOKEN_REFUSED",
    403: "AGENT_NOT_ALLOWED",
    429: "PLATFORM_RATE_LIMITED",
    500: "PLATFORM_UNAVAILABLE",
}


def _recorded(refused: bool) -> list[str]:
    paths = sorted((FIXTURES / "ai-sdk-6-sse").glob("*.txt"))
    return [path.stem for path in paths if path.stem.startswith("http-") is refused]


class Overheard:
    """A platform that keeps the bytes of the answers that pass through it."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.heard = b""

    async def list_projects(self, token: Secret[str], tenant_id: str) -> list[Project]:
        """Pass the question on."""
        return await self._platform.list_projects(token, tenant_id)

    async def list_agents(self, token: Secret[str], tenant_id: str, project_id: str) -> list[Agent]:
        """Pass the question on."""
        return await self._platform.list_agents(token, tenant_id, project_id)

    async def chat(
        self, token: Secret[str], question: Question, silence: timedelta
    ) -> AsyncGenerator[bytes, None]:
        """Pass the question on, and listen to the answer."""
        async with aclosing(self._platform.chat(token, question, silence)) as chunks:
            async for chunk in chunks:
                self.heard += chunk
                yield chunk


class Recording:
    """A platform that gives a recorded answer to everything."""

    def __init__(self, path: Path) -> None:
        # After the headers, and without the recorder's own note.
        body = path.read_bytes().partition(b"\n\n")[2]
        self._body = body.partition(b"\n[client error")[0]

    async def list_projects(self, token: Secret[str], tenant_id: str) -> list[Project]:
        """Know none."""
        return []

    async def list_agents(self, token: Secret[str], tenant_id: str, project_id: str) -> list[Agent]:
        """Know none."""
        return []

    async def chat(
        self, token: Secret[str], question: Question, silence: timedelta
    ) -> AsyncGenerator[bytes, None]:
        """Play the recording."""
        yield b""
        yield self._body


@dataclass
class Stage:
    """The AI SDK of one major version, and the runner's adapter pointed at it."""

    version: str
    url: str
    http: aiohttp.ClientSession
    platform: HttpPlatform

    async def ask(self, path: str, body: bytes | None = None) -> Any:
        """Ask the peer itself."""
        method = "GET" if body is None else "POST"
        async with self.http.request(method, f"{self.url}/{path}", data=body) as response:
            return json.loads(await response.read())

    def recording(self, scenario: str) -> Path:
        """Return the recorded answer of a scenario."""
        return FIXTURES / f"ai-sdk-{self.version}-sse" / f"{scenario}.txt"


@pytest.fixture(scope="module", params=["6", "7"], ids=["ai-6", "ai-7"])
def peer(
    request: pytest.FixtureRequest, start_peer: Callable[[str, Mapping[str, object]], str]
) -> tuple[str, str]:
    """Run the AI SDK; give its major version and URL."""
    return request.param, start_peer("ai-sdk", {"package": f"ai-{request.param}"})


@pytest.fixture
async def stage(peer: tuple[str, str]) -> AsyncIterator[Stage]:
    """Give the AI SDK and who asks it."""
    version, url = peer
    async with (
        aiohttp.ClientSession() as http,
        open_platform(URL(url), URL(url), PathStyle.PLAIN) as platform,
    ):
        yield Stage(version, url, http, platform)


def _question(prompt: str, agent: str = "agent_1", project: str = "project_1") -> Question:
    return Question(project, agent, "slack-trigger-1", "m1", prompt, "app_mention")


def _run(
    platform: Platform, question: Question, token: str = "the user's token", limits: Limits = LIMITS
) -> AsyncGenerator[RunEvent, None]:
    redactor = Redactor(token)
    return run(platform, Secret(token), question, limits=limits, redactor=redactor)


async def _events(platform: Platform, scenario: str) -> list[RunEvent]:
    """Run a scenario to its end; pieces of text are joined, and random ids left out."""
    joined: list[RunEvent] = []
    async with aclosing(_run(platform, _question(f"scenario:{scenario}"))) as events:
        async for event in events:
            last = joined[-1] if joined else None
            if isinstance(event, Text) and isinstance(last, Text):
                joined[-1] = Text(last.text + event.text)
            elif isinstance(event, Approval):
                joined.append(replace(event, approval_id=""))
            else:
                joined.append(event)
    return joined


def _text(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_every_recorded_scenario_is_there(stage: Stage) -> None:
    """The recordings and the real SDK know the same scenarios."""
    names = await stage.ask("scenarios")
    assert sorted(names) == sorted(_recorded(refused=False) + _recorded(refused=True))
    assert all(stage.recording(name).is_file() for name in names)


@pytest.mark.parametrize("scenario", [name for name in _recorded(refused=False) if name != HANG])
async def test_live_answer_means_what_its_recording_means(stage: Stage, scenario: str) -> None:
    """Over a real connection come the same events, to the same end, as from the recorded bytes.

    And the text is what the SDK's own client makes of the same bytes.
    """
    overheard = Overheard(stage.platform)
    live = await _events(overheard, scenario)
    assert live == await _events(Recording(stage.recording(scenario)), scenario)
    assert live[0] == Started()
    assert isinstance(live[-1], Finished)
    read = await stage.ask("read", overheard.heard)
    assert _text(live) == "\n\n".join(_texts_of(read))


def _texts_of(read: dict[str, Any]) -> list[str]:
    return [part["text"] for part in read["parts"] if part["type"] == "text"]


@pytest.mark.parametrize("scenario", _recorded(refused=True))
async def test_live_refusal_has_the_reason_of_its_status(stage: Stage, scenario: str) -> None:
    """A run that was not started ends in the error that its recorded status stands for."""
    found = re.match(rb"HTTP (\d+)\n", stage.recording(scenario).read_bytes())
    assert found
    with pytest.raises(ServiceError) as caught:
        await _events(stage.platform, scenario)
    assert caught.value.reason == REFUSALS[int(found[1])]
    if scenario == "http-429":
        assert caught.value.retry_after == timedelta(seconds=2)


async def test_question_arrives_as_the_sdk_takes_it(stage: Stage) -> None:
    """The user's token, project, agent and one user message reach a real Node server whole."""
    await _events(stage.platform, "text")
    last = await stage.ask("last")
    sent = {
        "authorization": "Bearer the user's token",
        "accept": "text/event-stream",
        "x-inkeep-project-id": "project_1",
        "x-inkeep-agent-id": "agent_1",
    }
    assert sent.items() <= last["headers"].items()
    assert last["body"]["messages"] == [{"role": "user", "content": "scenario:text"}]
    assert last["closed"] == {"early": False}


async def test_silence_ends_the_run_and_the_connection(stage: Stage) -> None:
    """An agent that says nothing is given up, and its server sees us go."""
    limits = replace(LIMITS, silence=timedelta(seconds=0.2))
    async with aclosing(_run(stage.platform, _question("scenario:hang"), limits=limits)) as events:
        assert [event async for event in events] == [
            Started(),
            Finished(Outcome.LIMIT_REACHED, "STREAM_SILENT"),
        ]
    assert (await stage.ask("last"))["closed"] == {"early": True}


@pytest.mark.parametrize("scenario", ["hang", "slow"])
async def test_cancelling_closes_the_connection(stage: Stage, scenario: str) -> None:
    """A run whose asker leaves is one whose server sees the connection close, whatever it does."""
    async with aclosing(_run(stage.platform, _question(f"scenario:{scenario}"))) as events:
        assert await anext(events) == Started()
        if scenario == "slow":
            assert await anext(events) == Text("0")
    assert (await stage.ask("last"))["closed"] == {"early": True}


# The sandbox's platform, read by the runner and by the SDK's own client.

# What the SDK's client calls the states of a tool call that has ended.
TOOL_STATES = {"output-available": ToolState.SUCCEEDED, "output-denied": ToolState.DENIED}
SANDBOX_AGENTS = [
    (project.id, agent.id)
    for project in PROJECTS
    if project.tenant_id == "northwind"
    for agent in project.agents
]


@pytest.mark.parametrize(("project", "agent"), SANDBOX_AGENTS)
async def test_sandbox_answer_is_one_that_the_sdk_reads(
    stage: Stage, project: str, agent: str
) -> None:
    """The SDK's client takes every chunk of the stand-in, and reads what the runner reads."""
    token = sign_user_token(user_token_claims(time.time(), sub="user_ada"))
    events: list[RunEvent] = []
    async with (
        running(example_config()) as urls,
        open_platform(URL(urls.platform), URL(urls.platform), PathStyle.PLAIN) as platform,
    ):
        overheard = Overheard(platform)
        question = _question("refund order 10482 please", agent, project)
        async with aclosing(_run(overheard, question, token)) as run_events:
            async for event in run_events:
                events.append(event)
                if isinstance(event, Approval):
                    await _approve(stage.http, urls.platform, token, question, event)
    read = await stage.ask("read", overheard.heard)
    assert read["broken"] == []
    # The runner makes paragraphs of blocks with different ids; the client tells no ids.
    assert _text(events).split() == "".join(_texts_of(read)).split()
    ended = {each.tool_call_id: each.state for each in events if isinstance(each, Tool)}
    assert ended == {
        part["toolCallId"]: TOOL_STATES[part["state"]]
        for part in read["parts"]
        if part["type"].startswith("tool-")
    }
    expected = Outcome.FAILED if agent == "unlucky" else Outcome.COMPLETED
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome is expected


async def _approve(
    http: aiohttp.ClientSession, url: str, token: str, question: Question, approval: Approval
) -> None:
    part = {
        "type": "tool-call",
        "toolCallId": approval.tool_call_id,
        "state": "approval-responded",
        "approval": {"id": approval.approval_id, "approved": True},
    }
    body = {
        "conversationId": question.conversation_id,
        "messages": [{"role": "tool", "parts": [part]}],
    }
    headers = {
        "Authorization": f"Bearer {token}",
        "x-inkeep-project-id": question.project_id,
        "x-inkeep-agent-id": question.agent_id,
    }
    async with http.post(f"{url}/run/api/chat", json=body, headers=headers) as response:
        assert response.status == 200
