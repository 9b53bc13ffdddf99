"""A vault whose chains rotate, on ports in memory, with a Slack that does as it is told."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import FakeKms, Faults, ManualClock, counting_ids
from interlock_token_vault.adapters.memory_rotation import MemoryRotation, MemorySpool
from interlock_token_vault.domain.audit import Origin
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.install import BotIdentity
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import Chain, RefreshAnswer
from interlock_token_vault.install_ports import TokenDead
from interlock_token_vault.keeping import Keeper
from interlock_token_vault.renewing import Renewing
from interlock_token_vault.rotating import Outcome, Rotating
from interlock_token_vault.rotation_ports import (
    Failpoint,
    HeldChain,
    RefreshRefused,
    SlackSilent,
    SlackTokens,
    pass_by,
)
from interlock_token_vault.vault import ReadAsk, TokenVault
from tests.chaos.rotation_slack import LIFE_S, SlackRules, SlackWorld
from tests.chaos.virtual_loop import VirtualLoop

KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
BOT = "U0BOT"
ORIGIN = Origin(actor="gateway-worker", rpc="/x/ReadBotToken", grant_id="jti-1")
ENVIRONMENT = "development"
HTTP_TIMEOUT_S = 45.0
STRICT = SlackRules(grace_s=0, newest_wins=True, reinstall_ends_old=False)
FORGIVING = SlackRules(grace_s=30, newest_wins=True, reinstall_ends_old=False)

T = TypeVar("T")


class LoopClock(ManualClock):
    """The loop's time, and what a test adds to it."""

    def __init__(self, skew: timedelta = timedelta(0)) -> None:
        super().__init__()
        super().advance(skew)
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    def now(self) -> Any:
        """Read the wall clock."""
        return super().now() + timedelta(seconds=self._loop.time() - self._started)

    def monotonic(self) -> float:
        """Read the loop's time."""
        return self._loop.time()


@dataclass
class ToldSlack:
    """A SlackTokens that keeps Slack's rules, and does to each request what it is told.

    Attributes:
        orders: What happens to the next requests: `ok`, `lose_reply`, `lose_request`,
            an error to raise, or a change of the answer.
        transits: How long the next requests take to reach Slack, in seconds.
        asked: When each request was started, in seconds.
        revoked: The access tokens that were ended.
    """

    world: SlackWorld
    orders: deque[str | Exception | Callable[[RefreshAnswer], RefreshAnswer]] = field(
        default_factory=deque
    )
    delays: deque[float] = field(default_factory=deque)
    transits: deque[float] = field(default_factory=deque)
    asked: list[float] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    async def refresh(self, refresh_token: Secret[str]) -> RefreshAnswer:
        """Exchange a refresh token; see SlackTokens."""
        loop = asyncio.get_running_loop()
        self.asked.append(loop.time())
        order = self.orders.popleft() if self.orders else "ok"
        delay = self.delays.popleft() if self.delays else 0.3
        await asyncio.sleep(self.transits.popleft() if self.transits else 0.1)
        if isinstance(order, Exception):
            raise order
        if order == "lose_request":
            await asyncio.sleep(HTTP_TIMEOUT_S)
            raise SlackSilent
        pair = self.world.exchange(refresh_token.reveal())
        if order == "lose_reply":
            await asyncio.sleep(HTTP_TIMEOUT_S)
            raise SlackSilent
        await asyncio.sleep(delay)
        if pair is None:
            raise RefreshRefused(metadata={"slack_error": "invalid_refresh_token"})
        answer = RefreshAnswer(
            token=Secret(pair.access),
            refresh_token=Secret(pair.refresh),
            expires_in_s=LIFE_S,
            token_type="bot",
            app_id=KEY.app_id,
            team_id=KEY.team_id,
            enterprise_id="",
        )
        return order(answer) if callable(order) else answer

    async def exchange_lasting(self, token: Secret[str]) -> RefreshAnswer:
        """Exchange a token that never ends; see SlackTokens."""
        raise AssertionError("nothing here lasts")

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is; see SlackTokens."""
        await asyncio.sleep(0.1)
        if not self.world.is_alive(token.reveal()):
            raise TokenDead
        return BotIdentity(KEY.team_id, "", BOT, is_enterprise_install=False)

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; see SlackTokens."""
        await asyncio.sleep(0.1)
        self.revoked.append(token.reveal())
        self.world.revoke(token.reveal())


@dataclass
class Replica:
    """One vault process."""

    keeper: Keeper
    rotating: Rotating
    renewing: Renewing
    vault: TokenVault

    async def read(self, *, newer_than: int = 0) -> tuple[str, int]:
        """Read a token as a worker with 5 s does; returns it with its generation."""
        ask = ReadAsk(KEY, ORIGIN, newer_than, patience=timedelta(seconds=4))
        released = await self.vault.read(ask)
        return released.token.reveal(), released.generation


class Stage:
    """A database, a KMS, a spool, and as many replicas as a test wants."""

    def __init__(self, slack: SlackTokens, clock: ManualClock) -> None:
        self.clock = clock
        self.slack = slack
        self.faults = Faults()
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self.store = MemoryRotation(clock, chain_id=UUID(int=99), faults=self.faults)
        self.spool = MemorySpool(self.faults)
        self.keys = KmsKeys(
            FakeKms(self.faults),
            fingerprint_key=Secret("k" * 32),
            clock=clock,
            new_id=counting_ids(),
        )
        self.chain = Chain(InstallationId(UUID(int=7)))

    def replica(
        self, *, failpoint: Failpoint = pass_by, clock: ManualClock | None = None
    ) -> Replica:
        """Start a vault process."""
        parts: dict[str, Any] = {"store": self.store, "slack": self.slack, "spool": self.spool}
        keeper = Keeper(
            keys=self.keys, environment=ENVIRONMENT, failpoint=failpoint, sleep=self.sleep, **parts
        )
        rotating = Rotating(
            keeper=keeper, clock=clock or self.clock, failpoint=failpoint, sleep=self.sleep, **parts
        )
        renewing = Renewing(
            store=self.store,
            rotating=rotating,
            keeper=keeper,
            news=self.store.news,
            client_id=KEY.client_id,
            clock=clock or self.clock,
        )
        vault = TokenVault(self.store, self.keys, environment=ENVIRONMENT, renewals=renewing)
        return Replica(keeper, rotating, renewing, vault)

    async def install(
        self, access: str, refresh: str, *, expires_in: timedelta, generation: int = 1
    ) -> None:
        """Store what an install gave, over what was there."""
        installation = Installation(
            id=self.chain.installation_id,
            key=KEY,
            tenant_id=TenantId("northwind"),
            state=InstallationState.ACTIVE,
            generation=generation,
            name="Northwind",
            bot_user_id=BOT,
            bot_scopes=("chat:write",),
            installed_at=self.clock.now(),
        )
        context = KeyContext(ENVIRONMENT, KEY.client_id, installation.id)
        if installation.id in self.store.deks:
            wrapped = self.store.deks[installation.id]
            data_key = self.keys.take(wrapped, context)
        else:
            wrapped, data_key = await self.keys.make(context)
        places = [
            TokenContext(
                environment=ENVIRONMENT,
                key=KEY,
                installation_id=installation.id,
                user_id="",
                kind=TokenKind.BOT,
                slot=slot,
                dek_id=wrapped.dek_id,
                generation=generation,
            )
            for slot in (TokenSlot.ACCESS, TokenSlot.REFRESH)
        ]
        expires_at = self.clock.now() + expires_in
        self.store.installations[installation.id] = installation
        self.store.deks[installation.id] = wrapped
        self.store.tokens[installation.id] = (
            await data_key.seal(Secret(access), places[0], expires_at),
            await data_key.seal(Secret(refresh), places[1], None),
        )

    def uninstall(self) -> None:
        """Purge the installation."""
        for held in (self.store.installations, self.store.tokens, self.store.deks):
            held.pop(self.chain.installation_id)

    @property
    def held(self) -> HeldChain:
        """What is stored."""
        found = self.store.held(self.chain)
        assert found is not None
        return found

    async def opened(self) -> tuple[str, str]:
        """Open the stored pair."""
        held = self.held
        assert held.refresh is not None
        keeper = self.replica().keeper
        data_key = keeper.open_key(held)
        access = await keeper.open(held, data_key, held.access)
        refresh = await keeper.open(held, data_key, held.refresh)
        return access.reveal(), refresh.reveal()

    def actions(self) -> list[str]:
        """Say what the audit log says happened."""
        return [record.event.action for record in self.store.records]


async def told_stage(
    rules: SlackRules = STRICT, *, expires_in: timedelta = timedelta(minutes=1)
) -> tuple[Stage, ToldSlack]:
    """Set a stage in virtual time, with one install whose token is about to end."""
    slack = ToldSlack(SlackWorld(rules, asyncio.get_running_loop().time))
    stage = Stage(slack, LoopClock())
    pair = slack.world.install()
    await stage.install(pair.access, pair.refresh, expires_in=expires_in)
    return stage, slack


def play(scene: Coroutine[Any, Any, T]) -> T:
    """Run a scene in virtual time, and end with it what it left running."""

    async def whole() -> T:
        try:
            return await scene
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(whole())
    finally:
        loop.close()


__all__ = ["FORGIVING", "KEY", "STRICT", "Outcome", "Replica", "Stage", "ToldSlack"]
