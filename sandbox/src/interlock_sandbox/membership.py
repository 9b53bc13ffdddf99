"""The auth server's tables, in a real Postgres, for those who read memberships there.

Off-boarding is decided by a row of `member`. The stand-in therefore keeps the
same tables as the real auth server, under the same names, and a role that may
only read them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_sandbox.directory import CREATED_AT, ORGANIZATIONS, PEOPLE, Directory

VARIABLE = "membership_database_url_file"
READER_ROLE = "interlock_auth_reader"
CONNECT_TIMEOUT_S = 10

_TABLES = """
CREATE TABLE IF NOT EXISTS "user" (
    id text PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL UNIQUE,
    "emailVerified" boolean NOT NULL,
    image text,
    "createdAt" timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS organization (
    id text PRIMARY KEY,
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    logo text,
    "createdAt" timestamptz NOT NULL,
    metadata text
);
CREATE TABLE IF NOT EXISTS member (
    id text PRIMARY KEY,
    "organizationId" text NOT NULL REFERENCES organization (id) ON DELETE CASCADE,
    "userId" text NOT NULL REFERENCES "user" (id) ON DELETE CASCADE,
    role text NOT NULL,
    "createdAt" timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS member_organization_idx ON member ("organizationId");
CREATE INDEX IF NOT EXISTS member_user_idx ON member ("userId");
"""
_GRANT = f"""
GRANT USAGE ON SCHEMA public TO {READER_ROLE};
GRANT SELECT ON "user", organization, member TO {READER_ROLE};
"""

_PUT_PERSON = """
INSERT INTO "user" (id, name, email, "emailVerified", "createdAt", "updatedAt")
VALUES ($1, $2, $3, true, $4, $4)
ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, email = EXCLUDED.email
"""
_PUT_ORGANIZATION = """
INSERT INTO organization (id, name, slug, "createdAt") VALUES ($1, $2, $1, $3)
ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name
"""
_PUT_MEMBER = """
INSERT INTO member (id, "organizationId", "userId", role, "createdAt")
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE SET role = EXCLUDED.role
"""
_DROP_OTHERS = "DELETE FROM member WHERE NOT (id = ANY ($1::text[]))"


class MembershipTables:
    """Mirror the directory into the database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self) -> None:
        """Create what is missing of the tables, and let the reader read them.

        Raises:
            ConfigError: The database has no role of the reader's name, or its
                owner may not create tables.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(_TABLES)
                await connection.execute(_GRANT)
        except asyncpg.UndefinedObjectError:
            raise ConfigError(VARIABLE, f"the server has no role {READER_ROLE}") from None
        except asyncpg.InsufficientPrivilegeError:
            raise ConfigError(VARIABLE, "the role of the URL may not create the tables") from None

    async def keep(self, directory: Directory) -> None:
        """Make the tables say what the directory says, in one transaction."""
        created = datetime.fromisoformat(CREATED_AT).astimezone(UTC)
        members = [
            each
            for organization in ORGANIZATIONS
            for each in directory.list_memberships(organization.id)
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.executemany(
                _PUT_PERSON, [(each.id, each.name, each.email, created) for each in PEOPLE]
            )
            await connection.executemany(
                _PUT_ORGANIZATION, [(each.id, each.name, created) for each in ORGANIZATIONS]
            )
            await connection.execute(_DROP_OTHERS, [each.id for each in members])
            await connection.executemany(
                _PUT_MEMBER,
                [
                    (each.id, each.organization_id, each.user_id, each.role, created)
                    for each in members
                ],
            )


@asynccontextmanager
async def open_membership_tables(url: Secret[str]) -> AsyncIterator[MembershipTables]:
    """Connect to the database and prepare its tables.

    Raises:
        ConfigError: The URL is not one, nobody answers there, or the tables
            cannot be made.
    """
    try:
        pool = await asyncpg.create_pool(
            url.reveal(),
            min_size=1,
            max_size=2,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "interlock-sandbox"},
        )
    except ValueError:
        # The original error may quote the URL, and with it the password.
        raise ConfigError(VARIABLE, "does not hold a database URL") from None
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise ConfigError(VARIABLE, f"cannot connect: {type(error).__name__}") from None
    async with pool:
        tables = MembershipTables(pool)
        await tables.create()
        yield tables
