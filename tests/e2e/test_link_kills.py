"""Kill -9 of everything while somebody links: the question is answered, or says to ask again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil
import pytest

from interlock_cli.browser import Browser, open_browser
from interlock_cli.data_folder import choose_ports
from interlock_cli.demo import QUESTION
from interlock_cli.journey import ADA, MIA, Journey, Question
from interlock_cli.product import Urls
from tests.support.processes import is_alive, runs
from tests.support.run_command import processes_on, started

# Whoever linked while nobody could be told is noticed within a minute of a worker's start.
PATIENCE = timedelta(seconds=150)
GONE_LIMIT_S = 30
INTERRUPTED = "Please ask again"

pytestmark = pytest.mark.timeout(400)


@dataclass
class Life:
    """The product from one start to the kill of everything."""

    data: Path
    urls: Urls
    journey: Journey
    mia: Browser

    def processes(self, *of: str) -> list[psutil.Process]:
        """Find its processes, or those whose command line has all of these words."""
        found = processes_on(self.data)
        return [each for each in found if all(runs(each, word) for word in of)]

    def pause(self, *of: str) -> None:
        """Have a process do nothing from now on."""
        [process] = self.processes(*of)
        process.suspend()


@asynccontextmanager
async def _life(data: Path, edge_port: int) -> AsyncIterator[Life]:
    """Start everything on a data folder, and kill everything at the end."""
    with started(data, edge_port):
        ports = json.loads((data / "ports.json").read_text())
        urls = Urls.of({**ports, "edge": edge_port})
        async with aiohttp.ClientSession() as http, open_browser(urls.edge) as mia:
            life = Life(data, urls, Journey(urls, http, patience=PATIENCE), mia)
            yield life
            killed = life.processes()
            for process in killed:
                # Some end with those that they belong to.
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            _, alive = await asyncio.to_thread(psutil.wait_procs, killed, GONE_LIMIT_S)
            assert not any(map(is_alive, alive))


async def _ask(life: Life) -> tuple[Question, str]:
    """Install the app, ask, and get the link."""
    async with open_browser(life.urls.edge) as ada:
        await life.journey.install(ada, await life.journey.sign_in(ada, ADA))
    question = await life.journey.ask(MIA, QUESTION)
    return question, await life.journey.find_link_prompt(question)


async def _kept(life: Life, what: str) -> None:
    """Wait until the stand-ins have something on disk; the product itself needs no waiting."""
    until = time.monotonic() + GONE_LIMIT_S
    state = life.data / "sandbox" / "state.json"
    while what not in state.read_text():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def _do_nothing(_life: Life, _url: str) -> bool:
    return False


async def _open_the_page(life: Life, url: str) -> bool:
    await life.journey.sign_in(life.mia, MIA)
    (await life.mia.open(url)).require(MIA.name)
    return False


async def _link_while_the_worker_is_away(life: Life, url: str) -> bool:
    life.pause("interlock_gateway", "worker")
    (await life.journey.link(life.mia, url, MIA)).require("in a moment")
    return True


async def _link_while_no_answer_can_begin(life: Life, url: str) -> bool:
    life.pause("interlock_runner")
    await life.journey.link(life.mia, url, MIA)
    return True


@pytest.mark.parametrize(
    "go_on",
    [
        pytest.param(_do_nothing, id="before-the-link-is-opened"),
        pytest.param(_open_the_page, id="before-the-button"),
        pytest.param(_link_while_the_worker_is_away, id="before-the-worker-hears-of-it"),
        pytest.param(_link_while_no_answer_can_begin, id="before-the-answer-begins"),
    ],
)
async def test_kill_9_loses_no_question(
    tmp_path: Path, go_on: Callable[[Life, str], Awaitable[bool]]
) -> None:
    """The link still works, or was made; the question runs by itself, or says to ask again."""
    data, edge_port = tmp_path / "data", choose_ports({"edge": 0})["edge"]
    async with _life(data, edge_port) as life:
        question, url = await _ask(life)
        await _kept(life, question.ts)
        is_linked = await go_on(life, url)
    async with _life(data, edge_port) as life:
        if not is_linked:
            await life.journey.link(life.mia, url, MIA)
        answer = await life.journey.watch_answer(question)
        assert "30 days" in answer.text or INTERRUPTED in answer.text
        again = await life.journey.ask(MIA, "I forgot my password")
        assert "password" in (await life.journey.watch_answer(again)).text
