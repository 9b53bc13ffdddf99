"""What people do in Slack: write, click, command, use shortcuts, fill in modals."""

import json
import re
from typing import Any
from urllib.parse import urlencode

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.blocks import elements_of, options_of
from interlock_sandbox.slack.events import Events
from interlock_sandbox.slack.model import JSON, Channel, Message, Receiver, User, Workspace
from interlock_sandbox.slack.outbound import Answer, Outbound
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.response_urls import AppAnswers
from interlock_sandbox.slack.views import View, Views
from interlock_sandbox.slack.world import World

_TYPED_MENTION = re.compile(r"@([A-Za-z0-9_.-]+)")
ASSISTANT_THREAD = "assistant_app_thread"


class NotPossible(Exception):
    """A person asked for something that Slack would not let them do."""


class People:
    """The hands of the people in the workspaces."""

    def __init__(
        self,
        app: SlackApp,
        world: World,
        *,
        outbound: Outbound,
        events: Events,
        answers: AppAnswers,
        views: Views,
    ) -> None:
        self._app = app
        self._world = world
        self._outbound = outbound
        self._events = events
        self._answers = answers
        self._views = views

    # Writing.

    def post(
        self, workspace: Workspace, user: User, channel_id: str, text: str, thread_ts: str | None
    ) -> Message:
        """Write a message as a person; the text is as Slack keeps it.

        Raises:
            NotPossible: The person is not in the channel, or there is no such
                thread or text.
        """
        channel = self._channel(workspace, user, channel_id)
        if not text.strip():
            raise NotPossible("no_text")
        if thread_ts:
            root = self._world.find_message(channel.id, thread_ts)
            if root is None or root.ephemeral_to:
                raise NotPossible("thread_not_found")
            thread_ts = root.thread
        ts = self._world.next_ts()
        message = Message(ts, channel.id, user.id, text, workspace.id, thread_ts=thread_ts)
        return self._world.add(message)

    def edit(self, user: User, message: Message, text: str) -> None:
        """Change a message of one's own.

        Raises:
            NotPossible: It is somebody else's, or there is no text.
        """
        if message.user != user.id:
            raise NotPossible("cant_update_message")
        if not text.strip():
            raise NotPossible("no_text")
        before = message.show()
        message.text, message.edited_ts = text, self._world.next_ts()
        self._world.update(message)
        self._events.message_edited(message, before)

    def delete(self, user: User, message: Message) -> None:
        """Delete a message of one's own.

        Raises:
            NotPossible: It is somebody else's.
        """
        if message.user != user.id:
            raise NotPossible("cant_delete_message")
        self._world.remove(message)
        self._events.message_deleted(message)

    def encode(self, workspace: Workspace, typed: str) -> str:
        """Return typed text as Slack keeps it: escaped, and @names as mentions."""
        escaped = typed.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        met = self._world.strangers_in(workspace.id)
        names = {user.name: user.id for user in [*met.values(), *workspace.users.values()]}

        def mention(match: re.Match[str]) -> str:
            name = match[1].lower().rstrip(".-")
            rest = match[1][len(name) :]
            return f"<@{names[name]}>{rest}" if name in names else match[0]

        return _TYPED_MENTION.sub(mention, escaped)

    def stop_stream(self, user: User, message: Message) -> None:
        """Stop an answer while it streams.

        Raises:
            NotPossible: The message does not stream.
        """
        if message.streaming != "open":
            raise NotPossible("message_not_in_streaming_state")
        message.streaming = "stopped"
        self._world.update(message)
        self._events.stream_stopped(user.id, message)

    # The app's own places.

    def open_direct(self, workspace: Workspace, user: User) -> Channel:
        """Open the direct message with the app.

        Raises:
            NotPossible: The app is not in the workspace.
        """
        receiver = self._receiver(workspace)
        # In an Enterprise it is one conversation, in every workspace that both are in.
        teams = [e.id for e in self._world.reach(receiver.holder) if user.id in e.users]
        return self._world.open_direct(teams, [receiver.installation.bot_user, user.id])

    def open_home(self, workspace: Workspace, user: User) -> JSON | None:
        """Open the app's Home tab; return what it shows.

        Raises:
            NotPossible: The app is not in the workspace.
        """
        receiver = self._receiver(workspace)
        channel = self.open_direct(workspace, user)
        view = self._views.find_home(receiver.holder, user.id)
        shown = self._views.show(view) if view else None
        self._events.home_opened(workspace.id, user.id, channel.id, shown)
        return shown

    def open_assistant(self, workspace: Workspace, user: User, context: str) -> Message:
        """Begin a new thread with the assistant, with the channel `context` in view.

        Raises:
            NotPossible: The app is not in the workspace.
        """
        installation = self._receiver(workspace).installation
        root = Message(
            self._world.next_ts(),
            self.open_direct(workspace, user).id,
            installation.bot_user,
            "New Assistant Thread",
            workspace.id,
            bot_id=installation.bot_id,
            subtype=ASSISTANT_THREAD,
            assistant_title="New Assistant Thread",
        )
        self._world.add(root)
        self._events.assistant_started(workspace.id, user.id, root, context)
        return root

    # Clicking.

    async def click(
        self, workspace: Workspace, user: User, message: Message, action_id: str, choice: str | None
    ) -> Answer:
        """Use a button or select of a message and wait for the app's acknowledgement.

        Raises:
            NotPossible: The message does not show the element to this person,
                or the element has no such choice.
        """
        if message.ephemeral_to not in {None, user.id}:
            raise NotPossible("message_not_found")
        action = self._action(message.blocks, action_id, choice)
        receiver = self._author(workspace, message)
        payload = self._payload("block_actions", receiver, workspace, user) | {
            "container": _message_container(message),
            "channel": _show_place(self._world.channels[message.channel]),
            "state": {"values": _state_values(action)},
            "response_url": self._answers.issue_url("actions", receiver, workspace, user, message),
            "actions": [action],
        }
        if message.ephemeral_to is None:
            # Slack shows an app no ephemeral message again.
            payload["message"] = message.show()
        return await self._ask(payload)

    def _action(self, blocks: list[JSON], action_id: str, choice: str | None) -> JSON:
        for block in blocks:
            for element in elements_of(block):
                if element["action_id"] == action_id:
                    return _action(block, element, choice, self._world.next_ts())
        raise NotPossible("action_not_found")

    async def use_shortcut(
        self, workspace: Workspace, user: User, callback_id: str, message: Message | None
    ) -> Answer:
        """Use a shortcut of the app, of a message or from the search bar.

        Raises:
            NotPossible: The app has no such shortcut, or is not here.
        """
        known = self._app.message_shortcuts if message else self._app.global_shortcuts
        receiver = self._receiver(workspace)
        if callback_id not in known or not self._may_command(receiver):
            raise NotPossible("unknown_shortcut")
        kind = "message_action" if message else "shortcut"
        payload = self._payload(kind, receiver, workspace, user) | {
            "callback_id": callback_id,
            "action_ts": self._world.next_ts(),
        }
        if message:
            payload |= {
                "message_ts": message.ts,
                "message": message.show(),
                "channel": _show_place(self._world.channels[message.channel]),
                "response_url": self._answers.issue_url(
                    "actions", receiver, workspace, user, message
                ),
            }
        return await self._ask(payload)

    def _payload(
        self,
        kind: str,
        receiver: Receiver,
        workspace: Workspace,
        user: User,
        view: View | None = None,
    ) -> JSON:
        """Return what every interaction says of its sender and place.

        A modal's team is its reader's; with an org-wide installation there is none.
        """
        team = self._world.workspaces[receiver.team]
        if view:
            team = workspace
        shown: JSON | None = {"id": team.id, "domain": team.domain}
        enterprise = self._world.enterprise_of(receiver.team)
        if enterprise and shown:
            shown |= {"enterprise_id": enterprise.id, "enterprise_name": enterprise.name}
        if view and receiver.is_org_wide:
            shown = None
        trigger = self._views.issue_trigger(
            receiver, workspace.id, user.id, view.id if view else None
        )
        return {
            "type": kind,
            "user": {
                "id": user.id,
                "username": user.name,
                "name": user.name,
                "team_id": workspace.id,
            },
            "api_app_id": self._app.id,
            "token": self._world.verification_token,
            "trigger_id": trigger,
            "team": shown,
            "enterprise": {"id": enterprise.id, "name": enterprise.name} if enterprise else None,
            "is_enterprise_install": receiver.is_org_wide,
        }

    async def _ask(self, payload: JSON) -> Answer:
        body = urlencode({"payload": json.dumps(payload)}).encode()
        return await self._outbound.ask("interaction", payload["type"], body)

    # Modals.

    async def act_in_view(
        self, workspace: Workspace, user: User, view_id: str, action_id: str, choice: str | None
    ) -> Answer:
        """Use a button or select of a view and wait for the app's acknowledgement.

        Raises:
            NotPossible: There is no such view, element or choice.
        """
        view = self._view(workspace, user, view_id)
        action = self._action(view.content["blocks"], action_id, choice)
        for block, values in _state_values(action).items():
            view.values.setdefault(block, {}).update(values)
        payload = self._view_payload("block_actions", workspace, user, view) | {
            "container": {"type": "view", "view_id": view.id},
            "view": self._views.show(view),
            "actions": [action],
        }
        return await self._ask(payload)

    async def submit_view(
        self, workspace: Workspace, user: User, view_id: str, values: JSON
    ) -> Answer:
        """Submit a modal; it closes unless the app answers otherwise.

        The values are what was filled in: block id → action id → text or option value.

        Raises:
            NotPossible: There is no such modal, a value fits none of its inputs, or
                the app's answer is not one that Slack would follow.
        """
        view = self._view(workspace, user, view_id)
        view.values = _input_values(view, values)
        payload = self._view_payload("view_submission", workspace, user, view) | {
            "view": self._views.show(view),
            "response_urls": [],
        }
        answer = await self._ask(payload)
        if answer.accepted:
            await self._follow(workspace, user, view, _response_action(answer))
        return answer

    async def close_view(
        self, workspace: Workspace, user: User, view_id: str, *, everything: bool = False
    ) -> None:
        """Close a modal, or its whole stack; the app learns of it if it asked to.

        Raises:
            NotPossible: There is no such modal.
        """
        view = self._view(workspace, user, view_id)
        if everything:
            await self._clear(workspace, user, view)
            return
        self._views.close(view)
        await self._tell_closed(workspace, user, view, cleared=False)

    async def _clear(self, workspace: Workspace, user: User, view: View) -> None:
        for closed in self._views.close_all(view):
            await self._tell_closed(workspace, user, closed, cleared=True)

    async def _tell_closed(
        self, workspace: Workspace, user: User, view: View, *, cleared: bool
    ) -> None:
        if view.content.get("notify_on_close"):
            payload = self._view_payload("view_closed", workspace, user, view)
            shown = {"view": self._views.show(view), "is_cleared": cleared}
            await self._ask(payload | shown)

    def _view_payload(self, kind: str, workspace: Workspace, user: User, view: View) -> JSON:
        installation = self._world.home(view.holder).active_installation()
        if installation is None:
            raise NotPossible("the app is not installed")
        receiver = self._world.receiver_of_bot(installation.bot_user, workspace.id)
        if receiver is None:
            raise NotPossible("the app is not in the workspace")
        return self._payload(kind, receiver, workspace, user, view)

    def _view(self, workspace: Workspace, user: User, view_id: str) -> View:
        view = self._views.find(workspace.id, user.id, view_id)
        if view is None:
            raise NotPossible("view_not_found")
        return view

    async def _follow(self, workspace: Workspace, user: User, view: View, response: JSON) -> None:
        """Do what the app answered to a submission."""
        try:
            match response.get("response_action"):
                case "errors":
                    return
                case "update":
                    self._views.update(
                        view.holder,
                        response.get("view"),
                        view_id=view.id,
                        external_id="",
                        expected=None,
                    )
                case "push":
                    self._views.put_above(view, response.get("view"))
                case "clear":
                    await self._clear(workspace, user, view)
                case _:
                    self._views.close(view)
        except SlackError as error:
            raise NotPossible(error.code) from None

    # Commanding.

    async def command(
        self, workspace: Workspace, user: User, channel_id: str, command: str, text: str
    ) -> Answer:
        """Run a slash command; what the app answers appears in the channel.

        Raises:
            NotPossible: There is no such command, or not here.
        """
        channel = self._channel(workspace, user, channel_id)
        receiver = self._receiver(workspace)
        if command not in self._app.slash_commands or not self._may_command(receiver):
            raise NotPossible("unknown_command")
        source = Message(self._world.next_ts(), channel.id, user.id, "", workspace.id)
        fields = {
            "token": self._world.verification_token,
            "team_id": workspace.id,
            "team_domain": workspace.domain,
            "channel_id": channel.id,
            "channel_name": _show_place(channel)["name"],
            "user_id": user.id,
            "user_name": user.name,
            "command": command,
            "text": text,
            "api_app_id": self._app.id,
            "is_enterprise_install": "true" if receiver.is_org_wide else "false",
            "response_url": self._answers.issue_url("commands", receiver, workspace, user, source),
            "trigger_id": self._views.issue_trigger(receiver, workspace.id, user.id),
        }
        if receiver.enterprise:
            fields["enterprise_id"] = receiver.enterprise.id
            fields["enterprise_name"] = receiver.enterprise.name
        answer = await self._outbound.ask("command", command, urlencode(fields).encode())
        self._answers.show_command_answer(receiver, source, command, answer)
        return answer

    # Who and where.

    def _channel(self, workspace: Workspace, user: User, channel_id: str) -> Channel:
        channel = self._world.find_channel(workspace.id, channel_id)
        if channel is None or user.id not in channel.members:
            raise NotPossible("not_in_channel")
        return channel

    def _receiver(self, workspace: Workspace) -> Receiver:
        receiver = self._world.receiver_in(workspace.id)
        if receiver is None:
            raise NotPossible("the app is not installed")
        return receiver

    def _author(self, workspace: Workspace, message: Message) -> Receiver:
        """Return the installation that wrote a message, seen from a reader's workspace."""
        receiver = self._world.receiver_of_bot(message.user, workspace.id)
        if receiver is None:
            raise NotPossible("the app is not installed")
        return receiver

    def _may_command(self, receiver: Receiver) -> bool:
        return "commands" in self._world.tokens.scopes(receiver.holder)


def _show_place(channel: Channel) -> JSON:
    name = "directmessage" if channel.is_im else channel.name
    if channel.is_private:
        name = "privategroup"
    return {"id": channel.id, "name": name}


def _message_container(message: Message) -> JSON:
    container: JSON = {
        "type": "message",
        "message_ts": message.ts,
        "channel_id": message.channel,
        "is_ephemeral": message.ephemeral_to is not None,
    }
    return container | ({"thread_ts": message.thread_ts} if message.thread_ts else {})


def _action(block: JSON, element: JSON, choice: str | None, ts: str) -> JSON:
    action: JSON = {
        "action_id": element["action_id"],
        "block_id": block.get("block_id", ""),
        "type": element["type"],
        "action_ts": ts,
    }
    if element["type"] == "button":
        copied = {name: element[name] for name in ("text", "value", "style") if name in element}
        return action | copied
    action["selected_option"] = _option(element, choice)
    if "placeholder" in element:
        action["placeholder"] = element["placeholder"]
    return action


def _option(element: JSON, choice: Any) -> JSON:
    option = next((each for each in options_of(element) if each["value"] == choice), None)
    if option is None:
        raise NotPossible("no_such_option")
    return option


def _state_values(action: JSON) -> JSON:
    if "selected_option" not in action:
        return {}
    value = {"type": action["type"], "selected_option": action["selected_option"]}
    return {action["block_id"]: {action["action_id"]: value}}


def _input_values(view: View, given: JSON) -> JSON:
    """Return the state of a modal after its inputs were filled in."""
    state = dict(view.values)
    for block in view.content["blocks"]:
        if block["type"] != "input":
            continue
        element = block["element"]
        value = given.get(block["block_id"], {}).get(element["action_id"])
        if not value and not block.get("optional"):
            raise NotPossible(f"missing_input:{block['block_id']}")
        filled: JSON = {"type": element["type"]}
        if element["type"] == "plain_text_input":
            filled["value"] = str(value) if value else None
        else:
            filled["selected_option"] = _option(element, value) if value else None
        state[block["block_id"]] = {element["action_id"]: filled}
    return state


def _response_action(answer: Answer) -> JSON:
    if not answer.body:
        return {}
    try:
        response = json.loads(answer.body)
    except ValueError:
        return {}
    return response if isinstance(response, dict) else {}
