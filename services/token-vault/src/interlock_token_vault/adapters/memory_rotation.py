"""Rotation's ports kept in memory, for tests: they behave as the real ones, and fail on command."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

from interlock_token_vault.adapters.memory import Faults, ManualClock, MemoryStore
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import SealedToken
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationState,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import (
    LEASE,
    MOST_CANDIDATES,
    SOFT_LIMIT,
    Chain,
    ChainState,
    ClaimFacts,
    Fate,
    Standing,
    backoff,
    find_hindrance,
    is_end,
    is_in_doubt,
    jitter_of,
    judge_answer,
)
from interlock_token_vault.key_lifecycle import RefreshUnsettled
from interlock_token_vault.rotation_ports import (
    Bell,
    Candidate,
    HeldChain,
    Lease,
    LeaseHeld,
    SealedAnswer,
    SealedPair,
    Slot,
    SpoolFull,
)
from interlock_token_vault.vault import Held

_PAGE = 100


@dataclass(slots=True)
class _Row:
    generation: int
    lineage: int
    parent_ref: str = ""
    standing: Standing = Standing.IDLE
    epoch: int = 0
    lease_until: datetime | None = None
    not_before: datetime | None = None
    failures: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    is_reported: bool = False


class MemoryRotation(MemoryStore):
    """A RotationStore, a ReportStore and a NoticeStore, beside what MemoryStore is.

    Attributes:
        news: Rings when a chain changes.
    """

    def __init__(self, clock: ManualClock, *, chain_id: UUID, faults: Faults | None = None) -> None:
        super().__init__(clock, chain_id=chain_id, faults=faults)
        self.news = MemoryNews()
        self._rows: dict[Chain, _Row] = {}
        self._epochs = count(1)

    async def list_due(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List chains that should be looked at; see RotationStore."""
        with self.faults.around("store.list_due"):
            found = [held for held in self._chains(client_id) if held.refresh is not None]
            due = [held for held in found if _is_to_be_looked_at(held)]
            due.sort(key=lambda held: (held.access.expires_at or held.at, held.chain))
            return [held.chain for held in due][:limit]

    async def list_lasting(self, client_id: ClientId, after: Chain | None) -> Sequence[Chain]:
        """List chains whose tokens never end; see RotationStore."""
        with self.faults.around("store.list_lasting"):
            lasting = [
                held.chain
                for held in self._chains(client_id)
                if held.refresh is None and held.access.expires_at is None
            ]
            return sorted(chain for chain in lasting if after is None or chain > after)[:_PAGE]

    async def count_ended(self, client_id: ClientId) -> int:
        """Count the chains that need a reinstall; see NoticeStore."""
        with self.faults.around("store.count_ended"):
            ended = Standing.NEEDS_REINSTALL
            return sum(held.state.standing is ended for held in self._chains(client_id))

    async def list_unreported(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List chains that identity does not know the state of; see ReportStore."""
        with self.faults.around("store.list_unreported"):
            return [
                held.chain
                for held in self._chains(client_id)
                if not held.chain.user_id
                and self._row(held.chain, held.access).is_reported
                is not (held.state.standing is Standing.NEEDS_REINSTALL)
            ][:limit]

    async def mark_reported(self, chain: Chain, *, needs_reinstall: bool) -> None:
        """Remember what identity knows; see ReportStore."""
        with self.faults.around("store.mark_reported"):
            if chain in self._rows:
                self._rows[chain].is_reported = needs_reinstall

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """Find a chain; see RotationStore."""
        with self.faults.around("store.find_chain"):
            return self._held(chain)

    async def claim(
        self,
        held: HeldChain,
        rehearsal: SealedPair,  # noqa: ARG002 - The signature is the port's.
        event: AuditEvent,
        *,
        is_forced: bool,
    ) -> Lease:
        """Take the right to exchange; see RotationStore."""
        with self.faults.around("store.claim"):
            now, found = self._clock.now(), self._held(held.chain)
            if found is None:
                found = replace(held, state=replace(held.state, generation=0))
            hindrance = find_hindrance(found.state, held.state, found.facts, is_forced=is_forced)
            if hindrance is not None:
                raise LeaseHeld(hindrance)
            row = self._fresh_row(found)
            row.epoch, row.lease_until = next(self._epochs), now + LEASE
            is_inherited, row.standing = row.standing is Standing.SENT, Standing.SENT
            self._append([event])
            return Lease(held.chain, row.epoch, now, is_inherited)

    async def keep(
        self, answer: SealedAnswer, events: Callable[[Fate], Sequence[AuditEvent]]
    ) -> Fate:
        """Give a pair its place; see RotationStore."""
        with self.faults.around("store.keep"):
            held = self._held(answer.chain)
            fate = judge_answer(held.state if held else None, answer.facts)
            recorded = events(fate)
            if held is not None and fate is Fate.STORED:
                is_doubtful = is_in_doubt(held.state, answer.facts, answer.epoch)
                self._advance(
                    held,
                    answer.pair,
                    answer.facts.base_ref,
                    answer.epoch,
                    is_doubtful=is_doubtful,
                )
            elif held is not None and fate is Fate.KEPT_BESIDE:
                row = self._fresh_row(held)
                kept = [*row.candidates, Candidate(answer.pair, is_probed=False)]
                row.candidates = kept[-MOST_CANDIDATES:]
                if row.standing is Standing.NEEDS_REINSTALL:
                    # There is something to exchange again.
                    row.standing = Standing.DOUBTED
            self._append(recorded)
            self.news.ring(answer.chain.installation_id)
            return fate

    async def promote(self, held: HeldChain, pair: SealedPair, event: AuditEvent) -> bool:
        """Put a candidate in the place of the pair; see RotationStore."""
        with self.faults.around("store.promote"):
            found = self._held(held.chain)
            if found is None or found.state != held.state or found.refresh is None:
                return False
            displaced = Candidate(SealedPair(found.access, found.refresh), is_probed=True)
            self._advance(found, pair, found.state.parent_ref, 0)
            row = self._rows[held.chain]
            row.candidates = [*row.candidates, displaced][-MOST_CANDIDATES:]
            if found.state.is_unsettled:
                row.standing = found.state.standing
            elif found.state.standing is Standing.NEEDS_REINSTALL:
                # Its refresh token was refused with all others.
                row.standing = Standing.NEEDS_REINSTALL
            self._append([event])
            self.news.ring(held.chain.installation_id)
            return True

    async def mark_probed(
        self, chain: Chain, candidates: Sequence[TokenRef], event: AuditEvent
    ) -> None:
        """Remember that candidates were probed; see RotationStore."""
        with self.faults.around("store.mark_probed"):
            row = self._rows.get(chain)
            if row is not None:
                row.candidates = [
                    replace(each, is_probed=each.is_probed or each.pair.refresh.ref in candidates)
                    for each in row.candidates
                ]
            self._append([event])

    async def end(
        self, lease: Lease, generation: int, refused: Collection[str], event: AuditEvent
    ) -> bool:
        """End a chain whose refresh tokens were all refused; see RotationStore."""
        with self.faults.around("store.end"):
            held = self._held(lease.chain)
            if held is None or not is_end(held.state, generation, refused):
                return False
            row = self._fresh_row(held)
            row.standing = Standing.NEEDS_REINSTALL
            if row.epoch == lease.epoch:
                row.lease_until = None
            self._append([event])
            self.news.ring(lease.chain.installation_id)
            return True

    async def prove(self, lease: Lease, generation: int) -> None:
        """End the doubt about a pair; see RotationStore."""
        with self.faults.around("store.prove"):
            row = self._rows.get(lease.chain)
            if row is None or (row.generation, row.epoch) != (generation, lease.epoch):
                return
            row.lease_until = None
            if row.standing is Standing.DOUBTED:
                row.standing = Standing.IDLE

    async def give_back(
        self,
        lease: Lease,
        generation: int,
        pause: timedelta | None,
        event: AuditEvent,
        *,
        is_doubtful: bool,
    ) -> None:
        """Give a lease back; see RotationStore."""
        with self.faults.around("store.give_back"):
            held = self._held(lease.chain)
            row = self._fresh_row(held) if held else None
            if row is not None and row.epoch == lease.epoch:
                row.lease_until = None
                if row.generation == generation:
                    row.standing = Standing.SENT if lease.is_inherited else Standing.DOUBTED
                    row.failures += 1
                    row.not_before = self._clock.now() + (
                        backoff(row.failures) if pause is None else pause
                    )
            is_overtaken = row is not None and row.generation != generation
            if row is not None and is_overtaken and is_doubtful and row.lineage <= generation:
                # Whoever stored a pair meanwhile may have been overtaken by ours at Slack.
                is_idle = row.standing is Standing.IDLE
                row.standing = Standing.DOUBTED if is_idle else row.standing
            self._append([event])
            self.news.ring(lease.chain.installation_id)

    async def reseal(self, before: Held, after: Held, event: AuditEvent) -> None:
        """Put newly sealed tokens in place; see KeyStore."""
        installation_id = after.installation.id
        users = {token.user_id for token in self.tokens.get(installation_id, ())}
        held = [self._held(Chain(installation_id, user_id)) for user_id in users]
        if any(_is_moving(each) for each in held if each is not None):
            raise RefreshUnsettled
        await super().reseal(before, after, event)
        for each in held:
            if each is not None:
                self._fresh_row(each).candidates = []

    # Looking at it.

    def holder(self, chain: Chain) -> int:
        """Return the epoch of the lease in force; 0 for none."""
        held = self._held(chain)
        return held.state.epoch if held is not None and held.facts.is_leased else 0

    def held(self, chain: Chain) -> HeldChain | None:
        """Look at a chain without passing a fault."""
        return self._held(chain)

    def _chains(self, client_id: ClientId) -> Iterator[HeldChain]:
        for installation in self.installations.values():
            if installation.key.client_id != client_id:
                continue
            users = dict.fromkeys(token.user_id for token in self.tokens[installation.id])
            for user_id in users:
                held = self._held(Chain(installation.id, user_id))
                if held is not None:
                    yield held

    def _held(self, chain: Chain) -> HeldChain | None:
        installation = self.installations.get(chain.installation_id)
        wrapped = self.deks.get(chain.installation_id)
        if installation is None or installation.state is not InstallationState.ACTIVE:
            return None
        by_slot = {
            token.slot: token
            for token in self.tokens.get(chain.installation_id, ())
            if (token.kind, token.user_id) == (chain.kind, chain.user_id)
        }
        access = by_slot.get(TokenSlot.ACCESS)
        if access is None or wrapped is None:
            return None
        refresh, row = by_slot.get(TokenSlot.REFRESH), self._row(chain, access)
        state = ChainState(
            generation=access.generation,
            lineage=row.lineage,
            refresh_ref=refresh.ref if refresh else TokenRef(""),
            parent_ref=row.parent_ref,
            dek_id=access.dek_id,
            standing=row.standing,
            epoch=row.epoch,
            candidate_refs=tuple(each.pair.refresh.ref for each in row.candidates),
            failures=row.failures,
        )
        now = self._clock.now()
        return HeldChain(
            chain=chain,
            installation=installation,
            state=state,
            facts=ClaimFacts(
                is_leased=row.lease_until is not None and row.lease_until > now,
                is_due=_is_due(access, chain, now),
                is_resting=row.not_before is not None and row.not_before > now,
                is_paused=self._is_paused(installation),
                is_stopped=self._stop_of(installation.id) is not None,
            ),
            access=access,
            refresh=refresh,
            wrapped=wrapped,
            candidates=tuple(row.candidates),
            at=now,
        )

    def _row(self, chain: Chain, access: SealedToken) -> _Row:
        """Find what is known of a chain; what is about an older install is not."""
        row = self._rows.get(chain)
        if row is None:
            return _Row(access.generation, access.generation)
        if row.generation == access.generation:
            return row
        fresh = _Row(access.generation, access.generation, is_reported=row.is_reported)
        if row.standing is Standing.SENT:
            # Its holder may still ask, and each new pair ends the oldest access token.
            fresh.standing, fresh.epoch = Standing.DOUBTED, row.epoch
            fresh.lease_until = row.lease_until
        return fresh

    def _fresh_row(self, held: HeldChain) -> _Row:
        row = self._row(held.chain, held.access)
        self._rows[held.chain] = row
        return row

    def _is_paused(self, installation: Installation) -> bool:
        return any(
            other.state is InstallationState.PENDING
            and (other.key, other.tenant_id) == (installation.key, installation.tenant_id)
            for other in self.installations.values()
        )

    def _advance(
        self,
        held: HeldChain,
        pair: SealedPair,
        parent_ref: str,
        epoch: int,
        *,
        is_doubtful: bool = False,
    ) -> None:
        """Make a pair the next generation; ends the lease of the epoch."""
        chain, generation = held.chain, held.state.generation + 1
        row = self._fresh_row(held)
        row.generation, row.parent_ref, row.standing = generation, parent_ref, Standing.IDLE
        row.failures, row.not_before = 0, None
        # Slack may let more than one of a token's pairs live on.
        row.candidates = [
            replace(each, is_probed=True)
            for each in held.candidates
            if each.pair.refresh.ref != pair.refresh.ref
        ]
        if row.epoch == epoch and not is_doubtful:
            row.lease_until = None
        if is_doubtful:
            row.standing = Standing.DOUBTED
            if held.refresh is not None:
                # Slack may take the refresh token before once more.
                before = SealedPair(held.access, held.refresh)
                kept = [*row.candidates, Candidate(before, is_probed=True)]
                row.candidates = kept[-MOST_CANDIDATES:]
        others = [
            token
            for token in self.tokens[chain.installation_id]
            if (token.kind, token.user_id) != (chain.kind, chain.user_id)
        ]
        self.tokens[chain.installation_id] = (*others, pair.access, pair.refresh)
        if not chain.user_id:
            self.installations[chain.installation_id] = replace(
                held.installation, generation=generation
            )


def _is_due(access: SealedToken, chain: Chain, now: datetime) -> bool:
    return (
        access.expires_at is not None and access.expires_at - SOFT_LIMIT + jitter_of(chain) <= now
    )


def _is_moving(held: HeldChain) -> bool:
    """Tell whether a pair that Slack may go on with is not, or not certainly, the stored one."""
    is_running = held.state.is_unsettled and (held.refresh is not None or held.facts.is_leased)
    return is_running or any(
        not each.is_probed or each.pair.access.generation >= held.state.generation
        for each in held.candidates
    )


def _is_to_be_looked_at(held: HeldChain) -> bool:
    facts = held.facts
    if held.has_to_settle or facts.is_stopped:
        return not facts.is_stopped
    is_due = facts.is_due or held.state.is_unsettled
    is_free = is_due and not (facts.is_leased or facts.is_resting or facts.is_paused)
    return is_free and held.state.standing is not Standing.NEEDS_REINSTALL


class MemoryNews:
    """A News of one process."""

    def __init__(self) -> None:
        self._bells: dict[InstallationId, list[_MemoryBell]] = {}

    @contextmanager
    def subscribe(self, installation_id: InstallationId) -> Iterator[Bell]:
        """Listen for changes; see News."""
        bell = _MemoryBell()
        bells = self._bells.setdefault(installation_id, [])
        bells.append(bell)
        try:
            yield bell
        finally:
            bells.remove(bell)

    def ring(self, installation_id: InstallationId) -> None:
        """Tell those who listen."""
        for bell in self._bells.get(installation_id, []):
            bell.event.set()


class _MemoryBell:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def heard(self, patience: timedelta) -> None:
        """Return when it has rung; see Bell."""
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await self.event.wait()
        except TimeoutError:
            return
        self.event.clear()


class MemorySpool:
    """A Spool whose disk outlives the process that writes it.

    Args:
        capacity: How many answers fit.
    """

    def __init__(self, faults: Faults | None = None, *, capacity: int = 8) -> None:
        self.faults = faults or Faults()
        self.written: dict[int, SealedAnswer] = {}
        self._reserved: set[int] = set()
        self._capacity = capacity
        self._numbers = count(1)

    async def reserve(self) -> Slot:
        """Set space aside; see Spool."""
        with self.faults.around("spool.reserve"):
            if len(self._reserved) >= self._capacity:
                raise SpoolFull
            number = next(self._numbers)
            self._reserved.add(number)
            return MemorySlot(self, number)

    async def list_left(self) -> Sequence[tuple[Slot, SealedAnswer]]:
        """List what an earlier process left; see Spool."""
        with self.faults.around("spool.list_left"):
            return [(MemorySlot(self, number), left) for number, left in self.written.items()]

    def restart(self) -> None:
        """Be the disk of a new process: what was only reserved is free again."""
        self._reserved = set(self.written)

    def write(self, number: int, answer: SealedAnswer) -> None:
        """Keep an answer."""
        self.written[number] = answer

    def clear(self, number: int) -> None:
        """Forget an answer, and the space."""
        self.written.pop(number, None)
        self._reserved.discard(number)


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """Space for one answer; see Slot."""

    spool: MemorySpool
    number: int

    async def write(self, answer: SealedAnswer) -> None:
        """Keep an answer; see Slot."""
        with self.spool.faults.around("spool.write"):
            self.spool.write(self.number, answer)

    async def clear(self) -> None:
        """Forget it; see Slot."""
        with self.spool.faults.around("spool.clear"):
            self.spool.clear(self.number)
