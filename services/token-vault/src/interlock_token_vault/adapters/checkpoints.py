"""Signed checkpoints of the audit log: the key that signs them, and the folder that keeps them.

One file a chain, one line a checkpoint. The folder belongs on another disk, or
another machine, than the database's.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.auditing import CheckpointNotWritten, CheckpointsUnreadable
from interlock_token_vault.domain.audit_log import (
    ChainHead,
    Checkpoint,
    checkpoint_line,
    read_checkpoints,
)

KEY_VARIABLE = "INTERLOCK_AUDIT_CHECKPOINT_KEY_FILE"
DIR_VARIABLE = "INTERLOCK_AUDIT_CHECKPOINT_DIR"
_SUFFIX = ".checkpoints"
_COPIED_SUFFIX = ".checkpoint"
_KEY_ID_CHARS = 16


class Ed25519Signer:
    """A CheckpointSigner with a key in memory."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._key_id = _key_id(key.public_key())

    @classmethod
    def from_pem(cls, pem: Secret[str]) -> "Ed25519Signer":
        """Read the private key.

        Raises:
            ConfigError: It is not an Ed25519 private key in PEM.
        """
        try:
            key = serialization.load_pem_private_key(pem.reveal().encode(), password=None)
        except (ValueError, TypeError):
            # The original error may quote the document.
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(KEY_VARIABLE, "is not an Ed25519 private key in PEM")
        return cls(key)

    @property
    def public_pem(self) -> str:
        """The public key in PEM, for whoever verifies."""
        return _public_pem(self._key.public_key())

    def sign(self, head: ChainHead) -> Checkpoint:
        """Sign a chain's head; see CheckpointSigner."""
        return Checkpoint(head, self._key_id, self._key.sign(head.to_sign()))


class CheckpointVerifier:
    """Tell genuine checkpoints from others, with public keys only."""

    def __init__(self, *keys: Ed25519PublicKey) -> None:
        self._keys = {_key_id(key): key for key in keys}

    @classmethod
    def from_pem(cls, *documents: bytes) -> "CheckpointVerifier":
        """Read public keys.

        Raises:
            ValueError: One is not an Ed25519 public key in PEM.
        """
        keys = [serialization.load_pem_public_key(document) for document in documents]
        found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
        if len(found) != len(keys):
            raise ValueError("not an Ed25519 public key")
        return cls(*found)

    def is_genuine(self, checkpoint: Checkpoint) -> bool:
        """Tell whether one of the keys signed it."""
        key = self._keys.get(checkpoint.key_id)
        if key is None:
            return False
        try:
            key.verify(checkpoint.signature, checkpoint.head.to_sign())
        except InvalidSignature:
            return False
        return True


class FileCheckpoints:
    """A CheckpointStore in a folder.

    Args:
        folder: Made when its parent is there.

    Raises:
        ConfigError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(DIR_VARIABLE, f"cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(DIR_VARIABLE, "cannot be written")

    async def append(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; see CheckpointStore."""
        path = self._folder / f"{checkpoint.head.chain_id}{_SUFFIX}"
        try:
            await asyncio.to_thread(_append, path, checkpoint_line(checkpoint))
        except OSError as error:
            raise CheckpointNotWritten from error

    async def load_newest(self, is_genuine: Callable[[Checkpoint], bool]) -> list[ChainHead]:
        """Load each chain's newest genuine checkpoint; see CheckpointStore."""
        try:
            return await asyncio.to_thread(self._load_newest, is_genuine)
        except OSError as error:
            raise CheckpointsUnreadable from error

    def _load_newest(self, is_genuine: Callable[[Checkpoint], bool]) -> list[ChainHead]:
        newest: list[ChainHead] = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            heads, _ = read_checkpoints(path.read_bytes(), is_genuine)
            here = [head for head in heads if f"{head.chain_id}{_SUFFIX}" == path.name]
            newest += [max(here, key=lambda head: head.seq)] if here else []
        return newest


def load_checkpoints(
    folder: Path, verifier: CheckpointVerifier
) -> tuple[list[ChainHead], list[str]]:
    """Read every genuine checkpoint of a vault's folder, or of a copy of its bucket.

    Returns:
        The heads, and the names of files that hold anything else, or another chain.

    Raises:
        OSError: The folder cannot be read.
    """
    heads: list[ChainHead] = []
    damaged: list[str] = []
    for path in _files_of(folder):
        found, is_damaged = read_checkpoints(path.read_bytes(), verifier.is_genuine)
        heads += found
        # A bucket has a folder a chain.
        chain = path.stem if path.suffix == _SUFFIX else path.parent.name
        if is_damaged or any(str(head.chain_id) != chain for head in found):
            damaged.append(str(path.relative_to(folder)))
    return heads, damaged


def _files_of(folder: Path) -> Iterator[Path]:
    # A folder that is not there is not an empty one.
    own = [path for path in folder.iterdir() if path.suffix == _SUFFIX]
    return iter(sorted([*own, *folder.rglob(f"*{_COPIED_SUFFIX}")]))


def create_checkpoint_key() -> str:
    """Make a private key; returns it in PEM."""
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def _public_pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def _key_id(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:_KEY_ID_CHARS]


def _append(path: Path, line: bytes) -> None:
    """Append a line and wait for the disk; a failed write leaves no part of it."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            is_whole = os.write(descriptor, line) == len(line)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        if not is_whole:
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, "the line was written in part")
    finally:
        os.close(descriptor)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
