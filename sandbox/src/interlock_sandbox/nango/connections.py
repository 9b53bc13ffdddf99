"""Connections: listed, fetched with credentials, imported, labelled, deleted."""

import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.nango.answers import (
    show_credentials,
    show_full,
    show_imported,
    show_listed,
)
from interlock_sandbox.nango.environment import (
    JSON,
    Connection,
    Credentials,
    Environment,
    Integration,
)
from interlock_sandbox.nango.fields import Fields, end_user_tags, read_end_user
from interlock_sandbox.nango.gate import Ask, Gate
from interlock_sandbox.nango.refreshing import NoFreshToken, Refresher
from interlock_sandbox.nango.refusals import Refusal, unknown_integration
from interlock_sandbox.nango.webhooks import Webhooks

DEFAULT_PAGE = 10_000
_TAG = re.compile(r"tags\[(.+)\]")
_LIST = ("environment:connections:list", "environment:connections:list_credentials")
_READ_CREDENTIALS = "environment:connections:read_credentials"
_READ = ("environment:connections:read", _READ_CREDENTIALS)
_CREATE = ("environment:connections:create",)
_UPDATE = ("environment:connections:update",)
_DELETE = ("environment:connections:delete",)


@dataclass(frozen=True)
class _Filter:
    """What a list is narrowed to; None narrows nothing."""

    tags: dict[str, str]
    connection_id: str | None
    search: str | None
    integrations: str | None
    end_user: str | None
    organization: str | None

    def admits(self, connection: Connection) -> bool:
        """Tell whether a connection is listed."""
        end_user = connection.end_user or {}
        organization = end_user.get("organization") or {}
        profile = [end_user.get(name) or "" for name in ("id", "email", "display_name")]
        return (
            self.tags.items() <= connection.tags.items()
            and self.connection_id in {None, connection.connection_id}
            and self.end_user in {None, end_user.get("id")}
            and self.organization in {None, organization.get("id")}
            and (
                self.integrations is None
                or connection.provider_config_key in self.integrations.split(",")
            )
            and (
                self.search is None
                or any(self.search in text for text in (connection.connection_id, *profile))
            )
        )


class ConnectionsApi:
    """Serve `/connections`, and `/connection`, its deprecated name."""

    def __init__(
        self, environment: Environment, gate: Gate, refresher: Refresher, webhooks: Webhooks
    ) -> None:
        self._environment = environment
        self._gate = gate
        self._refresher = refresher
        self._webhooks = webhooks

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes of connections; `metadata` is no connection's id."""
        key = self._gate.with_key
        named = "/connection/{connection_id}/metadata"
        return [
            *self._routes("/connections"),
            *self._routes("/connection"),
            web.post("/connections", key("import_connection", _CREATE, self._import)),
            web.patch(
                "/connections/{connection_id}", key("patch_connection", _UPDATE, self._patch)
            ),
            web.post(named, key("set_metadata", _UPDATE, self._set_own_metadata)),
            web.patch(named, key("set_metadata", _UPDATE, self._set_own_metadata)),
        ]

    def _routes(self, path: str) -> list[web.AbstractRouteDef]:
        key = self._gate.with_key
        one = f"{path}/{{connection_id}}"
        return [
            web.get(path, key("list_connections", _LIST, self._list)),
            web.post(f"{path}/metadata", key("set_metadata", _UPDATE, self._set_metadata)),
            web.patch(f"{path}/metadata", key("set_metadata", _UPDATE, self._set_metadata)),
            web.get(one, key("get_connection", _READ, self._get)),
            web.delete(one, key("delete_connection", _DELETE, self._delete)),
        ]

    # Reading.

    async def _list(self, ask: Ask) -> web.Response:
        given = ask.request.query
        tags = {found[1].lower(): given[name] for name in given if (found := _TAG.fullmatch(name))}
        fields = Fields({name: given[name] for name in given if not _TAG.fullmatch(name)})
        wanted = _Filter(
            tags,
            connection_id=fields.find_text("connectionId"),
            search=fields.find_text("search"),
            integrations=fields.find_text("integrationId"),
            end_user=fields.find_text("endUserId"),
            organization=fields.find_text("endUserOrganizationId"),
        )
        limit, page = fields.find_number("limit", DEFAULT_PAGE), fields.find_number("page", 0)
        fields.check("invalid_query_params")
        newest_first = reversed(self._environment.connections)
        rows = [show_listed(each) for each in newest_first if wanted.admits(each)]
        shown = rows[page * limit : (page + 1) * limit]
        return web.json_response({"connections": shown})

    async def _get(self, ask: Ask) -> web.Response:
        fields = Fields(ask.request.query)
        key = fields.text("provider_config_key")
        force, refresh_token = fields.find_flag("force_refresh"), fields.find_flag("refresh_token")
        fields.find_flag("refresh_github_app_jwt_token")
        fields.check("invalid_query_params")
        connection = self._connection(ask, key)
        before = (connection.updated_at, connection.last_fetched_at)
        connection.last_fetched_at = self._environment.now()
        try:
            await self._refresher.freshen(connection, force=force)
        except NoFreshToken as problem:
            raise _without_token(connection, problem, before) from None
        credentials: JSON = {}
        if ask.may(_READ_CREDENTIALS):
            credentials = show_credentials(connection.credentials, refresh_token=refresh_token)
        return web.json_response(show_full(connection, credentials))

    def _connection(self, ask: Ask, key: str) -> Connection:
        if key not in self._environment.integrations:
            raise unknown_integration()
        connection_id = ask.request.match_info["connection_id"]
        connection = self._environment.find_connection(connection_id, key)
        if connection is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "not_found", message="Failed to find connection")
        return connection

    # Changing.

    async def _import(self, ask: Ask) -> web.Response:
        fields = await Fields.of(ask.request)
        key = fields.text("provider_config_key")
        connection_id = fields.find_text("connection_id") or self._environment.mint.connection_id()
        metadata, config = fields.find_record("metadata"), fields.find_record("connection_config")
        end_user, tags = read_end_user(fields), fields.find_tags()
        fields.require_object("credentials")
        credentials = _read_credentials(
            fields.find_object("credentials"), fields.raw("credentials")
        )
        fields.check("invalid_body")
        integration = self._integration(key)
        connection, created = self._environment.put_connection(
            integration, connection_id, credentials
        )
        connection.tags = end_user_tags(end_user) | (tags or {})
        connection.metadata = metadata or {}
        connection.connection_config = config or {}
        connection.end_user = end_user
        self._webhooks.connected(connection, created=created)
        return web.json_response(show_imported(connection), status=HTTPStatus.CREATED)

    def _integration(self, key: str) -> Integration:
        integration = self._environment.integrations.get(key)
        if integration is None:
            raise unknown_integration()
        return integration

    async def _patch(self, ask: Ask) -> web.Response:
        query, fields = Fields(ask.request.query), await Fields.of(ask.request)
        key = query.text("provider_config_key")
        query.check("invalid_query_params")
        end_user, tags = read_end_user(fields), fields.find_tags()
        url = fields.find_text("webhook_url_override", shortest=0, longest=2048)
        fields.check("invalid_body")
        connection = self._connection(ask, key)
        connection.end_user = end_user or connection.end_user
        connection.tags = connection.tags if tags is None else tags
        if url is not None:
            connection.webhook_url_override = url or None
        self._environment.changed()
        return web.json_response({"success": True})

    async def _delete(self, ask: Ask) -> web.Response:
        fields = Fields(ask.request.query)
        key = fields.text("provider_config_key")
        fields.check("invalid_query_params")
        self._integration(key)
        connection_id = ask.request.match_info["connection_id"]
        connection = self._environment.find_connection(connection_id, key)
        if connection is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "unknown_connection")
        self._environment.connections.remove(connection)
        self._environment.changed()
        return web.json_response({"success": True})

    async def _set_metadata(self, ask: Ask) -> web.Response:
        """Replace the metadata of all connections that a body names (POST), or add to it."""
        fields = await Fields.of(ask.request)
        given, key = fields.raw("connection_id"), fields.text("provider_config_key")
        metadata = fields.find_record("metadata")
        fields.require_object("metadata")
        ids: list[Any] = given if isinstance(given, list) else [given]
        for each in ids:
            fields.is_text(each, "connection_id", shortest=1, longest=255)
        fields.check("invalid_body")
        connections = [self._named(each, key, len(ids)) for each in ids]
        for connection in connections:
            self._label(ask, connection, metadata or {})
        body = {"connection_id": given, "provider_config_key": key, "metadata": metadata}
        return web.json_response(body, status=_status(ask))

    async def _set_own_metadata(self, ask: Ask) -> web.Response:
        """Do the same for one connection; the body is the metadata itself."""
        key = ask.request.headers.get("provider-config-key", "")
        if not key:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                "missing_provider_config",
                message="The header provider-config-key is missing",
            )
        connection = self._named(ask.request.match_info["connection_id"], key, 1)
        metadata = (await Fields.of(ask.request)).everything
        self._label(ask, connection, metadata)
        return web.json_response(metadata, status=_status(ask))

    def _named(self, connection_id: str, key: str, count: int) -> Connection:
        connection = self._environment.find_connection(connection_id, key)
        if connection is None:
            message = (
                f"Connection with connection id {connection_id} and provider config key {key} not"
                " found. Please make sure the connection exists in the Nango dashboard"
            )
            if count > 1:
                message += (
                    ". No actions were taken on any of the connections as a result of this failure."
                )
            raise Refusal(HTTPStatus.NOT_FOUND, "unknown_connection", message=message)
        return connection

    def _label(self, ask: Ask, connection: Connection, metadata: JSON) -> None:
        kept = connection.metadata or {}
        connection.metadata = {**kept, **metadata} if ask.request.method == "PATCH" else metadata
        self._environment.changed()


def _status(ask: Ask) -> HTTPStatus:
    return HTTPStatus.OK if ask.request.method == "PATCH" else HTTPStatus.CREATED


def _read_credentials(fields: Fields | None, raw: Any) -> Credentials:
    if fields is None:
        return Credentials("", {})
    kind = fields.text("type")
    if kind != "OAUTH2":
        fields.refuse("invalid_value", 'Invalid input: expected "OAUTH2"', "type")
    credentials = Credentials(
        access_token=fields.text("access_token", longest=4096),
        raw=raw,
        refresh_token=fields.find_text("refresh_token", longest=4096),
        expires_at=fields.find_instant("expires_at"),
    )
    fields.refuse_unknown()
    return credentials


def _without_token(
    connection: Connection, problem: NoFreshToken, before: tuple[float, float]
) -> Refusal:
    """Return the refusal, with the connection as it was when the request came."""
    updated_at, last_fetched_at = before
    seen = replace(connection, updated_at=updated_at, last_fetched_at=last_fetched_at)
    return Refusal(
        problem.status,
        "invalid_credentials",
        message=problem.message,
        payload={"connection": show_full(seen, {})},
    )
