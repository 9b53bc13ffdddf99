"""Symmetric keys, their versions, and what each of these may be used for.

What an administrator changes can take its time to have an effect, as it does
at Google: enabling is immediate, disabling and another primary are not.
"""

import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interlock_sandbox.kms.refusal import refuse_absent, refuse_argument, refuse_state


class State(IntEnum):
    """What a version is; the numbers are those of CryptoKeyVersionState."""

    ENABLED = 1
    DISABLED = 2
    DESTROYED = 3
    DESTROY_SCHEDULED = 4


MAX_PLAINTEXT_BYTES = 64 * 1024
MAX_CIPHERTEXT_BYTES = 10 * MAX_PLAINTEXT_BYTES
DESTROY_AFTER_S = 30 * 24 * 3600

KEY_NAME = re.compile(
    r"projects/[a-zA-Z0-9_:.-]{1,63}/locations/[a-zA-Z0-9_-]{1,63}"
    r"/keyRings/[a-zA-Z0-9_-]{1,63}/cryptoKeys/[a-zA-Z0-9_-]{1,63}"
)
VERSION_NAME = re.compile(
    rf"(?P<key>{KEY_NAME.pattern})/cryptoKeyVersions/(?P<number>[0-9]{{1,10}})"
)

_KEK_BYTES = 32
_NONCE_BYTES = 12
_MARK_BYTES = 8
_HEAD_BYTES = _MARK_BYTES + 4

_T = TypeVar("_T")


class Settling(Generic[_T]):
    """A value whose changes have an effect later."""

    def __init__(self, value: _T) -> None:
        self.told = value
        self._before = value
        self._effective_at = 0.0

    def tell(self, value: _T, *, now: float, effective_at: float) -> None:
        """Change the value."""
        self._before = self.effective(now)
        self.told, self._effective_at = value, effective_at

    def effective(self, now: float) -> _T:
        """Return what is in effect, which may be the value before."""
        return self.told if now >= self._effective_at else self._before


@dataclass
class Version:
    """One version of a key."""

    name: str
    kek: bytes
    created_at: float
    state: Settling[State] = field(default_factory=lambda: Settling(State.ENABLED))
    destroy_at: float | None = None


@dataclass
class Key:
    """A key of purpose ENCRYPT_DECRYPT; its versions are counted from 1.

    Attributes:
        mark: What a ciphertext begins with, to tell keys apart.
    """

    name: str
    mark: bytes
    created_at: float
    versions: list[Version]
    primary: Settling[int]


class CryptoKeys:
    """All keys of the stand-in.

    Attributes:
        propagation_s: How long disabling, destroying and another primary take.

    Args:
        now: Seconds since 1970.
        changed: Called after every change.
        saved: What `snapshot` returned in an earlier run.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        changed: Callable[[], None] = lambda: None,
        saved: Any = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.propagation_s = 0.0
        self._now = now
        self._changed = changed
        self._random_bytes = random_bytes
        self._keys = {row["name"]: _key_of(row) for row in saved or ()}

    def snapshot(self) -> list[dict[str, Any]]:
        """Return every key with its material, as JSON; what is pending has taken effect."""
        return [_row_of(key) for key in self._keys.values()]

    # What administrators do.

    def add_key(self, name: str) -> Key:
        """Make a key with one version, or return the one that is there."""
        if not KEY_NAME.fullmatch(name):
            refuse_argument(f"{name} is not the name of a CryptoKey.")
        if name not in self._keys:
            now = self._now()
            mark = self._random_bytes(_MARK_BYTES)
            self._keys[name] = key = Key(name, mark, now, [], Settling(1))
            self._add_version(key)
        return self._keys[name]

    def key(self, name: str) -> Key:
        """Find a key by name."""
        if not KEY_NAME.fullmatch(name):
            refuse_argument(f"{name} is not the name of a CryptoKey.")
        return self._keys.get(name) or refuse_absent(f"CryptoKey {name}")

    def version(self, name: str) -> Version:
        """Find a version by name."""
        found = VERSION_NAME.fullmatch(name)
        if found is None:
            refuse_argument(f"{name} is not the name of a CryptoKeyVersion.")
        number = int(found["number"])
        versions = self.key(found["key"]).versions
        if not 1 <= number <= len(versions):
            refuse_absent(f"CryptoKeyVersion {name}")
        return versions[number - 1]

    def create_version(self, key_name: str) -> Version:
        """Make a version; it is enabled, and not the primary one."""
        return self._add_version(self.key(key_name))

    def set_primary(self, key_name: str, number: str) -> Key:
        """Have a version encrypt from now on, or from when that has an effect."""
        key = self.key(key_name)
        version = self.version(f"{key_name}/cryptoKeyVersions/{number}")
        if version.state.told is not State.ENABLED:
            refuse_state(_not_enabled(version, version.state.told))
        self._settle(key.primary, int(number))
        return key

    def set_state(self, name: str, number: int) -> Version:
        """Enable or disable a version."""
        version = self.version(name)
        if number not in set(State):
            refuse_argument(f"{number} is not a state.")
        state = State(number)
        if {state, version.state.told} - {State.ENABLED, State.DISABLED}:
            refuse_state(f"{name} cannot go from {version.state.told.name} to {state.name}.")
        self._settle(version.state, state, at_once=state is State.ENABLED)
        return version

    def destroy(self, name: str) -> Version:
        """Schedule a version's destruction in 30 days; it is of no use from then on."""
        version = self.version(name)
        if version.state.told not in {State.ENABLED, State.DISABLED}:
            refuse_state(f"{name} is {version.state.told.name}.")
        version.destroy_at = self._now() + DESTROY_AFTER_S
        self._settle(version.state, State.DESTROY_SCHEDULED)
        return version

    # What keys are for.

    def encrypt(self, name: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes]:
        """Encrypt under a version, or under a key's primary one; return the version's name."""
        _require_size("plaintext", plaintext, MAX_PLAINTEXT_BYTES)
        _require_size("additional_authenticated_data", aad, MAX_PLAINTEXT_BYTES)
        if VERSION_NAME.fullmatch(name):
            version = self.version(name)
            key = self.key(name.rsplit("/cryptoKeyVersions/", 1)[0])
        else:
            key = self.key(name)
            version = key.versions[key.primary.effective(self._now()) - 1]
        self._require_enabled(version)
        number = key.versions.index(version) + 1
        head = key.mark + number.to_bytes(4, "big")
        nonce = self._random_bytes(_NONCE_BYTES)
        return version.name, head + nonce + AESGCM(version.kek).encrypt(
            nonce, plaintext, head + aad
        )

    def decrypt(self, name: str, ciphertext: bytes, aad: bytes) -> tuple[bytes, bool]:
        """Decrypt under whichever version encrypted; say whether that is the primary one."""
        _require_size("additional_authenticated_data", aad, MAX_PLAINTEXT_BYTES)
        _require_size("ciphertext", ciphertext, MAX_CIPHERTEXT_BYTES)
        key = self.key(name)
        head = ciphertext[:_HEAD_BYTES]
        if len(head) == _HEAD_BYTES and head[:_MARK_BYTES] in self._marks() - {key.mark}:
            refuse_argument(
                "Decryption failed: verify that 'name' refers to the correct CryptoKey."
            )
        number = int.from_bytes(head[_MARK_BYTES:], "big")
        if head[:_MARK_BYTES] != key.mark or not 1 <= number <= len(key.versions):
            refuse_argument("Decryption failed: the ciphertext is invalid.")
        version = key.versions[number - 1]
        self._require_enabled(version)
        nonce, rest = (
            ciphertext[_HEAD_BYTES:][:_NONCE_BYTES],
            ciphertext[_HEAD_BYTES + _NONCE_BYTES :],
        )
        try:
            plaintext = AESGCM(version.kek).decrypt(nonce, rest, head + aad)
        except (InvalidTag, ValueError):
            # ValueError: cut to less than a nonce.
            refuse_argument("Decryption failed: the ciphertext is invalid.")
        return plaintext, number == key.primary.effective(self._now())

    def _marks(self) -> set[bytes]:
        return {key.mark for key in self._keys.values()}

    def _add_version(self, key: Key) -> Version:
        name = f"{key.name}/cryptoKeyVersions/{len(key.versions) + 1}"
        key.versions.append(Version(name, self._random_bytes(_KEK_BYTES), self._now()))
        self._changed()
        return key.versions[-1]

    def _require_enabled(self, version: Version) -> None:
        state = version.state.effective(self._now())
        if state is not State.ENABLED:
            refuse_state(_not_enabled(version, state))

    def _settle(self, value: Settling[_T], to: _T, *, at_once: bool = False) -> None:
        now = self._now()
        value.tell(to, now=now, effective_at=now if at_once else now + self.propagation_s)
        self._changed()


def _not_enabled(version: Version, state: State) -> str:
    return f"{version.name} is not enabled, current state is: {state.name}."


def _require_size(field_name: str, value: bytes, limit: int) -> None:
    if len(value) > limit:
        refuse_argument(f"{field_name} is larger than {limit} bytes.")


def _row_of(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "mark": key.mark.hex(),
        "created_at": key.created_at,
        "primary": key.primary.told,
        "versions": [
            {
                "name": version.name,
                "kek": base64.b64encode(version.kek).decode(),
                "created_at": version.created_at,
                "state": version.state.told.name,
                "destroy_at": version.destroy_at,
            }
            for version in key.versions
        ],
    }


def _key_of(row: dict[str, Any]) -> Key:
    versions = [
        Version(
            name=each["name"],
            kek=base64.b64decode(each["kek"]),
            created_at=each["created_at"],
            state=Settling(State[each["state"]]),
            destroy_at=each["destroy_at"],
        )
        for each in row["versions"]
    ]
    mark = bytes.fromhex(row["mark"])
    return Key(row["name"], mark, row["created_at"], versions, Settling(row["primary"]))
