"""The vault's database: installations, sealed tokens, wrapped keys, the audit log."""

from interlock_chassis.database import DatabasePlan

VAULT_ROLE = "interlock_vault"
"""The serving process: owns nothing, sees only installations it names."""

SCANNER_ROLE = "interlock_vault_scanner"
"""Schedulers: sees ids and key versions of all installations, and nothing else."""

DATABASE = DatabasePlan(
    name="interlock_vault",
    owner="interlock_vault_owner",
    roles=(VAULT_ROLE, SCANNER_ROLE),
    migrations="interlock_token_vault.migrations",
)
