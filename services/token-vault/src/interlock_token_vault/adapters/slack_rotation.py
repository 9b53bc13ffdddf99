"""Slack's token rotation over HTTP.

Answers are read as far as they go: a pair that came back with anything odd
about it is still a pair, and may be the only living one.
"""

from collections.abc import Awaitable, Mapping
from typing import Any

import aiohttp

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.slack_oauth import NoAnswer, SlackError, SlackOAuth
from interlock_token_vault.domain.install import BotIdentity, SlackAnswerUnusable
from interlock_token_vault.domain.rotation import RefreshAnswer
from interlock_token_vault.install_ports import SlackUnavailable
from interlock_token_vault.rotation_ports import (
    RefreshRefused,
    SlackAppRefused,
    SlackRateLimited,
    SlackSilent,
)

# An answer after 45 s is still worth having; the second request does not wait for it.
_BUDGET = aiohttp.ClientTimeout(total=45, connect=3)
# The refresh token is used up or ended, or the bot itself is gone.
_REFUSED = frozenset(
    {"invalid_refresh_token", "token_expired", "token_revoked", "account_inactive"}
)
# Of oauth.v2.exchange: of this token there is no pair to be had, or not any more.
_NOT_EXCHANGED = frozenset(
    {"token_already_exchanged", "invalid_token", "authorization_not_found", "token_revoked"}
)
_TRANSIENT = frozenset(
    {
        "internal_error",
        "fatal_error",
        "service_unavailable",
        "request_timeout",
        "team_added_to_org",
    }
)
_THROTTLED = frozenset({"ratelimited", "rate_limited"})
# aiohttp's words for an answer that did not come in time, once there was a connection.
_TIMEOUTS = frozenset({"TimeoutError", "ServerTimeoutError", "SocketTimeoutError"})


class SlackRotation:
    """The SlackTokens port over HTTP.

    Args:
        slack: With the app's own credentials.
    """

    def __init__(self, slack: SlackOAuth) -> None:
        self._slack = slack

    async def refresh(self, refresh_token: Secret[str]) -> RefreshAnswer:
        """Exchange a refresh token; see SlackTokens."""
        fields = {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal()}
        call = self._slack.call_as_app("oauth.v2.access", fields, timeout=_BUDGET)
        return await _answered(call, _REFUSED)

    async def exchange_lasting(self, token: Secret[str]) -> RefreshAnswer:
        """Exchange a token that never ends; see SlackTokens."""
        fields = {"token": token.reveal()}
        call = self._slack.call_as_app("oauth.v2.exchange", fields, timeout=_BUDGET)
        return await _answered(call, _NOT_EXCHANGED)

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is; see SlackTokens."""
        return await self._slack.test(token)

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; see SlackTokens."""
        await self._slack.revoke(token)


async def _answered(call: Awaitable[Mapping[str, Any]], refused: frozenset[str]) -> RefreshAnswer:
    """Turn every end of a call into the port's words."""
    try:
        return _pair_of(await call)
    except NoAnswer:
        raise SlackAnswerUnusable from None
    except SlackUnavailable as error:
        if error.retry_after is not None:
            raise SlackRateLimited(retry_after=error.retry_after) from None
        if error.metadata.get("cause") in _TIMEOUTS:
            raise SlackSilent from None
        raise
    except SlackError as error:
        metadata = {"slack_error": error.code}
        if error.code in refused:
            raise RefreshRefused(metadata=metadata) from None
        if error.code in _THROTTLED:
            raise SlackRateLimited(metadata=metadata) from None
        if error.code in _TRANSIENT:
            raise SlackUnavailable(metadata=metadata) from None
        raise SlackAppRefused(metadata=metadata) from None


def _pair_of(answer: Mapping[str, Any]) -> RefreshAnswer:
    token, refresh_token = answer.get("access_token"), answer.get("refresh_token")
    if not (isinstance(token, str) and isinstance(refresh_token, str) and token and refresh_token):
        raise SlackAnswerUnusable
    if not (token.isascii() and refresh_token.isascii()):
        # JSON can spell texts that no bytes stand for.
        raise SlackAnswerUnusable
    expires_in = answer.get("expires_in")
    return RefreshAnswer(
        token=Secret(token),
        refresh_token=Secret(refresh_token),
        # A bool is no number of seconds, though Python takes it for one.
        expires_in_s=expires_in if type(expires_in) is int else None,
        token_type=_text(answer.get("token_type")),
        app_id=_text(answer.get("app_id")),
        team_id=_id_of(answer.get("team")),
        enterprise_id=_id_of(answer.get("enterprise")),
        user_id=_text(answer.get("user_id")),
    )


def _id_of(part: Any) -> str:
    return _text(part.get("id")) if isinstance(part, dict) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
