"""Real processes that die amid an install and amid an uninstall: a scene of each.

`make chaos ONLY=install-kills` kills one at every edge of every step.
"""

from pathlib import Path

import pytest

from interlock_cli.scratch_databases import ScratchDatabases
from tests.chaos import install_services
from tests.chaos.install_kills import COURSES, kill_at


@pytest.mark.parametrize(
    ("course", "edge"), [("install", "claim:1:after"), ("uninstall", "uninstall:1:after")]
)
async def test_a_process_that_dies_amid_it_leaves_nothing_half_way(
    cluster: ScratchDatabases, tmp_path: Path, course: str, edge: str
) -> None:
    """OA-15: whatever was begun is brought to its end, and no token lives that is not on record.

    Killed with the workspace claimed and nothing active, and with the app gone
    from Slack and everything still here.
    """
    assert await kill_at(cluster, tmp_path, COURSES[course], edge) == []


async def test_an_install_outlives_the_processes_around_the_vault(tmp_path: Path) -> None:
    """OA-15: whoever comes back finds the workspace, and Slack knows no token that is not sealed.

    Edge dies before it has handed Slack's code on; then identity, with the
    workspace claimed and the vault not told.
    """
    doomed = {"gateway-edge": "complete_install:1:before", "identity": "claim:1:after"}
    async with install_services.open_site(tmp_path, doomed) as site:
        assert await install_services.kill_in_turn(site, *doomed) == []
