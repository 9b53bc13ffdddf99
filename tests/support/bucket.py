"""A stand-in for an object store over HTTP: what S3 and Cloud Storage's XML API have in common.

One bucket. An object is created once; nobody is asked for a signature, but
whoever sends none, or another key than the one expected, is refused.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web
from yarl import URL

BUCKET = "checkpoints"
ACCESS_KEY = "AKIDEXAMPLE"
_PAGE = 3


@dataclass
class Bucket:
    """The store, and what a test does to it.

    Attributes:
        objects: Content by name.
        refuse_with: Answer every request with this status; 0 for none.
        is_silent: Answer nothing at all.
        loses_answers: Do what is asked, and answer 500.
    """

    url: URL = field(default_factory=URL)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse_with: int = 0
    is_silent: bool = False
    loses_answers: bool = False
    requests: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request."""
        self.requests += 1
        if self.is_silent:
            await asyncio.sleep(3600)
        if self.refuse_with:
            return web.Response(status=self.refuse_with)
        if _signer_of(request.headers.get("Authorization", "")) != ACCESS_KEY:
            return web.Response(status=403)
        bucket, _, name = unquote(request.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            return web.Response(status=404)
        if request.method == "PUT":
            answer = self._put(name, await request.read(), request)
            return web.Response(status=500) if self.loses_answers else answer
        if not name:
            return self._list(request)
        return self._get(name)

    def _put(self, name: str, content: bytes, request: web.Request) -> web.Response:
        is_creating = (
            request.headers.get("If-None-Match") == "*"
            or request.headers.get("x-goog-if-generation-match") == "0"
        )
        if not is_creating:
            return web.Response(status=403, text="this bucket only grows")
        if name in self.objects:
            return web.Response(status=412)
        self.objects[name] = content
        return web.Response(headers=_headers(content))

    def _get(self, name: str) -> web.Response:
        if name not in self.objects:
            return web.Response(status=404)
        content = self.objects[name]
        return web.Response(body=content, headers=_headers(content))

    def _list(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        after = request.query.get("continuation-token", "")
        names = sorted(each for each in self.objects if each.startswith(prefix) and each > after)
        page = names[:_PAGE]
        is_cut = len(names) > len(page)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        rows = "".join(
            f"<Contents><Key>{escape(each)}</Key><LastModified>{now}</LastModified>"
            f"<ETag>{_etag(self.objects[each])}</ETag><Size>{len(self.objects[each])}</Size>"
            "</Contents>"
            for each in page
        )
        more = (
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_cut else ""
        )
        body = (
            f"<ListBucketResult><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
            f"{rows}{more}</ListBucketResult>"
        )
        return web.Response(text=body, content_type="application/xml")


def _signer_of(authorization: str) -> str:
    """Name the key of a request: Amazon's kind says it, Google's is a JWT of the key."""
    kind, _, proof = authorization.partition(" ")
    if kind == "Bearer":
        head = proof.partition(".")[0]
        named = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]
        return str(named)
    found = re.search(r"Credential=([A-Z]+)/", proof)
    return found[1] if found else ""


def _etag(content: bytes) -> str:
    return f'"{sha256(content).hexdigest()}"'


def _headers(content: bytes) -> dict[str, str]:
    return {
        "ETag": _etag(content),
        "x-goog-generation": "1",
        "Last-Modified": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }


@asynccontextmanager
async def serving_bucket() -> AsyncIterator[Bucket]:
    """Serve a bucket on this machine while the block runs."""
    bucket = Bucket()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", bucket.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    bucket.url = URL(f"http://{host}:{port}")
    try:
        yield bucket
    finally:
        await runner.cleanup()
