"""The Slack stand-in: its Web API, its pages, the playground, its own requests."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

from interlock_sandbox.clock import VirtualClock
from interlock_sandbox.config import Config, SlackApp
from interlock_sandbox.faults import Faults
from interlock_sandbox.pages import file_routes, page_routes, render_page, send_file
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.call_log import CallLog
from interlock_sandbox.slack.control import Control
from interlock_sandbox.slack.events import Events
from interlock_sandbox.slack.files import Uploads
from interlock_sandbox.slack.incoming_webhooks import IncomingWebhooks
from interlock_sandbox.slack.interactions import People
from interlock_sandbox.slack.limits import Limits
from interlock_sandbox.slack.oauth import OAuthPages
from interlock_sandbox.slack.outbound import Outbound
from interlock_sandbox.slack.response_urls import AppAnswers
from interlock_sandbox.slack.switchboard import Switchboard
from interlock_sandbox.slack.switches import Switches
from interlock_sandbox.slack.tokens import Rotation
from interlock_sandbox.slack.trouble import KINDS
from interlock_sandbox.slack.views import Views
from interlock_sandbox.slack.web_api import WebApi
from interlock_sandbox.slack.world import World


class SlackServer:
    """One Slack with one app.

    Attributes:
        world: Workspaces, messages, tokens; its `snapshot` is what a restart needs.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        switches: Switches,
        http: aiohttp.ClientSession,
        *,
        base_url: str,
        clock: VirtualClock,
        wall: Callable[[], float],
    ) -> None:
        def stamp() -> float:
            return wall() + switches.skew_s

        self.world = world
        self._outbound = Outbound(
            config.app,
            http,
            switches,
            stamp=stamp,
            timeout_s=config.delivery_timeout_s,
            retry_delays_s=config.retry_delays_s,
        )
        events, views = Events(config.app, world, self._outbound, stamp), Views(config.app, world)
        world.on_posted = events.message_posted
        log, faults, limits = CallLog(wall), Faults(KINDS), Limits(switches, clock)
        slack = Slack(config.app, world, events, views, switches, config.stream_life_s, base_url)
        answers, uploads = AppAnswers(world, log, faults, base_url), Uploads(world)
        people = People(
            config.app,
            world,
            outbound=self._outbound,
            events=events,
            answers=answers,
            views=views,
        )
        switchboard = Switchboard(
            slack, outbound=self._outbound, faults=faults, limits=limits, log=log
        )
        self._routes = [
            *WebApi(slack, log, faults, limits).routes(),
            *answers.routes(),
            *IncomingWebhooks(world, log, faults).routes(),
            *uploads.routes(),
            *OAuthPages(config.app, world).routes(),
            *Control(config, slack, people, uploads).routes(),
            *switchboard.routes(),
            *clock.routes(),
            *page_routes(),
            *_playground_routes(config.app, world),
        ]

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return everything that this listener serves."""
        return self._routes

    async def stop_feeds(self, _app: web.Application) -> None:
        """Let the open pages go, so that the listener can close."""
        self.world.feed.close()

    async def close(self) -> None:
        """Give up the requests under way."""
        await self._outbound.close()


@asynccontextmanager
async def open_slack(
    config: Config,
    *,
    saved: Any,
    base_url: str,
    now: Callable[[], float],
    changed: Callable[[], None],
) -> AsyncIterator[SlackServer]:
    """Make a Slack that is reached at `base_url`, and end its requests at the end.

    It goes on from what the world's `snapshot` returned in an earlier run.
    """
    clock = VirtualClock(now)
    rotation = Rotation(config.token_rotation, config.refresh_grace_s)
    switches = Switches(
        rotation,
        rate_limits=config.rate_limits,
        history_once_a_minute=config.history_once_a_minute,
        delayed_events=config.delayed_events,
        delayed_event_interval_s=config.delayed_event_interval_s,
    )
    app = config.app
    world = World(saved, clock, changed, rotation=rotation, app_id=app.id, app_name=app.name)
    if app.app_token:
        world.tokens.keep_app_token(app.app_token.reveal())
    # The app's answers set no cookies here, as none of Slack's requests send any.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        server = SlackServer(
            config, world, switches, http, base_url=base_url, clock=clock, wall=now
        )
        try:
            yield server
        finally:
            await server.close()


def _playground_routes(app: SlackApp, world: World) -> list[web.AbstractRouteDef]:
    async def page(_request: web.Request) -> web.Response:
        return send_file("playground", "index.html")

    async def app_redirect(request: web.Request) -> web.Response:
        """Send a browser to the app in a workspace, as Slack's link of that name does."""
        team = request.query.get("team", "")
        if request.query.get("app") != app.id:
            return render_page(
                "oauth_error.html", status=HTTPStatus.NOT_FOUND, problem="invalid_app_id"
            )
        if team and world.find_home(team) is None:
            return render_page(
                "oauth_error.html", status=HTTPStatus.NOT_FOUND, problem="invalid_team"
            )
        query = f"?{urlencode({'team': team})}" if team else ""
        return web.Response(status=HTTPStatus.FOUND, headers={"Location": f"/{query}"})

    return [
        web.get("/", page),
        web.get("/app_redirect", app_redirect),
        *file_routes("playground"),
    ]
