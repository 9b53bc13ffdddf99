"""One key: what it computes, for which families, and when it counts."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.algorithms import HMACAlgorithm, OKPAlgorithm

from interlock_chassis.secret import Secret
from interlock_tokens.errors import NoSigningKey
from interlock_tokens.families import CLOCK_LEEWAY, Algorithm, Family
from interlock_tokens.wire import encode_segment


class Material(Protocol):
    """The mathematical part of a key."""

    @property
    def can_sign(self) -> bool:
        """Whether the private part is there."""

    def sign(self, message: bytes) -> bytes:
        """Sign a message.

        Raises:
            NoSigningKey: The private part is not there.
        """

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Tell whether the signature is this key's over the message."""

    def public_fields(self) -> dict[str, str] | None:
        """Return the members of a keyset document that may be shown; None for no such."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a keyset.

    Attributes:
        kid: Its name in token headers.
        algorithm: What it computes.
        families: The only families it signs and verifies.
        not_before: Epoch second from which on it counts.
        retire_after: Epoch second from which on it no longer counts; None for never.
        is_legacy: Whether it also verifies tokens without a `kid`.
        may_sign: Whether this process signs with it.
        material: What it computes with.
    """

    kid: str
    algorithm: Algorithm
    families: frozenset[Family]
    not_before: int
    retire_after: int | None
    is_legacy: bool
    may_sign: bool
    material: Material

    def verifies_at(self, now: datetime) -> bool:
        """Tell whether signatures of this key count at `now`."""
        return self.not_before <= (now + CLOCK_LEEWAY).timestamp() and self._lives_at(now)

    def signs_at(self, now: datetime, life: timedelta) -> bool:
        """Tell whether a token signed at `now` would verify for the whole of its life."""
        return self.may_sign and self.not_before <= now.timestamp() and self._lives_at(now + life)

    def _lives_at(self, instant: datetime) -> bool:
        return self.retire_after is None or instant.timestamp() < self.retire_after


class HmacMaterial:
    """HMAC-SHA256 with a shared secret."""

    can_sign = True

    def __init__(self, secret: Secret[bytes]) -> None:
        self._algorithm = HMACAlgorithm(HMACAlgorithm.SHA256)
        self._secret = secret

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        return self._algorithm.sign(message, self._secret.reveal())

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Tell, in constant time, whether the signature is this key's over the message."""
        return self._algorithm.verify(message, self._secret.reveal(), signature)

    def public_fields(self) -> None:
        """Return None: who could verify could also sign."""
        return


class Ed25519Material:
    """Ed25519, with or without the private part."""

    def __init__(self, public: Ed25519PublicKey, private: Ed25519PrivateKey | None) -> None:
        self._algorithm = OKPAlgorithm()
        self._public = public
        self._private = private

    @property
    def can_sign(self) -> bool:
        """Whether the private part is there."""
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        """Sign a message.

        Raises:
            NoSigningKey: The private part is not there.
        """
        if self._private is None:
            raise NoSigningKey
        return self._algorithm.sign(message, self._private)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Tell whether the signature is this key's over the message."""
        return self._algorithm.verify(message, self._public, signature)

    def public_fields(self) -> dict[str, str]:
        """Return the public key."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": encode_segment(self._public.public_bytes_raw()),
        }
