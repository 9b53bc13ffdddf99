"""What the vault's store promises an uninstall, asked of the one in memory and of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.adapters.memory import ManualClock, MemoryStore
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.adapters.postgres_installs import PostgresInstalls
from interlock_token_vault.adapters.postgres_uninstalls import PostgresUninstalls
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import SealedBytes, SealedToken, WrappedDek
from interlock_token_vault.domain.install import InstallAttempt
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.install_ports import Activation, InstallStore, StaleGeneration
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.uninstalling import Tombstone, UninstallStore
from interlock_token_vault.vault import InstallationNotFound, Stop, VaultStore

TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
GRID = replace(TEAM, enterprise_id="E0GRID", team_id="")
GRID_TEAM = replace(GRID, team_id="T0GRID1")
ORIGIN = Origin(actor="gateway-worker", rpc="/x/Y", grant_id="jti", subject="user-ada")
PURGED = AuditEvent("installation.purged", ORIGIN)
ASKED = AuditEvent("uninstall.asked", ORIGIN)
MINUTE = timedelta(minutes=1)


@dataclass
class Stage:
    """A store by its ports, and a way to let its time pass."""

    reads: VaultStore
    installs: InstallStore
    uninstalls: UninstallStore
    advance: Callable[[timedelta], Awaitable[None]]

    async def install(
        self, key: InstallationKey = TEAM, *users: str, again: Installation | None = None
    ) -> Installation:
        """Bring an installation with its tokens to life, or renew the one there is."""
        installation_id, grant_id, lease = InstallationId(uuid4()), uuid4().hex, uuid4()
        attempt = InstallAttempt(
            grant_id=grant_id,
            grant=Secret("grant"),
            tenant_id=TenantId("northwind"),
            user_id="user-1",
            state_sha256="0" * 64,
            source="direct",
            grant_expires_at=datetime.now(UTC) + 15 * MINUTE,
        )
        event = AuditEvent("install.started", ORIGIN)
        await self.installs.start_attempt(attempt, event)
        wrapped = WrappedDek(DekId(uuid4()), installation_id, "local-1", uuid4().bytes * 4)
        await self.installs.take_exchange(grant_id, TokenRef("c" * 32), wrapped, lease, event)
        fresh = Installation(
            id=installation_id,
            key=key,
            tenant_id=attempt.tenant_id,
            state=InstallationState.PENDING,
            generation=1,
            name="Northwind",
            bot_user_id="U0BOT",
            bot_scopes=("chat:write",),
            installed_at=None,
        )
        tokens = tuple(_token(wrapped, user) for user in ("", *users))
        await self.installs.save_pending(grant_id, fresh, tokens, event)
        target = replace(fresh, id=again.id, generation=again.generation + 1) if again else fresh
        tokens = tuple(replace(each, generation=target.generation) for each in tokens)
        plan = Activation(grant_id, fresh.id, target, tokens, again, again is not None, ())
        return await self.installs.activate(plan, [event])


def _token(wrapped: WrappedDek, user_id: str) -> SealedToken:
    return SealedToken(
        kind=TokenKind.USER if user_id else TokenKind.BOT,
        slot=TokenSlot.ACCESS,
        user_id=user_id,
        generation=1,
        dek_id=wrapped.dek_id,
        sealed=SealedBytes(b"\x01" + uuid4().bytes * 8),
        ref=TokenRef(uuid4().hex),
        expires_at=None,
    )


@pytest.fixture(params=["memory", "postgres"])
async def stage(request: pytest.FixtureRequest, cluster: ScratchDatabases) -> AsyncIterator[Stage]:
    """Give a store with nothing in it."""
    if request.param == "memory":
        clock = ManualClock(datetime.now(UTC))
        memory = MemoryStore(clock, chain_id=UUID(int=1))

        async def pass_by(by: timedelta) -> None:
            clock.advance(by)

        yield Stage(memory, memory, memory, pass_by)
        return
    urls = await cluster.database(DATABASE)
    admin = await asyncpg.connect(
        cluster.admin_url.reveal(), database=urlsplit(urls.owner.reveal()).path.strip("/")
    )
    async with (
        open_pool(urls.roles[VAULT_ROLE], application="test") as pool,
        open_journal(pool, new_id=uuid4) as journal,
    ):

        async def move(by: timedelta) -> None:
            # Everything becomes older instead.
            for table, columns in (
                ("uninstall", ("asked_at", "tried_at")),
                ("tombstone", ("purged_at", "released_at")),
                ("installation", ("installed_at",)),
            ):
                changes = ", ".join(f"{each} = {each} - $1::interval" for each in columns)
                await admin.execute(f"UPDATE vault.{table} SET {changes}", by)  # noqa: S608 - Our own names.

        yield Stage(
            PostgresStore(pool, journal),
            PostgresInstalls(pool, journal),
            PostgresUninstalls(pool, journal),
            move,
        )
    await admin.close()


async def test_what_is_found_during_a_purge_is_whole(stage: Stage) -> None:
    """Whoever reads while it goes finds all that was sealed, or nothing."""
    sizes: set[int] = set()

    async def look(installation_id: InstallationId) -> None:
        while (held := await stage.uninstalls.find_held(installation_id)) is not None:
            sizes.add(len(held.tokens))
            # The store in memory never waits by itself.
            await asyncio.sleep(0)

    for _ in range(30):
        here = await stage.install(TEAM, "U0ADA", "U0BEN")
        looks = [look(here.id) for _ in range(6)]
        await asyncio.gather(*looks, stage.uninstalls.purge(here, PURGED))
    assert sizes <= {3}


async def test_a_name_means_the_team_and_the_enterprise_around_it(stage: Stage) -> None:
    """Whatever of them is installed; nothing of anybody else, and no other app's."""
    grid, team, plain = [await stage.install(key) for key in (GRID, GRID_TEAM, TEAM)]
    find = stage.uninstalls.find_meant
    assert set(await find(GRID_TEAM)) == {grid.id, team.id}
    assert set(await find(replace(TEAM, team_id="T0GRID1"))) == {team.id}
    assert set(await find(GRID)) == {grid.id}
    assert set(await find(TEAM)) == {plain.id}
    assert set(await find(replace(TEAM, enterprise_id="E0NEW"))) == {plain.id}
    assert await find(replace(TEAM, app_id="A0OTHER")) == []
    assert await find(replace(TEAM, client_id=ClientId("other"))) == []


async def test_a_purge_leaves_a_tombstone_and_nothing_else(stage: Stage) -> None:
    """Row, tokens and key go together; the same again is stale."""
    installed, other = await stage.install(TEAM, "U0ADA"), await stage.install(GRID)
    await stage.uninstalls.begin_uninstall(installed.id, ASKED)
    await stage.uninstalls.purge(installed, PURGED)
    assert await stage.uninstalls.find_held(installed.id) is None
    assert await stage.installs.find_installation(installed.id) is None
    assert await stage.uninstalls.find_held(other.id) is not None
    assert await stage.uninstalls.list_open_uninstalls(timedelta(0), 10) == []
    assert await stage.uninstalls.list_unreleased(10) == [Tombstone(installed.id, TEAM)]
    with pytest.raises(StaleGeneration):
        await stage.uninstalls.purge(installed, PURGED)
    records = await stage.reads.list_audit_events(None, 100, None)
    assert [each.event.action for each in records].count("installation.purged") == 1


async def test_a_purge_of_what_changed_is_stale(stage: Stage) -> None:
    """A generation that rose meanwhile is another token than the one that was probed."""
    installed = await stage.install()
    renewed = await stage.install(again=installed)
    assert renewed.id == installed.id
    with pytest.raises(StaleGeneration):
        await stage.uninstalls.purge(installed, PURGED)
    assert await stage.uninstalls.find_held(installed.id) is not None
    assert await stage.uninstalls.list_unreleased(10) == []


async def test_many_purges_of_one_installation_are_one(stage: Stage) -> None:
    """Of two vault processes with the same event one purges."""
    installed = await stage.install()
    settled = await asyncio.gather(
        *(stage.uninstalls.purge(installed, PURGED) for _ in range(4)), return_exceptions=True
    )
    assert [type(each) for each in settled].count(StaleGeneration) == 3


async def test_a_users_token_goes_alone_and_only_as_it_was(stage: Stage) -> None:
    """Another user's and the bot's stay; a token that was renewed since stays too."""
    installed = await stage.install(TEAM, "U0ADA", "U0BEN")
    held = await stage.uninstalls.find_held(installed.id)
    assert held is not None
    ada = next(token for token in held.tokens if token.user_id == "U0ADA")
    event = AuditEvent("user_token.purged", ORIGIN)
    newer = replace(ada, generation=2, ref=TokenRef("e" * 32))
    assert not await stage.uninstalls.purge_user(installed.id, newer, event)
    assert await stage.uninstalls.purge_user(installed.id, ada, event)
    assert not await stage.uninstalls.purge_user(installed.id, ada, event)
    left = await stage.uninstalls.find_held(installed.id)
    assert left is not None
    assert sorted(token.user_id for token in left.tokens) == ["", "U0BEN"]
    records = await stage.reads.list_audit_events(None, 100, None)
    assert [each.event.action for each in records].count("user_token.purged") == 1


async def test_an_uninstall_stays_open_until_it_is_quiet(stage: Stage) -> None:
    """The sweep leaves a running call alone, and takes what it took for itself a while."""
    installed = await stage.install()
    await stage.uninstalls.begin_uninstall(installed.id, ASKED)
    assert await stage.uninstalls.list_open_uninstalls(MINUTE, 10) == []
    await stage.advance(2 * MINUTE)
    (begun,) = await stage.uninstalls.list_open_uninstalls(MINUTE, 10)
    assert (begun.installation_id, begun.grant_id, begun.subject) == (
        installed.id,
        "jti",
        "user-ada",
    )
    assert await stage.uninstalls.list_open_uninstalls(MINUTE, 10) == []


async def test_an_install_since_makes_an_uninstall_the_past(stage: Stage) -> None:
    """Asked before the newest install, it means what is gone."""
    installed = await stage.install()
    await stage.uninstalls.begin_uninstall(installed.id, ASKED)
    await stage.advance(MINUTE)
    await stage.install(again=installed)
    await stage.advance(MINUTE)
    assert await stage.uninstalls.list_open_uninstalls(MINUTE, 10) == []


async def test_what_is_not_active_cannot_begin_to_leave(stage: Stage) -> None:
    """There is nothing to write down about it."""
    with pytest.raises(InstallationNotFound):
        await stage.uninstalls.begin_uninstall(InstallationId(uuid4()), ASKED)


async def test_a_released_tombstone_stays_a_while(stage: Stage) -> None:
    """It is not listed any more, and goes when it is old; an unreleased one never does."""
    first, second = await stage.install(TEAM), await stage.install(GRID)
    for each in (first, second):
        await stage.uninstalls.purge(each, PURGED)
    await stage.uninstalls.note_released(first.id)
    assert await stage.uninstalls.find_unreleased(TEAM) == []
    assert await stage.uninstalls.find_unreleased(GRID) == [Tombstone(second.id, GRID)]
    await stage.advance(2 * MINUTE)
    await stage.uninstalls.prune_tombstones(MINUTE)
    assert await stage.uninstalls.list_unreleased(10) == [Tombstone(second.id, GRID)]


async def test_a_hold_is_seen_for_one_and_for_all(stage: Stage) -> None:
    """What was restored and not looked at since is not judged."""
    installed = await stage.install()
    assert not await stage.uninstalls.is_held_back(installed.id)
    event = AuditEvent("vault.held", ORIGIN)
    for where in (installed.id, None):
        await stage.reads.stop_releases(where, Stop.HELD, "restored", event)
        assert await stage.uninstalls.is_held_back(installed.id)
        await stage.reads.resume_releases(where, Stop.HELD, event)
    await stage.reads.stop_releases(installed.id, Stop.FROZEN, "leak", event)
    assert not await stage.uninstalls.is_held_back(installed.id)
