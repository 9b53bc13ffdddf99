"""The JSON twins of the pages, for programs with a person's session."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.administering import Administering
from interlock_gateway.edge.browser import Browser
from interlock_gateway.edge.http import read_json
from interlock_gateway.edge.openapi import openapi_document
from interlock_gateway.edge.policy import Action
from interlock_gateway.edge.ports import (
    AgentDefault,
    AuditEvent,
    Channel,
    PeopleEvent,
    UserMapping,
    Workspace,
)

# Our largest document has four short members.
_MAX_BODY_BYTES = 16 * 1024


class MalformedBody(ServiceError):
    """The JSON is not what the OpenAPI document describes."""

    kind = Kind.INVALID
    reason = "MALFORMED_BODY"


class ApiRoutes:
    """Serve JSON; what it is like is written in `openapi.py`."""

    def __init__(self, *, browser: Browser, administering: Administering, public_url: str) -> None:
        self._browser = browser
        self._administering = administering
        self._document = json.dumps(openapi_document(public_url))

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; they come before the pages, whose paths would take theirs."""
        one = paths.WORKSPACES + "/{workspace_id}"
        return [
            web.get(paths.OPENAPI, self._openapi),
            web.get(paths.WORKSPACES + ".json", self._workspaces),
            web.get(one + ".json", self._workspace),
            web.delete(one + ".json", self._uninstall),
            web.get(one + "/users.json", self._users),
            web.delete(one + "/users/{mapping_id}.json", self._unlink),
            web.get(one + "/settings.json", self._settings),
            web.put(one + "/settings.json", self._change_workspace),
            web.get(one + "/channels.json", self._channels),
            web.put(one + "/channels/{channel_id}/settings.json", self._change_channel),
            web.get(one + "/health.json", self._health),
            web.post(one + "/test-message.json", self._test),
            web.get(one + "/audit.json", self._audit),
            web.get(one + "/audit/people.json", self._people_audit),
        ]

    async def _openapi(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._document, content_type="application/json")

    async def _workspaces(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_WORKSPACES)
        workspaces = await self._administering.list_workspaces(visit.proof)
        return web.json_response({"workspaces": [_as_json(each) for each in workspaces]})

    async def _workspace(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_WORKSPACES)
        workspace = await self._administering.get_workspace(visit.proof, _id(request))
        return web.json_response(_as_json(workspace))

    async def _uninstall(self, request: web.Request) -> web.Response:
        visit = await self._browser.call(request, Action.UNINSTALL)
        await self._administering.uninstall(visit.proof, _id(request))
        return _done()

    async def _users(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_LINKS)
        # Identity lists what the tenant has; a workspace of another one is nowhere.
        workspace = await self._administering.get_workspace(visit.proof, _id(request))
        page = await self._administering.list_links(
            visit.proof, workspace.workspace_id, request.query.get("page", "")
        )
        return web.json_response(
            {"users": [_as_json(each) for each in page.items], "nextPage": page.next_token}
        )

    async def _unlink(self, request: web.Request) -> web.Response:
        visit = await self._browser.call(request, Action.UNLINK)
        mapping_id = request.match_info["mapping_id"]
        await self._administering.unlink(visit.proof, _id(request), mapping_id)
        return _done()

    async def _settings(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_SETTINGS)
        defaults = await self._administering.list_defaults(visit.proof, _id(request))
        return web.json_response(
            {
                "defaultAgent": next(
                    (_agent(each) for each in defaults if not each.channel_id), None
                ),
                "channels": [
                    {"channelId": each.channel_id, "defaultAgent": _agent(each)}
                    for each in defaults
                    if each.channel_id
                ],
            }
        )

    async def _change_workspace(self, request: web.Request) -> web.Response:
        return await self._change(request, "")

    async def _change_channel(self, request: web.Request) -> web.Response:
        return await self._change(request, request.match_info["channel_id"])

    async def _change(self, request: web.Request, channel_id: str) -> web.Response:
        visit = await self._browser.call(request, Action.CHANGE_SETTINGS)
        chosen = _read_settings(await read_json(request, _MAX_BODY_BYTES), channel_id)
        if chosen is None:
            await self._administering.remove_default(visit.proof, _id(request), channel_id)
        else:
            await self._administering.set_default(visit.proof, _id(request), chosen)
        return _done()

    async def _channels(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.SEE_CHANNELS)
        channels = await self._administering.list_channels(visit.proof, _id(request))
        return web.json_response({"channels": [_as_json(each) for each in channels]})

    async def _health(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.CHECK_HEALTH)
        health = await self._administering.check_health(visit.proof, _id(request))
        return web.json_response({"healthy": health.is_healthy, "slackError": health.slack_error})

    async def _test(self, request: web.Request) -> web.Response:
        visit = await self._browser.call(request, Action.SEND_TEST_MESSAGE)
        body = await read_json(request, _MAX_BODY_BYTES)
        _require_members(body, {"channelId": str})
        await self._administering.send_test_message(visit.proof, _id(request), body["channelId"])
        return _done()

    async def _audit(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.READ_AUDIT)
        _, events = await self._administering.read_audit(
            visit.proof, _id(request), request.query.get("page", "")
        )
        return web.json_response(
            {"events": [_as_json(each) for each in events.items], "nextPage": events.next_token}
        )

    async def _people_audit(self, request: web.Request) -> web.Response:
        visit = await self._browser.visit(request, Action.READ_AUDIT)
        event, page = request.query.get("event", ""), request.query.get("page", "")
        _, events = await self._administering.read_people_audit(
            visit.proof, _id(request), event, page
        )
        return web.json_response(
            {"events": [_as_json(each) for each in events.items], "nextPage": events.next_token}
        )


def _id(request: web.Request) -> str:
    return request.match_info["workspace_id"]


def _done() -> web.Response:
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _read_settings(body: Mapping[str, Any], channel_id: str) -> AgentDefault | None:
    """Read the default agent of a place; None to remove it."""
    if set(body) != {"defaultAgent"}:
        raise MalformedBody
    agent = body["defaultAgent"]
    if agent is None:
        return None
    if not isinstance(agent, dict):
        raise MalformedBody
    given: dict[str, Any] = {"grantAccessToMembers": False, **agent}
    _require_members(given, {"projectId": str, "agentId": str, "grantAccessToMembers": bool})
    return AgentDefault(
        channel_id, given["projectId"], given["agentId"], given["grantAccessToMembers"]
    )


def _require_members(body: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Refuse a member too many or too few, or of another type.

    Raises:
        MalformedBody: There is one.
    """
    if set(body) != set(types):
        raise MalformedBody
    if any(type(body[name]) is not expected for name, expected in types.items()):
        raise MalformedBody


def _agent(default: AgentDefault) -> dict[str, object]:
    return {
        "projectId": default.project_id,
        "agentId": default.agent_id,
        "grantAccessToMembers": default.grants_access,
    }


def _as_json(
    value: Workspace | UserMapping | AuditEvent | PeopleEvent | Channel,
) -> dict[str, object]:
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
