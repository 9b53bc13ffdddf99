"""An edge or identity process that dies at the edge of a step, once it is armed.

python -m tests.chaos.service_process gateway-edge|identity POINT|none RECORD

SIGUSR1 arms it. The edges that are passed are written to the file RECORD,
after a line that says `armed`.
"""

import asyncio
import signal
import sys
from pathlib import Path

from interlock_chassis.process import run_process
from tests.chaos.edges import Edges

# What others ask for meanwhile: probes, sweeps, Slack's events, what the vault reports.
_BESIDE = frozenset(
    {"require_ready", "put", "count", "set_drift", "set_needs_reinstall", "list_due_notices"}
)


def main(service: str, wanted: str, record: str) -> None:
    """Serve until killed, or told to stop."""
    if service == "gateway-edge":
        run_edge(_edges(wanted, record))
    run_identity(_edges(wanted, record))


def _edges(wanted: str, record: str) -> Edges:
    path = Path(record)

    def tell() -> None:
        path.write_text("armed\n")

    return Edges(wanted, path, tell)


def run_edge(edges: Edges) -> None:
    """Run edge with edges around what it asks of identity, the vault and its database."""
    from interlock_gateway.adapters.edge_identity import GrpcIdentity  # noqa: PLC0415 - One of two.
    from interlock_gateway.adapters.edge_postgres import EdgePostgres  # noqa: PLC0415 - As above.
    from interlock_gateway.adapters.edge_vault import GrpcVault  # noqa: PLC0415 - As above.
    from interlock_gateway.edge.config import EdgeSettings  # noqa: PLC0415 - As above.
    from interlock_gateway.edge.main import serve  # noqa: PLC0415 - As above.

    edges.put_around((GrpcIdentity, GrpcVault, EdgePostgres), _BESIDE)

    async def serve_armed(settings: EdgeSettings, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, edges.arm)
        await serve(settings, stop)

    run_process("gateway-edge", EdgeSettings, serve_armed)


def run_identity(edges: Edges) -> None:
    """Run identity with edges around what it asks of its database and the auth server."""
    from interlock_identity.__main__ import serve  # noqa: PLC0415 - One of two.
    from interlock_identity.adapters.auth_http import HttpAuthServer  # noqa: PLC0415 - As above.
    from interlock_identity.adapters.postgres import PostgresStore  # noqa: PLC0415 - As above.
    from interlock_identity.adapters.postgres_audit import PostgresAuditLog  # noqa: PLC0415 - As above.
    from interlock_identity.config import IdentitySettings  # noqa: PLC0415 - As above.

    edges.put_around((HttpAuthServer, PostgresStore, PostgresAuditLog), _BESIDE)

    async def serve_armed(settings: IdentitySettings, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, edges.arm)
        await serve(settings, stop)

    run_process("identity", IdentitySettings, serve_armed)


if __name__ == "__main__":
    main(*sys.argv[1:])
