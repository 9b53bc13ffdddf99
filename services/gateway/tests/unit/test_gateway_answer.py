"""Claims about what is said in Slack: harmless, within limits, and honest."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_chassis.secret import Secret
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import (
    Choice,
    Neutraliser,
    Project,
    Source,
    escape,
    footer,
    neutralise,
    open_fence,
    picker_note,
    split_page,
)

JOINER = "\u2060"

HARMFUL = (
    "<!channel>",
    "<!here>",
    "<!subteam^S123|everyone>",
    "<@U123ABC>",
    "<#C123ABC>",
    "<https://evil.example|your bank>",
    "<mailto:a@evil.example|you>",
    "@channel",
    "@here",
    "@everyone",
    "[your bank](https://evil.example)",
    "![pixel](https://evil.example/?leak=1)",
    "[a]: https://evil.example",
    "&lt;!here&gt;",
    "&#60;@U123ABC&#62;",
)
# What Slack or Markdown would act upon.
LIVE = ("<!", "<@", "<#", "<https:", "<mailto:", "](", "]:", "@channel", "@here", "@everyone")


def is_live(text: str) -> bool:
    """Tell whether a text still holds something that acts."""
    decoded = text.replace("&lt;", "<").replace("&#60;", "<").lower()
    return any(sign in decoded for sign in LIVE)


def in_pieces(text: str, cuts: list[int]) -> str:
    """Neutralise a text that arrives cut at some places."""
    neutraliser = Neutraliser()
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    said = [neutraliser.feed(text[start:end]) for start, end in pairwise(edges)]
    return "".join(said) + neutraliser.finish()


@pytest.mark.parametrize("harmful", HARMFUL)
def test_harmful_markup_is_defused_wherever_it_is_cut(harmful: str) -> None:
    """Mentions, announcements, labelled links and images do nothing, at any cut."""
    text = f"Hello {harmful} and more"
    assert is_live(text)
    whole = neutralise(text)
    assert not is_live(whole)
    for cut in range(len(text) + 1):
        assert in_pieces(text, [cut]) == whole
    assert in_pieces(text, list(range(len(text)))) == whole


@given(st.text(alphabet="<>@#!]([)|:&;lthereUchannelps/ \n", max_size=60), st.lists(st.integers(0)))
def test_no_text_stays_live(text: str, cuts: list[int]) -> None:
    """Whatever is written from these characters, and however it arrives, nothing acts."""
    assert not any(sign in in_pieces(text, cuts).lower() for sign in ("<!", "<@", "<#", "](", "]:"))
    assert in_pieces(text, cuts) == neutralise(text)


def test_ordinary_markdown_stays_as_it_is() -> None:
    """Emphasis, code, lists, comparisons, bare addresses and e-mails are left alone."""
    text = "**bold** `a[0] < b` 1 << 2, x<y> [x] a@b.example https://good.example (see) #1\n- é 🎉"
    assert neutralise(text) == text


def test_link_shows_where_it_leads() -> None:
    """A label and its address both stay readable, the address in plain sight."""
    assert neutralise("[your bank](https://evil.example)") == "[your bank] (https://evil.example)"


def test_invisible_characters_are_removed() -> None:
    """Control characters and those that turn the direction of writing are dropped."""
    assert neutralise("a\x00b\x1b[31m\u202ecod\u200b") == "ab[31mcod"
    assert neutralise("👩\u200d💻\n\t") == "👩\u200d💻\n\t"


def test_harmless_text_is_not_held_back() -> None:
    """Only what may become harmful waits for the next piece."""
    neutraliser = Neutraliser()
    assert neutraliser.feed("Hello world") == "Hello world"
    assert neutraliser.feed(" <") == " "
    assert neutraliser.feed("3") == "<3"
    assert neutraliser.feed("@he") == ""
    assert neutraliser.finish() == "@he"


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("short", 10, ("short", "")),
        ("one\n\ntwo three", 10, ("one\n\ntwo ", "three")),
        ("aaaa bbbb cccc", 10, ("aaaa bbbb ", "cccc")),
        ("aaaaaaa\n\nbbb", 11, ("aaaaaaa\n\n", "bbb")),
        ("aaaaaaa\nbbb c", 11, ("aaaaaaa\n", "bbb c")),
        ("a" * 12, 10, ("a" * 10, "aa")),
    ],
)
def test_page_ends_at_a_good_place(text: str, room: int, expected: tuple[str, str]) -> None:
    """After a paragraph, else a line, else a word, else hard; nothing is lost."""
    head, tail = split_page(text, room)
    assert (head, tail) == expected
    assert head + tail == text


@given(st.text(max_size=200), st.integers(1, 50))
def test_split_pages_lose_nothing(text: str, room: int) -> None:
    """Every page has room, gets on, and the pages together are the text."""
    pages, rest = [], text
    while rest:
        head, rest = split_page(rest, room)
        assert 0 < len(head) <= room
        pages.append(head)
    assert "".join(pages) == text


def test_open_code_block_is_noticed() -> None:
    """A fence left open is found with its language and marker; a closed one is not."""
    assert open_fence("text\n```python\nx = 1\n") == ("```python", "```")
    assert open_fence("```\na\n```\nb") == ("", "")
    assert open_fence("~~~~sql\n```\n") == ("~~~~sql", "~~~~")
    assert open_fence("no `code` here") == ("", "")


def test_sources_show_their_hosts() -> None:
    """At most ten, http and https only, each with its host beside the foreign title."""
    sources = [Source(f"Page {number}", f"https://docs.example/{number}") for number in range(12)]
    blocks = footer("Helper", sources)
    elements = blocks[1]["elements"]
    assert len(elements) == answer.MAX_SOURCES
    assert elements[0]["text"] == "<https://docs.example/0|Page 0 (docs.example)>"


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "https://good.example@evil.example/",
        "https://a.example/|label>",
        "https://a.example/ b",
        "https://[broken",
        "slack://open",
        "//a.example",
        "https://a.example/" + "x" * 3000,
    ],
)
def test_odd_source_is_left_out(url: str) -> None:
    """An address that could mislead, or break out of the link, is not shown."""
    assert len(footer("Helper", [Source("Title", url)])) == 1


def test_foreign_names_cannot_mark_up() -> None:
    """Names of agents, projects and accounts are shown as text."""
    name = "<!here> *x*\n\x00"
    assert answer.linked_note(name).text.count("&lt;!here&gt;") == 1
    assert footer(name, [])[0]["elements"][0]["type"] == "plain_text"
    assert escape("a & <b>", 20) == "a &amp; &lt;b&gt;"
    assert len(escape("x" * 500, 20)) == 20


def test_picker_offers_positions_grouped_by_project() -> None:
    """Option values are positions, so that no id is too long for Slack."""
    projects = [
        Project("Empty", []),
        Project("One", [Choice("p" * 200, "a" * 200, "A"), Choice("p", "b", "")]),
        Project("Two", [Choice("q", "c", "C" * 200)]),
    ]
    note = picker_note(projects, "Ev1")
    actions = note.blocks[1]
    assert answer.picked_question(actions["block_id"]) == "Ev1"
    groups = actions["elements"][0]["option_groups"]
    values = [option["value"] for group in groups for option in group["options"]]
    assert values == ["0", "1", "2"]
    assert [group["label"]["text"] for group in groups] == ["One", "Two"]
    assert max(len(option["text"]["text"]) for option in groups[1]["options"]) == 75
    assert [choice.agent_id for choice in answer.choices_of(projects)] == ["a" * 200, "b", "c"]


def test_link_is_a_secret_until_it_is_sent() -> None:
    """The note holds the link as a Secret, which JSON and print refuse."""
    note = answer.link_note(Secret("https://app.example/link?code=s3cret"))
    assert "s3cret" not in repr(note)
    with pytest.raises(TypeError):
        json.dumps(note.blocks)


@pytest.mark.parametrize("reason", ["SLACK_STRANGER", "AGENT_NOT_ALLOWED", "NO_LONGER_A_MEMBER"])
def test_refusal_says_what_to_do(reason: str) -> None:
    """A person reads words, not a reason code; only unknown ones are named."""
    assert reason not in answer.failure_text(reason)
    assert "`NEW_REASON`" in answer.failure_text("NEW_REASON")


def test_failed_run_shows_the_platforms_words_harmlessly() -> None:
    """The detail is quoted on one line, cut and defused."""
    words = answer.run_failure("failed", "agent_failed", "no <!here>\nmodel " + "x" * 900)
    assert words.startswith("**The agent failed** (`AGENT_FAILED`): no <" + JOINER + "!here> model")
    assert len(words) < 600
    assert "`EVIL`" in answer.run_failure("limit_reached", "`e*v*i*l`", "")
