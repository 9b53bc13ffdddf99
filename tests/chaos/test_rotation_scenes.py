"""Scenes of rotation in virtual time that are no rows of the catalogue."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.rotation import RefreshAnswer, Standing
from interlock_token_vault.rotating import Outcome
from interlock_token_vault.vault import Stop
from tests.support.rotation_stage import ORIGIN, play, told_stage

EVENT = AuditEvent("releases.frozen", ORIGIN)


def _odd(answer: RefreshAnswer) -> RefreshAnswer:
    return replace(answer, token_type="user")


def test_slack_is_asked_nothing_about_a_frozen_workspace() -> None:
    """Neither for a new pair nor which of two lives; thawed, it goes on where it was."""

    async def scene() -> None:
        stage, slack = await told_stage()
        replica = stage.replica()
        await stage.store.stop_releases(None, Stop.FROZEN, "a leak", EVENT)
        assert await replica.rotating.refresh(stage.chain, refused_generation=1) is Outcome.NOT_NOW
        await replica.renewing.run_due()
        assert (slack.asked, stage.actions()) == ([], ["releases.frozen"])
        await stage.store.resume_releases(None, Stop.FROZEN, EVENT)
        assert await replica.rotating.refresh(stage.chain) is Outcome.ROTATED

    play(scene())


def test_an_answer_amid_a_freeze_is_kept_and_not_tried() -> None:
    """What Slack answers to a request that was open is stored; no token is used to judge it."""

    async def scene() -> None:
        stage, slack = await told_stage()
        slack.orders.append(_odd)
        slack.delays.append(5.0)
        running = asyncio.create_task(stage.replica().rotating.refresh(stage.chain))
        await asyncio.sleep(2)
        await stage.store.stop_releases(None, Stop.HELD, "restored", EVENT)
        assert await running is Outcome.FAILED
        assert len(stage.held.candidates) == 1
        assert "token.probed" not in stage.actions()
        await asyncio.sleep(timedelta(minutes=5).total_seconds())
        await stage.replica().renewing.run_due()
        assert len(slack.asked) == 1
        await stage.store.resume_releases(None, Stop.HELD, EVENT)
        assert await stage.replica().rotating.refresh(stage.chain) is Outcome.ROTATED
        assert stage.held.state.standing is Standing.IDLE

    play(scene())
