"""The incoming webhooks of the Slack stand-in, posted to by Slack's own client."""

from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
from slack_sdk.webhook.async_client import AsyncWebhookClient

from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage

TEAM, ENTERPRISE, HELP = "T0NORTHWIND", "E0MERIDIAN", "C0NOHELP"
SCOPES = "chat:write,channels:manage,incoming-webhook"


@pytest.fixture
async def stage() -> AsyncIterator[SlackStage]:
    """Give a Slack whose app has no token rotation."""
    async with slack_stage() as made:
        yield made


async def _url(stage: SlackStage, channel: str = HELP) -> str:
    answer = await stage.installed(scope=SCOPES, webhook_channel=channel)
    return str(answer["incoming_webhook"]["url"])


async def _said(stage: SlackStage, url: str, **content: object) -> tuple[int, str]:
    """Post as slack_sdk does; returns Slack's status and word."""
    response = await AsyncWebhookClient(url).send_dict(dict(content))
    return response.status_code, response.body


async def test_install_gives_the_webhook_that_was_asked_for(stage: SlackStage) -> None:
    """The answer names the channel that the installer chose, and a secret address for it."""
    answer = await stage.installed(scope=SCOPES, webhook_channel=HELP)
    webhook = answer["incoming_webhook"]
    assert webhook.keys() == {"channel", "channel_id", "configuration_url", "url"}
    assert (webhook["channel"], webhook["channel_id"]) == ("#help", HELP)
    service = webhook["url"].split("/")[-2]
    assert webhook["url"].startswith(f"{stage.url}/services/{TEAM}/{service}/")
    assert webhook["configuration_url"] == f"https://northwind.slack.com/services/{service}"
    assert "incoming-webhook" in answer["scope"].split(",")
    path = webhook["url"].removeprefix(stage.url)
    assert (await stage.see("secrets"))["webhook_urls"] == [path]


async def test_install_gives_no_webhook_that_was_not_asked_for(stage: SlackStage) -> None:
    """Neither without the scope, nor for a whole Enterprise, which has no channel of its own."""
    assert "incoming_webhook" not in await stage.installed(webhook_channel=HELP)
    org_wide = await stage.installed(f"{ENTERPRISE}/U0GRETA", scope=SCOPES, webhook_channel=HELP)
    assert "incoming_webhook" not in org_wide


@pytest.mark.parametrize("chosen", ["none", "of another workspace", "private"])
async def test_consent_asks_for_a_channel_that_the_installer_sees(
    stage: SlackStage, chosen: str
) -> None:
    """Otherwise the page says so, and the app gets no code."""
    private = await stage.do("new-channel", name="quiet", private=True)
    channel = {"none": "", "of another workspace": "C0COHELP", "private": private["channel"]}
    form = {
        "client_id": CLIENT_ID,
        "scope": SCOPES,
        "redirect_uri": stage.config.app.redirect_urls[0],
        "installer": f"{TEAM}/U0ADA",
        "webhook_channel": channel[chosen],
        "decision": "allow",
    }
    page, headers = f"{stage.url}/oauth/v2/authorize", {"Origin": stage.url}
    async with stage.http.post(page, data=form, headers=headers, allow_redirects=False) as response:
        assert response.status == HTTPStatus.BAD_REQUEST
        assert "channel_not_found" in await response.text()
    assert (await stage.see("secrets"))["codes"] == []


async def test_what_is_posted_is_in_the_channel(stage: SlackStage) -> None:
    """As the app, in JSON or in a form, and the record of calls shows no address."""
    url = await _url(stage)
    assert await _said(stage, url, text="from the app") == (200, "ok")
    async with stage.http.post(url, data={"payload": '{"text": "by form"}'}) as response:
        assert (response.status, await response.text()) == (200, "ok")
    seen = await stage.see("messages", team=TEAM, channel=HELP, user="U0MIA")
    assert [(each["text"], each["subtype"]) for each in seen["messages"]] == [
        ("from the app", "bot_message"),
        ("by form", "bot_message"),
    ]
    calls = await stage.see("calls", method="incoming_webhook")
    assert [each["acted"] for each in calls["calls"]] == [True, True]
    assert url.rsplit("/", 1)[1] not in str(calls)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        pytest.param("no json", "invalid_payload", id="no-json"),
        pytest.param("[]", "invalid_payload", id="no-object"),
        pytest.param("{}", "no_text", id="nothing-to-say"),
        pytest.param('{"blocks": [{"type": "carousel"}]}', "invalid_blocks", id="unknown-block"),
    ],
)
async def test_what_cannot_be_posted_is_refused_in_a_word(
    stage: SlackStage, body: str, word: str
) -> None:
    """400, and nothing is in the channel."""
    async with stage.http.post(await _url(stage), data=body) as response:
        assert (response.status, await response.text()) == (400, word)
    seen = await stage.see("messages", team=TEAM, channel=HELP, user="U0MIA")
    assert seen["messages"] == []


async def test_closed_channel_takes_nothing(stage: SlackStage) -> None:
    """410 once it is archived."""
    url = await _url(stage)
    await stage.do("archive", channel=HELP)
    assert await _said(stage, url, text="late") == (410, "channel_is_archived")


async def test_webhook_ends_with_the_installation(stage: SlackStage) -> None:
    """404 after the app has left, by either way, and for good; a reinstall makes another."""
    by_uninstall = await stage.installed(scope=SCOPES, webhook_channel=HELP)
    first = by_uninstall["incoming_webhook"]["url"]
    again = await _url(stage)
    assert (await _said(stage, first, text="x"), await _said(stage, again, text="x")) == (
        (200, "ok"),
        (200, "ok"),
    )
    await stage.call(
        "apps.uninstall",
        by_uninstall["access_token"],
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    assert await _said(stage, first, text="x") == (404, "no_service")
    by_revocation = await stage.installed(scope=SCOPES, webhook_channel=HELP)
    second = by_revocation["incoming_webhook"]["url"]
    assert await _said(stage, second, text="x") == (200, "ok")
    assert await _said(stage, first, text="x") == (404, "no_service")
    await stage.call("auth.revoke", by_revocation["access_token"])
    assert await _said(stage, second, text="x") == (404, "no_service")


async def test_guessed_address_is_no_webhook(stage: SlackStage) -> None:
    """The last part of it is what counts."""
    url = await _url(stage)
    guess = f"{url.rsplit('/', 1)[0]}/guess"
    assert await _said(stage, guess, text="x") == (404, "no_service")
