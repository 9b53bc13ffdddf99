"""The vault's calls of Slack, over real HTTP to a server that misbehaves."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from aiohttp import encode_basic_auth, web
from aiohttp.test_utils import TestServer, unused_port
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.slack_oauth import SlackOAuth, open_slack
from interlock_token_vault.domain.install import (
    BotIdentity,
    OAuthCodeRefused,
    SlackAnswerUnusable,
    UserGrant,
)
from interlock_token_vault.install_ports import SlackUnavailable, TokenDead

CODE, TOKEN = Secret("code"), Secret("xoxb-1")
REDIRECT = "https://interlock.example/oauth_redirect"
GOOD = {
    "ok": True,
    "access_token": "xoxb-1",
    "token_type": "bot",
    "scope": "chat:write,commands",
    "bot_user_id": "U0BOT",
    "app_id": "A0APP",
    "team": {"id": "T0TEAM", "name": "Northwind"},
    "enterprise": None,
    "is_enterprise_install": False,
}
WHO = {"ok": True, "team_id": "T0TEAM", "user_id": "U0BOT", "enterprise_id": "E0GRID"}


@dataclass
class Server:
    """A Slack that answers what it is told to, and remembers what it was asked."""

    respond: Callable[[], web.StreamResponse] = lambda: web.json_response(GOOD)
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any method."""
        fields = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((request.path_qs, dict(request.headers), fields))
        return self.respond()

    def answer(self, body: object, **options: object) -> None:
        """Answer with a body: JSON, or text as it is."""
        if isinstance(body, str):
            self.respond = lambda: web.Response(text=body, **options)  # type: ignore[arg-type]
        else:
            self.respond = lambda: web.json_response(body, **options)  # type: ignore[arg-type]


@pytest.fixture
async def server() -> Server:
    """Give a Slack that answers an install."""
    return Server()


@pytest.fixture
async def slack(server: Server) -> AsyncIterator[SlackOAuth]:
    """Give the adapter, pointed at the server."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with (
        TestServer(app, host="127.0.0.1") as running,
        open_slack(
            URL(str(running.make_url("/api/"))),
            client_id="1111.2222",
            client_secret=Secret("s3cret"),
        ) as adapter,
    ):
        yield adapter


async def _refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        await call
    return refused.value


async def test_an_exchange_sends_its_secrets_in_the_right_places(
    server: Server, slack: SlackOAuth
) -> None:
    """The secret goes into the Basic header, the code into the body, nothing into the URL."""
    answer = await slack.exchange(CODE, REDIRECT)
    ((path, headers, fields),) = server.asked
    assert path == "/api/oauth.v2.access"
    assert headers["Authorization"] == encode_basic_auth("1111.2222", "s3cret")
    assert fields == {"code": "code", "redirect_uri": REDIRECT}
    assert answer.bot_token == TOKEN
    assert (answer.app_id, answer.team_id, answer.team_name) == ("A0APP", "T0TEAM", "Northwind")
    assert answer.enterprise_id == ""
    assert answer.scopes == ("chat:write", "commands")
    assert answer.refresh_token is None


async def test_a_rotated_pair_is_the_bots_and_not_the_users(
    server: Server, slack: SlackOAuth
) -> None:
    """The bot's pair is at the top of the answer; `authed_user` holds another one."""
    server.answer(
        {
            **GOOD,
            "refresh_token": "xoxe-1-bot",
            "expires_in": 43200,
            "authed_user": {
                "id": "U0ADA",
                "access_token": "xoxe.xoxp-1",
                "token_type": "user",
                "refresh_token": "xoxe-1-user",
                "expires_in": 21600,
            },
        }
    )
    answer = await slack.exchange(CODE, REDIRECT)
    assert answer.bot_token == TOKEN
    assert answer.refresh_token == Secret("xoxe-1-bot")
    assert answer.expires_in_s == 43200
    assert answer.installed_by == "U0ADA"
    assert answer.user == UserGrant(
        "U0ADA", Secret("xoxe.xoxp-1"), "user", Secret("xoxe-1-user"), 21600
    )


async def test_an_answer_without_a_persons_token_has_none(
    server: Server, slack: SlackOAuth
) -> None:
    """Slack names the person also where nothing was asked of them."""
    server.answer({**GOOD, "authed_user": {"id": "U0ADA"}})
    answer = await slack.exchange(CODE, REDIRECT)
    assert (answer.user, answer.webhook_url) == (None, None)


async def test_a_webhooks_address_is_a_secret(server: Server, slack: SlackOAuth) -> None:
    """Whoever knows it can post, so it is read like a token."""
    url = "https://hooks.slack.com/services/T0TEAM/B0/secret"
    server.answer({**GOOD, "incoming_webhook": {"channel": "#general", "url": url}})
    answer = await slack.exchange(CODE, REDIRECT)
    assert answer.webhook_url == Secret(url)
    assert "secret" not in repr(answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"team": "T0TEAM"},
        {"team": {"id": 7}},
        {"enterprise": []},
        {"is_enterprise_install": "true"},
        {"expires_in": "43200"},
        {"expires_in": 1e12},
        {"expires_in": True},
        {"scope": ["chat:write"]},
        {"refresh_token": 7},
        {"authed_user": []},
        {"authed_user": {"access_token": "xoxp-1", "expires_in": "43200"}},
        {"incoming_webhook": {"url": 7}},
    ],
)
async def test_a_garbled_answer_still_gives_up_its_token(
    server: Server, slack: SlackOAuth, changes: dict[str, object]
) -> None:
    """What cannot be used is not guessed at; its token is known, so that it can be ended."""
    server.answer({**GOOD, **changes})
    answer = await slack.exchange(CODE, REDIRECT)
    assert answer.bot_token == TOKEN
    assert answer.token_type == ""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"ok": False, "error": "invalid_code"}, OAuthCodeRefused),
        ({"ok": False, "error": "code_already_used"}, OAuthCodeRefused),
        ({"ok": False, "error": "cannot_install_an_org_installed_app"}, OAuthCodeRefused),
        ({"ok": False, "error": "bad_client_secret"}, SlackAnswerUnusable),
        ({"ok": False, "error": "bad_redirect_uri"}, SlackAnswerUnusable),
        ({"ok": False, "error": "something_new"}, SlackAnswerUnusable),
        ({"ok": False, "error": "internal_error"}, SlackUnavailable),
        ({"ok": False, "error": "ratelimited"}, SlackUnavailable),
        ({"ok": "true", "access_token": "xoxb-1"}, SlackAnswerUnusable),
        ({"ok": False}, SlackAnswerUnusable),
        ({}, SlackAnswerUnusable),
        ([], SlackAnswerUnusable),
        ("<html>maintenance</html>", SlackAnswerUnusable),
        ('{"ok": true, "access_tok', SlackAnswerUnusable),
        ("", SlackAnswerUnusable),
        ("x" * 300_000, SlackAnswerUnusable),
    ],
)
async def test_every_refusal_of_an_exchange_is_a_typed_error(
    server: Server, slack: SlackOAuth, body: object, expected: type[ServiceError]
) -> None:
    """OA-09, OA-12, RF-08: whatever Slack says, the caller knows what to do next."""
    server.answer(body)
    assert isinstance(await _refusal(slack.exchange(CODE, REDIRECT)), expected)


async def test_an_error_code_is_passed_on_only_when_it_is_one(
    server: Server, slack: SlackOAuth
) -> None:
    """Foreign text never becomes part of an error of ours."""
    server.answer({"ok": False, "error": "bad_redirect_uri"})
    error = await _refusal(slack.exchange(CODE, REDIRECT))
    assert error.metadata == {"slack_error": "bad_redirect_uri"}
    server.answer({"ok": False, "error": "<script>xoxb-1</script>"})
    error = await _refusal(slack.exchange(CODE, REDIRECT))
    assert error.metadata == {"slack_error": "unknown_error"}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        ("abc", 30),
        ("-1", 30),
        ("1000000000", 300),
        ("9" * 40, 30),
        (None, 30),
        ("²", 30),
    ],
)
async def test_a_rate_limit_is_waited_for_within_bounds(
    server: Server, slack: SlackOAuth, header: str | None, seconds: int
) -> None:
    """RF-07: Slack says how long, and we say how long at most."""
    headers = {"Retry-After": header} if header is not None else {}
    server.answer("", status=429, headers=headers)
    error = await _refusal(slack.test(TOKEN))
    assert isinstance(error, SlackUnavailable)
    assert error.retry_after == timedelta(seconds=seconds)


@pytest.mark.parametrize("status", [301, 302, 400, 403, 500, 502, 503])
async def test_any_other_status_is_no_answer(
    server: Server, slack: SlackOAuth, status: int
) -> None:
    """A redirect is not followed: it would carry the token along."""
    server.answer("", status=status, headers={"Location": "http://127.0.0.1:9/"})
    assert isinstance(await _refusal(slack.test(TOKEN)), SlackUnavailable)
    assert len(server.asked) == 1


async def test_auth_test_tells_whose_a_token_is(server: Server, slack: SlackOAuth) -> None:
    """The token travels in the header, and what Slack leaves out stays empty."""
    server.answer(WHO)
    assert await slack.test(TOKEN) == BotIdentity(
        "T0TEAM", "E0GRID", "U0BOT", is_enterprise_install=False
    )
    ((path, headers, fields),) = server.asked
    assert (path, headers["Authorization"], fields) == ("/api/auth.test", "Bearer xoxb-1", {})


@pytest.mark.parametrize(
    "error", ["invalid_auth", "token_revoked", "account_inactive", "token_expired"]
)
async def test_a_dead_token_is_told_from_a_slack_that_is_away(
    server: Server, slack: SlackOAuth, error: str
) -> None:
    """Only Slack's own word that a token is dead makes it dead."""
    server.answer({"ok": False, "error": error})
    for call in (slack.test(TOKEN), slack.revoke(TOKEN)):
        assert isinstance(await _refusal(call), TokenDead)
    server.answer({"ok": False, "error": "fatal_error"})
    for call in (slack.test(TOKEN), slack.revoke(TOKEN)):
        assert isinstance(await _refusal(call), SlackUnavailable)


@pytest.mark.parametrize("body", ["", "null", {"ok": True, "team_id": 7}, {"ok": 1}])
async def test_an_auth_test_that_makes_no_sense_is_no_answer(
    server: Server, slack: SlackOAuth, body: object
) -> None:
    """Nothing is concluded about a token from an answer that is none."""
    server.answer(body)
    assert isinstance(await _refusal(slack.test(TOKEN)), SlackUnavailable)


async def test_a_revocation_ends_the_token(server: Server, slack: SlackOAuth) -> None:
    """`auth.revoke` is told by the header, and never in testing mode."""
    server.answer({"ok": True, "revoked": True})
    await slack.revoke(TOKEN)
    ((path, headers, fields),) = server.asked
    assert (path, headers["Authorization"], fields) == ("/api/auth.revoke", "Bearer xoxb-1", {})


async def test_a_slack_that_cannot_be_reached_is_away() -> None:
    """No connection is no answer, and the error quotes nothing of the request."""
    url = URL(f"http://127.0.0.1:{unused_port()}/api/")
    async with open_slack(url, client_id="x", client_secret=Secret("s3cret")) as slack:
        error = await _refusal(slack.exchange(CODE, REDIRECT))
    assert isinstance(error, SlackUnavailable)
    assert error.__cause__ is None
