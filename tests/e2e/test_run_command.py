"""The command `interlock run`: what it promises about ports, data, signals and processes."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from tests.support.processes import is_alive
from tests.support.run_command import environ, processes_on, started, wait_until_ready

ROOT = Path(__file__).parents[2]
CTRL_C = "\x03"
# The promises of the README.
START_BUDGET_S = 10
STOP_BUDGET_S = 10


def _get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own URL.
        return int(response.status)


def test_taken_port_is_said_and_nothing_isstarted(tmp_path: Path) -> None:
    """A port in use ends the start with exit code 1 and a line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "interlock_cli", "run", f"--data-dir={tmp_path / 'data'}"],
            env=environ() | {"INTERLOCK_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == f"interlock: port {port} is taken; set INTERLOCK_PORT to a free one\n"
    assert not (tmp_path / "data").exists()


def test_ctrl_c_stops_everything_and_the_next_start_keeps_the_data(tmp_path: Path) -> None:
    """Ctrl-C: exit 0 within 10 s, no process left. The second start is quick and finds all."""
    data = tmp_path / "data"
    with started(data) as (product, url):
        assert _get(url + "/") == 200
        ports = json.loads((data / "ports.json").read_text())
        _invite_a_message(ports["slack"])
        began = time.monotonic()
        product.send_signal(signal.SIGINT)
        assert product.wait(STOP_BUDGET_S) == 0
        assert time.monotonic() - began < STOP_BUDGET_S
    assert processes_on(data) == []
    keys = {path.name: path.read_text() for path in (data / "keys").glob("*.json")}
    began = time.monotonic()
    with started(data):
        assert time.monotonic() - began < START_BUDGET_S
        assert json.loads((data / "ports.json").read_text()) == ports
        assert "kept over a restart" in _messages(ports["slack"])
        assert {path.name: path.read_text() for path in (data / "keys").glob("*.json")} == keys


def test_ctrl_c_in_a_terminal_ends_make_run_without_an_error(tmp_path: Path) -> None:
    """Under `make run` too, Ctrl-C typed in a terminal means exit 0 and no process left."""
    data = tmp_path / "data"
    with subprocess.Popen(
        # A terminal of its own; it passes on what is typed, and make's exit code.
        ["script", "--quiet", "--return", "--flush", "--command", "make run", "/dev/null"],
        cwd=ROOT,
        env=environ() | {"INTERLOCK_DATA_DIR": str(data), "INTERLOCK_PORT": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as terminal:
        wait_until_ready(terminal)
        assert terminal.stdin
        terminal.stdin.write(CTRL_C)
        terminal.stdin.flush()
        assert terminal.wait(STOP_BUDGET_S) == 0
    assert processes_on(data) == []


def test_interrupt_or_kill_of_make_alone_ends_everything(tmp_path: Path) -> None:
    """Make passes no interrupt on, and a killed one nothing at all: no process is left anyway."""
    data = tmp_path / "data"
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(
            ["make", "run"],
            cwd=ROOT,
            env=environ() | {"INTERLOCK_DATA_DIR": str(data), "INTERLOCK_PORT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as make:
            wait_until_ready(make)
            make.send_signal(number)
            _, alive = psutil.wait_procs(processes_on(data), timeout=STOP_BUDGET_S)
            assert not any(map(is_alive, alive))


def test_killed_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    """Kill -9 of the launcher ends every process; the next start works at once."""
    data = tmp_path / "data"
    with started(data) as (product, _):
        assert len(processes_on(data)) > 6
        product.kill()
        product.wait()
        _, alive = psutil.wait_procs(processes_on(data), timeout=STOP_BUDGET_S)
        assert not any(map(is_alive, alive))
    with started(data) as (_, url):
        assert _get(url + "/") == 200


def test_dead_service_ends_the_run_with_its_last_words(tmp_path: Path) -> None:
    """A service that ends by itself is named with its log, and the run ends with exit code 1."""
    data = tmp_path / "data"
    with started(data) as (product, _):
        [vault] = [each for each in processes_on(data) if "interlock_token_vault" in each.cmdline()]
        vault.kill()
        assert product.stdout
        said = product.stdout.read()
        assert product.wait(STOP_BUDGET_S) == 1
    assert "interlock: token-vault was killed by signal 9" in said
    assert "process_started" in said
    assert processes_on(data) == []


def _invite_a_message(port: int) -> None:
    body = {"team": "T0NORTHWIND", "user": "U0MIA", "channel": "C0NOHELP"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/_control/post",
        data=json.dumps(body | {"typed": "kept over a restart"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert urllib.request.urlopen(request, timeout=10).status == 200  # noqa: S310 - our own URL.


def _messages(port: int) -> str:
    query = "team=T0NORTHWIND&channel=C0NOHELP"
    url = f"http://127.0.0.1:{port}/_control/messages?{query}"
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]
