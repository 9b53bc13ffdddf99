"""Uninstalling: what Slack has ended is purged, whatever happens on the way, and nothing else."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from interlock_chassis.errors import ServiceError
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
from interlock_token_vault.domain.audit import Origin
from interlock_token_vault.domain.audit_log import find_first_break
from interlock_token_vault.domain.envelope import KeyContext, TokenContext
from interlock_token_vault.domain.install import BotIdentity, ExchangeAnswer
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    TenantId,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.install_ports import (
    IdentityUnavailable,
    InstallAsk,
    SlackApp,
    SlackUnavailable,
)
from interlock_token_vault.installing import Installing
from interlock_token_vault.uninstalling import (
    KEEP_TOMBSTONES,
    QUIET,
    Applied,
    Outcome,
    Revocation,
    Uninstalling,
    UninstallRefused,
)
from interlock_token_vault.vault import (
    InstallationNotFound,
    NeedsReinstall,
    OnHold,
    ReadAsk,
    RefreshPending,
    Stop,
    TokenVault,
)

ENVIRONMENT = "development"
TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
GRID = InstallationKey(ClientId("client"), "A0APP", "E0GRID", "")
GRID_TEAM = replace(GRID, team_id="T0GRID1")
OTHER_GRID = replace(GRID, enterprise_id="E0OTHER")
NORTHWIND = TenantId("northwind")
ORIGIN = Origin("gateway-worker", "/x/ApplyRevocation", purpose="app_uninstalled", grant_id="jti")
SCOPES = ("chat:write", "commands")


@dataclass
class FakeRenewals:
    """Renewals that come to what they are told."""

    stage: "Stage"
    successor: str = ""
    error: ServiceError | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def renew(
        self, installation_id: InstallationId, user_id: str, above: int, patience: timedelta
    ) -> None:
        """Give the chain its successor, or the error; see Renewals."""
        assert patience > timedelta(0)
        self.asked.append((user_id, above))
        if self.error is not None:
            raise self.error
        await self.stage.renew(installation_id, self.successor)


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
        self.renewals = FakeRenewals(self)
        self.new_id = counting_ids()
        self.numbers = 0
        self.start_process()

    def start_process(self, *, is_renewing: bool = True) -> None:
        """Start a vault process over what is there."""
        self.faults.restart()
        self.keys = KmsKeys(
            self.kms, fingerprint_key=Secret("k" * 32), clock=self.clock, new_id=self.new_id
        )
        self.vault = TokenVault(self.store, self.keys, environment=ENVIRONMENT)
        self.installing = Installing(
            store=self.store,
            keys=self.keys,
            slack=self.slack,
            claims=self.claims,
            app=SlackApp(ClientId("client"), SCOPES, "https://slack.com/oauth/v2/authorize"),
            environment=ENVIRONMENT,
            new_id=self.new_id,
        )
        self.uninstalling = Uninstalling(
            store=self.store,
            keys=self.keys,
            slack=self.slack,
            claims=self.claims,
            renewals=self.renewals if is_renewing else None,
            environment=ENVIRONMENT,
        )

    async def install(
        self, token: str, key: InstallationKey = TEAM, *, refresh_token: str = ""
    ) -> InstallationId:
        """Install from beginning to end."""
        self.numbers += 1
        name = f"{self.numbers}"
        ask = InstallAsk(
            grant=Secret(f"grant-{name}"),
            tenant_id=NORTHWIND,
            user_id="user-1",
            state_sha256="0" * 64,
            source="direct",
            expires_at=self.clock.now() + timedelta(minutes=15),
            origin=Origin("gateway-edge", "/x/CompleteOAuthInstall", grant_id=f"jti-{name}"),
        )
        self.claims.tenant_of[f"grant-{name}"] = NORTHWIND
        await self.installing.start(ask)
        self.slack.codes[name] = ExchangeAnswer(
            bot_token=Secret(token),
            token_type="bot",
            app_id="A0APP",
            team_id=key.team_id,
            team_name="Northwind",
            enterprise_id=key.enterprise_id,
            enterprise_name="Grid",
            is_enterprise_install=key.is_enterprise_install,
            bot_user_id="U0BOT",
            scopes=SCOPES,
            refresh_token=Secret(refresh_token) if refresh_token else None,
            expires_in_s=43200 if refresh_token else None,
        )
        installed = await self.installing.complete(ask, Secret(name), "https://x.example")
        return installed.installation.id

    async def add_user(self, installation_id: InstallationId, user_id: str, token: str) -> None:
        """Store a user's living token."""
        wrapped, held = self.store.deks[installation_id], self.store.installations[installation_id]
        key = KeyContext(ENVIRONMENT, ClientId("client"), installation_id)
        place = TokenContext(
            environment=ENVIRONMENT,
            key=held.key,
            installation_id=installation_id,
            user_id=user_id,
            kind=TokenKind.USER,
            slot=TokenSlot.ACCESS,
            dek_id=wrapped.dek_id,
            generation=1,
        )
        sealed = await self.keys.take(wrapped, key).seal(Secret(token), place, None)
        self.store.tokens[installation_id] += (sealed,)
        self.slack.identities[token] = BotIdentity(
            held.key.team_id, held.key.enterprise_id, user_id, is_enterprise_install=False
        )

    async def renew(self, installation_id: InstallationId, token: str) -> None:
        """Put a living successor in the place of the bot's token, one generation up."""
        held = self.store.installations[installation_id]
        renewed = replace(held, generation=held.generation + 1)
        wrapped = self.store.deks[installation_id]
        key = KeyContext(ENVIRONMENT, ClientId("client"), installation_id)
        sealed = []
        for slot, text in ((TokenSlot.ACCESS, token), (TokenSlot.REFRESH, f"{token}-refresh")):
            place = TokenContext(
                environment=ENVIRONMENT,
                key=held.key,
                installation_id=installation_id,
                user_id="",
                kind=TokenKind.BOT,
                slot=slot,
                dek_id=wrapped.dek_id,
                generation=renewed.generation,
            )
            sealed.append(await self.keys.take(wrapped, key).seal(Secret(text), place, None))
        self.store.installations[installation_id] = renewed
        self.store.tokens[installation_id] = tuple(sealed)
        self.slack.identities[token] = BotIdentity(
            held.key.team_id, held.key.enterprise_id, "U0BOT", is_enterprise_install=False
        )

    def remove_at_slack(self, key: InstallationKey = TEAM) -> None:
        """Remove the app in Slack's own settings."""
        self.slack.remove_app(
            BotIdentity(key.team_id, key.enterprise_id, "U0BOT", key.is_enterprise_install)
        )

    async def uninstalled(self, key: InstallationKey = TEAM) -> Applied:
        """Deliver app_uninstalled."""
        revocation = Revocation(
            key, is_uninstall=True, user_ids=frozenset(), names_bot=False, origin=ORIGIN
        )
        return await self.uninstalling.apply(revocation)

    async def revoked(self, *users: str, names_bot: bool = False) -> Applied:
        """Deliver tokens_revoked."""
        revocation = Revocation(
            TEAM, is_uninstall=False, user_ids=frozenset(users), names_bot=names_bot, origin=ORIGIN
        )
        return await self.uninstalling.apply(revocation)

    async def read(self, key: InstallationKey = TEAM, user_id: str = "") -> str:
        """Read a token as the worker would."""
        ask = ReadAsk(key, Origin("gateway-worker", "/x/ReadBotToken"), user_id=user_id)
        return (await self.vault.read(ask)).token.reveal()

    async def settle(self) -> None:
        """Let what is open come to its end: time passes, and the sweep comes round."""
        for _ in range(3):
            self.clock.advance(QUIET)
            await self.uninstalling.sweep()

    def actions(self) -> list[str]:
        """List what the audit log says happened."""
        return [record.event.action for record in self.store.records]

    def require_gone(self, key: InstallationKey = TEAM) -> None:
        """Check that nothing of an installation is left but its tombstone and its records."""
        assert not any(each.key == key for each in self.store.installations.values())
        assert set(self.store.tokens) == set(self.store.deks) == set(self.store.installations)
        assert (key.enterprise_id, key.team_id) not in self.claims.claims
        assert [each.key for each in self.store.tombstones].count(key) == 1
        assert find_first_break(self.store.records) is None


@pytest.fixture
def stage() -> Stage:
    """Give a vault with nothing installed."""
    return Stage()


# Events.


async def test_what_slack_has_ended_is_purged_and_its_claim_released(stage: Stage) -> None:
    """Key, tokens and row go, identity lets go at once, and the log says so."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    assert await stage.uninstalled() == Applied(Outcome.PURGED, 0)
    stage.require_gone()
    assert stage.actions()[-2:] == ["token.probed", "installation.purged"]
    with pytest.raises(InstallationNotFound):
        await stage.read()


async def test_a_living_token_outlives_every_event(stage: Stage) -> None:
    """EV-54: old, forged or repeated, an event purges nothing that Slack still takes."""
    await stage.install("xoxb-1")
    for _ in range(3):
        assert await stage.uninstalled() == Applied(Outcome.STALE, 0)
        assert await stage.revoked(names_bot=True) == Applied(Outcome.STALE, 0)
    assert await stage.read() == "xoxb-1"
    outcomes = {
        record.event.outcome
        for record in stage.store.records
        if record.event.action == "revocation.judged"
    }
    assert outcomes == {"stale_uninstall"}


EVENTS: dict[str, Callable[[Stage], Coroutine[Any, Any, Applied]]] = {
    "uninstalled": Stage.uninstalled,
    "revoked": lambda stage: stage.revoked(names_bot=True),
}


@pytest.mark.parametrize(
    "order",
    [
        ("uninstalled", "revoked"),
        ("revoked", "uninstalled"),
        ("uninstalled", "uninstalled"),
        ("revoked", "uninstalled", "revoked", "uninstalled"),
    ],
)
async def test_any_order_and_number_of_events_is_one_purge(
    stage: Stage, order: tuple[str, ...]
) -> None:
    """EV-55: the first true event purges; the others find nothing and say so."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    outcomes = [(await EVENTS[each](stage)).outcome for each in order]
    assert outcomes == [Outcome.PURGED] + [Outcome.ALREADY_PURGED] * (len(order) - 1)
    stage.require_gone()
    assert stage.actions().count("installation.purged") == 1


@pytest.mark.parametrize("order", [("uninstalled", "revoked"), ("revoked", "uninstalled")])
async def test_events_at_the_same_moment_are_one_purge(
    stage: Stage, order: tuple[str, ...]
) -> None:
    """EV-55: two workers with the two events of one uninstall do not undo each other."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    applied = await asyncio.gather(*(EVENTS[each](stage) for each in order))
    assert Outcome.PURGED in {each.outcome for each in applied}
    stage.require_gone()


async def test_an_event_after_a_reinstall_finds_the_new_installation_alive(stage: Stage) -> None:
    """EV-54: bolt-js#1103 and #1558, the late event of the installation before."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    await stage.uninstalled()
    await stage.install("xoxb-2")
    assert (await stage.uninstalled()).outcome is Outcome.STALE
    assert await stage.read() == "xoxb-2"
    assert stage.claims.claims == {("", "T0TEAM"): NORTHWIND}


async def test_a_reinstall_before_any_event_wins(stage: Stage) -> None:
    """The old token is dead, the installation renewed: the event means what is gone."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    await stage.install("xoxb-2")
    assert (await stage.uninstalled()).outcome is Outcome.STALE
    assert await stage.read() == "xoxb-2"


async def test_a_user_who_revokes_takes_only_that_users_token_along(stage: Stage) -> None:
    """EV-56: bot and other users stay; a user whose token lives stays too."""
    installation_id = await stage.install("xoxb-1")
    for user_id in ("U0ADA", "U0BEN"):
        await stage.add_user(installation_id, user_id, f"xoxp-{user_id}")
    del stage.slack.identities["xoxp-U0ADA"]
    assert await stage.revoked("U0ADA", "U0BEN") == Applied(Outcome.STALE, 1)
    assert await stage.read() == "xoxb-1"
    assert await stage.read(user_id="U0BEN") == "xoxp-U0BEN"
    assert [token.user_id for token in stage.store.tokens[installation_id]] == ["", "U0BEN"]
    assert "user_token.purged" in stage.actions()


async def test_users_alone_do_not_have_the_bot_probed(stage: Stage) -> None:
    """EV-56: a dead bot that the event does not name is another event's matter."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    assert (await stage.revoked("U0ADA")).outcome is Outcome.STALE
    assert "token.probed" not in stage.actions()


async def test_a_stale_bot_and_a_true_user_are_judged_apart(stage: Stage) -> None:
    """One event may be right of one and wrong of the other."""
    installation_id = await stage.install("xoxb-1")
    await stage.add_user(installation_id, "U0ADA", "xoxp-ada")
    del stage.slack.identities["xoxp-ada"]
    assert await stage.revoked("U0ADA", names_bot=True) == Applied(Outcome.STALE, 1)
    assert await stage.read() == "xoxb-1"


async def test_a_dead_bots_living_users_are_ended_with_it(stage: Stage) -> None:
    """No token stays alive whose only record is about to be shredded."""
    installation_id = await stage.install("xoxb-1")
    await stage.add_user(installation_id, "U0ADA", "xoxp-ada")
    del stage.slack.identities["xoxb-1"]
    assert (await stage.revoked(names_bot=True)).outcome is Outcome.PURGED
    assert stage.slack.revoked == ["xoxp-ada"]
    stage.require_gone()


async def test_an_org_wide_end_leaves_other_enterprises_alone(stage: Stage) -> None:
    """EV-57: the Enterprise's row goes; another's, and a team's, are not even looked at."""
    for token, key in (("xoxb-grid", GRID), ("xoxb-other", OTHER_GRID), ("xoxb-team", TEAM)):
        await stage.install(token, key)
    stage.remove_at_slack(GRID)
    assert (await stage.uninstalled(GRID)).outcome is Outcome.PURGED
    stage.require_gone(GRID)
    assert await stage.read(OTHER_GRID) == "xoxb-other"
    assert await stage.read(TEAM) == "xoxb-team"


@pytest.mark.parametrize("gone", [GRID, GRID_TEAM])
async def test_a_team_of_an_enterprise_may_mean_either(stage: Stage, gone: InstallationKey) -> None:
    """Both are shown to Slack; what it no longer takes goes, the other stays."""
    await stage.install("xoxb-grid", GRID)
    await stage.install("xoxb-team", GRID_TEAM)
    stage.remove_at_slack(gone)
    assert (await stage.uninstalled(GRID_TEAM)).outcome is Outcome.PURGED
    stage.require_gone(gone)
    (left,) = stage.store.installations.values()
    assert left.key != gone


async def test_a_team_named_without_its_enterprise_is_found(stage: Stage) -> None:
    """Slack's samples of these events leave the Enterprise out."""
    await stage.install("xoxb-team", GRID_TEAM)
    stage.remove_at_slack(GRID_TEAM)
    assert (await stage.uninstalled(replace(TEAM, team_id="T0GRID1"))).outcome is Outcome.PURGED
    stage.require_gone(GRID_TEAM)


# Tokens that end of age.


async def test_an_aged_token_is_exchanged_before_it_counts_as_dead(stage: Stage) -> None:
    """An access token ends after 12 h; that says nothing of the installation."""
    await stage.install("xoxe.xoxb-1", refresh_token="xoxe-1")
    del stage.slack.identities["xoxe.xoxb-1"]
    stage.renewals.successor = "xoxe.xoxb-2"
    assert (await stage.uninstalled()).outcome is Outcome.STALE
    assert stage.renewals.asked == [("", 1)]
    assert len(stage.store.installations) == 1


async def test_a_refused_exchange_is_the_end(stage: Stage) -> None:
    """Slack takes neither the token nor what would renew it."""
    await stage.install("xoxe.xoxb-1", refresh_token="xoxe-1")
    stage.remove_at_slack()
    stage.renewals.error = NeedsReinstall()
    assert (await stage.uninstalled()).outcome is Outcome.PURGED
    stage.require_gone()


@pytest.mark.parametrize("is_renewing", [True, False])
async def test_what_is_not_known_is_not_purged(stage: Stage, is_renewing: bool) -> None:
    """No word from Slack about the successor: the event is to come again."""
    await stage.install("xoxe.xoxb-1", refresh_token="xoxe-1")
    del stage.slack.identities["xoxe.xoxb-1"]
    stage.renewals.error = RefreshPending()
    stage.start_process(is_renewing=is_renewing)
    with pytest.raises(RefreshPending):
        await stage.uninstalled()
    assert len(stage.store.installations) == 1


async def test_a_silent_slack_purges_nothing(stage: Stage) -> None:
    """The worker delivers the event again."""
    await stage.install("xoxb-1")
    stage.remove_at_slack()
    stage.faults.fail_next("slack.test", SlackUnavailable())
    with pytest.raises(SlackUnavailable):
        await stage.uninstalled()
    assert len(stage.store.installations) == 1
    assert (await stage.uninstalled()).outcome is Outcome.PURGED


async def test_a_restored_installation_is_not_judged_by_its_old_token(stage: Stage) -> None:
    """What came out of a backup may be dead while the installation lives."""
    installation_id = await stage.install("xoxb-1")
    stage.remove_at_slack()
    stage.store.stops[installation_id, Stop.HELD] = "restored"
    with pytest.raises(OnHold):
        await stage.uninstalled()
    assert len(stage.store.installations) == 1


async def test_a_refresh_in_between_is_looked_at_again(stage: Stage) -> None:
    """The token that was probed is not the one that would be purged."""
    installation_id = await stage.install("xoxe.xoxb-1", refresh_token="xoxe-1")
    stage.remove_at_slack()
    stage.renewals.error = NeedsReinstall()

    class Renewing(FakeSlack):
        """A Slack during whose answer another process stores a successor."""

        async def test(self, token: Secret[str]) -> BotIdentity:
            """Answer after the chain has moved on."""
            if token.reveal() == "xoxe.xoxb-1":
                await stage.renew(installation_id, "xoxe.xoxb-2")
                self.identities |= stage.slack.identities
            return await super().test(token)

    stage.slack = Renewing(stage.faults)
    stage.start_process()
    assert (await stage.uninstalled()).outcome is Outcome.STALE
    assert len(stage.store.installations) == 1


# The button.


async def test_the_button_ends_the_app_at_slack_and_here(stage: Stage) -> None:
    """Slack is told first; then key, tokens, row and claim go."""
    await stage.install("xoxb-1")
    await stage.uninstalling.uninstall(TEAM, ORIGIN)
    assert stage.slack.uninstalled == [("", "T0TEAM")]
    stage.require_gone()
    assert stage.actions()[-3:] == ["uninstall.asked", "uninstall.sent", "installation.purged"]
    assert (await stage.uninstalled()).outcome is Outcome.ALREADY_PURGED


async def test_the_button_means_exactly_its_installation(stage: Stage) -> None:
    """Uninstalling a team leaves the Enterprise around it installed."""
    await stage.install("xoxb-grid", GRID)
    await stage.install("xoxb-team", GRID_TEAM)
    await stage.uninstalling.uninstall(GRID_TEAM, ORIGIN)
    assert stage.slack.uninstalled == [("E0GRID", "T0GRID1")]
    assert await stage.read(GRID) == "xoxb-grid"


async def test_a_second_click_is_done(stage: Stage) -> None:
    """What is gone is uninstalled."""
    await stage.install("xoxb-1")
    for _ in range(2):
        await stage.uninstalling.uninstall(TEAM, ORIGIN)
    assert len(stage.slack.uninstalled) == 1


async def test_a_refusal_of_slacks_purges_nothing(stage: Stage) -> None:
    """The app is still installed; the administrator hears that Slack refused."""
    await stage.install("xoxb-1")
    stage.faults.fail_next("slack.uninstall", UninstallRefused())
    with pytest.raises(UninstallRefused):
        await stage.uninstalling.uninstall(TEAM, ORIGIN)
    assert await stage.read() == "xoxb-1"


async def test_a_lost_answer_of_slacks_is_made_up_for_by_the_sweep(stage: Stage) -> None:
    """Slack had done it; nobody clicks again, and no event comes."""
    await stage.install("xoxb-1")
    stage.faults.fail_after("slack.uninstall", SlackUnavailable())
    with pytest.raises(SlackUnavailable):
        await stage.uninstalling.uninstall(TEAM, ORIGIN)
    await stage.settle()
    stage.require_gone()


async def test_a_reinstall_cancels_an_uninstall_that_was_left(stage: Stage) -> None:
    """Whoever installed again meant it."""
    await stage.install("xoxb-1")
    stage.faults.fail_next("slack.uninstall", SlackUnavailable())
    with pytest.raises(SlackUnavailable):
        await stage.uninstalling.uninstall(TEAM, ORIGIN)
    stage.clock.advance(timedelta(seconds=1))
    await stage.install("xoxb-2")
    await stage.settle()
    assert await stage.read() == "xoxb-2"
    assert stage.slack.uninstalled == []


async def test_an_aged_token_is_exchanged_to_leave_with(stage: Stage) -> None:
    """Slack takes the successor, and is told with that."""
    await stage.install("xoxe.xoxb-1", refresh_token="xoxe-1")
    del stage.slack.identities["xoxe.xoxb-1"]
    stage.renewals.successor = "xoxe.xoxb-2"
    await stage.uninstalling.uninstall(TEAM, ORIGIN)
    assert stage.slack.uninstalled == [("", "T0TEAM")]
    stage.require_gone()


# Crashes.


async def test_identity_away_is_made_up_for(stage: Stage) -> None:
    """The purge stands; the claim goes with the next sweep, and the tombstone with time."""
    await stage.install("xoxb-1")
    stage.faults.fail_next("claims.release", IdentityUnavailable(), IdentityUnavailable())
    await stage.uninstalling.uninstall(TEAM, ORIGIN)
    assert stage.claims.claims
    await stage.settle()
    stage.require_gone()
    stage.clock.advance(KEEP_TOMBSTONES + timedelta(seconds=1))
    await stage.uninstalling.sweep()
    assert stage.store.tombstones == []


async def test_a_claim_that_moved_on_is_not_released_late(stage: Stage) -> None:
    """Identity compares the installation: a reinstall keeps its claim."""
    await stage.install("xoxb-1")
    stage.faults.fail_next("claims.release", IdentityUnavailable())
    await stage.uninstalling.uninstall(TEAM, ORIGIN)
    await stage.install("xoxb-2")
    await stage.settle()
    assert stage.claims.claims == {("", "T0TEAM"): NORTHWIND}
    assert await stage.read() == "xoxb-2"


@pytest.mark.parametrize("is_button", [True, False], ids=["button", "event"])
async def test_a_kill_at_any_point_converges(is_button: bool) -> None:
    """Killed before and after every call of every port; the next process finishes.

    An event comes again, as Slack and the inbox see to; a button is not clicked again.
    """
    point = 0
    while True:
        point += 1
        stage = Stage()
        await stage.install("xoxb-1")
        if not is_button:
            stage.remove_at_slack()
        start = stage.faults.passed
        stage.faults.kill_at = start + point
        run = stage.uninstalling.uninstall(TEAM, ORIGIN) if is_button else stage.uninstalled()
        try:
            await run
        except ProcessKilled:
            was_written_down = "uninstall.asked" in stage.actions()
            stage.start_process()
            await stage.settle()
            if is_button and not was_written_down:
                assert await stage.read() == "xoxb-1"
                continue
            if not is_button:
                await stage.uninstalled()
            stage.require_gone()
        else:
            break
    assert point > 10


async def test_whoever_goes_away_does_not_stop_it(stage: Stage) -> None:
    """A closed browser or a deadline leaves no uninstall half-way; `drain` waits for it."""
    await stage.install("xoxb-1")
    caller = asyncio.create_task(stage.uninstalling.uninstall(TEAM, ORIGIN))
    await asyncio.sleep(0)
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller
    await stage.uninstalling.drain()
    stage.require_gone()
