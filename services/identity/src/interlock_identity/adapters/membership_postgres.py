"""Who belongs to which organization, read from the auth server's own table.

Read-only, by a role of its own. Better Auth names its columns `organizationId`
or, where its adapter says so, `organization_id`; both are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from interlock_chassis.database import database_errors
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, Role, TenantId, strongest_role
from interlock_identity.membership import MembershipUnavailable

TIMEOUT = timedelta(seconds=2)

_COLUMNS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass('member') AND attnum > 0 AND NOT attisdropped
"""


@dataclass(frozen=True, slots=True)
class _Queries:
    roles: str
    members: str


_CAMEL_CASE = _Queries(
    roles='SELECT role FROM member WHERE "organizationId" = $1 AND "userId" = $2',
    members='SELECT 1 FROM member WHERE "organizationId" = $1 LIMIT 1',
)
_SNAKE_CASE = _Queries(
    roles="SELECT role FROM member WHERE organization_id = $1 AND user_id = $2",
    members="SELECT 1 FROM member WHERE organization_id = $1 LIMIT 1",
)


class PostgresMembership:
    """The `MembershipSource` port over a pool on the auth server's database.

    How the columns are named is asked at the first call and again after a failure.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queries: _Queries | None = None

    async def role_of(
        self,
        account: Account,
        acting_as: SlackUser,  # noqa: ARG002 - The table is asked as nobody.
    ) -> Role:
        """Say what a person is in an organization; see the port."""
        rows = await self._fetch(lambda each: each.roles, account.tenant_id, account.user_id)
        return strongest_role(",".join(row["role"] or "" for row in rows))

    async def has_organization(self, tenant_id: TenantId) -> bool:
        """Say whether an organization has members: it always has an owner; see the port."""
        return bool(await self._fetch(lambda each: each.members, tenant_id))

    async def _fetch(self, choose: Callable[[_Queries], str], *of: str) -> list[asyncpg.Record]:
        queries, self._queries = self._queries, None
        timeout_s = TIMEOUT.total_seconds()
        try:
            with database_errors(MembershipUnavailable):
                async with self._pool.acquire(timeout=timeout_s) as connection:
                    queries = queries or await _find_queries(connection, timeout_s)
                    rows = await connection.fetch(choose(queries), *of, timeout=timeout_s)
        except asyncpg.SyntaxOrAccessError as error:
            # The table was changed, or we may not read it: an operator's matter, and not a no.
            raise MembershipUnavailable from error
        self._queries = queries
        return rows


async def _find_queries(connection: asyncpg.pool.PoolConnectionProxy, timeout_s: float) -> _Queries:
    columns = {row["attname"] for row in await connection.fetch(_COLUMNS, timeout=timeout_s)}
    if {"organizationId", "userId", "role"} <= columns:
        return _CAMEL_CASE
    if {"organization_id", "user_id", "role"} <= columns:
        return _SNAKE_CASE
    raise MembershipUnavailable("the auth server's database has no member table as agreed")
