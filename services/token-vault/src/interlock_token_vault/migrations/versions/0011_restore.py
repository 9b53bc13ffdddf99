"""What a backup walks and a restore holds.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE POLICY scan ON vault.app_place FOR SELECT TO interlock_vault_scanner USING (true);
    GRANT SELECT (installation_id) ON vault.app_place TO interlock_vault_scanner;
    -- Until when an operator knows of records that are lost.
    CREATE TABLE vault.confirmed_loss (confirmed_at timestamptz PRIMARY KEY);
    GRANT SELECT, INSERT ON vault.confirmed_loss TO interlock_vault;
    """)


def downgrade() -> None:
    op.execute("""
    DROP TABLE vault.confirmed_loss;
    REVOKE SELECT (installation_id) ON vault.app_place FROM interlock_vault_scanner;
    DROP POLICY scan ON vault.app_place;
    """)
