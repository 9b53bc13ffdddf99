"""Conversations: looking at them, reading them, joining and opening them."""

from interlock_sandbox.slack.call import (
    MAX_PAGE,
    Call,
    Slack,
    get_channel,
    paged,
    require_member,
    require_read_scope,
    require_scope,
)
from interlock_sandbox.slack.model import JSON, Channel, Message
from interlock_sandbox.slack.refusal import SlackError

# "Maximum of 999" messages of a history; 15 for apps outside of the Marketplace.
MAX_HISTORY = 999
MAX_THROTTLED_PAGE = 15
# Eight people besides the app.
MAX_GROUP = 8
_SCOPES = {"public_channel": "channels", "private_channel": "groups", "mpim": "mpim", "im": "im"}
# Every channel of a first sandbox was made on the same day.
CREATED = 1_700_000_000


def conversations_info(_slack: Slack, call: Call) -> JSON:
    """Describe one conversation."""
    channel = get_channel(call)
    require_read_scope(call, channel, "read")
    shown = show_channel(call, channel)
    if call.flag("include_num_members"):
        shown["num_members"] = len(channel.members)
    return {"channel": shown}


def conversations_list(_slack: Slack, call: Call) -> JSON:
    """List the conversations of a workspace that the caller may see, in pages."""
    return list_conversations(call)


def list_conversations(call: Call, member: str | None = None) -> JSON:
    """List conversations of the types asked for, in pages; `member` narrows the list."""
    types = [each.strip() for each in call.text("types", "public_channel").split(",")]
    if not types or not set(types) <= _SCOPES.keys():
        raise SlackError("invalid_types")
    for kind in types:
        require_scope(call, f"{_SCOPES[kind]}:read")
    channels = [
        channel
        for channel in call.world.channels_of(call.workspace.id)
        if channel.type in types
        and (channel.is_open_to_all or call.token.user in channel.members)
        and (member is None or member in channel.members)
        and not (channel.is_archived and call.flag("exclude_archived"))
    ]
    page, cursor = paged(call, channels, 100, MAX_HISTORY)
    return {
        "channels": [show_channel(call, channel) for channel in page],
        "response_metadata": {"next_cursor": cursor},
    }


def conversations_members(_slack: Slack, call: Call) -> JSON:
    """List who is in a conversation, in pages."""
    channel = get_channel(call)
    require_read_scope(call, channel, "read")
    page, cursor = paged(call, channel.members, 100)
    return {"members": page, "response_metadata": {"next_cursor": cursor}}


def conversations_join(slack: Slack, call: Call) -> JSON:
    """Let the caller into a public channel."""
    channel = get_channel(call)
    if not channel.is_open_to_all:
        raise SlackError("method_not_supported_for_channel_type")
    if channel.is_archived:
        raise SlackError("is_archived")
    joined = slack.world.join(channel, call.token.user)
    if joined:
        slack.events.member_joined(channel, call.token.user, call.team_in(channel))
    answer: JSON = {"channel": show_channel(call, channel)}
    if not joined:
        word = "already_in_channel"
        answer |= {"warning": word, "response_metadata": {"warnings": [word]}}
    return answer


def conversations_open(slack: Slack, call: Call) -> JSON:
    """Open the direct message with a user, or the group message with several."""
    if call.args.get("channel"):
        channel = get_channel(call)
        if not (channel.is_im or channel.is_mpim):
            raise SlackError("method_not_supported_for_channel_type")
        return _opened(call, channel, is_new=False)
    users = list(dict.fromkeys(each for each in call.text("users").split(",") if each))
    if not users:
        raise SlackError("users_list_not_supplied")
    if len(users) > MAX_GROUP:
        raise SlackError("too_many_users")
    if call.token.user in users:
        raise SlackError("invalid_user_combination")
    require_scope(call, "im:write" if len(users) == 1 else "mpim:write")
    teams = [each.id for each in call.reach if set(users) <= each.users.keys()]
    if not teams:
        raise SlackError("user_not_found")
    members = [call.token.user, *users]
    found = slack.world.find_direct(members)
    if found is None and call.flag("prevent_creation"):
        raise SlackError("channel_not_found")
    channel = found or slack.world.open_direct(teams, members)
    return _opened(call, channel, is_new=found is None)


def _opened(call: Call, channel: Channel, *, is_new: bool) -> JSON:
    shown = show_channel(call, channel) if call.flag("return_im") else {"id": channel.id}
    already = {} if is_new else {"no_op": True, "already_open": True}
    return {"channel": shown, **already}


def conversations_history(slack: Slack, call: Call) -> JSON:
    """List the messages of a conversation without their threads, the newest first, in pages."""
    channel = get_channel(call)
    require_read_scope(call, channel, "history")
    require_member(call, channel)
    messages = [
        each
        for each in slack.world.seen_by_all(channel.id)
        if each.thread == each.ts and _is_inside(call, each)
    ]
    default = MAX_THROTTLED_PAGE if slack.switches.history_once_a_minute else 100
    longest = MAX_THROTTLED_PAGE if slack.switches.history_once_a_minute else MAX_HISTORY
    page, cursor = _page_of_messages(call, messages[::-1], default, longest)
    shown = [_show_root(slack, each) for each in page]
    answer: JSON = {
        "messages": [_without_metadata(call, each) for each in shown],
        "has_more": bool(cursor),
        "pin_count": 0,
        "channel_actions_ts": None,
        "channel_actions_count": 0,
    }
    return answer | ({"response_metadata": {"next_cursor": cursor}} if cursor else {})


def conversations_replies(slack: Slack, call: Call) -> JSON:
    """List a thread, its first message first, in pages."""
    channel = get_channel(call)
    require_read_scope(call, channel, "history")
    require_member(call, channel)
    thread = _thread_of(slack, channel.id, call.text("ts"))
    if not thread or thread[0].thread_ts:
        raise SlackError("thread_not_found")
    root, replies = thread[0], thread[1:]
    inside = [each for each in replies if _is_inside(call, each)]
    throttled = slack.switches.history_once_a_minute
    longest = MAX_THROTTLED_PAGE if throttled else MAX_PAGE
    page, cursor = _page_of_messages(call, [root, *inside], longest, longest)
    shown = [_show_root(slack, each) if each is root else each.show() for each in page]
    answer: JSON = {
        "messages": [_without_metadata(call, each) for each in shown],
        "has_more": bool(cursor),
    }
    return answer | ({"response_metadata": {"next_cursor": cursor}} if cursor else {})


def _page_of_messages(
    call: Call, rows: list[Message], default: int, longest: int
) -> tuple[list[Message], str]:
    """Return a page; apps that are throttled get fewer messages than they ask for."""
    if call.integer("limit", default) > longest and longest == MAX_THROTTLED_PAGE:
        call = Call(call.world, call.token, call.args | {"limit": longest})
    return paged(call, rows, default, longest)


def _thread_of(slack: Slack, channel: str, ts: str) -> list[Message]:
    return [each for each in slack.world.seen_by_all(channel) if each.thread == ts]


def _show_root(slack: Slack, message: Message) -> JSON:
    replies = [each for each in _thread_of(slack, message.channel, message.ts) if each.thread_ts]
    if not replies:
        return message.show()
    return message.show() | {
        "thread_ts": message.ts,
        "reply_count": len(replies),
        "reply_users": sorted({each.user for each in replies}),
        "latest_reply": replies[-1].ts,
    }


def _without_metadata(call: Call, shown: JSON) -> JSON:
    if not call.flag("include_all_metadata"):
        shown.pop("metadata", None)
    return shown


def _is_inside(call: Call, message: Message) -> bool:
    """Say whether a message is between the times that a call names."""
    at = float(message.ts)
    oldest, latest = _time(call, "oldest", 0), _time(call, "latest", float("inf"))
    return oldest <= at <= latest if call.flag("inclusive") else oldest < at < latest


def _time(call: Call, name: str, default: float) -> float:
    value = call.args.get(name)
    if value in {None, "", "now"}:
        return default
    try:
        return float(str(value))
    except ValueError:
        raise SlackError(f"invalid_ts_{name}") from None


def show_channel(call: Call, channel: Channel) -> JSON:
    """Return a conversation as the API shows it to the caller."""
    if channel.is_im:
        other = next((user for user in channel.members if user != call.token.user), "")
        return {
            "id": channel.id,
            "created": CREATED,
            "is_im": True,
            "user": other,
            "is_archived": False,
            "is_org_shared": len(channel.teams) > 1,
        }
    organizations = {call.world.organization(each) for each in channel.teams}
    return {
        "id": channel.id,
        "name": channel.name,
        "name_normalized": channel.name,
        "created": CREATED,
        "is_channel": channel.is_open_to_all,
        "is_group": channel.is_private,
        "is_im": False,
        "is_mpim": channel.is_mpim,
        "is_private": not channel.is_open_to_all,
        "is_archived": channel.is_archived,
        "is_general": channel.name == "general",
        "is_member": call.token.user in channel.members,
        "is_shared": len(channel.teams) > 1,
        "is_ext_shared": len(organizations) > 1,
        "is_org_shared": len(channel.teams) > 1 and len(organizations) == 1,
        "context_team_id": call.team_in(channel),
        "conversation_host_id": channel.teams[0],
        "shared_team_ids": channel.teams,
        "purpose": {"value": channel.purpose, "creator": "", "last_set": 0},
        "topic": {"value": "", "creator": "", "last_set": 0},
    }
