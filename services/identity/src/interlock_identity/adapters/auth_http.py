"""The auth server (Better Auth) over HTTP.

Sends the session cookie and the browser's address, nothing else: its cookie
cache would vouch for sessions that have ended. The session names an active
organization even after its person was removed from it, so the role is asked
for each time.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import aiohttp
from yarl import URL

from interlock_identity.domain.people import (
    Person,
    Session,
    SessionProof,
    Tenant,
    TenantId,
    UserId,
    strongest_role,
)
from interlock_identity.sessions import (
    AuthServerUnavailable,
    NotAMember,
    NotSignedIn,
)

# Two rounds must fit the 5 s that a caller gives us.
TIMEOUT = timedelta(seconds=2)
MAX_JSON_BYTES = 256 * 1024
MAX_ID_LENGTH = 256
DEFAULT_RETRY_AFTER = timedelta(seconds=10)
MAX_RETRY_AFTER = timedelta(minutes=5)
# Of a cookie that is sent on: no separators, no controls, nothing quoted.
_COOKIE_VALUE = re.compile(r"[A-Za-z0-9!#$%&'*+./:=?@^_`|~-]+")
# Where the auth server is https it puts this before its cookie's name.
_SECURE_PREFIX = "__Secure-"
# From the database, and without the write that prolongs a session.
_FRESH = {"disableCookieCache": "true", "disableRefresh": "true"}
_NOT_A_MEMBER = frozenset(
    {
        "NO_ACTIVE_ORGANIZATION",
        "MEMBER_NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        "YOU_ARE_NOT_A_MEMBER_OF_THIS_ORGANIZATION",
        "USER_IS_NOT_A_MEMBER_OF_THE_ORGANIZATION",
    }
)


class SessionCookie:
    """How the auth server's session cookie is sent on, to it and to whoever takes it too.

    Args:
        name: The cookie's name without `__Secure-`.
    """

    def __init__(self, name: str) -> None:
        self._names = {name, _SECURE_PREFIX + name}

    def headers(self, proof: SessionProof) -> dict[str, str]:
        """Return the headers that prove a browser.

        Raises:
            NotSignedIn: It is another cookie, more than one, or none.
        """
        cookie = proof.cookie.reveal()
        name, equals, value = cookie.partition("=")
        if not equals or name not in self._names or not _COOKIE_VALUE.fullmatch(value):
            raise NotSignedIn
        headers = {"Cookie": cookie, "Accept": "application/json"}
        with contextlib.suppress(ValueError):
            # The auth server limits calls by client; without this all browsers share our bucket.
            headers["X-Forwarded-For"] = str(ipaddress.ip_address(proof.client_address))
        return headers


class HttpAuthServer:
    """The `SessionSource` port over a shared aiohttp session without a cookie jar."""

    def __init__(
        self, session: aiohttp.ClientSession, auth_url: URL, cookie: SessionCookie
    ) -> None:
        self._session = session
        self._api = auth_url / "api/auth"
        self._cookie = cookie

    async def authenticate(self, proof: SessionProof) -> Session:
        """Say who is signed in; see the port."""
        headers = self._cookie.headers(proof)
        found = await self._get("get-session", headers)
        if found is None:
            raise NotSignedIn
        session, user = _object(found, "session"), _object(found, "user")
        if session.get("activeOrganizationId") is None:
            raise NotAMember
        # Of get-active-member-role the newest Better Auth checks the query, and forgets there
        # that the session must not be prolonged.
        member, organizations = await asyncio.gather(
            self._get("organization/get-active-member", headers),
            self._get("organization/list", headers),
        )
        # The organization may have been switched since; the role is of the one that it names.
        tenant_id = TenantId(_id(_whole(member), "organizationId"))
        if _id(member, "userId") != _id(user, "id"):
            raise AuthServerUnavailable("the auth server answers about somebody else")
        return Session(
            person=Person(UserId(_id(user, "id")), _text(user, "name"), _text(user, "email")),
            tenant=Tenant(tenant_id, _name_of(organizations, tenant_id)),
            role=strongest_role(_text(member, "role")),
            ref=_ref(_id(session, "id")),
            is_email_verified=user.get("emailVerified") is True,
        )

    async def _get(self, path: str, headers: Mapping[str, str]) -> Any:
        try:
            async with self._session.get(
                (self._api / path).with_query(_FRESH),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT.total_seconds()),
                allow_redirects=False,
            ) as response:
                body = await _json(response)
                _require_ok(response, body)
                return body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AuthServerUnavailable from error


async def _json(response: aiohttp.ClientResponse) -> Any:
    raw = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        raw += chunk
        if len(raw) > MAX_JSON_BYTES:
            raise AuthServerUnavailable("the auth server's answer is too long")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        # The original error quotes the answer, which holds the session's token.
        raise AuthServerUnavailable("the auth server does not answer as agreed") from None


def _require_ok(response: aiohttp.ClientResponse, body: Any) -> None:
    if response.status == 200:  # noqa: PLR2004 - As in HTTP.
        return
    code = body.get("code") if isinstance(body, dict) else None
    if response.status == 401:  # noqa: PLR2004 - As in HTTP.
        raise NotSignedIn
    if code in _NOT_A_MEMBER:
        raise NotAMember
    if response.status == 429:  # noqa: PLR2004 - As in HTTP.
        raise AuthServerUnavailable(retry_after=_retry_after(response.headers))
    raise AuthServerUnavailable


def _retry_after(headers: Mapping[str, str]) -> timedelta:
    given = headers.get("X-Retry-After") or headers.get("Retry-After") or ""
    if not (given.isascii() and given.isdigit()):
        return DEFAULT_RETRY_AFTER
    return min(timedelta(seconds=int(given[:6])), MAX_RETRY_AFTER)


def _whole(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AuthServerUnavailable("the auth server does not answer as agreed")
    return value


def _object(value: Any, key: str) -> dict[str, Any]:
    return _whole(_whole(value).get(key))


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise AuthServerUnavailable("the auth server does not answer as agreed")
    return found


def _id(value: dict[str, Any], key: str) -> str:
    found = _text(value, key)
    if not 0 < len(found) <= MAX_ID_LENGTH:
        raise AuthServerUnavailable("the auth server does not answer as agreed")
    return found


def _name_of(organizations: Any, tenant_id: TenantId) -> str:
    """Find the display name of an organization; its id will do where none is listed."""
    for each in organizations if isinstance(organizations, list) else []:
        if isinstance(each, dict) and each.get("id") == tenant_id:
            return _text(each, "name")
    return tenant_id


def _ref(session_id: str) -> str:
    """Name a session by its row's id, which is no secret, but not readable either."""
    return hashlib.sha256(b"interlock session\0" + session_id.encode()).hexdigest()
