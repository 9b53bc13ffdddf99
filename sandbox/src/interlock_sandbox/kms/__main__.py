"""Run the KMS stand-in: `python -m interlock_sandbox.kms --listen … --control … --key …`."""

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from interlock_chassis.errors import ConfigError
from interlock_sandbox.config import LISTEN_HOSTS, MAX_PORT, Address
from interlock_sandbox.kms.server import serving_kms

# sysexits.h: EX_CONFIG.
EX_CONFIG = 78


def main() -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exit 0; exit 78 when something cannot be used."""
    parser = argparse.ArgumentParser(prog="interlock_sandbox.kms", description=__doc__)
    parser.add_argument("--listen", type=_address, required=True, help="127.0.0.1:PORT of gRPC")
    parser.add_argument("--control", type=_address, required=True, help="127.0.0.1:PORT of HTTP")
    parser.add_argument("--key", action="append", required=True, help="name of a CryptoKey; repeat")
    parser.add_argument("--state", type=Path, help="keep the keys here, in the clear")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except ConfigError as problem:
        sys.stderr.write(f"interlock: {problem}\n")
        sys.exit(EX_CONFIG)
    sys.exit(0)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if host not in LISTEN_HOSTS or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise argparse.ArgumentTypeError("must be 127.0.0.1:PORT")
    return Address(host, int(port))


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving_kms(
        arguments.key,
        listen=arguments.listen,
        control_listen=arguments.control,
        state_file=arguments.state,
    ) as kms:
        _log("kms_started", address=kms.address, control=kms.control_url)
        await stop.wait()
    _log("kms_stopped")


def _log(event: str, **fields: str) -> None:
    """Write one line in the form of the services' logs."""
    line = {"timestamp": time.time(), "level": "info", "service": "kms", "event": event}
    sys.stderr.write(json.dumps(line | fields) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
