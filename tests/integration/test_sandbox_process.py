"""The sandbox as a process: started by its configuration, stopped by a signal."""

import asyncio
import base64
import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from interlock_sandbox.nango.testing import connect

EX_CONFIG = 78


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration with a state file and free ports."""
    for name in ("client", "signing", "cookie"):
        (tmp_path / name).write_text(f"example-{name}-secret-0123456789")
    key = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    row = {"kid": "user-1", "kty": "oct", "k": key, "families": ["slackUser"]}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [row]}))
    app = "http://127.0.0.1:9/work-apps/slack"
    settings = {
        **dict.fromkeys(("slack_listen", "platform_listen", "auth_listen"), "127.0.0.1:0"),
        "app_id": "A0INTERLOCK",
        "client_id": "1.2",
        "client_secret_file": "client",
        "signing_secret_file": "signing",
        "events_url": f"{app}/events",
        "interactions_url": f"{app}/interactions",
        "commands_url": f"{app}/commands",
        "redirect_urls": [f"{app}/oauth_redirect"],
        "dashboard_url": f"{app}/",
        "user_token_keys_file": "keys.json",
        "auth_cookie_secret_file": "cookie",
        "state_file": "state.json",
    }
    path = tmp_path / "sandbox.json"
    path.write_text(json.dumps(settings))
    return path


async def _start(config: Path) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    """Start the sandbox; return it with its first log line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "interlock_sandbox",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(20):
        line = await process.stderr.readline()
    try:
        return process, json.loads(line)
    except ValueError:
        return process, {"line": line.decode()}


async def _stop(process: asyncio.subprocess.Process, number: signal.Signals) -> bytes:
    """Stop the sandbox; it must exit with 0. Return what it wrote to stdout."""
    process.send_signal(number)
    async with asyncio.timeout(20):
        stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _change(config: Path, **settings: str) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_restart_remembers_and_signals_stop_cleanly(
    config: Path, number: signal.Signals
) -> None:
    """What was written is there after a restart, even while a page is open; exits are 0."""
    post = {"team": "T0NORTHWIND", "user": "U0MIA", "channel": "C0NOHELP", "typed": "remember"}
    query = {"team": "T0NORTHWIND", "user": "U0MIA", "channel": "C0NOHELP"}
    process, started = await _start(config)
    assert started["event"] == "sandbox_started"
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{started['slack']}/_control/feed", params=query) as feed,
    ):
        assert (await feed.content.readline()).startswith(b":")
        async with http.post(f"{started['slack']}/_control/post", json=post) as response:
            assert response.status == 200
        assert await _stop(process, number) == b""
    assert _mode(config.parent / "state.json") == 0o600
    process, started = await _start(config)
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{started['slack']}/_control/messages", params=query) as response,
    ):
        found = await response.json()
    assert [each["text"] for each in found["messages"]] == ["remember"]
    await _stop(process, number)


async def test_wrong_configuration_exits_78_and_names_the_setting(config: Path) -> None:
    """A mistake is one line on stderr, without a traceback."""
    _change(config, slack_listen="0.0.0.0:1")
    process, started = await _start(config)
    assert started["line"].startswith("interlock: slack_listen: ")
    stdout, rest = await process.communicate()
    assert (process.returncode, stdout, rest) == (EX_CONFIG, b"", b"")


async def test_nango_beside_slack_keeps_its_connections(config: Path) -> None:
    """With a Nango configured, a workspace is connected by way of it, and stays so."""
    api_key = "6c0c3a1e-7b1d-4c0e-9b57-0f6d6a3f9a11"
    (config.parent / "nango-key").write_text(api_key)
    (config.parent / "nango-webhooks").write_text("example-webhook-key-0123456789")
    _change(
        config,
        nango_listen="127.0.0.1:0",
        nango_api_key_file="nango-key",
        nango_webhook_key_file="nango-webhooks",
    )
    headers = {"Authorization": f"Bearer {api_key}"}
    body = {"allowed_integrations": ["work-apps-slack"], "tags": {"tenantId": "northwind"}}
    process, started = await _start(config)
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.post(f"{started['nango']}/connect/sessions", json=body) as response:
            session = (await response.json())["data"]
        connection = await connect(http, session["connect_link"])
    await _stop(process, signal.SIGTERM)
    process, started = await _start(config)
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{started['nango']}/connections") as response,
    ):
        found = (await response.json())["connections"]
    assert [each["connection_id"] for each in found] == [connection]
    await _stop(process, signal.SIGTERM)
