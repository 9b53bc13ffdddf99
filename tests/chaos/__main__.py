"""Break parts while the product runs: `python -m tests.chaos [NAME [SEED]]`.

Each fault prints what it came to; a failing seed is printed and can be given
again, then with everything that happened in its course.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interlock_chassis.logs import configure_logging
from tests.chaos import install_kills, install_services
from tests.chaos.rotation_kills import kill_everywhere
from tests.chaos.rotation_processes import play_all
from tests.chaos.rotation_sim import Report, retrace, run

_SCHEDULES = 100_000
_CHUNK = 250
_MOST_SHOWN = 10
# A quarter of an hour on two idle cores; a machine this slow is asked for something else.
_MOST_TIME_S = 5400.0

Fault = Callable[[int | None], bool]
"""One way to break things, or one course of it again; tells whether everything held."""


def rotation(seed: int | None) -> bool:
    """Run 100,000 schedules of token rotation, or show one."""
    if seed is not None:
        report, lines = retrace(seed)
        print("\n".join(lines))  # noqa: T201 - The course is what was asked for.
        print(_told(report))  # noqa: T201 - As above.
        return _holds(report)
    started, total, failed = time.monotonic(), Report(seed=-1), list[Report]()
    with ProcessPoolExecutor() as workers, _progress() as progress:
        reports = workers.map(run, range(_SCHEDULES), chunksize=_CHUNK)
        for report in progress.track(reports, total=_SCHEDULES, description="rotation"):
            total.avoidable += report.avoidable
            total.unavoidable += report.unavoidable
            total.exchanges += report.exchanges
            total.rotations += report.rotations
            total.seed = report.seed
            if not _holds(report):
                failed.append(report)
            if time.monotonic() - started > _MOST_TIME_S or len(failed) >= _MOST_SHOWN:
                workers.shutdown(wait=False, cancel_futures=True)
                break
    ran = total.seed + 1
    _show(ran, total, failed, time.monotonic() - started)
    return not failed and ran == _SCHEDULES


def rotation_kills(_: int | None) -> bool:
    """Kill real vault processes at every place of a refresh."""
    broken = asyncio.run(kill_everywhere())
    for place, what in broken.items():
        print(f"rotation-kills: {place}: {'; '.join(what) or 'went on'}", flush=True)  # noqa: T201 - A command.
    return not any(broken.values())


def rotation_processes(_: int | None) -> bool:
    """Have real vault processes race, stand still, and lose Postgres and Slack's replies."""

    def tell(scene: str, broken: list[str]) -> None:
        print(f"rotation-processes: {scene}: {'; '.join(broken) or 'held'}", flush=True)  # noqa: T201 - As above.

    return asyncio.run(play_all(tell))


def installs(_: int | None) -> bool:
    """Kill real vault, edge and identity processes at every edge of installs and uninstalls."""
    configure_logging("chaos", "error")

    def tell(place: str, broken: list[str]) -> None:
        print(f"install-kills: {place}: {'; '.join(broken) or 'went on'}", flush=True)  # noqa: T201 - As above.

    with tempfile.TemporaryDirectory(prefix="interlock-chaos-") as folder:
        has_held = asyncio.run(install_services.kill_everywhere(Path(folder), tell))
    return asyncio.run(install_kills.kill_everywhere(tell)) and has_held


FAULTS: Mapping[str, Fault] = {
    "rotation": rotation,
    "rotation-kills": rotation_kills,
    "rotation-processes": rotation_processes,
    "install-kills": installs,
}


def main(arguments: list[str]) -> int:
    """Run all faults, or the one that is named.

    Returns:
        0; 1 when something did not hold; 2 when no fault has the name.
    """
    chosen = [name for name in FAULTS if not arguments or name == arguments[0]]
    if not chosen:
        print(f"no such fault; there are {', '.join(FAULTS)}", file=sys.stderr)  # noqa: T201 - A command.
        return 2
    seed = int(arguments[1]) if arguments[1:] else None
    held = [FAULTS[name](seed) for name in chosen]
    return 0 if all(held) else 1


def _holds(report: Report) -> bool:
    return not report.violations and not report.avoidable


def _progress() -> Progress:
    """Draw how far it has come, where a person looks on."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _show(ran: int, total: Report, failed: Iterable[Report], elapsed_s: float) -> None:
    shown = list(failed)
    lines = [
        f"rotation: {ran} of {_SCHEDULES} schedules in {elapsed_s:.0f} s",
        f"  {total.rotations} rotations by {total.exchanges} exchanges",
        f"  {len(shown)} schedules with violations or avoidable losses",
        f"  {total.unavoidable} chains lost with a pair that no process got or kept",
    ]
    lines += [
        f"  seed {report.seed}: {_told(report)}; make chaos ONLY=rotation SEED={report.seed}"
        for report in shown[:_MOST_SHOWN]
    ]
    print("\n".join(lines), flush=True)  # noqa: T201 - A command.


def _told(report: Report) -> str:
    losses = [f"{report.avoidable} avoidable losses"] if report.avoidable else []
    return "; ".join([*report.violations, *losses]) or "everything held"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
