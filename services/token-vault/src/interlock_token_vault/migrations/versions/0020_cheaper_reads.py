"""Reading many tokens at once costs the database less.

Revision ID: 0020
"""

from alembic import op

revision = "0020"
down_revision = "0014"
branch_labels = None
depends_on = None

# One look-up by index for each wish. A planner that joins takes the tables
# whole while they are small, and plans anew for every batch; so the plans are
# kept, whatever their parameters, and are those of large tables. What is frozen
# is read once for all. An array of one value, beside a longer one, is that value
# for every wish.
_LOOK_UPS = """
CREATE OR REPLACE FUNCTION vault.find_active(
    p_client_ids text[], p_app_ids text[], p_enterprise_ids text[], p_team_ids text[]
) RETURNS TABLE (ordinal bigint, installation_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT w.ordinal, i.installation_id
    FROM unnest(p_client_ids, p_app_ids, p_enterprise_ids, p_team_ids)
        WITH ORDINALITY AS w (client_id, app_id, enterprise_id, team_id, ordinal)
    CROSS JOIN LATERAL (
        SELECT i.installation_id FROM vault.installation i
        WHERE i.client_id = coalesce(w.client_id, p_client_ids[1])
            AND i.app_id = coalesce(w.app_id, p_app_ids[1])
            AND i.enterprise_id = coalesce(w.enterprise_id, p_enterprise_ids[1])
            AND i.team_id = coalesce(w.team_id, p_team_ids[1])
            AND i.state = 'active'
        LIMIT 1
    ) i
$$;

CREATE OR REPLACE FUNCTION vault.load_tokens(
    p_client_ids text[], p_app_ids text[], p_enterprise_ids text[], p_team_ids text[],
    p_user_ids text[], p_is_new boolean[]
) RETURNS TABLE (
    ordinal bigint, installation_id uuid, client_id text, app_id text, enterprise_id text,
    team_id text, tenant_id text, state text, generation bigint, name text, bot_user_id text,
    bot_scopes text[], installed_at timestamptz,
    token_kind text, token_user_id text, token_generation bigint, dek_id uuid, sealed bytea,
    ref text, expires_at timestamptz,
    kek_version text, wrapped bytea, audited_generation bigint, stopped text
)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_ordinals bigint[];
    v_ids uuid[];
BEGIN
    SELECT array_agg(f.ordinal), array_agg(f.installation_id) INTO v_ordinals, v_ids
    FROM vault.find_active(p_client_ids, p_app_ids, p_enterprise_ids, p_team_ids) f;
    PERFORM set_config('app.installations', coalesce(v_ids, '{}'::uuid[])::text, true);
    RETURN QUERY
    WITH stops AS MATERIALIZED (
        SELECT z.installation_id, z.kind FROM vault.freeze z
        WHERE z.installation_id = ANY (v_ids || '00000000-0000-0000-0000-000000000000'::uuid)
    )
    SELECT f.ordinal, i.installation_id, i.client_id, i.app_id, i.enterprise_id,
        i.team_id, i.tenant_id, i.state, i.generation, i.name, i.bot_user_id,
        i.bot_scopes, i.installed_at,
        t.kind, t.user_id, t.generation, t.dek_id, t.sealed, t.ref, t.expires_at,
        d.kek_version, d.wrapped,
        CASE WHEN coalesce(p_is_new[f.ordinal], p_is_new[1])
            THEN vault.audited_generation(i.installation_id)
        END,
        (
            SELECT min(z.kind) FROM stops z
            WHERE z.installation_id = f.installation_id
                OR z.installation_id = '00000000-0000-0000-0000-000000000000'
        )
    FROM unnest(v_ordinals, v_ids) AS f (ordinal, installation_id)
    CROSS JOIN LATERAL (
        SELECT * FROM vault.installation i WHERE i.installation_id = f.installation_id LIMIT 1
    ) i
    LEFT JOIN LATERAL (
        SELECT * FROM vault.sealed_token t
        WHERE t.installation_id = f.installation_id
            AND t.kind = CASE
                WHEN coalesce(p_user_ids[f.ordinal], p_user_ids[1]) = '' THEN 'bot' ELSE 'user'
            END
            AND t.slot = 'access' AND t.user_id = coalesce(p_user_ids[f.ordinal], p_user_ids[1])
        LIMIT 1
    ) t ON true
    LEFT JOIN LATERAL (
        SELECT * FROM vault.wrapped_dek d
        WHERE d.dek_id = t.dek_id AND d.installation_id = f.installation_id
        LIMIT 1
    ) d ON true;
END
$$;
"""

# The key serves the order by time as well: one index less to write a record into.
_ONE_INDEX_LESS = """
DROP INDEX vault.audit_event_newest;
ALTER TABLE vault.audit_event
    DROP CONSTRAINT audit_event_pkey, ADD PRIMARY KEY (at, chain_id, seq);
"""

_DOWN = """
ALTER TABLE vault.audit_event
    DROP CONSTRAINT audit_event_pkey, ADD PRIMARY KEY (chain_id, seq, at);
CREATE INDEX audit_event_newest ON vault.audit_event (at DESC, chain_id DESC, seq DESC);

CREATE OR REPLACE FUNCTION vault.find_active(
    p_client_ids text[], p_app_ids text[], p_enterprise_ids text[], p_team_ids text[]
) RETURNS TABLE (ordinal bigint, installation_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT w.ordinal, i.installation_id
    FROM unnest(p_client_ids, p_app_ids, p_enterprise_ids, p_team_ids)
        WITH ORDINALITY AS w (client_id, app_id, enterprise_id, team_id, ordinal)
    JOIN vault.installation i
        ON i.client_id = w.client_id AND i.app_id = w.app_id
        AND i.enterprise_id = w.enterprise_id AND i.team_id = w.team_id
    WHERE i.state = 'active'
$$;

CREATE OR REPLACE FUNCTION vault.load_tokens(
    p_client_ids text[], p_app_ids text[], p_enterprise_ids text[], p_team_ids text[],
    p_user_ids text[], p_is_new boolean[]
) RETURNS TABLE (
    ordinal bigint, installation_id uuid, client_id text, app_id text, enterprise_id text,
    team_id text, tenant_id text, state text, generation bigint, name text, bot_user_id text,
    bot_scopes text[], installed_at timestamptz,
    token_kind text, token_user_id text, token_generation bigint, dek_id uuid, sealed bytea,
    ref text, expires_at timestamptz,
    kek_version text, wrapped bytea, audited_generation bigint, stopped text
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_ordinals bigint[];
    v_ids uuid[];
BEGIN
    SELECT array_agg(f.ordinal), array_agg(f.installation_id) INTO v_ordinals, v_ids
    FROM vault.find_active(p_client_ids, p_app_ids, p_enterprise_ids, p_team_ids) f;
    PERFORM set_config('app.installations', coalesce(v_ids, '{}'::uuid[])::text, true);
    RETURN QUERY
    SELECT f.ordinal, i.installation_id, i.client_id, i.app_id, i.enterprise_id,
        i.team_id, i.tenant_id, i.state, i.generation, i.name, i.bot_user_id,
        i.bot_scopes, i.installed_at,
        t.kind, t.user_id, t.generation, t.dek_id, t.sealed, t.ref, t.expires_at,
        d.kek_version, d.wrapped,
        CASE WHEN p_is_new[f.ordinal] THEN vault.audited_generation(i.installation_id) END,
        (
            SELECT min(z.kind) FROM vault.freeze z
            WHERE z.installation_id = i.installation_id
                OR z.installation_id = '00000000-0000-0000-0000-000000000000'
        )
    FROM unnest(v_ordinals, v_ids) AS f (ordinal, installation_id)
    JOIN vault.installation i ON i.installation_id = f.installation_id
    LEFT JOIN vault.sealed_token t
        ON t.installation_id = i.installation_id
        AND t.kind = CASE WHEN p_user_ids[f.ordinal] = '' THEN 'bot' ELSE 'user' END
        AND t.slot = 'access' AND t.user_id = p_user_ids[f.ordinal]
    LEFT JOIN vault.wrapped_dek d
        ON d.dek_id = t.dek_id AND d.installation_id = i.installation_id;
END
$$;
"""


def upgrade() -> None:
    op.execute(_LOOK_UPS)
    op.execute(_ONE_INDEX_LESS)


def downgrade() -> None:
    op.execute(_DOWN)
