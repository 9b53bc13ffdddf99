"""Postgres: who owns which database, how it migrates, how it is reached."""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret

_T = TypeVar("_T")
_NONE: Mapping[str, str] = MappingProxyType({})

# A caller's deadline is 5 s; one that waits longer for a connection is gone.
_CONNECT_SECONDS = 4.0

# RFC 5802; the count is Postgres's own default.
_SCRAM_ITERATIONS = 4096
_SCRAM_SALT_BYTES = 16

# Any number will do, as long as nobody else locks it.
_PROVISION_LOCK = 0x696E746C_00000001
_MIGRATE_LOCK = 0x696E746C_00000002

# SQLSTATEs that say: not now. 08 connection, 25006 read-only (a standby after a
# failover), 53 disk, memory, connections, 57P operator, 58 the machine.
_UNAVAILABLE_STATES = ("08", "25006", "53", "57P", "58")


@dataclass(frozen=True)
class DatabasePlan:
    """A service's database, as that service declares it.

    Attributes:
        name: The database; its tables live in the schema `schema`.
        owner: The role that owns everything and migrates.
        roles: The roles that processes log in with; migrations grant to them.
        migrations: The package whose `versions` folder holds the alembic
            versions, such as `interlock_identity.migrations`.
    """

    name: str
    owner: str
    roles: tuple[str, ...]
    migrations: str

    @property
    def schema(self) -> str:
        """The schema of the service, and of the table of versions."""
        return self.name.removeprefix("interlock_")


@dataclass(frozen=True)
class DatabaseUrls:
    """How to reach a database, as each of its roles."""

    owner: Secret[str]
    roles: Mapping[str, Secret[str]]


async def create_database(
    admin_url: Secret[str],
    plan: DatabasePlan,
    passwords: Mapping[str, Secret[str]],
    *,
    database: str | None = None,
) -> DatabaseUrls:
    """Create a service's roles and its empty database, or bring them back in line.

    Idempotent: passwords and rights are set every time, nothing is dropped.
    Roles can log in and nothing more; only the database's own roles may
    connect to it. Passwords travel as SCRAM verifiers, so Postgres never logs
    them.

    Args:
        admin_url: A role that may create roles and databases.
        plan: What to create.
        passwords: One for the owner and each role; printable ASCII.
        database: Another name for the database, as tests want.

    Raises:
        KeyError: A role has no password.
        ValueError: A password is not printable ASCII.
    """
    name = database or plan.name
    everyone = (plan.owner, *plan.roles)
    verifiers = {role: _scram_verifier(passwords[role]) for role in everyone}
    admin = await asyncpg.connect(admin_url.reveal(), timeout=_CONNECT_SECONDS)
    try:
        await admin.execute("SELECT pg_advisory_lock($1)", _PROVISION_LOCK)
        for role, verifier in verifiers.items():
            await _ensure_role(admin, role, verifier)
        await _ensure_database(admin, name, plan)
    finally:
        await admin.close()
    inside = await asyncpg.connect(
        _with_database(admin_url, name).reveal(), timeout=_CONNECT_SECONDS
    )
    try:
        # Databases made by Postgres 14 and older let everyone create here.
        await inside.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        await inside.execute(f"GRANT ALL ON SCHEMA public TO {_quoted(plan.owner)}")
    finally:
        await inside.close()
    urls = {role: _as_role(admin_url, role, passwords[role], name) for role in everyone}
    owner = urls.pop(plan.owner)
    return DatabaseUrls(owner=owner, roles=MappingProxyType(urls))


def migrate(owner_url: Secret[str], plan: DatabasePlan, revision: str = "head") -> None:
    """Bring a service's database to a revision.

    Idempotent; a second process waits for the first, by an advisory lock.
    Makes the service's schema, with the table of versions in it, before the
    first version runs; each version is one transaction. A string given to
    `op.execute` is sent as it is: it may hold several statements, and colons.
    Blocks until done, also when called inside a running loop.

    Args:
        owner_url: The database, as its owner.
        plan: Where the versions are.
        revision: `head`, a revision, or `base`, which undoes them all.
    """
    from interlock_chassis.migrating import bring_to  # noqa: PLC0415 - Servers need no alembic.

    _run_to_end(bring_to(owner_url, plan.migrations, plan.schema, revision, lock=_MIGRATE_LOCK))


def list_versions(plan: DatabasePlan) -> list[str]:
    """List the versions that a service's code brings, the newest first."""
    from interlock_chassis.migrating import passed_versions  # noqa: PLC0415 - As in `migrate`.

    return passed_versions(plan.migrations)


@asynccontextmanager
async def open_pool(
    url: Secret[str],
    *,
    application: str,
    max_size: int = 10,
    server_settings: Mapping[str, str] = _NONE,
) -> "AsyncIterator[asyncpg.Pool[asyncpg.Record]]":
    """Open a pool of connections, closed on leaving.

    Connects when first asked, so a process starts while Postgres is away, and
    waits 4 s for a connection at most.

    Args:
        url: The database and the role.
        application: What Postgres shows the sessions as.
        max_size: The most connections to hold.
        server_settings: Further settings of every session.
    """
    pool = asyncpg.create_pool(
        url.reveal(),
        min_size=0,
        max_size=max_size,
        timeout=_CONNECT_SECONDS,
        server_settings={**_session(application), **server_settings},
    )
    async with pool:
        yield pool


@asynccontextmanager
async def open_engine(
    url: Secret[str], *, application: str, max_size: int = 10
) -> AsyncIterator[AsyncEngine]:
    """Open an SQLAlchemy engine on asyncpg, disposed on leaving.

    The engine never learns the URL, so it cannot print it. Connects when first
    asked, and waits 4 s for a connection at most. After Postgres was restarted a
    call finds a new connection, or fails once where it is as fast as the news.

    Args:
        url: The database and the role.
        application: What Postgres shows the sessions as.
        max_size: The most connections to hold.
    """
    engine = _engine(url, application=application, max_size=max_size)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def database_errors(unavailable: Callable[[], ServiceError]) -> Iterator[None]:
    """Raise the given error in place of a driver's, when Postgres cannot serve now.

    That is: not reachable, starting, stopping, failed over to a read-only
    standby, out of connections, memory or disk. Any other error of the driver
    is a bug, and passes.

    Args:
        unavailable: Makes the error to raise; the driver's becomes its cause.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        if not _is_unavailable(error):
            raise
        raise unavailable() from error
    except (OSError, PoolTimeoutError, asyncpg.InternalClientError) as error:
        # The last is what asyncpg 0.32 raises on a connection whose end it has
        # been told but has not seen yet.
        raise unavailable() from error


def _is_unavailable(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(cause, asyncpg.InterfaceError):
        # A connection or pool that was closed beneath us.
        return not isinstance(cause, ValueError)
    state = getattr(cause, "sqlstate", None) or ""
    return state.startswith(_UNAVAILABLE_STATES)


def _engine(url: Secret[str], *, application: str, max_size: int) -> AsyncEngine:
    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(
            url.reveal(), timeout=_CONNECT_SECONDS, server_settings=_session(application)
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=max_size,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(
    connection: Any, _record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Have the pool reconnect in place of a connection that its server has ended.

    The driver has heard of the end by then, so this costs nothing. `pool_pre_ping`
    asks the server, with three round trips at each checkout.
    """
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError


def _session(application: str) -> dict[str, str]:
    # Compiling queries just in time costs more than our short ones take.
    return {"application_name": application, "jit": "off"}


async def _ensure_role(
    admin: "asyncpg.Connection[asyncpg.Record]", role: str, verifier: str
) -> None:
    if await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role) is None:
        await admin.execute(f"CREATE ROLE {_quoted(role)}")
    # Only a superuser may name SUPERUSER and BYPASSRLS, even to deny them; a
    # new role has neither.
    await admin.execute(
        f"ALTER ROLE {_quoted(role)} LOGIN NOCREATEDB NOCREATEROLE PASSWORD '{verifier}'"
    )


async def _ensure_database(
    admin: "asyncpg.Connection[asyncpg.Record]", name: str, plan: DatabasePlan
) -> None:
    owner, database = _quoted(plan.owner), _quoted(name)
    if not await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        # Giving a database away takes membership in the role that gets it.
        await admin.execute(f"GRANT {owner} TO CURRENT_USER")
    if await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name) is None:
        await admin.execute(f"CREATE DATABASE {database} OWNER {owner}")
    else:
        await admin.execute(f"ALTER DATABASE {database} OWNER TO {owner}")
    await admin.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for role in plan.roles:
        await admin.execute(f"GRANT CONNECT ON DATABASE {database} TO {_quoted(role)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _scram_verifier(password: Secret[str]) -> str:
    """Compute what Postgres stores for a password (RFC 5802, RFC 7677)."""
    text = password.reveal()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("a database password is printable ASCII")
    salt = secrets.token_bytes(_SCRAM_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", text.encode(), salt, _SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


def _with_database(url: Secret[str], database: str) -> Secret[str]:
    parts = urlsplit(url.reveal())
    return Secret(urlunsplit(parts._replace(path="/" + quote(database, safe=""))))


def _as_role(url: Secret[str], role: str, password: Secret[str], database: str) -> Secret[str]:
    """Point an admin's URL at another role and database; the rest stays."""
    parts = urlsplit(_with_database(url, database).reveal())
    login = f"{quote(role, safe='')}:{quote(password.reveal(), safe='')}"
    host = parts.netloc.rpartition("@")[2]
    return Secret(urlunsplit(parts._replace(netloc=f"{login}@{host}")))


def _run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on a loop of its own, whether or not one runs here."""
    if not _is_in_a_loop():
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
