"""What identity knows of the scopes that installations lack or have too many of.

Revision ID: 0024
"""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    -- About the install of that moment: after another one identity knows nothing.
    CREATE TABLE vault.told_scopes (
        installation_id uuid PRIMARY KEY REFERENCES vault.installation ON DELETE CASCADE,
        installed_at timestamptz NOT NULL,
        missing text[] NOT NULL,
        extra text[] NOT NULL
    );
    ALTER TABLE vault.told_scopes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY named ON vault.told_scopes TO interlock_vault
        USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
    CREATE POLICY lookup ON vault.told_scopes FOR SELECT TO interlock_vault_owner USING (true);

    CREATE FUNCTION vault.scope_drift(p_client_id text, p_asked text[])
    RETURNS TABLE (
        installation_id uuid, app_id text, enterprise_id text, team_id text,
        installed_at timestamptz, missing text[], extra text[]
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT i.installation_id, i.app_id, i.enterprise_id, i.team_id, i.installed_at,
            ARRAY(SELECT unnest(p_asked) EXCEPT SELECT unnest(i.bot_scopes) ORDER BY 1),
            ARRAY(SELECT unnest(i.bot_scopes) EXCEPT SELECT unnest(p_asked) ORDER BY 1)
        FROM vault.installation i
        WHERE i.client_id = p_client_id AND i.state = 'active'
    $$;

    CREATE FUNCTION vault.list_untold_scopes(p_client_id text, p_asked text[], p_limit bigint)
    RETURNS TABLE (
        installation_id uuid, app_id text, enterprise_id text, team_id text,
        installed_at timestamptz, missing text[], extra text[]
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT d.* FROM vault.scope_drift(p_client_id, p_asked) d
        LEFT JOIN vault.told_scopes t USING (installation_id)
        WHERE (t.installed_at, t.missing, t.extra)
            IS DISTINCT FROM (d.installed_at, d.missing, d.extra)
        ORDER BY d.installation_id
        LIMIT p_limit
    $$;

    CREATE FUNCTION vault.count_scope_drift(
        p_client_id text, p_asked text[], OUT missing bigint, OUT extra bigint
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT count(*) FILTER (WHERE d.missing <> '{}'), count(*) FILTER (WHERE d.extra <> '{}')
        FROM vault.scope_drift(p_client_id, p_asked) d
    $$;

    REVOKE ALL ON FUNCTION vault.scope_drift(text, text[]),
        vault.list_untold_scopes(text, text[], bigint), vault.count_scope_drift(text, text[])
        FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION vault.list_untold_scopes(text, text[], bigint),
        vault.count_scope_drift(text, text[]) TO interlock_vault;
    GRANT SELECT, INSERT, UPDATE ON vault.told_scopes TO interlock_vault;
    """)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.count_scope_drift(text, text[]);
    DROP FUNCTION vault.list_untold_scopes(text, text[], bigint);
    DROP FUNCTION vault.scope_drift(text, text[]);
    DROP TABLE vault.told_scopes;
    """)
