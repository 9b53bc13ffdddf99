"""Pages made from templates, escaped by default, and the files they load."""

from functools import lru_cache
from http import HTTPStatus
from importlib import resources
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

_CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
FAVICON = "favicon.svg"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("interlock_sandbox", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, *, status: HTTPStatus = HTTPStatus.OK, **names: Any) -> web.Response:
    """Return a page of the sandbox."""
    text = _templates().get_template(template).render(**names)
    return web.Response(text=text, content_type="text/html", status=status)


def file_routes(folder: str) -> list[web.AbstractRouteDef]:
    """Serve the style sheets, scripts and pictures of a folder of this package, by name."""
    files = resources.files("interlock_sandbox") / folder
    return [
        web.get(f"/{folder}/{file.name}", _file_handler(folder, file.name))
        for file in files.iterdir()
        if _suffix(file.name) in _CONTENT_TYPES
    ]


def page_routes() -> list[web.AbstractRouteDef]:
    """Serve what every page of the sandbox loads."""
    # Browsers ask for this name when a document names no icon.
    favicon = web.get("/favicon.ico", _file_handler("static", FAVICON))
    return [*file_routes("static"), favicon]


def send_file(folder: str, name: str) -> web.Response:
    """Return a file of this package."""
    content = (resources.files("interlock_sandbox") / folder / name).read_bytes()
    return web.Response(body=content, content_type=_CONTENT_TYPES[_suffix(name)], charset="utf-8")


def _file_handler(folder: str, name: str) -> Any:
    async def answer(_request: web.Request) -> web.Response:
        return send_file(folder, name)

    return answer


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
