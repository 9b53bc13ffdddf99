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
