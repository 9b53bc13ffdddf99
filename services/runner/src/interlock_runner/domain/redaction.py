"""Keep tokens out of what the platform says.

The platform holds the user's token while it answers, and an agent's tools may
hold others. An answer that repeats one would carry it into a channel. So the
token of the call, anything shaped like a JWT and anything shaped like a Slack
token is replaced, also where the pieces of a stream cut it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from interlock_runner.domain.events import (
    Approval,
    Finished,
    RunEvent,
    Source,
    Started,
    Text,
    Tool,
)

MARK = "[redacted]"
# Enough to tell a person what went wrong; the rest is in the platform's own logs.
MAX_DETAIL_CHARS = 500
# The longest beginning of a token that is held back; the longest token of a call is half of it.
MAX_HELD_CHARS = 8192

# `eyJ` is what `{"` of a JWT's header becomes; header and payload are enough to be one.
_TOKEN = re.compile(
    r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*)?"
    r"|x(?:ox[a-z]|app|wfp)-[A-Za-z0-9-]{6,}"
    r"|xoxe\.xox[a-z]-[A-Za-z0-9-]{6,}"
)
# What may still become one of these when more text comes.
_BEGINNING = re.compile(
    r"(?:eyJ[A-Za-z0-9_.-]*|ey?"
    r"|xox[a-z0-9.-][A-Za-z0-9.-]*|xox?|xapp-?[A-Za-z0-9-]*|xap?|xwfp-?[A-Za-z0-9-]*|xwf?|x)\Z"
)


class Redactor:
    """Replace tokens in texts; never shows the one it looks for.

    Args:
        token: The token of the call, replaced wherever it stands.
    """

    __slots__ = ("_token",)

    def __init__(self, token: str) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "Redactor()"

    def redact(self, text: str) -> str:
        """Replace every token in a whole text."""
        return _TOKEN.sub(MARK, self._without_own(text))

    def split(self, text: str) -> tuple[str, str]:
        """Split the text so far into what may be shown and what must wait for more.

        The first part is redacted; the second may be the beginning of a token.
        """
        text = self._without_own(text)
        beginning = _BEGINNING.search(text)
        at = min(beginning.start() if beginning else len(text), self._own_beginning(text))
        held = text[at:]
        if len(held) > MAX_HELD_CHARS:
            return _TOKEN.sub(MARK, text[:at]) + MARK, ""
        return _TOKEN.sub(MARK, text[:at]), held

    def _without_own(self, text: str) -> str:
        return text.replace(self._token, MARK)

    def _own_beginning(self, text: str) -> int:
        """Find where the call's own token may have begun at the end of the text."""
        at = text.find(self._token[0], max(0, len(text) - len(self._token) + 1))
        while at >= 0 and not self._token.startswith(text[at:]):
            at = text.find(self._token[0], at + 1)
        return at if at >= 0 else len(text)


class EventRedactor:
    """Redact the events of one run, in order.

    Text that may be the beginning of a token is held back until the text after
    it tells; other events pass it.

    Args:
        redactor: What to look for.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def redact(self, event: RunEvent) -> Iterator[RunEvent]:
        """Yield what may be shown now; all of it once the event is `Finished`."""
        clean = self._redactor.redact
        match event:
            case Text(text):
                shown, self._held = self._redactor.split(self._held + text)
                if shown:
                    yield Text(shown)
            case Finished(detail=detail):
                if held := clean(self._held):
                    yield Text(held)
                self._held = ""
                yield replace(event, detail=clean(detail)[:MAX_DETAIL_CHARS])
            case Tool(call, name, state):
                yield Tool(clean(call), clean(name), state)
            case Approval(approval, call, name):
                yield Approval(clean(approval), clean(call), clean(name))
            case Source(title, url):
                yield Source(clean(title), clean(url))
            case Started():
                yield event
