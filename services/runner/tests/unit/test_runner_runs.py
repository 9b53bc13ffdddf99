"""Runs against a platform that does what the test says."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import timedelta

import pytest

from interlock_chassis.secret import Secret
from interlock_runner.domain.events import Finished, Outcome, RunEvent, Started, Text
from interlock_runner.domain.redaction import MARK, Redactor
from interlock_runner.domain.sse import MAX_EVENT_BYTES
from interlock_runner.runs import (
    MAX_ANSWER_CHARS,
    Agent,
    AgentNotAllowed,
    Limits,
    PlatformUnavailable,
    Project,
    Question,
    StreamBroken,
    StreamSilent,
    run,
)

TOKEN = "user-token"
QUESTION = Question("project", "agent", "conversation", "message", "hello", "app_mention")
LONG, SHORT = timedelta(minutes=1), timedelta(milliseconds=20)


class FakePlatform:
    """A platform with one script: refuse, or say these chunks, then fail, hang or end."""

    def __init__(
        self,
        chunks: Iterable[bytes] = (),
        *,
        refusal: Exception | None = None,
        failure: Exception | None = None,
        accepts: bool = True,
        hangs: bool = False,
    ) -> None:
        self._chunks = list(chunks)
        self._refusal = refusal
        self._failure = failure
        self._accepts = accepts
        self._hangs = hangs
        self.closed = False

    async def list_projects(self, token: Secret[str], tenant_id: str) -> list[Project]:
        """List nothing."""
        return []

    async def list_agents(self, token: Secret[str], tenant_id: str, project_id: str) -> list[Agent]:
        """List nothing."""
        return []

    async def chat(
        self, token: Secret[str], question: Question, silence: timedelta
    ) -> AsyncGenerator[bytes, None]:
        """Follow the script."""
        try:
            if self._refusal:
                raise self._refusal
            if not self._accepts:
                await asyncio.Event().wait()
            yield b""
            for chunk in self._chunks:
                yield chunk
            if self._hangs:
                await asyncio.Event().wait()
            if self._failure:
                raise self._failure
        finally:
            self.closed = True


def say(text: str, block: str = "t") -> bytes:
    """Write one piece of an answer as the platform does."""
    return data({"type": "text-delta", "id": block, "delta": text})


def data(chunk: object) -> bytes:
    """Write one event of the stream."""
    return f"data: {json.dumps(chunk)}\n\n".encode()


ENDED = data({"type": "finish"}) + b"data: [DONE]\n\n"


async def events_of(platform: FakePlatform, total: timedelta = LONG) -> list[RunEvent]:
    """Run to the end."""
    limits = Limits(total=total, silence=LONG)
    events = run(platform, Secret(TOKEN), QUESTION, limits=limits, redactor=Redactor(TOKEN))
    return [event async for event in events]


async def test_a_run_starts_speaks_and_ends() -> None:
    """The events of an ordinary run, and a closed connection after it."""
    platform = FakePlatform([say("Hel"), say("lo") + ENDED, say("after the end")])
    assert await events_of(platform) == [
        Started(),
        Text("Hel"),
        Text("lo"),
        Finished(Outcome.COMPLETED),
    ]
    assert platform.closed


@pytest.mark.parametrize("refusal", [AgentNotAllowed(), PlatformUnavailable()])
async def test_a_refused_run_has_no_events(refusal: Exception) -> None:
    """Why a run was not started is an error, never an event."""
    platform = FakePlatform(refusal=refusal)
    with pytest.raises(type(refusal)):
        await events_of(platform)
    assert platform.closed


async def test_a_platform_that_never_accepts_is_unavailable() -> None:
    """When the time is up before the run started, there is no run to end."""
    platform = FakePlatform(accepts=False)
    with pytest.raises(PlatformUnavailable):
        await events_of(platform, SHORT)
    assert platform.closed


@pytest.mark.parametrize(
    ("failure", "end"),
    [
        (StreamBroken(), Finished(Outcome.INCOMPLETE, "STREAM_CUT")),
        (StreamSilent(), Finished(Outcome.LIMIT_REACHED, "STREAM_SILENT")),
        (None, Finished(Outcome.INCOMPLETE, "STREAM_CUT")),
    ],
)
async def test_a_cut_answer_is_never_complete(failure: Exception | None, end: Finished) -> None:
    """A reset, silence and an early end are told apart, after all that was said."""
    platform = FakePlatform([say("half"), data({"type": "finish"})], failure=failure)
    assert await events_of(platform) == [Started(), Text("half"), end]
    assert platform.closed


async def test_a_failure_told_before_the_silence_is_the_end() -> None:
    """A platform that says why it failed and then keeps the line open has failed."""
    error = data({"type": "error", "errorText": "quota"})
    end = (await events_of(FakePlatform([error], failure=StreamSilent())))[-1]
    assert end == Finished(Outcome.FAILED, "AGENT_FAILED", "quota")


async def test_a_run_that_takes_too_long_is_ended_from_here() -> None:
    """When the time is up the connection is closed and the reader is told why."""
    platform = FakePlatform([say("half")], hangs=True)
    end = Finished(Outcome.LIMIT_REACHED, "RUN_TOO_LONG")
    assert await events_of(platform, SHORT) == [Started(), Text("half"), end]
    assert platform.closed


async def test_an_answer_without_end_is_cut() -> None:
    """Far beyond what a person reads, the run is ended and the reader is told why."""
    piece = say("x" * 10_000)
    platform = FakePlatform([piece] * (MAX_ANSWER_CHARS // 10_000 + 5), hangs=True)
    events = await events_of(platform)
    assert events[-1] == Finished(Outcome.LIMIT_REACHED, "ANSWER_TOO_LONG")
    assert platform.closed


async def test_an_event_without_end_is_cut() -> None:
    """An endless event is not collected; the reader is told why the answer ends."""
    platform = FakePlatform([say("half"), b"data: " + b"x" * MAX_EVENT_BYTES], hangs=True)
    end = Finished(Outcome.LIMIT_REACHED, "EVENT_TOO_LARGE")
    assert await events_of(platform) == [Started(), Text("half"), end]
    assert platform.closed


async def test_waiting_blocks_are_not_lost_when_the_stream_breaks() -> None:
    """A paragraph that waited for an earlier one is shown before the end."""
    start = data({"type": "text-start", "id": "a"})
    platform = FakePlatform([start, say("A", "a"), say("B", "b")], failure=StreamBroken())
    text = "".join(event.text for event in await events_of(platform) if isinstance(event, Text))
    assert text == "A\n\nB"


async def test_who_stops_listening_closes_the_connection() -> None:
    """Closing the events in the middle closes the connection upstream."""
    platform = FakePlatform([say("half")], hangs=True)
    limits = Limits(total=LONG, silence=LONG)
    events = run(platform, Secret(TOKEN), QUESTION, limits=limits, redactor=Redactor(TOKEN))
    async with aclosing(events):
        assert await anext(events) == Started()
        assert await anext(events) == Text("half")
    assert platform.closed


async def test_an_echoed_token_is_redacted() -> None:
    """The user's token, cut over two pieces with a tool between them, is not shown."""
    tool = data({"type": "tool-input-start", "toolCallId": "c", "toolName": "t"})
    platform = FakePlatform([say("it is user-"), tool, say("token.") + ENDED])
    events = await events_of(platform)
    text = "".join(event.text for event in events if isinstance(event, Text))
    assert text == f"it is {MARK}."
