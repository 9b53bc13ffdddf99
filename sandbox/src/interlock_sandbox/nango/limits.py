"""Nango's rate limit: a fixed window for each kind of caller."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from interlock_sandbox.nango.refusals import Refusal

WINDOW_S = 60


@dataclass
class _Window:
    ends_at: float
    used: int = 0


class RateLimit:
    """Count requests; the first one opens a window of a minute.

    Args:
        limit: Requests per window and bucket.
    """

    def __init__(self, limit: int, now: Callable[[], float]) -> None:
        self._limit = limit
        self._now = now
        self._windows: dict[str, _Window] = {}

    def take(self, bucket: str, method: str, path: str) -> dict[str, str]:
        """Count one request; return the headers that tell how many are left.

        Raises:
            Refusal: The bucket is empty until its window ends.
        """
        at = self._now()
        window = self._windows.get(bucket)
        if window is None or at >= window.ends_at:
            window = self._windows[bucket] = _Window(at + WINDOW_S)
        window.used += 1
        headers = {
            "X-RateLimit-Limit": str(self._limit),
            "X-RateLimit-Remaining": str(max(0, self._limit - window.used)),
            "X-RateLimit-Reset": str(math.floor(window.ends_at)),
        }
        if window.used > self._limit:
            headers["Retry-After"] = str(math.floor(window.ends_at - at))
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_request",
                headers=headers,
                method=method,
                path=path,
            )
        return headers
