"""The health command of the images, against a stand-in for a service's ops port."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.manifests import ROOT

PROBE = ROOT / "deploy" / "images" / "probe.py"


@contextmanager
def _answering(status: int) -> Iterator[str]:
    """Answer one request for /readyz, and anything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"DATABASE_UNAVAILABLE" if status != 200 else b"ready")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"0.0.0.0:{server.server_address[1]}"
        thread.join()


def _probe(listen: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-ISB", PROBE],
        env={"INTERLOCK_OPS_LISTEN": listen},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_health_is_what_the_service_says(status: int, code: int) -> None:
    """Only 200 is healthy; what the service says of itself is in the engine's health log."""
    with _answering(status) as listen:
        done = _probe(listen)
    assert done.returncode == code
    assert done.stdout == ("ready" if status == 200 else "DATABASE_UNAVAILABLE")


def test_nobody_there_is_not_healthy() -> None:
    """A port that nobody listens at, and no port at all, are unhealthy, and said in a line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for listen, said in ((f"0.0.0.0:{port}", "no answer"), ("", "INTERLOCK_OPS_LISTEN")):
        done = _probe(listen)
        assert done.returncode == 1
        assert done.stderr.startswith(said)
        assert len(done.stderr.splitlines()) == 1
