"""Time as a parameter."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from interlock_chassis.errors import Kind, ServiceError

# Signatures of Slack are good for 5 minutes, grants for 15.
MOST_SKEW = timedelta(minutes=1)


class ClockSkew(ServiceError):
    """This machine's clock and the database's differ by more than a minute."""

    kind = Kind.UNAVAILABLE
    reason = "CLOCK_SKEW"


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


def require_agreement(clock: Clock, database: datetime) -> None:
    """Compare the machine's clock with the database's, which all replicas share.

    With a wrong one, signatures and grants would be taken that have expired,
    refused that have not, or issued for another time.

    Args:
        clock: The machine's.
        database: What the database's clock said just now.

    Raises:
        ClockSkew: They differ by more than a minute; logged as an error.
    """
    if abs(database - clock.now()) > MOST_SKEW:
        structlog.get_logger().error("clock_skew", database=database.isoformat())
        raise ClockSkew
