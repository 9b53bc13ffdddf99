"""Two replicas of every service under traffic, while one thing after the other is replaced.

Nothing may fail: not a request of Slack's, not a read of a token, not a question.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.compose_load import Traffic, under_traffic, until
from tests.support.compose_stack import BUILD_S, SERVICES, Stack, Walk, more_services, second

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]

# Longer than four services take to be replaced, twice.
KEY_STARTS_AFTER_S = 60
SERIAL = """
import ssl
from cryptography import x509
pem = ssl.get_server_certificate(("127.0.0.1", 8443))
print(x509.load_pem_x509_certificate(pem.encode()).serial_number)
"""


@pytest.fixture(scope="module")
def pair(stack: Stack, walked: Walk) -> Iterator[Stack]:
    """Start a second replica of every service, and the container that calls them."""
    stack.up(*more_services())
    yield stack
    stack.keep_logs()
    stack.compose("rm", "--stop", "--force", *more_services())


async def replace(traffic: Traffic, stack: Stack, *services: str) -> None:
    """Put new containers in the place of all replicas, one replica of each at a time."""
    for number, edge in enumerate(stack.edges):
        names = services if number == 0 else tuple(map(second, services))
        is_edge = "gateway-edge" in services
        if is_edge:
            await traffic.door.leave(edge)
        await asyncio.to_thread(stack.replace, *names)
        if is_edge:
            traffic.door.enter(edge)


@pytest.mark.parametrize("service", SERVICES)
async def test_rolling_replacement_fails_nothing(pair: Stack, service: str) -> None:
    """New containers take the place of both replicas, one by one, and no request fails."""
    async with under_traffic(pair) as traffic:
        await replace(traffic, pair, service)


async def test_signing_key_is_replaced_under_traffic(pair: Stack) -> None:
    """A new grant key of the edge signs once all who verify know it, and nothing is refused."""
    soon = {"ROTATE_AFTER_SECONDS": str(KEY_STARTS_AFTER_S)}
    async with under_traffic(pair) as traffic:
        [old] = traffic.last_keys()
        await asyncio.to_thread(
            lambda: pair.compose("run", "--rm", "keys", "rotate", "edge-grants", environ=soon)
        )
        await replace(traffic, pair, "identity", "token-vault", "gateway-worker", "gateway-edge")
        await until(lambda: traffic.last_keys() not in ([], [old]))


async def test_new_certificates_are_taken_up_under_traffic(pair: Stack) -> None:
    """All certificates are issued anew; the vault serves its new one, and no call fails."""
    before = pair.python("token-vault", SERIAL)
    async with under_traffic(pair):
        await asyncio.to_thread(pair.compose, "run", "--rm", "keys", "renew")
        await until(lambda: pair.python("token-vault", SERIAL) != before)


async def test_databases_are_migrated_under_traffic(pair: Stack) -> None:
    """Roles, databases and migrations are brought to the newest while the code runs."""
    async with under_traffic(pair):
        await asyncio.to_thread(pair.compose, "run", "--rm", "databases")
