"""The record of everything that an app asked of the Slack stand-in."""

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Enough to judge a long test run by; older calls are forgotten.
KEPT_CALLS = 10_000
# The record is shown to whoever asks for it.
_SECRET_ARGUMENTS = frozenset({"token", "client_secret", "code", "refresh_token"})


@dataclass
class Record:
    """One call as it was asked, without its secrets.

    Attributes:
        team: The Workspace or Enterprise whose token asked.
        acted: The method did its work, whatever answer arrived.
        error: Why it did not.
        fault: The kind of fault that the call met on demand.
    """

    number: int
    at: float
    method: str
    team: str | None = None
    user: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    acted: bool = False
    error: str | None = None
    fault: str | None = None


class CallLog:
    """The latest calls, oldest first."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._records: deque[Record] = deque(maxlen=KEPT_CALLS)
        self._asked = 0

    def begin(self, method: str) -> Record:
        """Note a call as it arrives; the caller fills in how it went."""
        self._asked += 1
        record = Record(self._asked, self._now(), method)
        self._records.append(record)
        return record

    def rows(self, method: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """List calls, of one method if named, with a number above `after`."""
        return [
            dataclasses.asdict(record)
            for record in self._records
            if record.number > after and method in {None, record.method}
        ]


def without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as they may be recorded."""
    return {name: value for name, value in arguments.items() if name not in _SECRET_ARGUMENTS}
