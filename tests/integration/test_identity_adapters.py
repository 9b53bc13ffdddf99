"""The auth server and its member table, as identity reads them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from yarl import URL

from interlock_chassis.database import DatabasePlan, create_database, open_pool
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.auth_http import MAX_JSON_BYTES, HttpAuthServer, SessionCookie
from interlock_identity.adapters.membership_postgres import PostgresMembership
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, Role, SessionProof, TenantId, UserId
from interlock_identity.membership import MembershipUnavailable
from interlock_identity.sessions import AuthServerUnavailable, NotAMember, NotSignedIn

NAME = "better-auth.session_token"
VALUE = "4fPz.c2lnbmF0dXJl%2B%3D"
SESSION = "/api/auth/get-session"
MEMBER = "/api/auth/organization/get-active-member"
LIST = "/api/auth/organization/list"
SIGNED_IN: dict[str, Any] = {
    "session": {
        "id": "session_1",
        "token": "the bearer secret",
        "userId": "user_mia",
        "expiresAt": "2026-12-01T09:00:00.000Z",
        "activeOrganizationId": "northwind",
    },
    "user": {"id": "user_mia", "name": "Mia", "email": "mia@northwind.example"},
}
MEMBERSHIP = {"userId": "user_mia", "organizationId": "northwind", "role": "admin"}
ORGANIZATIONS = [{"id": "contoso", "name": "Contoso"}, {"id": "northwind", "name": "Northwind"}]


@dataclass
class AuthServer:
    """An auth server that answers what a test sets and remembers what it was asked."""

    url: URL = field(default_factory=URL)
    answers: dict[str, tuple[int, Any]] = field(
        default_factory=lambda: {
            SESSION: (200, SIGNED_IN),
            MEMBER: (200, MEMBERSHIP),
            LIST: (200, ORGANIZATIONS),
        }
    )
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request; a text is sent as it is."""
        self.requests.append(request)
        status, body = self.answers[request.path]
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(
            status=status, text=text, headers=self.headers, content_type="application/json"
        )


@pytest.fixture
async def server() -> AsyncIterator[AuthServer]:
    """Serve an auth server on a free port."""
    server = AuthServer()
    app = web.Application()
    app.router.add_get("/{tail:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def auth(server: AuthServer) -> AsyncIterator[HttpAuthServer]:
    """Give the adapter as the process makes it."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield HttpAuthServer(session, server.url, SessionCookie(NAME))


def _proof(cookie: str = f"{NAME}={VALUE}", address: str = "203.0.113.9") -> SessionProof:
    return SessionProof(Secret(cookie), address)


async def test_only_the_cookie_and_the_address_are_sent(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """The cookie goes out byte for byte, to each of the three questions, fresh and unprolonged."""
    session = await auth.authenticate(_proof())
    assert (session.person.user_id, session.person.name) == ("user_mia", "Mia")
    assert (session.tenant.tenant_id, session.tenant.name) == ("northwind", "Northwind")
    assert session.role is Role.ADMIN
    assert len(session.ref) == 64
    assert not session.is_email_verified
    assert server.requests[0].path == SESSION
    assert {request.path for request in server.requests[1:]} == {MEMBER, LIST}
    for request in server.requests:
        assert request.query_string == "disableCookieCache=true&disableRefresh=true"
        assert request.headers["Cookie"] == f"{NAME}={VALUE}"
        assert request.headers["X-Forwarded-For"] == "203.0.113.9"


async def test_role_and_tenant_come_from_one_answer(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """Whoever switches the organization meanwhile never gets one's role in the other."""
    switched = {**MEMBERSHIP, "organizationId": "contoso", "role": "member"}
    server.answers[MEMBER] = (200, switched)
    session = await auth.authenticate(_proof())
    assert (session.tenant.tenant_id, session.tenant.name) == ("contoso", "Contoso")
    assert session.role is Role.MEMBER


async def test_only_a_true_word_verifies_an_address(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """Whatever else the auth server says of the address, it is not proved."""
    for said, is_verified in ((True, True), (False, False), ("true", False), (1, False)):
        user = {**SIGNED_IN["user"], "emailVerified": said}
        server.answers[SESSION] = (200, {**SIGNED_IN, "user": user})
        assert (await auth.authenticate(_proof())).is_email_verified is is_verified


@pytest.mark.parametrize("address", ["", "203.0.113.9, 10.0.0.1", "x\r\nY: z"])
async def test_an_address_that_is_none_is_left_out(
    server: AuthServer, auth: HttpAuthServer, address: str
) -> None:
    """Nobody writes another header through the browser's address."""
    await auth.authenticate(_proof(address=address))
    for request in server.requests:
        assert "X-Forwarded-For" not in request.headers
        assert "Y" not in request.headers


@pytest.mark.parametrize(
    "cookie",
    [
        VALUE,
        f"other={VALUE}",
        f"{NAME}=",
        f"{NAME}={VALUE}; {NAME}=x",
        f"{NAME}={VALUE}, x",
        f'{NAME}="{VALUE}"',
        f"{NAME}={VALUE}\r\nX-Admin: 1",
        f"{NAME}={VALUE}\x00",
        f"{NAME}=\u00e9",
        f"__Host-{NAME}={VALUE}",
    ],
)
async def test_other_cookies_are_not_sent_at_all(
    server: AuthServer, auth: HttpAuthServer, cookie: str
) -> None:
    """Anything but one clean session cookie ends here."""
    with pytest.raises(NotSignedIn):
        await auth.authenticate(_proof(cookie))
    assert server.requests == []


async def test_the_cookie_of_an_https_server_is_taken(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """Behind https the auth server prefixes the name."""
    await auth.authenticate(_proof(f"__Secure-{NAME}={VALUE}"))
    assert server.requests[0].headers["Cookie"] == f"__Secure-{NAME}={VALUE}"


@pytest.mark.parametrize(
    ("path", "answer", "refusal"),
    [
        (SESSION, (200, None), NotSignedIn),
        (SESSION, (401, {"code": "UNAUTHORIZED"}), NotSignedIn),
        (MEMBER, (401, {"code": "UNAUTHORIZED"}), NotSignedIn),
        (MEMBER, (400, {"code": "MEMBER_NOT_FOUND"}), NotAMember),
        (MEMBER, (400, {"code": "NO_ACTIVE_ORGANIZATION"}), NotAMember),
        (MEMBER, (403, {"code": "YOU_ARE_NOT_A_MEMBER_OF_THIS_ORGANIZATION"}), NotAMember),
        (MEMBER, (403, {"code": "USER_IS_NOT_A_MEMBER_OF_THE_ORGANIZATION"}), NotAMember),
        (MEMBER, (403, {"code": "SOMETHING_ELSE"}), AuthServerUnavailable),
        (MEMBER, (403, "blocked"), AuthServerUnavailable),
        (MEMBER, (500, {}), AuthServerUnavailable),
        (MEMBER, (200, {**MEMBERSHIP, "role": None}), AuthServerUnavailable),
        (MEMBER, (200, {**MEMBERSHIP, "organizationId": ""}), AuthServerUnavailable),
        (MEMBER, (200, {**MEMBERSHIP, "userId": "user_ben"}), AuthServerUnavailable),
        (MEMBER, (200, []), AuthServerUnavailable),
        (SESSION, (302, {}), AuthServerUnavailable),
        (SESSION, (200, "not JSON"), AuthServerUnavailable),
        (SESSION, (200, "[" * 100_000), AuthServerUnavailable),
        (SESSION, (200, '"' + "x" * MAX_JSON_BYTES + '"'), AuthServerUnavailable),
        (SESSION, (200, {"session": SIGNED_IN["session"]}), AuthServerUnavailable),
        (SESSION, (200, {**SIGNED_IN, "user": {"id": ""}}), AuthServerUnavailable),
        (LIST, (500, {}), AuthServerUnavailable),
    ],
)
async def test_every_other_answer_lets_nobody_in(
    server: AuthServer,
    auth: HttpAuthServer,
    path: str,
    answer: tuple[int, Any],
    refusal: type[ServiceError],
) -> None:
    """Only what is known to mean no is a no; the rest is an auth server out of order."""
    server.answers[path] = answer
    server.headers = {"Location": str(server.url / "elsewhere")} if answer[0] == 302 else {}
    with pytest.raises(refusal) as raised:
        await auth.authenticate(_proof())
    assert "bearer" not in repr(raised.value.__cause__)


async def test_a_session_without_an_organization_is_nobodys(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """Without an active organization there is no tenant to act in."""
    session = {**SIGNED_IN["session"], "activeOrganizationId": None}
    server.answers[SESSION] = (200, {**SIGNED_IN, "session": session})
    with pytest.raises(NotAMember):
        await auth.authenticate(_proof())


async def test_an_unlisted_organization_goes_by_its_id(
    server: AuthServer, auth: HttpAuthServer
) -> None:
    """A display name that is missing does not keep anybody out."""
    server.answers[LIST] = (200, [])
    assert (await auth.authenticate(_proof())).tenant.name == "northwind"


@pytest.mark.parametrize(("given", "waits_s"), [("7", 7), ("soon", 10), ("999999", 300)])
async def test_a_limited_caller_learns_when_to_come_back(
    server: AuthServer, auth: HttpAuthServer, given: str, waits_s: int
) -> None:
    """The auth server's limit is passed on, within reason."""
    server.answers[SESSION] = (429, {})
    server.headers = {"X-Retry-After": given}
    with pytest.raises(AuthServerUnavailable) as refusal:
        await auth.authenticate(_proof())
    assert refusal.value.retry_after == timedelta(seconds=waits_s)


async def test_an_absent_auth_server_is_unavailable() -> None:
    """A refused connection is not a no."""
    async with aiohttp.ClientSession() as session:
        auth = HttpAuthServer(session, URL("http://127.0.0.1:9"), SessionCookie(NAME))
        with pytest.raises(AuthServerUnavailable):
            await auth.authenticate(_proof())


# The member table.

PLAN = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=("interlock_auth_reader",),
    migrations="",
)
READER = PLAN.roles[0]
ANYBODY = SlackUser("T0TEAM", "", "U0ANY")
CAMEL_CASE = """
    CREATE TABLE member (id text, "organizationId" text, "userId" text, role text);
    INSERT INTO member VALUES ('1', 'northwind', 'user_ada', 'owner'),
        ('2', 'northwind', 'user_mia', 'member'), ('3', 'northwind', 'user_mia', 'billing,admin'),
        ('4', 'northwind', 'user_eve', NULL);
"""
SNAKE_CASE = CAMEL_CASE.replace('"organizationId"', "organization_id").replace(
    '"userId"', "user_id"
)


@dataclass
class Members:
    """A member table, and the adapter that reads it."""

    owner: "asyncpg.Connection[asyncpg.Record]"
    membership: PostgresMembership

    async def role(self, tenant: str, user: str) -> Role:
        """Ask for a role."""
        return await self.membership.role_of(Account(TenantId(tenant), UserId(user)), ANYBODY)


@pytest.fixture
async def members(cluster: ScratchDatabases) -> AsyncIterator[Members]:
    """Give an auth server's database, still without tables."""
    urls = await create_database(
        cluster.admin_url,
        PLAN,
        {role: Secret(uuid4().hex) for role in (PLAN.owner, READER)},
        database=f"interlock_auth_{uuid4().hex}",
    )
    owner = await asyncpg.connect(urls.owner.reveal())
    await owner.execute(f"GRANT USAGE ON SCHEMA public TO {READER}")
    try:
        async with open_pool(urls.roles[READER], application="test") as pool:
            yield Members(owner, PostgresMembership(pool))
    finally:
        await owner.close()


@pytest.mark.parametrize("tables", [CAMEL_CASE, SNAKE_CASE])
async def test_roles_are_read_in_either_naming(members: Members, tables: str) -> None:
    """All rows of a person count, and a person without a known role is none."""
    await members.owner.execute(tables)
    await members.owner.execute(f"GRANT SELECT ON member TO {READER}")
    assert await members.role("northwind", "user_ada") is Role.OWNER
    assert await members.role("northwind", "user_mia") is Role.ADMIN
    assert await members.role("northwind", "user_eve") is Role.NONE
    assert await members.role("contoso", "user_ada") is Role.NONE
    assert await members.membership.has_organization(TenantId("northwind"))
    assert not await members.membership.has_organization(TenantId("contoso"))
    await members.owner.execute("DELETE FROM member")
    assert await members.role("northwind", "user_ada") is Role.NONE


async def test_a_table_that_is_not_there_is_not_a_no(members: Members) -> None:
    """Missing, unreadable, renamed: nobody knows, and it heals without a restart."""
    with pytest.raises(MembershipUnavailable):
        await members.role("northwind", "user_ada")
    await members.owner.execute(CAMEL_CASE)
    with pytest.raises(MembershipUnavailable):
        await members.role("northwind", "user_ada")
    await members.owner.execute(f"GRANT SELECT ON member TO {READER}")
    assert await members.role("northwind", "user_ada") is Role.OWNER
    await members.owner.execute("ALTER TABLE member RENAME TO elsewhere")
    with pytest.raises(MembershipUnavailable):
        await members.role("northwind", "user_ada")
    await members.owner.execute(SNAKE_CASE)
    await members.owner.execute(f"GRANT SELECT ON member TO {READER}")
    assert await members.role("northwind", "user_ada") is Role.OWNER


async def test_an_absent_database_is_not_a_no() -> None:
    """A refused connection makes no token, and no former member either."""
    url = Secret("postgresql://reader:password@127.0.0.1:9/auth")
    account = Account(TenantId("northwind"), UserId("user_ada"))
    async with open_pool(url, application="test") as pool:
        with pytest.raises(MembershipUnavailable):
            await PostgresMembership(pool).role_of(account, ANYBODY)
        with pytest.raises(MembershipUnavailable):
            await PostgresMembership(pool).has_organization(account.tenant_id)
