"""The three URLs that Slack calls."""

from collections.abc import Mapping
from http import HTTPStatus

import structlog
from aiohttp import web

from interlock_chassis.errors import Kind, ServiceError
from interlock_gateway.domain.slack_request import (
    Challenge,
    ForeignApp,
    Ignored,
    InvalidSlackSignature,
    RequestKind,
)
from interlock_gateway.edge.admission import Admission, Admitted
from interlock_gateway.edge.http import FORM, JSON, RequestRefused, media_type, read_body
from interlock_gateway.edge.metrics import EdgeMetrics

# Slack's largest requests, views with 250 KB of state, stay well below.
MAX_BODY_BYTES = 1024 * 1024

_PATHS: Mapping[RequestKind, tuple[str, str]] = {
    RequestKind.EVENT: ("/work-apps/slack/events", JSON),
    RequestKind.INTERACTION: ("/work-apps/slack/interactions", FORM),
    RequestKind.COMMAND: ("/work-apps/slack/commands", FORM),
}


class SlackRoutes:
    """Answer Slack: 200 once a request is durable, 503 to be sent it again.

    Nothing of a request is read before its signature is verified, and every
    request that is not Slack's gets the same empty 401.
    """

    def __init__(self, admission: Admission, metrics: EdgeMetrics) -> None:
        self._admission = admission
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""

        def receive(kind: RequestKind, own_type: str) -> web.RouteDef:
            async def handle(request: web.Request) -> web.Response:
                return await self._receive(request, kind, own_type)

            return web.post(_PATHS[kind][0], handle)

        return [receive(kind, own_type) for kind, (_, own_type) in _PATHS.items()]

    async def _receive(
        self, request: web.Request, kind: RequestKind, own_type: str
    ) -> web.Response:
        outcome = "refused"
        try:
            # A probe with the other type gets no answer to learn from, only the 401.
            stated = media_type(request, JSON, FORM)
            body = await read_body(request, MAX_BODY_BYTES)
            signed = self._admission.verify(
                body,
                timestamps=request.headers.getall("X-Slack-Request-Timestamp", []),
                signatures=request.headers.getall("X-Slack-Signature", []),
            )
            if stated != own_type:
                raise RequestRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
            admitted = await self._admission.admit(kind, signed)
            outcome = self._outcome_of(admitted)
        except ServiceError as error:
            outcome, response = _refusal(kind, error)
            return response
        finally:
            self._metrics.slack.labels(kind.value, outcome).inc()
        if isinstance(admitted, Challenge):
            return web.Response(text=admitted.text)
        # An empty 200: commands and clicks are answered by the worker.
        return web.Response()

    def _outcome_of(self, admitted: Challenge | Ignored | Admitted) -> str:
        match admitted:
            case Challenge():
                return "challenge"
            case Ignored(why):
                self._metrics.ignored.labels(why).inc()
                return "ignored"
            case Admitted(is_new=True):
                return "stored"
            case Admitted():
                return "replay"


def _refusal(kind: RequestKind, error: ServiceError) -> tuple[str, web.Response]:
    """Return the outcome's name and the answer."""
    if isinstance(error, InvalidSlackSignature):
        return "bad_signature", web.Response(status=HTTPStatus.UNAUTHORIZED)
    log = structlog.get_logger()
    if isinstance(error, ForeignApp):
        log.warning("foreign_app_refused", kind=kind.value)
        return "foreign_app", _final(HTTPStatus.FORBIDDEN)
    if error.kind is Kind.INVALID:
        log.warning("slack_request_malformed", kind=kind.value, reason=error.reason)
        return "malformed", _final(HTTPStatus.BAD_REQUEST)
    log.error("slack_request_not_stored", kind=kind.value, reason=error.reason)
    return "unavailable", web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


def _final(status: HTTPStatus) -> web.Response:
    """Refuse for good: the same bytes would be refused again."""
    return web.Response(status=status, headers={"X-Slack-No-Retry": "1"})
