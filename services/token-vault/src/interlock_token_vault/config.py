"""What the token vault is told: secrets arrive as paths of files."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from yarl import URL

from interlock_chassis.config import (
    CommaList,
    DatabaseUrlFile,
    DocumentFile,
    HostPort,
    HttpUrl,
    SecretFile,
    ServiceSettings,
    SlackUrl,
)
from interlock_chassis.secret import Secret

# Each one is needed by something the worker does; docs/connect-real-slack.md names which.
BOT_SCOPES = (
    "app_mentions:read",
    "channels:history",
    "groups:history",
    "im:history",
    "chat:write",
    "commands",
    "users:read",
    "users:read.email",
    "channels:read",
    "groups:read",
)
# As long as the SHA-256 that it keys.
_LEAST_FINGERPRINT_KEY = 32

_GOOGLE = "googleapis.com"
_PROJECT = r"[a-z][a-z0-9-]{4,28}[a-z0-9]"
# The names that Cloud KMS takes. A name that goes on with a version would pin
# what wraps to it, and every rotation would pass unnoticed.
_CRYPTO_KEY = re.compile(
    rf"projects/(?P<project>{_PROJECT})/locations/[a-z0-9-]{{1,63}}"
    r"/keyRings/[a-zA-Z0-9_-]{1,63}/cryptoKeys/[a-zA-Z0-9_-]{1,63}"
)
# Of OpenBao: names without dots at their ends, so that no path is climbed.
_NAME = r"[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?"
_PATH = rf"^{_NAME}(/{_NAME})*$"
_BUCKET = rf"^((gs|s3)://[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9](/{_NAME})*)?$"

_NEEDED_BY = {
    "local": ("local_keyset_file",),
    "gcp": ("gcp_kms_project", "gcp_kms_key"),
    "openbao": ("openbao_url", "openbao_token_file", "openbao_key"),
}

_V = TypeVar("_V")


def _googles(url: URL) -> URL:
    # A data key and a token of the machine go there.
    host = url.raw_host or ""
    if url.scheme == "https" and host != _GOOGLE and not host.endswith(f".{_GOOGLE}"):
        raise ValueError(f"must be a host of {_GOOGLE}, or a stand-in on this machine")
    if url.path != "/":
        raise ValueError("must not have a path")
    return url


class VaultSettings(ServiceSettings):
    """Settings of `python -m interlock_token_vault serve`."""

    database_url_file: DatabaseUrlFile
    """File with the URL of the vault's database, as the role `interlock_vault`."""

    slack_client_id: Annotated[str, Field(min_length=1, max_length=128)]
    """Client id of Interlock's own Slack app."""

    slack_client_secret_file: SecretFile
    """File with the client secret of Interlock's own Slack app."""

    slack_api_url: SlackUrl = Field(default="https://slack.com/api/", validate_default=True)
    """Where Slack's Web API is."""

    slack_url: SlackUrl = Field(default="https://slack.com", validate_default=True)
    """Where Slack's consent page is."""

    slack_bot_scopes: CommaList = BOT_SCOPES
    """Scopes asked for at an install, all of them needed; comma-separated."""

    slack_user_scopes: CommaList = ()
    """Scopes asked of the person who installs from Slack, all of them needed; comma-separated.
    None, and no token of a person's is taken."""

    grant_public_keys_file: DocumentFile
    """Keyset file with the public grant keys of edge and identity."""

    kms: Literal["local", "gcp", "openbao"]
    """What wraps data keys: `gcp`, `openbao`, or `local`, keys in a file, for development only."""

    local_keyset_file: Path | None = None
    """Keyset file, mode 0600; needed by `local`."""

    gcp_kms_project: Annotated[str, Field(pattern=rf"^({_PROJECT})?$")] = ""
    """The one Google Cloud project whose key may be used; needed by `gcp`."""

    gcp_kms_key: str = ""
    """`projects/…/locations/…/keyRings/…/cryptoKeys/…`, without a version; needed by `gcp`."""

    gcp_kms_url: Annotated[HttpUrl, AfterValidator(_googles)] = Field(
        default="https://cloudkms.googleapis.com", validate_default=True
    )
    """Where Cloud KMS is, such as a regional endpoint; in development also a stand-in."""

    openbao_url: HttpUrl | None = None
    """Where OpenBao or Vault is; needed by `openbao`."""

    openbao_token_file: Path | None = None
    """File with a token that may `update` encrypt and decrypt of the key; needed by `openbao`."""

    openbao_key: Annotated[str, Field(pattern=rf"^({_NAME})?$")] = ""
    """Transit key of a kind with associated data, such as `aes256-gcm96`; needed by `openbao`."""

    openbao_mount: Annotated[str, Field(pattern=_PATH)] = "transit"
    """Where the transit engine is mounted."""

    openbao_namespace: Annotated[str, Field(pattern=rf"^({_NAME}(/{_NAME})*)?$")] = ""
    """Namespace of the mount; empty: the root namespace."""

    openbao_ca_file: Path | None = None
    """PEM of the authority that signs OpenBao's certificate; none: those of the system."""

    nango_url: HttpUrl | None = None
    """Where Nango's API is; without it nothing is installed by Nango."""

    nango_secret_key_file: SecretFile | None = Field(default=None, validate_default=True)
    """File with the API key of the environment at Nango; needed with `INTERLOCK_NANGO_URL`."""

    nango_webhook_keys_file: DocumentFile | None = None
    """File with the environment's webhook signing key, and the one before on a second line while
    it is rotated; without it webhooks are refused."""

    nango_integration: Annotated[str, Field(min_length=1, max_length=256)] = "work-apps-slack"
    """The app's integration at Nango, its `providerConfigKey`."""

    nango_environment: Annotated[str, Field(max_length=64)] = ""
    """Name of the environment at Nango, which webhooks must be of; empty: any."""

    fingerprint_key_file: SecretFile
    """File with the key of token fingerprints, at least 32 random characters."""

    audit_checkpoint_key_file: DocumentFile | None = None
    """File with the Ed25519 private key, in PEM, that signs the audit log; needed in production."""

    audit_checkpoint_dir: Path | None = None
    """Folder for signed checkpoints, on another disk than the database's; in production this or
    a bucket is needed."""

    audit_checkpoint_url: Annotated[str, Field(pattern=_BUCKET)] = ""
    """Bucket for signed checkpoints in place of a folder, `gs://bucket/prefix` or
    `s3://bucket/prefix`; give it a retention policy."""

    audit_checkpoint_endpoint: HttpUrl | None = None
    """Where the bucket's store is; none: Google's, or Amazon's."""

    audit_checkpoint_region: Annotated[str, Field(pattern=r"^[a-z0-9-]{0,32}$")] = ""
    """Region of an `s3` bucket; empty: what the machine is told."""

    audit_checkpoint_credentials_file: DocumentFile | None = None
    """File for the bucket: of `gs` a service account's key, of `s3` JSON with `access_key_id` and
    `secret_access_key`; none: the machine's own identity."""

    scanner_database_url_file: DatabaseUrlFile | None = None
    """File with the URL of the vault's database, as the role `interlock_vault_scanner`."""

    registered_apps_file: DocumentFile | None = None
    """JSON file with the Slack client of every other app that keeps its installations here."""

    spool_dir: Path | None = None
    """Folder of this process alone, on a disk that outlives it, for new tokens that the database
    has not taken yet; needed in production, and without it no token is refreshed."""

    identity_address: HostPort
    """Where identity serves gRPC, `host:port`."""

    public_url: HttpUrl | None = None
    """Where browsers reach the gateway edge, for the message that an install must be made again;
    without it the message names no address."""

    dek_cache_ttl_seconds: Annotated[int, Field(ge=0, le=300)] = 300
    """How long an unwrapped data key may be used before the KMS is asked again, in seconds."""

    @field_validator("log_level")
    @classmethod
    def _no_debug(cls, level: str) -> str:
        if level == "debug":
            raise ValueError("must not be debug: this process holds tokens")
        return level

    @field_validator(*(field for needed in _NEEDED_BY.values() for field in needed))
    @classmethod
    def _needed(cls, value: _V, info: ValidationInfo) -> _V:
        # When `kms` itself was refused, that is what is reported.
        if not value and info.field_name in _NEEDED_BY.get(info.data.get("kms", ""), ()):
            raise ValueError("required, but not set")
        return value

    @field_validator("audit_checkpoint_url")
    @classmethod
    def _one_place(cls, url: str, info: ValidationInfo) -> str:
        if url and info.data.get("audit_checkpoint_dir") is not None:
            raise ValueError("must not be set beside INTERLOCK_AUDIT_CHECKPOINT_DIR")
        return url

    @field_validator("nango_secret_key_file")
    @classmethod
    def _key_of_nango(cls, key: Secret[str] | None, info: ValidationInfo) -> Secret[str] | None:
        if key is None and info.data.get("nango_url") is not None:
            raise ValueError("required with INTERLOCK_NANGO_URL, but not set")
        return key

    @field_validator("gcp_kms_key")
    @classmethod
    def _key_of_the_project(cls, key: str, info: ValidationInfo) -> str:
        found = _CRYPTO_KEY.fullmatch(key)
        if key and found is None:
            raise ValueError("must name a CryptoKey, in full and without a version")
        if found and found["project"] != info.data.get("gcp_kms_project"):
            raise ValueError("is of another project than INTERLOCK_GCP_KMS_PROJECT")
        return key

    @field_validator("fingerprint_key_file")
    @classmethod
    def _key_length(cls, key: Secret[str]) -> Secret[str]:
        if len(key.reveal()) < _LEAST_FINGERPRINT_KEY:
            raise ValueError(f"the key must have at least {_LEAST_FINGERPRINT_KEY} characters")
        return key
