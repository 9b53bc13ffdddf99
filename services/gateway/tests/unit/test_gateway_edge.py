"""Edge's small decisions: form tokens, admission, shown names, addresses."""

import hashlib
import hmac
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from interlock_chassis.errors import ConfigError, Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_gateway.adapters.edge_keys import HmacKeys
from interlock_gateway.edge.csrf import CsrfTokens, FormRefused, require_own_page
from interlock_gateway.edge.http import is_plain_path
from interlock_gateway.edge.linking import LinkCodeUnusable, Linking, Receipt, TooManyAttempts
from interlock_gateway.edge.pages import MAX_SHOWN_CHARS, shown
from interlock_gateway.edge.ports import (
    Identity,
    Person,
    Redeemed,
    Role,
    SessionProof,
    Worker,
    Workspace,
)
from interlock_gateway.edge.problems import BY_REASON, BY_SLACK_ERROR, INTERNAL, problem_of
from interlock_gateway.edge.web import Addresses

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
OWN = "https://interlock.example"


@dataclass
class _Clock:
    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def _mac(message: bytes) -> bytes:
    return hmac.digest(b"k" * 32, message, hashlib.sha256)


# Form tokens.


def test_a_form_token_counts_for_its_session_and_action_for_twelve_hours() -> None:
    """What was shown is what may be sent, until the day is over."""
    clock = _Clock()
    tokens = CsrfTokens(_mac, clock)
    token = tokens.issue("session", "install")
    tokens.verify(token, "session", "install")
    for session, action in (("other", "install"), ("session", "unlink"), ("sessioni", "nstall")):
        with pytest.raises(FormRefused):
            tokens.verify(token, session, action)
    clock.at = NOW + timedelta(hours=12)
    with pytest.raises(FormRefused):
        tokens.verify(token, "session", "install")


@given(st.text(max_size=70))
def test_no_made_up_form_token_counts(token: str) -> None:
    """Whatever is sent instead of a token is refused, and nothing else is raised."""
    with pytest.raises(FormRefused):
        CsrfTokens(_mac, _Clock()).verify(token, "session", "install")


def test_another_key_makes_no_form_token() -> None:
    """A token of another installation is refused."""
    theirs = CsrfTokens(lambda message: hashlib.sha256(message).digest(), _Clock())
    with pytest.raises(FormRefused):
        CsrfTokens(_mac, _Clock()).verify(theirs.issue("s", "a"), "s", "a")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": OWN},
        {"Origin": OWN, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_our_own_page_is_believed(headers: dict[str, str]) -> None:
    """Pages without a referrer hide their origin; then Sec-Fetch-Site vouches."""
    require_own_page(headers, OWN)


# Secrets.


@pytest.mark.parametrize(
    "secret", ["", " " * 20, "short", "with white space in it", "a" * 20 + "\n"]
)
def test_a_weak_key_stops_the_start(secret: str) -> None:
    """EV-24: no request is ever verified with an empty or mistyped key."""
    with pytest.raises(ConfigError) as refused:
        HmacKeys(Secret(secret), variable="INTERLOCK_X_FILE")
    assert refused.value.variable == "INTERLOCK_X_FILE"


def test_macs_are_of_every_key_in_order() -> None:
    """The newest key signs; all of them verify."""
    keys = HmacKeys(Secret("n" * 20), Secret("o" * 20), variable="X")
    new, old = (hmac.digest(key * 20, b"m", hashlib.sha256) for key in (b"n", b"o"))
    assert keys.macs(b"m") == (new, old)
    assert keys.mac(b"m") == new


# Linking.


ACME = Workspace(
    workspace_id="wsw_1",
    slack_team_id="T0ACME",
    slack_enterprise_id="",
    is_enterprise_install=False,
    name="Acme",
    status="active",
    created_at=NOW,
    linked_users=0,
)
ANN = Person("u_ann", "Ann", "ann@acme.example", "acme", "Acme", Role.MEMBER, "session-of-ann")
PROOF = SessionProof(Secret("cookie=ann"), "192.0.2.1")


class _Redeeming(Identity):
    """Identity that redeems whatever it is given."""

    async def redeem_link_code(
        self, proof: SessionProof, code: Secret[str], *, email_difference_confirmed: bool
    ) -> Redeemed:
        return Redeemed(Secret("resume-grant"), ACME, "U0ANN", was_linked=False)


@dataclass
class _Worker(Worker):
    answer: Callable[[], bool]

    async def resume_after_link(self, grant: Secret[str]) -> bool:
        return self.answer()


@dataclass
class _Attempts:
    counted: dict[str, int] = field(default_factory=dict)

    async def count(self, key: str) -> int:
        self.counted[key] = self.counted.get(key, 0) + 1
        return self.counted[key]


def _unavailable() -> bool:
    raise RemoteError(Kind.UNAVAILABLE, "PEER_UNAVAILABLE")


def _linking(answer: Callable[[], bool] = lambda: True) -> tuple[Linking, _Attempts]:
    attempts = _Attempts()
    identity = _Redeeming()  # type: ignore[abstract]  # Only what redeeming needs.
    worker = _Worker(answer)  # type: ignore[abstract]  # Only what resuming needs.
    linking = Linking(identity=identity, worker=worker, attempts=attempts, on_guessing=lambda: None)
    return linking, attempts


@pytest.mark.parametrize(
    ("answer", "is_answering"), [(lambda: True, True), (lambda: False, False), (_unavailable, None)]
)
async def test_the_link_stands_whatever_the_worker_says(
    answer: Callable[[], bool], is_answering: bool | None
) -> None:
    """A lost ask to resume is told apart from no question at all."""
    linking, _ = _linking(answer)
    linked = await linking.redeem(PROOF, ANN, "c" * 43, email_difference_confirmed=False)
    assert linked.is_answering is is_answering


async def test_redeems_are_counted_per_session_and_per_address() -> None:
    """LK-12: ten a minute of one session, thirty of one address; keys name nobody."""
    linking, attempts = _linking()
    for number in range(30):
        person = Person("u", "", "", "acme", "", Role.MEMBER, f"session-{number}")
        await linking.redeem(PROOF, person, "c" * 43, email_difference_confirmed=False)
    with pytest.raises(TooManyAttempts) as refused:
        await linking.redeem(PROOF, ANN, "c" * 43, email_difference_confirmed=False)
    assert refused.value.retry_after == timedelta(minutes=1)
    assert not any("session" in key or "192.0" in key for key in attempts.counted)


@pytest.mark.parametrize("code", ["", "short", "a" * 129, "ä" * 43, "a b" * 15, "a" * 42 + "\n"])
async def test_what_cannot_be_a_code_is_not_counted(code: str) -> None:
    """A malformed code costs no attempt and no call."""
    linking, attempts = _linking()
    with pytest.raises(LinkCodeUnusable):
        await linking.redeem(PROOF, ANN, code, email_difference_confirmed=True)
    assert attempts.counted == {}


# What is shown.


@given(st.text())
def test_a_shown_name_is_one_short_visible_line(name: str) -> None:
    """LK-14: no control character, nothing that turns text around, at most 80 characters."""
    line = shown(name)
    assert len(line) <= MAX_SHOWN_CHARS
    assert not set(line) & set("\n\r\t\x00\u202e\u2066\u200b\ufeff")


def test_an_error_nobody_foresaw_is_a_fault_of_ours() -> None:
    """A reason without a page does not show the peer's text."""
    assert problem_of(RemoteError(Kind.CONFLICT, "SOMETHING_NEW", "canary")) is INTERNAL
    assert problem_of(RemoteError(Kind.UNAVAILABLE, "SOMETHING_NEW")).status == 503


def test_every_problem_says_what_happened_and_what_it_means() -> None:
    """No page is without a title and a text, and none runs on."""
    for problem in (*BY_REASON.values(), *BY_SLACK_ERROR.values()):
        assert problem.title
        assert not problem.title.endswith(".")
        assert problem.text.endswith(".")
        assert len(problem.text) < 250


# Addresses.


@pytest.mark.parametrize(
    ("target", "is_plain"),
    [
        ("/", True),
        ("/work-apps/slack/", True),
        ("/work-apps/slack/workspaces/wsw_1/audit.json?page=a%2Fb", True),
        ("//work-apps/slack/", False),
        ("/work-apps//slack", False),
        ("/work-apps/../slack", False),
        ("/work-apps/.hidden", False),
        ("/work-apps/%73lack", False),
        ("/work-apps/slack;a=b", False),
        ("https://interlock.example/", False),
        ("*", False),
        ("", False),
    ],
)
def test_only_a_path_with_one_reading_is_taken(target: str, is_plain: bool) -> None:
    """HT-02: what a proxy might normalise is nowhere."""
    assert is_plain_path(target) is is_plain


def test_the_policy_lets_forms_end_at_slack_and_at_the_auth_server() -> None:
    """Browsers check redirects after a form; Slack passes installs on to workspace hosts."""
    addresses = Addresses(
        public=URL("https://interlock.example"),
        auth=URL("https://auth.example/base"),
        slack=URL("https://slack.com"),
    )
    policy = addresses.content_security_policy()
    assert policy.endswith(
        "form-action 'self' https://slack.com https://auth.example https://*.slack.com"
    )
    assert addresses.hosts == {"interlock.example", "interlock.example:443"}


@given(
    name=st.text(max_size=80),
    ids=st.lists(st.text(string.ascii_letters + "_", max_size=64), min_size=4, max_size=4),
    was_linked=st.booleans(),
    is_answering=st.none() | st.booleans(),
)
def test_a_receipt_fits_a_cookie_and_comes_back(
    name: str, ids: list[str], *, was_linked: bool, is_answering: bool | None
) -> None:
    """Whatever a workspace is called: plain letters, within what browsers keep, unchanged."""
    code, workspace, team, user = ids
    receipt = Receipt(
        code_sha256=code,
        workspace_id=workspace,
        slack_team_id=team,
        name=name,
        slack_user_id=user,
        was_linked=was_linked,
        is_answering=is_answering,
    )
    text = receipt.to_text()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert len(text) < 3500
    assert Receipt.from_text(text) == receipt
