"""The URLs that Slack calls."""

from dataclasses import dataclass
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
from interlock_gateway.edge import paths
from interlock_gateway.edge.admission import Admission, Admitted, Entrance
from interlock_gateway.edge.http import FORM, JSON, RequestRefused, media_type, read_body
from interlock_gateway.edge.listener import EdgeProtocol
from interlock_gateway.edge.metrics import EdgeMetrics

# Slack's largest requests, views with 250 KB of state, stay well below.
MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Door:
    entrance: Entrance
    kind: RequestKind
    path: str
    media_type: str


_DOORS = (
    _Door(Entrance.EVENTS, RequestKind.EVENT, paths.EVENTS, JSON),
    _Door(Entrance.INTERACTIONS, RequestKind.INTERACTION, paths.INTERACTIONS, FORM),
    _Door(Entrance.COMMANDS, RequestKind.COMMAND, paths.COMMANDS, FORM),
    _Door(Entrance.LINK_CREATE, RequestKind.COMMAND, paths.LINK_CREATE, FORM),
)


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

        def receive(door: _Door) -> web.RouteDef:
            async def handle(request: web.Request) -> web.Response:
                return await self._receive(request, door)

            return web.post(door.path, handle)

        return [receive(door) for door in _DOORS]

    async def _receive(self, request: web.Request, door: _Door) -> web.Response:
        outcome = "refused"
        try:
            # A probe with the other type gets no answer to learn from, only the 401.
            stated = media_type(request, JSON, FORM)
            body = await read_body(request, MAX_BODY_BYTES)
            signed = self._admission.verify(
                body,
                timestamps=request.headers.getall("X-Slack-Request-Timestamp", []),
                signatures=_signatures(request),
            )
            if stated != door.media_type:
                raise RequestRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
            admitted = await self._admission.admit(door.entrance, signed)
            outcome = self._outcome_of(admitted)
        except ServiceError as error:
            outcome, response = self._refusal(door.kind, error)
            return response
        finally:
            self._metrics.slack.labels(door.kind.value, outcome).inc()
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

    def _refusal(self, kind: RequestKind, error: ServiceError) -> tuple[str, web.Response]:
        """Return the outcome's name and the answer."""
        if isinstance(error, InvalidSlackSignature):
            return "bad_signature", web.Response(status=HTTPStatus.UNAUTHORIZED)
        log = structlog.get_logger()
        if isinstance(error, ForeignApp):
            self._metrics.audit("foreign_app_refused", kind=kind.value, **error.metadata)
            return "foreign_app", _final(HTTPStatus.FORBIDDEN)
        if error.kind is Kind.INVALID:
            log.warning("slack_request_malformed", kind=kind.value, reason=error.reason)
            return "malformed", _final(HTTPStatus.BAD_REQUEST)
        log.error("slack_request_not_stored", kind=kind.value, reason=error.reason)
        return "unavailable", web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


def _signatures(request: web.Request) -> list[str]:
    """Read the signatures as they were sent, white space behind them included."""
    signatures = request.headers.getall("X-Slack-Signature", [])
    connection = request.protocol
    if isinstance(connection, EdgeProtocol) and connection.is_signature_padded:
        return [f"{each} " for each in signatures]
    return signatures


def _final(status: HTTPStatus) -> web.Response:
    """Refuse for good: the same bytes would be refused again."""
    return web.Response(status=status, headers={"X-Slack-No-Retry": "1"})
