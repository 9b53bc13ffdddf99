"""Chains whose tokens are frozen or on hold are not refreshed.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_LIST_DUE = """
CREATE OR REPLACE FUNCTION vault.list_due_chains(
    p_client_id text, p_soft interval, p_jitter_s bigint, p_pause interval, p_limit bigint
) RETURNS TABLE (installation_id uuid, user_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT c.installation_id, c.user_id FROM vault.chain c
    WHERE c.client_id = p_client_id AND c.is_rotating AND (
        EXISTS (
            SELECT FROM vault.candidate_token k
            WHERE k.installation_id = c.installation_id AND k.kind = c.kind
                AND k.user_id = c.user_id AND k.lineage = c.lineage AND NOT k.is_probed
        )
        OR (
            c.standing IN ('sent', 'doubted')
            OR c.expires_at <= clock_timestamp() + p_soft
                AND c.expires_at <= clock_timestamp() + p_soft
                    - vault.rotation_jitter(c.installation_id, p_jitter_s)
        )
            AND c.standing <> 'needs_reinstall'
            AND coalesce(c.lease_until <= clock_timestamp(), true)
            AND coalesce(c.not_before <= clock_timestamp(), true)
            AND NOT vault.is_reinstall_pending(c.installation_id, p_pause)
    ){unstopped}
    ORDER BY c.expires_at, c.installation_id, c.user_id
    LIMIT p_limit
$$;
"""

_UNSTOPPED = """
    AND NOT EXISTS (
        SELECT FROM vault.freeze z
        WHERE z.installation_id = c.installation_id
            OR z.installation_id = '00000000-0000-0000-0000-000000000000'
    )"""


def upgrade() -> None:
    op.execute(_LIST_DUE.replace("{unstopped}", _UNSTOPPED))


def downgrade() -> None:
    op.execute(_LIST_DUE.replace("{unstopped}", ""))
