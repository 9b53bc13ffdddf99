"""The catalogue's rows on the runner, each tried over mTLS gRPC with a platform upstream.

The worker's part of GR-01 and SS-04, one new token and no second, is in its own tests.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from interlock.runner.v1 import runner_pb2
from interlock.runner.v1.runner_pb2_grpc import RunnerServiceStub as Stub
from interlock_chassis.errors import Kind
from interlock_gateway.worker import answer
from tests.support.runner_stage import (
    DONE,
    SILENCE,
    TOKEN,
    Handler,
    Platform,
    end_of,
    issuing,
    json_of,
    list_agents,
    piece,
    question,
    refusal_of,
    run,
    serve_worker,
    serving_platform,
    settings_of,
    stream_of,
    text_of,
)


def row(row_id: str) -> pytest.MarkDecorator:
    """Give a test the id of its row."""
    return pytest.mark.parametrize("row_id", [row_id], ids=[row_id])


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    """Run a platform on a port of its own."""
    async with serving_platform() as platform:
        yield platform


@pytest.fixture
async def worker(platform: Platform, tmp_path: Path) -> AsyncIterator[Stub]:
    """Serve a runner for the platform, and connect as the gateway's worker."""
    certificates = issuing(tmp_path)
    async with serve_worker(settings_of(platform, certificates("runner")), certificates) as stub:
        yield stub


@row("GR-01")
async def test_an_expired_user_token_is_told_apart(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """The platform's 401 is UNAUTHENTICATED by its own reason, before any event; one request."""
    platform.answers["POST /run/api/chat"] = json_of({"error": "expired"}, status=401)
    refusal = await refusal_of(run(worker, question("hello")))
    assert (refusal.kind, refusal.reason) == (Kind.UNAUTHENTICATED, "USER_TOKEN_REFUSED")
    assert len(platform.requests) == 1
    # Still refused with a new token, the person is told, and what to do.
    assert answer.is_refusal(refusal.reason)
    platform.answers["POST /run/api/chat"] = stream_of(piece("Hello."), DONE)
    assert text_of(await run(worker, question("hello"))) == "Hello."


@row("GR-02")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("project_id", "../admin"),
        ("project_id", "a%2fb"),
        ("project_id", "a\nb"),
        ("project_id", ""),
        ("agent_id", "a/b"),
        ("agent_id", "a\r\nX-Evil: 1"),
        ("conversation_id", "a b"),
        ("message_id", "x" * 65),
        ("user_token", ""),
        ("user_token", "x" * 4097),
        ("entry_point", 0),
        ("entry_point", 99),
    ],
)
async def test_a_bad_field_never_reaches_the_platform(
    platform: Platform, worker: Stub, field: str, value: object, row_id: str
) -> None:
    """Path characters, newlines and the like are refused by name, without a call."""
    refusal = await refusal_of(run(worker, question("hello", **{field: value})))
    assert (refusal.kind, refusal.metadata["field"]) == (Kind.INVALID, field)
    if field == "project_id":
        listing = runner_pb2.ListAgentsRequest(user_token=TOKEN, project_id=str(value))
        assert (await refusal_of(list_agents(worker, listing))).kind is Kind.INVALID
    assert platform.requests == []


@row("GR-03")
async def test_cancelling_closes_the_connection_upstream(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """When the caller cancels in the middle, the platform learns of it within 1 s."""
    platform.answers["POST /run/api/chat"] = stream_of(piece("half"), hangs=True)
    call = worker.Run(question("hello"), timeout=30)
    async for event in call:
        if event.HasField("text"):
            break
    call.cancel()
    async with asyncio.timeout(1):
        await platform.left.wait()


@row("GR-03")
async def test_a_passed_deadline_closes_the_connection_upstream(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """A run that outlives its deadline is told to have, and the platform learns of it."""
    platform.answers["POST /run/api/chat"] = stream_of(piece("half"), hangs=True)
    events = await run(worker, question("hello"), timeout=1.5)
    assert end_of(events) == ("LIMIT_REACHED", "RUN_TOO_LONG")
    async with asyncio.timeout(1):
        await platform.left.wait()


@row("GR-03")
async def test_cancelling_before_the_first_answer_closes_the_connection(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """A platform that has not answered yet is left as quickly."""
    asked = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        return web.Response()

    platform.answers["POST /run/api/chat"] = never
    call = worker.Run(question("hello"), timeout=30)
    reading = asyncio.ensure_future(call.read())
    await asked.wait()
    call.cancel()
    async with asyncio.timeout(1):
        await platform.left.wait()
    with pytest.raises(asyncio.CancelledError):
        await reading


@row("GR-04")
@pytest.mark.parametrize("size", [49153, 1024 * 1024])
async def test_a_prompt_over_its_limit_is_refused_by_name(
    platform: Platform, worker: Stub, size: int, row_id: str
) -> None:
    """One byte too many and 1 MiB are refused alike, and the limit is named."""
    refusal = await refusal_of(run(worker, question("x" * size)))
    assert refusal.kind is Kind.INVALID
    assert refusal.metadata == {"field": "prompt", "rule": "string.max_bytes"}
    assert platform.requests == []


@row("GR-05")
async def test_a_busy_platform_says_how_long(platform: Platform, worker: Stub, row_id: str) -> None:
    """429 is RESOURCE_EXHAUSTED with the platform's own pause, and has words for the person."""

    async def busy(_: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=429, headers={"Retry-After": "7"})

    platform.answers["POST /run/api/chat"] = busy
    refusal = await refusal_of(run(worker, question("hello")))
    assert (refusal.kind, refusal.reason) == (Kind.EXHAUSTED, "PLATFORM_RATE_LIMITED")
    assert refusal.retry_after == timedelta(seconds=7)
    assert "busy" in answer.failure_text(refusal.reason)
    assert len(platform.requests) == 1


async def _redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def _page(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


@row("SS-01")
@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(_redirect, id="redirect"),
        pytest.param(_page, id="html"),
        pytest.param(stream_of(b"\x1f\x8b" * 99, encoding="gzip"), id="gzip"),
    ],
)
async def test_what_is_no_event_stream_is_not_a_run(
    platform: Platform, worker: Stub, handler: Handler, row_id: str
) -> None:
    """Redirects are not followed; pages and compressed bodies are not taken."""
    platform.answers["POST /run/api/chat"] = handler
    refusal = await refusal_of(run(worker, question("hello")))
    assert (refusal.kind, refusal.reason) == (Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE")
    assert len(platform.requests) == 1


@row("SS-01")
async def test_an_event_of_10_mb_is_capped(platform: Platform, worker: Stub, row_id: str) -> None:
    """An endless event ends the run; what came before it is shown."""
    flood = [b"data: "] + [b"x" * 65536] * 160
    platform.answers["POST /run/api/chat"] = stream_of(piece("half"), *flood, hangs=True)
    events = await run(worker, question("hello"))
    assert end_of(events) == ("LIMIT_REACHED", "EVENT_TOO_LARGE")
    assert text_of(events) == "half"
    async with asyncio.timeout(1):
        await platform.left.wait()


@row("SS-01")
async def test_bytes_without_a_line_are_silence(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """A platform that drips bytes and never ends a line is given up all the same."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(SILENCE.total_seconds() / 10)

    platform.answers["POST /run/api/chat"] = drip
    assert end_of(await run(worker, question("hello"))) == ("LIMIT_REACHED", "STREAM_SILENT")


@row("SS-01")
async def test_a_connection_that_breaks_ends_the_answer_as_incomplete(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """What came is shown, and that it is not the whole."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(piece("half"))
        await platform.heard.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    platform.answers["POST /run/api/chat"] = breaks
    events = await run(worker, question("hello"), heard=platform.heard)
    assert end_of(events) == ("INCOMPLETE", "STREAM_CUT")
    assert text_of(events) == "half"


@row("SS-02")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000])
async def test_an_echoed_token_is_not_shown(
    platform: Platform, worker: Stub, size: int, row_id: str
) -> None:
    """The user's token, cut into pieces of any size, and in an error, never comes out."""
    said = f"Your token is {TOKEN}, keep it."
    pieces = [piece(said[start : start + size]) for start in range(0, len(said), size)]
    failure = {"type": "error", "errorText": f"cannot use {TOKEN}"}
    last = f"data: {json.dumps(failure)}\n\n".encode()
    platform.answers["POST /run/api/chat"] = stream_of(*pieces, last + DONE)
    events = await run(worker, question("hello"))
    assert text_of(events) == "Your token is [redacted], keep it."
    assert events[-1].finished.detail == "cannot use [redacted]"
    assert not any(TOKEN.encode() in event.SerializeToString() for event in events)


@row("SS-03")
async def test_what_slack_would_act_upon_arrives_and_is_defused(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """The runner changes no words; the worker says them so that nobody is called or misled."""
    said = "Ask <!channel> and <@U123ABC>, see <https://evil.example|slack.com>."
    halves = (said[:9], said[9:30], said[30:])
    platform.answers["POST /run/api/chat"] = stream_of(*map(piece, halves), DONE)
    events = await run(worker, question("hello"))
    assert text_of(events) == said
    neutraliser = answer.Neutraliser()
    shown = "".join(neutraliser.feed(event.text.text) for event in events if event.HasField("text"))
    shown += neutraliser.finish()
    assert not any(live in shown for live in ("<!", "<@", "<https:"))
    assert "https://evil.example" in shown


@row("SS-04")
async def test_a_token_that_ends_in_mid_stream_ends_the_run(
    platform: Platform, worker: Stub, row_id: str
) -> None:
    """Before the first word it is a refusal, which is worth one new token; after it, the end."""
    failure = b'data: {"type":"error","errorText":"401 token expired"}\n\n'
    platform.answers["POST /run/api/chat"] = stream_of(piece("half"), failure + DONE)
    events = await run(worker, question("hello"))
    assert end_of(events) == ("FAILED", "AGENT_FAILED")
    assert text_of(events) == "half"
    assert len(platform.requests) == 1
    platform.answers["POST /run/api/chat"] = json_of({}, status=401)
    refusal = await refusal_of(run(worker, question("hello")))
    assert refusal.reason == "USER_TOKEN_REFUSED"
    assert len(platform.requests) == 2
