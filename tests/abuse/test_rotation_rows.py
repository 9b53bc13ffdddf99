"""The catalogue's rows on refreshing tokens at Slack; the id of a test is the row's.

Most run the production coroutines in virtual time, against a Slack that keeps
Slack's rules; what concerns the wire runs over real HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_chassis.statuses import code_of
from interlock_token_vault.adapters.memory import ManualClock, ProcessKilled
from interlock_token_vault.adapters.slack_oauth import open_slack
from interlock_token_vault.adapters.slack_rotation import SlackRotation
from interlock_token_vault.domain.rotation import LEASE, RefreshAnswer, Standing
from interlock_token_vault.rotating import SILENCE, Outcome
from interlock_token_vault.vault import DatabaseUnavailable, NeedsReinstall
from tests.support.rotation_stage import (
    FORGIVING,
    KEY,
    STRICT,
    LoopClock,
    Stage,
    play,
    told_stage,
)

GOOD = {
    "ok": True,
    "access_token": "xoxe.xoxb-1-new",
    "refresh_token": "xoxe-1-new",
    "expires_in": 43200,
    "token_type": "bot",
    "app_id": "A0APP",
    "team": {"id": "T0TEAM", "name": "Northwind"},
}
WHO = {"ok": True, "team_id": "T0TEAM", "user_id": "U0BOT"}


async def _let(seconds: float) -> None:
    await asyncio.sleep(seconds)


def rows(*ids: str) -> pytest.MarkDecorator:
    """Give a test the ids of the rows that it answers."""
    return pytest.mark.parametrize("row", ids, ids=list(ids))


@pytest.mark.parametrize("readers", [pytest.param(n, id=f"RF-01-{n}") for n in (2, 16, 64)])
def test_parallel_reads_make_one_exchange(readers: int) -> None:
    """Four replicas, many readers of an ending token: one exchange, one generation for all."""

    async def scene() -> None:
        stage, slack = await told_stage()
        replicas = [stage.replica() for _ in range(4)]
        reads = [replicas[number % 4].read() for number in range(readers)]
        assert set(await asyncio.gather(*reads)) == {("xoxe.xoxb-1-2", 2)}
        assert len(slack.asked) == 1

    play(scene())


@pytest.mark.parametrize(
    ("rules", "outcome", "standing"),
    [
        pytest.param(FORGIVING, Outcome.ROTATED, Standing.IDLE, id="RF-02-forgiving"),
        pytest.param(STRICT, Outcome.NEEDS_REINSTALL, Standing.NEEDS_REINSTALL, id="RF-02-strict"),
    ],
)
def test_a_lost_reply_is_asked_for_again(
    rules: object, outcome: Outcome, standing: Standing
) -> None:
    """The same token is sent again inside the lease: a new pair, or a loud end; never silence."""

    async def scene() -> None:
        stage, slack = await told_stage(STRICT if rules is STRICT else FORGIVING)
        slack.orders.append("lose_reply")
        assert await stage.replica().rotating.refresh(stage.chain) is outcome
        assert 8 <= slack.asked[1] - slack.asked[0] <= 10
        assert stage.held.state.standing is standing
        if standing is Standing.IDLE:
            assert slack.world.can_refresh((await stage.opened())[1])
        else:
            assert "token.refresh_refused" in stage.actions()

    play(scene())


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(name, id=f"RF-03-{name}")
        for name in (
            "before_claim",
            "after_claim",
            "before_send",
            "after_send",
            "after_reply",
            "after_spool",
            "before_commit",
            "after_commit",
        )
    ],
)
def test_a_process_killed_anywhere_leaves_no_stuck_lease(place: str) -> None:
    """The next process goes on within a minute, and no exchange is started outside a lease."""

    async def scene() -> None:
        stage, slack = await told_stage()

        async def die(name: str) -> None:
            if name == place:
                raise ProcessKilled

        killed = stage.replica(failpoint=die)
        task = asyncio.create_task(killed.rotating.refresh(stage.chain))
        await asyncio.wait([task], timeout=LEASE.total_seconds())
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        stage.spool.restart()
        await _let(1)
        heir = stage.replica()
        await heir.renewing.replay()
        await _let(LEASE.total_seconds())
        assert stage.store.holder(stage.chain) == 0
        await heir.rotating.refresh(stage.chain)
        # Between the reply and the disk there is nothing but the process.
        is_lost = place == "after_reply"
        expected = Standing.NEEDS_REINSTALL if is_lost else Standing.IDLE
        assert stage.held.state.standing is expected
        if not is_lost:
            assert slack.world.can_refresh((await stage.opened())[1])
        assert not stage.spool.written

    play(scene())


@rows("RF-04")
def test_a_holder_that_was_paused_brings_the_only_pair(row: str) -> None:
    """Its good reply after 90 s is taken, though the next holder was refused meanwhile."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.delays.append(89.0)
        slack.orders.extend(["ok", "lose_request", "lose_request"])
        late = asyncio.create_task(stage.replica().rotating.refresh(stage.chain))
        await _let(LEASE.total_seconds() + 1)
        second = await stage.replica().rotating.refresh(stage.chain)
        assert second is Outcome.NEEDS_REINSTALL
        assert await late is Outcome.ROTATED
        # Two of its requests were never heard of, so the pair was exchanged once more.
        assert (stage.held.state.generation, stage.held.state.standing) == (3, Standing.IDLE)
        assert slack.world.can_refresh((await stage.opened())[1])

    play(scene())


@rows("RF-04")
def test_of_two_answers_the_living_one_is_served(row: str) -> None:
    """Silence, then two answers: both are kept, and `auth.test` says which one to serve."""

    async def scene() -> None:
        stage, slack = await told_stage(FORGIVING)
        slack.delays.append(20.0)
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.ROTATED
        assert len(slack.asked) == 2
        access, refresh = await stage.opened()
        assert slack.world.is_alive(access)
        assert slack.world.can_refresh(refresh)
        assert "token.kept_beside" in stage.actions()
        assert "token.probed" in stage.actions()
        assert len(stage.held.candidates) > 0
        assert stage.held.state.standing is Standing.IDLE

    play(scene())


@rows("RF-05")
def test_a_reinstall_beats_a_refresh_in_flight(row: str) -> None:
    """The refresh's result is dropped, and not written."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.delays.append(5.0)
        running = asyncio.create_task(stage.replica().rotating.refresh(stage.chain))
        await _let(2)
        pair = slack.world.install()
        life = timedelta(hours=12)
        await stage.install(pair.access, pair.refresh, expires_in=life, generation=2)
        await running
        assert await stage.opened() == (pair.access, pair.refresh)
        assert stage.held.candidates == ()
        assert "token.answer_dropped" in stage.actions()
        assert "token.rotated" not in stage.actions()

    play(scene())


@rows("RF-06")
def test_an_uninstall_beats_a_refresh_in_flight(row: str) -> None:
    """The row stays purged, and the new token is ended at Slack."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.delays.append(5.0)
        running = asyncio.create_task(stage.replica().rotating.refresh(stage.chain))
        await _let(2)
        stage.uninstall()
        await running
        assert stage.store.held(stage.chain) is None
        assert slack.revoked == ["xoxe.xoxb-1-2"]
        assert "token.revoked" in stage.actions()
        assert not stage.spool.written

    play(scene())


async def _hurry(seconds: float) -> None:
    """Rest for no time, but do not take a quick answer for silence."""
    await asyncio.sleep(seconds if seconds >= SILENCE.total_seconds() else 0)


@asynccontextmanager
async def _over_http(
    respond: Callable[[web.Request], web.StreamResponse],
) -> AsyncIterator[tuple[Stage, ManualClock]]:
    """Set a stage whose Slack is a server that answers as told."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return respond(request)

    app = web.Application()
    app.router.add_post("/api/{method}", handle)
    clock = ManualClock()
    async with (
        TestServer(app, host="127.0.0.1") as running,
        open_slack(
            URL(str(running.make_url("/api/"))),
            client_id="1111.2222",
            client_secret=Secret("s3cret"),
        ) as slack,
    ):
        stage = Stage(SlackRotation(slack), clock)
        stage.sleep = _hurry
        await stage.install("xoxb-old", "xoxe-old", expires_in=timedelta(minutes=1))
        yield stage, clock


@pytest.mark.parametrize(
    ("retry_after", "waits_s"),
    [
        pytest.param("30", 30, id="RF-07-30"),
        pytest.param("abc", 30, id="RF-07-abc"),
        pytest.param("-1", 30, id="RF-07-negative"),
        pytest.param("1000000000", 300, id="RF-07-huge"),
    ],
)
async def test_slack_is_left_alone_for_as_long_as_it_asks(retry_after: str, waits_s: int) -> None:
    """The lease is free meanwhile, and no request is made before the time is over."""

    def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": retry_after})

    async with _over_http(respond) as (stage, clock):
        replica = stage.replica()
        assert await replica.rotating.refresh(stage.chain) is Outcome.FAILED
        assert stage.store.holder(stage.chain) == 0
        assert replica.rotating.is_quiet
        clock.advance(timedelta(seconds=waits_s - 1))
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.NOT_NOW
        assert replica.rotating.is_quiet
        clock.advance(timedelta(seconds=2))
        assert not replica.rotating.is_quiet
        assert not stage.held.facts.is_resting


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((500, "<html>no</html>"), id="RF-08-html"),
        pytest.param((200, '{"ok": false, "error": "internal_error"}'), id="RF-08-internal"),
        pytest.param((200, '{"ok": true, "access_to'), id="RF-08-truncated"),
        pytest.param((200, '{"ok": "true", "access_token": "xoxb-1"}'), id="RF-08-ok-text"),
        pytest.param((200, '{"ok": true, "access_token": "xoxb-1"}'), id="RF-08-no-refresh"),
        pytest.param(
            (200, r'{"ok": true, "access_token": "xoxb-1", "refresh_token": "\ud800"}'),
            id="RF-08-half-a-character",
        ),
    ],
)
async def test_an_answer_of_no_use_writes_nothing(answer: tuple[int, str]) -> None:
    """It is tried again at once, then later; the stored pair stays as it was."""
    asked: list[str] = []

    def respond(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=answer[0], text=answer[1])

    async with _over_http(respond) as (stage, _):
        before = stage.held
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.FAILED
        assert len(asked) > 1
        assert (stage.held.access, stage.held.refresh) == (before.access, before.refresh)
        assert stage.held.candidates == ()
        assert stage.held.facts.is_resting
        assert not stage.spool.written


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        *(
            pytest.param(error, Outcome.NEEDS_REINSTALL, id=f"RF-09-{error}")
            for error in (
                "invalid_refresh_token",
                "token_expired",
                "token_revoked",
                "account_inactive",
            )
        ),
        *(
            pytest.param(error, Outcome.FAILED, id=f"RF-08-{error}")
            for error in (
                "internal_error",
                "fatal_error",
                "service_unavailable",
                "request_timeout",
                "team_added_to_org",
                "ratelimited",
                "rate_limited",
            )
        ),
        *(
            pytest.param(error, Outcome.BARRED, id=f"RF-08-{error}")
            for error in ("invalid_client_id", "bad_client_secret", "nobody_knows_this_one")
        ),
    ],
)
async def test_what_slack_says_is_what_happens(error: str, outcome: Outcome) -> None:
    """Only a word about the refresh token ends a chain; our own settings pause it."""

    def respond(_: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": False, "error": error})

    async with _over_http(respond) as (stage, _):
        replica = stage.replica()
        assert await replica.rotating.refresh(stage.chain) is outcome
        is_end = stage.held.state.standing is Standing.NEEDS_REINSTALL
        assert is_end == (outcome is Outcome.NEEDS_REINSTALL)
        assert stage.held.facts.is_resting != is_end
        assert replica.rotating.is_quiet == ("limited" in error)
        assert stage.store.holder(stage.chain) == 0


@rows("RF-09")
async def test_a_refused_refresh_token_serves_until_five_minutes_before_its_end(row: str) -> None:
    """The chain needs a reinstall, once and loudly; the access token goes on, then no more."""

    def respond(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("auth.test"):
            return web.json_response(WHO)
        return web.json_response({"ok": False, "error": "invalid_refresh_token"})

    async with _over_http(respond) as (stage, clock):
        await stage.install("xoxb-old", "xoxe-old", expires_in=timedelta(hours=1))
        replica = stage.replica()
        for _ in range(3):
            outcome = await replica.rotating.refresh(stage.chain)
            assert outcome is Outcome.NEEDS_REINSTALL
        assert stage.actions().count("token.refresh_refused") == 1
        assert await stage.store.count_ended(KEY.client_id) == 1
        clock.advance(timedelta(minutes=54))
        assert await replica.read() == ("xoxb-old", 1)
        clock.advance(timedelta(minutes=2))
        with pytest.raises(NeedsReinstall) as refusal:
            await replica.read()
        assert code_of(refusal.value).name == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        pytest.param(0, None, id="RF-10-zero"),
        pytest.param(-1, None, id="RF-10-negative"),
        pytest.param(60, None, id="RF-10-minute"),
        pytest.param("43200", None, id="RF-10-text"),
        pytest.param(None, None, id="RF-10-missing"),
        pytest.param(10**12, timedelta(hours=24), id="RF-10-huge"),
        pytest.param(43200, timedelta(hours=12), id="RF-10-good"),
    ],
)
async def test_a_life_that_slack_does_not_give_is_refused(
    expires_in: object, life: timedelta | None
) -> None:
    """Nothing of such an answer is served; its refresh token is kept, since it may be the last."""

    def respond(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("auth.test"):
            return web.json_response(WHO)
        return web.json_response(GOOD | {"expires_in": expires_in})

    async with _over_http(respond) as (stage, clock):
        before, began = stage.held, clock.now()
        await stage.replica().rotating.refresh(stage.chain)
        if life is None:
            assert stage.held.access == before.access
            assert len(stage.held.candidates) == 1
        else:
            assert stage.held.state.generation == 2
            assert stage.held.access.expires_at == began + life


@rows("RF-11")
async def test_a_users_answer_to_a_bots_refresh_is_kept_and_not_served(row: str) -> None:
    """It is never dropped: the next exchange goes on from it."""
    spent: list[str] = []
    answers = iter([GOOD | {"token_type": "user"}, None, GOOD | {"refresh_token": "xoxe-newer"}])

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("auth.test"):
            return web.json_response(WHO)
        spent.append(str((await request.post())["refresh_token"]))
        answer = next(answers)
        return web.json_response(answer or {"ok": False, "error": "invalid_refresh_token"})

    app = web.Application()
    app.router.add_post("/api/{method}", handle)
    clock = ManualClock()
    async with (
        TestServer(app, host="127.0.0.1") as running,
        open_slack(
            URL(str(running.make_url("/api/"))), client_id="1.2", client_secret=Secret("s")
        ) as slack,
    ):
        stage = Stage(SlackRotation(slack), clock)
        await stage.install("xoxb-old", "xoxe-old", expires_in=timedelta(minutes=1))
        before = stage.held
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.FAILED
        assert stage.held.access == before.access
        assert len(stage.held.candidates) == 1
        clock.advance(timedelta(minutes=10))
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.ROTATED
        assert spent == ["xoxe-old", "xoxe-old", "xoxe-1-new"]
        assert (await stage.opened())[1] == "xoxe-newer"


@rows("RF-12")
def test_another_teams_answer_is_refused_and_ended(row: str) -> None:
    """The row stays as it was, and the foreign token does not live on."""

    def foreign(answer: RefreshAnswer) -> RefreshAnswer:
        return replace(answer, team_id="T0OTHER")

    async def scene() -> None:
        stage, slack = await told_stage()
        before = stage.held
        slack.orders.append(foreign)
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.FAILED
        assert stage.held.access == before.access
        assert stage.held.candidates == ()
        assert slack.revoked == ["xoxe.xoxb-1-2"]
        assert "token.revoked" in stage.actions()

    play(scene())


@pytest.mark.parametrize(
    "skew",
    [
        pytest.param(timedelta(minutes=10), id="RF-13-ahead"),
        pytest.param(timedelta(minutes=-10), id="RF-13-behind"),
    ],
)
def test_a_replicas_clock_decides_nothing(skew: timedelta) -> None:
    """The database's time decides what is due and what has ended."""

    async def scene() -> None:
        stage, slack = await told_stage(expires_in=timedelta(hours=2, minutes=5))
        skewed = stage.replica(clock=LoopClock(skew))
        await skewed.renewing.run_due()
        await _let(5)
        assert slack.asked == []
        assert await skewed.read() == ("xoxe.xoxb-1-1", 1)
        await _let(timedelta(hours=2).total_seconds() + 30)
        assert await skewed.read() == ("xoxe.xoxb-1-2", 2)
        assert len(slack.asked) == 1

    play(scene())


@rows("RF-03")
def test_a_database_that_is_away_keeps_the_answer_in_the_spool(row: str) -> None:
    """Reply in hand and no commit: the answer waits on the disk, and a restart finds it there."""

    async def scene() -> None:
        stage, slack = await told_stage()
        stage.faults.fail_next("store.keep", *[DatabaseUnavailable()] * 3)
        replica = stage.replica()
        running = asyncio.create_task(replica.rotating.refresh(stage.chain))
        await _let(0.5)
        assert len(stage.spool.written) == 1
        assert await running is Outcome.ROTATED
        assert not stage.spool.written
        assert slack.world.can_refresh((await stage.opened())[1])

    play(scene())
