"""Who may call which RPC, as data.

A service's table maps the full name of every RPC it serves to the mTLS names
allowed to call it. `app/*` stands for every registered app.
"""

from collections.abc import Iterable, Mapping

from interlock_chassis.errors import CallerNotAllowed, ConfigError

CallerTable = Mapping[str, frozenset[str]]
"""`/interlock.x.v1.Service/Method` to caller names; an empty set means nobody."""

_ANY_OF = "/*"


def require_complete(table: CallerTable, services: Iterable[str]) -> None:
    """Refuse a table that does not name exactly the RPCs of the services.

    Args:
        table: The process's caller table.
        services: Full service names, `interlock.x.v1.Service`; their generated
            modules must have been imported.

    Raises:
        ConfigError: An RPC has no row, a row has no RPC, or a service is unknown.
    """
    served: set[str] = set()
    for service in services:
        served |= _methods_of(service)
    missing, surplus = sorted(served - set(table)), sorted(set(table) - served)
    if missing:
        raise ConfigError("caller table", f"no row for {', '.join(missing)}")
    if surplus:
        raise ConfigError("caller table", f"a row for an RPC not served: {', '.join(surplus)}")


def may_call(table: CallerTable, method: str, caller: str) -> bool:
    """Tell whether the table lets the caller call the method.

    Args:
        table: The process's caller table.
        method: `/interlock.x.v1.Service/Method`.
        caller: The peer's mTLS name, such as `gateway-worker` or `app/reports`.
    """
    allowed = table.get(method, frozenset())
    if caller in allowed:
        return True
    family, slash, name = caller.partition("/")
    return bool(slash and name) and family + _ANY_OF in allowed


def require_caller(table: CallerTable, method: str, caller: str) -> None:
    """Let only a listed caller pass.

    Raises:
        CallerNotAllowed: The table does not list the caller for the method.
    """
    if not may_call(table, method, caller):
        raise CallerNotAllowed


def _methods_of(service: str) -> set[str]:
    from google.protobuf import descriptor_pool  # noqa: PLC0415 - 10 ms nobody else here needs.

    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        raise ConfigError("caller table", f"unknown service {service}") from None
    return {f"/{service}/{method.name}" for method in descriptor.methods}
