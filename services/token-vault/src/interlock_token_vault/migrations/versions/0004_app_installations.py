"""Installations of other Slack apps, which use the vault as their store.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A place is where an app is installed, as Slack keys it; it has one data key.
# A record is what the app saved at one time; its secrets are sealed one by one.
_TABLES = """
CREATE TABLE vault.app_place (
    installation_id uuid PRIMARY KEY,
    client_id text NOT NULL CHECK (client_id <> ''),
    enterprise_id text NOT NULL CHECK (enterprise_id ~ '^(E[A-Z0-9]{2,20})?$'),
    team_id text NOT NULL CHECK (team_id ~ '^(T[A-Z0-9]{2,20})?$'),
    CHECK (enterprise_id <> '' OR team_id <> ''),
    UNIQUE (client_id, enterprise_id, team_id)
);

CREATE TABLE vault.app_record (
    record_id uuid PRIMARY KEY,
    installation_id uuid NOT NULL REFERENCES vault.app_place ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('installation', 'bot')),
    user_id text NOT NULL CHECK (user_id ~ '^([UW][A-Z0-9]{2,20})?$'),
    installed_at timestamptz NOT NULL,
    details jsonb NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Two users who installed at the same instant are two records.
    UNIQUE (installation_id, kind, user_id, installed_at),
    CHECK (kind = 'installation' OR user_id = '')
);
CREATE INDEX app_record_newest
    ON vault.app_record (installation_id, kind, installed_at DESC, saved_at DESC);

CREATE TABLE vault.app_secret (
    record_id uuid NOT NULL REFERENCES vault.app_record ON DELETE CASCADE,
    installation_id uuid NOT NULL,
    name text NOT NULL CHECK (name IN (
        'bot_token', 'bot_refresh_token', 'user_token', 'user_refresh_token',
        'incoming_webhook_url', 'incoming_webhook_configuration_url', 'custom_values'
    )),
    dek_id uuid NOT NULL,
    sealed bytea NOT NULL CHECK (octet_length(sealed) > 93 AND get_byte(sealed, 0) < 32),
    ref text NOT NULL CHECK (ref ~ '^[0-9a-f]{32}$'),
    PRIMARY KEY (record_id, name)
);
CREATE INDEX app_secret_ref ON vault.app_secret (installation_id, ref);
"""

_ROW_SECURITY = """
ALTER TABLE vault.app_place ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.app_record ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE vault.app_secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY named ON vault.app_place TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY named ON vault.app_record TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY named ON vault.app_secret TO interlock_vault
    USING (installation_id = ANY ((SELECT vault.named_installations())::uuid[]));
CREATE POLICY lookup ON vault.app_place FOR SELECT TO interlock_vault_owner USING (true);

CREATE FUNCTION vault.find_app_place(
    p_client_id text, p_enterprise_id text, p_team_id text
) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT p.installation_id FROM vault.app_place p
    WHERE p.client_id = p_client_id AND p.enterprise_id = p_enterprise_id
        AND p.team_id = p_team_id
$$;
REVOKE ALL ON FUNCTION vault.find_app_place(text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vault.find_app_place(text, text, text) TO interlock_vault;
GRANT SELECT, INSERT, UPDATE, DELETE ON vault.app_place, vault.app_record, vault.app_secret
    TO interlock_vault;
"""


def upgrade() -> None:
    op.execute(_TABLES)
    op.execute(_ROW_SECURITY)


def downgrade() -> None:
    op.execute("""
    DROP FUNCTION vault.find_app_place(text, text, text);
    DROP TABLE vault.app_secret, vault.app_record, vault.app_place;
    """)
