"""Running alembic on asyncpg from code, without an ini file and an env.py."""

import asyncio
from importlib import import_module, resources
from typing import Any

import asyncpg
from alembic.config import Config
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from interlock_chassis.secret import Secret

_APPLICATION = "interlock-migrate"
# Whoever wants a table queues behind a migration that waits for it. Edge has 2 s to store
# what Slack sent.
_LOCK_TIMEOUT = "1s"
_PAUSE_S = 1.0
# Two minutes: longer than any transaction of ours runs.
_TRIES = 60


async def bring_to(
    url: Secret[str], package: str, schema: str, revision: str, *, lock: int
) -> None:
    """Bring a database to a revision, holding an advisory lock meanwhile.

    Waits 1 s for a table, then lets those through who queue behind and tries
    again; gives up after about two minutes with Postgres' error. Versions that
    were done by then stay.

    Args:
        url: The database, as its owner.
        package: Holds the folder `versions`.
        schema: Made when absent; holds the table of versions.
        revision: `head`, `base` or a revision; an older one is gone back to.
        lock: The number of the advisory lock.
    """
    config = _config_of(package)
    keeper = await _connect(url)
    try:
        await keeper.execute("SELECT pg_advisory_lock($1)", lock)
        await keeper.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        for number in range(1, _TRIES + 1):
            try:
                await _run(url, config, schema, revision)
                break
            except (asyncpg.LockNotAvailableError, DBAPIError) as error:
                if number == _TRIES or not _is_busy(error):
                    raise
            await asyncio.sleep(_PAUSE_S)
        # A process may find out whether its database is as new as its code. Nobody but
        # the service's own roles may look into the schema.
        await keeper.execute(f'GRANT SELECT ON "{schema}".alembic_version TO PUBLIC')
    finally:
        await keeper.close()


def passed_versions(package: str) -> list[str]:
    """List the versions of a package, the newest first.

    Args:
        package: Holds the folder `versions`.
    """
    script = ScriptDirectory.from_config(_config_of(package))
    return [step.revision for step in script.walk_revisions()]


async def _run(url: Secret[str], config: Config, schema: str, revision: str) -> None:
    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        return await _connect(url, lock_timeout=_LOCK_TIMEOUT)

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, poolclass=NullPool, hide_parameters=True
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_steps_on, config, schema, revision)
    finally:
        await engine.dispose()


def _is_busy(error: Exception) -> bool:
    """Tell whether a table was not to be had within the time."""
    # A script's error is asyncpg's own, a construct's is SQLAlchemy's around it.
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None) == asyncpg.LockNotAvailableError.sqlstate


async def _connect(url: Secret[str], **settings: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        url.reveal(), server_settings={"application_name": _APPLICATION} | settings
    )


def _config_of(package: str) -> Config:
    import_module(package)
    with resources.as_file(resources.files(package)) as folder:
        config = Config()
        # Alembic interpolates its options, as ini files do.
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        return config


def _steps_on(connection: Connection, config: Config, schema: str, revision: str) -> None:
    script = ScriptDirectory.from_config(config)

    def steps(current: Any, _: MigrationContext) -> Any:
        # The commands `alembic upgrade` and `downgrade` call these too; there
        # is no public name.
        if _is_behind(script, current, revision):
            return script._downgrade_revs(revision, current)  # noqa: SLF001 - As above.
        return script._upgrade_revs(revision, current)  # noqa: SLF001 - As above.

    environment = EnvironmentContext(config, script, fn=steps)
    environment.configure(
        connection=connection,
        version_table_schema=schema,
        transaction_per_migration=True,
    )
    with environment.begin_transaction():
        environment.run_migrations()


def _is_behind(script: ScriptDirectory, current: Any, revision: str) -> bool:
    """Tell whether the revision is one the database has already left behind."""
    if revision == "base":
        return True
    if not current:
        return False
    target = script.get_revision(revision)
    passed = [step.revision for step in script.iterate_revisions(current, "base")]
    return target.revision in passed


class _Scripts(PostgresqlImpl):
    """Send strings as they are.

    asyncpg prepares what SQLAlchemy executes, and a prepared statement is one
    statement; SQLAlchemy also takes `:word` in a string for a parameter. Both
    break scripts of functions and rights. Alembic picks this class by dialect.
    """

    __dialect__ = "postgresql"

    def execute(
        self, sql: Executable | str, execution_options: dict[str, Any] | None = None
    ) -> None:
        """Execute a script, or a construct of SQLAlchemy as usual."""
        if not isinstance(sql, str):
            super().execute(sql, execution_options)
            return
        connection = self.connection
        if connection is None:
            raise RuntimeError("migrations run online only")
        # SQLAlchemy opens the transaction at its own first statement.
        connection.exec_driver_sql("SELECT 1")
        adapted: Any = connection.connection.dbapi_connection
        adapted.run_async(lambda driver: driver.execute(sql))
