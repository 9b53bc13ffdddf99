"""One run of an agent: the question's body, the answer's stream, approvals."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.faults import Fault
from interlock_sandbox.platform.catalog import Agent
from interlock_sandbox.platform.records import Record
from interlock_sandbox.platform.refusals import refuse, refuse_body
from interlock_sandbox.platform.scripts import SCRIPTS, Asking, Chunk, NamedEvent, Piece

# How much of an answer is sent before a connection is cut, or falls silent.
WORDS_BEFORE_TROUBLE = 4
_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ChatBody:
    """The body of a chat request.

    Attributes:
        question: The last user message; the platform ignores the others.
        verdicts: Instead of a question: tool calls that a person judged.
    """

    conversation_id: str
    message_id: str
    question: str
    verdicts: dict[str, bool] | None
    stream: bool
    durable: bool


async def read_chat_body(request: web.Request) -> ChatBody:
    """Read the body of a chat request.

    Raises:
        Refusal: It breaks the platform's schema.
    """
    try:
        body = await request.json()
    except ValueError:
        refuse_body("not JSON")
    match body:
        case {"messages": [*_, {"role": str()}]}:
            pass
        case _:
            refuse_body("messages: required, each with a role")
    message_id = body.get("messageId", f"msg_{secrets.token_hex(8)}")
    if not isinstance(message_id, str) or not _MESSAGE_ID.fullmatch(message_id):
        refuse_body("messageId: invalid")
    if body.get("executionMode", "classic") not in {"classic", "durable"}:
        refuse_body("executionMode: invalid")
    judged = body["messages"][-1]["role"] == "tool"
    return ChatBody(
        conversation_id=_text(body, "conversationId"),
        message_id=message_id,
        question="" if judged else _question(body["messages"]),
        verdicts=_verdicts(body["messages"][-1]) if judged else None,
        stream=body.get("stream", True) is not False,
        durable=body.get("executionMode") == "durable",
    )


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        refuse_body(f"{name}: must be a text")
    return value


def _question(messages: list[Any]) -> str:
    said = [
        each.get("content")
        for each in messages
        if isinstance(each, dict) and each.get("role") == "user"
    ]
    if not said or not isinstance(said[-1], str) or not said[-1].strip():
        refuse_body("messages: no question")
    return said[-1]


def _verdicts(message: dict[str, Any]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    parts = message.get("parts")
    for part in parts if isinstance(parts, list) else []:
        match part:
            case {
                "type": "tool-call",
                "toolCallId": str(call),
                "state": "approval-responded",
                "approval": {"approved": bool(approved)},
            }:
                found[call] = approved
            case _:
                refuse_body("parts: must be answered approvals")
    if not found:
        refuse_body("parts: required")
    return found


class Approvals:
    """Tool calls that wait for a person, by tenant, conversation and call."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, str], asyncio.Future[bool]] = {}
        self._parked: dict[tuple[str, str, str], AsyncGenerator[Piece, None]] = {}

    def ask(self, record: Record, call: str) -> asyncio.Future[bool]:
        """Return what a person will say about a tool call of this run."""
        key = (record.tenant_id, record.conversation_id, call)
        verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[key] = verdict
        verdict.add_done_callback(lambda _: self._waiting.pop(key, None))
        return verdict

    def park(self, record: Record, call: str, rest: AsyncGenerator[Piece, None]) -> None:
        """Keep the rest of a durable run, which goes on where the verdict comes in."""
        record.outcome = "waiting"
        self._parked[record.tenant_id, record.conversation_id, call] = rest

    def answer(
        self, record: Record, verdicts: dict[str, bool]
    ) -> tuple[dict[str, Any], AsyncGenerator[Piece, None] | None]:
        """Let the runs go on whose tool calls were judged.

        Returns:
            The answer, and the rest of a run that was parked.

        Raises:
            Refusal: The body names no conversation, or none of its calls waits.
        """
        if not record.conversation_id:
            refuse(HTTPStatus.BAD_REQUEST, "bad_request", "conversationId is required")
        keys = {call: (record.tenant_id, record.conversation_id, call) for call in verdicts}
        if not set(keys.values()) <= self._waiting.keys():
            refuse(HTTPStatus.NOT_FOUND, "not_found", "No such approval")
        rest = None
        for call, key in keys.items():
            self._waiting.pop(key).set_result(verdicts[call])
            rest = self._parked.pop(key, rest)
        results = [{"toolCallId": call, "approved": said} for call, said in verdicts.items()]
        return {"success": True, "results": results}, rest


async def answer_pieces(
    agent: Agent, record: Record, asking: Asking, *, durable: bool
) -> AsyncGenerator[Piece, None]:
    """Yield what an agent says, with the platform's own chunks around it."""
    if not durable:
        yield {"type": "start", "messageId": record.message_id}
    details = {"sessionId": f"chatds-{record.number}", "agentId": agent.id}
    yield _operation("agent_initializing", details)
    failed = False
    async with aclosing(SCRIPTS[agent.script](asking)) as pieces:
        async for piece in pieces:
            if _is_failure(piece):
                record.outcome, failed = "failed", True
            yield piece
    if not failed:
        record.outcome = "completed"
        yield _operation("completion", {"agent": agent.id, "iteration": 1})


def _is_failure(piece: Piece) -> bool:
    """Say whether a piece tells of a failure, in any of the platform's five ways."""
    match piece:
        case NamedEvent(name="error") | {"type": "error"}:
            return True
        case {"type": "data-operation", "data": {"type": "error"}}:
            return True
        case _:
            return False


async def stream_answer(
    request: web.Request,
    pieces: AsyncGenerator[Piece, None],
    *,
    record: Record,
    approvals: Approvals,
    durable: bool,
    fault: Fault | None,
) -> web.StreamResponse:
    """Stream an answer; a fault strikes after a few words of it.

    A durable run that asks for approval ends its stream; the rest of it is
    streamed to whoever brings the verdict.
    """
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "x-vercel-ai-data-stream": "v2",
            # Durable runs name themselves, and never say [DONE].
            **({"x-workflow-run-id": f"wrun_{secrets.token_hex(8)}"} if durable else {}),
        }
    )
    await response.prepare(request)
    words = 0
    try:
        async for piece in pieces:
            words += _is_word(piece)
            if fault and words > WORDS_BEFORE_TROUBLE:
                await _strike(request, fault)
                fault = None
            await response.write(_frame(piece))
            if durable and (call := _awaited_call(piece)):
                approvals.park(record, call, pieces)
                return response
    finally:
        if record.outcome != "waiting":
            await pieces.aclose()
    if not durable:
        await response.write(b"data: [DONE]\n\n")
    return response


async def whole_answer(
    record: Record, agent: Agent, pieces: AsyncGenerator[Piece, None]
) -> web.Response:
    """Answer in one piece, for those who asked for no stream."""
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            text += piece.get("delta", "") if isinstance(piece, dict) else ""
    failed = record.outcome == "failed"
    message = {"role": "assistant", "content": "Unable to process request" if failed else text}
    choice = {"index": 0, "message": message, "finish_reason": "error" if failed else "stop"}
    return web.json_response(
        {
            "id": f"chatcmpl-{record.number}",
            "object": "chat.completion",
            "created": int(record.at),
            "model": agent.id,
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )


def _is_word(piece: Piece) -> bool:
    return isinstance(piece, dict) and piece["type"] == "text-delta"


def _awaited_call(piece: Piece) -> str:
    """Return the tool call that a piece asks a person about."""
    match piece:
        case {"type": "tool-approval-request", "toolCallId": str(call)}:
            return call
        case _:
            return ""


def _frame(piece: Piece) -> bytes:
    if isinstance(piece, NamedEvent):
        return f"event: {piece.name}\ndata: {json.dumps(piece.data)}\n\n".encode()
    return f"data: {json.dumps(piece)}\n\n".encode()


def _operation(kind: str, details: dict[str, Any]) -> Chunk:
    return {"type": "data-operation", "data": {"type": kind, "details": details}}


async def _strike(request: web.Request, fault: Fault) -> None:
    if fault.kind == "hang":
        await asyncio.sleep(fault.seconds)
    elif request.transport:
        request.transport.abort()
