"""What an operator sets for production on GKE, and that a wrong value is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from interlock_chassis.errors import ConfigError
from tests.support.manifests import KUBERNETES, ROOT, Rendered, load_module, start_settings

FILE = KUBERNETES / "overlays" / "gke" / "parameters.env"
TOOL = ROOT / "tools" / "parameters.py"

# Of each parameter at least one value that an operator could well type.
WRONG = [
    ("PUBLIC_URL", "http://interlock.example.com"),
    ("PUBLIC_URL", "https://interlock.example.com/slack"),
    ("PUBLIC_HOST", "https://interlock.example.com"),
    ("PUBLIC_HOST", "other.example.com"),
    ("TRUSTED_PROXIES", "35.191.0.0-35.191.255.255"),
    ("AUTH_URL", "auth.example.com"),
    ("MANAGE_URL", "agents.example.com"),
    ("RUN_URL", "agents.example.com"),
    ("MEMBERSHIP_SOURCE", "none"),
    ("SLACK_APP_ID", "1234567890.1234567890"),
    ("SLACK_CLIENT_ID", ""),
    ("SLACK_USER_SCOPES", "search:read users:read"),
    ("GCP_PROJECT", "Example Project"),
    ("GKE_LOCATION", "Belgium"),
    ("GKE_CLUSTER", "gke_example-project_europe-west1_example-cluster"),
    ("POSTGRES_CIDR", "10.20.0.7"),
    ("POSTGRES_CIDR", "10.20.0.7/24"),
    ("POSTGRES_CIDR", "0.0.0.0/0"),
    ("AUDIT_BUCKET_URL", "example-interlock-audit"),
    ("AUDIT_BUCKET_URL", "s3://example-interlock-audit"),
    ("AUDIT_BUCKET_URL", "gs://example-interlock-audit/../other"),
    ("KMS", "local"),
    ("GCP_KMS_KEY", "tokens"),
    ("GCP_KMS_KEY", "projects/another/locations/global/keyRings/interlock/cryptoKeys/tokens"),
    ("GCP_VAULT_ACCOUNT", "interlock-vault"),
    ("GCP_SECRETS_ACCOUNT", "me@example.com"),
    ("GCP_SECRETS_ACCOUNT", "interlock-vault@example-project.iam.gserviceaccount.com"),
]


def _given() -> dict[str, str]:
    found: dict[str, str] = load_module(TOOL).read(FILE)
    return found


def test_every_parameter_is_explained_and_tried() -> None:
    """No parameter is without a remark above it, nor without a wrong value below."""
    blocks = FILE.read_text(encoding="utf-8").split("\n\n")[1:]
    for line in "\n".join(blocks).splitlines():
        assert line.startswith("#") or "=" in line
    assert blocks
    assert all(block.startswith("#") for block in blocks)
    assert set(_given()) == {name for name, _ in WRONG}


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_parameter_is_refused(
    production: Rendered, tmp_path: Path, name: str, value: str
) -> None:
    """The check names the parameter, or a process refuses to start and names its variable."""
    parameters = _given() | {name: value}
    faults = load_module(TOOL).find_faults(parameters)
    if faults:
        assert [fault.partition(":")[0] for fault in faults] == [name]
        return
    with pytest.raises(ConfigError) as refused:
        start_settings(production, parameters, tmp_path)
    assert refused.value.variable in _variables_of(production, name)


def _variables_of(production: Rendered, parameter: str) -> set[str]:
    """Name the variables by which processes are given a parameter."""
    return {
        variable["name"]
        for workload in production.workloads()
        for variable in workload.main.get("env", ())
        if "valueFrom" in variable and variable["valueFrom"]["configMapKeyRef"]["key"] == parameter
    }


def test_the_check_says_what_is_wrong(tmp_path: Path) -> None:
    """The program prints a line a fault; what is missing or misspelt is a fault as well."""
    assert _check(FILE) == (0, "")
    wrong = tmp_path / "parameters.env"
    right = FILE.read_text(encoding="utf-8")
    wrong.write_text(f"{right}\nGKE_REGION=europe-west1\n", encoding="utf-8")
    assert _check(wrong) == (1, "GKE_REGION: is no parameter\n")
    wrong.write_text(right.replace("KMS=gcp\n", ""), encoding="utf-8")
    assert _check(wrong) == (1, "KMS: required, but not set\n")


def _check(file: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, TOOL, file], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr
