"""How a chain of tokens moves on: from facts alone, without a clock."""

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_chassis.secret import Secret
from interlock_token_vault.domain.installation import (
    ClientId,
    DekId,
    InstallationId,
    InstallationKey,
    TokenRef,
)
from interlock_token_vault.domain.rotation import (
    JITTER,
    AnswerFacts,
    Chain,
    ChainState,
    ClaimFacts,
    Exchange,
    Fate,
    Hearing,
    Hindrance,
    Quality,
    RefreshAnswer,
    Reply,
    Standing,
    Step,
    backoff,
    choose,
    find_hindrance,
    is_end,
    is_in_doubt,
    jitter_of,
    judge_answer,
    judge_quality,
    life_of,
)

DEK = DekId(UUID(int=1))
BOT = Chain(InstallationId(UUID(int=2)))
KEY = InstallationKey(ClientId("client"), "A0APP", "E0GRID", "T0TEAM")
STATE = ChainState(3, 2, TokenRef("r3"), "r2", DEK)
FREE = ClaimFacts(is_leased=False, is_due=True, is_resting=False, is_paused=False, is_stopped=False)
ANSWER = AnswerFacts(3, TokenRef("r3"), TokenRef("new"), DEK, is_odd=False, is_doubtful=False)
GOOD = RefreshAnswer(
    Secret("access"), Secret("refresh"), 43_200, "bot", "A0APP", "T0TEAM", "E0GRID"
)


@pytest.mark.parametrize(
    ("state", "facts", "expected"),
    [
        (STATE, FREE, None),
        (replace(STATE, generation=4), FREE, Hindrance.CHANGED),
        (replace(STATE, refresh_ref=TokenRef("r4")), FREE, Hindrance.CHANGED),
        (replace(STATE, dek_id=DekId(UUID(int=9))), FREE, Hindrance.CHANGED),
        (STATE, replace(FREE, is_leased=True), Hindrance.LEASED),
        (STATE, replace(FREE, is_due=False), Hindrance.NOT_DUE),
        (STATE, replace(FREE, is_resting=True), Hindrance.RESTING),
        (STATE, replace(FREE, is_paused=True), Hindrance.PAUSED),
        (STATE, replace(FREE, is_stopped=True), Hindrance.STOPPED),
        (replace(STATE, standing=Standing.NEEDS_REINSTALL), FREE, Hindrance.NEEDS_REINSTALL),
        (replace(STATE, standing=Standing.SENT), replace(FREE, is_due=False), None),
        (replace(STATE, standing=Standing.DOUBTED), replace(FREE, is_due=False), None),
    ],
)
def test_what_hinders_an_exchange(
    state: ChainState, facts: ClaimFacts, expected: Hindrance | None
) -> None:
    """I1: a lease is given for the very pair that was looked at, if it is free and due."""
    assert find_hindrance(state, STATE, facts, is_forced=False) is expected


def test_force_makes_due_and_nothing_else() -> None:
    """What Slack refused need not wait for its time; a lease and a rest still count."""
    later = replace(FREE, is_due=False)
    assert find_hindrance(STATE, STATE, later, is_forced=True) is None
    leased = replace(later, is_leased=True)
    assert find_hindrance(STATE, STATE, leased, is_forced=True) is Hindrance.LEASED


@pytest.mark.parametrize(
    ("state", "answer", "expected"),
    [
        (STATE, ANSWER, Fate.STORED),
        (replace(STATE, standing=Standing.NEEDS_REINSTALL), ANSWER, Fate.STORED),
        (replace(STATE, epoch=99), ANSWER, Fate.STORED),
        (STATE, replace(ANSWER, is_odd=True), Fate.KEPT_BESIDE),
        (replace(STATE, generation=4), ANSWER, Fate.KEPT_BESIDE),
        (replace(STATE, refresh_ref=TokenRef("new")), ANSWER, Fate.ALREADY),
        (replace(STATE, parent_ref="new"), ANSWER, Fate.ALREADY),
        (replace(STATE, candidate_refs=(TokenRef("new"),)), ANSWER, Fate.ALREADY),
        (STATE, replace(ANSWER, dek_id=DekId(UUID(int=9))), Fate.RESEAL),
        (replace(STATE, generation=5, lineage=4), ANSWER, Fate.OUTDATED),
        (None, ANSWER, Fate.GONE),
    ],
)
def test_every_answer_has_a_place(
    state: ChainState | None, answer: AnswerFacts, expected: Fate
) -> None:
    """Whoever brings it and however late: it is stored, kept beside, known, dropped or revoked."""
    assert judge_answer(state, answer) is expected


def test_only_the_newest_leases_answer_is_certain() -> None:
    """Under a later lease the same refresh token may have been spent once more."""
    newest = replace(STATE, epoch=7)
    assert not is_in_doubt(newest, ANSWER, 7)
    assert is_in_doubt(newest, ANSWER, 6)
    assert is_in_doubt(newest, replace(ANSWER, is_doubtful=True), 7)


def test_a_chain_ends_when_everything_was_refused() -> None:
    """An untried candidate, or another generation, is not an end."""
    beside = replace(STATE, candidate_refs=(TokenRef("c"),))
    assert is_end(STATE, 3, {"r3"})
    assert not is_end(STATE, 2, {"r3"})
    assert not is_end(STATE, 3, {"other"})
    assert not is_end(beside, 3, {"r3"})
    assert is_end(beside, 3, {"r3", "c"})
    assert not is_end(None, 3, {"r3"})


@given(st.lists(st.sampled_from([*Reply, "silence"]), max_size=30), st.booleans())
def test_an_exchange_always_ends(happenings: list[Reply | str], may_send: bool) -> None:
    """At most six requests, none after an answer that settles it, and all are heard out."""
    exchange, settled = Exchange(), False
    for happening in [*happenings, *[Reply.SILENT] * 6]:
        while (step := exchange.next_step(may_send=may_send)) in {Step.SEND, Step.REST}:
            assert may_send
            assert not settled
            exchange = exchange.after_sending() if step is Step.SEND else exchange.after_rest()
        if step is Step.END:
            break
        if isinstance(happening, Reply):
            exchange = exchange.after_reply(happening)
            settled = settled or happening not in {Reply.SILENT, Reply.FAILED}
        elif step is Step.LISTEN:
            exchange = exchange.after_silence()
    assert exchange.next_step(may_send=may_send) is Step.END
    assert exchange.open == 0
    assert exchange.sent <= 6


def test_silence_calls_for_a_second_request_beside_the_first() -> None:
    """A failure calls for one in its place; the first repeat comes at once, then with a rest."""
    silent = Exchange().after_sending().after_silence()
    assert silent.next_step(may_send=True) is Step.SEND
    assert silent.after_sending().open == 2
    failed = Exchange().after_sending().after_reply(Reply.FAILED)
    assert failed.next_step(may_send=True) is Step.SEND
    again = failed.after_sending().after_reply(Reply.FAILED)
    assert again.next_step(may_send=True) is Step.REST
    assert again.rest_s > 0
    assert again.next_step(may_send=False) is Step.END


def test_a_refusal_waits_for_what_is_open() -> None:
    """The first request may be the one whose answer is on its way."""
    exchange = Exchange().after_sending().after_silence().after_sending()
    refused = exchange.after_reply(Reply.REFUSED)
    assert refused.next_step(may_send=True) is Step.OUTWAIT
    assert refused.is_refused
    assert not refused.after_reply(Reply.GRANTED).is_refused


@pytest.mark.parametrize(
    ("replies", "is_in_doubt"),
    [
        ([Reply.GRANTED], False),
        ([Reply.GRANTED, Reply.GRANTED], False),
        ([Reply.GRANTED, Reply.REFUSED], False),
        ([Reply.GRANTED, Reply.SILENT], True),
        ([Reply.SILENT, Reply.GRANTED], True),
        ([Reply.GRANTED, Reply.FAILED], True),
        ([Reply.FAILED, Reply.GRANTED], True),
    ],
)
def test_overlapping_requests_leave_doubt(replies: list[Reply], is_in_doubt: bool) -> None:
    """Of two requests at once, the one that was never heard of may be what Slack did last."""
    hearing = Hearing()
    for _ in replies:
        hearing.start()
    for reply in replies:
        hearing.end(reply)
    assert hearing.is_in_doubt is is_in_doubt


def test_requests_one_after_the_other_leave_none() -> None:
    """What failed before the next was sent cannot have come after it."""
    hearing = Hearing()
    for reply in (Reply.FAILED, Reply.GRANTED):
        hearing.start()
        hearing.end(reply)
    assert not hearing.is_in_doubt


def test_what_a_holder_before_sent_leaves_doubt() -> None:
    """Its request may be done after ours, whatever is heard of ours."""
    hearing = Hearing(is_unheard=True)
    hearing.start()
    hearing.end(Reply.GRANTED)
    assert hearing.is_in_doubt


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Quality.GOOD),
        ({"team_id": ""}, Quality.GOOD),
        ({"token_type": "user"}, Quality.ODD),
        ({"expires_in_s": None}, Quality.ODD),
        ({"expires_in_s": 60}, Quality.ODD),
        ({"team_id": "T0OTHER"}, Quality.FOREIGN),
        ({"enterprise_id": "E0OTHER"}, Quality.FOREIGN),
        ({"app_id": "A0OTHER"}, Quality.FOREIGN),
    ],
)
def test_the_worth_of_an_answer(changes: dict[str, Any], expected: Quality) -> None:
    """Odd answers are kept; another installation's are not."""
    assert judge_quality(replace(GOOD, **changes), BOT, KEY) is expected


def test_a_users_answer_is_that_users() -> None:
    """User and bot chains are never mixed up."""
    chain = replace(BOT, user_id="U0MIA")
    mine = replace(GOOD, token_type="user", user_id="U0MIA")
    assert judge_quality(mine, chain, KEY) is Quality.GOOD
    assert judge_quality(replace(mine, user_id="U0BEN"), chain, KEY) is Quality.FOREIGN
    assert judge_quality(GOOD, chain, KEY) is Quality.ODD


@given(st.one_of(st.none(), st.integers(-(10**15), 10**15)))
def test_a_life_is_more_than_a_minute_and_at_most_a_day(seconds: int | None) -> None:
    """Whatever number Slack says, no token is taken to live for longer than a day."""
    life = life_of(replace(GOOD, expires_in_s=seconds))
    assert life is None or timedelta(minutes=1) < life <= timedelta(days=1)


def test_the_newest_living_candidate_takes_the_place_of_a_dead_pair() -> None:
    """A living pair stays; with nothing alive nothing changes."""
    for current, first, second in product([True, False], repeat=3):
        expected = None if current or not (first or second) else int(second)
        assert choose(current, [first, second]) == expected


def test_pauses_grow_to_five_minutes() -> None:
    """Slack's long outages are not met with a flood."""
    pauses = [backoff(failures).total_seconds() for failures in range(1, 9)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (1, 300)


@given(st.uuids())
def test_workspaces_come_due_apart(number: UUID) -> None:
    """The soft limit is spread over half an hour, the same in every process."""
    chain = Chain(InstallationId(number))
    assert timedelta(0) <= jitter_of(chain) < JITTER
    assert jitter_of(chain) == jitter_of(replace(chain, user_id="U0MIA"))
