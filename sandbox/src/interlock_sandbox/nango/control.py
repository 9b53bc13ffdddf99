"""The control API of the Nango stand-in: faults, records, keys. It is not part of Nango."""

import dataclasses
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.nango.answers import show_full, show_integration
from interlock_sandbox.nango.environment import Environment
from interlock_sandbox.nango.records import ANY_OPERATION, FAULT_KINDS, Fault, Records
from interlock_sandbox.nango.settings import NangoSettings
from interlock_sandbox.nango.webhooks import Webhooks, encode
from interlock_sandbox.web import CONTROL, ControlBody, refuse

MAX_FAULTS = 1000


class Control:
    """Routes under `/_control`."""

    def __init__(
        self,
        settings: NangoSettings,
        environment: Environment,
        *,
        webhooks: Webhooks,
        records: Records,
        base_url: str,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._webhooks = webhooks
        self._records = records
        self._base_url = base_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return all control routes."""
        return [
            web.get(f"{CONTROL}/state", self._state),
            web.get(f"{CONTROL}/requests", self._requests),
            web.get(f"{CONTROL}/deliveries", self._deliveries),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
            web.post(f"{CONTROL}/refuse-refresh", self._refuse_refresh),
            web.post(f"{CONTROL}/rotate-signing-key", self._rotate),
            web.post(f"{CONTROL}/api-keys", self._add_key),
            web.post(f"{CONTROL}/webhook", self._webhook),
        ]

    # Looking.

    async def _state(self, _request: web.Request) -> web.Response:
        """Show the environment without its secrets."""
        environment = self._environment
        sessions = [
            {"expires_at": each.expires_at, "tags": each.tags, "reconnects": each.reconnects}
            for each in environment.sessions.values()
        ]
        return web.json_response(
            {
                "environment": environment.name,
                "webhook_urls": list(self._settings.webhook_urls),
                "integrations": [
                    show_integration(each, self._base_url)
                    for each in environment.integrations.values()
                ],
                "connections": [show_full(each, {}) for each in environment.connections],
                "sessions": sessions,
            }
        )

    async def _requests(self, request: web.Request) -> web.Response:
        """List requests; `operation` and `after` narrow the list."""
        after = request.query.get("after", "0")
        rows = self._records.rows(
            request.query.get("operation"), int(after) if after.isdigit() else 0
        )
        return web.json_response({"requests": rows})

    async def _deliveries(self, request: web.Request) -> web.Response:
        """List webhooks with every attempt; `settled` waits for those under way."""
        if "settled" in request.query:
            await self._webhooks.settle()
        rows = [dataclasses.asdict(each) for each in self._webhooks.deliveries]
        return web.json_response({"deliveries": rows})

    async def _secrets(self, _request: web.Request) -> web.Response:
        """List every secret that was ever here, for searches in places they must not be."""
        return web.json_response({"tokens": self._environment.list_secrets()})

    # Trouble.

    async def _list_faults(self, _request: web.Request) -> web.Response:
        waiting = {
            operation: [dataclasses.asdict(each) for each in left]
            for operation, left in self._records.faults.items()
            if left
        }
        refused = {name: left for name, left in self._records.refused_refreshes.items() if left}
        return web.json_response({"faults": waiting, "refused_refreshes": refused})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let the next `count` requests of `operation` (or `*`) go wrong as `kind` says."""
        body = await ControlBody.of(request)
        kind, count = body.text("kind"), int(body.number("count", 1))
        status = int(body.number("status", HTTPStatus.SERVICE_UNAVAILABLE))
        if kind not in FAULT_KINDS:
            refuse(HTTPStatus.BAD_REQUEST, f"kind must be one of {sorted(FAULT_KINDS)}")
        if not 1 <= count <= MAX_FAULTS or status not in set(HTTPStatus):
            refuse(HTTPStatus.BAD_REQUEST, f"count is 1 to {MAX_FAULTS}, status HTTP's")
        fault = Fault(kind, status, body.number("seconds", 1))
        self._records.add_faults(body.text("operation", ANY_OPERATION), fault, count)
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        """Forget the faults and refusals that wait."""
        self._records.faults.clear()
        self._records.refused_refreshes.clear()
        return await self._list_faults(request)

    async def _refuse_refresh(self, request: web.Request) -> web.Response:
        """Let the provider refuse the next `count` refreshes of `connection_id`."""
        body = await ControlBody.of(request)
        connection_id, count = body.text("connection_id"), int(body.number("count", 1))
        known = {each.connection_id for each in self._environment.connections}
        if connection_id not in known:
            refuse(HTTPStatus.NOT_FOUND, "no such connection")
        self._records.refused_refreshes[connection_id] = count
        return await self._list_faults(request)

    # Keys and webhooks.

    async def _rotate(self, request: web.Request) -> web.Response:
        """Rotate the signing key; `old_key_for_s` goes on signing with the old one."""
        body = await ControlBody.of(request)
        key = self._environment.rotate_signing_key(old_key_for_s=body.number("old_key_for_s", 0))
        return web.json_response({"webhook_signing_key": key})

    async def _add_key(self, request: web.Request) -> web.Response:
        """Make an API key with `scopes` only."""
        body = await ControlBody.of(request)
        scopes = body.raw("scopes")
        if not isinstance(scopes, list) or not all(isinstance(each, str) for each in scopes):
            refuse(HTTPStatus.BAD_REQUEST, "scopes must be a list of texts")
        return web.json_response({"key": self._environment.add_api_key(tuple(scopes))})

    async def _webhook(self, request: web.Request) -> web.Response:
        """Send one webhook as told: `body`, and `headers` that replace Nango's.

        `key` signs with another key; a header that is null is left out.
        """
        if not self._settings.webhook_urls:
            refuse(HTTPStatus.CONFLICT, "there is no webhook URL")
        told = await ControlBody.of(request)
        body = told.raw("body")
        content = body.encode() if isinstance(body, str) else encode(body)
        headers = self._webhooks.headers(told.text("key", self._environment.signing_key()), content)
        replaced = {**headers, **told.object("headers")}
        sent = {name: str(value) for name, value in replaced.items() if value is not None}
        return web.json_response({"status": await self._webhooks.send_raw(content, sent)})
