"""An incoming webhook's address, from Slack's consent to its end.

A real vault process, Postgres and mTLS gRPC, and the sandbox's Slack, which
posts what the address is given.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock_chassis.errors import Kind
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import refusal
from interlock_sandbox.testing import BOT_SCOPES
from tests.chaos.install_premises import Premises, premises

SCOPES = f"{BOT_SCOPES},incoming-webhook"
HELP, RANDOM = "C0NOHELP", "C0NORANDOM"
SEALED = "SELECT ref, sealed FROM vault.sealed_token WHERE kind = 'webhook'"


@pytest.fixture
async def here(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Premises]:
    """Run a vault whose app asks for an incoming webhook."""
    async with premises(cluster, tmp_path, SLACK_BOT_SCOPES=SCOPES) as here, here.running():
        yield here


async def _install(here: Premises, channel: str) -> str:
    """Install with a webhook for a channel; returns its address, which Slack alone gives out."""
    await here.install(scope=SCOPES, webhook_channel=channel)
    paths: list[str] = (await here.slack.see("secrets"))["webhook_urls"]
    return f"{here.slack.url}{paths[-1]}"


async def _post(here: Premises, address: str) -> tuple[int, str]:
    async with here.slack.http.post(address, json={"text": "hello"}) as response:
        return response.status, await response.text()


async def _sealed(here: Premises) -> list[Any]:
    return list(await here.house.admin.fetch(SEALED))


def _ref(here: Premises, address: str) -> str:
    return str(here.keys.ref(Secret(address)))


async def test_an_address_is_sealed_with_the_install_and_ends_with_the_app(
    here: Premises,
) -> None:
    """Row and record bear its fingerprint and not itself; the rightful tenant's last one stays.

    Another tenant's install changes nothing, and after an uninstall nothing is left.
    """
    first = await _install(here, HELP)
    assert await _post(here, first) == (200, "ok")
    [row] = await _sealed(here)
    assert row["ref"] == _ref(here, first)
    [record] = await here.house.records("webhook.stored")
    assert (record["token_kind"], record["token_ref"]) == ("webhook", row["ref"])
    secret = first.rsplit("/", 1)[1]
    assert secret.encode() not in row["sealed"]
    assert secret not in str(dict(record))

    before = await here.snapshot()
    taken = here.install("contoso", scope=SCOPES, webhook_channel=RANDOM)
    assert await refusal(taken) == (Kind.CONFLICT, "WORKSPACE_TAKEN")
    assert await here.snapshot() == before
    assert await _post(here, first) == (200, "ok")

    later = await _install(here, RANDOM)
    [row] = await _sealed(here)
    assert row["ref"] == _ref(here, later)
    await here.house.uninstall()
    assert await _post(here, later) == (404, "no_service")
    assert not any((await here.snapshot()).values())
