"""The listeners, put together."""

import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from interlock_chassis.errors import ConfigError
from interlock_sandbox.auth import AuthServer
from interlock_sandbox.config import Address, Config, NangoListener
from interlock_sandbox.directory import Directory
from interlock_sandbox.membership import MembershipTables, open_membership_tables
from interlock_sandbox.nango.server import open_nango
from interlock_sandbox.nango.settings import NangoSettings, SlackIntegration
from interlock_sandbox.platform.server import Platform
from interlock_sandbox.slack.server import SlackServer, open_slack
from interlock_sandbox.state import StateFile
from interlock_sandbox.web import application

# Nobody waits longer for an open page or stream when the sandbox stops.
SHUTDOWN_S = 2.0
BACKLOG = 128
# What callers of Nango name as `provider_config_key`.
NANGO_INTEGRATION = "work-apps-slack"
NANGO_SCOPES = (
    "app_mentions:read,channels:history,channels:read,chat:write,commands,"
    "groups:history,groups:read,im:history,im:read,im:write,users:read,users:read.email"
)


@dataclass(frozen=True)
class Urls:
    """Where the stand-ins are reached, without a slash at the end."""

    slack: str
    platform: str
    auth: str
    nango: str | None = None


@asynccontextmanager
async def running(config: Config, now: Callable[[], float] = time.time) -> AsyncIterator[Urls]:
    """Serve the stand-ins until the block ends; the state is saved then.

    Raises:
        ConfigError: The state file, the database or a port cannot be used.
    """
    state = StateFile(config.state_file)
    directory = Directory(state.section("directory"))
    async with AsyncExitStack() as stack:
        slack_socket, slack_url = _bind(stack, config.slack_listen, "slack_listen")
        platform_socket, platform_url = _bind(stack, config.platform_listen, "platform_listen")
        auth_socket, auth_url = _bind(stack, config.auth_listen, "auth_listen")
        nango_socket: socket.socket | None = None
        nango_url: str | None = None
        if config.nango is not None:
            nango_socket, nango_url = _bind(stack, config.nango.listen, "nango_listen")
            config = _with_redirect(config, f"{nango_url}/oauth/callback")
        tables = await _open_tables(stack, config, directory)
        auth = _auth_server(config, directory, state, tables, now)
        platform = _platform(config, directory, auth, state, now)
        slack: SlackServer = await stack.enter_async_context(
            open_slack(
                config,
                saved=state.section("slack"),
                base_url=slack_url,
                now=now,
                changed=state.touch,
            )
        )
        state.register("directory", directory.snapshot)
        state.register("auth", auth.snapshot)
        state.register("platform", platform.snapshot)
        state.register("slack", slack.world.snapshot)
        if config.nango is not None and nango_socket is not None and nango_url is not None:
            settings = _nango_settings(config, config.nango, slack_url)
            nango_app = await _nango_app(stack, settings, nango_url, state, now)
            await _serve(stack, nango_app, nango_socket)
        stack.callback(state.save)
        slack_app = application(*slack.routes())
        slack_app.on_shutdown.append(slack.stop_feeds)
        await _serve(stack, slack_app, slack_socket)
        # A run whose asker hung up must end; the real platform notices too.
        platform_app = application(*platform.routes())
        await _serve(stack, platform_app, platform_socket, cancel_handlers=True)
        await _serve(stack, application(*auth.routes()), auth_socket)
        yield Urls(slack_url, platform_url, auth_url, nango_url)


def _with_redirect(config: Config, url: str) -> Config:
    """Let Slack send people back to one more place."""
    app = dataclasses.replace(config.app, redirect_urls=(*config.app.redirect_urls, url))
    return dataclasses.replace(config, app=app)


def _nango_settings(config: Config, nango: NangoListener, slack_url: str) -> NangoSettings:
    integration = SlackIntegration(
        NANGO_INTEGRATION,
        "Slack work app",
        config.app.client_id,
        config.app.client_secret,
        NANGO_SCOPES,
    )
    return NangoSettings(
        slack_url=slack_url,
        api_key=nango.api_key,
        signing_key=nango.webhook_key,
        webhook_urls=nango.webhook_urls,
        return_url=config.dashboard_url,
        integrations=(integration,),
    )


async def _nango_app(
    stack: AsyncExitStack,
    settings: NangoSettings,
    url: str,
    state: StateFile,
    now: Callable[[], float],
) -> web.Application:
    nango = await stack.enter_async_context(
        open_nango(
            settings, saved=state.section("nango"), base_url=url, now=now, changed=state.touch
        )
    )
    state.register("nango", nango.environment.snapshot)
    return application(*nango.routes())


def _auth_server(
    config: Config,
    directory: Directory,
    state: StateFile,
    tables: MembershipTables | None,
    now: Callable[[], float],
) -> AuthServer:
    return AuthServer(
        directory,
        cookie_secret=config.auth_cookie_secret,
        trusted_origins=config.trusted_origins,
        dashboard_url=config.dashboard_url,
        saved=state.section("auth"),
        now=now,
        changed=state.touch,
        tables=tables,
    )


def _platform(
    config: Config,
    directory: Directory,
    auth: AuthServer,
    state: StateFile,
    now: Callable[[], float],
) -> Platform:
    return Platform(
        directory,
        config.user_token_keys,
        find_visitor=auth.find_visitor,
        word_delay_s=config.word_delay_s,
        saved=state.section("platform"),
        now=now,
        changed=state.touch,
    )


async def _open_tables(
    stack: AsyncExitStack, config: Config, directory: Directory
) -> MembershipTables | None:
    if config.membership_database_url is None:
        return None
    opened = open_membership_tables(config.membership_database_url)
    tables = await stack.enter_async_context(opened)
    await tables.keep(directory)
    return tables


def _bind(stack: AsyncExitStack, address: Address, key: str) -> tuple[socket.socket, str]:
    """Take a port before anything else is made, so that its number is known."""
    try:
        bound = socket.create_server(address, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(key, f"cannot listen there: {error.strerror}") from None
    stack.callback(bound.close)
    return bound, f"http://{address.host}:{bound.getsockname()[1]}"


async def _serve(
    stack: AsyncExitStack,
    app: web.Application,
    bound: socket.socket,
    *,
    cancel_handlers: bool = False,
) -> None:
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=cancel_handlers,
        shutdown_timeout=SHUTDOWN_S,
    )
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.SockSite(runner, bound).start()
