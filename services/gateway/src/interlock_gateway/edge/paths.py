"""The addresses of edge's pages; all are below `/work-apps/slack`."""

from urllib.parse import quote

EVENTS = "/work-apps/slack/events"
INTERACTIONS = "/work-apps/slack/interactions"
COMMANDS = "/work-apps/slack/commands"
LINK_CREATE = "/work-apps/slack/link/create"
OPENAPI = "/work-apps/slack/openapi.json"
HOME = "/work-apps/slack/"
INSTALL = "/work-apps/slack/install"
INSTALL_CONNECT = "/work-apps/slack/install/connect"
INSTALL_CONNECTED = "/work-apps/slack/install/connected"
INSTALL_CALLBACK = "/work-apps/slack/oauth_redirect"
INSTALL_REQUESTS = "/work-apps/slack/install/requests"
INSTALL_COMPLETE = "/work-apps/slack/install/complete"
NANGO_WEBHOOK = "/work-apps/slack/nango/webhook"
LINK = "/work-apps/slack/link"
REDEEM = "/work-apps/slack/link/redeem"
LINKED = "/work-apps/slack/link/done"
WORKSPACES = "/work-apps/slack/workspaces"
STATIC = "/work-apps/slack/static"


FOR_SLACK = frozenset({EVENTS, INTERACTIONS, COMMANDS, LINK_CREATE, NANGO_WEBHOOK})
"""Where Slack's and Nango's programs call, and read nothing but the status."""

FOR_PROGRAMS = frozenset({INSTALL_REQUESTS, INSTALL_COMPLETE})
"""Where a person's programs call and read JSON, besides what ends in `.json`."""


def workspace(workspace_id: str) -> str:
    """Return the path of a workspace's page."""
    return f"{WORKSPACES}/{quote(workspace_id, safe='')}"


def audit(workspace_id: str) -> str:
    """Return the path of a workspace's audit log."""
    return f"{workspace(workspace_id)}/audit"


def people_audit(workspace_id: str) -> str:
    """Return the path of what a workspace's people did."""
    return f"{audit(workspace_id)}/people"


def settings(workspace_id: str) -> str:
    """Return the path of a workspace's settings."""
    return f"{workspace(workspace_id)}/settings"


def health(workspace_id: str) -> str:
    """Return the path of a workspace's health."""
    return f"{workspace(workspace_id)}/health"


def test_message(workspace_id: str) -> str:
    """Return where to ask for a test message."""
    return f"{workspace(workspace_id)}/test-message"


def uninstall(workspace_id: str) -> str:
    """Return where to ask for a workspace's end."""
    return f"{workspace(workspace_id)}/uninstall"
