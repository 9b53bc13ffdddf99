"""What rotation needs of others: the database, Slack, a disk of its own, and word of news."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import SealedToken, WrappedDek
from interlock_token_vault.domain.install import BotIdentity
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    TokenRef,
)
from interlock_token_vault.domain.rotation import (
    AnswerFacts,
    Chain,
    ChainState,
    ClaimFacts,
    Fate,
    Hindrance,
    RefreshAnswer,
)
from interlock_token_vault.install_ports import SlackUnavailable

Failpoint = Callable[[str], Awaitable[None]]
"""Called where a process may die, by the name of the place; does nothing outside tests."""


async def pass_by(_: str) -> None:
    """Do nothing at a failpoint."""


class LeaseHeld(ServiceError):
    """The chain is not to be exchanged now: somebody is at it, or it need not be.

    Attributes:
        hindrance: Why.
    """

    kind = Kind.LOST_RACE
    reason = "LEASE_HELD"

    def __init__(self, hindrance: Hindrance) -> None:
        super().__init__(metadata={"hindrance": hindrance.value})
        self.hindrance = hindrance


class RefreshRefused(ServiceError):
    """Slack does not take the refresh token, now or ever."""

    kind = Kind.PRECONDITION
    reason = "REFRESH_REFUSED"


class SlackAppRefused(ServiceError):
    """Slack does not take the app's own credentials, or its settings forbid the call."""

    kind = Kind.PRECONDITION
    reason = "SLACK_APP_REFUSED"


class SlackRateLimited(ServiceError):
    """Slack asks for a pause."""

    kind = Kind.EXHAUSTED
    reason = "SLACK_RATE_LIMITED"


class SlackSilent(SlackUnavailable):
    """Slack took the request and has not answered for as long as one waits."""

    reason = "SLACK_SILENT"


class SpoolFull(ServiceError):
    """The spool cannot take another answer of Slack's, so none is asked for."""

    kind = Kind.UNAVAILABLE
    reason = "SPOOL_FULL"


@dataclass(frozen=True, slots=True)
class SealedPair:
    """An access token and the refresh token of its successor."""

    access: SealedToken
    refresh: SealedToken


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair kept beside the chain's own.

    Attributes:
        is_probed: Whether `auth.test` was asked which of them to serve.
    """

    pair: SealedPair
    is_probed: bool


@dataclass(frozen=True, slots=True)
class HeldChain:
    """A chain as it is stored.

    Attributes:
        refresh: None for a token that never ends.
        candidates: The oldest first.
        at: The database's clock.
    """

    chain: Chain
    installation: Installation
    state: ChainState
    facts: ClaimFacts
    access: SealedToken
    refresh: SealedToken | None
    wrapped: WrappedDek
    candidates: tuple[Candidate, ...]
    at: datetime

    @property
    def has_to_settle(self) -> bool:
        """Whether `auth.test` is to be asked which pair to serve, and may be."""
        is_open = not all(each.is_probed for each in self.candidates)
        return is_open and not self.facts.is_stopped


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to exchange a chain, for `LEASE` from `at`.

    Attributes:
        at: The database's clock.
        is_inherited: Whether a holder before was never heard of: a request of its
            own may still be on its way to Slack, and be done there after ours.
    """

    chain: Chain
    epoch: int
    at: datetime
    is_inherited: bool


@dataclass(frozen=True, slots=True)
class SealedAnswer:
    """A pair that Slack gave, sealed for the generation after the one it was exchanged at."""

    chain: Chain
    epoch: int
    facts: AnswerFacts
    pair: SealedPair


class RotationStore(Protocol):
    """The vault's database, as rotation needs it.

    Each method is one transaction that also commits the records given, by the
    database's clock; what changes a chain tells everybody who listens. All
    raise DatabaseUnavailable; then it is not known whether the transaction was
    committed, and the method may be repeated.
    """

    async def list_due(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List chains that should be looked at, those that end first before the others.

        Due ones that nothing hinders, and those with a candidate to probe; none
        whose tokens are frozen or on hold.
        """
        ...

    async def list_lasting(self, client_id: ClientId, after: Chain | None) -> Sequence[Chain]:
        """List chains whose tokens never end, 100 at a time, in order."""
        ...

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """Find a chain of an active installation."""
        ...

    async def claim(
        self,
        held: HeldChain,
        rehearsal: SealedPair,
        event: AuditEvent,
        *,
        is_forced: bool,
    ) -> Lease:
        """Take the right to exchange a chain as it was found, and write down what is sent.

        At most one lease is live per chain, by the database's clock.

        Args:
            held: What `find_chain` found.
            rehearsal: Written to the place of the answer and taken back again,
                so that what would refuse the answer refuses the lease.
            event: The record.
            is_forced: Whether a token that is not due may be exchanged.

        Raises:
            LeaseHeld: Something hinders it.
        """
        ...

    async def keep(
        self, answer: SealedAnswer, events: Callable[[Fate], Sequence[AuditEvent]]
    ) -> Fate:
        """Give a pair its place, by `judge_answer`; asked twice it says `ALREADY`.

        Ends the lease of its epoch when the pair becomes the chain's next
        generation. One that is in doubt, by `is_in_doubt`, leaves the chain in doubt
        and the lease as it is, and the pair before it beside: Slack may take that
        one once more.
        """
        ...

    async def promote(self, held: HeldChain, pair: SealedPair, event: AuditEvent) -> bool:
        """Put a candidate, sealed anew, in the place of the pair as it was found.

        The pair that it displaces is kept beside. A chain that ended stays so: of its
        pairs one may still be served, and none exchanged.

        Returns:
            Whether the chain was still as found.
        """
        ...

    async def mark_probed(
        self, chain: Chain, candidates: Sequence[TokenRef], event: AuditEvent
    ) -> None:
        """Remember that candidates were probed and not promoted."""
        ...

    async def end(
        self, lease: Lease, generation: int, refused: Collection[str], event: AuditEvent
    ) -> bool:
        """End a chain whose refresh tokens were all refused, by `is_end`, and the lease.

        Returns:
            Whether the chain ended.
        """
        ...

    async def prove(self, lease: Lease, generation: int) -> None:
        """End the doubt about a pair, and the lease that it was stored under."""
        ...

    async def give_back(
        self,
        lease: Lease,
        generation: int,
        pause: timedelta | None,
        event: AuditEvent,
        *,
        is_doubtful: bool,
    ) -> None:
        """Give a lease back, and leave the chain in doubt; one held by others stays.

        What was inherited is left to inherit.

        Args:
            lease: What `claim` gave.
            generation: What was claimed; of another one the pause is not kept.
            pause: How long to leave the chain alone; None: `backoff` of the failures in a row.
            event: The record.
            is_doubtful: Whether a request was never heard of, so that a pair which
                somebody else stored meanwhile is in doubt too.
        """
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...


class SlackTokens(Protocol):
    """Slack's methods that renew, prove and end tokens."""

    async def refresh(self, refresh_token: Secret[str]) -> RefreshAnswer:
        """Exchange a refresh token.

        Raises:
            RefreshRefused: Slack does not take it.
            SlackRateLimited: Slack asks for a pause, its `retry_after`; nothing happened.
            SlackAppRefused: Slack does not take the app's credentials.
            SlackSilent: No answer in 45 s; it may be used up.
            SlackUnavailable: No connection, or an error of Slack's; it may be used up.
            SlackAnswerUnusable: An answer that names no pair; it may be used up.
        """
        ...

    async def exchange_lasting(self, token: Secret[str]) -> RefreshAnswer:
        """Exchange a token that never ends for a pair, once in its life; raises as `refresh`."""
        ...

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is.

        Raises:
            TokenDead: Slack no longer takes it.
            SlackUnavailable: No usable answer.
        """
        ...

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; raises as `test`."""
        ...


class Slot(Protocol):
    """Space in the spool for one answer."""

    async def write(self, answer: SealedAnswer) -> None:
        """Put an answer where a restart finds it; returns once it is on the disk.

        Raises:
            SpoolFull: The disk does not take it all the same.
        """
        ...

    async def clear(self) -> None:
        """Forget the answer, and give the space back."""
        ...


class Spool(Protocol):
    """A place on a disk of this process's own, for answers that are not in the database yet."""

    async def reserve(self) -> Slot:
        """Set space for one answer aside.

        Raises:
            SpoolFull: There is none.
        """
        ...

    async def list_left(self) -> Sequence[tuple[Slot, SealedAnswer]]:
        """List the answers that an earlier process left, the oldest first."""
        ...


class Bell(Protocol):
    """Rings when something changed."""

    async def heard(self, patience: timedelta) -> None:
        """Return when it has rung since the last time, or when the patience is over."""
        ...


class News(Protocol):
    """Word from the database that a chain changed, whichever process did it."""

    def subscribe(self, installation_id: InstallationId) -> AbstractContextManager[Bell]:
        """Listen for changes of an installation's chains while the block runs."""
        ...
