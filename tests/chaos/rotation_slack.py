"""Slack's rules of token rotation, without a network, in virtual time.

Rules: docs.slack.dev/authentication/using-token-rotation. What Slack leaves
open (how long it forgives a used refresh token, and which of two pairs then
lives on) differs from world to world.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

LIFE_S = 43_200
MAX_ACTIVE = 2


@dataclass(frozen=True)
class SlackRules:
    """What is left open by Slack's documentation.

    Attributes:
        grace_s: How long a used refresh token works again.
        newest_wins: Whether a second pair for one refresh token ends the first.
        reinstall_ends_old: Whether an install ends the refresh tokens before it.
    """

    grace_s: float
    newest_wins: bool
    reinstall_ends_old: bool


@dataclass
class Pair:
    """A pair that was issued, and what became of it.

    Attributes:
        parent: Number of the pair whose refresh token was spent; 0 for an install.
        used_at: When its refresh token was spent first.
        is_dead: Its refresh token is not taken any more.
        is_revoked: Its access token is not taken any more.
    """

    number: int
    parent: int
    issued_at: float
    used_at: float | None = None
    children: list[int] = field(default_factory=list)
    is_dead: bool = False
    is_revoked: bool = False

    @property
    def access(self) -> str:
        """The text of the access token."""
        return f"xoxe.xoxb-1-{self.number}"

    @property
    def refresh(self) -> str:
        """The text of the refresh token."""
        return f"xoxe-1-{self.number}"


class SlackWorld:
    """One bot's chain at Slack."""

    def __init__(self, rules: SlackRules, now: Callable[[], float]) -> None:
        self.rules = rules
        self.pairs: list[Pair] = []
        self.is_uninstalled = False
        self._now = now

    def install(self) -> Pair:
        """Issue what an install gives."""
        if self.rules.reinstall_ends_old:
            for pair in self.pairs:
                pair.is_dead = True
        self.is_uninstalled = False
        return self._issue(0)

    def exchange(self, refresh: str) -> Pair | None:
        """Spend a refresh token; None refuses it."""
        pair = self.find(refresh)
        if pair is None or pair.is_dead or self.is_uninstalled:
            return None
        now = self._now()
        if pair.used_at is not None:
            has_moved_on = any(self.pairs[number - 1].used_at for number in pair.children)
            if now - pair.used_at >= self.rules.grace_s or has_moved_on:
                return None
            if self.rules.newest_wins:
                for number in pair.children:
                    self.pairs[number - 1].is_dead = True
        pair.used_at = pair.used_at if pair.used_at is not None else now
        issued = self._issue(pair.number)
        pair.children.append(issued.number)
        return issued

    def uninstall(self) -> None:
        """End everything."""
        self.is_uninstalled = True
        for pair in self.pairs:
            pair.is_dead = pair.is_revoked = True

    def revoke(self, access: str) -> None:
        """End one access token."""
        pair = self.find_access(access)
        if pair is not None:
            pair.is_revoked = True

    def is_alive(self, access: str) -> bool:
        """Tell whether an access token works."""
        pair = self.find_access(access)
        return pair is not None and not pair.is_revoked and self._now() < pair.issued_at + LIFE_S

    def can_refresh(self, refresh: str) -> bool:
        """Tell whether a refresh token leads on: unused, and not ended."""
        pair = self.find(refresh)
        return pair is not None and not pair.is_dead and pair.used_at is None

    def living(self) -> list[Pair]:
        """List the pairs that lead on."""
        return [pair for pair in self.pairs if self.can_refresh(pair.refresh)]

    def root_of(self, pair: Pair) -> int:
        """Return the number of the install that a pair descends from."""
        while pair.parent:
            pair = self.pairs[pair.parent - 1]
        return pair.number

    def find(self, refresh: str) -> Pair | None:
        """Find a pair by its refresh token."""
        return self._find(refresh.removeprefix("xoxe-1-"))

    def find_access(self, access: str) -> Pair | None:
        """Find a pair by its access token."""
        return self._find(access.removeprefix("xoxe.xoxb-1-"))

    def _find(self, number: str) -> Pair | None:
        place = int(number) if number.isdigit() else 0
        return self.pairs[place - 1] if 0 < place <= len(self.pairs) else None

    def _issue(self, parent: int) -> Pair:
        pair = Pair(len(self.pairs) + 1, parent, self._now())
        self.pairs.append(pair)
        active = [each for each in self.pairs if self.is_alive(each.access)]
        for old in active[:-MAX_ACTIVE]:
            old.is_revoked = True
        return pair
