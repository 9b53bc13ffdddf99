"""`python -m interlock_identity serve|migrate`: the composition root."""

import argparse
import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
import structlog
from asyncpg import Pool, Record

from interlock_chassis.clock import SystemClock
from interlock_chassis.config import MigrationSettings
from interlock_chassis.database import migrate, open_engine, open_pool
from interlock_chassis.ops import ops_server
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_identity.adapters.auth_http import HttpAuthServer
from interlock_identity.adapters.membership_postgres import PostgresMembership
from interlock_identity.adapters.postgres import PostgresStore
from interlock_identity.config import IdentitySettings
from interlock_identity.issuing import Issuing, RememberedMembership
from interlock_identity.linking import Linking
from interlock_identity.migrations import DATABASE
from interlock_identity.rpc import CALLERS, add_services
from interlock_identity.sessions import Sessions
from interlock_identity.workspaces import Workspaces
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset

_NAME = "identity"
# Above every deadline of our callers.
_GRACE = timedelta(seconds=6)
_ID_BYTES = 16


@asynccontextmanager
async def running(settings: IdentitySettings) -> AsyncIterator[int]:
    """Serve identity until the block ends; yields the gRPC port.

    Raises:
        ConfigError: A keyset cannot be used, or an address is not free.
    """
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            open_engine(settings.database_url_file, application=_NAME)
        )
        membership = await stack.enter_async_context(
            open_pool(
                settings.membership_database_url_file,
                application=_NAME,
                server_settings={"default_transaction_read_only": "on"},
            )
        )
        http = await stack.enter_async_context(
            # One person's cookie must never be sent for another.
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        store = PostgresStore(engine)
        server = build_server(settings, store, membership, http)
        port = await server.start()
        stack.push_async_callback(server.stop, _GRACE)
        ops_port = await stack.enter_async_context(
            ops_server(settings.ops_listen, store.require_ready)
        )
        structlog.get_logger().info("identity_listening", port=port, ops_port=ops_port)
        yield port


async def serve(settings: IdentitySettings, stop: asyncio.Event) -> None:
    """Serve identity until told to stop."""
    async with running(settings):
        await stop.wait()


@dataclass(frozen=True)
class Keysets:
    """What identity signs and verifies with."""

    grants: Keyset
    public_grants: Keyset
    user_tokens: Keyset


def load_keysets(settings: IdentitySettings) -> Keysets:
    """Read the keysets and see that they can sign what they must.

    Raises:
        ConfigError: A keyset is malformed, or has no key for a family.
    """
    grants, user_tokens = "INTERLOCK_GRANT_KEYS_FILE", "INTERLOCK_USER_TOKEN_KEYS_FILE"
    keysets = Keysets(
        grants=Keyset.from_json(settings.grant_keys_file, variable=grants),
        public_grants=Keyset.from_json(
            settings.grant_public_keys_file, variable="INTERLOCK_GRANT_PUBLIC_KEYS_FILE"
        ),
        user_tokens=Keyset.from_json(settings.user_token_keys_file, variable=user_tokens),
    )
    keysets.grants.require_signing(
        Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT, variable=grants
    )
    keysets.user_tokens.require_signing(Family.SLACK_USER, variable=user_tokens)
    return keysets


def build_server(
    settings: IdentitySettings,
    store: PostgresStore,
    membership: "Pool[Record]",
    http: aiohttp.ClientSession,
) -> RpcServer:
    """Put the process together around its connections.

    Raises:
        ConfigError: A keyset cannot be used.
    """
    clock, keysets = SystemClock(), load_keysets(settings)
    server = RpcServer(listen=settings.listen, tls=settings.tls, callers=CALLERS, caps={})
    add_services(
        server,
        sessions=Sessions(
            source=HttpAuthServer(http, settings.auth_url, settings.session_cookie_name),
            people=store,
            workspaces=store,
            grant_keys=keysets.grants,
            clock=clock,
            new_id=_new_id,
        ),
        linking=Linking(
            workspaces=store,
            links=store,
            grant_keys=keysets.grants,
            clock=clock,
            new_id=_new_id,
            entropy=secrets.token_bytes,
        ),
        workspaces=Workspaces(workspaces=store, new_id=_new_id),
        issuing=Issuing(
            workspaces=store,
            links=store,
            membership=RememberedMembership(PostgresMembership(membership), clock),
            grant_keys=keysets.grants,
            user_token_keys=keysets.user_tokens,
            default_agent=settings.default_agent,
            clock=clock,
            new_id=_new_id,
        ),
        people=store,
        grant_public_keys=keysets.public_grants,
        clock=clock,
    )
    return server


async def bring_up_to_date(settings: MigrationSettings, _: asyncio.Event) -> None:
    """Bring identity's database to the newest version."""
    migrate(settings.database_url_file, DATABASE)


def main() -> None:
    """Run the command named on the command line."""
    parser = argparse.ArgumentParser(prog="interlock_identity", description=__doc__)
    parser.add_argument("command", choices=("serve", "migrate"))
    if parser.parse_args().command == "migrate":
        run_process(f"{_NAME}-migrate", MigrationSettings, bring_up_to_date)
    run_process(_NAME, IdentitySettings, serve)


def _new_id() -> str:
    return secrets.token_hex(_ID_BYTES)


if __name__ == "__main__":
    main()
