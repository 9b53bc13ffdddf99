"""The vault over real mTLS gRPC, with a real Postgres and a stand-in Slack and identity."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest
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
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.__main__ import running
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.adapters.memory import FakeKms
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.domain.install import WorkspaceTaken
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_admin_grant, sign_install_grant, sign_slack_grant

if TYPE_CHECKING:
    from asyncpg import Connection, Record

CLIENT_ID, CLIENT_SECRET = "1111.2222", "example-client-secret"
SCOPES = ("chat:write", "commands")
REDIRECT = "https://interlock.example/work-apps/slack/oauth_redirect"
NORTHWIND = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
CONTOSO = Workspace("", "T0CONTOSO", is_enterprise_install=False, app_id="A0INTERLOCK")
GRID = Workspace("E0GRID", "", is_enterprise_install=True, app_id="A0INTERLOCK")
TIMEOUT_S = 10.0
IDENTITY = "interlock.identity.v1.WorkspaceService"
VAULT = "interlock.token_vault.v1"
PEERS = ("gateway-edge", "gateway-worker", "runner", "identity", "operator", "app/reports")


@dataclass
class Slack:
    """Slack's three methods over HTTP; answers by code and by token."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    living: dict[str, dict[str, Any]] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    exchanges: int = 0

    def app(self) -> web.Application:
        """Return the application that serves them."""
        app = web.Application()
        app.router.add_post("/api/oauth.v2.access", self._exchange)
        app.router.add_post("/api/auth.test", self._test)
        app.router.add_post("/api/auth.revoke", self._revoke)
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
        if request.headers["Authorization"] != encode_basic_auth(CLIENT_ID, CLIENT_SECRET):
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


def _bearer(request: web.Request) -> str:
    return request.headers["Authorization"].removeprefix("Bearer ")


class Identity(identity_pb2_grpc.WorkspaceServiceServicer):
    """Identity's claims: the first tenant of a workspace keeps it."""

    def __init__(self, tenant_of: Mapping[str, str]) -> None:
        self.tenant_of = tenant_of
        self.claims: dict[tuple[str, str], str] = {}
        self.error: ServiceError | None = None

    async def ClaimWorkspace(  # noqa: N802 - gRPC's name.
        self, request: identity_pb2.ClaimWorkspaceRequest, context: object
    ) -> identity_pb2.ClaimWorkspaceResponse:
        """Claim, or say that the workspace is taken."""
        if self.error is not None:
            raise self.error
        place = (request.slack_enterprise_id, request.slack_team_id)
        tenant = self.tenant_of[request.grant]
        was_claimed = place in self.claims
        if self.claims.setdefault(place, tenant) != tenant:
            raise WorkspaceTaken
        return identity_pb2.ClaimWorkspaceResponse(was_claimed=was_claimed)


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
    channels: Mapping[str, aio.Channel]
    edge_keys: Keyset
    identity_keys: Keyset
    kms: WatchedKms
    slack: Slack
    identity: Identity
    tenant_of: dict[str, str]
    admin: "Connection[Record]"
    numbers: "count[int]" = field(default_factory=lambda: count(1))

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
        self, workspace: Workspace = NORTHWIND, *, age: timedelta = timedelta(0)
    ) -> str:
        """Sign a slackGrant as edge does, some time ago."""
        now = datetime.now(UTC) - age
        return sign_slack_grant(
            self.edge_keys,
            now=now,
            jti=f"event-{next(self.numbers)}",
            workspace=workspace,
            slack_user_id="U0MIA",
            slack_user_team_id=workspace.team_id,
            event_key="Ev0",
            event_type="app_mention",
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

    def install_grant(self, tenant: str = "northwind") -> str:
        """Sign an installGrant as identity does."""
        grant = sign_install_grant(
            self.identity_keys,
            now=datetime.now(UTC),
            jti=f"install-{next(self.numbers)}",
            tenant_id=tenant,
            user_id="user-ada",
            state_sha256="b" * 64,
            source="direct",
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
    """Say how a call is refused."""
    with pytest.raises(RemoteError) as refused:
        await call
    return refused.value.kind, refused.value.reason


def _keyset(kid: str, *families: Family) -> Keyset:
    document = json.dumps({"keys": [generate_ed25519_key(kid, families)]})
    return Keyset.from_json(Secret(document), variable="KEYS")


@asynccontextmanager
async def _serving_identity(
    identity: Identity, ca: ThrowAwayCa, folder: Path
) -> AsyncIterator[int]:
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


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    ca = ThrowAwayCa.create(tmp_path / "ca")
    edge_keys = _keyset("edge-1", Family.SLACK_GRANT)
    identity_keys = _keyset(
        "identity-1", Family.ADMIN_GRANT, Family.INSTALL_GRANT, Family.RENEWED_GRANT
    )
    urls = await cluster.database(DATABASE)
    tenant_of: dict[str, str] = {}
    slack, kms = Slack(), WatchedKms()
    identity = Identity(tenant_of)  # type: ignore[abstract] # The vault calls no more of it.
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(slack.app(), host="127.0.0.1"))
        identity_port = await stack.enter_async_context(
            _serving_identity(identity, ca, tmp_path / "tls")
        )
        tls = ca.issue("token-vault", tmp_path / "tls")
        settings = VaultSettings(
            environment=Environment.DEVELOPMENT,
            listen="127.0.0.1:0",
            ops_listen="127.0.0.1:0",
            tls_ca_file=tls.ca,
            tls_cert_file=tls.cert,
            tls_key_file=tls.key,
            database_url_file=urls.roles[VAULT_ROLE],
            slack_client_id=CLIENT_ID,
            slack_client_secret_file=Secret(CLIENT_SECRET),
            slack_api_url=URL(str(server.make_url("/api/"))),
            slack_url=URL("https://slack.example"),
            slack_bot_scopes=SCOPES,
            grant_public_keys_file=Secret(Keyset.join(edge_keys, identity_keys).public()),
            kms="local",
            local_keyset_file=tmp_path / "unused",
            fingerprint_key_file=Secret("f" * 32),
            identity_address=f"127.0.0.1:{identity_port}",
        )
        port = await stack.enter_async_context(running(settings, kms))
        channels = {
            peer: await stack.enter_async_context(
                open_channel(
                    f"127.0.0.1:{port}", ca.issue(peer, tmp_path / "tls"), server="token-vault"
                )
            )
            for peer in PEERS
        }
        admin = await asyncpg.connect(
            cluster.admin_url.reveal(), database=urlsplit(urls.owner.reveal()).path.strip("/")
        )
        stack.push_async_callback(admin.close)
        yield House(
            settings, channels, edge_keys, identity_keys, kms, slack, identity, tenant_of, admin
        )


async def test_an_install_ends_in_a_readable_token(house: House) -> None:
    """From a grant and a code to the token in the worker's hands, recorded on the way."""
    installed = await house.install("xoxb-northwind")
    assert installed.installation.team_id == "T0NORTHWIND"
    assert installed.installation.name == "Northwind"
    assert list(installed.installation.bot_scopes) == list(SCOPES)
    assert installed.installation.HasField("installed_at")
    assert not installed.is_reinstall
    grant = house.slack_grant()
    released = await house.read(grant)
    assert released.bot_token == "xoxb-northwind"
    assert released.generation == 1
    assert released.bot_user_id == "U0BOT"
    assert not released.HasField("expires_at")
    (record,) = await house.records("token.read")
    assert record["actor"] == "gateway-worker"
    assert record["rpc"] == f"/{VAULT}.TokenService/ReadBotToken"
    assert record["purpose"] == "app_mention"
    assert record["grant_id"].startswith("event-")
    assert record["subject"] == "U0MIA"
    assert record["outcome"] == "allowed"
    assert str(record["installation_id"]) == installed.installation.installation_id
    assert record["request_id"]


async def test_a_repeated_completion_answers_the_same_installation(house: House) -> None:
    """A lost answer costs nothing: the same grant and code again, one exchange in all."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    grant = house.install_grant()
    first = await house.complete(grant, "code")
    assert await house.complete(grant, "code") == first
    assert house.slack.exchanges == 1


async def test_an_org_wide_install_answers_only_for_its_enterprise(house: House) -> None:
    """EV-52: the key is the Enterprise alone; a team of it is another installation."""
    await house.install("xoxb-grid", GRID)
    assert (await house.read(house.slack_grant(GRID))).bot_token == "xoxb-grid"
    team = replace(GRID, team_id="T0GRID1", is_enterprise_install=False)
    assert await refusal(house.read(house.slack_grant(team))) == (
        Kind.NOT_FOUND,
        "INSTALLATION_NOT_FOUND",
    )


async def test_a_reinstall_raises_the_generation(house: House) -> None:
    """The same tenant again: same installation, new token, next generation."""
    first = await house.install("xoxb-1")
    second = await house.install("xoxb-2")
    assert second.is_reinstall
    assert second.installation.installation_id == first.installation.installation_id
    released = await house.read(house.slack_grant())
    assert (released.bot_token, released.generation) == ("xoxb-2", 2)


async def test_a_workspace_of_another_tenant_stays_as_it_is(house: House) -> None:
    """OA-10: 409 for the newcomer; the rightful rows are byte-identical, its token lives."""
    await house.install("xoxb-1")
    before = await _everything(house)
    for token, revoked in (("xoxb-1", []), ("xoxb-2", ["xoxb-2"])):
        assert await refusal(house.install(token, NORTHWIND, "contoso")) == (
            Kind.CONFLICT,
            "WORKSPACE_TAKEN",
        )
        assert house.slack.revoked == revoked
    assert await _everything(house) == before
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-1"


async def _everything(house: House) -> list[list[str]]:
    return [
        [row[0] for row in await house.admin.fetch(f"SELECT t::text FROM vault.{table} t")]  # noqa: S608 - Our own names.
        for table in ("installation", "sealed_token", "wrapped_dek")
    ]


async def test_missing_scopes_are_named(house: House) -> None:
    """OA-11: the page that says what is missing can be written from the error."""
    house.slack.give("code", "xoxb-1", NORTHWIND, scope="chat:write")
    with pytest.raises(RemoteError) as refused:
        await house.complete(house.install_grant(), "code")
    assert (refused.value.kind, refused.value.reason) == (Kind.PRECONDITION, "SCOPES_MISSING")
    assert refused.value.metadata["missing_scopes"] == "commands"
    assert house.slack.revoked == ["xoxb-1"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"access_token": None}, "SLACK_ANSWER_UNUSABLE"),
        ({"team": None}, "SLACK_ANSWER_UNUSABLE"),
        ({"token_type": "user"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": "true"}, "SLACK_ANSWER_UNUSABLE"),
        ({"team": "T0NORTHWIND"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": False, "error": "invalid_code"}, "OAUTH_CODE_REFUSED"),
        ({"ok": False, "error": "code_already_used"}, "OAUTH_CODE_REFUSED"),
        ({"ok": False, "error": "bad_redirect_uri"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": False, "error": "fatal_error"}, "SLACK_UNAVAILABLE"),
    ],
)
async def test_answers_of_no_use_store_nothing(
    house: House, changes: dict[str, Any], expected: str
) -> None:
    """OA-09, OA-12: what Slack says wrongly, or refuses, makes no installation."""
    house.slack.give("code", "xoxb-1", NORTHWIND, **changes)
    assert (await refusal(house.complete(house.install_grant(), "code")))[1] == expected
    assert (await _everything(house))[:2] == [[], []]


async def test_the_edge_may_not_read_a_token(house: House) -> None:
    """I14: the process that faces the internet is refused, and the attempt is on record."""
    await house.install("xoxb-northwind")
    assert await refusal(house.read(house.slack_grant(), "gateway-edge")) == (
        Kind.FORBIDDEN,
        "CALLER_NOT_ALLOWED",
    )
    (record,) = await house.records("call.refused")
    assert record["actor"] == "gateway-edge"
    assert record["rpc"] == f"/{VAULT}.TokenService/ReadBotToken"
    assert record["outcome"] == "CALLER_NOT_ALLOWED"
    assert house.unwraps == 0


async def test_a_service_that_is_no_app_may_not_save_installations(house: House) -> None:
    """GV-02: a certificate of ours is not enough; it must be a listed one."""
    store = services.InstallationStoreServiceStub(house.channels["runner"])
    call = store.SaveBot(pb.SaveBotRequest(bot=pb.BotRecord()), timeout=5)
    assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
    assert [record["actor"] for record in await house.records("call.refused")] == ["runner"]


async def test_a_worker_without_a_grant_gets_nothing(house: House) -> None:
    """GV-04: being the worker is not enough, and the attempt is on record."""
    await house.install("xoxb-northwind")
    assert (await refusal(house.read("")))[0] is Kind.INVALID
    assert [each["outcome"] for each in await house.records("call.refused")] == ["INVALID_ARGUMENT"]
    assert house.unwraps == 0


async def test_grants_that_do_not_verify_are_refused_and_recorded(house: House) -> None:
    """GV-04, GV-06, I12: expired, forged, changed, or of another family: one same refusal."""
    await house.install("xoxb-northwind")
    forger = replace(house, edge_keys=_keyset("edge-1", Family.SLACK_GRANT))
    unknown = replace(house, edge_keys=_keyset("edge-9", Family.SLACK_GRANT))
    good = house.slack_grant()
    head, body, signature = good.split(".")
    flipped = ("B" if signature[9] == "A" else "A").join((signature[:9], signature[10:]))
    refused = [
        house.slack_grant(age=timedelta(minutes=16)),
        forger.slack_grant(),
        unknown.slack_grant(),
        f"{head}.{body}.{flipped}",
        f"eyJhbGciOiJub25lIn0.{body}.",
        house.install_grant(),
        "not a token",
    ]
    for grant in refused:
        assert await refusal(house.read(grant)) == (Kind.UNAUTHENTICATED, "INVALID_TOKEN")
    assert house.unwraps == 0
    # The first of them, and, once the second is over, one record for all others.
    recorded = await house.records("call.refused")
    assert {record["outcome"] for record in recorded} == {"INVALID_TOKEN"}
    assert {record["actor"] for record in recorded} == {"gateway-worker"}


@pytest.mark.parametrize(
    "purpose", [AdminPurpose.AUDIT, AdminPurpose.UNINSTALL, AdminPurpose.REPLAY]
)
async def test_an_admin_grant_opens_no_token_beyond_its_purpose(
    house: House, purpose: AdminPurpose
) -> None:
    """A grant to look at the log, say, is none to read a token."""
    await house.install("xoxb-northwind")
    assert await refusal(house.read(house.admin_grant(purpose))) == (
        Kind.FORBIDDEN,
        "PURPOSE_NOT_GRANTED",
    )
    assert [each["outcome"] for each in await house.records("call.refused")] == [
        "PURPOSE_NOT_GRANTED"
    ]
    assert house.unwraps == 0


@pytest.mark.parametrize(
    "purpose",
    [
        AdminPurpose.HEALTH,
        AdminPurpose.CHANNELS,
        AdminPurpose.TEST_MESSAGE,
        AdminPurpose.NOTICE,
        AdminPurpose.RESUME,
    ],
)
async def test_an_admin_grant_whose_purpose_needs_the_bot_reads_it(
    house: House, purpose: AdminPurpose
) -> None:
    """What ends in a call of Slack with the bot's token is let in, and says what it was for."""
    await house.install("xoxb-northwind")
    assert (await house.read(house.admin_grant(purpose))).bot_token == "xoxb-northwind"
    assert [each["purpose"] for each in await house.records("token.read")] == [purpose.value]


async def test_a_field_that_names_another_team_is_refused(house: House) -> None:
    """GV-05: a request that names a workspace is refused unread, and that is on record."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    asked = pb.ReadBotTokenRequest(grant=house.slack_grant(CONTOSO)).SerializeToString()
    # Field 15, a string: what a request with a team would look like.
    named = asked + bytes([15 << 3 | 2, len("T0NORTHWIND")]) + b"T0NORTHWIND"
    call = house.channels["gateway-worker"].unary_unary(
        f"/{VAULT}.TokenService/ReadBotToken",
        request_serializer=bytes,
        response_deserializer=pb.ReadBotTokenResponse.FromString,
    )
    assert await refusal(ask(call(named, timeout=5))) == (Kind.INVALID, "INVALID_ARGUMENT")
    assert house.unwraps == 0
    assert await house.records("token.read") == []
    (record,) = await house.records("call.refused")
    assert (record["actor"], record["outcome"]) == ("gateway-worker", "INVALID_ARGUMENT")


async def test_the_record_is_committed_before_the_token_is_opened(house: House) -> None:
    """I3: while the KMS still thinks, another session already sees the record."""
    await house.install("xoxb-northwind")
    house.kms.gate.clear()
    reading = asyncio.create_task(house.read(house.slack_grant()))
    async with asyncio.timeout(TIMEOUT_S):
        await house.kms.asked.wait()
    assert len(await house.records("token.read")) == 1
    assert not reading.done()
    house.kms.gate.set()
    assert (await reading).bot_token == "xoxb-northwind"


async def test_no_record_no_token(house: House) -> None:
    """With the audit log closed to it the vault releases nothing and asks no KMS."""
    await house.install("xoxb-northwind")
    await house.admin.execute(f"REVOKE INSERT ON vault.audit_event FROM {VAULT_ROLE}")
    assert await refusal(house.read(house.slack_grant())) == (
        Kind.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
    )
    assert house.unwraps == 0
    await house.admin.execute(f"GRANT INSERT ON vault.audit_event TO {VAULT_ROLE}")
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


async def test_a_moved_ciphertext_is_data_loss_and_recorded(house: House) -> None:
    """KM-01: a token put into another workspace's row pages, and no plaintext comes out."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    await house.admin.execute("""
        WITH theirs AS (
            SELECT t.sealed, t.dek_id FROM vault.sealed_token t
            JOIN vault.installation i USING (installation_id) WHERE i.team_id = 'T0CONTOSO'
        ), moved AS (
            UPDATE vault.wrapped_dek d SET installation_id = i.installation_id
            FROM theirs, vault.installation i
            WHERE d.dek_id = theirs.dek_id AND i.team_id = 'T0NORTHWIND'
        )
        UPDATE vault.sealed_token t SET sealed = theirs.sealed, dek_id = theirs.dek_id
        FROM theirs, vault.installation i
        WHERE i.installation_id = t.installation_id AND i.team_id = 'T0NORTHWIND'
    """)
    assert await refusal(house.read(house.slack_grant())) == (Kind.CORRUPT, "CANNOT_OPEN")
    assert [each["outcome"] for each in await house.records("token.unopened")] == ["CANNOT_OPEN"]


async def test_many_reads_have_each_its_own_verdict(house: House) -> None:
    """One call, many grants: tokens for the good, reasons for the bad, in order."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    grants = [
        house.slack_grant(CONTOSO),
        house.slack_grant(age=timedelta(hours=1)),
        house.slack_grant(GRID),
        house.slack_grant(),
    ]
    request = pb.ReadBotTokensRequest(reads=[pb.ReadBotTokenRequest(grant=each) for each in grants])
    answer = await ask(house.tokens().ReadBotTokens(request, timeout=5))
    verdicts = [
        each.token.bot_token or (each.refusal.code, each.refusal.reason) for each in answer.verdicts
    ]
    assert verdicts == [
        "xoxb-contoso",
        (grpc.StatusCode.UNAUTHENTICATED.value[0], "INVALID_TOKEN"),
        (grpc.StatusCode.NOT_FOUND.value[0], "INSTALLATION_NOT_FOUND"),
        "xoxb-northwind",
    ]
    assert len(await house.records("token.read")) == 2


async def test_concurrent_readers_get_each_their_own_token(house: House) -> None:
    """I4: readers that share a transaction share nothing else."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    wanted = [NORTHWIND, CONTOSO] * 50
    released = await asyncio.gather(*(house.read(house.slack_grant(each)) for each in wanted))
    expected = {"T0NORTHWIND": "xoxb-northwind", "T0CONTOSO": "xoxb-contoso"}
    assert [each.bot_token for each in released] == [expected[each.team_id] for each in wanted]
    assert len(await house.records("token.read")) == 100


async def test_the_audit_log_shows_a_tenant_its_own_records(house: House) -> None:
    """A grant of purpose `audit` lists its workspace's records, page by page, and no others."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    for workspace in (NORTHWIND, CONTOSO, NORTHWIND):
        await house.read(house.slack_grant(workspace))
    seen: list[pb.AuditEvent] = []
    token = ""
    while True:
        request = pb.ListAuditEventsRequest(
            grant=house.admin_grant(AdminPurpose.AUDIT), page_size=2, page_token=token
        )
        page = await ask(house.audit().ListAuditEvents(request, timeout=5))
        seen += page.events
        token = page.next_page_token
        if not token:
            break
    assert {event.team_id for event in seen} <= {"T0NORTHWIND", ""}
    assert len({event.installation_id for event in seen}) == 1
    actions = [event.action for event in seen]
    assert actions[:3] == ["token.read", "token.read", "install.activated"]
    assert len({(event.chain_id, event.seq) for event in seen}) == len(seen)


async def test_the_operator_sees_all_records_without_a_grant(house: House) -> None:
    """Without a grant only the operator lists the log, and all of it."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    request = pb.ListAuditEventsRequest(page_size=200)
    page = await ask(house.audit("operator").ListAuditEvents(request, timeout=5))
    assert {"T0NORTHWIND", "T0CONTOSO"} <= {event.team_id for event in page.events}
    assert [event.action for event in page.events][-1] == "chain.started"
    assert (await refusal(ask(house.audit().ListAuditEvents(request, timeout=5))))[1] == (
        "INVALID_TOKEN"
    )


@pytest.mark.parametrize("token", ["x", "eA==", "MjAyNnwxfDE=", "fHx8"])
async def test_a_page_token_that_is_not_ours_is_refused(house: House, token: str) -> None:
    """Whatever is in a page token, the answer is a typed refusal."""
    request = pb.ListAuditEventsRequest(page_token=token)
    call = house.audit("operator").ListAuditEvents(request, timeout=5)
    assert await refusal(ask(call)) == (Kind.INVALID, "INVALID_PAGE_TOKEN")


async def test_what_is_not_served_yet_says_so(house: House) -> None:
    """Every other RPC of the contract is UNIMPLEMENTED for those who may call it."""
    worker, app, operator = (
        house.tokens(),
        house.channels["app/reports"],
        house.channels["operator"],
    )
    store, keys = services.InstallationStoreServiceStub(app), services.OperatorServiceStub(operator)
    calls: list[Awaitable[Any]] = [
        worker.ReadUserToken(pb.ReadUserTokenRequest(grant="x"), timeout=5),
        worker.ApplyRevocation(pb.ApplyRevocationRequest(grant="x"), timeout=5),
        worker.Uninstall(pb.UninstallRequest(grant="x"), timeout=5),
        store.FindBot(pb.FindBotRequest(), timeout=5),
        keys.ListKeys(pb.ListKeysRequest(), timeout=5),
        house.installer().CompleteNangoInstall(
            pb.CompleteNangoInstallRequest(grant="x", provider_config_key="x", connection_id="x"),
            timeout=5,
        ),
    ]
    for call in calls:
        assert (await refusal(ask(call)))[0] is Kind.UNIMPLEMENTED


async def test_identity_away_is_told_and_a_repeat_finishes(house: House) -> None:
    """The token stays sealed and silent until identity has decided."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    grant = house.install_grant()
    house.identity.error = Away()
    assert await refusal(house.complete(grant, "code")) == (
        Kind.UNAVAILABLE,
        "IDENTITY_UNAVAILABLE",
    )
    assert (await refusal(house.read(house.slack_grant())))[1] == "INSTALLATION_NOT_FOUND"
    house.identity.error = None
    assert (await house.complete(grant, "code")).installation.team_id == "T0NORTHWIND"
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


async def test_a_grant_that_identity_no_longer_takes_ends_the_install(house: House) -> None:
    """Without a claim there is no installation, and the token does not live on."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    house.identity.error = InvalidToken()
    assert await refusal(house.complete(house.install_grant(), "code")) == (
        Kind.PRECONDITION,
        "INSTALL_NOT_OPEN",
    )
    assert house.slack.revoked == ["xoxb-northwind"]
    assert await _everything(house) == [[], [], []]


async def test_a_new_process_finishes_what_another_left(house: House) -> None:
    """The sweep at the start claims and activates what an outage left pending."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    house.identity.error = Away()
    assert (await refusal(house.complete(house.install_grant(), "code")))[1] == (
        "IDENTITY_UNAVAILABLE"
    )
    house.identity.error = None
    async with running(house.settings, house.kms):
        pass  # A process that stops lets the sweep it has begun come to its end.
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    (resumed,) = await house.records("install.resumed")
    assert (resumed["actor"], resumed["rpc"]) == ("token-vault", "sweep")


async def test_no_token_is_anywhere_in_the_database(house: House) -> None:
    """I7: neither the token, nor the code, nor a grant that has been used is to be found."""
    house.slack.give("canary-code", "xoxb-canary-token", NORTHWIND)
    grant = house.install_grant()
    await house.complete(grant, "canary-code")
    await house.read(house.slack_grant())
    names = await house.admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'vault'::regnamespace AND relkind = 'r'"
    )
    found = ""
    for (name,) in names:
        rows = await house.admin.fetch(f'SELECT t::text FROM vault."{name}" t')  # noqa: S608 - Our own names.
        found += "\n".join(row[0] for row in rows)
    assert "T0NORTHWIND" in found
    for secret in ("xoxb-canary-token", "canary-code", grant):
        assert secret not in found
        assert secret.encode().hex() not in found
