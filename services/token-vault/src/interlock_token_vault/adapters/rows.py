"""The vault's statements by name, and its rows as domain objects."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    # Generic in the stubs only.
    Connection = PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool


class Row(Protocol):
    """What is read of a record."""

    def __getitem__(self, column: str, /) -> Any:
        """Return a column's value."""
        ...


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


def loaded_token_of(row: Row) -> SealedToken | None:
    """Read the access token of a row of load_tokens, if it holds one."""
    if row["sealed"] is None:
        return None
    return SealedToken(
        kind=TokenKind(row["token_kind"]),
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


def columns_of(records: list[ChainedEvent]) -> tuple[list[Any], ...]:
    """Turn records into the columns that `append_audit` takes, in its order."""
    return tuple(map(list, zip(*map(_values_of, records), strict=True)))


def _values_of(record: ChainedEvent) -> tuple[Any, ...]:
    event = record.event
    (
        action,
        actor,
        rpc,
        purpose,
        grant_id,
        _,
        enterprise_id,
        team_id,
        token_kind,
        outcome,
        token_ref,
        kek_version,
        dek_source,
        request_id,
        trace_id,
        subject,
    ) = event.texts()
    return (
        record.chain_id,
        record.seq,
        record.at,
        action,
        actor,
        rpc,
        purpose,
        grant_id,
        subject,
        request_id,
        trace_id,
        outcome,
        event.installation_id,
        enterprise_id,
        team_id,
        token_kind,
        token_ref,
        event.generation,
        kek_version,
        dek_source,
        event.count,
        record.prev_hash,
        record.hash,
    )
