"""Every error that Slack may answer an install with, as the page that a person reads."""

import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from interlock_chassis.errors import RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.edge.problems import INTERNAL, problem_of
from interlock_token_vault.adapters.slack_oauth import SlackOAuth, open_slack

# docs.slack.dev/reference/methods/oauth.v2.access, its own errors and those of every method.
DOCUMENTED = (
    "bad_client_secret",
    "bad_redirect_uri",
    "cannot_install_an_org_installed_app",
    "invalid_client_id",
    "invalid_code",
    "invalid_code_verifier",
    "invalid_grant_type",
    "invalid_refresh_token",
    "no_scopes",
    "oauth_authorization_url_mismatch",
    "pkce_not_allowed",
    "preview_feature_not_available",
    "user_email_unverified",
    "code_already_used",
    "code_expired",
    "access_denied",
    "invalid_arguments",
    "accesslimited",
    "fatal_error",
    "internal_error",
    "ratelimited",
    "request_timeout",
    "service_unavailable",
    "team_added_to_org",
    "an_error_of_tomorrow",
)
# What a page tells its reader to do.
_ADVICE = re.compile(r"[Ss]tart again|operator|[Aa]sk |[Cc]onfirm")


@pytest.fixture
async def slack(request: pytest.FixtureRequest) -> AsyncIterator[SlackOAuth]:
    """Give the vault's way to a Slack that answers one error."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"ok": False, "error": request.param})

    app = web.Application()
    app.router.add_post("/api/oauth.v2.access", answer)
    async with (
        TestServer(app, host="127.0.0.1") as server,
        open_slack(
            URL(str(server.make_url("/api/"))), client_id="1.2", client_secret=Secret("secret")
        ) as slack,
    ):
        yield slack


@pytest.mark.parametrize("slack", DOCUMENTED, indirect=True)
async def test_every_error_of_slacks_is_a_page_that_says_what_to_do(slack: SlackOAuth) -> None:
    """Through the vault's reading of it and edge's: no page of a fault of ours, none at a loss."""
    with pytest.raises(ServiceError) as refused:
        await slack.exchange(Secret("code"), "https://interlock.example/oauth_redirect")
    error = refused.value
    page = problem_of(RemoteError(error.kind, error.reason, metadata=error.metadata))
    assert page is not INTERNAL
    assert _ADVICE.search(page.text)


@pytest.mark.parametrize(
    ("slack", "status"),
    [("cannot_install_an_org_installed_app", 409), ("user_email_unverified", 422)],
    indirect=["slack"],
)
async def test_what_a_person_can_do_more_about_is_told_apart(
    slack: SlackOAuth, status: int
) -> None:
    """Starting again would end at the same error."""
    with pytest.raises(ServiceError) as refused:
        await slack.exchange(Secret("code"), "https://interlock.example/oauth_redirect")
    error = refused.value
    page = problem_of(RemoteError(error.kind, error.reason, metadata=error.metadata))
    assert page.status == status
