"""Edge's routes as a whole: which proof each asks for, which role may what, what JSON says."""

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from interlock_chassis.clock import SystemClock
from interlock_chassis.errors import Kind
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.domain.slack_request import LINK_COMMAND
from interlock_gateway.edge.ports import AgentDefault, Health
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import verify_slack_grant
from tests.support.edge_site import (
    APP,
    DAY,
    HOME,
    KEYS,
    LINK,
    PUBLIC,
    Answer,
    Site,
    audit_event,
    cookies_of,
    fresh_site,
    people_event,
    refusal,
    slack_headers,
    user_mapping,
)

BASE = "/work-apps/slack"
ONE = f"{BASE}/workspaces/{{workspace_id}}"
WSW = f"{BASE}/workspaces/wsw_1"
RETURNS = AgentDefault("", "shop", "returns", grants_access=False)
RETURNS_JSON = {"projectId": "shop", "agentId": "returns", "grantAccessToMembers": False}

# Every route and the proof it asks for. "session": the cookie. "form": the cookie, our own
# page, and its token. "program": the cookie, and no page of another site.
ROUTES = {
    ("POST", f"{BASE}/events"): "slack",
    ("POST", f"{BASE}/interactions"): "slack",
    ("POST", f"{BASE}/commands"): "slack",
    ("POST", f"{BASE}/link/create"): "slack",
    ("POST", f"{BASE}/nango/webhook"): "nango",
    ("POST", f"{BASE}/install/requests"): "program",
    ("POST", f"{BASE}/install/complete"): "connect cookie",
    ("GET", "/"): "none",
    ("GET", BASE): "none",
    ("GET", f"{BASE}/"): "none",
    ("GET", "/favicon.ico"): "none",
    ("GET", f"{BASE}/static/{{name}}"): "none",
    ("GET", f"{BASE}/openapi.json"): "none",
    ("GET", f"{BASE}/link"): "link cookie",
    ("POST", f"{BASE}/link/redeem"): "link cookie",
    ("GET", f"{BASE}/link/done"): "link cookie",
    ("GET", f"{BASE}/oauth_redirect"): "install cookie",
    ("GET", f"{BASE}/install"): "session",
    ("POST", f"{BASE}/install"): "form",
    ("GET", f"{BASE}/workspaces.json"): "session",
    ("GET", f"{ONE}.json"): "session",
    ("DELETE", f"{ONE}.json"): "program",
    ("GET", f"{ONE}/users.json"): "session",
    ("DELETE", f"{ONE}/users/{{mapping_id}}.json"): "program",
    ("GET", f"{ONE}/settings.json"): "session",
    ("PUT", f"{ONE}/settings.json"): "program",
    ("GET", f"{ONE}/channels.json"): "session",
    ("PUT", f"{ONE}/channels/{{channel_id}}/settings.json"): "program",
    ("GET", f"{ONE}/health.json"): "session",
    ("POST", f"{ONE}/test-message.json"): "program",
    ("GET", f"{ONE}/audit.json"): "session",
    ("GET", f"{ONE}/audit/people.json"): "session",
    ("GET", ONE): "session",
    ("GET", f"{ONE}/users.csv"): "session",
    ("POST", f"{ONE}/unlink"): "form",
    ("POST", f"{ONE}/uninstall"): "form",
    ("GET", f"{ONE}/audit"): "session",
    ("GET", f"{ONE}/audit/people"): "session",
    ("GET", f"{ONE}/settings"): "session",
    ("POST", f"{ONE}/settings"): "form",
    ("GET", f"{ONE}/health"): "session",
    ("POST", f"{ONE}/test-message"): "form",
}
# Who may: owner and admin everything; the routes that members may, too; nobody else any.
FOR_MEMBERS = {
    ("GET", f"{BASE}/workspaces.json"),
    ("GET", f"{ONE}.json"),
    ("GET", f"{ONE}/users.json"),
    ("DELETE", f"{ONE}/users/{{mapping_id}}.json"),
    ("GET", f"{ONE}/settings.json"),
    ("GET", ONE),
    ("GET", f"{ONE}/settings"),
}
BODIES: dict[tuple[str, str], object] = {
    ("PUT", f"{ONE}/settings.json"): {"defaultAgent": RETURNS_JSON},
    ("PUT", f"{ONE}/channels/{{channel_id}}/settings.json"): {"defaultAgent": RETURNS_JSON},
    ("POST", f"{ONE}/test-message.json"): {"channelId": "C0GENERAL"},
    ("POST", f"{BASE}/install/requests"): {},
}
BY_PROOF = {
    proof: [route for route, needed in ROUTES.items() if needed == proof]
    for proof in ("slack", "none", "session", "form", "program")
}
OTHER_SITES = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
]


@pytest.fixture
async def site(cluster: ScratchDatabases) -> AsyncIterator[Site]:
    """Serve edge with a linked user, a default agent and a read token."""
    async with fresh_site(cluster) as site:
        site.identity.mappings = [user_mapping()]
        site.identity.defaults = {
            "": RETURNS,
            "C0GENERAL": AgentDefault("C0GENERAL", "shop", "returns", grants_access=True),
        }
        site.vault.events = [audit_event()]
        site.identity.events = [people_event()]
        yield site


def _address(path: str) -> str:
    values = {
        "workspace_id": "wsw_1",
        "mapping_id": "wsum_1",
        "channel_id": "C0GENERAL",
        "name": "style.css",
    }
    return path.format_map(values)


async def _call(
    site: Site, route: tuple[str, str], who: str = "", headers: dict[str, str] | None = None
) -> Answer:
    method, path = route
    options: dict[str, Any] = {"headers": cookies_of(who, {}) | (headers or {})}
    if route in BODIES:
        options["data"] = json.dumps(BODIES[route]).encode()
        options["headers"] |= {"Content-Type": "application/json"}
    return await site.ask(method, _address(path), **options)


# Routes and their proofs.


def test_the_table_names_every_route(site: Site) -> None:
    """A route that nobody thought about is not served."""
    assert site.routes == set(ROUTES)


async def test_slacks_urls_ask_for_slacks_signature(site: Site) -> None:
    """No session helps: an empty 401."""
    for _, path in BY_PROOF["slack"]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | cookies_of("ann", {})
        answer = await site.ask("POST", path, data=b"a=b", headers=headers)
        assert (answer.status, answer.body) == (401, b"")


async def test_what_asks_for_nothing_tells_nothing_of_a_tenant(site: Site) -> None:
    """Whoever asks gets it, and it names nobody."""
    for route in BY_PROOF["none"]:
        answer = await _call(site, route)
        assert answer.status in {200, 303}
        assert b"Acme" not in answer.body


async def test_every_other_route_asks_for_the_session(site: Site) -> None:
    """401 without one; a form comes from our page in this, so that only the session lacks."""
    own = {"Origin": PUBLIC, "Content-Type": "application/x-www-form-urlencoded"}
    for proof in ("session", "program", "form"):
        for route in BY_PROOF[proof]:
            answer = await _call(site, route, headers=own if proof == "form" else None)
            assert answer.status == 401, route


async def test_a_form_asks_for_its_token_and_our_own_page(site: Site) -> None:
    """A session alone sends no form: 403 from elsewhere, and 403 without the token."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for route in BY_PROOF["form"]:
        for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": PUBLIC}):
            answer = await _call(site, route, "ann", kind | headers)
            assert answer.status == 403, route
    assert site.worker.uninstalled == []


async def test_a_program_is_no_page_of_another_site(site: Site) -> None:
    """Browsers say where a page is from; then only ours counts."""
    for route in BY_PROOF["program"]:
        for headers in OTHER_SITES:
            assert (await _call(site, route, "ann", headers)).status == 403, route
        own = await _call(site, route, "ann", {"Sec-Fetch-Site": "same-origin"})
        assert own.status in {200, 204}


# Roles and their actions.


@pytest.mark.parametrize("who", ["ann", "ada", "bob", "val"])
async def test_each_role_may_exactly_what_the_policy_says(site: Site, who: str) -> None:
    """Owner and admin everything, a member what is their own, any other role nothing."""
    for route in BY_PROOF["session"] + BY_PROOF["program"]:
        answer = await _call(site, route, who)
        is_allowed = who in {"ann", "ada"} or (who == "bob" and route in FOR_MEMBERS)
        assert (answer.status < 300) is is_allowed, (route, answer.status)
        assert is_allowed or answer.status == 403


@pytest.mark.parametrize("who", ["bob", "val"])
async def test_no_page_shows_a_button_that_would_be_refused(site: Site, who: str) -> None:
    """A member's pages have no form but their own unlink; another role has no page."""
    for path in (HOME, WSW, f"{WSW}/settings"):
        answer = await site.get(path, who)
        assert answer.status == (200 if who == "bob" else 403)
        actions = set(re.findall(r'action="([^"]+)"', answer.text))
        assert actions <= {f"{WSW}/unlink?mapping=wsum_1"}
        assert f"{WSW}/health" not in answer.text


# Settings, health, uninstall.


async def _settings_form(site: Site) -> dict[str, str]:
    return {"csrf": (await site.get(f"{WSW}/settings", "ann")).form_token()}


async def test_an_administrator_settles_the_agents(site: Site) -> None:
    """The workspace's and a channel's, saved and removed by the page's forms."""
    site.identity.defaults = {}
    page = await site.get(f"{WSW}/settings", "ann")
    assert "#general" in page.text
    fields = {"csrf": page.form_token(), "project_id": " shop ", "agent_id": "returns"}
    path = f"{WSW}/settings"
    answer = await site.post(path, fields | {"do": "save", "channel_id": ""}, "ann")
    assert (answer.status, answer.location) == (303, f"{path}?saved=1")
    in_channel = {"do": "save", "place": "channel", "channel_id": "C0RANDOM"}
    more = in_channel | {"grants_access": "yes"}
    assert (await site.post(path, fields | more, "ann")).status == 303
    assert site.identity.defaults == {
        "": RETURNS,
        "C0RANDOM": AgentDefault("C0RANDOM", "shop", "returns", grants_access=True),
    }
    assert (await site.post(path, fields | in_channel | {"channel_id": ""}, "ann")).status == 400
    gone = {"csrf": fields["csrf"], "do": "remove", "channel_id": ""}
    assert (await site.post(path, gone, "ann")).status == 303
    assert set(site.identity.defaults) == {"C0RANDOM"}


async def test_a_wrong_agent_keeps_what_was_typed(site: Site) -> None:
    """400 or 503 is the same form again, with the reason; nothing is changed."""
    before = dict(site.identity.defaults)
    fields = await _settings_form(site) | {
        "do": "save",
        "project_id": "shop",
        "agent_id": "nobody",
    }
    answer = await site.post(f"{WSW}/settings", fields, "ann")
    assert answer.status == 400
    assert "There is no such agent" in answer.text
    assert 'value="nobody"' in answer.text
    odd = await site.post(f"{WSW}/settings", fields | {"agent_id": "<b>canary"}, "ann")
    assert odd.status == 400
    assert "<b>canary" not in odd.text
    site.identity.fail["platform"] = refusal(Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE")
    away = await site.post(f"{WSW}/settings", fields | {"agent_id": "returns"}, "ann")
    assert away.status == 503
    assert 'value="returns"' in away.text
    assert site.identity.defaults == before


async def test_settings_work_while_slack_cannot_be_asked(site: Site) -> None:
    """Without the list of channels an id can be typed."""
    site.worker.fail = refusal(Kind.UNAVAILABLE, "SLACK_UNAVAILABLE")
    page = await site.get(f"{WSW}/settings", "ann")
    assert page.status == 200
    assert '<input id="channel" name="channel_id"' in page.text


async def test_health_says_what_slack_says(site: Site) -> None:
    """It works; it does not, and why; it cannot be told."""
    assert "Slack accepts it" in (await site.get(f"{WSW}/health", "ann")).text
    site.worker.health = Health(is_healthy=False, slack_error="token_revoked")
    page = await site.get(f"{WSW}/health", "ann")
    assert "token_revoked" in page.text
    assert "Send a test message" not in page.text
    site.worker.fail = refusal(Kind.PRECONDITION, "NEEDS_REINSTALL")
    assert "needs_reinstall" in (await site.get(f"{WSW}/health", "ann")).text
    site.worker.fail = refusal(Kind.UNAVAILABLE, "SLACK_UNAVAILABLE")
    assert (await site.get(f"{WSW}/health", "ann")).status == 503


async def test_a_test_message_goes_to_the_channel_that_was_chosen(site: Site) -> None:
    """With a grant of that purpose; a refusal of Slack's is a page."""
    fields = {"csrf": (await site.get(f"{WSW}/health", "ann")).form_token()}
    path = f"{WSW}/test-message"
    answer = await site.post(path, fields | {"channel_id": "C0GENERAL"}, "ann")
    assert (answer.status, answer.location) == (303, f"{WSW}/health?sent=1")
    assert site.worker.tested == [("test_message-grant-of-wsw_1", "C0GENERAL")]
    assert (await site.post(path, fields | {"channel_id": "general"}, "ann")).status == 400
    site.worker.fail = refusal(Kind.PRECONDITION, "SLACK_REFUSED")
    refused = await site.post(path, fields | {"channel_id": "C0RANDOM"}, "ann")
    assert refused.status == 422


async def test_an_uninstall_is_done_or_explained(site: Site) -> None:
    """The button asks the worker with its grant; what Slack refuses is explained."""
    page = (await site.get(WSW, "ann")).text
    token = re.search(r'/uninstall">\s*<input type="hidden" name="csrf" value="([^"]+)"', page)
    assert token
    fields = {"csrf": token[1]}
    answer = await site.post(f"{WSW}/uninstall", fields, "ann")
    assert (answer.status, answer.location) == (303, f"{HOME}?uninstalled=1")
    assert site.worker.uninstalled == ["uninstall-grant-of-wsw_1"]
    site.worker.fail = refusal(Kind.PRECONDITION, "UNINSTALL_REFUSED")
    explained = await site.post(f"{WSW}/uninstall", fields, "ann")
    assert explained.status == 422
    assert "Please uninstall in Slack" in explained.text


FORMULAS = ['=cmd|"/c"', "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]


async def test_a_program_removes_a_link(site: Site) -> None:
    """The link that the address names, in a workspace of the person's own tenant."""
    for workspace in ("wsw_9", "wsw_0"):
        foreign = f"{BASE}/workspaces/{workspace}/users/wsum_1.json"
        assert (await site.ask("DELETE", foreign, headers=cookies_of("ann", {}))).status == 404
    assert site.identity.unlinked == []
    removed = await site.ask("DELETE", f"{WSW}/users/wsum_1.json", headers=cookies_of("bob", {}))
    assert (removed.status, removed.body) == (204, b"")
    assert site.identity.unlinked == ["wsum_1"]


async def test_linked_users_are_a_table_that_calculates_nothing(site: Site) -> None:
    """CSV of all pages, with when each link was used; a name that is a formula is text."""
    used = replace(user_mapping(), user_name="Bo, b", last_used_at=DAY)
    site.identity.mappings = [
        used,
        *(replace(used, user_name=name, last_used_at=None) for name in FORMULAS),
    ]
    answer = await site.get(f"{WSW}/users.csv", "ann")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert 'filename="linked-users-T0ACME.csv"' in answer.headers["Content-Disposition"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-Id"]
    columns, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [each["name"] for each in found] == ["Bo, b", *(f"'{name}" for name in FORMULAS)] * 2
    assert found[0]["lastUsedAt"] == found[0]["linkedAt"] == "2026-11-24T09:30:00.000Z"
    assert found[1]["lastUsedAt"] == ""
    head = await site.ask("HEAD", f"{WSW}/users.csv", headers=cookies_of("ann", {}))
    assert (head.status, head.body) == (200, b"")


async def test_a_long_list_is_read_as_the_browser_takes_it(site: Site) -> None:
    """The first rows come before the last are asked for; who takes none, asks for no more."""
    rows = [replace(user_mapping(), user_name="n" * 5000)] * 200
    site.identity.pages = [rows] * 200
    url = f"http://127.0.0.1:{site.port}{WSW}/users.csv"
    headers = {"Host": "127.0.0.1:8080"} | cookies_of("ann", {})
    answer = await site.http.get(url, headers=headers)
    assert answer.status == 200
    assert (await answer.content.readexactly(11)) == b"slackTeamId"
    # 200 MB in all, of which the two ends of the connection hold some.
    assert len(site.identity.pages_asked) < 60
    answer.close()
    async with asyncio.timeout(20):
        while not site.served(f"{ONE}/users.csv"):  # noqa: ASYNC110 - A counter wakes nobody.
            await asyncio.sleep(0.01)
    assert len(site.identity.pages_asked) < 60


async def test_a_list_that_breaks_off_is_not_taken_for_whole(site: Site) -> None:
    """The connection is cut; where nothing was sent yet, the reason is a page."""
    site.identity.mappings = [user_mapping()]
    site.identity.fail["page-2"] = refusal(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    with pytest.raises(aiohttp.ClientError):
        await site.get(f"{WSW}/users.csv", "ann")
    site.identity.fail["list"] = refusal(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert (await site.get(f"{WSW}/users.csv", "ann")).status == 503


# POST /link/create.


async def test_a_command_of_its_own_asks_for_a_link_whatever_it_says(site: Site) -> None:
    """Slack-signed; stored as the person's request for a link, before any run."""
    fields = {
        "api_app_id": APP,
        "team_id": "T0ACME",
        "channel_id": "C0GENERAL",
        "user_id": "U0ANN",
        "command": "/link-account",
        "text": "anything",
    }
    body = urlencode(fields).encode()
    answer = await site.slack(f"{BASE}/link/create", body)
    assert (answer.status, answer.body) == (200, b"")
    [stored] = await site.rows()
    assert stored["kind"] == "command"
    assert stored["lane"].startswith("control:")
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    grant = verify_slack_grant(stored["grant_token"], keys, now=SystemClock().now())
    assert (grant.event_type, grant.slack_user_id) == (LINK_COMMAND, "U0ANN")
    wrong = slack_headers(body) | {"X-Slack-Signature": "v0=" + "0" * 64}
    assert (await site.ask("POST", f"{BASE}/link/create", data=body, headers=wrong)).status == 401


# The OpenAPI document.


async def _document(site: Site) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((await site.get(f"{BASE}/openapi.json")).body)
    return document


def _described(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    snake = {"workspaceId": "workspace_id", "mappingId": "mapping_id", "channelId": "channel_id"}
    return {
        (method.upper(), re.sub(r"\{(\w+)\}", lambda found: f"{{{snake[found[1]]}}}", path)): each
        for path, methods in document["paths"].items()
        for method, each in methods.items()
        if method != "parameters"
    }


async def test_the_document_describes_every_json_route_and_no_other(site: Site) -> None:
    """What is served is described, and what is described is served."""
    described = _described(await _document(site))
    programs = {f"{BASE}/install/requests", f"{BASE}/install/complete"}
    assert set(described) == {
        route for route in ROUTES if route[1].endswith(".json") or route[1] in programs
    }


async def test_every_answer_is_as_described(site: Site) -> None:
    """Each route, asked by an owner, by a member and by nobody, keeps to the document."""
    document = await _document(site)
    for route, operation in _described(document).items():
        for who in ("ann", "bob", ""):
            answer = await _call(site, route, who)
            described = operation["responses"][str(answer.status)]
            if "content" not in described:
                assert answer.body == b""
                continue
            schema = described["content"]["application/json"]["schema"]
            assert answer.headers["Content-Type"].startswith("application/json")
            assert _mistakes(document, schema, json.loads(answer.body)) == []
        if route in BODIES:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert _mistakes(document, body, BODIES[route]) == []


async def test_the_document_is_complete_in_itself(site: Site) -> None:
    """Every parameter of a path is described, and every reference leads somewhere."""
    document = await _document(site)
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        named = {each["name"] for each in methods.get("parameters", [])}
        assert named == set(re.findall(r"\{(\w+)\}", path))
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]


_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "array": list,
    "object": dict,
    "null": type(None),
}


def _mistakes(document: dict[str, Any], schema: dict[str, Any], value: object) -> list[str]:
    """Hold a value to the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _mistakes(document, document["components"]["schemas"][name], value)
    if "oneOf" in schema:
        tries = [_mistakes(document, each, value) for each in schema["oneOf"]]
        return [] if tries.count([]) == 1 else [f"{value!r} is none or several of {schema}"]
    if value not in schema.get("enum", [value]) or type(value) is not _TYPES[schema["type"]]:
        return [f"{value!r} is none of {schema}"]
    if isinstance(value, dict):
        return _mistakes_of_object(document, schema, value)
    items = value if isinstance(value, list) else []
    inside = [text for each in items for text in _mistakes(document, schema["items"], each)]
    is_matched = re.search(schema.get("pattern", ""), str(value))
    return inside if is_matched else [f"{value!r} does not match {schema['pattern']}"]


def _mistakes_of_object(
    document: dict[str, Any], schema: dict[str, Any], value: dict[str, Any]
) -> list[str]:
    properties = schema.get("properties")
    if properties is None:
        return []
    lacking = set(schema["required"]) - set(value)
    found = [f"{name} is lacking" for name in lacking]
    for name, each in value.items():
        if name not in properties:
            found.append(f"{name} is not described")
        else:
            found += _mistakes(document, properties[name], each)
    return found


async def test_a_link_needs_its_cookie_and_an_install_its_state(site: Site) -> None:
    """The two routes with a proof of their own refuse before anybody is asked."""
    assert (await site.get(LINK, "ann")).status == 400
    assert (await site.post(f"{LINK}/redeem", {}, "ann")).status == 400
    assert (await site.get(f"{BASE}/oauth_redirect", "ann")).status == 400


async def test_a_program_that_is_not_signed_in_gets_one_same_answer(site: Site) -> None:
    """A 401 has the same bytes for every JSON route, whatever it asks for."""
    paths = (f"{BASE}/workspaces.json", f"{WSW}/users.json", f"{WSW}/audit.json")
    answers = [await site.get(path) for path in paths]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
