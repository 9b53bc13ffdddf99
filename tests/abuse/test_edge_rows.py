"""Bad input at the edge: one test id per row of tests/fixtures/bad_inputs.tsv.

The real edge over HTTP and a real Postgres; identity, vault and worker are in memory, so
of a row that one of them decides this shows what edge makes of the decision.
"""

import asyncio
import gzip
import io
import json
import re
import resource
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from interlock_chassis.clock import SystemClock
from interlock_chassis.errors import ConfigError, Kind
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.edge_keys import HmacKeys
from interlock_gateway.edge.linking import GUESSES_ALARM
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import verify_slack_grant
from tests.support.edge_site import (
    APP,
    CALLBACK,
    CODE,
    EVENTS,
    HOME,
    INSTALL,
    KEYS,
    LINK,
    PUBLIC,
    REDEEM,
    SIGNING_SECRET,
    Answer,
    Site,
    cookies_of,
    event_body,
    fresh_site,
    link_form,
    link_offer,
    refusal,
    request_head,
    serving,
    slack_headers,
    start_install,
    user_mapping,
    without_id,
)

INTERACTIONS = "/work-apps/slack/interactions"
COMMANDS = "/work-apps/slack/commands"
ONE = "/work-apps/slack/workspaces/wsw_1"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Origin": PUBLIC}


def row(row_id: str) -> pytest.MarkDecorator:
    """Give a test the id of one row."""
    return pytest.mark.parametrize("row_id", [pytest.param(row_id, id=row_id)])


@pytest.fixture
async def site(cluster: ScratchDatabases) -> AsyncIterator[Site]:
    """Serve edge on an empty gateway database."""
    async with fresh_site(cluster) as site:
        yield site


# EV: no proof of Slack's.


def _now() -> str:
    return str(int(time.time()))


def _signed(body: bytes, **changes: str) -> dict[str, str]:
    return slack_headers(body) | changes


def _lines(headers: dict[str, str], *more: tuple[str, str]) -> bytes:
    pairs = [each for each in headers.items() if each[0] != "Content-Type"] + list(more)
    return b"".join(
        f"{name}: {value}\r\n".encode("utf-8", "surrogateescape") for name, value in pairs
    )


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


SIGNATURE, TIMESTAMP = "X-Slack-Signature", "X-Slack-Request-Timestamp"
BODY = event_body()
SSL_CHECK = b"ssl_check=1"
CHALLENGE = b'{"type":"url_verification","challenge":"abc"}'


def _unproved(row_id: str) -> list[tuple[bytes, bytes]]:
    """Return the heads' lines and bodies of a row, none of which may be believed."""
    right = slack_headers(BODY)
    good, stamp = right[SIGNATURE], right[TIMESTAMP]
    at = int(stamp)
    with_signatures: Callable[..., list[bytes]] = lambda *all_: [  # noqa: E731 - Short here.
        _lines(right | {SIGNATURE: each}) for each in all_
    ]
    signed_at: Callable[..., list[bytes]] = lambda *all_: [  # noqa: E731 - Short here.
        _lines(slack_headers(BODY, each)) for each in all_
    ]
    lines = {
        "EV-01": [_lines(_without(right, SIGNATURE))],
        "EV-02": [_lines(_without(right, TIMESTAMP))],
        "EV-03": [_lines(right | {SIGNATURE: "v0=\udcff" + good[4:]})],
        "EV-04": with_signatures("v0=" + good[3:].upper()),
        "EV-05": with_signatures("v1=" + good[3:]),
        "EV-06": with_signatures("", "v", "v0=" + "0" * 10_000),
        "EV-07": with_signatures(f"{good} ", f"{good}\t", f"{good},{good}", f"{good}, v0=x"),
        "EV-08": [
            _lines(_without(right, SIGNATURE), (SIGNATURE, first), (SIGNATURE, second))
            for first, second in ((good, "v0=" + "0" * 64), ("v0=" + "0" * 64, good))
        ],
        "EV-09": [_lines(right, (TIMESTAMP, stamp))],
        "EV-10": signed_at("abc", "NaN"),
        "EV-11": signed_at(f" {stamp}", f"+{stamp}", "1_700_000_000", "\u0661" * 10),
        "EV-12": signed_at(f"{stamp}junk"),
        "EV-13": signed_at("1" * 400, "1" * 5000),
        "EV-14": signed_at(f"-{stamp}", "0", "1.5", "0x65"),
        "EV-16": signed_at(str(at - 301)),
        "EV-17": signed_at(str(at + 302)),
    }
    bodies = {
        "EV-19": [bytes([BODY[0] ^ 1]) + BODY[1:]],
        "EV-20": [json.dumps(json.loads(BODY), sort_keys=True, indent=1).encode()],
        "EV-43": [CHALLENGE],
        "EV-45": [SSL_CHECK],
    }
    if row_id in bodies:
        proof = b"" if row_id in {"EV-43", "EV-45"} else _lines(right)
        return [(proof, each) for each in bodies[row_id]]
    return [(each, BODY) for each in lines[row_id]]


@pytest.mark.parametrize(
    "row_id",
    [f"EV-{number:02}" for number in (*range(1, 15), 16, 17, 19, 20, 43, 45)],
)
async def test_what_is_not_proved_gets_the_one_401(
    site: Site, row_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty 401, the same headers each time, counted, with no signature in the log."""
    unproved = _unproved(row_id)
    plain = await site.raw(request_head(BODY, b"") + BODY)
    for lines, body in unproved:
        media = b"application/x-www-form-urlencoded" if body == SSL_CHECK else b"application/json"
        head = request_head(body, lines).replace(b"application/json", media)
        answer = await site.raw(head + body)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b"\r\n\r\n")
        assert _dateless(answer) == _dateless(plain)
    assert site.count("event", "bad_signature") == len(unproved) + 1
    assert slack_headers(BODY)[SIGNATURE][3:] not in capsys.readouterr().err
    assert await site.rows() == []


def _dateless(answer: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", answer)


@row("EV-15")
async def test_a_request_of_five_minutes_ago_still_counts(site: Site, row_id: str) -> None:
    """299 s old is 200; one second of the row's margin is left to this test."""
    stamp = str(int(time.time()) - 298)
    answer = await site.ask("POST", EVENTS, data=BODY, headers=slack_headers(BODY, stamp))
    assert answer.status == 200


@row("EV-18")
async def test_a_replay_changes_nothing(site: Site, row_id: str) -> None:
    """The same signed bytes: 200 twice, one row, one replay counted."""
    headers = slack_headers(BODY)
    for _ in range(2):
        assert (await site.ask("POST", EVENTS, data=BODY, headers=headers)).status == 200
    assert len(await site.rows()) == 1
    assert site.count("event", "replay") == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"type":"\xff"}', 400, id="EV-21"),
        pytest.param(b"\xef\xbb\xbf" + BODY, 400, id="EV-22"),
        pytest.param(b"[" * 100_000, 400, id="EV-35"),
        pytest.param(BODY.replace(b'{"type"', b'{"team_id":"T1AA","type"', 1), 400, id="EV-36"),
        pytest.param(BODY[:-1] + b',"x":1e999}', 400, id="EV-37"),
        pytest.param(b'["event_callback"]', 400, id="EV-38"),
        pytest.param(event_body(team_id="T" * 300), 400, id="EV-39"),
        pytest.param(event_body(team_id='T0\x00\n"%00\u202e'), 400, id="EV-40"),
        pytest.param(event_body(event_id=""), 400, id="EV-46"),
        pytest.param(
            event_body(
                authorizations=[
                    {"team_id": "T0ACME", "enterprise_id": None, "is_enterprise_install": True}
                ]
            ),
            400,
            id="EV-53",
        ),
    ],
)
async def test_what_slack_signed_is_read_strictly(
    site: Site, body: bytes, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A final refusal within 50 ms of work; nothing stored; each log line is one line."""
    headers = slack_headers(body) | {"Content-Type": "application/json"}
    started = time.process_time()
    answer = await site.ask("POST", EVENTS, data=body, headers=headers)
    assert (answer.status, answer.body) == (status, b"")
    assert time.process_time() - started < 0.5
    assert answer.headers["X-Slack-No-Retry"] == "1"
    assert "\u202e" not in capsys.readouterr().err
    assert await site.rows() == []


@pytest.mark.parametrize("variant", ["null", '"x"', "7", "[]"])
async def test_only_an_object_is_an_event(site: Site, variant: str) -> None:
    """EV-38 in its other shapes."""
    body = variant.encode()
    headers = slack_headers(body) | {"Content-Type": "application/json"}
    assert (await site.ask("POST", EVENTS, data=body, headers=headers)).status == 400


@pytest.mark.parametrize("team", [7, {}, None, ""])
async def test_only_an_id_is_a_team(site: Site, team: object) -> None:
    """EV-39 in its other shapes."""
    assert (await site.slack(EVENTS, event_body(team_id=team))).status == 400


@row("EV-23")
async def test_both_secrets_count_during_a_change(cluster: ScratchDatabases, row_id: str) -> None:
    """The previous one as long as it is configured."""
    changes: dict[str, object] = {
        "slack_signing_secret_file": Secret("a-new-signing-secret-of-slack"),
        "slack_previous_signing_secret_file": Secret(SIGNING_SECRET),
    }
    async with fresh_site(cluster, changes) as site:
        assert (await site.slack(EVENTS, BODY)).status == 200
    del changes["slack_previous_signing_secret_file"]
    async with fresh_site(cluster, changes) as site:
        assert (await site.slack(EVENTS, BODY)).status == 401


@row("EV-24")
@pytest.mark.parametrize("secret", ["", "   ", "\t\n"])
def test_an_empty_secret_is_a_configuration_error(row_id: str, secret: str) -> None:
    """ConfigError, which ends the process with 78: test_edge_process.py starts one."""
    with pytest.raises(ConfigError):
        HmacKeys(Secret(secret), variable="INTERLOCK_SLACK_SIGNING_SECRET_FILE")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"Content-Encoding": "gzip"}, id="EV-25"),
        pytest.param({"Content-Type": "text/plain"}, id="EV-33"),
        pytest.param({"Content-Type": "application/json; charset=utf-16"}, id="EV-34"),
    ],
)
async def test_other_bodies_are_not_read(site: Site, changes: dict[str, str]) -> None:
    """415 for codings, types and charsets that Slack does not send."""
    body = gzip.compress(BODY)
    headers = slack_headers(body) | {"Content-Type": "application/json"} | changes
    assert (await site.ask("POST", EVENTS, data=body, headers=headers)).status == 415


@row("EV-26")
async def test_a_bomb_is_not_inflated(site: Site, row_id: str) -> None:
    """415, and the process does not grow by what is packed inside."""
    bomb = gzip.compress(b"0" * 100_000_000)
    await site.slack(EVENTS, b"{}", **{"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (await site.slack(EVENTS, bomb, **{"Content-Encoding": "gzip"})).status == 415
    # The test's own client holds the bomb's 97 KiB too.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048


@row("EV-27")
async def test_an_announced_mebibyte_and_one_is_refused_unread(site: Site, row_id: str) -> None:
    """413 from the head alone."""
    answer = await site.raw(request_head(b"", b"", length=1024 * 1024 + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")


@row("EV-28")
async def test_chunks_past_the_limit_end_the_connection(site: Site, row_id: str) -> None:
    """413 as soon as it has grown too large."""
    head = (
        b"POST /work-apps/slack/events HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = await site.raw(head + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"Transfer-Encoding: chunked\r\n", id="EV-29"),
        pytest.param(b"Content-Length: 7\r\n", id="EV-30"),
    ],
)
async def test_two_framings_are_none(site: Site, lines: bytes) -> None:
    """400, and the connection is closed."""
    answer = await site.raw(request_head(b"{}", lines) + b"{}")
    assert re.match(rb"HTTP/1\.[01] 400 ", answer)


@row("EV-31")
async def test_thousands_of_trickled_heads_stop_nobody(site: Site, row_id: str) -> None:
    """2000 sockets that never finish a head: a valid request takes < 1 s, each ends in 408."""
    opened = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(2000)]
    for _, writer in opened:
        writer.write(b"POST /work-apps/slack/events HTTP/1.1\r\nX: ")
    started = time.monotonic()
    assert (await site.slack(EVENTS, BODY)).status == 200
    assert time.monotonic() - started < 1
    for _, writer in opened:
        writer.write(b"x")
    async with asyncio.timeout(6):
        answers = await asyncio.gather(*(reader.read() for reader, _ in opened))
    assert all(each.startswith(b"HTTP/1.1 408 ") for each in answers)
    for _, writer in opened:
        writer.close()


@row("EV-32")
async def test_a_body_that_never_comes_ends_in_408(site: Site, row_id: str) -> None:
    """Within 5 s."""
    started = time.monotonic()
    assert (await site.raw(request_head(b"", b"", length=9))).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 5


@row("EV-41")
async def test_an_event_for_another_app_is_refused_and_on_the_record(
    site: Site, row_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """403, with an audit line that names the app, and a counter for the alert."""
    assert (await site.slack(EVENTS, event_body(api_app_id="A0OTHER"))).status == 403
    assert site.audited("foreign_app_refused") == 1
    said = capsys.readouterr()
    assert re.search(r"foreign_app_refused .*A0OTHER", said.out + said.err)


@row("EV-42")
async def test_the_challenge_is_plain_text(site: Site, row_id: str) -> None:
    """200 with the challenge, for Slack only."""
    answer = await site.slack(EVENTS, CHALLENGE)
    assert (answer.status, answer.text) == (200, "abc")
    assert answer.headers["Content-Type"].startswith("text/plain")


@row("EV-44")
@pytest.mark.parametrize("challenge", ["<script> alert", "a" * 100_000, ""])
async def test_a_challenge_is_short_and_printable(site: Site, row_id: str, challenge: str) -> None:
    """Anything else is 400; what is repeated cannot be sniffed as a page."""
    body = json.dumps({"type": "url_verification", "challenge": challenge}).encode()
    answer = await site.slack(EVENTS, body)
    assert (answer.status, answer.body) == (400, b"")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@row("EV-47")
async def test_a_retry_of_what_is_stored_is_not_run_twice(site: Site, row_id: str) -> None:
    """A new signature of the same event id: 200, still one row."""
    assert (await site.slack(EVENTS, BODY)).status == 200
    again = event_body(event_time=int(time.time()) - 5)
    assert (await site.slack(EVENTS, again, **{"X-Slack-Retry-Num": "1"})).status == 200
    assert len(await site.rows()) == 1


@row("EV-48")
async def test_a_retry_of_what_never_came_is_taken(site: Site, row_id: str) -> None:
    """The header alone drops nothing."""
    assert (await site.slack(EVENTS, BODY, **{"X-Slack-Retry-Num": "3"})).status == 200
    assert len(await site.rows()) == 1


@row("EV-49")
async def test_one_message_with_two_ids_counts_once(site: Site, row_id: str) -> None:
    """Team, channel, time and type are the second key."""
    for event_id in ("Ev0000000001", "Ev0000000002"):
        assert (await site.slack(EVENTS, event_body(event_id))).status == 200
    assert len(await site.rows()) == 1


async def _grant_of(site: Site, body: bytes) -> Any:
    assert (await site.slack(EVENTS, body)).status == 200
    [stored] = await site.rows()
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    return verify_slack_grant(stored["grant_token"], keys, now=SystemClock().now())


@row("EV-50")
async def test_the_receiving_installation_counts_not_the_senders(site: Site, row_id: str) -> None:
    """Slack Connect: the grant is of authorizations[0], so T2's token cannot be read."""
    grant = await _grant_of(site, event_body(team_id="T0OTHER"))
    assert (grant.workspace.team_id, grant.workspace.enterprise_id) == ("T0ACME", "")


@row("EV-51")
async def test_an_event_of_no_installation_is_acknowledged(site: Site, row_id: str) -> None:
    """200, nothing stored, counted as unknown_install."""
    assert (await site.slack(EVENTS, event_body(authorizations=[]))).status == 200
    assert await site.rows() == []
    labels = {"why": "unknown_install"}
    assert site.registry.get_sample_value("interlock_edge_ignored_total", labels) == 1


@row("EV-52")
async def test_an_org_wide_install_is_keyed_by_its_enterprise(site: Site, row_id: str) -> None:
    """The team beside it is no part of the key."""
    authorization = {
        "team_id": "T0ACME",
        "enterprise_id": "E0GRID",
        "is_enterprise_install": True,
        "user_id": "U0BOT",
        "is_bot": True,
    }
    grant = await _grant_of(site, event_body(authorizations=[authorization]))
    assert grant.workspace.is_enterprise_install
    assert (grant.workspace.enterprise_id, grant.workspace.team_id) == ("E0GRID", "")


def _revocation(event_id: str, event: dict[str, Any], **changes: Any) -> bytes:
    return event_body(event_id, event=event, **changes)


UNINSTALLED = {"type": "app_uninstalled"}


def _revoked(**tokens: list[str]) -> dict[str, Any]:
    return {"type": "tokens_revoked", "tokens": tokens}


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param(
            [_revocation("Ev0000000003", UNINSTALLED, event_time=1_600_000_000)], id="EV-54"
        ),
        pytest.param(
            [
                _revocation("Ev0000000003", UNINSTALLED),
                _revocation("Ev0000000003", UNINSTALLED, event_time=int(time.time()) - 1),
                _revocation("Ev0000000004", _revoked(bot=["U0BOT"])),
            ],
            id="EV-55",
        ),
        pytest.param([_revocation("Ev0000000003", _revoked(oauth=["U0ANN"], bot=[]))], id="EV-56"),
        pytest.param(
            [_revocation("Ev0000000003", UNINSTALLED, team_id="E0GRID", authorizations=None)],
            id="EV-57",
        ),
    ],
)
async def test_an_uninstall_is_passed_on_once_and_proves_nothing(
    site: Site, bodies: list[bytes]
) -> None:
    """200 each; one request per event id, before any run, with a grant of nobody's.

    That nothing is purged while Slack says the token lives is the vault's to show.
    """
    for body in bodies:
        assert (await site.slack(EVENTS, body)).status == 200
    rows = await site.rows()
    assert len(rows) == len({json.loads(body)["event_id"] for body in bodies})
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    for stored in rows:
        grant = verify_slack_grant(stored["grant_token"], keys, now=SystemClock().now())
        assert grant.event_type in {"app_uninstalled", "tokens_revoked"}
        assert grant.slack_user_id == ""
        assert stored["lane"].startswith("control:")
        key = json.loads(bytes(stored["body"]))["team_id"]
        assert key in {grant.workspace.team_id, grant.workspace.enterprise_id}


@row("EV-58")
async def test_the_bots_own_words_start_nothing(site: Site, row_id: str) -> None:
    """200, ignored: no loop."""
    event = json.loads(BODY)["event"] | {"bot_id": "B0BOT", "user": "U0BOT"}
    assert (await site.slack(EVENTS, event_body(event=event))).status == 200
    assert await site.rows() == []


# IA: clicks. What a click's response_url may be (IA-03 to IA-05), and what its action may
# name (IA-06), is the worker's: test_worker_rows.py.


def _click(**changes: Any) -> dict[str, Any]:
    payload = {
        "type": "block_actions",
        "api_app_id": APP,
        "team": {"id": "T0ACME"},
        "user": {"id": "U0ANN", "team_id": "T0ACME"},
        "actions": [{"action_id": "stop"}],
    }
    return payload | changes


def _payload(payload: object) -> bytes:
    return urlencode({"payload": json.dumps(payload)}).encode()


@row("IA-01")
@pytest.mark.parametrize("form", ["other=1", "payload=%7B%7D&payload=%7B%7D", "payload=no"])
async def test_a_click_has_one_payload(site: Site, row_id: str, form: str) -> None:
    """None, two, or no JSON are 400."""
    assert (await site.slack(INTERACTIONS, form.encode())).status == 400


@row("IA-02")
async def test_a_broken_escape_is_400_after_its_signature(site: Site, row_id: str) -> None:
    """The signature is over raw bytes; what they mean is asked afterwards."""
    assert (await site.slack(INTERACTIONS, b"payload=%zz")).status == 400
    wrong = {"X-Slack-Signature": "v0=" + "0" * 64}
    assert (await site.slack(INTERACTIONS, b"payload=%zz", **wrong)).status == 401


async def _click_grant(site: Site, payload: dict[str, Any]) -> Any:
    assert (await site.slack(INTERACTIONS, _payload(payload))).status == 200
    [stored] = await site.rows()
    keys = Keyset.from_json(Secret(KEYS), variable="KEYS")
    return verify_slack_grant(stored["grant_token"], keys, now=SystemClock().now())


@row("IA-07")
async def test_private_metadata_names_no_tenant(site: Site, row_id: str) -> None:
    """The grant is of the verified team, whatever the modal carries along."""
    view = {"private_metadata": json.dumps({"tenantId": "umbra", "teamId": "T0UMBRA"})}
    payload = _click(type="view_submission", view=view)
    assert (await _click_grant(site, payload)).workspace.team_id == "T0ACME"


@row("IA-08")
async def test_a_user_of_another_team_is_a_stranger_in_this_one(site: Site, row_id: str) -> None:
    """The grant says so, and is of this team: a link in the other one is not found by it."""
    user = {"id": "U0ANN", "team_id": "T0UMBRA"}
    grant = await _click_grant(site, _click(type="view_submission", user=user))
    assert grant.is_stranger
    assert (grant.workspace.team_id, grant.slack_user_team_id) == ("T0ACME", "T0UMBRA")


# OA: installs. What the vault exchanges, stores and revokes is its own to show.


@row("OA-01")
async def test_a_callback_needs_its_live_state(site: Site, row_id: str) -> None:
    """No state, an unknown, an expired and a used one are 400; no code is exchanged by them."""
    state, cookie = await start_install(site)
    for query in ("code=abc", f"code=abc&state={'s' * 43}"):
        assert (await site.get(f"{CALLBACK}?{query}", "ann", install=cookie)).status == 400
    path = f"{CALLBACK}?code=abc&state={state}"
    assert (await site.get(path, "ann", install=cookie)).status == 303
    assert (await site.get(path, "ann", install=cookie)).status == 400
    late, late_cookie = await start_install(site)
    await site.owner.execute("UPDATE gateway.oauth_state SET expires_at = now()")
    expired = await site.get(f"{CALLBACK}?code=a&state={late}", "ann", install=late_cookie)
    assert expired.status == 400
    assert len(site.vault.completed) == 1


@row("OA-02")
async def test_eight_callbacks_are_one_exchange(site: Site, row_id: str) -> None:
    """One goes on, seven are 400."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?code=abc&state={state}"
    answers = await asyncio.gather(*(site.get(path, "ann", install=cookie) for _ in range(8)))
    assert sorted(each.status for each in answers) == [303] + [400] * 7
    assert len(site.vault.completed) == 1


@row("OA-03")
async def test_a_state_counts_in_its_own_browser_only(site: Site, row_id: str) -> None:
    """Without the cookie, or with another browser's, nothing is exchanged."""
    state, _ = await start_install(site)
    path = f"{CALLBACK}?code=abc&state={state}"
    assert (await site.get(path, "ann")).status == 400
    _, other = await start_install(site)
    assert (await site.get(path, "ann", install=other)).status == 400
    assert site.vault.completed == []


@row("OA-04")
async def test_a_state_of_another_session_is_refused_and_on_the_record(
    site: Site, row_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """403, with an audit line that names who came."""
    state, cookie = await start_install(site)
    answer = await site.get(f"{CALLBACK}?code=abc&state={state}", "eve", install=cookie)
    assert answer.status == 403
    assert site.audited("install_of_other_session_refused") == 1
    said = capsys.readouterr()
    assert re.search(r"install_of_other_session_refused .*umbra", said.out + said.err)
    assert site.vault.completed == []


@row("OA-05")
async def test_only_administrators_install_and_for_their_tenant(site: Site, row_id: str) -> None:
    """Nobody 401, a member 403, another tenant 403 and on the record."""
    assert (await site.get(INSTALL)).status == 401
    assert (await site.get(INSTALL, "bob")).status == 403
    token = (await site.get(INSTALL, "ann")).form_token()
    foreign = await site.post(f"{INSTALL}?tenant_id=umbra", {"csrf": token}, "ann")
    assert foreign.status == 403
    assert site.audited("install_for_other_tenant_refused") == 1


@row("OA-06")
@pytest.mark.parametrize("code", ["", "a" * 10_000, "a%0d%0ab"])
async def test_a_code_slack_cannot_have_made_is_400(site: Site, row_id: str, code: str) -> None:
    """Not exchanged, and not passed on."""
    state, cookie = await start_install(site)
    head = (
        f"GET {CALLBACK}?code={code}&state={state} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        f"Cookie: {cookies_of('ann', {'install': cookie})['Cookie']}\r\nConnection: close\r\n\r\n"
    )
    assert re.match(rb"HTTP/1\.[01] 400 ", await site.raw(head.encode()))
    assert site.vault.completed == []


@row("OA-07")
async def test_a_no_at_slack_is_a_page_and_the_end(site: Site, row_id: str) -> None:
    """200, the state consumed, Slack's text not shown."""
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?error=access_denied&error_description=<b>canary&state={state}"
    answer = await site.get(path, "ann", install=cookie)
    assert answer.status == 200
    assert "canary" not in answer.text
    assert (await site.get(path, "ann", install=cookie)).status == 400


@row("OA-08")
@pytest.mark.parametrize("where", ["//evil.example", "\\\\evil", "https:evil", "javascript:x"])
async def test_where_to_go_is_not_the_visitors_to_say(site: Site, row_id: str, where: str) -> None:
    """Ignored wherever it is said; the end is the dashboard."""
    token = (await site.get(INSTALL, "ann")).form_token()
    fields = {"csrf": token, "redirect": where, "next": where}
    started = await site.post(f"{INSTALL}?next={quote(where)}", fields, "ann")
    assert "evil" not in started.location
    state, cookie = await start_install(site)
    path = f"{CALLBACK}?code=abc&state={state}&redirect={quote(where)}&next={quote(where)}"
    answer = await site.get(path, "ann", install=cookie)
    assert answer.location == f"{HOME}?installed=T0ACME"


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        pytest.param(Kind.UNAVAILABLE, "SLACK_ANSWER_UNUSABLE", 502, id="OA-09"),
        pytest.param(Kind.CONFLICT, "WORKSPACE_TAKEN", 409, id="OA-10"),
        pytest.param(Kind.PRECONDITION, "SCOPES_MISSING", 422, id="OA-11"),
        pytest.param(Kind.PRECONDITION, "OAUTH_CODE_REFUSED", 502, id="OA-12"),
        pytest.param(Kind.CONFLICT, "WORKSPACE_TAKEN", 409, id="OA-13"),
        pytest.param(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", 503, id="OA-15"),
    ],
)
async def test_each_way_an_install_can_fail_has_a_page(
    site: Site, kind: Kind, reason: str, status: int
) -> None:
    """The vault's reason decides the page, with the request id and nothing of Slack's."""
    state, cookie = await start_install(site)
    site.vault.fail = refusal(kind, reason)
    answer = await site.get(f"{CALLBACK}?code=abc&state={state}", "ann", install=cookie)
    assert answer.status == status
    assert answer.headers["X-Request-Id"] in answer.text
    assert reason not in answer.text


@row("OA-14")
async def test_our_own_address_is_from_the_configuration(
    cluster: ScratchDatabases, row_id: str
) -> None:
    """A forwarded host builds no URL; plain http before an https address is 400."""
    changes = {
        "public_url": "https://interlock.example",
        "auth_url": "https://auth.example",
        "slack_url": "https://slack.com",
        "trusted_proxies": "127.0.0.1/32",
    }
    async with fresh_site(cluster, changes) as site:
        headers = {
            "Host": "interlock.example",
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-Proto": "https",
        } | cookies_of("ann", {})
        page = await site.ask("GET", INSTALL, headers=headers)
        own = headers | {"Origin": "https://interlock.example"}
        started = await site.ask("POST", INSTALL, data={"csrf": page.form_token()}, headers=own)
        expected = quote(f"https://interlock.example{CALLBACK}", safe="")
        assert f"redirect_uri={expected}" in started.location
        plain = await site.ask("GET", CALLBACK, headers=headers | {"X-Forwarded-Proto": "http"})
        assert plain.status == 400


# LK: links. That a code is spent once, in one transaction, is identity's to show.


@row("LK-01")
async def test_a_previewer_spends_nothing(site: Site, row_id: str) -> None:
    """303 to the clean address; identity is not asked."""
    site.identity.offers[CODE] = link_offer()
    answer = await site.get(f"{LINK}?code={CODE}")
    assert (answer.status, answer.location) == (303, LINK)
    assert (site.identity.described, list(site.identity.offers)) == (0, [CODE])


@row("LK-02")
async def test_the_confirm_page_leaks_nothing_by_its_headers(site: Site, row_id: str) -> None:
    """No referrer, no store, no frame, nothing of a third party."""
    site.identity.offers[CODE] = link_offer()
    answer = await site.get(LINK, "ann", link=CODE)
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r'(?:src|<link[^>]+href)="(?!/)', answer.text)


@row("LK-03")
@pytest.mark.parametrize(
    "wrong",
    [
        {"csrf": ""},
        {"Origin": "https://evil.example"},
        {"Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_redeem_from_elsewhere_links_nothing(
    site: Site, row_id: str, wrong: dict[str, str]
) -> None:
    """403, and the code still works."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    headers = None if "csrf" in wrong else wrong
    changed = fields | {"csrf": wrong.get("csrf", fields["csrf"])}
    assert (await site.post(REDEEM, changed, "ann", headers, link=cookie)).status == 403
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 303


@row("LK-04")
async def test_nothing_is_linked_without_the_button(site: Site, row_id: str) -> None:
    """422, and the page names workspace, Slack user and account again."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    answer = await site.post(REDEEM, {"csrf": fields["csrf"]}, "ann", link=cookie)
    assert answer.status == 422
    for name in ("Acme Slack", "U0ANN", "ann@acme.example"):
        assert name in answer.text
    assert CODE in site.identity.offers


async def _spent(site: Site, who: str = "ann") -> Answer:
    """Open the link of a code that does not work any more, or never did."""
    return await site.get(LINK, who, link=CODE)


@row("LK-05")
async def test_an_expired_code_is_gone(site: Site, row_id: str) -> None:
    """410, also when it expired while the confirm page was open."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    del site.identity.offers[CODE]
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 410
    assert (await _spent(site)).status == 410


@row("LK-06")
async def test_a_used_code_looks_like_an_unknown_one(site: Site, row_id: str) -> None:
    """410 with the same text, also for somebody else."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 303
    used, unknown = await _spent(site, "bob"), await site.get(LINK, "bob", link="u" * 43)
    assert used.status == unknown.status == 410
    assert without_id(used) == without_id(unknown)


@row("LK-07")
async def test_a_malformed_code_looks_like_an_unknown_one(site: Site, row_id: str) -> None:
    """Too short or too long is 400; of a code's length, nothing differs but the guess.

    Unknown codes are 410 here: identity does not tell unknown, used and expired apart.
    """
    for code in ("", "x", "a" * 10_000):
        head = f"GET {LINK}?code={code} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n"
        assert re.match(rb"HTTP/1\.[01] 400 ", await site.raw(f"{head}\r\n".encode()))
    pages = []
    for code in ("u" * 43, "not+base64url!" * 3, "a%00b" * 9, "%F0%9F%94%97" * 20):
        moved = await site.get(f"{LINK}?code={code}")
        assert (moved.status, moved.location) == (303, LINK)
        page = await site.get(LINK, "ann", link=moved.cookie("link"))
        pages.append((page.status, without_id(page)))
    assert len(set(pages)) == 1
    assert pages[0][0] == 410
    assert site.identity.described == len(pages)


@row("LK-08")
async def test_fifty_redeems_are_one_link(site: Site, row_id: str) -> None:
    """One link; the others are 410, or 429 where the session was too fast."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    answers = await asyncio.gather(
        *(site.post(REDEEM, fields, "ann", link=cookie) for _ in range(50))
    )
    statuses = [each.status for each in answers]
    assert statuses.count(303) == 1
    assert set(statuses) <= {303, 410, 429}
    assert site.worker.resumed == ["resume-grant"]


@row("LK-09")
async def test_a_member_of_another_tenant_links_nothing(site: Site, row_id: str) -> None:
    """403, on the record, and the code still works for whom it is."""
    site.identity.offers[CODE] = link_offer()
    assert (await site.get(LINK, "eve", link=CODE)).status == 403
    assert site.audited("link_of_other_tenant_refused") == 1
    fields, cookie = await link_form(site)
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 303


@row("LK-10")
async def test_a_link_to_another_account_stands(site: Site, row_id: str) -> None:
    """409 until it is unlinked."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    site.identity.fail["redeem"] = refusal(Kind.CONFLICT, "USER_LINKED_ELSEWHERE")
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 409
    del site.identity.fail["redeem"]
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 303


@row("LK-11")
async def test_a_code_of_a_workspace_that_is_gone_is_gone(site: Site, row_id: str) -> None:
    """410: identity ends the codes of a released workspace."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    site.identity.fail["redeem"] = refusal(Kind.PRECONDITION, "LINK_CODE_SPENT")
    assert (await site.post(REDEEM, fields, "ann", link=cookie)).status == 410


@row("LK-12")
async def test_guessing_is_slowed_down_and_raises_the_alarm(site: Site, row_id: str) -> None:
    """429 after ten a minute of a session, with Retry-After; one alarm over everybody."""
    site.identity.offers[CODE] = link_offer()
    fields, cookie = await link_form(site)
    del site.identity.offers[CODE]
    answers = [await site.post(REDEEM, fields, "ann", link=cookie) for _ in range(100)]
    assert [each.status for each in answers] == [410] * 10 + [429] * 90
    assert answers[-1].headers["Retry-After"] == "60"
    assert len(answers) > GUESSES_ALARM
    assert site.audited("link_guessing_suspected") == 1


@row("LK-13")
async def test_a_cookie_from_before_the_sign_in_redeems_nothing(site: Site, row_id: str) -> None:
    """It is renewed for the session that signed in, and ended by the redeem."""
    site.identity.offers[CODE] = link_offer()
    planted = (await site.get(f"{LINK}?code={CODE}")).cookie("link")
    fields, renewed = await link_form(site)
    assert renewed != planted
    assert (await site.post(REDEEM, fields, "ann", link=planted)).status == 403
    _, of_bob = await link_form(site, who="bob")
    assert (await site.post(REDEEM, fields, "ann", link=of_bob)).status == 403
    answer = await site.post(REDEEM, fields, "ann", link=renewed)
    assert (answer.status, answer.cookie("link")) == (303, '""')


@row("LK-14")
@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "n" * 10_000])
async def test_a_name_from_slack_is_text_of_eighty_characters(
    site: Site, row_id: str, name: str
) -> None:
    """Escaped and cut."""
    site.identity.offers[CODE] = link_offer(slack_display_name=name)
    page = await site.get(LINK, "ann", link=CODE)
    assert "<img src=x" not in page.text
    assert "n" * 81 not in page.text


@row("LK-15")
async def test_a_link_that_a_newer_one_replaced_does_not_work(site: Site, row_id: str) -> None:
    """410. How many a person may ask for in Slack is identity's and the worker's to say."""
    newer = "N" * 43
    site.identity.offers[newer] = link_offer()
    assert (await site.get(LINK, "ann", link=CODE)).status == 410
    assert (await site.get(LINK, "ann", link=newer)).status == 200


# HT: any HTTP.


@row("HT-01")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/canary", 404), ("TRACE", HOME, 405), ("PUT", HOME, 405), ("PUT", "/canary", 404)],
)
async def test_nothing_is_echoed(
    site: Site, row_id: str, method: str, path: str, status: int
) -> None:
    """404 or 405 without a word of the request."""
    answer = await site.ask(method, path, headers={"X-Canary": "canary"}, data=b"canary")
    assert answer.status == status
    assert "canary" not in answer.text


@row("HT-02")
@pytest.mark.parametrize(
    "target",
    [
        "//work-apps//slack//events",
        "/work-apps/%2e%2e/work-apps/slack/events",
        "/work-apps/slack/events;x=1",
        "/work-apps/slack/events/",
    ],
)
async def test_no_path_is_normalised(site: Site, row_id: str, target: str) -> None:
    """404: what a proxy reads differently is nowhere."""
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n"
    assert (await site.raw(f"{head}Content-Length: 0\r\n\r\n".encode())).startswith(
        b"HTTP/1.1 404 "
    )


@row("HT-03")
async def test_another_host_builds_no_url(site: Site, row_id: str) -> None:
    """421, and the way back is our own address."""
    answer = await site.ask("GET", HOME, headers={"Host": "evil.example"})
    assert answer.status == 421
    assert "evil" not in answer.text
    assert PUBLIC in answer.text


@row("HT-04")
async def test_a_forged_forwarding_header_changes_no_limit(site: Site, row_id: str) -> None:
    """The peer's address counts for identity and for the counters."""
    for address in ("203.0.113.9", "203.0.113.10"):
        await site.ask("GET", HOME, headers={"X-Forwarded-For": address} | cookies_of("ann", {}))
    assert set(site.identity.addresses) == {"127.0.0.1"}


@row("HT-05")
@pytest.mark.parametrize("size", [600, 15_000])
async def test_a_senders_trace_goes_nowhere(
    site: Site, row_id: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever trace or baggage comes in: ours begins anew, and no log holds theirs."""
    canary = "xoxb-canary" + "c" * size
    headers = {"traceparent": canary, "tracestate": f"a={canary}", "baggage": f"a={canary}"}
    answer = await site.slack(EVENTS, BODY, **headers)
    assert answer.status == 200
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err + str(answer.headers)
    [stored] = await site.rows()
    assert "canary" not in str(dict(stored))


@row("HT-06")
async def test_what_is_away_costs_no_event(site: Site, row_id: str, unused_tcp_port: int) -> None:
    """Identity, vault and worker away: 200 and stored. The database away: 503 in 2.5 s."""
    away = refusal(Kind.UNAVAILABLE, "PEER_UNAVAILABLE")
    site.identity.fail["authenticate"] = site.vault.fail = site.worker.fail = away
    assert (await site.slack(EVENTS, BODY)).status == 200
    assert len(await site.rows()) == 1
    url = Secret(f"postgresql://edge:x@127.0.0.1:{unused_tcp_port}/gateway")
    async with serving(url) as without_database:
        started = time.monotonic()
        assert (await without_database.slack(EVENTS, BODY)).status == 503
        assert time.monotonic() - started < 2.5


# CM: slash commands. What is said back (CM-02 to CM-05) is the worker's.


def _command(**changes: str) -> bytes:
    fields = {
        "api_app_id": APP,
        "team_id": "T0ACME",
        "channel_id": "C0GENERAL",
        "user_id": "U0ANN",
        "command": "/interlock",
        "text": "help",
    } | changes
    return urlencode({name: value for name, value in fields.items() if value}).encode()


@row("CM-01")
@pytest.mark.parametrize(
    ("changes", "status", "team"),
    [
        ({}, 200, "T0ACME"),
        ({"enterprise_id": "E0GRID"}, 200, "T0ACME"),
        ({"enterprise_id": "E0GRID", "is_enterprise_install": "true"}, 200, "E0GRID"),
        ({"is_enterprise_install": "true"}, 400, ""),
        ({"team_id": ""}, 400, ""),
        ({"team_id": "", "enterprise_id": "E0GRID"}, 400, ""),
        ({"is_enterprise_install": "True"}, 400, ""),
    ],
)
async def test_the_verified_team_decides(
    site: Site, row_id: str, changes: dict[str, str], status: int, team: str
) -> None:
    """An org-wide install is its Enterprise's; impossible combinations are 400."""
    assert (await site.slack(COMMANDS, _command(**changes))).status == status
    assert [each["team"] for each in await site.rows()] == ([team] if team else [])


@row("CM-03")
async def test_a_long_text_is_data(site: Site, row_id: str) -> None:
    """40 kB with control characters and mentions is stored as it came, and echoed nowhere."""
    text = "<!channel> <@U0EVE> \x00\x1b[2J" + "x" * 40_000
    answer = await site.slack(COMMANDS, _command(text=text))
    assert (answer.status, answer.body) == (200, b"")


# JA: the JSON API.


async def _send(site: Site, method: str, path: str, body: object, who: str = "ann") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | OWN_PAGE | cookies_of(who, {})
    return await site.ask(method, path, data=io.BytesIO(data), headers=headers)


RETURNS = {"defaultAgent": {"projectId": "shop", "agentId": "returns"}}
READS = ["", "/users", "/settings", "/channels", "/health", "/audit"]


@row("JA-01")
async def test_another_tenants_workspace_is_nowhere(site: Site, row_id: str) -> None:
    """404, the same bytes as an unknown one, on every route."""
    for part in READS:
        foreign, unknown = [
            await site.get(f"/work-apps/slack/workspaces/{each}{part}.json", "ann")
            for each in ("wsw_9", "wsw_0")
        ]
        assert foreign.status == unknown.status == 404
        assert without_id(foreign) == without_id(unknown)
    foreign = await _send(site, "PUT", f"{ONE[:-1]}9/settings.json", RETURNS)
    assert foreign.status == 404


@row("JA-02")
async def test_the_policy_table_decides(site: Site, row_id: str) -> None:
    """A member writes nothing, a role we do not know reads nothing."""
    assert (await _send(site, "PUT", f"{ONE}/settings.json", RETURNS, "bob")).status == 403
    for part in READS:
        assert (await site.get(f"{ONE}{part}.json", "val")).status == 403
    assert site.identity.defaults == {}


@row("JA-03")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (RETURNS | {"more": 1}, 400),
        ({"defaultAgent": {**RETURNS["defaultAgent"], "more": 1}}, 400),
        ({"defaultAgent": {"projectId": 7, "agentId": "returns"}}, 400),
        ({"defaultAgent": {**RETURNS["defaultAgent"], "grantAccessToMembers": "yes"}}, 400),
        ({"defaultAgent": "returns"}, 400),
        ([], 400),
        (b"{", 400),
        (b'{"defaultAgent":null,"defaultAgent":null}', 400),
        (b'{"defaultAgent":"' + b"x" * 1024 * 1024 + b'"}', 413),
    ],
)
async def test_a_body_is_read_strictly(site: Site, row_id: str, body: object, status: int) -> None:
    """Nothing is changed by a body that is not exactly what is described."""
    assert (await _send(site, "PUT", f"{ONE}/settings.json", RETURNS)).status == 204
    before = dict(site.identity.defaults)
    assert (await _send(site, "PUT", f"{ONE}/settings.json", body)).status == status
    assert site.identity.defaults == before


@row("JA-04")
async def test_an_agent_the_platform_does_not_know_is_400(site: Site, row_id: str) -> None:
    """And 503 when the platform cannot be asked; nothing is changed by either."""
    unknown = {"defaultAgent": {"projectId": "shop", "agentId": "nobody"}}
    assert (await _send(site, "PUT", f"{ONE}/settings.json", unknown)).status == 400
    site.identity.fail["platform"] = refusal(Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE")
    assert (await _send(site, "PUT", f"{ONE}/settings.json", RETURNS)).status == 503
    assert site.identity.defaults == {}


@row("JA-05")
async def test_a_forged_cursor_is_400(site: Site, row_id: str) -> None:
    """Of another form, or of another list: a word about the page, never its rows."""
    site.identity.mappings = [user_mapping()]
    for part in ("users", "audit"):
        for cursor in ("forged", "%3Cscript%3E", "a" * 300):
            answer = await site.get(f"{ONE}/{part}.json?page={cursor}", "ann")
            assert answer.status == 400
            assert json.loads(answer.body)["error"] == "INVALID_PAGE_TOKEN"
