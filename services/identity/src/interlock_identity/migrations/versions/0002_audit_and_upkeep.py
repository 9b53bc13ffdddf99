"""The audit, and what sweeping and cleaning need to know.

Everything is added; version 0001's code runs on it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UPGRADE = """
ALTER TABLE identity.work_app_slack_workspaces ADD COLUMN released_at timestamptz;
UPDATE identity.work_app_slack_workspaces SET released_at = updated_at
    WHERE status = 'uninstalled';
CREATE INDEX work_app_slack_workspaces_released_idx
    ON identity.work_app_slack_workspaces (released_at) WHERE released_at IS NOT NULL;

-- Ended codes whose name and address are still to be erased.
CREATE INDEX work_app_slack_account_link_codes_shown_idx
    ON identity.work_app_slack_account_link_codes (expires_at)
    WHERE slack_display_name <> '' OR slack_email <> '';

-- What an administrator of the tenant last saw of the operator's default agent.
ALTER TABLE identity.organization
    ADD COLUMN operator_agent text NOT NULL DEFAULT '',
    ADD COLUMN has_operator_agent boolean NOT NULL DEFAULT true;

-- Who was not found at a sweep, and since when; user_id '' is the organization itself.
CREATE TABLE identity.absences (
    tenant_id varchar(256) NOT NULL,
    user_id varchar(256) NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT absences_pk PRIMARY KEY (tenant_id, user_id)
);

CREATE TABLE identity.upkeep (
    task text NOT NULL CONSTRAINT upkeep_pk PRIMARY KEY,
    finished_at timestamptz NOT NULL
);

-- Ids only; '' is absent.
CREATE TABLE identity.audit_events (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_events_pk PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event text NOT NULL,
    outcome text NOT NULL,
    count integer NOT NULL CONSTRAINT audit_events_count_check CHECK (count > 0),
    caller text NOT NULL,
    rpc text NOT NULL,
    request_id text NOT NULL,
    grant_jti text NOT NULL,
    actor_id text NOT NULL,
    tenant_id text NOT NULL,
    workspace_id text NOT NULL,
    slack_enterprise_id text NOT NULL,
    slack_team_id text NOT NULL,
    slack_user_id text NOT NULL,
    user_id text NOT NULL,
    token_jti text NOT NULL,
    purpose text NOT NULL,
    project_id text NOT NULL,
    agent_id text NOT NULL,
    channel_id text NOT NULL
);
-- Rows come in the order of time, so that a few kilobytes of index lead to any day.
CREATE INDEX audit_events_at_idx ON identity.audit_events USING brin (at);

-- The only way for the service to remove records, and never young ones.
CREATE FUNCTION identity.prune_audit(p_older_than interval, p_limit integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM identity.audit_events WHERE id IN (
            SELECT id FROM identity.audit_events
            WHERE at < clock_timestamp() - greatest(p_older_than, interval '90 days')
            ORDER BY at LIMIT p_limit)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
REVOKE ALL ON FUNCTION identity.prune_audit(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION identity.prune_audit(interval, integer) TO interlock_identity;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.absences, identity.upkeep TO interlock_identity;
GRANT SELECT ON identity.audit_events TO interlock_identity;
-- All but `id` and `at`: their number and their time are the database's.
GRANT INSERT (
    event, outcome, count, caller, rpc, request_id, grant_jti, actor_id, tenant_id, workspace_id,
    slack_enterprise_id, slack_team_id, slack_user_id, user_id, token_jti, purpose, project_id,
    agent_id, channel_id) ON identity.audit_events TO interlock_identity;
"""

_DOWNGRADE = """
DROP FUNCTION identity.prune_audit(interval, integer);
DROP TABLE identity.audit_events;
DROP TABLE identity.upkeep;
DROP TABLE identity.absences;
ALTER TABLE identity.organization DROP COLUMN operator_agent, DROP COLUMN has_operator_agent;
DROP INDEX identity.work_app_slack_account_link_codes_shown_idx;
ALTER TABLE identity.work_app_slack_workspaces DROP COLUMN released_at;
"""


def upgrade() -> None:
    op.execute(_UPGRADE)


def downgrade() -> None:
    op.execute(_DOWNGRADE)
