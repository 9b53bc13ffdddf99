"""Slack's OAuth v2: the consent page, codes and refresh tokens for tokens."""

import re
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from interlock_sandbox.config import SlackApp
from interlock_sandbox.pages import render_page
from interlock_sandbox.slack.apps import check_client
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.model import JSON, Channel, Code, Enterprise, Home, User, Workspace
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.tokens import BOT, Issued
from interlock_sandbox.slack.world import World

CODE_LIFE_S = 600
MAX_STATE = 4096
AUTHORIZE = "/oauth/v2/authorize"
_WEBHOOK = "incoming-webhook"

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
    "groups:write": "Manage the private channels it was added to",
    "im:history": "Read direct messages with it",
    "im:read": "See its direct messages",
    "im:write": "Start direct messages",
    "incoming-webhook": "Post messages to a channel that you choose",
    "mpim:history": "Read group messages it is part of",
    "mpim:read": "See its group messages",
    "mpim:write": "Start group messages",
    "reactions:read": "See reactions",
    "reactions:write": "Add reactions",
    "team:read": "See the workspace's name and domain",
    "users:read": "See the people of the workspace",
    "users:read.email": "See their e-mail addresses",
    "users.profile:read": "See their profiles",
}
# A person's token may do most of this too, in the person's name.
_ONLY_BOTS = frozenset({"app_mentions:read", "assistant:write", "channels:join", "channels:manage"})
_ONLY_BOTS |= {"commands", "incoming-webhook", "chat:write.customize", "chat:write.public"}
_ASKED = ("client_id", "scope", "user_scope", "redirect_uri", "state", "team")
USER_SCOPES = (BOT_SCOPES.keys() - _ONLY_BOTS) | {"channels:write", "identity.basic"}


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
            enterprises={
                each.id: [self._world.workspaces[team] for team in each.workspaces]
                for each in self._world.enterprises.values()
            },
            scopes=[BOT_SCOPES[scope] for scope in ask.scopes],
            user_scopes=ask.user_scopes,
            webhook_channels=self._webhook_channels(ask),
            request={name: request.query[name] for name in _ASKED if name in request.query},
        )

    def _webhook_channels(self, ask: _Ask) -> list[tuple[Workspace, list[Channel]]]:
        """List where an incoming webhook may post, the workspace that the app asked for first."""
        if _WEBHOOK not in ask.scopes:
            return []
        homes = sorted(self._world.workspaces.values(), key=lambda each: each.id != ask.team)
        return [
            (home, [each for each in self._world.channels_of(home.id) if _takes_webhook(each)])
            for home in homes
        ]

    def _chosen_channel(self, ask: _Ask, home: Home, installer: User, channel: str) -> str:
        """Return where the webhook of an install is to post; an org-wide one gets none."""
        if _WEBHOOK not in ask.scopes or isinstance(home, Enterprise):
            return ""
        found = self._world.find_channel(home.id, channel)
        if found is None or not _takes_webhook(found):
            raise _BadAsk("channel_not_found")
        if not found.is_open_to_all and installer.id not in found.members:
            raise _BadAsk("channel_not_found")
        return found.id

    def _installers(self, asked_team: str) -> list[tuple[Home, User]]:
        """List who may decide, the workspace that the app asked for first."""
        homes: list[Home] = [*self._world.workspaces.values(), *self._world.enterprises.values()]
        return [
            (home, user)
            for home in sorted(homes, key=lambda each: each.id != asked_team)
            for user in home.users.values()
            if _may_install(home, user)
        ]

    async def _decide(self, request: web.Request) -> web.Response:
        origin = request.headers.get("Origin")
        if origin != f"{request.scheme}://{request.host}":
            return _error_page("wrong_origin", HTTPStatus.FORBIDDEN)
        form = await request.post()
        fields = {name: str(value) for name, value in form.items()}
        try:
            ask = self._read(fields)
        except _BadAsk as problem:
            return _error_page(str(problem))
        if fields.get("decision") != "allow":
            return _back(ask, {"error": "access_denied"})
        holder, _, user = fields.get("installer", "").partition("/")
        home = self._world.find_home(holder)
        installer = home.users.get(user) if home else None
        if home is None or installer is None or not _may_install(home, installer):
            return _error_page("invalid_team")
        try:
            channel = self._chosen_channel(ask, home, installer, fields.get("webhook_channel", ""))
        except _BadAsk as problem:
            return _error_page(str(problem))
        code = Code(
            value=f"{secrets.randbelow(10**12):012}.{secrets.randbelow(10**13):013}."
            f"{secrets.token_hex(32)}",
            holder=holder,
            user=user,
            scopes=ask.scopes,
            user_scopes=ask.user_scopes,
            redirect_uri=ask.redirect_uri,
            redirect_uri_sent=ask.redirect_uri_sent,
            issued_at=self._world.now(),
            granted=[str(each) for each in form.getall("workspaces", [])],
            webhook_channel=channel,
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


def _may_install(home: Home, user: User) -> bool:
    """Say whether a person may install the app; an Enterprise's owner for all of it."""
    return user.is_owner if isinstance(home, Enterprise) else user.is_admin


def _takes_webhook(channel: Channel) -> bool:
    return not (channel.is_im or channel.is_mpim or channel.is_archived)


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


def oauth_access(slack: Slack, arguments: dict[str, Any]) -> JSON:
    """Answer `oauth.v2.access`: tokens for a code, or the next pair for a refresh token.

    Raises:
        SlackError: The client, the code, the redirect URL or the refresh token is wrong.
    """
    world = slack.world
    check_client(slack.app, arguments)
    if arguments.get("code_verifier"):
        raise SlackError("pkce_not_allowed")
    if arguments.get("assertion"):
        raise SlackError("preview_feature_not_available")
    match arguments.get("grant_type", "authorization_code"):
        case "authorization_code":
            return _exchange_code(slack, arguments)
        case "refresh_token":
            issued = world.tokens.refresh(str(arguments.get("refresh_token", "")))
            world.changed()
            return _one_token(slack.app, world, issued)
        case _:
            raise SlackError("invalid_grant_type")


def oauth_exchange(slack: Slack, arguments: dict[str, Any]) -> JSON:
    """Answer `oauth.v2.exchange`: a pair for a token that never expires.

    Raises:
        SlackError: The client or the token is wrong, or rotation is off.
    """
    check_client(slack.app, arguments)
    issued = slack.world.tokens.exchange(str(arguments.get("token", "")))
    slack.world.changed()
    return _one_token(slack.app, slack.world, issued)


def holder_of(world: World, arguments: dict[str, Any]) -> str | None:
    """Find whose installation the code or token of a call is of."""
    code = world.codes.get(str(arguments.get("code", "")))
    refresh = world.tokens.find_refresh(str(arguments.get("refresh_token", "")))
    token = world.tokens.find(str(arguments.get("token", "")))
    return next((each.holder for each in (code, refresh, token) if each), None)


def _exchange_code(slack: Slack, arguments: dict[str, Any]) -> JSON:
    world = slack.world
    code = world.codes.get(str(arguments.get("code", "")))
    if code is None or world.now() >= code.issued_at + CODE_LIFE_S:
        raise SlackError("invalid_code")
    if code.used:
        raise SlackError("code_already_used")
    expected = code.redirect_uri if code.redirect_uri_sent else None
    if arguments.get("redirect_uri") != expected:
        raise SlackError("bad_redirect_uri")
    receiver = world.receiver_in(code.holder) if code.holder in world.workspaces else None
    if receiver and receiver.is_org_wide:
        raise SlackError("cannot_install_an_org_installed_app")
    bot, user = world.install(code)
    answer = _place(slack.app, world, code.holder)
    answer["authed_user"] = {"id": code.user, **(user.show() if user else {})}
    if bot:
        answer |= {**bot.show(), "bot_user_id": bot.token.user}
    if code.webhook_channel:
        answer["incoming_webhook"] = _make_webhook(slack, code)
    return answer


def _make_webhook(slack: Slack, code: Code) -> JSON:
    webhook = slack.world.add_webhook(code)
    domain = slack.world.home(code.holder).domain
    return {
        "channel": f"#{slack.world.channels[webhook.channel].name}",
        "channel_id": webhook.channel,
        "configuration_url": f"https://{domain}.slack.com/services/{webhook.service}",
        "url": f"{slack.base_url}{webhook.path}",
    }


def _one_token(app: SlackApp, world: World, issued: Issued) -> JSON:
    """Return the answer for one chain: a refresh or an exchange never gives two."""
    token = issued.token
    name = "bot_user_id" if token.kind == BOT else "user_id"
    return {**_place(app, world, token.holder), **issued.show(), name: token.user}


def _place(app: SlackApp, world: World, holder: str) -> JSON:
    """Return where a token works, as every answer with one says it."""
    enterprise, is_org_wide = world.enterprise_of(holder), holder in world.enterprises
    home = world.home(holder)
    return {
        "app_id": app.id,
        "team": None if is_org_wide else {"id": home.id, "name": home.name},
        "enterprise": {"id": enterprise.id, "name": enterprise.name} if enterprise else None,
        "is_enterprise_install": is_org_wide,
    }
