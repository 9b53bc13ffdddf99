"""The main path in a real browser, with a picture of every page."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from interlock_cli.journey import ADA, MIA, TEAM
from interlock_cli.launch import Running
from tests.support.chromium import open_chromium

PICTURES = Path(__file__).parents[2] / "screenshots"
QUESTION = "How can a customer return an order?"
# A phone of the smaller kind; every page must fit it.
PHONE_WIDTH = 360

pytestmark = pytest.mark.chromium


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Run the Chromium of this machine."""
    async with open_chromium() as browser:
        yield browser


class _Visitor:
    """One person's tab; every complaint of the browser is kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self._listen(page)

    @classmethod
    async def open(cls, browser: Browser) -> "_Visitor":
        """Open a tab in a browser without cookies."""
        context = await browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(15_000)
        return cls(await context.new_page())

    async def follow(self, link: Locator) -> Page:
        """Click a link that opens a tab of its own, and return that tab."""
        async with self.page.context.expect_page() as opening:
            await link.click()
        page = await opening.value
        self._listen(page)
        return page

    async def sees(self, *texts: str) -> None:
        """Wait until the page shows the texts."""
        for text in texts:
            await expect(self.page.get_by_text(text).first).to_be_visible()

    def _listen(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )


async def _picture(page: Page, name: str) -> None:
    """Photograph a page, wide and narrow, and hold it to the width of a phone."""
    PICTURES.mkdir(exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    wide = page.viewport_size
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    width = await page.evaluate("document.documentElement.scrollWidth")
    await page.screenshot(path=PICTURES / f"{name}-phone.png", full_page=True)
    if wide is not None:
        await page.set_viewport_size(wide)
    assert width <= PHONE_WIDTH, f"{name} is {width} pixels wide on a phone"


async def _install(ada: _Visitor, running: Running) -> None:
    page = ada.page
    await page.goto(f"{running.urls.edge}/")
    await ada.sees("Your agents, in Slack, as yourself.")
    await _picture(page, "01-welcome")
    await page.get_by_role("link", name="Sign in").first.click()
    await ada.sees("Who are you?")
    await _picture(page, "02-sign-in")
    await page.get_by_role("button", name=ADA.name).click()
    await ada.sees("No workspace yet")
    await _picture(page, "03-dashboard-empty")
    await page.get_by_role("button", name="Add to Slack").first.click()
    await ada.sees("asks to join a workspace")
    await _picture(page, "04-consent")
    await page.get_by_role("radio", name=ADA.name).check()
    await page.get_by_role("button", name="Allow").click()
    await ada.sees("Interlock is installed in", "Northwind")
    await _picture(page, "05-dashboard")


async def _ask(mia: _Visitor, running: Running) -> Locator:
    """Mention the app; returns the whispered link."""
    page = mia.page
    await page.goto(f"{running.urls.slack}/?team={TEAM}&user={MIA.slack_user}&channel=C0NOHELP")
    await page.get_by_role("button", name="Mention Interlock").first.click()
    await page.keyboard.type(QUESTION)
    await page.keyboard.press("Enter")
    link = page.locator('a[href*="/work-apps/slack/link?code="]').first
    await expect(link).to_be_visible()
    await _picture(page, "06-whispered-link")
    return link


async def _link(mia: _Visitor, link: Locator) -> None:
    page = await mia.follow(link)
    await page.get_by_role("button", name=MIA.name).click()
    await expect(page.get_by_role("heading", name="Is this you?")).to_be_visible()
    # The code has left the address: no history, referrer or log keeps it.
    assert "code=" not in page.url
    await expect(page.get_by_text(MIA.slack_user)).to_be_visible()
    await _picture(page, "07-confirm-link")
    await page.get_by_role("button", name="Yes, link them").click()
    await expect(page.get_by_role("heading", name="You are linked")).to_be_visible()
    await _picture(page, "08-linked")
    await page.close()


async def _watch_answer(mia: _Visitor) -> list[int]:
    """Watch the answer to its end; returns each length that the thread had meanwhile."""
    thread = mia.page.locator("#thread-messages")
    await mia.page.evaluate(
        """() => {
            const thread = document.querySelector("#thread-messages");
            window.lengths = [];
            new MutationObserver(() => window.lengths.push(thread.innerText.length))
                .observe(thread, {childList: true, subtree: true, characterData: true});
        }"""
    )
    await expect(thread).to_contain_text("30 days")
    await mia.page.screenshot(path=PICTURES / "09-answer-streaming.png")
    await expect(thread).to_contain_text("starts when the parcel is scanned")
    await expect(thread.get_by_text("is answering")).to_have_count(0)
    await _picture(mia.page, "10-answer")
    lengths: list[int] = await mia.page.evaluate("window.lengths")
    return lengths


async def _inspect(ada: _Visitor) -> None:
    page = ada.page
    await page.reload()
    await page.get_by_role("link", name="Northwind", exact=True).click()
    await ada.sees("Linked users", MIA.name)
    await _picture(page, "11-workspace")
    await page.get_by_role("link", name="Audit log").click()
    await ada.sees("token.read", "gateway-worker")
    await _picture(page, "12-audit")
    await page.get_by_role("link", name="People").click()
    await ada.sees("user.linked", MIA.name, "token.issued")
    await _picture(page, "13-audit-people")


@pytest.mark.parametrize("running", ["nango"], indirect=True)
async def test_a_workspace_comes_in_by_nangos_page(browser: Browser, running: Running) -> None:
    """From the button to Nango, Slack and back: the webhook completes it, the page says so."""
    ada = await _Visitor.open(browser)
    page = ada.page
    await page.goto(f"{running.urls.edge}/")
    await page.get_by_role("link", name="Sign in").first.click()
    await page.get_by_role("button", name=ADA.name).click()
    await page.get_by_role("link", name="Add to Slack").first.click()
    await _picture(page, "13-connect")
    there = await ada.follow(page.get_by_role("button", name="Connect at Nango (new tab)"))
    await page.get_by_role("link", name="I have connected it").click()
    await ada.sees("Not connected yet")
    await _picture(page, "14-not-connected-yet")
    await there.get_by_role("link", name="Connect Slack work app").click()
    await there.get_by_role("radio", name=ADA.name).check()
    await there.get_by_role("button", name="Allow").click()
    await expect(there.get_by_role("heading", name="Connected")).to_be_visible()
    await there.close()
    async with asyncio.timeout(60):
        while await page.get_by_role("heading", name="Not connected yet").count():
            await page.get_by_role("link", name="Check again").click()
    await ada.sees("Interlock is installed in", "Northwind")
    await _picture(page, "15-connected")
    assert ada.complaints == []


async def test_whole_path_by_mouse_and_keyboard(browser: Browser, running: Running) -> None:
    """Install, ask, link, answer, audit: each page shows what it should, and breaks no rule."""
    ada, mia = await _Visitor.open(browser), await _Visitor.open(browser)
    await _install(ada, running)
    await _link(mia, await _ask(mia, running))
    lengths = await _watch_answer(mia)
    await _inspect(ada)
    assert len(set(lengths)) >= 3, "the answer did not grow before the reader's eyes"
    assert ada.complaints + mia.complaints == []
