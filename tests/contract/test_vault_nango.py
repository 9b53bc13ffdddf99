"""The vault's calls of Nango: to the stand-in, and to servers that misbehave."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_sandbox.nango.testing import API_KEY, INTEGRATION
from interlock_token_vault.adapters.memory import ManualClock
from interlock_token_vault.adapters.nango_http import BACKOFF, open_nango
from interlock_token_vault.credential_sources import (
    TENANT_TAG,
    ConnectionDead,
    ConnectionNotFound,
    ConnectionRef,
    NangoBackingOff,
    NangoRefused,
    NangoUnavailable,
)
from tests.support.nango_stage import TEAM, NangoStage, nango_stage

REF = ConnectionRef(INTEGRATION, "connection-1")
GOOD: dict[str, Any] = {
    "connection_id": "connection-1",
    "provider_config_key": INTEGRATION,
    "tags": {TENANT_TAG: "northwind"},
    "credentials": {"type": "OAUTH2", "access_token": "xoxb-1", "raw": {}},
}


@pytest.fixture
async def stage() -> AsyncIterator[NangoStage]:
    """Give a Nango with nothing in it."""
    async with nango_stage() as stage:
        yield stage


async def _imported(stage: NangoStage) -> ConnectionRef:
    """Import a connection that has a refresh token and ends within the margin."""
    body = {
        "provider_config_key": INTEGRATION,
        "connection_id": "imported",
        "credentials": {
            "type": "OAUTH2",
            "access_token": "xoxe.xoxb-example",
            "refresh_token": "xoxe-1-example",
            "expires_at": "2027-01-15T09:00:00.000Z",
        },
    }
    await stage.ask("POST", "/connections", json=body)
    return ConnectionRef(INTEGRATION, "imported")


async def test_a_connection_gives_slacks_own_answer_and_a_living_token(stage: NangoStage) -> None:
    """Tag, workspace and token are those of the person who connected."""
    fetched = await stage.adapter.fetch(await stage.connected())
    assert fetched.tags == {TENANT_TAG: "northwind"}
    assert fetched.answer is not None
    assert (fetched.answer.team_id, fetched.answer.token_type) == (TEAM, "bot")
    assert await stage.slack_takes(fetched.token)


async def test_a_session_allows_one_integration_and_reconnecting_keeps_the_id(
    stage: NangoStage,
) -> None:
    """A second session makes a second connection; a reconnect session renews the first."""
    ref = await stage.connected()
    session = await stage.adapter.open_session(
        INTEGRATION, {"tenantId": "northwind"}, ref.connection_id
    )
    assert await stage.connect(session.link) == ref
    assert len(await stage.connections()) == 1
    (asked, *_) = await stage.requests("create_session")
    assert asked["status"] == 201


async def test_a_session_is_for_one_integration_and_one_tenant(stage: NangoStage) -> None:
    """It connects nothing but the app, and what it connects has the tenant's tag at the top."""
    session = await stage.adapter.open_session(INTEGRATION, {"tenantId": "northwind"})
    headers = {"Authorization": f"Bearer {session.token.reveal()}"}
    async with stage.http.get(f"{stage.url}/connect/session", headers=headers) as response:
        shown = (await response.json())["data"]
    assert shown["allowed_integrations"] == [INTEGRATION]
    await stage.connect(session.link)
    (connection,) = await stage.connections()
    assert connection["tags"] == {TENANT_TAG: "northwind"}


async def test_reconnecting_what_is_gone_is_absent(stage: NangoStage) -> None:
    """A connection that somebody deleted at Nango cannot be renewed."""
    with pytest.raises(ConnectionNotFound):
        await stage.adapter.open_session(INTEGRATION, {"tenantId": "northwind"}, "gone")


async def test_a_label_and_a_deletion_reach_nango(stage: NangoStage) -> None:
    """Metadata is replaced; deleting twice is deleting once."""
    ref = await stage.connected()
    await stage.adapter.label(ref, {"kind": "work-app", "app": "slack"})
    assert (await stage.connections())[0]["metadata"] == {"kind": "work-app", "app": "slack"}
    await stage.adapter.delete(ref)
    await stage.adapter.delete(ref)
    assert await stage.connections() == []
    with pytest.raises(ConnectionNotFound):
        await stage.adapter.fetch(ref)


async def test_a_refused_refresh_is_the_end_and_then_a_pause(stage: NangoStage) -> None:
    """The first reader hears that Slack refused; others that Nango waits; force asks again."""
    ref = await _imported(stage)
    stage.clock.seconds += 3600
    await stage.do("refuse-refresh", connection_id=ref.connection_id)
    with pytest.raises(ConnectionDead):
        await stage.adapter.fetch(ref)
    with pytest.raises(NangoBackingOff) as pause:
        await stage.adapter.fetch(ref)
    assert pause.value.retry_after == BACKOFF
    with pytest.raises(ConnectionDead):
        await stage.adapter.fetch(ref, is_forced=True)


async def test_a_key_that_sees_no_credentials_gives_none(stage: NangoStage) -> None:
    """Nango answers such a key 200 and an empty object; that is no token."""
    ref = await stage.connected()
    scopes = ["environment:connections:read"]
    key = (await stage.do("api-keys", scopes=scopes))["key"]
    async with open_nango(URL(stage.url), Secret(key)) as adapter:
        with pytest.raises(NangoRefused) as refused:
            await adapter.fetch(ref)
    assert refused.value.metadata == {"nango_error": "no_credentials"}


async def test_a_wrong_key_is_refused_without_a_word_of_it() -> None:
    """The operator hears Nango's code and no key."""
    async with (
        nango_stage() as stage,
        open_nango(URL(stage.url), Secret(API_KEY[:-1] + "0")) as adapter,
    ):
        with pytest.raises(NangoRefused) as refused:
            await adapter.fetch(REF)
    assert refused.value.metadata == {"nango_error": "unknown_account"}
    assert API_KEY[:8] not in repr(refused.value)


async def test_the_rate_limit_is_a_pause() -> None:
    """A 429 says for how long."""
    async with nango_stage(rate_limit=2) as stage:
        for _ in range(2):
            with pytest.raises(ConnectionNotFound):
                await stage.adapter.fetch(REF)
        with pytest.raises(NangoUnavailable) as pause:
            await stage.adapter.fetch(REF)
    assert pause.value.retry_after is not None
    assert timedelta(0) < pause.value.retry_after <= timedelta(seconds=60)


@pytest.mark.parametrize("header", ["30", "", "soon"])
async def test_nobody_asks_while_the_limit_is_reached(header: str) -> None:
    """One 429 is enough, whoever asks next and for what; when its time is over, one asks again."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if len(asked) == 1:
            return web.json_response({}, status=429, headers={"Retry-After": header})
        return web.json_response({"error": {"code": "not_found"}}, status=404)

    clock = ManualClock()
    async with (
        _serving(answer) as url,
        open_nango(url, Secret(API_KEY), clock) as adapter,
    ):
        for _ in range(3):
            with pytest.raises(NangoUnavailable) as pause:
                await adapter.fetch(REF)
            assert pause.value.retry_after is not None
        with pytest.raises(NangoUnavailable):
            await adapter.delete(REF)
        assert len(asked) == 1
        clock.advance(timedelta(seconds=30 if header == "30" else 5))
        with pytest.raises(ConnectionNotFound):
            await adapter.fetch(REF)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "[]",
        {**GOOD, "connection_id": "another"},
        {**GOOD, "provider_config_key": "another"},
        {**GOOD, "tags": []},
        {**GOOD, "credentials": None},
        {**GOOD, "credentials": {"access_token": 7}},
        {**GOOD, "credentials": {"access_token": ""}},
        {**GOOD, "credentials": {"access_token": "xoxb-1", "expires_at": "soon"}},
        {**GOOD, "credentials": {"access_token": "xoxb-1", "raw": {"ok": True, "team": 7}}},
        "x" * 300_000,
    ],
)
async def test_a_garbled_answer_is_no_answer(body: object) -> None:
    """What is not a connection of the asked name, with a token, is not guessed at."""
    with pytest.raises(NangoUnavailable):
        await _fetch_from(body, 200)


@pytest.mark.parametrize("status", [302, 500, 503])
async def test_what_is_no_2xx_is_no_answer(status: int) -> None:
    """A redirect is not followed, and a broken server believed in nothing."""
    with pytest.raises(ServiceError) as refused:
        await _fetch_from(GOOD, status)
    assert refused.value.reason in {"NANGO_UNAVAILABLE", "NANGO_REFUSED"}


async def test_nobody_there_is_unavailable() -> None:
    """A closed port is an outage, not a crash."""
    async with open_nango(URL(f"http://127.0.0.1:{unused_port()}"), Secret(API_KEY)) as adapter:
        with pytest.raises(NangoUnavailable):
            await adapter.fetch(REF)


@pytest.mark.parametrize("connection_id", ["..", ".", "../integrations", "a/b?x=1#y", "%2e%2e"])
async def test_an_opaque_id_stays_one_segment_of_the_path(connection_id: str) -> None:
    """Whatever an id looks like, it asks about a connection and about nothing else."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.rel_url.raw_path)
        return web.json_response({"error": {"code": "not_found"}}, status=404)

    async with _serving(answer) as url, open_nango(url, Secret(API_KEY)) as adapter:
        with pytest.raises(ConnectionNotFound):
            await adapter.fetch(ConnectionRef(INTEGRATION, connection_id))
    assert all(path.startswith("/connections/") and path.count("/") == 2 for path in paths)


def _serving(handler: Any) -> Any:
    """Serve one handler for every path; gives the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return _Url(TestServer(app, host="127.0.0.1"))


class _Url:
    """A test server as its URL."""

    def __init__(self, server: TestServer) -> None:
        self._server = server

    async def __aenter__(self) -> URL:
        await self._server.start_server()
        return URL(str(self._server.make_url("/")))

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()


async def _fetch_from(body: object, status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        if isinstance(body, str):
            return web.Response(text=body, status=status)
        return web.json_response(body, status=status, headers={"Location": "/elsewhere"})

    async with _serving(answer) as url, open_nango(url, Secret(API_KEY)) as adapter:
        await adapter.fetch(REF)
