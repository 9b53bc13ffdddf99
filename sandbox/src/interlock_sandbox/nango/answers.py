"""What Nango's answers look like."""

from datetime import UTC, datetime

from interlock_sandbox.nango.environment import JSON, Connection, Credentials, Integration


def instant(at: float) -> str:
    """Write an instant as Nango's newer answers do."""
    return stored_instant(at).replace("+00:00", "Z")


def stored_instant(at: float) -> str:
    """Write an instant as it comes from Nango's database."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def show_integration(integration: Integration, base_url: str) -> JSON:
    """Return an integration without its client."""
    return {
        "unique_key": integration.unique_key,
        "provider": integration.provider,
        "display_name": integration.display_name,
        "logo": f"{base_url}/images/template-logos/{integration.provider}.svg",
        "forward_webhooks": True,
        "created_at": instant(integration.created_at),
        "updated_at": instant(integration.updated_at),
    }


def show_listed(connection: Connection) -> JSON:
    """Return a connection as lists show it."""
    return _head(connection) | {"created": stored_instant(connection.created_at)}


def show_full(connection: Connection, credentials: JSON) -> JSON:
    """Return a connection as it is shown alone."""
    return _head(connection) | {
        "connection_config": connection.connection_config,
        "webhook_url_override": connection.webhook_url_override,
        "created_at": stored_instant(connection.created_at),
        "updated_at": stored_instant(connection.updated_at),
        "last_fetched_at": stored_instant(connection.last_fetched_at),
        "credentials": credentials,
    }


def show_imported(connection: Connection) -> JSON:
    """Return a connection as an import answers; the instants look otherwise there."""
    return show_full(connection, show_credentials(connection.credentials, refresh_token=True)) | {
        "created_at": instant(connection.created_at),
        "updated_at": instant(connection.updated_at),
        "last_fetched_at": instant(connection.last_fetched_at),
    }


def _head(connection: Connection) -> JSON:
    log_id = connection.error_log_id
    return {
        "id": connection.id,
        "connection_id": connection.connection_id,
        "provider_config_key": connection.provider_config_key,
        "provider": connection.provider,
        "errors": [{"type": "auth", "log_id": log_id}] if log_id else [],
        "end_user": connection.end_user,
        "tags": connection.tags,
        "metadata": connection.metadata,
    }


def show_credentials(credentials: Credentials, *, refresh_token: bool) -> JSON:
    """Return credentials; the refresh token is withheld everywhere unless asked for."""
    shown: JSON = {"type": "OAUTH2", "access_token": credentials.access_token}
    raw = dict(credentials.raw)
    if not refresh_token:
        raw.pop("refresh_token", None)
    elif credentials.refresh_token:
        shown["refresh_token"] = credentials.refresh_token
    if credentials.expires_at is not None:
        shown["expires_at"] = instant(credentials.expires_at)
    return shown | {"raw": raw}
