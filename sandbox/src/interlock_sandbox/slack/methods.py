"""Every Web API method: what it is called, what it takes, which scopes it asks for."""

from interlock_sandbox.slack import conversations, messages, streams
from interlock_sandbox.slack.call import Call, Method, Slack
from interlock_sandbox.slack.oauth import check_client
from interlock_sandbox.slack.world import JSON


def _auth_revoke(slack: Slack, call: Call) -> JSON:
    if call.flag("test"):
        return {"revoked": False}
    slack.outbound.token_revoked(call.workspace, call.token)
    return {"revoked": True}


def _apps_uninstall(slack: Slack, call: Call) -> JSON:
    check_client(slack.app, call.args)
    slack.outbound.app_uninstalled(call.workspace)
    return {}


def _views_open(slack: Slack, call: Call) -> JSON:
    view = slack.views.open(call.team, call.text("trigger_id"), call.document("view"))
    return {"view": slack.views.show(view)}


def _views_update(slack: Slack, call: Call) -> JSON:
    content = call.document("view")
    view = slack.views.update(call.team, call.text("view_id"), content, call.text("hash") or None)
    return {"view": slack.views.show(view)}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POST = _names("as_user attachments blocks icon_emoji icon_url link_names markdown_text metadata")
_POST |= _names("mrkdwn parse reply_broadcast text thread_ts unfurl_links unfurl_media username")
_READ = _names("channels:read groups:read im:read mpim:read")
_HISTORY = _names("channels:history groups:history im:history mpim:history")
_WRITE = _names("chat:write")
_PAGED = _names("cursor limit")

METHODS: dict[str, Method] = {
    "auth.test": Method(conversations.auth_test),
    "auth.revoke": Method(_auth_revoke, optional=_names("test"), reads_json=False),
    "apps.uninstall": Method(
        _apps_uninstall, required=_names("client_id client_secret"), reads_json=False
    ),
    "users.info": Method(
        conversations.users_info,
        required=_names("user"),
        optional=_names("include_locale"),
        scopes=_names("users:read"),
        reads_json=False,
    ),
    "conversations.info": Method(
        conversations.conversations_info,
        required=_names("channel"),
        optional=_names("include_locale include_num_members"),
        scopes=_READ,
        reads_json=False,
    ),
    "conversations.list": Method(
        conversations.conversations_list,
        optional=_names("exclude_archived team_id types") | _PAGED,
        scopes=_READ,
        reads_json=False,
    ),
    "conversations.members": Method(
        conversations.conversations_members,
        required=_names("channel"),
        optional=_PAGED,
        scopes=_READ,
        reads_json=False,
    ),
    "conversations.open": Method(
        conversations.conversations_open,
        optional=_names("channel users return_im prevent_creation"),
        scopes=_names("channels:manage groups:write im:write mpim:write"),
    ),
    "conversations.replies": Method(
        conversations.conversations_replies,
        required=_names("channel ts"),
        optional=_names("include_all_metadata inclusive latest oldest") | _PAGED,
        scopes=_HISTORY,
        reads_json=False,
    ),
    "chat.postMessage": Method(
        messages.post_message, required=_names("channel"), optional=_POST, scopes=_WRITE
    ),
    "chat.postEphemeral": Method(
        messages.post_ephemeral,
        required=_names("channel user"),
        optional=_POST - _names("mrkdwn reply_broadcast unfurl_links unfurl_media"),
        scopes=_WRITE,
    ),
    "chat.update": Method(
        messages.update,
        required=_names("channel ts"),
        optional=_names(
            "as_user attachments blocks file_ids link_names markdown_text metadata parse"
            " reply_broadcast text"
        ),
        scopes=_WRITE,
    ),
    "chat.delete": Method(
        messages.delete, required=_names("channel ts"), optional=_names("as_user"), scopes=_WRITE
    ),
    "chat.startStream": Method(
        streams.start_stream,
        required=_names("channel"),
        optional=_names(
            "chunks markdown_text thread_ts recipient_user_id recipient_team_id"
            " task_display_mode icon_emoji icon_url username"
        ),
        scopes=_WRITE,
        bot_only=True,
    ),
    "chat.appendStream": Method(
        streams.append_stream,
        required=_names("channel ts"),
        optional=_names("chunks markdown_text"),
        scopes=_WRITE,
        bot_only=True,
    ),
    "chat.stopStream": Method(
        streams.stop_stream,
        required=_names("channel ts"),
        optional=_names("blocks chunks markdown_text metadata session_status"),
        scopes=_WRITE,
        bot_only=True,
    ),
    "assistant.threads.setStatus": Method(
        messages.set_status,
        required=_names("channel_id thread_ts status"),
        optional=_names("loading_messages icon_emoji icon_url username"),
        scopes=_names("chat:write assistant:write"),
        bot_only=True,
    ),
    "reactions.add": Method(
        messages.add_reaction,
        required=_names("channel name timestamp"),
        scopes=_names("reactions:write"),
    ),
    "reactions.remove": Method(
        messages.remove_reaction,
        required=_names("channel name timestamp"),
        scopes=_names("reactions:write"),
    ),
    "team.info": Method(
        conversations.team_info,
        optional=_names("team"),
        scopes=_names("team:read"),
        reads_json=False,
    ),
    "views.open": Method(
        _views_open,
        required=_names("trigger_id view"),
        bot_only=True,
    ),
    "views.update": Method(
        _views_update,
        required=_names("view_id view"),
        optional=_names("hash"),
        bot_only=True,
    ),
}
