"""The token vault over gRPC, as the worker may call it: always with a grant.

Reads that are asked for within one tick of the event loop travel in one RPC,
each with its own grant and its own verdict; a read that is alone does not wait.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import TokenServiceStub
from interlock_chassis.client import new_request_id, remote_errors, request_id_scope
from interlock_chassis.secret import Secret
from interlock_chassis.statuses import from_rpc_error, from_verdict
from interlock_gateway.worker.slack import BotToken

# The vault caps a read at 5 s.
_SECONDS = 5.0
# A revocation asks Slack whether the tokens live.
_REVOCATION_SECONDS = 25.0
_GONE = frozenset({pb.REVOCATION_OUTCOME_PURGED, pb.REVOCATION_OUTCOME_ALREADY_PURGED})
# What the vault takes in one call, and of its 64 KiB what grants may fill.
_MAX_READS = 64
_MAX_BYTES = 48 * 1024
# A longer grant would have the vault refuse its neighbours with it.
_MAX_GRANT_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class _Read:
    """A read that waits for its answer."""

    request: pb.ReadBotTokenRequest
    answer: "asyncio.Future[pb.ReadBotTokenResponse]"


class _Reads:
    """Gather the reads of one tick, and ask for them together."""

    def __init__(self, channel: aio.Channel) -> None:
        self._tokens = TokenServiceStub(channel)
        self._waiting: list[_Read] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def ask(self, request: pb.ReadBotTokenRequest) -> pb.ReadBotTokenResponse:
        """Read one token.

        Raises:
            RemoteError: The vault refused it, or does not answer.
        """
        loop = asyncio.get_running_loop()
        read = _Read(request, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(read)
        return await read.answer

    def _send(self) -> None:
        # Whoever went away within the tick is not asked for.
        waiting = [read for read in self._waiting if not read.answer.done()]
        self._waiting.clear()
        for reads in _shares(waiting):
            ask = self._ask_one if len(reads) == 1 else self._ask_many
            task = asyncio.create_task(_settle(reads, ask))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask_one(self, reads: Sequence[_Read]) -> None:
        (read,) = reads
        answer = await self._tokens.ReadBotToken(read.request, timeout=_SECONDS)
        _answer(read, answer)

    async def _ask_many(self, reads: Sequence[_Read]) -> None:
        request = pb.ReadBotTokensRequest(reads=[read.request for read in reads])
        # The call is nobody's own; the grants in it lead to each one's event.
        with request_id_scope(new_request_id()):
            answer = await self._tokens.ReadBotTokens(request, timeout=_SECONDS)
        for read, verdict in zip(reads, answer.verdicts, strict=True):
            if verdict.HasField("token"):
                _answer(read, verdict.token)
                continue
            refusal = verdict.refusal
            wait = refusal.retry_after.ToTimedelta() if refusal.HasField("retry_after") else None
            _refuse(read, from_verdict(refusal.code, refusal.reason, wait))


def _shares(waiting: Sequence[_Read]) -> Iterator[list[_Read]]:
    """Divide reads into what one call may hold."""
    share: list[_Read] = []
    size = 0
    for read in waiting:
        characters = len(read.request.grant)
        if not 0 < characters <= _MAX_GRANT_CHARACTERS or read.request.newer_than_generation < 0:
            yield [read]
            continue
        if len(share) == _MAX_READS or size + characters > _MAX_BYTES:
            yield share
            share, size = [], 0
        share.append(read)
        size += characters
    if share:
        yield share


async def _settle(
    reads: Sequence[_Read], ask: Callable[[Sequence[_Read]], Awaitable[None]]
) -> None:
    """Ask, and leave no read without an answer, whatever becomes of the call."""
    try:
        await ask(reads)
    except aio.AioRpcError as error:
        for read in reads:
            # Each gets an error of its own: raising one changes it.
            refusal = from_rpc_error(error)
            refusal.__cause__ = error
            _refuse(read, refusal)
    except Exception as error:  # noqa: BLE001 - Whatever it is, the readers must hear of it.
        for read in reads:
            _refuse(read, error)
    finally:
        for read in reads:
            read.answer.cancel()


def _answer(read: _Read, answer: pb.ReadBotTokenResponse) -> None:
    if not read.answer.done():
        read.answer.set_result(answer)


def _refuse(read: _Read, error: Exception) -> None:
    if not read.answer.done():
        read.answer.set_exception(error)


class GrpcVault:
    """The `Vault` port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._tokens = TokenServiceStub(channel)
        self._reads = _Reads(channel)

    async def read_bot_token(self, grant: Secret[str], newer_than: int) -> BotToken:
        """Read the bot token of the grant's installation."""
        answer = await self._reads.ask(
            pb.ReadBotTokenRequest(grant=grant.reveal(), newer_than_generation=newer_than)
        )
        return BotToken(Secret(answer.bot_token), answer.generation, answer.team_id)

    async def apply_revocation(
        self,
        grant: Secret[str],
        event_at: datetime,
        user_ids: Sequence[str],
        bot_user_ids: Sequence[str],
    ) -> bool:
        """Ask whether a revocation event is true, and purge if it is."""
        at = Timestamp()
        at.FromDatetime(event_at)
        request = pb.ApplyRevocationRequest(
            grant=grant.reveal(), event_time=at, user_ids=user_ids, bot_user_ids=bot_user_ids
        )
        with remote_errors():
            applied = await self._tokens.ApplyRevocation(request, timeout=_REVOCATION_SECONDS)
        return applied.outcome in _GONE

    async def uninstall(self, grant: Secret[str]) -> None:
        """Uninstall the app at Slack and shred its tokens."""
        request = pb.UninstallRequest(grant=grant.reveal())
        with remote_errors():
            await self._tokens.Uninstall(request, timeout=_REVOCATION_SECONDS)
