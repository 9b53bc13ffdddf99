"""What an account's administrators set up: integrations and the webhook signing key."""

from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.nango.answers import show_integration
from interlock_sandbox.nango.environment import Environment, Integration
from interlock_sandbox.nango.fields import Fields
from interlock_sandbox.nango.gate import Ask, Gate
from interlock_sandbox.nango.refusals import Refusal
from interlock_sandbox.pages import FAVICON, send_file

_LIST = ("environment:integrations:list", "environment:integrations:list_credentials")
_READ = ("environment:integrations:read", "environment:integrations:read_credentials")
_CREATE = ("environment:integrations:create",)
_ROTATE = ("environment:webhook_signing_key:rotate",)


class AdministrationApi:
    """Serve `/integrations` and the rotation of the signing key."""

    def __init__(self, environment: Environment, gate: Gate, base_url: str) -> None:
        self._environment = environment
        self._gate = gate
        self._base_url = base_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes, and the picture that integrations point at."""
        key = self._gate.with_key
        return [
            web.get("/integrations", key("list_integrations", _LIST, self._list)),
            web.post("/integrations", key("create_integration", _CREATE, self._create)),
            web.get("/integrations/{unique_key}", key("get_integration", _READ, self._get)),
            web.post(
                "/environment/webhook-signing-key/rotate",
                key("rotate_signing_key", _ROTATE, self._rotate),
            ),
            web.get("/images/template-logos/slack.svg", self._logo),
        ]

    async def _list(self, _ask: Ask) -> web.Response:
        rows = [
            show_integration(each, self._base_url)
            for each in self._environment.integrations.values()
        ]
        return web.json_response({"data": rows})

    async def _get(self, ask: Ask) -> web.Response:
        name = ask.request.match_info["unique_key"]
        integration = self._environment.integrations.get(name)
        if integration is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND, "not_found", message=f'Integration "{name}" does not exist'
            )
        return web.json_response({"data": show_integration(integration, self._base_url)})

    async def _create(self, ask: Ask) -> web.Response:
        fields = await Fields.of(ask.request)
        unique_key, provider = fields.text("unique_key"), fields.text("provider")
        display_name = fields.find_text("display_name") or "Slack"
        fields.require_object("credentials")
        client = fields.find_object("credentials") or Fields({})
        client.text("type")
        client_id, client_secret = client.text("client_id"), client.text("client_secret")
        scopes = client.find_text("scopes", shortest=0, longest=4096) or ""
        client.refuse_unknown()
        if provider not in {"slack", ""}:
            fields.refuse("custom", "The sandbox's Nango knows Slack only", "provider")
        if unique_key in self._environment.integrations:
            fields.refuse("custom", "Unique key already exists", "unique_key")
        fields.check("invalid_body")
        at = self._environment.now()
        integration = Integration(
            unique_key=unique_key,
            provider=provider,
            display_name=display_name,
            client_id=client_id,
            client_secret=client_secret,
            scopes=scopes,
            created_at=at,
            updated_at=at,
        )
        self._environment.integrations[unique_key] = integration
        self._environment.changed()
        return web.json_response({"data": show_integration(integration, self._base_url)})

    async def _rotate(self, _ask: Ask) -> web.Response:
        key = self._environment.rotate_signing_key()
        return web.json_response({"data": {"webhook_signing_key": key}})

    async def _logo(self, _request: web.Request) -> web.Response:
        return send_file("static", FAVICON)
