"""Settings of a process: read once, from `INTERLOCK_*` variables, or not at all.

Secrets arrive as paths of files. A value that breaks a rule, a variable nobody
knows and a blank secret stop the start, by name and never by value.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, PlainValidator, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from yarl import URL

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_chassis.tls import TlsFiles

PREFIX = "INTERLOCK_"

_REFERENCE_HEAD = "| Variable | Processes | Default | Meaning |\n|---|---|---|---|\n"
_HIGHEST_PORT = 65535
_HOST_NAME = re.compile(
    r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.IGNORECASE
)
# Browsers and C libraries read such a last label as a number, that is, as an
# address written in a way that a check for addresses does not see.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_URL_TEXT = re.compile(r"[!-~]+")
# Slack, and its separate offer to governments (docs.slack.dev/authentication/govslack).
_SLACKS_HOSTS = ("slack.com", "slack-gov.com")
_PATH_TRICKS = re.compile(r"//|\\|/\.{1,2}(/|$)|%(2e|2f|5c|00)", re.IGNORECASE)


class Environment(StrEnum):
    """Where a process runs; only development loosens a rule."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


def variable_of(field: str) -> str:
    """Name the environment variable that sets a field."""
    return PREFIX + field.upper()


def _secret_from(value: object, info: ValidationInfo, *, document: bool) -> Secret[str]:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError("must be the path of a file")
    variable = variable_of(info.field_name or "")
    return Secret.from_file(Path(value), variable=variable, document=document)


def _plain_secret(value: object, info: ValidationInfo) -> Secret[str]:
    return _secret_from(value, info, document=False)


def _document_secret(value: object, info: ValidationInfo) -> Secret[str]:
    return _secret_from(value, info, document=True)


def _database_url(value: object, info: ValidationInfo) -> Secret[str]:
    url = _secret_from(value, info, document=False)
    try:
        parts = urlsplit(url.reveal())
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        user, path = parts.username, parts.path
    except ValueError:
        # The original error may quote the URL, and with it the password.
        raise ValueError("the file does not hold a database URL") from None
    if parts.scheme not in {"postgresql", "postgres"} or not user or not path.strip("/"):
        raise ValueError("the file must hold postgresql://role:password@host:port/database")
    if _environment(info) is Environment.PRODUCTION and query.get("sslmode") != "verify-full":
        raise ValueError("the URL must say sslmode=verify-full outside development")
    return url


def _host_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _HIGHEST_PORT:
        raise ValueError("must be host:port")
    if host.startswith("[") and host.endswith("]"):
        _address_or_refuse(host[1:-1])
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError("must be host:port")
    return value


def _address_or_refuse(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("must be host:port") from None


def _http_url(value: object, info: ValidationInfo) -> URL:
    text = str(value)
    if not _URL_TEXT.fullmatch(text):
        raise ValueError("must be a URL in printable ASCII, without spaces")
    try:
        parts = urlsplit(text)
        url = URL(text)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL") from None
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password")
    if "?" in text or "#" in text:
        raise ValueError("must not hold a query or fragment")
    if _PATH_TRICKS.search(parts.path):
        raise ValueError("must have a plain path: no '..', '//', or encoded separators")
    _require_plain_host(url.raw_host or "")
    if url.scheme == "http":
        if _environment(info) is not Environment.DEVELOPMENT or not _is_loopback(
            url.raw_host or ""
        ):
            raise ValueError("must be https; http only to loopback, in development")
    elif url.scheme != "https":
        raise ValueError("must be https")
    return url


def _slacks_url(url: URL, info: ValidationInfo) -> URL:
    is_slacks = url.raw_host in _SLACKS_HOSTS and url.explicit_port in {None, 443}
    if _environment(info) is not Environment.DEVELOPMENT and not is_slacks:
        raise ValueError(f"must be of {' or '.join(_SLACKS_HOSTS)} outside development")
    return url


def _require_plain_host(host: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or _NUMERIC_LABEL.fullmatch(host.rsplit(".", 1)[-1]):
            raise ValueError("must name a host") from None
        return
    # 169.254.169.254 hands cloud credentials to whoever asks.
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ValueError("must not name a link-local, multicast or unspecified address")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _environment(info: ValidationInfo) -> Environment:
    # Fields are validated in order, and `environment` is the first; when it was
    # itself refused, the strict rule holds.
    found = info.data.get("environment", Environment.PRODUCTION)
    return Environment(found)


def _comma_list(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        items = tuple(item.strip() for item in value.split(",")) if value.strip() else ()
    elif isinstance(value, tuple | list):
        items = tuple(str(item) for item in value)
    else:
        raise ValueError("must be a comma-separated list")  # noqa: TRY004 - pydantic wants it.
    if not all(items) or len(set(items)) != len(items):
        raise ValueError("must list distinct, non-empty items")
    return items


SecretFile = Annotated[Secret[str], PlainValidator(_plain_secret)]
"""A secret in a file; the variable `INTERLOCK_X_FILE` holds the path."""

DocumentFile = Annotated[Secret[str], PlainValidator(_document_secret)]
"""A JSON or PEM file with secrets in it; may end in a newline."""

DatabaseUrlFile = Annotated[Secret[str], PlainValidator(_database_url)]
"""A file that holds a Postgres URL; outside development it says `sslmode=verify-full`."""

HttpUrl = Annotated[URL, PlainValidator(_http_url)]
"""An https URL without user, query or fragment; in development also http to loopback."""

SlackUrl = Annotated[URL, PlainValidator(_http_url), AfterValidator(_slacks_url)]
"""An HttpUrl of Slack's own hosts; in development also of others.

Tokens, client secrets and answers go there: a production that could be pointed
elsewhere would hand them to whoever may set a variable.
"""

HostPort = Annotated[str, AfterValidator(_host_port)]
"""`host:port`; port 0 lets the system choose."""

CommaList = Annotated[tuple[str, ...], PlainValidator(_comma_list)]
"""Distinct items, separated by commas."""


class ProcessSettings(BaseSettings):
    """What every process is told, also one that serves nothing.

    Only `load_settings` reads the environment; building the class directly
    takes values and nothing else.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    environment: Environment = Environment.PRODUCTION
    """`production`, or `development` on one machine, where loopback may go without TLS."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line written; `debug` never applies to Slack, gRPC or HTTP libraries."""

    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for traces, `https://host:4317`; empty: no tracing."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - The signature is pydantic's.
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - The signature is pydantic's.
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - The signature is pydantic's.
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - As above.
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone; the environment is `load_settings`'s."""
        return (init_settings,)


class ServiceSettings(ProcessSettings):
    """What every process that serves gRPC or HTTP is told."""

    listen: HostPort
    """Where the service listens, `host:port`."""

    ops_listen: HostPort
    """Where `/livez`, `/readyz` and `/metrics` are served, `host:port`."""

    tls_ca_file: Path
    """PEM of the authority that signs every process of this installation."""

    tls_cert_file: Path
    """PEM of this process's certificate chain."""

    tls_key_file: Path
    """PEM of this process's private key."""

    @property
    def tls(self) -> TlsFiles:
        """The three TLS files as one value."""
        return TlsFiles(ca=self.tls_ca_file, cert=self.tls_cert_file, key=self.tls_key_file)


class MigrationSettings(ProcessSettings):
    """What a process that migrates a database is told."""

    database_url_file: DatabaseUrlFile
    """File with the URL of the database's owner role."""


S = TypeVar("S", bound=ProcessSettings)


def load_settings(cls: type[S], environ: Mapping[str, str]) -> S:
    """Read the settings of a process.

    Reads the files that the settings name; nothing else.

    Args:
        cls: The process's settings.
        environ: The process's environment.

    Raises:
        ConfigError: A variable is missing, unknown, or breaks its rule. Names
            the variable, never the value.
    """
    known = {variable_of(field): field for field in cls.model_fields}
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known:
            raise ConfigError(variable, "unknown variable" + _hint(variable, known))
    values = {field: environ[name] for name, field in known.items() if name in environ}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        field, problem = _first_problem(error)
    # Raised out here so that no traceback holds pydantic's error, which knows
    # the value.
    raise ConfigError(variable_of(field) if field else PREFIX + "*", problem)


def _hint(variable: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(variable, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _first_problem(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return field, "required, but not set"
    return field, first["msg"].removeprefix("Value error, ")


def settings_reference(settings: Mapping[str, type[ProcessSettings]]) -> str:
    """Write the reference of every variable as a Markdown table.

    Args:
        settings: The name of each process and its settings; rows come sorted
            by variable, and processes in the order given.
    """
    processes: dict[tuple[str, str, str], list[str]] = {}
    for process, cls in settings.items():
        for name, field in cls.model_fields.items():
            row = (variable_of(name), _default_of(field), _meaning_of(field))
            processes.setdefault(row, []).append(process)
    rows = (
        f"| `{variable}` | {', '.join(names)} | {default} | {meaning} |\n"
        for (variable, default, meaning), names in sorted(processes.items())
    )
    return _REFERENCE_HEAD + "".join(rows)


def _default_of(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default == "":
        return "none"
    if isinstance(field.default, tuple | list):
        return f"`{','.join(str(item) for item in field.default)}`"
    return f"`{field.default}`"


def _meaning_of(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")
