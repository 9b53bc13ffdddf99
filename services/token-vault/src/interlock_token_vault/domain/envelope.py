"""The sealed form of one token, and the context that it is bound to.

    version (1) | salt (32) | commitment (32) | nonce (12) | ciphertext and tag

HKDF-SHA512(DEK, salt, label | context) yields an AES-256-GCM key and a 32-byte
commitment to it, compared before anything is decrypted: GCM alone lets one
ciphertext open under two keys. The context is bound twice, into the key and as
GCM's associated data. It is rebuilt by whoever opens, from the grant and not
from the row, so a ciphertext that was moved, or a row that was re-pointed,
does not open.

Works on bytes and asks nobody; `Secret` is unwrapped and wrapped by the caller.
"""

import hmac
import re
import struct
from dataclasses import dataclass
from datetime import datetime
from typing import NewType, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from interlock_chassis.errors import Kind, ServiceError
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenRef,
    TokenSlot,
)

SealedBytes = NewType("SealedBytes", bytes)

VERSION = 1
DEK_BYTES = 32
SALT_BYTES = 32
NONCE_BYTES = 12
_KEY_BYTES = 32
_COMMITMENT_BYTES = 32
_TAG_BYTES = 16
_LABEL = b"interlock sealed token v1"
_KEY_LABEL = b"interlock wrapped dek v1"
_FORMAT = f"sealed-token/{VERSION}"
_LENGTH = struct.Struct(">I")
# Lengths that are ASCII themselves, so that short texts are joined before they are encoded.
_ASCII_LENGTHS = tuple(_LENGTH.pack(length).decode() for length in range(128))

_HEAD_BYTES = 1 + SALT_BYTES + _COMMITMENT_BYTES
_LEAST_BYTES = _HEAD_BYTES + NONCE_BYTES + _TAG_BYTES

# What Slack's tokens, webhooks and their base64 begin with. A sealed token
# begins with its version byte, so none of these is ever one.
_PLAINTEXT = re.compile(rb"\s*(xox|xapp-|https?:|eG94|eGFwcC)", re.IGNORECASE)


class CannotOpen(ServiceError):
    """Stored data does not open in the place where it was found."""

    kind = Kind.CORRUPT
    reason = "CANNOT_OPEN"


class UnsupportedVersion(CannotOpen):
    """The sealed token has a format that this vault does not know."""

    reason = "UNSUPPORTED_VERSION"


class PlaintextAtRest(CannotOpen):
    """A token was found where only sealed tokens may be."""

    reason = "PLAINTEXT_AT_REST"


class Bound(Protocol):
    """Everything that a sealed text is bound to."""

    def encode(self) -> bytes:
        """Encode it so that no two places meet, whatever kind they are of."""
        ...


@dataclass(frozen=True, slots=True)
class TokenContext:
    """Everything a sealed token is bound to.

    Attributes:
        environment: `production`, `development`; a copy does not open elsewhere.
        key: The installation as Slack names it.
        installation_id: The installation as the vault names it.
        user_id: Whose token it is; empty for the bot's.
        kind: Bot, user or webhook.
        slot: Access or refresh.
        dek_id: The data key it is sealed under.
        generation: Of the credential, from 1.
    """

    environment: str
    key: InstallationKey
    installation_id: InstallationId
    user_id: str
    kind: TokenKind
    slot: TokenSlot
    dek_id: DekId
    generation: int

    def encode(self) -> bytes:
        """Encode every part with its length, so that no two contexts meet."""
        return encode_parts(
            _FORMAT,
            self.environment,
            self.key.client_id,
            self.key.app_id,
            str(self.installation_id),
            self.key.enterprise_id,
            self.key.team_id,
            self.user_id,
            self.kind.value,
            self.slot.value,
            str(self.dek_id),
            str(self.generation),
        )


@dataclass(frozen=True, slots=True)
class KeyContext:
    """What a wrapped data key is bound to, at the KMS.

    Attributes:
        environment: As in TokenContext.
        client_id: The Slack app by its client id, which is known before Slack
            says the app's own id: the key is made before a code is exchanged.
        installation_id: The one installation whose tokens it seals.
    """

    environment: str
    client_id: ClientId
    installation_id: InstallationId

    def encode(self) -> bytes:
        """Encode every part with its length."""
        return _KEY_LABEL + encode_parts(
            self.environment, self.client_id, str(self.installation_id)
        )


@dataclass(frozen=True, slots=True)
class SealedToken:
    """A token as it is stored.

    Attributes:
        user_id: Whose token it is; empty for the bot's.
        generation: Of the credential; only rises.
        dek_id: The data key it is sealed under.
        sealed: The bytes; open nowhere but in their place.
        ref: Keyed fingerprint, made when it was sealed.
        expires_at: When Slack ends the token; None for a long-lived one.
    """

    kind: TokenKind
    slot: TokenSlot
    user_id: str
    generation: int
    dek_id: DekId
    sealed: SealedBytes
    ref: TokenRef
    expires_at: datetime | None

    def place(self, environment: str, installation: Installation) -> TokenContext:
        """Say what it is bound to if it is where it says: for who has no grant to go by."""
        return TokenContext(
            environment=environment,
            key=installation.key,
            installation_id=installation.id,
            user_id=self.user_id,
            kind=self.kind,
            slot=self.slot,
            dek_id=self.dek_id,
            generation=self.generation,
        )


@dataclass(frozen=True, slots=True)
class WrappedDek:
    """A data key as it is stored, apart from what it seals.

    Attributes:
        installation_id: The one installation whose tokens it seals.
        kek_version: Of the KMS key that wraps it; not bound into any token, so
            that wrapping it again touches no ciphertext.
        wrapped: The bytes; only the KMS unwraps them.
    """

    dek_id: DekId
    installation_id: InstallationId
    kek_version: str
    wrapped: bytes


def encode_parts(*parts: str) -> bytes:
    """Join texts so that different lists of them never give the same bytes."""
    try:
        text = "".join([_ASCII_LENGTHS[len(part)] + part for part in parts])
    except IndexError:
        text = ""
    if text.isascii() and text:
        # Of an ASCII text the length in characters is that in bytes.
        return text.encode()
    encoded = [part.encode() for part in parts]
    return b"".join([_LENGTH.pack(len(part)) + part for part in encoded])


def seal(dek: bytes, token: bytes, context: Bound, *, salt: bytes, nonce: bytes) -> SealedBytes:
    """Seal a token into its place.

    Args:
        dek: The installation's data key, 32 bytes.
        token: What to seal; not empty.
        context: The place.
        salt: 32 random bytes, never used before.
        nonce: 12 random bytes.
    """
    if len(dek) != DEK_BYTES or len(salt) != SALT_BYTES or len(nonce) != NONCE_BYTES or not token:
        raise ValueError("wrong size of data key, salt, nonce or token")
    bound = context.encode()
    key, commitment = _derive(dek, salt, bound)
    head = bytes([VERSION]) + salt + commitment
    return SealedBytes(head + nonce + AESGCM(key).encrypt(nonce, token, head + bound))


def open_sealed(dek: bytes, sealed: bytes, context: Bound) -> bytes:
    """Open a sealed token in the place where it was sealed.

    Args:
        dek: The data key that the context names.
        sealed: As `seal` returned it.
        context: Rebuilt from the grant, not from the row.

    Raises:
        CannotOpen: It was changed, cut, moved, or sealed under another key.
        UnsupportedVersion: Its version byte is unknown.
        PlaintextAtRest: It is no sealed token but a token.
    """
    if _PLAINTEXT.match(sealed):
        raise PlaintextAtRest
    if sealed[:1] and sealed[0] != VERSION:
        raise UnsupportedVersion
    if len(dek) != DEK_BYTES or len(sealed) <= _LEAST_BYTES:
        raise CannotOpen
    head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
    bound = context.encode()
    key, commitment = _derive(dek, head[1 : 1 + SALT_BYTES], bound)
    if not hmac.compare_digest(commitment, head[1 + SALT_BYTES :]):
        raise CannotOpen
    try:
        return AESGCM(key).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], head + bound)
    except InvalidTag:
        raise CannotOpen from None


def _derive(dek: bytes, salt: bytes, bound: bytes) -> tuple[bytes, bytes]:
    derived = HKDF(hashes.SHA512(), _KEY_BYTES + _COMMITMENT_BYTES, salt, _LABEL + bound).derive(
        dek
    )
    return derived[:_KEY_BYTES], derived[_KEY_BYTES:]
