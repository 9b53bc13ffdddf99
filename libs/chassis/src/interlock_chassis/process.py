"""The life of a process: settings in, signals in, an exit code out."""

import asyncio
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import structlog
import uvloop

from interlock_chassis import telemetry
from interlock_chassis.config import ProcessSettings, load_settings
from interlock_chassis.errors import ConfigError
from interlock_chassis.logs import configure_logging, describe_exception

EX_CONFIG = 78
"""The exit code of a process that refuses its settings; sysexits.h has the number."""

_EX_FAILED = 1
_PR_SET_DUMPABLE = 4
# Set, these make gRPC's core print headers and messages to stderr.
_TALKATIVE_VARIABLES = ("GRPC_TRACE", "GRPC_VERBOSITY")

S = TypeVar("S", bound=ProcessSettings)


def run_process(
    name: str, settings: type[S], main: Callable[[S, asyncio.Event], Awaitable[None]]
) -> NoReturn:
    """Run a process to its end and exit.

    Reads the settings, sets up logging and tracing, forbids core dumps, has the
    collector of garbage pass over what was imported, and runs `main` on uvloop.
    SIGTERM and SIGINT set the event; `main` then stops what it started and
    returns. Exits 0 when it returned, 78 when it or the settings raised
    ConfigError, with `interlock: VARIABLE: problem` on stderr, and 1 on any
    other error, whose text is not printed.

    Args:
        name: The process's name, in every log line and span.
        settings: The class its settings are read into.
        main: Returns once the event is set and everything has stopped, or
            earlier when its work is done.
    """
    _forbid_core_dumps()
    try:
        _refuse_talkative_variables()
        loaded = load_settings(settings, os.environ)
        configure_logging(name, loaded.log_level)
        telemetry.configure_tracing(name, loaded.otlp_endpoint)
        # Code and tables live to the end: walking them halts every call for tens of milliseconds.
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signalled(name, loaded, main))
    except ConfigError as error:
        _refuse_to_start(error)
    except Exception as error:  # noqa: BLE001 - The last door of the process.
        refusal = _config_error_in(error)
        if refusal is not None:
            _refuse_to_start(refusal)
        log = structlog.get_logger()
        log.critical("process_failed", cause=describe_exception(error))
        sys.exit(_EX_FAILED)
    finally:
        telemetry.shut_down_tracing()
    sys.exit(0)


async def _until_signalled(
    name: str, settings: S, main: Callable[[S, asyncio.Event], Awaitable[None]]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = structlog.get_logger()
    log.info("process_started", process=name, pid=os.getpid())
    await main(settings, stop)
    log.info("process_stopped", process=name)


def _refuse_to_start(error: ConfigError) -> NoReturn:
    sys.stderr.write(f"interlock: {error.variable}: {error.problem}\n")
    sys.exit(EX_CONFIG)


def _config_error_in(error: BaseException) -> ConfigError | None:
    """Find a refusal that a task group has wrapped."""
    if isinstance(error, ConfigError):
        return error
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((found for member in members if (found := _config_error_in(member))), None)


def _refuse_talkative_variables() -> None:
    for variable in _TALKATIVE_VARIABLES:
        if os.environ.get(variable, "").strip().upper() not in {"", "NONE", "ERROR"}:
            raise ConfigError(variable, "must not be set: gRPC would print what it sends")


def _forbid_core_dumps() -> None:
    """Keep secrets in memory out of core files, and the memory from other users."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
