"""Edge's rows in the gateway database: put, take, count. It reads no event back."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg

from interlock_chassis.clock import Clock, SystemClock, require_agreement
from interlock_chassis.database import database_errors
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import current_request_id, trace_parent
from interlock_gateway.domain.slack_request import SlackRequest
from interlock_gateway.edge.ports import EdgeDatabaseUnavailable, OAuthState

# Slack gives up after 3 s. A database that is silent for 2 s is answered with 503 within
# 2.5 s, so that Slack tries again instead of taking a late 200 for a timeout.
STATEMENT_BUDGET = timedelta(seconds=2)
# Slack's own codes live 10 min; a consent page left open longer starts again.
STATE_LIFE = timedelta(minutes=10)
ATTEMPT_WINDOW = timedelta(minutes=1)

_PUT = "SELECT gateway.inbox_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_PUT_STATE = """
    INSERT INTO gateway.oauth_state
        (state_sha256, browser_sha256, session_ref, grant_token, redirect_to, expires_at)
    VALUES ($1, $2, $3, $4, $5, now() + $6)
"""
_TAKE_STATE = """
    DELETE FROM gateway.oauth_state
    WHERE state_sha256 = $1 AND browser_sha256 = $2 AND expires_at > now()
    RETURNING session_ref, grant_token, redirect_to
"""
_COUNT = "SELECT gateway.count_attempt($1, $2)"


class EdgePostgres:
    """The inbox, the installs under way and the attempt counters, in Postgres."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock | None = None) -> None:
        self._pool = pool
        self._clock = clock or SystemClock()
        self._running: set[asyncio.Task[asyncpg.Record | None]] = set()

    async def put(self, request: SlackRequest, body: bytes, grant: Secret[str]) -> bool:
        """Store a request once; see `Inbox`."""
        stored = await self._fetch_value(
            _PUT,
            request.event_key,
            request.second_key,
            request.kind.value,
            request.lane,
            request.workspace.team_id or request.workspace.enterprise_id,
            request.is_control,
            body,
            grant.reveal(),
            request.event_at,
            trace_parent(),
            current_request_id(),
        )
        return bool(stored == "stored")

    async def count(self, key: str) -> int:
        """Count an attempt; see `Attempts`."""
        attempts: int = await self._fetch_value(_COUNT, key, ATTEMPT_WINDOW)
        return attempts

    async def put_state(self, state_sha256: str, browser_sha256: str, state: OAuthState) -> None:
        """Keep an install under way."""
        await self._fetch_value(
            _PUT_STATE,
            state_sha256,
            browser_sha256,
            state.session_ref,
            state.grant.reveal(),
            state.redirect_to,
            STATE_LIFE,
        )

    async def take_state(self, state_sha256: str, browser_sha256: str) -> OAuthState | None:
        """Take an install under way, once."""
        row = await self._fetch_row(_TAKE_STATE, state_sha256, browser_sha256)
        if row is None:
            return None
        return OAuthState(row["session_ref"], Secret(row["grant_token"]), row["redirect_to"])

    async def require_ready(self) -> None:
        """Ask the database for a sign of life, and for the time.

        Raises:
            EdgeDatabaseUnavailable: There is none within 2 s.
            ClockSkew: This machine's clock and the database's differ.
        """
        require_agreement(self._clock, await self._fetch_value("SELECT clock_timestamp()"))

    async def _fetch_value(self, statement: str, *arguments: object) -> Any:
        row = await self._fetch_row(statement, *arguments)
        return row[0] if row is not None else None

    async def _fetch_row(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        """Run one statement, its wait for a connection included, within the budget.

        In a task of its own: the driver's clean-up of a cancelled statement waits for a
        server that may be silent, and the caller must not.
        """
        work = asyncio.create_task(self._run(statement, *arguments))
        self._running.add(work)
        work.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({work}, timeout=STATEMENT_BUDGET.total_seconds())
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not done:
            work.cancel()
            raise EdgeDatabaseUnavailable
        return work.result()

    async def _run(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        with database_errors(EdgeDatabaseUnavailable):
            async with self._pool.acquire() as connection:
                return await connection.fetchrow(statement, *arguments)

    def _forget(self, work: asyncio.Task[asyncpg.Record | None]) -> None:
        self._running.discard(work)
        if not work.cancelled():
            # Whoever waited has either read this or answered already.
            work.exception()
