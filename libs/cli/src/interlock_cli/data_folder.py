"""Where a run keeps its keys, databases and logs between starts."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

AUDIT_CHECKPOINTS = "audit-checkpoints"
"""Folder with the vault's signed statements of how long its audit log was."""

AUDIT_PUBLIC_KEY = "audit-checkpoint.public.pem"
"""Key file that verifies them."""

_LOCK = "lock"
_PORTS = "ports.json"
# A killed launcher's processes end within moments; a running one's do not.
_LOCK_TIMEOUT = timedelta(seconds=10)
_LOCK_POLL_S = 0.1
# Below the range from which Linux serves outgoing connections: one of those could take
# a port between our choice and the listener's start.
_FREE_PORTS = range(20_000, 32_000)


class DataFolderInUse(Exception):
    """Another launcher runs on this data folder."""


class DataFolder:
    """One installation's files; the folder is 0700, its files 0600.

    Opening it takes a lock that every process of the run shares, so the folder
    is free only when the last of them has ended.

    Args:
        path: The folder; made when missing.
        reset: Remove what an earlier run left in it.

    Raises:
        DataFolderInUse: Another run holds the lock.
    """

    def __init__(self, path: Path, *, reset: bool = False) -> None:
        self.path = path.resolve()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._lock = self._take_lock()
        if reset:
            self._clear()

    @property
    def lock(self) -> int:
        """Return the descriptor that keeps the folder locked while anyone has it open."""
        return self._lock

    def close(self) -> None:
        """Let go of the lock; processes that inherited it keep holding it."""
        os.close(self._lock)

    def folder(self, *names: str) -> Path:
        """Return a folder inside, made when missing."""
        path = self.path
        for name in names:
            path /= name
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def keep(self, name: str, make: Callable[[], str]) -> Path:
        """Return a key file, made the first time and kept from then on."""
        path = self.folder("keys") / name
        if not path.is_file():
            write_private(path, make())
        return path

    def keep_random(self, name: str) -> Path:
        """Return a file with a random text of 256 bits, kept from then on."""
        return self.keep(name, lambda: secrets.token_urlsafe(32))

    def put(self, name: str, content: str) -> Path:
        """Write a key file anew."""
        path = self.folder("keys") / name
        write_private(path, content)
        return path

    def ports(self, names: Iterable[str]) -> dict[str, int]:
        """Choose a port for each name: last time's while it is free, else a new one."""
        path = self.path / _PORTS
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        chosen = choose_ports({name: known.get(name, 0) for name in names})
        write_private(path, json.dumps(chosen, indent=1))
        return chosen

    def _take_lock(self) -> int:
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_TIMEOUT.total_seconds()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace")
                # The launcher is gone, but not yet all that it started.
                if not _is_alive(holder) and time.monotonic() < deadline:
                    time.sleep(_LOCK_POLL_S)
                    continue
                os.close(descriptor)
                raise DataFolderInUse(
                    f"{self.path} is in use by process {holder or 'unknown'}; stop that run,"
                    " or choose another --data-dir"
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            # Credentials put here by hand are not ours to delete.
            if entry.name in {_LOCK, "slack"}:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def write_private(path: Path, content: str) -> None:
    """Replace a file at once, readable by its owner alone from the first byte."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    draft.replace(path)


def choose_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Find distinct free loopback ports, the wanted ones where they are free; 0 is any."""
    held: list[socket.socket] = []
    chosen: dict[str, int] = {}
    try:
        # The wanted ones first, so that no other name is given one of them.
        for name, port in sorted(wanted.items(), key=lambda each: each[1] == 0):
            held.append(listener := (port and _bind(port)) or _bind_any())
            chosen[name] = listener.getsockname()[1]
    finally:
        for listener in held:
            listener.close()
    return chosen


def is_port_free(port: int) -> bool:
    """Tell whether a loopback port can be listened on."""
    listener = _bind(port)
    if listener is None:
        return False
    listener.close()
    return True


def _bind(port: int) -> socket.socket | None:
    listener = socket.socket()
    # As servers do: a closed connection's remains do not take the port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1)
    except OSError as error:
        listener.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            return None
        raise
    return listener


def _bind_any() -> socket.socket:
    for port in secrets.SystemRandom().sample(_FREE_PORTS, len(_FREE_PORTS)):
        if listener := _bind(port):
            return listener
    raise OSError(errno.EADDRINUSE, "no loopback port is free")


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    # The state follows the name in parentheses; a zombie is gone.
    return status.rpartition(")")[2].split()[0] != "Z"
