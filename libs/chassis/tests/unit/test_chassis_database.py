"""Database errors are told apart, and URLs point where they should."""

import asyncio

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from interlock_chassis.database import (
    DatabasePlan,
    _as_role,
    _scram_verifier,
    database_errors,
)
from interlock_chassis.errors import Unavailable
from interlock_chassis.secret import Secret

AWAY = [
    asyncpg.ConnectionDoesNotExistError("gone"),
    asyncpg.CannotConnectNowError("starting"),
    asyncpg.AdminShutdownError("stopping"),
    asyncpg.TooManyConnectionsError("full"),
    asyncpg.DiskFullError("full"),
    asyncpg.OutOfMemoryError("full"),
    asyncpg.ReadOnlySQLTransactionError("standby"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("cannot switch to state 11"),
    ConnectionRefusedError(),
    TimeoutError(),
    PoolTimeoutError(),
]

BUGS = [
    asyncpg.UndefinedTableError("no such table"),
    asyncpg.UniqueViolationError("twice"),
    asyncpg.InsufficientPrivilegeError("not yours"),
    asyncpg.SerializationError("retry"),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_a_postgres_that_cannot_serve_is_unavailable(error: Exception) -> None:
    """The adapter's own error is raised, with the driver's as its cause."""
    with pytest.raises(Unavailable) as raised, database_errors(Unavailable):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", AWAY[:7], ids=lambda error: type(error).__name__)
def test_the_same_holds_through_sqlalchemy(error: Exception) -> None:
    """SQLAlchemy's wrapping does not hide what happened."""
    with pytest.raises(Unavailable), database_errors(Unavailable):
        raise DBAPIError("SELECT 1", None, error)


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_passes_as_it_is(error: Exception) -> None:
    """What retrying cannot mend is not called unavailable."""
    with pytest.raises(type(error)), database_errors(Unavailable):
        raise error


def test_cancelling_passes() -> None:
    """A cancelled caller is not told that the database is away."""
    with pytest.raises(asyncio.CancelledError), database_errors(Unavailable):
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("admin", "expected"),
    [
        (
            "postgresql://postgres@/postgres?host=/run/pg&port=5432",
            "postgresql://svc:p%40%2F%3A@/x%2Fy?host=/run/pg&port=5432",
        ),
        (
            "postgresql://a:b@db.example:5432/postgres?sslmode=verify-full",
            "postgresql://svc:p%40%2F%3A@db.example:5432/x%2Fy?sslmode=verify-full",
        ),
        ("postgresql:///postgres?host=/run/pg", "postgresql://svc:p%40%2F%3A@/x%2Fy?host=/run/pg"),
    ],
)
def test_urls_of_roles_keep_the_way_to_the_server(admin: str, expected: str) -> None:
    """Role, password and database change; host, socket and TLS stay."""
    assert _as_role(Secret(admin), "svc", Secret("p@/:"), "x/y") == Secret(expected)


@pytest.mark.parametrize("password", ["", "naïve", "line\nbreak"])
def test_a_password_that_postgres_might_read_differently_is_refused(password: str) -> None:
    """Only printable ASCII means the same to every client."""
    with pytest.raises(ValueError, match="printable ASCII"):
        _scram_verifier(Secret(password))


def test_a_verifier_does_not_hold_the_password() -> None:
    """What is sent is salted: twice the same password, two verifiers."""
    first, second = _scram_verifier(Secret("canary")), _scram_verifier(Secret("canary"))
    assert first.startswith("SCRAM-SHA-256$4096:")
    assert "canary" not in first
    assert first != second


def test_the_schema_is_the_services_name() -> None:
    """`interlock_vault` keeps its tables in `vault`."""
    plan = DatabasePlan(name="interlock_vault", owner="o", roles=(), migrations="m")
    assert plan.schema == "vault"
