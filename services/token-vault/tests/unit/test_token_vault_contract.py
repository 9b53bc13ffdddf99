"""Who may call the vault, what it is told, and what its README says of it."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from interlock.token_vault.v1 import token_vault_pb2
from interlock_chassis.callers import may_call, require_complete
from interlock_chassis.config import load_settings, variable_of
from interlock_chassis.errors import ConfigError
from interlock_token_vault import rpc
from interlock_token_vault.config import BOT_SCOPES, VaultSettings
from interlock_token_vault.operator_rpc import OperatorRpc
from interlock_token_vault.rpc import CALLERS, CAPS
from interlock_token_vault.store_rpc import StoreRpc

README = Path(rpc.__file__).parents[2] / "README.md"
V1 = "interlock.token_vault.v1"
EVERYBODY = ("gateway-edge", "gateway-worker", "runner", "identity", "operator", "app/reports")
INSTALL, TOKEN, STORE = "InstallService", "TokenService", "InstallationStoreService"
AUDIT, OPERATOR = "AuditService", "OperatorService"
# As the design's table of RPCs and callers has it.
MAY_CALL = {
    INSTALL: {"gateway-edge"},
    TOKEN: {"gateway-worker"},
    STORE: {"app/reports"},
    AUDIT: {"gateway-edge", "operator"},
    OPERATOR: {"operator"},
}


def test_every_rpc_is_listed() -> None:
    """An RPC that the table forgot stops the start, and so does one that is not served."""
    require_complete(CALLERS, [f"{V1}.{service}" for service in MAY_CALL])


@pytest.mark.parametrize("service", MAY_CALL)
def test_each_service_is_for_its_callers_only(service: str) -> None:
    """Nobody but the listed callers may call any method of a service."""
    for method in token_vault_pb2.DESCRIPTOR.services_by_name[service].methods:
        name = f"/{V1}.{service}/{method.name}"
        assert {who for who in EVERYBODY if may_call(CALLERS, name, who)} == MAY_CALL[service]


def test_no_caller_has_both_doors() -> None:
    """I14: who reads tokens cannot install, and who faces the internet reads none."""
    reading = CALLERS[f"/{V1}.{TOKEN}/ReadBotToken"] | CALLERS[f"/{V1}.{TOKEN}/ReadBotTokens"]
    assert reading == {"gateway-worker"}
    assert not reading & CALLERS[f"/{V1}.{INSTALL}/CompleteOAuthInstall"]


def test_a_read_has_five_seconds_and_an_install_thirty() -> None:
    """Only what talks to Slack, or walks all rows, may take longer than a read."""
    assert CAPS[f"/{V1}.{INSTALL}/CompleteOAuthInstall"] == timedelta(seconds=30)
    assert not [name for name in CAPS if f"{V1}.{TOKEN}/Read" in name]


def test_no_request_to_read_names_a_workspace() -> None:
    """I14: another tenant's workspace cannot be named, for want of a field."""
    message = token_vault_pb2.ReadBotTokenRequest.DESCRIPTOR
    assert {field.name for field in message.fields} == {"grant", "newer_than_generation"}


def test_the_readme_lists_what_is_not_served_yet() -> None:
    """Every RPC without a method of ours is in the README's list, and no other."""
    served = {
        f"{service}.{method.name}"
        for service, servicer in (
            (INSTALL, rpc.InstallRpc),
            (TOKEN, rpc.TokenRpc),
            (AUDIT, rpc.AuditRpc),
            (OPERATOR, OperatorRpc),
            (STORE, StoreRpc),
        )
        for method in token_vault_pb2.DESCRIPTOR.services_by_name[service].methods
        if method.name in vars(servicer)
    }
    contract = {
        f"{service}.{method.name}"
        for service in MAY_CALL
        for method in token_vault_pb2.DESCRIPTOR.services_by_name[service].methods
    }
    _, _, section = README.read_text().partition("## Not served yet")
    listed = set(re.findall(r"`(\w+Service\.\w+)`", section.partition("\n## ")[0]))
    assert listed == contract - served


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Give the least environment that the vault starts with."""
    files = {
        "database_url_file": "postgresql://interlock_vault:pw@127.0.0.1:5432/interlock_vault",
        "slack_client_secret_file": "client-secret",
        "grant_public_keys_file": '{"keys": []}',
        "fingerprint_key_file": "f" * 32,
    }
    fields: dict[str, Any] = {
        "environment": "development",
        "listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "tls_ca_file": tmp_path / "ca.crt",
        "tls_cert_file": tmp_path / "vault.crt",
        "tls_key_file": tmp_path / "vault.key",
        "slack_client_id": "1111.2222",
        "kms": "local",
        "local_keyset_file": tmp_path / "keyset.json",
        "identity_address": "127.0.0.1:7000",
    }
    for field, content in files.items():
        (tmp_path / field).write_text(content)
        fields[field] = tmp_path / field
    return {variable_of(field): str(value) for field, value in fields.items()}


def test_the_defaults_are_slacks_own(environ: dict[str, str]) -> None:
    """Without a word about Slack it is Slack that is spoken to, over TLS."""
    settings = load_settings(VaultSettings, environ)
    assert settings.slack_api_url == URL("https://slack.com/api/")
    assert settings.slack_url / "oauth/v2/authorize" == URL("https://slack.com/oauth/v2/authorize")
    assert settings.slack_bot_scopes == BOT_SCOPES
    assert settings.dek_cache_ttl_seconds == 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_level", "debug"),
        ("dek_cache_ttl_seconds", "301"),
        ("dek_cache_ttl_seconds", "-1"),
        ("kms", "none"),
        ("slack_api_url", "http://slack.example/api/"),
        ("slack_client_id", ""),
        ("slack_bot_scopes", "chat:write,chat:write"),
        ("identity_address", "identity"),
    ],
)
def test_a_setting_that_would_loosen_the_vault_stops_it(
    environ: dict[str, str], field: str, value: str
) -> None:
    """CF-05: debug logs, keys kept for longer, no KMS, Slack in the clear: no start."""
    environ[variable_of(field)] = value
    with pytest.raises(ConfigError) as refusal:
        load_settings(VaultSettings, environ)
    assert refusal.value.variable == variable_of(field)


def test_a_short_fingerprint_key_stops_it(environ: dict[str, str]) -> None:
    """A guessable key would let who reads the log test guesses of tokens."""
    Path(environ[variable_of("fingerprint_key_file")]).write_text("f" * 31)
    with pytest.raises(ConfigError, match="32 characters"):
        load_settings(VaultSettings, environ)


CLOUD_KEY = "projects/vault-prod/locations/europe-west3/keyRings/vault/cryptoKeys/dek"
CLOUD = {"kms": "gcp", "gcp_kms_project": "vault-prod", "gcp_kms_key": CLOUD_KEY}
BAO = {
    "kms": "openbao",
    "openbao_url": "https://bao.example:8200",
    "openbao_token_file": "/run/secrets/bao",
    "openbao_key": "dek",
}


@pytest.mark.parametrize("chosen", [CLOUD, BAO])
def test_a_kms_that_keeps_its_keys_needs_no_keyset_file(
    environ: dict[str, str], chosen: dict[str, str]
) -> None:
    """Each KMS needs its own settings and none of another's."""
    del environ[variable_of("local_keyset_file")]
    environ |= {variable_of(field): value for field, value in chosen.items()}
    settings = load_settings(VaultSettings, environ)
    assert settings.kms == chosen["kms"]
    assert settings.gcp_kms_url == URL("https://cloudkms.googleapis.com")
    assert settings.openbao_mount == "transit"


@pytest.mark.parametrize(
    ("chosen", "field"),
    [({"kms": "local"}, "local_keyset_file")]
    + [(chosen, field) for chosen in (CLOUD, BAO) for field in chosen if field != "kms"],
)
def test_what_the_chosen_kms_needs_is_asked_for_by_name(
    environ: dict[str, str], chosen: dict[str, str], field: str
) -> None:
    """A forgotten variable stops the start, not the first read."""
    environ |= {variable_of(name): value for name, value in chosen.items()}
    del environ[variable_of(field)]
    with pytest.raises(ConfigError, match="required, but not set") as refusal:
        load_settings(VaultSettings, environ)
    assert refusal.value.variable == variable_of(field)


@pytest.mark.parametrize(
    ("chosen", "field", "value"),
    [
        (CLOUD, "gcp_kms_key", f"{CLOUD_KEY}/cryptoKeyVersions/1"),
        (CLOUD, "gcp_kms_key", CLOUD_KEY.replace("vault-prod", "vault-test")),
        (CLOUD, "gcp_kms_key", "dek"),
        (CLOUD, "gcp_kms_key", f"{CLOUD_KEY}\n"),
        (CLOUD, "gcp_kms_project", "Vault"),
        (CLOUD, "gcp_kms_url", "https://kms.example"),
        (CLOUD, "gcp_kms_url", "https://notgoogleapis.com"),
        (CLOUD, "gcp_kms_url", "http://cloudkms.googleapis.com"),
        (CLOUD, "gcp_kms_url", "https://cloudkms.googleapis.com/v1"),
        (BAO, "openbao_url", "http://bao.example:8200"),
        (BAO, "openbao_key", "../dek"),
        (BAO, "openbao_mount", "transit/../sys"),
        (BAO, "openbao_mount", ""),
        (BAO, "openbao_namespace", "/team"),
    ],
)
def test_a_kms_setting_that_leads_elsewhere_stops_it(
    environ: dict[str, str], chosen: dict[str, str], field: str, value: str
) -> None:
    """CF-03: a pinned version, another project, host or path: no start, and no data key there."""
    environ |= {variable_of(name): each for name, each in chosen.items()}
    environ[variable_of(field)] = value
    with pytest.raises(ConfigError) as refusal:
        load_settings(VaultSettings, environ)
    assert refusal.value.variable == variable_of(field)
    assert not value.strip() or value.strip() not in refusal.value.problem
