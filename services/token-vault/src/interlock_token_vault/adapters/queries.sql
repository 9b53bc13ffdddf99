-- Every statement that the vault sends; `-- name:` is how the adapters ask for it.

-- name: load_tokens
-- One row at least, so that the time is known where nothing is installed.
SELECT clock_timestamp() AS read_at, b.*
FROM (SELECT 1) AS always
LEFT JOIN vault.load_tokens($1, $2, $3, $4, $5, $6) AS b ON true;

-- name: is_installation
SELECT EXISTS (SELECT FROM vault.installation WHERE installation_id = $1);

-- name: stop_releases
INSERT INTO vault.freeze (installation_id, kind, note) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING
RETURNING true;

-- name: resume_releases
DELETE FROM vault.freeze WHERE installation_id = $1 AND kind = $2
RETURNING true;

-- name: make_audit_partitions
SELECT vault.make_audit_partitions($1);

-- name: append_audit
-- Of one chain. A column that is the same in every record travels once: the
-- elements that are absent then are NULL here. Numbers travel as texts.
INSERT INTO vault.audit_event (
    chain_id, seq, action, actor, rpc, purpose, grant_id, installation_id, enterprise_id, team_id,
    token_kind, outcome, token_ref, kek_version, dek_source, request_id, trace_id, subject,
    generation, count, at, prev_hash, hash
)
SELECT $1, $2 + r.ordinal, coalesce(r.action, $3[1]), coalesce(r.actor, $4[1]),
    coalesce(r.rpc, $5[1]), coalesce(r.purpose, $6[1]), coalesce(r.grant_id, $7[1]),
    nullif(coalesce(r.installation_id, $8[1]), '')::uuid, coalesce(r.enterprise_id, $9[1]),
    coalesce(r.team_id, $10[1]), coalesce(r.token_kind, $11[1]), coalesce(r.outcome, $12[1]),
    coalesce(r.token_ref, $13[1]), coalesce(r.kek_version, $14[1]),
    coalesce(r.dek_source, $15[1]), coalesce(r.request_id, $16[1]),
    coalesce(r.trace_id, $17[1]), coalesce(r.subject, $18[1]),
    coalesce(r.generation, $19[1])::bigint, coalesce(r.count, $20[1])::bigint,
    coalesce(r.at, $21[1]), coalesce($23[r.ordinal::integer - 1], $22), r.hash
FROM unnest(
    $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
    $17::text[], $18::text[], $19::text[], $20::text[], $21::timestamptz[], $23::bytea[]
) WITH ORDINALITY AS r (
    action, actor, rpc, purpose, grant_id, installation_id, enterprise_id, team_id, token_kind,
    outcome, token_ref, kek_version, dek_source, request_id, trace_id, subject, generation, count,
    at, hash, ordinal
);

-- name: read_clock
SELECT clock_timestamp();

-- name: check_ready
SELECT has_table_privilege('vault.audit_event', 'INSERT') AND NOT pg_is_in_recovery()
    AS can_write, clock_timestamp() AS at;

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

-- name: export_audit
SELECT * FROM vault.audit_event
WHERE at >= $1 AND at < $2 AND (at, chain_id, seq) > ($3, $4, $5)
ORDER BY at, chain_id, seq
LIMIT $6;

-- name: export_audit_of_tenant
SELECT * FROM vault.audit_event
WHERE at >= $1 AND at < $2 AND (at, chain_id, seq) > ($3, $4, $5)
    AND installation_id = ANY (vault.installations_of_tenant($7))
ORDER BY at, chain_id, seq
LIMIT $6;

-- name: has_tenant
SELECT cardinality(vault.installations_of_tenant($1)) > 0;

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
    name, bot_user_id, bot_scopes, installed_by
) VALUES ($1, $2, $3, $4, $5, $6, 'pending', $7, $8, $9, $10, nullif($11, ''));

-- name: find_installation
SELECT * FROM vault.installation WHERE installation_id = $1;

-- name: activate_installation
UPDATE vault.installation SET state = 'active', installed_at = clock_timestamp()
WHERE installation_id = $1 AND state = 'pending'
RETURNING *;

-- name: renew_installation
UPDATE vault.installation
SET generation = $3, name = $4, bot_user_id = $5, bot_scopes = $6,
    installed_by = nullif($7, ''), installed_at = clock_timestamp()
WHERE installation_id = $1 AND generation = $2 AND state = 'active'
RETURNING *;

-- name: delete_installation
DELETE FROM vault.installation WHERE installation_id = $1 AND generation = $2 AND state = $3
RETURNING true;

-- name: insert_token
INSERT INTO vault.sealed_token (
    installation_id, kind, slot, user_id, generation, dek_id, sealed, ref, expires_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: is_user_ahead
-- A refresh may have come between an install's plan and its activation.
SELECT EXISTS (
    SELECT FROM vault.sealed_token
    WHERE installation_id = $1 AND kind = 'user' AND user_id = $2 AND generation >= $3
);

-- name: delete_tokens_of
DELETE FROM vault.sealed_token WHERE installation_id = $1 AND kind = $2 AND user_id = $3;

-- name: count_deks
SELECT kek_version, count(*) AS deks FROM vault.wrapped_dek GROUP BY kek_version;

-- name: take_rewrap_lock
SELECT pg_try_advisory_lock(hashtext('vault re-wrap'));

-- name: give_rewrap_lock
SELECT pg_advisory_unlock(hashtext('vault re-wrap'));

-- name: list_deks
SELECT dek_id, installation_id FROM vault.wrapped_dek
WHERE kek_version <> $1 AND dek_id > $2
ORDER BY dek_id
LIMIT $3;

-- name: get_deks_by_id
SELECT d.*, coalesce(i.client_id, p.client_id) AS client_id FROM vault.wrapped_dek d
LEFT JOIN vault.installation i USING (installation_id)
LEFT JOIN vault.app_place p USING (installation_id)
WHERE d.dek_id = ANY ($1::uuid[]);

-- name: replace_dek
UPDATE vault.wrapped_dek SET kek_version = $4, wrapped = $5
WHERE dek_id = $1 AND kek_version = $2 AND wrapped = $3
RETURNING true;

-- name: get_active
SELECT * FROM vault.installation WHERE installation_id = $1 AND state = 'active';

-- name: lock_active
SELECT * FROM vault.installation WHERE installation_id = $1 AND state = 'active' FOR UPDATE;

-- name: get_tokens
SELECT * FROM vault.sealed_token WHERE installation_id = $1 ORDER BY kind, slot, user_id;

-- name: delete_tokens
DELETE FROM vault.sealed_token WHERE installation_id = $1;

-- name: is_chain_moving
-- A pair beside that is of the chain's generation may be the one that Slack goes on with.
SELECT EXISTS (
    SELECT FROM vault.chain c
    WHERE c.installation_id = $1 AND (
        c.standing IN ('sent', 'doubted') AND (c.is_rotating OR c.lease_until > clock_timestamp())
        OR EXISTS (
            SELECT FROM vault.candidate_token k
            JOIN vault.sealed_token t ON t.installation_id = k.installation_id
                AND t.kind = k.kind AND t.user_id = k.user_id AND t.slot = 'access'
            WHERE k.installation_id = c.installation_id AND k.kind = c.kind
                AND k.user_id = c.user_id AND k.lineage = c.lineage
                AND (NOT k.is_probed OR k.generation >= t.generation)
        )
    )
);

-- name: delete_candidates
DELETE FROM vault.candidate_token WHERE installation_id = $1;

-- name: set_enterprise
UPDATE vault.installation SET enterprise_id = $2 WHERE installation_id = $1;

-- name: find_by_place
SELECT vault.find_by_place($1, $2, $3);

-- name: shred_installation
DELETE FROM vault.installation WHERE installation_id = $1
RETURNING true;

-- name: bury_installation
-- One of ours, or a place of another app.
WITH ours AS (
    DELETE FROM vault.installation WHERE installation_id = $1 RETURNING true
), apps AS (
    DELETE FROM vault.app_place WHERE installation_id = $1 RETURNING true
)
SELECT true FROM ours UNION ALL SELECT true FROM apps;

-- name: find_app_place
SELECT vault.find_app_place($1, $2, $3);

-- name: get_app_place
SELECT p.*, d.dek_id, d.kek_version, d.wrapped, (
    SELECT min(z.kind) FROM vault.freeze z
    WHERE z.installation_id = p.installation_id
        OR z.installation_id = '00000000-0000-0000-0000-000000000000'
) AS stopped
FROM vault.app_place p
LEFT JOIN vault.wrapped_dek d USING (installation_id)
WHERE p.installation_id = $1;

-- name: list_app_records
SELECT * FROM vault.app_record WHERE installation_id = $1 ORDER BY record_id;

-- name: replace_app_secret
UPDATE vault.app_secret SET dek_id = $3, sealed = $4 WHERE record_id = $1 AND name = $2;

-- name: shred_app_place
DELETE FROM vault.app_place WHERE installation_id = $1
RETURNING true;

-- name: add_app_place
INSERT INTO vault.app_place (installation_id, client_id, enterprise_id, team_id)
VALUES ($1, $2, $3, $4)
ON CONFLICT (client_id, enterprise_id, team_id) DO NOTHING
RETURNING true;

-- name: lock_app_dek
SELECT dek_id FROM vault.wrapped_dek WHERE installation_id = $1 FOR UPDATE;

-- name: newest_app_bot
SELECT r.* FROM vault.app_record r
WHERE r.installation_id = $1 AND r.kind = 'bot' AND EXISTS (
    SELECT FROM vault.app_secret s WHERE s.record_id = r.record_id AND s.name = 'bot_token'
)
ORDER BY r.installed_at DESC, r.saved_at DESC
LIMIT 1;

-- name: newest_app_record
SELECT * FROM vault.app_record
WHERE installation_id = $1 AND kind = 'installation' AND ($2 = '' OR user_id = $2)
ORDER BY installed_at DESC, saved_at DESC
LIMIT 1;

-- name: look_up_app_save
SELECT * FROM vault.look_up_app_save($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: save_app_records
SELECT * FROM vault.save_app_records($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: find_app_record_by_ref
SELECT r.* FROM vault.app_secret s
JOIN vault.app_record r USING (record_id)
WHERE s.installation_id = $1 AND s.name = $2 AND s.ref = $3
ORDER BY r.installed_at DESC, r.saved_at DESC
LIMIT 1;

-- name: get_app_secrets
SELECT * FROM vault.app_secret WHERE record_id = $1;

-- name: delete_app_records
DELETE FROM vault.app_record
WHERE installation_id = $1 AND kind = $2 AND ($3 = '' OR user_id = $3)
RETURNING true;

-- name: delete_empty_app_place
DELETE FROM vault.app_place p
WHERE p.installation_id = $1
    AND NOT EXISTS (SELECT FROM vault.app_record r WHERE r.installation_id = p.installation_id)
RETURNING true;

-- name: list_due_chains
SELECT * FROM vault.list_due_chains($1, $2, $3, $4, $5);

-- name: list_lasting_chains
SELECT * FROM vault.list_lasting_chains($1, $2, $3, $4);

-- name: count_ended_chains
SELECT vault.count_ended_chains($1);

-- name: list_unreported_chains
SELECT * FROM vault.list_unreported_chains($1, $2);

-- name: mark_reported
UPDATE vault.rotation SET is_reported = $4
WHERE installation_id = $1 AND kind = $2 AND user_id = $3;

-- name: list_untold_scopes
SELECT * FROM vault.list_untold_scopes($1, $2, $3);

-- name: count_scope_drift
SELECT * FROM vault.count_scope_drift($1, $2);

-- name: mark_scopes_told
-- Of an installation that has gone meanwhile nothing is kept.
INSERT INTO vault.told_scopes (installation_id, installed_at, missing, extra)
SELECT $1, $2, $3, $4 FROM vault.installation WHERE installation_id = $1
ON CONFLICT (installation_id) DO UPDATE
SET installed_at = excluded.installed_at, missing = excluded.missing, extra = excluded.extra;

-- name: find_chain
SELECT i.*, clock_timestamp() AS read_at,
    a.generation AS token_generation, a.dek_id, a.sealed AS access_sealed, a.ref AS access_ref,
    a.expires_at, r.sealed AS refresh_sealed, r.ref AS refresh_ref,
    d.kek_version, d.wrapped,
    c.lineage, c.parent_ref, c.standing, c.epoch, c.failures,
    coalesce(c.lease_until > clock_timestamp(), false) AS is_leased,
    coalesce(c.not_before > clock_timestamp(), false) AS is_resting,
    coalesce(
        a.expires_at - $4::interval + vault.rotation_jitter(i.installation_id, $5)
            <= clock_timestamp(),
        false
    ) AS is_due,
    vault.is_reinstall_pending(i.installation_id, $6) AS is_paused,
    EXISTS (
        SELECT FROM vault.freeze z
        WHERE z.installation_id = i.installation_id
            OR z.installation_id = '00000000-0000-0000-0000-000000000000'
    ) AS is_stopped
FROM vault.installation i
JOIN vault.sealed_token a ON a.installation_id = i.installation_id AND a.slot = 'access'
    AND a.kind = $2 AND a.user_id = $3
JOIN vault.wrapped_dek d ON d.dek_id = a.dek_id AND d.installation_id = i.installation_id
LEFT JOIN vault.sealed_token r ON r.installation_id = i.installation_id AND r.slot = 'refresh'
    AND r.kind = $2 AND r.user_id = $3
JOIN vault.chain c ON c.installation_id = i.installation_id AND c.kind = $2 AND c.user_id = $3
WHERE i.installation_id = $1 AND i.state = 'active';

-- name: list_candidates
SELECT *, generation AS token_generation FROM vault.candidate_token
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND lineage = $4 AND dek_id = $5
ORDER BY kept_at, refresh_ref;

-- name: put_chain
-- The row is about another generation, or it is to be about one from now on.
INSERT INTO vault.rotation (
    installation_id, kind, user_id, generation, lineage, parent_ref, standing, sent_ref, epoch
) VALUES ($1, $2, $3, $4, $5, $6, $7, '', $8)
ON CONFLICT (installation_id, kind, user_id) DO UPDATE
SET generation = excluded.generation, lineage = excluded.lineage,
    parent_ref = excluded.parent_ref, standing = excluded.standing, sent_ref = '',
    lease_until = CASE WHEN rotation.epoch <> excluded.epoch THEN rotation.lease_until END,
    not_before = NULL, failures = 0, changed_at = clock_timestamp();

-- name: revive_chain
UPDATE vault.rotation SET standing = 'doubted', changed_at = clock_timestamp()
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND generation = $4
    AND standing = 'needs_reinstall';

-- name: lease_chain
INSERT INTO vault.rotation (
    installation_id, kind, user_id, generation, lineage, parent_ref, standing, sent_ref, epoch,
    lease_until, failures
) VALUES (
    $1, $2, $3, $4, $5, $6, 'sent', $7, nextval('vault.rotation_epoch'),
    clock_timestamp() + $8::interval, $9
)
ON CONFLICT (installation_id, kind, user_id) DO UPDATE
SET generation = excluded.generation, lineage = excluded.lineage,
    parent_ref = excluded.parent_ref, standing = excluded.standing,
    sent_ref = excluded.sent_ref, epoch = excluded.epoch, lease_until = excluded.lease_until,
    not_before = NULL, failures = excluded.failures, changed_at = clock_timestamp()
RETURNING epoch, clock_timestamp() AS at;

-- name: raise_generation
UPDATE vault.installation SET generation = $3
WHERE installation_id = $1 AND generation = $2 AND state = 'active'
RETURNING true;

-- name: put_token
INSERT INTO vault.sealed_token (
    installation_id, kind, slot, user_id, generation, dek_id, sealed, ref, expires_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (installation_id, kind, slot, user_id) DO UPDATE
SET generation = excluded.generation, dek_id = excluded.dek_id, sealed = excluded.sealed,
    ref = excluded.ref, expires_at = excluded.expires_at;

-- name: insert_candidate
INSERT INTO vault.candidate_token (
    installation_id, kind, user_id, lineage, generation, dek_id, access_sealed, access_ref,
    expires_at, refresh_sealed, refresh_ref, is_probed
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: keep_candidates
DELETE FROM vault.candidate_token
WHERE installation_id = $1 AND kind = $2 AND user_id = $3
    AND (lineage <> $4 OR refresh_ref = $5);

-- name: probe_candidates
UPDATE vault.candidate_token SET is_probed = true
WHERE installation_id = $1 AND kind = $2 AND user_id = $3;

-- name: trim_candidates
DELETE FROM vault.candidate_token
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND refresh_ref NOT IN (
    SELECT refresh_ref FROM vault.candidate_token
    WHERE installation_id = $1 AND kind = $2 AND user_id = $3
    ORDER BY kept_at DESC, refresh_ref DESC
    LIMIT $4
);

-- name: mark_probed
UPDATE vault.candidate_token SET is_probed = true
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND refresh_ref = ANY ($4::text[]);

-- name: end_chain
UPDATE vault.rotation
SET standing = 'needs_reinstall', changed_at = clock_timestamp(),
    lease_until = CASE WHEN epoch <> $5 THEN lease_until END
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND generation = $4;

-- name: prove_chain
UPDATE vault.rotation
SET lease_until = NULL, changed_at = clock_timestamp(),
    standing = CASE standing WHEN 'doubted' THEN 'idle' ELSE standing END
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND generation = $4 AND epoch = $5;

-- name: unsettle_chain
UPDATE vault.rotation SET standing = $5, changed_at = clock_timestamp()
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND generation = $4
    AND standing = 'idle';

-- name: give_back_chain
UPDATE vault.rotation
SET lease_until = NULL, standing = $7, failures = failures + 1,
    not_before = clock_timestamp() + $6::interval, changed_at = clock_timestamp()
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND generation = $4 AND epoch = $5;

-- name: give_back_lease
UPDATE vault.rotation SET lease_until = NULL, changed_at = clock_timestamp()
WHERE installation_id = $1 AND kind = $2 AND user_id = $3 AND epoch = $4;

-- name: tell_of_chain
SELECT pg_notify('vault_rotation', $1::uuid::text);

-- name: list_installations
SELECT installation_id FROM vault.installation
WHERE state = 'active' AND installation_id > $1
ORDER BY installation_id
LIMIT $2;

-- name: list_app_places
SELECT installation_id FROM vault.app_place
WHERE installation_id > $1
ORDER BY installation_id
LIMIT $2;

-- name: is_stopped
SELECT EXISTS (SELECT FROM vault.freeze WHERE installation_id = $1 AND kind = $2);

-- name: list_stopped
SELECT installation_id FROM vault.freeze
WHERE kind = $1 AND installation_id > $2
ORDER BY installation_id
LIMIT $3;

-- name: get_record_hash
SELECT hash FROM vault.audit_event WHERE chain_id = $1 AND seq = $2 AND at = $3;

-- name: confirm_loss
INSERT INTO vault.confirmed_loss (confirmed_at) VALUES (clock_timestamp());

-- name: get_confirmed_loss
SELECT max(confirmed_at) FROM vault.confirmed_loss;

-- name: find_meant
SELECT vault.find_meant($1, $2, $3, $4);

-- name: begin_uninstall
INSERT INTO vault.uninstall (installation_id, grant_id, subject)
SELECT installation_id, $2, $3 FROM vault.installation
WHERE installation_id = $1 AND state = 'active'
ON CONFLICT (installation_id) DO UPDATE
SET grant_id = $2, subject = $3, asked_at = clock_timestamp(), tried_at = clock_timestamp()
RETURNING true;

-- name: list_open_uninstalls
SELECT * FROM vault.list_open_uninstalls($1, $2);

-- name: note_uninstall_tried
UPDATE vault.uninstall SET tried_at = clock_timestamp()
WHERE installation_id = ANY ($1::uuid[]);

-- name: insert_tombstone
INSERT INTO vault.tombstone (
    installation_id, client_id, app_id, enterprise_id, team_id, tenant_id
) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (installation_id) DO NOTHING;

-- name: delete_user_tokens
DELETE FROM vault.sealed_token
WHERE installation_id = $1 AND kind = 'user' AND user_id = $2 AND EXISTS (
    SELECT FROM vault.sealed_token a
    WHERE a.installation_id = $1 AND a.kind = 'user' AND a.user_id = $2 AND a.slot = 'access'
        AND a.generation = $3 AND a.ref = $4
)
RETURNING true;

-- name: delete_user_chain
DELETE FROM vault.rotation WHERE installation_id = $1 AND kind = 'user' AND user_id = $2;

-- name: delete_user_candidates
DELETE FROM vault.candidate_token WHERE installation_id = $1 AND kind = 'user' AND user_id = $2;

-- name: list_unreleased
SELECT * FROM vault.tombstone WHERE released_at IS NULL ORDER BY purged_at LIMIT $1;

-- name: find_unreleased
SELECT * FROM vault.tombstone
WHERE released_at IS NULL AND client_id = $1 AND app_id = $2 AND enterprise_id = $3
    AND team_id = $4;

-- name: note_released
UPDATE vault.tombstone SET released_at = clock_timestamp()
WHERE installation_id = $1 AND released_at IS NULL;

-- name: prune_tombstones
DELETE FROM vault.tombstone WHERE released_at < clock_timestamp() - $1::interval;

-- name: find_connecting
SELECT * FROM vault.install_attempt
WHERE tenant_id = $1 AND source = 'nango' AND ended_at IS NULL
    AND grant_expires_at > clock_timestamp()
ORDER BY started_at DESC
LIMIT 1;

-- name: find_active_id
SELECT installation_id FROM vault.find_active(ARRAY[$1], ARRAY[$2], ARRAY[$3], ARRAY[$4]);

-- name: renew_connection
UPDATE vault.sealed_token SET generation = $2, dek_id = $3, sealed = $4, ref = $5
WHERE installation_id = $1 AND kind = 'bot' AND slot = 'connection'
RETURNING true;
