"""Whatever happens in whatever order: links and tokens are those that a small model allows.

A state machine claims, creates, redeems, expires, unlinks, leaves, uninstalls,
sweeps, forgets and renews, through identity's use cases on a real Postgres.
"""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import open_engine
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.adapters.memory import FakeAgents, FakeMembership
from interlock_identity.adapters.postgres import PostgresStore
from interlock_identity.adapters.postgres_audit import PostgresAuditLog
from interlock_identity.adapters.postgres_upkeep import PostgresUpkeep
from interlock_identity.domain.audit import Origin
from interlock_identity.domain.linking import (
    CodeHash,
    EmailPolicy,
    MappingId,
    SlackUser,
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
from interlock_identity.domain.requester import Requester
from interlock_identity.domain.workspaces import WorkspaceKey
from interlock_identity.issuing import Errand, Issuing
from interlock_identity.linking import LINK_CODE_LIFE, LINK_CODE_WINDOW, Linking
from interlock_identity.membership import RememberedMembership
from interlock_identity.migrations import DATABASE
from interlock_identity.offboarding import Offboarding
from interlock_identity.workspaces import InstallFacts, Workspaces
from interlock_tokens.families import Family
from interlock_tokens.grants import InstallGrant, SlackGrant, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.verifying import verify_slack_grant, verify_user_token

_T = TypeVar("_T")

TENANTS = ("contoso", "northwind")
# Of each tenant; the owner never leaves, so that the organization exists.
PEOPLE = ("mia", "ben", "owner")
TEAM = WorkspaceKey("", "T0TEAM", "A0APP")
GRID = WorkspaceKey("E0GRID", "", "A0APP")
GRID_TEAM = WorkspaceKey("E0GRID", "T0GRID1", "A0APP")
KEYS = (TEAM, GRID, GRID_TEAM)
# A Grid user is seen in two teams, and is one.
SIGHTINGS = {
    TEAM: [SlackUser("T0TEAM", "", user) for user in ("U0ONE", "U0TWO")],
    GRID: [
        SlackUser(team, "E0GRID", user)
        for team in ("T0GRID1", "T0GRID2")
        for user in ("U0ONE", "U0TWO")
    ],
    GRID_TEAM: [SlackUser("T0GRID1", "E0GRID", user) for user in ("U0ONE", "U0TWO")],
}
ORIGIN = Origin("test", "/test", "request")
KEEP = timedelta(days=30)

keys = st.sampled_from(KEYS)
tenants = st.sampled_from(TENANTS)
people = st.sampled_from([(tenant, name) for tenant in TENANTS for name in PEOPLE])
# How many browsers try at once.
times = st.integers(1, 3)
# What ends much happens less often than what begins it, or nothing would ever be there to end.
rarely = st.sampled_from([True, False, False, False, False])


def _sightings() -> st.SearchStrategy[tuple[WorkspaceKey, SlackUser]]:
    return st.sampled_from([(key, user) for key in KEYS for user in SIGHTINGS[key]])


def _same(slack_user: SlackUser) -> tuple[str, str]:
    """Name a Slack user: in an Enterprise by it, elsewhere by the team."""
    return (slack_user.enterprise_id or slack_user.team_id, slack_user.user_id)


def _session(tenant: str, name: str) -> Session:
    person = Person(UserId(f"{tenant}_{name}"), name, "")
    return Session(person, Tenant(TenantId(tenant), tenant), Role.MEMBER, "ref")


class Numbers:
    """Numbers that begin anew with each example: what is drawn must not depend on the last one."""

    def __init__(self) -> None:
        self.last = 0

    def __next__(self) -> int:
        self.last += 1
        return self.last


@dataclass
class World:
    """Identity's use cases on a real Postgres, with everybody still a member."""

    runner: asyncio.Runner
    owner: "asyncpg.Connection[asyncpg.Record]"
    store: PostgresStore
    upkeep: PostgresUpkeep
    membership: FakeMembership
    grant_keys: Keyset
    user_tokens: Keyset
    workspaces: Workspaces
    linking: Linking
    issuing: Issuing
    offboarding: Offboarding
    codes: Numbers

    def run(self, work: Awaitable[_T]) -> _T:
        """Wait for something."""

        async def wait() -> _T:
            return await work

        return self.runner.run(wait())

    def outcome(self, work: Awaitable[object]) -> str:
        """Wait for something and name its refusal, or say OK."""
        try:
            self.run(work)
        except ServiceError as error:
            return error.reason
        return "OK"

    def all_outcomes(self, *works: Awaitable[object]) -> list[str]:
        """Wait for things that happen at once, and name their refusals."""

        async def outcome(work: Awaitable[object]) -> str:
            try:
                await work
            except ServiceError as error:
                return error.reason
            return "OK"

        async def together() -> list[str]:
            return list(await asyncio.gather(*map(outcome, works)))

        return self.run(together())

    def execute(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Do something past the store."""
        return self.run(self.owner.fetch(statement, *values))

    def start_over(self) -> None:
        """Empty every table; everybody is a member of their tenant."""
        self.execute(
            'TRUNCATE identity.organization, identity."user", identity.audit_events CASCADE'
        )
        self.execute("TRUNCATE identity.absences")
        self.codes.last = 0
        self.membership.roles.clear()
        for tenant in TENANTS:
            for name in PEOPLE:
                session = _session(tenant, name)
                account = Account(session.tenant.tenant_id, session.person.user_id)
                self.membership.roles[account] = Role.MEMBER
                self.run(self.store.remember(session.person, session.tenant))


@pytest.fixture
def world(cluster: ScratchDatabases) -> Iterator[World]:
    """Open the database on a loop of its own, as Hypothesis is no coroutine."""
    with asyncio.Runner() as runner:

        async def opened() -> tuple[Any, World]:
            urls = await cluster.database(DATABASE)
            owner = await asyncpg.connect(urls.owner.reveal())
            context = open_engine(urls.roles["interlock_identity"], application="test")
            engine = await context.__aenter__()
            store, upkeep = PostgresStore(engine), PostgresUpkeep(engine)
            return context, _make_world(runner, owner, store, upkeep, PostgresAuditLog(engine))

        context, world = runner.run(opened())
        try:
            yield world
        finally:
            runner.run(world.owner.close())
            runner.run(context.__aexit__(None, None, None))


def _make_world(
    runner: asyncio.Runner,
    owner: "asyncpg.Connection[asyncpg.Record]",
    store: PostgresStore,
    upkeep: PostgresUpkeep,
    audit: PostgresAuditLog,
) -> World:
    grants = [Family.ADMIN_GRANT, Family.RENEWED_GRANT]
    grant_keys = _keyset(generate_ed25519_key("k1", grants))
    user_tokens = _keyset(generate_hs256_key("k2", [Family.SLACK_USER]))
    membership = FakeMembership()
    codes = Numbers()
    parts: dict[str, Any] = {"clock": SystemClock(), "new_id": lambda: uuid4().hex}
    return World(
        runner=runner,
        owner=owner,
        store=store,
        upkeep=upkeep,
        membership=membership,
        grant_keys=grant_keys,
        user_tokens=user_tokens,
        workspaces=Workspaces(
            workspaces=store,
            agents=FakeAgents(),
            operator_agent=None,
            new_id=lambda: uuid4().hex,
        ),
        linking=Linking(
            workspaces=store,
            links=store,
            grant_keys=grant_keys,
            emails=EmailPolicy(),
            entropy=lambda size: next(codes).to_bytes(size, "big"),
            **parts,
        ),
        issuing=Issuing(
            workspaces=store,
            links=store,
            membership=RememberedMembership(membership, SystemClock(), life=timedelta(0)),
            audit=audit,
            grant_keys=grant_keys,
            user_token_keys=user_tokens,
            default_agent=None,
            **parts,
        ),
        offboarding=Offboarding(store=upkeep, membership=membership, grace=timedelta(0)),
        codes=codes,
    )


def _keyset(key: dict[str, object]) -> Keyset:
    return Keyset.from_json(Secret(json.dumps({"keys": [key]})), variable="KEYS")


@dataclass
class Claimed:
    """What the model knows of a claim."""

    tenant: str
    installation_id: UUID
    is_released: bool = False


@dataclass
class Code:
    """What the model knows of a code."""

    key: WorkspaceKey
    tenant: str
    slack_user: SlackUser
    is_live: bool = True


@dataclass
class Model:
    """What must be so."""

    claims: dict[WorkspaceKey, Claimed] = field(default_factory=dict)
    codes: dict[CodeHash, Code] = field(default_factory=dict)
    # (tenant, the Slack user's name) to (account, the workspace of the link)
    links: dict[tuple[str, tuple[str, str]], tuple[str, WorkspaceKey]] = field(default_factory=dict)

    def rivals(self, key: WorkspaceKey, tenant: str) -> list[WorkspaceKey]:
        """Name the claims of others that exclude this one."""
        grid = {GRID, GRID_TEAM}
        near = grid if key in grid else {key}
        return [each for each in near if each in self.claims and self.claims[each].tenant != tenant]

    def end_claim(self, key: WorkspaceKey) -> None:
        """Forget a claim, its codes and its links."""
        del self.claims[key]
        self.codes = {name: code for name, code in self.codes.items() if code.key != key}
        self.links = {who: link for who, link in self.links.items() if link[1] != key}

    def end_codes(self, key: WorkspaceKey) -> None:
        """End the codes of a workspace."""
        for code in self.codes.values():
            if code.key == key:
                code.is_live = False


class Identity(RuleBasedStateMachine):
    """Identity against its model."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.start_over()
        self.model = Model()

    # Workspaces.

    @initialize(tenant=tenants)
    def begin(self, tenant: str) -> None:
        """Begin with two installs and some links."""
        self.claim(TEAM, tenant)
        self.claim(GRID, "northwind")
        for key, name in ((TEAM, "mia"), (GRID, "ben")):
            for number, sighting in enumerate(SIGHTINGS[key][:2]):
                self.link((key, sighting), name if number else "owner", times=1)

    @rule(key=keys, tenant=tenants)
    def claim(self, key: WorkspaceKey, tenant: str) -> None:
        """Install the app."""
        installation_id = uuid4()
        now = SystemClock().now()
        grant = InstallGrant(
            jti="jti",
            issued_at=now,
            expires_at=now,
            tenant_id=tenant,
            user_id=f"{tenant}_owner",
            state_sha256="0" * 64,
            source="direct",
        )
        facts = InstallFacts(key, "Acme", installation_id, nango=None)
        outcome = self.world.outcome(self.world.workspaces.claim(grant, facts, ORIGIN))
        rivals = self.model.rivals(key, tenant)
        if any(not self.model.claims[each].is_released for each in rivals):
            assert outcome == "WORKSPACE_TAKEN"
            return
        assert outcome == "OK"
        for rival in rivals:
            if key in {rival, GRID}:
                self.model.end_claim(rival)
        self.model.claims[key] = Claimed(tenant, installation_id)

    @rule(key=keys, really=rarely)
    def uninstall(self, key: WorkspaceKey, *, really: bool) -> None:
        """Release a claim, perhaps with a code that was just made."""
        if not really:
            return
        self.create((key, SIGHTINGS[key][0]))
        claimed = self.model.claims.get(key)
        installation_id = claimed.installation_id if claimed else uuid4()
        released = self.world.run(self.world.workspaces.release(key, installation_id, ORIGIN))
        assert released == (claimed is not None and not claimed.is_released)
        if claimed:
            claimed.is_released = True
            self.model.end_codes(key)

    @rule(really=rarely)
    def wait_a_month(self, *, really: bool) -> None:
        """Let released claims end."""
        if not really:
            return
        self.world.execute(
            "UPDATE identity.work_app_slack_workspaces"
            " SET released_at = released_at - $1::interval",
            KEEP,
        )
        self.world.run(self.world.upkeep.end_released_claims(KEEP, 100, ORIGIN))
        for key, claimed in list(self.model.claims.items()):
            if claimed.is_released:
                self.model.end_claim(key)

    # Codes and links.

    @rule(sighting=_sightings())
    def create(self, sighting: tuple[WorkspaceKey, SlackUser]) -> None:
        """Ask for a link in Slack."""
        key, slack_user = sighting
        # How many codes one gets is another test's matter.
        self.world.execute(
            "UPDATE identity.work_app_slack_account_link_codes"
            " SET created_at = created_at - $1::interval",
            LINK_CODE_WINDOW,
        )
        requester = Requester(key, slack_user, is_stranger=False)
        tenant = self.tenant_of(key)
        if tenant is None:
            work = self.world.linking.create_link_code(requester, "Mia", "")
            assert self.world.outcome(work) == "WORKSPACE_NOT_FOUND"
            return
        if (tenant, _same(slack_user)) in self.model.links:
            work = self.world.linking.create_link_code(requester, "Mia", "")
            assert self.world.outcome(work) == "USER_ALREADY_LINKED"
            return
        code, _ = self.world.run(self.world.linking.create_link_code(requester, "Mia", ""))
        for older in self.model.codes.values():
            if older.tenant == tenant and _same(older.slack_user) == _same(slack_user):
                older.is_live = False
        self.model.codes[hash_link_code(code.reveal())] = Code(key, tenant, slack_user)

    @rule(sighting=_sightings(), name=st.sampled_from(PEOPLE), times=times)
    def link(self, sighting: tuple[WorkspaceKey, SlackUser], name: str, times: int) -> None:
        """Ask for a link, and redeem it as somebody of the workspace's tenant."""
        before = set(self.model.codes)
        self.create(sighting)
        for code in set(self.model.codes) - before:
            self.redeem_code(code, (self.model.codes[code].tenant, name), times)

    @precondition(lambda self: self.model.codes)
    @rule(data=st.data(), who=people, times=times)
    def redeem(self, data: st.DataObject, who: tuple[str, str], times: int) -> None:
        """Redeem a code, old or new."""
        self.redeem_code(data.draw(st.sampled_from(sorted(self.model.codes))), who, times)

    def redeem_code(self, name: CodeHash, who: tuple[str, str], times: int) -> None:
        """Redeem a code several times at once, with an outsider, and see who gets the link.

        By one insider, so that the same example always ends alike.
        """
        code = self.model.codes[name]
        everybody = [who] * times + [(each, "owner") for each in TENANTS if each != code.tenant]
        outcomes = self.world.all_outcomes(
            *(
                self.world.linking.redeem(
                    _session(*each), name, email_difference_confirmed=True, origin=ORIGIN
                )
                for each in everybody
            )
        )
        is_live = code.is_live and self.tenant_of(code.key) == code.tenant
        insiders = [each for each in everybody if each[0] == code.tenant]
        for each, outcome in zip(everybody, outcomes, strict=True):
            if each in insiders:
                allowed = {"OK", "LINK_CODE_SPENT"} if is_live else {"LINK_CODE_SPENT"}
            else:
                allowed = {"NOT_YOUR_TENANT", "LINK_CODE_SPENT"} if is_live else {"LINK_CODE_SPENT"}
            assert outcome in allowed
        assert outcomes.count("OK") == (1 if is_live and insiders else 0)
        if "OK" in outcomes:
            tenant, person = everybody[outcomes.index("OK")]
            code.is_live = False
            account = f"{tenant}_{person}"
            self.model.links[tenant, _same(code.slack_user)] = (account, code.key)

    @rule(really=rarely)
    def expire(self, *, really: bool) -> None:
        """Let an hour pass for every code."""
        if not really:
            return
        self.world.execute(
            "UPDATE identity.work_app_slack_account_link_codes"
            " SET expires_at = expires_at - $1::interval",
            LINK_CODE_LIFE,
        )
        for code in self.model.codes.values():
            code.is_live = False

    @rule()
    def clean(self) -> None:
        """Remove codes that ended."""
        self.world.run(self.world.upkeep.erase_ended_codes(1000))
        self.world.run(self.world.upkeep.drop_codes(timedelta(0), 1000))

    @precondition(lambda self: self.model.links)
    @rule(data=st.data(), who=people, as_admin=st.booleans())
    def unlink(self, data: st.DataObject, who: tuple[str, str], *, as_admin: bool) -> None:
        """Remove a link in the browser, one's own or another's."""
        link = data.draw(st.sampled_from(sorted(self.model.links)))
        tenant, slack_user = link
        account, _ = self.model.links[link]
        session = _session(*who)
        if as_admin:
            session = Session(session.person, session.tenant, Role.ADMIN, "ref")
        mapping_id = self.mapping_id(tenant, slack_user)
        outcome = self.world.outcome(self.world.linking.unlink(session, mapping_id, ORIGIN))
        if who[0] == tenant and (as_admin or account == session.person.user_id):
            assert outcome == "OK"
            del self.model.links[link]
        else:
            assert outcome == "MAPPING_NOT_FOUND"

    @rule(sighting=_sightings(), really=rarely)
    def unlink_self(self, sighting: tuple[WorkspaceKey, SlackUser], *, really: bool) -> None:
        """Remove a link from Slack."""
        if not really:
            return
        key, slack_user = sighting
        tenant = self.tenant_of(key)
        requester = Requester(key, slack_user, is_stranger=False)
        outcome = self.world.outcome(self.world.linking.unlink_self(requester, ORIGIN))
        assert outcome == ("OK" if tenant else "WORKSPACE_NOT_FOUND")
        if tenant:
            self.model.links.pop((tenant, _same(slack_user)), None)

    # People.

    @rule(tenant=tenants, name=st.sampled_from(["mia", "ben"]), stays=st.booleans())
    def leave_or_join(self, tenant: str, name: str, *, stays: bool) -> None:
        """End a membership, or begin it again."""
        account = Account(TenantId(tenant), UserId(f"{tenant}_{name}"))
        self.world.membership.roles.pop(account, None)
        if stays:
            self.world.membership.roles[account] = Role.MEMBER
        for (whose, slack_user), link in sorted(self.model.links.items()):
            if (whose, link[0]) == (tenant, account.user_id):
                self.issue_wherever_seen(slack_user)

    @rule(tenant=tenants, name=st.sampled_from(["mia", "ben"]))
    def sweep(self, tenant: str, name: str) -> None:
        """Let somebody leave, and remove the links of everybody who did."""
        self.leave_or_join(tenant, name, stays=False)
        self.world.run(self.world.offboarding.sweep())
        self.model.links = {
            who: link for who, link in self.model.links.items() if self.is_member(who[0], link[0])
        }

    @rule(who=people, really=rarely)
    def forget(self, who: tuple[str, str], *, really: bool) -> None:
        """Forget an account, as an operator."""
        if not really:
            return
        account = f"{who[0]}_{who[1]}"
        removed = self.world.run(self.world.offboarding.forget_user(UserId(account), ORIGIN))
        gone = [each for each, link in self.model.links.items() if link[0] == account]
        assert removed == len(gone)
        for each in gone:
            del self.model.links[each]
        # Where it was the one who used a code, the code goes too.
        self.drop_codes_that_are_gone()

    @rule(tenant=tenants, really=rarely)
    def forget_organization(self, tenant: str, *, really: bool) -> None:
        """Forget a whole tenant, as an operator; its people sign in again later."""
        if not really:
            return
        work = self.world.offboarding.forget_organization(TenantId(tenant), ORIGIN)
        gone = [each for each in self.model.links if each[0] == tenant]
        assert self.world.run(work) == len(gone)
        for key, claimed in list(self.model.claims.items()):
            if claimed.tenant == tenant:
                self.model.end_claim(key)
        assert not [each for each in self.model.links if each[0] == tenant]
        for name in PEOPLE:
            session = _session(tenant, name)
            self.world.run(self.world.store.remember(session.person, session.tenant))

    # Grants and tokens.

    @rule(sighting=_sightings())
    def renew(self, sighting: tuple[WorkspaceKey, SlackUser]) -> None:
        """Renew an event's grant: for as long as the workspace is claimed, and as the same."""
        key, slack_user = sighting
        now = SystemClock().now()
        grant = SlackGrant(
            jti="jti",
            issued_at=now,
            expires_at=now,
            workspace=Workspace(key.enterprise_id, key.team_id, not key.team_id, key.app_id),
            slack_user_id=slack_user.user_id,
            slack_user_team_id=slack_user.team_id,
            event_key="Ev1",
            event_type="app_mention",
            body_sha256="a" * 64,
            event_at=now,
            renewed=False,
            is_stranger=False,
        )
        work = self.world.issuing.renew_grant(grant, ORIGIN)
        if self.tenant_of(key) is None:
            assert self.world.outcome(work) == "WORKSPACE_RELEASED"
            return
        token, _ = self.world.run(work)
        found = verify_slack_grant(token.reveal(), self.world.grant_keys, now=SystemClock().now())
        assert (found.workspace, found.slack_user_id) == (grant.workspace, grant.slack_user_id)

    @rule(sighting=_sightings())
    def come_as_a_stranger(self, sighting: tuple[WorkspaceKey, SlackUser]) -> None:
        """Ask as a guest or from elsewhere: neither a code nor a token, linked or not."""
        requester = Requester(*sighting, is_stranger=True)
        create = self.world.linking.create_link_code(requester, "Mia", "")
        assert self.world.outcome(create) == "SLACK_STRANGER"
        issue = self.world.issuing.issue_user_token(requester, Errand(None, ""), ORIGIN)
        assert self.world.outcome(issue) == "SLACK_STRANGER"

    @rule(sighting=_sightings())
    def issue(self, sighting: tuple[WorkspaceKey, SlackUser]) -> None:
        """Ask for a token: it names the linked account, or there is none."""
        key, slack_user = sighting
        tenant = self.tenant_of(key)
        link = self.model.links.get((tenant or "", _same(slack_user)))
        requester = Requester(key, slack_user, is_stranger=False)
        work = self.world.issuing.issue_user_token(requester, Errand(None, ""), ORIGIN)
        if tenant is None:
            assert self.world.outcome(work) == "WORKSPACE_NOT_FOUND"
        elif link is None:
            assert self.world.outcome(work) == "USER_NOT_LINKED"
        elif not self.is_member(tenant, link[0]):
            assert self.world.outcome(work) == "NO_LONGER_A_MEMBER"
        else:
            issued = self.world.run(work)
            token = verify_user_token(
                issued.token.reveal(), self.world.user_tokens, now=SystemClock().now()
            )
            assert (token.tenant_id, token.user_id) == (tenant, link[0])
            assert (token.slack_team_id, token.slack_user_id) == (
                slack_user.team_id,
                slack_user.user_id,
            )

    @precondition(lambda self: self.model.links)
    @rule(data=st.data())
    def issue_to_the_linked(self, data: st.DataObject) -> None:
        """Ask for a token wherever a linked Slack user is seen."""
        _, slack_user = data.draw(st.sampled_from(sorted(self.model.links)))
        self.issue_wherever_seen(slack_user)

    def issue_wherever_seen(self, slack_user: tuple[str, str]) -> None:
        """Ask for a token in every workspace where a Slack user may be seen."""
        for key, sightings in SIGHTINGS.items():
            for sighting in sightings:
                if _same(sighting) == slack_user:
                    self.issue((key, sighting))

    # What is always so.

    @invariant()
    def links_are_the_models(self) -> None:
        """The database holds exactly the links that the model allows."""
        rows = self.world.execute(
            "SELECT tenant_id, coalesce(slack_enterprise_id, slack_team_id) AS place,"
            " slack_user_id, inkeep_user_id FROM identity.work_app_slack_user_mappings"
        )
        found = sorted(
            ((row["tenant_id"], (row["place"], row["slack_user_id"])), row["inkeep_user_id"])
            for row in rows
        )
        assert found == sorted((who, link[0]) for who, link in self.model.links.items())

    @invariant()
    def a_slack_user_has_one_live_code(self) -> None:
        """The database's live codes are the model's, one for each Slack user at most."""
        rows = self.world.execute(
            "SELECT link_code_hash FROM identity.work_app_slack_account_link_codes"
            " WHERE used_at IS NULL AND expires_at > clock_timestamp()"
        )
        live = {name: code for name, code in self.model.codes.items() if code.is_live}
        assert {row["link_code_hash"] for row in rows} == set(live)
        users = [(code.tenant, _same(code.slack_user)) for code in live.values()]
        assert len(users) == len(set(users))

    @invariant()
    def every_link_has_its_record(self) -> None:
        """Links that were made, less those that ended, are those that are there."""
        [row] = self.world.execute(
            "SELECT count(*) FILTER (WHERE event = 'user.linked')"
            " - count(*) FILTER (WHERE event = 'user.unlinked') AS links"
            " FROM identity.audit_events"
        )
        assert row["links"] == len(self.model.links)

    # Looking.

    def tenant_of(self, key: WorkspaceKey) -> str | None:
        """Name who has claimed a workspace now."""
        claimed = self.model.claims.get(key)
        return claimed.tenant if claimed and not claimed.is_released else None

    def is_member(self, tenant: str, account: str) -> bool:
        """Tell whether an account is a member now."""
        return Account(TenantId(tenant), UserId(account)) in self.world.membership.roles

    def mapping_id(self, tenant: str, slack_user: tuple[str, str]) -> MappingId:
        """Look up a link's id."""
        [row] = self.world.execute(
            "SELECT id FROM identity.work_app_slack_user_mappings WHERE tenant_id = $1"
            " AND coalesce(slack_enterprise_id, slack_team_id) = $2 AND slack_user_id = $3",
            tenant,
            *slack_user,
        )
        return MappingId(row["id"])

    def drop_codes_that_are_gone(self) -> None:
        """Forget the codes that the database forgot; none of them may have been live."""
        rows = self.world.execute(
            "SELECT link_code_hash FROM identity.work_app_slack_account_link_codes"
        )
        left = {row["link_code_hash"] for row in rows}
        assert all(
            code.is_live is False for name, code in self.model.codes.items() if name not in left
        )
        self.model.codes = {name: code for name, code in self.model.codes.items() if name in left}


@pytest.mark.timeout(600)
def test_links_and_tokens_are_what_the_model_allows(world: World) -> None:
    """No order of events makes a link or a token too many, or one too few."""
    machine = type("IdentityInThisWorld", (Identity,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
