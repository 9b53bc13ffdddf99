"""Recurring work: once for all replicas, in batches, and in spite of failures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from interlock_chassis.telemetry import REGISTRY
from interlock_identity.adapters.memory import ManualClock, MemoryStore
from interlock_identity.domain.audit import Origin
from interlock_identity.membership import MembershipUnavailable
from interlock_identity.retention import BATCH, UNSEEN_FOR, Keeping, Retention
from interlock_identity.upkeep import Upkeep

EVERY = timedelta(minutes=5)
KEEPING = Keeping(
    codes=timedelta(days=7), released_claims=timedelta(days=30), audit=timedelta(days=400)
)


@dataclass
class _Work:
    """A task that counts its runs, and fails when told to."""

    runs: int = 0
    failures: list[Exception] = field(default_factory=list)

    async def __call__(self) -> Mapping[str, int]:
        """Run once."""
        self.runs += 1
        if self.failures:
            raise self.failures.pop()
        return {"things": 2, "others": 0}


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def _upkeep(store: MemoryStore, clock: ManualClock, **tasks: _Work) -> Upkeep:
    return Upkeep(turns=store, tasks=tasks, every=EVERY, clock=clock)


async def test_a_task_is_done_once_for_all_replicas() -> None:
    """Whoever comes first does it; the others find it done until it is due again."""
    clock, work = ManualClock(), _Work()
    store = MemoryStore(clock)
    replicas = [_upkeep(store, clock, once=work) for _ in range(3)]
    before = _value("interlock_identity_removed_total", what="things")
    for replica in replicas:
        await replica.run_due()
    assert work.runs == 1
    clock.advance(EVERY)
    for replica in replicas:
        await replica.run_due()
    assert work.runs == 2
    assert _value("interlock_identity_removed_total", what="things") == before + 4
    finished_at = _value("interlock_identity_upkeep_timestamp_seconds", task="once")
    assert finished_at == clock.now().timestamp()


async def test_a_failure_is_counted_and_stops_nothing_else() -> None:
    """The next task runs, and the failed one is due again at once, whatever went wrong."""
    clock = ManualClock()
    broken, sound = _Work(), _Work()
    broken.failures = [ZeroDivisionError(), MembershipUnavailable()]
    upkeep = _upkeep(MemoryStore(clock), clock, broken=broken, sound=sound)
    for _ in range(3):
        await upkeep.run_due()
    assert (broken.runs, sound.runs) == (3, 1)
    for reason in ("MEMBERSHIP_UNAVAILABLE", "ZeroDivisionError"):
        labels = {"task": "broken", "reason": reason}
        assert _value("interlock_identity_upkeep_failed_total", **labels) == 1


class _Heap:
    """A retention store with a number of things of each kind that are due."""

    def __init__(self, **due: int) -> None:
        self.due = due
        self.asked: dict[str, object] = {}

    def _take(self, kind: str, limit: int, age: object = None) -> int:
        self.asked[kind] = age
        taken = min(self.due.get(kind, 0), limit)
        self.due[kind] = self.due.get(kind, 0) - taken
        return taken

    async def erase_ended_codes(self, limit: int) -> int:
        """Take from the heap."""
        return self._take("code_contents", limit)

    async def drop_codes(self, ended_for: timedelta, limit: int) -> int:
        """Take from the heap."""
        return self._take("codes", limit, ended_for)

    async def end_released_claims(self, released_for: timedelta, limit: int, origin: Origin) -> int:
        """Take from the heap."""
        return self._take("claims", limit, released_for)

    async def drop_strangers(self, unseen_for: timedelta, limit: int) -> int:
        """Take from the heap."""
        return self._take("strangers", limit, unseen_for)

    async def erase_names(self, unseen_for: timedelta, limit: int) -> int:
        """Take from the heap."""
        return self._take("names", limit, unseen_for)

    async def prune_audit(self, older_than: timedelta, limit: int) -> int:
        """Take from the heap."""
        return self._take("audit_records", limit, older_than)


async def test_everything_due_is_removed_in_batches() -> None:
    """However much is due, each statement takes a batch, and all of it goes."""
    heap = _Heap(codes=2 * BATCH + 1, claims=1, audit_records=BATCH)
    cleaned = await Retention(store=heap, keeping=KEEPING).clean()
    assert cleaned == {
        "code_contents": 0,
        "codes": 2 * BATCH + 1,
        "claims": 1,
        "names": 0,
        "strangers": 0,
        "audit_records": BATCH,
    }
    assert heap.asked == {
        "code_contents": None,
        "codes": KEEPING.codes,
        "claims": KEEPING.released_claims,
        "names": UNSEEN_FOR,
        "strangers": UNSEEN_FOR,
        "audit_records": KEEPING.audit,
    }
