"""A KMS on the other side of a network: asked again at most twice, and never for long.

The adapters of one KMS make one attempt and judge its answer. What they cannot
use they discard with `AskAgain`, and what follows is decided here, for all alike.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import structlog
from prometheus_client import Histogram

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import REGISTRY
from interlock_token_vault.adapters.circuit_breaker import CircuitBreaker, CircuitOpen
from interlock_token_vault.adapters.kms_keys import Kms, WrappedKey
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

# All attempts together. A reader is to hear within 2 s, from us and not from
# whoever gave up on us.
KMS_BUDGET = timedelta(milliseconds=1800)
# A lost connection is made again within 100 ms.
_PAUSES = (timedelta(milliseconds=50), timedelta(milliseconds=200))
# Each may take the whole budget, so a silent KMS is noticed in one of them when
# a few readers come together, and its return within a second or so.
_FAILURES = 5
_REST = timedelta(seconds=1)

_KMS_SECONDS = Histogram(
    "interlock_kms_seconds",
    "How long the KMS took with all attempts, by call and outcome.",
    ("call", "outcome"),
    registry=REGISTRY,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
)

_T = TypeVar("_T")

_log = structlog.get_logger()


class AskAgain(KmsUnavailable):
    """The KMS gave no answer, or one that must not be used; the next may be better."""


class RemoteKms:
    """The Kms port over one that is remote.

    Fails within 1.8 s. After five failures in a row it fails at once, and lets
    one question a second find out whether the KMS is back.

    Args:
        kms: Makes one attempt a call; raises AskAgain where another may help.
        clock: Tells the circuit breaker the time.
        pauses: What passes before the second and the third attempt.
    """

    def __init__(self, kms: Kms, clock: Clock, *, pauses: Sequence[timedelta] = _PAUSES) -> None:
        self._kms = kms
        self._clock = clock
        self._pauses = pauses
        self._breaker = CircuitBreaker(failures=_FAILURES, rest=_REST)

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        return await self._measured("wrap", lambda: self._kms.wrap(dek, bound))

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        return await self._measured("unwrap", lambda: self._kms.unwrap(key, bound))

    async def _measured(self, call: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        started = self._clock.monotonic()
        outcome = "OK"
        try:
            return await self._guarded(ask)
        except ServiceError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        finally:
            _KMS_SECONDS.labels(call, outcome).observe(self._clock.monotonic() - started)

    async def _guarded(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask unless the circuit is open, and tell it how that went."""
        try:
            self._breaker.admit(self._clock.monotonic())
        except CircuitOpen as circuit:
            raise KmsUnavailable(retry_after=circuit.retry_after) from None
        try:
            async with asyncio.timeout(KMS_BUDGET.total_seconds()):
                answer = await self._persistent(ask)
        except KmsUnavailable:
            self._note_failure()
            raise
        except TimeoutError as error:
            self._note_failure()
            raise KmsUnavailable from error
        except (CannotOpen, KekDisabled):
            # It answers, though not what was hoped for.
            self._note_success()
            raise
        self._note_success()
        return answer

    async def _persistent(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        for pause in self._pauses:
            try:
                return await ask()
            except AskAgain as error:
                _log.warning("kms_attempt_failed", **error.metadata)
            await asyncio.sleep(pause.total_seconds())
        return await ask()

    def _note_failure(self) -> None:
        if self._breaker.failed(self._clock.monotonic()):
            _log.error("kms_circuit_opened", failures=_FAILURES)

    def _note_success(self) -> None:
        if self._breaker.succeeded():
            _log.info("kms_circuit_closed")
