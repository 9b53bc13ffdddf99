"""The command `interlock demo`: the whole product, driven from end to end without a browser."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from rich.console import Console

from interlock_chassis.errors import ConfigError
from interlock_cli.browser import NotOnPage, open_browser
from interlock_cli.data_folder import DataFolder, choose_ports
from interlock_cli.embedded_postgres import PostgresError
from interlock_cli.journey import ADA, MIA, TEAM, Journey, JourneyFailed
from interlock_cli.launch import Running, launched
from interlock_cli.leak_search import Finding, LeakSearch, read_tables
from interlock_cli.product import AUTH_DATABASE, DATABASES
from interlock_cli.steps import Steps
from interlock_cli.supervisor import ProgramEnded

QUESTION = "How can a customer return an order?"
# Of an answer of some hundred words; fewer states would mean that it came in one piece.
MIN_STREAMED_STATES = 3

# Files of the data folder that hold a secret of ours, and what each is.
_OUR_SECRETS = {
    "client secret": "sandbox-client-secret",
    "signing secret": "sandbox-signing-secret",
    "CSRF key": "csrf",
    "fingerprint key": "fingerprint",
}


def demo(console: Console) -> int:
    """Run the product on ports and files of its own, and walk its main path.

    Prints each step with its time. The files are removed when all went well.

    Returns:
        0 if every step worked and no secret was found where it must not be.
    """
    folder = Path(tempfile.mkdtemp(prefix="interlock-demo-"))
    try:
        asyncio.run(_demo(folder, Steps(console)))
    except (JourneyFailed, NotOnPage, ConfigError, PostgresError, ProgramEnded) as problem:
        console.print(f"FAILED: {problem}", markup=False, highlight=False, soft_wrap=True)
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("FAILED: stopped before the end", highlight=False)
    else:
        shutil.rmtree(folder)
        console.print("All of it worked.", highlight=False)
        return 0
    console.print(f"Files and logs are kept in {folder}", highlight=False, soft_wrap=True)
    return 1


async def _demo(folder: Path, steps: Steps) -> None:
    me = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, me.cancel if me else lambda: None)
    data = DataFolder(folder)
    try:
        edge_port = choose_ports({"edge": 0})["edge"]
        async with launched(data, edge_port=edge_port, steps=steps) as running:
            walking = asyncio.create_task(_walk(running, steps))
            ending = asyncio.create_task(running.wait_for_end())
            await asyncio.wait([walking, ending], return_when=asyncio.FIRST_COMPLETED)
            if not walking.done():
                walking.cancel()
                raise ending.result()
            ending.cancel()
            walking.result()
    finally:
        data.close()
    steps.note(f"Whole demo: {steps.elapsed():.1f} s")


async def _walk(running: Running, steps: Steps) -> None:
    edge = running.urls.edge
    async with (
        aiohttp.ClientSession() as http,
        open_browser(edge) as ada_browser,
        open_browser(edge) as mia_browser,
    ):
        journey = Journey(running.urls, http)
        with steps.step("Ada signs in"):
            dashboard = await journey.sign_in(ada_browser, ADA)
        with steps.step("Ada installs the app in Slack"):
            await journey.install(ada_browser, dashboard)
        with steps.step("Mia mentions the app; it whispers a link to her"):
            question = await journey.ask(MIA, QUESTION)
            url = await journey.find_link_prompt(question)
        with steps.step("Mia signs in and confirms the link"):
            await journey.link(mia_browser, url, MIA)
        with steps.step("Her question is answered in the thread, word by word"):
            answer = await journey.watch_answer(question)
            if len(answer.lengths) < MIN_STREAMED_STATES:
                raise JourneyFailed(f"the answer came in {len(answer.lengths)} piece(s)")
        steps.note(f"     it grew {len(answer.lengths)} times, to {answer.lengths[-1]} characters")
        with steps.step("Ada reads who read the token, on the audit page"):
            (await journey.read_audit(ada_browser)).require("token.read")
        with steps.step("No secret is in any database or log"):
            searched = await search_for_leaks(running, await journey.list_secrets())
        steps.note(f"     {searched}")


async def search_for_leaks(running: Running, secrets: Mapping[str, list[str]]) -> str:
    """Search all databases and logs for secrets, in any usual disguise.

    Args:
        running: The product; its own secrets are searched for as well.
        secrets: By kind.

    Returns:
        How much was searched, in words.

    Raises:
        JourneyFailed: One was found, or the search did not see what it should.
    """
    keys = running.data.folder("keys")
    ours = {what: [(keys / name).read_text()] for what, name in _OUR_SECRETS.items()}
    search = LeakSearch({**secrets, **ours})
    findings: list[Finding] = []
    seen_team = False
    for plan in (*DATABASES, AUTH_DATABASE):
        for table, content in (await read_tables(running.postgres.admin_of(plan.name))).items():
            findings += search.search(f"{plan.name}.{table}", content)
            seen_team = seen_team or TEAM.encode() in content
    logs = running.data.folder("logs")
    findings += search.search_files(logs)
    findings += search.search("postgres.log", running.postgres.log.read_bytes())
    if findings:
        raise JourneyFailed("; ".join(sorted({str(finding) for finding in findings})))
    # What must be there proves that the search looked in the right place.
    if not seen_team or not any(path.stat().st_size for path in logs.iterdir()):
        raise JourneyFailed("the search for secrets saw neither our rows nor our logs")
    count = sum(len(values) for values in {**secrets, **ours}.values())
    return f"{count} secrets, {search.searched_bytes / 1024:.0f} KiB searched"
