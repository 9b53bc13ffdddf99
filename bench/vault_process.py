"""One vault process as it is deployed, with an empty RPC beside it to compare with.

The empty RPC is served by a second RpcServer of the same process, on the same
event loop, behind the same certificate, interceptors and rules: the same
request and an answer of the same size, with nothing done in between.
"""

import asyncio
import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING

from grpc import aio
from typing_extensions import override

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_token_vault.__main__ import open_kms, running
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.rpc import CALLERS

if TYPE_CHECKING:
    from typing import TypeVar

    _Q = TypeVar("_Q")
    _A = TypeVar("_A")
    # Generic in the stubs only.
    _Context = aio.ServicerContext[_Q, Awaitable[_A]]

_SERVICE = "interlock.token_vault.v1.TokenService"


class EmptyTokens(services.TokenServiceServicer):
    """TokenService without a vault."""

    def __init__(self) -> None:
        self._answer = pb.ReadBotTokenResponse(
            bot_token="x" * 57, generation=1, bot_user_id="U0BOT"
        )

    @override
    async def ReadBotToken(
        self,
        request: pb.ReadBotTokenRequest,
        context: "_Context[pb.ReadBotTokenRequest, pb.ReadBotTokenResponse]",
    ) -> pb.ReadBotTokenResponse:
        """Answer the same to everybody."""
        return self._answer


async def serve(settings: VaultSettings, stop: asyncio.Event) -> None:
    """Serve both until told to stop; prints the ports once, as JSON."""
    empty = RpcServer(
        listen="127.0.0.1:0",
        tls=settings.tls,
        callers={rpc: who for rpc, who in CALLERS.items() if rpc.startswith(f"/{_SERVICE}/")},
        caps={},
    )
    empty.add(
        services.add_TokenServiceServicer_to_server,
        EmptyTokens(),  # type: ignore[abstract] # The rest is UNIMPLEMENTED.
        _SERVICE,
    )
    async with open_kms(settings) as kms, running(settings, kms) as port:
        print(json.dumps({"vault": port, "empty": await empty.start()}), flush=True)
        await stop.wait()
        await empty.stop(timedelta(seconds=1))


if __name__ == "__main__":
    run_process("token-vault", VaultSettings, serve)
