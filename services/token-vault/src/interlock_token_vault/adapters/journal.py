"""One chain of audit records, and every transaction that appends to it.

A vault process writes its chain from one place, one transaction at a time.
What waits meanwhile goes into the next transaction together: reads of many
callers share one load, one insert and one commit.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from interlock_chassis.errors import ServiceError
from interlock_token_vault.adapters.rows import (
    Connection,
    Pool,
    columns_of,
    dek_of,
    installation_of,
    loaded_token_of,
    query,
)
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import ChainHead
from interlock_token_vault.domain.installation import InstallationId, InstallationKey
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    Judge,
    Loaded,
    ReadTarget,
    Stop,
    Verdict,
)

# 512 reads are one statement of some 100 kB and a commit of 10 ms.
_MAX_BATCH = 512
# A reader's deadline is 5 s and the KMS may take 2 s of it.
_READ_BUDGET = timedelta(seconds=2)
_WRITE_BUDGET = timedelta(seconds=5)
# Bounds the memory of what the audit log says of generations: about 2 MB.
_MAX_HEADS = 10_000
_MAX_LEFT = 1000
# InternalClientError: asyncpg's word for a session that Postgres ended while idle.
_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

_T = TypeVar("_T")
Work = Callable[[Connection], Awaitable[tuple[_T, Sequence[AuditEvent]]]]


@contextmanager
def failing_closed() -> Iterator[None]:
    """Turn every failure of the database into DatabaseUnavailable.

    Refused rights and broken constraints too: a record that cannot be written,
    for whatever reason, releases nothing.
    """
    try:
        yield
    except _FAILURES as error:
        raise DatabaseUnavailable from error


async def load(
    connection: Connection, targets: Sequence[ReadTarget], is_new: Sequence[bool]
) -> tuple[datetime, dict[ReadTarget, Loaded]]:
    """Load what answers for the targets, naming it for the rest of the transaction.

    Args:
        connection: In a transaction, or the naming ends with the statement.
        targets: Distinct.
        is_new: For each target, whether to ask what the audit log knows.

    Returns:
        The database's time, and what was found.
    """
    rows = await connection.fetch(
        query("load_tokens"),
        [target.key.client_id for target in targets],
        [target.key.app_id for target in targets],
        [target.key.enterprise_id for target in targets],
        [target.key.team_id for target in targets],
        [target.user_id for target in targets],
        list(is_new),
    )
    at: datetime = rows[0]["read_at"]
    found = {
        targets[row["ordinal"] - 1]: Loaded(
            installation=installation_of(row),
            sealed=loaded_token_of(row),
            wrapped=dek_of(row),
            at=at,
            audited_generation=row["audited_generation"] or 0,
            stopped=Stop(row["stopped"]) if row["stopped"] else None,
        )
        for row in rows
        if row["ordinal"] is not None
    }
    return at, found


@dataclass(slots=True)
class _Entry:
    """What shares a transaction: the read of a target, or records alone (no target)."""

    target: ReadTarget | None
    judge: Judge
    settled: "asyncio.Future[Verdict]"


@dataclass(slots=True)
class _Job(Generic[_T]):
    """What needs a transaction of its own."""

    work: Work[_T]
    settled: "asyncio.Future[_T]"


@dataclass(slots=True)
class _Heads:
    """The newest generation of each installation, as the audit log has it."""

    known: OrderedDict[InstallationKey, tuple[InstallationId, int]] = field(
        default_factory=OrderedDict
    )

    def is_new(self, key: InstallationKey) -> bool:
        return key not in self.known

    def merge(self, key: InstallationKey, loaded: Loaded) -> Loaded:
        """Return what was loaded with what is known, and know more afterwards."""
        installation = loaded.installation
        known_id, known = self.known.get(key, (installation.id, 0))
        if known_id != installation.id:
            # Another installation took the name: the next read asks the log.
            del self.known[key]
            return loaded
        highest = max(known, loaded.audited_generation)
        self.known[key] = (installation.id, max(highest, installation.generation))
        self.known.move_to_end(key)
        if len(self.known) > _MAX_HEADS:
            self.known.popitem(last=False)
        return replace(loaded, audited_generation=highest)


class Journal:
    """Commit transactions with their audit records.

    Args:
        pool: Of the vault's role.
        new_id: Names chains; called at the start, and whenever it is unknown
            whether a transaction was committed: then the chain's end is too.
    """

    def __init__(self, pool: Pool, *, new_id: Callable[[], UUID]) -> None:
        self._pool = pool
        self._new_id = new_id
        self._chain = AuditChain(new_id())
        self._before = ""
        self._left: list[ChainHead] = []
        self._is_failing = False
        self._heads = _Heads()
        self._queue: asyncio.Queue[_Entry | _Job[Any] | None] = asyncio.Queue()
        self._is_closed = False

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """Load, judge, and commit the record; see VaultStore."""
        entry = _Entry(target, judge, _future())
        self._put(entry)
        return await entry.settled

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see VaultStore."""
        entries = [_Entry(None, partial(_as_verdict, event), _future()) for event in events]
        for entry in entries:
            self._put(entry)
        await asyncio.gather(*(entry.settled for entry in entries))

    async def commit(self, work: Work[_T]) -> _T:
        """Run work and commit it with the records it returns.

        The work's own ServiceErrors roll back and pass.

        Raises:
            DatabaseUnavailable: It is not known to be committed.
        """
        job: _Job[_T] = _Job(work, _future())
        self._put(job)
        return await job.settled

    def heads(self) -> list[ChainHead]:
        """Give the known end of every chain of this process that has records."""
        return [*self._left, *self._head()]

    @property
    def is_failing(self) -> bool:
        """Whether the last transaction could not be committed."""
        return self._is_failing

    async def run(self) -> None:
        """Write, until `close`."""
        while (first := await self._queue.get()) is not None:
            batch = [first]
            while len(batch) < _MAX_BATCH and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    self._queue.put_nowait(None)
                    break
                batch.append(following)
            entries = [item for item in batch if isinstance(item, _Entry)]
            if entries:
                await self._commit_entries(entries)
            for item in batch:
                if isinstance(item, _Job):
                    await self._commit_job(item)

    def close(self) -> None:
        """Take nothing more; `run` returns once everything taken is settled."""
        self._is_closed = True
        self._queue.put_nowait(None)

    def _put(self, item: "_Entry | _Job[Any]") -> None:
        if self._is_closed:
            raise DatabaseUnavailable
        self._queue.put_nowait(item)

    async def _commit_entries(self, entries: Sequence[_Entry]) -> None:
        # Whoever went away while waiting is released nothing and recorded nothing.
        entries = [entry for entry in entries if not entry.settled.done()]
        verdicts: dict[int, Verdict] = {}
        try:
            async with self._transaction(_READ_BUDGET) as (connection, append):
                at, found = await self._load(connection, entries)
                for place, entry in enumerate(entries):
                    loaded = found.get(entry.target) if entry.target else None
                    try:
                        verdicts[place] = entry.judge(loaded)
                    except Exception as error:  # noqa: BLE001 - One judge's bug is not its neighbours'.
                        _refuse(entry.settled, error)
                await append([verdict.event for verdict in verdicts.values()], at)
        except Exception as error:  # noqa: BLE001 - Whatever it is, the callers must hear of it.
            for entry in entries:
                _refuse(entry.settled, _own_copy(error))
            return
        for place, verdict in verdicts.items():
            _answer(entries[place].settled, verdict)

    async def _commit_job(self, job: _Job[Any]) -> None:
        if job.settled.done():
            return
        try:
            async with self._transaction(_WRITE_BUDGET) as (connection, append):
                result, events = await job.work(connection)
                if events:
                    await append(events, await connection.fetchval(query("read_clock")))
        except Exception as error:  # noqa: BLE001 - As above.
            _refuse(job.settled, error)
            return
        # It may have raised a generation, so the log is asked again.
        self._heads.known.clear()
        _answer(job.settled, result)

    async def _load(
        self, connection: Connection, entries: Sequence[_Entry]
    ) -> tuple[datetime, dict[ReadTarget, Loaded]]:
        targets = list(dict.fromkeys(entry.target for entry in entries if entry.target))
        if not targets:
            return await connection.fetchval(query("read_clock")), {}
        is_new = [self._heads.is_new(target.key) for target in targets]
        at, found = await load(connection, targets, is_new)
        return at, {
            target: self._heads.merge(target.key, loaded) for target, loaded in found.items()
        }

    @asynccontextmanager
    async def _transaction(
        self, budget: timedelta
    ) -> AsyncIterator[
        tuple[Connection, Callable[[Sequence[AuditEvent], datetime], Awaitable[None]]]
    ]:
        """Open a transaction and a way to append to the chain in it."""
        records: list[ChainedEvent] = []
        with self._watched(), failing_closed():
            async with asyncio.timeout(budget.total_seconds()), self._pool.acquire() as connection:

                async def append(events: Sequence[AuditEvent], at: datetime) -> None:
                    records.extend(self._extend(events, at))
                    if records:
                        await connection.execute(query("append_audit"), *columns_of(records))

                transaction = connection.transaction()
                await transaction.start()
                try:
                    yield connection, append
                except ServiceError:
                    await transaction.rollback()
                    raise
                except BaseException:
                    # Postgres rolls back when it misses us; asking it to may hang.
                    connection.terminate()
                    raise
                try:
                    await transaction.commit()
                except BaseException:
                    connection.terminate()
                    self._begin_chain()
                    raise
                self._chain.advance(records)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Remember how the last transaction ended."""
        try:
            yield
        except DatabaseUnavailable:
            self._is_failing = True
            raise
        self._is_failing = False

    def _extend(self, events: Sequence[AuditEvent], at: datetime) -> list[ChainedEvent]:
        if not events:
            return []
        if self._chain.seq == 0:
            origin = Origin(actor="token-vault", rpc="journal", subject=self._before)
            events = [AuditEvent("chain.started", origin), *events]
        return self._chain.extend(events, at)

    def _begin_chain(self) -> None:
        """Leave a chain whose end is unknown, and say in the next one where that was."""
        self._before = f"{self._chain.chain_id}/{self._chain.seq}"
        # Bounds what a database that stumbles all day makes us remember.
        self._left = [*self._left, *self._head()][-_MAX_LEFT:]
        self._chain = AuditChain(self._new_id())

    def _head(self) -> list[ChainHead]:
        chain = self._chain
        return [ChainHead(chain.chain_id, chain.seq, chain.head, chain.at)] if chain.seq else []


@asynccontextmanager
async def open_journal(pool: Pool, *, new_id: Callable[[], UUID]) -> AsyncIterator[Journal]:
    """Open a journal; on leaving, everything it took is settled first."""
    journal = Journal(pool, new_id=new_id)
    async with writing(journal):
        yield journal


@asynccontextmanager
async def writing(journal: Journal) -> AsyncIterator[None]:
    """Have a journal write; on leaving, everything it took is settled first."""
    task = asyncio.create_task(journal.run())
    try:
        yield
    finally:
        journal.close()
        await task


def _as_verdict(event: AuditEvent, _: Loaded | None) -> Verdict:
    return Verdict(event)


def _own_copy(error: Exception) -> Exception:
    """Give each of many callers an error of its own to raise: raising changes it."""
    if not isinstance(error, DatabaseUnavailable):
        return error
    own = DatabaseUnavailable()
    own.__cause__ = error.__cause__
    return own


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _answer(settled: "asyncio.Future[_T]", result: _T) -> None:
    if not settled.done():
        settled.set_result(result)


def _refuse(settled: "asyncio.Future[Any]", error: Exception) -> None:
    if not settled.done():
        settled.set_exception(error)
