"""The audit's rows, and what every statement of identity's stores goes through."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from interlock_chassis.database import database_errors
from interlock_identity.domain.audit import AuditEvent, Origin, RecordedEvent, Sought
from interlock_identity.domain.people import UserId
from interlock_identity.domain.workspaces import CLIENT_ID
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
_OWNED = {
    "tenant_id": "coalesce(w.tenant_id, :tenant_id)",
    "workspace_id": "coalesce(w.id, :workspace_id)",
}
# A refused event names what Slack named; of a team and its Enterprise, one tenant has both claims.
_RECORD_IN_CLAIM = text(f"""
    INSERT INTO identity.audit_events ({", ".join(_COLUMNS)})
    SELECT {", ".join(_OWNED.get(column, f":{column}") for column in _COLUMNS)}
    FROM (VALUES (1)) AS one
    LEFT JOIN LATERAL (
        SELECT tenant_id, id FROM identity.work_app_slack_workspaces
        WHERE client_id = :client_id AND slack_team_id IN (:slack_team_id, :slack_enterprise_id)
            AND status IN ('active', 'needs_reinstall')
            AND :workspace_id = '' AND :tenant_id IN ('', tenant_id)
        ORDER BY (slack_team_id = :slack_team_id) DESC LIMIT 1) AS w ON true
""")  # noqa: S608 - Only constants of this module are put together.
# Backwards along an index: what is sought is recent as a rule.
_LIST = "SELECT * FROM identity.audit_events WHERE {sought} ORDER BY id DESC LIMIT :limit"
_SOUGHT = {
    "tenant_id": "tenant_id = :tenant_id",
    "workspace_id": "workspace_id IN (:workspace_id, '')",
    "user_id": "(user_id = :user_id OR actor_id = :user_id)",
    "event": "event = :event",
}
# Nearly all of the record; everything else has a small index, which this condition opens.
_COMMON = "token.issued"
_IS_RARE = f"event <> '{_COMMON}'"
_NAMES = text("SELECT id, name FROM identity.\"user\" WHERE id = ANY(:user_ids) AND name <> ''")
_ORIGIN = ("caller", "rpc", "request_id", "grant_jti", "actor_id")
_ABOVE_ALL = 2**63 - 1
# Rows are never changed; those of before the two records shared a word say this.
_ONCE_ALLOWED = "ok"


class PostgresAuditLog:
    """The `AuditLog` and `AuditRecord` ports; the role can add rows and read them, no more."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records, all or none."""
        async with transaction(self._engine) as connection:
            rows = [values_of(event) | {"client_id": CLIENT_ID} for event in events]
            await _add(connection, _RECORD_IN_CLAIM, rows)

    async def list_events(
        self, sought: Sought, *, before: int | None, limit: int
    ) -> list[RecordedEvent]:
        """List facts, newest first; see the port."""
        values = {name: value for name, value in asdict(sought).items() if value}
        conditions = ["id < :before", *(_SOUGHT[name] for name in values)]
        if sought.event and sought.event != _COMMON:
            conditions.append(_IS_RARE)
        statement = text(_LIST.format(sought=" AND ".join(conditions)))
        values |= {"before": before or _ABOVE_ALL, "limit": limit}
        async with alone(self._engine) as connection:
            rows = (await connection.execute(statement, values)).mappings().all()
        return [_recorded(row) for row in rows]

    async def list_names(self, user_ids: frozenset[UserId]) -> Mapping[UserId, str]:
        """Say what accounts are called now; see the port."""
        async with alone(self._engine) as connection:
            rows = (await connection.execute(_NAMES, {"user_ids": sorted(user_ids)})).mappings()
            return {row["id"]: row["name"] for row in rows}


def _recorded(row: RowMapping) -> RecordedEvent:
    origin = Origin(**{name: row[name] for name in _ORIGIN})
    facts = {name: row[name] for name in _COLUMNS if name not in _ORIGIN}
    if facts["outcome"] == _ONCE_ALLOWED:
        facts["outcome"] = "allowed"
    return RecordedEvent(row["id"], row["at"], AuditEvent(origin=origin, **facts))


async def record(connection: AsyncConnection, *events: AuditEvent) -> None:
    """Add records to a transaction. Their time and number are the database's."""
    await _add(connection, _RECORD, [values_of(event) for event in events])


async def _add(
    connection: AsyncConnection, statement: TextClause, rows: list[dict[str, Any]]
) -> None:
    if rows:
        await connection.execute(statement, rows if len(rows) > 1 else rows[0])


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
