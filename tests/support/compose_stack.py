"""One run of deploy/compose.yaml with its sandbox: what tests of the containers share."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from interlock_cli.data_folder import choose_ports
from interlock_cli.journey import Answer
from interlock_cli.product import Urls

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("runner", "identity", "token-vault", "gateway-worker", "gateway-edge")
IMAGES = ("gateway", "token-vault", "identity", "runner", "sandbox", "tools")
RELAYS = {
    "runner": "relay-runner",
    "identity": "relay-identity",
    "token-vault": "relay-vault",
    "gateway-worker": "relay-worker",
    "gateway-edge": "relay-edge",
}
"""What carries the sandbox's loopback into a service; the edge's is for the doctor alone."""

_SANDBOX_RELAY = "relay-sandbox"
# A start takes seconds; a machine may be busy with others.
READY_S = 120
_ASK = """
import sys, time, urllib.request
ends = time.monotonic() + float(sys.argv[1])
for host in sys.argv[2:]:
    while True:
        try:
            urllib.request.urlopen(f"http://{host}:9090/readyz", timeout=2).close()
            break
        except OSError as error:
            if time.monotonic() > ends:
                sys.exit(f"{host}: {error}")
            time.sleep(0.02)
print(time.time())
"""
# Base images are there; the slowest step is compiling what pip installed.
BUILD_S = 540
# Whatever was started, by whichever profile.
_ALL = ("--profile", "sandbox", "--profile", "replicas")
_TRAFFIC = Path(__file__).with_name("compose_traffic.py")


@dataclass(frozen=True)
class Walk:
    """What one walk along the main path saw."""

    answer: Answer
    secrets: dict[str, list[str]]


def second(service: str) -> str:
    """Name the second replica of a service."""
    return f"{service}-2"


class Stack:
    """One run of the compose file, under a project name and an image tag of its own.

    Beside the services of the file it knows second replicas of them, behind the same
    names, and `traffic`; both start only when named.

    Args:
        folder: Where settings are written.

    Attributes:
        tag: Of the images, which another build on this machine does not touch.
        urls: Where it answers.
        edges: Where the two replicas of the edge answer, the second while it runs; load is
            spread over these.
        patience: How long an answer may take; the machine may be busy.
        secrets: What the file has in `deploy/secrets`: secrets that come from elsewhere.
    """

    patience = timedelta(seconds=90)

    def __init__(self, folder: Path) -> None:
        self.project = self.tag = f"interlock-test-{os.getpid()}"
        ports = choose_ports(dict.fromkeys(("edge", "slack", "platform", "auth", "edge-2"), 0))
        self.urls = Urls.of(ports)
        self.edges: tuple[str, ...] = (self.urls.edge, f"http://127.0.0.1:{ports['edge-2']}")
        (ROOT / "build" / "compose.log").unlink(missing_ok=True)
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self._env_file = folder / "sandbox.env"
        self._env_file.write_text(_environment(ports))
        self._more = folder / "replicas.json"
        self._more.write_text(json.dumps(_replicas(ports["edge-2"])))

    @property
    def environ(self) -> dict[str, str]:
        """Variables by which `docker compose` works on this stack."""
        return {
            "COMPOSE_ANSI": "never",
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"{DEPLOY / 'compose.yaml'}:{self._more}",
            "COMPOSE_ENV_FILES": str(self._env_file),
            "INTERLOCK_TAG": self.tag,
            "SECRETS": str(self.secrets),
        }

    def build(self) -> None:
        """Build the images from this tree; what an earlier build made is used."""
        subprocess.run(
            [ROOT / "tools" / "images.sh"],
            env=os.environ | {"TAG": self.tag},
            check=True,
            timeout=BUILD_S,
        )

    def compose(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Run `docker compose` and return what it said; its failure fails the test."""
        return self._run(["docker", "compose", *arguments], environ or {})

    def shell(self, command: str) -> str:
        """Run a line as an operator types it, in `deploy`; its failure fails the test."""
        return self._run(["bash", "-euo", "pipefail", "-c", command], {})

    def _run(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=DEPLOY,
            env=os.environ | self.environ | dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
        )
        if done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            pytest.fail(f"{' '.join(command)} exits {done.returncode}:\n{said}")
        return done.stdout

    def up(self, *services: str) -> None:
        """Start what is named, or everything, and wait until it is healthy."""
        alone = ("--no-deps",) if services else ()
        self.compose("up", "--no-build", "--detach", "--wait", *alone, *services)

    def wait(self, service: str) -> None:
        """Wait until a service that has been started is healthy."""
        self.compose(
            "up", "--no-build", "--no-recreate", "--detach", "--wait", "--no-deps", service
        )

    def until_ready(self, *services: str) -> float:
        """Wait until each of the named containers is ready, and return when, in Unix time.

        Asks what the engine asks, without waiting for the engine to ask again.
        """
        hosts = [f"{self.project}-{each}-1" for each in services]
        ask = ("python", "-Ic", _ASK, str(READY_S), *hosts)
        return float(self.compose("exec", "-T", "sandbox", *ask))

    def replace(self, *services: str, environ: Mapping[str, str] | None = None) -> None:
        """Put new containers in the place of running ones, as an upgrade does.

        The old one is asked to stop before the new one starts.

        Args:
            services: Which; each with its relay.
            environ: Settings of `.env`, for the new ones.
        """
        relays = [relay for each in services if (relay := relay_of(each))]
        alone = ("--no-build", "--detach", "--no-deps", "--force-recreate")
        self.compose("up", *alone, *services, *relays, environ=environ)
        self.until_ready(*services)

    def restart_sandbox(self) -> None:
        """Have the stand-ins read their files anew; return when they serve."""
        self.compose("restart", "sandbox")
        self.compose("restart", _SANDBOX_RELAY)
        self.wait("sandbox")

    def do(self, what: str, service: str) -> None:
        """Do to a service's container what `docker`, or `docker network`, can do to it.

        Nothing else is started, neither what it depends on nor what depends on it, but for
        the relay that shares its network.
        """
        container = self.container(service)
        if what in {"connect", "disconnect"}:
            alias = ("--alias", service) if what == "connect" else ()
            network = f"{self.project}_default"
            self._run(["docker", "network", what, *alias, network, container], {})
            return
        self._run(["docker", what, container], {})
        if what == "start" and (relay := _relay_beside(service)):
            # It shares the network that the service has just been given.
            self._run(["docker", "restart", "--time", "0", self.container(relay)], {})

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def python(self, service: str, code: str) -> str:
        """Run Python in a service's container, as its own user; return what it printed."""
        return self.compose("exec", "-T", service, "python", "-c", code)

    def keep_logs(self) -> None:
        """Add what all containers wrote to build/compose.log, for whoever looks into a failure."""
        with (ROOT / "build" / "compose.log").open("a", encoding="utf-8") as file:
            file.write(self.compose(*_ALL, "logs", "--no-color", "--timestamps"))

    def down(self) -> None:
        """Remove everything, volumes and images too."""
        self.compose(*_ALL, "down", "--volumes", "--remove-orphans", "--timeout", "20")
        images = [f"interlock/{name}:{self.tag}" for name in IMAGES]
        subprocess.run(
            ["docker", "image", "rm", "--force", *images], check=False, capture_output=True
        )


def _relay_beside(service: str) -> str | None:
    return _SANDBOX_RELAY if service == "sandbox" else RELAYS.get(service)


def more_services() -> list[str]:
    """Name the second replicas, their relays, and what calls them."""
    relays = [relay for each in SERVICES if (relay := relay_of(second(each)))]
    return [*map(second, SERVICES), *relays, "traffic"]


def relay_of(service: str) -> str | None:
    """Name the relay of a service or of its second replica."""
    if service in RELAYS:
        return RELAYS[service]
    first = service.removesuffix("-2")
    return second(RELAYS[first]) if first in RELAYS else None


def _environment(ports: Mapping[str, int]) -> str:
    changed = {
        "PORT": ports["edge"],
        "SANDBOX_SLACK_PORT": ports["slack"],
        "SANDBOX_PLATFORM_PORT": ports["platform"],
        "SANDBOX_AUTH_PORT": ports["auth"],
    }
    lines = (DEPLOY / "sandbox.env").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        f"{name}={changed[name]}" if (name := line.partition("=")[0]) in changed else line
        for line in lines
    )


def _replicas(edge_port: int) -> dict[str, Any]:
    """Describe a second replica of every service, and a container that calls them."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    more: dict[str, Any] = {}
    for name in SERVICES:
        copy = {key: value for key, value in services[name].items() if key not in _LEFT_OUT}
        more[second(name)] = copy | {
            "networks": {"default": {"aliases": [name]}},
            "profiles": ["replicas"],
        }
    more[second("gateway-edge")]["ports"] = [f"127.0.0.1:{edge_port}:8080"]
    vault = more[second("token-vault")]
    # The spool belongs to one process.
    vault["volumes"] = [each for each in vault["volumes"] if not each.startswith("vault-spool:")]
    vault["tmpfs"] = [*vault["tmpfs"], "/var/lib/interlock/spool:uid=65532,gid=65532,mode=0700"]
    for name, relay in RELAYS.items():
        more[second(relay)] = services[relay] | {
            "network_mode": f"service:{second(name)}",
            "depends_on": {second(name): services[relay]["depends_on"][name]},
            "profiles": ["replicas"],
        }
    more["traffic"] = _traffic()
    # Nothing here cuts the machine's power; a busy disk would look like a database away.
    more["postgres"] = {"command": [*services["postgres"]["command"], "-c", "fsync=off"]}
    return {"services": more}


_LEFT_OUT = frozenset({"build", "depends_on", "ports"})


def _traffic() -> dict[str, Any]:
    volumes: Sequence[object] = (
        "edge-keys:/edge:ro",
        "worker-keys:/worker:ro",
        {"type": "bind", "source": str(_TRAFFIC), "target": "/traffic.py", "read_only": True},
    )
    return {
        "image": "interlock/tools:${INTERLOCK_TAG:-dev}",
        "entrypoint": ["python", "/traffic.py"],
        "profiles": ["replicas"],
        "read_only": True,
        "cap_drop": ["ALL"],
        "mem_limit": "256m",
        "volumes": list(volumes),
    }
