"""Take the audit log out of the database: checkpoints each minute, exports on demand."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from interlock_chassis.errors import InvalidArgument, Kind, ServiceError
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import (
    ChainHead,
    Checkpoint,
    Span,
    export_head,
    export_line,
    export_tail,
)
from interlock_token_vault.domain.installation import InstallationId
from interlock_token_vault.vault import Stop

# A record is written within 5 s of the time it bears, or not at all; what is
# younger may still be on its way, and would look cut off.
SETTLED_AFTER = timedelta(seconds=10)
# Months may be exported and dropped; none that is younger.
_MEMORY = timedelta(days=35)


_log = structlog.get_logger()


class CheckpointNotWritten(ServiceError):
    """A checkpoint could not be kept outside the database."""

    kind = Kind.UNAVAILABLE
    reason = "CHECKPOINT_NOT_WRITTEN"


class CheckpointsUnreadable(ServiceError):
    """The checkpoints outside the database cannot be read."""

    kind = Kind.UNAVAILABLE
    reason = "CHECKPOINTS_UNREADABLE"


class TenantNotFound(ServiceError):
    """No installation of this tenant is known."""

    kind = Kind.NOT_FOUND
    reason = "TENANT_NOT_FOUND"


class CheckpointSigner(Protocol):
    """The audit checkpoint key."""

    def sign(self, head: ChainHead) -> Checkpoint:
        """Sign a chain's head."""
        ...


class CheckpointStore(Protocol):
    """A place outside the database that only grows."""

    async def append(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, durably; one that is kept already may be kept again.

        Raises:
            CheckpointNotWritten: It is not known to be kept.
        """
        ...

    async def load_newest(self, is_genuine: Callable[[Checkpoint], bool]) -> Sequence[ChainHead]:
        """Load the newest genuine checkpoint of each chain.

        Args:
            is_genuine: Judges a signature; what is forged or damaged is passed over.

        Raises:
            CheckpointsUnreadable: What is kept is not known.
        """
        ...


class Checkpointing:
    """Sign how far the chains of this process have come.

    Signs only what this process wrote, from memory: what the database holds
    by now is what the signature will be held against.

    Args:
        heads: Gives the chains of this process, each at its last known end.
    """

    def __init__(
        self,
        heads: Callable[[], Sequence[ChainHead]],
        signer: CheckpointSigner,
        store: CheckpointStore,
    ) -> None:
        self._heads = heads
        self._signer = signer
        self._store = store
        self._written: dict[UUID, int] = {}

    async def write(self) -> None:
        """Keep a checkpoint of every chain that has grown since the last one.

        Raises:
            CheckpointNotWritten: The next call tries again.
        """
        for head in self._heads():
            if head.seq > self._written.get(head.chain_id, 0):
                await self._store.append(self._signer.sign(head))
                self._written[head.chain_id] = head.seq


class ContinuitySource(Protocol):
    """The database, as the question asks it whether it is the one from before."""

    async def has_record(self, head: ChainHead) -> bool:
        """Tell whether a chain's record is there, with this hash.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...

    async def find_confirmed_loss(self) -> datetime | None:
        """Find until when an operator knows of lost records; raises as above."""
        ...

    async def stop_releases(
        self, installation_id: InstallationId | None, stop: Stop, note: str, event: AuditEvent
    ) -> None:
        """Stop releases; raises as above."""
        ...


class Continuity:
    """Hold the whole vault when its database is older than what was signed.

    Args:
        source: The database.
        load_heads: Reads each chain's newest genuine checkpoint.
    """

    def __init__(
        self,
        source: ContinuitySource,
        load_heads: Callable[[], Awaitable[Sequence[ChainHead]]],
    ) -> None:
        self._source = source
        self._load_heads = load_heads
        self._is_known = False

    async def check(self) -> None:
        """Look once for the newest signed records; a hold is for an operator to lift.

        Raises:
            CheckpointsUnreadable: Whether the database is older is not known.
            DatabaseUnavailable: The next call tries again.
        """
        if self._is_known:
            return
        confirmed = await self._source.find_confirmed_loss()
        for head in _newest(await self._load_heads()):
            if confirmed is not None and head.at <= confirmed:
                continue
            if not await self._source.has_record(head):
                place = f"{head.chain_id}/{head.seq}"
                _log.error("signed_record_missing", record=place)
                event = AuditEvent("vault.held", Origin("token-vault", "start", subject=place))
                note = f"signed record {place} is missing"
                await self._source.stop_releases(None, Stop.HELD, note, event)
                break
        self._is_known = True


def _newest(heads: Sequence[ChainHead]) -> list[ChainHead]:
    """Choose the heads of the chains of the last days, newest first."""
    in_order = sorted(heads, key=lambda head: head.at, reverse=True)
    return [head for head in in_order if in_order[0].at - head.at <= _MEMORY]


class AuditSource(Protocol):
    """The audit log in the database, as an export needs it."""

    async def read_clock(self) -> datetime:
        """Read the database's clock.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...

    async def has_tenant(self, tenant_id: str) -> bool:
        """Tell whether any installation is or was a tenant's; raises as above."""
        ...

    def export_records(self, span: Span) -> AsyncIterator[Sequence[ChainedEvent]]:
        """Read the log in pages, oldest first; raises as above."""
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone; raises as above."""
        ...


class AuditExport:
    """Export the log as NDJSON, a page at a time.

    Args:
        settled_after: How long ago a record must bear its time to be exported.
    """

    def __init__(self, source: AuditSource, *, settled_after: timedelta = SETTLED_AFTER) -> None:
        self._source = source
        self._settled_after = settled_after

    async def lines(
        self, since: datetime | None, until: datetime | None, tenant_id: str, origin: Origin
    ) -> AsyncIterator[bytes]:
        """Give whole lines in chunks; holds one page of records in memory.

        Leaves a record of its own, before the first line.

        Args:
            since: From, inclusive; None for the beginning.
            until: To, exclusive; at most, and for None, ten seconds ago.
            tenant_id: Only records of this tenant's installations; empty for all.
            origin: Who exports.

        Raises:
            InvalidArgument: The end is before the beginning.
            TenantNotFound: There is no such tenant.
            DatabaseUnavailable: The database does not answer.
        """
        settled = await self._source.read_clock() - self._settled_after
        until = min(until, settled) if until else settled
        if since is not None and since > until:
            raise InvalidArgument("the end is before the beginning")
        if tenant_id and not await self._source.has_tenant(tenant_id):
            raise TenantNotFound
        await self._source.record([AuditEvent("audit.exported", origin)])
        span = Span(since, until, tenant_id)
        yield export_head(span)
        count = 0
        async for page in self._source.export_records(span):
            count += len(page)
            yield b"".join(map(export_line, page))
        yield export_tail(count)
