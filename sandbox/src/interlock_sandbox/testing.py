"""What tests need of the sandbox: a configuration, an app that records, tokens.

All secrets here are examples; listeners take free ports.
"""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import jwt
from aiohttp import web
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_sandbox.config import (
    DEFAULT_SUBSCRIPTIONS,
    Address,
    Config,
    SlackApp,
    UserTokenKey,
)
from interlock_sandbox.server import running

SIGNING_SECRET = "example-signing-secret-0123456789"  # noqa: S105 - an example
CLIENT_ID = "1111111111.2222222222"
CLIENT_SECRET = "example-client-secret-0123456789"  # noqa: S105 - an example
COOKIE_SECRET = "example-cookie-secret-0123456789-0123456789"  # noqa: S105 - an example
USER_TOKEN_KEY = UserTokenKey("user-1", Secret(b"example-user-token-key-0123456789"), legacy=False)
FREE_PORT = Address("127.0.0.1", 0)
BOT_SCOPES = (
    "app_mentions:read,channels:history,channels:read,chat:write,commands,"
    "groups:history,groups:read,im:history,im:read,im:write,users:read,users:read.email"
)


def example_config(app_url: str = "http://127.0.0.1:9", **changes: Any) -> Config:
    """Return a configuration for an app at this URL; keep nothing, retry at once.

    Args:
        app_url: Where the app's three Slack routes and its redirect page are.
        changes: Fields of `Config` to set otherwise.
    """
    base = f"{app_url}/work-apps/slack"
    app = SlackApp(
        id="A0INTERLOCK",
        name="Interlock",
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
        signing_secret=Secret(SIGNING_SECRET),
        events_url=f"{base}/events",
        interactions_url=f"{base}/interactions",
        commands_url=f"{base}/commands",
        redirect_urls=(f"{base}/oauth_redirect",),
        slash_commands=("/interlock",),
        event_subscriptions=frozenset(DEFAULT_SUBSCRIPTIONS),
        global_shortcuts=("ask_anything",),
        message_shortcuts=("ask_about_message",),
    )
    config = Config(
        slack_listen=FREE_PORT,
        platform_listen=FREE_PORT,
        auth_listen=FREE_PORT,
        app=app,
        dashboard_url=f"{base}/",
        user_token_keys=(USER_TOKEN_KEY,),
        auth_cookie_secret=Secret(COOKIE_SECRET),
        retry_delays_s=(0, 0, 0),
        word_delay_s=0,
    )
    return dataclasses.replace(config, **changes)


@dataclass(frozen=True)
class Received:
    """One request of Slack as the app got it."""

    path: str
    headers: dict[str, str]
    body: bytes

    def event(self) -> dict[str, Any]:
        """Return the event of a delivery of the Events API."""
        return dict(self.envelope()["event"])

    def envelope(self) -> dict[str, Any]:
        """Return the whole delivery."""
        return dict(json.loads(self.body))

    def payload(self) -> dict[str, Any]:
        """Return the payload of an interaction."""
        return dict(json.loads(self.fields()["payload"]))

    def fields(self) -> dict[str, str]:
        """Return the fields of a form, such as a slash command's."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


@dataclass
class RecordingApp:
    """An app that keeps what Slack sends it and answers as told.

    Attributes:
        url: Where it listens.
        received: What came, oldest first.
        answers: What to answer next, oldest first; then 200 without a body.
        silent: How many requests, from the next one on, get no answer in time.
    """

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answers: list[web.Response] = field(default_factory=list)
    silent: int = 0
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, count: int) -> list[Received]:
        """Wait until that many requests came; return all of them.

        Raises:
            TimeoutError: They did not come within ten seconds.
        """
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)
        return list(self.received)

    async def answer(self, request: web.Request) -> web.Response:
        """Keep a request and answer it."""
        got = Received(request.path, dict(request.headers), await request.read())
        async with self._arrived:
            self.received.append(got)
            self._arrived.notify_all()
        if self.silent:
            self.silent -= 1
            # Until the asker hangs up.
            await asyncio.Event().wait()
        return self.answers.pop(0) if self.answers else web.Response(status=HTTPStatus.OK)


@asynccontextmanager
async def recording_app() -> AsyncIterator[RecordingApp]:
    """Serve a recording app on a free port."""
    app = RecordingApp()
    server = web.Application()
    server.router.add_route("*", "/{tail:.*}", app.answer)
    runner = web.AppRunner(server, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        app.url = f"http://{host}:{port}"
        yield app
    finally:
        await runner.cleanup()


async def install(
    http: aiohttp.ClientSession,
    slack_url: str,
    config: Config,
    installer: str = "T0NORTHWIND/U0ADA",
    **fields: str,
) -> str:
    """Consent to the app as a workspace's administrator; return the code for the app.

    Args:
        http: Without cookies of anybody's.
        slack_url: Where the stand-in is.
        config: Its configuration.
        installer: A Workspace or Enterprise, and who decides for it.
        fields: Other fields of the consent page, such as `scope` or `workspaces`.
    """
    form = {
        "client_id": CLIENT_ID,
        "scope": BOT_SCOPES,
        "redirect_uri": config.app.redirect_urls[0],
        "state": "example-state",
        "installer": installer,
        "decision": "allow",
        **fields,
    }
    async with http.post(
        f"{slack_url}/oauth/v2/authorize",
        data=form,
        headers={"Origin": slack_url},
        allow_redirects=False,
    ) as response:
        location = response.headers["Location"]
    return URL(location).query["code"]


def user_token_claims(now: float, **changes: Any) -> dict[str, Any]:
    """Return the claims of a valid slackUser token of Mia, with changes; None leaves one out."""
    claims = {
        "iss": "inkeep-auth",
        "aud": "inkeep-api",
        "sub": "user_mia",
        "iat": int(now),
        "exp": int(now) + 300,
        "jti": "example-jti",
        "tokenUse": "slackUser",
        "act": {"sub": "inkeep-work-app-slack"},
        "tenantId": "northwind",
        "slack": {"teamId": "T0NORTHWIND", "userId": "U0MIA"},
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def sign_user_token(claims: dict[str, Any], key: UserTokenKey = USER_TOKEN_KEY) -> str:
    """Sign claims as a slackUser token."""
    return jwt.encode(claims, key.secret.reveal(), algorithm="HS256", headers={"kid": key.kid})


@dataclass
class Clock:
    """A clock that tests move."""

    seconds: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass
class SlackStage:
    """A Slack with an app that records, and the hands to work both.

    Attributes:
        url: Where Slack is, without a slash at the end.
    """

    url: str
    config: Config
    app: RecordingApp
    http: aiohttp.ClientSession
    clock: Clock

    @property
    def api_url(self) -> str:
        """Where the Web API is, as slack_sdk wants it."""
        return f"{self.url}/api/"

    async def call(self, method: str, token: str = "", /, **arguments: Any) -> dict[str, Any]:
        """Call a method of the Web API with a form, and return its answer as it is."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.post(
            f"{self.api_url}{method}", data=arguments, headers=headers
        ) as response:
            return dict(await response.json())

    async def code(self, installer: str = "T0NORTHWIND/U0ADA", **fields: str) -> str:
        """Consent as an administrator; return the code for the app."""
        return await install(self.http, self.url, self.config, installer, **fields)

    async def exchange(self, code: str, **changes: str) -> dict[str, Any]:
        """Exchange a code as the app does, and return Slack's answer as it is."""
        arguments = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "code": code,
            "redirect_uri": self.config.app.redirect_urls[0],
            **changes,
        }
        return await self.call("oauth.v2.access", **arguments)

    async def installed(
        self, installer: str = "T0NORTHWIND/U0ADA", **fields: str
    ) -> dict[str, Any]:
        """Install the app and return the answer with its tokens."""
        return await self.exchange(await self.code(installer, **fields))

    async def refresh(self, refresh_token: str) -> dict[str, Any]:
        """Spend a refresh token as the app does, and return Slack's answer as it is."""
        return await self.call(
            "oauth.v2.access",
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            grant_type="refresh_token",
            refresh_token=refresh_token,
        )

    async def do(self, what: str, **body: Any) -> Any:
        """Do something through the control API, as Mia of Northwind unless told otherwise."""
        body = {"team": "T0NORTHWIND", "user": "U0MIA", **body}
        async with self.http.post(f"{self.url}/_control/{what}", json=body) as response:
            return await response.json()

    async def see(self, what: str, **query: str) -> Any:
        """Look at something through the control API."""
        async with self.http.get(f"{self.url}/_control/{what}", params=query) as response:
            return await response.json()


@asynccontextmanager
async def slack_stage(
    subscriptions: Iterable[str] = DEFAULT_SUBSCRIPTIONS, **changes: Any
) -> AsyncIterator[SlackStage]:
    """Serve a Slack with a recording app and a clock that stands still.

    Args:
        subscriptions: The events that the app gets.
        changes: Fields of `Config` to set otherwise.
    """
    clock = Clock()
    async with recording_app() as app, aiohttp.ClientSession() as http:
        config = example_config(app.url, **changes)
        told = dataclasses.replace(config.app, event_subscriptions=frozenset(subscriptions))
        config = dataclasses.replace(config, app=told)
        async with running(config, clock) as urls:
            yield SlackStage(urls.slack, config, app, http, clock)
