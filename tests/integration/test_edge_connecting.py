"""Installs by Nango at edge: two calls of a person's program, and the webhook."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from yarl import URL

from interlock_chassis.errors import Kind, RemoteError
from interlock_cli.scratch_databases import ScratchDatabases
from tests.support.edge_site import ACME, BASE_HEADERS, Answer, Site, cookies_of, fresh_site

REQUESTS = "/work-apps/slack/install/requests"
COMPLETE = "/work-apps/slack/install/complete"
WEBHOOK = "/work-apps/slack/nango/webhook"
CONNECTION = {"providerConfigKey": "work-apps-slack", "connectionId": "connection-1"}
SIGNED = {"X-Nango-Hmac-Sha256": "a" * 64, "X-Nango-Signature": "b" * 64}


@pytest.fixture
async def site(cluster: ScratchDatabases) -> AsyncIterator[Site]:
    """Serve edge."""
    async with fresh_site(cluster) as site:
        yield site


async def _post(site: Site, path: str, body: Any, who: str = "ann", **cookies: str) -> Answer:
    headers = {**BASE_HEADERS, **cookies_of(who, cookies)}
    return await site.ask("POST", path, data=json.dumps(body).encode(), headers=headers)


async def _connect(site: Site, body: Any = None, who: str = "ann") -> str:
    """Open an install; returns its cookie."""
    started = await _post(site, REQUESTS, body or {}, who)
    assert started.status == 200, started.text
    return started.cookie("connect")


async def test_a_session_is_opened_and_its_connection_completed(site: Site) -> None:
    """The answer is the specification's; the cookie is this host's alone; the grant stays here."""
    started = await _post(site, REQUESTS, {})
    shown = json.loads(started.body)
    assert shown["connectSessionToken"] == "session-1"
    assert shown["connectLink"] == "https://nango.example/?t=1"
    assert "grant" not in started.text
    done = await _post(site, COMPLETE, CONNECTION, connect=started.cookie("connect"))
    assert (done.status, json.loads(done.body)) == (
        200,
        {"slackTeamId": "T0ACME", "isReinstall": False},
    )
    ((grant, key, connection_id),) = site.vault.completed
    assert grant.startswith("nango-grant-of-acme-")
    assert (key, connection_id) == ("work-apps-slack", "connection-1")


async def test_a_workspace_can_be_connected_again(site: Site) -> None:
    """Named by its id, and only if it is the tenant's."""
    await _connect(site, {"workspaceId": "wsw_1"})
    assert site.vault.connecting[0][1] == "T0ACME"
    foreign = await _post(site, REQUESTS, {"workspaceId": "wsw_9"})
    assert (foreign.status, json.loads(foreign.body)["error"]) == (404, "WORKSPACE_NOT_FOUND")


@pytest.mark.parametrize(("who", "status"), [("", 401), ("bob", 403), ("val", 403)])
async def test_only_an_owner_or_admin_installs(site: Site, who: str, status: int) -> None:
    """Anybody else is refused, in JSON, at both calls."""
    for path, body in ((REQUESTS, {}), (COMPLETE, CONNECTION)):
        answer = await _post(site, path, body, who)
        assert answer.status == status
        assert answer.headers["Content-Type"].startswith("application/json")
    assert site.vault.connecting == []


async def test_another_sites_page_installs_nothing(site: Site) -> None:
    """A cross-site request is refused whatever its cookie."""
    headers = {**BASE_HEADERS, "Sec-Fetch-Site": "cross-site", **cookies_of("ann", {})}
    answer = await site.ask("POST", REQUESTS, data=b"{}", headers=headers)
    assert answer.status == 403


@pytest.mark.parametrize("cookie", ["", "x", "a.b", f"{'A' * 43}.{'B' * 43}"])
async def test_a_completion_without_its_cookie_is_refused(site: Site, cookie: str) -> None:
    """Whoever did not start it does not complete it."""
    await _connect(site)
    answer = await _post(site, COMPLETE, CONNECTION, connect=cookie)
    assert (answer.status, json.loads(answer.body)["error"]) == (400, "INSTALL_STATE_SPENT")
    assert site.vault.completed == []


async def test_another_session_does_not_complete_it(site: Site) -> None:
    """The cookie of one administrator is worth nothing in another's session, and is spent."""
    cookie = await _connect(site)
    stolen = await _post(site, COMPLETE, CONNECTION, "ada", connect=cookie)
    assert (stolen.status, json.loads(stolen.body)["error"]) == (403, "NOT_YOUR_INSTALL")
    assert site.audited("install_of_other_session_refused") == 1
    assert (await _post(site, COMPLETE, CONNECTION, connect=cookie)).status == 400


async def test_a_completion_works_once_and_again_after_an_outage(site: Site) -> None:
    """What a repeat may cure leaves the install open; a success ends it."""
    cookie = await _connect(site)
    site.vault.fail = RemoteError(Kind.UNAVAILABLE, "NANGO_UNAVAILABLE")
    assert (await _post(site, COMPLETE, CONNECTION, connect=cookie)).status == 503
    site.vault.fail = None
    assert (await _post(site, COMPLETE, CONNECTION, connect=cookie)).status == 200
    assert (await _post(site, COMPLETE, CONNECTION, connect=cookie)).status == 400


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (Kind.PRECONDITION, "NANGO_NOT_CONFIGURED", 501),
        (Kind.PRECONDITION, "NANGO_REFUSED", 502),
        (Kind.NOT_FOUND, "CONNECTION_NOT_FOUND", 404),
        (Kind.FORBIDDEN, "CONNECTION_NOT_YOURS", 403),
        (Kind.PRECONDITION, "CONNECTION_DEAD", 422),
        (Kind.CONFLICT, "WORKSPACE_TAKEN", 409),
        (Kind.PRECONDITION, "SCOPES_MISSING", 422),
    ],
)
async def test_every_refusal_has_its_status(
    site: Site, kind: Kind, reason: str, status: int
) -> None:
    """A program can tell them apart by the stable reason."""
    cookie = await _connect(site)
    site.vault.fail = RemoteError(kind, reason)
    answer = await _post(site, COMPLETE, CONNECTION, connect=cookie)
    assert (answer.status, json.loads(answer.body)["error"]) == (status, reason)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (REQUESTS, {"workspaceId": 7}),
        (REQUESTS, {"tenantId": "umbra"}),
        (COMPLETE, {}),
        (COMPLETE, CONNECTION | {"tenantId": "umbra"}),
        (COMPLETE, CONNECTION | {"connectionId": ""}),
        (COMPLETE, CONNECTION | {"connectionId": "x" * 257}),
        (COMPLETE, CONNECTION | {"providerConfigKey": None}),
    ],
)
async def test_a_malformed_body_is_refused(site: Site, path: str, body: Any) -> None:
    """A tenant cannot be named, nor anything that the document does not."""
    cookie = await _connect(site)
    answer = await _post(site, path, body, connect=cookie)
    assert (answer.status, json.loads(answer.body)["error"]) == (400, "MALFORMED_BODY")


# The pages of a deployment that installs by Nango.


NANGO = "https://nango.example"
HOME = "/work-apps/slack/"
INSTALL = "/work-apps/slack/install"
CONNECT = "/work-apps/slack/install/connect"
CONNECTED = "/work-apps/slack/install/connected"


@pytest.fixture
async def pages(cluster: ScratchDatabases) -> AsyncIterator[Site]:
    """Serve edge where Nango is told to be at `nango.example`."""
    async with fresh_site(cluster, {"nango_connect_url": URL(NANGO)}) as site:
        yield site


async def _set_out(pages: Site, who: str = "ann", **fields: str) -> str:
    """Press the button; returns the cookie."""
    token = (await pages.get(INSTALL, who)).form_token()
    answer = await pages.post(CONNECT, {"csrf": token, **fields}, who)
    assert (answer.status, answer.location) == (303, f"{NANGO}/?t=1")
    return answer.cookie("connect")


async def test_the_button_leads_to_nango_and_back_to_what_came_of_it(pages: Site) -> None:
    """The install is asked for with its grant alone; nothing that the browser says counts."""
    cookie = await _set_out(pages)
    pages.vault.fail = RemoteError(Kind.PRECONDITION, "CONNECTION_AWAITED")
    waiting = await pages.get(CONNECTED, "ann", connect=cookie)
    assert (waiting.status, "Not connected yet" in waiting.text) == (200, True)
    pages.vault.fail = RemoteError(Kind.LOST_RACE, "INSTALL_IN_PROGRESS")
    assert (await pages.get(CONNECTED, "ann", connect=cookie)).status == 200
    pages.vault.fail = None
    done = await pages.get(CONNECTED, "ann", connect=cookie)
    assert (done.status, done.location) == (303, f"{HOME}?installed=T0ACME")
    assert len(pages.vault.asked_for) == 3
    assert pages.vault.completed == []
    assert (await pages.get(CONNECTED, "ann", connect=cookie)).status == 400


async def test_the_dashboard_leads_to_the_page_that_asks(pages: Site) -> None:
    """Every button that installs is a link there; a reinstall names its workspace."""
    dashboard = (await pages.get(HOME, "ann")).text
    assert f'<a class="button " href="{INSTALL}">Add to Slack</a>' in dashboard
    assert f'action="{INSTALL}"' not in dashboard
    pages.identity.workspaces["acme"] = [replace(ACME, status="needs_reinstall")]
    dashboard = (await pages.get(HOME, "ann")).text
    assert f'href="{INSTALL}?workspace=wsw_1">Reinstall</a>' in dashboard
    again = await pages.get(f"{INSTALL}?workspace=wsw_1", "ann")
    assert 'name="workspace" value="wsw_1"' in again.text


async def test_a_reinstall_connects_the_same_connection_again(pages: Site) -> None:
    """So that no second one appears; only a workspace of the tenant's own counts."""
    await _set_out(pages, workspace="wsw_1")
    assert pages.vault.connecting[0][1] == "T0ACME"
    token = (await pages.get(INSTALL, "ann")).form_token()
    foreign = await pages.post(CONNECT, {"csrf": token, "workspace": "wsw_9"}, "ann")
    assert foreign.status == 404


@pytest.mark.parametrize(("who", "status"), [("", 401), ("bob", 403), ("val", 403)])
async def test_only_an_owner_or_admin_sees_the_pages(pages: Site, who: str, status: int) -> None:
    """The question, the button and the result are theirs."""
    token = (await pages.get(INSTALL, "ann")).form_token()
    assert (await pages.get(INSTALL, who)).status == status
    assert (await pages.get(CONNECTED, who)).status == status
    assert (await pages.post(CONNECT, {"csrf": token}, who)).status in {status, 403}
    assert pages.vault.connecting == []


async def test_the_result_is_only_for_who_set_out(pages: Site) -> None:
    """Another session, no cookie, a forged one: none of them learns what came of it."""
    cookie = await _set_out(pages)
    for forged in ("", "x", f"{'A' * 43}.{'B' * 43}"):
        assert (await pages.get(CONNECTED, "ann", connect=forged)).status == 400
    assert (await pages.get(CONNECTED, "ada", connect=cookie)).status == 403
    assert pages.audited("install_of_other_session_refused") == 1
    assert pages.vault.completed == []


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (Kind.CONFLICT, "WORKSPACE_TAKEN", 409),
        (Kind.PRECONDITION, "SCOPES_MISSING", 422),
        (Kind.PRECONDITION, "CONNECTION_DEAD", 422),
        (Kind.FORBIDDEN, "CONNECTION_NOT_YOURS", 403),
        (Kind.PRECONDITION, "INSTALL_NOT_OPEN", 400),
        (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", 503),
        (Kind.UNAUTHENTICATED, "INVALID_TOKEN", 400),
    ],
)
async def test_every_end_by_nango_has_a_page(
    pages: Site, kind: Kind, reason: str, status: int
) -> None:
    """It says what happened and what to do; a grant that ran out is an install that is over."""
    cookie = await _set_out(pages)
    pages.vault.fail = RemoteError(kind, reason)
    answer = await pages.get(CONNECTED, "ann", connect=cookie)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["X-Request-Id"] in answer.text


async def test_browsers_are_sent_to_nangos_page_alone(cluster: ScratchDatabases) -> None:
    """A link to anywhere else is not followed, and forms may lead nowhere else either."""
    async with fresh_site(cluster, {"nango_connect_url": URL("https://other.example")}) as site:
        page = await site.get(INSTALL, "ann")
        assert "https://other.example" in page.headers["Content-Security-Policy"]
        answer = await site.post(CONNECT, {"csrf": page.form_token()}, "ann")
        assert answer.status == 502
        assert not {"Location", "Set-Cookie"} & set(answer.headers)


async def test_the_pages_by_nango_are_two_routes_more(pages: Site, site: Site) -> None:
    """The table of routes and proofs holds for both deployments; these are tested above."""
    assert pages.routes - site.routes == {("POST", CONNECT), ("GET", CONNECTED)}
    assert site.routes <= pages.routes


async def test_without_a_nango_the_pages_are_those_of_slack(site: Site) -> None:
    """Nothing leads to Nango, and its pages are not there."""
    assert "Nango" not in (await site.get(INSTALL, "ann")).text
    assert (await site.get(CONNECTED, "ann")).status == 404
    assert NANGO not in (await site.get(INSTALL, "ann")).headers["Content-Security-Policy"]


# The webhook.


async def test_a_webhook_reaches_the_vault_byte_for_byte(site: Site) -> None:
    """The raw body and the one signature that counts; never the legacy one."""
    body = b'{"b": 1,  "a":\t"\xc3\xa9"}'
    answer = await site.ask("POST", WEBHOOK, data=body, headers=BASE_HEADERS | SIGNED)
    assert (answer.status, answer.body) == (200, b"")
    assert site.vault.webhooks == [(body, {"x-nango-hmac-sha256": "a" * 64})]


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (Kind.UNAUTHENTICATED, "INVALID_SIGNATURE", 401),
        (Kind.PRECONDITION, "NANGO_NOT_CONFIGURED", 404),
        (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", 503),
        (Kind.UNAVAILABLE, "PEER_UNAVAILABLE", 503),
        (Kind.INTERNAL, "INTERNAL", 503),
    ],
)
async def test_what_could_not_be_stored_is_sent_again(
    site: Site, kind: Kind, reason: str, status: int
) -> None:
    """NW-06: Nango repeats a 5xx and nothing else; a bad signature is final."""
    site.vault.fail = RemoteError(kind, reason)
    answer = await site.ask("POST", WEBHOOK, data=b"{}", headers=BASE_HEADERS | SIGNED)
    assert (answer.status, answer.body) == (status, b"")


async def test_a_webhook_without_its_signature_never_reaches_the_vault(site: Site) -> None:
    """NW-01: the legacy header alone is an empty 401, and so is an empty body."""
    legacy = BASE_HEADERS | {"X-Nango-Signature": "b" * 64}
    for headers, body in ((legacy, b"{}"), (BASE_HEADERS | SIGNED, b"")):
        answer = await site.ask("POST", WEBHOOK, data=body, headers=headers)
        assert (answer.status, answer.body) == (401, b"")
    assert site.vault.webhooks == []


async def test_a_large_webhook_is_refused(site: Site) -> None:
    """Nothing that the vault would not take is carried there."""
    headers = BASE_HEADERS | SIGNED
    answer = await site.ask("POST", WEBHOOK, data=b"x" * (61 * 1024), headers=headers)
    assert answer.status == 413
    assert site.vault.webhooks == []
