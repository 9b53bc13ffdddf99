"""The sandbox's configuration: one JSON file, read strictly."""

import base64
import binascii
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret

# RFC 7518 asks HS256 keys for at least the size of the hash.
MIN_HS256_KEY_BYTES = 32
MAX_PORT = 65_535
# The stand-ins give tokens and sessions away to whoever asks; nobody else may reach them.
LISTEN_HOSTS = frozenset({"127.0.0.1", "localhost"})


class Address(NamedTuple):
    """Where a listener is bound; port 0 lets the system choose."""

    host: str
    port: int


@dataclass(frozen=True)
class UserTokenKey:
    """A secret that the platform verifies slackUser tokens with.

    Attributes:
        legacy: Also verifies tokens that name no key.
    """

    kid: str
    secret: Secret[bytes]
    legacy: bool


@dataclass(frozen=True)
class SlackApp:
    """The one app that the Slack stand-in knows, as its owner configured it.

    Attributes:
        global_shortcuts: Callback ids of its shortcuts in the search bar.
        message_shortcuts: Callback ids of its shortcuts in the menus of messages.
        app_token: Its app-level token; None lets the stand-in make one.
    """

    id: str
    name: str
    client_id: str
    client_secret: Secret[str]
    signing_secret: Secret[str]
    events_url: str
    interactions_url: str
    commands_url: str
    redirect_urls: tuple[str, ...]
    slash_commands: tuple[str, ...]
    event_subscriptions: frozenset[str]
    global_shortcuts: tuple[str, ...] = ()
    message_shortcuts: tuple[str, ...] = ()
    app_token: Secret[str] | None = None


@dataclass(frozen=True)
class NangoListener:
    """A Nango beside the Slack, for installs by way of it.

    Attributes:
        api_key: A UUID v4, as Nango's keys are.
        webhook_key: What its webhooks are signed with.
        webhook_urls: Where they go; none sends nothing.
    """

    listen: Address
    api_key: Secret[str]
    webhook_key: Secret[str]
    webhook_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """Everything the sandbox is told.

    Attributes:
        membership_database_url: A Postgres that the auth server keeps its
            people and memberships in, for readers of its tables; None keeps
            them in memory only.
        state_file: Where to keep the state; None keeps it in memory only.
        retry_delays_s: When Slack tries an unanswered event again, in seconds
            after the attempt before.
        delivery_timeout_s: How long Slack waits for an answer to a request.
        stream_life_s: When a streaming message stops taking text.
        token_rotation: Whether the app has token rotation on at the start.
        refresh_grace_s: How long a used refresh token works again.
        rate_limits: Whether Slack's limits per method and workspace are in force.
        history_once_a_minute: Whether Slack limits history and replies as for
            apps outside of its Marketplace.
        delayed_events: Whether Slack sends an event that was never taken for a
            day more, every `delayed_event_interval_s`.
        word_delay_s: How long the scripted agents pause between words.
        nango: None runs no Nango.
    """

    slack_listen: Address
    platform_listen: Address
    auth_listen: Address
    app: SlackApp
    dashboard_url: str
    user_token_keys: tuple[UserTokenKey, ...]
    auth_cookie_secret: Secret[str]
    membership_database_url: Secret[str] | None = None
    state_file: Path | None = None
    trusted_origins: frozenset[str] = field(default_factory=frozenset)
    retry_delays_s: tuple[float, ...] = (0, 60, 300)
    delivery_timeout_s: float = 3
    stream_life_s: float = 300
    token_rotation: bool = False
    refresh_grace_s: float = 30
    rate_limits: bool = True
    history_once_a_minute: bool = False
    delayed_events: bool = False
    delayed_event_interval_s: float = 3600
    word_delay_s: float = 0.04
    nango: NangoListener | None = None


_REQUIRED = frozenset(
    {
        "slack_listen",
        "platform_listen",
        "auth_listen",
        "app_id",
        "client_id",
        "client_secret_file",
        "signing_secret_file",
        "events_url",
        "interactions_url",
        "commands_url",
        "redirect_urls",
        "dashboard_url",
        "user_token_keys_file",
        "auth_cookie_secret_file",
    }
)
_OPTIONAL = frozenset(
    {
        "app_name",
        "slash_commands",
        "global_shortcuts",
        "message_shortcuts",
        "app_token_file",
        "event_subscriptions",
        "membership_database_url_file",
        "state_file",
        "trusted_origins",
        "retry_delays_s",
        "delivery_timeout_s",
        "stream_life_s",
        "token_rotation",
        "refresh_grace_s",
        "rate_limits",
        "history_once_a_minute",
        "delayed_events",
        "delayed_event_interval_s",
        "word_delay_s",
        "nango_listen",
        "nango_api_key_file",
        "nango_webhook_key_file",
        "nango_webhook_urls",
    }
)
DEFAULT_SUBSCRIPTIONS = (
    "agent_session_stopped",
    "app_mention",
    "app_uninstalled",
    "message.im",
    "tokens_revoked",
)


def load_config(path: Path) -> Config:
    """Read the configuration; relative paths in it start at its folder.

    Raises:
        ConfigError: A key is unknown, missing or of the wrong kind, or a file
            that it names cannot be used.
    """
    values = _Values(_read_json(path, "--config"), path.parent)
    values.require_keys(_REQUIRED, _OPTIONAL)
    database = "membership_database_url_file"
    return Config(
        slack_listen=values.address("slack_listen"),
        platform_listen=values.address("platform_listen"),
        auth_listen=values.address("auth_listen"),
        app=_slack_app(values),
        dashboard_url=values.url("dashboard_url"),
        user_token_keys=_user_token_keys(values.path("user_token_keys_file")),
        auth_cookie_secret=values.secret("auth_cookie_secret_file"),
        membership_database_url=values.secret(database) if values.has(database) else None,
        state_file=values.path("state_file") if values.has("state_file") else None,
        trusted_origins=frozenset(values.texts("trusted_origins", ())),
        retry_delays_s=values.numbers("retry_delays_s", (0, 60, 300)),
        delivery_timeout_s=values.number("delivery_timeout_s", 3),
        stream_life_s=values.number("stream_life_s", 300),
        token_rotation=values.flag("token_rotation", default=False),
        refresh_grace_s=values.number("refresh_grace_s", 30),
        rate_limits=values.flag("rate_limits", default=True),
        history_once_a_minute=values.flag("history_once_a_minute", default=False),
        delayed_events=values.flag("delayed_events", default=False),
        delayed_event_interval_s=values.number("delayed_event_interval_s", 3600),
        word_delay_s=values.number("word_delay_s", 0.04),
        nango=_nango(values) if values.has("nango_listen") else None,
    )


def _nango(values: "_Values") -> NangoListener:
    return NangoListener(
        listen=values.address("nango_listen"),
        api_key=values.secret("nango_api_key_file"),
        webhook_key=values.secret("nango_webhook_key_file"),
        webhook_urls=values.texts("nango_webhook_urls", ()),
    )


def _slack_app(values: "_Values") -> SlackApp:
    return SlackApp(
        id=values.text("app_id"),
        name=values.text("app_name", "Interlock"),
        client_id=values.text("client_id"),
        client_secret=values.secret("client_secret_file"),
        signing_secret=values.secret("signing_secret_file"),
        events_url=values.url("events_url"),
        interactions_url=values.url("interactions_url"),
        commands_url=values.url("commands_url"),
        redirect_urls=values.texts("redirect_urls"),
        slash_commands=values.texts("slash_commands", ("/interlock",)),
        event_subscriptions=frozenset(values.texts("event_subscriptions", DEFAULT_SUBSCRIPTIONS)),
        global_shortcuts=values.texts("global_shortcuts", ()),
        message_shortcuts=values.texts("message_shortcuts", ()),
        app_token=values.secret("app_token_file") if values.has("app_token_file") else None,
    )


class _Values:
    """Typed access to one JSON object; every refusal names the key."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        self._values = values
        self._folder = folder

    def require_keys(self, required: frozenset[str], optional: frozenset[str]) -> None:
        for key in sorted(self._values.keys() - required - optional):
            raise ConfigError(key, "is not a setting of the sandbox")
        for key in sorted(required - self._values.keys()):
            raise ConfigError(key, "is missing from the configuration")

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or not value:
            _refuse(key, "must be a text")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._values.get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            _refuse(key, "must be a list of texts")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        return self._number(key, self._values.get(key, default))

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            _refuse(key, "must be true or false")
        return value

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self._values.get(key, default)
        if not isinstance(value, list | tuple):
            _refuse(key, "must be a list of numbers")
        return tuple(self._number(key, each) for each in value)

    def url(self, key: str) -> str:
        value = self.text(key)
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            _refuse(key, "must be an http or https URL")
        return value

    def address(self, key: str) -> Address:
        host, _, port = self.text(key).rpartition(":")
        if host not in LISTEN_HOSTS:
            _refuse(key, "must be 127.0.0.1:PORT; the stand-ins serve this machine only")
        if not (port.isascii() and port.isdigit() and int(port) <= MAX_PORT):
            _refuse(key, "must end in a port number")
        return Address(host, int(port))

    def path(self, key: str) -> Path:
        return self._folder / self.text(key)

    def secret(self, key: str) -> Secret[str]:
        return Secret.from_file(self.path(key), variable=key)

    @staticmethod
    def _number(key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            _refuse(key, "must be a number, zero or more")
        return float(value)


def _user_token_keys(path: Path) -> tuple[UserTokenKey, ...]:
    keyset = _read_json(path, "user_token_keys_file")
    rows = keyset.get("keys")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        _refuse("user_token_keys_file", "has no list of keys")
    keys = tuple(_user_token_key(row) for row in rows if "slackUser" in row.get("families", ()))
    if not keys:
        _refuse("user_token_keys_file", "has no key of the family slackUser")
    return keys


def _user_token_key(row: dict[str, Any]) -> UserTokenKey:
    kid, encoded = row.get("kid"), row.get("k")
    if row.get("kty") != "oct" or not isinstance(kid, str) or not isinstance(encoded, str):
        _refuse("user_token_keys_file", "has a key that is not a named symmetric one")
    try:
        secret = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        _refuse("user_token_keys_file", "has a key that is not base64url")
    if len(secret) < MIN_HS256_KEY_BYTES:
        _refuse("user_token_keys_file", f"has a key shorter than {MIN_HS256_KEY_BYTES} bytes")
    return UserTokenKey(kid, Secret(secret), row.get("legacy") is True)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(name, f"cannot read the file: {error.strerror}") from None
    except ValueError:
        # The original error quotes the file.
        raise ConfigError(name, "the file is not JSON") from None
    if not isinstance(document, dict):
        raise ConfigError(name, "the file is not a JSON object")
    return document


def _refuse(key: str, problem: str) -> NoReturn:
    raise ConfigError(key, problem)
