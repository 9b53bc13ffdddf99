"""Freeze and hold, users' tokens in a read, audit partitions ahead of time.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# `frozen` is an operator's doing; `held` is the vault's own, after a restore.
# The id of zeros stands for the whole vault.
_FREEZE = """
CREATE TABLE vault.freeze (
    installation_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('frozen', 'held')),
    note text NOT NULL CHECK (note <> ''),
    set_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (installation_id, kind)
);
GRANT SELECT, INSERT, DELETE ON vault.freeze TO interlock_vault;
GRANT SELECT (installation_id, kind) ON vault.freeze TO interlock_vault_scanner;
"""

# Names the installations for this transaction and returns the tokens asked
# for, with the rights of the caller: the bot's for an empty user, else that
# user's own. `p_is_new` asks for what the audit log knows. What is frozen is
# read here, in the transaction that also writes the record.
_LOAD_TOKENS = """
-- The highest generation on record. A function of its own, because a statement
-- that names the log opens all its months, whether or not it looks into them.
CREATE FUNCTION vault.audited_generation(p_installation_id uuid) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT max(a.generation) FROM vault.audit_event a
        WHERE a.installation_id = p_installation_id
            AND a.action IN ('install.activated', 'token.rotated')
    );
END
$$;
REVOKE ALL ON FUNCTION vault.audited_generation(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.audited_generation(uuid) TO interlock_vault;

CREATE FUNCTION vault.load_tokens(
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
REVOKE ALL ON FUNCTION
    vault.load_tokens(text[], text[], text[], text[], text[], boolean[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    vault.load_tokens(text[], text[], text[], text[], text[], boolean[]) TO interlock_vault;
DROP FUNCTION vault.load_bots(text[], text[], text[], text[], boolean[]);
"""

# The serving role may have a month made, and decides nothing about it.
_PARTITIONS = """
CREATE FUNCTION vault.make_audit_partitions(p_months_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET "TimeZone" = 'UTC' AS $$
DECLARE
    v_month timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
    v_name text;
    v_made integer := 0;
BEGIN
    -- Replicas wake up at the same time.
    PERFORM pg_advisory_xact_lock(hashtext('vault.audit_event partitions'));
    FOR ahead IN 0..least(greatest(p_months_ahead, 0), 24) LOOP
        v_name := 'audit_event_' || to_char(v_month, 'YYYY_MM');
        IF to_regclass('vault.' || v_name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE vault.%I PARTITION OF vault.audit_event FOR VALUES FROM (%L) TO (%L)',
                v_name, v_month, v_month + interval '1 month'
            );
            v_made := v_made + 1;
        END IF;
        v_month := v_month + interval '1 month';
    END LOOP;
    RETURN v_made;
END
$$;
REVOKE ALL ON FUNCTION vault.make_audit_partitions(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.make_audit_partitions(integer) TO interlock_vault;
"""

# What an operator may ask about a tenant's log: ids only, also of what is gone.
_TENANT = """
CREATE FUNCTION vault.installations_of_tenant(p_tenant_id text) RETURNS uuid[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(array_agg(i.installation_id), '{}')
    FROM vault.installation i WHERE i.tenant_id = p_tenant_id
$$;
REVOKE ALL ON FUNCTION vault.installations_of_tenant(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.installations_of_tenant(text) TO interlock_vault;
CREATE INDEX installation_tenant ON vault.installation (tenant_id);
"""

_LOAD_BOTS_DOWN = """
-- Names the installations for this transaction and returns their bots, with
-- the rights of the caller. `p_is_new` asks for what the audit log knows.
CREATE FUNCTION vault.load_bots(
    p_client_ids text[], p_app_ids text[], p_enterprise_ids text[], p_team_ids text[],
    p_is_new boolean[]
) RETURNS TABLE (
    ordinal bigint, installation_id uuid, client_id text, app_id text, enterprise_id text,
    team_id text, tenant_id text, state text, generation bigint, name text, bot_user_id text,
    bot_scopes text[], installed_at timestamptz,
    token_generation bigint, dek_id uuid, sealed bytea, ref text, expires_at timestamptz,
    kek_version text, wrapped bytea, audited_generation bigint
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
        t.generation, t.dek_id, t.sealed, t.ref, t.expires_at,
        d.kek_version, d.wrapped,
        CASE WHEN p_is_new[f.ordinal] THEN (
            SELECT max(a.generation) FROM vault.audit_event a
            WHERE a.installation_id = i.installation_id
                AND a.action IN ('install.activated', 'token.rotated')
        ) END
    FROM unnest(v_ordinals, v_ids) AS f (ordinal, installation_id)
    JOIN vault.installation i ON i.installation_id = f.installation_id
    LEFT JOIN vault.sealed_token t
        ON t.installation_id = i.installation_id
        AND t.kind = 'bot' AND t.slot = 'access' AND t.user_id = ''
    LEFT JOIN vault.wrapped_dek d
        ON d.dek_id = t.dek_id AND d.installation_id = i.installation_id;
END
$$;
REVOKE ALL ON FUNCTION vault.load_bots(text[], text[], text[], text[], boolean[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.load_bots(text[], text[], text[], text[], boolean[])
    TO interlock_vault;
"""


def upgrade() -> None:
    for part in (_FREEZE, _LOAD_TOKENS, _PARTITIONS, _TENANT):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
    DROP INDEX vault.installation_tenant;
    DROP FUNCTION vault.installations_of_tenant(text);
    DROP FUNCTION vault.make_audit_partitions(integer);
    DROP FUNCTION vault.load_tokens(text[], text[], text[], text[], text[], boolean[]);
    DROP FUNCTION vault.audited_generation(uuid);
    DROP TABLE vault.freeze;
    """)
    op.execute(_LOAD_BOTS_DOWN)
