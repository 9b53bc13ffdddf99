"""Linking, as pages: a link from Slack, the question, and what came of it.

The first GET only moves the code from the address into a cookie, so that no
history, referrer or log keeps it, and a link previewer spends nothing.
"""

from http import HTTPStatus

from aiohttp import web

from interlock_chassis.errors import ServiceError
from interlock_gateway.edge import paths
from interlock_gateway.edge.browser import Browser, Visit, end_cookie, set_cookie, take_cookie
from interlock_gateway.edge.linking import (
    LinkCodeUnusable,
    Linking,
    code_sha256,
    find_link_code,
)
from interlock_gateway.edge.metrics import EdgeMetrics
from interlock_gateway.edge.pages import Pages
from interlock_gateway.edge.policy import Action
from interlock_gateway.edge.slack_urls import SlackUrls

_COOKIE = "link"
# As long as a code lives.
_COOKIE_SECONDS = 3600


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
        return [web.get(paths.LINK, self._open), web.post(paths.REDEEM, self._redeem)]

    async def _open(self, request: web.Request) -> web.Response:
        if "code" in request.query:
            return _keep_code(request.query.getall("code"))
        code, _ = _code_of(request)
        try:
            visit = await self._browser.visit(request, Action.LINK)
        except ServiceError as error:
            if error.reason != "NOT_SIGNED_IN":
                raise
            return _see_other(self._browser.sign_in_url(paths.LINK))
        return await self._ask(visit, code)

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
            status=status,
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
        code, session_tag = _code_of(request)
        # The token is of this code: what the person confirmed is what is redeemed.
        visit = await self._browser.submission(request, _action(code), Action.LINK)
        self._browser.require_token(visit, session_tag, _cookie_purpose(code))
        if visit.form.get("confirm") != "yes":
            return await self._ask(visit, code, HTTPStatus.UNPROCESSABLE_ENTITY)
        try:
            linked = await self._linking.redeem(
                visit.proof,
                visit.person,
                code,
                email_difference_confirmed=visit.form.get("emails_differ") == "yes",
            )
        except ServiceError as error:
            if error.reason != "EMAIL_MISMATCH":
                self._audit(visit, error)
                raise
            return await self._ask(visit, code, HTTPStatus.UNPROCESSABLE_ENTITY)
        workspace = linked.redeemed.workspace
        response = self._pages.render(
            "linked.html",
            visit.viewer,
            linked=linked,
            person=visit.person,
            workspace_path=paths.workspace(workspace.workspace_id),
            slack_url=self._slack.app_in(workspace.slack_team_id),
        )
        end_cookie(response, _COOKIE)
        return response

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


def _code_of(request: web.Request) -> tuple[str, str]:
    """Read the code from its cookie, and the proof that the cookie is of one session."""
    code, _, session_tag = take_cookie(request, _COOKIE).partition(".")
    found = find_link_code(code)
    if found is None:
        raise LinkCodeUnusable
    return found, session_tag


def _cookie_purpose(code: str) -> str:
    return f"link-cookie:{code_sha256(code)}"


def _action(code: str) -> str:
    return f"link:{code_sha256(code)}"


def _see_other(location: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})
