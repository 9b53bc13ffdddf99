"""Rotators as they are usually written. They must fail here, or the harness proves nothing."""

from datetime import timedelta

from interlock_chassis.errors import ServiceError
from interlock_token_vault.domain.rotation import RefreshAnswer
from tests.chaos.rotation_sim import Process

_TICK_S = 15.0
_LOCK_S = 10.0
_PATIENCE_S = 12.0
_POLL_S = 0.05


class Naive(Process):
    """Reads, exchanges when it is due, and writes: what Bolt's token rotator does."""

    _rounds = 0

    async def run(self) -> None:
        """Come round until told to stop."""
        while not self.is_stopping:
            await self.read()
            await self.sleep(_TICK_S)
        self.kill()

    async def read(self) -> None:
        """Refresh before use."""
        self._rounds += 1
        try:
            await self._refresh()
        except ServiceError as error:
            self.world.note(self.number, "failed", error.reason)
        finally:
            self._rounds -= 1

    @property
    def is_busy(self) -> bool:
        """Whether a round is under way."""
        return self._rounds > 0

    async def _refresh(self) -> None:
        held = await self.store.find_chain(self.world.chain)
        if held is None or held.refresh is None or not held.facts.is_due:
            return
        await self._write(await self.slack.exchange(str(held.refresh.ref)))

    async def _write(self, answer: RefreshAnswer) -> None:
        async def effect() -> None:
            expires_at = self.world.clock.now() + timedelta(seconds=answer.expires_in_s or 0)
            self.world.put_pair(answer, expires_at)

        await self.call("write", effect)


class TtlLock(Naive):
    """Takes a lock that ends by itself, looks again, and gives it back whoever holds it."""

    async def _refresh(self) -> None:
        world = self.world
        until = world.loop.time() + _PATIENCE_S
        while world.lock_until > world.loop.time():
            if world.loop.time() > until:
                return
            await self.sleep(_POLL_S)
        world.lock_until = world.loop.time() + _LOCK_S
        try:
            await super()._refresh()
        finally:
            await self.step()
            world.lock_until = 0.0
