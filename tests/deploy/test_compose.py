"""The product in containers, driven from outside as its users would."""

import asyncio
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from interlock_cli.browser import open_browser
from interlock_cli.data_folder import choose_ports
from interlock_cli.demo import MIN_STREAMED_STATES, QUESTION
from interlock_cli.journey import ADA, MIA, Answer, Journey
from interlock_cli.leak_search import LeakSearch
from interlock_cli.product import DATABASES, Urls

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("runner", "identity", "token-vault", "gateway-worker", "gateway-edge")
RELAYS = {"runner": "relay-runner", "gateway-worker": "relay-worker"}
INSPECTED = (
    "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    " {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}}"
)
# Base images are there; the slowest step is compiling what pip installed.
BUILD_S = 540

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]


@dataclass(frozen=True)
class Walk:
    """What one walk along the main path saw."""

    answer: Answer
    secrets: dict[str, list[str]]


class Stack:
    """One run of deploy/compose.yaml with its sandbox, under a name of its own."""

    def __init__(self, project: str, env_file: Path, ports: dict[str, int]) -> None:
        self._project = project
        self._env_file = env_file
        self.urls = Urls.of(ports)

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` and return what it said; its failure fails the test."""
        command = ("docker", "compose", "--project-name", self._project)
        done = subprocess.run(
            [*command, "--env-file", str(self._env_file), *arguments],
            cwd=DEPLOY,
            env=os.environ | {"COMPOSE_ANSI": "never"},
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
        )
        if done.returncode:
            pytest.fail(f"docker compose {' '.join(arguments)}:\n{done.stderr[-4000:]}")
        return done.stdout

    def do(self, what: str, service: str) -> None:
        """Do to a service what `docker compose` or `docker network` can do to it."""
        if what not in {"connect", "disconnect"}:
            self.compose(what, service)
            if what == "start" and service in RELAYS:
                # It shares the network that the service has just been given.
                self.compose("restart", RELAYS[service])
            return
        alias = ("--alias", service) if what == "connect" else ()
        network = f"{self._project}_default"
        subprocess.run(
            ["docker", "network", what, *alias, network, self.container(service)], check=True
        )

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the images, start everything, and remove it afterwards, volumes too."""
    ports = choose_ports(dict.fromkeys(("edge", "slack", "platform", "auth"), 0))
    changed = {
        "PORT": ports["edge"],
        "SANDBOX_SLACK_PORT": ports["slack"],
        "SANDBOX_PLATFORM_PORT": ports["platform"],
        "SANDBOX_AUTH_PORT": ports["auth"],
    }
    lines = (DEPLOY / "sandbox.env").read_text(encoding="utf-8").splitlines()
    env_file = tmp_path_factory.mktemp("compose") / "sandbox.env"
    env_file.write_text(
        "\n".join(
            f"{name}={changed[name]}" if (name := line.partition("=")[0]) in changed else line
            for line in lines
        )
    )
    stack = Stack(f"interlock-test-{os.getpid()}", env_file, ports)
    try:
        subprocess.run([ROOT / "tools" / "images.sh"], check=True, timeout=BUILD_S)
        stack.compose("up", "--no-build", "--detach", "--wait")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "20")


@pytest.fixture(scope="module")
def walked(stack: Stack) -> Walk:
    """Walk the main path once: install, ask, link, answer, audit."""
    return asyncio.run(_walk(stack.urls))


async def _walk(urls: Urls) -> Walk:
    async with (
        aiohttp.ClientSession() as http,
        open_browser(urls.edge) as ada,
        open_browser(urls.edge) as mia,
    ):
        journey = Journey(urls, http)
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(question), MIA)
        answer = await journey.watch_answer(question)
        (await journey.read_audit(ada)).require("token.read")
        return Walk(answer, await journey.list_secrets())


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


@pytest.mark.parametrize(
    ("service", "away", "back"),
    [
        ("runner", "kill", "start"),
        ("gateway-worker", "kill", "start"),
        ("identity", "pause", "unpause"),
        ("token-vault", "disconnect", "connect"),
    ],
)
async def test_question_outlasts_a_part_that_is_away(
    stack: Stack, walked: Walk, service: str, away: str, back: str
) -> None:
    """A question asked while a part is killed, paused or cut off is answered when it is back."""
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http)
        await asyncio.to_thread(stack.do, away, service)
        try:
            question = await journey.ask(MIA, "I forgot my password")
        finally:
            await asyncio.to_thread(stack.do, back, service)
        assert "password" in (await journey.watch_answer(question)).text


async def test_installation_survives_a_restart_of_everything(stack: Stack, walked: Walk) -> None:
    """Each service is restarted, keys and databases are prepared again; who linked stays so."""
    await asyncio.to_thread(stack.compose, "restart", *SERVICES)
    await asyncio.to_thread(stack.compose, "up", "--no-build", "--detach", "--wait")
    async with aiohttp.ClientSession() as http:
        journey = Journey(stack.urls, http)
        again = await journey.watch_answer(await journey.ask(MIA, "I forgot my password"))
    assert "password" in again.text


def test_commands_of_the_handbook_work(stack: Stack, walked: Walk) -> None:
    """Each command that docs/operations.md gives operators of the compose stack succeeds."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    block = text.partition("A test runs every line of this block:")[2].split("```")[1]
    commands = [shlex.split(line) for line in block.strip().splitlines()]
    assert commands
    for command in commands:
        assert command[:2] == ["docker", "compose"]
        said = stack.compose(*command[2:])
        if command[2] == "restart":
            stack.compose("up", "--no-build", "--detach", "--wait")
        if "verify" in command:
            assert "are as they were written" in said


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
