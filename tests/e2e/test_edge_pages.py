"""Every state of edge's pages in a browser: readable without a mouse, without eyes, on a phone.

Edge is real, its peers are in memory, so that each state is one line away.
"""

import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from interlock_chassis.errors import Kind
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.edge.ports import AgentDefault, Health
from tests.support.edge_site import (
    ACME,
    CODE,
    HOME,
    INSTALL,
    LINK,
    Site,
    audit_event,
    fresh_site,
    link_offer,
    refusal,
    user_mapping,
)

PICTURES = Path(__file__).parents[2] / "screenshots" / "edge"
WSW = "/work-apps/slack/workspaces/wsw_1"
PHONE_WIDTH = 360
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]

pytestmark = pytest.mark.chromium

# What a person who hears the page needs, and what WCAG 2.2 asks of contrast (AA, text).
RULES = """() => {
    const complaints = [];
    const complain = (rule, node) =>
        complaints.push(rule + ": " + node.outerHTML.slice(0, 120));
    const seen = (node) => node.checkVisibility({visibilityProperty: true});
    if (!document.documentElement.lang) complaints.push("no language");
    if (document.title.length < 5) complaints.push("no title");
    for (const mark of ["header", "main", "footer"])
        if (document.querySelectorAll("body > " + mark).length !== 1)
            complaints.push("not one " + mark);
    const headings = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen);
    if (headings.filter((each) => each.tagName === "H1").length !== 1)
        complaints.push("not one h1");
    headings.reduce((level, each) => {
        const own = Number(each.tagName[1]);
        if (own > level + 1) complain("a heading level is skipped", each);
        return own;
    }, 0);
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    if (new Set(ids).size !== ids.length) complaints.push("an id twice");
    for (const name of ["aria-labelledby", "aria-describedby"])
        for (const each of document.querySelectorAll("[" + name + "]"))
            if (!document.getElementById(each.getAttribute(name)))
                complain(name + " leads nowhere", each);
    for (const each of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
        if (!each.labels.length || !each.labels[0].innerText.trim())
            complain("no label", each);
    for (const each of document.querySelectorAll("a, button, summary"))
        if (!each.textContent.trim() && !each.getAttribute("aria-label"))
            complain("no name", each);
    for (const each of document.querySelectorAll("img"))
        if (!each.hasAttribute("alt")) complain("no alt", each);
    for (const each of document.querySelectorAll("table"))
        if (!each.caption || each.querySelector("th:not([scope])"))
            complain("a table without caption or scope", each);
    for (const each of document.querySelectorAll("[tabindex]"))
        if (each.tabIndex > 0) complain("an order of its own", each);

    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const paint = (color, under) => {
        canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const css = (rgb) => "rgb(" + rgb.join(",") + ")";
    const ground = (node) => {
        const below = node.parentElement ? ground(node.parentElement) : [255, 255, 255];
        return paint(getComputedStyle(node).backgroundColor, css(below));
    };
    const light = (rgb) => rgb
        .map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !seen(node)) continue;
        const style = getComputedStyle(node), under = ground(node);
        const [a, b] = [light(paint(style.color, css(under))), light(under)];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
        const isLarge = size >= 24 || (bold && size >= 18.66);
        if (contrast < (isLarge ? 3 : 4.5)) complain("contrast " + contrast.toFixed(2), node);
    }
    return [...new Set(complaints)];
}"""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Run the Chromium of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def site(cluster: ScratchDatabases, unused_tcp_port: int) -> AsyncIterator[Site]:
    """Serve edge at an address that a browser can open, with one of everything."""
    changes = {"public_url": f"http://127.0.0.1:{unused_tcp_port}"}
    async with fresh_site(cluster, changes, listen=f"127.0.0.1:{unused_tcp_port}") as site:
        site.identity.mappings = [user_mapping()]
        site.identity.defaults = {
            "": AgentDefault("", "shop", "returns", grants_access=False),
            "C0GENERAL": AgentDefault("C0GENERAL", "shop", "returns", grants_access=True),
        }
        site.identity.offers = {CODE: link_offer()}
        site.vault.events = [audit_event()]
        yield site


def _nothing(_: Site) -> None:
    pass


def _no_workspace(site: Site) -> None:
    site.identity.workspaces["acme"] = []


def _each_status(site: Site) -> None:
    site.identity.workspaces["acme"] = [
        replace(ACME, workspace_id=f"wsw_{number}", slack_team_id=f"T0ACME{number}", status=status)
        for number, status in enumerate(("active", "pending", "needs_reinstall", "uninstalled"))
    ]


def _nobody_linked(site: Site) -> None:
    site.identity.mappings = []


def _no_agents(site: Site) -> None:
    site.identity.defaults = {}


def _slack_away(site: Site) -> None:
    site.worker.fail = refusal(Kind.UNAVAILABLE, "SLACK_UNAVAILABLE")


def _token_dead(site: Site) -> None:
    site.worker.health = Health(is_healthy=False, slack_error="token_revoked")


def _nothing_read(site: Site) -> None:
    site.vault.events = []


def _emails_differ(site: Site) -> None:
    site.identity.offers[CODE] = link_offer(slack_email="a@mail.example", emails_differ=True)


def _code_spent(site: Site) -> None:
    site.identity.offers.clear()


def _identity_away(site: Site) -> None:
    site.identity.fail["authenticate"] = refusal(Kind.UNAVAILABLE, "PEER_UNAVAILABLE")


@dataclass(frozen=True)
class State:
    """One state of one page.

    Attributes:
        name: Of its picture.
        heading: What the page says first.
    """

    name: str
    who: str
    path: str
    status: int
    heading: str
    arrange: Callable[[Site], None] = _nothing


STATES = [
    State("welcome", "", HOME, 200, "Your agents, in Slack, as yourself."),
    State("dashboard", "ann", HOME, 200, "Workspaces"),
    State("dashboard-installed", "ann", f"{HOME}?installed=T0ACME", 200, "Workspaces"),
    State("dashboard-uninstalled", "ann", f"{HOME}?uninstalled=1", 200, "Workspaces"),
    State("dashboard-each-status", "ann", HOME, 200, "Workspaces", _each_status),
    State("dashboard-empty", "ann", HOME, 200, "Workspaces", _no_workspace),
    State("dashboard-member", "bob", HOME, 200, "Workspaces"),
    State("dashboard-member-empty", "bob", HOME, 200, "Workspaces", _no_workspace),
    State("no-role", "val", HOME, 403, "Your role does not allow this"),
    State(
        "identity-away", "ann", HOME, 503, "A part of Interlock is not answering", _identity_away
    ),
    State("install", "ann", INSTALL, 200, "Add Interlock to a Slack workspace?"),
    State("install-member", "bob", INSTALL, 403, "Your role does not allow this"),
    State("install-nobody", "", INSTALL, 401, "Please sign in first"),
    State("install-over", "ann", "/work-apps/slack/oauth_redirect", 400, "This install is over"),
    State("link", "ann", LINK, 200, "Is this you?"),
    State("link-emails-differ", "ann", LINK, 200, "Is this you?", _emails_differ),
    State("link-other-tenant", "eve", LINK, 403, "This link is for another organization"),
    State("link-spent", "ann", LINK, 410, "This link does not work any more", _code_spent),
    State("workspace", "ann", WSW, 200, "Acme Slack"),
    State("workspace-unlinked", "ann", f"{WSW}?unlinked=1", 200, "Acme Slack"),
    State("workspace-nobody-linked", "ann", WSW, 200, "Acme Slack", _nobody_linked),
    State("workspace-member", "bob", WSW, 200, "Acme Slack"),
    State("workspace-unknown", "ann", f"{WSW}0", 404, "No such workspace"),
    State("settings", "ann", f"{WSW}/settings", 200, "Settings"),
    State("settings-saved", "ann", f"{WSW}/settings?saved=1", 200, "Settings"),
    State("settings-none", "ann", f"{WSW}/settings", 200, "Settings", _no_agents),
    State("settings-slack-away", "ann", f"{WSW}/settings", 200, "Settings", _slack_away),
    State("settings-member", "bob", f"{WSW}/settings", 200, "Settings"),
    State("health", "ann", f"{WSW}/health", 200, "Health"),
    State("health-sent", "ann", f"{WSW}/health?sent=1", 200, "Health"),
    State("health-dead", "ann", f"{WSW}/health", 200, "Health", _token_dead),
    State("health-unknown", "ann", f"{WSW}/health", 503, "Slack does not answer", _slack_away),
    State("audit", "ann", f"{WSW}/audit", 200, "Audit log"),
    State("audit-empty", "ann", f"{WSW}/audit", 200, "Audit log", _nothing_read),
    State(
        "audit-forged-page", "ann", f"{WSW}/audit?page=x", 400, "This page of the list is not there"
    ),
    State("nowhere", "", "/nowhere", 404, "There is nothing here"),
]


async def _open(browser: Browser, site: Site, who: str, scheme: str = "light") -> Page:
    """Open a tab of a person who has followed a link from Slack."""
    context = await browser.new_context(
        viewport={"width": 1280, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(15_000)
    page = await context.new_page()
    if who:
        await context.add_cookies(
            [{"name": "better-auth.session_token", "value": who, "url": _url(site, "/")}]
        )
    return page


def _url(site: Site, path: str) -> str:
    return f"http://127.0.0.1:{site.port}{path}"


async def _goto(page: Page, site: Site, state: State) -> int:
    if state.path == LINK:
        # The cookie that the link in Slack sets.
        response = await page.goto(_url(site, f"{LINK}?code={CODE}"))
    else:
        response = await page.goto(_url(site, state.path))
    assert response is not None
    return response.status


async def _judge(page: Page, name: str) -> None:
    """Photograph a page wide and narrow, and hold it to the rules both times."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    assert await page.evaluate(RULES) == []
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE_WIDTH
    assert await page.evaluate(RULES) == []
    await page.screenshot(path=PICTURES / f"{name}-phone.png", full_page=True)
    await page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize("state", [pytest.param(each, id=each.name) for each in STATES])
async def test_every_state_reads_well(browser: Browser, site: Site, state: State) -> None:
    """Labels, headings, names, contrast in light and dark, and the width of a phone."""
    state.arrange(site)
    for scheme in ("light", "dark"):
        page = await _open(browser, site, state.who, scheme)
        assert await _goto(page, site, state) == state.status
        await expect(page.get_by_role("heading", level=1)).to_have_text(state.heading)
        await _judge(page, f"{state.name}-dark" if scheme == "dark" else state.name)
        await page.context.close()


async def test_settings_are_saved_by_keyboard_alone(browser: Browser, site: Site) -> None:
    """From label to label with Tab; a wrong agent is told in an alert, and what was typed stays."""
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, f"{WSW}/settings"))
    form = page.get_by_role("form", name="Agent of a channel")
    await form.get_by_label("Channel").focus()
    await page.keyboard.type("#ran")
    await page.keyboard.press("Tab")
    await page.keyboard.type("shop")
    await page.keyboard.press("Tab")
    await page.keyboard.type("nobody")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("There is no such agent")
    await _judge(page, "settings-no-such-agent")
    agent = page.get_by_role("form", name="Agent of a channel").get_by_label("Agent id")
    await expect(agent).to_have_value("nobody")
    await agent.fill("returns")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("Saved")
    assert site.identity.defaults["C0RANDOM"].agent_id == "returns"
    await page.context.close()


async def test_deeds_that_cannot_be_undone_are_asked_twice(browser: Browser, site: Site) -> None:
    """Unlink and uninstall open a question first; an uninstall that cannot be is explained."""
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, WSW))
    await page.get_by_text("Unlink Bob").click()
    await page.get_by_role("button", name="Yes, unlink").click()
    await expect(page.get_by_role("status")).to_contain_text("Unlinked")
    assert site.identity.unlinked == ["wsum_1"]
    await page.get_by_text("Uninstall Acme Slack").click()
    await _judge(page, "workspace-uninstall-asked")
    await page.get_by_role("button", name="Yes, uninstall").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Please uninstall in Slack")
    await _judge(page, "uninstall-in-slack")
    await page.context.close()


async def test_a_link_is_confirmed_and_a_test_message_sent(browser: Browser, site: Site) -> None:
    """Two forms to their ends: linked, with the way to unlink; sent, with a word about it."""
    _emails_differ(site)
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    assert "code=" not in page.url
    await page.get_by_role("checkbox").check()
    await page.get_by_role("button", name="Yes, link them").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("You are linked")
    await expect(page.get_by_role("link", name="Not me: unlink")).to_be_visible()
    await _judge(page, "linked")
    await page.goto(_url(site, f"{WSW}/health"))
    await page.get_by_label("Channel").select_option("C0GENERAL")
    await page.get_by_role("button", name="Send a test message").click()
    await expect(page.get_by_role("status")).to_contain_text("Sent")
    assert [channel for _, channel in site.worker.tested] == ["C0GENERAL"]
    await page.context.close()
