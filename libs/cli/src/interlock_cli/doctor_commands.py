"""`interlock doctor`: find what is wrong with a process's set-up, and name the variable."""

import asyncio
import json
import os
import sys

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


def doctor(process: str, *, as_json: bool) -> None:
    """Check a process's set-up, print what was found, and leave with the exit code.

    Raises:
        typer.Exit: 0, or 1 when a check failed.
        typer.BadParameter: There is no such process.
    """
    if process not in PROCESSES:
        raise typer.BadParameter(f"{process!r} is not one of {', '.join(PROCESSES)}.")
    environ = {name: value for name, value in os.environ.items() if name not in _OWN}
    findings = asyncio.run(diagnose(process, environ, clock=SystemClock()))
    if as_json:
        sys.stdout.write(json.dumps(_document(process, findings), indent=1) + "\n")
    else:
        _print(Console(), process, findings)
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
