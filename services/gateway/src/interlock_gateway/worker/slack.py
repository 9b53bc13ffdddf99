"""Slack's Web API, as far as a conversation needs it, and the bot that speaks through it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret

# A call that Slack told to wait longer than this is given up for now.
PATIENCE = timedelta(seconds=60)

Block = Mapping[str, Any]
"""A Block Kit block. A Secret inside of it (a link with a code) is revealed when it is sent."""

P = ParamSpec("P")
T = TypeVar("T")


class SlackRefused(ServiceError):
    """Slack refused the call; nothing happened there.

    Attributes:
        code: Slack's error code.
    """

    kind = Kind.PRECONDITION
    reason = "SLACK_REFUSED"

    def __init__(self, code: str) -> None:
        super().__init__(metadata={"slack_error": code})
        self.code = code


class BotTokenRefused(SlackRefused):
    """Slack does not accept the bot token."""

    reason = "BOT_TOKEN_REFUSED"


class SlackRateLimited(ServiceError):
    """Slack asks to wait; nothing happened there."""

    kind = Kind.EXHAUSTED
    reason = "SLACK_RATE_LIMITED"


class SlackUnavailable(ServiceError):
    """Slack did not answer, or failed; the call may have happened."""

    kind = Kind.UNAVAILABLE
    reason = "SLACK_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in Slack something is said: a thread of a conversation."""

    channel: str
    thread_ts: str


@dataclass(frozen=True, slots=True)
class Reader:
    """Whom an answer is for."""

    user_id: str
    team_id: str


@dataclass(frozen=True, slots=True)
class Note:
    """A whole message.

    Attributes:
        text: For notifications and clients without blocks; Slack's own mark-up, escaped.
        metadata: What the message is found again by; None for none.
    """

    text: str
    blocks: Sequence[Block] = ()
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A Slack user, as the scopes allow to see; untrusted text."""

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class ThreadMessage:
    """One message of a thread.

    Attributes:
        text: Slack's mark-up, untrusted.
        metadata: The message's metadata payload if the message is ours, else empty.
    """

    ts: str
    author: str
    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel the bot can see; the name is untrusted text."""

    channel_id: str
    name: str
    is_member: bool


class Slack(Protocol):
    """The Web API. Every method takes the bot token first.

    All raise BotTokenRefused, SlackRefused, SlackRateLimited and SlackUnavailable.
    Nothing is tried twice.
    """

    async def check(self, token: Secret[str]) -> None:
        """Return if Slack accepts the token."""

    async def profile(self, token: Secret[str], user_id: str) -> Profile:
        """Get a user's name and, with the scope for it, e-mail address."""
        ...

    async def thread(self, token: Secret[str], place: Place) -> Sequence[ThreadMessage]:
        """List a thread, oldest first: its root and at most 1,000 of its replies."""
        ...

    async def channels(self, token: Secret[str], team_id: str) -> Sequence[Channel]:
        """List the public and private channels that the bot can see."""
        ...

    async def set_status(self, token: Secret[str], place: Place, status: str) -> None:
        """Show what the app is doing under a thread; "" shows nothing."""

    async def whisper(self, token: Secret[str], place: Place, user_id: str, note: Note) -> None:
        """Show a message to one person only. An empty thread_ts means the channel itself."""

    async def post(self, token: Secret[str], place: Place, note: Note) -> str:
        """Post a message and return its ts. A user's id as channel means the direct message."""
        ...

    async def update(self, token: Secret[str], channel: str, ts: str, note: Note) -> None:
        """Replace a message."""

    async def start_stream(self, token: Secret[str], place: Place, reader: Reader) -> str:
        """Begin a message that grows, and return its ts."""
        ...

    async def append_stream(self, token: Secret[str], channel: str, ts: str, text: str) -> None:
        """Let a message grow by Markdown of at most 12,000 characters."""

    async def stop_stream(
        self,
        token: Secret[str],
        channel: str,
        ts: str,
        *,
        text: str,
        blocks: Sequence[Block],
        metadata: Mapping[str, Any],
    ) -> None:
        """End a message that grows, with a last piece of Markdown and blocks below it."""

    async def respond(self, response_url: Secret[str], team_id: str, note: Note) -> None:
        """Replace the message that an interaction or command came from.

        The URL must be Slack's, and its team `team_id`; redirects are not followed.
        """


@dataclass(frozen=True, slots=True)
class BotToken:
    """A bot token for one reply.

    Attributes:
        team_id: What to pass to methods that ask for a team; may be "".
    """

    token: Secret[str]
    generation: int
    team_id: str


class Bot:
    """An installation's bot, for the length of one reply.

    Reads the token once, and once more when Slack refuses it: it may have been
    rotated since.

    Args:
        read_token: Reads the token, of a generation above the one given.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        read_token: Callable[[int], Awaitable[BotToken]],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._read_token = read_token
        self._sleep = sleep
        self._token: BotToken | None = None

    async def token(self) -> BotToken:
        """Return the token, reading it first if need be."""
        if self._token is None:
            self._token = await self._read_token(0)
        return self._token

    async def call(
        self,
        method: Callable[Concatenate[Secret[str], P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a method of Slack's as this bot.

        Raises:
            SlackRateLimited: At once, without waiting; else as the method.
        """
        held = await self.token()
        try:
            return await method(held.token, *args, **kwargs)
        except BotTokenRefused:
            self._token = await self._read_token(held.generation)
        return await method(self._token.token, *args, **kwargs)

    async def insist(
        self,
        method: Callable[Concatenate[Secret[str], P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a method of Slack's as this bot, waiting as long as Slack asks, up to a minute."""
        return await self.patiently(lambda: self.call(method, *args, **kwargs))

    async def patiently(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do something again as long as Slack asks to wait, up to a minute."""
        waited = timedelta()
        while True:
            try:
                return await action()
            except SlackRateLimited as limit:
                pause = limit.retry_after or timedelta(seconds=1)
                waited += pause
                if waited > PATIENCE:
                    raise
                await self._sleep(pause.total_seconds())
