"""The vault's database, as rotation needs it, and word of what changes in it.

Every change of a chain locks its installation's row first, as installs, purges
and new data keys do: what was judged is what is written to.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
import structlog

from interlock_token_vault.adapters.journal import Journal, failing_closed
from interlock_token_vault.adapters.rows import (
    Connection,
    Pool,
    Row,
    dek_of,
    installation_of,
    query,
)
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import CannotOpen, SealedBytes, SealedToken
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    InstallationId,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import (
    JITTER,
    LEASE,
    MOST_CANDIDATES,
    PENDING_INSTALL_PAUSE,
    SOFT_LIMIT,
    Chain,
    ChainState,
    ClaimFacts,
    Fate,
    Hindrance,
    Standing,
    backoff,
    find_hindrance,
    is_end,
    is_in_doubt,
    judge_answer,
)
from interlock_token_vault.rotation_ports import (
    Bell,
    Candidate,
    Failpoint,
    HeldChain,
    Lease,
    LeaseHeld,
    SealedAnswer,
    SealedPair,
    pass_by,
)

_CHANNEL = "vault_rotation"
_PAGE = 100
_JITTER_S = int(JITTER.total_seconds())
_RECONNECT_S = 1.0
_BEFORE_ALL = Chain(InstallationId(UUID(int=0)))

_log = structlog.get_logger()


class PostgresRotation:
    """A RotationStore, a ReportStore and a NoticeStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
        failpoint: Where tests end the process.
    """

    def __init__(self, pool: Pool, journal: Journal, *, failpoint: Failpoint = pass_by) -> None:
        self._pool = pool
        self._journal = journal
        self._failpoint = failpoint

    async def list_due(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List chains that should be looked at; see RotationStore."""
        with failing_closed():
            rows = await self._pool.fetch(
                query("list_due_chains"),
                client_id,
                SOFT_LIMIT,
                _JITTER_S,
                PENDING_INSTALL_PAUSE,
                limit,
            )
        return [_chain_of(row) for row in rows]

    async def list_lasting(self, client_id: ClientId, after: Chain | None) -> Sequence[Chain]:
        """List chains whose tokens never end; see RotationStore."""
        place = after or _BEFORE_ALL
        with failing_closed():
            rows = await self._pool.fetch(
                query("list_lasting_chains"), client_id, place.installation_id, place.user_id, _PAGE
            )
        return [_chain_of(row) for row in rows]

    async def count_ended(self, client_id: ClientId) -> int:
        """Count the chains that need a reinstall; see NoticeStore."""
        with failing_closed():
            ended: int = await self._pool.fetchval(query("count_ended_chains"), client_id)
        return ended

    async def list_unreported(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List chains that identity does not know the state of; see ReportStore."""
        with failing_closed():
            rows = await self._pool.fetch(query("list_unreported_chains"), client_id, limit)
        return [_chain_of(row) for row in rows]

    async def mark_reported(self, chain: Chain, *, needs_reinstall: bool) -> None:
        """Remember what identity knows; see ReportStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction():
                await _name(connection, chain)
                await connection.execute(query("mark_reported"), *_names(chain), needs_reinstall)

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """Find a chain; see RotationStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await _name(connection, chain)
                return await _find(connection, chain)

    async def claim(
        self, held: HeldChain, rehearsal: SealedPair, event: AuditEvent, *, is_forced: bool
    ) -> Lease:
        """Take the right to exchange; see RotationStore."""
        chain = held.chain

        async def work(connection: Connection) -> tuple[Lease, Sequence[AuditEvent]]:
            found = await _lock(connection, chain)
            if found is None:
                raise LeaseHeld(Hindrance.CHANGED)
            hindrance = find_hindrance(found.state, held.state, found.facts, is_forced=is_forced)
            if hindrance is not None:
                raise LeaseHeld(hindrance)
            await _rehearse(connection, found, rehearsal)
            row = await connection.fetchrow(
                query("lease_chain"),
                *_names(chain),
                found.state.generation,
                found.state.lineage,
                found.state.parent_ref,
                found.state.refresh_ref,
                LEASE,
                found.state.failures,
            )
            if row is None:
                raise AssertionError("what is inserted or updated is returned")
            is_inherited = found.state.standing is Standing.SENT
            return Lease(chain, row["epoch"], row["at"], is_inherited), [event]

        return await self._journal.commit(work)

    async def keep(
        self, answer: SealedAnswer, events: Callable[[Fate], Sequence[AuditEvent]]
    ) -> Fate:
        """Give a pair its place; see RotationStore."""

        async def work(connection: Connection) -> tuple[Fate, Sequence[AuditEvent]]:
            held = await _lock(connection, answer.chain)
            fate = judge_answer(held.state if held else None, answer.facts)
            if held is not None and fate is Fate.STORED:
                is_doubtful = is_in_doubt(held.state, answer.facts, answer.epoch)
                await _advance(
                    connection,
                    held,
                    answer.pair,
                    answer.facts.base_ref,
                    answer.epoch,
                    is_doubtful=is_doubtful,
                )
            elif held is not None and fate is Fate.KEPT_BESIDE:
                # There is something to exchange again.
                await connection.execute(
                    query("revive_chain"), *_names(answer.chain), held.state.generation
                )
                candidate = Candidate(answer.pair, is_probed=False)
                await _insert_candidate(connection, held, candidate)
            await self._failpoint("before_notify")
            await connection.execute(query("tell_of_chain"), answer.chain.installation_id)
            return fate, events(fate)

        return await self._journal.commit(work)

    async def promote(self, held: HeldChain, pair: SealedPair, event: AuditEvent) -> bool:
        """Put a candidate in the place of the pair; see RotationStore."""

        async def work(connection: Connection) -> tuple[bool, Sequence[AuditEvent]]:
            found = await _lock(connection, held.chain)
            if found is None or found.state != held.state or found.refresh is None:
                return False, []
            await _advance(connection, found, pair, found.state.parent_ref, 0)
            if found.state.is_unsettled:
                await connection.execute(
                    query("unsettle_chain"),
                    *_names(held.chain),
                    found.state.generation + 1,
                    found.state.standing.value,
                )
            elif found.state.standing is Standing.NEEDS_REINSTALL:
                # Its refresh token was refused with all others.
                await connection.execute(
                    query("end_chain"), *_names(held.chain), found.state.generation + 1, 0
                )
            displaced = Candidate(SealedPair(found.access, found.refresh), is_probed=True)
            await _insert_candidate(connection, found, displaced)
            await connection.execute(query("tell_of_chain"), held.chain.installation_id)
            return True, [event]

        return await self._journal.commit(work)

    async def mark_probed(
        self, chain: Chain, candidates: Sequence[TokenRef], event: AuditEvent
    ) -> None:
        """Remember that candidates were probed; see RotationStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, chain)
            await connection.execute(query("mark_probed"), *_names(chain), list(candidates))
            return None, [event]

        await self._journal.commit(work)

    async def end(
        self, lease: Lease, generation: int, refused: Collection[str], event: AuditEvent
    ) -> bool:
        """End a chain whose refresh tokens were all refused; see RotationStore."""

        async def work(connection: Connection) -> tuple[bool, Sequence[AuditEvent]]:
            held = await _lock(connection, lease.chain)
            if held is None or not is_end(held.state, generation, refused):
                return False, []
            await connection.execute(
                query("end_chain"), *_names(lease.chain), generation, lease.epoch
            )
            await connection.execute(query("tell_of_chain"), lease.chain.installation_id)
            return True, [event]

        return await self._journal.commit(work)

    async def prove(self, lease: Lease, generation: int) -> None:
        """End the doubt about a pair; see RotationStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            await _name(connection, lease.chain)
            await connection.execute(
                query("prove_chain"), *_names(lease.chain), generation, lease.epoch
            )
            return None, []

        await self._journal.commit(work)

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

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            held = await _lock(connection, lease.chain)
            if held is not None and held.state.generation == generation:
                standing = Standing.SENT if lease.is_inherited else Standing.DOUBTED
                await connection.execute(
                    query("give_back_chain"),
                    *_names(lease.chain),
                    generation,
                    lease.epoch,
                    backoff(held.state.failures + 1) if pause is None else pause,
                    standing.value,
                )
            elif held is not None:
                await connection.execute(
                    query("give_back_lease"), *_names(lease.chain), lease.epoch
                )
                if is_doubtful and held.state.lineage <= generation:
                    # Whoever stored a pair meanwhile may have been overtaken by ours at Slack.
                    await connection.execute(
                        query("unsettle_chain"),
                        *_names(lease.chain),
                        held.state.generation,
                        Standing.DOUBTED.value,
                    )
            await connection.execute(query("tell_of_chain"), lease.chain.installation_id)
            return None, [event]

        await self._journal.commit(work)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see RotationStore."""
        await self._journal.record(events)


async def _rehearse(connection: Connection, held: HeldChain, pair: SealedPair) -> None:
    """Write a pair to the place of the answer, as `keep` would, and take it back."""
    savepoint = connection.transaction()
    await savepoint.start()
    # What it fails with ends the whole transaction.
    await _advance(connection, held, pair, held.state.refresh_ref, 0)
    await savepoint.rollback()


async def _advance(
    connection: Connection,
    held: HeldChain,
    pair: SealedPair,
    parent_ref: str,
    epoch: int,
    *,
    is_doubtful: bool = False,
) -> None:
    """Make a pair the chain's next generation; ends the lease of the epoch."""
    chain, generation = held.chain, held.state.generation
    if not chain.user_id and not await connection.fetchval(
        query("raise_generation"), chain.installation_id, generation, generation + 1
    ):
        raise CannotOpen
    for token in (pair.access, pair.refresh):
        await connection.execute(
            query("put_token"),
            chain.installation_id,
            chain.kind.value,
            token.slot.value,
            chain.user_id,
            token.generation,
            token.dek_id,
            token.sealed,
            token.ref,
            token.expires_at,
        )
    # Slack may let more than one of a token's pairs live on.
    await connection.execute(
        query("keep_candidates"), *_names(chain), held.state.lineage, pair.refresh.ref
    )
    await connection.execute(query("probe_candidates"), *_names(chain))
    standing = Standing.DOUBTED if is_doubtful else Standing.IDLE
    row = (*_names(chain), generation + 1, held.state.lineage, parent_ref, standing.value)
    # The lease of a doubtful pair's holder goes on.
    await connection.execute(query("put_chain"), *row, 0 if is_doubtful else epoch)
    if is_doubtful and held.refresh is not None:
        # Slack may take the refresh token before once more.
        before = SealedPair(held.access, held.refresh)
        await _insert_candidate(connection, held, Candidate(before, is_probed=True))


async def _insert_candidate(connection: Connection, held: HeldChain, candidate: Candidate) -> None:
    access, refresh = candidate.pair.access, candidate.pair.refresh
    await connection.execute(
        query("insert_candidate"),
        *_names(held.chain),
        held.state.lineage,
        access.generation,
        access.dek_id,
        access.sealed,
        access.ref,
        access.expires_at,
        refresh.sealed,
        refresh.ref,
        candidate.is_probed,
    )
    await connection.execute(query("trim_candidates"), *_names(held.chain), MOST_CANDIDATES)


async def _name(connection: Connection, chain: Chain) -> None:
    """Name the only installation that the rest of the transaction can see."""
    await connection.execute(query("name_installations"), [chain.installation_id])


async def _lock(connection: Connection, chain: Chain) -> HeldChain | None:
    """Find a chain, and keep everybody else from changing it until the commit."""
    await _name(connection, chain)
    await connection.fetchrow(query("lock_active"), chain.installation_id)
    return await _find(connection, chain)


async def _find(connection: Connection, chain: Chain) -> HeldChain | None:
    row = await connection.fetchrow(
        query("find_chain"), *_names(chain), SOFT_LIMIT, _JITTER_S, PENDING_INSTALL_PAUSE
    )
    wrapped = dek_of(row) if row else None
    if row is None or wrapped is None:
        return None
    rows = await connection.fetch(
        query("list_candidates"), *_names(chain), row["lineage"], row["dek_id"]
    )
    candidates = tuple(_candidate_of(chain, each) for each in rows)
    return HeldChain(
        chain=chain,
        installation=installation_of(row),
        state=_state_of(row, candidates),
        facts=ClaimFacts(
            is_leased=row["is_leased"],
            is_due=row["is_due"],
            is_resting=row["is_resting"],
            is_paused=row["is_paused"],
            is_stopped=row["is_stopped"],
        ),
        access=_token(chain, row, TokenSlot.ACCESS),
        refresh=_token(chain, row, TokenSlot.REFRESH) if row["refresh_ref"] else None,
        wrapped=wrapped,
        candidates=candidates,
        at=row["read_at"],
    )


def _state_of(row: Row, candidates: Sequence[Candidate]) -> ChainState:
    return ChainState(
        generation=row["token_generation"],
        lineage=row["lineage"],
        refresh_ref=TokenRef(row["refresh_ref"] or ""),
        parent_ref=row["parent_ref"],
        dek_id=DekId(row["dek_id"]),
        standing=Standing(row["standing"]),
        epoch=row["epoch"],
        candidate_refs=tuple(each.pair.refresh.ref for each in candidates),
        failures=row["failures"],
    )


def _candidate_of(chain: Chain, row: Row) -> Candidate:
    pair = SealedPair(_token(chain, row, TokenSlot.ACCESS), _token(chain, row, TokenSlot.REFRESH))
    return Candidate(pair, row["is_probed"])


def _token(chain: Chain, row: Row, slot: TokenSlot) -> SealedToken:
    """Read one half of a pair from a row that holds both."""
    half = slot.value
    return SealedToken(
        kind=chain.kind,
        slot=slot,
        user_id=chain.user_id,
        generation=row["token_generation"],
        dek_id=DekId(row["dek_id"]),
        sealed=SealedBytes(row[f"{half}_sealed"]),
        ref=TokenRef(row[f"{half}_ref"]),
        expires_at=row["expires_at"] if slot is TokenSlot.ACCESS else None,
    )


def _names(chain: Chain) -> tuple[InstallationId, str, str]:
    return chain.installation_id, chain.kind.value, chain.user_id


def _chain_of(row: Row) -> Chain:
    return Chain(InstallationId(row["installation_id"]), row["user_id"])


class PostgresNews:
    """A News over LISTEN, with a connection of its own."""

    def __init__(self) -> None:
        self._bells: dict[InstallationId, list[_Bell]] = {}

    @contextmanager
    def subscribe(self, installation_id: InstallationId) -> Iterator[Bell]:
        """Listen for changes; see News."""
        bell = _Bell()
        bells = self._bells.setdefault(installation_id, [])
        bells.append(bell)
        try:
            yield bell
        finally:
            bells.remove(bell)
            if not bells:
                del self._bells[installation_id]

    async def listen(self, pool: Pool) -> None:
        """Hear what the database says, until cancelled; a lost connection is made again."""
        while True:
            try:
                async with pool.acquire() as connection:
                    await self._listen_on(connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                _log.info("rotation_news_lost", cause=type(error).__name__)
            await asyncio.sleep(_RECONNECT_S)

    async def _listen_on(self, connection: Connection) -> None:
        closed = asyncio.Event()

        def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            self._ring(InstallationId(UUID(str(payload))))

        def lose(_connection: object) -> None:
            closed.set()

        connection.add_termination_listener(lose)
        await connection.add_listener(_CHANNEL, hear)
        try:
            # What changed while nobody listened is not told again.
            for installation_id in list(self._bells):
                self._ring(installation_id)
            await closed.wait()
        finally:
            if not connection.is_closed():
                connection.remove_termination_listener(lose)
                await connection.remove_listener(_CHANNEL, hear)

    def _ring(self, installation_id: InstallationId) -> None:
        for bell in self._bells.get(installation_id, []):
            bell.rung.set()


class _Bell:
    def __init__(self) -> None:
        self.rung = asyncio.Event()

    async def heard(self, patience: timedelta) -> None:
        """Return when it has rung; see Bell."""
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await self.rung.wait()
        except TimeoutError:
            return
        self.rung.clear()


@asynccontextmanager
async def open_news(pool: Pool) -> AsyncIterator[PostgresNews]:
    """Listen for changed chains until the block ends."""
    news = PostgresNews()
    listening = asyncio.create_task(news.listen(pool))
    try:
        yield news
    finally:
        listening.cancel()
        await asyncio.wait([listening])
