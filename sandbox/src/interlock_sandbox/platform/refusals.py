"""How the platform says no: three shapes, none of which callers should rely on."""

from http import HTTPStatus
from typing import Any, NoReturn

from aiohttp import web


class Refusal(Exception):
    """A request is answered with a problem instead.

    Attributes:
        reason: What was wrong, for the record; the answer may say less.
    """

    def __init__(self, status: HTTPStatus, reason: str, body: dict[str, Any]) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self._body = body

    def response(self) -> web.Response:
        """Return the answer."""
        kind = "application/json" if "success" in self._body else "application/problem+json"
        wait = {"Retry-After": "1"} if self.status == HTTPStatus.TOO_MANY_REQUESTS else None
        return web.json_response(self._body, status=self.status, content_type=kind, headers=wait)


def refuse(status: HTTPStatus, code: str, detail: str, *, reason: str = "") -> NoReturn:
    """Refuse with a problem document; a reason given apart stays in the record."""
    body = {
        "code": code,
        "title": status.phrase,
        "status": status,
        "detail": detail,
        "error": {"code": code, "message": detail},
    }
    raise Refusal(status, reason or detail, body)


def refuse_unauthorized(reason: str) -> NoReturn:
    """Refuse without saying why."""
    # The code is wrong on purpose: the real platform answers it as well.
    code = "internal_server_error"
    refuse(HTTPStatus.UNAUTHORIZED, code, "Unauthorized", reason=reason)


def refuse_status(status: HTTPStatus) -> NoReturn:
    """Refuse for no other reason than that the status was asked for."""
    reason = "trouble on demand"
    if status is HTTPStatus.UNAUTHORIZED:
        refuse_unauthorized(reason)
    code = status.phrase.lower().replace(" ", "_")
    refuse(status, code, status.phrase, reason=reason)


def refuse_body(problem: str) -> NoReturn:
    """Refuse a body or query that breaks the schema."""
    error = {"name": "ZodError", "message": problem}
    raise Refusal(HTTPStatus.BAD_REQUEST, problem, {"success": False, "error": error})
