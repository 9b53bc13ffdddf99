"""What another Slack app saved of an installation: a record, and the place it is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import NewType
from uuid import UUID

from interlock_chassis.secret import Secret
from interlock_token_vault.domain.envelope import encode_parts
from interlock_token_vault.domain.installation import ClientId, DekId, InstallationId

RecordId = NewType("RecordId", UUID)

_FORMAT = "app-record/1"


class RecordKind(Enum):
    """Which of Bolt's two kinds of record."""

    INSTALLATION = "installation"
    BOT = "bot"


class SecretName(Enum):
    """What of a record is sealed."""

    BOT_TOKEN = "bot_token"  # noqa: S105 - A name.
    BOT_REFRESH_TOKEN = "bot_refresh_token"  # noqa: S105 - A name.
    USER_TOKEN = "user_token"  # noqa: S105 - A name.
    USER_REFRESH_TOKEN = "user_refresh_token"  # noqa: S105 - A name.
    WEBHOOK_URL = "incoming_webhook_url"
    WEBHOOK_CONFIGURATION_URL = "incoming_webhook_configuration_url"
    CUSTOM_VALUES = "custom_values"


REFRESH_OF = {
    SecretName.BOT_TOKEN: SecretName.BOT_REFRESH_TOKEN,
    SecretName.USER_TOKEN: SecretName.USER_REFRESH_TOKEN,
}
"""The refresh token that belongs to an access token; goes in, and never out."""

# What the audit log calls what is released.
KIND_OF = {
    SecretName.BOT_TOKEN: "bot",
    SecretName.USER_TOKEN: "user",
    SecretName.WEBHOOK_URL: "webhook",
}


@dataclass(frozen=True, slots=True)
class AppPlace:
    """Where an app is installed, as Slack keys it: an org-wide install has no team.

    Attributes:
        client_id: Of the app that asks, from its certificate.
    """

    client_id: ClientId
    enterprise_id: str
    team_id: str


@dataclass(frozen=True, slots=True)
class AppRecord:
    """What an app saved at one time.

    Attributes:
        user_id: Who installed; empty for a bot's record.
        installed_at: The record's time; the greatest one is the newest record.
        details: What is no secret, by field.
        secrets: What is one; absent where the app gave none.
    """

    kind: RecordKind
    user_id: str
    installed_at: datetime
    details: Mapping[str, object]
    secrets: Mapping[SecretName, Secret[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecretContext:
    """Everything that a sealed secret of a record is bound to."""

    environment: str
    place: AppPlace
    installation_id: InstallationId
    record_id: RecordId
    kind: RecordKind
    user_id: str
    installed_at: datetime
    name: SecretName
    dek_id: DekId

    def encode(self) -> bytes:
        """Encode every part with its length, under a label that no other context has."""
        return encode_parts(
            _FORMAT,
            self.environment,
            self.place.client_id,
            self.place.enterprise_id,
            self.place.team_id,
            str(self.installation_id),
            str(self.record_id),
            self.kind.value,
            self.user_id,
            self.installed_at.astimezone(UTC).isoformat(),
            self.name.value,
            str(self.dek_id),
        )
