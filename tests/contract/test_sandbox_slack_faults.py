"""Trouble on demand at the Slack stand-in: faults, limits, clocks, and the record to judge by."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry.builtin_async_handlers import AsyncRateLimitErrorRetryHandler
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.slack.limits import POSTS_AT_ONCE
from interlock_sandbox.slack.trouble import KINDS
from interlock_sandbox.testing import SlackStage, slack_stage

TEAM, HELP, MIA = "T0NORTHWIND", "C0NOHELP", "U0MIA"
# What Slack's tiers allow a minute.
TIER_2, TIER_3, TIER_4 = 20, 50, 100
# Shorter than any pause of a fault here, longer than any call without one.
NOTICEABLE_S = 0.2
# What the tests below try; each kind of fault has one.
TRIED = {"error", "rate_limit", "http_status", "delay", "delay_reply", "drop_reply", "cut"}


@pytest.fixture
async def stage() -> AsyncIterator[SlackStage]:
    """Give a Slack with an app."""
    async with slack_stage() as made:
        yield made


async def _token(stage: SlackStage, installer: str = "T0NORTHWIND/U0ADA") -> str:
    return str((await stage.installed(installer))["access_token"])


async def _post(stage: SlackStage, token: str, channel: str = HELP) -> dict[str, Any]:
    return await stage.call("chat.postMessage", token, channel=channel, text="x")


async def _acted(stage: SlackStage, method: str = "chat.postMessage") -> list[bool]:
    calls = (await stage.see("calls", method=method))["calls"]
    return [each["acted"] for each in calls]


async def _seen(stage: SlackStage) -> int:
    """Count the messages that Mia sees."""
    found = await stage.see("messages", team=TEAM, channel=HELP, user=MIA)
    return len(found["messages"])


def test_every_kind_of_fault_is_tried_here() -> None:
    """A switch without a test is found out."""
    assert TRIED == KINDS


# Faults.


async def test_error_answers_instead_of_acting(stage: SlackStage) -> None:
    """The next call fails as told, does nothing, and the one after works."""
    token = await _token(stage)
    await stage.do("faults", method="chat.postMessage", kind="error", error="fatal_error")
    assert (await _post(stage, token))["error"] == "fatal_error"
    assert (await _post(stage, token))["ok"] is True
    assert (await _acted(stage), await _seen(stage)) == ([False, True], 1)


async def test_fault_can_be_of_one_workspace_and_of_a_count(stage: SlackStage) -> None:
    """Only the calls meant go wrong: of that method, that workspace, after some, and so many."""
    northwind = await _token(stage)
    contoso = await _token(stage, "T0CONTOSO/U0OLGA")
    fault = {"method": "chat.postMessage", "kind": "error", "for_team": TEAM}
    await stage.do("faults", **fault, count=2, after=1)
    assert (await _post(stage, contoso, "C0COHELP"))["ok"] is True
    answers = [(await _post(stage, northwind)).get("error") for _ in range(4)]
    assert answers == [None, "internal_error", "internal_error", None]
    assert (await stage.see("faults"))["faults"] == []


async def test_fault_of_any_method_strikes_whatever_comes(stage: SlackStage) -> None:
    """A star is every method, those of OAuth too; clearing forgets what waits."""
    code = await stage.code()
    await stage.do("faults", method="*", kind="error", count=5)
    assert (await stage.exchange(code))["error"] == "internal_error"
    async with stage.http.delete(
        f"{stage.url}/_control/faults", headers={"Content-Type": "application/json"}
    ) as response:
        assert (await response.json())["faults"] == []
    assert (await stage.exchange(code))["ok"] is True


async def test_rate_limit_on_demand_says_how_long(stage: SlackStage) -> None:
    """The answer is HTTP 429 with the wait that was asked for."""
    client = AsyncWebClient(base_url=stage.api_url, token=await _token(stage))
    await stage.do("faults", method="auth.test", kind="rate_limit", seconds=7)
    with pytest.raises(SlackApiError) as caught:
        await client.auth_test()
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "7"
    assert caught.value.response["error"] == "ratelimited"


async def test_status_without_json_is_no_answer_of_slacks(stage: SlackStage) -> None:
    """An outage before Slack's own code answers neither JSON nor 200."""
    token = await _token(stage)
    await stage.do("faults", method="auth.test", kind="http_status", status=502)
    async with stage.http.post(
        f"{stage.api_url}auth.test", headers={"Authorization": f"Bearer {token}"}
    ) as response:
        assert response.status == 502
        assert response.content_type == "text/plain"


@pytest.mark.parametrize("kind", ["delay", "delay_reply"])
async def test_delay_comes_before_or_after_acting(stage: SlackStage, kind: str) -> None:
    """Who gives up waiting has changed nothing before the one, and everything before the other."""
    token = await _token(stage)
    await stage.do("faults", method="chat.postMessage", kind=kind, seconds=0.6)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(NOTICEABLE_S):
            await _post(stage, token)
    assert await _seen(stage) == (1 if kind == "delay_reply" else 0)


async def test_dropped_reply_leaves_the_deed(stage: SlackStage) -> None:
    """The message is there, though the asker saw the connection end."""
    token = await _token(stage)
    await stage.do("faults", method="chat.postMessage", kind="drop_reply")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await _post(stage, token)
    assert (await _acted(stage), await _seen(stage)) == ([True], 1)


async def test_dropped_refresh_spends_the_refresh_token() -> None:
    """The pair of a lost answer exists; only the grace period brings another."""
    async with slack_stage(token_rotation=True, refresh_grace_s=30) as stage:
        refresh_token = (await stage.installed())["refresh_token"]
        await stage.do("faults", method="oauth.v2.access", kind="drop_reply", for_team=TEAM)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await stage.refresh(refresh_token)
        assert (await stage.refresh(refresh_token))["ok"] is True
        stage.clock.seconds += 30
        assert (await stage.refresh(refresh_token))["error"] == "invalid_refresh_token"


async def test_cut_answer_ends_in_its_middle(stage: SlackStage) -> None:
    """Half of the bytes arrive, of an answer to a call that acted."""
    token = await _token(stage)
    await stage.do("faults", method="chat.postMessage", kind="cut")
    with pytest.raises(aiohttp.ClientPayloadError):
        await _post(stage, token)
    assert (await _acted(stage), await _seen(stage)) == ([True], 1)


async def test_response_urls_meet_faults_too(stage: SlackStage) -> None:
    """What is sent without a token can go wrong like everything else."""
    await _token(stage)
    await stage.do("command", channel=HELP, command="/interlock")
    url = (await stage.app.wait_for(1))[0].fields()["response_url"]
    await stage.do("faults", method="response_url", kind="http_status", status=503)
    statuses = []
    for _ in range(2):
        async with stage.http.post(url, json={"text": "x"}) as response:
            statuses.append(response.status)
    assert statuses == [503, 200]
    assert await _acted(stage, "response_url") == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "earthquake"},
        {"kind": "error", "count": 0},
        {"kind": "error", "after": -1},
        {"kind": "http_status", "status": 777},
    ],
)
async def test_wrong_faults_are_refused(stage: SlackStage, wrong: dict[str, Any]) -> None:
    """A mistake in a test's own fault is told at once."""
    assert "error" in await stage.do("faults", method="auth.test", **wrong)
    assert (await stage.see("faults"))["faults"] == []


# Limits.


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("conversations.list", TIER_2),
        ("conversations.info", TIER_3),
        ("users.info", TIER_4),
    ],
)
async def test_tier_is_kept_per_method_and_workspace(
    stage: SlackStage, method: str, most: int
) -> None:
    """One call too many is 429; other methods, other workspaces and the next minute are free."""
    token = await _token(stage)
    arguments = {"conversations.info": {"channel": HELP}, "users.info": {"user": MIA}}
    given = arguments.get(method, {})
    answers = [await stage.call(method, token, **given) for _ in range(most + 1)]
    assert [each["ok"] for each in answers] == [*[True] * most, False]
    assert answers[-1]["error"] == "ratelimited"
    assert (await stage.call("team.info", token)).get("error") != "ratelimited"
    other = await _token(stage, "T0CONTOSO/U0OLGA")
    assert (await stage.call(method, other)).get("error") != "ratelimited"
    stage.clock.seconds += 59
    assert (await stage.call(method, token, **given))["error"] == "ratelimited"
    stage.clock.seconds += 1
    assert (await stage.call(method, token, **given))["ok"] is True


async def test_slacks_own_retry_handler_waits_and_succeeds() -> None:
    """AsyncRateLimitErrorRetryHandler reads the wait and asks again."""
    async with slack_stage() as stage:
        client = AsyncWebClient(
            base_url=stage.api_url,
            token=await _token(stage),
            retry_handlers=[AsyncRateLimitErrorRetryHandler(max_retry_count=1)],
        )
        await stage.do("faults", method="auth.test", kind="rate_limit", seconds=1)
        assert (await client.auth_test())["ok"] is True


async def test_messages_are_limited_per_channel(stage: SlackStage) -> None:
    """A short burst passes, then one a second; another channel is free."""
    token = await _token(stage)
    answers = [(await _post(stage, token))["ok"] for _ in range(POSTS_AT_ONCE + 1)]
    assert answers == [*[True] * POSTS_AT_ONCE, False]
    assert (await _post(stage, token, "C0NOGENERAL"))["ok"] is True
    stage.clock.seconds += 1
    assert [(await _post(stage, token))["ok"] for _ in range(2)] == [True, False]


async def test_limits_can_be_switched_off(stage: SlackStage) -> None:
    """Without them nothing but a fault is ever too early."""
    token = await _token(stage)
    rules = await stage.do("rules", rate_limits=False)
    assert rules["rate_limits"] is False
    answers = [await stage.call("conversations.list", token) for _ in range(TIER_2 + 1)]
    assert all(each["ok"] for each in answers)


async def test_history_once_a_minute(stage: SlackStage) -> None:
    """In that mode history and replies are one call a minute each, and 15 messages at most."""
    token = await _token(stage)
    await stage.do("rules", history_once_a_minute=True, rate_limits=False)
    for _ in range(20):
        await _post(stage, token)
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    history = {"channel": HELP, "limit": "100"}
    read = await stage.call("conversations.history", token, **history)
    assert (len(read["messages"]), read["has_more"]) == (15, True)
    again = await stage.call("conversations.history", token, **history)
    assert again["error"] == "ratelimited"
    thread = await stage.call("conversations.replies", token, channel=HELP, ts=root)
    assert thread["ok"] is True
    stage.clock.seconds += 60
    assert (await stage.call("conversations.history", token, **history))["ok"] is True


# Clocks.


async def test_clock_set_ahead_ends_what_is_to_end() -> None:
    """A token, a trigger and a stream run out when the clock says so, without any waiting."""
    async with slack_stage(token_rotation=True) as stage:
        token = await _token(stage)
        await stage.do("command", channel=HELP, command="/interlock")
        trigger = (await stage.app.wait_for(1))[0].fields()["trigger_id"]
        root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
        reader = {"recipient_user_id": MIA, "recipient_team_id": TEAM}
        start = {"channel": HELP, "thread_ts": root, **reader}
        stream = await stage.call("chat.startStream", token, **start)
        assert (await stage.do("clock", offset_s=300))["offset_s"] == 300
        late = {"channel": HELP, "ts": stream["ts"], "markdown_text": "x"}
        answer = await stage.call("chat.appendStream", token, **late)
        assert answer["error"] == "message_not_in_streaming_state"
        view = '{"type":"modal","title":{"type":"plain_text","text":"x"},"blocks":[]}'
        opened = await stage.call("views.open", token, trigger_id=trigger, view=view)
        assert opened["error"] == "expired_trigger_id"
        await stage.do("clock", offset_s=43_200)
        assert (await stage.call("auth.test", token))["error"] == "token_expired"
        await stage.do("clock", offset_s=0)
        assert (await stage.call("auth.test", token))["ok"] is True


async def test_lifetimes_and_stamps_have_clocks_of_their_own(stage: SlackStage) -> None:
    """A clock set ahead makes no request look forged; a skew does, and ends no token."""
    await _token(stage)
    now = int(stage.clock.seconds)
    await stage.do("clock", offset_s=43_200)
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    await stage.do("rules", skew_s=-400)
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    stamps = {
        int(each.headers["X-Slack-Request-Timestamp"]) for each in await stage.app.wait_for(2)
    }
    assert stamps == {now, now - 400}
    times = {each.envelope()["event_time"] for each in await stage.app.wait_for(2)}
    assert times == stamps


async def test_clock_stays_within_reason(stage: SlackStage) -> None:
    """An offset that would break dates is refused."""
    assert "error" in await stage.do("clock", offset_s=1e12)


# The record.


async def test_record_tells_what_was_asked_and_what_was_done(stage: SlackStage) -> None:
    """Each call has its asker, arguments, outcome and fault, in order."""
    token = await _token(stage)
    began = (await stage.see("calls"))["calls"][-1]["number"]
    await stage.do("faults", method="chat.postMessage", kind="delay", seconds=0)
    await _post(stage, token)
    await stage.call("chat.postMessage", token, channel="C0NOWHERE", text="x")
    await stage.call("chat.postMessage", "xoxb-forged", channel=HELP, text="x")
    rows = (await stage.see("calls", after=str(began)))["calls"]
    told = [(each["team"], each["acted"], each["error"], each["fault"]) for each in rows]
    assert told == [
        (TEAM, True, None, "delay"),
        (TEAM, False, "channel_not_found", None),
        (None, False, "invalid_auth", None),
    ]
    assert rows[0]["args"] == {"channel": HELP, "text": "x"}
    assert [each["number"] for each in rows] == [began + 1, began + 2, began + 3]


async def test_call_without_a_fault_is_quick(stage: SlackStage) -> None:
    """The pauses above are the faults'."""
    token = await _token(stage)
    began = time.monotonic()
    await _post(stage, token)
    assert time.monotonic() - began < NOTICEABLE_S
