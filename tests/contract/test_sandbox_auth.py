"""The auth server stand-in, held to what was seen of Better Auth."""

import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest

from interlock_sandbox.auth import COOKIE, SESSION_LIFE_S
from interlock_sandbox.server import running
from interlock_sandbox.testing import COOKIE_SECRET, example_config

TRUSTED = "http://127.0.0.1:8080"


class Clock:
    """A clock that tests move."""

    seconds = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass
class Stage:
    """An auth server and the ways to ask it; no cookies are kept."""

    url: str
    http: aiohttp.ClientSession
    clock: Clock

    async def sign_in(self, person: str = "user_mia") -> str:
        """Sign in on the page and return the cookie's value."""
        form = {"person": person, "callbackURL": f"{TRUSTED}/work-apps/slack/"}
        async with self.http.post(
            f"{self.url}/sign-in", data=form, headers={"Origin": self.url}, allow_redirects=False
        ) as response:
            assert response.headers["Location"] == form["callbackURL"]
            cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        return cookie.partition("=")[2].partition(";")[0]

    async def get(self, path: str, cookie: str = "") -> tuple[int, Any]:
        """Ask the API with a cookie; return status and body."""
        headers = {"Cookie": f"other=1; {COOKIE}={cookie}"} if cookie else {}
        async with self.http.get(f"{self.url}/api/auth/{path}", headers=headers) as response:
            return response.status, await response.json()

    async def change(self, path: str, cookie: str, origin: str, body: Any = None) -> int:
        """Change something through the API; return the status."""
        headers = {"Cookie": f"{COOKIE}={cookie}", "Origin": origin}
        async with self.http.post(
            f"{self.url}/api/auth/{path}", json=body or {}, headers=headers
        ) as response:
            return response.status

    async def set_role(self, person: str, role: str | None) -> None:
        """Change a membership of Northwind."""
        body = {"person": person, "organization": "northwind", "role": role}
        async with self.http.post(f"{self.url}/_control/memberships", json=body) as response:
            assert response.status == 200


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give an auth server that trusts the app's origin."""
    clock = Clock()
    config = example_config(trusted_origins=frozenset({TRUSTED}))
    jar = aiohttp.DummyCookieJar()
    async with running(config, clock) as urls, aiohttp.ClientSession(cookie_jar=jar) as http:
        yield Stage(urls.auth, http, clock)


async def test_cookie_is_a_signed_token_as_better_auth_writes_it(stage: Stage) -> None:
    """The value is the URL-encoded token, a dot, and a padded base64 HMAC-SHA256 of it."""
    value = await stage.sign_in()
    token, _, signature = unquote(value).rpartition(".")
    assert re.fullmatch(r"[A-Za-z0-9]{32}", token)
    expected = hmac.digest(COOKIE_SECRET.encode(), token.encode(), hashlib.sha256)
    assert signature == base64.b64encode(expected).decode()
    assert value == quote(f"{token}.{signature}", safe="")


async def test_session_is_described_without_a_role(stage: Stage) -> None:
    """get-session returns session and user in the real server's shape."""
    status, found = await stage.get("get-session?disableCookieCache=true", await stage.sign_in())
    assert status == 200
    assert found["user"]["id"] == "user_mia"
    assert found["user"]["email"] == "mia@northwind.example"
    assert found["session"]["userId"] == "user_mia"
    assert found["session"]["activeOrganizationId"] == "northwind"
    assert found["session"]["expiresAt"].endswith("Z")
    assert "role" not in found["user"]


async def test_no_session_is_null_under_200(stage: Stage) -> None:
    """Absent, forged, expired and signed-out sessions all answer null."""
    value = await stage.sign_in()
    assert await stage.get("get-session") == (200, None)
    assert await stage.get("get-session", value[:-8] + "AAAAAA%3D") == (200, None)
    assert await stage.get("get-session", "a.b") == (200, None)
    assert await stage.change("sign-out", value, TRUSTED) == 200
    assert await stage.get("get-session", value) == (200, None)
    later = await stage.sign_in()
    stage.clock.seconds += SESSION_LIFE_S
    assert await stage.get("get-session", later) == (200, None)


async def test_role_is_asked_for_an_organization(stage: Stage) -> None:
    """The role is that of the moment, and outsiders learn nothing."""
    value = await stage.sign_in()
    role = "organization/get-active-member-role?organizationId=northwind"
    assert await stage.get(role, value) == (200, {"role": "member"})
    await stage.set_role("user_mia", "member,admin")
    assert await stage.get(role, value) == (200, {"role": "member,admin"})
    outsider = "organization/get-active-member-role?organizationId=contoso"
    status, body = await stage.get(outsider, value)
    assert (status, body["code"]) == (403, "YOU_ARE_NOT_A_MEMBER_OF_THIS_ORGANIZATION")
    status, body = await stage.get(role)
    assert (status, body["code"]) == (401, "UNAUTHORIZED")


async def test_former_member_keeps_the_session_but_not_the_role(stage: Stage) -> None:
    """A removed member's session still names the organization, so the role must be asked."""
    value = await stage.sign_in()
    await stage.set_role("user_mia", None)
    _, session = await stage.get("get-session", value)
    assert session["session"]["activeOrganizationId"] == "northwind"
    status, _ = await stage.get("organization/get-active-member-role", value)
    assert status == 403
    status, body = await stage.get("organization/get-active-member", value)
    assert (status, body["code"]) == (400, "MEMBER_NOT_FOUND")


async def test_members_are_listed_to_members(stage: Stage) -> None:
    """An organization's members are named, with their roles."""
    _, found = await stage.get("organization/list-members", await stage.sign_in())
    roles = {each["userId"]: each["role"] for each in found["members"]}
    assert roles == {"user_ada": "owner", "user_ben": "admin", "user_mia": "member"}
    assert found["total"] == 3


async def test_changes_need_a_trusted_origin(stage: Stage) -> None:
    """Another site cannot sign a visitor out, or switch the organization."""
    value = await stage.sign_in()
    assert await stage.change("sign-out", value, "http://evil.example") == 403
    body = {"organizationId": "contoso"}
    assert await stage.change("organization/set-active", value, TRUSTED, body) == 403
    body = {"organizationId": "northwind"}
    assert await stage.change("organization/set-active", value, TRUSTED, body) == 200


@pytest.mark.parametrize(
    "callback",
    [
        "http://evil.example/",
        "http://localhost:8080/",
        "http://127.0.0.1@evil.example/",
        "//evil.example/",
        "javascript:alert(1)",
        "http://127.0.0.1\\@evil.example/",
    ],
)
async def test_sign_in_leads_back_to_this_machine_only(stage: Stage, callback: str) -> None:
    """A sign-in link cannot send a person elsewhere afterwards."""
    query = {"callbackURL": callback}
    async with stage.http.get(f"{stage.url}/sign-in", params=query) as response:
        assert response.status == 400
    form = {"person": "user_mia", **query}
    headers = {"Origin": stage.url}
    async with stage.http.post(f"{stage.url}/sign-in", data=form, headers=headers) as response:
        assert response.status == 400
        assert "Set-Cookie" not in response.headers


async def test_tests_sign_in_without_a_page(stage: Stage) -> None:
    """The control route returns a cookie that works."""
    async with stage.http.post(
        f"{stage.url}/_control/sign-in", json={"person": "user_ada"}
    ) as response:
        cookie = await response.json()
    assert cookie["name"] == COOKIE
    _, found = await stage.get("get-session", cookie["value"])
    assert found["user"]["id"] == "user_ada"
