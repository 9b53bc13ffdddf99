"""The operations port: is the process alive, is it ready, what does it count."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from interlock_chassis import telemetry
from interlock_chassis.errors import ConfigError, ServiceError
from interlock_chassis.logs import describe_exception

# Kubernetes asks with a timeout of 1 s by default and 3 s in our manifests.
_READY_BUDGET_SECONDS = 2.5

Ready = Callable[[], Awaitable[None]]


@asynccontextmanager
async def ops_server(listen: str, ready: Ready) -> AsyncIterator[int]:
    """Serve `/livez`, `/readyz` and `/metrics` over plain HTTP; yields the port.

    `/readyz` answers 503 with a reason when `ready` raises or takes longer
    than 2.5 s; the reason is a ServiceError's own, else `NOT_READY`.

    Args:
        listen: `host:port`; port 0 lets the system choose.
        ready: Raises when the process cannot do its work now.

    Raises:
        ConfigError: The address is not free.
    """
    telemetry.start_process_metrics()
    app = web.Application()
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz(ready))
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        site = web.TCPSite(runner, host.strip("[]"), int(port))
        try:
            await site.start()
        except OSError as error:
            problem = f"cannot listen there: {error.strerror}"
            raise ConfigError("INTERLOCK_OPS_LISTEN", problem) from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _livez(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(
        body=telemetry.metrics_text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


def _readyz(ready: Ready) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_READY_BUDGET_SECONDS):
                await ready()
        except Exception as error:  # noqa: BLE001 - Whatever it is, we are not ready.
            reason = error.reason if isinstance(error, ServiceError) else "NOT_READY"
            log = structlog.get_logger()
            log.warning("readiness_refused", reason=reason, cause=describe_exception(error))
            return web.Response(status=503, text=f"{reason}\n")
        return web.Response(text="ready\n")

    return answer
