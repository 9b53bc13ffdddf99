"""A folder of sealed answers that the database has not taken yet.

Space is set aside before Slack is asked: a slot is a file of full size. An
answer is written into its slot, synced, and renamed; a restart finds whole
answers or none. What is written is sealed; no token stands in it.
"""

import asyncio
import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import structlog

from interlock_chassis.errors import ConfigError, ServiceError
from interlock_token_vault.domain.envelope import SealedBytes, SealedToken
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import AnswerFacts, Chain
from interlock_token_vault.install_ports import SpooledInstall
from interlock_token_vault.rotation_ports import SealedAnswer, SealedPair, Slot, SpoolFull

VARIABLE = "INTERLOCK_SPOOL_DIR"

# Two sealed tokens of Slack's largest size, in base64, and their names.
_SLOT_BYTES = 16 * 1024
# More exchanges than run at one time, and what an outage of the database leaves.
_CAPACITY = 256
_VERSION = 1
_FREE, _WRITTEN, _BROKEN = ".slot", ".answer", ".broken"
_INSTALL = ".install"

_log = structlog.get_logger()


class FileSpool:
    """A Spool in a folder that belongs to one process.

    Args:
        folder: On a disk that outlives the process.
        capacity: How many answers it may hold.
    """

    def __init__(self, folder: Path, *, capacity: int = _CAPACITY) -> None:
        self._folder = folder
        self._capacity = capacity

    async def reserve(self) -> Slot:
        """Set space aside; see Spool."""
        return await asyncio.to_thread(self._reserve)

    async def list_left(self) -> Sequence[tuple[Slot, SealedAnswer]]:
        """List what an earlier process left; see Spool."""
        return await asyncio.to_thread(self._list_left)

    def _reserve(self) -> "FileSlot":
        path = self._folder / f"{uuid4().hex}{_FREE}"
        try:
            if len(list(self._folder.glob("*.*"))) >= self._capacity:
                raise SpoolFull
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _SLOT_BYTES)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SpoolFull from error
        return FileSlot(path)

    def _list_left(self) -> list[tuple[Slot, SealedAnswer]]:
        paths = sorted(self._folder.glob(f"*{_WRITTEN}"), key=lambda path: path.stat().st_mtime_ns)
        left: list[tuple[Slot, SealedAnswer]] = []
        for path in paths:
            try:
                left.append((FileSlot(path), _decode(path.read_bytes())))
            except (ValueError, KeyError, TypeError):
                # Kept for whoever looks into it; in nobody's way.
                path.rename(path.with_suffix(_BROKEN))
                _log.error("spooled_answer_broken", file=path.name)
            except OSError as error:
                # Left where it is: the disk may give it to the next process.
                _log.error("spooled_answer_unreadable", file=path.name, errno=error.errno)
        return left


class FileSlot:
    """Space for one answer; see Slot."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def write(self, answer: SealedAnswer) -> None:
        """Put an answer on the disk; see Slot."""
        try:
            # Not in a thread: an answer in memory only is one that a crash loses.
            self._write(_encode(answer))
        except OSError as error:
            raise SpoolFull from error

    async def clear(self) -> None:
        """Forget the answer; see Slot."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            # It will be found again, and known for stored.
            _log.warning("spool_slot_not_cleared", errno=error.errno)

    def _write(self, document: bytes) -> None:
        if len(document) > _SLOT_BYTES:
            raise OSError("an answer larger than its slot")
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, document.ljust(_SLOT_BYTES, b"\n"), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        written = self._path.with_suffix(_WRITTEN)
        self._path.rename(written)
        self._path = written
        _sync(written.parent)


class FileInstallSpool:
    """An InstallSpool in the folder of a FileSpool, under a suffix of its own.

    Args:
        folder: On a disk that outlives the process; this process's alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, spooled: SpooledInstall) -> None:
        """Keep what an exchange gave; see InstallSpool."""
        path = self._path(spooled.grant_id)
        beside = path.with_suffix(_FREE)
        try:
            # Not in a thread: what is in memory only is what a crash loses.
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, _encode_install(spooled), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            beside.rename(path)
            _sync(self._folder)
        except OSError as error:
            raise SpoolFull from error

    async def list_left(self) -> Sequence[SpooledInstall]:
        """List what is kept; see InstallSpool."""
        left: list[SpooledInstall] = []
        paths = self._folder.glob(f"*{_INSTALL}")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            try:
                left.append(_decode_install(path.read_bytes()))
            except (ValueError, KeyError, TypeError, ServiceError):
                path.rename(path.with_suffix(_BROKEN))
                _log.error("spooled_answer_broken", file=path.name)
            except OSError as error:
                _log.error("spooled_answer_unreadable", file=path.name, errno=error.errno)
        return left

    async def clear(self, grant_id: str) -> None:
        """Forget an install; see InstallSpool."""
        try:
            self._path(grant_id).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("spool_slot_not_cleared", errno=error.errno)

    def _path(self, grant_id: str) -> Path:
        # A grant's id is no name of a file.
        return self._folder / f"{hashlib.sha256(grant_id.encode()).hexdigest()[:32]}{_INSTALL}"


@contextmanager
def open_spool(folder: Path) -> Iterator[FileSpool]:
    """Open a spool, for this process alone; what was only reserved before is free again.

    Raises:
        ConfigError: The folder cannot be used, or another process uses it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(VARIABLE, f"cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(VARIABLE, "is in use by another process") from None
        for path in folder.glob(f"*{_FREE}"):
            path.unlink(missing_ok=True)
        yield FileSpool(folder)
    finally:
        os.close(lock)


@dataclass(frozen=True, slots=True)
class _Half:
    """One sealed token, as JSON holds it."""

    document: Mapping[str, Any]

    def read(self, chain: Chain, slot: TokenSlot) -> SealedToken:
        document, expires_at = self.document, self.document["expires_at"]
        return SealedToken(
            kind=TokenKind(document["kind"]),
            slot=slot,
            user_id=chain.user_id,
            generation=int(document["generation"]),
            dek_id=DekId(UUID(document["dek_id"])),
            sealed=SealedBytes(base64.b64decode(document["sealed"], validate=True)),
            ref=TokenRef(document["ref"]),
            expires_at=None if expires_at is None else datetime.fromisoformat(expires_at),
        )


def _encode(answer: SealedAnswer) -> bytes:
    body = json.dumps(
        {
            "version": _VERSION,
            "installation_id": str(answer.chain.installation_id),
            "user_id": answer.chain.user_id,
            "epoch": answer.epoch,
            "generation": answer.facts.generation,
            "base_ref": answer.facts.base_ref,
            "is_odd": answer.facts.is_odd,
            "is_doubtful": answer.facts.is_doubtful,
            "access": _half(answer.pair.access),
            "refresh": _half(answer.pair.refresh),
        }
    ).encode()
    return _signed(body)


def _half(token: SealedToken) -> dict[str, Any]:
    return {
        "kind": token.kind.value,
        "generation": token.generation,
        "dek_id": str(token.dek_id),
        "sealed": base64.b64encode(token.sealed).decode(),
        "ref": token.ref,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
    }


def _signed(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _encode_install(spooled: SpooledInstall) -> bytes:
    installation = spooled.installation
    key = installation.key
    return _signed(
        json.dumps(
            {
                "version": _VERSION,
                "grant_id": spooled.grant_id,
                "installation_id": str(installation.id),
                "name_at_slack": [key.client_id, key.app_id, key.enterprise_id, key.team_id],
                "tenant_id": installation.tenant_id,
                "generation": installation.generation,
                "name": installation.name,
                "bot_user_id": installation.bot_user_id,
                "bot_scopes": installation.bot_scopes,
                "installed_by": installation.installed_by,
                "tokens": [
                    {"slot": token.slot.value, "user_id": token.user_id} | _half(token)
                    for token in spooled.tokens
                ],
            }
        ).encode()
    )


def _decode_install(document: bytes) -> SpooledInstall:
    """Read an install.

    Raises:
        ValueError, KeyError, TypeError, ServiceError: It is not one that was written whole.
    """
    read = _read_signed(document)
    client_id, app_id, enterprise_id, team_id = read["name_at_slack"]
    installation = Installation(
        id=InstallationId(UUID(read["installation_id"])),
        key=InstallationKey(ClientId(client_id), app_id, enterprise_id, team_id),
        tenant_id=TenantId(read["tenant_id"]),
        state=InstallationState.PENDING,
        generation=read["generation"],
        name=read["name"],
        bot_user_id=read["bot_user_id"],
        bot_scopes=tuple(read["bot_scopes"]),
        installed_at=None,
        # Spooled by a vault of before, it does not say.
        installed_by=read.get("installed_by", ""),
    )
    tokens = tuple(
        _Half(each).read(Chain(installation.id, each["user_id"]), TokenSlot(each["slot"]))
        for each in read["tokens"]
    )
    return SpooledInstall(read["grant_id"], installation, tokens)


def _read_signed(document: bytes) -> Mapping[str, Any]:
    digest, _, body = document.rstrip(b"\n").partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("not what was written")
    read: Mapping[str, Any] = json.loads(body)
    if read["version"] != _VERSION:
        raise ValueError("of another version")
    return read


def _decode(document: bytes) -> SealedAnswer:
    """Read an answer.

    Raises:
        ValueError, KeyError, TypeError: It is not one that was written whole.
    """
    read = _read_signed(document)
    chain = Chain(InstallationId(UUID(read["installation_id"])), read["user_id"])
    pair = SealedPair(
        _Half(read["access"]).read(chain, TokenSlot.ACCESS),
        _Half(read["refresh"]).read(chain, TokenSlot.REFRESH),
    )
    facts = AnswerFacts(
        generation=read["generation"],
        base_ref=TokenRef(read["base_ref"]),
        refresh_ref=pair.refresh.ref,
        dek_id=pair.refresh.dek_id,
        is_odd=read["is_odd"],
        is_doubtful=read["is_doubtful"],
    )
    return SealedAnswer(chain, read["epoch"], facts, pair)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
