"""What the compose file says before anything of it runs."""

from typing import Any

import pytest
import yaml

from tests.support.manifests import ROOT, SERVICES

Service = dict[str, Any]

SANDBOX = {"sandbox", "relay-sandbox", *(f"relay-{name}" for name in ("edge", "worker", "vault"))}
ONCE = ("keys", "databases")


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    """Read the services, with anchors and merges followed."""
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    found: dict[str, Service] = yaml.safe_load(text)["services"]
    return found


def test_postgres_is_the_version_that_is_promised(services: dict[str, Service]) -> None:
    """The stack runs on Postgres 17."""
    assert services["postgres"]["image"] == "postgres:17"


def test_start_is_gated(services: dict[str, Service]) -> None:
    """Nothing starts beside what it needs: one-shot steps are done, servers are healthy.

    Keys come before Postgres, Postgres before the databases, those before the services.
    """
    gates = {
        name: {needed: rule["condition"] for needed, rule in service["depends_on"].items()}
        for name, service in services.items()
        if "depends_on" in service and not name.startswith("relay-")
    }
    for name, needs in gates.items():
        for needed, condition in needs.items():
            wanted = "completed_successfully" if needed in ONCE else "healthy"
            assert condition == f"service_{wanted}", f"{name} needs {needed}"
    assert gates["postgres"].keys() == {"keys"}
    assert gates["databases"].keys() == {"postgres"}
    assert {name for name in SERVICES if "databases" in gates[name]} == set(SERVICES) - {"runner"}


def test_stand_ins_are_asked_for_by_name(services: dict[str, Service]) -> None:
    """Without the profile `sandbox` nothing of the sandbox starts, and services without any."""
    of_sandbox = {name for name, each in services.items() if each.get("profiles") == ["sandbox"]}
    assert of_sandbox >= SANDBOX
    by_itself = {name for name, each in services.items() if "profiles" not in each}
    assert by_itself == {*SERVICES, *ONCE, "postgres"}
    for name, each in services.items():
        assert ("sandbox" in each["image"]) == (name in of_sandbox)


def test_secrets_are_files(services: dict[str, Service]) -> None:
    """A variable that names a secret ends in _FILE, and is a path; arguments hold none."""
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            words = {"PASSWORD", "SECRET", "KEY", "KEYS", "TOKEN", "URL"} & set(variable.split("_"))
            is_address = variable.endswith("_URL") and "DATABASE" not in variable
            if words and not is_address and not variable.endswith("_DIR"):
                assert variable.endswith("_FILE"), f"{name} is told {variable}"
                assert value is None or value.startswith("/"), f"{name} is told {variable}"
        assert "postgresql://" not in str(service.get("command", ""))
