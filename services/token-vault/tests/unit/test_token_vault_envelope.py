"""The envelope: a sealed token opens in its place, unchanged, and in no other way."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_token_vault.domain.envelope import (
    DEK_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    CannotOpen,
    KeyContext,
    PlaintextAtRest,
    SealedBytes,
    TokenContext,
    UnsupportedVersion,
    encode_parts,
    open_sealed,
    seal,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)

DEK = bytes(range(DEK_BYTES))
SALT = bytes(range(100, 100 + SALT_BYTES))
NONCE = bytes(range(200, 200 + NONCE_BYTES))
TOKEN = b"xoxe.xoxb-1-" + b"a" * 160
KEY = InstallationKey(ClientId("client"), "A0APP", "E0GRID", "T0TEAM")
PLACE = TokenContext(
    environment="production",
    key=KEY,
    installation_id=InstallationId(UUID(int=1)),
    user_id="",
    kind=TokenKind.BOT,
    slot=TokenSlot.ACCESS,
    dek_id=DekId(UUID(int=2)),
    generation=4,
)

Move = Callable[[TokenContext], TokenContext]


def _sealed(token: bytes = TOKEN, place: TokenContext = PLACE) -> SealedBytes:
    return seal(DEK, token, place, salt=SALT, nonce=NONCE)


@given(
    token=st.binary(min_size=1, max_size=4096),
    dek=st.binary(min_size=DEK_BYTES, max_size=DEK_BYTES),
    salt=st.binary(min_size=SALT_BYTES, max_size=SALT_BYTES),
    nonce=st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES),
)
def test_any_token_opens_in_its_place(token: bytes, dek: bytes, salt: bytes, nonce: bytes) -> None:
    """Whatever was sealed comes back, under the same key and in the same place."""
    assert open_sealed(dek, seal(dek, token, PLACE, salt=salt, nonce=nonce), PLACE) == token


def test_every_flipped_bit_is_refused() -> None:
    """No bit of a sealed token is malleable, and every refusal is the one typed error."""
    sealed = _sealed(b"xoxb-1")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CannotOpen):
            open_sealed(DEK, bytes(changed), PLACE)


def test_every_cut_and_every_addition_is_refused() -> None:
    """A sealed token cut at any length, or with a byte added, fails with the typed error."""
    sealed = _sealed()
    for length in range(len(sealed)):
        with pytest.raises(CannotOpen):
            open_sealed(DEK, sealed[:length], PLACE)
    for added in (sealed + b"\0", b"\1" + sealed):
        with pytest.raises(CannotOpen):
            open_sealed(DEK, added, PLACE)


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(lambda p: replace(p, environment="development"), id="environment"),
        pytest.param(lambda p: _renamed(p, client_id=ClientId("other")), id="client"),
        pytest.param(lambda p: _renamed(p, app_id="A0OTHER"), id="app"),
        pytest.param(lambda p: _renamed(p, enterprise_id="E0OTHER"), id="enterprise"),
        pytest.param(lambda p: _renamed(p, enterprise_id=""), id="no-enterprise"),
        pytest.param(lambda p: _renamed(p, team_id="T0OTHER"), id="other-team-KM-01"),
        pytest.param(lambda p: _renamed(p, team_id=""), id="org-wide"),
        pytest.param(
            lambda p: replace(p, installation_id=InstallationId(UUID(int=9))), id="installation"
        ),
        pytest.param(lambda p: replace(p, user_id="U0USER"), id="user"),
        pytest.param(lambda p: replace(p, kind=TokenKind.USER), id="user-column-KM-02"),
        pytest.param(lambda p: replace(p, kind=TokenKind.WEBHOOK), id="webhook"),
        pytest.param(lambda p: replace(p, slot=TokenSlot.REFRESH), id="refresh-column-KM-02"),
        pytest.param(lambda p: replace(p, dek_id=DekId(UUID(int=9))), id="data-key"),
        pytest.param(lambda p: replace(p, generation=5), id="older-generation-KM-03"),
        pytest.param(lambda p: replace(p, generation=3), id="newer-generation"),
    ],
)
def test_a_moved_token_does_not_open(move: Move) -> None:
    """A ciphertext put anywhere but in its place is refused, whichever part differs."""
    with pytest.raises(CannotOpen) as refusal:
        open_sealed(DEK, _sealed(), move(PLACE))
    assert refusal.value.reason == "CANNOT_OPEN"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_an_unknown_version_is_named(version: int) -> None:
    """KM-07: another format is refused by name, and never taken for plaintext."""
    with pytest.raises(UnsupportedVersion):
        open_sealed(DEK, bytes([version]) + _sealed()[1:], PLACE)


@pytest.mark.parametrize(
    "stored",
    [
        b"xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcBrzbqgy",
        b"xoxe.xoxb-1-" + b"a" * 160,
        b" \nXOXP-1",
        b"xapp-1-A0APP-1-x",
        b"https://hooks.slack.com/services/T0/B0/x",
        b"eG94Yi0xNzY1MzY3MjQ4MQ==",
    ],
)
def test_a_plaintext_token_is_refused(stored: bytes) -> None:
    """KM-08: a token found where a sealed one belongs is an alarm, not an answer."""
    with pytest.raises(PlaintextAtRest) as refusal:
        open_sealed(DEK, stored, PLACE)
    assert refusal.value.reason == "PLAINTEXT_AT_REST"


def test_the_commitment_is_compared_before_anything_is_decrypted() -> None:
    """KM-09: under another data key the commitment differs, so GCM is never asked.

    The ciphertext here is valid GCM under the second key, as a colliding one
    would be: only the commitment tells the keys apart.
    """
    other = DEK[::-1]
    theirs = seal(other, b"theirs", PLACE, salt=SALT, nonce=NONCE)
    committed = bytearray(theirs)
    committed[1 + SALT_BYTES : 1 + SALT_BYTES + 32] = _sealed()[
        1 + SALT_BYTES : 1 + SALT_BYTES + 32
    ]
    for dek in (DEK, other):
        with pytest.raises(CannotOpen):
            open_sealed(dek, bytes(committed), PLACE)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_data_key_of_another_size_opens_nothing(size: int) -> None:
    """KM-11: a data key that has not 32 bytes is no key."""
    with pytest.raises(CannotOpen):
        open_sealed(bytes(size), _sealed(), PLACE)


@pytest.mark.parametrize(
    ("dek", "salt", "nonce", "token"),
    [
        (b"short", SALT, NONCE, TOKEN),
        (DEK, b"short", NONCE, TOKEN),
        (DEK, SALT, b"short", TOKEN),
        (DEK, SALT, NONCE, b""),
    ],
)
def test_sealing_refuses_wrong_sizes(dek: bytes, salt: bytes, nonce: bytes, token: bytes) -> None:
    """Nothing is sealed under a key, salt or nonce of the wrong size, nor an empty token."""
    with pytest.raises(ValueError, match="wrong size"):
        seal(dek, token, PLACE, salt=salt, nonce=nonce)


@given(st.lists(st.text(), max_size=5), st.lists(st.text(), max_size=5))
def test_different_contexts_never_encode_alike(left: list[str], right: list[str]) -> None:
    """Lengths keep parts apart, whatever the parts hold."""
    assert (encode_parts(*left) == encode_parts(*right)) == (left == right)


def test_a_key_context_binds_environment_app_and_installation() -> None:
    """KM-04: a wrapped key is bound to the one installation whose tokens it seals."""
    place = KeyContext("production", ClientId("client"), InstallationId(UUID(int=1)))
    others = [
        replace(place, environment="development"),
        replace(place, client_id=ClientId("other")),
        replace(place, installation_id=InstallationId(UUID(int=2))),
    ]
    assert len({each.encode() for each in (place, *others)}) == 4


def _renamed(place: TokenContext, **names: str) -> TokenContext:
    return replace(place, key=replace(place.key, **names))  # type: ignore[arg-type] # ClientId too.
