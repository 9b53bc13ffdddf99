"""Slack's side of the story, and the only place where it changes.

Nothing here speaks HTTP. Every change is published to the feed, from which the
playground draws, and noted for the state file.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from interlock_sandbox.slack.cast import HOME_CHANNELS, Cast, first_cast
from interlock_sandbox.slack.feed import Feed
from interlock_sandbox.slack.model import (
    JSON,
    Channel,
    Code,
    Enterprise,
    File,
    Home,
    IncomingWebhook,
    Installation,
    Message,
    Receiver,
    ResponseUrl,
    User,
    Workspace,
    row_of,
)
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.tokens import BOT, USER, Issued, Rotation, Token, Tokens

_Kept = TypeVar("_Kept")

# An assistant status vanishes by itself after this long.
STATUS_LIFE_S = 120
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class World:
    """All workspaces, all tokens, all messages.

    Args:
        saved: What `snapshot` returned in an earlier run.
        now: The clock by which things expire, in seconds of the epoch.
        changed: Called after every change.
        app_name: What the bot is called.

    Attributes:
        changed: Notes for the state file that something changed.
        messages: By channel, oldest first, ephemeral ones included.
        on_posted: Called with every new message that more than one person sees.
    """

    def __init__(
        self,
        saved: JSON | None,
        now: Callable[[], float],
        changed: Callable[[], None],
        *,
        rotation: Rotation,
        app_id: str,
        app_name: str = "Interlock",
    ) -> None:
        rows = saved or {}
        cast = _load_cast(rows) if saved else first_cast()
        self.feed = Feed()
        self.now = now
        self.changed = changed
        self._app_name = app_name
        self.on_posted: Callable[[Message], None] | None = None
        self.workspaces = cast.workspaces
        self.enterprises = cast.enterprises
        self.channels = cast.channels
        self.messages: dict[str, list[Message]] = {
            channel: [Message(**row) for row in listed]
            for channel, listed in rows.get("messages", {}).items()
        }
        self.tokens = Tokens(rows.get("tokens"), rotation, now, app_id)
        self.codes = _by(rows.get("codes", []), Code, "value")
        self.response_urls = _by(rows.get("response_urls", []), ResponseUrl, "path")
        self.webhooks = _by(rows.get("webhooks", []), IncomingWebhook, "path")
        self.files = _by(rows.get("files", []), File, "id")
        # The legacy verification token that every request of Slack still carries.
        self.verification_token: str = rows.get("verification_token") or secrets.token_hex(12)
        self._last_ts: int = rows.get("last_ts", 0)
        self._statuses: dict[tuple[str, str], tuple[str, float]] = {}

    def snapshot(self) -> JSON:
        """Return what a restart needs."""
        return {
            "workspaces": [_row_of_home(each) for each in self.workspaces.values()],
            "enterprises": [_row_of_home(each) for each in self.enterprises.values()],
            "users": [row_of(each) for each in self._everybody().values()],
            "channels": [row_of(each) for each in self.channels.values()],
            "messages": {
                channel: [row_of(each) for each in listed]
                for channel, listed in self.messages.items()
            },
            "tokens": self.tokens.snapshot(),
            "codes": [row_of(each) for each in self.codes.values()],
            "response_urls": [row_of(each) for each in self.response_urls.values()],
            "webhooks": [row_of(each) for each in self.webhooks.values()],
            "files": [row_of(each) for each in self.files.values()],
            "verification_token": self.verification_token,
            "last_ts": self._last_ts,
        }

    def _everybody(self) -> dict[str, User]:
        homes: list[Home] = [*self.workspaces.values(), *self.enterprises.values()]
        return {user.id: user for home in homes for user in home.users.values()}

    # Who belongs where.

    def find_home(self, holder: str) -> Home | None:
        """Find a Workspace or an Enterprise by its id."""
        return self.workspaces.get(holder) or self.enterprises.get(holder)

    def home(self, holder: str) -> Home:
        """Return the Workspace or Enterprise that holds an installation."""
        return self.workspaces.get(holder) or self.enterprises[holder]

    def enterprise_of(self, team: str) -> Enterprise | None:
        """Find the Enterprise of a workspace, or an Enterprise itself."""
        workspace = self.workspaces.get(team)
        key = workspace.enterprise if workspace else team
        return self.enterprises.get(key) if key else None

    def organization(self, team: str) -> str:
        """Return what a workspace belongs to: its Enterprise, or itself."""
        enterprise = self.enterprise_of(team)
        return enterprise.id if enterprise else team

    def reach(self, holder: str) -> list[Workspace]:
        """List the workspaces in which an installation's tokens work."""
        if workspace := self.workspaces.get(holder):
            return [workspace]
        installation = self.enterprises[holder].active_installation()
        return [self.workspaces[team] for team in installation.granted] if installation else []

    def receiver_in(self, team: str) -> Receiver | None:
        """Find the installation that acts in a workspace: its Enterprise's, or its own."""
        enterprise = self.enterprise_of(team)
        org_wide = enterprise.active_installation() if enterprise else None
        if enterprise and org_wide and team in org_wide.granted:
            return Receiver(enterprise.id, team, enterprise, org_wide)
        installation = self.workspaces[team].active_installation()
        return Receiver(team, team, enterprise, installation) if installation else None

    def receivers_of(self, channel: Channel, first: str = "") -> list[Receiver]:
        """List the installations whose bot is in a channel, that of `first` first."""
        found: dict[str, Receiver] = {}
        for team in sorted(channel.teams, key=lambda each: each != first):
            receiver = self.receiver_in(team)
            if receiver and receiver.installation.bot_user in channel.members:
                found.setdefault(receiver.holder, receiver)
        return list(found.values())

    def receiver_of_bot(self, bot_user: str, team: str) -> Receiver | None:
        """Find a bot's installation, as it looks from a workspace that it reaches.

        From any other workspace it looks as from its first one.
        """
        for home in (*self.enterprises.values(), *self.workspaces.values()):
            installation = home.active_installation()
            if installation and installation.bot_user == bot_user:
                reached = [each.id for each in self.reach(home.id)]
                if not reached:
                    return None
                seen_from = team if team in reached else reached[0]
                enterprise = self.enterprise_of(seen_from)
                return Receiver(home.id, seen_from, enterprise, installation)
        return None

    def channels_of(self, team: str) -> list[Channel]:
        """List the conversations that a workspace shows."""
        return [each for each in self.channels.values() if team in each.teams]

    def find_channel(self, team: str, channel: str) -> Channel | None:
        """Find a conversation of a workspace."""
        found = self.channels.get(channel)
        return found if found and team in found.teams else None

    def strangers_in(self, team: str) -> dict[str, User]:
        """Return the people of other organizations who share a channel with a workspace."""
        everybody, mine = self._everybody(), self.workspaces[team].users
        met = {user for channel in self.channels_of(team) for user in channel.members}
        return {user: everybody[user] for user in met if user not in mine and user in everybody}

    def find_user(self, team: str, user: str) -> User | None:
        """Find a person of a workspace, or one whom its people meet in a shared channel."""
        return self.workspaces[team].users.get(user) or self.strangers_in(team).get(user)

    # Installing.

    def issue_code(self, code: Code) -> None:
        """Remember an OAuth code."""
        self.codes[code.value] = code
        self.changed()

    def install(self, code: Code) -> tuple[Issued | None, Issued | None]:
        """Spend a code: put the app into its Workspace or Enterprise and issue its tokens.

        Returns:
            What the bot and the person get, each if its scopes were asked for.
        """
        code.used = True
        installation = self._installation(self.home(code.holder), code.user)
        if code.holder in self.enterprises:
            self.grant_workspaces(code.holder, [*installation.granted, *code.granted])
        bot = user = None
        if code.scopes:
            bot = self.tokens.grant(code.holder, BOT, installation.bot_user, code.scopes)
        if code.user_scopes:
            user = self.tokens.grant(code.holder, USER, code.user, code.user_scopes)
        self._installed_or_gone(code.holder)
        return bot, user

    def add_webhook(self, code: Code) -> IncomingWebhook:
        """Make the incoming webhook of an install, beside those of earlier ones."""
        service = new_id("B0")
        path = f"/services/{code.holder}/{service}/{secrets.token_urlsafe(18)}"
        webhook = IncomingWebhook(path, code.holder, code.webhook_channel, service)
        self.webhooks[path] = webhook
        self.changed()
        return webhook

    def grant_workspaces(self, enterprise: str, teams: Iterable[str]) -> None:
        """Let an org-wide installation into these workspaces of its Enterprise, and no others."""
        home = self.enterprises[enterprise]
        installation = home.installation
        if installation is None:
            return
        wanted = set(teams)
        installation.granted = [each for each in home.workspaces if each in wanted]
        bot = home.users[installation.bot_user]
        for team in home.workspaces:
            if team in wanted:
                self.workspaces[team].users[bot.id] = bot
                self._join_home_channels(team, bot.id)
        self._installed_or_gone(enterprise)

    def authenticate(self, value: str) -> Token:
        """Return the living token of this text.

        Raises:
            SlackError: There is no such token, or it is dead.
        """
        token = self.tokens.find(value)
        if token is None:
            raise SlackError("invalid_auth")
        home = self.find_home(token.holder)
        if home and token.kind == BOT and home.active_installation() is None:
            # The bot user is gone with the app.
            raise SlackError("account_inactive")
        self.tokens.check(token)
        return token

    def revoke(self, token: Token) -> bool:
        """End one token; without rotation the app leaves with its last one.

        Returns:
            Whether the app left.
        """
        token.revoked = True
        home = self.home(token.holder)
        leaves = token.expires_at is None and not self.tokens.standing(token.holder)
        if leaves:
            self._leave(home)
        self._installed_or_gone(token.holder)
        return leaves

    def uninstall(self, holder: str) -> list[Token]:
        """Remove the app from a Workspace or Enterprise; return the tokens that this ended."""
        home = self.home(holder)
        ended = self.tokens.revoke_all(holder)
        self._leave(home)
        if home.installation:
            home.installation.granted = []
        self._installed_or_gone(holder)
        return ended

    def _leave(self, home: Home) -> None:
        if home.installation:
            home.installation.active = False
        for webhook in self.webhooks.values():
            webhook.ended = webhook.ended or webhook.holder == home.id

    def _installation(self, home: Home, installer: str) -> Installation:
        if home.installation is None:
            suffix = home.id[2:]
            bot = User(f"U0BOT{suffix}", "interlock", self._app_name, is_bot=True, home=home.id)
            home.users[bot.id] = bot
            home.installation = Installation(bot.id, f"B0{suffix}", installer)
        home.installation.active = True
        if home.id in self.workspaces:
            self._join_home_channels(home.id, home.installation.bot_user)
        return home.installation

    def _join_home_channels(self, team: str, bot_user: str) -> None:
        for channel in self.channels_of(team):
            if channel.name in HOME_CHANNELS and bot_user not in channel.members:
                channel.members.append(bot_user)

    def _installed_or_gone(self, holder: str) -> None:
        self.changed()
        enterprise = self.enterprises.get(holder)
        for team in enterprise.workspaces if enterprise else [holder]:
            self.feed.publish(team, {"type": "installation"})

    # Conversations.

    def add_channel(self, channel: Channel) -> Channel:
        """Put a new conversation into its workspaces."""
        self.channels[channel.id] = channel
        self.channel_changed(channel)
        return channel

    def channel_changed(self, channel: Channel) -> None:
        """Tell everyone that a conversation's members or workspaces changed."""
        self.changed()
        for team in channel.teams:
            self.feed.publish(team, {"type": "installation"})

    def find_direct(self, users: Iterable[str]) -> Channel | None:
        """Find the direct or group message of exactly these users."""
        wanted = set(users)
        return next(
            (
                each
                for each in self.channels.values()
                if (each.is_im or each.is_mpim) and set(each.members) == wanted
            ),
            None,
        )

    def open_direct(self, teams: list[str], users: list[str]) -> Channel:
        """Return the direct message of two users, or the group message of more."""
        found = self.find_direct(users)
        if found:
            found.teams = list(dict.fromkeys([*found.teams, *teams]))
            return found
        if len(users) == 2:  # noqa: PLR2004 - two people and no more make a direct message
            return self.add_channel(Channel(new_id("D0"), "", users, teams, is_im=True))
        everybody = self._everybody()
        name = f"mpdm-{'--'.join(everybody[each].name for each in users)}-1"
        return self.add_channel(Channel(new_id("G0"), name, users, teams, is_mpim=True))

    def join(self, channel: Channel, user: str) -> bool:
        """Add a user to a channel; False when they were there."""
        if user in channel.members:
            return False
        channel.members.append(user)
        self.channel_changed(channel)
        return True

    # Talking.

    def next_ts(self) -> str:
        """Return a message timestamp, later than every one before."""
        self._last_ts = max(int(self.now() * 1_000_000), self._last_ts + 1)
        return f"{self._last_ts // 1_000_000}.{self._last_ts % 1_000_000:06}"

    def add(self, message: Message) -> Message:
        """Put a message into its channel."""
        self.messages.setdefault(message.channel, []).append(message)
        if message.bot_id and not message.ephemeral_to:
            self.set_status(message.channel, message.thread, "")
        self.update(message)
        if self.on_posted and not message.ephemeral_to:
            self.on_posted(message)
        return message

    def update(self, message: Message) -> None:
        """Tell everyone that a message changed."""
        self.changed()
        self._tell(message.channel, {"type": "message", "message": message.render()}, message)

    def remove(self, message: Message) -> None:
        """Take a message away."""
        self.messages[message.channel].remove(message)
        self.changed()
        self._tell(
            message.channel, {"type": "gone", "channel": message.channel, "ts": message.ts}, message
        )

    def _tell(self, channel_id: str, event: JSON, message: Message | None = None) -> None:
        channel = self.channels[channel_id]
        audience = None if channel.is_open_to_all else channel.members
        if message and message.ephemeral_to:
            audience = [message.ephemeral_to]
        for team in channel.teams:
            self.feed.publish(team, event, audience)

    def find_message(self, channel: str, ts: str) -> Message | None:
        """Find a message by channel and ts, ephemeral ones included."""
        return next((each for each in self.messages.get(channel, []) if each.ts == ts), None)

    def seen_by_all(self, channel: str) -> Iterator[Message]:
        """Yield the messages of a channel that are not ephemeral, oldest first."""
        return (each for each in self.messages.get(channel, []) if not each.ephemeral_to)

    def set_status(self, channel: str, thread_ts: str, status: str) -> None:
        """Show what the app is doing in a thread; an empty text ends it."""
        key = (channel, thread_ts)
        if status:
            self._statuses[key] = (status, self.now())
        elif self._statuses.pop(key, None) is None:
            return
        event = {"type": "status", "channel": channel, "thread_ts": thread_ts, "status": status}
        self._tell(channel, event)

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
        self.changed()

    def keep_file(self, file: File) -> None:
        """Remember a file, or how it changed."""
        self.files[file.id] = file
        self.changed()


def new_id(prefix: str) -> str:
    """Return a Slack id: a prefix and ten letters or digits."""
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))


def _row_of_home(home: Home) -> JSON:
    row = row_of(home)
    # An account of an Enterprise is one object, however many workspaces let it in.
    return row | {"users": list(home.users)}


def _load_cast(rows: JSON) -> Cast:
    users = {row["id"]: User(**row) for row in rows["users"]}
    channels = [Channel(**row) for row in rows["channels"]]
    return Cast(
        {row["id"]: Workspace(**_home_fields(row, users)) for row in rows["workspaces"]},
        {row["id"]: Enterprise(**_home_fields(row, users)) for row in rows["enterprises"]},
        {each.id: each for each in channels},
    )


def _home_fields(row: JSON, users: dict[str, User]) -> dict[str, Any]:
    installation = row["installation"]
    return row | {
        "users": {each: users[each] for each in row["users"]},
        "installation": Installation(**installation) if installation else None,
    }


def _by(rows: list[JSON], kind: Callable[..., _Kept], key: str) -> dict[str, _Kept]:
    return {row[key]: kind(**row) for row in rows}
