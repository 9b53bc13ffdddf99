"""What can be wrong with a process's set-up, found by trying it.

Every check takes the settings as the process itself reads them, reaches what the process
reaches, changes nothing there, and says what to do about what it finds. No message holds
a secret: it is made of names, times and the words of our own errors.
"""

import asyncio
import os
import re
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from yarl import URL

from interlock_chassis.client import open_channel
from interlock_chassis.clock import Clock
from interlock_chassis.config import ServiceSettings, load_settings, variable_of
from interlock_chassis.database import DatabasePlan, list_versions, open_pool
from interlock_chassis.errors import ConfigError, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.tls import SPIFFE_PREFIX
from interlock_gateway.edge import paths
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.migrations import DATABASE as GATEWAY_DATABASE
from interlock_gateway.migrations import EDGE_ROLE, WORKER_ROLE
from interlock_gateway.worker.config import WorkerSettings
from interlock_identity.config import IdentitySettings
from interlock_identity.migrations import DATABASE as IDENTITY_DATABASE
from interlock_runner.config import RunnerSettings
from interlock_token_vault.__main__ import open_kms
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.migrations import DATABASE as VAULT_DATABASE
from interlock_token_vault.migrations import SCANNER_ROLE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset

_SECONDS = 5.0
# Leases and codes count by the database's clock, grants by ours.
_MOST_SKEW = timedelta(seconds=5)
# Slack's signatures are good for 5 minutes either way; the header has whole seconds.
_MOST_SLACK_SKEW = timedelta(seconds=60)
_NOTABLE_SKEW = timedelta(seconds=2)
# cert-manager renews with 10 days left.
_SOON = timedelta(days=7)
# Two of 12 and 13 digits today; nothing else is a client id.
_CLIENT_ID = re.compile(r"[0-9]{5,20}\.[0-9]{5,20}")
_SIGNING_SECRET_VARIABLE = variable_of("slack_signing_secret_file")
_KMS_VARIABLES = {
    "local": "local_keyset_file",
    "gcp": "gcp_kms_key",
    "openbao": "openbao_key",
}
_PEERS = {
    "identity_address": "identity",
    "vault_address": "token-vault",
    "worker_address": "gateway-worker",
    "runner_address": "runner",
}


class Status(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    """It works now; somebody should look."""

    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at, in a word.
        message: What was found, and what to do about it.
        variable: The setting to look at; "" where none is at fault.
    """

    check: str
    status: Status
    message: str
    variable: str = ""


Check = Callable[[Any, Clock], Awaitable[list[Finding]]]


@dataclass(frozen=True)
class _Database:
    field: str
    plan: DatabasePlan
    role: str


@dataclass(frozen=True)
class _Process:
    """What is looked at besides what all processes have."""

    settings: type[ServiceSettings]
    databases: Sequence[_Database]
    checks: Sequence[Check]


async def diagnose(process: str, environ: Mapping[str, str], *, clock: Clock) -> list[Finding]:
    """Check the set-up of a process, all of it at once; takes 15 s at most.

    Args:
        process: One of PROCESSES.
        environ: The process's environment.
        clock: This machine's, compared with everybody else's.
    """
    kind = PROCESSES[process]
    try:
        settings = load_settings(kind.settings, environ)
    except ConfigError as error:
        return [Finding("configuration", Status.FAILED, error.problem, error.variable)]
    given = sum(name.startswith("INTERLOCK_") for name in environ)
    found = [Finding("configuration", Status.OK, f"{given} variables, all of them known and valid")]
    checks = [
        _certificate(process),
        _check_peers,
        *(_database(each) for each in kind.databases),
        *kind.checks,
    ]
    for result in await asyncio.gather(*(_bounded(check, settings, clock) for check in checks)):
        found += result
    return found


async def _bounded(check: Check, settings: ServiceSettings, clock: Clock) -> list[Finding]:
    try:
        async with asyncio.timeout(3 * _SECONDS):
            return await check(settings, clock)
    except TimeoutError:
        return [Finding("time", Status.FAILED, "a check did not come to its end within 15 s")]


# Certificates.


def _certificate(process: str) -> Check:
    async def check(settings: ServiceSettings, clock: Clock) -> list[Finding]:
        try:
            certificate, authority = _read_certificates(settings)
        except ConfigError as error:
            return [Finding("certificate", Status.FAILED, error.problem, error.variable)]
        found = [
            Finding("certificate", Status.FAILED, problem, variable_of("tls_cert_file"))
            for problem in _certificate_problems(certificate, authority, process, clock.now())
        ]
        left = certificate.not_valid_after_utc - clock.now()
        if not found and left < _SOON:
            text = f"ends in {left.days} days; whoever renews it should have done so"
            return [Finding("certificate", Status.WARNING, text, variable_of("tls_cert_file"))]
        text = f"{SPIFFE_PREFIX}{process}, {left.days} days left"
        return found or [Finding("certificate", Status.OK, text)]

    return check


def _read_certificates(settings: ServiceSettings) -> tuple[x509.Certificate, x509.Certificate]:
    """Return the certificate and its authority; the key must be the certificate's."""
    certificate = _read_pem(settings.tls_cert_file, "tls_cert_file", x509.load_pem_x509_certificate)
    authority = _read_pem(settings.tls_ca_file, "tls_ca_file", x509.load_pem_x509_certificate)
    key = _read_pem(
        settings.tls_key_file, "tls_key_file", lambda pem: load_pem_private_key(pem, None)
    )
    if key.public_key() != certificate.public_key():
        raise ConfigError(variable_of("tls_key_file"), "the key is not the certificate's")
    return certificate, authority


def _read_pem(path: Path, field: str, load: Callable[[bytes], Any]) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(variable_of(field), f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(variable_of(field), f"{path} is not the PEM it should be") from None


def _certificate_problems(
    certificate: x509.Certificate, authority: x509.Certificate, process: str, now: datetime
) -> list[str]:
    """List what makes peers refuse a certificate."""
    problems = []
    if now > certificate.not_valid_after_utc:
        problems.append(f"ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it")
    if now < certificate.not_valid_before_utc:
        problems.append("is not valid yet: this clock is behind, or the issuer's is ahead")
    name = SPIFFE_PREFIX + process
    if _names_of(certificate) != [name]:
        problems.append(f"must carry the one URI name {name}; it has {_names_of(certificate)}")
    if not _usages_of(certificate) >= {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }:
        problems.append("must be for servers and clients: processes are both")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        problems.append("was not issued by the authority in INTERLOCK_TLS_CA_FILE")
    return problems


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.UniformResourceIdentifier)


def _usages_of(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()


# Peers.


async def _check_peers(settings: ServiceSettings, _: Clock) -> list[Finding]:
    fields = [field for field in _PEERS if hasattr(settings, field)]
    return list(await asyncio.gather(*(_peer(settings, field) for field in fields)))


async def _peer(settings: ServiceSettings, field: str) -> Finding:
    address, variable = str(getattr(settings, field)), variable_of(field)
    server = _PEERS[field]
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
    except (OSError, TimeoutError) as error:
        text = f"{server} cannot be reached at {address}: {_why(error)}"
        return Finding("peer", Status.FAILED, text, variable)
    try:
        async with open_channel(address, settings.tls, server=server) as channel:
            await asyncio.wait_for(channel.channel_ready(), _SECONDS)
    except (ConfigError, TimeoutError):
        text = f"{address} answers, but not as {server} of our authority"
        return Finding("peer", Status.FAILED, text, variable)
    return Finding("peer", Status.OK, f"{server} at {address}")


def _why(error: BaseException) -> str:
    """Say why something could not be reached, in words that hold no address or secret."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return "its certificate is not trusted"
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return type(error).__name__


# Databases.


def _database(database: _Database) -> Check:
    variable = variable_of(database.field)

    async def check(settings: ServiceSettings, clock: Clock) -> list[Finding]:
        url: Secret[str] | None = getattr(settings, database.field)
        if url is None:
            return []
        try:
            async with open_pool(url, application="interlock-doctor", max_size=1) as pool:
                return await _look_into(pool, database, clock)
        except asyncpg.InvalidAuthorizationSpecificationError:
            text = "Postgres refuses the role or its password"
        except asyncpg.InvalidCatalogNameError:
            text = "there is no such database on the server"
        except asyncpg.InsufficientPrivilegeError:
            text = f"the role may not use the database; it must be {database.role}"
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            text = f"Postgres cannot be reached: {_why(error)}"
        return [Finding("database", Status.FAILED, text, variable)]

    return check


_FACTS = """
SELECT current_user AS role, clock_timestamp() AS now, current_setting('server_version') AS version,
       (SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles
        WHERE rolname = current_user) AS is_mighty
"""


async def _look_into(
    pool: "asyncpg.Pool[asyncpg.Record]", database: _Database, clock: Clock
) -> list[Finding]:
    variable = variable_of(database.field)
    await pool.fetchval("SELECT 1")
    before = clock.now()
    facts = await pool.fetchrow(_FACTS)
    if facts is None:
        raise AssertionError("a SELECT of constants has one row")
    asked = (before, clock.now())
    found = [_clock("Postgres", facts["now"], asked, most=_MOST_SKEW, variable=variable)]
    if facts["role"] != database.role:
        text = f"the URL is of the role {facts['role']}; it must be {database.role}"
        found.append(Finding("role", Status.FAILED, text, variable))
    elif facts["is_mighty"]:
        text = f"{database.role} may make roles or databases; take that from it"
        found.append(Finding("role", Status.FAILED, text, variable))
    else:
        found.append(Finding("role", Status.OK, f"{database.role} on Postgres {facts['version']}"))
    return [*found, await _version(pool, database)]


async def _version(pool: "asyncpg.Pool[asyncpg.Record]", database: _Database) -> Finding:
    variable, schema = variable_of(database.field), database.plan.schema
    known = list_versions(database.plan)
    try:
        version = await pool.fetchval(f'SELECT version_num FROM "{schema}".alembic_version')  # noqa: S608 - Our own name.
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        version = None
    except asyncpg.InsufficientPrivilegeError:
        text = f"{database.role} may not see the version of {database.plan.name}; migrate it"
        return Finding("migrations", Status.FAILED, text, variable)
    if version == known[0]:
        return Finding("migrations", Status.OK, f"{database.plan.name} is at {version}, the newest")
    if version is None or version in known:
        text = f"{database.plan.name} is at {version}, the code at {known[0]}; migrate it"
        return Finding("migrations", Status.FAILED, text, variable)
    text = (
        f"{database.plan.name} is at {version}, which is newer than this code; fine in a rollback"
    )
    return Finding("migrations", Status.WARNING, text, variable)


def _clock(
    whose: str,
    theirs: datetime,
    asked: tuple[datetime, datetime],
    *,
    most: timedelta,
    variable: str,
) -> Finding:
    """Compare a clock with ours, which was read before and after theirs."""
    before, after = asked
    skew = abs(theirs - (before + (after - before) / 2))
    text = f"{skew.total_seconds():.1f} s from {whose}'s"
    if skew > most:
        text += f"; more than {most.total_seconds():.0f} s: set this machine's clock by NTP"
        return Finding("clock", Status.FAILED, text, variable)
    if skew > _NOTABLE_SKEW + (after - before):
        return Finding("clock", Status.WARNING, text, variable)
    return Finding("clock", Status.OK, text)


# HTTP.


@dataclass(frozen=True)
class _Answer:
    status: int
    date: datetime | None
    body: object
    asked: tuple[datetime, datetime]


async def _ask(url: URL, clock: Clock, *, method: str = "GET") -> _Answer:
    """Ask once, without following anything; raises what aiohttp raises."""
    limit = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=limit) as session:
        before = clock.now()
        async with session.request(method, url, allow_redirects=False) as response:
            after = clock.now()
            stamp = response.headers.get("Date", "")
            is_json = response.content_type == "application/json"
            body = await response.json() if is_json else None
            return _Answer(response.status, _date(stamp), body, (before, after))


def _date(stamp: str) -> datetime | None:
    try:
        return parsedate_to_datetime(stamp).astimezone(UTC)
    except (ValueError, TypeError):
        return None


async def _reach(name: str, url: URL, field: str, clock: Clock) -> tuple[Finding, _Answer | None]:
    """Ask a server of somebody else's for anything; an answer below 500 will do."""
    try:
        answer = await _ask(url, clock)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        text = f"{name} cannot be reached: {_why(cause)}"
        return Finding(name, Status.FAILED, text, variable_of(field)), None
    if answer.status >= 500:  # noqa: PLR2004 - It is the server that fails.
        text = f"{name} answers {answer.status}"
        return Finding(name, Status.FAILED, text, variable_of(field)), answer
    return Finding(name, Status.OK, f"{name} answers at {url.origin()}"), answer


def _reachable(name: str, field: str, path: str = "") -> Check:
    async def check(settings: ServiceSettings, clock: Clock) -> list[Finding]:
        url: URL | None = getattr(settings, field)
        if url is None:
            return []
        target = url.joinpath(path) if path else url
        return [(await _reach(name, target, field, clock))[0]]

    return check


async def _check_slack_api(settings: VaultSettings | WorkerSettings, clock: Clock) -> list[Finding]:
    """Ask api.test, and auth.test without a token, which only Slack refuses as it does."""
    variable = variable_of("slack_api_url")
    reached, answer = await _reach(
        "Slack", settings.slack_api_url.joinpath("api.test"), "slack_api_url", clock
    )
    if answer is None or reached.status is Status.FAILED:
        return [reached]
    refusal = await _ask(settings.slack_api_url.joinpath("auth.test"), clock, method="POST")
    found = [reached]
    error = refusal.body.get("error") if isinstance(refusal.body, dict) else None
    if not isinstance(answer.body, dict) or answer.body.get("ok") is not True or not error:
        text = "what answers there is not Slack's Web API; a proxy perhaps"
        found = [Finding("Slack", Status.FAILED, text, variable)]
    return [*found, *_slack_clock(answer, variable)]


def _slack_clock(answer: _Answer, variable: str) -> list[Finding]:
    if answer.date is None:
        return [Finding("clock", Status.WARNING, "Slack's answer has no Date", variable)]
    # The header cuts the fraction of its second off.
    theirs = answer.date + timedelta(milliseconds=500)
    return [_clock("Slack", theirs, answer.asked, most=_MOST_SLACK_SKEW, variable=variable)]


# What one process has and no other.


async def _check_slack_door(settings: EdgeSettings, clock: Clock) -> list[Finding]:
    reached, answer = await _reach("Slack", settings.slack_url, "slack_url", clock)
    found = [reached]
    if answer is not None:
        found += _slack_clock(answer, variable_of("slack_url"))
    ours, _ = await _reach("public URL", settings.public_url.joinpath("livez"), "public_url", clock)
    if ours.status is Status.FAILED:
        # Many networks do not let a machine in at its own front door.
        ours = Finding("public URL", Status.WARNING, ours.message + " from here", ours.variable)
    redirect = settings.public_url.with_path(paths.INSTALL_CALLBACK)
    told = f"Slack's app must list {redirect} as a redirect URL"
    return [*found, ours, Finding("redirect URL", Status.OK, told)]


async def _check_client_id(settings: VaultSettings, _: Clock) -> list[Finding]:
    if _CLIENT_ID.fullmatch(settings.slack_client_id):
        return [Finding("client id", Status.OK, "has Slack's form")]
    text = "is no client id of Slack's, such as 1234567890.1234567890; it is not the app's id"
    return [Finding("client id", Status.FAILED, text, variable_of("slack_client_id"))]


async def _check_kms(settings: VaultSettings, clock: Clock) -> list[Finding]:
    """Wrap a key of no use, and unwrap it."""
    variable = variable_of(_KMS_VARIABLES[settings.kms])
    dek, bound = Secret(secrets.token_bytes(32)), b"interlock doctor"
    began = clock.monotonic()
    try:
        async with open_kms(settings) as kms:
            wrapped = await kms.wrap(dek, bound)
            is_same = await kms.unwrap(wrapped, bound) == dek
    except ConfigError as error:
        return [Finding("KMS", Status.FAILED, error.problem, error.variable)]
    except ServiceError as error:
        return [Finding("KMS", Status.FAILED, f"{error.message} ({error.reason})", variable)]
    if not is_same:
        return [
            Finding("KMS", Status.FAILED, "it unwraps something else than it wrapped", variable)
        ]
    took = (clock.monotonic() - began) * 1000
    text = f"{settings.kms}: wrapped and unwrapped by {wrapped.kek_version} in {took:.0f} ms"
    return [Finding("KMS", Status.OK, text)]


async def _check_folders(settings: VaultSettings, _: Clock) -> list[Finding]:
    found = []
    for field in ("spool_dir", "audit_checkpoint_dir"):
        path: Path | None = getattr(settings, field)
        if path is None and field == "audit_checkpoint_dir" and settings.audit_checkpoint_url:
            found.append(await _bucket(settings))
        elif path is None:
            text = "not set; needed in production"
            found.append(Finding("folder", Status.WARNING, text, variable_of(field)))
        elif not os.access(f"{path}/.", os.W_OK | os.X_OK):
            text = f"{path} is no folder that this process may write to"
            found.append(Finding("folder", Status.FAILED, text, variable_of(field)))
        else:
            found.append(Finding("folder", Status.OK, f"{path} can be written to"))
    return found


async def _bucket(settings: VaultSettings) -> Finding:
    """Read the newest checkpoints, as the vault does when it starts."""
    # It takes time to load, and few have a bucket.
    from interlock_token_vault.adapters.bucket_checkpoints import (  # noqa: PLC0415 - Above.
        BucketPlace,
        open_bucket,
    )

    place = BucketPlace(
        url=settings.audit_checkpoint_url,
        endpoint=settings.audit_checkpoint_endpoint,
        region=settings.audit_checkpoint_region,
        credentials=settings.audit_checkpoint_credentials_file,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            chains = await open_bucket(place).load_newest(lambda _: True)
    except ConfigError as error:
        return Finding("bucket", Status.FAILED, error.problem, error.variable)
    except (ServiceError, TimeoutError):
        text = "the bucket cannot be listed and read; the vault would not start"
        return Finding("bucket", Status.FAILED, text, variable_of("audit_checkpoint_url"))
    return Finding("bucket", Status.OK, f"checkpoints of {len(chains)} chains can be read")


async def _check_nango(settings: VaultSettings, _: Clock) -> list[Finding]:
    """Ask Nango for the app's integration, with the key that the vault asks with."""
    url, key = settings.nango_url, settings.nango_secret_key_file
    if url is None or key is None:
        return []
    limit = aiohttp.ClientTimeout(total=_SECONDS)
    asked = {"Authorization": f"Bearer {key.reveal()}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.get(
                url / "integrations" / settings.nango_integration,
                headers=asked,
                allow_redirects=False,
            ) as answer,
        ):
            status = answer.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        text, field = f"Nango cannot be reached: {_why(cause)}", "nango_url"
    else:
        match status:
            case 200:
                if settings.nango_webhook_keys_file is not None:
                    return [Finding("Nango", Status.OK, f"{settings.nango_integration} is there")]
                text = "not set: installs that a browser lost wait for no webhook"
                variable = variable_of("nango_webhook_keys_file")
                return [Finding("Nango", Status.WARNING, text, variable)]
            case 401 | 403:
                text, field = "Nango refuses the key", "nango_secret_key_file"
            case 404:
                text, field = "Nango has no integration of that name", "nango_integration"
            case _:
                text, field = f"Nango answers {status}", "nango_url"
    return [Finding("Nango", Status.FAILED, text, variable_of(field))]


async def _check_membership(settings: IdentitySettings, _: Clock) -> list[Finding]:
    """Look whether the auth server's database has the table that is asked."""
    field = "membership_database_url_file"
    url = settings.membership_database_url_file
    if settings.membership_source != "table" or url is None:
        return []
    try:
        async with open_pool(url, application="interlock-doctor", max_size=1) as pool:
            await pool.fetchval("SELECT 1 FROM member LIMIT 1")
    except asyncpg.UndefinedTableError:
        text = "the auth server's database has no table `member`"
    except asyncpg.InsufficientPrivilegeError:
        text = "the role may not read the table `member`"
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        text = f"the auth server's database cannot be used: {_why(error)}"
    else:
        return [Finding("membership", Status.OK, "the table `member` can be read")]
    return [Finding("membership", Status.FAILED, text, variable_of(field))]


def _keyset(field: str, *signed: Family) -> Check:
    """Check that a keyset can be read, and signs what its process signs now."""
    variable = variable_of(field)

    async def check(settings: ServiceSettings, clock: Clock) -> list[Finding]:
        try:
            keyset = Keyset.from_json(getattr(settings, field), variable=variable)
            for family in signed:
                keyset.get_signing(family, clock.now())
        except ConfigError as error:
            return [Finding("keyset", Status.FAILED, error.problem, variable)]
        except ServiceError:
            text = f"no key of it signs {', '.join(each.value for each in signed)} at this time"
            return [Finding("keyset", Status.FAILED, text, variable)]
        return [Finding("keyset", Status.OK, f"{len(keyset.keys)} keys in {variable}")]

    return check


PROCESSES: Mapping[str, _Process] = {
    "gateway-edge": _Process(
        EdgeSettings,
        [_Database("database_url_file", GATEWAY_DATABASE, EDGE_ROLE)],
        [
            _keyset("grant_keys_file", Family.SLACK_GRANT),
            _check_slack_door,
            _reachable("auth server", "auth_url"),
        ],
    ),
    "gateway-worker": _Process(
        WorkerSettings,
        [_Database("database_url_file", GATEWAY_DATABASE, WORKER_ROLE)],
        [_keyset("grant_public_keys_file"), _check_slack_api],
    ),
    "token-vault": _Process(
        VaultSettings,
        [
            _Database("database_url_file", VAULT_DATABASE, VAULT_ROLE),
            _Database("scanner_database_url_file", VAULT_DATABASE, SCANNER_ROLE),
        ],
        [
            _keyset("grant_public_keys_file"),
            _check_kms,
            _check_folders,
            _check_client_id,
            _check_slack_api,
            _check_nango,
        ],
    ),
    "identity": _Process(
        IdentitySettings,
        [_Database("database_url_file", IDENTITY_DATABASE, IDENTITY_DATABASE.roles[0])],
        [
            _keyset(
                "grant_keys_file",
                Family.RENEWED_GRANT,
                Family.ADMIN_GRANT,
                Family.INSTALL_GRANT,
            ),
            _keyset("grant_public_keys_file"),
            _keyset("user_token_keys_file", Family.SLACK_USER),
            _check_membership,
            _reachable("auth server", "auth_url", "api/auth/get-session"),
            _reachable("platform", "manage_url"),
        ],
    ),
    "runner": _Process(
        RunnerSettings,
        [],
        [_reachable("platform", "manage_url"), _reachable("platform", "run_url")],
    ),
}
"""The processes that can be looked at, by their mTLS names."""
