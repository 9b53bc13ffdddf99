"""Identity's database: its plan, and the versions that build it."""

from interlock_chassis.database import DatabasePlan

DATABASE = DatabasePlan(
    name="interlock_identity",
    owner="interlock_identity_owner",
    roles=("interlock_identity",),
    migrations="interlock_identity.migrations",
)
