"""Show what is being done and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

_WIDTH = 58


class Steps:
    """Print one line per finished step; on a terminal also the running one.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time one step; it is printed only if it succeeds."""
        began = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(escape(what)):
                yield
        else:
            yield
        self.done(what, time.monotonic() - began)

    def done(self, what: str, seconds: float) -> None:
        """Print a finished step with the time it took."""
        mark = "[green]✓[/green] " if self._console.is_terminal else "  "
        self._print(f"{mark}{escape(what):{_WIDTH}} [dim]{seconds:6.2f} s[/dim]")

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(escape(text))

    def elapsed(self) -> float:
        """Return the seconds since the first step could begin."""
        return time.monotonic() - self._started

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
