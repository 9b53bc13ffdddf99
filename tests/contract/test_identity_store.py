"""What identity's stores promise, asked of the one in memory and of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID, uuid4

import asyncpg
import pytest

from interlock_chassis.database import open_engine
from interlock_chassis.errors import ServiceError
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.memory import ManualClock, MemoryStore
from interlock_identity.adapters.postgres import PostgresStore
from interlock_identity.adapters.postgres_audit import PostgresAuditLog
from interlock_identity.adapters.postgres_upkeep import PostgresUpkeep
from interlock_identity.domain.agents import Agent, AgentDefault
from interlock_identity.domain.audit import AuditEvent, Origin, Sought
from interlock_identity.domain.linking import (
    CodeHash,
    LinkCodeId,
    MappingCursor,
    MappingId,
    NewLinkCode,
    SlackUser,
    UserMapping,
    hash_link_code,
)
from interlock_identity.domain.people import (
    Account,
    Person,
    Role,
    Session,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import (
    NO_DRIFT,
    Claim,
    NangoConnection,
    ScopeDrift,
    Workspace,
    WorkspaceId,
    WorkspaceKey,
    WorkspaceStatus,
)
from interlock_identity.linking import (
    LINK_CODE_LIFE,
    LINK_CODE_LIMIT,
    LINK_CODE_WINDOW,
    LinkCodeSpent,
    TooManyLinkCodes,
    UserAlreadyLinked,
    UserLinkedElsewhere,
)
from interlock_identity.migrations import DATABASE
from interlock_identity.workspaces import (
    OrganizationNotFound,
    WorkspaceNotFound,
    WorkspaceTaken,
)

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
CONTOSO = Tenant(TenantId("contoso"), "Contoso")
ADA = Person(UserId("user_ada"), "Ada", "ada@northwind.example")
MIA = Person(UserId("user_mia"), "Mia", "mia@northwind.example")
OLGA = Person(UserId("user_olga"), "Olga", "olga@contoso.example")
TEAM = WorkspaceKey("", "T0TEAM", "A0APP")
ENTERPRISE = WorkspaceKey("E0GRID", "", "A0APP")
GRID_TEAM = WorkspaceKey("E0GRID", "T0GRID1", "A0APP")
OTHER_GRID_TEAM = WorkspaceKey("E0GRID", "T0GRID2", "A0APP")
MIA_IN_SLACK = SlackUser("T0TEAM", "", "U0MIA")
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ORIGIN = Origin("gateway-edge", "/test", "request")
EVENT = AuditEvent("tested", ORIGIN)

Store = MemoryStore | PostgresStore


@dataclass
class Stage:
    """The stores, and what a test does past them.

    Attributes:
        advance: Lets time pass.
        plant: Writes a link.
        audited: Reads the names of all records, oldest first.
        audit: The record itself.
    """

    store: Store
    upkeep: MemoryStore | PostgresUpkeep
    advance: Callable[[timedelta], Awaitable[None]]
    plant: Callable[[UserMapping], Awaitable[None]]
    audited: Callable[[], Awaitable[list[str]]]
    audit: MemoryStore | PostgresAuditLog


def _session(person: Person, tenant: Tenant) -> Session:
    return Session(person, tenant, Role.MEMBER, "ref")


ADA_AT_NORTHWIND = _session(ADA, NORTHWIND)
MIA_AT_NORTHWIND = _session(MIA, NORTHWIND)
OLGA_AT_CONTOSO = _session(OLGA, CONTOSO)


@pytest.fixture(params=["memory", "postgres"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Give an empty store with two known organizations."""
    if request.param == "memory":
        stage = _memory_stage()
        await _introduce(stage.store)
        yield stage
        return
    cluster: ScratchDatabases = request.getfixturevalue("cluster")
    urls = await cluster.database(DATABASE)
    owner = await asyncpg.connect(urls.owner.reveal())
    try:
        async with open_engine(urls.roles["interlock_identity"], application="test") as engine:
            stage = _postgres_stage(
                PostgresStore(engine), PostgresUpkeep(engine), PostgresAuditLog(engine), owner
            )
            await _introduce(stage.store)
            yield stage
    finally:
        await owner.close()


def _memory_stage() -> Stage:
    clock = ManualClock()
    store = MemoryStore(clock)

    async def advance(by: timedelta) -> None:
        clock.advance(by)

    async def plant(mapping: UserMapping) -> None:
        store._mappings[mapping.mapping_id] = mapping

    async def audited() -> list[str]:
        return [each.event for each in store.audit]

    return Stage(store, store, advance, plant, audited, store)


# Links take the order in which they are made.
AGES = {
    "work_app_slack_account_link_codes": ("created_at", "expires_at"),
    "work_app_slack_workspaces": ("released_at",),
    "absences": ("since",),
    "upkeep": ("finished_at",),
    '"user"': ("updated_at",),
    "organization": ("updated_at",),
    "audit_events": ("at",),
}


def _postgres_stage(
    store: PostgresStore,
    upkeep: PostgresUpkeep,
    audit: PostgresAuditLog,
    owner: "asyncpg.Connection[asyncpg.Record]",
) -> Stage:
    async def advance(by: timedelta) -> None:
        """Make everything older."""
        for table, columns in AGES.items():
            older = ", ".join(f"{column} = {column} - $1::interval" for column in columns)
            await owner.execute(f"UPDATE identity.{table} SET {older}", by)  # noqa: S608 - ours.

    async def audited() -> list[str]:
        rows = await owner.fetch("SELECT event FROM identity.audit_events ORDER BY id")
        return [row["event"] for row in rows]

    async def plant(mapping: UserMapping) -> None:
        await owner.execute(
            "INSERT INTO identity.work_app_slack_user_mappings (tenant_id, id, slack_team_id,"
            " slack_user_id, inkeep_user_id, workspace_id, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            mapping.tenant_id,
            mapping.mapping_id,
            mapping.slack_user.team_id,
            mapping.slack_user.user_id,
            mapping.person.user_id,
            mapping.workspace_id,
            mapping.linked_at,
        )

    return Stage(store, upkeep, advance, plant, audited, audit)


async def _introduce(store: Store) -> None:
    await store.remember(ADA, NORTHWIND)
    await store.remember(OLGA, CONTOSO)


def _claim(tenant: Tenant, key: WorkspaceKey, installation_id: UUID | None = None) -> Claim:
    return Claim(
        workspace_id=WorkspaceId(f"wsw_{uuid4().hex}"),
        tenant_id=tenant.tenant_id,
        key=key,
        name="Acme",
        installation_id=installation_id or uuid4(),
        installed_by=ADA.user_id,
        nango=None,
    )


async def _claimed(store: Store, tenant: Tenant, key: WorkspaceKey) -> Workspace:
    return (await store.claim(_claim(tenant, key), ORIGIN)).workspace.workspace


def _code(workspace: Workspace, text: str, slack_user: SlackUser = MIA_IN_SLACK) -> NewLinkCode:
    return NewLinkCode(
        code_id=LinkCodeId(f"wslc_{uuid4().hex}"),
        code_hash=hash_link_code(text),
        tenant_id=workspace.tenant_id,
        workspace_id=workspace.workspace_id,
        slack_user=slack_user,
        display_name="Mia",
        email="mia@northwind.example",
    )


async def _create(store: Store, code: NewLinkCode) -> CodeHash:
    await store.create_link_code(
        code, life=LINK_CODE_LIFE, limit=LINK_CODE_LIMIT, window=LINK_CODE_WINDOW
    )
    return code.code_hash


_numbers = count()


async def _link(
    store: Store,
    workspace: Workspace,
    session: Session = MIA_AT_NORTHWIND,
    slack_user: SlackUser = MIA_IN_SLACK,
) -> UserMapping:
    code_hash = await _create(store, _code(workspace, f"code {next(_numbers)}", slack_user))
    await store.redeem_link_code(code_hash, session, MappingId(f"wsum_{uuid4().hex}"), EVENT)
    mapping = await store.find_mapping(workspace.tenant_id, slack_user)
    assert mapping is not None
    return mapping


async def _refusal(work: Awaitable[object]) -> type[ServiceError] | None:
    try:
        await work
    except ServiceError as error:
        return type(error)
    return None


# Claims.


async def test_a_claim_is_found_by_its_install_and_by_its_tenant(stage: Stage) -> None:
    """A fresh claim is active and says what was claimed."""
    claimed = await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    workspace = claimed.workspace.workspace
    assert not claimed.was_claimed
    assert (workspace.key, workspace.tenant_id) == (TEAM, NORTHWIND.tenant_id)
    assert workspace.status is WorkspaceStatus.ACTIVE
    assert await stage.store.find_workspace(TEAM) == workspace
    assert await stage.store.list_workspaces(NORTHWIND.tenant_id) == [claimed.workspace]
    found = await stage.store.get_workspace(NORTHWIND.tenant_id, workspace.workspace_id)
    assert found == workspace


async def test_the_same_tenant_may_claim_again(stage: Stage) -> None:
    """A reinstall keeps the claim's id and takes the newer facts."""
    first = await _claimed(stage.store, NORTHWIND, TEAM)
    again = await stage.store.claim(replace(_claim(NORTHWIND, TEAM), name="Acme Inc."), ORIGIN)
    assert again.was_claimed
    assert again.workspace.workspace == replace(first, name="Acme Inc.")


async def test_another_tenants_workspace_is_taken(stage: Stage) -> None:
    """A second tenant is refused and the first one's claim stays as it was."""
    first = await _claimed(stage.store, NORTHWIND, TEAM)
    with pytest.raises(WorkspaceTaken):
        await stage.store.claim(_claim(CONTOSO, TEAM), ORIGIN)
    # Naming an Enterprise around it does not help.
    with pytest.raises(WorkspaceTaken):
        await stage.store.claim(_claim(CONTOSO, replace(TEAM, enterprise_id="E0GRID")), ORIGIN)
    assert await stage.store.find_workspace(TEAM) == first


@pytest.mark.parametrize("order", [(ENTERPRISE, GRID_TEAM), (GRID_TEAM, ENTERPRISE)])
async def test_an_enterprise_and_a_team_in_it_exclude_each_other(
    stage: Stage, order: tuple[WorkspaceKey, WorkspaceKey]
) -> None:
    """Two tenants cannot hold an org-wide install and a team inside it, in either order."""
    first, second = order
    await stage.store.claim(_claim(NORTHWIND, first), ORIGIN)
    with pytest.raises(WorkspaceTaken):
        await stage.store.claim(_claim(CONTOSO, second), ORIGIN)
    assert not (await stage.store.claim(_claim(NORTHWIND, second), ORIGIN)).was_claimed


async def test_teams_of_one_enterprise_may_have_different_tenants(stage: Stage) -> None:
    """Only org-wide installs exclude; two teams of an Enterprise do not meet."""
    await stage.store.claim(_claim(NORTHWIND, GRID_TEAM), ORIGIN)
    await stage.store.claim(_claim(CONTOSO, OTHER_GRID_TEAM), ORIGIN)
    found = await stage.store.find_workspace(OTHER_GRID_TEAM)
    assert found is not None
    assert found.tenant_id == CONTOSO.tenant_id


async def test_of_two_tenants_at_once_one_gets_the_enterprise(stage: Stage) -> None:
    """Org-wide and team claims that race are decided one after the other."""
    races = [(f"E0GRID{number}", f"T0GRID{number}") for number in range(20)]
    keys = [
        (tenant, WorkspaceKey(enterprise_id, team_id, "A0APP"))
        for enterprise_id, own_team_id in races
        for tenant, team_id in ((NORTHWIND, ""), (CONTOSO, own_team_id))
    ]
    # Ten open connections, so that what follows really runs at once.
    await asyncio.gather(*(stage.store.find_workspace(TEAM) for _ in range(10)))
    refusals = await asyncio.gather(
        *(_refusal(stage.store.claim(_claim(tenant, key), ORIGIN)) for tenant, key in keys)
    )
    for org_wide, team in zip(refusals[::2], refusals[1::2], strict=True):
        assert {org_wide, team} == {None, WorkspaceTaken}


async def test_an_unknown_organization_claims_nothing(stage: Stage) -> None:
    """A tenant that was forgotten, or never seen, gets no workspace."""
    with pytest.raises(OrganizationNotFound):
        await stage.store.claim(_claim(Tenant(TenantId("nobody"), ""), TEAM), ORIGIN)
    assert await stage.store.find_workspace(TEAM) is None


async def test_an_unknown_installer_does_not_stop_a_claim(stage: Stage) -> None:
    """An account that was forgotten during its install leaves the claim without an installer."""
    claim = replace(_claim(NORTHWIND, TEAM), installed_by=UserId("gone"))
    assert not (await stage.store.claim(claim, ORIGIN)).was_claimed


async def test_a_nango_install_is_claimed_like_any_other(stage: Stage) -> None:
    """Where the credential comes from changes nothing about the claim."""
    nango = NangoConnection("work-apps-slack", "connection 1")
    claimed = await stage.store.claim(replace(_claim(NORTHWIND, TEAM), nango=nango), ORIGIN)
    assert claimed.workspace.workspace.key == TEAM


@pytest.mark.parametrize(
    "other",
    [
        replace(TEAM, enterprise_id="E0GRID"),
        replace(TEAM, app_id="A0OTHER"),
        replace(TEAM, team_id="T0OTHER"),
        WorkspaceKey("T0TEAM", "", "A0APP"),
    ],
)
async def test_a_claim_is_found_by_its_whole_key_only(stage: Stage, other: WorkspaceKey) -> None:
    """No lookup falls back to the team alone."""
    await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    assert await stage.store.find_workspace(other) is None


async def test_a_claim_is_hidden_from_other_tenants(stage: Stage) -> None:
    """Another tenant cannot get or list a workspace, even by its id."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    with pytest.raises(WorkspaceNotFound):
        await stage.store.get_workspace(CONTOSO.tenant_id, workspace.workspace_id)
    assert await stage.store.list_workspaces(CONTOSO.tenant_id) == []


async def test_a_claim_shows_which_scopes_differ(stage: Stage) -> None:
    """Only that of the install that is meant; each change is on record; a new claim has none."""
    old, new = uuid4(), uuid4()
    await stage.store.claim(_claim(NORTHWIND, TEAM, new), ORIGIN)
    lacking = ScopeDrift(missing=("files:write", "im:read"))
    both = ScopeDrift(("files:write",), ("im:write",))

    async def report(installation_id: UUID, drift: ScopeDrift) -> bool:
        key = replace(TEAM, app_id="")
        return await stage.store.set_drift(key, installation_id, drift, ORIGIN)

    async def shown() -> ScopeDrift:
        [counted] = await stage.store.list_workspaces(NORTHWIND.tenant_id)
        return counted.workspace.drift

    assert not await report(old, lacking)
    assert await report(new, NO_DRIFT)
    assert await shown() == NO_DRIFT
    for drift in (lacking, lacking, both):
        assert await report(new, drift)
        assert await shown() == drift
    assert await report(new, NO_DRIFT)
    await report(new, both)
    await stage.store.claim(_claim(NORTHWIND, TEAM, new), ORIGIN)
    assert await shown() == NO_DRIFT
    await stage.store.release(TEAM, new, ORIGIN)
    assert not await report(new, both)
    records = await stage.audit.list_events(Sought(), before=None, limit=100)
    changes = [
        (each.event.event.removeprefix("workspace.scopes_"), each.event.purpose)
        for each in reversed(records)
        if each.event.event.startswith("workspace.scopes_")
    ]
    assert changes == [
        ("drifted", "missing files:write, im:read"),
        ("drifted", "missing files:write; extra im:write"),
        ("settled", ""),
        ("drifted", "missing files:write; extra im:write"),
    ]


async def test_a_claim_shows_that_it_needs_a_reinstall(stage: Stage) -> None:
    """Only that of the install that is meant; a repeat records nothing; a new claim is active."""
    old, new = uuid4(), uuid4()
    await stage.store.claim(_claim(NORTHWIND, TEAM, new), ORIGIN)

    async def report(installation_id: UUID, *, needs_reinstall: bool) -> bool:
        return await stage.store.set_needs_reinstall(
            replace(TEAM, app_id=""), installation_id, ORIGIN, needs_reinstall=needs_reinstall
        )

    async def status() -> WorkspaceStatus:
        [counted] = await stage.store.list_workspaces(NORTHWIND.tenant_id)
        return counted.workspace.status

    assert not await report(old, needs_reinstall=True)
    assert await status() is WorkspaceStatus.ACTIVE
    assert await report(new, needs_reinstall=True)
    assert await report(new, needs_reinstall=True)
    assert await status() is WorkspaceStatus.NEEDS_REINSTALL
    assert await report(new, needs_reinstall=False)
    assert await status() is WorkspaceStatus.ACTIVE
    await report(new, needs_reinstall=True)
    await stage.store.claim(_claim(NORTHWIND, TEAM, new), ORIGIN)
    assert await status() is WorkspaceStatus.ACTIVE
    await stage.store.release(TEAM, new, ORIGIN)
    assert not await report(new, needs_reinstall=True)
    changes = [each for each in await stage.audited() if each.startswith("workspace.became")]
    assert changes == [
        "workspace.became_needs_reinstall",
        "workspace.became_active",
        "workspace.became_needs_reinstall",
    ]


async def test_a_notice_is_taken_once(stage: Stage) -> None:
    """Of many who take it one gets it; a recovery or a new claim makes room for the next."""
    installation_id = uuid4()
    claim = _claim(NORTHWIND, TEAM, installation_id)
    workspace = (await stage.store.claim(claim, ORIGIN)).workspace.workspace
    mapping = await _link(stage.store, workspace)
    event = AuditEvent("notice.taken", ORIGIN)

    async def report(*, needs_reinstall: bool) -> None:
        await stage.store.set_needs_reinstall(
            TEAM, installation_id, ORIGIN, needs_reinstall=needs_reinstall
        )

    async def take() -> int:
        tries = [stage.store.take_notice(workspace, event) for _ in range(3)]
        return sum(await asyncio.gather(*tries))

    assert await stage.store.list_due_notices(10) == []
    assert await take() == 0
    await report(needs_reinstall=True)
    [due] = await stage.store.list_due_notices(10)
    assert due.workspace.workspace_id == workspace.workspace_id
    assert due.installation_id == installation_id
    assert [reader.mapping_id for reader in due.readers] == [mapping.mapping_id]
    assert await take() == 1
    assert await stage.store.list_due_notices(10) == []
    await report(needs_reinstall=False)
    await report(needs_reinstall=True)
    assert await take() == 1
    await stage.store.claim(claim, ORIGIN)
    assert await take() == 0
    await report(needs_reinstall=True)
    assert await take() == 1
    assert (await stage.audited()).count("notice.taken") == 3


async def test_a_release_ends_the_claim_of_its_own_install_only(stage: Stage) -> None:
    """A late release of an older install leaves the newer claim; a repeated one does nothing."""
    old, new = uuid4(), uuid4()
    await stage.store.claim(_claim(NORTHWIND, TEAM, old), ORIGIN)
    workspace = (await stage.store.claim(_claim(NORTHWIND, TEAM, new), ORIGIN)).workspace.workspace
    assert not await stage.store.release(TEAM, old, ORIGIN)
    assert await stage.store.find_workspace(TEAM) is not None
    assert not await stage.store.release(replace(TEAM, enterprise_id="E0GRID"), new, ORIGIN)
    assert await stage.store.release(replace(TEAM, app_id=""), new, ORIGIN)
    assert not await stage.store.release(TEAM, new, ORIGIN)
    assert await stage.store.find_workspace(TEAM) is None
    assert await stage.store.list_workspaces(NORTHWIND.tenant_id) == []
    with pytest.raises(WorkspaceNotFound):
        await stage.store.get_workspace(NORTHWIND.tenant_id, workspace.workspace_id)


async def test_a_workspace_that_joined_an_enterprise_keeps_everything(stage: Stage) -> None:
    """Claim, links and defaults are found under the new name and not the old; twice is once."""
    install = uuid4()
    claimed = await stage.store.claim(_claim(NORTHWIND, TEAM, install), ORIGIN)
    before = claimed.workspace.workspace
    await _link(stage.store, before, _session(MIA, NORTHWIND), MIA_IN_SLACK)
    joined = replace(TEAM, enterprise_id="E0GRID")
    moved = [await stage.store.move(joined, install, ORIGIN) for _ in range(2)]
    assert [each.workspace for each in moved] == [replace(before, key=joined)] * 2
    assert [each.linked_users for each in moved] == [1, 1]
    assert await stage.store.find_workspace(TEAM) is None
    assert await stage.store.find_workspace(joined) == moved[0].workspace
    mia = replace(MIA_IN_SLACK, enterprise_id="E0GRID")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, mia) is not None
    assert (await stage.audited()).count("workspace.moved") == 1


async def test_only_the_claim_of_the_same_install_is_moved(stage: Stage) -> None:
    """Another install, another app, a released claim: there is nothing to move."""
    install = uuid4()
    joined = replace(TEAM, enterprise_id="E0GRID")
    await stage.store.claim(_claim(NORTHWIND, TEAM, install), ORIGIN)
    for key, named in ((joined, uuid4()), (replace(joined, app_id="A0OTHER"), install)):
        with pytest.raises(WorkspaceNotFound):
            await stage.store.move(key, named, ORIGIN)
    await stage.store.release(TEAM, install, ORIGIN)
    with pytest.raises(WorkspaceNotFound):
        await stage.store.move(joined, install, ORIGIN)


async def test_no_workspace_moves_into_another_tenants_enterprise(stage: Stage) -> None:
    """I13: an Enterprise that another tenant installed the app into takes in nobody else's."""
    install = uuid4()
    await stage.store.claim(_claim(CONTOSO, ENTERPRISE), ORIGIN)
    await stage.store.claim(_claim(NORTHWIND, TEAM, install), ORIGIN)
    joined = replace(TEAM, enterprise_id=ENTERPRISE.enterprise_id)
    with pytest.raises(WorkspaceTaken):
        await stage.store.move(joined, install, ORIGIN)
    assert await stage.store.find_workspace(TEAM) is not None


async def _release(store: Store, tenant: Tenant, key: WorkspaceKey) -> Workspace:
    """Claim, link Mia, set a default, and release."""
    installation_id = uuid4()
    claimed = await store.claim(_claim(tenant, key, installation_id), ORIGIN)
    workspace = claimed.workspace.workspace
    slack_user = SlackUser(key.slot, key.enterprise_id, "U0MIA")
    await _link(store, workspace, _session(MIA, tenant), slack_user)
    chosen = AgentDefault("", Agent("docs", "helper"), grants_access=False)
    await store.set_agent_default(
        tenant.tenant_id, workspace.workspace_id, chosen, ADA.user_id, EVENT
    )
    assert await store.release(key, installation_id, ORIGIN)
    return workspace


async def test_a_reinstall_by_the_same_tenant_finds_everything_again(stage: Stage) -> None:
    """Links and defaults outlive an uninstall that is undone."""
    before = await _release(stage.store, NORTHWIND, TEAM)
    again = await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    assert not again.was_claimed
    assert again.workspace.workspace.workspace_id == before.workspace_id
    assert again.workspace.linked_users == 1
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) is not None
    assert await stage.store.list_agent_defaults(NORTHWIND.tenant_id, before.workspace_id)


@pytest.mark.parametrize(
    ("released", "claimed"), [(TEAM, TEAM), (ENTERPRISE, ENTERPRISE), (GRID_TEAM, ENTERPRISE)]
)
async def test_a_claim_by_another_tenant_ends_what_the_first_one_left(
    stage: Stage, released: WorkspaceKey, claimed: WorkspaceKey
) -> None:
    """Nothing of a former owner survives in a workspace that somebody else claims."""
    before = await _release(stage.store, NORTHWIND, released)
    slack_user = SlackUser(released.slot, released.enterprise_id, "U0MIA")
    assert not (await stage.store.claim(_claim(CONTOSO, claimed), ORIGIN)).was_claimed
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, slack_user) is None
    assert await stage.store.find_mapping(CONTOSO.tenant_id, slack_user) is None
    defaults = await stage.store.list_agent_defaults(NORTHWIND.tenant_id, before.workspace_id)
    assert defaults == []
    assert (await stage.audited())[-3:] == ["user.unlinked", "workspace.ended", "workspace.claimed"]


async def test_a_team_claim_ends_nothing_of_the_enterprise_around_it(stage: Stage) -> None:
    """A released org-wide install keeps its links when another tenant claims one team."""
    await _release(stage.store, NORTHWIND, ENTERPRISE)
    await stage.store.claim(_claim(CONTOSO, GRID_TEAM), ORIGIN)
    slack_user = SlackUser("E0GRID", "E0GRID", "U0MIA")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, slack_user) is not None


# Link codes.


async def test_a_code_works_for_its_hour_and_not_at_the_end_of_it(stage: Stage) -> None:
    """The first instant of expiry is already too late."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code = _code(workspace, "one")
    expires_at = await stage.store.create_link_code(
        code, life=LINK_CODE_LIFE, limit=LINK_CODE_LIMIT, window=LINK_CODE_WINDOW
    )
    found = await stage.store.find_link_code(code.code_hash)
    assert found is not None
    assert found.expires_at == expires_at
    assert (found.slack_user, found.email) == (MIA_IN_SLACK, "mia@northwind.example")
    assert found.workspace == workspace
    await stage.advance(LINK_CODE_LIFE - MINUTE)
    assert await stage.store.find_link_code(code.code_hash) is not None
    await stage.advance(MINUTE)
    assert await stage.store.find_link_code(code.code_hash) is None
    with pytest.raises(LinkCodeSpent):
        await stage.store.redeem_link_code(code.code_hash, MIA_AT_NORTHWIND, MappingId("m"), EVENT)


async def test_a_newer_code_ends_the_older_ones(stage: Stage) -> None:
    """One Slack user has one code that works; other users' codes stay."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    others = await _create(
        stage.store, _code(workspace, "other", replace(MIA_IN_SLACK, user_id="U0BEN"))
    )
    older = await _create(stage.store, _code(workspace, "older"))
    newer = await _create(stage.store, _code(workspace, "newer"))
    assert await stage.store.find_link_code(older) is None
    assert await stage.store.find_link_code(newer) is not None
    assert await stage.store.find_link_code(others) is not None


async def test_of_codes_made_at_once_one_works(stage: Stage) -> None:
    """A Slack user who asks many times at once still has one code."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    codes = [_code(workspace, f"code {number}") for number in range(12)]
    refusals = await asyncio.gather(*(_refusal(_create(stage.store, code)) for code in codes))
    assert refusals.count(None) == LINK_CODE_LIMIT
    assert refusals.count(TooManyLinkCodes) == 12 - LINK_CODE_LIMIT
    found = [await stage.store.find_link_code(code.code_hash) for code in codes]
    assert len([each for each in found if each]) == 1


async def test_a_slack_user_gets_few_codes_in_a_while(stage: Stage) -> None:
    """The sixth code in ten minutes is refused, with the time when the next one is due."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _create(stage.store, _code(workspace, "first"))
    await stage.advance(4 * MINUTE)
    for number in range(1, LINK_CODE_LIMIT):
        await _create(stage.store, _code(workspace, f"code {number}"))
    with pytest.raises(TooManyLinkCodes) as refusal:
        await _create(stage.store, _code(workspace, "too many"))
    assert refusal.value.retry_after is not None
    assert 5 * MINUTE < refusal.value.retry_after <= 6 * MINUTE
    await stage.advance(6 * MINUTE)
    assert await _create(stage.store, _code(workspace, "in time"))


async def test_redeeming_links_and_spends(stage: Stage) -> None:
    """A code makes its link and is gone."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code_hash = await _create(stage.store, _code(workspace, "one"))
    assert not await stage.store.redeem_link_code(
        code_hash, MIA_AT_NORTHWIND, MappingId("m1"), EVENT
    )
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    assert (mapping.mapping_id, mapping.person, mapping.last_used_at) == ("m1", MIA, None)
    assert await stage.store.find_link_code(code_hash) is None
    with pytest.raises(LinkCodeSpent):
        await stage.store.redeem_link_code(code_hash, MIA_AT_NORTHWIND, MappingId("m2"), EVENT)


async def test_of_redeems_at_once_one_succeeds(stage: Stage) -> None:
    """Twenty redeems of one code make one link."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code_hash = await _create(stage.store, _code(workspace, "one"))
    assert await stage.audited() == ["workspace.claimed"]
    sessions = [MIA_AT_NORTHWIND, ADA_AT_NORTHWIND] * 10
    refusals = await asyncio.gather(
        *(
            _refusal(
                stage.store.redeem_link_code(code_hash, session, MappingId(f"m{number}"), EVENT)
            )
            for number, session in enumerate(sessions)
        )
    )
    assert refusals.count(None) == 1
    assert refusals.count(LinkCodeSpent) == 19
    (found,) = await stage.store.list_workspaces(NORTHWIND.tenant_id)
    assert found.linked_users == 1
    # Whoever was refused left no record of a link.
    assert await stage.audited() == ["workspace.claimed", EVENT.event]


async def test_another_tenant_cannot_redeem_and_does_not_spend(stage: Stage) -> None:
    """The store itself refuses a session of another tenant, and the code stays usable."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code_hash = await _create(stage.store, _code(workspace, "one"))
    with pytest.raises(LinkCodeSpent):
        await stage.store.redeem_link_code(code_hash, OLGA_AT_CONTOSO, MappingId("m"), EVENT)
    assert await stage.store.find_link_code(code_hash) is not None


async def test_a_slack_user_linked_elsewhere_stays_there(stage: Stage) -> None:
    """Another account cannot take over a link, and the code stays usable."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code_hash = await _create(stage.store, _code(workspace, "one"))
    mapping = await _plant(stage, workspace)
    with pytest.raises(UserLinkedElsewhere):
        await stage.store.redeem_link_code(code_hash, ADA_AT_NORTHWIND, MappingId("m"), EVENT)
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) == mapping
    assert await stage.store.find_link_code(code_hash) is not None


async def test_redeeming_for_the_same_account_spends_the_code(stage: Stage) -> None:
    """A link that exists is reported, not made twice."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    code_hash = await _create(stage.store, _code(workspace, "one"))
    mapping = await _plant(stage, workspace)
    assert await stage.store.redeem_link_code(code_hash, MIA_AT_NORTHWIND, MappingId("m"), EVENT)
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) == mapping
    assert await stage.store.find_link_code(code_hash) is None


async def _plant(stage: Stage, workspace: Workspace) -> UserMapping:
    """Link Mia behind the store's back, as an import does, while a code of hers is open."""
    mapping = UserMapping(
        mapping_id=MappingId("wsum_imported"),
        tenant_id=workspace.tenant_id,
        workspace_id=workspace.workspace_id,
        slack_user=MIA_IN_SLACK,
        person=MIA,
        linked_at=datetime(2026, 11, 24, 9, 0, tzinfo=UTC),
        last_used_at=None,
    )
    await stage.store.remember(MIA, NORTHWIND)
    await stage.plant(mapping)
    return mapping


async def test_a_linked_slack_user_gets_no_code(stage: Stage) -> None:
    """Whoever is linked has nothing to redeem."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    with pytest.raises(UserAlreadyLinked):
        await _create(stage.store, _code(workspace, "again"))


async def test_codes_end_with_the_claim(stage: Stage) -> None:
    """A code of a released workspace does not work, also not after a reinstall."""
    installation_id = uuid4()
    claimed = await stage.store.claim(_claim(NORTHWIND, TEAM, installation_id), ORIGIN)
    code_hash = await _create(stage.store, _code(claimed.workspace.workspace, "one"))
    await stage.store.release(TEAM, installation_id, ORIGIN)
    assert await stage.store.find_link_code(code_hash) is None
    with pytest.raises(LinkCodeSpent):
        await stage.store.redeem_link_code(code_hash, MIA_AT_NORTHWIND, MappingId("m"), EVENT)
    await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    assert await stage.store.find_link_code(code_hash) is None


async def test_an_unknown_code_is_spent(stage: Stage) -> None:
    """A made-up code is answered like a used one."""
    assert await stage.store.find_link_code(hash_link_code("made up")) is None
    with pytest.raises(LinkCodeSpent):
        await stage.store.redeem_link_code(
            hash_link_code("made up"), MIA_AT_NORTHWIND, MappingId("m"), EVENT
        )


# Links.


async def test_a_user_of_an_enterprise_links_once(stage: Stage) -> None:
    """The same user is found from another team of the Enterprise, but not from outside of it."""
    workspace = await _claimed(stage.store, NORTHWIND, ENTERPRISE)
    mapping = await _link(
        stage.store, workspace, slack_user=SlackUser("T0GRID1", "E0GRID", "U0MIA")
    )
    elsewhere = SlackUser("T0GRID2", "E0GRID", "U0MIA")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, elsewhere) == mapping
    outside = SlackUser("T0GRID2", "", "U0MIA")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, outside) is None


async def test_the_same_user_id_in_another_team_is_another_user(stage: Stage) -> None:
    """Outside an Enterprise a user id means nothing without its team."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    other = replace(MIA_IN_SLACK, team_id="T0OTHER")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, other) is None
    assert await stage.store.find_mapping(CONTOSO.tenant_id, MIA_IN_SLACK) is None


async def test_links_are_listed_newest_first_in_pages(stage: Stage) -> None:
    """Pages follow each other without gap or repetition; one account sees its own."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    for session, user_id in [
        (MIA_AT_NORTHWIND, "U0ONE"),
        (ADA_AT_NORTHWIND, "U0TWO"),
        (MIA_AT_NORTHWIND, "U0THREE"),
    ]:
        await stage.advance(MINUTE)
        slack_user = replace(MIA_IN_SLACK, user_id=user_id)
        await _link(stage.store, workspace, session, slack_user)
    place = (NORTHWIND.tenant_id, workspace.workspace_id)
    first = await stage.store.list_mappings(*place, of_user=None, after=None, limit=2)
    cursor = MappingCursor(first[-1].linked_at, first[-1].mapping_id)
    rest = await stage.store.list_mappings(*place, of_user=None, after=cursor, limit=2)
    assert [each.slack_user.user_id for each in first + rest] == ["U0THREE", "U0TWO", "U0ONE"]
    own = await stage.store.list_mappings(*place, of_user=ADA.user_id, after=None, limit=2)
    assert [each.slack_user.user_id for each in own] == ["U0TWO"]
    nowhere = await stage.store.list_mappings(
        CONTOSO.tenant_id, workspace.workspace_id, of_user=None, after=None, limit=2
    )
    assert nowhere == []


async def test_a_link_is_removed_by_its_account_or_its_tenant(stage: Stage) -> None:
    """Another account and another tenant remove nothing."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    mapping_id = (await _link(stage.store, workspace)).mapping_id
    tenant_id = NORTHWIND.tenant_id
    assert not await stage.store.remove_mapping(
        tenant_id, mapping_id, of_user=ADA.user_id, origin=ORIGIN
    )
    assert not await stage.store.remove_mapping(
        CONTOSO.tenant_id, mapping_id, of_user=None, origin=ORIGIN
    )
    assert await stage.store.remove_mapping(
        tenant_id, mapping_id, of_user=MIA.user_id, origin=ORIGIN
    )
    assert not await stage.store.remove_mapping(tenant_id, mapping_id, of_user=None, origin=ORIGIN)
    mapping_id = (await _link(stage.store, workspace)).mapping_id
    assert await stage.store.remove_mapping(tenant_id, mapping_id, of_user=None, origin=ORIGIN)


async def test_a_use_is_noted_while_the_link_is_there(stage: Stage) -> None:
    """A link that was removed cannot be used."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    mapping_id = (await _link(stage.store, workspace)).mapping_id
    assert not await stage.store.use_mapping(CONTOSO.tenant_id, mapping_id, EVENT)
    assert await stage.store.use_mapping(NORTHWIND.tenant_id, mapping_id, EVENT)
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    assert mapping.last_used_at is not None
    await stage.store.remove_mapping(NORTHWIND.tenant_id, mapping_id, of_user=None, origin=ORIGIN)
    assert not await stage.store.use_mapping(NORTHWIND.tenant_id, mapping_id, EVENT)


# People.


async def test_a_link_shows_its_account_as_last_seen(stage: Stage) -> None:
    """A changed name or address appears in links that were made before."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    renamed = replace(MIA, name="Mia C.", email="mc@northwind.example")
    await stage.store.remember(renamed, NORTHWIND)
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    assert mapping.person == renamed


async def test_who_is_noted_without_a_name_keeps_the_one_that_is_known(stage: Stage) -> None:
    """An operator's import names ids only; an organization so noted can claim."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    await stage.store.note(MIA.user_id, NORTHWIND.tenant_id)
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    assert mapping.person == MIA
    await stage.store.note(UserId("user_fay"), TenantId("fabrikam"))
    assert await stage.upkeep.forget_organization(TenantId("fabrikam"), ORIGIN) == 0


async def test_a_forgotten_account_loses_its_links(stage: Stage) -> None:
    """Off-boarding a person removes their links and nobody else's."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    ben = replace(MIA_IN_SLACK, user_id="U0ADA")
    await _link(stage.store, workspace, ADA_AT_NORTHWIND, ben)
    assert await stage.upkeep.forget_user(MIA.user_id, ORIGIN) == 1
    assert await stage.upkeep.forget_user(MIA.user_id, ORIGIN) == 0
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) is None
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, ben) is not None


async def test_a_forgotten_organization_loses_everything(stage: Stage) -> None:
    """Off-boarding an organization removes its claims, links and defaults."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    assert await stage.upkeep.forget_organization(NORTHWIND.tenant_id, ORIGIN) == 1
    assert await stage.upkeep.forget_organization(NORTHWIND.tenant_id, ORIGIN) == 0
    assert await stage.store.find_workspace(TEAM) is None
    with pytest.raises(OrganizationNotFound):
        await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    assert not (await stage.store.claim(_claim(CONTOSO, TEAM), ORIGIN)).was_claimed


# Default agents.


async def test_a_default_is_set_replaced_and_removed(stage: Stage) -> None:
    """Each place has one default; the workspace's own is listed first."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    place = (NORTHWIND.tenant_id, workspace.workspace_id)
    channel = AgentDefault("C0HELP", Agent("support", "triage"), grants_access=True)
    whole = AgentDefault("", Agent("docs", "helper"), grants_access=False)
    for chosen in (channel, replace(whole, agent=Agent("docs", "old")), whole):
        await stage.store.set_agent_default(*place, chosen, ADA.user_id, EVENT)
    assert await stage.store.list_agent_defaults(*place) == [whole, channel]
    await stage.store.remove_agent_default(
        CONTOSO.tenant_id, workspace.workspace_id, "C0HELP", EVENT
    )
    assert await stage.store.list_agent_defaults(*place) == [whole, channel]
    for _ in range(2):
        await stage.store.remove_agent_default(*place, "C0HELP", EVENT)
    assert await stage.store.list_agent_defaults(*place) == [whole]


async def test_a_default_can_be_set_by_an_account_that_identity_never_saw(stage: Stage) -> None:
    """An administrator who never linked may choose agents."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    place = (NORTHWIND.tenant_id, workspace.workspace_id)
    whole = AgentDefault("", Agent("docs", "helper"), grants_access=False)
    await stage.store.set_agent_default(*place, whole, UserId("user_ben"), EVENT)
    assert await stage.store.list_agent_defaults(*place) == [whole]


async def test_another_tenant_sets_and_sees_no_default(stage: Stage) -> None:
    """A workspace's id alone opens nothing."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    whole = AgentDefault("", Agent("docs", "helper"), grants_access=False)
    with pytest.raises(WorkspaceNotFound):
        await stage.store.set_agent_default(
            CONTOSO.tenant_id, workspace.workspace_id, whole, OLGA.user_id, EVENT
        )
    await stage.store.set_agent_default(
        NORTHWIND.tenant_id, workspace.workspace_id, whole, ADA.user_id, EVENT
    )
    assert await stage.store.list_agent_defaults(CONTOSO.tenant_id, workspace.workspace_id) == []


async def test_the_operators_agent_is_noted_for_each_tenant(stage: Stage) -> None:
    """What one tenant lacks another may have, and another agent is another matter."""
    agent, other = Agent("home", "any"), Agent("home", "other")
    assert not await stage.store.lacks_operator_agent(NORTHWIND.tenant_id, agent)
    await stage.store.note_operator_agent(NORTHWIND.tenant_id, agent, is_there=False)
    assert await stage.store.lacks_operator_agent(NORTHWIND.tenant_id, agent)
    assert not await stage.store.lacks_operator_agent(NORTHWIND.tenant_id, other)
    assert not await stage.store.lacks_operator_agent(CONTOSO.tenant_id, agent)
    await stage.store.note_operator_agent(NORTHWIND.tenant_id, agent, is_there=True)
    assert not await stage.store.lacks_operator_agent(NORTHWIND.tenant_id, agent)


async def test_a_subject_is_the_claim_with_the_link_in_its_tenant(stage: Stage) -> None:
    """One look finds both, by the install's whole key, and no link of another tenant."""
    assert await stage.store.find_subject(TEAM, MIA_IN_SLACK) is None
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    assert await stage.store.find_subject(TEAM, MIA_IN_SLACK) == (workspace, None)
    mapping = await _link(stage.store, workspace)
    assert await stage.store.find_subject(TEAM, MIA_IN_SLACK) == (workspace, mapping)
    other = replace(MIA_IN_SLACK, user_id="U0BEN")
    assert await stage.store.find_subject(TEAM, other) == (workspace, None)
    for key in (replace(TEAM, app_id="A0OTHER"), replace(TEAM, enterprise_id="E0GRID")):
        assert await stage.store.find_subject(key, MIA_IN_SLACK) is None


async def test_a_subject_of_an_enterprise_is_found_from_any_team(stage: Stage) -> None:
    """A Grid user who linked in one team is the same in the next."""
    workspace = await _claimed(stage.store, NORTHWIND, ENTERPRISE)
    at_home = SlackUser("T0GRID1", "E0GRID", "U0MIA")
    mapping = await _link(stage.store, workspace, slack_user=at_home)
    elsewhere = replace(at_home, team_id="T0GRID2")
    assert await stage.store.find_subject(ENTERPRISE, elsewhere) == (workspace, mapping)


# Records.


async def test_what_changes_something_is_recorded_with_it(stage: Stage) -> None:
    """Each change leaves one record; what changed nothing leaves none."""
    await _release(stage.store, NORTHWIND, TEAM)
    assert not await stage.store.release(TEAM, uuid4(), ORIGIN)
    claimed = (await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)).workspace.workspace
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    place = (NORTHWIND.tenant_id, claimed.workspace_id)
    for _ in range(2):
        await stage.store.remove_agent_default(*place, "", replace(EVENT, event="default"))
    link = (NORTHWIND.tenant_id, mapping.mapping_id)
    await stage.store.use_mapping(*link, replace(EVENT, event="used"))
    for _ in range(2):
        await stage.store.remove_mapping(*link, of_user=None, origin=ORIGIN)
    assert not await stage.store.use_mapping(*link, EVENT)
    assert await stage.audited() == [
        "workspace.claimed",
        "tested",
        "tested",
        "workspace.released",
        "workspace.claimed",
        "default",
        "used",
        "user.unlinked",
    ]


# Off-boarding.


async def test_seats_are_listed_once_for_each_account(stage: Stage) -> None:
    """Somebody with two links has one seat; pages follow each other by tenant and user."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    await _link(stage.store, workspace, slack_user=replace(MIA_IN_SLACK, user_id="U0MIA2"))
    await _link(stage.store, workspace, ADA_AT_NORTHWIND, replace(MIA_IN_SLACK, user_id="U0ADA"))
    theirs = await _claimed(stage.store, CONTOSO, GRID_TEAM)
    olga = SlackUser("T0GRID1", "E0GRID", "U0OLGA")
    await _link(stage.store, theirs, OLGA_AT_CONTOSO, olga)
    everybody = await stage.upkeep.list_seats(None, 10)
    assert [(each.account.tenant_id, each.account.user_id) for each in everybody] == [
        ("contoso", "user_olga"),
        ("northwind", "user_ada"),
        ("northwind", "user_mia"),
    ]
    assert everybody[0].slack_user == olga
    first = await stage.upkeep.list_seats(None, 2)
    assert first + await stage.upkeep.list_seats(first[-1].account, 2) == everybody
    assert await stage.upkeep.list_seats(everybody[-1].account, 2) == []


async def test_organizations_are_listed_in_pages(stage: Stage) -> None:
    """Each known organization comes once."""
    first = await stage.upkeep.list_organizations(None, 1)
    second = await stage.upkeep.list_organizations(first[-1], 1)
    assert [*first, *second] == ["contoso", "northwind"]
    assert await stage.upkeep.list_organizations(second[-1], 1) == []


async def test_an_absence_counts_from_the_first_time_and_ends(stage: Stage) -> None:
    """Somebody is gone after the whole grace period; being found starts it anew."""
    mia = Account(NORTHWIND.tenant_id, MIA.user_id)
    ada = Account(NORTHWIND.tenant_id, ADA.user_id)
    note = stage.upkeep.note_attendance
    assert await note([], [mia, ada], HOUR) == []
    await stage.advance(59 * MINUTE)
    assert await note([ada], [mia], HOUR) == []
    await stage.advance(MINUTE)
    assert await note([], [mia, ada], HOUR) == [mia]
    assert await note([mia], [ada], HOUR) == []
    assert await note([], [mia], HOUR) == []
    assert await note([], [mia, ada], timedelta(0)) == [ada, mia]


async def test_a_departed_account_loses_its_links_in_that_tenant(stage: Stage) -> None:
    """Links elsewhere and of others stay, and so does the workspace that the account installed."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    theirs = await _claimed(stage.store, CONTOSO, GRID_TEAM)
    in_grid = SlackUser("T0GRID1", "E0GRID", "U0ADA")
    in_team = replace(MIA_IN_SLACK, user_id="U0ADA")
    await _link(stage.store, workspace, ADA_AT_NORTHWIND, in_team)
    await _link(stage.store, workspace)
    await _link(stage.store, theirs, _session(ADA, CONTOSO), in_grid)
    account = Account(NORTHWIND.tenant_id, ADA.user_id)
    assert await stage.upkeep.remove_departed(account, ORIGIN) == 1
    assert await stage.upkeep.remove_departed(account, ORIGIN) == 0
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, in_team) is None
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) is not None
    assert await stage.store.find_mapping(CONTOSO.tenant_id, in_grid) is not None
    assert await stage.store.find_workspace(TEAM) == workspace
    assert (await stage.audited()).count("user.unlinked") == 1


async def test_what_is_forgotten_is_recorded(stage: Stage) -> None:
    """Each link that ends has its record, and so has the order to forget."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    before = len(await stage.audited())
    await stage.upkeep.forget_user(MIA.user_id, ORIGIN)
    await _link(stage.store, workspace)
    await stage.upkeep.forget_organization(NORTHWIND.tenant_id, ORIGIN)
    assert (await stage.audited())[before:] == [
        "user.unlinked",
        "user.forgotten",
        "tested",
        "user.unlinked",
        "organization.forgotten",
    ]


# Retention.


async def test_codes_are_kept_for_a_while_after_their_end(stage: Stage) -> None:
    """What ended is emptied at once and removed later, used or not; what works stays."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    await _create(stage.store, _code(workspace, "old", replace(MIA_IN_SLACK, user_id="U0OLD")))
    await stage.advance(LINK_CODE_LIFE)
    new = await _create(
        stage.store, _code(workspace, "new", replace(MIA_IN_SLACK, user_id="U0NEW"))
    )
    assert await stage.upkeep.erase_ended_codes(10) == 1
    assert await stage.upkeep.erase_ended_codes(10) == 0
    assert await stage.upkeep.drop_codes(DAY, 10) == 0
    found = await stage.store.find_link_code(new)
    assert found is not None
    assert found.email == "mia@northwind.example"
    await stage.advance(DAY)
    assert await stage.upkeep.drop_codes(DAY, 1) == 1
    assert await stage.upkeep.drop_codes(DAY, 10) == 1
    assert await stage.upkeep.drop_codes(timedelta(0), 10) == 1


async def test_a_released_claim_waits_for_its_tenant_and_then_ends(stage: Stage) -> None:
    """After its time a reinstall starts from nothing; a claim that came back is not touched."""
    before = await _release(stage.store, NORTHWIND, TEAM)
    await stage.advance(30 * DAY - MINUTE)
    assert await stage.upkeep.end_released_claims(30 * DAY, 10, ORIGIN) == 0
    again = await stage.store.claim(_claim(NORTHWIND, TEAM), ORIGIN)
    assert again.workspace.workspace.workspace_id == before.workspace_id
    await stage.advance(30 * DAY)
    assert await stage.upkeep.end_released_claims(30 * DAY, 10, ORIGIN) == 0
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) is not None
    await _release(stage.store, NORTHWIND, ENTERPRISE)
    await stage.advance(30 * DAY)
    assert await stage.upkeep.end_released_claims(30 * DAY, 10, ORIGIN) == 1
    assert (await stage.audited())[-2:] == ["user.unlinked", "workspace.ended"]
    in_grid = SlackUser("E0GRID", "E0GRID", "U0MIA")
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, in_grid) is None
    fresh = await stage.store.claim(_claim(NORTHWIND, ENTERPRISE), ORIGIN)
    assert fresh.workspace.linked_users == 0


async def test_names_go_with_the_last_link(stage: Stage) -> None:
    """Whoever has no link and was not seen for a day has neither name nor address here."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    await stage.advance(DAY)
    # Ada installed, Olga only looked; Mia is linked.
    assert await stage.upkeep.erase_names(DAY, 10) == 2
    assert await stage.upkeep.erase_names(DAY, 10) == 0
    mapping = await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK)
    assert mapping is not None
    assert mapping.person == MIA
    await stage.store.remember(ADA, NORTHWIND)
    assert await stage.upkeep.erase_names(DAY, 10) == 0


async def test_nobody_is_known_without_a_reason(stage: Stage) -> None:
    """Accounts and organizations that nothing stands on go a day after they were last seen."""
    workspace = await _claimed(stage.store, NORTHWIND, TEAM)
    await _link(stage.store, workspace)
    await stage.advance(DAY - MINUTE)
    assert await stage.upkeep.drop_strangers(DAY, 10) == 0
    await stage.store.remember(OLGA, CONTOSO)
    await stage.advance(MINUTE)
    assert await stage.upkeep.drop_strangers(DAY, 10) == 0
    await stage.advance(DAY)
    assert await stage.upkeep.drop_strangers(DAY, 10) == 2
    assert await stage.upkeep.list_organizations(None, 10) == ["northwind"]
    assert await stage.store.find_mapping(NORTHWIND.tenant_id, MIA_IN_SLACK) is not None


# Turns.


async def test_a_turn_is_one_replicas_at_a_time_and_not_too_often(stage: Stage) -> None:
    """Whoever comes meanwhile does not get it, nor whoever comes too soon after."""
    async with stage.upkeep.take("sweep", HOUR) as is_ours:
        assert is_ours
        async with stage.upkeep.take("sweep", HOUR) as is_theirs:
            assert not is_theirs
        async with stage.upkeep.take("clean", HOUR) as another:
            assert another
    async with stage.upkeep.take("sweep", HOUR) as too_soon:
        assert not too_soon
    await stage.advance(HOUR)
    async with stage.upkeep.take("sweep", HOUR) as is_due:
        assert is_due


async def test_a_turn_that_failed_is_taken_again(stage: Stage) -> None:
    """An error neither finishes the task nor keeps its lock."""
    with pytest.raises(LinkCodeSpent):
        async with stage.upkeep.take("sweep", HOUR):
            raise LinkCodeSpent
    async with stage.upkeep.take("sweep", HOUR) as is_ours:
        assert is_ours


# The record.


async def test_the_record_is_read_as_it_was_written(stage: Stage) -> None:
    """Every field comes back, newest first, in pages; each question narrows it."""
    by_ben = replace(ORIGIN, grant_jti="grant_1", actor_id="user_ben")
    full = AuditEvent(
        "token.issued",
        by_ben,
        **{name: f"a {name}" for name in TEXTS},
        outcome="REFUSED",
        count=3,
    )
    others = [replace(EVENT, tenant_id="contoso"), replace(EVENT, user_id="user_mia")]
    await stage.audit.record([full, *others])
    await stage.audit.record([replace(full, tenant_id="contoso")])

    async def found(limit: int = 9, before: int | None = None, **sought: str) -> list[AuditEvent]:
        listed = await stage.audit.list_events(Sought(**sought), before=before, limit=limit)
        return [each.event for each in listed]

    everything = [replace(full, tenant_id="contoso"), *others[::-1], full]
    assert await found() == everything
    assert await found(limit=2) == everything[:2]
    second = (await stage.audit.list_events(Sought(), before=None, limit=2))[-1].number
    assert await found(before=second) == everything[2:]
    assert await found(tenant_id="contoso") == [everything[0], others[0]]
    assert await found(user_id="user_mia") == [others[1]]
    assert await found(user_id="user_ben") == [everything[0], full]
    assert await found(event="tested", tenant_id="contoso") == [others[0]]
    assert await found(event="TESTED") == []
    in_place = replace(full, event="tested", workspace_id="elsewhere")
    of_tenant = replace(EVENT, tenant_id="a tenant_id", workspace_id="")
    await stage.audit.record([in_place, of_tenant])

    async def found_here(event: str = "") -> list[AuditEvent]:
        return await found(tenant_id="a tenant_id", workspace_id="a workspace_id", event=event)

    assert await found_here() == [of_tenant, full]
    assert await found_here("token.issued") == [full]
    assert await found_here("tested") == [of_tenant]


async def test_a_refusal_is_found_by_whoever_has_the_workspace(stage: Stage) -> None:
    """An event names a team; its record names the claim on it, of that tenant and no other."""
    team = await _claimed(stage.store, NORTHWIND, WorkspaceKey("", "T0TEAM", "A0APP"))
    grid = await _claimed(stage.store, CONTOSO, WorkspaceKey("E0GRID", "", "A0APP"))
    refused = replace(EVENT, event="call.refused", tenant_id="", workspace_id="")
    by_event = [
        replace(refused, slack_team_id="T0TEAM", slack_enterprise_id=""),
        # A team of the Enterprise, whose own installation there is none of.
        replace(refused, slack_team_id="T0INSIDE", slack_enterprise_id="E0GRID"),
        replace(refused, slack_team_id="T0NOBODY", slack_enterprise_id=""),
        # Whoever proved another tenant than the workspace's stays with their own.
        replace(refused, slack_team_id="T0TEAM", slack_enterprise_id="", tenant_id="contoso"),
        replace(refused, slack_team_id="", slack_enterprise_id=""),
    ]
    await stage.audit.record(by_event)
    listed = await stage.audit.list_events(Sought(event="call.refused"), before=None, limit=9)
    owners = [(each.event.tenant_id, each.event.workspace_id) for each in reversed(listed)]
    nobody = ("", "")
    assert owners == [
        ("northwind", team.workspace_id),
        ("contoso", grid.workspace_id),
        nobody,
        ("contoso", ""),
        nobody,
    ]


async def test_accounts_are_named_as_they_are_called_now(stage: Stage) -> None:
    """Whoever is unknown, or known without a name, is left out."""
    await stage.store.note(UserId("user_nameless"), NORTHWIND.tenant_id)
    await stage.store.remember(replace(ADA, name="Ada L."), NORTHWIND)
    asked = frozenset({ADA.user_id, UserId("user_nameless"), UserId("user_nobody")})
    assert await stage.audit.list_names(asked) == {ADA.user_id: "Ada L."}
    assert await stage.audit.list_names(frozenset()) == {}


TEXTS = (
    "tenant_id", "workspace_id", "slack_enterprise_id", "slack_team_id", "slack_user_id",
    "user_id", "token_jti", "purpose", "project_id", "agent_id", "channel_id",
)  # fmt: skip
