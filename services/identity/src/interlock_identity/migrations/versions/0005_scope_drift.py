"""Which scopes a workspace's install lacks, and which it has too many of.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    ALTER TABLE identity.work_app_slack_workspaces
        ADD COLUMN missing_scopes text[] NOT NULL DEFAULT '{}',
        ADD COLUMN extra_scopes text[] NOT NULL DEFAULT '{}';
    """)


def downgrade() -> None:
    op.execute("""
    ALTER TABLE identity.work_app_slack_workspaces
        DROP COLUMN missing_scopes, DROP COLUMN extra_scopes;
    """)
