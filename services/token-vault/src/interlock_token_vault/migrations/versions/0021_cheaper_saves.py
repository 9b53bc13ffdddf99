"""Saving installations of other apps takes two statements, the second for many at once.

Revision ID: 0021
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Names the place for this transaction and returns what a save goes by, with
# the rights of the caller: its data key, which of the records are there, and
# which access tokens have a refresh token stored with them. Plans are kept as in
# load_tokens.
_LOOK_UP = """
CREATE FUNCTION vault.look_up_app_save(
    p_client_id text, p_enterprise_id text, p_team_id text,
    p_kinds text[], p_user_ids text[], p_installed_at timestamptz[],
    p_accesses text[], p_refreshes text[], p_refs text[]
) RETURNS TABLE (
    installation_id uuid, dek_id uuid, kek_version text, wrapped bytea,
    record_ids uuid[], has_refresh boolean[]
)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_id uuid := vault.find_app_place(p_client_id, p_enterprise_id, p_team_id);
BEGIN
    PERFORM set_config('app.installations', array_remove(ARRAY[v_id], NULL)::text, true);
    RETURN QUERY
    SELECT p.installation_id, d.dek_id, d.kek_version, d.wrapped,
        ARRAY (
            SELECT (
                SELECT r.record_id FROM vault.app_record r
                WHERE r.installation_id = v_id AND r.kind = w.kind AND r.user_id = w.user_id
                    AND r.installed_at = w.installed_at
            )
            FROM unnest(p_kinds, p_user_ids, p_installed_at)
                WITH ORDINALITY AS w (kind, user_id, installed_at, ordinal)
            ORDER BY w.ordinal
        ),
        ARRAY (
            SELECT EXISTS (
                SELECT FROM vault.app_secret s
                WHERE s.name = w.refresh AND s.record_id = (
                    SELECT r.record_id FROM vault.app_secret a
                    JOIN vault.app_record r USING (record_id)
                    WHERE a.installation_id = v_id AND a.name = w.access AND a.ref = w.ref
                    ORDER BY r.installed_at DESC, r.saved_at DESC
                    LIMIT 1
                )
            )
            FROM unnest(p_accesses, p_refreshes, p_refs)
                WITH ORDINALITY AS w (access, refresh, ref, ordinal)
            ORDER BY w.ordinal
        )
    FROM vault.app_place p
    LEFT JOIN vault.wrapped_dek d ON d.installation_id = p.installation_id
    WHERE p.installation_id = v_id;
END
$$;
"""

# Saves of distinct places. Each holds its place's key, in the order of ids, so
# that two vaults never wait for each other; one whose key is another by now, or
# whose record somebody else made meanwhile, writes nothing.
_SAVE = """
CREATE FUNCTION vault.save_app_records(
    p_installation_ids uuid[], p_dek_ids uuid[],
    p_record_saves integer[], p_record_ids uuid[], p_kinds text[], p_user_ids text[],
    p_installed_at timestamptz[], p_details text[],
    p_secret_records integer[], p_names text[], p_sealed bytea[], p_refs text[]
) RETURNS TABLE (is_saved boolean[], at timestamptz)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_is_saved boolean[];
BEGIN
    PERFORM set_config('app.installations', p_installation_ids::text, true);
    PERFORM FROM vault.wrapped_dek d WHERE d.installation_id = ANY (p_installation_ids)
    ORDER BY d.installation_id FOR UPDATE;
    SELECT array_agg(
        EXISTS (
            SELECT FROM vault.wrapped_dek d
            WHERE d.installation_id = s.installation_id
                AND d.dek_id = coalesce(s.dek_id, d.dek_id)
        ) AND NOT EXISTS (
            SELECT FROM unnest(p_record_saves, p_record_ids, p_kinds, p_user_ids, p_installed_at)
                AS w (save, record_id, kind, user_id, installed_at)
            JOIN vault.app_record r ON r.installation_id = s.installation_id
                AND r.kind = w.kind AND r.user_id = w.user_id
                AND r.installed_at = w.installed_at
            WHERE w.save = s.ordinal AND r.record_id <> w.record_id
        )
        ORDER BY s.ordinal
    ) INTO v_is_saved
    FROM unnest(p_installation_ids, p_dek_ids) WITH ORDINALITY
        AS s (installation_id, dek_id, ordinal);
    INSERT INTO vault.app_record (
        record_id, installation_id, kind, user_id, installed_at, details
    )
    SELECT w.record_id, p_installation_ids[w.save], w.kind, w.user_id, w.installed_at,
        w.details::jsonb
    FROM unnest(
        p_record_saves, p_record_ids, p_kinds, p_user_ids, p_installed_at, p_details
    ) AS w (save, record_id, kind, user_id, installed_at, details)
    WHERE v_is_saved[w.save]
    ON CONFLICT (record_id) DO UPDATE
    SET details = excluded.details, saved_at = clock_timestamp();
    DELETE FROM vault.app_secret s USING unnest(p_record_saves, p_record_ids) AS w (save, record_id)
    WHERE s.record_id = w.record_id AND v_is_saved[w.save];
    INSERT INTO vault.app_secret (record_id, installation_id, name, dek_id, sealed, ref)
    SELECT p_record_ids[w.record], p_installation_ids[p_record_saves[w.record]], w.name,
        p_dek_ids[p_record_saves[w.record]], w.sealed, w.ref
    FROM unnest(p_secret_records, p_names, p_sealed, p_refs) AS w (record, name, sealed, ref)
    WHERE v_is_saved[p_record_saves[w.record]];
    RETURN QUERY SELECT v_is_saved, clock_timestamp();
END
$$;
"""

_GRANTS = """
REVOKE ALL ON FUNCTION vault.look_up_app_save(
    text, text, text, text[], text[], timestamptz[], text[], text[], text[]
) FROM PUBLIC;
REVOKE ALL ON FUNCTION vault.save_app_records(
    uuid[], uuid[], integer[], uuid[], text[], text[], timestamptz[], text[], integer[], text[],
    bytea[], text[]
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.look_up_app_save(
    text, text, text, text[], text[], timestamptz[], text[], text[], text[]
) TO interlock_vault;
GRANT EXECUTE ON FUNCTION vault.save_app_records(
    uuid[], uuid[], integer[], uuid[], text[], text[], timestamptz[], text[], integer[], text[],
    bytea[], text[]
) TO interlock_vault;
"""


def upgrade() -> None:
    for part in (_LOOK_UP, _SAVE, _GRANTS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.save_app_records(
        uuid[], uuid[], integer[], uuid[], text[], text[], timestamptz[], text[], integer[],
        text[], bytea[], text[]
    );
    DROP FUNCTION vault.look_up_app_save(
        text, text, text, text[], text[], timestamptz[], text[], text[], text[]
    );
    """)
