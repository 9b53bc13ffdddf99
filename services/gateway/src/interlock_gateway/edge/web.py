"""The HTTP application: one frame around every route.

The frame sets what every answer has — a request id, headers, a log line, a
measurement — and refuses what no route should see: another host, a path that
could be read two ways, plain http.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.logs import describe_exception
from interlock_chassis.telemetry import hop, new_request_id
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import VIEWER, Browser
from interlock_gateway.edge.http import Proxies, RequestRefused, is_plain_path
from interlock_gateway.edge.listener import EdgeProtocol
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.problems import INTERNAL, Problem, problem_of, problem_of_status

# Labels of metrics come from a closed list; a request may name any method.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
_HALF_A_YEAR_S = 15_552_000
_UNMATCHED = "unmatched"
_REQUEST_ID = web.RequestKey("request_id", str)


class WrongHost(ServiceError):
    """The request is for another host."""

    kind = Kind.INVALID
    reason = "WRONG_HOST"


class TlsRequired(ServiceError):
    """The request came over plain http."""

    kind = Kind.INVALID
    reason = "TLS_REQUIRED"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where we are and whom our pages may send a form's answer to.

    Attributes:
        public: Our own origin.
        auth: The auth server.
        slack: Slack's pages.
        nango: Nango's Connect page, where installs go by it.
    """

    public: URL
    auth: URL
    slack: URL
    nango: URL | None = None

    @property
    def hosts(self) -> frozenset[str]:
        """The Host headers that mean us."""
        authority = self.public.host_port_subcomponent or ""
        return frozenset({authority, f"{self.public.host_subcomponent}:{self.public.port}"})

    def content_security_policy(self) -> str:
        """Allow our own style and images, and nothing else.

        Browsers hold the redirect after a form to `form-action` too: an install ends
        at Slack, which passes it on to the workspace's own host, or at Nango, and a
        form whose session is over at the auth server.
        """
        targets = ["'self'", str(self.slack.origin()), str(self.auth.origin())]
        if self.nango is not None:
            targets.append(str(self.nango.origin()))
        if self.slack.scheme == "https":
            targets.append(f"https://*.{self.slack.host_subcomponent}")
        return (
            "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
            f"frame-ancestors 'none'; form-action {' '.join(dict.fromkeys(targets))}"
        )


def make_app(
    *,
    routes: Sequence[web.RouteDef],
    pages: Pages,
    browser: Browser,
    proxies: Proxies,
    metrics: EdgeMetrics,
    addresses: Addresses,
) -> web.Application:
    """Put the routes into the frame."""
    frame = _Frame(
        pages=pages, browser=browser, proxies=proxies, metrics=metrics, addresses=addresses
    )
    app = web.Application(middlewares=[frame.middleware])
    app.on_response_prepare.append(frame.add_headers)
    app.add_routes(routes)
    return app


class _Frame:
    def __init__(
        self,
        *,
        pages: Pages,
        browser: Browser,
        proxies: Proxies,
        metrics: EdgeMetrics,
        addresses: Addresses,
    ) -> None:
        self._pages = pages
        self._browser = browser
        self._proxies = proxies
        self._metrics = metrics
        self._hosts = addresses.hosts
        self._is_https = addresses.public.scheme == "https"
        self._policy = addresses.content_security_policy()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve one request."""
        connection = request.protocol
        if isinstance(connection, EdgeProtocol):
            connection.request_began()
        started = time.monotonic()
        try:
            with hop(" ".join(_name_of(request)), request_id=new_request_id()) as request_id:
                request[_REQUEST_ID] = request_id
                response = await self._answer(request, handler, request_id)
                self._record(request, response.status, time.monotonic() - started)
                return response
        finally:
            if isinstance(connection, EdgeProtocol):
                connection.request_ended()

    async def _answer(
        self, request: web.Request, handler: Handler, request_id: str
    ) -> web.StreamResponse:
        try:
            self._require_ours(request)
            return await handler(request)
        except RequestRefused as error:
            response = self._say(request, problem_of_status(error.status), "REFUSED", request_id)
            if error.status is not HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
                # What is left of the body is not wanted.
                response.force_close()
            return response
        except web.HTTPException as error:
            problem = problem_of_status(HTTPStatus(error.status))
            response = self._say(request, problem, "REFUSED", request_id)
            if allowed := error.headers.get("Allow"):
                response.headers["Allow"] = allowed
            return response
        except ServiceError as error:
            return self._explain(request, error, request_id)
        except Exception as error:  # noqa: BLE001 - The outermost door.
            structlog.get_logger().error("request_failed", cause=describe_exception(error))
            return self._say(request, INTERNAL, "INTERNAL", request_id)

    def _require_ours(self, request: web.Request) -> None:
        """Refuse a request that was meant for somebody else, or hides what it wants."""
        if request.headers.get("Host", "").lower() not in self._hosts:
            raise WrongHost
        if self._is_https and self._proxies.is_plain_http(request):
            raise TlsRequired
        if not is_plain_path(request.raw_path):
            raise web.HTTPNotFound

    def _explain(self, request: web.Request, error: ServiceError, request_id: str) -> web.Response:
        problem = problem_of(error)
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            structlog.get_logger().warning(
                "request_not_served", reason=error.reason, cause=describe_exception(error)
            )
        response = self._say(request, problem, error.reason, request_id)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, round(error.retry_after.total_seconds())))
        return response

    def _say(
        self, request: web.Request, problem: Problem, reason: str, request_id: str
    ) -> web.Response:
        """Answer a program with JSON and a person with a page; neither quotes the request."""
        if request.path.endswith(".json") or request.path in paths.FOR_PROGRAMS:
            content = {"error": reason}
            # Every failure to authenticate has the same bytes; the id is in a header.
            if problem.status is not HTTPStatus.UNAUTHORIZED:
                content["requestId"] = request_id
            return web.json_response(content, status=problem.status)
        if request.path in paths.FOR_SLACK:
            return web.Response(status=problem.status)
        return self._pages.render_problem(
            problem,
            request_id=request_id,
            viewer=request.get(VIEWER),
            sign_in_url=self._sign_in_url(request) if reason in _HELPED_BY_SIGN_IN else "",
        )

    def _sign_in_url(self, request: web.Request) -> str:
        """Lead back to the page that was wanted; a callback or a form is not wanted twice."""
        is_page = request.method == "GET" and not request.query_string
        return self._browser.sign_in_url(request.path if is_page else paths.HOME)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer has, before its first byte."""
        headers = response.headers
        headers["Server"] = "interlock"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Content-Security-Policy"] = self._policy
        headers.setdefault("Cache-Control", "no-store")
        if response.status != HTTPStatus.UNAUTHORIZED:
            # Every 401 is the same, byte for byte.
            headers["X-Request-Id"] = request[_REQUEST_ID]
        if self._is_https:
            headers["Strict-Transport-Security"] = f"max-age={_HALF_A_YEAR_S}"

    def _record(self, request: web.Request, status: int, seconds: float) -> None:
        method, route = _name_of(request)
        self._metrics.seconds.labels(route, method, str(status)).observe(seconds)
        structlog.get_logger().info(
            "request_served",
            route=route,
            method=method,
            status=status,
            elapsed_ms=round(seconds * 1000, 1),
        )


def _name_of(request: web.Request) -> tuple[str, str]:
    """Name a request by its method and route, of which there are few."""
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else _UNMATCHED
    return request.method if request.method in _METHODS else "other", route


_HELPED_BY_SIGN_IN = frozenset(
    {"NOT_SIGNED_IN", "NOT_A_MEMBER", "NOT_YOUR_TENANT", "NOT_YOUR_INSTALL"}
)
