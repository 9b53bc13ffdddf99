"""What Slack sent: verified as raw bytes, then read strictly.

Reading answers one of three things: a challenge to repeat, a reason to acknowledge
and forget, or a `SlackRequest` that names the installation it is for.

The rule of the verified team: the installation is the one that *received* the
request, never the sender's. For events that is `authorizations[0]`, for
interactions and commands the payload's own fields. An org-wide install is keyed
by its Enterprise alone, whatever team the request names; there is no lookup by
team where the request says that the whole Enterprise installed the app.

Source: docs.slack.dev/authentication/verifying-requests-from-slack,
docs.slack.dev/apis/events-api; the order of fields is Bolt for Python's
(`slack_bolt/request/internals.py`).
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlencode

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.domain.strict import MalformedDocument, parse_form, parse_json_object
from interlock_tokens.grants import Workspace

# Slack: "if the request timestamp is more than five minutes from local time, ignore it".
SIGNATURE_WINDOW = timedelta(seconds=300)
# Slack's challenges are some 40 letters and digits. Anything larger would be an echo service.
MAX_CHALLENGE_CHARS = 256

# The event type of a slash command that can only mean: link me.
LINK_COMMAND = "link_command"

Macs = Callable[[bytes], Sequence[bytes]]
"""HMAC-SHA256 of a message under each signing secret now in force, newest first."""

_TIMESTAMP = re.compile(r"[0-9]{10,11}", re.ASCII)
_SIGNATURE = re.compile(r"v0=[0-9a-f]{64}", re.ASCII)
_CHALLENGE = re.compile(rf"[\x21-\x7e]{{1,{MAX_CHALLENGE_CHARS}}}", re.ASCII)

_TEAM = re.compile(r"T[A-Z0-9]{2,20}", re.ASCII)
_ENTERPRISE = re.compile(r"E[A-Z0-9]{2,20}", re.ASCII)
_TEAM_OR_ENTERPRISE = re.compile(r"[TE][A-Z0-9]{2,20}", re.ASCII)
_USER = re.compile(r"[UW][A-Z0-9]{2,20}", re.ASCII)
_CHANNEL = re.compile(r"[CDG][A-Z0-9]{2,20}", re.ASCII)
_APP = re.compile(r"A[A-Z0-9]{2,20}", re.ASCII)
_EVENT_ID = re.compile(r"Ev[A-Za-z0-9]{2,40}", re.ASCII)
_TS = re.compile(r"[0-9]{1,12}\.[0-9]{1,9}", re.ASCII)
_WORD = re.compile(r"[a-z][a-z0-9_.]{0,63}", re.ASCII)
_COMMAND = re.compile(r"/[^\s\x00-\x1f/]{1,32}")
_MENTION = re.compile(r"<@([UW][A-Z0-9]{2,20})(?:\|[^<>]*)?>", re.ASCII)

# An epoch second beyond the year 2286 is milliseconds, or a mistake.
_MAX_EPOCH_SECOND = 10**10

# Slack's names of what proves or allows something to whoever has it.
_VERIFICATION_TOKEN = "token"  # noqa: S105 - A name.
_WORKFLOW_TOKEN = "bot_access_token"  # noqa: S105 - A name.

_V = TypeVar("_V")

SUBSCRIPTIONS = ("app_mention", "app_uninstalled", "message.im", "tokens_revoked")
"""The events that are taken, as Slack's app settings name them."""

_UNINSTALLING = frozenset({"app_uninstalled", "tokens_revoked"})
_CLICKS = frozenset({"block_actions", "shortcut", "message_action", "view_submission"})
# The one subtype of a message that is a person's new words: a file with a comment.
_SPOKEN_SUBTYPES = frozenset({"", "file_share"})
# Words of a slash command that end or undo something and must not wait behind it.
_CONTROL_WORDS = frozenset({"stop", "cancel", "unlink", "logout"})


class InvalidSlackSignature(ServiceError):
    """The request does not prove that it comes from Slack."""

    kind = Kind.UNAUTHENTICATED
    reason = "INVALID_SLACK_SIGNATURE"


class MalformedSlackRequest(ServiceError):
    """Slack signed this, but it is not a request as Slack documents it."""

    kind = Kind.INVALID
    reason = "MALFORMED_SLACK_REQUEST"


class ForeignApp(ServiceError):
    """The request is for another Slack app."""

    kind = Kind.FORBIDDEN
    reason = "FOREIGN_APP"


class RequestKind(StrEnum):
    """How Slack's requests are made: each kind has a form of its own."""

    EVENT = "event"
    INTERACTION = "interaction"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Challenge:
    """Slack asks whether the URL is ours; repeat the text."""

    text: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to do; acknowledge and forget.

    Attributes:
        why: A stable word for the metric, such as `own_message`.
    """

    why: str


@dataclass(frozen=True, slots=True)
class SlackRequest:
    """A verified request that the worker has to act upon.

    Attributes:
        kind: Which URL it came to.
        event_key: `event_id`; else the SHA-256 of timestamp and body.
        second_key: The same for two event ids of one message; "" where nothing is the same.
        lane: Requests of one lane are acted upon in order; one Slack thread is one lane.
        is_control: It ends or undoes something, so it must not wait behind it.
        workspace: The installation that received it.
        slack_user_id: Who acted; "" for nobody.
        slack_user_team_id: That person's own team or Enterprise; "" when nobody acted.
        is_stranger: Whether that person belongs to another organization.
        event_type: Slack's type; `command` or `link_command` for a slash command.
        event_at: When it happened, in whole seconds.
    """

    kind: RequestKind
    event_key: str
    second_key: str
    lane: str
    is_control: bool
    workspace: Workspace
    slack_user_id: str
    slack_user_team_id: str
    is_stranger: bool
    event_type: str
    event_at: datetime


@dataclass(frozen=True, slots=True)
class SignedBody:
    """Raw bytes that Slack signed.

    Attributes:
        body: The bytes as they came.
        signed_at: The instant that the signature covers.
    """

    body: bytes
    signed_at: datetime

    @property
    def key(self) -> str:
        """Hash what was signed; a replay has the same."""
        return hashlib.sha256(_signed_bytes(_epoch_text(self.signed_at), self.body)).hexdigest()


def verify(
    *, timestamps: Sequence[str], signatures: Sequence[str], body: bytes, macs: Macs, now: datetime
) -> SignedBody:
    """Prove that Slack signed these bytes within the last five minutes.

    Every key is compared, in constant time. Nothing of the body is parsed.

    Args:
        timestamps: Every `X-Slack-Request-Timestamp` header, as sent.
        signatures: Every `X-Slack-Signature` header, as sent.
        body: The raw body.
        macs: The MACs of a message under the current and the previous secret.
        now: The time to measure the timestamp against.

    Raises:
        InvalidSlackSignature: A header is absent, repeated or not of Slack's exact
            form; the timestamp is more than 300 s off; or no secret made the signature.
    """
    if len(timestamps) != 1 or len(signatures) != 1:
        raise InvalidSlackSignature
    timestamp, signature = timestamps[0], signatures[0]
    if not _TIMESTAMP.fullmatch(timestamp) or not _SIGNATURE.fullmatch(signature):
        raise InvalidSlackSignature
    if abs(int(now.timestamp()) - int(timestamp)) > SIGNATURE_WINDOW.total_seconds():
        raise InvalidSlackSignature
    given = bytes.fromhex(signature.removeprefix("v0="))
    matches = [
        hmac.compare_digest(given, mac) for mac in macs(b"v0:" + _signed_bytes(timestamp, body))
    ]
    if not any(matches):
        raise InvalidSlackSignature
    return SignedBody(body, datetime.fromtimestamp(int(timestamp), UTC))


def read_event(signed: SignedBody, *, app_id: str) -> Challenge | Ignored | SlackRequest:
    """Read a delivery of the Events API.

    Raises:
        MalformedSlackRequest: It is not JSON as Slack documents it.
        ForeignApp: It is for another app.
    """
    envelope = _object(signed.body)
    match envelope.word("type"):
        case "url_verification":
            return _read_challenge(envelope)
        case "event_callback":
            _require_app(envelope, app_id)
            return _read_callback(envelope, signed, app_id)
        case "app_rate_limited":
            return Ignored("app_rate_limited")
        case _:
            return Ignored("unknown_envelope")


def read_interaction(signed: SignedBody, *, app_id: str) -> Ignored | SlackRequest:
    """Read a click, shortcut or modal, sent as a form with one `payload` field.

    Raises:
        MalformedSlackRequest: It is not a form with JSON as Slack documents it.
        ForeignApp: It is for another app.
    """
    form = _form(signed.body)
    if "payload" not in form:
        raise MalformedSlackRequest("the form has no payload")
    payload = _object(form["payload"].encode())
    _require_app(payload, app_id)
    event_type = payload.word("type")
    if event_type not in _CLICKS:
        # Closing a modal needs no answer; external selects are not offered.
        return Ignored("unanswered_interaction")
    workspace, home = _interaction_workspace(payload, app_id)
    user = payload.required_child("user")
    user_id = user.required_id("id", _USER)
    user_team = user.id("team_id", _TEAM_OR_ENTERPRISE) or home
    return SlackRequest(
        kind=RequestKind.INTERACTION,
        event_key=signed.key,
        second_key="",
        lane=_interaction_lane(payload, workspace, user_id),
        # A click stops, approves, denies, picks or steps through a modal: nothing of it waits.
        is_control=True,
        workspace=workspace,
        slack_user_id=user_id,
        slack_user_team_id=user_team,
        is_stranger=_is_stranger(user_team, {home, workspace.team_id, workspace.enterprise_id}),
        event_type=event_type,
        event_at=signed.signed_at,
    )


def read_command(signed: SignedBody, *, app_id: str) -> Ignored | SlackRequest:
    """Read a slash command, sent as a flat form.

    Raises:
        MalformedSlackRequest: It is not a form as Slack documents it, or names an
            impossible installation.
        ForeignApp: It is for another app.
    """
    fields = _form(signed.body)
    if fields.get("ssl_check") == "1":
        return Ignored("ssl_check")
    # In a form an absent value and an empty one are the same.
    form = _Object({name: value for name, value in fields.items() if value})
    _require_app(form, app_id)
    workspace, home = _command_workspace(form, app_id)
    user_id = form.required_id("user_id", _USER)
    channel = form.required_id("channel_id", _CHANNEL)
    if not _COMMAND.fullmatch(form.text("command")):
        raise MalformedSlackRequest("command is not a slash command")
    words = form.text("text").split(maxsplit=1)
    return SlackRequest(
        kind=RequestKind.COMMAND,
        event_key=signed.key,
        second_key="",
        lane=f"{_key_of(workspace)}:{channel}:{user_id}",
        is_control=bool(words) and words[0].lower() in _CONTROL_WORDS,
        workspace=workspace,
        slack_user_id=user_id,
        slack_user_team_id=home,
        # Slack offers an app's commands to nobody from outside.
        is_stranger=False,
        event_type="command",
        event_at=signed.signed_at,
    )


def read_link_command(signed: SignedBody, *, app_id: str) -> Ignored | SlackRequest:
    """Read a slash command that asks for a link, whatever words follow it.

    Raises:
        MalformedSlackRequest: As `read_command`.
        ForeignApp: It is for another app.
    """
    request = read_command(signed, app_id=app_id)
    if isinstance(request, Ignored):
        return request
    # A link is wanted at once, also by whoever has a run under way.
    return replace(request, event_type=LINK_COMMAND, is_control=True)


def without_tokens(kind: RequestKind, body: bytes) -> bytes:
    """Write a request's body again without the tokens that Slack puts into it.

    That is Slack's verification token, which proves a request to whoever does
    not check signatures, and the token of a workflow's step. Nobody here needs
    either. Everything else means the same as before; a body without such
    tokens stays as it is, byte for byte.

    Args:
        kind: As the body was read.
        body: A body that was read already.

    Raises:
        MalformedSlackRequest: It was not.

    Source: docs.slack.dev/authentication/verifying-requests-from-slack (deprecated
        verification token), docs.slack.dev/reference/events/function_executed.
    """
    if kind is RequestKind.EVENT:
        envelope = _parsed(parse_json_object, body)
        return _json(envelope) if _strip(envelope) else body
    form = _form(body)
    is_changed = form.pop(_VERIFICATION_TOKEN, None) is not None
    if kind is RequestKind.INTERACTION:
        payload = _parsed(parse_json_object, form.get("payload", "").encode())
        if _strip(payload):
            form["payload"] = _json(payload).decode()
            is_changed = True
    return urlencode(form).encode() if is_changed else body


def _strip(envelope: dict[str, Any]) -> bool:
    """Take the tokens out of an envelope and what it carries; tell whether there were any."""
    inside = [each for each in envelope.values() if isinstance(each, dict)]
    found = [envelope.pop(_VERIFICATION_TOKEN, None)]
    found += [each.pop(_WORKFLOW_TOKEN, None) for each in (envelope, *inside)]
    return any(each is not None for each in found)


def _json(document: Mapping[str, Any]) -> bytes:
    # As ASCII: a lone surrogate, which JSON can spell, is no UTF-8.
    return json.dumps(document, separators=(",", ":")).encode()


# Events.


def _read_challenge(envelope: "_Object") -> Challenge:
    text = envelope.text("challenge")
    if not _CHALLENGE.fullmatch(text):
        raise MalformedSlackRequest("the challenge is not 1 to 256 printable characters")
    return Challenge(text)


def _read_callback(envelope: "_Object", signed: SignedBody, app_id: str) -> Ignored | SlackRequest:
    event_id = envelope.required_id("event_id", _EVENT_ID)
    if "team_id" in envelope:
        envelope.required_id("team_id", _TEAM_OR_ENTERPRISE)
    event = envelope.required_child("event")
    event_type = event.word("type")
    receiver = _Receiver.of(envelope, app_id, guess=event_type in _UNINSTALLING)
    if receiver is None:
        return Ignored("unknown_install")
    heard = _Heard("", "", "", "", "") if event_type in _UNINSTALLING else _hear(event, receiver)
    if isinstance(heard, Ignored):
        return heard
    team = _key_of(receiver.workspace)
    return SlackRequest(
        kind=RequestKind.EVENT,
        event_key=event_id,
        second_key=f"{team}:{heard.channel}:{heard.event_ts}:{event_type}" if heard.channel else "",
        lane=f"{team}:{heard.channel}:{heard.thread_ts}" if heard.channel else f"{team}:uninstall",
        is_control=event_type in _UNINSTALLING,
        workspace=receiver.workspace,
        slack_user_id=heard.user_id,
        slack_user_team_id=heard.user_team,
        is_stranger=bool(heard.user_id) and receiver.is_stranger(heard.user_team, envelope),
        event_type=event_type,
        event_at=envelope.instant("event_time") or signed.signed_at,
    )


@dataclass(frozen=True, slots=True)
class _Receiver:
    """The installation that an event was delivered to.

    Attributes:
        home: The team in which it is installed, also of an org-wide install; may be "".
        bot_user_id: The installation's bot user; "" for a user's own authorization.
    """

    workspace: Workspace
    home: str
    bot_user_id: str

    @classmethod
    def of(cls, envelope: "_Object", app_id: str, *, guess: bool) -> "_Receiver | None":
        """Read `authorizations[0]`; None when there is none.

        Where there is none, `guess` takes the envelope's own ids instead. Only for
        uninstall events, whose samples have no authorizations, and which prove
        nothing: the vault asks Slack before it purges.
        """
        authorization = envelope.first("authorizations")
        if authorization is None:
            return cls._guess(envelope, app_id) if guess else None
        team = authorization.id("team_id", _TEAM)
        workspace = _workspace(
            enterprise=authorization.id("enterprise_id", _ENTERPRISE),
            team=team,
            org_wide=authorization.flag("is_enterprise_install"),
            app_id=app_id,
        )
        is_bot = authorization.flag("is_bot")
        bot_user = authorization.id("user_id", _USER) if is_bot else ""
        return cls(workspace, team, bot_user)

    @classmethod
    def _guess(cls, envelope: "_Object", app_id: str) -> "_Receiver":
        team, enterprise = _split(envelope.id("team_id", _TEAM_OR_ENTERPRISE))
        enterprise = envelope.id("enterprise_id", _ENTERPRISE) or enterprise
        workspace = _workspace(enterprise=enterprise, team=team, org_wide=not team, app_id=app_id)
        return cls(workspace, team, "")

    def is_stranger(self, user_team: str, envelope: "_Object") -> bool:
        """Tell whether the person is from outside the installation's organization.

        Inside of a Grid people of every workspace meet in one channel; only a
        channel shared with another organization has strangers. There, a team we
        cannot tell from a stranger's is a stranger's.
        """
        ours = {self.home, self.workspace.team_id, self.workspace.enterprise_id}
        is_grid = bool(self.workspace.enterprise_id)
        if is_grid and not envelope.flag("is_ext_shared_channel"):
            return False
        return _is_stranger(user_team, ours)


@dataclass(frozen=True, slots=True)
class _Heard:
    """A person's words, and where they were said."""

    user_id: str
    user_team: str
    channel: str
    thread_ts: str
    event_ts: str


def _hear(event: "_Object", receiver: _Receiver) -> _Heard | Ignored:
    """Take words that are meant for the bot; say why not otherwise."""
    if why := _why_not_addressed(event, receiver) or _why_not_words(event, receiver):
        return Ignored(why)
    ts = event.required_id("ts", _TS)
    # user_team is set for people from another organization; team is where they wrote.
    user_team = event.id("user_team", _TEAM_OR_ENTERPRISE) or event.id("team", _TEAM_OR_ENTERPRISE)
    return _Heard(
        user_id=event.required_id("user", _USER),
        user_team=user_team or receiver.home,
        channel=event.required_id("channel", _CHANNEL),
        thread_ts=event.id("thread_ts", _TS) or ts,
        event_ts=event.id("event_ts", _TS) or ts,
    )


def _why_not_addressed(event: "_Object", receiver: _Receiver) -> str:
    event_type = event.word("type")
    if event_type not in {"app_mention", "message"}:
        return "unhandled_event"
    if event_type == "message" and event.text("channel_type") != "im":
        return "not_addressed"
    if not receiver.bot_user_id:
        # A user's authorization: two people's private talk, not words to the bot.
        return "not_the_bots"
    return ""


def _why_not_words(event: "_Object", receiver: _Receiver) -> str:
    if event.text("bot_id") or event.text("user") == receiver.bot_user_id:
        return "bot_message"
    if event.text("subtype") not in _SPOKEN_SUBTYPES or "edited" in event:
        return "not_new_words"
    if event.word("type") == "app_mention" and not _mentions(event, receiver.bot_user_id):
        # Two workspaces of one shared channel both have the app; the other's bot was asked.
        return "other_bot_mentioned"
    return ""


def _mentions(event: "_Object", bot_user_id: str) -> bool:
    return bot_user_id in _MENTION.findall(event.text("text"))


# Interactions and commands.


def _interaction_workspace(payload: "_Object", app_id: str) -> tuple[Workspace, str]:
    """Apply the rule of the verified team; also tell the team people act in."""
    view, team = payload.child("view"), payload.child("team")
    enterprise = payload.child("enterprise")
    home = (
        (view.id("app_installed_team_id", _TEAM_OR_ENTERPRISE) if view else "")
        or (team.id("id", _TEAM_OR_ENTERPRISE) if team else "")
        or payload.required_child("user").id("team_id", _TEAM_OR_ENTERPRISE)
    )
    home_team, home_enterprise = _split(home)
    enterprise_id = (
        (enterprise.id("id", _ENTERPRISE) if enterprise else "")
        or (team.id("enterprise_id", _ENTERPRISE) if team else "")
        or home_enterprise
    )
    workspace = _workspace(
        enterprise=enterprise_id,
        team=home_team,
        org_wide=payload.flag("is_enterprise_install"),
        app_id=app_id,
    )
    return workspace, home


def _interaction_lane(payload: "_Object", workspace: Workspace, user_id: str) -> str:
    """Put a click into the thread of its message; what has no message is the user's own."""
    message = payload.child("message") or _Object({})
    container = payload.child("container") or _Object({})
    channel = payload.child("channel") or _Object({})
    channel_id = channel.id("id", _CHANNEL) or container.id("channel_id", _CHANNEL)
    thread_ts = (
        container.id("thread_ts", _TS)
        or message.id("thread_ts", _TS)
        or container.id("message_ts", _TS)
        or message.id("ts", _TS)
    )
    return f"{_key_of(workspace)}:{channel_id or '-'}:{thread_ts or user_id}"


def _command_workspace(form: "_Object", app_id: str) -> tuple[Workspace, str]:
    team = form.id("team_id", _TEAM)
    org_wide = form.text("is_enterprise_install") or "false"
    if org_wide not in {"true", "false"}:
        raise MalformedSlackRequest("is_enterprise_install is neither true nor false")
    workspace = _workspace(
        enterprise=form.id("enterprise_id", _ENTERPRISE),
        team=team,
        org_wide=org_wide == "true",
        app_id=app_id,
    )
    return workspace, team


# What all three share.


def _workspace(*, enterprise: str, team: str, org_wide: bool, app_id: str) -> Workspace:
    """Key an installation: (E, -) when org-wide, else (E or -, T).

    Raises:
        MalformedSlackRequest: An org-wide install without Enterprise, or any other
            without team.
    """
    if org_wide and not enterprise:
        raise MalformedSlackRequest("an org-wide install without enterprise_id")
    if not org_wide and not team:
        raise MalformedSlackRequest("an installation without team_id")
    return Workspace(enterprise, "" if org_wide else team, org_wide, app_id)


def _split(team_or_enterprise: str) -> tuple[str, str]:
    """Tell a team's id from an Enterprise's: one of (team, enterprise) is ""."""
    is_team = _TEAM.fullmatch(team_or_enterprise)
    return (team_or_enterprise, "") if is_team else ("", team_or_enterprise)


def _key_of(workspace: Workspace) -> str:
    return workspace.team_id or workspace.enterprise_id


def _is_stranger(user_team: str, ours: set[str]) -> bool:
    return not user_team or user_team not in ours


def _require_app(fields: "_Object", app_id: str) -> None:
    named = fields.required_id("api_app_id", _APP)
    if named != app_id:
        raise ForeignApp(metadata={"app_id": named})


def _epoch_text(instant: datetime) -> str:
    return str(int(instant.timestamp()))


def _signed_bytes(timestamp: str, body: bytes) -> bytes:
    return timestamp.encode() + b":" + body


def _object(document: bytes) -> "_Object":
    return _Object(_parsed(parse_json_object, document))


def _form(document: bytes) -> dict[str, str]:
    return _parsed(parse_form, document)


def _parsed(parse: Callable[[bytes], dict[str, _V]], document: bytes) -> dict[str, _V]:
    try:
        return parse(document)
    except MalformedDocument as problem:
        raise MalformedSlackRequest(problem.message) from None


class _Object:
    """Typed access to one JSON object. Absent and null are "", False or None."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def text(self, name: str) -> str:
        """Get a text of any content."""
        value = self._members.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise MalformedSlackRequest(f"{name} is not a text")
        return value

    def word(self, name: str) -> str:
        """Get a type name of Slack's."""
        return self.required_id(name, _WORD)

    def id(self, name: str, pattern: re.Pattern[str]) -> str:
        """Get an id of one form, or "" when absent or null."""
        if self._members.get(name) is None:
            return ""
        return self.required_id(name, pattern)

    def required_id(self, name: str, pattern: re.Pattern[str]) -> str:
        """Get an id of one form."""
        value = self._members.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise MalformedSlackRequest(f"{name} is not of Slack's form")
        return value

    def flag(self, name: str) -> bool:
        """Get a truth value."""
        value = self._members.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise MalformedSlackRequest(f"{name} is neither true nor false")
        return value

    def instant(self, name: str) -> datetime | None:
        """Get an epoch second as an instant."""
        value = self._members.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 < value < _MAX_EPOCH_SECOND:
            raise MalformedSlackRequest(f"{name} is not an epoch second")
        return datetime.fromtimestamp(value, UTC)

    def child(self, name: str) -> "_Object | None":
        """Get an object."""
        value = self._members.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise MalformedSlackRequest(f"{name} is not an object")
        return _Object(value)

    def required_child(self, name: str) -> "_Object":
        """Get an object that must be there."""
        found = self.child(name)
        if found is None:
            raise MalformedSlackRequest(f"{name} is not an object")
        return found

    def first(self, name: str) -> "_Object | None":
        """Get the first object of a list, or None for an empty or absent list."""
        value = self._members.get(name)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or not isinstance(value[0], dict):
            raise MalformedSlackRequest(f"{name} is not a list of objects")
        return _Object(value[0])
