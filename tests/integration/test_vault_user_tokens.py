"""The installing person's own token, from Slack's consent to its end, with Slack's record.

A real vault process, Postgres and mTLS gRPC, and the sandbox's Slack.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import ask, refusal
from tests.chaos.install_premises import USER, Premises, premises


@pytest.fixture
async def here(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Premises]:
    """Run a vault that asks for the person's own token."""
    async with premises(cluster, tmp_path) as here, here.running():
        yield here


async def _read(here: Premises, user_id: str = USER) -> str:
    """Read a person's token for that person's event, as the worker does."""
    grant = here.house.slack_grant(slack_user_id=user_id)
    released: pb.ReadUserTokenResponse = await ask(
        here.house.tokens().ReadUserToken(pb.ReadUserTokenRequest(grant=grant), timeout=5)
    )
    return released.user_token


async def _reads_bot(here: Premises) -> bool:
    read = await here.house.read(here.house.slack_grant())
    return bool((await here.slack.call("auth.test", read.bot_token))["ok"])


async def test_a_persons_token_is_read_for_that_person_alone(here: Premises) -> None:
    """It is theirs and works; nobody else's event gets it, and each read is on record."""
    await here.install()
    token = await _read(here)
    assert (await here.slack.call("auth.test", token))["user_id"] == USER
    assert await refusal(_read(here, "U0MIA")) == (Kind.NOT_FOUND, "USER_TOKEN_NOT_FOUND")
    records = await here.house.records("token.read")
    assert [(each["token_kind"], each["outcome"]) for each in records] == [("user", "allowed")]
    assert await here.unstored() == []


async def test_a_revoked_person_leaves_the_bot_alone(here: Premises) -> None:
    """tokens_revoked is believed of the person once Slack refuses the token; the bot is apart."""
    await here.install()
    stale = await here.house.revocation("tokens_revoked", users=[USER], bots=["U0INTERLOCK"])
    assert (stale.users_purged, await _read(here) != "") == (0, True)
    await here.revoke_user()
    ended = await here.house.revocation("tokens_revoked", users=[USER], bots=["U0INTERLOCK"])
    assert ended.users_purged == 1
    assert await refusal(_read(here)) == (Kind.NOT_FOUND, "USER_TOKEN_NOT_FOUND")
    assert await _reads_bot(here)
    assert len(await here.house.records("user_token.purged")) == 1


async def test_a_reinstall_brings_the_persons_token_again(here: Premises) -> None:
    """After a revocation, one generation up; a late event about the old one ends nothing."""
    await here.install()
    first = await _read(here)
    await here.revoke_user()
    await here.install()
    second = await _read(here)
    assert second != first
    late = await here.house.revocation("tokens_revoked", users=[USER])
    assert late.users_purged == 0
    assert await _read(here) == second


async def test_an_uninstall_ends_the_persons_token_too(here: Premises) -> None:
    """Nothing of the workspace is taken by Slack afterwards, and nothing is stored."""
    await here.install()
    await here.house.uninstall()
    assert await here.living() == []
    assert not any((await here.snapshot()).values())
