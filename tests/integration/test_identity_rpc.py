"""Identity over real mTLS gRPC, with a real Postgres and a stand-in auth server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from grpc import aio
from yarl import URL

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import (
    LinkServiceStub,
    OffboardingServiceStub,
    SessionServiceStub,
    SubjectServiceStub,
    WorkspaceServiceStub,
)
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.config import Environment
from interlock_chassis.database import DatabasePlan, create_database
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.__main__ import running
from interlock_identity.config import IdentitySettings
from interlock_identity.domain.agents import Agent
from interlock_identity.migrations import DATABASE
from interlock_identity.rpc import CALLERS
from interlock_sandbox.server import running as sandbox_running
from interlock_sandbox.testing import example_config
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import (
    sign_admin_grant,
    sign_install_grant,
    sign_slack_grant,
    sign_user_token,
)
from interlock_tokens.verifying import (
    verify_admin_grant,
    verify_install_grant,
    verify_slack_grant,
    verify_user_token,
)

AUTH_DATABASE = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=("interlock_auth_reader",),
    migrations="",
)
PEERS = ("gateway-edge", "gateway-worker", "token-vault", "operator", "runner")
TIMEOUT_S = 5.0
TEAM = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
INSTALLATION = "6f2b1d5e-0d5b-4c2e-9a57-3f1f7f0f9d10"
STATE = "ab" * 32


@dataclass
class Keys:
    """Every keyset of an installation, and one of a forger."""

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
        # The same key ids as the genuine ones.
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
class House:
    """A running identity, and every peer's way to call it."""

    keys: Keys
    channels: dict[str, aio.Channel]
    auth_url: str
    http: aiohttp.ClientSession
    owner: "asyncpg.Connection[asyncpg.Record]"
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
        """Ask the stand-in auth server for something that a person would do."""
        url = f"{self.auth_url}/_control/{what}"
        async with self.http.post(url, json=fields) as response:
            assert response.status == 200, await response.text()
            return await response.json()

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

    async def claim(self, person: str = "user_ada", **changes: Any) -> pb.ClaimWorkspaceResponse:
        """Install the app for somebody's tenant, as edge and vault do together."""
        issued = await self.sessions().IssueInstallGrant(
            pb.IssueInstallGrantRequest(
                session=await self.session(person),
                state_sha256=STATE,
                source=pb.INSTALL_SOURCE_DIRECT,
            ),
            timeout=TIMEOUT_S,
        )
        facts: dict[str, Any] = {
            "installation_id": INSTALLATION,
            "slack_team_id": "T0NORTHWIND",
            "slack_app_id": "A0INTERLOCK",
            "name": "Northwind",
            **changes,
        }
        return await self.workspaces("token-vault").ClaimWorkspace(
            pb.ClaimWorkspaceRequest(grant=issued.grant, **facts), timeout=TIMEOUT_S
        )

    async def code(self, email: str = "mia@northwind.example", **changes: Any) -> str:
        """Make a link code for a Slack user, as the worker does."""
        made = await self.links("gateway-worker").CreateLinkCode(
            pb.CreateLinkCodeRequest(
                grant=self.event_grant(**changes), slack_display_name="Mia", slack_email=email
            ),
            timeout=TIMEOUT_S,
        )
        return made.link_code

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

    async def count(self, table: str) -> int:
        """Count the rows of a table."""
        found = await self.owner.fetchval(f"SELECT count(*) FROM identity.{table}")  # noqa: S608 - the test's own words.
        assert isinstance(found, int)
        return found


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Start identity with everything around it."""
    keys = Keys.generate()
    ca = ThrowAwayCa.create(tmp_path / "ca")
    tls = {name: ca.issue(name, tmp_path / name) for name in (*PEERS, "identity")}
    async with AsyncExitStack() as stack:
        urls = await cluster.database(DATABASE)
        owner = await asyncpg.connect(urls.owner.reveal())
        stack.push_async_callback(owner.close)
        auth_owner, auth_reader = await _auth_database(cluster)
        config = example_config(membership_database_url=auth_owner)
        sandbox = await stack.enter_async_context(sandbox_running(config))
        settings = _settings(sandbox.auth, tls["identity"], keys).model_copy(
            update={
                "database_url_file": urls.roles["interlock_identity"],
                "membership_database_url_file": auth_reader,
            }
        )
        port = await stack.enter_async_context(running(settings))
        channels = {
            name: await stack.enter_async_context(
                open_channel(f"127.0.0.1:{port}", tls[name], server="identity")
            )
            for name in PEERS
        }
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield House(keys, channels, sandbox.auth, http, owner)


async def _auth_database(cluster: ScratchDatabases) -> tuple[Secret[str], Secret[str]]:
    roles = (AUTH_DATABASE.owner, *AUTH_DATABASE.roles)
    urls = await create_database(
        cluster.admin_url,
        AUTH_DATABASE,
        {role: Secret(uuid4().hex) for role in roles},
        database=f"interlock_auth_{uuid4().hex}",
    )
    (reader,) = AUTH_DATABASE.roles
    owner = await asyncpg.connect(urls.owner.reveal())
    await owner.execute(f"GRANT USAGE ON SCHEMA public TO {reader}")
    await owner.close()
    return urls.owner, urls.roles[reader]


def _settings(auth_url: str, tls: TlsFiles, keys: Keys) -> IdentitySettings:
    placeholder = Secret("postgresql://role:password@127.0.0.1/database")
    return IdentitySettings(
        environment=Environment.DEVELOPMENT,
        listen="127.0.0.1:0",
        ops_listen="127.0.0.1:0",
        tls_ca_file=tls.ca,
        tls_cert_file=tls.cert,
        tls_key_file=tls.key,
        database_url_file=placeholder,
        membership_database_url_file=placeholder,
        auth_url=URL(auth_url),
        default_agent=Agent("home", "any"),
        **keys.files,
    )


@asynccontextmanager
async def _refused(kind: Kind, reason: str) -> AsyncIterator[None]:
    """Expect a peer's refusal by its kind and reason."""
    with pytest.raises(RemoteError) as refusal, remote_errors():
        yield
    assert (refusal.value.kind, refusal.value.reason) == (kind, reason)


async def _outcome(work: Awaitable[object]) -> str:
    try:
        with remote_errors():
            await work
    except RemoteError as error:
        return error.reason
    return "OK"


# The way through.


async def test_a_mention_becomes_a_token(house: House) -> None:
    """Install, mention, link, resume, run: each step proves itself to the next."""
    claimed = await house.claim()
    assert not claimed.was_claimed
    assert claimed.workspace.slack_team_id == "T0NORTHWIND"
    mention = house.event_grant()
    async with _refused(Kind.PRECONDITION, "USER_NOT_LINKED"):
        await house.subjects().ResolveUser(pb.ResolveUserRequest(grant=mention), timeout=TIMEOUT_S)
    code = await house.code()
    offer = await house.links().DescribeLinkCode(
        pb.DescribeLinkCodeRequest(session=await house.session("user_mia"), link_code=code),
        timeout=TIMEOUT_S,
    )
    assert (offer.slack_user_id, offer.slack_display_name) == ("U0MIA", "Mia")
    assert not offer.emails_differ
    redeemed = await house.redeem("user_mia", code)
    assert not redeemed.was_linked
    for grant in (redeemed.resume_grant, mention):
        resolved = await house.subjects().ResolveUser(
            pb.ResolveUserRequest(grant=grant), timeout=TIMEOUT_S
        )
        assert resolved.user_name == "Mia Castellanos"
        agent = await house.subjects().ResolveAgent(
            pb.ResolveAgentRequest(grant=grant, channel_id="C0HELP"), timeout=TIMEOUT_S
        )
        assert (agent.project_id, agent.source) == ("home", pb.AGENT_SOURCE_OPERATOR)
        issued = await house.token(grant)
        token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
        assert (token.user_id, token.tenant_id) == ("user_mia", "northwind")
        assert (token.slack_team_id, token.slack_user_id) == ("T0NORTHWIND", "U0MIA")
        assert issued.tenant_id == "northwind"
        assert issued.expires_at.ToDatetime(tzinfo=UTC) == token.expires_at


async def test_a_session_says_who_and_what_role(house: House) -> None:
    """The role is the one held now; the reference is stable and not the cookie."""
    request = pb.AuthenticateSessionRequest(session=await house.session("user_ben"))
    first = await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)
    assert (first.user_id, first.email) == ("user_ben", "ben@northwind.example")
    assert (first.tenant_id, first.tenant_name) == ("northwind", "Northwind")
    assert first.role == pb.ROLE_ADMIN
    assert first.session_ref not in request.session.cookie
    await house.control("memberships", person="user_ben", organization="northwind", role="member")
    second = await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)
    assert (second.role, second.session_ref) == (pb.ROLE_MEMBER, first.session_ref)


async def test_an_admin_grant_names_the_workspace_and_one_purpose(house: House) -> None:
    """Edge gets what it asked for, for a workspace that the session's tenant owns."""
    workspace = (await house.claim()).workspace
    issued = await house.sessions().IssueAdminGrant(
        pb.IssueAdminGrantRequest(
            session=await house.session("user_ben"),
            workspace_id=workspace.workspace_id,
            purpose=pb.ADMIN_PURPOSE_AUDIT,
        ),
        timeout=TIMEOUT_S,
    )
    grant = verify_admin_grant(issued.grant, house.keys.identity, now=datetime.now(UTC))
    assert (grant.purpose, grant.workspace) == (AdminPurpose.AUDIT, TEAM)
    assert (grant.tenant_id, grant.user_id) == ("northwind", "user_ben")
    assert issued.workspace == workspace
    listed = await house.workspaces().ListWorkspaces(
        pb.ListWorkspacesRequest(session=await house.session("user_mia")), timeout=TIMEOUT_S
    )
    assert list(listed.workspaces) == [workspace]
    for person, reason in [
        ("user_mia", "ROLE_NOT_SUFFICIENT"),
        ("user_olga", "WORKSPACE_NOT_FOUND"),
    ]:
        request = pb.IssueAdminGrantRequest(
            session=await house.session(person),
            workspace_id=workspace.workspace_id,
            purpose=pb.ADMIN_PURPOSE_AUDIT,
        )
        call = house.sessions().IssueAdminGrant(request, timeout=TIMEOUT_S)
        assert await _outcome(call) == reason


async def test_a_workspace_goes_to_another_tenant_only_after_its_release(house: House) -> None:
    """The second tenant is refused while the first one holds it, and welcome after."""
    first = (await house.claim("user_ada")).workspace
    other = "0d5d9c52-9a7c-4f40-8d43-6a7d7d6c0001"
    async with _refused(Kind.CONFLICT, "WORKSPACE_TAKEN"):
        await house.claim("user_olga", installation_id=other)
    assert (await house.claim("user_ada")).was_claimed
    release = pb.ReleaseWorkspaceRequest(installation_id=INSTALLATION, slack_team_id="T0NORTHWIND")
    vault = house.workspaces("token-vault")
    assert (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed
    assert not (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed
    claimed = await house.claim("user_olga", installation_id=other)
    assert claimed.workspace.workspace_id != first.workspace_id
    # What the vault says late about the first install ends nothing of the second.
    assert not (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed


async def test_an_org_wide_install_has_no_team(house: House) -> None:
    """The Enterprise stands where a team would, and a half-named install is refused."""
    grid: dict[str, Any] = {
        "slack_enterprise_id": "E0GRID",
        "slack_team_id": "",
        "is_enterprise_install": True,
    }
    claimed = await house.claim(**grid)
    assert claimed.workspace.slack_team_id == "E0GRID"
    assert claimed.workspace.is_enterprise_install
    async with _refused(Kind.INVALID, "MALFORMED_WORKSPACE_KEY"):
        await house.claim(**{**grid, "is_enterprise_install": False})
    async with _refused(Kind.INVALID, "MALFORMED_WORKSPACE_KEY"):
        await house.claim(is_enterprise_install=True)
    workspace = Workspace("E0GRID", "", is_enterprise_install=True, app_id="A0INTERLOCK")
    grant: dict[str, Any] = {"workspace": workspace, "slack_user_team_id": "T0GRID1"}
    await house.redeem("user_mia", await house.code(**grant))
    seen_elsewhere = house.event_grant(workspace=workspace, slack_user_team_id="T0GRID2")
    issued = await house.token(seen_elsewhere)
    token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
    assert (token.slack_enterprise_id, token.slack_team_id) == ("E0GRID", "T0GRID2")


async def test_defaults_are_set_and_read(house: House) -> None:
    """What an administrator sets answers the worker, with access where it was given."""
    workspace_id = (await house.claim()).workspace.workspace_id
    await house.redeem("user_mia", await house.code())
    chosen = pb.AgentDefault(project_id="support", agent_id="triage", grant_access_to_members=True)
    await house.workspaces().SetAgentDefault(
        pb.SetAgentDefaultRequest(
            session=await house.session("user_ben"),
            workspace_id=workspace_id,
            channel_id="C0HELP",
            agent_default=chosen,
        ),
        timeout=TIMEOUT_S,
    )
    listed = await house.workspaces().GetAgentDefaults(
        pb.GetAgentDefaultsRequest(
            session=await house.session("user_mia"), workspace_id=workspace_id
        ),
        timeout=TIMEOUT_S,
    )
    assert [(each.channel_id, each.agent_id) for each in listed.defaults] == [("C0HELP", "triage")]
    resolved = await house.subjects().ResolveAgent(
        pb.ResolveAgentRequest(grant=house.event_grant(), channel_id="C0HELP"),
        timeout=TIMEOUT_S,
    )
    assert (resolved.agent_id, resolved.source) == ("triage", pb.AGENT_SOURCE_CHANNEL)
    issued = await house.token(
        house.event_grant(), project_id="support", agent_id="triage", channel_id="C0HELP"
    )
    token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
    assert token.authorization is not None
    assert token.authorization.project_id == "support"


# Link codes.


async def test_an_expired_code_links_nobody(house: House) -> None:
    """A code whose hour is over, by the database's clock, is spent."""
    await house.claim()
    code = await house.code()
    await house.owner.execute(
        "UPDATE identity.work_app_slack_account_link_codes SET expires_at = now()"
    )
    async with _refused(Kind.PRECONDITION, "LINK_CODE_SPENT"):
        await house.redeem("user_mia", code)
    assert await house.count("work_app_slack_user_mappings") == 0


async def test_a_code_works_once(house: House) -> None:
    """The second redeem is refused, also for the same person."""
    await house.claim()
    code = await house.code()
    await house.redeem("user_mia", code)
    for person in ("user_mia", "user_ben"):
        async with _refused(Kind.PRECONDITION, "LINK_CODE_SPENT"):
            await house.redeem(person, code, confirmed=True)
    assert await house.count("work_app_slack_user_mappings") == 1


async def test_of_many_redeems_at_once_one_links(house: House) -> None:
    """Twenty browsers with one code make one link."""
    await house.claim()
    code = await house.code()
    people = ["user_mia", "user_ben"] * 10
    for person in set(people):
        await house.session(person)
    outcomes = await asyncio.gather(
        *(_outcome(house.redeem(person, code, confirmed=True)) for person in people)
    )
    assert sorted(outcomes) == ["LINK_CODE_SPENT"] * 19 + ["OK"]
    assert await house.count("work_app_slack_user_mappings") == 1


async def test_a_member_of_another_tenant_cannot_redeem(house: House) -> None:
    """The code of one tenant is worth nothing in another, and stays usable in its own."""
    await house.claim()
    code = await house.code()
    async with _refused(Kind.FORBIDDEN, "NOT_YOUR_TENANT"):
        await house.redeem("user_olga", code, confirmed=True)
    async with _refused(Kind.FORBIDDEN, "NOT_YOUR_TENANT"):
        await house.links().DescribeLinkCode(
            pb.DescribeLinkCodeRequest(session=await house.session("user_olga"), link_code=code),
            timeout=TIMEOUT_S,
        )
    await house.redeem("user_mia", code)


async def test_different_addresses_take_a_second_confirmation(house: House) -> None:
    """The first redeem is refused and spends nothing."""
    await house.claim()
    code = await house.code(email="someone@northwind.example")
    async with _refused(Kind.PRECONDITION, "EMAIL_MISMATCH"):
        await house.redeem("user_mia", code)
    await house.redeem("user_mia", code, confirmed=True)


async def test_codes_are_rationed_and_say_for_how_long(house: House) -> None:
    """The sixth code of ten minutes is refused with the time to wait."""
    await house.claim()
    for _ in range(5):
        await house.code()
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await house.code()
    assert refusal.value.reason == "TOO_MANY_LINK_CODES"
    assert refusal.value.retry_after is not None
    assert timedelta(minutes=9) < refusal.value.retry_after <= timedelta(minutes=10)


async def test_the_database_never_holds_a_code(house: House) -> None:
    """Only the hash is stored, and what the confirm page showed is erased on use."""
    await house.claim()
    code = await house.code()
    table = "SELECT c::text FROM identity.work_app_slack_account_link_codes AS c"
    before = await house.owner.fetchval(table)
    assert code not in before
    assert "mia@northwind.example" in before
    await house.redeem("user_mia", code)
    after = await house.owner.fetchval(table)
    assert code not in after
    assert "mia@northwind.example" not in after


# Who may do what.


@pytest.mark.parametrize("peer", PEERS)
async def test_a_peer_calls_its_own_rpcs_only(house: House, peer: str) -> None:
    """Edge cannot issue a user token, the worker no grant; whoever is not listed is refused."""
    for method, allowed in CALLERS.items():
        if peer in allowed:
            continue
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = house.channels[peer].unary_unary(method)
        async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
            await call(b"", timeout=TIMEOUT_S)


async def test_the_worker_needs_a_grant(house: House) -> None:
    """A call without one does not reach the use case."""
    await house.claim()
    async with _refused(Kind.INVALID, "INVALID_ARGUMENT"):
        await house.token("")


async def test_a_grant_of_another_family_is_refused(house: House) -> None:
    """What was signed for one purpose opens no other door."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    now = datetime.now(UTC)
    install = sign_install_grant(
        house.keys.identity,
        now=now,
        jti="j1",
        tenant_id="northwind",
        user_id="user_mia",
        state_sha256=STATE,
        source="direct",
    )
    slack_user = sign_user_token(
        house.keys.user_tokens,
        now=now,
        jti="j2",
        user_id="user_mia",
        tenant_id="northwind",
        slack_team_id="T0NORTHWIND",
        slack_user_id="U0MIA",
    )
    for token in (install, slack_user):
        assert await _outcome(house.token(token.reveal())) == "INVALID_TOKEN"
    for purpose in AdminPurpose:
        admin = sign_admin_grant(
            house.keys.identity,
            now=now,
            jti="j3",
            workspace=TEAM,
            tenant_id="northwind",
            user_id="user_mia",
            purpose=purpose,
            slack_user_id="U0MIA" if purpose is AdminPurpose.RESUME else "",
        ).reveal()
        expected = "OK" if purpose is AdminPurpose.RESUME else "PURPOSE_NOT_GRANTED"
        assert await _outcome(house.token(admin)) == expected
        made = house.links("gateway-worker").CreateLinkCode(
            pb.CreateLinkCodeRequest(grant=admin), timeout=TIMEOUT_S
        )
        assert await _outcome(made) == "PURPOSE_NOT_GRANTED"


async def test_the_vault_needs_an_install_grant(house: House) -> None:
    """An event of a workspace does not claim it."""
    claim = pb.ClaimWorkspaceRequest(
        grant=house.event_grant(),
        installation_id=INSTALLATION,
        slack_team_id="T0NORTHWIND",
        slack_app_id="A0INTERLOCK",
    )
    async with _refused(Kind.UNAUTHENTICATED, "INVALID_TOKEN"):
        await house.workspaces("token-vault").ClaimWorkspace(claim, timeout=TIMEOUT_S)
    assert await house.count("work_app_slack_workspaces") == 0


async def test_a_forged_or_expired_grant_is_refused(house: House) -> None:
    """Another key of the same name, an altered text and yesterday's grant all fail alike."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    genuine = house.event_grant()
    assert await _outcome(house.token(genuine)) == "OK"
    head, payload, signature = genuine.split(".")
    swapped = house.event_grant(slack_user_id="U0BEN").split(".")[1]
    yesterday = datetime.now(UTC) - timedelta(minutes=16)
    for token in (
        house.event_grant(house.keys.forger),
        f"{head}.{swapped}.{signature}",
        f"{head}.{payload}.",
        house.event_grant(now=yesterday),
        "x",
    ):
        assert await _outcome(house.token(token)) == "INVALID_TOKEN"


async def test_an_unknown_field_is_refused(house: House) -> None:
    """A request cannot smuggle in a team, for this version or a later one to believe."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    request = pb.IssueUserTokenRequest(grant=house.event_grant()).SerializeToString()
    # Field 5, a text: "T0CONTOSO".
    smuggled = request + b"\x2a\x09T0CONTOSO"
    call: aio.UnaryUnaryMultiCallable[bytes, bytes] = house.channels["gateway-worker"].unary_unary(
        "/interlock.identity.v1.SubjectService/IssueUserToken"
    )
    assert await _outcome(call(request, timeout=TIMEOUT_S)) == "OK"
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await call(smuggled, timeout=TIMEOUT_S)
    assert refusal.value.kind is Kind.INVALID


async def test_strangers_get_neither_code_nor_token(house: House) -> None:
    """Guests and users of connected workspaces are named as such to the worker."""
    await house.claim()
    for changes in ({"is_stranger": True}, {"slack_user_team_id": "T0ELSEWHERE"}):
        async with _refused(Kind.FORBIDDEN, "SLACK_STRANGER"):
            await house.code(**changes)
        async with _refused(Kind.FORBIDDEN, "SLACK_STRANGER"):
            await house.token(house.event_grant(**changes))


async def test_another_tenants_grant_reaches_its_own_workspace_only(house: House) -> None:
    """The same Slack user id under another team is somebody else."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    contoso = Workspace("", "T0CONTOSO", is_enterprise_install=False, app_id="A0INTERLOCK")
    grant: dict[str, Any] = {"workspace": contoso, "slack_user_team_id": "T0CONTOSO"}
    async with _refused(Kind.NOT_FOUND, "WORKSPACE_NOT_FOUND"):
        await house.token(house.event_grant(**grant))
    await house.claim("user_olga", slack_team_id="T0CONTOSO", installation_id=str(uuid4()))
    async with _refused(Kind.PRECONDITION, "USER_NOT_LINKED"):
        await house.token(house.event_grant(**grant))


async def test_a_browser_without_a_session_is_nobody(house: House) -> None:
    """Cookies that are absent, forged, of another name, or more than one prove nothing."""
    genuine = await house.session("user_ada")
    name, _, value = genuine.cookie.partition("=")
    for cookie in (
        f"{name}=forged.c2lnbmF0dXJl",
        f"other={value}",
        f"{name}={value}; admin=1",
        f"{name}={value}\r\nX-Admin: 1",
        "none",
    ):
        request = pb.AuthenticateSessionRequest(session=pb.BrowserSession(cookie=cookie))
        async with _refused(Kind.UNAUTHENTICATED, "NOT_SIGNED_IN"):
            await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)


# Off-boarding.


async def test_a_removed_member_is_out(house: House) -> None:
    """The session still names the organization, but neither it nor a grant is worth anything."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    await house.control("memberships", person="user_mia", organization="northwind", role=None)
    async with _refused(Kind.FORBIDDEN, "NOT_A_MEMBER"):
        await house.sessions().AuthenticateSession(
            pb.AuthenticateSessionRequest(session=await house.session("user_mia")),
            timeout=TIMEOUT_S,
        )
    async with _refused(Kind.FORBIDDEN, "NO_LONGER_A_MEMBER"):
        await house.token(house.event_grant())


async def test_unlinking_ends_tokens_at_once(house: House) -> None:
    """Unlinked in the browser or in Slack, the next token is refused."""
    workspace_id = (await house.claim()).workspace.workspace_id
    await house.redeem("user_mia", await house.code())
    listed = await house.links().ListUserMappings(
        pb.ListUserMappingsRequest(
            session=await house.session("user_mia"), workspace_id=workspace_id
        ),
        timeout=TIMEOUT_S,
    )
    (mapping,) = listed.mappings
    assert (mapping.user_email, mapping.HasField("last_used_at")) == (
        "mia@northwind.example",
        False,
    )
    unlink = pb.UnlinkRequest(
        session=await house.session("user_mia"), mapping_id=mapping.mapping_id
    )
    await house.links().Unlink(unlink, timeout=TIMEOUT_S)
    assert await _outcome(house.token(house.event_grant())) == "USER_NOT_LINKED"
    assert await _outcome(house.links().Unlink(unlink, timeout=TIMEOUT_S)) == "MAPPING_NOT_FOUND"
    await house.redeem("user_mia", await house.code())
    itself = pb.UnlinkSelfRequest(grant=house.event_grant())
    worker = house.links("gateway-worker")
    assert (await worker.UnlinkSelf(itself, timeout=TIMEOUT_S)).was_linked
    assert not (await worker.UnlinkSelf(itself, timeout=TIMEOUT_S)).was_linked
    assert await _outcome(house.token(house.event_grant())) == "USER_NOT_LINKED"


async def test_links_are_listed_in_pages(house: House) -> None:
    """A page token leads on, and only one that was given out does."""
    workspace_id = (await house.claim()).workspace.workspace_id
    for number, person in enumerate(("user_mia", "user_ben", "user_mia")):
        user = {"slack_user_id": f"U0USER{number}"}
        await house.redeem(person, await house.code(**user), confirmed=True)

    async def page(token: str) -> pb.ListUserMappingsResponse:
        request = pb.ListUserMappingsRequest(
            session=await house.session("user_ada"),
            workspace_id=workspace_id,
            page_size=2,
            page_token=token,
        )
        return await house.links().ListUserMappings(request, timeout=TIMEOUT_S)

    first = await page("")
    second = await page(first.next_page_token)
    shown = [each.slack_user_id for each in (*first.mappings, *second.mappings)]
    assert shown == ["U0USER2", "U0USER1", "U0USER0"]
    assert second.next_page_token == ""
    for token in ("x", "e30=", "WzEsMl0=", "W10=", "\u00e9"):
        assert await _outcome(page(token)) == "INVALID_PAGE_TOKEN"


async def test_an_operator_forgets_a_person_and_an_organization(house: House) -> None:
    """Nothing of them is left."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    forgotten = await house.offboarding().ForgetUser(
        pb.ForgetUserRequest(user_id="user_mia"), timeout=TIMEOUT_S
    )
    assert forgotten.mappings_removed == 1
    await house.redeem("user_mia", await house.code())
    forgotten_all = await house.offboarding().ForgetOrganization(
        pb.ForgetOrganizationRequest(tenant_id="northwind"), timeout=TIMEOUT_S
    )
    assert forgotten_all.mappings_removed == 1
    for table in ("workspaces", "account_link_codes", "user_mappings", "agent_defaults"):
        assert await house.count(f"work_app_slack_{table}") == 0


# Renewals.


async def test_a_renewed_grant_is_as_good_as_the_event(house: House) -> None:
    """An expired grant of a young event is renewed, an old one is not, a forged one never."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    now = datetime.now(UTC)

    async def renew(grant: str) -> pb.RenewGrantResponse:
        request = pb.RenewGrantRequest(grant=grant)
        return await house.subjects().RenewGrant(request, timeout=TIMEOUT_S)

    expired = house.event_grant(now=now - timedelta(hours=23))
    renewed = await renew(expired)
    keys = house.keys.identity
    assert verify_slack_grant(renewed.grant, keys, now=datetime.now(UTC)).renewed
    assert await _outcome(house.token(expired)) == "INVALID_TOKEN"
    assert await _outcome(house.token(renewed.grant)) == "OK"
    assert await _outcome(renew(renewed.grant)) == "OK"
    old = house.event_grant(now=now - timedelta(hours=24))
    assert await _outcome(renew(old)) == "EVENT_TOO_OLD"
    forged = house.event_grant(house.keys.forger)
    assert await _outcome(renew(forged)) == "INVALID_TOKEN"
    release = pb.ReleaseWorkspaceRequest(installation_id=INSTALLATION, slack_team_id="T0NORTHWIND")
    await house.workspaces("token-vault").ReleaseWorkspace(release, timeout=TIMEOUT_S)
    assert await _outcome(renew(house.event_grant())) == "WORKSPACE_RELEASED"


async def test_an_install_grant_says_what_edge_may_complete(house: House) -> None:
    """Tenant, account, state and source come out as they went in; members get none."""
    request = pb.IssueInstallGrantRequest(
        session=await house.session("user_ada"),
        state_sha256=STATE,
        source=pb.INSTALL_SOURCE_NANGO,
    )
    issued = await house.sessions().IssueInstallGrant(request, timeout=TIMEOUT_S)
    grant = verify_install_grant(issued.grant, house.keys.identity, now=datetime.now(UTC))
    assert (grant.tenant_id, grant.user_id) == (issued.tenant_id, "user_ada")
    assert (grant.state_sha256, grant.source) == (STATE, "nango")
    request.session.CopyFrom(await house.session("user_mia"))
    call = house.sessions().IssueInstallGrant(request, timeout=TIMEOUT_S)
    assert await _outcome(call) == "ROLE_NOT_SUFFICIENT"
