"""The answer stream: every transcript of the real writers, and what it means."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_runner.domain.events import Finished, Outcome, RunEvent, Text
from interlock_runner.domain.sse import (
    MAX_EVENT_BYTES,
    EventTooLarge,
    ServerSentEvent,
    ServerSentEventParser,
)
from interlock_runner.domain.ui_stream import UiStream

FIXTURES = Path(__file__).parents[4] / "tests" / "fixtures"

COMPLETED = Finished(Outcome.COMPLETED)
CUT = Finished(Outcome.INCOMPLETE, "STREAM_CUT")
# Outcome of each recorded stream, and the text a reader sees.
EXPECTED: dict[str, tuple[Finished, str]] = {
    "abort": (
        Finished(Outcome.INCOMPLETE, "RUN_ABORTED"),
        "partial",
    ),
    "empty": (CUT, ""),
    "eof-no-done": (CUT, "half"),
    "execute-throws": (Finished(Outcome.FAILED, "AGENT_FAILED", "An error occurred."), ""),
    "interleaved": (COMPLETED, "A1A2\n\nB1"),
    "length": (Finished(Outcome.INCOMPLETE, "ANSWER_TOO_LONG"), "cut"),
    "no-finish": (CUT, "end without finish"),
    "tool-error": (COMPLETED, "sorry"),
    "truncated": (CUT, "half"),
    "upstream-error": (Finished(Outcome.FAILED, "AGENT_FAILED", "Agent failed"), ""),
}


def body_of(path: Path) -> bytes:
    """Return the bytes after the transcript's blank line, less the recorder's own note."""
    body = path.read_bytes().partition(b"\n\n")[2]
    return body.partition(b"\n[client error")[0]


def read(body: bytes, size: int = 1 << 16) -> list[RunEvent]:
    """Interpret a whole body, cut into chunks of `size` bytes."""
    parser, stream = ServerSentEventParser(), UiStream()
    events: list[RunEvent] = []
    for start in range(0, len(body), size):
        for event in parser.feed(body[start : start + size]):
            for meant in stream.interpret(event):
                events.append(meant)
                if isinstance(meant, Finished):
                    return events
    return [*events, *stream.end()]


def text_of(events: list[RunEvent]) -> str:
    """Join the text pieces."""
    return "".join(event.text for event in events if isinstance(event, Text))


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("name", EXPECTED)
def test_each_recorded_ending_is_told_apart(version: str, name: str) -> None:
    """Complete, failed and cut answers of the real AI SDK are never confused."""
    events = read(body_of(FIXTURES / f"ai-sdk-{version}-sse" / f"{name}.txt"))
    outcome, text = EXPECTED[name]
    last = events[-1]
    assert isinstance(last, Finished)
    # The wording of an abort differs between versions and promises nothing.
    detail = last.detail if outcome.reason == "RUN_ABORTED" else outcome.detail
    assert last == replace(outcome, detail=detail)
    assert text_of(events) == text


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_recorded_stream_ends_exactly_once(version: str) -> None:
    """Whatever the writer sends, exactly one `Finished` comes, and it comes last."""
    transcripts = sorted((FIXTURES / f"ai-sdk-{version}-sse").glob("*.txt"))
    assert len(transcripts) >= 30
    for path in transcripts:
        if path.name.startswith("http-"):
            continue
        events = read(body_of(path))
        assert [isinstance(event, Finished) for event in events].count(True) == 1, path.name
        assert isinstance(events[-1], Finished), path.name


def test_the_platform_answer_is_complete_at_its_completion_operation() -> None:
    """A run of the platform ends at `completion`, without waiting for the connection to end."""
    body = (FIXTURES / "run-api-streams" / "run_api_0.37_ok.sse.txt").read_bytes()
    body = body[: body.index(b"data: [DONE]")]
    events = read(body)
    assert events[-1] == COMPLETED
    assert text_of(events) == "Hello from the fake model."


def test_a_failure_under_http_200_is_a_failure() -> None:
    """The platform's usual error, an operation in a 200 stream, is shown with its first cause."""
    body = (FIXTURES / "run-api-streams" / "run_api_0.37_model_failure.sse.txt").read_bytes()
    assert read(body)[-1] == Finished(
        Outcome.FAILED, "AGENT_FAILED", "Maximum error limit (3) reached"
    )


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"type":"data-operation","data":{"type":"error","message":"boom"}}',
        b'data: {"type":"error","errorText":"boom"}',
        b'data: {"type":"error","message":"boom","severity":"error","timestamp":1}',
        b'data: {"type":"error","error":"boom"}',
        b'event: error\ndata: {"error":"boom"}',
    ],
)
def test_all_five_error_shapes_are_failures(error: bytes) -> None:
    """Each of the platform's five error shapes ends the run as failed, with its words."""
    events = read(error + b"\n\ndata: [DONE]\n\n")
    assert events == [Finished(Outcome.FAILED, "AGENT_FAILED", "boom")]


@given(size=st.integers(1, 40))
def test_the_cut_of_the_chunks_does_not_matter(size: int) -> None:
    """Any split of the bytes, also inside a character, gives the same events."""
    body = body_of(FIXTURES / "ai-sdk-6-sse" / "unicode.txt")
    assert read(body, size) == read(body)


@given(
    text=st.text(min_size=1).filter(lambda text: text.strip("\r\n\x00") != ""),
    ending=st.sampled_from(["\n", "\r", "\r\n"]),
)
def test_every_line_ending_and_every_character_arrives(text: str, ending: str) -> None:
    """LF, CR and CRLF end lines; U+2028 and its kin inside JSON do not."""
    data = json.dumps({"t": text}, ensure_ascii=False)
    body = f": comment{ending}data: {data}{ending}{ending}".encode("utf-8", "surrogatepass")
    parser = ServerSentEventParser()
    events = [event for byte in body for event in parser.feed(bytes([byte]))]
    assert events == [ServerSentEvent("message", body_text(data))]


def body_text(data: str) -> str:
    """Return data as the wire carries it: what UTF-8 cannot hold is replaced."""
    return data.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def test_an_endless_event_is_refused() -> None:
    """An event without an end is cut at the limit, not collected for ever."""
    parser = ServerSentEventParser()
    for _ in range(MAX_EVENT_BYTES // 1024):
        assert list(parser.feed(b"x" * 1024)) == []
    with pytest.raises(EventTooLarge):
        list(parser.feed(b"x"))
