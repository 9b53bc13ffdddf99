"""The worker's way to the vault: what is asked within a tick travels together."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import current_request_id, request_id_scope
from interlock_gateway.adapters.worker_vault_grpc import GrpcVault
from interlock_gateway.worker.slack import BotToken

ONE, MANY = "ReadBotToken", "ReadBotTokens"
BAD = "bad-grant"


class FakeVault:
    """A vault behind a channel: a grant's token is its name; calls can be held and failed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.request_ids: list[str] = []
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.is_short = False

    def unary_unary(self, path: str, *_: object, **__: object) -> Callable[..., Any]:
        """Return the callable of an RPC, as a channel does."""
        name = path.rpartition("/")[2]

        async def call(request: Any, *, timeout: float) -> Any:
            reads = [request] if name == ONE else list(request.reads)
            self.calls.append((name, [read.grant for read in reads]))
            self.request_ids.append(current_request_id())
            self.asked.put_nowait(name)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            if name == ONE:
                return self._token(request)
            verdicts = [self._verdict(read) for read in reads]
            return pb.ReadBotTokensResponse(verdicts=verdicts[self.is_short :])

        return call

    def _token(self, read: pb.ReadBotTokenRequest) -> pb.ReadBotTokenResponse:
        generation = read.newer_than_generation + 1
        return pb.ReadBotTokenResponse(bot_token=f"token of {read.grant}", generation=generation)

    def _verdict(self, read: pb.ReadBotTokenRequest) -> pb.ReadBotTokensVerdict:
        if read.grant != BAD:
            return pb.ReadBotTokensVerdict(token=self._token(read))
        refusal = pb.Refusal(code=grpc.StatusCode.UNAVAILABLE.value[0], reason="KMS_UNAVAILABLE")
        refusal.retry_after.FromTimedelta(timedelta(seconds=3))
        return pb.ReadBotTokensVerdict(refusal=refusal)


def open_vault() -> tuple[FakeVault, GrpcVault]:
    """Give a fake vault and the worker's way to it."""
    fake = FakeVault()
    return fake, GrpcVault(cast("aio.Channel", fake))


async def read(vault: GrpcVault, grant: str, newer_than: int = 0) -> BotToken:
    """Read with a grant."""
    return await vault.read_bot_token(Secret(grant), newer_than)


async def test_reads_of_one_tick_share_a_call_and_keep_their_answers() -> None:
    """Three readers, one RPC, and to each what its own grant opens."""
    fake, vault = open_vault()
    tokens = await asyncio.gather(read(vault, "a"), read(vault, "b", 4), read(vault, "c"))
    assert fake.calls == [(MANY, ["a", "b", "c"])]
    assert [token.token.reveal() for token in tokens] == [
        "token of a",
        "token of b",
        "token of c",
    ]
    assert [token.generation for token in tokens] == [1, 5, 1]


async def test_a_lone_read_is_asked_by_itself_under_its_own_request_id() -> None:
    """Nobody waits for a batch: one reader is one ReadBotToken, traceable to its event."""
    fake, vault = open_vault()
    with request_id_scope("request-of-a"):
        assert (await read(vault, "a")).token.reveal() == "token of a"
    assert fake.calls == [(ONE, ["a"])]
    assert fake.request_ids == ["request-of-a"]


async def test_a_shared_call_is_nobodys_own() -> None:
    """The audit log must not say that one reader's request read another's token."""
    fake, vault = open_vault()
    with request_id_scope("request-of-a"):
        await asyncio.gather(read(vault, "a"), read(vault, "b"))
    assert fake.request_ids[0] not in {"", "request-of-a"}


async def test_a_read_does_not_wait_for_a_call_that_hangs() -> None:
    """The next tick's read goes out while an earlier call is still open."""
    fake, vault = open_vault()
    fake.gate.clear()
    first = asyncio.create_task(read(vault, "a"))
    await fake.asked.get()
    second = asyncio.create_task(read(vault, "b"))
    await fake.asked.get()
    fake.gate.set()
    await asyncio.gather(first, second)
    assert fake.calls == [(ONE, ["a"]), (ONE, ["b"])]


async def test_a_refused_read_refuses_no_neighbour() -> None:
    """Kind, reason and retry-after are the refused read's; the other has its token."""
    _, vault = open_vault()
    refused, token = await asyncio.gather(
        read(vault, BAD), read(vault, "a"), return_exceptions=True
    )
    assert isinstance(refused, RemoteError)
    assert (refused.kind, refused.reason) == (Kind.UNAVAILABLE, "KMS_UNAVAILABLE")
    assert refused.retry_after == timedelta(seconds=3)
    assert isinstance(token, BotToken)


async def test_a_failed_call_fails_each_of_its_reads_by_itself() -> None:
    """Every reader raises an error of its own, with the peer's failure as its cause."""
    fake, vault = open_vault()
    fake.error = aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata())
    one, other = await asyncio.gather(read(vault, "a"), read(vault, "b"), return_exceptions=True)
    assert isinstance(one, RemoteError)
    assert isinstance(other, RemoteError)
    assert one is not other
    assert one.reason == other.reason == "PEER_UNAVAILABLE"
    assert one.__cause__ is fake.error


async def test_an_answer_that_lacks_a_verdict_leaves_no_reader_waiting() -> None:
    """A peer that answers nonsense is an error, not a hang."""
    fake, vault = open_vault()
    fake.is_short = True
    settled = await asyncio.gather(read(vault, "a"), read(vault, "b"), return_exceptions=True)
    assert isinstance(settled[1], ValueError)


async def test_a_reader_that_goes_away_takes_nobody_along() -> None:
    """Cancelling one of two readers lets the other have its token."""
    fake, vault = open_vault()
    fake.gate.clear()
    gone, stays = (asyncio.create_task(read(vault, grant)) for grant in ("a", "b"))
    await fake.asked.get()
    gone.cancel()
    fake.gate.set()
    assert (await stays).token.reveal() == "token of b"
    assert gone.cancelled()


async def test_a_reader_that_goes_away_in_its_tick_is_not_asked_for() -> None:
    """No token is released, and no record made, for somebody who no longer wants it."""
    fake, vault = open_vault()
    gone, stays = (asyncio.create_task(read(vault, grant)) for grant in ("a", "b"))
    asyncio.get_running_loop().call_soon(gone.cancel)
    await stays
    assert fake.calls == [(ONE, ["b"])]
    assert gone.cancelled()


async def test_calls_hold_what_the_vault_takes() -> None:
    """At most 64 reads and 48 KiB of grants travel together."""
    fake, vault = open_vault()
    await asyncio.gather(*(read(vault, f"{number:03}") for number in range(130)))
    assert [len(grants) for _, grants in fake.calls] == [64, 64, 2]
    fake.calls.clear()
    await asyncio.gather(*(read(vault, f"{number:03}" + "x" * 4000) for number in range(20)))
    assert [len(grants) for _, grants in fake.calls] == [12, 8]


@pytest.mark.parametrize(("grant", "newer_than"), [("", 0), ("x" * 4097, 0), ("c", -1)])
async def test_a_malformed_read_travels_alone(grant: str, newer_than: int) -> None:
    """What the vault refuses unread would have it refuse the whole call."""
    fake, vault = open_vault()
    await asyncio.gather(read(vault, "a"), read(vault, grant, newer_than), read(vault, "b"))
    assert sorted(fake.calls) == [(ONE, [grant]), (MANY, ["a", "b"])]
