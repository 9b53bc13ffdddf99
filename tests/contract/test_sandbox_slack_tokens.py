"""Installing, rotating, exchanging and ending tokens at the Slack stand-in."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from slack_sdk.errors import SlackTokenRotationError
from slack_sdk.oauth.installation_store import Installation
from slack_sdk.oauth.token_rotation.async_rotator import AsyncTokenRotator
from slack_sdk.web.async_client import AsyncWebClient

from interlock_sandbox.testing import CLIENT_ID, CLIENT_SECRET, SlackStage, slack_stage

TEAM, ENTERPRISE, SALES, OPERATIONS = "T0NORTHWIND", "E0MERIDIAN", "T0MERSALES", "T0MEROPS"
GRETA = f"{ENTERPRISE}/U0GRETA"
HALF_A_DAY_S, GRACE_S = 43_200, 30
# slack_sdk 3.48 still passes the client's credentials by aiohttp's old way.
pytestmark = pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")


@pytest.fixture
async def stage() -> AsyncIterator[SlackStage]:
    """Give a Slack whose app has no token rotation."""
    async with slack_stage() as made:
        yield made


@pytest.fixture
async def rotating() -> AsyncIterator[SlackStage]:
    """Give a Slack whose app has token rotation."""
    async with slack_stage(token_rotation=True, refresh_grace_s=GRACE_S) as made:
        # The rotator measures against the machine's clock.
        made.clock.seconds = time.time()
        yield made


async def _state(stage: SlackStage, token: str) -> str:
    """Return `alive`, or the error that a token is answered with."""
    return str((await stage.call("auth.test", token)).get("error", "alive"))


def _rotator(stage: SlackStage) -> AsyncTokenRotator:
    return AsyncTokenRotator(
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        client=AsyncWebClient(base_url=stage.api_url),
    )


def _installation(answer: dict[str, Any]) -> Installation:
    """Return an installation as an app keeps it, both of its tokens due."""
    user = answer["authed_user"]
    return Installation(
        app_id=answer["app_id"],
        team_id=answer["team"]["id"],
        user_id=user["id"],
        bot_token=answer["access_token"],
        bot_id="B0NORTHWIND",
        bot_user_id=answer["bot_user_id"],
        bot_refresh_token=answer["refresh_token"],
        bot_token_expires_at=int(time.time()),
        user_token=user["access_token"],
        user_refresh_token=user["refresh_token"],
        user_token_expires_at=int(time.time()),
    )


# Without rotation.


async def test_reinstall_returns_the_same_bot_token(stage: SlackStage) -> None:
    """Installing again, by somebody else, gives the token out again with its scopes added up."""
    first = await stage.installed(scope="chat:write")
    again = await stage.installed("T0NORTHWIND/U0BEN", scope="users:read")
    assert again["access_token"] == first["access_token"]
    assert again["scope"] == "chat:write,users:read"
    assert "refresh_token" not in again
    assert again["authed_user"]["id"] == "U0BEN"


async def test_auth_test_tells_the_facts_of_every_kind_of_token(stage: SlackStage) -> None:
    """Bot, person and app are told apart, and each sees where it is."""
    answer = await stage.installed(user_scope="users:read")
    bot = await stage.call("auth.test", answer["access_token"])
    assert bot == {
        "ok": True,
        "url": "https://northwind.slack.com/",
        "team": "Northwind",
        "user": "interlock",
        "team_id": TEAM,
        "user_id": answer["bot_user_id"],
        "bot_id": "B0NORTHWIND",
        "is_enterprise_install": False,
    }
    person = await stage.call("auth.test", answer["authed_user"]["access_token"])
    assert (person["user_id"], person["user"]) == ("U0ADA", "ada")
    assert "bot_id" not in person
    app_token = (await stage.see("secrets"))["app_token"]
    app = await stage.call("auth.test", app_token)
    assert app == {"ok": True, "app_id": "A0INTERLOCK", "app_name": "Interlock"}


async def test_org_wide_install_belongs_to_the_enterprise(stage: SlackStage) -> None:
    """Its answer has no team, and its token's team is the Enterprise itself."""
    answer = await stage.installed(GRETA, workspaces=SALES)
    assert answer["team"] is None
    assert answer["enterprise"] == {"id": ENTERPRISE, "name": "Meridian"}
    assert answer["is_enterprise_install"] is True
    who = await stage.call("auth.test", answer["access_token"])
    assert (who["team_id"], who["enterprise_id"]) == (ENTERPRISE, ENTERPRISE)
    assert who["is_enterprise_install"] is True
    assert who["url"] == "https://meridian.enterprise.slack.com/"


async def test_org_wide_install_reaches_no_workspace_by_itself(stage: SlackStage) -> None:
    """An administrator adds the app to workspaces; only there its token works."""
    token = (await stage.installed(GRETA))["access_token"]
    assert (await stage.call("auth.teams.list", token))["teams"] == []
    hello = {"channel": "C0MSHELP", "text": "x"}
    assert (await stage.call("chat.postMessage", token, **hello))["error"] == "channel_not_found"
    await stage.do("grant-workspaces", enterprise=ENTERPRISE, workspaces=[SALES])
    assert (await stage.call("chat.postMessage", token, **hello))["ok"] is True


async def test_workspace_of_an_enterprise_installs_for_itself(stage: SlackStage) -> None:
    """A Workspace's own install names its Enterprise and is not org-wide."""
    answer = await stage.installed(f"{OPERATIONS}/U0IRIS")
    assert answer["team"] == {"id": OPERATIONS, "name": "Meridian Operations"}
    assert answer["enterprise"] == {"id": ENTERPRISE, "name": "Meridian"}
    assert answer["is_enterprise_install"] is False
    who = await stage.call("auth.test", answer["access_token"])
    assert (who["team_id"], who["enterprise_id"]) == (OPERATIONS, ENTERPRISE)


async def test_org_installed_app_is_not_installed_once_more_inside(stage: SlackStage) -> None:
    """A workspace that the org-wide install reaches cannot install for itself."""
    await stage.installed(GRETA, workspaces=OPERATIONS)
    answer = await stage.installed(f"{OPERATIONS}/U0IRIS")
    assert answer["error"] == "cannot_install_an_org_installed_app"


async def test_administrator_of_a_workspace_installs_for_no_enterprise(stage: SlackStage) -> None:
    """Iris administers a workspace, and Greta the Enterprise."""
    with pytest.raises(KeyError):
        await stage.code(f"{ENTERPRISE}/U0IRIS")


async def test_app_that_uninstalls_itself_is_gone(stage: SlackStage) -> None:
    """apps.uninstall needs the app's own secret, and ends every token."""
    answer = await stage.installed(user_scope="users:read")
    bot, user = answer["access_token"], answer["authed_user"]["access_token"]
    wrong = {"client_id": CLIENT_ID, "client_secret": "guess"}
    refused = await stage.call("apps.uninstall", bot, **wrong)
    assert refused["error"] == "bad_client_secret"
    right = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    # The method is of the tier that allows one call a minute.
    stage.clock.seconds += 60
    assert (await stage.call("apps.uninstall", bot, **right))["uninstalled"] is True
    assert await _state(stage, bot) == "account_inactive"
    assert await _state(stage, user) == "token_revoked"
    again = (await stage.installed())["access_token"]
    assert again != bot
    assert (await _state(stage, bot), await _state(stage, again)) == ("token_revoked", "alive")


async def test_revoking_a_persons_token_leaves_the_bots(stage: SlackStage) -> None:
    """The app stays while it has a token, and learns who took back what."""
    answer = await stage.installed(user_scope="users:read")
    revoked = await stage.call("auth.revoke", answer["authed_user"]["access_token"])
    assert revoked["revoked"] is True
    [got] = await stage.app.wait_for(1)
    assert got.event()["tokens"] == {"oauth": ["U0ADA"], "bot": []}
    assert await _state(stage, answer["access_token"]) == "alive"
    probe = await stage.call("auth.revoke", answer["access_token"], test="true")
    assert probe["revoked"] is False
    assert await _state(stage, answer["access_token"]) == "alive"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client_id": "9.9"}, "invalid_client_id"),
        ({"client_secret": "x"}, "bad_client_secret"),
        ({"grant_type": "password"}, "invalid_grant_type"),
        ({"refresh_token": "xoxe-1-unknown"}, "invalid_refresh_token"),
        ({"code_verifier": "x"}, "pkce_not_allowed"),
        ({"scope": "chat:write"}, "invalid_arguments"),
    ],
)
async def test_wrong_refreshes_are_refused(
    stage: SlackStage, changes: dict[str, str], error: str
) -> None:
    """Each way to ask wrongly has Slack's answer."""
    arguments = {
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "grant_type": "refresh_token",
        "refresh_token": "",
        **changes,
    }
    assert (await stage.call("oauth.v2.access", **arguments))["error"] == error


# With rotation.


async def test_slacks_own_rotator_renews_both_chains(rotating: SlackStage) -> None:
    """AsyncTokenRotator, unchanged, brings the bot's and the person's tokens forward."""
    answer = await rotating.installed(user_scope="users:read")
    assert answer["expires_in"] == HALF_A_DAY_S
    assert answer["authed_user"]["expires_in"] == HALF_A_DAY_S
    old = _installation(answer)
    new = await _rotator(rotating).perform_token_rotation(installation=old)
    assert new is not None
    assert new.bot_token != old.bot_token
    assert str(new.bot_token).startswith("xoxe.xoxb-1-")
    assert str(new.user_token).startswith("xoxe.xoxp-1-")
    assert len(str(new.bot_token)) > 160
    for token in (old.bot_token, new.bot_token, old.user_token, new.user_token):
        assert await _state(rotating, str(token)) == "alive"
    shown = await rotating.call("auth.test", str(new.bot_token))
    assert shown["expires_in"] == HALF_A_DAY_S


async def test_rotator_with_a_spent_refresh_token_fails(rotating: SlackStage) -> None:
    """Once the grace period is over, the installation kept from before is of no use."""
    old = _installation(await rotating.installed(user_scope="users:read"))
    await _rotator(rotating).perform_token_rotation(installation=old)
    rotating.clock.seconds += GRACE_S
    with pytest.raises(SlackTokenRotationError) as caught:
        await _rotator(rotating).perform_token_rotation(installation=old)
    assert caught.value.api_error.response["error"] == "invalid_refresh_token"


async def test_racing_refreshes_inside_the_grace_period_revoke_each_other(
    rotating: SlackStage,
) -> None:
    """Every racer gets a pair, and only the last two access tokens live."""
    refresh_token = (await rotating.installed())["refresh_token"]
    pairs = [await rotating.refresh(refresh_token) for _ in range(4)]
    states = [await _state(rotating, each["access_token"]) for each in pairs]
    assert states == ["token_revoked", "token_revoked", "alive", "alive"]


async def test_token_expires_after_twelve_hours(rotating: SlackStage) -> None:
    """The old access token is refused from the second it expires, the refresh token is not."""
    answer = await rotating.installed()
    rotating.clock.seconds += HALF_A_DAY_S - 1
    assert await _state(rotating, answer["access_token"]) == "alive"
    rotating.clock.seconds += 1
    assert await _state(rotating, answer["access_token"]) == "token_expired"
    renewed = await rotating.refresh(answer["refresh_token"])
    assert await _state(rotating, renewed["access_token"]) == "alive"


async def test_refresh_answers_one_chain_at_the_top(rotating: SlackStage) -> None:
    """A bot's refresh names its bot, a person's the person, and neither has the other's."""
    answer = await rotating.installed(user_scope="users:read")
    bot = await rotating.refresh(answer["refresh_token"])
    assert (bot["token_type"], bot["bot_user_id"]) == ("bot", answer["bot_user_id"])
    assert bot["team"] == {"id": TEAM, "name": "Northwind"}
    user = await rotating.refresh(answer["authed_user"]["refresh_token"])
    assert (user["token_type"], user["user_id"]) == ("user", "U0ADA")
    assert "authed_user" not in bot
    assert "bot_user_id" not in user


async def test_org_wide_install_rotates_like_any_other(rotating: SlackStage) -> None:
    """A refresh of an Enterprise's token has no team either."""
    answer = await rotating.installed(GRETA, workspaces=SALES)
    renewed = await rotating.refresh(answer["refresh_token"])
    assert renewed["team"] is None
    assert renewed["is_enterprise_install"] is True
    assert await _state(rotating, renewed["access_token"]) == "alive"


async def test_revoking_a_rotated_token_leaves_the_installation(rotating: SlackStage) -> None:
    """One token ends, no event follows, and its refresh token goes on."""
    answer = await rotating.installed()
    await rotating.call("auth.revoke", answer["access_token"])
    assert await _state(rotating, answer["access_token"]) == "token_revoked"
    renewed = await rotating.refresh(answer["refresh_token"])
    assert await _state(rotating, renewed["access_token"]) == "alive"
    assert (await rotating.see("deliveries"))["deliveries"] == []


async def test_uninstall_ends_the_refresh_tokens(rotating: SlackStage) -> None:
    """Nothing brings an installation back but installing."""
    answer = await rotating.installed()
    await rotating.do("uninstall")
    refused = await rotating.refresh(answer["refresh_token"])
    assert refused["error"] == "invalid_refresh_token"


async def test_rotation_is_turned_on_for_good_and_old_tokens_are_exchanged(
    stage: SlackStage,
) -> None:
    """The switch goes one way; oauth.v2.exchange moves a lasting token over, once."""
    old = (await stage.installed())["access_token"]
    client = AsyncWebClient(base_url=stage.api_url)
    credentials = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    exchange = {"token": old, **credentials}
    early = await stage.call("oauth.v2.exchange", **exchange)
    assert early["error"] == "token_rotation_not_enabled"
    assert (await stage.do("rules", rotation={"on": True}))["rotation"]["on"] is True
    assert "error" in await stage.do("rules", rotation={"on": False})
    pair = await client.oauth_v2_exchange(token=old, **credentials)
    assert str(pair["access_token"]).startswith("xoxe.xoxb-1-")
    assert await _state(stage, old) == "alive"
    again = await stage.call("oauth.v2.exchange", **exchange)
    assert again["error"] == "token_already_exchanged"
    await stage.refresh(str(pair["refresh_token"]))
    assert await _state(stage, old) == "token_revoked"
    assert (await stage.call("oauth.v2.exchange", **exchange))["error"] == "authorization_not_found"
    unknown = await stage.call("oauth.v2.exchange", token="xoxb-none", **credentials)
    assert unknown["error"] == "invalid_token"


async def test_grace_period_is_a_rule_that_changes(rotating: SlackStage) -> None:
    """Without grace the second use of a refresh token is refused at once."""
    refresh_token = (await rotating.installed())["refresh_token"]
    await rotating.do("rules", rotation={"grace_s": 0})
    assert (await rotating.refresh(refresh_token))["ok"] is True
    assert (await rotating.refresh(refresh_token))["error"] == "invalid_refresh_token"
