"""When Nango asks the provider for a new token, and what it does when there is none."""

import asyncio
from http import HTTPStatus

from interlock_sandbox.nango.environment import Connection, Environment, settle_failure
from interlock_sandbox.nango.provider import ProviderRefused, SlackProvider
from interlock_sandbox.nango.records import Records
from interlock_sandbox.nango.webhooks import Webhooks

# A token that lives shorter than this is refreshed before it is given out.
REFRESH_MARGIN_S = 15 * 60
BACKOFF_S = 30
EXHAUSTED_AFTER_S = 4 * 24 * 3600
_REFUSED = (
    "The external API returned an error when trying to refresh the access token."
    " Please try again later."
)


class NoFreshToken(Exception):
    """A connection's token could not be made fresh.

    Attributes:
        status: 400 when the provider was asked now, 424 when Nango did not ask.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Refresher:
    """Keep tokens fresh, each connection by one request to the provider at a time."""

    def __init__(
        self,
        environment: Environment,
        provider: SlackProvider,
        webhooks: Webhooks,
        records: Records,
    ) -> None:
        self._environment = environment
        self._provider = provider
        self._webhooks = webhooks
        self._records = records
        self._running: dict[int, asyncio.Task[bool]] = {}

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def freshen(self, connection: Connection, *, force: bool) -> None:
        """Refresh a token that ends soon, or at once if forced.

        Without a refresh token nothing can be done, and nothing is. After a
        failure even a good token is withheld for a while, except by force.

        Raises:
            NoFreshToken: The provider refused, now or a moment ago.
        """
        now = self._environment.now()
        if not force and connection.exhausted:
            raise NoFreshToken(
                HTTPStatus.FAILED_DEPENDENCY, "The connection refresh limit has been reached."
            )
        failed_at = connection.failed_at
        if not force and failed_at is not None and now < failed_at + BACKOFF_S:
            raise NoFreshToken(
                HTTPStatus.FAILED_DEPENDENCY,
                "A recent refresh attempt failed. Backing off before retrying.",
            )
        if connection.credentials.refresh_token is None:
            return
        ends_at = connection.credentials.expires_at
        if not force and (ends_at is None or now < ends_at - REFRESH_MARGIN_S):
            return
        if not await self._refresh_once(connection):
            raise NoFreshToken(HTTPStatus.BAD_REQUEST, _REFUSED)

    async def _refresh_once(self, connection: Connection) -> bool:
        """Start a refresh, or join the one under way; an asker who leaves ends neither."""
        task = self._running.get(connection.id)
        if task is None:
            task = asyncio.create_task(self._refresh(connection))
            self._running[connection.id] = task
            task.add_done_callback(lambda _: self._running.pop(connection.id, None))
        return await asyncio.shield(task)

    async def _refresh(self, connection: Connection) -> bool:
        integration = self._environment.integrations[connection.provider_config_key]
        refresh_token = connection.credentials.refresh_token or ""
        try:
            if self._records.refuses_refresh(connection.connection_id):
                raise ProviderRefused("invalid_refresh_token")  # noqa: TRY301 - as Slack would
            credentials = await self._provider.refresh(integration, refresh_token)
        except ProviderRefused:
            self._failed(connection)
            return False
        connection.credentials = credentials
        self._environment.note_credentials(credentials)
        settle_failure(connection)
        connection.updated_at = connection.last_fetched_at = self._environment.now()
        self._environment.changed()
        return True

    def _failed(self, connection: Connection) -> None:
        now = self._environment.now()
        if connection.failing_since is None:
            connection.failing_since = now
        connection.failed_at = connection.updated_at = now
        connection.exhausted = now - connection.failing_since >= EXHAUSTED_AFTER_S
        connection.error_log_id = self._environment.new_log_id()
        error = {"type": "refresh_token_external_error", "description": _REFUSED}
        self._webhooks.refresh_failed(connection, error)
        self._environment.changed()
