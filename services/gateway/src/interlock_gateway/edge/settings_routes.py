"""Pages on which administrators settle what a workspace does, and try it."""

from http import HTTPStatus
from urllib.parse import urlencode

from aiohttp import web

from interlock_chassis.errors import ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.administering import Administering, Channels
from interlock_gateway.edge.browser import Browser, Visit
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import POLICY, Action
from interlock_gateway.edge.ports import AgentDefault
from interlock_gateway.edge.problems import problem_of

# What the form can be sent again for, with other words or a moment later.
_TO_BE_CORRECTED = frozenset({"AGENT_NOT_FOUND", "MALFORMED_AGENT_DEFAULT", "PLATFORM_UNAVAILABLE"})
_NOTHING = AgentDefault("", "", "", grants_access=False)


class SettingsRoutes:
    """Serve the settings and health of a workspace."""

    def __init__(self, *, browser: Browser, pages: Pages, administering: Administering) -> None:
        self._browser = browser
        self._pages = pages
        self._administering = administering

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = paths.WORKSPACES + "/{workspace_id}"
        return [
            web.get(one + "/settings", self._settings),
            web.post(one + "/settings", self._change),
            web.get(one + "/health", self._health),
            web.post(one + "/test-message", self._test),
        ]

    async def _settings(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_SETTINGS)
        return await self._show(visit, _id(request), is_saved="saved" in request.query)

    async def _show(
        self,
        visit: Visit,
        workspace_id: str,
        *,
        is_saved: bool = False,
        tried: AgentDefault = _NOTHING,
        problem: ServiceError | None = None,
    ) -> web.Response:
        workspace = await self._administering.get_workspace(visit.proof, workspace_id)
        defaults = await self._administering.list_defaults(visit.proof, workspace_id)
        may_change = visit.person.role in POLICY[Action.CHANGE_SETTINGS]
        channels = Channels((), "")
        if may_change:
            channels = await self._administering.find_channels(visit.proof, workspace_id)
        shown = problem_of(problem) if problem else None
        return self._pages.render(
            "settings.html",
            visit.viewer,
            status=shown.status if shown else HTTPStatus.OK,
            workspace=workspace,
            workspace_path=paths.workspace(workspace_id),
            settings_path=paths.settings(workspace_id),
            whole=next((each for each in defaults if not each.channel_id), None),
            by_channel=[each for each in defaults if each.channel_id],
            channels=channels,
            channel_names={each.channel_id: each.name for each in channels.items},
            may_change=may_change,
            is_saved=is_saved,
            tried=tried,
            problem=shown,
            token=self._browser.form_token(visit, _changing(workspace_id)),
        )

    async def _change(self, request: web.Request) -> web.Response:
        workspace_id = _id(request)
        visit = await self._browser.submission(
            request, _changing(workspace_id), Action.CHANGE_SETTINGS
        )
        channel_id = visit.form.get("channel_id", "").strip()
        chosen = AgentDefault(
            channel_id=channel_id,
            project_id=visit.form.get("project_id", "").strip(),
            agent_id=visit.form.get("agent_id", "").strip(),
            grants_access=visit.form.get("grants_access") == "yes",
        )
        is_for_channel = visit.form.get("place") == "channel"
        try:
            if visit.form.get("do") == "remove":
                await self._administering.remove_default(visit.proof, workspace_id, channel_id)
            else:
                await self._administering.set_default(
                    visit.proof, workspace_id, chosen, must_name_channel=is_for_channel
                )
        except ServiceError as error:
            if error.reason not in _TO_BE_CORRECTED:
                raise
            return await self._show(visit, workspace_id, tried=chosen, problem=error)
        return _see_other(f"{paths.settings(workspace_id)}?saved=1")

    async def _health(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.CHECK_HEALTH)
        workspace_id = _id(request)
        workspace = await self._administering.get_workspace(visit.proof, workspace_id)
        health = await self._administering.check_health(visit.proof, workspace_id)
        channels = Channels((), "")
        if health.is_healthy:
            channels = await self._administering.find_channels(visit.proof, workspace_id)
        return self._pages.render(
            "health.html",
            visit.viewer,
            workspace=workspace,
            workspace_path=paths.workspace(workspace_id),
            health_path=paths.health(workspace_id),
            test_path=paths.test_message(workspace_id),
            health=health,
            channels=channels,
            is_sent="sent" in request.query,
            token=self._browser.form_token(visit, _testing(workspace_id)),
        )

    async def _test(self, request: web.Request) -> web.Response:
        workspace_id = _id(request)
        visit = await self._browser.submission(
            request, _testing(workspace_id), Action.SEND_TEST_MESSAGE
        )
        channel_id = visit.form.get("channel_id", "").strip()
        await self._administering.send_test_message(visit.proof, workspace_id, channel_id)
        return _see_other(f"{paths.health(workspace_id)}?{urlencode({'sent': 1})}")


def _id(request: web.Request) -> str:
    return request.match_info["workspace_id"]


def _changing(workspace_id: str) -> str:
    return f"settings:{workspace_id}"


def _testing(workspace_id: str) -> str:
    return f"test-message:{workspace_id}"


def _see_other(location: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})
