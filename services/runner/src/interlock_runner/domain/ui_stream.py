"""What a platform's answer stream means: chunks in, run events out.

The stream is that of the AI SDK's UI messages with the agents platform's own
`data-operation` parts. It reports failures in five shapes, mostly under HTTP
200, and ends in more ways than it should; only an explicit end counts as a
complete answer.
"""

import json
from collections.abc import Iterator
from typing import Any

from interlock_runner.domain.events import (
    Approval,
    Finished,
    Outcome,
    RunEvent,
    Source,
    Text,
    Tool,
    ToolState,
)
from interlock_runner.domain.sse import ServerSentEvent

# Text of blocks that wait for an earlier block to end.
MAX_WAITING_CHARS = 200_000

# A stream that ends without saying that it is complete.
CUT = Finished(Outcome.INCOMPLETE, "STREAM_CUT")

_TOOL_STATES = {
    "tool-output-available": ToolState.SUCCEEDED,
    "tool-output-error": ToolState.FAILED,
    "tool-input-error": ToolState.FAILED,
    "tool-output-denied": ToolState.DENIED,
}
# A finish reason that means the model stopped before it was done.
_CUT_REASONS = {"length": "ANSWER_TOO_LONG", "content-filter": "ANSWER_FILTERED"}


class UiStream:
    """Interpret one answer stream.

    Feed every server-sent event to `interpret`, then call `end` once if no
    `Finished` came. Exactly one `Finished` results.
    """

    def __init__(self) -> None:
        self._text = _TextBlocks()
        self._tools: dict[str, str] = {}
        self._failure: Finished | None = None
        self._finish: Finished | None = None

    def interpret(self, event: ServerSentEvent) -> Iterator[RunEvent]:
        """Yield what the event means; unknown types and fields mean nothing."""
        if event.data == "[DONE]":
            yield from self._text.flush()
            yield self._outcome()
            return
        try:
            chunk = json.loads(event.data)
        except (ValueError, RecursionError):
            self._fail("STREAM_UNREADABLE", "")
            return
        if not isinstance(chunk, dict):
            return
        if event.name == "error":
            self._fail("AGENT_FAILED", _words(chunk))
            return
        yield from self._chunk(chunk)

    def end(self, otherwise: Finished = CUT) -> Iterator[RunEvent]:
        """Yield what is left when the stream ends without saying so.

        Args:
            otherwise: How the run ended, unless the stream has told of a failure.
        """
        yield from self._text.flush()
        yield self._failure or otherwise

    def _outcome(self) -> Finished:
        return self._failure or self._finish or CUT

    def _fail(self, reason: str, detail: str) -> None:
        # Of several failures the first is the cause; the later ones repeat it.
        self._failure = self._failure or Finished(Outcome.FAILED, reason, detail)

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[RunEvent]:
        kind = chunk.get("type")
        match kind:
            case "text-start" | "text-delta" | "text-end":
                yield from self._text.take(kind, _string(chunk, "id"), _string(chunk, "delta"))
            case "error":
                self._fail("AGENT_FAILED", _words(chunk))
            case "abort":
                self._finish = Finished(Outcome.INCOMPLETE, "RUN_ABORTED", _string(chunk, "reason"))
            case "finish":
                self._take_finish(_string(chunk, "finishReason"))
            case "data-operation":
                yield from self._operation(chunk.get("data"))
            case _:
                yield from self._side_event(str(kind), chunk)

    def _take_finish(self, reason: str) -> None:
        if reason == "error":
            self._fail("AGENT_FAILED", "")
        elif reason in _CUT_REASONS:
            self._finish = Finished(Outcome.INCOMPLETE, _CUT_REASONS[reason])
        else:
            self._finish = self._finish or Finished(Outcome.COMPLETED)

    def _operation(self, data: object) -> Iterator[RunEvent]:
        if not isinstance(data, dict):
            return
        if data.get("type") == "error":
            self._fail("AGENT_FAILED", _words(data))
        elif data.get("type") == "completion":
            # Durable runs never send [DONE] and keep the connection open: this is the end.
            self._finish = self._finish or Finished(Outcome.COMPLETED)
            yield from self._text.flush()
            yield self._outcome()

    def _side_event(self, kind: str, chunk: dict[str, Any]) -> Iterator[RunEvent]:
        call = _string(chunk, "toolCallId")
        if kind in ("tool-input-start", "tool-input-available") and call not in self._tools:
            self._tools[call] = _string(chunk, "toolName")
            yield Tool(call, self._tools[call], ToolState.STARTED)
        elif kind in _TOOL_STATES and not chunk.get("preliminary"):
            yield Tool(call, self._tools.get(call, ""), _TOOL_STATES[kind])
        elif kind == "tool-approval-request":
            yield Approval(_string(chunk, "approvalId"), call, self._tools.get(call, ""))
        elif kind == "source-url":
            yield from _source(_string(chunk, "title"), _string(chunk, "url"))
        elif kind == "data-artifact":
            data = chunk.get("data")
            summary = data.get("artifactSummary") if isinstance(data, dict) else None
            if isinstance(summary, dict):
                yield from _source(_string(summary, "title"), _string(summary, "url"))


class _TextBlocks:
    """Put interleaved text blocks one after the other.

    Blocks may interleave, and the platform may reuse one id for every chunk.
    The block that speaks first streams; another waits until it has ended.
    Blocks with different ids are paragraphs of their own.
    """

    def __init__(self) -> None:
        self._current: str | None = None
        self._last: str | None = None
        self._waiting: dict[str, list[str]] = {}
        self._waiting_chars = 0
        self._ended: set[str] = set()

    def take(self, kind: str, block: str, delta: str) -> Iterator[Text]:
        if kind == "text-start":
            self._ended.discard(block)
            if self._current is None:
                self._current = block
        elif kind == "text-delta":
            yield from self._delta(block, delta)
        elif block == self._current:
            self._current = None
            yield from self._next()
        else:
            self._ended.add(block)

    def _delta(self, block: str, delta: str) -> Iterator[Text]:
        if self._current is None:
            self._current = block
        if block == self._current:
            yield from self._say(block, delta)
            return
        self._waiting.setdefault(block, []).append(delta)
        self._waiting_chars += len(delta)
        if self._waiting_chars > MAX_WAITING_CHARS:
            yield from self.flush()

    def _next(self) -> Iterator[Text]:
        while self._current is None and self._waiting:
            block = next(iter(self._waiting))
            yield from self._say(block, "".join(self._waiting.pop(block)))
            if block not in self._ended:
                self._current = block
        if not self._waiting:
            self._waiting_chars = 0

    def flush(self) -> Iterator[Text]:
        for block, pieces in self._waiting.items():
            yield from self._say(block, "".join(pieces))
        self._waiting.clear()
        self._waiting_chars = 0

    def _say(self, block: str, text: str) -> Iterator[Text]:
        if not text:
            return
        if self._last is not None and self._last != block:
            text = "\n\n" + text
        self._last = block
        yield Text(text)


def _source(title: str, url: str) -> Iterator[Source]:
    if url.startswith(("https://", "http://")):
        yield Source(title or url, url)


def _string(chunk: dict[str, Any], name: str) -> str:
    value = chunk.get(name)
    return value if isinstance(value, str) else ""


def _words(chunk: dict[str, Any]) -> str:
    for name in ("errorText", "message", "error"):
        if text := _string(chunk, name):
            return text
    return ""
