"""docs/operations.md does what it says: its commands are run, in order, on the stack."""

import asyncio
import re

import aiohttp
import pytest

from interlock_cli.journey import MIA, Journey
from tests.support.compose_stack import BUILD_S, ROOT, Stack, Walk

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
# The stack under test has ports of its own, and the images of this tree.
_REPLACED = {" --env-file sandbox.env": "", " --build": " --no-build"}


def _blocks() -> list[tuple[str, list[str]]]:
    """Return the commands of each block, with the heading it stands under."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    return [
        (_HEADING.findall(text[: found.start()])[-1], found[1].strip().splitlines())
        for found in _BLOCK.finditer(text)
    ]


def _id(block: tuple[str, list[str]]) -> str:
    return f"{block[0]}: {block[1][0].removeprefix('docker compose ')}"


def test_every_task_of_an_operator_has_commands() -> None:
    """The page has commands for each task: nobody has to guess one in an emergency."""
    assert {heading for heading, _ in _blocks()} >= {
        "On one machine: compose",
        "Check the set-up",
        "Upgrade",
        "Rotate keys",
        "Freeze",
        "Back up",
        "Restore",
    }


def test_every_task_of_an_operator_is_there() -> None:
    """The page says how to install, go back, scale and read the dashboards, too."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(_HEADING.findall(text)) >= {
        "Production on GKE",
        "Roll back",
        "Secrets and keys",
        "Scale",
        "Watch",
    }


@pytest.mark.parametrize("block", _blocks(), ids=_id)
async def test_commands_work(stack: Stack, walked: Walk, block: tuple[str, list[str]]) -> None:
    """Each command of a block succeeds, and afterwards a question is answered."""
    for line in block[1]:
        command = line
        for old, new in _REPLACED.items():
            command = command.replace(old, new)
        await asyncio.to_thread(stack.shell, command)
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http, patience=stack.patience)
        answer = await journey.watch_answer(await journey.ask(MIA, "I forgot my password"))
    assert "password" in answer.text
