"""Stop asking a peer that does not answer, and look again soon.

Knows no peer and reads no clock.
"""

from datetime import timedelta


class CircuitOpen(Exception):
    """The peer failed too often in a row; it is not asked now.

    Attributes:
        retry_after: When one question may pass again.
    """

    def __init__(self, retry_after: timedelta) -> None:
        self.retry_after = retry_after
        super().__init__(f"open for another {retry_after.total_seconds():.3f} s")


class CircuitBreaker:
    """Let questions pass while a peer answers, and one each `rest` while it does not.

    A question that passed and came to nothing, because its asker went away,
    need not be reported: the next one passes `rest` later all the same.

    Args:
        failures: So many failures in a row open the circuit.
        rest: How long an open circuit lets nothing pass, and so about how long
            the peer's return can go unnoticed.
    """

    def __init__(self, *, failures: int, rest: timedelta) -> None:
        self._limit = failures
        self._rest = rest.total_seconds()
        self._failures = 0
        self._next_pass = 0.0

    def admit(self, now: float) -> None:
        """Let a question pass.

        Args:
            now: Seconds of a clock that never steps back; so everywhere here.

        Raises:
            CircuitOpen: Not now.
        """
        if self._failures < self._limit:
            return
        if now < self._next_pass:
            raise CircuitOpen(timedelta(seconds=self._next_pass - now))
        self._next_pass = now + self._rest

    def failed(self, now: float) -> bool:
        """Note that a question failed; True when that opened the circuit."""
        self._failures += 1
        if self._failures != self._limit:
            return False
        self._next_pass = now + self._rest
        return True

    def succeeded(self) -> bool:
        """Note that the peer answered; True when that closed the circuit."""
        was_open = self._failures >= self._limit
        self._failures = 0
        return was_open
