"""Which other Slack apps may keep their installations here, by mTLS name."""

import json
import re
from collections.abc import Mapping

from interlock_chassis.errors import ConfigError, Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.installation import ClientId

VARIABLE = "INTERLOCK_REGISTERED_APPS_FILE"
_PREFIX = "app/"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Slack's are two numbers with a dot between; anything without a space will do.
_CLIENT_ID = re.compile(r"[!-~]{1,128}")


class AppNotRegistered(ServiceError):
    """No Slack app is registered for this caller."""

    kind = Kind.FORBIDDEN
    reason = "APP_NOT_REGISTERED"


class RegisteredApps:
    """The one Slack client that each registered app sees.

    Args:
        clients: Client ids by app name, as in the mTLS name `app/<name>`.
    """

    def __init__(self, clients: Mapping[str, ClientId]) -> None:
        self._clients = dict(clients)

    @classmethod
    def from_json(cls, document: Secret[str], *, own: ClientId) -> "RegisteredApps":
        """Read `{"apps": {"reports": "1111.2222"}}`.

        Args:
            document: The file's content.
            own: Interlock's own client id, which no app may have.

        Raises:
            ConfigError: It is not such a document, two apps share a client, or
                one has Interlock's own.
        """
        try:
            apps = json.loads(document.reveal())["apps"]
            clients = {str(name): ClientId(client_id) for name, client_id in apps.items()}
            is_readable = all(map(_CLIENT_ID.fullmatch, clients.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(VARIABLE, 'is not {"apps": {name: client id}}') from None
        for name in clients:
            if not is_readable:
                raise ConfigError(VARIABLE, "a client id is not a text without spaces")
            if not _NAME.fullmatch(name):
                raise ConfigError(VARIABLE, "an app's name is not one of an mTLS name app/<name>")
        if own in clients.values():
            raise ConfigError(VARIABLE, "no app may have Interlock's own client id")
        if len(set(clients.values())) != len(clients):
            raise ConfigError(VARIABLE, "two apps have the same client id")
        return cls(clients)

    def client_of(self, caller: str) -> ClientId:
        """Return the Slack client of a caller.

        Raises:
            AppNotRegistered: It has none.
        """
        client_id = self._clients.get(caller.removeprefix(_PREFIX))
        if client_id is None or not caller.startswith(_PREFIX):
            raise AppNotRegistered
        return client_id
