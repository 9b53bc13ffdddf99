"""The product in containers, driven from outside as its users would."""

import asyncio
import subprocess

import aiohttp
import pytest

from interlock_cli.demo import MIN_STREAMED_STATES
from interlock_cli.journey import MIA, Journey
from interlock_cli.leak_search import LeakSearch
from interlock_cli.product import DATABASES
from tests.support.compose_stack import BUILD_S, SERVICES, Stack, Walk

INSPECTED = (
    "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    " {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}}"
)

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]


def test_main_path_works_in_containers(walked: Walk) -> None:
    """Install, ask, link and answer work over HTTP from outside; the answer is streamed."""
    assert "30 days" in walked.answer.text
    assert len(walked.answer.lengths) >= MIN_STREAMED_STATES


def test_no_secret_is_in_logs_or_tables(stack: Stack, walked: Walk) -> None:
    """What was issued on the way is neither in any service's log nor in any of its tables."""
    search = LeakSearch(walked.secrets)
    logs = stack.compose("logs", "--no-color", *SERVICES)
    assert search.search("logs", logs.encode()) == []
    for plan in DATABASES:
        dump = stack.compose("exec", "-T", "postgres", "pg_dump", "-U", "postgres", plan.name)
        assert search.search(plan.name, dump.encode()) == []


async def test_installation_survives_a_restart_of_everything(stack: Stack, walked: Walk) -> None:
    """Each service is restarted, keys and databases are prepared again; who linked stays so."""
    await asyncio.to_thread(stack.compose, "restart", *SERVICES)
    await asyncio.to_thread(stack.up)
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http, patience=stack.patience)
        again = await journey.watch_answer(await journey.ask(MIA, "I forgot my password"))
    assert "password" in again.text


def test_containers_run_with_nothing_to_spare(stack: Stack) -> None:
    """Services run as nobody, on a read-only root, without capabilities, limited in memory."""
    for service in SERVICES:
        found = subprocess.run(
            [
                "docker",
                "inspect",
                "--format",
                INSPECTED,
                stack.container(service),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert found.strip() == "65532:65532 true [ALL] [no-new-privileges:true] true", service


def test_each_service_sees_its_own_secrets_alone(stack: Stack) -> None:
    """No file of one service's folder is another's, but for certificates and public keys."""
    owners: dict[str, set[str]] = {}
    for service in SERVICES:
        listing = stack.compose(
            "exec", "-T", service, "sh", "-c", "sha256sum /run/interlock/* 2>/dev/null"
        )
        for line in listing.splitlines():
            digest, path = line.split(maxsplit=1)
            if not path.endswith(("/ca.crt", "/grant-public-keys.json")):
                owners.setdefault(digest, set()).add(f"{service} {path}")
    assert owners
    assert [each for each in owners.values() if len(each) > 1] == []
