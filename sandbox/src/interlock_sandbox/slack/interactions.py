"""What people do in Slack: write, click, command, and fill in modals."""

import json
import re
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.blocks import elements_of, options_of
from interlock_sandbox.slack.outbound import Answer, Outbound
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.response_urls import AppAnswers
from interlock_sandbox.slack.views import View, Views
from interlock_sandbox.slack.world import JSON, Message, User, Workspace, World, render

_TYPED_MENTION = re.compile(r"@([A-Za-z0-9_.-]+)")


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
        answers: AppAnswers,
        views: Views,
    ) -> None:
        self._app = app
        self._world = world
        self._outbound = outbound
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
        channel = workspace.channels.get(channel_id)
        if channel is None or user.id not in channel.members:
            raise NotPossible("not_in_channel")
        if not text.strip():
            raise NotPossible("no_text")
        if thread_ts:
            root = self._world.find_message(workspace.id, channel_id, thread_ts)
            if root is None or root.ephemeral_to:
                raise NotPossible("thread_not_found")
            thread_ts = root.thread
        message = Message(self._world.next_ts(), channel_id, user.id, text, thread_ts=thread_ts)
        return self._world.add(workspace.id, message)

    @staticmethod
    def encode(workspace: Workspace, typed: str) -> str:
        """Return typed text as Slack keeps it: escaped, and @names as mentions."""
        escaped = typed.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        names = {user.name: user.id for user in workspace.users.values()}

        def mention(match: re.Match[str]) -> str:
            name = match[1].lower().rstrip(".-")
            rest = match[1][len(name) :]
            return f"<@{names[name]}>{rest}" if name in names else match[0]

        return _TYPED_MENTION.sub(mention, escaped)

    def stop_stream(self, workspace: Workspace, user: User, message: Message) -> None:
        """Stop an answer while it streams.

        Raises:
            NotPossible: The message does not stream.
        """
        if message.streaming != "open":
            raise NotPossible("message_not_in_streaming_state")
        message.streaming = "stopped"
        self._world.update(workspace.id, message)
        self._outbound.stream_stopped(workspace, user.id, message)

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
        channel = workspace.channels[message.channel]
        payload = self._payload("block_actions", workspace, user) | {
            "container": _message_container(message),
            "channel": {
                "id": channel.id,
                "name": "directmessage" if channel.is_im else channel.name,
            },
            "state": {"values": _state_values(action)},
            "response_url": self._answers.issue_url("actions", workspace, user, message),
            "actions": [action],
        }
        if message.ephemeral_to is None:
            # Slack shows an app no ephemeral message again.
            shown = render(message)
            shown.pop("sandbox", None)
            payload["message"] = shown
        return await self._outbound.interact(payload)

    def _action(self, blocks: list[JSON], action_id: str, choice: str | None) -> JSON:
        for block in blocks:
            for element in elements_of(block):
                if element["action_id"] == action_id:
                    return _action(block, element, choice, self._world.next_ts())
        raise NotPossible("action_not_found")

    def _payload(self, kind: str, workspace: Workspace, user: User) -> JSON:
        """Return what every interaction says of its sender and place."""
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
            "trigger_id": self._views.issue_trigger(workspace.id, user.id),
            "team": {"id": workspace.id, "domain": workspace.domain},
            "enterprise": None,
            "is_enterprise_install": False,
        }

    # Modals.

    async def act_in_view(
        self, workspace: Workspace, user: User, view_id: str, action_id: str, choice: str | None
    ) -> Answer:
        """Use a button or select of a modal and wait for the app's acknowledgement.

        Raises:
            NotPossible: There is no such modal, element or choice.
        """
        view = self._view(workspace, user, view_id)
        action = self._action(view.content["blocks"], action_id, choice)
        for block, values in _state_values(action).items():
            view.values.setdefault(block, {}).update(values)
        payload = self._payload("block_actions", workspace, user) | {
            "container": {"type": "view", "view_id": view.id},
            "view": self._views.show(view),
            "actions": [action],
        }
        return await self._outbound.interact(payload)

    async def submit_view(
        self, workspace: Workspace, user: User, view_id: str, values: JSON
    ) -> Answer:
        """Submit a modal; it closes unless the app answers otherwise.

        The values are what was filled in: block id → action id → text or option value.

        Raises:
            NotPossible: There is no such modal, or a value fits none of its inputs.
        """
        view = self._view(workspace, user, view_id)
        view.values = _input_values(view, values)
        payload = self._payload("view_submission", workspace, user) | {
            "view": self._views.show(view),
            "response_urls": [],
        }
        answer = await self._outbound.interact(payload)
        if answer.accepted:
            self._follow(view, _response_action(answer))
        return answer

    async def close_view(self, workspace: Workspace, user: User, view_id: str) -> None:
        """Close a modal; the app learns of it if it asked to.

        Raises:
            NotPossible: There is no such modal.
        """
        view = self._view(workspace, user, view_id)
        self._views.close(view)
        if view.content.get("notify_on_close"):
            payload = self._payload("view_closed", workspace, user)
            shown = {"view": self._views.show(view), "is_cleared": False}
            await self._outbound.interact(payload | shown)

    def _view(self, workspace: Workspace, user: User, view_id: str) -> View:
        view = self._views.find(workspace.id, user.id, view_id)
        if view is None:
            raise NotPossible("view_not_found")
        return view

    def _follow(self, view: View, response: JSON) -> None:
        """Do what the app answered to a submission; the sandbox keeps one modal, no stack."""
        match response.get("response_action"):
            case "errors":
                return
            case "update" | "push":
                try:
                    self._views.update(view.team, view.id, response.get("view"), None)
                except SlackError as error:
                    raise NotPossible(error.code) from None
            case _:
                self._views.close(view)

    # Commanding.

    async def command(
        self, workspace: Workspace, user: User, channel_id: str, command: str, text: str
    ) -> Answer:
        """Run a slash command; what the app answers appears in the channel.

        Raises:
            NotPossible: There is no such command, or not here.
        """
        channel = workspace.channels.get(channel_id)
        if channel is None or user.id not in channel.members:
            raise NotPossible("not_in_channel")
        token = self._world.bot_token(workspace.id)
        if command not in self._app.slash_commands or not token or "commands" not in token.scopes:
            raise NotPossible("unknown_command")
        source = Message(self._world.next_ts(), channel.id, user.id, "")
        answer = await self._outbound.command(
            {
                "token": self._world.verification_token,
                "team_id": workspace.id,
                "team_domain": workspace.domain,
                "channel_id": channel.id,
                "channel_name": "directmessage" if channel.is_im else channel.name,
                "user_id": user.id,
                "user_name": user.name,
                "command": command,
                "text": text,
                "api_app_id": self._app.id,
                "is_enterprise_install": "false",
                "response_url": self._answers.issue_url("commands", workspace, user, source),
                "trigger_id": self._views.issue_trigger(workspace.id, user.id),
            }
        )
        self._answers.show_command_answer(workspace, user, channel_id, command, answer)
        return answer


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
