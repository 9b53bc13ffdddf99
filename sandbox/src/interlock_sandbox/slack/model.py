"""What Slack keeps: workspaces, Enterprises, people, channels, messages, installations."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]


@dataclass
class User:
    """A person or a bot.

    Attributes:
        home: The Workspace, or inside of an Enterprise the Enterprise, that
            the account belongs to.
    """

    id: str
    name: str
    real_name: str
    email: str = ""
    title: str = ""
    is_owner: bool = False
    is_admin: bool = False
    is_bot: bool = False
    home: str = ""


@dataclass
class Channel:
    """A conversation of any type.

    Attributes:
        teams: The workspaces that show it, its host first. More than one makes
            it shared: inside of an Enterprise, or by Slack Connect.
    """

    id: str
    name: str
    members: list[str]
    teams: list[str]
    is_im: bool = False
    is_mpim: bool = False
    is_private: bool = False
    is_archived: bool = False
    purpose: str = ""

    @property
    def scope_family(self) -> str:
        """The first half of the scopes that reach it."""
        if self.is_im:
            return "im"
        if self.is_mpim:
            return "mpim"
        return "groups" if self.is_private else "channels"

    @property
    def type(self) -> str:
        """The name of its type in `conversations.list`."""
        names = {"im": "im", "mpim": "mpim", "groups": "private_channel"}
        return names.get(self.scope_family, "public_channel")

    @property
    def is_open_to_all(self) -> bool:
        """Whether people of its workspaces may look in without joining."""
        return self.type == "public_channel"


@dataclass
class Message:
    """One message, as Slack keeps it.

    Attributes:
        team: The workspace in which its author wrote it.
        ephemeral_to: The only user who sees it, for an ephemeral message.
        streaming: None for an ordinary message, then `open`, `stopped` by the
            reader, or `closed`.
        markdown: The text is Markdown, not Slack's own mark-up.
    """

    ts: str
    channel: str
    user: str
    text: str
    team: str
    thread_ts: str | None = None
    bot_id: str | None = None
    subtype: str | None = None
    blocks: list[JSON] = field(default_factory=list)
    metadata: JSON | None = None
    files: list[JSON] = field(default_factory=list)
    ephemeral_to: str | None = None
    streaming: str | None = None
    stream_started_at: float = 0
    tasks: list[JSON] = field(default_factory=list)
    markdown: bool = False
    edited_ts: str | None = None
    reactions: list[JSON] = field(default_factory=list)
    assistant_title: str | None = None

    @property
    def thread(self) -> str:
        """The ts of the thread it is in, its own when it started none yet."""
        return self.thread_ts or self.ts

    def show(self) -> JSON:
        """Return the message as Slack's API shows it."""
        optional = {
            "subtype": self.subtype,
            "thread_ts": self.thread_ts,
            "bot_id": self.bot_id,
            "blocks": self.blocks,
            "metadata": self.metadata,
            "files": self.files,
            "reactions": self.reactions,
            "edited": {"user": self.user, "ts": self.edited_ts} if self.edited_ts else None,
        }
        if self.assistant_title is not None:
            thread = {"title": self.assistant_title, "first_user_thread_reply": self.ts}
            optional["assistant_app_thread"] = thread
        return {
            "type": "message",
            "user": self.user,
            "text": self.text,
            "ts": self.ts,
            "team": self.team,
            **{name: value for name, value in optional.items() if value},
        }

    def render(self) -> JSON:
        """Return what the playground draws: Slack's fields, and what Slack tells no app."""
        beside = {
            "ephemeral_to": self.ephemeral_to,
            "streaming": self.streaming,
            "markdown": self.markdown,
            "tasks": self.tasks,
        }
        kept = {name: value for name, value in beside.items() if value}
        return self.show() | {"channel": self.channel} | ({"sandbox": kept} if kept else {})


@dataclass
class Installation:
    """The app in one workspace or Enterprise. It stays, inactive, after an uninstall.

    Attributes:
        granted: Of an Enterprise: the workspaces that an administrator added
            the app to. Slack adds it to none by itself.
    """

    bot_user: str
    bot_id: str
    installed_by: str
    active: bool = True
    granted: list[str] = field(default_factory=list)


@dataclass
class Home:
    """What an app is installed in: a Workspace or an Enterprise."""

    id: str
    name: str
    domain: str
    users: dict[str, User]
    installation: Installation | None = None

    def active_installation(self) -> Installation | None:
        """Return the installation unless the app was uninstalled."""
        found = self.installation
        return found if found and found.active else None


@dataclass
class Workspace(Home):
    """A Slack team.

    Attributes:
        enterprise: The Enterprise it belongs to, if any. Its users are then
            those of the Enterprise who were let in.
    """

    enterprise: str | None = None


@dataclass
class Enterprise(Home):
    """An organization on Enterprise Grid, and the ids of its workspaces."""

    workspaces: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Receiver:
    """An installation as it looks from one workspace.

    Attributes:
        holder: Whose installation it is: the workspace's own, or its Enterprise's.
        team: The workspace in which the app acts.
        enterprise: The Enterprise of that workspace.
    """

    holder: str
    team: str
    enterprise: Enterprise | None
    installation: Installation

    @property
    def is_org_wide(self) -> bool:
        """Whether the whole Enterprise installed the app."""
        return self.enterprise is not None and self.enterprise.id == self.holder

    def authorization(self) -> JSON:
        """Return the installation as events name it."""
        return {
            "enterprise_id": self.enterprise.id if self.enterprise else None,
            "team_id": self.team,
            "user_id": self.installation.bot_user,
            "is_bot": True,
            "is_enterprise_install": self.is_org_wide,
        }


@dataclass
class Code:
    """An OAuth code that waits for its exchange.

    Attributes:
        holder: What the app was allowed into: a Workspace or an Enterprise.
        granted: Of an Enterprise: the workspaces that it is added to at once.
        webhook_channel: Where its incoming webhook is to post; empty for none.
    """

    value: str
    holder: str
    user: str
    scopes: list[str]
    user_scopes: list[str]
    redirect_uri: str
    redirect_uri_sent: bool
    issued_at: float
    granted: list[str] = field(default_factory=list)
    webhook_channel: str = ""
    used: bool = False


@dataclass
class ResponseUrl:
    """Where an app may answer one interaction, a few times and not for long."""

    path: str
    holder: str
    team: str
    channel: str
    user: str
    thread_ts: str | None
    message_ts: str | None
    issued_at: float
    uses: int = 0


@dataclass
class IncomingWebhook:
    """Where whoever knows the path may post to one channel, while the app is installed.

    Attributes:
        service: Slack's id of it, which its settings page is named after.
        ended: The app left since; installing it again makes another one.
    """

    path: str
    holder: str
    channel: str
    service: str
    ended: bool = False


@dataclass
class File:
    """A file on its way to a conversation, or there.

    Attributes:
        path: Where its bytes are sent to; only who asked for it knows the path.
        size: How many bytes were announced.
        shared_in: Conversations that show it.
    """

    id: str
    holder: str
    user: str
    name: str
    size: int
    path: str
    created_at: float
    title: str = ""
    alt_text: str = ""
    uploaded: bool = False
    shared_in: list[str] = field(default_factory=list)

    def show(self) -> JSON:
        """Return the file as Slack's API shows it."""
        suffix = self.name.rpartition(".")[2].lower() if "." in self.name else "text"
        return {
            "id": self.id,
            "created": int(self.created_at),
            "timestamp": int(self.created_at),
            "name": self.name,
            "title": self.title or self.name,
            "filetype": suffix,
            "user": self.user,
            "size": self.size,
            "mode": "hosted",
            "is_external": False,
            "is_public": bool(self.shared_in),
            "alt_txt": self.alt_text,
            "channels": self.shared_in,
        }


def row_of(kept: Any) -> JSON:
    """Return a dataclass of this module as JSON can hold it."""
    return dataclasses.asdict(kept)
