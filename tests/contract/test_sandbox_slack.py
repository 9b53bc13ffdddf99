"""The Slack stand-in, held against Slack's own SDK, unchanged."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from slack_sdk.errors import SlackApiError
from slack_sdk.signature import Clock as SdkClock
from slack_sdk.signature import SignatureVerifier
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.testing import (
    CLIENT_ID,
    CLIENT_SECRET,
    SIGNING_SECRET,
    SlackStage,
    slack_stage,
)

TEAM = "T0NORTHWIND"
HELP, RANDOM = "C0NOHELP", "C0NORANDOM"
ADA, MIA = "U0ADA", "U0MIA"
# slack_sdk 3.48 still passes the client's credentials by aiohttp's old way.
pytestmark = pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")
# Longer than the stand-in's messages may live in a stream, and than a code lives.
LATER_S = 700


@dataclass
class Stage(SlackStage):
    """A Slack with an app, asked by Slack's own client."""

    def client(self, token: str | None = None) -> AsyncWebClient:
        """Return Slack's own client, pointed here."""
        return AsyncWebClient(base_url=self.api_url, token=token)

    async def exchanged(self, code: str, **changes: str) -> dict[str, Any]:
        """Exchange a code with Slack's own client."""
        arguments: dict[str, Any] = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "code": code,
            "redirect_uri": self.config.app.redirect_urls[0],
            **changes,
        }
        response = await self.client().oauth_v2_access(**arguments)
        return dict(response.data)  # type: ignore[arg-type]

    async def bot(self) -> AsyncWebClient:
        """Install the app and return a client with its bot token."""
        answer = await self.exchanged(await self.code())
        return self.client(answer["access_token"])

    async def messages(self, user: str = MIA) -> list[dict[str, Any]]:
        """List what a person sees in #help."""
        found = await self.see("messages", team=TEAM, channel=HELP, user=user)
        return list(found["messages"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a Slack whose app records what it is sent."""
    async with slack_stage() as made:
        yield Stage(**vars(made))


async def _error(call: Any) -> str:
    """Return the error code of a call that must be refused."""
    with pytest.raises(SlackApiError) as caught:
        await call
    return str(caught.value.response["error"])


async def test_installing_over_http_gives_slacks_answer(stage: Stage) -> None:
    """Consent, code and exchange lead to a token in the shape of oauth.v2.access."""
    answer = await stage.exchanged(await stage.code())
    assert answer["access_token"].startswith("xoxb-")
    assert answer["token_type"] == "bot"
    assert answer["team"] == {"id": TEAM, "name": "Northwind"}
    assert answer["authed_user"] == {"id": ADA}
    assert answer["enterprise"] is None
    assert answer["is_enterprise_install"] is False
    assert "chat:write" in answer["scope"].split(",")
    who = await stage.client(answer["access_token"]).auth_test()
    assert who["user_id"] == answer["bot_user_id"]
    assert who["team_id"] == TEAM


async def test_code_is_good_once_and_only_for_its_app(stage: Stage) -> None:
    """A code is refused with a wrong client, a wrong redirect, a second time, or late."""
    code = await stage.code()
    assert await _error(stage.exchanged(code, client_id="9.9")) == "invalid_client_id"
    assert await _error(stage.exchanged(code, client_secret="x")) == "bad_client_secret"
    assert await _error(stage.exchanged(code, redirect_uri="http://x/")) == "bad_redirect_uri"
    await stage.exchanged(code)
    assert await _error(stage.exchanged(code)) == "code_already_used"
    late = await stage.code()
    stage.clock.seconds += LATER_S
    assert await _error(stage.exchanged(late)) == "invalid_code"
    assert await _error(stage.exchanged("no-code")) == "invalid_code"


async def test_consent_can_be_denied_and_unknown_redirects_are_not_followed(stage: Stage) -> None:
    """Denial goes back to the app; a foreign redirect URL stays with the person."""
    page = f"{stage.url}/oauth/v2/authorize"
    form = {"client_id": CLIENT_ID, "scope": "chat:write", "state": "s", "decision": "deny"}
    headers = {"Origin": stage.url}
    async with stage.http.post(page, data=form, headers=headers, allow_redirects=False) as response:
        assert "error=access_denied&state=s" in response.headers["Location"]
    form |= {"redirect_uri": "http://elsewhere.example/"}
    async with stage.http.post(page, data=form, headers=headers, allow_redirects=False) as response:
        assert response.status == 400
    async with stage.http.post(page, data=form, allow_redirects=False) as response:
        assert response.status == 403


async def test_only_administrators_install(stage: Stage) -> None:
    """A member cannot bring an app into a workspace."""
    with pytest.raises(KeyError):
        await stage.code(f"{TEAM}/{MIA}")


@pytest.mark.parametrize(
    ("token", "error"), [(None, "not_authed"), ("xoxb-forged", "invalid_auth")]
)
async def test_wrong_tokens_are_refused(stage: Stage, token: str | None, error: str) -> None:
    """No token, and a token that Slack never issued, do nothing."""
    assert await _error(stage.client(token).auth_test()) == error


async def test_revoked_token_stays_dead_and_uninstalls(stage: Stage) -> None:
    """Revoking the only token removes the app, and tells it so."""
    client = await stage.bot()
    assert (await client.auth_revoke())["revoked"] is True
    assert await _error(client.auth_test()) == "account_inactive"
    kinds = [json.loads(each.body)["event"]["type"] for each in await stage.app.wait_for(2)]
    assert sorted(kinds) == ["app_uninstalled", "tokens_revoked"]


async def test_token_in_the_url_is_no_token(stage: Stage) -> None:
    """Tokens are read from the header or the form, as Slack does since 2020."""
    client = await stage.bot()
    async with stage.http.get(
        f"{stage.url}/api/auth.test", params={"token": client.token or ""}
    ) as response:
        assert (await response.json())["error"] == "not_authed"


async def test_messages_and_whispers_reach_their_readers(stage: Stage) -> None:
    """A posted message is everybody's; an ephemeral one is one person's."""
    client = await stage.bot()
    posted = await client.chat_postMessage(channel=HELP, text="for all")
    await client.chat_postEphemeral(channel=HELP, user=MIA, text="for Mia")
    assert [each["text"] for each in await stage.messages(MIA)] == ["for all", "for Mia"]
    assert [each["text"] for each in await stage.messages(ADA)] == ["for all"]
    assert posted["channel"] == HELP
    assert posted["message"]["bot_id"]
    await client.chat_update(channel=HELP, ts=str(posted["ts"]), text="for everybody")
    assert (await stage.messages(ADA))[0]["text"] == "for everybody"


async def test_message_to_a_user_opens_the_direct_message(stage: Stage) -> None:
    """A user id is a place to post to."""
    client = await stage.bot()
    posted = await client.chat_postMessage(channel=MIA, text="hello")
    assert str(posted["channel"]).startswith("D")


async def test_messages_break_slacks_rules_with_slacks_errors(stage: Stage) -> None:
    """Limits and places are checked, with the codes of Slack's reference."""
    client = await stage.bot()
    post = client.chat_postMessage
    assert await _error(post(channel="C0NOWHERE", text="x")) == "channel_not_found"
    assert await _error(post(channel=RANDOM, text="x")) == "not_in_channel"
    empty = client.api_call("chat.postMessage", json={"channel": HELP, "text": ""})
    assert await _error(empty) == "no_text"
    assert await _error(post(channel=HELP, markdown_text="x" * 12_001)) == "msg_too_long"
    both = post(channel=HELP, text="x", markdown_text="x")
    assert await _error(both) == "markdown_text_conflict"
    blocks = [{"type": "carousel"}]
    assert await _error(post(channel=HELP, text="x", blocks=blocks)) == "invalid_blocks"
    whisper = client.chat_postEphemeral(channel=HELP, user="U0NOBODY", text="x")
    assert await _error(whisper) == "user_not_in_channel"
    posted = await post(channel=HELP, text="x")
    change = client.chat_update(channel=HELP, ts=str(posted["ts"]), text="x" * 4001)
    assert await _error(change) == "msg_too_long"


async def test_wrong_arguments_are_named(stage: Stage) -> None:
    """Unknown and missing arguments are refused, and the answer says which."""
    client = await stage.bot()
    with pytest.raises(SlackApiError) as caught:
        await client.api_call("chat.postMessage", json={"chanel": HELP, "text": "x"})
    assert caught.value.response["error"] == "invalid_arguments"
    messages = caught.value.response["response_metadata"]["messages"]
    assert messages == [
        "[ERROR] missing required field: channel",
        "[ERROR] no such argument: chanel",
    ]
    assert await _error(client.api_call("chat.shout")) == "unknown_method"


async def test_scopes_are_enforced(stage: Stage) -> None:
    """A method without its scope is refused; the answer names both sides."""
    client = await stage.bot()
    with pytest.raises(SlackApiError) as caught:
        await client.reactions_add(channel=HELP, name="eyes", timestamp="1800000000.000001")
    assert caught.value.response["error"] == "missing_scope"
    assert caught.value.response["needed"] == "reactions:write"


async def test_streams_grow_and_end(stage: Stage) -> None:
    """Text appended to a stream is read at once, and nothing is added after its end."""
    client = await stage.bot()
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    started = await client.chat_startStream(
        channel=HELP, thread_ts=root, recipient_user_id=MIA, recipient_team_id=TEAM
    )
    ts = str(started["ts"])
    await client.chat_appendStream(channel=HELP, ts=ts, markdown_text="Hello ")
    await client.chat_appendStream(channel=HELP, ts=ts, markdown_text="world")
    answer = (await stage.messages())[-1]
    assert (answer["text"], answer["sandbox"]["streaming"]) == ("Hello world", "open")
    change = client.chat_update(channel=HELP, ts=ts, text="x")
    assert await _error(change) == "streaming_state_conflict"
    await client.chat_stopStream(channel=HELP, ts=ts, markdown_text="!")
    assert (await stage.messages())[-1]["text"] == "Hello world!"
    late = client.chat_appendStream(channel=HELP, ts=ts, markdown_text="x")
    assert await _error(late) == "message_not_in_streaming_state"
    await client.chat_update(channel=HELP, ts=ts, text="put right afterwards")


async def test_streams_need_a_recipient_and_stop_in_time(stage: Stage) -> None:
    """A channel's stream names its reader; an old one takes no more text."""
    client = await stage.bot()
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    start = client.chat_startStream
    assert await _error(start(channel=HELP, thread_ts=root)) == "missing_recipient_team_id"
    nobody = start(channel=HELP, thread_ts=root, recipient_team_id=TEAM)
    assert await _error(nobody) == "missing_recipient_user_id"
    started = await start(
        channel=HELP, thread_ts=root, recipient_user_id=MIA, recipient_team_id=TEAM
    )
    ts = str(started["ts"])
    long = client.chat_appendStream(channel=HELP, ts=ts, markdown_text="x" * 12_001)
    assert await _error(long) == "msg_too_long"
    stage.clock.seconds += stage.config.stream_life_s
    late = client.chat_appendStream(channel=HELP, ts=ts, markdown_text="x")
    assert await _error(late) == "message_not_in_streaming_state"


async def test_reader_stops_a_stream_and_the_app_learns_of_it(stage: Stage) -> None:
    """After the reader's stop, appending fails and an event says who stopped what."""
    client = await stage.bot()
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    started = await client.chat_startStream(
        channel=HELP, thread_ts=root, recipient_user_id=MIA, recipient_team_id=TEAM
    )
    ts = str(started["ts"])
    await stage.do("stop-stream", channel=HELP, ts=ts)
    more = client.chat_appendStream(channel=HELP, ts=ts, markdown_text="x")
    assert await _error(more) == "stopped_by_user"
    event = json.loads((await stage.app.wait_for(1))[0].body)["event"]
    assert event["type"] == "agent_session_stopped"
    assert (event["user"], event["streaming_message_ts"]) == (MIA, [ts])
    await client.chat_stopStream(channel=HELP, ts=ts)


async def test_people_and_conversations_are_described(stage: Stage) -> None:
    """Users, channels and threads have Slack's shapes, with pages that end."""
    client = await stage.bot()
    user = (await client.users_info(user=MIA))["user"]
    assert user["profile"]["email"] == "mia@northwind.example"
    first = await client.conversations_list(types="public_channel", limit=2)
    assert len(first["channels"]) == 2
    cursor = first["response_metadata"]["next_cursor"]
    rest = await client.conversations_list(types="public_channel", limit=2, cursor=cursor)
    assert [each["name"] for each in rest["channels"]] == ["random", "partners"]
    assert rest["response_metadata"]["next_cursor"] == ""
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    await client.chat_postMessage(channel=HELP, thread_ts=root, text="an answer")
    thread = await client.conversations_replies(channel=HELP, ts=root)
    assert [each["text"] for each in thread["messages"]] == ["a question", "an answer"]
    assert thread["messages"][0]["reply_count"] == 1
    metadata = {"event_type": "kept", "event_payload": {"run": "7"}}
    await client.chat_postMessage(channel=HELP, thread_ts=root, text="x", metadata=metadata)
    thread = await client.conversations_replies(channel=HELP, ts=root)
    assert "metadata" not in thread["messages"][-1]
    thread = await client.conversations_replies(channel=HELP, ts=root, include_all_metadata=True)
    assert thread["messages"][-1]["metadata"] == metadata
    missing = client.conversations_replies(channel=HELP, ts="1800000000.999999")
    assert await _error(missing) == "thread_not_found"


async def test_email_needs_its_own_scope(stage: Stage) -> None:
    """Without users:read.email a profile holds no address."""
    form = {
        "client_id": CLIENT_ID,
        "scope": "users:read",
        "redirect_uri": stage.config.app.redirect_urls[0],
        "installer": f"{TEAM}/{ADA}",
        "decision": "allow",
    }
    async with stage.http.post(
        f"{stage.url}/oauth/v2/authorize",
        data=form,
        headers={"Origin": stage.url},
        allow_redirects=False,
    ) as response:
        code = parse_qs(response.headers["Location"].partition("?")[2])["code"][0]
    answer = await stage.exchanged(code)
    user = (await stage.client(answer["access_token"]).users_info(user=MIA))["user"]
    assert "email" not in user["profile"]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (
            "@ada, 1 < 2 & @nobody knows @Ben.",
            "<@U0ADA>, 1 &lt; 2 &amp; @nobody knows <@U0BEN>.",
        ),
        ("<@U0ADA>", "&lt;@U0ADA&gt;"),
        ("@carl of another company", "<@U0CARL> of another company"),
    ],
)
async def test_typed_text_is_kept_as_slack_keeps_it(stage: Stage, typed: str, kept: str) -> None:
    """Mark-up is escaped and forges no mention; names that a person can meet become mentions."""
    await stage.do("post", channel=HELP, typed=typed)
    assert (await stage.messages())[-1]["text"] == kept


async def test_mention_reaches_the_app_signed(stage: Stage) -> None:
    """The app can verify an event with Slack's own verifier, and reads Slack's envelope."""
    stage.clock.seconds = 1_800_000_000
    await stage.bot()
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    [got] = await stage.app.wait_for(1)
    assert got.path == "/work-apps/slack/events"
    verifier = SignatureVerifier(SIGNING_SECRET, clock=_FixedClock(stage.clock.seconds))
    assert verifier.is_valid_request(got.body, got.headers)
    assert not verifier.is_valid_request(got.body + b" ", got.headers)
    envelope = json.loads(got.body)
    assert envelope["type"] == "event_callback"
    assert envelope["event"]["type"] == "app_mention"
    assert envelope["event"]["user"] == MIA
    assert envelope["authorizations"][0]["team_id"] == TEAM
    bot = envelope["authorizations"][0]["user_id"]
    assert envelope["event"]["text"] == f"<@{bot}> hello"


async def test_unanswered_event_comes_again_with_the_same_id(stage: Stage) -> None:
    """A refused event is sent four times in all, each retry numbered and signed anew."""
    await stage.bot()
    stage.app.answers = [web.Response(status=503) for _ in range(4)]
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    attempts = await stage.app.wait_for(4)
    assert len({json.loads(each.body)["event_id"] for each in attempts}) == 1
    numbers = [each.headers.get("x-slack-retry-num") for each in attempts]
    assert numbers == [None, "1", "2", "3"]
    assert attempts[1].headers["x-slack-retry-reason"] == "http_error"
    [delivery] = (await stage.see("deliveries", settled="last"))["deliveries"]
    assert delivery["outcome"] == "failed"


async def test_silent_app_is_given_up_and_asked_again(stage: Stage) -> None:
    """An event that is not answered in time comes again, and says why."""
    await stage.bot()
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    await stage.app.wait_for(1)
    stage.app.silent = 1
    await stage.do("post", channel=HELP, typed="@Interlock are you there?")
    again = (await stage.app.wait_for(3))[-1]
    assert again.headers["x-slack-retry-reason"] == "http_timeout"
    assert again.headers["x-slack-retry-num"] == "1"


async def test_app_can_decline_retries(stage: Stage) -> None:
    """With x-slack-no-retry a failed event is not sent again."""
    await stage.bot()
    stage.app.answers = [web.Response(status=500, headers={"x-slack-no-retry": "1"})]
    await stage.do("post", channel=HELP, typed="@Interlock hello")
    await stage.app.wait_for(1)
    [delivery] = (await stage.see("deliveries", settled="last"))["deliveries"]
    assert delivery["outcome"] == "failed"
    assert [each["status"] for each in delivery["attempts"]] == [500]


async def test_direct_messages_reach_the_app_and_its_own_do_not_loop(stage: Stage) -> None:
    """A person's direct message is an event; the app's answer is marked as the app's."""
    client = await stage.bot()
    channel = (await stage.do("open-dm"))["channel"]
    await stage.do("post", channel=channel, typed="hello")
    await client.chat_postMessage(channel=channel, text="hello yourself")
    events = {each.event()["text"]: each.event() for each in await stage.app.wait_for(2)}
    hello = events["hello"]
    assert (hello["channel_type"], hello["user"]) == ("im", MIA)
    assert "bot_id" not in hello
    assert events["hello yourself"]["bot_id"]


async def test_click_is_an_interaction_with_a_response_url(stage: Stage) -> None:
    """A button's click is signed; its response URL changes the message, five times at most."""
    client = await stage.bot()
    button = {
        "type": "button",
        "action_id": "go",
        "value": "7",
        "text": {"type": "plain_text", "text": "Go"},
    }
    blocks = [{"type": "actions", "elements": [button]}]
    whisper = await client.chat_postEphemeral(channel=HELP, user=MIA, text="x", blocks=blocks)
    ts = str(whisper["message_ts"])
    click = {"channel": HELP, "ts": ts, "action_id": "go"}
    assert "error" in await stage.do("click", **click, user=ADA)
    assert (await stage.do("click", **click))["accepted"] is True
    [got] = await stage.app.wait_for(1)
    payload = json.loads(parse_qs(got.body.decode())["payload"][0])
    assert got.path == "/work-apps/slack/interactions"
    assert payload["actions"][0]["value"] == "7"
    assert payload["container"]["is_ephemeral"] is True
    assert "message" not in payload
    for number in range(5):
        answer = {"replace_original": True, "text": f"changed {number}"}
        async with stage.http.post(payload["response_url"], json=answer) as response:
            assert response.status == 200
    async with stage.http.post(payload["response_url"], json={"text": "x"}) as response:
        assert response.status == 404
    assert (await stage.messages())[-1]["text"] == "changed 4"


async def test_choice_of_a_select_is_sent_with_its_state(stage: Stage) -> None:
    """A select reports the option chosen; an option it lacks cannot be chosen."""
    client = await stage.bot()
    option = {"text": {"type": "plain_text", "text": "One"}, "value": "one"}
    select = {"type": "static_select", "action_id": "pick", "options": [option]}
    blocks = [{"type": "actions", "block_id": "b", "elements": [select]}]
    ts = str((await client.chat_postMessage(channel=HELP, text="x", blocks=blocks))["ts"])
    click = {"channel": HELP, "ts": ts, "action_id": "pick"}
    assert "error" in await stage.do("click", **click, choice="two")
    await stage.do("click", **click, choice="one")
    [got] = await stage.app.wait_for(1)
    payload = json.loads(parse_qs(got.body.decode())["payload"][0])
    assert payload["actions"][0]["selected_option"]["value"] == "one"
    assert payload["state"]["values"]["b"]["pick"]["selected_option"]["value"] == "one"
    assert payload["message"]["ts"] == ts


async def test_command_is_answered_in_the_channel_to_its_asker(stage: Stage) -> None:
    """A slash command is a signed form; its JSON answer is ephemeral unless it says otherwise."""
    await stage.bot()
    stage.app.answers = [web.json_response({"text": "here is help"})]
    await stage.do("command", channel=HELP, command="/interlock", text="help")
    [got] = await stage.app.wait_for(1)
    fields = parse_qs(got.body.decode())
    assert (fields["command"], fields["text"], fields["team_id"]) == (
        ["/interlock"],
        ["help"],
        [TEAM],
    )
    said = (await stage.messages())[-1]
    assert (said["text"], said["sandbox"]["ephemeral_to"]) == ("here is help", MIA)
    assert "error" in await stage.do("command", channel=HELP, command="/nothing")


async def test_modal_is_opened_filled_in_and_judged(stage: Stage) -> None:
    """A command's trigger opens a modal; the app can find fault with what is submitted."""
    client = await stage.bot()
    await stage.do("command", channel=HELP, command="/interlock")
    [got] = await stage.app.wait_for(1)
    [trigger] = parse_qs(got.body.decode())["trigger_id"]
    field = {
        "type": "input",
        "block_id": "question",
        "label": {"type": "plain_text", "text": "Question"},
        "element": {"type": "plain_text_input", "action_id": "text"},
    }
    view = {
        "type": "modal",
        "title": {"type": "plain_text", "text": "Ask"},
        "submit": {"type": "plain_text", "text": "Ask"},
        "blocks": [field],
    }
    opened = await client.views_open(trigger_id=trigger, view=view)
    again = client.views_open(trigger_id=trigger, view=view)
    assert await _error(again) == "exchanged_trigger_id"
    submit = {"view": opened["view"]["id"], "values": {"question": {"text": "why?"}}}
    assert "error" in await stage.do("submit-view", view=submit["view"])
    errors = {"response_action": "errors", "errors": {"question": "too short"}}
    stage.app.answers = [web.json_response(errors)]
    await stage.do("submit-view", **submit)
    assert len((await stage.see("views", team=TEAM, user=MIA))["views"]) == 1
    await stage.do("submit-view", **submit)
    assert (await stage.see("views", team=TEAM, user=MIA))["views"] == []
    payload = json.loads(parse_qs((await stage.app.wait_for(3))[-1].body.decode())["payload"][0])
    assert payload["view"]["state"]["values"]["question"]["text"]["value"] == "why?"


async def test_faults_happen_on_demand_and_calls_are_recorded(stage: Stage) -> None:
    """Tests can make Slack fail, and read what was asked, without its secrets."""
    client = await stage.bot()
    await stage.do("faults", method="chat.postMessage", kind="rate_limit", seconds=7)
    with pytest.raises(SlackApiError) as caught:
        await client.chat_postMessage(channel=HELP, text="x")
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "7"
    await client.chat_postMessage(channel=HELP, text="x")
    calls = (await stage.see("calls", method="chat.postMessage"))["calls"]
    assert [each["acted"] for each in calls] == [False, True]
    assert str(client.token) not in json.dumps(await stage.see("calls"))


async def test_url_verification_echoes_the_challenge(stage: Stage) -> None:
    """The app proves the events URL by returning the challenge."""
    stage.app.answers = [web.Response(text="not the challenge")]
    refused = await stage.do("url-verification")
    assert refused["reason"] == "wrong_challenge"
    body = json.loads((await stage.app.wait_for(1))[0].body)
    assert body["type"] == "url_verification"


async def test_app_redirect_leads_to_the_playground(stage: Stage) -> None:
    """The link to open the app in Slack opens the playground in that workspace."""
    link = f"{stage.url}/app_redirect"
    query = {"app": "A0INTERLOCK", "team": TEAM}
    async with stage.http.get(link, params=query, allow_redirects=False) as response:
        assert response.headers["Location"] == f"/?team={TEAM}"
    async with stage.http.get(link, params={"app": "A0OTHER"}) as response:
        assert response.status == 404


async def test_pages_of_others_cannot_use_the_control_api(stage: Stage) -> None:
    """A foreign origin, a form, and a foreign host name are refused."""
    url = f"{stage.url}/_control/uninstall"
    body = {"team": TEAM}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        async with stage.http.post(url, json=body, headers=headers) as response:
            assert response.status in {403, 421}
    async with stage.http.post(url, data=body) as response:
        assert response.status == 415


async def test_playground_loads_nothing_from_elsewhere(stage: Stage) -> None:
    """The page is served under a policy that allows its own files only."""
    async with stage.http.get(stage.url) as response:
        policy = response.headers["Content-Security-Policy"]
        page = await response.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "https://" not in page


class _FixedClock(SdkClock):
    """What SignatureVerifier asks for the time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        """Tell the time."""
        return self._seconds
