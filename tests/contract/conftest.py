"""Real third-party servers, installed and started for the tests that hold ours to them."""

import hashlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

PEERS = Path(__file__).parents[1] / "peers"
OLDEST_NODE = 20
# A test may take 120 s, an install is part of the first one, and npm retries by itself.
INSTALL_TIMEOUT_S = 90
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10


@pytest.fixture(scope="module")
def start_peer(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str, Mapping[str, object]], str]]:
    """Give what starts the server of a folder of tests/peers with settings; it returns the URL.

    The servers end with the module. A test that asks for this is of the tier `node`.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, settings: Mapping[str, object]) -> str:
        node = _require_node()
        if lack := _install(PEERS / name):
            _lack(lack)
        log = tmp_path_factory.mktemp(name) / "stderr.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [node, "server.mjs"],
                cwd=PEERS / name,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        started.append(process)
        return _url_of(process, settings, log)

    yield start
    for process in started:
        _stop(process)


def _url_of(process: subprocess.Popen[bytes], settings: Mapping[str, object], log: Path) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    if select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
        word, _, url = process.stdout.readline().decode().strip().partition(" ")
        if word == "READY":
            return url
    pytest.fail(f"the peer did not start:\n{log.read_text()}", pytrace=False)


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        # The end of its input is the peer's end.
        process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _require_node() -> str:
    node = shutil.which("node") or _lack("node is not installed")
    version = subprocess.check_output([node, "--version"], text=True).strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        _lack(f"the peers need Node {OLDEST_NODE}, and this is {version}")
    return node


@cache
def _install(folder: Path) -> str:
    """Install a peer's packages, unless what is there came from the same lock file.

    Say what stood in the way, once for all tests; "" if nothing did.
    """
    if (npm := shutil.which("npm")) is None:
        return "npm is not installed"
    stamp = folder / "node_modules" / ".installed"
    with (folder / "package-lock.json").open("rb") as lock_file:
        # Another test run may be at it.
        flock(lock_file, LOCK_EX)
        wanted = hashlib.sha256(lock_file.read()).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            return ""
        # The second of npm's three tries comes after 10 s, the third after a minute.
        command = [npm, "ci", "--omit=optional", "--ignore-scripts", "--fetch-retries=1"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                check=False,
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"npm could not install {folder.name} in {INSTALL_TIMEOUT_S} s"
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            return f"npm could not install {folder.name}: {'; '.join(errors[:4])}"
        stamp.write_text(wanted)
    return ""


def _lack(reason: str) -> NoReturn:
    if "node" in os.environ.get("INTERLOCK_REQUIRE", "").split(","):
        pytest.fail(f"INTERLOCK_REQUIRE names node, but {reason}", pytrace=False)
    pytest.skip(reason)
