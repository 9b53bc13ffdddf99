"""The Slack app's manifest: what it says is what the code takes."""

import inspect
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from interlock_cli.__main__ import app
from interlock_gateway.adapters import worker_slack_web
from interlock_gateway.domain.slack_request import Ignored, SignedBody, SlackRequest, read_event
from interlock_gateway.edge import paths
from interlock_token_vault.config import BOT_SCOPES

ORIGIN = "https://interlock.example.com"
NOW = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
SAMPLES: dict[str, dict[str, Any]] = {
    "app_mention": {"type": "app_mention", "text": "<@U0BOT> hello", "channel": "C0GENERAL"},
    "message.im": {
        "type": "message",
        "text": "hello",
        "channel": "D0DIRECT",
        "channel_type": "im",
    },
    "app_uninstalled": {"type": "app_uninstalled"},
    "tokens_revoked": {"type": "tokens_revoked", "tokens": {"oauth": ["U0ADA"], "bot": []}},
}


def _manifest(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["slack", "manifest", "--public-url", ORIGIN, *arguments])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


def _addresses(manifest: dict[str, Any]) -> set[str]:
    settings = manifest["settings"]
    return {
        settings["event_subscriptions"]["request_url"],
        settings["interactivity"]["request_url"],
        *(each["url"] for each in manifest["features"]["slash_commands"]),
    }


def test_the_addresses_are_exactly_the_routes_for_slack() -> None:
    """Every route that Slack calls is named, under our origin, and no other."""
    addresses = _addresses(_manifest())
    assert {urlsplit(each).path for each in addresses} == paths.FOR_SLACK - {paths.NANGO_WEBHOOK}
    assert all(each.startswith(f"{ORIGIN}/") for each in addresses)


def test_the_redirect_is_where_browsers_are() -> None:
    """The callback follows the browser's address, which may be this machine's own."""
    assert _manifest()["oauth_config"]["redirect_urls"] == [ORIGIN + paths.INSTALL_CALLBACK]
    local = _manifest("--browser-url", "http://127.0.0.1:8080")
    assert local["oauth_config"]["redirect_urls"] == [
        "http://127.0.0.1:8080" + paths.INSTALL_CALLBACK
    ]
    assert all(each.startswith(ORIGIN) for each in _addresses(local))


def test_the_scopes_are_those_the_vault_asks_for() -> None:
    """Least scope is the default; an operator's own list takes its place."""
    assert _manifest()["oauth_config"]["scopes"] == {"bot": list(BOT_SCOPES)}
    own = _manifest("--scopes", "chat:write,commands")
    assert own["oauth_config"]["scopes"]["bot"] == ["chat:write", "commands"]


# What needs each scope: a method that the worker calls, an event, or the commands above.
NEEDS = {
    "app_mentions:read": "app_mention",
    "im:history": "message.im",
    "channels:history": "conversations.replies",
    "groups:history": "conversations.replies",
    "chat:write": "chat.postMessage",
    "commands": "commands",
    "users:read": "users.info",
    "users:read.email": "users.info",
    "channels:read": "conversations.list",
    "groups:read": "conversations.list",
}


def test_no_scope_is_asked_for_that_nothing_needs() -> None:
    """Least scope: each has its method or event, and the guide says which."""
    source = Path(inspect.getsourcefile(worker_slack_web) or "").read_text()
    used = {*re.findall(r'"([a-z]+\.[a-zA-Z.]+)"', source), *SAMPLES, "commands"}
    assert set(BOT_SCOPES) == set(NEEDS)
    assert set(NEEDS.values()) <= used
    guide = (Path(__file__).parents[4] / "docs" / "connect-real-slack.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == set(NEEDS)


def test_scopes_of_a_persons_token_are_there_only_if_asked_for() -> None:
    """Without them Slack gives nobody's own token to the app."""
    assert "user" not in _manifest()["oauth_config"]["scopes"]
    asked = _manifest("--user-scopes", "channels:history,users:read")
    assert asked["oauth_config"]["scopes"] == {
        "bot": list(BOT_SCOPES),
        "user": ["channels:history", "users:read"],
    }


@pytest.mark.parametrize("event", sorted(SAMPLES))
def test_every_subscribed_event_is_taken(event: str) -> None:
    """An event that Slack is asked to send is acted upon."""
    assert event in _manifest()["settings"]["event_subscriptions"]["bot_events"]
    body = {
        "type": "event_callback",
        "api_app_id": "A0INTERLOCK",
        "team_id": "T0NORTHWIND",
        "event_id": "Ev0000000001",
        "event_time": int(NOW.timestamp()),
        "authorizations": [
            {
                "enterprise_id": None,
                "team_id": "T0NORTHWIND",
                "user_id": "U0BOT",
                "is_bot": True,
                "is_enterprise_install": False,
            }
        ],
        "event": {"user": "U0ADA", "team": "T0NORTHWIND", "ts": "1.2", "event_ts": "1.2"}
        | SAMPLES[event],
    }
    raw = json.dumps(body).encode()
    taken = read_event(SignedBody(raw, NOW), app_id="A0INTERLOCK")
    assert isinstance(taken, SlackRequest), taken.why if isinstance(taken, Ignored) else taken


def test_no_event_is_subscribed_that_nothing_takes() -> None:
    """The samples above are all there is."""
    events = _manifest()["settings"]["event_subscriptions"]["bot_events"]
    assert sorted(events) == sorted(SAMPLES)


def test_rotation_is_on_unless_it_is_declined() -> None:
    """It cannot be switched off again at Slack, so that it may be left off here."""
    assert _manifest()["settings"]["token_rotation_enabled"] is True
    assert _manifest("--no-rotation")["settings"]["token_rotation_enabled"] is False


@pytest.mark.parametrize(
    "url",
    [
        "http://interlock.example.com",
        "interlock.example.com",
        "https://interlock.example.com/path",
        "https://user:word@interlock.example.com",
        "https://",
        "",
    ],
)
def test_an_address_that_slack_would_not_take_is_refused(url: str) -> None:
    """With one line that says what to give instead."""
    result = CliRunner().invoke(app, ["slack", "manifest", "--public-url", url])
    assert result.exit_code == 2
    assert "--public-url must" in result.output
