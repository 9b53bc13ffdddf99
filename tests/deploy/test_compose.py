"""The product in containers, driven from outside as its users would."""

import asyncio
import subprocess
import time
from typing import Any

import aiohttp
import pytest

from interlock_cli.demo import MIN_STREAMED_STATES
from interlock_cli.journey import MIA, Journey
from interlock_cli.leak_search import LeakSearch
from interlock_cli.product import DATABASES
from tests.support.compose_stack import BUILD_S, SERVICES, Stack, Walk

INSPECTED = (
    "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    " {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}}"
)

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]


def test_main_path_works_in_containers(walked: Walk) -> None:
    """Install, ask, link and answer work over HTTP from outside; the answer is streamed."""
    assert "30 days" in walked.answer.text
    assert len(walked.answer.lengths) >= MIN_STREAMED_STATES


def test_no_secret_is_in_logs_or_tables(stack: Stack, walked: Walk) -> None:
    """What was issued on the way is neither in any service's log nor in any of its tables."""
    search = LeakSearch(walked.secrets)
    logs = stack.compose("logs", "--no-color", *SERVICES)
    assert search.search("logs", logs.encode()) == []
    for plan in DATABASES:
        dump = stack.compose("exec", "-T", "postgres", "pg_dump", "-U", "postgres", plan.name)
        assert search.search(plan.name, dump.encode()) == []


@pytest.mark.parametrize(
    ("service", "away", "back"),
    [
        ("runner", "kill", "start"),
        ("gateway-worker", "kill", "start"),
        ("identity", "pause", "unpause"),
        ("token-vault", "disconnect", "connect"),
    ],
)
async def test_question_outlasts_a_part_that_is_away(
    stack: Stack, walked: Walk, service: str, away: str, back: str
) -> None:
    """A question asked while a part is killed, paused or cut off is answered when it is back."""
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http, patience=stack.patience)
        await asyncio.to_thread(stack.do, away, service)
        try:
            question = await journey.ask(MIA, "I forgot my password")
        finally:
            await asyncio.to_thread(stack.do, back, service)
        assert "password" in (await journey.watch_answer(question)).text


@pytest.mark.parametrize(
    ("part", "away", "back"),
    [("gateway-edge", "kill", "start"), ("postgres", "pause", "unpause")],
)
async def test_slack_sends_again_what_was_not_taken(
    stack: Stack, walked: Walk, part: str, away: str, back: str
) -> None:
    """With edge or its database away Slack gets no yes; sent again, the question is answered once.

    A database that is away is a 503 before Slack gives up after 3 s, not silence.
    """
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http, patience=stack.patience)
        await asyncio.to_thread(stack.do, away, part)
        try:
            question = await journey.ask(MIA, "I forgot my password")
            mention = await _mention(stack, http)
        finally:
            await asyncio.to_thread(stack.do, back, part)
            if back == "start":
                await asyncio.to_thread(stack.wait, part)
        assert mention["attempts"][0]["status"] == (503 if part == "postgres" else None)
        await _send_until_taken(stack, http, mention)
        assert "password" in (await journey.watch_answer(question)).text
        answers = [
            message
            for message in await journey._messages(question)
            if message.get("thread_ts") == question.ts and "bot_id" in message
        ]
    assert len(answers) == 1


async def _mention(stack: Stack, http: aiohttp.ClientSession) -> dict[str, Any]:
    """Return the newest mention that Slack tried to deliver, once it was tried."""
    ends = time.monotonic() + stack.patience.total_seconds()
    while time.monotonic() < ends:
        mentions = [each for each in await _deliveries(stack, http) if each["attempts"]]
        if mentions and mentions[-1]["outcome"] != "delivered":
            return mentions[-1]
        await asyncio.sleep(0.05)
    raise AssertionError("Slack tried nothing, or was told yes")


async def _send_until_taken(
    stack: Stack, http: aiohttp.ClientSession, mention: dict[str, Any]
) -> None:
    """Send an event again, as Slack does, sooner than Slack does, until edge takes it."""
    ends = time.monotonic() + stack.patience.total_seconds()
    while time.monotonic() < ends:
        body = {"number": mention["number"], "retry": 1}
        async with http.post(f"{stack.urls.slack}/_control/repeat-event", json=body) as answer:
            answer.raise_for_status()
            number = (await answer.json())["number"]
        sent = await _deliveries(stack, http, settled=number)
        if any(each["number"] == number and each["outcome"] == "delivered" for each in sent):
            return
    raise AssertionError("edge took nothing")


async def _deliveries(
    stack: Stack, http: aiohttp.ClientSession, *, settled: int = 0
) -> list[dict[str, Any]]:
    """Return the mentions that Slack sent; with `settled`, once that one has ended, or 10 s."""
    async with http.get(f"{stack.urls.slack}/_control/deliveries?settled={settled}") as answer:
        found = (await answer.json())["deliveries"]
    return [each for each in found if each["event_type"] == "app_mention"]


async def test_installation_survives_a_restart_of_everything(stack: Stack, walked: Walk) -> None:
    """Each service is restarted, keys and databases are prepared again; who linked stays so."""
    await asyncio.to_thread(stack.compose, "restart", *SERVICES)
    await asyncio.to_thread(stack.up)
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http, patience=stack.patience)
        again = await journey.watch_answer(await journey.ask(MIA, "I forgot my password"))
    assert "password" in again.text


def test_containers_run_with_nothing_to_spare(stack: Stack) -> None:
    """Services run as nobody, on a read-only root, without capabilities, limited in memory."""
    for service in SERVICES:
        found = subprocess.run(
            [
                "docker",
                "inspect",
                "--format",
                INSPECTED,
                stack.container(service),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert found.strip() == "65532:65532 true [ALL] [no-new-privileges:true] true", service


def test_each_service_sees_its_own_secrets_alone(stack: Stack) -> None:
    """No file of one service's folder is another's, but for certificates and public keys."""
    owners: dict[str, set[str]] = {}
    for service in SERVICES:
        listing = stack.compose(
            "exec", "-T", service, "sh", "-c", "sha256sum /run/interlock/* 2>/dev/null"
        )
        for line in listing.splitlines():
            digest, path = line.split(maxsplit=1)
            if not path.endswith(("/ca.crt", "/grant-public-keys.json")):
                owners.setdefault(digest, set()).add(f"{service} {path}")
    assert owners
    assert [each for each in owners.values() if len(each) > 1] == []
