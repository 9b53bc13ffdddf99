"""The composition root: `python -m interlock_token_vault serve|migrate`."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import uuid4

import structlog
from grpc import aio

from interlock_chassis.client import open_channel
from interlock_chassis.clock import SystemClock
from interlock_chassis.config import MigrationSettings
from interlock_chassis.database import migrate, open_pool
from interlock_chassis.errors import ServiceError
from interlock_chassis.logs import describe_exception
from interlock_chassis.ops import ops_server
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_token_vault.adapters.identity_grpc import IdentityClaims
from interlock_token_vault.adapters.journal import Journal, open_journal
from interlock_token_vault.adapters.kms_keys import Kms, KmsKeys
from interlock_token_vault.adapters.local_kms import LocalKms
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.adapters.rows import Pool
from interlock_token_vault.adapters.slack_oauth import SlackOAuth, open_slack
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.domain.installation import ClientId
from interlock_token_vault.install_ports import SlackApp
from interlock_token_vault.installing import Installing
from interlock_token_vault.migrations import DATABASE
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.rpc import (
    CALLERS,
    CAPS,
    GrantReader,
    add_services,
    record_refused_call,
)
from interlock_token_vault.vault import TokenVault
from interlock_tokens.keysets import Keyset

_NAME = "token-vault"
# An install that runs when the process is told to stop is let finish.
_GRACE = timedelta(seconds=30)
# A row that another replica holds must not hold the readers behind it.
_SESSION = {"lock_timeout": "1s"}
_SWEEP_EVERY = timedelta(seconds=60)
_FLUSH_EVERY = timedelta(seconds=1)


@dataclass(frozen=True)
class _Parts:
    """What a vault is put together from: its connections, and its KMS."""

    pool: Pool
    journal: Journal
    identity: aio.Channel
    slack: SlackOAuth
    kms: Kms


@asynccontextmanager
async def running(settings: VaultSettings, kms: Kms) -> AsyncIterator[int]:
    """Serve the vault until the block ends; yields the gRPC port.

    Begins with a sweep of installs that an earlier process left half-way, and
    lets running installs come to their end before it stops.

    Raises:
        ConfigError: The keyset cannot be used, or an address is not free.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(settings.database_url_file, application=_NAME, server_settings=_SESSION)
        )
        parts = _Parts(
            pool=pool,
            journal=await stack.enter_async_context(open_journal(pool, new_id=uuid4)),
            identity=await stack.enter_async_context(
                open_channel(settings.identity_address, settings.tls, server="identity")
            ),
            slack=await stack.enter_async_context(
                open_slack(
                    settings.slack_api_url,
                    client_id=settings.slack_client_id,
                    client_secret=settings.slack_client_secret_file,
                )
            ),
            kms=kms,
        )
        store = PostgresStore(pool, parts.journal)
        refusals = Refusals(store, SystemClock())
        stack.push_async_callback(refusals.close)
        installing, server = build_server(settings, parts, store, refusals)
        await stack.enter_async_context(_chores(installing, refusals))
        stack.push_async_callback(installing.drain)
        port = await server.start()
        stack.push_async_callback(server.stop, _GRACE)
        ops_port = await stack.enter_async_context(
            ops_server(settings.ops_listen, store.require_ready)
        )
        structlog.get_logger().info("vault_listening", port=port, ops_port=ops_port)
        yield port


async def serve(settings: VaultSettings, stop: asyncio.Event) -> None:
    """Serve the vault until told to stop."""
    kms = LocalKms.load(settings.local_keyset_file, environment=settings.environment)
    async with running(settings, kms):
        await stop.wait()


def build_server(
    settings: VaultSettings, parts: _Parts, store: PostgresStore, refusals: Refusals
) -> tuple[Installing, RpcServer]:
    """Put the process together around its connections.

    Raises:
        ConfigError: The keyset cannot be used.
    """
    clock = SystemClock()
    client_id = ClientId(settings.slack_client_id)
    keyset = Keyset.from_json(
        settings.grant_public_keys_file, variable="INTERLOCK_GRANT_PUBLIC_KEYS_FILE"
    )
    keys = KmsKeys(
        parts.kms,
        fingerprint_key=settings.fingerprint_key_file,
        clock=clock,
        ttl=timedelta(seconds=settings.dek_cache_ttl_seconds),
    )
    installing = Installing(
        store=PostgresInstalls(parts.pool, parts.journal),
        keys=keys,
        slack=parts.slack,
        claims=IdentityClaims(parts.identity),
        app=SlackApp(
            client_id=client_id,
            bot_scopes=settings.slack_bot_scopes,
            consent_page=str(settings.slack_url / "oauth/v2/authorize"),
        ),
        environment=settings.environment.value,
        new_id=uuid4,
    )
    server = RpcServer(
        listen=settings.listen,
        tls=settings.tls,
        callers=CALLERS,
        caps=CAPS,
        on_refused=partial(record_refused_call, refusals),
    )
    add_services(
        server,
        vault=TokenVault(store, keys, environment=settings.environment.value),
        installing=installing,
        grants=GrantReader(keyset, client_id=client_id, clock=clock, refusals=refusals),
    )
    return installing, server


@asynccontextmanager
async def _chores(installing: Installing, refusals: Refusals) -> AsyncIterator[None]:
    """Do what comes round again while the block runs."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as chores:
        chores.create_task(_every(_SWEEP_EVERY, installing.sweep, stop))
        chores.create_task(_every(_FLUSH_EVERY, refusals.flush, stop))
        try:
            yield
        finally:
            stop.set()


async def _every(
    interval: timedelta, chore: Callable[[], Awaitable[None]], stop: asyncio.Event
) -> None:
    """Do a chore once at least, and again after each interval, whatever it fails with."""
    log = structlog.get_logger()
    while True:
        try:
            await chore()
        except ServiceError as error:
            log.warning("chore_failed", chore=chore.__qualname__, reason=error.reason)
        except Exception as error:  # noqa: BLE001 - A bug in a chore must not end the reads.
            cause = describe_exception(error)
            log.error("chore_failed", chore=chore.__qualname__, cause=cause)  # noqa: TRY400 - Texts stay here.
        try:
            await asyncio.wait_for(stop.wait(), interval.total_seconds())
        except TimeoutError:
            continue
        return


async def bring_up_to_date(settings: MigrationSettings, _: asyncio.Event) -> None:
    """Migrate the vault's database to the newest version."""
    migrate(settings.database_url_file, DATABASE)


def main() -> None:
    """Run the command named on the command line."""
    parser = argparse.ArgumentParser(prog="interlock_token_vault", description=__doc__)
    parser.add_argument("command", choices=("serve", "migrate"))
    if parser.parse_args().command == "migrate":
        run_process(f"{_NAME}-migrate", MigrationSettings, bring_up_to_date)
    run_process(_NAME, VaultSettings, serve)


if __name__ == "__main__":
    main()
