"""What a membership source promises, asked of the fake, the member table and the platform."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from yarl import URL

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import DatabasePlan, create_database, open_pool
from interlock_chassis.secret import Secret
from interlock_cli.identity_house import ManagePlatform
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.membership_postgres import PostgresMembership
from interlock_identity.adapters.memory import FakeMembership
from interlock_identity.adapters.platform_http import ManageApi, PathStyle, PlatformMembership
from interlock_identity.domain.linking import SlackUser
from interlock_identity.domain.people import Account, Role, TenantId, UserId
from interlock_identity.membership import MembershipSource, MembershipUnavailable
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset, generate_hs256_key
from interlock_tokens.verifying import verify_user_token

NORTHWIND, CONTOSO = TenantId("northwind"), TenantId("contoso")
MIA = Account(NORTHWIND, UserId("user_mia"))
OLGA = Account(CONTOSO, UserId("user_olga"))
IN_SLACK = SlackUser("T0TEAM", "E0GRID", "U0MIA")
AUTH = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=("interlock_auth_reader",),
    migrations="",
)


@dataclass
class Stage:
    """A source, and what happens to it.

    Attributes:
        join: Makes somebody a member.
        leave: Makes somebody a stranger.
        fail: Takes the source away.
        heal: Gives it back.
        knows_organizations: Whether it can tell that an organization is gone.
    """

    source: MembershipSource
    join: Callable[[Account], Awaitable[None]]
    leave: Callable[[Account], Awaitable[None]]
    fail: Callable[[], Awaitable[None]]
    heal: Callable[[], Awaitable[None]]
    knows_organizations: bool = True


@pytest.fixture(params=["fake", "table", "platform"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Give a source with two members of two organizations."""
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            stage = _fake()
        elif request.param == "table":
            stage = await _table(stack, request.getfixturevalue("cluster"))
        else:
            stage = await _platform(stack)
        await stage.join(MIA)
        await stage.join(OLGA)
        yield stage


def _fake() -> Stage:
    fake = FakeMembership()

    async def join(account: Account) -> None:
        fake.roles[account] = Role.MEMBER

    async def leave(account: Account) -> None:
        del fake.roles[account]

    async def fail() -> None:
        fake.fail_next(MembershipUnavailable(), times=2)

    async def heal() -> None:
        """Heal by itself: the failures are counted."""

    return Stage(fake, join, leave, fail, heal)


async def _table(stack: AsyncExitStack, cluster: ScratchDatabases) -> Stage:
    (reader,) = AUTH.roles
    urls = await create_database(
        cluster.admin_url,
        AUTH,
        {role: Secret(uuid4().hex) for role in (AUTH.owner, reader)},
        database=f"interlock_auth_{uuid4().hex}",
    )
    owner = await asyncpg.connect(urls.owner.reveal())
    stack.push_async_callback(owner.close)
    await owner.execute(f"""
        CREATE TABLE member ("organizationId" text, "userId" text, role text);
        GRANT USAGE ON SCHEMA public TO {reader};
        GRANT SELECT ON member TO {reader};
    """)
    pool = await stack.enter_async_context(open_pool(urls.roles[reader], application="test"))

    async def join(account: Account) -> None:
        await owner.execute(
            "INSERT INTO member VALUES ($1, $2, 'member')", account.tenant_id, account.user_id
        )

    async def leave(account: Account) -> None:
        await owner.execute('DELETE FROM member WHERE "userId" = $1', account.user_id)

    async def fail() -> None:
        await owner.execute(f"REVOKE SELECT ON member FROM {reader}")  # noqa: S608 - A constant.

    async def heal() -> None:
        await owner.execute(f"GRANT SELECT ON member TO {reader}")

    return Stage(PostgresMembership(pool), join, leave, fail, heal)


async def _open_platform(stack: AsyncExitStack) -> tuple[ManagePlatform, PlatformMembership]:
    document = json.dumps({"keys": [generate_hs256_key("user-1", [Family.SLACK_USER])]})
    keys = Keyset.from_json(Secret(document), variable="KEYS")
    platform = await stack.enter_async_context(ManagePlatform(keys).serving())
    http = await stack.enter_async_context(aiohttp.ClientSession())
    api = ManageApi(http, URL(platform.url), PathStyle.TENANT)
    return platform, PlatformMembership(api, keys, SystemClock(), lambda: uuid4().hex)


async def _platform(stack: AsyncExitStack) -> Stage:
    platform, source = await _open_platform(stack)

    async def join(account: Account) -> None:
        platform.members.add((account.tenant_id, account.user_id))

    async def leave(account: Account) -> None:
        platform.members.discard((account.tenant_id, account.user_id))

    async def fail() -> None:
        platform.status = 503

    async def heal() -> None:
        platform.status = 0

    return Stage(source, join, leave, fail, heal, knows_organizations=False)


async def test_a_member_is_one_and_a_stranger_is_none(stage: Stage) -> None:
    """Membership is of one organization; being in another one means nothing."""
    assert (await stage.source.role_of(MIA, IN_SLACK)).is_member
    for stranger in (
        Account(CONTOSO, MIA.user_id),
        Account(NORTHWIND, UserId("user_eve")),
        Account(TenantId("nowhere"), MIA.user_id),
    ):
        assert await stage.source.role_of(stranger, IN_SLACK) is Role.NONE


async def test_leaving_and_returning_count_at_once(stage: Stage) -> None:
    """A source remembers nothing."""
    await stage.leave(MIA)
    assert await stage.source.role_of(MIA, IN_SLACK) is Role.NONE
    assert (await stage.source.role_of(OLGA, IN_SLACK)).is_member
    await stage.join(MIA)
    assert (await stage.source.role_of(MIA, IN_SLACK)).is_member


async def test_silence_is_neither_a_yes_nor_a_no(stage: Stage) -> None:
    """A source that cannot be asked says so, and heals by itself."""
    await stage.source.role_of(MIA, IN_SLACK)
    await stage.fail()
    for account in (MIA, Account(NORTHWIND, UserId("user_eve"))):
        with pytest.raises(MembershipUnavailable):
            await stage.source.role_of(account, IN_SLACK)
    await stage.heal()
    assert (await stage.source.role_of(MIA, IN_SLACK)).is_member


async def test_an_organization_is_gone_when_nobody_is_in_it(stage: Stage) -> None:
    """A source that cannot tell says that it is there."""
    assert await stage.source.has_organization(NORTHWIND)
    await stage.leave(MIA)
    gone = not await stage.source.has_organization(NORTHWIND)
    assert gone == stage.knows_organizations
    assert await stage.source.has_organization(CONTOSO)


# The platform alone.


async def test_the_platform_is_asked_as_the_person() -> None:
    """The token says who, where and through which Slack user, and opens nothing more."""
    async with AsyncExitStack() as stack:
        platform, source = await _open_platform(stack)
        await source.role_of(MIA, IN_SLACK)
        (shown,) = platform.tokens
        token = verify_user_token(shown, platform.user_tokens, now=SystemClock().now())
        assert (token.user_id, token.tenant_id) == (MIA.user_id, NORTHWIND)
        assert (token.slack_team_id, token.slack_user_id) == ("T0TEAM", "U0MIA")
        assert token.slack_enterprise_id == "E0GRID"
        assert token.authorization is None


@pytest.mark.parametrize("status", [301, 400, 401, 404, 429, 500])
async def test_only_the_platforms_own_no_is_one(status: int) -> None:
    """A 401 is about our secret and a 404 about our settings: about everybody, so not a no."""
    async with AsyncExitStack() as stack:
        platform, source = await _open_platform(stack)
        platform.members.add((NORTHWIND, MIA.user_id))
        platform.status = status
        with pytest.raises(MembershipUnavailable):
            await source.role_of(MIA, IN_SLACK)


async def test_an_absent_platform_or_an_odd_tenant_is_not_a_no() -> None:
    """A refused connection and an id that is no part of a path leave the question open."""
    document = json.dumps({"keys": [generate_hs256_key("user-1", [Family.SLACK_USER])]})
    keys = Keyset.from_json(Secret(document), variable="KEYS")
    async with aiohttp.ClientSession() as http:
        api = ManageApi(http, URL("http://127.0.0.1:9"), PathStyle.PLAIN)
        source = PlatformMembership(api, keys, SystemClock(), lambda: "jti")
        for account in (MIA, Account(TenantId("../admin"), MIA.user_id)):
            with pytest.raises(MembershipUnavailable):
                await source.role_of(account, IN_SLACK)
