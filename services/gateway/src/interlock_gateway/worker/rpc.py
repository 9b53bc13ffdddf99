"""`interlock.gateway.v1`: what the worker does for administrators and operators."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from typing_extensions import override

from interlock.gateway.v1 import gateway_pb2 as pb
from interlock.gateway.v1.gateway_pb2_grpc import WorkerServiceServicer
from interlock_chassis.callers import CallerTable
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import current_call
from interlock_gateway.worker.answer import linked_note, plain_note
from interlock_gateway.worker.endings import EndingNews
from interlock_gateway.worker.ports import Vault
from interlock_gateway.worker.slack import Bot, BotToken, Place, Slack, SlackRefused
from interlock_gateway.worker.waiting import LinkWitness, WaitingQuestions, resume_after_link
from interlock_tokens.errors import InvalidToken
from interlock_tokens.grants import AdminGrant, AdminPurpose
from interlock_tokens.verifying import require_purpose

if TYPE_CHECKING:
    from typing import TypeVar

    _Q = TypeVar("_Q")
    _A = TypeVar("_A")
    # Generic in the stubs only.
    _Context = aio.ServicerContext[_Q, Awaitable[_A]]

SERVICE = "interlock.gateway.v1.WorkerService"
OPERATOR = "operator"

_EDGE = frozenset({"gateway-edge"})
_EDGE_AND_OPERATOR = frozenset({"gateway-edge", OPERATOR})

CALLERS: CallerTable = {
    f"/{SERVICE}/CheckHealth": _EDGE_AND_OPERATOR,
    f"/{SERVICE}/ListChannels": _EDGE,
    f"/{SERVICE}/SendTestMessage": _EDGE,
    f"/{SERVICE}/Uninstall": _EDGE,
    f"/{SERVICE}/ResumeAfterLink": _EDGE,
    f"/{SERVICE}/ListDeadLetters": _EDGE_AND_OPERATOR,
    f"/{SERVICE}/ReplayDeadLetter": _EDGE_AND_OPERATOR,
}

_log = structlog.get_logger()
# A person at a page waits for this, and edge for 3 s.
_TELLING = timedelta(seconds=1.5)
_TEST_MESSAGE = "This is a test message of the agents app: it is installed and may post here."


class DeadLetterNotFound(ServiceError):
    """There is no such given-up event, or its content is erased."""

    kind = Kind.NOT_FOUND
    reason = "DEAD_LETTER_NOT_FOUND"


class DeadLetter(Protocol):
    """An event that was given up."""

    @property
    def event_id(self) -> int:
        """The inbox's id."""
        ...

    @property
    def kind(self) -> str:
        """`event`, `interaction` or `command`."""
        ...

    @property
    def received_at(self) -> datetime:
        """When it came."""
        ...

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        ...

    @property
    def reason(self) -> str:
        """The stable reason of the last failure."""
        ...


class DeadLetters(Protocol):
    """Events that were given up. Raises UNAVAILABLE while the database is away."""

    async def list_newest(self, team: str) -> Sequence[DeadLetter]:
        """List a team's, newest first; every team's for ""."""
        ...

    async def replay(self, event_id: int, team: str) -> bool:
        """Put one back into its lane; False when it is not there, or not the team's."""
        ...


class WorkerRpc(WorkerServiceServicer):
    """The worker's RPCs, each for exactly the installation that its grant names.

    Args:
        open_admin: Verifies an adminGrant; raises InvalidToken.
    """

    def __init__(
        self,
        *,
        vault: Vault,
        identity: LinkWitness,
        slack: Slack,
        waiting: WaitingQuestions,
        dead_letters: DeadLetters,
        endings: EndingNews,
        open_admin: Callable[[Secret[str]], AdminGrant],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._vault = vault
        self._identity = identity
        self._slack = slack
        self._waiting = waiting
        self._dead_letters = dead_letters
        self._endings = endings
        self._open_admin = open_admin
        self._sleep = sleep

    @override
    async def CheckHealth(
        self,
        request: pb.CheckHealthRequest,
        context: "_Context[pb.CheckHealthRequest, pb.CheckHealthResponse]",
    ) -> pb.CheckHealthResponse:
        """Ask Slack whether the installation's bot token works."""
        bot = self._bot(request.grant, AdminPurpose.HEALTH)
        try:
            await bot.call(self._slack.check)
        except SlackRefused as refusal:
            return pb.CheckHealthResponse(healthy=False, slack_error=refusal.code)
        return pb.CheckHealthResponse(healthy=True)

    @override
    async def ListChannels(
        self,
        request: pb.ListChannelsRequest,
        context: "_Context[pb.ListChannelsRequest, pb.ListChannelsResponse]",
    ) -> pb.ListChannelsResponse:
        """List the channels the bot can see."""
        bot = self._bot(request.grant, AdminPurpose.CHANNELS)
        token = await bot.token()
        channels = await bot.call(self._slack.channels, token.team_id)
        return pb.ListChannelsResponse(
            channels=[
                pb.Channel(channel_id=each.channel_id, name=each.name, is_member=each.is_member)
                for each in channels
            ]
        )

    @override
    async def SendTestMessage(
        self,
        request: pb.SendTestMessageRequest,
        context: "_Context[pb.SendTestMessageRequest, pb.SendTestMessageResponse]",
    ) -> pb.SendTestMessageResponse:
        """Post a test message to a channel."""
        bot = self._bot(request.grant, AdminPurpose.TEST_MESSAGE)
        await bot.call(self._slack.post, Place(request.channel_id, ""), plain_note(_TEST_MESSAGE))
        return pb.SendTestMessageResponse()

    @override
    async def Uninstall(
        self,
        request: pb.UninstallRequest,
        context: "_Context[pb.UninstallRequest, pb.UninstallResponse]",
    ) -> pb.UninstallResponse:
        """Remove the app from the workspace, and end what it is saying there."""
        token = Secret(request.grant)
        admin = self._open_admin(token)
        require_purpose(admin, AdminPurpose.UNINSTALL)
        await self._vault.uninstall(token)
        try:
            await self._endings.tell(admin.workspace.team_id or admin.workspace.enterprise_id)
        except ServiceError as error:
            # The answers end by themselves, at Slack's refusal of their next words.
            _log.warning("endings_not_told", reason=error.reason)
        return pb.UninstallResponse()

    @override
    async def ResumeAfterLink(
        self,
        request: pb.ResumeAfterLinkRequest,
        context: "_Context[pb.ResumeAfterLinkRequest, pb.ResumeAfterLinkResponse]",
    ) -> pb.ResumeAfterLinkResponse:
        """Run the question that waited for a link; where none did, tell of the link."""
        token = Secret(request.grant)
        grant = self._open_admin(token)
        resumed = await resume_after_link(self._waiting, grant, token)
        if not resumed:
            await self._tell_of_link(request.grant, grant.slack_user_id)
        return pb.ResumeAfterLinkResponse(resumed=resumed)

    async def _tell_of_link(self, token: str, slack_user_id: str) -> None:
        """Tell a Slack user which account is theirs now; the link stands without it."""
        try:
            async with asyncio.timeout(_TELLING.total_seconds()):
                name = await self._identity.resolve_user(Secret(token))
                bot = self._bot(token, AdminPurpose.RESUME)
                await bot.call(self._slack.post, Place(slack_user_id, ""), linked_note(name))
        except (ServiceError, TimeoutError) as error:
            reason = error.reason if isinstance(error, ServiceError) else "TIMEOUT"
            structlog.get_logger().warning("link_not_told", reason=reason)

    @override
    async def ListDeadLetters(
        self,
        request: pb.ListDeadLettersRequest,
        context: "_Context[pb.ListDeadLettersRequest, pb.ListDeadLettersResponse]",
    ) -> pb.ListDeadLettersResponse:
        """List events that were given up."""
        letters = await self._dead_letters.list_newest(self._replay_team(request.grant))
        return pb.ListDeadLettersResponse(
            dead_letters=[
                pb.DeadLetter(
                    event_id=each.event_id,
                    event_type=each.kind,
                    received_at=_timestamp(each.received_at),
                    attempts=each.attempts,
                    reason=each.reason,
                )
                for each in letters
            ]
        )

    @override
    async def ReplayDeadLetter(
        self,
        request: pb.ReplayDeadLetterRequest,
        context: "_Context[pb.ReplayDeadLetterRequest, pb.ReplayDeadLetterResponse]",
    ) -> pb.ReplayDeadLetterResponse:
        """Put a given-up event back into its lane."""
        team = self._replay_team(request.grant)
        if not await self._dead_letters.replay(request.event_id, team):
            raise DeadLetterNotFound
        return pb.ReplayDeadLetterResponse()

    def _bot(self, grant: str, purpose: AdminPurpose) -> Bot:
        """Take the bot of the grant's installation; the vault judges the grant again."""
        token = Secret(grant)
        require_purpose(self._open_admin(token), purpose)

        async def read_token(newer_than: int) -> BotToken:
            return await self._vault.read_bot_token(token, newer_than)

        return Bot(read_token, self._sleep)

    def _replay_team(self, grant: str) -> str:
        """Return the team whose dead letters the caller may see; "" for an operator's all."""
        if not grant:
            if current_call().caller != OPERATOR:
                raise InvalidToken
            return ""
        admin = self._open_admin(Secret(grant))
        require_purpose(admin, AdminPurpose.REPLAY)
        return admin.workspace.team_id or admin.workspace.enterprise_id


def _timestamp(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp
