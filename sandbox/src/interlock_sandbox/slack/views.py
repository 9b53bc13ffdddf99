"""Modals: a trigger opens one, an app may replace it, a person submits or closes it."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.blocks import InvalidBlocks, check_view_blocks
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import JSON, World

# Slack takes a trigger for three seconds, and once.
TRIGGER_LIFE_S = 3
MAX_VIEW_BYTES = 250_000
MAX_TITLE = 24
MAX_PRIVATE_METADATA = 3000
MAX_CALLBACK_ID = 255
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass
class Trigger:
    """The right to open one modal for the person who just did something."""

    team: str
    user: str
    issued_at: float
    used: bool = False


@dataclass
class View:
    """A modal as one person sees it.

    Attributes:
        content: What the app sent, checked.
        values: What was filled in so far, by block and action.
        hash: Changes with every update of the content.
    """

    id: str
    team: str
    user: str
    content: JSON
    values: JSON = field(default_factory=dict)
    hash: str = ""


class Views:
    """All open modals. They do not outlive the process."""

    def __init__(self, app: SlackApp, world: World) -> None:
        self._app = app
        self._world = world
        self._triggers: dict[str, Trigger] = {}
        self._views: dict[str, View] = {}

    def issue_trigger(self, team: str, user: str) -> str:
        """Return a trigger id for what a person did now."""
        numbers = f"{secrets.randbelow(10**13)}.{secrets.randbelow(10**12)}"
        trigger_id = f"{numbers}.{secrets.token_hex(16)}"
        self._triggers[trigger_id] = Trigger(team, user, self._world.now())
        return trigger_id

    def open(self, team: str, trigger_id: str, content: Any) -> View:
        """Show a modal to the person of a trigger.

        Raises:
            SlackError: The trigger is unknown, old or spent, or the content is wrong.
        """
        trigger = self._triggers.get(trigger_id)
        if trigger is None or trigger.team != team:
            raise SlackError("invalid_trigger_id")
        if trigger.used:
            raise SlackError("exchanged_trigger_id")
        if self._world.now() >= trigger.issued_at + TRIGGER_LIFE_S:
            raise SlackError("expired_trigger_id")
        checked = _check_view(content)
        trigger.used = True
        view_id = "V" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))
        return self._set(View(view_id, team, trigger.user, checked), checked)

    def update(self, team: str, view_id: str, content: Any, expected: str | None) -> View:
        """Replace the content of an open modal; `expected` is the hash it must still have.

        Raises:
            SlackError: There is no such modal, it changed, or the content is wrong.
        """
        view = self._views.get(view_id)
        if view is None or view.team != team:
            raise SlackError("not_found")
        if expected not in {None, view.hash}:
            raise SlackError("hash_conflict")
        return self._set(view, _check_view(content))

    def find(self, team: str, user: str, view_id: str) -> View | None:
        """Find a modal that this person has open."""
        view = self._views.get(view_id)
        return view if view and (view.team, view.user) == (team, user) else None

    def list_open(self, team: str, user: str) -> list[JSON]:
        """List what this person has open."""
        mine = [view for view in self._views.values() if (view.team, view.user) == (team, user)]
        return [self.show(view) for view in mine]

    def close(self, view: View) -> None:
        """Take a modal away."""
        self._views.pop(view.id, None)
        self._world.feed.publish(view.team, {"type": "view_closed", "id": view.id}, [view.user])

    def show(self, view: View) -> JSON:
        """Return a modal as Slack shows it to the app."""
        workspace = self._world.workspaces[view.team]
        content = view.content
        return {
            "id": view.id,
            "team_id": view.team,
            "type": "modal",
            "title": content["title"],
            "submit": content.get("submit"),
            "close": content.get("close"),
            "blocks": content["blocks"],
            "private_metadata": content.get("private_metadata", ""),
            "callback_id": content.get("callback_id", ""),
            "external_id": content.get("external_id", ""),
            "clear_on_close": content.get("clear_on_close", False),
            "notify_on_close": content.get("notify_on_close", False),
            "state": {"values": view.values},
            "hash": view.hash,
            "previous_view_id": None,
            "root_view_id": view.id,
            "app_id": self._app.id,
            "app_installed_team_id": view.team,
            "bot_id": workspace.installation.bot_id if workspace.installation else None,
        }

    def _set(self, view: View, content: JSON) -> View:
        view.content = content
        view.hash = f"{int(self._world.now())}.{secrets.token_hex(4)}"
        # Slack forgets what was filled in where the new content has other blocks.
        kept = {block["block_id"] for block in content["blocks"]}
        view.values = {block: value for block, value in view.values.items() if block in kept}
        self._views[view.id] = view
        event = {"type": "view", "view": self.show(view)}
        self._world.feed.publish(view.team, event, [view.user])
        return view


def _check_view(content: Any) -> JSON:
    if not isinstance(content, dict) or content.get("type") != "modal":
        raise _invalid("must be a modal", "/view/type")
    if len(json.dumps(content)) > MAX_VIEW_BYTES:
        raise SlackError("view_too_large")
    _check_title(content.get("title"), "/view/title")
    for name in ("submit", "close"):
        if content.get(name) is not None:
            _check_title(content[name], f"/view/{name}")
    for name, longest in (
        ("private_metadata", MAX_PRIVATE_METADATA),
        ("callback_id", MAX_CALLBACK_ID),
    ):
        value = content.get(name, "")
        if not isinstance(value, str) or len(value) > longest:
            raise _invalid(f"must be a text of at most {longest} characters", f"/view/{name}")
    try:
        blocks = check_view_blocks(content.get("blocks"))
    except InvalidBlocks as problem:
        raise _invalid(str(problem), "/view") from None
    if any(block["type"] == "input" for block in blocks) and content.get("submit") is None:
        raise _invalid("a view with inputs needs a submit button", "/view/submit")
    return {**content, "blocks": blocks}


def _check_title(title: Any, where: str) -> None:
    match title:
        case {"type": "plain_text", "text": str(text)} if 0 < len(text) <= MAX_TITLE:
            return
        case _:
            raise _invalid(f"must be plain text of 1 to {MAX_TITLE} characters", where)


def _invalid(problem: str, where: str) -> SlackError:
    messages = [f"[ERROR] {problem} [json-pointer:{where}]"]
    return SlackError("invalid_arguments", response_metadata={"messages": messages})
