"""Messages that grow while their reader watches."""

from interlock_sandbox.slack.call import (
    Call,
    Slack,
    get_channel,
    invalid_arguments,
    require_member,
)
from interlock_sandbox.slack.messages import (
    MAX_MARKDOWN,
    checked_blocks,
    given_blocks,
    given_metadata,
    make_message,
    stream_is_over,
)
from interlock_sandbox.slack.model import JSON, Message
from interlock_sandbox.slack.refusal import SlackError

_TASK_STATES = frozenset({"pending", "in_progress", "complete", "error"})


def start_stream(slack: Slack, call: Call) -> JSON:
    """Start an answer in a thread."""
    channel = get_channel(call)
    require_member(call, channel)
    if not channel.is_im:
        if not call.text("recipient_team_id"):
            raise SlackError("missing_recipient_team_id")
        if not call.text("recipient_user_id"):
            raise SlackError("missing_recipient_user_id")
    recipient = call.text("recipient_user_id")
    if recipient and not any(call.world.find_user(each.id, recipient) for each in call.reach):
        raise SlackError("user_not_found")
    if call.text("task_display_mode", "timeline") not in {"timeline", "plan"}:
        raise invalid_arguments("must be timeline or plan [json-pointer:/task_display_mode]")
    message = make_message(slack, call, channel)
    if not message.thread_ts:
        raise invalid_arguments("missing required field: thread_ts")
    message.streaming = "open"
    message.markdown = True
    message.stream_started_at = slack.world.now()
    _append(message, call)
    slack.world.add(message)
    return {"channel": channel.id, "ts": message.ts}


def append_stream(slack: Slack, call: Call) -> JSON:
    """Add to an answer that is still streaming."""
    message = _open_stream(slack, call)
    if not _append(message, call):
        raise SlackError("no_text")
    slack.world.update(message)
    return {"channel": message.channel, "ts": message.ts}


def stop_stream(slack: Slack, call: Call) -> JSON:
    """End an answer, with what belongs below it."""
    message = _open_stream(slack, call, stopping=True)
    blocks = given_blocks(call) if call.args.get("blocks") is not None else []
    metadata = given_metadata(call)
    _append(message, call)
    message.blocks = [*message.blocks, *blocks]
    message.metadata = metadata
    message.streaming = "closed"
    slack.world.update(message)
    return {
        "channel": message.channel,
        "ts": message.ts,
        "message": message.show(),
    }


def _open_stream(slack: Slack, call: Call, *, stopping: bool = False) -> Message:
    channel = get_channel(call)
    message = slack.world.find_message(channel.id, call.text("ts"))
    if message is None or message.ephemeral_to:
        raise SlackError("message_not_found")
    if message.user != call.token.user:
        raise SlackError("message_not_owned_by_app")
    if message.streaming == "stopped" and not stopping:
        raise SlackError("stopped_by_user")
    if message.streaming not in {"open", "stopped"} or stream_is_over(slack, message):
        raise SlackError("message_not_in_streaming_state")
    return message


def _append(message: Message, call: Call) -> bool:
    """Add a call's text and chunks to a streaming message; False when there are none."""
    text = call.text("markdown_text")
    if len(text) > MAX_MARKDOWN:
        raise SlackError("msg_too_long")
    chunks = call.document("chunks") or []
    if not isinstance(chunks, list) or not all(isinstance(chunk, dict) for chunk in chunks):
        raise SlackError("invalid_chunks")
    written = [_read_chunk(chunk) for chunk in chunks]
    message.text += text
    for chunk in written:
        match chunk["type"]:
            case "markdown_text":
                message.text += chunk["text"]
            case "blocks":
                message.blocks = [*message.blocks, *chunk["blocks"]]
            case _:
                kept = [task for task in message.tasks if task.get("id") != chunk.get("id")]
                message.tasks = [*kept, chunk]
    return bool(text or chunks)


def _read_chunk(chunk: JSON) -> JSON:
    match chunk:
        case {"type": "markdown_text", "text": str(text)} if 0 < len(text) <= MAX_MARKDOWN:
            return chunk
        case {"type": "plan_update", "title": str(title)} if title:
            return chunk
        case {"type": "task_update", "id": str(), "title": str(title), "status": str(status)} if (
            title and status in _TASK_STATES
        ):
            return chunk
        case {"type": "blocks", "blocks": blocks}:
            checked_blocks(blocks)
            return chunk
        case _:
            raise SlackError("invalid_chunks")
