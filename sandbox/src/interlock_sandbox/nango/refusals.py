"""How Nango says no."""

from http import HTTPStatus
from typing import Any

from aiohttp import web


class Refusal(Exception):
    """A request is answered with an error instead.

    Attributes:
        code: Nango's error code.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        *,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(code)
        self.code = code
        self._status = status
        self._headers = headers
        self._details = details

    def response(self) -> web.Response:
        """Return the answer."""
        body = {"error": {"code": self.code, **self._details}}
        return web.json_response(body, status=self._status, headers=self._headers)


def unauthorized(code: str, problem: str) -> Refusal:
    """Return the refusal of a caller who did not prove who it is."""
    message = f"Authentication failed. {problem}"
    return Refusal(HTTPStatus.UNAUTHORIZED, code, message=message, payload={})


def unknown_integration() -> Refusal:
    """Return the refusal of an integration that is not there, in Nango's own words."""
    return Refusal(
        HTTPStatus.BAD_REQUEST, "unknown_provider_config", message="Provider does not exists"
    )
