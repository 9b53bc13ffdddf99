"""What was asked of the platform, and how it ended."""

import asyncio
import contextlib
import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Any

KEPT_REQUESTS = 5_000


@dataclass
class Record:
    """One request.

    Attributes:
        outcome: `refused`; `answered` for what needs no agent; for runs
            `running`, then `completed`, `failed`, `waiting` for a person whose
            verdict continues it elsewhere, or `cancelled` when the asker hung up.
        reason: Why it was refused.
        fault: The kind of fault that it met on demand.
        ended: Set when nothing more will happen to it.
    """

    number: int
    at: float
    method: str
    path: str
    tenant_id: str = ""
    user_id: str = ""
    slack_team_id: str = ""
    slack_user_id: str = ""
    project_id: str = ""
    agent_id: str = ""
    conversation_id: str = ""
    message_id: str = ""
    entry_point: str = ""
    prompt: str = ""
    status: int = 0
    outcome: str = "running"
    reason: str = ""
    fault: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def show(self) -> dict[str, Any]:
        """Return the record as the control API shows it."""
        names = [each.name for each in dataclasses.fields(self) if each.name != "ended"]
        return {name: getattr(self, name) for name in names} | {"ended": self.ended.is_set()}


@dataclass
class Records:
    """The latest requests, and the tokens they carried."""

    requests: deque[Record] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    tokens: dict[str, None] = field(default_factory=dict)
    asked: int = 0

    def begin(self, at: float, method: str, path: str) -> Record:
        """Note a request as it arrives."""
        self.asked += 1
        record = Record(self.asked, at, method, path)
        self.requests.append(record)
        return record

    async def wait_for_end(self, number: int, seconds: float) -> None:
        """Wait until a request has ended, but no longer than that."""
        found = next((each for each in self.requests if each.number == number), None)
        if found:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(found.ended.wait(), seconds)
