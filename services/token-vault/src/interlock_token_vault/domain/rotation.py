"""How a chain of credentials moves on, whatever Slack, the network and our processes do.

A refresh token is good for one exchange, and whoever holds the answer may hold
the only living pair. So every answer finds a place, however late it comes:
in the chain, beside it as a candidate, or back at Slack to be revoked.

Everything here is decided from facts and knows no clock: who asks has compared
the database's time already.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum

from interlock_chassis.secret import Secret
from interlock_token_vault.domain.installation import (
    DekId,
    InstallationId,
    InstallationKey,
    TokenKind,
    TokenRef,
)

LEASE = timedelta(seconds=60)
"""How long the right to exchange lasts; a dead holder keeps others out no longer."""

SOFT_LIMIT = timedelta(hours=2)
"""How long before its end a token is refreshed, by whoever comes round."""

JITTER = timedelta(minutes=30)
"""How far the soft limits of workspaces installed together are spread."""

HARD_LIMIT = timedelta(minutes=5)
"""How long before its end a token is not given out any more: who got it still wants to use it."""

PENDING_INSTALL_PAUSE = timedelta(minutes=10)
"""How long an install of the same tenant that is not activated yet stops the old chain."""

MOST_CANDIDATES = 8
"""How many pairs are kept beside a chain; the oldest make room. Two is a crowd."""

# A rotated token lives 43,200 s, always (Slack's rotation guide).
_LEAST_LIFE_S = 60
_MOST_LIFE = timedelta(hours=24)
# Slack forgives a used refresh token for a short time that it does not name: what
# has not answered by its third request is not going to.
_MOST_SILENT_REQUESTS = 3
_MOST_REQUESTS = 6
# The first repeat comes at once; Slack's own troubles last a little longer.
_REST_S = (0.0, 0.5, 1.0, 2.0, 4.0)
_BACKOFF_S = (1, 5, 15, 60, 300)


@dataclass(frozen=True, slots=True, order=True)
class Chain:
    """The successive tokens of one bot, or of one user, of an installation.

    Attributes:
        user_id: Slack `U…` or `W…`; empty for the bot's.
    """

    installation_id: InstallationId
    user_id: str = ""

    @property
    def kind(self) -> TokenKind:
        """Whose credential it is."""
        return TokenKind.USER if self.user_id else TokenKind.BOT


class Standing(Enum):
    """Where a chain stands between two exchanges."""

    IDLE = "idle"
    """The stored pair is the newest that is known."""

    SENT = "sent"
    """Its refresh token may have been sent, and whoever sent it was not heard of since.
    Once the lease is over that is a doubt like the next one, and one that the next
    answer does not end: the request may still be on its way to Slack."""

    DOUBTED = "doubted"
    """The pair is the newest that is known, but Slack may have given one that nobody
    heard of, and go on with that. Exchanging it once more tells, so it is due."""

    NEEDS_REINSTALL = "needs_reinstall"
    """Slack takes none of the chain's refresh tokens. Only an install, or an answer
    that was late, goes on from here."""


@dataclass(frozen=True, slots=True)
class ChainState:
    """What the database knows of a chain beside its sealed pair.

    Attributes:
        generation: Of the pair.
        lineage: The generation that the newest install gave; what is older came
            from an install before it.
        refresh_ref: Of the stored refresh token.
        parent_ref: Of the refresh token that the pair was exchanged for; empty
            for a pair that an install gave.
        dek_id: The data key that the pair is sealed under.
        epoch: Number of the newest lease; no two leases of any chain share one.
        candidate_refs: Of the refresh tokens kept beside the pair.
        failures: Exchanges in a row that came to nothing.
    """

    generation: int
    lineage: int
    refresh_ref: TokenRef
    parent_ref: str
    dek_id: DekId
    standing: Standing = Standing.IDLE
    epoch: int = 0
    candidate_refs: tuple[TokenRef, ...] = ()
    failures: int = 0

    @property
    def is_unsettled(self) -> bool:
        """Whether it is to be exchanged however long its token lives."""
        return self.standing in {Standing.SENT, Standing.DOUBTED}


def jitter_of(chain: Chain) -> timedelta:
    """Return how far a chain's soft limit is put off; the same in every process."""
    spread_s = int(JITTER.total_seconds())
    return timedelta(seconds=chain.installation_id.int % 2**32 % spread_s)


# What becomes of a wish to exchange.


class Hindrance(Enum):
    """Why a chain is not exchanged now."""

    CHANGED = "changed"
    """It is not at the generation that was meant, or not under the data key."""

    LEASED = "leased"
    """Somebody is at it."""

    NOT_DUE = "not_due"
    """Its token is good for long enough."""

    RESTING = "resting"
    """Slack, or a failure, asked for a pause."""

    PAUSED = "paused"
    """An install of the same tenant is about to replace it."""

    NEEDS_REINSTALL = "needs_reinstall"
    """There is nothing left to exchange."""

    STOPPED = "stopped"
    """Its tokens are frozen or on hold: they are not used, for a refresh no more than
    for a release."""


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """What the database says of a chain, by its clock."""

    is_leased: bool
    is_due: bool
    is_resting: bool
    is_paused: bool
    is_stopped: bool


def find_hindrance(
    state: ChainState, seen: ChainState, facts: ClaimFacts, *, is_forced: bool
) -> Hindrance | None:
    """Judge a wish to exchange; None gives the lease.

    Args:
        state: What is stored.
        seen: What the wisher has looked at, and will seal the answer by.
        facts: What the database says.
        is_forced: Slack refused the access token, so that it is due whatever its end.
    """
    is_changed = (state.generation, state.refresh_ref, state.dek_id) != (
        seen.generation,
        seen.refresh_ref,
        seen.dek_id,
    )
    is_wanted = facts.is_due or is_forced or state.is_unsettled
    in_the_way = (
        (is_changed, Hindrance.CHANGED),
        (state.standing is Standing.NEEDS_REINSTALL, Hindrance.NEEDS_REINSTALL),
        (facts.is_stopped, Hindrance.STOPPED),
        (facts.is_leased, Hindrance.LEASED),
        (not is_wanted, Hindrance.NOT_DUE),
        (facts.is_resting, Hindrance.RESTING),
        (facts.is_paused, Hindrance.PAUSED),
    )
    return next((hindrance for is_there, hindrance in in_the_way if is_there), None)


# What becomes of an answer.


class Fate(Enum):
    """What a pair that Slack gave is to its chain by now."""

    STORED = "stored"
    """It is the chain's next generation."""

    KEPT_BESIDE = "kept_beside"
    """Another answer came first, or it is not what it should be: it is kept as a candidate."""

    ALREADY = "already"
    """It is there already: an earlier try to store it had succeeded."""

    RESEAL = "reseal"
    """The installation's data key was replaced: seal it under the new one and ask again."""

    OUTDATED = "outdated"
    """An install has replaced the chain it came from."""

    GONE = "gone"
    """The installation is gone; the pair must not live on."""


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """A pair that Slack gave, as far as its place matters.

    Attributes:
        generation: Of the pair that the holder claimed.
        base_ref: The refresh token stored at that time.
        refresh_ref: The new refresh token.
        dek_id: What the new pair is sealed under.
        is_odd: Whether it may be kept, but not served.
        is_doubtful: Whether Slack may have given another pair for the same
            refresh token, of which nobody heard yet.
    """

    generation: int
    base_ref: TokenRef
    refresh_ref: TokenRef
    dek_id: DekId
    is_odd: bool
    is_doubtful: bool


def judge_answer(state: ChainState | None, answer: AnswerFacts) -> Fate:
    """Find an answer's place, by what it was exchanged for and not by who holds the lease.

    A holder that was paused past its lease may have the only living pair.
    """
    if state is None:
        return Fate.GONE
    known = {state.refresh_ref, state.parent_ref, *state.candidate_refs}
    if answer.refresh_ref in known:
        return Fate.ALREADY
    if answer.generation < state.lineage:
        return Fate.OUTDATED
    if answer.dek_id != state.dek_id:
        return Fate.RESEAL
    is_next = (state.generation, state.refresh_ref) == (answer.generation, answer.base_ref)
    return Fate.STORED if is_next and not answer.is_odd else Fate.KEPT_BESIDE


def is_in_doubt(state: ChainState, answer: AnswerFacts, epoch: int) -> bool:
    """Tell whether Slack may go on with another pair than an answer that is stored now.

    Args:
        state: What is stored until then.
        answer: What is stored.
        epoch: Of the lease that it was asked for under. Under a later one the same
            refresh token may have been sent too, and Slack may have done that last.
    """
    return answer.is_doubtful or state.epoch != epoch


def is_end(state: ChainState | None, generation: int, refused: Collection[str]) -> bool:
    """Tell whether Slack's refusal of these refresh tokens is the end of the chain as it is.

    Another answer may have come meanwhile, into the chain or beside it.
    """
    return (
        state is not None
        and state.generation == generation
        and {state.refresh_ref, *state.candidate_refs} <= set(refused)
    )


def backoff(failures: int) -> timedelta:
    """Say how long to leave a chain alone after so many failures in a row, from 1."""
    return timedelta(seconds=_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])


# The requests of one exchange.


class Reply(Enum):
    """How one request ended."""

    GRANTED = "granted"
    """A pair came back."""

    REFUSED = "refused"
    """Slack does not take the refresh token."""

    THROTTLED = "throttled"
    """Slack asks for a pause; nothing happened."""

    FAILED = "failed"
    """Nothing of use came back, quickly; something may have happened."""

    SILENT = "silent"
    """Nothing came back for as long as one waits; something may have happened."""

    BARRED = "barred"
    """Slack does not take the app's own credentials; nothing happened."""


class Step(Enum):
    """What the holder of a lease does next."""

    SEND = "send"
    """Start a request."""

    REST = "rest"
    """Let a moment pass, or an answer come."""

    LISTEN = "listen"
    """Wait for an answer, or for silence that calls for a second request."""

    OUTWAIT = "outwait"
    """Wait for the answers of what is open; start nothing more."""

    END = "end"
    """Nothing is open and nothing more will be sent."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The requests made with one refresh token under one lease.

    Silence is answered by a second request while the first stays open: Slack
    forgives a used token for a short time only, and the first answer may still
    come.

    Attributes:
        sent: Requests started.
        open: Of those, not ended yet.
        failures: Ended without any use, quickly.
        is_called_for: Whether one more should be started.
        replies: How the others ended.
    """

    sent: int = 0
    open: int = 0
    failures: int = 0
    is_called_for: bool = True
    is_rested: bool = True
    replies: frozenset[Reply] = frozenset()

    def next_step(self, *, may_send: bool) -> Step:
        """Decide what comes next.

        Args:
            may_send: The lease lasts long enough, and the process is not ending.
        """
        # After any of these a further request gains nothing.
        is_settled = bool(self.replies - {Reply.FAILED, Reply.SILENT})
        can_send = may_send and not is_settled and self.sent < _MOST_REQUESTS
        if can_send and self.is_called_for:
            return Step.SEND if self.is_rested else Step.REST
        if not self.open:
            return Step.END
        is_second_wanted = can_send and self.sent < _MOST_SILENT_REQUESTS
        return Step.LISTEN if is_second_wanted else Step.OUTWAIT

    @property
    def rest_s(self) -> float:
        """How long to rest before the next request, in seconds."""
        return _REST_S[min(max(self.failures - 1, 0), len(_REST_S) - 1)]

    def after_sending(self) -> "Exchange":
        """Count a request that was started."""
        return replace(self, sent=self.sent + 1, open=self.open + 1, is_called_for=False)

    def after_rest(self) -> "Exchange":
        """Count the pause as taken."""
        return replace(self, is_rested=True)

    def after_silence(self) -> "Exchange":
        """Call for a second request beside those that are open."""
        return replace(self, is_called_for=True)

    def after_reply(self, reply: Reply) -> "Exchange":
        """Count a request that ended."""
        has_failed = reply is Reply.FAILED
        failures = self.failures + has_failed
        return replace(
            self,
            open=self.open - 1,
            failures=failures,
            is_called_for=self.is_called_for or has_failed or reply is Reply.SILENT,
            is_rested=self.is_rested and not (has_failed and failures > 1),
            replies=self.replies | {reply},
        )

    @property
    def is_refused(self) -> bool:
        """Whether Slack has refused this refresh token and gave no pair for it."""
        return Reply.REFUSED in self.replies and Reply.GRANTED not in self.replies


@dataclass(slots=True)
class Hearing:
    """Which of the requests with one refresh token were heard of.

    Of two requests that overlap, either may be the one that Slack did last, and
    Slack may go on with that one's pair only.

    Attributes:
        is_unheard: Whether one was sent, also by a holder before, and never heard of.
    """

    open: int = 0
    is_granted: bool = False
    is_unheard: bool = False

    def start(self) -> None:
        """Count a request that is being sent."""
        self.open += 1

    def end(self, reply: Reply) -> None:
        """Count one that ended."""
        self.open -= 1
        has_overlapped = self.open > 0 or self.is_granted
        if reply is Reply.SILENT or (reply is Reply.FAILED and has_overlapped):
            self.is_unheard = True
        self.is_granted = self.is_granted or reply is Reply.GRANTED

    @property
    def is_in_doubt(self) -> bool:
        """Whether a pair may have been given that nobody heard of."""
        return self.open > 0 or self.is_unheard


# What Slack answers.


@dataclass(frozen=True, slots=True)
class RefreshAnswer:
    """What an exchange answered; texts are empty where it said nothing.

    Attributes:
        expires_in_s: Seconds as Slack said them; None for anything but a whole number.
        user_id: The user of a user's pair.
    """

    token: Secret[str]
    refresh_token: Secret[str]
    expires_in_s: int | None
    token_type: str
    app_id: str
    team_id: str
    enterprise_id: str
    user_id: str = ""


class Quality(Enum):
    """What an answer is worth, before it is stored."""

    GOOD = "good"
    ODD = "odd"
    """Something about it is not as Slack promises. It is kept and not served:
    the refresh token in it may be the chain's only living one."""

    FOREIGN = "foreign"
    """It is another installation's. It is revoked."""


def judge_quality(answer: RefreshAnswer, chain: Chain, key: InstallationKey) -> Quality:
    """Judge an answer by what it says of itself."""
    is_foreign = (
        (answer.app_id and answer.app_id != key.app_id)
        or (answer.team_id and key.team_id and answer.team_id != key.team_id)
        or (answer.enterprise_id and answer.enterprise_id != key.enterprise_id)
        or (answer.user_id and chain.user_id and answer.user_id != chain.user_id)
    )
    if is_foreign:
        return Quality.FOREIGN
    is_good = answer.token_type == chain.kind.value and life_of(answer) is not None
    return Quality.GOOD if is_good else Quality.ODD


def life_of(answer: RefreshAnswer) -> timedelta | None:
    """Return how long a token lives, at most a day; None for what is no life."""
    seconds = answer.expires_in_s
    if seconds is None or seconds <= _LEAST_LIFE_S:
        return None
    return min(timedelta(seconds=min(seconds, 10**6)), _MOST_LIFE)


# Of two pairs, which.


def choose(is_current_alive: bool, are_candidates_alive: Sequence[bool]) -> int | None:
    """Choose the pair to serve, by what `auth.test` said of each access token.

    Returns:
        The place of the candidate to promote; None to stay with the current pair.
    """
    if is_current_alive:
        return None
    # The newest one: where Slack lets one of two live on, it is the later.
    alive = [place for place, is_alive in enumerate(are_candidates_alive) if is_alive]
    return alive[-1] if alive else None
