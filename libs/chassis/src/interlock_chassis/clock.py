"""Time as a parameter."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where a use case reads the time."""

    def now(self) -> datetime:
        """Read the wall clock, as an aware UTC instant."""
        ...

    def monotonic(self) -> float:
        """Read a clock that never steps back, in seconds from an unknown start."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Read the wall clock, as an aware UTC instant."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Read a clock that never steps back, in seconds from an unknown start."""
        return time.monotonic()
