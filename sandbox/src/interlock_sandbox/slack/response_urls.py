"""What an app says without a token: answers to commands, and response URLs."""

import json
import secrets
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.faults import Faults
from interlock_sandbox.slack.blocks import InvalidBlocks, check_blocks
from interlock_sandbox.slack.call_log import CallLog, Record
from interlock_sandbox.slack.model import (
    JSON,
    Installation,
    Message,
    Receiver,
    ResponseUrl,
    User,
    Workspace,
)
from interlock_sandbox.slack.outbound import Answer
from interlock_sandbox.slack.trouble import strike_after, strike_before
from interlock_sandbox.slack.world import World

RESPONSE_URL_USES = 5
RESPONSE_URL_LIFE_S = 1800
SLACKBOT = "USLACKBOT"


class AppAnswers:
    """Show what the app answers to a person's click or command.

    Args:
        base_url: Where this Slack is reached; response URLs start with it.
    """

    def __init__(self, world: World, log: CallLog, faults: Faults, base_url: str) -> None:
        self._world = world
        self._log = log
        self._faults = faults
        self._base_url = base_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the response URLs, at the paths that Slack gives them."""
        return [web.post("/{kind:actions|commands}/{team}/{number}/{secret}", self._respond)]

    def issue_url(
        self, kind: str, receiver: Receiver, workspace: Workspace, user: User, message: Message
    ) -> str:
        """Return a new response URL for what a person did with a message."""
        number = secrets.randbelow(10**12)
        path = f"/{kind}/{receiver.team}/{number:012}/{secrets.token_urlsafe(18)}"
        self._world.issue_response_url(
            ResponseUrl(
                path,
                receiver.holder,
                workspace.id,
                message.channel,
                user.id,
                message.thread_ts,
                message.ts if message.user != user.id else None,
                self._world.now(),
            )
        )
        return f"{self._base_url}{path}"

    def show_command_answer(
        self,
        receiver: Receiver,
        source: Message,
        command: str,
        answer: Answer,
    ) -> None:
        """Show what a slash command was answered, or that it was not."""
        failure = None
        if not answer.accepted:
            failure = "operation_timeout" if answer.status is None else f"status {answer.status}"
        elif answer.body:
            content = _command_content(answer)
            if content is None:
                failure = "invalid_command_response"
            else:
                self._say(receiver.installation, source, source.user, content)
        if failure:
            text = f"{command} failed because the app did not respond ({failure})"
            self._whisper(Message("", source.channel, SLACKBOT, text, source.team), source.user)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        record = self._log.begin("response_url")
        url = self._world.response_urls.get(request.path)
        if url is None:
            return _refuse(record, "no_service")
        record.team, record.user = url.holder, url.user
        fault = self._faults.take(record.method, record.team)
        if refusal := await strike_before(fault, record):
            return refusal
        response = self._use(url, _content(await request.read()), record)
        return await strike_after(fault, request, response)

    def _use(self, url: ResponseUrl, content: JSON | None, record: Record) -> web.Response:
        if self._world.now() >= url.issued_at + RESPONSE_URL_LIFE_S:
            return _refuse(record, "expired_url")
        if url.uses >= RESPONSE_URL_USES:
            return _refuse(record, "used_url")
        if content is None:
            return _refuse(record, "invalid_payload", HTTPStatus.BAD_REQUEST)
        record.args = dict(content)
        try:
            content["blocks"] = check_blocks(content.get("blocks", []))
        except InvalidBlocks:
            return _refuse(record, "invalid_blocks", HTTPStatus.BAD_REQUEST)
        url.uses += 1
        self._world.changed()
        self._apply(url, content)
        record.acted = True
        return web.json_response({"ok": True})

    def _apply(self, url: ResponseUrl, content: JSON) -> None:
        original = self._world.find_message(url.channel, url.message_ts) if url.message_ts else None
        installation = self._world.home(url.holder).active_installation()
        if content.get("delete_original") is True:
            if original:
                self._world.remove(original)
        elif content.get("replace_original") is True and original:
            original.text = str(content.get("text", ""))
            original.blocks = content.get("blocks", [])
            if original.ephemeral_to is None:
                original.edited_ts = self._world.next_ts()
            self._world.update(original)
        elif installation:
            place = Message("", url.channel, "", "", url.team, thread_ts=url.thread_ts)
            self._say(installation, place, url.user, content)

    def _say(self, installation: Installation, place: Message, user: str, content: JSON) -> None:
        """Show what the app said in an answer: to one person unless it says otherwise."""
        if not (content.get("text") or content.get("blocks")):
            return
        thread = content.get("thread_ts")
        message = Message(
            "",
            place.channel,
            installation.bot_user,
            str(content.get("text", "")),
            place.team,
            thread_ts=thread if isinstance(thread, str) else place.thread_ts,
            bot_id=installation.bot_id,
            blocks=content.get("blocks", []),
        )
        if content.get("response_type") == "in_channel":
            message.ts = self._world.next_ts()
            self._world.add(message)
        else:
            self._whisper(message, user)

    def _whisper(self, message: Message, user: str) -> None:
        message.ts = self._world.next_ts()
        message.ephemeral_to = user
        self._world.add(message)


def _command_content(answer: Answer) -> JSON | None:
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return {"text": answer.body.decode(errors="replace")}
    content = _content(answer.body)
    if content is None:
        return None
    try:
        return {**content, "blocks": check_blocks(content.get("blocks", []))}
    except InvalidBlocks:
        return None


def _content(body: bytes) -> JSON | None:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _refuse(record: Record, error: str, status: HTTPStatus = HTTPStatus.NOT_FOUND) -> web.Response:
    record.error = error
    return web.json_response({"ok": False, "error": error}, status=status)
