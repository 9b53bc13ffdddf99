"""How long a developer waits: for the set-up, and for the first and the next start."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The median of three: a start is one event, not a distribution.
_RUNS = 3


def setup_warm() -> Mapping[str, float]:
    """Time `make setup` of a fresh clone whose packages are in pip's cache, and once more."""
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        # Fills the cache where it was not warm.
        _time_setup(clone)
        shutil.rmtree(clone / ".venv")
        return {"setup_warm_s": _time_setup(clone), "setup_again_s": _time_setup(clone)}


def _time_setup(checkout: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["make", "setup"], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def cold_start() -> Mapping[str, float]:
    """Time `interlock run` to its last line, on an empty data folder and then on a used one."""
    cold: list[float] = []
    warm: list[float] = []
    stop: list[float] = []
    for _ in range(_RUNS):
        with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
            for starts in (cold, warm):
                started, stopped = _start_and_stop(folder)
                starts.append(started)
                stop.append(stopped)
    return {
        "cold_start_s": sorted(cold)[_RUNS // 2],
        "warm_start_s": sorted(warm)[_RUNS // 2],
        "stop_s": sorted(stop)[_RUNS],
    }


def _start_and_stop(folder: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "interlock_cli", "run", "--port=0", f"--data-dir={folder}"]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as product:
        assert product.stdout
        if not any(line.startswith("Ready:") for line in product.stdout):
            raise RuntimeError("the product did not start")
        ready = time.perf_counter()
        product.terminate()
        assert product.wait() == 0
    return ready - began, time.perf_counter() - ready
