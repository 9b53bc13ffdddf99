"""The gateway worker over gRPC, as edge may call it."""

from grpc import aio

from interlock.gateway.v1 import gateway_pb2 as pb
from interlock.gateway.v1.gateway_pb2_grpc import WorkerServiceStub
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret
from interlock_gateway.edge.ports import Channel, Health

# The person looks at a page meanwhile; a sweep of the worker repairs an ask that is lost.
_RESUME_SECONDS = 3.0
# The worker reads a token and asks Slack; its own calls are capped at 5 s.
_SECONDS = 5.0
# The worker gives the vault 25 s, and the vault asks Slack and identity.
_UNINSTALL_SECONDS = 28.0


class GrpcWorker:
    """`interlock.gateway.v1` behind edge's port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._worker = WorkerServiceStub(channel)

    async def resume_after_link(self, grant: Secret[str]) -> bool:
        """Run the question that waits; see `Worker`."""
        request = pb.ResumeAfterLinkRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._worker.ResumeAfterLink(request, timeout=_RESUME_SECONDS)
        return answer.resumed

    async def check_health(self, grant: Secret[str]) -> Health:
        """Ask Slack whether the bot's token works; see `Worker`."""
        request = pb.CheckHealthRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._worker.CheckHealth(request, timeout=_SECONDS)
        return Health(answer.healthy, answer.slack_error)

    async def list_channels(self, grant: Secret[str]) -> tuple[Channel, ...]:
        """List the channels that the bot can see; see `Worker`."""
        request = pb.ListChannelsRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._worker.ListChannels(request, timeout=_SECONDS)
        return tuple(
            Channel(each.channel_id, each.name, each.is_member) for each in answer.channels
        )

    async def send_test_message(self, grant: Secret[str], channel_id: str) -> None:
        """Post a test message; see `Worker`."""
        request = pb.SendTestMessageRequest(grant=grant.reveal(), channel_id=channel_id)
        with remote_errors():
            await self._worker.SendTestMessage(request, timeout=_SECONDS)

    async def uninstall(self, grant: Secret[str]) -> None:
        """Uninstall at Slack and in the vault; see `Worker`."""
        request = pb.UninstallRequest(grant=grant.reveal())
        with remote_errors():
            await self._worker.Uninstall(request, timeout=_UNINSTALL_SECONDS)
