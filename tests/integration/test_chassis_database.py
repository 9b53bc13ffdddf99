"""Creating, migrating and reaching databases, on a real Postgres."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from interlock_chassis.database import (
    DatabasePlan,
    DatabaseUrls,
    create_database,
    database_errors,
    migrate,
    open_engine,
    open_pool,
)
from interlock_chassis.errors import Unavailable
from interlock_chassis.secret import Secret
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases

FIRST = '''
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE chassis_test.note (id int PRIMARY KEY, body text DEFAULT 'a:b;c');
        -- Two statements, a colon and a semicolon: strings are sent as they are.
        CREATE FUNCTION chassis_test.noted(p_id int) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            RETURN (SELECT body FROM chassis_test.note WHERE id = p_id)::text;
        END $$;
        GRANT USAGE ON SCHEMA chassis_test TO chassis_test_app;
        GRANT SELECT, INSERT ON chassis_test.note TO chassis_test_app;
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION chassis_test.noted; DROP TABLE chassis_test.note")
'''

SECOND = """
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE chassis_test.note ADD COLUMN seen boolean DEFAULT false")
    if FAILS:
        op.execute("CREATE TABLE chassis_test.half (); SELECT 1/0")


def downgrade() -> None:
    op.execute("ALTER TABLE chassis_test.note DROP COLUMN seen")
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabasePlan]:
    """Write a package of two versions, and plan a database with it."""
    package = f"chassis_versions_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / "100% odd path" / package
    (folder / "versions").mkdir(parents=True)
    (folder / "__init__.py").touch()
    write_versions(folder)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield DatabasePlan(
        name="interlock_chassis_test",
        owner="chassis_test_owner",
        roles=("chassis_test_app",),
        migrations=package,
    )
    sys.modules.pop(package, None)


def write_versions(folder: Path, *, fails: bool = False) -> None:
    """Write the versions, the second one sound or failing half-way."""
    (folder / "versions" / "0001_first.py").write_text(FIRST)
    (folder / "versions" / "0002_second.py").write_text(SECOND.replace("FAILS", str(fails)))


def folder_of(plan: DatabasePlan) -> Path:
    """Return where a plan's versions are."""
    module = sys.modules[plan.migrations].__file__
    assert module is not None
    return Path(module).parent


@pytest.fixture
async def urls(cluster: ScratchDatabases, plan: DatabasePlan) -> DatabaseUrls:
    """Create the empty database, anew for each test."""
    admin = await asyncpg.connect(cluster.admin_url.reveal())
    try:
        await admin.execute("DROP DATABASE IF EXISTS interlock_chassis_test WITH (FORCE)")
    finally:
        await admin.close()
    return await create_database(cluster.admin_url, plan, passwords(plan))


def passwords(plan: DatabasePlan, prefix: str = "p@ss:/%'\" ") -> dict[str, Secret[str]]:
    """Give each role a password with what needs quoting."""
    return {role: Secret(prefix + role) for role in (plan.owner, *plan.roles)}


async def ask(url: Secret[str], query: str) -> object:
    """Ask one question on a connection of its own."""
    connection = await asyncpg.connect(url.reveal())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_roles_reach_the_database_and_no_more(
    cluster: ScratchDatabases, plan: DatabasePlan, urls: DatabaseUrls
) -> None:
    """Each role logs in with its password; a stranger to the plan may not connect."""
    app = urls.roles["chassis_test_app"]
    assert await ask(urls.owner, "SELECT current_user") == plan.owner
    assert await ask(app, "SELECT current_user") == "chassis_test_app"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ask(app, "CREATE TABLE public.mine ()")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ask(app, "CREATE SCHEMA mine")
    rights = "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls FROM pg_roles"
    for role in (plan.owner, *plan.roles):
        assert await ask(cluster.admin_url, f"{rights} WHERE rolname = '{role}'") is False
    stranger = DatabasePlan("interlock_other", "other_owner", ("other_app",), plan.migrations)
    others = await create_database(cluster.admin_url, stranger, passwords(stranger))
    trespass = Secret(others.roles["other_app"].reveal().replace(stranger.name, plan.name))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ask(trespass, "SELECT 1")


async def test_creating_again_sets_passwords_and_keeps_data(
    cluster: ScratchDatabases, plan: DatabasePlan, urls: DatabaseUrls
) -> None:
    """A second run rotates passwords; nothing is dropped, and old passwords end."""
    migrate(urls.owner, plan)
    await ask(urls.owner, "INSERT INTO chassis_test.note (id) VALUES (7)")
    renewed = await create_database(cluster.admin_url, plan, passwords(plan, "new "))
    app = renewed.roles["chassis_test_app"]
    assert await ask(app, "SELECT id FROM chassis_test.note") == 7
    if not await trusts_everybody(cluster):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await ask(urls.owner, "SELECT 1")


async def trusts_everybody(cluster: ScratchDatabases) -> bool:
    """Tell whether the server lets connections in without looking at passwords."""
    methods = "SELECT bool_and(auth_method = 'trust') FROM pg_hba_file_rules"
    return bool(await ask(cluster.admin_url, methods))


async def test_an_administrator_that_is_no_superuser_can_create(
    cluster: ScratchDatabases, plan: DatabasePlan
) -> None:
    """Managed Postgres gives no superuser; rights to create roles and databases do."""
    login = Secret("managed")
    await ask(cluster.admin_url, "DROP DATABASE IF EXISTS interlock_managed WITH (FORCE)")
    for role in ("managed_owner", "managed_app", "managed_admin"):
        await ask(cluster.admin_url, f"DROP ROLE IF EXISTS {role}")
    create = "CREATE ROLE managed_admin LOGIN CREATEDB CREATEROLE PASSWORD 'managed'"
    await ask(cluster.admin_url, create)
    host = cluster.admin_url.reveal().partition("@")[2]
    managed = DatabasePlan("interlock_managed", "managed_owner", ("managed_app",), plan.migrations)
    secrets = {"managed_owner": login, "managed_app": login}
    admin_url = Secret(f"postgresql://managed_admin:managed@{host}")
    await create_database(admin_url, managed, secrets)
    urls = await create_database(admin_url, managed, secrets)
    assert await ask(urls.owner, "SELECT current_user") == "managed_owner"
    owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'interlock_managed'"
    assert await ask(cluster.admin_url, owner) == "managed_owner"


async def test_migrating_twice_changes_nothing(plan: DatabasePlan, urls: DatabaseUrls) -> None:
    """The version table lives in the service's schema; a second run finds it."""
    migrate(urls.owner, plan)
    migrate(urls.owner, plan)
    version = "SELECT version_num FROM chassis_test.alembic_version"
    assert await ask(urls.owner, version) == "0002"
    await ask(urls.owner, "INSERT INTO chassis_test.note (id) VALUES (1)")
    assert await ask(urls.owner, "SELECT chassis_test.noted(1)") == "a:b;c"


async def test_versions_can_be_gone_back_and_forth(plan: DatabasePlan, urls: DatabaseUrls) -> None:
    """An older revision is gone back to; base undoes everything."""
    for revision, expected in (
        ("0001", "0001"),
        ("head", "0002"),
        ("0001", "0001"),
        ("base", None),
    ):
        migrate(urls.owner, plan, revision)
        version = await ask(urls.owner, "SELECT version_num FROM chassis_test.alembic_version")
        assert version == expected
    assert await ask(urls.owner, "SELECT to_regclass('chassis_test.note')") is None


async def test_processes_that_migrate_at_once_take_turns(
    plan: DatabasePlan, urls: DatabaseUrls
) -> None:
    """Replicas that start together do not step on each other."""
    await asyncio.gather(*(asyncio.to_thread(migrate, urls.owner, plan) for _ in range(4)))
    assert await ask(urls.owner, "SELECT count(*) FROM chassis_test.alembic_version") == 1


QUEUED = """
SELECT count(*) FROM pg_locks
WHERE NOT granted AND relation = 'chassis_test.note'::regclass AND mode = 'AccessExclusiveLock'
"""


@pytest.mark.parametrize("is_construct", [False, True], ids=["script", "construct"])
async def test_nobody_waits_behind_a_migration_that_waits(
    plan: DatabasePlan, urls: DatabaseUrls, *, is_construct: bool
) -> None:
    """A version wants a table that somebody reads for long; others go on writing to it meanwhile.

    The version goes through once the table is free.
    """
    migrate(urls.owner, plan, "0001")
    if is_construct:
        path = folder_of(plan) / "versions" / "0002_second.py"
        column = 'op.add_column("note", Column("seen", Boolean()), schema="chassis_test")'
        script = 'op.execute("ALTER TABLE chassis_test.note ADD COLUMN seen boolean DEFAULT false")'
        path.write_text(
            "from sqlalchemy import Boolean, Column\n" + path.read_text().replace(script, column)
        )
    reader = await asyncpg.connect(urls.owner.reveal())
    reading = reader.transaction()
    await reading.start()
    await reader.fetch("SELECT * FROM chassis_test.note")
    migrating = asyncio.create_task(asyncio.to_thread(migrate, urls.owner, plan))
    try:
        async with asyncio.timeout(60):
            while not await ask(urls.owner, QUEUED):  # noqa: ASYNC110 - Postgres tells nobody.
                await asyncio.sleep(0.02)
            await ask(urls.owner, "INSERT INTO chassis_test.note (id) VALUES (1)")
        assert not migrating.done()
    finally:
        await reading.rollback()
        await reader.close()
        await migrating
    assert await ask(urls.owner, "SELECT count(*) FROM chassis_test.note WHERE seen") == 0


async def test_a_version_that_fails_leaves_nothing_behind(
    plan: DatabasePlan, urls: DatabaseUrls
) -> None:
    """Versions before it stay; its own statements are undone; a mended one goes through."""
    migrate(urls.owner, plan, "0001")
    write_versions(folder_of(plan), fails=True)
    with pytest.raises(asyncpg.DivisionByZeroError):
        migrate(urls.owner, plan)
    assert await ask(urls.owner, "SELECT version_num FROM chassis_test.alembic_version") == "0001"
    assert await ask(urls.owner, "SELECT to_regclass('chassis_test.half')") is None
    write_versions(folder_of(plan))
    migrate(urls.owner, plan)
    assert await ask(urls.owner, "SELECT version_num FROM chassis_test.alembic_version") == "0002"


async def test_pools_and_engines_say_who_they_are(urls: DatabaseUrls) -> None:
    """Sessions carry the application's name, and further settings of the pool."""
    app = urls.roles["chassis_test_app"]
    settings = {"idle_in_transaction_session_timeout": "1500"}
    name = "SELECT current_setting('application_name')"
    async with open_pool(app, application="runner", server_settings=settings) as pool:
        assert await pool.fetchval(name) == "runner"
        assert await pool.fetchval("SHOW idle_in_transaction_session_timeout") == "1500ms"
    async with open_engine(app, application="identity") as engine, engine.connect() as connection:
        assert (await connection.execute(text(name))).scalar() == "identity"
    assert "chassis_test_app" not in repr(engine)


async def test_a_session_that_is_cut_is_unavailable(
    cluster: ScratchDatabases, urls: DatabaseUrls
) -> None:
    """A Postgres that ends our sessions is told apart from a bug, and pools recover."""
    app = urls.roles["chassis_test_app"]
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'chassis-cut'"
    )
    async with open_pool(app, application="chassis-cut") as pool:
        async with pool.acquire() as connection:
            await ask(cluster.admin_url, cut)
            with pytest.raises(Unavailable), database_errors(Unavailable):
                await connection.fetchval("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1
    async with open_engine(app, application="chassis-cut") as engine:
        async with engine.connect() as held:
            await held.execute(text("SELECT 1"))
            await ask(cluster.admin_url, cut)
            with pytest.raises(Unavailable), database_errors(Unavailable):
                await held.execute(text("SELECT 1"))
            await held.invalidate()
        async with engine.connect() as again:
            assert (await again.execute(text("SELECT 1"))).scalar() == 1


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """Run a Postgres that a test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-tests-"))
    postgres = EmbeddedPostgres(folder, binaries=find_binaries(os.environ), durable=False)
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_an_engine_outlives_a_restart_of_postgres(own_postgres: EmbeddedPostgres) -> None:
    """With every connection of its pool cut, at most one call fails, and cleanly."""
    async with open_engine(own_postgres.admin_url, application="x", max_size=4) as engine:

        async def call() -> bool:
            try:
                with database_errors(Unavailable):
                    async with engine.connect() as connection:
                        await connection.execute(text("SELECT pg_sleep(0.05)"))
            except Unavailable:
                return False
            return True

        assert await asyncio.gather(*(call() for _ in range(4))) == [True] * 4
        heard = asyncio.Event()
        watch = await asyncpg.connect(own_postgres.admin_url.reveal())
        watch.add_termination_listener(lambda _: heard.set())
        own_postgres.stop()
        own_postgres.start()
        await asyncio.wait_for(heard.wait(), 10)
        assert await asyncio.gather(*(call() for _ in range(4))) == [True] * 4
        # Nothing lets the loop hear of this one before the next call.
        own_postgres.stop()
        own_postgres.start()
        assert [await call() for _ in range(8)].count(False) <= 1
        own_postgres.stop()
        assert not await call()
        own_postgres.start()
        assert await call()


async def test_an_engine_asks_nothing_but_what_it_is_asked(
    cluster: ScratchDatabases, urls: DatabaseUrls
) -> None:
    """A connection that comes from the pool costs no round trip before its first statement."""
    async with open_engine(urls.roles["chassis_test_app"], application="chassis-quiet") as engine:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("SELECT 42 AS answer"))
        async with engine.connect():
            last = await ask(
                cluster.admin_url,
                "SELECT query FROM pg_stat_activity WHERE application_name = 'chassis-quiet'",
            )
        assert "42 AS answer" in str(last)


@pytest.mark.parametrize("way", ["127.0.0.1:1", "?host=/nonexistent"])
async def test_nobody_listening_is_unavailable(way: str) -> None:
    """A process starts while Postgres is away, and says so when asked."""
    host, _, query = way.partition("?")
    url = Secret(f"postgresql://role:pw@{host}/db?{query}")
    async with open_pool(url, application="x") as pool:
        with pytest.raises(Unavailable), database_errors(Unavailable):
            await pool.fetchval("SELECT 1")
    async with open_engine(url, application="x") as engine:
        with pytest.raises(Unavailable), database_errors(Unavailable):
            async with engine.connect():
                pass
