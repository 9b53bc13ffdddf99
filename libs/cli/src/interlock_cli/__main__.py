"""The `interlock` command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from interlock_cli import (
    audit_commands,
    backup_commands,
    identity_commands,
    import_commands,
    key_commands,
    slack_commands,
)

app = typer.Typer(
    name="interlock",
    help="Run Interlock on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DATA_DIR = Path(".interlock")
_DOCTOR_OF = (
    "Whose environment this is: gateway-edge, gateway-worker, token-vault, identity or runner."
)

app.add_typer(audit_commands.app, name="audit")
app.add_typer(key_commands.app, name="keys")
app.add_typer(identity_commands.app, name="identity")
app.add_typer(slack_commands.app, name="slack")
app.command("import")(import_commands.import_workspaces)
app.command()(key_commands.freeze)
app.command()(key_commands.unfreeze)
app.command()(backup_commands.backup)
app.command()(backup_commands.restore)
app.command()(backup_commands.release_hold)


@app.callback()
def _interlock() -> None:
    """Keep the commands named even while there is only one."""


@app.command()
def run(
    *,
    data_dir: Annotated[
        Path,
        typer.Option(envvar="INTERLOCK_DATA_DIR", help="Where keys, databases and logs are kept."),
    ] = _DATA_DIR,
    port: Annotated[
        int,
        typer.Option(envvar="INTERLOCK_PORT", min=0, max=65535, help="Port; 0 is any free one."),
    ] = 8080,
    reset: Annotated[bool, typer.Option("--reset", help="Start over.")] = False,
    nango: Annotated[
        bool, typer.Option("--nango", help="Install by the sandbox's Nango, not from Slack.")
    ] = False,
) -> None:
    """Start everything on this machine and stay until Ctrl-C."""
    from interlock_cli.run import run as run_product  # noqa: PLC0415 - help needs none of it.

    raise typer.Exit(
        run_product(data_dir, port=port, reset=reset, console=Console(), by_nango=nango)
    )


@app.command()
def demo() -> None:
    """Drive the whole product over HTTP and say whether all of it worked."""
    from interlock_cli.demo import demo as run_demo  # noqa: PLC0415 - as above.

    raise typer.Exit(run_demo(Console()))


@app.command()
def doctor(
    process: Annotated[str, typer.Argument(help=_DOCTOR_OF)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a process's set-up in its own environment, before it starts or beside it.

    Reads the same INTERLOCK_* variables and files, reaches what the process
    reaches, changes nothing. Exits 1 when a check failed; a warning is none.
    """
    # All services' code, half a second that no other command should wait for.
    from interlock_cli.doctor_commands import doctor as run_doctor  # noqa: PLC0415 - as above.

    run_doctor(process, as_json=as_json)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
