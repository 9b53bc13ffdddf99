"""Slack's OAuth v2: the consent page and the exchange of a code for tokens."""

import hmac
import re
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from interlock_sandbox.config import SlackApp
from interlock_sandbox.pages import render_page
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import JSON, Code, Token, User, Workspace, World

CODE_LIFE_S = 600
MAX_STATE = 4096
AUTHORIZE = "/oauth/v2/authorize"

# What Slack tells a person about a scope, in the sandbox's words. A scope that
# is not here does not exist.
BOT_SCOPES = {
    "app_mentions:read": "See messages that mention it",
    "assistant:write": "Act as an assistant in threads",
    "channels:history": "Read messages in the public channels it was added to",
    "channels:join": "Join public channels",
    "channels:manage": "Manage the public channels it was added to",
    "channels:read": "See the public channels of the workspace",
    "chat:write": "Send messages as itself",
    "chat:write.customize": "Send messages under another name",
    "chat:write.public": "Send messages to channels it is no member of",
    "commands": "Add slash commands",
    "files:read": "See files shared where it was added",
    "files:write": "Share files",
    "groups:history": "Read messages in the private channels it was added to",
    "groups:read": "See the private channels it was added to",
    "im:history": "Read direct messages with it",
    "im:read": "See its direct messages",
    "im:write": "Start direct messages",
    "mpim:history": "Read group messages it is part of",
    "mpim:read": "See its group messages",
    "reactions:read": "See reactions",
    "reactions:write": "Add reactions",
    "team:read": "See the workspace's name and domain",
    "users:read": "See the people of the workspace",
    "users:read.email": "See their e-mail addresses",
    "users.profile:read": "See their profiles",
}
_ASKED = ("client_id", "scope", "user_scope", "redirect_uri", "state", "team")
USER_SCOPES = frozenset({"chat:write", "users:read", "users:read.email", "identity.basic"})


@dataclass(frozen=True)
class _Ask:
    """What an app asks for at the consent page."""

    scopes: list[str]
    user_scopes: list[str]
    redirect_uri: str
    redirect_uri_sent: bool
    state: str
    team: str


class _BadAsk(Exception):
    """The request to authorize is wrong; Slack shows it to the person, not to the app."""


class OAuthPages:
    """Serve the consent page."""

    def __init__(self, app: SlackApp, world: World) -> None:
        self._app = app
        self._world = world

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the page and the form behind it."""
        return [web.get(AUTHORIZE, self._show), web.post(AUTHORIZE, self._decide)]

    async def _show(self, request: web.Request) -> web.Response:
        try:
            ask = self._read(dict(request.query))
        except _BadAsk as problem:
            return _error_page(str(problem))
        return render_page(
            "consent.html",
            app_name=self._app.name,
            app_id=self._app.id,
            redirect_host=urlsplit(ask.redirect_uri).netloc,
            installers=self._installers(ask.team),
            scopes=[BOT_SCOPES[scope] for scope in ask.scopes],
            user_scopes=ask.user_scopes,
            request={name: request.query[name] for name in _ASKED if name in request.query},
        )

    def _installers(self, asked_team: str) -> list[tuple[Workspace, User]]:
        """List who may decide, the workspace that the app asked for first."""
        workspaces = sorted(self._world.workspaces.values(), key=lambda each: each.id != asked_team)
        return [
            (workspace, user)
            for workspace in workspaces
            for user in workspace.users.values()
            if user.is_admin
        ]

    async def _decide(self, request: web.Request) -> web.Response:
        origin = request.headers.get("Origin")
        if origin != f"{request.scheme}://{request.host}":
            return _error_page("wrong_origin", HTTPStatus.FORBIDDEN)
        fields = {name: str(value) for name, value in (await request.post()).items()}
        try:
            ask = self._read(fields)
        except _BadAsk as problem:
            return _error_page(str(problem))
        if fields.get("decision") != "allow":
            return _back(ask, {"error": "access_denied"})
        team, _, user = fields.get("installer", "").partition("/")
        workspace = self._world.workspaces.get(team)
        installer = workspace.users.get(user) if workspace else None
        if installer is None or not installer.is_admin:
            return _error_page("invalid_team")
        code = Code(
            value=f"{secrets.randbelow(10**12):012}.{secrets.randbelow(10**13):013}."
            f"{secrets.token_hex(32)}",
            team=team,
            user=user,
            scopes=ask.scopes,
            user_scopes=ask.user_scopes,
            redirect_uri=ask.redirect_uri,
            redirect_uri_sent=ask.redirect_uri_sent,
            issued_at=self._world.now(),
        )
        self._world.issue_code(code)
        return _back(ask, {"code": code.value})

    def _read(self, fields: dict[str, str]) -> _Ask:
        if fields.get("client_id") != self._app.client_id:
            raise _BadAsk("invalid_client_id")
        redirect_uri = fields.get("redirect_uri", "")
        if redirect_uri and redirect_uri not in self._app.redirect_urls:
            raise _BadAsk("bad_redirect_uri")
        if not redirect_uri and not self._app.redirect_urls:
            raise _BadAsk("missing_redirect_uri")
        scopes, user_scopes = _scopes(fields, "scope"), _scopes(fields, "user_scope")
        if not scopes and not user_scopes:
            raise _BadAsk("no_scopes")
        if not set(scopes) <= BOT_SCOPES.keys() or not set(user_scopes) <= USER_SCOPES:
            raise _BadAsk("invalid_scope")
        state = fields.get("state", "")
        if len(state) > MAX_STATE:
            raise _BadAsk("invalid_state")
        return _Ask(
            scopes,
            user_scopes,
            redirect_uri or self._app.redirect_urls[0],
            bool(redirect_uri),
            state,
            fields.get("team", ""),
        )


def _scopes(fields: dict[str, str], name: str) -> list[str]:
    """Split a list of scopes; Slack takes commas and spaces."""
    return [each for each in re.split(r"[,\s]+", fields.get(name, "")) if each]


def _back(ask: _Ask, answer: dict[str, str]) -> web.Response:
    separator = "&" if urlsplit(ask.redirect_uri).query else "?"
    query = urlencode({**answer, "state": ask.state})
    location = f"{ask.redirect_uri}{separator}{query}"
    return web.Response(status=HTTPStatus.FOUND, headers={"Location": location})


def _error_page(problem: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> web.Response:
    return render_page("oauth_error.html", status=status, problem=problem)


def exchange_code(app: SlackApp, world: World, arguments: dict[str, Any]) -> JSON:
    """Answer `oauth.v2.access`.

    Raises:
        SlackError: The client, the code or the redirect URL is wrong.
    """
    check_client(app, arguments)
    match arguments.get("grant_type", "authorization_code"):
        case "authorization_code":
            pass
        case "refresh_token":
            # Rotation is off for this app, so it never gave out a refresh token.
            raise SlackError("invalid_refresh_token")
        case _:
            raise SlackError("invalid_grant_type")
    code = world.codes.get(str(arguments.get("code", "")))
    if code is None or world.now() >= code.issued_at + CODE_LIFE_S:
        raise SlackError("invalid_code")
    if code.used:
        raise SlackError("code_already_used")
    expected = code.redirect_uri if code.redirect_uri_sent else None
    if arguments.get("redirect_uri") != expected:
        raise SlackError("bad_redirect_uri")
    bot, user = world.install(code)
    return _installed(app, world, code, bot, user)


def _installed(
    app: SlackApp, world: World, code: Code, bot: Token | None, user: Token | None
) -> JSON:
    workspace = world.workspaces[code.team]
    authed_user: JSON = {"id": code.user}
    if user:
        authed_user |= {
            "scope": ",".join(user.scopes),
            "access_token": user.value,
            "token_type": "user",
        }
    answer: JSON = {
        "app_id": app.id,
        "authed_user": authed_user,
        "team": {"id": workspace.id, "name": workspace.name},
        "enterprise": None,
        "is_enterprise_install": False,
    }
    if bot:
        answer |= {
            "scope": ",".join(bot.scopes),
            "token_type": "bot",
            "access_token": bot.value,
            "bot_user_id": bot.user,
        }
    return answer


def check_client(app: SlackApp, arguments: dict[str, Any]) -> None:
    """Refuse a client id or secret that is not the app's.

    Raises:
        SlackError: One of them is wrong or absent.
    """
    if arguments.get("client_id") != app.client_id:
        raise SlackError("invalid_client_id")
    given = str(arguments.get("client_secret", "")).encode()
    if not hmac.compare_digest(given, app.client_secret.reveal().encode()):
        raise SlackError("bad_client_secret")
