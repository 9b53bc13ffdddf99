"""Connect sessions: how an app lets a person connect something."""

from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.nango.answers import instant
from interlock_sandbox.nango.environment import JSON, Environment, Session
from interlock_sandbox.nango.fields import Fields, end_user_tags, read_end_user
from interlock_sandbox.nango.gate import Ask, Gate
from interlock_sandbox.nango.refusals import Refusal

_SCOPE = ("environment:connect_sessions:write",)
_UNSUPPORTED = ("integrations_config_defaults", "overrides")
_LOOK = {
    "showWatermark": True,
    "defaultTheme": "system",
    "theme": {"light": {"primary": "#00B2E3"}, "dark": {"primary": "#00B2E3"}},
}


class SessionsApi:
    """Serve `/connect/sessions` and `/connect/session`."""

    def __init__(self, environment: Environment, gate: Gate, base_url: str) -> None:
        self._environment = environment
        self._gate = gate
        self._base_url = base_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes of sessions."""
        gate = self._gate
        return [
            web.post("/connect/sessions", gate.with_key("create_session", _SCOPE, self._create)),
            web.post(
                "/connect/sessions/reconnect",
                gate.with_key("reconnect_session", _SCOPE, self._reconnect),
            ),
            web.get("/connect/session", gate.with_session("get_session", self._show)),
            web.delete("/connect/session", gate.with_session("delete_session", self._delete)),
        ]

    async def _create(self, ask: Ask) -> web.Response:
        fields = await Fields.of(ask.request)
        details = _read_details(fields)
        allowed = self._read_allowed(fields)
        if fields.raw("tags") is None:
            fields.require_object("end_user")
        fields.check("invalid_body")
        self._require_integrations(fields, allowed)
        return self._answer(
            self._environment.open_session(allowed_integrations=allowed or None, **details)
        )

    async def _reconnect(self, ask: Ask) -> web.Response:
        fields = await Fields.of(ask.request)
        connection_id, key = fields.text("connection_id"), fields.text("integration_id")
        details = _read_details(fields)
        fields.check("invalid_body")
        if self._environment.find_connection(connection_id, key) is None:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                "invalid_body",
                message="ConnectionID or IntegrationId does not exists",
            )
        return self._answer(
            self._environment.open_session(
                allowed_integrations=[key], reconnects=connection_id, **details
            )
        )

    @staticmethod
    def _read_allowed(fields: Fields) -> list[str]:
        given = fields.raw("allowed_integrations")
        if given is None:
            return []
        if not isinstance(given, list):
            fields.mistype("array", given, "allowed_integrations")
            return []
        for place, name in enumerate(given):
            fields.is_text(name, "allowed_integrations", str(place), shortest=1, longest=255)
        return given

    def _require_integrations(self, fields: Fields, allowed: list[str]) -> None:
        for place, name in enumerate(allowed):
            if name not in self._environment.integrations:
                fields.refuse(
                    "custom", "Integration does not exist", "allowed_integrations", str(place)
                )
        fields.check("invalid_body")

    def _answer(self, session: Session) -> web.Response:
        data = {
            "token": session.token,
            "connect_link": f"{self._base_url}/?session_token={session.token}",
            "expires_at": instant(session.expires_at),
        }
        return web.json_response({"data": data}, status=HTTPStatus.CREATED)

    async def _show(self, ask: Ask) -> web.Response:
        session = ask.own_session
        data = {
            "endUser": session.end_user,
            "connectUISettings": _LOOK,
            "allowed_integrations": session.allowed_integrations,
            "websocketsPath": "/",
        }
        return web.json_response({"data": data})

    async def _delete(self, ask: Ask) -> web.Response:
        self._environment.close_session(ask.own_session)
        return web.Response(status=HTTPStatus.NO_CONTENT)


def _read_details(fields: Fields) -> JSON:
    """Read what both kinds of session take.

    Raises:
        Refusal: A feature of Nango is asked for that is not here.
    """
    end_user = read_end_user(fields)
    tags = fields.find_tags()
    url = fields.find_text("webhook_url_override", longest=2048)
    for name in _UNSUPPORTED:
        if fields.raw(name):
            # Better than to leave out silently what a session was to do.
            raise Refusal(
                HTTPStatus.NOT_IMPLEMENTED,
                "not_implemented",
                message=f"The sandbox's Nango does not know {name}",
            )
    return {
        "tags": end_user_tags(end_user) | (tags or {}),
        "end_user": end_user,
        "webhook_url_override": url,
    }
