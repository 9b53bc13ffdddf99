"""`python -m interlock_gateway edge`: the real process, its peers spoken to over mTLS gRPC."""

import asyncio
import hashlib
import hmac
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.descriptor_pool import Default
from google.protobuf.timestamp_pb2 import Timestamp

from interlock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from interlock.identity.v1 import identity_pb2, identity_pb2_grpc
from interlock.token_vault.v1 import token_vault_pb2, token_vault_pb2_grpc
from interlock_chassis.client import open_channel
from interlock_chassis.errors import Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.server import RpcServer, current_call
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.edge_identity import GrpcIdentity
from interlock_gateway.adapters.edge_vault import GrpcVault
from interlock_gateway.adapters.edge_worker import GrpcWorker
from interlock_gateway.edge.ports import AgentDefault, Channel, Health, Role, SessionProof
from interlock_gateway.migrations import DATABASE, EDGE_ROLE
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import generate_ed25519_key

APP = "A0INTERLOCK"
SIGNING_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
DAY = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
# What an answer of identity may take when it need not ask the agents platform.
SECONDS_WITHOUT_PLATFORM = 5
PROOF = SessionProof(Secret("better-auth.session_token=ann"), "192.0.2.1")


def _stamp() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(DAY)
    return stamp


def _workspace() -> identity_pb2.Workspace:
    return identity_pb2.Workspace(
        workspace_id="wsw_1",
        slack_team_id="T0ACME",
        name="Acme Slack",
        status="active",
        created_at=_stamp(),
        linked_users=2,
    )


def _require_ann(request: Any) -> None:
    if not request.session.cookie.endswith("=ann"):
        raise _NotSignedIn


class _NotSignedIn(ServiceError):
    """Nobody is signed in."""

    kind = Kind.UNAUTHENTICATED
    reason = "NOT_SIGNED_IN"


class _Sessions(identity_pb2_grpc.SessionServiceServicer):
    async def AuthenticateSession(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        _require_ann(request)
        return identity_pb2.AuthenticateSessionResponse(
            user_id="u_ann",
            name="Ann",
            email="ann@acme.example",
            tenant_id="acme",
            tenant_name="Acme",
            role=identity_pb2.ROLE_OWNER,
            session_ref="session-of-ann",
        )

    async def IssueAdminGrant(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.purpose != identity_pb2.ADMIN_PURPOSE_UNSPECIFIED
        return identity_pb2.IssueAdminGrantResponse(grant="audit-grant", workspace=_workspace())

    async def IssueInstallGrant(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.source == identity_pb2.INSTALL_SOURCE_DIRECT
        assert context.time_remaining() > SECONDS_WITHOUT_PLATFORM
        return identity_pb2.IssueInstallGrantResponse(grant="install-grant", tenant_id="acme")


class _Workspaces(identity_pb2_grpc.WorkspaceServiceServicer):
    async def ListWorkspaces(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        _require_ann(request)
        return identity_pb2.ListWorkspacesResponse(workspaces=[_workspace()])

    async def GetAgentDefaults(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        default = identity_pb2.AgentDefault(project_id="shop", agent_id="returns")
        return identity_pb2.GetAgentDefaultsResponse(defaults=[default])

    async def SetAgentDefault(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert context.time_remaining() > SECONDS_WITHOUT_PLATFORM
        if not request.HasField("agent_default"):
            return identity_pb2.SetAgentDefaultResponse()
        assert request.agent_default.channel_id == request.channel_id == "C0GENERAL"
        assert request.agent_default.grant_access_to_members
        raise RemoteError(Kind.NOT_FOUND, "AGENT_NOT_FOUND")


class _Links(identity_pb2_grpc.LinkServiceServicer):
    async def DescribeLinkCode(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        return identity_pb2.DescribeLinkCodeResponse(
            workspace=_workspace(),
            slack_user_id="U0ANN",
            slack_display_name="ann",
            slack_email="ann@acme.example",
            emails_differ=True,
            email_refused=True,
            expires_at=_stamp(),
        )

    async def RedeemLinkCode(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        if not request.email_difference_confirmed:
            raise RemoteError(Kind.PRECONDITION, "EMAIL_MISMATCH")
        return identity_pb2.RedeemLinkCodeResponse(
            resume_grant="resume-grant", workspace=_workspace(), slack_user_id="U0ANN"
        )

    async def ListUserMappings(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        used = identity_pb2.UserMapping(
            mapping_id="wsum_1", user_name="Ann", linked_at=_stamp(), last_used_at=_stamp()
        )
        unused = identity_pb2.UserMapping(mapping_id="wsum_2", linked_at=_stamp())
        return identity_pb2.ListUserMappingsResponse(
            mappings=[used, unused], next_page_token="more"
        )

    async def Unlink(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.mapping_id == "wsum_1"
        return identity_pb2.UnlinkResponse()


class _Record(identity_pb2_grpc.AuditServiceServicer):
    async def ListAuditEvents(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert (request.grant, request.tenant_id) == ("audit-grant", "")
        event = identity_pb2.AuditEvent(
            number=9, at=_stamp(), event=request.event, outcome="NOT_YOUR_TENANT", user_name="Ann"
        )
        return identity_pb2.ListAuditEventsResponse(events=[event], next_page_token="9")


class _Installs(token_vault_pb2_grpc.InstallServiceServicer):
    async def StartInstall(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        return token_vault_pb2.StartInstallResponse(
            authorize_url=f"https://slack.example/{request.grant}"
        )

    async def CompleteOAuthInstall(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.redirect_uri == "https://interlock.example/back"
        installation = token_vault_pb2.Installation(
            enterprise_id="E0GRID", is_enterprise_install=True
        )
        return token_vault_pb2.CompleteOAuthInstallResponse(
            installation=installation, is_reinstall=True, extra_scopes=["pins:read"]
        )


class _Audit(token_vault_pb2_grpc.AuditServiceServicer):
    async def ListAuditEvents(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        event = token_vault_pb2.AuditEvent(
            seq=7,
            at=_stamp(),
            action="token.read",
            outcome="allowed",
            token_ref="f1ngerpr1nt",
            kek_version="local-1",
            # What the vault saw of this call, for the test to look at.
            actor=current_call().caller,
            request_id=current_call().request_id,
        )
        return token_vault_pb2.ListAuditEventsResponse(events=[event])


class _Worker(gateway_pb2_grpc.WorkerServiceServicer):
    async def ResumeAfterLink(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        return gateway_pb2.ResumeAfterLinkResponse(resumed=request.grant == "resume-grant")

    async def CheckHealth(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        return gateway_pb2.CheckHealthResponse(healthy=False, slack_error="token_revoked")

    async def ListChannels(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        channel = gateway_pb2.Channel(channel_id="C0GENERAL", name="general", is_member=True)
        return gateway_pb2.ListChannelsResponse(channels=[channel])

    async def SendTestMessage(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.channel_id == "C0GENERAL"
        return gateway_pb2.SendTestMessageResponse()

    async def Uninstall(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it.
        assert request.grant == "uninstall-grant"
        return gateway_pb2.UninstallResponse()


@dataclass(frozen=True)
class Peers:
    """Identity, vault and worker, listening."""

    identity: str
    vault: str
    worker: str
    ca: ThrowAwayCa
    folder: Path

    @property
    def edge_tls(self) -> TlsFiles:
        """Edge's own certificate."""
        return self.ca.issue("gateway-edge", self.folder)


_Services = dict[str, tuple[Callable[..., None], object]]

IDENTITY: _Services = {
    "interlock.identity.v1.SessionService": (
        identity_pb2_grpc.add_SessionServiceServicer_to_server,
        _Sessions(),  # type: ignore[abstract]  # Only what edge calls.
    ),
    "interlock.identity.v1.LinkService": (
        identity_pb2_grpc.add_LinkServiceServicer_to_server,
        _Links(),  # type: ignore[abstract]  # Only what edge calls.
    ),
    "interlock.identity.v1.WorkspaceService": (
        identity_pb2_grpc.add_WorkspaceServiceServicer_to_server,
        _Workspaces(),  # type: ignore[abstract]  # Only what edge calls.
    ),
    "interlock.identity.v1.AuditService": (
        identity_pb2_grpc.add_AuditServiceServicer_to_server,
        _Record(),
    ),
}
VAULT: _Services = {
    "interlock.token_vault.v1.InstallService": (
        token_vault_pb2_grpc.add_InstallServiceServicer_to_server,
        _Installs(),  # type: ignore[abstract]  # Only what edge calls.
    ),
    "interlock.token_vault.v1.AuditService": (
        token_vault_pb2_grpc.add_AuditServiceServicer_to_server,
        _Audit(),
    ),
}
WORKER: _Services = {
    "interlock.gateway.v1.WorkerService": (
        gateway_pb2_grpc.add_WorkerServiceServicer_to_server,
        _Worker(),  # type: ignore[abstract]  # Only what edge calls.
    )
}


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Peers]:
    """Serve edge's three peers, each with its own certificate and for edge alone."""
    ca = ThrowAwayCa.create(tmp_path / "ca")
    servers: list[RpcServer] = []
    addresses: dict[str, str] = {}
    try:
        for name, services in (
            ("identity", IDENTITY),
            ("token-vault", VAULT),
            ("gateway-worker", WORKER),
        ):
            server = RpcServer(
                listen="127.0.0.1:0",
                tls=ca.issue(name, tmp_path / name),
                callers={
                    f"/{service}/{method.name}": frozenset({"gateway-edge"})
                    for service in services
                    for method in Default().FindServiceByName(service).methods
                },
                caps={
                    "/interlock.token_vault.v1.InstallService/CompleteOAuthInstall": timedelta(
                        seconds=30
                    )
                }
                if name == "token-vault"
                else {},
            )
            for service, (add, servicer) in services.items():
                server.add(add, servicer, service)
            servers.append(server)
            addresses[name] = f"127.0.0.1:{await server.start()}"
        yield Peers(
            addresses["identity"],
            addresses["token-vault"],
            addresses["gateway-worker"],
            ca,
            tmp_path / "edge",
        )
    finally:
        for server in servers:
            await server.stop(timedelta(0))


async def test_identity_is_asked_with_the_cookie_itself(peers: Peers) -> None:
    """Every answer of identity becomes edge's own value; a refusal keeps its reason."""
    async with open_channel(peers.identity, peers.edge_tls, server="identity") as channel:
        identity = GrpcIdentity(channel)
        person = await identity.authenticate(PROOF)
        assert (person.role, person.tenant_id, person.session_ref) == (
            Role.OWNER,
            "acme",
            "session-of-ann",
        )
        [workspace] = await identity.list_workspaces(PROOF)
        assert (workspace.created_at, workspace.linked_users) == (DAY, 2)
        grant, audited = await identity.issue_admin_grant(PROOF, "wsw_1", AdminPurpose.AUDIT)
        assert (grant, audited) == (Secret("audit-grant"), workspace)
        assert await identity.issue_install_grant(PROOF, "a" * 64) == Secret("install-grant")
        offer = await identity.describe_link_code(PROOF, Secret("c" * 43))
        assert (offer.emails_differ, offer.expires_at) == (True, DAY)
        assert offer.is_email_refused
        with pytest.raises(RemoteError) as mismatch:
            await identity.redeem_link_code(
                PROOF, Secret("c" * 43), email_difference_confirmed=False
            )
        assert mismatch.value.reason == "EMAIL_MISMATCH"
        redeemed = await identity.redeem_link_code(
            PROOF, Secret("c" * 43), email_difference_confirmed=True
        )
        assert redeemed.resume_grant == Secret("resume-grant")
        page = await identity.list_mappings(PROOF, "wsw_1", "")
        assert [each.last_used_at for each in page.items] == [DAY, None]
        assert page.next_token == "more"
        await identity.unlink(PROOF, "wsum_1")
        record = await identity.list_people_events(grant, "call.refused", "")
        [event] = record.items
        assert (event.number, event.at, event.event) == (9, DAY, "call.refused")
        assert (event.outcome, event.user_name) == ("NOT_YOUR_TENANT", "Ann")
        assert record.next_token == "9"
        with pytest.raises(RemoteError) as nobody:
            await identity.authenticate(SessionProof(Secret("better-auth.session_token=x"), ""))
        assert nobody.value.reason == "NOT_SIGNED_IN"


async def test_identity_keeps_the_default_agents(peers: Peers) -> None:
    """Read, set and removed; a grant can be asked for each purpose that edge knows."""
    async with open_channel(peers.identity, peers.edge_tls, server="identity") as channel:
        identity = GrpcIdentity(channel)
        default = AgentDefault("", "shop", "returns", grants_access=False)
        assert await identity.list_agent_defaults(PROOF, "wsw_1") == (default,)
        chosen = AgentDefault("C0GENERAL", "shop", "nobody", grants_access=True)
        with pytest.raises(RemoteError) as unknown:
            await identity.set_agent_default(PROOF, "wsw_1", "C0GENERAL", chosen)
        assert unknown.value.reason == "AGENT_NOT_FOUND"
        await identity.set_agent_default(PROOF, "wsw_1", "C0GENERAL", None)
        for purpose in ("health", "channels", "test_message", "uninstall"):
            await identity.issue_admin_grant(PROOF, "wsw_1", AdminPurpose(purpose))


async def test_the_vault_and_the_worker_are_asked_with_grants(peers: Peers) -> None:
    """An org-wide install is named by its Enterprise; audit and resume pass through."""
    tls = peers.edge_tls
    async with (
        open_channel(peers.vault, tls, server="token-vault") as to_vault,
        open_channel(peers.worker, tls, server="gateway-worker") as to_worker,
    ):
        vault = GrpcVault(to_vault)
        assert await vault.start_install(Secret("g")) == "https://slack.example/g"
        installed = await vault.complete_install(
            Secret("g"), Secret("1.2.abc"), "https://interlock.example/back"
        )
        assert (installed.slack_team_id, installed.is_reinstall, installed.extra_scopes) == (
            "E0GRID",
            True,
            ("pins:read",),
        )
        [event] = (await vault.list_audit_events(Secret("g"), "")).items
        assert (event.seq, event.at, event.actor) == (7, DAY, "gateway-edge")
        worker = GrpcWorker(to_worker)
        await worker.uninstall(Secret("uninstall-grant"))
        assert await worker.resume_after_link(Secret("resume-grant"))
        assert await worker.check_health(Secret("g")) == Health(
            is_healthy=False, slack_error="token_revoked"
        )
        assert await worker.list_channels(Secret("g")) == (
            Channel("C0GENERAL", "general", is_member=True),
        )
        await worker.send_test_message(Secret("g"), "C0GENERAL")


# The process.


@dataclass(frozen=True)
class Launch:
    """What the process is started with."""

    variables: dict[str, str]
    port: int
    ops_port: int

    async def start(self, **changes: str) -> asyncio.subprocess.Process:
        """Start it."""
        variables = {name: value for name, value in (self.variables | changes).items() if value}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "interlock_gateway",
            "edge",
            env=variables,
            stderr=asyncio.subprocess.PIPE,
        )


@pytest.fixture
async def launch(
    peers: Peers,
    cluster: ScratchDatabases,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> Launch:
    """Write the files that the settings name."""
    urls = await cluster.database(DATABASE)
    port, ops_port = unused_tcp_port_factory(), unused_tcp_port_factory()
    contents = {
        "DATABASE_URL": urls.roles[EDGE_ROLE].reveal(),
        "SLACK_SIGNING_SECRET": SIGNING_SECRET,
        "GRANT_KEYS": json.dumps({"keys": [generate_ed25519_key("edge-1", [Family.SLACK_GRANT])]}),
        "CSRF_KEY": "c" * 43,
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    tls = peers.edge_tls
    variables = {
        "ENVIRONMENT": "development",
        "LISTEN": f"127.0.0.1:{port}",
        "OPS_LISTEN": f"127.0.0.1:{ops_port}",
        "TLS_CA_FILE": str(tls.ca),
        "TLS_CERT_FILE": str(tls.cert),
        "TLS_KEY_FILE": str(tls.key),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SLACK_APP_ID": APP,
        "IDENTITY_ADDRESS": peers.identity,
        "VAULT_ADDRESS": peers.vault,
        "WORKER_ADDRESS": peers.worker,
        "AUTH_URL": "http://127.0.0.1:1",
    } | {f"{name}_FILE": str(tmp_path / name) for name in contents}
    return Launch({f"INTERLOCK_{name}": value for name, value in variables.items()}, port, ops_port)


async def _until_ready(launch: Launch, http: aiohttp.ClientSession) -> None:
    url = f"http://127.0.0.1:{launch.ops_port}/readyz"
    async with asyncio.timeout(20):
        while True:
            try:
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


def _event() -> bytes:
    event = {
        "type": "app_mention",
        "user": "U0ANN",
        "channel": "C0GENERAL",
        "text": "<@U0BOT> canary-question",
        "ts": "1763985600.000100",
    }
    envelope = {
        "type": "event_callback",
        "team_id": "T0ACME",
        "api_app_id": APP,
        "event_id": "Ev0000000001",
        "authorizations": [{"team_id": "T0ACME", "user_id": "U0BOT", "is_bot": True}],
        "event": event,
    }
    return json.dumps(envelope).encode()


def _signed(body: bytes) -> dict[str, str]:
    timestamp = str(int(time.time()))
    base = b"v0:" + timestamp.encode() + b":" + body
    signature = hmac.new(SIGNING_SECRET.encode(), base, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Slack-Request-Timestamp": timestamp,
        "X-Slack-Signature": f"v0={signature}",
    }


async def test_the_process_serves_pages_and_slack_and_stops_when_told(launch: Launch) -> None:
    """From the cookie through identity and vault to the page, one request id on all hops."""
    process = await launch.start()
    base = f"http://127.0.0.1:{launch.port}/work-apps/slack"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        await _until_ready(launch, http)
        cookie = {"Cookie": "better-auth.session_token=ann"}
        async with http.get(f"{base}/", headers=cookie) as response:
            assert "Acme Slack" in await response.text()
        async with http.get(f"{base}/workspaces/wsw_1/audit.json", headers=cookie) as response:
            [event] = (await response.json())["events"]
            assert event["requestId"] == response.headers["X-Request-Id"]
            assert event["actor"] == "gateway-edge"
        for query in ("link?code=canary-link-code-0000", "oauth_redirect?code=canary-code&state=x"):
            async with http.get(f"{base}/{query}", allow_redirects=False) as response:
                assert response.status in {303, 400}
        body = _event()
        async with http.post(f"{base}/events", data=body, headers=_signed(body)) as response:
            assert response.status == 200
        async with http.get(f"http://127.0.0.1:{launch.ops_port}/metrics") as response:
            text = await response.text()
            assert 'interlock_edge_slack_requests_total{kind="event",outcome="stored"} 1.0' in text
    process.send_signal(signal.SIGTERM)
    _, log = await process.communicate()
    assert process.returncode == 0
    for canary in (b"canary", SIGNING_SECRET.encode(), b"session_token=ann"):
        assert canary not in log


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("INTERLOCK_SLACK_SIGNING_SECRET_FILE", "", "required"),
        ("INTERLOCK_SLACK_SIGNING_SECRET_FILE", "blank", "blank"),
        ("INTERLOCK_CSRF_KEY_FILE", "short", "16 characters"),
        ("INTERLOCK_GRANT_KEYS_FILE", "blank", "blank"),
        ("INTERLOCK_PUBLIC_URL", "http://127.0.0.1:1/path", "path"),
        ("INTERLOCK_PUBLIC_URL", "http://interlock.example", "https"),
        ("INTERLOCK_SLACK_APP_ID", "interlock", ""),
        ("INTERLOCK_TRUSTED_PROXIES", "everybody", "networks"),
        ("INTERLOCK_SIGNING_SECRET_FILE", "x", "unknown"),
    ],
)
async def test_a_setting_that_breaks_its_rule_stops_the_start(
    launch: Launch, tmp_path: Path, variable: str, value: str, problem: str
) -> None:
    """EV-24, CF-01, CF-06: exit 78, the variable named, the value never."""
    (tmp_path / "blank").write_text("  ")
    (tmp_path / "short").write_text("canary")
    if value in {"blank", "short"}:
        value = str(tmp_path / value)
    process = await launch.start(**{variable: value})
    _, stderr = await process.communicate()
    assert process.returncode == 78
    assert variable in stderr.decode()
    assert problem in stderr.decode()
    assert b"canary" not in stderr


async def test_a_database_that_is_away_makes_edge_unready_and_nothing_else(
    launch: Launch, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """The process starts without its database and says that it is not ready."""
    away = tmp_path / "away"
    away.write_text(f"postgresql://edge:x@127.0.0.1:{unused_tcp_port_factory()}/gateway")
    process = await launch.start(INTERLOCK_DATABASE_URL_FILE=str(away))
    url = f"http://127.0.0.1:{launch.ops_port}"
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        while True:
            try:
                async with http.get(f"{url}/readyz") as response:
                    assert (response.status, await response.text()) == (
                        503,
                        "DATABASE_UNAVAILABLE\n",
                    )
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
        async with http.get(f"http://127.0.0.1:{launch.port}/work-apps/slack/") as response:
            assert response.status == 200
    process.terminate()
    await process.communicate()
    assert process.returncode == 0
