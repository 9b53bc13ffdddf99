"""The pages, as templates in this package, and the files that they load."""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from importlib import resources

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from interlock_gateway.edge import paths
from interlock_gateway.edge.ports import Person
from interlock_gateway.edge.problems import Problem

# Enough to recognise a name; whoever chose a longer one wanted to fill the page.
MAX_SHOWN_CHARS = 80
# Version in the query, so a file may be kept for as long as anything may be kept.
_STATIC_CACHING = "public, max-age=31536000, immutable"
_MEDIA_TYPES = {".css": "text/css", ".svg": "image/svg+xml"}
_BETWEEN_WORDS = re.compile(r"(?<=[_./])(?=\w)|(?<=[a-z])(?=[A-Z])")
# Control and format characters; the latter include the ones that turn text around.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs"})


@dataclass(frozen=True, slots=True)
class Viewer:
    """Around every page: whose it is.

    Attributes:
        person: Who is signed in; None for nobody.
        switch_url: Where to sign in as somebody else.
    """

    person: Person | None
    switch_url: str


class Pages:
    """Render pages and serve their files, from memory.

    Args:
        public_url: Where the browser finds us, for links in problem pages.
    """

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url
        self._files = _read_static()
        self._templates = Environment(
            loader=PackageLoader("interlock_gateway.edge", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "shown": shown,
            "breakable": _breakable,
            "instant": _instant,
            "day": _day,
        }
        self._templates.globals |= {"home": paths.HOME, "static": self._static_url}

    def render(
        self,
        template: str,
        viewer: Viewer | None,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        **values: object,
    ) -> web.Response:
        """Make a page."""
        text = self._templates.get_template(template).render(viewer=viewer, **values)
        return web.Response(status=status, text=text, content_type="text/html")

    def render_problem(
        self,
        problem: Problem,
        *,
        request_id: str,
        viewer: Viewer | None = None,
        sign_in_url: str = "",
    ) -> web.Response:
        """Make the page of a problem.

        Args:
            problem: What went wrong.
            request_id: What an operator finds the log lines by.
            viewer: Who is signed in, where that is known.
            sign_in_url: Where to sign in, when that would help.
        """
        return self.render(
            "problem.html",
            viewer,
            status=problem.status,
            problem=problem,
            request_id=request_id,
            sign_in_url=sign_in_url,
            home_url=self._public_url + paths.HOME,
        )

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the files."""
        return [
            web.get(paths.STATIC + "/{name}", self._serve_file),
            # Where browsers look without being told.
            web.get("/favicon.ico", self._serve_icon),
        ]

    async def _serve_file(self, request: web.Request) -> web.Response:
        return self._file(request.match_info["name"])

    async def _serve_icon(self, _request: web.Request) -> web.Response:
        return self._file("icon.svg")

    def _file(self, name: str) -> web.Response:
        content = self._files.get(name)
        if content is None:
            raise web.HTTPNotFound
        suffix = name[name.rindex(".") :]
        headers = {"Content-Type": _MEDIA_TYPES[suffix], "Cache-Control": _STATIC_CACHING}
        return web.Response(body=content, headers=headers)

    def _static_url(self, name: str) -> str:
        digest = hashlib.sha256(self._files[name]).digest()
        version = base64.urlsafe_b64encode(digest[:9]).decode()
        return f"{paths.STATIC}/{name}?v={version}"


def shown(text: str) -> str:
    """Cut a text that somebody else chose, and take its invisible characters away."""
    visible = "".join(each for each in text if unicodedata.category(each) not in _INVISIBLE)
    line = " ".join(visible.split())
    return line if len(line) <= MAX_SHOWN_CHARS else line[: MAX_SHOWN_CHARS - 1] + "…"


def _breakable(text: str) -> Markup:
    """Show an identifier so that it may break between its words."""
    words = _BETWEEN_WORDS.split(shown(text))
    return Markup("<wbr>").join(words)


def _read_static() -> Mapping[str, bytes]:
    folder = resources.files("interlock_gateway.edge") / "static"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def _instant(value: datetime) -> Markup:
    """Show an instant to the second, in UTC, and to machines."""
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{} <span class="clock">{}</span></time>').format(
        utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        _date(utc),
        utc.strftime("%H:%M:%S"),
    )


def _day(value: datetime) -> Markup:
    """Show an instant as its day, with the time for whoever points at it."""
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        utc.isoformat(timespec="seconds").replace("+00:00", "Z"),
        utc.strftime("%Y-%m-%d %H:%M"),
        _date(utc),
    )


def _date(utc: datetime) -> str:
    return f"{utc.day} {utc.strftime('%b %Y')}"
