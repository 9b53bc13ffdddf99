"""The life of a process, as its parent sees it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAM = """
import asyncio, ctypes, gc, resource, sys
from interlock_chassis.config import ProcessSettings
from interlock_chassis.errors import ConfigError
from interlock_chassis.process import run_process

class Settings(ProcessSettings):
    mode: str

async def main(settings, stop):
    if settings.mode == "fail":
        raise ValueError("canary")
    if settings.mode == "refuse":
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
    if settings.mode == "limits":
        print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3))
        print(type(asyncio.get_running_loop()).__module__)
        return
    if settings.mode == "garbage":
        print(gc.get_freeze_count(), len(gc.get_objects()))
        return
    print("up", flush=True)
    await stop.wait()
    print("down", flush=True)

async def refuse():
    raise ConfigError("INTERLOCK_LISTEN", "cannot listen there")

run_process("test", Settings, main)
"""


@contextmanager
def running(environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run the program with the given variables and nothing of ours beside them."""
    clean = {name: value for name, value in os.environ.items() if "INTERLOCK" not in name}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**clean, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(**environ: str) -> tuple[int, str, str]:
    """Run the program to its end."""
    with running(environ) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def parsed(err: str) -> list[dict[str, Any]]:
    """Parse the log lines written."""
    return [json.loads(line) for line in err.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_good_order(number: signal.Signals) -> None:
    """The event is set, main returns, the process exits with 0."""
    with running({"INTERLOCK_MODE": "serve"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "down\n")
    assert [line["event"] for line in parsed(err)] == ["process_started", "process_stopped"]


def test_settings_that_are_refused_exit_with_78() -> None:
    """One line names the variable and the problem."""
    assert run() == (78, "", "interlock: INTERLOCK_MODE: required, but not set\n")
    code, _, err = run(INTERLOCK_MODE="serve", INTERLOCK_MODEL="canary")
    assert code == 78
    assert err.startswith("interlock: INTERLOCK_MODEL: unknown variable")
    assert "canary" not in err


def test_a_refusal_after_the_start_exits_with_78_too() -> None:
    """Also when a task group has wrapped it."""
    code, _, err = run(INTERLOCK_MODE="refuse")
    assert code == 78
    assert err.splitlines()[-1] == "interlock: INTERLOCK_LISTEN: cannot listen there"


def test_an_unforeseen_error_exits_with_1_and_without_its_text() -> None:
    """The log names the error's type and place; its text stays inside."""
    code, _, err = run(INTERLOCK_MODE="fail")
    assert code == 1
    assert "canary" not in err
    line = parsed(err)[-1]
    assert line["event"] == "process_failed"
    assert line["cause"][0] == "builtins.ValueError"


def test_memory_is_not_dumped_and_the_loop_is_uvloop() -> None:
    """No core file, no reading by other processes of the same user."""
    code, out, _ = run(INTERLOCK_MODE="limits")
    assert (code, out.splitlines()) == (0, ["0 0", "uvloop"])


def test_what_was_imported_is_not_walked_for_garbage() -> None:
    """The collector looks at what a process makes, and at nothing that it started with."""
    code, out, _ = run(INTERLOCK_MODE="garbage")
    passed_over, looked_at = map(int, out.split())
    assert code == 0
    assert passed_over > 10 * looked_at


@pytest.mark.parametrize(
    ("variable", "value"), [("GRPC_TRACE", "http"), ("GRPC_VERBOSITY", "debug")]
)
def test_variables_that_make_grpc_print_messages_stop_the_start(variable: str, value: str) -> None:
    """CF-05: no environment turns on the printing of headers and bodies."""
    code, _, err = run(**{"INTERLOCK_MODE": "limits", variable: value})
    assert code == 78
    assert variable in err
