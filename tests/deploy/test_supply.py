"""What the images are made of, and what is known against it: `make sbom` and `make audit`."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.manifests import ROOT

TOOL = ROOT / "tools" / "supply.sh"
LOCKS = sorted((ROOT / "deploy" / "images").glob("*.lock"))
WEAK = "aiohttp"
# As OSV describes one.
WEAKNESS = {
    "id": "PYSEC-2026-1",
    "summary": "An example.",
    "details": "An example.",
    "aliases": ["CVE-2026-0001"],
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": WEAK, "ecosystem": "PyPI"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]},
            ],
        }
    ],
}


@pytest.fixture(scope="module", autouse=True)
def checkers() -> None:
    """Use what `make sbom` installs, which the first time needs a package index."""
    if (ROOT / "build" / "supply" / ".lock").is_file():
        return
    if "supply" in os.environ.get("INTERLOCK_REQUIRE", "").split(","):
        pytest.fail("INTERLOCK_REQUIRE names supply, but build/supply is not there")
    pytest.skip("build/supply is not there: run 'make sbom' once")


def _pins(lock: Path) -> set[tuple[str, str]]:
    found = re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", lock.read_text(), re.MULTILINE)
    return {(name, version) for name, version in found}


@contextmanager
def _serving_osv(weak: str) -> Iterator[str]:
    """Answer as an OSV server that knows one weakness, of the package `weak`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = json.loads(body)["package"]["name"]
            answer = json.dumps({"vulns": [WEAKNESS]} if name == weak else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def _audit(osv_url: str, *images: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, "audit", *images],
        env=os.environ | {"OSV_URL": osv_url, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sbom_lists_what_is_installed() -> None:
    """Each image's CycloneDX document names every pin of its lock, and nothing else."""
    subprocess.run([TOOL, "sbom"], capture_output=True, check=True)
    for lock in LOCKS:
        document = json.loads((ROOT / "build" / "sbom" / f"{lock.stem}.cdx.json").read_text())
        assert document["bomFormat"] == "CycloneDX"
        listed = {(each["name"], each["version"]) for each in document["components"]}
        assert listed == _pins(lock)


def test_audit_passes_where_nothing_is_known() -> None:
    """An image of which nothing bad is known is said to be so."""
    with _serving_osv(weak="none") as url:
        done = _audit(url, "runner")
    assert done.returncode == 0, done.stderr
    assert "runner: No known vulnerabilities found" in done.stdout


def test_audit_fails_on_a_known_weakness() -> None:
    """A known weakness is named with its package, and the other images are looked at too."""
    with _serving_osv(weak=WEAK) as url:
        done = _audit(url, "runner", "identity")
    assert done.returncode == 1
    assert WEAK in done.stdout
    assert "PYSEC-2026-1" in done.stdout
    assert "identity: Found 1 known vulnerability" in done.stdout


def test_audit_without_an_answer_says_so_in_a_line() -> None:
    """Where nobody can be asked the audit fails, in one line that says what it needs."""
    with _serving_osv(weak="none") as url:
        pass
    done = _audit(url)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("interlock: no answer on what is known of deploy/images/gateway.lock")
    assert "OSV_URL" in line
