"""The launcher's supervisor: ready means ready, and nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from interlock_cli.data_folder import choose_ports
from interlock_cli.supervisor import Program, ProgramEnded, Supervisor
from tests.support.processes import is_alive, runs

_SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Ready).serve_forever()
"""
_STUBBORN = _SERVER.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
_LAUNCH_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from interlock_cli.supervisor import Program, Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    program = Program("sleeper", (sys.executable, "-c", sys.argv[2]), {"PORT": sys.argv[3]},
                      f"http://127.0.0.1:{sys.argv[3]}/readyz")
    await supervisor.start([program], lambda _: None)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def _program(name: str, source: str) -> Program:
    port = choose_ports({"http": 0})["http"]
    command = (sys.executable, "-c", source)
    return Program(name, command, {"PORT": str(port)}, f"http://127.0.0.1:{port}/readyz")


def _children() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [each for each in children if is_alive(each)]


async def test_started_programs_are_ready_and_stopped_ones_gone(tmp_path: Path) -> None:
    """`start` returns when every program answers; after `stop` no process is left."""
    supervisor = Supervisor(tmp_path)
    before = _children()
    ready: list[str] = []
    await supervisor.start(
        [_program("one", _SERVER), _program("two", _SERVER)],
        lambda program: ready.append(program.name),
    )
    assert sorted(ready) == ["one", "two"]
    await supervisor.stop()
    assert _children() == before


async def test_program_that_ends_at_start_is_reported_with_its_log(tmp_path: Path) -> None:
    """A program that dies while starting is named, with its exit code and last words."""
    supervisor = Supervisor(tmp_path)
    program = _program("broken", "import sys; print('no such key'); sys.exit(78)")
    with pytest.raises(ProgramEnded, match=r"broken ended with exit code 78.*\n.*no such key"):
        await supervisor.start([program], lambda _: None)
    await supervisor.stop()


async def test_program_that_ends_later_is_noticed(tmp_path: Path) -> None:
    """The end of one running program is told, by the signal that ended it."""
    supervisor = Supervisor(tmp_path)
    await supervisor.start([_program("victim", _SERVER)], lambda _: None)
    try:
        [victim] = [each for each in _children() if runs(each, _SERVER)]
        victim.kill()
        ended = await supervisor.wait_for_end()
    finally:
        await supervisor.stop()
    assert ended.name == "victim"
    assert "killed by signal 9" in str(ended)


async def test_program_that_ignores_the_request_is_killed_in_time(tmp_path: Path) -> None:
    """A program deaf to SIGTERM costs at most seven seconds."""
    supervisor = Supervisor(tmp_path)
    await supervisor.start([_program("deaf", _STUBBORN)], lambda _: None)
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 8
    assert not [each for each in _children() if runs(each, _STUBBORN)]


def test_programs_end_with_a_killed_launcher(tmp_path: Path) -> None:
    """After kill -9 of the launcher no program is left, not even a deaf one."""
    port = choose_ports({"http": 0})["http"]
    launcher = subprocess.run(
        [sys.executable, "-c", _LAUNCH_AND_DIE, str(tmp_path), _STUBBORN, str(port)],
        env=dict(os.environ),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert launcher.returncode == -signal.SIGKILL
    left = [each for each in psutil.process_iter(["cmdline", "environ"]) if _is(each, port)]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not any(map(is_alive, alive))


def _is(process: psutil.Process, port: int) -> bool:
    return (process.info["environ"] or {}).get("PORT") == str(port)
