"""Refused calls: on record at once, and a flood of them in few records."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from interlock_token_vault.adapters.memory import ManualClock
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.vault import DatabaseUnavailable

EDGE = Origin(actor="gateway-edge", rpc="/x/ReadBotToken", request_id="request-1")
SECOND = timedelta(seconds=1)


class Log:
    """An audit log that can be away."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.is_away = False

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Keep the events, unless away."""
        if self.is_away:
            raise DatabaseUnavailable
        self.events.extend(events)

    def counts(self) -> list[tuple[str, int]]:
        """Say what was refused, how often."""
        return [(event.outcome, event.count) for event in self.events]


@pytest.fixture
def log() -> Log:
    """Give an empty log."""
    return Log()


@pytest.fixture
def clock() -> ManualClock:
    """Give a clock that stands still."""
    return ManualClock()


@pytest.fixture
def refusals(log: Log, clock: ManualClock) -> Refusals:
    """Give refusals that go to the log."""
    return Refusals(log, clock)


async def test_the_first_refusal_is_recorded_before_the_caller_hears(
    log: Log, refusals: Refusals
) -> None:
    """A single attempt is never lost in a count."""
    await refusals.note(EDGE, "CALLER_NOT_ALLOWED")
    (event,) = log.events
    assert (event.action, event.outcome, event.count) == ("call.refused", "CALLER_NOT_ALLOWED", 1)
    assert event.origin == EDGE


async def test_a_flood_is_two_records_a_second(
    log: Log, refusals: Refusals, clock: ManualClock
) -> None:
    """A thousand like refusals in one second are the first, and one for all others."""
    for _ in range(1000):
        await refusals.note(EDGE, "INVALID_TOKEN")
    await refusals.flush()
    assert log.counts() == [("INVALID_TOKEN", 1)]
    clock.advance(SECOND)
    await refusals.flush()
    assert log.counts() == [("INVALID_TOKEN", 1), ("INVALID_TOKEN", 999)]
    await refusals.flush()
    assert len(log.events) == 2


async def test_the_next_second_begins_with_a_record_of_its_own(
    log: Log, refusals: Refusals, clock: ManualClock
) -> None:
    """What was counted is committed with the first refusal of the next second."""
    for _ in range(3):
        await refusals.note(EDGE, "INVALID_TOKEN")
    clock.advance(SECOND)
    await refusals.note(EDGE, "INVALID_TOKEN")
    assert log.counts() == [("INVALID_TOKEN", 1), ("INVALID_TOKEN", 2), ("INVALID_TOKEN", 1)]


async def test_callers_rpcs_and_reasons_are_kept_apart(log: Log, refusals: Refusals) -> None:
    """One caller's flood hides nothing of another's first attempt."""
    runner = Origin(actor="runner", rpc=EDGE.rpc)
    other_rpc = Origin(actor="gateway-edge", rpc="/x/Uninstall")
    for origin, reason in ((EDGE, "A"), (EDGE, "B"), (runner, "A"), (other_rpc, "A")):
        await refusals.note(origin, reason)
    assert len(log.events) == 4


async def test_the_end_of_a_process_loses_no_count(log: Log, refusals: Refusals) -> None:
    """What was counted in the last second is committed on closing."""
    for _ in range(5):
        await refusals.note(EDGE, "INVALID_TOKEN")
    await refusals.close()
    assert sum(event.count for event in log.events) == 5


async def test_a_log_that_is_away_keeps_no_caller_waiting(log: Log, refusals: Refusals) -> None:
    """A refusal needs no record to be one: the caller is refused all the same."""
    log.is_away = True
    await refusals.note(EDGE, "INVALID_TOKEN")
    assert log.events == []
