"""Nango's webhooks: signed, sent, and sent again when the app has trouble."""

import asyncio
import hashlib
import hmac
import json
import time
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

from interlock_sandbox.nango.environment import JSON, Authorization, Connection, Environment
from interlock_sandbox.nango.settings import NangoSettings

KEPT_DELIVERIES = 2_000
USER_AGENT = "nango/0.71.4 (stand-in)"


@dataclass
class Delivery:
    """One webhook to one URL and every attempt to deliver it.

    Attributes:
        outcome: `sending`, then `delivered` or `failed`.
    """

    number: int
    url: str
    operation: str
    connection_id: str
    success: bool
    attempts: list[JSON] = field(default_factory=list)
    outcome: str = "sending"


def encode(body: JSON) -> bytes:
    """Write a body as Nango signs it: keys in order at every level, no spaces."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(key: str, body: bytes) -> str:
    """Return the value of X-Nango-Hmac-Sha256."""
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def sign_legacy(key: str, body: bytes) -> str:
    """Return the value of X-Nango-Signature, which is no HMAC and can be extended."""
    return hashlib.sha256(key.encode() + body).hexdigest()


class Webhooks:
    """Tell the app what became of its connections.

    A 5xx or no answer is tried again, an answer below 500 never is.
    """

    def __init__(
        self, settings: NangoSettings, environment: Environment, http: aiohttp.ClientSession
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._http = http
        self._timeout = aiohttp.ClientTimeout(total=settings.webhook_timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self.deliveries: deque[Delivery] = deque(maxlen=KEPT_DELIVERIES)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until everything sent so far was delivered or given up."""
        await asyncio.gather(*self._tasks)

    # What happens to connections.

    def connected(self, connection: Connection, *, created: bool) -> None:
        """Tell that somebody connected, for the first time or again."""
        self._tell(connection, "creation" if created else "override", {"success": True})

    def refresh_failed(self, connection: Connection, error: JSON) -> None:
        """Tell that the provider gave no new token."""
        self._tell(connection, "refresh", {"success": False, "error": error})

    def authorization_failed(self, authorization: Authorization, error: JSON) -> None:
        """Tell that nothing became of an authorization.

        As with Nango, a new connection's id then leads nowhere, and no tag says
        whose it was.
        """
        integration, session = authorization.integration, authorization.session
        body = self._head(
            authorization.connection_id, integration.provider, integration.unique_key
        ) | {
            "operation": "override" if session.reconnects else "creation",
            "success": False,
            "error": error,
        }
        self._send(body, session.webhook_url_override)

    def _tell(self, connection: Connection, operation: str, outcome: JSON) -> None:
        body = self._head(
            connection.connection_id, connection.provider, connection.provider_config_key
        )
        body |= {"operation": operation, "tags": connection.tags, **outcome}
        if connection.end_user:
            body["endUser"] = _show_end_user(connection.end_user)
        self._send(body, connection.webhook_url_override)

    def _head(self, connection_id: str, provider: str, key: str) -> JSON:
        return {
            "from": "nango",
            "type": "auth",
            "connectionId": connection_id,
            "authMode": "OAUTH2",
            "providerConfigKey": key,
            "provider": provider,
            "environment": self._environment.name,
        }

    # Sending.

    def headers(self, key: str, body: bytes) -> dict[str, str]:
        """Return the headers of a body signed with a key."""
        return {
            "Accept": "application/json, text/plain, */*",
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "X-Nango-Signature": sign_legacy(key, body),
            "X-Nango-Hmac-Sha256": sign(key, body),
        }

    async def send_raw(self, body: bytes, headers: dict[str, str]) -> int | None:
        """Send any bytes once to the first URL; return the status of the answer, if any."""
        delivery = self._begin(self._settings.webhook_urls[0], {})
        status = await self._attempt(delivery, body, headers)
        delivery.outcome = "delivered" if _accepted(status) else "failed"
        return status

    def _send(self, body: JSON, override: str | None) -> None:
        urls = (override,) if override else self._settings.webhook_urls
        if not urls:
            return
        content = encode(body)
        headers = self.headers(self._environment.signing_key(), content)
        deliveries = [self._begin(url, body) for url in urls]
        task = asyncio.create_task(self._deliver_all(deliveries, content, headers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, url: str, body: JSON) -> Delivery:
        self._sent += 1
        delivery = Delivery(
            self._sent,
            url,
            body.get("operation", "raw"),
            body.get("connectionId", ""),
            body.get("success", False),
        )
        self.deliveries.append(delivery)
        return delivery

    async def _deliver_all(
        self, deliveries: list[Delivery], body: bytes, headers: dict[str, str]
    ) -> None:
        # One after the other: the second URL waits for the first one's retries.
        for delivery in deliveries:
            await self._deliver(delivery, body, headers)

    async def _deliver(self, delivery: Delivery, body: bytes, headers: dict[str, str]) -> None:
        for delay in (None, *self._settings.webhook_retry_delays_s):
            if delay is not None:
                await asyncio.sleep(delay)
            status = await self._attempt(delivery, body, headers)
            if _accepted(status):
                delivery.outcome = "delivered"
                return
            if status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
        delivery.outcome = "failed"

    async def _attempt(
        self, delivery: Delivery, body: bytes, headers: dict[str, str]
    ) -> int | None:
        started = time.monotonic()
        status = await self._post(delivery.url, body, headers)
        delivery.attempts.append(
            {
                "at": self._environment.now(),
                "status": status,
                "elapsed_ms": round((time.monotonic() - started) * 1000),
            }
        )
        return status

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int | None:
        try:
            async with self._http.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return None


def _accepted(status: int | None) -> bool:
    return status is not None and HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _show_end_user(end_user: JSON) -> JSON:
    organization = end_user["organization"] or {}
    named = {
        "endUserId": end_user["id"],
        "endUserEmail": end_user["email"],
        "organizationId": organization.get("id"),
    }
    shown: JSON = {name: value for name, value in named.items() if value}
    return shown | {"tags": end_user["tags"]}
