"""Nango's API over HTTP, with the environment's API key.

The key is good for one environment only, so a connection of another one is not
found. Answers are read strictly. Nothing of them goes to a log or an error but
Nango's error code, and that only when it looks like one.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from interlock_chassis.clock import Clock, SystemClock
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.slack_oauth import NoAnswer, read_exchange_answer
from interlock_token_vault.credential_sources import (
    ConnectionDead,
    ConnectionNotFound,
    ConnectionRef,
    ConnectSession,
    Fetched,
    NangoBackingOff,
    NangoRefused,
    NangoUnavailable,
)
from interlock_token_vault.domain.install import ExchangeAnswer

# A read is capped at 5 s, and the token is still to be handed out after it.
_BUDGET = aiohttp.ClientTimeout(total=4, connect=2)
# A new token comes from Slack, through Nango.
_FORCED_BUDGET = aiohttp.ClientTimeout(total=10, connect=2)
_MAX_ANSWER_BYTES = 256 * 1024
BACKOFF = timedelta(seconds=30)
"""How long Nango withholds a token after it failed to refresh it (seen at Nango 0.71.4)."""

# Nango counts in windows of a minute, 200 requests each (seen at Nango 0.71.4).
_LONGEST_WAIT = timedelta(seconds=60)
_DEFAULT_WAIT = timedelta(seconds=5)
_ERROR_CODE = re.compile(r"[a-z_]{1,64}")
_ABSENT = frozenset({"not_found", "unknown_connection"})


class _Refusal(Exception):
    """Nango answered with an error.

    Attributes:
        code: What looks like an error code of Nango's, or `unknown_error`.
    """

    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.code = code if _ERROR_CODE.fullmatch(code) else "unknown_error"
        super().__init__(self.code)


class NangoHttp:
    """The Connections port over HTTP.

    Once Nango says that its limit is reached, nothing is asked until its window
    is over: the limit is the account's, and every further request is in vain.

    Args:
        session: Without cookies and without credentials of its own.
        url: Where Nango's API is.
        key: The environment's API key, a UUID.
        clock: Its monotonic side tells when the window is over.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: URL, key: Secret[str], clock: Clock
    ) -> None:
        self._session = session
        self._url = url
        self._key = key
        self._clock = clock
        self._quiet_until = 0.0

    async def fetch(self, ref: ConnectionRef, *, is_forced: bool = False) -> Fetched:
        """Fetch a connection with its token; see CredentialSource."""
        query = {"provider_config_key": ref.provider_config_key}
        if is_forced:
            query["force_refresh"] = "true"
        try:
            answer = await self._call(
                "GET",
                _of_connection(ref),
                query=query,
                timeout=_FORCED_BUDGET if is_forced else _BUDGET,
            )
            return _fetched(ref, answer)
        except _Refusal as refusal:
            raise _as_port(refusal) from None
        except NoAnswer:
            raise NangoUnavailable(metadata={"cause": "answer"}) from None

    async def open_session(
        self, integration: str, tags: Mapping[str, str], reconnects: str = ""
    ) -> ConnectSession:
        """Let a browser connect one workspace; see Connections."""
        path = "connect/sessions"
        body: dict[str, object] = {"allowed_integrations": [integration], "tags": dict(tags)}
        if reconnects:
            path = "connect/sessions/reconnect"
            body = {"connection_id": reconnects, "integration_id": integration, "tags": dict(tags)}
        try:
            return _session(await self._call("POST", (path,), body=body))
        except _Refusal as refusal:
            if reconnects and refusal.code == "invalid_body":
                raise ConnectionNotFound from None
            raise _as_port(refusal) from None
        except NoAnswer:
            raise NangoUnavailable(metadata={"cause": "answer"}) from None

    async def label(self, ref: ConnectionRef, metadata: Mapping[str, str]) -> None:
        """Replace a connection's metadata; see Connections."""
        body = {
            "connection_id": ref.connection_id,
            "provider_config_key": ref.provider_config_key,
            "metadata": dict(metadata),
        }
        await self._change("POST", ("connections/metadata",), body=body)

    async def delete(self, ref: ConnectionRef) -> None:
        """Delete a connection; see Connections."""
        query = {"provider_config_key": ref.provider_config_key}
        try:
            await self._change("DELETE", _of_connection(ref), query=query)
        except ConnectionNotFound:
            return

    async def _change(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> None:
        try:
            await self._call(method, path, query=query, body=body)
        except _Refusal as refusal:
            raise _as_port(refusal) from None
        except NoAnswer:
            raise NangoUnavailable(metadata={"cause": "answer"}) from None

    async def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        timeout: aiohttp.ClientTimeout = _BUDGET,
    ) -> Mapping[str, Any]:
        """Ask, and return the JSON object that Nango answers with a 2xx."""
        self._require_allowance()
        url = self._url.joinpath(*path, encoded=True)
        try:
            async with self._session.request(
                method,
                url.with_query(query) if query else url,
                headers={"Authorization": f"Bearer {self._key.reveal()}"},
                json=body,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                content = await _read_bounded(response)
                status, wait = response.status, _wait_of(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            # The error may hold the request's headers; its kind says enough.
            raise NangoUnavailable(metadata={"cause": type(error).__name__}) from None
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            wait = wait or _DEFAULT_WAIT
            self._quiet_until = self._clock.monotonic() + wait.total_seconds()
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NangoUnavailable(retry_after=wait, metadata={"cause": str(status)})
        answer = _parse(content)
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        error_part = answer.get("error")
        code = error_part.get("code") if isinstance(error_part, dict) else None
        raise _Refusal(status, code if isinstance(code, str) else "")

    def _require_allowance(self) -> None:
        left = timedelta(seconds=self._quiet_until - self._clock.monotonic())
        if left > timedelta(0):
            raise NangoUnavailable(retry_after=left, metadata={"cause": "429"})


@asynccontextmanager
async def open_nango(
    url: URL, key: Secret[str], clock: Clock | None = None
) -> AsyncIterator[NangoHttp]:
    """Open a connection pool to Nango, closed on leaving; the system's clock unless told."""
    async with aiohttp.ClientSession(
        timeout=_BUDGET, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield NangoHttp(session, url, key, clock or SystemClock())


def _of_connection(ref: ConnectionRef) -> tuple[str, ...]:
    if ref.connection_id in {".", ".."}:
        # No connection is named like that; in a path it would lead elsewhere.
        raise ConnectionNotFound
    return "connections", quote(ref.connection_id, safe="")


def _as_port(refusal: _Refusal) -> ServiceError:
    """Turn a refusal of Nango's into the port's words."""
    metadata = {"nango_error": refusal.code}
    if refusal.code in _ABSENT:
        return ConnectionNotFound()
    if refusal.status == HTTPStatus.FAILED_DEPENDENCY:
        return NangoBackingOff(retry_after=BACKOFF)
    if refusal.code == "invalid_credentials":
        return ConnectionDead(metadata=metadata)
    return NangoRefused(metadata=metadata)


def _session(answer: Mapping[str, Any]) -> ConnectSession:
    data = answer.get("data")
    if not isinstance(data, dict):
        raise NoAnswer
    token, link = Secret(_text(data, "token")), _text(data, "connect_link")
    return ConnectSession(token, link, _at(data, "expires_at"))


def _fetched(ref: ConnectionRef, answer: Mapping[str, Any]) -> Fetched:
    """Read a connection; the name asked for must be its own."""
    named = ConnectionRef(_text(answer, "provider_config_key"), _text(answer, "connection_id"))
    credentials, tags = answer.get("credentials"), answer.get("tags")
    if named != ref or not isinstance(credentials, dict) or not isinstance(tags, dict):
        raise NoAnswer
    if not credentials:
        # So Nango answers a key that may see connections and no credentials.
        raise NangoRefused(metadata={"nango_error": "no_credentials"})
    raw = credentials.get("raw")
    # An imported connection repeats in `raw` what was imported.
    answered = raw if isinstance(raw, dict) and raw.get("ok") is True else None
    lasts = credentials.get("expires_at") is None
    return Fetched(
        ref=ref,
        token=Secret(_text(credentials, "access_token")),
        expires_at=None if lasts else _at(credentials, "expires_at"),
        tags={name: value for name, value in tags.items() if isinstance(value, str)},
        answer=_read_answer(answered) if answered else None,
    )


def _read_answer(raw: Mapping[str, Any]) -> ExchangeAnswer:
    """Read what Slack once answered Nango; what renews the token, or is a person's, stays there."""
    return replace(
        read_exchange_answer(raw),
        refresh_token=None,
        expires_in_s=None,
        user=None,
        webhook_url=None,
    )


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    try:
        await response.content.readexactly(_MAX_ANSWER_BYTES)
    except asyncio.IncompleteReadError as shorter:
        return shorter.partial
    raise NangoUnavailable(metadata={"cause": "answer too long"})


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        raise NoAnswer from None
    if not isinstance(answer, dict):
        raise NoAnswer
    return answer


def _text(answer: Mapping[str, Any], name: str) -> str:
    text = answer.get(name)
    if not isinstance(text, str) or not text:
        raise NoAnswer
    return text


def _at(answer: Mapping[str, Any], name: str) -> datetime:
    try:
        at = datetime.fromisoformat(_text(answer, name))
    except ValueError:
        raise NoAnswer from None
    if at.tzinfo is None:
        raise NoAnswer
    return at


def _wait_of(response: aiohttp.ClientResponse) -> timedelta | None:
    text = response.headers.get("Retry-After", "")
    is_number = text.isascii() and text.isdigit() and len(text) < len("9999999999")
    return min(timedelta(seconds=int(text)), _LONGEST_WAIT) if is_number else None
