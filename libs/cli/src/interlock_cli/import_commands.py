"""`interlock import`: move workspaces in, from tokens or Nango connections that exist already."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from grpc import aio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from interlock.identity.v1 import identity_pb2
from interlock.identity.v1.identity_pb2_grpc import SessionServiceStub
from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import OperatorServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import RemoteError
from interlock_chassis.secret import Secret
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

_CALL_S = 5
# The vault's own cap of an import.
_IMPORT_S = 30
_MAX_LINE_CHARS = 8192
_MEMBERS = frozenset({"tenant", "user", "bot_token", "connection"})

IdentityAddress = Annotated[
    str,
    typer.Option(envvar="INTERLOCK_IDENTITY_ADDRESS", help="host:port of another identity."),
]


@dataclass(frozen=True)
class Move:
    """One workspace to move in.

    Attributes:
        line: Where it stands in the file, from 1.
        token: Its bot token; None where Nango keeps it.
        connection_id: Its connection at Nango, or empty.
    """

    line: int
    tenant_id: str
    user_id: str
    token: Secret[str] | None
    connection_id: str


def import_workspaces(
    file: Annotated[Path, typer.Argument(help="JSON lines; see docs/operations.md.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask Slack about each; write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    identity_address: IdentityAddress = "",
    tls_dir: TlsDir = None,
) -> None:
    """Move workspaces in whose bot tokens, or connections at Nango, exist already.

    What is refused stays as it is at Slack; the others go on. May be repeated.
    Exits 1 when any was refused.
    """
    moves = read_moves(file)
    if not dry_run:
        require_yes(f"Move {len(moves)} workspaces in?", yes=yes)
    vault = VaultPlace.find(data_dir, address, tls_dir)
    identity = VaultPlace.find(data_dir, identity_address, tls_dir, service="identity")
    lines = call_vault(vault, lambda channel: _move_all(channel, identity, moves, dry_run=dry_run))
    console = Console(soft_wrap=True, highlight=False)
    for text, _ in lines:
        console.print(text, markup=False)
    refused = sum(not is_done for _, is_done in lines)
    if refused:
        fail(f"{refused} of {len(moves)} were refused")


async def _move_all(
    channel: aio.Channel, identity: VaultPlace, moves: list[Move], *, dry_run: bool
) -> list[tuple[str, bool]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    done: list[tuple[str, bool]] = []
    async with open_channel(identity.address, identity.tls, server="identity") as to_identity:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("moving in", total=len(moves))
            for move in moves:
                done.append(await _move_one(channel, to_identity, move, dry_run=dry_run))
                progress.advance(task)
    return done


async def _move_one(
    vault: aio.Channel, identity: aio.Channel, move: Move, *, dry_run: bool
) -> tuple[str, bool]:
    """Move one in; returns a line about it, and whether it was taken."""
    source = identity_pb2.INSTALL_SOURCE_DIRECT if move.token else identity_pb2.INSTALL_SOURCE_NANGO
    asked = identity_pb2.IssueImportGrantRequest(
        tenant_id=move.tenant_id, user_id=move.user_id, source=source
    )
    try:
        with remote_errors():
            grant = await SessionServiceStub(identity).IssueImportGrant(asked, timeout=_CALL_S)
            request = pb.ImportTokenRequest(
                grant=grant.grant,
                bot_token=move.token.reveal() if move.token else "",
                connection_id=move.connection_id,
                dry_run=dry_run,
            )
            answer = await OperatorServiceStub(vault).ImportToken(request, timeout=_IMPORT_S)
    except RemoteError as error:
        return f"line {move.line}: {error.message} ({error.reason})", False
    found = answer.installation
    place = found.team_id or found.enterprise_id
    what = "could be moved in" if dry_run else "renewed" if answer.is_reinstall else "moved in"
    return f"line {move.line}: {place} {what} for {move.tenant_id}", True


def read_moves(file: Path) -> list[Move]:
    """Read what is to be moved in; a malformed line ends the command, and is not quoted."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        fail(f"{file} cannot be read as text", EXIT_USAGE)
    moves = [_read_move(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not moves:
        fail(f"{file} names no workspace", EXIT_USAGE)
    return moves


def _read_move(file: Path, number: int, line: str) -> Move:
    try:
        document: Any = json.loads(line) if len(line) <= _MAX_LINE_CHARS else None
    except ValueError:
        document = None
    given = document if isinstance(document, dict) else {}
    has_texts = all(isinstance(value, str) and value for value in given.values())
    has_one = ("bot_token" in given) != ("connection" in given)
    if not (has_texts and has_one and {"tenant", "user"} <= set(given) <= _MEMBERS):
        fail(
            f'{file}, line {number}: must be {{"tenant": …, "user": …}} with either'
            ' "bot_token" or "connection"',
            EXIT_USAGE,
        )
    token = given.get("bot_token")
    return Move(
        line=number,
        tenant_id=given["tenant"],
        user_id=given["user"],
        token=Secret(token) if token else None,
        connection_id=given.get("connection", ""),
    )
