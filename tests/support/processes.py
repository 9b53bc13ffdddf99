"""Processes as tests look at them: any of them may end between two looks."""

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that waits to be reaped does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def runs(process: psutil.Process, program: str) -> bool:
    """Tell whether a process runs, with this among its arguments."""
    try:
        return program in process.cmdline()
    except psutil.NoSuchProcess:
        return False
