"""Settings of the identity process."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_validator
from yarl import URL

from interlock_chassis.config import (
    CommaList,
    DatabaseUrlFile,
    DocumentFile,
    HttpUrl,
    ServiceSettings,
)
from interlock_chassis.secret import Secret
from interlock_identity.domain.agents import Agent
from interlock_identity.domain.linking import EmailPolicy
from interlock_identity.domain.people import TenantId
from interlock_identity.retention import Keeping

_MAX_ID_LENGTH = 256
_EVERYBODY = "*"


def _agent(value: object) -> Agent | None:
    if value is None or value == "":
        return None
    if isinstance(value, Agent):
        return value
    project_id, slash, agent_id = str(value).partition("/")
    parts = (project_id, agent_id)
    if not slash or "/" in agent_id or not all(0 < len(part) <= _MAX_ID_LENGTH for part in parts):
        raise ValueError("must be project/agent")
    return Agent(project_id, agent_id)


def _cookie_name(value: object) -> str:
    name = str(value)
    plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not plain or name.startswith("__"):
        # The auth server itself puts `__Secure-` before it where it is https.
        raise ValueError("must be a cookie name without the prefix __Secure-")
    return name


class IdentitySettings(ServiceSettings):
    """What the identity process is told."""

    database_url_file: DatabaseUrlFile
    """File with the Postgres URL of identity's own database, as role `interlock_identity`."""

    auth_url: HttpUrl
    """Base URL of the auth server; `/api/auth/...` is asked below it."""

    session_cookie_name: Annotated[str, PlainValidator(_cookie_name)] = "better-auth.session_token"
    """Name of the auth server's session cookie, without `__Secure-`."""

    membership_source: Literal["table", "platform"] = "table"
    """Who is asked whether somebody is still a member: the auth server's `member` table, or
    the agents platform at `INTERLOCK_MANAGE_URL`."""

    manage_url: HttpUrl | None = None
    """Base URL of the agents platform's Manage API; without it no default agent can be set."""

    manage_path_style: Literal["plain", "tenant"] = "plain"
    """`plain`: `/manage/api/projects`; `tenant`: `/manage/tenants/{tenant}/projects`."""

    membership_database_url_file: DatabaseUrlFile | None = None
    """File with the Postgres URL of the auth server's database, as a role that reads `member`;
    needed for the source `table`."""

    membership_cache_seconds: int = Field(default=60, ge=0, le=120)
    """How long a yes of the membership source is remembered; a token's life counts from the yes."""

    grant_keys_file: DocumentFile
    """Identity's private keyset: signs adminGrant, installGrant and renewedGrant."""

    grant_public_keys_file: DocumentFile
    """Public keyset that grants are verified with: the edge's and identity's own."""

    user_token_keys_file: DocumentFile
    """Keyset with the HS256 secret that the platform verifies slackUser tokens with."""

    default_agent: Annotated[Agent | None, PlainValidator(_agent)] = None
    """The agent that answers where no administrator chose one, `project/agent`."""

    emails_must_match: CommaList = ()
    """Tenants in which a Slack user links only to the account with the same, verified e-mail
    address; `*` is every tenant. Elsewhere a difference is confirmed."""

    upkeep_minutes: int = Field(default=5, ge=1, le=1440)
    """How often links of people who are gone are swept, and old rows removed."""

    absence_minutes: int = Field(default=60, ge=0, le=10080)
    """How long somebody must be gone, at two sweeps or more, before their links are removed."""

    link_code_days: int = Field(default=7, ge=1, le=365)
    """How long link codes are kept after they expired."""

    released_claim_days: int = Field(default=30, ge=0, le=365)
    """How long the links and defaults of an uninstalled workspace wait for a reinstall."""

    audit_days: int = Field(default=400, ge=90, le=3650)
    """How long audit records are kept."""

    @field_validator("manage_url")
    @classmethod
    def _require_platform(cls, value: URL | None, info: ValidationInfo) -> URL | None:
        if value is None and info.data.get("membership_source") == "platform":
            raise ValueError("required for INTERLOCK_MEMBERSHIP_SOURCE=platform")
        return value

    @field_validator("membership_database_url_file")
    @classmethod
    def _require_table(cls, value: Secret[str] | None, info: ValidationInfo) -> Secret[str] | None:
        if value is None and info.data.get("membership_source") == "table":
            raise ValueError("required for INTERLOCK_MEMBERSHIP_SOURCE=table")
        return value

    @property
    def emails(self) -> EmailPolicy:
        """`emails_must_match` as a policy."""
        tenants = frozenset(TenantId(each) for each in self.emails_must_match)
        return EmailPolicy(
            is_strict_everywhere=_EVERYBODY in tenants, strict_tenants=tenants - {_EVERYBODY}
        )

    @property
    def keeping(self) -> Keeping:
        """How long things are kept, as durations."""
        return Keeping(
            codes=timedelta(days=self.link_code_days),
            released_claims=timedelta(days=self.released_claim_days),
            audit=timedelta(days=self.audit_days),
        )
