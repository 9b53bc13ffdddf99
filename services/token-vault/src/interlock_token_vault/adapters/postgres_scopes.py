"""The scopes of installations, on Postgres."""

from collections.abc import Sequence

from interlock_token_vault.adapters.journal import failing_closed
from interlock_token_vault.adapters.rows import Pool, query
from interlock_token_vault.domain.installation import ClientId, InstallationId, InstallationKey
from interlock_token_vault.reporting import GrantedScopes


class PostgresScopes:
    """A ScopeStore on Postgres."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_untold(
        self, client_id: ClientId, asked: Sequence[str], limit: int
    ) -> Sequence[GrantedScopes]:
        """List installations of whose scopes identity knows something else; see ScopeStore."""
        with failing_closed():
            rows = await self._pool.fetch(
                query("list_untold_scopes"), client_id, list(asked), limit
            )
        return [
            GrantedScopes(
                installation_id=InstallationId(row["installation_id"]),
                key=InstallationKey(
                    client_id=client_id,
                    app_id=row["app_id"],
                    enterprise_id=row["enterprise_id"],
                    team_id=row["team_id"],
                ),
                installed_at=row["installed_at"],
                missing=tuple(row["missing"]),
                extra=tuple(row["extra"]),
            )
            for row in rows
        ]

    async def count_drift(self, client_id: ClientId, asked: Sequence[str]) -> tuple[int, int]:
        """Count installations with scopes missing or too many; see ScopeStore."""
        with failing_closed():
            row = await self._pool.fetchrow(query("count_scope_drift"), client_id, list(asked))
        return (row["missing"], row["extra"]) if row else (0, 0)

    async def mark_told(self, granted: GrantedScopes) -> None:
        """Remember what identity knows; see ScopeStore."""
        with failing_closed():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(query("name_installations"), [granted.installation_id])
                await connection.execute(
                    query("mark_scopes_told"),
                    granted.installation_id,
                    granted.installed_at,
                    list(granted.missing),
                    list(granted.extra),
                )
