"""Slack's side of the story: workspaces, people, channels, messages, installations.

Nothing here speaks HTTP. Every change is published to the feed, from which the
playground draws, and noted for the state file.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from interlock_sandbox.slack.feed import Feed

JSON = dict[str, Any]
_Kept = TypeVar("_Kept")

# An assistant status vanishes by itself after this long.
STATUS_LIFE_S = 120


@dataclass
class User:
    """A member of a workspace."""

    id: str
    name: str
    real_name: str
    email: str = ""
    title: str = ""
    is_owner: bool = False
    is_admin: bool = False
    is_bot: bool = False


@dataclass
class Channel:
    """A conversation: a channel or a direct message."""

    id: str
    name: str
    members: list[str]
    is_im: bool = False
    purpose: str = ""


@dataclass
class Message:
    """One message, as Slack keeps it.

    Attributes:
        ephemeral_to: The only user who sees it, for an ephemeral message.
        streaming: None for an ordinary message, then `open`, `stopped` by the
            reader, or `closed`.
        markdown: The text is Markdown, not Slack's own mark-up.
    """

    ts: str
    channel: str
    user: str
    text: str
    thread_ts: str | None = None
    bot_id: str | None = None
    blocks: list[JSON] = field(default_factory=list)
    metadata: JSON | None = None
    ephemeral_to: str | None = None
    streaming: str | None = None
    stream_started_at: float = 0
    tasks: list[JSON] = field(default_factory=list)
    markdown: bool = False
    edited: bool = False
    reactions: list[JSON] = field(default_factory=list)

    @property
    def thread(self) -> str:
        """The ts of the thread it is in, its own when it started none yet."""
        return self.thread_ts or self.ts


@dataclass
class Installation:
    """The app in one workspace. It stays here, inactive, after an uninstall."""

    bot_user: str
    bot_id: str
    installed_by: str
    active: bool = True


@dataclass
class Token:
    """A token that Slack issued. Revoked ones stay, so that they stay refused."""

    value: str
    kind: str
    team: str
    user: str
    scopes: list[str]
    revoked: bool = False


@dataclass
class Code:
    """An OAuth code that waits for its exchange."""

    value: str
    team: str
    user: str
    scopes: list[str]
    user_scopes: list[str]
    redirect_uri: str
    redirect_uri_sent: bool
    issued_at: float
    used: bool = False


@dataclass
class ResponseUrl:
    """Where an app may answer one interaction, a few times and not for long."""

    path: str
    team: str
    channel: str
    user: str
    thread_ts: str | None
    message_ts: str | None
    issued_at: float
    uses: int = 0


@dataclass
class Workspace:
    """A Slack team and everything in it."""

    id: str
    name: str
    domain: str
    users: dict[str, User]
    channels: dict[str, Channel]
    messages: dict[str, list[Message]] = field(default_factory=dict)
    installation: Installation | None = None

    def active_installation(self) -> Installation | None:
        """Return the installation unless the app was uninstalled."""
        found = self.installation
        return found if found and found.active else None


class World:
    """All workspaces, all tokens, and the only place where they change.

    Args:
        saved: What `snapshot` returned in an earlier run.
        now: The clock, in seconds of the epoch.
        changed: Called after every change.

    Attributes:
        on_posted: Called with every new message that more than one person sees.
    """

    def __init__(
        self, saved: JSON | None, now: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self.feed = Feed()
        self.now = now
        self._changed = changed
        self.on_posted: Callable[[Workspace, Message], None] | None = None
        self.workspaces = _load_workspaces(saved["workspaces"]) if saved else first_workspaces()
        rows = saved or {}
        self.tokens = _by(rows.get("tokens", []), Token, "value")
        self.codes = _by(rows.get("codes", []), Code, "value")
        self.response_urls = _by(rows.get("response_urls", []), ResponseUrl, "path")
        # The legacy verification token that every request of Slack still carries.
        self.verification_token: str = rows.get("verification_token") or secrets.token_hex(12)
        self._last_ts: int = rows.get("last_ts", 0)
        self._statuses: dict[tuple[str, str], tuple[str, float]] = {}

    def snapshot(self) -> JSON:
        """Return what a restart needs."""
        return {
            "workspaces": [dataclasses.asdict(each) for each in self.workspaces.values()],
            "tokens": [dataclasses.asdict(each) for each in self.tokens.values()],
            "codes": [dataclasses.asdict(each) for each in self.codes.values()],
            "response_urls": [dataclasses.asdict(each) for each in self.response_urls.values()],
            "verification_token": self.verification_token,
            "last_ts": self._last_ts,
        }

    # Installing.

    def issue_code(self, code: Code) -> None:
        """Remember an OAuth code."""
        self.codes[code.value] = code
        self._changed()

    def install(self, code: Code) -> tuple[Token | None, Token | None]:
        """Spend a code: put the app into its workspace and issue its tokens.

        Without rotation Slack answers a reinstall with the token it issued
        before, its scopes added up.

        Returns:
            The bot's token and the person's, each if its scopes were asked for.
        """
        code.used = True
        workspace = self.workspaces[code.team]
        installation = self._installation(workspace, code.user)
        bot = user = None
        if code.scopes:
            bot = self._grant("bot", workspace.id, installation.bot_user, code.scopes)
        if code.user_scopes:
            user = self._grant("user", workspace.id, code.user, code.user_scopes)
        self._changed()
        self.feed.publish(workspace.id, {"type": "installation"})
        return bot, user

    def revoke(self, token: Token) -> None:
        """End one token; the app leaves the workspace with its last one."""
        token.revoked = True
        workspace = self.workspaces[token.team]
        if workspace.installation and not self.live_tokens(token.team):
            workspace.installation.active = False
        self._changed()
        self.feed.publish(workspace.id, {"type": "installation"})

    def live_tokens(self, team: str) -> list[Token]:
        """List the tokens of a workspace that still work."""
        return [each for each in self.tokens.values() if each.team == team and not each.revoked]

    def bot_token(self, team: str) -> Token | None:
        """Find the living bot token of a workspace."""
        return next((each for each in self.live_tokens(team) if each.kind == "bot"), None)

    def _installation(self, workspace: Workspace, installer: str) -> Installation:
        if workspace.installation is None:
            suffix = workspace.id.removeprefix("T0")
            bot = User(f"U0BOT{suffix}", "interlock", "Interlock", is_bot=True)
            workspace.users[bot.id] = bot
            workspace.installation = Installation(bot.id, f"B0{suffix}", installer)
            for channel in workspace.channels.values():
                if channel.name in HOME_CHANNELS:
                    channel.members.append(bot.id)
        workspace.installation.active = True
        return workspace.installation

    def _grant(self, kind: str, team: str, user: str, scopes: list[str]) -> Token:
        for token in self.live_tokens(team):
            if (token.kind, token.user) == (kind, user):
                token.scopes = sorted({*token.scopes, *scopes})
                return token
        prefix = "xoxb" if kind == "bot" else "xoxp"
        numbers = f"{secrets.randbelow(10**12):012}-{secrets.randbelow(10**13):013}"
        value = f"{prefix}-{numbers}-{secrets.token_hex(12)}"
        token = self.tokens[value] = Token(value, kind, team, user, sorted(set(scopes)))
        return token

    # Talking.

    def next_ts(self) -> str:
        """Return a message timestamp, later than every one before."""
        self._last_ts = max(int(self.now() * 1_000_000), self._last_ts + 1)
        return f"{self._last_ts // 1_000_000}.{self._last_ts % 1_000_000:06}"

    def add(self, team: str, message: Message) -> Message:
        """Put a message into its channel."""
        self.workspaces[team].messages.setdefault(message.channel, []).append(message)
        if message.bot_id and not message.ephemeral_to:
            self.set_status(team, message.channel, message.thread, "")
        self.update(team, message)
        if self.on_posted and not message.ephemeral_to:
            self.on_posted(self.workspaces[team], message)
        return message

    def update(self, team: str, message: Message) -> None:
        """Tell everyone that a message changed."""
        self._changed()
        event = {"type": "message", "message": render(message)}
        self.feed.publish(team, event, self._audience(team, message))

    def remove(self, team: str, message: Message) -> None:
        """Take a message away."""
        self.workspaces[team].messages[message.channel].remove(message)
        self._changed()
        gone = {"type": "gone", "channel": message.channel, "ts": message.ts}
        self.feed.publish(team, gone, self._audience(team, message))

    def _audience(self, team: str, message: Message) -> list[str] | None:
        """Return who may see a message; None is everyone in the workspace."""
        if message.ephemeral_to:
            return [message.ephemeral_to]
        channel = self.workspaces[team].channels[message.channel]
        return channel.members if channel.is_im else None

    def find_message(self, team: str, channel: str, ts: str) -> Message | None:
        """Find a message by channel and ts, ephemeral ones included."""
        messages = self.workspaces[team].messages.get(channel, [])
        return next((each for each in messages if each.ts == ts), None)

    def thread_of(self, team: str, channel: str, ts: str) -> list[Message]:
        """List a thread, its first message first, without ephemeral ones."""
        messages = self.workspaces[team].messages.get(channel, [])
        return [each for each in messages if each.thread == ts and not each.ephemeral_to]

    def open_im(self, team: str, user: str, other: str) -> Channel:
        """Return the direct message of two users, made if need be."""
        workspace = self.workspaces[team]
        for channel in workspace.channels.values():
            if channel.is_im and set(channel.members) == {user, other}:
                return channel
        channel = Channel(f"D0{secrets.token_hex(5).upper()}", "", [user, other], is_im=True)
        workspace.channels[channel.id] = channel
        self._changed()
        self.feed.publish(team, {"type": "installation"})
        return channel

    def join(self, team: str, channel: Channel, user: str) -> None:
        """Add a user to a channel."""
        if user not in channel.members:
            channel.members.append(user)
            self._changed()
            self.feed.publish(team, {"type": "installation"})

    def set_status(self, team: str, channel: str, thread_ts: str, status: str) -> None:
        """Show what the app is doing in a thread; an empty text ends it."""
        key = (channel, thread_ts)
        if status:
            self._statuses[key] = (status, self.now())
        elif self._statuses.pop(key, None) is None:
            return
        event = {"type": "status", "channel": channel, "thread_ts": thread_ts, "status": status}
        self.feed.publish(team, event)

    def statuses(self, channels: Iterable[str]) -> list[JSON]:
        """List the statuses that are shown now."""
        shown = set(channels)
        return [
            {"channel": channel, "thread_ts": thread_ts, "status": status}
            for (channel, thread_ts), (status, since) in self._statuses.items()
            if channel in shown and self.now() < since + STATUS_LIFE_S
        ]

    def issue_response_url(self, url: ResponseUrl) -> None:
        """Remember a response URL."""
        self.response_urls[url.path] = url
        self._changed()


def render(message: Message) -> JSON:
    """Return a message as Slack's API shows it, and what the playground needs besides."""
    shown: JSON = {
        "type": "message",
        "user": message.user,
        "text": message.text,
        "ts": message.ts,
        "channel": message.channel,
    }
    optional = {
        "thread_ts": message.thread_ts,
        "bot_id": message.bot_id,
        "blocks": message.blocks,
        "metadata": message.metadata,
        "reactions": message.reactions,
        "edited": {"user": message.user, "ts": message.ts} if message.edited else None,
        "sandbox": _beside_slack(message),
    }
    return shown | {name: value for name, value in optional.items() if value}


def _beside_slack(message: Message) -> JSON:
    beside = {
        "ephemeral_to": message.ephemeral_to,
        "streaming": message.streaming,
        "markdown": message.markdown,
        "tasks": message.tasks,
    }
    return {name: value for name, value in beside.items() if value}


# Channels that the app joins when it is installed, so that a newcomer can
# mention it at once. Real Slack waits for an invitation.
HOME_CHANNELS = frozenset({"general", "help"})


def first_workspaces() -> dict[str, Workspace]:
    """Return the workspaces of a sandbox that starts for the first time."""
    northwind = _workspace(
        "T0NORTHWIND",
        "Northwind",
        [
            _owner("U0ADA", "ada", "Ada Lindqvist", "ada@northwind.example", "Head of IT"),
            _admin("U0BEN", "ben", "Ben Okafor", "ben@northwind.example", "IT operations"),
            User("U0MIA", "mia", "Mia Castellanos", "mia@northwind.example", "Account manager"),
            User("U0ROB", "rob", "Rob Tanaka", "rob@northwind.example", "Warehouse lead"),
        ],
        {"general": "Company-wide news", "help": "Ask anything", "random": "Off topic"},
    )
    contoso = _workspace(
        "T0CONTOSO",
        "Contoso",
        [
            _owner("U0OLGA", "olga", "Olga Petrenko", "olga@contoso.example", "Founder"),
            User("U0CARL", "carl", "Carl Mbeki", "carl@contoso.example", "Analyst"),
        ],
        {"general": "Everyone at Contoso", "help": "Questions and answers"},
    )
    return {each.id: each for each in (northwind, contoso)}


def _owner(user: str, name: str, real_name: str, email: str, title: str) -> User:
    return User(user, name, real_name, email, title, is_owner=True, is_admin=True)


def _admin(user: str, name: str, real_name: str, email: str, title: str) -> User:
    return User(user, name, real_name, email, title, is_admin=True)


def _workspace(team: str, name: str, users: list[User], channels: dict[str, str]) -> Workspace:
    initials = team.removeprefix("T0")[:2]
    members = [user.id for user in users]
    made = [
        Channel(f"C0{initials}{channel.upper()}", channel, list(members), purpose=purpose)
        for channel, purpose in channels.items()
    ]
    return Workspace(
        team,
        name,
        name.lower(),
        {user.id: user for user in users},
        {channel.id: channel for channel in made},
    )


def _load_workspaces(rows: list[JSON]) -> dict[str, Workspace]:
    loaded = {}
    for row in rows:
        installation = row["installation"]
        loaded[row["id"]] = Workspace(
            row["id"],
            row["name"],
            row["domain"],
            {key: User(**value) for key, value in row["users"].items()},
            {key: Channel(**value) for key, value in row["channels"].items()},
            {key: [Message(**each) for each in value] for key, value in row["messages"].items()},
            Installation(**installation) if installation else None,
        )
    return loaded


def _by(rows: list[JSON], kind: Callable[..., _Kept], key: str) -> dict[str, _Kept]:
    return {row[key]: kind(**row) for row in rows}
