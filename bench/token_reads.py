"""The token vault against an empty RPC, and against what a Bolt app would use instead.

Every read is real: mutual TLS, a verified grant, a committed audit record, an
opened envelope. slack_sdk's store keeps its tokens in plaintext, in this
process, on the same Postgres. Ratios are the median of seven interleaved rounds.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from uuid import uuid4

import psutil
from google.protobuf.timestamp_pb2 import Timestamp
from slack_sdk.oauth.installation_store.sqlalchemy import AsyncSQLAlchemyInstallationStore

from bench.load import (
    Work,
    interleave,
    measure_latencies,
    measure_rate,
    percentile,
    ratio,
    run,
)
from bench.vault_site import APP_ID, READ, Site, Vault, open_site, sdk_installation
from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_gateway.adapters.worker_vault_grpc import GrpcVault
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.installation import InstallationId
from interlock_token_vault.migrations import VAULT_ROLE

_SECONDS = 5.0
_SMALL, _LARGE = 1000, 1_000_000
_PACED = timedelta(seconds=10)
_MIB = 1024 * 1024


@dataclass(frozen=True)
class _Sides:
    """The same question in every way it can be asked; by number, so that all ask alike."""

    site: Site
    vault: Vault
    read: Work
    empty: Work
    coalesced: Work
    sdk: AsyncSQLAlchemyInstallationStore

    async def find_in_sdk(self, number: int) -> object:
        """Find a bot in slack_sdk's store."""
        team = self.vault.teams[number % len(self.vault.teams)]
        bot = await self.sdk.async_find_bot(enterprise_id=None, team_id=team)
        assert bot
        return bot


@asynccontextmanager
async def _open_sides(site: Site, installations: int = READ) -> AsyncIterator[_Sides]:
    urls, teams = await site.database(installations)
    async with AsyncExitStack() as stack:
        sdk = await stack.enter_async_context(site.sdk_store(teams))
        vault = stack.enter_context(site.vault(urls, teams))
        channel = await stack.enter_async_context(site.channel(vault.port))
        to_empty = await stack.enter_async_context(site.channel(vault.empty_port))
        worker, grants = GrpcVault(channel), [Secret(grant) for grant in vault.grants]

        async def read_coalesced(number: int) -> object:
            return await worker.read_bot_token(grants[number % len(grants)], 0)

        read = _reading(services.TokenServiceStub(channel), vault.grants)
        # Every key and grant is used once before anything is measured.
        await asyncio.gather(*(read(number) for number in range(len(grants))))
        yield _Sides(
            site=site,
            vault=vault,
            read=read,
            empty=_reading(services.TokenServiceStub(to_empty), vault.grants),
            coalesced=read_coalesced,
            sdk=sdk,
        )


def _reading(tokens: services.TokenServiceStub, grants: list[str]) -> Work:
    requests = [pb.ReadBotTokenRequest(grant=grant) for grant in grants]

    async def read(number: int) -> object:
        request = requests[number % len(requests)]
        answer = await tokens.ReadBotToken(request, timeout=_SECONDS)
        assert answer.bot_token
        return answer

    return read


def token_read_vs_empty_rpc() -> Mapping[str, float]:
    """Compare 32 readers with 32 callers of an empty RPC."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            rates = await interleave({"read": sides.read, "empty": sides.empty}, 32)
        return {
            "token_read_vs_empty_rpc": ratio(rates, "read", "empty"),
            "token_read_rps": median(rates["read"]),
            "empty_rpc_rps": median(rates["empty"]),
        }

    with open_site() as site:
        return run(measure(site))


def token_read_vs_sdk_store() -> Mapping[str, float]:
    """Compare 32 readers with 32 callers of slack_sdk's store."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            rates = await interleave({"read": sides.read, "sdk": sides.find_in_sdk}, 32)
        return {
            "token_read_vs_sdk_store": ratio(rates, "read", "sdk"),
            "sdk_store_find_rps": median(rates["sdk"]),
        }

    with open_site() as site:
        return run(measure(site))


def token_reads_coalesced_vs_sdk_store() -> Mapping[str, float]:
    """Compare 128 readers of one worker, whose client asks for many at once."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            rates = await interleave({"read": sides.coalesced, "sdk": sides.find_in_sdk}, 128)
        return {
            "token_reads_coalesced_vs_sdk_store": ratio(rates, "read", "sdk"),
            "token_reads_coalesced_rps": median(rates["read"]),
        }

    with open_site() as site:
        return run(measure(site))


def token_read_c1_vs_empty_rpc() -> Mapping[str, float]:
    """Compare one reader alone, who has nobody to share a commit with."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            rates = await interleave({"read": sides.read, "empty": sides.empty}, 1)
        return {
            "token_read_c1_vs_empty_rpc": ratio(rates, "read", "empty"),
            "token_read_c1_rps": median(rates["read"]),
        }

    with open_site() as site:
        return run(measure(site))


def token_read_p99_ms_at_1000() -> Mapping[str, float]:
    """Measure the slowest hundredth of a thousand reads a second, once warm."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            await measure_rate(sides.read, 32)
            latencies = await measure_latencies(sides.read, 1000, _PACED)
        return {"token_read_p99_ms_at_1000": percentile(latencies, 0.99) * 1000}

    with open_site() as site:
        return run(measure(site))


def read_flat_1e3_1e6() -> Mapping[str, float]:
    """Compare the latency of one reader at a million installations with that at a thousand."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site, _SMALL) as small, _open_sides(site, _LARGE) as large:
            rates = await interleave({"small": small.read, "large": large.read}, 1)
        # One caller's rate is the inverse of its latency.
        return {"read_flat_1e3_1e6": ratio(rates, "small", "large")}

    with open_site() as site:
        return run(measure(site))


def audit_commits_per_s() -> Mapping[str, float]:
    """Count the records that 64 callers have committed, each waiting for its own."""
    origin = Origin(
        actor="gateway-worker",
        rpc="/interlock.token_vault.v1.TokenService/ReadBotToken",
        purpose="app_mention",
        grant_id="event-0123456789abcdef",
        subject="U0MIA",
        request_id="0123456789abcdef",
    )
    event = AuditEvent(
        action="token.read",
        origin=origin,
        installation_id=InstallationId(uuid4()),
        team_id="T0NORTHWIND",
        token_kind="bot",  # noqa: S106 - The kind of a token.
        token_ref="0" * 32,
        generation=1,
        kek_version="local-1",
        dek_source="cache",
    )

    async def measure(site: Site) -> Mapping[str, float]:
        urls, _ = await site.database(1)
        async with (
            open_pool(urls.roles[VAULT_ROLE], application="bench") as pool,
            open_journal(pool, new_id=uuid4) as journal,
        ):
            rates = await interleave({"commit": lambda _: journal.record([event])}, 64)
        return {"audit_commits_per_s": median(rates["commit"])}

    with open_site() as site:
        return run(measure(site))


def save_vs_sdk_store() -> Mapping[str, float]:
    """Compare 32 callers who save an app's installations with slack_sdk's store."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides, site.channel(sides.vault.port, "app/reports") as way:
            store = services.InstallationStoreServiceStub(way)
            teams = sides.vault.teams

            async def save(number: int) -> object:
                request = _save_request(teams[number % len(teams)])
                return await store.SaveInstallation(request, timeout=_SECONDS)

            # As slack_sdk's store has every team, before anything is measured.
            for first in range(0, len(teams), 32):
                await asyncio.gather(*(save(number) for number in range(first, first + 32)))

            async def save_in_sdk(number: int) -> object:
                return await sides.sdk.async_save(sdk_installation(teams[number % len(teams)]))

            rates = await interleave({"vault": save, "sdk": save_in_sdk}, 32)
        return {
            "save_vs_sdk_store": ratio(rates, "vault", "sdk"),
            "save_rps": median(rates["vault"]),
        }

    with open_site() as site:
        return run(measure(site))


def vault_rss_mib() -> Mapping[str, float]:
    """Measure the memory of the vault process after a thousand installations were read."""

    async def measure(site: Site) -> Mapping[str, float]:
        async with _open_sides(site) as sides:
            await measure_rate(sides.read, 32)
            await measure_rate(sides.coalesced, 128)
            return {"vault_rss_mib": psutil.Process(sides.vault.pid).memory_info().rss / _MIB}

    with open_site() as site:
        return run(measure(site))


def _save_request(team: str) -> pb.SaveInstallationRequest:
    given = sdk_installation(team)
    at = Timestamp()
    at.FromDatetime(datetime.fromtimestamp(given.installed_at, UTC))
    bot = pb.BotRecord(
        bot_token=given.bot_token or "",
        bot_id=given.bot_id or "",
        bot_user_id=given.bot_user_id or "",
        bot_scopes=given.bot_scopes,
    )
    return pb.SaveInstallationRequest(
        installation=pb.InstallationRecord(
            app_id=APP_ID,
            team_id=team,
            team_name=given.team_name or "",
            user_id=given.user_id,
            bot=bot,
            installed_at=at,
        )
    )
