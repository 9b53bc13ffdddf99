"""The KMS stand-in, put together: gRPC for its users, HTTP for whoever causes trouble."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from grpc import aio

from interlock_chassis.errors import ConfigError
from interlock_sandbox.config import Address
from interlock_sandbox.kms.control import Control
from interlock_sandbox.kms.crypto_keys import CryptoKeys
from interlock_sandbox.kms.refusal import Refusal
from interlock_sandbox.kms.service import KeyManagementService
from interlock_sandbox.kms.trouble import Trouble
from interlock_sandbox.state import StateFile
from interlock_sandbox.web import application

# Another process on the same port would get half of the calls.
_OPTIONS = (("grpc.so_reuseport", 0),)
_ANY_PORT = Address("127.0.0.1", 0)


@dataclass(frozen=True)
class KmsStandIn:
    """A running stand-in.

    Attributes:
        address: `host:port` of gRPC, without TLS.
        control_url: Of the control API, without a slash at the end.
        keys: The keys; what an administrator may do without gRPC.
        trouble: Records of calls, and faults.
        service: The service itself.
    """

    address: str
    control_url: str
    keys: CryptoKeys
    trouble: Trouble
    service: KeyManagementService


@asynccontextmanager
async def serving_kms(
    key_names: Sequence[str],
    *,
    listen: Address = _ANY_PORT,
    control_listen: Address = _ANY_PORT,
    state_file: Path | None = None,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[KmsStandIn]:
    """Serve a KMS until the block ends; calls under way are cut off then.

    Args:
        key_names: Keys that are there from the start, each with one version.
        listen: Where gRPC is served.
        control_listen: Where the control API is served.
        state_file: Where to keep the keys, in the clear, so that a restart has them.
        now: Tells the time.

    Raises:
        ConfigError: A key's name, a port or the state file cannot be used.
    """
    state = StateFile(state_file)
    keys = CryptoKeys(now, changed=state.save, saved=state.section("kms"))
    state.register("kms", keys.snapshot)
    for name in key_names:
        try:
            keys.add_key(name)
        except Refusal as refusal:
            raise ConfigError("--key", refusal.message) from None
    trouble = Trouble(now)
    service = KeyManagementService(keys, trouble)
    server = aio.server(options=_OPTIONS)
    service.add_to(server)
    try:
        port = server.add_insecure_port(f"{listen.host}:{listen.port}")
    except RuntimeError:
        raise ConfigError("--listen", "cannot listen there") from None
    await server.start()
    try:
        control = Control(keys, trouble, service)
        async with _serving_control(control, control_listen) as control_url:
            yield KmsStandIn(f"{listen.host}:{port}", control_url, keys, trouble, service)
    finally:
        await server.stop(None)


@asynccontextmanager
async def _serving_control(control: Control, listen: Address) -> AsyncIterator[str]:
    runner = web.AppRunner(application(*control.routes()), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, listen.host, listen.port).start()
        except OSError as error:
            raise ConfigError("--control", f"cannot listen there: {error.strerror}") from None
        yield f"http://{listen.host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
