"""Everything that is asked of a stack of containers, all the time, and what became of it."""

import asyncio
import hashlib
import hmac
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import aiohttp

from interlock_cli.journey import MIA, TEAM, Journey, Question
from tests.support.compose_stack import BUILD_S, Stack

# Slack waits 3 s. A machine may be busy with other tests.
REQUEST_S = 10.0
REQUEST_EVERY_S = 0.2
QUESTION_EVERY_S = 4.0
PATIENCE_S = 90.0
INTERACTIONS = "/work-apps/slack/interactions"


class Door:
    """The edges as Slack finds them behind a load balancer, and what became of requests.

    Args:
        edges: The replicas' URLs.
        signing_secret: Slack's.

    Attributes:
        answers: How often each status, or name of an error, came back.
        accepted: How often each edge said yes to each secret, since `sign_with`.
    """

    def __init__(self, edges: tuple[str, ...], signing_secret: str) -> None:
        self._secrets: tuple[str, ...] = (signing_secret,)
        # A load balancer hands on the name that was asked for.
        self._host = edges[0].removeprefix("http://")
        self._in_rotation = list(edges)
        self._open: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.accepted: Counter[tuple[str, str]] = Counter()

    def sign_with(self, *secrets: str) -> None:
        """Sign with one of these secrets after the other from now on, at every edge."""
        self._secrets = secrets
        self.accepted.clear()

    async def leave(self, edge: str) -> None:
        """Send no more to an edge; return when it has answered what was sent.

        So does a cluster: it takes a pod's address away, and the pod waits before SIGTERM.
        """
        self._in_rotation.remove(edge)
        await until(lambda: self._open[edge] == 0)

    def enter(self, edge: str) -> None:
        """Send to an edge again."""
        self._in_rotation.append(edge)

    async def keep_knocking(self, http: aiohttp.ClientSession) -> None:
        """Send signed clicks to one edge after the other until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(int(BUILD_S / REQUEST_EVERY_S)):
                turn, place = divmod(number, len(self._in_rotation))
                secret = self._secrets[turn % len(self._secrets)]
                group.create_task(self._knock(http, self._in_rotation[place], secret))
                await asyncio.sleep(REQUEST_EVERY_S)

    async def _knock(self, http: aiohttp.ClientSession, edge: str, secret: str) -> None:
        self._open[edge] += 1
        try:
            outcome = await self.knock(http, edge, secret)
        finally:
            self._open[edge] -= 1
        self.answers[outcome] += 1
        self.accepted[edge, secret] += outcome == "200"

    async def knock(self, http: aiohttp.ClientSession, edge: str, secret: str) -> str:
        """Send a signed click to an edge; return the status, or the name of the error."""
        body, headers = self._click(secret)
        try:
            async with (
                asyncio.timeout(REQUEST_S),
                http.post(edge + INTERACTIONS, data=body, headers=headers) as answer,
            ):
                return str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__

    def _click(self, secret: str) -> tuple[bytes, dict[str, str]]:
        """Make a click on a button that nobody knows, as Slack sends it."""
        payload = {
            "type": "block_actions",
            "api_app_id": "A0INTERLOCK",
            "team": {"id": TEAM, "domain": "northwind"},
            "enterprise": None,
            "is_enterprise_install": False,
            "user": {"id": MIA.slack_user, "team_id": TEAM},
            "channel": {"id": "C0GENERAL"},
            "container": {"type": "message", "message_ts": "1763985601.000200"},
            "actions": [{"action_id": f"unknown-{uuid4().hex}"}],
        }
        body = urlencode({"payload": json.dumps(payload)}).encode()
        stamp = str(int(time.time()))
        signed = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256)
        return body, {
            "Host": self._host,
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Slack-Request-Timestamp": stamp,
            "X-Slack-Signature": f"v0={signed.hexdigest()}",
        }


class Traffic:
    """Everything that is asked of the stack, all the time.

    Attributes:
        door: The way in.
    """

    def __init__(self, stack: Stack, door: Door) -> None:
        self._stack = stack
        self._questions: set[asyncio.Task[str]] = set()
        self._asked = 0
        self.door = door
        self._container = stack.container("traffic")
        self._seen = len(self._lines())

    async def keep_asking(self, http: aiohttp.ClientSession) -> None:
        """Ask a question every few seconds until cancelled."""
        journey = Journey(self._stack.urls, http, patience=self._stack.patience)
        for _ in range(int(BUILD_S / QUESTION_EVERY_S)):
            question = await journey.ask(MIA, "I forgot my password")
            self._questions.add(asyncio.create_task(_text(journey, question)))
            await asyncio.sleep(QUESTION_EVERY_S)

    async def settle(self) -> dict[str, Any]:
        """Wait for what is under way, and return what happened since the start."""
        texts = await asyncio.gather(*self._questions)
        before = len(self._lines())
        # What failed last is in the next line.
        await until(lambda: len(self._lines()) > before + 1)
        lines = [json.loads(line) for line in self._lines()[self._seen :]]
        good: Counter[str] = Counter()
        for line in lines:
            good.update(line["good"])
        return {
            "answers": texts,
            "good": good,
            "bad": [each for line in lines for each in line["bad"]],
            "edge": self.door.answers,
        }

    def last_keys(self) -> list[str]:
        """Name the keys that signed the grants of the last second."""
        keys: list[str] = json.loads(self._lines()[-1])["keys"]
        return keys

    def _lines(self) -> list[str]:
        logs = subprocess.run(
            ["docker", "logs", self._container], capture_output=True, text=True, check=True
        )
        # The channels say what they do, too.
        return [line for line in logs.stdout.splitlines() if line.startswith("{")]


async def _text(journey: Journey, question: Question) -> str:
    return (await journey.watch_answer(question)).text


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened; fail after 90 s."""
    ends = time.monotonic() + PATIENCE_S
    # Looking may take a while, in which traffic must not stand still.
    while not await asyncio.to_thread(happened):
        assert time.monotonic() < ends, "it did not happen"
        await asyncio.sleep(0.1)


def signing_secret(stack: Stack) -> str:
    """Return the secret that the edge takes for Slack's."""
    return stack.python(
        "gateway-edge", "print(open('/run/interlock/slack-signing-secret').read(), end='')"
    )


@asynccontextmanager
async def under_traffic(stack: Stack) -> AsyncIterator[Traffic]:
    """Knock, ask and read while the block runs; fail if anything of it fails."""
    traffic = Traffic(stack, Door(stack.edges, signing_secret(stack)))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        running = [
            asyncio.create_task(traffic.door.keep_knocking(http)),
            asyncio.create_task(traffic.keep_asking(http)),
        ]
        try:
            yield traffic
        finally:
            for task in running:
                task.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
        found = await traffic.settle()
    assert found["bad"] == [], found["bad"]
    assert set(found["good"]) == {"ReadBotToken", "IssueUserToken"}, found["good"]
    assert set(found["edge"]) == {"200"}, found["edge"]
    assert found["answers"], "nothing was asked"
    assert all("password" in each for each in found["answers"]), found["answers"]
