"""The control API of the Slack stand-in: its own requests, its rules, faults and records."""

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Literal, get_args

from aiohttp import web

from interlock_sandbox.faults import Faults
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.call_log import CallLog
from interlock_sandbox.slack.control import find_person, find_workspace, show_answer, texts
from interlock_sandbox.slack.events import UNINSTALL_EVENTS
from interlock_sandbox.slack.limits import Limits
from interlock_sandbox.slack.outbound import Delivery, Outbound
from interlock_sandbox.slack.tokens import USER
from interlock_sandbox.web import CONTROL, ControlBody, refuse

MAX_WAIT_S = 10
Target = Literal["events", "interactions", "commands"]


class Switchboard:
    """Routes under `/_control` that do what no person does in Slack."""

    def __init__(
        self,
        slack: Slack,
        *,
        outbound: Outbound,
        faults: Faults,
        limits: Limits,
        log: CallLog,
    ) -> None:
        self._world = slack.world
        self._events = slack.events
        self._switches = slack.switches
        self._outbound = outbound
        self._faults = faults
        self._limits = limits
        self._log = log

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        return [
            web.post(f"{CONTROL}/uninstall", self._uninstall),
            web.post(f"{CONTROL}/revoke", self._revoke),
            web.post(f"{CONTROL}/grant-workspaces", self._grant_workspaces),
            web.post(f"{CONTROL}/url-verification", self._verify_url),
            web.post(f"{CONTROL}/event", self._event),
            web.post(f"{CONTROL}/hold-events", self._hold),
            web.post(f"{CONTROL}/release-events", self._release),
            web.post(f"{CONTROL}/repeat-event", self._repeat),
            web.post(f"{CONTROL}/raw", self._raw),
            web.get(f"{CONTROL}/rules", self._show_rules),
            web.post(f"{CONTROL}/rules", self._set_rules),
            web.get(f"{CONTROL}/calls", self._calls),
            web.get(f"{CONTROL}/deliveries", self._deliveries),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
        ]

    # Installations.

    async def _uninstall(self, request: web.Request) -> web.Response:
        """Remove the app from `team`, as an owner does, a workspace or an Enterprise.

        `order` names the events to send, in their order; with `authorizations`
        they name the installation.
        """
        body = await ControlBody.of(request)
        holder = self._holder(body.text("team"))
        order = body.raw("order", UNINSTALL_EVENTS)
        if not isinstance(order, list | tuple) or not set(order) <= set(UNINSTALL_EVENTS):
            refuse(HTTPStatus.BAD_REQUEST, f"order is a list of {UNINSTALL_EVENTS}")
        if self._world.home(holder).active_installation() is None:
            refuse(HTTPStatus.CONFLICT, "the app is not installed")
        sent = self._events.app_uninstalled(
            holder, order, authorized=body.raw("authorizations") is True
        )
        return web.json_response({"deliveries": [each.number for each in sent]})

    async def _revoke(self, request: web.Request) -> web.Response:
        """Take back what `user` of `team` allowed the app to do in their name."""
        body = await ControlBody.of(request)
        workspace = find_workspace(self._world, body.text("team"))
        user = find_person(workspace, body.text("user"))
        held = [
            each
            for holder in (workspace.id, workspace.enterprise or "")
            for each in self._world.tokens.standing(holder)
            if (each.kind, each.user) == (USER, user.id)
        ]
        if not held:
            refuse(HTTPStatus.CONFLICT, "the app holds no token of this person")
        sent = self._events.user_revoked(held)
        return web.json_response({"deliveries": [each.number for each in sent]})

    async def _grant_workspaces(self, request: web.Request) -> web.Response:
        """Let an org-wide installation into `workspaces` of `enterprise`, and no others."""
        body = await ControlBody.of(request)
        enterprise = self._world.enterprises.get(body.text("enterprise"))
        if enterprise is None or enterprise.active_installation() is None:
            refuse(HTTPStatus.CONFLICT, "the app is not installed in such an Enterprise")
        wanted = set(texts(body, "workspaces"))
        if not wanted <= set(enterprise.workspaces):
            refuse(HTTPStatus.BAD_REQUEST, f"workspaces is a list of {enterprise.workspaces}")
        self._world.grant_workspaces(enterprise.id, wanted)
        return web.json_response({})

    def _holder(self, team: str) -> str:
        if self._world.find_home(team) is None:
            refuse(HTTPStatus.NOT_FOUND, "no such workspace")
        return team

    # Requests of Slack.

    async def _verify_url(self, _request: web.Request) -> web.Response:
        """Send url_verification to the events URL."""
        return web.json_response(show_answer(await self._events.verify_url()))

    async def _event(self, request: web.Request) -> web.Response:
        """Deliver an event with retries: `team`, `event`, `envelope` to override fields."""
        body = await ControlBody.of(request)
        workspace = find_workspace(self._world, body.text("team"))
        envelope = self._events.envelope_for(workspace.id, body.object("event"))
        delivery = self._events.send(envelope | body.object("envelope"))
        return web.json_response({"event_id": delivery.event_id, "number": delivery.number})

    async def _hold(self, request: web.Request) -> web.Response:
        """Hold events back from now on, or with `on` false no more."""
        body = await ControlBody.of(request)
        self._outbound.holds_events = body.raw("on", default=True) is not False
        return web.json_response({"on": self._outbound.holds_events})

    async def _release(self, request: web.Request) -> web.Response:
        """Send the events that are held, or only `numbers`, in that order."""
        body = await ControlBody.of(request)
        numbers = body.raw("numbers")
        if numbers is not None and not _is_list_of_numbers(numbers):
            refuse(HTTPStatus.BAD_REQUEST, "numbers is a list of numbers of deliveries")
        self._outbound.release(numbers)
        return web.json_response({})

    async def _repeat(self, request: web.Request) -> web.Response:
        """Send the event of the delivery `number` again, as the retry `retry`, or as new with 0."""
        body = await ControlBody.of(request)
        number = int(body.number("number", 0))
        found = next((each for each in self._outbound.deliveries if each.number == number), None)
        if found is None or found.kind != "event":
            refuse(HTTPStatus.NOT_FOUND, "no such event")
        again = self._outbound.repeat(found, int(body.number("retry", 1)))
        return web.json_response({"number": again.number})

    async def _raw(self, request: web.Request) -> web.Response:
        """Send one request exactly as told; see the README for its fields."""
        body = await ControlBody.of(request)
        target = body.text("target", "events")
        if target not in get_args(Target):
            refuse(HTTPStatus.BAD_REQUEST, f"target must be one of {get_args(Target)}")
        content = self._raw_content(body)
        headers: dict[str, str | None] = {}
        stamp = int(self._outbound.stamp() - body.number("age_s", 0))
        headers["X-Slack-Request-Timestamp"] = str(stamp)
        if body.raw("signature") == "wrong":
            headers["X-Slack-Signature"] = "v0=" + "0" * 64
        headers |= body.object("headers")
        kind = body.text("content_type", "application/json")
        answer = await self._outbound.send_raw(target, "", content, kind, headers)
        return web.json_response(show_answer(answer))

    def _raw_content(self, body: ControlBody) -> bytes:
        encoded = body.find_text("body_base64")
        if encoded is not None:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                refuse(HTTPStatus.BAD_REQUEST, "body_base64 is not base64")
        content = body.raw("body")
        return content.encode() if isinstance(content, str) else json.dumps(content).encode()

    # Rules.

    async def _show_rules(self, _request: web.Request) -> web.Response:
        """Show the rules that can change."""
        return web.json_response(asdict(self._switches))

    async def _set_rules(self, request: web.Request) -> web.Response:
        """Change rules: any of those that `GET` shows; counting of limits starts anew."""
        body = await ControlBody.of(request)
        switches = self._switches
        rotation = body.object("rotation")
        if rotation.get("on", switches.rotation.on) is False and switches.rotation.on:
            refuse(HTTPStatus.CONFLICT, "Slack cannot turn token rotation off again")
        switches.rotation.on = rotation.get("on", switches.rotation.on) is True
        inner = ControlBody(rotation)
        switches.rotation.grace_s = inner.number("grace_s", switches.rotation.grace_s)
        for name in ("rate_limits", "history_once_a_minute", "delayed_events"):
            setattr(switches, name, body.raw(name, default=getattr(switches, name)) is True)
        for name in ("delayed_event_interval_s", "skew_s"):
            setattr(switches, name, body.number(name, getattr(switches, name)))
        self._limits.forget()
        return await self._show_rules(request)

    # Records and faults.

    async def _calls(self, request: web.Request) -> web.Response:
        """List Web API calls; `method` and `after` narrow the list."""
        after = request.query.get("after", "0")
        rows = self._log.rows(request.query.get("method"), int(after) if after.isdigit() else 0)
        return web.json_response({"calls": rows})

    async def _deliveries(self, request: web.Request) -> web.Response:
        """List what was sent to the app, with every attempt.

        With `settled` the answer waits until the delivery of that number has
        ended, for ten seconds at most; `last` is a number too: the latest one.
        """
        number = request.query.get("settled", "")
        kept: Iterable[Delivery] = self._outbound.deliveries
        waited = [each for each in kept if str(each.number) == number]
        if number == "last":
            waited = list(kept)[-1:]
        for delivery in waited:
            await delivery.wait(MAX_WAIT_S)
        return web.json_response({"deliveries": [each.show() for each in kept]})

    async def _secrets(self, _request: web.Request) -> web.Response:
        """List every secret this Slack ever issued, for searches in places they must not be."""
        return web.json_response(
            {
                "tokens": self._world.tokens.values(),
                "codes": list(self._world.codes),
                "response_urls": list(self._world.response_urls),
                "webhook_urls": list(self._world.webhooks),
                "upload_urls": [each.path for each in self._world.files.values()],
                "verification_token": self._world.verification_token,
                "app_token": self._world.tokens.app_token.value,
            }
        )

    async def _list_faults(self, _request: web.Request) -> web.Response:
        return web.json_response({"faults": self._faults.show()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let coming calls of `method`, of `for_team` if named, go wrong as `kind` says."""
        body = await ControlBody.of(request)
        self._faults.add(
            body,
            target=body.text("method", "*"),
            place=body.text("for_team", ""),
            status=HTTPStatus.SERVICE_UNAVAILABLE,
        )
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self._list_faults(request)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)
