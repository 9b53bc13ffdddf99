"""Edge over real HTTP and a real Postgres, its peers in memory: what its tests share."""

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import asyncpg
from multidict import CIMultiDictProxy
from prometheus_client import CollectorRegistry

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import open_pool
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.edge_postgres import EdgePostgres
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.edge.listener import listening
from interlock_gateway.edge.main import build_app
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.ports import (
    AgentDefault,
    AuditEvent,
    Channel,
    ConnectSession,
    Health,
    Installed,
    LinkOffer,
    Page,
    PeopleEvent,
    Person,
    Redeemed,
    Role,
    SessionProof,
    UserMapping,
    Workspace,
)
from interlock_gateway.migrations import DATABASE, EDGE_ROLE
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import generate_ed25519_key

PUBLIC = "http://127.0.0.1:8080"
AUTH = "http://127.0.0.1:8081"
SLACK = "http://127.0.0.1:8082"
APP = "A0INTERLOCK"
SIGNING_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
HOME = "/work-apps/slack/"
INSTALL = "/work-apps/slack/install"
CALLBACK = "/work-apps/slack/oauth_redirect"
LINK = "/work-apps/slack/link"
REDEEM = "/work-apps/slack/link/redeem"
LINKED = "/work-apps/slack/link/done"
EVENTS = "/work-apps/slack/events"
CODE = "L" * 43
OTHER_CODE = "M" * 43
DAY = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)

OWNER = Person("u_ann", "Ann", "ann@acme.example", "acme", "Acme", Role.OWNER, "session-of-ann")
MEMBER = Person("u_bob", "Bob", "bob@acme.example", "acme", "Acme", Role.MEMBER, "session-of-bob")
ADMIN = replace(OWNER, user_id="u_ada", role=Role.ADMIN, session_ref="session-of-ada")
VIEWER = replace(MEMBER, user_id="u_val", role=Role.NONE, session_ref="session-of-val")
OUTSIDER = Person(
    "u_eve", "Eve", "eve@umbra.example", "umbra", "Umbra", Role.OWNER, "session-of-eve"
)
ACME = Workspace(
    workspace_id="wsw_1",
    slack_team_id="T0ACME",
    slack_enterprise_id="",
    is_enterprise_install=False,
    name="Acme Slack",
    status="active",
    created_at=DAY,
    linked_users=1,
)
UMBRA = replace(ACME, workspace_id="wsw_9", slack_team_id="T0UMBRA", name="Umbra Slack")
KEYS = json.dumps({"keys": [generate_ed25519_key("edge-1", [Family.SLACK_GRANT])]})


def refusal(kind: Kind, reason: str) -> RemoteError:
    """Make a peer's refusal."""
    return RemoteError(kind, reason)


@dataclass
class FakeIdentity:
    """Identity with three people, two tenants, and link codes that are spent once."""

    people: dict[str, Person] = field(
        default_factory=lambda: {
            "ann": OWNER,
            "ada": ADMIN,
            "bob": MEMBER,
            "val": VIEWER,
            "eve": OUTSIDER,
        }
    )
    workspaces: dict[str, list[Workspace]] = field(
        default_factory=lambda: {"acme": [ACME], "umbra": [UMBRA]}
    )
    offers: dict[str, LinkOffer] = field(default_factory=dict)
    mappings: list[UserMapping] = field(default_factory=list)
    pages: list[list[UserMapping]] = field(default_factory=list)
    pages_asked: list[str] = field(default_factory=list)
    fail: dict[str, RemoteError] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    described: int = 0
    unlinked: list[str] = field(default_factory=list)
    agents: set[tuple[str, str]] = field(default_factory=lambda: {("shop", "returns")})
    defaults: dict[str, AgentDefault] = field(default_factory=dict)
    events: list[PeopleEvent] = field(default_factory=list)
    events_asked: list[tuple[str, str]] = field(default_factory=list)

    async def authenticate(self, proof: SessionProof) -> Person:
        """Know a person by the value of the cookie."""
        self._fail("authenticate")
        self.addresses.append(proof.client_address)
        name, _, value = proof.cookie.reveal().partition("=")
        assert name == "better-auth.session_token"
        if value not in self.people:
            raise refusal(Kind.UNAUTHENTICATED, "NOT_SIGNED_IN")
        return self.people[value]

    async def issue_install_grant(
        self, proof: SessionProof, state_sha256: str, *, by_nango: bool = False
    ) -> Secret[str]:
        """Let administrators install."""
        person = await self._administrator(proof)
        source = "nango" if by_nango else "install"
        return Secret(f"{source}-grant-of-{person.tenant_id}-{state_sha256}")

    async def issue_admin_grant(
        self, proof: SessionProof, workspace_id: str, purpose: AdminPurpose
    ) -> tuple[Secret[str], Workspace]:
        """Let administrators do one thing."""
        person = await self._administrator(proof)
        workspace = self._workspace(person, workspace_id)
        return Secret(f"{purpose.value}-grant-of-{workspace_id}"), workspace

    async def list_agent_defaults(
        self, proof: SessionProof, workspace_id: str
    ) -> tuple[AgentDefault, ...]:
        """List what was set."""
        self._workspace(await self.authenticate(proof), workspace_id)
        return tuple(self.defaults[place] for place in sorted(self.defaults))

    async def set_agent_default(
        self, proof: SessionProof, workspace_id: str, channel_id: str, chosen: AgentDefault | None
    ) -> None:
        """Set an agent that the platform knows."""
        self._workspace(await self._administrator(proof), workspace_id)
        self._fail("platform")
        if chosen is None:
            self.defaults.pop(channel_id, None)
            return
        if (chosen.project_id, chosen.agent_id) not in self.agents:
            raise refusal(Kind.NOT_FOUND, "AGENT_NOT_FOUND")
        self.defaults[channel_id] = chosen

    async def list_workspaces(self, proof: SessionProof) -> tuple[Workspace, ...]:
        """List the tenant's."""
        return tuple(self.workspaces[(await self.authenticate(proof)).tenant_id])

    async def describe_link_code(self, proof: SessionProof, code: Secret[str]) -> LinkOffer:
        """Describe a live code to its tenant."""
        person = await self.authenticate(proof)
        self.described += 1
        offer = self.offers.get(code.reveal())
        if offer is None:
            raise refusal(Kind.PRECONDITION, "LINK_CODE_SPENT")
        if offer.workspace not in self.workspaces[person.tenant_id]:
            raise refusal(Kind.FORBIDDEN, "NOT_YOUR_TENANT")
        return offer

    async def redeem_link_code(
        self, proof: SessionProof, code: Secret[str], *, email_difference_confirmed: bool
    ) -> Redeemed:
        """Spend a code."""
        offer = await self.describe_link_code(proof, code)
        self._fail("redeem")
        if offer.is_email_refused:
            raise refusal(Kind.FORBIDDEN, "EMAIL_MUST_MATCH")
        if offer.emails_differ and not email_difference_confirmed:
            raise refusal(Kind.PRECONDITION, "EMAIL_MISMATCH")
        del self.offers[code.reveal()]
        return Redeemed(
            Secret("resume-grant"), offer.workspace, offer.slack_user_id, was_linked=False
        )

    async def list_mappings(
        self, proof: SessionProof, workspace_id: str, page_token: str, *, page_size: int = 0
    ) -> Page[UserMapping]:
        """List what was given: on two pages, or as pages were given."""
        self._workspace(await self.authenticate(proof), workspace_id)
        self._fail(page_token or "list")
        self.pages_asked.append(page_token)
        pages = self.pages or [self.mappings] * 2
        tokens = ["", *(f"page-{number}" for number in range(2, len(pages) + 1))]
        if page_token not in tokens:
            raise refusal(Kind.INVALID, "INVALID_PAGE_TOKEN")
        number = tokens.index(page_token)
        return Page(tuple(pages[number]), [*tokens, ""][number + 1])

    async def unlink(self, proof: SessionProof, mapping_id: str) -> None:
        """Note it."""
        self.unlinked.append(mapping_id)

    async def list_people_events(
        self, grant: Secret[str], event: str, page_token: str
    ) -> Page[PeopleEvent]:
        """List what was given, on two pages."""
        self.events_asked.append((grant.reveal(), event))
        self._fail("events")
        if page_token not in {"", "7"}:
            raise refusal(Kind.INVALID, "INVALID_PAGE_TOKEN")
        found = tuple(each for each in self.events if event in {"", each.event})
        return Page(found, "" if page_token else "7")

    def _workspace(self, person: Person, workspace_id: str) -> Workspace:
        for workspace in self.workspaces[person.tenant_id]:
            if workspace.workspace_id == workspace_id:
                return workspace
        raise refusal(Kind.NOT_FOUND, "WORKSPACE_NOT_FOUND")

    async def _administrator(self, proof: SessionProof) -> Person:
        person = await self.authenticate(proof)
        if not person.is_administrator:
            raise refusal(Kind.FORBIDDEN, "ROLE_NOT_SUFFICIENT")
        return person

    def _fail(self, what: str) -> None:
        if what in self.fail:
            raise self.fail[what]


@dataclass
class FakeVault:
    """A vault that notes what it was given and answers as told."""

    completed: list[tuple[str, str, str]] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)
    fail: RemoteError | None = None
    installed: Installed = field(
        default_factory=lambda: Installed("T0ACME", is_reinstall=False, extra_scopes=())
    )
    events: list[AuditEvent] = field(default_factory=list)
    connecting: list[tuple[str, str]] = field(default_factory=list)
    webhooks: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)

    async def start_install(self, grant: Secret[str]) -> str:
        """Name the consent page."""
        return f"{SLACK}/oauth/v2/authorize?client_id=1.2&scope=chat%3Awrite"

    async def complete_install(
        self, grant: Secret[str], code: Secret[str], redirect_uri: str
    ) -> Installed:
        """Take a code."""
        self.completed.append((grant.reveal(), code.reveal(), redirect_uri))
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail
        return self.installed

    async def start_connecting(
        self, grant: Secret[str], renews: Workspace | None
    ) -> ConnectSession:
        """Open a session at Nango."""
        if self.fail:
            raise self.fail
        self.connecting.append((grant.reveal(), renews.slack_team_id if renews else ""))
        return ConnectSession(Secret("session-1"), Secret("https://nango.example/?t=1"), DAY)

    async def complete_connection(
        self, grant: Secret[str], provider_config_key: str, connection_id: str
    ) -> Installed:
        """Take a connection."""
        self.completed.append((grant.reveal(), provider_config_key, connection_id))
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail
        return self.installed

    async def find_connected(self, grant: Secret[str]) -> Installed:
        """Say what came of a connection."""
        self.asked_for.append(grant.reveal())
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail
        return self.installed

    async def receive_nango_webhook(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Note a webhook."""
        if self.fail:
            raise self.fail
        self.webhooks.append((body, dict(headers)))

    async def list_audit_events(self, grant: Secret[str], page_token: str) -> Page[AuditEvent]:
        """List what was given, on two pages."""
        if page_token not in {"", "page-2"}:
            raise refusal(Kind.INVALID, "INVALID_PAGE_TOKEN")
        return Page(tuple(self.events), "" if page_token else "page-2")


@dataclass
class FakeWorker:
    """A worker that notes which question it was asked to resume."""

    resumed: list[str] = field(default_factory=list)
    is_waiting: bool = True
    fail: RemoteError | None = None
    health: Health = field(default_factory=lambda: Health(is_healthy=True, slack_error=""))
    channels: list[Channel] = field(
        default_factory=lambda: [
            Channel("C0GENERAL", "general", is_member=True),
            Channel("C0RANDOM", "random", is_member=False),
        ]
    )
    tested: list[tuple[str, str]] = field(default_factory=list)
    uninstalled: list[str] = field(default_factory=list)

    async def resume_after_link(self, grant: Secret[str]) -> bool:
        """Note it."""
        if self.fail:
            raise self.fail
        self.resumed.append(grant.reveal())
        return self.is_waiting

    async def check_health(self, grant: Secret[str]) -> Health:
        """Answer as told."""
        if self.fail:
            raise self.fail
        return self.health

    async def list_channels(self, grant: Secret[str]) -> tuple[Channel, ...]:
        """List what was given."""
        if self.fail:
            raise self.fail
        return tuple(self.channels)

    async def send_test_message(self, grant: Secret[str], channel_id: str) -> None:
        """Note it."""
        if self.fail:
            raise self.fail
        self.tested.append((grant.reveal(), channel_id))

    async def uninstall(self, grant: Secret[str]) -> None:
        """Note it."""
        if self.fail:
            raise self.fail
        self.uninstalled.append(grant.reveal())


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def text(self) -> str:
        """Decode the body."""
        return self.body.decode()

    @property
    def location(self) -> str:
        """Where it leads."""
        return str(self.headers["Location"])

    def cookie(self, name: str) -> str:
        """Return the value of a cookie that is set."""
        for line in self.headers.getall("Set-Cookie", []):
            found, _, rest = line.partition("=")
            if found == f"__Host-interlock-{name}":
                return str(rest.partition(";")[0])
        raise AssertionError(f"no cookie {name}")

    def form_token(self) -> str:
        """Return the token of the first form on the page."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.text)
        assert found
        return found[1]


@dataclass
class Site:
    """Edge, listening, and what is around it."""

    port: int
    http: aiohttp.ClientSession
    identity: FakeIdentity
    vault: FakeVault
    worker: FakeWorker
    registry: CollectorRegistry
    owner: asyncpg.Connection
    routes: set[tuple[str, str]]

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request to our host's name, whatever the port."""
        headers = {"Host": "127.0.0.1:8080"} | options.pop("headers", {})
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.http.request(
            method, url, headers=headers, allow_redirects=False, **options
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, who: str = "", **cookies: str) -> Answer:
        """Open a page."""
        return await self.ask("GET", path, headers=cookies_of(who, cookies))

    async def post(
        self,
        path: str,
        fields: dict[str, str],
        who: str = "",
        headers: dict[str, str] | None = None,
        **cookies: str,
    ) -> Answer:
        """Send a form as a page of ours does, unless the headers say otherwise."""
        own = {"Origin": "null", "Sec-Fetch-Site": "same-origin"} if headers is None else headers
        return await self.ask("POST", path, data=fields, headers=own | cookies_of(who, cookies))

    async def slack(self, path: str, body: bytes, **changes: str) -> Answer:
        """Send what Slack signs."""
        return await self.ask("POST", path, data=body, headers=slack_headers(body) | changes)

    async def raw(self, data: bytes, seconds: float = 6) -> bytes:
        """Send bytes and read until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(seconds):
                return await reader.read()
        finally:
            writer.close()

    def audited(self, event: str) -> float:
        """Read the counter of audit lines."""
        return self.registry.get_sample_value("interlock_edge_audited_total", {"event": event}) or 0

    def served(self, route: str) -> float:
        """Tell how many requests of a route have come to their end."""
        labels = {"route": route, "method": "GET", "status": "200"}
        name = "interlock_edge_request_seconds_count"
        return self.registry.get_sample_value(name, labels) or 0

    async def rows(self) -> list[asyncpg.Record]:
        """Read the inbox as nobody but its owner can."""
        return list(await self.owner.fetch("SELECT * FROM gateway.inbox_event ORDER BY id"))

    def count(self, kind: str, outcome: str) -> float:
        """Read the counter of Slack's requests."""
        labels = {"kind": kind, "outcome": outcome}
        return self.registry.get_sample_value("interlock_edge_slack_requests_total", labels) or 0


BASE_HEADERS = {"Content-Type": "application/json"}


def cookies_of(who: str, cookies: dict[str, str]) -> dict[str, str]:
    """Write a Cookie header."""
    ours = [f"__Host-interlock-{name}={value}" for name, value in cookies.items()]
    session = [f"better-auth.session_token={who}"] if who else []
    return {"Cookie": "; ".join(session + ours)} if session or ours else {}


def slack_headers(body: bytes, timestamp: str = "") -> dict[str, str]:
    """Sign a body as Slack does."""
    timestamp = timestamp or str(int(time.time()))
    base = b"v0:" + timestamp.encode() + b":" + body
    signature = hmac.new(SIGNING_SECRET.encode(), base, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json"
        if body[:1] == b"{"
        else "application/x-www-form-urlencoded",
        "X-Slack-Request-Timestamp": timestamp,
        "X-Slack-Signature": f"v0={signature}",
    }


def event_body(event_id: str = "Ev0000000001", **changes: Any) -> bytes:
    """Write a mention as Slack delivers it."""
    envelope = {
        "type": "event_callback",
        "team_id": "T0ACME",
        "api_app_id": APP,
        "event_id": event_id,
        "event_time": int(time.time()),
        "authorizations": [{"team_id": "T0ACME", "user_id": "U0BOT", "is_bot": True}],
        "event": {
            "type": "app_mention",
            "user": "U0ANN",
            "team": "T0ACME",
            "channel": "C0GENERAL",
            "text": "<@U0BOT> hello",
            "ts": "1763985600.000100",
        },
    }
    return json.dumps(envelope | changes).encode()


def edge_settings(database_url: Secret[str], changes: Mapping[str, object]) -> EdgeSettings:
    """Make edge's settings for a test."""
    return EdgeSettings.model_validate(
        {
            "environment": "development",
            "listen": "127.0.0.1:0",
            "ops_listen": "127.0.0.1:0",
            "tls_ca_file": "/nowhere/ca.pem",
            "tls_cert_file": "/nowhere/cert.pem",
            "tls_key_file": "/nowhere/key.pem",
            "public_url": PUBLIC,
            "database_url_file": database_url,
            "slack_signing_secret_file": Secret(SIGNING_SECRET),
            "slack_app_id": APP,
            "grant_keys_file": Secret(KEYS),
            "csrf_key_file": Secret("c" * 32),
            "identity_address": "127.0.0.1:1",
            "vault_address": "127.0.0.1:1",
            "worker_address": "127.0.0.1:1",
            "auth_url": AUTH,
            "slack_url": SLACK,
        }
        | dict(changes)
    )


@asynccontextmanager
async def serving(
    database_url: Secret[str],
    owner: asyncpg.Connection | None = None,
    changes: Mapping[str, object] = MappingProxyType({}),
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Site]:
    """Serve edge on a database, whatever is in it."""
    identity, vault, worker = FakeIdentity(), FakeVault(), FakeWorker()
    registry = CollectorRegistry()
    async with open_pool(database_url, application="test", max_size=4) as pool:
        app = build_app(
            edge_settings(database_url, changes),
            identity=identity,
            vault=vault,
            worker=worker,
            database=EdgePostgres(pool),
            clock=SystemClock(),
            metrics=EdgeMetrics(registry),
        )
        async with (
            listening(app, listen) as port,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        ):
            routes = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                # HEAD comes with GET.
                if route.resource is not None and route.method != "HEAD"
            }
            yield Site(port, http, identity, vault, worker, registry, owner, routes)  # type: ignore[arg-type]  # Absent where a test reads no rows.


def request_head(body: bytes, lines: bytes, *, length: int | None = None) -> bytes:
    """Write the head of a delivery of an event."""
    announced = len(body) if length is None else length
    return (
        b"POST /work-apps/slack/events HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
        b"Content-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: " + str(announced).encode() + b"\r\n" + lines + b"\r\n"
    )


def link_offer(**changes: Any) -> LinkOffer:
    """Make what identity says about a link code."""
    later = datetime.now(UTC) + timedelta(hours=1)
    return replace(
        LinkOffer(
            ACME,
            "U0ANN",
            "ann",
            "ann@acme.example",
            emails_differ=False,
            expires_at=later,
            is_email_refused=False,
        ),
        **changes,
    )


def user_mapping(mapping_id: str = "wsum_1") -> UserMapping:
    """Make a linked user."""
    return UserMapping(mapping_id, "T0ACME", "U0BOB", "u_bob", "Bob", "bob@acme.example", DAY, None)


def audit_event(seq: int = 1) -> AuditEvent:
    """Make an event of the vault's audit log."""
    return AuditEvent(
        chain_id="c0ffee",
        seq=seq,
        at=DAY,
        action="token.read",
        actor="gateway-worker",
        rpc="/interlock.token_vault.v1.TokenService/ReadBotToken",
        purpose="app_mention",
        grant_id="jti-1",
        token_kind="bot",
        outcome="allowed",
        token_ref="f1ngerpr1nt",
        generation=3,
        kek_version="local-1",
        dek_source="kms",
        request_id="req-12345678",
        subject="U0ANN",
        count=1,
    )


def people_event(number: int = 8, **changes: Any) -> PeopleEvent:
    """Make an event of identity's record: Bob linked himself."""
    return replace(
        PeopleEvent(
            number=number,
            at=DAY,
            event="user.linked",
            outcome="allowed",
            count=1,
            caller="gateway-edge",
            rpc="/interlock.identity.v1.LinkService/RedeemLinkCode",
            request_id="req-87654321",
            grant_id="",
            actor_id="u_bob",
            actor_name="Bob",
            workspace_id="wsw_1",
            slack_enterprise_id="",
            slack_team_id="T0ACME",
            slack_user_id="U0BOB",
            user_id="u_bob",
            user_name="Bob",
            token_id="jti-9",
            purpose="resume",
            project_id="",
            agent_id="",
            channel_id="",
        ),
        **changes,
    )


async def start_install(site: Site, who: str = "ann") -> tuple[str, str]:
    """Start an install; return the state and the cookie."""
    token = (await site.get(INSTALL, who)).form_token()
    answer = await site.post(INSTALL, {"csrf": token}, who)
    assert answer.status == 303
    query = parse_qs(urlsplit(answer.location).query)
    assert query["redirect_uri"] == [f"{PUBLIC}{CALLBACK}"]
    return query["state"][0], answer.cookie("install")


async def link_form(site: Site, code: str = CODE, who: str = "ann") -> tuple[dict[str, str], str]:
    """Open the confirm page; return what its button sends, and the cookie it set."""
    page = await site.get(LINK, who, link=code)
    return {"csrf": page.form_token(), "confirm": "yes"}, page.cookie("link")


def without_id(answer: Answer) -> str:
    """Return a page's text without the one thing that differs each time."""
    return answer.text.replace(answer.headers["X-Request-Id"], "")


@asynccontextmanager
async def fresh_site(
    cluster: ScratchDatabases,
    changes: Mapping[str, object] = MappingProxyType({}),
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Site]:
    """Serve edge on an empty gateway database."""
    urls = await cluster.database(DATABASE)
    owner = await asyncpg.connect(urls.owner.reveal())
    try:
        async with serving(urls.roles[EDGE_ROLE], owner, changes, listen) as site:
            yield site
    finally:
        await owner.close()
