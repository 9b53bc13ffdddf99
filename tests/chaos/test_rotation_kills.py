"""Real processes killed amid a refresh: one place of each kind; `make chaos` tries them all."""

from pathlib import Path

import pytest

from interlock_cli.scratch_databases import ScratchDatabases
from tests.chaos.rotation_kills import kill_and_go_on


@pytest.mark.parametrize(
    ("failpoint", "grace_s"),
    [("after_reply", 0), ("after_reply", 30), ("after_spool", 0), ("during_replay", 0)],
)
async def test_a_killed_process_is_followed_by_one_that_goes_on(
    cluster: ScratchDatabases, tmp_path: Path, failpoint: str, grace_s: float
) -> None:
    """One exchange where the answer was on the disk, and a loud end where it was nowhere."""
    assert await kill_and_go_on(cluster, tmp_path, failpoint, grace_s=grace_s) == []
