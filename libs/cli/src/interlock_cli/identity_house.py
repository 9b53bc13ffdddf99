"""A running identity with everything around it, for tests and benchmarks.

Real mTLS gRPC, a real Postgres, the sandbox's auth server with its member
table, and a small Manage API. All keys are made for the occasion.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
from aiohttp import web
from grpc import aio
from yarl import URL

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import (
    AuditServiceStub,
    LinkServiceStub,
    OffboardingServiceStub,
    SessionServiceStub,
    SubjectServiceStub,
    WorkspaceServiceStub,
)
from interlock_chassis.client import open_channel
from interlock_chassis.config import Environment
from interlock_chassis.database import DatabasePlan, DatabaseUrls, create_database
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.__main__ import Running, running
from interlock_identity.config import IdentitySettings
from interlock_identity.domain.agents import Agent
from interlock_identity.migrations import DATABASE
from interlock_sandbox.server import running as sandbox_running
from interlock_sandbox.testing import example_config
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import Family
from interlock_tokens.grants import Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import sign_slack_grant
from interlock_tokens.verifying import verify_user_token

PEERS = ("gateway-edge", "gateway-worker", "token-vault", "operator", "runner")
TEAM = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
INSTALLATION = "6f2b1d5e-0d5b-4c2e-9a57-3f1f7f0f9d10"
STATE = "ab" * 32
TIMEOUT_S = 5.0
MIAS_EMAIL = "mia@northwind.example"
OPERATORS_AGENT = Agent("home", "any")

_AUTH_DATABASE = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=("interlock_auth_reader",),
    migrations="",
)


@dataclass
class Keys:
    """Every keyset of an installation, and one of a forger with the same key ids."""

    edge: Keyset
    identity: Keyset
    user_tokens: Keyset
    forger: Keyset
    files: dict[str, Any]

    @classmethod
    def generate(cls) -> "Keys":
        """Make new keys for everybody."""
        grants = [Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT]
        edge = _document(generate_ed25519_key("edge-1", [Family.SLACK_GRANT]))
        identity = _document(generate_ed25519_key("identity-1", grants))
        user_tokens = _document(generate_hs256_key("user-1", [Family.SLACK_USER]))
        forger = Keyset.join(
            _keyset(_document(generate_ed25519_key("edge-1", [Family.SLACK_GRANT]))),
            _keyset(_document(generate_ed25519_key("identity-1", grants))),
        )
        public = Keyset.join(_keyset(edge), _keyset(identity)).public()
        files: dict[str, Any] = {
            "grant_keys_file": identity,
            "grant_public_keys_file": Secret(public),
            "user_token_keys_file": user_tokens,
        }
        return cls(_keyset(edge), _keyset(identity), _keyset(user_tokens), forger, files)


def _document(key: dict[str, object]) -> Secret[str]:
    return Secret(json.dumps({"keys": [key]}))


def _keyset(document: Secret[str]) -> Keyset:
    return Keyset.from_json(document, variable="KEYS")


@dataclass
class ManagePlatform:
    """A Manage API that takes the auth server's session, or a user token, as the real one does.

    Attributes:
        user_tokens: What it verifies tokens with.
        auth_url: The auth server that knows the sessions.
        agents: The agents that everybody sees, by tenant.
        members: Who is in a tenant, by tenant and user.
        status: Answer this instead of what was asked for; 0 answers that.
        asked: How often it was asked.
        tokens: The bearer tokens it was shown.
    """

    user_tokens: Keyset
    auth_url: str = ""
    url: str = ""
    agents: set[tuple[str, Agent]] = field(default_factory=set)
    members: set[tuple[str, str]] = field(default_factory=set)
    status: int = 0
    asked: int = 0
    tokens: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ManagePlatform"]:
        """Serve it on a free port."""
        app = web.Application()
        projects = "/manage/tenants/{tenant}/projects"
        app.router.add_get(projects, self._list_projects)
        app.router.add_get(projects + "/{project}/agents", self._list_agents)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _list_projects(self, request: web.Request) -> web.Response:
        if status := await self._refusal(request):
            return web.json_response({"code": "forbidden"}, status=status)
        return web.json_response({"data": [], "pagination": {"total": 0}})

    async def _list_agents(self, request: web.Request) -> web.Response:
        if status := await self._refusal(request):
            return web.json_response({"code": "forbidden"}, status=status)
        wanted = (request.match_info["tenant"], request.match_info["project"])
        found = sorted(
            agent.agent_id for tenant, agent in self.agents if (tenant, agent.project_id) == wanted
        )
        page, limit = int(request.query["page"]), int(request.query["limit"])
        rows = [{"id": each} for each in found[(page - 1) * limit : page * limit]]
        return web.json_response({"data": rows, "pagination": {"total": len(found)}})

    async def _refusal(self, request: web.Request) -> int:
        """Return the status of a refusal; 0 for none."""
        self.asked += 1
        if self.status:
            return self.status
        tenant_id = request.match_info["tenant"]
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            self.tokens.append(token)
            try:
                user = verify_user_token(token, self.user_tokens, now=datetime.now(UTC))
            except InvalidToken:
                return HTTPStatus.UNAUTHORIZED
            is_member = (tenant_id, user.user_id) in self.members
            return 0 if is_member and user.tenant_id == tenant_id else HTTPStatus.FORBIDDEN
        session = await self._session(request)
        if session is None:
            return HTTPStatus.UNAUTHORIZED
        active = session["session"]["activeOrganizationId"]
        return 0 if active == tenant_id else HTTPStatus.FORBIDDEN

    async def _session(self, request: web.Request) -> dict[str, Any] | None:
        headers = {"Cookie": request.headers.get("Cookie", "")}
        url = f"{self.auth_url}/api/auth/get-session"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
            found: dict[str, Any] | None = await answer.json()
            return found


@dataclass
class House:
    """A running identity, and every peer's way to call it.

    Attributes:
        keys: Everybody's keys.
        identity: The running process's parts.
        channels: A channel for each peer.
        auth_url: The auth server.
        http: For whatever a person does there.
        owner: Identity's database, as its owner.
        urls: Identity's database.
        manage: The agents platform's Manage API.
        settings: What identity was told.
        tls: The certificates, by name.
    """

    keys: Keys
    identity: Running
    channels: dict[str, aio.Channel]
    auth_url: str
    http: aiohttp.ClientSession
    owner: "asyncpg.Connection[asyncpg.Record]"
    urls: DatabaseUrls
    manage: ManagePlatform
    settings: IdentitySettings
    tls: dict[str, TlsFiles]
    cookies: dict[str, str] = field(default_factory=dict)

    def sessions(self, caller: str = "gateway-edge") -> SessionServiceStub:
        """Call `SessionService` as a peer."""
        return SessionServiceStub(self.channels[caller])

    def links(self, caller: str = "gateway-edge") -> LinkServiceStub:
        """Call `LinkService` as a peer."""
        return LinkServiceStub(self.channels[caller])

    def workspaces(self, caller: str = "gateway-edge") -> WorkspaceServiceStub:
        """Call `WorkspaceService` as a peer."""
        return WorkspaceServiceStub(self.channels[caller])

    def subjects(self, caller: str = "gateway-worker") -> SubjectServiceStub:
        """Call `SubjectService` as a peer."""
        return SubjectServiceStub(self.channels[caller])

    def audit(self, caller: str = "operator") -> AuditServiceStub:
        """Call `AuditService` as a peer."""
        return AuditServiceStub(self.channels[caller])

    def offboarding(self, caller: str = "operator") -> OffboardingServiceStub:
        """Call `OffboardingService` as a peer."""
        return OffboardingServiceStub(self.channels[caller])

    async def session(self, person: str) -> pb.BrowserSession:
        """Sign somebody in, once."""
        if person not in self.cookies:
            shown = await self.control("sign-in", person=person)
            self.cookies[person] = f"{shown['name']}={shown['value']}"
        return pb.BrowserSession(cookie=self.cookies[person], client_address="203.0.113.9")

    async def control(self, what: str, **fields: object) -> Any:
        """Ask the stand-in auth server for something that a person would do.

        Raises:
            RuntimeError: It refused.
        """
        url = f"{self.auth_url}/_control/{what}"
        async with self.http.post(url, json=fields) as response:
            if response.status != HTTPStatus.OK:
                raise RuntimeError(await response.text())
            return await response.json()

    async def leave(self, person: str, organization: str = "northwind") -> None:
        """Remove somebody from an organization, at the auth server."""
        await self.control("memberships", person=person, organization=organization, role=None)

    def event_grant(self, keyset: Keyset | None = None, **changes: Any) -> str:
        """Sign the grant of an event, as edge does."""
        now = changes.pop("now", datetime.now(UTC))
        claims: dict[str, Any] = {
            "workspace": TEAM,
            "slack_user_id": "U0MIA",
            "slack_user_team_id": "T0NORTHWIND",
            "event_key": "Ev1",
            "event_type": "app_mention",
            "body_sha256": "cd" * 32,
            "event_at": now,
            "is_stranger": False,
            **changes,
        }
        signed = sign_slack_grant(keyset or self.keys.edge, now=now, jti=uuid4().hex, **claims)
        return signed.reveal()

    async def install_grant(self, person: str = "user_ada") -> str:
        """Start an install as somebody."""
        issued = await self.sessions().IssueInstallGrant(
            pb.IssueInstallGrantRequest(
                session=await self.session(person),
                state_sha256=STATE,
                source=pb.INSTALL_SOURCE_DIRECT,
            ),
            timeout=TIMEOUT_S,
        )
        return issued.grant

    async def claim(self, person: str = "user_ada", **changes: Any) -> pb.ClaimWorkspaceResponse:
        """Install the app for somebody's tenant, as edge and vault do together."""
        facts: dict[str, Any] = {
            "installation_id": INSTALLATION,
            "slack_team_id": "T0NORTHWIND",
            "slack_app_id": "A0INTERLOCK",
            "name": "Northwind",
            **changes,
        }
        request = pb.ClaimWorkspaceRequest(grant=await self.install_grant(person), **facts)
        return await self.workspaces("token-vault").ClaimWorkspace(request, timeout=TIMEOUT_S)

    async def release(self) -> bool:
        """Uninstall the app, as the vault says it."""
        request = pb.ReleaseWorkspaceRequest(
            installation_id=INSTALLATION, slack_team_id="T0NORTHWIND"
        )
        vault = self.workspaces("token-vault")
        return (await vault.ReleaseWorkspace(request, timeout=TIMEOUT_S)).was_claimed

    async def code(self, email: str = MIAS_EMAIL, **changes: Any) -> str:
        """Make a link code for a Slack user, as the worker does."""
        made = await self.links("gateway-worker").CreateLinkCode(
            pb.CreateLinkCodeRequest(
                grant=self.event_grant(**changes), slack_display_name="Mia", slack_email=email
            ),
            timeout=TIMEOUT_S,
        )
        return made.link_code

    async def describe(self, person: str, code: str) -> pb.DescribeLinkCodeResponse:
        """Look at a link code, as edge does for a browser."""
        request = pb.DescribeLinkCodeRequest(session=await self.session(person), link_code=code)
        return await self.links().DescribeLinkCode(request, timeout=TIMEOUT_S)

    async def redeem(
        self, person: str, code: str, *, confirmed: bool = False
    ) -> pb.RedeemLinkCodeResponse:
        """Redeem a link code, as edge does for a browser."""
        request = pb.RedeemLinkCodeRequest(
            session=await self.session(person),
            link_code=code,
            email_difference_confirmed=confirmed,
        )
        return await self.links().RedeemLinkCode(request, timeout=TIMEOUT_S)

    async def token(self, grant: str, **fields: Any) -> pb.IssueUserTokenResponse:
        """Ask for a user token, as the worker does."""
        request = pb.IssueUserTokenRequest(grant=grant, **fields)
        return await self.subjects().IssueUserToken(request, timeout=TIMEOUT_S)

    async def renew(self, grant: str) -> pb.RenewGrantResponse:
        """Renew an event's grant, as the worker does."""
        request = pb.RenewGrantRequest(grant=grant)
        return await self.subjects().RenewGrant(request, timeout=TIMEOUT_S)

    async def count(self, table: str) -> int:
        """Count the rows of a table of identity."""
        found: int = await self.owner.fetchval(
            f"SELECT count(*) FROM identity.{table}"  # noqa: S608 - The caller's own words.
        )
        return found

    async def refusals(self) -> list[tuple[str, str]]:
        """List the caller and the reason of every refusal on record, oldest first."""
        rows = await self.owner.fetch(
            "SELECT caller, outcome FROM identity.audit_events WHERE event = 'call.refused'"
            " ORDER BY id"
        )
        return [(row["caller"], row["outcome"]) for row in rows]


@asynccontextmanager
async def open_house(
    cluster: ScratchDatabases, folder: Path, **changes: Any
) -> AsyncIterator[House]:
    """Start identity and everything around it.

    Args:
        cluster: Where the databases are made.
        folder: For certificates.
        changes: Settings of identity to set otherwise.
    """
    keys = Keys.generate()
    ca = await asyncio.to_thread(ThrowAwayCa.create, folder / "ca")
    tls = {name: ca.issue(name, folder / name) for name in (*PEERS, "identity")}
    async with AsyncExitStack() as stack:
        urls = await cluster.database(DATABASE)
        owner = await asyncpg.connect(urls.owner.reveal())
        stack.push_async_callback(owner.close)
        auth_owner, auth_reader = await _auth_database(cluster)
        config = example_config(membership_database_url=auth_owner)
        sandbox = await stack.enter_async_context(sandbox_running(config))
        platform = ManagePlatform(keys.user_tokens, sandbox.auth)
        platform.agents.add(("northwind", OPERATORS_AGENT))
        manage = await stack.enter_async_context(platform.serving())
        settings = IdentitySettings(
            environment=Environment.DEVELOPMENT,
            listen="127.0.0.1:0",
            ops_listen="127.0.0.1:0",
            tls_ca_file=tls["identity"].ca,
            tls_cert_file=tls["identity"].cert,
            tls_key_file=tls["identity"].key,
            database_url_file=urls.roles["interlock_identity"],
            auth_url=URL(sandbox.auth),
            membership_database_url_file=auth_reader,
            manage_url=URL(manage.url),
            manage_path_style="tenant",
            default_agent=OPERATORS_AGENT,
            **keys.files,
        ).model_copy(update=changes)
        identity = await stack.enter_async_context(running(settings))
        channels = {
            name: await stack.enter_async_context(
                open_channel(f"127.0.0.1:{identity.port}", tls[name], server="identity")
            )
            for name in PEERS
        }
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield House(
            keys, identity, channels, sandbox.auth, http, owner, urls, manage, settings, tls
        )


async def _auth_database(cluster: ScratchDatabases) -> tuple[Secret[str], Secret[str]]:
    """Make the auth server's database; return its owner's URL and its reader's."""
    urls = await create_database(
        cluster.admin_url,
        _AUTH_DATABASE,
        {role: Secret(uuid4().hex) for role in (_AUTH_DATABASE.owner, *_AUTH_DATABASE.roles)},
        database=f"interlock_auth_{uuid4().hex}",
    )
    (reader,) = _AUTH_DATABASE.roles
    owner = await asyncpg.connect(urls.owner.reveal())
    await owner.execute(f"GRANT USAGE ON SCHEMA public TO {reader}")
    await owner.close()
    return urls.owner, urls.roles[reader]
