"""Slack, as Nango sees it: where people authorize, and where tokens come from."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp

from interlock_sandbox.nango.environment import JSON, Credentials, Integration
from interlock_sandbox.nango.records import Records

TIMEOUT_S = 20
TOKEN_PATH = "/api/oauth.v2.access"  # noqa: S105 - a path


class ProviderRefused(Exception):
    """Slack gave no token; the text is its error code, or how it could not be reached."""


class SlackProvider:
    """Talk to one Slack.

    Args:
        url: Without a slash at the end.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, records: Records, now: Callable[[], float]
    ) -> None:
        self._http = http
        self._url = url
        self._records = records
        self._now = now

    def authorize_url(self, integration: Integration, redirect_uri: str, state: str) -> str:
        """Return where a person allows the integration's client what it asks for."""
        query = {
            "response_type": "code",
            "client_id": integration.client_id,
            "redirect_uri": redirect_uri,
            "scope": integration.scopes,
            "state": state,
        }
        return f"{self._url}/oauth/v2/authorize?{urlencode(query)}"

    async def exchange(self, integration: Integration, code: str, redirect_uri: str) -> Credentials:
        """Exchange a code for a token.

        Raises:
            ProviderRefused: Slack refused, or could not be asked.
        """
        asked = {"code": code, "redirect_uri": redirect_uri, "grant_type": "authorization_code"}
        return await self._ask("slack.exchange", integration, asked)

    async def refresh(self, integration: Integration, refresh_token: str) -> Credentials:
        """Exchange a refresh token for the next pair.

        Raises:
            ProviderRefused: Slack refused, or could not be asked.
        """
        asked = {"refresh_token": refresh_token, "grant_type": "refresh_token"}
        return await self._ask("slack.refresh", integration, asked)

    async def _ask(
        self, operation: str, integration: Integration, asked: dict[str, str]
    ) -> Credentials:
        record = self._records.begin(operation, "POST", TOKEN_PATH)
        client = {"client_id": integration.client_id, "client_secret": integration.client_secret}
        try:
            async with self._http.post(
                f"{self._url}{TOKEN_PATH}",
                data=asked | client,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                record.status = response.status
                raw: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            record.error = "provider_unreachable"
            raise ProviderRefused(record.error) from None
        if not isinstance(raw, dict) or not raw.get("ok") or "access_token" not in raw:
            record.error = str(raw.get("error")) if isinstance(raw, dict) else "no_token"
            raise ProviderRefused(record.error)
        record.acted = True
        return self.credentials(raw)

    def credentials(self, raw: JSON) -> Credentials:
        """Return what a connection keeps of Slack's answer."""
        life_s = raw.get("expires_in")
        return Credentials(
            access_token=raw["access_token"],
            raw=raw,
            refresh_token=raw.get("refresh_token"),
            expires_at=None if life_s is None else self._now() + life_s,
        )


def connection_config(raw: JSON) -> JSON:
    """Return what Nango copies out of Slack's answer for everybody to see."""
    team = raw.get("team") or {}
    found = {"team.id": team.get("id"), "bot_user_id": raw.get("bot_user_id")}
    return {name: value for name, value in found.items() if value}
