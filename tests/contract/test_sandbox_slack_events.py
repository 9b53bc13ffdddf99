"""What the Slack stand-in sends by itself: every envelope, every order, every retry."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web
from slack_bolt.request.internals import (
    extract_enterprise_id,
    extract_is_enterprise_install,
    extract_team_id,
)
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.slack.events import SUBSCRIPTIONS
from interlock_sandbox.testing import Received, SlackStage, slack_stage

TEAM, CONTOSO = "T0NORTHWIND", "T0CONTOSO"
ENTERPRISE, SALES, OPERATIONS = "E0MERIDIAN", "T0MERSALES", "T0MEROPS"
HELP, LEADS, PARTNERS, ALL_HANDS = "C0NOHELP", "C0NOLEADS", "C0PARTNERS", "C0MEALLHANDS"
MIA, CARL, HUGO, GRETA = "U0MIA", "U0CARL", "U0HUGO", "U0GRETA"
NORTHWINDS_BOT, CONTOSOS_BOT, MERIDIANS_BOT = "U0BOTNORTHWIND", "U0BOTCONTOSO", "U0BOTMERIDIAN"
BOTH = ("app_uninstalled", "tokens_revoked")
MODAL = json.dumps({"type": "modal", "title": {"type": "plain_text", "text": "x"}, "blocks": []})


@pytest.fixture
async def stage() -> AsyncIterator[SlackStage]:
    """Give a Slack whose app hears everything."""
    async with _stage(*SUBSCRIPTIONS) as made:
        yield made


@pytest.fixture
async def mentioned() -> AsyncIterator[SlackStage]:
    """Give a Slack whose app hears mentions and its own end only."""
    async with _stage("app_mention", *BOTH) as made:
        yield made


def _stage(*subscriptions: str, **changes: Any) -> AbstractAsyncContextManager[SlackStage]:
    """Serve a Slack whose app is subscribed to these events only."""
    return slack_stage(subscriptions, **changes)


async def _org_wide(stage: SlackStage, *workspaces: str) -> str:
    """Install the app in the Enterprise and let it into workspaces; return its token."""
    answer = await stage.installed(f"{ENTERPRISE}/{GRETA}")
    await stage.do("grant-workspaces", enterprise=ENTERPRISE, workspaces=list(workspaces))
    return str(answer["access_token"])


async def _authorizations(stage: SlackStage, got: Received) -> list[dict[str, Any]]:
    """Ask Slack who may know of an event, with the app-level token and Slack's own client."""
    app_token = (await stage.see("secrets"))["app_token"]
    client = AsyncWebClient(base_url=stage.api_url)
    context = got.envelope()["event_context"]
    answer = await client.apps_event_authorizations_list(event_context=context, token=app_token)
    return list(answer["authorizations"])


def _authorization(team: str, bot: str, enterprise: str | None = None) -> dict[str, Any]:
    return {
        "enterprise_id": enterprise,
        "team_id": team,
        "user_id": bot,
        "is_bot": True,
        "is_enterprise_install": enterprise is not None,
    }


# Envelopes of events.


async def test_event_names_its_installation(mentioned: SlackStage) -> None:
    """In a workspace of its own, all ids are the workspace's."""
    await mentioned.installed()
    await mentioned.do("post", channel=HELP, typed="@Interlock hello")
    [got] = await mentioned.app.wait_for(1)
    envelope = got.envelope()
    assert envelope["authorizations"] == [_authorization(TEAM, NORTHWINDS_BOT)]
    assert (envelope["team_id"], envelope["context_team_id"]) == (TEAM, TEAM)
    assert envelope["is_ext_shared_channel"] is False
    assert "enterprise_id" not in envelope
    assert await _authorizations(mentioned, got) == envelope["authorizations"]


async def test_event_of_a_grid_names_enterprise_and_workspace(mentioned: SlackStage) -> None:
    """With an org-wide installation Bolt looks the Enterprise up, not the workspace."""
    await _org_wide(mentioned, SALES, OPERATIONS)
    await mentioned.do("post", team=SALES, user=HUGO, channel="C0MSHELP", typed="@Interlock hello")
    [got] = await mentioned.app.wait_for(1)
    envelope = got.envelope()
    assert envelope["authorizations"] == [_authorization(SALES, MERIDIANS_BOT, ENTERPRISE)]
    assert (envelope["team_id"], envelope["enterprise_id"]) == (SALES, ENTERPRISE)
    assert extract_is_enterprise_install(envelope) is True
    assert extract_enterprise_id(envelope) == ENTERPRISE
    assert "user_team" not in envelope["event"]


async def test_workspace_that_was_not_granted_sends_nothing(mentioned: SlackStage) -> None:
    """An org-wide installation hears of the workspaces it was let into."""
    await _org_wide(mentioned, SALES)
    hello = {"user": GRETA, "text": f"<@{MERIDIANS_BOT}> hello"}
    await mentioned.do("post", team=OPERATIONS, channel="C0MOHELP", **hello)
    await mentioned.do("post", team=SALES, channel="C0MSHELP", **hello)
    [got] = await mentioned.app.wait_for(1)
    assert got.envelope()["team_id"] == SALES


async def test_one_event_for_two_workspaces_of_an_enterprise(mentioned: SlackStage) -> None:
    """A channel of the whole Enterprise has one installation, seen from the author's workspace."""
    await _org_wide(mentioned, SALES, OPERATIONS)
    await mentioned.do("invite", team=SALES, user=GRETA, channel=ALL_HANDS)
    hello = {"user": GRETA, "channel": ALL_HANDS, "typed": "@Interlock hello"}
    await mentioned.do("post", team=OPERATIONS, **hello)
    [got] = await mentioned.app.wait_for(1)
    assert got.envelope()["authorizations"] == [
        _authorization(OPERATIONS, MERIDIANS_BOT, ENTERPRISE)
    ]
    assert got.envelope()["is_ext_shared_channel"] is False
    assert len(await _authorizations(mentioned, got)) == 1


async def test_direct_message_of_a_grid_is_one_everywhere(stage: SlackStage) -> None:
    """Greta talks to the app in the same conversation from either workspace."""
    await _org_wide(stage, SALES, OPERATIONS)
    opened = {
        (await stage.do("open-dm", team=team, user=GRETA))["channel"]
        for team in (SALES, OPERATIONS)
    }
    [channel] = opened
    for team in (SALES, OPERATIONS):
        await stage.do("post", team=team, user=GRETA, channel=channel, typed="hello")
    got = [each.envelope() for each in await stage.app.wait_for(2)]
    assert {each["team_id"] for each in got} == {SALES, OPERATIONS}
    assert {each["event"]["channel_type"] for each in got} == {"im"}
    assert all(extract_team_id(each) == each["team_id"] for each in got)


async def test_stranger_in_a_shared_channel_is_named_with_their_own_team(
    mentioned: SlackStage,
) -> None:
    """By Slack Connect the outer team can be foreign; the installation is in authorizations."""
    await mentioned.installed()
    await mentioned.do("invite", channel=PARTNERS)
    await mentioned.do("post", team=CONTOSO, user=CARL, channel=PARTNERS, typed="@Interlock hello")
    [got] = await mentioned.app.wait_for(1)
    envelope, event = got.envelope(), got.event()
    assert (envelope["team_id"], envelope["context_team_id"]) == (CONTOSO, TEAM)
    assert envelope["is_ext_shared_channel"] is True
    assert extract_team_id(envelope) == TEAM
    assert (event["user"], event["user_team"], event["source_team"]) == (CARL, CONTOSO, CONTOSO)


async def test_two_installs_in_a_shared_channel_get_one_event() -> None:
    """Slack names one of them in the event, and both to who asks."""
    async with _stage("message.channels") as stage:
        await stage.installed()
        await stage.installed(f"{CONTOSO}/U0OLGA")
        await stage.do("invite", channel=PARTNERS)
        await stage.do("invite", team=CONTOSO, user=CARL, channel=PARTNERS)
        await stage.do("post", team=CONTOSO, user=CARL, channel=PARTNERS, typed="hello, all")
        await stage.do("post", channel=PARTNERS, typed="hello, Carl")
        got = {each.event()["text"]: each for each in await stage.app.wait_for(2)}
        carls, mias = got["hello, all"], got["hello, Carl"]
        northwind = _authorization(TEAM, NORTHWINDS_BOT)
        contoso = _authorization(CONTOSO, CONTOSOS_BOT)
        assert carls.envelope()["authorizations"] == [contoso]
        assert await _authorizations(stage, carls) == [contoso, northwind]
        assert mias.envelope()["authorizations"] == [northwind]
        assert "user_team" not in carls.event()
        assert len((await stage.see("deliveries"))["deliveries"]) == 2


async def test_mention_is_for_the_bot_that_was_named(mentioned: SlackStage) -> None:
    """Of two installations in one channel, the one whose bot was asked gets the mention."""
    await mentioned.installed()
    await mentioned.installed(f"{CONTOSO}/U0OLGA")
    await mentioned.do("invite", channel=PARTNERS)
    await mentioned.do("invite", team=CONTOSO, user=CARL, channel=PARTNERS)
    await mentioned.do("post", channel=PARTNERS, text=f"<@{CONTOSOS_BOT}> hello")
    [got] = await mentioned.app.wait_for(1)
    assert await _authorizations(mentioned, got) == [_authorization(CONTOSO, CONTOSOS_BOT)]
    assert (got.envelope()["team_id"], got.event()["user_team"]) == (TEAM, TEAM)


async def test_authorizations_are_told_to_the_app_token_only(mentioned: SlackStage) -> None:
    """A bot's token cannot ask, and an unknown event has no answer."""
    bot = (await mentioned.installed())["access_token"]
    method, app_token = "apps.event.authorizations.list", await mentioned.see("secrets")
    refused = await mentioned.call(method, bot, event_context="4-x")
    assert refused["error"] == "not_allowed_token_type"
    unknown = await mentioned.call(method, app_token["app_token"], event_context="4-x")
    assert unknown["error"] == "invalid_event_context"


@pytest.mark.parametrize(
    ("channel", "kind", "scope"),
    [(HELP, "channel", "channels:history"), (LEADS, "group", "groups:history")],
)
async def test_message_events_need_their_scope(
    stage: SlackStage, channel: str, kind: str, scope: str
) -> None:
    """An app hears what is said where it is, of the types that its scopes cover."""
    await stage.installed(scope="chat:write")
    await stage.do("invite", user="U0ADA", channel=channel)
    await stage.do("post", user="U0ADA", channel=channel, typed="unheard")
    await stage.installed(scope=scope)
    await stage.do("post", user="U0ADA", channel=channel, typed="heard")
    got = [each.event() for each in await _all_of(stage, "message", 1)]
    assert [(each["text"], each["channel_type"]) for each in got] == [("heard", kind)]


async def _all_of(stage: SlackStage, kind: str, count: int) -> list[Received]:
    """Wait until so many events of a type came; return those."""
    for waited in range(1, 20):
        received = await stage.app.wait_for(waited)
        found = [each for each in received if each.event()["type"] == kind]
        if len(found) >= count:
            return found
    raise AssertionError(f"{count} events of {kind} did not come")


async def test_edits_and_deletions_are_told_as_such(stage: SlackStage) -> None:
    """A changed mention is a mention again, marked as edited; the message event has a subtype."""
    await stage.installed()
    ts = (await stage.do("post", channel=HELP, typed="@Interlock hello"))["ts"]
    await stage.do("edit", channel=HELP, ts=ts, typed="@Interlock hello again")
    await stage.do("delete", channel=HELP, ts=ts)
    assert "error" in await stage.do("delete", channel=HELP, ts=ts)
    # Events are sent side by side, so they need not arrive in order.
    events = [each.event() for each in await stage.app.wait_for(5)]
    mentions = [each for each in events if each["type"] == "app_mention"]
    assert sorted("edited" in each for each in mentions) == [False, True]
    told = {each.get("subtype"): each for each in events if each["type"] == "message"}
    assert told.keys() == {None, "message_changed", "message_deleted"}
    assert told["message_changed"]["message"]["text"].endswith("again")
    assert told["message_changed"]["previous_message"]["text"].endswith("hello")


async def test_home_and_assistant_are_told_of(stage: SlackStage) -> None:
    """Opening the app's own places is an event, with what the person looks at."""
    await stage.installed()
    await stage.do("open-home")
    await stage.do("open-assistant", context=HELP)
    [opened] = await _all_of(stage, "app_home_opened", 1)
    [begun] = await _all_of(stage, "assistant_thread_started", 1)
    assert (opened.event()["tab"], opened.event()["user"]) == ("home", MIA)
    thread = begun.event()["assistant_thread"]
    assert thread["user_id"] == MIA
    assert thread["context"]["channel_id"] == HELP


# Delivery.


async def test_delayed_events_go_on_after_the_retries() -> None:
    """An event that nobody took is sent again every hour of a day, here without the hours."""
    async with _stage("app_mention", delayed_events=True, delayed_event_interval_s=0) as stage:
        await stage.installed()
        stage.app.answers = [web.Response(status=500) for _ in range(10)]
        await stage.do("post", channel=HELP, typed="@Interlock hello")
        attempts = await stage.app.wait_for(11)
        assert len({each.envelope()["event_id"] for each in attempts}) == 1
        [delivery] = (await stage.see("deliveries", settled="last"))["deliveries"]
        assert delivery["outcome"] == "delivered"


async def test_events_can_be_held_and_released_in_any_order(mentioned: SlackStage) -> None:
    """What happened first can be told last."""
    await mentioned.installed()
    await mentioned.do("hold-events")
    for word in ("one", "two", "three"):
        await mentioned.do("post", channel=HELP, typed=f"@Interlock {word}")
    held = (await mentioned.see("deliveries"))["deliveries"]
    assert [each["outcome"] for each in held] == ["held"] * 3
    numbers = [each["number"] for each in held]
    await mentioned.do("release-events", numbers=numbers[::-1])
    words = [each.event()["text"].split()[-1] for each in await mentioned.app.wait_for(3)]
    assert words == ["three", "two", "one"]
    assert (await mentioned.do("hold-events", on=False))["on"] is False


async def test_event_can_come_twice(mentioned: SlackStage) -> None:
    """The same event is sent again as a retry, or as if it were new, with its old id."""
    await mentioned.installed()
    await mentioned.do("post", channel=HELP, typed="@Interlock hello")
    [delivery] = (await mentioned.see("deliveries", settled="last"))["deliveries"]
    await mentioned.do("repeat-event", number=delivery["number"])
    await mentioned.app.wait_for(2)
    await mentioned.do("repeat-event", number=delivery["number"], retry=0)
    first, retry, again = await mentioned.app.wait_for(3)
    assert first.body == retry.body == again.body
    assert retry.headers["x-slack-retry-num"] == "1"
    assert "x-slack-retry-num" not in again.headers


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1], BOTH[1:]])
async def test_uninstall_events_come_in_any_order(
    mentioned: SlackStage, order: tuple[str, ...]
) -> None:
    """Slack promises none; the events name users, no tokens, and as in its samples no install."""
    await mentioned.installed(user_scope="users:read")
    await mentioned.do("hold-events")
    await mentioned.do("uninstall", order=list(order))
    await mentioned.do("release-events")
    got = await mentioned.app.wait_for(len(order))
    assert [each.event()["type"] for each in got] == list(order)
    assert all("authorizations" not in each.envelope() for each in got)
    assert {each.envelope()["team_id"] for each in got} == {TEAM}
    revoked = next(each for each in got if each.event()["type"] == "tokens_revoked")
    assert revoked.event()["tokens"] == {"oauth": ["U0ADA"], "bot": [NORTHWINDS_BOT]}


async def test_uninstall_event_can_come_after_the_next_install(mentioned: SlackStage) -> None:
    """A late event tells of an install that has been replaced; the new token lives."""
    await mentioned.installed()
    await mentioned.do("hold-events")
    await mentioned.do("uninstall")
    token = (await mentioned.installed())["access_token"]
    await mentioned.do("release-events")
    await mentioned.app.wait_for(2)
    assert (await mentioned.call("auth.test", token))["ok"] is True


async def test_enterprise_is_uninstalled_as_one(mentioned: SlackStage) -> None:
    """The events name the Enterprise, and on request the installation as Bolt would read it."""
    token = await _org_wide(mentioned, SALES, OPERATIONS)
    await mentioned.do("uninstall", team=ENTERPRISE, authorizations=True)
    for got in await mentioned.app.wait_for(2):
        envelope = got.envelope()
        assert (envelope["team_id"], envelope["enterprise_id"]) == (ENTERPRISE, ENTERPRISE)
        assert extract_is_enterprise_install(envelope) is True
    assert (await mentioned.call("auth.test", token))["error"] == "account_inactive"
    assert "error" in await mentioned.do("uninstall", team=ENTERPRISE)


async def test_person_takes_their_token_back(mentioned: SlackStage) -> None:
    """One user's revocation is told with that user alone; the bot stays."""
    answer = await mentioned.installed(user_scope="users:read")
    assert "error" in await mentioned.do("revoke")
    await mentioned.do("revoke", user="U0ADA")
    [got] = await mentioned.app.wait_for(1)
    assert got.event()["tokens"] == {"oauth": ["U0ADA"], "bot": []}
    assert (await mentioned.call("auth.test", answer["access_token"]))["ok"] is True


# Commands, shortcuts, clicks, modals.


async def test_command_in_a_grid_names_the_enterprise(mentioned: SlackStage) -> None:
    """The form says in words that the whole Enterprise installed the app."""
    await _org_wide(mentioned, SALES)
    await mentioned.do(
        "command", team=SALES, user=HUGO, channel="C0MSHELP", command="/interlock", text="help"
    )
    fields = (await mentioned.app.wait_for(1))[0].fields()
    assert (fields["team_id"], fields["enterprise_id"]) == (SALES, ENTERPRISE)
    assert (fields["enterprise_name"], fields["is_enterprise_install"]) == ("Meridian", "true")


async def test_shortcuts_are_global_or_of_a_message(mentioned: SlackStage) -> None:
    """A global one has no place; a message's has the message and a response URL."""
    await mentioned.installed()
    ts = (await mentioned.do("post", channel=HELP, typed="a question"))["ts"]
    await mentioned.do("shortcut", callback_id="ask_anything")
    await mentioned.do("shortcut", callback_id="ask_about_message", channel=HELP, ts=ts)
    anywhere, there = [each.payload() for each in await mentioned.app.wait_for(2)]
    assert (anywhere["type"], anywhere["callback_id"]) == ("shortcut", "ask_anything")
    assert not {"channel", "message", "response_url"} & anywhere.keys()
    assert (there["type"], there["message_ts"]) == ("message_action", ts)
    assert (there["message"]["text"], there["channel"]["id"]) == ("a question", HELP)
    async with mentioned.http.post(there["response_url"], json={"text": "here"}) as response:
        assert response.status == 200
    assert "error" in await mentioned.do("shortcut", callback_id="ask_about_message")


async def test_trigger_opens_one_modal_within_three_seconds(mentioned: SlackStage) -> None:
    """The second use and the late use of a trigger have errors of their own."""
    token = (await mentioned.installed())["access_token"]
    await mentioned.do("shortcut", callback_id="ask_anything")
    await mentioned.do("shortcut", callback_id="ask_anything")
    first, second = [each.payload()["trigger_id"] for each in await mentioned.app.wait_for(2)]
    answers = []
    for trigger, waited in ((first, 0), (first, 0), (second, 3)):
        mentioned.clock.seconds += waited
        answer = await mentioned.call("views.open", token, trigger_id=trigger, view=MODAL)
        answers.append(answer.get("error"))
    assert answers == [None, "exchanged_trigger_id", "expired_trigger_id"]


async def test_stranger_clicks_with_their_own_team(mentioned: SlackStage) -> None:
    """In a shared channel the payload's team is the installation's, the user's is their own."""
    token = (await mentioned.installed())["access_token"]
    await mentioned.do("invite", channel=PARTNERS)
    button = {"type": "button", "action_id": "go", "text": {"type": "plain_text", "text": "Go"}}
    blocks = json.dumps([{"type": "actions", "elements": [button]}])
    asked = {"channel": PARTNERS, "text": "x", "blocks": blocks}
    ts = (await mentioned.call("chat.postMessage", token, **asked))["ts"]
    await mentioned.do("click", team=CONTOSO, user=CARL, channel=PARTNERS, ts=ts, action_id="go")
    payload = (await mentioned.app.wait_for(1))[0].payload()
    assert (payload["team"]["id"], payload["user"]["team_id"]) == (TEAM, CONTOSO)
    view = await mentioned.call("views.open", token, trigger_id=payload["trigger_id"], view=MODAL)
    await mentioned.do("submit-view", team=CONTOSO, user=CARL, view=view["view"]["id"])
    submitted = (await mentioned.app.wait_for(2))[-1].payload()
    assert submitted["team"]["id"] == CONTOSO
    assert submitted["view"]["app_installed_team_id"] == TEAM
    assert extract_team_id(submitted) == TEAM


async def test_modal_of_an_org_wide_install_has_no_team(mentioned: SlackStage) -> None:
    """Then the person's team is with the person, and the installation with the view."""
    token = await _org_wide(mentioned, SALES)
    await mentioned.do("shortcut", team=SALES, user=HUGO, callback_id="ask_anything")
    asked = (await mentioned.app.wait_for(1))[0].payload()
    assert asked["team"]["enterprise_id"] == ENTERPRISE
    opened = await mentioned.call("views.open", token, trigger_id=asked["trigger_id"], view=MODAL)
    await mentioned.do("submit-view", team=SALES, user=HUGO, view=opened["view"]["id"])
    payload = (await mentioned.app.wait_for(2))[-1].payload()
    assert payload["type"] == "view_submission"
    assert payload["team"] is None
    assert payload["user"]["team_id"] == SALES
    assert payload["enterprise"] == {"id": ENTERPRISE, "name": "Meridian"}
    assert extract_is_enterprise_install(payload) is True
    assert extract_enterprise_id(payload) == ENTERPRISE


async def test_submission_can_change_push_and_clear(mentioned: SlackStage) -> None:
    """What the app answers to a submission decides which modals are open afterwards."""
    token = (await mentioned.installed())["access_token"]
    await mentioned.do("shortcut", callback_id="ask_anything")
    trigger = (await mentioned.app.wait_for(1))[0].payload()["trigger_id"]
    told = json.loads(MODAL) | {"notify_on_close": True}
    opened = await mentioned.call("views.open", token, trigger_id=trigger, view=json.dumps(told))
    view = opened["view"]["id"]
    for action, count in (("update", 1), ("push", 2), ("clear", 0)):
        answer = {"response_action": action, "view": told}
        mentioned.app.answers = [web.json_response(answer)]
        await mentioned.do("submit-view", view=view)
        views = (await mentioned.see("views", team=TEAM, user=MIA))["views"]
        assert len(views) == count
    closed = [each.payload() for each in (await mentioned.app.wait_for(6))[4:]]
    assert [(each["type"], each["is_cleared"]) for each in closed] == [("view_closed", True)] * 2


async def test_response_url_follows_slacks_rules(mentioned: SlackStage) -> None:
    """Ephemeral unless asked otherwise, half an hour, five times, and JSON only."""
    await mentioned.installed()
    await mentioned.do("command", channel=HELP, command="/interlock")
    url = (await mentioned.app.wait_for(1))[0].fields()["response_url"]
    statuses = []
    for body in (
        {"text": "for one"},
        {"text": "for all", "response_type": "in_channel"},
        {"blocks": [{"type": "carousel"}]},
    ):
        async with mentioned.http.post(url, json=body) as response:
            statuses.append(response.status)
    async with mentioned.http.post(url, data="text") as response:
        statuses.append(response.status)
    assert statuses == [200, 200, 400, 400]
    seen = await mentioned.see("messages", team=TEAM, channel=HELP, user="U0ADA")
    assert [each["text"] for each in seen["messages"]] == ["for all"]
    mentioned.clock.seconds += 1800
    async with mentioned.http.post(url, json={"text": "late"}) as response:
        assert (response.status, (await response.json())["error"]) == (404, "expired_url")


async def test_answer_that_is_late_is_no_answer(mentioned: SlackStage) -> None:
    """A command that is not acknowledged in time fails for its asker, and is not sent again."""
    await mentioned.installed()
    mentioned.app.silent = 1
    answer = await mentioned.do("command", channel=HELP, command="/interlock")
    assert (answer["accepted"], answer["reason"]) == (False, "http_timeout")
    seen = await mentioned.see("messages", team=TEAM, channel=HELP, user=MIA)
    assert "operation_timeout" in seen["messages"][-1]["text"]
    assert len(mentioned.app.received) == 1
