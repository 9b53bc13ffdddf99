"""Installing, as pages: the question, Slack's consent, and every way it can end."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlencode

import structlog
from aiohttp import web

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import Browser, Visit, end_cookie, set_cookie, take_cookie
from interlock_gateway.edge.installing import (
    Installing,
    InstallStateSpent,
    NotYourInstall,
    require_callback,
)
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action, RoleNotSufficient

INSTALL_FORM = "install"

_COOKIE = "install"
# As long as the state lives in the database.
_COOKIE_SECONDS = 600


class InstallCancelled(ServiceError):
    """The person said no at Slack."""

    kind = Kind.PRECONDITION
    reason = "INSTALL_CANCELLED"


class InstallRefusedBySlack(ServiceError):
    """Slack ended the install with an error."""

    kind = Kind.UNAVAILABLE
    reason = "INSTALL_REFUSED_BY_SLACK"


class InstallRoutes:
    """Serve the install pages.

    Args:
        asks: Whether the page that asks is here; else another one stands in its place.
    """

    def __init__(
        self,
        *,
        browser: Browser,
        pages: Pages,
        installing: Installing,
        metrics: EdgeMetrics,
        asks: bool = True,
    ) -> None:
        self._asks = asks
        self._browser = browser
        self._pages = pages
        self._installing = installing
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            *([web.get(paths.INSTALL, self._ask)] if self._asks else []),
            web.post(paths.INSTALL, self._start),
            web.get(paths.INSTALL_CALLBACK, self._finish),
        ]

    async def _ask(self, request: web.Request) -> web.Response:
        """Ask before anything happens; Slack's own install button leads here."""
        visit = await self._browser.visit(request, Action.INSTALL)
        return self._pages.render(
            "install.html",
            visit.viewer,
            person=visit.person,
            install_path=paths.INSTALL,
            token=self._browser.form_token(visit, INSTALL_FORM),
        )

    async def _start(self, request: web.Request) -> web.Response:
        visit = await self._browser.submission(request, INSTALL_FORM, Action.INSTALL)
        asked = {*request.query.getall("tenant_id", []), visit.form.get("tenant_id", "")} - {""}
        if not asked <= {visit.person.tenant_id}:
            # The tenant is the session's; whoever names another one is probing.
            self._metrics.audit("install_for_other_tenant_refused", **_who(visit))
            raise RoleNotSufficient
        started = await self._installing.start(visit.proof, visit.person)
        response = _see_other(started.authorize_url)
        set_cookie(response, _COOKIE, started.browser_secret, _COOKIE_SECONDS)
        return response

    async def _finish(self, request: web.Request) -> web.Response:
        state, browser_secret = _single(request, "state"), take_cookie(request, _COOKIE)
        require_callback(state=state, browser_secret=browser_secret)
        visit = await self._browser.visit(request, Action.INSTALL)
        if error := _single(request, "error"):
            await self._installing.take(state=state, browser_secret=browser_secret)
            # Slack's word for a no; its text goes nowhere.
            raise InstallCancelled if error == "access_denied" else InstallRefusedBySlack
        with noting_other_sessions(self._metrics, visit):
            installed = await self._installing.complete(
                visit.person,
                state=state,
                browser_secret=browser_secret,
                code=_single(request, "code"),
            )
        if installed.extra_scopes:
            structlog.get_logger().warning("scope_drift", scopes=sorted(installed.extra_scopes))
        notice = {"again" if installed.is_reinstall else "installed": installed.slack_team_id}
        response = _see_other(f"{paths.HOME}?{urlencode(notice)}")
        end_cookie(response, _COOKIE)
        return response


@contextmanager
def noting_other_sessions(metrics: EdgeMetrics, visit: Visit) -> Iterator[None]:
    """Write the audit line of who ends an install that another session began."""
    try:
        yield
    except NotYourInstall:
        metrics.audit("install_of_other_session_refused", **_who(visit))
        raise


def _who(visit: Visit) -> dict[str, str]:
    return {"user_id": visit.person.user_id, "tenant_id": visit.person.tenant_id}


def _single(request: web.Request, name: str) -> str:
    """Read a query parameter that may be absent, but not come twice."""
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise InstallStateSpent
    return values[0] if values else ""


def _see_other(location: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})
