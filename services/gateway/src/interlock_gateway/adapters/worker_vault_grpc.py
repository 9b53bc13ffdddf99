"""The token vault over gRPC, as the worker may call it: always with a grant."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import TokenServiceStub
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret
from interlock_gateway.worker.slack import BotToken

# The vault caps a read at 5 s.
_SECONDS = 5.0
# A revocation asks Slack whether the tokens live.
_REVOCATION_SECONDS = 20.0


class GrpcVault:
    """The `Vault` port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._tokens = TokenServiceStub(channel)

    async def read_bot_token(self, grant: Secret[str], newer_than: int) -> BotToken:
        """Read the bot token of the grant's installation."""
        request = pb.ReadBotTokenRequest(grant=grant.reveal(), newer_than_generation=newer_than)
        with remote_errors():
            answer = await self._tokens.ReadBotToken(request, timeout=_SECONDS)
        return BotToken(Secret(answer.bot_token), answer.generation, answer.team_id)

    async def apply_revocation(
        self,
        grant: Secret[str],
        event_at: datetime,
        user_ids: Sequence[str],
        bot_user_ids: Sequence[str],
    ) -> None:
        """Ask whether a revocation event is true, and purge if it is."""
        at = Timestamp()
        at.FromDatetime(event_at)
        request = pb.ApplyRevocationRequest(
            grant=grant.reveal(), event_time=at, user_ids=user_ids, bot_user_ids=bot_user_ids
        )
        with remote_errors():
            await self._tokens.ApplyRevocation(request, timeout=_REVOCATION_SECONDS)
