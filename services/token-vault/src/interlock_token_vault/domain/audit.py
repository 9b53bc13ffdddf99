"""The audit log: facts in the past tense, chained so that a missing one shows.

Each vault process writes one chain. A record's hash covers the hash before it,
its place and every field, so editing, removing or swapping records breaks the
chain at the first bad one; a cut tail shows against a signed checkpoint kept
outside the database.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from interlock_token_vault.domain.envelope import encode_parts
from interlock_token_vault.domain.installation import InstallationId

GENESIS = bytes(32)
_LABEL = "interlock audit event/1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Callers' texts are cut here: one of them must not be able to make a record,
# and with it the transaction of its neighbours, impossible to write.
_MAX_TEXT = 512

ALLOWED = "allowed"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as the audit log records it.

    Attributes:
        actor: The caller's mTLS identity; the vault's own for what it does by itself.
        rpc: The method called.
        purpose: What the grant is for.
        grant_id: The grant's `jti`.
        subject: On whose behalf: the grant's Slack user or platform user.
        request_id: The id that the log lines of every hop carry.
        trace_id: The trace.
    """

    actor: str
    rpc: str
    purpose: str = ""
    grant_id: str = ""
    subject: str = ""
    request_id: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One fact, before it has a place in the chain.

    Attributes:
        action: Past tense, `token.read`.
        outcome: `allowed`, or the reason of the refusal.
        installation_id: Where one is known.
        token_ref: Keyed fingerprint of the token.
        generation: Of the credential; 0 for none.
        kek_version: Of the key that wraps the data key.
        dek_source: `kms` or `cache`.
        count: How many like events this stands for.
    """

    action: str
    origin: Origin
    outcome: str = ALLOWED
    installation_id: InstallationId | None = None
    enterprise_id: str = ""
    team_id: str = ""
    token_kind: str = ""
    token_ref: str = ""
    generation: int = 0
    kek_version: str = ""
    dek_source: str = ""
    count: int = 1
    _texts: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def texts(self) -> tuple[str, ...]:
        """Return the text fields in the order of the canonical encoding, made storable."""
        if not self._texts:
            # Asked for twice: to hash the record, and to store it.
            object.__setattr__(self, "_texts", self._make_texts())
        return self._texts

    def _make_texts(self) -> tuple[str, ...]:
        origin = self.origin
        texts = (
            self.action,
            origin.actor,
            origin.rpc,
            origin.purpose,
            origin.grant_id,
            str(self.installation_id or ""),
            self.enterprise_id,
            self.team_id,
            self.token_kind,
            self.outcome,
            self.token_ref,
            self.kek_version,
            self.dek_source,
            origin.request_id,
            origin.trace_id,
            origin.subject,
        )
        together = "".join(texts)
        if len(together) <= _MAX_TEXT and together.isascii() and "\0" not in together:
            return texts
        return tuple(map(_storable, texts))


@dataclass(frozen=True, slots=True)
class ChainedEvent:
    """A fact in its place.

    Attributes:
        chain_id: The writing process's chain.
        seq: From 1 without gaps.
        at: By the database's clock.
        prev_hash: Of the record before; zeros for the first.
        hash: Of this record.
    """

    event: AuditEvent
    chain_id: UUID
    seq: int
    at: datetime
    prev_hash: bytes
    hash: bytes


@dataclass(slots=True)
class AuditChain:
    """The head of one chain.

    `extend` only computes: the head moves by `advance`, once the records are
    known to be committed.
    """

    chain_id: UUID
    seq: int = 0
    head: bytes = field(default=GENESIS)
    at: datetime = field(default=_EPOCH)

    def extend(self, events: Iterable[AuditEvent], at: datetime) -> list[ChainedEvent]:
        """Give each event its place after the head.

        Time in a chain never goes back, whatever a failed-over database's clock
        says: ordered by time, the records of a chain are in their order.
        """
        records: list[ChainedEvent] = []
        seq, prev, at = self.seq, self.head, max(at, self.at)
        chain, instant = str(self.chain_id), _microseconds(at)
        for event in events:
            seq += 1
            digest = _hash(event, chain, seq, instant, prev)
            records.append(ChainedEvent(event, self.chain_id, seq, at, prev, digest))
            prev = digest
        return records

    def advance(self, records: Sequence[ChainedEvent]) -> None:
        """Move the head past committed records."""
        if records:
            last = records[-1]
            self.seq, self.head, self.at = last.seq, last.hash, last.at


def record_hash(
    event: AuditEvent, chain_id: UUID, seq: int, at: datetime, prev_hash: bytes
) -> bytes:
    """Hash a record and its place with SHA-256 over the canonical encoding."""
    return _hash(event, str(chain_id), seq, _microseconds(at), prev_hash)


def _hash(event: AuditEvent, chain_id: str, seq: int, at: str, prev_hash: bytes) -> bytes:
    encoded = encode_parts(
        _LABEL,
        chain_id,
        str(seq),
        at,
        *event.texts(),
        str(event.generation),
        str(event.count),
    )
    return hashlib.sha256(prev_hash + encoded).digest()


def _microseconds(at: datetime) -> str:
    return str((at - _EPOCH) // timedelta(microseconds=1))


def _storable(text: str) -> str:
    """Cut a text, and replace what Postgres cannot hold."""
    if len(text) <= _MAX_TEXT and text.isascii() and "\0" not in text:
        return text
    return text[:_MAX_TEXT].encode(errors="replace").decode().replace("\0", "?")
