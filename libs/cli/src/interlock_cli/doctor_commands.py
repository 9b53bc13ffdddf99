"""`interlock doctor`: find what is wrong with a process's set-up, and name the variable."""

import asyncio
import json
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interlock_chassis.clock import SystemClock
from interlock_cli.diagnosis import PROCESSES, Finding, Status, diagnose

# Of this command itself; a process would refuse them.
_OWN = frozenset({"INTERLOCK_DATA_DIR", "INTERLOCK_PORT", "INTERLOCK_OPERATOR_TLS_DIR"})
_MARKS = {
    Status.OK: "[green]ok[/green]",
    Status.WARNING: "[yellow]warning[/yellow]",
    Status.FAILED: "[bold red]failed[/bold red]",
}

Process = StrEnum("Process", {name: name for name in PROCESSES})  # type: ignore[misc] # From a table.


def doctor(
    process: Annotated[Process, typer.Argument(help="Whose environment this is.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a process's set-up in its own environment, before it starts or beside it.

    Reads the same INTERLOCK_* variables and files, reaches what the process
    reaches, changes nothing. Exits 1 when a check failed; a warning is none.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _OWN}
    findings = asyncio.run(diagnose(process.value, environ, clock=SystemClock()))
    if as_json:
        sys.stdout.write(json.dumps(_document(process.value, findings), indent=1) + "\n")
    else:
        _print(Console(), process.value, findings)
    raise typer.Exit(1 if _count(findings, Status.FAILED) else 0)


def _document(process: str, findings: list[Finding]) -> dict[str, object]:
    return {
        "process": process,
        "ok": not _count(findings, Status.FAILED),
        "findings": [
            {
                "check": each.check,
                "status": each.status.value,
                "variable": each.variable,
                "message": each.message,
            }
            for each in findings
        ],
    }


def _print(console: Console, process: str, findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("status", "check", "message"):
        table.add_column(column, overflow="fold", no_wrap=column != "message")
    for each in findings:
        named = f"[bold]{each.variable}[/bold]: " if each.variable else ""
        table.add_row(_MARKS[each.status], each.check, named + escape(each.message))
    console.print(table)
    failed, warnings = _count(findings, Status.FAILED), _count(findings, Status.WARNING)
    console.print(
        f"{process}: {len(findings)} checks, {failed} failed, {warnings} warnings",
        highlight=False,
    )


def _count(findings: list[Finding], status: Status) -> int:
    return sum(each.status is status for each in findings)
