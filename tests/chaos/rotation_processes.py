"""Real vault processes that race, stand still, lose their database or Slack's replies.

Each scene lists what did not hold. What the vaults did is judged by the record
that Slack keeps of what it was asked.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.domain.rotation import LEASE
from tests.chaos.rotation_premises import PATIENCE_S, Premises, VaultProcess, premises
from tests.support.dropping_proxy import Loss, dropping_proxy

_REPLICAS = 4
_READERS = 64
_FRESH = timedelta(hours=11)
_ENDING = timedelta(seconds=60)
_POLL_S = 0.1

Scene = Callable[[Path], Awaitable[list[str]]]


async def race(cluster: ScratchDatabases, folder: Path, *, grace_s: float) -> list[str]:
    """Have 64 readers at four processes want a token that is about to end."""
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(
            premises(cluster, folder, grace_s=grace_s, expires_in=_FRESH)
        )
        starting = [here.running(spool=f"spool-{number}") for number in range(_REPLICAS)]
        vaults = [await stack.enter_async_context(each) for each in starting]
        channels = [await stack.enter_async_context(vault.open()) for vault in vaults]
        first = {await here.read(channel) for channel in channels}
        await here.let_it_end(_ENDING)
        reads = [here.read(channels[number % _REPLICAS]) for number in range(_READERS)]
        released = set(await asyncio.gather(*reads))
        broken: list[str] = []
        if len(first) != 1 or len(released) != 1 or released & first:
            broken.append(f"{len(released)} different answers after {len(first)}")
        if (did := await here.exchanges()) != 1:
            broken.append(f"Slack exchanged {did} times")
        [(token, _), *_] = released
        if not (await here.slack.call("auth.test", token))["ok"]:
            broken.append("the released token is dead")
        return [*broken, *await _not_whole(here, vaults[-1])]


async def stand_still(
    cluster: ScratchDatabases, folder: Path, failpoint: str, *, grace_s: float, is_real: bool
) -> list[str]:
    """Stop the holder for longer than its lease, with another process beside it.

    Args:
        cluster: Where the database is made.
        folder: Of everything else.
        failpoint: Where it is stopped.
        grace_s: How long Slack forgives a spent refresh token.
        is_real: Whether to wait for the lease's end, or to turn its clock back.
    """
    async with premises(cluster, folder, grace_s=grace_s) as here:
        holder = await here.start(failpoint, "stop", spool="spool-holder")
        try:
            await holder.standing_still()
            async with here.running() as other:
                if is_real:
                    patience_s = LEASE.total_seconds() + PATIENCE_S
                    await _let(lambda: _has_lease_ended(here), patience_s)
                    here.slack.clock.seconds += LEASE.total_seconds()
                else:
                    await here.end_leases()
                await _let(lambda: _has_begun(here, 2))
                await here.rested()
                holder.go_on()
                await _let(lambda: _is_at_rest(here))
                await _let(lambda: _is_empty(here, "spool-holder"))
                return await _not_whole(here, other)
        finally:
            holder.go_on()
            holder.process.terminate()
            await holder.process.wait()


async def lose_database(folder: Path, *, is_killed: bool) -> list[str]:
    """Stop Postgres as a crash would, between Slack's answer and its commit.

    Args:
        folder: A short path, for Postgres's socket.
        is_killed: Whether the vault dies meanwhile, and another one finds its spool.
    """
    # Not durable means that a commit may be lost with the server, which is no fault of ours.
    async with _postgres(folder / "pg") as postgres, AsyncExitStack() as stack:
        cluster = ScratchDatabases(postgres.admin_url)
        here = await stack.enter_async_context(premises(cluster, folder, grace_s=0))
        vault = await stack.enter_async_context(here.running("before_commit", "stop"))
        await vault.standing_still()
        postgres_pid = postgres.pid
        os.kill(postgres_pid, signal.SIGQUIT)
        await _let(lambda: _is_down(postgres))
        if is_killed:
            vault.process.kill()
            await vault.ended()
        else:
            vault.go_on()
            await _let(lambda: _is_unready(vault))
        postgres.stop()
        postgres.start()
        await here.reconnect(postgres.admin_url)
        if is_killed:
            vault = await stack.enter_async_context(here.running())
        standing = await here.rested()
        await _let(lambda: _is_empty(here, "spool"))
        did = await here.exchanges()
        broken = [] if standing == "idle" else [f"the chain came to stand {standing}"]
        broken += [] if did == 1 else [f"Slack exchanged {did} times"]
        return [*broken, *await _not_whole(here, vault)]


async def lose_replies(
    cluster: ScratchDatabases, folder: Path, loss: Loss, *, grace_s: float
) -> list[str]:
    """Lose the first reply on the network: a second request in time, or a loud end."""
    async with (
        premises(cluster, folder, grace_s=grace_s) as here,
        dropping_proxy(here.slack.url, b"grant_type=refresh_token") as proxy,
    ):
        proxy.losses.append(loss)
        here.environ["INTERLOCK_SLACK_API_URL"] = f"{proxy.url}/api/"
        async with here.running() as vault:
            await _let(lambda: _has_ended(here, proxy.lost))
            standing = await here.rested()
            broken = [] if proxy.lost == 1 else [f"{proxy.lost} replies were lost"]
            if grace_s == 0:
                is_loud = await here.audited("token.refresh_refused") == 1
                if standing != "needs_reinstall" or not is_loud:
                    broken.append(f"a chain without a refresh token stands {standing}")
                return broken
            if standing != "idle":
                broken.append(f"the chain came to stand {standing}")
            return [*broken, *await _not_whole(here, vault)]


def scenes(cluster: ScratchDatabases) -> Mapping[str, Scene]:
    """Name every scene; each is given a folder of its own."""
    return {
        "race-strict": partial(race, cluster, grace_s=0),
        "race-forgiving": partial(race, cluster, grace_s=30),
        **{
            f"pause-{failpoint}-{grace_s}": partial(
                stand_still, cluster, failpoint=failpoint, grace_s=grace_s, is_real=True
            )
            for failpoint in ("before_send", "after_reply", "before_commit")
            for grace_s in (0, 30)
        },
        "postgres-stopped": partial(lose_database, is_killed=False),
        "postgres-stopped-vault-killed": partial(lose_database, is_killed=True),
        **{
            f"reply-{loss.value}-{grace_s}": partial(
                lose_replies, cluster, loss=loss, grace_s=grace_s
            )
            for loss in Loss
            for grace_s in (0, 30)
        },
    }


async def play_all(tell: Callable[[str, list[str]], None]) -> bool:
    """Play every scene, telling of each; returns whether all held."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-chaos-"))
    has_held = True
    try:
        async with _postgres(folder / "pg") as postgres:
            for number, (name, scene) in enumerate(
                scenes(ScratchDatabases(postgres.admin_url)).items()
            ):
                place = folder / str(number)
                place.mkdir()
                broken = await scene(place)
                tell(name, broken)
                has_held = has_held and not broken
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return has_held


@asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(folder, binaries=find_binaries(os.environ))
    # Here and not in another thread: the server ends with the thread that started it.
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()


async def _not_whole(here: Premises, vault: VaultProcess) -> list[str]:
    """List what is wrong once everything has calmed down."""
    if (standing := await here.rested()) != "idle":
        return [f"the chain came to stand {standing}"]
    broken = [] if await here.leads_on(vault) else ["Slack does not take what was stored"]
    if left := list(here.folder.glob("spool*/*.answer")):
        broken.append(f"{len(left)} answers were left in a spool")
    return broken


async def _let(holds: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition that nobody tells of."""
    async with asyncio.timeout(patience_s):
        while not await holds():  # noqa: ASYNC110 - Other processes set no event of ours.
            await asyncio.sleep(_POLL_S)


async def _has_lease_ended(here: Premises) -> bool:
    """Tell whether the first holder's minute is over, or another one holds the lease."""
    return not await here.admin.fetchval(
        "SELECT bool_or(lease_until > clock_timestamp()) FROM vault.rotation WHERE epoch = 1"
    )


async def _has_begun(here: Premises, exchanges: int) -> bool:
    return await here.audited("token.refresh_started") >= exchanges


async def _has_ended(here: Premises, lost: int) -> bool:
    return lost > 0 and await here.standing() in {"idle", "needs_reinstall"}


async def _is_at_rest(here: Premises) -> bool:
    return await here.standing() == "idle"


async def _is_empty(here: Premises, spool: str) -> bool:
    return not list((here.folder / spool).glob("*.answer"))


async def _is_down(postgres: EmbeddedPostgres) -> bool:
    return not postgres.is_running()


async def _is_unready(vault: VaultProcess) -> bool:
    return not await vault.is_ready()
