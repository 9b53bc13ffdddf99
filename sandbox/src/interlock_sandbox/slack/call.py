"""What a Web API call is, and what all methods check the same way."""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.events import Events
from interlock_sandbox.slack.limits import Tier
from interlock_sandbox.slack.model import JSON, Channel, Home, Installation, User, Workspace
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.switches import Switches
from interlock_sandbox.slack.tokens import APP, BOT, USER, Token
from interlock_sandbox.slack.views import Views
from interlock_sandbox.slack.world import World

MAX_PAGE = 1000
BOT_OR_USER = frozenset({BOT, USER})
BOT_ONLY = frozenset({BOT})
APP_ONLY = frozenset({APP})
ANY_TOKEN = frozenset({BOT, USER, APP})

# Apps may pass it to every method, as Bolt does; only tokens of an Enterprise need it.
_EVERYWHERE = frozenset({"team_id"})
# How Slack calls a structured argument that is no JSON.
_FORMAT_ERRORS = {
    "attachments": "invalid_attachments",
    "blocks": "invalid_blocks_format",
    "chunks": "invalid_chunks",
    "metadata": "invalid_metadata_format",
}


@dataclass(frozen=True)
class Slack:
    """What methods work with.

    Attributes:
        base_url: Where this Slack is reached, without a slash at the end.
    """

    app: SlackApp
    world: World
    events: Events
    views: Views
    switches: Switches
    stream_life_s: float
    base_url: str


@dataclass(frozen=True)
class Call:
    """One authenticated call."""

    world: World
    token: Token
    args: JSON

    @property
    def home(self) -> Home:
        """The Workspace or Enterprise that the token belongs to."""
        return self.world.home(self.token.holder)

    @property
    def installation(self) -> Installation:
        """The installation that the token belongs to."""
        found = self.home.installation
        if found is None:
            raise SlackError("account_inactive")
        return found

    @property
    def is_org_wide(self) -> bool:
        """Whether the token is of a whole Enterprise."""
        return self.token.holder in self.world.enterprises

    @property
    def reach(self) -> list[Workspace]:
        """The workspaces in which the token works."""
        return self.world.reach(self.token.holder)

    @property
    def workspace(self) -> Workspace:
        """The workspace that the call is about.

        A token of a whole Enterprise has to name it, with `team_id`; any other
        token names its own, whatever the argument says.
        """
        if not self.is_org_wide:
            return self.reach[0]
        wanted = self.text("team_id")
        if not wanted:
            raise SlackError("missing_argument")
        found = next((each for each in self.reach if each.id == wanted), None)
        if found is None:
            raise SlackError("team_access_not_granted")
        return found

    def team_in(self, channel: Channel) -> str:
        """Return the workspace through which the caller reaches a conversation."""
        return next(each.id for each in self.reach if each.id in channel.teams)

    def text(self, name: str, default: str = "") -> str:
        """Return a text argument."""
        value = self.args.get(name, default)
        if not isinstance(value, str):
            raise invalid_arguments(f"must be a string [json-pointer:/{name}]")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean argument, which forms spell as text."""
        return str(self.args.get(name)).lower() in {"true", "1"}

    def integer(self, name: str, default: int) -> int:
        """Return a whole number, which forms spell as text; -1 when it is none."""
        try:
            return int(self.args.get(name, default))
        except (TypeError, ValueError):
            return -1

    def document(self, name: str) -> Any:
        """Return a structured argument, which forms spell as JSON text."""
        value = self.args.get(name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            if name in _FORMAT_ERRORS:
                raise SlackError(_FORMAT_ERRORS[name]) from None
            raise invalid_arguments(f"must be JSON [json-pointer:/{name}]") from None


@dataclass(frozen=True)
class Method:
    """How a method is called.

    Attributes:
        scopes: Alternatives, of which a token needs one.
        user_scopes: The same for a person's token, where they differ.
        reads_json: Whether it takes JSON bodies besides forms.
        kinds: The kinds of token that it takes.
        tier: How often it may be called.
    """

    run: Callable[[Slack, Call], JSON]
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    user_scopes: frozenset[str] | None = None
    reads_json: bool = True
    kinds: frozenset[str] = BOT_OR_USER
    tier: Tier = Tier.SPECIAL

    def require(self, token: Token, arguments: JSON) -> None:
        """Refuse a token without the scope, and arguments of other names than these."""
        if token.kind not in self.kinds:
            raise SlackError("not_allowed_token_type")
        needed = self.scopes
        if token.kind == USER and self.user_scopes is not None:
            needed = self.user_scopes
        if needed and not needed & set(token.scopes):
            raise missing_scope(",".join(sorted(needed)), token)
        given = {name for name, value in arguments.items() if value is not None}
        missing = [f"missing required field: {name}" for name in sorted(self.required - given)]
        unknown = sorted(given - self.required - self.optional - _EVERYWHERE)
        problems = missing + [f"no such argument: {name}" for name in unknown]
        if problems:
            raise invalid_arguments(*problems)


def invalid_arguments(*problems: str) -> SlackError:
    """Return the refusal of arguments that are wrong, with what is wrong with them."""
    messages = [f"[ERROR] {problem}" for problem in problems]
    return SlackError("invalid_arguments", response_metadata={"messages": messages})


def missing_scope(needed: str, token: Token) -> SlackError:
    """Return the refusal of a token that lacks a scope."""
    return SlackError("missing_scope", needed=needed, provided=",".join(token.scopes))


def get_channel(call: Call, name: str = "channel") -> Channel:
    """Return the conversation that an argument names, if the caller may know of it."""
    channel = call.world.channels.get(call.text(name))
    reached = {each.id for each in call.reach}
    # What is closed to the caller looks as if it were not there.
    if channel is None or not reached & set(channel.teams):
        raise SlackError("channel_not_found")
    if not channel.is_open_to_all and call.token.user not in channel.members:
        raise SlackError("channel_not_found")
    return channel


def get_user(call: Call, name: str) -> User:
    """Return the user that an argument names: a member, or one met in a shared channel."""
    wanted = call.text(name)
    found = (call.world.find_user(each.id, wanted) for each in call.reach)
    user = next((each for each in found if each), None) or call.home.users.get(wanted)
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
        raise missing_scope(scope, call.token)


def require_read_scope(call: Call, channel: Channel, what: str) -> None:
    """Refuse a token without the scope that reads conversations of this type."""
    require_scope(call, f"{channel.scope_family}:{what}")


def paged(
    call: Call, rows: list[Any], default: int, longest: int = MAX_PAGE
) -> tuple[list[Any], str]:
    """Return the page that a call asks for, and the cursor of the next one."""
    limit = call.integer("limit", default)
    if not 1 <= limit <= longest:
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
