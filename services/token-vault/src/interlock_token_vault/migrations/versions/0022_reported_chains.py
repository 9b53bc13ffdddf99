"""Which chains identity knows to need a reinstall.

Revision ID: 0022
"""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    -- Of the chain, whatever generation the row is about.
    ALTER TABLE vault.rotation ADD COLUMN is_reported boolean NOT NULL DEFAULT false;
    CREATE INDEX rotation_reporting ON vault.rotation (installation_id)
        WHERE is_reported OR standing = 'needs_reinstall';

    CREATE FUNCTION vault.list_unreported_chains(p_client_id text, p_limit bigint)
    RETURNS TABLE (installation_id uuid, user_id text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT c.installation_id, c.user_id FROM vault.rotation s
        JOIN vault.chain c ON c.installation_id = s.installation_id AND c.kind = s.kind
            AND c.user_id = s.user_id
        WHERE (s.is_reported OR s.standing = 'needs_reinstall') AND s.kind = 'bot'
            AND c.client_id = p_client_id
            AND s.is_reported <> (c.standing = 'needs_reinstall')
        ORDER BY c.installation_id
        LIMIT p_limit
    $$;
    REVOKE ALL ON FUNCTION vault.list_unreported_chains(text, bigint) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION vault.list_unreported_chains(text, bigint) TO interlock_vault;
    """)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.list_unreported_chains(text, bigint);
    DROP INDEX vault.rotation_reporting;
    ALTER TABLE vault.rotation DROP COLUMN is_reported;
    """)
