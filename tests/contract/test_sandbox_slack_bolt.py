"""A small app on Bolt for Python, with slack_sdk's own store, unchanged, at the Slack stand-in."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from slack_bolt.adapter.aiohttp import to_aiohttp_response, to_bolt_request
from slack_bolt.async_app import AsyncAck, AsyncApp, AsyncSay
from slack_bolt.oauth.async_oauth_settings import AsyncOAuthSettings
from slack_sdk.oauth.installation_store.file import FileInstallationStore
from slack_sdk.oauth.state_store import FileOAuthStateStore
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.config import Config
from interlock_sandbox.server import running
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SIGNING_SECRET, example_config

TEAM, ENTERPRISE, SALES = "T0NORTHWIND", "E0MERIDIAN", "T0MERSALES"
HELP, MIA, HUGO, GRETA = "C0NOHELP", "U0MIA", "U0HUGO", "U0GRETA"
BASE = "/work-apps/slack"
SCOPES = ["app_mentions:read", "channels:history", "chat:write", "commands"]
# Every token is due at once, so that each event rotates it.
ALWAYS_DUE_MINUTES = 24 * 60
MODAL = {
    "type": "modal",
    "callback_id": "question",
    "title": {"type": "plain_text", "text": "Ask"},
    "submit": {"type": "plain_text", "text": "Ask"},
    "blocks": [
        {
            "type": "input",
            "block_id": "words",
            "label": {"type": "plain_text", "text": "Question"},
            "element": {"type": "plain_text_input", "action_id": "text"},
        }
    ],
}
pytestmark = [
    # slack_sdk 3.48 still passes the client's credentials by aiohttp's old way.
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
]


@dataclass
class Stage:
    """A Slack, and a Bolt app that it sends to.

    Attributes:
        store: Where the app keeps its installations.
        asked: What people asked by the app's modal.
    """

    url: str
    app_url: str
    config: Config
    http: aiohttp.ClientSession
    store: FileInstallationStore
    asked: list[str] = field(default_factory=list)

    async def install(self, installer: str, **fields: str) -> str:
        """Walk from the app's install page over Slack's consent and back; return the last page."""
        async with self.http.get(f"{self.app_url}/install", allow_redirects=False) as response:
            asked = response.headers["Location"]
            state = response.cookies["slack-app-oauth-state"].value
        async with self.http.get(asked) as response:
            assert response.status == 200
            form = dict(response.url.query)
        form |= {"installer": installer, "decision": "allow", **fields}
        async with self.http.post(
            asked.partition("?")[0],
            data=form,
            headers={"Origin": self.url},
            allow_redirects=False,
        ) as response:
            back = response.headers["Location"]
        cookie = {"Cookie": f"slack-app-oauth-state={state}"}
        async with self.http.get(back, headers=cookie) as response:
            assert response.status == 200
            return await response.text()

    async def do(self, what: str, **body: Any) -> Any:
        """Do something through the control API, as Mia of Northwind unless told otherwise."""
        body = {"team": TEAM, "user": MIA, **body}
        async with self.http.post(f"{self.url}/_control/{what}", json=body) as response:
            return await response.json()

    async def see(self, what: str, **query: str) -> Any:
        """Look at something through the control API."""
        async with self.http.get(f"{self.url}/_control/{what}", params=query) as response:
            return await response.json()

    async def settle(self) -> None:
        """Wait until the app took what was sent to it last."""
        deliveries = (await self.see("deliveries", settled="last"))["deliveries"]
        assert deliveries[-1]["outcome"] == "delivered"

    async def thread(self, root: str, channel: str = HELP, team: str = TEAM) -> list[str]:
        """List the texts of a thread's replies."""
        found = await self.see("messages", team=team, channel=channel)
        return [each["text"] for each in found["messages"] if each.get("thread_ts") == root]


def _make_app(slack_url: str, store: FileInstallationStore, folder: Path, asked: list[str]) -> Any:
    """Make the app as Bolt's own guide does; only Slack's address differs."""
    app = AsyncApp(
        signing_secret=SIGNING_SECRET,
        client=AsyncWebClient(base_url=f"{slack_url}/api/"),
        installation_store=store,
        # Events are answered when they are done with, so that tests need not wait.
        process_before_response=True,
        oauth_settings=AsyncOAuthSettings(
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            scopes=SCOPES,
            installation_store=store,
            state_store=FileOAuthStateStore(expiration_seconds=600, base_dir=str(folder)),
            install_path=f"{BASE}/install",
            install_page_rendering_enabled=False,
            redirect_uri_path=f"{BASE}/oauth_redirect",
            authorization_url=f"{slack_url}/oauth/v2/authorize",
            token_rotation_expiration_minutes=ALWAYS_DUE_MINUTES,
        ),
    )
    app.enable_token_revocation_listeners()

    @app.event("app_mention")
    async def answer(event: dict[str, Any], say: AsyncSay) -> None:
        await say(text=f"Hello <@{event['user']}>", thread_ts=event["ts"])

    @app.command("/interlock")
    async def help_out(ack: AsyncAck, command: dict[str, Any]) -> None:
        await ack(f"You said {command['text']}")

    @app.shortcut("ask_anything")
    async def ask(ack: AsyncAck, shortcut: dict[str, Any], client: AsyncWebClient) -> None:
        await client.views_open(trigger_id=shortcut["trigger_id"], view=MODAL)
        await ack()

    @app.view("question")
    async def take(ack: AsyncAck, view: dict[str, Any]) -> None:
        asked.append(view["state"]["values"]["words"]["text"]["value"])
        await ack()

    return app


@asynccontextmanager
async def _bolt(folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    """Serve a Slack and a Bolt app for each other."""
    apps: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        [app] = apps
        asked = await to_bolt_request(request)
        if request.method == "GET":
            flow = app.oauth_flow
            is_install = request.path.endswith("/install")
            work = flow.handle_installation if is_install else flow.handle_callback
            return await to_aiohttp_response(await work(asked))
        return await to_aiohttp_response(await app.async_dispatch(asked))

    server = web.Application()
    server.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            config = example_config(f"http://{host}:{port}", **changes)
            async with running(config) as urls:
                store = FileInstallationStore(base_dir=str(folder / "store"), client_id=CLIENT_ID)
                app_url = f"http://{host}:{port}{BASE}"
                stage = Stage(urls.slack, app_url, config, http, store)
                apps.append(_make_app(urls.slack, store, folder / "states", stage.asked))
                yield stage
        finally:
            await runner.cleanup()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Give a Slack and a Bolt app without token rotation."""
    async with _bolt(tmp_path) as made:
        yield made


@pytest.fixture
async def rotating(tmp_path: Path) -> AsyncIterator[Stage]:
    """Give a Slack and a Bolt app with token rotation, without a grace period."""
    async with _bolt(tmp_path, token_rotation=True, refresh_grace_s=0) as made:
        yield made


async def test_bolt_app_is_installed_mentioned_and_replies(stage: Stage) -> None:
    """From the install page to the answer in the thread, with nothing of ours in between."""
    page = await stage.install(f"{TEAM}/U0ADA")
    assert "Thank you" in page
    kept = await stage.store.async_find_installation(enterprise_id=None, team_id=TEAM)
    assert kept is not None
    assert (kept.user_id, kept.bot_id) == ("U0ADA", "B0NORTHWIND")
    root = (await stage.do("post", channel=HELP, typed="@Interlock hello"))["ts"]
    await stage.settle()
    assert await stage.thread(root) == [f"Hello <@{MIA}>"]


async def test_bolt_app_answers_commands_shortcuts_and_modals(stage: Stage) -> None:
    """Bolt finds each of them by the names that Slack gives them."""
    await stage.install(f"{TEAM}/U0ADA")
    await stage.do("command", channel=HELP, command="/interlock", text="something")
    seen = await stage.see("messages", team=TEAM, channel=HELP, user=MIA)
    assert seen["messages"][-1]["text"] == "You said something"
    used = await stage.do("shortcut", callback_id="ask_anything")
    assert used["accepted"] is True
    [view] = (await stage.see("views", team=TEAM, user=MIA))["views"]
    values = {"words": {"text": "why?"}}
    await stage.do("submit-view", view=view["id"], values=values)
    assert stage.asked == ["why?"]
    assert (await stage.see("views", team=TEAM, user=MIA))["views"] == []


async def test_bolt_app_rotates_its_tokens_and_goes_on(rotating: Stage) -> None:
    """At each event Bolt spends the refresh token it kept, keeps the next, and answers."""
    await rotating.install(f"{TEAM}/U0ADA")
    tokens = set()
    for number in range(3):
        kept = await rotating.store.async_find_bot(enterprise_id=None, team_id=TEAM)
        assert kept is not None
        assert str(kept.bot_token).startswith("xoxe.xoxb-1-")
        assert (kept.bot_token_expires_at or 0) > time.time() + 43_000
        tokens.add(kept.bot_token)
        hello = f"@Interlock hello {number}"
        root = (await rotating.do("post", channel=HELP, typed=hello))["ts"]
        await rotating.settle()
        assert await rotating.thread(root) == [f"Hello <@{MIA}>"]
    assert len(tokens) == 3
    calls = (await rotating.see("calls", method="oauth.v2.access"))["calls"]
    assert [each["error"] for each in calls] == [None] * len(calls)


async def test_bolt_app_serves_a_whole_enterprise(stage: Stage) -> None:
    """An org-wide installation is kept without a team, and found for any workspace of it."""
    await stage.install(f"{ENTERPRISE}/{GRETA}", workspaces=SALES)
    kept = await stage.store.async_find_installation(
        enterprise_id=ENTERPRISE, team_id=None, is_enterprise_install=True
    )
    assert kept is not None
    assert kept.enterprise_url == "https://meridian.enterprise.slack.com/"
    channel = "C0MSHELP"
    hello = {"team": SALES, "user": HUGO, "channel": channel, "typed": "@Interlock hello"}
    root = (await stage.do("post", **hello))["ts"]
    await stage.settle()
    assert await stage.thread(root, channel, SALES) == [f"Hello <@{HUGO}>"]


async def test_bolt_app_forgets_who_uninstalls_it(stage: Stage) -> None:
    """Bolt's own listeners read Slack's two events and delete what was kept."""
    await stage.install(f"{TEAM}/U0ADA")
    await stage.do("hold-events")
    await stage.do("uninstall", order=["tokens_revoked", "app_uninstalled"], authorizations=True)
    await stage.do("release-events")
    await stage.settle()
    kept = await stage.store.async_find_bot(enterprise_id=None, team_id=TEAM)
    assert kept is None


async def test_bolt_app_proves_that_its_url_is_its_own(stage: Stage) -> None:
    """Bolt answers the challenge, and refuses what Slack did not sign."""
    assert (await stage.do("url-verification"))["accepted"] is True
    event = {"type": "event_callback", "event": {"type": "app_mention"}}
    forged = await stage.do("raw", body=event, signature="wrong")
    assert forged["status"] == 401
    late = await stage.do("raw", body=event, age_s=400)
    assert late["status"] == 401
