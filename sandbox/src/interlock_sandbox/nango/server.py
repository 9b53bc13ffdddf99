"""The Nango stand-in, put together: its API, its pages, its webhooks."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from interlock_sandbox.nango.administration import AdministrationApi
from interlock_sandbox.nango.connecting import ConnectPages
from interlock_sandbox.nango.connections import ConnectionsApi
from interlock_sandbox.nango.control import Control
from interlock_sandbox.nango.environment import Environment
from interlock_sandbox.nango.gate import Gate
from interlock_sandbox.nango.limits import RateLimit
from interlock_sandbox.nango.provider import SlackProvider
from interlock_sandbox.nango.records import Records
from interlock_sandbox.nango.refreshing import Refresher
from interlock_sandbox.nango.sessions import SessionsApi
from interlock_sandbox.nango.settings import Mint, NangoSettings
from interlock_sandbox.nango.webhooks import Webhooks
from interlock_sandbox.pages import page_routes


class NangoServer:
    """One Nango with one environment.

    Attributes:
        environment: Connections, sessions, keys; its `snapshot` is what a restart needs.
    """

    def __init__(
        self,
        settings: NangoSettings,
        environment: Environment,
        http: aiohttp.ClientSession,
        base_url: str,
    ) -> None:
        self.environment = environment
        now = environment.now
        records = Records(now)
        gate = Gate(environment, records, RateLimit(settings.rate_limit, now))
        provider = SlackProvider(http, settings.slack_url, records, now)
        self._webhooks = Webhooks(settings, environment, http)
        self._refresher = Refresher(environment, provider, self._webhooks, records)
        pages = ConnectPages(
            environment,
            gate,
            provider=provider,
            webhooks=self._webhooks,
            base_url=base_url,
            return_url=settings.return_url,
        )
        control = Control(
            settings, environment, webhooks=self._webhooks, records=records, base_url=base_url
        )
        self._routes = [
            *SessionsApi(environment, gate, base_url).routes(),
            *ConnectionsApi(environment, gate, self._refresher, self._webhooks).routes(),
            *AdministrationApi(environment, gate, base_url).routes(),
            *pages.routes(),
            *control.routes(),
            *page_routes(),
        ]

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return everything that this listener serves."""
        return self._routes

    async def close(self) -> None:
        """Give up the requests under way."""
        await self._refresher.close()
        await self._webhooks.close()


@asynccontextmanager
async def open_nango(
    settings: NangoSettings,
    *,
    saved: Any,
    base_url: str,
    now: Callable[[], float] = time.time,
    changed: Callable[[], None],
    mint: Mint | None = None,
) -> AsyncIterator[NangoServer]:
    """Make a Nango that is reached at `base_url`, and end its requests at the end.

    It goes on from what the environment's `snapshot` returned in an earlier
    run. Slack must know `{base_url}/oauth/callback` as a redirect URL.
    """
    environment = Environment(settings, saved, mint=mint or Mint(), now=now, changed=changed)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        server = NangoServer(settings, environment, http, base_url)
        try:
            yield server
        finally:
            await server.close()
