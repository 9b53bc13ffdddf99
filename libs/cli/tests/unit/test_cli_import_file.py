"""The file of `interlock import`: what is not as described stops before anybody is asked."""

import json
from pathlib import Path

import pytest
import typer

from interlock_cli.import_commands import read_moves

GOOD = {"tenant": "northwind", "user": "user_ada", "bot_token": "xoxb-canary"}
OTHER = {"tenant": "contoso", "user": "user_olga", "connection": "connection-1"}


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "moves.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_both_kinds_are_read_and_blank_lines_passed(tmp_path: Path) -> None:
    """A token is kept as a secret; lines are counted as an editor counts them."""
    moves = read_moves(_file(tmp_path, json.dumps(GOOD), "", json.dumps(OTHER)))
    assert [(each.line, each.tenant_id, each.connection_id) for each in moves] == [
        (1, "northwind", ""),
        (3, "contoso", "connection-1"),
    ]
    assert "xoxb-canary" not in repr(moves)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        json.dumps(GOOD | OTHER),
        json.dumps({"tenant": "northwind", "user": "user_ada"}),
        json.dumps({name: value for name, value in GOOD.items() if name != "user"}),
        json.dumps(GOOD | {"bot_token": ""}),
        json.dumps(GOOD | {"bot_token": 7}),
        json.dumps(GOOD | {"scopes": "chat:write"}),
        json.dumps(GOOD | {"bot_token": "x" * 9000}),
    ],
)
def test_a_malformed_line_is_named_and_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """Exit 2, with the number of the line and without what stands in it."""
    with pytest.raises(typer.Exit) as ended:
        read_moves(_file(tmp_path, json.dumps(OTHER), line))
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    assert "line 2" in said
    assert "canary" not in said


@pytest.mark.parametrize("lines", [(), ("", " ")])
def test_a_file_without_a_workspace_is_a_mistake(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """Nothing to do is said, not done."""
    with pytest.raises(typer.Exit):
        read_moves(_file(tmp_path, *lines))


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its path."""
    with pytest.raises(typer.Exit):
        read_moves(tmp_path / "absent")
    assert "absent" in capsys.readouterr().err
