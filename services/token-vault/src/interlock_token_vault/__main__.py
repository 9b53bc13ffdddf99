"""The composition root: `python -m interlock_token_vault serve|migrate`."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar
from uuid import uuid4

import structlog
from grpc import aio

from interlock_chassis.client import open_channel
from interlock_chassis.clock import SystemClock
from interlock_chassis.config import Environment, MigrationSettings, variable_of
from interlock_chassis.database import migrate, open_pool
from interlock_chassis.errors import ConfigError, ServiceError
from interlock_chassis.logs import describe_exception
from interlock_chassis.ops import ops_server
from interlock_chassis.process import run_process
from interlock_chassis.server import RpcServer
from interlock_token_vault.adapters.checkpoints import (
    CheckpointVerifier,
    Ed25519Signer,
    FileCheckpoints,
)
from interlock_token_vault.adapters.identity_grpc import IdentityClaims
from interlock_token_vault.adapters.journal import Journal, open_journal, writing
from interlock_token_vault.adapters.kms_keys import Kms, KmsKeys
from interlock_token_vault.adapters.local_kms import LocalKms
from interlock_token_vault.adapters.nango_http import NangoHttp, open_nango
from interlock_token_vault.adapters.nango_webhooks import NangoWebhooks
from interlock_token_vault.adapters.openbao_kms import TransitKey, open_openbao_kms
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_apps import PostgresApps
from interlock_token_vault.adapters.postgres_backup import PostgresBackup
from interlock_token_vault.adapters.postgres_connections import PostgresConnections
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.adapters.postgres_keys import PostgresKeys
from interlock_token_vault.adapters.postgres_rotation import PostgresRotation, open_news
from interlock_token_vault.adapters.postgres_scopes import PostgresScopes
from interlock_token_vault.adapters.postgres_uninstalls import PostgresUninstalls
from interlock_token_vault.adapters.probed_keks import ProbedKeks
from interlock_token_vault.adapters.registered_apps import RegisteredApps
from interlock_token_vault.adapters.remote_kms import RemoteKms
from interlock_token_vault.adapters.restore_staging import RestoreStaging
from interlock_token_vault.adapters.rows import Pool
from interlock_token_vault.adapters.slack_oauth import SlackOAuth, open_slack
from interlock_token_vault.adapters.slack_rotation import SlackRotation
from interlock_token_vault.adapters.spool import FileInstallSpool, open_spool
from interlock_token_vault.app_installations import AppInstallations
from interlock_token_vault.app_keys import AppKeys
from interlock_token_vault.auditing import (
    AuditExport,
    Checkpointing,
    CheckpointNotWritten,
    CheckpointStore,
    Continuity,
)
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.connected_tokens import ConnectedTokens
from interlock_token_vault.domain.installation import ClientId
from interlock_token_vault.install_ports import SlackApp
from interlock_token_vault.installing import Installing
from interlock_token_vault.keeping import Keeper
from interlock_token_vault.key_lifecycle import Keks, KeyLifecycle
from interlock_token_vault.migrations import DATABASE
from interlock_token_vault.operator_rpc import OperatorRpc
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.renewing import Renewing
from interlock_token_vault.reporting import Reporting, ScopeReporting, Telling
from interlock_token_vault.restoring import Restoring
from interlock_token_vault.rotating import Rotating
from interlock_token_vault.rotation_ports import Failpoint, pass_by
from interlock_token_vault.rpc import (
    CALLERS,
    CAPS,
    GrantReader,
    add_services,
    record_refused_call,
)
from interlock_token_vault.store_rpc import StoreRpc
from interlock_token_vault.uninstalling import Uninstalling
from interlock_token_vault.vault import DatabaseUnavailable, TokenVault
from interlock_tokens.keysets import Keyset

_NAME = "token-vault"
# At edge.
_DASHBOARD = "/work-apps/slack/"
# An install that runs when the process is told to stop is let finish.
_GRACE = timedelta(seconds=30)
# A row that another replica holds must not hold the readers behind it.
_SESSION = {"lock_timeout": "1s"}
_SWEEP_EVERY = timedelta(seconds=60)
_FLUSH_EVERY = timedelta(seconds=1)
# A failed refresh is tried again after seconds; what is due is due for hours.
_REFRESH_EVERY = timedelta(seconds=5)
# What a thief in the database can rewrite unseen is what a minute holds.
_CHECKPOINT_EVERY = timedelta(seconds=60)
_PARTITIONS_EVERY = timedelta(hours=6)

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Parts:
    """What a vault is put together from: its connections, and its KMS."""

    pool: Pool
    scanner: Pool | None
    journal: Journal
    identity: aio.Channel
    slack: SlackOAuth
    nango: NangoHttp | None
    kms: Kms


@dataclass(frozen=True, slots=True)
class _Rotation:
    """What refreshes tokens."""

    store: PostgresRotation
    keeper: Keeper
    renewing: Renewing


@asynccontextmanager
async def running(
    settings: VaultSettings, kms: Kms, *, failpoint: Failpoint = pass_by
) -> AsyncIterator[int]:
    """Serve the vault until the block ends; yields the gRPC port.

    Begins with a sweep of installs that an earlier process left half-way and
    with the answers that it left in its spool, and lets running installs and
    refreshes come to their end before it stops.

    Args:
        settings: What it is told.
        kms: What wraps its data keys.
        failpoint: Where tests end the process.

    Raises:
        ConfigError: The keyset cannot be used, or an address is not free.
    """
    _require_production(settings)
    chores: list[_Chore] = []
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, settings, kms, chores)
        store = PostgresStore(parts.pool, parts.journal)
        refusals = Refusals(store, SystemClock())
        stack.push_async_callback(refusals.close)
        keys = _make_keys(settings, kms)
        rotation = await _open_rotation(stack, settings, parts, keys, failpoint)
        renewing = rotation.renewing if rotation else None
        uninstalling = _make_uninstalling(settings, parts, keys, renewing)
        installing, server = build_server(
            settings,
            parts,
            store,
            refusals,
            keys=keys,
            renewing=renewing,
            uninstalling=uninstalling,
        )
        if rotation is not None:
            await rotation.renewing.replay()
            chores += _chores_of(rotation, settings, parts)
        chores += [
            _Chore(_SWEEP_EVERY, installing.sweep),
            _Chore(_SWEEP_EVERY, uninstalling.sweep),
            _Chore(_SWEEP_EVERY, _make_scope_reporting(settings, parts).run),
            _Chore(_FLUSH_EVERY, refusals.flush),
            _Chore(_PARTITIONS_EVERY, store.make_partitions),
        ]
        await stack.enter_async_context(_doing(chores))
        stack.push_async_callback(installing.drain)
        stack.push_async_callback(uninstalling.drain)
        port = await server.start()
        stack.push_async_callback(_stop_taking, server, renewing)
        ops_port = await stack.enter_async_context(
            ops_server(settings.ops_listen, store.require_ready)
        )
        structlog.get_logger().info("vault_listening", port=port, ops_port=ops_port)
        yield port


async def _open_parts(
    stack: AsyncExitStack, settings: VaultSettings, kms: Kms, chores: "list[_Chore]"
) -> _Parts:
    """Open the connections of a process; they are closed with the stack."""
    pool = await stack.enter_async_context(
        open_pool(settings.database_url_file, application=_NAME, server_settings=_SESSION)
    )
    scanner_url = settings.scanner_database_url_file
    return _Parts(
        pool=pool,
        scanner=await stack.enter_async_context(
            open_pool(scanner_url, application=f"{_NAME}-scanner", max_size=3)
        )
        if scanner_url
        else None,
        journal=await stack.enter_async_context(_open_signed_journal(settings, pool, chores)),
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
        nango=await _open_nango(stack, settings),
        kms=kms,
    )


async def _open_nango(stack: AsyncExitStack, settings: VaultSettings) -> NangoHttp | None:
    """Open the way to Nango; None where it is not configured."""
    url, key = settings.nango_url, settings.nango_secret_key_file
    if url is None or key is None:
        return None
    return await stack.enter_async_context(open_nango(url, key, SystemClock()))


def _make_keys(settings: VaultSettings, kms: Kms) -> KmsKeys:
    return KmsKeys(
        kms,
        fingerprint_key=settings.fingerprint_key_file,
        clock=SystemClock(),
        ttl=timedelta(seconds=settings.dek_cache_ttl_seconds),
    )


async def _open_rotation(
    stack: AsyncExitStack,
    settings: VaultSettings,
    parts: _Parts,
    keys: KmsKeys,
    failpoint: Failpoint,
) -> _Rotation | None:
    """Open what refreshes tokens; None where there is no spool to keep an answer in."""
    if settings.spool_dir is None:
        structlog.get_logger().warning("rotation_off", lack="INTERLOCK_SPOOL_DIR")
        return None
    store = PostgresRotation(parts.pool, parts.journal, failpoint=failpoint)
    spool = stack.enter_context(open_spool(settings.spool_dir))
    slack, clock = SlackRotation(parts.slack), SystemClock()
    keeper = Keeper(
        store=store,
        keys=keys,
        slack=slack,
        spool=spool,
        environment=settings.environment.value,
        failpoint=failpoint,
    )
    renewing = Renewing(
        store=store,
        rotating=Rotating(
            store=store, keeper=keeper, slack=slack, spool=spool, clock=clock, failpoint=failpoint
        ),
        keeper=keeper,
        news=await stack.enter_async_context(open_news(parts.pool)),
        client_id=ClientId(settings.slack_client_id),
        clock=clock,
    )
    return _Rotation(store, keeper, renewing)


def _chores_of(rotation: _Rotation, settings: VaultSettings, parts: _Parts) -> "list[_Chore]":
    """Refresh what is due, and tell of what needs a reinstall."""
    identity, edge = IdentityClaims(parts.identity), settings.public_url
    client_id = ClientId(settings.slack_client_id)
    reporting = Reporting(store=rotation.store, reports=identity, client_id=client_id)
    telling = Telling(
        notices=identity,
        store=rotation.store,
        keeper=rotation.keeper,
        messenger=parts.slack,
        client_id=client_id,
        dashboard=str(edge.with_path(_DASHBOARD)) if edge else "",
    )
    return [
        _Chore(_REFRESH_EVERY, rotation.renewing.run_due),
        _Chore(_REFRESH_EVERY, reporting.run),
        _Chore(_REFRESH_EVERY, telling.run),
    ]


def _make_scope_reporting(settings: VaultSettings, parts: _Parts) -> ScopeReporting:
    return ScopeReporting(
        store=PostgresScopes(parts.pool),
        reports=IdentityClaims(parts.identity),
        client_id=ClientId(settings.slack_client_id),
        asked=settings.slack_bot_scopes,
    )


def _make_uninstalling(
    settings: VaultSettings, parts: _Parts, keys: KmsKeys, renewing: Renewing | None
) -> Uninstalling:
    return Uninstalling(
        store=PostgresUninstalls(parts.pool, parts.journal),
        keys=keys,
        slack=parts.slack,
        claims=IdentityClaims(parts.identity),
        renewals=renewing,
        environment=settings.environment.value,
        connections=parts.nango,
    )


def _make_elsewhere(
    settings: VaultSettings, parts: _Parts, keys: KmsKeys
) -> ConnectedTokens | None:
    if parts.nango is None:
        return None
    return ConnectedTokens(
        store=PostgresConnections(parts.pool, parts.journal),
        keys=keys,
        source=parts.nango,
        environment=settings.environment.value,
        clock=SystemClock(),
    )


async def _stop_taking(server: RpcServer, renewing: Renewing | None) -> None:
    """End the calls, and meanwhile see running refreshes to their end, or into the spool."""
    draining = [renewing.drain()] if renewing is not None else []
    await asyncio.gather(server.stop(_GRACE), *draining)


def _require_production(settings: VaultSettings) -> None:
    """Refuse production without what proves the log whole and keeps Slack's answers safe."""
    if settings.environment is not Environment.PRODUCTION:
        return
    for field in ("audit_checkpoint_key_file", "audit_checkpoint_dir", "spool_dir"):
        is_in_bucket = field == "audit_checkpoint_dir" and settings.audit_checkpoint_url
        if getattr(settings, field) is None and not is_in_bucket:
            raise ConfigError(variable_of(field), "required outside development, but not set")


@asynccontextmanager
async def _open_signed_journal(
    settings: VaultSettings, pool: Pool, chores: "list[_Chore]"
) -> AsyncIterator[Journal]:
    """Open the journal; where it leads is signed each minute, and at its end."""
    key, store = settings.audit_checkpoint_key_file, _checkpoint_store(settings)
    if key is None or store is None:
        async with open_journal(pool, new_id=uuid4) as journal:
            yield journal
        return
    signer = Ed25519Signer.from_pem(key)
    verifier = CheckpointVerifier.from_pem(signer.public_pem.encode())
    async with AsyncExitStack() as stack:
        journal = Journal(pool, new_id=uuid4)
        checkpointing = Checkpointing(journal.heads, signer, store)
        stack.push_async_callback(_sign_the_end, checkpointing)
        await stack.enter_async_context(writing(journal))
        continuity = Continuity(
            PostgresStore(pool, journal), partial(store.load_newest, verifier.is_genuine)
        )
        try:
            await continuity.check()
        except DatabaseUnavailable:
            # The process may start before its database; then it looks later.
            chores.append(_Chore(_FLUSH_EVERY, continuity.check))
        chores.append(_Chore(_CHECKPOINT_EVERY, checkpointing.write))
        yield journal


def _checkpoint_store(settings: VaultSettings) -> CheckpointStore | None:
    """Choose where checkpoints go; None where nothing is said of it."""
    if settings.audit_checkpoint_url:
        # 16 MB of machine code, which only this choice is worth.
        from interlock_token_vault.adapters.bucket_checkpoints import (  # noqa: PLC0415 - Above.
            BucketPlace,
            open_bucket,
        )

        return open_bucket(
            BucketPlace(
                url=settings.audit_checkpoint_url,
                endpoint=settings.audit_checkpoint_endpoint,
                region=settings.audit_checkpoint_region,
                credentials=settings.audit_checkpoint_credentials_file,
            )
        )
    folder = settings.audit_checkpoint_dir
    return None if folder is None else FileCheckpoints(folder)


async def _sign_the_end(checkpointing: Checkpointing) -> None:
    try:
        await checkpointing.write()
    except CheckpointNotWritten as error:
        structlog.get_logger().error("last_checkpoint_lost", reason=error.reason)


async def serve(settings: VaultSettings, stop: asyncio.Event) -> None:
    """Serve the vault until told to stop."""
    async with open_kms(settings) as kms, running(settings, kms):
        await stop.wait()


@asynccontextmanager
async def open_kms(settings: VaultSettings) -> AsyncIterator[Kms]:
    """Open the KMS that the settings name; asks it nothing yet.

    Raises:
        ConfigError: It cannot be used.
    """
    match settings.kms:
        case "local":
            path = _given(settings.local_keyset_file)
            yield LocalKms.load(path, environment=settings.environment)
        case "gcp":
            # It takes a second and 40 MB, which only this choice is worth.
            from interlock_token_vault.adapters.gcp_kms import open_gcp_kms  # noqa: PLC0415 - Above.

            async with open_gcp_kms(settings.gcp_kms_url, settings.gcp_kms_key) as kms:
                yield RemoteKms(kms, SystemClock())
        case "openbao":
            async with open_openbao_kms(
                _given(settings.openbao_url),
                TransitKey(
                    settings.openbao_mount, settings.openbao_key, settings.openbao_namespace
                ),
                token_file=_given(settings.openbao_token_file),
                ca_file=settings.openbao_ca_file,
            ) as kms:
                yield RemoteKms(kms, SystemClock())


def _given(value: _T | None) -> _T:
    if value is None:
        raise AssertionError("the settings require what the chosen KMS needs")
    return value


def build_server(
    settings: VaultSettings,
    parts: _Parts,
    store: PostgresStore,
    refusals: Refusals,
    *,
    keys: KmsKeys,
    renewing: Renewing | None,
    uninstalling: Uninstalling,
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
    installing = Installing(
        store=PostgresInstalls(parts.pool, parts.journal),
        keys=keys,
        slack=parts.slack,
        claims=IdentityClaims(parts.identity),
        app=SlackApp(
            client_id=client_id,
            bot_scopes=settings.slack_bot_scopes,
            user_scopes=settings.slack_user_scopes,
            consent_page=str(settings.slack_url / "oauth/v2/authorize"),
        ),
        environment=settings.environment.value,
        new_id=uuid4,
        connections=parts.nango,
        integration=settings.nango_integration,
        spool=FileInstallSpool(settings.spool_dir) if settings.spool_dir else None,
    )
    server = RpcServer(
        listen=settings.listen,
        tls=settings.tls,
        callers=CALLERS,
        caps=CAPS,
        on_refused=partial(record_refused_call, refusals),
    )
    webhook_keys = settings.nango_webhook_keys_file
    vault = TokenVault(
        store,
        keys,
        environment=settings.environment.value,
        renewals=renewing,
        elsewhere=_make_elsewhere(settings, parts, keys),
    )
    grants = GrantReader(keyset, client_id=client_id, clock=clock, refusals=refusals)
    add_services(
        server,
        vault=vault,
        hints=NangoWebhooks.from_file(webhook_keys, environment=settings.nango_environment)
        if webhook_keys
        else None,
        uninstalling=uninstalling,
        operator=OperatorRpc(
            vault,
            AuditExport(store),
            KeyLifecycle(
                connections=parts.nango,
                store=PostgresKeys(parts.pool, parts.scanner, parts.journal),
                keys=keys,
                keks=parts.kms if isinstance(parts.kms, Keks) else ProbedKeks(parts.kms),
                slack=parts.slack,
                claims=IdentityClaims(parts.identity),
                client_id=client_id,
                environment=settings.environment.value,
            ),
            Restoring(
                store=PostgresBackup(parts.pool, parts.scanner, parts.journal),
                keys=keys,
                slack=parts.slack,
                client_id=client_id,
                environment=settings.environment.value,
            ),
            RestoreStaging(),
            app_keys=AppKeys(
                store=PostgresApps(parts.pool, parts.journal),
                keys=keys,
                environment=settings.environment.value,
            ),
            installing=installing,
            grants=grants,
        ),
        store=StoreRpc(
            AppInstallations(
                store=PostgresApps(parts.pool, parts.journal),
                keys=keys,
                environment=settings.environment.value,
                new_id=uuid4,
            ),
            _registered_apps(settings, client_id),
            refusals,
        ),
        installing=installing,
        grants=grants,
    )
    return installing, server


def _registered_apps(settings: VaultSettings, own: ClientId) -> RegisteredApps:
    document = settings.registered_apps_file
    return RegisteredApps.from_json(document, own=own) if document else RegisteredApps({})


@dataclass(frozen=True)
class _Chore:
    """What comes round again."""

    interval: timedelta
    work: Callable[[], Awaitable[None]]

    async def repeat(self, stop: asyncio.Event) -> None:
        """Do it once at least, and again after each interval, whatever it fails with."""
        log, name = structlog.get_logger(), getattr(self.work, "__qualname__", "chore")
        while True:
            try:
                await self.work()
            except ServiceError as error:
                log.warning("chore_failed", chore=name, reason=error.reason)
            except Exception as error:  # noqa: BLE001 - A bug in a chore must not end the reads.
                cause = describe_exception(error)
                log.error("chore_failed", chore=name, cause=cause)  # noqa: TRY400 - Texts stay here.
            try:
                await asyncio.wait_for(stop.wait(), self.interval.total_seconds())
            except TimeoutError:
                continue
            return


@asynccontextmanager
async def _doing(chores: Sequence[_Chore]) -> AsyncIterator[None]:
    """Do the chores while the block runs."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for chore in chores:
            group.create_task(chore.repeat(stop))
        try:
            yield
        finally:
            stop.set()


async def exchange(settings: VaultSettings, stop: asyncio.Event) -> None:
    """Exchange tokens that never end until all are exchanged, or told to stop."""
    async with open_kms(settings) as kms:
        await exchange_lasting(settings, kms, stop)


async def exchange_lasting(settings: VaultSettings, kms: Kms, stop: asyncio.Event) -> None:
    """Exchange tokens that never end for pairs, once the app's rotation is switched on.

    Beside a serving vault, in a spool of its own; may be stopped and begun again.

    Raises:
        ConfigError: There is no spool to keep the answers in.
    """
    if settings.spool_dir is None:
        raise ConfigError(variable_of("spool_dir"), "required, but not set")
    own = settings.model_copy(update={"spool_dir": settings.spool_dir / "exchange"})
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, own, kms, [])
        rotation = await _open_rotation(stack, own, parts, _make_keys(own, kms), pass_by)
        if rotation is None:
            raise AssertionError("a spool is all that it takes")
        renewing = rotation.renewing
        await renewing.replay()
        exchanging = asyncio.create_task(renewing.exchange_lasting())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([exchanging, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await renewing.drain()
        outcomes = {outcome.value: count for outcome, count in (await exchanging).items()}
        structlog.get_logger().info("lasting_tokens_exchanged", **outcomes)


async def bring_up_to_date(settings: MigrationSettings, _: asyncio.Event) -> None:
    """Migrate the vault's database to the newest version."""
    migrate(settings.database_url_file, DATABASE)


def main() -> None:
    """Run the command named on the command line."""
    parser = argparse.ArgumentParser(prog="interlock_token_vault", description=__doc__)
    parser.add_argument("command", choices=("serve", "migrate", "exchange"))
    command = parser.parse_args().command
    if command == "exchange":
        run_process(f"{_NAME}-exchange", VaultSettings, exchange)
    if command == "migrate":
        run_process(f"{_NAME}-migrate", MigrationSettings, bring_up_to_date)
    run_process(_NAME, VaultSettings, serve)


if __name__ == "__main__":
    main()
