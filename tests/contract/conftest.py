"""Real third-party servers, installed and started for the tests that hold ours to them."""

import json
import select
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.node_packages import PEERS, require_node, require_packages

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
        node = require_node()
        require_packages(name)
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
