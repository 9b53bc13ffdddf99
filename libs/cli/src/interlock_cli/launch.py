"""Bring the whole product up on this machine, and down again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from interlock_chassis.database import DatabaseUrls, create_database, migrate
from interlock_chassis.secret import Secret
from interlock_cli.data_folder import DataFolder
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.product import AUTH_DATABASE, DATABASES, PORTS, Urls, make_programs
from interlock_cli.slack_credentials import SlackCredentials, find_credentials
from interlock_cli.steps import Steps
from interlock_cli.supervisor import Program, ProgramEnded, Supervisor


@dataclass(frozen=True)
class Running:
    """The product while it runs.

    Attributes:
        credentials: Of the real Slack app in use; None with the sandbox's Slack.
    """

    data: DataFolder
    urls: Urls
    credentials: SlackCredentials | None
    postgres: EmbeddedPostgres
    supervisor: Supervisor

    async def wait_for_end(self) -> ProgramEnded:
        """Wait until a part ends by itself, and tell which."""
        return await self.supervisor.wait_for_end()


@asynccontextmanager
async def launched(
    data: DataFolder, *, edge_port: int, steps: Steps, by_nango: bool = False
) -> AsyncIterator[Running]:
    """Run the product while the context is open.

    Call it from the main thread: the processes end with the thread that
    started them.

    Args:
        data: Where keys, databases and logs are kept.
        edge_port: Where browsers and Slack reach the product.
        steps: Told what is done and how long it took.
        by_nango: Whether the dashboard installs by the sandbox's Nango.

    Raises:
        ConfigError: A credential file is blank or ends in a newline.
        IncompleteCredentials: Some credential files of a real Slack app are missing.
        PostgresError: Postgres does not start.
        ProgramEnded: A process does not start.
    """
    credentials = find_credentials(data.path / "slack")
    postgres = EmbeddedPostgres(
        data.folder("postgres"), binaries=find_binaries(os.environ), keep_open=(data.lock,)
    )
    supervisor = Supervisor(data.folder("logs"), keep_open=(data.lock,))
    try:
        with steps.step("Postgres"):
            postgres.start()
        with steps.step(f"Databases: {', '.join(plan.schema for plan in DATABASES)}"):
            databases = await prepare_databases(data, postgres)
        ports = data.ports(PORTS) | {"edge": edge_port}
        with steps.step("Keys and certificates"):
            programs = make_programs(data, ports, databases, credentials, by_nango=by_nango)
        await _start(supervisor, programs, steps)
        yield Running(data, Urls.of(ports), credentials, postgres, supervisor)
    finally:
        await supervisor.stop()
        postgres.stop()


async def _start(supervisor: Supervisor, programs: list[Program], steps: Steps) -> None:
    began = time.monotonic()
    await supervisor.start(
        programs, lambda program: steps.done(program.name, time.monotonic() - began)
    )


async def prepare_databases(
    data: DataFolder, postgres: EmbeddedPostgres
) -> dict[str, DatabaseUrls]:
    """Create and migrate what is missing; roles keep their passwords."""
    prepared: dict[str, DatabaseUrls] = {}
    for plan in (*DATABASES, AUTH_DATABASE):
        passwords = {
            role: Secret.from_file(path := data.keep_random(f"{role}.password"), variable=str(path))
            for role in (plan.owner, *plan.roles)
        }
        prepared[plan.name] = await create_database(postgres.admin_url, plan, passwords)
    await _open_to_reader(postgres)
    for plan in DATABASES:
        # Blocks by contract; a signal should be answered meanwhile.
        await asyncio.to_thread(migrate, prepared[plan.name].owner, plan)
    return prepared


async def _open_to_reader(postgres: EmbeddedPostgres) -> None:
    """Let the auth server's reader into the schema that its tables will be in."""
    connection = await asyncpg.connect(postgres.admin_of(AUTH_DATABASE.name).reveal())
    try:
        await connection.execute(f"GRANT USAGE ON SCHEMA public TO {AUTH_DATABASE.roles[0]}")
    finally:
        await connection.close()
