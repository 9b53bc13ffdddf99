"""The catalogue of bad inputs, and the tests that answer it."""

import csv
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CATALOGUE = HERE.parent / "fixtures" / "bad_inputs.tsv"


def _listed() -> set[str]:
    text = (HERE / "covered.txt").read_text()
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}


def _rows() -> set[str]:
    with CATALOGUE.open(newline="") as catalogue:
        return {row["id"] for row in csv.DictReader(catalogue, delimiter="\t")}


def _surface(row_id: str) -> str:
    return row_id.partition("-")[0]


def _test_ids() -> set[str]:
    """Ask pytest what it collects here."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", str(HERE)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=HERE.parents[1],
    )
    return set(
        re.findall(r"\b[A-Z]{2}-[0-9]{2}\b", "".join(re.findall(r"\[[^\]]*\]", done.stdout)))
    )


def test_a_covered_surface_has_a_test_id_for_every_row() -> None:
    """A row that is added to a listed surface needs a test, and no id names a row in vain."""
    rows, listed, tested = _rows(), _listed(), _test_ids()
    assert listed <= {_surface(each) for each in rows}
    assert {each for each in rows if _surface(each) in listed} - tested == set()
    assert tested - rows == set()
