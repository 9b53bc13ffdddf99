"""One Nango environment: integrations, sessions, connections, and the keys to it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from interlock_sandbox.nango.settings import Mint, NangoSettings, SlackIntegration

JSON = dict[str, Any]

FULL_ACCESS = ("environment:*",)
SESSION_LIFE_S = 30 * 60


@dataclass
class Integration:
    """A provider with the client that people authorize for it."""

    unique_key: str
    provider: str
    display_name: str
    client_id: str
    client_secret: str
    scopes: str
    created_at: float
    updated_at: float


@dataclass
class Credentials:
    """What a provider gave out for one connection.

    Attributes:
        raw: The provider's whole answer, or what was imported.
    """

    access_token: str
    raw: JSON
    refresh_token: str | None = None
    expires_at: float | None = None


@dataclass
class Connection:
    """One authorization by one person, under the id that callers know it by.

    Attributes:
        id: Counts up within the account and is not used again.
        error_log_id: Where the log says why the last refresh failed.
        failed_at: When that was; refreshes back off for a while then.
        failing_since: When the first failure since a success was.
        exhausted: It failed for so long that nobody tries by themselves.
    """

    id: int
    connection_id: str
    provider_config_key: str
    provider: str
    credentials: Credentials
    created_at: float
    updated_at: float
    last_fetched_at: float
    tags: dict[str, str] = field(default_factory=dict)
    metadata: JSON | None = None
    connection_config: JSON = field(default_factory=dict)
    end_user: JSON | None = None
    webhook_url_override: str | None = None
    error_log_id: str | None = None
    failed_at: float | None = None
    failing_since: float | None = None
    exhausted: bool = False


@dataclass
class Session:
    """The right to make connections, given to a person's browser for a while.

    Attributes:
        allowed_integrations: None allows all.
        reconnects: The connection that is replaced instead of making a new one.
    """

    token: str
    expires_at: float
    tags: dict[str, str]
    allowed_integrations: list[str] | None = None
    end_user: JSON | None = None
    webhook_url_override: str | None = None
    reconnects: str | None = None


@dataclass(frozen=True)
class Authorization:
    """A person on the way to the provider and back."""

    session: Session
    integration: Integration
    connection_id: str


class Environment:
    """Hold the environment, and remember every secret it gave out or was given.

    Args:
        saved: What `snapshot` returned in an earlier run.
    """

    def __init__(
        self,
        settings: NangoSettings,
        saved: Any,
        *,
        mint: Mint,
        now: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.name = settings.environment
        self.mint = mint
        self.now = now
        self.changed = changed
        loaded: JSON = saved or {}
        self.integrations = {
            row["unique_key"]: Integration(**row) for row in loaded.get("integrations", ())
        }
        for configured in settings.integrations:
            self.integrations[configured.unique_key] = self._configured(configured)
        self.connections = [_load_connection(row) for row in loaded.get("connections", ())]
        self.sessions = {row["token"]: Session(**row) for row in loaded.get("sessions", ())}
        self._authorizations: dict[str, Authorization] = {}
        self._last_id: int = loaded.get("last_id", 0)
        self.secrets: dict[str, None] = dict.fromkeys(loaded.get("secrets", ()))
        self.api_keys: dict[str, tuple[str, ...]] = {
            key: tuple(scopes) for key, scopes in loaded.get("api_keys", {}).items()
        }
        self.api_keys[settings.api_key.reveal()] = FULL_ACCESS
        self._configured_key = settings.signing_key.reveal()
        # Another key in the configuration counts more than what was rotated before.
        rotated = loaded.get("configured_key") == self._configured_key
        self._signing_key: str = loaded["signing_key"] if rotated else self._configured_key
        self._old_signing_key, self._old_key_until = self._signing_key, 0.0

    def snapshot(self) -> JSON:
        """Return what a restart needs. Who is at the provider meanwhile starts again."""
        return {
            "integrations": [dataclasses.asdict(each) for each in self.integrations.values()],
            "connections": [dataclasses.asdict(each) for each in self.connections],
            "sessions": [dataclasses.asdict(each) for each in self.sessions.values()],
            "last_id": self._last_id,
            "secrets": list(self.secrets),
            "api_keys": {key: list(scopes) for key, scopes in self.api_keys.items()},
            "configured_key": self._configured_key,
            "signing_key": self._signing_key,
        }

    def _configured(self, configured: SlackIntegration) -> Integration:
        known = self.integrations.get(configured.unique_key)
        return Integration(
            unique_key=configured.unique_key,
            provider="slack",
            display_name=configured.display_name,
            client_id=configured.client_id,
            client_secret=configured.client_secret.reveal(),
            scopes=configured.scopes,
            created_at=known.created_at if known else self.now(),
            updated_at=known.updated_at if known else self.now(),
        )

    # Keys.

    def signing_key(self) -> str:
        """Return what the next webhook is signed with."""
        return self._old_signing_key if self.now() < self._old_key_until else self._signing_key

    def rotate_signing_key(self, *, old_key_for_s: float = 0) -> str:
        """Make a new key; sign with the old one for a while, as slow processes do."""
        self._old_signing_key, self._old_key_until = self.signing_key(), self.now() + old_key_for_s
        self._signing_key = self.mint.signing_key()
        self.secrets[self._old_signing_key] = None
        self.changed()
        return self._signing_key

    def add_api_key(self, scopes: tuple[str, ...]) -> str:
        """Make a key that may do only this."""
        key = self.mint.api_key()
        self.api_keys[key] = scopes
        self.changed()
        return key

    def list_secrets(self) -> list[str]:
        """List every secret that was ever here."""
        clients = [each.client_secret for each in self.integrations.values()]
        kept = [self._configured_key, self._signing_key, *self.api_keys, *clients]
        return list(dict.fromkeys([*self.secrets, *kept]))

    # Sessions, and people on their way.

    def open_session(self, **details: Any) -> Session:
        """Make a session; its life starts now. Those that ended are forgotten."""
        now = self.now()
        self.sessions = {
            token: each for token, each in self.sessions.items() if now < each.expires_at
        }
        session = Session(
            token=self.mint.session_token(), expires_at=now + SESSION_LIFE_S, **details
        )
        self.sessions[session.token] = session
        self.secrets[session.token] = None
        self.changed()
        return session

    def find_session(self, token: str) -> Session | None:
        """Find a session that is still alive."""
        session = self.sessions.get(token)
        return session if session and self.now() < session.expires_at else None

    def close_session(self, session: Session) -> None:
        """End a session early."""
        del self.sessions[session.token]
        self.changed()

    def start_authorization(self, session: Session, integration: Integration) -> str:
        """Note that a person goes to the provider; return the state to go with."""
        connection_id = session.reconnects or self.mint.connection_id()
        state = self.mint.oauth_state()
        self._authorizations[state] = Authorization(session, integration, connection_id)
        self.secrets[state] = None
        return state

    def take_authorization(self, state: str) -> Authorization | None:
        """Find who comes back with a state, once."""
        return self._authorizations.pop(state, None)

    # Connections.

    def find_connection(self, connection_id: str, key: str) -> Connection | None:
        """Find a connection of an integration."""
        return next(
            (
                each
                for each in self.connections
                if each.connection_id == connection_id and each.provider_config_key == key
            ),
            None,
        )

    def put_connection(
        self, integration: Integration, connection_id: str, credentials: Credentials
    ) -> tuple[Connection, bool]:
        """Make a connection or replace one's credentials; tell whether it is new."""
        self.note_credentials(credentials)
        known = self.find_connection(connection_id, integration.unique_key)
        if known:
            known.credentials = credentials
            settle_failure(known)
            self.changed()
            return known, False
        self._last_id += 1
        at = self.now()
        connection = Connection(
            id=self._last_id,
            connection_id=connection_id,
            provider_config_key=integration.unique_key,
            provider=integration.provider,
            credentials=credentials,
            created_at=at,
            updated_at=at,
            last_fetched_at=at,
        )
        self.connections.append(connection)
        self.changed()
        return connection, True

    def note_credentials(self, credentials: Credentials) -> None:
        """Remember the secrets in what a provider gave out."""
        for token in (credentials.access_token, credentials.refresh_token):
            if token:
                self.secrets[token] = None

    def new_log_id(self) -> str:
        """Return the id of a log entry."""
        return f"{round(self.now() * 1000)}_{self.mint.log_suffix()}"


def settle_failure(connection: Connection) -> None:
    """Forget that refreshes failed."""
    connection.error_log_id = None
    connection.failed_at = connection.failing_since = None
    connection.exhausted = False


def _load_connection(row: JSON) -> Connection:
    return Connection(**{**row, "credentials": Credentials(**row["credentials"])})
