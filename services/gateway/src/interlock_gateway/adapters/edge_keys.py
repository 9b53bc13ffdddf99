"""Edge's two HMAC keys, used without being shown."""

import hashlib
import hmac

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret

# Slack's signing secrets have 32 characters; half of that is a mistake or a test.
MIN_SECRET_CHARS = 16


class HmacKeys:
    """Compute HMAC-SHA256 under one or several keys.

    Args:
        secrets: The keys, newest first.
        variable: The environment variable that named them, for the error.

    Raises:
        ConfigError: A key is blank, too short, or holds white space.
    """

    def __init__(self, *secrets: Secret[str], variable: str) -> None:
        keys = [secret.reveal() for secret in secrets]
        if any(len(key) < MIN_SECRET_CHARS or key != "".join(key.split()) for key in keys):
            raise ConfigError(
                variable, f"must have {MIN_SECRET_CHARS} characters or more, without white space"
            )
        self._secrets = secrets

    def macs(self, message: bytes) -> tuple[bytes, ...]:
        """Return the MAC of the message under every key, in their order."""
        return tuple(
            hmac.digest(secret.reveal().encode(), message, hashlib.sha256)
            for secret in self._secrets
        )

    def mac(self, message: bytes) -> bytes:
        """Return the MAC of the message under the newest key."""
        return self.macs(message)[0]
