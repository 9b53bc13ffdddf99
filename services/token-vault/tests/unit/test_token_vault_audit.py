"""The audit chain: what was changed afterwards shows, and where."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_token_vault.domain.audit import (
    GENESIS,
    AuditChain,
    AuditEvent,
    ChainedEvent,
    Origin,
)
from interlock_token_vault.domain.audit_log import find_first_break

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def _events(count: int) -> list[AuditEvent]:
    origin = Origin(actor="gateway-worker", rpc="/x/Read", grant_id="jti")
    return [AuditEvent("token.read", origin, generation=number) for number in range(count)]


def _chain(count: int) -> list[ChainedEvent]:
    return AuditChain(UUID(int=1)).extend(_events(count), AT)


def test_a_chain_as_written_is_sound() -> None:
    """Records verify in the order they were written, over several commits."""
    chain = AuditChain(UUID(int=1))
    first = chain.extend(_events(3), AT)
    chain.advance(first)
    second = chain.extend(_events(2), AT + timedelta(seconds=1))
    assert find_first_break([*first, *second]) is None
    assert [record.seq for record in (*first, *second)] == [1, 2, 3, 4, 5]
    assert first[0].prev_hash == GENESIS


def test_the_head_stays_until_a_commit_is_known() -> None:
    """A transaction that failed leaves no gap: the next records take its places."""
    chain = AuditChain(UUID(int=1))
    chain.extend(_events(3), AT)
    again = chain.extend(_events(1), AT)
    assert again[0].seq == 1
    assert again[0].prev_hash == GENESIS


@pytest.mark.parametrize("place", range(5))
def test_an_edited_record_is_found(place: int) -> None:
    """PG-05: an edit of any record shows at that record."""
    records = _chain(5)
    edited = replace(records[place].event, outcome="TAMPERED")
    records[place] = replace(records[place], event=edited)
    assert find_first_break(records) == place + 1


@pytest.mark.parametrize("place", range(4))
def test_a_removed_record_is_found(place: int) -> None:
    """PG-05: a record that is gone shows at its place, unless it was the last."""
    records = _chain(5)
    del records[place]
    assert find_first_break(records) == place + 1


@pytest.mark.parametrize("place", range(4))
def test_swapped_records_are_found(place: int) -> None:
    """PG-05: two records in each other's place show at the first of them."""
    records = _chain(5)
    records[place], records[place + 1] = records[place + 1], records[place]
    assert find_first_break(records) == place + 1


def test_a_record_of_another_chain_does_not_fit() -> None:
    """A record copied from another process's chain breaks this one."""
    records = _chain(3)
    records[1] = AuditChain(UUID(int=2)).extend(_events(3), AT)[1]
    assert find_first_break(records) == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "x"},
        {"outcome": "x"},
        {"enterprise_id": "x"},
        {"team_id": "x"},
        {"token_kind": "x"},
        {"token_ref": "x"},
        {"kek_version": "x"},
        {"dek_source": "x"},
        {"generation": 99},
        {"count": 99},
        {"installation_id": UUID(int=9)},
    ],
)
def test_every_field_is_covered_by_the_hash(changed: dict[str, object]) -> None:
    """There is no field that could be changed without a trace."""
    records = _chain(1)
    event = replace(records[0].event, **changed)  # type: ignore[arg-type]
    assert find_first_break([replace(records[0], event=event)]) == 1


@pytest.mark.parametrize(
    "field", ["actor", "rpc", "purpose", "grant_id", "subject", "request_id", "trace_id"]
)
def test_every_field_of_the_origin_is_covered_by_the_hash(field: str) -> None:
    """Who asked, with what, cannot be changed without a trace."""
    records = _chain(1)
    event = records[0].event
    changed = replace(event, origin=replace(event.origin, **{field: "x"}))
    assert find_first_break([replace(records[0], event=changed)]) == 1


def test_the_time_is_covered_by_the_hash() -> None:
    """A record cannot be dated back, not by a microsecond."""
    record = _chain(1)[0]
    assert find_first_break([replace(record, at=AT - timedelta(microseconds=1))]) == 1


@given(st.text(st.characters(exclude_categories=()), max_size=700))
def test_any_text_is_made_storable(text: str) -> None:
    """A caller's text can never make a record that Postgres refuses."""
    event = AuditEvent("token.read", Origin(actor=text, rpc="/x/Read", subject=text))
    for each in event.texts():
        assert len(each) <= 512
        assert "\0" not in each
        each.encode()


def test_time_in_a_chain_never_goes_back() -> None:
    """A failed-over database with a slower clock does not put records before their like."""
    chain = AuditChain(UUID(int=1))
    first = chain.extend(_events(1), AT)
    chain.advance(first)
    second = chain.extend(_events(1), AT - timedelta(minutes=5))
    assert second[0].at == AT
    assert find_first_break([*first, *second]) is None
