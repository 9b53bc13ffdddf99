"""Packages from npm that tests use: installed where they are pinned, at their first use."""

import hashlib
import os
import shutil
import subprocess
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

PEERS = Path(__file__).parents[1] / "peers"
OLDEST_NODE = 20
# A test may take 120 s, an install is part of the first one, and npm retries by itself.
INSTALL_TIMEOUT_S = 90


def require_packages(name: str) -> Path:
    """Install the packages of a folder of tests/peers; return where they are.

    Skips the test, or fails it if INTERLOCK_REQUIRE names `node`, where that cannot be.
    """
    if lack := _install(PEERS / name):
        _lack(lack)
    return PEERS / name / "node_modules"


def require_node() -> str:
    """Return Node's program; skip or fail the test as `require_packages` does."""
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
