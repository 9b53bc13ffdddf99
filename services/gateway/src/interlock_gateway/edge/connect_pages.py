"""Installing by Nango, as pages: the question, Nango's page in another tab, and what came of it.

Nango does not send people back. Its webhook completes the install at the vault;
the page here asks what came of that.
"""

from http import HTTPStatus
from urllib.parse import urlencode

import structlog
from aiohttp import web
from yarl import URL

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import Browser, end_cookie, set_cookie, take_cookie
from interlock_gateway.edge.connect_routes import CONNECT_COOKIE, CONNECT_COOKIE_SECONDS
from interlock_gateway.edge.install_routes import INSTALL_FORM, noting_other_sessions
from interlock_gateway.edge.installing import Connecting
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action


class ConnectPageElsewhere(ServiceError):
    """Nango's Connect page is not where this deployment was told it is."""

    kind = Kind.PRECONDITION
    reason = "CONNECT_PAGE_ELSEWHERE"


class ConnectPages:
    """Serve the install page of a deployment that installs by Nango.

    Args:
        origin: Where Nango's Connect page is; browsers are sent nowhere else.
    """

    def __init__(
        self,
        *,
        browser: Browser,
        pages: Pages,
        connecting: Connecting,
        metrics: EdgeMetrics,
        origin: URL,
    ) -> None:
        self._browser = browser
        self._pages = pages
        self._connecting = connecting
        self._metrics = metrics
        self._origin = origin

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get(paths.INSTALL, self._ask),
            web.post(paths.INSTALL_CONNECT, self._start),
            web.get(paths.INSTALL_CONNECTED, self._tell),
        ]

    async def _ask(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.INSTALL)
        return self._pages.render(
            "connect.html",
            visit.viewer,
            person=visit.person,
            connect_path=paths.INSTALL_CONNECT,
            connected_path=paths.INSTALL_CONNECTED,
            workspace_id=request.query.get("workspace", ""),
            token=self._browser.form_token(visit, INSTALL_FORM),
        )

    async def _start(self, request: web.Request) -> web.Response:
        visit = await self._browser.submission(request, INSTALL_FORM, Action.INSTALL)
        workspace_id = visit.form.get("workspace", "")
        session, cookie = await self._connecting.start(visit.proof, visit.person, workspace_id)
        link = session.link.reveal()
        if URL(link).origin() != self._origin:
            structlog.get_logger().error(
                "connect_page_elsewhere", origin=str(URL(link).origin()), told=str(self._origin)
            )
            raise ConnectPageElsewhere
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": link})
        set_cookie(response, CONNECT_COOKIE, cookie, CONNECT_COOKIE_SECONDS)
        return response

    async def _tell(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.INSTALL)
        with noting_other_sessions(self._metrics, visit):
            installed = await self._connecting.find_outcome(
                visit.person, take_cookie(request, CONNECT_COOKIE)
            )
        if installed is None:
            return self._pages.render(
                "connecting.html",
                visit.viewer,
                connected_path=paths.INSTALL_CONNECTED,
                install_path=paths.INSTALL,
            )
        notice = {"again" if installed.is_reinstall else "installed": installed.slack_team_id}
        location = f"{paths.HOME}?{urlencode(notice)}"
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})
        end_cookie(response, CONNECT_COOKIE)
        return response
