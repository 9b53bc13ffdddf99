"""Scenes of rotation in virtual time that are no rows of the catalogue."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest

from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import REGISTRY
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.envelope import CannotOpen, SealedBytes
from interlock_token_vault.domain.installation import ClientId, InstallationId
from interlock_token_vault.domain.rotation import LEASE, Chain, RefreshAnswer, Standing
from interlock_token_vault.install_ports import IdentityUnavailable, SlackUnavailable
from interlock_token_vault.renewing import Renewing
from interlock_token_vault.reporting import Notice, Telling
from interlock_token_vault.rotating import Outcome
from interlock_token_vault.rotation_ports import Candidate, RefreshRefused, SlackRateLimited
from interlock_token_vault.vault import DatabaseUnavailable, RefreshPending, Stop
from tests.support.rotation_stage import FORGIVING, KEY, ORIGIN, Replica, Stage, play, told_stage

EVENT = AuditEvent("releases.frozen", ORIGIN)


def _odd(answer: RefreshAnswer) -> RefreshAnswer:
    return replace(answer, token_type="user")


def test_slack_is_asked_nothing_about_a_frozen_workspace() -> None:
    """Neither for a new pair nor which of two lives; thawed, it goes on where it was."""

    async def scene() -> None:
        stage, slack = await told_stage()
        replica = stage.replica()
        await stage.store.stop_releases(None, Stop.FROZEN, "a leak", EVENT)
        assert await replica.rotating.refresh(stage.chain, refused_generation=1) is Outcome.NOT_NOW
        await replica.renewing.run_due()
        assert (slack.asked, stage.actions()) == ([], ["releases.frozen"])
        await stage.store.resume_releases(None, Stop.FROZEN, EVENT)
        assert await replica.rotating.refresh(stage.chain) is Outcome.ROTATED

    play(scene())


def test_an_answer_amid_a_freeze_is_kept_and_not_tried() -> None:
    """What Slack answers to a request that was open is stored; no token is used to judge it."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.orders.append(_odd)
        slack.delays.append(5.0)
        running = asyncio.create_task(stage.replica().rotating.refresh(stage.chain))
        await asyncio.sleep(2)
        await stage.store.stop_releases(None, Stop.HELD, "restored", EVENT)
        assert await running is Outcome.FAILED
        assert len(stage.held.candidates) == 1
        assert "token.probed" not in stage.actions()
        await asyncio.sleep(timedelta(minutes=5).total_seconds())
        await stage.replica().renewing.run_due()
        assert len(slack.asked) == 1
        await stage.store.resume_releases(None, Stop.HELD, EVENT)
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.ROTATED
        assert stage.held.state.standing is Standing.IDLE

    play(scene())


def test_a_pair_beside_that_does_not_open_keeps_no_chain_back() -> None:
    """Slack refuses the stored token, and what lies beside is broken: it is exchanged anyway."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.orders.append(_odd)
        replica = stage.replica()
        assert await replica.rotating.refresh(stage.chain) is Outcome.FAILED
        [beside] = stage.held.candidates
        sealed = SealedBytes(beside.pair.access.sealed[:-1] + b"?")
        broken = replace(beside.pair.access, sealed=sealed)
        row = stage.store._rows[stage.chain]
        row.candidates = [Candidate(replace(beside.pair, access=broken), is_probed=False)]
        slack.world.revoke((await stage.opened())[0])
        await asyncio.sleep(60)
        await replica.renewing.run_due()
        await asyncio.sleep(60)
        assert (stage.held.state.standing, stage.held.state.generation) == (Standing.IDLE, 2)

    play(scene())


class Unopenable:
    """A Rotating for which only the last of many chains can be begun."""

    is_quiet = False

    def __init__(self, last: Chain) -> None:
        self.asked: list[Chain] = []
        self._last = last

    async def refresh(self, chain: Chain, *, refused_generation: int = 0) -> Outcome:
        """Fail as for a data key that is lost."""
        assert refused_generation == 0
        self.asked.append(chain)
        if chain != self._last:
            raise CannotOpen
        return Outcome.ROTATED


def test_chains_that_cannot_be_begun_keep_no_other_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their end comes first for ever; what is due after them is refreshed, and then they again."""

    async def scene() -> None:
        stage, _ = await told_stage()
        chains = [Chain(InstallationId(UUID(int=number))) for number in range(1, 121)]

        async def list_due(_: ClientId, limit: int) -> Sequence[Chain]:
            return chains[:limit]

        monkeypatch.setattr(stage.store, "list_due", list_due)
        rotating = Unopenable(chains[-1])
        renewing = Renewing(
            store=stage.store,
            rotating=rotating,  # type: ignore[arg-type]
            keeper=stage.replica().keeper,
            news=stage.store.news,
            client_id=KEY.client_id,
            clock=stage.clock,
        )
        for _ in range(3):
            await renewing.run_due()
        assert chains[-1] in rotating.asked
        assert rotating.asked.count(chains[0]) > 1

    play(scene())


def test_no_exchange_is_begun_once_the_command_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while Slack asks for a pause, it ends at once, and begins nothing after it."""

    async def scene() -> None:
        stage, _ = await told_stage()
        asked: list[Chain] = []

        class Quiet:
            is_quiet = True

            async def exchange_lasting(self, chain: Chain) -> Outcome:
                asked.append(chain)
                return Outcome.ROTATED

        async def list_lasting(_: ClientId, after: Chain | None) -> Sequence[Chain]:
            return [] if after else [stage.chain]

        monkeypatch.setattr(stage.store, "list_lasting", list_lasting)
        quiet = Quiet()
        renewing = Renewing(
            store=stage.store,
            rotating=quiet,  # type: ignore[arg-type]
            keeper=stage.replica().keeper,
            news=stage.store.news,
            client_id=KEY.client_id,
            clock=stage.clock,
        )
        command = asyncio.create_task(renewing.exchange_lasting())
        await asyncio.sleep(10)
        await renewing.drain()
        await asyncio.sleep(10)
        quiet.is_quiet = False
        assert await command == {}
        assert asked == []

    play(scene())


def test_an_end_shows_in_the_metric_until_the_reinstall() -> None:
    """What the alert looks at counts ended chains, and counts them down again."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.orders.append(RefreshRefused())
        replica, counted = stage.replica(), "interlock_vault_refreshes_total"
        telling = _telling(stage, replica, Post())
        before = REGISTRY.get_sample_value(counted, {"outcome": "needs_reinstall"}) or 0
        await replica.renewing.run_due()
        await asyncio.sleep(5)
        await telling.run()
        assert REGISTRY.get_sample_value("interlock_vault_chains_needing_reinstall") == 1
        after = REGISTRY.get_sample_value(counted, {"outcome": "needs_reinstall"})
        assert after == before + 1
        await stage.install("new", "newer", expires_in=timedelta(hours=12), generation=2)
        await telling.run()
        assert REGISTRY.get_sample_value("interlock_vault_chains_needing_reinstall") == 0

    play(scene())


def test_a_reader_waits_for_whoever_exchanges() -> None:
    """At a process that begins nothing any more, it gets what another one made, by its deadline."""

    async def scene() -> None:
        stage, slack = await told_stage()
        ending, other = stage.replica(), stage.replica()
        await ending.renewing.drain()
        waiting = asyncio.create_task(ending.read())
        await asyncio.sleep(1)
        assert slack.asked == []
        other.renewing.nudge(stage.chain)
        assert await waiting == ("xoxe.xoxb-1-2", 2)
        assert len(slack.asked) == 1

    play(scene())


def test_a_reader_waits_no_longer_than_it_said() -> None:
    """Nobody exchanges: it is told to come back, a little before its own deadline."""

    async def scene() -> None:
        stage, slack = await told_stage()
        ending, loop = stage.replica(), asyncio.get_running_loop()
        await ending.renewing.drain()
        began = loop.time()
        with pytest.raises(RefreshPending) as told:
            await ending.read()
        assert loop.time() - began <= 4.5
        assert told.value.retry_after is not None
        assert slack.asked == []

    play(scene())


def test_what_is_due_at_once_is_refreshed_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two a second and eight at a time, so that four replicas stay under Slack's 600 a minute."""

    async def scene() -> None:
        stage, _ = await told_stage()
        chains = [Chain(InstallationId(UUID(int=number))) for number in range(1, 41)]
        loop, started, most = asyncio.get_running_loop(), list[float](), 0

        class Slow:
            is_quiet = False

            async def refresh(self, chain: Chain, *, refused_generation: int = 0) -> Outcome:
                nonlocal most
                assert (chain in chains, refused_generation) == (True, 0)
                started.append(loop.time())
                most = max(most, len(renewing._running))
                await asyncio.sleep(10)
                return Outcome.ROTATED

        async def list_due(_: ClientId, limit: int) -> Sequence[Chain]:
            return chains[:limit]

        monkeypatch.setattr(stage.store, "list_due", list_due)
        renewing = Renewing(
            store=stage.store,
            rotating=Slow(),  # type: ignore[arg-type]
            keeper=stage.replica().keeper,
            news=stage.store.news,
            client_id=KEY.client_id,
            clock=stage.clock,
        )
        await renewing.run_due()
        assert len(started) == 40
        assert most == 8
        assert min(after - before for before, after in pairwise(started)) >= 0.5

    play(scene())


def test_sigterm_sees_an_exchange_to_its_end() -> None:
    """What Slack was asked is answered and stored before the process ends; nothing is begun."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.delays.append(20.0)
        replica = stage.replica()
        replica.renewing.nudge(stage.chain)
        await asyncio.sleep(5)
        await replica.renewing.drain()
        assert (stage.held.state.standing, stage.held.state.generation) == (Standing.IDLE, 2)
        assert not stage.spool.written
        asked = len(slack.asked)
        replica.renewing.nudge(stage.chain, 2)
        await replica.renewing.run_due()
        await asyncio.sleep(60)
        assert len(slack.asked) == asked

    play(scene())


def test_sigterm_leaves_in_the_spool_what_the_database_does_not_take() -> None:
    """The process ends all the same, and the next one stores the answer without asking Slack."""

    async def scene() -> None:
        stage, slack = await told_stage()
        stage.faults.fail_next("store.keep", *[DatabaseUnavailable()] * 1000)
        replica = stage.replica()
        replica.renewing.nudge(stage.chain)
        await asyncio.sleep(5)
        async with asyncio.timeout(120):
            await replica.renewing.drain()
        assert len(stage.spool.written) == 1
        stage.faults._before["store.keep"].clear()
        stage.spool.restart()
        await stage.replica().renewing.replay()
        await asyncio.sleep(5)
        assert (stage.held.state.standing, stage.held.state.generation) == (Standing.IDLE, 2)
        assert slack.world.can_refresh((await stage.opened())[1])
        assert (len(slack.asked), stage.spool.written) == (1, {})

    play(scene())


@pytest.mark.parametrize("is_ending", [False, True])
def test_an_unwanted_pair_is_ended_after_an_outage(
    monkeypatch: pytest.MonkeyPatch, is_ending: bool
) -> None:
    """RF-06: Slack is away for a minute after the uninstall; a process that ends waits less."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.delays.append(5.0)
        replica, loop = stage.replica(), asyncio.get_running_loop()
        replica.renewing.nudge(stage.chain)
        await asyncio.sleep(2)
        stage.uninstall()
        back_at, revoke = loop.time() + 60, slack.revoke

        async def revoke_later(token: Secret[str]) -> None:
            if loop.time() < back_at:
                raise SlackUnavailable
            await revoke(token)

        monkeypatch.setattr(slack, "revoke", revoke_later)
        if is_ending:
            await replica.renewing.drain()
            assert loop.time() < back_at
            assert slack.revoked == []
            return
        await asyncio.sleep(120)
        assert slack.revoked == ["xoxe.xoxb-1-2"]
        assert stage.actions().count("token.revoked") == 1

    play(scene())


# A holder that stands still for longer than its lease, with a request on its way.


async def _stand_still(_: float) -> None:
    await asyncio.get_running_loop().create_future()


def _begin_and_stand_still(stage: Stage) -> "asyncio.Task[Outcome]":
    """Have a process take the lease and send one request, and hear nothing of silence."""
    awake, stage.sleep = stage.sleep, _stand_still
    holder = stage.replica()
    stage.sleep = awake
    return asyncio.create_task(holder.rotating.refresh(stage.chain))


def test_a_request_that_outlived_its_lease_kills_no_pair_in_silence() -> None:
    """I2: it may reach Slack after the next holder's, and its answer nobody."""

    async def scene() -> None:
        stage, slack = await told_stage(FORGIVING)
        slack.transits.append(LEASE.total_seconds() + 3)
        slack.orders.append("lose_reply")
        _begin_and_stand_still(stage)
        await asyncio.sleep(LEASE.total_seconds() + 1)
        await stage.replica().rotating.refresh(stage.chain)
        await asyncio.sleep(10)
        assert stage.held.state.standing is Standing.IDLE
        assert slack.world.can_refresh((await stage.opened())[1])

    play(scene())


def test_who_takes_over_finds_out_that_it_was_overtaken() -> None:
    """I2: Slack did the paused holder's request last; the pair before is exchanged once more."""

    async def scene() -> None:
        stage, slack = await told_stage(FORGIVING)
        slack.transits.append(LEASE.total_seconds() + 3)
        slack.orders.append("lose_reply")
        _begin_and_stand_still(stage)
        await asyncio.sleep(LEASE.total_seconds() + 1)
        # Its answer comes after the paused holder's request has reached Slack.
        slack.delays.append(5.0)
        await stage.replica().rotating.refresh(stage.chain)
        assert stage.held.state.standing is Standing.IDLE
        assert slack.world.can_refresh((await stage.opened())[1])

    play(scene())


def test_a_holder_that_gets_nothing_forgets_no_request_before_its_own() -> None:
    """I2: told to wait by Slack, it gives the lease back; whoever comes next doubts its pair."""

    async def scene() -> None:
        stage, slack = await told_stage(FORGIVING)
        slack.transits.append(LEASE.total_seconds() + 20)
        slack.orders.extend(["lose_reply", SlackRateLimited(retry_after=timedelta(seconds=5))])
        _begin_and_stand_still(stage)
        await asyncio.sleep(LEASE.total_seconds() + 1)
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.FAILED
        await asyncio.sleep(6)
        await stage.replica().rotating.refresh(stage.chain)
        await asyncio.sleep(20)
        assert stage.held.state.standing is Standing.IDLE
        assert slack.world.can_refresh((await stage.opened())[1])

    play(scene())


def test_a_late_answer_ends_no_doubt_about_a_later_request() -> None:
    """I2: Slack did the next holder's request too, and that one died: the chain says so."""

    async def scene() -> None:
        stage, slack = await told_stage(FORGIVING)
        # The paused holder's request reaches Slack late in its lease, the answer later still.
        slack.transits.append(LEASE.total_seconds() - 1)
        slack.delays.append(10.0)
        late = _begin_and_stand_still(stage)
        await asyncio.sleep(LEASE.total_seconds() + 1)
        slack.orders.append("lose_reply")
        _begin_and_stand_still(stage)
        assert await late is Outcome.ROTATED
        assert not slack.world.can_refresh((await stage.opened())[1])
        assert (stage.held.state.standing, stage.held.state.generation) == (Standing.DOUBTED, 2)
        await asyncio.sleep(LEASE.total_seconds())
        await stage.replica().rotating.refresh(stage.chain)
        assert stage.held.state.standing is Standing.NEEDS_REINSTALL

    play(scene())


# Who is told of an end.


@dataclass
class Post:
    """Identity and Slack, as telling knows them.

    Attributes:
        due: What identity hands out, once.
        said: Token, user and text of each message.
        troubles: What the next calls fail with.
    """

    due: list[Notice] = field(default_factory=list)
    said: list[tuple[str, str, str]] = field(default_factory=list)
    troubles: list[IdentityUnavailable | SlackUnavailable] = field(default_factory=list)

    async def take_notices(self) -> Sequence[Notice]:
        """Hand out what is due; see Notices."""
        self._meet(IdentityUnavailable)
        due, self.due = self.due, []
        return due

    async def tell(self, token: Secret[str], user_id: str, text: str) -> None:
        """Keep a message; see Messenger."""
        self._meet(SlackUnavailable)
        self.said.append((token.reveal(), user_id, text))

    def _meet(self, kind: type[Exception]) -> None:
        if self.troubles and isinstance(self.troubles[0], kind):
            raise self.troubles.pop(0)


async def _ended_stage(*names: str, installed_by: str = "U0ADA") -> tuple[Stage, Post, Telling]:
    """Set a stage whose chain has ended an hour before its token does, and a notice due."""
    stage, slack = await told_stage(expires_in=timedelta(hours=1))
    here = stage.chain.installation_id
    stage.store.installations[here] = replace(
        stage.store.installations[here], installed_by=installed_by
    )
    slack.orders.append(RefreshRefused())
    replica = stage.replica()
    assert await replica.rotating.refresh(stage.chain) is Outcome.NEEDS_REINSTALL
    post = Post([Notice(here, name) for name in names])
    return stage, post, _telling(stage, replica, post)


def _telling(stage: Stage, replica: Replica, post: Post) -> Telling:
    return Telling(
        notices=post,
        store=stage.store,
        keeper=replica.keeper,
        messenger=post,
        client_id=KEY.client_id,
        dashboard="https://interlock.example/work-apps/slack/",
    )


def _outcomes(stage: Stage, action: str) -> list[tuple[str, str]]:
    """List whom the records of an action name, and what they say came of it."""
    events = [record.event for record in stage.store.records]
    return [(each.origin.subject, each.outcome) for each in events if each.action == action]


@pytest.mark.parametrize(("named", "told"), [("U0BEN", "U0BEN"), ("", "U0ADA")])
def test_one_person_is_told_of_an_end(named: str, told: str) -> None:
    """The administrator whom identity names; where none is linked, who installed the app."""

    async def scene() -> None:
        stage, post, telling = await _ended_stage(named)
        for _ in range(3):
            await telling.run()
        [(token, user_id, text)] = post.said
        assert (token, user_id) == ((await stage.opened())[0], told)
        assert "<https://interlock.example/work-apps/slack/|the dashboard>" in text
        assert _outcomes(stage, "notice.sent") == [(told, "allowed")]

    play(scene())


def test_where_nobody_is_known_nobody_is_told() -> None:
    """An install of before, or one that was imported: dashboard and metric are left."""

    async def scene() -> None:
        stage, post, telling = await _ended_stage("", installed_by="")
        await telling.run()
        assert post.said == []
        assert _outcomes(stage, "notice.dropped") == [("", "NOBODY_KNOWN")]

    play(scene())


def test_nobody_is_told_with_a_token_that_may_not_be_used() -> None:
    """Frozen, in its last five minutes, or of an installation that goes on or is gone."""

    async def scene() -> None:
        stage, post, telling = await _ended_stage("U0BEN")
        notice = post.due[0]
        await stage.store.stop_releases(None, Stop.FROZEN, "a leak", EVENT)
        await telling.run()
        await stage.store.resume_releases(None, Stop.FROZEN, EVENT)
        await asyncio.sleep(timedelta(minutes=56).total_seconds())
        post.due = [notice, Notice(InstallationId(UUID(int=404)), "U0BEN")]
        await telling.run()
        assert post.said == []
        assert [why for _, why in _outcomes(stage, "notice.dropped")] == [
            "RELEASES_STOPPED",
            "TOKEN_ENDED",
        ]

    play(scene())


def test_a_chain_that_goes_on_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app was installed again between identity's word and the message."""

    async def scene() -> None:
        stage, post, telling = await _ended_stage("U0BEN")
        take = post.take_notices

        async def take_late() -> Sequence[Notice]:
            due = await take()
            await stage.install("new", "newer", expires_in=timedelta(hours=12), generation=2)
            return due

        monkeypatch.setattr(post, "take_notices", take_late)
        await telling.run()
        assert post.said == []
        assert _outcomes(stage, "notice.dropped") == [("U0BEN", "NOT_NEEDED")]

    play(scene())


def test_a_message_that_fails_keeps_no_other_back() -> None:
    """Identity away is for the next round; a message that Slack did not take is not repeated."""

    async def scene() -> None:
        stage, post, telling = await _ended_stage("U0BEN", "U0CAL")
        post.troubles = [IdentityUnavailable(), SlackUnavailable()]
        await telling.run()
        assert len(post.due) == 2
        await telling.run()
        assert [user_id for _, user_id, _ in post.said] == ["U0CAL"]
        await telling.run()
        assert len(post.said) == 1
        assert len(_outcomes(stage, "notice.sent")) == 2

    play(scene())
