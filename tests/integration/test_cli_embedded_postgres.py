"""The embedded Postgres: private, durable, and never left behind."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from interlock_chassis.secret import Secret
from interlock_cli.embedded_postgres import EmbeddedPostgres, PostgresError, find_binaries
from tests.support.processes import is_alive

_START_AND_DIE = """
import os, signal, sys
from pathlib import Path
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
postgres = EmbeddedPostgres(Path(sys.argv[1]), binaries=find_binaries({}), durable=False)
postgres.start()
print(postgres.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _embedded(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, binaries=find_binaries(os.environ), durable=False)


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    """What was committed before a stop is there after the next start."""
    postgres = _embedded(tmp_path / "pg")
    postgres.start()
    connection = await asyncpg.connect(postgres.admin_url.reveal())
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    postgres.stop()
    postgres.start()
    try:
        connection = await asyncpg.connect(postgres.admin_url.reveal())
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
    finally:
        postgres.stop()


def test_what_is_discarded_is_stopped_and_gone(tmp_path: Path) -> None:
    """Nothing is left of it: no process, no file."""
    postgres = _embedded(tmp_path / "pg")
    postgres.start()
    server = psutil.Process(postgres.pid)
    family = [server, *server.children(recursive=True)]
    postgres.discard()
    _, alive = psutil.wait_procs(family, 10)
    assert (alive, list(tmp_path.iterdir())) == ([], [])


async def test_wrong_password_is_refused_on_the_socket(tmp_path: Path) -> None:
    """Reaching the socket is not enough to log in: SCRAM is asked for there too."""
    postgres = _embedded(tmp_path / "pg")
    postgres.start()
    try:
        wrong = postgres.url("postgres", "postgres", Secret("not-the-password"))
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(wrong.reveal())
    finally:
        postgres.stop()


def test_nothing_listens_on_tcp_and_nobody_else_can_look_in(tmp_path: Path) -> None:
    """The server opens no TCP port, and its folders and files are the owner's alone."""
    folder = tmp_path / "pg"
    postgres = _embedded(folder)
    postgres.start()
    try:
        listening = psutil.Process(postgres.pid).net_connections("tcp")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    finally:
        postgres.stop()
    assert listening == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.pop("data") == modes.pop("socket", 0o700) == 0o700
    assert set(modes.values()) == {0o600}


async def test_socket_moves_when_its_path_would_be_too_long(tmp_path: Path) -> None:
    """A deep folder works, although a socket's path has at most 107 bytes."""
    postgres = _embedded(tmp_path / ("deep" * 30))
    postgres.start()
    try:
        connection = await asyncpg.connect(postgres.admin_url.reveal())
        await connection.close()
    finally:
        postgres.stop()


def test_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """After kill -9 of the process that started it, Postgres shuts down by itself."""
    parent = subprocess.run(
        [sys.executable, "-c", _START_AND_DIE, str(tmp_path / "pg")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    with suppress(psutil.NoSuchProcess):
        _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=10)
        assert not any(map(is_alive, alive))
    assert not (tmp_path / "pg" / "data" / "postmaster.pid").exists()


def test_named_folder_without_postgres_is_refused(tmp_path: Path) -> None:
    """INTERLOCK_PG_BIN is obeyed or refused, never quietly replaced."""
    with pytest.raises(PostgresError, match="INTERLOCK_PG_BIN"):
        find_binaries({"INTERLOCK_PG_BIN": str(tmp_path)})
