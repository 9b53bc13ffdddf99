"""What the edge process is told."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo
from yarl import URL

from interlock_chassis.config import (
    CommaList,
    DatabaseUrlFile,
    DocumentFile,
    Environment,
    HostPort,
    HttpUrl,
    SecretFile,
    ServiceSettings,
    SlackUrl,
)


def _without_path(url: URL) -> URL:
    if url.raw_path not in {"", "/"}:
        raise ValueError("must not hold a path")
    return url.origin()


def _origin_only(url: URL | None) -> URL | None:
    return None if url is None else _without_path(url)


def _networks(items: tuple[str, ...]) -> tuple[str, ...]:
    for item in items:
        try:
            ipaddress.ip_network(item)
        except ValueError:
            raise ValueError("must list addresses or networks, such as 10.0.0.0/8") from None
    return items


def _in_development(url: URL | None, info: ValidationInfo) -> URL | None:
    if url is not None and info.data.get("environment") is not Environment.DEVELOPMENT:
        raise ValueError("is for development only")
    return url


class EdgeSettings(ServiceSettings):
    """Settings of `python -m interlock_gateway edge`."""

    public_url: Annotated[HttpUrl, AfterValidator(_without_path)]
    """Where browsers and Slack reach this process; every URL of ours starts with it."""

    database_url_file: DatabaseUrlFile
    """File with the URL of the gateway database, as the role `interlock_gateway_edge`."""

    slack_signing_secret_file: SecretFile
    """File with Slack's signing secret."""

    slack_previous_signing_secret_file: SecretFile | None = None
    """File with the signing secret before, while Slack changes over."""

    slack_app_id: Annotated[str, Field(pattern=r"^A[A-Z0-9]{2,20}$")]
    """Our Slack app, `A…`; requests for another app are refused."""

    grant_keys_file: DocumentFile
    """Keyset that signs slackGrants, private parts included."""

    csrf_key_file: SecretFile
    """File with the key of form tokens; at least 32 random characters, the same in all replicas."""

    identity_address: HostPort
    """The identity service, `host:port`."""

    vault_address: HostPort
    """The token vault, `host:port`."""

    worker_address: HostPort
    """The gateway worker, `host:port`."""

    auth_url: HttpUrl
    """The auth server; people sign in at `{auth_url}/sign-in`."""

    session_cookie_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = (
        "better-auth.session_token"
    )
    """Name of the auth server's session cookie."""

    slack_url: Annotated[SlackUrl, AfterValidator(_without_path)] = URL("https://slack.com")
    """Where Slack's own pages are."""

    nango_connect_url: Annotated[HttpUrl | None, AfterValidator(_origin_only)] = None
    """Where Nango's Connect page is, such as `https://connect.nango.dev`; with it the dashboard
    installs by Nango, and without it directly from Slack."""

    trusted_proxies: Annotated[CommaList, AfterValidator(_networks)] = ()
    """Networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    playground_url: Annotated[HttpUrl | None, AfterValidator(_in_development)] = None
    """The sandbox's Slack client, for the guide on the welcome page; development only."""
