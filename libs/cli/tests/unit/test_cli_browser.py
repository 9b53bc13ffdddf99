"""The browser of the demo reads pages as a person would."""

import pytest
from yarl import URL

from interlock_cli.browser import NotOnPage, Page, read_page

HTML = """
<title>Shop</title><style>p { color: red }</style>
<p>Two &amp; <b>three</b></p>
<a href="/cart?id=1">My <i>cart</i></a>
<form method="post" action="buy">
  <input type="hidden" name="csrf" value="t0ken">
  <input type="radio" name="size" value="s"><input type="radio" name="size" value="m" checked>
  <input type="checkbox" name="gift" value="yes">
  <button name="decision" value="allow">Buy</button><button>Look again</button>
</form>
<script>var secret = "unseen";</script>
"""


def _page(status: int = 200) -> Page:
    return read_page(URL("http://127.0.0.1:1/shop/"), status, HTML)


def test_text_is_what_a_person_reads() -> None:
    """Words come with single spaces and decoded; scripts and styles are not shown."""
    assert _page().require("Two & three").text == "Shop Two & three My cart Buy Look again"


def test_link_is_found_by_its_words_or_its_target() -> None:
    """A link is found however it is described."""
    assert _page().find_link("My cart") == _page().find_link("/cart") == "/cart?id=1"


def test_form_sends_what_is_chosen_at_first_and_offers_the_rest() -> None:
    """Hidden fields and checked choices are sent; buttons and the other choices can be added."""
    form = _page().find_form("/shop/buy")
    assert form.fields == {"csrf": "t0ken", "size": "m"}
    assert form.choices == [
        ("size", "s"),
        ("size", "m"),
        ("gift", "yes"),
        ("decision", "allow"),
    ]


def test_missing_things_are_named_with_the_page() -> None:
    """What is not on a page is said with where and what the page shows instead."""
    with pytest.raises(NotOnPage, match=r"127\.0\.0\.1:1/shop/ \(HTTP 200\) lacks 'Four'.*Two"):
        _page().require("Four")
    with pytest.raises(NotOnPage, match="a form to '/sell'"):
        _page().find_form("/sell")
    with pytest.raises(NotOnPage, match="a link with 'Help'"):
        _page().find_link("Help")


def test_error_page_does_not_pass_for_a_good_one() -> None:
    """A page with the right words but a wrong status is refused."""
    with pytest.raises(NotOnPage, match="HTTP 500"):
        _page(500).require("Two")
