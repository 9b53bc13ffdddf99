"""The life of a workspace over HTTP, with everything running: by both ways in, out, and in again.

The sandbox's Slack is the judge: what it has installed is what must be true.
"""

import asyncio
from typing import Any

import aiohttp
import pytest
from yarl import URL

from interlock_cli.browser import Browser, NotOnPage, Page, open_browser
from interlock_cli.journey import ADA, MIA, TEAM, Journey
from interlock_cli.launch import Running
from interlock_sandbox.nango.testing import INTEGRATION, connect

QUESTION = "I forgot my password"


async def _uninstall(ada: Browser, dashboard: Page) -> Page:
    """Press the button on the workspace's page, and confirm."""
    workspace = await ada.open(dashboard.url.join(URL(dashboard.find_link("/workspaces/"))))
    return await ada.submit(workspace, workspace.find_form("/uninstall"))


async def _until_shown(ada: Browser, home: str) -> Page:
    """Reload the dashboard until the workspace is on it."""
    async with asyncio.timeout(60):
        while True:
            page = await ada.open(home)
            try:
                page.find_link("/workspaces/")
            except NotOnPage:
                await asyncio.sleep(0.2)
            else:
                return page


async def _is_installed(running: Running) -> bool:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{running.urls.slack}/_control/state") as response,
    ):
        state: dict[str, Any] = await response.json()
    (found,) = [each for each in state["workspaces"] if each["id"] == TEAM]
    return found["installation"] is not None


async def test_a_workspace_is_left_and_entered_again(running: Running, journey: Journey) -> None:
    """Uninstalled by the button it is gone at Slack and here; a reinstall finds the link again."""
    async with open_browser(running.urls.edge) as ada, open_browser(running.urls.edge) as mia:
        dashboard = await journey.install(ada, await journey.sign_in(ada, ADA))
        first = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(first), MIA)
        await journey.watch_answer(first)

        after = await _uninstall(ada, dashboard)
        after.require("The app was uninstalled")
        assert not await _is_installed(running)

        await journey.install(ada, await ada.open(f"{running.urls.edge}/work-apps/slack/"))
        assert await _is_installed(running)
    # Nobody links again: the mapping was kept.
    second = await journey.ask(MIA, QUESTION)
    assert "password" in (await journey.watch_answer(second)).text


@pytest.mark.parametrize("completes", ["program", "webhook"])
async def test_a_workspace_comes_in_by_nango(
    running: Running, journey: Journey, completes: str
) -> None:
    """Connected at Nango, completed by the person's program or by the webhook alone."""
    async with open_browser(running.urls.edge) as ada:
        await journey.sign_in(ada, ADA)
        base = f"{running.urls.edge}/work-apps/slack"
        session = await ada.call("POST", f"{base}/install/requests", {})
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            connection_id = await connect(
                http, session["connectLink"], installer=f"{TEAM}/{ADA.slack_user}"
            )
        if completes == "program":
            done = await ada.call(
                "POST",
                f"{base}/install/complete",
                {"providerConfigKey": INTEGRATION, "connectionId": connection_id},
            )
            assert done["slackTeamId"] == TEAM
        dashboard = await _until_shown(ada, f"{base}/")
        question = await journey.ask(MIA, QUESTION)
        async with open_browser(running.urls.edge) as mia:
            await journey.link(mia, await journey.find_link_prompt(question), MIA)
        assert "password" in (await journey.watch_answer(question)).text
        (await _uninstall(ada, dashboard)).require("The app was uninstalled")
    assert not await _is_installed(running)
    assert URL(session["connectLink"]).host == "127.0.0.1"
