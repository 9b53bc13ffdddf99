"""A vault process that dies at the edge of a step, once it is armed.

python -m tests.chaos.install_process POINT|none RECORD

A step is one call of a port that installing or uninstalling makes: to the
database, the KMS, Slack or identity. Its edges are `METHOD:N:before` and
`METHOD:N:after`, counted from SIGUSR1 on; those that are passed are written to
the file RECORD.
"""

import asyncio
import functools
import inspect
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from interlock_chassis.config import load_settings
from interlock_chassis.logs import configure_logging
from interlock_token_vault.__main__ import open_kms, running
from interlock_token_vault.adapters.identity_grpc import IdentityClaims
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.adapters.postgres_uninstalls import PostgresUninstalls
from interlock_token_vault.adapters.slack_oauth import SlackOAuth
from interlock_token_vault.config import VaultSettings

_PORTS = (PostgresInstalls, PostgresUninstalls, SlackOAuth, IdentityClaims, KmsKeys)
# What the sweep alone asks, whenever it comes round; and a part of another step.
_BESIDE = frozenset(
    {
        "list_unfinished",
        "prune_attempts",
        "list_open_uninstalls",
        "list_unreleased",
        "prune_tombstones",
        "call_as_app",
    }
)

_Step = Callable[..., Awaitable[Any]]


class Edges:
    """Where the process is, in steps.

    Args:
        wanted: The edge to die at.
        record: Where the edges that were passed are written to, one a line.
    """

    def __init__(self, wanted: str, record: Path) -> None:
        self._wanted = wanted
        self._record = record
        self._begun: Counter[str] = Counter()
        self._is_armed = False

    def arm(self) -> None:
        """Count from here."""
        self._is_armed = True
        print("armed", flush=True)  # noqa: T201 - Who sent the signal waits for this word.

    def around(self, name: str, step: _Step) -> _Step:
        """Put the two edges around a step."""

        @functools.wraps(step)
        async def edged(*arguments: Any, **named: Any) -> Any:
            self._begun[name] += self._is_armed
            place = f"{name}:{self._begun[name]}"
            self._pass(f"{place}:before")
            result = await step(*arguments, **named)
            self._pass(f"{place}:after")
            return result

        return edged

    def _pass(self, edge: str) -> None:
        if not self._is_armed:
            return
        if edge == self._wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        with self._record.open("a") as record:
            print(edge, file=record)


def _steps_of(port: type) -> Mapping[str, _Step]:
    return {
        name: method
        for name, method in vars(port).items()
        if inspect.iscoroutinefunction(method) and name[0] != "_" and name not in _BESIDE
    }


async def main(wanted: str, record: str) -> None:
    """Serve until killed, or told to stop."""
    edges, stop = Edges(wanted, Path(record)), asyncio.Event()
    for port in _PORTS:
        for name, step in _steps_of(port).items():
            setattr(port, name, edges.around(name, step))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, edges.arm)
    settings = load_settings(VaultSettings, os.environ)
    configure_logging("token-vault", settings.log_level)
    async with open_kms(settings) as kms, running(settings, kms) as port_number:
        print("serving", port_number, flush=True)  # noqa: T201 - Who started it waits for this word.
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
