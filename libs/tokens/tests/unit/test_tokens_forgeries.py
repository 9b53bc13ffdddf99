"""Tokens that must not pass: swapped, forged, misspelt, oversized, out of time."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.wire import MAX_TOKEN_CHARS, encode_segment

if TYPE_CHECKING:
    from libs.tokens.tests.unit.conftest import Ring


EVERY_FAMILY = pytest.mark.parametrize("family", list(Family))
# Verifiers that are one: both take the proof of an event.
EVENT = {Family.SLACK_GRANT, Family.RENEWED_GRANT}


def refused(ring: Ring, family: Family, token: str) -> str:
    """Verify a token that must be refused; return the problem told to the log."""
    with pytest.raises(InvalidToken) as refusal:
        ring.verify(family, token)
    assert str(refusal.value) == "The token does not verify"
    assert refusal.value.__cause__ is None
    return refusal.value.problem


@EVERY_FAMILY
@pytest.mark.parametrize("verifier", list(Family))
def test_jw02_a_token_passes_only_where_its_family_is_taken(
    ring: Ring, family: Family, verifier: Family
) -> None:
    """JW-02: every family at every verifier, with keys that sign them all: the diagonal only."""
    token = ring.sign(family)
    if family is verifier or {family, verifier} <= EVENT:
        ring.verify(verifier, token)
    else:
        assert refused(ring, verifier, token) == "family"


@EVERY_FAMILY
def test_an_event_or_admin_is_neither_a_user_nor_an_install(ring: Ring, family: Family) -> None:
    """Where an event or an administrator is welcome, no other family is."""
    token = ring.sign(family)
    if family in EVENT | {Family.ADMIN_GRANT}:
        ring.verify_either(token)
    else:
        with pytest.raises(InvalidToken):
            ring.verify_either(token)


@EVERY_FAMILY
@pytest.mark.parametrize("other", list(Family))
def test_a_header_of_another_family_does_not_help(
    ring: Ring, family: Family, other: Family
) -> None:
    """Claims of one family under the header of another, rightly signed, are refused."""
    if other is family:
        return
    header = json.dumps(ring.header(other)).encode()
    payload = json.dumps(ring.claims(family)).encode()
    refused(ring, other, ring.seal(other, header, payload))


@EVERY_FAMILY
@pytest.mark.parametrize("alg", ["none", "None", "HS512", "RS256", "hs256", "eddsa", "ES256", ""])
def test_jw01_only_the_one_algorithm_is_taken(ring: Ring, family: Family, alg: str) -> None:
    """JW-01: any other `alg`, even with a right signature, is refused before the key is used."""
    assert refused(ring, family, ring.forge(family, header={"alg": alg})) == "family"


@EVERY_FAMILY
@pytest.mark.parametrize("member", ["alg", "typ"])
def test_jw01_a_header_without_algorithm_or_type_is_refused(
    ring: Ring, family: Family, member: str
) -> None:
    """JW-01: what the header leaves out is not guessed."""
    assert refused(ring, family, ring.forge(family, drop=member)) == "family"


@EVERY_FAMILY
def test_jw01_an_empty_signature_is_refused(ring: Ring, family: Family) -> None:
    """JW-01: the unsigned token of the RFC, with `none` or with the right algorithm."""
    signed, _, _ = ring.sign(family).rpartition(".")
    assert refused(ring, family, f"{signed}.") == "base64url"
    assert refused(ring, family, signed) == "segments"


@EVERY_FAMILY
@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["inkeep-api", "x"]},
        {"aud": ["interlock"]},
        {"aud": "other"},
        {"aud": ""},
        {"iss": "inkeep"},
        {"iss": ["inkeep-auth"]},
        {"iss": None},
        {"tokenUse": "slackuser"},
        {"tokenUse": None},
    ],
)
def test_jw03_issuer_audience_and_use_are_exact(
    ring: Ring, family: Family, claims: dict[str, Any]
) -> None:
    """JW-03: no lists, no other spelling, no other value."""
    refused(ring, family, ring.forge(family, claims=claims))


@EVERY_FAMILY
def test_jw03_no_required_claim_may_be_missing(ring: Ring, family: Family) -> None:
    """JW-03: a token without any one of its family's required claims is refused."""
    for claim in FAMILIES[family].required_claims:
        assert refused(ring, family, ring.forge(family, drop=claim)) == "missing claim"


@pytest.mark.parametrize(
    "act",
    [
        {"sub": "someone-else"},
        {},
        "inkeep-work-app-slack",
        {"sub": "inkeep-work-app-slack", "act": {"sub": "x"}},
    ],
)
def test_jw03_the_actor_is_the_work_app(ring: Ring, act: object) -> None:
    """JW-03: an as-user token of any other actor, or of a chain of actors, is refused."""
    refused(ring, Family.SLACK_USER, ring.forge(Family.SLACK_USER, claims={"act": act}))


@EVERY_FAMILY
@pytest.mark.parametrize("claim", ["iat", "exp"])
@pytest.mark.parametrize("wrong", ["1767225600", 1.5, 1e9, True, None, 10**30, -1, [1]])
def test_jw04_instants_are_integers_of_this_age(
    ring: Ring, family: Family, claim: str, wrong: object
) -> None:
    """JW-04: strings, floats, truth values and numbers beyond all time are refused."""
    refused(ring, family, ring.forge(family, claims={claim: wrong}))


@EVERY_FAMILY
def test_jw04_a_life_longer_than_the_family_allows_is_refused(ring: Ring, family: Family) -> None:
    """JW-04: one second more than the table says, and a life of nothing, are refused."""
    issued = int(ring.claims(family)["iat"])
    life = int(FAMILIES[family].max_life.total_seconds())
    assert refused(ring, family, ring.forge(family, claims={"exp": issued + life + 1})) == "life"
    assert refused(ring, family, ring.forge(family, claims={"exp": issued})) == "life"


@EVERY_FAMILY
def test_a_token_lives_from_its_start_to_its_end(ring: Ring, family: Family) -> None:
    """The first instant after `exp` is too late; 60 s before `iat` is the earliest."""
    token, life = ring.sign(family), FAMILIES[family].max_life
    second = timedelta(seconds=1)
    ring.verify(family, token, after=life - second)
    ring.verify(family, token, after=-60 * second)
    for after, problem in ((life, "expired"), (-61 * second, "not yet")):
        with pytest.raises(InvalidToken) as refusal:
            ring.verify(family, token, after=after)
        assert refusal.value.problem == problem


def test_a_user_token_not_yet_valid_is_refused(ring: Ring) -> None:
    """Another issuer's `nbf` is obeyed, and must be an integer."""
    start = int(ring.claims(Family.SLACK_USER)["iat"])
    ring.verify(Family.SLACK_USER, ring.forge(Family.SLACK_USER, claims={"nbf": start}))
    for nbf in (start + 61, str(start), True):
        refused(ring, Family.SLACK_USER, ring.forge(Family.SLACK_USER, claims={"nbf": nbf}))


@EVERY_FAMILY
@pytest.mark.parametrize("member", ["tokenUse", "iat", "iss"])
def test_jw05_a_claim_said_twice_is_refused(ring: Ring, family: Family, member: str) -> None:
    """JW-05: two readers could see two tokens, so a repeated key is refused even when equal."""
    claims = ring.claims(family)
    text = json.dumps(claims)
    doubled = text[:-1] + f", {json.dumps(member)}: {json.dumps(claims[member])}}}"
    header = json.dumps(ring.header(family)).encode()
    assert refused(ring, family, ring.seal(family, header, doubled.encode())) == "repeated key"


@EVERY_FAMILY
def test_jw05_a_header_member_said_twice_is_refused(ring: Ring, family: Family) -> None:
    """JW-05: `alg` twice in the header is refused."""
    header = ring.header(family)
    doubled = json.dumps(header)[:-1] + f', "alg": "{header["alg"]}"}}'
    payload = json.dumps(ring.claims(family)).encode()
    assert refused(ring, family, ring.seal(family, doubled.encode(), payload)) == "repeated key"


def test_jw05_a_repeated_key_deep_inside_is_refused(ring: Ring) -> None:
    """JW-05: nested objects are read as strictly as the outer one."""
    claims = ring.claims(Family.SLACK_USER)
    text = json.dumps(claims).replace('"teamId":', '"teamId": "T0EVIL", "teamId":')
    header = json.dumps(ring.header(Family.SLACK_USER)).encode()
    token = ring.seal(Family.SLACK_USER, header, text.encode())
    assert refused(ring, Family.SLACK_USER, token) == "repeated key"


@EVERY_FAMILY
@pytest.mark.parametrize(
    "kid",
    [
        "unknown",
        "../../etc/passwd",
        "' OR 1=1",
        "hs\n",
        "",
        "k" * 3000,
        None,
        7,
        ["ed"],
        {"ed": 1},
        True,
    ],
)
def test_jw06_a_kid_is_only_a_name_to_look_up(ring: Ring, family: Family, kid: object) -> None:
    """JW-06: any other kid than a listed one is refused; nothing else is done with it."""
    assert refused(ring, family, ring.forge(family, header={"kid": kid})) in {"key", "size"}


def test_jw06_only_the_legacy_secret_verifies_without_a_kid(ring: Ring) -> None:
    """JW-06: a missing kid means the platform's one old secret, and for no grant anything."""
    for family in Family:
        token = ring.forge(family, drop="kid")
        if family is Family.SLACK_USER:
            ring.verify(family, token)
        else:
            assert refused(ring, family, token) == "key"


@EVERY_FAMILY
@pytest.mark.parametrize("member", ["jku", "jwk", "x5u", "x5c", "crit", "cty", "zip", "b64"])
def test_jw06_a_header_may_not_say_how_it_is_verified(
    ring: Ring, family: Family, member: str
) -> None:
    """JW-06: `jku` and its kin, and any member we do not know, are refused."""
    assert refused(ring, family, ring.forge(family, header={member: "x"})) == "header"


@EVERY_FAMILY
@pytest.mark.parametrize("tail", ["=", "==", "\n", " ", ".", "\x00", "A"])
def test_jw07_a_token_has_one_spelling(ring: Ring, family: Family, tail: str) -> None:
    """JW-07: padding, newlines and anything after the signature are refused."""
    refused(ring, family, ring.sign(family) + tail)


@pytest.mark.parametrize("letter", ["+", "/"])
def test_jw07_the_alphabet_is_that_of_urls(ring: Ring, letter: str) -> None:
    """JW-07: the ordinary base64 alphabet is refused, although it could be decoded."""
    signed, _, signature = ring.sign(Family.SLACK_GRANT).rpartition(".")
    assert refused(ring, Family.SLACK_GRANT, f"{signed}.{letter}{signature[1:]}") == "base64url"


@EVERY_FAMILY
def test_jw08_a_token_over_the_limit_is_not_even_split(ring: Ring, family: Family) -> None:
    """JW-08: beyond 4 KiB nothing is parsed, however well it is signed."""
    assert refused(ring, family, "a" * 2_000_000) == "size"
    padded = {"jti": "j" * MAX_TOKEN_CHARS}
    assert refused(ring, family, ring.forge(family, claims=padded)) == "size"


@pytest.mark.parametrize("blank", ["", " ", "\t", " acme", "acme ", "ac\nme", "\u2028", "\ud800"])
@pytest.mark.parametrize("claim", ["sub", "tenantId", "jti"])
def test_jw09_blank_and_dirty_texts_are_refused(ring: Ring, claim: str, blank: str) -> None:
    """JW-09: an empty subject or tenant, or one of spaces and control characters, is nobody."""
    refused(ring, Family.SLACK_USER, ring.forge(Family.SLACK_USER, claims={claim: blank}))


@EVERY_FAMILY
def test_no_text_claim_may_be_empty(ring: Ring, family: Family) -> None:
    """Absent is absent: an empty string or null in its place is refused, nested ones too."""
    claims, nothings = ring.claims(family), ("", None, list[str](), dict[str, str]())
    for name, value in claims.items():
        for nothing in nothings:
            refused(ring, family, ring.forge(family, claims={name: nothing}))
            if isinstance(value, dict):
                for inner in value:
                    hollow = {name: {**value, inner: nothing}}
                    refused(ring, family, ring.forge(family, claims=hollow))


@EVERY_FAMILY
def test_only_the_platform_may_say_more(ring: Ring, family: Family) -> None:
    """An unknown claim is refused in our own families and passed over in the platform's."""
    token = ring.forge(family, claims={"extra": "x"})
    if family is Family.SLACK_USER:
        ring.verify(family, token)
    else:
        assert refused(ring, family, token) == "unknown claim"


@EVERY_FAMILY
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a":' + b"[" * 2000 + b"]" * 500,
        b'{"a": ' + b"9" * 2000 + b"}",
    ],
)
def test_a_payload_that_is_not_one_strict_object_is_refused(
    ring: Ring, family: Family, payload: bytes
) -> None:
    """JSON that is none, of another encoding, too deep or without end is refused quietly."""
    header = json.dumps(ring.header(family)).encode()
    refused(ring, family, ring.seal(family, header, payload))


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b.c", "é.é.é", "a.b.c.d", "\ud800.a.b"])
def test_what_is_no_token_is_refused(ring: Ring, token: str) -> None:
    """Anything but three strict segments is refused at every verifier."""
    for family in Family:
        refused(ring, family, token)


@given(data=st.data())
def test_any_flipped_bit_is_noticed(ring: Ring, data: st.DataObject) -> None:
    """No token with one bit changed, anywhere, verifies."""
    family = data.draw(st.sampled_from(list(Family)))
    token = ring.sign(family).encode()
    at = data.draw(st.integers(0, len(token) - 1))
    bit = data.draw(st.integers(0, 6))
    flipped = bytearray(token)
    flipped[at] ^= 1 << bit
    refused(ring, family, flipped.decode())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(data=st.data())
def test_a_trusted_signer_gone_wild_is_refused_and_no_more(ring: Ring, data: st.DataObject) -> None:
    """Whatever a rightly signed claim holds, a verifier answers or refuses; it never breaks."""
    family = data.draw(st.sampled_from(list(Family)))
    name = data.draw(st.sampled_from(sorted(ring.claims(family))))
    token = ring.forge(family, claims={name: data.draw(JSON_VALUES)})
    with contextlib.suppress(InvalidToken):
        ring.verify(family, token)


@given(text=st.text(max_size=200))
def test_no_text_breaks_a_verifier(ring: Ring, text: str) -> None:
    """Arbitrary text, also in place of each segment, is refused and no more."""
    header, payload, signature = ring.sign(Family.SLACK_GRANT).split(".")
    segment = encode_segment(text.encode("utf-8", "surrogatepass"))
    for token in (text, f"{segment}.{payload}.{signature}", f"{header}.{segment}.{signature}"):
        refused(ring, Family.SLACK_GRANT, token)
