"""Who is asking, where the app is installed, and how it leaves."""

import hmac
from typing import Any

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.call import Call, Slack, paged
from interlock_sandbox.slack.model import JSON, Home
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.tokens import APP, BOT


def auth_test(slack: Slack, call: Call) -> JSON:
    """Tell whose token it is, and of which Workspace or Enterprise."""
    token = call.token
    if token.kind == APP:
        return {"app_id": slack.app.id, "app_name": slack.app.name}
    home = call.home
    enterprise = slack.world.enterprise_of(home.id)
    host = f"{home.domain}.enterprise" if call.is_org_wide else home.domain
    answer: JSON = {
        "url": f"https://{host}.slack.com/",
        "team": home.name,
        "user": home.users[token.user].name,
        "team_id": home.id,
        "user_id": token.user,
        "is_enterprise_install": call.is_org_wide,
    }
    if enterprise:
        answer["enterprise_id"] = enterprise.id
    if token.kind == BOT:
        answer["bot_id"] = call.installation.bot_id
    if token.expires_at is not None:
        answer["expires_in"] = int(token.expires_at - slack.world.now())
    return answer


def auth_revoke(slack: Slack, call: Call) -> JSON:
    """End the token that asks."""
    if call.flag("test"):
        return {"revoked": False}
    slack.events.token_revoked(call.token)
    return {"revoked": True}


def auth_teams_list(_slack: Slack, call: Call) -> JSON:
    """List the workspaces in which the token works, in pages."""
    page, cursor = paged(call, call.reach, 100)
    teams = [{"id": each.id, "name": each.name} for each in page]
    return {"teams": teams, "response_metadata": {"next_cursor": cursor}}


def apps_uninstall(slack: Slack, call: Call) -> JSON:
    """Remove the app from where the token belongs."""
    check_client(slack.app, call.args)
    slack.events.app_uninstalled(call.token.holder)
    return {"uninstalled": True}


def event_authorizations(slack: Slack, call: Call) -> JSON:
    """List the installations that may know of an event, in pages."""
    found = slack.events.authorizations_of(call.text("event_context"))
    if found is None:
        raise SlackError("invalid_event_context")
    page, cursor = paged(call, found, 100)
    return {"authorizations": page} | ({"cursor_next": cursor} if cursor else {})


def bots_info(slack: Slack, call: Call) -> JSON:
    """Describe a bot; the caller's own when it names none."""
    bot = call.text("bot") or call.installation.bot_id
    homes: list[Home] = [*call.reach, call.home]
    installations = (each.installation for each in homes)
    found = next((each for each in installations if each and each.bot_id == bot), None)
    if found is None:
        raise SlackError("bot_not_found")
    shown = {
        "id": found.bot_id,
        "deleted": not found.active,
        "name": slack.app.name,
        "updated": 1_700_000_000,
        "app_id": slack.app.id,
        "user_id": found.bot_user,
        "icons": {},
    }
    return {"bot": shown}


def team_info(slack: Slack, call: Call) -> JSON:
    """Describe a workspace that the caller reaches."""
    wanted, domain = call.text("team"), call.text("domain")
    homes: list[Home] = [*call.reach, call.home] if wanted or domain else [call.home]
    found = next(
        (
            home
            for home in homes
            if (not wanted or home.id == wanted) and (not domain or home.domain == domain)
        ),
        None,
    )
    if found is None:
        raise SlackError("team_not_found")
    shown: JSON = {
        "id": found.id,
        "name": found.name,
        "domain": found.domain,
        "email_domain": "",
        "icon": {"image_default": True},
    }
    enterprise = slack.world.enterprise_of(found.id)
    if enterprise:
        shown |= {"enterprise_id": enterprise.id, "enterprise_name": enterprise.name}
    return {"team": shown}


def check_client(app: SlackApp, arguments: dict[str, Any]) -> None:
    """Refuse a client id or secret that is not the app's.

    Raises:
        SlackError: One of them is wrong or absent.
    """
    if arguments.get("client_id") != app.client_id:
        raise SlackError("invalid_client_id")
    given = str(arguments.get("client_secret", "")).encode()
    if not hmac.compare_digest(given, app.client_secret.reveal().encode()):
        raise SlackError("bad_client_secret")
