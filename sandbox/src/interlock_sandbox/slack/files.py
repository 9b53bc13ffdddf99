"""Sharing a file, in Slack's three steps: ask where to send it, send it, share it."""

import secrets
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.slack.call import Call, Slack, get_channel, invalid_arguments, require_member
from interlock_sandbox.slack.messages import checked_blocks, make_message
from interlock_sandbox.slack.model import JSON, Channel, File
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.world import World, new_id

MAX_ALT_TEXT = 1000
# Slack shares a file in no more than 100 conversations at once.
MAX_CHANNELS = 100


def get_upload_url(slack: Slack, call: Call) -> JSON:
    """Return where to send the bytes of a file to."""
    length = call.integer("length", -1)
    if length < 1:
        raise SlackError("missing_argument")
    if len(call.text("alt_txt")) > MAX_ALT_TEXT:
        raise SlackError("alt_txt_too_large")
    file = File(
        id=new_id("F0"),
        holder=call.token.holder,
        user=call.token.user,
        name=call.text("filename"),
        size=length,
        path=f"/upload/v1/{secrets.token_urlsafe(32)}",
        created_at=slack.world.now(),
        alt_text=call.text("alt_txt"),
    )
    slack.world.keep_file(file)
    return {"file_id": file.id, "upload_url": f"{slack.base_url}{file.path}"}


def complete_upload(slack: Slack, call: Call) -> JSON:
    """Make uploaded files visible, in conversations if the call names some."""
    files = _uploaded(call)
    comment, blocks = call.text("initial_comment"), call.document("blocks")
    if comment and blocks:
        raise SlackError("invalid_arguments")
    named = [call.text("channel_id"), *call.text("channels").split(",")]
    channels = [_channel(call, each) for each in dict.fromkeys(named) if each]
    if len(channels) > MAX_CHANNELS:
        raise SlackError("channels_limit_exceeded")
    for file, title in files:
        file.title = title
        file.shared_in = [each.id for each in channels]
        slack.world.keep_file(file)
    for channel in channels:
        message = make_message(slack, call, channel)
        message.text = comment
        message.blocks = checked_blocks(blocks) if blocks else []
        message.files = [file.show() for file, _ in files]
        message.subtype = "file_share"
        slack.world.add(message)
    return {"files": [file.show() for file, _ in files]}


def files_info(_slack: Slack, call: Call) -> JSON:
    """Describe a file of the caller's, or one shared where the caller is."""
    file = call.world.files.get(call.text("file"))
    if file is None or not file.uploaded or file.holder != call.token.holder:
        raise SlackError("file_not_found")
    return {"file": file.show(), "comments": [], "response_metadata": {"next_cursor": ""}}


def _channel(call: Call, channel_id: str) -> Channel:
    named = Call(call.world, call.token, {"channel": channel_id})
    channel = get_channel(named)
    require_member(named, channel)
    return channel


def _uploaded(call: Call) -> list[tuple[File, str]]:
    rows = call.document("files")
    if not isinstance(rows, list) or not rows:
        raise invalid_arguments("must be a list of files [json-pointer:/files]")
    found = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise invalid_arguments("each file has an id [json-pointer:/files]")
        file = call.world.files.get(row["id"])
        is_mine = file is not None and file.holder == call.token.holder
        if file is None or not is_mine or not file.uploaded or file.title:
            raise SlackError("file_not_found")
        found.append((file, str(row.get("title") or file.name)))
    return found


class Uploads:
    """Take the bytes of files, at the paths that Slack gave out.

    Attributes:
        contents: What was sent, by file; it does not outlive the process.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.contents: dict[str, bytes] = {}

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the route of all uploads."""
        return [web.post("/upload/v1/{secret}", self._receive)]

    async def _receive(self, request: web.Request) -> web.Response:
        listed = self._world.files.values()
        file = next((each for each in listed if each.path == request.path), None)
        if file is None or file.uploaded:
            return web.Response(status=HTTPStatus.NOT_FOUND, text="no such upload")
        content = await _content(request)
        if len(content) != file.size:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text="not the announced length")
        self.contents[file.id] = content
        file.uploaded = True
        self._world.keep_file(file)
        return web.Response(text=f"OK - {file.size}")


async def _content(request: web.Request) -> bytes:
    """Read the bytes of a file, sent as they are or as the only field of a form."""
    if request.content_type != "multipart/form-data":
        return await request.read()
    for field in (await request.post()).values():
        if isinstance(field, web.FileField):
            return field.file.read()
    return b""
