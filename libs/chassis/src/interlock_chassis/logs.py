"""JSON log lines that hold no token, whoever writes them."""

import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from interlock_chassis.telemetry import current_request_id

_REDACTED = "[redacted]"

# Matched anywhere, not only after a word boundary: in a JSON line a token may
# follow the `n` of an escaped newline.
_TOKEN_LIKE = re.compile(
    r"""
      xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]+            # Slack tokens, also xoxe.xoxp-
    | xapp-[A-Za-z0-9-]+                               # Slack app-level tokens
    | eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?    # JWTs
    | nango_connect_session_[A-Za-z0-9_-]+             # Nango Connect sessions
    | (?<=v0=)[0-9a-fA-F]{64}                          # Slack request signatures
    | (?<=://)[^\s:/@"']*:[^\s@"']+(?=@)               # user and password of a URL
    | (?<=[Bb]earer[ ])[A-Za-z0-9._~+/=-]{8,}          # Authorization headers
    | (?<=hooks\.slack\.com/)[A-Za-z0-9/_-]+           # response URLs may post
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----(?:[A-Za-z0-9+/=\s:,-]|\\+[nr])*     # PEM keys
    """,
    re.VERBOSE,
)

# One of these is in whatever the pattern matches; most lines have none, and to
# look for them takes a fiftieth of the time.
_HINTS = (
    "xox",
    "xapp-",
    "eyJ",
    "nango_connect_session_",
    "v0=",
    "://",
    "earer ",
    "hooks.slack.com/",
    "-----BEGIN ",
)

# At DEBUG these print what they send and receive: tokens, headers, bodies.
_TALKATIVE = ("slack_sdk", "grpc", "aiohttp", "asyncpg", "sqlalchemy", "urllib3")
# SQLAlchemy logs each statement at INFO, and takes the root's level for a wish to hear them.
_QUIET = ("sqlalchemy",)


def scrub(text: str) -> str:
    """Replace everything in a text that looks like a token, key or password."""
    if not any(hint in text for hint in _HINTS):
        return text
    return _TOKEN_LIKE.sub(_REDACTED, text)


def configure_logging(service: str, level: str) -> None:
    """Write this process's log lines as JSON to stderr.

    Lines of structlog and of the standard library look the same; only the
    latter pay for the standard library's records and handlers. Each is
    scrubbed after exceptions were rendered, so tracebacks are scrubbed too;
    local variables are never rendered. A line that cannot be rendered is
    replaced by `log_line_lost`, without its arguments. Slack, gRPC, HTTP and
    database libraries never log below INFO.

    Args:
        service: The process's name, in every line.
        level: `debug`, `info`, `warning` or `error`.
    """

    def name_the_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        name_the_service,
        _name_the_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *rendered, _scrubbed_json_or_lost],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(sys.stderr)
    handler.addFilter(_is_meant_for_us)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendered,
                _scrubbed_json,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        least = logging.WARNING if name in _QUIET else logging.INFO
        logging.getLogger(name).setLevel(max(root.level, least))
    logging.captureWarnings(capture=True)


def describe_exception(error: BaseException) -> list[str]:
    """Name an exception, its causes and where they were raised, without their texts.

    For exceptions nobody foresaw: their texts may quote what they choked on.
    """
    return [line for link in _chain(error) for line in _describe_one(link)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _describe_one(error: BaseException) -> Iterable[str]:
    kind = type(error)
    yield f"{kind.__module__}.{kind.__qualname__}"
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "?")
        yield f"  {module}:{line} {frame.f_code.co_qualname}"
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from (f"  {line}" for line in _describe_one(member))


def _name_the_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request_id = current_request_id()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


_render_json = structlog.processors.JSONRenderer()


def _scrubbed_json(logger: WrappedLogger, name: str, event: EventDict) -> str:
    line = _render_json(logger, name, event)
    return scrub(line if isinstance(line, str) else line.decode(errors="replace"))


def _scrubbed_json_or_lost(logger: WrappedLogger, name: str, event: EventDict) -> str:
    try:
        return _scrubbed_json(logger, name, event)
    except Exception:  # noqa: BLE001 - Logging must not fail what it tells of.
        return _lost("structlog")


def _lost(logger: str) -> str:
    return f'{{"event": "log_line_lost", "logger": "{logger}", "level": "error"}}'


def _is_meant_for_us(record: logging.LogRecord) -> bool:
    """Refuse what a talkative library says below INFO, whatever level it was given."""
    return record.levelno >= logging.INFO or record.name.split(".", 1)[0] not in _TALKATIVE


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # Not generic at run time.
    """Write lines; when one cannot be rendered, say so without its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name.
        """Replace logging's own report, which prints the arguments."""
        self.stream.write(f"{_lost(record.name)}\n")
