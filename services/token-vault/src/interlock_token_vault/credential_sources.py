"""Where a bot's token comes from when the vault does not keep it itself.

The vault then holds the name of a connection only, sealed as a token would be,
and asks for the token just before it is used. What comes back is believed only
as far as it is the installation's: its tenant's tag, and its workspace.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.install import ExchangeAnswer
from interlock_token_vault.domain.installation import TenantId

TENANT_TAG = "tenantid"
"""The tag with the tenant; Nango keeps tags in lower case."""


class NangoUnavailable(ServiceError):
    """Nango does not answer, or not now."""

    kind = Kind.UNAVAILABLE
    reason = "NANGO_UNAVAILABLE"


class NangoBackingOff(NangoUnavailable):
    """Nango failed to refresh the token a moment ago and withholds it."""

    reason = "NANGO_BACKING_OFF"


class NangoNotConfigured(ServiceError):
    """The operator has not set Nango up."""

    kind = Kind.PRECONDITION
    reason = "NANGO_NOT_CONFIGURED"


class NangoRefused(ServiceError):
    """Nango does not take our request: its key, or the integration, is not set up for it."""

    kind = Kind.PRECONDITION
    reason = "NANGO_REFUSED"


class ConnectionNotFound(ServiceError):
    """Nango has no such connection."""

    kind = Kind.NOT_FOUND
    reason = "CONNECTION_NOT_FOUND"


class ConnectionAwaited(ServiceError):
    """Nobody has connected anything for this install yet."""

    kind = Kind.PRECONDITION
    reason = "CONNECTION_AWAITED"


class ConnectionDead(ServiceError):
    """Slack no longer takes what the connection holds; it must be connected again."""

    kind = Kind.PRECONDITION
    reason = "CONNECTION_DEAD"


class ConnectionNotYours(ServiceError):
    """The connection was made for another tenant."""

    kind = Kind.FORBIDDEN
    reason = "CONNECTION_NOT_YOURS"


class InvalidSignature(ServiceError):
    """The webhook is not signed with a key of ours."""

    kind = Kind.UNAUTHENTICATED
    reason = "INVALID_SIGNATURE"


@dataclass(frozen=True, slots=True)
class ConnectionRef:
    """A connection's name; opaque.

    Attributes:
        provider_config_key: Nango's integration.
        connection_id: Unique within it.
    """

    provider_config_key: str
    connection_id: str

    def to_seal(self) -> Secret[str]:
        """Write the name as it is sealed."""
        return Secret(json.dumps([self.provider_config_key, self.connection_id]))

    @classmethod
    def of_sealed(cls, opened: Secret[str]) -> "ConnectionRef":
        """Read what `to_seal` wrote."""
        # Sealed like a token, so that it cannot be re-pointed; no secret by itself.
        return cls(*json.loads(opened.reveal()))


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a connection holds at this moment.

    Attributes:
        token: The bot's token; for one use.
        expires_at: When Slack ends it; None for a long-lived one.
        tags: Names in lower case.
        answer: What Slack answered when the workspace was connected; None for a
            connection that was imported.
    """

    ref: ConnectionRef
    token: Secret[str]
    expires_at: datetime | None
    tags: Mapping[str, str] = field(default_factory=dict)
    answer: ExchangeAnswer | None = None


@dataclass(frozen=True, slots=True)
class ConnectSession:
    """Leave for a browser to connect one workspace.

    Attributes:
        token: Takes the browser into Nango's own dialogue.
        link: The same as a page.
    """

    token: Secret[str]
    link: str
    expires_at: datetime


class CredentialSource(Protocol):
    """Gives the token of a connection."""

    async def fetch(self, ref: ConnectionRef, *, is_forced: bool = False) -> Fetched:
        """Fetch a connection with its token.

        Args:
            ref: The connection.
            is_forced: Have a new token made now, if the connection can make any.

        Raises:
            ConnectionNotFound: There is none of this name.
            ConnectionDead: Slack does not refresh its token any more.
            NangoBackingOff: A refresh failed lately; its `retry_after` says when to ask again.
            NangoRefused: The key may not read credentials, or is not known.
            NangoUnavailable: No usable answer.
        """
        ...


class Connections(CredentialSource, Protocol):
    """What installing needs of Nango besides. All raise as `fetch`."""

    async def open_session(
        self, integration: str, tags: Mapping[str, str], reconnects: str = ""
    ) -> ConnectSession:
        """Let a browser connect one workspace, at one integration.

        Args:
            integration: Nango's integration; the only one allowed.
            tags: What the connection will carry.
            reconnects: The connection to renew, so that no second one appears;
                empty makes a new one.

        Raises:
            ConnectionNotFound: There is none to reconnect.
        """
        ...

    async def label(self, ref: ConnectionRef, metadata: Mapping[str, str]) -> None:
        """Replace a connection's metadata."""
        ...

    async def delete(self, ref: ConnectionRef) -> None:
        """Delete a connection; one that is gone is deleted."""
        ...


@dataclass(frozen=True, slots=True)
class Hint:
    """A connection that Nango says was made for a tenant.

    Attributes:
        is_renewal: It was there before, and was connected again.
    """

    ref: ConnectionRef
    tenant_id: TenantId
    is_renewal: bool = False


class Hints(Protocol):
    """Tells Nango's webhooks from others'."""

    def read(self, body: bytes, headers: Mapping[str, str]) -> Hint | None:
        """Verify a webhook over its raw bytes; None for what hints at no connection.

        Args:
            body: As it came.
            headers: Names in lower case.

        Raises:
            InvalidSignature: No key of ours made the signature.
        """
        ...
