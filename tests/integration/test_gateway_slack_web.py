"""The worker's Slack adapter against the stand-in, which checks arguments as Slack does."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
from yarl import URL

from interlock_chassis.secret import Secret
from interlock_gateway.adapters.worker_slack_web import SlackWeb
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import Choice, Project, Source
from interlock_gateway.worker.slack import (
    BotTokenRefused,
    Note,
    Place,
    Reader,
    SlackRateLimited,
    SlackRefused,
    SlackUnavailable,
)
from interlock_sandbox.server import running
from interlock_sandbox.testing import (
    CLIENT_ID,
    CLIENT_SECRET,
    RecordingApp,
    example_config,
    install,
    recording_app,
)

TEAM, CHANNEL, MIA = "T0NORTHWIND", "C0NOGENERAL", "U0MIA"
METADATA = {"event_type": "interlock_answer", "event_payload": {"message_id": "m", "is_end": True}}


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace of the stand-in with our app in it."""

    http: aiohttp.ClientSession
    url: str
    app: RecordingApp
    slack: SlackWeb
    token: Secret[str]

    async def control(self, action: str, **body: Any) -> Any:
        """Use the stand-in's control API."""
        async with self.http.post(f"{self.url}/_control/{action}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def ask(self, text: str = "Hello", thread_ts: str | None = None) -> Place:
        """Write a message as Mia; return the thread it is in or begins."""
        more = {"thread_ts": thread_ts} if thread_ts else {}
        posted = await self.control("post", team=TEAM, user=MIA, channel=CHANNEL, text=text, **more)
        return Place(CHANNEL, thread_ts or posted["ts"])

    async def seen(self, user: str = MIA) -> list[dict[str, Any]]:
        """List the channel as a user sees it, without people's own messages."""
        query = {"team": TEAM, "channel": CHANNEL, "user": user}
        async with self.http.get(f"{self.url}/_control/messages", params=query) as response:
            shown = (await response.json())["messages"]
        return [message for message in shown if message["user"] != MIA]

    async def calls(self, method: str) -> list[dict[str, Any]]:
        """List the calls of a method."""
        async with self.http.get(
            f"{self.url}/_control/calls", params={"method": method}
        ) as response:
            calls: list[dict[str, Any]] = (await response.json())["calls"]
            return calls

    async def fault(self, method: str, kind: str, **more: Any) -> None:
        """Let the next call of a method go wrong."""
        await self.control("faults", method=method, kind=kind, **more)


@asynccontextmanager
async def open_workspace() -> AsyncIterator[Workspace]:
    """Run the stand-in and install the app."""
    async with recording_app() as app, aiohttp.ClientSession() as http:
        config = example_config(app.url)
        async with running(config) as urls:
            code = await install(http, urls.slack, config)
            form = {
                "client_id": CLIENT_ID,
                "client_secret": CLIENT_SECRET,
                "code": code,
                "redirect_uri": config.app.redirect_urls[0],
            }
            async with http.post(f"{urls.slack}/api/oauth.v2.access", data=form) as response:
                token = (await response.json())["access_token"]
            api = URL(f"{urls.slack}/api/")
            hosts = (api.authority,)
            slack = SlackWeb(http, api, response_hosts=hosts, may_be_plain=True)
            workspace = Workspace(http, urls.slack, app, slack, Secret(token))
            yield workspace


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    """Give a workspace with the app installed."""
    async with open_workspace() as opened:
        yield opened


# Reading.


async def test_token_is_checked(workspace: Workspace) -> None:
    """A good token passes; a wrong one is told apart from other refusals."""
    await workspace.slack.check(workspace.token)
    with pytest.raises(BotTokenRefused):
        await workspace.slack.check(Secret("xoxb-wrong"))


async def test_profile_has_name_and_address(workspace: Workspace) -> None:
    """The confirm page can show who asks."""
    profile = await workspace.slack.profile(workspace.token, MIA)
    assert (profile.name, profile.email) == ("Mia Castellanos", "mia@northwind.example")


async def test_thread_is_read_with_our_metadata(workspace: Workspace) -> None:
    """Messages come oldest first; ours carry what they are found by."""
    place = await workspace.ask("First")
    await workspace.ask("Second", place.thread_ts)
    await workspace.slack.post(workspace.token, place, Note("Third", metadata=METADATA))
    thread = await workspace.slack.thread(workspace.token, place)
    assert [message.text for message in thread] == ["First", "Second", "Third"]
    assert thread[0].author == MIA
    assert thread[2].metadata == METADATA["event_payload"]


async def test_channels_are_listed(workspace: Workspace) -> None:
    """Channels come by name, with whether the bot is in them."""
    channels = await workspace.slack.channels(workspace.token, "")
    assert [channel.name for channel in channels] == sorted(channel.name for channel in channels)
    (general,) = [channel for channel in channels if channel.channel_id == CHANNEL]
    assert general.is_member


# Saying.


async def test_answer_streams(workspace: Workspace) -> None:
    """Start, append and stop make one message with its footer and metadata."""
    slack, token, place = workspace.slack, workspace.token, await workspace.ask()
    await slack.set_status(token, place, "is thinking…")
    ts = await slack.start_stream(token, place, Reader(MIA, TEAM))
    await slack.append_stream(token, CHANNEL, ts, "Hello ")
    await slack.append_stream(token, CHANNEL, ts, "Mia.")
    footer = answer.footer("Helper", [Source("Guide", "https://docs.example/a?b=1&c=2")])
    await slack.stop_stream(token, CHANNEL, ts, text=" Bye.", blocks=footer, metadata=METADATA)
    (message,) = await workspace.seen()
    assert message["text"] == "Hello Mia. Bye."
    assert message["thread_ts"] == place.thread_ts
    assert "Helper" in str(message["blocks"])
    assert (await slack.thread(token, place))[1].metadata["is_end"] is True


async def test_answer_is_posted_and_updated(workspace: Workspace) -> None:
    """Without streams a page is posted, replaced, and links nothing that Slack would fetch."""
    slack, token, place = workspace.slack, workspace.token, await workspace.ask()
    ts = await slack.post(token, place, answer.page_note("Hello", (), METADATA))
    note = answer.page_note("Hello **Mia**.", answer.footer("Helper", []), METADATA)
    await slack.update(token, CHANNEL, ts, note)
    (message,) = await workspace.seen()
    assert message["blocks"][0]["text"] == "Hello **Mia**."
    (call,) = await workspace.calls("chat.postMessage")
    assert call["args"]["unfurl_links"] is False
    assert call["args"]["unfurl_media"] is False


async def test_whispers_reach_one_person(workspace: Workspace) -> None:
    """A link, a picker and a notice are valid Block Kit, shown to one person, with the secret."""
    slack, token, place = workspace.slack, workspace.token, await workspace.ask()
    aside = Place(place.channel, "")
    projects = [Project("Docs", [Choice("docs", "helper", "Helper")])]
    link = Secret("https://app.example/work-apps/slack/link?code=s3cret")
    for note in (
        answer.link_note(link),
        answer.picker_note(projects, "Ev1"),
        answer.linked_note("Mia"),
        answer.plain_note(answer.HINT),
    ):
        await slack.whisper(token, aside, MIA, note)
    assert len(await workspace.seen()) == 4
    assert "code=s3cret" in str(await workspace.seen())
    assert await workspace.seen("U0ROB") == []


async def test_direct_message_is_opened_by_posting(workspace: Workspace) -> None:
    """A user's id as channel reaches the direct message."""
    ts = await workspace.slack.post(workspace.token, Place(MIA, ""), answer.plain_note("Hello"))
    assert re.fullmatch(r"[0-9]+\.[0-9]{6}", ts)


# Refusals.


async def test_refusal_carries_slacks_code(workspace: Workspace) -> None:
    """What Slack refuses is told apart by its code."""
    with pytest.raises(SlackRefused) as refused:
        await workspace.slack.post(workspace.token, Place("C0NOWHERE", ""), Note("Hello"))
    assert refused.value.code == "channel_not_found"


async def test_rate_limit_says_how_long(workspace: Workspace) -> None:
    """429 is honoured by the time it names, and nothing is tried again here."""
    await workspace.fault("chat.postMessage", "rate_limit", seconds=7)
    place = await workspace.ask()
    with pytest.raises(SlackRateLimited) as limited:
        await workspace.slack.post(workspace.token, place, Note("Hello"))
    assert limited.value.retry_after == timedelta(seconds=7)
    assert await workspace.seen() == []


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "http_status", "status": 503},
        {"kind": "error", "error": "internal_error"},
        {"kind": "drop_reply"},
    ],
)
async def test_silence_of_slack_is_no_refusal(workspace: Workspace, fault: dict[str, Any]) -> None:
    """When nobody knows whether a call happened, the error says so, and it is not repeated."""
    place = await workspace.ask()
    await workspace.fault("chat.postMessage", **fault)
    with pytest.raises(SlackUnavailable):
        await workspace.slack.post(workspace.token, place, Note("Hello"))
    assert len(await workspace.calls("chat.postMessage")) == 1


async def test_stopped_stream_is_refused_by_code(workspace: Workspace) -> None:
    """A reader's stop shows at the next piece, and the message can still be ended."""
    slack, token, place = workspace.slack, workspace.token, await workspace.ask()
    ts = await slack.start_stream(token, place, Reader(MIA, TEAM))
    await slack.append_stream(token, CHANNEL, ts, "Hello")
    await workspace.control("stop-stream", team=TEAM, user=MIA, channel=CHANNEL, ts=ts)
    with pytest.raises(SlackRefused) as refused:
        await slack.append_stream(token, CHANNEL, ts, "more")
    assert refused.value.code == "stopped_by_user"
    await slack.stop_stream(token, CHANNEL, ts, text="", blocks=(), metadata=METADATA)


async def test_no_error_shows_the_token(workspace: Workspace) -> None:
    """Whatever goes wrong, the token is in no text of the error or its causes."""
    for fault in (
        {"kind": "http_status", "status": 500},
        {"kind": "error", "error": "invalid_auth"},
    ):
        await workspace.fault("auth.test", **fault)
        with pytest.raises((SlackUnavailable, BotTokenRefused)) as failed:
            await workspace.slack.check(workspace.token)
        assert workspace.token.reveal() not in repr(
            failed.getrepr(showlocals=False, style="native")
        )


# Response URLs.


async def click(workspace: Workspace) -> Secret[str]:
    """Let Mia press a button of ours; return the response URL that came with it."""
    place = await workspace.ask()
    ts = await workspace.slack.post(workspace.token, place, answer.linked_note("Mia"))
    before = len(workspace.app.received)
    await workspace.control(
        "click", team=TEAM, user=MIA, channel=CHANNEL, ts=ts, action_id=answer.UNLINK_ACTION
    )
    async with asyncio.timeout(10):
        while True:
            received = await workspace.app.wait_for(before + 1)
            for each in received:
                if each.path.endswith("/interactions"):
                    payload = parse_qs(each.body.decode())["payload"][0]
                    found = re.search(r'"response_url": "([^"]+)"', payload)
                    assert found is not None
                    return Secret(found[1])
            before += 1


async def test_response_url_replaces_the_message(workspace: Workspace) -> None:
    """The message that was clicked becomes the answer."""
    url = await click(workspace)
    await workspace.slack.respond(url, TEAM, answer.unlinked_note(was_linked=True))
    assert "unlinked" in str(await workspace.seen())


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.evil.example/actions/T0NORTHWIND/1/x",
        "https://hooks.slack.com@evil.example/actions/T0NORTHWIND/1/x",
        "https://hooks.slack.com.evil.example/actions/T0NORTHWIND/1/x",
        "https://hooks.slack.com:8443/actions/T0NORTHWIND/1/x",
        "http://hooks.slack.com/actions/T0NORTHWIND/1/x",
        "https://hooks.slack.com/actions/T0OTHER/1/x",
        "https://hooks.slack.com/T0NORTHWIND/actions/1/x",
        "https://169.254.169.254/actions/T0NORTHWIND/1/x",
        "https://user@hooks.slack.com/actions/T0NORTHWIND/1/x",
        "file:///etc/passwd",
        "not a url",
        "",
    ],
)
async def test_foreign_response_url_is_never_called(url: str) -> None:
    """Only Slack's hosts, over TLS, on their port, for the grant's team."""
    # No connection is possible: the session is closed.
    session = aiohttp.ClientSession()
    await session.close()
    slack = SlackWeb(session, URL("https://slack.com/api/"))
    with pytest.raises(SlackRefused):
        await slack.respond(Secret(url), TEAM, answer.plain_note("Hello"))


async def test_response_url_that_redirects_is_not_followed() -> None:
    """A redirect is a refusal."""
    async with recording_app() as app, aiohttp.ClientSession() as http:
        app.answers.append(
            aiohttp.web.Response(status=302, headers={"Location": f"{app.url}/elsewhere"})
        )
        url = URL(app.url)
        slack = SlackWeb(http, url, response_hosts=(url.authority,), may_be_plain=True)
        with pytest.raises(SlackRefused):
            await slack.respond(
                Secret(f"{app.url}/actions/{TEAM}/1/x"), TEAM, answer.plain_note("Hello")
            )
        assert len(app.received) == 1
