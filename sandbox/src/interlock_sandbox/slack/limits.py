"""How often Slack lets an app ask: tiers, per method and workspace.

Source: docs.slack.dev/apis/web-api/rate-limits; for history and replies of
apps outside of Slack's Marketplace the changelog of May 2025.
"""

import math
from collections import deque
from collections.abc import Callable
from enum import Enum

from interlock_sandbox.slack.switches import Switches

WINDOW_S = 60
# "1 per second", and "short bursts" of no stated length.
POSTS_PER_S, POSTS_AT_ONCE = 1.0, 10
# "Several hundred messages per minute" in a workspace.
POSTS_PER_MINUTE = 300
HISTORY = frozenset({"conversations.history", "conversations.replies"})


class Tier(Enum):
    """How many calls of one method a workspace may see a minute, at least."""

    ONE = 1
    TWO = 20
    THREE = 50
    FOUR = 100
    SPECIAL = 600


class Limits:
    """Count calls, and say how long to wait past a limit.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, switches: Switches, now: Callable[[], float]) -> None:
        self._switches = switches
        self._now = now
        self._calls: dict[tuple[str, str], deque[float]] = {}
        self._posts: dict[str, tuple[float, float]] = {}

    def wait(self, method: str, tier: Tier, team: str, channel: str = "") -> int:
        """Count a call, or return how many seconds it comes too early.

        Args:
            method: The method's name.
            tier: The method's tier.
            team: The workspace or Enterprise whose token asks.
            channel: Where `chat.postMessage` posts to.
        """
        if method in HISTORY and self._switches.history_once_a_minute:
            return self._count((method, team), Tier.ONE.value)
        if not self._switches.rate_limits:
            return 0
        if method == "chat.postMessage":
            return self._count_post(team, channel)
        return self._count((method, team), tier.value)

    def forget(self) -> None:
        """Start counting anew."""
        self._calls.clear()
        self._posts.clear()

    def _count(self, key: tuple[str, str], most: int) -> int:
        now = self._now()
        calls = self._calls.setdefault(key, deque())
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        if len(calls) >= most:
            return max(1, math.ceil(calls[0] + WINDOW_S - now))
        calls.append(now)
        return 0

    def _count_post(self, team: str, channel: str) -> int:
        now = self._now()
        left, since = self._posts.get(channel, (float(POSTS_AT_ONCE), now))
        left = min(POSTS_AT_ONCE, left + (now - since) * POSTS_PER_S)
        if left < 1:
            return max(1, math.ceil((1 - left) / POSTS_PER_S))
        wait = self._count(("chat.postMessage", team), POSTS_PER_MINUTE)
        if not wait:
            self._posts[channel] = (left - 1, now)
        return wait
