"""Run the production coroutines of rotation through schedules drawn from a seed.

Three vault processes share one database and one Slack, all in one virtual-time
loop. Between any two steps of a process it may be paused or killed, lose a
reply, or lose the database, Slack or the KMS; the workspace may be reinstalled
or uninstalled, and tokens may be frozen or put on hold for a while. One seed is
one schedule, and can be run again.

A loss is avoidable when the pair that Slack goes on with had reached a process
that lived on, or its spool. A reply that no process ever got is not ours to keep.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import structlog

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.memory import ManualClock
from interlock_token_vault.adapters.memory_rotation import MemoryRotation, MemorySpool
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedBytes,
    SealedToken,
    TokenContext,
    WrappedDek,
)
from interlock_token_vault.domain.install import BotIdentity
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
    SOFT_LIMIT,
    Chain,
    Fate,
    RefreshAnswer,
    Standing,
    jitter_of,
)
from interlock_token_vault.install_ports import SlackUnavailable, TokenDead
from interlock_token_vault.keeping import Keeper
from interlock_token_vault.renewing import Renewing
from interlock_token_vault.rotating import Rotating
from interlock_token_vault.rotation_ports import (
    HeldChain,
    Lease,
    RefreshRefused,
    SealedAnswer,
    SealedPair,
    SlackRateLimited,
    SlackSilent,
    Slot,
)
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    DataKey,
    Judge,
    KmsUnavailable,
    ReadAsk,
    ReadTarget,
    Stop,
    TokenVault,
    Verdict,
)
from tests.chaos.rotation_slack import LIFE_S, Pair, SlackRules, SlackWorld
from tests.chaos.virtual_loop import VirtualLoop

_BASE = datetime(2026, 1, 2, tzinfo=UTC)
_KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
_BOT = "U0BOT"
_ORIGIN = Origin(actor="gateway-worker", rpc="/x/ReadBotToken")
_PROCESSES = 3
_CYCLES = 2
_TICK_S = 15.0
_HTTP_TIMEOUT_S = 45.0
_PATIENCE = timedelta(seconds=4)
_DRAIN_S = 120.0
_TROUBLE_S = 150.0
# Long enough for the longest backoff to pass twice.
_CALM_S = 1500.0

T = TypeVar("T")

# Whether tokens were frozen when the database was last asked about them, by what asks
# Slack next; whoever begins something there has looked just before.
_SAW_STOP = ContextVar("saw_stop", default=False)
_FREEZE = AuditEvent("releases.frozen", Origin(actor="operator", rpc="/x/SetFreeze"))


@dataclass(frozen=True)
class Dangers:
    """How likely what goes wrong is, in one world.

    Attributes:
        crash: At one step, that the process is killed there.
        pause: At one step, that the process is stopped for up to 100 s.
        slack: Of one request, that something is wrong with it.
        database: Of one call, that it fails before or after its effect.
        kms: Of one use of a data key that is not in memory.
        odd: Of one answer, that it is not as Slack promises.
    """

    crash: float
    pause: float
    slack: float
    database: float
    kms: float
    odd: float


CALM = Dangers(0, 0, 0, 0, 0, 0)


@dataclass
class Report:
    """What one schedule came to.

    Attributes:
        violations: Broken invariants, in words.
        avoidable: Losses that need not have been.
        unavoidable: Losses of pairs that no process got.
        exchanges: Requests that reached Slack.
        amid_freeze: Of those, made for a lease that a freeze overtook.
        trace: Digest of everything that happened, in order.
    """

    seed: int
    violations: list[str] = field(default_factory=list)
    avoidable: int = 0
    unavoidable: int = 0
    exchanges: int = 0
    amid_freeze: int = 0
    rotations: int = 0
    trace: str = ""


class LoopClock(ManualClock):
    """The loop's time as a clock, as wrong as its machine's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, started: float, skew_s: float = 0) -> None:
        super().__init__(_BASE)
        self._loop = loop
        self._started = started
        self._skew = timedelta(seconds=skew_s)

    def now(self) -> datetime:
        """Read the wall clock."""
        elapsed = timedelta(seconds=self._loop.time() - self._started)
        return _BASE + elapsed + self._skew

    def monotonic(self) -> float:
        """Read seconds that do not depend on the wall clock."""
        return self._loop.time()


class World:
    """A database, a Slack, and what happens to them."""

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - A schedule, no secret.
        self.loop = loop
        self.started = loop.time()
        self.report = Report(seed)
        self.is_over = False
        self.lines: list[str] = []
        self.digest = hashlib.sha256()
        rng = self.rng
        self.rules = SlackRules(
            grace_s=rng.choice([0.0, 30.0]),
            newest_wins=rng.random() < 0.5,
            reinstall_ends_old=rng.random() < 0.5,
        )
        self.trouble = Dangers(
            crash=rng.choice([0, 0.004, 0.02]),
            pause=rng.choice([0, 0.004, 0.02]),
            slack=rng.choice([0, 0.2, 0.5]),
            database=rng.choice([0, 0.02, 0.1]),
            kms=rng.choice([0, 0.1]),
            odd=rng.choice([0, 0, 0.05]),
        )
        self.dangers = CALM
        self.clock = LoopClock(loop, self.started)
        self.db = MemoryRotation(self.clock, chain_id=UUID(int=99))
        self.slack = SlackWorld(self.rules, loop.time)
        self.chain = Chain(InstallationId(UUID(int=rng.getrandbits(128))))
        self.processes: list[Process] = []
        # Which process a pair reached, and whether that could be relied upon.
        self.reached: dict[int, Process] = {}
        self.spooled: set[int] = set()
        self.stored: set[int] = set()
        self.graves: list[asyncio.Future[None]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.leases: dict[int, Granted] = {}
        self.purged_at: float | None = None
        self.highest = 0
        # Of those controls that lock.
        self.lock_until = 0.0
        self.wrapped = WrappedDek(DekId(UUID(int=1)), self.chain.installation_id, "kek", b"w" * 48)

    def note(self, *what: object) -> None:
        """Add something that happened to the trace."""
        line = f"{self.loop.time() - self.started:.3f} {what}"
        self.digest.update(line.encode())
        self.lines.append(line)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on by itself."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def violate(self, what: str) -> None:
        """Report a broken invariant."""
        self.report.violations.append(f"{what} at {self.loop.time() - self.started:.3f} s")

    # What others do to the workspace.

    def install(self) -> None:
        """Install the app, or install it again, as one commit."""
        pair = self.slack.install()
        held = self.db.installations.get(self.chain.installation_id)
        generation = held.generation + 1 if held else 1
        self.db.installations[self.chain.installation_id] = Installation(
            id=self.chain.installation_id,
            key=_KEY,
            tenant_id=TenantId("northwind"),
            state=InstallationState.ACTIVE,
            generation=generation,
            name="Northwind",
            bot_user_id=_BOT,
            bot_scopes=(),
            installed_at=self.clock.now(),
        )
        self.db.deks[self.chain.installation_id] = self.wrapped
        expires_at = self.clock.now() + timedelta(seconds=LIFE_S)
        self.db.tokens[self.chain.installation_id] = (
            _seal(pair.access, self._place(TokenSlot.ACCESS, generation), expires_at),
            _seal(pair.refresh, self._place(TokenSlot.REFRESH, generation), None),
        )
        # A token fresh from Slack is known to live, whatever was restored before it.
        self.db.stops.pop((self.chain.installation_id, Stop.HELD), None)
        self.note("installed", generation)
        self.look()

    def put_pair(self, answer: RefreshAnswer, expires_at: datetime) -> None:
        """Store a pair over whatever is there, as one commit; for the controls."""
        held = self.db.installations.get(self.chain.installation_id)
        if held is None:
            return
        generation = held.generation + 1
        self.db.installations[held.id] = replace(held, generation=generation)
        self.db.tokens[held.id] = (
            _seal(answer.token.reveal(), self._place(TokenSlot.ACCESS, generation), expires_at),
            _seal(answer.refresh_token.reveal(), self._place(TokenSlot.REFRESH, generation), None),
        )

    def purge(self) -> None:
        """Delete the installation, as one commit."""
        for held in (self.db.installations, self.db.tokens, self.db.deks):
            held.pop(self.chain.installation_id, None)
        self.purged_at = self.loop.time()
        self.note("purged")

    @property
    def is_stopped(self) -> bool:
        """Whether the workspace's tokens are frozen or on hold."""
        held = self.db.held(self.chain)
        return held is not None and held.facts.is_stopped

    async def stop_for(self, stop: Stop, where: InstallationId | None, seconds: float) -> None:
        """Freeze tokens or put them on hold, and let them go again after a while."""
        if where is not None and where not in self.db.installations:
            return
        await self.db.stop_releases(where, stop, "a leak", _FREEZE)
        self.note("stopped", stop.value, where is None)
        await asyncio.sleep(seconds)
        await self.db.resume_releases(where, stop, _FREEZE)
        self.note("let go", stop.value)

    def require_use(self) -> None:
        """Check that nothing is begun with a token that was seen to be frozen."""
        if _SAW_STOP.get():
            self.violate("a frozen token was used")

    def _place(self, slot: TokenSlot, generation: int) -> TokenContext:
        return TokenContext(
            environment="development",
            key=_KEY,
            installation_id=self.chain.installation_id,
            user_id="",
            kind=TokenKind.BOT,
            slot=slot,
            dek_id=self.wrapped.dek_id,
            generation=generation,
        )

    def was_kept_alive(self, number: int) -> bool:
        """Tell whether the process that a pair reached has lived since."""
        process = self.reached.get(number)
        return process is not None and process.is_alive

    # What must be true at every moment.

    def look(self) -> None:
        """Check what must be true after each commit."""
        held = self.db.held(self.chain)
        if held is None:
            if self.purged_at is None:
                self.violate("I9 a living installation is gone")
            return
        if held.state.generation != held.installation.generation:
            self.violate("I6 the pair and its installation differ")
        if held.state.generation < self.highest:
            self.violate("I6 a generation fell")
        self.highest = held.state.generation
        holder = self.db.holder(self.chain)
        since = self.leases[holder].since if holder in self.leases else self.loop.time()
        if self.loop.time() - since > LEASE.total_seconds():
            self.violate("I8 a lease outlived its minute")

    def require_lease(self, process: "Process") -> None:
        """Check that an exchange is started by who holds the lease."""
        now, minute = self.loop.time(), LEASE.total_seconds()
        mine = self.leases.get(process.epoch)
        if mine is None or now >= mine.since + minute:
            self.violate("I1 an exchange outside a lease")
            return
        # An install begins another chain, with leases of its own.
        later = [
            each
            for epoch, each in self.leases.items()
            if epoch > process.epoch and each.lineage == mine.lineage
        ]
        if later:
            self.violate("I1 an exchange under a lease that another one followed")


@dataclass(frozen=True)
class Granted:
    """A lease that was given.

    Attributes:
        lineage: The install whose chain it is on.
    """

    since: float
    lineage: int


class Process:
    """One run of a vault process, and what it holds.

    Attributes:
        epoch: Of the newest lease that it was given.
        spool: The disk, which the next run finds.
    """

    def __init__(self, world: World, number: int, spool: MemorySpool) -> None:
        self.world = world
        self.number = number
        self.spool = spool
        self.epoch = 0
        self.is_alive = True
        self.is_stopping = False
        self.ended = asyncio.Event()
        self.paused_until = 0.0
        skew_s = world.rng.choice([-600.0, 0.0, 600.0])
        self.clock = LoopClock(world.loop, world.started, skew_s)
        store, slack, ports = SimStore(self), SimSlack(self), SimSpool(self)
        self.store, self.slack = store, slack
        self.keeper = Keeper(
            store=store,
            keys=SimKeys(self),
            slack=slack,
            spool=ports,
            environment="development",
            sleep=self.sleep,
        )
        self.rotating = Rotating(
            store=store,
            keeper=self.keeper,
            slack=slack,
            spool=ports,
            clock=self.clock,
            sleep=self.sleep,
        )
        self.renewing = Renewing(
            store=store,
            rotating=self.rotating,
            keeper=self.keeper,
            news=world.db.news,
            client_id=_KEY.client_id,
            clock=self.clock,
            sleep=self.sleep,
        )
        self.vault = TokenVault(
            store, SimKeys(self), environment="development", renewals=self.renewing
        )

    async def run(self) -> None:
        """Do what a vault process does for its chains, until it is killed or told to stop."""
        self.world.start(self._replay())
        while not self.is_stopping:
            try:
                await self.renewing.run_due()
            except DatabaseUnavailable:
                self.world.note(self.number, "no database")
            await self.sleep(_TICK_S)
        await self.renewing.drain()
        self.kill()

    async def _replay(self) -> None:
        await self.gate()
        await self.renewing.replay()

    async def read(self) -> None:
        """Read as a worker does, sometimes with the word that Slack refused the last token."""
        world = self.world
        held = world.db.held(world.chain)
        is_refused = held is not None and world.rng.random() < 0.3
        newer_than = held.state.generation if held is not None and is_refused else 0
        try:
            released = await self.vault.read(ReadAsk(_KEY, _ORIGIN, newer_than, patience=_PATIENCE))
        except ServiceError as error:
            world.note(self.number, "refused", error.reason)
            return
        token = released.token.reveal()
        if released.generation <= newer_than:
            world.violate("I6 a reader got what it had")
        if not any(
            event.action == "token.read" and event.token_ref == token
            for event in (record.event for record in world.db.records)
        ):
            world.violate("I3 a token was released without a record")

    @property
    def is_busy(self) -> bool:
        """Whether an exchange or an answer of it is under way here."""
        return bool(self.renewing._running or self.keeper._running)

    def kill(self) -> None:
        """End the process where it is."""
        self.is_alive = False
        self.ended.set()
        self.world.note("killed", self.number)

    async def sleep(self, seconds: float) -> None:
        """Let time pass, in this process."""
        await asyncio.sleep(seconds)
        await self.gate()

    async def step(self, least: float = 0.001, most: float = 0.02) -> None:
        """Take a moment, in which anything may happen to the process."""
        world = self.world
        await asyncio.sleep(world.rng.uniform(least, most))
        if self.is_alive and world.rng.random() < world.dangers.crash:
            self.kill()
        if world.rng.random() < world.dangers.pause:
            self.paused_until = world.loop.time() + world.rng.uniform(1, 100)
            world.note("paused", self.number)
        await self.gate()

    async def gate(self) -> None:
        """Go on only if the process runs."""
        while True:
            if self.world.is_over:
                raise asyncio.CancelledError
            if not self.is_alive:
                # Whoever waits for this would be collected with it.
                grave = self.world.loop.create_future()
                self.world.graves.append(grave)
                await grave
            left = self.paused_until - self.world.loop.time()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def call(self, name: str, effect: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call the database: it may fail before the effect, or lose the answer after it."""
        world = self.world
        await self.step()
        danger = world.rng.random()
        if danger < world.dangers.database / 2:
            await self.step(0.1, 5)
            raise DatabaseUnavailable
        # The stores in memory never wait, so this is one commit.
        result = await effect()
        world.note(self.number, name)
        world.look()
        await self.step()
        if danger < world.dangers.database:
            raise DatabaseUnavailable
        return result


class SimStore:
    """The database as one process reaches it; a RotationStore and a VaultStore."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._db = process.world.db

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """See RotationStore and VaultStore."""
        world = self._process.world

        async def effect() -> Verdict:
            verdict = await self._db.load_recorded(target, judge)
            if world.db.held(world.chain) is None and verdict.loaded is not None:
                world.violate("I5 a release that began after the uninstall")
            if world.is_stopped and verdict.loaded is not None:
                world.violate("a frozen token was released")
            return verdict

        return await self._process.call("load", effect)

    async def load_recorded_many(self, *_: object) -> NoReturn:
        """See RotationStore and VaultStore."""
        raise AssertionError("nobody reads many here")

    async def list_audit_events(self, *_: object) -> NoReturn:
        """See RotationStore and VaultStore."""
        raise AssertionError("nobody lists records here")

    async def stop_releases(self, *_: object) -> NoReturn:
        """See RotationStore and VaultStore."""
        raise AssertionError("whoever freezes does so past the processes")

    async def resume_releases(self, *_: object) -> NoReturn:
        """See RotationStore and VaultStore."""
        raise AssertionError("whoever thaws does so past the processes")

    async def list_due(self, client_id: ClientId, limit: int) -> Any:
        """See RotationStore and VaultStore."""
        return await self._process.call("list_due", lambda: self._db.list_due(client_id, limit))

    async def list_lasting(self, client_id: ClientId, after: Chain | None) -> Any:
        """See RotationStore and VaultStore."""
        return await self._process.call("lasting", lambda: self._db.list_lasting(client_id, after))

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """See RotationStore and VaultStore."""

        async def effect() -> HeldChain | None:
            _SAW_STOP.set(self._process.world.is_stopped)
            return await self._db.find_chain(chain)

        return await self._process.call("find_chain", effect)

    async def claim(
        self, held: HeldChain, rehearsal: SealedPair, event: AuditEvent, *, is_forced: bool
    ) -> Lease:
        """See RotationStore and VaultStore."""
        process, world = self._process, self._process.world

        async def effect() -> Lease:
            lease = await self._db.claim(held, rehearsal, event, is_forced=is_forced)
            _SAW_STOP.set(world.is_stopped)
            world.leases[lease.epoch] = Granted(world.loop.time(), held.state.lineage)
            return lease

        lease = await process.call("claim", effect)
        process.epoch = lease.epoch
        return lease

    async def keep(self, answer: SealedAnswer, events: Any) -> Fate:
        """See RotationStore and VaultStore."""
        world = self._process.world

        async def effect() -> Fate:
            fate = await self._db.keep(answer, events)
            pair = world.slack.find(_opened(answer.pair.refresh))
            if pair is not None and fate is not Fate.GONE:
                world.stored.add(pair.number)
            return fate

        fate = await self._process.call("keep", effect)
        world.note("fate", fate.value)
        return fate

    async def promote(self, held: HeldChain, pair: SealedPair, event: AuditEvent) -> bool:
        """See RotationStore and VaultStore."""
        return await self._process.call("promote", lambda: self._db.promote(held, pair, event))

    async def mark_probed(self, chain: Chain, candidates: Any, event: AuditEvent) -> None:
        """See RotationStore and VaultStore."""
        await self._process.call(
            "mark_probed", lambda: self._db.mark_probed(chain, candidates, event)
        )

    async def end(self, lease: Lease, generation: int, refused: Any, event: AuditEvent) -> bool:
        """See RotationStore and VaultStore."""
        return await self._process.call(
            "end", lambda: self._db.end(lease, generation, refused, event)
        )

    async def prove(self, lease: Lease, generation: int) -> None:
        """See RotationStore and VaultStore."""
        await self._process.call("prove", lambda: self._db.prove(lease, generation))

    async def give_back(
        self,
        lease: Lease,
        generation: int,
        pause: timedelta | None,
        event: AuditEvent,
        *,
        is_doubtful: bool,
    ) -> None:
        """See RotationStore and VaultStore."""
        await self._process.call(
            "give_back",
            lambda: self._db.give_back(lease, generation, pause, event, is_doubtful=is_doubtful),
        )

    async def record(self, events: Any) -> None:
        """See RotationStore and VaultStore."""
        await self._process.call("record", lambda: self._db.record(events))


class SimSlack:
    """Slack as one process reaches it; a SlackTokens."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    async def refresh(self, refresh_token: Secret[str]) -> RefreshAnswer:
        """See SlackTokens."""
        world, process = self._world, self._process
        world.require_lease(process)
        world.note(process.number, "sends")
        return await self.exchange(refresh_token.reveal())

    async def exchange(self, refresh: str) -> RefreshAnswer:
        """Make one request; whatever happens to it is drawn before it is sent."""
        world, process, rng = self._world, self._process, self._world.rng
        world.require_use()
        danger = rng.random() / world.dangers.slack if world.dangers.slack else 1.0
        await process.step(0.05, 0.4)
        if danger < 0.15:
            await process.sleep(_HTTP_TIMEOUT_S)
            raise SlackSilent
        if danger < 0.3:
            raise SlackUnavailable
        if danger < 0.4:
            raise SlackRateLimited(retry_after=timedelta(seconds=rng.choice([5, 30])))
        pair = world.slack.exchange(refresh)
        world.report.exchanges += 1
        world.report.amid_freeze += world.is_stopped
        world.note(process.number, "exchanged", refresh, pair and pair.number)
        if danger < 0.6:
            # Slack did it, and nobody hears of it.
            await process.sleep(_HTTP_TIMEOUT_S)
            raise SlackSilent
        if danger < 0.7:
            raise SlackUnavailable
        await process.step(0.05, rng.uniform(5, 40) if danger < 0.9 else 0.5)
        if pair is None:
            raise RefreshRefused
        world.reached[pair.number] = process
        is_odd = rng.random() < world.dangers.odd
        return RefreshAnswer(
            token=Secret(pair.access),
            refresh_token=Secret(pair.refresh),
            expires_in_s=None if is_odd and rng.random() < 0.5 else LIFE_S,
            token_type="user" if is_odd else "bot",
            app_id=_KEY.app_id,
            team_id=_KEY.team_id,
            enterprise_id="",
        )

    async def exchange_lasting(self, token: Secret[str]) -> NoReturn:
        """See SlackTokens."""
        raise AssertionError("nothing here lasts")

    async def test(self, token: Secret[str]) -> BotIdentity:
        """See SlackTokens."""
        self._world.require_use()
        await self._reach()
        if not self._world.slack.is_alive(token.reveal()):
            raise TokenDead
        return BotIdentity(_KEY.team_id, "", _BOT, is_enterprise_install=False)

    async def revoke(self, token: Secret[str]) -> None:
        """See SlackTokens; frozen or not, what is ended here serves nobody."""
        await self._reach()
        held = self._world.db.held(self._world.chain)
        if held is not None and _opened(held.access) == token.reveal():
            self._world.violate("I9 the stored token was revoked")
        self._world.slack.revoke(token.reveal())

    async def _reach(self) -> None:
        world = self._world
        await self._process.step(0.05, 0.4)
        if world.rng.random() < world.dangers.slack / 2:
            raise SlackUnavailable


class SimSpool:
    """The disk of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def reserve(self) -> Slot:
        """See Spool."""
        await self._process.step(0.0001, 0.002)
        return SimSlot(self._process, await self._process.spool.reserve())

    async def list_left(self) -> list[tuple[Slot, SealedAnswer]]:
        """See Spool."""
        await self._process.step(0.0001, 0.002)
        left = await self._process.spool.list_left()
        return [(SimSlot(self._process, slot), answer) for slot, answer in left]


@dataclass
class SimSlot:
    """A slot on the disk of one process."""

    process: Process
    slot: Slot

    async def write(self, answer: SealedAnswer) -> None:
        """See Slot."""
        await self.process.step(0.0001, 0.002)
        await self.slot.write(answer)
        pair = self.process.world.slack.find(_opened(answer.pair.refresh))
        if pair is not None:
            self.process.world.spooled.add(pair.number)
        await self.process.step(0.0001, 0.002)

    async def clear(self) -> None:
        """See Slot."""
        await self.process.step(0.0001, 0.002)
        await self.slot.clear()


class SimKeys:
    """A Keys whose sealing binds the context and costs nothing."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def make(self, context: KeyContext) -> NoReturn:
        """See Keys."""
        raise AssertionError("rotation makes no data keys")

    async def rewrap(self, wrapped: WrappedDek, context: KeyContext) -> NoReturn:
        """See Keys."""
        raise AssertionError("rotation wraps no data keys")

    def new_mac(self, *_: object) -> NoReturn:
        """See Keys."""
        raise AssertionError("nothing here is authenticated")

    def take(self, wrapped: WrappedDek, context: KeyContext) -> DataKey:
        """See Keys."""
        return SimDataKey(self._process)

    def ref(self, token: Secret[str]) -> TokenRef:
        """See Keys."""
        return TokenRef(token.reveal())


@dataclass
class SimDataKey:
    """A data key that the KMS is asked for once."""

    process: Process
    is_open: bool = False
    source: str = "kms"

    async def open(self, sealed: SealedToken, context: TokenContext) -> Secret[str]:
        """See DataKey."""
        await self._ask()
        bound, _, token = sealed.sealed.rpartition(b"|")
        if bound != context.encode():
            raise CannotOpen
        return Secret(token.decode())

    async def seal(
        self, token: Secret[str], context: TokenContext, expires_at: datetime | None
    ) -> SealedToken:
        """See DataKey."""
        await self._ask()
        return _seal(token.reveal(), context, expires_at)

    async def open_value(self, *_: object) -> NoReturn:
        """See DataKey."""
        raise AssertionError("no values here")

    async def seal_value(self, *_: object) -> NoReturn:
        """See DataKey."""
        raise AssertionError("no values here")

    async def _ask(self) -> None:
        if self.is_open:
            return
        await self.process.step()
        if self.process.world.rng.random() < self.process.world.dangers.kms:
            raise KmsUnavailable
        self.is_open = True


def _seal(token: str, context: TokenContext, expires_at: datetime | None) -> SealedToken:
    return SealedToken(
        kind=context.kind,
        slot=context.slot,
        user_id=context.user_id,
        generation=context.generation,
        dek_id=context.dek_id,
        sealed=SealedBytes(context.encode() + b"|" + token.encode()),
        ref=TokenRef(token),
        expires_at=expires_at,
    )


def _opened(sealed: SealedToken) -> str:
    return sealed.sealed.rpartition(b"|")[2].decode()


class Schedule:
    """One course of events, from an install to the end of its second rotation.

    Args:
        make: Makes the runs of the vault; controls put their own in its place.
    """

    def __init__(
        self, world: World, make: Callable[[World, int, MemorySpool], Process] = Process
    ) -> None:
        self._world = world
        self._make = make
        self._is_on = True
        self._spools = [MemorySpool() for _ in range(_PROCESSES)]
        self._now: list[Process | None] = [None] * _PROCESSES

    async def run(self) -> None:
        """Let it happen, and judge it."""
        world, rng = self._world, self._world.rng
        world.install()
        for _ in range(_CYCLES):
            await self._until_due()
            self._is_on, world.dangers = True, world.trouble
            supervisors = [
                asyncio.create_task(self._supervise(place)) for place in range(_PROCESSES)
            ]
            disturbances = [asyncio.create_task(each) for each in self._disturbances()]
            await asyncio.sleep(rng.uniform(0.3, 1) * _TROUBLE_S)
            world.dangers = CALM
            await asyncio.wait(disturbances)
            await self._settled()
            self._judge()
            self._is_on = False
            for process in self._now:
                if process is not None:
                    process.is_stopping = True
            await asyncio.wait(supervisors)
            if self._is_over():
                return

    def _is_over(self) -> bool:
        held = self._world.db.held(self._world.chain)
        return held is None or held.state.standing is Standing.NEEDS_REINSTALL

    async def _until_due(self) -> None:
        """Let time pass until the token is due, or for longer: the vault was down."""
        world = self._world
        held = world.db.held(world.chain)
        if held is None or held.access.expires_at is None:
            return
        due = held.access.expires_at - SOFT_LIMIT + jitter_of(world.chain)
        late = held.access.expires_at - HARD_LIMIT
        start = world.rng.choice([due, due, late, held.access.expires_at])
        left = (start - world.clock.now()).total_seconds() - world.rng.uniform(0, 30)
        await asyncio.sleep(max(left, 0))

    async def _supervise(self, place: int) -> None:
        """Start a process again whenever it ended, on the disk that it left."""
        world, rng = self._world, self._world.rng
        await asyncio.sleep(rng.uniform(0, 5))
        while self._is_on:
            spool = self._spools[place]
            spool.restart()
            process = self._make(world, place, spool)
            self._now[place] = process
            world.start(process.run())
            await process.ended.wait()
            await asyncio.sleep(rng.uniform(1, 60))

    def _disturbances(self) -> Iterator[Coroutine[Any, Any, None]]:
        rng = self._world.rng
        for _ in range(rng.choice([0, 2, 8])):
            yield self._read(rng.uniform(0, 60))
        burst_at = rng.uniform(1, 20)
        for _ in range(rng.choice([0, 0, 8])):
            yield self._read(burst_at)
        if rng.random() < 0.2:
            yield self._stop_one(rng.uniform(0, 60))
        if rng.random() < 0.15:
            yield self._reinstall(rng.uniform(0, 60))
        elif rng.random() < 0.1:
            yield self._uninstall(rng.uniform(0, 60))
        if rng.random() < 0.25:
            yield self._stop(rng.uniform(0, 60))
        yield asyncio.sleep(0)

    async def _read(self, after: float) -> None:
        await asyncio.sleep(after)
        process = self._world.rng.choice(self._now)
        if process is not None and process.is_alive:
            self._world.start(process.read())

    async def _stop_one(self, after: float) -> None:
        """Stop a process in good order, as an update of the vault does."""
        await asyncio.sleep(after)
        process = self._world.rng.choice(self._now)
        if process is None or not process.is_alive:
            return
        process.is_stopping = True
        try:
            async with asyncio.timeout(_DRAIN_S):
                await process.ended.wait()
        except TimeoutError:
            process.kill()

    async def _reinstall(self, after: float) -> None:
        world = self._world
        await asyncio.sleep(after)
        if world.db.held(world.chain) is not None:
            world.install()

    async def _stop(self, after: float) -> None:
        """Freeze everything or the workspace, or put it on hold: for a moment, or for long."""
        world, here = self._world, self._world.chain.installation_id
        await asyncio.sleep(after)
        stop, where = world.rng.choice(
            [(Stop.FROZEN, None), (Stop.FROZEN, here), (Stop.HELD, here)]
        )
        await world.stop_for(
            stop, where, world.rng.choice([5, 60, 900]) * world.rng.uniform(0.2, 1)
        )

    async def _uninstall(self, after: float) -> None:
        """Purge, and tell Slack soon after, or not at all."""
        world = self._world
        await asyncio.sleep(after)
        world.purge()
        if world.rng.random() < 0.5:
            await asyncio.sleep(world.rng.uniform(0, 5))
            world.slack.uninstall()

    async def _settled(self) -> None:
        """Wait until nothing is under way and nothing is due."""
        world = self._world
        until = world.loop.time() + _CALM_S
        while world.loop.time() < until:
            await asyncio.sleep(_TICK_S)
            is_quiet = all(
                process is not None and process.is_alive and not process.is_busy
                for process in self._now
            )
            if is_quiet and not any(spool.written for spool in self._spools):
                held = world.db.held(world.chain)
                if held is None or await self._is_settled(held):
                    return
        world.violate("nothing settles")

    async def _is_settled(self, held: HeldChain) -> bool:
        """Tell whether nobody will exchange a chain until it comes due."""
        if await self._world.db.list_due(_KEY.client_id, 1):
            return False
        is_ended = held.state.standing is Standing.NEEDS_REINSTALL
        return is_ended or not (held.state.is_unsettled or held.facts.is_due)

    def _judge(self) -> None:
        """Check what must be true once everything has calmed down."""
        world = self._world
        held = world.db.held(world.chain)
        if held is None:
            self._judge_uninstalled()
            return
        world.report.rotations = held.state.generation - 1
        slack, stored = world.slack, _opened(held.refresh) if held.refresh else ""
        beside = [_opened(each.pair.refresh) for each in held.candidates]
        leads_on = [text for text in (stored, *beside) if slack.can_refresh(text)]
        if held.state.standing is Standing.NEEDS_REINSTALL:
            if leads_on:
                world.violate("I2 a chain was ended that leads on")
            self._count_losses(slack.living())
            return
        if not leads_on:
            world.violate("I2 the stored pair is dead, and nothing says so")
            self._count_losses(slack.living())
        elif not slack.is_alive(_opened(held.access)):
            world.violate("I2 the stored access token is dead")

    def _judge_uninstalled(self) -> None:
        world = self._world
        if world.purged_at is None:
            return
        for number, process in world.reached.items():
            pair = world.slack.pairs[number - 1]
            is_ours_to_end = process.is_alive and number not in world.stored
            if is_ours_to_end and world.slack.is_alive(pair.access):
                world.violate("RF-06 a pair outlived the installation")

    def _count_losses(self, living: list[Pair]) -> None:
        world = self._world
        newest = max(pair.number for pair in world.slack.pairs if pair.parent == 0)
        living = [pair for pair in living if world.slack.root_of(pair) == newest]
        if not living:
            return
        # What went on living in a process, or on its disk, was ours to keep.
        was_held = any(
            pair.number in world.spooled or world.was_kept_alive(pair.number) for pair in living
        )
        world.report.avoidable += was_held
        world.report.unavoidable += not was_held


def run(seed: int, make: Callable[[World, int, MemorySpool], Process] = Process) -> Report:
    """Run one schedule to its end.

    The same seed and the same code give the same report.
    """
    report, _ = _run_in_loop(seed, make)
    return report


def retrace(seed: int) -> tuple[Report, list[str]]:
    """Run one schedule, and tell its whole course."""
    return _run_in_loop(seed, Process)


def _run_in_loop(
    seed: int, make: Callable[[World, int, MemorySpool], Process]
) -> tuple[Report, list[str]]:
    loop = VirtualLoop()
    try:
        with _silent():
            world = loop.run_until_complete(_run(seed, loop, make))
            return world.report, world.lines
    finally:
        loop.close()


async def _run(
    seed: int,
    loop: asyncio.AbstractEventLoop,
    make: Callable[[World, int, MemorySpool], Process],
) -> World:
    world = World(seed, loop)
    await Schedule(world, make).run()
    world.is_over = True
    world.report.trace = world.digest.hexdigest()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return world


@contextmanager
def _silent() -> Iterator[None]:
    """Log nothing: a thousand schedules fail on purpose."""

    def drop(*_: object) -> NoReturn:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    try:
        yield
    finally:
        structlog.configure(**before)
