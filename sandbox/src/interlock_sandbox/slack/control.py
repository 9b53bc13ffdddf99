"""The control API of the Slack stand-in: what people see, and their hands.

Tests, the demo and the playground use it. It is not part of Slack.
"""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.config import Config
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.files import Uploads
from interlock_sandbox.slack.interactions import NotPossible, People
from interlock_sandbox.slack.model import JSON, Channel, Message, User, Workspace
from interlock_sandbox.slack.outbound import Answer
from interlock_sandbox.slack.world import World, new_id
from interlock_sandbox.web import CONTROL, ControlBody, refuse

# A comment this often keeps an idle news stream from looking dead.
FEED_HEARTBEAT_S = 15


class Control:
    """Routes under `/_control` that see and do what people see and do."""

    def __init__(self, config: Config, slack: Slack, people: People, uploads: Uploads) -> None:
        self._config = config
        self._world = slack.world
        self._events = slack.events
        self._views = slack.views
        self._people = people
        self._uploads = uploads

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        hands = {
            "post": self._post,
            "edit": self._edit,
            "delete": self._delete,
            "click": self._click,
            "command": self._command,
            "shortcut": self._shortcut,
            "open-dm": self._open_dm,
            "open-home": self._open_home,
            "open-assistant": self._open_assistant,
            "invite": self._invite,
            "new-channel": self._new_channel,
            "archive": self._archive,
            "stop-stream": self._stop_stream,
            "dismiss": self._dismiss,
            "act-in-view": self._act_in_view,
            "submit-view": self._submit_view,
            "close-view": self._close_view,
        }
        return [
            web.get(f"{CONTROL}/state", self._state),
            web.get(f"{CONTROL}/messages", self._messages),
            web.get(f"{CONTROL}/feed", self._feed),
            web.get(f"{CONTROL}/views", self._list_views),
            web.get(f"{CONTROL}/files/{{file}}", self._file),
            *(web.post(f"{CONTROL}/{name}", do) for name, do in hands.items()),
        ]

    # Looking.

    async def _state(self, _request: web.Request) -> web.Response:
        """Everything the playground shows besides messages."""
        enterprises = [
            {
                "id": each.id,
                "name": each.name,
                "workspaces": each.workspaces,
                "installation": _show(each.active_installation()),
            }
            for each in self._world.enterprises.values()
        ]
        return web.json_response(
            {
                "app": {"id": self._config.app.id, "name": self._config.app.name},
                "dashboard_url": self._config.dashboard_url,
                "slash_commands": list(self._config.app.slash_commands),
                "workspaces": [self._show_workspace(e) for e in self._world.workspaces.values()],
                "enterprises": enterprises,
            }
        )

    def _show_workspace(self, workspace: Workspace) -> JSON:
        receiver = self._world.receiver_in(workspace.id)
        channels = [dataclasses.asdict(each) for each in self._world.channels_of(workspace.id)]
        strangers = self._world.strangers_in(workspace.id)
        return {
            "id": workspace.id,
            "name": workspace.name,
            "enterprise": workspace.enterprise,
            "users": [dataclasses.asdict(user) for user in workspace.users.values()],
            "strangers": [dataclasses.asdict(user) for user in strangers.values()],
            "channels": channels,
            "installation": _show(receiver.installation) if receiver else None,
        }

    async def _messages(self, request: web.Request) -> web.Response:
        """List a channel: `team`, `channel`; `user` hides what others whispered."""
        workspace = find_workspace(self._world, request.query.get("team", ""))
        viewer = request.query.get("user")
        channel = self._world.find_channel(workspace.id, request.query.get("channel", ""))
        if channel is None:
            refuse(HTTPStatus.NOT_FOUND, "no such channel")
        shown = [
            message.render()
            for message in self._world.messages.get(channel.id, [])
            if viewer is None or message.ephemeral_to in {None, viewer}
        ]
        statuses = self._world.statuses([channel.id])
        return web.json_response({"messages": shown, "statuses": statuses})

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        """Stream the changes that a user sees, as server-sent events."""
        workspace = find_workspace(self._world, request.query.get("team", ""))
        user = find_person(workspace, request.query.get("user", ""))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        # A page that is closed ends its feed; that is no error.
        with self._world.feed.reading(workspace.id, user.id) as news, suppress(ConnectionError):
            # Not before: what happens once the page knows of the feed is in it.
            await response.prepare(request)
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
        return response

    async def _list_views(self, request: web.Request) -> web.Response:
        """List the modals that a user has open: `team`, `user`."""
        workspace = find_workspace(self._world, request.query.get("team", ""))
        user = find_person(workspace, request.query.get("user", ""))
        return web.json_response({"views": self._views.list_open(workspace.id, user.id)})

    async def _file(self, request: web.Request) -> web.Response:
        """Return the bytes of a file as they were uploaded."""
        content = self._uploads.contents.get(request.match_info["file"])
        if content is None:
            refuse(HTTPStatus.NOT_FOUND, "no such file")
        return web.Response(body=content, content_type="application/octet-stream")

    # Writing.

    async def _post(self, request: web.Request) -> web.Response:
        """Write as a user: `text` as Slack keeps it, or `typed` as a person types it."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with possible():
            message = self._people.post(
                workspace,
                user,
                body.text("channel"),
                self._text(workspace, body),
                body.find_text("thread_ts"),
            )
        return web.json_response({"ts": message.ts, "channel": message.channel})

    async def _edit(self, request: web.Request) -> web.Response:
        """Change a message of one's own: `channel`, `ts`, `text` or `typed`."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(body)
        with possible():
            self._people.edit(user, message, self._text(workspace, body))
        return web.json_response({})

    async def _delete(self, request: web.Request) -> web.Response:
        """Delete a message of one's own: `channel`, `ts`."""
        body = await ControlBody.of(request)
        _, user = self._who(body)
        with possible():
            self._people.delete(user, self._message(body))
        return web.json_response({})

    def _text(self, workspace: Workspace, body: ControlBody) -> str:
        text = body.find_text("text")
        return self._people.encode(workspace, body.text("typed")) if text is None else text

    # Using the app.

    async def _click(self, request: web.Request) -> web.Response:
        """Use an element of a message: `channel`, `ts`, `action_id`, `choice` for selects."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(body)
        with possible():
            answer = await self._people.click(
                workspace, user, message, body.text("action_id"), body.find_text("choice")
            )
        return web.json_response(show_answer(answer))

    async def _command(self, request: web.Request) -> web.Response:
        """Run a slash command as a user."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with possible():
            answer = await self._people.command(
                workspace, user, body.text("channel"), body.text("command"), body.text("text", "")
            )
        return web.json_response(show_answer(answer))

    async def _shortcut(self, request: web.Request) -> web.Response:
        """Use a shortcut: `callback_id`; of a message with `channel` and `ts`."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        message = self._message(body) if body.find_text("ts") else None
        with possible():
            answer = await self._people.use_shortcut(
                workspace, user, body.text("callback_id"), message
            )
        return web.json_response(show_answer(answer))

    async def _open_dm(self, request: web.Request) -> web.Response:
        """Open the direct message of a user with the app."""
        workspace, user = self._who(await ControlBody.of(request))
        with possible():
            channel = self._people.open_direct(workspace, user)
        return web.json_response({"channel": channel.id})

    async def _open_home(self, request: web.Request) -> web.Response:
        """Open the app's Home tab as a user."""
        workspace, user = self._who(await ControlBody.of(request))
        with possible():
            view = self._people.open_home(workspace, user)
        return web.json_response({"view": view})

    async def _open_assistant(self, request: web.Request) -> web.Response:
        """Begin a thread with the assistant: `context` is the channel in view."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with possible():
            root = self._people.open_assistant(workspace, user, body.text("context", ""))
        return web.json_response({"channel": root.channel, "thread_ts": root.ts})

    async def _invite(self, request: web.Request) -> web.Response:
        """Add the app's bot to a channel."""
        body = await ControlBody.of(request)
        workspace = find_workspace(self._world, body.text("team"))
        channel = self._world.find_channel(workspace.id, body.text("channel"))
        receiver = self._world.receiver_in(workspace.id)
        if receiver is None or channel is None or channel.is_im:
            refuse(HTTPStatus.CONFLICT, "there is no app, or no such channel, to bring together")
        bot = receiver.installation.bot_user
        if self._world.join(channel, bot):
            self._events.member_joined(channel, bot, workspace.id)
        return web.json_response({})

    async def _new_channel(self, request: web.Request) -> web.Response:
        """Make a channel `name` with `members` in `team`, and in the workspaces `shared_with`."""
        body = await ControlBody.of(request)
        teams = [body.text("team"), *texts(body, "shared_with")]
        people = {user for team in teams for user in find_workspace(self._world, team).users}
        members = texts(body, "members")
        if not set(members) <= people:
            refuse(HTTPStatus.CONFLICT, "members must be people of these workspaces")
        channel = Channel(
            new_id("C0"),
            body.text("name"),
            members,
            teams,
            is_private=body.raw("private") is True,
        )
        return web.json_response({"channel": self._world.add_channel(channel).id})

    async def _archive(self, request: web.Request) -> web.Response:
        """Close a `channel` of `team` for good, or with `on` false open it again."""
        body = await ControlBody.of(request)
        channel = self._world.find_channel(body.text("team"), body.text("channel"))
        if channel is None:
            refuse(HTTPStatus.NOT_FOUND, "no such channel")
        channel.is_archived = body.raw("on", default=True) is not False
        self._world.channel_changed(channel)
        return web.json_response({})

    async def _stop_stream(self, request: web.Request) -> web.Response:
        """Stop a streaming message as its reader does."""
        body = await ControlBody.of(request)
        _, user = self._who(body)
        with possible():
            self._people.stop_stream(user, self._message(body))
        return web.json_response({})

    async def _dismiss(self, request: web.Request) -> web.Response:
        """Take an ephemeral message away, as the one who sees it does."""
        body = await ControlBody.of(request)
        _, user = self._who(body)
        message = self._message(body)
        if message.ephemeral_to != user.id:
            refuse(HTTPStatus.CONFLICT, "the message is not a whisper to this person")
        self._world.remove(message)
        return web.json_response({})

    # Modals.

    async def _act_in_view(self, request: web.Request) -> web.Response:
        """Use an element of a view: `view`, `action_id`, `choice` for selects."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with possible():
            answer = await self._people.act_in_view(
                workspace, user, body.text("view"), body.text("action_id"), body.find_text("choice")
            )
        return web.json_response(show_answer(answer))

    async def _submit_view(self, request: web.Request) -> web.Response:
        """Submit a modal: `view`, `values` as block id → action id → value."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        with possible():
            answer = await self._people.submit_view(
                workspace, user, body.text("view"), body.object("values")
            )
        return web.json_response(show_answer(answer))

    async def _close_view(self, request: web.Request) -> web.Response:
        """Close a modal: `view`; with `everything` the whole stack."""
        body = await ControlBody.of(request)
        workspace, user = self._who(body)
        everything = body.raw("everything") is True
        with possible():
            await self._people.close_view(workspace, user, body.text("view"), everything=everything)
        return web.json_response({})

    # Finding things by name.

    def _who(self, body: ControlBody) -> tuple[Workspace, User]:
        workspace = find_workspace(self._world, body.text("team"))
        return workspace, find_person(workspace, body.text("user"))

    def _message(self, body: ControlBody) -> Message:
        channel = self._world.find_channel(body.text("team"), body.text("channel"))
        message = self._world.find_message(channel.id, body.text("ts")) if channel else None
        if message is None:
            refuse(HTTPStatus.NOT_FOUND, "no such message")
        return message


def find_workspace(world: World, team: str) -> Workspace:
    """Return the workspace that a request names."""
    workspace = world.workspaces.get(team)
    if workspace is None:
        refuse(HTTPStatus.NOT_FOUND, "no such workspace")
    return workspace


def find_person(workspace: Workspace, user_id: str) -> User:
    """Return the person that a request names."""
    user = workspace.users.get(user_id)
    if user is None or user.is_bot:
        refuse(HTTPStatus.NOT_FOUND, "no such person in the workspace")
    return user


def texts(body: ControlBody, name: str) -> list[str]:
    """Return a field that is a list of texts, empty when absent."""
    value = body.raw(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        refuse(HTTPStatus.BAD_REQUEST, f"{name} must be a list of texts")
    return value


@contextmanager
def possible() -> Iterator[None]:
    """Answer 409 with the reason when Slack would not let a person do this."""
    try:
        yield
    except NotPossible as problem:
        refuse(HTTPStatus.CONFLICT, str(problem))


def show_answer(answer: Answer) -> dict[str, Any]:
    """Return an app's answer as the control API shows it."""
    return {
        "status": answer.status,
        "accepted": answer.accepted,
        "reason": answer.reason,
        "headers": answer.headers,
        "body": answer.body.decode(errors="replace"),
    }


def _show(installation: Any) -> JSON | None:
    return dataclasses.asdict(installation) if installation else None
