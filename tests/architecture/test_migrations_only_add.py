"""Migrations leave running code of before undisturbed: they add, and take nothing away."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from interlock_cli.product import DATABASES

ROOT = Path(__file__).parents[2]
# What code of before may still read, write, call or leave out.
TAKES_AWAY = re.compile(
    r"\bDROP\s+(?:TABLE|COLUMN|VIEW|FUNCTION|SCHEMA|TYPE|SEQUENCE)\b[^;,]*"
    r"|\bRENAME\b[^;]*"
    r"|\bALTER\s+COLUMN\s+\w+\s+(?:SET\s+DATA\s+)?TYPE\b[^;,]*"
    r"|\bSET\s+NOT\s+NULL\b"
    r"|\bADD\s+COLUMN\b(?=[^;,]*\bNOT\s+NULL\b)(?![^;,]*\bDEFAULT\b)[^;,]*",
    re.IGNORECASE,
)
# Taken away before the first release, when no older code ran anywhere.
BEFORE_RELEASE = {"0002_freeze": {"DROP FUNCTION vault.load_bots(text[]"}}
DROPPED_FUNCTION = re.compile(r"DROP\s+FUNCTION\s+([\w.]+)", re.IGNORECASE)


class Recorder:
    """Stand in for alembic's `op`, and keep the statements."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def execute(self, statement: object) -> None:
        """Keep a statement."""
        self.statements.append(str(statement))


def _versions() -> Iterator[tuple[str, Path]]:
    for plan in DATABASES:
        package = importlib.util.find_spec(plan.migrations)
        assert package
        assert package.submodule_search_locations
        folder = Path(package.submodule_search_locations[0]) / "versions"
        first, *later = sorted(folder.glob("[0-9]*.py"))
        assert first.exists()
        yield from ((f"{plan.name}-{path.stem}", path) for path in later)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in _versions()])
def test_a_migration_takes_nothing_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade drops, renames and tightens nothing that older code may still use."""
    module, recorder = _load(path), Recorder()
    monkeypatch.setattr(module, "op", recorder)
    module.upgrade()
    assert recorder.statements
    sql = re.sub(r"--[^\n]*", "", "\n".join(recorder.statements))
    found = {match[0].strip() for match in TAKES_AWAY.finditer(sql)}
    found -= BEFORE_RELEASE.get(path.stem, set())
    assert [each for each in found if not _is_made_again(each, sql)] == []


def _is_made_again(drop: str, sql: str) -> bool:
    """Tell whether a function is dropped to be made again, as another result asks for.

    Nobody sees it missing: a migration is one transaction.
    """
    name = DROPPED_FUNCTION.match(drop)
    return name is not None and re.search(rf"CREATE\s+FUNCTION\s+{name[1]}\(", sql) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE a DROP COLUMN b",
        "DROP TABLE a",
        "DROP FUNCTION a.b(text)",
        "ALTER TABLE a RENAME COLUMN b TO c",
        "ALTER TABLE a ALTER COLUMN b TYPE text",
        "ALTER TABLE a ALTER COLUMN b SET NOT NULL",
        "ALTER TABLE a ADD COLUMN b text NOT NULL",
    ],
)
def test_what_takes_away_is_seen(sql: str) -> None:
    """The search finds each way in which a migration could break older code."""
    [found] = TAKES_AWAY.finditer(sql)
    assert not _is_made_again(found[0], sql)
