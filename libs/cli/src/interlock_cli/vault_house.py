"""A running vault with everybody around it, for tests: Postgres, Slack, identity, peers.

Real mTLS gRPC and a real Postgres; Slack, identity and the KMS are stand-ins
that do as they are told.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import aiohttp
import asyncpg
from aiohttp import encode_basic_auth, web
from aiohttp.test_utils import TestServer
from grpc import aio
from yarl import URL

from interlock.identity.v1 import identity_pb2, identity_pb2_grpc
from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.config import Environment
from interlock_chassis.errors import Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import RpcServer
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.data_folder import choose_ports
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.__main__ import running
from interlock_token_vault.adapters.checkpoints import create_checkpoint_key
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.adapters.memory import FakeKms
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.domain.install import WorkspaceTaken
from interlock_token_vault.migrations import DATABASE, SCANNER_ROLE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_admin_grant, sign_install_grant, sign_slack_grant

if TYPE_CHECKING:
    from asyncpg import Connection, Record

CLIENT_ID = "1111.2222"
_CLIENT_SECRET = "example-client-secret"  # noqa: S105 - Of nobody.
SCOPES = ("chat:write", "commands")
REDIRECT = "https://interlock.example/work-apps/slack/oauth_redirect"
NORTHWIND = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
CONTOSO = Workspace("", "T0CONTOSO", is_enterprise_install=False, app_id="A0INTERLOCK")
GRID = Workspace("E0GRID", "", is_enterprise_install=True, app_id="A0INTERLOCK")
TIMEOUT_S = 10.0
IDENTITY = "interlock.identity.v1.WorkspaceService"
VAULT = "interlock.token_vault.v1"
_APPS = {"reports": "2222.3333", "digest": "4444.5555"}
PEERS = (
    "gateway-edge",
    "gateway-worker",
    "runner",
    "identity",
    "operator",
    "app/reports",
    "app/digest",
    "app/stranger",
)


@dataclass
class Slack:
    """Slack's methods over HTTP; answers by code and by token."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    living: dict[str, dict[str, Any]] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    uninstalled: list[str] = field(default_factory=list)
    exchanges: int = 0

    def app(self) -> web.Application:
        """Return the application that serves them."""
        app = web.Application()
        app.router.add_post("/api/oauth.v2.access", self._exchange)
        app.router.add_post("/api/auth.test", self._test)
        app.router.add_post("/api/auth.revoke", self._revoke)
        app.router.add_post("/api/apps.uninstall", self._uninstall)
        return app

    def give(self, code: str, token: str, workspace: Workspace, **changes: Any) -> None:
        """Have a code exchanged for a living token."""
        team = workspace.team_id and {"id": workspace.team_id, "name": "Northwind"}
        enterprise = workspace.enterprise_id and {"id": workspace.enterprise_id, "name": "Grid"}
        self.answers[code] = {
            "ok": True,
            "access_token": token,
            "token_type": "bot",
            "scope": ",".join(SCOPES),
            "bot_user_id": "U0BOT",
            "app_id": workspace.app_id,
            "team": team or None,
            "enterprise": enterprise or None,
            "is_enterprise_install": workspace.is_enterprise_install,
            **changes,
        }
        self.living[token] = {
            "ok": True,
            "team_id": workspace.team_id or workspace.enterprise_id,
            "user_id": "U0BOT",
            "is_enterprise_install": workspace.is_enterprise_install,
        }

    async def _exchange(self, request: web.Request) -> web.Response:
        self.exchanges += 1
        fields = await request.post()
        if request.headers["Authorization"] != encode_basic_auth(CLIENT_ID, _CLIENT_SECRET):
            return web.json_response({"ok": False, "error": "bad_client_secret"})
        if fields["redirect_uri"] != REDIRECT:
            return web.json_response({"ok": False, "error": "bad_redirect_uri"})
        refused = {"ok": False, "error": "invalid_code"}
        return web.json_response(self.answers.pop(str(fields["code"]), refused))

    async def _test(self, request: web.Request) -> web.Response:
        dead = {"ok": False, "error": "invalid_auth"}
        return web.json_response(self.living.get(_bearer(request), dead))

    async def _revoke(self, request: web.Request) -> web.Response:
        token = _bearer(request)
        self.revoked.append(token)
        del self.living[token]
        return web.json_response({"ok": True, "revoked": True})

    def remove_app(self, team_id: str) -> None:
        """End every token of a team, or of an Enterprise named as one."""
        self.uninstalled.append(team_id)
        self.living = {
            token: whose for token, whose in self.living.items() if whose["team_id"] != team_id
        }

    async def _uninstall(self, request: web.Request) -> web.Response:
        fields, whose = await request.post(), self.living.get(_bearer(request))
        if whose is None:
            return web.json_response({"ok": False, "error": "invalid_auth"})
        if (fields["client_id"], fields["client_secret"]) != (CLIENT_ID, _CLIENT_SECRET):
            return web.json_response({"ok": False, "error": "bad_client_secret"})
        self.remove_app(whose["team_id"])
        return web.json_response({"ok": True})


def _bearer(request: web.Request) -> str:
    return request.headers["Authorization"].removeprefix("Bearer ")


class Identity(identity_pb2_grpc.WorkspaceServiceServicer):
    """Identity's claims: the first tenant of a workspace keeps it.

    Attributes:
        administrator: Slack user whom a notice names; empty when none is linked.
    """

    def __init__(self, tenant_of: Mapping[str, str]) -> None:
        self.tenant_of = tenant_of
        self.claims: dict[tuple[str, str], str] = {}
        self.holders: dict[tuple[str, str], str] = {}
        self.connections: dict[tuple[str, str], str] = {}
        self.reports: list[tuple[str, bool]] = []
        self.scopes: list[tuple[str, list[str], list[str]]] = []
        self.administrator = ""
        self.notices: list[identity_pb2.Notice] = []
        self.asked_for_notices = 0
        self.error: ServiceError | None = None

    async def ClaimWorkspace(  # noqa: N802 - gRPC's name.
        self,
        request: identity_pb2.ClaimWorkspaceRequest,
        context: object,  # noqa: ARG002 - As above.
    ) -> identity_pb2.ClaimWorkspaceResponse:
        """Claim, or say that the workspace is taken."""
        if self.error is not None:
            raise self.error
        place = (request.slack_enterprise_id, request.slack_team_id)
        if not request.grant:
            # A claim moves with its workspace, which may have moved already.
            names = [known for known in self.claims if known[1] == request.slack_team_id]
            self.claims[place] = self.claims.pop(names[0])
            return identity_pb2.ClaimWorkspaceResponse(was_claimed=True)
        tenant = self.tenant_of[request.grant]
        was_claimed = place in self.claims
        if self.claims.setdefault(place, tenant) != tenant:
            raise WorkspaceTaken
        self.holders[place] = request.installation_id
        self.connections[place] = request.nango_connection_id
        return identity_pb2.ClaimWorkspaceResponse(was_claimed=was_claimed)

    async def ReleaseWorkspace(  # noqa: N802 - gRPC's name.
        self,
        request: identity_pb2.ReleaseWorkspaceRequest,
        context: object,  # noqa: ARG002 - As above.
    ) -> identity_pb2.ReleaseWorkspaceResponse:
        """End a claim, unless another installation holds it by now."""
        if self.error is not None:
            raise self.error
        place = (request.slack_enterprise_id, request.slack_team_id)
        was_claimed = self.holders.get(place) == request.installation_id
        if was_claimed:
            del self.holders[place], self.claims[place]
        return identity_pb2.ReleaseWorkspaceResponse(was_claimed=was_claimed)

    async def ReportWorkspace(  # noqa: N802 - gRPC's name.
        self,
        request: identity_pb2.ReportWorkspaceRequest,
        context: object,  # noqa: ARG002 - As above.
    ) -> identity_pb2.ReportWorkspaceResponse:
        """Note that an installation needs a reinstall, or does not."""
        if self.error is not None:
            raise self.error
        self.reports.append((request.slack_team_id, request.needs_reinstall))
        if request.needs_reinstall:
            self.notices.append(
                identity_pb2.Notice(
                    installation_id=request.installation_id, slack_user_id=self.administrator
                )
            )
        return identity_pb2.ReportWorkspaceResponse(was_claimed=True)

    async def ReportScopes(  # noqa: N802 - gRPC's name.
        self,
        request: identity_pb2.ReportScopesRequest,
        context: object,  # noqa: ARG002 - As above.
    ) -> identity_pb2.ReportScopesResponse:
        """Note which scopes of an installation differ."""
        if self.error is not None:
            raise self.error
        differing = [*request.missing_scopes], [*request.extra_scopes]
        self.scopes.append((request.slack_team_id, *differing))
        return identity_pb2.ReportScopesResponse(was_claimed=True)

    async def TakeNotices(  # noqa: N802 - gRPC's name.
        self,
        request: identity_pb2.TakeNoticesRequest,  # noqa: ARG002 - The signature is gRPC's.
        context: object,  # noqa: ARG002 - As above.
    ) -> identity_pb2.TakeNoticesResponse:
        """Hand out each notice once."""
        if self.error is not None:
            raise self.error
        self.asked_for_notices += 1
        notices, self.notices = self.notices, []
        return identity_pb2.TakeNoticesResponse(notices=notices)


class WatchedKms(FakeKms):
    """A KMS that can be held while it unwraps."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap, once the gate is open."""
        self.asked.set()
        await self.gate.wait()
        return await super().unwrap(key, bound)


class Away(ServiceError):
    """Identity's database is away."""

    kind = Kind.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"


@dataclass
class House:
    """A running vault, and everybody around it."""

    settings: VaultSettings
    ca: ThrowAwayCa
    folder: Path
    channels: Mapping[str, aio.Channel]
    edge_keys: Keyset
    identity_keys: Keyset
    kms: WatchedKms
    slack: Slack
    identity: Identity
    tenant_of: dict[str, str]
    admin: "Connection[Record]"
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    port: int = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run a vault process's worth of serving, with a channel for every peer."""
        async with AsyncExitStack() as stack:
            self.port = await stack.enter_async_context(running(self.settings, self.kms))
            self.channels = {
                peer: await stack.enter_async_context(
                    open_channel(
                        f"127.0.0.1:{self.port}",
                        self.ca.issue(peer, self.folder / "tls"),
                        server="token-vault",
                    )
                )
                for peer in PEERS
            }
            yield

    async def readiness(self) -> int:
        """Ask the operations port whether the vault can work; returns the HTTP status."""
        url = f"http://{self.settings.ops_listen}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status

    async def start_cli(
        self, *arguments: str, online: bool = True, stdin: int = asyncio.subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        """Start an `interlock` command, told where this vault is if it goes online."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        place = {
            "INTERLOCK_VAULT_ADDRESS": f"127.0.0.1:{self.port}",
            "INTERLOCK_OPERATOR_TLS_DIR": str(self.tls_dir),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "interlock_cli",
            *arguments,
            env=inherited | (place if online else {}),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def cli(self, *arguments: str, online: bool = True) -> tuple[int | None, str, str]:
        """Run an `interlock` command; returns exit code, output and errors."""
        process = await self.start_cli(*arguments, online=online)
        stdout, stderr = await process.communicate()
        return process.returncode, stdout.decode(), stderr.decode()

    @property
    def tls_dir(self) -> Path:
        """Where every peer's certificate is."""
        return self.folder / "tls"

    def operator(self, peer: str = "operator") -> services.OperatorServiceStub:
        """Return a peer's way to OperatorService."""
        return services.OperatorServiceStub(self.channels[peer])

    def store(self, peer: str = "app/reports") -> services.InstallationStoreServiceStub:
        """Return an app's way to InstallationStoreService."""
        return services.InstallationStoreServiceStub(self.channels[peer])

    def installer(self, peer: str = "gateway-edge") -> services.InstallServiceStub:
        """Return a peer's way to InstallService."""
        return services.InstallServiceStub(self.channels[peer])

    def tokens(self, peer: str = "gateway-worker") -> services.TokenServiceStub:
        """Return a peer's way to TokenService."""
        return services.TokenServiceStub(self.channels[peer])

    def audit(self, peer: str = "gateway-edge") -> services.AuditServiceStub:
        """Return a peer's way to AuditService."""
        return services.AuditServiceStub(self.channels[peer])

    @property
    def unwraps(self) -> int:
        """How often the KMS was asked to unwrap."""
        return self.kms.faults.calls["kms.unwrap"]

    def slack_grant(
        self,
        workspace: Workspace = NORTHWIND,
        *,
        age: timedelta = timedelta(0),
        event_type: str = "app_mention",
        slack_user_id: str = "U0MIA",
    ) -> str:
        """Sign a slackGrant as edge does, some time ago."""
        now = datetime.now(UTC) - age
        return sign_slack_grant(
            self.edge_keys,
            now=now,
            jti=f"event-{next(self.numbers)}",
            workspace=workspace,
            slack_user_id=slack_user_id,
            slack_user_team_id=workspace.team_id,
            event_key="Ev0",
            event_type=event_type,
            body_sha256="a" * 64,
            event_at=now,
            is_stranger=False,
        ).reveal()

    def admin_grant(self, purpose: AdminPurpose, workspace: Workspace = NORTHWIND) -> str:
        """Sign an adminGrant as identity does."""
        return sign_admin_grant(
            self.identity_keys,
            now=datetime.now(UTC),
            jti=f"admin-{next(self.numbers)}",
            workspace=workspace,
            tenant_id="northwind",
            user_id="user-ada",
            purpose=purpose,
            slack_user_id="U0MIA" if purpose is AdminPurpose.RESUME else "",
        ).reveal()

    def install_grant(
        self,
        tenant: str = "northwind",
        *,
        source: Literal["direct", "nango"] = "direct",
        state_sha256: str = "b" * 64,
    ) -> str:
        """Sign an installGrant as identity does."""
        grant = sign_install_grant(
            self.identity_keys,
            now=datetime.now(UTC),
            jti=f"install-{next(self.numbers)}",
            tenant_id=tenant,
            user_id="user-ada",
            state_sha256=state_sha256,
            source=source,
        ).reveal()
        self.tenant_of[grant] = tenant
        return grant

    async def complete(self, grant: str, code: str) -> pb.CompleteOAuthInstallResponse:
        """Start and complete an install as edge does."""
        await ask(self.installer().StartInstall(pb.StartInstallRequest(grant=grant), timeout=5))
        request = pb.CompleteOAuthInstallRequest(grant=grant, code=code, redirect_uri=REDIRECT)
        installed: pb.CompleteOAuthInstallResponse = await ask(
            self.installer().CompleteOAuthInstall(request, timeout=TIMEOUT_S)
        )
        return installed

    async def install(
        self, token: str, workspace: Workspace = NORTHWIND, tenant: str = "northwind"
    ) -> pb.CompleteOAuthInstallResponse:
        """Install the app into a workspace."""
        code = f"code.{next(self.numbers)}"
        self.slack.give(code, token, workspace)
        return await self.complete(self.install_grant(tenant), code)

    async def read(self, grant: str, peer: str = "gateway-worker") -> pb.ReadBotTokenResponse:
        """Read a bot token."""
        request = pb.ReadBotTokenRequest(grant=grant)
        released: pb.ReadBotTokenResponse = await ask(
            self.tokens(peer).ReadBotToken(request, timeout=5)
        )
        return released

    async def revocation(
        self,
        event_type: str,
        workspace: Workspace = NORTHWIND,
        *,
        users: Sequence[str] = (),
        bots: Sequence[str] = (),
    ) -> pb.ApplyRevocationResponse:
        """Pass an uninstall or revocation event on, as the worker does."""
        request = pb.ApplyRevocationRequest(
            grant=self.slack_grant(workspace, event_type=event_type),
            user_ids=users,
            bot_user_ids=bots,
        )
        applied: pb.ApplyRevocationResponse = await ask(
            self.tokens().ApplyRevocation(request, timeout=TIMEOUT_S)
        )
        return applied

    async def uninstall(self, workspace: Workspace = NORTHWIND) -> None:
        """Uninstall at an administrator's word, as the worker does."""
        grant = self.admin_grant(AdminPurpose.UNINSTALL, workspace)
        await ask(self.tokens().Uninstall(pb.UninstallRequest(grant=grant), timeout=TIMEOUT_S))

    async def records(self, action: str) -> "list[Record]":
        """Read the audit log's records of an action past the vault, oldest first."""
        return await self.admin.fetch(
            "SELECT * FROM vault.audit_event WHERE action = $1 ORDER BY at, seq", action
        )


async def ask(call: Awaitable[Any]) -> Any:
    """Await a call, with a peer's error as RemoteError."""
    with remote_errors():
        return await call


async def refusal(call: Awaitable[Any]) -> tuple[Kind, str]:
    """Say how a call is refused.

    Raises:
        AssertionError: It was not refused.
    """
    try:
        await call
    except RemoteError as refused:
        return refused.kind, refused.reason
    raise AssertionError("the call was not refused")


def make_keyset(kid: str, *families: Family) -> Keyset:
    """Make a keyset of one Ed25519 key."""
    document = json.dumps({"keys": [generate_ed25519_key(kid, families)]})
    return Keyset.from_json(Secret(document), variable="KEYS")


@asynccontextmanager
async def serving_identity(identity: Identity, ca: ThrowAwayCa, folder: Path) -> AsyncIterator[int]:
    """Serve identity's claims to a vault; yields the port."""
    methods = identity_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods
    server = RpcServer(
        listen="127.0.0.1:0",
        tls=ca.issue("identity", folder),
        callers={f"/{IDENTITY}/{each.name}": frozenset({"token-vault"}) for each in methods},
        caps={},
    )
    server.add(identity_pb2_grpc.add_WorkspaceServiceServicer_to_server, identity, IDENTITY)
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(timedelta(0))


@asynccontextmanager
async def open_house(
    cluster: ScratchDatabases, folder: Path, **changes: Any
) -> AsyncIterator[House]:
    """Give a running vault with nothing installed, in a folder of its own.

    Args:
        cluster: Where its database is made.
        folder: Of certificates, keys and checkpoints.
        changes: Settings that differ.
    """
    ca = ThrowAwayCa.create(folder / "ca")
    edge_keys = make_keyset("edge-1", Family.SLACK_GRANT)
    identity_keys = make_keyset(
        "identity-1", Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT
    )
    urls = await cluster.database(DATABASE)
    tenant_of: dict[str, str] = {}
    slack, kms = Slack(), WatchedKms()
    identity = Identity(tenant_of)  # type: ignore[abstract] # The vault calls no more of it.
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(slack.app(), host="127.0.0.1"))
        identity_port = await stack.enter_async_context(
            serving_identity(identity, ca, folder / "tls")
        )
        tls = ca.issue("token-vault", folder / "tls")
        given: dict[str, Any] = {
            "environment": Environment.DEVELOPMENT,
            "listen": "127.0.0.1:0",
            "ops_listen": f"127.0.0.1:{choose_ports({'ops': 0})['ops']}",
            "tls_ca_file": tls.ca,
            "tls_cert_file": tls.cert,
            "tls_key_file": tls.key,
            "database_url_file": urls.roles[VAULT_ROLE],
            "scanner_database_url_file": urls.roles[SCANNER_ROLE],
            "slack_client_id": CLIENT_ID,
            "slack_client_secret_file": Secret(_CLIENT_SECRET),
            "slack_api_url": URL(str(server.make_url("/api/"))),
            "slack_url": URL("https://slack.example"),
            "slack_bot_scopes": SCOPES,
            "grant_public_keys_file": Secret(Keyset.join(edge_keys, identity_keys).public()),
            "kms": "local",
            "local_keyset_file": folder / "unused",
            "fingerprint_key_file": Secret("f" * 32),
            "audit_checkpoint_key_file": Secret(create_checkpoint_key()),
            "audit_checkpoint_dir": folder / "checkpoints",
            "registered_apps_file": Secret(json.dumps({"apps": _APPS})),
            "identity_address": f"127.0.0.1:{identity_port}",
        }
        settings = VaultSettings(**(given | changes))
        admin = await asyncpg.connect(
            cluster.admin_url.reveal(), database=urlsplit(urls.owner.reveal()).path.strip("/")
        )
        stack.push_async_callback(admin.close)
        house = House(
            settings,
            ca,
            folder,
            {},
            edge_keys,
            identity_keys,
            kms,
            slack,
            identity,
            tenant_of,
            admin,
        )
        async with house.serving():
            yield house
