"""The playground in a real browser, with the keyboard."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
from playwright.async_api import Browser, Page, Response, Route, expect
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.config import Config
from interlock_sandbox.server import running
from interlock_sandbox.testing import (
    CLIENT_ID,
    CLIENT_SECRET,
    RecordingApp,
    example_config,
    install,
    recording_app,
)
from tests.support.chromium import open_chromium

pytestmark = [
    pytest.mark.chromium,
    # slack_sdk 3.48 still passes the client's credentials by aiohttp's old way.
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
]
TEAM, HELP, MIA = "T0NORTHWIND", "C0NOHELP", "U0MIA"


@dataclass
class Stage:
    """A browser before the playground, and what stands behind it.

    Attributes:
        complaints: What the browser's console, or a failed request, complained of.
    """

    url: str
    config: Config
    app: RecordingApp
    http: aiohttp.ClientSession
    browser: Browser
    complaints: list[str] = field(default_factory=list)

    async def open(self, user: str = MIA, width: int = 1280) -> Page:
        """Open the playground as somebody."""
        page = await self.browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", self._judge)
        await page.goto(f"{self.url}/?team={TEAM}&user={user}&channel={HELP}")
        await expect(page.locator("#room-name")).to_have_text("# help")
        return page

    def _judge(self, response: Response) -> None:
        if not response.ok:
            self.complaints.append(f"{response.status} {response.url}")

    async def installed(self) -> AsyncWebClient:
        """Install the app and return a client with its bot token."""
        code = await install(self.http, self.url, self.config)
        base_url = f"{self.url}/api/"
        answer = await AsyncWebClient(base_url=base_url).oauth_v2_access(
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            code=code,
            redirect_uri=self.config.app.redirect_urls[0],
        )
        return AsyncWebClient(base_url=base_url, token=answer["access_token"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a browser, a Slack and an app that records."""
    async with recording_app() as app, aiohttp.ClientSession() as http, open_chromium() as browser:
        config = example_config(app.url)
        async with running(config) as urls:
            made = Stage(urls.slack, config, app, http, browser)
            yield made
    assert made.complaints == []


async def test_newcomer_is_sent_to_the_dashboard(stage: Stage) -> None:
    """Before the app is installed the page says so, and afterwards no more, by itself."""
    page = await stage.open()
    notice = page.get_by_role("region", name="About the app here")
    await expect(notice).to_contain_text("Interlock is not in Northwind yet")
    link = notice.get_by_role("link", name="Open the dashboard")
    assert await link.get_attribute("href") == stage.config.dashboard_url
    await stage.installed()
    await expect(notice).to_be_hidden()


async def test_question_is_asked_by_keyboard_and_its_answer_grows(stage: Stage) -> None:
    """A mention is completed, sent, and answered in a thread that opens by itself."""
    client = await stage.installed()
    page = await stage.open()
    await page.get_by_label("Write a message").focus()
    await page.keyboard.type("@Inter")
    await expect(page.locator(".suggestions li")).to_have_text(["Interlockapp"])
    await page.keyboard.press("Enter")
    await page.keyboard.type("what is *new*?")
    await page.keyboard.press("Enter")
    event = json.loads((await stage.app.wait_for(1))[0].body)["event"]
    assert event["text"].endswith("> what is *new*?")
    started = await client.chat_startStream(
        channel=HELP, thread_ts=event["ts"], recipient_user_id=MIA, recipient_team_id=TEAM
    )
    ts = str(started["ts"])
    await client.chat_appendStream(channel=HELP, ts=ts, markdown_text="**Two** ")
    thread = page.get_by_role("log", name="Messages of the thread")
    await expect(thread.locator("strong", has_text="Two")).to_be_visible()
    await expect(thread).to_contain_text("Interlock is answering")
    await client.chat_stopStream(channel=HELP, ts=ts, markdown_text="things.")
    await expect(thread).to_contain_text("Two things.")
    await expect(thread).not_to_contain_text("is answering")
    await page.keyboard.press("Escape")
    await expect(thread).to_be_hidden()
    await expect(page.get_by_role("button", name="1 reply")).to_be_visible()


async def test_whisper_is_seen_by_one_and_its_buttons_work(stage: Stage) -> None:
    """An ephemeral message shows to its reader only; link and button both tell the app."""
    client = await stage.installed()
    mia, ben = await stage.open(), await stage.open("U0BEN")
    buttons: list[dict[str, Any]] = [
        {
            "type": "button",
            "action_id": "link",
            "url": f"{stage.url}/static/favicon.svg",
            "text": {"type": "plain_text", "text": "Link my account"},
        },
        {
            "type": "button",
            "action_id": "later",
            "text": {"type": "plain_text", "text": "Not now"},
        },
    ]
    await client.chat_postEphemeral(
        channel=HELP,
        user=MIA,
        text="Link your account",
        blocks=[{"type": "actions", "elements": buttons}],
    )
    await client.chat_postMessage(channel=HELP, text="for everybody")
    await expect(ben.get_by_text("for everybody")).to_be_visible()
    await expect(ben.get_by_text("Only visible to you")).to_have_count(0)
    await expect(mia.get_by_text("Only visible to you")).to_be_visible()
    async with mia.expect_popup() as opened:
        await mia.get_by_role("link", name="Link my account").press("Enter")
    await (await opened.value).close()
    await mia.get_by_role("button", name="Not now").press("Enter")
    actions = [
        json.loads(parse_qs(each.body.decode())["payload"][0])["actions"][0]["action_id"]
        for each in await stage.app.wait_for(2)
    ]
    assert actions == ["link", "later"]
    await mia.get_by_role("button", name="Dismiss").press("Enter")
    await expect(mia.get_by_text("Only visible to you")).to_have_count(0)


async def test_a_channel_is_read_once_its_changes_are_followed(stage: Stage) -> None:
    """A page that has just been opened cannot miss what is written meanwhile."""
    steps: list[str] = []
    page = await stage.browser.new_page()
    page.on("response", lambda got: steps.append("followed") if "/feed?" in got.url else None)
    page.on("request", lambda ask: steps.append("read") if "/messages?" in ask.url else None)
    await page.goto(f"{stage.url}/?team={TEAM}&user={MIA}&channel={HELP}")
    await expect(page.get_by_text("Nobody has written here yet.")).to_be_visible()
    assert steps == ["followed", "read"]


async def test_what_is_written_while_a_channel_is_read_is_shown(stage: Stage) -> None:
    """A message that is newer than what was read stays, though it came first."""
    client = await stage.installed()
    page = await stage.open()
    await page.get_by_role("button", name="# general").click()
    await expect(page.locator("#room-name")).to_have_text("# general")
    await client.chat_postMessage(channel=HELP, text="before")

    async def answer_late(route: Route) -> None:
        read = await route.fetch()
        await client.chat_postMessage(channel=HELP, text="meanwhile")
        await expect(page.get_by_text("meanwhile")).to_be_visible()
        await route.fulfill(response=read)

    await page.route("**/messages?*", answer_late)
    await page.get_by_role("button", name="# help").click()
    await expect(page.get_by_text("before")).to_be_visible()
    await expect(page.get_by_text("meanwhile")).to_be_visible()


async def test_text_from_the_app_is_never_markup_of_the_page(stage: Stage) -> None:
    """HTML in a message stays text, and links lead to http only."""
    client = await stage.installed()
    page = await stage.open()
    hostile = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) <javascript:alert(1)|y>"
    await client.chat_postMessage(channel=HELP, markdown_text=hostile)
    await client.chat_postMessage(channel=HELP, text=hostile)
    messages = page.locator("#messages .message")
    await expect(messages).to_have_count(2)
    await expect(messages.locator("img")).to_have_count(0)
    await expect(messages.locator("a")).to_have_count(0)
    await expect(messages.first).to_contain_text("<img src=x onerror=alert(1)>")


async def test_narrow_window_keeps_everything_in_reach(stage: Stage) -> None:
    """At 800 pixels nothing needs sideways scrolling, with and without a thread."""
    client = await stage.installed()
    page = await stage.open(width=800)
    posted = await client.chat_postMessage(channel=HELP, text="a long word: " + "x" * 300)
    await client.chat_postMessage(channel=HELP, thread_ts=str(posted["ts"]), text="a reply")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    await expect(page.get_by_role("button", name="1 reply")).to_be_visible()
    assert await page.evaluate(wide) is False
    await page.get_by_role("button", name="1 reply").press("Enter")
    await expect(page.get_by_label("Reply in the thread")).to_be_focused()
    assert await page.evaluate(wide) is False


async def test_person_and_place_are_kept_in_the_address(stage: Stage) -> None:
    """Choosing a person or a channel survives a reload."""
    page = await stage.open()
    await page.get_by_role("radio", name="Ben Okafor").check(force=True)
    await page.get_by_role("button", name="# general").click()
    await expect(page.locator("#room-name")).to_have_text("# general")
    await page.reload()
    await expect(page.locator("#room-name")).to_have_text("# general")
    await expect(page.get_by_role("radio", name="Ben Okafor")).to_be_checked()
