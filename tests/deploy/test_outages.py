"""Every part is paused, killed and cut off, and then happens what docs/operations.md says.

A question is under way each time. The faults are short: each ends once its effect was seen.
"""

import asyncio
import re
from collections.abc import Iterable

import pytest

from tests.support.compose_faults import FAULTS, Asking, asking_in, away
from tests.support.compose_load import signing_secret
from tests.support.compose_stack import BUILD_S, ROOT, Stack, Walk

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]

# The worker asks them while it prepares an answer, for 5 s at most.
ASKED = ("identity", "token-vault")
# An event is taken up within milliseconds, and answered within three seconds.
SILENT_S = 1.0
GONE, SILENT = "PEER_UNAVAILABLE", "DEADLINE_EXCEEDED"


def _rows(heading: str) -> Iterable[str]:
    """Return the first cells of the table below a heading of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]


def test_each_part_is_written_of() -> None:
    """The page says of each part that is tested here what people and operators see."""
    assert set(_rows("When a part is away")) == {
        *ASKED,
        "runner",
        "gateway-worker",
        "gateway-edge",
        "Postgres",
        "Slack, the platform",
    }


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", ASKED)
async def test_question_waits_for_a_part_that_must_be_asked(
    stack: Stack, walked: Walk, part: str, fault: str
) -> None:
    """Slack is told yes, nothing is said, the inbox says why, and the answer comes once.

    Here a pause ends before the worker has waited its 5 s, or says what a cut does.
    """
    async with asking_in(stack) as asking:
        async with away(stack, part, fault):
            question = await asking.ask()
            assert (await asking.first_attempt())["attempts"][0]["status"] == 200
            reasons = (GONE,) if fault == "kill" else (SILENT, GONE)
            await _until_it_shows(asking, *reasons, or_silent=fault == "pause")
            assert await asking.answers(question) == []
        assert "password" in await asking.only_answer(question)


@pytest.mark.parametrize("fault", FAULTS)
async def test_question_waits_for_the_runner(stack: Stack, walked: Walk, fault: str) -> None:
    """Slack is told yes, nothing is said, and the answer comes once.

    A runner that is silent has the question in hand when it is back; one that is gone has not.
    """
    async with asking_in(stack) as asking:
        async with away(stack, "runner", fault):
            question = await asking.ask()
            assert (await asking.first_attempt())["attempts"][0]["status"] == 200
            await _until_it_shows(asking, GONE, or_silent=fault != "kill")
            assert await asking.answers(question) == []
        assert "password" in await asking.only_answer(question)


@pytest.mark.parametrize("fault", FAULTS)
async def test_question_waits_for_the_worker(stack: Stack, walked: Walk, fault: str) -> None:
    """Slack is told yes, nobody takes the question up, and the answer comes once."""
    async with asking_in(stack) as asking:
        async with away(stack, "gateway-worker", fault):
            question = await asking.ask()
            assert (await asking.first_attempt())["attempts"][0]["status"] == 200
            await asking.until("it came to nothing", lambda: _is_left(asking))
            assert await asking.answers(question) == []
        assert "password" in await asking.only_answer(question)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", ["gateway-edge", "postgres"])
async def test_slack_sends_again_what_was_not_taken(
    stack: Stack, walked: Walk, part: str, fault: str
) -> None:
    """With edge or its database away Slack gets no yes; sent again, the question is answered once.

    A database that is away is a 503 before Slack gives up after 3 s, not silence.
    """
    async with asking_in(stack) as asking:
        async with away(stack, part, fault):
            question = await asking.ask()
            mention = await asking.first_attempt()
        assert mention["attempts"][0]["status"] == (503 if part == "postgres" else None)
        assert mention["outcome"] != "delivered"
        await asyncio.to_thread(stack.until_ready, "gateway-edge")
        await asking.send_until_taken(mention)
        assert "password" in await asking.only_answer(question)


@pytest.mark.parametrize("fault", FAULTS)
async def test_question_waits_for_slack_and_the_platform(
    stack: Stack, walked: Walk, fault: str
) -> None:
    """What Slack sent before it went is taken, kept, and answered once when both are back."""
    secret = await asyncio.to_thread(signing_secret, stack)
    async with asking_in(stack) as asking:
        question, bot_user = await asking.say(), await asking.bot_user()
        async with away(stack, "sandbox", fault):
            assert await asking.mention(question, bot_user, secret) == 200
            await _until_it_shows(asking, "PLATFORM_UNAVAILABLE", or_silent=True)
            assert not await asking.slack_answers()
        await asking.until_slack_is_back()
        assert "password" in await asking.only_answer(question)


async def _until_it_shows(asking: Asking, *reasons: str, or_silent: bool) -> None:
    """Wait until the newest event has failed for such a reason, or was taken up to no effect."""

    async def look() -> bool | None:
        seen = await asking.waiting()
        assert seen.state == "ready", seen
        assert seen.reason in {"", *reasons}, seen
        is_silent = seen.attempts > 0 and seen.seconds > SILENT_S
        return bool(seen.reason) or (or_silent and is_silent) or None

    await asking.until("the fault did not show", look)


async def _is_left(asking: Asking) -> bool | None:
    """Tell whether nobody has taken the newest event up in all that time."""
    seen = await asking.waiting()
    assert (seen.state, seen.attempts) == ("ready", 0), seen
    return seen.seconds > SILENT_S or None
