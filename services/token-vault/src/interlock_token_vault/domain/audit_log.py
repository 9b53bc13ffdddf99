"""The audit log outside the database: exported lines, signed checkpoints, and what they prove.

An export is NDJSON: a line that says which time it covers, one line a record,
oldest first, and a last line that counts them. A checkpoint is a signed
statement that a chain had reached a record; it is kept outside the database,
so that whoever rewrites the log cannot rewrite it too.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from interlock_token_vault.domain.audit import (
    GENESIS,
    AuditEvent,
    ChainedEvent,
    Origin,
    record_hash,
)
from interlock_token_vault.domain.envelope import encode_parts
from interlock_token_vault.domain.installation import InstallationId

_FORMAT = "interlock audit export/1"
_CHECKPOINT_LABEL = "interlock audit checkpoint/1"


class UnreadableLog(Exception):
    """A line is not what an export or a checkpoint file holds; says which."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """How far a chain has come."""

    chain_id: UUID
    seq: int
    hash: bytes
    at: datetime

    def to_sign(self) -> bytes:
        """Return what a checkpoint's signature covers."""
        return encode_parts(
            _CHECKPOINT_LABEL,
            str(self.chain_id),
            str(self.seq),
            self.hash.hex(),
            self.at.astimezone(UTC).isoformat(),
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A chain's head, signed by the process that wrote it.

    Attributes:
        key_id: Names the signing key.
        signature: Ed25519 over `head.to_sign()`.
    """

    head: ChainHead
    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of the log an export holds.

    Attributes:
        since: From, inclusive; None for the beginning.
        until: To, exclusive.
        tenant_id: Only this tenant's records; empty for all. Such an export
            leaves records out, so it proves nothing.
    """

    since: datetime | None
    until: datetime
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the log is not as it was written.

    Attributes:
        seq: The first record of the chain that cannot be trusted.
        problem: `edited`, `missing`, `out of place`, `tail cut`, `rewritten`.
    """

    chain_id: UUID
    seq: int
    problem: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a log proves.

    Attributes:
        breaks: One for each broken chain, in the order found.
        records: How many were looked at.
        chains: How many chains they belong to.
        unsigned: How many records no checkpoint covers yet; a change of those
            by somebody who can also compute hashes does not show.
    """

    breaks: tuple[Break, ...]
    records: int
    chains: int
    unsigned: int


@dataclass(slots=True)
class _Walk:
    """One chain on the way through the log."""

    chain_id: UUID
    seq: int
    prev: bytes
    checkpoints: list[ChainHead] = field(default_factory=list)
    covered: int = 0
    broken: Break | None = None

    def follow(self, record: ChainedEvent) -> None:
        if self.broken is not None:
            return
        expected = self.seq + 1
        digest = record_hash(record.event, record.chain_id, record.seq, record.at, self.prev)
        if record.seq != expected:
            problem = "missing" if record.seq > expected else "out of place"
            self.broken = Break(self.chain_id, expected, problem)
        elif record.prev_hash != self.prev or record.hash != digest:
            self.broken = Break(self.chain_id, expected, "edited")
        else:
            self.seq, self.prev = expected, record.hash
            self._compare()

    def _compare(self) -> None:
        while self.checkpoints and self.checkpoints[0].seq <= self.seq:
            known = self.checkpoints.pop(0)
            if known.seq == self.seq and known.hash != self.prev:
                # Somebody computed the hashes anew; where they began lies
                # behind the last record that a checkpoint agrees with.
                self.broken = Break(self.chain_id, self.covered + 1, "rewritten")
                return
            if known.seq == self.seq:
                self.covered = self.seq

    def end(self, until: datetime) -> Break | None:
        """Judge what is not there, once the log is at its end."""
        if self.broken is None and any(known.at < until for known in self.checkpoints):
            return Break(self.chain_id, self.seq + 1, "tail cut")
        return None


def verify_log(
    span: Span, records: Iterable[ChainedEvent], checkpoints: Sequence[ChainHead]
) -> Findings:
    """Find the first bad record of every chain.

    Holds one small state a chain, however long the log is.

    Args:
        span: What the records are supposed to cover. From a beginning other
            than the log's own, chains may begin in their middle: what was cut
            just there shows only against a checkpoint.
        records: In the order of their time.
        checkpoints: Signatures checked already; in any order.
    """
    walks = _walks_of(span, checkpoints)
    count = 0
    breaks: list[Break] = []
    for record in records:
        count += 1
        walk = walks.get(record.chain_id)
        if walk is None:
            walk = walks[record.chain_id] = _Walk(record.chain_id, 0, GENESIS)
        was_broken = walk.broken is not None
        if walk.seq == 0 and span.since is not None and record.seq > 1:
            _begin_midway(walk, record)
        walk.follow(record)
        if walk.broken is not None and not was_broken:
            breaks.append(walk.broken)
    breaks += [cut for walk in walks.values() if (cut := walk.end(span.until))]
    unsigned = sum(walk.seq - walk.covered for walk in walks.values())
    return Findings(tuple(breaks), count, len(walks), unsigned)


def find_first_break(records: Iterable[ChainedEvent]) -> int | None:
    """Find the first place of one whole chain that is not as it was written.

    Returns:
        The seq at which the chain first fails, or None for a sound one.
    """
    walk = _Walk(UUID(int=0), 0, GENESIS)
    for record in records:
        walk.follow(record)
    return walk.broken.seq if walk.broken else None


def _walks_of(span: Span, checkpoints: Sequence[ChainHead]) -> dict[UUID, _Walk]:
    walks: dict[UUID, _Walk] = {}
    for known in sorted(checkpoints, key=lambda head: head.seq):
        if span.since is None or known.at >= span.since:
            walk = walks.setdefault(known.chain_id, _Walk(known.chain_id, 0, GENESIS))
            walk.checkpoints.append(known)
    return walks


def _begin_midway(walk: _Walk, record: ChainedEvent) -> None:
    """Take a chain up at a record in its middle, unless one is known that should be there."""
    if walk.checkpoints and walk.checkpoints[0].seq < record.seq:
        walk.broken = Break(walk.chain_id, walk.checkpoints[0].seq, "missing")
        return
    walk.seq = walk.covered = record.seq - 1
    walk.prev = record.prev_hash


def export_head(span: Span) -> bytes:
    """Write the first line of an export."""
    since = span.since.astimezone(UTC).isoformat() if span.since else None
    return _line(
        {
            "format": _FORMAT,
            "from": since,
            "to": span.until.astimezone(UTC).isoformat(),
            "tenant_id": span.tenant_id,
        }
    )


def export_line(record: ChainedEvent) -> bytes:
    """Write a record as one line."""
    event, origin = record.event, record.event.origin
    return _line(
        {
            "chain_id": str(record.chain_id),
            "seq": record.seq,
            "at": record.at.astimezone(UTC).isoformat(),
            "action": event.action,
            "outcome": event.outcome,
            "actor": origin.actor,
            "rpc": origin.rpc,
            "purpose": origin.purpose,
            "grant_id": origin.grant_id,
            "subject": origin.subject,
            "request_id": origin.request_id,
            "trace_id": origin.trace_id,
            "installation_id": str(event.installation_id or ""),
            "enterprise_id": event.enterprise_id,
            "team_id": event.team_id,
            "token_kind": event.token_kind,
            "token_ref": event.token_ref,
            "generation": event.generation,
            "kek_version": event.kek_version,
            "dek_source": event.dek_source,
            "count": event.count,
            "prev_hash": record.prev_hash.hex(),
            "hash": record.hash.hex(),
        }
    )


def export_tail(count: int) -> bytes:
    """Write the last line of an export."""
    return _line({"end": True, "records": count})


@dataclass(slots=True)
class ExportReader:
    """Read an export line by line, in bounded memory.

    Attributes:
        span: What the export says it covers.

    Raises:
        UnreadableLog: The first line is not that of an export.
    """

    lines: Iterator[bytes]
    span: Span = field(init=False)

    def __post_init__(self) -> None:
        head = _parse(next(self.lines, b""), 1)
        if head.get("format") != _FORMAT:
            raise UnreadableLog("line 1: not an audit export of this version")
        try:
            since = head["from"]
            self.span = Span(
                None if since is None else datetime.fromisoformat(since),
                datetime.fromisoformat(head["to"]),
                str(head["tenant_id"]),
            )
        except (KeyError, TypeError, ValueError):
            raise UnreadableLog("line 1: not an audit export of this version") from None

    def records(self) -> Iterator[ChainedEvent]:
        """Give the records, in order.

        Raises:
            UnreadableLog: A line is no record, or the file was cut.
        """
        count = 0
        for number, line in enumerate(self.lines, start=2):
            document = _parse(line, number)
            if document.get("end") is True:
                if document.get("records") != count or next(self.lines, None) is not None:
                    raise UnreadableLog(f"line {number}: the export is not whole")
                return
            count += 1
            yield _record_of(document, number)
        raise UnreadableLog(f"line {count + 2}: the export is not whole")


def checkpoint_line(checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint as one line."""
    head = checkpoint.head
    return _line(
        {
            "chain_id": str(head.chain_id),
            "seq": head.seq,
            "hash": head.hash.hex(),
            "at": head.at.astimezone(UTC).isoformat(),
            "key_id": checkpoint.key_id,
            "signature": checkpoint.signature.hex(),
        }
    )


def read_checkpoints(
    content: bytes, is_genuine: Callable[[Checkpoint], bool]
) -> tuple[list[ChainHead], bool]:
    """Read the checkpoints of one file.

    Returns:
        Those whose signature is genuine, and whether any line was not. A last
        line without its end was being written when the process died, and is
        no line.
    """
    heads: list[ChainHead] = []
    is_damaged = False
    for line in content.split(b"\n")[:-1]:
        try:
            checkpoint = _checkpoint_of(_parse(line, 0))
        except UnreadableLog:
            is_damaged = True
            continue
        if is_genuine(checkpoint):
            heads.append(checkpoint.head)
        else:
            is_damaged = True
    return heads, is_damaged


def _checkpoint_of(document: Mapping[str, Any]) -> Checkpoint:
    try:
        head = ChainHead(
            UUID(document["chain_id"]),
            int(document["seq"]),
            bytes.fromhex(document["hash"]),
            datetime.fromisoformat(document["at"]),
        )
        return Checkpoint(head, str(document["key_id"]), bytes.fromhex(document["signature"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnreadableLog("not a checkpoint") from None


def _record_of(document: Mapping[str, Any], number: int) -> ChainedEvent:
    try:
        installation_id = document["installation_id"]
        event = AuditEvent(
            action=document["action"],
            origin=Origin(
                actor=document["actor"],
                rpc=document["rpc"],
                purpose=document["purpose"],
                grant_id=document["grant_id"],
                subject=document["subject"],
                request_id=document["request_id"],
                trace_id=document["trace_id"],
            ),
            outcome=document["outcome"],
            installation_id=InstallationId(UUID(installation_id)) if installation_id else None,
            enterprise_id=document["enterprise_id"],
            team_id=document["team_id"],
            token_kind=document["token_kind"],
            token_ref=document["token_ref"],
            generation=int(document["generation"]),
            kek_version=document["kek_version"],
            dek_source=document["dek_source"],
            count=int(document["count"]),
        )
        record = ChainedEvent(
            event,
            UUID(document["chain_id"]),
            int(document["seq"]),
            datetime.fromisoformat(document["at"]),
            bytes.fromhex(document["prev_hash"]),
            bytes.fromhex(document["hash"]),
        )
        event.texts()
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnreadableLog(f"line {number}: not an audit record") from None
    return record


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, number: int) -> Mapping[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        raise UnreadableLog(f"line {number}: not JSON") from None
    if not isinstance(document, dict):
        raise UnreadableLog(f"line {number}: not a JSON object")
    return document
