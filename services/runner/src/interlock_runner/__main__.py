"""Composition root: `python -m interlock_runner serve`."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NoReturn

import structlog

from interlock.runner.v1 import runner_pb2_grpc
from interlock_chassis.ops import ops_server
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_runner.adapters.platform_http import PathStyle, open_platform
from interlock_runner.config import RunnerSettings
from interlock_runner.rpc import CALLERS, CAPS, MAX_MESSAGE_BYTES, SERVICE, RunnerRpc

# EX_USAGE of sysexits.h.
_EX_USAGE = 64
# Answers under way may end by themselves; less than the 30 s after which Kubernetes kills.
_STOP_GRACE = timedelta(seconds=20)


@asynccontextmanager
async def serve_runner(settings: RunnerSettings) -> AsyncIterator[int]:
    """Serve the runner; yields the gRPC port and stops gracefully on leaving.

    Raises:
        ConfigError: A setting does not fit, as `RpcServer.start` says.
    """
    style = PathStyle(settings.manage_path_style)
    async with open_platform(settings.manage_url, settings.run_url, style) as platform:
        server = RpcServer(
            listen=settings.listen,
            tls=settings.tls,
            callers=CALLERS,
            caps=CAPS,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        server.add(
            runner_pb2_grpc.add_RunnerServiceServicer_to_server,
            RunnerRpc(platform, settings.run_silence),
            SERVICE,
        )
        port = await server.start()
        try:
            yield port
        finally:
            await server.stop(_STOP_GRACE)


async def serve(settings: RunnerSettings, stop: asyncio.Event) -> None:
    """Serve gRPC and the operations port until told to stop.

    The runner is ready while it is up: when the platform is down, callers are
    told so call by call, and taking every replica out would tell them less.

    Raises:
        ConfigError: A setting does not fit.
    """
    async with serve_runner(settings) as port, ops_server(settings.ops_listen, _ready) as ops:
        structlog.get_logger().info("runner_started", port=port, ops_port=ops)
        await stop.wait()


async def _ready() -> None:
    """Be ready."""


def main(arguments: list[str]) -> NoReturn:
    """Run the process; exits 64 for anything but `serve`."""
    if arguments != ["serve"]:
        sys.stderr.write("usage: python -m interlock_runner serve\n")
        sys.exit(_EX_USAGE)
    run_process("runner", RunnerSettings, serve)


if __name__ == "__main__":
    main(sys.argv[1:])
