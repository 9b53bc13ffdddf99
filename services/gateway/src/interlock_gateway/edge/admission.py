"""Let a request of Slack's in: verify, read, grant, store.

This is the narrow door of the gateway: raw bytes in, one durable row with a
grant out. Nothing else mints slackGrants, and nothing here can read a row back.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_gateway.domain.slack_request import (
    Challenge,
    Ignored,
    Macs,
    SignedBody,
    SlackRequest,
    read_command,
    read_event,
    read_interaction,
    read_link_command,
    verify,
    without_tokens,
)
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_slack_grant


class Inbox(Protocol):
    """Where admitted requests wait for the worker."""

    async def put(self, request: SlackRequest, body: bytes, grant: Secret[str]) -> bool:
        """Store a request durably, once; tell whether it is new.

        Raises:
            EdgeDatabaseUnavailable: It is not known to be stored within 2 s.
        """
        ...


class Entrance(StrEnum):
    """Which of our URLs Slack called; each takes one form of request."""

    EVENTS = "events"
    INTERACTIONS = "interactions"
    COMMANDS = "commands"
    LINK_CREATE = "link/create"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that is in the inbox.

    Attributes:
        is_new: False for a replay, a retry, or a second event id of one message.
    """

    request: SlackRequest
    is_new: bool


class Admission:
    """Admit what Slack signed.

    Args:
        inbox: Where to put it.
        grant_keys: The keyset that signs slackGrants.
        macs: The MACs of a message under the signing secrets in force.
        app_id: Our app; requests for another are refused.
        clock: The time, for the signature's window and the grant.
        new_id: Makes the `jti` of grants.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        grant_keys: Keyset,
        macs: Macs,
        app_id: str,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._inbox = inbox
        self._grant_keys = grant_keys
        self._macs = macs
        self._app_id = app_id
        self._clock = clock
        self._new_id = new_id

    def verify(
        self, body: bytes, *, timestamps: Sequence[str], signatures: Sequence[str]
    ) -> SignedBody:
        """Prove that Slack signed the body; see `slack_request.verify`.

        Raises:
            InvalidSlackSignature: It is not proved.
        """
        return verify(
            timestamps=timestamps,
            signatures=signatures,
            body=body,
            macs=self._macs,
            now=self._clock.now(),
        )

    async def admit(self, entrance: Entrance, signed: SignedBody) -> Challenge | Ignored | Admitted:
        """Read a verified request and store it with its grant.

        Returns once the row is durable, so that the request may be acknowledged.

        Raises:
            MalformedSlackRequest: It is not a request as Slack documents it.
            MalformedClaims: It speaks of a time no grant may name.
            ForeignApp: It is for another app.
            EdgeDatabaseUnavailable: It could not be stored; Slack should try again.
        """
        request = _READERS[entrance](signed, app_id=self._app_id)
        if not isinstance(request, SlackRequest):
            return request
        body = without_tokens(request.kind, signed.body)
        is_new = await self._inbox.put(request, body, self._grant(request, body))
        return Admitted(request, is_new)

    def _grant(self, request: SlackRequest, body: bytes) -> Secret[str]:
        return sign_slack_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=self._new_id(),
            workspace=request.workspace,
            slack_user_id=request.slack_user_id,
            slack_user_team_id=request.slack_user_team_id,
            event_key=request.event_key,
            event_type=request.event_type,
            # Of what lies in the inbox: that is what the worker can check.
            body_sha256=hashlib.sha256(body).hexdigest(),
            event_at=request.event_at,
            is_stranger=request.is_stranger,
        )


_READERS: dict[Entrance, Callable[..., Challenge | Ignored | SlackRequest]] = {
    Entrance.EVENTS: read_event,
    Entrance.INTERACTIONS: read_interaction,
    Entrance.COMMANDS: read_command,
    Entrance.LINK_CREATE: read_link_command,
}
