"""What a person sees: the page behind a connect link, and the way to Slack and back."""

import json
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.nango.environment import JSON, Authorization, Connection, Environment
from interlock_sandbox.nango.gate import Ask, Gate
from interlock_sandbox.nango.provider import ProviderRefused, SlackProvider, connection_config
from interlock_sandbox.nango.refusals import Refusal
from interlock_sandbox.nango.webhooks import Webhooks
from interlock_sandbox.pages import render_page

CALLBACK = "/oauth/callback"
_REFUSED = (
    "The Slack API returned an error when trying to request for an access token."
    " Please try again later. Error: "
)


class ConnectPages:
    """Serve the connect page and both ends of an authorization.

    Args:
        return_url: Where a person goes on to after connecting; may be empty.
    """

    def __init__(
        self,
        environment: Environment,
        gate: Gate,
        *,
        provider: SlackProvider,
        webhooks: Webhooks,
        base_url: str,
        return_url: str,
    ) -> None:
        self._environment = environment
        self._gate = gate
        self._provider = provider
        self._webhooks = webhooks
        self._redirect_uri = f"{base_url}{CALLBACK}"
        self._return_url = return_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return what browsers open."""
        gate = self._gate
        return [
            web.get("/", gate.for_anyone("connect_page", self._show)),
            web.get(
                "/oauth/connect/{provider_config_key}",
                gate.with_session("start_authorization", self._start, in_query=True),
            ),
            web.get(CALLBACK, gate.for_anyone("finish_authorization", self._finish)),
        ]

    async def _show(self, ask: Ask) -> web.Response:
        token = ask.request.query.get("session_token", "")
        session = self._environment.find_session(token)
        if session is None:
            return self._failure(ask, "unknown_connect_session_token", "This link has expired.")
        allowed = session.allowed_integrations
        integrations = [
            each
            for each in self._environment.integrations.values()
            if allowed is None or each.unique_key in allowed
        ]
        return render_page(
            "nango_connect.html",
            integrations=integrations,
            session_token=token,
            tags=session.tags,
            again=session.reconnects is not None,
        )

    async def _start(self, ask: Ask) -> web.Response:
        session = ask.own_session
        key = ask.request.match_info["provider_config_key"]
        integration = self._environment.integrations.get(key)
        if integration is None:
            return self._failure(ask, "unknown_provider_config", f"There is no integration {key}.")
        allowed = session.allowed_integrations
        if allowed is not None and key not in allowed:
            raise Refusal(HTTPStatus.BAD_REQUEST, "integration_not_allowed")
        state = self._environment.start_authorization(session, integration)
        location = self._provider.authorize_url(integration, self._redirect_uri, state)
        return web.Response(
            status=HTTPStatus.FOUND,
            text=f"Found. Redirecting to {location}",
            headers={"Location": location},
        )

    async def _finish(self, ask: Ask) -> web.Response:
        query = ask.request.query
        authorization = self._environment.take_authorization(query.get("state", ""))
        if authorization is None:
            return self._failure(ask, "invalid_state", "Nobody is on the way to Slack with this.")
        if "code" not in query:
            problem = ", ".join(
                f"{name}: {query[name]}" for name in ("error", "error_description") if name in query
            )
            description = (
                f"Did not get authorization code in the callback. Provider error: {problem}"
            )
            error = {"type": "invalid_callback", "description": description}
            self._webhooks.authorization_failed(authorization, error)
            return self._failure(ask, "invalid_callback", description)
        try:
            connection = await self._connect(authorization, query["code"])
        except ProviderRefused as problem:
            self._webhooks.authorization_failed(authorization, _token_error(str(problem)))
            return self._failure(ask, "token_request_failed", f"Slack gave no token: {problem}.")
        return render_page(
            "nango_connected.html", connection=connection, return_url=self._return_url
        )

    async def _connect(self, authorization: Authorization, code: str) -> Connection:
        integration, session = authorization.integration, authorization.session
        credentials = await self._provider.exchange(integration, code, self._redirect_uri)
        connection, created = self._environment.put_connection(
            integration, authorization.connection_id, credentials
        )
        connection.tags = session.tags
        connection.connection_config = connection_config(credentials.raw)
        connection.end_user = session.end_user or connection.end_user
        connection.webhook_url_override = (
            session.webhook_url_override or connection.webhook_url_override
        )
        self._webhooks.connected(connection, created=created)
        return connection

    def _failure(self, ask: Ask, code: str, problem: str) -> web.Response:
        ask.record.error = code
        return render_page(
            "nango_error.html",
            status=HTTPStatus.BAD_REQUEST,
            code=code,
            problem=problem,
            return_url=self._return_url,
        )


def _token_error(code: str) -> JSON:
    """Return the webhook's error, which holds JSON text and says everything twice."""
    thrown = {"message": f"{_REFUSED}{_REFUSED}{code}", "name": "Error"}
    return {"type": "unknown", "description": json.dumps(thrown, indent=2)}
