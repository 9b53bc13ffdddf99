"""The keys of a process, read from one JSON document.

```json
{"keys": [{"kid": "edge-1", "kty": "OKP", "crv": "Ed25519", "x": "…", "d": "…",
           "families": ["slackGrant"], "not_before": 1767225600,
           "retire_after": 1782864000, "sign": true}]}
```

An HS256 key has `"kty": "oct"` and `k`; `"legacy": true` marks the platform's one
secret that also verifies tokens without a `kid`. A key with its private part
signs, unless `sign` is false.
"""

import json
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_tokens.errors import NoSigningKey
from interlock_tokens.families import FAMILIES, Algorithm, Family
from interlock_tokens.keys import Ed25519Material, HmacMaterial, Key, Material
from interlock_tokens.wire import (
    KID,
    Malformed,
    decode_segment,
    encode_segment,
    parse_object,
)

# RFC 7518, section 3.2: an HS256 key has at least the size of the hash.
MIN_HS256_KEY_BYTES = 32
# A rotation needs three keys of a family at a time; hundreds are a generator gone wrong.
_MAX_KEYS = 64

_COMMON = frozenset({"kid", "kty", "families", "not_before", "retire_after", "sign"})
_MEMBERS = {"oct": _COMMON | {"k", "legacy"}, "OKP": _COMMON | {"crv", "x", "d"}}
_ALGORITHMS: dict[str, Algorithm] = {"oct": "HS256", "OKP": "EdDSA"}


class Keyset:
    """The keys a process signs or verifies with; never shows private parts.

    Args:
        keys: The keys.
        variable: The environment variable to name in errors.

    Attributes:
        variable: As given.

    Raises:
        ConfigError: Two keys have one name, or it is not clear which of two
            signs, or which is the legacy one.
    """

    def __init__(self, keys: Iterable[Key], *, variable: str) -> None:
        self.variable = variable
        self._keys: dict[str, Key] = {}
        for key in keys:
            if key.kid in self._keys:
                raise ConfigError(variable, f"two keys are named {key.kid}")
            self._keys[key.kid] = key
        legacy = [key for key in self._keys.values() if key.is_legacy]
        if len(legacy) > 1:
            raise ConfigError(variable, "more than one key is marked legacy")
        self._legacy = legacy[0] if legacy else None
        for family in Family:
            starts = [key.not_before for key in self._signers(family)]
            if len(starts) != len(set(starts)):
                raise ConfigError(
                    variable, f"two keys start to sign {family.value} at the same time"
                )

    @classmethod
    def from_json(cls, document: Secret[str], *, variable: str) -> "Keyset":
        """Read a keyset document.

        Args:
            document: The JSON text.
            variable: The environment variable that named it, for errors.

        Raises:
            ConfigError: The document breaks a rule of its format. The message
                never holds a key.
        """
        try:
            members = parse_object(document.reveal().encode())
        except Malformed:
            raise ConfigError(variable, "the keyset is not one JSON object") from None
        rows = members.get("keys")
        if set(members) != {"keys"} or type(rows) is not list or not 0 < len(rows) <= _MAX_KEYS:
            raise ConfigError(
                variable, f'the keyset must be {{"keys": [...]}} with 1 to {_MAX_KEYS} keys'
            )
        try:
            keys = [_read_key(row) for row in rows]
        except _BadKey as problem:
            raise ConfigError(variable, str(problem)) from None
        return cls(keys, variable=variable)

    @classmethod
    def join(cls, *keysets: "Keyset") -> "Keyset":
        """Put keysets together, such as the public ones of two signers.

        A public key that several of them hold alike is taken from the first.

        Raises:
            ConfigError: As the constructor.
        """
        keys: list[Key] = []
        rows: list[dict[str, object]] = []
        for key in (key for keyset in keysets for key in keyset.keys):
            row = _public_row(key)
            if row is None or row not in rows:
                keys.append(key)
            if row is not None:
                rows.append(row)
        return cls(
            keys, variable=" and ".join(dict.fromkeys(keyset.variable for keyset in keysets))
        )

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys, in the document's order."""
        return tuple(self._keys.values())

    def public(self) -> str:
        """Write the document without private parts.

        HS256 keys have no public part and are left out.
        """
        rows = [_public_row(key) for key in self.keys]
        return json.dumps({"keys": [row for row in rows if row is not None]})

    def require_signing(self, *families: Family, variable: str) -> None:
        """Refuse start-up of a process that could never sign a family.

        Raises:
            ConfigError: No key of the keyset signs one of the families.
        """
        for family in families:
            if not self._signers(family):
                raise ConfigError(variable, f"no key of the keyset signs {family.value}")

    def find_verifying(self, family: Family, kid: str | None, now: datetime) -> Key | None:
        """Find the key that may have signed a token, by its name.

        Args:
            family: What the token says it is.
            kid: The key it names; None matches the legacy secret and nothing else.
            now: Keys outside their time do not count.
        """
        key = self._legacy if kid is None else self._keys.get(kid)
        if key is None or family not in key.families or not key.verifies_at(now):
            return None
        # Reading a document refuses such a key; a key made in any other way is refused here.
        return key if key.algorithm == FAMILIES[family].algorithm else None

    def get_signing(self, family: Family, now: datetime) -> Key:
        """Get the key that signs a family: of those whose time it is, the newest.

        A key stops signing one token's life before it retires, so that what it
        signed verifies to its end.

        Raises:
            NoSigningKey: There is none at this time.
        """
        life = FAMILIES[family].max_life
        usable = [key for key in self._signers(family) if key.signs_at(now, life)]
        if not usable:
            raise NoSigningKey
        return max(usable, key=lambda key: key.not_before)

    def _signers(self, family: Family) -> list[Key]:
        return [key for key in self._keys.values() if key.may_sign and family in key.families]

    def __repr__(self) -> str:
        return f"Keyset({', '.join(self._keys)})"


def generate_ed25519_key(kid: str, families: Iterable[Family]) -> dict[str, object]:
    """Make a new Ed25519 key, private part included, as a row of a keyset document."""
    private = Ed25519PrivateKey.generate()
    return {
        "kid": kid,
        "kty": "OKP",
        "crv": "Ed25519",
        "x": encode_segment(private.public_key().public_bytes_raw()),
        "d": encode_segment(private.private_bytes_raw()),
        "families": [family.value for family in families],
    }


def generate_hs256_key(kid: str, families: Iterable[Family]) -> dict[str, object]:
    """Make a new HS256 key of 32 random bytes, as a row of a keyset document."""
    return {
        "kid": kid,
        "kty": "oct",
        "k": encode_segment(secrets.token_bytes(MIN_HS256_KEY_BYTES)),
        "families": [family.value for family in families],
    }


class _BadKey(Exception):
    """A row of the document breaks a rule; the message names the key, never its content."""


def _read_key(row: object) -> Key:
    if not isinstance(row, dict):
        raise _BadKey("a key is not a JSON object")
    kid, kty = row.get("kid"), row.get("kty")
    if type(kid) is not str or not KID.fullmatch(kid):
        raise _BadKey("a kid is not 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if type(kty) is not str or kty not in _MEMBERS:
        raise _BadKey(f"key {kid}: kty is neither oct nor OKP")
    if surplus := sorted(set(row) - _MEMBERS[kty]):
        raise _BadKey(f"key {kid}: unknown member {surplus[0]!r}")
    algorithm = _ALGORITHMS[kty]
    families = _read_families(kid, row.get("families"), algorithm)
    material: Material = _read_hmac(kid, row) if kty == "oct" else _read_ed25519(kid, row)
    is_legacy = _read_flag(kid, row, "legacy", absent=False)
    if is_legacy and families != {Family.SLACK_USER}:
        raise _BadKey(f"key {kid}: only a key of slackUser alone can be legacy")
    may_sign = _read_flag(kid, row, "sign", absent=material.can_sign)
    if may_sign and not material.can_sign:
        raise _BadKey(f"key {kid}: cannot sign without its private part")
    not_before = _read_second(kid, row, "not_before") or 0
    retire_after = _read_second(kid, row, "retire_after")
    if retire_after is not None and retire_after <= not_before:
        raise _BadKey(f"key {kid}: retire_after is not after not_before")
    return Key(kid, algorithm, families, not_before, retire_after, is_legacy, may_sign, material)


def _read_families(kid: str, value: object, algorithm: Algorithm) -> frozenset[Family]:
    known = {family.value: family for family in Family}
    if type(value) is not list or not value:
        raise _BadKey(f"key {kid}: families is not a list with at least one family")
    for name in value:
        if type(name) is not str or name not in known:
            raise _BadKey(f"key {kid}: an unknown family")
        if FAMILIES[known[name]].algorithm != algorithm:
            raise _BadKey(f"key {kid}: a key of this type cannot sign {name}")
    return frozenset(known[name] for name in value)


def _read_hmac(kid: str, row: dict[str, Any]) -> HmacMaterial:
    secret = _read_bytes(kid, row, "k")
    if len(secret) < MIN_HS256_KEY_BYTES:
        raise _BadKey(f"key {kid}: shorter than {MIN_HS256_KEY_BYTES} bytes")
    return HmacMaterial(Secret(secret))


def _read_ed25519(kid: str, row: dict[str, Any]) -> Ed25519Material:
    if row.get("crv") != "Ed25519":
        raise _BadKey(f"key {kid}: crv is not Ed25519")
    x = _read_bytes(kid, row, "x")
    try:
        public = Ed25519PublicKey.from_public_bytes(x)
        private = (
            Ed25519PrivateKey.from_private_bytes(_read_bytes(kid, row, "d")) if "d" in row else None
        )
    except ValueError:
        raise _BadKey(f"key {kid}: not an Ed25519 key") from None
    if private is not None and private.public_key() != public:
        raise _BadKey(f"key {kid}: d does not belong to x")
    return Ed25519Material(public, private)


def _read_bytes(kid: str, row: dict[str, Any], name: str) -> bytes:
    value = row.get(name)
    try:
        if type(value) is str:
            return decode_segment(value)
    except Malformed:
        pass
    raise _BadKey(f"key {kid}: {name} is not base64url without padding")


def _read_flag(kid: str, row: dict[str, Any], name: str, *, absent: bool) -> bool:
    value = row.get(name, absent)
    if type(value) is not bool:
        raise _BadKey(f"key {kid}: {name} is not true or false")
    return value


def _read_second(kid: str, row: dict[str, Any], name: str) -> int | None:
    if name not in row:
        return None
    value = row[name]
    # 2**40 s is the year 36812: beyond it the number is milliseconds, or a mistake.
    if type(value) is not int or not 0 <= value < 2**40:
        raise _BadKey(f"key {kid}: {name} is not an epoch second")
    return value


def _public_row(key: Key) -> dict[str, object] | None:
    fields = key.material.public_fields()
    if fields is None:
        return None
    row: dict[str, object] = {
        "kid": key.kid,
        **fields,
        "families": sorted(family.value for family in key.families),
    }
    if key.not_before:
        row["not_before"] = key.not_before
    if key.retire_after is not None:
        row["retire_after"] = key.retire_after
    return row
