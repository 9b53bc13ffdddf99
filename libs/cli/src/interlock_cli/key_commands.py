"""`interlock keys`: the life of the keys that guard stored tokens; and the freeze switch."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from grpc import aio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import OperatorServiceStub
from interlock_chassis.errors import ConfigError
from interlock_cli.operator_client import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    Address,
    DataDir,
    TlsDir,
    VaultPlace,
    call_vault,
    fail,
    require_yes,
)
from interlock_token_vault.adapters.local_kms import add_key

app = typer.Typer(
    help="Manage the keys that guard stored tokens, while tokens are released under them.",
    no_args_is_help=True,
)

_CALL_S = 30
# The vault's own cap of a re-wrap.
_REWRAP_S = 30 * 60

Installation = Annotated[str, typer.Option(help="The installation's id in the vault.")]
Note = Annotated[str, typer.Option(help="Why; goes into the audit log.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]

_T = TypeVar("_T")


@app.command("list")
def list_keys(
    *, data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = "", tls_dir: TlsDir = None
) -> None:
    """List the key-encryption keys, and how many data keys each wraps."""
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.ListKeys(pb.ListKeysRequest(), timeout=_CALL_S),
    )
    table = Table("version", "primary", "data keys", box=None)
    for key in answer.keys:
        table.add_row(key.version, "yes" if key.primary else "", str(key.wrapped_deks))
    Console(soft_wrap=True).print(table)


@app.command()
def add(
    *,
    keyset: Annotated[
        Path | None, typer.Option(help="Keyset file; none: that of the data folder.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Add a key to the keyset file of a vault with local keys; promote it next."""
    path = keyset or data_dir / "keys" / "local-kms.json"
    try:
        typer.echo(add_key(path))
    except ConfigError as problem:
        fail(f"{path}: {problem.problem}", EXIT_USAGE)


@app.command()
def promote(
    version: str,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Wrap new data keys under a version from now on."""
    request = pb.PromoteKeyRequest(version=version)
    _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.PromoteKey(request, timeout=_CALL_S),
    )
    typer.echo(f"{version} is primary; `interlock keys rewrap` moves what is wrapped already.")


@app.command()
def rewrap(
    *,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Wrap every data key under the primary version, while tokens are being read.

    Exits 75 when another re-wrap is under way, 1 when a data key stayed behind.
    """
    request = pb.RewrapKeysRequest(dry_run=dry_run)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )

    async def work(channel: aio.Channel) -> pb.RewrapKeysResponse:
        last = pb.RewrapKeysResponse()
        console = Console(stderr=True)
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task("Data keys", total=None)
            vault = OperatorServiceStub(channel)
            async for last in vault.RewrapKeys(request, timeout=_REWRAP_S):
                progress.update(task, completed=last.done, total=last.total)
        return last

    last = call_vault(VaultPlace.find(data_dir, address, tls_dir), work)
    if dry_run:
        typer.echo(f"{last.total} data keys would be wrapped again.")
        return
    typer.echo(f"{last.done} data keys were wrapped again.")
    if last.failed:
        fail(
            f"{last.failed} data keys cannot be unwrapped and stay as they are; see the vault's log"
        )


@app.command("rotate-dek")
def rotate_dek(
    *,
    installation: Installation,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Give one installation a new data key, and seal its tokens under it; also another app's."""
    request = pb.RotateDataKeyRequest(installation_id=installation)
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.RotateDataKey(request, timeout=_CALL_S),
    )
    typer.echo(f"{answer.tokens} tokens were sealed under a new data key.")


@app.command()
def rekey(
    *,
    installation: Installation,
    enterprise: Annotated[str, typer.Option(help="Slack E… that the workspace joined.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Seal the tokens of a workspace that joined an Enterprise under its new name."""
    request = pb.RekeyInstallationRequest(installation_id=installation, enterprise_id=enterprise)
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.RekeyInstallation(request, timeout=_CALL_S),
    )
    typer.echo(f"{answer.tokens} tokens were sealed under {enterprise}.")


@app.command()
def retire(
    version: str,
    *,
    yes: Yes = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Take a version out of use that wraps nothing any more.

    Backups made before it was re-wrapped still need it: disable it at the KMS,
    and destroy it only when the last of them is gone.
    """
    require_yes(f"Retire {version}?", yes=yes)
    request = pb.RetireKeyRequest(version=version)
    _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.RetireKey(request, timeout=_CALL_S),
    )
    typer.echo(f"{version} is out of use.")


@app.command()
def shred(
    *,
    installation: Installation = "",
    team: Annotated[str, typer.Option(help="Slack T…, instead of the id.")] = "",
    enterprise: Annotated[str, typer.Option(help="Slack E… of the team, or alone.")] = "",
    client: Annotated[
        str, typer.Option(help="Slack client id of the registered app whose it is.")
    ] = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Destroy an installation's data keys, and with them every stored token of it.

    Of Interlock's own, or of another app's that keeps its installations here.
    Nothing at Slack changes, and a backup of the keys still opens them.
    """
    if bool(installation) == bool(team or enterprise):
        fail("name the installation by --installation, or by --team and --enterprise", EXIT_USAGE)
    if client and installation:
        fail("--client goes with --team and --enterprise", EXIT_USAGE)
    if not dry_run:
        require_yes(f"Shred {installation or team or enterprise}?", yes=yes)
    request = pb.ShredInstallationRequest(
        installation_id=installation,
        team_id=team,
        enterprise_id=enterprise,
        client_id=client,
        dry_run=dry_run,
    )
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir),
        lambda vault: vault.ShredInstallation(request, timeout=_CALL_S),
    )
    found = answer.installation
    name = found.team_id or found.enterprise_id
    typer.echo(f"{name} {'would be' if dry_run else 'is'} shredded ({found.installation_id}).")


def freeze(
    *,
    note: Note,
    installation: Installation = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Stop the release of tokens at once: of one installation, or of all."""
    _set_freeze(VaultPlace.find(data_dir, address, tls_dir), installation, note, frozen=True)
    typer.echo(f"{installation or 'Everything'} is frozen.")


def unfreeze(
    *,
    note: Note,
    installation: Installation = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Undo `freeze` of the same installation, or of all."""
    _set_freeze(VaultPlace.find(data_dir, address, tls_dir), installation, note, frozen=False)
    typer.echo(f"{installation or 'Everything'} is released again, unless frozen otherwise.")


def _set_freeze(place: VaultPlace, installation: str, note: str, *, frozen: bool) -> None:
    request = pb.SetFreezeRequest(installation_id=installation, frozen=frozen, note=note)
    _call(place, lambda vault: vault.SetFreeze(request, timeout=_CALL_S))


def _call(place: VaultPlace, ask: Callable[[OperatorServiceStub], Awaitable[_T]]) -> _T:
    async def work(channel: aio.Channel) -> _T:
        return await ask(OperatorServiceStub(channel))

    return call_vault(place, work)
