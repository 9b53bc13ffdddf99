"""The command line itself: what it takes and what it loads."""

import subprocess
import sys

from typer.testing import CliRunner

from interlock_cli.__main__ import app
from interlock_cli.diagnosis import PROCESSES


def test_the_doctor_names_whom_it_can_look_at() -> None:
    """Help names every process, and one that is none is refused with all their names."""
    told = CliRunner().invoke(app, ["doctor", "--help"], terminal_width=200).output
    refused = CliRunner().invoke(app, ["doctor", "nobody"], terminal_width=200)
    assert refused.exit_code == 2
    for process in PROCESSES:
        assert process in told
        assert process in refused.output


def test_commands_do_not_load_what_only_the_doctor_needs() -> None:
    """An operator's command starts without the code of all services, which takes as long again."""
    code = "import interlock_cli.__main__, sys; print('interlock_cli.diagnosis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
