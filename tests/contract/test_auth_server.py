"""One contract for the auth server: the real Better Auth, and the sandbox's stand-in.

At the end stand identity's own adapters, held to both. Where the two servers
differ and may, `DIFFERENCES` says so and why.
"""

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from typing import Any, Protocol
from urllib.parse import quote, unquote

import aiohttp
import asyncpg
import pytest
from yarl import URL

from interlock_chassis.database import DatabasePlan, DatabaseUrls, create_database, open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.auth_http import HttpAuthServer, SessionCookie
from interlock_identity.adapters.membership_postgres import PostgresMembership
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import (
    Account,
    Role,
    Session,
    SessionProof,
    TenantId,
    UserId,
)
from interlock_identity.sessions import (
    AuthServerUnavailable,
    NotAMember,
    NotSignedIn,
)
from interlock_sandbox.membership import READER_ROLE
from interlock_sandbox.server import running
from interlock_sandbox.testing import COOKIE_SECRET, example_config

COOKIE = "better-auth.session_token"
CACHE_COOKIE = "better-auth.session_data"
WEEK_S = 7 * 24 * 3600
# Better Auth lets an address ask 100 times in 10 s.
FLOOD = 150
TRUSTED = "http://127.0.0.1:8080"
REAL, STAND_IN = "better-auth", "stand-in"
# An owner, an administrator and a member of Northwind; and the owner of Contoso.
ADA, BEN, MIA, OLGA = "ada", "ben", "mia", "olga"


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    body: Any
    headers: Mapping[str, str]
    set_cookies: tuple[str, ...]

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and code of an error."""
        assert self.body.keys() == {"code", "message"}
        return self.status, self.body["code"]


@dataclass(frozen=True)
class Api:
    """The session API of a server; no cookies are kept."""

    url: str
    http: aiohttp.ClientSession

    async def get(self, path: str, cookie: str = "", **headers: str) -> Answer:
        """Ask, with a session cookie's value."""
        return await self._send("GET", path, {**_cookie_header(cookie), **headers})

    async def post(
        self, path: str, cookie: str = "", body: object = None, origin: str | None = TRUSTED
    ) -> Answer:
        """Change something, from a page of an origin."""
        named = {} if origin is None else {"Origin": origin}
        return await self._send("POST", path, {**_cookie_header(cookie), **named}, body or {})

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None
    ) -> Answer:
        url = f"{self.url}/api/auth/{path}"
        async with self.http.request(method, url, json=body, headers=headers) as response:
            found = await response.json() if response.content_type == "application/json" else None
            lines = tuple(response.headers.getall("Set-Cookie", []))
            return Answer(response.status, found, response.headers, lines)


class Server(Protocol):
    """What is done to a server otherwise than by its session API.

    Attributes:
        northwind: Id of the organization most people are in.
        contoso: Id of the other one.
        users: By person, the user's id.
    """

    name: str
    northwind: str
    contoso: str
    users: Mapping[str, str]

    async def sign_in(self, person: str) -> list[str]:
        """Sign in with the own organization active; return the Set-Cookie lines."""
        ...

    async def set_role(self, person: str, roles: str | None) -> None:
        """Change a membership of Northwind; a comma list gives several, None ends it."""
        ...

    async def let_pass(self, cookie: str, days: int) -> None:
        """Let time go by for one session."""
        ...


@dataclass
class BetterAuth:
    """The real server; everything is done by calling it, save for time."""

    api: Api
    database: Secret[str]
    northwind: str = ""
    contoso: str = ""
    users: Mapping[str, str] = field(default_factory=dict)
    name: str = REAL
    _company: str = field(default_factory=lambda: secrets.token_hex(6))
    _owner: str = ""

    async def populate(self) -> None:
        """Sign new people up and put them into new organizations."""
        owners, users = {}, {}
        for person in (ADA, BEN, MIA, OLGA):
            fields = self._credentials(person) | {"name": person.title()}
            done = await self._done("sign-up/email", "", fields)
            users[person] = done.body["user"]["id"]
            owners[person] = _morsels(done.set_cookies)[COOKIE].value
        self.users, self._owner = users, owners[ADA]
        self.northwind = await self._found("Northwind", owners[ADA])
        self.contoso = await self._found("Contoso", owners[OLGA])
        for person, role in ((BEN, "admin"), (MIA, "member")):
            wanted = {"email": self._credentials(person)["email"], "role": role}
            invited = await self._done("organization/invite-member", self._owner, wanted)
            accepted = {"invitationId": invited.body["id"]}
            await self._done("organization/accept-invitation", owners[person], accepted)

    async def sign_in(self, person: str) -> list[str]:
        """Sign in by password, and choose the organization."""
        signed_in = await self.give_password(person)
        cookie = _morsels(signed_in.set_cookies)[COOKIE].value
        own = {"organizationId": self.contoso if person == OLGA else self.northwind}
        chosen = await self._done("organization/set-active", cookie, own)
        return [*signed_in.set_cookies, *chosen.set_cookies]

    async def give_password(self, person: str) -> Answer:
        """Sign in, and do nothing else."""
        return await self._done("sign-in/email", "", self._credentials(person))

    async def set_role(self, person: str, roles: str | None) -> None:
        """Have the owner do it."""
        found = await self.api.get("organization/list-members", self._owner)
        ids = {each["userId"]: each["id"] for each in found.body["members"]}
        member = ids[self.users[person]]
        named = {"organizationId": self.northwind}
        if roles is None:
            named["memberIdOrEmail"] = member
            await self._done("organization/remove-member", self._owner, named)
        else:
            changed = named | {"memberId": member, "role": roles.split(",")}
            await self._done("organization/update-member-role", self._owner, changed)

    async def let_pass(self, cookie: str, days: int) -> None:
        """Date the session back."""
        connection = await asyncpg.connect(self.database.reveal())
        try:
            changed = await connection.execute(
                'UPDATE session SET "expiresAt" = "expiresAt" - $2::interval,'
                ' "createdAt" = "createdAt" - $2::interval,'
                ' "updatedAt" = "updatedAt" - $2::interval WHERE token = $1',
                _token_of(cookie),
                timedelta(days=days),
            )
        finally:
            await connection.close()
        assert changed == "UPDATE 1"

    def _credentials(self, person: str) -> dict[str, str]:
        return {"email": f"{person}@{self._company}.example", "password": "correct horse"}

    async def _found(self, name: str, cookie: str) -> str:
        fields = {"name": name, "slug": f"{name.lower()}-{self._company}"}
        return str((await self._done("organization/create", cookie, fields)).body["id"])

    async def _done(self, path: str, cookie: str, body: Mapping[str, object]) -> Answer:
        answer = await self.api.post(path, cookie, body)
        assert answer.status == 200, (path, answer.body)
        return answer


@dataclass
class StandIn:
    """The sandbox's auth server."""

    api: Api
    clock: "Clock"
    northwind: str = "northwind"
    contoso: str = "contoso"
    users: Mapping[str, str] = field(
        default_factory=lambda: {each: f"user_{each}" for each in (ADA, BEN, MIA, OLGA)}
    )
    name: str = STAND_IN

    async def sign_in(self, person: str) -> list[str]:
        """Choose a person on the sign-in page."""
        form = {"person": self.users[person], "callbackURL": TRUSTED}
        headers = {"Origin": self.api.url}
        async with self.api.http.post(
            f"{self.api.url}/sign-in", data=form, headers=headers, allow_redirects=False
        ) as response:
            assert response.status == 303
            return response.headers.getall("Set-Cookie")

    async def set_role(self, person: str, roles: str | None) -> None:
        """Use the sandbox's switch."""
        body = {"person": self.users[person], "organization": "northwind", "role": roles}
        async with self.api.http.post(
            f"{self.api.url}/_control/memberships", json=body
        ) as response:
            assert response.status == 200

    async def let_pass(self, cookie: str, days: int) -> None:
        """Move the clock."""
        self.clock.seconds += days * 24 * 3600


class Clock:
    """A clock that tests move."""

    seconds = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass(frozen=True)
class Stage:
    """A server with people in it, and the ways to ask it."""

    server: Server
    api: Api
    reader: Secret[str]

    async def sign_in(self, person: str = MIA) -> str:
        """Sign in and return the session cookie's value."""
        return (await self.browser(person))[COOKIE].value

    async def browser(self, person: str = MIA) -> dict[str, "Morsel[str]"]:
        """Sign in and return all the cookies that a browser has then."""
        return _morsels(await self.server.sign_in(person))

    async def session(self, cookie: str) -> Any:
        """Ask for the session; null is None."""
        answer = await self.api.get("get-session", cookie)
        assert answer.status == 200
        return answer.body


def _cookie_header(value: str) -> dict[str, str]:
    return {"Cookie": f"other=1; {COOKIE}={value}"} if value else {}


def _morsels(lines: Iterable[str]) -> dict[str, "Morsel[str]"]:
    """Read Set-Cookie lines as a browser does: the last of a name counts."""
    found: SimpleCookie = SimpleCookie()
    for line in lines:
        found.load(line)
    return dict(found)


def _token_of(cookie: str) -> str:
    return unquote(cookie).rpartition(".")[0]


def _sign(token: str, key: str = COOKIE_SECRET, digest: str = "sha256") -> str:
    """Make a cookie as the real server does, with nothing but the standard library."""
    signature = base64.b64encode(hmac.digest(key.encode(), token.encode(), digest)).decode()
    return quote(f"{token}.{signature}", safe="")


# The servers.

PLAN = DatabasePlan(
    name="interlock_auth", owner="interlock_auth_owner", roles=(READER_ROLE,), migrations=""
)
StartPeer = Callable[[str, Mapping[str, object]], str]
OpenStage = Callable[[], AbstractAsyncContextManager[Stage]]


@pytest.fixture(scope="module")
def databases(cluster: ScratchDatabases) -> Iterator[Mapping[str, DatabaseUrls]]:
    """Give each server a database that is empty, and gone afterwards."""
    passwords = {role: Secret(secrets.token_hex(16)) for role in (PLAN.owner, *PLAN.roles)}
    run = secrets.token_hex(4)
    names = {REAL: f"auth_real_{run}", STAND_IN: f"auth_stand_in_{run}"}
    yield {
        server: asyncio.run(_make_database(cluster.admin_url, passwords, name))
        for server, name in names.items()
    }
    for name in names.values():
        asyncio.run(_execute(cluster.admin_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _make_database(
    admin_url: Secret[str], passwords: Mapping[str, Secret[str]], name: str
) -> DatabaseUrls:
    urls = await create_database(admin_url, PLAN, passwords, database=name)
    await _execute(urls.owner, f"GRANT USAGE ON SCHEMA public TO {READER_ROLE}")
    return urls


async def _execute(url: Secret[str], statement: str) -> None:
    connection = await asyncpg.connect(url.reveal())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _peer_settings(database: Secret[str], **changes: object) -> dict[str, object]:
    return {
        "databaseUrl": database.reveal(),
        "secret": COOKIE_SECRET,
        "trustedOrigins": [TRUSTED],
        # As in the agents platform's own set-up.
        "cookieCache": True,
        "rateLimit": False,
        **changes,
    }


@pytest.fixture(scope="module")
def better_auth(start_peer: StartPeer, databases: Mapping[str, DatabaseUrls]) -> OpenStage:
    """Run the real server; give what puts new people into it."""
    urls = databases[REAL]
    url = start_peer(REAL, _peer_settings(urls.owner))
    asyncio.run(_execute(urls.owner, f"GRANT SELECT ON member TO {READER_ROLE}"))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Stage]:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            server = BetterAuth(Api(url, http), urls.owner)
            await server.populate()
            yield Stage(server, server.api, urls.roles[READER_ROLE])

    return opened


@pytest.fixture(scope="module")
def limiting_url(start_peer: StartPeer, databases: Mapping[str, DatabaseUrls]) -> str:
    """Run the real server with its rate limiter too; its sessions are those of the other."""
    return start_peer(REAL, _peer_settings(databases[REAL].owner, rateLimit=True))


@pytest.fixture(scope="module")
def stand_in(databases: Mapping[str, DatabaseUrls]) -> OpenStage:
    """Give what runs the stand-in anew."""
    urls = databases[STAND_IN]

    @asynccontextmanager
    async def opened() -> AsyncIterator[Stage]:
        clock = Clock()
        config = example_config(
            trusted_origins=frozenset({TRUSTED}), membership_database_url=urls.owner
        )
        async with (
            running(config, clock) as sandbox,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        ):
            server = StandIn(Api(sandbox.auth, http), clock)
            yield Stage(server, server.api, urls.roles[READER_ROLE])

    return opened


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("better_auth", marks=pytest.mark.node, id=REAL),
        pytest.param("stand_in", id=STAND_IN),
    ],
)
def either(request: pytest.FixtureRequest) -> OpenStage:
    """Give the one server and then the other."""
    opened: OpenStage = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
async def stage(either: OpenStage) -> AsyncIterator[Stage]:
    """Give a server with people in it."""
    async with either() as stage:
        yield stage


# The cookie.


async def test_cookie_is_a_token_that_the_standard_library_can_verify(stage: Stage) -> None:
    """The value is the URL-encoded token, a dot, and a padded base64 HMAC-SHA256 of it."""
    value = await stage.sign_in()
    token, _, signature = unquote(value).rpartition(".")
    assert re.fullmatch(r"[A-Za-z0-9]{32}", token)
    expected = hmac.digest(COOKIE_SECRET.encode(), token.encode(), hashlib.sha256)
    assert signature == base64.b64encode(expected).decode()
    assert value == quote(f"{token}.{signature}", safe="")
    assert (await stage.session(value))["session"]["token"] == token


async def test_cookie_made_by_the_standard_library_is_taken(stage: Stage) -> None:
    """A known token, signed here, is the same session; also without the URL-encoding."""
    value = await stage.sign_in()
    made = _sign(_token_of(value))
    assert (await stage.session(made))["user"]["id"] == stage.server.users[MIA]
    assert (await stage.session(unquote(made)))["user"]["id"] == stage.server.users[MIA]


async def test_cookie_is_out_of_reach_of_scripts_and_other_sites(stage: Stage) -> None:
    """HttpOnly, SameSite=Lax, for the whole site and for a week."""
    morsel = (await stage.browser())[COOKIE]
    assert morsel["httponly"] is True
    assert morsel["samesite"] == "Lax"
    assert morsel["path"] == "/"
    assert morsel["max-age"] == str(WEEK_S)
    assert morsel["domain"] == ""


# Who is signed in.


def _shape(value: Any) -> Any:
    """Replace each value by what it is; a list by its members' shapes, each once."""
    match value:
        case dict():
            return {key: _shape(each) for key, each in value.items()}
        case list():
            shapes = [_shape(each) for each in value]
            return [each for at, each in enumerate(shapes) if each not in shapes[:at]]
        case str() if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value):
            return "instant"
        case _:
            return type(value).__name__


SESSION_SHAPE = {
    "session": {
        "id": "str",
        "token": "str",
        "userId": "str",
        "expiresAt": "instant",
        "createdAt": "instant",
        "updatedAt": "instant",
        "ipAddress": "str",
        "userAgent": "str",
        "activeOrganizationId": "str",
    },
    "user": {
        "id": "str",
        "name": "str",
        "email": "str",
        "emailVerified": "bool",
        "image": "NoneType",
        "createdAt": "instant",
        "updatedAt": "instant",
    },
}
MEMBER_SHAPE = {
    "id": "str",
    "organizationId": "str",
    "userId": "str",
    "role": "str",
    "createdAt": "instant",
    "user": {"id": "str", "name": "str", "email": "str", "image": "NoneType"},
}
ORGANIZATION_SHAPE = {
    "id": "str",
    "name": "str",
    "slug": "str",
    "logo": "NoneType",
    "createdAt": "instant",
    "metadata": "NoneType",
}


async def test_session_is_described_without_a_role(stage: Stage) -> None:
    """get-session has exactly these fields; what the person may do is not among them."""
    found = await stage.session(await stage.sign_in())
    assert _shape(found) == SESSION_SHAPE
    assert found["user"]["id"] == found["session"]["userId"] == stage.server.users[MIA]
    assert found["session"]["activeOrganizationId"] == stage.server.northwind


FORGERIES: Mapping[str, Callable[[str], str]] = {
    "not signed": _token_of,
    "nothing but a dot": lambda _: ".",
    "not a token": lambda _: "a.b",
    "changed signature": lambda value: value[:-6] + ("A" if value[-6] != "A" else "B") + value[-5:],
    "cut signature": lambda value: value.removesuffix("%3D"),
    "another token": lambda value: f"{'x' * 32}.{value.partition('.')[2]}",
    "another key": lambda value: _sign(_token_of(value), key="another-secret" * 4),
    "another digest": lambda value: _sign(_token_of(value), digest="sha1"),
    "unknown token": lambda _: _sign("x" * 32),
    "encoded twice": lambda value: quote(value, safe=""),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_forged_cookie_is_nobodys(stage: Stage, forge: Callable[[str], str]) -> None:
    """A cookie that the server did not make answers null, under 200."""
    value = await stage.sign_in()
    assert await stage.session(forge(value)) is None
    assert await stage.session(value) is not None


async def test_absent_and_signed_out_sessions_are_null(stage: Stage) -> None:
    """No session is never an error; signing out ends one session, and not the other."""
    assert await stage.session("") is None
    value, other = await stage.sign_in(), await stage.sign_in()
    left = await stage.api.post("sign-out", value)
    assert (left.status, left.body) == (200, {"success": True})
    cleared = _morsels(left.set_cookies)[COOKIE]
    assert (cleared.value, cleared["max-age"], cleared["path"]) == ("", "0", "/")
    assert await stage.session(value) is None
    assert await stage.session(other) is not None


async def test_session_ends_after_a_week(stage: Stage) -> None:
    """An expired session is null as well, though its cookie is still well signed."""
    value = await stage.sign_in()
    await stage.server.let_pass(value, 6)
    fresh = "get-session?disableRefresh=true"
    assert (await stage.api.get(fresh, value)).body is not None
    await stage.server.let_pass(value, 1)
    assert (await stage.api.get(fresh, value)).body is None


async def test_cookie_cache_is_passed_by(stage: Stage) -> None:
    """With disableCookieCache a session that has ended is not believed, whatever else is sent.

    With the cache cookie and without the parameter the real server does believe it.
    """
    browser = await stage.browser()
    everything = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in browser.items())
    assert (await stage.api.get("get-session", Cookie=everything)).body is not None
    await stage.api.post("sign-out", browser[COOKIE].value)
    fresh = await stage.api.get("get-session?disableCookieCache=true", Cookie=everything)
    assert (fresh.status, fresh.body) == (200, None)


# What they are in an organization.

ACTIVE_MEMBER = "organization/get-active-member"
ROLE = "organization/get-active-member-role"
MEMBERS = "organization/list-members"
FULL = "organization/get-full-organization"
LIST = "organization/list"
SET_ACTIVE = "organization/set-active"
UNAUTHORIZED = (401, "UNAUTHORIZED")
NO_ACTIVE = (400, "NO_ACTIVE_ORGANIZATION")
NOT_MEMBER_HERE = (403, "YOU_ARE_NOT_A_MEMBER_OF_THIS_ORGANIZATION")
NOT_MEMBER_THERE = (403, "USER_IS_NOT_A_MEMBER_OF_THE_ORGANIZATION")


async def test_active_member_is_the_caller_with_the_role(stage: Stage) -> None:
    """get-active-member describes the membership in the active organization."""
    answer = await stage.api.get(ACTIVE_MEMBER, await stage.sign_in())
    assert answer.status == 200
    assert _shape(answer.body) == MEMBER_SHAPE
    assert answer.body["userId"] == answer.body["user"]["id"] == stage.server.users[MIA]
    assert answer.body["organizationId"] == stage.server.northwind
    assert answer.body["role"] == "member"


@pytest.mark.parametrize(
    ("person", "role"), [(ADA, "owner"), (BEN, "admin"), (MIA, "member")], ids=str
)
async def test_role_is_asked_for_an_organization(stage: Stage, person: str, role: str) -> None:
    """get-active-member-role answers for the organization it is asked about, or the active one."""
    value = await stage.sign_in(person)
    for path in (f"{ROLE}?organizationId={stage.server.northwind}", ROLE):
        answer = await stage.api.get(path, value)
        assert (answer.status, answer.body) == (200, {"role": role})


async def test_role_is_the_one_held_now(stage: Stage) -> None:
    """A change shows at the next question; several roles are a comma list."""
    value = await stage.sign_in()
    for roles in ("admin", "member,admin"):
        await stage.server.set_role(MIA, roles)
        assert (await stage.api.get(ROLE, value)).body == {"role": roles}


async def test_members_are_listed_to_members(stage: Stage) -> None:
    """list-members names everybody in the organization, with their roles."""
    answer = await stage.api.get(
        f"{MEMBERS}?organizationId={stage.server.northwind}", await stage.sign_in()
    )
    assert answer.status == 200
    assert _shape(answer.body) == {"members": [MEMBER_SHAPE], "total": "int"}
    users = stage.server.users
    roles = {each["userId"]: each["role"] for each in answer.body["members"]}
    assert roles == {users[ADA]: "owner", users[BEN]: "admin", users[MIA]: "member"}
    assert answer.body["total"] == 3


async def test_full_organization_holds_its_members(stage: Stage) -> None:
    """get-full-organization is the organization with the members in it."""
    answer = await stage.api.get(
        f"{FULL}?organizationId={stage.server.northwind}", await stage.sign_in()
    )
    assert answer.status == 200
    assert _shape(answer.body) == ORGANIZATION_SHAPE | {
        "members": [MEMBER_SHAPE],
        "invitations": [],
    }
    assert (answer.body["id"], answer.body["name"]) == (stage.server.northwind, "Northwind")
    assert len(answer.body["members"]) == 3


async def test_own_organizations_are_listed(stage: Stage) -> None:
    """organization/list names the organizations of the caller, and no others."""
    answer = await stage.api.get(LIST, await stage.sign_in())
    assert _shape(answer.body) == [ORGANIZATION_SHAPE]
    assert [each["id"] for each in answer.body] == [stage.server.northwind]


async def test_outsiders_learn_nothing(stage: Stage) -> None:
    """Another organization's roles and members are 403, each with the code of its route."""
    value = await stage.sign_in(OLGA)
    there = f"?organizationId={stage.server.northwind}"
    assert (await stage.api.get(ROLE + there, value)).refusal == NOT_MEMBER_HERE
    assert (await stage.api.get(MEMBERS + there, value)).refusal == NOT_MEMBER_HERE
    assert (await stage.api.get(FULL + there, value)).refusal == NOT_MEMBER_THERE
    value = await stage.sign_in(OLGA)
    body = {"organizationId": stage.server.northwind}
    assert (await stage.api.post(SET_ACTIVE, value, body)).refusal == NOT_MEMBER_THERE


async def test_unknown_organization_is_told_apart_by_one_route_only(stage: Stage) -> None:
    """An id that names nothing is refused as a foreign one is, save for its full description."""
    value = await stage.sign_in()
    nowhere = "?organizationId=nonesuch"
    assert (await stage.api.get(ROLE + nowhere, value)).refusal == NOT_MEMBER_HERE
    assert (await stage.api.get(MEMBERS + nowhere, value)).refusal == NOT_MEMBER_HERE
    unknown = await stage.api.get(FULL + nowhere, value)
    assert unknown.refusal == (400, "ORGANIZATION_NOT_FOUND")
    body = {"organizationId": "nonesuch"}
    assert (await stage.api.post(SET_ACTIVE, value, body)).refusal == NOT_MEMBER_THERE


@pytest.mark.parametrize("path", [ACTIVE_MEMBER, ROLE, MEMBERS, FULL, LIST])
async def test_nobody_is_unauthorized(stage: Stage, path: str) -> None:
    """Without a session every route but get-session is 401."""
    assert (await stage.api.get(path)).refusal == UNAUTHORIZED
    assert (await stage.api.get(path, _sign("x" * 32))).refusal == UNAUTHORIZED


async def test_session_without_an_organization_has_no_member(stage: Stage) -> None:
    """When no organization is active, questions without an id are answered with 400 or null."""
    value = await stage.sign_in()
    cleared = await stage.api.post(SET_ACTIVE, value, {"organizationId": None})
    assert (cleared.status, cleared.body) == (200, None)
    assert (await stage.session(value))["session"]["activeOrganizationId"] is None
    for path in (ACTIVE_MEMBER, ROLE, MEMBERS):
        assert (await stage.api.get(path, value)).refusal == NO_ACTIVE
    full = await stage.api.get(FULL, value)
    assert (full.status, full.body) == (200, None)


@pytest.mark.parametrize("asked_by", ["GET", "POST"])
async def test_reaching_for_another_organization_loses_ones_own(
    stage: Stage, asked_by: str
) -> None:
    """A refused choice of a foreign organization, or look at it, leaves none active."""
    value = await stage.sign_in()
    foreign = stage.server.contoso
    if asked_by == "POST":
        await stage.api.post(SET_ACTIVE, value, {"organizationId": foreign})
    else:
        await stage.api.get(f"{FULL}?organizationId={foreign}", value)
    assert (await stage.session(value))["session"]["activeOrganizationId"] is None


async def test_former_members_session_still_names_the_organization(stage: Stage) -> None:
    """The session goes on as if nothing had happened, so the role has to be asked each time."""
    value = await stage.sign_in()
    await stage.server.set_role(MIA, None)
    found = await stage.session(value)
    assert found["session"]["activeOrganizationId"] == stage.server.northwind
    assert (await stage.api.get(ACTIVE_MEMBER, value)).refusal == (400, "MEMBER_NOT_FOUND")
    assert (await stage.api.get(ROLE, value)).refusal == NOT_MEMBER_HERE
    assert (await stage.api.get(MEMBERS, value)).refusal == NOT_MEMBER_HERE
    assert (await stage.api.get(LIST, value)).body == []


# Who may change something.


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("http://evil.example", "INVALID_ORIGIN"),
        (f"{TRUSTED}.evil.example", "INVALID_ORIGIN"),
        ("https://127.0.0.1:8080", "INVALID_ORIGIN"),
        ("null", "MISSING_OR_NULL_ORIGIN"),
        (None, "MISSING_OR_NULL_ORIGIN"),
    ],
)
async def test_another_sites_page_changes_nothing(
    stage: Stage, origin: str | None, code: str
) -> None:
    """A POST with a cookie needs an Origin that the server trusts."""
    value = await stage.sign_in()
    for path, body in ((SET_ACTIVE, {"organizationId": None}), ("sign-out", {})):
        assert (await stage.api.post(path, value, body, origin)).refusal == (403, code)
    found = await stage.session(value)
    assert found["session"]["activeOrganizationId"] == stage.server.northwind


async def test_own_and_trusted_pages_may_change_things(stage: Stage) -> None:
    """The server's own origin and those it was told of are let through."""
    value = await stage.sign_in()
    body = {"organizationId": stage.server.northwind}
    for origin in (stage.api.url, TRUSTED):
        answer = await stage.api.post(SET_ACTIVE, value, body, origin)
        assert answer.status == 200
        assert _shape(answer.body) == ORGANIZATION_SHAPE


# What differs, and may.


async def _active_from_the_start(stage: Stage) -> object:
    if isinstance(stage.server, BetterAuth):
        signed_in = await stage.server.give_password(MIA)
        value = _morsels(signed_in.set_cookies)[COOKIE].value
    else:
        value = await stage.sign_in()
    return (await stage.session(value))["session"]["activeOrganizationId"] is not None


async def _origin_without_a_cookie(stage: Stage) -> object:
    return (await stage.api.post("sign-out", "", {}, "http://evil.example")).status


async def _referer_for_an_origin(stage: Stage) -> object:
    headers = _cookie_header(await stage.sign_in()) | {"Referer": f"{TRUSTED}/page"}
    url = f"{stage.api.url}/api/auth/sign-out"
    async with stage.api.http.post(url, json={}, headers=headers) as response:
        return response.status


async def _cached_session(stage: Stage) -> object:
    browser = await stage.browser()
    everything = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in browser.items())
    await stage.api.post("sign-out", browser[COOKIE].value)
    return (await stage.api.get("get-session", Cookie=everything)).body is not None


async def _prolonged_session(stage: Stage) -> object:
    value = await stage.sign_in()
    await stage.server.let_pass(value, 6)
    await stage.session(value)
    await stage.server.let_pass(value, 2)
    return await stage.session(value) is not None


async def _unknown_credentials(stage: Stage) -> object:
    fields = {"email": "nobody@northwind.example", "password": "wrong horse"}
    return (await stage.api.post("sign-in/email", "", fields)).status


async def _dead_cookie_cleared(stage: Stage) -> object:
    value = await stage.sign_in()
    await stage.api.post("sign-out", value)
    return COOKIE in _morsels((await stage.api.get("get-session", value)).set_cookies)


@dataclass(frozen=True)
class Difference:
    """Something that the stand-in does otherwise.

    Attributes:
        why: Why it may.
        ask: Finds out what a server does.
        real: What Better Auth does.
        stand_in: What the stand-in does.
    """

    why: str
    ask: Callable[[Stage], Awaitable[object]]
    real: object
    stand_in: object


DIFFERENCES: Mapping[str, Difference] = {
    "an organization is active from the sign-in on": Difference(
        "one click signs a person of the sandbox in; the platform's own server chooses as well",
        _active_from_the_start,
        real=False,
        stand_in=True,
    ),
    "a foreign origin without a cookie": Difference(
        "the stand-in is the stricter one; nobody's session is at stake",
        _origin_without_a_cookie,
        real=200,
        stand_in=403,
    ),
    "a Referer for want of an Origin": Difference(
        "the stand-in is the stricter one; every browser sends Origin with a POST",
        _referer_for_an_origin,
        real=200,
        stand_in=403,
    ),
    "a session in the cookie cache outlives its end": Difference(
        "the stand-in has no cache; that ours is not fooled by one is shown on the real server",
        _cached_session,
        real=True,
        stand_in=False,
    ),
    "use prolongs a session": Difference(
        "nobody uses the sandbox for a week; ours asks for no prolongation",
        _prolonged_session,
        real=True,
        stand_in=False,
    ),
    "passwords": Difference(
        "the sandbox's people have none, do not sign up and are not invited",
        _unknown_credentials,
        real=401,
        stand_in=404,
    ),
    "a dead session's cookie is cleared when asked about": Difference(
        "a courtesy to browsers, which ours does not pass on",
        _dead_cookie_cleared,
        real=True,
        stand_in=False,
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)
async def test_known_differences_are_as_stated(stage: Stage, difference: Difference) -> None:
    """Each listed difference is there, so that the list does not outlive one."""
    stated = difference.real if stage.server.name == REAL else difference.stand_in
    assert await difference.ask(stage) == stated


async def test_stand_in_limits_nobody(stand_in: OpenStage) -> None:
    """The sandbox has no rate limiter: a demo has one user, and a test must not wait.

    What the real one does stands below, with what ours makes of it.
    """
    async with stand_in() as stage:
        answers = [await stage.api.get("get-session") for _ in range(FLOOD)]
    assert {each.status for each in answers} == {200}


@pytest.mark.node
async def test_tables_are_those_of_the_real_server(
    better_auth: OpenStage, stand_in: OpenStage, databases: Mapping[str, DatabaseUrls]
) -> None:
    """The tables that the stand-in keeps have the real server's columns, types and keys."""
    async with better_auth(), stand_in():
        tables = {name: await _tables(urls.owner) for name, urls in databases.items()}
    assert len(tables[STAND_IN]) > 15
    assert tables[STAND_IN] <= tables[REAL]
    kept = {table for table, *_ in tables[STAND_IN]}
    assert {row for row in tables[REAL] if row[0] in kept} == tables[STAND_IN]


_TABLES = """
    SELECT table_name, column_name, data_type || ' ' || is_nullable
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL
    SELECT conrelid::regclass::text, '', pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
"""


async def _tables(url: Secret[str]) -> set[tuple[str, str, str]]:
    connection = await asyncpg.connect(url.reveal())
    try:
        rows = await connection.fetch(_TABLES)
        return {(table.strip('"'), column, what) for table, column, what in rows}
    finally:
        await connection.close()


# Identity, asking either of them.


@dataclass
class Identity:
    """Identity's adapter, and the headers of each request that it sent."""

    auth: HttpAuthServer
    sent: list[Mapping[str, str]]

    async def authenticate(self, cookie: str, address: str = "203.0.113.9") -> Session:
        """Ask who has a cookie."""
        return await self.auth.authenticate(SessionProof(Secret(f"{COOKIE}={cookie}"), address))


@asynccontextmanager
async def _identity(stage: Stage, url: str = "") -> AsyncIterator[Identity]:
    sent: list[Mapping[str, str]] = []

    async def keep(_session: aiohttp.ClientSession, _context: object, params: Any) -> None:
        sent.append(params.headers)

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(keep)
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[trace]
    ) as http:
        yield Identity(HttpAuthServer(http, URL(url or stage.api.url), SessionCookie(COOKIE)), sent)


@pytest.fixture
async def identity(stage: Stage) -> AsyncIterator[Identity]:
    """Give identity's adapter, pointed at the server."""
    async with _identity(stage) as identity:
        yield identity


@pytest.mark.parametrize(
    ("person", "role", "tenant"),
    [
        (ADA, Role.OWNER, "Northwind"),
        (BEN, Role.ADMIN, "Northwind"),
        (MIA, Role.MEMBER, "Northwind"),
        (OLGA, Role.OWNER, "Contoso"),
    ],
    ids=str,
)
async def test_identity_reads_person_tenant_and_role(
    stage: Stage, identity: Identity, person: str, role: Role, tenant: str
) -> None:
    """A session becomes a person of a tenant with a role."""
    value = await stage.sign_in(person)
    session = await identity.authenticate(value)
    user = (await stage.session(value))["user"]
    assert session.person.user_id == user["id"] == stage.server.users[person]
    assert (session.person.name, session.person.email) == (user["name"], user["email"])
    assert session.tenant.name == tenant
    own = stage.server.contoso if person == OLGA else stage.server.northwind
    assert session.tenant.tenant_id == own
    assert session.role is role
    assert session.is_email_verified is user["emailVerified"]
    assert session.ref == (await identity.authenticate(value)).ref
    assert session.ref != (await identity.authenticate(await stage.sign_in(person))).ref


async def test_identity_sees_a_change_of_role_at_once(stage: Stage, identity: Identity) -> None:
    """Of several roles the strongest counts; an ended membership counts for nothing."""
    value = await stage.sign_in()
    assert (await identity.authenticate(value)).role is Role.MEMBER
    await stage.server.set_role(MIA, "member,admin")
    assert (await identity.authenticate(value)).role is Role.ADMIN
    await stage.server.set_role(MIA, None)
    with pytest.raises(NotAMember):
        await identity.authenticate(value)


async def test_identity_needs_an_active_organization(stage: Stage, identity: Identity) -> None:
    """Without one there is no tenant to act in."""
    value = await stage.sign_in()
    await stage.api.post(SET_ACTIVE, value, {"organizationId": None})
    with pytest.raises(NotAMember):
        await identity.authenticate(value)


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_identity_refuses_forged_cookies(
    stage: Stage, identity: Identity, forge: Callable[[str], str]
) -> None:
    """A cookie that the server did not make signs nobody in."""
    with pytest.raises(NotSignedIn):
        await identity.authenticate(forge(await stage.sign_in()))


async def test_identity_prolongs_no_session(stage: Stage, identity: Identity) -> None:
    """A week after the sign-in it is over, however often identity asked."""
    value = await stage.sign_in()
    await stage.server.let_pass(value, 6)
    assert (await identity.authenticate(value)).person.user_id == stage.server.users[MIA]
    await stage.server.let_pass(value, 1)
    with pytest.raises(NotSignedIn):
        await identity.authenticate(value)


async def test_identity_sends_the_session_cookie_and_nothing_else_of_the_browser(
    stage: Stage, identity: Identity
) -> None:
    """No other cookie goes out, least of all the cache that would vouch for an ended session."""
    browser = await stage.browser()
    assert (CACHE_COOKIE in browser) == (stage.server.name == REAL)
    value = browser[COOKIE].value
    await identity.authenticate(value)
    assert len(identity.sent) == 3
    own = {"Host", "Accept", "Accept-Encoding", "User-Agent", "X-Forwarded-For"}
    for headers in identity.sent:
        assert headers["Cookie"] == f"{COOKIE}={value}"
        assert set(headers) == own | {"Cookie"}
    await stage.api.post("sign-out", value)
    with pytest.raises(NotSignedIn):
        await identity.authenticate(value)
    cached = f"{COOKIE}={value}; {CACHE_COOKIE}=x"
    with pytest.raises(NotSignedIn):
        await identity.auth.authenticate(SessionProof(Secret(cached), ""))


async def test_identity_reads_memberships_from_the_servers_own_table(stage: Stage) -> None:
    """The role in the table is the one of the API, and gone with the membership."""
    users = stage.server.users
    async with open_pool(stage.reader, application="test") as pool:
        membership = PostgresMembership(pool)

        async def role_of(person: str, tenant: str = stage.server.northwind) -> Role:
            account = Account(TenantId(tenant), UserId(users[person]))
            return await membership.role_of(account, SlackUser("T0NORTHWIND", "", "U0MIA"))

        assert {person: await role_of(person) for person in users} == {
            ADA: Role.OWNER,
            BEN: Role.ADMIN,
            MIA: Role.MEMBER,
            OLGA: Role.NONE,
        }
        assert await role_of(MIA, stage.server.contoso) is Role.NONE
        assert await membership.has_organization(TenantId(stage.server.contoso))
        assert not await membership.has_organization(TenantId("nonesuch"))
        await stage.server.set_role(MIA, "member,admin")
        assert await role_of(MIA) is Role.ADMIN
        await stage.server.set_role(MIA, None)
        assert await role_of(MIA) is Role.NONE


async def test_reader_of_memberships_can_do_nothing_else(stage: Stage) -> None:
    """The role that identity is given changes no membership and reads no session."""
    connection = await asyncpg.connect(stage.reader.reveal())
    try:
        for statement in ("DELETE FROM member", "SELECT token FROM session", "CREATE TABLE x ()"):
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedTableError)):
                await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.node
async def test_identity_is_limited_by_browser_and_says_when_to_come_back(
    better_auth: OpenStage, limiting_url: str
) -> None:
    """One browser's flood is answered 429 and is told so; another browser gets through.

    Better Auth counts by the address that it is told; without one all share a count.
    """
    async with better_auth() as stage, _identity(stage, limiting_url) as identity:
        value = await stage.sign_in()
        limiting = Api(limiting_url, stage.api.http)
        for address in ("203.0.113.9", ""):
            told = {"X-Forwarded-For": address} if address else {}
            answers = [await limiting.get("get-session", **told) for _ in range(FLOOD)]
            refused = [each for each in answers if each.status == 429]
            assert 0 < len(refused) < FLOOD
            assert 0 < int(refused[0].headers["X-Retry-After"]) <= 10
            with pytest.raises(AuthServerUnavailable) as caught:
                await identity.authenticate(value, address)
            waits = caught.value.retry_after
            assert waits is not None
            assert timedelta(0) < waits <= timedelta(seconds=10)
        session = await identity.authenticate(value, "203.0.113.10")
        assert session.role is Role.MEMBER
