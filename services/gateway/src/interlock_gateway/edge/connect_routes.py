"""Installing by Nango: two calls of a person's program, and Nango's webhook."""

from collections.abc import Mapping
from datetime import UTC
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.api_routes import MalformedBody
from interlock_gateway.edge.browser import Browser, end_cookie, set_cookie, take_cookie
from interlock_gateway.edge.http import JSON, media_type, read_body, read_json
from interlock_gateway.edge.install_routes import noting_other_sessions
from interlock_gateway.edge.installing import Connecting
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.policy import Action
from interlock_gateway.edge.ports import Vault

CONNECT_COOKIE = "connect"
CONNECT_COOKIE_SECONDS = 600
"""As long as the state lives in the database."""

_MAX_BODY_BYTES = 16 * 1024
# What the vault takes; Nango's largest webhooks are below 2 KiB.
_MAX_WEBHOOK_BYTES = 60 * 1024
_MAX_NAME_CHARS = 256
_SIGNATURE = "X-Nango-Hmac-Sha256"


class ConnectRoutes:
    """Serve installs by Nango."""

    def __init__(
        self, *, browser: Browser, connecting: Connecting, vault: Vault, metrics: EdgeMetrics
    ) -> None:
        self._browser = browser
        self._connecting = connecting
        self._vault = vault
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post(paths.INSTALL_REQUESTS, self._start),
            web.post(paths.INSTALL_COMPLETE, self._complete),
            web.post(paths.NANGO_WEBHOOK, self._hear),
        ]

    async def _start(self, request: web.Request) -> web.Response:
        visit = await self._browser.call(request, Action.INSTALL)
        body = await read_json(request, _MAX_BODY_BYTES)
        if not set(body) <= {"workspaceId"}:
            raise MalformedBody
        workspace_id = body.get("workspaceId", "")
        if not isinstance(workspace_id, str) or len(workspace_id) > _MAX_NAME_CHARS:
            raise MalformedBody
        session, cookie = await self._connecting.start(visit.proof, visit.person, workspace_id)
        response = web.json_response(
            {
                "connectSessionToken": session.token.reveal(),
                "connectLink": session.link.reveal(),
                "expiresAt": session.expires_at.astimezone(UTC)
                .isoformat(timespec="milliseconds")
                .replace("+00:00", "Z"),
            }
        )
        set_cookie(response, CONNECT_COOKIE, cookie, CONNECT_COOKIE_SECONDS)
        return response

    async def _complete(self, request: web.Request) -> web.Response:
        visit = await self._browser.call(request, Action.INSTALL)
        body = await read_json(request, _MAX_BODY_BYTES)
        key, connection_id = _name(body, "providerConfigKey"), _name(body, "connectionId")
        with noting_other_sessions(self._metrics, visit):
            installed = await self._connecting.complete(
                visit.person, take_cookie(request, CONNECT_COOKIE), key, connection_id
            )
        response = web.json_response(
            {"slackTeamId": installed.slack_team_id, "isReinstall": installed.is_reinstall}
        )
        end_cookie(response, CONNECT_COOKIE)
        return response

    async def _hear(self, request: web.Request) -> web.Response:
        """Hand a webhook to the vault, which alone has the keys; 5xx has it sent again."""
        media_type(request, JSON)
        body = await read_body(request, _MAX_WEBHOOK_BYTES)
        given = request.headers.getall(_SIGNATURE, [])
        if not body or len(given) != 1:
            return web.Response(status=HTTPStatus.UNAUTHORIZED)
        try:
            await self._vault.receive_nango_webhook(body, {_SIGNATURE.lower(): given[0]})
        except ServiceError as error:
            return _answer_of(error)
        return web.Response()


def _answer_of(error: ServiceError) -> web.Response:
    if error.kind is Kind.UNAUTHENTICATED:
        return web.Response(status=HTTPStatus.UNAUTHORIZED)
    if error.reason == "NANGO_NOT_CONFIGURED":
        return web.Response(status=HTTPStatus.NOT_FOUND)
    if error.kind is Kind.INVALID:
        return web.Response(status=HTTPStatus.BAD_REQUEST)
    structlog.get_logger().error("nango_webhook_not_stored", reason=error.reason)
    return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


def _name(body: Mapping[str, Any], member: str) -> str:
    """Read one of the two names that a completion has, and nothing else."""
    value = body.get(member)
    if set(body) != {"providerConfigKey", "connectionId"} or not isinstance(value, str):
        raise MalformedBody
    if not 0 < len(value) <= _MAX_NAME_CHARS:
        raise MalformedBody
    return value
