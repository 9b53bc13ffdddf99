"""Keep tokens fresh: ahead of need, at need, and until the process has ended.

A scheduler refreshes what comes due, so that readers hardly ever wait. A reader
that must wait is told when the new generation is there, whichever process made
it; it asks for an exchange and never makes one itself.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from prometheus_client import Counter as CounterMetric

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_chassis.telemetry import REGISTRY
from interlock_token_vault.domain.installation import ClientId, InstallationId
from interlock_token_vault.domain.rotation import Chain, Standing
from interlock_token_vault.keeping import Keeper
from interlock_token_vault.rotating import Outcome, Rotating
from interlock_token_vault.rotation_ports import News, RotationStore
from interlock_token_vault.vault import InstallationNotFound, NeedsReinstall, RefreshPending

REFRESHES = CounterMetric(
    "interlock_vault_refreshes",
    "Wishes to refresh a chain of Slack tokens, by what they came to.",
    ("outcome",),
    registry=REGISTRY,
)

# Slack takes 600 refreshes a minute of an app; a vault of four replicas stays under it.
_PACE_S = 0.5
_MOST_AT_ONCE = 8
_BATCH = 50
# Of those that could not be begun, how many are tried again in a round that is full.
_RETRIED = 8
# A notification can be lost with its connection; then the reader looks by itself.
_LOOK_AGAIN = timedelta(seconds=1)
# What a reader who is told to come back should let pass.
_COME_BACK = timedelta(seconds=2)

_log = structlog.get_logger()


class Renewing:
    """Refresh chains, one exchange of each at a time in this process.

    Args:
        client_id: Of the Slack app whose secret the process has.
        clock: Its monotonic side tells how long a reader has waited.
        sleep: Waits between refreshes, in seconds.
    """

    def __init__(
        self,
        *,
        store: RotationStore,
        rotating: Rotating,
        keeper: Keeper,
        news: News,
        client_id: ClientId,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._rotating = rotating
        self._keeper = keeper
        self._news = news
        self._client_id = client_id
        self._clock = clock
        self._sleep = sleep
        self._running: dict[Chain, asyncio.Task[Outcome]] = {}
        # Due, and not begun for all that; those that were tried longest ago come first.
        self._put_back: dict[Chain, None] = {}
        self._is_ending = False

    async def renew(
        self, installation_id: InstallationId, user_id: str, above: int, patience: timedelta
    ) -> None:
        """Wait until a token above a generation is stored; see Renewals.

        Raises:
            InstallationNotFound: It is gone.
            NeedsReinstall: There will be none.
            RefreshPending: There is none yet.
            DatabaseUnavailable: The database does not answer.
        """
        chain = Chain(installation_id, user_id)
        until = self._clock.monotonic() + patience.total_seconds()
        with self._news.subscribe(installation_id) as bell:
            while not await self._is_above(chain, above):
                self.nudge(chain, above)
                left = timedelta(seconds=until - self._clock.monotonic())
                if left <= timedelta(0):
                    raise RefreshPending(retry_after=_COME_BACK)
                await bell.heard(min(left, _LOOK_AGAIN))

    def nudge(self, chain: Chain, refused_generation: int = 0) -> None:
        """Begin to refresh a chain, unless this process is at it or ending."""
        if chain in self._running or self._is_ending or self._rotating.is_quiet:
            return
        task = asyncio.create_task(self._refresh(chain, refused_generation))
        self._running[chain] = task
        task.add_done_callback(lambda _: self._running.pop(chain, None))

    async def run_due(self) -> None:
        """Refresh what is due, at a pace that leaves Slack's limit to the other replicas.

        What cannot be begun, such as a chain whose data key is lost, stays due, and
        its end comes before all others'. It stands behind what was not tried yet.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        due = await self._store.list_due(self._client_id, _BATCH + len(self._put_back))
        still_due = set(due)
        self._put_back = {chain: None for chain in self._put_back if chain in still_due}
        fresh = [chain for chain in due if chain not in self._put_back][:_BATCH]
        again = list(self._put_back)[: max(_RETRIED, _BATCH - len(fresh))]
        for chain in [*fresh, *again]:
            while len(self._running) >= _MOST_AT_ONCE:
                await asyncio.wait(set(self._running.values()), return_when=asyncio.FIRST_COMPLETED)
            if self._is_ending or self._rotating.is_quiet:
                return
            self.nudge(chain)
            await self._sleep(_PACE_S)

    async def exchange_lasting(self) -> Counter[Outcome]:
        """Exchange every token that never ends for a pair, one after the other.

        For an app whose rotation was switched on. May be stopped anywhere and
        begun again: what has a pair is not looked at any more.

        Returns:
            How many came to what; it ends early when Slack bars the app.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        outcomes: Counter[Outcome] = Counter()
        after: Chain | None = None
        while page := await self._store.list_lasting(self._client_id, after):
            for chain in page:
                while self._rotating.is_quiet and not self._is_ending:
                    await self._sleep(_PACE_S)
                if self._is_ending:
                    return outcomes
                outcome = await self._exchange_one(chain)
                outcomes[outcome] += 1
                if outcome is Outcome.BARRED:
                    return outcomes
                await self._sleep(_PACE_S)
            after = page[-1]
        return outcomes

    async def replay(self) -> None:
        """Begin to store what an earlier process left in the spool."""
        await self._keeper.replay()

    async def drain(self) -> None:
        """Begin nothing more, and see every exchange to its end, or into the spool."""
        self._is_ending = True
        keeping = asyncio.create_task(self._keeper.drain())
        while self._running:
            await asyncio.wait(set(self._running.values()))
        await keeping

    async def _is_above(self, chain: Chain, above: int) -> bool:
        held = await self._store.find_chain(chain)
        if held is None:
            raise InstallationNotFound
        if held.state.generation > above:
            return True
        if held.refresh is None or held.state.standing is Standing.NEEDS_REINSTALL:
            raise NeedsReinstall
        return False

    async def _exchange_one(self, chain: Chain) -> Outcome:
        installation_id = str(chain.installation_id)
        try:
            outcome = await self._rotating.exchange_lasting(chain)
        except ServiceError as error:
            _log.warning(
                "lasting_token_not_exchanged", reason=error.reason, installation_id=installation_id
            )
            return Outcome.FAILED
        _log.info("lasting_token_looked_at", outcome=outcome.value, installation_id=installation_id)
        return outcome

    async def _refresh(self, chain: Chain, refused_generation: int) -> Outcome:
        """Refresh one chain, whatever it fails with: nobody waits for the error."""
        is_begun = False
        try:
            outcome = await self._rotating.refresh(chain, refused_generation=refused_generation)
            is_begun = outcome not in {Outcome.NOT_NOW, Outcome.NOT_ROTATING}
        except ServiceError as error:
            _log.warning(
                "refresh_not_begun",
                reason=error.reason,
                installation_id=str(chain.installation_id),
            )
            outcome = Outcome.FAILED
        finally:
            self._put_back.pop(chain, None)
            if not is_begun:
                self._put_back[chain] = None
        REFRESHES.labels(outcome.value).inc()
        return outcome
