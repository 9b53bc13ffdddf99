"""The composition of the edge process."""

import asyncio
import secrets
from typing import Protocol
from uuid import uuid4

import structlog
from aiohttp import web

from interlock_chassis.client import open_channel
from interlock_chassis.clock import Clock, SystemClock
from interlock_chassis.config import variable_of
from interlock_chassis.database import open_pool
from interlock_chassis.ops import ops_server
from interlock_chassis.telemetry import REGISTRY
from interlock_gateway.adapters.edge_identity import GrpcIdentity
from interlock_gateway.adapters.edge_keys import HmacKeys
from interlock_gateway.adapters.edge_postgres import EdgePostgres
from interlock_gateway.adapters.edge_vault import GrpcVault
from interlock_gateway.adapters.edge_worker import GrpcWorker
from interlock_gateway.edge import paths
from interlock_gateway.edge.administering import Administering
from interlock_gateway.edge.admission import Admission, Inbox
from interlock_gateway.edge.api_routes import ApiRoutes
from interlock_gateway.edge.audit_routes import AuditRoutes
from interlock_gateway.edge.browser import Browser
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.edge.connect_pages import ConnectPages
from interlock_gateway.edge.connect_routes import ConnectRoutes
from interlock_gateway.edge.csrf import CsrfTokens
from interlock_gateway.edge.http import Proxies
from interlock_gateway.edge.install_routes import InstallRoutes
from interlock_gateway.edge.installing import Connecting, Installing
from interlock_gateway.edge.link_routes import LinkRoutes
from interlock_gateway.edge.linking import Linking
from interlock_gateway.edge.listener import listening
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.ports import Attempts, Identity, InstallStates, Vault, Worker
from interlock_gateway.edge.settings_routes import SettingsRoutes
from interlock_gateway.edge.slack_routes import SlackRoutes
from interlock_gateway.edge.slack_urls import SlackUrls
from interlock_gateway.edge.web import Addresses, make_app
from interlock_gateway.edge.workspace_routes import WorkspaceRoutes
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset

# A burst of 30,000 events an hour from one workspace is some 10 a second of 5 ms each.
_POOL_SIZE = 16
_SECRET_BYTES = 32


class Database(Inbox, InstallStates, Attempts, Protocol):
    """Everything that edge keeps."""


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Serve browsers and Slack until told to stop.

    Raises:
        ConfigError: A key cannot be used, or an address is not free.
    """
    async with (
        open_pool(
            settings.database_url_file, application="gateway-edge", max_size=_POOL_SIZE
        ) as pool,
        open_channel(settings.identity_address, settings.tls, server="identity") as identity,
        open_channel(settings.vault_address, settings.tls, server="token-vault") as vault,
        open_channel(settings.worker_address, settings.tls, server="gateway-worker") as worker,
    ):
        database = EdgePostgres(pool)
        app = build_app(
            settings,
            identity=GrpcIdentity(identity),
            vault=GrpcVault(vault),
            worker=GrpcWorker(worker),
            database=database,
            clock=SystemClock(),
            metrics=EdgeMetrics(REGISTRY),
        )
        async with (
            listening(app, settings.listen) as port,
            ops_server(settings.ops_listen, database.require_ready),
        ):
            structlog.get_logger().info("edge_listening", port=port)
            await stop.wait()


def build_app(
    settings: EdgeSettings,
    *,
    identity: Identity,
    vault: Vault,
    worker: Worker,
    database: Database,
    clock: Clock,
    metrics: EdgeMetrics,
) -> web.Application:
    """Put the process together around its ports.

    Raises:
        ConfigError: A key cannot be used.
    """
    public_url = str(settings.public_url.origin())
    proxies, pages = Proxies(settings.trusted_proxies), Pages(public_url)
    browser = _browser(settings, identity, clock, proxies)
    installing = Installing(
        identity=identity,
        vault=vault,
        states=database,
        redirect_uri=public_url + paths.INSTALL_CALLBACK,
        home_path=paths.HOME,
        new_secret=lambda: secrets.token_urlsafe(_SECRET_BYTES),
    )
    connecting = Connecting(
        identity=identity,
        vault=vault,
        states=database,
        new_secret=lambda: secrets.token_urlsafe(_SECRET_BYTES),
    )
    nango = settings.nango_connect_url
    linking = Linking(
        identity=identity,
        worker=worker,
        attempts=database,
        on_guessing=lambda: metrics.audit("link_guessing_suspected"),
    )
    administering = Administering(identity=identity, vault=vault, worker=worker)
    slack = SlackUrls(str(settings.slack_url.origin()), settings.slack_app_id)
    workspaces = WorkspaceRoutes(
        browser=browser,
        pages=pages,
        administering=administering,
        slack=slack,
        playground_url=str(settings.playground_url or ""),
        is_by_nango=nango is not None,
    )
    return make_app(
        routes=[
            *SlackRoutes(_admission(settings, database, clock), metrics).routes(),
            *InstallRoutes(
                browser=browser,
                pages=pages,
                installing=installing,
                metrics=metrics,
                asks=nango is None,
            ).routes(),
            *ConnectRoutes(
                browser=browser, connecting=connecting, vault=vault, metrics=metrics
            ).routes(),
            *(
                ConnectPages(
                    browser=browser,
                    pages=pages,
                    connecting=connecting,
                    metrics=metrics,
                    origin=nango,
                ).routes()
                if nango is not None
                else []
            ),
            *LinkRoutes(
                browser=browser, pages=pages, linking=linking, slack=slack, metrics=metrics
            ).routes(),
            *ApiRoutes(
                browser=browser, administering=administering, public_url=public_url
            ).routes(),
            *workspaces.routes(),
            *AuditRoutes(browser=browser, pages=pages, administering=administering).routes(),
            *SettingsRoutes(browser=browser, pages=pages, administering=administering).routes(),
            *pages.routes(),
        ],
        pages=pages,
        browser=browser,
        proxies=proxies,
        metrics=metrics,
        addresses=Addresses(settings.public_url, settings.auth_url, settings.slack_url, nango),
    )


def _browser(settings: EdgeSettings, identity: Identity, clock: Clock, proxies: Proxies) -> Browser:
    csrf_keys = HmacKeys(settings.csrf_key_file, variable=variable_of("csrf_key_file"))
    return Browser(
        identity=identity,
        csrf=CsrfTokens(csrf_keys.mac, clock),
        proxies=proxies,
        public_url=str(settings.public_url.origin()),
        auth_url=str(settings.auth_url),
        session_cookie=settings.session_cookie_name,
    )


def _admission(settings: EdgeSettings, inbox: Inbox, clock: Clock) -> Admission:
    variable = variable_of("grant_keys_file")
    grant_keys = Keyset.from_json(settings.grant_keys_file, variable=variable)
    grant_keys.require_signing(Family.SLACK_GRANT, variable=variable)
    previous = settings.slack_previous_signing_secret_file
    signing = HmacKeys(
        settings.slack_signing_secret_file,
        *([previous] if previous is not None else []),
        variable=variable_of("slack_signing_secret_file"),
    )
    return Admission(
        inbox=inbox,
        grant_keys=grant_keys,
        macs=signing.macs,
        app_id=settings.slack_app_id,
        clock=clock,
        new_id=lambda: str(uuid4()),
    )
