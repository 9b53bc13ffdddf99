"""Keysets: which documents are read, which key signs when, and what is never shown."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from interlock_chassis.errors import ConfigError, Kind
from interlock_chassis.secret import Secret
from interlock_tokens.errors import InvalidToken, NoSigningKey
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import sign_install_grant
from interlock_tokens.verifying import verify_install_grant
from interlock_tokens.wire import encode_segment, take_apart

VARIABLE = "INTERLOCK_GRANT_KEYS_FILE"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INSTALL = Family.INSTALL_GRANT
Row = dict[str, Any]


def load(*rows: Row) -> Keyset:
    """Read a document of the rows."""
    return Keyset.from_json(Secret(json.dumps({"keys": list(rows)})), variable=VARIABLE)


def ed25519(kid: str = "ed", **members: object) -> Row:
    """Make a key that signs install grants."""
    return generate_ed25519_key(kid, [INSTALL]) | members


def hs256(kid: str = "hs", **members: object) -> Row:
    """Make a key that signs user tokens."""
    return generate_hs256_key(kid, [Family.SLACK_USER]) | members


def public(*rows: Row) -> Keyset:
    """Read what a verifier gets of the rows."""
    return Keyset.from_json(Secret(load(*rows).public()), variable=VARIABLE)


def sign(keyset: Keyset, now: datetime = NOW) -> str:
    """Sign an ordinary install grant."""
    return sign_install_grant(
        keyset,
        now=now,
        jti="j",
        tenant_id="acme",
        user_id="user_1",
        state_sha256="ab" * 32,
        source="direct",
    ).reveal()


def kid_of(token: str) -> object:
    """Return the name of the key that signed."""
    return take_apart(token).header["kid"]


def second(instant: datetime) -> int:
    """Return an instant as a keyset document says it."""
    return int(instant.timestamp())


@pytest.mark.parametrize("size", [0, 1, 16, 31])
def test_jw11_a_short_secret_stops_start_up(size: int) -> None:
    """JW-11: an HS256 key below 32 bytes is a configuration error, not a warning."""
    with pytest.raises(ConfigError) as refusal:
        load(hs256(k=encode_segment(b"s" * size)))
    assert refusal.value.variable == VARIABLE


def test_jw11_a_secret_of_32_bytes_is_taken() -> None:
    """JW-11: the limit itself is allowed."""
    load(hs256(k=encode_segment(b"s" * 32)))


BAD_ROWS: dict[str, Any] = {
    "not an object": "key",
    "no kid": {name: value for name, value in ed25519().items() if name != "kid"},
    "a path as kid": ed25519("../edge"),
    "an empty kid": ed25519(""),
    "a number as kid": ed25519() | {"kid": 1},
    "RSA": ed25519() | {"kty": "RSA"},
    "no kty": {name: value for name, value in ed25519().items() if name != "kty"},
    "a kty of a list": ed25519() | {"kty": ["OKP"]},
    "another curve": ed25519(crv="Ed448"),
    "an unknown member": ed25519(alg="EdDSA"),
    "a secret in a public key": ed25519(k="AAAA"),
    "no families": ed25519(families=[]),
    "families of text": ed25519(families="installGrant"),
    "an unknown family": ed25519(families=["serviceToken"]),
    "a family of the other key type": ed25519(families=["slackUser"]),
    "a grant under a shared secret": hs256(families=["installGrant"]),
    "x of the wrong size": ed25519(x="AAAA"),
    "x with padding": ed25519(x="A" * 43 + "="),
    "d of another key": ed25519(d=ed25519()["d"]),
    "d of the wrong size": ed25519(d="AAAA"),
    "k of a list": hs256(k=["AAAA"]),
    "not_before of text": ed25519(not_before="0"),
    "not_before as true": ed25519(not_before=True),
    "not_before in milliseconds of far ages": ed25519(not_before=2**41),
    "not_before of null": ed25519(not_before=None),
    "retire_after before not_before": ed25519(not_before=10, retire_after=10),
    "sign of text": ed25519(sign="yes"),
    "legacy of a grant key": ed25519(legacy=True),
    "legacy of text": hs256(legacy="yes"),
    "sign without a private part": {**ed25519(sign=True), "d": None},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_key_that_breaks_a_rule_stops_start_up(row: Any) -> None:
    """Each row is refused by name, and the message never holds the key."""
    with pytest.raises(ConfigError) as refusal:
        load(row)
    assert refusal.value.variable == VARIABLE
    if isinstance(row, dict):
        for part in ("k", "d", "x"):
            value = row.get(part)
            assert not isinstance(value, str) or len(value) < 8 or value not in str(refusal.value)


@pytest.mark.parametrize(
    "document",
    ["", "[]", "{}", '{"keys": []}', '{"keys": {}}', '{"keys": [], "keys": []}', "{", "null"],
)
def test_a_document_without_keys_stops_start_up(document: str) -> None:
    """Nothing that is not a list of keys is taken for one."""
    with pytest.raises(ConfigError):
        Keyset.from_json(Secret(document), variable=VARIABLE)


def test_a_document_says_nothing_but_keys() -> None:
    """A member beside `keys` is a typing error, and so are more keys than anyone has."""
    with pytest.raises(ConfigError):
        Keyset.from_json(Secret(json.dumps({"keys": [ed25519()], "x": 1})), variable=VARIABLE)
    row = ed25519(sign=False)
    with pytest.raises(ConfigError):
        load(*(row | {"kid": f"k{number}"} for number in range(65)))


def test_a_public_key_asked_to_sign_stops_start_up() -> None:
    """`sign: true` without a private part is a configuration error."""
    row = ed25519(sign=True)
    del row["d"]
    with pytest.raises(ConfigError):
        load(row)


def test_ambiguous_keysets_stop_start_up() -> None:
    """Two keys of one name, two legacy secrets, two keys that start to sign together: refused."""
    for rows in (
        [ed25519("a", sign=False), ed25519("a", sign=False)],
        [hs256("a", legacy=True, sign=False), hs256("b", legacy=True)],
        [ed25519("a"), ed25519("b")],
        [ed25519("a", not_before=5), ed25519("b", not_before=5)],
    ):
        with pytest.raises(ConfigError):
            load(*rows)


def test_what_is_public_verifies_and_cannot_sign() -> None:
    """The public document holds no private part, and all that a verifier needs."""
    row, secret = ed25519(not_before=5, retire_after=second(NOW) + 9000), hs256()
    document = load(row, secret).public()
    assert str(row["d"]) not in document
    assert str(secret["k"]) not in document
    assert json.loads(document) == {
        "keys": [
            {
                "kid": "ed",
                "kty": "OKP",
                "crv": "Ed25519",
                "x": row["x"],
                "families": ["installGrant"],
                "not_before": 5,
                "retire_after": second(NOW) + 9000,
            }
        ]
    }
    verifier = Keyset.from_json(Secret(document), variable=VARIABLE)
    verify_install_grant(sign(load(row)), verifier, now=NOW)
    with pytest.raises(NoSigningKey):
        sign(verifier)


def test_joined_keysets_verify_the_tokens_of_both() -> None:
    """Public keysets of two signers become one; the same public key twice is no conflict."""
    first, other = ed25519("first"), ed25519("other")
    joined = Keyset.join(public(first), public(other), public(first))
    for row in (first, other):
        verify_install_grant(sign(load(row)), joined, now=NOW)


def test_a_joined_keyset_keeps_the_private_part() -> None:
    """A signer joined with public documents that hold its own key still signs."""
    row = ed25519()
    joined = Keyset.join(load(row), public(row))
    verify_install_grant(sign(joined), joined, now=NOW)


def test_joining_two_keys_of_one_name_is_refused() -> None:
    """Two signers that named different keys alike are told so at start-up."""
    with pytest.raises(ConfigError):
        Keyset.join(public(ed25519("same")), public(ed25519("same")))


def test_a_key_verifies_only_the_families_it_lists() -> None:
    """A right signature by a key of another family is refused."""
    row = ed25519()
    token = sign(load(row))
    verifier = load(row | {"families": ["adminGrant", "slackGrant", "renewedGrant"]})
    with pytest.raises(InvalidToken) as refusal:
        verify_install_grant(token, verifier, now=NOW)
    assert refusal.value.problem == "key"


def test_start_up_notices_a_family_without_a_signer() -> None:
    """A process that could not sign what it must is stopped before it serves."""
    keyset = load(ed25519(), hs256(sign=False))
    keyset.require_signing(INSTALL, variable=VARIABLE)
    for family in (Family.ADMIN_GRANT, Family.SLACK_USER):
        with pytest.raises(ConfigError):
            keyset.require_signing(family, variable=VARIABLE)


def test_a_rotation_in_phases_refuses_no_token() -> None:
    """Publish, promote, withdraw, retire: at every step every living token verifies everywhere."""
    old, new = ed25519("old"), ed25519("new")
    phases = [
        ([old], "old"),
        ([old, new | {"sign": False}], "old"),
        ([old | {"sign": False}, new], "new"),
        ([new], "new"),
    ]
    for rows, signer in phases:
        assert kid_of(sign(load(*rows))) == signer
    # While a phase is rolled out, processes of both phases sign and verify.
    for (before, _), (after, _) in itertools.pairwise(phases):
        for signing, verifying in itertools.product((before, after), repeat=2):
            verify_install_grant(sign(load(*signing)), public(*verifying), now=NOW)


def test_a_new_key_takes_over_at_its_time() -> None:
    """A key with `not_before` signs from that second on, without another roll-out."""
    start = NOW + timedelta(hours=1)
    keyset = load(ed25519("old"), ed25519("new", not_before=second(start)))
    assert kid_of(sign(keyset, start - timedelta(seconds=1))) == "old"
    assert kid_of(sign(keyset, start)) == "new"


def test_a_key_verifies_from_its_start_with_a_minute_of_grace() -> None:
    """A verifier whose clock is a minute slow takes the first tokens of a new key."""
    start = NOW + timedelta(hours=1)
    row = ed25519("new", not_before=second(start))
    token = sign(load(row), start)
    verify_install_grant(token, public(row), now=start - timedelta(seconds=60))
    with pytest.raises(InvalidToken) as refusal:
        verify_install_grant(token, public(row), now=start - timedelta(seconds=61))
    assert refusal.value.problem == "key"


def test_a_retired_key_verifies_nothing() -> None:
    """From `retire_after` on a key counts no longer, even for a token still in its life."""
    end = NOW + timedelta(minutes=10)
    row = ed25519()
    token = sign(load(row), NOW)
    verifier = public(row | {"retire_after": second(end)})
    verify_install_grant(token, verifier, now=end - timedelta(seconds=1))
    with pytest.raises(InvalidToken):
        verify_install_grant(token, verifier, now=end)


def test_a_key_stops_signing_one_life_before_it_retires() -> None:
    """What a retiring key signed verifies to its end; after that it signs nothing more."""
    end = NOW + timedelta(hours=1)
    keyset = load(ed25519(retire_after=second(end)))
    last = end - timedelta(minutes=15, seconds=1)
    verify_install_grant(sign(keyset, last), keyset, now=last + timedelta(minutes=14, seconds=59))
    with pytest.raises(NoSigningKey) as refusal:
        sign(keyset, end - timedelta(minutes=15))
    assert refusal.value.kind is Kind.UNAVAILABLE


def test_generated_keys_can_be_written_and_read() -> None:
    """A launcher's new keys are JSON, differ, and sign what they were made for."""
    rows = [generate_ed25519_key("a", [INSTALL]), generate_ed25519_key("b", [INSTALL])]
    assert rows[0]["d"] != rows[1]["d"]
    load(rows[0]).require_signing(INSTALL, variable=VARIABLE)
    load(hs256()).require_signing(Family.SLACK_USER, variable=VARIABLE)
    assert hs256()["k"] != hs256()["k"]


def test_no_picture_of_a_keyset_shows_a_key() -> None:
    """`repr` and `str` of a keyset and of its keys hold names only."""
    row, secret = ed25519(), hs256()
    keyset = load(row, secret)
    pictures = f"{keyset!r} {keyset} {keyset.keys!r} {[vars(key.material) for key in keyset.keys]}"
    for private in (str(row["d"]), str(secret["k"])):
        assert private not in pictures
    assert repr(keyset) == "Keyset(ed, hs)"
