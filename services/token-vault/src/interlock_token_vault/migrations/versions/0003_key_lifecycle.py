"""What the life of keys asks of the database.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    -- An operator names a workspace as Slack does. Ids only.
    CREATE FUNCTION vault.find_by_place(
        p_client_id text, p_enterprise_id text, p_team_id text
    ) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT i.installation_id FROM vault.installation i
        WHERE i.client_id = p_client_id AND i.enterprise_id = p_enterprise_id
            AND i.team_id = p_team_id AND i.state = 'active'
    $$;
    REVOKE ALL ON FUNCTION vault.find_by_place(text, text, text) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION vault.find_by_place(text, text, text) TO interlock_vault;
    -- A re-wrap walks by id through what another version wraps.
    CREATE INDEX wrapped_dek_version ON vault.wrapped_dek (kek_version, dek_id);
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX vault.wrapped_dek_version;
    DROP FUNCTION vault.find_by_place(text, text, text);
    """)
