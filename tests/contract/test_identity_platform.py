"""Whether somebody sees an agent: the fake, the sandbox's platform, and a Manage API of our own."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_identity.adapters.auth_http import SessionCookie
from interlock_identity.adapters.memory import FakeAgents
from interlock_identity.adapters.platform_http import ManageApi, PathStyle, PlatformAgents
from interlock_identity.domain.agents import Agent
from interlock_identity.domain.people import SessionProof, TenantId
from interlock_identity.sessions import NotSignedIn
from interlock_identity.workspaces import AgentDirectory, PlatformUnavailable
from interlock_sandbox.server import running
from interlock_sandbox.testing import example_config

COOKIE = "better-auth.session_token"
NORTHWIND, CONTOSO = TenantId("northwind"), TenantId("contoso")
TRIAGE = Agent("support", "help-desk")
MINUTES = Agent("board", "minutes")


@dataclass
class Stage:
    """An agent directory, and what people do beside it.

    Attributes:
        sign_in: Returns what the browser of somebody shows.
        fail: Lets the platform's next answer be an error.
    """

    directory: AgentDirectory
    sign_in: Callable[[str], Awaitable[SessionProof]]
    fail: Callable[[], Awaitable[None]]


@pytest.fixture(params=["fake", "plain", "tenant"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Give a directory in which Northwind's administrators see the help desk."""
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            yield _fake()
        else:
            yield await _sandbox(stack, PathStyle(request.param))


def _fake() -> Stage:
    fake = FakeAgents()
    fake.agents |= {(NORTHWIND, TRIAGE), (NORTHWIND, MINUTES)}

    async def sign_in(_: str) -> SessionProof:
        return SessionProof(Secret(f"{COOKIE}=x"), "")

    async def fail() -> None:
        fake.fail_next(PlatformUnavailable())

    return Stage(fake, sign_in, fail)


async def _sandbox(stack: AsyncExitStack, style: PathStyle) -> Stage:
    urls = await stack.enter_async_context(running(example_config()))
    http = await stack.enter_async_context(
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    )

    async def control(url: str, body: dict[str, Any]) -> Any:
        async with http.post(url, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def sign_in(person: str) -> SessionProof:
        shown = await control(f"{urls.auth}/_control/sign-in", {"person": person})
        return SessionProof(Secret(f"{shown['name']}={shown['value']}"), "203.0.113.9")

    async def fail() -> None:
        fault = {"kind": "http_status", "target": "manage", "status": 503, "count": 1}
        await control(f"{urls.platform}/_control/faults", fault)

    api = ManageApi(http, URL(urls.platform), style)
    return Stage(PlatformAgents(api, SessionCookie(COOKIE)), sign_in, fail)


async def test_an_administrator_sees_what_is_there(stage: Stage) -> None:
    """An agent is found by its project and its name, and by nothing near them."""
    proof = await stage.sign_in("user_ada")
    assert await stage.directory.has_agent(proof, NORTHWIND, TRIAGE)
    assert await stage.directory.has_agent(proof, NORTHWIND, MINUTES)
    for other in (
        Agent("support", "gone"),
        Agent("gone", "help-desk"),
        Agent("people", "help-desk"),
        Agent("../support", "help-desk"),
        Agent("support/../board", "minutes"),
    ):
        assert not await stage.directory.has_agent(proof, NORTHWIND, other)


async def test_a_platform_that_fails_does_not_say_no(stage: Stage) -> None:
    """An error leaves the question open, and the next answer counts again."""
    proof = await stage.sign_in("user_ada")
    await stage.fail()
    with pytest.raises(PlatformUnavailable):
        await stage.directory.has_agent(proof, NORTHWIND, TRIAGE)
    assert await stage.directory.has_agent(proof, NORTHWIND, TRIAGE)


# The platform alone.


@pytest.mark.parametrize("style", list(PathStyle))
async def test_it_is_asked_as_the_person(style: PathStyle) -> None:
    """A member does not see what is for administrators, and an outsider nothing at all."""
    async with AsyncExitStack() as stack:
        stage = await _sandbox(stack, style)
        member = await stage.sign_in("user_mia")
        assert await stage.directory.has_agent(member, NORTHWIND, TRIAGE)
        assert not await stage.directory.has_agent(member, NORTHWIND, MINUTES)
        outsider = await stage.sign_in("user_olga")
        assert not await stage.directory.has_agent(outsider, NORTHWIND, TRIAGE)


async def test_a_session_that_the_platform_does_not_take_is_no_answer() -> None:
    """A forged session is refused there; another cookie is not even sent."""
    async with AsyncExitStack() as stack:
        stage = await _sandbox(stack, PathStyle.TENANT)
        forged = SessionProof(Secret(f"{COOKIE}=forged.c2lnbmF0dXJl"), "")
        with pytest.raises(PlatformUnavailable):
            await stage.directory.has_agent(forged, NORTHWIND, TRIAGE)
        for cookie in ("other=x", f"{COOKIE}=a; admin=1", f"{COOKIE}=a\r\nX: y"):
            proof = SessionProof(Secret(cookie), "")
            with pytest.raises(NotSignedIn):
                await stage.directory.has_agent(proof, NORTHWIND, TRIAGE)
