-- Every statement that the vault sends; `-- name:` is how the adapters ask for it.

-- name: load_bots
-- One row at least, so that the time is known where nothing is installed.
SELECT clock_timestamp() AS read_at, b.*
FROM (SELECT 1) AS always
LEFT JOIN vault.load_bots($1, $2, $3, $4, $5) AS b ON true;

-- name: append_audit
INSERT INTO vault.audit_event (
    chain_id, seq, at, action, actor, rpc, purpose, grant_id, subject, request_id, trace_id,
    outcome, installation_id, enterprise_id, team_id, token_kind, token_ref, generation,
    kek_version, dek_source, count, prev_hash, hash
)
SELECT * FROM unnest(
    $1::uuid[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::uuid[], $14::text[],
    $15::text[], $16::text[], $17::text[], $18::bigint[], $19::text[], $20::text[], $21::bigint[],
    $22::bytea[], $23::bytea[]
);

-- name: read_clock
SELECT clock_timestamp();

-- name: check_ready
SELECT has_table_privilege('vault.audit_event', 'INSERT') AND NOT pg_is_in_recovery();

-- name: name_installations
SELECT set_config('app.installations', $1::uuid[]::text, true);

-- name: name_active
SELECT set_config('app.installations', coalesce(array_agg(f.installation_id), '{}')::text, true)
FROM vault.find_active(ARRAY[$1], ARRAY[$2], ARRAY[$3], ARRAY[$4]) AS f;

-- name: name_all_audit
SELECT set_config('app.audit', 'all', true);

-- name: list_audit
SELECT * FROM vault.audit_event
WHERE (at, chain_id, seq) < ($1, $2, $3)
ORDER BY at DESC, chain_id DESC, seq DESC
LIMIT $4;

-- name: list_audit_of_named
SELECT * FROM vault.audit_event
WHERE installation_id = ANY (vault.named_installations())
    AND (at, chain_id, seq) < ($1, $2, $3)
ORDER BY at DESC, chain_id DESC, seq DESC
LIMIT $4;

-- name: start_attempt
INSERT INTO vault.install_attempt (
    grant_id, grant_token, tenant_id, user_id, state_sha256, source, grant_expires_at, state
) VALUES ($1, $2, $3, $4, $5, $6, $7, 'started')
ON CONFLICT (grant_id) DO NOTHING
RETURNING true;

-- name: find_attempt
SELECT * FROM vault.install_attempt WHERE grant_id = $1;

-- name: lock_attempt
SELECT *, coalesce(lease_until > clock_timestamp(), false) AS is_leased
FROM vault.install_attempt WHERE grant_id = $1 FOR UPDATE;

-- name: take_exchange
UPDATE vault.install_attempt
SET state = 'exchanging', code_ref = $2, installation_id = $3, lease = $4,
    lease_until = clock_timestamp() + $5
WHERE grant_id = $1;

-- name: take_pending
UPDATE vault.install_attempt SET lease = $2, lease_until = clock_timestamp() + $3
WHERE grant_id = $1;

-- name: release_lease
UPDATE vault.install_attempt SET lease = NULL, lease_until = NULL
WHERE grant_id = $1 AND lease = $2;

-- name: save_pending_attempt
UPDATE vault.install_attempt SET state = 'pending' WHERE grant_id = $1;

-- name: end_attempt
UPDATE vault.install_attempt
SET state = $2, installation_id = $3, is_reinstall = $4, extra_scopes = $5, outcome = $6,
    grant_token = NULL, lease = NULL, lease_until = NULL, ended_at = clock_timestamp()
WHERE grant_id = $1;

-- name: list_unfinished
SELECT * FROM vault.install_attempt
WHERE ended_at IS NULL
    AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    AND (state = 'pending' OR grant_expires_at <= clock_timestamp())
ORDER BY started_at
LIMIT $1;

-- name: prune_attempts
DELETE FROM vault.install_attempt WHERE ended_at < clock_timestamp() - $1::interval;

-- name: is_ref_stored
SELECT vault.is_ref_stored($1, $2);

-- name: insert_dek
INSERT INTO vault.wrapped_dek (dek_id, installation_id, kek_version, wrapped)
VALUES ($1, $2, $3, $4);

-- name: get_deks
SELECT * FROM vault.wrapped_dek WHERE installation_id = $1;

-- name: delete_deks
DELETE FROM vault.wrapped_dek WHERE installation_id = $1;

-- name: insert_installation
INSERT INTO vault.installation (
    installation_id, client_id, app_id, enterprise_id, team_id, tenant_id, state, generation,
    name, bot_user_id, bot_scopes
) VALUES ($1, $2, $3, $4, $5, $6, 'pending', $7, $8, $9, $10);

-- name: find_installation
SELECT * FROM vault.installation WHERE installation_id = $1;

-- name: activate_installation
UPDATE vault.installation SET state = 'active', installed_at = clock_timestamp()
WHERE installation_id = $1 AND state = 'pending'
RETURNING *;

-- name: renew_installation
UPDATE vault.installation
SET generation = $3, name = $4, bot_user_id = $5, bot_scopes = $6,
    installed_at = clock_timestamp()
WHERE installation_id = $1 AND generation = $2 AND state = 'active'
RETURNING *;

-- name: delete_installation
DELETE FROM vault.installation WHERE installation_id = $1 AND generation = $2 AND state = $3
RETURNING true;

-- name: insert_token
INSERT INTO vault.sealed_token (
    installation_id, kind, slot, user_id, generation, dek_id, sealed, ref, expires_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: get_bot_tokens
SELECT * FROM vault.sealed_token
WHERE installation_id = $1 AND kind = 'bot'
ORDER BY slot;

-- name: delete_bot_tokens
DELETE FROM vault.sealed_token WHERE installation_id = $1 AND kind = 'bot';
