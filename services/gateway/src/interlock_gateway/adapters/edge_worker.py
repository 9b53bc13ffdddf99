"""The gateway worker over gRPC, as edge may call it."""

from grpc import aio

from interlock.gateway.v1 import gateway_pb2 as pb
from interlock.gateway.v1.gateway_pb2_grpc import WorkerServiceStub
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret

# The person looks at a page meanwhile; a sweep of the worker repairs an ask that is lost.
_SECONDS = 3.0


class GrpcWorker:
    """`interlock.gateway.v1` behind edge's port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._worker = WorkerServiceStub(channel)

    async def resume_after_link(self, grant: Secret[str]) -> bool:
        """Run the question that waits; see `Worker`."""
        request = pb.ResumeAfterLinkRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._worker.ResumeAfterLink(request, timeout=_SECONDS)
        return answer.resumed
