"""Questions that wait: for their user to link an account, or to pick an agent.

A waiting question keeps its event and grant, for 24 h at most: no grant is
renewed for longer. It goes back into its lane as a new event, once, whoever
asks for it and how often.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.lanes import Delivery
from interlock_tokens.grants import AdminGrant, AdminPurpose
from interlock_tokens.verifying import require_purpose

# Identity renews no grant of an event older than this.
WAITS_FOR = timedelta(hours=24)
# A lost ask is looked for this often at first, then ever more seldom.
FIRST_CHECK = timedelta(seconds=30)
CHECKS_AT_ONCE = 50

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WaitingQuestion:
    """A question that waits.

    Attributes:
        team: The installation's team, or its Enterprise.
        grant: The event's slackGrant, perhaps renewed since.
        choices: The agents that its picker offers; empty while it waits for a link.
    """

    event_key: str
    team: str
    slack_user_id: str
    grant: Secret[str]
    choices: Sequence[Choice]


class WaitingQuestions(Protocol):
    """Where questions wait. Raises UNAVAILABLE while the database is away."""

    async def await_link(self, delivery: Delivery, team: str, slack_user_id: str) -> None:
        """Keep a question until its user links; an older one of the same user goes."""

    async def await_agent(
        self, delivery: Delivery, team: str, slack_user_id: str, choices: Sequence[Choice]
    ) -> None:
        """Keep a question until its user picks an agent."""

    async def find_by_user(self, team: str, slack_user_id: str) -> WaitingQuestion | None:
        """Find the question that waits for a user's link."""
        ...

    async def find_by_key(self, event_key: str) -> WaitingQuestion | None:
        """Find a question that waits for an agent."""
        ...

    async def resume_linked(self, event_key: str, resume_grant: Secret[str] | None) -> bool:
        """Put a question back into its lane; False when it waits no longer."""
        ...

    async def resume_picked(self, event_key: str, choice: Choice) -> bool:
        """Put a question back into its lane with its agent; False when it waits no longer."""
        ...

    async def due_for_check(self, limit: int) -> Sequence[WaitingQuestion]:
        """List questions whose link should be asked about now, and set their next time.

        The time between two checks grows with the question's age.
        """
        ...

    async def keep_grant(self, event_key: str, grant: Secret[str]) -> None:
        """Replace a waiting question's grant by its renewal."""

    async def forget(self, event_key: str) -> None:
        """Erase a question that will never run."""


class LinkWitness(Protocol):
    """Identity, as the sweep asks it."""

    async def resolve_user(self, grant: Secret[str]) -> str:
        """Return the linked account's name; reason USER_NOT_LINKED."""
        ...

    async def renew_grant(self, grant: Secret[str]) -> Secret[str]:
        """Renew a grant; reasons EVENT_TOO_OLD, WORKSPACE_RELEASED, INVALID_TOKEN."""
        ...


async def resume_after_link(
    waiting: WaitingQuestions, grant: AdminGrant, token: Secret[str]
) -> bool:
    """Run the question that waited for the grant's Slack user; tell whether there was one.

    Args:
        waiting: Where questions wait.
        grant: What `token` says.
        token: The adminGrant of purpose `resume`; it goes along with the question.

    Raises:
        PurposeNotGranted: The grant is for something else.
    """
    require_purpose(grant, AdminPurpose.RESUME)
    team = grant.workspace.team_id or grant.workspace.enterprise_id
    question = await waiting.find_by_user(team, grant.slack_user_id)
    if question is None:
        return False
    return await waiting.resume_linked(question.event_key, token)


async def repair_lost_asks(waiting: WaitingQuestions, identity: LinkWitness) -> int:
    """Resume questions whose user linked while nobody told us; return how many."""
    resumed = 0
    for question in await waiting.due_for_check(CHECKS_AT_ONCE):
        try:
            resumed += await _check(waiting, identity, question)
        except ServiceError as error:
            if error.kind in _HOPELESS and error.reason != "USER_NOT_LINKED":
                _log.info("waiting_question_dropped", reason=error.reason, team=question.team)
                await waiting.forget(question.event_key)
    return resumed


# Asking again later cannot help.
_HOPELESS: Mapping[Kind, None] = dict.fromkeys(
    (Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.NOT_FOUND, Kind.PRECONDITION)
)


async def _check(
    waiting: WaitingQuestions, identity: LinkWitness, question: WaitingQuestion
) -> bool:
    try:
        await identity.resolve_user(question.grant)
    except ServiceError as error:
        if error.reason != "INVALID_TOKEN":
            raise
        grant = await identity.renew_grant(question.grant)
        await waiting.keep_grant(question.event_key, grant)
        await identity.resolve_user(grant)
    return await waiting.resume_linked(question.event_key, None)
