"""`python -m interlock_identity serve|migrate`: the composition root."""

import argparse
import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from interlock_chassis.clock import SystemClock
from interlock_chassis.config import MigrationSettings
from interlock_chassis.database import migrate, open_engine, open_pool
from interlock_chassis.errors import ConfigError
from interlock_chassis.ops import ops_server
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_identity.adapters.auth_http import HttpAuthServer, SessionCookie
from interlock_identity.adapters.membership_postgres import PostgresMembership
from interlock_identity.adapters.platform_http import (
    ManageApi,
    NoPlatform,
    PathStyle,
    PlatformAgents,
    PlatformMembership,
)
from interlock_identity.adapters.postgres import PostgresStore
from interlock_identity.adapters.postgres_audit import PostgresAuditLog
from interlock_identity.adapters.postgres_upkeep import PostgresUpkeep
from interlock_identity.auditing import AuditTrail
from interlock_identity.config import IdentitySettings
from interlock_identity.issuing import Issuing
from interlock_identity.linking import Linking
from interlock_identity.membership import MembershipSource, RememberedMembership
from interlock_identity.migrations import DATABASE
from interlock_identity.noticing import Noticing
from interlock_identity.offboarding import Offboarding
from interlock_identity.reading import Reading
from interlock_identity.retention import Retention
from interlock_identity.rpc import CALLERS, CAPS, add_services, record_refusals
from interlock_identity.sessions import Sessions
from interlock_identity.upkeep import Upkeep
from interlock_identity.workspaces import Workspaces
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset

_NAME = "identity"
# Above every deadline of our callers.
_GRACE = timedelta(seconds=11)
# How late a due task may be, and the rest of a flood of refusals be recorded.
_TICK = timedelta(seconds=5)
_ID_BYTES = 16


@dataclass(frozen=True)
class Running:
    """A running identity.

    Attributes:
        port: The gRPC port.
        upkeep: The recurring work, which runs by itself besides.
    """

    port: int
    upkeep: Upkeep


@asynccontextmanager
async def running(settings: IdentitySettings) -> AsyncIterator[Running]:
    """Serve identity until the block ends.

    Raises:
        ConfigError: A keyset cannot be used, or an address is not free.
    """
    async with AsyncExitStack() as stack:
        parts = await _put_together(settings, stack)
        server, upkeep = parts.server(), parts.upkeep()
        port = await server.start()
        stack.push_async_callback(server.stop, _GRACE)
        ops_port = await stack.enter_async_context(
            ops_server(settings.ops_listen, parts.store.require_ready)
        )
        await stack.enter_async_context(_recurring(upkeep, parts.trail))
        structlog.get_logger().info("identity_listening", port=port, ops_port=ops_port)
        yield Running(port, upkeep)


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


class _Parts:
    """What the process is made of, around its connections."""

    def __init__(
        self,
        settings: IdentitySettings,
        *,
        engine: AsyncEngine,
        http: aiohttp.ClientSession,
        manage: ManageApi | None,
        membership: MembershipSource,
    ) -> None:
        self._settings = settings
        self._http = http
        self._manage = manage
        self._membership = membership
        self._clock = SystemClock()
        self._keys = load_keysets(settings)
        self._cookie = SessionCookie(settings.session_cookie_name)
        self._audit = PostgresAuditLog(engine)
        self._upkeep_store = PostgresUpkeep(engine)
        self.store = PostgresStore(engine)
        self.trail = AuditTrail(self._audit, self._clock)
        self.offboarding = Offboarding(
            store=self._upkeep_store,
            membership=membership,
            grace=timedelta(minutes=settings.absence_minutes),
        )

    def server(self) -> RpcServer:
        server = RpcServer(
            listen=self._settings.listen,
            tls=self._settings.tls,
            callers=CALLERS,
            caps=CAPS,
            on_refused=record_refusals(self.trail),
        )
        add_services(
            server,
            sessions=self._sessions(),
            linking=self._linking(),
            workspaces=self._workspaces(),
            issuing=self._issuing(),
            noticing=Noticing(
                notices=self.store,
                membership=self._remembered(),
            ),
            offboarding=self.offboarding,
            trail=self.trail,
            reading=Reading(record=self._audit, workspaces=self.store),
            grant_public_keys=self._keys.public_grants,
            clock=self._clock,
        )
        return server

    def upkeep(self) -> Upkeep:
        retention = Retention(store=self._upkeep_store, keeping=self._settings.keeping)
        return Upkeep(
            turns=self._upkeep_store,
            tasks={"sweep": self.offboarding.sweep, "clean": retention.clean},
            every=timedelta(minutes=self._settings.upkeep_minutes),
            clock=self._clock,
        )

    def _sessions(self) -> Sessions:
        return Sessions(
            source=HttpAuthServer(self._http, self._settings.auth_url, self._cookie),
            people=self.store,
            workspaces=self.store,
            audit=self._audit,
            grant_keys=self._keys.grants,
            clock=self._clock,
            new_id=_new_id,
        )

    def _linking(self) -> Linking:
        return Linking(
            workspaces=self.store,
            links=self.store,
            grant_keys=self._keys.grants,
            emails=self._settings.emails,
            clock=self._clock,
            new_id=_new_id,
            entropy=secrets.token_bytes,
        )

    def _workspaces(self) -> Workspaces:
        manage = self._manage
        return Workspaces(
            workspaces=self.store,
            agents=PlatformAgents(manage, self._cookie) if manage else NoPlatform(),
            operator_agent=self._settings.default_agent,
            new_id=_new_id,
        )

    def _remembered(self) -> RememberedMembership:
        life = timedelta(seconds=self._settings.membership_cache_seconds)
        return RememberedMembership(self._membership, self._clock, life=life)

    def _issuing(self) -> Issuing:
        return Issuing(
            workspaces=self.store,
            links=self.store,
            membership=self._remembered(),
            audit=self._audit,
            grant_keys=self._keys.grants,
            user_token_keys=self._keys.user_tokens,
            default_agent=self._settings.default_agent,
            clock=self._clock,
            new_id=_new_id,
        )


async def _put_together(settings: IdentitySettings, stack: AsyncExitStack) -> _Parts:
    """Open the connections, which the stack closes, and put the process around them."""
    engine = await stack.enter_async_context(
        open_engine(settings.database_url_file, application=_NAME)
    )
    http = await stack.enter_async_context(
        # One person's cookie must never be sent for another.
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    )
    manage = _manage_api(settings, http)
    membership = await _open_membership(settings, stack, manage)
    parts = _Parts(settings, engine=engine, http=http, manage=manage, membership=membership)
    stack.push_async_callback(parts.trail.flush, all_of_them=True)
    return parts


def _manage_api(settings: IdentitySettings, http: aiohttp.ClientSession) -> ManageApi | None:
    if settings.manage_url is None:
        return None
    return ManageApi(http, settings.manage_url, PathStyle(settings.manage_path_style))


async def _open_membership(
    settings: IdentitySettings, stack: AsyncExitStack, manage: ManageApi | None
) -> MembershipSource:
    if settings.membership_source == "platform":
        if manage is None:
            raise ConfigError("INTERLOCK_MANAGE_URL", "required, but not set")
        user_tokens = load_keysets(settings).user_tokens
        return PlatformMembership(manage, user_tokens, SystemClock(), _new_id)
    if settings.membership_database_url_file is None:
        raise ConfigError("INTERLOCK_MEMBERSHIP_DATABASE_URL_FILE", "required, but not set")
    pool = await stack.enter_async_context(
        open_pool(
            settings.membership_database_url_file,
            application=_NAME,
            server_settings={"default_transaction_read_only": "on"},
        )
    )
    return PostgresMembership(pool)


@asynccontextmanager
async def _recurring(upkeep: Upkeep, trail: AuditTrail) -> AsyncIterator[None]:
    """Do the recurring work beside the block."""
    stopping = asyncio.Event()

    async def tick() -> None:
        while not stopping.is_set():
            await upkeep.run_due()
            await trail.flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _TICK.total_seconds())

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        # Drivers may swallow a cancellation that comes while they connect; the event stays.
        stopping.set()
        ticking.cancel()
        await asyncio.wait([ticking])


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
