"""Who belongs to which organization, read from the auth server's own table.

Read-only, by a role of its own. Better Auth names its columns `organizationId`
or, where its adapter says so, `organization_id`; both are taken.
"""

from datetime import timedelta

import asyncpg

from interlock_chassis.database import database_errors
from interlock_identity.domain.people import Role, TenantId, UserId, strongest_role
from interlock_identity.issuing import MembershipUnavailable

TIMEOUT = timedelta(seconds=2)

_COLUMNS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass('member') AND attnum > 0 AND NOT attisdropped
"""
_CAMEL_CASE = 'SELECT role FROM member WHERE "organizationId" = $1 AND "userId" = $2'
_SNAKE_CASE = "SELECT role FROM member WHERE organization_id = $1 AND user_id = $2"


class PostgresMembership:
    """The `MembershipSource` port over a pool on the auth server's database.

    How the columns are named is asked at the first call and again after a failure.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._query: str | None = None

    async def role_of(self, tenant_id: TenantId, user_id: UserId) -> Role:
        """Say what a person is in an organization; see the port."""
        query, self._query = self._query, None
        timeout_s = TIMEOUT.total_seconds()
        try:
            with database_errors(MembershipUnavailable):
                async with self._pool.acquire(timeout=timeout_s) as connection:
                    query = query or await _find_query(connection, timeout_s)
                    rows = await connection.fetch(query, tenant_id, user_id, timeout=timeout_s)
        except asyncpg.SyntaxOrAccessError as error:
            # The table was changed, or we may not read it: an operator's matter, and not a no.
            raise MembershipUnavailable from error
        self._query = query
        return strongest_role(",".join(row["role"] or "" for row in rows))


async def _find_query(connection: asyncpg.pool.PoolConnectionProxy, timeout_s: float) -> str:
    columns = {row["attname"] for row in await connection.fetch(_COLUMNS, timeout=timeout_s)}
    if {"organizationId", "userId", "role"} <= columns:
        return _CAMEL_CASE
    if {"organization_id", "user_id", "role"} <= columns:
        return _SNAKE_CASE
    raise MembershipUnavailable("the auth server's database has no member table as agreed")
