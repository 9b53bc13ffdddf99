"""The databases on the official image of another Postgres version, in Docker."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from testcontainers.community.postgres import PostgresContainer

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import migrate, open_pool
from interlock_chassis.secret import Secret
from interlock_cli.product import DATABASES
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import FakeKms
from interlock_token_vault.adapters.postgres import PostgresStore
from interlock_token_vault.domain.audit import Origin
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.vault import ReadAsk, TokenVault

IMAGE = "postgres:17"
ENVIRONMENT = "development"
KEY = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
INSTALLATION = InstallationId(UUID(int=1))
TOKEN = Secret("xoxb-" + "1" * 40)

pytestmark = pytest.mark.docker


@pytest.fixture
async def databases() -> AsyncIterator[ScratchDatabases]:
    """Give databases on a Postgres of the official image, its files in memory."""
    container = PostgresContainer(IMAGE, driver=None).with_tmpfs_mount("/var/lib/postgresql/data")
    with container:
        yield ScratchDatabases(Secret(container.get_connection_url()))


async def test_every_service_migrates_up_and_down(databases: ScratchDatabases) -> None:
    """All migrations run, are undone, and run again, on the version that operators use."""
    for plan in DATABASES:
        urls = await databases.database(plan)
        migrate(urls.owner, plan, "base")
        migrate(urls.owner, plan)


async def test_sealed_token_is_read_and_the_read_is_on_record(databases: ScratchDatabases) -> None:
    """A token sealed into this Postgres opens again, after its audit record was committed."""
    urls = await databases.database(DATABASE)
    keys = KmsKeys(FakeKms(), fingerprint_key=Secret("f" * 32), clock=SystemClock())
    await _store_sealed(databases, urls.owner, keys)
    origin = Origin(actor="gateway-worker", rpc="/x/ReadBotToken")
    async with (
        open_pool(urls.roles[VAULT_ROLE], application="test") as pool,
        open_journal(pool, new_id=uuid4) as journal,
    ):
        store = PostgresStore(pool, journal)
        vault = TokenVault(store, keys, environment=ENVIRONMENT)
        released = await vault.read(ReadAsk(KEY, origin))
        events, _ = await vault.list_audit_events(KEY, 10, None)
    assert released.token == TOKEN
    assert [each.event.action for each in events] == ["token.read"]


async def _store_sealed(databases: ScratchDatabases, owner: Secret[str], keys: KmsKeys) -> None:
    """Store one active installation and its sealed bot token."""
    wrapped, data_key = await keys.make(KeyContext(ENVIRONMENT, KEY.client_id, INSTALLATION))
    place = TokenContext(
        environment=ENVIRONMENT,
        key=KEY,
        installation_id=INSTALLATION,
        user_id="",
        kind=TokenKind.BOT,
        slot=TokenSlot.ACCESS,
        dek_id=wrapped.dek_id,
        generation=1,
    )
    sealed = await data_key.seal(TOKEN, place, None)
    admin = await asyncpg.connect(
        databases.admin_url.reveal(), database=owner.reveal().rpartition("/")[2]
    )
    try:
        await admin.execute(
            "INSERT INTO vault.installation VALUES ($1, 'client', 'A0APP', '', 'T0TEAM',"
            " 'tenant', 'active', 1, 'Northwind', 'U0BOT', '{chat:write}', now())",
            INSTALLATION,
        )
        await admin.execute(
            "INSERT INTO vault.wrapped_dek VALUES ($1, $2, $3, $4)",
            wrapped.dek_id,
            INSTALLATION,
            wrapped.kek_version,
            wrapped.wrapped,
        )
        await admin.execute(
            "INSERT INTO vault.sealed_token VALUES ($1, 'bot', 'access', '', 1, $2, $3, $4)",
            INSTALLATION,
            wrapped.dek_id,
            sealed.sealed,
            sealed.ref,
        )
    finally:
        await admin.close()
