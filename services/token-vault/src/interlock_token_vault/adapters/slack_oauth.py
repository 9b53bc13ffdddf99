"""Slack's OAuth methods over HTTP, with the app's own credentials.

Answers are read strictly: what is not a JSON object of the expected types is
no answer. Nothing that Slack says goes to a log or an error but its error
code, and that only when it looks like one.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_token_vault.domain.install import (
    BotIdentity,
    ExchangeAnswer,
    OAuthCodeRefused,
    SlackAnswerUnusable,
    UserGrant,
)
from interlock_token_vault.install_ports import SlackUnavailable, TokenDead, TokenRotates
from interlock_token_vault.uninstalling import UninstallRefused

# An install is capped at 30 s and makes up to four calls besides identity's.
_CALL_BUDGET = aiohttp.ClientTimeout(total=7, connect=3)
_MAX_ANSWER_BYTES = 256 * 1024
_DEFAULT_WAIT = timedelta(seconds=30)
_LONGEST_WAIT = timedelta(seconds=300)

# What a person may cure by starting again, or with their administrator.
_CODE_REFUSED = frozenset(
    {
        "invalid_code",
        "code_already_used",
        "code_expired",
        "access_denied",
        "user_email_unverified",
        "cannot_install_an_org_installed_app",
        "no_scopes",
    }
)
# Slack's own troubles; the first two say that part may have succeeded.
_TRANSIENT = frozenset(
    {
        "internal_error",
        "fatal_error",
        "ratelimited",
        "rate_limited",
        "service_unavailable",
        "request_timeout",
        "team_added_to_org",
    }
)
_DEAD = frozenset(
    {
        "invalid_auth",
        "not_authed",
        "token_revoked",
        "token_expired",
        "account_inactive",
        "org_login_required",
    }
)
# Tokens that live 12 hours begin so.
_ROTATING = "xoxe."
_ERROR_CODE = re.compile(r"[a-z_]{1,64}")


class SlackError(Exception):
    """Slack answered `ok: false`.

    Attributes:
        code: What looks like an error code of Slack's, or `unknown_error`.
    """

    def __init__(self, code: str) -> None:
        self.code = code if _ERROR_CODE.fullmatch(code) else "unknown_error"
        super().__init__(self.code)


class NoAnswer(Exception):
    """Slack answered something that is no answer of its API."""


class SlackOAuth:
    """The Slack port over HTTP.

    Args:
        session: Without cookies and without credentials of its own.
        api_url: Where the methods are, `https://slack.com/api/`.
        client_id: Of Interlock's own app.
        client_secret: Of Interlock's own app; sent as HTTP Basic only.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        api_url: URL,
        *,
        client_id: str,
        client_secret: Secret[str],
    ) -> None:
        self._session = session
        self._api_url = api_url
        self._client_id = client_id
        self._client_secret = client_secret

    async def exchange(self, code: Secret[str], redirect_uri: str) -> ExchangeAnswer:
        """Exchange a code; see Slack."""
        try:
            answer = await self.call_as_app(
                "oauth.v2.access", {"code": code.reveal(), "redirect_uri": redirect_uri}
            )
        except NoAnswer:
            raise SlackAnswerUnusable from None
        except SlackError as error:
            metadata = {"slack_error": error.code}
            if error.code in _CODE_REFUSED:
                raise OAuthCodeRefused(metadata=metadata) from None
            if error.code in _TRANSIENT:
                raise SlackUnavailable(metadata=metadata) from None
            # The app's own settings are wrong: its id, secret or redirect URL.
            raise SlackAnswerUnusable(metadata=metadata) from None
        try:
            return read_exchange_answer(answer)
        except NoAnswer:
            # The token in it lives; whoever asked must know it to end it.
            return _only_token_of(answer)

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is; see Slack."""
        try:
            answer, scopes = await self._ask_with(token, "auth.test", {})
            return BotIdentity(
                team_id=_text(answer, "team_id"),
                enterprise_id=_text(answer, "enterprise_id"),
                user_id=_text(answer, "user_id"),
                is_enterprise_install=_flag(answer, "is_enterprise_install"),
                scopes=_scopes(scopes),
            )
        except NoAnswer:
            raise SlackUnavailable from None

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; see Slack."""
        try:
            await self._ask_with(token, "auth.revoke", {})
        except NoAnswer:
            raise SlackUnavailable from None

    async def tell(self, token: Secret[str], user_id: str, text: str) -> None:
        """Write to a user directly; see Messenger."""
        fields = {"channel": user_id, "text": text, "unfurl_links": "false"}
        try:
            await self._ask_with(token, "chat.postMessage", fields)
        except NoAnswer:
            raise SlackUnavailable from None

    async def describe(self, token: Secret[str]) -> ExchangeAnswer:
        """Ask what a bot's token is; see Slack."""
        if token.reveal().startswith(_ROTATING):
            raise TokenRotates
        try:
            whose, scopes = await self._ask_with(token, "auth.test", {})
            bot_id = _text(whose, "bot_id")
            if not bot_id:
                raise SlackAnswerUnusable
            shown, _ = await self._ask_with(token, "bots.info", {"bot": bot_id})
            is_org = _flag(whose, "is_enterprise_install")
            return ExchangeAnswer(
                bot_token=token,
                token_type="bot",  # noqa: S106 - A type, no token.
                app_id=_text(_part(shown, "bot"), "app_id"),
                team_id="" if is_org else _text(whose, "team_id"),
                team_name=_text(whose, "team"),
                enterprise_id=_text(whose, "enterprise_id"),
                enterprise_name=_text(whose, "team"),
                is_enterprise_install=is_org,
                bot_user_id=_text(whose, "user_id"),
                scopes=_scopes(scopes),
            )
        except NoAnswer:
            raise SlackUnavailable from None

    async def uninstall(self, token: Secret[str]) -> None:
        """Remove the app from where the token belongs; see SlackExit."""
        fields = {
            "client_id": self._client_id,
            "client_secret": self._client_secret.reveal(),
        }
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        try:
            await self._call("apps.uninstall", headers, fields)
        except NoAnswer:
            raise SlackUnavailable from None
        except SlackError as error:
            if error.code in _DEAD:
                raise TokenDead from None
            metadata = {"slack_error": error.code}
            if error.code in _TRANSIENT:
                raise SlackUnavailable(metadata=metadata) from None
            raise UninstallRefused(metadata=metadata) from None

    async def call_as_app(
        self,
        method: str,
        fields: Mapping[str, str],
        *,
        timeout: aiohttp.ClientTimeout = _CALL_BUDGET,
    ) -> Mapping[str, Any]:
        """Call a method with the app's own credentials, and return its answer.

        Raises:
            SlackError: Slack answered `ok: false`.
            NoAnswer: It answered something that is no answer of its API.
            SlackUnavailable: It did not answer; `retry_after` is there when Slack
                asks for a pause, and else the metadata `cause`.
        """
        auth = aiohttp.encode_basic_auth(self._client_id, self._client_secret.reveal())
        return await self._call(method, {"Authorization": auth}, fields, timeout)

    async def _ask_with(
        self, token: Secret[str], method: str, fields: Mapping[str, str]
    ) -> tuple[Mapping[str, Any], str]:
        """Call a method with a token; returns the answer, and the token's scopes."""
        try:
            return await self._ask(method, {"Authorization": f"Bearer {token.reveal()}"}, fields)
        except SlackError as error:
            if error.code in _DEAD:
                raise TokenDead from None
            raise SlackUnavailable(metadata={"slack_error": error.code}) from None

    async def _call(
        self,
        method: str,
        headers: Mapping[str, str],
        fields: Mapping[str, str],
        timeout: aiohttp.ClientTimeout = _CALL_BUDGET,
    ) -> Mapping[str, Any]:
        """Call a method and return its answer, which says `ok: true`."""
        answer, _ = await self._ask(method, headers, fields, timeout)
        return answer

    async def _ask(
        self,
        method: str,
        headers: Mapping[str, str],
        fields: Mapping[str, str],
        timeout: aiohttp.ClientTimeout = _CALL_BUDGET,
    ) -> tuple[Mapping[str, Any], str]:
        """As `_call`, with the scopes that Slack names in a header."""
        try:
            async with self._session.post(
                self._api_url / method,
                headers=headers,
                data=fields,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                if response.status != HTTPStatus.OK:
                    raise SlackUnavailable(retry_after=_wait_of(response))
                body = await _read_bounded(response)
                scopes = response.headers.get("X-OAuth-Scopes", "")
        except (aiohttp.ClientError, TimeoutError) as error:
            # The error may hold the request's headers; its kind says enough.
            raise SlackUnavailable(metadata={"cause": type(error).__name__}) from None
        answer = _parse(body)
        if answer.get("ok") is not True:
            code = answer.get("error")
            if answer.get("ok") is not False or not isinstance(code, str):
                raise NoAnswer
            raise SlackError(code)
        return answer, scopes


@asynccontextmanager
async def open_slack(
    api_url: URL, *, client_id: str, client_secret: Secret[str]
) -> AsyncIterator[SlackOAuth]:
    """Open a connection pool to Slack, closed on leaving."""
    async with aiohttp.ClientSession(
        timeout=_CALL_BUDGET, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield SlackOAuth(session, api_url, client_id=client_id, client_secret=client_secret)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    try:
        body = await response.content.readexactly(_MAX_ANSWER_BYTES)
    except asyncio.IncompleteReadError as shorter:
        return shorter.partial
    raise NoAnswer(f"an answer of {len(body)} bytes or more")


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        raise NoAnswer from None
    if not isinstance(answer, dict):
        raise NoAnswer
    return answer


def _wait_of(response: aiohttp.ClientResponse) -> timedelta | None:
    """Read how long Slack wants us to wait, within bounds of our own."""
    if response.status != HTTPStatus.TOO_MANY_REQUESTS:
        return None
    text = response.headers.get("Retry-After", "")
    # Longer than any wait of Slack's, and short enough not to overflow.
    if not text.isascii() or not text.isdigit() or len(text) > len("9999999999"):
        return _DEFAULT_WAIT
    return min(timedelta(seconds=int(text)), _LONGEST_WAIT)


def read_exchange_answer(answer: Mapping[str, Any]) -> ExchangeAnswer:
    """Read what `oauth.v2.access` answers with `ok: true`.

    Raises:
        NoAnswer: A part of it is of another type than Slack gives.
    """
    team, enterprise = _part(answer, "team"), _part(answer, "enterprise")
    return ExchangeAnswer(
        bot_token=_secret(answer, "access_token"),
        token_type=_text(answer, "token_type"),
        app_id=_text(answer, "app_id"),
        team_id=_text(team, "id"),
        team_name=_text(team, "name"),
        enterprise_id=_text(enterprise, "id"),
        enterprise_name=_text(enterprise, "name"),
        is_enterprise_install=_flag(answer, "is_enterprise_install"),
        bot_user_id=_text(answer, "bot_user_id"),
        scopes=_scopes(_text(answer, "scope")),
        refresh_token=_secret(answer, "refresh_token"),
        installed_by=_text(_part(answer, "authed_user"), "id"),
        expires_in_s=_seconds(answer),
        user=_read_person(_part(answer, "authed_user")),
        webhook_url=_secret(_part(answer, "incoming_webhook"), "url"),
    )


def _read_person(part: Mapping[str, Any]) -> UserGrant | None:
    """Read `authed_user`, which has a token only where user scopes were asked for."""
    token = _secret(part, "access_token")
    if token is None:
        return None
    return UserGrant(
        user_id=_text(part, "id"),
        token=token,
        token_type=_text(part, "token_type"),
        refresh_token=_secret(part, "refresh_token"),
        expires_in_s=_seconds(part),
    )


def _only_token_of(answer: Mapping[str, Any]) -> ExchangeAnswer:
    """Keep of a garbled answer what lives on if nobody ends it."""
    person = answer.get("authed_user")
    own = _sendable(person.get("access_token")) if isinstance(person, dict) else None
    return ExchangeAnswer(
        bot_token=_sendable(answer.get("access_token")),
        user=UserGrant("", own, "") if own else None,
        token_type="",
        app_id="",
        team_id="",
        team_name="",
        enterprise_id="",
        enterprise_name="",
        is_enterprise_install=False,
        bot_user_id="",
        scopes=(),
    )


def _sendable(token: object) -> Secret[str] | None:
    return Secret(token) if isinstance(token, str) and token and token.isascii() else None


def _part(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = answer.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise NoAnswer
    return part


def _text(answer: Mapping[str, Any], name: str) -> str:
    text = answer.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise NoAnswer
    return text


def _scopes(text: str) -> tuple[str, ...]:
    return tuple(scope.strip() for scope in text.split(",") if scope.strip())


def _seconds(answer: Mapping[str, Any]) -> int | None:
    expires_in: object = answer.get("expires_in")
    if expires_in is not None and type(expires_in) is not int:
        raise NoAnswer
    return expires_in


def _flag(answer: Mapping[str, Any], name: str) -> bool:
    flag = answer.get(name)
    if flag is None:
        return False
    if not isinstance(flag, bool):
        raise NoAnswer
    return flag


def _secret(answer: Mapping[str, Any], name: str) -> Secret[str] | None:
    text = _text(answer, name)
    if not text.isascii():
        # JSON can spell texts that no bytes stand for.
        raise NoAnswer
    return Secret(text) if text else None
