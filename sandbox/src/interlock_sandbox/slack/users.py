"""People, as the methods that look them up show them."""

from interlock_sandbox.slack.call import Call, Slack, get_user, paged
from interlock_sandbox.slack.conversations import list_conversations
from interlock_sandbox.slack.model import JSON, User
from interlock_sandbox.slack.refusal import SlackError


def users_info(_slack: Slack, call: Call) -> JSON:
    """Tell who a user is."""
    return {"user": _show_user(call, get_user(call, "user"))}


def users_list(_slack: Slack, call: Call) -> JSON:
    """List the people of a workspace, in pages; all of them when no limit is given."""
    users = list(call.workspace.users.values())
    page, cursor = users, ""
    if call.integer("limit", 0) != 0:
        page, cursor = paged(call, users, 0)
    return {
        "members": [_show_user(call, each) for each in page],
        "cache_ts": int(call.world.now()),
        "response_metadata": {"next_cursor": cursor},
    }


def users_lookup_by_email(_slack: Slack, call: Call) -> JSON:
    """Find a person by e-mail address."""
    wanted = call.text("email").lower()
    everybody = (user for each in call.reach for user in each.users.values())
    found = next((each for each in everybody if each.email and each.email == wanted), None)
    if found is None:
        raise SlackError("users_not_found")
    return {"user": _show_user(call, found)}


def users_conversations(_slack: Slack, call: Call) -> JSON:
    """List the conversations that a user, or the caller, is in, in pages."""
    user = get_user(call, "user").id if call.args.get("user") else call.token.user
    return list_conversations(call, member=user)


def _show_user(call: Call, user: User) -> JSON:
    """Return a user as the API shows it; the e-mail address only with its own scope."""
    reached = {each.id for each in call.reach} | {call.home.id}
    enterprise = call.world.enterprises.get(user.home)
    teams = [
        each.id for each in call.world.workspaces.values() if enterprise and user.id in each.users
    ]
    organization = call.world.organization(user.home)
    is_stranger = organization not in {call.world.organization(each) for each in reached}
    team = user.home if not enterprise else next(iter(teams), user.home)
    profile: JSON = {
        "real_name": user.real_name,
        "display_name": user.name,
        "real_name_normalized": user.real_name,
        "display_name_normalized": user.name,
        "title": user.title,
        "team": team,
    }
    if user.email and not is_stranger and "users:read.email" in call.token.scopes:
        profile["email"] = user.email
    shown: JSON = {
        "id": user.id,
        "team_id": team,
        "name": user.name,
        "deleted": False,
        "real_name": user.real_name,
        "tz": "Europe/Stockholm",
        "profile": profile,
        "is_admin": user.is_admin,
        "is_owner": user.is_owner,
        "is_primary_owner": user.is_owner,
        "is_restricted": False,
        "is_ultra_restricted": False,
        "is_bot": user.is_bot,
        "is_app_user": False,
        "updated": 1_700_000_000,
        "is_email_confirmed": not user.is_bot,
    }
    if is_stranger:
        shown["is_stranger"] = True
    if enterprise:
        shown["enterprise_user"] = {
            "id": user.id,
            "enterprise_id": enterprise.id,
            "enterprise_name": enterprise.name,
            "is_admin": user.is_admin,
            "is_owner": user.is_owner,
            "teams": teams,
        }
    return shown
