"""Slack's Web API: how a call is read, judged, recorded and answered.

What each method does is in `methods`; here is what all of them share: bodies in
two encodings, tokens, scopes, arguments, faults on demand, and the record of
everything that was asked.
"""

import asyncio
import base64
import binascii
import json
from collections import deque
from dataclasses import asdict, dataclass
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.slack.call import Call, Slack
from interlock_sandbox.slack.call_log import CallLog, Record, without_secrets
from interlock_sandbox.slack.methods import METHODS
from interlock_sandbox.slack.oauth import exchange_code
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import JSON, Token

MAX_BODY_BYTES = 1024 * 1024
OAUTH_METHOD = "oauth.v2.access"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with the next calls of a method.

    Attributes:
        kind: `error` answers a Slack error, `rate_limit` HTTP 429, `delay`
            waits before acting, `drop_reply` acts and then cuts the
            connection, `http_status` answers that status without a JSON body.
    """

    kind: str
    error: str = "internal_error"
    seconds: float = 1
    status: int = 503


FAULT_KINDS = frozenset({"error", "rate_limit", "delay", "drop_reply", "http_status"})


class WebApi:
    """Answer `/api/{method}`."""

    def __init__(self, slack: Slack, log: CallLog) -> None:
        self._app = slack.app
        self._world = slack.world
        self._slack = slack
        self._faults: dict[str, deque[Fault]] = {}
        self._log = log

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the route of all methods."""
        return [web.route("*", "/api/{method}", self._answer)]

    def add_fault(self, method: str, fault: Fault, count: int) -> None:
        """Let the next calls of a method go wrong; `*` means any method."""
        self._faults.setdefault(method, deque()).extend([fault] * count)

    def list_faults(self) -> dict[str, list[JSON]]:
        """List the faults that still wait for a call."""
        return {name: [asdict(each) for each in left] for name, left in self._faults.items()}

    def clear_faults(self) -> None:
        """Forget all waiting faults."""
        self._faults.clear()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["method"]
        record = self._log.begin(name)
        fault = self._next_fault(name)
        if fault:
            record.fault = fault.kind
            if refusal := await _before(fault, record):
                return refusal
        response = await self._judge(request, record)
        if fault and fault.kind == "drop_reply" and request.transport:
            request.transport.abort()
        return response

    def _next_fault(self, method: str) -> Fault | None:
        for name in (method, "*"):
            waiting = self._faults.get(name)
            if waiting:
                fault = waiting.popleft()
                if not waiting:
                    del self._faults[name]
                return fault
        return None

    async def _judge(self, request: web.Request, record: Record) -> web.Response:
        headers: dict[str, str] = {}
        try:
            if record.method == OAUTH_METHOD:
                answer = await self._oauth(request, record)
            else:
                answer = await self._call(request, record, headers)
        except SlackError as error:
            record.error = error.code
            answer = {"ok": False, "error": error.code, **error.details}
        else:
            record.acted = True
            answer = {"ok": True, **answer}
        return web.json_response(answer, headers=headers)

    async def _oauth(self, request: web.Request, record: Record) -> JSON:
        # Slack reads JSON bodies for most methods, but not for this one.
        arguments = {**request.query, **await _form(request)}
        record.args = without_secrets(arguments)
        basic = _basic_credentials(request.headers.get("Authorization", ""))
        if basic:
            arguments["client_id"], arguments["client_secret"] = basic
        answer = exchange_code(self._app, self._world, arguments)
        record.team, record.user = answer["team"]["id"], answer["authed_user"]["id"]
        return answer

    async def _call(self, request: web.Request, record: Record, headers: dict[str, str]) -> JSON:
        method = METHODS.get(record.method)
        if method is None:
            raise SlackError("unknown_method", req_method=record.method)
        arguments = dict(request.query)
        body, is_json = await _body(request)
        if not is_json or method.reads_json:
            arguments |= body
        record.args = without_secrets(arguments)
        token = self._authenticate(request, arguments, in_body=not is_json and "token" in body)
        record.team, record.user = token.team, token.user
        arguments.pop("token", None)
        headers["x-oauth-scopes"] = ",".join(token.scopes)
        if method.scopes:
            headers["x-accepted-oauth-scopes"] = ",".join(sorted(method.scopes))
        method.require(token, arguments)
        workspace = self._world.workspaces[token.team]
        return method.run(self._slack, Call(workspace, token, arguments))

    def _authenticate(self, request: web.Request, arguments: JSON, *, in_body: bool) -> Token:
        """Find the token of a call: in the header, or in a form body; never in the URL."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            value = str(arguments["token"]) if in_body else ""
        if not value:
            raise SlackError("not_authed")
        token = self._world.tokens.get(value)
        if token is None:
            raise SlackError("invalid_auth")
        if token.revoked:
            active = self._world.workspaces[token.team].active_installation()
            raise SlackError("token_revoked" if active else "account_inactive")
        return token


async def _before(fault: Fault, record: Record) -> web.Response | None:
    """Do what a fault asks before the method runs; a response means it does not run."""
    match fault.kind:
        case "error":
            record.error = fault.error
            return web.json_response({"ok": False, "error": fault.error})
        case "rate_limit":
            record.error = "ratelimited"
            return web.json_response(
                {"ok": False, "error": "ratelimited"},
                status=HTTPStatus.TOO_MANY_REQUESTS,
                headers={"Retry-After": f"{fault.seconds:.0f}"},
            )
        case "http_status":
            record.error = f"http_{fault.status}"
            return web.Response(status=fault.status, text="upstream trouble")
        case "delay":
            await asyncio.sleep(fault.seconds)
        case _:
            pass
    return None


async def _body(request: web.Request) -> tuple[JSON, bool]:
    """Read a body as Slack does: JSON, a form, or nothing at all."""
    if not request.can_read_body:
        return {}, False
    if request.content_type == "application/json":
        try:
            document = json.loads(await request.read())
        except (ValueError, RecursionError):
            raise SlackError("invalid_json") from None
        if not isinstance(document, dict):
            raise SlackError("json_not_object")
        return document, True
    return dict(await _form(request)), False


async def _form(request: web.Request) -> dict[str, str]:
    if not request.can_read_body:
        return {}
    if request.content_type not in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        raise SlackError("invalid_post_type")
    fields = await request.post()
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _basic_credentials(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    name, colon, secret = text.partition(":")
    return (name, secret) if colon else None
