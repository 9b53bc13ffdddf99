"""The ports kept in memory, for tests: they behave as the real ones, and fail on command.

The contract suites hold them to what Postgres and a KMS do.
"""

import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.credential_sources import (
    ConnectionNotFound,
    ConnectionRef,
    ConnectSession,
    Fetched,
)
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent
from interlock_token_vault.domain.envelope import CannotOpen, SealedToken, WrappedDek
from interlock_token_vault.domain.install import (
    AttemptState,
    BotIdentity,
    ExchangeAnswer,
    InstallAttempt,
    InstallInProgress,
    InstallNotOpen,
    OAuthCodeRefused,
    WorkspaceTaken,
)
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
from interlock_token_vault.install_ports import (
    LEASE,
    Activation,
    PendingInstall,
    StaleGeneration,
    TokenDead,
)
from interlock_token_vault.key_lifecycle import (
    DekPlace,
    EnterpriseInstalled,
    HeldDek,
    KekNotFound,
    NotClaimed,
    RewrapRunning,
    SlackPlace,
)
from interlock_token_vault.uninstalling import OpenUninstall, Tombstone
from interlock_token_vault.vault import (
    AuditCursor,
    Held,
    InstallationNotFound,
    Judge,
    KekDisabled,
    Loaded,
    ReadTarget,
    Stop,
    Verdict,
    Wish,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEEP_ENDED = timedelta(days=30)


class ProcessKilled(BaseException):
    """The process ended here; nothing of it runs any more."""


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, now: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) -> None:
        self._now = now
        self._start = now

    def now(self) -> datetime:
        """Read the wall clock."""
        return self._now

    def monotonic(self) -> float:
        """Read seconds since the clock was made."""
        return (self._now - self._start).total_seconds()

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self._now += by


@dataclass(slots=True)
class Faults:
    """What goes wrong at the ports, and when.

    Every call of a port passes two points: one before its effect, one after.

    Attributes:
        kill_at: Number of the point at which the process is killed, from 1.
        passed: How many points were passed.
        calls: How often each port method was called.
    """

    kill_at: int = 0
    passed: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    _before: defaultdict[str, list[Exception]] = field(default_factory=lambda: defaultdict(list))
    _after: defaultdict[str, list[Exception]] = field(default_factory=lambda: defaultdict(list))

    def fail_next(self, call: str, *errors: Exception) -> None:
        """Have the next calls fail, one error each, without effect."""
        self._before[call].extend(errors)

    def fail_after(self, call: str, *errors: Exception) -> None:
        """Have the next calls fail after their effect, as a lost answer does."""
        self._after[call].extend(errors)

    def restart(self) -> None:
        """Start a new process: no more kills."""
        self.kill_at = 0

    @contextmanager
    def around(self, call: str) -> "Iterator[None]":
        """Put the two points around a port method's effect."""
        self.calls[call] += 1
        self._pass()
        if self._before[call]:
            raise self._before[call].pop(0)
        yield
        self._pass()
        if self._after[call]:
            raise self._after[call].pop(0)

    def _pass(self) -> None:
        self.passed += 1
        if self.kill_at and self.passed >= self.kill_at:
            raise ProcessKilled


class FakeKms:
    """A Kms that keeps what it wrapped."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.primary = "fake-1"
        self._versions = {self.primary}
        self._disabled: set[str] = set()
        self._wrapped: dict[bytes, tuple[Secret[bytes], bytes, str]] = {}
        self._answer: Secret[bytes] | None = None

    def disable(self, version: str) -> None:
        """Disable a key-encryption key."""
        self._disabled.add(version)

    def promote(self, version: str) -> None:
        """Wrap new data keys under another key."""
        self._versions.add(version)
        self.primary = version

    def answer_with(self, dek: bytes) -> None:
        """Answer every unwrap with these bytes."""
        self._answer = Secret(dek)

    async def find_primary(self) -> str:
        """Find the primary version; see Keks."""
        return self.primary

    async def list_versions(self) -> Sequence[str]:
        """List the versions; see Keks."""
        return sorted(self._versions)

    async def make_primary(self, version: str) -> None:
        """Promote a version that is there; see Keks."""
        if version not in self._versions:
            raise KekNotFound
        self.primary = version

    async def retire(self, version: str) -> None:
        """Forget a version; see Keks."""
        if version not in self._versions:
            raise KekNotFound
        self._versions.discard(version)

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        with self.faults.around("kms.wrap"):
            if self.primary in self._disabled:
                raise KekDisabled
            wrapped = secrets.token_bytes(48)
            self._wrapped[wrapped] = (dek, bound, self.primary)
            return WrappedKey(self.primary, wrapped)

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        with self.faults.around("kms.unwrap"):
            if key.kek_version in self._disabled or key.kek_version not in self._versions:
                raise KekDisabled
            dek, bound_before, version = self._wrapped.get(key.wrapped, (None, b"", ""))
            if dek is None or bound != bound_before or version != key.kek_version:
                raise CannotOpen
            return self._answer or dek


@dataclass(slots=True)
class _AttemptRow:
    attempt: InstallAttempt
    started: int
    lease: UUID | None = None
    lease_until: datetime | None = None
    ended_at: datetime | None = None


@dataclass(slots=True)
class _UninstallRow:
    begun: OpenUninstall
    asked_at: datetime
    tried_at: datetime


class MemoryStore:
    """A VaultStore, an InstallStore, a KeyStore and an UninstallStore.

    Attributes:
        records: The audit log.
        tombstones: What was purged.
    """

    def __init__(self, clock: ManualClock, *, chain_id: UUID, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.records: list[ChainedEvent] = []
        self.installations: dict[InstallationId, Installation] = {}
        self.tokens: dict[InstallationId, tuple[SealedToken, ...]] = {}
        self.deks: dict[InstallationId, WrappedDek] = {}
        self.stops: dict[tuple[InstallationId | None, Stop], str] = {}
        self._attempts: dict[str, _AttemptRow] = {}
        self.tombstones: list[Tombstone] = []
        self._released: dict[Tombstone, datetime] = {}
        self._uninstalls: dict[InstallationId, _UninstallRow] = {}
        self._is_rewrapping = False
        self._clock = clock
        self._chain = AuditChain(chain_id)
        self._order = count()

    def attempt(self, grant_id: str) -> InstallAttempt:
        """Look at an attempt."""
        return self._attempts[grant_id].attempt

    # What reading needs.

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """Load, judge, and commit the record; see VaultStore."""
        with self.faults.around("store.load_recorded"):
            verdict = judge(self._find(target.key, target.user_id))
            self._append([verdict.event])
            return verdict

    async def load_recorded_many(self, wishes: Sequence[Wish]) -> list[Verdict | Exception]:
        """Load, judge, and commit the records; see VaultStore."""
        with self.faults.around("store.load_recorded"):
            verdicts: list[Verdict | Exception] = []
            for target, judge in wishes:
                try:
                    verdicts.append(judge(self._find(target.key, target.user_id)))
                except Exception as error:  # noqa: BLE001 - It is the one reader's.
                    verdicts.append(error)
            self._append([each.event for each in verdicts if isinstance(each, Verdict)])
            return verdicts

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see VaultStore."""
        with self.faults.around("store.record"):
            self._append(events)

    async def list_audit_events(
        self, key: InstallationKey | None, limit: int, after: AuditCursor | None
    ) -> list[ChainedEvent]:
        """List records, newest first; see VaultStore."""
        with self.faults.around("store.list_audit_events"):
            found = self._find(key) if key else None
            ids = {found.installation.id} if found else set()
            newest_first = sorted(self.records, key=_place, reverse=True)
            return [
                record
                for record in newest_first
                if (key is None or record.event.installation_id in ids)
                and (after is None or _place(record) < (after.at, after.chain_id, after.seq))
            ][:limit]

    async def stop_releases(
        self, installation_id: InstallationId | None, stop: Stop, note: str, event: AuditEvent
    ) -> None:
        """Stop releases; see VaultStore."""
        with self.faults.around("store.stop_releases"):
            if installation_id is not None and installation_id not in self.installations:
                raise InstallationNotFound
            if (installation_id, stop) not in self.stops:
                self.stops[installation_id, stop] = note
                self._append([event])

    async def resume_releases(
        self, installation_id: InstallationId | None, stop: Stop, event: AuditEvent
    ) -> None:
        """Undo stop_releases; see VaultStore."""
        with self.faults.around("store.resume_releases"):
            if self.stops.pop((installation_id, stop), None) is not None:
                self._append([event])

    # What installing needs.

    async def start_attempt(self, attempt: InstallAttempt, event: AuditEvent) -> None:
        """Write an attempt down; see InstallStore."""
        with self.faults.around("store.start_attempt"):
            if attempt.grant_id not in self._attempts:
                self._attempts[attempt.grant_id] = _AttemptRow(attempt, next(self._order))
                self._append([event])

    async def find_attempt(self, grant_id: str) -> InstallAttempt | None:
        """Find an attempt; see InstallStore."""
        with self.faults.around("store.find_attempt"):
            row = self._attempts.get(grant_id)
            return row.attempt if row else None

    async def take_exchange(
        self,
        grant_id: str,
        code_ref: TokenRef,
        wrapped: WrappedDek,
        lease: UUID,
        event: AuditEvent,
    ) -> datetime:
        """Take the right to exchange a code; see InstallStore."""
        with self.faults.around("store.take_exchange"):
            row = self._get(grant_id)
            if row.attempt.state not in {AttemptState.STARTED, AttemptState.EXCHANGING}:
                raise InstallInProgress
            if row.attempt.code_ref not in {"", code_ref}:
                raise InstallNotOpen
            self._lease(row, lease)
            if row.attempt.installation_id is not None:
                self.deks.pop(row.attempt.installation_id, None)
            self.deks[wrapped.installation_id] = wrapped
            row.attempt = replace(
                row.attempt,
                state=AttemptState.EXCHANGING,
                code_ref=code_ref,
                installation_id=wrapped.installation_id,
            )
            self._append([event])
            return self._clock.now()

    async def save_pending(
        self,
        grant_id: str,
        installation: Installation,
        tokens: Sequence[SealedToken],
        event: AuditEvent,
    ) -> None:
        """Store what an exchange gave; see InstallStore."""
        with self.faults.around("store.save_pending"):
            row = self._get(grant_id)
            if row.attempt.installation_id != installation.id:
                raise InstallInProgress
            if row.attempt.state is AttemptState.PENDING:
                return
            if row.attempt.state is not AttemptState.EXCHANGING:
                raise InstallInProgress
            self.installations[installation.id] = installation
            self.tokens[installation.id] = tuple(tokens)
            row.attempt = replace(row.attempt, state=AttemptState.PENDING)
            self._append([event])

    async def take_pending(self, grant_id: str, lease: UUID, event: AuditEvent) -> PendingInstall:
        """Take the right to finish a pending install; see InstallStore."""
        with self.faults.around("store.take_pending"):
            row = self._get(grant_id)
            pending_id = row.attempt.installation_id
            if row.attempt.state is not AttemptState.PENDING or pending_id is None:
                raise InstallInProgress
            self._lease(row, lease)
            if pending_id not in self.deks:
                raise CannotOpen
            self._append([event])
            return PendingInstall(
                row.attempt,
                self.installations[pending_id],
                self.tokens[pending_id],
                self.deks[pending_id],
            )

    async def release(self, grant_id: str, lease: UUID) -> None:
        """Give a lease back; see InstallStore."""
        with self.faults.around("store.release"):
            row = self._attempts.get(grant_id)
            if row is not None and row.lease == lease:
                row.lease, row.lease_until = None, None

    async def find_active(self, key: InstallationKey) -> Loaded | None:
        """Find the active installation of a key; see InstallStore."""
        with self.faults.around("store.find_active"):
            return self._find(key)

    async def find_installation(self, installation_id: InstallationId) -> Installation | None:
        """Find an installation by its id; see InstallStore."""
        with self.faults.around("store.find_installation"):
            return self.installations.get(installation_id)

    async def activate(self, activation: Activation, events: Sequence[AuditEvent]) -> Installation:
        """Make a pending install what answers reads; see InstallStore."""
        with self.faults.around("store.activate"):
            row = self._get(activation.grant_id)
            if row.attempt.state is not AttemptState.PENDING:
                raise InstallInProgress
            target, replaced = activation.target, activation.replaced
            held = self._find(target.key)
            if (held.installation if held else None) != replaced:
                raise StaleGeneration
            if replaced is not None and replaced.id != target.id:
                self._forget(replaced.id)
            if target.id != activation.pending_id:
                self._forget(activation.pending_id)
            active = replace(target, state=InstallationState.ACTIVE, installed_at=self._clock.now())
            beside = self._beside(activation) if replaced and replaced.id == target.id else ()
            self.installations[active.id] = active
            self.tokens[active.id] = (*activation.tokens, *beside)
            self.stops.pop((active.id, Stop.HELD), None)
            self._end(
                row,
                state=AttemptState.DONE,
                installation_id=active.id,
                is_reinstall=activation.is_reinstall,
                extra_scopes=activation.extra_scopes,
            )
            self._append(events)
            return active

    async def drop(self, grant_id: str, reason: str, events: Sequence[AuditEvent]) -> None:
        """End an attempt without an installation; see InstallStore."""
        with self.faults.around("store.drop"):
            row = self._get(grant_id)
            if row.ended_at is not None:
                return
            if row.attempt.installation_id is not None:
                self._forget(row.attempt.installation_id)
            self._end(row, state=AttemptState.DROPPED, installation_id=None, outcome=reason)
            self._append(events)

    async def is_ref_stored(self, ref: TokenRef, except_id: InstallationId | None) -> bool:
        """Tell whether another installation holds a token; see InstallStore."""
        with self.faults.around("store.is_ref_stored"):
            return any(
                token.ref == ref
                for installation_id, tokens in self.tokens.items()
                if installation_id != except_id
                for token in tokens
            )

    async def list_unfinished(self, limit: int) -> list[InstallAttempt]:
        """List attempts that will not end by themselves; see InstallStore."""
        with self.faults.around("store.list_unfinished"):
            now = self._clock.now()
            rows = sorted(self._attempts.values(), key=lambda row: row.started)
            return [
                row.attempt
                for row in rows
                if row.ended_at is None
                and (row.lease_until is None or row.lease_until <= now)
                and (
                    row.attempt.state is AttemptState.PENDING or row.attempt.grant_expires_at <= now
                )
            ][:limit]

    async def prune_attempts(self) -> None:
        """Delete attempts that ended more than 30 days ago; see InstallStore."""
        with self.faults.around("store.prune_attempts"):
            limit = self._clock.now() - _KEEP_ENDED
            self._attempts = {
                grant_id: row
                for grant_id, row in self._attempts.items()
                if row.ended_at is None or row.ended_at >= limit
            }

    # What the life of keys needs.

    async def count_deks(self) -> Mapping[str, int]:
        """Count the data keys by version; see KeyStore."""
        return Counter(wrapped.kek_version for wrapped in self.deks.values())

    @asynccontextmanager
    async def rewrapping(self) -> AsyncIterator[None]:
        """Hold the right to re-wrap; see KeyStore."""
        if self._is_rewrapping:
            raise RewrapRunning
        self._is_rewrapping = True
        try:
            yield
        finally:
            self._is_rewrapping = False

    async def list_deks(
        self, not_version: str, after: DekId | None, limit: int
    ) -> Sequence[DekPlace]:
        """List data keys of other versions; see KeyStore."""
        with self.faults.around("store.list_deks"):
            found = sorted(self.deks.values(), key=lambda wrapped: wrapped.dek_id)
            return [
                DekPlace(wrapped.dek_id, wrapped.installation_id)
                for wrapped in found
                if wrapped.kek_version != not_version and (after is None or wrapped.dek_id > after)
            ][:limit]

    async def get_deks(self, places: Sequence[DekPlace]) -> Sequence[HeldDek]:
        """Get data keys by their ids; see KeyStore."""
        with self.faults.around("store.get_deks"):
            wanted = {place.dek_id for place in places}
            return [
                HeldDek(wrapped, found.key.client_id if found else None)
                for wrapped in self.deks.values()
                if wrapped.dek_id in wanted
                for found in [self.installations.get(wrapped.installation_id)]
            ]

    async def replace_deks(
        self, changes: Sequence[tuple[WrappedDek, WrappedDek]], events: Sequence[AuditEvent]
    ) -> int:
        """Put newly wrapped keys in place; see KeyStore."""
        with self.faults.around("store.replace_deks"):
            written: list[AuditEvent] = []
            for (before, after), event in zip(changes, events, strict=True):
                if self.deks.get(before.installation_id) == before:
                    self.deks[before.installation_id] = after
                    written.append(event)
            self._append(written)
            return len(written)

    async def find_held(self, installation_id: InstallationId) -> Held | None:
        """Find what is sealed for an installation; see KeyStore."""
        installation = self.installations.get(installation_id)
        wrapped = self.deks.get(installation_id)
        if (
            installation is None
            or wrapped is None
            or installation.state is not InstallationState.ACTIVE
        ):
            return None
        return Held(installation, self.tokens[installation_id], wrapped)

    async def find_by_place(
        self, client_id: ClientId, place: SlackPlace
    ) -> Sequence[InstallationId]:
        """Find installations by Slack's name; see KeyStore."""
        return [
            each.id
            for each in self.installations.values()
            if each.key.client_id == client_id
            and (each.key.enterprise_id, each.key.team_id) == (place.enterprise_id, place.team_id)
            and each.state is InstallationState.ACTIVE
        ]

    async def reseal(self, before: Held, after: Held, event: AuditEvent) -> None:
        """Put newly sealed tokens in place; see KeyStore."""
        with self.faults.around("store.reseal"):
            if await self.find_held(before.installation.id) != before:
                raise StaleGeneration
            other = self._find(after.installation.key)
            if other is not None and other.installation.id != after.installation.id:
                raise EnterpriseInstalled
            self.installations[after.installation.id] = after.installation
            self.tokens[after.installation.id] = after.tokens
            self.deks[after.installation.id] = after.wrapped
            self._append([event])

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete an installation with its keys; see KeyStore."""
        with self.faults.around("store.shred"):
            if installation_id not in self.installations:
                raise InstallationNotFound
            self._forget(installation_id)
            self._append([event])

    # What connections need.

    async def find_connecting(self, tenant_id: TenantId) -> InstallAttempt | None:
        """Find a tenant's newest open install by Nango; see InstallStore."""
        with self.faults.around("store.find_connecting"):
            now = self._clock.now()
            rows = sorted(self._attempts.values(), key=lambda row: row.started, reverse=True)
            return next(
                (
                    row.attempt
                    for row in rows
                    if (row.attempt.tenant_id, row.attempt.source) == (tenant_id, "nango")
                    and row.ended_at is None
                    and row.attempt.grant_expires_at > now
                ),
                None,
            )

    async def find_connected(self, key: InstallationKey) -> Held | None:
        """Find what is sealed for the active installation of a key; see InstallStore."""
        with self.faults.around("store.find_connected"):
            found = self._find(key)
            return await self.find_held(found.installation.id) if found else None

    async def renew_connection(
        self, before: Installation, sealed: SealedToken, event: AuditEvent
    ) -> None:
        """Put a connection one generation up; see ConnectionStore."""
        with self.faults.around("store.renew_connection"):
            held = self.installations.get(before.id)
            if held is None or held.generation != before.generation:
                raise StaleGeneration
            self.installations[before.id] = replace(held, generation=sealed.generation)
            self.tokens[before.id] = tuple(
                sealed if each.slot is TokenSlot.CONNECTION else each
                for each in self.tokens[before.id]
            )
            self._append([event])

    # What uninstalling needs.

    async def find_meant(self, key: InstallationKey) -> Sequence[InstallationId]:
        """Find what an event may mean; see UninstallStore."""
        with self.faults.around("store.find_meant"):
            return [
                each.id
                for each in self.installations.values()
                if each.state is InstallationState.ACTIVE
                and (each.key.client_id, each.key.app_id) == (key.client_id, key.app_id)
                and (
                    (key.team_id and each.key.team_id == key.team_id)
                    or (
                        key.enterprise_id
                        and not each.key.team_id
                        and each.key.enterprise_id == key.enterprise_id
                    )
                )
            ]

    async def is_held_back(self, installation_id: InstallationId) -> bool:
        """Tell whether it waits for a look after a restore; see UninstallStore."""
        with self.faults.around("store.is_held_back"):
            return any((each, Stop.HELD) in self.stops for each in (installation_id, None))

    async def begin_uninstall(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Write an uninstall down; see UninstallStore."""
        with self.faults.around("store.begin_uninstall"):
            found = self.installations.get(installation_id)
            if found is None or found.state is not InstallationState.ACTIVE:
                raise InstallationNotFound
            now = self._clock.now()
            begun = OpenUninstall(installation_id, event.origin.grant_id, event.origin.subject)
            self._uninstalls[installation_id] = _UninstallRow(begun, now, now)
            self._append([event])

    async def list_open_uninstalls(self, quiet: timedelta, limit: int) -> Sequence[OpenUninstall]:
        """List uninstalls to be ended, and note the try; see UninstallStore."""
        with self.faults.around("store.list_open_uninstalls"):
            now = self._clock.now()
            rows = [
                row
                for installation_id, row in self._uninstalls.items()
                for installed_at in [self.installations[installation_id].installed_at]
                if row.tried_at <= now - quiet and installed_at and installed_at <= row.asked_at
            ]
            rows = sorted(rows, key=lambda row: row.tried_at)[:limit]
            for row in rows:
                row.tried_at = now
            return [row.begun for row in rows]

    async def purge(self, installation: Installation, event: AuditEvent) -> None:
        """Destroy an installation, leaving a tombstone; see UninstallStore."""
        with self.faults.around("store.purge"):
            found = self.installations.get(installation.id)
            if found is None or found.generation != installation.generation:
                raise StaleGeneration
            self._forget(installation.id)
            self.tombstones.append(Tombstone(installation.id, installation.key))
            self._append([event])

    async def purge_user(
        self, installation_id: InstallationId, sealed: SealedToken, event: AuditEvent
    ) -> bool:
        """Delete a user's tokens; see UninstallStore."""
        with self.faults.around("store.purge_user"):
            tokens = self.tokens.get(installation_id, ())
            if sealed not in tokens:
                return False
            self.tokens[installation_id] = tuple(
                each for each in tokens if each.user_id != sealed.user_id
            )
            self._append([event])
            return True

    async def list_unreleased(self, limit: int) -> Sequence[Tombstone]:
        """List tombstones with claims; see UninstallStore."""
        with self.faults.around("store.list_unreleased"):
            return [each for each in self.tombstones if each not in self._released][:limit]

    async def find_unreleased(self, key: InstallationKey) -> Sequence[Tombstone]:
        """List those of one name; see UninstallStore."""
        with self.faults.around("store.find_unreleased"):
            return [
                each for each in self.tombstones if each not in self._released and each.key == key
            ]

    async def note_released(self, installation_id: InstallationId) -> None:
        """Note that a claim is released; see UninstallStore."""
        with self.faults.around("store.note_released"):
            for each in self.tombstones:
                if each.installation_id == installation_id:
                    self._released.setdefault(each, self._clock.now())

    async def prune_tombstones(self, older_than: timedelta) -> None:
        """Delete old tombstones; see UninstallStore."""
        with self.faults.around("store.prune_tombstones"):
            limit = self._clock.now() - older_than
            self.tombstones = [
                each
                for each in self.tombstones
                if each not in self._released or self._released[each] >= limit
            ]

    def _find(self, key: InstallationKey | None, user_id: str = "") -> Loaded | None:
        kind = TokenKind.USER if user_id else TokenKind.BOT
        for installation in self.installations.values():
            if installation.key != key or installation.state is not InstallationState.ACTIVE:
                continue
            access = [
                token
                for token in self.tokens.get(installation.id, ())
                if token.slot is TokenSlot.ACCESS and (token.kind, token.user_id) == (kind, user_id)
            ]
            return Loaded(
                installation,
                access[0] if access else None,
                self.deks.get(installation.id),
                self._clock.now(),
                self._audited_generation(installation.id),
                self._stop_of(installation.id),
            )
        return None

    def _beside(self, activation: Activation) -> tuple[SealedToken, ...]:
        """Keep what a reinstall brings nothing in the place of."""
        brought = {(each.kind, each.user_id): each.generation for each in activation.tokens}
        held = self.tokens[activation.target.id]
        if any(
            each.user_id and each.generation >= brought.get((each.kind, each.user_id), 2**62)
            for each in held
        ):
            raise StaleGeneration
        return tuple(each for each in held if (each.kind, each.user_id) not in brought)

    def _stop_of(self, installation_id: InstallationId) -> Stop | None:
        for stop in Stop:
            if (installation_id, stop) in self.stops or (None, stop) in self.stops:
                return stop
        return None

    def _audited_generation(self, installation_id: InstallationId) -> int:
        return max(
            (
                record.event.generation
                for record in self.records
                if record.event.installation_id == installation_id
                and record.event.action in {"install.activated", "token.rotated"}
            ),
            default=0,
        )

    def _get(self, grant_id: str) -> _AttemptRow:
        if grant_id not in self._attempts:
            raise InstallNotOpen
        return self._attempts[grant_id]

    def _lease(self, row: _AttemptRow, lease: UUID) -> None:
        now = self._clock.now()
        if row.lease_until is not None and row.lease_until > now:
            raise InstallInProgress
        row.lease, row.lease_until = lease, now + LEASE

    def _end(
        self,
        row: _AttemptRow,
        *,
        state: AttemptState,
        installation_id: InstallationId | None,
        is_reinstall: bool = False,
        extra_scopes: tuple[str, ...] = (),
        outcome: str = "",
    ) -> None:
        row.attempt = replace(
            row.attempt,
            grant=None,
            state=state,
            installation_id=installation_id,
            is_reinstall=is_reinstall,
            extra_scopes=extra_scopes,
            outcome=outcome,
        )
        row.lease, row.lease_until, row.ended_at = None, None, self._clock.now()

    def _forget(self, installation_id: InstallationId) -> None:
        self.installations.pop(installation_id, None)
        self.tokens.pop(installation_id, None)
        self.deks.pop(installation_id, None)
        self._uninstalls.pop(installation_id, None)

    def _append(self, events: Iterable[AuditEvent]) -> None:
        records = self._chain.extend(events, self._clock.now())
        self.records.extend(records)
        self._chain.advance(records)


@dataclass(slots=True)
class FakeSlack:
    """Slack, as far as installing knows it.

    Attributes:
        codes: What each unused code is exchanged for.
        user_scopes: What a person's new token may do.
        identities: Whose each living token is.
        revoked: The tokens that were revoked, in order.
        uninstalled: The places that the app was removed from, in order.
    """

    faults: Faults = field(default_factory=Faults)
    codes: dict[str, ExchangeAnswer] = field(default_factory=dict)
    user_scopes: tuple[str, ...] = ()
    identities: dict[str, BotIdentity] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    uninstalled: list[tuple[str, str]] = field(default_factory=list)

    async def exchange(self, code: Secret[str], redirect_uri: str) -> ExchangeAnswer:  # noqa: ARG002 - The signature is the port's.
        """Exchange a code; see Slack."""
        with self.faults.around("slack.exchange"):
            answer = self.codes.pop(code.reveal(), None)
            if answer is None:
                raise OAuthCodeRefused
            if answer.bot_token is not None:
                self.identities.setdefault(
                    answer.bot_token.reveal(),
                    BotIdentity(
                        answer.team_id,
                        answer.enterprise_id,
                        answer.bot_user_id,
                        answer.is_enterprise_install,
                    ),
                )
            if answer.user is not None:
                identity = BotIdentity(
                    answer.team_id,
                    answer.enterprise_id,
                    answer.user.user_id,
                    answer.is_enterprise_install,
                    self.user_scopes,
                )
                self.identities.setdefault(answer.user.token.reveal(), identity)
            return answer

    async def test(self, token: Secret[str]) -> BotIdentity:
        """Ask whose token it is; see Slack."""
        with self.faults.around("slack.test"):
            return self._living(token)

    async def describe(self, token: Secret[str]) -> ExchangeAnswer:
        """Ask what a token is; see Slack."""
        with self.faults.around("slack.describe"):
            identity = self._living(token)
            return ExchangeAnswer(
                bot_token=token,
                token_type="bot",  # noqa: S106 - A type, no token.
                app_id="A0APP",
                team_id=identity.team_id,
                team_name="Northwind",
                enterprise_id=identity.enterprise_id,
                enterprise_name="Grid",
                is_enterprise_install=identity.is_enterprise_install,
                bot_user_id=identity.user_id,
                scopes=("chat:write", "commands"),
            )

    async def revoke(self, token: Secret[str]) -> None:
        """End a token; see Slack."""
        with self.faults.around("slack.revoke"):
            self._living(token)
            del self.identities[token.reveal()]
            self.revoked.append(token.reveal())

    async def uninstall(self, token: Secret[str]) -> None:
        """Remove the app from where the token belongs; see SlackExit."""
        with self.faults.around("slack.uninstall"):
            self.remove_app(self._living(token))

    def remove_app(self, place: BotIdentity) -> None:
        """Remove the app from a place, with all its tokens there."""
        where = (place.enterprise_id, place.team_id)
        self.uninstalled.append(where)
        self.identities = {
            token: identity
            for token, identity in self.identities.items()
            if (identity.enterprise_id, identity.team_id) != where
        }

    def _living(self, token: Secret[str]) -> BotIdentity:
        identity = self.identities.get(token.reveal())
        if identity is None:
            raise TokenDead
        return identity


@dataclass(slots=True)
class FakeNango:
    """Nango, as far as the vault knows it.

    Attributes:
        connections: What each living connection holds.
        successors: What a forced renewal makes of a connection.
        labels: The metadata of each connection.
        deleted: The connections that were deleted, in order.
        reconnected: The connections for which a session was opened.
    """

    faults: Faults = field(default_factory=Faults)
    connections: dict[ConnectionRef, Fetched] = field(default_factory=dict)
    successors: dict[ConnectionRef, Fetched] = field(default_factory=dict)
    labels: dict[ConnectionRef, dict[str, str]] = field(default_factory=dict)
    deleted: list[ConnectionRef] = field(default_factory=list)
    reconnected: list[str] = field(default_factory=list)

    async def fetch(self, ref: ConnectionRef, *, is_forced: bool = False) -> Fetched:
        """Fetch a connection; see CredentialSource."""
        with self.faults.around("nango.force" if is_forced else "nango.fetch"):
            if ref not in self.connections:
                raise ConnectionNotFound
            if is_forced and ref in self.successors:
                self.connections[ref] = self.successors.pop(ref)
            return self.connections[ref]

    async def open_session(
        self,
        integration: str,
        tags: Mapping[str, str],
        reconnects: str = "",
    ) -> ConnectSession:
        """Open a session; see Connections."""
        with self.faults.around("nango.open_session"):
            if reconnects and ConnectionRef(integration, reconnects) not in self.connections:
                raise ConnectionNotFound
            self.reconnected.append(reconnects)
            ends = datetime(2030, 1, 1, tzinfo=UTC)
            return ConnectSession(Secret("session"), f"https://nango.example/{len(tags)}", ends)

    async def label(self, ref: ConnectionRef, metadata: Mapping[str, str]) -> None:
        """Replace metadata; see Connections."""
        with self.faults.around("nango.label"):
            self.labels[ref] = dict(metadata)

    async def delete(self, ref: ConnectionRef) -> None:
        """Delete a connection; see Connections."""
        with self.faults.around("nango.delete"):
            if self.connections.pop(ref, None) is not None:
                self.deleted.append(ref)


@dataclass(slots=True)
class FakeClaims:
    """Identity, as far as installing knows it.

    Attributes:
        tenant_of: Whose grants these are; a grant that is not here has expired.
        claims: Whose each workspace is.
        holders: The installation that each claim stands for.
        connections: Where each claim's token is kept, if not in the vault.
    """

    faults: Faults = field(default_factory=Faults)
    tenant_of: dict[str, TenantId] = field(default_factory=dict)
    claims: dict[tuple[str, str], TenantId] = field(default_factory=dict)
    holders: dict[tuple[str, str], InstallationId] = field(default_factory=dict)
    connections: dict[tuple[str, str], ConnectionRef | None] = field(default_factory=dict)

    async def claim(
        self,
        grant: Secret[str],
        installation_id: InstallationId,
        key: InstallationKey,
        name: str,  # noqa: ARG002 - The signature is the port's.
        connection: ConnectionRef | None = None,
    ) -> bool:
        """Claim a workspace; see Claims."""
        with self.faults.around("claims.claim"):
            tenant = self.tenant_of.get(grant.reveal())
            if tenant is None:
                raise InstallNotOpen
            place = (key.enterprise_id, key.team_id)
            owner = self.claims.setdefault(place, tenant)
            if owner != tenant:
                raise WorkspaceTaken
            self.holders[place] = installation_id
            self.connections[place] = connection
            return False

    async def move(
        self,
        installation_id: InstallationId,
        key: InstallationKey,
        name: str,  # noqa: ARG002 - The signature is the port's.
    ) -> None:
        """Move a claim to the Enterprise that its workspace joined; see ClaimMover."""
        with self.faults.around("claims.move"):
            places = [place for place in self.claims if place[1] == key.team_id]
            if not places:
                raise NotClaimed
            tenant = self.claims[places[0]]
            if self.claims.get((key.enterprise_id, ""), tenant) != tenant:
                raise WorkspaceTaken
            del self.claims[places[0]]
            self.claims[key.enterprise_id, key.team_id] = tenant
            self.holders.pop(places[0], None)
            self.holders[key.enterprise_id, key.team_id] = installation_id

    async def release(self, installation_id: InstallationId, key: InstallationKey) -> None:
        """End a claim, unless it has moved on to another installation; see Releases."""
        with self.faults.around("claims.release"):
            place = (key.enterprise_id, key.team_id)
            if self.holders.get(place) == installation_id:
                del self.holders[place], self.claims[place]


def counting_ids() -> Callable[[], UUID]:
    """Make ids 1, 2, 3, …, so that a test repeats exactly."""
    numbers = count(1)
    return lambda: UUID(int=next(numbers))


def _place(record: ChainedEvent) -> tuple[datetime, UUID, int]:
    return record.at, record.chain_id, record.seq
