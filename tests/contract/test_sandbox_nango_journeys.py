"""The Nango stand-in with the Slack stand-in: people who connect, and trouble on demand."""

import asyncio
import dataclasses
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_sandbox.nango.refreshing import BACKOFF_S, EXHAUSTED_AFTER_S, REFRESH_MARGIN_S
from interlock_sandbox.nango.server import NangoServer
from interlock_sandbox.nango.testing import (
    API_KEY,
    INTEGRATION,
    SIGNING_KEY,
    bound_port,
    connect,
    example_settings,
    serving_nango,
)
from interlock_sandbox.server import running
from interlock_sandbox.testing import (
    CLIENT_SECRET,
    Received,
    RecordingApp,
    example_config,
    recording_app,
)

JSON = dict[str, Any]
TEAM = "T0NORTHWIND"
SESSION_LIFE_S = 30 * 60
READER = "environment:connections:read"
NOBODY = "11111111-1111-4111-8111-111111111111"


class Clock:
    """A clock that tests move."""

    seconds = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass(frozen=True)
class Answer:
    """One answer of Nango."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """Nango's error code."""
        return str(self.body["error"]["code"])


@dataclass
class Stage:
    """A Nango, the Slack it connects people to, and an app with two webhook URLs."""

    url: str
    slack_url: str
    nango: NangoServer
    app: RecordingApp
    http: aiohttp.ClientSession
    clock: Clock

    async def ask(self, method: str, path: str, *, bearer: str = API_KEY, **details: Any) -> Answer:
        """Make one request with an API key or a session's token."""
        headers = {"Authorization": f"Bearer {bearer}", **details.pop("headers", {})}
        async with self.http.request(
            method, f"{self.url}{path}", headers=headers, allow_redirects=False, **details
        ) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, json.loads(text) if is_json else text, lower)

    async def get(self, connection_id: str, *, bearer: str = API_KEY, **query: str) -> Answer:
        """Fetch a connection."""
        params = {"provider_config_key": INTEGRATION, **query}
        return await self.ask("GET", f"/connections/{connection_id}", bearer=bearer, params=params)

    async def session(self, **body: Any) -> JSON:
        """Open a connect session for a tenant."""
        asked = {"allowed_integrations": [INTEGRATION], "tags": {"tenantId": "northwind"}, **body}
        return dict((await self.ask("POST", "/connect/sessions", json=asked)).body["data"])

    async def connected(self, **body: Any) -> str:
        """Connect a workspace; return the connection's id."""
        session = await self.session(**body)
        connection_id = await connect(self.http, session["connect_link"])
        assert connection_id
        return connection_id

    async def imported(self, connection_id: str = "imported", **credentials: Any) -> str:
        """Import a connection that has a refresh token and ends in an hour."""
        body = {
            "provider_config_key": INTEGRATION,
            "connection_id": connection_id,
            "credentials": {
                "type": "OAUTH2",
                "access_token": "xoxe.xoxb-example",
                "refresh_token": "xoxe-1-example",
                "expires_at": "2027-01-15T09:00:00.000Z",
                **credentials,
            },
        }
        assert (await self.ask("POST", "/connections", json=body)).status == 201
        return connection_id

    async def do(self, what: str, **body: Any) -> Answer:
        """Change something through the control API."""
        return await self.ask("POST", f"/_control/{what}", json=body)

    async def see(self, what: str) -> Any:
        """Look at something through the control API."""
        return (await self.ask("GET", f"/_control/{what}")).body

    async def last_request(self, operation: str) -> JSON:
        """Return the record of the last request of an operation."""
        found = await self.see(f"requests?operation={operation}")
        return dict(found["requests"][-1])

    async def deliveries(self) -> list[JSON]:
        """List the webhooks, none of them under way."""
        return list((await self.see("deliveries?settled"))["deliveries"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a Nango that Slack knows as a place to come back to."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(recording_app())
        http = await stack.enter_async_context(aiohttp.ClientSession())
        bound = await stack.enter_async_context(bound_port())
        config = example_config(app.url)
        redirects = (*config.app.redirect_urls, f"{bound[1]}/oauth/callback")
        slack_app = dataclasses.replace(config.app, redirect_urls=redirects)
        config = dataclasses.replace(config, app=slack_app)
        urls = await stack.enter_async_context(running(config, clock))
        settings = example_settings(
            urls.slack,
            webhook_urls=(f"{app.url}/first", f"{app.url}/second"),
            return_url=config.dashboard_url,
            rate_limit=50,
        )
        nango = await stack.enter_async_context(serving_nango(bound, settings, clock))
        yield Stage(bound[1], urls.slack, nango, app, http, clock)


def _signed_with(received: Received, key: str) -> bool:
    expected = hmac.new(key.encode(), received.body, hashlib.sha256).hexdigest()
    return received.headers["X-Nango-Hmac-Sha256"] == expected


# People who connect.


async def test_person_connects_a_workspace_in_a_browser(stage: Stage) -> None:
    """The connect link leads through Slack's consent to a token that Slack accepts."""
    connection_id = await stage.connected()
    connection = (await stage.get(connection_id)).body
    credentials = connection["credentials"]
    assert credentials["raw"]["team"] == {"id": TEAM, "name": "Northwind"}
    assert connection["connection_config"]["team.id"] == TEAM
    assert connection["tags"] == {"tenantid": "northwind"}
    headers = {"Authorization": f"Bearer {credentials['access_token']}"}
    async with stage.http.post(f"{stage.slack_url}/api/auth.test", headers=headers) as response:
        assert (await response.json())["team_id"] == TEAM


async def test_both_urls_hear_of_a_connection_and_can_verify_it(stage: Stage) -> None:
    """A creation is sent to each URL of the environment with the same signature."""
    connection_id = await stage.connected()
    first, second = await stage.app.wait_for(2)
    assert (first.path, second.path) == ("/first", "/second")
    assert first.body == second.body
    assert _signed_with(first, SIGNING_KEY)
    told = json.loads(first.body)
    assert (told["operation"], told["connectionId"]) == ("creation", connection_id)
    assert told["tags"] == {"tenantid": "northwind"}


async def test_refused_consent_connects_nothing_but_is_told(stage: Stage) -> None:
    """A denied consent makes no connection; its webhook names nobody's tenant."""
    session = await stage.session()
    assert await connect(stage.http, session["connect_link"], decision="deny") is None
    told = json.loads((await stage.app.wait_for(1))[0].body)
    assert (told["success"], told["error"]["type"]) == (False, "invalid_callback")
    assert "tags" not in told
    assert (await stage.ask("GET", "/connections")).body == {"connections": []}


async def test_installing_again_makes_a_second_connection_unless_reconnected(stage: Stage) -> None:
    """A new session means a new connection; reconnecting keeps the old one's id."""
    first = await stage.connected()
    second = await stage.connected()
    assert first != second
    body = {"connection_id": first, "integration_id": INTEGRATION, "tags": {"tenantId": "acme"}}
    answer = await stage.ask("POST", "/connect/sessions/reconnect", json=body)
    assert await connect(stage.http, answer.body["data"]["connect_link"]) == first
    assert (await stage.get(first)).body["tags"] == {"tenantid": "acme"}
    operations = [each["operation"] for each in await stage.deliveries()]
    assert operations == ["creation"] * 4 + ["override"] * 2


async def test_session_ends_after_half_an_hour(stage: Stage) -> None:
    """An old link shows a page that says so, and its token opens nothing."""
    session = await stage.session()
    stage.clock.seconds += SESSION_LIFE_S
    async with stage.http.get(session["connect_link"]) as page:
        assert page.status == 400
    shown = await stage.ask("GET", "/connect/session", bearer=session["token"])
    assert (shown.status, shown.code) == (401, "unknown_connect_session_token")
    start = f"/oauth/connect/{INTEGRATION}"
    params = {"connect_session_token": session["token"]}
    assert (await stage.ask("GET", start, params=params)).status == 401


async def test_state_is_good_once(stage: Stage) -> None:
    """Coming back a second time with the same state connects nothing."""
    session = await stage.session()
    params = {"connect_session_token": session["token"]}
    start = await stage.ask("GET", f"/oauth/connect/{INTEGRATION}", params=params)
    back = {"state": start.headers["location"].rpartition("state=")[2], "error": "access_denied"}
    assert "access_denied" in (await stage.ask("GET", "/oauth/callback", params=back)).body
    assert "invalid_state" in (await stage.ask("GET", "/oauth/callback", params=back)).body
    assert len(await stage.deliveries()) == 2


async def test_override_url_alone_hears_of_its_connection(stage: Stage) -> None:
    """A session's webhook URL replaces both of the environment's, until it is cleared."""
    connection_id = await stage.connected(webhook_url_override=f"{stage.app.url}/own")
    assert [each["url"] for each in await stage.deliveries()] == [f"{stage.app.url}/own"]
    path = f"/connections/{connection_id}?provider_config_key={INTEGRATION}"
    await stage.ask("PATCH", path, json={"webhook_url_override": ""})
    assert (await stage.get(connection_id)).body["webhook_url_override"] is None


async def test_connections_and_sessions_outlive_a_restart(stage: Stage) -> None:
    """What `snapshot` returned is enough to go on: connections, sessions and keys."""
    connection_id, session = await stage.connected(), await stage.session()
    await stage.do("rotate-signing-key")
    saved = json.loads(json.dumps(stage.nango.environment.snapshot()))
    async with bound_port() as bound:
        settings = example_settings(stage.slack_url)
        async with serving_nango(bound, settings, stage.clock, saved=saved) as nango:
            again = dataclasses.replace(stage, url=bound[1], nango=nango)
            before, after = await stage.get(connection_id), await again.get(connection_id)
            assert after.body["credentials"] == before.body["credentials"]
            shown = await again.ask("GET", "/connect/session", bearer=session["token"])
            assert shown.status == 200
            assert nango.environment.signing_key() == stage.nango.environment.signing_key()


# What callers may do.


async def test_key_without_the_scope_sees_no_credentials(stage: Stage) -> None:
    """A reader's key gets a connection with empty credentials, and may do nothing else."""
    connection_id = await stage.connected()
    key = (await stage.do("api-keys", scopes=[READER])).body["key"]
    seen = await stage.get(connection_id, bearer=key)
    assert (seen.status, seen.body["credentials"]) == (200, {})
    params = {"provider_config_key": INTEGRATION}
    path = f"/connections/{connection_id}"
    refused = await stage.ask("DELETE", path, bearer=key, params=params)
    assert (refused.status, refused.code) == (403, "forbidden")
    listed = await stage.ask("GET", "/connections", bearer=key)
    assert (listed.status, listed.code) == (403, "forbidden")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": ""}, "missing_auth_header"),
        ({"Authorization": "Bearer"}, "invalid_secret_key_format"),
        ({"Authorization": "Bearer nango_connect_session_0"}, "invalid_secret_key_format"),
        ({"Authorization": f"Bearer {NOBODY}"}, "unknown_account"),
    ],
)
async def test_caller_without_a_key_is_refused(
    stage: Stage, headers: dict[str, str], code: str
) -> None:
    """No key, a token of another kind and a stranger's key open nothing."""
    answer = await stage.ask("GET", "/connections", headers=headers)
    assert (answer.status, answer.code) == (401, code)
    assert "x-ratelimit-limit" not in answer.headers


async def test_keys_share_one_fixed_window(stage: Stage) -> None:
    """The limit is the account's, says when it ends, and does not slide."""
    first = await stage.ask("GET", "/connections")
    ends_at = int(first.headers["x-ratelimit-reset"])
    assert ends_at == int(stage.clock.seconds) + 60
    key = (await stage.do("api-keys", scopes=["environment:*"])).body["key"]
    for _ in range(49):
        await stage.ask("GET", "/connections", bearer=key)
    stage.clock.seconds += 50
    refused = await stage.ask("GET", "/connections")
    assert (refused.status, refused.code) == (429, "too_many_request")
    assert refused.headers["retry-after"] == "10"
    assert int(refused.headers["x-ratelimit-reset"]) == ends_at
    stage.clock.seconds = ends_at
    assert (await stage.ask("GET", "/connections")).status == 200


async def test_lists_are_narrowed_by_every_filter(stage: Stage) -> None:
    """Tags, ids, integrations, people and a search each leave the others out."""
    person = {"id": "ada", "email": "ada@northwind.example"}
    body = {"end_user": person, "organization": {"id": "northwind"}, "tags": {"Plan": "pro"}}
    mine = await stage.connected(**body)
    await stage.imported("other")
    filters = {
        "tags[PLAN]": "pro",
        "connectionId": mine,
        "endUserId": "ada",
        "endUserOrganizationId": "northwind",
        "search": "ada@north",
    }
    for name, value in filters.items():
        found = await stage.ask("GET", "/connections", params={name: value})
        assert [each["connection_id"] for each in found.body["connections"]] == [mine], name
    params = {"integrationId": f"x,{INTEGRATION}", "limit": "1", "page": "1"}
    found = await stage.ask("GET", "/connections", params=params)
    assert [each["connection_id"] for each in found.body["connections"]] == [mine]
    assert (await stage.ask("GET", "/connections?nope=1")).code == "invalid_query_params"


async def test_metadata_of_several_is_set_for_all_or_none(stage: Stage) -> None:
    """One unknown connection in the list leaves the known one unlabelled."""
    await stage.imported("known")
    body = {"provider_config_key": INTEGRATION, "metadata": {"kind": "x"}}
    ids = ["known", "unknown"]
    answer = await stage.ask("POST", "/connections/metadata", json={**body, "connection_id": ids})
    assert (answer.status, answer.code) == (404, "unknown_connection")
    assert "No actions were taken" in answer.body["error"]["message"]
    assert (await stage.get("known")).body["metadata"] == {}


async def test_what_is_not_here_is_refused_and_not_left_out(stage: Stage) -> None:
    """A session that asks for a feature the stand-in lacks is not opened."""
    body = {"tags": {}, "integrations_config_defaults": {INTEGRATION: {"user_scopes": "x"}}}
    answer = await stage.ask("POST", "/connect/sessions", json=body)
    assert (answer.status, answer.code) == (501, "not_implemented")


async def test_integrations_are_listed_without_their_client(stage: Stage) -> None:
    """Nobody reads the client secret through the API."""
    listed = await stage.ask("GET", "/integrations")
    shown = await stage.ask("GET", f"/integrations/{INTEGRATION}")
    assert listed.body["data"] == [shown.body["data"]]
    assert CLIENT_SECRET not in json.dumps(listed.body)
    assert (await stage.ask("GET", "/integrations/nope")).status == 404
    async with stage.http.get(shown.body["data"]["logo"]) as picture:
        assert picture.content_type == "image/svg+xml"


# Refreshes.


async def test_refused_refresh_backs_off_and_recovers(stage: Stage) -> None:
    """After a failure even a good token is withheld for 30 s, except by force."""
    name = await stage.imported()
    await stage.do("refuse-refresh", connection_id=name, count=2)
    failed = await stage.get(name, force_refresh="true")
    assert (failed.status, failed.code) == (400, "invalid_credentials")
    assert failed.body["error"]["payload"]["connection"]["credentials"] == {}
    waiting = await stage.get(name)
    assert (waiting.status, waiting.code) == (424, "invalid_credentials")
    assert (await stage.get(name, force_refresh="true")).status == 400
    stage.clock.seconds += BACKOFF_S
    assert (await stage.get(name)).status == 200
    told = [each for each in await stage.deliveries() if each["operation"] == "refresh"]
    assert [each["success"] for each in told] == [False] * 4
    asked = await stage.see("requests?operation=slack.refresh")
    assert asked["requests"] == []


async def test_token_that_ends_soon_is_refreshed_unasked(stage: Stage) -> None:
    """Within 15 minutes of its end a token is not given out before Slack was asked."""
    name = await stage.imported()
    assert (await stage.get(name)).status == 200
    stage.clock.seconds = 1_800_003_600 - REFRESH_MARGIN_S
    # Rotation is off at the sandbox's Slack, so it refuses.
    assert (await stage.get(name)).status == 400
    asked = await stage.last_request("slack.refresh")
    assert (asked["acted"], asked["error"]) == (False, "invalid_refresh_token")


async def test_refresh_that_fails_for_days_is_given_up(stage: Stage) -> None:
    """After four days of failures nobody tries unless forced; connecting again heals it."""
    name = await stage.imported()
    await stage.get(name, force_refresh="true")
    stage.clock.seconds += EXHAUSTED_AFTER_S
    await stage.get(name, force_refresh="true")
    stage.clock.seconds += EXHAUSTED_AFTER_S
    assert (await stage.get(name)).status == 424
    await stage.imported(expires_at="2028-01-01T00:00:00Z")
    assert (await stage.get(name)).status == 200


# Trouble on demand.


async def test_dropped_reply_was_acted_on(stage: Stage) -> None:
    """The caller hears nothing, yet the connection is there and the record says so."""
    await stage.do("faults", kind="drop_reply", operation="import_connection")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await stage.imported("unheard")
    record = await stage.last_request("import_connection")
    assert (record["acted"], record["fault"]) == (True, "drop_reply")
    assert (await stage.get("unheard")).status == 200


async def test_delay_comes_before_acting(stage: Stage) -> None:
    """A delayed request takes that long, and is acted on after all."""
    loop = asyncio.get_running_loop()
    await stage.do("faults", kind="delay", operation="create_session", seconds=0.1)
    started = loop.time()
    await stage.session()
    assert loop.time() - started >= 0.1
    assert (await stage.last_request("create_session"))["acted"] is True


async def test_statuses_are_answered_by_count(stage: Stage) -> None:
    """Two requests get the status and nothing happens; the third is served."""
    await stage.do("faults", kind="http_status", status=502, count=2)
    for _ in range(2):
        answer = await stage.ask("POST", "/connect/sessions", json={"tags": {}})
        assert (answer.status, answer.body) == (502, "upstream trouble")
        assert (await stage.last_request("create_session"))["acted"] is False
    assert (await stage.ask("GET", "/connections")).status == 200
    assert (await stage.see("faults"))["faults"] == {}


async def test_rate_limit_comes_on_demand_and_faults_are_forgotten(stage: Stage) -> None:
    """A fault can play the used-up window; clearing takes back what waits."""
    await stage.do("faults", kind="rate_limit", operation="list_connections", seconds=7, count=5)
    answer = await stage.ask("GET", "/connections")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    cleared = await stage.ask("DELETE", "/_control/faults", json={})
    assert cleared.body == {"faults": {}, "refused_refreshes": {}}
    assert (await stage.ask("GET", "/connections")).status == 200


@pytest.mark.parametrize(
    "wrong",
    [
        ("faults", {"kind": "nope"}),
        ("faults", {"kind": "delay", "count": 0}),
        ("faults", {"kind": "http_status", "status": 99}),
        ("api-keys", {"scopes": "environment:*"}),
    ],
)
async def test_control_refuses_what_it_does_not_know(stage: Stage, wrong: tuple[str, JSON]) -> None:
    """A mistyped switch fails the test that uses it."""
    assert (await stage.do(wrong[0], **wrong[1])).status == 400
    assert (await stage.do("refuse-refresh", connection_id="nope")).status == 404


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (302, 1), (404, 1), (429, 1)])
async def test_only_trouble_of_the_app_is_tried_again(
    stage: Stage, status: int, attempts: int
) -> None:
    """A 5xx is sent three times with the same bytes; redirects and refusals are final."""
    elsewhere = {"Location": f"{stage.app.url}/elsewhere"}
    stage.app.answers = [web.Response(status=status, headers=elsewhere) for _ in range(attempts)]
    await stage.imported()
    first, second = await stage.deliveries()
    assert [each["status"] for each in first["attempts"]] == [status] * attempts
    assert (first["outcome"], second["outcome"]) == ("failed", "delivered")
    assert {each.path for each in stage.app.received} == {"/first", "/second"}
    assert len({each.body for each in stage.app.received}) == 1


async def test_webhook_that_reaches_nobody_is_tried_again(stage: Stage) -> None:
    """No answer counts as trouble of the app."""
    await stage.connected(webhook_url_override="http://127.0.0.1:9/nobody")
    (delivery,) = await stage.deliveries()
    assert [each["status"] for each in delivery["attempts"]] == [None] * 3


async def test_rotated_key_may_come_late(stage: Stage) -> None:
    """For a while webhooks go on with the old signing key, then with the new one."""
    rotated = await stage.do("rotate-signing-key", old_key_for_s=60)
    await stage.imported("before")
    await stage.deliveries()
    stage.clock.seconds += 60
    await stage.imported("after")
    await stage.deliveries()
    keys = (SIGNING_KEY, SIGNING_KEY, *[rotated.body["webhook_signing_key"]] * 2)
    pairs = zip(stage.app.received, keys, strict=True)
    assert all(_signed_with(received, key) for received, key in pairs)


async def test_forged_webhooks_can_be_sent(stage: Stage) -> None:
    """Tests send any body under any key and with headers missing."""
    answer = await stage.do(
        "webhook",
        body={"b": 1, "a": 2},
        key="another-key",
        headers={"X-Nango-Signature": None, "X-Extra": "1"},
    )
    assert answer.body == {"status": 200}
    (received,) = stage.app.received
    assert received.body == b'{"a":2,"b":1}'
    assert _signed_with(received, "another-key")
    assert "X-Nango-Signature" not in received.headers
    assert received.headers["X-Extra"] == "1"


async def test_secrets_are_listed_in_one_place_only(stage: Stage) -> None:
    """Searches for leaks know every secret; state and records show none."""
    connection_id, session = await stage.connected(), await stage.session()
    await stage.imported()
    credentials = (await stage.get(connection_id)).body["credentials"]
    rotated = (await stage.do("rotate-signing-key")).body["webhook_signing_key"]
    listed = set((await stage.see("secrets"))["tokens"])
    assert {
        credentials["access_token"],
        "xoxe-1-example",
        session["token"],
        API_KEY,
        SIGNING_KEY,
        rotated,
        CLIENT_SECRET,
    } <= listed
    shown = json.dumps([await stage.see(each) for each in ("state", "requests", "deliveries")])
    assert not [each for each in listed if each in shown]


@pytest.mark.parametrize(
    "wrong", [{"api_key": Secret("not-a-uuid")}, {"webhook_urls": ("http://a/",) * 3}]
)
def test_wrong_settings_are_refused(wrong: JSON) -> None:
    """A key that no Nango would give out, or a third URL, stops the start."""
    with pytest.raises(ConfigError):
        example_settings(**wrong)
