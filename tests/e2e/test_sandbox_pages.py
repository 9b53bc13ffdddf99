"""Every page of the sandbox in a browser: readable without a mouse, without eyes, on a phone."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from slack_sdk.web.async_client import AsyncWebClient

from interlock_chassis.secret import Secret
from interlock_sandbox.config import Config, NangoListener
from interlock_sandbox.nango.testing import API_KEY, INTEGRATION, SIGNING_KEY
from interlock_sandbox.server import Urls, running
from interlock_sandbox.testing import (
    BOT_SCOPES,
    CLIENT_ID,
    CLIENT_SECRET,
    FREE_PORT,
    RecordingApp,
    example_config,
    install,
    recording_app,
)
from tests.support.axe import Axe
from tests.support.chromium import open_chromium

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.node,
    # slack_sdk 3.48 still passes the client's credentials by aiohttp's old way.
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
]
TEAM, HELP, MIA = "T0NORTHWIND", "C0NOHELP", "U0MIA"
# Tall, so that nothing is scrolled half out of sight, where axe cannot judge its contrast.
SIZES = ((1280, 1600), (360, 3000))


@pytest.fixture(scope="session")
def axe() -> Axe:
    """Give what finds faults in pages."""
    return Axe()


@dataclass
class Stage:
    """A browser, the stand-ins whose pages it opens, and an app that they talk to."""

    urls: Urls
    config: Config
    app: RecordingApp
    http: aiohttp.ClientSession
    browser: Browser
    axe: Axe

    async def open(self, address: str, scheme: str) -> Page:
        """Open an address in a browser of its own that knows nobody yet."""
        context = await self.browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce"
        )
        context.set_default_timeout(15_000)
        page = await context.new_page()
        await page.goto(address)
        return page

    async def judge(self, page: Page) -> None:
        """Have axe look at the page, on a desk and on a phone."""
        for width, height in SIZES:
            await page.set_viewport_size({"width": width, "height": height})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            faults = await self.axe.find_faults(page)
            assert not faults, "\n".join(faults)
        await page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})

    async def bot(self) -> AsyncWebClient:
        """Install the app; return a client with its token."""
        scope = f"{BOT_SCOPES},reactions:write"
        code = await install(self.http, self.urls.slack, self.config, scope=scope)
        base_url = f"{self.urls.slack}/api/"
        answer = await AsyncWebClient(base_url=base_url).oauth_v2_access(
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            code=code,
            redirect_uri=self.config.app.redirect_urls[0],
        )
        return AsyncWebClient(base_url=base_url, token=answer["access_token"])

    async def connect_link(self) -> str:
        """Open a session at Nango; return the page to connect on."""
        body = {"allowed_integrations": [INTEGRATION], "tags": {"tenantId": "northwind"}}
        headers = {"Authorization": f"Bearer {API_KEY}"}
        url = f"{self.urls.nango}/connect/sessions"
        async with self.http.post(url, json=body, headers=headers) as response:
            return str((await response.json())["data"]["connect_link"])


@pytest.fixture
async def stage(axe: Axe) -> AsyncIterator[Stage]:
    """Give all stand-ins that have pages."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(recording_app())
        http = await stack.enter_async_context(aiohttp.ClientSession())
        nango = NangoListener(
            listen=FREE_PORT,
            api_key=Secret(API_KEY),
            webhook_key=Secret(SIGNING_KEY),
            webhook_urls=(),
        )
        config = dataclasses.replace(example_config(app.url), nango=nango)
        urls = await stack.enter_async_context(running(config))
        browser = await stack.enter_async_context(open_chromium())
        yield Stage(urls, config, app, http, browser, axe)


# Pages of one address.


async def _sign_in(stage: Stage) -> str:
    return f"{stage.urls.auth}/sign-in?callbackURL={stage.urls.auth}/"


async def _sign_in_elsewhere(stage: Stage) -> str:
    return f"{stage.urls.auth}/sign-in?callbackURL=https://evil.example/"


async def _no_account(stage: Stage) -> str:
    return f"{stage.urls.auth}/"


async def _consent(stage: Stage, scope: str = BOT_SCOPES) -> str:
    asked = {
        "client_id": CLIENT_ID,
        "scope": scope,
        "user_scope": "chat:write",
        "redirect_uri": stage.config.app.redirect_urls[0],
        "state": "example-state",
    }
    return f"{stage.urls.slack}/oauth/v2/authorize?{urlencode(asked)}"


async def _consent_to_a_webhook(stage: Stage) -> str:
    return await _consent(stage, f"{BOT_SCOPES},incoming-webhook")


async def _refused_consent(stage: Stage) -> str:
    return f"{stage.urls.slack}/oauth/v2/authorize?client_id=1.2"


async def _connect(stage: Stage) -> str:
    return await stage.connect_link()


async def _not_connected(stage: Stage) -> str:
    return f"{stage.urls.nango}/?session_token=unknown"


Address = Callable[[Stage], Awaitable[str]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("address", "heading"),
    [
        pytest.param(_sign_in, "Who are you?", id="sign-in"),
        pytest.param(_sign_in_elsewhere, "This sign-in leads elsewhere", id="sign-in-elsewhere"),
        pytest.param(_no_account, "You are not signed in", id="account-nobody"),
        pytest.param(_consent, "Interlock asks to join a workspace", id="consent"),
        pytest.param(
            _consent_to_a_webhook, "Interlock asks to join a workspace", id="consent-webhook"
        ),
        pytest.param(_refused_consent, "That did not work", id="consent-refused"),
        pytest.param(_connect, "Connect an account", id="nango-connect"),
        pytest.param(_not_connected, "Nothing was connected", id="nango-error"),
    ],
)
async def test_a_page_reads_well(stage: Stage, address: Address, heading: str, scheme: str) -> None:
    """Labels, headings, contrast in light and dark, and the width of a phone."""
    page = await stage.open(await address(stage), scheme)
    await expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    await stage.judge(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_account_reads_well_to_whoever_signed_in(stage: Stage, scheme: str) -> None:
    """After signing in by keyboard the page of one's own account, and who else there is."""
    page = await stage.open(await _sign_in(stage), scheme)
    await page.get_by_role("button", name="Ada").press("Enter")
    await expect(page.get_by_role("heading", level=2)).to_have_text("Organizations")
    await stage.judge(page)
    await page.goto(await _sign_in(stage))
    await expect(page.get_by_role("main")).to_contain_text("You are signed in as")
    await stage.judge(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_what_was_connected_reads_well(stage: Stage, scheme: str) -> None:
    """The way through Slack's consent to Nango's last page."""
    page = await stage.open(await stage.connect_link(), scheme)
    await page.get_by_role("link", name="Connect Slack work app").press("Enter")
    await page.get_by_role("button", name="Allow").press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Connected")
    await stage.judge(page)


# The playground.


async def _chat(stage: Stage, scheme: str) -> Page:
    page = await stage.open(f"{stage.urls.slack}/?team={TEAM}&user={MIA}&channel={HELP}", scheme)
    await expect(page.locator("#room-name")).to_have_text("# help")
    return page


def _words(text: str, kind: str = "plain_text") -> dict[str, str]:
    return {"type": kind, "text": text}


def _button(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "button", "action_id": name.lower(), "text": _words(name), **more}


_EVERY_BLOCK: list[dict[str, Any]] = [
    {"type": "header", "text": _words("Findings")},
    {
        "type": "section",
        "text": _words("*Two* of `three`, says <@U0BEN> in <#C0NOHELP>", "mrkdwn"),
        "accessory": {
            "type": "static_select",
            "action_id": "pick",
            "placeholder": _words("Pick an agent"),
            "options": [{"text": _words("Triage"), "value": "triage"}],
        },
    },
    {"type": "section", "fields": [_words("*One*", "mrkdwn"), _words("Other")]},
    {"type": "divider"},
    {"type": "context", "elements": [_words("from the _archive_", "mrkdwn")]},
    {
        "type": "actions",
        "elements": [
            _button("Approve", style="primary"),
            _button("Deny", style="danger"),
            _button("Open", url="https://example.com/"),
        ],
    },
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_chat_reads_well_before_the_app_is_there(stage: Stage, scheme: str) -> None:
    """An empty channel, with the notice that leads to the dashboard."""
    page = await _chat(stage, scheme)
    await expect(page.get_by_role("region", name="About the app here")).to_be_visible()
    await stage.judge(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_messages_read_well(stage: Stage, scheme: str) -> None:
    """Questions, blocks, Markdown, a whisper, a growing answer in a thread, suggestions."""
    client = await stage.bot()
    page = await _chat(stage, scheme)
    await page.get_by_label("Write a message").fill("what is *new*?")
    await page.keyboard.press("Enter")
    await client.chat_postEphemeral(
        channel=HELP,
        user=MIA,
        text="Link your account",
        blocks=[{"type": "actions", "elements": [_button("Later")]}],
    )
    posted = await client.chat_postMessage(channel=HELP, text="Findings", blocks=_EVERY_BLOCK)
    ts = str(posted["ts"])
    await client.reactions_add(channel=HELP, timestamp=ts, name="eyes")
    await client.chat_postMessage(
        channel=HELP,
        markdown_text="# Title\n\n> quoted\n\n- one\n- two\n\n```\ncode\n```\n\n[a link](https://a.example)",
    )
    started = await client.chat_startStream(
        channel=HELP, thread_ts=ts, recipient_user_id=MIA, recipient_team_id=TEAM
    )
    stream = str(started["ts"])
    await client.chat_appendStream(channel=HELP, ts=stream, markdown_text="**Two** ")
    await expect(page.get_by_text("Only visible to you")).to_be_visible()
    await stage.judge(page)
    await page.get_by_role("button", name="1 reply").press("Enter")
    await expect(page.get_by_role("log", name="Messages of the thread")).to_contain_text("Two")
    await stage.judge(page)
    await client.chat_stopStream(channel=HELP, ts=stream, markdown_text="things.")
    await page.keyboard.press("Escape")
    await page.get_by_label("Write a message").fill("@")
    await page.keyboard.type("b")
    suggestions = page.get_by_role("listbox", name="Suggestions")
    await expect(suggestions.get_by_role("option").first).to_be_visible()
    await stage.judge(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_modal_reads_well(stage: Stage, scheme: str) -> None:
    """A form over the chat, and what the app finds wrong with what was put in."""
    client = await stage.bot()
    page = await _chat(stage, scheme)
    await page.get_by_label("Write a message").fill("/interlock")
    await page.keyboard.press("Escape")
    await page.keyboard.press("Enter")
    [got] = await stage.app.wait_for(1)
    [trigger] = parse_qs(got.body.decode())["trigger_id"]
    question = {
        "type": "input",
        "block_id": "question",
        "label": _words("Question"),
        "hint": _words("As you would ask a colleague."),
        "element": {"type": "plain_text_input", "action_id": "text", "multiline": True},
    }
    agent = {
        "type": "input",
        "block_id": "agent",
        "optional": True,
        "label": _words("Agent"),
        "element": {
            "type": "static_select",
            "action_id": "pick",
            "options": [{"text": _words("Triage"), "value": "triage"}],
        },
    }
    stage.app.answers = [
        web.json_response(
            {"response_action": "errors", "errors": {"question": "That is too short."}}
        )
    ]
    await client.views_open(
        trigger_id=trigger,
        view={
            "type": "modal",
            "title": _words("Ask an agent"),
            "submit": _words("Ask"),
            "close": _words("Cancel"),
            "blocks": [*_EVERY_BLOCK[:2], question, agent],
        },
    )
    await expect(page.get_by_role("dialog", name="Ask an agent")).to_be_visible()
    await stage.judge(page)
    await page.get_by_label("Question").fill("?")
    await page.get_by_role("button", name="Ask", exact=True).press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("That is too short.")
    await stage.judge(page)
