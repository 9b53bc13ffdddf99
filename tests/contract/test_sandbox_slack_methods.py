"""Every Web API method of the Slack stand-in: its arguments, its scopes, its answers."""

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.slack.call import APP_ONLY, BOT_ONLY
from interlock_sandbox.slack.methods import METHODS
from interlock_sandbox.slack.oauth import BOT_SCOPES, USER_SCOPES
from interlock_sandbox.testing import CLIENT_ID, SlackStage, slack_stage

TEAM, ENTERPRISE, SALES, OPERATIONS = "T0NORTHWIND", "E0MERIDIAN", "T0MERSALES", "T0MEROPS"
HELP, RANDOM, LEADS, PARTNERS = "C0NOHELP", "C0NORANDOM", "C0NOLEADS", "C0PARTNERS"
ADA, MIA, CARL, HUGO = "U0ADA", "U0MIA", "U0CARL", "U0HUGO"
# A webhook among it, which is for a channel.
EVERYTHING = {"scope": ",".join(BOT_SCOPES), "webhook_channel": HELP}
MODAL = {"type": "modal", "title": {"type": "plain_text", "text": "Ask"}, "blocks": []}

# What slack_sdk sends and Slack's reference does not know.
UNDOCUMENTED = {
    ("chat.postMessage", "container_id"),
    ("team.info", "include_slackbot_availability"),
}
# Values that are wrong in no other way than that something else is missing.
FILLER = "x"


@pytest.fixture
async def stage() -> AsyncIterator[SlackStage]:
    """Give a Slack with an app."""
    async with slack_stage(rate_limits=False) as made:
        yield made


async def _tokens(stage: SlackStage) -> dict[str, str]:
    """Install the app with every scope; return a token of each kind."""
    answer = await stage.installed(**EVERYTHING, user_scope=",".join(USER_SCOPES))
    return {
        "bot": answer["access_token"],
        "user": answer["authed_user"]["access_token"],
        "app": (await stage.see("secrets"))["app_token"],
    }


async def _client(stage: SlackStage, **fields: str) -> AsyncWebClient:
    """Install the app with every scope and return Slack's own client."""
    answer = await stage.installed(**{**EVERYTHING, **fields})
    return AsyncWebClient(base_url=stage.api_url, token=answer["access_token"])


async def _org_client(stage: SlackStage) -> AsyncWebClient:
    """Install the app in a whole Enterprise, let into one of its workspaces."""
    return await _client(stage, installer=f"{ENTERPRISE}/U0GRETA", workspaces=SALES)


async def _error(call: Any) -> str:
    with pytest.raises(SlackApiError) as caught:
        await call
    return str(caught.value.response["error"])


def _problems(answer: dict[str, Any]) -> list[str]:
    return list(answer.get("response_metadata", {}).get("messages", []))


# Arguments, for all methods alike.


async def test_every_method_names_unknown_and_missing_arguments(stage: SlackStage) -> None:
    """No method does anything with an argument too many or one too few, and each says which."""
    tokens = await _tokens(stage)
    for name, method in METHODS.items():
        token = tokens["app"] if method.kinds == APP_ONLY else tokens["bot"]
        complete = dict.fromkeys(method.required, FILLER)
        answer = await stage.call(name, token, **complete, no_such_argument=FILLER)
        assert answer["error"] == "invalid_arguments", name
        assert _problems(answer) == ["[ERROR] no such argument: no_such_argument"], name
        for missing in method.required:
            given = {each: FILLER for each in method.required if each != missing}
            answer = await stage.call(name, token, **given)
            assert answer["error"] == "invalid_arguments", (name, missing)
            assert _problems(answer) == [f"[ERROR] missing required field: {missing}"]
    assert not any(each["acted"] for each in (await stage.see("calls"))["calls"][1:])


def test_every_argument_of_slacks_sdk_is_known() -> None:
    """Whatever slack_sdk may send, the stand-in takes under the same name."""
    missing = set()
    for name, method in METHODS.items():
        call = getattr(AsyncWebClient, name.replace(".", "_"))
        known = method.required | method.optional
        for argument in inspect.signature(call).parameters:
            if argument not in {"self", "kwargs"} and argument not in known:
                missing.add((name, argument))
    assert missing == UNDOCUMENTED


def test_nothing_is_required_that_slacks_sdk_leaves_out() -> None:
    """Whoever calls a method by slack_sdk gave every argument that the stand-in asks for."""
    stricter = set()
    for name, method in METHODS.items():
        parameters = inspect.signature(getattr(AsyncWebClient, name.replace(".", "_"))).parameters
        optional = {
            each
            for each, parameter in parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        stricter |= {(name, each) for each in method.required & optional}
    assert stricter == set()


async def test_scope_is_asked_for_by_every_method_that_has_one(stage: SlackStage) -> None:
    """A token without any of a method's scopes is refused, and told which it lacks."""
    answer = await stage.installed(scope="users.profile:read", user_scope="identity.basic")
    bot, user = answer["access_token"], answer["authed_user"]["access_token"]
    for name, method in METHODS.items():
        if not method.scopes or method.kinds == APP_ONLY:
            continue
        refused = await stage.call(name, bot)
        assert refused["error"] == "missing_scope", name
        assert set(refused["needed"].split(",")) == method.scopes
        if method.kinds != BOT_ONLY:
            assert (await stage.call(name, user))["error"] == "missing_scope", name


async def test_kind_of_token_is_judged_by_every_method(stage: SlackStage) -> None:
    """Bots' methods refuse people's tokens, and the app-level token opens its own only."""
    tokens = await _tokens(stage)
    for name, method in METHODS.items():
        for kind, token in tokens.items():
            answer = await stage.call(name, token, no_such_argument=FILLER)
            is_refused = answer["error"] == "not_allowed_token_type"
            assert is_refused == (kind not in method.kinds), (name, kind)


async def test_forms_only_methods_do_not_read_json(stage: SlackStage) -> None:
    """Where Slack takes forms only, arguments in a JSON body are not there."""
    client = await _client(stage)
    call = client.api_call("users.info", json={"user": MIA})
    with pytest.raises(SlackApiError) as caught:
        await call
    assert _problems(dict(caught.value.response.data)) == ["[ERROR] missing required field: user"]
    assert (await client.api_call("conversations.history", json={"channel": HELP}))["ok"]


async def test_api_test_echoes(stage: SlackStage) -> None:
    """The one method without a token answers what it was sent, or the error asked for."""
    client = AsyncWebClient(base_url=stage.api_url)
    assert (await client.api_test())["ok"] is True
    assert await _error(client.api_test(error="my_error")) == "my_error"


# Conversations.


async def test_history_is_paged_from_the_newest(stage: SlackStage) -> None:
    """Pages are cut by cursor and by time, without what is in threads."""
    client = await _client(stage)
    sent = [
        (await client.chat_postMessage(channel=HELP, text=str(each)))["ts"] for each in range(5)
    ]
    await client.chat_postMessage(channel=HELP, text="reply", thread_ts=sent[0])
    first = await client.conversations_history(channel=HELP, limit=3)
    assert [each["text"] for each in first["messages"]] == ["4", "3", "2"]
    assert first["has_more"] is True
    rest = await client.conversations_history(
        channel=HELP, limit=3, cursor=first["response_metadata"]["next_cursor"]
    )
    assert [each["text"] for each in rest["messages"]] == ["1", "0"]
    assert rest["has_more"] is False
    assert rest["messages"][-1]["reply_count"] == 1
    span = {"channel": HELP, "oldest": sent[1], "latest": sent[3]}
    assert _texts(await client.conversations_history(**span)) == ["2"]
    assert _texts(await client.conversations_history(**span, inclusive=True)) == ["3", "2", "1"]
    for limit in (0, 1000, -1):
        call = client.conversations_history(channel=HELP, limit=limit)
        assert await _error(call) == "invalid_limit"
    wrong = client.conversations_history(channel=HELP, cursor="nonsense")
    assert await _error(wrong) == "invalid_cursor"
    late = client.conversations_history(channel=HELP, oldest="yesterday")
    assert await _error(late) == "invalid_ts_oldest"


def _texts(answer: Any) -> list[str]:
    return [each["text"] for each in answer["messages"]]


async def test_private_channel_is_not_there_for_who_is_not_in_it(stage: SlackStage) -> None:
    """An app learns of a private channel when it was invited, and needs its own scopes then."""
    client = await _client(stage)
    assert await _error(client.conversations_info(channel=LEADS)) == "channel_not_found"
    listed = await client.conversations_list(types="private_channel")
    assert listed["channels"] == []
    await stage.do("invite", user=ADA, channel=LEADS)
    shown = (await client.conversations_info(channel=LEADS))["channel"]
    assert (shown["is_private"], shown["is_member"]) == (True, True)
    assert (await client.conversations_list(types="private_channel"))["channels"]
    assert await _error(client.conversations_join(channel=LEADS)) == (
        "method_not_supported_for_channel_type"
    )


async def test_joining_a_channel_opens_it(stage: SlackStage) -> None:
    """An app lets itself into a public channel, and is told when it was there already."""
    client = await _client(stage)
    assert await _error(client.conversations_history(channel=RANDOM)) == "not_in_channel"
    joined = await client.conversations_join(channel=RANDOM)
    assert joined["channel"]["is_member"] is True
    assert (await client.conversations_history(channel=RANDOM))["ok"]
    again = await client.conversations_join(channel=RANDOM)
    assert again["warning"] == "already_in_channel"
    members = (await client.conversations_members(channel=RANDOM))["members"]
    assert (await client.auth_test())["user_id"] in members


async def test_long_list_of_channels_has_all_of_them_once(stage: SlackStage) -> None:
    """Pages never overlap and never end early, however many channels there are."""
    client = await _client(stage)
    made = {(await stage.do("new-channel", name=f"room-{n}"))["channel"] for n in range(30)}
    seen: list[str] = []
    cursor = ""
    while True:
        page = await client.conversations_list(limit=7, cursor=cursor)
        seen += [each["id"] for each in page["channels"]]
        cursor = page["response_metadata"]["next_cursor"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == 34
    assert made <= set(seen)


async def test_archived_channel_takes_no_message(stage: SlackStage) -> None:
    """It is left out of lists on request, and can be neither written to nor joined."""
    client = await _client(stage)
    await stage.do("archive", channel=HELP)
    assert await _error(client.chat_postMessage(channel=HELP, text="x")) == "is_archived"
    assert await _error(client.conversations_join(channel=HELP)) == "is_archived"
    listed = (await client.conversations_list(exclude_archived=True))["channels"]
    assert HELP not in {each["id"] for each in listed}
    await stage.do("archive", channel=HELP, on=False)
    assert (await client.chat_postMessage(channel=HELP, text="x"))["ok"]


async def test_channel_is_made_shared(stage: SlackStage) -> None:
    """A new channel of two companies is one of Slack Connect, with people of both only."""
    client = await _client(stage)
    both = {"name": "deal", "shared_with": ["T0CONTOSO"]}
    assert "error" in await stage.do("new-channel", **both, members=[HUGO])
    made = (await stage.do("new-channel", **both, members=[MIA, CARL]))["channel"]
    shown = (await client.conversations_info(channel=made))["channel"]
    assert (shown["is_ext_shared"], shown["shared_team_ids"]) == (True, [TEAM, "T0CONTOSO"])


async def test_direct_and_group_messages_open_once(stage: SlackStage) -> None:
    """The same people have the same conversation; wrong people have none."""
    client = await _client(stage)
    one = (await client.conversations_open(users=MIA))["channel"]["id"]
    again = await client.conversations_open(users=MIA, return_im=True)
    assert (again["channel"]["id"], again["already_open"]) == (one, True)
    assert again["channel"]["user"] == MIA
    group = (await client.conversations_open(users=f"{MIA},{ADA}"))["channel"]["id"]
    assert (await client.conversations_info(channel=group))["channel"]["is_mpim"] is True
    assert [each["id"] for each in (await client.conversations_list(types="mpim"))["channels"]] == [
        group
    ]
    for arguments, error in (
        ({"users": "U0NOBODY"}, "user_not_found"),
        ({}, "users_list_not_supplied"),
        ({"users": (await client.auth_test())["user_id"]}, "invalid_user_combination"),
        ({"users": ",".join(f"U{each}" for each in range(9))}, "too_many_users"),
        ({"channel": HELP}, "method_not_supported_for_channel_type"),
        ({"users": "U0ROB", "prevent_creation": "true"}, "channel_not_found"),
    ):
        assert await _error(client.api_call("conversations.open", data=arguments)) == error


async def test_permalink_leads_to_the_message_and_its_thread(stage: SlackStage) -> None:
    """The address names channel, message and, for a reply, the thread."""
    client = await _client(stage)
    root = str((await client.chat_postMessage(channel=HELP, text="x"))["ts"])
    reply = str((await client.chat_postMessage(channel=HELP, text="y", thread_ts=root))["ts"])
    link = (await client.chat_getPermalink(channel=HELP, message_ts=reply))["permalink"]
    packed = reply.replace(".", "")
    assert link == (
        f"https://northwind.slack.com/archives/{HELP}/p{packed}?thread_ts={root}&cid={HELP}"
    )
    missing = client.chat_getPermalink(channel=HELP, message_ts="1800000000.999999")
    assert await _error(missing) == "message_not_found"


async def test_deleted_message_is_gone_and_others_messages_stay(stage: SlackStage) -> None:
    """An app deletes its own messages only, and each of them once."""
    client = await _client(stage)
    ts = str((await client.chat_postMessage(channel=HELP, text="x"))["ts"])
    await client.chat_delete(channel=HELP, ts=ts)
    assert await _error(client.chat_delete(channel=HELP, ts=ts)) == "message_not_found"
    mias = (await stage.do("post", channel=HELP, typed="mine"))["ts"]
    assert await _error(client.chat_delete(channel=HELP, ts=mias)) == "cant_delete_message"
    change = client.chat_update(channel=HELP, ts=mias, text="yours")
    assert await _error(change) == "cant_update_message"


async def test_long_text_is_cut_with_a_warning(stage: SlackStage) -> None:
    """Slack posts the first 40,000 characters and says so; a whisper it refuses."""
    client = await _client(stage)
    posted = await client.chat_postMessage(channel=HELP, text="x" * 40_001)
    assert posted["warning"] == "message_truncated"
    assert len(posted["message"]["text"]) == 40_000
    whisper = client.chat_postEphemeral(channel=HELP, user=MIA, text="x" * 40_001)
    assert await _error(whisper) == "msg_too_long"


async def test_reactions_are_added_and_taken_back_once(stage: SlackStage) -> None:
    """A reaction is one person's, of a known name, on a message that is there."""
    client = await _client(stage)
    ts = str((await client.chat_postMessage(channel=HELP, text="x"))["ts"])
    mine = {"channel": HELP, "name": "eyes", "timestamp": ts}
    await client.reactions_add(**mine)
    assert await _error(client.reactions_add(**mine)) == "already_reacted"
    [shown] = (await client.conversations_history(channel=HELP))["messages"]
    assert shown["reactions"][0]["count"] == 1
    await client.reactions_remove(**mine)
    assert await _error(client.reactions_remove(**mine)) == "no_reaction"
    assert await _error(client.reactions_remove(name="eyes")) == "no_item_specified"
    for changes, error in (
        ({"name": "no such"}, "invalid_name"),
        ({"timestamp": "1"}, "bad_timestamp"),
        ({"timestamp": "1800000000.999999"}, "message_not_found"),
        ({"channel": "C0NOWHERE"}, "channel_not_found"),
    ):
        assert await _error(client.reactions_add(**(mine | changes))) == error


# People.


async def test_people_are_listed_and_found_by_address(stage: SlackStage) -> None:
    """Everybody of a workspace, in pages or all at once, and one by e-mail."""
    client = await _client(stage)
    everybody = (await client.users_list())["members"]
    page = await client.users_list(limit=2)
    rest = await client.users_list(limit=100, cursor=page["response_metadata"]["next_cursor"])
    assert [*page["members"], *rest["members"]] == everybody
    assert any(each["is_bot"] for each in everybody)
    found = await client.users_lookupByEmail(email="Mia@northwind.example")
    assert found["user"]["id"] == MIA
    assert await _error(client.users_lookupByEmail(email="x@y.example")) == "users_not_found"
    assert await _error(client.users_info(user="U0NOBODY")) == "user_not_found"
    mine = (await client.users_conversations())["channels"]
    assert {each["id"] for each in mine} == {"C0NOGENERAL", HELP}
    adas = (await client.users_conversations(user=ADA, types="public_channel"))["channels"]
    assert PARTNERS in {each["id"] for each in adas}


async def test_stranger_is_known_by_name_only(stage: SlackStage) -> None:
    """Somebody of a company that shares a channel is described, without the address."""
    client = await _client(stage)
    user = (await client.users_info(user=CARL))["user"]
    assert (user["team_id"], user["is_stranger"]) == ("T0CONTOSO", True)
    assert "email" not in user["profile"]
    assert await _error(client.users_info(user=HUGO)) == "user_not_found"
    shown = (await client.conversations_info(channel=PARTNERS))["channel"]
    assert (shown["is_ext_shared"], shown["is_org_shared"]) == (True, False)


async def test_team_and_bot_are_described(stage: SlackStage) -> None:
    """The app's own workspace and bot are known to it, others' are not."""
    client = await _client(stage)
    team = (await client.team_info())["team"]
    assert (team["id"], team["domain"]) == (TEAM, "northwind")
    assert await _error(client.team_info(team="T0CONTOSO")) == "team_not_found"
    bot = (await client.bots_info())["bot"]
    who = await client.auth_test()
    assert (bot["id"], bot["user_id"]) == (who["bot_id"], who["user_id"])
    assert await _error(client.bots_info(bot="B0OTHER")) == "bot_not_found"


# A whole Enterprise.


async def test_org_token_names_the_workspace_it_means(stage: SlackStage) -> None:
    """Lists need a team_id that was granted; a conversation tells its workspace by itself."""
    client = await _org_client(stage)
    assert await _error(client.conversations_list()) == "missing_argument"
    assert await _error(client.users_list()) == "missing_argument"
    foreign = client.conversations_list(team_id=OPERATIONS)
    assert await _error(foreign) == "team_access_not_granted"
    listed = (await client.conversations_list(team_id=SALES))["channels"]
    assert {each["name"] for each in listed} == {"general", "help", "all-hands"}
    shown = next(each for each in listed if each["name"] == "all-hands")
    assert (shown["is_org_shared"], shown["is_ext_shared"]) == (True, False)
    assert (await client.chat_postMessage(channel="C0MSHELP", text="x"))["ok"]
    elsewhere = client.chat_postMessage(channel="C0MOHELP", text="x")
    assert await _error(elsewhere) == "channel_not_found"
    teams = (await client.auth_teams_list())["teams"]
    assert teams == [{"id": SALES, "name": "Meridian Sales"}]
    hugo = (await client.users_info(user=HUGO))["user"]
    assert hugo["enterprise_user"]["teams"] == [SALES]
    assert hugo["profile"]["email"] == "hugo@meridian.example"


# Views, assistants, files.


async def _triggered(stage: SlackStage, count: int) -> str:
    """Run a slash command; return the trigger that came with it."""
    await stage.do("command", channel=HELP, command="/interlock")
    return (await stage.app.wait_for(count))[-1].fields()["trigger_id"]


async def test_views_are_pushed_and_updated_by_external_id(stage: SlackStage) -> None:
    """A trigger of a modal pushes another on top, which an own name finds again."""
    client = await _client(stage)
    button = {
        "type": "button",
        "action_id": "more",
        "text": {"type": "plain_text", "text": "More"},
    }
    root = MODAL | {"blocks": [{"type": "actions", "elements": [button]}]}
    opened = (await client.views_open(trigger_id=await _triggered(stage, 1), view=root))["view"]
    await stage.do("act-in-view", view=opened["id"], action_id="more")
    click = (await stage.app.wait_for(2))[-1].payload()
    pushed = await client.views_push(
        trigger_id=click["trigger_id"], view=MODAL | {"external_id": "second"}
    )
    assert pushed["view"]["previous_view_id"] == opened["id"]
    changed = await client.views_update(
        external_id="second", view=MODAL | {"callback_id": "changed", "external_id": "second"}
    )
    assert (changed["view"]["id"], changed["view"]["callback_id"]) == (
        pushed["view"]["id"],
        "changed",
    )
    stale = client.views_update(view_id=opened["id"], hash="old", view=MODAL)
    assert await _error(stale) == "hash_conflict"
    assert await _error(client.views_update(view_id="V0NONE", view=MODAL)) == "not_found"
    huge = MODAL | {"private_metadata": "x" * 250_001}
    late = client.views_open(trigger_id=await _triggered(stage, 3), view=huge)
    assert await _error(late) == "view_too_large"
    assert await _error(client.views_open(trigger_id="1.2.3", view=MODAL)) == "invalid_trigger_id"


async def test_home_tab_is_published_for_a_person(stage: SlackStage) -> None:
    """What the app published is what the person opens, and the hash guards it."""
    client = await _client(stage)
    view = {"type": "home", "blocks": [{"type": "divider"}]}
    published = (await client.views_publish(user_id=MIA, view=view))["view"]
    assert (published["type"], published["root_view_id"]) == ("home", published["id"])
    assert (await stage.do("open-home"))["view"]["id"] == published["id"]
    stale = client.views_publish(user_id=MIA, view=view, hash="old")
    assert await _error(stale) == "hash_conflict"
    assert await _error(client.views_publish(user_id=CARL, view=view)) == "user_not_found"
    assert await _error(client.views_publish(user_id=MIA, view=MODAL)) == "invalid_arguments"


async def test_assistant_thread_shows_status_prompts_and_title(stage: SlackStage) -> None:
    """What an assistant says about its thread is kept there; another thread is refused."""
    client = await _client(stage)
    begun = await stage.do("open-assistant")
    thread = {"channel_id": begun["channel"], "thread_ts": begun["thread_ts"]}
    await client.assistant_threads_setTitle(**thread, title="Refunds")
    await client.assistant_threads_setStatus(**thread, status="is thinking")
    prompts: list[dict[str, str]] = [{"title": "Refund", "message": "Refund order 7"}]
    await client.assistant_threads_setSuggestedPrompts(**thread, prompts=prompts)
    seen = await stage.see("messages", team=TEAM, channel=begun["channel"], user=MIA)
    assert [each["status"] for each in seen["statuses"]] == ["is thinking"]
    root = seen["messages"][0]
    assert root["assistant_app_thread"]["title"] == "Refunds"
    assert root["metadata"]["event_payload"]["prompts"] == prompts
    elsewhere = thread | {"thread_ts": "1800000000.999999"}
    title = client.assistant_threads_setTitle(**elsewhere, title="x")
    assert await _error(title) == "invalid_thread_ts"
    too_many = client.assistant_threads_setStatus(**thread, status="x", loading_messages=["x"] * 11)
    assert await _error(too_many) == "invalid_arguments"


async def test_file_is_uploaded_by_slacks_own_client(stage: SlackStage) -> None:
    """files_upload_v2 asks, sends and shares; the file is shown with its comment."""
    client = await _client(stage)
    root = (await stage.do("post", channel=HELP, typed="a question"))["ts"]
    shared = await client.files_upload_v2(
        channel=HELP,
        thread_ts=root,
        filename="answer.md",
        title="The whole answer",
        content="# Everything",
        initial_comment="Too long for a message",
    )
    thread = (await client.conversations_replies(channel=HELP, ts=root))["messages"]
    assert thread[-1]["text"] == "Too long for a message"
    [file] = thread[-1]["files"]
    assert (file["title"], file["size"], file["channels"]) == ("The whole answer", 12, [HELP])
    info = (await client.files_info(file=shared["file"]["id"]))["file"]
    assert info["name"] == "answer.md"
    async with stage.http.get(f"{stage.url}/_control/files/{file['id']}") as response:
        assert await response.read() == b"# Everything"


async def test_file_is_shared_once_and_only_when_it_came(stage: SlackStage) -> None:
    """Nothing is shared that was not sent, sent in part, or shared before."""
    client = await _client(stage)
    assert await _error(client.files_getUploadURLExternal(filename="x", length=0)) == (
        "missing_argument"
    )
    asked = await client.files_getUploadURLExternal(filename="x.txt", length=4)
    files: list[dict[str, str | None]] = [{"id": str(asked["file_id"]), "title": "x"}]
    early = client.files_completeUploadExternal(files=files, channel_id=HELP)
    assert await _error(early) == "file_not_found"
    for content, status in ((b"toolong", 400), (b"four", 200), (b"four", 404)):
        async with stage.http.post(str(asked["upload_url"]), data=content) as response:
            assert response.status == status
    elsewhere = client.files_completeUploadExternal(files=files, channel_id=RANDOM)
    assert await _error(elsewhere) == "not_in_channel"
    await client.files_completeUploadExternal(files=files, channel_id=HELP)
    again = client.files_completeUploadExternal(files=files, channel_id=HELP)
    assert await _error(again) == "file_not_found"
    assert await _error(client.files_info(file="F0NONE")) == "file_not_found"


async def test_secrets_of_calls_are_not_in_the_record(stage: SlackStage) -> None:
    """The record of what was asked holds no token, secret or code."""
    client = await _client(stage)
    await client.chat_postMessage(channel=HELP, text="x")
    await stage.call("auth.test", token="xoxb-forged", client_id=CLIENT_ID)
    record = json.dumps(await stage.see("calls"))
    secrets = await stage.see("secrets")
    for secret in [*secrets["tokens"], *secrets["codes"]]:
        assert secret not in record
