"""The worker's composition: everyone meets here and nowhere else."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
import structlog
from grpc import aio
from prometheus_client import Gauge

from interlock.gateway.v1.gateway_pb2_grpc import add_WorkerServiceServicer_to_server
from interlock_chassis.client import new_request_id, open_channel, request_id_scope
from interlock_chassis.clock import SystemClock
from interlock_chassis.config import Environment
from interlock_chassis.database import open_pool
from interlock_chassis.errors import ServiceError
from interlock_chassis.ops import ops_server
from interlock_chassis.server import RpcServer
from interlock_chassis.telemetry import REGISTRY
from interlock_gateway.adapters.worker_grants import KeysetGrants
from interlock_gateway.adapters.worker_identity_grpc import GrpcIdentity
from interlock_gateway.adapters.worker_postgres import (
    PostgresCron,
    PostgresDeadLetters,
    PostgresEndings,
    PostgresInbox,
    PostgresRuns,
    PostgresWaiting,
    Statements,
)
from interlock_gateway.adapters.worker_runner_grpc import GrpcRunner
from interlock_gateway.adapters.worker_slack_web import SlackWeb
from interlock_gateway.adapters.worker_vault_grpc import GrpcVault
from interlock_gateway.worker import rpc
from interlock_gateway.worker.config import WorkerSettings
from interlock_gateway.worker.conversation import Conversation
from interlock_gateway.worker.endings import Endings
from interlock_gateway.worker.lanes import LaneDriver, Policy
from interlock_gateway.worker.ports import Ports
from interlock_gateway.worker.rpc import WorkerRpc
from interlock_gateway.worker.speech import Pacing
from interlock_gateway.worker.waiting import repair_lost_asks
from interlock_tokens.keysets import Keyset

CRON_EVERY = timedelta(seconds=30)
# An answer that was interrupted still has to say so.
FAREWELL = timedelta(seconds=10)
SLOW_RPC_CAP = timedelta(seconds=30)

WAITING = Gauge("interlock_inbox_waiting", "Events not settled yet.", registry=REGISTRY)
OLDEST = Gauge(
    "interlock_inbox_oldest_seconds",
    "How long the oldest event not settled has waited.",
    registry=REGISTRY,
)
DEAD = Gauge("interlock_inbox_dead", "Events given up that can be replayed.", registry=REGISTRY)
IN_HAND = Gauge("interlock_lanes_in_hand", "Lanes this process works off.", registry=REGISTRY)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Parts:
    """The worker, put together."""

    ports: Ports
    inbox: PostgresInbox
    cron: PostgresCron
    server: RpcServer
    policy: Policy


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Serve and work until `stop`; then finish what is in hand and let go of the rest."""
    async with _put_together(settings) as parts:
        closing = asyncio.Event()
        clock = SystemClock()
        endings = Endings(closing)
        conversation = Conversation(
            parts.ports, pacing=Pacing(), clock=clock, endings=endings, sleep=asyncio.sleep
        )
        owner = f"{socket.gethostname()}:{os.getpid()}:{new_request_id()}"
        driver = LaneDriver(
            parts.inbox, conversation.handle, owner=owner, policy=parts.policy, clock=clock
        )
        IN_HAND.set_function(lambda: driver.lanes_in_hand)
        port = await parts.server.start()
        async with ops_server(settings.ops_listen, parts.cron.require_ready):
            _log.info("worker_started", port=port)
            cron = asyncio.create_task(_run_cron(parts))
            bell = asyncio.create_task(_close_after(stop, settings.drain, closing))
            hearing = asyncio.create_task(endings.run(parts.ports.endings))
            try:
                await driver.run(stop, settings.drain + FAREWELL)
            finally:
                for task in (cron, bell, hearing):
                    task.cancel()
                await asyncio.gather(cron, bell, hearing, return_exceptions=True)
                await parts.server.stop(grace=timedelta(seconds=5))


async def _close_after(stop: asyncio.Event, drain: timedelta, closing: asyncio.Event) -> None:
    await stop.wait()
    await asyncio.sleep(drain.total_seconds())
    closing.set()


async def _run_cron(parts: _Parts) -> None:
    while True:
        await asyncio.sleep(CRON_EVERY.total_seconds())
        with request_id_scope(new_request_id()):
            try:
                await parts.cron.alone(lambda: _tidy(parts))
                state = await parts.cron.state()
            except ServiceError as error:
                _log.warning("cron_failed", reason=error.reason)
                continue
        WAITING.set(state.waiting)
        OLDEST.set(state.oldest.total_seconds())
        DEAD.set(state.dead)


async def _tidy(parts: _Parts) -> None:
    resumed = await repair_lost_asks(parts.ports.waiting, parts.ports.identity)
    if resumed:
        _log.info("lost_asks_repaired", questions=resumed)
    await parts.cron.sweep()


@asynccontextmanager
async def _put_together(settings: WorkerSettings) -> AsyncIterator[_Parts]:
    policy = Policy(slots=settings.lane_slots, team_cap=settings.team_lane_cap)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(
                settings.database_url_file,
                application="gateway-worker",
                max_size=12,
                # Nothing of ours leaves a transaction open; a paused process must not either.
                server_settings={"idle_in_transaction_session_timeout": "2s"},
            )
        )
        keyset = Keyset.from_json(
            settings.grant_public_keys_file, variable="INTERLOCK_GRANT_PUBLIC_KEYS_FILE"
        )
        grants, statements = KeysetGrants(keyset, SystemClock()), Statements(pool)
        endings = PostgresEndings(pool, statements)
        ports = await _open_ports(stack, settings, grants, statements, endings)
        server = _server(settings, ports, grants, statements)
        inbox, cron = PostgresInbox(pool, policy), PostgresCron(pool)
        yield _Parts(ports, inbox, cron, server, policy)


async def _open_ports(
    stack: AsyncExitStack,
    settings: WorkerSettings,
    grants: KeysetGrants,
    statements: Statements,
    endings: PostgresEndings,
) -> Ports:
    async def channel(address: str, server: str) -> aio.Channel:
        return await stack.enter_async_context(open_channel(address, settings.tls, server=server))

    session = await stack.enter_async_context(
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    )
    return Ports(
        identity=GrpcIdentity(
            await channel(settings.identity_address, "identity"), settings.public_url
        ),
        vault=GrpcVault(await channel(settings.vault_address, "token-vault")),
        runner=GrpcRunner(await channel(settings.runner_address, "runner"), SystemClock()),
        slack=SlackWeb(
            session,
            settings.slack_api_url,
            response_hosts=_response_hosts(settings),
            may_be_plain=settings.environment is Environment.DEVELOPMENT,
        ),
        runs=PostgresRuns(statements),
        waiting=PostgresWaiting(statements),
        endings=endings,
        open_grant=grants.open_event,
    )


def _server(
    settings: WorkerSettings, ports: Ports, grants: KeysetGrants, statements: Statements
) -> RpcServer:
    slow = ("CheckHealth", "ListChannels", "SendTestMessage", "Uninstall")
    server = RpcServer(
        listen=settings.listen,
        tls=settings.tls,
        callers=rpc.CALLERS,
        caps={f"/{rpc.SERVICE}/{method}": SLOW_RPC_CAP for method in slow},
    )
    servicer = WorkerRpc(
        vault=ports.vault,
        identity=ports.identity,
        slack=ports.slack,
        waiting=ports.waiting,
        dead_letters=PostgresDeadLetters(statements),
        endings=ports.endings,
        open_admin=grants.open_admin,
        sleep=asyncio.sleep,
    )
    server.add(add_WorkerServiceServicer_to_server, servicer, rpc.SERVICE)
    return server


def _response_hosts(settings: WorkerSettings) -> tuple[str, ...]:
    """Let a stand-in for Slack on this machine be answered, too."""
    if settings.environment is not Environment.DEVELOPMENT:
        return settings.slack_response_hosts
    return (*settings.slack_response_hosts, settings.slack_api_url.raw_authority)
