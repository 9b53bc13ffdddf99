"""Whom a conversation talks to, and the values it gets from them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from interlock_chassis.secret import Secret
from interlock_gateway.worker.answer import Project, Source
from interlock_gateway.worker.endings import EndingNews
from interlock_gateway.worker.lanes import Delivery
from interlock_gateway.worker.slack import BotToken, Place, Profile, Slack
from interlock_gateway.worker.waiting import WaitingQuestions
from interlock_tokens.grants import SlackGrant


@dataclass(frozen=True, slots=True)
class Agent:
    """Which agent answers."""

    project_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class UserToken:
    """A slackUser token, five minutes, and the tenant it names."""

    token: Secret[str]
    tenant_id: str


class Identity(Protocol):
    """The identity service. Every method takes the event's grant and raises RemoteError."""

    async def resolve_user(self, grant: Secret[str]) -> str:
        """Return the linked account's name.

        Reasons USER_NOT_LINKED, SLACK_STRANGER, WORKSPACE_NOT_FOUND, INVALID_TOKEN.
        """
        ...

    async def create_link(self, grant: Secret[str], profile: Profile) -> Secret[str]:
        """Make a link code and return the URL that redeems it.

        Reasons USER_ALREADY_LINKED, TOO_MANY_LINK_CODES, and as `resolve_user`.
        """
        ...

    async def issue_user_token(
        self, grant: Secret[str], agent: Agent | None, channel: str
    ) -> UserToken:
        """Issue a token for a run, or for browsing where no agent is named.

        Reasons NO_LONGER_A_MEMBER, MEMBERSHIP_UNAVAILABLE, and as `resolve_user`.
        """
        ...

    async def resolve_agent(self, grant: Secret[str], channel: str) -> Agent | None:
        """Say which agent answers where nobody chose one; None when there is no default."""
        ...

    async def renew_grant(self, grant: Secret[str]) -> Secret[str]:
        """Renew an event's grant; reasons EVENT_TOO_OLD, WORKSPACE_RELEASED."""
        ...

    async def unlink_self(self, grant: Secret[str]) -> bool:
        """Remove the link of the grant's Slack user; tell whether there was one."""
        ...


class Vault(Protocol):
    """The token vault. Every method takes a grant and raises RemoteError."""

    async def read_bot_token(self, grant: Secret[str], newer_than: int) -> BotToken:
        """Read the bot token of the grant's installation.

        Reasons INSTALLATION_NOT_FOUND, NEEDS_REINSTALL, INVALID_TOKEN, PURPOSE_NOT_GRANTED.
        """
        ...

    async def apply_revocation(
        self,
        grant: Secret[str],
        event_at: datetime,
        user_ids: Sequence[str],
        bot_user_ids: Sequence[str],
    ) -> bool:
        """Ask whether a revocation event is true, and purge if it is.

        Returns:
            Whether the app has left, by this event or before it.
        """
        ...

    async def uninstall(self, grant: Secret[str]) -> None:
        """Uninstall the app at Slack and shred its tokens.

        Reasons UNINSTALL_REFUSED, SLACK_UNAVAILABLE, REFRESH_PENDING, INVALID_TOKEN,
        PURPOSE_NOT_GRANTED.
        """


@dataclass(frozen=True, slots=True)
class Ask:
    """One run to be started.

    Attributes:
        message_id: The platform's idempotency key.
        entry_point: `app_mention`, `direct_message` or `smart_link_resume`.
    """

    agent: Agent
    conversation_id: str
    message_id: str
    prompt: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class Started:
    """The platform accepted the run."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, untrusted Markdown."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool was called; the name is untrusted."""

    name: str


@dataclass(frozen=True, slots=True)
class ApprovalNeeded:
    """The run waits for a person's approval."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run.

    Attributes:
        outcome: `completed`, `failed`, `incomplete` or `limit_reached`.
        detail: The platform's own words, untrusted.
    """

    outcome: str
    reason: str = ""
    detail: str = ""


RunEvent = Started | Text | ToolStarted | ApprovalNeeded | Source | Finished


class Runner(Protocol):
    """The runner. Every method raises RemoteError."""

    async def list_projects(self, token: UserToken) -> Sequence[Project]:
        """List the projects and agents that the user may see."""
        ...

    async def agent_name(self, token: UserToken, agent: Agent) -> str:
        """Return an agent's display name, its id where the user may not see it; untrusted."""
        ...

    def run(self, token: UserToken, ask: Ask) -> AsyncGenerator[RunEvent, None]:
        """Run an agent; closing the generator ends the run.

        Raises RemoteError before `Started` for a run that was not started; reasons
        MESSAGE_ALREADY_RUN, USER_TOKEN_REFUSED, AGENT_NOT_ALLOWED, AGENT_NOT_FOUND,
        PLATFORM_RATE_LIMITED, PLATFORM_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is known of a run that was begun.

    Attributes:
        messages: The ts of the answer's messages, oldest first.
    """

    has_ended: bool
    messages: Sequence[str] = field(default=())


class RunRecords(Protocol):
    """The memory of runs. Raises UNAVAILABLE while the database is away.

    Writing raises LaneLost unless the delivery's lane is still ours.
    """

    async def find(self, event_key: str) -> RunRecord | None:
        """Find the run of an event."""
        ...

    async def begin(self, delivery: Delivery, message_id: str, place: Place) -> None:
        """Record that a run is about to be started."""

    async def add_message(self, delivery: Delivery, ts: str) -> None:
        """Record a message of the answer."""

    async def end(self, delivery: Delivery, outcome: str) -> None:
        """Record that the answer has its visible end."""

    async def withdraw(self, delivery: Delivery) -> None:
        """Forget a run that is known not to have started."""

    async def greeted(self, delivery: Delivery) -> None:
        """Record that the person was told of the link; the cause becomes `greeted`."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everyone the conversation talks to.

    Attributes:
        open_grant: Verifies a slackGrant, also one that has expired; raises InvalidToken.
    """

    identity: Identity
    vault: Vault
    runner: Runner
    slack: Slack
    runs: RunRecords
    waiting: WaitingQuestions
    endings: EndingNews
    open_grant: Callable[[Secret[str]], SlackGrant]
