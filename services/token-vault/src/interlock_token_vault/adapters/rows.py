"""The vault's statements by name, and its rows as domain objects."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import asyncpg

from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.envelope import SealedBytes, SealedToken, WrappedDek
from interlock_token_vault.domain.install import AttemptState, InstallAttempt
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
from interlock_token_vault.vault import Held, Loaded, Stop

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    # Generic in the stubs only.
    Connection = PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool


_V = TypeVar("_V")


class Row(Protocol):
    """What is read of a record."""

    def __getitem__(self, column: str, /) -> Any:
        """Return a column's value."""
        ...


# A look-up costs a tenth of a call of the Enum.
_STATES = {state.value: state for state in InstallationState}
_KINDS = {kind.value: kind for kind in TokenKind}
_NAMED = re.compile(r"^-- name: (\w+)\n(.*?);$", re.MULTILINE | re.DOTALL)


@cache
def query(name: str) -> str:
    """Return a statement of queries.sql.

    Raises:
        KeyError: There is none of this name.
    """
    return _statements()[name]


@cache
def _statements() -> Mapping[str, str]:
    text = resources.files(__package__).joinpath("queries.sql").read_text()
    return {found[1]: found[2] for found in _NAMED.finditer(text)}


def installation_of(row: Row) -> Installation:
    """Read an installation."""
    return Installation(
        id=InstallationId(row["installation_id"]),
        key=InstallationKey(
            client_id=ClientId(row["client_id"]),
            app_id=row["app_id"],
            enterprise_id=row["enterprise_id"],
            team_id=row["team_id"],
        ),
        tenant_id=TenantId(row["tenant_id"]),
        state=InstallationState(row["state"]),
        generation=row["generation"],
        name=row["name"],
        bot_user_id=row["bot_user_id"],
        bot_scopes=tuple(row["bot_scopes"]),
        installed_at=row["installed_at"],
        installed_by=row["installed_by"] or "",
    )


def token_of(row: Row) -> SealedToken:
    """Read a sealed token."""
    return SealedToken(
        kind=TokenKind(row["kind"]),
        slot=TokenSlot(row["slot"]),
        user_id=row["user_id"],
        generation=row["generation"],
        dek_id=DekId(row["dek_id"]),
        sealed=SealedBytes(row["sealed"]),
        ref=TokenRef(row["ref"]),
        expires_at=row["expires_at"],
    )


def loaded_of(row: Row, key: InstallationKey) -> Loaded:
    """Read a row of load_tokens, all of which is about the installation of this name."""
    installation = Installation(
        id=InstallationId(row["installation_id"]),
        key=key,
        tenant_id=TenantId(row["tenant_id"]),
        state=_STATES[row["state"]],
        generation=row["generation"],
        name=row["name"],
        bot_user_id=row["bot_user_id"],
        bot_scopes=tuple(row["bot_scopes"]),
        installed_at=row["installed_at"],
    )
    stopped = row["stopped"]
    return Loaded(
        installation=installation,
        sealed=_loaded_token_of(row),
        wrapped=dek_of(row),
        at=row["read_at"],
        audited_generation=row["audited_generation"] or 0,
        stopped=Stop(stopped) if stopped else None,
    )


def _loaded_token_of(row: Row) -> SealedToken | None:
    if row["sealed"] is None:
        return None
    return SealedToken(
        kind=_KINDS[row["token_kind"]],
        slot=TokenSlot.ACCESS,
        user_id=row["token_user_id"],
        generation=row["token_generation"],
        dek_id=DekId(row["dek_id"]),
        sealed=SealedBytes(row["sealed"]),
        ref=TokenRef(row["ref"]),
        expires_at=row["expires_at"],
    )


def dek_of(row: Row) -> WrappedDek | None:
    """Read the wrapped key of a row, if it holds one."""
    if row["wrapped"] is None:
        return None
    return WrappedDek(
        dek_id=DekId(row["dek_id"]),
        installation_id=InstallationId(row["installation_id"]),
        kek_version=row["kek_version"],
        wrapped=row["wrapped"],
    )


def attempt_of(row: Row) -> InstallAttempt:
    """Read an install attempt."""
    installation_id, grant = row["installation_id"], row["grant_token"]
    return InstallAttempt(
        grant_id=row["grant_id"],
        grant=None if grant is None else Secret(grant),
        tenant_id=TenantId(row["tenant_id"]),
        user_id=row["user_id"],
        state_sha256=row["state_sha256"],
        source=row["source"],
        grant_expires_at=row["grant_expires_at"],
        state=AttemptState(row["state"]),
        code_ref=row["code_ref"],
        installation_id=None if installation_id is None else InstallationId(installation_id),
        is_reinstall=row["is_reinstall"],
        extra_scopes=tuple(row["extra_scopes"]),
        outcome=row["outcome"],
    )


def record_of(row: Row) -> ChainedEvent:
    """Read an audit record."""
    installation_id = row["installation_id"]
    event = AuditEvent(
        action=row["action"],
        origin=Origin(
            actor=row["actor"],
            rpc=row["rpc"],
            purpose=row["purpose"],
            grant_id=row["grant_id"],
            subject=row["subject"],
            request_id=row["request_id"],
            trace_id=row["trace_id"],
        ),
        outcome=row["outcome"],
        installation_id=None if installation_id is None else InstallationId(installation_id),
        enterprise_id=row["enterprise_id"],
        team_id=row["team_id"],
        token_kind=row["token_kind"],
        token_ref=row["token_ref"],
        generation=row["generation"],
        kek_version=row["kek_version"],
        dek_source=row["dek_source"],
        count=row["count"],
    )
    return ChainedEvent(
        event, row["chain_id"], row["seq"], row["at"], row["prev_hash"], row["hash"]
    )


def columns_of(records: Sequence[ChainedEvent]) -> tuple[Any, ...]:
    """Turn records into what `append_audit` takes.

    Args:
        records: Of one chain, without gaps; not empty.
    """
    first = records[0]
    *columns, hashes = zip(*map(_values_of, records), strict=True)
    return (first.chain_id, first.seq - 1, *map(shared, columns), first.prev_hash, hashes)


def shared(column: Sequence[_V]) -> Sequence[_V]:
    """Shorten a column to its value when all its rows have the same."""
    return column[:1] if column.count(column[0]) == len(column) else column


def _values_of(record: ChainedEvent) -> tuple[str | datetime | bytes, ...]:
    event = record.event
    return (
        *event.texts(),
        str(event.generation),
        str(event.count),
        record.at,
        record.hash,
    )


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Connection]:
    """Open a transaction whose statements all see the database as the first one did.

    For what takes several statements to read: a purge that commits between two of
    them would leave a key without its tokens.
    """
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


async def find_held(
    connection: Connection, by: str, installation_id: InstallationId
) -> Held | None:
    """Find what is sealed for an installation that the transaction has named.

    Args:
        connection: In a `snapshot`, or in a transaction in which `by` locks the row.
        by: The statement that finds the installation.
        installation_id: Its id.
    """
    row = await connection.fetchrow(query(by), installation_id)
    deks = await connection.fetch(query("get_deks"), installation_id)
    tokens = await connection.fetch(query("get_tokens"), installation_id)
    wrapped = dek_of(deks[0]) if len(deks) == 1 else None
    if row is None or wrapped is None:
        return None
    return Held(installation_of(row), tuple(map(token_of, tokens)), wrapped)
