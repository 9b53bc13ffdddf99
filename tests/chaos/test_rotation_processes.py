"""Real processes that race, stand still, lose database and replies: one scene of each kind.

`make chaos ONLY=rotation-processes` plays them all, and waits for real minutes.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock_cli.scratch_databases import ScratchDatabases
from tests.chaos.rotation_processes import lose_database, lose_replies, race, stand_still
from tests.support.dropping_proxy import Loss


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("grace_s", [0, 30])
async def test_sixty_four_readers_at_four_processes(
    cluster: ScratchDatabases, tmp_path: Path, grace_s: float
) -> None:
    """RF-01: Slack is asked once, and everybody gets the same new token."""
    assert await race(cluster, tmp_path, grace_s=grace_s) == []


@pytest.mark.parametrize("grace_s", [0, 30])
async def test_a_holder_that_stood_still_brings_its_answer(
    cluster: ScratchDatabases, tmp_path: Path, grace_s: float
) -> None:
    """RF-04: stopped with Slack's reply in hand until another had the lease, it loses nothing."""
    scene = stand_still(cluster, tmp_path, "after_reply", grace_s=grace_s, is_real=False)
    assert await scene == []


async def test_an_answer_outlasts_a_crash_of_postgres(short_path: Path) -> None:
    """Stopped immediate before the commit and started again: stored, and asked for once."""
    assert await lose_database(short_path, is_killed=False) == []


@pytest.mark.parametrize("grace_s", [0, 30])
async def test_a_reply_lost_on_the_network_is_asked_for_again(
    cluster: ScratchDatabases, tmp_path: Path, grace_s: float
) -> None:
    """RF-02: a new pair while Slack forgives, a loud end where it does not."""
    assert await lose_replies(cluster, tmp_path, Loss.CUT, grace_s=grace_s) == []
