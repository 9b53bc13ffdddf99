"""Whatever happens in whatever order: a chain is whole, or says that it needs a reinstall.

A state machine refreshes, answers, loses, crashes, reinstalls, freezes, shreds
and lets time pass, through the vault's use cases on a real Postgres. Slack, the
disk and time are the machine's own.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import open_pool
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import Journal, open_journal
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import (
    FakeClaims,
    FakeKms,
    FakeSlack,
    Faults,
    ManualClock,
)
from interlock_token_vault.adapters.memory_rotation import MemorySpool
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_keys import PostgresKeys
from interlock_token_vault.adapters.postgres_rotation import PostgresRotation
from interlock_token_vault.adapters.rows import Pool
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.install import BotIdentity
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import LEASE, Chain, RefreshAnswer, Standing
from interlock_token_vault.install_ports import SlackUnavailable, TokenDead
from interlock_token_vault.keeping import Keeper
from interlock_token_vault.key_lifecycle import KeyLifecycle
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.rotating import Rotating
from interlock_token_vault.rotation_ports import (
    HeldChain,
    RefreshRefused,
    RotationStore,
    SlackSilent,
)
from interlock_token_vault.vault import DatabaseUnavailable, ReadAsk, Stop, TokenVault
from tests.chaos.rotation_slack import LIFE_S, Pair, SlackRules, SlackWorld

_T = TypeVar("_T")

KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
BOT = "U0BOT"
ENVIRONMENT = "development"
ORIGIN = Origin(actor="gateway-worker", rpc="/x/ReadBotToken", grant_id="jti")
EVENT = AuditEvent("releases.frozen", ORIGIN)
PROCESSES = 2
HTTP_TIMEOUT_S = 45.0
WRITES = frozenset({"claim", "keep", "promote", "mark_probed", "end", "prove", "give_back"})
# Turns of the loop without a database call, after which nothing goes on by itself.
QUIET_TURNS = 12
CALM_ROUNDS = 15

processes = st.integers(0, PROCESSES - 1)
# What ends much happens less often than what begins it.
rarely = st.sampled_from([True, *[False] * 9])
pauses = st.sampled_from([1.0, 9.5, 20.0, 61.0])
database_faults = st.sampled_from(["fail_before", "fail_after", "die_before", "die_after"])


@dataclass(eq=False)
class Request:
    """One request at Slack, open until the machine ends it."""

    process: "Process"
    token: str
    until: float
    answer: "asyncio.Future[Pair | None]"
    has_acted: bool = False
    pair: Pair | None = None


@dataclass(eq=False)
class Process:
    """A vault process; dead, none of its calls comes back.

    Attributes:
        backlog: What came while it stood still.
    """

    number: int
    spool: MemorySpool
    rotating: Rotating
    keeper: Keeper
    backlog: list[Callable[[], None]]
    is_alive: bool = True
    is_still: bool = False
    epoch: int = 0
    leased_at: float = 0.0
    running: "asyncio.Task[object] | None" = None


class MachineClock(ManualClock):
    """Time that passes when the machine lets it."""

    def __init__(self) -> None:
        super().__init__(datetime.now(UTC))
        self.seconds = 0.0

    def monotonic(self) -> float:
        """Read it."""
        return self.seconds


class Watched:
    """A RotationStore of one process: it fails, or kills the process, on command."""

    def __init__(self, world: "World", store: RotationStore) -> None:
        self._world = world
        self._store = store
        self.process: Process | None = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(self._call, name)

    async def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        world, process = self._world, self.process
        assert process is not None
        fault = world.database_faults.popleft() if name in WRITES and world.database_faults else ""
        await world.pass_or_die(process, fault, "before")
        world.in_flight += 1
        try:
            result = await getattr(self._store, name)(*arguments, **named)
        finally:
            world.in_flight -= 1
        if name == "claim":
            world.note_claim(process, result.epoch)
        await world.pass_or_die(process, fault, "after")
        return result


class MachineSlack:
    """A SlackTokens of one process, answered by the machine."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.process: Process | None = None

    async def refresh(self, refresh_token: Secret[str]) -> RefreshAnswer:
        """Exchange a refresh token; see SlackTokens."""
        assert self.process is not None
        pair = await self._world.ask(self.process, refresh_token.reveal())
        if pair is None:
            raise RefreshRefused
        return RefreshAnswer(
            Secret(pair.access),
            Secret(pair.refresh),
            LIFE_S,
            "bot",
            KEY.app_id,
            KEY.team_id,
            KEY.enterprise_id,
        )

    async def exchange_lasting(self, token: Secret[str]) -> RefreshAnswer:
        """Exchange a token that never ends; see SlackTokens."""
        raise AssertionError("nothing here lasts")

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is; see SlackTokens."""
        if not self._world.slack.is_alive(token.reveal()):
            raise TokenDead
        return BotIdentity(KEY.team_id, "", BOT, is_enterprise_install=False)

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; see SlackTokens."""
        self._world.slack.revoke(token.reveal())


class World:
    """A Postgres, a Slack, a disk for each process, and time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        admin: "asyncpg.Connection[asyncpg.Record]",
        pool: Pool,
        journal: Journal,
    ) -> None:
        self._loop = loop
        self._others = asyncio.all_tasks(loop)
        self._admin = admin
        self._rotation = PostgresRotation(pool, journal)
        self._reads = PostgresStore(pool, journal)
        kms = FakeKms(Faults())
        self._keys = KmsKeys(kms, fingerprint_key=Secret("k" * 32), clock=SystemClock())
        self.lifecycle = KeyLifecycle(
            store=PostgresKeys(pool, None, journal),
            keys=self._keys,
            keks=kms,
            slack=FakeSlack(Faults()),
            claims=FakeClaims(Faults()),
            client_id=KEY.client_id,
            environment=ENVIRONMENT,
        )
        self.vault = TokenVault(self._reads, self._keys, environment=ENVIRONMENT)
        self.start_over(SlackRules(0, newest_wins=True, reinstall_ends_old=False))

    def start_over(self, rules: SlackRules) -> None:
        """Empty everything."""
        self.clock = MachineClock()
        self.slack = SlackWorld(rules, self.clock.monotonic)
        self.chain = Chain(InstallationId(uuid4()))
        self.database_faults: deque[str] = deque()
        self.requests: list[Request] = []
        self.sleeps: list[tuple[float, Process, asyncio.Future[None]]] = []
        self.graves: list[asyncio.Future[None]] = []
        self.in_flight = 0
        self.is_frozen = False
        self.purged_at: float | None = None
        self.broken: list[str] = []
        self.newest_epoch = 0
        self.delivered: list[tuple[Request, float]] = []
        self.execute("DELETE FROM vault.freeze")
        self.execute("DELETE FROM vault.wrapped_dek")
        self.execute("DELETE FROM vault.installation")
        self.processes = [self.process(number, MemorySpool()) for number in range(PROCESSES)]

    def process(self, number: int, spool: MemorySpool) -> Process:
        """Start a process on a disk."""
        store, slack = Watched(self, self._rotation), MachineSlack(self)
        parts_of: list[Process] = []
        parts: dict[str, Any] = {
            "store": cast("RotationStore", store),
            "slack": slack,
            "spool": spool,
            "sleep": lambda seconds: self.sleep(parts_of[0], seconds),
        }
        keeper = Keeper(keys=self._keys, environment=ENVIRONMENT, **parts)
        rotating = Rotating(keeper=keeper, clock=self.clock, **parts)
        made = Process(number, spool, rotating, keeper, [])
        parts_of.append(made)
        store.process = slack.process = made
        return made

    # The loop.

    def run(self, work: Awaitable[_T]) -> _T:
        """Do something, and then whatever follows by itself."""

        async def whole() -> _T:
            result = await work
            await self._quiet()
            return result

        return self._loop.run_until_complete(whole())

    def outcome(self, work: Awaitable[object]) -> str:
        """Do something; returns the reason for which it was refused, or OK."""
        try:
            self.run(work)
        except ServiceError as error:
            return error.reason
        return "OK"

    def execute(self, statement: str, *arguments: object) -> "list[asyncpg.Record]":
        """Ask the database past the vault."""
        return self._loop.run_until_complete(self._admin.fetch(statement, *arguments))

    async def _quiet(self) -> None:
        turns = 0
        while turns < QUIET_TURNS:
            await asyncio.sleep(0.001 if self.in_flight else 0)
            turns = 0 if self.in_flight else turns + 1

    def end(self) -> None:
        """End what still waits, and nobody else's."""

        async def cancel() -> None:
            waiting = asyncio.all_tasks() - self._others - {asyncio.current_task()}
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        self._loop.run_until_complete(cancel())

    # What a process meets.

    async def pass_or_die(self, process: Process, fault: str, when: str) -> None:
        """Go on, fail, or never come back."""
        if fault == f"die_{when}":
            process.is_alive = False
        if not process.is_alive:
            grave: asyncio.Future[None] = self._loop.create_future()
            self.graves.append(grave)
            await grave
        if fault == f"fail_{when}":
            raise DatabaseUnavailable

    async def sleep(self, process: Process, seconds: float) -> None:
        """Wait until the machine has let so much time pass."""
        sleep: asyncio.Future[None] = self._loop.create_future()
        self.sleeps.append((self.clock.seconds + seconds, process, sleep))
        await sleep

    async def ask(self, process: Process, token: str) -> Pair | None:
        """Ask Slack, under a lease."""
        if process.epoch == 0 or self.clock.seconds >= process.leased_at + LEASE.total_seconds():
            self.broken.append("I1 an exchange was started outside a lease")
        request = Request(
            process, token, self.clock.seconds + HTTP_TIMEOUT_S, self._loop.create_future()
        )
        self.requests.append(request)
        return await request.answer

    def note_claim(self, process: Process, epoch: int) -> None:
        """Remember who has the lease."""
        if self.is_frozen:
            self.broken.append("a frozen chain was leased")
        others = [each for each in self.processes if each is not process and each.epoch]
        minute = LEASE.total_seconds()
        if any(
            self.clock.seconds < each.leased_at + minute and self._is_asking(each)
            for each in others
        ):
            self.broken.append("I1 two leases at a time")
        process.epoch, process.leased_at = epoch, self.clock.seconds
        if epoch <= self.newest_epoch:
            self.broken.append("I1 a lease with an old number")
        self.newest_epoch = max(epoch, self.newest_epoch)

    def _is_asking(self, process: Process) -> bool:
        return process.is_alive and any(each.process is process for each in self.requests)

    # What the machine does.

    def begin(self, process: Process) -> None:
        """Have a process refresh the chain, unless it is at it."""
        if not process.is_alive or process.is_still:
            return
        if process.running and not process.running.done():
            return

        async def start() -> None:
            process.running = asyncio.create_task(_survive(process.rotating.refresh(self.chain)))

        self.run(start())

    def make_due(self) -> None:
        """Have the stored token end soon, and a pause after failures with it."""
        soon = datetime.now(UTC) + timedelta(minutes=30)
        self.execute("UPDATE vault.sealed_token SET expires_at = $1 WHERE slot = 'access'", soon)
        self.execute("UPDATE vault.rotation SET not_before = NULL")

    def act(self, request: Request) -> None:
        """Have Slack do what it was asked."""
        if not request.has_acted:
            request.has_acted = True
            request.pair = self.slack.exchange(request.token)

    def reply(self, request: Request) -> None:
        """Have Slack's answer arrive."""
        self.act(request)
        self.requests.remove(request)
        if request.pair is not None and not request.answer.done():
            self.delivered.append((request, self.clock.seconds))
        self._settle(request, request.pair)

    def lose(self, request: Request, error: ServiceError) -> None:
        """Have a request fail, whether or not Slack did it."""
        self.requests.remove(request)
        self._settle(request, error)

    def _settle(self, request: Request, result: Pair | ServiceError | None) -> None:
        def settle() -> None:
            if isinstance(result, ServiceError):
                request.answer.set_exception(result)
            else:
                request.answer.set_result(result)

        self._happen([(request.process, request.answer, settle)])

    def _happen(
        self, news: Iterable[tuple[Process, "asyncio.Future[Any]", Callable[[], None]]]
    ) -> None:
        """Have things reach their processes; one that stands still hears of them later."""

        async def happen() -> None:
            for process, future, tell in news:
                hear = partial(_tell_waiting, future, tell)
                if process.is_still:
                    process.backlog.append(hear)
                elif process.is_alive:
                    hear()

        self.run(happen())

    def stand_still(self, process: Process, *, is_still: bool) -> None:
        """Stop a process as SIGSTOP does, or let it go on."""
        process.is_still = is_still
        if is_still or not process.is_alive:
            return

        async def go_on() -> None:
            for hear in process.backlog:
                hear()
            process.backlog.clear()

        self.run(go_on())

    def wait(self, seconds: float) -> None:
        """Let time pass, event by event."""
        target = self.clock.seconds + seconds
        while True:
            sleeps = [due for due, _, sleep in self.sleeps if not sleep.done()]
            timeouts = [request.until for request in self.requests]
            at = min([target, *sleeps, *timeouts])
            self._turn_to(at)
            if at >= target and not any(due <= at for due in [*sleeps, *timeouts]):
                return
            self._wake()

    def _turn_to(self, at: float) -> None:
        by = timedelta(seconds=at - self.clock.seconds)
        self.clock.seconds = at
        self.execute(
            "UPDATE vault.rotation SET lease_until = lease_until - $1::interval,"
            " not_before = not_before - $1::interval",
            by,
        )
        self.execute("UPDATE vault.sealed_token SET expires_at = expires_at - $1::interval", by)
        self.execute("UPDATE vault.candidate_token SET expires_at = expires_at - $1::interval", by)

    def _wake(self) -> None:
        for request in [each for each in self.requests if each.until <= self.clock.seconds]:
            self.lose(request, SlackSilent())
        now = self.clock.seconds
        due = [each for each in self.sleeps if each[0] <= now]
        self.sleeps = [each for each in self.sleeps if each[0] > now]
        self._happen((process, sleep, partial(sleep.set_result, None)) for _, process, sleep in due)

    def restart(self, number: int) -> None:
        """Kill a process where it stands, and start another on its disk."""
        before = self.processes[number]
        before.is_alive = False
        before.spool.restart()
        self.processes[number] = self.process(number, before.spool)
        self.run(self.processes[number].keeper.replay())

    def install(self) -> None:
        """Install the app, or install it again, as an activation does."""
        pair = self.slack.install()
        self._loop.run_until_complete(self._install(pair))

    async def _install(self, pair: Pair) -> None:
        installation_id = self.chain.installation_id
        context = KeyContext(ENVIRONMENT, KEY.client_id, installation_id)
        generation = await self._admin.fetchval(
            "UPDATE vault.installation SET generation = generation + 1 RETURNING generation"
        )
        if generation is None:
            generation = 1
            wrapped, data_key = await self._keys.make(context)
            await self._admin.execute(
                "INSERT INTO vault.installation VALUES ($1, $2, $3, '', $4, 'northwind',"
                " 'active', 1, 'Northwind', $5, '{}', clock_timestamp())",
                installation_id,
                KEY.client_id,
                KEY.app_id,
                KEY.team_id,
                BOT,
            )
            await self._admin.execute(
                "INSERT INTO vault.wrapped_dek VALUES ($1, $2, $3, $4)",
                wrapped.dek_id,
                installation_id,
                wrapped.kek_version,
                wrapped.wrapped,
            )
        else:
            held = await self._rotation.find_chain(self.chain)
            if held is None:
                raise AssertionError("what was raised is there")
            wrapped, data_key = held.wrapped, self._keys.take(held.wrapped, context)
        await self._admin.execute("DELETE FROM vault.sealed_token")
        life = timedelta(seconds=LIFE_S)
        for slot, text in ((TokenSlot.ACCESS, pair.access), (TokenSlot.REFRESH, pair.refresh)):
            place = TokenContext(
                environment=ENVIRONMENT,
                key=KEY,
                installation_id=installation_id,
                user_id="",
                kind=TokenKind.BOT,
                slot=slot,
                dek_id=wrapped.dek_id,
                generation=generation,
            )
            expires_at = datetime.now(UTC) + life if slot is TokenSlot.ACCESS else None
            sealed = await data_key.seal(Secret(text), place, expires_at)
            await self._admin.execute(
                "INSERT INTO vault.sealed_token VALUES ($1, 'bot', $2, '', $3, $4, $5, $6, $7)",
                installation_id,
                slot.value,
                generation,
                wrapped.dek_id,
                sealed.sealed,
                sealed.ref,
                expires_at,
            )

    def freeze(self, *, is_on: bool) -> None:
        """Freeze everything, or thaw it."""
        self.is_frozen = is_on
        if is_on:
            self.run(self._reads.stop_releases(None, Stop.FROZEN, "why", EVENT))
        else:
            self.run(self._reads.resume_releases(None, Stop.FROZEN, EVENT))

    # Looking.

    def held(self) -> HeldChain | None:
        """Look at the chain."""
        return self.run(self._rotation.find_chain(self.chain))

    def opened(self, held: HeldChain) -> list[tuple[str, str]]:
        """Open the stored pair, and then those beside it."""
        assert held.refresh is not None
        pairs = [
            (held.access, held.refresh),
            *((c.pair.access, c.pair.refresh) for c in held.candidates),
        ]
        keeper = self.processes[0].keeper
        key = keeper.open_key(held)

        async def reveal() -> list[tuple[str, str]]:
            return [
                (
                    (await keeper.open(held, key, access)).reveal(),
                    (await keeper.open(held, key, refresh)).reveal(),
                )
                for access, refresh in pairs
            ]

        return self.run(reveal())


def _tell_waiting(future: "asyncio.Future[Any]", tell: Callable[[], None]) -> None:
    if not future.done():
        tell()


async def _survive(work: Awaitable[object]) -> None:
    """Do what a scheduler does with a refresh that could not begin."""
    try:
        await work
    except ServiceError:
        return


class Rotation(RuleBasedStateMachine):
    """The vault's chains against what must hold."""

    world: World

    @initialize(
        grace_s=st.sampled_from([0.0, 30.0]),
        newest_wins=st.booleans(),
        reinstall_ends_old=st.booleans(),
    )
    def begin(self, *, grace_s: float, newest_wins: bool, reinstall_ends_old: bool) -> None:
        """Begin with one install whose token is due soon."""
        rules = SlackRules(grace_s, newest_wins=newest_wins, reinstall_ends_old=reinstall_ends_old)
        self.world.start_over(rules)
        self.world.install()
        self.highest = self.turn = 0

    def is_installed(self) -> bool:
        """Tell whether nothing was purged."""
        return self.world.purged_at is None

    def has_requests(self) -> bool:
        """Tell whether Slack was asked something."""
        return bool(self.world.requests)

    def _request(self, place: int) -> Request:
        return self.world.requests[place % len(self.world.requests)]

    @rule(number=processes)
    def refresh(self, number: int) -> None:
        """Have a process come round for a token that is due."""
        if not self.world.processes[number].is_alive:
            self.world.restart(number)
        if not self.world.requests:
            self.world.make_due()
        self.world.begin(self.world.processes[number])

    @precondition(has_requests)
    @rule(place=st.integers(0, 5))
    def act(self, place: int) -> None:
        """Slack does what it was asked; nobody hears of it yet."""
        self.world.act(self._request(place))

    @precondition(has_requests)
    @rule(place=st.integers(0, 5))
    def answer(self, place: int) -> None:
        """Slack's answer arrives."""
        self.world.reply(self._request(place))

    @precondition(has_requests)
    @rule(place=st.integers(0, 5), has_acted=st.booleans())
    def lose(self, place: int, *, has_acted: bool) -> None:
        """A connection breaks, before or after Slack did it."""
        request = self._request(place)
        if has_acted:
            self.world.act(request)
        self.world.lose(request, SlackUnavailable())

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        """Let time pass: requests fall silent, leases end, tokens come due."""
        self.world.wait(seconds)

    @precondition(has_requests)
    @rule(fault=database_faults)
    def break_database(self, fault: str) -> None:
        """Have the next commit fail, or the process end at it."""
        if len(self.world.database_faults) < len(WRITES):
            self.world.database_faults.append(fault)

    @rule(number=processes)
    def restart(self, number: int) -> None:
        """Kill a process, and start the next one."""
        self.world.restart(number)

    @rule(number=processes, is_still=st.booleans())
    def stand_still(self, number: int, *, is_still: bool) -> None:
        """Stop a process as SIGSTOP does, or let it go on."""
        self.world.stand_still(self.world.processes[number], is_still=is_still)

    @precondition(has_requests)
    @rule(place=st.integers(0, 5), has_replied=st.booleans())
    def overtake(self, place: int, *, has_replied: bool) -> None:
        """Stop a holder until its lease is over, and have the other process come round."""
        request = self._request(place)
        holder = request.process
        self.world.stand_still(holder, is_still=True)
        if has_replied:
            self.world.reply(request)
        self.world.wait(61.0)
        other = 1 - holder.number
        self.world.stand_still(self.world.processes[other], is_still=False)
        self.refresh(other)

    @precondition(has_requests)
    @rule(place=st.integers(0, 5))
    def answer_to_all(self, place: int) -> None:
        """Let everybody go on, and everything be answered, one first."""
        for process in self.world.processes:
            self.world.stand_still(process, is_still=False)
        if self.world.requests:
            self.world.reply(self._request(place))
        while self.world.requests:
            self.world.reply(self.world.requests[0])

    @precondition(is_installed)
    @rule(really=rarely)
    def reinstall(self, *, really: bool) -> None:
        """Install the app again."""
        if really:
            self.world.install()

    @precondition(lambda self: self.is_installed() and self.has_requests())
    @rule(really=st.sampled_from([True, False, False]), at_slack=rarely)
    def uninstall(self, *, really: bool, at_slack: bool) -> None:
        """Purge the installation amid an exchange, whether or not Slack knows."""
        if not really:
            return
        if at_slack:
            self.world.slack.uninstall()
        self.world.purged_at = self.world.clock.seconds
        self.world.run(
            self.world.lifecycle.shred(self.world.chain.installation_id, ORIGIN, dry_run=False)
        )

    @rule(is_on=rarely)
    def freeze(self, *, is_on: bool) -> None:
        """Freeze everything, or thaw it."""
        self.world.freeze(is_on=is_on)

    @precondition(is_installed)
    @rule()
    def rotate_data_key(self) -> None:
        """Give the installation a new data key, where that is allowed."""
        work = self.world.lifecycle.rotate_dek(self.world.chain.installation_id, ORIGIN)
        assert self.world.outcome(work) in {"OK", "REFRESH_UNSETTLED"}

    @rule()
    def read(self) -> None:
        """I5: nothing is released once it is purged or frozen."""
        outcome = self.world.outcome(self.world.vault.read(ReadAsk(KEY, ORIGIN)))
        if self.world.purged_at is not None:
            assert outcome == "INSTALLATION_NOT_FOUND"
        elif self.world.is_frozen:
            assert outcome == "RELEASES_FROZEN"

    @invariant()
    def the_scheduler_comes_round(self) -> None:
        """Have one process after the other look for what is due."""
        if not self.world.requests:
            self.turn = (self.turn + 1) % PROCESSES
            self.world.make_due()
            self.world.begin(self.world.processes[self.turn])

    @invariant()
    def nothing_is_broken(self) -> None:
        """I1 at every request, I6 and I9 after every step."""
        assert self.world.broken == []
        rows = self.world.execute(
            "SELECT i.generation, t.generation AS of_token FROM vault.installation i"
            " JOIN vault.sealed_token t USING (installation_id) WHERE t.slot = 'access'"
        )
        assert len(rows) == (self.world.purged_at is None)
        for row in rows:
            assert row["generation"] == row["of_token"] >= self.highest
            self.highest = row["generation"]

    def teardown(self) -> None:
        """I2: once all has calmed down, the chain leads on or says that it does not."""
        try:
            self._calm()
            self.nothing_is_broken()
            held = self.world.held()
            if held is None:
                self._judge_purged()
            else:
                self._judge(held)
        finally:
            self.world.end()

    def _calm(self) -> None:
        world = self.world
        world.database_faults.clear()
        world.freeze(is_on=False)
        for number, process in enumerate(world.processes):
            world.stand_still(process, is_still=False)
            if not process.is_alive:
                world.restart(number)
        for _ in range(CALM_ROUNDS):
            while world.requests:
                world.reply(world.requests[0])
            world.wait(400)
            held = world.held()
            if held is None:
                continue
            is_over = held.state.standing in {Standing.IDLE, Standing.NEEDS_REINSTALL}
            if is_over and not held.has_to_settle and not world.requests:
                return
            world.make_due()
            world.begin(world.processes[0])

    def _judge(self, held: HeldChain) -> None:
        slack, pairs = self.world.slack, self.world.opened(held)
        stored = {refresh for _, refresh in pairs}
        for pair in self._learnt_pairs():
            assert pair.refresh in stored, "a pair was lost that a living process had"
        leads_on = any(slack.can_refresh(refresh) for _, refresh in pairs)
        if held.state.standing is Standing.NEEDS_REINSTALL:
            assert not leads_on, "I2 a chain was ended that leads on"
            return
        assert held.state.standing is Standing.IDLE
        assert leads_on, "I2 the stored pair is dead, and nothing says so"

    def _learnt_pairs(self) -> list[Pair]:
        """List the pairs that lead on and came to processes that have lived since."""
        slack = self.world.slack
        newest = max(pair.number for pair in slack.pairs if not pair.parent)
        learnt = [
            request.pair
            for request, _ in self.world.delivered
            if request.process.is_alive and request.pair is not None
        ]
        return [
            pair
            for pair in learnt
            if slack.can_refresh(pair.refresh) and slack.root_of(pair) == newest
        ]

    def _judge_purged(self) -> None:
        """End at Slack what a living process learned after the purge."""
        purged_at = self.world.purged_at
        assert purged_at is not None
        for request, at in self.world.delivered:
            if at > purged_at and request.process.is_alive and request.pair is not None:
                assert not self.world.slack.is_alive(request.pair.access)


@pytest.fixture
def world(cluster: ScratchDatabases) -> Iterator[World]:
    """Give a vault's database, and a loop of our own to use it in."""
    loop = asyncio.new_event_loop()
    try:
        urls = loop.run_until_complete(cluster.database(DATABASE))
        database = urlsplit(urls.owner.reveal()).path.strip("/")
        admin = loop.run_until_complete(
            asyncpg.connect(cluster.admin_url.reveal(), database=database)
        )
        opening = open_pool(urls.roles[VAULT_ROLE], application="test")
        pool = loop.run_until_complete(opening.__aenter__())
        keeping = open_journal(pool, new_id=uuid4)
        journal = loop.run_until_complete(keeping.__aenter__())
        yield World(loop, admin, pool, journal)
        loop.run_until_complete(keeping.__aexit__(None, None, None))
        loop.run_until_complete(opening.__aexit__(None, None, None))
        loop.run_until_complete(admin.close())
    finally:
        loop.close()


@pytest.mark.timeout(600)
def test_a_chain_is_whole_or_says_so(world: World) -> None:
    """I1, I2, I5, I6 and I9 in every order of events that was drawn."""
    machine = type("RotationInThisWorld", (Rotation,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
