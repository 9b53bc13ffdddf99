"""The catalogue's rows on the runner, each tried over mTLS gRPC with a platform upstream.

The worker's part of GR-01, one new token and no second, is in its own tests.
"""

import asyncio
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
    TOKEN,
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
