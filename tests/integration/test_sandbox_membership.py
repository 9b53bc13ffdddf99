"""The auth server stand-in's tables, as those who may only read them see them."""

import secrets
from collections.abc import AsyncIterator

import aiohttp
import asyncpg
import pytest

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_sandbox.directory import PEOPLE
from interlock_sandbox.membership import READER_ROLE
from interlock_sandbox.server import running
from interlock_sandbox.testing import example_config

# As the identity service asks.
ROLE = 'SELECT role FROM member WHERE "organizationId" = $1 AND "userId" = $2'


@pytest.fixture
async def database(cluster: ScratchDatabases) -> AsyncIterator[Secret[str]]:
    """Give an empty database, on a server that has the reader's role."""
    name = f"sandbox_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(cluster.admin_url.reveal())
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        known = "SELECT 1 FROM pg_roles WHERE rolname = $1"
        if not await connection.fetchval(known, READER_ROLE):
            await connection.execute(f"CREATE ROLE {READER_ROLE}")
        base, mark, query = cluster.admin_url.reveal().partition("?")
        yield Secret(f"{base.rpartition('/')[0]}/{name}{mark}{query}")
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


async def test_reader_sees_every_change_of_membership(database: Secret[str]) -> None:
    """A role changed or ended at the auth server is changed in the table when it answers."""
    config = example_config(membership_database_url=database)
    async with running(config) as urls, aiohttp.ClientSession() as http:
        reader = await asyncpg.connect(database.reveal())
        try:
            await reader.execute(f"SET ROLE {READER_ROLE}")
            assert await reader.fetchval(ROLE, "northwind", "user_mia") == "member"
            change = {"person": "user_mia", "organization": "northwind", "role": "admin"}
            for role in ("admin", None):
                body = change | {"role": role}
                async with http.post(f"{urls.auth}/_control/memberships", json=body) as response:
                    assert response.status == 200
                assert await reader.fetchval(ROLE, "northwind", "user_mia") == role
            name = await reader.fetchval('SELECT name FROM "user" WHERE id = $1', "user_ada")
            assert name == "Ada Lindqvist"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute("DELETE FROM member")
        finally:
            await reader.close()


async def test_tables_survive_a_restart(database: Secret[str]) -> None:
    """A second start finds its tables and makes them say what the directory says."""
    config = example_config(membership_database_url=database)
    for _ in range(2):
        async with running(config):
            pass
    connection = await asyncpg.connect(database.reveal())
    try:
        assert await connection.fetchval("SELECT count(*) FROM member") == len(PEOPLE)
    finally:
        await connection.close()


@pytest.mark.parametrize("url", ["not a url", "postgres://somebody:hidden@127.0.0.1:1/nowhere"])
async def test_unusable_database_stops_the_start(url: str) -> None:
    """A wrong URL is named without being shown."""
    config = example_config(membership_database_url=Secret(url))
    with pytest.raises(ConfigError) as caught:
        async with running(config):
            pass
    assert caught.value.variable == "membership_database_url_file"
    assert "hidden" not in str(caught.value)
