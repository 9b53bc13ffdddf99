"""Browse and run agents as the user whose token the call carries."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_runner.domain.events import Finished, Outcome, RunEvent, Started, Text
from interlock_runner.domain.redaction import EventRedactor, Redactor
from interlock_runner.domain.sse import EventTooLarge, ServerSentEventParser
from interlock_runner.domain.ui_stream import CUT, UiStream

# A person reads this answer in Slack; far beyond it something has gone wrong upstream.
MAX_ANSWER_CHARS = 400_000


class UserTokenRefused(ServiceError):
    """The platform does not accept the user token, or not for this agent."""

    kind = Kind.UNAUTHENTICATED
    reason = "USER_TOKEN_REFUSED"


class AgentNotAllowed(ServiceError):
    """The user may not run this agent."""

    kind = Kind.FORBIDDEN
    reason = "AGENT_NOT_ALLOWED"


class AgentNotFound(ServiceError):
    """The platform knows no such project or agent."""

    kind = Kind.NOT_FOUND
    reason = "AGENT_NOT_FOUND"


class ProjectNotFound(ServiceError):
    """The platform knows no such project, or not for this user."""

    kind = Kind.NOT_FOUND
    reason = "PROJECT_NOT_FOUND"


class TenantMissing(ServiceError):
    """The platform's paths name a tenant, and the call does not."""

    kind = Kind.INVALID
    reason = "TENANT_MISSING"


class MessageAlreadyRun(ServiceError):
    """The platform has seen this message id; it is not run again."""

    kind = Kind.CONFLICT
    reason = "MESSAGE_ALREADY_RUN"


class PlatformRateLimited(ServiceError):
    """The platform asks to wait."""

    kind = Kind.EXHAUSTED
    reason = "PLATFORM_RATE_LIMITED"


class PlatformRefused(ServiceError):
    """The platform calls the request malformed."""

    kind = Kind.INVALID
    reason = "PLATFORM_REFUSED"


class PlatformUnavailable(ServiceError):
    """The platform does not answer, or not as its contract says."""

    kind = Kind.UNAVAILABLE
    reason = "PLATFORM_UNAVAILABLE"


class StreamBroken(Exception):
    """The answer's connection broke in the middle."""


class StreamSilent(Exception):
    """The answer's connection said nothing for too long."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent the user may see."""

    agent_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Project:
    """A project the user may see, with its agents."""

    project_id: str
    name: str
    agents: tuple[Agent, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One run to be started.

    Attributes:
        message_id: The platform's idempotency key.
        entry_point: What brought the run about, in the platform's words.
    """

    project_id: str
    agent_id: str
    conversation_id: str
    message_id: str
    prompt: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run is ended from here.

    Attributes:
        total: The longest time a run may take.
        silence: The longest time the platform may say nothing.
    """

    total: timedelta
    silence: timedelta


class Platform(Protocol):
    """The agents platform, as far as this service needs it."""

    async def list_projects(self, token: Secret[str], tenant_id: str) -> list[Project]:
        """List every project of the user, with agents.

        Raises:
            UserTokenRefused, PlatformRateLimited, PlatformUnavailable: As named.
            TenantMissing: The paths need one.
        """

    async def list_agents(self, token: Secret[str], tenant_id: str, project_id: str) -> list[Agent]:
        """List the agents of one project.

        Raises:
            ProjectNotFound: No such project for this user. Else as `list_projects`.
        """

    def chat(
        self, token: Secret[str], question: Question, silence: timedelta
    ) -> AsyncGenerator[bytes, None]:
        """Start a run and yield its raw answer stream.

        The first item is always empty and says that the platform accepted the
        run. Closing the generator closes the connection.

        Args:
            token: The user's.
            question: What to run.
            silence: How long to wait for the first answer, and for each line.

        Raises:
            ServiceError: Before the first item: why the run was not started.
            StreamBroken, StreamSilent: After it.
        """


async def run(
    platform: Platform,
    token: Secret[str],
    question: Question,
    *,
    limits: Limits,
    redactor: Redactor,
) -> AsyncGenerator[RunEvent, None]:
    """Run an agent; yield what it says, and exactly one `Finished` at the end.

    No event holds a token. Closing the generator closes the connection to the
    platform.

    Raises:
        ServiceError: Only before the first event: the run was not started.
    """
    redaction = EventRedactor(redactor)
    async with aclosing(_answer(platform, token, question, limits)) as events:
        async for event in events:
            for shown in redaction.redact(event):
                yield shown


async def _answer(
    platform: Platform, token: Secret[str], question: Question, limits: Limits
) -> AsyncGenerator[RunEvent, None]:
    parser, stream, said, otherwise = ServerSentEventParser(), UiStream(), 0, CUT
    ends_at = asyncio.get_running_loop().time() + limits.total.total_seconds()
    async with aclosing(platform.chat(token, question, limits.silence)) as chunks:
        await _start(chunks, ends_at)
        yield Started()
        try:
            while said <= MAX_ANSWER_CHARS and (chunk := await _next(chunks, ends_at)) is not None:
                for meant in _meanings(parser, stream, chunk):
                    yield meant
                    if isinstance(meant, Finished):
                        return
                    said += len(meant.text) if isinstance(meant, Text) else 0
            if said > MAX_ANSWER_CHARS:
                otherwise = Finished(Outcome.LIMIT_REACHED, "ANSWER_TOO_LONG")
        except StreamBroken:
            otherwise = CUT
        except StreamSilent:
            otherwise = Finished(Outcome.LIMIT_REACHED, "STREAM_SILENT")
        except EventTooLarge:
            otherwise = Finished(Outcome.LIMIT_REACHED, "EVENT_TOO_LARGE")
        except TimeoutError:
            otherwise = Finished(Outcome.LIMIT_REACHED, "RUN_TOO_LONG")
    for meant in stream.end(otherwise):
        yield meant


def _meanings(parser: ServerSentEventParser, stream: UiStream, chunk: bytes) -> Iterator[RunEvent]:
    for event in parser.feed(chunk):
        yield from stream.interpret(event)


async def _start(chunks: AsyncGenerator[bytes, None], ends_at: float) -> None:
    try:
        await _next(chunks, ends_at)
    except TimeoutError as error:
        raise PlatformUnavailable("the agents platform does not answer") from error


async def _next(chunks: AsyncGenerator[bytes, None], ends_at: float) -> bytes | None:
    """Wait for the next chunk; None at the end, TimeoutError when the run's time is up."""
    async with asyncio.timeout_at(ends_at):
        return await anext(chunks, None)
