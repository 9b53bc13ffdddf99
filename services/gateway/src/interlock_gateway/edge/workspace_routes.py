"""The dashboard: workspaces, and their linked users."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from interlock_chassis.errors import ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.administering import Administering
from interlock_gateway.edge.browser import Browser, Visit, end_cookie
from interlock_gateway.edge.csv_stream import send_csv
from interlock_gateway.edge.install_routes import INSTALL_FORM
from interlock_gateway.edge.link_routes import RECEIPT_COOKIE
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action
from interlock_gateway.edge.ports import Page, UserMapping
from interlock_gateway.edge.slack_urls import SlackUrls


class WorkspaceRoutes:
    """Serve the dashboard and its pages.

    Args:
        playground_url: The sandbox's Slack client, in development; else "".
        is_by_nango: Whether the button leads to the install page, or straight to Slack.
    """

    def __init__(
        self,
        *,
        browser: Browser,
        pages: Pages,
        administering: Administering,
        slack: SlackUrls,
        playground_url: str,
        is_by_nango: bool = False,
    ) -> None:
        self._browser = browser
        self._pages = pages
        self._administering = administering
        self._slack = slack
        self._playground_url = playground_url
        self._is_by_nango = is_by_nango

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = paths.WORKSPACES + "/{workspace_id}"
        return [
            web.get("/", _go_home),
            web.get("/work-apps/slack", _go_home),
            web.get(paths.HOME, self._home),
            web.get(one, self._workspace),
            web.get(one + "/users.csv", self._users_csv),
            web.post(one + "/unlink", self._unlink),
            web.post(one + "/uninstall", self._uninstall),
        ]

    async def _home(self, request: web.Request) -> web.Response:
        try:
            visit = await self._browser.visit(request, Action.SEE_WORKSPACES)
        except ServiceError as error:
            if error.reason != "NOT_SIGNED_IN":
                raise
            return self._pages.render(
                "welcome.html",
                None,
                sign_in_url=self._browser.sign_in_url(paths.HOME),
                playground_url=self._playground_url,
            )
        return await self._dashboard(request, visit)

    async def _dashboard(self, request: web.Request, visit: Visit) -> web.Response:
        workspaces = await self._administering.list_workspaces(visit.proof)
        installed, again = request.query.get("installed", ""), request.query.get("again", "")
        # The notice names a workspace of the tenant or nothing: the address proves nothing.
        notice = next(
            (each for each in workspaces if each.slack_team_id in {installed, again}), None
        )
        return self._pages.render(
            "dashboard.html",
            visit.viewer,
            person=visit.person,
            workspaces=workspaces,
            notice=notice,
            is_again=notice is not None and notice.slack_team_id == again,
            open_in_slack=self._slack.app_in,
            workspace_path=lambda each: paths.workspace(each.workspace_id),
            install_path=paths.INSTALL,
            is_by_nango=self._is_by_nango,
            token=self._browser.form_token(visit, INSTALL_FORM),
            playground_url=self._playground_url,
            is_uninstalled="uninstalled" in request.query,
        )

    async def _workspace(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_LINKS)
        workspace = await self._administering.get_workspace(visit.proof, _id(request))
        links = await self._administering.list_links(
            visit.proof, workspace.workspace_id, request.query.get("page", "")
        )
        path = paths.workspace(workspace.workspace_id)
        return self._pages.render(
            "workspace.html",
            visit.viewer,
            person=visit.person,
            workspace=workspace,
            mappings=links.items,
            next_url=_next_url(path, links),
            is_first="page" not in request.query,
            is_unlinked="unlinked" in request.query,
            workspace_path=path,
            slack_url=self._slack.app_in(workspace.slack_team_id),
            token_of=lambda mapping_id: self._browser.form_token(visit, _unlinking(mapping_id)),
            install_path=paths.INSTALL,
            install_token=self._browser.form_token(visit, INSTALL_FORM),
            is_by_nango=self._is_by_nango,
            uninstall_token=self._browser.form_token(visit, _uninstalling(workspace.workspace_id)),
        )

    async def _users_csv(self, request: web.Request) -> web.StreamResponse:
        visit = await self._browser.visit(request, Action.EXPORT_LINKS)
        workspace = await self._administering.get_workspace(visit.proof, _id(request))
        pages = self._administering.export_links(visit.proof, workspace.workspace_id)
        # The id is of Slack's plain characters; a name has no place in a header.
        name = f"linked-users-{workspace.slack_team_id}.csv"
        parts = (map(_row, page) async for page in pages)
        return await send_csv(request, name, _COLUMNS, parts)

    async def _unlink(self, request: web.Request) -> web.Response:
        mapping_id = request.query.get("mapping", "")
        visit = await self._browser.submission(request, _unlinking(mapping_id), Action.UNLINK)
        workspace = await self._administering.unlink(visit.proof, _id(request), mapping_id)
        response = _see_other(f"{paths.workspace(workspace.workspace_id)}?unlinked=1")
        # Back must not lead to a page that calls the person linked.
        end_cookie(response, RECEIPT_COOKIE)
        return response

    async def _uninstall(self, request: web.Request) -> web.Response:
        workspace_id = _id(request)
        visit = await self._browser.submission(
            request, _uninstalling(workspace_id), Action.UNINSTALL
        )
        await self._administering.uninstall(visit.proof, workspace_id)
        return _see_other(f"{paths.HOME}?uninstalled=1")


_COLUMNS = (
    "slackTeamId",
    "slackUserId",
    "userId",
    "name",
    "email",
    "linkedAt",
    "lastUsedAt",
)


def _row(link: UserMapping) -> list[str]:
    return [
        link.slack_team_id,
        link.slack_user_id,
        link.user_id,
        link.user_name,
        link.user_email,
        _instant(link.linked_at),
        _instant(link.last_used_at) if link.last_used_at else "",
    ]


async def _go_home(_request: web.Request) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": paths.HOME})


def _id(request: web.Request) -> str:
    return request.match_info["workspace_id"]


def _see_other(location: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})


def _next_url(path: str, page: Page[Any]) -> str:
    return f"{path}?{urlencode({'page': page.next_token})}" if page.next_token else ""


def _unlinking(mapping_id: str) -> str:
    return f"unlink:{mapping_id}"


def _uninstalling(workspace_id: str) -> str:
    return f"uninstall:{workspace_id}"


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
