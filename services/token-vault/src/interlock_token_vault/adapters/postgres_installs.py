"""The vault's database, as installing needs it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from interlock_token_vault.adapters.journal import Journal, failing_closed, load
from interlock_token_vault.adapters.rows import (
    Connection,
    Pool,
    Row,
    attempt_of,
    dek_of,
    find_held,
    installation_of,
    query,
    snapshot,
    token_of,
)
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import CannotOpen, SealedToken, WrappedDek
from interlock_token_vault.domain.install import (
    AttemptState,
    InstallAttempt,
    InstallInProgress,
    InstallNotOpen,
)
from interlock_token_vault.domain.installation import (
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenRef,
)
from interlock_token_vault.install_ports import (
    LEASE,
    Activation,
    PendingInstall,
    StaleGeneration,
)
from interlock_token_vault.vault import Held, Loaded, ReadTarget, Stop

# As long as identity keeps the links of a workspace that was uninstalled.
_KEEP_ENDED = timedelta(days=30)


class PostgresInstalls:
    """An InstallStore on Postgres.

    Args:
        pool: Of the vault's role; for what leaves no record.
        journal: Commits everything that leaves one.
    """

    def __init__(self, pool: Pool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal

    async def start_attempt(self, attempt: InstallAttempt, event: AuditEvent) -> None:
        """Write an attempt down; see InstallStore."""
        grant = attempt.grant
        if grant is None:
            raise AssertionError("an attempt starts with its grant")

        async def work(connection: Connection) -> tuple[None, list[AuditEvent]]:
            is_new = await connection.fetchval(
                query("start_attempt"),
                attempt.grant_id,
                grant.reveal(),
                attempt.tenant_id,
                attempt.user_id,
                attempt.state_sha256,
                attempt.source,
                attempt.grant_expires_at,
            )
            return None, [event] if is_new else []

        await self._journal.commit(work)

    async def find_attempt(self, grant_id: str) -> InstallAttempt | None:
        """Find an attempt; see InstallStore."""
        with failing_closed():
            row = await self._pool.fetchrow(query("find_attempt"), grant_id)
        return None if row is None else attempt_of(row)

    async def find_connecting(self, tenant_id: TenantId) -> InstallAttempt | None:
        """Find a tenant's newest open install by Nango; see InstallStore."""
        with failing_closed():
            row = await self._pool.fetchrow(query("find_connecting"), tenant_id)
        return None if row is None else attempt_of(row)

    async def find_connected(self, key: InstallationKey) -> Held | None:
        """Find what is sealed for the active installation of a key; see InstallStore."""
        name = (key.client_id, key.app_id, key.enterprise_id, key.team_id)
        with failing_closed():
            async with snapshot(self._pool) as connection:
                found = await connection.fetchval(query("find_active_id"), *name)
                if found is None:
                    return None
                await _name(connection, InstallationId(found))
                return await find_held(connection, "get_active", InstallationId(found))

    async def take_exchange(
        self,
        grant_id: str,
        code_ref: TokenRef,
        wrapped: WrappedDek,
        lease: UUID,
        event: AuditEvent,
    ) -> datetime:
        """Take the right to exchange a code; see InstallStore."""

        async def work(connection: Connection) -> tuple[datetime, list[AuditEvent]]:
            row = await _lock(connection, grant_id)
            attempt = attempt_of(row)
            if attempt.state not in {AttemptState.STARTED, AttemptState.EXCHANGING}:
                # Also done: the repeat finds out what it came to.
                raise InstallInProgress
            if attempt.code_ref not in {"", code_ref}:
                raise InstallNotOpen
            if row["is_leased"]:
                raise InstallInProgress
            await _name(connection, attempt.installation_id, wrapped.installation_id)
            await connection.execute(query("delete_deks"), attempt.installation_id)
            await _insert_dek(connection, wrapped)
            await connection.execute(
                query("take_exchange"), grant_id, code_ref, wrapped.installation_id, lease, LEASE
            )
            at: datetime = await connection.fetchval(query("read_clock"))
            return at, [event]

        return await self._journal.commit(work)

    async def save_pending(
        self,
        grant_id: str,
        installation: Installation,
        tokens: Sequence[SealedToken],
        event: AuditEvent,
    ) -> None:
        """Store what an exchange gave; see InstallStore."""

        async def work(connection: Connection) -> tuple[None, list[AuditEvent]]:
            attempt = attempt_of(await _lock(connection, grant_id))
            if attempt.installation_id != installation.id:
                raise InstallInProgress
            if attempt.state is AttemptState.PENDING:
                return None, []
            if attempt.state is not AttemptState.EXCHANGING:
                raise InstallInProgress
            await _name(connection, installation.id)
            await _insert_installation(connection, installation)
            await insert_tokens(connection, installation.id, tokens)
            await connection.execute(query("save_pending_attempt"), grant_id)
            return None, [event]

        await self._journal.commit(work)

    async def take_pending(self, grant_id: str, lease: UUID, event: AuditEvent) -> PendingInstall:
        """Take the right to finish a pending install; see InstallStore."""

        async def work(connection: Connection) -> tuple[PendingInstall, list[AuditEvent]]:
            row = await _lock(connection, grant_id)
            attempt = attempt_of(row)
            if attempt.state is not AttemptState.PENDING or row["is_leased"]:
                raise InstallInProgress
            await _name(connection, attempt.installation_id)
            pending = await _get_pending(connection, attempt)
            await connection.execute(query("take_pending"), grant_id, lease, LEASE)
            return pending, [event]

        return await self._journal.commit(work)

    async def release(self, grant_id: str, lease: UUID) -> None:
        """Give a lease back; see InstallStore."""
        with failing_closed():
            await self._pool.execute(query("release_lease"), grant_id, lease)

    async def find_active(self, key: InstallationKey) -> Loaded | None:
        """Find the active installation of a key; see InstallStore."""
        target = ReadTarget(key)
        with failing_closed():
            async with self._pool.acquire() as connection:
                _, found = await load(connection, [target], [False])
        return found.get(target)

    async def find_installation(self, installation_id: InstallationId) -> Installation | None:
        """Find an installation by its id; see InstallStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await _name(connection, installation_id)
                row = await connection.fetchrow(query("find_installation"), installation_id)
        return None if row is None else installation_of(row)

    async def activate(self, activation: Activation, events: Sequence[AuditEvent]) -> Installation:
        """Make a pending install what answers reads; see InstallStore."""
        replaced, target = activation.replaced, activation.target

        async def work(connection: Connection) -> tuple[Installation, Sequence[AuditEvent]]:
            attempt = attempt_of(await _lock(connection, activation.grant_id))
            if attempt.state is not AttemptState.PENDING:
                raise InstallInProgress
            await _name(
                connection, activation.pending_id, target.id, replaced.id if replaced else None
            )
            if replaced is not None and replaced.id == target.id:
                row = await _renew(connection, activation, replaced)
            else:
                if replaced is not None:
                    await _purge(connection, replaced)
                row = await _activate(connection, target)
            # A token fresh from Slack is known to live, whatever was restored before it.
            await connection.execute(query("resume_releases"), target.id, Stop.HELD.value)
            await connection.execute(
                query("end_attempt"),
                activation.grant_id,
                AttemptState.DONE.value,
                target.id,
                activation.is_reinstall,
                list(activation.extra_scopes),
                "",
            )
            return installation_of(row), events

        return await self._journal.commit(work)

    async def drop(self, grant_id: str, reason: str, events: Sequence[AuditEvent]) -> None:
        """End an attempt without an installation; see InstallStore."""

        async def work(connection: Connection) -> tuple[None, Sequence[AuditEvent]]:
            attempt = attempt_of(await _lock(connection, grant_id))
            if attempt.state in {AttemptState.DONE, AttemptState.DROPPED}:
                return None, []
            if attempt.installation_id is not None:
                await _name(connection, attempt.installation_id)
                await connection.execute(query("delete_deks"), attempt.installation_id)
                await connection.execute(
                    query("delete_installation"),
                    attempt.installation_id,
                    1,
                    InstallationState.PENDING.value,
                )
            await connection.execute(
                query("end_attempt"),
                grant_id,
                AttemptState.DROPPED.value,
                None,
                False,  # noqa: FBT003 - A column's value.
                [],
                reason,
            )
            return None, events

        await self._journal.commit(work)

    async def is_ref_stored(self, ref: TokenRef, except_id: InstallationId | None) -> bool:
        """Tell whether another installation holds a token; see InstallStore."""
        with failing_closed():
            stored: bool = await self._pool.fetchval(query("is_ref_stored"), ref, except_id)
        return stored

    async def list_unfinished(self, limit: int) -> list[InstallAttempt]:
        """List attempts that will not end by themselves; see InstallStore."""
        with failing_closed():
            rows = await self._pool.fetch(query("list_unfinished"), limit)
        return [attempt_of(row) for row in rows]

    async def prune_attempts(self) -> None:
        """Delete attempts that ended more than 30 days ago; see InstallStore."""
        with failing_closed():
            await self._pool.execute(query("prune_attempts"), _KEEP_ENDED)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see InstallStore."""
        await self._journal.record(events)


async def _lock(connection: Connection, grant_id: str) -> Row:
    row = await connection.fetchrow(query("lock_attempt"), grant_id)
    if row is None:
        raise InstallNotOpen
    return row


async def _name(connection: Connection, *ids: InstallationId | None) -> None:
    """Name the only installations that the rest of the transaction can see."""
    named = [each for each in ids if each is not None]
    await connection.execute(query("name_installations"), named)


async def _get_pending(connection: Connection, attempt: InstallAttempt) -> PendingInstall:
    installation = await connection.fetchrow(query("find_installation"), attempt.installation_id)
    tokens = await connection.fetch(query("get_tokens"), attempt.installation_id)
    dek_row = await connection.fetchrow(query("get_deks"), attempt.installation_id)
    wrapped = dek_of(dek_row) if dek_row else None
    if installation is None or wrapped is None or not tokens:
        raise CannotOpen
    return PendingInstall(
        attempt, installation_of(installation), tuple(map(token_of, tokens)), wrapped
    )


async def _insert_dek(connection: Connection, wrapped: WrappedDek) -> None:
    await connection.execute(
        query("insert_dek"),
        wrapped.dek_id,
        wrapped.installation_id,
        wrapped.kek_version,
        wrapped.wrapped,
    )


async def _insert_installation(connection: Connection, installation: Installation) -> None:
    await connection.execute(
        query("insert_installation"),
        installation.id,
        installation.key.client_id,
        installation.key.app_id,
        installation.key.enterprise_id,
        installation.key.team_id,
        installation.tenant_id,
        installation.generation,
        installation.name,
        installation.bot_user_id,
        list(installation.bot_scopes),
        installation.installed_by,
    )


async def insert_tokens(
    connection: Connection, installation_id: InstallationId, tokens: Sequence[SealedToken]
) -> None:
    """Store sealed tokens of an installation that the transaction has named."""
    for token in tokens:
        await connection.execute(
            query("insert_token"),
            installation_id,
            token.kind.value,
            token.slot.value,
            token.user_id,
            token.generation,
            token.dek_id,
            token.sealed,
            token.ref,
            token.expires_at,
        )


async def _renew(connection: Connection, activation: Activation, held: Installation) -> Row:
    """Put a tenant's new tokens in the place of its old ones."""
    target = activation.target
    row = await connection.fetchrow(
        query("renew_installation"),
        target.id,
        held.generation,
        target.generation,
        target.name,
        target.bot_user_id,
        list(target.bot_scopes),
        target.installed_by,
    )
    if row is None:
        raise StaleGeneration
    for kind, user_id, generation in sorted(
        {(each.kind.value, each.user_id, each.generation) for each in activation.tokens}
    ):
        if user_id and await connection.fetchval(
            query("is_user_ahead"), target.id, user_id, generation
        ):
            raise StaleGeneration
        await connection.execute(query("delete_tokens_of"), target.id, kind, user_id)
    await insert_tokens(connection, target.id, activation.tokens)
    await connection.execute(query("delete_deks"), activation.pending_id)
    await connection.execute(
        query("delete_installation"), activation.pending_id, 1, InstallationState.PENDING.value
    )
    return row


async def _purge(connection: Connection, replaced: Installation) -> None:
    """Shred an installation that identity gave to another tenant, or whose key is lost."""
    gone = await connection.fetchval(
        query("delete_installation"),
        replaced.id,
        replaced.generation,
        InstallationState.ACTIVE.value,
    )
    if not gone:
        raise StaleGeneration
    await connection.execute(query("delete_deks"), replaced.id)


async def _activate(connection: Connection, target: Installation) -> Row:
    try:
        row = await connection.fetchrow(query("activate_installation"), target.id)
    except asyncpg.UniqueViolationError:
        # Another install of the same workspace was activated meanwhile.
        raise StaleGeneration from None
    if row is None:
        raise InstallInProgress
    return row
