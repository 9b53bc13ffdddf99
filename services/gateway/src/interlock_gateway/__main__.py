"""`python -m interlock_gateway edge|worker|migrate`."""

import asyncio
import sys
from typing import NoReturn

from interlock_chassis.config import MigrationSettings
from interlock_chassis.database import migrate
from interlock_chassis.process import run_process

USAGE = "usage: python -m interlock_gateway edge|worker|migrate\n"
# sysexits.h: the command was used incorrectly.
EX_USAGE = 64


def main(arguments: list[str]) -> NoReturn:
    """Run one of the gateway's processes, named by the only argument, to its end."""
    # Each process imports its own half only: edge has no code that reads a token.
    match arguments:
        case ["edge"]:
            from interlock_gateway.edge.config import EdgeSettings  # noqa: PLC0415 - Above.
            from interlock_gateway.edge.main import serve as edge  # noqa: PLC0415 - Above.

            run_process("gateway-edge", EdgeSettings, edge)
        case ["worker"]:
            from interlock_gateway.worker.config import WorkerSettings  # noqa: PLC0415 - Above.
            from interlock_gateway.worker.main import serve as worker  # noqa: PLC0415 - Above.

            run_process("gateway-worker", WorkerSettings, worker)
        case ["migrate"]:
            run_process("gateway-migrate", MigrationSettings, _migrate)
        case _:
            sys.stderr.write(USAGE)
            sys.exit(EX_USAGE)


async def _migrate(settings: MigrationSettings, _: asyncio.Event) -> None:
    from interlock_gateway.migrations import DATABASE  # noqa: PLC0415 - Only needed here.

    migrate(settings.database_url_file, DATABASE)


if __name__ == "__main__":
    main(sys.argv[1:])
