"""Run the benchmarks and write bench/results/latest.json.

Prints one line each: `name value unit`. A benchmark is a function that returns
its figures; a figure's unit is in its name. The results say on what machine
they were measured, and how busy it was.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from bench.identity_tokens import issue_user_token_per_s, leaving, redeem_flat_1e3_1e6
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
}
RESULTS = Path(__file__).parent / "results" / "latest.json"
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
    figures: dict[str, float] = {}
    for name in chosen:
        for figure, value in BENCHMARKS[name]().items():
            print(f"{figure} {value:.3f} {unit_of(figure)}", flush=True)
            figures[figure] = round(value, 3)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": describe_machine(), **figures}, indent=1) + "\n")
    return 0


def describe_machine() -> Mapping[str, str | int | float]:
    """Say what was measured on, and what else was running: the load of the last minute."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


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
