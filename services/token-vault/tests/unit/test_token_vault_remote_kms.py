"""A remote KMS: asked again at most twice, never for long, and left alone while it is away."""

import asyncio
from datetime import timedelta

import pytest

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import REGISTRY
from interlock_token_vault.adapters import remote_kms
from interlock_token_vault.adapters.circuit_breaker import CircuitBreaker, CircuitOpen
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.adapters.memory import FakeKms, ManualClock
from interlock_token_vault.adapters.remote_kms import AskAgain, RemoteKms
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

DEK = Secret(bytes(range(32)))
REST = timedelta(seconds=1)


class Stage:
    """A remote KMS over a fake one, which fails as told."""

    def __init__(self) -> None:
        self.fake = FakeKms()
        self.clock = ManualClock()
        self.kms = RemoteKms(self.fake, self.clock, pauses=(timedelta(0), timedelta(0)))

    @property
    def attempts(self) -> int:
        """How often the KMS was asked to wrap."""
        return self.fake.faults.calls["kms.wrap"]

    async def fail(self, *errors: ServiceError) -> None:
        """Have one call fail by these errors, one an attempt."""
        self.fake.faults.fail_next("kms.wrap", *errors)
        with pytest.raises(type(errors[-1])):
            await self.kms.wrap(DEK, b"place")

    async def open_circuit(self) -> None:
        """Fail until the KMS is no longer asked."""
        for _ in range(5):
            await self.fail(KmsUnavailable())


async def test_what_may_go_better_is_asked_again_twice() -> None:
    """Two discarded answers are forgiven; the third ends the call as UNAVAILABLE."""
    stage = Stage()
    stage.fake.faults.fail_next("kms.wrap", AskAgain(), AskAgain())
    await stage.kms.wrap(DEK, b"place")
    assert stage.attempts == 3
    await stage.fail(AskAgain(), AskAgain(), AskAgain())
    assert stage.attempts == 6


@pytest.mark.parametrize("error", [CannotOpen(), KekDisabled(), KmsUnavailable()])
async def test_what_cannot_go_better_is_not_asked_again(error: ServiceError) -> None:
    """A refusal is final, and so is being told to ask less."""
    stage = Stage()
    await stage.fail(error)
    assert stage.attempts == 1


async def test_an_open_circuit_asks_nobody_and_says_when_it_will() -> None:
    """After five failures in a row calls fail at once, with the time to wait."""
    stage = Stage()
    await stage.open_circuit()
    asked = stage.attempts
    stage.clock.advance(timedelta(milliseconds=400))
    with pytest.raises(KmsUnavailable) as refusal:
        await stage.kms.wrap(DEK, b"place")
    assert stage.attempts == asked
    assert refusal.value.retry_after == timedelta(milliseconds=600)


async def test_an_open_circuit_closes_with_the_first_answer() -> None:
    """One question a second passes; when it is answered, all pass again."""
    stage = Stage()
    await stage.open_circuit()
    stage.clock.advance(REST)
    await stage.fail(KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.kms.wrap(DEK, b"place")
    stage.clock.advance(REST)
    for _ in range(3):
        await stage.kms.wrap(DEK, b"place")


async def test_a_refusal_is_an_answer() -> None:
    """A KMS whose key is disabled is there: the circuit stays closed, and closes."""
    stage = Stage()
    for _ in range(4):
        await stage.fail(KmsUnavailable())
    await stage.fail(KekDisabled())
    await stage.fail(KmsUnavailable())
    await stage.kms.wrap(DEK, b"place")
    await stage.open_circuit()
    stage.clock.advance(REST)
    await stage.fail(CannotOpen())
    await stage.kms.wrap(DEK, b"place")


class SilentKms(FakeKms):
    """A KMS that never answers."""

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wait for ever."""
        await asyncio.Event().wait()
        return await super().wrap(dek, bound)


async def test_a_silent_kms_opens_the_circuit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """KM-12: all attempts together take less than 2 s, and readers soon stop waiting at all."""
    assert timedelta(seconds=2) > remote_kms.KMS_BUDGET
    monkeypatch.setattr(remote_kms, "KMS_BUDGET", timedelta(milliseconds=5))
    kms = RemoteKms(SilentKms(), ManualClock())
    for _ in range(5):
        with pytest.raises(KmsUnavailable) as refusal:
            await kms.wrap(DEK, b"place")
        assert refusal.value.retry_after is None
    with pytest.raises(KmsUnavailable) as refusal:
        await kms.wrap(DEK, b"place")
    assert refusal.value.retry_after == REST


async def test_who_goes_away_says_nothing_about_the_kms() -> None:
    """A cancelled question neither opens the circuit nor keeps a later one from passing."""
    kms = RemoteKms(SilentKms(), ManualClock())
    for _ in range(10):
        asking = asyncio.create_task(kms.wrap(DEK, b"place"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    asking = asyncio.create_task(kms.wrap(DEK, b"place"))
    done, _ = await asyncio.wait({asking}, timeout=0.01)
    assert not done
    asking.cancel()


async def test_calls_are_measured_by_their_outcome() -> None:
    """The metric tells a disabled key from a KMS that is away."""

    def count(outcome: str) -> float:
        labels = {"call": "wrap", "outcome": outcome}
        return REGISTRY.get_sample_value("interlock_kms_seconds_count", labels) or 0

    stage = Stage()
    before = {each: count(each) for each in ("OK", "KEK_DISABLED", "KMS_UNAVAILABLE")}
    await stage.kms.wrap(DEK, b"place")
    await stage.fail(KekDisabled())
    await stage.fail(KmsUnavailable())
    assert {each: count(each) - before[each] for each in before} == dict.fromkeys(before, 1)


def test_a_breaker_lets_one_question_a_rest_pass() -> None:
    """While the peer is away it hears one question a second, from however many askers."""
    breaker = CircuitBreaker(failures=2, rest=REST)
    breaker.admit(10)
    assert not breaker.failed(10)
    assert breaker.failed(10)
    passed = 0
    for tenth in range(100, 200):
        try:
            breaker.admit(tenth / 10)
        except CircuitOpen:
            continue
        passed += 1
        assert not breaker.failed(tenth / 10)
    assert passed == 9
    assert breaker.succeeded()
    breaker.admit(20)
    assert not breaker.succeeded()
