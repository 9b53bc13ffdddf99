"""What the Nango stand-in is told, and where its ids and secrets come from."""

import re
import secrets
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret

API_KEY = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)
SESSION_TOKEN = re.compile(r"nango_connect_session_[0-9a-f]{64}")
_LOG_ID_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class SlackIntegration:
    """An integration that exists from the start: a Slack app's client and scopes.

    Attributes:
        unique_key: What callers name as `provider_config_key`.
        scopes: Bot scopes, separated by commas.
    """

    unique_key: str
    display_name: str
    client_id: str
    client_secret: Secret[str]
    scopes: str


@dataclass(frozen=True)
class NangoSettings:
    """Everything the stand-in is told.

    Attributes:
        slack_url: The Slack that people authorize at, without a slash at the end.
        api_key: A UUID v4 with full access; more keys come from the control API.
        signing_key: What webhooks are signed with until it is rotated.
        webhook_urls: The environment's one or two; none sends nothing.
        return_url: Where a person goes on to after connecting.
        rate_limit: Requests per minute.
        webhook_retry_delays_s: The waits before the second and later attempts.

    Raises:
        ConfigError: The API key is not a UUID v4, or there are more than two URLs.
    """

    slack_url: str
    api_key: Secret[str]
    signing_key: Secret[str]
    webhook_urls: tuple[str, ...] = ()
    return_url: str = ""
    integrations: tuple[SlackIntegration, ...] = ()
    environment: str = "dev"
    rate_limit: int = 200
    # As seen at Nango 0.71.4; its documentation says 100 ms.
    webhook_retry_delays_s: tuple[float, ...] = (3, 6)
    webhook_timeout_s: float = 20

    def __post_init__(self) -> None:
        if not API_KEY.fullmatch(self.api_key.reveal()):
            raise ConfigError("nango_api_key_file", "must hold a UUID v4, as Nango's keys are")
        if len(self.webhook_urls) > 2:  # noqa: PLR2004 - a primary and a secondary one
            raise ConfigError("nango_webhook_url", "an environment has two webhook URLs at most")


def _uuid4() -> str:
    return str(uuid.uuid4())


def _session_token() -> str:
    return f"nango_connect_session_{secrets.token_hex(32)}"


def _log_suffix() -> str:
    return "".join(secrets.choice(_LOG_ID_ALPHABET) for _ in range(8))


@dataclass(frozen=True)
class Mint:
    """Where new ids and secrets come from; a test passes one whose coins it knows."""

    connection_id: Callable[[], str] = field(default=_uuid4)
    oauth_state: Callable[[], str] = field(default=_uuid4)
    session_token: Callable[[], str] = field(default=_session_token)
    api_key: Callable[[], str] = field(default=_uuid4)
    signing_key: Callable[[], str] = field(default=_uuid4)
    log_suffix: Callable[[], str] = field(default=_log_suffix)
