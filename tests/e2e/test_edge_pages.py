"""Every state of edge's pages in a browser: readable without a mouse, without eyes, on a phone.

Edge is real, its peers are in memory, so that each state is one line away.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, Page, Route, expect
from yarl import URL

from interlock_chassis.errors import Kind, RemoteError
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.edge.ports import AgentDefault, Health, PeopleEvent
from tests.support.axe import Axe
from tests.support.chromium import open_chromium
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
    people_event,
    refusal,
    user_mapping,
)

PICTURES = Path(__file__).parents[2] / "screenshots" / "edge"
WSW = "/work-apps/slack/workspaces/wsw_1"
PHONE_WIDTH = 360

pytestmark = [pytest.mark.chromium, pytest.mark.node]


@pytest.fixture(scope="session")
def axe() -> Axe:
    """Give what finds faults in pages."""
    return Axe()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Run the Chromium of this machine."""
    async with open_chromium() as browser:
        yield browser


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
        site.identity.events = [people_event(), *_what_else_happens()]
        yield site


def _what_else_happens() -> list[PeopleEvent]:
    by_worker = {"caller": "gateway-worker", "actor_id": "", "actor_name": ""}
    subjects = "/interlock.identity.v1.SubjectService"
    return [
        people_event(
            7,
            event="token.issued",
            rpc=f"{subjects}/IssueUserToken",
            purpose="",
            project_id="shop",
            agent_id="returns",
            channel_id="C0GENERAL",
            **by_worker,
        ),
        people_event(
            6,
            event="call.refused",
            outcome="SLACK_STRANGER",
            count=12,
            rpc=f"{subjects}/IssueUserToken",
            purpose="",
            slack_user_id="U0GUEST",
            slack_team_id="T0OTHER",
            user_id="",
            user_name="",
            **by_worker,
        ),
        people_event(
            5, event="user.unlinked", purpose="asked", user_id="user_0123456789abcdef0123"
        ),
        people_event(4, event="grant.issued", purpose="audit", slack_user_id="", user_name=""),
    ]


def _nothing(_: Site) -> None:
    pass


def _no_workspace(site: Site) -> None:
    site.identity.workspaces["acme"] = []


def _each_status(site: Site) -> None:
    site.identity.workspaces["acme"] = [
        replace(ACME, workspace_id=f"wsw_{number}", slack_team_id=f"T0ACME{number}", status=status)
        for number, status in enumerate(("active", "pending", "needs_reinstall", "uninstalled"))
    ]


def _scopes_differ(site: Site) -> None:
    extra = ("im:read", "im:write")
    site.identity.workspaces["acme"] = [
        replace(ACME, missing_scopes=("files:write",), extra_scopes=extra)
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


def _nothing_done(site: Site) -> None:
    site.identity.events = []


def _record_away(site: Site) -> None:
    site.identity.fail["events"] = refusal(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")


def _emails_differ(site: Site) -> None:
    site.identity.offers[CODE] = link_offer(slack_email="a@mail.example", emails_differ=True)


def _email_refused(site: Site) -> None:
    site.identity.offers[CODE] = link_offer(
        slack_email="a@mail.example", emails_differ=True, is_email_refused=True
    )


def _email_unknown(site: Site) -> None:
    site.identity.offers[CODE] = link_offer(slack_email="", is_email_refused=True)


def _email_unverified(site: Site) -> None:
    site.identity.offers[CODE] = link_offer(is_email_refused=True)


def _long_names(site: Site) -> None:
    workspace = replace(ACME, name="Operations and Logistics of the Northern Region " * 3)
    site.identity.workspaces["acme"] = [workspace]
    site.identity.offers[CODE] = link_offer(
        workspace=workspace,
        slack_display_name="Maximiliane-Alexandrina von und zu Hohenstein-Ernstthal",
        slack_email="maximiliane.alexandrina.hohenstein@a-very-long-subdomain.mail.example",
    )


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
    State("dashboard-scopes-differ", "ann", HOME, 200, "Workspaces", _scopes_differ),
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
    State("link-long-names", "ann", LINK, 200, "Is this you?", _long_names),
    State("link-refused", "ann", LINK, 403, "The two addresses must match", _email_refused),
    State("link-no-address", "ann", LINK, 403, "The two addresses must match", _email_unknown),
    State("link-unverified", "ann", LINK, 403, "The two addresses must match", _email_unverified),
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
    State("people", "ann", f"{WSW}/audit/people", 200, "Audit log"),
    State("people-refusals", "ann", f"{WSW}/audit/people?event=call.refused", 200, "Audit log"),
    State("people-empty", "ann", f"{WSW}/audit/people", 200, "Audit log", _nothing_done),
    State("people-none-such", "ann", f"{WSW}/audit/people?event=default.set", 200, "Audit log"),
    State("people-end", "ann", f"{WSW}/audit/people?page=7", 200, "Audit log", _nothing_done),
    State(
        "people-no-event",
        "ann",
        f"{WSW}/audit/people?event=x",
        400,
        "There is no such event",
    ),
    State(
        "people-away",
        "ann",
        f"{WSW}/audit/people",
        503,
        "A part of Interlock is not answering",
        _record_away,
    ),
    State("people-member", "bob", f"{WSW}/audit/people", 403, "Your role does not allow this"),
    State("nowhere", "", "/nowhere", 404, "There is nothing here"),
]


async def _open(
    browser: Browser, site: Site, who: str, scheme: str = "light", *, java_script: bool = True
) -> Page:
    """Open a tab of a person who has followed a link from Slack."""
    context = await browser.new_context(
        viewport={"width": 1280, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=java_script,
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


Judge = Callable[[Page, str], Awaitable[None]]


@pytest.fixture
def judge(axe: Axe) -> Judge:
    """Give what photographs a page wide and narrow, and has axe look at it both times."""
    PICTURES.mkdir(parents=True, exist_ok=True)

    async def look(page: Page, name: str) -> None:
        assert await axe.find_faults(page) == []
        await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
        await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE_WIDTH
        assert await axe.find_faults(page) == []
        await page.screenshot(path=PICTURES / f"{name}-phone.png", full_page=True)
        await page.set_viewport_size({"width": 1280, "height": 800})

    return look


@pytest.mark.parametrize("state", [pytest.param(each, id=each.name) for each in STATES])
async def test_every_state_reads_well(
    browser: Browser, site: Site, judge: Judge, state: State
) -> None:
    """Labels, headings, names, contrast in light and dark, and the width of a phone."""
    state.arrange(site)
    for scheme in ("light", "dark"):
        page = await _open(browser, site, state.who, scheme)
        assert await _goto(page, site, state) == state.status
        await expect(page.get_by_role("heading", level=1)).to_have_text(state.heading)
        await judge(page, f"{state.name}-dark" if scheme == "dark" else state.name)
        await page.context.close()


_ENDS: tuple[tuple[str, RemoteError | None, str], ...] = (
    ("error=access_denied", None, "Nothing was installed"),
    (
        "code=1.2.abc",
        refusal(Kind.CONFLICT, "WORKSPACE_TAKEN"),
        "This workspace belongs to another organization",
    ),
    (
        "code=1.2.abc",
        refusal(Kind.PRECONDITION, "SCOPES_MISSING"),
        "Slack granted less than the app needs",
    ),
    ("code=1.2.abc", None, "Interlock is installed in"),
)


async def test_how_an_install_ended_is_told_on_a_page(browser: Browser, site: Site) -> None:
    """From the button over Slack: a no, a workspace of others, too few scopes, and installed."""
    page = await _open(browser, site, "ann")
    answers = iter([answer for answer, _, _ in _ENDS])

    async def decide(route: Route) -> None:
        """Send the browser back as Slack does, with its answer to the app."""
        query = parse_qs(urlsplit(route.request.url).query)
        back = f"{query['redirect_uri'][0]}?{next(answers)}&state={query['state'][0]}"
        script = f"<script>location.replace({json.dumps(back)})</script>"
        await route.fulfill(content_type="text/html", body=script)

    await page.context.route("**/oauth/v2/authorize**", decide)
    for _, site.vault.fail, heading in _ENDS:
        await page.goto(_url(site, HOME))
        await page.get_by_role("button", name="Add to Slack").click()
        await page.get_by_role("main").get_by_text(heading).wait_for()
    await page.context.close()


CONNECTED = "/work-apps/slack/install/connected"
BY_NANGO = [
    State("connect", "ann", INSTALL, 200, "Add Interlock to a Slack workspace?"),
    State(
        "connect-again",
        "ann",
        f"{INSTALL}?workspace=wsw_1",
        200,
        "Connect this Slack workspace again?",
    ),
    State("connect-member", "bob", INSTALL, 403, "Your role does not allow this"),
    State("connect-over", "ann", CONNECTED, 400, "This install is over"),
    State("connect-dashboard", "ann", HOME, 200, "Workspaces", _each_status),
    State("connect-dashboard-empty", "ann", HOME, 200, "Workspaces", _no_workspace),
]


@pytest.fixture
async def nango_site(cluster: ScratchDatabases, unused_tcp_port: int) -> AsyncIterator[Site]:
    """Serve edge as a deployment that installs by Nango."""
    changes = {
        "public_url": f"http://127.0.0.1:{unused_tcp_port}",
        "nango_connect_url": URL("https://nango.example"),
    }
    async with fresh_site(cluster, changes, listen=f"127.0.0.1:{unused_tcp_port}") as site:
        yield site


@pytest.mark.parametrize("state", [pytest.param(each, id=each.name) for each in BY_NANGO])
async def test_every_state_by_nango_reads_well(
    browser: Browser, nango_site: Site, judge: Judge, state: State
) -> None:
    """The same judges for a deployment whose button leads to Nango."""
    await test_every_state_reads_well(browser, nango_site, judge, state)


async def test_a_workspace_is_connected_in_another_tab(
    browser: Browser, nango_site: Site, judge: Judge
) -> None:
    """By keyboard: out to Nango in a new tab, back here, not yet, and at last installed."""
    page = await _open(browser, nango_site, "ann")
    await page.context.route(
        "https://nango.example/**", lambda route: route.fulfill(body="<title>Nango</title>")
    )
    await page.goto(_url(nango_site, HOME))
    await page.get_by_role("link", name="Add to Slack").focus()
    await page.keyboard.press("Enter")
    async with page.context.expect_page() as opening:
        await page.get_by_role("button", name="Connect at Nango (new tab)").focus()
        await page.keyboard.press("Enter")
    there = await opening.value
    await expect(there).to_have_title("Nango")
    assert there.url == "https://nango.example/?t=1"
    await there.close()
    nango_site.vault.fail = refusal(Kind.PRECONDITION, "CONNECTION_AWAITED")
    await page.get_by_role("link", name="I have connected it").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Not connected yet")
    await judge(page, "connecting")
    nango_site.vault.fail = refusal(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    await page.get_by_role("link", name="Check again").click()
    await judge(page, "connecting-unavailable")
    nango_site.vault.fail = None
    await page.reload()
    await expect(page.get_by_role("status")).to_contain_text("Interlock is installed in")
    await judge(page, "connect-installed")
    await page.context.close()


async def test_a_workspace_of_others_is_told_on_the_page(
    browser: Browser, nango_site: Site, judge: Judge
) -> None:
    """What the webhook's completion was refused with is what the person reads."""
    page = await _open(browser, nango_site, "ann")
    await page.context.route("https://nango.example/**", lambda route: route.fulfill(body="-"))
    await page.goto(_url(nango_site, INSTALL))
    async with page.context.expect_page():
        await page.get_by_role("button", name="Connect at Nango (new tab)").click()
    nango_site.vault.fail = refusal(Kind.CONFLICT, "WORKSPACE_TAKEN")
    await page.get_by_role("link", name="I have connected it").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        "This workspace belongs to another organization"
    )
    await judge(page, "connect-taken")
    await page.context.close()


async def test_settings_are_saved_by_keyboard_alone(
    browser: Browser, site: Site, judge: Judge
) -> None:
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
    await judge(page, "settings-no-such-agent")
    agent = page.get_by_role("form", name="Agent of a channel").get_by_label("Agent id")
    await expect(agent).to_have_value("nobody")
    await agent.fill("returns")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("Saved")
    assert site.identity.defaults["C0RANDOM"].agent_id == "returns"
    await page.context.close()


async def test_deeds_that_cannot_be_undone_are_asked_twice(
    browser: Browser, site: Site, judge: Judge
) -> None:
    """Unlink and uninstall open a question first; an uninstall that cannot be is explained."""
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, WSW))
    await page.get_by_text("Unlink Bob").click()
    await page.get_by_role("button", name="Yes, unlink").click()
    await expect(page.get_by_role("status")).to_contain_text("Unlinked")
    assert site.identity.unlinked == ["wsum_1"]
    await page.get_by_text("Uninstall Acme Slack").click()
    await judge(page, "workspace-uninstall-asked")
    site.worker.fail = refusal(Kind.PRECONDITION, "UNINSTALL_REFUSED")
    await page.get_by_role("button", name="Yes, uninstall").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Please uninstall in Slack")
    await judge(page, "uninstall-in-slack")
    site.worker.fail = None
    await page.goto(_url(site, WSW))
    await page.get_by_text("Uninstall Acme Slack").click()
    await page.get_by_role("button", name="Yes, uninstall").click()
    await expect(page.get_by_role("status")).to_contain_text("The app was uninstalled")
    assert site.worker.uninstalled == ["uninstall-grant-of-wsw_1"]
    await page.context.close()


def _lost_the_worker(site: Site) -> None:
    site.worker.fail = refusal(Kind.UNAVAILABLE, "PEER_UNAVAILABLE")


def _nothing_waits(site: Site) -> None:
    site.worker.is_waiting = False


async def _confirm(page: Page, site: Site) -> None:
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    await page.get_by_role("button", name="Yes, link them").click()


@pytest.mark.parametrize(
    ("name", "arrange_and_text"),
    [
        ("linked", (_nothing, "being answered in Slack right now")),
        ("linked-later", (_lost_the_worker, "in a moment")),
        ("linked-nothing-waits", (_nothing_waits, "Go back to Slack and ask")),
    ],
    ids=["answering", "later", "nothing-waits"],
)
async def test_what_came_of_a_link_survives_reload_and_back(
    browser: Browser,
    site: Site,
    judge: Judge,
    name: str,
    arrange_and_text: tuple[Callable[[Site], None], str],
) -> None:
    """Neither of the two shows a dead link or asks whether to send the form again."""
    arrange, text = arrange_and_text
    arrange(site)
    page = await _open(browser, site, "ann")
    await _confirm(page, site)
    heading = page.get_by_role("heading", level=1)
    await expect(heading).to_have_text("You are linked")
    await expect(page.get_by_role("main")).to_contain_text(text)
    await expect(page.get_by_role("link", name="Not me: unlink")).to_be_visible()
    await judge(page, name)
    await page.reload()
    await expect(heading).to_have_text("You are linked")
    await page.go_back()
    await expect(heading).to_have_text("You are linked")
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    await expect(heading).to_have_text("You are linked")
    await page.context.close()


@pytest.mark.parametrize(
    ("error", "heading"),
    [
        (refusal(Kind.CONFLICT, "USER_LINKED_ELSEWHERE"), "linked to another account"),
        (refusal(Kind.PRECONDITION, "LINK_CODE_SPENT"), "does not work any more"),
        (refusal(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE"), "is not answering"),
        (refusal(Kind.EXHAUSTED, "TOO_MANY_ATTEMPTS"), "a bit fast"),
    ],
    ids=["elsewhere", "gone", "away", "too-fast"],
)
async def test_a_link_that_fails_late_reads_well(
    browser: Browser, site: Site, judge: Judge, error: RemoteError, heading: str
) -> None:
    """What identity says only after the click has a page, too."""
    site.identity.fail["redeem"] = error
    page = await _open(browser, site, "ann")
    await _confirm(page, site)
    await expect(page.get_by_role("heading", level=1)).to_contain_text(heading)
    await judge(page, f"redeem-{error.reason.lower().replace('_', '-')}")
    await page.context.close()


async def test_a_form_left_open_for_too_long_reads_well(
    browser: Browser, site: Site, judge: Judge
) -> None:
    """A page from before somebody else signed in here changes nothing and says what to do."""
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    await page.context.add_cookies(
        [{"name": "better-auth.session_token", "value": "bob", "url": _url(site, "/")}]
    )
    await page.get_by_role("button", name="Yes, link them").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("This form has gone stale")
    await judge(page, "form-stale")
    assert CODE in site.identity.offers
    await page.context.close()


async def _focused(page: Page) -> str:
    """Name what has the focus; it must be seen to have it."""
    focus = page.locator(":focus")
    await expect(focus).not_to_have_css("outline-style", "none")
    return " ".join((await focus.inner_text()).split()) or await focus.get_attribute("name") or ""


async def test_a_link_is_made_by_keyboard_alone(browser: Browser, site: Site) -> None:
    """Tab goes through everything once, in reading order; Space and Enter do the rest."""
    _emails_differ(site)
    page = await _open(browser, site, "ann")
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    order = []
    for _ in range(7):
        await page.keyboard.press("Tab")
        order.append(await _focused(page))
    assert order == [
        "Skip to the content",
        "Interlock",
        "Workspaces",
        "Switch account",
        "emails_differ",
        "Yes, link them",
        "Use another account",
    ]
    await page.keyboard.press("Shift+Tab")
    # Without the second confirmation the button does nothing but say what is missing.
    await page.keyboard.press("Enter")
    assert await _focused(page) == "emails_differ"
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("You are linked")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert await _focused(page) == "Open Slack"
    await page.keyboard.press("Tab")
    assert await _focused(page) == "Not me: unlink"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Acme Slack")
    await page.context.close()


async def test_a_link_is_made_without_javascript(browser: Browser, site: Site) -> None:
    """The whole way works in a browser that runs no script."""
    _emails_differ(site)
    page = await _open(browser, site, "ann", java_script=False)
    await page.goto(_url(site, f"{LINK}?code={CODE}"))
    await page.get_by_role("checkbox").check()
    await page.get_by_role("button", name="Yes, link them").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("You are linked")
    await page.get_by_role("link", name="Not me: unlink").click()
    await page.get_by_text("Unlink Bob").click()
    await page.get_by_role("button", name="Yes, unlink").click()
    await expect(page.get_by_role("status")).to_contain_text("Unlinked")
    assert site.identity.unlinked == ["wsum_1"]
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
    await page.goto(_url(site, f"{WSW}/health"))
    await page.get_by_label("Channel").select_option("C0GENERAL")
    await page.get_by_role("button", name="Send a test message").click()
    await expect(page.get_by_role("status")).to_contain_text("Sent")
    assert [channel for _, channel in site.worker.tested] == ["C0GENERAL"]
    await page.context.close()
