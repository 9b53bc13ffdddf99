"""Rotation in running vaults: real gRPC and Postgres, and a Slack that keeps Slack's rules."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from yarl import URL

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.client import open_channel
from interlock_chassis.errors import Kind
from interlock_chassis.secret import Secret
from interlock_cli.data_folder import choose_ports
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import SCOPES, House, ask, open_house, refusal
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage
from interlock_token_vault.__main__ import exchange_lasting, running

_EDGE = "https://interlock.example"


@dataclass
class Premises:
    """A running vault with one install whose tokens rotate, and the Slack that it knows."""

    house: House
    slack: SlackStage
    folder: Path

    async def let_it_end(self, within: timedelta) -> None:
        """Have the stored access token end soon; Slack knows nothing of that."""
        await self.house.admin.execute(
            "UPDATE vault.sealed_token SET expires_at = clock_timestamp() + $1::interval"
            " WHERE slot = 'access'",
            within,
        )

    @asynccontextmanager
    async def replica(self, name: str) -> AsyncIterator[services.TokenServiceStub]:
        """Run one more vault on the same database."""
        house = self.house
        settings = house.settings.model_copy(
            update={
                "spool_dir": self.folder / name,
                "audit_checkpoint_dir": self.folder / f"{name}-checkpoints",
                "ops_listen": f"127.0.0.1:{choose_ports({'ops': 0})['ops']}",
            }
        )
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(running(settings, house.kms))
            channel = await stack.enter_async_context(
                open_channel(
                    f"127.0.0.1:{port}",
                    house.ca.issue("gateway-worker", house.folder / "tls"),
                    server="token-vault",
                )
            )
            yield services.TokenServiceStub(channel)

    async def read(
        self, vault: services.TokenServiceStub, *, newer_than: int = 0
    ) -> tuple[str, int]:
        """Read the bot token as a worker does; returns it with its generation."""
        request = pb.ReadBotTokenRequest(
            grant=self.house.slack_grant(), newer_than_generation=newer_than
        )
        released: pb.ReadBotTokenResponse = await ask(vault.ReadBotToken(request, timeout=5))
        return released.bot_token, released.generation

    async def exchanges(self) -> int:
        """Count the refreshes that reached Slack; as many are in the audit log."""
        calls = (await self.slack.see("calls", method="oauth.v2.access"))["calls"]
        asked = [call for call in calls if call["args"].get("grant_type") == "refresh_token"]
        assert len(await self.house.records("token.refresh_started")) == len(asked)
        return len(asked)

    @asynccontextmanager
    async def told_of_changes(self) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set whenever a chain changes."""
        change = asyncio.Event()

        def hear(*_: object) -> None:
            change.set()

        await self.house.admin.add_listener("vault_rotation", hear)
        try:
            yield change
        finally:
            await self.house.admin.remove_listener("vault_rotation", hear)


@pytest.fixture(params=[0, 30], ids=["strict", "forgiving"])
async def premises(
    request: pytest.FixtureRequest, cluster: ScratchDatabases, tmp_path: Path
) -> AsyncIterator[Premises]:
    """Give an install with rotation, at a Slack without and with a grace period."""
    async with _premises(cluster, tmp_path, has_rotation=True, grace_s=request.param) as made:
        yield made


@asynccontextmanager
async def _premises(
    cluster: ScratchDatabases, tmp_path: Path, *, has_rotation: bool, grace_s: int
) -> AsyncIterator[Premises]:
    async with (
        slack_stage(token_rotation=has_rotation, refresh_grace_s=grace_s) as slack,
        open_house(
            cluster,
            tmp_path,
            spool_dir=tmp_path / "spool",
            slack_api_url=URL(slack.api_url),
            slack_client_id=CLIENT_ID,
            slack_client_secret_file=Secret(CLIENT_SECRET),
            public_url=URL(_EDGE),
        ) as house,
    ):
        code = await slack.code(scope=",".join(SCOPES))
        redirect_uri = slack.config.app.redirect_urls[0]
        grant = house.install_grant()
        await ask(house.installer().StartInstall(pb.StartInstallRequest(grant=grant), timeout=5))
        await ask(
            house.installer().CompleteOAuthInstall(
                pb.CompleteOAuthInstallRequest(grant=grant, code=code, redirect_uri=redirect_uri),
                timeout=10,
            )
        )
        yield Premises(house, slack, tmp_path)


async def test_sixty_four_readers_of_an_ending_token(premises: Premises) -> None:
    """Four vaults, one exchange, and one new token for everybody."""
    async with AsyncExitStack() as stack:
        vaults = [premises.house.tokens()] + [
            await stack.enter_async_context(premises.replica(f"replica-{number}"))
            for number in range(3)
        ]
        first, _ = await premises.read(vaults[0])
        await premises.let_it_end(timedelta(seconds=60))
        reads = [premises.read(vaults[number % 4]) for number in range(64)]
        released = set(await asyncio.gather(*reads))
    [(token, generation)] = released
    assert generation == 2
    assert token != first
    assert (await premises.slack.call("auth.test", token))["ok"]
    assert await premises.exchanges() == 1
    assert len(await premises.house.records("token.rotated")) == 1
    assert len(await premises.house.records("token.read")) == 65


async def test_a_due_token_is_served_and_refreshed_meanwhile(premises: Premises) -> None:
    """Before its last five minutes nobody waits for the new token; the scheduler brings it."""
    vault = premises.house.tokens()
    await premises.let_it_end(timedelta(hours=1))
    assert (await premises.read(vault))[1] == 1
    async with premises.told_of_changes() as change, asyncio.timeout(20):
        while (await premises.read(vault))[1] == 1:
            await change.wait()
            change.clear()
    assert await premises.exchanges() == 1


async def test_a_reader_whose_token_slack_refuses_gets_a_newer_one(premises: Premises) -> None:
    """Only if Slack says so too: otherwise nothing is exchanged."""
    vault = premises.house.tokens()
    token, generation = await premises.read(vault)
    mistaken = premises.read(vault, newer_than=generation)
    assert await refusal(mistaken) == (Kind.UNAVAILABLE, "REFRESH_PENDING")
    assert await premises.exchanges() == 0
    await premises.slack.call("auth.revoke", token)
    newer, above = await premises.read(vault, newer_than=generation)
    assert above == generation + 1
    assert (await premises.slack.call("auth.test", newer))["ok"]


async def test_a_chain_that_slack_ended_says_so(premises: Premises) -> None:
    """Someone else spent the refresh token: loud, and refused in the last five minutes."""
    vault = premises.house.tokens()
    await premises.slack.do("uninstall")
    await premises.let_it_end(timedelta(seconds=60))
    assert await refusal(premises.read(vault)) == (Kind.PRECONDITION, "NEEDS_REINSTALL")
    assert len(await premises.house.records("token.refresh_refused")) == 1
    standing = await premises.house.admin.fetchval("SELECT standing FROM vault.rotation")
    assert standing == "needs_reinstall"
    async with asyncio.timeout(20):
        while not premises.house.identity.reports:  # noqa: ASYNC110 - Identity sets no event.
            await asyncio.sleep(0.1)
    assert premises.house.identity.reports == [("T0NORTHWIND", True)]


# Slack has refused the refresh token for good, whatever its grace.
@pytest.mark.parametrize("premises", [0], indirect=True, ids=["strict"])
@pytest.mark.parametrize(
    ("administrator", "told"),
    [pytest.param("U0BEN", "U0BEN", id="linked"), pytest.param("", "U0ADA", id="who-installed")],
)
async def test_one_person_is_written_to_by_the_vault(
    premises: Premises, administrator: str, told: str
) -> None:
    """RF-09: identity's administrator, else who installed the app; the token goes nowhere else."""
    house, slack = premises.house, premises.slack
    house.identity.administrator = administrator
    refused = {"kind": "error", "error": "invalid_refresh_token", "count": 100}
    await slack.do("faults", method="oauth.v2.access", **refused)
    await premises.let_it_end(timedelta(minutes=20))
    async with asyncio.timeout(30):
        while not (calls := (await slack.see("calls", method="chat.postMessage"))["calls"]):  # noqa: ASYNC110 - Slack sets no event.
            await asyncio.sleep(0.1)
        # One more round of the same.
        while house.identity.asked_for_notices < 2:  # noqa: ASYNC110 - As above.
            await asyncio.sleep(0.1)
    calls = (await slack.see("calls", method="chat.postMessage"))["calls"]
    assert [call["args"]["channel"] for call in calls] == [told]
    assert f"<{_EDGE}/work-apps/slack/|the dashboard>" in calls[0]["args"]["text"]
    [sent] = await house.records("notice.sent")
    assert (sent["subject"], sent["team_id"]) == (told, "T0NORTHWIND")
    assert await house.records("token.read") == []


async def test_lasting_tokens_are_exchanged_once_rotation_is_on(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """The command gives each one a pair; before the switch, and again, it changes nothing."""
    async with _premises(cluster, tmp_path, has_rotation=False, grace_s=0) as premises:
        house, vault = premises.house, premises.house.tokens()
        lasting, generation = await premises.read(vault)

        async def command() -> tuple[str, int]:
            await exchange_lasting(house.settings, house.kms, asyncio.Event())
            return await premises.read(vault)

        assert await command() == (lasting, generation)
        await premises.slack.do("rules", rotation={"on": True})
        token, newer = await command()
        assert (token != lasting, newer) == (True, generation + 1)
        assert await command() == (token, newer)
        # The old token lives until the new pair is refreshed.
        assert (await premises.slack.call("auth.test", lasting))["ok"]
        assert len(await house.records("token.rotated")) == 1
