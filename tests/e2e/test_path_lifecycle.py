"""The life of a workspace over HTTP, with everything running: by both ways in, out, and in again.

The sandbox's Slack is the judge: what it has installed is what must be true.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_cli.browser import Browser, NotOnPage, Page, open_browser
from interlock_cli.journey import ADA, MIA, TEAM, Journey
from interlock_cli.launch import Running
from interlock_sandbox.nango.testing import INTEGRATION, connect
from interlock_token_vault.adapters.nango_http import open_nango
from interlock_token_vault.credential_sources import ConnectionRef

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


@pytest.mark.parametrize("keeps", ["token", "connection"])
async def test_a_workspace_is_moved_in(
    running: Running, journey: Journey, tmp_path: Path, keeps: str
) -> None:
    """What exists at Nango is taken by its connection, or by its token; a dry run takes nothing."""
    connection_id, token = await _connect_beside(running)
    given = {"connection": connection_id} if keeps == "connection" else {"bot_token": token}
    moves = tmp_path / "moves.jsonl"
    moves.write_text(json.dumps({"tenant": "northwind", "user": ADA.account, **given}) + "\n")
    for option, says in (("--dry-run", "could be moved"), ("--yes", "moved"), ("--yes", "renewed")):
        code, output = await _import(running, moves, option)
        assert code == 0, output
        assert f"{TEAM} {says}" in output
        assert "0/1" in output, "no progress is shown"
        assert token not in output
    async with open_browser(running.urls.edge) as ada:
        (await journey.sign_in(ada, ADA)).find_link("/workspaces/")


async def _import(running: Running, moves: Path, option: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock_cli", "import", str(moves), option),
        *("--data-dir", str(running.data.path)),
        # As at a terminal, where progress is shown.
        env={**os.environ, "FORCE_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def _connect_beside(running: Running) -> tuple[str, str]:
    """Connect the workspace at Nango as somebody did before us; returns name and token."""
    folder = running.data.path
    key = (folder / "keys" / "sandbox-nango-api-key").read_text()
    port = json.loads((folder / "ports.json").read_text())["nango"]
    async with (
        open_nango(URL(f"http://127.0.0.1:{port}"), Secret(key)) as adapter,
        aiohttp.ClientSession() as http,
    ):
        session = await adapter.open_session(INTEGRATION, {"tenantId": "northwind"})
        connection_id = await connect(http, session.link, installer=f"{TEAM}/{ADA.slack_user}")
        assert connection_id
        fetched = await adapter.fetch(ConnectionRef(INTEGRATION, connection_id))
    return connection_id, fetched.token.reveal()
