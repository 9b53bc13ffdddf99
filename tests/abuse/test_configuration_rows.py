"""The catalogue's rows on configuration, each tried at every process that takes such a setting.

The id of a test is the row's, and the process. A setting that is added to a
process is tried without being named here, unless it is of a new kind.
"""

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest
from yarl import URL

from interlock_chassis.clock import Clock, ClockSkew
from interlock_chassis.config import (
    MigrationSettings,
    ProcessSettings,
    load_settings,
    variable_of,
)
from interlock_chassis.database import open_engine, open_pool
from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.edge_postgres import EdgePostgres
from interlock_gateway.adapters.worker_postgres import PostgresCron
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.migrations import DATABASE as GATEWAY_DATABASE
from interlock_gateway.migrations import EDGE_ROLE, WORKER_ROLE
from interlock_gateway.worker.config import WorkerSettings
from interlock_identity.adapters.postgres import PostgresStore as IdentityStore
from interlock_identity.config import IdentitySettings
from interlock_identity.migrations import DATABASE as IDENTITY_DATABASE
from interlock_runner.config import RunnerSettings
from interlock_token_vault.adapters.journal import open_journal
from interlock_token_vault.adapters.postgres import PostgresStore as VaultStore
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.migrations import DATABASE as VAULT_DATABASE
from interlock_token_vault.migrations import VAULT_ROLE

CANARY = "canary0WbapA4vBCDEFasx0q6G"
SETTINGS: dict[str, type[ProcessSettings]] = {
    "edge": EdgeSettings,
    "worker": WorkerSettings,
    "token-vault": VaultSettings,
    "identity": IdentitySettings,
    "runner": RunnerSettings,
    "migrate": MigrationSettings,
}
"""Every process that is told something."""

_KMS_KEY = "projects/acme-prod/locations/eu/keyRings/r/cryptoKeys/k"
PLAIN: dict[str, dict[str, str]] = {
    "edge": {
        "public_url": "https://interlock.example",
        "slack_app_id": "A0INTERLOCK",
        "auth_url": "https://auth.example",
        "worker_address": "worker:7000",
        "identity_address": "identity:7000",
        "vault_address": "token-vault:7000",
    },
    "worker": {
        "public_url": "https://interlock.example",
        "identity_address": "identity:7000",
        "vault_address": "token-vault:7000",
        "runner_address": "runner:7000",
    },
    "token-vault": {
        "slack_client_id": "1111.2222",
        "kms": "gcp",
        "gcp_kms_project": "acme-prod",
        "gcp_kms_key": _KMS_KEY,
        "identity_address": "identity:7000",
    },
    "identity": {"auth_url": "https://auth.example", "manage_url": "https://agents.example"},
    "runner": {"manage_url": "https://agents.example", "run_url": "https://agents.example"},
    "migrate": {},
}
"""What each process is told beside files and what all are told."""

_DATABASE = f"postgresql://role:{CANARY}@db.example:5432/db"


def _fields_of(process: str, kind: object) -> list[str]:
    fields = SETTINGS[process].model_fields
    return [name for name, field in fields.items() if kind in _parts(field.annotation)]


def _parts(annotation: object) -> list[object]:
    """List a type and everything that it is made of."""
    return [annotation, *(part for each in get_args(annotation) for part in _parts(each))]


def _secrets_of(process: str) -> list[str]:
    """Name the settings that are files with a secret in them."""
    return _fields_of(process, Secret[str])


def _is_document(process: str, name: str) -> bool:
    """Tell a file that an editor may end with a newline."""
    field = SETTINGS[process].model_fields[name]
    return "_document_secret" in repr([*field.metadata, *_parts(field.annotation)])


def _write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.fixture
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Give the environment that a process of production starts with, with every secret set."""
    process: str = request.getfixturevalue("process")
    values = dict(PLAIN[process]) | {"environment": "production"}
    if process != "migrate":
        values |= {"listen": "0.0.0.0:7000", "ops_listen": "0.0.0.0:7001"}
        values |= {f"tls_{name}_file": str(tmp_path / name) for name in ("ca", "cert", "key")}
    for name in _secrets_of(process):
        content = f"{CANARY}-{name}-{'x' * 32}"
        if name.endswith("database_url_file"):
            content = f"{_DATABASE}?sslmode=verify-full"
        elif _is_document(process, name):
            content = json.dumps({"keys": []}) + "\n"
        values[name] = _write(tmp_path, name, content)
    return {variable_of(name): value for name, value in values.items()}


def _refused(process: str, environ: Mapping[str, str], name: str, value: str | None) -> ConfigError:
    """Start with one setting changed; it is named, and nothing of any file is shown."""
    changed = {**environ, variable_of(name): value}
    given = {key: text for key, text in changed.items() if text is not None}
    with pytest.raises(ConfigError) as refused:
        load_settings(SETTINGS[process], given)
    assert refused.value.variable == variable_of(name)
    assert CANARY not in str(refused.value)
    return refused.value


def _each(row: str, *processes: str) -> pytest.MarkDecorator:
    """Give a test an id of the row for each process, all unless named."""
    names = processes or tuple(SETTINGS)
    return pytest.mark.parametrize("process", names, ids=[f"{row}-{name}" for name in names])


@_each("CF-01", "edge", "worker", "token-vault", "identity", "migrate")
def test_a_secret_that_is_none_stops_the_start(
    process: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """Missing, blank, binary, or with an editor's newline at its end, which is told as a hint."""
    load_settings(SETTINGS[process], environ)
    for name in _secrets_of(process):
        for content in ("", " \t", b"\x00\xff" + CANARY.encode()):
            _refused(process, environ, name, _write(tmp_path, "bad", content))
        _refused(process, environ, name, str(tmp_path / "nowhere"))
        _refused(process, environ, name, "")
        if not _is_document(process, name):
            error = _refused(process, environ, name, _write(tmp_path, "bad", f"{CANARY}\n"))
            assert "newline" in error.problem
        if SETTINGS[process].model_fields[name].is_required():
            _refused(process, environ, name, None)


@_each("CF-02", "edge", "worker", "token-vault", "identity", "migrate")
def test_a_database_without_verified_tls_stops_the_start(
    process: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """Production speaks to Postgres over TLS that knows whom it speaks to."""
    names = [name for name in _secrets_of(process) if name.endswith("database_url_file")]
    assert names
    for name in names:
        for query in ("", "?sslmode=require", "?sslmode=verify-ca", "?sslmode=verify-full&x"):
            _refused(process, environ, name, _write(tmp_path, "bad", _DATABASE + query))


@_each("CF-03", "token-vault")
def test_a_key_that_could_not_be_rotated_stops_the_start(
    process: str, environ: dict[str, str]
) -> None:
    """A pinned version, and a key of another project."""
    for key in (
        f"{_KMS_KEY}/cryptoKeyVersions/1",
        _KMS_KEY.replace("acme-prod", "other-prod"),
        f"{_KMS_KEY}/",
        "k",
    ):
        _refused(process, environ, "gcp_kms_key", key)


@_each("CF-04", "token-vault")
def test_a_data_key_is_kept_for_five_minutes_at_most(process: str, environ: dict[str, str]) -> None:
    """Nothing below 0 or above 300; 0 turns the cache off, which is a choice."""
    for text in ("-1", "301", "1000000000", "1e9", "abc", "", "300.5"):
        _refused(process, environ, "dek_cache_ttl_seconds", text)
    off = load_settings(VaultSettings, {**environ, variable_of("dek_cache_ttl_seconds"): "0"})
    assert off.dek_cache_ttl_seconds == 0


@_each("CF-05", "token-vault")
def test_the_vault_takes_no_debug_level(process: str, environ: dict[str, str]) -> None:
    """It holds tokens, so that its own lines at that level are none that anybody should see."""
    for text in ("debug", "DEBUG", "trace"):
        _refused(process, environ, "log_level", text)


_TALK = """
import logging, sys
from interlock_chassis.logs import configure_logging

configure_logging("test", "debug")
secrets = sys.stdin.read().split()
for name in ("slack_sdk", "slack_sdk.web", "slack_bolt", "aiohttp.client", "aiohttp", "grpc",
             "grpc.aio", "urllib3", "asyncpg", "sqlalchemy.engine"):
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    for secret in secrets:
        logger.debug("sending %s", {"headers": {"Authorization": f"Bearer {secret}"}})
        logger.debug(f"params: {secret}")
        logger.info("answer %s", f"token={secret}")
logging.getLogger("ours").debug("the level is in force")
"""


@_each("CF-05", "edge", "worker", "identity", "runner")
def test_libraries_print_no_token_at_the_debug_level(process: str, environ: dict[str, str]) -> None:
    """Those that print what they send stay at INFO, and what has a token's form is blanked."""
    load_settings(SETTINGS[process], {**environ, variable_of("log_level"): "debug"})
    secrets = [f"{kind}-1234567890-{CANARY}" for kind in ("xoxb", "xoxp", "xoxe.xoxb-1", "xoxe-1")]
    done = subprocess.run(
        [sys.executable, "-c", _TALK],
        input="\n".join(secrets),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert "the level is in force" in [line["event"] for line in lines]
    assert CANARY not in done.stderr + done.stdout


@_each("CF-06")
def test_a_variable_that_nobody_knows_stops_the_start(
    process: str, environ: dict[str, str]
) -> None:
    """A typo is named, so that nobody takes a default for what they set."""
    for name in ("slack_signing_secret", "databaseurl_file", "log_levl", "environmnt"):
        _refused(process, environ, name, CANARY)


BAD_URLS = (
    "http://169.254.169.254/",
    "https://169.254.169.254/latest",
    "https://[fe80::1]/",
    "https://0.0.0.0/",
    "https://0xa9fea9fe/",
    "https://2852039166/",
    "http://agents.example/",
    "http://127.0.0.1:9000/",
    "file:///etc/passwd",
    "gopher://agents.example/",
    f"https://user:{CANARY}@agents.example/",
    "https://agents.example/a/../b",
    "https://agents.example/%2e%2e/",
    "https://agents.example//x",
    "https://agents.example/a%2fb",
    "https://agents.example/?x=1",
    "https://agents.example/#x",
    "https://agents.example\\@evil.example/",
    "https://agents.example /",
    "//agents.example/",
)


@_each("CF-07", "edge", "worker", "token-vault", "identity", "runner")
def test_a_url_that_leads_elsewhere_stops_the_start(process: str, environ: dict[str, str]) -> None:
    """Metadata services, other schemes, user names, climbing paths, and http in production."""
    names = _fields_of(process, URL)
    assert names
    for name in names:
        for url in BAD_URLS:
            _refused(process, environ, name, url)


@pytest.mark.parametrize(
    ("process", "name"),
    [
        pytest.param("edge", "slack_url", id="CF-07-edge-slack"),
        pytest.param("worker", "slack_api_url", id="CF-07-worker-slack"),
        pytest.param("token-vault", "slack_api_url", id="CF-07-vault-api"),
        pytest.param("token-vault", "slack_url", id="CF-07-vault-consent"),
    ],
)
def test_production_speaks_to_slack_itself(
    process: str, name: str, environ: dict[str, str]
) -> None:
    """Client secrets, tokens and answers go to Slack's own hosts, whoever sets a variable."""
    path = "/api/" if name == "slack_api_url" else ""
    for host in (
        "slack.example",
        "slack.com.evil.example",
        "evil-slack.com",
        "api.slack.com",
        "slack.com:8443",
        "127.0.0.1",
    ):
        error = _refused(process, environ, name, f"https://{host}{path}")
        assert "slack.com" in error.problem
    for host in ("slack.com", "slack-gov.com", "slack.com:443"):
        load_settings(SETTINGS[process], {**environ, variable_of(name): f"https://{host}{path}"})
    away = {variable_of("environment"): "development", variable_of(name): "http://127.0.0.1:9"}
    load_settings(SETTINGS[process], {**environ, **away})


@pytest.mark.parametrize("process", ["worker"], ids=["CF-07-worker-responses"])
def test_production_answers_at_slack_itself(process: str, environ: dict[str, str]) -> None:
    """No setting lets a response URL name another host than Slack's."""
    for hosts in (
        "hooks.slack.example",
        "hooks.slack.com,evil.example",
        "hooks.slack.com:8443",
        "slack.com",
        "169.254.169.254",
    ):
        _refused(process, environ, "slack_response_hosts", hosts)
    for hosts in ("hooks.slack.com", "hooks.slack-gov.com,hooks.slack.com"):
        load_settings(SETTINGS[process], {**environ, variable_of("slack_response_hosts"): hosts})
    away = {variable_of("environment"): "development"}
    away[variable_of("slack_response_hosts")] = "127.0.0.1:9001"
    load_settings(SETTINGS[process], {**environ, **away})


class _Off(Clock):
    """A machine whose clock is wrong."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        """Read the wrong time."""
        return datetime.now(UTC) + self._by

    def monotonic(self) -> float:
        """Read seconds."""
        return time.monotonic()


Ask = Callable[[Clock | None], Awaitable[None]]


@pytest.fixture
async def ask(request: pytest.FixtureRequest, cluster: ScratchDatabases) -> Any:
    """Give a process's question whether it is ready, with a clock of one's own."""
    process: str = request.getfixturevalue("process")
    plan, role = {
        "edge": (GATEWAY_DATABASE, EDGE_ROLE),
        "worker": (GATEWAY_DATABASE, WORKER_ROLE),
        "token-vault": (VAULT_DATABASE, VAULT_ROLE),
        "identity": (IDENTITY_DATABASE, IDENTITY_DATABASE.roles[0]),
    }[process]
    url = (await cluster.database(plan)).roles[role]

    async def ready(clock: Clock | None) -> None:
        if process == "identity":
            async with open_engine(url, application="test") as engine:
                await IdentityStore(engine, clock).require_ready()
            return
        async with open_pool(url, application="test") as pool:
            if process == "edge":
                await EdgePostgres(pool, clock).require_ready()
            elif process == "worker":
                await PostgresCron(pool, clock).require_ready()
            else:
                async with open_journal(pool, new_id=uuid4) as journal:
                    await VaultStore(pool, journal, clock).require_ready()

    return ready


@_each("CF-08", "edge", "worker", "token-vault", "identity")
async def test_a_wrong_clock_is_not_ready(
    process: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour off the database's time, either way, a process says so and does not serve."""
    await ask(None)
    for by in (timedelta(hours=1), -timedelta(hours=1)):
        with pytest.raises(ClockSkew):
            await ask(_Off(by))
        assert "clock_skew" in capsys.readouterr().out
    await ask(_Off(timedelta(seconds=20)))
