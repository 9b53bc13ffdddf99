"""The audit log outside the database: what an export and its checkpoints prove."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from interlock_chassis.errors import InvalidArgument
from interlock_token_vault.auditing import (
    AuditExport,
    Checkpointing,
    CheckpointNotWritten,
    TenantNotFound,
)
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import (
    Break,
    ChainHead,
    Checkpoint,
    ExportReader,
    Span,
    UnreadableLog,
    checkpoint_line,
    export_head,
    export_line,
    export_tail,
    read_checkpoints,
    verify_log,
)

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ORIGIN = Origin(actor="operator", rpc="/x/ExportAudit", subject="Mia \u2028 \u00e9")
A, B = UUID(int=0xA), UUID(int=0xB)
ALL = Span(None, AT + 60 * MINUTE)

Records = list[ChainedEvent]


def _chain(chain_id: UUID, count: int) -> Records:
    """Write a chain of one record a minute."""
    chain, records = AuditChain(chain_id), Records()
    for number in range(count):
        event = AuditEvent("token.read", ORIGIN, generation=number)
        written = chain.extend([event], AT + number * MINUTE)
        chain.advance(written)
        records += written
    return records


def _head(record: ChainedEvent) -> ChainHead:
    return ChainHead(record.chain_id, record.seq, record.hash, record.at)


def _by_time(*chains: Records) -> Records:
    records = [record for chain in chains for record in chain]
    return sorted(records, key=lambda record: (record.at, record.chain_id, record.seq))


def _without(records: Records, place: int) -> Records:
    return records[:place] + records[place + 1 :]


def _edited(records: Records, place: int) -> Records:
    changed = replace(records[place].event, outcome="TAMPERED")
    return [*records[:place], replace(records[place], event=changed), *records[place + 1 :]]


def _swapped(records: Records, place: int) -> Records:
    one, other = records[place], records[place + 1]
    places = [replace(other, seq=one.seq, at=one.at), replace(one, seq=other.seq, at=other.at)]
    return [*records[:place], *places, *records[place + 2 :]]


def _recomputed(records: Records, place: int) -> Records:
    """Change a record as somebody does who can hash."""
    chain = AuditChain(records[0].chain_id)
    chain.advance(records[:place])
    rewritten = Records()
    for record in records[place:]:
        written = chain.extend([replace(record.event, outcome="TAMPERED")], record.at)
        chain.advance(written)
        rewritten += written
    return records[:place] + rewritten


@pytest.mark.parametrize(
    ("tamper", "seq", "problem"),
    [
        (lambda records: _edited(records, 4), 5, "edited"),
        (lambda records: _without(records, 4), 5, "missing"),
        (lambda records: _without(records, 0), 1, "missing"),
        (lambda records: _swapped(records, 4), 5, "edited"),
        (lambda records: records[:6], 7, "tail cut"),
        (lambda _: [], 1, "tail cut"),
        (lambda records: _recomputed(records, 4), 4, "rewritten"),
        (lambda records: [*records[:5], records[4], *records[5:]], 6, "out of place"),
    ],
    ids=["edit", "delete", "behead", "swap", "tail cut", "chain dropped", "rehash", "repeat"],
)
def test_the_first_bad_record_is_named(
    tamper: Callable[[Records], Records], seq: int, problem: str
) -> None:
    """PG-05: whatever was done to a chain, its first bad record is named, and no other chain."""
    bad, good = _chain(A, 10), _chain(B, 10)
    checkpoints = [_head(bad[2]), _head(bad[8]), _head(good[9])]
    findings = verify_log(ALL, _by_time(tamper(bad), good), checkpoints)
    assert findings.breaks == (Break(A, seq, problem),)


def test_a_sound_log_passes_and_says_what_is_unsigned() -> None:
    """Two chains, interleaved; the records after the last checkpoint are counted."""
    one, other = _chain(A, 10), _chain(B, 5)
    findings = verify_log(ALL, _by_time(one, other), [_head(one[6])])
    assert (findings.breaks, findings.records, findings.chains) == ((), 15, 2)
    assert findings.unsigned == 3 + 5


def test_every_broken_chain_is_named() -> None:
    """One break does not hide the next chain's."""
    one, other = _edited(_chain(A, 4), 2), _without(_chain(B, 4), 1)
    findings = verify_log(ALL, _by_time(one, other), [])
    assert {(each.chain_id, each.seq) for each in findings.breaks} == {(A, 3), (B, 2)}


def test_a_part_of_the_log_is_judged_by_itself() -> None:
    """An export from a later day begins chains in their middle, and checkpoints before it rest."""
    records = _chain(A, 10)
    part = Span(records[5].at, records[8].at)
    checkpoints = [_head(records[2]), _head(records[6]), _head(records[9])]
    assert verify_log(part, records[5:8], checkpoints).breaks == ()
    assert verify_log(part, records[7:8], checkpoints).breaks == (Break(A, 7, "missing"),)
    assert verify_log(part, records[5:6], checkpoints).breaks == (Break(A, 7, "tail cut"),)


def _export(records: Records, span: Span = ALL) -> list[bytes]:
    return [export_head(span), *map(export_line, records), export_tail(len(records))]


def test_an_export_reads_back_as_it_was_written() -> None:
    """Line by line, nothing of a record is lost that its hash covers."""
    records = _chain(A, 3)
    span = Span(AT, AT + MINUTE, "northwind")
    lines = _export(records, span)
    assert all(line.count(b"\n") == 1 for line in lines)
    reader = ExportReader(iter(lines))
    assert reader.span == span
    assert list(reader.records()) == records


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: lines[:1],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [*lines, lines[1]],
        lambda lines: [*lines[:1], b"{}\n", *lines[2:]],
        lambda lines: [*lines[:1], b"[\n", *lines[2:]],
        lambda lines: lines[1:],
        lambda _: [],
    ],
)
def test_a_damaged_export_is_no_export(damage: Callable[[Sequence[bytes]], list[bytes]]) -> None:
    """A file that was cut or lost a line proves nothing, and says so."""
    lines = damage(_export(_chain(A, 3)))
    with pytest.raises(UnreadableLog):
        list(ExportReader(iter(lines)).records())


def _signed(head: ChainHead, key_id: str = "good") -> Checkpoint:
    return Checkpoint(head, key_id, b"signature")


def test_checkpoints_that_are_not_genuine_are_left_out_and_told() -> None:
    """A forged or garbled line counts for nothing but the alarm; an unfinished one is no line."""
    one, other = (_head(record) for record in _chain(A, 2))
    good, forged = checkpoint_line(_signed(one)), checkpoint_line(_signed(other, "forged"))

    def is_genuine(checkpoint: Checkpoint) -> bool:
        return checkpoint.key_id == "good"

    assert read_checkpoints(good, is_genuine) == ([one], False)
    assert read_checkpoints(good + good[:20], is_genuine) == ([one], False)
    assert read_checkpoints(good + forged, is_genuine) == ([one], True)
    assert read_checkpoints(b"{}\n" + good, is_genuine) == ([one], True)


class _Signer:
    def sign(self, head: ChainHead) -> Checkpoint:
        return _signed(head)


class _Kept:
    """A CheckpointStore in memory."""

    def __init__(self) -> None:
        self.kept: list[tuple[UUID, int]] = []
        self.is_full = False

    async def append(self, checkpoint: Checkpoint) -> None:
        if self.is_full:
            raise CheckpointNotWritten
        self.kept.append((checkpoint.head.chain_id, checkpoint.head.seq))

    async def load_newest(self, _: Callable[[Checkpoint], bool]) -> list[ChainHead]:
        raise AssertionError("not needed here")


async def test_a_checkpoint_is_kept_of_each_chain_that_grew() -> None:
    """An idle vault writes nothing; one that could not write does so the next time."""
    records, store = _chain(A, 3), _Kept()
    heads = [_head(records[0])]
    checkpointing = Checkpointing(lambda: heads, _Signer(), store)
    await checkpointing.write()
    await checkpointing.write()
    heads[0] = _head(records[2])
    heads.append(_head(_chain(B, 1)[0]))
    store.is_full = True
    with pytest.raises(CheckpointNotWritten):
        await checkpointing.write()
    store.is_full = False
    await checkpointing.write()
    assert store.kept == [(A, 1), (A, 3), (B, 1)]


class _Source:
    """An AuditSource in memory."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.noted: list[AuditEvent] = []

    async def read_clock(self) -> datetime:
        return AT + 10 * MINUTE

    async def has_tenant(self, tenant_id: str) -> bool:
        return tenant_id == "northwind"

    async def export_records(self, span: Span) -> AsyncIterator[Sequence[ChainedEvent]]:
        for record in self.records:
            if record.at < span.until:
                yield [record]

    async def record(self, events: Sequence[AuditEvent]) -> None:
        self.noted += events


async def _lines(source: _Source, *asked: datetime | str | None) -> list[bytes]:
    since, until, tenant = asked
    lines = AuditExport(source).lines(since, until, tenant, ORIGIN)  # type: ignore[arg-type] # Above.
    return [line async for line in lines]


async def test_an_export_ends_where_the_log_has_settled() -> None:
    """What might still be on its way is left for the next export, so that none looks cut."""
    source = _Source(_chain(A, 20))
    reader = ExportReader(iter(await _lines(source, None, None, "")))
    assert reader.span == Span(None, AT + 10 * MINUTE - timedelta(seconds=10))
    assert len(list(reader.records())) == 10
    assert [event.action for event in source.noted] == ["audit.exported"]


async def test_an_export_of_nothing_sensible_is_refused() -> None:
    """CL-02: an end before the beginning, or a tenant that is not there, exports nothing."""
    source = _Source([])
    with pytest.raises(InvalidArgument):
        await _lines(source, AT + MINUTE, AT, "")
    with pytest.raises(TenantNotFound):
        await _lines(source, None, None, "contoso")
    assert source.noted == []
