"""One stack of containers for all tests of the images, and the manifests as rendered."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from functools import cache

import aiohttp
import pytest

from interlock_cli.browser import open_browser
from interlock_cli.demo import QUESTION
from interlock_cli.journey import ADA, MIA, Journey
from interlock_cli.product import Urls
from tests.support.compose_stack import Stack, Walk
from tests.support.manifests import OVERLAYS, Rendered


# Of this folder: once its last test is over, the stack takes no time from other tests.
@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the images, start everything, and remove it afterwards, volumes too."""
    stack = Stack(tmp_path_factory.mktemp("compose"))
    try:
        stack.build()
        stack.up()
        yield stack
    finally:
        stack.keep_logs()
        stack.down()


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="session", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Render each overlay."""
    return _render(request.param)


@pytest.fixture(scope="session")
def trial() -> Rendered:
    """Render the overlay for a trial."""
    return _render("dev")


@pytest.fixture(scope="session")
def production() -> Rendered:
    """Render the overlay for production."""
    return _render("gke")


@cache
def _render(overlay: str) -> Rendered:
    if shutil.which("kubectl") is None:
        if "kubectl" in os.environ.get("INTERLOCK_REQUIRE", "").split(","):
            pytest.fail("INTERLOCK_REQUIRE names kubectl, but it is not installed")
        pytest.skip("kubectl is not installed")
    return Rendered(overlay)
