"""What was asked of Nango and of the provider, and trouble on demand."""

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT_REQUESTS = 5_000
ANY_OPERATION = "*"


@dataclass
class Record:
    """One request, without its secrets.

    Attributes:
        operation: What was asked for; `slack.…` is what Nango asked the provider.
        acted: It was done, whatever answer arrived.
        fault: The kind of fault that it met on demand.
    """

    number: int
    at: float
    operation: str
    method: str
    path: str
    acted: bool = False
    status: int = 0
    error: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a coming request.

    Attributes:
        kind: `delay` waits `seconds` before acting, `drop_reply` acts and then
            cuts the connection, `http_status` answers `status` without JSON and
            does nothing, `rate_limit` answers as if the window were used up.
    """

    kind: str
    status: int = 503
    seconds: float = 1


FAULT_KINDS = frozenset({"delay", "drop_reply", "http_status", "rate_limit"})


@dataclass
class Records:
    """The latest requests, and the faults that wait."""

    now: Callable[[], float]
    requests: deque[Record] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    refused_refreshes: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    def begin(self, operation: str, method: str, path: str) -> Record:
        """Note a request as it arrives; the caller fills in how it went."""
        self.asked += 1
        record = Record(self.asked, self.now(), operation, method, path)
        self.requests.append(record)
        return record

    def rows(self, operation: str | None, after: int) -> list[dict[str, Any]]:
        """List requests, of one operation if named, with a number above `after`."""
        return [
            dataclasses.asdict(record)
            for record in self.requests
            if record.number > after and operation in {None, record.operation}
        ]

    def add_faults(self, operation: str, fault: Fault, count: int) -> None:
        """Let the next requests of an operation go wrong; `*` means any."""
        self.faults.setdefault(operation, deque()).extend([fault] * count)

    def next_fault(self, operation: str) -> Fault | None:
        """Take the fault that waits for a request of this operation, if one does."""
        for name in (operation, ANY_OPERATION):
            if waiting := self.faults.get(name):
                return waiting.popleft()
        return None

    def refuses_refresh(self, connection_id: str) -> bool:
        """Tell whether the provider is to refuse the next refresh, and count it."""
        left = self.refused_refreshes.get(connection_id, 0)
        if left > 0:
            self.refused_refreshes[connection_id] = left - 1
        return left > 0
