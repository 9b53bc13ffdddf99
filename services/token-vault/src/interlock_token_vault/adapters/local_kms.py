"""A stand-in for a KMS, for development: key-encryption keys in a file.

Whoever reads the file opens everything, so production refuses it.
"""

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.key_lifecycle import KekNotFound
from interlock_token_vault.vault import KekDisabled

VARIABLE = "INTERLOCK_LOCAL_KEYSET_FILE"
_KEK_BYTES = 32
_NONCE_BYTES = 12
_MODE = 0o600
_MAX_FILE_BYTES = 64 * 1024


class LocalKms:
    """The Kms port over keys in memory.

    Args:
        keks: Key-encryption keys by version, 32 bytes each.
        primary: The version that wraps new data keys.
        path: The keyset file, where keys may be added and promoted while the
            process runs; None for a fixed keyset.
    """

    def __init__(
        self,
        keks: Mapping[str, Secret[bytes]],
        primary: str,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        path: Path | None = None,
    ) -> None:
        self._keks: Mapping[str, Secret[bytes]] = MappingProxyType(dict(keks))
        self._primary = primary
        self._random_bytes = random_bytes
        self._path = path

    @classmethod
    def load(cls, path: Path, *, environment: str) -> "LocalKms":
        """Read a keyset file.

        Args:
            path: JSON as `create_keyset` writes it. A file of the process's own
                user with mode 0600, and no link.
            environment: Only `development` may use keys of a file.

        Raises:
            ConfigError: A rule is broken. Never holds a key.
        """
        if environment != "development":
            raise ConfigError("INTERLOCK_KMS", "keys in a file are for development only")
        keks, primary = _parse(_read_private(path))
        return cls(keks, primary, path=path)

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        nonce = self._random_bytes(_NONCE_BYTES)
        cipher = AESGCM(self._keks[self._primary].reveal())
        return WrappedKey(self._primary, nonce + cipher.encrypt(nonce, dek.reveal(), bound))

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        kek = self._keks.get(key.kek_version)
        if kek is None:
            raise KekDisabled
        nonce, rest = key.wrapped[:_NONCE_BYTES], key.wrapped[_NONCE_BYTES:]
        try:
            return Secret(AESGCM(kek.reveal()).decrypt(nonce, rest, bound))
        except (InvalidTag, ValueError):
            # ValueError: cut to less than a nonce.
            raise CannotOpen from None

    async def find_primary(self) -> str:
        """Find the primary version; see Keks."""
        return self._primary

    async def list_versions(self) -> Sequence[str]:
        """List the versions of the file, and use them from now on; see Keks."""
        if self._path is not None:
            self._keks, self._primary = _parse(_read_private(self._path))
        return list(self._keks)

    async def make_primary(self, version: str) -> None:
        """Make a version of the file primary, there and here; see Keks."""
        if version not in await self.list_versions():
            raise KekNotFound
        if self._path is not None:
            _change(self._path, lambda keyset: keyset | {"primary": version})
        self._primary = version

    async def retire(self, version: str) -> None:
        """Put a version aside, in the file and here; see Keks.

        It stays in the file, under `retired`: backups made before still need it.
        """
        if version not in await self.list_versions():
            raise KekNotFound
        if self._path is not None:
            _change(self._path, lambda keyset: _put_aside(keyset, version))
        self._keks = {name: kek for name, kek in self._keks.items() if name != version}


def add_key(path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Add a key to a keyset file, not primary yet, and return its version.

    Raises:
        ConfigError: The file is no keyset, or others may read it.
    """
    keks, _ = _parse(_read_private(path))
    used = {*keks, *json.loads(_read_private(path)).get("retired", {})}
    version = next(name for number in count(1) if (name := f"local-{number}") not in used)
    key = base64.b64encode(random_bytes(_KEK_BYTES)).decode()
    _change(path, lambda keyset: keyset | {"keys": keyset["keys"] | {version: key}})
    return version


def create_keyset(
    path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> None:
    """Write a new keyset file with one key, readable by its owner alone.

    Raises:
        FileExistsError: There is a file already; its keys may still be needed.
    """
    key = base64.b64encode(random_bytes(_KEK_BYTES)).decode()
    _create(path, json.dumps({"primary": "local-1", "keys": {"local-1": key}}))


def _put_aside(keyset: dict[str, Any], version: str) -> dict[str, Any]:
    keys = dict(keyset["keys"])
    retired = keyset.get("retired", {}) | {version: keys.pop(version)}
    return keyset | {"keys": keys, "retired": retired}


def _change(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace a keyset file at once by a changed one."""
    keyset = change(json.loads(_read_private(path)))
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    _create(draft, json.dumps(keyset))
    draft.replace(path)


def _create(path: Path, document: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(descriptor, "w") as file:
        file.write(document)


def _read_private(path: Path) -> bytes:
    """Read a file that nobody else can read, looking at what was opened, not at its name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            VARIABLE, f"cannot open the file (links are refused): {error.strerror}"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(VARIABLE, "must be a regular file")
        if stat.S_IMODE(status.st_mode) != _MODE or status.st_uid != os.geteuid():
            raise ConfigError(VARIABLE, "must belong to this process's user, with mode 0600")
        return os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _parse(document: bytes) -> tuple[dict[str, Secret[bytes]], str]:
    try:
        keyset = json.loads(document)
        primary, encoded = keyset["primary"], keyset["keys"]
        keks = {
            str(version): Secret(base64.b64decode(key, validate=True))
            for version, key in encoded.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        # The original error may quote the document.
        raise ConfigError(VARIABLE, "is not a keyset: {primary, keys: {version: base64}}") from None
    if primary not in keks:
        raise ConfigError(VARIABLE, "the primary key is not among the keys")
    for kek in keks.values():
        if len(kek.reveal()) != _KEK_BYTES:
            raise ConfigError(VARIABLE, "a key must have 32 bytes")
        if not any(kek.reveal()):
            raise ConfigError(VARIABLE, "a key is all zero")
    return keks, primary
