"""Processes that run as long as this one does, and no longer."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import aiohttp

from interlock_cli.embedded_postgres import log_tail, open_log

_READY_TIMEOUT = timedelta(seconds=60)
_READY_POLL_S = 0.05
# The launcher promises to be gone 10 s after Ctrl-C; Postgres is stopped after us.
_STOP_BUDGET = timedelta(seconds=7)
_MAX_LOG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """One process to run.

    Attributes:
        name: What it is called in messages and in its log's name.
        command: What to run.
        environ: The process's whole environment.
        ready_url: Answers 200 once the process can do its work.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    ready_url: str


class ProgramEnded(Exception):
    """A program ended, or never became ready; the message ends with its log."""

    def __init__(self, name: str, how: str, log: Path, log_start: int) -> None:
        self.name = name
        tail = log_tail(log, since=log_start)
        super().__init__(f"{name} {how}; the end of {log}:\n{tail}")


class Supervisor:
    """Start programs, wait until they are ready, notice when one ends, stop them.

    When this process is killed, Linux kills the programs. Use it from the main
    thread: they end with the thread that started them.

    Args:
        logs: A folder; each program's output goes to `<name>.log` in it.
        keep_open: File descriptors that the programs hold while they run.
    """

    def __init__(self, logs: Path, *, keep_open: Sequence[int] = ()) -> None:
        self._logs = logs
        self._keep_open = tuple(keep_open)
        self._running: list[tuple[Program, asyncio.subprocess.Process]] = []
        self._log_starts: dict[str, int] = {}

    async def start(self, programs: Sequence[Program], ready: Callable[[Program], None]) -> None:
        """Start all at once and wait until each is ready.

        Args:
            programs: In the order in which to stop them backwards.
            ready: Called for each as it becomes ready.

        Raises:
            ProgramEnded: One ended or was not ready within a minute.
        """
        self._logs.mkdir(mode=0o700, exist_ok=True)
        for program in programs:
            self._running.append((program, await self._spawn(program)))
        timeout = aiohttp.ClientTimeout(total=5)
        ended: list[BaseException] = []
        try:
            async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as group:
                for program, process in self._running:
                    group.create_task(self._wait_until_ready(http, program, process, ready))
        except* ProgramEnded as failures:
            # Some versions of Python 3.11 wrap what is raised here in a group.
            ended.extend(failures.exceptions)
        if ended:
            raise ended[0]

    async def wait_for_end(self) -> ProgramEnded:
        """Wait until a program ends by itself, and tell which."""
        waits = [asyncio.create_task(self._wait(*each)) for each in self._running]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return next(iter(done)).result()

    async def stop(self) -> None:
        """Stop the programs, last started first, within seven seconds.

        Each is asked to finish (SIGTERM) and waited for; what is left when the
        time is up is killed.
        """
        deadline = time.monotonic() + _STOP_BUDGET.total_seconds()
        for _, process in reversed(self._running):
            _send(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), max(deadline - time.monotonic(), 0))
        for _, process in self._running:
            _send(process, signal.SIGKILL)
            await process.wait()
        self._running.clear()

    def log_of(self, name: str) -> Path:
        """Return the log file of a program."""
        return self._logs / f"{name}.log"

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        path = self.log_of(program.name)
        if path.is_file() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
        with open_log(path) as log:
            self._log_starts[program.name] = log.seek(0, os.SEEK_END)
            return await asyncio.create_subprocess_exec(
                "setpriv",
                "--pdeathsig",
                "KILL",
                *program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(program.environ),
                # Ctrl-C in a terminal is for the launcher, which stops us in order.
                start_new_session=True,
                pass_fds=self._keep_open,
            )

    async def _wait_until_ready(
        self,
        http: aiohttp.ClientSession,
        program: Program,
        process: asyncio.subprocess.Process,
        ready: Callable[[Program], None],
    ) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT.total_seconds()
        while not await _answers(http, program.ready_url):
            if process.returncode is not None:
                raise self._ended(program, process.returncode)
            if time.monotonic() > deadline:
                raise self._problem(program, "is not ready")
            await asyncio.sleep(_READY_POLL_S)
        ready(program)

    async def _wait(self, program: Program, process: asyncio.subprocess.Process) -> ProgramEnded:
        return self._ended(program, await process.wait())

    def _ended(self, program: Program, code: int) -> ProgramEnded:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return self._problem(program, how)

    def _problem(self, program: Program, how: str) -> ProgramEnded:
        log_start = self._log_starts[program.name]
        return ProgramEnded(program.name, how, self.log_of(program.name), log_start)


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as response:
            return response.status == HTTPStatus.OK
    except (aiohttp.ClientError, TimeoutError):
        return False


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def inherited_environ() -> dict[str, str]:
    """Return what a program may know of this process's environment.

    Nothing of ours (`INTERLOCK_*`) is passed on: each program is told exactly
    its own settings.
    """
    names = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}
