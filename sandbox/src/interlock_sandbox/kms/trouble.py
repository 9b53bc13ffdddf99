"""What was asked of the KMS stand-in, and trouble on demand."""

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT_CALLS = 10_000
ANY_METHOD = "*"


@dataclass
class Call:
    """One call, without its plaintext.

    Attributes:
        name: The key or version that it names.
        routing: The header that Google routes by.
        code: The status it ended with; empty while it is under way.
        fault: The kind of fault that it met on demand.
    """

    number: int
    at: float
    method: str
    name: str
    routing: str
    code: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with coming calls.

    Attributes:
        kind: `delay` acts after `seconds`; `hang` never answers; `unavailable`
            and `permission_denied` refuse; `wrong_crc` answers with wrong
            checksums, `unverified` without confirming the caller's, `other_key`
            with the name of another key, and `other_plaintext` with a plaintext
            of `size` bytes and a right checksum.
    """

    kind: str
    seconds: float = 1
    size: int = 16


FAULT_KINDS = frozenset(
    {
        "delay",
        "hang",
        "unavailable",
        "permission_denied",
        "wrong_crc",
        "unverified",
        "other_key",
        "other_plaintext",
    }
)


@dataclass
class Trouble:
    """The latest calls, and the faults that wait."""

    now: Callable[[], float]
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=KEPT_CALLS))
    asked: int = 0
    _waiting: dict[str, deque[tuple[Fault, int]]] = field(default_factory=dict)

    def begin(self, method: str, name: str, routing: str) -> Call:
        """Note a call as it arrives; the caller fills in how it went."""
        self.asked += 1
        call = Call(self.asked, self.now(), method, name, routing)
        self.calls.append(call)
        return call

    def rows(self, method: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """List calls, of one method if named, with a number above `after`."""
        return [
            dataclasses.asdict(call)
            for call in self.calls
            if call.number > after and method in {None, call.method}
        ]

    def add(self, method: str, fault: Fault, count: int = 1) -> None:
        """Let the next `count` calls of a method go wrong; `*` means any."""
        self._waiting.setdefault(method, deque()).append((fault, count))

    def clear(self) -> None:
        """Forget the faults that wait; calls that hang go on hanging."""
        self._waiting.clear()

    def take(self, method: str) -> Fault | None:
        """Take the fault that waits for a call of this method, if one does."""
        for name in (method, ANY_METHOD):
            if waiting := self._waiting.get(name):
                fault, left = waiting.popleft()
                if left > 1:
                    waiting.appendleft((fault, left - 1))
                return fault
        return None

    def list_waiting(self) -> dict[str, list[dict[str, Any]]]:
        """List the faults that wait, by method."""
        return {
            method: [{**dataclasses.asdict(fault), "left": left} for fault, left in waiting]
            for method, waiting in self._waiting.items()
            if waiting
        }
