"""What an assistant shows about its threads: a status, prompts to choose from, a title."""

from interlock_sandbox.slack.call import Call, Slack, get_channel, invalid_arguments
from interlock_sandbox.slack.model import JSON, Message
from interlock_sandbox.slack.refusal import SlackError

MAX_LOADING_MESSAGES = 10
MAX_LOADING_TEXT = 50
# Slack shows no more than four.
MAX_PROMPTS = 4


def set_status(slack: Slack, call: Call) -> JSON:
    """Show in a thread what the app is doing."""
    root = _thread_root(call)
    loading = call.document("loading_messages") or []
    if not isinstance(loading, list) or len(loading) > MAX_LOADING_MESSAGES:
        raise invalid_arguments(f"no more than {MAX_LOADING_MESSAGES} loading_messages")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_LOADING_TEXT for each in loading):
        raise invalid_arguments(f"loading_messages have 1 to {MAX_LOADING_TEXT} characters")
    slack.world.set_status(root.channel, root.thread, call.text("status"))
    return {}


def set_suggested_prompts(slack: Slack, call: Call) -> JSON:
    """Offer questions to choose from."""
    prompts = call.document("prompts")
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS:
        raise invalid_arguments(f"1 to {MAX_PROMPTS} prompts [json-pointer:/prompts]")
    for number, prompt in enumerate(prompts):
        match prompt:
            case {"title": str(title), "message": str(message)} if title and message:
                continue
            case _:
                raise invalid_arguments(f"title and message [json-pointer:/prompts/{number}]")
    if call.args.get("thread_ts"):
        root = _thread_root(call)
        root.metadata = {"event_type": "suggested_prompts", "event_payload": {"prompts": prompts}}
        slack.world.update(root)
    else:
        get_channel(call, "channel_id")
    return {}


def set_title(slack: Slack, call: Call) -> JSON:
    """Name a thread."""
    root = _thread_root(call)
    root.assistant_title = call.text("title")
    slack.world.update(root)
    return {}


def _thread_root(call: Call) -> Message:
    channel = get_channel(call, "channel_id")
    root = call.world.find_message(channel.id, call.text("thread_ts"))
    if root is None or root.ephemeral_to:
        raise SlackError("invalid_thread_ts")
    return root
