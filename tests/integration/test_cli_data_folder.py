"""The data folder: one run at a time, private files, ports that stay."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from interlock_cli.data_folder import DataFolder, DataFolderInUse, is_port_free

_HOLD_BRIEFLY = """
import os, subprocess, sys
from pathlib import Path
from interlock_cli.data_folder import DataFolder
data = DataFolder(Path(sys.argv[1]))
# A child that outlives its launcher for a moment, as a stopping Postgres does.
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"],
                         stdin=subprocess.PIPE, pass_fds=(data.lock,))
print("held", flush=True)
sys.stdin.readline()
"""


def test_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """While one run is alive, another cannot open its folder, and is told whose it is."""
    first = DataFolder(tmp_path / "data")
    with pytest.raises(DataFolderInUse, match=f"process {os.getpid()}"):
        DataFolder(tmp_path / "data")
    first.close()
    DataFolder(tmp_path / "data").close()


def test_folder_of_a_dead_launcher_is_waited_for(tmp_path: Path) -> None:
    """A launcher that ended leaves a locked folder only until its last process ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_BRIEFLY, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataFolderInUse):
            DataFolder(tmp_path / "data")
        holder.stdin.close()
        holder.wait()
        DataFolder(tmp_path / "data").close()


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    """A kept key stays the same over restarts; only its owner may read it."""
    data = DataFolder(tmp_path / "data")
    path = data.keep_random("csrf")
    before = path.read_text()
    data.close()
    again = DataFolder(tmp_path / "data")
    assert again.keep_random("csrf").read_text() == before
    assert len(before) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    again.close()


def test_reset_starts_over_but_keeps_credentials_put_there(tmp_path: Path) -> None:
    """A reset removes what a run made; real Slack credentials were put there by hand."""
    data = DataFolder(tmp_path / "data")
    before = data.keep_random("csrf").read_text()
    (data.folder("slack") / "app_id").write_text("A123")
    data.close()
    again = DataFolder(tmp_path / "data", reset=True)
    assert again.keep_random("csrf").read_text() != before
    assert (tmp_path / "data" / "slack" / "app_id").read_text() == "A123"
    again.close()


def test_ports_stay_unless_taken(tmp_path: Path) -> None:
    """A later start uses the same ports, and only a taken one changes."""
    data = DataFolder(tmp_path / "data")
    first = data.ports(["slack", "auth"])
    assert data.ports(["slack", "auth"]) == first
    with socket.create_server(("127.0.0.1", first["slack"])):
        assert not is_port_free(first["slack"])
        second = data.ports(["slack", "auth"])
    assert second["auth"] == first["auth"]
    assert second["slack"] != first["slack"]
    data.close()
