"""What tests need of the Nango stand-in: settings, a served one, a person who connects.

All secrets here are examples; listeners take free ports.
"""

import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_sandbox.nango.server import NangoServer, open_nango
from interlock_sandbox.nango.settings import Mint, NangoSettings, SlackIntegration
from interlock_sandbox.testing import BOT_SCOPES, CLIENT_ID, CLIENT_SECRET
from interlock_sandbox.web import application

API_KEY = "0b1c2d3e-4f50-4a61-8b72-9c8d7e6f5a4b"
SIGNING_KEY = "example-webhook-signing-key-0123456789"
INTEGRATION = "work-apps-slack"
WORK_APP = SlackIntegration(
    unique_key=INTEGRATION,
    display_name="Slack work app",
    client_id=CLIENT_ID,
    client_secret=Secret(CLIENT_SECRET),
    scopes=BOT_SCOPES,
)
_CONNECTION = re.compile(r'id="connection-id">([^<]+)<')


def example_settings(slack_url: str = "http://127.0.0.1:9", **changes: Any) -> NangoSettings:
    """Return settings of an environment with the work app, which retries at once.

    Args:
        slack_url: Where people authorize.
        changes: Fields of `NangoSettings` to set otherwise.
    """
    fields: dict[str, Any] = {
        "slack_url": slack_url,
        "api_key": Secret(API_KEY),
        "signing_key": Secret(SIGNING_KEY),
        "integrations": (WORK_APP,),
        "webhook_retry_delays_s": (0, 0),
        **changes,
    }
    return NangoSettings(**fields)


@asynccontextmanager
async def bound_port() -> AsyncIterator[tuple[socket.socket, str]]:
    """Take a free port before anything listens there; Slack must know its URL first."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound, f"http://127.0.0.1:{bound.getsockname()[1]}"


@asynccontextmanager
async def serving_nango(
    bound: tuple[socket.socket, str],
    settings: NangoSettings,
    now: Callable[[], float],
    *,
    mint: Mint | None = None,
    saved: Any = None,
) -> AsyncIterator[NangoServer]:
    """Serve a Nango on a bound port."""
    port, url = bound
    async with open_nango(
        settings, saved=saved, base_url=url, now=now, changed=lambda: None, mint=mint
    ) as nango:
        runner = web.AppRunner(application(*nango.routes()), access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, port).start()
            yield nango
        finally:
            await runner.cleanup()


async def connect(
    http: aiohttp.ClientSession,
    connect_link: str,
    *,
    integration: str = INTEGRATION,
    installer: str = "T0NORTHWIND/U0ADA",
    decision: str = "allow",
) -> str | None:
    """Connect the sandbox Slack as a workspace's administrator does in a browser.

    Returns:
        The id of the connection, or None when Nango's last page names none.
    """
    link = URL(connect_link)
    async with http.get(link) as page:
        page.raise_for_status()
    query = {"connect_session_token": link.query["session_token"]}
    start = link.with_path(f"/oauth/connect/{integration}").with_query(query)
    async with http.get(start, allow_redirects=False) as response:
        consent = URL(response.headers["Location"])
    form = {**consent.query, "installer": installer, "decision": decision}
    async with http.post(
        consent.with_query(None),
        data=form,
        headers={"Origin": str(consent.origin())},
        allow_redirects=False,
    ) as response:
        callback = URL(response.headers["Location"], encoded=True)
    async with http.get(callback) as page:
        found = _CONNECTION.search(await page.text())
    return found[1] if found else None
