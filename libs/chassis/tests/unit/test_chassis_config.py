"""Settings are whole and sound, or the process does not start."""

from pathlib import Path

import pytest

from interlock_chassis.config import (
    CommaList,
    DatabaseUrlFile,
    DocumentFile,
    Environment,
    HttpUrl,
    MigrationSettings,
    SecretFile,
    ServiceSettings,
    load_settings,
    settings_reference,
)
from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_chassis.tls import TlsFiles

BASE = {
    "INTERLOCK_ENVIRONMENT": "development",
    "INTERLOCK_LISTEN": "127.0.0.1:0",
    "INTERLOCK_OPS_LISTEN": "127.0.0.1:0",
    "INTERLOCK_TLS_CA_FILE": "/tls/ca.crt",
    "INTERLOCK_TLS_CERT_FILE": "/tls/tls.crt",
    "INTERLOCK_TLS_KEY_FILE": "/tls/tls.key",
}


class Settings(ServiceSettings):
    """A service's settings, one of each kind."""

    signing_secret_file: SecretFile | None = None
    """Slack's signing secret."""

    keys_file: DocumentFile | None = None
    """A keyset."""

    database_url_file: DatabaseUrlFile | None = None
    """The database."""

    platform_url: HttpUrl | None = None
    """The agents | platform."""

    scopes: CommaList = ("chat:write", "commands")
    """Scopes asked for."""

    ttl_seconds: int = 300
    """Seconds."""


def load(**more: str) -> Settings:
    """Load the settings with the given variables added."""
    added = {f"INTERLOCK_{name.upper()}": value for name, value in more.items()}
    return load_settings(Settings, BASE | added)


def refusal(**more: str) -> ConfigError:
    """Return the error that the given variables cause."""
    with pytest.raises(ConfigError) as refused:
        load(**more)
    return refused.value


def written(path: Path, text: str) -> str:
    """Write a file and return its path as a variable would hold it."""
    path.write_text(text)
    return str(path)


def test_values_are_read_from_the_given_environment() -> None:
    """Every field comes from its variable; others of the environment are not ours."""
    settings = load_settings(Settings, {**BASE, "PATH": "/bin", "INTERLOCK_TTL_SECONDS": "60"})
    assert settings.environment is Environment.DEVELOPMENT
    assert settings.ttl_seconds == 60
    assert settings.tls == TlsFiles(
        ca=Path("/tls/ca.crt"), cert=Path("/tls/tls.crt"), key=Path("/tls/tls.key")
    )


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own variables do not leak into settings built elsewhere."""
    monkeypatch.setenv("INTERLOCK_TTL_SECONDS", "1")
    assert load().ttl_seconds == 300


def test_production_is_the_default() -> None:
    """Strict rules hold until somebody says development."""
    settings = load_settings(
        Settings, {name: value for name, value in BASE.items() if "ENVIRONMENT" not in name}
    )
    assert settings.environment is Environment.PRODUCTION


def test_a_missing_variable_is_named() -> None:
    """What is required and absent stops the start."""
    with pytest.raises(ConfigError) as refused:
        load_settings(Settings, {**{k: v for k, v in BASE.items() if k != "INTERLOCK_LISTEN"}})
    assert refused.value.variable == "INTERLOCK_LISTEN"
    assert refused.value.problem == "required, but not set"


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    """CF-06: a typo stops the start and is named, with what was probably meant."""
    error = refusal(signing_secert_file="x")
    assert error.variable == "INTERLOCK_SIGNING_SECERT_FILE"
    assert error.problem == "unknown variable; did you mean INTERLOCK_SIGNING_SECRET_FILE?"


def test_a_bad_value_is_never_quoted() -> None:
    """The error names the variable and the rule, not what was there."""
    error = refusal(ttl_seconds="xoxb-canary")
    assert error.variable == "INTERLOCK_TTL_SECONDS"
    assert "canary" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None


def test_settings_cannot_be_changed() -> None:
    """A setting read once stays."""
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.ttl_seconds = 1


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    """A secret's variable holds a path; printing the settings shows no secret."""
    settings = load(
        signing_secret_file=written(tmp_path / "a", "canary"),
        keys_file=written(tmp_path / "b", '{"canary": 1}\n'),
    )
    assert settings.signing_secret_file == Secret("canary")
    assert settings.keys_file == Secret('{"canary": 1}\n')
    assert "canary" not in repr(settings)


@pytest.mark.parametrize("content", ["", " ", "secret\n"])
def test_a_blank_or_newline_ended_secret_is_refused(tmp_path: Path, content: str) -> None:
    """CF-01: such a file stops the start, named by its variable."""
    error = refusal(signing_secret_file=written(tmp_path / "a", content))
    assert error.variable == "INTERLOCK_SIGNING_SECRET_FILE"
    assert "secret\n" not in str(error)


@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_path_is_refused(value: str) -> None:
    """CF-01: a variable set to nothing is not the same as an absent one."""
    assert refusal(signing_secret_file=value).problem == "must be the path of a file"


@pytest.mark.parametrize(
    "value", ["127.0.0.1:0", "[::1]:8443", "identity:8443", "a.b-c.svc.cluster.local:65535"]
)
def test_addresses_are_host_and_port(value: str) -> None:
    """Names, IPv4 and bracketed IPv6 with a port are addresses."""
    assert load(listen=value).listen == value


@pytest.mark.parametrize(
    "value",
    ["", "8443", ":8443", "host", "host:", "host:x", "host:65536", "::1:80", "a b:1", "host:٣"],
)
def test_anything_else_is_no_address(value: str) -> None:
    """A listen address that cannot be one stops the start."""
    assert refusal(listen=value).variable == "INTERLOCK_LISTEN"


@pytest.mark.parametrize(
    "value",
    [
        "https://api.example.com",
        "https://api.example.com:8443/run/",
        "https://10.0.0.7/x",
        "http://127.0.0.1:8080",
        "http://localhost/",
        "http://[::1]:81/",
    ],
)
def test_good_urls_pass(value: str) -> None:
    """Https anywhere, and http to this machine in development."""
    assert str(load(platform_url=value).platform_url).rstrip("/") == value.rstrip("/")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "api.example.com",
        "file:///etc/passwd",
        "ftp://example.com",
        "https://",
        "https:///x",
        "https://user@example.com",
        "https://user:pw@example.com",
        "https://example.com@evil.com",
        "https://example.com/?a=b",
        "https://example.com/?",
        "https://example.com/#x",
        "https://example.com/a/../b",
        "https://example.com/..",
        "https://example.com/a/%2e%2e/b",
        "https://example.com/a%2Fb",
        "https://example.com//b",
        "https://example.com/a\\b",
        "https://exa mple.com",
        "https://example.com/\n",
        "https://exämple.com",
        "https://example.com:99999",
        "http://169.254.169.254/",
        "https://169.254.169.254/",
        "https://0xa9fea9fe/",
        "https://2852039166/",
        "https://0.0.0.0/",
        "http://example.com",
        "http://127.0.0.1.example.com",
        "http://10.0.0.7/",
    ],
)
def test_bad_urls_are_refused(value: str) -> None:
    """CF-07: other schemes, credentials, queries, path tricks and cloud metadata stop the start."""
    error = refusal(platform_url=value)
    assert error.variable == "INTERLOCK_PLATFORM_URL"
    assert not value or value not in str(error)


def test_http_is_refused_in_production_even_to_loopback() -> None:
    """CF-07: outside of development only https passes."""
    assert "https" in refusal(environment="production", platform_url="http://127.0.0.1:1").problem


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ("development", "postgresql://role:pw@/db?host=/run/pg&port=5432"),
        ("development", "postgresql://role:pw@127.0.0.1:5432/db"),
        ("production", "postgresql://role:pw@db:5432/db?sslmode=verify-full&sslrootcert=/ca"),
    ],
)
def test_good_database_urls_pass(tmp_path: Path, environment: str, url: str) -> None:
    """A URL with a role and a database passes, in production with verified TLS."""
    settings = load(environment=environment, database_url_file=written(tmp_path / "url", url))
    assert settings.database_url_file == Secret(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://role:canary@db/db",
        "postgresql://role:canary@db/db?sslmode=require",
        "postgresql://role:canary@db/db?sslmode=verify-ca",
        "postgresql://role:canary@db/db?sslmode=verify-full&sslmode=disable",
        "mysql://role:canary@db/db?sslmode=verify-full",
        "postgresql://db/db?sslmode=verify-full",
        "postgresql://role:canary@db?sslmode=verify-full",
        "postgresql://role:canary@[db/db?sslmode=verify-full",
        "postgresql://role:canary@db/db?sslmode",
        "canary",
    ],
)
def test_bad_database_urls_stop_production(tmp_path: Path, url: str) -> None:
    """CF-02: without verified TLS, or not a database URL at all; never quoted."""
    error = refusal(environment="production", database_url_file=written(tmp_path / "url", url))
    assert error.variable == "INTERLOCK_DATABASE_URL_FILE"
    assert "canary" not in str(error)


def test_an_unknown_environment_does_not_loosen_a_rule(tmp_path: Path) -> None:
    """A mistyped environment is refused, and strict rules hold meanwhile."""
    assert refusal(environment="dev").variable == "INTERLOCK_ENVIRONMENT"


def test_lists_are_comma_separated() -> None:
    """Items are trimmed; blanks between commas and repeats are refused."""
    assert load(scopes="a, b").scopes == ("a", "b")
    assert refusal(scopes="a,,b").variable == "INTERLOCK_SCOPES"
    assert refusal(scopes="a,a").variable == "INTERLOCK_SCOPES"


def test_an_unknown_log_level_is_refused() -> None:
    """Levels are the four that are documented."""
    assert refusal(log_level="trace").variable == "INTERLOCK_LOG_LEVEL"


def test_the_reference_lists_every_variable_once_per_meaning() -> None:
    """The table names variable, processes, default and meaning, and escapes pipes."""
    table = settings_reference({"edge": Settings, "migrate": MigrationSettings})
    lines = table.splitlines()
    assert lines[0] == "| Variable | Processes | Default | Meaning |"
    assert "| `INTERLOCK_SCOPES` | edge | `chat:write,commands` | Scopes asked for. |" in lines
    assert "| `INTERLOCK_PLATFORM_URL` | edge | none | The agents \\| platform. |" in lines
    assert any(
        line.startswith("| `INTERLOCK_ENVIRONMENT` | edge, migrate | `production` |")
        for line in lines
    )
    assert any(line.startswith("| `INTERLOCK_LISTEN` | edge | required |") for line in lines)
