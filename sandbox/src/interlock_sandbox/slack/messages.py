"""Writing messages, changing them, and reacting to them."""

import json
import re
from typing import Any

from interlock_sandbox.slack.blocks import InvalidBlocks, check_blocks
from interlock_sandbox.slack.call import (
    Call,
    Slack,
    get_channel,
    invalid_arguments,
    require_member,
    show_message,
)
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import JSON, Channel, Message

MAX_MARKDOWN = 12_000
MAX_POST_TEXT = 40_000
MAX_UPDATE_TEXT = 4_000
MAX_METADATA_BYTES = 16_000
MAX_LOADING_MESSAGES = 10
_TS = re.compile(r"[0-9]{10}\.[0-9]{6}")
_EMOJI = re.compile(r"[a-z0-9_+'-]{1,100}(::skin-tone-[2-6])?")


def post_message(slack: Slack, call: Call) -> JSON:
    """Post a message to a conversation, or to a user."""
    channel = _post_target(slack, call)
    if channel.is_im or "chat:write.public" not in call.token.scopes:
        require_member(call, channel)
    message = slack.world.add(call.team, _compose(slack, call, channel, MAX_POST_TEXT))
    shown = show_message(message, call.team)
    return {"channel": channel.id, "ts": message.ts, "message": shown}


def post_ephemeral(slack: Slack, call: Call) -> JSON:
    """Show a message to one user."""
    channel = get_channel(call)
    user = call.text("user")
    if user not in call.workspace.users or user not in channel.members:
        raise SlackError("user_not_in_channel")
    require_member(call, channel)
    message = _compose(slack, call, channel, MAX_POST_TEXT)
    message.ephemeral_to = user
    slack.world.add(call.team, message)
    return {"message_ts": message.ts}


def update(slack: Slack, call: Call) -> JSON:
    """Replace the content of a message of the caller."""
    message = own_message(slack, call, "cant_update_message")
    if message.streaming in {"open", "stopped"} and not stream_is_over(slack, call, message):
        raise SlackError("streaming_state_conflict")
    text, markdown = _content(call, MAX_UPDATE_TEXT)
    blocks = given_blocks(call)
    metadata = given_metadata(call)
    if not (text or markdown or blocks):
        raise SlackError("no_text")
    if text or markdown:
        message.text, message.markdown = markdown or text, bool(markdown)
    if text or markdown or call.args.get("blocks") is not None:
        # New text without blocks replaces the old blocks too.
        message.blocks = blocks
    message.metadata = metadata or message.metadata
    message.streaming = None
    message.edited = True
    slack.world.update(call.team, message)
    shown = show_message(message, call.team)
    return {
        "channel": message.channel,
        "ts": message.ts,
        "text": message.text,
        "message": shown,
    }


def delete(slack: Slack, call: Call) -> JSON:
    """Delete a message of the caller."""
    message = own_message(slack, call, "cant_delete_message")
    slack.world.remove(call.team, message)
    return {"channel": message.channel, "ts": message.ts}


def add_reaction(slack: Slack, call: Call) -> JSON:
    """Add the caller's reaction to a message."""
    message, name = _reaction_target(slack, call)
    found = next((each for each in message.reactions if each["name"] == name), None)
    if found is None:
        found = {"name": name, "users": [], "count": 0}
        message.reactions.append(found)
    if call.token.user in found["users"]:
        raise SlackError("already_reacted")
    found["users"].append(call.token.user)
    found["count"] = len(found["users"])
    slack.world.update(call.team, message)
    return {}


def remove_reaction(slack: Slack, call: Call) -> JSON:
    """Take the caller's reaction back."""
    message, name = _reaction_target(slack, call)
    found = next((each for each in message.reactions if each["name"] == name), None)
    if found is None or call.token.user not in found["users"]:
        raise SlackError("no_reaction")
    found["users"].remove(call.token.user)
    found["count"] = len(found["users"])
    message.reactions = [each for each in message.reactions if each["users"]]
    slack.world.update(call.team, message)
    return {}


def _reaction_target(slack: Slack, call: Call) -> tuple[Message, str]:
    channel = get_channel(call)
    name = call.text("name").strip(":")
    if not _EMOJI.fullmatch(name):
        raise SlackError("invalid_name")
    if not _TS.fullmatch(call.text("timestamp")):
        raise SlackError("bad_timestamp")
    message = slack.world.find_message(call.team, channel.id, call.text("timestamp"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    return message, name


def set_status(slack: Slack, call: Call) -> JSON:
    """Show in a thread what the app is doing."""
    channel = get_channel(call, "channel_id")
    thread = call.text("thread_ts")
    if slack.world.find_message(call.team, channel.id, thread) is None:
        raise SlackError("invalid_thread_ts")
    loading = call.document("loading_messages") or []
    if not isinstance(loading, list) or len(loading) > MAX_LOADING_MESSAGES:
        raise invalid_arguments(f"no more than {MAX_LOADING_MESSAGES} loading_messages")
    slack.world.set_status(call.team, channel.id, thread, call.text("status"))
    return {}


def _post_target(slack: Slack, call: Call) -> Channel:
    """Find where to post: a conversation, or a user, whose direct message is opened."""
    user = call.workspace.users.get(call.text("channel"))
    if user and user.id != call.token.user:
        return slack.world.open_im(call.team, call.token.user, user.id)
    return get_channel(call)


def own_message(slack: Slack, call: Call, refusal: str) -> Message:
    """Return the message that a call names; the refusal is for messages of others."""
    channel = get_channel(call)
    message = slack.world.find_message(call.team, channel.id, call.text("ts"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    if message.user != call.token.user:
        raise SlackError(refusal)
    return message


def _compose(slack: Slack, call: Call, channel: Channel, longest: int) -> Message:
    text, markdown = _content(call, longest)
    message = make_message(slack, call, channel)
    message.blocks = given_blocks(call)
    message.text, message.markdown = markdown or text, bool(markdown)
    if not message.text and not message.blocks:
        raise SlackError("no_text")
    message.metadata = given_metadata(call)
    return message


def make_message(slack: Slack, call: Call, channel: Channel) -> Message:
    """Make the caller's message in a channel, in the thread it names."""
    thread = call.text("thread_ts") or None
    if thread:
        root = slack.world.find_message(call.team, channel.id, thread)
        if root is None or root.ephemeral_to:
            raise SlackError("invalid_thread_ts")
        # A reply to a reply goes into the same thread.
        thread = root.thread
    installation = call.workspace.installation
    bot_id = installation.bot_id if installation and call.token.kind == "bot" else None
    ts = slack.world.next_ts()
    return Message(ts, channel.id, call.token.user, "", thread_ts=thread, bot_id=bot_id)


def stream_is_over(slack: Slack, call: Call, message: Message) -> bool:
    """Say whether the stream outlived Slack's patience, and close it if so."""
    over = slack.world.now() >= message.stream_started_at + slack.stream_life_s
    if over and message.streaming != "closed":
        message.streaming = "closed"
        slack.world.update(call.team, message)
    return over


def _content(call: Call, longest: int) -> tuple[str, str]:
    text, markdown = call.text("text"), call.text("markdown_text")
    if markdown and (text or call.args.get("blocks")):
        raise SlackError("markdown_text_conflict")
    if len(text) > longest or len(markdown) > MAX_MARKDOWN:
        raise SlackError("msg_too_long")
    return text, markdown


def given_blocks(call: Call) -> list[JSON]:
    """Return the blocks of a call, checked; none when it has none."""
    blocks = call.document("blocks")
    return checked_blocks(blocks) if blocks is not None else []


def checked_blocks(blocks: Any) -> list[JSON]:
    """Return blocks as Slack keeps them."""
    try:
        return check_blocks(blocks)
    except InvalidBlocks as problem:
        messages = [f"[ERROR] {problem}"]
        raise SlackError("invalid_blocks", response_metadata={"messages": messages}) from None


def given_metadata(call: Call) -> JSON | None:
    """Return the metadata of a call, checked."""
    metadata = call.document("metadata")
    if metadata is None or metadata == {}:
        return None
    match metadata:
        case {"event_type": str(), "event_payload": dict()}:
            if len(json.dumps(metadata)) > MAX_METADATA_BYTES:
                raise SlackError("metadata_too_large")
            return dict(metadata)
        case _:
            raise SlackError("invalid_metadata_format")
