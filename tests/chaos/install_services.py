"""Kill real edge and identity processes between the steps of an install.

The product's processes as the launcher runs them, and a person with a browser
who presses the button, finds a process dead, and comes back. The sandbox
Slack's record of its tokens judges.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import asyncpg
import psutil

from interlock_chassis.secret import Secret
from interlock_cli.browser import Browser, NotOnPage, open_browser
from interlock_cli.data_folder import DataFolder, choose_ports
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.journey import ADA, TEAM, Journey, JourneyFailed
from interlock_cli.launch import prepare_databases
from interlock_cli.product import PORTS, Urls, make_programs
from interlock_cli.supervisor import Program, Supervisor
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import FakeKms, ManualClock

SERVICES = ("gateway-edge", "identity")
COURSES = ("install", "reinstall")
PATIENCE_S = 90
_PARTS = frozenset({"sandbox", "identity", "token-vault", "gateway-edge"})
_ROOT = Path(__file__).parents[2]
_POLL_S = 0.05
# A minute for a lease, and more than a grant's quarter of an hour.
_LATER = """
UPDATE vault.install_attempt SET lease_until = lease_until - interval '61 s',
    grant_expires_at = grant_expires_at - interval '20 min'
WHERE ended_at IS NULL
"""
_FORGET_TOKENS = "TRUNCATE vault.installation, vault.wrapped_dek, vault.install_attempt CASCADE"
_FORGET_CLAIMS = "TRUNCATE identity.work_app_slack_workspaces CASCADE"
_NONE: Mapping[str, str] = {}
# What a person may meet where a part is dead: no answer, an error page, no form.
_TROUBLE = (aiohttp.ClientError, NotOnPage, JourneyFailed)


@dataclass
class Site:
    """The product without its worker and runner, which no install needs."""

    folder: Path
    urls: Urls
    programs: dict[str, Program]
    http: aiohttp.ClientSession
    vault: "asyncpg.Connection[asyncpg.Record]"
    identity: "asyncpg.Connection[asyncpg.Record]"
    keys: KmsKeys
    ada: Browser
    journey: Journey
    running: dict[str, Supervisor] = field(default_factory=dict)

    async def start(self, name: str, point: str = "", record: Path | None = None) -> None:
        """Start a part anew; with a record, as one that dies at a point once it is armed."""
        if name in self.running:
            await self.running.pop(name).stop()
        program = self.programs[name]
        if record is not None:
            command = (sys.executable, "-m", "tests.chaos.service_process", name, point)
            environ = {**program.environ, "PYTHONPATH": str(_ROOT)}
            program = replace(program, command=(*command, str(record)), environ=environ)
        supervisor = self.running[name] = Supervisor(self.folder / "logs")
        await supervisor.start([program], lambda _: None)

    async def arm(self, name: str, record: Path) -> None:
        """Have a part count its steps from here."""
        [process] = [
            each
            for each in psutil.process_iter(["cmdline"])
            if str(record) in (each.info["cmdline"] or ())
        ]
        process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(PATIENCE_S):
            while not record.exists():  # noqa: ASYNC110, ASYNC240 - No event tells; a stat is short.
                await asyncio.sleep(_POLL_S)

    def record_of(self, name: str, scene: str = "first") -> Path:
        """Name the file in which a part writes down its edges."""
        return self.folder / f"{name}-{scene.replace(':', '-')}.edges"

    async def has_died(self, name: str) -> list[str]:
        """Wait until a part has ended; lists what is wrong about how."""
        async with asyncio.timeout(PATIENCE_S):
            ended = str(await self.running[name].wait_for_end())
        return [] if "killed by signal 9" in ended else [f"it was not killed there: {ended}"]

    # What the person does.

    async def install(self) -> None:
        """Press the button and allow it at Slack; whatever comes of it."""
        with suppress(*_TROUBLE):
            await self.journey.install(self.ada, await self.ada.open(self.home))

    async def come_back(self) -> None:
        """Look at the dashboard until it answers, and install where it shows nothing."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(*_TROUBLE):
                    page = (await self.ada.open(self.home)).require("Workspaces")
                    if any("/workspaces/" in target for _, target in page.links):
                        return
                    await self.journey.install(self.ada, page)
                    return
                await asyncio.sleep(_POLL_S)

    @property
    def home(self) -> str:
        """The dashboard's address."""
        return f"{self.urls.edge}/work-apps/slack/"

    async def forget(self) -> None:
        """Begin anew: nothing installed at Slack, nothing stored here."""
        body = {"team": TEAM, "order": []}
        async with self.http.post(f"{self.urls.slack}/_control/uninstall", json=body):
            pass
        await self.vault.execute(_FORGET_TOKENS)
        await self.identity.execute(_FORGET_CLAIMS)

    # What is so.

    async def living(self) -> set[str]:
        """Tell the fingerprints of the tokens that Slack takes, of all that it ever gave out."""
        async with self.http.get(f"{self.urls.slack}/_control/secrets") as response:
            given: list[str] = (await response.json())["tokens"]
        return {
            str(self.keys.ref(Secret(token)))
            for token in given
            if token.startswith("xoxb") and await self._is_alive(token)
        }

    async def _is_alive(self, token: str) -> bool:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.post(f"{self.urls.slack}/api/auth.test", headers=headers) as response:
            return bool((await response.json())["ok"])

    async def stored(self) -> set[str]:
        """Tell the fingerprints of the sealed tokens."""
        return {row["ref"] for row in await self.vault.fetch("SELECT ref FROM vault.sealed_token")}

    async def unknown(self) -> list[str]:
        """Say so where a token lives that nothing here was written down for."""
        living = await self.living()
        asking = "SELECT EXISTS (SELECT FROM vault.install_attempt WHERE state = 'exchanging')"
        # In this order: an exchange that is over by now has left what it got.
        is_known = await self.vault.fetchval(asking) or living <= await self.stored()
        return [] if is_known else ["a token lives that nothing was written down for"]

    async def settle(self) -> None:
        """Let leases and grants run out, and the vault's sweep end what is half-way."""
        await self.vault.execute(_LATER)
        await self.start("token-vault")
        asking = "SELECT NOT EXISTS (SELECT FROM vault.install_attempt WHERE ended_at IS NULL)"
        async with asyncio.timeout(PATIENCE_S):
            while not await self.vault.fetchval(asking):  # noqa: ASYNC110 - No event tells.
                await asyncio.sleep(_POLL_S)

    async def broken(self) -> list[str]:
        """List what does not hold of an install that came to its end."""
        broken = [] if await self.living() == await self.stored() else ["Slack knows other tokens"]
        states = [
            row["state"] for row in await self.vault.fetch("SELECT state FROM vault.installation")
        ]
        if states != ["active"]:
            broken.append(f"the vault's installations are {states}")
        [claims] = await self.identity.fetch(
            "SELECT count(*) AS held, count(*) FILTER (WHERE status = 'active') AS active"
            " FROM identity.work_app_slack_workspaces"
        )
        if tuple(claims) != (1, 1):
            broken.append(f"identity's claims are {tuple(claims)}")
        deks = await self.vault.fetchval("SELECT count(*) FROM vault.wrapped_dek")
        return broken + ([] if deks == 1 else [f"{deks} data keys"])


@asynccontextmanager
async def open_site(folder: Path, doomed: Mapping[str, str] = _NONE) -> AsyncIterator[Site]:
    """Run the parts of an install, with Ada signed in.

    Args:
        folder: Where files are kept.
        doomed: Parts that die, once armed, and the edge they die at.
    """
    data = DataFolder(folder / "data")
    postgres = EmbeddedPostgres(
        data.folder("postgres"), binaries=find_binaries(os.environ), durable=False
    )
    async with AsyncExitStack() as stack:
        stack.callback(data.close)
        await asyncio.to_thread(postgres.start)
        stack.push_async_callback(asyncio.to_thread, postgres.stop)
        databases = await prepare_databases(data, postgres)
        ports = data.ports(PORTS) | choose_ports({"edge": 0})
        programs = make_programs(data, ports, databases, None)
        urls = Urls.of(ports)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        vault = await _connected(stack, postgres, "interlock_vault")
        identity = await _connected(stack, postgres, "interlock_identity")
        fingerprint = (data.path / "keys" / "fingerprint").read_text().strip()
        site = Site(
            folder=data.path,
            urls=urls,
            programs={each.name: each for each in programs if each.name in _PARTS},
            http=http,
            vault=vault,
            identity=identity,
            keys=KmsKeys(FakeKms(), fingerprint_key=Secret(fingerprint), clock=ManualClock()),
            ada=await stack.enter_async_context(open_browser(urls.edge)),
            journey=Journey(urls, http),
        )
        stack.push_async_callback(_stop, site)
        async with asyncio.TaskGroup() as group:
            for name in site.programs:
                record = site.record_of(name) if name in doomed else None
                group.create_task(site.start(name, doomed.get(name, ""), record))
        await site.journey.sign_in(site.ada, ADA)
        yield site


async def _connected(
    stack: AsyncExitStack, postgres: EmbeddedPostgres, name: str
) -> "asyncpg.Connection[asyncpg.Record]":
    connection = await asyncpg.connect(postgres.admin_of(name).reveal())
    stack.push_async_callback(connection.close)
    return connection


async def _stop(site: Site) -> None:
    for supervisor in site.running.values():
        await supervisor.stop()


async def rehearse(site: Site, service: str, course: str) -> list[str]:
    """Let a course run undisturbed; returns the edges of a service's steps, in order."""
    record = site.record_of(service, course)
    await _prepare(site, course)
    await site.start(service, "none", record)
    await site.arm(service, record)
    await site.journey.install(site.ada, await site.ada.open(site.home))
    edges = record.read_text().split()[1:]
    await site.start(service)
    if broken := await site.broken():
        raise AssertionError(f"undisturbed: {broken}")
    return edges


async def kill_at(site: Site, service: str, course: str, edge: str) -> list[str]:
    """Kill a service at an edge, have the person come back, and list what did not hold."""
    record = site.record_of(service, f"{course}-{edge}")
    await _prepare(site, course)
    await site.start(service, edge, record)
    await site.arm(service, record)
    await site.install()
    broken = [*await site.has_died(service), *await site.unknown()]
    await site.start(service)
    await site.come_back()
    await site.settle()
    return broken + await site.broken()


async def kill_in_turn(site: Site, *services: str) -> list[str]:
    """Have doomed services die one after the other, the person come back after each."""
    broken: list[str] = []
    for service in services:
        await site.arm(service, site.record_of(service))
    for service in services:
        await site.install()
        broken += [*await site.has_died(service), *await site.unknown()]
        await site.start(service)
    await site.come_back()
    await site.settle()
    return broken + await site.broken()


async def _prepare(site: Site, course: str) -> None:
    await site.forget()
    if course == "reinstall":
        await site.journey.install(site.ada, await site.ada.open(site.home))


async def kill_everywhere(folder: Path, tell: Callable[[str, list[str]], None]) -> bool:
    """Kill each service at every edge of every course; returns whether all held."""
    has_held = True
    async with open_site(folder) as site:
        for service in SERVICES:
            for course in COURSES:
                for edge in await rehearse(site, service, course):
                    broken = await kill_at(site, service, course, edge)
                    tell(f"{service}, {course}, {edge}", broken)
                    has_held = has_held and not broken
    return has_held
