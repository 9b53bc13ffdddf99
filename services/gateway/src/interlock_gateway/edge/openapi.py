"""What the JSON routes take and answer, as an OpenAPI 3.1 document."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from interlock_gateway.edge import paths
from interlock_gateway.edge.policy import POLICY, Action

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "integer"}
_STATUSES = ["pending", "active", "needs_reinstall", "uninstalled"]
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_INSTANT: Schema = {"type": "string", "format": "date-time"}
_PLATFORM_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,255}$"}
_NAMES = re.compile(r"\{(\w+)\}")
_ONE = paths.WORKSPACES + "/{workspaceId}"


def openapi_document(public_url: str) -> dict[str, Any]:
    """Describe every JSON route.

    Args:
        public_url: Our own origin.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Interlock",
            "version": "1",
            "description": "A tenant's Slack workspaces: links, default agents, health, audit.",
        },
        "servers": [{"url": public_url}],
        "security": [{"session": []}],
        "paths": {path: _parameters(path) | each for path, each in _paths().items()},
        "components": {
            "securitySchemes": {
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "better-auth.session_token",
                    "description": "The auth server's session cookie; an operator may rename it.",
                }
            },
            "schemas": _schemas(),
        },
    }


def _paths() -> dict[str, Any]:
    agent = {"oneOf": [_ref("AgentDefault"), {"type": "null"}]}
    setting = _object({"defaultAgent": agent})
    return {
        paths.OPENAPI: {
            "get": {
                "summary": "This document",
                "security": [],
                "responses": {"200": _content("The document", {"type": "object"})},
            }
        },
        paths.INSTALL_REQUESTS: {
            "post": _post(
                Action.INSTALL,
                "Open an install by Nango; the answer's cookie is needed to complete it",
                _object({"workspaceId": _TEXT}, optional=("workspaceId",)),
                "ConnectSession",
                also=("501", "502"),
            ),
        },
        paths.INSTALL_COMPLETE: {
            "post": _post(
                Action.INSTALL,
                "Complete an install with the connection that Nango made",
                _object({"providerConfigKey": _NAME, "connectionId": _NAME}),
                "Connected",
                also=("409", "422", "501", "502"),
            ),
        },
        paths.WORKSPACES + ".json": {
            "get": _read(Action.SEE_WORKSPACES, "The tenant's workspaces", "Workspaces"),
        },
        _ONE + ".json": {
            "get": _read(Action.SEE_WORKSPACES, "One workspace", "Workspace"),
            "delete": _write(Action.UNINSTALL, "Uninstall the app", also=("422",)),
        },
        _ONE + "/users.json": {
            "get": _read(Action.SEE_LINKS, "Linked users, newest first", "Users", paged=True),
        },
        _ONE + "/users/{mappingId}.json": {"delete": _write(Action.UNLINK, "Unlink a user")},
        _ONE + "/settings.json": {
            "get": _read(Action.SEE_SETTINGS, "The default agents", "Settings"),
            "put": _write(Action.CHANGE_SETTINGS, "Set the workspace's default agent", setting),
        },
        _ONE + "/channels.json": {
            "get": _read(Action.SEE_CHANNELS, "The channels that the bot can see", "Channels"),
        },
        _ONE + "/channels/{channelId}/settings.json": {
            "put": _write(Action.CHANGE_SETTINGS, "Set a channel's default agent", setting),
        },
        _ONE + "/health.json": {
            "get": _read(Action.CHECK_HEALTH, "Whether Slack accepts the token", "Health"),
        },
        _ONE + "/test-message.json": {
            "post": _write(
                Action.SEND_TEST_MESSAGE,
                "Post a test message",
                _object({"channelId": {"type": "string", "pattern": "^[CDG][A-Z0-9]{2,20}$"}}),
                also=("422",),
            ),
        },
        _ONE + "/audit.json": {
            "get": _read(
                Action.READ_AUDIT, "The vault's audit log, newest first", "AuditEvents", paged=True
            ),
        },
        _ONE + "/audit/people.json": {
            "get": _read(
                Action.READ_AUDIT,
                "Links, tokens, grants and refusals, newest first",
                "PeopleEvents",
                paged=True,
                narrowed={"event": "Only this event, such as `user.linked` or `call.refused`"},
            ),
        },
    }


def _schemas() -> dict[str, Schema]:
    return {
        "Error": _object({"error": _TEXT, "requestId": _TEXT}, optional=("requestId",)),
        "ConnectSession": _object(
            {"connectSessionToken": _TEXT, "connectLink": _TEXT, "expiresAt": _INSTANT}
        ),
        "Connected": _object({"slackTeamId": _TEXT, "isReinstall": _FLAG}),
        "Workspace": _object(
            {
                "workspaceId": _TEXT,
                "slackTeamId": _TEXT,
                "slackEnterpriseId": _TEXT,
                "isEnterpriseInstall": _FLAG,
                "slackAppId": _TEXT,
                "name": _TEXT,
                "status": {"type": "string", "enum": _STATUSES},
                "createdAt": _INSTANT,
                "linkedUsers": _NUMBER,
                "missingScopes": _TEXTS,
                "extraScopes": _TEXTS,
            }
        ),
        "Workspaces": _object({"workspaces": _list("Workspace")}),
        "User": _object(
            {
                "mappingId": _TEXT,
                "slackTeamId": _TEXT,
                "slackUserId": _TEXT,
                "userId": _TEXT,
                "userName": _TEXT,
                "userEmail": _TEXT,
                "linkedAt": _INSTANT,
                "lastUsedAt": {"oneOf": [_INSTANT, {"type": "null"}]},
            }
        ),
        "Users": _object({"users": _list("User"), "nextPage": _TEXT}),
        "AgentDefault": _object(
            {"projectId": _PLATFORM_ID, "agentId": _PLATFORM_ID, "grantAccessToMembers": _FLAG},
            optional=("grantAccessToMembers",),
        ),
        "Settings": _object(
            {
                "defaultAgent": {"oneOf": [_ref("AgentDefault"), {"type": "null"}]},
                "channels": _list("ChannelSettings"),
            }
        ),
        "ChannelSettings": _object({"channelId": _TEXT, "defaultAgent": _ref("AgentDefault")}),
        "Channel": _object({"channelId": _TEXT, "name": _TEXT, "isMember": _FLAG}),
        "Channels": _object({"channels": _list("Channel")}),
        "Health": _object({"healthy": _FLAG, "slackError": _TEXT}),
        "AuditEvent": _object(
            dict.fromkeys(_AUDIT_TEXTS, _TEXT)
            | dict.fromkeys(("seq", "generation", "count"), _NUMBER)
            | {"at": _INSTANT}
        ),
        "AuditEvents": _object({"events": _list("AuditEvent"), "nextPage": _TEXT}),
        "PeopleEvent": _object(
            dict.fromkeys(_PEOPLE_TEXTS, _TEXT)
            | dict.fromkeys(("number", "count"), _NUMBER)
            | {"at": _INSTANT}
        ),
        "PeopleEvents": _object({"events": _list("PeopleEvent"), "nextPage": _TEXT}),
    }


_AUDIT_TEXTS = (
    "chainId",
    "action",
    "actor",
    "rpc",
    "purpose",
    "grantId",
    "tokenKind",
    "outcome",
    "tokenRef",
    "kekVersion",
    "dekSource",
    "requestId",
    "subject",
)
_PEOPLE_TEXTS = (
    "event",
    "outcome",
    "caller",
    "rpc",
    "requestId",
    "grantId",
    "actorId",
    "actorName",
    "workspaceId",
    "slackEnterpriseId",
    "slackTeamId",
    "slackUserId",
    "userId",
    "userName",
    "tokenId",
    "purpose",
    "projectId",
    "agentId",
    "channelId",
)
_REFUSALS = {
    "400": "The request is malformed",
    "401": "Nobody is signed in",
    "403": "The role does not allow it, or another site's page sent it",
    "404": "The tenant has no such thing",
    "409": "The workspace belongs to another organization",
    "413": "The body is too large",
    "415": "The body is no JSON",
    "422": "Slack refused it",
    "501": "The operator has not set it up",
    "502": "Slack or Nango answered with something unusable",
    "503": "A part does not answer; nothing was changed",
}


def _parameters(path: str) -> dict[str, Any]:
    named = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in _NAMES.findall(path)
    ]
    return {"parameters": named} if named else {}


def _read(
    action: Action,
    summary: str,
    schema: str,
    *,
    paged: bool = False,
    narrowed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    asked = {**narrowed, **({"page": "`nextPage` of the page before"} if paged else {})}
    query = [
        {"name": name, "in": "query", "description": description, "schema": _TEXT}
        for name, description in asked.items()
    ]
    return {
        "summary": summary,
        "description": _who(action),
        **({"parameters": query} if query else {}),
        "responses": {"200": _content(summary, _ref(schema))}
        | _refusals("400", "401", "403", "404", "503"),
    }


def _write(
    action: Action, summary: str, body: Schema | None = None, *, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    taken = {"requestBody": {"required": True, **_json(body)}} if body else {}
    statuses = ("400", "401", "403", "404", *(("413", "415") if body else ()), *also, "503")
    return {
        "summary": summary,
        "description": _who(action),
        **taken,
        "responses": {"204": {"description": "Done"}} | _refusals(*statuses),
    }


def _post(
    action: Action, summary: str, body: Schema, schema: str, *, also: tuple[str, ...]
) -> dict[str, Any]:
    statuses = ("400", "401", "403", "404", "413", "415", *also, "503")
    return {
        "summary": summary,
        "description": _who(action),
        "requestBody": {"required": True, **_json(body)},
        "responses": {"200": _content(summary, _ref(schema))} | _refusals(*statuses),
    }


def _who(action: Action) -> str:
    return f"For {', '.join(sorted(POLICY[action]))}."


def _refusals(*statuses: str) -> dict[str, Any]:
    return {each: _content(_REFUSALS[each], _ref("Error")) for each in statuses}


def _content(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, **_json(schema)}


def _json(schema: Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
