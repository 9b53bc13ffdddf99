"""`interlock backup` and `interlock restore`: the vault in two files, and its way back."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import uuid4

import typer
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import OperatorServiceStub
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
from interlock_token_vault.domain.audit_log import ExportReader, UnreadableLog

_CALL_S = 30
# The vault's own cap of a call that walks everything.
_WALK_S = 30 * 60
# What a message of the vault's takes.
_PIECE_BYTES = 48 * 1024
_BURIED_AT_ONCE = 1000

Sealed = Annotated[Path, typer.Option(help="File of installations and sealed tokens.")]
Keys = Annotated[Path, typer.Option(help="File of wrapped data keys; keep it elsewhere.")]


def backup(
    *,
    sealed: Sealed,
    keys: Keys,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Write a backup of the vault: two files that open nothing without each other and the KMS."""
    if sealed.resolve() == keys.resolve():
        fail("--sealed and --keys must be two files", EXIT_USAGE)
    place = VaultPlace.find(data_dir, address, tls_dir)

    async def work(channel: aio.Channel) -> None:
        vault = OperatorServiceStub(channel)
        for part, path in ((pb.BACKUP_PART_SEALED, sealed), (pb.BACKUP_PART_KEYS, keys)):
            draft = path.with_name(f".{path.name}.new")
            with _created(draft) as file:
                request = pb.BackupRequest(part=part)
                async for piece in vault.Backup(request, timeout=_WALK_S):
                    file.write(piece.chunk)
            # A backup that was cut off never bears its name.
            draft.replace(path)

    call_vault(place, work)
    typer.echo(f"{sealed} and {keys} belong together; keep them apart.")


def restore(
    *,
    sealed: Sealed,
    keys: Keys,
    audit: Annotated[
        Path | None, typer.Option(help="Newest audit export: what it says was purged stays gone.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Restore a backup: judged as a whole, written on hold, released where Slack says it lives.

    Prints the workspaces that must install again.
    """
    for path in (sealed, keys):
        if not path.is_file():
            fail(f"{path}: no such file", EXIT_USAGE)
    purged = _purged_in(audit) if audit else []
    if not dry_run:
        require_yes(f"Restore {sealed} and {keys}?", yes=yes)
    place = VaultPlace.find(data_dir, address, tls_dir)

    async def work(channel: aio.Channel) -> tuple[pb.RestoreResponse, int]:
        vault = OperatorServiceStub(channel)
        restore_id = str(uuid4())
        for part, path in ((pb.BACKUP_PART_SEALED, sealed), (pb.BACKUP_PART_KEYS, keys)):
            for offset, chunk in _pieces_of(path):
                piece = pb.StageRestoreRequest(
                    restore_id=restore_id, part=part, offset=offset, chunk=chunk
                )
                await vault.StageRestore(piece, timeout=_CALL_S)
        last = pb.RestoreResponse()
        request = pb.RestoreRequest(restore_id=restore_id, dry_run=dry_run)
        async for progress in vault.Restore(request, timeout=_WALK_S):
            last = progress
        buried = 0
        for start in range(0, 0 if dry_run else len(purged), _BURIED_AT_ONCE):
            ids = purged[start : start + _BURIED_AT_ONCE]
            bury = pb.BuryInstallationsRequest(installation_ids=ids)
            buried += (await vault.BuryInstallations(bury, timeout=_CALL_S)).buried
        return last, buried

    last, buried = call_vault(place, work)
    if dry_run:
        typer.echo(f"{last.total} installations can be restored; {last.lost} have lost their key.")
        return
    typer.echo(
        f"{last.done} installations were restored, {last.skipped} were there already,"
        f" {last.lost} have lost their key, {buried} had been purged since."
    )
    _release(place)


def release_hold(
    *, data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = "", tls_dir: TlsDir = None
) -> None:
    """Ask Slack about every installation on hold, and release those whose token lives.

    A vault holds itself when its database is older than its signed
    checkpoints: find out why before this lifts it.
    """
    _release(VaultPlace.find(data_dir, address, tls_dir))


def _release(place: VaultPlace) -> None:
    async def work(channel: aio.Channel) -> tuple[int, list[pb.ReleaseHoldResponse]]:
        released, left = 0, []
        probes = OperatorServiceStub(channel).ReleaseHold(pb.ReleaseHoldRequest(), timeout=_WALK_S)
        async for probed in probes:
            if probed.released:
                released += 1
            else:
                left.append(probed)
        return released, left

    released, left = call_vault(place, work)
    typer.echo(f"{released} installations answer again.")
    for each in left:
        name = each.team_id or each.enterprise_id
        typer.echo(f"must install again: {name} {each.name!r} ({each.reason})")


def _purged_in(audit: Path) -> list[str]:
    try:
        with audit.open("rb") as lines:
            return [
                str(record.event.installation_id)
                for record in ExportReader(iter(lines)).records()
                if record.event.action == "installation.purged"
            ]
    except OSError as error:
        fail(f"{audit}: {error.strerror}", EXIT_USAGE)
    except UnreadableLog as error:
        fail(f"{audit}: {error}", EXIT_USAGE)


def _pieces_of(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        offset = 0
        while chunk := file.read(_PIECE_BYTES):
            yield offset, chunk
            offset += len(chunk)


def _created(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        fail(f"{path}: {error.strerror}", EXIT_USAGE)
    return os.fdopen(descriptor, "wb")
