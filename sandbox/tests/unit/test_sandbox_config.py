"""The configuration file is read strictly."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from interlock_chassis.errors import ConfigError
from interlock_sandbox.config import Address, load_config


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Return all required settings, with their files in place."""
    for name in ("client", "signing", "cookie"):
        (tmp_path / name).write_text(f"example-{name}-secret-0123456789")
    key = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    row = {"kid": "user-1", "kty": "oct", "k": key, "families": ["slackUser"]}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [row]}))
    return {
        "slack_listen": "127.0.0.1:9001",
        "platform_listen": "127.0.0.1:9002",
        "auth_listen": "127.0.0.1:9003",
        "app_id": "A0INTERLOCK",
        "client_id": "1.2",
        "client_secret_file": "client",
        "signing_secret_file": "signing",
        "events_url": "http://127.0.0.1:8080/work-apps/slack/events",
        "interactions_url": "http://127.0.0.1:8080/work-apps/slack/interactions",
        "commands_url": "http://127.0.0.1:8080/work-apps/slack/commands",
        "redirect_urls": ["http://127.0.0.1:8080/work-apps/slack/oauth_redirect"],
        "dashboard_url": "http://127.0.0.1:8080/work-apps/slack/",
        "user_token_keys_file": "keys.json",
        "auth_cookie_secret_file": "cookie",
    }


def _written(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def test_required_settings_are_enough(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Everything else has a default, and files are found beside the configuration."""
    config = load_config(_written(tmp_path, settings))
    assert config.slack_listen == Address("127.0.0.1", 9001)
    assert config.app.client_secret.reveal() == "example-client-secret-0123456789"
    assert config.app.slash_commands == ("/interlock",)
    assert config.user_token_keys[0].kid == "user-1"
    assert config.membership_database_url is None
    assert config.retry_delays_s == (0, 60, 300)
    assert (config.token_rotation, config.rate_limits) == (False, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slack_lisen", "127.0.0.1:1"),
        ("slack_listen", "0.0.0.0:9001"),
        ("slack_listen", "127.0.0.1"),
        ("slack_listen", "127.0.0.1:70000"),
        ("app_id", ""),
        ("events_url", "ftp://127.0.0.1/"),
        ("redirect_urls", "http://127.0.0.1/"),
        ("client_secret_file", "absent"),
        ("user_token_keys_file", "client"),
        ("stream_life_s", -1),
        ("word_delay_s", True),
        ("token_rotation", "yes"),
        ("rate_limits", 1),
        ("message_shortcuts", "ask"),
        ("app_token_file", "absent"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, settings: dict[str, Any], key: str, value: object
) -> None:
    """A mistake stops the sandbox before it serves, and says where it is."""
    with pytest.raises(ConfigError) as caught:
        load_config(_written(tmp_path, settings | {key: value}))
    assert caught.value.variable == key


def test_missing_setting_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A required key that is absent is named."""
    del settings["auth_listen"]
    with pytest.raises(ConfigError) as caught:
        load_config(_written(tmp_path, settings))
    assert caught.value.variable == "auth_listen"


def test_keys_of_other_families_do_not_verify_user_tokens(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A keyset without a slackUser key is refused."""
    keys = json.loads((tmp_path / "keys.json").read_text())
    keys["keys"][0]["families"] = ["slackGrant"]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with pytest.raises(ConfigError, match="slackUser"):
        load_config(_written(tmp_path, settings))
