"""One stack of containers for all tests of the images."""

import asyncio
import subprocess
from collections.abc import Iterator

import aiohttp
import pytest

from interlock_cli.browser import open_browser
from interlock_cli.demo import QUESTION
from interlock_cli.journey import ADA, MIA, Journey
from interlock_cli.product import Urls
from tests.support.compose_stack import BUILD_S, ROOT, Stack, Walk


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the images, start everything, and remove it afterwards, volumes too."""
    stack = Stack(tmp_path_factory.mktemp("compose"))
    try:
        subprocess.run([ROOT / "tools" / "images.sh"], check=True, timeout=BUILD_S)
        stack.up()
        yield stack
    finally:
        stack.keep_logs()
        stack.down()


@pytest.fixture(scope="session")
def walked(stack: Stack) -> Walk:
    """Walk the main path once: install, ask, link, answer, audit."""
    return asyncio.run(_walk(stack.urls))


async def _walk(urls: Urls) -> Walk:
    async with (
        aiohttp.ClientSession() as http,
        open_browser(urls.edge) as ada,
        open_browser(urls.edge) as mia,
    ):
        journey = Journey(urls, http)
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(question), MIA)
        answer = await journey.watch_answer(question)
        (await journey.read_audit(ada)).require("token.read")
        return Walk(answer, await journey.list_secrets())
