"""Tokens that Nango keeps: whose they are, how often it is asked, and installs cut anywhere."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import (
    FakeClaims,
    FakeKms,
    FakeNango,
    FakeSlack,
    Faults,
    ManualClock,
    MemoryStore,
    ProcessKilled,
    counting_ids,
)
from interlock_token_vault.connected_tokens import ConnectedTokens
from interlock_token_vault.credential_sources import (
    TENANT_TAG,
    ConnectionAwaited,
    ConnectionDead,
    ConnectionNotYours,
    ConnectionRef,
    Fetched,
    NangoBackingOff,
    NangoUnavailable,
)
from interlock_token_vault.domain.audit import Origin
from interlock_token_vault.domain.install import (
    BotIdentity,
    ExchangeAnswer,
    InstallInProgress,
    InstallNotOpen,
    SlackAnswerUnusable,
)
from interlock_token_vault.domain.installation import ClientId, InstallationKey, TenantId
from interlock_token_vault.install_ports import (
    LEASE,
    IdentityUnavailable,
    InstallAsk,
    Installed,
    SlackApp,
)
from interlock_token_vault.installing import Installing
from interlock_token_vault.key_lifecycle import KeyLifecycle, NotInEnterprise
from interlock_token_vault.vault import (
    InstallationNotFound,
    NeedsReinstall,
    ReadAsk,
    ReleasedToken,
    TokenVault,
)

ENVIRONMENT = "development"
INTEGRATION = "work-apps-slack"
NORTHWIND = TenantId("northwind")
TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
REF = ConnectionRef(INTEGRATION, "connection-1")
ORIGIN = Origin("operator", "/x/RekeyInstallation")
LONG = timedelta(minutes=20)


def fetched(token: str, *, tenant: str = "northwind", team: str = "T0TEAM") -> Fetched:
    """Make what Nango holds for a workspace."""
    answer = ExchangeAnswer(
        bot_token=Secret("of the day it was connected"),
        token_type="bot",
        app_id="A0APP",
        team_id=team,
        team_name="Northwind",
        enterprise_id="",
        enterprise_name="",
        is_enterprise_install=False,
        bot_user_id="U0BOT",
        scopes=("chat:write",),
    )
    return Fetched(REF, Secret(token), None, {TENANT_TAG: tenant}, answer)


@dataclass
class Stage:
    """Everything that outlives a vault process, and a way to start one."""

    faults: Faults = field(default_factory=Faults)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.kms = FakeKms(self.faults)
        self.store = MemoryStore(self.clock, chain_id=UUID(int=99), faults=self.faults)
        self.slack = FakeSlack(self.faults)
        self.claims = FakeClaims(self.faults)
        self.nango = FakeNango(self.faults)
        self.new_id = counting_ids()
        self.start_process()
        self.connect("xoxb-1")

    def start_process(self) -> None:
        """Start a vault process over what is there."""
        self.faults.restart()
        keys = KmsKeys(
            self.kms, fingerprint_key=Secret("k" * 32), clock=self.clock, new_id=self.new_id
        )
        self.vault = TokenVault(
            self.store,
            keys,
            environment=ENVIRONMENT,
            elsewhere=ConnectedTokens(
                store=self.store,
                keys=keys,
                source=self.nango,
                environment=ENVIRONMENT,
                clock=self.clock,
            ),
        )
        self.installing = Installing(
            store=self.store,
            keys=keys,
            slack=self.slack,
            claims=self.claims,
            app=SlackApp(ClientId("client"), ("chat:write",), "https://slack.com"),
            environment=ENVIRONMENT,
            new_id=self.new_id,
            connections=self.nango,
            integration=INTEGRATION,
        )

        self.lifecycle = KeyLifecycle(
            store=self.store,
            keys=keys,
            keks=self.kms,
            slack=self.slack,
            claims=self.claims,
            client_id=ClientId("client"),
            environment=ENVIRONMENT,
            connections=self.nango,
        )

    def connect(self, token: str, **changes: str) -> None:
        """Have Nango hold a living token."""
        self.nango.connections[REF] = fetched(token, **changes)
        self.slack.identities[token] = BotIdentity(
            "T0TEAM", "", "U0BOT", is_enterprise_install=False
        )

    async def begin(self, name: str = "one") -> InstallAsk:
        """Open an install and let identity know its grant."""
        ask = InstallAsk(
            grant=Secret(f"grant-{name}"),
            tenant_id=NORTHWIND,
            user_id="user-1",
            state_sha256="0" * 64,
            source="nango",
            expires_at=self.clock.now() + timedelta(minutes=15),
            origin=Origin("gateway-edge", "/x/CompleteNangoInstall", grant_id=f"jti-{name}"),
        )
        self.claims.tenant_of[f"grant-{name}"] = NORTHWIND
        await self.installing.start_connecting(ask, TEAM)
        return ask

    async def install(self, name: str = "one") -> Installed:
        """Install from beginning to end."""
        return await self.installing.complete_connection(await self.begin(name), REF)

    async def join(self, enterprise_id: str) -> None:
        """Let the workspace join an Enterprise, as Slack says of its token from then on."""
        known = self.slack.identities["xoxb-1"]
        self.slack.identities["xoxb-1"] = replace(known, enterprise_id=enterprise_id)

    async def read(self, newer_than: int = 0, key: InstallationKey = TEAM) -> ReleasedToken:
        """Read the bot token as the worker would."""
        ask = ReadAsk(key, Origin("gateway-worker", "/x/ReadBotToken"), newer_than)
        return await self.vault.read(ask)

    def outcomes(self, action: str) -> list[str]:
        """List how the records of an action ended."""
        return [
            record.event.outcome for record in self.store.records if record.event.action == action
        ]


@pytest.fixture
def stage() -> Stage:
    """Give a vault with nothing installed, and a connection."""
    return Stage()


async def test_readers_at_the_same_moment_are_one_question(stage: Stage) -> None:
    """Each has its own record; Nango is asked once."""
    await stage.install()
    before = stage.faults.calls["nango.fetch"]
    released = await asyncio.gather(*(stage.read() for _ in range(50)))
    assert stage.faults.calls["nango.fetch"] == before + 1
    assert {each.token.reveal() for each in released} == {"xoxb-1"}
    assert stage.outcomes("token.read") == ["allowed"] * 50


async def test_nothing_is_kept_between_two_reads(stage: Stage) -> None:
    """The next read asks again, and a failure hands out nothing old."""
    await stage.install()
    await stage.read()
    stage.faults.fail_next("nango.fetch", NangoUnavailable())
    with pytest.raises(NangoUnavailable):
        await stage.read()
    assert stage.outcomes("token.unopened") == ["NANGO_UNAVAILABLE"]


async def test_another_token_is_another_generation(stage: Stage) -> None:
    """What Nango refreshed by itself is told apart, once for all readers."""
    await stage.install()
    stage.connect("xoxb-2")
    assert [(await stage.read()).generation for _ in range(2)] == [2, 2]
    assert stage.outcomes("token.rotated") == ["allowed"]


async def test_a_refused_token_is_renewed_or_the_end(stage: Stage) -> None:
    """A reader whom Slack refused gets another token, or hears that there is none."""
    await stage.install()
    stage.nango.successors[REF] = fetched("xoxb-2")
    released = await stage.read(newer_than=1)
    assert (released.token.reveal(), released.generation) == ("xoxb-2", 2)
    assert (await stage.read(newer_than=1)).generation == 2
    with pytest.raises(NeedsReinstall):
        await stage.read(newer_than=2)


async def test_a_pause_of_nangos_is_forced_once(stage: Stage) -> None:
    """For 30 s Nango withholds a token that may be good; more force would be Slack's to bear."""
    await stage.install()
    stage.faults.fail_next("nango.fetch", *[NangoBackingOff() for _ in range(3)])
    assert (await stage.read()).token.reveal() == "xoxb-1"
    with pytest.raises(NangoBackingOff):
        await stage.read()
    stage.clock.advance(timedelta(seconds=31))
    assert (await stage.read()).token.reveal() == "xoxb-1"
    assert stage.faults.calls["nango.force"] == 2


async def test_a_dead_connection_needs_a_reinstall(stage: Stage) -> None:
    """Slack refuses what would renew it."""
    await stage.install()
    stage.faults.fail_next("nango.fetch", ConnectionDead())
    with pytest.raises(NeedsReinstall):
        await stage.read()


@pytest.mark.parametrize("changes", [{"tenant": "contoso"}, {"team": "T0OTHER"}])
async def test_what_became_anothers_is_not_read(stage: Stage, changes: dict[str, str]) -> None:
    """A connection whose tag or workspace changed gives its token to nobody."""
    await stage.install()
    stage.connect("xoxb-stolen", **changes)
    with pytest.raises(ConnectionNotYours):
        await stage.read()


async def test_an_imported_connection_makes_no_install_in_a_browser(stage: Stage) -> None:
    """Without Slack's own answer the workspace is nobody's word."""
    stage.nango.connections[REF] = replace(fetched("xoxb-1"), answer=None)
    ask = await stage.begin()
    with pytest.raises(Exception, match="answer") as refused:
        await stage.installing.complete_connection(ask, REF)
    assert refused.type.__name__ == "SlackAnswerUnusable"
    assert stage.store.installations == {}


async def test_a_reinstall_reconnects_what_is_there(stage: Stage) -> None:
    """The second session renews the first one's connection; the vault's id stays."""
    first = await stage.install("one")
    second = await stage.install("two")
    assert stage.nango.reconnected == ["", "connection-1"]
    assert second.installation.id == first.installation.id
    assert second.is_reinstall
    assert stage.nango.deleted == []


async def test_what_came_of_an_install_is_told_to_who_started_it(stage: Stage) -> None:
    """Nothing yet, then the installation, without taking anything."""
    ask = await stage.begin()
    with pytest.raises(ConnectionAwaited):
        await stage.installing.find_outcome(ask)
    installed = await stage.installing.complete_connection(ask, REF)
    before = stage.faults.calls["nango.fetch"]
    assert await stage.installing.find_outcome(ask) == installed
    assert stage.faults.calls["nango.fetch"] == before
    unknown = replace(ask, origin=replace(ask.origin, grant_id="jti-unknown"))
    with pytest.raises(InstallNotOpen):
        await stage.installing.find_outcome(unknown)


async def test_an_install_under_way_is_neither_awaited_nor_over(stage: Stage) -> None:
    """While identity is away the connection is there, and the install goes on."""
    ask = await stage.begin()
    stage.faults.fail_next("claims.claim", IdentityUnavailable())
    with pytest.raises(IdentityUnavailable):
        await stage.installing.complete_connection(ask, REF)
    with pytest.raises(InstallInProgress):
        await stage.installing.find_outcome(ask)


@pytest.mark.parametrize(
    ("tenant", "error", "told"),
    [
        ("contoso", None, ConnectionNotYours),
        ("northwind", ConnectionDead(), ConnectionDead),
        ("northwind", SlackAnswerUnusable(), SlackAnswerUnusable),
    ],
)
async def test_why_an_install_was_refused_is_told_to_who_started_it(
    stage: Stage, tenant: str, error: ServiceError | None, told: type[ServiceError]
) -> None:
    """The person at the browser reads the webhook's refusal."""
    ask = await stage.begin()
    stage.connect("xoxb-1", tenant=tenant)
    if error is not None:
        stage.faults.fail_next("nango.fetch", error)
    with pytest.raises(told):
        await stage.installing.complete_connection(ask, REF)
    with pytest.raises(told):
        await stage.installing.find_outcome(ask)


async def test_a_hint_of_a_renewal_counts_though_its_token_is_stored(stage: Stage) -> None:
    """Slack mostly answers a reinstall with the token that was there; a replay is told apart."""
    await stage.install()
    ask = await stage.begin("two")
    hear = stage.installing.hear_of_connection
    assert await hear(REF, NORTHWIND, ask.origin) == "ALREADY_STORED"
    assert await hear(REF, NORTHWIND, ask.origin, is_renewal=True) == "completed"
    assert (await stage.installing.find_outcome(ask)).is_reinstall
    assert await hear(REF, NORTHWIND, ask.origin, is_renewal=True) == "NO_OPEN_INSTALL"


GRID = replace(TEAM, enterprise_id="E0GRID")


async def test_a_connected_workspace_that_joined_an_enterprise_is_rekeyed(stage: Stage) -> None:
    """Slack says so of the token that Nango keeps; what Nango was once told is older."""
    installed = await stage.install()
    await stage.join("E0GRID")
    assert await stage.lifecycle.rekey(installed.installation.id, "E0GRID", ORIGIN) == 1
    released = await stage.read(key=GRID)
    assert (released.token.reveal(), released.generation) == ("xoxb-1", 1)
    with pytest.raises(InstallationNotFound):
        await stage.read()


async def test_a_dead_connection_is_rekeyed_to_nowhere(stage: Stage) -> None:
    """Without a token there is nobody to ask; a Nango that is away may be asked again."""
    installed = await stage.install()
    await stage.join("E0GRID")
    for error, told in (
        (ConnectionDead(), NotInEnterprise),
        (NangoUnavailable(), NangoUnavailable),
    ):
        stage.faults.fail_next("nango.fetch", error)
        with pytest.raises(told):
            await stage.lifecycle.rekey(installed.installation.id, "E0GRID", ORIGIN)
    assert (await stage.read()).token.reveal() == "xoxb-1"


async def test_a_new_data_key_is_not_a_new_token(stage: Stage) -> None:
    """The fingerprint stays the token's, so that no read takes it for another one."""
    installed = await stage.install()
    await stage.lifecycle.rotate_dek(installed.installation.id, ORIGIN)
    assert (await stage.read()).generation == 1
    assert stage.outcomes("token.rotated") == []


async def test_a_dropped_install_leaves_no_connection(stage: Stage) -> None:
    """The workspace is another tenant's: what was just connected is deleted, its token ended."""
    stage.claims.claims["", "T0TEAM"] = TenantId("contoso")
    with pytest.raises(Exception, match="belongs to another"):
        await stage.install()
    assert stage.nango.deleted == [REF]
    assert stage.slack.revoked == ["xoxb-1"]
    assert stage.store.installations == {}


async def test_a_token_that_is_stored_outlives_another_tenants_try(stage: Stage) -> None:
    """Slack answers the same token to everybody: the rightful tenant's is known by its print."""
    await stage.install()
    other = ConnectionRef(INTEGRATION, "connection-2")
    stage.nango.connections[other] = replace(fetched("xoxb-1", tenant="contoso"), ref=other)
    ask = replace(await stage.begin("two"), tenant_id=TenantId("contoso"))
    stage.claims.tenant_of["grant-two"] = TenantId("contoso")
    with pytest.raises(ConnectionNotYours):
        await stage.installing.complete_connection(ask, other)
    assert stage.slack.revoked == []
    assert (await stage.read()).token.reveal() == "xoxb-1"


async def test_a_kill_at_any_point_of_an_install_converges() -> None:
    """Killed before and after every call of every port: active, or nothing, and never two."""
    point = 0
    while True:
        point += 1
        stage = Stage()
        ask = await stage.begin()
        stage.faults.kill_at = stage.faults.passed + point
        try:
            await stage.installing.complete_connection(ask, REF)
        except ProcessKilled:
            stage.start_process()
            for wait in (LEASE, LONG, LEASE):
                stage.clock.advance(wait)
                await stage.installing.sweep()
            if stage.store.installations:
                assert (await stage.read()).token.reveal() == "xoxb-1"
            assert len(stage.store.installations) <= 1
            assert set(stage.store.installations) == set(stage.store.tokens)
            assert set(stage.store.deks) == set(stage.store.installations)
            assert (await stage.install("again")).installation.key == TEAM
            assert len(stage.store.installations) == 1
        else:
            break
    assert point > 15


async def test_a_refused_reinstall_leaves_the_connection_in_use(stage: Stage) -> None:
    """Its grant ended while the vault was down; the workspace goes on with what Nango has now."""
    await stage.install("one")
    stage.connect("xoxb-2")
    ask = await stage.begin("two")
    stage.faults.fail_next("claims.claim", InstallNotOpen())
    with pytest.raises(InstallNotOpen):
        await stage.installing.complete_connection(ask, REF)
    assert (stage.nango.deleted, stage.slack.revoked) == ([], [])
    assert (await stage.read()).token.reveal() == "xoxb-2"
