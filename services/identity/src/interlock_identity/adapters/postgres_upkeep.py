"""What sweeping and cleaning do in Postgres, and whose turn it is.

Whatever is removed is looked for and removed by one statement, whose condition
Postgres checks again on a row that somebody changed meanwhile.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from interlock_identity.adapters.postgres import ENDED_LINK, end_claim, remove_links
from interlock_identity.adapters.postgres_audit import alone, find, record, transaction
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, TenantId, UserId
from interlock_identity.offboarding import Seat

_SEATS = text("""
    SELECT DISTINCT ON (tenant_id, inkeep_user_id)
        tenant_id, inkeep_user_id, slack_team_id, slack_user_id,
        coalesce(slack_enterprise_id, '') AS enterprise_id
    FROM identity.work_app_slack_user_mappings
    WHERE (tenant_id, inkeep_user_id) > (:tenant_id, :user_id)
    ORDER BY tenant_id, inkeep_user_id, id LIMIT :limit
""")
_ORGANIZATIONS = text("""
    SELECT id FROM identity.organization WHERE id > :tenant_id ORDER BY id LIMIT :limit
""")
_FOUND_AGAIN = text("""
    DELETE FROM identity.absences AS a
    USING unnest(CAST(:tenants AS text[]), CAST(:users AS text[])) AS here (tenant_id, user_id)
    WHERE a.tenant_id = here.tenant_id AND a.user_id = here.user_id
""")
_NOT_FOUND = text("""
    INSERT INTO identity.absences (tenant_id, user_id)
    SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:users AS text[]))
    ON CONFLICT DO NOTHING
""")
_GONE_FOR_LONG = text("""
    SELECT a.tenant_id, a.user_id FROM identity.absences AS a
    JOIN unnest(CAST(:tenants AS text[]), CAST(:users AS text[])) AS away (tenant_id, user_id)
        ON a.tenant_id = away.tenant_id AND a.user_id = away.user_id
    WHERE a.since <= clock_timestamp() - CAST(:grace AS interval)
    ORDER BY a.tenant_id, a.user_id
""")
_END_ABSENCES = text("""
    DELETE FROM identity.absences
    WHERE (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
      AND (CAST(:user_id AS text) IS NULL OR user_id = :user_id)
""")

_REMOVE_LINKS_OF_ACCOUNT = text(f"""
    DELETE FROM identity.work_app_slack_user_mappings
    WHERE tenant_id = :tenant_id AND inkeep_user_id = :user_id RETURNING {ENDED_LINK}
""")  # noqa: S608 - Only constants are put together.
_REMOVE_LINKS_OF_USER = text(f"""
    DELETE FROM identity.work_app_slack_user_mappings
    WHERE inkeep_user_id = :user_id RETURNING {ENDED_LINK}
""")  # noqa: S608 - Only constants are put together.
_REMOVE_LINKS_OF_TENANT = text(f"""
    DELETE FROM identity.work_app_slack_user_mappings
    WHERE tenant_id = :tenant_id RETURNING {ENDED_LINK}
""")  # noqa: S608 - Only constants are put together.
_UNNAME = (
    text("""
        UPDATE identity.work_app_slack_workspaces SET installed_by_user_id = NULL
        WHERE tenant_id = :tenant_id AND installed_by_user_id = :user_id
    """),
    text("""
        UPDATE identity.work_app_slack_account_link_codes SET used_by_user_id = NULL
        WHERE tenant_id = :tenant_id AND used_by_user_id = :user_id
    """),
    text("""
        UPDATE identity.work_app_slack_agent_defaults SET set_by_user_id = NULL
        WHERE tenant_id = :tenant_id AND set_by_user_id = :user_id
    """),
)
_FORGET_CODES = text("""
    DELETE FROM identity.work_app_slack_account_link_codes WHERE used_by_user_id = :user_id
""")
_FORGET_USER = text("""DELETE FROM identity."user" WHERE id = :user_id""")
_FORGET_TENANT = text("DELETE FROM identity.organization WHERE id = :tenant_id")

_ERASE_ENDED_CODES = text("""
    UPDATE identity.work_app_slack_account_link_codes
    SET slack_display_name = '', slack_email = '', updated_at = clock_timestamp()
    WHERE link_code_hash IN (
        SELECT link_code_hash FROM identity.work_app_slack_account_link_codes
        WHERE expires_at <= clock_timestamp() AND (slack_display_name <> '' OR slack_email <> '')
        LIMIT :limit)
""")
_DROP_CODES = text("""
    DELETE FROM identity.work_app_slack_account_link_codes WHERE link_code_hash IN (
        SELECT link_code_hash FROM identity.work_app_slack_account_link_codes
        WHERE expires_at <= clock_timestamp() - CAST(:age AS interval)
        ORDER BY expires_at LIMIT :limit)
""")
# The lock makes a reinstall that comes now wait, and then make a claim of its own.
_RELEASED_CLAIMS = text("""
    SELECT tenant_id, id FROM identity.work_app_slack_workspaces
    WHERE status = 'uninstalled' AND released_at <= clock_timestamp() - CAST(:age AS interval)
    ORDER BY released_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")
_DROP_UNKNOWN_USERS = text("""
    DELETE FROM identity."user" WHERE id IN (
        SELECT u.id FROM identity."user" AS u
        WHERE u.updated_at <= clock_timestamp() - CAST(:age AS interval)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_user_mappings
                          WHERE inkeep_user_id = u.id)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_workspaces
                          WHERE installed_by_user_id = u.id)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_account_link_codes
                          WHERE used_by_user_id = u.id)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_agent_defaults
                          WHERE set_by_user_id = u.id)
        LIMIT :limit)
      AND updated_at <= clock_timestamp() - CAST(:age AS interval)
""")
_DROP_UNKNOWN_TENANTS = text("""
    DELETE FROM identity.organization WHERE id IN (
        SELECT o.id FROM identity.organization AS o
        WHERE o.updated_at <= clock_timestamp() - CAST(:age AS interval)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_workspaces
                          WHERE tenant_id = o.id)
        LIMIT :limit)
      AND updated_at <= clock_timestamp() - CAST(:age AS interval)
""")
_ERASE_NAMES = text("""
    UPDATE identity."user" SET name = '', email = '' WHERE id IN (
        SELECT u.id FROM identity."user" AS u
        WHERE (u.name <> '' OR u.email <> '')
          AND u.updated_at <= clock_timestamp() - CAST(:age AS interval)
          AND NOT EXISTS (SELECT 1 FROM identity.work_app_slack_user_mappings
                          WHERE inkeep_user_id = u.id)
        LIMIT :limit)
      AND updated_at <= clock_timestamp() - CAST(:age AS interval)
""")
_PRUNE_AUDIT = text("SELECT identity.prune_audit(CAST(:age AS interval), :limit) AS removed")

_TRY_LOCK = text("""
    SELECT pg_try_advisory_lock(hashtextextended(CAST(:name AS text), 0)) AS is_ours
""")
_UNLOCK = text("SELECT pg_advisory_unlock(hashtextextended(CAST(:name AS text), 0))")
_FINISHED_LATELY = text("""
    SELECT 1 FROM identity.upkeep
    WHERE task = :task AND finished_at > clock_timestamp() - CAST(:every AS interval)
""")
_FINISHED = text("""
    INSERT INTO identity.upkeep (task, finished_at) VALUES (:task, clock_timestamp())
    ON CONFLICT (task) DO UPDATE SET finished_at = excluded.finished_at
""")


class PostgresUpkeep:
    """The stores of off-boarding and retention, and the turns, over one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # Whose turn it is.

    @asynccontextmanager
    async def take(self, task: str, every: timedelta) -> AsyncIterator[bool]:
        """Take the turn for a task; see the port.

        The lock is the session's: it ends with the connection, whatever happens.
        """
        lock = {"name": f"upkeep:{task}"}
        async with alone(self._engine) as connection:
            if not await connection.scalar(_TRY_LOCK, lock):
                yield False
                return
            try:
                lately = {"task": task, "every": every}
                is_due = await find(connection, _FINISHED_LATELY, lately) is None
                yield is_due
                if is_due:
                    await connection.execute(_FINISHED, {"task": task})
            finally:
                await _unlock(connection, lock)

    # Off-boarding.

    async def list_seats(self, after: Account | None, limit: int) -> list[Seat]:
        """List accounts with links."""
        of = {
            "tenant_id": after.tenant_id if after else "",
            "user_id": after.user_id if after else "",
            "limit": limit,
        }
        async with alone(self._engine) as connection:
            rows = await connection.execute(_SEATS, of)
            return [
                Seat(
                    Account(TenantId(row["tenant_id"]), UserId(row["inkeep_user_id"])),
                    SlackUser(row["slack_team_id"], row["enterprise_id"], row["slack_user_id"]),
                )
                for row in rows.mappings()
            ]

    async def list_organizations(self, after: TenantId | None, limit: int) -> list[TenantId]:
        """List the organizations known here."""
        async with alone(self._engine) as connection:
            rows = await connection.scalars(
                _ORGANIZATIONS, {"tenant_id": after or "", "limit": limit}
            )
            return [TenantId(each) for each in rows]

    async def note_attendance(
        self, present: Collection[Account], absent: Collection[Account], grace: timedelta
    ) -> list[Account]:
        """Note who was found and who was not."""
        async with transaction(self._engine) as connection:
            await connection.execute(_FOUND_AGAIN, _columns(present))
            if not absent:
                return []
            await connection.execute(_NOT_FOUND, _columns(absent))
            rows = await connection.execute(_GONE_FOR_LONG, {**_columns(absent), "grace": grace})
            return [
                Account(TenantId(row["tenant_id"]), UserId(row["user_id"]))
                for row in rows.mappings()
            ]

    async def remove_departed(self, account: Account, origin: Origin) -> int:
        """Remove an account's links in its tenant and unname it there."""
        of = {"tenant_id": account.tenant_id, "user_id": account.user_id}
        async with transaction(self._engine) as connection:
            removed = await remove_links(
                connection, _REMOVE_LINKS_OF_ACCOUNT, of, origin, "departed"
            )
            for statement in _UNNAME:
                await connection.execute(statement, of)
            await connection.execute(_END_ABSENCES, of)
            return removed

    async def forget_user(self, user_id: UserId, origin: Origin) -> int:
        """Remove an account and everything that stands on it."""
        of = {"user_id": user_id}
        async with transaction(self._engine) as connection:
            await connection.execute(_FORGET_CODES, of)
            removed = await remove_links(connection, _REMOVE_LINKS_OF_USER, of, origin, "forgotten")
            await connection.execute(_FORGET_USER, of)
            await connection.execute(_END_ABSENCES, {**of, "tenant_id": None})
            await record(connection, AuditEvent("user.forgotten", origin, user_id=user_id))
            return removed

    async def forget_organization(self, tenant_id: TenantId, origin: Origin) -> int:
        """Remove an organization and everything that stands on it."""
        of = {"tenant_id": tenant_id}
        async with transaction(self._engine) as connection:
            removed = await remove_links(
                connection, _REMOVE_LINKS_OF_TENANT, of, origin, "forgotten"
            )
            await connection.execute(_FORGET_TENANT, of)
            await connection.execute(_END_ABSENCES, {**of, "user_id": None})
            event = AuditEvent("organization.forgotten", origin, tenant_id=tenant_id)
            await record(connection, event)
            return removed

    # Retention.

    async def erase_ended_codes(self, limit: int) -> int:
        """Erase what ended codes would have shown."""
        return await self._run(_ERASE_ENDED_CODES, limit=limit)

    async def drop_codes(self, ended_for: timedelta, limit: int) -> int:
        """Remove codes that expired that long ago."""
        return await self._run(_DROP_CODES, age=ended_for, limit=limit)

    async def end_released_claims(self, released_for: timedelta, limit: int, origin: Origin) -> int:
        """Remove claims that were released that long ago."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(_RELEASED_CLAIMS, {"age": released_for, "limit": limit})
            claims = rows.mappings().all()
            for claim in claims:
                await end_claim(connection, claim["tenant_id"], claim["id"], origin, "uninstalled")
            return len(claims)

    async def drop_strangers(self, unseen_for: timedelta, limit: int) -> int:
        """Remove accounts and organizations that nothing stands on."""
        users = await self._run(_DROP_UNKNOWN_USERS, age=unseen_for, limit=limit)
        return users + await self._run(_DROP_UNKNOWN_TENANTS, age=unseen_for, limit=limit)

    async def erase_names(self, unseen_for: timedelta, limit: int) -> int:
        """Erase name and address of accounts without links."""
        return await self._run(_ERASE_NAMES, age=unseen_for, limit=limit)

    async def prune_audit(self, older_than: timedelta, limit: int) -> int:
        """Remove audit records of that age."""
        async with alone(self._engine) as connection:
            of = {"age": older_than, "limit": limit}
            removed: int = await connection.scalar(_PRUNE_AUDIT, of) or 0
            return removed

    async def _run(self, statement: TextClause, **of: Any) -> int:
        async with transaction(self._engine) as connection:
            return (await connection.execute(statement, of)).rowcount


async def _unlock(connection: AsyncConnection, lock: dict[str, str]) -> None:
    """Give the lock back, or the connection with it; what the block raised goes on."""
    if connection.invalidated:
        return
    try:
        await connection.execute(_UNLOCK, lock)
    except SQLAlchemyError:
        await connection.invalidate()
    except BaseException:
        await connection.invalidate()
        raise


def _columns(accounts: Collection[Account]) -> dict[str, list[str]]:
    return {
        "tenants": [each.tenant_id for each in accounts],
        "users": [each.user_id for each in accounts],
    }
