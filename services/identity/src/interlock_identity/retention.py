"""Remove what nobody needs any more: old codes, old claims, old names, old records."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from interlock_identity.domain.audit import OWN_WORK, Origin

# One transaction's worth: a second of work at the most, so that nobody waits for its locks.
BATCH = 5_000
# An install takes 15 minutes at the most; whoever began one must still be known at its end.
UNSEEN_FOR = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long things are kept after their end.

    Attributes:
        codes: Link codes, used or not, after they expired.
        released_claims: Claims with their links and defaults, for a reinstall by the same tenant.
        audit: Audit records; the database itself keeps 90 days whatever is said here.
    """

    codes: timedelta
    released_claims: timedelta
    audit: timedelta


class RetentionStore(Protocol):
    """What can be removed; each method removes `limit` rows at the most and counts them.

    Every method raises DatabaseUnavailable when the database does not answer.
    All times are by the database's clock.
    """

    async def erase_ended_codes(self, limit: int) -> int:
        """Erase what ended codes would have shown on the confirm page."""
        ...

    async def drop_codes(self, ended_for: timedelta, limit: int) -> int:
        """Remove codes that expired that long ago."""
        ...

    async def end_released_claims(self, released_for: timedelta, limit: int, origin: Origin) -> int:
        """Remove claims that were released that long ago, with their links and defaults."""
        ...

    async def drop_strangers(self, unseen_for: timedelta, limit: int) -> int:
        """Remove accounts and organizations that nothing stands on and nobody saw lately."""
        ...

    async def erase_names(self, unseen_for: timedelta, limit: int) -> int:
        """Erase name and address of accounts without links that nobody saw lately."""
        ...

    async def prune_audit(self, older_than: timedelta, limit: int) -> int:
        """Remove audit records of that age."""
        ...


class Retention:
    """Keep things as long as told, and no longer."""

    def __init__(self, *, store: RetentionStore, keeping: Keeping) -> None:
        self._store = store
        self._keeping = keeping

    async def clean(self) -> Mapping[str, int]:
        """Remove whatever is due, in batches, and count it by kind.

        Safe to repeat and to interrupt.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        store, keeping = self._store, self._keeping
        origin = Origin(OWN_WORK, "clean", request_id="")
        tasks: dict[str, Callable[[int], Awaitable[int]]] = {
            "code_contents": store.erase_ended_codes,
            "codes": lambda limit: store.drop_codes(keeping.codes, limit),
            "claims": lambda limit: store.end_released_claims(
                keeping.released_claims, limit, origin
            ),
            "names": lambda limit: store.erase_names(UNSEEN_FOR, limit),
            "strangers": lambda limit: store.drop_strangers(UNSEEN_FOR, limit),
            "audit_records": lambda limit: store.prune_audit(keeping.audit, limit),
        }
        return {kind: await _to_the_end(task) for kind, task in tasks.items()}


async def _to_the_end(task: Callable[[int], Awaitable[int]]) -> int:
    total = 0
    while removed := await task(BATCH):
        total += removed
    return total
