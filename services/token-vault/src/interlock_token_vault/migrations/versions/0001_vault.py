"""Installations, sealed tokens, wrapped keys, install attempts, the audit log.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The vault's own id of an installation stays over reinstalls; (client, app,
# enterprise, team) is how Slack names it. Absent ids are '', never NULL: an
# empty id equals only an empty id.
_INSTALLATION = """
CREATE TABLE vault.installation (
    installation_id uuid PRIMARY KEY,
    client_id text NOT NULL CHECK (client_id <> ''),
    app_id text NOT NULL CHECK (app_id ~ '^A[A-Z0-9]{2,20}$'),
    enterprise_id text NOT NULL CHECK (enterprise_id ~ '^(E[A-Z0-9]{2,20})?$'),
    team_id text NOT NULL CHECK (team_id ~ '^(T[A-Z0-9]{2,20})?$'),
    tenant_id text NOT NULL CHECK (tenant_id <> ''),
    state text NOT NULL CHECK (state IN ('pending', 'active')),
    generation bigint NOT NULL CHECK (generation >= 1),
    name text NOT NULL,
    bot_user_id text NOT NULL CHECK (bot_user_id ~ '^[UW][A-Z0-9]{2,20}$'),
    bot_scopes text[] NOT NULL,
    installed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (enterprise_id <> '' OR team_id <> ''),
    CHECK ((state = 'active') = (installed_at IS NOT NULL))
);
-- A workspace answers with one token, or with none. Pending installs of other
-- tenants may stand beside it until identity has decided.
CREATE UNIQUE INDEX installation_one_active
    ON vault.installation (client_id, app_id, enterprise_id, team_id) WHERE state = 'active';

CREATE FUNCTION vault.refuse_older_generation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.generation < OLD.generation THEN
        RAISE EXCEPTION 'a generation only rises' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER installation_generation BEFORE UPDATE ON vault.installation
    FOR EACH ROW EXECUTE FUNCTION vault.refuse_older_generation();
"""

# The first byte of a sealed token is its version; a plaintext token begins
# with a letter and cannot be stored.
_SEALED = """
CREATE TABLE vault.sealed_token (
    installation_id uuid NOT NULL REFERENCES vault.installation ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('bot', 'user', 'webhook')),
    slot text NOT NULL CHECK (slot IN ('access', 'refresh')),
    user_id text NOT NULL CHECK (user_id ~ '^([UW][A-Z0-9]{2,20})?$'),
    generation bigint NOT NULL CHECK (generation >= 1),
    dek_id uuid NOT NULL,
    sealed bytea NOT NULL CHECK (octet_length(sealed) > 93 AND get_byte(sealed, 0) < 32),
    ref text NOT NULL CHECK (ref ~ '^[0-9a-f]{32}$'),
    expires_at timestamptz,
    PRIMARY KEY (installation_id, kind, slot, user_id),
    CHECK ((kind = 'user') = (user_id <> ''))
);
CREATE INDEX sealed_token_ref ON vault.sealed_token (ref);

-- No reference to an installation: wrapped keys may move to a database of
-- their own, whose backups are kept for a shorter time.
CREATE TABLE vault.wrapped_dek (
    dek_id uuid PRIMARY KEY,
    installation_id uuid NOT NULL,
    kek_version text NOT NULL CHECK (kek_version <> ''),
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) > 32),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX wrapped_dek_installation ON vault.wrapped_dek (installation_id);
"""

# Written before anything happens at Slack. The grant is kept for the claim and
# erased when the attempt ends; it lives 15 minutes, and identity takes it from
# the vault's certificate only.
_ATTEMPT = """
CREATE TABLE vault.install_attempt (
    grant_id text PRIMARY KEY CHECK (grant_id <> ''),
    grant_token text,
    tenant_id text NOT NULL CHECK (tenant_id <> ''),
    user_id text NOT NULL,
    state_sha256 text NOT NULL,
    source text NOT NULL CHECK (source IN ('direct', 'nango')),
    grant_expires_at timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN ('started', 'exchanging', 'pending', 'done', 'dropped')),
    code_ref text NOT NULL DEFAULT '',
    installation_id uuid,
    is_reinstall boolean NOT NULL DEFAULT false,
    extra_scopes text[] NOT NULL DEFAULT '{}',
    outcome text NOT NULL DEFAULT '',
    lease uuid,
    lease_until timestamptz,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    CHECK ((state IN ('done', 'dropped')) = (ended_at IS NOT NULL)),
    CHECK ((grant_token IS NULL) = (ended_at IS NOT NULL)),
    CHECK (state NOT IN ('exchanging', 'pending', 'done') OR installation_id IS NOT NULL),
    CHECK ((state = 'dropped') = (outcome <> ''))
);
CREATE INDEX install_attempt_open ON vault.install_attempt (started_at) WHERE ended_at IS NULL;
CREATE INDEX install_attempt_ended ON vault.install_attempt (ended_at) WHERE ended_at IS NOT NULL;
"""

# Partitioned by month, so that old months can be exported and dropped whole.
# The default partition takes what no month was made for.
_AUDIT = """
CREATE TABLE vault.audit_event (
    chain_id uuid NOT NULL,
    seq bigint NOT NULL CHECK (seq >= 1),
    at timestamptz NOT NULL,
    action text NOT NULL,
    actor text NOT NULL,
    rpc text NOT NULL,
    purpose text NOT NULL,
    grant_id text NOT NULL,
    subject text NOT NULL,
    request_id text NOT NULL,
    trace_id text NOT NULL,
    outcome text NOT NULL,
    installation_id uuid,
    enterprise_id text NOT NULL,
    team_id text NOT NULL,
    token_kind text NOT NULL,
    token_ref text NOT NULL,
    generation bigint NOT NULL,
    kek_version text NOT NULL,
    dek_source text NOT NULL,
    count bigint NOT NULL CHECK (count >= 1),
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (chain_id, seq, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_event_newest ON vault.audit_event (at DESC, chain_id DESC, seq DESC);
CREATE INDEX audit_event_installation
    ON vault.audit_event (installation_id, at DESC, chain_id DESC, seq DESC)
    WHERE installation_id IS NOT NULL;
-- What raised a generation: a row put back from an older state shows against it.
CREATE INDEX audit_event_generation ON vault.audit_event (installation_id, generation DESC)
    WHERE action IN ('install.activated', 'token.rotated');

CREATE TABLE vault.audit_event_default PARTITION OF vault.audit_event DEFAULT;
DO $$
DECLARE
    month timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
BEGIN
    PERFORM set_config('TimeZone', 'UTC', true);
    FOR ahead IN 0..24 LOOP
        EXECUTE format(
            'CREATE TABLE vault.%I PARTITION OF vault.audit_event FOR VALUES FROM (%L) TO (%L)',
            'audit_event_' || to_char(month, 'YYYY_MM'),
            month,
            month + interval '1 month'
        );
        month := month + interval '1 month';
    END LOOP;
END
$$;
"""

# The owner too is bound by the policies; what it may look up across
# installations is what the two lookup functions return: ids, and yes or no.
_ROW_SECURITY = """
ALTER TABLE vault.installation ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.sealed_token ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.wrapped_dek ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.audit_event ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE FUNCTION vault.named_installations() RETURNS uuid[] LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(nullif(current_setting('app.installations', true), ''), '{}')::uuid[]
$$;

CREATE POLICY named ON vault.installation TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY named ON vault.sealed_token TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY named ON vault.wrapped_dek TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));

CREATE POLICY append ON vault.audit_event FOR INSERT TO interlock_vault WITH CHECK (true);
CREATE POLICY named ON vault.audit_event FOR SELECT TO interlock_vault
    USING (
        installation_id = ANY ((SELECT vault.named_installations())::uuid[])
        OR (SELECT current_setting('app.audit', true)) = 'all'
    );

CREATE POLICY lookup ON vault.installation FOR SELECT TO interlock_vault_owner USING (true);
CREATE POLICY lookup ON vault.sealed_token FOR SELECT TO interlock_vault_owner USING (true);
CREATE POLICY scan ON vault.installation FOR SELECT TO interlock_vault_scanner USING (true);
CREATE POLICY scan ON vault.wrapped_dek FOR SELECT TO interlock_vault_scanner USING (true);
"""

_FUNCTIONS = """
-- Which installations answer for these names. Ids only.
CREATE FUNCTION vault.find_active(
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

-- Whether another installation holds the token of this fingerprint.
CREATE FUNCTION vault.is_ref_stored(p_ref text, p_except uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT EXISTS (
        SELECT FROM vault.sealed_token t
        WHERE t.ref = p_ref AND t.installation_id IS DISTINCT FROM p_except
    )
$$;

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
"""

_GRANTS = """
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vault FROM PUBLIC;
GRANT USAGE ON SCHEMA vault TO interlock_vault, interlock_vault_scanner;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON vault.installation, vault.sealed_token, vault.wrapped_dek, vault.install_attempt
    TO interlock_vault;
GRANT SELECT, INSERT ON vault.audit_event TO interlock_vault;
GRANT EXECUTE ON FUNCTION vault.named_installations(), vault.is_ref_stored(text, uuid),
    vault.find_active(text[], text[], text[], text[]),
    vault.load_bots(text[], text[], text[], text[], boolean[])
    TO interlock_vault;
GRANT SELECT (installation_id, state) ON vault.installation TO interlock_vault_scanner;
GRANT SELECT (dek_id, installation_id, kek_version) ON vault.wrapped_dek
    TO interlock_vault_scanner;
"""


def upgrade() -> None:
    for part in (_INSTALLATION, _SEALED, _ATTEMPT, _AUDIT, _ROW_SECURITY, _FUNCTIONS, _GRANTS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.load_bots(text[], text[], text[], text[], boolean[]);
    DROP FUNCTION vault.is_ref_stored(text, uuid);
    DROP FUNCTION vault.find_active(text[], text[], text[], text[]);
    DROP TABLE vault.audit_event, vault.install_attempt, vault.wrapped_dek,
        vault.sealed_token, vault.installation;
    DROP FUNCTION vault.refuse_older_generation();
    DROP FUNCTION vault.named_installations();
    """)
