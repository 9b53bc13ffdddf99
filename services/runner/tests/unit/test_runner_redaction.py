"""No token leaves the runner in a text, however the platform cuts it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from interlock_runner.domain.events import (
    Approval,
    Finished,
    Outcome,
    RunEvent,
    Source,
    Started,
    Text,
    Tool,
    ToolState,
)
from interlock_runner.domain.redaction import (
    MARK,
    MAX_DETAIL_CHARS,
    MAX_HELD_CHARS,
    EventRedactor,
    Redactor,
)

# Put together so that scanners of this repository see no token.
TOKEN = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJ1c2VyXzEifQ" + ".c2lnbmF0dXJl-_x"
OTHER_JWT = "eyJ0eXAiOiJKV1QifQ" + ".eyJhIjoxfQ" + ".AAAA"
SLACK_TOKENS = [
    "xoxb-" + "123456789012-abcDEF",
    "xoxe.xoxp-" + "1-Mi0xLTEyMzQ1",
    "xoxe-" + "1-My0xLTEyMzQ1",
    "xapp-" + "1-A0LOCK-12345",
]
DONE = Finished(Outcome.COMPLETED)


def show(pieces: list[str], token: str = TOKEN) -> str:
    """Pass the pieces of an answer through; return what a reader sees."""
    redactor = EventRedactor(Redactor(token))
    events: list[RunEvent] = [*map(Text, pieces), DONE]
    shown = [seen for event in events for seen in redactor.redact(event)]
    assert shown[-1] == DONE
    assert all(event.text for event in shown if isinstance(event, Text))
    return "".join(event.text for event in shown if isinstance(event, Text))


def cut(text: str, cuts: list[int]) -> list[str]:
    """Cut a text at some places."""
    places = [0, *sorted(at % (len(text) + 1) for at in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(
    before=st.text(alphabet="abe xyJo.-_\n", max_size=12),
    secret=st.sampled_from([TOKEN, OTHER_JWT, *SLACK_TOKENS]),
    after=st.sampled_from(["", " and more", "\n", ", e"]),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_a_token_cut_into_pieces_is_not_shown(
    before: str, secret: str, after: str, cuts: list[int]
) -> None:
    """Wherever the platform cuts a token, the reader sees a mark in its place."""
    shown = show(cut(f"{before}{secret}{after}", cuts))
    assert secret not in shown
    assert MARK in shown


@given(text=st.text(alphabet="abe xyJho.-_\n", max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_ordinary_text_arrives_unchanged(text: str, cuts: list[int]) -> None:
    """Text without a token is shown to the last character, whatever its pieces look like."""
    if Redactor(TOKEN).redact(text) == text:
        assert show(cut(text, cuts)) == text


@given(
    token=st.text(alphabet="ab.", min_size=1, max_size=6),
    text=st.text(alphabet="ab. ", max_size=40),
    cuts=st.lists(st.integers(0, 40)),
)
def test_the_token_of_the_call_need_not_look_like_one(
    token: str, text: str, cuts: list[int]
) -> None:
    """The call's own token is found by its value, in every overlap and cut."""
    assert token not in show(cut(text, cuts), token).replace(MARK, "\n")


def test_ordinary_text_is_not_held_back() -> None:
    """An answer streams: only what may begin a token waits for the next piece."""
    redactor = EventRedactor(Redactor(TOKEN))
    assert list(redactor.redact(Text("Hello"))) == [Text("Hello")]
    assert list(redactor.redact(Text(", see ey"))) == [Text(", see ")]
    assert list(redactor.redact(Text("es"))) == [Text("eyes")]


def test_an_endless_beginning_is_not_collected_for_ever() -> None:
    """What stays the beginning of a token for longer than any token is replaced."""
    redactor = EventRedactor(Redactor(TOKEN))
    shown = [seen for _ in range(20) for seen in redactor.redact(Text("eyJ" * 200))]
    assert "".join(event.text for event in shown if isinstance(event, Text)).startswith(MARK)
    assert len(Redactor(TOKEN).split("eyJ" + "a" * MAX_HELD_CHARS)[1]) == 0


def test_every_text_of_every_event_is_redacted() -> None:
    """Names, ids, titles, URLs and the platform's last words hold no token either."""
    events: list[RunEvent] = [
        Started(),
        Tool(TOKEN, f"tool {TOKEN}", ToolState.STARTED),
        Approval(TOKEN, TOKEN, TOKEN),
        Source(TOKEN, f"https://example.com/?t={TOKEN}"),
        Finished(Outcome.FAILED, "AGENT_FAILED", f"bad token {TOKEN}"),
    ]
    redactor = EventRedactor(Redactor(TOKEN))
    shown = [seen for event in events for seen in redactor.redact(event)]
    assert len(shown) == len(events)
    assert TOKEN not in repr(shown)


def test_the_last_words_are_cut_after_the_tokens_are_gone() -> None:
    """A cut in the middle of a token must not leave its first half."""
    detail = "x" * (MAX_DETAIL_CHARS - 20) + TOKEN
    (shown,) = EventRedactor(Redactor(TOKEN)).redact(Finished(Outcome.FAILED, "R", detail))
    assert isinstance(shown, Finished)
    assert shown.detail.endswith(MARK)
    assert len(shown.detail) <= MAX_DETAIL_CHARS


def test_text_held_back_comes_before_the_end() -> None:
    """The end is the last event, and nothing of the answer is lost before it."""
    redactor = EventRedactor(Redactor(TOKEN))
    assert list(redactor.redact(Text("the eyJ"))) == [Text("the ")]
    assert list(redactor.redact(DONE)) == [Text("eyJ"), DONE]


def test_a_redactor_never_shows_what_it_looks_for() -> None:
    """Its picture holds no token."""
    assert TOKEN not in f"{Redactor(TOKEN)!r} {Redactor(TOKEN)}"
