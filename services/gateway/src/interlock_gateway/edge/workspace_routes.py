"""The dashboard: workspaces, their linked users, and every read of a token."""

import re
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import Browser, Visit
from interlock_gateway.edge.install_routes import INSTALL_FORM
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.ports import AuditEvent, Identity, Page, Vault, Workspace
from interlock_gateway.edge.slack_urls import SlackUrls

# Ids of identity and page tokens are opaque; these are the alphabets they are made of.
_ID = re.compile(r"[A-Za-z0-9_.~-]{1,256}", re.ASCII)
_PAGE_TOKEN = re.compile(r"[A-Za-z0-9_.~=:-]{0,256}", re.ASCII)


class WorkspaceNotFound(ServiceError):
    """The tenant has no such workspace."""

    kind = Kind.NOT_FOUND
    reason = "WORKSPACE_NOT_FOUND"


class MappingNotFound(ServiceError):
    """There is no such link."""

    kind = Kind.NOT_FOUND
    reason = "MAPPING_NOT_FOUND"


class InvalidPageToken(ServiceError):
    """The page token is not one of ours."""

    kind = Kind.INVALID
    reason = "INVALID_PAGE_TOKEN"


class WorkspaceRoutes:
    """Serve the dashboard and its pages.

    Args:
        playground_url: The sandbox's Slack client, in development; else "".
    """

    def __init__(
        self,
        *,
        browser: Browser,
        pages: Pages,
        identity: Identity,
        vault: Vault,
        slack: SlackUrls,
        playground_url: str,
    ) -> None:
        self._browser = browser
        self._pages = pages
        self._identity = identity
        self._vault = vault
        self._slack = slack
        self._playground_url = playground_url

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = paths.WORKSPACES + "/{workspace_id}"
        return [
            web.get("/", _go_home),
            web.get("/work-apps/slack", _go_home),
            web.get(paths.HOME, self._home),
            web.get(paths.WORKSPACES + ".json", self._workspaces_json),
            web.get(one, self._workspace),
            web.post(one + "/unlink", self._unlink),
            web.get(one + "/audit", self._audit),
            web.get(one + "/audit.json", self._audit_json),
        ]

    async def _home(self, request: web.Request) -> web.Response:
        try:
            visit = await self._browser.visit(request)
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
        workspaces = await self._identity.list_workspaces(visit.proof)
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
            token=self._browser.form_token(visit, INSTALL_FORM),
            playground_url=self._playground_url,
        )

    async def _workspaces_json(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request)
        workspaces = await self._identity.list_workspaces(visit.proof)
        return web.json_response({"workspaces": [_as_json(each) for each in workspaces]})

    async def _workspace(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request)
        workspace = await self._get_workspace(visit, request)
        mappings = await self._identity.list_mappings(
            visit.proof, workspace.workspace_id, _page_token(request)
        )
        return self._pages.render(
            "workspace.html",
            visit.viewer,
            person=visit.person,
            workspace=workspace,
            mappings=mappings.items,
            next_url=_next_url(paths.workspace(workspace.workspace_id), mappings),
            is_first="page" not in request.query,
            is_unlinked="unlinked" in request.query,
            workspace_path=paths.workspace(workspace.workspace_id),
            slack_url=self._slack.app_in(workspace.slack_team_id),
            token_of=lambda mapping_id: self._browser.form_token(visit, _unlinking(mapping_id)),
        )

    async def _unlink(self, request: web.Request) -> web.Response:
        mapping_id = request.query.get("mapping", "")
        if not _ID.fullmatch(mapping_id):
            raise MappingNotFound
        visit = await self._browser.submission(request, _unlinking(mapping_id))
        workspace = await self._get_workspace(visit, request)
        await self._identity.unlink(visit.proof, mapping_id)
        location = f"{paths.workspace(workspace.workspace_id)}?unlinked=1"
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})

    async def _audit(self, request: web.Request) -> web.Response:
        visit, workspace, events = await self._read_audit(request)
        path = paths.audit(workspace.workspace_id)
        return self._pages.render(
            "audit.html",
            visit.viewer,
            workspace=workspace,
            workspace_path=paths.workspace(workspace.workspace_id),
            events=events.items,
            next_url=_next_url(path, events),
            is_first="page" not in request.query,
            json_url=f"{path}.json" + (f"?{request.query_string}" if request.query_string else ""),
        )

    async def _audit_json(self, request: web.Request) -> web.Response:
        _, _, events = await self._read_audit(request)
        return web.json_response(
            {"events": [_as_json(each) for each in events.items], "nextPage": events.next_token}
        )

    async def _read_audit(self, request: web.Request) -> tuple[Visit, Workspace, Page[AuditEvent]]:
        visit = await self._browser.visit(request)
        grant, workspace = await self._identity.issue_audit_grant(
            visit.proof, _workspace_id(request)
        )
        events = await self._vault.list_audit_events(grant, _page_token(request))
        return visit, workspace, events

    async def _get_workspace(self, visit: Visit, request: web.Request) -> Workspace:
        wanted = _workspace_id(request)
        for each in await self._identity.list_workspaces(visit.proof):
            if each.workspace_id == wanted:
                return each
        raise WorkspaceNotFound


async def _go_home(_request: web.Request) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": paths.HOME})


def _workspace_id(request: web.Request) -> str:
    workspace_id = request.match_info["workspace_id"]
    if not _ID.fullmatch(workspace_id):
        raise WorkspaceNotFound
    return workspace_id


def _page_token(request: web.Request) -> str:
    token = request.query.get("page", "")
    if not _PAGE_TOKEN.fullmatch(token):
        raise InvalidPageToken
    return token


def _next_url(path: str, page: Page[Any]) -> str:
    return f"{path}?{urlencode({'page': page.next_token})}" if page.next_token else ""


def _unlinking(mapping_id: str) -> str:
    return f"unlink:{mapping_id}"


def _as_json(value: Workspace | AuditEvent) -> dict[str, object]:
    """Write a value with the names and instants of JSON."""
    return {
        _camel(name): _instant(each) if isinstance(each, datetime) else each
        for name, each in asdict(value).items()
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
