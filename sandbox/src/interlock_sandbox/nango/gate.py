"""What every request to Nango goes through: record, faults, credentials, rate limit."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from interlock_sandbox.nango.environment import Environment, Session
from interlock_sandbox.nango.limits import RateLimit
from interlock_sandbox.nango.records import Fault, Record, Records
from interlock_sandbox.nango.refusals import Refusal, unauthorized
from interlock_sandbox.nango.settings import API_KEY, SESSION_TOKEN


@dataclass(frozen=True)
class Ask:
    """One request that was let in.

    Attributes:
        scopes: What the API key may do; empty without one.
    """

    request: web.Request
    record: Record
    scopes: tuple[str, ...] = ()
    session: Session | None = None

    @property
    def own_session(self) -> Session:
        """The connect session that the request came with."""
        if self.session is None:
            raise LookupError("this operation is not called with a connect session")
        return self.session

    def may(self, scope: str) -> bool:
        """Tell whether the key's scopes include one."""
        return any(_covers(granted, scope) for granted in self.scopes)


Act = Callable[[Ask], Awaitable[web.Response]]
_Admit = Callable[[web.Request, Record, dict[str, str]], Ask]


class Gate:
    """Let requests in and keep a record of each."""

    def __init__(self, environment: Environment, records: Records, limit: RateLimit) -> None:
        self._environment = environment
        self._records = records
        self._limit = limit

    def with_key(self, operation: str, scopes: tuple[str, ...], act: Act) -> Handler:
        """Serve callers whose API key has one of these scopes."""

        def admit(request: web.Request, record: Record, headers: dict[str, str]) -> Ask:
            key = _bearer(request)
            if not API_KEY.fullmatch(key):
                raise unauthorized(
                    "invalid_secret_key_format", "The provided secret key is not a UUID v4."
                )
            granted = self._environment.api_keys.get(key)
            if granted is None:
                raise unauthorized(
                    "unknown_account",
                    "The provided authorization header does not match any account.",
                )
            headers |= self._limit.take("key", request.method, request.path)
            ask = Ask(request, record, scopes=granted)
            if not any(ask.may(scope) for scope in scopes):
                required = f"{'one of: ' if len(scopes) > 1 else ': '}{' or '.join(scopes)}"
                message = f"Insufficient scope. Required{' ' if len(scopes) > 1 else ''}{required}"
                raise Refusal(HTTPStatus.FORBIDDEN, "forbidden", message=message)
            return ask

        return self._handler(operation, admit, act)

    def with_session(self, operation: str, act: Act, *, in_query: bool = False) -> Handler:
        """Serve a person's browser, which shows a connect session's token."""

        def admit(request: web.Request, record: Record, headers: dict[str, str]) -> Ask:
            if not in_query:
                token = _bearer(request)
            elif not (token := request.query.get("connect_session_token", "")):
                raise unauthorized(
                    "missing_public_key", "The request is missing a valid public key parameter."
                )
            session = self._find_session(token)
            headers |= self._limit.take("session", request.method, request.path)
            return Ask(request, record, session=session)

        return self._handler(operation, admit, act)

    def for_anyone(self, operation: str, act: Act) -> Handler:
        """Serve whoever asks."""
        return self._handler(operation, lambda request, record, _: Ask(request, record), act)

    def _find_session(self, token: str) -> Session:
        if not SESSION_TOKEN.fullmatch(token):
            raise unauthorized(
                "invalid_connect_session_token_format",
                "The provided connect session token is not following correct format:"
                " nango_connect_session_RANDOM)",
            )
        session = self._environment.find_session(token)
        if session is None:
            raise unauthorized(
                "unknown_connect_session_token",
                "The provided connect session token does not match any account.",
            )
        return session

    def _handler(self, operation: str, admit: _Admit, act: Act) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            record = self._records.begin(operation, request.method, request.path)
            fault = self._records.next_fault(operation)
            headers: dict[str, str] = {}
            try:
                response = await _before(fault, record, request) if fault else None
                if response is None:
                    response = await act(admit(request, record, headers))
                    record.acted = response.status < HTTPStatus.BAD_REQUEST
            except Refusal as refusal:
                record.error = refusal.code
                response = refusal.response()
            record.status = response.status
            response.headers.update(headers)
            if fault and fault.kind == "drop_reply" and request.transport:
                request.transport.abort()
            return response

        return handle


async def _before(fault: Fault, record: Record, request: web.Request) -> web.Response | None:
    """Do what a fault asks before a request is judged; a response means it is not."""
    record.fault = fault.kind
    match fault.kind:
        case "http_status":
            return web.Response(status=fault.status, text="upstream trouble")
        case "rate_limit":
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_request",
                headers={"Retry-After": f"{fault.seconds:.0f}"},
                method=request.method,
                path=request.path,
            )
        case "delay":
            await asyncio.sleep(fault.seconds)
        case _:
            pass
    return None


def _bearer(request: web.Request) -> str:
    header = request.headers.get("Authorization", "")
    if not header:
        raise unauthorized(
            "missing_auth_header", "The request is missing the Authorization header."
        )
    token = header.rpartition("Bearer ")[2]
    if not token:
        raise unauthorized("malformed_auth_header", "The Authorization header is malformed.")
    return token


def _covers(granted: str, scope: str) -> bool:
    return granted == scope or (granted.endswith(":*") and scope.startswith(granted[:-1]))
