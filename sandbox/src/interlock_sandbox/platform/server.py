"""A stand-in for the agents platform: Manage API, Run API, scripted agents.

Every call is made as a user, proved by a slackUser token.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.config import UserTokenKey
from interlock_sandbox.directory import CREATED_AT, Directory
from interlock_sandbox.platform.catalog import (
    Agent,
    Project,
    find_project,
    may_run,
    visible_projects,
)
from interlock_sandbox.platform.records import FAULT_KINDS, FAULT_TARGETS, Fault, Record, Records
from interlock_sandbox.platform.refusals import (
    Refusal,
    refuse,
    refuse_body,
    refuse_unauthorized,
)
from interlock_sandbox.platform.runs import (
    Approvals,
    answer_chunks,
    read_chat_body,
    stream_answer,
    whole_answer,
)
from interlock_sandbox.platform.scripts import Asking
from interlock_sandbox.platform.user_tokens import Caller, TokenRefused, verify_user_token
from interlock_sandbox.web import CONTROL, ControlBody
from interlock_sandbox.web import refuse as refuse_control

MAX_PAGE = 100
MAX_FAULTS = 1000
MAX_WAIT_S = 10
STYLES = ("/manage/api/projects", "/manage/tenants/{tenant}/projects")


class Platform:
    """Serve the Manage API, the Run API and the control routes.

    Args:
        saved: What `snapshot` returned in an earlier run.
    """

    def __init__(
        self,
        directory: Directory,
        keys: tuple[UserTokenKey, ...],
        *,
        word_delay_s: float,
        saved: dict[str, Any] | None,
        now: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._keys = keys
        self._word_delay_s = word_delay_s
        self._now = now
        self._changed = changed
        self._records = Records()
        self._approvals = Approvals()
        rows = saved["messages"] if saved else []
        self._messages: set[tuple[str, str]] = {(tenant, message) for tenant, message in rows}

    def snapshot(self) -> dict[str, Any]:
        """Return what a restart needs: message ids are never run twice."""
        return {"messages": [list(each) for each in sorted(self._messages)]}

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the two APIs and the control routes."""
        return [
            *(web.get(path, self._list_projects) for path in STYLES),
            *(web.get(f"{path}/{{project}}/agents", self._list_agents) for path in STYLES),
            web.post("/run/api/chat", self._chat),
            web.get(f"{CONTROL}/requests", self._list_requests),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
        ]

    # The Manage API.

    async def _list_projects(self, request: web.Request) -> web.StreamResponse:
        with self._recorded(request) as record:
            try:
                seen = self._visible(request, record)
                nested = request.query.get("include") == "agents"
                rows = [_show_project(each, nested=nested) for each in seen]
                return _answer(record, _page(request, rows))
            except Refusal as refusal:
                return _refused(record, refusal)

    async def _list_agents(self, request: web.Request) -> web.StreamResponse:
        with self._recorded(request) as record:
            try:
                record.project_id = request.match_info["project"]
                for project in self._visible(request, record):
                    if project.id == record.project_id:
                        rows = [_show_agent(project, each) for each in project.agents]
                        return _answer(record, _page(request, rows))
                refuse(HTTPStatus.NOT_FOUND, "not_found", "Project not found")
            except Refusal as refusal:
                return _refused(record, refusal)

    def _visible(self, request: web.Request, record: Record) -> list[Project]:
        caller = self._authenticate(request, record)
        self._meet_fault("manage")
        if request.match_info.get("tenant", caller.tenant_id) != caller.tenant_id:
            refuse(HTTPStatus.FORBIDDEN, "forbidden", "The token is of another tenant")
        return visible_projects(self._directory, caller.tenant_id, caller.user_id)

    # The Run API.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self._recorded(request) as record:
            try:
                caller = self._authenticate(request, record)
                fault = self._meet_fault("chat")
                agent = self._chosen_agent(request, record, caller)
                body = await read_chat_body(request)
                record.conversation_id = body.conversation_id
                if body.verdicts is not None:
                    return _answer(record, self._approvals.answer(record, body.verdicts))
                record.prompt, record.message_id = body.question, body.message_id
                self._claim_message(record)
            except Refusal as refusal:
                return _refused(record, refusal)
            record.status = HTTPStatus.OK
            asking = self._asking(caller, record)
            chunks = answer_chunks(agent, record, asking, durable=body.durable)
            if body.stream or body.durable:
                return await stream_answer(request, chunks, durable=body.durable, fault=fault)
            return await whole_answer(record, agent, chunks)

    def _chosen_agent(self, request: web.Request, record: Record, caller: Caller) -> Agent:
        record.entry_point = request.headers.get("x-inkeep-invocation-entry-point", "")
        record.project_id = request.headers.get("x-inkeep-project-id", "")
        record.agent_id = request.headers.get("x-inkeep-agent-id", "")
        if not record.project_id or not record.agent_id:
            refuse(HTTPStatus.BAD_REQUEST, "bad_request", "Project and agent headers are required")
        project = find_project(caller.tenant_id, record.project_id)
        agent = project.find_agent(record.agent_id) if project else None
        if project is None or agent is None:
            refuse(HTTPStatus.NOT_FOUND, "not_found", "Agent not found")
        opened = caller.authorized_project == project.id
        if not opened and not may_run(self._directory, project, caller.user_id):
            # The real platform answers 401 here too, not 403.
            refuse_unauthorized(f"{caller.user_id} may not use project {project.id}")
        return agent

    def _claim_message(self, record: Record) -> None:
        """Take the message id of a run, which nobody may use again."""
        key = (record.tenant_id, record.message_id)
        if key in self._messages:
            refuse(HTTPStatus.CONFLICT, "conflict", "A message with this id exists")
        self._messages.add(key)
        self._changed()

    def _asking(self, caller: Caller, record: Record) -> Asking:
        person = self._directory.find_person(caller.user_id)
        organization = self._directory.find_organization(caller.tenant_id)
        full_name = person.name if person else caller.user_id
        return Asking(
            prompt=record.prompt,
            first_name=full_name.split()[0],
            full_name=full_name,
            organization=organization.name if organization else caller.tenant_id,
            word_delay_s=self._word_delay_s,
            approve=lambda call: self._approvals.ask(record, call),
        )

    # What every request goes through.

    @contextmanager
    def _recorded(self, request: web.Request) -> Iterator[Record]:
        """Keep a record of a request; an asker who hangs up ends it early."""
        record = self._records.begin(self._now(), request.method, request.path)
        try:
            yield record
        finally:
            if record.outcome == "running":
                record.outcome = "cancelled"
            record.ended.set()

    def _authenticate(self, request: web.Request, record: Record) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            refuse_unauthorized("no bearer token")
        self._records.tokens[token] = None
        try:
            caller = verify_user_token(token, self._keys, self._now())
        except TokenRefused as problem:
            refuse_unauthorized(str(problem))
        record.tenant_id, record.user_id = caller.tenant_id, caller.user_id
        record.slack_team_id, record.slack_user_id = caller.slack_team_id, caller.slack_user_id
        return caller

    def _meet_fault(self, target: str) -> Fault | None:
        fault = self._records.next_fault(target)
        if fault and fault.kind == "http_status":
            refuse(HTTPStatus(fault.status), "fault", "Trouble on demand")
        return fault

    # Control.

    async def _list_requests(self, request: web.Request) -> web.Response:
        """List what was asked, oldest first.

        `after` leaves out the numbers up to it; with `ended` the answer waits
        until the request of that number has ended, for ten seconds at most.
        """
        await self._records.wait_for_end(_number(request, "ended", 0), MAX_WAIT_S)
        first = _number(request, "after", 0)
        rows = [each.show() for each in self._records.requests if each.number > first]
        return web.json_response({"requests": rows})

    async def _secrets(self, _request: web.Request) -> web.Response:
        """List every bearer token that was presented, valid or not."""
        return web.json_response({"tokens": list(self._records.tokens)})

    async def _list_faults(self, _request: web.Request) -> web.Response:
        """List the faults that still wait for a request."""
        rows = {
            target: [dataclasses.asdict(each) for each in waiting]
            for target, waiting in self._records.faults.items()
            if waiting
        }
        return web.json_response({"faults": rows})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let the next `count` requests of `target` (`chat`, `manage`) go wrong as `kind` says."""
        body = await ControlBody.of(request)
        kind, target, count = body.text("kind"), body.text("target"), int(body.number("count", 1))
        status = int(body.number("status", HTTPStatus.SERVICE_UNAVAILABLE))
        if kind not in FAULT_KINDS or target not in FAULT_TARGETS:
            known = f"kind is one of {sorted(FAULT_KINDS)}, target one of {sorted(FAULT_TARGETS)}"
            refuse_control(HTTPStatus.BAD_REQUEST, known)
        if not 1 <= count <= MAX_FAULTS or status not in set(HTTPStatus):
            refuse_control(HTTPStatus.BAD_REQUEST, f"count is 1 to {MAX_FAULTS}, status HTTP's")
        self._records.add_faults(target, Fault(kind, status, body.number("seconds", 60)), count)
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        """Forget the faults that wait."""
        self._records.faults.clear()
        return await self._list_faults(request)


def _answer(record: Record, body: dict[str, Any]) -> web.Response:
    record.status, record.outcome = HTTPStatus.OK, "answered"
    return web.json_response(body)


def _refused(record: Record, refusal: Refusal) -> web.Response:
    record.status, record.outcome, record.reason = refusal.status, "refused", refusal.reason
    return refusal.response()


def _page(request: web.Request, rows: list[dict[str, Any]]) -> dict[str, Any]:
    page, limit = _number(request, "page", 1), _number(request, "limit", 10)
    if page < 1 or not 1 <= limit <= MAX_PAGE:
        refuse_body(f"page starts at 1, limit is 1 to {MAX_PAGE}")
    return {
        "data": rows[(page - 1) * limit : page * limit],
        "pagination": {
            "page": page,
            "limit": limit,
            "total": len(rows),
            "pages": -(-len(rows) // limit),
        },
    }


def _number(request: web.Request, name: str, default: int) -> int:
    value = request.query.get(name, str(default))
    return int(value) if value.isascii() and value.isdigit() else 0


def _show_project(project: Project, *, nested: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": project.id,
        "name": project.name,
        "description": project.description,
        "tenantId": project.tenant_id,
        "models": None,
        "stopWhen": None,
        "createdAt": CREATED_AT,
        "updatedAt": CREATED_AT,
    }
    if nested:
        shown["agents"] = [{"agentId": each.id, "agentName": each.name} for each in project.agents]
    return shown


def _show_agent(project: Project, agent: Agent) -> dict[str, Any]:
    return {
        "id": agent.id,
        "name": agent.name,
        "description": agent.description,
        "tenantId": project.tenant_id,
        "projectId": project.id,
        "defaultSubAgentId": agent.id,
        "prompt": None,
        "executionMode": "classic",
        "createdAt": CREATED_AT,
        "updatedAt": CREATED_AT,
    }
