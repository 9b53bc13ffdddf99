"""Live news of a workspace for the playground's open pages."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

# A page that falls this far behind is told to load everything anew.
MAX_BEHIND = 500


class Feed:
    """Hand each change to the pages that may see it."""

    def __init__(self) -> None:
        self._readers: list[tuple[str, str, asyncio.Queue[dict[str, Any] | None]]] = []

    def publish(
        self, team: str, event: dict[str, Any], audience: Collection[str] | None = None
    ) -> None:
        """Send an event to the workspace's readers, or only to the users named."""
        for reader_team, user, queue in self._readers:
            if reader_team != team or (audience is not None and user not in audience):
                continue
            if queue.qsize() >= MAX_BEHIND:
                _empty(queue)
                queue.put_nowait({"type": "reload"})
            else:
                queue.put_nowait(event)

    @contextmanager
    def reading(self, team: str, user: str) -> Iterator[asyncio.Queue[dict[str, Any] | None]]:
        """Receive the events that a user may see; None says that the sandbox stops."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        reader = (team, user, queue)
        self._readers.append(reader)
        try:
            yield queue
        finally:
            self._readers.remove(reader)

    def close(self) -> None:
        """Let every reader go."""
        for _, _, queue in self._readers:
            queue.put_nowait(None)


def _empty(queue: asyncio.Queue[dict[str, Any] | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
