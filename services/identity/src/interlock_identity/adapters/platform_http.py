"""The agents platform's Manage API, asked two questions, each as the person it is about.

Whether an administrator sees an agent: with their own browser session, which
the platform takes as the auth server does. Whether somebody is still a member
of a tenant: with a user token of theirs that goes nowhere else; the platform
lets no stranger to a tenant list its projects.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from interlock_chassis.clock import Clock
from interlock_identity.adapters.auth_http import SessionCookie
from interlock_identity.domain.agents import Agent
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, Role, SessionProof, TenantId
from interlock_identity.membership import MembershipUnavailable
from interlock_identity.workspaces import PlatformUnavailable
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_user_token

# Three questions of the auth server and one of these must fit a caller's 10 s.
TIMEOUT = timedelta(seconds=2)
MAX_JSON_BYTES = 1024 * 1024
# The platform's own maximum.
PAGE_SIZE = 100
# 1,000 agents in one project; a platform that counts wrong must not keep us asking.
MAX_PAGES = 10
# An id with other characters could not be run, and could lead a URL astray.
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)


class PathStyle(StrEnum):
    """How the platform's Manage API names projects."""

    PLAIN = "plain"
    TENANT = "tenant"


class ManageApi:
    """GET requests to the Manage API over a shared aiohttp session without a cookie jar.

    Redirects are not followed: they are no part of the contract, and would
    carry a cookie or a token elsewhere.
    """

    def __init__(self, session: aiohttp.ClientSession, manage_url: URL, style: PathStyle) -> None:
        self._session = session
        self._manage_url = manage_url
        self._style = style

    def projects_url(self, tenant_id: TenantId) -> URL:
        """Return where a tenant's projects are.

        Raises:
            PlatformUnavailable: The tenant's id cannot be part of a path.
        """
        if not _ID.fullmatch(tenant_id):
            raise PlatformUnavailable("the tenant's id cannot be part of a path")
        if self._style is PathStyle.TENANT:
            return self._manage_url / "manage/tenants" / tenant_id / "projects"
        return self._manage_url / "manage/api/projects"

    async def get(
        self, url: URL, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        """Return the status, and the JSON of a 200.

        Raises:
            PlatformUnavailable: No answer, or one that is too long or no JSON.
        """
        try:
            async with self._session.get(
                url.with_query(query),
                headers={"Accept": "application/json", **headers},
                timeout=aiohttp.ClientTimeout(total=TIMEOUT.total_seconds()),
                allow_redirects=False,
            ) as response:
                if response.status != HTTPStatus.OK:
                    return response.status, None
                return response.status, await _json(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PlatformUnavailable from error


class PlatformAgents:
    """The `AgentDirectory` port, asked with the administrator's own session cookie."""

    def __init__(self, api: ManageApi, cookie: SessionCookie) -> None:
        self._api = api
        self._cookie = cookie

    async def has_agent(self, proof: SessionProof, tenant_id: TenantId, agent: Agent) -> bool:
        """Say whether the person sees the agent; see the port."""
        if not _ID.fullmatch(agent.project_id):
            return False
        url = self._api.projects_url(tenant_id) / agent.project_id / "agents"
        headers = self._cookie.headers(proof)
        seen = 0
        for page in range(1, MAX_PAGES + 1):
            query = {"page": str(page), "limit": str(PAGE_SIZE)}
            status, answer = await self._api.get(url, query, headers)
            if status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
                return False
            if status != HTTPStatus.OK:
                raise PlatformUnavailable
            ids, total = _read_page(answer)
            if agent.agent_id in ids:
                return True
            seen += len(ids)
            if not ids or seen >= total:
                return False
        return False


class PlatformMembership:
    """The `MembershipSource` port, asked with a user token of the person's own.

    Knows members, but neither their roles nor whether an organization exists.
    """

    def __init__(
        self, api: ManageApi, user_token_keys: Keyset, clock: Clock, new_id: Callable[[], str]
    ) -> None:
        self._api = api
        self._keys = user_token_keys
        self._clock = clock
        self._new_id = new_id

    async def role_of(self, account: Account, acting_as: SlackUser) -> Role:
        """Say whether a person is a member; see the port."""
        token = sign_user_token(
            self._keys,
            now=self._clock.now(),
            jti=self._new_id(),
            user_id=account.user_id,
            tenant_id=account.tenant_id,
            slack_team_id=acting_as.team_id,
            slack_user_id=acting_as.user_id,
            slack_enterprise_id=acting_as.enterprise_id,
        )
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        try:
            url = self._api.projects_url(account.tenant_id)
            status, _ = await self._api.get(url, {"page": "1", "limit": "1"}, headers)
        except PlatformUnavailable as error:
            raise MembershipUnavailable from error
        if status == HTTPStatus.OK:
            return Role.MEMBER
        if status == HTTPStatus.FORBIDDEN:
            return Role.NONE
        # A 401 is about our token, and so about everybody: not a no.
        raise MembershipUnavailable

    async def has_organization(self, tenant_id: TenantId) -> bool:  # noqa: ARG002 - Cannot tell.
        """Say True: nobody can be asked as; see the port."""
        return True


class NoPlatform:
    """The `AgentDirectory` port where no platform is configured: nothing is known of any agent."""

    async def has_agent(
        self,
        proof: SessionProof,  # noqa: ARG002 - Nobody is asked.
        tenant_id: TenantId,  # noqa: ARG002 - As above.
        agent: Agent,  # noqa: ARG002 - As above.
    ) -> bool:
        """Refuse; see the port."""
        raise PlatformUnavailable("no agents platform is configured to ask")


async def _json(response: aiohttp.ClientResponse) -> Any:
    raw = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        raw += chunk
        if len(raw) > MAX_JSON_BYTES:
            raise PlatformUnavailable("the agents platform's answer is too long")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise PlatformUnavailable("the agents platform does not answer as agreed") from None


def _read_page(answer: Any) -> tuple[set[str], int]:
    """Return the agents' ids on a page, and how many agents there are on all pages."""
    data = answer.get("data") if isinstance(answer, dict) else None
    pagination = answer.get("pagination") if isinstance(answer, dict) else None
    total = pagination.get("total") if isinstance(pagination, dict) else None
    if not isinstance(data, list) or type(total) is not int:
        raise PlatformUnavailable("the agents platform does not answer as agreed")
    ids = {row.get("id") for row in data if isinstance(row, dict)}
    return {each for each in ids if isinstance(each, str)}, total
