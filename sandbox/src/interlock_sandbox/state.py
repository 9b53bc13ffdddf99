"""The sandbox's memory across restarts: one JSON file, replaced atomically."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock_chassis.errors import ConfigError

FORMAT = 2
# A streaming answer changes many times a second; one write covers them.
QUIET_S = 0.2


class StateFile:
    """Save what its sections report, soon after one of them changed.

    The file holds live sandbox tokens and session ids, so only its owner may
    read it. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sections: dict[str, Callable[[], Any]] = {}
        self._pending: asyncio.TimerHandle | None = None
        self._loaded = self._load()

    def section(self, name: str) -> Any:
        """Return what the last run saved under a name, or None."""
        return self._loaded.get(name)

    def register(self, name: str, snapshot: Callable[[], Any]) -> None:
        """Ask this function for the section's content at every save."""
        self._sections[name] = snapshot

    def touch(self) -> None:
        """Note a change; it is on disk shortly after. Needs a running loop."""
        if self._path and not self._pending:
            self._pending = asyncio.get_running_loop().call_later(QUIET_S, self.save)

    def save(self) -> None:
        """Write everything now."""
        if self._pending:
            self._pending.cancel()
            self._pending = None
        if not self._path:
            return
        content = {name: snapshot() for name, snapshot in self._sections.items()}
        draft = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **content}, file)
        draft.replace(self._path)

    def _load(self) -> dict[str, Any]:
        if not self._path or not self._path.exists():
            return {}
        try:
            loaded = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError("state_file", "cannot be read; delete it to start over") from None
        if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
            raise ConfigError("state_file", "is of another version; delete it to start over")
        return loaded
