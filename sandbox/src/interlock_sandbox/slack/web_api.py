"""Slack's Web API: how a call is read, judged, recorded and answered.

What each method does is in `methods`; here is what all of them share: bodies in
two encodings, tokens, scopes, arguments, limits, faults on demand, and the record
of everything that was asked.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from interlock_sandbox.faults import Faults
from interlock_sandbox.slack.call import Call, Slack
from interlock_sandbox.slack.call_log import CallLog, Record, without_secrets
from interlock_sandbox.slack.limits import Limits, Tier
from interlock_sandbox.slack.methods import METHODS
from interlock_sandbox.slack.model import JSON
from interlock_sandbox.slack.oauth import holder_of, oauth_access, oauth_exchange
from interlock_sandbox.slack.refusal import RateLimited, SlackError
from interlock_sandbox.slack.tokens import Token
from interlock_sandbox.slack.trouble import strike_after, strike_before, too_many

# Methods that an app calls with its own credentials instead of a token.
_BY_APP: dict[str, tuple[Callable[[Slack, JSON], JSON], Tier]] = {
    "oauth.v2.access": (oauth_access, Tier.SPECIAL),
    "oauth.v2.exchange": (oauth_exchange, Tier.THREE),
}
_CREDENTIALS = frozenset({"client_id", "client_secret"})
_BY_APP_ARGUMENTS = {
    "oauth.v2.access": _CREDENTIALS
    | {"assertion", "code", "code_verifier", "grant_type", "redirect_uri", "refresh_token"},
    "oauth.v2.exchange": _CREDENTIALS | {"token"},
}


@dataclass(frozen=True)
class _Asked:
    """A call as it came.

    Attributes:
        token: The text of its token; empty when it brought none.
        headers: What its answer carries.
    """

    method: str
    arguments: JSON
    token: str
    headers: dict[str, str] = field(default_factory=dict)


class WebApi:
    """Answer `/api/{method}`."""

    def __init__(self, slack: Slack, log: CallLog, faults: Faults, limits: Limits) -> None:
        self._app = slack.app
        self._world = slack.world
        self._slack = slack
        self._faults = faults
        self._limits = limits
        self._log = log

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the route of all methods."""
        return [web.route("*", "/api/{method}", self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        record = self._log.begin(request.match_info["method"])
        try:
            asked = await _read(request, record.method)
        except SlackError as error:
            return _refused(record, error)
        record.args = without_secrets(asked.arguments)
        token = self._world.tokens.find(asked.token)
        # A refusal belongs to whoever the token was of, dead or alive.
        record.team = token.holder if token else holder_of(self._world, asked.arguments)
        record.user = token.user if token else None
        fault = self._faults.take(record.method, record.team)
        if refusal := await strike_before(fault, record):
            return refusal
        return await strike_after(fault, request, self._judge(asked, record))

    def _judge(self, asked: _Asked, record: Record) -> web.Response:
        try:
            if asked.method == "api.test":
                answer = _echo(asked.arguments)
            elif asked.method in _BY_APP:
                answer = self._call_by_app(asked, record)
            else:
                answer = self._call(asked, record)
        except SlackError as error:
            return _refused(record, error, asked.headers)
        except RateLimited as early:
            record.error = "ratelimited"
            return too_many(early.seconds)
        record.acted = True
        return web.json_response({"ok": True, **answer}, headers=asked.headers)

    def _call_by_app(self, asked: _Asked, record: Record) -> JSON:
        run, tier = _BY_APP[asked.method]
        self._count(asked.method, tier, self._app.id)
        unknown = sorted(asked.arguments.keys() - _BY_APP_ARGUMENTS[asked.method])
        if unknown:
            raise SlackError("invalid_arguments", response_metadata={"messages": unknown})
        answer = run(self._slack, asked.arguments)
        person = answer.get("authed_user", {}).get("id") or answer.get("user_id")
        record.user = person or answer.get("bot_user_id")
        return answer

    def _call(self, asked: _Asked, record: Record) -> JSON:
        method = METHODS.get(asked.method)
        if method is None:
            raise SlackError("unknown_method", req_method=asked.method)
        if not asked.token:
            raise SlackError("not_authed")
        token = self._world.authenticate(asked.token)
        asked.headers["x-oauth-scopes"] = ",".join(token.scopes)
        if method.scopes:
            asked.headers["x-accepted-oauth-scopes"] = ",".join(sorted(method.scopes))
        self._count(record.method, method.tier, _payer(token), asked.arguments.get("channel"))
        method.require(token, asked.arguments)
        return method.run(self._slack, Call(self._world, token, asked.arguments))

    def _count(self, method: str, tier: Tier, team: str, channel: Any = "") -> None:
        wait = self._limits.wait(method, tier, team, str(channel))
        if wait:
            raise RateLimited(wait)


def _payer(token: Token) -> str:
    """Return whose limit a call counts against; an app-level token has its own."""
    return token.holder or token.kind


def _refused(
    record: Record, error: SlackError, headers: dict[str, str] | None = None
) -> web.Response:
    record.error = error.code
    body = {"ok": False, "error": error.code, **error.details}
    return web.json_response(body, headers=headers)


def _echo(arguments: JSON) -> JSON:
    if error := arguments.get("error"):
        raise SlackError(str(error), args=arguments)
    return {"args": arguments}


async def _read(request: web.Request, name: str) -> _Asked:
    """Read a call: arguments from the URL and the body, the token from where it may be."""
    method = METHODS.get(name)
    arguments = dict(request.query)
    body, is_json = await _body(request)
    reads_json = method.reads_json if method else name not in _BY_APP
    if not is_json or reads_json:
        arguments |= body
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if name in _BY_APP:
        if scheme.lower() == "basic":
            arguments |= _basic_credentials(credentials)
        elif scheme.lower() == "bearer":
            # slack_sdk sends there what oauth.v2.exchange takes as an argument.
            arguments["token"] = credentials
        return _Asked(name, arguments, "")
    # In the header, or in a form body; never in the URL.
    in_body = "" if is_json else body.get("token", "")
    token = credentials if scheme.lower() == "bearer" else str(in_body)
    arguments.pop("token", None)
    return _Asked(name, arguments, token)


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
    if request.content_type not in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        raise SlackError("invalid_post_type")
    fields = await request.post()
    return {name: value for name, value in fields.items() if isinstance(value, str)}, False


def _basic_credentials(encoded: str) -> dict[str, str]:
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return {}
    name, colon, secret = text.partition(":")
    return {"client_id": name, "client_secret": secret} if colon else {}
