"""A stand-in for the auth server, held to Better Auth 1.7.

Signing in takes one click. What a backend reads — the cookie, the session, the
roles — has the shapes of the real server.
"""

import base64
import dataclasses
import hashlib
import hmac
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

from aiohttp import web

from interlock_chassis.secret import Secret
from interlock_sandbox.directory import (
    CREATED_AT,
    PEOPLE,
    ROLES,
    Directory,
    Membership,
    Organization,
    Person,
)
from interlock_sandbox.membership import MembershipTables
from interlock_sandbox.pages import page_routes, render_page
from interlock_sandbox.web import CONTROL, LOOPBACK_HOSTS, ControlBody, host_of, refuse

COOKIE = "better-auth.session_token"
SESSION_LIFE_S = 7 * 24 * 3600
TOKEN_LENGTH = 32
_ALPHABET = string.ascii_letters + string.digits
API = "/api/auth"


@dataclass
class Session:
    """A signed-in browser. Ended sessions stay on record, without effect."""

    id: str
    token: str
    user_id: str
    created_at: float
    expires_at: float
    active_organization_id: str | None
    ip_address: str
    user_agent: str
    ended: bool = False


class AuthServer:
    """Serve the sign-in page and the session API.

    Args:
        saved: What `snapshot` returned in an earlier run.
        trusted_origins: Origins besides its own that may change things.
        tables: Where memberships are kept besides, for readers of a database.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        cookie_secret: Secret[str],
        trusted_origins: frozenset[str],
        dashboard_url: str,
        saved: dict[str, Any] | None,
        now: Callable[[], float],
        changed: Callable[[], None],
        tables: MembershipTables | None = None,
    ) -> None:
        self._directory = directory
        self._tables = tables
        self._cookie_secret = cookie_secret
        self._trusted_origins = trusted_origins
        self._dashboard_url = dashboard_url
        self._now = now
        self._changed = changed
        rows = saved["sessions"] if saved else []
        self._sessions: dict[str, Session] = {row["token"]: Session(**row) for row in rows}

    def snapshot(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {"sessions": [dataclasses.asdict(each) for each in self._sessions.values()]}

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the pages, the session API and the control routes."""
        return [
            *page_routes(),
            web.get("/", self._account_page),
            web.get("/sign-in", self._sign_in_page),
            web.post("/sign-in", self._sign_in),
            web.post("/sign-out", self._sign_out_form),
            web.get(f"{API}/get-session", self._get_session),
            web.post(f"{API}/sign-out", self._sign_out),
            web.get(f"{API}/organization/list", self._list_organizations),
            web.post(f"{API}/organization/set-active", self._set_active),
            web.get(f"{API}/organization/get-active-member", self._active_member),
            web.get(f"{API}/organization/get-active-member-role", self._active_member_role),
            web.get(f"{API}/organization/list-members", self._list_members),
            web.get(f"{API}/organization/get-full-organization", self._full_organization),
            web.get(f"{CONTROL}/people", self._people),
            web.post(f"{CONTROL}/sign-in", self._control_sign_in),
            web.post(f"{CONTROL}/memberships", self._set_membership),
            web.get(f"{CONTROL}/secrets", self._secrets),
        ]

    def find_visitor(self, request: web.Request) -> tuple[str, str] | None:
        """Name the account of a request's session, and the organization active in it."""
        session = self._find_session(request)
        if session is None or session.active_organization_id is None:
            return None
        return session.user_id, session.active_organization_id

    # Pages.

    async def _sign_in_page(self, request: web.Request) -> web.Response:
        callback = request.query.get("callbackURL", "")
        if callback and not self._may_return_to(request, callback):
            return render_page("bad_callback.html", status=HTTPStatus.BAD_REQUEST)
        people = [(person, self._role_of(person)) for person in PEOPLE]
        session = self._find_session(request)
        return render_page(
            "sign_in.html",
            people=people,
            organizations={each.id: each.name for each in self._organizations()},
            callback=callback,
            callback_host=urlsplit(callback).netloc,
            signed_in=self._directory.find_person(session.user_id) if session else None,
        )

    async def _sign_in(self, request: web.Request) -> web.Response:
        self._require_origin(request)
        fields = await request.post()
        person = self._directory.find_person(str(fields.get("person", "")))
        callback = str(fields.get("callbackURL", "")) or "/"
        if person is None:
            _fail(HTTPStatus.UNAUTHORIZED, "INVALID_EMAIL_OR_PASSWORD", "Nobody of that name")
        if callback != "/" and not self._may_return_to(request, callback):
            return render_page("bad_callback.html", status=HTTPStatus.BAD_REQUEST)
        session = self._open_session(person, request)
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": callback})
        self._set_cookie(response, session)
        return response

    async def _account_page(self, request: web.Request) -> web.Response:
        session = self._find_session(request)
        person = self._directory.find_person(session.user_id) if session else None
        organizations = (
            [
                (each, self._directory.find_membership(each.id, person.id))
                for each in self._directory.list_organizations(person.id)
            ]
            if person
            else []
        )
        return render_page(
            "account.html",
            person=person,
            organizations=organizations,
            dashboard_url=self._dashboard_url,
        )

    async def _sign_out_form(self, request: web.Request) -> web.Response:
        self._require_origin(request)
        self._end_session(request)
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
        response.del_cookie(COOKIE)
        return response

    @staticmethod
    def _may_return_to(request: web.Request, callback: str) -> bool:
        """Allow only this machine, by the very name the browser uses for it.

        The session cookie is bound to that name, so another one would lose it.
        """
        try:
            parts = urlsplit(callback)
            host = parts.hostname
        except ValueError:
            return False
        strange = any(character <= " " or character == "\\" for character in callback)
        if strange or parts.scheme not in {"http", "https"} or "@" in parts.netloc:
            return False
        return host in LOOPBACK_HOSTS and host == host_of(request.host)

    # The session API.

    async def _get_session(self, request: web.Request) -> web.Response:
        session = self._find_session(request)
        person = self._directory.find_person(session.user_id) if session else None
        if session is None or person is None:
            return web.json_response(None)
        shown = {
            "id": session.id,
            "token": session.token,
            "userId": session.user_id,
            "expiresAt": _instant(session.expires_at),
            "createdAt": _instant(session.created_at),
            "updatedAt": _instant(session.created_at),
            "ipAddress": session.ip_address,
            "userAgent": session.user_agent,
            "activeOrganizationId": session.active_organization_id,
        }
        user = {
            "id": person.id,
            "name": person.name,
            "email": person.email,
            "emailVerified": True,
            "image": None,
            "createdAt": CREATED_AT,
            "updatedAt": CREATED_AT,
        }
        return web.json_response({"session": shown, "user": user})

    async def _sign_out(self, request: web.Request) -> web.Response:
        self._require_origin(request)
        self._end_session(request)
        response = web.json_response({"success": True})
        response.del_cookie(COOKIE)
        return response

    async def _list_organizations(self, request: web.Request) -> web.Response:
        session = self._require_session(request)
        organizations = self._directory.list_organizations(session.user_id)
        return web.json_response([_show_organization(each) for each in organizations])

    async def _set_active(self, request: web.Request) -> web.Response:
        self._require_origin(request)
        session = self._require_session(request)
        body = await ControlBody.of(request)
        organization_id = body.find_text("organizationId")
        if organization_id is None:
            session.active_organization_id = None
            self._changed()
            return web.json_response(None)
        self._require_own(session, organization_id)
        session.active_organization_id = organization_id
        self._changed()
        organization = self._directory.find_organization(organization_id)
        return web.json_response(_show_organization(organization) if organization else None)

    async def _active_member(self, request: web.Request) -> web.Response:
        session = self._require_session(request)
        organization_id = self._require_active(session)
        membership = self._directory.find_membership(organization_id, session.user_id)
        if membership is None:
            _fail(HTTPStatus.BAD_REQUEST, "MEMBER_NOT_FOUND", "Member not found")
        return web.json_response(self._show_member(membership))

    async def _active_member_role(self, request: web.Request) -> web.Response:
        session = self._require_session(request)
        organization_id = request.query.get("organizationId") or self._require_active(session)
        membership = self._require_membership(session, organization_id)
        return web.json_response({"role": membership.role})

    async def _list_members(self, request: web.Request) -> web.Response:
        session = self._require_session(request)
        organization_id = request.query.get("organizationId") or self._require_active(session)
        self._require_membership(session, organization_id)
        members = self._directory.list_memberships(organization_id)
        shown = [self._show_member(each) for each in members]
        return web.json_response({"members": shown, "total": len(shown)})

    async def _full_organization(self, request: web.Request) -> web.Response:
        session = self._require_session(request)
        organization_id = request.query.get("organizationId") or session.active_organization_id
        if organization_id is None:
            return web.json_response(None)
        organization = self._directory.find_organization(organization_id)
        if organization is None:
            _fail(HTTPStatus.BAD_REQUEST, "ORGANIZATION_NOT_FOUND", "Organization not found")
        self._require_own(session, organization_id)
        members = self._directory.list_memberships(organization_id)
        return web.json_response(
            {
                **_show_organization(organization),
                "members": [self._show_member(each) for each in members],
                "invitations": [],
            }
        )

    # Control.

    async def _people(self, _request: web.Request) -> web.Response:
        """List everybody with the role held now."""
        rows = [dataclasses.asdict(person) | {"role": self._role_of(person)} for person in PEOPLE]
        return web.json_response({"people": rows})

    async def _control_sign_in(self, request: web.Request) -> web.Response:
        """Sign a `person` in without a browser and return the cookie to send."""
        body = await ControlBody.of(request)
        person = self._directory.find_person(body.text("person"))
        if person is None:
            refuse(HTTPStatus.NOT_FOUND, "no such person")
        session = self._open_session(person, request)
        return web.json_response({"name": COOKIE, "value": self._cookie_value(session)})

    async def _set_membership(self, request: web.Request) -> web.Response:
        """Give a `person` a `role` in an `organization`; null ends the membership."""
        body = await ControlBody.of(request)
        role = body.find_text("role")
        person = self._directory.find_person(body.text("person"))
        organization = self._directory.find_organization(body.text("organization"))
        if person is None or organization is None:
            refuse(HTTPStatus.NOT_FOUND, "no such person or organization")
        if role is not None and not set(role.split(",")) <= ROLES:
            refuse(HTTPStatus.BAD_REQUEST, f"a role is one of {sorted(ROLES)}, or a list of them")
        self._directory.set_role(organization.id, person.id, role)
        self._changed()
        if self._tables:
            await self._tables.keep(self._directory)
        return web.json_response({})

    async def _secrets(self, _request: web.Request) -> web.Response:
        """List every session token and cookie ever issued."""
        sessions = self._sessions.values()
        return web.json_response(
            {
                "tokens": [session.token for session in sessions],
                "cookies": [self._cookie_value(session) for session in sessions],
            }
        )

    # Sessions.

    def _open_session(self, person: Person, request: web.Request) -> Session:
        active = person.home if self._directory.find_membership(person.home, person.id) else None
        session = Session(
            id=_random_text(),
            token=_random_text(),
            user_id=person.id,
            created_at=self._now(),
            expires_at=self._now() + SESSION_LIFE_S,
            active_organization_id=active,
            ip_address=request.remote or "",
            user_agent=request.headers.get("User-Agent", ""),
        )
        self._sessions[session.token] = session
        self._changed()
        return session

    def _end_session(self, request: web.Request) -> None:
        session = self._find_session(request)
        if session:
            session.ended = True
            self._changed()

    def _find_session(self, request: web.Request) -> Session | None:
        token, dot, signature = unquote(_raw_cookie(request)).rpartition(".")
        if not dot or not hmac.compare_digest(signature.encode(), self._sign(token).encode()):
            return None
        session = self._sessions.get(token)
        if session is None or session.ended or self._now() >= session.expires_at:
            return None
        return session

    def _require_session(self, request: web.Request) -> Session:
        session = self._find_session(request)
        if session is None:
            _fail(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "Unauthorized")
        return session

    @staticmethod
    def _require_active(session: Session) -> str:
        if session.active_organization_id is None:
            _fail(HTTPStatus.BAD_REQUEST, "NO_ACTIVE_ORGANIZATION", "No active organization")
        return session.active_organization_id

    def _require_membership(self, session: Session, organization_id: str) -> Membership:
        membership = self._directory.find_membership(organization_id, session.user_id)
        if membership is None:
            _fail(
                HTTPStatus.FORBIDDEN,
                "YOU_ARE_NOT_A_MEMBER_OF_THIS_ORGANIZATION",
                "You are not a member of this organization",
            )
        return membership

    def _require_own(self, session: Session, organization_id: str) -> None:
        """Let members pass; whoever asks for another organization has none active afterwards."""
        if self._directory.find_membership(organization_id, session.user_id) is None:
            session.active_organization_id = None
            self._changed()
            _fail(
                HTTPStatus.FORBIDDEN,
                "USER_IS_NOT_A_MEMBER_OF_THE_ORGANIZATION",
                "User is not a member of the organization",
            )

    def _require_origin(self, request: web.Request) -> None:
        """Refuse a change that another site's page asks for in a visitor's name."""
        own = f"{request.scheme}://{request.host}"
        origin = request.headers.get("Origin", "null")
        if origin == "null":
            _fail(HTTPStatus.FORBIDDEN, "MISSING_OR_NULL_ORIGIN", "Missing or null Origin")
        if origin not in {own, *self._trusted_origins}:
            _fail(HTTPStatus.FORBIDDEN, "INVALID_ORIGIN", "Invalid origin")

    def _sign(self, token: str) -> str:
        key = self._cookie_secret.reveal().encode()
        return base64.b64encode(hmac.digest(key, token.encode(), hashlib.sha256)).decode()

    def _cookie_value(self, session: Session) -> str:
        return quote(f"{session.token}.{self._sign(session.token)}", safe="")

    def _set_cookie(self, response: web.Response, session: Session) -> None:
        # Written by hand: the library would quote what is already encoded.
        response.headers.add(
            "Set-Cookie",
            f"{COOKIE}={self._cookie_value(session)}; Max-Age={SESSION_LIFE_S}; Path=/;"
            " HttpOnly; SameSite=Lax",
        )

    # Showing.

    def _organizations(self) -> list[Organization]:
        found = (self._directory.find_organization(person.home) for person in PEOPLE)
        return [each for each in found if each]

    def _role_of(self, person: Person) -> str | None:
        membership = self._directory.find_membership(person.home, person.id)
        return membership.role if membership else None

    def _show_member(self, membership: Membership) -> dict[str, Any]:
        person = self._directory.find_person(membership.user_id)
        user = (
            {"id": person.id, "name": person.name, "email": person.email, "image": None}
            if person
            else None
        )
        return {
            "id": membership.id,
            "organizationId": membership.organization_id,
            "userId": membership.user_id,
            "role": membership.role,
            "createdAt": CREATED_AT,
            "user": user,
        }


def _raw_cookie(request: web.Request) -> str:
    """Return the session cookie as sent; cookie parsers differ in what they decode."""
    for part in ";".join(request.headers.getall("Cookie", [])).split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _random_text() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(TOKEN_LENGTH))


def _instant(seconds: float) -> str:
    instant = datetime.fromtimestamp(seconds, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _show_organization(organization: Organization) -> dict[str, Any]:
    return {
        "id": organization.id,
        "name": organization.name,
        "slug": organization.id,
        "logo": None,
        "createdAt": CREATED_AT,
        "metadata": None,
    }


def _fail(status: HTTPStatus, code: str, message: str) -> NoReturn:
    body = web.json_response({"code": code, "message": message}).text
    refusals: dict[HTTPStatus, type[web.HTTPException]] = {
        HTTPStatus.UNAUTHORIZED: web.HTTPUnauthorized,
        HTTPStatus.FORBIDDEN: web.HTTPForbidden,
        HTTPStatus.BAD_REQUEST: web.HTTPBadRequest,
    }
    raise refusals[status](text=body, content_type="application/json")
