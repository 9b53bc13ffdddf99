"""Every Web API method: what it is called, what it takes, which scopes it asks for.

Source: docs.slack.dev/reference/methods.
"""

from interlock_sandbox.slack import (
    apps,
    assistant,
    conversations,
    files,
    messages,
    streams,
    users,
)
from interlock_sandbox.slack.call import ANY_TOKEN, APP_ONLY, BOT_ONLY, Call, Method, Slack
from interlock_sandbox.slack.limits import Tier
from interlock_sandbox.slack.model import JSON
from interlock_sandbox.slack.refusal import SlackError


def _views_open(slack: Slack, call: Call) -> JSON:
    content = call.document("view")
    view = slack.views.open(call.token.holder, call.text("trigger_id"), content)
    return {"view": slack.views.show(view)}


def _views_push(slack: Slack, call: Call) -> JSON:
    content = call.document("view")
    view = slack.views.push(call.token.holder, call.text("trigger_id"), content)
    return {"view": slack.views.show(view)}


def _views_update(slack: Slack, call: Call) -> JSON:
    view = slack.views.update(
        call.token.holder,
        call.document("view"),
        view_id=call.text("view_id"),
        external_id=call.text("external_id"),
        expected=call.text("hash") or None,
    )
    return {"view": slack.views.show(view)}


def _views_publish(slack: Slack, call: Call) -> JSON:
    user = call.text("user_id")
    team = next((each.id for each in call.reach if user in each.users), None)
    if team is None:
        raise SlackError("user_not_found")
    view = slack.views.publish(
        call.token.holder, team, user, call.document("view"), call.text("hash") or None
    )
    return {"view": slack.views.show(view)}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _read_scopes(what: str) -> frozenset[str]:
    return frozenset(f"{each}:{what}" for each in ("channels", "groups", "im", "mpim"))


_LOOK = _names("icon_emoji icon_url username")
_SAY = _names("as_user attachments blocks link_names markdown_text metadata parse text thread_ts")
_PAGED = _names("cursor limit")
_SPAN = _names("include_all_metadata inclusive latest oldest") | _PAGED
_READ, _HISTORY = _read_scopes("read"), _read_scopes("history")
_WRITE = _names("chat:write")
_REACT = _names("reactions:write")

_APPS = {
    "auth.test": Method(apps.auth_test, kinds=ANY_TOKEN),
    "auth.revoke": Method(
        apps.auth_revoke, optional=_names("test"), reads_json=False, tier=Tier.THREE
    ),
    "auth.teams.list": Method(
        apps.auth_teams_list,
        optional=_names("include_icon") | _PAGED,
        reads_json=False,
        tier=Tier.TWO,
    ),
    "apps.uninstall": Method(
        apps.apps_uninstall,
        required=_names("client_id client_secret"),
        reads_json=False,
        tier=Tier.ONE,
    ),
    "apps.event.authorizations.list": Method(
        apps.event_authorizations,
        required=_names("event_context"),
        optional=_PAGED,
        scopes=_names("authorizations:read"),
        kinds=APP_ONLY,
    ),
    "bots.info": Method(
        apps.bots_info,
        optional=_names("bot team_id"),
        scopes=_names("users:read"),
        reads_json=False,
        tier=Tier.THREE,
    ),
    "team.info": Method(
        apps.team_info,
        optional=_names("domain team"),
        scopes=_names("team:read"),
        tier=Tier.THREE,
    ),
}

_PEOPLE = {
    "users.info": Method(
        users.users_info,
        required=_names("user"),
        optional=_names("include_locale"),
        scopes=_names("users:read"),
        reads_json=False,
        tier=Tier.FOUR,
    ),
    "users.list": Method(
        users.users_list,
        optional=_names("include_locale team_id") | _PAGED,
        scopes=_names("users:read"),
        reads_json=False,
        tier=Tier.TWO,
    ),
    "users.lookupByEmail": Method(
        users.users_lookup_by_email,
        required=_names("email"),
        scopes=_names("users:read.email"),
        reads_json=False,
        tier=Tier.THREE,
    ),
    "users.conversations": Method(
        users.users_conversations,
        optional=_names("exclude_archived exclude_muted team_id types user") | _PAGED,
        scopes=_READ,
        reads_json=False,
        tier=Tier.THREE,
    ),
}

_CONVERSATIONS = {
    "conversations.info": Method(
        conversations.conversations_info,
        required=_names("channel"),
        optional=_names("include_locale include_num_members"),
        scopes=_READ,
        reads_json=False,
        tier=Tier.THREE,
    ),
    "conversations.list": Method(
        conversations.conversations_list,
        optional=_names("exclude_archived team_id types") | _PAGED,
        scopes=_READ,
        reads_json=False,
        tier=Tier.TWO,
    ),
    "conversations.members": Method(
        conversations.conversations_members,
        required=_names("channel"),
        optional=_PAGED,
        scopes=_READ,
        reads_json=False,
        tier=Tier.FOUR,
    ),
    "conversations.join": Method(
        conversations.conversations_join,
        required=_names("channel"),
        scopes=_names("channels:join"),
        user_scopes=_names("channels:write"),
        tier=Tier.THREE,
    ),
    "conversations.open": Method(
        conversations.conversations_open,
        optional=_names("channel users return_im prevent_creation"),
        scopes=_names("channels:manage groups:write im:write mpim:write"),
        user_scopes=_names("channels:write groups:write im:write mpim:write"),
        tier=Tier.THREE,
    ),
    "conversations.history": Method(
        conversations.conversations_history,
        required=_names("channel"),
        optional=_SPAN,
        scopes=_HISTORY,
        tier=Tier.THREE,
    ),
    "conversations.replies": Method(
        conversations.conversations_replies,
        required=_names("channel ts"),
        optional=_SPAN,
        scopes=_HISTORY,
        reads_json=False,
        tier=Tier.THREE,
    ),
}

_MESSAGES = {
    "chat.postMessage": Method(
        messages.post_message,
        required=_names("channel"),
        optional=_SAY
        | _LOOK
        | _names("current_draft_last_updated_ts mrkdwn reply_broadcast unfurl_links unfurl_media"),
        scopes=_WRITE,
    ),
    "chat.postEphemeral": Method(
        messages.post_ephemeral,
        required=_names("channel user"),
        optional=_SAY | _LOOK,
        scopes=_WRITE,
        tier=Tier.FOUR,
    ),
    "chat.update": Method(
        messages.update,
        required=_names("channel ts"),
        optional=(_SAY - _names("thread_ts"))
        | _names("file_ids reply_broadcast unfurled_attachments"),
        scopes=_WRITE,
        tier=Tier.THREE,
    ),
    "chat.delete": Method(
        messages.delete,
        required=_names("channel ts"),
        optional=_names("as_user"),
        scopes=_WRITE,
        tier=Tier.THREE,
    ),
    "chat.getPermalink": Method(
        messages.get_permalink, required=_names("channel message_ts"), reads_json=False
    ),
    "chat.startStream": Method(
        streams.start_stream,
        required=_names("channel"),
        optional=_LOOK
        | _names(
            "chunks markdown_text thread_ts recipient_user_id recipient_team_id task_display_mode"
        ),
        scopes=_WRITE,
        kinds=BOT_ONLY,
        tier=Tier.TWO,
    ),
    # The reference calls markdown_text required; Slack's own SDK sends chunks alone.
    "chat.appendStream": Method(
        streams.append_stream,
        required=_names("channel ts"),
        optional=_names("chunks markdown_text"),
        scopes=_WRITE,
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    # session_status: Slack's own SDK sends it, the reference does not know it.
    "chat.stopStream": Method(
        streams.stop_stream,
        required=_names("channel ts"),
        optional=_names("blocks chunks markdown_text metadata session_status"),
        scopes=_WRITE,
        kinds=BOT_ONLY,
        tier=Tier.TWO,
    ),
    "reactions.add": Method(
        messages.add_reaction,
        required=_names("channel name timestamp"),
        scopes=_REACT,
        tier=Tier.THREE,
    ),
    "reactions.remove": Method(
        messages.remove_reaction,
        required=_names("name"),
        optional=_names("channel file file_comment timestamp"),
        scopes=_REACT,
        tier=Tier.TWO,
    ),
}

_ASSISTANT_SCOPE = _names("assistant:write")
_REST = {
    "assistant.threads.setStatus": Method(
        assistant.set_status,
        required=_names("channel_id thread_ts status"),
        optional=_names("loading_messages") | _LOOK,
        scopes=_WRITE,
        kinds=BOT_ONLY,
    ),
    "assistant.threads.setSuggestedPrompts": Method(
        assistant.set_suggested_prompts,
        required=_names("channel_id prompts"),
        optional=_names("thread_ts title"),
        scopes=_ASSISTANT_SCOPE,
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    "assistant.threads.setTitle": Method(
        assistant.set_title,
        required=_names("channel_id thread_ts title"),
        scopes=_ASSISTANT_SCOPE,
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    "files.getUploadURLExternal": Method(
        files.get_upload_url,
        required=_names("length filename"),
        optional=_names("alt_txt snippet_type"),
        scopes=_names("files:write"),
        reads_json=False,
        tier=Tier.FOUR,
    ),
    "files.completeUploadExternal": Method(
        files.complete_upload,
        required=_names("files"),
        optional=_names("blocks channel_id channels initial_comment thread_ts") | _LOOK,
        scopes=_names("files:write"),
        tier=Tier.FOUR,
    ),
    "files.info": Method(
        files.files_info,
        required=_names("file"),
        optional=_names("count page") | _PAGED,
        scopes=_names("files:read"),
        reads_json=False,
        tier=Tier.FOUR,
    ),
    "views.open": Method(
        _views_open,
        required=_names("view"),
        optional=_names("interactivity_pointer trigger_id"),
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    "views.push": Method(
        _views_push,
        required=_names("view"),
        optional=_names("interactivity_pointer trigger_id"),
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    "views.update": Method(
        _views_update,
        required=_names("view"),
        optional=_names("external_id hash view_id"),
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
    "views.publish": Method(
        _views_publish,
        required=_names("user_id view"),
        optional=_names("hash interactivity_pointer"),
        kinds=BOT_ONLY,
        tier=Tier.FOUR,
    ),
}

METHODS: dict[str, Method] = {**_APPS, **_PEOPLE, **_CONVERSATIONS, **_MESSAGES, **_REST}
