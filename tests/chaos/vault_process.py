"""A vault process that ends where it is told, as `kill -9` would end it there.

python -m tests.chaos.vault_process FAILPOINT|none
"""

import asyncio
import os
import signal
import sys

from interlock_chassis.config import load_settings
from interlock_chassis.logs import configure_logging
from interlock_token_vault.__main__ import open_kms, running
from interlock_token_vault.config import VaultSettings


async def main(wanted: str) -> None:
    """Serve until killed, or told to stop."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def die(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings(VaultSettings, os.environ)
    configure_logging("token-vault", settings.log_level)
    async with open_kms(settings) as kms, running(settings, kms, failpoint=die):
        print("serving", flush=True)  # noqa: T201 - Who started it waits for this word.
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
