"""What a Web API call is, and what all methods check the same way."""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.outbound import Outbound
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.views import Views
from interlock_sandbox.slack.world import (
    JSON,
    Channel,
    Message,
    Token,
    User,
    Workspace,
    World,
    render,
)

MAX_PAGE = 1000


@dataclass(frozen=True)
class Slack:
    """What methods work with."""

    app: SlackApp
    world: World
    outbound: Outbound
    views: Views
    stream_life_s: float


@dataclass(frozen=True)
class Call:
    """One authenticated call."""

    workspace: Workspace
    token: Token
    args: JSON

    @property
    def team(self) -> str:
        """The id of the token's workspace."""
        return self.workspace.id

    def text(self, name: str, default: str = "") -> str:
        """Return a text argument."""
        value = self.args.get(name, default)
        if not isinstance(value, str):
            raise invalid_arguments(f"must be a string [json-pointer:/{name}]")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean argument, which forms spell as text."""
        return str(self.args.get(name)).lower() in {"true", "1"}

    def document(self, name: str) -> Any:
        """Return a structured argument, which forms spell as JSON text."""
        value = self.args.get(name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise SlackError(f"invalid_{name}_format") from None


@dataclass(frozen=True)
class Method:
    """How a method is called; `scopes` holds alternatives."""

    run: Callable[[Slack, Call], JSON]
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    reads_json: bool = True
    bot_only: bool = False

    def require(self, token: Token, arguments: JSON) -> None:
        """Refuse a token without the scope, and arguments of other names than these."""
        if self.bot_only and token.kind != "bot":
            raise SlackError("not_allowed_token_type")
        if self.scopes and not self.scopes & set(token.scopes):
            raise SlackError(
                "missing_scope",
                needed=",".join(sorted(self.scopes)),
                provided=",".join(token.scopes),
            )
        given = {name for name, value in arguments.items() if value is not None}
        missing = [f"missing required field: {name}" for name in sorted(self.required - given)]
        unknown = sorted(given - self.required - self.optional)
        problems = missing + [f"no such argument: {name}" for name in unknown]
        if problems:
            raise invalid_arguments(*problems)


def invalid_arguments(*problems: str) -> SlackError:
    """Return the refusal of arguments that are wrong, with what is wrong with them."""
    messages = [f"[ERROR] {problem}" for problem in problems]
    return SlackError("invalid_arguments", response_metadata={"messages": messages})


def get_channel(call: Call, name: str = "channel") -> Channel:
    """Return the conversation that an argument names, if the caller may know of it."""
    channel = call.workspace.channels.get(call.text(name))
    # A direct message of other people looks as if it were not there.
    if channel is None or (channel.is_im and call.token.user not in channel.members):
        raise SlackError("channel_not_found")
    return channel


def get_user(call: Call, name: str) -> User:
    """Return the user that an argument names."""
    user = call.workspace.users.get(call.text(name))
    if user is None:
        raise SlackError("user_not_found")
    return user


def require_member(call: Call, channel: Channel) -> None:
    """Refuse a caller who is not in the channel."""
    if call.token.user not in channel.members:
        raise SlackError("not_in_channel")


def require_scope(call: Call, scope: str) -> None:
    """Refuse a token without the scope."""
    if scope not in call.token.scopes:
        raise SlackError("missing_scope", needed=scope, provided=",".join(call.token.scopes))


def require_read_scope(call: Call, channel: Channel, what: str) -> None:
    """Refuse a token without the scope that reads conversations of this type."""
    require_scope(call, f"{'im' if channel.is_im else 'channels'}:{what}")


def show_message(message: Message, team: str) -> JSON:
    """Return a message as the API shows it, without what only the playground may know."""
    shown = render(message)
    shown.pop("sandbox", None)
    shown.pop("channel")
    return shown | {"team": team}


def paged(call: Call, rows: list[Any], default: int) -> tuple[list[Any], str]:
    """Return the page that a call asks for, and the cursor of the next one."""
    try:
        limit = int(call.args.get("limit", default))
    except (TypeError, ValueError):
        limit = 0
    if not 1 <= limit <= MAX_PAGE:
        raise SlackError("invalid_limit")
    start = _read_cursor(call.text("cursor"))
    after = start + limit
    cursor = base64.b64encode(f"next:{after}".encode()).decode() if after < len(rows) else ""
    return rows[start:after], cursor


def _read_cursor(cursor: str) -> int:
    if not cursor:
        return 0
    try:
        word, _, number = base64.b64decode(cursor, validate=True).decode().partition(":")
        if word == "next" and number.isdigit():
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise SlackError("invalid_cursor")
