"""The addresses of edge's pages; all are below `/work-apps/slack`."""

from urllib.parse import quote

HOME = "/work-apps/slack/"
INSTALL = "/work-apps/slack/install"
INSTALL_CALLBACK = "/work-apps/slack/oauth_redirect"
LINK = "/work-apps/slack/link"
REDEEM = "/work-apps/slack/link/redeem"
WORKSPACES = "/work-apps/slack/workspaces"
STATIC = "/work-apps/slack/static"


def workspace(workspace_id: str) -> str:
    """Return the path of a workspace's page."""
    return f"{WORKSPACES}/{quote(workspace_id, safe='')}"


def audit(workspace_id: str) -> str:
    """Return the path of a workspace's audit log."""
    return f"{workspace(workspace_id)}/audit"
