"""Edge over real HTTP and a real Postgres; its peers are fakes.

Ids such as EV-18 are rows of tests/fixtures/bad_inputs.tsv.
"""

import asyncio
import gzip
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import aiohttp
import asyncpg
import pytest
from structlog.testing import capture_logs

from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.edge import listener
from interlock_gateway.migrations import DATABASE, EDGE_ROLE
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import verify_slack_grant
from tests.support.edge_site import (
    ACME,
    APP,
    AUTH,
    CALLBACK,
    CODE,
    EVENTS,
    HOME,
    INSTALL,
    KEYS,
    LINK,
    LINKED,
    MEMBER,
    OTHER_CODE,
    PUBLIC,
    REDEEM,
    SIGNING_SECRET,
    SLACK,
    Site,
    audit_event,
    cookies_of,
    event_body,
    fresh_site,
    link_form,
    link_offer,
    people_event,
    refusal,
    request_head,
    serving,
    slack_headers,
    start_install,
    user_mapping,
    without_id,
)


@pytest.fixture
async def site(cluster: ScratchDatabases) -> AsyncIterator[Site]:
    """Serve edge on an empty gateway database."""
    async with fresh_site(cluster) as site:
        yield site


# Slack's requests.


async def test_a_mention_is_stored_once_with_a_grant_that_verifies(site: Site) -> None:
    """A signed event is durable before its 200, with proof of what Slack signed."""
    body = event_body()
    answer = await site.slack(EVENTS, body)
    assert (answer.status, answer.body) == (200, b"")
    [row] = await site.rows()
    assert (row["event_key"], row["kind"], row["lane"], row["team"], bytes(row["body"])) == (
        "Ev0000000001",
        "event",
        "T0ACME:C0GENERAL:1763985600.000100",
        "T0ACME",
        body,
    )
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    grant = verify_slack_grant(row["grant_token"], keys, now=datetime.now(UTC))
    assert (grant.workspace.team_id, grant.slack_user_id, grant.event_key) == (
        "T0ACME",
        "U0ANN",
        "Ev0000000001",
    )
    assert grant.body_sha256 == hashlib.sha256(body).hexdigest()


async def test_no_verification_token_is_stored(site: Site) -> None:
    """What Slack still sends with events, clicks and commands proves nothing to our database."""
    token = "canary0WbapA4vBCDEFasx0q"
    click = {
        "type": "block_actions",
        "api_app_id": APP,
        "team": {"id": "T0ACME"},
        "user": {"id": "U0ANN", "team_id": "T0ACME"},
        "token": token,
    }
    command = {
        "api_app_id": APP,
        "team_id": "T0ACME",
        "channel_id": "C0GENERAL",
        "user_id": "U0ANN",
        "command": "/agents",
        "token": token,
    }
    event = json.dumps({**json.loads(event_body()), "token": token}).encode()
    assert (await site.slack(EVENTS, event)).status == 200
    for path, form in (
        ("interactions", {"payload": json.dumps(click)}),
        ("commands", command),
    ):
        answer = await site.slack(f"/work-apps/slack/{path}", urlencode(form).encode())
        assert answer.status == 200
    rows = await site.rows()
    assert len(rows) == 3
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    for row in rows:
        body = bytes(row["body"])
        assert token not in body.decode()
        grant = verify_slack_grant(row["grant_token"], keys, now=datetime.now(UTC))
        assert grant.body_sha256 == hashlib.sha256(body).hexdigest()


async def test_clicks_and_commands_are_stored_the_same_way(site: Site) -> None:
    """Interactions and commands are acknowledged with an empty 200 once they are stored."""
    payload = {
        "type": "block_actions",
        "api_app_id": APP,
        "team": {"id": "T0ACME"},
        "user": {"id": "U0ANN", "team_id": "T0ACME"},
        "actions": [{"action_id": "stop"}],
    }
    click = aiohttp.FormData({"payload": json.dumps(payload)})().decode().encode()
    command = (
        b"team_id=T0ACME&channel_id=C0GENERAL&user_id=U0ANN&command=%2Finterlock&api_app_id="
        + APP.encode()
    )
    for path, body in (("interactions", click), ("commands", command)):
        answer = await site.slack(f"/work-apps/slack/{path}", body)
        assert (answer.status, answer.body) == (200, b"")
    assert [row["kind"] for row in await site.rows()] == ["interaction", "command"]


async def test_a_replay_and_a_retry_have_no_second_effect(site: Site) -> None:
    """EV-18, EV-47, EV-48, EV-49: one row, whatever is sent again and however."""
    body = event_body()
    assert (await site.slack(EVENTS, body, **{"X-Slack-Retry-Num": "1"})).status == 200
    for again in (body, event_body(event_time=int(time.time()) - 9), event_body("Ev0000000002")):
        assert (await site.slack(EVENTS, again)).status == 200
    assert len(await site.rows()) == 1
    assert (site.count("event", "stored"), site.count("event", "replay")) == (1, 3)


async def test_every_failed_proof_gets_the_same_bytes(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """EV-01 to EV-14, EV-43, EV-45: an empty 401 that tells nothing apart."""
    body = event_body()
    right = slack_headers(body)
    signature, timestamp = right["X-Slack-Signature"], right["X-Slack-Request-Timestamp"]
    attempts: list[dict[str, str]] = [
        {"X-Slack-Signature": ""},
        {"X-Slack-Request-Timestamp": ""},
        {"X-Slack-Request-Timestamp": "abc"},
        {"X-Slack-Request-Timestamp": "1" * 5000},
        {"X-Slack-Request-Timestamp": str(int(timestamp) - 301)},
        {"X-Slack-Signature": signature.upper()},
        {"X-Slack-Signature": f"{signature},{signature}"},
        {"X-Slack-Signature": "v0=" + "b" * 10_000},
        {"X-Slack-Signature": "v0=" + "0" * 64},
    ]
    answers = [await site.slack(EVENTS, body, **changes) for changes in attempts]
    answers += [
        await site.slack(EVENTS, b"ssl_check=1", **{"X-Slack-Signature": "v0=" + "0" * 64}),
        await site.slack(
            EVENTS,
            b'{"type":"url_verification","challenge":"abc"}',
            **{"X-Slack-Signature": "v0=" + "0" * 64},
        ),
    ]
    seen = {
        (each.status, each.body, tuple(item for item in each.headers.items() if item[0] != "Date"))
        for each in answers
    }
    assert len(seen) == 1
    assert {each[:2] for each in seen} == {(401, b"")}
    assert site.count("event", "bad_signature") == len(attempts) + 2
    assert signature[3:] not in capsys.readouterr().err
    assert await site.rows() == []


@pytest.mark.parametrize("order", [1, -1])
async def test_two_headers_and_odd_bytes_are_no_proof(site: Site, order: int) -> None:
    """EV-03, EV-08, EV-09: repeated headers and bytes above 127 are refused like the rest."""
    body = event_body()
    right = slack_headers(body)
    stamp, good = right["X-Slack-Request-Timestamp"], right["X-Slack-Signature"].encode()
    bad = b"v0=" + b"0" * 64
    for signatures in ([good, bad][::order], [b"v0=\xff" + good[4:]]):
        lines = b"".join(b"X-Slack-Signature: " + each + b"\r\n" for each in signatures)
        head = request_head(body, lines + f"X-Slack-Request-Timestamp: {stamp}\r\n".encode())
        assert (await site.raw(head + body)).startswith(b"HTTP/1.1 401 ")
    twice = f"X-Slack-Request-Timestamp: {stamp}\r\n".encode() * 2
    head = request_head(body, b"X-Slack-Signature: " + good + b"\r\n" + twice)
    assert (await site.raw(head + body)).startswith(b"HTTP/1.1 401 ")


async def test_the_previous_secret_is_taken_while_it_is_configured(
    cluster: ScratchDatabases,
) -> None:
    """EV-23: both secrets verify during the change."""
    urls = await cluster.database(DATABASE)
    changes = {
        "slack_signing_secret_file": Secret("a-new-signing-secret-of-slack"),
        "slack_previous_signing_secret_file": Secret(SIGNING_SECRET),
    }
    async with serving(urls.roles[EDGE_ROLE], changes=changes) as site:
        assert (await site.slack(EVENTS, event_body())).status == 200
    del changes["slack_previous_signing_secret_file"]
    async with serving(urls.roles[EDGE_ROLE], changes=changes) as site:
        assert (await site.slack(EVENTS, event_body())).status == 401


async def test_the_challenge_is_repeated_only_to_slack(site: Site) -> None:
    """EV-42: as plain text that no browser interprets."""
    answer = await site.slack(EVENTS, b'{"type":"url_verification","challenge":"3eZbrw1aBm2"}')
    assert (answer.status, answer.text) == (200, "3eZbrw1aBm2")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"type":"\xff"}', 400, id="EV-21"),
        pytest.param(b"{" * 100_000, 400, id="EV-35"),
        pytest.param(b'{"type":"url_verification","challenge":"<script> x"}', 400, id="EV-44"),
        pytest.param(event_body(event_id=""), 400, id="EV-46"),
        pytest.param(event_body(event_time=int(time.time()) + 86_400), 400, id="from-tomorrow"),
        pytest.param(event_body(api_app_id="A0OTHER"), 403, id="EV-41"),
        pytest.param(event_body(authorizations=[]), 200, id="EV-51"),
        pytest.param(b"team_id=T0ACME", 415, id="a-form-of-slacks-at-the-wrong-url"),
    ],
)
async def test_what_slack_signed_is_still_read_strictly(
    site: Site, body: bytes, status: int
) -> None:
    """A signature does not make a request well-formed or ours; none of these is stored."""
    answer = await site.slack(EVENTS, body)
    assert (answer.status, answer.body) == (status, b"")
    assert await site.rows() == []


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({"Content-Encoding": "gzip"}, 415, id="EV-25"),
        pytest.param({"Content-Type": "text/plain"}, 415, id="EV-33-text"),
        pytest.param(
            {"Content-Type": "multipart/form-data; boundary=x"}, 415, id="EV-33-multipart"
        ),
        pytest.param({"Content-Type": "application/json; charset=utf-16"}, 415, id="EV-34"),
        pytest.param({"Content-Type": "application/json; charset=utf-8"}, 200, id="utf-8"),
    ],
)
async def test_only_plain_json_and_forms_are_read(
    site: Site, changes: dict[str, str], status: int
) -> None:
    """Other types, charsets and any content coding are refused before the body."""
    assert (await site.slack(EVENTS, event_body(), **changes)).status == status


async def test_a_compressed_body_is_not_inflated(site: Site) -> None:
    """EV-25, EV-26: a bomb costs its own bytes, signed or not."""
    bomb = gzip.compress(b"0" * 10_000_000)
    assert (await site.slack(EVENTS, bomb, **{"Content-Encoding": "gzip"})).status == 415


async def test_a_large_body_is_refused_before_it_is_read(site: Site) -> None:
    """EV-27, EV-28: by its announcement, or as soon as it has grown too large."""
    announced = await site.raw(request_head(b"", b"", length=1024 * 1024 + 1))
    assert announced.startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = (
        b"POST /work-apps/slack/events HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    grown = await site.raw(head + chunk * 17)
    assert grown.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in grown


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"Transfer-Encoding: chunked\r\n", id="EV-29"),
        pytest.param(b"Content-Length: 7\r\n", id="EV-30"),
        pytest.param(b"Host: second.example\r\n", id="two-hosts"),
        pytest.param(b"X-Secret-In-Header: " + b"z" * 20_000 + b"\r\n", id="huge-header"),
        pytest.param(b"Broken Header: zzzzzz\r\n", id="broken-header"),
    ],
)
async def test_ambiguous_framing_is_refused_without_an_echo(
    site: Site, lines: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that two parsers could frame differently is 400, closed, and not quoted."""
    answer = await site.raw(request_head(b"{}", lines) + b"{}")
    assert re.match(rb"HTTP/1\.[01] 400 ", answer)
    assert b"zzz" not in answer
    assert b"second" not in answer
    assert "zzz" not in capsys.readouterr().err


async def test_a_body_that_never_comes_is_given_up(site: Site) -> None:
    """EV-32: announced bytes that stay away end in 408 within 5 s."""
    started = time.monotonic()
    answer = await site.raw(request_head(b"", b"", length=10))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 5


async def test_a_trickled_head_is_given_up_and_holds_up_nobody(site: Site) -> None:
    """EV-31: each of many sockets that never finish a head is closed within 5 s."""

    async def trickle() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        try:
            writer.write(b"POST /work-apps/slack/events HTTP/1.1\r\nX: ")
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                writer.write(b"x")
                await asyncio.wait({reading}, timeout=0.5)
            return reading.result()
        finally:
            writer.close()

    started = time.monotonic()
    trickles = [asyncio.create_task(trickle()) for _ in range(200)]
    await asyncio.sleep(0)
    assert (await site.slack(EVENTS, event_body())).status == 200
    assert time.monotonic() - started < 1
    answers = await asyncio.gather(*trickles)
    assert time.monotonic() - started < 6
    assert all(each.startswith(b"HTTP/1.1 408 ") for each in answers)


async def test_an_idle_connection_is_kept_between_requests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second request on one connection is served: waiting between requests is no offence."""
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.2)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
        for _ in range(2):
            url = f"http://127.0.0.1:{site.port}{HOME}"
            async with http.get(url, headers={"Host": "127.0.0.1:8080"}) as response:
                assert response.status == 200
            # Longer than a head may take.
            await asyncio.sleep(0.4)


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """Listen like a database that never says a word."""
    done = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        done.set()
        server.close()


async def test_a_silent_database_is_answered_with_503_in_time(silent_port: int) -> None:
    """HT-06: Slack is told to try again within 2.5 s, long before it gives up."""
    url = Secret(f"postgresql://edge:x@127.0.0.1:{silent_port}/gateway")
    async with serving(url) as site:
        started = time.monotonic()
        answer = await site.slack(EVENTS, event_body())
        assert (answer.status, answer.body) == (503, b"")
        assert time.monotonic() - started < 2.5
        assert "X-Slack-No-Retry" not in answer.headers


async def test_a_database_that_is_away_is_answered_with_503(unused_tcp_port: int) -> None:
    """HT-06: an event that could not be stored is never acknowledged."""
    async with serving(Secret(f"postgresql://edge:x@127.0.0.1:{unused_tcp_port}/gateway")) as site:
        assert (await site.slack(EVENTS, event_body())).status == 503
        assert site.count("event", "unavailable") == 1


async def test_edge_cannot_read_back_what_it_stored(cluster: ScratchDatabases) -> None:
    """The role of the process that faces the internet has no way to a body or a grant."""
    urls = await cluster.database(DATABASE)
    edge = await asyncpg.connect(urls.roles[EDGE_ROLE].reveal())
    try:
        for table in ("inbox_event", "lane", "resume_intent", "run", "browser_attempt"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await edge.fetch(f"SELECT * FROM gateway.{table}")  # noqa: S608 - Names are above.
    finally:
        await edge.close()


# The frame.


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:8080.evil.example", "127.0.0.1", ""])
async def test_another_host_is_not_ours(site: Site, host: str) -> None:
    """HT-03: the Host header is compared, and builds no URL."""
    answer = await site.ask("GET", HOME, headers={"Host": host, "X-Forwarded-Host": "evil.example"})
    assert answer.status == 421
    assert "evil" not in answer.text


@pytest.mark.parametrize(
    "target",
    [
        "//work-apps//slack/",
        "/work-apps/slack/events/",
        "/work-apps/slack/events;x=1",
        "/work-apps/%2e%2e/work-apps/slack/",
        "/work-apps/slack/../slack/",
        "/work-apps/slack/%6cink",
        "/work-apps/slack/workspaces/a%2Fb",
        "http://127.0.0.1:8080/work-apps/slack/",
        "/nowhere-<script>",
    ],
)
async def test_a_path_that_could_be_read_two_ways_is_nowhere(site: Site, target: str) -> None:
    """HT-02: nothing is normalised; nothing of it comes back."""
    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n"
    answer = await site.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"script" not in answer


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_refused_without_an_echo(site: Site, method: str) -> None:
    """HT-01: nothing is reflected, least of all by TRACE."""
    answer = await site.ask(method, HOME, headers={"X-Canary": "canary"})
    assert answer.status == 405
    assert "canary" not in answer.text
    assert "GET" in answer.headers["Allow"]


async def test_every_page_forbids_what_it_does_not_need(site: Site) -> None:
    """LK-02: no store, no referrer, no frame, no foreign resource, no script at all."""
    _, _, receipt = await _link(site)
    site.identity.offers[CODE] = link_offer()
    for answer in (
        *[await site.get(path) for path in (HOME, INSTALL, LINK, "/nowhere")],
        await site.get(HOME, "ann"),
        await site.get(LINK, "ann", link=CODE),
        await site.get(LINKED, "ann", linked=receipt),
    ):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "<script" not in answer.text
        assert not re.search(
            r'(src|href)="(?!/|http://127\.0\.0\.1:80)', answer.text.replace("#main", "/")
        )


async def test_files_may_be_kept_and_nothing_else(site: Site) -> None:
    """Static files carry their version; other names are nowhere."""
    page = (await site.get(HOME)).text
    style = re.search(r'href="(/work-apps/slack/static/style\.css\?v=[^"]+)"', page)
    assert style
    answer = await site.get(style[1])
    assert answer.status == 200
    assert "immutable" in answer.headers["Cache-Control"]
    assert (await site.get("/favicon.ico")).headers["Content-Type"] == "image/svg+xml"
    assert (await site.get("/work-apps/slack/static/base.html")).status == 404


async def test_a_forged_forwarding_header_changes_nothing(site: Site) -> None:
    """HT-04: the peer's address counts, unless the peer is a proxy of ours."""
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    await site.ask("GET", HOME, headers=headers | cookies_of("ann", {}))
    assert set(site.identity.addresses) == {"127.0.0.1"}


async def test_our_own_proxy_is_believed(cluster: ScratchDatabases) -> None:
    """The nearest address that is no proxy of ours is the browser's."""
    urls = await cluster.database(DATABASE)
    proxies = {"trusted_proxies": "127.0.0.0/8,10.0.0.0/8"}
    async with serving(urls.roles[EDGE_ROLE], changes=proxies) as site:
        headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 10.1.2.3"}
        await site.ask("GET", HOME, headers=headers | cookies_of("ann", {}))
        assert set(site.identity.addresses) == {"203.0.113.9"}


async def test_an_unforeseen_error_tells_nothing(site: Site) -> None:
    """A bug is a page with a request id; its text stays inside."""
    site.identity.fail["authenticate"] = ValueError("xoxb-canary")  # type: ignore[assignment]
    answer = await site.get(HOME, "ann")
    assert answer.status == 500
    assert "canary" not in answer.text
    assert answer.headers["X-Request-Id"] in answer.text


# Who is there.


async def test_the_root_leads_to_the_dashboard(site: Site) -> None:
    """`/` and the bare path lead to the page."""
    for path in ("/", "/work-apps/slack"):
        answer = await site.get(path)
        assert (answer.status, answer.location) == (303, HOME)


async def test_nobody_gets_the_welcome_page_and_a_way_in(site: Site) -> None:
    """Whoever is not signed in learns what this is, and comes back after signing in."""
    for who in ("", "nobody", "a" * 3000):
        answer = await site.get(HOME, who)
        assert answer.status == 200
        assert "callbackURL=http%3A%2F%2F127.0.0.1%3A8080%2Fwork-apps%2Fslack%2F" in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (refusal(Kind.FORBIDDEN, "NOT_A_MEMBER"), 403),
        (refusal(Kind.UNAVAILABLE, "AUTH_SERVER_UNAVAILABLE"), 503),
    ],
)
async def test_a_session_that_is_worth_nothing_is_explained(
    site: Site, error: RemoteError, status: int
) -> None:
    """No organization, or no auth server: a page, not the dashboard."""
    site.identity.fail["authenticate"] = error
    assert (await site.get(HOME, "ann")).status == status


# Installing.


async def test_an_install_goes_to_slack_and_comes_back_once(site: Site) -> None:
    """OA-01: the state works once, and the vault gets the grant of whoever started."""
    state, cookie = await start_install(site)
    answer = await site.get(f"{CALLBACK}?code=1.2.abc&state={state}", "ann", install=cookie)
    assert (answer.status, answer.location) == (303, f"{HOME}?installed=T0ACME")
    state_sha256 = hashlib.sha256(state.encode()).hexdigest()
    assert site.vault.completed == [
        (f"install-grant-of-acme-{state_sha256}", "1.2.abc", f"{PUBLIC}{CALLBACK}")
    ]
    again = await site.get(f"{CALLBACK}?code=1.2.abc&state={state}", "ann", install=cookie)
    assert again.status == 400
    assert len(site.vault.completed) == 1


async def test_the_state_is_stored_as_a_hash_only(site: Site) -> None:
    """Whoever reads the table can finish nobody's install."""
    state, cookie = await start_install(site)
    row = str(await site.owner.fetchrow("SELECT * FROM gateway.oauth_state"))
    assert state not in row
    assert cookie not in row


async def test_of_many_callbacks_one_exchanges_the_code(site: Site) -> None:
    """OA-02: eight at once, one exchange, seven refusals."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?code=abc&state={state}"
    answers = await asyncio.gather(*(site.get(path, "ann", install=cookie) for _ in range(8)))
    assert sorted(each.status for each in answers) == [303] + [400] * 7
    assert len(site.vault.completed) == 1


async def test_a_state_works_only_in_its_browser_session_and_time(site: Site) -> None:
    """OA-01, OA-03, OA-04: no cookie, another one, another session, ten minutes."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?code=abc&state={state}"
    assert (await site.get(path, "ann")).status == 400
    assert (await site.get(path, "ann", install="x" * 43)).status == 400
    assert (await site.get(f"{CALLBACK}?code=abc", "ann", install=cookie)).status == 400
    unknown = f"{CALLBACK}?code=abc&state={'s' * 43}"
    assert (await site.get(unknown, "ann", install=cookie)).status == 400
    assert (await site.get(path, "eve", install=cookie)).status == 403
    expired, late_cookie = await start_install(site)
    await site.owner.execute("UPDATE gateway.oauth_state SET expires_at = now()")
    late = await site.get(f"{CALLBACK}?code=abc&state={expired}", "ann", install=late_cookie)
    assert late.status == 400
    assert site.vault.completed == []


@pytest.mark.parametrize("code", ["", "a" * 10_000, "a%0d%0ab", "a%20b", "%3Cscript%3E"])
async def test_an_odd_code_is_refused_and_the_state_kept(site: Site, code: str) -> None:
    """OA-06: a code that Slack cannot have made is not exchanged."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?code={code}&state={state}"
    answer = await site.ask("GET", path, headers=cookies_of("ann", {"install": cookie}))
    assert answer.status in {400, 414}
    assert site.vault.completed == []


async def test_a_no_at_slack_is_a_page_and_ends_the_install(site: Site) -> None:
    """OA-07: cancelled, state spent, nothing reflected."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?error=access_denied&error_description=canary&state={state}"
    answer = await site.get(path, "ann", install=cookie)
    assert answer.status == 200
    assert "canary" not in answer.text
    assert (await site.get(path, "ann", install=cookie)).status == 400
    state, cookie = await start_install(site)
    odd = await site.get(f"{CALLBACK}?error=canary&state={state}", "ann", install=cookie)
    assert odd.status == 502
    assert "canary" not in odd.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (refusal(Kind.CONFLICT, "WORKSPACE_TAKEN"), 409),
        (refusal(Kind.PRECONDITION, "SCOPES_MISSING"), 422),
        (refusal(Kind.PRECONDITION, "OAUTH_CODE_REFUSED"), 502),
        (refusal(Kind.UNAVAILABLE, "SLACK_ANSWER_UNUSABLE"), 502),
        (refusal(Kind.UNAVAILABLE, "SLACK_UNAVAILABLE"), 503),
        (refusal(Kind.UNAVAILABLE, "KMS_UNAVAILABLE"), 503),
        (refusal(Kind.PRECONDITION, "INSTALL_NOT_OPEN"), 400),
        (refusal(Kind.INTERNAL, "INTERNAL"), 500),
    ],
)
async def test_every_end_of_an_install_has_a_page(
    site: Site, error: RemoteError, status: int
) -> None:
    """OA-09 to OA-12: what the vault refuses is told apart, with the request id."""
    state, cookie = await start_install(site)
    site.vault.fail = error
    answer = await site.get(f"{CALLBACK}?code=abc&state={state}", "ann", install=cookie)
    assert answer.status == status
    assert answer.headers["X-Request-Id"] in answer.text


async def test_scopes_beyond_those_asked_for_are_told(site: Site) -> None:
    """OA-11: the workspace is installed, and an operator's log names what it has besides."""
    state, cookie = await start_install(site)
    site.vault.installed = replace(site.vault.installed, extra_scopes=("im:read", "files:read"))
    with capture_logs() as lines:
        answer = await site.get(f"{CALLBACK}?code=1.2.abc&state={state}", "ann", install=cookie)
    assert answer.status == 303
    (drift,) = [line for line in lines if line["event"] == "scope_drift"]
    assert (drift["log_level"], drift["scopes"]) == ("warning", ["files:read", "im:read"])


async def test_only_administrators_of_the_tenant_install(site: Site) -> None:
    """OA-05: nobody 401, a member 403, for another tenant 403."""
    assert (await site.get(INSTALL)).status == 401
    assert (await site.get(INSTALL, "bob")).status == 403
    token = (await site.get(INSTALL, "ann")).form_token()
    assert (await site.post(INSTALL, {"csrf": token})).status == 401
    foreign = await site.post(f"{INSTALL}?tenant_id=umbra", {"csrf": token}, "ann")
    assert foreign.status == 403
    in_form = await site.post(INSTALL, {"csrf": token, "tenant_id": "umbra"}, "ann")
    assert in_form.status == 403
    assert await site.owner.fetchval("SELECT count(*) FROM gateway.oauth_state") == 0


async def test_an_install_begun_at_slack_asks_to_sign_in_and_comes_back(site: Site) -> None:
    """Slack's direct install URL leads a stranger to the sign-in, and then to the question."""
    stranger = await site.get(INSTALL)
    assert stranger.status == 401
    assert f"{AUTH}/sign-in?callbackURL={quote(PUBLIC + INSTALL, safe='')}" in stranger.text
    question = (await site.get(INSTALL, "ann")).text
    assert f'action="{INSTALL}"' in question
    assert await site.owner.fetchval("SELECT count(*) FROM gateway.oauth_state") == 0


async def test_where_to_go_afterwards_is_never_the_visitors_to_say(site: Site) -> None:
    """OA-08, OA-14: redirect parameters and forwarded hosts are ignored."""
    token = (await site.get(INSTALL, "ann")).form_token()
    fields = {"csrf": token, "redirect": "//evil.example", "next": "javascript:alert(1)"}
    answer = await site.post(f"{INSTALL}?next=//evil.example", fields, "ann")
    assert answer.location.startswith(f"{SLACK}/oauth/v2/authorize?")
    assert "evil" not in answer.location


# Forms.


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no-origin"),
        pytest.param({"Origin": "https://evil.example"}, id="other-origin"),
        pytest.param({"Origin": "null"}, id="hidden-origin"),
        pytest.param({"Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"}, id="cross-site"),
        pytest.param({"Origin": PUBLIC, "Sec-Fetch-Site": "same-site"}, id="same-site"),
        pytest.param({"Origin": "null", "Sec-Fetch-Site": "none"}, id="none"),
    ],
)
async def test_a_form_from_elsewhere_is_refused(site: Site, headers: dict[str, str]) -> None:
    """LK-03: with the right token too, a form counts only from a page of ours."""
    token = (await site.get(INSTALL, "ann")).form_token()
    assert (await site.post(INSTALL, {"csrf": token}, "ann", headers)).status == 403


async def test_a_form_counts_from_a_page_of_ours(site: Site) -> None:
    """Both ways in which a browser says that the page was ours."""
    for headers in ({"Origin": PUBLIC}, {"Origin": "null", "Sec-Fetch-Site": "same-origin"}):
        token = (await site.get(INSTALL, "ann")).form_token()
        assert (await site.post(INSTALL, {"csrf": token}, "ann", headers)).status == 303


async def test_a_form_token_is_of_one_session_and_one_action(site: Site) -> None:
    """LK-03: another session's, another action's, a cut or absent token is refused."""
    token = (await site.get(INSTALL, "ann")).form_token()
    site.identity.offers[CODE] = link_offer()
    for wrong in ("", token[:-1], "0" + token[1:], token + "x"):
        assert (await site.post(INSTALL, {"csrf": wrong}, "ann")).status == 403
    assert (await site.post(INSTALL, {"csrf": token}, "eve")).status == 403
    redeem = {"csrf": token, "confirm": "yes"}
    assert (await site.post(REDEEM, redeem, "ann", link=CODE)).status == 403
    assert CODE in site.identity.offers


# Linking.


async def test_opening_a_link_moves_the_code_and_does_nothing_else(site: Site) -> None:
    """LK-01: a previewer spends nothing; the code leaves the address at once."""
    site.identity.offers[CODE] = link_offer()
    answer = await site.get(f"{LINK}?code={CODE}")
    assert (answer.status, answer.location) == (303, LINK)
    assert answer.cookie("link") == CODE
    cookie = answer.headers["Set-Cookie"]
    for flag in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert flag in cookie
    assert "Domain" not in cookie
    life = re.search(r"Max-Age=(\d+)", cookie)
    assert life
    # As long as a code works, which is its whole use.
    assert 0 < int(life[1]) <= 3600
    assert site.identity.described == 0


async def test_whoever_is_not_signed_in_signs_in_and_comes_back(site: Site) -> None:
    """The way back is the clean address, without the code."""
    answer = await site.get(LINK, link=CODE)
    assert answer.status == 303
    assert answer.location == (
        f"{AUTH}/sign-in?callbackURL=http%3A%2F%2F127.0.0.1%3A8080%2Fwork-apps%2Fslack%2Flink"
    )


async def test_linking_names_both_sides_links_once_and_resumes_the_question(site: Site) -> None:
    """The person sees workspace, Slack user and account; one click links and answers."""
    site.identity.offers[CODE] = link_offer()
    page = await site.get(LINK, "ann", link=CODE)
    assert page.status == 200
    for name in ("Acme Slack", "U0ANN", "ann@acme.example"):
        assert name in page.text
    fields, cookie = {"csrf": page.form_token(), "confirm": "yes"}, page.cookie("link")
    answer = await site.post(REDEEM, fields, "ann", link=cookie)
    assert (answer.status, answer.location) == (303, LINKED)
    assert answer.cookie("link") == '""'
    result = await site.get(LINKED, "ann", linked=answer.cookie("linked"))
    assert result.status == 200
    for text in ("You are linked", "being answered", "Acme Slack", "U0ANN", "ann@acme.example"):
        assert text in result.text
    assert site.worker.resumed == ["resume-grant"]
    again = await site.post(REDEEM, fields, "ann", link=cookie)
    assert again.status == 410
    assert site.worker.resumed == ["resume-grant"]


async def _link(site: Site) -> tuple[dict[str, str], str, str]:
    """Link; return the form that was sent, the cookie that went with it, and the receipt."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    answer = await site.post(REDEEM, fields, "ann", link=cookie)
    assert answer.status == 303
    return fields, cookie, answer.cookie("linked")


async def test_reload_back_and_a_second_click_lead_to_the_result(site: Site) -> None:
    """Whatever the browser asks for again after a link, it is told what came of it."""
    fields, cookie, receipt = await _link(site)
    before = site.identity.described
    for _ in range(2):
        assert (await site.get(LINKED, "ann", linked=receipt)).status == 200
    ways_back = [
        await site.get(LINK, "ann", linked=receipt),
        await site.get(LINK, "ann", linked=receipt, link=cookie),
        await site.post(REDEEM, fields, "ann", linked=receipt),
        await site.post(REDEEM, fields, "ann", linked=receipt, link=cookie),
    ]
    assert [(each.status, each.location) for each in ways_back] == [(303, LINKED)] * 4
    assert site.identity.described == before
    assert site.worker.resumed == ["resume-grant"]


async def test_a_receipt_hides_no_other_link(site: Site) -> None:
    """Another link of the same browser is asked about, and another dead one is dead."""
    _, _, receipt = await _link(site)
    site.identity.offers[OTHER_CODE] = link_offer(slack_user_id="U0TWO")
    page = await site.get(LINK, "ann", linked=receipt, link=OTHER_CODE)
    assert (page.status, "U0TWO" in page.text) == (200, True)
    dead = await site.get(LINK, "ann", linked=receipt, link="d" * 43)
    assert dead.status == 410


async def test_a_receipt_is_of_one_session_and_ends_with_the_link(site: Site) -> None:
    """Somebody else's, a forged or an absent one shows nothing; unlinking takes it away."""
    _, _, receipt = await _link(site)
    for who, shown in (("bob", receipt), ("ann", ""), ("ann", f"A{receipt}"), ("ann", "x.y")):
        answer = await site.get(LINKED, who, linked=shown)
        assert (answer.status, "U0ANN" in answer.text) == (400, False)
    signed_out = await site.get(LINKED, linked=receipt)
    assert signed_out.location == f"{AUTH}/sign-in?callbackURL={quote(PUBLIC + LINKED, safe='')}"
    site.identity.mappings = [user_mapping()]
    page = await site.get(f"{HOME}workspaces/wsw_1", "ann")
    token = page.form_token()
    unlinked = await site.post(
        f"{HOME}workspaces/wsw_1/unlink?mapping=wsum_1", {"csrf": token}, "ann"
    )
    assert unlinked.cookie("linked") == '""'


async def test_a_worker_that_cannot_be_asked_costs_nothing(site: Site) -> None:
    """The link stands; the worker's sweep finds the question."""
    site.identity.offers[CODE] = link_offer()
    site.worker.fail = refusal(Kind.UNAVAILABLE, "PEER_UNAVAILABLE")
    fields, cookie = await link_form(site)
    answer = await site.post(REDEEM, fields, "ann", link=cookie)
    result = await site.get(LINKED, "ann", linked=answer.cookie("linked"))
    assert "in a moment" in result.text


async def test_nothing_is_linked_without_the_confirmation(site: Site) -> None:
    """LK-04: a form without the button's field asks again."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    answer = await site.post(REDEEM, {"csrf": fields["csrf"]}, "ann", link=cookie)
    assert answer.status == 422
    assert CODE in site.identity.offers


async def test_differing_addresses_are_confirmed_apart(site: Site) -> None:
    """Two e-mail addresses need the second confirmation."""
    site.identity.offers[CODE] = link_offer(slack_email="other@mail.example", emails_differ=True)
    fields, cookie = await link_form(site)
    answer = await site.post(REDEEM, fields, "ann", link=cookie)
    assert answer.status == 422
    assert "both addresses" in answer.text
    fields = {"csrf": answer.form_token(), "confirm": "yes", "emails_differ": "yes"}
    assert (await site.post(REDEEM, fields, "ann", link=answer.cookie("link"))).status == 303


@pytest.mark.parametrize(
    ("slack_email", "emails_differ", "advice"),
    [
        ("other@mail.example", True, "the account that has the Slack user"),
        ("", False, "must be allowed to see e-mail addresses"),
        ("ann@acme.example", False, "Verify it"),
    ],
    ids=["another", "unknown", "unverified"],
)
async def test_a_tenants_rule_about_addresses_is_told_before_the_form(
    site: Site, slack_email: str, advice: str, *, emails_differ: bool
) -> None:
    """No button that would be refused; a form from before the rule is told the same."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    site.identity.offers[CODE] = link_offer(
        slack_email=slack_email, emails_differ=emails_differ, is_email_refused=True
    )
    page = await site.get(LINK, "ann", link=CODE)
    sent = await site.post(REDEEM, fields | {"emails_differ": "yes"}, "ann", link=cookie)
    for answer in (page, sent):
        assert answer.status == 403
        assert "The two addresses must match" in answer.text
        assert advice in answer.text
        assert "<form" not in answer.text
    assert CODE in site.identity.offers


async def test_only_the_link_that_was_shown_is_redeemed(site: Site) -> None:
    """A code that was slipped in after the page was shown is not redeemed by its form."""
    site.identity.offers |= {CODE: link_offer(), OTHER_CODE: link_offer(slack_user_id="U0EVE")}
    fields, _ = await link_form(site)
    _, other_cookie = await link_form(site, OTHER_CODE)
    assert (await site.post(REDEEM, fields, "ann", link=other_cookie)).status == 403
    assert len(site.identity.offers) == 2


async def test_refused_links_have_their_own_pages(site: Site) -> None:
    """LK-05 to LK-11: spent, unknown, another tenant's, linked elsewhere."""
    assert (await site.get(LINK, "ann", link=CODE)).status == 410
    site.identity.offers[CODE] = link_offer()
    assert (await site.get(LINK, "eve", link=CODE)).status == 403
    site.identity.fail["redeem"] = refusal(Kind.CONFLICT, "USER_LINKED_ELSEWHERE")
    fields, cookie = await link_form(site)
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 409
    assert CODE in site.identity.offers


@pytest.mark.parametrize("code", ["", "x", "a" * 10_000, "a%00b", "not+base64url!"])
async def test_what_cannot_be_a_code_looks_like_one_that_is_spent(site: Site, code: str) -> None:
    """LK-07: the page is the same but for its status; identity is not asked."""
    answer = await site.get(f"{LINK}?code={code}")
    assert answer.status in {400, 414}
    assert "Set-Cookie" not in answer.headers
    if code != "a" * 10_000:
        spent = await site.get(LINK, "ann", link=CODE)
        assert "This link does not work any more" in answer.text
        assert "This link does not work any more" in spent.text


async def test_guessing_links_is_slowed_down(site: Site) -> None:
    """LK-12: the eleventh redeem within a minute is refused, with a time to wait."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    del site.identity.offers[CODE]
    answers = [await site.post(REDEEM, fields, "ann", link=cookie) for _ in range(11)]
    assert [each.status for each in answers] == [410] * 10 + [429]
    assert answers[-1].headers["Retry-After"] == "60"


async def test_an_address_is_slowed_down_whoever_sits_there(site: Site) -> None:
    """LK-12: thirty redeems a minute from one address, over all sessions; looking stays free."""
    for number in range(4):
        person = replace(MEMBER, user_id=f"u_{number}", session_ref=f"session-{number}")
        site.identity.people[f"guest-{number}"] = person
    answers = []
    for number in range(31):
        who = f"guest-{number // 10}"
        site.identity.offers[CODE] = link_offer()
        fields, cookie = await link_form(site, who=who)
        del site.identity.offers[CODE]
        answers.append(await site.post(REDEEM, fields, who, link=cookie))
    assert [each.status for each in answers] == [410] * 30 + [429]
    assert answers[-1].headers["Retry-After"] == "60"


async def test_looking_at_links_is_slowed_down_apart(site: Site) -> None:
    """The 31st look within a minute is refused, with a time to wait; redeeming is not."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    answers = [await site.get(LINK, "ann", link=CODE) for _ in range(30)]
    assert [each.status for each in answers] == [200] * 29 + [429]
    assert answers[-1].headers["Retry-After"] == "60"
    assert (await site.get(LINK, "ada", link=CODE)).status == 200
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 303


async def test_replicas_count_together(cluster: ScratchDatabases) -> None:
    """Whoever changes to another replica after ten tries has had ten tries there, too."""
    urls = await cluster.database(DATABASE)
    async with (
        serving(urls.roles[EDGE_ROLE]) as one,
        serving(urls.roles[EDGE_ROLE]) as two,
    ):
        one.identity.offers[CODE] = link_offer()
        fields, cookie = await link_form(one)
        del one.identity.offers[CODE]
        replicas = [one, two] * 5 + [two]
        answers = [await each.post(REDEEM, fields, "ann", link=cookie) for each in replicas]
        assert [each.status for each in answers] == [410] * 10 + [429]
        assert answers[-1].headers["Retry-After"] == "60"


async def test_names_from_slack_are_shown_and_not_interpreted(site: Site) -> None:
    """LK-14: escaped, cut to 80 characters, without invisible ones."""
    name = "<img src=x onerror=alert(1)>\u202e\u200b" + "n" * 10_000
    site.identity.offers[CODE] = link_offer(slack_display_name=name)
    page = await site.get(LINK, "ann", link=CODE)
    assert "<img src=x" not in page.text
    assert "&lt;img src=x" in page.text
    assert "\u202e" not in page.text
    assert "n" * 80 not in page.text


# Workspaces.


async def test_the_dashboard_shows_the_tenants_workspaces_only(site: Site) -> None:
    """An owner sees theirs, with the button; nothing of another tenant's."""
    page = (await site.get(HOME, "ann")).text
    assert "Acme Slack" in page
    assert "Umbra" not in page
    assert f'action="{INSTALL}"' in page
    assert f"{SLACK}/app_redirect?app={APP}&amp;team=T0ACME" in page


async def test_a_member_sees_why_they_cannot_install(site: Site) -> None:
    """No button that would be refused."""
    for workspaces in ([ACME], []):
        site.identity.workspaces["acme"] = workspaces
        page = (await site.get(HOME, "bob")).text
        assert f'action="{INSTALL}"' not in page
        assert "owner or an admin" in page


async def test_a_workspace_that_needs_a_reinstall_says_what_to_do(site: Site) -> None:
    """Who may install it again is sent to where the button is; who may not, to who may."""
    site.identity.workspaces["acme"] = [replace(ACME, status="needs_reinstall")]
    path = "/work-apps/slack/workspaces/wsw_1"
    owner, member = (await site.get(path, "ann")).text, (await site.get(path, "bob")).text
    assert "Needs a reinstall" in owner
    assert "Install the app again from" in owner
    assert "Ask an owner or admin" in member
    assert "Install the app again from" not in member
    dashboard = (await site.get(HOME, "ann")).text
    assert ">Reinstall</button>" in dashboard
    assert "app_redirect" not in dashboard
    site.identity.workspaces["acme"] = [ACME]
    assert "Needs a reinstall" not in (await site.get(path, "ann")).text


async def test_scopes_that_differ_are_shown_to_who_can_install_again(site: Site) -> None:
    """What is missing comes with the button; what is too much, with what takes it back."""
    path = "/work-apps/slack/workspaces/wsw_1"
    site.identity.workspaces["acme"] = [replace(ACME, missing_scopes=("files:write",))]
    for page in (HOME, path):
        text = (await site.get(page, "ann")).text
        assert "Missing: <code>files:write</code>. Install the app again" in text
        assert ">Reinstall</button>" in text
        assert "files:write" not in (await site.get(page, "bob")).text
    hostile = ("im:read", "<script>canary</script>")
    site.identity.workspaces["acme"] = [replace(ACME, extra_scopes=hostile)]
    for page in (HOME, path):
        text = (await site.get(page, "ann")).text
        assert "more permissions than the app asks for: <code>im:read</code>, " in text
        assert "uninstall the app and add it again" in text
        assert ">Reinstall</button>" not in text
        assert "<script>canary" not in text
    content = json.loads((await site.get("/work-apps/slack/workspaces.json", "ann")).body)
    assert content["workspaces"][0]["extraScopes"] == list(hostile)
    site.identity.workspaces["acme"] = [replace(ACME, status="uninstalled", extra_scopes=hostile)]
    assert "im:read" not in (await site.get(HOME, "ann")).text


async def test_the_notice_names_a_workspace_of_the_tenant_or_nothing(site: Site) -> None:
    """An address that somebody made up cannot put words on the page."""
    assert "Interlock is installed in" in (await site.get(f"{HOME}?installed=T0ACME", "ann")).text
    assert "installed again" in (await site.get(f"{HOME}?again=T0ACME", "ann")).text
    for query in ("installed=T0UMBRA", "installed=<b>canary</b>", "again="):
        page = (await site.get(f"{HOME}?{query}", "ann")).text
        assert "Interlock is installed" not in page
        assert "canary" not in page


async def test_another_tenants_workspace_is_as_absent_as_an_unknown_one(site: Site) -> None:
    """JA-01: the answers differ in nothing but the request id."""
    for suffix in ("", "/audit", "/audit.json"):
        foreign = await site.get(f"/work-apps/slack/workspaces/wsw_9{suffix}", "ann")
        unknown = await site.get(f"/work-apps/slack/workspaces/wsw_0{suffix}", "ann")
        assert foreign.status == unknown.status == 404
        assert without_id(foreign) == without_id(unknown)


async def test_linked_users_are_listed_and_unlinked_each_by_its_own_form(site: Site) -> None:
    """A form token unlinks the user it was shown for, nobody else."""
    site.identity.mappings = [user_mapping()]
    path = "/work-apps/slack/workspaces/wsw_1"
    page = await site.get(path, "ann")
    assert "bob@acme.example" in page.text
    assert "page=page-2" in page.text
    fields = {"csrf": page.form_token()}
    assert (await site.post(f"{path}/unlink?mapping=wsum_2", fields, "ann")).status == 403
    answer = await site.post(f"{path}/unlink?mapping=wsum_1", fields, "ann")
    assert (answer.status, answer.location) == (303, f"{path}?unlinked=1")
    assert site.identity.unlinked == ["wsum_1"]


async def test_the_audit_log_shows_each_read_of_a_token(site: Site) -> None:
    """As a page and as JSON, for administrators."""
    site.vault.events = [audit_event()]
    path = "/work-apps/slack/workspaces/wsw_1/audit"
    page = (await site.get(path, "ann")).text
    for fact in ("token.read", "gateway-worker", "U0ANN", "f1ngerpr1nt", "local-1", "req-12345678"):
        assert fact in page
    answer = await site.get(f"{path}.json", "ann")
    content = json.loads(answer.body)
    assert content["events"][0]["tokenRef"] == "f1ngerpr1nt"
    assert content["events"][0]["at"] == "2026-11-24T09:30:00.000Z"
    assert content["nextPage"] == "page-2"
    assert (await site.get(path, "bob")).status == 403
    assert (await site.get(f"{path}.json")).status == 401
    assert (await site.get(f"{path}?page=forged", "ann")).status == 400
    assert (await site.get(f"{path}?page=%3Cscript%3E", "ann")).status == 400


async def test_the_audit_log_shows_what_people_did(site: Site) -> None:
    """Links, tokens and refusals with who, when and outcome; narrowed, in pages, as JSON too."""
    refused = people_event(7, event="call.refused", outcome="NOT_YOUR_TENANT", count=3)
    site.identity.events = [people_event(), refused]
    path = "/work-apps/slack/workspaces/wsw_1/audit/people"
    page = (await site.get(path, "ann")).text
    for fact in ("user.linked", "Bob", "u_bob", "U0BOB", "req-87654321", "09:30:00"):
        assert fact in page.replace("<wbr>", "")
    assert "NOT_YOUR_TENANT" in page.replace("<wbr>", "")
    assert "\u00d7 3" in page
    assert f'href="{path}?page=7"' in page
    refusals = (await site.get(f"{path}?event=call.refused", "ann")).text
    assert "user.linked</code>" not in refusals
    assert f'href="{path}?event=call.refused&amp;page=7"' in refusals
    content = json.loads((await site.get(f"{path}.json?event=call.refused", "ann")).body)
    assert [each["outcome"] for each in content["events"]] == ["NOT_YOUR_TENANT"]
    assert content["nextPage"] == "7"
    grants = {grant for grant, _ in site.identity.events_asked}
    assert grants == {"audit-grant-of-wsw_1"}


async def test_both_audit_logs_have_one_word_for_what_went_well(site: Site) -> None:
    """A reader who goes from one to the other need not wonder what the difference is."""
    site.vault.events, site.identity.events = [audit_event()], [people_event()]
    tokens = "/work-apps/slack/workspaces/wsw_1/audit"
    for path in (tokens, f"{tokens}/people"):
        assert '<span class="badge good">allowed</span>' in (await site.get(path, "ann")).text
        content = json.loads((await site.get(f"{path}.json", "ann")).body)
        assert [each["outcome"] for each in content["events"]] == ["allowed"]


async def test_what_people_did_is_the_administrators_to_see(site: Site) -> None:
    """Nobody else gets it, and no address of a page or an event is believed."""
    site.identity.events = [people_event(user_name="<script>", actor_name="\u202eEve")]
    path = "/work-apps/slack/workspaces/wsw_1/audit/people"
    page = await site.get(path, "ann")
    assert "<script>" not in page.text
    assert "\u202e" not in page.text
    for query, status in (("page=x", 400), ("page=%3C", 400), ("event=a'b", 400), ("page=7", 200)):
        assert (await site.get(f"{path}?{query}", "ann")).status == status
    for who, status in (("bob", 403), ("val", 403), ("", 401)):
        assert (await site.get(path, who)).status == status
        assert (await site.get(f"{path}.json", who)).status == status
    foreign = await site.get("/work-apps/slack/workspaces/wsw_9/audit/people", "ann")
    assert foreign.status == 404


async def test_the_workspaces_are_json_too(site: Site) -> None:
    """The dashboard's twin, for programs; errors are JSON as well."""
    content = json.loads((await site.get("/work-apps/slack/workspaces.json", "bob")).body)
    assert [each["slackTeamId"] for each in content["workspaces"]] == ["T0ACME"]
    refused = await site.get("/work-apps/slack/workspaces.json")
    assert refused.status == 401
    assert json.loads(refused.body)["error"] == "NOT_SIGNED_IN"
