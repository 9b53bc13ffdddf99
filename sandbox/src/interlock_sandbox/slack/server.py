"""The Slack stand-in: its Web API, its pages, the playground, its own requests."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

from interlock_sandbox.config import Config, SlackApp
from interlock_sandbox.pages import file_routes, page_routes, render_page, send_file
from interlock_sandbox.slack.call import Slack
from interlock_sandbox.slack.call_log import CallLog
from interlock_sandbox.slack.control import Control
from interlock_sandbox.slack.interactions import People
from interlock_sandbox.slack.oauth import OAuthPages
from interlock_sandbox.slack.outbound import Outbound
from interlock_sandbox.slack.response_urls import AppAnswers
from interlock_sandbox.slack.views import Views
from interlock_sandbox.slack.web_api import WebApi
from interlock_sandbox.slack.world import World


class SlackServer:
    """One Slack with one app.

    Attributes:
        world: Workspaces, messages, tokens; its `snapshot` is what a restart needs.
    """

    def __init__(
        self, config: Config, world: World, http: aiohttp.ClientSession, base_url: str
    ) -> None:
        self.world = world
        self._app = config.app
        self._outbound = Outbound(
            config.app,
            world,
            http,
            timeout_s=config.delivery_timeout_s,
            retry_delays_s=config.retry_delays_s,
        )
        world.on_posted = self._outbound.message_posted
        views = Views(config.app, world)
        log = CallLog(world.now)
        slack = Slack(config.app, world, self._outbound, views, config.stream_life_s)
        api = WebApi(slack, log)
        answers = AppAnswers(world, log, base_url)
        people = People(config.app, world, outbound=self._outbound, answers=answers, views=views)
        control = Control(config, slack, people=people, api=api, log=log)
        self._routes = [
            *api.routes(),
            *answers.routes(),
            *OAuthPages(config.app, world).routes(),
            *control.routes(),
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
    world = World(saved, now, changed)
    # The app's answers set no cookies here, as none of Slack's requests send any.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        server = SlackServer(config, world, http, base_url)
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
        if team and team not in world.workspaces:
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
