"""A vault process that dies at the edge of a step, once it is armed.

python -m tests.chaos.install_process POINT|none RECORD

A step is one call of a port that installing or uninstalling makes: to the
database, the KMS, Slack or identity. Its edges are `METHOD:N:before` and
`METHOD:N:after`, counted from SIGUSR1 on; those that are passed are written to
the file RECORD.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from interlock_chassis.config import load_settings
from interlock_chassis.logs import configure_logging
from interlock_token_vault.__main__ import open_kms, running
from interlock_token_vault.adapters.identity_grpc import IdentityClaims
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.adapters.postgres_uninstalls import PostgresUninstalls
from interlock_token_vault.adapters.slack_oauth import SlackOAuth
from interlock_token_vault.config import VaultSettings
from tests.chaos.edges import Edges

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


def _say(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - Who started it waits for this word.


async def main(wanted: str, record: str) -> None:
    """Serve until killed, or told to stop."""
    edges, stop = Edges(wanted, Path(record), lambda: _say("armed")), asyncio.Event()
    edges.put_around(_PORTS, _BESIDE)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, edges.arm)
    settings = load_settings(VaultSettings, os.environ)
    configure_logging("token-vault", settings.log_level)
    async with open_kms(settings) as kms, running(settings, kms) as port_number:
        _say(f"serving {port_number}")
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
