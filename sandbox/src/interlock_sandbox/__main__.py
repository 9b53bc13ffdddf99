"""Run the sandbox: `python -m interlock_sandbox --config FILE`."""

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from interlock_chassis.errors import ConfigError
from interlock_sandbox.config import Config, load_config
from interlock_sandbox.server import running

# sysexits.h: EX_CONFIG.
EX_CONFIG = 78


def main() -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exit 0; exit 78 on a wrong configuration."""
    parser = argparse.ArgumentParser(prog="interlock_sandbox", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the JSON configuration")
    path: Path = parser.parse_args().config
    try:
        asyncio.run(_serve(load_config(path)))
    except ConfigError as problem:
        sys.stderr.write(f"interlock: {problem}\n")
        sys.exit(EX_CONFIG)
    sys.exit(0)


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as urls:
        nango = {"nango": urls.nango} if urls.nango else {}
        _log("sandbox_started", slack=urls.slack, platform=urls.platform, auth=urls.auth, **nango)
        await stop.wait()
    _log("sandbox_stopped")


def _log(event: str, **fields: str) -> None:
    """Write one line in the form of the services' logs."""
    line = {"timestamp": time.time(), "level": "info", "service": "sandbox", "event": event}
    sys.stderr.write(json.dumps(line | fields) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
