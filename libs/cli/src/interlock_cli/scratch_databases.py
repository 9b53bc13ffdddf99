"""Migrated databases made in an instant, for tests and benchmarks.

Each plan is migrated once, into a template; Postgres copies a template in
about 50 ms.
"""

import asyncio
import secrets
import threading
from collections.abc import Mapping

import asyncpg

from interlock_chassis.database import DatabasePlan, DatabaseUrls, create_database, migrate
from interlock_chassis.secret import Secret


class ScratchDatabases:
    """Fresh databases on one Postgres server.

    May be used from any event loop, and from several at once. The roles are
    the server's, so all databases of a plan share each role's password.

    Args:
        admin_url: A superuser's URL of the server.
    """

    def __init__(self, admin_url: Secret[str]) -> None:
        self.admin_url = admin_url
        self._lock = threading.Lock()
        self._templates: dict[str, str] = {}
        self._made: list[str] = []
        self._passwords: dict[str, Secret[str]] = {}
        # Names must not meet those of another user of the same server.
        self._run = secrets.token_hex(4)

    async def database(
        self, plan: DatabasePlan, passwords: Mapping[str, Secret[str]] | None = None
    ) -> DatabaseUrls:
        """Make a database of its own, migrated to the newest version.

        Args:
            plan: Whose database.
            passwords: By role, the owner's included; made up where absent. A
                password set here replaces the role's in all its databases.
        """
        return await asyncio.to_thread(self._make, plan, passwords or {})

    async def drop_all(self) -> None:
        """Drop every database made here, cutting the sessions in them."""
        connection = await asyncpg.connect(self.admin_url.reveal())
        try:
            for name in [*self._made, *self._templates.values()]:
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()
        self._made.clear()
        self._templates.clear()

    def _make(self, plan: DatabasePlan, passwords: Mapping[str, Secret[str]]) -> DatabaseUrls:
        # One at a time: Postgres refuses to copy a template that is in use.
        with self._lock:
            for role in (plan.owner, *plan.roles):
                made = self._passwords.get(role) or Secret(secrets.token_urlsafe(24))
                self._passwords[role] = passwords.get(role, made)
            if plan.name not in self._templates:
                self._templates[plan.name] = self._make_template(plan)
            name = f"{plan.name}_{self._run}_{len(self._made)}"
            self._made.append(name)
            return asyncio.run(self._copy(plan, name))

    def _make_template(self, plan: DatabasePlan) -> str:
        name = f"{plan.name}_{self._run}_template"
        urls = asyncio.run(
            create_database(self.admin_url, plan, self._passwords_of(plan), database=name)
        )
        migrate(urls.owner, plan)
        return name

    async def _copy(self, plan: DatabasePlan, name: str) -> DatabaseUrls:
        connection = await asyncpg.connect(self.admin_url.reveal())
        try:
            await connection.execute(
                f'CREATE DATABASE "{name}" OWNER "{plan.owner}"'
                f' TEMPLATE "{self._templates[plan.name]}"'
            )
        finally:
            await connection.close()
        # A copy has its template's content, but not its rights to connect.
        return await create_database(self.admin_url, plan, self._passwords_of(plan), database=name)

    def _passwords_of(self, plan: DatabasePlan) -> dict[str, Secret[str]]:
        return {role: self._passwords[role] for role in (plan.owner, *plan.roles)}
