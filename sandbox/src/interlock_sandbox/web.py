"""What the three listeners share: who may ask, and how answers are framed."""

import json
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
CONTROL = "/_control"

# Pages of the sandbox load only their own files. Forms may be answered with a
# redirect to another port of this machine, and browsers check that too.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; frame-ancestors 'none';"
    " form-action 'self' http://127.0.0.1:* http://localhost:*"
)


def host_of(authority: str) -> str:
    """Return the host name of a Host header or URL authority, without port."""
    return urlsplit(f"//{authority}").hostname or ""


@web.middleware
async def loopback_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that were not addressed to this machine by name.

    The listeners are bound to loopback, but a web page of anybody can resolve
    its own name to 127.0.0.1 and ask from a visitor's browser.
    """
    try:
        host = host_of(request.headers.get("Host", ""))
    except ValueError:
        host = ""
    if host not in LOOPBACK_HOSTS:
        return web.json_response({"error": "wrong_host"}, status=HTTPStatus.MISDIRECTED_REQUEST)
    return await handler(request)


@web.middleware
async def guard_control(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let only JSON, and no other origin's page, change things through the control API."""
    if request.path.startswith(CONTROL) and request.method not in {"GET", "HEAD"}:
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"{request.scheme}://{request.host}":
            refuse(HTTPStatus.FORBIDDEN, "another origin may not use the control API")
        if request.content_type != "application/json":
            refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    return await handler(request)


@web.middleware
async def frame_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add the headers that every answer of the sandbox carries."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        _add_headers(error)
        raise
    if not response.prepared:
        _add_headers(response)
    return response


def _add_headers(response: web.StreamResponse) -> None:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    if response.content_type == "text/html":
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        # Not "no-referrer": browsers would send "Origin: null" with our forms.
        response.headers.setdefault("Referrer-Policy", "same-origin")


def application(*routes: web.AbstractRouteDef) -> web.Application:
    """Make one listener's application with the shared rules in force."""
    app = web.Application(middlewares=[frame_answers, loopback_only, guard_control])
    app.add_routes([web.get(f"{CONTROL}/health", _health), *routes])
    return app


async def _health(_request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


def refuse(status: HTTPStatus, reason: str) -> NoReturn:
    """Answer a control request with an error that says what was wrong."""
    body = json.dumps({"error": reason})
    match status:
        case HTTPStatus.NOT_FOUND:
            raise web.HTTPNotFound(text=body, content_type="application/json")
        case HTTPStatus.FORBIDDEN:
            raise web.HTTPForbidden(text=body, content_type="application/json")
        case HTTPStatus.CONFLICT:
            raise web.HTTPConflict(text=body, content_type="application/json")
        case HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            raise web.HTTPUnsupportedMediaType(text=body, content_type="application/json")
        case _:
            raise web.HTTPBadRequest(text=body, content_type="application/json")


class ControlBody:
    """The JSON object of a control request, read field by field."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    @classmethod
    async def of(cls, request: web.Request) -> "ControlBody":
        """Parse the body of a request."""
        try:
            fields = await request.json()
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            refuse(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
        return cls(fields)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text field; without a default it is required."""
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            refuse(HTTPStatus.BAD_REQUEST, f"{name} must be a text")
        return value

    def find_text(self, name: str) -> str | None:
        """Return a text field that may be absent."""
        return self.text(name) if self._fields.get(name) is not None else None

    def number(self, name: str, default: float) -> float:
        """Return a number field."""
        value = self._fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(HTTPStatus.BAD_REQUEST, f"{name} must be a number")
        return value

    def object(self, name: str) -> dict[str, Any]:
        """Return an object field, empty when absent."""
        value = self._fields.get(name, {})
        if not isinstance(value, dict):
            refuse(HTTPStatus.BAD_REQUEST, f"{name} must be an object")
        return value

    def raw(self, name: str, default: Any = None) -> Any:
        """Return a field as it came."""
        return self._fields.get(name, default)
