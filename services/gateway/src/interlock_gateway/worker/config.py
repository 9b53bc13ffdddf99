"""What the worker process is told."""

from datetime import timedelta
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
    ServiceSettings,
    SlackUrl,
)

_RESPONSE_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")


def _slacks(hosts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    # Answers go there, and whoever sends us an event names one of them.
    is_free = info.data.get("environment") is Environment.DEVELOPMENT
    if not is_free and not set(hosts) <= set(_RESPONSE_HOSTS):
        raise ValueError(f"may only list {' and '.join(_RESPONSE_HOSTS)} outside development")
    return hosts


class WorkerSettings(ServiceSettings):
    """Settings of `python -m interlock_gateway worker`."""

    database_url_file: DatabaseUrlFile
    """File with the URL of the gateway database, as the role `interlock_gateway_worker`."""

    public_url: HttpUrl
    """Where browsers reach the gateway edge; links to link an account start with it."""

    grant_public_keys_file: DocumentFile
    """JSON keyset with the public keys that grants of edge and identity verify with."""

    identity_address: HostPort
    """Where identity listens, `host:port`."""

    vault_address: HostPort
    """Where the token vault listens, `host:port`."""

    runner_address: HostPort
    """Where the runner listens, `host:port`."""

    slack_api_url: SlackUrl = URL("https://slack.com/api/")
    """Slack's Web API."""

    slack_response_hosts: Annotated[CommaList, AfterValidator(_slacks)] = _RESPONSE_HOSTS
    """Hosts that Slack's response URLs may name; in development also others, with their port where
    it is not 443."""

    lane_slots: Annotated[int, Field(ge=1, le=1000)] = 32
    """Threads that this process answers at a time."""

    team_lane_cap: Annotated[int, Field(ge=1, le=1000)] = 8
    """Threads of one Slack workspace that are answered at a time, by all workers together."""

    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 20
    """How long answers may go on after SIGTERM before they end as interrupted."""

    @property
    def drain(self) -> timedelta:
        """How long answers may go on after SIGTERM."""
        return timedelta(seconds=self.drain_seconds)
