"""Slack's Web API over slack_sdk, and the response URLs of interactions."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError, SlackRequestError
from slack_sdk.web.async_client import AsyncWebClient
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import outgoing_call
from interlock_gateway.worker.slack import (
    Block,
    BotTokenRefused,
    Channel,
    Note,
    Place,
    Profile,
    Reader,
    SlackRateLimited,
    SlackRefused,
    SlackUnavailable,
    ThreadMessage,
)

CALL_TIMEOUT = timedelta(seconds=10)
RESPONSE_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")

_TOKEN_REFUSALS = frozenset(
    {"account_inactive", "invalid_auth", "not_authed", "token_expired", "token_revoked"}
)
_BUSY = frozenset({"ratelimited", "rate_limited"})
_FAILURES = frozenset(
    {"fatal_error", "internal_error", "request_timeout", "service_unavailable", "team_added_to_org"}
)
_CODE = re.compile(r"[a-z0-9_.]{1,64}")
_DEFAULT_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(minutes=5)
_THREAD_PAGE = 200
_THREAD_PAGES = 5
_CHANNEL_PAGE = 200
_CHANNEL_PAGES = 25
_MAX_NAME_CHARS = 320


class SlackWeb:
    """The `Slack` port.

    Args:
        session: Shared by all calls; holds no token.
        api_url: Where the Web API is, ending in `/`.
        response_hosts: `host` or `host:port` that response URLs may name.
        may_be_plain: Whether response URLs may be http, for a stand-in on loopback.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        api_url: URL,
        *,
        response_hosts: Sequence[str] = RESPONSE_HOSTS,
        may_be_plain: bool = False,
    ) -> None:
        self._session = session
        self._api_url = str(api_url).rstrip("/") + "/"
        self._response_hosts = frozenset(response_hosts)
        self._schemes = frozenset({"https", "http"} if may_be_plain else {"https"})

    async def check(self, token: Secret[str]) -> None:
        """Return if Slack accepts the token."""
        await self._call(token, "auth.test", {})

    async def profile(self, token: Secret[str], user_id: str) -> Profile:
        """Get a user's name and e-mail address."""
        answer = await self._call(token, "users.info", {"user": user_id})
        user = _object(answer, "user")
        profile = _object(user, "profile")
        names = (_text(profile, "real_name"), _text(user, "real_name"), _text(user, "name"))
        name = next((each for each in names if each), "")
        return Profile(name[:_MAX_NAME_CHARS], _text(profile, "email")[:_MAX_NAME_CHARS])

    async def thread(self, token: Secret[str], place: Place) -> Sequence[ThreadMessage]:
        """List a thread, page by page."""
        messages: list[ThreadMessage] = []
        cursor = ""
        for _ in range(_THREAD_PAGES):
            arguments = {
                "channel": place.channel,
                "ts": place.thread_ts,
                "limit": _THREAD_PAGE,
                "include_all_metadata": True,
            }
            answer = await self._call(
                token, "conversations.replies", _with_cursor(arguments, cursor)
            )
            messages += [_message(each) for each in _objects(answer, "messages")]
            cursor = _cursor(answer)
            if not cursor:
                break
        # Slack repeats the root on every page.
        return list({message.ts: message for message in messages}.values())

    async def channels(self, token: Secret[str], team_id: str) -> Sequence[Channel]:
        """List channels, page by page, by name."""
        channels: list[Channel] = []
        cursor = ""
        for _ in range(_CHANNEL_PAGES):
            arguments: dict[str, Any] = {
                "types": "public_channel,private_channel",
                "exclude_archived": True,
                "limit": _CHANNEL_PAGE,
            }
            if team_id:
                arguments["team_id"] = team_id
            answer = await self._call(token, "conversations.list", _with_cursor(arguments, cursor))
            channels += [
                Channel(_text(each, "id"), _text(each, "name"), each.get("is_member") is True)
                for each in _objects(answer, "channels")
            ]
            cursor = _cursor(answer)
            if not cursor:
                break
        return sorted(channels, key=lambda channel: channel.name)

    async def set_status(self, token: Secret[str], place: Place, status: str) -> None:
        """Show what the app is doing under a thread."""
        arguments = {
            "channel_id": place.channel,
            "thread_ts": place.thread_ts,
            "status": status,
        }
        await self._call(token, "assistant.threads.setStatus", arguments)

    async def whisper(self, token: Secret[str], place: Place, user_id: str, note: Note) -> None:
        """Show a message to one person only."""
        arguments = _message_arguments(place, note) | {"user": user_id}
        await self._call(token, "chat.postEphemeral", arguments)

    async def post(self, token: Secret[str], place: Place, note: Note) -> str:
        """Post a message; Slack fetches nothing that it links to."""
        arguments = _message_arguments(place, note)
        arguments |= {"unfurl_links": False, "unfurl_media": False}
        answer = await self._call(token, "chat.postMessage", arguments)
        return _text(answer, "ts")

    async def update(self, token: Secret[str], channel: str, ts: str, note: Note) -> None:
        """Replace a message."""
        arguments = _message_arguments(Place(channel, ""), note) | {"ts": ts}
        await self._call(token, "chat.update", arguments)

    async def start_stream(self, token: Secret[str], place: Place, reader: Reader) -> str:
        """Begin a message that grows."""
        arguments = {
            "channel": place.channel,
            "thread_ts": place.thread_ts,
            "recipient_user_id": reader.user_id,
            "recipient_team_id": reader.team_id,
        }
        answer = await self._call(token, "chat.startStream", arguments)
        return _text(answer, "ts")

    async def append_stream(self, token: Secret[str], channel: str, ts: str, text: str) -> None:
        """Let a message grow."""
        arguments = {"channel": channel, "ts": ts, "markdown_text": text}
        await self._call(token, "chat.appendStream", arguments)

    async def stop_stream(
        self,
        token: Secret[str],
        channel: str,
        ts: str,
        *,
        text: str,
        blocks: Sequence[Block],
        metadata: Mapping[str, Any],
    ) -> None:
        """End a message that grows."""
        arguments: dict[str, Any] = {"channel": channel, "ts": ts, "metadata": metadata}
        if text:
            arguments["markdown_text"] = text
        if blocks:
            arguments["blocks"] = _disclose(blocks)
        await self._call(token, "chat.stopStream", arguments)

    async def respond(self, response_url: Secret[str], team_id: str, note: Note) -> None:
        """Replace the message that an interaction or command came from."""
        url = self._response_url(response_url, team_id)
        body = {"text": note.text, "replace_original": True, "response_type": "ephemeral"}
        if note.blocks:
            body["blocks"] = _disclose(note.blocks)
        try:
            async with self._session.post(
                url, json=body, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SlackUnavailable from error
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise SlackRateLimited(retry_after=_pause(response.headers))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise SlackUnavailable
        if status != HTTPStatus.OK:
            raise SlackRefused("response_url_refused")

    def _response_url(self, response_url: Secret[str], team_id: str) -> URL:
        """Let only Slack's own URLs of the grant's team pass.

        Raises:
            SlackRefused: It is another host's, or another team's; that is on record.
        """
        text = response_url.reveal()
        if not text:
            raise SlackRefused("response_url_invalid")
        try:
            # A host is compared as it is written: dots that only look like dots are none.
            return self._slacks_own(URL(text.encode("ascii").decode()), team_id)
        except ValueError:
            # Slack writes none like this; who else can sign has the signing secret.
            structlog.get_logger().warning("ssrf_refused", audit=True, team_id=team_id)
            raise SlackRefused("response_url_invalid") from None

    def _slacks_own(self, url: URL, team_id: str) -> URL:
        """Return a URL of Slack's for the team; ValueError for any other."""
        port = url.explicit_port
        host = f"{url.host}:{port}" if port else url.host
        if url.scheme not in self._schemes or host not in self._response_hosts or url.user:
            raise ValueError("not Slack's")
        # /actions/T…/…, /commands/T…/…, /services/T…/…; an org-wide install's may name any
        # of its teams, which we do not know.
        parts = url.path.split("/")
        named = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - As above.
        if team_id.startswith("T") and named != team_id:
            raise ValueError("not the team's")
        return url

    async def _call(
        self, token: Secret[str], method: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Call a method once.

        Raises:
            BotTokenRefused, SlackRefused, SlackRateLimited: Nothing happened at Slack.
            SlackUnavailable: It may have happened.
        """
        client = AsyncWebClient(
            token=token.reveal(),
            base_url=self._api_url,
            timeout=int(CALL_TIMEOUT.total_seconds()),
            session=self._session,
            # A connection that breaks may have carried the call; who calls decides.
            retry_handlers=[],
        )
        try:
            with outgoing_call(f"slack {method}"):
                async with asyncio.timeout(CALL_TIMEOUT.total_seconds()):
                    answer = await _send(client, method, arguments)
        except SlackApiError as error:
            raise _refusal(error) from None
        except (aiohttp.ClientError, SlackRequestError, TimeoutError, ValueError):
            # These may quote what was sent.
            raise SlackUnavailable from None
        data = answer.data
        return data if isinstance(data, dict) else {}


_TIMEOUT = aiohttp.ClientTimeout(total=CALL_TIMEOUT.total_seconds())
# Methods that take forms only.
_READS = frozenset({"auth.test", "conversations.list", "conversations.replies", "users.info"})


async def _send(client: AsyncWebClient, method: str, arguments: Mapping[str, Any]) -> Any:
    if method in _READS:
        form = {name: _form_value(value) for name, value in arguments.items()}
        return await client.api_call(method, data=form)
    return await client.api_call(method, json=dict(arguments))


def _form_value(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _refusal(error: SlackApiError) -> Exception:
    """Judge an answer that is not ok."""
    response = error.response
    # An unreadable answer comes as the HTTP client's own response.
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    headers = getattr(response, "headers", None) or {}
    data = getattr(response, "data", None)
    said = data.get("error") if isinstance(data, dict) else None
    code = said if isinstance(said, str) and _CODE.fullmatch(said) else "unknown_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS or code in _BUSY:
        return SlackRateLimited(retry_after=_pause(headers))
    if code in _TOKEN_REFUSALS:
        return BotTokenRefused(code)
    if said is None or code in _FAILURES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return SlackUnavailable()
    return SlackRefused(code)


def _pause(headers: Mapping[str, str]) -> timedelta:
    """Read Retry-After, in seconds; unreadable ones are a second, long ones five minutes."""
    text = next((headers[name] for name in headers if name.lower() == "retry-after"), "")
    if not text.isascii() or not text.isdigit():
        return _DEFAULT_PAUSE
    return min(timedelta(seconds=int(text[:9])), _LONGEST_PAUSE)


def _message_arguments(place: Place, note: Note) -> dict[str, Any]:
    arguments: dict[str, Any] = {"channel": place.channel, "text": note.text}
    if place.thread_ts:
        arguments["thread_ts"] = place.thread_ts
    if note.blocks:
        arguments["blocks"] = _disclose(note.blocks)
    if note.metadata is not None:
        arguments["metadata"] = dict(note.metadata)
    return arguments


def _disclose(value: Any) -> Any:
    """Copy blocks with their secrets revealed; here they leave us for Slack."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {name: _disclose(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_disclose(each) for each in value]
    return value


def _message(message: Mapping[str, Any]) -> ThreadMessage:
    author = _text(message, "user") or _text(message, "bot_id") or "unknown"
    payload = _object(_object(message, "metadata"), "event_payload")
    return ThreadMessage(_text(message, "ts"), author, _text(message, "text"), payload)


def _with_cursor(arguments: dict[str, Any], cursor: str) -> dict[str, Any]:
    return arguments | {"cursor": cursor} if cursor else arguments


def _cursor(answer: Mapping[str, Any]) -> str:
    return _text(_object(answer, "response_metadata"), "next_cursor")


def _object(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def _objects(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = holder.get(name)
    listed = value if isinstance(value, list) else []
    return [each for each in listed if isinstance(each, dict)]


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""
