"""Who is at the browser, and whether a form of theirs is theirs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from interlock_chassis.secret import Secret
from interlock_gateway.domain.strict import MalformedDocument, parse_form
from interlock_gateway.edge import paths
from interlock_gateway.edge.csrf import (
    CsrfTokens,
    FormRefused,
    require_no_other_page,
    require_own_page,
)
from interlock_gateway.edge.http import FORM, Proxies, media_type, read_body
from interlock_gateway.edge.pages import Viewer
from interlock_gateway.edge.policy import Action, require
from interlock_gateway.edge.ports import Identity, NotSignedIn, Person, SessionProof

# Our largest form has four short fields.
_MAX_FORM_BYTES = 16 * 1024
# Identity's contract.
_MAX_COOKIE_CHARS = 2048
_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)


# Who a request turned out to be of.
VIEWER = web.RequestKey("viewer", Viewer)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who is signed in.

    Attributes:
        proof: What identity takes for every further call.
        person: Who it is.
        viewer: The same for the pages' frame.
        form: The fields of a form that was sent; empty otherwise.
    """

    proof: SessionProof
    person: Person
    viewer: Viewer
    form: Mapping[str, str]


class Browser:
    """Recognize visitors and hold their forms to our own pages.

    Args:
        identity: Asked for the session, every time.
        csrf: The form tokens.
        proxies: Whom to believe about addresses.
        public_url: Our own origin.
        auth_url: The auth server.
        session_cookie: The name of its cookie.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        csrf: CsrfTokens,
        proxies: Proxies,
        public_url: str,
        auth_url: str,
        session_cookie: str,
    ) -> None:
        self._identity = identity
        self._csrf = csrf
        self._proxies = proxies
        self._public_url = public_url
        self._auth_url = auth_url.rstrip("/")
        self._session_cookie = session_cookie

    async def visit(self, request: web.Request, action: Action) -> Visit:
        """Recognize who asks for a page, and that their role allows it.

        Raises:
            NotSignedIn: Nobody.
            RoleNotSufficient: Their role does not allow it.
            RemoteError: As `Identity.authenticate`.
        """
        visit = await self._visit(request, {})
        require(visit.person, action)
        return visit

    async def call(self, request: web.Request, action: Action) -> Visit:
        """Recognize whose program changes something, and that no other site's page does.

        Only for requests that no form can make: PUT, DELETE, or with a JSON body.

        Raises:
            FormRefused: A page of another site sent it.
            NotSignedIn: Nobody.
            RoleNotSufficient: Their role does not allow it.
            RemoteError: As `Identity.authenticate`.
        """
        require_no_other_page(request.headers, self._public_url)
        return await self.visit(request, action)

    async def submission(self, request: web.Request, purpose: str, action: Action) -> Visit:
        """Recognize who sends a form, and that it was shown to them for this purpose.

        Raises:
            FormRefused: Another page sent it, or the token is not of this session and purpose.
            NotSignedIn: Nobody.
            RoleNotSufficient: Their role does not allow it.
            RemoteError: As `Identity.authenticate`.
            RequestRefused: The body is too large, too slow or no form.
        """
        require_own_page(request.headers, self._public_url)
        media_type(request, FORM)
        try:
            form = parse_form(await read_body(request, _MAX_FORM_BYTES))
        except MalformedDocument:
            raise FormRefused from None
        visit = await self._visit(request, form)
        self._csrf.verify(form.get("csrf", ""), visit.person.session_ref, purpose)
        require(visit.person, action)
        return visit

    def form_token(self, visit: Visit, purpose: str) -> str:
        """Make a token that is worth something in this session, for this purpose."""
        return self._csrf.issue(visit.person.session_ref, purpose)

    def require_token(self, visit: Visit, token: str, purpose: str) -> None:
        """Let a token pass that was made in this session, for this purpose.

        Raises:
            FormRefused: It was not.
        """
        self._csrf.verify(token, visit.person.session_ref, purpose)

    def sign_in_url(self, path: str) -> str:
        """Return where to sign in and come back to a path of ours."""
        callback = quote(self._public_url + path, safe="")
        return f"{self._auth_url}/sign-in?callbackURL={callback}"

    async def _visit(self, request: web.Request, form: Mapping[str, str]) -> Visit:
        proof = self._proof(request)
        person = await self._identity.authenticate(proof)
        viewer = Viewer(person, self.sign_in_url(paths.HOME))
        # For the frame, should this request end in a problem.
        request[VIEWER] = viewer
        return Visit(proof, person, viewer, form)

    def _proof(self, request: web.Request) -> SessionProof:
        value = self._raw_cookie(request)
        cookie = f"{self._session_cookie}={value}"
        if not _PRINTABLE.fullmatch(value) or len(cookie) > _MAX_COOKIE_CHARS:
            raise NotSignedIn
        return SessionProof(Secret(cookie), self._proxies.client_address(request))

    def _raw_cookie(self, request: web.Request) -> str:
        """Return the session cookie as sent; parsers differ in what they decode."""
        for part in ";".join(request.headers.getall("Cookie", [])).split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._session_cookie:
                return value
        return ""


def set_cookie(response: web.StreamResponse, name: str, value: str, max_age_s: int) -> None:
    """Set a cookie of this host alone, unread by scripts.

    The `__Host-` prefix keeps subdomains from planting one. Lax, because people come
    back from Slack and from the link in a message.
    """
    response.set_cookie(
        f"__Host-interlock-{name}",
        value,
        max_age=max_age_s,
        path="/",
        secure=True,
        httponly=True,
        samesite="Lax",
    )


def take_cookie(request: web.Request, name: str) -> str:
    """Read a cookie of ours; "" when it is absent."""
    return request.cookies.get(f"__Host-interlock-{name}", "")


def end_cookie(response: web.StreamResponse, name: str) -> None:
    """Remove a cookie of ours."""
    response.del_cookie(
        f"__Host-interlock-{name}", path="/", secure=True, httponly=True, samesite="Lax"
    )
