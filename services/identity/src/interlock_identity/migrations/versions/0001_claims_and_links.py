"""Claims, link codes, links and default agents.

The three `work_app_slack_*` tables with their columns, keys, constraint and
index names are given by the specification; columns under "ours" are added to
it. `organization` and `"user"` are identity's own rows of what belongs to the
auth server, for the foreign keys to stand on.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE identity.organization (
    id varchar(256) PRIMARY KEY,
    name text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE identity."user" (
    id varchar(256) PRIMARY KEY,
    name text NOT NULL DEFAULT '',
    email text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE identity.work_app_slack_workspaces (
    tenant_id varchar(256) NOT NULL,
    id varchar(256) NOT NULL,
    client_id varchar(256) NOT NULL DEFAULT 'work-apps-slack',
    slack_team_id varchar(256) NOT NULL,
    slack_enterprise_id varchar(256),
    slack_app_id varchar(256),
    nango_provider_config_key varchar(256) NOT NULL DEFAULT 'work-apps-slack',
    nango_connection_id varchar(256) NOT NULL,
    status varchar(50) NOT NULL DEFAULT 'active',
    installed_by_user_id varchar(256),
    -- ours
    name text NOT NULL DEFAULT '',
    installation_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT work_app_slack_workspaces_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT work_app_slack_workspaces_client_team_unique UNIQUE (client_id, slack_team_id),
    CONSTRAINT work_app_slack_workspaces_organization_fk FOREIGN KEY (tenant_id)
        REFERENCES identity.organization (id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_workspaces_installed_by_user_fk FOREIGN KEY (installed_by_user_id)
        REFERENCES identity."user" (id) ON DELETE SET NULL,
    CONSTRAINT work_app_slack_workspaces_status_check
        CHECK (status IN ('pending', 'active', 'needs_reinstall', 'uninstalled'))
);
CREATE INDEX work_app_slack_workspaces_tenant_idx
    ON identity.work_app_slack_workspaces (tenant_id);
CREATE INDEX work_app_slack_workspaces_team_idx
    ON identity.work_app_slack_workspaces (slack_team_id);
CREATE INDEX work_app_slack_workspaces_enterprise_idx
    ON identity.work_app_slack_workspaces (slack_enterprise_id)
    WHERE slack_enterprise_id IS NOT NULL;

CREATE TABLE identity.work_app_slack_account_link_codes (
    tenant_id varchar(256) NOT NULL,
    id varchar(256) NOT NULL,
    client_id varchar(256) NOT NULL DEFAULT 'work-apps-slack',
    slack_team_id varchar(256) NOT NULL,
    slack_user_id varchar(256) NOT NULL,
    slack_enterprise_id varchar(256),
    link_code_hash varchar(256) NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    used_by_user_id varchar(256),
    -- ours; the name and address are for the confirm page and are erased when the code is used
    workspace_id varchar(256) NOT NULL,
    slack_display_name text NOT NULL DEFAULT '',
    slack_email text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT work_app_slack_account_link_codes_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT work_app_slack_account_link_codes_hash_unique UNIQUE (link_code_hash),
    CONSTRAINT work_app_slack_account_link_codes_organization_fk FOREIGN KEY (tenant_id)
        REFERENCES identity.organization (id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_account_link_codes_used_by_user_fk FOREIGN KEY (used_by_user_id)
        REFERENCES identity."user" (id) ON DELETE SET NULL,
    CONSTRAINT work_app_slack_account_link_codes_workspace_fk FOREIGN KEY (tenant_id, workspace_id)
        REFERENCES identity.work_app_slack_workspaces (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_account_link_codes_hash_check
        CHECK (link_code_hash ~ '^[0-9a-f]{64}$')
);
CREATE INDEX work_app_slack_account_link_codes_lookup_idx
    ON identity.work_app_slack_account_link_codes
    (tenant_id, client_id, slack_team_id, slack_user_id);
CREATE INDEX work_app_slack_account_link_codes_expires_at_idx
    ON identity.work_app_slack_account_link_codes (expires_at);
CREATE INDEX work_app_slack_account_link_codes_enterprise_idx
    ON identity.work_app_slack_account_link_codes (tenant_id, slack_enterprise_id, slack_user_id)
    WHERE slack_enterprise_id IS NOT NULL;
CREATE INDEX work_app_slack_account_link_codes_workspace_idx
    ON identity.work_app_slack_account_link_codes (tenant_id, workspace_id);
CREATE INDEX work_app_slack_account_link_codes_used_by_idx
    ON identity.work_app_slack_account_link_codes (used_by_user_id)
    WHERE used_by_user_id IS NOT NULL;

CREATE TABLE identity.work_app_slack_user_mappings (
    tenant_id varchar(256) NOT NULL,
    id varchar(256) NOT NULL,
    client_id varchar(256) NOT NULL DEFAULT 'work-apps-slack',
    slack_team_id varchar(256) NOT NULL,
    slack_user_id varchar(256) NOT NULL,
    slack_enterprise_id varchar(256),
    inkeep_user_id varchar(256) NOT NULL,
    last_used_at timestamptz,
    -- ours
    workspace_id varchar(256) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT work_app_slack_user_mappings_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT work_app_slack_user_mappings_unique
        UNIQUE (tenant_id, client_id, slack_team_id, slack_user_id),
    CONSTRAINT work_app_slack_user_mappings_organization_fk FOREIGN KEY (tenant_id)
        REFERENCES identity.organization (id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_user_mappings_user_fk FOREIGN KEY (inkeep_user_id)
        REFERENCES identity."user" (id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_user_mappings_workspace_fk FOREIGN KEY (tenant_id, workspace_id)
        REFERENCES identity.work_app_slack_workspaces (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX work_app_slack_user_mappings_user_idx
    ON identity.work_app_slack_user_mappings (tenant_id, inkeep_user_id);
CREATE INDEX work_app_slack_user_mappings_account_idx
    ON identity.work_app_slack_user_mappings (inkeep_user_id);
CREATE INDEX work_app_slack_user_mappings_enterprise_idx
    ON identity.work_app_slack_user_mappings (tenant_id, slack_enterprise_id, slack_user_id)
    WHERE slack_enterprise_id IS NOT NULL;
CREATE INDEX work_app_slack_user_mappings_workspace_idx
    ON identity.work_app_slack_user_mappings (tenant_id, workspace_id, created_at DESC, id DESC);

CREATE TABLE identity.work_app_slack_agent_defaults (
    tenant_id varchar(256) NOT NULL,
    workspace_id varchar(256) NOT NULL,
    channel_id varchar(256) NOT NULL,
    project_id varchar(256) NOT NULL,
    agent_id varchar(256) NOT NULL,
    grants_access boolean NOT NULL DEFAULT false,
    set_by_user_id varchar(256),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT work_app_slack_agent_defaults_pk PRIMARY KEY (tenant_id, workspace_id, channel_id),
    CONSTRAINT work_app_slack_agent_defaults_workspace_fk FOREIGN KEY (tenant_id, workspace_id)
        REFERENCES identity.work_app_slack_workspaces (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT work_app_slack_agent_defaults_set_by_user_fk FOREIGN KEY (set_by_user_id)
        REFERENCES identity."user" (id) ON DELETE SET NULL
);

GRANT USAGE ON SCHEMA identity TO interlock_identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    identity.organization,
    identity."user",
    identity.work_app_slack_workspaces,
    identity.work_app_slack_account_link_codes,
    identity.work_app_slack_user_mappings,
    identity.work_app_slack_agent_defaults
    TO interlock_identity;
"""

_DROPS = """
DROP TABLE identity.work_app_slack_agent_defaults;
DROP TABLE identity.work_app_slack_user_mappings;
DROP TABLE identity.work_app_slack_account_link_codes;
DROP TABLE identity.work_app_slack_workspaces;
DROP TABLE identity."user";
DROP TABLE identity.organization;
REVOKE USAGE ON SCHEMA identity FROM interlock_identity;
"""


def upgrade() -> None:
    op.execute(_TABLES)


def downgrade() -> None:
    op.execute(_DROPS)
