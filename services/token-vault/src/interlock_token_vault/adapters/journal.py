"""One chain of audit records, and everything that appends to it.

A vault process writes its chain from one place, one commit at a time. Reads
pass two stations, each with a session of its own: one statement loads what
many callers want, one commits what was judged of it. While a batch is being
committed, the next one is loaded, and what comes meanwhile goes into the one
after that.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from interlock_chassis.errors import ServiceError
from interlock_token_vault.adapters.rows import (
    Connection,
    Pool,
    columns_of,
    loaded_of,
    query,
    shared,
)
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import ChainHead
from interlock_token_vault.domain.installation import InstallationId, InstallationKey
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    Judge,
    Loaded,
    ReadTarget,
    Verdict,
    Wish,
)

# 512 reads are one statement of some 100 kB and a commit of 10 ms.
_MAX_BATCH = 512
# Of 32 readers a process had 1,200 reads a second answered when nobody was waited for, 1,690 with
# 16 and 8 ms, and 1,800 with these.
_MOST_EXPECTED = 24
_LONGEST_WAIT = timedelta(milliseconds=10)
# 64 saves of two secrets each are some 50 kB.
_MAX_SHARES = 64
# For both statements of a read. A reader's deadline is 5 s and the KMS may take 2 s of it.
_READ_BUDGET = timedelta(seconds=2)
_WRITE_BUDGET = timedelta(seconds=5)
# A session that was idle for longer may be gone without a word; it is made anew.
_MOST_IDLE = timedelta(minutes=5)
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
_I = TypeVar("_I")
Work = Callable[[Connection], Awaitable[tuple[_T, Sequence[AuditEvent]]]]
SharedWork = Callable[
    [Connection, Sequence[_I]],
    Awaitable[tuple[datetime, Sequence[Sequence[AuditEvent] | ServiceError]]],
]
"""Does for many what they ask; returns the time, and for each its records or its refusal."""


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
        shared([target.key.client_id for target in targets]),
        shared([target.key.app_id for target in targets]),
        shared([target.key.enterprise_id for target in targets]),
        # As long as there are targets.
        [target.key.team_id for target in targets],
        shared([target.user_id for target in targets]),
        shared(is_new),
    )
    at: datetime = rows[0]["read_at"]
    found = {
        target: loaded_of(row, target.key)
        for row in rows
        if row["ordinal"] is not None
        for target in [targets[row["ordinal"] - 1]]
    }
    return at, found


@dataclass(slots=True)
class _Entry:
    """What shares a load and a commit: one caller's reads, or records alone."""

    wishes: Sequence[Wish | AuditEvent]
    settled: "asyncio.Future[list[Verdict | Exception]]"


@dataclass(slots=True)
class _Judged:
    """Entries with what was judged of them, wish by wish, not yet on record.

    Attributes:
        left_s: What the load has left of the budget, in seconds.
    """

    entries: Sequence[_Entry]
    verdicts: Sequence[Verdict | Exception]
    at: datetime
    left_s: float


@dataclass(slots=True)
class _Job(Generic[_T]):
    """What needs a transaction of its own."""

    work: Work[_T]
    settled: "asyncio.Future[_T]"


@dataclass(slots=True)
class _Share(Generic[_I]):
    """What shares a transaction with others of its kind, but with none of the same key."""

    work: SharedWork[_I]
    key: UUID
    item: _I
    settled: "asyncio.Future[None]"


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
        return Loaded(
            loaded.installation, loaded.sealed, loaded.wrapped, loaded.at, highest, loaded.stopped
        )


class _Bell:
    """Wakes the one who waits for work."""

    def __init__(self) -> None:
        self._rung: asyncio.Future[None] | None = None

    def ring(self) -> None:
        if self._rung is not None:
            _answer(self._rung, None)

    async def wait(self) -> None:
        self._rung = _future()
        await self._rung
        self._rung = None


class _Session:
    """A connection that is kept: the pool's own would cost a round trip to give back."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Connection | None = None
        self._used = 0.0

    async def connect(self) -> Connection:
        now = asyncio.get_running_loop().time()
        if now - self._used > _MOST_IDLE.total_seconds() or not _is_open(self._connection):
            self.hang_up()
        if self._connection is None:
            self._connection = await self._pool.acquire()
        self._used = now
        return self._connection

    def hang_up(self) -> None:
        """End the session; the pool makes a new one in its place."""
        kept, self._connection = self._connection, None
        # The pool has taken it back already when Postgres closed it.
        with suppress(asyncpg.InterfaceError):
            if kept is not None:
                kept.terminate()

    async def give_back(self) -> None:
        kept, self._connection = self._connection, None
        with suppress(*_FAILURES):
            if kept is not None:
                await self._pool.release(kept)


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
        self._loading = _Session(pool)
        self._writing = _Session(pool)
        self._entries: deque[_Entry] = deque()
        self._waiting_since = 0.0
        self._expected = 1
        self._judged: _Judged | None = None
        self._jobs: deque[_Job[Any]] = deque()
        self._shares: deque[_Share[Any]] = deque()
        self._to_load = _Bell()
        self._to_write = _Bell()
        self._is_closed = False
        self._is_loaded = False

    async def load_recorded(self, target: ReadTarget, judge: Judge) -> Verdict:
        """Load, judge, and commit the record; see VaultStore."""
        (verdict,) = await self.load_recorded_many([(target, judge)])
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    async def load_recorded_many(self, wishes: Sequence[Wish]) -> list[Verdict | Exception]:
        """Load, judge, and commit the records; see VaultStore."""
        return await self._enter(wishes)

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit records alone; see VaultStore."""
        await self._enter(events)

    async def _enter(self, wishes: Sequence[Wish | AuditEvent]) -> list[Verdict | Exception]:
        self._require_open()
        entry = _Entry(wishes, _future())
        if not self._entries:
            self._waiting_since = asyncio.get_running_loop().time()
        self._entries.append(entry)
        if len(self._entries) == 1 or len(self._entries) >= self._expected:
            self._to_load.ring()
        return await entry.settled

    async def commit(self, work: Work[_T]) -> _T:
        """Run work and commit it with the records it returns.

        The work's own ServiceErrors roll back and pass.

        Raises:
            DatabaseUnavailable: It is not known to be committed.
        """
        self._require_open()
        job: _Job[_T] = _Job(work, _future())
        self._jobs.append(job)
        self._to_write.ring()
        return await job.settled

    async def commit_shared(self, work: SharedWork[_I], key: UUID, item: _I) -> None:
        """Have work done for an item, in one transaction with others who want the same work.

        The work may raise no generation.

        Args:
            work: Must not fail for one item alone; it refuses that one.
            key: What the item is about; items of one transaction have different
                ones, and come in their order, so that two processes lock alike.
            item: What the work gets, beside the others' items.

        Raises:
            ServiceError: The work refused the item.
            DatabaseUnavailable: It is not known to be committed.
        """
        self._require_open()
        share: _Share[_I] = _Share(work, key, item, _future())
        self._shares.append(share)
        self._to_write.ring()
        await share.settled

    def heads(self) -> list[ChainHead]:
        """Give the known end of every chain of this process that has records."""
        return [*self._left, *self._head()]

    @property
    def is_failing(self) -> bool:
        """Whether the last transaction could not be committed."""
        return self._is_failing

    async def run(self) -> None:
        """Load and write, until `close`."""
        try:
            async with asyncio.TaskGroup() as stations:
                stations.create_task(self._load_all())
                stations.create_task(self._write_all())
        finally:
            await self._loading.give_back()
            await self._writing.give_back()

    def close(self) -> None:
        """Take nothing more; `run` returns once everything taken is settled."""
        self._is_closed = True
        self._to_load.ring()

    def _require_open(self) -> None:
        if self._is_closed:
            raise DatabaseUnavailable

    async def _load_all(self) -> None:
        """Keep one batch ahead of the writer, and no more: what waits longer shares more."""
        while True:
            while self._judged is not None or not (self._entries or self._is_closed):
                await self._to_load.wait()
            if not self._entries:
                break
            await self._gather()
            await self._load_entries()
        self._is_loaded = True
        self._to_write.ring()

    async def _gather(self) -> None:
        """Wait for as many as came last time, though not for long.

        A load and a commit cost Postgres and this process the same again for each batch,
        and a busy process answers faster when it asks for many at once. One reader alone
        expects nobody.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._waiting_since + _LONGEST_WAIT.total_seconds()):
                while len(self._entries) < self._expected and not self._is_closed:
                    await self._to_load.wait()
        self._expected = min(len(self._entries), _MOST_EXPECTED)

    async def _write_all(self) -> None:
        while self._has_to_write() or not self._is_loaded:
            if judged := self._take_judged():
                await self._commit_judged(judged)
            if self._shares:
                await self._commit_shares()
            # One at a time, so that readers do not wait for a row of them.
            if self._jobs:
                await self._commit_job(self._jobs.popleft())
            if not self._has_to_write() and not self._is_loaded:
                await self._to_write.wait()

    def _has_to_write(self) -> bool:
        return bool(self._judged or self._shares or self._jobs)

    def _take_judged(self) -> _Judged | None:
        judged, self._judged = self._judged, None
        self._to_load.ring()
        return judged

    def _take_entries(self) -> list[_Entry]:
        """Take as many as fit; whoever went away is released nothing and recorded nothing."""
        taken: list[_Entry] = []
        size = 0
        while self._entries and size < _MAX_BATCH:
            entry = self._entries.popleft()
            if not entry.settled.done():
                taken.append(entry)
                size += len(entry.wishes)
        return taken

    async def _load_entries(self) -> None:
        """Load and judge what is asked for, and leave it to the writer."""
        entries: list[_Entry] = []
        loop = asyncio.get_running_loop()
        until = loop.time() + _READ_BUDGET.total_seconds()
        try:
            with failing_closed():
                async with asyncio.timeout_at(until):
                    connection = await self._loading.connect()
                    # Not before there is a session: who came meanwhile comes along.
                    entries = self._take_entries()
                    wishes = [wish for entry in entries for wish in entry.wishes]
                    at, found = await self._load(connection, wishes)
            verdicts = [_judged(wish, found) for wish in wishes]
        except Exception as error:  # noqa: BLE001 - Whatever it is, the callers must hear of it.
            self._loading.hang_up()
            self._is_failing = True
            for entry in entries or self._take_entries():
                _refuse(entry.settled, _own_copy(error))
            return
        except BaseException:
            self._loading.hang_up()
            raise
        self._judged = _Judged(entries, verdicts, at, until - loop.time())
        self._to_write.ring()

    async def _commit_judged(self, judged: _Judged) -> None:
        """Put on record what was judged, and tell the callers; one statement, so one commit."""
        events = [each.event for each in judged.verdicts if isinstance(each, Verdict)]
        try:
            with self._watched(), failing_closed():
                async with asyncio.timeout(judged.left_s):
                    connection = await self._writing.connect()
                    await self._append_alone(connection, events, judged.at)
        except Exception as error:  # noqa: BLE001 - As above.
            for entry in judged.entries:
                _refuse(entry.settled, _own_copy(error))
            return
        rest = iter(judged.verdicts)
        for entry in judged.entries:
            _answer(entry.settled, list(islice(rest, len(entry.wishes))))

    async def _append_alone(
        self, connection: Connection, events: Sequence[AuditEvent], at: datetime
    ) -> None:
        records = self._extend(events, at)
        if not records:
            return
        try:
            await connection.execute(query("append_audit"), *columns_of(records))
        except BaseException as error:
            self._writing.hang_up()
            if not _is_refused(error):
                self._begin_chain()
            raise
        self._chain.advance(records)

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
        # It may have raised a generation, so the log is asked again; what is being loaded
        # goes by what was known before, and into that.
        self._heads = _Heads()
        _answer(job.settled, result)

    def _take_shares(self) -> list[_Share[Any]]:
        """Take what goes with the first one; the rest keeps its order."""
        taken: dict[UUID, _Share[Any]] = {}
        left: deque[_Share[Any]] = deque()
        for share in self._shares:
            first = next(iter(taken.values()), share)
            if share.settled.done():
                continue
            if len(taken) < _MAX_SHARES and share.work == first.work and share.key not in taken:
                taken[share.key] = share
            else:
                left.append(share)
        self._shares = left
        return [taken[key] for key in sorted(taken)]

    async def _commit_shares(self) -> None:
        shares: list[_Share[Any]] = []
        try:
            async with self._transaction(_WRITE_BUDGET) as (connection, append):
                shares = self._take_shares()
                if not shares:
                    return
                at, outcomes = await shares[0].work(connection, [each.item for each in shares])
                written = [each for each in outcomes if not isinstance(each, ServiceError)]
                await append([event for events in written for event in events], at)
        except Exception as error:  # noqa: BLE001 - As above.
            for share in shares or self._take_shares():
                _refuse(share.settled, _own_copy(error))
            return
        for share, outcome in zip(shares, outcomes, strict=True):
            if isinstance(outcome, ServiceError):
                _refuse(share.settled, outcome)
            else:
                _answer(share.settled, None)

    async def _load(
        self, connection: Connection, wishes: Sequence[Wish | AuditEvent]
    ) -> tuple[datetime, dict[ReadTarget, Loaded]]:
        targets = list(dict.fromkeys(wish[0] for wish in wishes if isinstance(wish, tuple)))
        if not targets:
            return await connection.fetchval(query("read_clock")), {}
        heads = self._heads
        is_new = [heads.is_new(target.key) for target in targets]
        at, found = await load(connection, targets, is_new)
        return at, {target: heads.merge(target.key, loaded) for target, loaded in found.items()}

    @asynccontextmanager
    async def _transaction(
        self, budget: timedelta
    ) -> AsyncIterator[
        tuple[Connection, Callable[[Sequence[AuditEvent], datetime], Awaitable[None]]]
    ]:
        """Open a transaction and a way to append to the chain in it."""
        records: list[ChainedEvent] = []
        with self._watched(), failing_closed():
            async with asyncio.timeout(budget.total_seconds()):
                connection = await self._writing.connect()

                async def append(events: Sequence[AuditEvent], at: datetime) -> None:
                    records.extend(self._extend(events, at))
                    if records:
                        await connection.execute(query("append_audit"), *columns_of(records))

                transaction = connection.transaction()
                try:
                    await transaction.start()
                    try:
                        yield connection, append
                    except ServiceError:
                        await transaction.rollback()
                        raise
                except ServiceError:
                    raise
                except BaseException:
                    # Postgres rolls back when it misses us; asking it to may hang.
                    self._writing.hang_up()
                    raise
                try:
                    await transaction.commit()
                except BaseException:
                    self._writing.hang_up()
                    self._begin_chain()
                    raise
                self._chain.advance(records)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Remember how the last commit ended."""
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


def _is_open(connection: Connection | None) -> bool:
    try:
        return connection is not None and not connection.is_closed()
    except asyncpg.InterfaceError:
        # A pool takes back what Postgres has closed, and says so only when asked.
        return False


def _is_refused(error: BaseException) -> bool:
    """Tell whether Postgres itself says that a statement did nothing, and goes on.

    One that ends the session with its error may have committed before.
    """
    return isinstance(error, asyncpg.PostgresError) and error.severity_en == "ERROR"


def _judged(wish: Wish | AuditEvent, found: Mapping[ReadTarget, Loaded]) -> Verdict | Exception:
    if isinstance(wish, AuditEvent):
        return Verdict(wish)
    target, judge = wish
    try:
        return judge(found.get(target))
    except Exception as error:  # noqa: BLE001 - One judge's bug is not its neighbours'.
        return error


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
