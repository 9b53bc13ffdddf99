"""The life of keys: what may be interrupted, what is refused, and what never changes."""

from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import (
    FakeClaims,
    FakeKms,
    FakeSlack,
    Faults,
    ManualClock,
    MemoryStore,
    ProcessKilled,
    counting_ids,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import CannotOpen, KeyContext, TokenContext
from interlock_token_vault.domain.install import BotIdentity, WorkspaceTaken
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.install_ports import StaleGeneration
from interlock_token_vault.key_lifecycle import (
    EnterpriseInstalled,
    KekInUse,
    KekNotFound,
    KekUse,
    KeyLifecycle,
    NotClaimed,
    NotInEnterprise,
    Progress,
    RewrapRunning,
    SlackPlace,
)
from interlock_token_vault.vault import InstallationNotFound, KmsUnavailable, ReadAsk, TokenVault

ENVIRONMENT = "development"
CLIENT = ClientId("client")
TEAM = InstallationKey(CLIENT, "A0APP", "", "T0NORTHWIND")
ORIGIN = Origin(actor="operator", rpc="/x/RewrapKeys")


@dataclass
class Stage:
    """A vault on ports in memory."""

    faults: Faults = field(default_factory=Faults)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.kms = FakeKms(self.faults)
        self.store = MemoryStore(self.clock, chain_id=UUID(int=99), faults=self.faults)
        self.slack = FakeSlack(self.faults)
        self.claims = FakeClaims(self.faults)
        self.new_id = counting_ids()
        self.keys = KmsKeys(
            self.kms, fingerprint_key=Secret("k" * 32), clock=self.clock, new_id=self.new_id
        )
        self.vault = TokenVault(self.store, self.keys, environment=ENVIRONMENT)
        self.lifecycle = KeyLifecycle(
            store=self.store,
            keys=self.keys,
            keks=self.kms,
            slack=self.slack,
            claims=self.claims,
            client_id=CLIENT,
            environment=ENVIRONMENT,
        )

    async def install(self, key: InstallationKey = TEAM, token: str = "xoxb-1") -> Installation:
        """Put an active installation with a bot's pair and a user's token into the store."""
        installation = Installation(
            id=InstallationId(self.new_id()),
            key=key,
            tenant_id=TenantId("tenant"),
            state=InstallationState.ACTIVE,
            generation=2,
            name="Northwind",
            bot_user_id="U0BOT",
            bot_scopes=(),
            installed_at=self.clock.now(),
        )
        wrapped, data_key = await self.keys.make(KeyContext(ENVIRONMENT, CLIENT, installation.id))
        place = TokenContext(
            environment=ENVIRONMENT,
            key=key,
            installation_id=installation.id,
            user_id="",
            kind=TokenKind.BOT,
            slot=TokenSlot.ACCESS,
            dek_id=wrapped.dek_id,
            generation=2,
        )
        places = {
            token: place,
            "xoxe-1": replace(place, slot=TokenSlot.REFRESH),
            "xoxp-mia": replace(place, kind=TokenKind.USER, user_id="U0MIA", generation=1),
        }
        self.claims.claims[key.enterprise_id, key.team_id] = installation.tenant_id
        self.store.installations[installation.id] = installation
        self.store.deks[installation.id] = wrapped
        self.store.tokens[installation.id] = tuple(
            [await data_key.seal(Secret(text), where, None) for text, where in places.items()]
        )
        return installation

    async def rewrap(self, *, dry_run: bool = False) -> list[Progress]:
        """Re-wrap everything; returns what was told on the way."""
        return [each async for each in self.lifecycle.rewrap(ORIGIN, dry_run=dry_run)]

    async def read(self, key: InstallationKey = TEAM, user_id: str = "") -> Secret[str]:
        """Read a token."""
        return (await self.vault.read(ReadAsk(key, ORIGIN, user_id=user_id))).token

    @property
    def actions(self) -> list[str]:
        """What the audit log says happened."""
        return [record.event.action for record in self.store.records]


@pytest.fixture
def stage() -> Stage:
    """Give a vault with nothing installed."""
    return Stage()


def _teams(count: int) -> list[InstallationKey]:
    return [replace(TEAM, team_id=f"T0TEAM{number:03}") for number in range(count)]


async def test_a_rotation_of_the_kek_from_end_to_end(stage: Stage) -> None:
    """KM-14: promote, re-wrap, retire; no sealed token is touched, and all still open."""
    for key in _teams(120):
        await stage.install(key, f"xoxb-{key.team_id}")
    sealed = dict(stage.store.tokens)
    stage.kms.promote("fake-2")
    stage.kms.primary = "fake-1"
    await stage.lifecycle.promote("fake-2", ORIGIN)
    told = await stage.rewrap()
    assert told == [Progress(0, 120), Progress(50, 120), Progress(100, 120), Progress(120, 120)]
    assert await stage.lifecycle.list_keks() == [
        KekUse("fake-2", True, 120),  # noqa: FBT003 - The primary one.
        KekUse("fake-1", False, 0),  # noqa: FBT003 - Not the primary one.
    ]
    await stage.lifecycle.retire("fake-1", ORIGIN)
    assert stage.store.tokens == sealed
    for key in _teams(120):
        assert await stage.read(key) == Secret(f"xoxb-{key.team_id}")
    assert stage.actions[0] == "kek.promoted"
    assert stage.actions.count("dek.rewrapped") == 120


async def test_a_rewrap_killed_at_any_point_is_finished_by_the_next(stage: Stage) -> None:
    """KM-14: every crash leaves keys that open, and a second run leaves none behind."""
    points = 0
    while True:
        points += 1
        stage = Stage()
        for key in _teams(3):
            await stage.install(key)
        stage.kms.promote("fake-2")
        stage.faults.kill_at = stage.faults.passed + points
        try:
            await stage.rewrap()
        except ProcessKilled:
            stage.faults.restart()
            stage.store._is_rewrapping = False
        else:
            break
        for key in _teams(3):
            assert await stage.read(key) == Secret("xoxb-1")
        await stage.rewrap()
        assert await stage.store.count_deks() == {"fake-2": 3}
        stage.kms.disable("fake-1")
        for key in _teams(3):
            assert await stage.read(key) == Secret("xoxb-1")
    assert points > 15


async def test_a_dry_run_writes_nothing(stage: Stage) -> None:
    """CL-03: it counts, and leaves no record either."""
    await stage.install()
    stage.kms.promote("fake-2")
    before = dict(stage.store.deks)
    assert await stage.rewrap(dry_run=True) == [Progress(0, 1)]
    assert (stage.store.deks, stage.actions) == (before, [])


async def test_two_rewraps_do_not_run_at_once(stage: Stage) -> None:
    """CL-03: the second is told so, and the right comes back when the first is given up."""
    await stage.install()
    stage.kms.promote("fake-2")
    first = stage.lifecycle.rewrap(ORIGIN, dry_run=False)
    await anext(first)
    with pytest.raises(RewrapRunning):
        await stage.rewrap()
    await first.aclose()
    assert (await stage.rewrap())[-1] == Progress(1, 1)


async def test_a_key_that_does_not_open_does_not_stop_the_others(stage: Stage) -> None:
    """One installation's damage is counted and left; its neighbours move."""
    broken, whole = [await stage.install(key) for key in _teams(2)]
    stage.store.deks[broken.id] = replace(stage.store.deks[broken.id], wrapped=b"x" * 48)
    stage.kms.promote("fake-2")
    assert (await stage.rewrap())[-1] == Progress(1, 2, failed=1)
    assert stage.store.deks[whole.id].kek_version == "fake-2"
    assert stage.store.deks[broken.id].kek_version == "fake-1"


async def test_a_key_service_that_goes_away_stops_the_run(stage: Stage) -> None:
    """The operator begins again later; nothing is half done."""
    await stage.install()
    stage.kms.promote("fake-2")
    stage.faults.fail_next("kms.unwrap", KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.rewrap()
    assert (await stage.rewrap())[-1] == Progress(1, 1)


async def test_nothing_in_use_is_retired(stage: Stage) -> None:
    """Neither the primary version nor one that still wraps; an unknown one is told."""
    await stage.install()
    stage.kms.promote("fake-2")
    for version in ("fake-1", "fake-2"):
        with pytest.raises(KekInUse):
            await stage.lifecycle.retire(version, ORIGIN)
    for change in (stage.lifecycle.retire, stage.lifecycle.promote):
        with pytest.raises(KekNotFound):
            await change("fake-9", ORIGIN)
    assert stage.actions == []


async def test_a_new_data_key_for_every_token(stage: Stage) -> None:
    """Rotating a data key seals bot, refresh and user tokens anew; the old key opens nothing."""
    installation = await stage.install()
    old_dek, old_tokens = stage.store.deks[installation.id], stage.store.tokens[installation.id]
    assert await stage.lifecycle.rotate_dek(installation.id, ORIGIN) == 3
    assert await stage.read() == Secret("xoxb-1")
    assert await stage.read(user_id="U0MIA") == Secret("xoxp-mia")
    assert stage.store.deks[installation.id].dek_id != old_dek.dek_id
    assert {token.sealed for token in old_tokens}.isdisjoint(
        token.sealed for token in stage.store.tokens[installation.id]
    )
    stage.store.tokens[installation.id] = old_tokens
    with pytest.raises(CannotOpen):
        await stage.read()


async def test_a_reinstall_in_between_wins(stage: Stage) -> None:
    """What changed while the tokens were being sealed anew is not overwritten."""
    installation = await stage.install()
    held = await stage.store.find_held(installation.id)
    assert held is not None
    stage.store.installations[installation.id] = replace(installation, generation=3)
    with pytest.raises(StaleGeneration):
        await stage.store.reseal(held, held, AuditEvent("dek.rotated", ORIGIN))


async def test_a_workspace_that_joined_an_enterprise_is_rekeyed(stage: Stage) -> None:
    """Once Slack says so, the tokens open under the new name, and no longer under the old."""
    installation = await stage.install()
    stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", "E0GRID", "U0BOT", False)  # noqa: FBT003 - No org install.
    assert await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN) == 3
    assert await stage.read(replace(TEAM, enterprise_id="E0GRID")) == Secret("xoxb-1")
    with pytest.raises(InstallationNotFound):
        await stage.read()
    assert "installation.rekeyed" in stage.actions
    assert stage.claims.claims == {("E0GRID", "T0NORTHWIND"): "tenant"}


async def test_a_rekey_that_was_broken_off_goes_on() -> None:
    """Killed at any point, a second call ends with claim and tokens under one name."""
    killed, is_through = 0, False
    while not is_through:
        stage = Stage()
        installation = await stage.install()
        stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", "E0GRID", "U0BOT", False)  # noqa: FBT003 - As above.
        stage.faults.kill_at = stage.faults.passed + killed + 1
        try:
            await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN)
            is_through = True
        except ProcessKilled:
            killed += 1
            stage.faults.restart()
            assert await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN) == 3
        stage.faults.restart()
        assert await stage.read(replace(TEAM, enterprise_id="E0GRID")) == Secret("xoxb-1")
        assert stage.claims.claims == {("E0GRID", "T0NORTHWIND"): "tenant"}
    # Slack, the record of it, the KMS, the claim, the tokens: before and after each.
    assert killed >= 10


async def test_an_enterprise_of_another_tenant_gets_no_workspace(stage: Stage) -> None:
    """Identity decides before any token changes its name; nothing has moved."""
    installation = await stage.install()
    stage.claims.claims["E0GRID", ""] = TenantId("contoso")
    stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", "E0GRID", "U0BOT", False)  # noqa: FBT003 - As above.
    with pytest.raises(WorkspaceTaken):
        await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN)
    assert await stage.read() == Secret("xoxb-1")
    assert ("", "T0NORTHWIND") in stage.claims.claims


async def test_what_nobody_claimed_is_not_rekeyed(stage: Stage) -> None:
    """An installation that identity does not know is no tenant's; it must be installed again."""
    installation = await stage.install()
    stage.claims.claims.clear()
    stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", "E0GRID", "U0BOT", False)  # noqa: FBT003 - As above.
    with pytest.raises(NotClaimed):
        await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN)
    assert await stage.read() == Secret("xoxb-1")


@pytest.mark.parametrize("enterprise", ["", "E0OTHER", None])
async def test_only_slack_says_where_a_workspace_belongs(
    stage: Stage, enterprise: str | None
) -> None:
    """An operator's mistake, or a dead token, moves nothing."""
    installation = await stage.install()
    if enterprise is not None:
        stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", enterprise, "U0BOT", False)  # noqa: FBT003 - As above.
    with pytest.raises(NotInEnterprise):
        await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN)
    assert await stage.read() == Secret("xoxb-1")


async def test_a_name_that_is_taken_is_not_taken_twice(stage: Stage) -> None:
    """A workspace that was installed again under its Enterprise keeps that installation."""
    await stage.install(replace(TEAM, enterprise_id="E0GRID"), "xoxb-2")
    installation = await stage.install()
    stage.slack.identities["xoxb-1"] = BotIdentity("T0NORTHWIND", "E0GRID", "U0BOT", False)  # noqa: FBT003 - As above.
    with pytest.raises(EnterpriseInstalled):
        await stage.lifecycle.rekey(installation.id, "E0GRID", ORIGIN)
    assert await stage.read(replace(TEAM, enterprise_id="E0GRID")) == Secret("xoxb-2")


async def test_shredding_leaves_nothing_that_opens(stage: Stage) -> None:
    """By Slack's name or the vault's: installation, tokens and keys are gone, on record."""
    other = replace(TEAM, team_id="T0CONTOSO")
    first, second = await stage.install(), await stage.install(other)
    shredded = await stage.lifecycle.shred(SlackPlace("", "T0NORTHWIND"), ORIGIN, dry_run=True)
    assert shredded == first
    assert await stage.read() == Secret("xoxb-1")
    await stage.lifecycle.shred(SlackPlace("", "T0NORTHWIND"), ORIGIN, dry_run=False)
    await stage.lifecycle.shred(second.id, ORIGIN, dry_run=False)
    assert (stage.store.installations, stage.store.tokens, stage.store.deks) == ({}, {}, {})
    assert stage.actions.count("installation.purged") == 2
    for name in (second.id, SlackPlace("", "T0NORTHWIND"), SlackPlace("E0GRID", "")):
        with pytest.raises(InstallationNotFound):
            await stage.lifecycle.shred(name, ORIGIN, dry_run=False)
