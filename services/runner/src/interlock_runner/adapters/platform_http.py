"""The agents platform's Manage API and Run API over HTTP."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_runner.runs import (
    Agent,
    AgentNotAllowed,
    AgentNotFound,
    MessageAlreadyRun,
    PlatformRateLimited,
    PlatformRefused,
    PlatformUnavailable,
    Project,
    ProjectNotFound,
    Question,
    StreamBroken,
    StreamSilent,
    TenantMissing,
    UserTokenRefused,
)

# The platform's own maximum.
PAGE_SIZE = 100
# 2,000 projects; a platform that counts wrong must not keep us asking.
MAX_PAGES = 20
MAX_JSON_BYTES = 4 * 1024 * 1024
BROWSE_TIMEOUT = timedelta(seconds=8)
CONNECT_TIMEOUT = timedelta(seconds=5)
# Projects whose agents are asked for at the same time.
AGENT_LOOKUPS = 4
DEFAULT_RETRY_AFTER = timedelta(seconds=30)
MAX_RETRY_AFTER = timedelta(seconds=300)

# An id with other characters could not be run, and could lead a URL astray.
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)

_Row = TypeVar("_Row")


class PathStyle(StrEnum):
    """How the platform's Manage API names projects."""

    PLAIN = "plain"
    TENANT = "tenant"


@asynccontextmanager
async def open_platform(
    manage_url: URL, run_url: URL, style: PathStyle
) -> AsyncIterator["HttpPlatform"]:
    """Open the connections to the platform, closed on leaving.

    Args:
        manage_url: Base URL of the Manage API.
        run_url: Base URL of the Run API.
        style: How the Manage API names projects.
    """
    session = aiohttp.ClientSession(
        # How many runs there are at a time is for our own server to limit.
        connector=aiohttp.TCPConnector(limit=0),
        # Cookies of one user must not travel with the next one's token.
        cookie_jar=aiohttp.DummyCookieJar(),
        # We ask for no compression; a bomb sent nevertheless stays small.
        auto_decompress=False,
        trust_env=False,
    )
    async with session:
        yield HttpPlatform(session, manage_url, run_url, style)


class HttpPlatform:
    """The `Platform` port over a shared aiohttp session.

    Redirects are not followed and compressed answers are not taken: neither is
    part of the platform's contract, and both are ways to be led astray.
    """

    def __init__(
        self, session: aiohttp.ClientSession, manage_url: URL, run_url: URL, style: PathStyle
    ) -> None:
        self._session = session
        self._manage_url = manage_url
        self._run_url = run_url
        self._style = style

    async def list_projects(self, token: Secret[str], tenant_id: str) -> list[Project]:
        """List every project of the user; see the port."""
        try:
            rows = await self._pages(token, self._projects_url(tenant_id), {"include": "agents"})
        except (AgentNotFound, AgentNotAllowed, PlatformRefused) as error:
            raise PlatformUnavailable("the agents platform has no list of projects") from error
        limit = asyncio.Semaphore(AGENT_LOOKUPS)

        async def project_of(row: dict[str, Any]) -> Project:
            async with limit:
                agents = await self._agents_of(row, token, tenant_id)
            return Project(_id(row), _text(row, "name") or _id(row), tuple(agents))

        try:
            async with asyncio.TaskGroup() as group:
                lookups = [group.create_task(project_of(row)) for row in _once(rows, _id)]
        except ExceptionGroup as failures:
            # One failed lookup fails the list and has ended the others.
            raise failures.exceptions[0] from None
        return [lookup.result() for lookup in lookups]

    async def list_agents(self, token: Secret[str], tenant_id: str, project_id: str) -> list[Agent]:
        """List the agents of one project; see the port."""
        url = self._projects_url(tenant_id) / project_id / "agents"
        try:
            rows = await self._pages(token, url, {})
        except (AgentNotFound, AgentNotAllowed) as error:
            raise ProjectNotFound("the agents platform knows no such project") from error
        return _once([_agent(row) for row in rows], lambda agent: agent.agent_id)

    async def _agents_of(
        self, row: dict[str, Any], token: Secret[str], tenant_id: str
    ) -> list[Agent]:
        """Take the agents out of a project's row, or ask for them."""
        nested = row.get("agents")
        if isinstance(nested, list):
            agents = [_agent(each) for each in nested if isinstance(each, dict)]
            return _once(agents, lambda agent: agent.agent_id)
        try:
            return await self.list_agents(token, tenant_id, _id(row))
        except ProjectNotFound:
            # It went, or was closed to the user, since the list was made.
            return []

    async def chat(
        self, token: Secret[str], question: Question, silence: timedelta
    ) -> AsyncGenerator[bytes, None]:
        """Start a run and yield its raw answer; see the port."""
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=CONNECT_TIMEOUT.total_seconds(),
            sock_read=silence.total_seconds(),
        )
        request = self._session.post(
            self._run_url / "run/api/chat",
            json=_chat_body(question),
            headers=_headers(token, question),
            timeout=timeout,
            allow_redirects=False,
        )
        try:
            response = await request
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PlatformUnavailable("the agents platform does not answer") from error
        # Leaving in the middle must close the connection: that is how the platform learns that
        # nobody listens, and it must not go back to the pool half read.
        try:
            if response.status != HTTPStatus.OK:
                raise _refusal(response)
            _require_event_stream(response)
            yield b""
            async with aclosing(_lines_in_time(response.content, silence)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except TimeoutError as error:
            raise StreamSilent from error
        except (aiohttp.ClientError, OSError) as error:
            raise StreamBroken from error
        finally:
            response.close()

    def _projects_url(self, tenant_id: str) -> URL:
        if self._style is PathStyle.TENANT:
            if not tenant_id:
                raise TenantMissing
            return self._manage_url / "manage/tenants" / tenant_id / "projects"
        return self._manage_url / "manage/api/projects"

    async def _pages(
        self, token: Secret[str], url: URL, query: dict[str, str]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for page in range(1, MAX_PAGES + 1):
            paged = url.update_query({**query, "page": str(page), "limit": str(PAGE_SIZE)})
            answer = await self._get(token, paged)
            data = answer.get("data")
            if not isinstance(data, list):
                raise PlatformUnavailable("the agents platform's list has no data")
            rows += [row for row in data if isinstance(row, dict)]
            pagination = answer.get("pagination")
            total = pagination.get("total") if isinstance(pagination, dict) else None
            if not data or not isinstance(total, int) or len(rows) >= total:
                break
        return rows

    async def _get(self, token: Secret[str], url: URL) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(
            total=BROWSE_TIMEOUT.total_seconds(), sock_connect=CONNECT_TIMEOUT.total_seconds()
        )
        try:
            async with self._session.get(
                url, headers=_headers(token), timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != HTTPStatus.OK:
                    raise _refusal(response)
                answer = await _json(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PlatformUnavailable("the agents platform does not answer") from error
        if not isinstance(answer, dict):
            raise PlatformUnavailable("the agents platform's answer is not an object")
        return answer


def _headers(token: Secret[str], question: Question | None = None) -> dict[str, str]:
    headers = {
        "Authorization": f"Bearer {token.reveal()}",
        "Accept-Encoding": "identity",
        "Accept": "text/event-stream" if question else "application/json",
    }
    if question:
        headers |= {
            "x-inkeep-project-id": question.project_id,
            "x-inkeep-agent-id": question.agent_id,
            "x-inkeep-invocation-type": "slack",
            "x-inkeep-invocation-entry-point": question.entry_point,
        }
    return headers


def _chat_body(question: Question) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question.prompt}],
        "conversationId": question.conversation_id,
        "messageId": question.message_id,
        "stream": True,
    }


def _require_event_stream(response: aiohttp.ClientResponse) -> None:
    if response.content_type != "text/event-stream":
        raise PlatformUnavailable("the agents platform did not answer with an event stream")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise PlatformUnavailable("the agents platform compressed its answer unasked")


async def _lines_in_time(
    content: aiohttp.StreamReader, silence: timedelta
) -> AsyncGenerator[bytes, None]:
    """Yield the body; TimeoutError when no line ends for too long.

    Bytes without a line end are no sign of life. Only waiting counts, not the
    time the reader of the chunks takes.
    """
    clock = asyncio.get_running_loop().time
    patience = silence.total_seconds()
    while True:
        began = clock()
        async with asyncio.timeout(patience):
            chunk = await content.readany()
        if not chunk:
            return
        has_line_end = b"\n" in chunk or b"\r" in chunk
        patience = silence.total_seconds() if has_line_end else patience - (clock() - began)
        yield chunk


async def _json(response: aiohttp.ClientResponse) -> Any:
    body = await response.content.read(MAX_JSON_BYTES + 1)
    while len(body) <= MAX_JSON_BYTES and (more := await response.content.read(MAX_JSON_BYTES)):
        body += more
    if len(body) > MAX_JSON_BYTES:
        raise PlatformUnavailable("the agents platform's answer is too large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # The original error carries the answer.
        raise PlatformUnavailable("the agents platform's answer is not JSON") from None


_REFUSALS: Mapping[int, type[ServiceError]] = MappingProxyType(
    {
        HTTPStatus.UNAUTHORIZED: UserTokenRefused,
        HTTPStatus.FORBIDDEN: AgentNotAllowed,
        HTTPStatus.NOT_FOUND: AgentNotFound,
        HTTPStatus.CONFLICT: MessageAlreadyRun,
    }
)


def _refusal(response: aiohttp.ClientResponse) -> ServiceError:
    """Tell what a non-200 answer means, by its status alone: its code field is not reliable."""
    status = response.status
    if status in _REFUSALS:
        return _REFUSALS[status]()
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return PlatformRateLimited(retry_after=_retry_after(response.headers.get("Retry-After")))
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return PlatformRefused()
    return PlatformUnavailable(f"the agents platform answered HTTP {status}")


def _retry_after(value: str | None) -> timedelta:
    if value is None or not value.isascii() or not value.isdigit():
        return DEFAULT_RETRY_AFTER
    # More than nine digits is no number of seconds that anyone means.
    return min(timedelta(seconds=int(value[:9])), MAX_RETRY_AFTER)


def _agent(row: dict[str, Any]) -> Agent:
    """Read an agent as its own list or as its project's row names it."""
    agent_id = _id(row) or _id(row, "agentId")
    return Agent(agent_id, _text(row, "agentName") or _text(row, "name") or agent_id)


def _id(row: dict[str, Any], name: str = "id") -> str:
    value = _text(row, name)
    return value if _ID.fullmatch(value) else ""


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _once(rows: list[_Row], key: Callable[[_Row], str]) -> list[_Row]:
    """Keep the first row of each key, in order; drop rows whose key is empty.

    The platform repeats rows across pages.
    """
    firsts: dict[str, _Row] = {}
    for row in rows:
        firsts.setdefault(key(row), row)
    firsts.pop("", None)
    return list(firsts.values())
