"""The caller table decides by exact names, and is complete or refused."""

import pytest

import interlock.runner.v1.runner_pb2  # noqa: F401 - Registers the service.
from interlock_chassis.callers import may_call, require_caller, require_complete
from interlock_chassis.errors import CallerNotAllowed, ConfigError

SERVICE = "interlock.runner.v1.RunnerService"
METHODS = ("ListProjects", "ListAgents", "Run", "Approve", "Cancel")
WORKER = frozenset({"gateway-worker"})
TABLE = {f"/{SERVICE}/{method}": WORKER for method in METHODS}


def test_a_listed_caller_passes_and_others_do_not() -> None:
    """Only exact names pass; a prefix, another case or nobody does not."""
    method = f"/{SERVICE}/Run"
    require_caller(TABLE, method, "gateway-worker")
    for other in ("gateway-edge", "gateway", "gateway-worker2", "Gateway-Worker", ""):
        with pytest.raises(CallerNotAllowed):
            require_caller(TABLE, method, other)


def test_an_empty_row_lets_nobody_in() -> None:
    """GV-03: a row without names is nobody, not everybody."""
    assert not may_call({"/a.B/C": frozenset()}, "/a.B/C", "gateway-worker")


def test_a_method_without_a_row_lets_nobody_in() -> None:
    """An RPC the table does not know is refused, also by lookup."""
    assert not may_call(TABLE, "/a.B/Unknown", "gateway-worker")


def test_a_family_row_takes_members_of_the_family_only() -> None:
    """`app/*` stands for every app with a name, and for nothing else."""
    table = {"/a.B/C": frozenset({"app/*"})}
    assert may_call(table, "/a.B/C", "app/reports")
    for other in ("app/", "app", "apps/reports", "runner"):
        assert not may_call(table, "/a.B/C", other)


def test_a_caller_cannot_be_named_like_a_family() -> None:
    """A row for one app is not opened by the star of another."""
    assert not may_call({"/a.B/C": frozenset({"app/reports"})}, "/a.B/C", "app/*")


def test_a_complete_table_passes() -> None:
    """A row for every RPC and no other is what start-up wants."""
    require_complete(TABLE, [SERVICE])


def test_a_missing_row_stops_the_start() -> None:
    """GV-03: an RPC without a row is named and refused."""
    table = {method: names for method, names in TABLE.items() if not method.endswith("/Run")}
    with pytest.raises(ConfigError, match=r"no row for /interlock\.runner\.v1\.RunnerService/Run"):
        require_complete(table, [SERVICE])


def test_a_row_too_many_stops_the_start() -> None:
    """A row for an RPC that is not served is a typo or a leftover."""
    with pytest.raises(ConfigError, match=r"not served: /a\.B/C"):
        require_complete({**TABLE, "/a.B/C": WORKER}, [SERVICE])


def test_an_unknown_service_stops_the_start() -> None:
    """A service without generated code cannot be checked."""
    with pytest.raises(ConfigError, match="unknown service"):
        require_complete({}, ["a.B"])
