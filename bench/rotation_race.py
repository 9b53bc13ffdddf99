"""Sixteen events at once on a token that is about to end, here and with Bolt.

Slack is the sandbox's: a refresh token is good once, for as long afterwards as
it forgives, and no more than two tokens live. An event is authorised when
`auth.test` takes the token that it was given. Both sides meet a Slack that
forgives nothing and one that forgives for 30 s; what is told is the worse one.
"""

import asyncio
import logging
import os
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from grpc import aio
from slack_bolt.authorization.async_authorize import AsyncInstallationStoreAuthorize
from slack_bolt.context.async_context import AsyncBoltContext
from slack_sdk.oauth.installation_store import Installation
from slack_sdk.oauth.installation_store.sqlalchemy import AsyncSQLAlchemyInstallationStore
from slack_sdk.web.async_client import AsyncWebClient
from sqlalchemy.ext.asyncio import create_async_engine
from yarl import URL

from bench.load import run
from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.client import open_channel
from interlock_chassis.logs import configure_logging
from interlock_chassis.secret import Secret
from interlock_cli.data_folder import choose_ports
from interlock_cli.embedded_postgres import EmbeddedPostgres, find_binaries
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import SCOPES, House, open_house
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage
from interlock_token_vault.__main__ import running

_EVENTS = 16
_REPLICAS = 4
_GRACES_S = (0, 30)
_LEFT = timedelta(seconds=60)
_TIMEOUT_S = 5.0
_TEAM = "T0NORTHWIND"


@dataclass(frozen=True)
class _Race:
    """What sixteen events came to.

    Attributes:
        authorised: Events whose token Slack took.
        exchanges: How often Slack was asked for a new token.
    """

    authorised: int
    exchanges: int


def rotation_race() -> Mapping[str, float]:
    """Count the events that are authorised, and the exchanges that it takes."""
    # Otherwise each install and refusal prints a line.
    configure_logging("bench", "error")
    logging.getLogger("slack_bolt").setLevel(logging.CRITICAL)
    with _open_postgres() as postgres, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "BasicAuth is deprecated", DeprecationWarning)
        ours, bolts = run(_measure(postgres))
    exchanges = max(race.exchanges for race in ours)
    return {
        "rotation_race_authorised": min(race.authorised for race in ours),
        "rotation_race_exchanges": exchanges,
        "exchanges": exchanges,
        "rotation_race_bolt_authorised": min(race.authorised for race in bolts),
        "rotation_race_bolt_exchanges": max(race.exchanges for race in bolts),
    }


async def _measure(postgres: EmbeddedPostgres) -> tuple[list[_Race], list[_Race]]:
    cluster = ScratchDatabases(postgres.admin_url)
    ours = [await _race_vaults(cluster, grace_s) for grace_s in _GRACES_S]
    bolts = [await _race_bolt(postgres, grace_s) for grace_s in _GRACES_S]
    return ours, bolts


@contextmanager
def _open_postgres() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "pg", binaries=find_binaries(os.environ))
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


async def _count(slack: SlackStage, tokens: list[str]) -> _Race:
    """Ask Slack what came of it, and what it was asked."""
    answers = [await slack.call("auth.test", token) for token in tokens]
    calls = (await slack.see("calls", method="oauth.v2.access"))["calls"]
    refreshes = [call for call in calls if call["args"].get("grant_type") == "refresh_token"]
    return _Race(sum(bool(answer["ok"]) for answer in answers), len(refreshes))


async def _race_vaults(cluster: ScratchDatabases, grace_s: int) -> _Race:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlock-bench-")))
        slack = await stack.enter_async_context(
            slack_stage(token_rotation=True, refresh_grace_s=grace_s)
        )
        house = await stack.enter_async_context(
            open_house(
                cluster,
                folder,
                spool_dir=folder / "spool",
                slack_api_url=URL(slack.api_url),
                slack_client_id=CLIENT_ID,
                slack_client_secret_file=Secret(CLIENT_SECRET),
            )
        )
        await _install(house, slack)
        others = [_replica(house, number) for number in range(1, _REPLICAS)]
        channels = [await stack.enter_async_context(each) for each in others]
        vaults = [house.tokens(), *(services.TokenServiceStub(each) for each in channels)]
        await house.admin.execute(
            "UPDATE vault.sealed_token SET expires_at = clock_timestamp() + $1::interval"
            " WHERE slot = 'access'",
            _LEFT,
        )

        async def read(number: int) -> str:
            request = pb.ReadBotTokenRequest(grant=house.slack_grant())
            try:
                released: pb.ReadBotTokenResponse = await vaults[number % _REPLICAS].ReadBotToken(
                    request, timeout=_TIMEOUT_S
                )
            except aio.AioRpcError:
                return ""
            return released.bot_token

        return await _count(slack, await asyncio.gather(*map(read, range(_EVENTS))))


async def _install(house: House, slack: SlackStage) -> None:
    code = await slack.code(scope=",".join(SCOPES))
    grant = house.install_grant()
    await house.installer().StartInstall(pb.StartInstallRequest(grant=grant), timeout=5)
    request = pb.CompleteOAuthInstallRequest(
        grant=grant, code=code, redirect_uri=slack.config.app.redirect_urls[0]
    )
    await house.installer().CompleteOAuthInstall(request, timeout=20)


@asynccontextmanager
async def _replica(house: House, number: int) -> AsyncIterator[aio.Channel]:
    """Run one more vault on the same database."""
    settings = house.settings.model_copy(
        update={
            "spool_dir": house.folder / f"spool-{number}",
            "audit_checkpoint_dir": house.folder / f"checkpoints-{number}",
            "ops_listen": f"127.0.0.1:{choose_ports({'ops': 0})['ops']}",
        }
    )
    tls = house.ca.issue("gateway-worker", house.tls_dir)
    async with (
        running(settings, house.kms) as port,
        open_channel(f"127.0.0.1:{port}", tls, server="token-vault") as channel,
    ):
        yield channel


async def _race_bolt(postgres: EmbeddedPostgres, grace_s: int) -> _Race:
    """Have Bolt authorise the events as it does, each on its own, from slack_sdk's store."""
    name = f"bolt_{grace_s}"
    admin = await asyncpg.connect(postgres.admin_url.reveal())
    await admin.execute(f'CREATE DATABASE "{name}"')
    await admin.close()
    url = postgres.admin_of(name)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(url.reveal()),
        pool_size=_EVENTS,
    )
    try:
        async with slack_stage(token_rotation=True, refresh_grace_s=grace_s) as slack:
            store = AsyncSQLAlchemyInstallationStore(CLIENT_ID, engine)
            await store.create_tables()  # type: ignore[no-untyped-call] # It has no types.
            await store.async_save(_installation(await slack.installed()))
            client = AsyncWebClient(base_url=slack.api_url)
            authorize = AsyncInstallationStoreAuthorize(
                logger=logging.getLogger("slack_bolt"),
                client_id=CLIENT_ID,
                client_secret=CLIENT_SECRET,
                installation_store=store,
                client=client,
            )

            async def handle(_: int) -> str:
                context = AsyncBoltContext({"client": client})
                try:
                    result = await authorize(
                        context=context, enterprise_id=None, team_id=_TEAM, user_id="U0ADA"
                    )
                except Exception:  # noqa: BLE001 - Whatever it raises, the event is not authorised.
                    return ""
                return (result.bot_token if result else None) or ""

            return await _count(slack, await asyncio.gather(*map(handle, range(_EVENTS))))
    finally:
        await engine.dispose()


def _installation(answer: dict[str, object]) -> Installation:
    """Describe the install as Bolt saves it, with a token that is about to end."""
    now = datetime.now(UTC)
    return Installation(
        app_id=str(answer["app_id"]),
        team_id=_TEAM,
        bot_token=str(answer["access_token"]),
        bot_user_id=str(answer["bot_user_id"]),
        bot_scopes=str(answer["scope"]),
        bot_refresh_token=str(answer["refresh_token"]),
        bot_token_expires_at=int((now + _LEFT).timestamp()),
        user_id="U0ADA",
        installed_at=now.timestamp(),
    )
