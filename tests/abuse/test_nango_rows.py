"""Installs by Nango, and what may be wrong with its webhooks: one test id per row.

The real vault over mTLS gRPC with a real Postgres, the sandbox's Nango and Slack.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import TIMEOUT_S, Away, House, ask, open_house, refusal
from interlock_sandbox.nango.testing import API_KEY, INTEGRATION, SIGNING_KEY
from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET
from interlock_token_vault.credential_sources import ConnectionRef
from interlock_tokens.grants import AdminPurpose, Workspace
from tests.support.nango_stage import TEAM, NangoStage, nango_stage, signed

NORTHWIND = Workspace("", TEAM, is_enterprise_install=False, app_id="A0INTERLOCK")
PREVIOUS_KEY = "the-key-before-this-one"
NOTHING_STORED = {"installation": 0, "sealed_token": 0, "wrapped_dek": 0}


@dataclass
class Stage:
    """A vault with a Nango to ask."""

    house: House
    nango: NangoStage

    async def begin(self, tenant: str = "northwind", renews: Workspace | None = None) -> Any:
        """Open an install; returns the grant and the connect link."""
        grant = self.house.install_grant(tenant, source="nango")
        named = (
            pb.Installation(
                team_id=renews.team_id, enterprise_id=renews.enterprise_id, app_id=renews.app_id
            )
            if renews
            else None
        )
        started = await ask(
            self.house.installer().StartInstall(
                pb.StartInstallRequest(grant=grant, renews=named), timeout=TIMEOUT_S
            )
        )
        assert started.connect_session_token
        return grant, started.connect_link

    async def complete(self, grant: str, ref: ConnectionRef) -> pb.CompleteNangoInstallResponse:
        """Complete an install as edge does."""
        request = pb.CompleteNangoInstallRequest(
            grant=grant,
            provider_config_key=ref.provider_config_key,
            connection_id=ref.connection_id,
        )
        done: pb.CompleteNangoInstallResponse = await ask(
            self.house.installer().CompleteNangoInstall(request, timeout=TIMEOUT_S)
        )
        return done

    async def outcome(self, grant: str) -> pb.FindNangoInstallResponse:
        """Ask what came of an install as edge does."""
        request = pb.FindNangoInstallRequest(grant=grant)
        found: pb.FindNangoInstallResponse = await ask(
            self.house.installer().FindNangoInstall(request, timeout=TIMEOUT_S)
        )
        return found

    async def install(self, tenant: str = "northwind") -> ConnectionRef:
        """Install from beginning to end."""
        grant, link = await self.begin(tenant)
        ref = await self.nango.connect(link)
        await self.complete(grant, ref)
        return ref

    async def tell(self, body: dict[str, Any], *, key: str = SIGNING_KEY, **headers: str) -> None:
        """Deliver a webhook as edge does."""
        raw, own = signed(body, key)
        request = pb.ReceiveNangoWebhookRequest(body=raw, headers={**own, **headers})
        await ask(self.house.installer().ReceiveNangoWebhook(request, timeout=TIMEOUT_S))

    async def stored(self) -> dict[str, int]:
        """Count what is stored."""
        return {
            table: await self.house.admin.fetchval(f"SELECT count(*) FROM vault.{table}")  # noqa: S608 - Our own names.
            for table in NOTHING_STORED
        }

    async def hints_ignored(self) -> list[str]:
        """List why hints came to nothing."""
        return [each["outcome"] for each in await self.house.records("nango.hint_ignored")]

    async def read(self) -> pb.ReadBotTokenResponse:
        """Read the bot token as the worker does."""
        return await self.house.read(self.house.slack_grant(NORTHWIND))


def told(ref: ConnectionRef, tenant: str = "northwind", **changes: Any) -> dict[str, Any]:
    """Write what Nango tells of a new connection."""
    body = {
        "authMode": "OAUTH2",
        "connectionId": ref.connection_id,
        "environment": "dev",
        "from": "nango",
        "operation": "creation",
        "provider": "slack",
        "providerConfigKey": ref.provider_config_key,
        "success": True,
        "tags": {"tenantid": tenant},
        "type": "auth",
    }
    return {name: value for name, value in (body | changes).items() if value is not None}


@pytest.fixture
async def stage(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Stage]:
    """Give a running vault that knows two webhook keys, with nothing installed."""
    async with vault_stage(cluster, tmp_path) as stage:
        yield stage


@asynccontextmanager
async def vault_stage(
    cluster: ScratchDatabases, tmp_path: Path, *, token_rotation: bool = False
) -> AsyncIterator[Stage]:
    """Run a vault, and a Slack whose tokens rotate or not."""
    async with nango_stage(token_rotation=token_rotation) as nango:
        changes = {
            "slack_client_id": CLIENT_ID,
            "slack_client_secret_file": Secret(CLIENT_SECRET),
            "slack_api_url": URL(f"{nango.slack_url}/api/"),
            "slack_bot_scopes": ("chat:write", "commands"),
            "nango_url": URL(nango.url),
            "nango_secret_key_file": Secret(API_KEY),
            "nango_webhook_keys_file": Secret(f"{SIGNING_KEY}\n{PREVIOUS_KEY}\n"),
            "nango_environment": "dev",
        }
        async with open_house(cluster, tmp_path, **changes) as house:
            yield Stage(house, nango)


# Installing.


async def test_a_connection_becomes_an_installation_whose_token_stays_at_nango(
    stage: Stage,
) -> None:
    """The workspace is claimed with its connection; the token is fetched for a read, and works."""
    ref = await stage.install()
    assert stage.house.identity.claims == {("", TEAM): "northwind"}
    assert stage.house.identity.connections == {("", TEAM): ref.connection_id}
    rows = await stage.house.admin.fetch("SELECT slot FROM vault.sealed_token")
    assert [row["slot"] for row in rows] == ["connection"]
    released = await stage.read()
    assert await stage.nango.slack_takes(Secret(released.bot_token))
    assert released.generation == 1
    (record,) = await stage.house.records("token.read")
    assert (record["outcome"], record["dek_source"]) == ("allowed", "elsewhere")
    (connection,) = await stage.nango.connections()
    assert connection["metadata"] == {
        "kind": "work-app",
        "app": "slack",
        "tenantId": "northwind",
        "teamId": TEAM,
    }


async def test_many_readers_are_one_question_to_nango(stage: Stage) -> None:
    """Each has a record of its own; Nango's limit sees one request."""
    await stage.install()
    before = len(await stage.nango.requests("get_connection"))
    released = await asyncio.gather(*(stage.read() for _ in range(20)))
    assert len({each.bot_token for each in released}) == 1
    assert len(await stage.house.records("token.read")) == 20
    assert len(await stage.nango.requests("get_connection")) - before < 20


async def test_a_repeated_completion_answers_the_same_installation(stage: Stage) -> None:
    """A lost answer costs nothing."""
    grant, link = await stage.begin()
    ref = await stage.nango.connect(link)
    assert await stage.complete(grant, ref) == await stage.complete(grant, ref)


async def test_installing_again_renews_the_connection_and_makes_no_second(stage: Stage) -> None:
    """Reconnect keeps Nango's id and the vault's; the generation rises."""
    ref = await stage.install()
    grant, link = await stage.begin(renews=NORTHWIND)
    assert await stage.nango.connect(link) == ref
    assert (await stage.complete(grant, ref)).is_reinstall
    assert len(await stage.nango.connections()) == 1
    assert (await stage.read()).generation == 2


async def test_a_second_connection_replaces_the_stale_one(stage: Stage) -> None:
    """Without reconnecting, the connection before is deleted at Nango."""
    await stage.install()
    second = await stage.install()
    assert [each["connection_id"] for each in await stage.nango.connections()] == [
        second.connection_id
    ]


async def test_another_tenants_connection_is_refused(stage: Stage) -> None:
    """The tag decides: a session of one tenant completes nobody else's install."""
    grant, _ = await stage.begin("contoso")
    ref = await stage.nango.connected("northwind")
    assert await refusal(stage.complete(grant, ref)) == (Kind.FORBIDDEN, "CONNECTION_NOT_YOURS")
    assert await stage.stored() == NOTHING_STORED
    assert len(await stage.nango.connections()) == 1


async def test_a_workspace_of_another_tenant_stays_as_it_is(stage: Stage) -> None:
    """409 for the newcomer, whose connection goes; the rightful tenant's token lives on."""
    await stage.install()
    grant, link = await stage.begin("contoso")
    ref = await stage.nango.connect(link)
    assert await refusal(stage.complete(grant, ref)) == (Kind.CONFLICT, "WORKSPACE_TAKEN")
    assert await stage.nango.slack_takes(Secret((await stage.read()).bot_token))
    assert len(await stage.nango.connections()) == 1


@pytest.mark.parametrize("key", ["other-integration", ""])
async def test_another_integrations_connection_is_refused(stage: Stage, key: str) -> None:
    """Only the app's own integration counts."""
    grant, _ = await stage.begin()
    with pytest.raises(RemoteError):
        await stage.complete(grant, ConnectionRef(key, "x"))
    assert await stage.stored() == NOTHING_STORED


async def test_what_the_webhook_completed_is_told_to_who_started_it(stage: Stage) -> None:
    """With the grant alone: awaited, then the installation; a renewal is heard of as well."""
    grant, link = await stage.begin()
    assert await refusal(stage.outcome(grant)) == (
        Kind.PRECONDITION,
        "CONNECTION_AWAITED",
    )
    ref = await stage.nango.connect(link)
    await stage.tell(told(ref))
    first = await stage.outcome(grant)
    assert (first.installation.team_id, first.is_reinstall) == (TEAM, False)
    grant, link = await stage.begin(renews=NORTHWIND)
    assert await stage.nango.connect(link) == ref
    await stage.tell(told(ref, operation="override"))
    assert (await stage.outcome(grant)).is_reinstall
    assert (await stage.read()).generation == 2


async def test_a_connection_whose_token_rotates_is_read(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """Nango keeps what renews it to itself; what it shows is enough, before and after."""
    async with vault_stage(cluster, tmp_path, token_rotation=True) as stage:
        ref = await stage.install()
        first = await stage.read()
        assert first.bot_token.startswith("xoxe.")
        assert await stage.nango.slack_takes(Secret(first.bot_token))
        await stage.nango.adapter.fetch(ref, is_forced=True)
        second = await stage.read()
        assert second.bot_token != first.bot_token
        assert second.generation == first.generation + 1


async def test_a_direct_grant_completes_no_connection(stage: Stage) -> None:
    """The source is in the grant."""
    grant = stage.house.install_grant()
    ref = await stage.nango.connected()
    assert await refusal(stage.complete(grant, ref)) == (Kind.PRECONDITION, "INSTALL_NOT_OPEN")


async def test_a_swapped_connection_is_not_read(stage: Stage) -> None:
    """Whoever changes a tag at Nango gets no token out for the installation."""
    ref = await stage.install()
    path = f"/connections/{ref.connection_id}?provider_config_key={INTEGRATION}"
    await stage.nango.ask("PATCH", path, json={"tags": {"tenantId": "contoso"}})
    assert await refusal(stage.read()) == (Kind.FORBIDDEN, "CONNECTION_NOT_YOURS")
    assert len(await stage.house.records("token.unopened")) == 1


async def test_a_deleted_connection_needs_a_reinstall(stage: Stage) -> None:
    """Nobody has the token any more; nothing old is handed out."""
    ref = await stage.install()
    await stage.nango.adapter.delete(ref)
    assert await refusal(stage.read()) == (Kind.PRECONDITION, "NEEDS_REINSTALL")


async def test_a_restored_connection_is_released_from_its_hold(stage: Stage) -> None:
    """A backup holds its name only; the token that Nango gives is today's."""
    await stage.install()
    await stage.house.admin.execute(
        "INSERT INTO vault.freeze SELECT installation_id, 'held', 'restored'"
        " FROM vault.installation"
    )
    assert await refusal(stage.read()) == (Kind.PRECONDITION, "ON_HOLD")
    probed = [
        each
        async for each in stage.house.operator().ReleaseHold(
            pb.ReleaseHoldRequest(), timeout=TIMEOUT_S
        )
    ]
    assert [each.released for each in probed] == [True]
    assert await stage.nango.slack_takes(Secret((await stage.read()).bot_token))


async def test_an_uninstall_ends_the_connection_too(stage: Stage) -> None:
    """Slack's record, the vault and Nango agree that the app has gone."""
    await stage.install()
    token = Secret((await stage.read()).bot_token)
    grant = stage.house.admin_grant(AdminPurpose.UNINSTALL, NORTHWIND)
    await ask(stage.house.tokens().Uninstall(pb.UninstallRequest(grant=grant), timeout=TIMEOUT_S))
    assert not await stage.nango.slack_takes(token)
    assert await stage.stored() == NOTHING_STORED
    assert await stage.nango.connections() == []


async def test_a_vault_without_nango_says_so(cluster: ScratchDatabases, tmp_path: Path) -> None:
    """All three calls name what is missing, for those who may make them."""
    async with open_house(cluster, tmp_path) as house:
        grant, installer = house.install_grant(source="nango"), house.installer()
        raw, headers = signed({})
        complete = pb.CompleteNangoInstallRequest(
            grant=grant, provider_config_key=INTEGRATION, connection_id="x"
        )
        for call in (
            installer.StartInstall(pb.StartInstallRequest(grant=grant), timeout=5),
            installer.CompleteNangoInstall(complete, timeout=5),
            installer.ReceiveNangoWebhook(
                pb.ReceiveNangoWebhookRequest(body=raw, headers=headers), timeout=5
            ),
        ):
            assert await refusal(ask(call)) == (Kind.PRECONDITION, "NANGO_NOT_CONFIGURED")


# Webhooks.


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"x-nango-hmac-sha256": ""}, id="NW-01"),
        {"x-nango-hmac-sha256": "0" * 64},
        {"x-nango-hmac-sha256": "ä" * 64},
        {"x-nango-hmac-sha256": "", "x-nango-signature": "0" * 64},
    ],
)
async def test_only_the_hmac_counts(stage: Stage, headers: dict[str, str]) -> None:
    """The legacy signature is right and worth nothing; nothing is fetched, and it is on record."""
    grant, link = await stage.begin()
    ref = await stage.nango.connect(link)
    before = len(await stage.nango.requests("get_connection"))
    refused = await refusal(stage.tell(told(ref), **headers))
    assert refused == (Kind.UNAUTHENTICATED, "INVALID_SIGNATURE")
    assert len(await stage.nango.requests("get_connection")) == before
    assert await stage.stored() == NOTHING_STORED
    assert grant


@pytest.mark.parametrize("key", [SIGNING_KEY, pytest.param(PREVIOUS_KEY, id="NW-02")])
async def test_both_keys_of_a_rotation_count(stage: Stage, key: str) -> None:
    """A hint completes the open install of its tenant, whichever key signed it."""
    _, link = await stage.begin()
    await stage.tell(told(await stage.nango.connect(link)), key=key)
    assert await stage.nango.slack_takes(Secret((await stage.read()).bot_token))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"success": False, "tags": None, "connectionId": "gone"}, id="NW-03"),
        {"success": False},
        {"success": "true"},
        {"operation": "refresh"},
        {"type": "sync"},
        {"environment": "prod"},
        {"connectionId": 7},
        {"tags": {"tenantid": 7}},
        {"tags": []},
    ],
)
async def test_what_hints_at_nothing_stores_nothing(stage: Stage, changes: dict[str, Any]) -> None:
    """A failed creation, another environment, nonsense: 200, and the install stays open."""
    grant, link = await stage.begin()
    ref = await stage.nango.connect(link)
    await stage.tell(told(ref, **changes))
    assert await stage.stored() == NOTHING_STORED
    assert not (await stage.complete(grant, ref)).is_reinstall


@pytest.mark.parametrize(
    ("open_for", "tagged", "why"),
    [
        pytest.param("", "northwind", "NO_OPEN_INSTALL", id="NW-04"),
        ("contoso", "northwind", "NO_OPEN_INSTALL"),
        ("northwind", "contoso", "NO_OPEN_INSTALL"),
    ],
)
async def test_a_hint_without_an_open_install_claims_nothing(
    stage: Stage, open_for: str, tagged: str, why: str
) -> None:
    """Nobody asked, or another tenant did: on record, and nothing else."""
    if open_for:
        await stage.begin(open_for)
    ref = await stage.nango.connected("northwind")
    await stage.tell(told(ref, tagged))
    assert await stage.stored() == NOTHING_STORED
    assert stage.house.identity.claims == {}
    assert await stage.hints_ignored() == [why]


async def test_a_tag_that_only_the_webhook_has_is_not_believed(stage: Stage) -> None:
    """The connection itself says whose it is."""
    await stage.begin("contoso")
    ref = await stage.nango.connected("northwind")
    await stage.tell(told(ref, "contoso"))
    assert await stage.stored() == NOTHING_STORED
    assert await stage.hints_ignored() == ["CONNECTION_NOT_YOURS"]


@pytest.mark.parametrize("deliveries", [pytest.param(10, id="NW-05")])
async def test_many_deliveries_and_the_browser_are_one_install(
    stage: Stage, deliveries: int
) -> None:
    """Concurrent with the browser's own completion: one installation, one claim."""
    grant, link = await stage.begin()
    ref = await stage.nango.connect(link)
    settled = await asyncio.gather(
        stage.complete(grant, ref),
        *(stage.tell(told(ref)) for _ in range(deliveries)),
        return_exceptions=True,
    )
    assert [each for each in settled if isinstance(each, BaseException)] == []
    assert (await stage.complete(grant, ref)).installation.team_id == TEAM
    assert await stage.stored() == {"installation": 1, "sealed_token": 1, "wrapped_dek": 1}
    assert len(await stage.house.records("install.activated")) == 1


async def test_a_hint_after_the_install_is_nothing_new(stage: Stage) -> None:
    """Replayed while another install of the tenant is open, it does not use that one up."""
    ref = await stage.install()
    grant, link = await stage.begin()
    await stage.tell(told(ref))
    assert await stage.hints_ignored() == ["ALREADY_STORED"]
    assert (await stage.complete(grant, await stage.nango.connect(link))).is_reinstall


@pytest.mark.parametrize("what", [pytest.param("database", id="NW-06"), "identity"])
async def test_what_cannot_be_stored_is_to_be_sent_again(stage: Stage, what: str) -> None:
    """UNAVAILABLE, which edge answers with a 5xx; the same bytes then complete the install."""
    _, link = await stage.begin()
    ref = await stage.nango.connect(link)
    if what == "identity":
        stage.house.identity.error = Away()
    else:
        await stage.house.admin.execute("ALTER TABLE vault.install_attempt RENAME TO away")
    kind, _ = await refusal(stage.tell(told(ref)))
    assert kind is Kind.UNAVAILABLE
    stage.house.identity.error = None
    if what == "database":
        await stage.house.admin.execute("ALTER TABLE vault.away RENAME TO install_attempt")
    await stage.tell(told(ref))
    assert (await stage.stored())["installation"] == 1
