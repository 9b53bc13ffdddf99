"""The edges of a process's steps, and its death at one of them.

A step is one call of a port; its edges are `METHOD:N:before` and
`METHOD:N:after`, counted from when the process is armed.
"""

import functools
import inspect
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

_Step = Callable[..., Awaitable[Any]]


class Edges:
    """Where the process is, in steps.

    Args:
        wanted: The edge to die at.
        record: Where the edges that were passed are written to, one a line.
        tell: Called once the process counts.
    """

    def __init__(self, wanted: str, record: Path, tell: Callable[[], None]) -> None:
        self._wanted = wanted
        self._tell = tell
        self._record = record
        self._begun: Counter[str] = Counter()
        self._is_armed = False

    def arm(self) -> None:
        """Count from here."""
        self._is_armed = True
        self._tell()

    def put_around(self, ports: Collection[type], beside: Collection[str]) -> None:
        """Put edges around every call of these ports, but for those named."""
        for port in ports:
            for name, step in _steps_of(port, beside).items():
                setattr(port, name, self.around(name, step))

    def around(self, name: str, step: _Step) -> _Step:
        """Put the two edges around a step."""

        @functools.wraps(step)
        async def edged(*arguments: Any, **named: Any) -> Any:
            self._begun[name] += self._is_armed
            place = f"{name}:{self._begun[name]}"
            self._pass(f"{place}:before")
            result = await step(*arguments, **named)
            self._pass(f"{place}:after")
            return result

        return edged

    def _pass(self, edge: str) -> None:
        if not self._is_armed:
            return
        if edge == self._wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        with self._record.open("a") as record:
            print(edge, file=record)


def _steps_of(port: type, beside: Collection[str]) -> Mapping[str, _Step]:
    return {
        name: method
        for name, method in vars(port).items()
        if inspect.iscoroutinefunction(method) and name[0] != "_" and name not in beside
    }
