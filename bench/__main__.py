"""Run the benchmarks and write bench/results/latest.json.

Prints one line each: `name value unit`. A benchmark is a function that returns
its figures; its unit is the end of its name.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.starting import cold_start, setup_warm

Benchmark = Callable[[], Mapping[str, float]]

BENCHMARKS: Mapping[str, Benchmark] = {"setup_warm": setup_warm, "cold_start": cold_start}
RESULTS = Path(__file__).parent / "results" / "latest.json"
_UNITS = {"_s": "s", "_ms": "ms", "_rps": "1/s", "_bytes": "bytes"}


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
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def unit_of(figure: str) -> str:
    """Return the unit that a figure's name ends in.

    Raises:
        ValueError: It ends in none.
    """
    for ending, unit in _UNITS.items():
        if figure.endswith(ending):
            return unit
    raise ValueError(f"{figure} names no unit")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
