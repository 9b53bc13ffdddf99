"""The audit log of a workspace: the vault's of its tokens, and identity's of its people."""

from urllib.parse import urlencode

from aiohttp import web

from interlock_gateway.edge import paths
from interlock_gateway.edge.administering import Administering
from interlock_gateway.edge.browser import Browser
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action

# What the page offers to see alone, with what it calls that; JSON takes any event.
_KINDS = {
    "": "Everything",
    "user.linked": "Links",
    "user.unlinked": "Unlinks",
    "token.issued": "User tokens",
    "grant.issued": "Grants",
    "call.refused": "Refusals",
}


class AuditRoutes:
    """Serve the two parts of a workspace's audit log."""

    def __init__(self, *, browser: Browser, pages: Pages, administering: Administering) -> None:
        self._browser = browser
        self._pages = pages
        self._administering = administering

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = paths.WORKSPACES + "/{workspace_id}"
        return [
            web.get(one + "/audit", self._tokens),
            web.get(one + "/audit/people", self._people),
        ]

    async def _tokens(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.READ_AUDIT)
        page = request.query.get("page", "")
        workspace, events = await self._administering.read_audit(
            visit.proof, request.match_info["workspace_id"], page
        )
        path = paths.audit(workspace.workspace_id)
        return self._pages.render(
            "audit.html",
            visit.viewer,
            workspace=workspace,
            workspace_path=paths.workspace(workspace.workspace_id),
            events=events.items,
            next_url=_address(path, page=events.next_token) if events.next_token else "",
            is_first="page" not in request.query,
            json_url=_address(f"{path}.json", page=page),
        )

    async def _people(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.READ_AUDIT)
        event, page = request.query.get("event", ""), request.query.get("page", "")
        workspace, events = await self._administering.read_people_audit(
            visit.proof, request.match_info["workspace_id"], event, page
        )
        path = paths.people_audit(workspace.workspace_id)
        following = events.next_token
        return self._pages.render(
            "audit_people.html",
            visit.viewer,
            workspace=workspace,
            workspace_path=paths.workspace(workspace.workspace_id),
            events=events.items,
            event=event,
            kinds=[(name, label, _address(path, event=name)) for name, label in _KINDS.items()],
            first_url=_address(path, event=event),
            next_url=_address(path, event=event, page=following) if following else "",
            is_first="page" not in request.query,
            json_url=_address(f"{path}.json", event=event, page=page),
        )


def _address(path: str, **query: str) -> str:
    given = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{given}" if given else path
