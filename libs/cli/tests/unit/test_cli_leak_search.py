"""The search for secrets finds them in every disguise it promises, and nothing else."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_cli.leak_search import Finding, LeakSearch

TOKEN = "xoxb-000000000001-0000000000002-f00ba4" + "/+?&="


@pytest.mark.parametrize(
    "planted",
    [
        TOKEN.encode(),
        quote(TOKEN, safe="").encode(),
        TOKEN.encode().hex().encode(),
        TOKEN.encode().hex().upper().encode(),
        base64.b64encode(TOKEN.encode()),
        base64.urlsafe_b64encode(b"x" + TOKEN.encode() + b"yz"),
    ],
    ids=["plain", "percent-encoded", "hex", "HEX", "base64", "base64url"],
)
def test_planted_token_is_found_in_each_disguise(planted: bytes) -> None:
    """A token that leaked in a usual encoding does not get past the search."""
    search = LeakSearch({"bot token": [TOKEN]})
    [found] = search.search("log", b"before " + planted + b" after")
    assert (found.what, found.place) == ("bot token", "log")


@given(before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_token_is_found_inside_a_larger_encoded_text(before: bytes, after: bytes) -> None:
    """Whatever stands around a token, encoding the whole does not hide it."""
    search = LeakSearch({"bot token": [TOKEN]})
    whole = before + TOKEN.encode() + after
    assert search.search("dump", base64.b64encode(whole))
    assert search.search("dump", base64.urlsafe_b64encode(whole))
    assert search.search("dump", whole.hex().encode())


@given(st.binary(max_size=2000))
def test_other_content_raises_no_alarm(content: bytes) -> None:
    """Bytes without the token are not reported."""
    search = LeakSearch({"bot token": [TOKEN]})
    assert search.search("dump", base64.b64encode(content)) == []


def test_finding_never_shows_the_secret() -> None:
    """A report of a leak is not itself one."""
    [found] = LeakSearch({"bot token": [TOKEN]}).search("table", TOKEN.encode())
    assert str(found) == "bot token (plain) in table"
    assert found == Finding("bot token", "plain", "table")


def test_short_secret_is_refused() -> None:
    """A text so short that it would be found by accident is not searched for."""
    with pytest.raises(ValueError, match="code is too short"):
        LeakSearch({"code": ["1234"]})
