"""As much of a browser as a form needs: cookies, redirects, links and forms."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER})
_TIMEOUT = aiohttp.ClientTimeout(total=30)


class NotOnPage(Exception):
    """A page lacks what a person would look for on it; names the page, shows its text."""


@dataclass
class Form:
    """A form of a page.

    Attributes:
        action: Where it is sent.
        fields: What it sends untouched: hidden fields, and what is chosen at first.
        choices: The values that its buttons, radio buttons and boxes can add.
    """

    action: str
    method: str = "get"
    fields: dict[str, str] = field(default_factory=dict)
    choices: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a browser shows.

    Attributes:
        text: The words a person reads, with single spaces.
        links: Targets of its links, as written, by their words.
    """

    url: URL
    status: int
    text: str
    links: tuple[tuple[str, str], ...]
    forms: tuple[Form, ...]

    def require(self, *texts: str) -> "Page":
        """Return the page if it is good and shows these texts.

        Raises:
            NotOnPage: It is an error page, or a text is not on it.
        """
        for text in texts:
            if text not in self.text:
                raise self._lacks(f"{text!r}")
        if self.status != HTTPStatus.OK:
            raise self._lacks("a good answer")
        return self

    def find_link(self, part: str) -> str:
        """Return the target of the first link whose words or target hold a text.

        Raises:
            NotOnPage: There is none.
        """
        for words, target in self.links:
            if part in words or part in target:
                return target
        raise self._lacks(f"a link with {part!r}")

    def find_form(self, action: str) -> Form:
        """Return the first form whose target's path ends in a text.

        Raises:
            NotOnPage: There is none.
        """
        for form in self.forms:
            if self.url.join(URL(form.action)).path.endswith(action):
                return form
        raise self._lacks(f"a form to {action!r}")

    def _lacks(self, what: str) -> NotOnPage:
        # Queries can hold codes; the path says enough.
        where = f"{self.url.origin()}{self.url.path}"
        return NotOnPage(f"{where} (HTTP {self.status}) lacks {what}; it says: {self.text[:600]}")


class Browser:
    """One person's browser.

    Args:
        session: Keeps the cookies.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def open(self, url: str | URL) -> Page:
        """Go to an address and return the page it leads to."""
        return await self._follow("GET", URL(str(url)), None, None)

    async def submit(self, page: Page, form: Form, choose: Mapping[str, str] | None = None) -> Page:
        """Send a form and return the page it leads to.

        Args:
            page: Where the form is.
            form: One of the page's.
            choose: What to choose or type, by the field's name.

        Raises:
            NotOnPage: The form does not offer one of the choices.
        """
        chosen = dict(choose or {})
        for name, value in chosen.items():
            if name not in form.fields and (name, value) not in form.choices:
                raise NotOnPage(f"the form to {form.action} does not offer {name}={value}")
        target = page.url.join(URL(form.action))
        return await self._follow(form.method.upper(), target, page.url, form.fields | chosen)

    async def call(self, method: str, url: str, body: object) -> dict[str, Any]:
        """Send JSON with the person's cookies, as a program of theirs does; returns the answer.

        Raises:
            NotOnPage: It was refused.
        """
        async with self._session.request(method, url, json=body) as response:
            answer: dict[str, Any] = await response.json()
            if not response.ok:
                raise NotOnPage(f"{url} (HTTP {response.status}) says {answer}")
            return answer

    async def _follow(
        self, method: str, url: URL, sender: URL | None, fields: dict[str, str] | None
    ) -> Page:
        for _ in range(_MAX_REDIRECTS):
            headers = {"Accept": "text/html"}
            if method == "POST" and sender is not None:
                headers |= {"Origin": str(sender.origin()), "Sec-Fetch-Site": _site(sender, url)}
            async with self._session.request(
                method, url, headers=headers, data=fields, allow_redirects=False
            ) as response:
                if response.status not in _REDIRECTS:
                    return read_page(response.url, response.status, await response.text())
                url = response.url.join(URL(response.headers["Location"], encoded=True))
                method, sender, fields = "GET", None, None
        raise NotOnPage(f"{url.origin()}{url.path} redirects in a circle")


@asynccontextmanager
async def open_browser(trusted: str) -> AsyncIterator[Browser]:
    """Open a browser with no cookies.

    Args:
        trusted: An http origin on loopback whose Secure cookies are kept, as
            real browsers do.
    """
    jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=URL(trusted))
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=_TIMEOUT) as session:
        yield Browser(session)


def _site(sender: URL, target: URL) -> str:
    if sender.origin() == target.origin():
        return "same-origin"
    return "same-site" if sender.host == target.host else "cross-site"


def read_page(url: URL, status: int, html: str) -> Page:
    """Read an answer as a browser shows it."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    text = " ".join(" ".join(reader.words).split())
    links = tuple((" ".join(words.split()), target) for words, target in reader.links)
    return Page(url, status, text, links, tuple(reader.forms))


class _Reader(HTMLParser):
    """Collect words, links and forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.forms: list[Form] = []
        self._form: Form | None = None
        self._target: str | None = None
        self._link_words = ""
        self._unread = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        match tag:
            case "a":
                self._target, self._link_words = given.get("href"), ""
            case "form":
                self._form = Form(given.get("action", ""), given.get("method", "get").lower())
                self.forms.append(self._form)
            case "script" | "style":
                self._unread = tag
            case "input" | "button":
                self._take_field(tag, given)
            case _:
                pass

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._target is not None:
            self.links.append((self._link_words, self._target))
            self._target = None
        if tag == "form":
            self._form = None
        if tag == self._unread:
            self._unread = ""

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.words.append(data)
            self._link_words += data

    def _take_field(self, tag: str, given: dict[str, str]) -> None:
        name, value = given.get("name"), given.get("value", "")
        if self._form is None or not name:
            return
        kind = given.get("type", "submit" if tag == "button" else "text")
        if kind in {"submit", "radio", "checkbox"}:
            self._form.choices.append((name, value))
            if kind == "submit" or "checked" not in given:
                return
        self._form.fields[name] = value
