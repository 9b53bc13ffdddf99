"""Speak to a service as its operator: where it is, with which certificate, and how it refuses."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from grpc import aio

from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import ConfigError, Kind, RemoteError
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles

_T = TypeVar("_T")

# sysexits.h: wrong use, and "try again later".
EXIT_USAGE = 2
EXIT_LOCKED = 75

_NAME = "operator"
_VAULT = "token-vault"
_USAGE_KINDS = frozenset({Kind.INVALID, Kind.NOT_FOUND})

DataDir = Annotated[
    Path,
    typer.Option(envvar="INTERLOCK_DATA_DIR", help="Data folder of an `interlock run`."),
]
Address = Annotated[
    str,
    typer.Option(envvar="INTERLOCK_VAULT_ADDRESS", help="host:port of another vault."),
]
TlsDir = Annotated[
    Path | None,
    typer.Option(
        envvar="INTERLOCK_OPERATOR_TLS_DIR", help="Folder with ca.crt, operator.crt, operator.key."
    ),
]
DEFAULT_DATA_DIR = Path(".interlock")


@dataclass(frozen=True)
class VaultPlace:
    """Where a vault, or another service, is, and who we are to it."""

    address: str
    tls: TlsFiles
    service: str = _VAULT

    @classmethod
    def find(
        cls, data_dir: Path, address: str, tls_dir: Path | None, *, service: str = _VAULT
    ) -> "VaultPlace":
        """Find the service that is meant: one named outright, or that of a data folder.

        Issues the operator's certificate where the data folder holds the authority.
        Ends the command when there is none.
        """
        if address or tls_dir:
            if not address or not tls_dir:
                fail("--address and --tls-dir go together", EXIT_USAGE)
            files = TlsFiles(tls_dir / "ca.crt", tls_dir / "operator.crt", tls_dir / "operator.key")
            return cls(address, files, service)
        try:
            ports = json.loads((data_dir / "ports.json").read_text(encoding="utf-8"))
            authority = ThrowAwayCa.load(data_dir / "keys" / "ca")
            port = int(ports[service])
        except (OSError, ValueError, KeyError, TypeError):
            fail(
                f"{data_dir} is no data folder of a run; name it with --data-dir,"
                " or a service with --address and --tls-dir"
            )
        tls = authority.issue(_NAME, data_dir / "keys" / _NAME)
        return cls(f"127.0.0.1:{port}", tls, service)


def call_vault(place: VaultPlace, work: Callable[[aio.Channel], Awaitable[_T]]) -> _T:
    """Do work on a channel to the service; its refusal ends the command.

    Exits 2 when the request was wrong, 75 when somebody else is at it, else 1.
    """

    async def connected() -> _T:
        async with open_channel(place.address, place.tls, server=place.service) as channel:
            with remote_errors():
                return await work(channel)

    try:
        return asyncio.run(connected())
    except ConfigError as problem:
        fail(f"{problem.variable}: {problem.problem}")
    except KeyboardInterrupt:
        fail("stopped; what is done stays done", 130)
    except RemoteError as error:
        if error.kind is Kind.LOST_RACE:
            fail(f"locked: {error.message} ({error.reason})", EXIT_LOCKED)
        fail(
            f"{error.message} ({error.reason})",
            EXIT_USAGE if error.kind in _USAGE_KINDS else 1,
        )


def fail(problem: str, code: int = 1) -> NoReturn:
    """End the command with one line on stderr."""
    sys.stdout.flush()
    sys.stderr.write(f"interlock: {problem}\n")
    raise typer.Exit(code)


def require_yes(question: str, *, yes: bool) -> None:
    """Go on only after a yes: by option, or asked on a terminal.

    Exits 2 without a terminal to ask on, 1 after a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        fail("nobody is there to confirm; add --yes", EXIT_USAGE)
    if not typer.confirm(question):
        fail("nothing was done")
