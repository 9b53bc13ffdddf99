"""End a workspace's running answers when the app has left it, in every worker process.

Whoever learns of the end need not be the one who answers. The word goes through
the gateway's database; a process that misses it still ends its answers, when
Slack refuses the next piece and the vault has no token any more.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Protocol

import structlog

_log = structlog.get_logger()


class EndingNews(Protocol):
    """Carries the word between the worker processes."""

    async def tell(self, team: str) -> None:
        """Tell every process that the app has left a team or Enterprise.

        Raises:
            ServiceError: UNAVAILABLE while the database is away.
        """
        ...

    def hear(self) -> AsyncGenerator[str, None]:
        """Yield the teams of which one is told; survives the database's restarts."""
        ...


class Endings:
    """The running answers of this process, by the team or Enterprise that they are for.

    Args:
        closing: Set when the process must end.
    """

    def __init__(self, closing: asyncio.Event) -> None:
        self._closing = closing
        self._running: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def following(self, team: str) -> Iterator[asyncio.Event]:
        """Give an answer the event at which it must end, for as long as it runs."""
        ending = asyncio.Event()
        self._running[team].add(ending)
        bell = asyncio.create_task(self._forward(ending))
        try:
            yield ending
        finally:
            bell.cancel()
            self._running[team].discard(ending)
            if not self._running[team]:
                del self._running[team]

    def end(self, team: str) -> int:
        """Have the answers of a team end; tell how many there are."""
        endings = self._running.get(team, set())
        for ending in endings:
            ending.set()
        return len(endings)

    async def run(self, news: EndingNews) -> None:
        """End answers at every word of an end, until cancelled."""
        async with aclosing(news.hear()) as told:
            async for team in told:
                if answers := self.end(team):
                    _log.info("answers_ended", team=team, answers=answers)

    async def _forward(self, ending: asyncio.Event) -> None:
        await self._closing.wait()
        ending.set()
