"""The control API of the Slack stand-in: people's hands, faults, and records.

Tests, the demo and the playground use it. It is not part of Slack.
"""

import asyncio
import base64
import binascii
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal, get_args

from aiohttp import web

from interlock_sandbox.config import Config
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.call_log import CallLog
from interlock_sandbox.slack.interactions import NotPossible, People
from interlock_sandbox.slack.outbound import Answer
from interlock_sandbox.slack.web_api import FAULT_KINDS, Fault, WebApi
from interlock_sandbox.slack.world import JSON, Message, User, Workspace, render
from interlock_sandbox.web import CONTROL, ControlBody, refuse

# A comment this often keeps an idle news stream from looking dead.
FEED_HEARTBEAT_S = 15
MAX_FAULTS = 1000
MAX_WAIT_S = 10
Target = Literal["events", "interactions", "commands"]


class Control:
    """Routes under `/_control`."""

    def __init__(
        self,
        config: Config,
        slack: Slack,
        *,
        people: People,
        api: WebApi,
        log: CallLog,
    ) -> None:
        self._config = config
        self._world = slack.world
        self._outbound = slack.outbound
        self._views = slack.views
        self._people = people
        self._api = api
        self._log = log

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return all control routes."""
        return [
            web.get(f"{CONTROL}/state", self._state),
            web.get(f"{CONTROL}/messages", self._messages),
            web.get(f"{CONTROL}/feed", self._feed),
            web.post(f"{CONTROL}/post", self._post),
            web.post(f"{CONTROL}/click", self._click),
            web.post(f"{CONTROL}/command", self._command),
            web.post(f"{CONTROL}/open-dm", self._open_dm),
            web.post(f"{CONTROL}/invite", self._invite),
            web.post(f"{CONTROL}/stop-stream", self._stop_stream),
            web.post(f"{CONTROL}/dismiss", self._dismiss),
            web.get(f"{CONTROL}/views", self._list_views),
            web.post(f"{CONTROL}/act-in-view", self._act_in_view),
            web.post(f"{CONTROL}/submit-view", self._submit_view),
            web.post(f"{CONTROL}/close-view", self._close_view),
            web.post(f"{CONTROL}/uninstall", self._uninstall),
            web.post(f"{CONTROL}/url-verification", self._verify_url),
            web.post(f"{CONTROL}/event", self._event),
            web.post(f"{CONTROL}/raw", self._raw),
            web.get(f"{CONTROL}/calls", self._calls),
            web.get(f"{CONTROL}/deliveries", self._deliveries),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
        ]

    # Looking.

    async def _state(self, _request: web.Request) -> web.Response:
        """Everything the playground shows besides messages."""
        workspaces = [self._show_workspace(each) for each in self._world.workspaces.values()]
        return web.json_response(
            {
                "app": {"id": self._config.app.id, "name": self._config.app.name},
                "dashboard_url": self._config.dashboard_url,
                "slash_commands": list(self._config.app.slash_commands),
                "workspaces": workspaces,
            }
        )

    def _show_workspace(self, workspace: Workspace) -> JSON:
        installation = workspace.active_installation()
        return {
            "id": workspace.id,
            "name": workspace.name,
            "users": [dataclasses.asdict(user) for user in workspace.users.values()],
            "channels": [dataclasses.asdict(each) for each in workspace.channels.values()],
            "installation": dataclasses.asdict(installation) if installation else None,
        }

    async def _messages(self, request: web.Request) -> web.Response:
        """List a channel: `team`, `channel`; `user` hides what others whispered."""
        workspace = self._workspace(request.query.get("team", ""))
        viewer = request.query.get("user")
        channel = request.query.get("channel", "")
        if channel not in workspace.channels:
            refuse(HTTPStatus.NOT_FOUND, "no such channel")
        shown = [
            render(message)
            for message in workspace.messages.get(channel, [])
            if viewer is None or message.ephemeral_to in {None, viewer}
        ]
        return web.json_response({"messages": shown, "statuses": self._world.statuses([channel])})

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        """Stream the changes that a user sees, as server-sent events."""
        workspace = self._workspace(request.query.get("team", ""))
        user = self._user(workspace, request.query.get("user", ""))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        with self._world.feed.reading(workspace.id, user.id) as news:
            await response.write(b": listening\n\n")
            while True:
                try:
                    event = await asyncio.wait_for(news.get(), FEED_HEARTBEAT_S)
                except TimeoutError:
                    await response.write(b": still here\n\n")
                    continue
                if event is None:
                    return response
                await response.write(f"data: {json.dumps(event)}\n\n".encode())

    # People.

    async def _post(self, request: web.Request) -> web.Response:
        """Write as a user: `text` as Slack keeps it, or `typed` as a person types it."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        text = body.find_text("text")
        if text is None:
            text = self._people.encode(workspace, body.text("typed"))
        with _possible():
            message = self._people.post(
                workspace, user, body.text("channel"), text, body.find_text("thread_ts")
            )
        return web.json_response({"ts": message.ts, "channel": message.channel})

    async def _click(self, request: web.Request) -> web.Response:
        """Use an element of a message: `channel`, `ts`, `action_id`, `choice` for selects."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(workspace, body)
        with _possible():
            answer = await self._people.click(
                workspace, user, message, body.text("action_id"), body.find_text("choice")
            )
        return web.json_response(_show_answer(answer))

    async def _command(self, request: web.Request) -> web.Response:
        """Run a slash command as a user."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with _possible():
            answer = await self._people.command(
                workspace, user, body.text("channel"), body.text("command"), body.text("text", "")
            )
        return web.json_response(_show_answer(answer))

    async def _open_dm(self, request: web.Request) -> web.Response:
        """Open the direct message of a user with the app."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        installation = workspace.active_installation()
        if installation is None:
            refuse(HTTPStatus.CONFLICT, "the app is not installed")
        channel = self._world.open_im(workspace.id, installation.bot_user, user.id)
        return web.json_response({"channel": channel.id})

    async def _invite(self, request: web.Request) -> web.Response:
        """Add the app's bot to a channel."""
        body = await ControlBody.of(request)
        workspace = self._workspace(body.text("team"))
        channel = workspace.channels.get(body.text("channel"))
        installation = workspace.active_installation()
        if installation is None or channel is None or channel.is_im:
            refuse(HTTPStatus.CONFLICT, "there is no app, or no such channel, to bring together")
        self._world.join(workspace.id, channel, installation.bot_user)
        return web.json_response({})

    async def _stop_stream(self, request: web.Request) -> web.Response:
        """Stop a streaming message as its reader does."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(workspace, body)
        with _possible():
            self._people.stop_stream(workspace, user, message)
        return web.json_response({})

    async def _dismiss(self, request: web.Request) -> web.Response:
        """Take an ephemeral message away, as the one who sees it does."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(workspace, body)
        if message.ephemeral_to != user.id:
            refuse(HTTPStatus.CONFLICT, "the message is not a whisper to this person")
        self._world.remove(workspace.id, message)
        return web.json_response({})

    async def _list_views(self, request: web.Request) -> web.Response:
        """List the modals that a user has open: `team`, `user`."""
        workspace = self._workspace(request.query.get("team", ""))
        user = self._user(workspace, request.query.get("user", ""))
        return web.json_response({"views": self._views.list_open(workspace.id, user.id)})

    async def _act_in_view(self, request: web.Request) -> web.Response:
        """Use an element of a modal: `view`, `action_id`, `choice` for selects."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with _possible():
            answer = await self._people.act_in_view(
                workspace, user, body.text("view"), body.text("action_id"), body.find_text("choice")
            )
        return web.json_response(_show_answer(answer))

    async def _submit_view(self, request: web.Request) -> web.Response:
        """Submit a modal: `view`, `values` as block id → action id → value."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with _possible():
            answer = await self._people.submit_view(
                workspace, user, body.text("view"), body.object("values")
            )
        return web.json_response(_show_answer(answer))

    async def _close_view(self, request: web.Request) -> web.Response:
        """Close a modal: `view`."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with _possible():
            await self._people.close_view(workspace, user, body.text("view"))
        return web.json_response({})

    async def _uninstall(self, request: web.Request) -> web.Response:
        """Remove the app from a workspace, as its owner does in Slack's settings."""
        body = await ControlBody.of(request)
        workspace = self._workspace(body.text("team"))
        if workspace.active_installation() is None:
            refuse(HTTPStatus.CONFLICT, "the app is not installed")
        self._outbound.app_uninstalled(workspace)
        return web.json_response({})

    # Requests of Slack.

    async def _verify_url(self, _request: web.Request) -> web.Response:
        """Send url_verification to the events URL."""
        return web.json_response(_show_answer(await self._outbound.verify_url()))

    async def _event(self, request: web.Request) -> web.Response:
        """Deliver an event with retries: `team`, `event`, `envelope` to override fields."""
        body = await ControlBody.of(request)
        workspace = self._workspace(body.text("team"))
        envelope = self._outbound.envelope(workspace, body.object("event"))
        delivery = self._outbound.send_event(envelope | body.object("envelope"))
        return web.json_response({"event_id": delivery.event_id, "number": delivery.number})

    async def _raw(self, request: web.Request) -> web.Response:
        """Send one request exactly as told; see the README for its fields."""
        body = await ControlBody.of(request)
        target = body.text("target", "events")
        if target not in get_args(Target):
            refuse(HTTPStatus.BAD_REQUEST, f"target must be one of {get_args(Target)}")
        content = self._raw_content(body)
        headers: dict[str, str | None] = {}
        stamp = int(self._world.now() - body.number("age_s", 0))
        headers["X-Slack-Request-Timestamp"] = str(stamp)
        if body.raw("signature") == "wrong":
            headers["X-Slack-Signature"] = "v0=" + "0" * 64
        headers |= body.object("headers")
        answer = await self._outbound.send_raw(
            target, content, body.text("content_type", "application/json"), headers
        )
        return web.json_response(_show_answer(answer))

    def _raw_content(self, body: ControlBody) -> bytes:
        encoded = body.find_text("body_base64")
        if encoded is not None:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                refuse(HTTPStatus.BAD_REQUEST, "body_base64 is not base64")
        content = body.raw("body")
        return content.encode() if isinstance(content, str) else json.dumps(content).encode()

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
        kept = self._outbound.deliveries
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
                "tokens": list(self._world.tokens),
                "codes": list(self._world.codes),
                "response_urls": list(self._world.response_urls),
                "verification_token": self._world.verification_token,
            }
        )

    async def _list_faults(self, _request: web.Request) -> web.Response:
        return web.json_response({"faults": self._api.list_faults()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let the next `count` calls of `method` (or `*`) go wrong as `kind` says."""
        body = await ControlBody.of(request)
        kind, count = body.text("kind"), int(body.number("count", 1))
        if kind not in FAULT_KINDS:
            refuse(HTTPStatus.BAD_REQUEST, f"kind must be one of {sorted(FAULT_KINDS)}")
        if not 1 <= count <= MAX_FAULTS:
            refuse(HTTPStatus.BAD_REQUEST, f"count must be 1 to {MAX_FAULTS}")
        fault = Fault(
            kind,
            body.text("error", "internal_error"),
            body.number("seconds", 1),
            int(body.number("status", HTTPStatus.SERVICE_UNAVAILABLE)),
        )
        self._api.add_fault(body.text("method"), fault, count)
        return web.json_response({"faults": self._api.list_faults()})

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self._api.clear_faults()
        return web.json_response({"faults": {}})

    # Finding things by name.

    def _workspace(self, team: str) -> Workspace:
        workspace = self._world.workspaces.get(team)
        if workspace is None:
            refuse(HTTPStatus.NOT_FOUND, "no such workspace")
        return workspace

    @staticmethod
    def _user(workspace: Workspace, user_id: str) -> User:
        user = workspace.users.get(user_id)
        if user is None or user.is_bot:
            refuse(HTTPStatus.NOT_FOUND, "no such person in the workspace")
        return user

    def _who(self, body: ControlBody) -> tuple[Workspace, User]:
        workspace = self._workspace(body.text("team"))
        return workspace, self._user(workspace, body.text("user"))

    def _message(self, workspace: Workspace, body: ControlBody) -> Message:
        message = self._world.find_message(workspace.id, body.text("channel"), body.text("ts"))
        if message is None:
            refuse(HTTPStatus.NOT_FOUND, "no such message")
        return message


@contextmanager
def _possible() -> Iterator[None]:
    """Answer 409 with the reason when Slack would not let a person do this."""
    try:
        yield
    except NotPossible as problem:
        refuse(HTTPStatus.CONFLICT, str(problem))


def _show_answer(answer: Answer) -> dict[str, Any]:
    return {
        "status": answer.status,
        "accepted": answer.accepted,
        "reason": answer.reason,
        "headers": answer.headers,
        "body": answer.body.decode(errors="replace"),
    }
