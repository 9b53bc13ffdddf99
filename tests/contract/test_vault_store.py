"""What the vault's store promises, asked of the one in memory and of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.adapters.memory import ManualClock, MemoryStore
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.audit_log import find_first_break
from interlock_token_vault.domain.envelope import CannotOpen, SealedBytes, SealedToken, WrappedDek
from interlock_token_vault.domain.install import (
    AttemptState,
    InstallAttempt,
    InstallInProgress,
    InstallNotOpen,
)
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
from interlock_token_vault.install_ports import LEASE, Activation, InstallStore, StaleGeneration
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.vault import (
    AuditCursor,
    InstallationNotFound,
    Loaded,
    ReadTarget,
    Stop,
    VaultStore,
    Verdict,
)

TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
OTHER_TEAM = replace(TEAM, team_id="T0OTHER")
NORTHWIND, CONTOSO = TenantId("northwind"), TenantId("contoso")
ORIGIN = Origin(actor="gateway-edge", rpc="/x/Y", purpose="install", grant_id="jti")
CODE, OTHER_CODE = TokenRef("c" * 32), TokenRef("d" * 32)
MINUTE = timedelta(minutes=1)


@dataclass
class Stage:
    """A store by its two ports, and a way to let its time pass."""

    reads: VaultStore
    installs: InstallStore
    advance: Callable[[timedelta], Awaitable[None]]

    async def start(self, grant_id: str, tenant: TenantId = NORTHWIND) -> InstallAttempt:
        """Write an attempt down whose grant lives 15 minutes."""
        attempt = InstallAttempt(
            grant_id=grant_id,
            grant=Secret(f"grant-{grant_id}"),
            tenant_id=tenant,
            user_id="user-1",
            state_sha256="0" * 64,
            source="direct",
            grant_expires_at=datetime.now(UTC).replace(microsecond=0) + 15 * MINUTE,
        )
        await self.installs.start_attempt(attempt, AuditEvent("install.started", ORIGIN))
        return attempt

    async def exchange(self, grant_id: str, code: TokenRef = CODE) -> tuple[WrappedDek, UUID]:
        """Take an attempt's exchange with a data key of its own."""
        wrapped, lease = _dek(InstallationId(uuid4())), uuid4()
        event = AuditEvent("install.code_taken", ORIGIN)
        await self.installs.take_exchange(grant_id, code, wrapped, lease, event)
        return wrapped, lease

    async def pend(
        self,
        grant_id: str,
        ref: str,
        tenant: TenantId = NORTHWIND,
        key: InstallationKey = TEAM,
    ) -> tuple[Installation, tuple[SealedToken, ...]]:
        """Bring a new attempt as far as pending, and give its lease back."""
        await self.start(grant_id, tenant)
        wrapped, lease = await self.exchange(grant_id)
        installation = _installation(wrapped.installation_id, key, tenant)
        tokens = (_token(wrapped, ref),)
        event = AuditEvent("install.sealed", ORIGIN)
        await self.installs.save_pending(grant_id, installation, tokens, event)
        await self.installs.release(grant_id, lease)
        return installation, tokens

    async def install(
        self,
        grant_id: str,
        ref: str,
        tenant: TenantId = NORTHWIND,
        key: InstallationKey = TEAM,
    ) -> Installation:
        """Bring a new attempt to an active installation where none is."""
        installation, tokens = await self.pend(grant_id, ref, tenant, key)
        plan = _plan(grant_id, installation, tokens, None)
        return await self.installs.activate(plan, [_activated(installation)])

    async def load(self, key: InstallationKey = TEAM, user_id: str = "") -> Loaded | None:
        """Load what a read of the key would see, leaving a record."""
        seen: list[Loaded | None] = []

        def judge(found: Loaded | None) -> Verdict:
            seen.append(found)
            return Verdict(AuditEvent("token.read", ORIGIN))

        await self.reads.load_recorded(ReadTarget(key, user_id), judge)
        return seen[0]

    async def attempt(self, grant_id: str) -> InstallAttempt:
        """Look at an attempt."""
        found = await self.installs.find_attempt(grant_id)
        assert found is not None
        return found

    async def actions(self) -> list[str]:
        """List what the audit log says happened, oldest first, chains apart."""
        records = await self.reads.list_audit_events(None, 1000, None)
        return [
            record.event.action
            for record in reversed(records)
            if record.event.action != "chain.started"
        ]


def _dek(installation_id: InstallationId) -> WrappedDek:
    return WrappedDek(DekId(uuid4()), installation_id, "local-1", uuid4().bytes * 4)


def _installation(
    installation_id: InstallationId, key: InstallationKey, tenant: TenantId
) -> Installation:
    return Installation(
        id=installation_id,
        key=key,
        tenant_id=tenant,
        state=InstallationState.PENDING,
        generation=1,
        name="Northwind",
        bot_user_id="U0BOT",
        bot_scopes=("chat:write", "commands"),
        installed_at=None,
        installed_by="U0ADA",
    )


def _token(wrapped: WrappedDek, ref: str, generation: int = 1) -> SealedToken:
    return SealedToken(
        kind=TokenKind.BOT,
        slot=TokenSlot.ACCESS,
        user_id="",
        generation=generation,
        dek_id=wrapped.dek_id,
        sealed=SealedBytes(b"\x01" + uuid4().bytes * 8),
        ref=TokenRef(ref * 32),
        expires_at=None,
    )


def _plan(
    grant_id: str,
    target: Installation,
    tokens: tuple[SealedToken, ...],
    replaced: Installation | None,
) -> Activation:
    return Activation(
        grant_id=grant_id,
        pending_id=target.id,
        target=target,
        tokens=tokens,
        replaced=replaced,
        is_reinstall=False,
        extra_scopes=("im:read",),
    )


def _activated(installation: Installation) -> AuditEvent:
    return AuditEvent(
        "install.activated",
        ORIGIN,
        installation_id=installation.id,
        team_id=installation.key.team_id,
        generation=installation.generation,
    )


@pytest.fixture(params=["memory", "postgres"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Give an empty store: in memory, then on Postgres."""
    if request.param == "memory":
        clock = ManualClock(datetime.now(UTC))
        memory = MemoryStore(clock, chain_id=uuid4())

        async def advance(by: timedelta) -> None:
            clock.advance(by)

        yield Stage(memory, memory, advance)
        return
    cluster: ScratchDatabases = request.getfixturevalue("cluster")
    urls = await cluster.database(DATABASE)
    database = urlsplit(urls.owner.reveal()).path.strip("/")

    async def turn_back(by: timedelta) -> None:
        # Nobody can move a database's clock; moving what it is compared with does the same.
        connection = await asyncpg.connect(cluster.admin_url.reveal(), database=database)
        try:
            await connection.execute(
                "UPDATE vault.install_attempt SET lease_until = lease_until - $1::interval,"
                " grant_expires_at = grant_expires_at - $1::interval,"
                " ended_at = ended_at - $1::interval",
                by,
            )
        finally:
            await connection.close()

    async with (
        open_pool(urls.roles[VAULT_ROLE], application="test") as pool,
        open_journal(pool, new_id=uuid4) as journal,
    ):
        yield Stage(PostgresStore(pool, journal), PostgresInstalls(pool, journal), turn_back)


async def test_a_start_is_written_once(stage: Stage) -> None:
    """The same grant again changes and records nothing."""
    attempt = await stage.start("jti")
    await stage.start("jti", CONTOSO)
    assert await stage.attempt("jti") == attempt
    assert await stage.actions() == ["install.started"]
    assert await stage.installs.find_attempt("unknown") is None


async def test_an_exchange_is_taken_by_one_at_a_time(stage: Stage) -> None:
    """While one call holds the lease, others learn that it is in progress."""
    await stage.start("jti")
    _, lease = await stage.exchange("jti")
    with pytest.raises(InstallInProgress):
        await stage.exchange("jti")
    await stage.installs.release("jti", uuid4())
    with pytest.raises(InstallInProgress):
        await stage.exchange("jti")
    await stage.installs.release("jti", lease)
    await stage.exchange("jti")


async def test_a_lease_ends_by_itself(stage: Stage) -> None:
    """A call that died does not hold an install for longer than its lease."""
    await stage.start("jti")
    await stage.exchange("jti")
    await stage.advance(LEASE)
    await stage.exchange("jti")


async def test_an_exchange_is_for_one_code(stage: Stage) -> None:
    """A grant whose code was sent takes no other code."""
    await stage.start("jti")
    _, lease = await stage.exchange("jti")
    await stage.installs.release("jti", lease)
    with pytest.raises(InstallNotOpen):
        await stage.exchange("jti", OTHER_CODE)
    with pytest.raises(InstallNotOpen):
        await stage.exchange("unknown")


async def test_an_exchange_given_up_for_lost_saves_nothing(stage: Stage) -> None:
    """Who was overtaken while waiting for Slack must not store its answer."""
    await stage.start("jti")
    overtaken, _ = await stage.exchange("jti")
    await stage.advance(LEASE)
    current, _ = await stage.exchange("jti")
    event = AuditEvent("install.sealed", ORIGIN)
    with pytest.raises(InstallInProgress):
        await stage.installs.save_pending(
            "jti",
            _installation(overtaken.installation_id, TEAM, NORTHWIND),
            [_token(overtaken, "a")],
            event,
        )
    await stage.installs.save_pending(
        "jti",
        _installation(current.installation_id, TEAM, NORTHWIND),
        [_token(current, "a")],
        event,
    )
    assert (await stage.attempt("jti")).state is AttemptState.PENDING


async def test_what_is_saved_already_is_saved(stage: Stage) -> None:
    """After a lost answer the save may be repeated; it is recorded once."""
    installation, tokens = await stage.pend("jti", "a")
    event = AuditEvent("install.sealed", ORIGIN)
    await stage.installs.save_pending("jti", installation, tokens, event)
    assert (await stage.actions()).count("install.sealed") == 1


async def test_a_pending_install_is_invisible_to_reads(stage: Stage) -> None:
    """What is not claimed yet answers nobody, by whatever key."""
    installation, _ = await stage.pend("jti", "a")
    assert await stage.load() is None
    assert await stage.installs.find_active(TEAM) is None
    assert await stage.installs.find_installation(installation.id) == installation


async def test_a_pending_install_can_be_taken_up_again(stage: Stage) -> None:
    """Another process finds everything it needs to finish the install, once."""
    installation, tokens = await stage.pend("jti", "a")
    event = AuditEvent("install.resumed", ORIGIN)
    pending = await stage.installs.take_pending("jti", uuid4(), event)
    assert pending.installation == installation
    assert pending.tokens == tokens
    assert pending.wrapped.dek_id == tokens[0].dek_id
    assert pending.attempt.grant == Secret("grant-jti")
    with pytest.raises(InstallInProgress):
        await stage.installs.take_pending("jti", uuid4(), event)


async def test_an_activated_install_answers_reads(stage: Stage) -> None:
    """After activation a read finds the installation, its token and its key."""
    active = await stage.install("jti", "a")
    assert active.state is InstallationState.ACTIVE
    assert active.installed_at is not None
    assert active.installed_by == "U0ADA"
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.installation == active
    assert loaded.sealed is not None
    assert loaded.sealed.ref == "a" * 32
    assert loaded.wrapped is not None
    assert loaded.wrapped.dek_id == loaded.sealed.dek_id
    assert loaded.audited_generation == 1
    assert await stage.load(OTHER_TEAM) is None


async def test_the_end_of_an_attempt_erases_its_grant(stage: Stage) -> None:
    """What it came to is kept for a repeat; the grant is not."""
    active = await stage.install("jti", "a")
    attempt = await stage.attempt("jti")
    assert attempt.state is AttemptState.DONE
    assert attempt.grant is None
    assert attempt.installation_id == active.id
    assert attempt.extra_scopes == ("im:read",)


async def test_two_installs_of_one_workspace_cannot_both_be_active(stage: Stage) -> None:
    """I13: the second activation fails as long as it does not name what it replaces."""
    first, first_tokens = await stage.pend("one", "a")
    second, second_tokens = await stage.pend("two", "b", CONTOSO)
    await stage.installs.activate(_plan("one", first, first_tokens, None), [])
    with pytest.raises(StaleGeneration):
        await stage.installs.activate(_plan("two", second, second_tokens, None), [])
    assert (await stage.attempt("two")).state is AttemptState.PENDING


async def test_a_renewal_raises_the_generation_in_place(stage: Stage) -> None:
    """A reinstall replaces the tokens, keeps the id, and leaves no second data key."""
    held = await stage.install("one", "a")
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.wrapped is not None
    pending, _ = await stage.pend("two", "b")
    renewed = replace(pending, id=held.id, generation=2, name="Renamed", installed_by="U0BEN")
    tokens = (_token(loaded.wrapped, "b", generation=2),)
    plan = replace(_plan("two", renewed, tokens, held), pending_id=pending.id)
    active = await stage.installs.activate(plan, [_activated(renewed)])
    assert (active.id, active.generation, active.name) == (held.id, 2, "Renamed")
    assert active.installed_by == "U0BEN"
    assert await stage.installs.find_installation(pending.id) is None
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.sealed == tokens[0]
    assert loaded.audited_generation == 2


async def test_a_renewal_of_what_has_changed_is_refused(stage: Stage) -> None:
    """I6: whoever planned upon an older generation plans again."""
    held = await stage.install("one", "a")
    pending, tokens = await stage.pend("two", "b")
    stale = replace(held, generation=7)
    renewed = replace(pending, id=held.id, generation=8)
    plan = replace(_plan("two", renewed, tokens, stale), pending_id=pending.id)
    with pytest.raises(StaleGeneration):
        await stage.installs.activate(plan, [])
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.installation == held


def _users(
    wrapped: WrappedDek, ref: str, user_id: str, generation: int, slot: TokenSlot = TokenSlot.ACCESS
) -> SealedToken:
    token = _token(wrapped, ref, generation)
    return replace(token, kind=TokenKind.USER, user_id=user_id, slot=slot)


async def _renew_with(
    stage: Stage, grant_id: str, held: Installation, *tokens: SealedToken
) -> Installation:
    pending, _ = await stage.pend(grant_id, "f")
    renewed = replace(pending, id=held.id, generation=held.generation + 1)
    plan = replace(_plan(grant_id, renewed, tokens, held), pending_id=pending.id)
    return await stage.installs.activate(plan, [_activated(renewed)])


async def test_a_renewal_replaces_the_same_users_tokens_only(stage: Stage) -> None:
    """What it brings takes the whole place of its like; what others gave stays."""
    held = await stage.install("one", "a")
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.wrapped is not None
    wrapped = loaded.wrapped
    webhook = replace(_token(wrapped, "e", 2), kind=TokenKind.WEBHOOK)
    first = (
        _token(wrapped, "b", 2),
        _users(wrapped, "c", "U0ADA", 2),
        _users(wrapped, "d", "U0ADA", 2, TokenSlot.REFRESH),
        webhook,
    )
    held = await _renew_with(stage, "two", held, *first)
    bens = (_token(wrapped, "b", 3), _users(wrapped, "5", "U0BEN", 3))
    held = await _renew_with(stage, "three", held, *bens)
    adas = (_token(wrapped, "b", 4), _users(wrapped, "6", "U0ADA", 4))
    await _renew_with(stage, "four", held, *adas)
    found = await stage.installs.find_connected(TEAM)
    assert found is not None
    assert set(found.tokens) == {*adas, bens[1], webhook}
    for user_id, token in (("", adas[0]), ("U0ADA", adas[1]), ("U0BEN", bens[1])):
        loaded = await stage.load(user_id=user_id)
        assert loaded is not None
        assert loaded.sealed == token


async def test_a_users_generation_only_rises(stage: Stage) -> None:
    """I6: a refresh that came between a plan and its activation has the plan made again."""
    held = await stage.install("one", "a")
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.wrapped is not None
    wrapped = loaded.wrapped
    ahead = (_token(wrapped, "b", 2), _users(wrapped, "c", "U0ADA", 9))
    held = await _renew_with(stage, "two", held, *ahead)
    with pytest.raises(StaleGeneration):
        await _renew_with(
            stage, "three", held, _token(wrapped, "b", 3), _users(wrapped, "d", "U0ADA", 9)
        )
    found = await stage.installs.find_connected(TEAM)
    assert found is not None
    assert set(found.tokens) == set(ahead)


async def test_a_pending_install_is_taken_up_with_all_it_brought(stage: Stage) -> None:
    """The bot's token comes first, whatever came with it."""
    await stage.start("jti")
    wrapped, lease = await stage.exchange("jti")
    installation = _installation(wrapped.installation_id, TEAM, NORTHWIND)
    tokens = (
        _token(wrapped, "a"),
        _users(wrapped, "b", "U0ADA", 1),
        _users(wrapped, "c", "U0ADA", 1, TokenSlot.REFRESH),
        replace(_token(wrapped, "d"), kind=TokenKind.WEBHOOK),
    )
    await stage.installs.save_pending(
        "jti", installation, tokens, AuditEvent("install.sealed", ORIGIN)
    )
    await stage.installs.release("jti", lease)
    pending = await stage.installs.take_pending(
        "jti", uuid4(), AuditEvent("install.resumed", ORIGIN)
    )
    assert pending.tokens == tokens


async def test_a_replacement_shreds_what_it_replaces(stage: Stage) -> None:
    """When a workspace changes hands nothing of the old installation remains."""
    held = await stage.install("one", "a")
    pending, tokens = await stage.pend("two", "b", CONTOSO)
    active = await stage.installs.activate(_plan("two", pending, tokens, held), [])
    assert active.tenant_id == CONTOSO
    assert await stage.installs.find_installation(held.id) is None
    assert not await stage.installs.is_ref_stored(TokenRef("a" * 32), None)


async def test_an_ended_attempt_activates_nothing(stage: Stage) -> None:
    """A second finisher of the same install finds that it is over."""
    pending, tokens = await stage.pend("jti", "a")
    plan = _plan("jti", pending, tokens, None)
    await stage.installs.activate(plan, [])
    with pytest.raises(InstallInProgress):
        await stage.installs.activate(plan, [])


async def test_a_drop_leaves_nothing_but_its_reason(stage: Stage) -> None:
    """The pending token and its key go; the attempt remembers why, once."""
    pending, _ = await stage.pend("jti", "a")
    dropped = AuditEvent("install.dropped", ORIGIN, outcome="SCOPES_MISSING")
    for _ in range(2):
        await stage.installs.drop("jti", "SCOPES_MISSING", [dropped])
    attempt = await stage.attempt("jti")
    assert (attempt.state, attempt.outcome) == (AttemptState.DROPPED, "SCOPES_MISSING")
    assert attempt.grant is None
    assert await stage.installs.find_installation(pending.id) is None
    assert not await stage.installs.is_ref_stored(TokenRef("a" * 32), None)
    assert (await stage.actions()).count("install.dropped") == 1


async def test_a_drop_never_ends_an_install_that_is_done(stage: Stage) -> None:
    """A late drop of an install that was activated changes nothing."""
    active = await stage.install("jti", "a")
    await stage.installs.drop("jti", "WORKSPACE_TAKEN", [AuditEvent("install.dropped", ORIGIN)])
    loaded = await stage.load()
    assert loaded is not None
    assert loaded.installation == active


async def test_a_drop_before_the_exchange_came_back_shreds_its_key(stage: Stage) -> None:
    """An attempt without an answer leaves no data key, and may not be pended again."""
    await stage.start("jti")
    await stage.exchange("jti")
    await stage.installs.drop("jti", "INSTALL_NOT_OPEN", [])
    with pytest.raises((InstallInProgress, CannotOpen)):
        await stage.installs.take_pending("jti", uuid4(), AuditEvent("install.resumed", ORIGIN))


async def test_a_stored_token_is_known_by_its_fingerprint(stage: Stage) -> None:
    """Pending ones count too; only the named installation does not count."""
    pending, _ = await stage.pend("jti", "a")
    ref = TokenRef("a" * 32)
    assert await stage.installs.is_ref_stored(ref, None)
    assert not await stage.installs.is_ref_stored(ref, pending.id)
    assert await stage.installs.is_ref_stored(ref, InstallationId(uuid4()))
    assert not await stage.installs.is_ref_stored(TokenRef("b" * 32), None)


async def test_only_what_nobody_will_finish_is_unfinished(stage: Stage) -> None:
    """Pending installs at once, others when their grant has run out, leased ones not."""
    await stage.start("started")
    await stage.start("exchanging")
    await stage.exchange("exchanging")
    await stage.pend("pending", "a")
    await stage.install("done", "b", key=OTHER_TEAM)
    assert [each.grant_id for each in await stage.installs.list_unfinished(10)] == ["pending"]
    await stage.installs.take_pending("pending", uuid4(), AuditEvent("install.resumed", ORIGIN))
    assert await stage.installs.list_unfinished(10) == []
    await stage.advance(16 * MINUTE)
    unfinished = [each.grant_id for each in await stage.installs.list_unfinished(10)]
    assert unfinished == ["started", "exchanging", "pending"]
    assert len(await stage.installs.list_unfinished(1)) == 1


async def test_ended_attempts_are_forgotten_after_thirty_days(stage: Stage) -> None:
    """Who installed what is kept no longer than it can be of use."""
    await stage.install("jti", "a")
    await stage.advance(timedelta(days=29))
    await stage.installs.prune_attempts()
    assert await stage.installs.find_attempt("jti") is not None
    await stage.advance(timedelta(days=2))
    await stage.installs.prune_attempts()
    assert await stage.installs.find_attempt("jti") is None
    assert await stage.load() is not None


async def test_concurrent_reads_leave_one_sound_chain(stage: Stage) -> None:
    """I3: many readers share transactions, and each has its own record in the chain."""
    await stage.install("jti", "a")
    found = await asyncio.gather(*(stage.load() for _ in range(200)))
    assert all(each is not None for each in found)
    records = await stage.reads.list_audit_events(None, 1000, None)
    oldest_first = sorted(records, key=lambda record: record.seq)
    assert find_first_break(oldest_first) is None
    assert [record.event.action for record in records].count("token.read") == 200


async def test_one_judges_failure_is_not_its_neighbours(stage: Stage) -> None:
    """A bug in one reader's judgement leaves the others their verdicts."""

    def fail(_: Loaded | None) -> Verdict:
        raise ZeroDivisionError

    results = await asyncio.gather(
        stage.load(),
        stage.reads.load_recorded(ReadTarget(TEAM), fail),
        stage.load(),
        return_exceptions=True,
    )
    assert [type(each) for each in results] == [type(None), ZeroDivisionError, type(None)]
    assert (await stage.actions()).count("token.read") == 2


async def test_many_reads_of_one_caller_share_a_transaction(stage: Stage) -> None:
    """Each wish has its own verdict in its order, and its own record; a failing judge only one."""
    await stage.install("jti", "a")

    def judge(found: Loaded | None) -> Verdict:
        outcome = found.installation.key.team_id if found else "absent"
        return Verdict(AuditEvent("token.read", ORIGIN, outcome=outcome))

    def fail(_: Loaded | None) -> Verdict:
        raise ZeroDivisionError

    here, nowhere = ReadTarget(TEAM), ReadTarget(OTHER_TEAM)
    verdicts = await stage.reads.load_recorded_many(
        [(nowhere, judge), (here, judge), (here, fail), (here, judge)]
    )
    outcomes = [each.event.outcome if isinstance(each, Verdict) else each for each in verdicts]
    assert outcomes[:2] + outcomes[3:] == ["absent", TEAM.team_id, TEAM.team_id]
    assert isinstance(outcomes[2], ZeroDivisionError)
    newest = await stage.reads.list_audit_events(None, 3, None)
    assert [record.event.outcome for record in newest] == [TEAM.team_id, TEAM.team_id, "absent"]


async def test_records_are_listed_newest_first_and_by_installation(stage: Stage) -> None:
    """A key shows its own active installation's records; no key shows all; pages do not overlap."""
    ours = await stage.install("one", "a")
    await stage.install("two", "b", key=OTHER_TEAM)
    event = AuditEvent("token.read", ORIGIN, installation_id=ours.id, team_id="T0TEAM")
    await stage.reads.record([replace(event, count=number) for number in range(1, 6)])
    listed = await stage.reads.list_audit_events(TEAM, 100, None)
    assert {record.event.installation_id for record in listed} == {ours.id}
    assert [record.event.count for record in listed] == [5, 4, 3, 2, 1, 1]
    first = await stage.reads.list_audit_events(TEAM, 2, None)
    cursor = AuditCursor(first[-1].at, first[-1].chain_id, first[-1].seq)
    second = await stage.reads.list_audit_events(TEAM, 2, cursor)
    assert [record.event.count for record in second] == [3, 2]
    assert await stage.reads.list_audit_events(replace(TEAM, team_id="T0NOBODY"), 9, None) == []
    assert len(await stage.reads.list_audit_events(None, 100, None)) > len(listed)


async def test_a_record_comes_back_as_it_was_written(stage: Stage) -> None:
    """Every field survives the way through the store, odd texts included."""
    installation = await stage.install("jti", "a")
    event = AuditEvent(
        action="token.read",
        origin=Origin("actor", "/rpc", "purpose", "jti", "U0MIA ' \" \\ é 😀", "request", "trace"),
        outcome="outcome",
        installation_id=installation.id,
        enterprise_id="E0GRID",
        team_id="T0TEAM",
        token_kind="bot",
        token_ref="f" * 32,
        generation=3,
        kek_version="local-1",
        dek_source="cache",
        count=2,
    )
    await stage.reads.record([event])
    newest = await stage.reads.list_audit_events(TEAM, 1, None)
    assert newest[0].event == event


async def test_a_stop_is_seen_by_the_next_read(stage: Stage) -> None:
    """What an operator stops, one workspace or all, is stopped for every later read."""
    ours = await stage.install("ours", "a")
    await stage.install("theirs", "b", CONTOSO, OTHER_TEAM)
    event = AuditEvent("releases.frozen", ORIGIN)

    async def stops() -> list[Stop | None]:
        found = [await stage.load(key) for key in (TEAM, OTHER_TEAM)]
        return [each.stopped if each else None for each in found]

    assert await stops() == [None, None]
    await stage.reads.stop_releases(ours.id, Stop.FROZEN, "leak", event)
    assert await stops() == [Stop.FROZEN, None]
    await stage.reads.stop_releases(None, Stop.HELD, "restore", event)
    assert await stops() == [Stop.FROZEN, Stop.HELD]
    await stage.reads.resume_releases(ours.id, Stop.FROZEN, event)
    await stage.reads.resume_releases(None, Stop.HELD, event)
    assert await stops() == [None, None]


async def test_a_stop_is_recorded_once(stage: Stage) -> None:
    """Stopping what is stopped, or resuming what runs, changes nothing and says nothing."""
    event = AuditEvent("releases.frozen", ORIGIN)
    for _ in range(2):
        await stage.reads.stop_releases(None, Stop.FROZEN, "leak", event)
    for _ in range(2):
        await stage.reads.resume_releases(None, Stop.FROZEN, AuditEvent("releases.resumed", ORIGIN))
    assert await stage.actions() == ["releases.frozen", "releases.resumed"]


async def test_nothing_that_is_not_there_is_stopped(stage: Stage) -> None:
    """A mistyped id is told, not taken."""
    with pytest.raises(InstallationNotFound):
        await stage.reads.stop_releases(
            InstallationId(uuid4()), Stop.FROZEN, "leak", AuditEvent("releases.frozen", ORIGIN)
        )


async def test_a_users_token_is_no_bots(stage: Stage) -> None:
    """A read of a user finds that user's token, and never the bot's in its place."""
    await stage.install("ours", "a")
    bots, users = await stage.load(), await stage.load(user_id="U0MIA")
    assert bots is not None
    assert bots.sealed is not None
    assert users is not None
    assert users.sealed is None
