"""Identity's stores in Postgres.

Every decision that two callers could take at once is taken under an advisory
lock: claims by Enterprise and team, codes and links by Slack user. Time is the
database's, and the wall clock rather than the transaction's start: whoever
waited for a lock must see what happened meanwhile as the past.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from interlock_chassis.clock import Clock, SystemClock, require_agreement
from interlock_identity.adapters.postgres_audit import (
    RECORD,
    alone,
    count,
    find,
    record,
    transaction,
    values_of,
)
from interlock_identity.domain.agents import Agent, AgentDefault
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import (
    CodeHash,
    LinkCode,
    MappingCursor,
    MappingId,
    NewLinkCode,
    SlackUser,
    UserMapping,
)
from interlock_identity.domain.people import Person, Session, Tenant, TenantId, UserId
from interlock_identity.domain.workspaces import (
    CLIENT_ID,
    Claim,
    Claimed,
    CountedWorkspace,
    ScopeDrift,
    Workspace,
    WorkspaceId,
    WorkspaceKey,
    WorkspaceStatus,
)
from interlock_identity.linking import (
    LinkCodeSpent,
    TooManyLinkCodes,
    UserAlreadyLinked,
    UserLinkedElsewhere,
)
from interlock_identity.noticing import READERS_ASKED, DueNotice
from interlock_identity.workspaces import (
    OrganizationNotFound,
    WorkspaceNotFound,
    WorkspaceTaken,
    drift_event,
)

# The key of the specification for installs without Nango too; the column has no NULL.
_DIRECT_PROVIDER_KEY = "work-apps-slack"

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(CAST(:name AS text), 0))")

# Being seen counts, so that nobody is dropped as unknown in the middle of an install; once an
# hour is enough for that.
_REMEMBER_PERSON = text("""
    INSERT INTO identity."user" AS known (id, name, email) VALUES (:user_id, :name, :email)
    ON CONFLICT (id) DO UPDATE
    SET name = excluded.name, email = excluded.email, updated_at = clock_timestamp()
    WHERE (known.name, known.email) IS DISTINCT FROM (excluded.name, excluded.email)
       OR known.updated_at < clock_timestamp() - interval '1 hour'
""")
_REMEMBER_TENANT = text("""
    INSERT INTO identity.organization AS known (id, name) VALUES (:tenant_id, :name)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, updated_at = clock_timestamp()
    WHERE known.name IS DISTINCT FROM excluded.name
       OR known.updated_at < clock_timestamp() - interval '1 hour'
""")
_NOTE_PERSON = text("""
    INSERT INTO identity."user" (id, name, email) VALUES (:user_id, '', '')
    ON CONFLICT (id) DO NOTHING
""")
_NOTE_TENANT = text("""
    INSERT INTO identity.organization (id, name) VALUES (:tenant_id, '')
    ON CONFLICT (id) DO NOTHING
""")
_WORKSPACE_COLUMNS = """
    w.tenant_id, w.id, w.slack_team_id, coalesce(w.slack_enterprise_id, '') AS enterprise_id,
    coalesce(w.slack_app_id, '') AS app_id, w.name, w.status, w.created_at,
    w.missing_scopes, w.extra_scopes
"""
_COUNT = """
    (SELECT count(*) FROM identity.work_app_slack_user_mappings AS m
     WHERE m.tenant_id = w.tenant_id AND m.workspace_id = w.id) AS linked_users
"""
_IS_CLAIMED = "w.status IN ('active', 'needs_reinstall')"

_KNOWS_TENANT = text("SELECT 1 FROM identity.organization WHERE id = :tenant_id FOR KEY SHARE")
_RIVALS = text("""
    SELECT w.tenant_id, w.id, w.slack_team_id, w.status
    FROM identity.work_app_slack_workspaces AS w
    WHERE w.client_id = :client_id AND w.tenant_id <> :tenant_id
      AND (w.slack_team_id IN (:slot, :enterprise_id)
           OR (:is_org AND w.slack_enterprise_id = :enterprise_id))
""")
ENDED_LINK = """
    tenant_id, workspace_id, inkeep_user_id, slack_team_id, slack_user_id,
    coalesce(slack_enterprise_id, '') AS enterprise_id
"""
"""What `remove_links` needs to know of each link that a statement removes."""

_REMOVE_LINKS_OF_WORKSPACE = text(f"""
    DELETE FROM identity.work_app_slack_user_mappings
    WHERE tenant_id = :tenant_id AND workspace_id = :id RETURNING {ENDED_LINK}
""")  # noqa: S608 - Only constants of this module are put together.
_DROP_WORKSPACE = text("""
    DELETE FROM identity.work_app_slack_workspaces WHERE tenant_id = :tenant_id AND id = :id
    RETURNING slack_team_id, coalesce(slack_enterprise_id, '') AS enterprise_id
""")
_STATUS_BEFORE = text("""
    SELECT w.status FROM identity.work_app_slack_workspaces AS w
    WHERE w.client_id = :client_id AND w.tenant_id = :tenant_id AND w.slack_team_id = :slot
""")
_CLAIM = text(f"""
    WITH w AS (
        INSERT INTO identity.work_app_slack_workspaces (
            tenant_id, id, client_id, slack_team_id, slack_enterprise_id, slack_app_id,
            nango_provider_config_key, nango_connection_id, status, installed_by_user_id,
            name, installation_id, created_at, updated_at)
        VALUES (
            :tenant_id, :id, :client_id, :slot, nullif(:enterprise_id, ''), :app_id,
            :provider_key, :connection_id, 'active',
            (SELECT u.id FROM identity."user" AS u WHERE u.id = :installed_by),
            :name, :installation_id, clock_timestamp(), clock_timestamp())
        ON CONFLICT (client_id, slack_team_id) DO UPDATE
        SET slack_enterprise_id = excluded.slack_enterprise_id,
            slack_app_id = excluded.slack_app_id,
            nango_provider_config_key = excluded.nango_provider_config_key,
            nango_connection_id = excluded.nango_connection_id,
            status = excluded.status,
            installed_by_user_id = excluded.installed_by_user_id,
            name = excluded.name,
            installation_id = excluded.installation_id,
            released_at = NULL,
            notice_taken_at = NULL,
            missing_scopes = '{{}}',
            extra_scopes = '{{}}',
            updated_at = clock_timestamp()
        RETURNING *)
    SELECT {_WORKSPACE_COLUMNS}, {_COUNT} FROM w
""")  # noqa: S608 - Only constants of this module are put together.
_RELEASE = text("""
    UPDATE identity.work_app_slack_workspaces
    SET status = 'uninstalled', released_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE client_id = :client_id AND slack_team_id = :slot
      AND coalesce(slack_enterprise_id, '') = :enterprise_id
      AND installation_id = :installation_id AND status <> 'uninstalled'
    RETURNING tenant_id, id
""")
_REPORT = text("""
    WITH w AS (
        SELECT tenant_id, id, status FROM identity.work_app_slack_workspaces
        WHERE client_id = :client_id AND slack_team_id = :slot
          AND coalesce(slack_enterprise_id, '') = :enterprise_id
          AND installation_id = :installation_id AND status IN ('active', 'needs_reinstall')
        FOR UPDATE),
    changed AS (
        UPDATE identity.work_app_slack_workspaces AS x
        SET status = :status, updated_at = clock_timestamp(),
            notice_taken_at = CASE :status WHEN 'active' THEN NULL ELSE x.notice_taken_at END
        FROM w WHERE x.tenant_id = w.tenant_id AND x.id = w.id AND w.status <> :status
        RETURNING 1)
    SELECT w.tenant_id, w.id, EXISTS (SELECT FROM changed) AS is_new FROM w
""")
_SET_DRIFT = text("""
    WITH w AS (
        SELECT tenant_id, id, missing_scopes, extra_scopes
        FROM identity.work_app_slack_workspaces
        WHERE client_id = :client_id AND slack_team_id = :slot
          AND coalesce(slack_enterprise_id, '') = :enterprise_id
          AND installation_id = :installation_id AND status IN ('active', 'needs_reinstall')
        FOR UPDATE),
    changed AS (
        UPDATE identity.work_app_slack_workspaces AS x
        SET missing_scopes = :missing, extra_scopes = :extra, updated_at = clock_timestamp()
        FROM w WHERE x.tenant_id = w.tenant_id AND x.id = w.id
            AND (w.missing_scopes, w.extra_scopes)
                <> (CAST(:missing AS text[]), CAST(:extra AS text[]))
        RETURNING 1)
    SELECT w.tenant_id, w.id, EXISTS (SELECT FROM changed) AS is_new FROM w
""")
_LOCK_CLAIM = text("""
    SELECT w.tenant_id, w.id, coalesce(w.slack_enterprise_id, '') AS enterprise_id
    FROM identity.work_app_slack_workspaces AS w
    WHERE w.client_id = :client_id AND w.slack_team_id = :slot AND w.slack_app_id = :app_id
      AND w.installation_id = :installation_id AND w.status <> 'uninstalled'
    FOR UPDATE
""")
_MOVE = text(f"""
    WITH w AS (
        UPDATE identity.work_app_slack_workspaces
        SET slack_enterprise_id = :enterprise_id, updated_at = clock_timestamp()
        WHERE tenant_id = :tenant_id AND id = :id
        RETURNING *)
    SELECT {_WORKSPACE_COLUMNS}, {_COUNT} FROM w
""")  # noqa: S608 - Only constants of this module are put together.
_END_CODES_OF_WORKSPACE = text("""
    UPDATE identity.work_app_slack_account_link_codes
    SET expires_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE tenant_id = :tenant_id AND workspace_id = :workspace_id
      AND used_at IS NULL AND expires_at > clock_timestamp()
""")
_FIND_WORKSPACE = text(f"""
    SELECT {_WORKSPACE_COLUMNS} FROM identity.work_app_slack_workspaces AS w
    WHERE w.client_id = :client_id AND w.slack_team_id = :slot
      AND coalesce(w.slack_enterprise_id, '') = :enterprise_id AND w.slack_app_id = :app_id
      AND {_IS_CLAIMED}
""")  # noqa: S608 - Only constants of this module are put together.
_GET_WORKSPACE = text(f"""
    SELECT {_WORKSPACE_COLUMNS} FROM identity.work_app_slack_workspaces AS w
    WHERE w.tenant_id = :tenant_id AND w.id = :workspace_id AND {_IS_CLAIMED}
""")  # noqa: S608 - Only constants of this module are put together.
_LIST_WORKSPACES = text(f"""
    SELECT {_WORKSPACE_COLUMNS}, {_COUNT} FROM identity.work_app_slack_workspaces AS w
    WHERE w.tenant_id = :tenant_id AND {_IS_CLAIMED}
    ORDER BY w.created_at DESC, w.id DESC
""")  # noqa: S608 - Only constants of this module are put together.

_LIST_DEFAULTS = text("""
    SELECT channel_id, project_id, agent_id, grants_access
    FROM identity.work_app_slack_agent_defaults
    WHERE tenant_id = :tenant_id AND workspace_id = :workspace_id
    ORDER BY channel_id COLLATE "C"
""")
_SET_DEFAULT = text("""
    INSERT INTO identity.work_app_slack_agent_defaults (
        tenant_id, workspace_id, channel_id, project_id, agent_id, grants_access, set_by_user_id)
    SELECT w.tenant_id, w.id, :channel_id, :project_id, :agent_id, :grants_access,
        (SELECT u.id FROM identity."user" AS u WHERE u.id = :set_by)
    FROM identity.work_app_slack_workspaces AS w
    WHERE w.tenant_id = :tenant_id AND w.id = :workspace_id
    ON CONFLICT (tenant_id, workspace_id, channel_id) DO UPDATE
    SET project_id = excluded.project_id, agent_id = excluded.agent_id,
        grants_access = excluded.grants_access, set_by_user_id = excluded.set_by_user_id,
        updated_at = clock_timestamp()
    RETURNING channel_id
""")
_REMOVE_DEFAULT = text("""
    DELETE FROM identity.work_app_slack_agent_defaults
    WHERE tenant_id = :tenant_id AND workspace_id = :workspace_id AND channel_id = :channel_id
""")

# One Slack user, however sighted: in their own team, or anywhere in their Enterprise.
_SAME_SLACK_USER = """
    tenant_id = :tenant_id AND client_id = :client_id AND slack_user_id = :slack_user_id
    AND (slack_team_id = :team_id
         OR (:enterprise_id <> '' AND slack_enterprise_id = :enterprise_id))
"""
_RECENT_CODES = text(f"""
    SELECT created_at + CAST(:window AS interval) - clock_timestamp() AS due_in
    FROM identity.work_app_slack_account_link_codes
    WHERE {_SAME_SLACK_USER} AND created_at > clock_timestamp() - CAST(:window AS interval)
    ORDER BY created_at DESC LIMIT :limit
""")  # noqa: S608 - Only constants of this module are put together.
_END_CODES_OF_SLACK_USER = text(f"""
    UPDATE identity.work_app_slack_account_link_codes
    SET expires_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE {_SAME_SLACK_USER} AND used_at IS NULL AND expires_at > clock_timestamp()
""")  # noqa: S608 - Only constants of this module are put together.
_INSERT_CODE = text("""
    INSERT INTO identity.work_app_slack_account_link_codes (
        tenant_id, id, client_id, slack_team_id, slack_user_id, slack_enterprise_id,
        link_code_hash, workspace_id, slack_display_name, slack_email,
        created_at, updated_at, expires_at)
    SELECT :tenant_id, :id, :client_id, :team_id, :slack_user_id, nullif(:enterprise_id, ''),
        :code_hash, :workspace_id, :display_name, :email,
        now.at, now.at, now.at + CAST(:life AS interval)
    FROM (SELECT clock_timestamp() AS at) AS now
    RETURNING expires_at
""")
_LIVE_CODE = f"""
    c.link_code_hash = :code_hash AND c.used_at IS NULL AND c.expires_at > clock_timestamp()
    AND w.tenant_id = c.tenant_id AND w.id = c.workspace_id AND {_IS_CLAIMED}
"""
# The workspace's columns come with the names that they have elsewhere.
_CODE_COLUMNS = f"""
    {_WORKSPACE_COLUMNS}, c.slack_team_id AS user_team_id, c.slack_user_id,
    coalesce(c.slack_enterprise_id, '') AS user_enterprise_id,
    c.slack_display_name, c.slack_email, c.expires_at
"""
_FIND_CODE = text(f"""
    SELECT {_CODE_COLUMNS}
    FROM identity.work_app_slack_account_link_codes AS c, identity.work_app_slack_workspaces AS w
    WHERE {_LIVE_CODE}
""")  # noqa: S608 - Only constants of this module are put together.
_SPEND_CODE = text(f"""
    UPDATE identity.work_app_slack_account_link_codes AS c
    SET used_at = clock_timestamp(), used_by_user_id = :user_id, updated_at = clock_timestamp(),
        slack_display_name = '', slack_email = ''
    FROM identity.work_app_slack_workspaces AS w
    WHERE {_LIVE_CODE} AND c.tenant_id = :tenant_id
    RETURNING {_CODE_COLUMNS}
""")  # noqa: S608 - Only constants of this module are put together.

_MAPPING_COLUMNS = """
    m.id AS mapping_id, m.tenant_id AS mapping_tenant_id, m.workspace_id AS mapping_workspace_id,
    m.slack_team_id AS user_team_id, m.slack_user_id,
    coalesce(m.slack_enterprise_id, '') AS user_enterprise_id,
    m.inkeep_user_id, u.name AS user_name, u.email AS user_email,
    m.created_at AS linked_at, m.last_used_at
"""
_MAPPINGS = """
    identity.work_app_slack_user_mappings AS m
    JOIN identity."user" AS u ON u.id = m.inkeep_user_id
"""
_FIND_MAPPING = text(f"""
    SELECT {_MAPPING_COLUMNS} FROM {_MAPPINGS}
    WHERE {_SAME_SLACK_USER}
    ORDER BY (m.slack_team_id = :team_id) DESC LIMIT 1
""")  # noqa: S608 - Only constants of this module are put together.
# One row, or none where nobody has claimed the install; the link's columns are NULL without one.
_FIND_SUBJECT = text(f"""
    SELECT {_WORKSPACE_COLUMNS}, m.*
    FROM identity.work_app_slack_workspaces AS w
    LEFT JOIN LATERAL (
        SELECT {_MAPPING_COLUMNS} FROM {_MAPPINGS}
        WHERE m.tenant_id = w.tenant_id AND m.client_id = w.client_id
          AND m.slack_user_id = :slack_user_id
          AND (m.slack_team_id = :team_id
               OR (:user_enterprise_id <> '' AND m.slack_enterprise_id = :user_enterprise_id))
        ORDER BY (m.slack_team_id = :team_id) DESC LIMIT 1) AS m ON true
    WHERE w.client_id = :client_id AND w.slack_team_id = :slot
      AND coalesce(w.slack_enterprise_id, '') = :enterprise_id AND w.slack_app_id = :app_id
      AND {_IS_CLAIMED}
""")  # noqa: S608 - Only constants of this module are put together.
_INSERT_MAPPING = text("""
    INSERT INTO identity.work_app_slack_user_mappings (
        tenant_id, id, client_id, slack_team_id, slack_user_id, slack_enterprise_id,
        inkeep_user_id, workspace_id, created_at, updated_at)
    VALUES (
        :tenant_id, :id, :client_id, :team_id, :slack_user_id, nullif(:enterprise_id, ''),
        :user_id, :workspace_id, clock_timestamp(), clock_timestamp())
""")
_LIST_MAPPINGS = text(f"""
    SELECT {_MAPPING_COLUMNS} FROM {_MAPPINGS}
    WHERE m.tenant_id = :tenant_id AND m.workspace_id = :workspace_id
      AND (CAST(:user_id AS text) IS NULL OR m.inkeep_user_id = :user_id)
      AND (CAST(:after_at AS timestamptz) IS NULL
           OR (m.created_at, m.id) < (CAST(:after_at AS timestamptz), :after_id))
    ORDER BY m.created_at DESC, m.id DESC LIMIT :limit
""")  # noqa: S608 - Only constants of this module are put together.
_DUE_NOTICES = text(f"""
    SELECT {_WORKSPACE_COLUMNS}, w.installation_id, w.installed_by_user_id
    FROM identity.work_app_slack_workspaces AS w
    WHERE w.client_id = :client_id AND w.status = 'needs_reinstall' AND w.notice_taken_at IS NULL
    ORDER BY w.updated_at LIMIT :limit
""")  # noqa: S608 - Only constants of this module are put together.
_READERS = text(f"""
    SELECT {_MAPPING_COLUMNS} FROM {_MAPPINGS}
    WHERE m.tenant_id = :tenant_id AND m.workspace_id = :workspace_id
    ORDER BY (m.inkeep_user_id = :installed_by) IS TRUE DESC, m.created_at, m.id LIMIT :limit
""")  # noqa: S608 - Only constants of this module are put together.
_TAKE_NOTICE = text("""
    UPDATE identity.work_app_slack_workspaces SET notice_taken_at = clock_timestamp()
    WHERE tenant_id = :tenant_id AND id = :id
      AND status = 'needs_reinstall' AND notice_taken_at IS NULL
    RETURNING true
""")
_REMOVE_MAPPING = text(f"""
    DELETE FROM identity.work_app_slack_user_mappings
    WHERE tenant_id = :tenant_id AND id = :id
      AND (CAST(:user_id AS text) IS NULL OR inkeep_user_id = :user_id)
    RETURNING {ENDED_LINK}
""")  # noqa: S608 - Only constants of this module are put together.
# One statement, so that it is a transaction by itself: this is what every token waits for.
_USE_MAPPING = text(f"""
    WITH used AS (
        UPDATE identity.work_app_slack_user_mappings
        SET last_used_at = clock_timestamp(), updated_at = clock_timestamp()
        WHERE tenant_id = :of_tenant AND id = :mapping_id
        RETURNING 1)
    {RECORD} FROM used
""")  # noqa: S608 - Only constants are put together.
_NOTE_OPERATOR_AGENT = text("""
    UPDATE identity.organization SET operator_agent = :agent, has_operator_agent = :is_there
    WHERE id = :tenant_id
""")
_LACKS_OPERATOR_AGENT = text("""
    SELECT 1 FROM identity.organization
    WHERE id = :tenant_id AND operator_agent = :agent AND NOT has_operator_agent
""")
_READY = text(
    "SELECT clock_timestamp() AS at, EXISTS (SELECT FROM identity.organization) AS has_any"
)


class PostgresStore:
    """Every store of identity over one engine; what each promises is said at its port."""

    def __init__(self, engine: AsyncEngine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or SystemClock()

    async def require_ready(self) -> None:
        """Read one row, and the database's clock.

        Raises:
            DatabaseUnavailable: The database does not answer, or has no tables.
            ClockSkew: This machine's clock and the database's differ.
        """
        async with self._alone() as connection:
            row = (await connection.execute(_READY)).mappings().one()
        require_agreement(self._clock, row["at"])

    # People.

    async def remember(self, person: Person, tenant: Tenant) -> None:
        """Keep an account and an organization."""
        async with self._transaction() as connection:
            await _remember(connection, person, tenant)

    async def note(self, user_id: UserId, tenant_id: TenantId) -> None:
        """Keep an account and an organization that are not known yet."""
        async with self._transaction() as connection:
            await connection.execute(_NOTE_PERSON, {"user_id": user_id})
            await connection.execute(_NOTE_TENANT, {"tenant_id": tenant_id})

    # Workspaces.

    async def claim(self, claim: Claim, origin: Origin) -> Claimed:
        """Claim a workspace for a tenant."""
        key = claim.key
        of = {
            "client_id": CLIENT_ID,
            "tenant_id": claim.tenant_id,
            "slot": key.slot,
            "enterprise_id": key.enterprise_id,
            "is_org": key.is_enterprise_install,
        }
        async with self._transaction() as connection:
            for name in sorted({key.slot, key.enterprise_id} - {""}):
                await connection.execute(_LOCK, {"name": f"claim:{name}"})
            if await find(connection, _KNOWS_TENANT, {"tenant_id": claim.tenant_id}) is None:
                raise OrganizationNotFound
            rivals = (await connection.execute(_RIVALS, of)).mappings().all()
            if any(rival["status"] != WorkspaceStatus.UNINSTALLED for rival in rivals):
                raise WorkspaceTaken
            for rival in rivals:
                # A team's claim ends nothing of the Enterprise around it.
                if rival["slack_team_id"] == key.slot or key.is_enterprise_install:
                    await end_claim(
                        connection, rival["tenant_id"], rival["id"], origin, "claimed elsewhere"
                    )
            before = await find(connection, _STATUS_BEFORE, of)
            row = (await connection.execute(_CLAIM, _claim_values(claim))).mappings().one()
            await record(connection, _workspace_event("workspace.claimed", row, claim, origin))
        was_claimed = before is not None and before["status"] != WorkspaceStatus.UNINSTALLED
        return Claimed(_counted_workspace(row), was_claimed)

    async def move(
        self, key: WorkspaceKey, installation_id: UUID, origin: Origin
    ) -> CountedWorkspace:
        """Name the Enterprise that a claimed workspace joined."""
        of = {
            "client_id": CLIENT_ID,
            "slot": key.slot,
            "enterprise_id": key.enterprise_id,
            "app_id": key.app_id,
            "installation_id": installation_id,
            "is_org": False,
        }
        async with self._transaction() as connection:
            for name in sorted({key.slot, key.enterprise_id}):
                await connection.execute(_LOCK, {"name": f"claim:{name}"})
            before = await find(connection, _LOCK_CLAIM, of)
            if before is None:
                raise WorkspaceNotFound
            mine = {**of, "tenant_id": before["tenant_id"], "id": before["id"]}
            rivals = (await connection.execute(_RIVALS, mine)).mappings().all()
            if any(rival["status"] != WorkspaceStatus.UNINSTALLED for rival in rivals):
                raise WorkspaceTaken
            row = (await connection.execute(_MOVE, mine)).mappings().one()
            if before["enterprise_id"] != key.enterprise_id:
                event = AuditEvent(
                    "workspace.moved",
                    origin,
                    slack_enterprise_id=key.enterprise_id,
                    slack_team_id=key.team_id,
                    tenant_id=before["tenant_id"],
                    workspace_id=before["id"],
                )
                await record(connection, event)
            return _counted_workspace(row)

    async def release(self, key: WorkspaceKey, installation_id: UUID, origin: Origin) -> bool:
        """End a claim and its open link codes."""
        of = {
            "client_id": CLIENT_ID,
            "slot": key.slot,
            "enterprise_id": key.enterprise_id,
            "installation_id": installation_id,
        }
        async with self._transaction() as connection:
            row = await find(connection, _RELEASE, of)
            if row is None:
                return False
            ended = {"tenant_id": row["tenant_id"], "workspace_id": row["id"]}
            await connection.execute(_END_CODES_OF_WORKSPACE, ended)
            event = AuditEvent(
                "workspace.released",
                origin,
                slack_enterprise_id=key.enterprise_id,
                slack_team_id=key.team_id,
                **ended,
            )
            await record(connection, event)
            return True

    async def set_needs_reinstall(
        self,
        key: WorkspaceKey,
        installation_id: UUID,
        origin: Origin,
        *,
        needs_reinstall: bool,
    ) -> bool:
        """Note whether a claim needs a reinstall."""
        status = WorkspaceStatus.of_claimed(needs_reinstall=needs_reinstall)
        of = {
            "client_id": CLIENT_ID,
            "slot": key.slot,
            "enterprise_id": key.enterprise_id,
            "installation_id": installation_id,
            "status": status.value,
        }
        async with self._transaction() as connection:
            row = await find(connection, _REPORT, of)
            if row is None:
                return False
            if row["is_new"]:
                event = AuditEvent(
                    f"workspace.became_{status.value}",
                    origin,
                    slack_enterprise_id=key.enterprise_id,
                    slack_team_id=key.team_id,
                    tenant_id=row["tenant_id"],
                    workspace_id=row["id"],
                )
                await record(connection, event)
            return True

    async def set_drift(
        self, key: WorkspaceKey, installation_id: UUID, drift: ScopeDrift, origin: Origin
    ) -> bool:
        """Note how a claim's scopes differ."""
        of = {
            "client_id": CLIENT_ID,
            "slot": key.slot,
            "enterprise_id": key.enterprise_id,
            "installation_id": installation_id,
            "missing": list(drift.missing),
            "extra": list(drift.extra),
        }
        async with self._transaction() as connection:
            row = await find(connection, _SET_DRIFT, of)
            if row is None:
                return False
            if row["is_new"]:
                event = drift_event(key, drift, origin)
                of_claim = WorkspaceId(row["id"])
                await record(connection, event.of_workspace(TenantId(row["tenant_id"]), of_claim))
            return True

    async def list_due_notices(self, limit: int) -> Sequence[DueNotice]:
        """List workspaces of which an administrator has to be told; see NoticeStore."""
        due: list[DueNotice] = []
        async with self._transaction() as connection:
            of = {"client_id": CLIENT_ID, "limit": limit}
            for row in (await connection.execute(_DUE_NOTICES, of)).mappings().all():
                where = {
                    "tenant_id": row["tenant_id"],
                    "workspace_id": row["id"],
                    "installed_by": row["installed_by_user_id"],
                    "limit": READERS_ASKED,
                }
                readers = (await connection.execute(_READERS, where)).mappings().all()
                linked = tuple(map(_mapping, readers))
                due.append(DueNotice(_workspace(row), row["installation_id"], linked))
        return due

    async def take_notice(self, workspace: Workspace, event: AuditEvent) -> bool:
        """Mark a notice as handed out; see NoticeStore."""
        of = {"tenant_id": workspace.tenant_id, "id": workspace.workspace_id}
        async with self._transaction() as connection:
            if await find(connection, _TAKE_NOTICE, of) is None:
                return False
            await record(connection, event)
            return True

    async def find_workspace(self, key: WorkspaceKey) -> Workspace | None:
        """Find the claim on exactly this install."""
        async with self._alone() as connection:
            row = await find(connection, _FIND_WORKSPACE, _workspace_key_values(key))
        return _workspace(row) if row else None

    async def get_workspace(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> Workspace:
        """Get a claim of the tenant."""
        of = {"tenant_id": tenant_id, "workspace_id": workspace_id}
        async with self._alone() as connection:
            row = await find(connection, _GET_WORKSPACE, of)
        if row is None:
            raise WorkspaceNotFound
        return _workspace(row)

    async def list_workspaces(self, tenant_id: TenantId) -> list[CountedWorkspace]:
        """List the tenant's claims, newest first."""
        async with self._alone() as connection:
            rows = await connection.execute(_LIST_WORKSPACES, {"tenant_id": tenant_id})
            return [_counted_workspace(row) for row in rows.mappings()]

    async def list_agent_defaults(
        self, tenant_id: TenantId, workspace_id: WorkspaceId
    ) -> list[AgentDefault]:
        """List the default agents of a workspace, the workspace's own first."""
        of = {"tenant_id": tenant_id, "workspace_id": workspace_id}
        async with self._alone() as connection:
            rows = await connection.execute(_LIST_DEFAULTS, of)
            return [
                AgentDefault(
                    channel_id=row["channel_id"],
                    agent=Agent(row["project_id"], row["agent_id"]),
                    grants_access=row["grants_access"],
                )
                for row in rows.mappings()
            ]

    async def set_agent_default(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        agent_default: AgentDefault,
        set_by: UserId,
        event: AuditEvent,
    ) -> None:
        """Set the default agent of a place."""
        values = {
            "tenant_id": tenant_id,
            "workspace_id": workspace_id,
            "channel_id": agent_default.channel_id,
            "project_id": agent_default.agent.project_id,
            "agent_id": agent_default.agent.agent_id,
            "grants_access": agent_default.grants_access,
            "set_by": set_by,
        }
        async with self._transaction() as connection:
            if await find(connection, _SET_DEFAULT, values) is None:
                raise WorkspaceNotFound
            await record(connection, event)

    async def remove_agent_default(
        self, tenant_id: TenantId, workspace_id: WorkspaceId, channel_id: str, event: AuditEvent
    ) -> None:
        """Remove the default agent of a place."""
        of = {"tenant_id": tenant_id, "workspace_id": workspace_id, "channel_id": channel_id}
        async with self._transaction() as connection:
            if await count(connection, _REMOVE_DEFAULT, of):
                await record(connection, event)

    async def note_operator_agent(
        self, tenant_id: TenantId, agent: Agent, *, is_there: bool
    ) -> None:
        """Note whether an administrator sees the operator's default agent."""
        of = {"tenant_id": tenant_id, "agent": _name_of(agent), "is_there": is_there}
        async with self._transaction() as connection:
            await connection.execute(_NOTE_OPERATOR_AGENT, of)

    async def lacks_operator_agent(self, tenant_id: TenantId, agent: Agent) -> bool:
        """Tell whether an administrator was last seen not to see that agent."""
        of = {"tenant_id": tenant_id, "agent": _name_of(agent)}
        async with self._alone() as connection:
            return await find(connection, _LACKS_OPERATOR_AGENT, of) is not None

    # Links.

    async def create_link_code(
        self, code: NewLinkCode, *, life: timedelta, limit: int, window: timedelta
    ) -> datetime:
        """Store a link code and end the Slack user's older ones."""
        of = _slack_user_values(code.tenant_id, code.slack_user)
        async with self._transaction() as connection:
            await _lock_slack_user(connection, code.tenant_id, code.slack_user.user_id)
            if await find(connection, _FIND_MAPPING, of):
                raise UserAlreadyLinked
            recent = await connection.execute(
                _RECENT_CODES, {**of, "window": window, "limit": limit}
            )
            waits = [row["due_in"] for row in recent.mappings()]
            if len(waits) >= limit:
                raise TooManyLinkCodes(retry_after=max(waits[-1], timedelta()))
            await connection.execute(_END_CODES_OF_SLACK_USER, of)
            values = {
                **of,
                "id": code.code_id,
                "code_hash": code.code_hash,
                "workspace_id": code.workspace_id,
                "display_name": code.display_name,
                "email": code.email,
                "life": life,
            }
            row = (await connection.execute(_INSERT_CODE, values)).mappings().one()
            expires_at: datetime = row["expires_at"]
            return expires_at

    async def find_link_code(self, code_hash: CodeHash) -> LinkCode | None:
        """Find a code that works now."""
        async with self._alone() as connection:
            row = await find(connection, _FIND_CODE, {"code_hash": code_hash})
        return _link_code(row) if row else None

    async def redeem_link_code(
        self, code_hash: CodeHash, session: Session, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Spend a code and link its Slack user to the session's account."""
        person, tenant = session.person, session.tenant
        async with self._transaction() as connection:
            seen = await find(connection, _FIND_CODE, {"code_hash": code_hash})
            if seen is None or seen["tenant_id"] != tenant.tenant_id:
                raise LinkCodeSpent
            # Before the code's row, in the order in which a new code takes them.
            await _lock_slack_user(connection, tenant.tenant_id, seen["slack_user_id"])
            await _remember(connection, person, tenant)
            spend = {
                "code_hash": code_hash,
                "tenant_id": tenant.tenant_id,
                "user_id": person.user_id,
            }
            spent = await find(connection, _SPEND_CODE, spend)
            if spent is None:
                raise LinkCodeSpent
            await record(connection, event)
            of = _slack_user_values(tenant.tenant_id, _slack_user(spent))
            existing = await find(connection, _FIND_MAPPING, of)
            if existing is not None:
                if existing["inkeep_user_id"] != person.user_id:
                    raise UserLinkedElsewhere
                return True
            values = {
                **of,
                "id": mapping_id,
                "user_id": person.user_id,
                "workspace_id": spent["id"],
            }
            await connection.execute(_INSERT_MAPPING, values)
            return False

    async def find_mapping(self, tenant_id: TenantId, slack_user: SlackUser) -> UserMapping | None:
        """Find the link of a Slack user in a tenant."""
        async with self._alone() as connection:
            row = await find(connection, _FIND_MAPPING, _slack_user_values(tenant_id, slack_user))
        return _mapping(row) if row else None

    async def find_subject(
        self, key: WorkspaceKey, slack_user: SlackUser
    ) -> tuple[Workspace, UserMapping | None] | None:
        """Find the claim on an install, and in its tenant the Slack user's link."""
        of = {
            **_workspace_key_values(key),
            "team_id": slack_user.team_id,
            "user_enterprise_id": slack_user.enterprise_id,
            "slack_user_id": slack_user.user_id,
        }
        async with self._alone() as connection:
            row = await find(connection, _FIND_SUBJECT, of)
        if row is None:
            return None
        return _workspace(row), _mapping(row) if row["mapping_id"] else None

    async def list_mappings(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        *,
        of_user: UserId | None,
        after: MappingCursor | None,
        limit: int,
    ) -> list[UserMapping]:
        """List the links made in a workspace, newest first."""
        of = {
            "tenant_id": tenant_id,
            "workspace_id": workspace_id,
            "user_id": of_user,
            "after_at": after.linked_at if after else None,
            "after_id": after.mapping_id if after else "",
            "limit": limit,
        }
        async with self._alone() as connection:
            rows = await connection.execute(_LIST_MAPPINGS, of)
            return [_mapping(row) for row in rows.mappings()]

    async def remove_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, *, of_user: UserId | None, origin: Origin
    ) -> bool:
        """Remove a link of the tenant."""
        of = {"tenant_id": tenant_id, "id": mapping_id, "user_id": of_user}
        async with self._transaction() as connection:
            row = await find(connection, _REMOVE_MAPPING, of)
            if row is None:
                return False
            await record(connection, _unlinked(row, origin))
            return True

    async def use_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Note that a token is issued for a link."""
        of = {**values_of(event), "of_tenant": tenant_id, "mapping_id": mapping_id}
        async with self._alone() as connection:
            return await count(connection, _USE_MAPPING, of) > 0

    def _transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return transaction(self._engine)

    def _alone(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return alone(self._engine)


async def end_claim(
    connection: AsyncConnection, tenant_id: str, workspace_id: str, origin: Origin, why: str
) -> None:
    """Remove a claim with everything that stands on it, and record each link that ends."""
    of = {"tenant_id": tenant_id, "id": workspace_id}
    await remove_links(connection, _REMOVE_LINKS_OF_WORKSPACE, of, origin, why)
    row = await find(connection, _DROP_WORKSPACE, of)
    if row is not None:
        event = AuditEvent(
            "workspace.ended",
            origin,
            tenant_id=tenant_id,
            workspace_id=workspace_id,
            slack_enterprise_id=row["enterprise_id"],
            slack_team_id=row["slack_team_id"],
            purpose=why,
        )
        await record(connection, event)


async def remove_links(
    connection: AsyncConnection,
    statement: TextClause,
    of: Mapping[str, str],
    origin: Origin,
    why: str,
) -> int:
    """Remove the links that a statement removes and returns, record each, and count them."""
    rows = (await connection.execute(statement, dict(of))).mappings().all()
    await record(connection, *(_unlinked(row, origin, why) for row in rows))
    return len(rows)


def _unlinked(row: RowMapping, origin: Origin, why: str = "") -> AuditEvent:
    return AuditEvent(
        "user.unlinked",
        origin,
        tenant_id=row["tenant_id"],
        workspace_id=row["workspace_id"],
        slack_enterprise_id=row["enterprise_id"],
        slack_team_id=row["slack_team_id"],
        slack_user_id=row["slack_user_id"],
        user_id=row["inkeep_user_id"],
        purpose=why,
    )


async def _remember(connection: AsyncConnection, person: Person, tenant: Tenant) -> None:
    who = {"user_id": person.user_id, "name": person.name, "email": person.email}
    await connection.execute(_REMEMBER_PERSON, who)
    where = {"tenant_id": tenant.tenant_id, "name": tenant.name}
    await connection.execute(_REMEMBER_TENANT, where)


async def _lock_slack_user(connection: AsyncConnection, tenant_id: str, slack_user_id: str) -> None:
    await connection.execute(_LOCK, {"name": f"link:{tenant_id}:{slack_user_id}"})


def _workspace_event(name: str, row: RowMapping, claim: Claim, origin: Origin) -> AuditEvent:
    return AuditEvent(
        name,
        origin,
        tenant_id=row["tenant_id"],
        workspace_id=row["id"],
        slack_enterprise_id=claim.key.enterprise_id,
        slack_team_id=claim.key.team_id,
        user_id=claim.installed_by,
    )


def _name_of(agent: Agent) -> str:
    return f"{agent.project_id}/{agent.agent_id}"


def _workspace_key_values(key: WorkspaceKey) -> dict[str, Any]:
    return {
        "client_id": CLIENT_ID,
        "slot": key.slot,
        "enterprise_id": key.enterprise_id,
        "app_id": key.app_id,
    }


def _claim_values(claim: Claim) -> dict[str, Any]:
    nango = claim.nango
    return {
        "tenant_id": claim.tenant_id,
        "id": claim.workspace_id,
        "client_id": CLIENT_ID,
        "slot": claim.key.slot,
        "enterprise_id": claim.key.enterprise_id,
        "app_id": claim.key.app_id,
        "provider_key": nango.provider_config_key if nango else _DIRECT_PROVIDER_KEY,
        "connection_id": nango.connection_id if nango else f"vault:{claim.installation_id}",
        "installed_by": claim.installed_by,
        "name": claim.name,
        "installation_id": claim.installation_id,
    }


def _slack_user_values(tenant_id: TenantId, slack_user: SlackUser) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "client_id": CLIENT_ID,
        "team_id": slack_user.team_id,
        "enterprise_id": slack_user.enterprise_id,
        "slack_user_id": slack_user.user_id,
    }


def _workspace(row: RowMapping) -> Workspace:
    is_org = row["slack_team_id"] == row["enterprise_id"]
    return Workspace(
        workspace_id=WorkspaceId(row["id"]),
        tenant_id=TenantId(row["tenant_id"]),
        key=WorkspaceKey(
            enterprise_id=row["enterprise_id"],
            team_id="" if is_org else row["slack_team_id"],
            app_id=row["app_id"],
        ),
        name=row["name"],
        status=WorkspaceStatus(row["status"]),
        created_at=row["created_at"],
        drift=ScopeDrift(tuple(row["missing_scopes"]), tuple(row["extra_scopes"])),
    )


def _counted_workspace(row: RowMapping) -> CountedWorkspace:
    return CountedWorkspace(_workspace(row), row["linked_users"])


def _link_code(row: RowMapping) -> LinkCode:
    return LinkCode(
        workspace=_workspace(row),
        slack_user=_slack_user(row),
        display_name=row["slack_display_name"],
        email=row["slack_email"],
        expires_at=row["expires_at"],
    )


def _mapping(row: RowMapping) -> UserMapping:
    return UserMapping(
        mapping_id=MappingId(row["mapping_id"]),
        tenant_id=TenantId(row["mapping_tenant_id"]),
        workspace_id=WorkspaceId(row["mapping_workspace_id"]),
        slack_user=_slack_user(row),
        person=Person(UserId(row["inkeep_user_id"]), row["user_name"], row["user_email"]),
        linked_at=row["linked_at"],
        last_used_at=row["last_used_at"],
    )


def _slack_user(row: RowMapping) -> SlackUser:
    return SlackUser(row["user_team_id"], row["user_enterprise_id"], row["slack_user_id"])
