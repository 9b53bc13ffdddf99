"""Rotation: the state of each chain of tokens, and the answers kept beside it.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0004"
branch_labels = None
depends_on = None

# One row a chain, made when it is first exchanged. It is about the generation
# that it names: an install that came since makes it a row about the past.
# Epochs are numbered over all chains, so that no lease can be taken for another.
_TABLES = """
CREATE SEQUENCE vault.rotation_epoch;

CREATE TABLE vault.rotation (
    installation_id uuid NOT NULL REFERENCES vault.installation ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('bot', 'user')),
    user_id text NOT NULL,
    generation bigint NOT NULL CHECK (generation >= 1),
    lineage bigint NOT NULL CHECK (lineage BETWEEN 1 AND generation),
    parent_ref text NOT NULL,
    standing text NOT NULL CHECK (standing IN ('idle', 'sent', 'doubted', 'needs_reinstall')),
    sent_ref text NOT NULL,
    epoch bigint NOT NULL,
    lease_until timestamptz,
    not_before timestamptz,
    failures integer NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (installation_id, kind, user_id),
    CHECK ((kind = 'user') = (user_id <> ''))
);
CREATE INDEX rotation_ended ON vault.rotation (installation_id)
    WHERE standing = 'needs_reinstall';

CREATE TABLE vault.candidate_token (
    installation_id uuid NOT NULL REFERENCES vault.installation ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('bot', 'user')),
    user_id text NOT NULL,
    lineage bigint NOT NULL,
    generation bigint NOT NULL CHECK (generation >= 1),
    dek_id uuid NOT NULL,
    access_sealed bytea NOT NULL
        CHECK (octet_length(access_sealed) > 93 AND get_byte(access_sealed, 0) < 32),
    access_ref text NOT NULL CHECK (access_ref ~ '^[0-9a-f]{32}$'),
    expires_at timestamptz NOT NULL,
    refresh_sealed bytea NOT NULL
        CHECK (octet_length(refresh_sealed) > 93 AND get_byte(refresh_sealed, 0) < 32),
    refresh_ref text NOT NULL CHECK (refresh_ref ~ '^[0-9a-f]{32}$'),
    is_probed boolean NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (installation_id, kind, user_id, refresh_ref)
);
CREATE INDEX candidate_token_unprobed ON vault.candidate_token (installation_id)
    WHERE NOT is_probed;

-- The scheduler looks for what ends first.
CREATE INDEX sealed_token_ending ON vault.sealed_token (expires_at)
    WHERE slot = 'access' AND expires_at IS NOT NULL;
"""

_ROW_SECURITY = """
ALTER TABLE vault.rotation ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.candidate_token ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY named ON vault.rotation TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY named ON vault.candidate_token TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY lookup ON vault.rotation FOR SELECT TO interlock_vault_owner USING (true);
CREATE POLICY lookup ON vault.candidate_token FOR SELECT TO interlock_vault_owner USING (true);
"""

# What walks all chains sees ids only.
_FUNCTIONS = """
-- Every chain of an active installation, with what its row says while it is current.
CREATE VIEW vault.chain WITH (security_invoker = true) AS
SELECT i.installation_id, i.client_id, a.kind, a.user_id, a.expires_at,
    EXISTS (
        SELECT FROM vault.sealed_token r
        WHERE r.installation_id = a.installation_id AND r.kind = a.kind
            AND r.user_id = a.user_id AND r.slot = 'refresh'
    ) AS is_rotating,
    coalesce(s.standing, CASE p.standing WHEN 'sent' THEN 'doubted' END, 'idle') AS standing,
    coalesce(s.epoch, p.epoch, 0) AS epoch, coalesce(s.lease_until, p.lease_until) AS lease_until,
    s.not_before, coalesce(s.lineage, a.generation) AS lineage,
    coalesce(s.parent_ref, '') AS parent_ref, coalesce(s.failures, 0) AS failures
FROM vault.installation i
JOIN vault.sealed_token a ON a.installation_id = i.installation_id AND a.slot = 'access'
    AND a.kind IN ('bot', 'user')
LEFT JOIN vault.rotation s ON s.installation_id = a.installation_id AND s.kind = a.kind
    AND s.user_id = a.user_id AND s.generation = a.generation
-- An install came while its chain was exchanged. The holder may still ask, and each
-- new pair ends the oldest access token: the new pair is in doubt.
LEFT JOIN vault.rotation p ON p.installation_id = a.installation_id AND p.kind = a.kind
    AND p.user_id = a.user_id AND p.generation <> a.generation AND p.standing = 'sent'
WHERE i.state = 'active';

CREATE FUNCTION vault.is_reinstall_pending(p_installation_id uuid, p_pause interval)
RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT EXISTS (
        SELECT FROM vault.installation i
        JOIN vault.installation p ON p.client_id = i.client_id AND p.app_id = i.app_id
            AND p.enterprise_id = i.enterprise_id AND p.team_id = i.team_id
            AND p.tenant_id = i.tenant_id
        WHERE i.installation_id = p_installation_id AND p.state = 'pending'
            AND p.created_at > clock_timestamp() - p_pause
    )
$$;

CREATE FUNCTION vault.list_due_chains(
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
    )
    ORDER BY c.expires_at, c.installation_id, c.user_id
    LIMIT p_limit
$$;

CREATE FUNCTION vault.list_lasting_chains(
    p_client_id text, p_after_id uuid, p_after_user text, p_limit bigint
) RETURNS TABLE (installation_id uuid, user_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT c.installation_id, c.user_id FROM vault.chain c
    WHERE c.client_id = p_client_id AND NOT c.is_rotating AND c.expires_at IS NULL
        AND (c.installation_id, c.user_id) > (p_after_id, p_after_user)
    ORDER BY c.installation_id, c.user_id
    LIMIT p_limit
$$;

CREATE FUNCTION vault.count_ended_chains(p_client_id text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT count(*) FROM vault.chain c
    WHERE c.client_id = p_client_id AND c.standing = 'needs_reinstall'
$$;

-- A token kept beside a chain is stored as well: it is never revoked as a stranger's.
CREATE OR REPLACE FUNCTION vault.is_ref_stored(p_ref text, p_except uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT EXISTS (
        SELECT FROM vault.sealed_token t
        WHERE t.ref = p_ref AND t.installation_id IS DISTINCT FROM p_except
    ) OR EXISTS (
        SELECT FROM vault.candidate_token k
        WHERE p_ref IN (k.access_ref, k.refresh_ref)
            AND k.installation_id IS DISTINCT FROM p_except
    )
$$;
"""

# The last 32 bits of the id, as the domain counts it.
_JITTER = """
CREATE FUNCTION vault.rotation_jitter(p_installation_id uuid, p_jitter_s bigint)
RETURNS interval LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT make_interval(secs =>
        ('x' || right(replace(p_installation_id::text, '-', ''), 8))::bit(32)::bigint
            % p_jitter_s)
$$;
"""

_GRANTS = """
REVOKE ALL ON FUNCTION vault.rotation_jitter(uuid, bigint),
    vault.is_reinstall_pending(uuid, interval),
    vault.list_due_chains(text, interval, bigint, interval, bigint),
    vault.list_lasting_chains(text, uuid, text, bigint),
    vault.count_ended_chains(text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.rotation_jitter(uuid, bigint),
    vault.is_reinstall_pending(uuid, interval),
    vault.list_due_chains(text, interval, bigint, interval, bigint),
    vault.list_lasting_chains(text, uuid, text, bigint),
    vault.count_ended_chains(text)
    TO interlock_vault;
GRANT SELECT, INSERT, UPDATE, DELETE ON vault.rotation, vault.candidate_token TO interlock_vault;
GRANT SELECT ON vault.chain TO interlock_vault;
GRANT USAGE ON SEQUENCE vault.rotation_epoch TO interlock_vault;
"""


def upgrade() -> None:
    for part in (_TABLES, _ROW_SECURITY, _JITTER, _FUNCTIONS, _GRANTS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
    CREATE OR REPLACE FUNCTION vault.is_ref_stored(p_ref text, p_except uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT EXISTS (
            SELECT FROM vault.sealed_token t
            WHERE t.ref = p_ref AND t.installation_id IS DISTINCT FROM p_except
        )
    $$;
    DROP FUNCTION vault.count_ended_chains(text);
    DROP FUNCTION vault.list_lasting_chains(text, uuid, text, bigint);
    DROP FUNCTION vault.list_due_chains(text, interval, bigint, interval, bigint);
    DROP FUNCTION vault.is_reinstall_pending(uuid, interval);
    DROP VIEW vault.chain;
    DROP FUNCTION vault.rotation_jitter(uuid, bigint);
    DROP INDEX vault.sealed_token_ending;
    DROP TABLE vault.candidate_token, vault.rotation;
    DROP SEQUENCE vault.rotation_epoch;
    """)
