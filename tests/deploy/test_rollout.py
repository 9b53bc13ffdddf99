"""Two replicas of every service under traffic, while one thing after the other is replaced.

Nothing may fail: not a request of Slack's, not a read of a token, not a question.
"""

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from functools import partial

import aiohttp
import pytest

from interlock_cli.product import DATABASES
from tests.support.compose_load import Traffic, signing_secret, under_traffic, until
from tests.support.compose_stack import BUILD_S, SERVICES, Stack, Walk, more_services, second

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]

# Longer than four services take to be replaced, twice.
KEY_STARTS_AFTER_S = 60
# The line that docs/operations.md adds to `.env`.
BOTH_SECRETS = {
    "INTERLOCK_SLACK_PREVIOUS_SIGNING_SECRET_FILE": "/run/interlock/slack-previous-signing-secret"
}
# Prints the serial number that the vault serves, once it is not the one before.
SERIAL = """
import ssl, time
from cryptography import x509
ends = time.monotonic() + 90
while time.monotonic() < ends:
    pem = ssl.get_server_certificate(("127.0.0.1", 8443))
    serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
    if serial != BEFORE:
        break
    time.sleep(0.5)
print(serial)
"""
# As our migrations do: nobody queues behind one that waits for a table. A column of a
# partitioned table is one of its partitions too.
EVERY_TABLE = """
DO $$
DECLARE
    each regclass;
BEGIN
    FOR each IN
        SELECT oid FROM pg_class
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'alembic_version'
            AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
    LOOP
        LOOP
            BEGIN
                SET LOCAL lock_timeout = '1s';
                EXECUTE format('ALTER TABLE %s CHANGE', each);
                EXIT;
            EXCEPTION WHEN lock_not_available THEN
                PERFORM pg_sleep(1);
            END;
        END LOOP;
        COMMIT;
    END LOOP;
END
$$
"""


@pytest.fixture(scope="module")
def pair(stack: Stack, walked: Walk) -> Iterator[Stack]:
    """Start a second replica of every service, and the container that calls them."""
    stack.up(*more_services())
    yield stack
    stack.keep_logs()
    stack.compose("rm", "--stop", "--force", *more_services())


async def replace(
    traffic: Traffic, stack: Stack, *services: str, environ: Mapping[str, str] | None = None
) -> None:
    """Put new containers in the place of all replicas, one replica of each at a time."""
    for number, edge in enumerate(stack.edges):
        names = services if number == 0 else tuple(map(second, services))
        is_edge = "gateway-edge" in services
        if is_edge:
            await traffic.door.leave(edge)
        await asyncio.to_thread(partial(stack.replace, *names, environ=environ))
        if is_edge:
            traffic.door.enter(edge)


@pytest.mark.parametrize("service", SERVICES)
async def test_rolling_replacement_fails_nothing(pair: Stack, service: str) -> None:
    """New containers take the place of both replicas, one by one, and no request fails."""
    async with under_traffic(pair) as traffic:
        await replace(traffic, pair, service)


async def test_keys_and_certificates_are_replaced_under_traffic(pair: Stack) -> None:
    """Grant key, certificates and Slack's signing secret change, and nothing is refused.

    A new grant key signs once all who verify know it. While it waits for its time all
    certificates are issued anew, and the vault serves its new one without a restart. The edges
    take what is signed with the old and with the new secret of Slack's; once Slack itself has
    changed over and they have dropped the old one, they refuse it.
    """
    old, new = signing_secret(pair), secrets.token_hex(16)
    (pair.secrets / "signing_secret").write_text(new)
    (pair.secrets / "previous_signing_secret").write_text(old)
    soon = {"ROTATE_AFTER_SECONDS": str(KEY_STARTS_AFTER_S)}
    async with under_traffic(pair) as traffic:
        [key] = traffic.last_keys()
        rotate = ("run", "--rm", "keys", "rotate", "edge-grants")
        await asyncio.to_thread(partial(pair.compose, *rotate, environ=soon))
        services = ("identity", "token-vault", "gateway-worker", "gateway-edge")
        await replace(traffic, pair, *services, environ=BOTH_SECRETS)
        traffic.door.sign_with(old, new)
        before = await _serial(pair, other_than=0)
        await asyncio.to_thread(pair.compose, "run", "--rm", "keys", "renew")
        assert await _serial(pair, other_than=before) != before
        await until(lambda: _is_everywhere(pair, traffic, old, new))
    await asyncio.to_thread(pair.restart_sandbox)
    (pair.secrets / "previous_signing_secret").unlink()
    async with under_traffic(pair) as traffic, aiohttp.ClientSession() as http:
        await replace(traffic, pair, "gateway-edge")
        assert [await traffic.door.knock(http, each, old) for each in pair.edges] == ["401"] * 2
        await until(lambda: traffic.last_keys() not in ([], [key]))
        await until(lambda: _is_everywhere(pair, traffic, new))


def _is_everywhere(stack: Stack, traffic: Traffic, *secrets: str) -> bool:
    """Tell whether each edge has said yes to each secret."""
    return all(traffic.door.accepted[edge, each] for edge in stack.edges for each in secrets)


async def _serial(stack: Stack, *, other_than: int) -> int:
    code = SERIAL.replace("BEFORE", str(other_than))
    return int(await asyncio.to_thread(stack.python, "token-vault", code))


async def test_databases_are_migrated_under_traffic(pair: Stack) -> None:
    """Databases are brought to the newest schema, and to a newer one, while the code runs.

    A later version's migrations may add to every table. What ran before goes on, and may
    be started anew on what it does not know yet; so does what runs when it is taken back.
    """
    async with under_traffic(pair) as traffic:
        await asyncio.to_thread(pair.compose, "run", "--rm", "databases")
        await asyncio.to_thread(_change_every_table, pair, "ADD COLUMN later text DEFAULT 'new'")
        try:
            await replace(traffic, pair, "identity", "token-vault", "gateway-worker")
        finally:
            await asyncio.to_thread(_change_every_table, pair, "DROP COLUMN later")


def _change_every_table(stack: Stack, change: str) -> None:
    """Alter each table of all databases, each in a transaction of its own as Postgres' owner."""
    for plan in DATABASES:
        statement = EVERY_TABLE.replace("CHANGE", change.replace("'", "''"))
        psql = ("psql", "--username=postgres", f"--dbname={plan.name}", "--command", statement)
        stack.compose("exec", "-T", "postgres", *psql)
