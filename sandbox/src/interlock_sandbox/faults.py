"""What goes wrong on demand, and when."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.web import ControlBody, refuse

MAX_COUNT = 1000
ANY = "*"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong; which fields matter depends on its kind."""

    kind: str
    error: str
    seconds: float
    status: int


@dataclass
class _Rule:
    """Which requests a fault is for, and how many are left.

    Attributes:
        target: The name of what is asked, or `*`.
        place: The workspace or tenant that asks; empty for any.
        after: How many requests pass before it strikes.
        left: How many it strikes then.
    """

    target: str
    place: str
    after: int
    left: int
    fault: Fault


@dataclass
class Faults:
    """The faults that wait.

    Attributes:
        kinds: What can go wrong here.
    """

    kinds: frozenset[str]
    _rules: list[_Rule] = field(default_factory=list)

    def take(self, target: str, place: str | None) -> Fault | None:
        """Return the fault that strikes a request; it is used up by that."""
        for rule in self._rules:
            if rule.target not in {ANY, target} or rule.place not in {"", place}:
                continue
            if rule.after:
                rule.after -= 1
                continue
            rule.left -= 1
            if not rule.left:
                self._rules.remove(rule)
            return rule.fault
        return None

    def add(self, body: ControlBody, *, target: str, place: str, status: int) -> None:
        """Add what a control request describes.

        Args:
            body: With `kind`, and optionally `count`, `after`, `error`, `seconds`, `status`.
            target: What the fault is for.
            place: Whose requests it is for; empty for anybody's.
            status: The status of a fault that names none.
        """
        kind, count = body.text("kind"), int(body.number("count", 1))
        after, status = int(body.number("after", 0)), int(body.number("status", status))
        if kind not in self.kinds:
            refuse(HTTPStatus.BAD_REQUEST, f"kind must be one of {sorted(self.kinds)}")
        if not 1 <= count <= MAX_COUNT or not 0 <= after <= MAX_COUNT:
            refuse(HTTPStatus.BAD_REQUEST, f"count must be 1 to {MAX_COUNT}, after no more")
        if status not in set(HTTPStatus):
            refuse(HTTPStatus.BAD_REQUEST, "status must be one of HTTP's")
        error = body.text("error", "internal_error")
        fault = Fault(kind, error, body.number("seconds", 1), status)
        self._rules.append(_Rule(target, place, after, count, fault))

    def clear(self) -> None:
        """Forget the faults that wait."""
        self._rules.clear()

    def show(self) -> list[Mapping[str, Any]]:
        """List the faults that wait, as the control API shows them."""
        return [
            {**asdict(rule.fault), "for": rule.target, "place": rule.place}
            | {"after": rule.after, "left": rule.left}
            for rule in self._rules
        ]


async def cut_short(request: web.Request, response: web.Response) -> web.StreamResponse:
    """Send the first half of an answer that announces its whole length, and hang up."""
    body = response.body if isinstance(response.body, bytes) else b""
    partial = web.StreamResponse(status=response.status, headers=response.headers)
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(body[: len(body) // 2])
    if request.transport:
        # Not abort(): what was written so far has to arrive.
        request.transport.close()
    return partial
