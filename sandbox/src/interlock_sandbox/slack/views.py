"""Modals and Home tabs: a trigger opens a modal, an app may change it or push another on top."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.blocks import InvalidBlocks, check_view_blocks
from interlock_sandbox.slack.model import JSON, Receiver
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import World, new_id

# Slack takes a trigger for three seconds, and once.
TRIGGER_LIFE_S = 3
# Slack: "currently the limit is 3" views in one stack.
MAX_STACK = 3
MAX_VIEW_BYTES = 250_000
MAX_TITLE = 24
MAX_PRIVATE_METADATA = 3000
MAX_CALLBACK_ID = 255
MODAL, HOME = "modal", "home"


@dataclass
class Trigger:
    """The right to open one modal for the person who just did something.

    Attributes:
        holder: Whose installation may use it.
        team: The person's workspace.
        view: The modal in which they did it, if any.
    """

    holder: str
    team: str
    user: str
    issued_at: float
    view: str | None = None
    used: bool = False


@dataclass
class View:
    """A modal, or a Home tab, as one person sees it.

    Attributes:
        holder: Whose installation shows it.
        team: The person's workspace.
        content: What the app sent, checked.
        values: What was filled in so far, by block and action.
        hash: Changes with every update of the content.
        below: The modal that shows again when this one closes.
    """

    id: str
    holder: str
    team: str
    user: str
    content: JSON
    root: str
    below: str | None = None
    values: JSON = field(default_factory=dict)
    hash: str = ""

    @property
    def is_modal(self) -> bool:
        """Whether it is a modal; else it is a Home tab."""
        return bool(self.content["type"] == MODAL)


class Views:
    """All open modals and all Home tabs. They do not outlive the process."""

    def __init__(self, app: SlackApp, world: World) -> None:
        self._app = app
        self._world = world
        self._triggers: dict[str, Trigger] = {}
        self._views: dict[str, View] = {}

    def issue_trigger(
        self, receiver: Receiver, team: str, user: str, view: str | None = None
    ) -> str:
        """Return a trigger id for what a person did now."""
        numbers = f"{secrets.randbelow(10**13)}.{secrets.randbelow(10**12)}"
        trigger_id = f"{numbers}.{secrets.token_hex(16)}"
        self._triggers[trigger_id] = Trigger(receiver.holder, team, user, self._world.now(), view)
        return trigger_id

    # What apps do.

    def open(self, holder: str, trigger_id: str, content: Any) -> View:
        """Show a modal to the person of a trigger.

        Raises:
            SlackError: The trigger is unknown, old or spent, or the content is wrong.
        """
        trigger = self._find_trigger(holder, trigger_id)
        checked = self._check(holder, content, MODAL)
        trigger.used = True
        return self._set(self._new(holder, trigger.team, trigger.user, checked), checked)

    def push(self, holder: str, trigger_id: str, content: Any) -> View:
        """Show a modal on top of the one that a trigger came from.

        Raises:
            SlackError: The trigger is unknown, old, spent or of no modal, there are
                too many already, or the content is wrong.
        """
        trigger = self._find_trigger(holder, trigger_id)
        below = self._views.get(trigger.view or "")
        if below is None:
            raise SlackError("not_found")
        pushed = self.put_above(below, content)
        trigger.used = True
        return pushed

    def put_above(self, below: View, content: Any) -> View:
        """Show a modal on top of another.

        Raises:
            SlackError: There are too many already, or the content is wrong.
        """
        checked = self._check(below.holder, content, MODAL)
        if len(self._stack(below.root)) >= MAX_STACK:
            raise SlackError("push_limit_reached")
        view = self._new(below.holder, below.team, below.user, checked)
        view.root, view.below = below.root, below.id
        return self._set(view, checked)

    def update(
        self, holder: str, content: Any, *, view_id: str, external_id: str, expected: str | None
    ) -> View:
        """Replace a view's content; `expected` is the hash it must still have.

        Raises:
            SlackError: There is no such view, it changed, or the content is wrong.
        """
        view = self._views.get(view_id) if view_id else self._find_external(holder, external_id)
        if view is None or view.holder != holder:
            raise SlackError("not_found")
        if expected not in {None, view.hash}:
            raise SlackError("hash_conflict")
        return self._set(view, self._check(holder, content, view.content["type"], view))

    def publish(
        self, holder: str, team: str, user: str, content: Any, expected: str | None
    ) -> View:
        """Show a person's Home tab of the app.

        Raises:
            SlackError: It changed since the hash `expected`, or the content is wrong.
        """
        old = self.find_home(holder, user)
        if expected is not None and (old is None or old.hash != expected):
            raise SlackError("hash_conflict")
        checked = self._check(holder, content, HOME, old)
        return self._set(old or self._new(holder, team, user, checked), checked)

    def show(self, view: View) -> JSON:
        """Return a view as Slack shows it to the app."""
        content, installation = view.content, self._world.home(view.holder).installation
        return {
            "id": view.id,
            "team_id": view.team,
            "type": content["type"],
            "title": content.get("title"),
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
            "previous_view_id": view.below,
            "root_view_id": view.root,
            "app_id": self._app.id,
            "app_installed_team_id": view.holder,
            "bot_id": installation.bot_id if installation else None,
        }

    # What people do.

    def find(self, team: str, user: str, view_id: str) -> View | None:
        """Find a view that this person sees."""
        view = self._views.get(view_id)
        return view if view and (view.team, view.user) == (team, user) else None

    def find_home(self, holder: str, user: str) -> View | None:
        """Find a person's Home tab of the app."""
        mine = (e for e in self._views.values() if (e.holder, e.user) == (holder, user))
        return next((each for each in mine if not each.is_modal), None)

    def list_open(self, team: str, user: str) -> list[JSON]:
        """List the modals that this person has open, the topmost last."""
        mine = [view for view in self._views.values() if (view.team, view.user) == (team, user)]
        return [self.show(view) for view in mine if view.is_modal]

    def close(self, view: View) -> None:
        """Take a modal away; the one below it shows again."""
        self._views.pop(view.id, None)
        self._world.feed.publish(view.team, {"type": "view_closed", "id": view.id}, [view.user])
        below = self._views.get(view.below or "")
        if below:
            self._publish(below)

    def close_all(self, view: View) -> list[View]:
        """Take a modal and everything in its stack away; return what was taken."""
        taken = self._stack(view.root)
        for each in reversed(taken):
            self._views.pop(each.id)
            event = {"type": "view_closed", "id": each.id}
            self._world.feed.publish(each.team, event, [each.user])
        return taken

    def _find_trigger(self, holder: str, trigger_id: str) -> Trigger:
        trigger = self._triggers.get(trigger_id)
        if trigger is None or trigger.holder != holder:
            raise SlackError("invalid_trigger_id")
        if trigger.used:
            raise SlackError("exchanged_trigger_id")
        if self._world.now() >= trigger.issued_at + TRIGGER_LIFE_S:
            raise SlackError("expired_trigger_id")
        return trigger

    def _find_external(self, holder: str, external_id: str) -> View | None:
        named = (e for e in self._views.values() if e.content.get("external_id") == external_id)
        return next((each for each in named if each.holder == holder), None)

    def _stack(self, root: str) -> list[View]:
        return [each for each in self._views.values() if each.root == root]

    def _new(self, holder: str, team: str, user: str, content: JSON) -> View:
        view_id = new_id("V")
        return View(view_id, holder, team, user, content, root=view_id)

    def _set(self, view: View, content: JSON) -> View:
        view.content = content
        view.hash = f"{int(self._world.now())}.{secrets.token_hex(4)}"
        # Slack forgets what was filled in where the new content has other blocks.
        kept = {block["block_id"] for block in content["blocks"]}
        view.values = {block: value for block, value in view.values.items() if block in kept}
        self._views[view.id] = view
        self._publish(view)
        return view

    def _publish(self, view: View) -> None:
        if view.is_modal:
            event = {"type": "view", "view": self.show(view)}
            self._world.feed.publish(view.team, event, [view.user])

    def _check(self, holder: str, content: Any, kind: str, old: View | None = None) -> JSON:
        """Return a view's content as Slack keeps it."""
        if not isinstance(content, dict) or content.get("type") != kind:
            raise _invalid(f"must be a {kind}", "/view/type")
        if len(json.dumps(content)) > MAX_VIEW_BYTES:
            raise SlackError("view_too_large")
        if kind == MODAL:
            _check_title(content.get("title"), "/view/title")
        for name in ("submit", "close"):
            if content.get(name) is not None:
                _check_title(content[name], f"/view/{name}")
        _check_texts(content)
        external = content.get("external_id") or ""
        taken = self._find_external(holder, external) if external else None
        if taken and taken is not old:
            raise SlackError("duplicate_external_id")
        try:
            blocks = check_view_blocks(content.get("blocks"))
        except InvalidBlocks as problem:
            raise _invalid(str(problem), "/view") from None
        needs_submit = kind == MODAL and any(block["type"] == "input" for block in blocks)
        if needs_submit and content.get("submit") is None:
            raise _invalid("a view with inputs needs a submit button", "/view/submit")
        return {**content, "blocks": blocks}


def _check_texts(content: JSON) -> None:
    for name, longest in (
        ("private_metadata", MAX_PRIVATE_METADATA),
        ("callback_id", MAX_CALLBACK_ID),
        ("external_id", MAX_CALLBACK_ID),
    ):
        value = content.get(name, "")
        if not isinstance(value, str) or len(value) > longest:
            raise _invalid(f"must be a text of at most {longest} characters", f"/view/{name}")


def _check_title(title: Any, where: str) -> None:
    match title:
        case {"type": "plain_text", "text": str(text)} if 0 < len(text) <= MAX_TITLE:
            return
        case _:
            raise _invalid(f"must be plain text of 1 to {MAX_TITLE} characters", where)


def _invalid(problem: str, where: str) -> SlackError:
    messages = [f"[ERROR] {problem} [json-pointer:{where}]"]
    return SlackError("invalid_arguments", response_metadata={"messages": messages})
