"""What `make bench` leaves behind."""

import json
from pathlib import Path

from bench.__main__ import describe_machine, keep


def test_a_run_of_one_benchmark_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    """latest.json is flat, and a figure stays until it is measured again."""
    machine = describe_machine()
    keep(tmp_path, {"read_rps": 1.0, "save_rps": 2.00049}, machine)
    keep(tmp_path, {"read_rps": 3.0}, machine)
    figures = json.loads((tmp_path / "latest.json").read_text())
    assert figures == {"read_rps": 3.0, "save_rps": 2.0}


def test_a_figure_says_when_it_was_measured_and_at_which_commit(tmp_path: Path) -> None:
    """machine.json describes the last run, and dates the figures of the earlier ones."""
    earlier = {**describe_machine(), "date": "2026-01-01T00:00:00+00:00", "commit": "aaaa"}
    keep(tmp_path, {"read_rps": 1.0, "save_rps": 2.0}, earlier)
    keep(tmp_path, {"read_rps": 3.0}, {**earlier, "commit": "bbbb"})
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert {"cpu", "cores", "python", "load", "date"} <= set(facts)
    assert facts["commit"] == "bbbb"
    commits = {figure: run["commit"] for figure, run in facts["measured"].items()}
    assert commits == {"read_rps": "bbbb", "save_rps": "aaaa"}
