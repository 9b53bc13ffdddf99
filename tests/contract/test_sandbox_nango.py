"""The Nango stand-in, held against recorded exchanges with a real Nango 0.71.4.

Ids and secrets come from the recordings, and so does the time, so almost every
answer and every webhook must be equal to the letter. What stays different is in
DIFFERENCES, with the reason.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from interlock_sandbox.nango.environment import SESSION_LIFE_S
from interlock_sandbox.nango.settings import Mint
from interlock_sandbox.nango.testing import API_KEY, bound_port, example_settings, serving_nango
from interlock_sandbox.nango.webhooks import encode, sign, sign_legacy
from interlock_sandbox.testing import Received, RecordingApp, recording_app

JSON = dict[str, Any]
FIXTURES = Path(__file__).parent.parent / "fixtures" / "nango"
KEY = "work-apps-slack"
OTHER_KEY = "00000000-0000-4000-8000-000000000000"

_CLOCKS = "the real server read its clock several times within one request, this one reads it once"
_FAILED = "error.payload.connection"
# Exchange, place in the answer, reason. A difference that is gone must leave this list.
DIFFERENCES = {
    (38, f"{_FAILED}.updated_at"): _CLOCKS,
    (38, f"{_FAILED}.last_fetched_at"): _CLOCKS,
    (39, f"{_FAILED}.updated_at"): _CLOCKS,
    (39, f"{_FAILED}.last_fetched_at"): _CLOCKS,
    (40, f"{_FAILED}.updated_at"): _CLOCKS,
    (40, f"{_FAILED}.last_fetched_at"): _CLOCKS,
}
# Where the recorded parties listened. Nango itself used three ports.
NANGO_ORIGINS = ("127.0.0.1:33000", "127.0.0.1:33003", "127.0.0.1:33009")
PROVIDER_ORIGIN = "127.0.0.1:33050"
# When something happened whose own answer does not tell; later answers do.
MOMENTS = {
    0: "2026-11-21T21:54:14.000Z",
    14: "2026-11-21T21:54:21.016Z",
    33: "2026-11-21T21:54:23.785Z",
    59: "2026-11-21T21:55:41.091Z",
    63: "2026-11-21T21:55:42.904Z",
    67: "2026-11-21T21:55:44.691Z",
    73: "2026-11-21T21:55:46.717Z",
    78: "2026-11-21T21:55:53.000Z",
}
# The recordings hold no credentials: which exchange used what, by the step's name,
# or by the exchange that opened the connect session.
BEARERS: dict[int, str] = {1: "", 2: "not-a-uuid", 3: OTHER_KEY}
SESSION_OF = {12: 11, 53: 11, 57: 55}
EXTRA_HEADERS = {28: {"provider-config-key": KEY}}
IMPORTED_UNDER_TROUBLE = (500, 400, 429)


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer."""

    number: int
    why: str
    method: str
    path: str
    params: dict[str, Any] | None
    body: Any
    status: int
    headers: dict[str, str]
    answer: Any


def _load_exchanges() -> list[Exchange]:
    found = []
    lines = (FIXTURES / "http.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        asked = row["request"]
        found.append(
            Exchange(
                number,
                row["why"],
                asked["method"],
                asked["path"],
                asked["params"],
                asked["json"],
                row["status"],
                row["headers"],
                row["body"],
            )
        )
    return found


def _load_webhooks() -> list[JSON]:
    lines = (FIXTURES / "webhooks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


EXCHANGES = _load_exchanges()
WEBHOOKS = _load_webhooks()


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


def _recorded_mint() -> Mint:
    """Return a mint whose ids and secrets are the recorded ones, in their order."""
    answers = [each.answer for each in EXCHANGES]
    tokens = [each["data"]["token"] for each in answers if "token" in _data(each)]
    keys = [
        each["data"]["webhook_signing_key"]
        for each in answers
        if "webhook_signing_key" in _data(each)
    ]
    states = [
        each.headers["location"].rpartition("state=")[2]
        for each in EXCHANGES
        if "location" in each.headers
    ]
    events = [json.loads(each["raw"]) for each in WEBHOOKS]
    fresh = [each["connectionId"] for each in events if each["operation"] == "creation"]
    logs = [
        _log_id(each.answer).partition("_")[2]
        for each in EXCHANGES
        if each.status == HTTPStatus.BAD_REQUEST and "force refresh fails" in each.why
    ]
    # Imported connections were named by whoever imported them.
    uuids = [each for each in fresh if each.count("-") == 4]
    return Mint(
        connection_id=_in_turn(uuids),
        oauth_state=_in_turn(states),
        session_token=_in_turn(tokens),
        signing_key=_in_turn(keys),
        log_suffix=_in_turn(logs),
    )


def _data(answer: Any) -> JSON:
    data = answer.get("data") if isinstance(answer, dict) else None
    return data if isinstance(data, dict) else {}


def _in_turn(values: list[str]) -> Any:
    left: Iterator[str] = iter(values)
    return lambda: next(left)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _moment(exchange: Exchange) -> float | None:
    """Tell when an exchange happened, if its answer says so."""
    if exchange.number in MOMENTS:
        return _seconds(MOMENTS[exchange.number])
    answer = exchange.answer if isinstance(exchange.answer, dict) else {}
    data = _data(answer)
    if "expires_at" in data:
        return _seconds(data["expires_at"]) - SESSION_LIFE_S
    if told := data.get("created_at") or answer.get("last_fetched_at"):
        return _seconds(told)
    if exchange.status == HTTPStatus.BAD_REQUEST and (failed := _log_id(answer)):
        return int(failed.partition("_")[0]) / 1000
    return None


def _log_id(answer: JSON) -> str:
    """Return where a failed refresh was logged, or nothing."""
    connection = answer.get("error", {}).get("payload", {}).get("connection", {})
    return connection["errors"][0]["log_id"] if connection else ""


# The provider that the recorded Nango talked to, played again.

PLAIN = {
    "ok": True,
    "app_id": "A0APP",
    "authed_user": {"id": "U0INSTALLER"},
    "scope": "chat:write,commands",
    "token_type": "bot",
    "bot_user_id": "U0BOT",
    "team": {"id": "T0TEAM", "name": "Acme"},
    "enterprise": None,
    "is_enterprise_install": False,
    "access_token": "xoxb-PLAIN",
}


def _rotating(access_token: str, refresh_token: str) -> JSON:
    pair = {"access_token": access_token, "refresh_token": refresh_token}
    return {**PLAIN, **pair, "expires_in": 43200}


CODES = {
    "code1": PLAIN,
    "code2": _rotating("xoxe.xoxb-1-ROTATING", "xoxe-1-REFRESH"),
    "code9": PLAIN,
    "code10": PLAIN,
    "code11": _rotating("xoxe.xoxb-1-ROTATING", "xoxe-1-REFRESH"),
}
REFRESHES = {"xoxe-1-REFRESH": _rotating("xoxe.xoxb-1-ROTATED2", "xoxe-1-REFRESH2")}


@dataclass
class Provider:
    """Answer oauth.v2.access from a script, and keep what was asked."""

    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one exchange."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append(form)
        if form["grant_type"] == "refresh_token":
            refused = {"ok": False, "error": "invalid_refresh_token"}
            return web.json_response(REFRESHES.get(form["refresh_token"], refused))
        refused = {"ok": False, "error": "invalid_code"}
        return web.json_response(CODES.get(form["code"], refused))


@asynccontextmanager
async def _provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.add_routes([web.post("/api/oauth.v2.access", provider.answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        provider.url = f"http://{host}:{port}"
        yield provider
    finally:
        await runner.cleanup()


@dataclass
class Stage:
    """A Nango between a provider and an app, all as they were when it was recorded."""

    url: str
    provider: Provider
    app: RecordingApp
    http: aiohttp.ClientSession
    clock: Clock

    def here(self, recorded: Any) -> Any:
        """Write a recorded value with the addresses of this run."""
        text = json.dumps(recorded)
        here = dict.fromkeys(NANGO_ORIGINS, self.url)
        here[PROVIDER_ORIGIN] = self.provider.url
        for origin, url in here.items():
            address = url.removeprefix("http://")
            text = text.replace(origin, address)
            text = text.replace(origin.replace(":", "%3A"), address.replace(":", "%3A"))
        return json.loads(text)

    async def ask(
        self, method: str, path: str, bearer: str = API_KEY, **details: Any
    ) -> tuple[int, dict[str, str], Any]:
        """Make one request; return status, headers in lower case, and body."""
        headers = dict(details.pop("headers", {}))
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        async with self.http.request(
            method, f"{self.url}{path}", headers=headers, allow_redirects=False, **details
        ) as response:
            text = await response.text()
            body = json.loads(text) if response.content_type == "application/json" else text
            lower = {name.lower(): value for name, value in response.headers.items()}
            return response.status, lower, body

    async def settle(self) -> list[JSON]:
        """Wait for the webhooks under way; list all."""
        _, _, answer = await self.ask("GET", "/_control/deliveries?settled")
        return list(answer["deliveries"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a Nango without integrations, whose ids and secrets are the recorded ones."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(recording_app())
        provider = await stack.enter_async_context(_provider())
        http = await stack.enter_async_context(aiohttp.ClientSession())
        bound = await stack.enter_async_context(bound_port())
        settings = example_settings(
            provider.url, integrations=(), webhook_urls=(f"{app.url}/nango-webhook",)
        )
        nango = serving_nango(bound, settings, clock, mint=_recorded_mint())
        await stack.enter_async_context(nango)
        yield Stage(bound[1], provider, app, http, clock)


def _differences(recorded: Any, seen: Any, place: str = "") -> list[str]:
    """List the places where two JSON values differ; the order of keys does not count."""
    if isinstance(recorded, dict) and isinstance(seen, dict):
        return [
            found
            for name in sorted(recorded.keys() | seen.keys())
            for found in (
                _differences(recorded[name], seen[name], f"{place}.{name}".lstrip("."))
                if name in recorded and name in seen
                else [f"{place}.{name}".lstrip(".")]
            )
        ]
    if isinstance(recorded, list) and isinstance(seen, list) and len(recorded) == len(seen):
        pairs = enumerate(zip(recorded, seen, strict=True))
        return [
            found
            for index, (old, new) in pairs
            for found in _differences(old, new, f"{place}[{index}]")
        ]
    same = type(recorded) is type(seen) and recorded == seen
    return [] if same else [place or "body"]


def _compare(stage: Stage, exchange: Exchange, seen: tuple[int, dict[str, str], Any]) -> list[str]:
    """List where an answer differs from the recorded one."""
    status, headers, body = seen
    found = [] if status == exchange.status else ["status"]
    for name, value in exchange.headers.items():
        found += [] if headers.get(name) == stage.here(value) else [f"header {name}"]
    limited = {name for name in headers if name.startswith("x-ratelimit-")}
    if not limited <= exchange.headers.keys():
        found.append("header x-ratelimit-*")
    if exchange.answer != "(html page)":
        found += _differences(stage.here(exchange.answer), body)
    return found


async def _play(stage: Stage, exchange: Exchange) -> list[str]:
    """Make a recorded request again; list where the answer differs."""
    moment = _moment(exchange)
    stage.clock.seconds = stage.clock.seconds if moment is None else moment
    bearer = BEARERS.get(exchange.number, API_KEY)
    if exchange.number in SESSION_OF:
        bearer = EXCHANGES[SESSION_OF[exchange.number]].answer["data"]["token"]
    details: dict[str, Any] = {"headers": EXTRA_HEADERS.get(exchange.number, {})}
    if exchange.params is not None:
        details["params"] = exchange.params
    if exchange.body is not None:
        details["json"] = exchange.body
    seen = await stage.ask(exchange.method, exchange.path, bearer, **details)
    await stage.settle()
    return _compare(stage, exchange, seen)


async def _refresh_ten_times(stage: Stage) -> None:
    """Do what the recording did before the imports, unrecorded but for the rate limit."""
    connection = EXCHANGES[74].answer["connections"][0]
    path = f"/connections/{connection['connection_id']}"
    params = {"provider_config_key": KEY, "force_refresh": "true"}
    asked = len(stage.provider.asked)
    calls = [stage.ask("GET", path, params=params) for _ in range(10)]
    tokens = {body["credentials"]["access_token"] for _, _, body in await asyncio.gather(*calls)}
    assert tokens == {"xoxe.xoxb-1-ROTATED2"}
    # The real one asked twice; nobody may rely on that.
    assert len(stage.provider.asked) == asked + 1


async def _import_under_trouble(stage: Stage) -> None:
    """Import connections twice while the app answers errors, as the recording did."""
    for status in IMPORTED_UNDER_TROUBLE:
        body = {
            "provider_config_key": KEY,
            "connection_id": f"retry-{status}",
            "credentials": {"type": "OAUTH2", "access_token": "xoxb-RETRY"},
        }
        for _ in range(2):
            attempts = 3 if status >= HTTPStatus.INTERNAL_SERVER_ERROR else 1
            stage.app.answers.extend(web.Response(status=status) for _ in range(attempts))
            answered, _, _ = await stage.ask("POST", "/connections", json=body)
            assert answered == HTTPStatus.CREATED
            last = (await stage.settle())[-1]
            assert [each["status"] for each in last["attempts"]] == [status] * attempts


async def _use_up_the_limit(stage: Stage) -> None:
    remaining = ""
    while remaining != "0":
        _, headers, _ = await stage.ask("GET", "/connections")
        remaining = headers["x-ratelimit-remaining"]


UNRECORDED = {75: _refresh_ten_times, 78: _import_under_trouble}


def _unlike(received: list[Received]) -> list[int]:
    """List the recorded webhooks that did not come as they were recorded."""
    came = list(dict.fromkeys((each.path, each.body, _signatures(each)) for each in received))
    expected = [
        (each["path"], each["raw"].encode(), _recorded_signatures(each)) for each in WEBHOOKS
    ]
    # Failures of one connection look alike, so they are one here.
    unique = list(dict.fromkeys(expected))
    assert len(came) == len(unique)
    return [number for number, (a, b) in enumerate(zip(unique, came, strict=True)) if a != b]


def _signatures(received: Received) -> tuple[str, str]:
    lower = {name.lower(): value for name, value in received.headers.items()}
    return lower["x-nango-hmac-sha256"], lower["x-nango-signature"]


def _recorded_signatures(webhook: JSON) -> tuple[str, str]:
    headers = webhook["headers"]
    return headers["X-Nango-Hmac-Sha256"], headers["X-Nango-Signature"]


async def test_every_recorded_exchange_is_answered_as_the_real_nango_did(stage: Stage) -> None:
    """Replayed in order, all 79 requests get the recorded answers and cause the 19 webhooks."""
    found = set()
    for exchange in EXCHANGES:
        if exchange.number in UNRECORDED:
            await UNRECORDED[exchange.number](stage)
        if exchange.status == HTTPStatus.TOO_MANY_REQUESTS:
            await _use_up_the_limit(stage)
        found |= {(exchange.number, place) for place in await _play(stage, exchange)}
    assert found == DIFFERENCES.keys()
    assert _unlike(stage.app.received) == []
    assert len(EXCHANGES) == 79


@pytest.mark.parametrize("webhook", WEBHOOKS)
def test_every_recorded_signature_is_recomputed(webhook: JSON) -> None:
    """Bytes, HMAC and the legacy hash of each recorded webhook come out the same."""
    raw = webhook["raw"].encode()
    assert encode(json.loads(raw)) == raw
    assert sign(webhook["signing_key"], raw) == webhook["headers"]["X-Nango-Hmac-Sha256"]
    assert sign_legacy(webhook["signing_key"], raw) == webhook["headers"]["X-Nango-Signature"]
