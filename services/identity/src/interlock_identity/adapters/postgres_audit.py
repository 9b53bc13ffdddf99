"""The audit's rows, and what every statement of identity's stores goes through."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from interlock_chassis.database import database_errors
from interlock_identity.domain.audit import AuditEvent
from interlock_identity.workspaces import DatabaseUnavailable

_COLUMNS = (
    "event", "outcome", "count", "caller", "rpc", "request_id", "grant_jti", "actor_id",
    "tenant_id", "workspace_id", "slack_enterprise_id", "slack_team_id", "slack_user_id",
    "user_id", "token_jti", "purpose", "project_id", "agent_id", "channel_id",
)  # fmt: skip
RECORD = f"""
    INSERT INTO identity.audit_events ({", ".join(_COLUMNS)})
    SELECT {", ".join(f":{column}" for column in _COLUMNS)}
"""
"""Adds the record of `values_of`; a FROM clause may follow, so that it depends on something."""

_RECORD = text(RECORD)


class PostgresAuditLog:
    """The `AuditLog` port; the role can add rows and read them, nothing else."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records, all or none."""
        async with transaction(self._engine) as connection:
            await record(connection, *events)


async def record(connection: AsyncConnection, *events: AuditEvent) -> None:
    """Add records to a transaction. Their time and number are the database's."""
    rows = [values_of(event) for event in events]
    if rows:
        await connection.execute(_RECORD, rows if len(rows) > 1 else rows[0])


def values_of(event: AuditEvent) -> dict[str, Any]:
    """Return a record's values for `RECORD`."""
    row = asdict(event)
    return {**row, **row.pop("origin")}


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Commit what the block did, or nothing when it raises.

    Raises:
        DatabaseUnavailable: The database does not answer.
    """
    with database_errors(DatabaseUnavailable):
        async with engine.begin() as connection:
            yield connection


@asynccontextmanager
async def alone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Run statements that each stand alone, without a transaction around them.

    Raises:
        DatabaseUnavailable: The database does not answer.
    """
    with database_errors(DatabaseUnavailable):
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            yield connection


async def find(
    connection: AsyncConnection, statement: TextClause, values: Mapping[str, Any]
) -> RowMapping | None:
    """Find the first row of a statement, if any."""
    return (await connection.execute(statement, dict(values))).mappings().first()


async def count(
    connection: AsyncConnection, statement: TextClause, values: Mapping[str, Any]
) -> int:
    """Run a statement and count the rows that it touched."""
    return (await connection.execute(statement, dict(values))).rowcount
