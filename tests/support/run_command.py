"""The command `interlock run` as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_READY = "Ready: "


@contextmanager
def started(data_dir: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command until it is ready; yields it and the URL that it printed."""
    # In a folder that is not the repository's: nothing depends on where it is started.
    with subprocess.Popen(
        [sys.executable, "-m", "interlock_cli", "run", f"--data-dir={data_dir}", f"--port={port}"],
        cwd=data_dir.parent,
        env=environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as product:
        try:
            yield product, wait_until_ready(product)
        finally:
            product.kill()


def environ() -> dict[str, str]:
    """Return our environment without what make adds to it for a make inside it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def wait_until_ready(product: subprocess.Popen[str]) -> str:
    """Read what it says until it is ready; return the URL that it printed."""
    assert product.stdout
    shown = []
    for line in product.stdout:
        shown.append(line)
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
    raise AssertionError("not ready; it said:\n" + "".join(shown))


def processes_on(data_dir: Path) -> list[psutil.Process]:
    """Find living processes that have to do with a data folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status", "pid"]):
        known = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
        is_ours = any(str(data_dir) in each for each in known)
        if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]
