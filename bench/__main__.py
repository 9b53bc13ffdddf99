"""Run the benchmarks and keep their figures in bench/results/latest.json.

Prints one line each: `name value unit`. A benchmark is a function that returns
its figures; a figure's unit is in its name. latest.json holds every figure's
newest value, `{name: number}`; machine.json beside it describes the machine of
the last run, and says of each figure when and at which commit it was measured,
and how busy the machine was.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.identity_tokens import issue_user_token_per_s, leaving, redeem_flat_1e3_1e6
from bench.rotation_race import rotation_race
from bench.starting import cold_start, setup_warm
from bench.token_reads import (
    audit_commits_per_s,
    read_flat_1e3_1e6,
    save_vs_sdk_store,
    token_read_c1_vs_empty_rpc,
    token_read_p99_ms_at_1000,
    token_read_vs_empty_rpc,
    token_read_vs_sdk_store,
    token_reads_coalesced_vs_sdk_store,
    vault_rss_mib,
)

Benchmark = Callable[[], Mapping[str, float]]
Machine = Mapping[str, str | int | float]

BENCHMARKS: Mapping[str, Benchmark] = {
    "setup_warm": setup_warm,
    "cold_start": cold_start,
    "token_read_vs_empty_rpc": token_read_vs_empty_rpc,
    "token_read_vs_sdk_store": token_read_vs_sdk_store,
    "token_reads_coalesced_vs_sdk_store": token_reads_coalesced_vs_sdk_store,
    "token_read_c1_vs_empty_rpc": token_read_c1_vs_empty_rpc,
    "token_read_p99_ms_at_1000": token_read_p99_ms_at_1000,
    "read_flat_1e3_1e6": read_flat_1e3_1e6,
    "audit_commits_per_s": audit_commits_per_s,
    "save_vs_sdk_store": save_vs_sdk_store,
    "vault_rss_mib": vault_rss_mib,
    "issue_user_token_per_s": issue_user_token_per_s,
    "redeem_flat_1e3_1e6": redeem_flat_1e3_1e6,
    "leaving": leaving,
    "rotation_race": rotation_race,
}
RESULTS = Path(__file__).parent / "results"
FIGURES, MACHINE = "latest.json", "machine.json"
# What differs from run to run on one machine.
_OF_A_RUN = ("date", "commit", "load")
ROOT = Path(__file__).parents[1]
# By what a name ends in, the longer ending first; a comparison is a ratio.
_UNITS = {
    "_per_s": "/s",
    "_s": "s",
    "_ms": "ms",
    "_ms_at_1000": "ms",
    "_rps": "1/s",
    "_bytes": "bytes",
    "_mib": "MiB",
    "_flat_1e3_1e6": "x",
    "_authorised": "events",
    "exchanges": "exchanges",
}
_COMPARES = "_vs_"


def main(arguments: list[str]) -> int:
    """Run all benchmarks, or the one that is named.

    Returns:
        0; 2 when no benchmark has the name.
    """
    chosen = [name for name in BENCHMARKS if not arguments or name == arguments[0]]
    if not chosen:
        print(f"no such benchmark; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in chosen:
        machine, figures = describe_machine(), BENCHMARKS[name]()
        for figure, value in figures.items():
            print(f"{figure} {value:.3f} {unit_of(figure)}", flush=True)
        # At once, so that a run that is stopped keeps what it has measured.
        keep(RESULTS, figures, machine)
    return 0


def keep(folder: Path, figures: Mapping[str, float], machine: Machine) -> None:
    """Put figures into the results, and beside them where they were measured.

    What was measured before under other names stays. Writes two files.
    """
    folder.mkdir(exist_ok=True)
    known = _read(folder / FIGURES)
    known |= {figure: round(value, 3) for figure, value in figures.items()}
    _write(folder / FIGURES, known)
    of_run = {fact: machine[fact] for fact in _OF_A_RUN}
    measured = _read(folder / MACHINE).get("measured", {}) | dict.fromkeys(figures, of_run)
    _write(folder / MACHINE, {**machine, "measured": measured})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def describe_machine() -> Machine:
    """Say what is measured on, when, and what else is running: the load of the last minute."""
    return {
        "system": platform.platform(),
        "cpu": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _commit() -> str:
    """Name the commit, `+` for one with changes; empty where there is no repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )


def unit_of(figure: str) -> str:
    """Return the unit that a figure's name says.

    Raises:
        ValueError: It says none.
    """
    if _COMPARES in figure:
        return "x"
    for ending, unit in _UNITS.items():
        if figure.endswith(ending):
            return unit
    raise ValueError(f"{figure} names no unit")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
