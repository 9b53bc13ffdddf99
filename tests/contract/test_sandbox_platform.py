"""The agents platform stand-in, held against the runner's own adapter and parser."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_runner.adapters.platform_http import HttpPlatform, PathStyle
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
from interlock_runner.runs import Limits, Question, run
from interlock_sandbox.server import running
from interlock_sandbox.testing import (
    USER_TOKEN_KEY,
    example_config,
    sign_user_token,
    user_token_claims,
)

LIMITS = Limits(total=timedelta(seconds=30), silence=timedelta(seconds=5))


@dataclass
class Stage:
    """A platform and the ways to ask it."""

    url: str
    auth_url: str
    http: aiohttp.ClientSession

    def platform(self, style: PathStyle = PathStyle.PLAIN) -> HttpPlatform:
        """Return the runner's adapter, pointed here."""
        return HttpPlatform(self.http, URL(self.url), URL(self.url), style)

    async def run(self, question: Question, token: Secret[str] | None = None) -> list[RunEvent]:
        """Run a question to its end."""
        async with aclosing(self.ask(question, token)) as events:
            return [event async for event in events]

    def ask(
        self, question: Question, token: Secret[str] | None = None, limits: Limits = LIMITS
    ) -> AsyncGenerator[RunEvent, None]:
        """Run a question with the runner's own code."""
        used = token or _token()
        return run(self.platform(), used, question, limits=limits, redactor=Redactor(used.reveal()))

    async def status_of(self, token: str | None, **headers: str) -> int:
        """Ask for projects with any token and return the status."""
        bearer = {"Authorization": f"Bearer {token}"} if token is not None else {}
        async with self.http.get(
            f"{self.url}/manage/api/projects", headers={**bearer, **headers}
        ) as response:
            return response.status

    async def requests(self, ended: int = 0) -> list[dict[str, Any]]:
        """List what was asked so far, when the request of that number has ended."""
        query = {"ended": ended}
        async with self.http.get(f"{self.url}/_control/requests", params=query) as response:
            return list((await response.json())["requests"])

    async def fault(self, **body: Any) -> None:
        """Let a coming request go wrong."""
        async with self.http.post(f"{self.url}/_control/faults", json=body) as response:
            assert response.status == 200

    async def manage(
        self, verb: str, path: str, person: str = "user_ada", **request: Any
    ) -> tuple[int, Any]:
        """Ask the Manage API as somebody; return the status and what was answered."""
        headers = {"Authorization": f"Bearer {_token(sub=person).reveal()}"}
        url = f"{self.url}/manage/api/projects{path}"
        async with self.http.request(verb, url, headers=headers, **request) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a platform whose agents speak without pauses."""
    async with running(example_config()) as urls, aiohttp.ClientSession() as http:
        yield Stage(urls.platform, urls.auth, http)


def _token(**changes: Any) -> Secret[str]:
    return Secret(sign_user_token(user_token_claims(time.time(), **changes)))


def _question(agent: str, message_id: str = "m1", project: str = "support") -> Question:
    return Question(project, agent, "slack-trigger-1", message_id, "refund please", "app_mention")


def _text(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_answer_streams_in_words_with_tools_and_sources(stage: Stage) -> None:
    """The runner's parser reads an answer as tool calls, many small texts, a source, an end."""
    events = await stage.run(_question("help-desk"))
    assert events[0] == Started()
    assert events[-1] == Finished(Outcome.COMPLETED)
    assert "Mia Castellanos" in _text(events)
    assert sum(isinstance(event, Text) for event in events) > 20
    states = [event.state for event in events if isinstance(event, Tool)]
    assert states == [ToolState.STARTED, ToolState.SUCCEEDED]
    assert any(isinstance(event, Source) for event in events)


async def test_long_answer_is_long(stage: Stage) -> None:
    """One agent fills a section of Slack's, and another more than a whole message."""
    events = await stage.run(_question("handbook", "h1", project="people"))
    assert len(_text(events)) > 3000
    assert events[-1] == Finished(Outcome.COMPLETED)
    assert len(_text(await stage.run(_question("tome", "t1", project="lab")))) > 12_000


async def test_unlucky_agent_fails_under_http_200(stage: Stage) -> None:
    """A failure in the middle of an answer is seen as one."""
    events = await stage.run(_question("unlucky", project="lab"))
    assert _text(events).startswith("Let me work that out")
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome is Outcome.FAILED
    assert [each["outcome"] for each in await stage.requests()] == ["failed"]


@pytest.mark.parametrize("shape", [1, 2, 3, 4, 5])
async def test_every_shape_of_failure_is_one(stage: Stage, shape: int) -> None:
    """In whichever of the platform's five ways an agent fails, the runner sees it fail."""
    question = Question("lab", "unlucky", "c1", "m1", f"fail in shape {shape}", "app_mention")
    events = await stage.run(question)
    assert _text(events).startswith("Let me work that out")
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome is Outcome.FAILED
    assert [each["outcome"] for each in await stage.requests()] == ["failed"]


# What each shape looks like; the first two were recorded, the others read in the platform.
SHAPES = {
    1: {"type": "data-operation", "data": {"type": "error", "severity": "error"}},
    2: {"type": "error", "errorText": "Unable to process request"},
    3: {"type": "error", "message": "Stream lifetime exceeded", "severity": "error"},
    4: {"type": "error", "error": "Unable to process request"},
    5: {"error": "Stream error"},
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_shapes_of_failure_are_the_platforms_own(stage: Stage, shape: int) -> None:
    """Each failure has its fields, comes under HTTP 200, and ends with the classic marker."""
    body = {"messages": [{"role": "user", "content": f"fail in shape {shape}"}]}
    headers = _run_headers("unlucky") | {"x-inkeep-project-id": "lab"}
    async with stage.http.post(f"{stage.url}/run/api/chat", json=body, headers=headers) as response:
        assert response.status == 200
        *_, failure, done = (await response.text()).strip().split("\n\n")
    assert done == "data: [DONE]"
    name, _, data = failure.rpartition("data: ")
    assert name == ("event: error\n" if shape == 5 else "")
    assert _contains(json.loads(data), SHAPES[shape])


def _contains(whole: Any, part: Any) -> bool:
    """Say whether every field of a part is in the whole."""
    if isinstance(part, dict):
        return all(_contains(whole.get(name), value) for name, value in part.items())
    return bool(whole == part)


async def test_silent_agent_completes_without_text(stage: Stage) -> None:
    """An empty answer is complete, and empty."""
    events = await stage.run(_question("silent", project="lab"))
    assert _text(events) == ""
    assert events[-1] == Finished(Outcome.COMPLETED)


async def test_message_id_runs_once(stage: Stage) -> None:
    """A message id that ran is answered 409, whoever asks; another tenant's is another id."""
    await stage.run(_question("help-desk", "same"))
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("order-desk", "same"))
    assert caught.value.reason == "MESSAGE_ALREADY_RUN"


async def test_refused_question_does_not_use_its_message_id(stage: Stage) -> None:
    """An id that never ran may run later."""
    await stage.fault(target="chat", kind="http_status", status=503)
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk", "later"))
    assert caught.value.reason == "PLATFORM_UNAVAILABLE"
    assert (await stage.run(_question("help-desk", "later")))[-1] == Finished(Outcome.COMPLETED)


async def test_cut_and_silent_streams_are_not_taken_for_answers(stage: Stage) -> None:
    """Trouble in the middle of a stream is trouble to the runner as well."""
    await stage.fault(target="chat", kind="cut")
    cut = await stage.run(_question("help-desk", "cut"))
    assert isinstance(cut[-1], Finished)
    assert cut[-1].outcome is Outcome.INCOMPLETE
    await stage.fault(target="chat", kind="hang", seconds=60)
    limits = Limits(total=timedelta(seconds=30), silence=timedelta(seconds=0.2))
    async with aclosing(stage.ask(_question("help-desk", "hang"), limits=limits)) as events:
        hung = [event async for event in events]
    assert hung[-1] == Finished(Outcome.LIMIT_REACHED, "STREAM_SILENT")


async def test_hanging_up_cancels_the_run(stage: Stage) -> None:
    """A run whose asker left is ended by the platform."""
    await stage.fault(target="chat", kind="hang", seconds=60)
    async with aclosing(stage.ask(_question("help-desk"))) as events:
        assert await anext(events) == Started()
    assert [each["outcome"] for each in await stage.requests(ended=1)] == ["cancelled"]


@pytest.mark.parametrize("approved", [True, False])
async def test_tool_call_waits_for_a_person(stage: Stage, approved: bool) -> None:
    """An approval is asked for, answered at the same endpoint, and obeyed."""
    events: list[RunEvent] = []
    async with aclosing(stage.ask(_question("refunds"))) as run_events:
        async for event in run_events:
            events.append(event)
            if isinstance(event, Approval):
                assert await _judge(stage, event, approved=approved) == 200
    state = ToolState.SUCCEEDED if approved else ToolState.DENIED
    assert any(isinstance(event, Tool) and event.state is state for event in events)
    assert events[-1] == Finished(Outcome.COMPLETED)


async def test_unknown_approval_is_not_found(stage: Stage) -> None:
    """A verdict on nothing is refused."""
    assert await _judge(stage, Approval("a", "call_none", "t"), approved=True) == 404


async def _judge(stage: Stage, approval: Approval, *, approved: bool) -> int:
    part = {
        "type": "tool-call",
        "toolCallId": approval.tool_call_id,
        "state": "approval-responded",
        "approval": {"id": approval.approval_id, "approved": approved},
    }
    body = {
        "conversationId": "slack-trigger-1",
        "messages": [{"role": "tool", "parts": [part]}],
    }
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=body, headers=_run_headers()
    ) as response:
        return response.status


def _run_headers(agent: str = "refunds") -> dict[str, str]:
    return {
        "Authorization": f"Bearer {_token().reveal()}",
        "x-inkeep-project-id": "support",
        "x-inkeep-agent-id": agent,
    }


async def test_answer_in_one_piece_has_the_shape_of_a_completion(stage: Stage) -> None:
    """Without streaming the whole answer is one JSON document."""
    body = {"messages": [{"role": "user", "content": "order?"}], "stream": False}
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=body, headers=_run_headers("order-desk")
    ) as response:
        answer = await response.json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "packed" in answer["choices"][0]["message"]["content"]


async def test_durable_runs_name_themselves_and_never_say_done(stage: Stage) -> None:
    """A durable run ends at its completion, without the classic end marker."""
    body = {
        "messages": [{"role": "user", "content": "order?"}],
        "executionMode": "durable",
    }
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=body, headers=_run_headers("order-desk")
    ) as response:
        assert response.headers["x-workflow-run-id"]
        text = await response.text()
    assert "[DONE]" not in text
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["data"]["type"] == "completion"


async def test_durable_run_goes_on_where_the_verdict_comes_in(stage: Stage) -> None:
    """Its stream ends at the question; the answer to the verdict is the rest of it."""
    body = {
        "messages": [{"role": "user", "content": "refund please"}],
        "conversationId": "slack-trigger-1",
        "executionMode": "durable",
    }
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=body, headers=_run_headers()
    ) as response:
        asked = _chunks(await response.text())
    assert asked[-1]["type"] == "tool-approval-request"
    assert [each["outcome"] for each in await stage.requests(ended=1)] == ["waiting"]
    verdict = {
        "type": "tool-call",
        "toolCallId": asked[-1]["toolCallId"],
        "state": "approval-responded",
        "approval": {"id": asked[-1]["approvalId"], "approved": True},
    }
    answered = {
        "conversationId": "slack-trigger-1",
        "executionMode": "durable",
        "messages": [{"role": "tool", "parts": [verdict]}],
    }
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=answered, headers=_run_headers()
    ) as response:
        assert response.content_type == "text/event-stream"
        rest = _chunks(await response.text())
    assert rest[0]["type"] == "tool-output-available"
    assert rest[-1]["data"]["type"] == "completion"
    assert [each["outcome"] for each in await stage.requests()] == ["completed", "answered"]


def _chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(each.removeprefix("data: ")) for each in text.strip().split("\n\n")]


@pytest.mark.parametrize("style", list(PathStyle))
async def test_projects_are_listed_as_the_user(stage: Stage, style: PathStyle) -> None:
    """Members see what they may see, administrators all, and each project its agents."""
    platform = stage.platform(style)
    seen = await platform.list_projects(_token(), "northwind")
    assert [each.project_id for each in seen] == ["support", "people", "lab", "finance"]
    assert [each.agent_id for each in seen[0].agents] == ["help-desk", "order-desk", "refunds"]
    owner = await platform.list_projects(_token(sub="user_ada"), "northwind")
    assert [each.project_id for each in owner][-1] == "board"
    agents = await platform.list_agents(_token(), "northwind", "people")
    assert [each.name for each in agents] == ["Handbook"]
    with pytest.raises(ServiceError):
        await platform.list_agents(_token(), "northwind", "board")


async def test_pages_are_cut_and_counted(stage: Stage) -> None:
    """A page holds what was asked for and says how much there is."""
    query = {"page": "2", "limit": "3"}
    headers = {"Authorization": f"Bearer {_token().reveal()}"}
    url = f"{stage.url}/manage/api/projects"
    async with stage.http.get(url, params=query, headers=headers) as response:
        answer = await response.json()
    assert [each["id"] for each in answer["data"]] == ["finance"]
    assert answer["pagination"] == {"page": 2, "limit": 3, "total": 4, "pages": 2}
    for wrong in ({"limit": "0"}, {"limit": "101"}, {"page": "0"}, {"page": "x"}):
        async with stage.http.get(url, params=wrong, headers=headers) as response:
            assert response.status == 400


async def test_another_tenants_projects_stay_hidden(stage: Stage) -> None:
    """The tenant comes from the token; a path that names another is refused."""
    headers = {"Authorization": f"Bearer {_token().reveal()}"}
    foreign = f"{stage.url}/manage/tenants/contoso/projects"
    async with stage.http.get(foreign, headers=headers) as response:
        assert response.status == 403
    question = _question("guide", project="atlas")
    with pytest.raises(ServiceError) as caught:
        await stage.run(question)
    assert caught.value.reason == "AGENT_NOT_FOUND"


async def test_seeing_a_project_is_not_running_it(stage: Stage) -> None:
    """A viewer is refused, unless an administrator opened the project to the channel."""
    question = _question("ledger", "f1", project="finance")
    with pytest.raises(ServiceError) as caught:
        await stage.run(question)
    assert caught.value.reason == "USER_TOKEN_REFUSED"
    opened = {
        "teamId": "T0NORTHWIND",
        "userId": "U0MIA",
        "authorized": True,
        "authSource": "channel",
        "authorizedProjectId": "finance",
    }
    events = await stage.run(question, _token(slack=opened))
    assert events[-1] == Finished(Outcome.COMPLETED)


async def test_former_member_may_run_nothing(stage: Stage) -> None:
    """What a person may do is judged when it is done, not when the token was made."""
    token = _token()
    body = {"person": "user_mia", "organization": "northwind", "role": None}
    async with stage.http.post(f"{stage.auth_url}/_control/memberships", json=body) as response:
        assert response.status == 200
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk"), token)
    assert caught.value.reason == "USER_TOKEN_REFUSED"
    assert await stage.platform().list_projects(token, "northwind") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "interlock"},
        {"aud": "interlock"},
        {"aud": ["inkeep-api"]},
        {"tokenUse": "slackGrant"},
        {"act": {"sub": "somebody"}},
        {"sub": ""},
        {"tenantId": None},
        {"slack": {"teamId": "T0NORTHWIND"}},
        {"iat": 1, "exp": 301},
        {"exp": 4_000_000_000},
    ],
    ids=str,
)
async def test_tokens_of_any_other_form_are_401(stage: Stage, changes: dict[str, Any]) -> None:
    """Both APIs refuse what is not the contract, and the answer does not say why."""
    token = _token(**changes)
    assert await stage.status_of(token.reveal()) == 401
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk"), token)
    assert caught.value.reason == "USER_TOKEN_REFUSED"
    assert all(each["reason"] for each in await stage.requests())


async def test_forged_and_missing_tokens_are_401(stage: Stage) -> None:
    """A wrong signature, a wrong scheme and nothing at all prove nobody."""
    token = _token().reveal()
    head, claims, _ = token.split(".")
    assert await stage.status_of(f"{head}.{claims}.{'A' * 43}") == 401
    assert await stage.status_of(None) == 401
    assert await stage.status_of(None, Authorization=f"Basic {token}") == 401
    assert await stage.status_of(token) == 200
    assert USER_TOKEN_KEY.kid == "user-1"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "x"}], "messageId": "a b"},
        {"messages": [{"role": "user", "content": "x"}], "executionMode": "fast"},
        {"messages": [{"role": "tool", "parts": []}]},
    ],
    ids=str,
)
async def test_bodies_of_another_form_are_400(stage: Stage, body: dict[str, Any]) -> None:
    """A question that breaks the schema is not run."""
    async with stage.http.post(
        f"{stage.url}/run/api/chat", json=body, headers=_run_headers()
    ) as response:
        assert response.status == 400
        assert (await response.json())["success"] is False


# Members and permissions.


async def test_permissions_tell_seeing_from_using(stage: Stage) -> None:
    """Each person is told what they may do, with a project they do not even see too."""
    asked = {
        ("user_ada", "support"): (True, True, True),
        ("user_mia", "support"): (True, True, False),
        ("user_mia", "finance"): (True, False, False),
        ("user_mia", "board"): (False, False, False),
        ("user_ben", "board"): (True, True, True),
    }
    for (person, project), expected in asked.items():
        status, answer = await stage.manage("GET", f"/{project}/permissions", person)
        assert status == 200
        may = answer["data"]
        assert (may["canView"], may["canUse"], may["canEdit"]) == expected, (person, project)
    assert (await stage.manage("GET", "/nowhere/permissions"))[0] == 404
    assert (await stage.manage("GET", "/atlas/permissions"))[0] == 404


async def test_role_in_a_project_decides_what_a_member_may_do(stage: Stage) -> None:
    """A viewer made a member runs agents, made an administrator adds others, and loses it again."""
    question = _question("ledger", "f1", project="finance")
    with pytest.raises(ServiceError):
        await stage.run(question)
    member = {"userId": "user_mia", "role": "project_member"}
    status, answer = await stage.manage("POST", "/finance/members", json=member)
    assert (status, answer["data"]) == (201, member | {"projectId": "finance"})
    assert (await stage.run(question))[-1] == Finished(Outcome.COMPLETED)
    olga = {"userId": "user_olga", "role": "project_viewer"}
    assert (await stage.manage("POST", "/finance/members", "user_mia", json=olga))[0] == 403
    raised = {"role": "project_admin", "previousRole": "project_member"}
    status, _ = await stage.manage("PATCH", "/finance/members/user_mia", json=raised)
    assert status == 200
    assert (await stage.manage("POST", "/finance/members", "user_mia", json=olga))[0] == 201
    _, listed = await stage.manage("GET", "/finance/members")
    assert {each["userId"]: each["role"] for each in listed["data"]} == {
        "user_mia": "project_admin",
        "user_olga": "project_viewer",
    }
    query = {"role": "project_admin"}
    path = "/finance/members/user_mia"
    assert await stage.manage("DELETE", path, params=query) == (204, None)
    with pytest.raises(ServiceError):
        await stage.run(_question("ledger", "f2", project="finance"))


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "/finance/members", {"userId": "user_mia"}, 400),
        ("POST", "/finance/members", {"userId": "user_mia", "role": "owner"}, 400),
        ("POST", "/finance/members", {"role": "project_member"}, 400),
        ("POST", "/nowhere/members", {"userId": "u", "role": "project_member"}, 404),
        ("PATCH", "/finance/members/user_mia", {"role": "project_member"}, 400),
        ("DELETE", "/finance/members/user_mia", None, 400),
    ],
)
async def test_wrong_changes_of_members_are_refused(
    stage: Stage, verb: str, path: str, body: dict[str, str] | None, status: int
) -> None:
    """A role that is none, a project that is none, and a change from nothing change nothing."""
    assert (await stage.manage(verb, path, json=body))[0] == status
    assert (await stage.manage("GET", "/finance/members"))[1] == {"data": []}


async def test_members_of_a_hidden_project_are_hidden(stage: Stage) -> None:
    """Who does not see a project does not learn who is in it."""
    assert (await stage.manage("GET", "/board/members", "user_mia"))[0] == 404


# Trouble on demand.


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "USER_TOKEN_REFUSED"),
        (403, "AGENT_NOT_ALLOWED"),
        (404, "AGENT_NOT_FOUND"),
        (409, "MESSAGE_ALREADY_RUN"),
        (429, "PLATFORM_RATE_LIMITED"),
        (500, "PLATFORM_UNAVAILABLE"),
        (503, "PLATFORM_UNAVAILABLE"),
    ],
)
async def test_status_on_demand_is_a_problem_document(
    stage: Stage, status: int, reason: str
) -> None:
    """Before the stream every failure is a problem, whose code nobody should rely on."""
    await stage.fault(target="chat", kind="http_status", status=status)
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk"))
    assert caught.value.reason == reason
    await stage.fault(target="manage", kind="http_status", status=status)
    answered, problem = await stage.manage("GET", "")
    assert (answered, problem["status"]) == (status, status)
    assert problem["error"]["code"] == problem["code"]
    assert (problem["code"] == "internal_server_error") == (status in {401, 500})
    assert [each["fault"] for each in await stage.requests()] == ["http_status"] * 2


async def test_dropped_answer_leaves_the_run_done(stage: Stage) -> None:
    """The agent ran to its end, the message id is spent, and nobody heard of it."""
    await stage.fault(target="chat", kind="drop_reply")
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk", "once"))
    assert caught.value.reason == "PLATFORM_UNAVAILABLE"
    assert [each["outcome"] for each in await stage.requests(ended=1)] == ["completed"]
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk", "once"))
    assert caught.value.reason == "MESSAGE_ALREADY_RUN"


@pytest.mark.parametrize("kind", ["drop_reply", "cut"])
async def test_lists_are_lost_and_cut_too(stage: Stage, kind: str) -> None:
    """The Manage API's answers go missing as a whole, or from their middle on."""
    # aiohttp asks once more by itself when an idle connection turns out to be closed.
    await stage.fault(target="manage", kind=kind, count=2)
    with pytest.raises(ServiceError) as caught:
        await stage.platform().list_projects(_token(), "northwind")
    assert caught.value.reason == "PLATFORM_UNAVAILABLE"


@pytest.mark.parametrize(("target", "kind"), [("manage", "hang"), ("manage", "delay")])
async def test_answer_waits_on_demand(stage: Stage, target: str, kind: str) -> None:
    """Who has less patience than the fault has seconds gives up."""
    await stage.fault(target=target, kind=kind, seconds=0.6)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stage.manage("GET", "")


async def test_delayed_run_starts_late(stage: Stage) -> None:
    """Nothing of the run has happened while it is delayed."""
    await stage.fault(target="chat", kind="delay", seconds=0.6)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stage.run(_question("help-desk", "late"))
    assert (await stage.requests(ended=1))[0]["message_id"] == ""


async def test_fault_can_be_of_one_tenant_and_of_a_count(stage: Stage) -> None:
    """Only that tenant's requests go wrong, after some, and so many."""
    fault = {"target": "manage", "kind": "http_status", "for_tenant": "northwind"}
    await stage.fault(**fault, count=2, after=1)
    olga = _token(sub="user_olga", tenantId="contoso")
    assert await stage.platform().list_projects(olga, "contoso")
    statuses = [(await stage.manage("GET", ""))[0] for _ in range(4)]
    assert statuses == [200, 503, 503, 200]


async def test_clock_set_ahead_ends_tokens(stage: Stage) -> None:
    """A token is judged by the platform's clock, which a test can move."""
    async with stage.http.post(f"{stage.url}/_control/clock", json={"offset_s": 301}) as response:
        assert response.status == 200
    with pytest.raises(ServiceError) as caught:
        await stage.run(_question("help-desk"))
    assert caught.value.reason == "USER_TOKEN_REFUSED"
    assert (await stage.requests())[0]["reason"] == "expired"


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "earthquake"}, {"kind": "cut", "target": "nothing"}, {"kind": "cut", "count": 0}],
)
async def test_wrong_faults_are_refused(stage: Stage, wrong: dict[str, Any]) -> None:
    """A mistake in a test's own fault is told at once."""
    async with stage.http.post(f"{stage.url}/_control/faults", json=wrong) as response:
        assert response.status == 400
