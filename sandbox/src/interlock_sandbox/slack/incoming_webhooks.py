"""Incoming webhooks: what whoever knows the address posts to one channel.

Statuses and the words of refusals:
api.slack.com/changelog/2016-05-17-changes-to-errors-for-incoming-webhooks.
"""

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.faults import Faults
from interlock_sandbox.slack.blocks import InvalidBlocks, check_blocks
from interlock_sandbox.slack.call_log import CallLog, Record
from interlock_sandbox.slack.model import JSON, IncomingWebhook, Message
from interlock_sandbox.slack.trouble import strike_after, strike_before
from interlock_sandbox.slack.world import World

METHOD = "incoming_webhook"


class _Refused(Exception):
    """Slack takes no message; it says why in one word."""

    def __init__(self, status: HTTPStatus, word: str) -> None:
        super().__init__(word)
        self.status = status
        self.word = word


class IncomingWebhooks:
    """Take what is posted to the addresses that installs gave out."""

    def __init__(self, world: World, log: CallLog, faults: Faults) -> None:
        self._world = world
        self._log = log
        self._faults = faults

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the addresses, at the paths that Slack gives them."""
        return [web.post("/services/{team}/{service}/{secret}", self._take)]

    async def _take(self, request: web.Request) -> web.StreamResponse:
        record = self._log.begin(METHOD)
        webhook = self._world.webhooks.get(request.path)
        record.team = webhook.holder if webhook else None
        fault = self._faults.take(record.method, record.team)
        if refusal := await strike_before(fault, record):
            return refusal
        try:
            self._post(webhook, await _read(request), record)
        except _Refused as refused:
            record.error = refused.word
            return _answer(refused.word, refused.status)
        record.acted = True
        return await strike_after(fault, request, _answer("ok", HTTPStatus.OK))

    def _post(self, webhook: IncomingWebhook | None, content: JSON, record: Record) -> None:
        if webhook is None or webhook.ended:
            raise _Refused(HTTPStatus.NOT_FOUND, "no_service")
        record.args = content
        channel = self._world.channels.get(webhook.channel)
        installation = self._world.home(webhook.holder).active_installation()
        if channel is None or installation is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "channel_not_found")
        if channel.is_archived:
            raise _Refused(HTTPStatus.GONE, "channel_is_archived")
        text, blocks, thread = content.get("text", ""), content.get("blocks", []), None
        try:
            blocks = check_blocks(blocks)
        except InvalidBlocks:
            raise _Refused(HTTPStatus.BAD_REQUEST, "invalid_blocks") from None
        if not isinstance(text, str) or not (text or blocks):
            raise _Refused(HTTPStatus.BAD_REQUEST, "no_text")
        if isinstance(asked := content.get("thread_ts"), str):
            thread = asked
        self._world.add(
            Message(
                self._world.next_ts(),
                channel.id,
                installation.bot_user,
                text,
                webhook.holder,
                thread_ts=thread,
                bot_id=installation.bot_id,
                subtype="bot_message",
                blocks=blocks,
            )
        )


async def _read(request: web.Request) -> JSON:
    """Read what is posted: JSON, or a form whose `payload` is JSON."""
    body: Any = await request.read()
    if request.content_type == "application/x-www-form-urlencoded":
        body = (await request.post()).get("payload", "")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _Refused(HTTPStatus.BAD_REQUEST, "invalid_payload")
    return content


def _answer(word: str, status: HTTPStatus) -> web.Response:
    return web.Response(text=word, content_type="text/html", status=status)
