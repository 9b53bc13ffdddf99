"""What the tests with real parts share: a Postgres, and the tiers of the machine."""

import asyncio
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from interlock_chassis.secret import Secret
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_sandbox.kms.testing import find_bao

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def cluster() -> Iterator[ScratchDatabases]:
    """Give databases on an embedded Postgres, or on INTERLOCK_TEST_DATABASE_URL's server."""
    if url := os.environ.get("INTERLOCK_TEST_DATABASE_URL"):
        databases = ScratchDatabases(Secret(url))
        yield databases
        asyncio.run(databases.drop_all())
        return
    folder = Path(tempfile.mkdtemp(prefix="interlock-tests-"))
    postgres = EmbeddedPostgres(folder, binaries=find_binaries(os.environ), durable=False)
    postgres.start()
    try:
        yield ScratchDatabases(postgres.admin_url)
    finally:
        postgres.discard()


def pytest_configure() -> None:
    """Have containers found at loopback and removed by their tests, not by a reaper's image."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")


class _Whole(LoadScopeScheduling):  # type: ignore[misc] # It comes without types.
    """Keep together what shares something costly: a file, and all that use the containers."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "deploy" else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Say which tests go to the same process, where there are several."""
    return _Whole(config, log)


def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end: thousands of tests make its pauses long."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose tier this machine lacks, or fail it where the tier is required."""
    required = os.environ.get("INTERLOCK_REQUIRE", "").split(",")
    for tier, find_lack in _TIERS.items():
        if item.get_closest_marker(tier) is None:
            continue
        if (lack := find_lack()) is None:
            continue
        if tier in required:
            pytest.fail(f"INTERLOCK_REQUIRE names {tier}, but {lack}", pytrace=False)
        pytest.skip(lack)


@cache
def _lack_of_docker() -> str | None:
    if shutil.which("docker") is None:
        return "docker is not installed"
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        check=False,
        timeout=30,
    )
    return None if done.returncode == 0 else "no Docker engine answers"


@cache
def _lack_of_node() -> str | None:
    return None if shutil.which("node") else "node is not installed"


@cache
def _lack_of_chromium() -> str | None:
    return None if any(map(shutil.which, CHROMIUM)) else "chromium is not installed"


@cache
def _lack_of_openbao() -> str | None:
    return None if find_bao() else "bao is not installed"


@cache
def _lack_of_images() -> str | None:
    if _lack_of_docker() is not None:
        return "no Docker engine answers"
    done = subprocess.run(
        ["docker", "image", "inspect", "interlock/gateway:dev"],
        capture_output=True,
        check=False,
        timeout=30,
    )
    return None if done.returncode == 0 else "the images are not built: run 'make images' first"


_TIERS = {
    "images": _lack_of_images,
    "docker": _lack_of_docker,
    "node": _lack_of_node,
    "chromium": _lack_of_chromium,
    "openbao": _lack_of_openbao,
}
