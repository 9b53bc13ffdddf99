"""Whether an administrator was told that a workspace needs a reinstall.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    ALTER TABLE identity.work_app_slack_workspaces ADD COLUMN notice_taken_at timestamptz;
    CREATE INDEX work_app_slack_workspaces_notice_idx
        ON identity.work_app_slack_workspaces (updated_at)
        WHERE status = 'needs_reinstall' AND notice_taken_at IS NULL;
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX identity.work_app_slack_workspaces_notice_idx;
    ALTER TABLE identity.work_app_slack_workspaces DROP COLUMN notice_taken_at;
    """)
