"""The typed events of a run."""

from dataclasses import dataclass
from enum import Enum


class ToolState(Enum):
    """Where a tool call is."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"


class Outcome(Enum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    LIMIT_REACHED = "limit_reached"


@dataclass(frozen=True, slots=True)
class Started:
    """The platform accepted the run."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, Markdown, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool was called, or came back."""

    tool_call_id: str
    tool_name: str
    state: ToolState


@dataclass(frozen=True, slots=True)
class Approval:
    """A tool call waits for a person."""

    approval_id: str
    tool_call_id: str
    tool_name: str


@dataclass(frozen=True, slots=True)
class Source:
    """A source of the answer; title and URL are the platform's, untrusted."""

    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run; nothing comes after it.

    Attributes:
        outcome: How it ended.
        reason: Stable reason for anything but `COMPLETED`, else empty.
        detail: The platform's own words; untrusted.
    """

    outcome: Outcome
    reason: str = ""
    detail: str = ""


RunEvent = Started | Text | Tool | Approval | Source | Finished
