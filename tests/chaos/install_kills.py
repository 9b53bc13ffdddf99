"""Kill real vault processes between the steps of an install and of an uninstall.

Each course lists what did not hold once another process has gone on. Slack's
own record of its tokens judges.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from interlock_chassis.errors import RemoteError
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from tests.chaos.install_premises import PATIENCE_S, USER, Premises, premises

_Act = Callable[[Premises], Awaitable[object]]
_Judge = Callable[[Premises, Mapping[str, list[str]]], Awaitable[list[str]]]


@dataclass(frozen=True)
class Course:
    """Something that is cut short.

    Attributes:
        prepare: What comes before it.
        act: What a process dies amid.
        refusal: How it ends where nobody dies; empty for well.
        judge: Lists what does not hold afterwards; is given the rows from before.
        repeats: Whether who asked asks again, as Slack's events and people do.
    """

    prepare: _Act
    act: _Act
    judge: _Judge
    refusal: str = ""
    repeats: bool = False


async def _nothing(_: Premises) -> None:
    """Begin with an empty vault."""


async def _install(here: Premises) -> None:
    await here.install()


async def _install_for_another(here: Premises) -> None:
    await here.install("contoso")


async def _uninstall(here: Premises) -> None:
    await here.house.uninstall()


async def _install_and_remove(here: Premises) -> None:
    await here.install()
    await here.remove_app()


async def _install_and_revoke(here: Premises) -> None:
    await here.install()
    await here.revoke_user()


async def _hear_of_removal(here: Premises) -> None:
    await here.house.revocation("app_uninstalled")


async def _hear_of_revocation(here: Premises) -> None:
    await here.house.revocation("tokens_revoked", users=[USER])


async def _is_whole_or_nothing(here: Premises, _: Mapping[str, list[str]]) -> list[str]:
    rows = await here.snapshot()
    held = len(rows["installation"])
    broken = [] if len(rows["wrapped_dek"]) == held else ["a data key is left over"]
    if len(rows["sealed_token"]) != 2 * held:
        broken.append(f"{len(rows['sealed_token'])} tokens of {held} installations")
    if len(here.identity.claims) < held:
        broken.append("an installation without a claim")
    return broken


async def _is_whole(here: Premises, before: Mapping[str, list[str]]) -> list[str]:
    rows = await here.snapshot()
    broken = [] if len(rows["installation"]) == 1 else ["the installation is gone"]
    return [*broken, *await _is_whole_or_nothing(here, before)]


async def _is_untouched(here: Premises, before: Mapping[str, list[str]]) -> list[str]:
    broken = [] if await here.snapshot() == before else ["the rightful tenant's rows changed"]
    if len(await here.living()) < 2:
        broken.append("the rightful tenant's tokens died")
    return broken


async def _is_gone(here: Premises, _: Mapping[str, list[str]]) -> list[str]:
    rows = await here.snapshot()
    broken = [f"{table} is not empty" for table, left in rows.items() if left]
    broken += ["the claim is still held"] if here.identity.claims else []
    return broken + (["a token lives on"] if await here.living() else [])


async def _has_bot_alone(here: Premises, _: Mapping[str, list[str]]) -> list[str]:
    rows = await here.snapshot()
    broken = [] if len(rows["sealed_token"]) == 1 else ["the person's token is still there"]
    return broken + ([] if await here.living("xoxb") else ["the bot died with it"])


COURSES: Mapping[str, Course] = {
    "install": Course(_nothing, _install, _is_whole_or_nothing),
    "reinstall": Course(_install, _install, _is_whole),
    "install-of-another-tenant": Course(
        _install, _install_for_another, _is_untouched, refusal="WORKSPACE_TAKEN"
    ),
    "uninstall": Course(_install, _uninstall, _is_gone, repeats=True),
    "app-removed": Course(_install_and_remove, _hear_of_removal, _is_gone, repeats=True),
    "person-revoked": Course(
        _install_and_revoke, _hear_of_revocation, _has_bot_alone, repeats=True
    ),
}


async def rehearse(cluster: ScratchDatabases, folder: Path, course: Course) -> list[str]:
    """Let a course run undisturbed; returns the edges of its steps, in order."""
    record = folder / "edges"
    async with premises(cluster, folder) as here, here.running(record=record) as process:
        await course.prepare(here)
        await here.arm(process)
        if (reason := await _refusal(course.act(here))) != course.refusal:
            raise AssertionError(f"undisturbed it ended with {reason!r}")
        await here.settled()
    return record.read_text().split()


async def kill_at(cluster: ScratchDatabases, folder: Path, course: Course, edge: str) -> list[str]:
    """Kill a process at an edge, go on with another, and list what did not hold."""
    broken: list[str] = []
    async with premises(cluster, folder) as here:
        async with here.running(edge) as process:
            await course.prepare(here)
            before = await here.snapshot()
            await here.arm(process)
            await _refusal(course.act(here))
            async with asyncio.timeout(PATIENCE_S):
                if (ended := await process.wait()) != -9:
                    broken.append(f"the process was not killed there: {ended}")
        if await here.unstored() and not await here.has_open_exchange():
            broken.append("a token lives that nothing was written down for")
        has_begun = bool(await here.audited("uninstall.asked"))
        await here.let_time_pass()
        async with here.running():
            await here.settled()
            if has_begun:
                broken += await course.judge(here, before)
            if course.repeats and (reason := await _refusal(course.act(here))):
                broken.append(f"the repeat ended with {reason}")
            await here.settled()
        if await here.unstored() and not await here.audited("install.lost"):
            broken.append("a token lives on that no record tells of")
        return broken + await course.judge(here, before)


async def kill_everywhere(tell: Callable[[str, list[str]], None]) -> bool:
    """Kill a process at every edge of every course; returns whether all held."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-chaos-"))
    postgres = EmbeddedPostgres(folder / "pg", binaries=find_binaries(os.environ), durable=False)
    await asyncio.to_thread(postgres.start)
    has_held = True
    try:
        cluster = ScratchDatabases(postgres.admin_url)
        for name, course in COURSES.items():
            place = folder / name
            await asyncio.to_thread(place.mkdir)
            for number, edge in enumerate(await rehearse(cluster, place, course)):
                scene = place / str(number)
                await asyncio.to_thread(scene.mkdir)
                broken = await kill_at(cluster, scene, course, edge)
                tell(f"{name}, {edge}", broken)
                has_held = has_held and not broken
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return has_held


async def _refusal(act: Awaitable[object]) -> str:
    """Say with which reason something was refused; empty for not at all."""
    try:
        await act
    except RemoteError as refused:
        return refused.reason
    return ""
