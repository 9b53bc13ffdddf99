"""A clock that can be set ahead while the sandbox runs."""

from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.web import CONTROL, ControlBody, refuse

# Ten years either way; further off, dates of the formats in use break.
MAX_OFFSET_S = 315_360_000


class VirtualClock:
    """The time that a stand-in believes in: the real one, and an offset.

    Args:
        now: The real clock, in seconds of the epoch.

    Attributes:
        offset_s: How far ahead of the real clock it is; negative for behind.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.offset_s = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self._now() + self.offset_s

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the control routes that look at the clock and set it."""
        path = f"{CONTROL}/clock"
        return [web.get(path, self._show), web.post(path, self._set)]

    async def _show(self, _request: web.Request) -> web.Response:
        return web.json_response({"offset_s": self.offset_s, "now": self()})

    async def _set(self, request: web.Request) -> web.Response:
        """Set the clock: `offset_s` ahead of the real one."""
        body = await ControlBody.of(request)
        offset = body.number("offset_s", 0)
        if abs(offset) > MAX_OFFSET_S:
            refuse(HTTPStatus.BAD_REQUEST, f"offset_s must be within {MAX_OFFSET_S}")
        self.offset_s = offset
        return await self._show(request)
