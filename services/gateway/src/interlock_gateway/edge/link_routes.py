"""Linking, as pages: a link from Slack, the question, and what came of it.

The first GET only moves the code from the address into a cookie, so that no
history, referrer or log keeps it, and a link previewer spends nothing. A redeem
leads to a page of its own, which Reload and Back may show again.
"""

import hashlib
from http import HTTPStatus

from aiohttp import web

from interlock_chassis.errors import ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import Browser, Visit, end_cookie, set_cookie, take_cookie
from interlock_gateway.edge.csrf import FormRefused
from interlock_gateway.edge.linking import (
    LinkCodeUnusable,
    Linking,
    Receipt,
    code_sha256,
    find_link_code,
)
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action
from interlock_gateway.edge.slack_urls import SlackUrls

RECEIPT_COOKIE = "linked"
"""Holds what a redeem came to, until the link is ended or an hour is over."""

_COOKIE = "link"
# As long as a code lives.
_COOKIE_SECONDS = 3600
# The page comes back with what is missing, or with why nothing will help.
_ASKED_AGAIN = frozenset({"EMAIL_MISMATCH", "EMAIL_MUST_MATCH"})


class LinkRoutes:
    """Serve the link pages."""

    def __init__(
        self,
        *,
        browser: Browser,
        pages: Pages,
        linking: Linking,
        slack: SlackUrls,
        metrics: EdgeMetrics,
    ) -> None:
        self._browser = browser
        self._pages = pages
        self._linking = linking
        self._slack = slack
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get(paths.LINK, self._open),
            web.post(paths.REDEEM, self._redeem),
            web.get(paths.LINKED, self._tell),
        ]

    async def _open(self, request: web.Request) -> web.Response:
        if "code" in request.query:
            return _keep_code(request.query.getall("code"))
        if _is_over(request):
            return _see_other(paths.LINKED)
        code, _ = _code_of(request)
        visit = await self._visit(request)
        if visit is None:
            return _see_other(self._browser.sign_in_url(paths.LINK))
        if self._has_redeemed(request, visit, code):
            return _see_other(paths.LINKED)
        return await self._ask(visit, code)

    async def _visit(self, request: web.Request) -> Visit | None:
        """Recognize who opens a page; None for whoever has to sign in first."""
        try:
            return await self._browser.visit(request, Action.LINK)
        except ServiceError as error:
            if error.reason != "NOT_SIGNED_IN":
                raise
            return None

    async def _ask(
        self, visit: Visit, code: str, status: HTTPStatus = HTTPStatus.OK
    ) -> web.Response:
        try:
            offer = await self._linking.describe(visit.proof, visit.person, code)
        except ServiceError as error:
            self._audit(visit, error)
            raise
        response = self._pages.render(
            "link.html",
            visit.viewer,
            status=HTTPStatus.FORBIDDEN if offer.is_email_refused else status,
            offer=offer,
            person=visit.person,
            redeem_path=paths.REDEEM,
            switch_url=self._browser.sign_in_url(paths.LINK),
            token=self._browser.form_token(visit, _action(code)),
            is_unconfirmed=status is HTTPStatus.UNPROCESSABLE_ENTITY,
        )
        # A cookie from before the sign-in is worth nothing after it: only the one that
        # is set here, of this session, lets its code be redeemed.
        renewed = f"{code}.{self._browser.form_token(visit, _cookie_purpose(code))}"
        set_cookie(response, _COOKIE, renewed, _COOKIE_SECONDS)
        return response

    async def _redeem(self, request: web.Request) -> web.Response:
        if _is_over(request):
            return _see_other(paths.LINKED)
        code, session_tag = _code_of(request)
        # The token is of this code: what the person confirmed is what is redeemed.
        visit = await self._browser.submission(request, _action(code), Action.LINK)
        self._browser.require_token(visit, session_tag, _cookie_purpose(code))
        if self._has_redeemed(request, visit, code):
            return _see_other(paths.LINKED)
        if visit.form.get("confirm") != "yes":
            return await self._ask(visit, code, HTTPStatus.UNPROCESSABLE_ENTITY)
        try:
            receipt = await self._linking.redeem(
                visit.proof,
                visit.person,
                code,
                email_difference_confirmed=visit.form.get("emails_differ") == "yes",
            )
        except ServiceError as error:
            if error.reason not in _ASKED_AGAIN:
                self._audit(visit, error)
                raise
            return await self._ask(visit, code, HTTPStatus.UNPROCESSABLE_ENTITY)
        response = _see_other(paths.LINKED)
        end_cookie(response, _COOKIE)
        text = receipt.to_text()
        sealed = f"{text}.{self._browser.form_token(visit, _receipt_purpose(text))}"
        set_cookie(response, RECEIPT_COOKIE, sealed, _COOKIE_SECONDS)
        return response

    async def _tell(self, request: web.Request) -> web.Response:
        visit = await self._visit(request)
        if visit is None:
            return _see_other(self._browser.sign_in_url(paths.LINKED))
        receipt = self._find_receipt(request, visit)
        if receipt is None:
            raise LinkCodeUnusable
        return self._pages.render(
            "linked.html",
            visit.viewer,
            receipt=receipt,
            person=visit.person,
            workspace_path=paths.workspace(receipt.workspace_id),
            slack_url=self._slack.app_in(receipt.slack_team_id),
        )

    def _has_redeemed(self, request: web.Request, visit: Visit, code: str) -> bool:
        """Tell whether this session has redeemed exactly this code."""
        receipt = self._find_receipt(request, visit)
        return receipt is not None and receipt.code_sha256 == code_sha256(code)

    def _find_receipt(self, request: web.Request, visit: Visit) -> Receipt | None:
        """Read the receipt of this session; None when it has none."""
        text, _, tag = take_cookie(request, RECEIPT_COOKIE).partition(".")
        try:
            self._browser.require_token(visit, tag, _receipt_purpose(text))
        except FormRefused:
            return None
        return Receipt.from_text(text)

    def _audit(self, visit: Visit, error: ServiceError) -> None:
        if error.reason == "NOT_YOUR_TENANT":
            person = visit.person
            self._metrics.audit(
                "link_of_other_tenant_refused", user_id=person.user_id, tenant_id=person.tenant_id
            )


def _keep_code(codes: list[str]) -> web.Response:
    code = find_link_code(codes[0]) if len(codes) == 1 else None
    if code is None:
        raise LinkCodeUnusable
    response = _see_other(paths.LINK)
    set_cookie(response, _COOKIE, code, _COOKIE_SECONDS)
    return response


def _is_over(request: web.Request) -> bool:
    """Tell whether the browser has come back after a redeem, without another link."""
    return not take_cookie(request, _COOKIE) and bool(take_cookie(request, RECEIPT_COOKIE))


def _code_of(request: web.Request) -> tuple[str, str]:
    """Read the code from its cookie, and the proof that the cookie is of one session."""
    code, _, session_tag = take_cookie(request, _COOKIE).partition(".")
    found = find_link_code(code)
    if found is None:
        raise LinkCodeUnusable
    return found, session_tag


def _cookie_purpose(code: str) -> str:
    return f"link-cookie:{code_sha256(code)}"


def _receipt_purpose(text: str) -> str:
    return f"link-receipt:{hashlib.sha256(text.encode()).hexdigest()}"


def _action(code: str) -> str:
    return f"link:{code_sha256(code)}"


def _see_other(location: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})
