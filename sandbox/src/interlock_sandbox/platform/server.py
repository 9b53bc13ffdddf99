"""A stand-in for the agents platform: Manage API, Run API, scripted agents.

Every call is made as a user, proved by a slackUser token.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.clock import VirtualClock
from interlock_sandbox.config import UserTokenKey
from interlock_sandbox.directory import CREATED_AT, Directory
from interlock_sandbox.faults import Fault, Faults, cut_short
from interlock_sandbox.platform.catalog import (
    PROJECT_ROLES,
    Access,
    Agent,
    Permissions,
    Project,
    find_project,
)
from interlock_sandbox.platform.records import Record, Records
from interlock_sandbox.platform.refusals import (
    Refusal,
    refuse,
    refuse_body,
    refuse_status,
    refuse_unauthorized,
)
from interlock_sandbox.platform.runs import (
    Approvals,
    ChatBody,
    answer_pieces,
    read_chat_body,
    stream_answer,
    whole_answer,
)
from interlock_sandbox.platform.scripts import Asking
from interlock_sandbox.platform.user_tokens import Caller, TokenRefused, verify_user_token
from interlock_sandbox.web import CONTROL, ControlBody
from interlock_sandbox.web import refuse as refuse_control

MAX_PAGE = 100
MAX_WAIT_S = 10
# `http_status` answers instead of acting; `delay` waits and then acts; `drop_reply`
# acts and never answers; `cut` and `hang` strike in the middle of an answer.
FAULT_KINDS = frozenset({"http_status", "delay", "drop_reply", "cut", "hang"})
FAULT_TARGETS = frozenset({"chat", "manage", "*"})
STYLES = ("/manage/api/projects", "/manage/tenants/{tenant}/projects")


class Platform:
    """Serve the Manage API, the Run API and the control routes.

    Args:
        find_visitor: Names the account and the organization of a browser's session,
            which the Manage API takes as the auth server does.
        saved: What `snapshot` returned in an earlier run.
    """

    def __init__(
        self,
        directory: Directory,
        keys: tuple[UserTokenKey, ...],
        *,
        find_visitor: Callable[[web.Request], tuple[str, str] | None],
        word_delay_s: float,
        saved: dict[str, Any] | None,
        now: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        rows = saved or {}
        self._directory = directory
        self._access = Access(directory, rows.get("members"))
        self._keys = keys
        self._find_visitor = find_visitor
        self._word_delay_s = word_delay_s
        self._now = VirtualClock(now)
        self._changed = changed
        self._records = Records()
        self._faults = Faults(FAULT_KINDS)
        self._approvals = Approvals()
        self._messages: set[tuple[str, str]] = {(t, m) for t, m in rows.get("messages", [])}

    def snapshot(self) -> dict[str, Any]:
        """Return what a restart needs: message ids, never run twice, and project roles."""
        return {
            "messages": [list(each) for each in sorted(self._messages)],
            "members": self._access.snapshot(),
        }

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the two APIs and the control routes."""
        return [
            *(web.get(path, self._list_projects) for path in STYLES),
            *(route for path in STYLES for route in self._project_routes(f"{path}/{{project}}")),
            web.post("/run/api/chat", self._chat),
            web.get(f"{CONTROL}/requests", self._list_requests),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
            *self._now.routes(),
        ]

    def _project_routes(self, path: str) -> list[web.AbstractRouteDef]:
        return [
            web.get(f"{path}/agents", self._list_agents),
            web.get(f"{path}/permissions", self._show_permissions),
            web.get(f"{path}/members", self._list_members),
            web.post(f"{path}/members", self._add_member),
            web.patch(f"{path}/members/{{user}}", self._change_member),
            web.delete(f"{path}/members/{{user}}", self._remove_member),
        ]

    # The Manage API.

    async def _list_projects(self, request: web.Request) -> web.StreamResponse:
        def answer(caller: Caller, _record: Record) -> web.Response:
            nested = request.query.get("include") == "agents"
            seen = self._access.visible(caller.tenant_id, caller.user_id)
            rows = [_show_project(each, nested=nested) for each in seen]
            return web.json_response(_page(request, rows))

        return await self._manage(request, answer)

    async def _list_agents(self, request: web.Request) -> web.StreamResponse:
        def answer(caller: Caller, record: Record) -> web.Response:
            project, _ = self._project(request, record, caller)
            rows = [_show_agent(project, each) for each in project.agents]
            return web.json_response(_page(request, rows))

        return await self._manage(request, answer)

    async def _show_permissions(self, request: web.Request) -> web.StreamResponse:
        """Tell the caller what they may do; who sees nothing of a project may ask too."""

        def answer(caller: Caller, record: Record) -> web.Response:
            record.project_id = request.match_info["project"]
            project = find_project(caller.tenant_id, record.project_id)
            if project is None:
                refuse(HTTPStatus.NOT_FOUND, "not_found", "Project not found")
            may = self._access.of(project, caller.user_id)
            shown = {"canView": may.view, "canUse": may.use, "canEdit": may.edit}
            return web.json_response({"data": shown})

        return await self._manage(request, answer)

    async def _list_members(self, request: web.Request) -> web.StreamResponse:
        def answer(caller: Caller, record: Record) -> web.Response:
            project, _ = self._project(request, record, caller)
            return web.json_response({"data": self._access.members(project)})

        return await self._manage(request, answer)

    async def _add_member(self, request: web.Request) -> web.StreamResponse:
        body = await _read_json(request)

        def answer(caller: Caller, record: Record) -> web.Response:
            project = self._own_project(request, record, caller)
            user, role = _text(body, "userId"), _role(body, "role")
            self._access.grant(project, user, role)
            return self._member_changed(project, user, role, HTTPStatus.CREATED)

        return await self._manage(request, answer)

    async def _change_member(self, request: web.Request) -> web.StreamResponse:
        body = await _read_json(request)

        def answer(caller: Caller, record: Record) -> web.Response:
            project = self._own_project(request, record, caller)
            user, role = request.match_info["user"], _role(body, "role")
            if "previousRole" not in body:
                refuse(HTTPStatus.BAD_REQUEST, "bad_request", "previousRole is required")
            self._access.revoke(project, user, _role(body, "previousRole"))
            self._access.grant(project, user, role)
            return self._member_changed(project, user, role, HTTPStatus.OK)

        return await self._manage(request, answer)

    async def _remove_member(self, request: web.Request) -> web.StreamResponse:
        def answer(caller: Caller, record: Record) -> web.Response:
            project = self._own_project(request, record, caller)
            role = _role(dict(request.query), "role")
            self._access.revoke(project, request.match_info["user"], role)
            self._changed()
            return web.Response(status=HTTPStatus.NO_CONTENT)

        return await self._manage(request, answer)

    def _member_changed(
        self, project: Project, user: str, role: str, status: HTTPStatus
    ) -> web.Response:
        self._changed()
        shown = {"userId": user, "role": role, "projectId": project.id}
        return web.json_response({"data": shown}, status=status)

    async def _manage(
        self, request: web.Request, answer: Callable[[Caller, Record], web.Response]
    ) -> web.StreamResponse:
        """Answer a request of the Manage API, with the fault that waits for it."""
        with self._recorded(request) as record:
            try:
                caller = self._authenticate_manager(request, record)
                fault = await self._meet_fault("manage", record)
                if request.match_info.get("tenant", caller.tenant_id) != caller.tenant_id:
                    refuse(HTTPStatus.FORBIDDEN, "forbidden", "The token is of another tenant")
                response = answer(caller, record)
            except Refusal as refusal:
                return _refused(record, refusal)
            record.status, record.outcome = response.status, "answered"
            if fault and fault.kind == "cut":
                return await cut_short(request, response)
            if fault and fault.kind == "hang":
                await asyncio.sleep(fault.seconds)
            if fault and fault.kind == "drop_reply" and request.transport:
                request.transport.abort()
            return response

    def _project(
        self, request: web.Request, record: Record, caller: Caller
    ) -> tuple[Project, Permissions]:
        """Return the project that a path names, if the caller sees it."""
        record.project_id = request.match_info["project"]
        project = find_project(caller.tenant_id, record.project_id)
        may = self._access.of(project, caller.user_id) if project else None
        if project is None or may is None or not may.view:
            refuse(HTTPStatus.NOT_FOUND, "not_found", "Project not found")
        return project, may

    def _own_project(self, request: web.Request, record: Record, caller: Caller) -> Project:
        project, may = self._project(request, record, caller)
        if not may.edit:
            refuse(HTTPStatus.FORBIDDEN, "forbidden", "Requires permission: edit")
        return project

    # The Run API.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self._recorded(request) as record:
            try:
                caller = self._authenticate(request, record)
                fault = await self._meet_fault("chat", record)
                agent = self._chosen_agent(request, record, caller)
                body = await read_chat_body(request)
                record.conversation_id = body.conversation_id
                if body.verdicts is not None:
                    return await self._judge(request, record, body.verdicts, fault)
                record.prompt, record.message_id = body.question, body.message_id
                self._claim_message(record)
            except Refusal as refusal:
                return _refused(record, refusal)
            record.status = HTTPStatus.OK
            return await self._run(request, record, (caller, agent, body), fault)

    async def _run(
        self,
        request: web.Request,
        record: Record,
        asked: tuple[Caller, Agent, ChatBody],
        fault: Fault | None,
    ) -> web.StreamResponse:
        caller, agent, body = asked
        pieces = answer_pieces(agent, record, self._asking(caller, record), durable=body.durable)
        if fault and fault.kind == "drop_reply":
            # The agent does all of its work, and nobody hears of it.
            async with aclosing(pieces):
                async for _ in pieces:
                    pass
            if request.transport:
                request.transport.abort()
            return web.Response()
        if not body.stream and not body.durable:
            return await whole_answer(record, agent, pieces)
        return await stream_answer(
            request,
            pieces,
            record=record,
            approvals=self._approvals,
            durable=body.durable,
            fault=fault,
        )

    async def _judge(
        self,
        request: web.Request,
        record: Record,
        verdicts: dict[str, bool],
        fault: Fault | None,
    ) -> web.StreamResponse:
        """Take a person's verdict; a durable run goes on in the answer."""
        answer, rest = self._approvals.answer(record, verdicts)
        record.status, record.outcome = HTTPStatus.OK, "answered"
        if rest is None:
            return web.json_response(answer)
        return await stream_answer(
            request, rest, record=record, approvals=self._approvals, durable=True, fault=fault
        )

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
        if not opened and not self._access.of(project, caller.user_id).use:
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

    def _authenticate_manager(self, request: web.Request, record: Record) -> Caller:
        """Take a bearer token or, where none is shown, a browser's session."""
        visitor = None if "Authorization" in request.headers else self._find_visitor(request)
        if visitor is None:
            return self._authenticate(request, record)
        user_id, active = visitor
        tenant_id = request.match_info.get("tenant", active)
        if self._directory.find_membership(tenant_id, user_id) is None:
            refuse(HTTPStatus.FORBIDDEN, "forbidden", "Access denied to this organization")
        record.tenant_id, record.user_id = tenant_id, user_id
        return Caller(user_id, tenant_id, "", "", None, None)

    async def _meet_fault(self, target: str, record: Record) -> Fault | None:
        """Return the fault that strikes a request later, after what it does at once."""
        fault = self._faults.take(target, record.tenant_id)
        if fault is None:
            return None
        record.fault = fault.kind
        if fault.kind == "http_status":
            refuse_status(HTTPStatus(fault.status))
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
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
        return web.json_response({"faults": self._faults.show()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let coming requests of `target`, of `for_tenant` if named, go wrong as `kind` says."""
        body = await ControlBody.of(request)
        target = body.text("target", "*")
        if target not in FAULT_TARGETS:
            refuse_control(HTTPStatus.BAD_REQUEST, f"target is one of {sorted(FAULT_TARGETS)}")
        self._faults.add(
            body,
            target=target,
            place=body.text("for_tenant", ""),
            status=HTTPStatus.SERVICE_UNAVAILABLE,
        )
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        """Forget the faults that wait."""
        self._faults.clear()
        return await self._list_faults(request)


def _refused(record: Record, refusal: Refusal) -> web.Response:
    record.status, record.outcome, record.reason = refusal.status, "refused", refusal.reason
    return refusal.response()


async def _read_json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        refuse_body(f"{name}: required")
    return value


def _role(body: dict[str, Any], name: str) -> str:
    role = _text(body, name)
    if role not in PROJECT_ROLES:
        refuse_body(f"{name}: must be one of {sorted(PROJECT_ROLES)}")
    return role


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
