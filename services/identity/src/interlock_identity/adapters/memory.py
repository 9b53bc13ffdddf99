"""Identity's ports in memory, for tests.

The stores keep the promises of their ports; one contract suite holds them and
Postgres to the same. No method gives up control half-way, which is what a
transaction is here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_identity.domain.agents import AgentDefault
from interlock_identity.domain.linking import (
    CodeHash,
    LinkCode,
    MappingCursor,
    MappingId,
    NewLinkCode,
    SlackUser,
    UserMapping,
)
from interlock_identity.domain.people import Person, Role, Session, Tenant, TenantId, UserId
from interlock_identity.domain.workspaces import (
    Claim,
    Claimed,
    CountedWorkspace,
    Workspace,
    WorkspaceId,
    WorkspaceKey,
    WorkspaceStatus,
)
from interlock_identity.linking import (
    LinkCodeSpent,
    TooManyLinkCodes,
    UserAlreadyLinked,
    UserLinkedElsewhere,
)
from interlock_identity.sessions import NotSignedIn, SessionProof
from interlock_identity.workspaces import (
    OrganizationNotFound,
    WorkspaceNotFound,
    WorkspaceTaken,
)


class ManualClock:
    """A `Clock` that moves when told to."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Read the wall clock."""
        return self._now

    def monotonic(self) -> float:
        """Read the clock that never steps back."""
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self._now += by
        self._monotonic += by.total_seconds()


@dataclass
class _CodeRow:
    code: NewLinkCode
    created_at: datetime
    expires_at: datetime
    used_by: UserId | None = None


class MemoryStore:
    """Every store of identity in one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._people: dict[UserId, Person] = {}
        self._tenants: dict[TenantId, Tenant] = {}
        self._workspaces: dict[WorkspaceId, tuple[Workspace, UUID]] = {}
        self._codes: dict[CodeHash, _CodeRow] = {}
        self._mappings: dict[MappingId, UserMapping] = {}
        self._defaults: dict[tuple[WorkspaceId, str], AgentDefault] = {}

    # People.

    async def remember(self, person: Person, tenant: Tenant) -> None:
        """Keep an account and an organization."""
        self._people[person.user_id] = person
        self._tenants[tenant.tenant_id] = tenant

    async def forget_user(self, user_id: UserId) -> int:
        """Remove an account and everything that stands on it."""
        self._people.pop(user_id, None)
        self._codes = {key: row for key, row in self._codes.items() if row.used_by != user_id}
        return self._drop_mappings(lambda each: each.person.user_id == user_id)

    async def forget_organization(self, tenant_id: TenantId) -> int:
        """Remove an organization and everything that stands on it."""
        self._tenants.pop(tenant_id, None)
        gone = [each for each, _ in self._workspaces.values() if each.tenant_id == tenant_id]
        return sum(self._drop_workspace(each.workspace_id) for each in gone)

    # Workspaces.

    async def claim(self, claim: Claim) -> Claimed:
        """Claim a workspace for a tenant."""
        if claim.tenant_id not in self._tenants:
            raise OrganizationNotFound
        rivals = [
            each
            for each, _ in self._workspaces.values()
            if each.tenant_id != claim.tenant_id and _exclude_each_other(each.key, claim.key)
        ]
        if any(each.status is not WorkspaceStatus.UNINSTALLED for each in rivals):
            raise WorkspaceTaken
        for rival in rivals:
            if not rival.key.is_enterprise_install or claim.key.is_enterprise_install:
                self._drop_workspace(rival.workspace_id)
        mine = next(
            (each for each, _ in self._workspaces.values() if each.key.slot == claim.key.slot),
            None,
        )
        workspace = Workspace(
            workspace_id=mine.workspace_id if mine else claim.workspace_id,
            tenant_id=claim.tenant_id,
            key=claim.key,
            name=claim.name,
            status=WorkspaceStatus.ACTIVE,
            created_at=mine.created_at if mine else self._clock.now(),
        )
        self._workspaces[workspace.workspace_id] = (workspace, claim.installation_id)
        was_claimed = mine is not None and mine.status is not WorkspaceStatus.UNINSTALLED
        return Claimed(self._count(workspace), was_claimed)

    async def release(self, key: WorkspaceKey, installation_id: UUID) -> bool:
        """End a claim and its open link codes."""
        for workspace, installed in list(self._workspaces.values()):
            if (
                workspace.key.slot == key.slot
                and workspace.key.enterprise_id == key.enterprise_id
                and installed == installation_id
                and workspace.status is not WorkspaceStatus.UNINSTALLED
            ):
                ended = replace(workspace, status=WorkspaceStatus.UNINSTALLED)
                self._workspaces[workspace.workspace_id] = (ended, installed)
                self._end_codes_of_workspace(workspace.workspace_id)
                return True
        return False

    async def find_workspace(self, key: WorkspaceKey) -> Workspace | None:
        """Find the claim on exactly this install."""
        return next((each for each in self._claimed() if each.key == key), None)

    async def get_workspace(
        self, tenant_id: TenantId, workspace_id: WorkspaceId
    ) -> CountedWorkspace:
        """Get a claim of the tenant."""
        for workspace in self._claimed():
            if workspace.workspace_id == workspace_id and workspace.tenant_id == tenant_id:
                return self._count(workspace)
        raise WorkspaceNotFound

    async def list_workspaces(self, tenant_id: TenantId) -> list[CountedWorkspace]:
        """List the tenant's claims, newest first."""
        mine = [each for each in self._claimed() if each.tenant_id == tenant_id]
        mine.sort(key=lambda each: (each.created_at, each.workspace_id), reverse=True)
        return [self._count(each) for each in mine]

    async def list_agent_defaults(
        self, tenant_id: TenantId, workspace_id: WorkspaceId
    ) -> list[AgentDefault]:
        """List the default agents of a workspace, the workspace's own first."""
        found = [each for (where, _), each in self._defaults.items() if where == workspace_id]
        if not self._owns(tenant_id, workspace_id):
            return []
        return sorted(found, key=lambda each: each.channel_id)

    async def set_agent_default(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        agent_default: AgentDefault,
        set_by: UserId,  # noqa: ARG002 - Nothing reads it back.
    ) -> None:
        """Set the default agent of a place."""
        if not self._owns(tenant_id, workspace_id):
            raise WorkspaceNotFound
        self._defaults[workspace_id, agent_default.channel_id] = agent_default

    async def remove_agent_default(
        self, tenant_id: TenantId, workspace_id: WorkspaceId, channel_id: str
    ) -> None:
        """Remove the default agent of a place."""
        if self._owns(tenant_id, workspace_id):
            self._defaults.pop((workspace_id, channel_id), None)

    # Links.

    async def create_link_code(
        self, code: NewLinkCode, *, life: timedelta, limit: int, window: timedelta
    ) -> datetime:
        """Store a link code and end the Slack user's older ones."""
        if await self.find_mapping(code.tenant_id, code.slack_user):
            raise UserAlreadyLinked
        now = self._clock.now()
        recent = sorted(
            row.created_at
            for row in self._codes.values()
            if _is_of(row, code.tenant_id, code.slack_user) and row.created_at > now - window
        )
        if len(recent) >= limit:
            raise TooManyLinkCodes(retry_after=recent[-limit] + window - now)
        self._end_codes(lambda row: _is_of(row, code.tenant_id, code.slack_user))
        self._codes[code.code_hash] = _CodeRow(code, now, now + life)
        return now + life

    async def find_link_code(self, code_hash: CodeHash) -> LinkCode | None:
        """Find a code that works now."""
        row = self._codes.get(code_hash)
        if row is None or row.used_by is not None or row.expires_at <= self._clock.now():
            return None
        code = row.code
        workspace, _ = self._workspaces[code.workspace_id]
        if not workspace.status.is_claimed:
            return None
        return LinkCode(
            tenant_id=code.tenant_id,
            workspace_id=code.workspace_id,
            slack_user=code.slack_user,
            display_name=code.display_name,
            email=code.email,
            expires_at=row.expires_at,
        )

    async def redeem_link_code(
        self, code_hash: CodeHash, session: Session, mapping_id: MappingId
    ) -> bool:
        """Spend a code and link its Slack user to the session's account."""
        code = await self.find_link_code(code_hash)
        person, tenant = session.person, session.tenant
        if code is None or code.tenant_id != tenant.tenant_id:
            raise LinkCodeSpent
        existing = await self.find_mapping(code.tenant_id, code.slack_user)
        if existing and existing.person.user_id != person.user_id:
            raise UserLinkedElsewhere
        await self.remember(person, tenant)
        row = self._codes[code_hash]
        row.used_by = person.user_id
        row.code = replace(row.code, display_name="", email="")
        if existing is None:
            self._mappings[mapping_id] = UserMapping(
                mapping_id=mapping_id,
                tenant_id=code.tenant_id,
                workspace_id=code.workspace_id,
                slack_user=code.slack_user,
                person=person,
                linked_at=self._clock.now(),
                last_used_at=None,
            )
        return existing is not None

    async def find_mapping(self, tenant_id: TenantId, slack_user: SlackUser) -> UserMapping | None:
        """Find the link of a Slack user in a tenant."""
        found = [
            each
            for each in self._mappings.values()
            if each.tenant_id == tenant_id and each.slack_user.is_same_as(slack_user)
        ]
        found.sort(key=lambda each: each.slack_user.team_id != slack_user.team_id)
        return self._with_newest_person(found[0]) if found else None

    async def list_mappings(
        self,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        *,
        of_user: UserId | None,
        after: MappingCursor | None,
        limit: int,
    ) -> list[UserMapping]:
        """List the links made in a workspace, newest first."""
        found = [
            self._with_newest_person(each)
            for each in self._mappings.values()
            if each.tenant_id == tenant_id
            and each.workspace_id == workspace_id
            and of_user in {None, each.person.user_id}
            and (
                after is None
                or (each.linked_at, each.mapping_id) < (after.linked_at, after.mapping_id)
            )
        ]
        found.sort(key=lambda each: (each.linked_at, each.mapping_id), reverse=True)
        return found[:limit]

    async def remove_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, *, of_user: UserId | None
    ) -> bool:
        """Remove a link of the tenant."""
        removed = self._drop_mappings(
            lambda each: (
                each.mapping_id == mapping_id
                and each.tenant_id == tenant_id
                and of_user in {None, each.person.user_id}
            )
        )
        return removed > 0

    async def use_mapping(self, tenant_id: TenantId, mapping_id: MappingId) -> bool:
        """Note that a token is issued for a link."""
        mapping = self._mappings.get(mapping_id)
        if mapping is None or mapping.tenant_id != tenant_id:
            return False
        self._mappings[mapping_id] = replace(mapping, last_used_at=self._clock.now())
        return True

    # Rows.

    def _claimed(self) -> list[Workspace]:
        rows = [workspace for workspace, _ in self._workspaces.values()]
        return [each for each in rows if each.status.is_claimed]

    def _owns(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> bool:
        row = self._workspaces.get(workspace_id)
        return row is not None and row[0].tenant_id == tenant_id

    def _count(self, workspace: Workspace) -> CountedWorkspace:
        linked = [
            each for each in self._mappings.values() if each.workspace_id == workspace.workspace_id
        ]
        return CountedWorkspace(workspace, len(linked))

    def _with_newest_person(self, mapping: UserMapping) -> UserMapping:
        return replace(mapping, person=self._people[mapping.person.user_id])

    def _drop_workspace(self, workspace_id: WorkspaceId) -> int:
        del self._workspaces[workspace_id]
        self._codes = {
            key: row for key, row in self._codes.items() if row.code.workspace_id != workspace_id
        }
        self._defaults = {
            key: each for key, each in self._defaults.items() if key[0] != workspace_id
        }
        return self._drop_mappings(lambda each: each.workspace_id == workspace_id)

    def _drop_mappings(self, is_gone: Callable[[UserMapping], bool]) -> int:
        before = len(self._mappings)
        self._mappings = {key: each for key, each in self._mappings.items() if not is_gone(each)}
        return before - len(self._mappings)

    def _end_codes_of_workspace(self, workspace_id: WorkspaceId) -> None:
        self._end_codes(lambda row: row.code.workspace_id == workspace_id)

    def _end_codes(self, is_ended: Callable[[_CodeRow], bool]) -> None:
        now = self._clock.now()
        for row in self._codes.values():
            if is_ended(row):
                row.expires_at = min(row.expires_at, now)


class FakeAuthServer:
    """A `SessionSource` whose sessions are written down by the test."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self._next: ServiceError | None = None

    def fail_next(self, error: ServiceError) -> None:
        """Answer the next call with an error."""
        self._next = error

    async def authenticate(self, proof: SessionProof) -> Session:
        """Say who is signed in; see the port."""
        if self._next is not None:
            error, self._next = self._next, None
            raise error
        session = self.sessions.get(proof.cookie.reveal())
        if session is None:
            raise NotSignedIn
        return session


class FakeMembership:
    """A `MembershipSource` whose roles are written down by the test."""

    def __init__(self) -> None:
        self.roles: dict[tuple[TenantId, UserId], Role] = {}
        self.asked = 0
        self._next: ServiceError | None = None

    def fail_next(self, error: ServiceError) -> None:
        """Answer the next call with an error."""
        self._next = error

    async def role_of(self, tenant_id: TenantId, user_id: UserId) -> Role:
        """Say what a person is in an organization; see the port."""
        self.asked += 1
        if self._next is not None:
            error, self._next = self._next, None
            raise error
        return self.roles.get((tenant_id, user_id), Role.NONE)


def _exclude_each_other(ours: WorkspaceKey, theirs: WorkspaceKey) -> bool:
    """Tell whether two tenants cannot have both."""
    if ours.slot == theirs.slot:
        return True
    shares_enterprise = bool(ours.enterprise_id) and ours.enterprise_id == theirs.enterprise_id
    return shares_enterprise and (ours.is_enterprise_install or theirs.is_enterprise_install)


def _is_of(row: _CodeRow, tenant_id: TenantId, slack_user: SlackUser) -> bool:
    return row.code.tenant_id == tenant_id and row.code.slack_user.is_same_as(slack_user)
