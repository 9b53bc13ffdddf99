"""What each process is told, and by whom it may be read."""

import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from interlock_chassis.config import ServiceSettings, load_settings
from interlock_chassis.database import DatabaseUrls
from interlock_chassis.secret import Secret
from interlock_cli.data_folder import DataFolder
from interlock_cli.product import AUTH_DATABASE, DATABASES, PORTS, make_programs
from interlock_cli.slack_credentials import IncompleteCredentials, find_credentials
from interlock_cli.supervisor import Program
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.worker.config import WorkerSettings
from interlock_identity.config import IdentitySettings
from interlock_runner.config import RunnerSettings
from interlock_sandbox.config import load_config
from interlock_token_vault.config import VaultSettings

SETTINGS: Mapping[str, type[ServiceSettings]] = {
    "gateway-edge": EdgeSettings,
    "gateway-worker": WorkerSettings,
    "token-vault": VaultSettings,
    "identity": IdentitySettings,
    "runner": RunnerSettings,
}
CREDENTIALS = {
    "app_id": "A0REALAPP",
    "client_id": "1.2",
    "client_secret": "real-client-secret",
    "signing_secret": "real-signing-secret",
}


def _programs(data: DataFolder) -> dict[str, Program]:
    ports = {name: 20_000 + number for number, name in enumerate(PORTS)} | {"edge": 8080}
    databases = {
        plan.name: DatabaseUrls(
            owner=_url(plan.owner),
            roles=MappingProxyType({role: _url(role) for role in plan.roles}),
        )
        for plan in (*DATABASES, AUTH_DATABASE)
    }
    credentials = find_credentials(data.path / "slack")
    programs = make_programs(data, ports, databases, credentials)
    return {program.name: program for program in programs}


def _url(role: str) -> Secret[str]:
    return Secret(f"postgresql://{role}:password@/database?host=/socket")


def _put_credentials(folder: Path) -> None:
    for name, value in CREDENTIALS.items():
        (folder / name).write_text(value)


def test_scopes_of_a_persons_token_come_from_a_file_of_their_own(tmp_path: Path) -> None:
    """A real app's folder may name them; without the file the vault asks for none."""
    data = DataFolder(tmp_path)
    _put_credentials(data.folder("slack"))
    vault = load_settings(SETTINGS["token-vault"], _programs(data)["token-vault"].environ)
    assert getattr(vault, "slack_user_scopes", None) == ()
    (data.folder("slack") / "user_scopes").write_text("channels:history,users:read\n")
    vault = load_settings(SETTINGS["token-vault"], _programs(data)["token-vault"].environ)
    assert getattr(vault, "slack_user_scopes", None) == ("channels:history", "users:read")
    data.close()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_service_accepts_its_settings(tmp_path: Path, name: str) -> None:
    """Each process is told all it must know and nothing that it does not know."""
    data = DataFolder(tmp_path)
    load_settings(SETTINGS[name], _programs(data)[name].environ)
    data.close()


def test_nothing_of_the_launchers_environment_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of ours, or a secret, in the launcher's environment reaches no process."""
    monkeypatch.setenv("INTERLOCK_LOG_LEVEL", "debug")
    monkeypatch.setenv("SLACK_BOT_TOKEN", "inherited")
    data = DataFolder(tmp_path)
    for program in _programs(data).values():
        assert not {"INTERLOCK_LOG_LEVEL", "SLACK_BOT_TOKEN"} & program.environ.keys()
    data.close()


def test_no_secret_is_in_an_environment_or_a_command_line(tmp_path: Path) -> None:
    """Secrets travel in files that only their owner may read, nowhere else."""
    data = DataFolder(tmp_path)
    programs = _programs(data).values()
    told = " ".join(word for each in programs for word in (*each.command, *each.environ.values()))
    secrets = [path for path in data.folder("keys").rglob("*") if path.is_file()]
    assert secrets
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() not in told
    data.close()


def test_real_credentials_lead_to_slack_and_stay_out_of_the_sandbox(tmp_path: Path) -> None:
    """With credentials in place edge, worker and vault talk to Slack; the sandbox sees none."""
    data = DataFolder(tmp_path)
    _put_credentials(data.folder("slack"))
    programs = _programs(data)
    edge = load_settings(EdgeSettings, programs["gateway-edge"].environ)
    worker = load_settings(WorkerSettings, programs["gateway-worker"].environ)
    vault = load_settings(VaultSettings, programs["token-vault"].environ)
    sandbox = load_config(Path(programs["sandbox"].command[-1]))
    assert {edge.slack_url.host, worker.slack_api_url.host, vault.slack_api_url.host} == {
        "slack.com"
    }
    assert edge.playground_url is None
    assert edge.slack_signing_secret_file == Secret(CREDENTIALS["signing_secret"])
    assert vault.slack_client_secret_file == Secret(CREDENTIALS["client_secret"])
    assert sandbox.app.client_secret != Secret(CREDENTIALS["client_secret"])
    assert sandbox.app.signing_secret != Secret(CREDENTIALS["signing_secret"])
    data.close()


def test_half_of_the_credentials_is_refused_by_name(tmp_path: Path) -> None:
    """Three of four files are a mistake, not a reason to fall back to the sandbox."""
    _put_credentials(tmp_path)
    (tmp_path / "client_secret").unlink()
    with pytest.raises(IncompleteCredentials, match="lacks client_secret"):
        find_credentials(tmp_path)


def test_no_credentials_mean_the_sandbox(tmp_path: Path) -> None:
    """An empty or missing folder holds no credentials."""
    assert find_credentials(tmp_path / "slack") is None
