"""What Slack sends: its signature, its strict reading, and whose installation it is for.

Ids such as EV-11 are rows of tests/fixtures/bad_inputs.tsv.
"""

import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_gateway.domain.slack_request import (
    LINK_COMMAND,
    Challenge,
    ForeignApp,
    Ignored,
    InvalidSlackSignature,
    MalformedSlackRequest,
    RequestKind,
    SignedBody,
    SlackRequest,
    read_command,
    read_event,
    read_interaction,
    read_link_command,
    verify,
    without_tokens,
)
from interlock_gateway.domain.strict import parse_form
from interlock_tokens.grants import Workspace

APP = "A0INTERLOCK"
BOT = "U0BOT"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
OLD_SECRET = "an-older-signing-secret-of-slack"


def _mac(secret: str, message: bytes) -> bytes:
    return hmac.digest(secret.encode(), message, hashlib.sha256)


def _macs(message: bytes) -> list[bytes]:
    return [_mac(SECRET, message)]


def _signature_of(timestamp: str, body: bytes, secret: str = SECRET) -> str:
    return "v0=" + _mac(secret, b"v0:" + timestamp.encode() + b":" + body).hex()


def _stamp(offset_s: int = 0) -> str:
    return str(int(NOW.timestamp()) + offset_s)


def _check(timestamps: list[str], signatures: list[str], body: bytes = b"{}") -> SignedBody:
    return verify(timestamps=timestamps, signatures=signatures, body=body, macs=_macs, now=NOW)


def _signed(body: bytes) -> SignedBody:
    return SignedBody(body, NOW)


def _envelope(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "event_callback",
        "team_id": "T0ACME",
        "api_app_id": APP,
        "event_id": "Ev0000000001",
        "event_time": int(NOW.timestamp()) - 3,
        "authorizations": [
            {
                "enterprise_id": None,
                "team_id": "T0ACME",
                "user_id": BOT,
                "is_bot": True,
                "is_enterprise_install": False,
            }
        ],
        "is_ext_shared_channel": False,
        "event": _mention(),
    }
    return base | changes


def _mention(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "app_mention",
        "user": "U0ANN",
        "team": "T0ACME",
        "channel": "C0GENERAL",
        "text": f"<@{BOT}> what is new?",
        "ts": "1763985600.000100",
        "event_ts": "1763985600.000100",
    }
    return base | changes


def _authorization(**changes: Any) -> list[dict[str, Any]]:
    return [_envelope()["authorizations"][0] | changes]


def _read(event: dict[str, Any] | str | bytes) -> Challenge | Ignored | SlackRequest:
    if isinstance(event, dict):
        event = json.dumps(event)
    body = event.encode(errors="surrogatepass") if isinstance(event, str) else event
    return read_event(_signed(body), app_id=APP)


def _admitted(event: dict[str, Any]) -> SlackRequest:
    request = _read(event)
    assert isinstance(request, SlackRequest)
    return request


def _without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


# The signature.


def test_slacks_published_vector_verifies() -> None:
    """Slack's own example is accepted, byte for byte."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
        b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
        b"&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554"
        b"%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121"
        b".803a0bc887a14d10d2c447fce8b6703c"
    )
    proved = verify(
        timestamps=["1531420618"],
        signatures=["v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"],
        body=body,
        macs=_macs,
        now=datetime.fromtimestamp(1531420618, UTC),
    )
    assert proved.body == body


@pytest.mark.parametrize("offset_s", [-300, -299, 0, 300])
def test_a_signature_counts_for_five_minutes_both_ways(offset_s: int) -> None:
    """EV-15: timestamps up to 300 s off are taken, on either side."""
    timestamp = _stamp(offset_s)
    assert _check([timestamp], [_signature_of(timestamp, b"{}")]).body == b"{}"


@pytest.mark.parametrize("offset_s", [-301, 301, -86_400])
def test_an_older_or_newer_signature_does_not_count(offset_s: int) -> None:
    """EV-16, EV-17: one second more is too much."""
    timestamp = _stamp(offset_s)
    with pytest.raises(InvalidSlackSignature):
        _check([timestamp], [_signature_of(timestamp, b"{}")])


@pytest.mark.parametrize(
    "timestamp",
    [
        pytest.param("abc", id="EV-10"),
        pytest.param(" 1763985600", id="EV-11-space"),
        pytest.param("+1763985600", id="EV-11-plus"),
        pytest.param("1_763_985_600", id="EV-11-underscores"),
        pytest.param("١٧٦٣٩٨٥٦٠٠", id="EV-11-arabic-indic"),
        pytest.param("1763985600junk", id="EV-12"),
        pytest.param("1763985600\n", id="EV-12-newline"),
        pytest.param("1" * 400, id="EV-13-400"),
        pytest.param("1" * 5000, id="EV-13-5000"),
        pytest.param("-1763985600", id="EV-14-negative"),
        pytest.param("0", id="EV-14-zero"),
        pytest.param("1763985600.5", id="EV-14-float"),
        pytest.param("0x69247a80", id="EV-14-hex"),
        pytest.param("", id="empty"),
        pytest.param("NaN", id="nan"),
    ],
)
def test_a_timestamp_that_is_not_ten_digits_is_refused_even_when_signed(timestamp: str) -> None:
    """A timestamp that parsers disagree about proves nothing, however it was signed."""
    with pytest.raises(InvalidSlackSignature):
        _check([timestamp], [_signature_of(timestamp, b"{}")])


def _right() -> str:
    return _signature_of(_stamp(), b"{}")


@pytest.mark.parametrize(
    "signatures",
    [
        pytest.param([], id="EV-01"),
        pytest.param(["v0=\udcff" + _right()[4:]], id="EV-03"),
        pytest.param(["v0=" + _right()[3:].upper()], id="EV-04"),
        pytest.param(["v1=" + _right()[3:]], id="EV-05"),
        pytest.param([""], id="EV-06-empty"),
        pytest.param(["v"], id="EV-06-short"),
        pytest.param(["v0=" + "a" * 10_000], id="EV-06-long"),
        pytest.param([_right() + " "], id="EV-07-space"),
        pytest.param([_right() + "\t"], id="EV-07-tab"),
        pytest.param([f"{_right()},{_right()}"], id="EV-07-comma"),
        pytest.param([_right(), "v0=" + "0" * 64], id="EV-08"),
        pytest.param(["v0=" + "0" * 64, _right()], id="EV-08-other-order"),
        pytest.param(["v0=" + "0" * 64], id="wrong"),
    ],
)
def test_only_one_signature_of_slacks_exact_form_counts(signatures: list[str]) -> None:
    """Anything but one header with `v0=` and 64 lower-case hex digits is refused."""
    with pytest.raises(InvalidSlackSignature):
        _check([_stamp()], signatures)


@pytest.mark.parametrize("timestamps", [[], [_stamp(), _stamp()], [_stamp(), _stamp(1)]])
def test_only_one_timestamp_counts(timestamps: list[str]) -> None:
    """EV-02, EV-09: no timestamp, or two of them, is refused."""
    with pytest.raises(InvalidSlackSignature):
        _check(timestamps, [_right()])


@given(body=st.binary(min_size=1, max_size=200), bit=st.integers(min_value=0, max_value=1599))
def test_no_bit_of_the_body_can_change(body: bytes, bit: int) -> None:
    """EV-19, EV-20: the signature is over the raw bytes, each of them."""
    changed = bytearray(body)
    changed[bit // 8 % len(body)] ^= 1 << bit % 8
    with pytest.raises(InvalidSlackSignature):
        _check([_stamp()], [_signature_of(_stamp(), body)], bytes(changed))


def test_the_previous_secret_counts_while_it_is_configured() -> None:
    """EV-23: during a change of secrets both verify; afterwards only the new one."""
    signature = _signature_of(_stamp(), b"{}", OLD_SECRET)
    both = [SECRET, OLD_SECRET]
    proved = verify(
        timestamps=[_stamp()],
        signatures=[signature],
        body=b"{}",
        macs=lambda message: [_mac(secret, message) for secret in both],
        now=NOW,
    )
    assert proved.signed_at == NOW
    with pytest.raises(InvalidSlackSignature):
        _check([_stamp()], [signature])


# Documents.


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"type":"\xff"}', id="EV-21"),
        pytest.param(b'\xef\xbb\xbf{"type":"x"}', id="EV-22"),
        pytest.param(b"[" * 100_000, id="EV-35"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="EV-35-closed"),
        pytest.param(b'{"team_id":"T0AAA","type":"x","team_id":"T0BBB"}', id="EV-36"),
        pytest.param(b'{"type":"x","a":{"b":1,"b":2}}', id="EV-36-nested"),
        pytest.param(b'{"type":"x","a":NaN}', id="EV-37-nan"),
        pytest.param(b'{"type":"x","a":-Infinity}', id="EV-37-infinity"),
        pytest.param(b'{"type":"x","a":1e999}', id="EV-37-overflow"),
        pytest.param(b'{"type":"x","a":' + b"9" * 5000 + b"}", id="EV-37-digits"),
        pytest.param(b"[]", id="EV-38-array"),
        pytest.param(b'"text"', id="EV-38-string"),
        pytest.param(b"null", id="EV-38-null"),
        pytest.param(b"7", id="EV-38-number"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{} trailing", id="trailing"),
        pytest.param(b'{"type":"x"}\x00', id="NUL"),
        pytest.param('{"type":"x"}'.encode("utf-16"), id="utf-16"),
    ],
)
def test_a_document_that_readers_could_read_differently_is_refused(body: bytes) -> None:
    """Ambiguous or broken JSON is malformed as a whole."""
    with pytest.raises(MalformedSlackRequest):
        _read(body)


def test_deep_nesting_is_refused_at_once() -> None:
    """EV-35: 100,000 levels cost less than 50 ms."""
    started = time.perf_counter()
    with pytest.raises(MalformedSlackRequest):
        _read(b"[" * 100_000)
    assert time.perf_counter() - started < 0.05


def test_brackets_inside_of_text_do_not_nest() -> None:
    """What a person writes cannot make a request too deep."""
    text = f"<@{BOT}> " + '[[{{"\\"' * 200
    assert _admitted(_envelope(event=_mention(text=text))).event_type == "app_mention"


@pytest.mark.parametrize(
    "team_id",
    [
        pytest.param(7, id="EV-39-number"),
        pytest.param({}, id="EV-39-object"),
        pytest.param(None, id="EV-39-null"),
        pytest.param("", id="EV-39-empty"),
        pytest.param("T" + "A" * 300, id="EV-39-long"),
        pytest.param("T0ACME\x00", id="EV-40-nul"),
        pytest.param("T0ACME\n", id="EV-40-newline"),
        pytest.param('T0"ACME', id="EV-40-quote"),
        pytest.param("T0ACME%00", id="EV-40-percent"),
        pytest.param("T0\u202eACME", id="EV-40-override"),
        pytest.param("t0acme", id="lower-case"),
        pytest.param("Т0ACME", id="homoglyph"),  # noqa: RUF001 - The homoglyph is the test.
    ],
)
def test_a_team_id_that_is_not_slacks_is_refused(team_id: object) -> None:
    """Ids are matched whole, wherever they appear."""
    with pytest.raises(MalformedSlackRequest):
        _read(_envelope(team_id=team_id))
    with pytest.raises(MalformedSlackRequest):
        _read(_envelope(authorizations=_authorization(team_id=team_id)))


# Envelopes.


def test_a_challenge_is_read() -> None:
    """EV-42: Slack's challenge comes back as it was."""
    assert _read(
        {"type": "url_verification", "challenge": "3eZbrw1aBm2rZgRNFdxV2595"}
    ) == Challenge("3eZbrw1aBm2rZgRNFdxV2595")


@pytest.mark.parametrize("challenge", ["", "a" * 257, "a b", "ä", "a\r\nb", 7, None])
def test_a_challenge_cannot_carry_anything_else(challenge: object) -> None:
    """EV-44: a challenge is 1 to 256 printable ASCII characters."""
    with pytest.raises(MalformedSlackRequest):
        _read({"type": "url_verification", "challenge": challenge})


def test_another_apps_event_is_refused() -> None:
    """EV-41: our secret does not make another app's request ours."""
    with pytest.raises(ForeignApp):
        _read(_envelope(api_app_id="A0OTHER"))
    with pytest.raises(MalformedSlackRequest):
        _read(_without(_envelope(), "api_app_id"))


@pytest.mark.parametrize("name", ["event_id", "event", "type"])
def test_an_envelope_without_its_parts_is_refused(name: str) -> None:
    """EV-46: an event without an id, a type or content is not one."""
    with pytest.raises(MalformedSlackRequest):
        _read(_without(_envelope(), name))


def test_rate_limit_notices_are_acknowledged() -> None:
    """`app_rate_limited` has no event and asks for nothing."""
    notice = {"type": "app_rate_limited", "team_id": "T0ACME", "minute_rate_limited": 1518467820}
    assert _read(notice) == Ignored("app_rate_limited")


# Whose installation.


def test_a_mention_names_its_installation_thread_and_speaker() -> None:
    """An ordinary mention becomes a request in its thread's lane."""
    body = json.dumps(_envelope()).encode()
    request = read_event(_signed(body), app_id=APP)
    assert request == SlackRequest(
        kind=request.kind,  # type: ignore[union-attr]
        event_key="Ev0000000001",
        second_key="T0ACME:C0GENERAL:1763985600.000100:app_mention",
        lane="T0ACME:C0GENERAL:1763985600.000100",
        is_control=False,
        workspace=Workspace("", "T0ACME", is_enterprise_install=False, app_id=APP),
        slack_user_id="U0ANN",
        slack_user_team_id="T0ACME",
        is_stranger=False,
        event_type="app_mention",
        event_at=NOW - timedelta(seconds=3),
    )


# What may lie in the inbox.

CANARY = "xyzz0WbapA4vBCDEFasx0q6G"


def test_the_verification_token_of_an_event_is_not_kept() -> None:
    """Also a workflow's token goes; everything else still means the same."""
    envelope = _envelope(event=_mention(text='<@U0BOT> say "token" in 日本 \U0001f600'))
    envelope["event"]["bot_access_token"] = CANARY
    kept = without_tokens(
        RequestKind.EVENT, json.dumps({**envelope, "token": CANARY}, ensure_ascii=False).encode()
    )
    assert CANARY not in kept.decode()
    del envelope["event"]["bot_access_token"]
    assert json.loads(kept) == envelope
    before, after = (
        read_event(_signed(body), app_id=APP) for body in (json.dumps(envelope).encode(), kept)
    )
    assert before == after


def test_the_verification_token_of_a_click_is_not_kept() -> None:
    """It stands in the payload; older ones have it as a field beside it too."""
    payload = {"type": "block_actions", "api_app_id": APP, "view": {"token_like": "x"}}
    with_token = json.dumps({**payload, "token": CANARY, "bot_access_token": CANARY})
    form = urlencode({"payload": with_token, "token": CANARY})
    kept = without_tokens(RequestKind.INTERACTION, form.encode())
    assert json.loads(parse_form(kept)["payload"]) == payload
    assert CANARY not in kept.decode()


def test_the_verification_token_of_a_command_is_not_kept() -> None:
    """The rest of the form is what it was, in its order, whatever it holds."""
    fields = {"team_id": "T1", "text": "a=b&token=c ü + % \x00", "empty": ""}
    kept = without_tokens(RequestKind.COMMAND, urlencode({"token": CANARY, **fields}).encode())
    assert list(parse_form(kept).items()) == list(fields.items())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (RequestKind.EVENT, b'{ "a":  1.10, "text": "token" }'),
        (RequestKind.INTERACTION, b"payload=%7b%22a%22%3A1%7d&x=%20"),
        (RequestKind.COMMAND, b"text=token&a=%7E"),
    ],
)
def test_a_body_without_a_token_stays_as_it_came(kind: RequestKind, body: bytes) -> None:
    """Nothing is written anew without need."""
    assert without_tokens(kind, body) == body


@pytest.mark.parametrize("kind", RequestKind)
def test_what_was_never_read_is_not_taken_for_free_of_tokens(kind: RequestKind) -> None:
    """A body that cannot be read is refused, not passed on."""
    with pytest.raises(MalformedSlackRequest):
        without_tokens(kind, b"token=%zz&\xff")


def test_replies_share_the_lane_of_their_thread() -> None:
    """A mention deep in a thread waits for its turn in that thread."""
    reply = _admitted(
        _envelope(event=_mention(ts="1763985700.000200", thread_ts="1763985600.000100"))
    )
    assert reply.lane == _admitted(_envelope()).lane


def test_two_event_ids_of_one_message_share_the_second_key() -> None:
    """EV-49: Slack sometimes gives one message two event ids."""
    one, other = _admitted(_envelope()), _admitted(_envelope(event_id="Ev0000000002"))
    assert one.event_key != other.event_key
    assert one.second_key == other.second_key


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"team_id": "T0FOREIGN"}, ("", "T0ACME", False), id="EV-50"),
        pytest.param(
            {"authorizations": _authorization(enterprise_id="E0GRID")},
            ("E0GRID", "T0ACME", False),
            id="team-in-a-grid",
        ),
        pytest.param(
            {"authorizations": _authorization(enterprise_id="E0GRID", is_enterprise_install=True)},
            ("E0GRID", "", True),
            id="EV-52",
        ),
        pytest.param(
            {
                "authorizations": _authorization(
                    enterprise_id="E0GRID", team_id=None, is_enterprise_install=True
                )
            },
            ("E0GRID", "", True),
            id="EV-52-no-team",
        ),
        pytest.param(
            {"enterprise_id": "E0SENDER", "context_team_id": "T0SENDER"},
            ("", "T0ACME", False),
            id="context-is-no-key",
        ),
    ],
)
def test_the_installation_is_the_one_that_received_the_event(
    changes: dict[str, Any], key: tuple[str, str, bool]
) -> None:
    """Only `authorizations[0]` decides; the envelope's own team is the sender's."""
    assert _admitted(_envelope(**changes)).workspace == Workspace(*key, app_id=APP)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"is_enterprise_install": True, "enterprise_id": None}, id="EV-53"),
        pytest.param({"team_id": None}, id="no-team"),
        pytest.param({"team_id": "E0GRID"}, id="enterprise-as-team"),
        pytest.param({"enterprise_id": "T0ACME"}, id="team-as-enterprise"),
        pytest.param({"is_enterprise_install": "false"}, id="text-for-truth"),
    ],
)
def test_an_impossible_installation_is_refused(changes: dict[str, Any]) -> None:
    """An installation without its key is malformed, never guessed."""
    with pytest.raises(MalformedSlackRequest):
        _read(_envelope(authorizations=_authorization(**changes)))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(_envelope(authorizations=[]), id="EV-51"),
        pytest.param(_without(_envelope(), "authorizations"), id="EV-51-absent"),
    ],
)
def test_words_without_a_receiver_are_dropped(event: dict[str, Any]) -> None:
    """EV-51: nobody's event is acknowledged; no team is looked up instead."""
    assert _read(event) == Ignored("unknown_install")


def test_only_a_mention_of_the_receivers_bot_counts() -> None:
    """Where two workspaces of a shared channel have the app, the other's mention is dropped."""
    event = _mention(text="<@U0OTHERBOT> hello")
    assert _read(_envelope(event=event)) == Ignored("other_bot_mentioned")
    named = _mention(text=f"hi <@{BOT}|interlock> and <@U0OTHERBOT>")
    assert _admitted(_envelope(event=named)).slack_user_id == "U0ANN"


@pytest.mark.parametrize(
    ("event", "why"),
    [
        pytest.param(_mention(bot_id="B0BOT"), "bot_message", id="EV-58"),
        pytest.param(_mention(user=BOT), "bot_message", id="EV-58-user"),
        pytest.param(_mention(edited={"user": "U0ANN", "ts": "1.2"}), "not_new_words", id="edited"),
        pytest.param(_mention(subtype="message_deleted"), "not_new_words", id="deleted"),
        pytest.param(_mention(type="message", channel_type="channel"), "not_addressed", id="talk"),
        pytest.param(_mention(type="reaction_added"), "unhandled_event", id="reaction"),
    ],
)
def test_what_is_not_meant_for_the_bot_is_dropped(event: dict[str, Any], why: str) -> None:
    """The bot does not answer itself, edits, or talk that it merely overhears."""
    assert _read(_envelope(event=event)) == Ignored(why)


def test_a_direct_message_counts_but_not_one_between_people() -> None:
    """Words in the bot's own conversation count; a user authorization hears private talk."""
    words = _mention(type="message", channel_type="im", channel="D0BOT", text="hello")
    request = _admitted(_envelope(event=words))
    assert (request.event_type, request.lane) == ("message", "T0ACME:D0BOT:1763985600.000100")
    private = _envelope(event=words, authorizations=_authorization(user_id="U0ANN", is_bot=False))
    assert _read(private) == Ignored("not_the_bots")


def test_a_file_with_a_question_is_a_question() -> None:
    """`file_share` is the one subtype that carries a person's new words."""
    words = _mention(type="message", channel_type="im", channel="D0BOT", subtype="file_share")
    assert _admitted(_envelope(event=words)).slack_user_id == "U0ANN"


GRID = _authorization(enterprise_id="E0GRID")
ORG = _authorization(enterprise_id="E0GRID", is_enterprise_install=True)


@pytest.mark.parametrize(
    ("changes", "event", "is_stranger"),
    [
        pytest.param({}, {}, False, id="colleague"),
        pytest.param({}, {"user_team": "T0FOREIGN"}, True, id="foreign-user-team"),
        pytest.param({}, {"team": "T0FOREIGN"}, True, id="foreign-team"),
        pytest.param({}, {"team": None}, False, id="team-not-said"),
        pytest.param({"authorizations": GRID}, {"team": "T0SISTER"}, False, id="grid-colleague"),
        pytest.param({"authorizations": ORG}, {"team": "T0SISTER"}, False, id="org-colleague"),
        pytest.param(
            {"authorizations": GRID, "is_ext_shared_channel": True},
            {"user_team": "T0FOREIGN"},
            True,
            id="grid-shared-with-a-stranger",
        ),
        pytest.param(
            {"authorizations": GRID, "is_ext_shared_channel": True},
            {"user_team": "E0GRID"},
            False,
            id="grid-shared-own-enterprise",
        ),
        pytest.param(
            {"authorizations": ORG, "is_ext_shared_channel": True},
            {"user_team": "T0ACME"},
            False,
            id="org-shared-own-team",
        ),
        pytest.param(
            {"is_ext_shared_channel": True}, {"user_team": "E0OTHER"}, True, id="foreign-enterprise"
        ),
    ],
)
def test_people_of_another_organization_are_strangers(
    changes: dict[str, Any], event: dict[str, Any], is_stranger: bool
) -> None:
    """A sender's team decides about the sender only, and doubt in a shared channel counts."""
    request = _admitted(_envelope(**changes, event=_mention(**event)))
    assert request.is_stranger is is_stranger


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({}, ("", "T0ACME", False), id="authorized"),
        pytest.param({"authorizations": []}, ("", "T0ACME", False), id="team-only"),
        pytest.param(
            {"authorizations": [], "enterprise_id": "E0GRID"},
            ("E0GRID", "T0ACME", False),
            id="team-in-a-grid",
        ),
        pytest.param(
            {"authorizations": [], "team_id": "E0GRID"}, ("E0GRID", "", True), id="org-as-team"
        ),
    ],
)
@pytest.mark.parametrize("event_type", ["app_uninstalled", "tokens_revoked"])
def test_uninstalls_never_wait_and_name_whom_they_mean(
    event_type: str, changes: dict[str, Any], key: tuple[str, str, bool]
) -> None:
    """An uninstall is a control event of nobody, also without authorizations."""
    request = _admitted(_envelope(**changes, event={"type": event_type}))
    assert request.is_control
    assert (request.slack_user_id, request.is_stranger, request.second_key) == ("", False, "")
    assert request.workspace == Workspace(*key, app_id=APP)


def test_an_org_uninstall_may_name_the_enterprise_alone() -> None:
    """EV-57: without a team, the Enterprise's own installation is meant."""
    event = _without(_without(_envelope(), "team_id"), "authorizations")
    request = _admitted(event | {"enterprise_id": "E0GRID", "event": {"type": "app_uninstalled"}})
    assert request.workspace == Workspace("E0GRID", "", is_enterprise_install=True, app_id=APP)


# Interactions.


def _click(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "block_actions",
        "api_app_id": APP,
        "team": {"id": "T0ACME", "domain": "acme"},
        "enterprise": None,
        "is_enterprise_install": False,
        "user": {"id": "U0ANN", "team_id": "T0ACME"},
        "channel": {"id": "C0GENERAL"},
        "container": {"type": "message", "message_ts": "1763985601.000200"},
        "actions": [{"action_id": "stop"}],
    }
    return base | changes


def _interact(payload: dict[str, Any]) -> Ignored | SlackRequest:
    return read_interaction(
        _signed(urlencode({"payload": json.dumps(payload)}).encode()), app_id=APP
    )


def _clicked(payload: dict[str, Any]) -> SlackRequest:
    request = _interact(payload)
    assert isinstance(request, SlackRequest)
    return request


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="IA-01-empty"),
        pytest.param(b"other=1", id="IA-01-missing"),
        pytest.param(b"payload=%7B%7D&payload=%7B%7D", id="IA-01-twice"),
        pytest.param(b"payload=hello", id="IA-01-not-json"),
        pytest.param(b"payload=%zz", id="IA-02-broken-escape"),
        pytest.param(b"payload=%7B%22a%22%3A1%7", id="IA-02-cut-escape"),
        pytest.param(b"payload=%ff", id="IA-02-not-utf-8"),
        pytest.param("payload=ä".encode(), id="IA-02-not-encoded"),
        pytest.param(b"=1", id="no-name"),
        pytest.param(b"&".join(b"f%d=1" % n for n in range(101)), id="too-many"),
    ],
)
def test_a_broken_form_is_refused(body: bytes) -> None:
    """IA-01, IA-02: an interaction is one strictly encoded payload."""
    with pytest.raises(MalformedSlackRequest):
        read_interaction(_signed(body), app_id=APP)


def test_a_plus_is_a_space_and_an_encoded_plus_a_plus() -> None:
    """IA-02: form decoding is Slack's."""
    payload = json.dumps(_click(channel={"id": "C0GENERAL", "name": "a+b c"}))
    body = b"payload=" + quote(payload, safe="").replace("%20", "+").encode()
    assert isinstance(read_interaction(_signed(body), app_id=APP), SlackRequest)


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        pytest.param(_click(), ("", "T0ACME", False), id="team"),
        pytest.param(
            _click(enterprise={"id": "E0GRID"}), ("E0GRID", "T0ACME", False), id="team-in-a-grid"
        ),
        pytest.param(
            _click(team={"id": "T0ACME", "enterprise_id": "E0GRID"}),
            ("E0GRID", "T0ACME", False),
            id="enterprise-in-team",
        ),
        pytest.param(
            _click(enterprise={"id": "E0GRID"}, is_enterprise_install=True),
            ("E0GRID", "", True),
            id="org-wide",
        ),
        pytest.param(
            _click(team=None, enterprise={"id": "E0GRID"}, is_enterprise_install=True),
            ("E0GRID", "", True),
            id="org-wide-without-team",
        ),
        pytest.param(
            _click(
                type="view_submission",
                view={"app_installed_team_id": "T0HOME"},
                team={"id": "T0FOREIGN"},
            ),
            ("", "T0HOME", False),
            id="modal-in-a-shared-channel",
        ),
        pytest.param(
            _click(team=None, user={"id": "U0ANN", "team_id": "T0ACME"}),
            ("", "T0ACME", False),
            id="only-the-users-team",
        ),
    ],
)
def test_the_payload_names_the_installation(
    payload: dict[str, Any], key: tuple[str, str, bool]
) -> None:
    """The rule of the verified team for interactions, in Bolt's order."""
    assert _clicked(payload).workspace == Workspace(*key, app_id=APP)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(_click(is_enterprise_install=True), id="org-without-enterprise"),
        pytest.param(_click(team=None, user={"id": "U0ANN"}), id="no-team-at-all"),
        pytest.param(_click(user=None), id="nobody"),
        pytest.param(_click(user={"id": "ann", "team_id": "T0ACME"}), id="odd-user"),
        pytest.param(_click(team="T0ACME"), id="team-as-text"),
        pytest.param(_without(_click(), "type"), id="no-type"),
    ],
)
def test_an_impossible_interaction_is_refused(payload: dict[str, Any]) -> None:
    """An interaction without actor or installation is malformed."""
    with pytest.raises(MalformedSlackRequest):
        _interact(payload)


def test_clicks_are_control_events_in_their_messages_thread() -> None:
    """A click never waits behind the run that it may want to stop."""
    in_thread = {"message_ts": "1763985700.000300", "thread_ts": "1763985600.000100"}
    request = _clicked(_click(container=in_thread))
    assert request.is_control
    assert request.lane == "T0ACME:C0GENERAL:1763985600.000100"
    modal = _click(type="view_submission", channel=None, container=None)
    assert _clicked(modal).lane == "T0ACME:-:U0ANN"


def test_a_click_from_outside_is_a_strangers() -> None:
    """In a shared channel the other organization's people may click, and are known as such."""
    payload = _click(user={"id": "U0EVE", "team_id": "T0FOREIGN"})
    assert _clicked(payload).is_stranger
    assert not _clicked(_click()).is_stranger


def test_a_replayed_click_has_the_same_key_and_another_one_has_not() -> None:
    """EV-18: what was signed names the request, where Slack gives no id."""
    one, other = _clicked(_click()), _clicked(_click(trigger_id="1.2"))
    assert one.event_key == _clicked(_click()).event_key
    assert one.event_key != other.event_key


def test_interactions_that_need_no_answer_are_dropped() -> None:
    """Closing a modal asks for nothing."""
    assert _interact(_click(type="view_closed")) == Ignored("unanswered_interaction")
    with pytest.raises(ForeignApp):
        _interact(_click(api_app_id="A0OTHER"))


# Commands.


def _command(**changes: str) -> bytes:
    base = {
        "team_id": "T0ACME",
        "team_domain": "acme",
        "channel_id": "C0GENERAL",
        "user_id": "U0ANN",
        "command": "/interlock",
        "text": "ask the weather",
        "api_app_id": APP,
        "is_enterprise_install": "false",
    }
    fields = base | changes
    return urlencode({name: value for name, value in fields.items() if value != "-"}).encode()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({}, ("", "T0ACME", False), id="team"),
        pytest.param({"is_enterprise_install": "-"}, ("", "T0ACME", False), id="not-said"),
        pytest.param({"is_enterprise_install": ""}, ("", "T0ACME", False), id="empty"),
        pytest.param({"enterprise_id": "E0GRID"}, ("E0GRID", "T0ACME", False), id="both"),
        pytest.param(
            {"enterprise_id": "E0GRID", "is_enterprise_install": "true"},
            ("E0GRID", "", True),
            id="org-wide",
        ),
        pytest.param(
            {"team_id": "-", "enterprise_id": "E0GRID", "is_enterprise_install": "true"},
            ("E0GRID", "", True),
            id="org-wide-without-team",
        ),
    ],
)
def test_a_command_names_its_installation(
    changes: dict[str, str], key: tuple[str, str, bool]
) -> None:
    """CM-01: the possible combinations of the three fields."""
    request = read_command(_signed(_command(**changes)), app_id=APP)
    assert isinstance(request, SlackRequest)
    assert request.workspace == Workspace(*key, app_id=APP)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"is_enterprise_install": "true"}, id="org-without-enterprise"),
        pytest.param({"team_id": "-"}, id="no-team"),
        pytest.param({"team_id": "-", "enterprise_id": "E0GRID"}, id="enterprise-not-org-wide"),
        pytest.param({"is_enterprise_install": "True"}, id="odd-truth"),
        pytest.param({"is_enterprise_install": "1"}, id="number-for-truth"),
        pytest.param({"team_id": "E0GRID"}, id="enterprise-as-team"),
        pytest.param({"user_id": "-"}, id="nobody"),
        pytest.param({"command": "interlock"}, id="no-slash"),
    ],
)
def test_an_impossible_command_is_refused(changes: dict[str, str]) -> None:
    """CM-01: the impossible combinations are malformed."""
    with pytest.raises(MalformedSlackRequest):
        read_command(_signed(_command(**changes)), app_id=APP)


def test_a_probe_of_the_certificate_does_nothing() -> None:
    """EV-45: `ssl_check` asks for nothing, once it is verified."""
    assert read_command(_signed(b"ssl_check=1&token=x"), app_id=APP) == Ignored("ssl_check")


@pytest.mark.parametrize(
    ("text", "is_control"), [("stop", True), ("Unlink me", True), ("", False), ("stopwatch", False)]
)
def test_commands_that_end_something_do_not_wait(text: str, is_control: bool) -> None:
    """`stop` and `unlink` are control events; a question is not."""
    request = read_command(_signed(_command(text=text)), app_id=APP)
    assert isinstance(request, SlackRequest)
    assert request.is_control is is_control


def test_a_command_with_the_url_for_links_is_a_request_for_a_link() -> None:
    """Whatever follows it; it waits behind nothing, and is verified like any command."""
    signed = _signed(_command(text="what is new"))
    request = read_link_command(signed, app_id=APP)
    assert isinstance(request, SlackRequest)
    assert (request.event_type, request.is_control) == (LINK_COMMAND, True)
    assert request.kind is RequestKind.COMMAND
    assert read_link_command(_signed(b"ssl_check=1"), app_id=APP) == Ignored("ssl_check")


def test_a_long_command_text_is_data() -> None:
    """CM-03: 40 kB of anything is taken as text."""
    text = "<!channel> \x00\u202e" * 3000
    assert isinstance(read_command(_signed(_command(text=text)), app_id=APP), SlackRequest)
