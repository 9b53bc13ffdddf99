"""People and conversations: the methods that look, and the one that opens."""

from interlock_sandbox.slack.call import (
    MAX_PAGE,
    Call,
    Slack,
    get_channel,
    get_user,
    paged,
    require_member,
    require_read_scope,
    require_scope,
    show_message,
)
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import JSON, Channel


def auth_test(_slack: Slack, call: Call) -> JSON:
    """Tell who is asking, and in which workspace."""
    workspace, token = call.workspace, call.token
    answer: JSON = {
        "url": f"https://{workspace.domain}.slack.com/",
        "team": workspace.name,
        "user": workspace.users[token.user].name,
        "team_id": workspace.id,
        "user_id": token.user,
        "is_enterprise_install": False,
    }
    if token.kind == "bot" and workspace.installation:
        answer["bot_id"] = workspace.installation.bot_id
    return answer


def users_info(_slack: Slack, call: Call) -> JSON:
    """Tell who a user is; the e-mail address only with its own scope."""
    user = get_user(call, "user")
    profile: JSON = {
        "real_name": user.real_name,
        "display_name": user.name,
        "real_name_normalized": user.real_name,
        "display_name_normalized": user.name,
        "title": user.title,
        "team": call.team,
    }
    if user.email and "users:read.email" in call.token.scopes:
        profile["email"] = user.email
    shown: JSON = {
        "id": user.id,
        "team_id": call.team,
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
    return {"user": shown}


def conversations_info(_slack: Slack, call: Call) -> JSON:
    """Describe one conversation."""
    channel = get_channel(call)
    require_read_scope(call, channel, "read")
    shown = _show_channel(call, channel)
    if call.flag("include_num_members"):
        shown["num_members"] = len(channel.members)
    return {"channel": shown}


def conversations_list(_slack: Slack, call: Call) -> JSON:
    """List the conversations that the caller may see, in pages."""
    types = [each.strip() for each in call.text("types", "public_channel").split(",")]
    known = {"public_channel": "channels", "private_channel": "groups", "mpim": "mpim", "im": "im"}
    if not types or not set(types) <= known.keys():
        raise SlackError("invalid_types")
    for kind in types:
        require_scope(call, f"{known[kind]}:read")
    channels = [
        channel
        for channel in call.workspace.channels.values()
        if ("im" if channel.is_im else "public_channel") in types
        and (not channel.is_im or call.token.user in channel.members)
    ]
    page, cursor = paged(call, channels, 100)
    return {
        "channels": [_show_channel(call, channel) for channel in page],
        "response_metadata": {"next_cursor": cursor},
    }


def conversations_members(_slack: Slack, call: Call) -> JSON:
    """List who is in a conversation, in pages."""
    channel = get_channel(call)
    require_read_scope(call, channel, "read")
    page, cursor = paged(call, channel.members, 100)
    return {"members": page, "response_metadata": {"next_cursor": cursor}}


def team_info(_slack: Slack, call: Call) -> JSON:
    """Describe the caller's workspace."""
    workspace = call.workspace
    shown = {"id": workspace.id, "name": workspace.name, "domain": workspace.domain}
    return {"team": shown | {"email_domain": "", "icon": {"image_default": True}}}


def conversations_open(slack: Slack, call: Call) -> JSON:
    """Open the direct message with a user."""
    require_scope(call, "im:write")
    if call.args.get("channel"):
        return {"channel": {"id": get_channel(call).id}}
    users = [each for each in call.text("users").split(",") if each]
    if not users:
        raise SlackError("users_list_not_supplied")
    if len(users) > 1:
        # Group messages are no part of the product.
        raise SlackError("method_not_supported_for_channel_type")
    if users[0] not in call.workspace.users:
        raise SlackError("user_not_found")
    if users[0] == call.token.user:
        raise SlackError("invalid_user_combination")
    channel = slack.world.open_im(call.team, call.token.user, users[0])
    return {"channel": {"id": channel.id}}


def conversations_replies(slack: Slack, call: Call) -> JSON:
    """List a thread, its first message first, in pages."""
    channel = get_channel(call)
    require_read_scope(call, channel, "history")
    require_member(call, channel)
    thread = slack.world.thread_of(call.team, channel.id, call.text("ts"))
    if not thread or thread[0].thread_ts:
        raise SlackError("thread_not_found")
    oldest, latest = call.text("oldest", "0"), call.text("latest", "9" * 10)
    root, replies = thread[0], thread[1:]
    inside = [each for each in replies if _later(each.ts, oldest) and _later(latest, each.ts)]
    page, cursor = paged(call, [root, *inside], MAX_PAGE)
    shown = [show_message(each, call.team) for each in page]
    if not call.flag("include_all_metadata"):
        for message in shown:
            message.pop("metadata", None)
    if shown and page[0] is root and replies:
        shown[0] |= {
            "thread_ts": root.ts,
            "reply_count": len(replies),
            "reply_users": sorted({each.user for each in replies}),
            "latest_reply": replies[-1].ts,
        }
    answer: JSON = {"messages": shown, "has_more": bool(cursor)}
    return answer | ({"response_metadata": {"next_cursor": cursor}} if cursor else {})


def _show_channel(call: Call, channel: Channel) -> JSON:
    if channel.is_im:
        other = next(user for user in channel.members if user != call.token.user)
        return {"id": channel.id, "is_im": True, "user": other, "is_archived": False}
    return {
        "id": channel.id,
        "name": channel.name,
        "name_normalized": channel.name,
        "is_channel": True,
        "is_group": False,
        "is_im": False,
        "is_mpim": False,
        "is_private": False,
        "is_archived": False,
        "is_general": channel.name == "general",
        "is_member": call.token.user in channel.members,
        "is_shared": False,
        "is_ext_shared": False,
        "is_org_shared": False,
        "context_team_id": call.team,
        "purpose": {"value": channel.purpose, "creator": "", "last_set": 0},
        "topic": {"value": "", "creator": "", "last_set": 0},
    }


def _later(one: str, other: str) -> bool:
    try:
        return float(one) > float(other)
    except ValueError:
        raise SlackError("invalid_ts_oldest") from None
