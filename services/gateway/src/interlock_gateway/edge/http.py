"""Reading a request no further than it deserves."""

import asyncio
import ipaddress
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_gateway.domain.strict import MalformedDocument, parse_json_object

# Slack sends in milliseconds. With the answer and its draining, who never sends what
# they announced is gone within 5 s.
BODY_SECONDS = 4.0

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+/?", re.ASCII)
_UTF8 = frozenset({"charset=utf-8", 'charset="utf-8"'})


class RequestRefused(Exception):
    """The request is refused for its form, before anybody understood it.

    Attributes:
        status: What to answer; the connection is closed when a body was not read.
    """

    def __init__(self, status: HTTPStatus) -> None:
        self.status = status
        super().__init__(status.phrase)


def is_plain_path(target: str) -> bool:
    """Tell whether a request target is a path that nobody between could read otherwise."""
    path, _, _ = target.partition("?")
    return path == "/" or _PLAIN_PATH.fullmatch(path) is not None


def media_type(request: web.Request, *allowed: str) -> str:
    """Return the body's media type.

    Raises:
        RequestRefused: 415 for a type not allowed, stated twice, in another charset
            than UTF-8, or with any content coding.
    """
    stated = request.headers.getall("Content-Type", [])
    codings = request.headers.getall("Content-Encoding", [])
    if len(stated) != 1 or codings:
        raise RequestRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    essence, *parameters = (part.strip().lower() for part in stated[0].split(";"))
    if essence not in allowed or not _UTF8.issuperset(filter(None, parameters)):
        raise RequestRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return essence


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """Read a body of limited size in limited time.

    Raises:
        RequestRefused: 413 as soon as it is announced or grows too large, 408 when it
            has not come within 4 s, 400 when it is cut or its chunks are malformed.
    """
    if request.content_length is not None and request.content_length > limit_bytes:
        raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                if len(body) + len(chunk) > limit_bytes:
                    raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                body += chunk
    except TimeoutError:
        raise RequestRefused(HTTPStatus.REQUEST_TIMEOUT) from None
    except (web.RequestPayloadError, ConnectionError):
        raise RequestRefused(HTTPStatus.BAD_REQUEST) from None
    return bytes(body)


async def read_json(request: web.Request, limit_bytes: int) -> Mapping[str, Any]:
    """Read a JSON object of limited size.

    Raises:
        RequestRefused: As `media_type` and `read_body`; 400 when it is not one object
            that everybody reads alike.
    """
    media_type(request, JSON)
    try:
        return parse_json_object(await read_body(request, limit_bytes))
    except MalformedDocument:
        raise RequestRefused(HTTPStatus.BAD_REQUEST) from None


class Proxies:
    """Whom to believe about the browser's address.

    Args:
        networks: Addresses of our own reverse proxies; nobody else's headers count.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def client_address(self, request: web.Request) -> str:
        """Return the nearest address that is not one of our proxies; "" when unknown."""
        hops = [
            hop.strip()
            for hop in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        ]
        address = request.remote or ""
        while self._is_ours(address) and hops and _is_address(hops[-1]):
            address = hops.pop()
        return address

    def is_plain_http(self, request: web.Request) -> bool:
        """Tell whether our own proxy says that the browser came without TLS."""
        stated = request.headers.get("X-Forwarded-Proto", "https").strip().lower()
        return self._is_ours(request.remote or "") and stated == "http"

    def _is_ours(self, address: str) -> bool:
        if not _is_address(address):
            return False
        return any(ipaddress.ip_address(address) in network for network in self._networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
