"""A vault process that ends, or stands still, where it is told.

python -m tests.chaos.vault_process FAILPOINT|none kill|stop
"""

import asyncio
import os
import signal
import sys

from interlock_chassis.config import load_settings
from interlock_chassis.logs import configure_logging
from interlock_token_vault.__main__ import open_kms, running
from interlock_token_vault.config import VaultSettings


async def main(wanted: str, action: str) -> None:
    """Serve until killed, or told to stop; once where it is to stand still, it says so."""
    left = [wanted]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def come_to(name: str) -> None:
        if name not in left:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        left.clear()
        print("stopped", name, flush=True)  # noqa: T201 - Who started it waits for this word.
        os.kill(os.getpid(), signal.SIGSTOP)

    settings = load_settings(VaultSettings, os.environ)
    configure_logging("token-vault", settings.log_level)
    async with open_kms(settings) as kms, running(settings, kms, failpoint=come_to) as port:
        print("serving", port, flush=True)  # noqa: T201 - Who started it waits for this word.
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
