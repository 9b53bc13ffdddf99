"""Kill real vault processes amid a refresh, and see that the next one goes on."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from tests.chaos.rotation_premises import premises

FAILPOINTS = (
    "before_claim",
    "after_claim",
    "before_send",
    "after_send",
    "after_reply",
    "after_spool",
    "before_commit",
    "after_commit",
    "before_notify",
    "during_replay",
)
# Killed there, a process holds the lease, and its answer lies on no disk.
_LEAVE_A_LEASE = frozenset({"after_claim", "before_send", "after_send", "after_reply"})


async def kill_and_go_on(
    cluster: ScratchDatabases, folder: Path, failpoint: str, *, grace_s: float
) -> list[str]:
    """Kill a process at a failpoint, go on with another, and list what did not hold."""
    broken: list[str] = []
    async with premises(cluster, folder, grace_s=grace_s) as here:
        first = "after_spool" if failpoint == "during_replay" else failpoint
        ends = [await here.killed_at(first)]
        if failpoint == "during_replay":
            ends.append(await here.killed_at(failpoint))
        if set(ends) != {-9}:
            broken.append(f"the process was not killed there: {ends}")
        await here.end_leases()
        standing = await here.settled()
        # Between Slack's reply and the disk, or before the reply, there is only the process.
        is_lost = grace_s == 0 and failpoint in {"after_send", "after_reply"}
        # The heir of a lease doubts its own pair, and exchanges it once more. What a
        # process leaves on its disk comes under the lease that it was asked for under.
        rotations = 2 if failpoint in _LEAVE_A_LEASE else 1
        did = await here.exchanges()
        if standing != "idle" and not (is_lost and standing == "needs_reinstall"):
            broken.append(f"the chain came to stand {standing}")
        if did > rotations + (failpoint in {"after_send", "after_reply"}):
            broken.append(f"Slack exchanged {did} times")
        if standing == "idle" and await here.audited("token.rotated") != rotations:
            broken.append(f"not {rotations} rotations are on record")
        if list(here.spool.glob("*.answer")):
            broken.append("an answer was left in the spool")
    return broken


async def kill_everywhere() -> dict[str, list[str]]:
    """Kill a process at every failpoint, at a strict and at a forgiving Slack.

    Returns:
        What did not hold, by place.
    """
    folder = Path(tempfile.mkdtemp(prefix="interlock-chaos-"))
    postgres = EmbeddedPostgres(folder / "pg", binaries=find_binaries(os.environ), durable=False)
    await asyncio.to_thread(postgres.start)
    broken: dict[str, list[str]] = {}
    try:
        cluster = ScratchDatabases(postgres.admin_url)
        for failpoint in FAILPOINTS:
            for grace_s in (0, 30):
                place = folder / f"{failpoint}-{grace_s}"
                await asyncio.to_thread(place.mkdir)
                found = await kill_and_go_on(cluster, place, failpoint, grace_s=grace_s)
                broken[place.name] = found
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return broken
