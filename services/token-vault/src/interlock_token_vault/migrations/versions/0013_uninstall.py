"""Uninstalls under way, and tombstones of what was purged.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# An uninstall is written down before Slack hears of it; a sweep ends it after a
# crash. A tombstone outlives what was purged until identity has let the
# workspace go, and for late events that ask about it.
_TABLES = """
CREATE TABLE vault.uninstall (
    installation_id uuid PRIMARY KEY REFERENCES vault.installation ON DELETE CASCADE,
    grant_id text NOT NULL,
    subject text NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE vault.tombstone (
    installation_id uuid PRIMARY KEY,
    client_id text NOT NULL,
    app_id text NOT NULL,
    enterprise_id text NOT NULL,
    team_id text NOT NULL,
    tenant_id text NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at timestamptz
);
CREATE INDEX tombstone_unreleased ON vault.tombstone (purged_at) WHERE released_at IS NULL;
CREATE INDEX tombstone_released ON vault.tombstone (released_at) WHERE released_at IS NOT NULL;
"""

_ROW_SECURITY = """
ALTER TABLE vault.uninstall ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY named ON vault.uninstall TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY lookup ON vault.uninstall FOR SELECT TO interlock_vault_owner USING (true);
"""

_FUNCTIONS = """
-- What an uninstall or revocation may mean: Slack names the team, the Enterprise,
-- or both, and its samples do not say which of them had the app. Ids only.
CREATE FUNCTION vault.find_meant(
    p_client_id text, p_app_id text, p_enterprise_id text, p_team_id text
) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT i.installation_id FROM vault.installation i
    WHERE i.client_id = p_client_id AND i.app_id = p_app_id AND i.state = 'active'
        AND (
            p_team_id <> '' AND i.team_id = p_team_id
            OR p_enterprise_id <> '' AND i.enterprise_id = p_enterprise_id AND i.team_id = ''
        )
    ORDER BY i.installation_id
$$;

-- Uninstalls that nobody has tried to end for a while. One that an install
-- followed is about the past.
CREATE FUNCTION vault.list_open_uninstalls(p_quiet interval, p_limit bigint)
RETURNS TABLE (installation_id uuid, grant_id text, subject text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT u.installation_id, u.grant_id, u.subject FROM vault.uninstall u
    JOIN vault.installation i USING (installation_id)
    WHERE u.tried_at <= clock_timestamp() - p_quiet AND i.installed_at <= u.asked_at
    ORDER BY u.tried_at
    LIMIT p_limit
$$;
"""

_GRANTS = """
REVOKE ALL ON FUNCTION vault.find_meant(text, text, text, text),
    vault.list_open_uninstalls(interval, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.find_meant(text, text, text, text),
    vault.list_open_uninstalls(interval, bigint) TO interlock_vault;
GRANT SELECT, INSERT, UPDATE, DELETE ON vault.uninstall, vault.tombstone TO interlock_vault;
"""


def upgrade() -> None:
    for part in (_TABLES, _ROW_SECURITY, _FUNCTIONS, _GRANTS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.list_open_uninstalls(interval, bigint);
    DROP FUNCTION vault.find_meant(text, text, text, text);
    DROP TABLE vault.tombstone, vault.uninstall;
    """)
