"""Writing messages, changing them, and reacting to them."""

import json
import re
from typing import Any

from interlock_sandbox.slack.blocks import InvalidBlocks, check_blocks
from interlock_sandbox.slack.call import (
    Call,
    Slack,
    get_channel,
    require_member,
)
from interlock_sandbox.slack.model import JSON, Channel, Message
from interlock_sandbox.slack.refusal import SlackError

MAX_MARKDOWN = 12_000
MAX_POST_TEXT = 40_000
MAX_UPDATE_TEXT = 4_000
MAX_METADATA_BYTES = 16_000
MAX_ATTACHMENTS = 100
_TS = re.compile(r"[0-9]{10}\.[0-9]{6}")
_EMOJI = re.compile(r"[a-z0-9_+'-]{1,100}(::skin-tone-[2-6])?")


def post_message(slack: Slack, call: Call) -> JSON:
    """Post a message to a conversation, or to a user."""
    channel = _post_target(slack, call)
    if not channel.is_open_to_all or "chat:write.public" not in call.token.scopes:
        require_member(call, channel)
    warnings = []
    text, markdown = _content(call)
    if len(text) > MAX_POST_TEXT:
        text = text[:MAX_POST_TEXT]
        warnings = ["message_truncated"]
    message = slack.world.add(_compose(slack, call, channel, text, markdown))
    answer: JSON = {"channel": channel.id, "ts": message.ts, "message": message.show()}
    if warnings:
        answer |= {"warning": warnings[0], "response_metadata": {"warnings": warnings}}
    return answer


def post_ephemeral(slack: Slack, call: Call) -> JSON:
    """Show a message to one user."""
    channel = get_channel(call)
    user = call.text("user")
    if user not in channel.members:
        raise SlackError("user_not_in_channel")
    require_member(call, channel)
    text, markdown = _content(call)
    if len(text) > MAX_POST_TEXT:
        raise SlackError("msg_too_long")
    message = _compose(slack, call, channel, text, markdown)
    message.ephemeral_to = user
    slack.world.add(message)
    return {"message_ts": message.ts}


def update(slack: Slack, call: Call) -> JSON:
    """Replace the content of a message of the caller."""
    message = own_message(call, "cant_update_message")
    if message.streaming in {"open", "stopped"} and not stream_is_over(slack, message):
        raise SlackError("streaming_state_conflict")
    text, markdown = _content(call)
    if len(text) > MAX_UPDATE_TEXT:
        raise SlackError("msg_too_long")
    blocks = given_blocks(call)
    metadata = given_metadata(call)
    if not (text or markdown or blocks):
        raise SlackError("no_text")
    before = message.show()
    if text or markdown:
        message.text, message.markdown = markdown or text, bool(markdown)
    if text or markdown or call.args.get("blocks") is not None:
        # New text without blocks replaces the old blocks too.
        message.blocks = blocks
    message.metadata = metadata or message.metadata
    message.streaming = None
    message.edited_ts = slack.world.next_ts()
    slack.world.update(message)
    slack.events.message_edited(message, before)
    return {
        "channel": message.channel,
        "ts": message.ts,
        "text": message.text,
        "message": message.show(),
    }


def delete(slack: Slack, call: Call) -> JSON:
    """Delete a message of the caller."""
    message = own_message(call, "cant_delete_message")
    slack.world.remove(message)
    slack.events.message_deleted(message)
    return {"channel": message.channel, "ts": message.ts}


def get_permalink(_slack: Slack, call: Call) -> JSON:
    """Return the address of a message."""
    channel = get_channel(call)
    message = call.world.find_message(channel.id, call.text("message_ts"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    domain = call.world.workspaces[call.team_in(channel)].domain
    link = f"https://{domain}.slack.com/archives/{channel.id}/p{message.ts.replace('.', '')}"
    if message.thread_ts:
        link += f"?thread_ts={message.thread_ts}&cid={channel.id}"
    return {"channel": channel.id, "permalink": link}


def add_reaction(slack: Slack, call: Call) -> JSON:
    """Add the caller's reaction to a message."""
    message, name = _reaction_target(call)
    found = next((each for each in message.reactions if each["name"] == name), None)
    if found is None:
        found = {"name": name, "users": [], "count": 0}
        message.reactions.append(found)
    if call.token.user in found["users"]:
        raise SlackError("already_reacted")
    found["users"].append(call.token.user)
    found["count"] = len(found["users"])
    slack.world.update(message)
    return {}


def remove_reaction(slack: Slack, call: Call) -> JSON:
    """Take the caller's reaction back."""
    if not call.args.get("channel") or not call.args.get("timestamp"):
        # Files, which Slack also takes, carry no reactions here.
        raise SlackError("no_item_specified")
    message, name = _reaction_target(call)
    found = next((each for each in message.reactions if each["name"] == name), None)
    if found is None or call.token.user not in found["users"]:
        raise SlackError("no_reaction")
    found["users"].remove(call.token.user)
    found["count"] = len(found["users"])
    message.reactions = [each for each in message.reactions if each["users"]]
    slack.world.update(message)
    return {}


def _reaction_target(call: Call) -> tuple[Message, str]:
    channel = get_channel(call)
    name = call.text("name").strip(":")
    if not _EMOJI.fullmatch(name):
        raise SlackError("invalid_name")
    if not _TS.fullmatch(call.text("timestamp")):
        raise SlackError("bad_timestamp")
    message = call.world.find_message(channel.id, call.text("timestamp"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    return message, name


def _post_target(slack: Slack, call: Call) -> Channel:
    """Find where to post: a conversation, or a user, whose direct message is opened."""
    wanted = call.text("channel")
    teams = [each.id for each in call.reach if wanted in each.users]
    if not teams or wanted == call.token.user:
        return get_channel(call)
    return slack.world.open_direct(teams, [call.token.user, wanted])


def own_message(call: Call, refusal: str) -> Message:
    """Return the message that a call names; the refusal is for messages of others."""
    channel = get_channel(call)
    message = call.world.find_message(channel.id, call.text("ts"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    if message.user != call.token.user:
        raise SlackError(refusal)
    return message


def _compose(slack: Slack, call: Call, channel: Channel, text: str, markdown: str) -> Message:
    message = make_message(slack, call, channel)
    message.blocks = given_blocks(call)
    message.text, message.markdown = markdown or text, bool(markdown)
    attachments = call.document("attachments") or []
    if isinstance(attachments, list) and len(attachments) > MAX_ATTACHMENTS:
        raise SlackError("too_many_attachments")
    if not message.text and not message.blocks and not attachments:
        raise SlackError("no_text")
    message.metadata = given_metadata(call)
    return message


def make_message(slack: Slack, call: Call, channel: Channel) -> Message:
    """Make the caller's message in a channel, in the thread it names."""
    if channel.is_archived:
        raise SlackError("is_archived")
    thread = call.text("thread_ts") or None
    if thread:
        root = slack.world.find_message(channel.id, thread)
        if root is None or root.ephemeral_to:
            raise SlackError("invalid_thread_ts")
        # A reply to a reply goes into the same thread.
        thread = root.thread
    bot_id = call.installation.bot_id if call.token.kind == "bot" else None
    return Message(
        slack.world.next_ts(),
        channel.id,
        call.token.user,
        "",
        call.team_in(channel),
        thread_ts=thread,
        bot_id=bot_id,
    )


def stream_is_over(slack: Slack, message: Message) -> bool:
    """Say whether the stream outlived Slack's patience, and close it if so."""
    over = slack.world.now() >= message.stream_started_at + slack.stream_life_s
    if over and message.streaming != "closed":
        message.streaming = "closed"
        slack.world.update(message)
    return over


def _content(call: Call) -> tuple[str, str]:
    text, markdown = call.text("text"), call.text("markdown_text")
    if markdown and (text or call.args.get("blocks")):
        raise SlackError("markdown_text_conflict")
    if len(markdown) > MAX_MARKDOWN:
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
