"""Slack's own requests: signed, sent, and sent again when nobody answers."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.world import JSON, Message, Token, Workspace, World, render

KEPT_DELIVERIES = 2_000
# Nobody reads more of an answer to a request of Slack.
MAX_ANSWER_BYTES = 64 * 1024
_MENTION = re.compile(r"<@([A-Z0-9]+)(?:\|[^>]*)?>")
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


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
        outcome: `sending` or `retrying`, in the end `delivered` or `failed`.
    """

    number: int
    kind: str
    event_id: str | None
    event_type: str
    attempts: list[JSON] = field(default_factory=list)
    outcome: str = "sending"
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, *, delivered: bool) -> None:
        """Note how it ended."""
        self.outcome = "delivered" if delivered else "failed"
        self._settled.set()

    async def wait(self, seconds: float) -> None:
        """Wait until it ended, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)

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
    """

    def __init__(
        self,
        app: SlackApp,
        world: World,
        http: aiohttp.ClientSession,
        timeout_s: float,
        retry_delays_s: tuple[float, ...],
    ) -> None:
        self._app = app
        self._world = world
        self._http = http
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._retry_delays_s = retry_delays_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self.deliveries: deque[Delivery] = deque(maxlen=KEPT_DELIVERIES)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What happens in a workspace.

    def message_posted(self, workspace: Workspace, message: Message) -> None:
        """Tell the app of a message, if it subscribed, may know, and is there."""
        installation = workspace.active_installation()
        channel = workspace.channels[message.channel]
        if installation is None or installation.bot_user not in channel.members:
            return
        scopes = self._bot_scopes(workspace)
        event = _message_event(workspace, message)
        if channel.is_im:
            if "im:history" in scopes:
                self._notify(workspace, "message.im", event | {"channel_type": "im"})
            return
        mentioned = installation.bot_user in _MENTION.findall(message.text)
        if mentioned and not message.bot_id and "app_mentions:read" in scopes:
            self._notify(workspace, "app_mention", event | {"type": "app_mention"})
        if "channels:history" in scopes:
            self._notify(workspace, "message.channels", event | {"channel_type": "channel"})

    def token_revoked(self, workspace: Workspace, token: Token) -> None:
        """Revoke one token and tell the app."""
        self._world.revoke(token)
        listed = {"oauth": [], "bot": [], {"bot": "bot", "user": "oauth"}[token.kind]: [token.user]}
        self._notify(workspace, "tokens_revoked", {"type": "tokens_revoked", "tokens": listed})
        if workspace.active_installation() is None:
            self._notify(workspace, "app_uninstalled", {"type": "app_uninstalled"})

    def app_uninstalled(self, workspace: Workspace) -> None:
        """Remove the app from a workspace and tell it.

        Slack promises no order of the two events; here the uninstall is first.
        """
        tokens = self._world.live_tokens(workspace.id)
        for token in tokens:
            self._world.revoke(token)
        self._notify(workspace, "app_uninstalled", {"type": "app_uninstalled"})
        listed = {
            "oauth": [token.user for token in tokens if token.kind == "user"],
            "bot": [token.user for token in tokens if token.kind == "bot"],
        }
        self._notify(workspace, "tokens_revoked", {"type": "tokens_revoked", "tokens": listed})

    def stream_stopped(self, workspace: Workspace, user: str, message: Message) -> None:
        """Tell the app that a reader stopped its answer."""
        event = {
            "type": "agent_session_stopped",
            "channel": message.channel,
            "thread_ts": message.thread,
            "streaming_message_ts": [message.ts],
            "user": user,
            "event_ts": self._world.next_ts(),
        }
        self._notify(workspace, "agent_session_stopped", event)

    def _bot_scopes(self, workspace: Workspace) -> list[str]:
        token = self._world.bot_token(workspace.id)
        return token.scopes if token else []

    def _notify(self, workspace: Workspace, subscription: str, event: JSON) -> None:
        if subscription in self._app.event_subscriptions:
            self.send_event(self.envelope(workspace, event))

    # Events.

    def envelope(self, workspace: Workspace, event: JSON) -> JSON:
        """Wrap an event as Slack's Events API does."""
        installation = workspace.installation
        authorization = {
            "enterprise_id": None,
            "team_id": workspace.id,
            "user_id": installation.bot_user if installation else None,
            "is_bot": True,
            "is_enterprise_install": False,
        }
        return {
            "token": self._world.verification_token,
            "team_id": workspace.id,
            "context_team_id": workspace.id,
            "context_enterprise_id": None,
            "api_app_id": self._app.id,
            "event": event,
            "type": "event_callback",
            "event_id": new_id("Ev"),
            "event_time": int(self._world.now()),
            "authorizations": [authorization],
            "is_ext_shared_channel": False,
            "event_context": f"4-{secrets.token_urlsafe(24)}",
        }

    def send_event(self, envelope: JSON) -> Delivery:
        """Deliver an event in the background, with Slack's retries."""
        event = envelope.get("event") or {}
        delivery = self._begin("event", event.get("type", ""), envelope.get("event_id"))
        self._start(self._deliver(delivery, json.dumps(envelope).encode()))
        return delivery

    async def verify_url(self) -> Answer:
        """Ask the app to prove that the events URL is its own."""
        challenge = secrets.token_urlsafe(32)
        body = {
            "token": self._world.verification_token,
            "challenge": challenge,
            "type": "url_verification",
        }
        delivery = self._begin("event", "url_verification", None)
        answer = await self._attempt(
            delivery, self._app.events_url, json.dumps(body).encode(), "application/json", {}
        )
        proved = answer.accepted and challenge.encode() in answer.body
        delivery.settle(delivered=proved)
        return answer if proved or not answer.accepted else Answer(answer.status, "wrong_challenge")

    async def _deliver(self, delivery: Delivery, body: bytes) -> None:
        retry: dict[str, str] = {}
        for number, delay in enumerate((None, *self._retry_delays_s)):
            if delay is not None:
                await asyncio.sleep(delay)
                retry["x-slack-retry-num"] = str(number)
            answer = await self._attempt(
                delivery, self._app.events_url, body, "application/json", retry
            )
            if answer.accepted:
                delivery.settle(delivered=True)
                return
            if answer.headers.get("x-slack-no-retry") == "1":
                break
            retry["x-slack-retry-reason"] = answer.reason
            delivery.outcome = "retrying"
        delivery.settle(delivered=False)

    # Interactions and commands.

    async def interact(self, payload: JSON) -> Answer:
        """Send an interaction once and wait for its acknowledgement."""
        body = aiohttp.FormData({"payload": json.dumps(payload)})
        return await self._once("interaction", payload["type"], self._app.interactions_url, body)

    async def command(self, fields: dict[str, str]) -> Answer:
        """Send a slash command once and wait for its answer."""
        body = aiohttp.FormData(fields)
        return await self._once("command", fields["command"], self._app.commands_url, body)

    async def _once(self, kind: str, name: str, url: str, form: aiohttp.FormData) -> Answer:
        body = form().decode().encode()
        delivery = self._begin(kind, name, None)
        answer = await self._attempt(delivery, url, body, "application/x-www-form-urlencoded", {})
        delivery.settle(delivered=answer.accepted)
        return answer

    # Sending.

    async def send_raw(
        self, kind: str, body: bytes, content_type: str, headers: dict[str, str | None]
    ) -> Answer:
        """Send any bytes once, signed unless the headers given say otherwise.

        Args:
            kind: Which of the app's URLs: `events`, `interactions`, `commands`.
            body: What to send.
            content_type: What to call it.
            headers: Replace Slack's headers; None leaves one out.
        """
        urls = {
            "events": self._app.events_url,
            "interactions": self._app.interactions_url,
            "commands": self._app.commands_url,
        }
        delivery = self._begin(f"raw {kind}", "", None)
        answer = await self._attempt(delivery, urls[kind], body, content_type, headers)
        delivery.settle(delivered=answer.accepted)
        return answer

    def _begin(self, kind: str, event_type: str, event_id: str | None) -> Delivery:
        self._sent += 1
        delivery = Delivery(self._sent, kind, event_id, event_type)
        self.deliveries.append(delivery)
        return delivery

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(
        self,
        delivery: Delivery,
        url: str,
        body: bytes,
        content_type: str,
        headers: dict[str, Any],
    ) -> Answer:
        timestamp = headers.get("X-Slack-Request-Timestamp") or str(int(self._world.now()))
        signature = sign(self._app.signing_secret.reveal(), timestamp, body)
        every = {
            "Content-Type": content_type,
            "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
            "X-Slack-Request-Timestamp": timestamp,
            "X-Slack-Signature": signature,
            **headers,
        }
        sent = {name: value for name, value in every.items() if value is not None}
        started = time.monotonic()
        answer = await self._post(url, body, sent)
        delivery.attempts.append(
            {
                "at": self._world.now(),
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


def new_id(prefix: str) -> str:
    """Return a Slack id: a prefix and ten letters or digits."""
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))


def _message_event(workspace: Workspace, message: Message) -> JSON:
    shown = render(message)
    shown.pop("sandbox", None)
    return shown | {
        "type": "message",
        "event_ts": message.ts,
        "team": workspace.id,
        "client_msg_id": secrets.token_hex(16),
        "blocks": message.blocks or [_rich_text(message.text)],
    }


def _rich_text(text: str) -> JSON:
    """Return the block that Slack's own composer makes of a typed message."""
    elements: list[JSON] = []
    position = 0
    for mention in _MENTION.finditer(text):
        if before := text[position : mention.start()]:
            elements.append({"type": "text", "text": before})
        elements.append({"type": "user", "user_id": mention[1]})
        position = mention.end()
    if rest := text[position:]:
        elements.append({"type": "text", "text": rest})
    section = {"type": "rich_text_section", "elements": elements}
    return {"type": "rich_text", "block_id": secrets.token_hex(3), "elements": [section]}
