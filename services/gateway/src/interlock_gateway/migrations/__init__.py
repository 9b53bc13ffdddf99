"""The gateway's database: the inbox, conversations, and edge's short-lived browser state."""

from interlock_chassis.database import DatabasePlan

EDGE_ROLE = "interlock_gateway_edge"
WORKER_ROLE = "interlock_gateway_worker"

DATABASE = DatabasePlan(
    name="interlock_gateway",
    owner="interlock_gateway_owner",
    roles=(EDGE_ROLE, WORKER_ROLE),
    migrations="interlock_gateway.migrations",
)
