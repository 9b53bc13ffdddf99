"""What the token vault is told: secrets arrive as paths of files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from interlock_chassis.config import (
    CommaList,
    DatabaseUrlFile,
    DocumentFile,
    HostPort,
    HttpUrl,
    SecretFile,
    ServiceSettings,
)
from interlock_chassis.secret import Secret

# Each one is needed by something the worker does; docs name which.
BOT_SCOPES = (
    "app_mentions:read",
    "channels:history",
    "groups:history",
    "im:history",
    "im:read",
    "im:write",
    "chat:write",
    "commands",
    "users:read",
    "users:read.email",
    "channels:read",
    "groups:read",
)
# As long as the SHA-256 that it keys.
_LEAST_FINGERPRINT_KEY = 32


class VaultSettings(ServiceSettings):
    """Settings of `python -m interlock_token_vault serve`."""

    database_url_file: DatabaseUrlFile
    """File with the URL of the vault's database, as the role `interlock_vault`."""

    slack_client_id: Annotated[str, Field(min_length=1, max_length=128)]
    """Client id of Interlock's own Slack app."""

    slack_client_secret_file: SecretFile
    """File with the client secret of Interlock's own Slack app."""

    slack_api_url: HttpUrl = Field(default="https://slack.com/api/", validate_default=True)
    """Where Slack's Web API is."""

    slack_url: HttpUrl = Field(default="https://slack.com", validate_default=True)
    """Where Slack's consent page is."""

    slack_bot_scopes: CommaList = BOT_SCOPES
    """Scopes asked for at an install, all of them needed; comma-separated."""

    grant_public_keys_file: DocumentFile
    """Keyset file with the public grant keys of edge and identity."""

    kms: Literal["local"]
    """What wraps data keys: `local`, keys in a file, for development only."""

    local_keyset_file: Path
    """Keyset file of `local`, mode 0600."""

    fingerprint_key_file: SecretFile
    """File with the key of token fingerprints, at least 32 random characters."""

    identity_address: HostPort
    """Where identity serves gRPC, `host:port`."""

    dek_cache_ttl_seconds: Annotated[int, Field(ge=0, le=300)] = 300
    """How long an unwrapped data key may be used before the KMS is asked again, in seconds."""

    @field_validator("log_level")
    @classmethod
    def _no_debug(cls, level: str) -> str:
        if level == "debug":
            raise ValueError("must not be debug: this process holds tokens")
        return level

    @field_validator("fingerprint_key_file")
    @classmethod
    def _key_length(cls, key: Secret[str]) -> Secret[str]:
        if len(key.reveal()) < _LEAST_FINGERPRINT_KEY:
            raise ValueError(f"the key must have at least {_LEAST_FINGERPRINT_KEY} characters")
        return key
