"""The worker's side of the gateway database: lanes, runs, waiting questions, dead letters."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import asyncpg

from interlock_chassis.clock import Clock, SystemClock, require_agreement
from interlock_chassis.database import database_errors
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.lanes import (
    Claim,
    Dead,
    Delivery,
    Done,
    LaneLost,
    Outcome,
    Policy,
    Retry,
    Settlement,
    Untouched,
)
from interlock_gateway.worker.ports import RunRecord
from interlock_gateway.worker.slack import Place
from interlock_gateway.worker.waiting import FIRST_CHECK, WAITS_FOR, WaitingQuestion

CHANNEL = "gateway_inbox"
ENDINGS_CHANNEL = "gateway_endings"

# Our statements take milliseconds; one that is silent for longer has lost its server.
STATEMENT_BUDGET = timedelta(seconds=5)
# How long a write of a running conversation waits for Postgres to come back. After
# some 24 s of it the lane's lease is as good as lost, and its handler is cancelled.
OUTAGE_PATIENCE = timedelta(seconds=20)
_PAUSE = timedelta(milliseconds=500)

# A settled event's keys are kept, so that Slack's latest repetition is still known.
KEPT = timedelta(days=7)
DEAD_LETTERS_SHOWN = 200
_SWEPT_AT_ONCE = 1000
_CRON_LOCK = 0x67617465_00000001

T = TypeVar("T")


class WorkerDatabaseUnavailable(ServiceError):
    """The gateway's database does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"


class Statements:
    """Run single statements, each within a budget.

    Every statement runs in a task of its own: the driver's clean-up of a
    cancelled statement waits for a server that may be silent, and the caller
    must not.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._running: set[asyncio.Task[list[asyncpg.Record]]] = set()

    async def fetch(
        self, statement: str, *arguments: object, budget: timedelta = STATEMENT_BUDGET
    ) -> list[asyncpg.Record]:
        """Return a statement's rows.

        Raises:
            WorkerDatabaseUnavailable: There is no answer within the budget.
        """
        work = asyncio.create_task(self._run(statement, *arguments))
        self._running.add(work)
        work.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({work}, timeout=budget.total_seconds())
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not done:
            work.cancel()
            raise WorkerDatabaseUnavailable
        return work.result()

    async def value(self, statement: str, *arguments: object) -> Any:
        """Return the first column of the only row."""
        return (await self.fetch(statement, *arguments))[0][0]

    async def insist(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Return a statement's rows, waiting some time for Postgres to come back.

        For statements that may be repeated when their answer was lost.

        Raises:
            WorkerDatabaseUnavailable: It did not come back within 20 s.
        """
        left = OUTAGE_PATIENCE
        while True:
            try:
                return await self.fetch(statement, *arguments)
            except WorkerDatabaseUnavailable:
                left -= _PAUSE
                if left <= timedelta():
                    raise
            await asyncio.sleep(_PAUSE.total_seconds())

    async def _run(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        with database_errors(WorkerDatabaseUnavailable):
            async with self._pool.acquire() as connection:
                return await connection.fetch(statement, *arguments)

    def _forget(self, work: "asyncio.Task[list[asyncpg.Record]]") -> None:
        self._running.discard(work)
        if not work.cancelled():
            # Whoever waited has either read this or gone on already.
            work.exception()


class PostgresInbox:
    """The `Inbox` port. Its rules are functions of the schema `gateway`."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", policy: Policy) -> None:
        self._pool = pool
        self._statements = Statements(pool)
        self._policy = policy

    async def claim(self, owner: str, slots: int, control_slots: int) -> Sequence[Claim]:
        """Take due lanes; see the port."""
        rows = await self._statements.fetch(
            "SELECT lane, fence, team, control FROM gateway.lane_claim($1, $2, $3, $4, $5)",
            owner,
            slots,
            control_slots,
            self._policy.team_cap,
            self._policy.lease,
        )
        return [Claim(row["lane"], row["fence"], row["team"], row["control"]) for row in rows]

    async def step(
        self, claim: Claim, settlement: Settlement | None, *, keep: bool
    ) -> Delivery | None:
        """Settle and hand out; see the port."""
        outcome, reason, delay = _spell(settlement.outcome if settlement else None)
        rows = await self._statements.fetch(
            "SELECT * FROM gateway.lane_step($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            claim.lane,
            claim.fence,
            settlement.event_id if settlement else 0,
            outcome,
            reason,
            delay,
            self._policy.max_attempts,
            self._policy.lease,
            keep,
        )
        row = rows[0]
        match row["status"]:
            case "lost":
                raise LaneLost
            case "event":
                return self._delivery(claim, row)
            case _:
                return None

    async def beat(self, claims: Sequence[Claim]) -> frozenset[Claim]:
        """Renew leases; see the port."""
        rows = await self._statements.fetch(
            "SELECT lane, fence FROM gateway.lane_beat($1, $2, $3)",
            [claim.lane for claim in claims],
            [claim.fence for claim in claims],
            self._policy.lease,
            budget=self._policy.lease / 10,
        )
        held = {(row["lane"], row["fence"]) for row in rows}
        return frozenset(claim for claim in claims if (claim.lane, claim.fence) in held)

    async def news(self) -> AsyncIterator[None]:
        """Listen on a connection of its own, made anew when it breaks; see the port."""
        while True:
            try:
                async with self._listening() as (connection, changed):
                    # Something may have come in while nobody listened.
                    yield None
                    while not connection.is_closed():
                        await changed.wait()
                        changed.clear()
                        yield None
            except WorkerDatabaseUnavailable:
                pass
            await asyncio.sleep(_PAUSE.total_seconds())

    @asynccontextmanager
    async def _listening(
        self,
    ) -> "AsyncIterator[tuple[asyncpg.pool.PoolConnectionProxy[asyncpg.Record], asyncio.Event]]":
        changed = asyncio.Event()

        def wake(*_: object) -> None:
            changed.set()

        with database_errors(WorkerDatabaseUnavailable):
            async with self._pool.acquire() as connection:
                connection.add_termination_listener(wake)
                await connection.add_listener(CHANNEL, wake)
                try:
                    yield connection, changed
                finally:
                    if not connection.is_closed():
                        connection.remove_termination_listener(wake)
                        await connection.remove_listener(CHANNEL, wake)

    def _delivery(self, claim: Claim, row: asyncpg.Record) -> Delivery:
        attempt = row["attempts"]
        resume_grant = row["resume_grant"]
        return Delivery(
            event_id=row["id"],
            event_key=row["event_key"],
            kind=row["kind"],
            claim=claim,
            body=row["body"],
            grant=Secret(row["grant_token"]),
            event_at=row["event_at"],
            attempt=attempt,
            is_last=attempt >= self._policy.max_attempts,
            is_given_up=attempt > self._policy.max_attempts,
            cause=row["cause"],
            resume_grant=Secret(resume_grant) if resume_grant else None,
            project_id=row["project_id"],
            agent_id=row["agent_id"],
            agent_name=row["agent_name"],
            trace_parent=row["trace_parent"],
            request_id=row["request_id"],
        )


def _spell(outcome: Outcome | None) -> tuple[str, str, timedelta]:
    match outcome:
        case Done():
            return "done", outcome.reason, timedelta()
        case Retry():
            return "retry", outcome.reason, outcome.after
        case Dead():
            return "dead", outcome.reason, timedelta()
        case Untouched():
            return "untouched", "", timedelta()
        case None:
            return "", "", timedelta()


_HELD = """
    WITH held AS MATERIALIZED (
        SELECT 1 FROM gateway.lane WHERE lane = $1 AND fence = $2 AND owner <> '' FOR SHARE
    ), written AS (%s) SELECT EXISTS (SELECT FROM held)
"""
_BEGIN_RUN = (
    _HELD
    % """
    INSERT INTO gateway.run (event_key, message_id, channel, thread_ts)
    SELECT $3, $4, $5, $6 FROM held
    ON CONFLICT (event_key) DO UPDATE SET message_id = excluded.message_id
"""
)
_ADD_MESSAGE = (
    _HELD
    % """
    UPDATE gateway.run r SET messages = array_append(r.messages, $4::text)
    FROM held WHERE r.event_key = $3 AND NOT $4::text = ANY (r.messages)
"""
)
_END_RUN = (
    _HELD
    % """
    UPDATE gateway.run r SET state = 'ended', outcome = $4, ended_at = now()
    FROM held WHERE r.event_key = $3
"""
)
_WITHDRAW_RUN = (
    _HELD
    % """
    DELETE FROM gateway.run r USING held WHERE r.event_key = $3
"""
)
_GREETED = (
    _HELD
    % """
    UPDATE gateway.inbox_event e SET cause = 'greeted'
    FROM held WHERE e.event_key = $3 AND e.cause = 'linked'
"""
)


class PostgresEndings:
    """The `EndingNews` port, by the database's notifications."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", statements: Statements) -> None:
        self._pool = pool
        self._statements = statements

    async def tell(self, team: str) -> None:
        """Notify every worker; see the port."""
        await self._statements.fetch("SELECT pg_notify($1, $2)", ENDINGS_CHANNEL, team)

    async def hear(self) -> AsyncGenerator[str, None]:
        """Listen on a connection of its own, made anew when it breaks; see the port."""
        while True:
            try:
                async with self._listening() as told:
                    while (team := await told.get()) is not None:
                        yield team
            except WorkerDatabaseUnavailable:
                pass
            await asyncio.sleep(_PAUSE.total_seconds())

    @asynccontextmanager
    async def _listening(self) -> "AsyncIterator[asyncio.Queue[str | None]]":
        """Give what is told; None when the connection has ended."""
        told: asyncio.Queue[str | None] = asyncio.Queue()

        def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            told.put_nowait(str(payload))

        def ended(*_: object) -> None:
            told.put_nowait(None)

        with database_errors(WorkerDatabaseUnavailable):
            async with self._pool.acquire() as connection:
                connection.add_termination_listener(ended)
                await connection.add_listener(ENDINGS_CHANNEL, heard)
                try:
                    yield told
                finally:
                    if not connection.is_closed():
                        connection.remove_termination_listener(ended)
                        await connection.remove_listener(ENDINGS_CHANNEL, heard)


class PostgresRuns:
    """The `RunRecords` port. Every write checks the fence, under a lock of the lane."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def find(self, event_key: str) -> RunRecord | None:
        """Find the run of an event."""
        rows = await self._statements.insist(
            "SELECT state, messages FROM gateway.run WHERE event_key = $1", event_key
        )
        return RunRecord(rows[0]["state"] == "ended", tuple(rows[0]["messages"])) if rows else None

    async def begin(self, delivery: Delivery, message_id: str, place: Place) -> None:
        """Record that a run is about to be started."""
        await self._write(_BEGIN_RUN, delivery, message_id, place.channel, place.thread_ts)

    async def add_message(self, delivery: Delivery, ts: str) -> None:
        """Record a message of the answer."""
        await self._write(_ADD_MESSAGE, delivery, ts)

    async def end(self, delivery: Delivery, outcome: str) -> None:
        """Record that the answer has its visible end."""
        await self._write(_END_RUN, delivery, outcome)

    async def withdraw(self, delivery: Delivery) -> None:
        """Forget a run that is known not to have started."""
        await self._write(_WITHDRAW_RUN, delivery)

    async def greeted(self, delivery: Delivery) -> None:
        """Record that the person was told of the link."""
        await self._write(_GREETED, delivery)

    async def _write(self, statement: str, delivery: Delivery, *arguments: object) -> None:
        claim = delivery.claim
        rows = await self._statements.insist(
            statement, claim.lane, claim.fence, delivery.event_key, *arguments
        )
        if not rows[0][0]:
            raise LaneLost


_QUESTION = "event_key, team, slack_user, grant_token, choices"
_KEEP_QUESTION = """
    INSERT INTO gateway.resume_intent
        (event_key, awaits, team, slack_user, kind, lane, body, grant_token, event_at, choices,
         expires_at, next_check_at, trace_parent, request_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $9::timestamptz + $11::interval,
            now() + $12, $13, $14)
"""
_AWAIT_LINK = f"""{_KEEP_QUESTION}
    ON CONFLICT (team, slack_user) WHERE awaits = 'link' DO UPDATE SET
        event_key = excluded.event_key, kind = excluded.kind, lane = excluded.lane,
        body = excluded.body, grant_token = excluded.grant_token,
        event_at = excluded.event_at, created_at = now(),
        expires_at = excluded.expires_at, next_check_at = excluded.next_check_at,
        trace_parent = excluded.trace_parent, request_id = excluded.request_id
"""
_AWAIT_AGENT = f"""{_KEEP_QUESTION}
    ON CONFLICT (event_key) DO UPDATE SET choices = excluded.choices
"""
_DUE_FOR_CHECK = f"""
    UPDATE gateway.resume_intent r
    SET next_check_at = now() + greatest($1, (now() - r.created_at) / 4)
    FROM (
        SELECT d.event_key FROM gateway.resume_intent d
        WHERE d.awaits = 'link' AND d.next_check_at <= now() AND d.expires_at > now()
        ORDER BY d.next_check_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE r.event_key = due.event_key
    RETURNING {", ".join(f"r.{column}" for column in _QUESTION.split(", "))}
"""  # noqa: S608 - Column names of our own.


class PostgresWaiting:
    """The `WaitingQuestions` port."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def await_link(self, delivery: Delivery, team: str, slack_user_id: str) -> None:
        """Keep a question until its user links."""
        await self._keep(
            _AWAIT_LINK, delivery, awaits="link", team=team, slack_user_id=slack_user_id
        )

    async def await_agent(
        self, delivery: Delivery, team: str, slack_user_id: str, choices: Sequence[Choice]
    ) -> None:
        """Keep a question until its user picks an agent."""
        await self._keep(
            _AWAIT_AGENT,
            delivery,
            awaits="agent",
            team=team,
            slack_user_id=slack_user_id,
            choices=choices,
        )

    async def _keep(
        self,
        statement: str,
        delivery: Delivery,
        *,
        awaits: str,
        team: str,
        slack_user_id: str,
        choices: Sequence[Choice] = (),
    ) -> None:
        listed = [[each.project_id, each.agent_id, each.agent_name] for each in choices]
        await self._statements.insist(
            statement,
            delivery.event_key,
            awaits,
            team,
            slack_user_id,
            delivery.kind,
            delivery.claim.lane.removeprefix("control:"),
            delivery.body,
            delivery.grant.reveal(),
            delivery.event_at,
            json.dumps(listed),
            WAITS_FOR,
            FIRST_CHECK,
            delivery.trace_parent,
            delivery.request_id,
        )

    async def find_by_user(self, team: str, slack_user_id: str) -> WaitingQuestion | None:
        """Find the question that waits for a user's link."""
        return await self._find(
            "team = $1 AND slack_user = $2 AND awaits = 'link'", team, slack_user_id
        )

    async def find_by_key(self, event_key: str) -> WaitingQuestion | None:
        """Find a question that waits for an agent."""
        return await self._find("event_key = $1 AND awaits = 'agent'", event_key)

    async def _find(self, condition: str, *arguments: object) -> WaitingQuestion | None:
        rows = await self._statements.fetch(
            f"SELECT {_QUESTION} FROM gateway.resume_intent"  # noqa: S608 - Texts of our own.
            f" WHERE {condition} AND expires_at > now()",
            *arguments,
        )
        return _question(rows[0]) if rows else None

    async def resume_linked(self, event_key: str, resume_grant: Secret[str] | None) -> bool:
        """Put a question back into its lane."""
        grant = resume_grant.reveal() if resume_grant else ""
        return await self._resume(event_key, "linked", grant, "", "", "")

    async def resume_picked(self, event_key: str, choice: Choice) -> bool:
        """Put a question back into its lane with its agent."""
        return await self._resume(
            event_key, "picked", "", choice.project_id, choice.agent_id, choice.agent_name
        )

    async def _resume(self, *arguments: str) -> bool:
        put = await self._statements.value(
            "SELECT gateway.inbox_resume($1, $2, $3, $4, $5, $6)", *arguments
        )
        return bool(put == "stored")

    async def due_for_check(self, limit: int) -> Sequence[WaitingQuestion]:
        """List questions whose link should be asked about now."""
        rows = await self._statements.fetch(_DUE_FOR_CHECK, FIRST_CHECK, limit)
        return [_question(row) for row in rows]

    async def keep_grant(self, event_key: str, grant: Secret[str]) -> None:
        """Replace a waiting question's grant by its renewal."""
        await self._statements.fetch(
            "UPDATE gateway.resume_intent SET grant_token = $2 WHERE event_key = $1",
            event_key,
            grant.reveal(),
        )

    async def forget(self, event_key: str) -> None:
        """Erase a question that will never run."""
        await self._statements.fetch(
            "DELETE FROM gateway.resume_intent WHERE event_key = $1", event_key
        )


def _question(row: asyncpg.Record) -> WaitingQuestion:
    return WaitingQuestion(
        event_key=row["event_key"],
        team=row["team"],
        slack_user_id=row["slack_user"],
        grant=Secret(row["grant_token"]),
        choices=tuple(Choice(*each) for each in json.loads(row["choices"])),
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up and can be replayed."""

    event_id: int
    kind: str
    received_at: datetime
    attempts: int
    reason: str


class PostgresDeadLetters:
    """Events that were given up."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def list_newest(self, team: str) -> Sequence[DeadLetter]:
        """List a team's, newest first, at most 200; every team's for ""."""
        rows = await self._statements.fetch(
            """
            SELECT id, kind, received_at, attempts, reason FROM gateway.inbox_event
            WHERE state = 'dead' AND body <> '' AND ($1 = '' OR team = $1)
            ORDER BY id DESC LIMIT $2
            """,
            team,
            DEAD_LETTERS_SHOWN,
        )
        return [DeadLetter(*row.values()) for row in rows]

    async def replay(self, event_id: int, team: str) -> bool:
        """Put one back into its lane; False when it is not there, or not the team's."""
        replayed = await self._statements.value(
            "SELECT gateway.inbox_replay($1, $2)", event_id, team
        )
        return bool(replayed)


@dataclass(frozen=True, slots=True)
class InboxState:
    """How the inbox stands.

    Attributes:
        waiting: Events not settled yet.
        oldest: How long the oldest of them has waited.
        dead: Events given up that can be replayed.
    """

    waiting: int
    oldest: timedelta
    dead: int


_SWEEPS: Sequence[tuple[str, tuple[object, ...]]] = (
    ("DELETE FROM gateway.resume_intent WHERE expires_at <= now()", ()),
    (
        """
        UPDATE gateway.inbox_event SET body = '', grant_token = '', resume_grant = ''
        WHERE state = 'dead' AND body <> '' AND ended_at <= now() - $1::interval
        """,
        (KEPT,),
    ),
    (
        """
        DELETE FROM gateway.inbox_event WHERE id IN (
            SELECT id FROM gateway.inbox_event
            WHERE state <> 'ready' AND body = '' AND ended_at <= now() - $1::interval LIMIT $2
        )
        """,
        (KEPT, _SWEPT_AT_ONCE),
    ),
    (
        """
        DELETE FROM gateway.run r WHERE r.started_at <= now() - $1::interval
            AND NOT EXISTS (SELECT FROM gateway.inbox_event e WHERE e.event_key = r.event_key)
        """,
        (KEPT,),
    ),
    ("DELETE FROM gateway.oauth_state WHERE expires_at <= now()", ()),
    ("DELETE FROM gateway.browser_attempt WHERE expires_at <= now()", ()),
)


class PostgresCron:
    """What has to be done now and then, by one worker at a time."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", clock: Clock | None = None) -> None:
        self._pool = pool
        self._statements = Statements(pool)
        self._clock = clock or SystemClock()

    async def alone(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do some work unless another worker is at it; None if one is.

        Holds an advisory lock on a connection of its own, and no transaction.

        Raises:
            WorkerDatabaseUnavailable: The lock could not be asked for.
        """
        with database_errors(WorkerDatabaseUnavailable):
            async with self._pool.acquire() as connection:
                if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _CRON_LOCK):
                    return None
                try:
                    return await work()
                finally:
                    await connection.execute("SELECT pg_advisory_unlock($1)", _CRON_LOCK)

    async def sweep(self) -> None:
        """Erase what has expired: waiting questions, old bodies, keys, browser state."""
        for statement, arguments in _SWEEPS:
            await self._statements.fetch(statement, *arguments)

    async def state(self) -> InboxState:
        """Tell how the inbox stands."""
        rows = await self._statements.fetch(
            """
            SELECT count(*) FILTER (WHERE state = 'ready') AS waiting,
                   coalesce(now() - min(received_at) FILTER (WHERE state = 'ready'), '0') AS oldest,
                   count(*) FILTER (WHERE state = 'dead') AS dead
            FROM gateway.inbox_event WHERE state = 'ready' OR state = 'dead' AND body <> ''
            """
        )
        row = rows[0]
        return InboxState(row["waiting"], row["oldest"], row["dead"])

    async def require_ready(self) -> None:
        """Ask the database for a sign of life, and for the time.

        Raises:
            WorkerDatabaseUnavailable: There is none.
            ClockSkew: This machine's clock and the database's differ.
        """
        rows = await self._statements.fetch("SELECT clock_timestamp() AS at")
        require_agreement(self._clock, rows[0]["at"])
