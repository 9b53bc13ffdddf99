"""A Nango and a Slack of the sandbox, and a browser that connects one to the other."""

import dataclasses
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_sandbox.nango.server import NangoServer
from interlock_sandbox.nango.testing import (
    API_KEY,
    INTEGRATION,
    SIGNING_KEY,
    bound_port,
    connect,
    example_settings,
    serving_nango,
)
from interlock_sandbox.server import running
from interlock_sandbox.testing import example_config
from interlock_token_vault.adapters.nango_http import NangoHttp, open_nango
from interlock_token_vault.credential_sources import ConnectionRef

TEAM = "T0NORTHWIND"


class StageClock:
    """A clock that tests move."""

    seconds = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass
class NangoStage:
    """A Nango, the Slack that it connects people to, and the vault's way to it."""

    url: str
    slack_url: str
    nango: NangoServer
    http: aiohttp.ClientSession
    clock: StageClock
    adapter: NangoHttp

    async def ask(self, method: str, path: str, **details: Any) -> Any:
        """Ask Nango with the API key; return the JSON of the answer."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with self.http.request(
            method, f"{self.url}{path}", headers=headers, **details
        ) as response:
            return await response.json()

    async def connected(self, tenant: str = "northwind", **details: str) -> ConnectionRef:
        """Connect a workspace for a tenant in a browser."""
        session = await self.adapter.open_session(INTEGRATION, {"tenantId": tenant})
        return await self.connect(session.link, **details)

    async def connect(self, link: str, **details: str) -> ConnectionRef:
        """Go through a connect link."""
        connection_id = await connect(self.http, link, **details)
        assert connection_id
        return ConnectionRef(INTEGRATION, connection_id)

    async def connections(self) -> list[dict[str, Any]]:
        """List what Nango holds, newest first."""
        return list((await self.ask("GET", "/connections"))["connections"])

    async def requests(self, operation: str) -> list[dict[str, Any]]:
        """List the requests of an operation."""
        found = await self.ask("GET", f"/_control/requests?operation={operation}")
        return list(found["requests"])

    async def do(self, what: str, **body: Any) -> Any:
        """Change something through the control API."""
        return await self.ask("POST", f"/_control/{what}", json=body)

    async def slack_takes(self, token: Secret[str]) -> bool:
        """Ask Slack whether a token works."""
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        async with self.http.post(f"{self.slack_url}/api/auth.test", headers=headers) as response:
            return bool((await response.json())["ok"])


def signed(body: dict[str, Any], key: str = SIGNING_KEY) -> tuple[bytes, dict[str, str]]:
    """Write a webhook as Nango does, with the headers of both its signatures."""
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return raw, {
        "x-nango-hmac-sha256": hmac.new(key.encode(), raw, hashlib.sha256).hexdigest(),
        "x-nango-signature": hashlib.sha256(key.encode() + raw).hexdigest(),
    }


@asynccontextmanager
async def nango_stage(
    *webhook_urls: str,
    slack_redirect: str = "",
    rate_limit: int = 1000,
    token_rotation: bool = False,
) -> AsyncIterator[NangoStage]:
    """Serve a Nango that Slack knows as a place to come back to.

    Args:
        webhook_urls: Where Nango tells of connections.
        slack_redirect: A callback of our own that Slack knows besides.
        rate_limit: Requests per minute that Nango takes.
        token_rotation: Whether Slack's tokens end after 12 hours.
    """
    clock = StageClock()
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        bound = await stack.enter_async_context(bound_port())
        config = example_config("http://127.0.0.1:9", token_rotation=token_rotation)
        redirects = [*config.app.redirect_urls, f"{bound[1]}/oauth/callback"]
        redirects += [slack_redirect] if slack_redirect else []
        slack_app = dataclasses.replace(config.app, redirect_urls=tuple(redirects))
        config = dataclasses.replace(config, app=slack_app)
        urls = await stack.enter_async_context(running(config, clock))
        settings = example_settings(urls.slack, webhook_urls=webhook_urls, rate_limit=rate_limit)
        nango = await stack.enter_async_context(serving_nango(bound, settings, clock))
        adapter = await stack.enter_async_context(open_nango(URL(bound[1]), Secret(API_KEY)))
        yield NangoStage(bound[1], urls.slack, nango, http, clock, adapter)
