"""Who allowed an install, to be told when it came to its end.

Revision ID: 0023
"""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL where it is not known, as in a backup of before.
    op.execute("""
    ALTER TABLE vault.installation
        ADD COLUMN installed_by text CHECK (installed_by ~ '^[UW][A-Z0-9]{2,20}$');
    """)


def downgrade() -> None:
    op.execute("ALTER TABLE vault.installation DROP COLUMN installed_by;")
