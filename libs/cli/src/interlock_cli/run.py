"""The command `interlock run`: everything on one machine, until Ctrl-C."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from interlock_chassis.errors import ConfigError
from interlock_cli.data_folder import DataFolder, DataFolderInUse, choose_ports, is_port_free
from interlock_cli.embedded_postgres import PostgresError
from interlock_cli.launch import Running, launched
from interlock_cli.slack_credentials import IncompleteCredentials
from interlock_cli.steps import Steps
from interlock_cli.supervisor import ProgramEnded

_MAKE_POLL_S = 0.5


class CannotRun(Exception):
    """The product cannot be started; the message is one line for the user."""


def run(data_dir: Path, *, port: int, reset: bool, console: Console, by_nango: bool = False) -> int:
    """Start everything and stay until a signal asks to stop.

    Prints `Ready: URL` last.

    Args:
        data_dir: Where keys, databases and logs are kept.
        port: Where browsers and Slack reach us; 0 takes any free port.
        reset: Start over, without what earlier runs kept.
        console: Where to print.
        by_nango: Whether the dashboard installs by the sandbox's Nango.

    Returns:
        0 after a signal; 1 when it could not start or a part ended by itself.
    """
    try:
        with _own_terminal(os.environ):
            return asyncio.run(_run(data_dir, port, console, reset=reset, by_nango=by_nango))
    except (CannotRun, DataFolderInUse, PostgresError, ProgramEnded) as problem:
        _say(console, str(problem))
    except IncompleteCredentials as problem:
        _say(console, f"{problem}; add them, or remove the others to use the sandbox")
    except ConfigError as problem:
        _say(console, f"{problem.variable}: {problem.problem}")
    except KeyboardInterrupt:
        # Ctrl-C before the signal handlers were in place: nothing was started yet.
        return 0
    return 1


async def _run(data_dir: Path, port: int, console: Console, *, reset: bool, by_nango: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    if port and not is_port_free(port):
        raise CannotRun(f"port {port} is taken; set INTERLOCK_PORT to a free one")
    serving = asyncio.create_task(_serve(data_dir, port, console, reset=reset, by_nango=by_nango))
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(_make_gives_up())]
    await asyncio.wait([serving, *waits], return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()
    if not serving.done():
        console.print("Stopping ...", highlight=False)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        return 0
    return await serving


async def _serve(
    data_dir: Path, port: int, console: Console, *, reset: bool, by_nango: bool
) -> int:
    steps = Steps(console)
    data = DataFolder(data_dir, reset=reset)
    try:
        edge_port = port or choose_ports({"edge": 0})["edge"]
        async with launched(data, edge_port=edge_port, steps=steps, by_nango=by_nango) as running:
            _introduce(running, steps)
            ended = await running.wait_for_end()
        raise ended
    finally:
        data.close()


def _introduce(running: Running, steps: Steps) -> None:
    urls = running.urls
    steps.note("")
    if running.credentials:
        found = running.credentials.signing_secret_file.parent
        steps.note(f"Slack       https://slack.com, as the app {running.credentials.app_id}")
        steps.note(f"            (credentials found in {found})")
        steps.note(f"            Slack has to reach {urls.edge}/work-apps/slack/events")
    else:
        steps.note(f"Slack       {urls.slack} (a stand-in; no account needed)")
    steps.note(f"Accounts    {urls.auth} (a stand-in)")
    steps.note(f"Agents      {urls.platform} (a stand-in)")
    steps.note(f"Files       {running.data.path} (logs in {running.data.path / 'logs'})")
    steps.note(f"Started in  {steps.elapsed():.1f} s; Ctrl-C stops everything.")
    steps.note("")
    steps.note(f"Ready: {urls.edge}")


def _say(console: Console, problem: str) -> None:
    console.file.flush()
    sys.stderr.write(f"interlock: {problem}\n")


@contextlib.contextmanager
def _own_terminal(environ: Mapping[str, str]) -> Iterator[None]:
    """Under make, take the terminal, so that Ctrl-C reaches us and not make.

    An interrupted make ends with an error, whatever its command answers.
    """
    stdin = sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1
    is_ours = (
        "MAKELEVEL" in environ
        and stdin >= 0
        and os.isatty(stdin)
        and os.tcgetpgrp(stdin) == os.getpgrp()
    )
    if not is_ours:
        yield
        return
    before = os.getpgrp()
    os.setpgid(0, 0)
    # Only the foreground may hand the terminal on, unless it ignores this.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(stdin, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(stdin, before)


async def _make_gives_up() -> None:
    """Return when make, our parent, was interrupted and waits for us; else never.

    An interrupt sent to make alone is not passed on by it. It shows all the
    same: make stops catching the signal, to die of it once we have ended.
    """
    parent = os.getppid()
    if "MAKELEVEL" not in os.environ or not _catches_interrupts(parent):
        await asyncio.Event().wait()
    while _catches_interrupts(parent):  # noqa: ASYNC110 - /proc wakes nobody.
        await asyncio.sleep(_MAKE_POLL_S)


def _catches_interrupts(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGINT - 1))
