"""docs/connect-real-slack.md says what the code does."""

import json
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from interlock_cli.__main__ import app
from interlock_cli.slack_credentials import find_credentials
from interlock_gateway.edge.problems import BY_REASON
from interlock_token_vault.config import BOT_SCOPES

DOCUMENT = Path(__file__).parents[4] / "docs" / "connect-real-slack.md"


def _blocks(text: str) -> list[str]:
    """Return what the document has people type, lines that go on joined."""
    return [block.replace("\\\n", "") for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]


def test_every_scope_that_is_asked_for_has_its_reason() -> None:
    """The table names the vault's scopes, each once and no other."""
    rows = re.findall(r"^\| ((?:`[a-z_.:]+`(?:, )?)+) \|", DOCUMENT.read_text(), re.MULTILINE)
    named = [scope for row in rows for scope in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(BOT_SCOPES)


def test_the_command_prints_a_manifest_as_it_stands() -> None:
    """What is to be pasted at Slack comes of the very line in the document."""
    [line] = [each for each in _blocks(DOCUMENT.read_text()) if "slack manifest" in each]
    words = shlex.split(line)
    assert words[0] == ".venv/bin/interlock"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["oauth_config"]["scopes"]["bot"] == list(BOT_SCOPES)


def test_the_credential_files_are_those_that_are_read(tmp_path: Path) -> None:
    """Written as the document writes them, they are a whole app."""
    [block] = [each for each in _blocks(DOCUMENT.read_text()) if "printf" in each]
    for content, name in re.findall(r"printf '%s' '([^']+)' +> \.interlock/slack/(\w+)", block):
        (tmp_path / name).write_text(content)
    credentials = find_credentials(tmp_path)
    assert credentials is not None
    assert (credentials.app_id, credentials.client_id) == ("A0123456789", "1234.5678")


def test_the_pages_it_names_are_there() -> None:
    """Whoever looks for what they see finds it in the words of the page."""
    text = DOCUMENT.read_text()
    assert BY_REASON["SCOPES_MISSING"].title in text
    assert "Slack ended the install with an error" in text
    assert "Slack ended the install with an error" in BY_REASON["INSTALL_REFUSED_BY_SLACK"].text
