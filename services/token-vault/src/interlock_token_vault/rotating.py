"""Exchange a chain's refresh token, once, however many processes want it done.

Secure what is needed to keep the answer; take the lease and write down what is
sent; ask Slack outside of any transaction; keep what comes back. Nothing here
forgets an answer for having come late.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from itertools import pairwise

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import CannotOpen, SealedToken
from interlock_token_vault.domain.rotation import (
    LEASE,
    Chain,
    Exchange,
    Fate,
    Hearing,
    Hindrance,
    RefreshAnswer,
    Reply,
    Step,
    find_hindrance,
)
from interlock_token_vault.install_ports import SlackUnavailable
from interlock_token_vault.keeping import Claimed, Keeper, event_of
from interlock_token_vault.rotation_ports import (
    Failpoint,
    HeldChain,
    LeaseHeld,
    RefreshRefused,
    RotationStore,
    SlackAppRefused,
    SlackRateLimited,
    SlackSilent,
    SlackTokens,
    Slot,
    Spool,
    SpoolFull,
    pass_by,
)
from interlock_token_vault.vault import DatabaseUnavailable

# Slack answers in half a second. A request after 8 to 10 s of silence still falls
# into the time in which Slack forgives a used token; one after 45 s does not.
SILENCE = timedelta(seconds=9)

# A request must reach Slack while the lease lasts, on a network that dawdles.
_LEAST_LEASE_LEFT = timedelta(seconds=5)
# Our client id or secret is wrong. Somebody must mend that; meanwhile, no flood.
_BARRED_PAUSE = timedelta(minutes=5)
_DEFAULT_WAIT = timedelta(seconds=30)

_log = structlog.get_logger()

Ask = Callable[[Secret[str]], Awaitable[RefreshAnswer]]


class Outcome(Enum):
    """What a wish to refresh came to."""

    ROTATED = "rotated"
    """The chain is a generation further."""

    NOT_NOW = "not_now"
    """It need not be, or somebody else is at it, or it rests."""

    IN_DOUBT = "in_doubt"
    """It is a generation further, and Slack may have given a newer pair that nobody heard of."""

    FAILED = "failed"
    """It is as it was; whoever comes round tries again."""

    BARRED = "barred"
    """Slack does not take the app itself, or not what it asks for."""

    NEEDS_REINSTALL = "needs_reinstall"
    """Slack takes none of its refresh tokens."""

    NOT_ROTATING = "not_rotating"
    """Its token never ends, or it is gone."""


@dataclass(slots=True)
class _Tenure:
    """What the holder of a lease has in hand.

    Attributes:
        until: When the last request may be started, by the monotonic clock.
        slots: Space in the spool that no request has taken yet.
        keeping: The answers on their way to the database.
        refused: Fingerprints of the refresh tokens that Slack refused.
        wait: What Slack asked for.
        hearing: What was heard of the requests with the newest refresh token.
        was_doubted: Whether a pair was stored as doubtful.
        was_unheard: Whether any request may have been done by Slack, unheard of.
        reason: Why the last request failed, for the record.
    """

    claimed: Claimed
    until: float
    slots: list[Slot]
    keeping: list[asyncio.Task[Fate | None]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    wait: timedelta | None = None
    hearing: Hearing = field(default_factory=Hearing)
    was_doubted: bool = False
    was_unheard: bool = False
    reason: str = ""


class Rotating:
    """Exchange refresh tokens.

    Args:
        keeper: Keeps the answers.
        clock: Only its monotonic side is read: when a lease ends is counted
            from before it was asked for.
        sleep: Waits, in seconds.
        failpoint: Where tests end the process.
    """

    def __init__(
        self,
        *,
        store: RotationStore,
        keeper: Keeper,
        slack: SlackTokens,
        spool: Spool,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        failpoint: Failpoint = pass_by,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._slack = slack
        self._spool = spool
        self._clock = clock
        self._sleep = sleep
        self._failpoint = failpoint
        self._quiet_until = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether Slack has asked the app to pause."""
        return self._clock.monotonic() < self._quiet_until

    async def refresh(self, chain: Chain, *, refused_generation: int = 0) -> Outcome:
        """Exchange a chain's refresh token if that is due and nobody else is at it.

        Commits a record when the lease is taken, and one of what came of it.

        Args:
            chain: Which.
            refused_generation: A generation whose access token Slack refused, as
                somebody says; if it is still the stored one, and Slack says so
                too, it is due.

        Raises:
            SlackUnavailable: It is not known what Slack goes on with.
            DatabaseUnavailable, KmsUnavailable, KekDisabled, CannotOpen,
                SpoolFull: The answer could not be kept, so none was asked for.
        """
        outcome = await self._refresh(chain, refused_generation)
        if outcome is Outcome.IN_DOUBT:
            # While Slack still forgives the refresh token before.
            outcome = await self._refresh(chain, 0)
        return outcome

    async def _refresh(self, chain: Chain, refused_generation: int) -> Outcome:
        held = await self._store.find_chain(chain)
        if held is not None and held.has_to_settle:
            await self._settle(held)
            held = await self._store.find_chain(chain)
        if held is None or held.refresh is None:
            return Outcome.NOT_ROTATING
        # What Slack does not take any more is due, however long it was to live.
        is_forced = refused_generation == held.state.generation
        hindrance = find_hindrance(held.state, held.state, held.facts, is_forced=is_forced)
        if hindrance is not None:
            return _outcome_of(hindrance)
        is_mere_claim = not held.facts.is_due and not held.state.is_unsettled
        if is_mere_claim and await self._keeper.is_served_alive(held):
            # Who says so is mistaken: each needless pair ends the token before the last.
            return Outcome.NOT_NOW
        spent = [held.refresh, *(each.pair.refresh for each in reversed(held.candidates))]
        return await self._exchange_under_lease(
            held, spent, self._slack.refresh, is_forced=is_forced
        )

    async def exchange_lasting(self, chain: Chain) -> Outcome:
        """Exchange a token that never ends for a pair; raises as `refresh`.

        Slack allows it once. When its answer is lost, or it is refused, the old
        token goes on.
        """
        held = await self._store.find_chain(chain)
        if held is None or held.refresh is not None or held.access.expires_at is not None:
            return Outcome.NOT_ROTATING
        return await self._exchange_under_lease(
            held, [held.access], self._slack.exchange_lasting, is_forced=True
        )

    async def _settle(self, held: HeldChain) -> None:
        try:
            await self._keeper.settle(held)
        except SlackUnavailable as error:
            _log.warning("candidates_not_settled", reason=error.reason)

    async def _exchange_under_lease(
        self, held: HeldChain, spent: Sequence[SealedToken], ask: Ask, *, is_forced: bool
    ) -> Outcome:
        """Secure what the answer needs, take the lease, and exchange."""
        data_key = self._keeper.open_key(held)
        rehearsal = await self._keeper.rehearse(held, data_key)
        first = await self._keeper.open(held, data_key, spent[0])
        slots = [await self._spool.reserve()]
        try:
            await self._failpoint("before_claim")
            # From before the database's clock is read: our lease ends no later than its.
            until = self._clock.monotonic() + (LEASE - _LEAST_LEASE_LEFT).total_seconds()
            event = event_of(
                "token.refresh_started", held.chain, held.installation.key, held.access
            )
            try:
                lease = await self._store.claim(held, rehearsal, event, is_forced=is_forced)
            except LeaseHeld as refusal:
                return _outcome_of(refusal.hindrance)
            await self._failpoint("after_claim")
            tenure = _Tenure(Claimed(held, lease, data_key), until, slots)
            exchange = await self._exchange(tenure, first, ask)
            for before, sealed in pairwise(spent):
                if not exchange.is_refused:
                    break
                tenure.refused.add(before.ref)
                token = await self._try_to_open(tenure, sealed)
                exchange = await self._exchange(tenure, token, ask) if token else exchange
            if exchange.is_refused:
                tenure.refused.add(spent[-1].ref)
            return await self._conclude(tenure, exchange)
        finally:
            for slot in slots:
                await slot.clear()

    async def _try_to_open(self, tenure: _Tenure, sealed: SealedToken) -> Secret[str] | None:
        """Open a candidate's refresh token; one that does not open is as good as refused."""
        claimed = tenure.claimed
        try:
            return await self._keeper.open(claimed.held, claimed.data_key, sealed)
        except CannotOpen:
            _log.error("candidate_not_opened", installation_id=str(claimed.held.installation.id))
            return None

    async def _exchange(self, tenure: _Tenure, token: Secret[str], ask: Ask) -> Exchange:
        """Make the requests with one refresh token, and see the last of them end."""
        exchange = Exchange()
        tenure.hearing = Hearing(is_unheard=tenure.claimed.lease.is_inherited)
        requests: list[asyncio.Task[Reply]] = []
        timer: asyncio.Task[None] | None = None
        while True:
            step = exchange.next_step(may_send=self._may_send(tenure))
            if step is Step.END:
                break
            if step is Step.SEND:
                _forget(timer)
                timer = None
                exchange = await self._send(tenure, token, ask, exchange, requests)
                continue
            if timer is None and step is not Step.OUTWAIT:
                pause = exchange.rest_s if step is Step.REST else SILENCE.total_seconds()
                timer = asyncio.create_task(_wait(self._sleep, pause))
            waited_for = [*requests, timer] if timer else requests
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if timer is not None and timer.done():
                timer = None
                is_rest = step is Step.REST
                exchange = exchange.after_rest() if is_rest else exchange.after_silence()
            # In the order of sending, so that the same events take the same course.
            for request in [each for each in requests if each.done()]:
                requests.remove(request)
                exchange = exchange.after_reply(request.result())
                _forget(timer)
                timer = None
        _forget(timer)
        return exchange

    def _may_send(self, tenure: _Tenure) -> bool:
        """Tell whether another request may be started: in the lease, and before any answer."""
        return self._clock.monotonic() < tenure.until and not tenure.hearing.is_granted

    async def _send(
        self,
        tenure: _Tenure,
        token: Secret[str],
        ask: Ask,
        exchange: Exchange,
        requests: list[asyncio.Task[Reply]],
    ) -> Exchange:
        """Start one request, if there is space for its answer and time for it in the lease."""
        if not tenure.slots:
            try:
                tenure.slots.append(await self._spool.reserve())
            except SpoolFull:
                # Nothing more is sent: no answer could be kept.
                tenure.until = self._clock.monotonic()
                return exchange
        await self._failpoint("before_send")
        # The process may have been stopped for longer than its lease lasts.
        if not self._may_send(tenure):
            return exchange
        slot = tenure.slots.pop()
        tenure.hearing.start()
        requests.append(asyncio.create_task(self._request(tenure, token, ask, slot)))
        await self._failpoint("after_send")
        return exchange.after_sending()

    async def _request(self, tenure: _Tenure, token: Secret[str], ask: Ask, slot: Slot) -> Reply:
        """Ask Slack once, and secure what it answers before anything else."""
        try:
            answer = await ask(token)
        except ServiceError as error:
            tenure.slots.append(slot)
            reply = self._reply_of(tenure, error)
            tenure.hearing.end(reply)
            tenure.was_unheard = tenure.was_unheard or reply in {Reply.SILENT, Reply.FAILED}
            return reply
        await self._failpoint("after_reply")
        tenure.hearing.end(Reply.GRANTED)
        keeping = await self._keeper.take_in(
            tenure.claimed, answer, slot, is_doubtful=tenure.hearing.is_in_doubt
        )
        tenure.was_doubted = tenure.was_doubted or tenure.hearing.is_in_doubt
        if keeping is None:
            tenure.reason = "FOREIGN_ANSWER"
            return Reply.BARRED
        tenure.keeping.append(keeping)
        return Reply.GRANTED

    def _reply_of(self, tenure: _Tenure, error: ServiceError) -> Reply:
        tenure.reason = error.reason
        match error:
            case RefreshRefused():
                return Reply.REFUSED
            case SlackRateLimited():
                tenure.wait = error.retry_after or _DEFAULT_WAIT
                self._quiet_until = self._clock.monotonic() + tenure.wait.total_seconds()
                return Reply.THROTTLED
            case SlackAppRefused():
                _log.error("slack_app_refused", slack_error=error.metadata.get("slack_error", ""))
                return Reply.BARRED
            case SlackSilent():
                return Reply.SILENT
            case _:
                return Reply.FAILED

    async def _conclude(self, tenure: _Tenure, exchange: Exchange) -> Outcome:
        """See every answer to its place, and give the lease back where none ended it."""
        fates = [await keeping for keeping in tenure.keeping]
        held, lease = tenure.claimed.held, tenure.claimed.lease
        generation = held.state.generation
        if Fate.STORED in fates or Fate.ALREADY in fates:
            return await self._conclude_stored(tenure)
        reason = fates[0].value.upper() if fates and fates[0] else tenure.reason
        try:
            # A token that never ends goes on when it cannot be exchanged.
            is_rotating = held.refresh is not None
            if (
                exchange.is_refused
                and is_rotating
                and await self._store.end(
                    lease,
                    generation,
                    tenure.refused,
                    self._event(tenure, "token.refresh_refused", reason),
                )
            ):
                _log.error("chain_needs_reinstall", installation_id=str(held.installation.id))
                return Outcome.NEEDS_REINSTALL
            pause = _BARRED_PAUSE if Reply.BARRED in exchange.replies else tenure.wait
            if not is_rotating:
                # Nobody but the command's caller comes round for it.
                pause = timedelta(0)
            event = self._event(tenure, "token.refresh_failed", reason)
            await self._store.give_back(
                lease, generation, pause, event, is_doubtful=tenure.was_unheard
            )
        except DatabaseUnavailable:
            # The lease ends by itself, and the next holder finds the same out.
            _log.warning("rotation_lease_left", installation_id=str(held.installation.id))
        is_barred = tenure.reason == SlackAppRefused.reason
        return Outcome.BARRED if is_barred else Outcome.FAILED

    async def _conclude_stored(self, tenure: _Tenure) -> Outcome:
        """Say whether the stored pair is certainly the newest one."""
        held, lease = tenure.claimed.held, tenure.claimed.lease
        try:
            if tenure.hearing.is_in_doubt:
                event = self._event(tenure, "token.doubted", tenure.reason)
                await self._store.give_back(
                    lease, held.state.generation, None, event, is_doubtful=True
                )
                return Outcome.IN_DOUBT
            if tenure.was_doubted:
                await self._store.prove(lease, held.state.generation + 1)
        except DatabaseUnavailable:
            _log.warning("rotation_lease_left", installation_id=str(held.installation.id))
        return Outcome.ROTATED

    def _event(self, tenure: _Tenure, action: str, reason: str) -> AuditEvent:
        held = tenure.claimed.held
        event = event_of(action, held.chain, held.installation.key, held.access)
        return replace(event, outcome=reason)


def _outcome_of(hindrance: Hindrance) -> Outcome:
    is_end = hindrance is Hindrance.NEEDS_REINSTALL
    return Outcome.NEEDS_REINSTALL if is_end else Outcome.NOT_NOW


def _forget(timer: "asyncio.Task[None] | None") -> None:
    if timer is not None:
        timer.cancel()


async def _wait(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)
