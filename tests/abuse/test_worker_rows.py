"""The worker's half of rows: where an answer may go, what a click may name, what is over.

The other half is in test_edge_rows.py and test_identity_rows.py.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlencode
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from yarl import URL

from interlock_chassis.clock import SystemClock
from interlock_chassis.database import open_pool
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_gateway.adapters.worker_memory import ManualClock
from interlock_gateway.adapters.worker_postgres import PostgresInbox
from interlock_gateway.adapters.worker_slack_web import SlackWeb
from interlock_gateway.migrations import DATABASE, WORKER_ROLE
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.conversation import Conversation
from interlock_gateway.worker.endings import Endings
from interlock_gateway.worker.lanes import (
    Claim,
    Delivery,
    Done,
    LaneLost,
    Outcome,
    Policy,
    Settlement,
)
from interlock_gateway.worker.ports import Ports
from interlock_gateway.worker.slack import BotToken
from interlock_gateway.worker.speech import Pacing
from interlock_gateway.worker.waiting import WaitingQuestion
from interlock_sandbox.testing import RecordingApp, recording_app
from interlock_tokens.grants import SlackGrant, Workspace

_PUT = "SELECT gateway.inbox_put($1, '', 'event', $2, $3, false, $4, $5, $6)"
TEAM, CHANNEL, MIA = "T0NORTHWIND", "C0GENERAL", "U0MIA"
WHISPER = "/api/chat.postEphemeral"
HOOK = f"/actions/{TEAM}/1/x"


def row(row_id: str) -> pytest.MarkDecorator:
    """Name the catalogue's row in the test's id."""
    return pytest.mark.parametrize("row_id", [row_id])


@dataclass
class Peers:
    """Identity, the vault and the questions that wait, as far as a click asks them."""

    picked: list[Choice] = field(default_factory=list)

    async def unlink_self(self, grant: Secret[str]) -> bool:
        """Remove the link."""
        return True

    async def read_bot_token(self, grant: Secret[str], newer_than: int) -> BotToken:
        """Release the token."""
        return BotToken(Secret("xoxb-1"), 1, TEAM)

    async def find_by_key(self, event_key: str) -> WaitingQuestion | None:
        """Find a question of Mia's that offers two agents."""
        offered = [Choice("docs", "helper", "Helper"), Choice("docs", "guide", "Guide")]
        if event_key == "Ev1":
            return WaitingQuestion("Ev1", TEAM, MIA, Secret("grant"), offered)
        return None

    async def resume_picked(self, event_key: str, choice: Choice) -> bool:
        """Note what was picked."""
        self.picked.append(choice)
        return True


class Stage:
    """A worker's conversation, with Slack's Web API over real HTTP."""

    def __init__(self, app: RecordingApp, http: aiohttp.ClientSession) -> None:
        self.app = app
        self.clock = ManualClock()
        self.peers = Peers()
        self._grant: SlackGrant | None = None
        own = URL(app.url)
        hosts = ("hooks.slack.com", own.authority)
        peers = cast("Any", self.peers)
        self._conversation = Conversation(
            Ports(
                identity=peers,
                vault=peers,
                runner=peers,
                slack=SlackWeb(http, own / "api/", response_hosts=hosts, may_be_plain=True),
                runs=peers,
                waiting=peers,
                endings=peers,
                open_grant=lambda _: cast("SlackGrant", self._grant),
            ),
            pacing=Pacing(),
            clock=self.clock,
            endings=Endings(asyncio.Event()),
            sleep=asyncio.sleep,
        )

    def whispers_work(self) -> None:
        """Have Slack's API answer the next call."""
        self.app.answers.append(web.json_response({"ok": True, "message_ts": "1.2"}))

    @property
    def called(self) -> list[str]:
        """List where requests went."""
        return [each.path for each in self.app.received]

    async def click(
        self,
        action: dict[str, Any],
        response_url: str = "",
        *,
        age: timedelta = timedelta(0),
        attempt: int = 1,
    ) -> Outcome:
        """Act upon a click of Mia's, some time after it."""
        payload = {
            "type": "block_actions",
            "channel": {"id": CHANNEL},
            "actions": [action],
            "response_url": response_url or self.app.url + HOOK,
        }
        body = urlencode({"payload": json.dumps(payload)}).encode()
        at = self.clock.now()
        self._grant = SlackGrant(
            jti="jti",
            issued_at=at,
            expires_at=at + timedelta(minutes=15),
            workspace=Workspace("", TEAM, is_enterprise_install=False, app_id="A0APP"),
            slack_user_id=MIA,
            slack_user_team_id=TEAM,
            event_key="Click1",
            event_type="block_actions",
            body_sha256=hashlib.sha256(body).hexdigest(),
            event_at=at,
            renewed=False,
            is_stranger=False,
        )
        self.clock.advance(age)
        return await self._conversation.handle(
            Delivery(
                event_id=1,
                event_key="Click1",
                kind="interaction",
                claim=Claim("lane", 1, TEAM, is_control=True),
                body=body,
                grant=Secret("grant"),
                event_at=at,
                attempt=attempt,
                is_last=False,
                is_given_up=False,
            )
        )


UNLINK = {"action_id": answer.UNLINK_ACTION}


def _pick(value: str, block_id: str = "pick:Ev1", **more: object) -> dict[str, Any]:
    option = {"selected_option": {"value": value}}
    return {"action_id": answer.PICK_ACTION, "block_id": block_id, **option, **more}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Run a worker's conversation beside an app that stands for Slack."""
    async with recording_app() as app, aiohttp.ClientSession() as http:
        yield Stage(app, http)


@row("IA-03")
@pytest.mark.parametrize(
    "url",
    [
        f"https://evil.example{HOOK}",
        f"https://hooks.slack.com.evil.example{HOOK}",
        f"https://hooks.slack.com@evil.example{HOOK}",
        f"http://127.0.0.1{HOOK}",
        f"https://hooks.slack.com:8443{HOOK}",
        f"https://169.254.169.254{HOOK}",
        f"https://hooks\u3002slack.com{HOOK}",
        f"https://hooks.sl\u0430ck.com{HOOK}",
        "https://hooks.slack.com/actions/T0OTHER/1/x",
    ],
)
async def test_a_foreign_response_url_is_never_called(
    stage: Stage, row_id: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On record as ssrf_refused; what was clicked is done, and answered by a whisper."""
    stage.whispers_work()
    assert await stage.click(UNLINK, url) == Done()
    assert stage.called == [WHISPER]
    assert "ssrf_refused" in capsys.readouterr().out


@row("IA-04")
async def test_a_response_url_leads_nowhere_else(stage: Stage, row_id: str) -> None:
    """A redirect is not followed; the answer is whispered instead."""
    elsewhere = {"Location": f"{stage.app.url}/latest/meta-data"}
    stage.app.answers.append(web.Response(status=302, headers=elsewhere))
    stage.whispers_work()
    assert await stage.click(UNLINK) == Done()
    assert stage.called == [HOOK, WHISPER]


@row("IA-05")
@pytest.mark.parametrize(
    ("age", "attempt", "called"),
    [
        (timedelta(minutes=29, seconds=59), 1, HOOK),
        (timedelta(minutes=30), 1, WHISPER),
        (timedelta(0), 5, HOOK),
        (timedelta(0), 6, WHISPER),
    ],
)
async def test_a_worn_response_url_is_not_tried(
    stage: Stage, row_id: str, age: timedelta, attempt: int, called: str
) -> None:
    """After 30 minutes, or at a sixth attempt, the answer is whispered without it."""
    if called == WHISPER:
        stage.whispers_work()
    assert await stage.click(UNLINK, age=age, attempt=attempt) == Done()
    assert stage.called == [called]


@row("IA-06")
@pytest.mark.parametrize(
    ("action", "outcome", "said"),
    [
        (_pick("2"), "UNKNOWN_CHOICE", answer.UNKNOWN_CHOICE),
        (_pick("-1"), "UNKNOWN_CHOICE", answer.UNKNOWN_CHOICE),
        (_pick("docs/secret"), "UNKNOWN_CHOICE", answer.UNKNOWN_CHOICE),
        (_pick("0", "pick:Ev2"), "NOT_WAITING", answer.ALREADY_PICKED),
    ],
    ids=["beyond", "negative", "named", "another-question"],
)
async def test_a_click_names_only_what_was_offered(
    stage: Stage, row_id: str, action: dict[str, Any], outcome: str, said: str
) -> None:
    """The click carries a number, and what it stands for is ours; the rest is the platform's no."""
    assert await stage.click(action) == Done(outcome)
    assert stage.peers.picked == []
    assert json.loads(stage.app.received[0].body)["text"] == said
    forged = _pick("1", project_id="docs", agent_id="secret", private_metadata="secret")
    assert await stage.click(forged) == Done()
    assert stage.peers.picked == [Choice("docs", "guide", "Guide")]
    assert "may not run" in answer.failure_text("AGENT_NOT_ALLOWED")


@row("GI-02")
async def test_a_completed_event_has_no_grant_to_renew(
    cluster: ScratchDatabases, row_id: str
) -> None:
    """It is nowhere in the worker's database any more, and its lane hands out nothing."""
    urls = await cluster.database(DATABASE)
    grant = f"grant-{uuid4().hex}"
    owner = await asyncpg.connect(urls.owner.reveal())
    try:
        async with open_pool(urls.roles[WORKER_ROLE], application="test") as pool:
            now = SystemClock().now()
            await owner.fetchval(_PUT, "Ev1", "T1:C1:1", "T1", b"{}", grant, now)
            inbox = PostgresInbox(pool, Policy())
            [claim] = await inbox.claim("worker", 8, 8)
            delivery = await inbox.step(claim, None, keep=True)
            assert delivery is not None
            assert grant in await _everything(owner)
            done = Settlement(delivery.event_id, Done())
            assert await inbox.step(claim, done, keep=True) is None
            assert grant not in await _everything(owner)
            with pytest.raises(LaneLost):
                await inbox.step(claim, None, keep=True)
    finally:
        await owner.close()


async def _everything(owner: "asyncpg.Connection[asyncpg.Record]") -> str:
    """Write out every row of the gateway's database."""
    tables = await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'gateway'")
    rows = []
    for table in tables:
        rows += await owner.fetch(f"SELECT * FROM gateway.{table[0]}")  # noqa: S608 - Our own.
    return "\n".join(str(dict(each)) for each in rows)
