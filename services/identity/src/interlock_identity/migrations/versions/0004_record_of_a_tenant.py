"""A tenant's own part of the record is found without reading the others'.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Tokens are nearly all of the record and are written all the time; whoever seeks anything
    # else seeks among few, and the index for that costs a token nothing.
    op.execute("""
    CREATE INDEX audit_events_tenant_idx ON identity.audit_events (tenant_id, id);
    CREATE INDEX audit_events_rare_idx ON identity.audit_events (tenant_id, event, id)
        WHERE event <> 'token.issued';
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX identity.audit_events_rare_idx;
    DROP INDEX identity.audit_events_tenant_idx;
    """)
