"""How the Web API says no."""

from typing import Any


class SlackError(Exception):
    """A refusal in Slack's words: `{"ok": false, "error": code}` under HTTP 200.

    Attributes:
        code: Slack's error code.
        details: Further fields of the answer.
    """

    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code)
        self.code = code
        self.details = details


class RateLimited(Exception):
    """The caller asks too often: HTTP 429, and how long to wait.

    Attributes:
        seconds: The value of `Retry-After`.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"wait {seconds} s")
        self.seconds = seconds
