"""Parts of a stack of containers that go away and come back, and a question asked meanwhile."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import aiohttp

from interlock_cli.journey import MIA, TEAM, Journey, Question
from tests.support.compose_stack import Stack

FAULTS = {"pause": "unpause", "kill": "start", "disconnect": "connect"}
"""How a part goes away, and how it comes back."""

_WORDS = "I forgot my password"
# The sandbox waits for the end of a delivery, 10 s at most.
_CONTROL = aiohttp.ClientTimeout(total=15)
_STATE = "/var/lib/interlock/state.json"
_EVENTS = "/work-apps/slack/events"
# What the inbox knows of the newest event, and for how long; an event is tried within
# milliseconds of its arrival.
_NEWEST = """
SELECT json_build_object('state', state, 'attempts', attempts, 'reason', reason,
    'seconds', extract(epoch FROM now() - received_at))
FROM gateway.inbox_event WHERE kind = 'event' ORDER BY id DESC LIMIT 1
"""

T = TypeVar("T")
Json = dict[str, Any]


@asynccontextmanager
async def away(stack: Stack, part: str, fault: str) -> AsyncIterator[None]:
    """Have a part be away while the block runs, and back after it."""
    await asyncio.to_thread(stack.do, fault, part)
    try:
        yield
    finally:
        await asyncio.to_thread(stack.do, FAULTS[fault], part)


@dataclass(frozen=True)
class Waiting:
    """What the inbox says of an event.

    Attributes:
        state: `ready` until it has ended.
        attempts: How often the worker has taken it.
        reason: Why the last attempt came to nothing.
        seconds: Since it was taken from Slack.
    """

    state: str
    attempts: int
    reason: str
    seconds: float


@asynccontextmanager
async def asking_in(stack: Stack) -> AsyncIterator["Asking"]:
    """Ask in a stack while the block runs."""
    # A connection from before a fault may lead nowhere after it.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=_CONTROL) as http:
        yield Asking(stack, http)


class Asking:
    """One question in Slack, what became of its delivery, and its answers.

    Args:
        stack: Where it is asked.
        http: For the sandbox's control routes.
    """

    def __init__(self, stack: Stack, http: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._http = http
        self._journey = Journey(stack.urls, http, patience=stack.patience)

    async def ask(self) -> Question:
        """Mention the app."""
        return await self._journey.ask(MIA, _WORDS)

    async def say(self) -> Question:
        """Say the same without a mention, of which Slack tells the app nothing.

        Returns once the stand-in would know of it after a crash.
        """
        state = await self._get("state")
        [workspace] = [each for each in state["workspaces"] if each["id"] == TEAM]
        [place] = [each["id"] for each in workspace["channels"] if each["name"] == "help"]
        message = {"team": TEAM, "user": MIA.slack_user, "channel": place, "text": _WORDS}
        ts = (await self._post("post", message))["ts"]
        code = f"print({ts!r} in open({_STATE!r}).read())"

        async def look() -> bool | None:
            return (
                await asyncio.to_thread(self._stack.python, "sandbox", code)
            ) == "True\n" or None

        await self.until("Slack did not keep the message", look)
        return Question(place, ts, MIA)

    async def bot_user(self) -> str:
        """Return the app's user in the workspace."""
        state = await self._get("state")
        [workspace] = [each for each in state["workspaces"] if each["id"] == TEAM]
        return str(workspace["installation"]["bot_user"])

    async def mention(self, question: Question, bot_user: str, signing_secret: str) -> int:
        """Tell edge of a mention as Slack does, while the stand-in cannot; return the status."""
        where = {"team_id": TEAM, "user_id": bot_user, "is_bot": True}
        event = {
            "type": "app_mention",
            "user": MIA.slack_user,
            "team": TEAM,
            "channel": question.channel,
            "text": f"<@{bot_user}> {_WORDS}",
            "ts": question.ts,
        }
        envelope = {
            "type": "event_callback",
            "team_id": TEAM,
            "api_app_id": "A0INTERLOCK",
            "event_id": f"Ev{uuid4().hex[:10].upper()}",
            "event_time": int(time.time()),
            "authorizations": [where],
            "event": event,
        }
        body = json.dumps(envelope).encode()
        stamp = str(int(time.time()))
        base = f"v0:{stamp}:".encode() + body
        headers = {
            "Content-Type": "application/json",
            "X-Slack-Request-Timestamp": stamp,
            "X-Slack-Signature": f"v0={_hmac(signing_secret, base)}",
        }
        url = self._stack.urls.edge + _EVENTS
        async with self._http.post(url, data=body, headers=headers) as answer:
            return answer.status

    async def first_attempt(self) -> Json:
        """Return the newest mention that Slack sent, once it was tried."""

        async def look() -> Json | None:
            mentions = await self._mentions()
            return mentions[-1] if mentions and mentions[-1]["attempts"] else None

        return await self.until("Slack tried nothing", look)

    async def send_until_taken(self, mention: Json) -> None:
        """Send an event again, as Slack does, sooner than Slack does, until edge takes it."""

        async def send() -> bool | None:
            again = await self._post("repeat-event", {"number": mention["number"], "retry": 1})
            sent = await self._mentions(settled=again["number"])
            outcomes = [each["outcome"] for each in sent if each["number"] == again["number"]]
            return outcomes == ["delivered"] or None

        await self.until("edge took nothing", send)

    async def slack_answers(self) -> bool:
        """Tell whether the stand-in answers, within a second."""
        url = f"{self._stack.urls.slack}/_control/health"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(1), self._http.get(url) as answer:
                return answer.ok
        return False

    async def until_slack_is_back(self) -> None:
        """Wait until the stand-in answers."""

        async def look() -> bool | None:
            return await self.slack_answers() or None

        await self.until("Slack stays away", look)

    async def waiting(self) -> Waiting:
        """Ask the inbox about the event that came last."""
        psql = ("psql", "-U", "postgres", "-d", "interlock_gateway", "-Atc", _NEWEST)
        said = await asyncio.to_thread(self._stack.compose, "exec", "-T", "postgres", *psql)
        return Waiting(**json.loads(said))

    async def answers(self, question: Question) -> list[str]:
        """Return what the app has said in the question's thread."""
        return [
            message["text"]
            for message in await self._journey._messages(question)
            if message.get("thread_ts") == question.ts and "bot_id" in message
        ]

    async def only_answer(self, question: Question) -> str:
        """Wait for the answer's end, and return it; fail when there is another."""
        text = (await self._journey.watch_answer(question)).text
        assert await self.answers(question) == [text]
        return text

    async def until(self, failure: str, look: Callable[[], Awaitable[T | None]]) -> T:
        """Look again and again until something is seen."""
        ends = time.monotonic() + self._stack.patience.total_seconds()
        while (seen := await look()) is None:
            assert time.monotonic() < ends, failure
            await asyncio.sleep(0.1)
        return seen

    async def _mentions(self, *, settled: int = 0) -> list[Json]:
        """Return the mentions that Slack sent; with `settled`, once that one has ended, or 10 s."""
        found = await self._get(f"deliveries?settled={settled}")
        return [each for each in found["deliveries"] if each["event_type"] == "app_mention"]

    async def _get(self, what: str) -> Json:
        async with self._http.get(f"{self._stack.urls.slack}/_control/{what}") as answer:
            answer.raise_for_status()
            found: Json = await answer.json()
            return found

    async def _post(self, what: str, body: Json) -> Json:
        url = f"{self._stack.urls.slack}/_control/{what}"
        async with self._http.post(url, json=body) as answer:
            answer.raise_for_status()
            found: Json = await answer.json()
            return found


def _hmac(secret: str, message: bytes) -> str:
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
