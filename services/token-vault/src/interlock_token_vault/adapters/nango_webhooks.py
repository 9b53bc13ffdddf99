"""What Nango tells by webhook: believed as far as it is signed, and then only as a hint."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.credential_sources import (
    TENANT_TAG,
    ConnectionRef,
    Hint,
    InvalidSignature,
)
from interlock_token_vault.domain.installation import TenantId

KEYS_VARIABLE = "INTERLOCK_NANGO_WEBHOOK_KEYS_FILE"
# `x-nango-signature` is a plain hash and never looked at.
_SIGNATURE = "x-nango-hmac-sha256"
# The current one and, while it is rotated, the one before.
_MOST_KEYS = 2
_MADE = frozenset({"creation", "override"})


class NangoWebhooks:
    """The Hints port with the environment's signing keys.

    Args:
        keys: One or two signing keys of the environment.
        environment: Only this environment's webhooks count; empty takes any.
    """

    def __init__(self, keys: Sequence[Secret[str]], *, environment: str) -> None:
        self._keys = keys
        self._environment = environment

    @classmethod
    def from_file(cls, document: Secret[str], *, environment: str) -> "NangoWebhooks":
        """Read one or two keys, a line each.

        Raises:
            ConfigError: There are none, or more.
        """
        lines = [line.strip() for line in document.reveal().splitlines() if line.strip()]
        if not 0 < len(lines) <= _MOST_KEYS:
            raise ConfigError(KEYS_VARIABLE, "must hold one key a line, and one or two of them")
        return cls([Secret(line) for line in lines], environment=environment)

    def read(self, body: bytes, headers: Mapping[str, str]) -> Hint | None:
        """Verify a webhook over its raw bytes; see Hints."""
        given = headers.get(_SIGNATURE, "")
        # All keys are compared: how long that takes says nothing of which one fits.
        matches = [hmac.compare_digest(_sign(key, body), given.encode()) for key in self._keys]
        if not any(matches):
            raise InvalidSignature
        return self._read(body)

    def _read(self, body: bytes) -> Hint | None:
        try:
            told = json.loads(body)
        except ValueError:
            return None
        if not isinstance(told, dict) or not isinstance(told.get("tags"), dict):
            return None
        is_made = told.get("type") == "auth" and told.get("operation") in _MADE
        is_ours = self._environment in {"", told.get("environment")}
        names = (
            told.get("providerConfigKey"),
            told.get("connectionId"),
            told["tags"].get(TENANT_TAG),
        )
        if told.get("success") is not True or not is_made or not is_ours:
            return None
        if not all(isinstance(name, str) and name for name in names):
            return None
        key, connection_id, tenant_id = map(str, names)
        is_renewal = told["operation"] == "override"
        return Hint(ConnectionRef(key, connection_id), TenantId(tenant_id), is_renewal)


def _sign(key: Secret[str], body: bytes) -> bytes:
    return hmac.new(key.reveal().encode(), body, hashlib.sha256).hexdigest().encode()
