"""Slack's own requests: signed, sent, held back, and sent again when nobody answers."""

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.model import JSON
from interlock_sandbox.slack.switches import Switches

KEPT_DELIVERIES = 2_000
# Delayed Events: every hour for a day.
DELAYED_ATTEMPTS = 24
# Nobody reads more of an answer to a request of Slack.
MAX_ANSWER_BYTES = 64 * 1024
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Answer:
    """How the app answered one request.

    Attributes:
        status: The HTTP status, or None when no answer came.
        reason: Why not, in the words of `x-slack-retry-reason`.
    """

    status: int | None
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def accepted(self) -> bool:
        """Slack takes any 2xx for yes."""
        return self.status is not None and self.status // 100 == 2  # noqa: PLR2004


@dataclass
class Delivery:
    """One request of Slack and every attempt to deliver it.

    Attributes:
        body: What is sent, the same bytes at every attempt.
        outcome: `held`, `sending` or `retrying`, in the end `delivered` or `failed`.
    """

    number: int
    kind: str
    event_id: str | None
    event_type: str
    body: bytes = b""
    attempts: list[JSON] = field(default_factory=list)
    outcome: str = "sending"
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _tried: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, attempt: JSON) -> None:
        """Note how an attempt went."""
        self.attempts.append(attempt)
        self._tried.set()

    def settle(self, *, delivered: bool) -> None:
        """Note how it ended."""
        self.outcome = "delivered" if delivered else "failed"
        self._settled.set()

    async def wait(self, seconds: float) -> None:
        """Wait until it ended, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)

    async def wait_for_attempt(self) -> None:
        """Wait until it was tried once."""
        await self._tried.wait()

    def show(self) -> JSON:
        """Return the delivery as the control API shows it."""
        return {
            "number": self.number,
            "kind": self.kind,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "attempts": self.attempts,
            "outcome": self.outcome,
        }


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the v0 signature of a request."""
    base = b"v0:" + timestamp.encode() + b":" + body
    return "v0=" + hmac.new(secret.encode(), base, hashlib.sha256).hexdigest()


class Outbound:
    """Send what Slack would send.

    Args:
        timeout_s: How long Slack waits for an answer.
        retry_delays_s: The waits before the second and later attempts of an
            event; interactions and commands are tried once.

    Attributes:
        stamp: The clock by which requests are stamped.
        holds_events: Whether events wait to be released instead of being sent.
    """

    def __init__(
        self,
        app: SlackApp,
        http: aiohttp.ClientSession,
        switches: Switches,
        *,
        stamp: Callable[[], float],
        timeout_s: float,
        retry_delays_s: tuple[float, ...],
    ) -> None:
        self._app = app
        self._http = http
        self._switches = switches
        self.stamp = stamp
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._retry_delays_s = retry_delays_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self.holds_events = False
        self.deliveries: deque[Delivery] = deque(maxlen=KEPT_DELIVERIES)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Events.

    def send_event(self, event_type: str, event_id: str | None, body: bytes) -> Delivery:
        """Deliver an event in the background, with Slack's retries; or hold it."""
        delivery = self._begin("event", event_type, event_id, body)
        if self.holds_events:
            delivery.outcome = "held"
        else:
            self._start(self._deliver(delivery))
        return delivery

    def release(self, numbers: Iterable[int] | None = None) -> None:
        """Send the events that are held, or only these, each after the one before was tried."""
        held = {each.number: each for each in self.deliveries if each.outcome == "held"}
        chosen = [held[each] for each in (held if numbers is None else numbers) if each in held]
        for delivery in chosen:
            delivery.outcome = "sending"
        self._start(self._deliver_in_turn(chosen))

    def repeat(self, delivery: Delivery, retry_number: int) -> Delivery:
        """Send an event again as if Slack had not got its answer."""
        again = self._begin("event", delivery.event_type, delivery.event_id, delivery.body)
        retry = {"x-slack-retry-num": str(retry_number), "x-slack-retry-reason": "http_timeout"}
        self._start(self._deliver(again, retry if retry_number else None))
        return again

    async def _deliver_in_turn(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._start(self._deliver(delivery))
            await delivery.wait_for_attempt()

    async def _deliver(self, delivery: Delivery, headers: dict[str, str] | None = None) -> None:
        retry = dict(headers or {})
        delays: list[float | None] = [None, *self._retry_delays_s]
        if self._switches.delayed_events:
            delays += [self._switches.delayed_event_interval_s] * DELAYED_ATTEMPTS
        for number, delay in enumerate(delays):
            if delay is not None:
                await asyncio.sleep(delay)
                retry["x-slack-retry-num"] = str(number)
            url = self._app.events_url
            answer = await self._attempt(delivery, url, "application/json", retry)
            if answer.accepted:
                delivery.settle(delivered=True)
                return
            if answer.headers.get("x-slack-no-retry") == "1":
                break
            retry["x-slack-retry-reason"] = answer.reason
            delivery.outcome = "retrying"
        delivery.settle(delivered=False)

    # Requests that are sent once.

    async def ask(self, kind: str, name: str, body: bytes) -> Answer:
        """Send an interaction or a command once, and wait for the answer."""
        url = self._app.commands_url if kind == "command" else self._app.interactions_url
        delivery = self._begin(kind, name, None, body)
        answer = await self._attempt(delivery, url, FORM, {})
        delivery.settle(delivered=answer.accepted)
        return answer

    async def send_raw(
        self, target: str, name: str, body: bytes, content_type: str, headers: dict[str, str | None]
    ) -> Answer:
        """Send any bytes once, signed unless the headers given say otherwise.

        Args:
            target: Which of the app's URLs: `events`, `interactions`, `commands`.
            name: What the record calls it.
            body: What to send.
            content_type: What to call it.
            headers: Replace Slack's headers; None leaves one out.
        """
        urls = {
            "events": self._app.events_url,
            "interactions": self._app.interactions_url,
            "commands": self._app.commands_url,
        }
        delivery = self._begin(f"raw {target}", name, None, body)
        answer = await self._attempt(delivery, urls[target], content_type, headers)
        delivery.settle(delivered=answer.accepted)
        return answer

    def _begin(self, kind: str, event_type: str, event_id: str | None, body: bytes) -> Delivery:
        self._sent += 1
        delivery = Delivery(self._sent, kind, event_id, event_type, body)
        self.deliveries.append(delivery)
        return delivery

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(
        self, delivery: Delivery, url: str, content_type: str, headers: dict[str, Any]
    ) -> Answer:
        timestamp = headers.get("X-Slack-Request-Timestamp") or str(int(self.stamp()))
        every = {
            "Content-Type": content_type,
            "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
            "X-Slack-Request-Timestamp": timestamp,
            "X-Slack-Signature": sign(self._app.signing_secret.reveal(), timestamp, delivery.body),
            **headers,
        }
        sent = {name: value for name, value in every.items() if value is not None}
        started = time.monotonic()
        answer = await self._post(url, delivery.body, sent)
        delivery.note(
            {
                "at": self.stamp(),
                "status": answer.status,
                "reason": answer.reason,
                "elapsed_ms": round((time.monotonic() - started) * 1000),
            }
        )
        return answer

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        try:
            async with self._http.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                content = await response.content.read(MAX_ANSWER_BYTES)
                lower = {name.lower(): value for name, value in response.headers.items()}
                reason = "" if response.status < HTTPStatus.MULTIPLE_CHOICES else "http_error"
                return Answer(response.status, reason, lower, content)
        except TimeoutError:
            return Answer(None, "http_timeout")
        except aiohttp.ClientSSLError:
            return Answer(None, "ssl_error")
        except aiohttp.ClientConnectionError:
            return Answer(None, "connection_failed")
        except aiohttp.ClientError:
            return Answer(None, "unknown_error")
