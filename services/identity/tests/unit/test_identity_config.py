"""What the identity process accepts as its settings."""

from datetime import timedelta
from pathlib import Path

import pytest

from interlock_chassis.config import load_settings
from interlock_chassis.errors import ConfigError
from interlock_identity.config import IdentitySettings
from interlock_identity.domain.agents import Agent
from interlock_identity.domain.linking import EmailPolicy
from interlock_identity.domain.people import TenantId
from interlock_identity.retention import Keeping


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Give the least that the process starts with."""
    url = tmp_path / "url"
    url.write_text("postgresql://role:password@127.0.0.1:5432/interlock_identity")
    document = tmp_path / "keys.json"
    document.write_text('{"keys": []}\n')
    return {
        "INTERLOCK_ENVIRONMENT": "development",
        "INTERLOCK_LISTEN": "127.0.0.1:0",
        "INTERLOCK_OPS_LISTEN": "127.0.0.1:0",
        "INTERLOCK_TLS_CA_FILE": "ca.pem",
        "INTERLOCK_TLS_CERT_FILE": "cert.pem",
        "INTERLOCK_TLS_KEY_FILE": "key.pem",
        "INTERLOCK_DATABASE_URL_FILE": str(url),
        "INTERLOCK_MEMBERSHIP_DATABASE_URL_FILE": str(url),
        "INTERLOCK_AUTH_URL": "http://127.0.0.1:3000",
        "INTERLOCK_GRANT_KEYS_FILE": str(document),
        "INTERLOCK_GRANT_PUBLIC_KEYS_FILE": str(document),
        "INTERLOCK_USER_TOKEN_KEYS_FILE": str(document),
    }


def test_the_defaults_fit_better_auth(environ: dict[str, str]) -> None:
    """Without a word about them, the cookie is Better Auth's and no agent is preset."""
    settings = load_settings(IdentitySettings, environ)
    assert settings.session_cookie_name == "better-auth.session_token"
    assert settings.default_agent is None


def test_an_operators_agent_is_a_project_and_an_agent(environ: dict[str, str]) -> None:
    """The operator names both at once."""
    environ["INTERLOCK_DEFAULT_AGENT"] = "docs/helper"
    settings = load_settings(IdentitySettings, environ)
    assert settings.default_agent == Agent("docs", "helper")


def test_old_settings_still_start_it(environ: dict[str, str]) -> None:
    """What came later has a default: the table, a minute, 30 days, no strict tenant."""
    settings = load_settings(IdentitySettings, environ)
    assert (settings.membership_source, settings.manage_url) == ("table", None)
    assert settings.membership_cache_seconds == 60
    assert settings.keeping == Keeping(
        codes=timedelta(days=7), released_claims=timedelta(days=30), audit=timedelta(days=400)
    )
    assert settings.emails == EmailPolicy()


def test_strict_tenants_are_listed_or_everybody(environ: dict[str, str]) -> None:
    """A star is every tenant."""
    environ["INTERLOCK_EMAILS_MUST_MATCH"] = "northwind, contoso"
    tenants = frozenset({TenantId("northwind"), TenantId("contoso")})
    assert load_settings(IdentitySettings, environ).emails == EmailPolicy(strict_tenants=tenants)
    environ["INTERLOCK_EMAILS_MUST_MATCH"] = "*"
    assert load_settings(IdentitySettings, environ).emails == EmailPolicy(is_strict_everywhere=True)


@pytest.mark.parametrize(
    ("source", "lacking"), [("table", "MEMBERSHIP_DATABASE_URL_FILE"), ("platform", "MANAGE_URL")]
)
def test_a_membership_source_needs_its_address(
    environ: dict[str, str], source: str, lacking: str
) -> None:
    """The source that is chosen must be reachable; the other one's address is not needed."""
    environ["INTERLOCK_MEMBERSHIP_SOURCE"] = source
    environ["INTERLOCK_MANAGE_URL"] = "http://127.0.0.1:3001"
    load_settings(IdentitySettings, environ)
    del environ[f"INTERLOCK_{lacking}"]
    with pytest.raises(ConfigError) as refusal:
        load_settings(IdentitySettings, environ)
    assert refusal.value.variable == f"INTERLOCK_{lacking}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INTERLOCK_DEFAULT_AGENT", "helper"),
        ("INTERLOCK_DEFAULT_AGENT", "docs/"),
        ("INTERLOCK_DEFAULT_AGENT", "/helper"),
        ("INTERLOCK_DEFAULT_AGENT", "docs/helper/more"),
        ("INTERLOCK_SESSION_COOKIE_NAME", "__Secure-better-auth.session_token"),
        ("INTERLOCK_SESSION_COOKIE_NAME", "two words"),
        ("INTERLOCK_SESSION_COOKIE_NAME", "a=b"),
        ("INTERLOCK_SESSION_COOKIE_NAME", ""),
        ("INTERLOCK_AUTH_URL", "http://auth.example"),
        ("INTERLOCK_MEMBERSHIP_SOURCE", "guess"),
        ("INTERLOCK_MEMBERSHIP_CACHE_SECONDS", "121"),
        ("INTERLOCK_RELEASED_CLAIM_DAYS", "-1"),
        ("INTERLOCK_AUDIT_DAYS", "89"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    environ: dict[str, str], variable: str, value: str
) -> None:
    """The refusal names the variable and not its value."""
    environ[variable] = value
    with pytest.raises(ConfigError) as refusal:
        load_settings(IdentitySettings, environ)
    assert refusal.value.variable == variable
    assert not value or value not in refusal.value.problem
