"""A sealed connection in the place of a token: somebody else keeps the token.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    ALTER TABLE vault.sealed_token DROP CONSTRAINT sealed_token_slot_check;
    ALTER TABLE vault.sealed_token ADD CONSTRAINT sealed_token_slot_check
        CHECK (slot IN ('access', 'refresh', 'connection'));
    CREATE INDEX install_attempt_connecting ON vault.install_attempt (tenant_id, started_at)
        WHERE ended_at IS NULL AND source = 'nango';
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX vault.install_attempt_connecting;
    DELETE FROM vault.sealed_token WHERE slot = 'connection';
    ALTER TABLE vault.sealed_token DROP CONSTRAINT sealed_token_slot_check;
    ALTER TABLE vault.sealed_token ADD CONSTRAINT sealed_token_slot_check
        CHECK (slot IN ('access', 'refresh'));
    """)
