"""`interlock audit`: take the vault's audit log out, and prove that it is whole."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import OperatorServiceStub
from interlock_cli.data_folder import AUDIT_CHECKPOINTS, AUDIT_PUBLIC_KEY
from interlock_cli.operator_client import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    Address,
    DataDir,
    TlsDir,
    VaultPlace,
    call_vault,
    fail,
)
from interlock_token_vault.adapters.checkpoints import CheckpointVerifier, load_checkpoints
from interlock_token_vault.domain.audit_log import ExportReader, UnreadableLog, verify_log

app = typer.Typer(help="Export and verify the vault's audit log.", no_args_is_help=True)

# The vault's own cap of the call.
_EXPORT_S = 30 * 60


@app.command()
def export(
    *,
    since: Annotated[str, typer.Option("--from", help="First instant, ISO 8601; UTC.")] = "",
    until: Annotated[str, typer.Option("--to", help="End, exclusive; none: 10 s ago.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's; cannot be verified.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="None: stdout.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Write the audit log as NDJSON, oldest first."""
    begin, end = _instant(since, "--from"), _instant(until, "--to")
    if begin and end and begin > end:
        fail("--from is after --to", EXIT_USAGE)
    request = pb.ExportAuditRequest(tenant_id=tenant)
    for field, instant in (("from", begin), ("to", end)):
        if instant:
            stamp = Timestamp()
            stamp.FromDatetime(instant)
            getattr(request, field).CopyFrom(stamp)

    async def work(channel: aio.Channel) -> None:
        chunks = OperatorServiceStub(channel).ExportAudit(request, timeout=_EXPORT_S)
        with _opened(output) as file:
            async for chunk in chunks:
                file.write(chunk.ndjson)

    call_vault(VaultPlace.find(data_dir, address, tls_dir), work)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An export of the whole log, or of a time of it.")],
    *,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with the vault's checkpoints.")
    ] = None,
    public_key: Annotated[
        list[Path] | None, typer.Option(help="PEM that verifies them; may be repeated.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Find the first bad record of every chain of an export; asks no vault.

    Exits 1 when anything is not as it was written.
    """
    folder = checkpoints or data_dir / AUDIT_CHECKPOINTS
    keys = public_key or [data_dir / "keys" / AUDIT_PUBLIC_KEY]
    try:
        verifier = CheckpointVerifier.from_pem(*(path.read_bytes() for path in keys))
        heads, damaged = load_checkpoints(folder, verifier)
        with file.open("rb") as lines:
            reader = ExportReader(iter(lines))
            if reader.span.tenant_id:
                fail("an export of one tenant leaves records out, so it proves nothing", EXIT_USAGE)
            findings = verify_log(reader.span, reader.records(), heads)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", EXIT_USAGE)
    except (UnreadableLog, ValueError) as error:
        fail(str(error))
    for found in findings.breaks:
        typer.echo(f"chain {found.chain_id}, record {found.seq}: {found.problem}")
    for name in damaged:
        typer.echo(f"checkpoints {name}: a line is forged or damaged")
    if findings.breaks or damaged:
        fail("the audit log is not as it was written")
    typer.echo(
        f"{findings.records} records in {findings.chains} chains are as they were written;"
        f" {findings.unsigned} of them are younger than the last checkpoint."
    )


def _instant(text: str, option: str) -> datetime | None:
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{option} is not an instant such as 2026-01-31 or 2026-01-31T12:00", EXIT_USAGE)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Open where to write: readable by its owner alone, or the standard output."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        fail(f"{output}: {error.strerror}", EXIT_USAGE)
    with os.fdopen(descriptor, "wb") as file:
        yield file
