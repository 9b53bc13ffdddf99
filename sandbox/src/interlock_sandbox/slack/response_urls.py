"""What an app says without a token: answers to commands, and response URLs."""

import json
import secrets
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.slack.blocks import InvalidBlocks, check_blocks
from interlock_sandbox.slack.call_log import CallLog, Record
from interlock_sandbox.slack.outbound import Answer
from interlock_sandbox.slack.world import JSON, Message, ResponseUrl, User, Workspace, World

RESPONSE_URL_USES = 5
RESPONSE_URL_LIFE_S = 1800
SLACKBOT = "USLACKBOT"


class AppAnswers:
    """Show what the app answers to a person's click or command.

    Args:
        base_url: Where this Slack is reached; response URLs start with it.
    """

    def __init__(self, world: World, log: CallLog, base_url: str) -> None:
        self._world = world
        self._log = log
        self._base_url = base_url

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the response URLs, at the paths that Slack gives them."""
        return [web.post("/{kind:actions|commands}/{team}/{number}/{secret}", self._respond)]

    def issue_url(self, kind: str, workspace: Workspace, user: User, message: Message) -> str:
        """Return a new response URL for what a person did with a message."""
        number = secrets.randbelow(10**12)
        path = f"/{kind}/{workspace.id}/{number:012}/{secrets.token_urlsafe(18)}"
        self._world.issue_response_url(
            ResponseUrl(
                path,
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
        self, workspace: Workspace, user: User, channel: str, command: str, answer: Answer
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
                self._say(workspace, user, channel, None, content)
        if failure:
            text = f"{command} failed because the app did not respond ({failure})"
            self._whisper(workspace, Message("", channel, SLACKBOT, text), user)

    async def _respond(self, request: web.Request) -> web.Response:
        record = self._log.begin("response_url")
        url = self._world.response_urls.get(request.path)
        if url is None:
            return _refuse(record, "no_service")
        record.team, record.user = url.team, url.user
        if self._world.now() >= url.issued_at + RESPONSE_URL_LIFE_S:
            return _refuse(record, "expired_url")
        if url.uses >= RESPONSE_URL_USES:
            return _refuse(record, "used_url")
        content = _content(await request.read())
        if content is None:
            return _refuse(record, "invalid_payload", HTTPStatus.BAD_REQUEST)
        record.args = dict(content)
        try:
            content["blocks"] = check_blocks(content.get("blocks", []))
        except InvalidBlocks:
            return _refuse(record, "invalid_blocks", HTTPStatus.BAD_REQUEST)
        url.uses += 1
        self._apply(url, content)
        record.acted = True
        return web.json_response({"ok": True})

    def _apply(self, url: ResponseUrl, content: JSON) -> None:
        workspace = self._world.workspaces[url.team]
        original = (
            self._world.find_message(url.team, url.channel, url.message_ts)
            if url.message_ts
            else None
        )
        if content.get("delete_original") is True:
            if original:
                self._world.remove(url.team, original)
        elif content.get("replace_original") is True and original:
            original.text = str(content.get("text", ""))
            original.blocks = content.get("blocks", [])
            original.edited = original.ephemeral_to is None
            self._world.update(url.team, original)
        else:
            user = workspace.users[url.user]
            self._say(workspace, user, url.channel, url.thread_ts, content)

    def _say(
        self,
        workspace: Workspace,
        user: User,
        channel: str,
        thread_ts: str | None,
        content: JSON,
    ) -> None:
        """Show what the app said in an answer: to one person unless it says otherwise."""
        installation = workspace.installation
        if installation is None or not (content.get("text") or content.get("blocks")):
            return
        message = Message(
            "",
            channel,
            installation.bot_user,
            str(content.get("text", "")),
            thread_ts=thread_ts,
            bot_id=installation.bot_id,
            blocks=content.get("blocks", []),
        )
        if content.get("response_type") == "in_channel":
            message.ts = self._world.next_ts()
            self._world.add(workspace.id, message)
        else:
            self._whisper(workspace, message, user)

    def _whisper(self, workspace: Workspace, message: Message, user: User) -> None:
        message.ts = self._world.next_ts()
        message.ephemeral_to = user.id
        self._world.add(workspace.id, message)


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
