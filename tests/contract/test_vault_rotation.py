"""What rotation's store promises, asked of the one in memory and of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from interlock_chassis.database import open_pool
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.adapters.memory import ManualClock
from interlock_token_vault.adapters.memory_rotation import MemoryRotation
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_keys import PostgresKeys
from interlock_token_vault.adapters.postgres_rotation import PostgresRotation, open_news
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import SealedBytes, SealedToken, WrappedDek
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import (
    HARD_LIMIT,
    LEASE,
    MOST_CANDIDATES,
    SOFT_LIMIT,
    AnswerFacts,
    Chain,
    Fate,
    Hindrance,
    Standing,
)
from interlock_token_vault.key_lifecycle import KeyStore, RefreshUnsettled
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.reporting import NoticeStore, ReportStore
from interlock_token_vault.rotation_ports import (
    HeldChain,
    Lease,
    LeaseHeld,
    News,
    RotationStore,
    SealedAnswer,
    SealedPair,
)
from interlock_token_vault.vault import DatabaseUnavailable, Held, Stop, VaultStore

TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
NORTHWIND = TenantId("northwind")
ORIGIN = Origin(actor="token-vault", rpc="rotation")
EVENT = AuditEvent("token.refresh_started", ORIGIN)
LIFE = timedelta(hours=12)
MINUTE = timedelta(minutes=1)


@dataclass
class Stage:
    """A store by its ports, with ways to put things into it and to let its time pass."""

    store: RotationStore
    reads: VaultStore
    keys: KeyStore
    reports: ReportStore
    notices: NoticeStore
    news: News
    put: Callable[[Installation, tuple[SealedToken, ...], WrappedDek], Awaitable[None]]
    renew: Callable[[Installation, tuple[SealedToken, ...]], Awaitable[None]]
    remove: Callable[[InstallationId], Awaitable[None]]
    advance: Callable[[timedelta], Awaitable[None]]

    async def install(
        self,
        *,
        expires_in: timedelta | None = HARD_LIMIT,
        key: InstallationKey = TEAM,
        user_id: str = "",
        state: InstallationState = InstallationState.ACTIVE,
    ) -> Chain:
        """Put an installation with one chain, whose token ends after a while."""
        installation = Installation(
            id=InstallationId(uuid4()),
            key=key,
            tenant_id=NORTHWIND,
            state=state,
            generation=1,
            name="Northwind",
            bot_user_id="U0BOT",
            bot_scopes=("chat:write",),
            installed_at=None,
        )
        chain = Chain(installation.id, user_id)
        wrapped = WrappedDek(DekId(uuid4()), installation.id, "local-1", uuid4().bytes * 4)
        expires_at = datetime.now(UTC) + expires_in if expires_in else None
        pair = _pair(chain, wrapped.dek_id, "a", 1, expires_at)
        lasting = (replace(pair.access, expires_at=None),)
        tokens = lasting if expires_in is None else (pair.access, pair.refresh)
        await self.put(installation, tokens, wrapped)
        return chain

    async def reinstall(self, chain: Chain, letter: str, *, expires_in: timedelta = LIFE) -> None:
        """Put newer tokens in a chain's place, as an activation does."""
        held = await self.held(chain)
        generation = held.state.generation + 1
        pair = _pair(chain, held.wrapped.dek_id, letter, generation, datetime.now(UTC) + expires_in)
        installation = replace(held.installation, generation=generation)
        await self.renew(installation, (pair.access, pair.refresh))

    async def held(self, chain: Chain) -> HeldChain:
        """Look at a chain that is there."""
        found = await self.store.find_chain(chain)
        assert found is not None
        return found

    async def claim(self, chain: Chain, *, is_forced: bool = False) -> tuple[HeldChain, Lease]:
        """Claim a chain as it is."""
        held = await self.held(chain)
        rehearsal = _pair(chain, held.wrapped.dek_id, "f", held.state.generation + 1)
        return held, await self.store.claim(held, rehearsal, EVENT, is_forced=is_forced)

    async def keep(
        self,
        held: HeldChain,
        lease: Lease,
        letter: str,
        *,
        is_odd: bool = False,
        is_doubtful: bool = False,
    ) -> Fate:
        """Offer an answer to what was claimed."""
        answer = _answer(held, lease, letter, is_odd=is_odd, is_doubtful=is_doubtful)
        return await self.store.keep(answer, _events)

    async def actions(self) -> list[str]:
        """List what the audit log says happened, oldest first."""
        records = await self.reads.list_audit_events(None, 1000, None)
        actions = [record.event.action for record in reversed(records)]
        return [action for action in actions if action != "chain.started"]


def _events(fate: Fate) -> list[AuditEvent]:
    return [AuditEvent(f"answer.{fate.value}", ORIGIN)]


def _token(chain: Chain, dek_id: DekId, slot: TokenSlot, ref: str, generation: int) -> SealedToken:
    return SealedToken(
        kind=TokenKind.USER if chain.user_id else TokenKind.BOT,
        slot=slot,
        user_id=chain.user_id,
        generation=generation,
        dek_id=dek_id,
        sealed=SealedBytes(b"\x01" + uuid4().bytes * 8),
        ref=TokenRef(ref),
        expires_at=None,
    )


def _pair(
    chain: Chain,
    dek_id: DekId,
    letter: str,
    generation: int,
    expires_at: datetime | None = None,
) -> SealedPair:
    ends = expires_at or datetime.now(UTC) + LIFE
    access = _token(chain, dek_id, TokenSlot.ACCESS, letter * 31 + "a", generation)
    return SealedPair(
        replace(access, expires_at=ends),
        _token(chain, dek_id, TokenSlot.REFRESH, letter * 31 + "e", generation),
    )


def _answer(
    held: HeldChain,
    lease: Lease,
    letter: str,
    *,
    is_odd: bool = False,
    is_doubtful: bool = False,
) -> SealedAnswer:
    pair = _pair(held.chain, held.wrapped.dek_id, letter, held.state.generation + 1)
    facts = AnswerFacts(
        generation=held.state.generation,
        base_ref=held.state.refresh_ref,
        refresh_ref=pair.refresh.ref,
        dek_id=held.wrapped.dek_id,
        is_odd=is_odd,
        is_doubtful=is_doubtful,
    )
    return SealedAnswer(held.chain, lease.epoch, facts, pair)


@pytest.fixture(params=["memory", "postgres"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Give an empty store: in memory, then on Postgres."""
    if request.param == "memory":
        yield _memory_stage()
        return
    cluster: ScratchDatabases = request.getfixturevalue("cluster")
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")
    admin = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
    async with (
        open_pool(urls.roles[VAULT_ROLE], application="test") as pool,
        open_journal(pool, new_id=uuid4) as journal,
        open_news(pool) as news,
    ):
        rotation = PostgresRotation(pool, journal)
        yield Stage(
            rotation,
            PostgresStore(pool, journal),
            PostgresKeys(pool, None, journal),
            rotation,
            rotation,
            news,
            lambda *what: _insert(admin, *what),
            lambda *what: _renew(admin, *what),
            lambda installation_id: _delete(admin, installation_id),
            lambda by: _turn_back(admin, by),
        )
    await admin.close()


def _memory_stage() -> Stage:
    clock = ManualClock(datetime.now(UTC))
    memory = MemoryRotation(clock, chain_id=uuid4())

    async def put(
        installation: Installation, tokens: tuple[SealedToken, ...], wrapped: WrappedDek
    ) -> None:
        memory.installations[installation.id] = installation
        memory.tokens[installation.id] = tokens
        memory.deks[installation.id] = wrapped

    async def renew(installation: Installation, tokens: tuple[SealedToken, ...]) -> None:
        memory.installations[installation.id] = installation
        memory.tokens[installation.id] = tokens

    async def remove(installation_id: InstallationId) -> None:
        for held in (memory.installations, memory.tokens, memory.deks):
            held.pop(installation_id, None)

    async def advance(by: timedelta) -> None:
        clock.advance(by)

    return Stage(memory, memory, memory, memory, memory, memory.news, put, renew, remove, advance)


async def _insert(
    admin: "asyncpg.Connection[asyncpg.Record]",
    installation: Installation,
    tokens: tuple[SealedToken, ...],
    wrapped: WrappedDek,
) -> None:
    key, is_active = installation.key, installation.state is InstallationState.ACTIVE
    await admin.execute(
        "INSERT INTO vault.installation VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        installation.id,
        key.client_id,
        key.app_id,
        key.enterprise_id,
        key.team_id,
        installation.tenant_id,
        installation.state.value,
        installation.generation,
        installation.name,
        installation.bot_user_id,
        list(installation.bot_scopes),
        datetime.now(UTC) if is_active else None,
    )
    await admin.execute(
        "INSERT INTO vault.wrapped_dek VALUES ($1, $2, $3, $4)",
        wrapped.dek_id,
        installation.id,
        wrapped.kek_version,
        wrapped.wrapped,
    )
    await _insert_tokens(admin, installation.id, tokens)


async def _insert_tokens(
    admin: "asyncpg.Connection[asyncpg.Record]",
    installation_id: InstallationId,
    tokens: tuple[SealedToken, ...],
) -> None:
    for token in tokens:
        await admin.execute(
            "INSERT INTO vault.sealed_token VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            installation_id,
            token.kind.value,
            token.slot.value,
            token.user_id,
            token.generation,
            token.dek_id,
            token.sealed,
            token.ref,
            token.expires_at,
        )


async def _renew(
    admin: "asyncpg.Connection[asyncpg.Record]",
    installation: Installation,
    tokens: tuple[SealedToken, ...],
) -> None:
    """Replace the tokens as an activation does, which knows nothing of chains."""
    await admin.execute(
        "UPDATE vault.installation SET generation = $2 WHERE installation_id = $1",
        installation.id,
        installation.generation,
    )
    await admin.execute(
        "DELETE FROM vault.sealed_token WHERE installation_id = $1", installation.id
    )
    await _insert_tokens(admin, installation.id, tokens)


async def _delete(
    admin: "asyncpg.Connection[asyncpg.Record]", installation_id: InstallationId
) -> None:
    await admin.execute("DELETE FROM vault.wrapped_dek WHERE installation_id = $1", installation_id)
    await admin.execute(
        "DELETE FROM vault.installation WHERE installation_id = $1", installation_id
    )


async def _turn_back(admin: "asyncpg.Connection[asyncpg.Record]", by: timedelta) -> None:
    # Nobody can move a database's clock; moving what it is compared with does the same.
    await admin.execute(
        "UPDATE vault.rotation SET lease_until = lease_until - $1::interval,"
        " not_before = not_before - $1::interval",
        by,
    )
    await admin.execute("UPDATE vault.sealed_token SET expires_at = expires_at - $1::interval", by)
    await admin.execute("UPDATE vault.installation SET created_at = created_at - $1::interval", by)


async def test_one_lease_at_a_time(stage: Stage) -> None:
    """I1: of many who claim at once one gets the lease, and the others learn why not."""
    chain = await stage.install()
    held = await stage.held(chain)
    rehearsal = _pair(chain, held.wrapped.dek_id, "f", 2)
    tries = [stage.store.claim(held, rehearsal, EVENT, is_forced=False) for _ in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Lease) for result in results) == 1
    refusals = [result for result in results if isinstance(result, LeaseHeld)]
    assert {refusal.hindrance for refusal in refusals} == {Hindrance.LEASED}
    assert await stage.actions() == ["token.refresh_started"]
    assert (await stage.held(chain)).state.standing is Standing.SENT


async def test_a_lease_ends_with_its_time(stage: Stage) -> None:
    """I8: 60 s after a holder died its chain is free; not before."""
    chain = await stage.install()
    _, first = await stage.claim(chain)
    await stage.advance(LEASE - MINUTE / 30)
    with pytest.raises(LeaseHeld):
        await stage.claim(chain)
    await stage.advance(MINUTE / 20)
    _, second = await stage.claim(chain)
    assert second.epoch > first.epoch


async def test_a_rehearsal_leaves_nothing(stage: Stage) -> None:
    """What is written to prove that the answer can be is taken back."""
    chain = await stage.install()
    before = await stage.held(chain)
    await stage.claim(chain)
    after = await stage.held(chain)
    assert (after.access, after.refresh) == (before.access, before.refresh)
    assert after.installation == before.installation


@pytest.mark.parametrize(
    ("left", "is_due"),
    [(SOFT_LIMIT + MINUTE, False), (SOFT_LIMIT - 31 * MINUTE, True), (HARD_LIMIT, True)],
)
async def test_what_is_due(stage: Stage, left: timedelta, is_due: bool) -> None:
    """A token is due between two and one and a half hours before its end, not earlier."""
    chain = await stage.install(expires_in=left)
    assert (await stage.held(chain)).facts.is_due is is_due
    assert await stage.store.list_due(TEAM.client_id, 10) == ([chain] if is_due else [])
    if is_due:
        await stage.claim(chain)
        assert await stage.store.list_due(TEAM.client_id, 10) == []
    else:
        with pytest.raises(LeaseHeld) as refusal:
            await stage.claim(chain)
        assert refusal.value.hindrance is Hindrance.NOT_DUE
        await stage.claim(chain, is_forced=True)


async def test_what_ends_first_comes_first(stage: Stage) -> None:
    """The scheduler sees the chains of its own client, soonest end first, as many as it asks."""
    late = await stage.install(expires_in=20 * MINUTE)
    soon = await stage.install(expires_in=2 * MINUTE, key=replace(TEAM, team_id="T0SOON"))
    await stage.install(key=replace(TEAM, client_id=ClientId("other")))
    await stage.install(expires_in=None, key=replace(TEAM, team_id="T0LASTING"))
    assert await stage.store.list_due(TEAM.client_id, 10) == [soon, late]
    assert await stage.store.list_due(TEAM.client_id, 1) == [soon]


async def test_an_answer_is_the_next_generation(stage: Stage) -> None:
    """I6: the pair, the generation of both rows and the lease change together."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b") is Fate.STORED
    after = await stage.held(chain)
    assert after.state.generation == after.installation.generation == 2
    assert after.state.refresh_ref == "b" * 31 + "e"
    assert after.state.parent_ref == held.state.refresh_ref
    assert after.state.standing is Standing.IDLE
    assert not after.facts.is_leased
    assert not after.facts.is_due
    assert await stage.actions() == ["token.refresh_started", "answer.stored"]


async def test_an_answer_is_kept_once(stage: Stage) -> None:
    """A commit whose answer was lost is repeated, and changes nothing the second time."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b") is Fate.STORED
    before = await stage.held(chain)
    assert await stage.keep(held, lease, "b") is Fate.ALREADY
    assert replace(await stage.held(chain), at=before.at) == before


async def test_a_late_answer_is_taken_from_whoever_brings_it(stage: Stage) -> None:
    """RF-04: who outlived the lease has the only living pair while nobody else has one."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    assert await stage.keep(held, first, "b") is Fate.STORED
    after = await stage.held(chain)
    assert after.state.generation == 2
    # The second holder's lease is its own to give back.
    assert after.facts.is_leased
    await stage.store.give_back(second, held.state.generation, None, EVENT, is_doubtful=False)
    after = await stage.held(chain)
    assert not after.facts.is_leased
    assert not after.facts.is_resting


async def test_a_second_answer_is_kept_beside(stage: Stage) -> None:
    """RF-04: two answers to one refresh token are both kept until it is known which one lives."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    assert await stage.keep(held, second, "b") is Fate.STORED
    assert await stage.keep(held, first, "c") is Fate.KEPT_BESIDE
    assert await stage.keep(held, first, "c") is Fate.ALREADY
    after = await stage.held(chain)
    assert after.state.candidate_refs == ("c" * 31 + "e",)
    assert [each.is_probed for each in after.candidates] == [False]
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]
    await stage.store.mark_probed(chain, after.state.candidate_refs, EVENT)
    assert await stage.store.list_due(TEAM.client_id, 10) == []


async def test_a_candidate_is_promoted_in_place_of_what_it_was_weighed_against(
    stage: Stage,
) -> None:
    """The displaced pair stays beside; a chain that moved on meanwhile stays as it is."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b")
    await stage.keep(held, lease, "c")
    before = await stage.held(chain)
    pair = _pair(chain, before.wrapped.dek_id, "c", 3)
    candidate = before.state.candidate_refs[0]
    assert await stage.store.promote(before, pair, EVENT)
    after = await stage.held(chain)
    assert after.state.generation == after.installation.generation == 3
    assert after.state.refresh_ref == candidate
    assert after.state.candidate_refs == (before.state.refresh_ref,)
    assert not await stage.store.promote(before, pair, EVENT)
    assert (await stage.held(chain)).state == after.state


async def test_an_odd_answer_is_never_served(stage: Stage) -> None:
    """RF-11: what is not as Slack promises is kept beside, and the pair stays as it was."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b", is_odd=True) is Fate.KEPT_BESIDE
    after = await stage.held(chain)
    assert after.access == held.access
    assert after.state.generation == 1
    assert after.state.candidate_refs == ("b" * 31 + "e",)


async def test_a_new_generation_keeps_the_candidates(stage: Stage) -> None:
    """Slack may let more than one pair live on; an older install's pairs are of no use."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b", is_odd=True)
    assert await stage.keep(held, lease, "c") is Fate.STORED
    after = await stage.held(chain)
    assert after.state.candidate_refs == ("b" * 31 + "e",)
    assert [each.is_probed for each in after.candidates] == [True]
    await stage.reinstall(chain, "d", expires_in=HARD_LIMIT)
    held, lease = await stage.claim(chain)
    assert held.candidates == ()
    await stage.keep(held, lease, "e")
    assert (await stage.held(chain)).candidates == ()


async def test_candidates_are_few(stage: Stage) -> None:
    """The oldest make room, so that an answer that is odd every time fills nothing."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    for number in range(MOST_CANDIDATES + 2):
        await stage.keep(held, lease, f"{number:x}", is_odd=True)
    refs = (await stage.held(chain)).state.candidate_refs
    assert refs == tuple(f"{number:x}" * 31 + "e" for number in range(2, MOST_CANDIDATES + 2))


async def test_a_doubtful_pair_is_exchanged_again(stage: Stage) -> None:
    """While a second request is unheard of the lease goes on; then the chain is due at once."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b", is_doubtful=True) is Fate.STORED
    after = await stage.held(chain)
    assert (after.state.generation, after.state.standing) == (2, Standing.DOUBTED)
    assert after.facts.is_leased
    # Slack may take the refresh token before once more.
    assert after.state.candidate_refs == (held.state.refresh_ref,)
    assert await stage.store.list_due(TEAM.client_id, 10) == []
    await stage.store.give_back(lease, 1, None, EVENT, is_doubtful=False)
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "c") is Fate.STORED
    after = await stage.held(chain)
    assert (after.state.generation, after.state.standing) == (3, Standing.IDLE)


async def test_a_doubt_ends_when_every_request_was_heard_of(stage: Stage) -> None:
    """Only who holds the lease knows; it ends with the doubt."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b", is_doubtful=True)
    await stage.store.prove(replace(lease, epoch=lease.epoch + 1), 2)
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED
    await stage.store.prove(lease, 2)
    after = await stage.held(chain)
    assert after.state.standing is Standing.IDLE
    assert not after.facts.is_leased
    assert await stage.store.list_due(TEAM.client_id, 10) == []


async def test_an_unheard_request_puts_others_pairs_in_doubt(stage: Stage) -> None:
    """Who was overtaken may have overtaken in turn: the stored pair is exchanged again."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    await stage.keep(held, second, "b")
    await stage.store.give_back(first, 1, None, EVENT, is_doubtful=False)
    assert (await stage.held(chain)).state.standing is Standing.IDLE
    await stage.store.give_back(first, 1, None, EVENT, is_doubtful=True)
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED


async def test_a_promotion_ends_no_doubt(stage: Stage) -> None:
    """That one of two pairs is dead says nothing of a third one that nobody heard of."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b", is_doubtful=True)
    await stage.keep(held, lease, "c")
    before = await stage.held(chain)
    pair = _pair(chain, before.wrapped.dek_id, "c", 3)
    assert await stage.store.promote(before, pair, EVENT)
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED


async def test_a_promotion_amid_an_exchange_leaves_it_to_inherit(stage: Stage) -> None:
    """I2: the holder may have sent the promoted pair's refresh token too."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b", is_odd=True)
    before = await stage.held(chain)
    assert await stage.store.promote(before, _pair(chain, before.wrapped.dek_id, "b", 2), EVENT)
    await stage.advance(LEASE + MINUTE)
    _, heir = await stage.claim(chain, is_forced=True)
    assert heir.is_inherited


async def test_a_promotion_revives_no_chain(stage: Stage) -> None:
    """Slack refused its refresh token too: a living access token is served, the end stays known."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b", is_odd=True)
    before = await stage.held(chain)
    refused = {before.state.refresh_ref, *before.state.candidate_refs}
    assert await stage.store.end(lease, 1, refused, EVENT)
    await stage.reports.mark_reported(chain, needs_reinstall=True)
    before = await stage.held(chain)
    assert await stage.store.promote(before, _pair(chain, before.wrapped.dek_id, "b", 2), EVENT)
    after = await stage.held(chain)
    assert (after.state.standing, after.state.generation) == (Standing.NEEDS_REINSTALL, 2)
    assert await stage.notices.count_ended(TEAM.client_id) == 1
    assert await stage.reports.list_unreported(TEAM.client_id, 10) == []


async def test_an_install_amid_an_exchange_is_in_doubt(stage: Stage) -> None:
    """The old holder's pairs count among Slack's two living tokens, so the new pair is renewed."""
    chain = await stage.install()
    _, lease = await stage.claim(chain)
    await stage.reinstall(chain, "d")
    after = await stage.held(chain)
    assert after.state.standing is Standing.DOUBTED
    assert after.facts.is_leased
    await stage.store.give_back(lease, 1, None, EVENT, is_doubtful=False)
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "e")
    after = await stage.held(chain)
    assert (after.state.standing, after.state.lineage) == (Standing.IDLE, 2)


async def test_a_chain_ends_when_nothing_is_left_to_exchange(stage: Stage) -> None:
    """RF-09: refused is not ended while a pair lies beside that was not refused."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    refused: set[str] = {held.state.refresh_ref}
    await stage.keep(held, lease, "b", is_odd=True)
    assert not await stage.store.end(lease, 1, refused, EVENT)
    refused.add("b" * 31 + "e")
    assert await stage.store.end(lease, 1, refused, EVENT)
    after = await stage.held(chain)
    assert after.state.standing is Standing.NEEDS_REINSTALL
    assert not after.facts.is_leased
    assert await stage.notices.count_ended(TEAM.client_id) == 1
    # Its access token may live all the same.
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]
    await stage.store.mark_probed(chain, after.state.candidate_refs, EVENT)
    assert await stage.store.list_due(TEAM.client_id, 10) == []
    with pytest.raises(LeaseHeld) as refusal:
        await stage.claim(chain, is_forced=True)
    assert refusal.value.hindrance is Hindrance.NEEDS_REINSTALL


async def test_the_end_of_a_chain_is_reported_once_and_taken_back(stage: Stage) -> None:
    """Until identity is known to know it; and again when the chain goes on after all."""
    chain, client_id = await stage.install(), TEAM.client_id
    held, lease = await stage.claim(chain)
    assert await stage.reports.list_unreported(client_id, 10) == []
    assert await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    assert await stage.reports.list_unreported(client_id, 10) == [chain]
    assert await stage.reports.list_unreported(ClientId("other"), 10) == []
    await stage.reports.mark_reported(chain, needs_reinstall=True)
    assert await stage.reports.list_unreported(client_id, 10) == []
    assert await stage.keep(held, lease, "b") is Fate.STORED
    assert await stage.reports.list_unreported(client_id, 10) == [chain]
    await stage.reports.mark_reported(chain, needs_reinstall=False)
    assert await stage.reports.list_unreported(client_id, 10) == []


async def test_a_reinstall_takes_the_report_back(stage: Stage) -> None:
    """The chain that it begins is not the one that ended."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    await stage.reports.mark_reported(chain, needs_reinstall=True)
    await stage.reinstall(chain, "d")
    assert await stage.reports.list_unreported(TEAM.client_id, 10) == [chain]
    await stage.reports.mark_reported(chain, needs_reinstall=False)
    await stage.claim(chain, is_forced=True)
    assert await stage.reports.list_unreported(TEAM.client_id, 10) == []


async def test_a_users_chain_is_reported_to_nobody(stage: Stage) -> None:
    """The workspace goes on without it."""
    chain = await stage.install(user_id="U0MIA")
    held, lease = await stage.claim(chain)
    assert await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    assert await stage.reports.list_unreported(TEAM.client_id, 10) == []


async def test_a_late_answer_revives_an_ended_chain(stage: Stage) -> None:
    """Who was refused may have been late itself: the winner's answer counts, and is tried."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    assert await stage.store.end(second, 1, {held.state.refresh_ref}, EVENT)
    assert await stage.keep(held, first, "b") is Fate.STORED
    after = await stage.held(chain)
    assert (after.state.standing, after.state.generation) == (Standing.DOUBTED, 2)
    assert await stage.notices.count_ended(TEAM.client_id) == 0


async def test_a_pair_beside_revives_an_ended_chain(stage: Stage) -> None:
    """There is something to exchange again, and at once; who is at it stays at it."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    await stage.keep(held, lease, "b", is_odd=True)
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "c", is_odd=True)
    after = await stage.held(chain)
    assert after.state.standing is Standing.SENT
    assert after.facts.is_leased


async def test_a_refusal_does_not_end_a_chain_that_moved_on(stage: Stage) -> None:
    """The loser of a race hears `invalid_refresh_token`; the winner's pair is tried first."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    await stage.keep(held, first, "b")
    assert not await stage.store.end(second, 1, {held.state.refresh_ref}, EVENT)
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED


async def test_a_lease_after_one_that_was_never_given_back_is_inherited(stage: Stage) -> None:
    """I2: the first holder's request may still reach Slack, however many come in between."""
    chain = await stage.install()
    _, first = await stage.claim(chain)
    assert not first.is_inherited
    await stage.advance(LEASE + MINUTE)
    for _ in range(2):
        _, heir = await stage.claim(chain)
        assert heir.is_inherited
        await stage.store.give_back(heir, 1, timedelta(0), EVENT, is_doubtful=False)
        assert (await stage.held(chain)).state.standing is Standing.SENT
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]


async def test_a_lease_after_one_that_was_given_back_is_not_inherited(stage: Stage) -> None:
    """All requests of a holder that gives back have ended, whatever it heard of them."""
    chain = await stage.install()
    _, first = await stage.claim(chain)
    await stage.store.give_back(first, 1, timedelta(0), EVENT, is_doubtful=True)
    _, second = await stage.claim(chain)
    assert not second.is_inherited


async def test_a_pair_that_was_asked_for_twice_is_in_doubt(stage: Stage) -> None:
    """I2: the late holder's answer came first, and Slack may have done the next one's last."""
    chain = await stage.install()
    held, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    _, second = await stage.claim(chain)
    assert await stage.keep(held, first, "b") is Fate.STORED
    after = await stage.held(chain)
    assert (after.state.standing, after.state.generation) == (Standing.DOUBTED, 2)
    assert after.state.candidate_refs == (held.state.refresh_ref,)
    assert await stage.keep(held, second, "c") is Fate.KEPT_BESIDE
    assert (await stage.held(chain)).state.standing is Standing.DOUBTED


async def test_a_pause_is_kept_and_grows(stage: Stage) -> None:
    """RF-07: a lease that came to nothing is free at once, and its chain rests a while."""
    chain = await stage.install()
    _, lease = await stage.claim(chain)
    await stage.store.give_back(lease, 1, timedelta(seconds=30), EVENT, is_doubtful=False)
    after = await stage.held(chain)
    assert not after.facts.is_leased
    assert after.facts.is_resting
    assert after.state.failures == 1
    await stage.advance(timedelta(seconds=29))
    with pytest.raises(LeaseHeld) as refusal:
        await stage.claim(chain)
    assert refusal.value.hindrance is Hindrance.RESTING
    await stage.advance(timedelta(seconds=2))
    _, lease = await stage.claim(chain)
    await stage.store.give_back(lease, 1, None, EVENT, is_doubtful=False)
    await stage.advance(timedelta(seconds=4))
    assert (await stage.held(chain)).facts.is_resting
    await stage.advance(timedelta(seconds=2))
    assert not (await stage.held(chain)).facts.is_resting


async def test_a_lease_is_given_back_by_its_holder_only(stage: Stage) -> None:
    """Who was paused past the lease does not take it from the next holder."""
    chain = await stage.install()
    _, first = await stage.claim(chain)
    await stage.advance(LEASE + MINUTE)
    await stage.claim(chain)
    await stage.store.give_back(first, 1, None, EVENT, is_doubtful=False)
    assert (await stage.held(chain)).facts.is_leased


async def test_a_reinstall_wins(stage: Stage) -> None:
    """RF-05: an answer to a token from before an install is not written, nor kept beside."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.reinstall(chain, "d")
    assert await stage.keep(held, lease, "b") is Fate.OUTDATED
    assert not await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    after = await stage.held(chain)
    assert after.state.refresh_ref == "d" * 31 + "e"
    assert (after.state.generation, after.state.lineage) == (2, 2)
    assert after.candidates == ()


async def test_nothing_is_written_where_the_installation_is_gone(stage: Stage) -> None:
    """RF-06: an answer after an uninstall is for its holder to revoke."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.remove(chain.installation_id)
    assert await stage.keep(held, lease, "b") is Fate.GONE
    assert not await stage.store.end(lease, 1, {held.state.refresh_ref}, EVENT)
    await stage.store.give_back(lease, 1, None, EVENT, is_doubtful=False)
    assert await stage.store.find_chain(chain) is None
    rehearsal = _pair(chain, held.wrapped.dek_id, "f", 2)
    with pytest.raises(LeaseHeld):
        await stage.store.claim(held, rehearsal, EVENT, is_forced=True)


async def test_an_answer_is_sealed_anew_when_the_data_key_was_replaced(stage: Stage) -> None:
    """What nobody could open any more is not stored."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    answer = _answer(held, lease, "b")
    other = replace(answer.facts, dek_id=DekId(uuid4()))
    assert await stage.store.keep(replace(answer, facts=other), _events) is Fate.RESEAL
    assert (await stage.held(chain)).access == held.access


async def test_a_users_chain_goes_its_own_way(stage: Stage) -> None:
    """A user's pair rises by itself, and leaves the bot's generation alone."""
    chain = await stage.install(user_id="U0MIA")
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b") is Fate.STORED
    after = await stage.held(chain)
    assert (after.state.generation, after.installation.generation) == (2, 1)
    assert await stage.store.find_chain(Chain(chain.installation_id)) is None


async def test_a_pending_reinstall_pauses_the_chain(stage: Stage) -> None:
    """Two new pairs at once would cost one of them; the install is about to bring one."""
    chain = await stage.install()
    pending = await stage.install(state=InstallationState.PENDING)
    assert await stage.store.find_chain(pending) is None
    assert await stage.store.list_due(TEAM.client_id, 10) == []
    with pytest.raises(LeaseHeld) as refusal:
        await stage.claim(chain)
    assert refusal.value.hindrance is Hindrance.PAUSED
    await stage.remove(pending.installation_id)
    await stage.claim(chain)


@pytest.mark.parametrize("stop", list(Stop))
@pytest.mark.parametrize("is_everywhere", [False, True], ids=["one", "all"])
async def test_what_is_stopped_is_not_exchanged(
    stage: Stage, stop: Stop, is_everywhere: bool
) -> None:
    """Frozen or on hold, one installation or all: not listed, not leased; afterwards it is."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    assert await stage.keep(held, lease, "b", is_odd=True) is Fate.KEPT_BESIDE
    await stage.store.give_back(lease, 1, timedelta(0), EVENT, is_doubtful=False)
    assert (await stage.held(chain)).has_to_settle
    where = None if is_everywhere else chain.installation_id
    await stage.reads.stop_releases(where, stop, "why", EVENT)
    assert not (await stage.held(chain)).has_to_settle
    assert await stage.store.list_due(TEAM.client_id, 10) == []
    with pytest.raises(LeaseHeld) as refusal:
        await stage.claim(chain, is_forced=True)
    assert refusal.value.hindrance is Hindrance.STOPPED
    await stage.reads.resume_releases(where, stop, EVENT)
    assert await stage.store.list_due(TEAM.client_id, 10) == [chain]
    await stage.claim(chain)


async def test_an_answer_to_what_was_stopped_meanwhile_is_kept(stage: Stage) -> None:
    """A freeze forbids to ask Slack, and loses nothing that Slack has answered."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.reads.stop_releases(None, Stop.FROZEN, "a leak", EVENT)
    assert await stage.keep(held, lease, "b") is Fate.STORED


async def _reseal(stage: Stage, chain: Chain) -> None:
    """Give an installation a new data key, as `rotate-dek` and `rekey` do."""
    before = await stage.keys.find_held(chain.installation_id)
    assert before is not None
    wrapped = replace(before.wrapped, dek_id=DekId(uuid4()))
    tokens = tuple(replace(each, dek_id=wrapped.dek_id) for each in before.tokens)
    await stage.keys.reseal(before, Held(before.installation, tokens, wrapped), EVENT)


async def test_a_data_key_that_was_replaced_takes_the_lease_along(stage: Stage) -> None:
    """Whoever looked before would seal the answer under a key that is gone: a crash loses it."""
    chain = await stage.install()
    seen = await stage.held(chain)
    rehearsal = _pair(chain, seen.wrapped.dek_id, "f", 2)
    await _reseal(stage, chain)
    with pytest.raises(LeaseHeld) as refusal:
        await stage.store.claim(seen, rehearsal, EVENT, is_forced=False)
    assert refusal.value.hindrance is Hindrance.CHANGED
    await stage.claim(chain)


async def test_a_data_key_stays_while_an_answer_may_come(stage: Stage) -> None:
    """From the lease to the answer, and in doubt after it, the key is not replaced."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    with pytest.raises(RefreshUnsettled):
        await _reseal(stage, chain)
    await stage.advance(LEASE + MINUTE)
    with pytest.raises(RefreshUnsettled):
        await _reseal(stage, chain)
    assert await stage.keep(held, lease, "b") is Fate.STORED
    await _reseal(stage, chain)
    assert (await stage.held(chain)).state.refresh_ref == "b" * 31 + "e"


async def test_a_data_key_stays_while_another_pair_may_be_the_living_one(stage: Stage) -> None:
    """A pair beside holds the key until the chain has moved on; then it goes with the key."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    await stage.keep(held, lease, "b")
    assert await stage.keep(held, lease, "c") is Fate.KEPT_BESIDE
    with pytest.raises(RefreshUnsettled):
        await _reseal(stage, chain)
    beside = (await stage.held(chain)).state.candidate_refs
    await stage.store.mark_probed(chain, beside, EVENT)
    with pytest.raises(RefreshUnsettled):
        await _reseal(stage, chain)
    held, lease = await stage.claim(chain, is_forced=True)
    await stage.keep(held, lease, "d")
    assert (await stage.held(chain)).state.candidate_refs == beside
    await _reseal(stage, chain)
    assert (await stage.held(chain)).candidates == ()


async def test_a_lasting_token_that_was_not_exchanged_holds_no_data_key(stage: Stage) -> None:
    """Nobody comes round for it: what Slack refused to exchange once is left as it was."""
    chain = await stage.install(expires_in=None)
    _, lease = await stage.claim(chain, is_forced=True)
    with pytest.raises(RefreshUnsettled):
        await _reseal(stage, chain)
    await stage.store.give_back(lease, 1, timedelta(0), EVENT, is_doubtful=False)
    await _reseal(stage, chain)


async def test_lasting_tokens_are_listed_in_order(stage: Stage) -> None:
    """A command that migrates them can stop anywhere and go on."""
    chains = [
        await stage.install(expires_in=None, key=replace(TEAM, team_id=f"T0LASTING{number}"))
        for number in range(3)
    ]
    await stage.install()
    listed = await stage.store.list_lasting(TEAM.client_id, None)
    assert listed == sorted(chains)
    assert await stage.store.list_lasting(TEAM.client_id, listed[1]) == listed[2:]
    held, lease = await stage.claim(listed[0], is_forced=True)
    assert await stage.keep(held, lease, "b") is Fate.STORED
    assert await stage.store.list_lasting(TEAM.client_id, None) == listed[1:]


async def test_whoever_listens_hears_of_a_new_generation(stage: Stage) -> None:
    """A waiter is told at the commit, and not before."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)
    with stage.news.subscribe(chain.installation_id) as bell:
        await bell.heard(timedelta(milliseconds=200))
        waiting = asyncio.create_task(bell.heard(timedelta(seconds=30)))
        await stage.keep(held, lease, "b")
        async with asyncio.timeout(10):
            await waiting
    assert (await stage.held(chain)).state.generation == 2


async def test_a_record_that_cannot_be_written_keeps_nothing(stage: Stage) -> None:
    """The pair and its record are one commit."""
    chain = await stage.install()
    held, lease = await stage.claim(chain)

    def failing(_: Fate) -> list[AuditEvent]:
        raise DatabaseUnavailable

    with pytest.raises(DatabaseUnavailable):
        await stage.store.keep(_answer(held, lease, "b"), failing)
    assert (await stage.held(chain)).access == held.access
