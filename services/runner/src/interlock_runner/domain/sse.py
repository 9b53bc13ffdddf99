"""Server-sent events, parsed from bytes as they arrive."""

from collections.abc import Iterator
from dataclasses import dataclass

# The largest event taken. A tool's output can be large; an endless line is an attack or a fault.
MAX_EVENT_BYTES = 256 * 1024


_LF, _CR = 0x0A, 0x0D


class EventTooLarge(ValueError):
    """One server-sent event is larger than `MAX_EVENT_BYTES`."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name (`message` unless the stream says otherwise) and its data."""

    name: str
    data: str


class ServerSentEventParser:
    """Turn chunks of bytes into events, wherever the chunks are cut.

    Lines end at LF, CR or CRLF only. Text splitters that also know U+2028 must
    not be used: JSON may contain it unescaped, and does.

    Source:
        WHATWG HTML, section 9.2.6 "Interpreting an event stream".
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._skip_lf = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that the chunk completes.

        Raises:
            EventTooLarge: The event under way outgrew `MAX_EVENT_BYTES`.
        """
        start = 0
        if self._skip_lf and chunk:
            start = 1 if chunk[:1] == b"\n" else 0
            self._skip_lf = False
        while True:
            end = _line_end(chunk, start)
            if end < 0:
                self._line += chunk[start:]
                self._check(len(self._line))
                return
            self._line += chunk[start:end]
            event = self._take_line()
            start = end + 1
            if chunk[end] == _CR:
                if start == len(chunk):
                    self._skip_lf = True
                elif chunk[start] == _LF:
                    start += 1
            if event is not None:
                yield event

    def _check(self, extra: int) -> None:
        if self._size + extra > MAX_EVENT_BYTES:
            raise EventTooLarge(f"a server-sent event is larger than {MAX_EVENT_BYTES} bytes")

    def _take_line(self) -> ServerSentEvent | None:
        line = self._line.decode("utf-8", errors="replace")
        self._check(len(self._line))
        self._size += len(self._line)
        self._line.clear()
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, name = self._data, self._name or "message"
        self._data, self._name, self._size = [], "", 0
        return ServerSentEvent(name, "\n".join(data)) if data else None


def _line_end(chunk: bytes, start: int) -> int:
    lf, cr = chunk.find(b"\n", start), chunk.find(b"\r", start)
    if lf < 0 or cr < 0:
        return max(lf, cr)
    return min(lf, cr)
