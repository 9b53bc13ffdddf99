"""Identity's ports in memory, for tests.

The stores keep the promises of their ports; one contract suite holds them and
Postgres to the same. No method gives up control half-way, which is what a
transaction is here.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_identity.domain.agents import Agent, AgentDefault
from interlock_identity.domain.audit import AuditEvent, Origin, RecordedEvent, Sought
from interlock_identity.domain.linking import (
    CodeHash,
    LinkCode,
    MappingCursor,
    MappingId,
    NewLinkCode,
    SlackUser,
    UserMapping,
)
from interlock_identity.domain.people import (
    Account,
    Person,
    Role,
    Session,
    SessionProof,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import (
    Claim,
    Claimed,
    CountedWorkspace,
    ScopeDrift,
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
from interlock_identity.noticing import READERS_ASKED, DueNotice
from interlock_identity.offboarding import Seat
from interlock_identity.sessions import NotSignedIn
from interlock_identity.workspaces import (
    OrganizationNotFound,
    WorkspaceNotFound,
    WorkspaceTaken,
    drift_event,
)

_Id = TypeVar("_Id", UserId, TenantId)
# A used code whose user was unnamed stays used.
_NOBODY = UserId("")


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


@dataclass
class _WorkspaceRow:
    workspace: Workspace
    installation_id: UUID
    installed_by: UserId
    released_at: datetime | None = None
    is_notice_taken: bool = False


class MemoryStore:
    """Every store of identity in one.

    Attributes:
        audit: The records, oldest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.audit: list[AuditEvent] = []
        self._seen_at: dict[UserId | TenantId, datetime] = {}
        self._absent_since: dict[Account, datetime] = {}
        self._operator_agents: dict[TenantId, tuple[Agent, bool]] = {}
        self._finished_at: dict[str, datetime] = {}
        self._at_work: set[str] = set()
        self._people: dict[UserId, Person] = {}
        self._tenants: dict[TenantId, Tenant] = {}
        self._workspaces: dict[WorkspaceId, _WorkspaceRow] = {}
        self._codes: dict[CodeHash, _CodeRow] = {}
        self._mappings: dict[MappingId, UserMapping] = {}
        self._defaults: dict[tuple[WorkspaceId, str], AgentDefault] = {}

    # People.

    async def remember(self, person: Person, tenant: Tenant) -> None:
        """Keep an account and an organization."""
        self._people[person.user_id] = person
        self._tenants[tenant.tenant_id] = tenant
        self._seen_at[person.user_id] = self._seen_at[tenant.tenant_id] = self._clock.now()

    async def note(self, user_id: UserId, tenant_id: TenantId) -> None:
        """Keep an account and an organization that are not known yet."""
        self._people.setdefault(user_id, Person(user_id, "", ""))
        self._tenants.setdefault(tenant_id, Tenant(tenant_id, ""))
        for each in (user_id, tenant_id):
            self._seen_at.setdefault(each, self._clock.now())

    # Audit.

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Keep records, each in the claim that there is on its Slack workspace."""
        self.audit += [self._in_claim(event) for event in events]

    async def list_events(
        self, sought: Sought, *, before: int | None, limit: int
    ) -> list[RecordedEvent]:
        """List records, newest first."""
        recorded = [
            RecordedEvent(number, self._clock.now(), each)
            for number, each in enumerate(self.audit, 1)
            if (before is None or number < before)
            and sought.tenant_id in {"", each.tenant_id}
            and (not sought.workspace_id or each.workspace_id in {"", sought.workspace_id})
            and sought.user_id in {"", each.user_id, each.origin.actor_id}
            and sought.event in {"", each.event}
        ]
        return recorded[::-1][:limit]

    async def list_names(self, user_ids: frozenset[UserId]) -> Mapping[UserId, str]:
        """Say what accounts are called now."""
        known = {each: self._people[each].name for each in user_ids if each in self._people}
        return {user_id: name for user_id, name in known.items() if name}

    def _in_claim(self, event: AuditEvent) -> AuditEvent:
        if event.workspace_id:
            return event
        for slot in filter(None, (event.slack_team_id, event.slack_enterprise_id)):
            for row in self._workspaces.values():
                workspace = row.workspace
                is_claim = workspace.key.slot == slot and workspace.status.is_claimed
                if is_claim and event.tenant_id in {"", workspace.tenant_id}:
                    return event.of_workspace(workspace.tenant_id, workspace.workspace_id)
        return event

    # Workspaces.

    async def claim(self, claim: Claim, origin: Origin) -> Claimed:
        """Claim a workspace for a tenant."""
        if claim.tenant_id not in self._tenants:
            raise OrganizationNotFound
        rows = [row.workspace for row in self._workspaces.values()]
        rivals = [
            each
            for each in rows
            if each.tenant_id != claim.tenant_id and _exclude_each_other(each.key, claim.key)
        ]
        if any(each.status is not WorkspaceStatus.UNINSTALLED for each in rivals):
            raise WorkspaceTaken
        for rival in rivals:
            if not rival.key.is_enterprise_install or claim.key.is_enterprise_install:
                self._end_claim(rival, origin, "claimed elsewhere")
        mine = next((each for each in rows if self._is_mine(each, claim)), None)
        workspace = Workspace(
            workspace_id=mine.workspace_id if mine else claim.workspace_id,
            tenant_id=claim.tenant_id,
            key=claim.key,
            name=claim.name,
            status=WorkspaceStatus.ACTIVE,
            created_at=mine.created_at if mine else self._clock.now(),
        )
        row = _WorkspaceRow(workspace, claim.installation_id, claim.installed_by)
        self._workspaces[workspace.workspace_id] = row
        event = AuditEvent(
            "workspace.claimed",
            origin,
            slack_enterprise_id=claim.key.enterprise_id,
            slack_team_id=claim.key.team_id,
            user_id=claim.installed_by,
        )
        self.audit.append(event.of_workspace(claim.tenant_id, workspace.workspace_id))
        was_claimed = mine is not None and mine.status is not WorkspaceStatus.UNINSTALLED
        return Claimed(self._count(workspace), was_claimed)

    async def move(
        self, key: WorkspaceKey, installation_id: UUID, origin: Origin
    ) -> CountedWorkspace:
        """Name the Enterprise that a claimed workspace joined."""
        for row in self._workspaces.values():
            before = row.workspace
            if (
                (before.key.slot, before.key.app_id) == (key.slot, key.app_id)
                and row.installation_id == installation_id
                and before.status is not WorkspaceStatus.UNINSTALLED
            ):
                break
        else:
            raise WorkspaceNotFound
        if any(
            each.workspace.tenant_id != before.tenant_id
            and each.workspace.status is not WorkspaceStatus.UNINSTALLED
            and _exclude_each_other(each.workspace.key, key)
            for each in self._workspaces.values()
        ):
            raise WorkspaceTaken
        row.workspace = replace(before, key=key)
        if before.key != key:
            event = AuditEvent(
                "workspace.moved",
                origin,
                slack_enterprise_id=key.enterprise_id,
                slack_team_id=key.team_id,
            )
            self.audit.append(event.of_workspace(before.tenant_id, before.workspace_id))
        return self._count(row.workspace)

    async def release(self, key: WorkspaceKey, installation_id: UUID, origin: Origin) -> bool:
        """End a claim and its open link codes."""
        for row in self._workspaces.values():
            workspace = row.workspace
            if (
                workspace.key.slot == key.slot
                and workspace.key.enterprise_id == key.enterprise_id
                and row.installation_id == installation_id
                and workspace.status is not WorkspaceStatus.UNINSTALLED
            ):
                row.workspace = replace(workspace, status=WorkspaceStatus.UNINSTALLED)
                row.released_at = self._clock.now()
                self._end_codes_of_workspace(workspace.workspace_id)
                event = AuditEvent(
                    "workspace.released",
                    origin,
                    slack_enterprise_id=key.enterprise_id,
                    slack_team_id=key.team_id,
                )
                tenant_id = workspace.tenant_id
                self.audit.append(event.of_workspace(tenant_id, workspace.workspace_id))
                return True
        return False

    async def set_needs_reinstall(
        self,
        key: WorkspaceKey,
        installation_id: UUID,
        origin: Origin,
        *,
        needs_reinstall: bool,
    ) -> bool:
        """Note whether a claim needs a reinstall."""
        status = WorkspaceStatus.of_claimed(needs_reinstall=needs_reinstall)
        row = self._find_claimed(key, installation_id)
        if row is None:
            return False
        before, row.workspace = row.workspace, replace(row.workspace, status=status)
        row.is_notice_taken = row.is_notice_taken and needs_reinstall
        if before.status is not status:
            event = AuditEvent(
                f"workspace.became_{status.value}",
                origin,
                slack_enterprise_id=key.enterprise_id,
                slack_team_id=key.team_id,
            )
            self.audit.append(event.of_workspace(before.tenant_id, before.workspace_id))
        return True

    async def set_drift(
        self, key: WorkspaceKey, installation_id: UUID, drift: ScopeDrift, origin: Origin
    ) -> bool:
        """Note how a claim's scopes differ."""
        row = self._find_claimed(key, installation_id)
        if row is None:
            return False
        before, row.workspace = row.workspace, replace(row.workspace, drift=drift)
        if before.drift != drift:
            event = drift_event(key, drift, origin)
            self.audit.append(event.of_workspace(before.tenant_id, before.workspace_id))
        return True

    def _find_claimed(self, key: WorkspaceKey, installation_id: UUID) -> _WorkspaceRow | None:
        for row in self._workspaces.values():
            found = row.workspace
            is_meant = (found.key.slot, found.key.enterprise_id) == (key.slot, key.enterprise_id)
            if is_meant and row.installation_id == installation_id and found.status.is_claimed:
                return row
        return None

    async def list_due_notices(self, limit: int) -> Sequence[DueNotice]:
        """List workspaces of which an administrator has to be told; see NoticeStore."""
        due: list[DueNotice] = []
        for row in self._workspaces.values():
            if not self._is_notice_due(row):
                continue
            workspace = row.workspace
            mappings = await self.list_mappings(
                workspace.tenant_id, workspace.workspace_id, of_user=None, after=None, limit=10**6
            )
            installer = row.installed_by
            mappings.sort(key=lambda each: (each.person.user_id != installer, each.linked_at))
            readers = tuple(mappings[:READERS_ASKED])
            due.append(DueNotice(workspace, row.installation_id, readers))
        return due[:limit]

    async def take_notice(self, workspace: Workspace, event: AuditEvent) -> bool:
        """Mark a notice as handed out; see NoticeStore."""
        for row in self._workspaces.values():
            is_meant = row.workspace.workspace_id == workspace.workspace_id
            if is_meant and self._is_notice_due(row):
                row.is_notice_taken = True
                self.audit.append(event)
                return True
        return False

    @staticmethod
    def _is_notice_due(row: _WorkspaceRow) -> bool:
        needs_reinstall = row.workspace.status is WorkspaceStatus.NEEDS_REINSTALL
        return needs_reinstall and not row.is_notice_taken

    async def find_workspace(self, key: WorkspaceKey) -> Workspace | None:
        """Find the claim on exactly this install."""
        return next((each for each in self._claimed() if each.key == key), None)

    async def get_workspace(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> Workspace:
        """Get a claim of the tenant."""
        for workspace in self._claimed():
            if workspace.workspace_id == workspace_id and workspace.tenant_id == tenant_id:
                return workspace
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
        event: AuditEvent,
    ) -> None:
        """Set the default agent of a place."""
        if not self._owns(tenant_id, workspace_id):
            raise WorkspaceNotFound
        self._defaults[workspace_id, agent_default.channel_id] = agent_default
        self.audit.append(event)

    async def remove_agent_default(
        self, tenant_id: TenantId, workspace_id: WorkspaceId, channel_id: str, event: AuditEvent
    ) -> None:
        """Remove the default agent of a place."""
        place = (workspace_id, channel_id)
        if self._owns(tenant_id, workspace_id) and place in self._defaults:
            del self._defaults[place]
            self.audit.append(event)

    async def note_operator_agent(
        self, tenant_id: TenantId, agent: Agent, *, is_there: bool
    ) -> None:
        """Note whether an administrator sees the operator's default agent."""
        self._operator_agents[tenant_id] = (agent, is_there)

    async def lacks_operator_agent(self, tenant_id: TenantId, agent: Agent) -> bool:
        """Tell whether an administrator was last seen not to see that agent."""
        return self._operator_agents.get(tenant_id) == (agent, False)

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
        workspace = self._workspaces[code.workspace_id].workspace
        if not workspace.status.is_claimed:
            return None
        return LinkCode(
            workspace=workspace,
            slack_user=code.slack_user,
            display_name=code.display_name,
            email=code.email,
            expires_at=row.expires_at,
        )

    async def redeem_link_code(
        self, code_hash: CodeHash, session: Session, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Spend a code and link its Slack user to the session's account."""
        code = await self.find_link_code(code_hash)
        person, tenant = session.person, session.tenant
        if code is None or code.workspace.tenant_id != tenant.tenant_id:
            raise LinkCodeSpent
        existing = await self.find_mapping(tenant.tenant_id, code.slack_user)
        if existing and existing.person.user_id != person.user_id:
            raise UserLinkedElsewhere
        await self.remember(person, tenant)
        row = self._codes[code_hash]
        row.used_by = person.user_id
        row.code = replace(row.code, display_name="", email="")
        self.audit.append(event)
        if existing is None:
            self._mappings[mapping_id] = UserMapping(
                mapping_id=mapping_id,
                tenant_id=tenant.tenant_id,
                workspace_id=code.workspace.workspace_id,
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

    async def find_subject(
        self, key: WorkspaceKey, slack_user: SlackUser
    ) -> tuple[Workspace, UserMapping | None] | None:
        """Find the claim on an install, and in its tenant the Slack user's link."""
        workspace = await self.find_workspace(key)
        if workspace is None:
            return None
        return workspace, await self.find_mapping(workspace.tenant_id, slack_user)

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
        self, tenant_id: TenantId, mapping_id: MappingId, *, of_user: UserId | None, origin: Origin
    ) -> bool:
        """Remove a link of the tenant."""
        removed = self._drop_mappings(
            lambda each: (
                each.mapping_id == mapping_id
                and each.tenant_id == tenant_id
                and of_user in {None, each.person.user_id}
            ),
            origin,
        )
        return removed > 0

    async def use_mapping(
        self, tenant_id: TenantId, mapping_id: MappingId, event: AuditEvent
    ) -> bool:
        """Note that a token is issued for a link."""
        mapping = self._mappings.get(mapping_id)
        if mapping is None or mapping.tenant_id != tenant_id:
            return False
        self._mappings[mapping_id] = replace(mapping, last_used_at=self._clock.now())
        self.audit.append(event)
        return True

    # Off-boarding.

    async def list_seats(self, after: Account | None, limit: int) -> list[Seat]:
        """List accounts with links."""
        seats = {each.account: Seat(each.account, each.slack_user) for each in self._ordered()}
        accounts = sorted(seats, key=_order)
        return [seats[each] for each in accounts if not after or _order(each) > _order(after)][
            :limit
        ]

    async def list_organizations(self, after: TenantId | None, limit: int) -> list[TenantId]:
        """List the organizations known here."""
        return [each for each in sorted(self._tenants) if each > (after or "")][:limit]

    async def note_attendance(
        self, present: Collection[Account], absent: Collection[Account], grace: timedelta
    ) -> list[Account]:
        """Note who was found and who was not."""
        for account in present:
            self._absent_since.pop(account, None)
        now = self._clock.now()
        for account in absent:
            self._absent_since.setdefault(account, now)
        gone = [each for each in absent if self._absent_since[each] <= now - grace]
        return sorted(gone, key=_order)

    async def remove_departed(self, account: Account, origin: Origin) -> int:
        """Remove an account's links in its tenant and unname it there."""
        self._absent_since.pop(account, None)
        for row in self._codes.values():
            if row.used_by == account.user_id and row.code.tenant_id == account.tenant_id:
                row.used_by = _NOBODY
        for claim in self._workspaces.values():
            if claim.installed_by == account.user_id and _is_in(claim, account.tenant_id):
                claim.installed_by = _NOBODY
        return self._drop_mappings(lambda each: each.account == account, origin, "departed")

    async def forget_user(self, user_id: UserId, origin: Origin) -> int:
        """Remove an account and everything that stands on it."""
        self._people.pop(user_id, None)
        self._codes = {key: row for key, row in self._codes.items() if row.used_by != user_id}
        self._absent_since = {
            key: since for key, since in self._absent_since.items() if key.user_id != user_id
        }
        removed = self._drop_mappings(
            lambda each: each.person.user_id == user_id, origin, "forgotten"
        )
        self.audit.append(AuditEvent("user.forgotten", origin, user_id=user_id))
        return removed

    async def forget_organization(self, tenant_id: TenantId, origin: Origin) -> int:
        """Remove an organization and everything that stands on it."""
        removed = self._drop_mappings(lambda each: each.tenant_id == tenant_id, origin, "forgotten")
        self._tenants.pop(tenant_id, None)
        self._absent_since = {
            key: since for key, since in self._absent_since.items() if key.tenant_id != tenant_id
        }
        for row in list(self._workspaces.values()):
            if _is_in(row, tenant_id):
                self._drop_workspace(row.workspace.workspace_id)
        self.audit.append(AuditEvent("organization.forgotten", origin, tenant_id=tenant_id))
        return removed

    # Retention.

    async def erase_ended_codes(self, limit: int) -> int:
        """Erase what ended codes would have shown."""
        now = self._clock.now()
        ended = [
            row
            for row in self._codes.values()
            if row.expires_at <= now and (row.code.display_name or row.code.email)
        ][:limit]
        for row in ended:
            row.code = replace(row.code, display_name="", email="")
        return len(ended)

    async def drop_codes(self, ended_for: timedelta, limit: int) -> int:
        """Remove codes that expired that long ago."""
        before = self._clock.now() - ended_for
        old = [key for key, row in self._codes.items() if row.expires_at <= before][:limit]
        for key in old:
            del self._codes[key]
        return len(old)

    async def end_released_claims(self, released_for: timedelta, limit: int, origin: Origin) -> int:
        """Remove claims that were released that long ago."""
        before = self._clock.now() - released_for
        old = [
            row.workspace
            for row in self._workspaces.values()
            if row.released_at and row.released_at <= before
        ][:limit]
        for workspace in old:
            self._end_claim(workspace, origin, "uninstalled")
        return len(old)

    async def drop_strangers(self, unseen_for: timedelta, limit: int) -> int:
        """Remove accounts and organizations that nothing stands on."""
        owners = {row.workspace.tenant_id for row in self._workspaces.values()}
        named = {each.person.user_id for each in self._mappings.values()}
        named |= {row.used_by for row in self._codes.values() if row.used_by}
        named |= {row.installed_by for row in self._workspaces.values()}
        tenants = [each for each in self._unseen(self._tenants, unseen_for) if each not in owners]
        people = [each for each in self._unseen(self._people, unseen_for) if each not in named]
        for tenant_id in tenants[:limit]:
            del self._tenants[tenant_id]
        for user_id in people[:limit]:
            del self._people[user_id]
        return len(tenants[:limit]) + len(people[:limit])

    async def erase_names(self, unseen_for: timedelta, limit: int) -> int:
        """Erase name and address of accounts without links."""
        named = {each.person.user_id for each in self._mappings.values()}
        old = [
            each
            for each in self._unseen(self._people, unseen_for)
            if each not in named and (self._people[each].name or self._people[each].email)
        ][:limit]
        for user_id in old:
            self._people[user_id] = Person(user_id, "", "")
        return len(old)

    async def prune_audit(self, older_than: timedelta, limit: int) -> int:  # noqa: ARG002 - Kept.
        """Remove nothing: no test lives for 90 days."""
        return 0

    # Turns.

    @asynccontextmanager
    async def take(self, task: str, every: timedelta) -> AsyncIterator[bool]:
        """Take the turn for a task; see the port."""
        finished_at = self._finished_at.get(task)
        is_due = finished_at is None or finished_at <= self._clock.now() - every
        if task in self._at_work or not is_due:
            yield False
            return
        self._at_work.add(task)
        try:
            yield True
            self._finished_at[task] = self._clock.now()
        finally:
            self._at_work.discard(task)

    # Rows.

    def _ordered(self) -> list[UserMapping]:
        return sorted(self._mappings.values(), key=lambda each: each.mapping_id, reverse=True)

    def _unseen(self, them: Collection[_Id], unseen_for: timedelta) -> list[_Id]:
        before = self._clock.now() - unseen_for
        return [each for each in them if self._seen_at[each] <= before]

    def _is_mine(self, workspace: Workspace, claim: Claim) -> bool:
        return workspace.key.slot == claim.key.slot and workspace.tenant_id == claim.tenant_id

    def _claimed(self) -> list[Workspace]:
        rows = [row.workspace for row in self._workspaces.values()]
        return [each for each in rows if each.status.is_claimed]

    def _owns(self, tenant_id: TenantId, workspace_id: WorkspaceId) -> bool:
        row = self._workspaces.get(workspace_id)
        return row is not None and _is_in(row, tenant_id)

    def _count(self, workspace: Workspace) -> CountedWorkspace:
        linked = [
            each for each in self._mappings.values() if each.workspace_id == workspace.workspace_id
        ]
        return CountedWorkspace(workspace, len(linked))

    def _with_newest_person(self, mapping: UserMapping) -> UserMapping:
        return replace(mapping, person=self._people[mapping.person.user_id])

    def _drop_workspace(self, workspace_id: WorkspaceId) -> None:
        del self._workspaces[workspace_id]
        self._codes = {
            key: row for key, row in self._codes.items() if row.code.workspace_id != workspace_id
        }
        self._defaults = {
            key: each for key, each in self._defaults.items() if key[0] != workspace_id
        }
        self._mappings = {
            key: each for key, each in self._mappings.items() if each.workspace_id != workspace_id
        }

    def _drop_mappings(
        self, is_gone: Callable[[UserMapping], bool], origin: Origin, why: str = ""
    ) -> int:
        gone = [each for each in self._mappings.values() if is_gone(each)]
        for mapping in gone:
            del self._mappings[mapping.mapping_id]
            event = (
                AuditEvent("user.unlinked", origin, purpose=why)
                .of_account(mapping.account)
                .of_workspace(mapping.tenant_id, mapping.workspace_id)
                .of_slack_user(mapping.slack_user)
            )
            self.audit.append(event)
        return len(gone)

    def _end_claim(self, workspace: Workspace, origin: Origin, why: str) -> None:
        workspace_id = workspace.workspace_id
        self._drop_mappings(lambda each: each.workspace_id == workspace_id, origin, why)
        self._drop_workspace(workspace_id)
        event = AuditEvent(
            "workspace.ended",
            origin,
            slack_enterprise_id=workspace.key.enterprise_id,
            slack_team_id=workspace.key.slot,
            purpose=why,
        )
        self.audit.append(event.of_workspace(workspace.tenant_id, workspace_id))

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
    """A `MembershipSource` whose roles are written down by the test.

    Attributes:
        roles: What everybody is; an organization exists while somebody is in it.
        asked: How often a role was asked for.
    """

    def __init__(self) -> None:
        self.roles: dict[Account, Role] = {}
        self.asked = 0
        self._failures: list[ServiceError] = []

    def fail_next(self, error: ServiceError, times: int = 1) -> None:
        """Answer the next calls with an error."""
        self._failures += [error] * times

    async def role_of(
        self,
        account: Account,
        acting_as: SlackUser,  # noqa: ARG002 - The fake is asked as nobody.
    ) -> Role:
        """Say what a person is in an organization; see the port."""
        self.asked += 1
        self._fail_if_told()
        return self.roles.get(account, Role.NONE)

    async def has_organization(self, tenant_id: TenantId) -> bool:
        """Say whether somebody is in an organization; see the port."""
        self._fail_if_told()
        return any(each.tenant_id == tenant_id for each in self.roles)

    def _fail_if_told(self) -> None:
        if self._failures:
            raise self._failures.pop()


class FakeAgents:
    """An `AgentDirectory` whose agents are written down by the test.

    Attributes:
        agents: What an administrator of each tenant sees.
    """

    def __init__(self) -> None:
        self.agents: set[tuple[TenantId, Agent]] = set()
        self._next: ServiceError | None = None

    def fail_next(self, error: ServiceError) -> None:
        """Answer the next call with an error."""
        self._next = error

    async def has_agent(
        self,
        proof: SessionProof,  # noqa: ARG002 - Everybody sees the same.
        tenant_id: TenantId,
        agent: Agent,
    ) -> bool:
        """Say whether the person sees the agent; see the port."""
        if self._next is not None:
            error, self._next = self._next, None
            raise error
        return (tenant_id, agent) in self.agents


def _exclude_each_other(ours: WorkspaceKey, theirs: WorkspaceKey) -> bool:
    """Tell whether two tenants cannot have both."""
    if ours.slot == theirs.slot:
        return True
    shares_enterprise = bool(ours.enterprise_id) and ours.enterprise_id == theirs.enterprise_id
    return shares_enterprise and (ours.is_enterprise_install or theirs.is_enterprise_install)


def _is_of(row: _CodeRow, tenant_id: TenantId, slack_user: SlackUser) -> bool:
    return row.code.tenant_id == tenant_id and row.code.slack_user.is_same_as(slack_user)


def _is_in(row: _WorkspaceRow, tenant_id: TenantId) -> bool:
    return row.workspace.tenant_id == tenant_id


def _order(account: Account) -> tuple[str, str]:
    return account.tenant_id, account.user_id
