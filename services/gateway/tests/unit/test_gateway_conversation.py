"""Claims about conversations: who is answered, as whom, once, and with a visible end."""

# ruff: noqa: D102 - The methods of fakes are those of their ports.

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from interlock_chassis.errors import Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.adapters.worker_memory import (
    ManualClock,
    MemoryInbox,
    MemoryRuns,
    MemoryWaiting,
    Put,
)
from interlock_gateway.domain.slack_request import LINK_COMMAND
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import Choice, Project, Source
from interlock_gateway.worker.conversation import Conversation
from interlock_gateway.worker.endings import Endings
from interlock_gateway.worker.lanes import Dead, Done, LaneLost, Outcome, Policy, Retry, Settlement
from interlock_gateway.worker.ports import (
    Agent,
    ApprovalNeeded,
    Ask,
    Finished,
    Ports,
    RunEvent,
    Started,
    Text,
    ToolStarted,
    UserToken,
)
from interlock_gateway.worker.slack import (
    Block,
    BotToken,
    BotTokenRefused,
    Channel,
    Note,
    Place,
    Profile,
    Reader,
    SlackRateLimited,
    SlackRefused,
    SlackUnavailable,
    ThreadMessage,
)
from interlock_gateway.worker.speech import Pacing
from interlock_gateway.worker.waiting import repair_lost_asks, resume_after_link
from interlock_tokens.errors import InvalidToken, PurposeNotGranted
from interlock_tokens.grants import AdminGrant, AdminPurpose, SlackGrant, Workspace

TEAM, CHANNEL, USER, BOT = "T1TEAM", "C1CHANNEL", "U1ADA", "U9BOT"
WORKSPACE = Workspace("", TEAM, is_enterprise_install=False, app_id="A1APP")
DEFAULT = Agent("docs", "helper")
COMPLETED = Finished("completed")


def remote(kind: Kind, reason: str) -> RemoteError:
    """Make an error as a peer answers it."""
    return RemoteError(kind, reason)


NOT_LINKED = remote(Kind.PRECONDITION, "USER_NOT_LINKED")


@dataclass
class Faults:
    """Errors to raise at the next calls, by method."""

    waiting: dict[str, list[ServiceError]] = field(default_factory=lambda: defaultdict(list))

    def add(self, method: str, *errors: ServiceError) -> None:
        """Let the next calls of a method fail."""
        self.waiting[method] += errors

    def meet(self, method: str) -> None:
        """Raise the next error of a method, if there is one."""
        if self.waiting[method]:
            raise self.waiting[method].pop(0)


@dataclass
class Said:
    """A message in the fake Slack."""

    ts: str
    place: Place
    text: str
    blocks: Sequence[Block] = ()
    metadata: Mapping[str, Any] | None = None
    is_streaming: bool = False
    only_for: str = ""

    @property
    def shown(self) -> str:
        """Everything a reader reads."""
        parts = [self.text] if not self.blocks or not self.text_is_fallback else []
        for block in self.blocks:
            parts += [block["text"] if isinstance(block.get("text"), str) else ""]
            parts += [block["text"]["text"]] if isinstance(block.get("text"), dict) else []
            if block["type"] == "context":
                parts += [each["text"] for each in block["elements"]]
        return "\n".join(part for part in parts if part)

    text_is_fallback: bool = False


class FakeSlack:
    """Slack, as its documentation says it behaves."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.calls: list[str] = []
        self.said: list[Said] = []
        self.history: list[ThreadMessage] = []
        self.good_tokens = {"xoxb-1"}
        self.recipients: list[Reader] = []
        self.statuses: list[str] = []
        self.responses: list[Note] = []

    def _begin(self, method: str, token: Secret[str]) -> None:
        self.calls.append(method)
        self.faults.meet(method)
        if token.reveal() not in self.good_tokens:
            raise BotTokenRefused("token_expired")

    def _new(self, place: Place, text: str, **more: Any) -> Said:
        message = Said(f"1700000100.{len(self.said):06}", place, text, **more)
        self.said.append(message)
        return message

    def _find(self, ts: str) -> Said:
        return next(message for message in self.said if message.ts == ts)

    def messages(self) -> list[Said]:
        """List what everybody sees."""
        return [message for message in self.said if not message.only_for]

    def whispers(self) -> list[Said]:
        """List what one person alone sees."""
        return [message for message in self.said if message.only_for]

    async def check(self, token: Secret[str]) -> None:
        self._begin("check", token)

    async def profile(self, token: Secret[str], user_id: str) -> Profile:
        self._begin("profile", token)
        return Profile("Ada", "ada@example.com")

    async def thread(self, token: Secret[str], place: Place) -> Sequence[ThreadMessage]:
        self._begin("thread", token)
        ours = [
            ThreadMessage(each.ts, BOT, each.text, (each.metadata or {}).get("event_payload", {}))
            for each in self.messages()
            if each.place == place
        ]
        return [*self.history, *ours]

    async def channels(self, token: Secret[str], team_id: str) -> Sequence[Channel]:
        self._begin("channels", token)
        return []

    async def set_status(self, token: Secret[str], place: Place, status: str) -> None:
        self._begin("set_status", token)
        self.statuses.append(status)

    async def whisper(self, token: Secret[str], place: Place, user_id: str, note: Note) -> None:
        self._begin("whisper", token)
        self._new(place, note.text, blocks=note.blocks, only_for=user_id, text_is_fallback=True)

    async def post(self, token: Secret[str], place: Place, note: Note) -> str:
        self._begin("post", token)
        made = self._new(
            place, note.text, blocks=note.blocks, metadata=note.metadata, text_is_fallback=True
        )
        return made.ts

    async def update(self, token: Secret[str], channel: str, ts: str, note: Note) -> None:
        self._begin("update", token)
        message = self._find(ts)
        if message.is_streaming:
            raise SlackRefused("streaming_state_conflict")
        message.text, message.blocks, message.metadata = note.text, note.blocks, note.metadata
        message.text_is_fallback = True

    async def start_stream(self, token: Secret[str], place: Place, reader: Reader) -> str:
        self._begin("start_stream", token)
        self.recipients.append(reader)
        return self._new(place, "", is_streaming=True).ts

    async def append_stream(self, token: Secret[str], channel: str, ts: str, text: str) -> None:
        self._begin("append_stream", token)
        message = self._find(ts)
        if not message.is_streaming:
            raise SlackRefused("message_not_in_streaming_state")
        assert 0 < len(text) <= 12_000
        message.text += text

    async def stop_stream(
        self,
        token: Secret[str],
        channel: str,
        ts: str,
        *,
        text: str,
        blocks: Sequence[Block],
        metadata: Mapping[str, Any],
    ) -> None:
        self._begin("stop_stream", token)
        message = self._find(ts)
        if not message.is_streaming:
            raise SlackRefused("message_not_in_streaming_state")
        message.text += text
        message.blocks, message.metadata, message.is_streaming = blocks, metadata, False

    async def respond(self, response_url: Secret[str], team_id: str, note: Note) -> None:
        self.calls.append("respond")
        self.faults.meet("respond")
        self.responses.append(note)


class FakeIdentity:
    """Identity, with one user that is linked or not."""

    def __init__(self, clock: ManualClock) -> None:
        self.faults = Faults()
        self.is_linked = True
        self.default: Agent | None = DEFAULT
        self.expired: set[str] = set()
        self.used: list[tuple[str, str]] = []
        self.links = 0
        self._clock = clock

    def _begin(self, method: str, grant: Secret[str]) -> None:
        self.used.append((method, grant.reveal()))
        self.faults.meet(method)
        if grant.reveal() in self.expired:
            raise InvalidToken

    def _require_linked(self) -> None:
        if not self.is_linked:
            raise NOT_LINKED

    async def resolve_user(self, grant: Secret[str]) -> str:
        self._begin("resolve_user", grant)
        self._require_linked()
        return "Ada Lovelace"

    async def create_link(self, grant: Secret[str], profile: Profile) -> Secret[str]:
        self._begin("create_link", grant)
        self.links += 1
        return Secret(f"https://app.example/work-apps/slack/link?code={self.links}")

    async def issue_user_token(
        self, grant: Secret[str], agent: Agent | None, channel: str
    ) -> UserToken:
        self._begin("issue_user_token", grant)
        self._require_linked()
        return UserToken(Secret("user-token"), "tenant")

    async def resolve_agent(self, grant: Secret[str], channel: str) -> Agent | None:
        self._begin("resolve_agent", grant)
        return self.default

    async def renew_grant(self, grant: Secret[str]) -> Secret[str]:
        self.used.append(("renew_grant", grant.reveal()))
        self.faults.meet("renew_grant")
        return Secret(f"renewed {grant.reveal()}")

    async def unlink_self(self, grant: Secret[str]) -> bool:
        self._begin("unlink_self", grant)
        was_linked, self.is_linked = self.is_linked, False
        return was_linked


class FakeVault:
    """The vault, with one bot token."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.reads: list[tuple[str, int]] = []
        self.revocations: list[tuple[Sequence[str], Sequence[str]]] = []
        self.has_ended = True
        self.expired: set[str] = set()

    async def read_bot_token(self, grant: Secret[str], newer_than: int) -> BotToken:
        self.reads.append((grant.reveal(), newer_than))
        self.faults.meet("read_bot_token")
        if grant.reveal() in self.expired:
            raise InvalidToken
        generation = newer_than + 1
        return BotToken(Secret(f"xoxb-{generation}"), generation, TEAM)

    async def apply_revocation(
        self,
        grant: Secret[str],
        event_at: datetime,
        user_ids: Sequence[str],
        bot_user_ids: Sequence[str],
    ) -> bool:
        self.revocations.append((user_ids, bot_user_ids))
        return self.has_ended

    async def uninstall(self, grant: Secret[str]) -> None:
        raise NotImplementedError


class FakeEndingNews:
    """The word between workers, which reaches this process at once."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def tell(self, team: str) -> None:
        self.told.put_nowait(team)

    async def hear(self) -> AsyncGenerator[str, None]:
        while True:
            yield await self.told.get()


Script = Sequence[RunEvent | ServiceError | Callable[[], None] | asyncio.Event]


class FakeRunner:
    """The runner, playing a script: events, errors, things that happen, waits."""

    def __init__(self) -> None:
        self.script: Script = (Started(), Text("Hello "), Text("Ada."), COMPLETED)
        self.projects: list[Project] = [
            Project("Docs", [Choice("docs", "helper", "Helper"), Choice("docs", "poet", "Poet")])
        ]
        self.asked: list[Ask] = []
        self.closed = 0

    async def list_projects(self, token: UserToken) -> Sequence[Project]:
        return self.projects

    async def agent_name(self, token: UserToken, agent: Agent) -> str:
        return agent.agent_id.title()

    async def run(self, token: UserToken, ask: Ask) -> AsyncGenerator[RunEvent, None]:
        self.asked.append(ask)
        try:
            for step in self.script:
                if isinstance(step, ServiceError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif callable(step):
                    step()
                else:
                    yield step
        finally:
            self.closed += 1


class Desk:
    """A worker with fakes around it, and the hands of the people in Slack."""

    def __init__(self, *, pacing: Pacing | None = None) -> None:
        self.clock = ManualClock()
        self.inbox = MemoryInbox(Policy(max_attempts=3), self.clock)
        self.runs = MemoryRuns(self.inbox)
        self.waiting = MemoryWaiting(self.inbox, self.clock)
        self.slack = FakeSlack()
        self.identity = FakeIdentity(self.clock)
        self.vault = FakeVault()
        self.runner = FakeRunner()
        self.closing = asyncio.Event()
        self.endings = Endings(self.closing)
        self.news = FakeEndingNews()
        self.slept: list[float] = []
        self._grants: dict[str, SlackGrant] = {}
        self.conversation = Conversation(
            Ports(
                identity=self.identity,
                vault=self.vault,
                runner=self.runner,
                slack=self.slack,
                runs=self.runs,
                waiting=self.waiting,
                endings=self.news,
                open_grant=self._open_grant,
            ),
            pacing=pacing or Pacing(),
            clock=self.clock,
            endings=self.endings,
            sleep=self._sleep,
        )

    def _open_grant(self, grant: Secret[str]) -> SlackGrant:
        try:
            return self._grants[grant.reveal()]
        except KeyError:
            raise InvalidToken from None

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(timedelta(seconds=seconds))

    async def put(
        self,
        key: str,
        body: bytes,
        *,
        kind: str,
        lane: str,
        user: str = USER,
        control: bool = False,
        event_type: str = "",
    ) -> None:
        """Put a request into the inbox as edge does."""
        grant = f"grant of {key}"
        self._grants[grant] = SlackGrant(
            jti=key,
            issued_at=self.clock.now(),
            expires_at=self.clock.now() + timedelta(minutes=15),
            workspace=WORKSPACE,
            slack_user_id=user,
            slack_user_team_id=TEAM,
            event_key=key,
            event_type=event_type or kind,
            body_sha256=hashlib.sha256(body).hexdigest(),
            event_at=self.clock.now(),
            renewed=False,
            is_stranger=False,
        )
        await self.inbox.put(
            Put(
                event_key=key,
                lane=lane,
                team=TEAM,
                body=body,
                grant=Secret(grant),
                event_at=self.clock.now(),
                kind=kind,
                is_control=control,
            )
        )

    async def say(
        self,
        text: str,
        *,
        key: str = "Ev1",
        ts: str = "1700000000.000100",
        thread_ts: str = "",
        direct: bool = False,
        **envelope: Any,
    ) -> None:
        """Write to the bot: a mention in a channel, or a direct message."""
        event = {
            "type": "message" if direct else "app_mention",
            "channel": "D1DIRECT" if direct else CHANNEL,
            "user": USER,
            "team": TEAM,
            "text": text if direct else f"<@{BOT}> {text}",
            "ts": ts,
        }
        if thread_ts:
            event["thread_ts"] = thread_ts
        authorizations = [{"team_id": TEAM, "user_id": BOT, "is_bot": True}]
        body = {"event": event, "authorizations": authorizations, **envelope}
        lane = f"{TEAM}:{event['channel']}:{thread_ts or ts}"
        await self.put(key, json.dumps(body).encode(), kind="event", lane=lane)

    async def click(self, key: str, action: Mapping[str, Any], user: str = USER) -> None:
        """Use an element of a message."""
        payload = {
            "type": "block_actions",
            "channel": {"id": CHANNEL},
            "container": {"channel_id": CHANNEL, "message_ts": "1.1"},
            "actions": [action],
            "response_url": f"https://hooks.slack.com/actions/{TEAM}/1/x",
        }
        body = urlencode({"payload": json.dumps(payload)}).encode()
        await self.put(
            key, body, kind="interaction", lane=f"{TEAM}:{CHANNEL}:1.1", user=user, control=True
        )

    async def pick(self, value: str, *, key: str = "Click1", user: str = USER) -> None:
        """Pick an agent for the question Ev1."""
        action = {
            "action_id": answer.PICK_ACTION,
            "block_id": "pick:Ev1",
            "selected_option": {"value": value},
        }
        await self.click(key, action, user)

    async def command(
        self, text: str, *, key: str = "Command1", event_type: str = "command"
    ) -> None:
        """Run the slash command."""
        form = {
            "command": "/ask",
            "text": text,
            "channel_id": CHANNEL,
            "response_url": f"https://hooks.slack.com/commands/{TEAM}/1/x",
        }
        lane = f"{TEAM}:{CHANNEL}:{USER}"
        await self.put(
            key, urlencode(form).encode(), kind="command", lane=lane, event_type=event_type
        )

    async def work(self) -> list[Outcome]:
        """Work off everything that is due."""
        outcomes: list[Outcome] = []
        while claims := await self.inbox.claim("worker", 8, 8):
            for claim in claims:
                delivery = await self.inbox.step(claim, None, keep=True)
                while delivery is not None:
                    outcome = await self.conversation.handle(delivery)
                    outcomes.append(outcome)
                    settlement = Settlement(delivery.event_id, outcome)
                    delivery = await self.inbox.step(claim, settlement, keep=True)
        return outcomes

    async def work_after_pause(self) -> list[Outcome]:
        """Work off what is due once every pause is over."""
        self.clock.advance(timedelta(minutes=10))
        return await self.work()

    async def crash(self, key: str = "Ev1", *, after: Script) -> None:
        """Let a worker die in the middle of a run."""
        reached = asyncio.Event()
        self.runner.script = (*after, reached.set, asyncio.Event())
        (claim,) = await self.inbox.claim("doomed", 8, 8)
        delivery = await self.inbox.step(claim, None, keep=True)
        assert delivery is not None
        assert delivery.event_key == key
        doomed = asyncio.create_task(self.conversation.handle(delivery))
        await reached.wait()
        calls = list(self.slack.calls)
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        assert self.slack.calls == calls, "a worker that lost its lane says nothing more"
        self.clock.advance(timedelta(minutes=1))

    async def link(self) -> bool:
        """Link the account and tell the worker, as edge does."""
        self.identity.is_linked = True
        grant = AdminGrant(
            jti="resume",
            issued_at=self.clock.now(),
            expires_at=self.clock.now() + timedelta(minutes=5),
            workspace=WORKSPACE,
            tenant_id="tenant",
            user_id="ada",
            purpose=AdminPurpose.RESUME,
            slack_user_id=USER,
        )
        return await resume_after_link(self.waiting, grant, Secret("resume grant"))

    def the_answer(self) -> Said:
        """Return the only message everybody sees."""
        (message,) = self.slack.messages()
        return message

    def the_whisper(self) -> Said:
        """Return the only whisper."""
        (whisper,) = self.slack.whispers()
        return whisper


@pytest.fixture
def desk() -> Desk:
    """Give a worker with everything working."""
    return Desk()


# Answering.


async def test_mention_is_answered_in_its_thread(desk: Desk) -> None:
    """The answer streams to the asking person, names the agent, and is ended."""
    await desk.say("What is new?")
    assert await desk.work() == [Done()]
    message = desk.the_answer()
    assert message.place == Place(CHANNEL, "1700000000.000100")
    assert message.shown == "Hello Ada.\nAnswered by Helper"
    assert not message.is_streaming
    assert desk.slack.recipients == [Reader(USER, TEAM)]
    assert desk.runs.outcomes == {"Ev1": "completed"}
    assert desk.slack.statuses == ["is thinking…"]


async def test_run_is_asked_with_stable_ids(desk: Desk) -> None:
    """The message id comes from the event, the conversation from thread and agent."""
    await desk.say("One", key="Ev1")
    await desk.say("Two", key="Ev2", ts="1700000000.000200", thread_ts="1700000000.000100")
    await desk.work()
    first, second = desk.runner.asked
    assert first.message_id == hashlib.sha256(b"Ev1").hexdigest()
    assert first.message_id != second.message_id
    assert first.conversation_id == second.conversation_id
    assert (first.agent, first.prompt, first.entry_point) == (DEFAULT, "One", "app_mention")


REFUSED = RemoteError(Kind.UNAUTHENTICATED, "USER_TOKEN_REFUSED")


async def test_a_token_that_ended_on_the_way_is_issued_anew(desk: Desk) -> None:
    """GR-01: refused before the first word, a run is tried with one new token, as the same run."""
    spoken = desk.runner.script
    desk.runner.script = (lambda: setattr(desk.runner, "script", spoken), REFUSED)
    await desk.say("What is new?")
    assert await desk.work() == [Done()]
    assert desk.the_answer().shown == "Hello Ada.\nAnswered by Helper"
    first, second = desk.runner.asked
    assert first == second
    assert [method for method, _ in desk.identity.used].count("issue_user_token") == 2


async def test_a_token_that_stays_refused_is_not_issued_for_ever(desk: Desk) -> None:
    """GR-01: the second refusal is the end, and the person is told."""
    desk.runner.script = (REFUSED,)
    await desk.say("What is new?")
    assert await desk.work() == [Done("USER_TOKEN_REFUSED")]
    assert len(desk.runner.asked) == 2


async def test_a_token_refused_after_words_is_no_second_run(desk: Desk) -> None:
    """SS-04: what has begun to answer is not begun again; the person sees how far it came."""
    desk.runner.script = (Started(), Text("Hello "), REFUSED)
    await desk.say("What is new?")
    await desk.work()
    assert len(desk.runner.asked) == 1
    assert "Hello" in desk.the_answer().shown


async def test_bot_token_is_read_once_for_a_reply(desk: Desk) -> None:
    """One reply is one read of the token, with the event's own grant."""
    await desk.say("What is new?")
    await desk.work()
    assert desk.vault.reads == [("grant of Ev1", 0)]


async def test_direct_message_is_answered(desk: Desk) -> None:
    """A direct message needs no mention."""
    await desk.say("Hi", direct=True)
    assert await desk.work() == [Done()]
    assert desk.the_answer().place.channel == "D1DIRECT"
    assert desk.runner.asked[0].entry_point == "direct_message"


async def test_thread_goes_upstream_as_context(desk: Desk) -> None:
    """A question in a thread brings the messages before it, and is not repeated in them."""
    desk.slack.history = [
        ThreadMessage("1.1", "U2", "The build &lt;main&gt; fails", {}),
        ThreadMessage("1.2", USER, f"<@{BOT}> Why?", {}),
    ]
    await desk.say("Why?", ts="1.2", thread_ts="1.1")
    await desk.work()
    prompt = desk.runner.asked[0].prompt
    assert "U2: The build <main> fails" in prompt
    assert prompt.endswith("---\nWhy?")
    assert prompt.count("Why?") == 1


async def test_bare_mention_in_a_thread_asks_about_the_thread(desk: Desk) -> None:
    """Whoever only mentions the bot wants the thread answered."""
    desk.slack.history = [ThreadMessage("1.1", "U2", "Can anyone help?", {})]
    await desk.say("", ts="1.2", thread_ts="1.1")
    await desk.work()
    assert "U2: Can anyone help?" in desk.runner.asked[0].prompt


async def test_long_thread_keeps_its_root_and_newest_messages(desk: Desk) -> None:
    """At most 50 messages and 48 KiB go upstream."""
    desk.slack.history = [ThreadMessage(f"{n}.0", "U2", f"<{n}>", {}) for n in range(1, 80)]
    await desk.say("And now?", ts="99.0", thread_ts="1.0")
    await desk.work()
    prompt = desk.runner.asked[0].prompt
    assert prompt.count("U2: ") == 50
    assert "<1>" in prompt
    assert "<79>" in prompt
    assert "<5>" not in prompt
    desk.slack.history = [ThreadMessage(f"{n}.0", "U2", "é" * 5000, {}) for n in range(1, 40)]
    await desk.say("And now?", key="Ev2", ts="99.1", thread_ts="1.0")
    await desk.work()
    assert len(desk.runner.asked[1].prompt.encode()) < 48 * 1024


async def test_unreadable_thread_does_not_stop_the_question(desk: Desk) -> None:
    """Without the right to look, the question is asked without context."""
    desk.slack.faults.add("thread", SlackRefused("missing_scope"))
    await desk.say("Why?", ts="1.2", thread_ts="1.1")
    assert await desk.work() == [Done()]
    assert desk.runner.asked[0].prompt == "Why?"


async def test_empty_mention_gets_a_hint(desk: Desk) -> None:
    """A mention without a question runs nothing."""
    await desk.say("")
    assert await desk.work() == [Done("NO_QUESTION")]
    assert desk.the_whisper().text == answer.HINT
    assert desk.runner.asked == []


async def test_model_output_mentions_nobody(desk: Desk) -> None:
    """Mentions and links are defused although they arrive in pieces."""
    desk.runner.script = (
        Started(),
        Text("See <"),
        Text("!here> [x]"),
        Text("(https://e)"),
        COMPLETED,
    )
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().text == "See <\u2060!here> [x] (https://e)"


async def test_sources_stand_below_the_answer(desk: Desk) -> None:
    """Sources are shown once, with their hosts."""
    source = Source("Guide", "https://docs.example/guide")
    desk.runner.script = (Started(), source, Text("Yes."), COMPLETED)
    await desk.say("Hi")
    await desk.work()
    assert "<https://docs.example/guide|Guide (docs.example)>" in desk.the_answer().shown


async def test_tools_show_in_the_status(desk: Desk) -> None:
    """While a tool works, the status says which."""
    desk.runner.script = (Started(), ToolStarted("search"), Text("Yes."), COMPLETED)
    await desk.say("Hi")
    await desk.work()
    assert desk.slack.statuses == ["is thinking…", "is using search…"]


async def test_missing_status_is_no_failure(desk: Desk) -> None:
    """An app without the status feature still answers."""
    refused = SlackRefused("unknown_method")
    desk.slack.faults.add("set_status", refused, refused)
    await desk.say("Hi")
    assert await desk.work() == [Done()]


async def test_answer_in_a_shared_channel_is_whispered(desk: Desk) -> None:
    """Where another organization reads along, only the asking person sees the answer."""
    await desk.say("Hi", is_ext_shared_channel=True)
    assert await desk.work() == [Done()]
    assert desk.slack.messages() == []
    assert desk.the_whisper().shown == "Hello Ada.\nAnswered by Helper"


# Linking.


async def test_unlinked_user_gets_a_link_and_then_the_answer(desk: Desk) -> None:
    """The question waits for the link and runs by itself, once, in its own thread."""
    desk.identity.is_linked = False
    await desk.say("What is new?")
    assert await desk.work() == [Done("USER_NOT_LINKED")]
    whisper = desk.the_whisper()
    assert whisper.only_for == USER
    button = whisper.blocks[1]["elements"][0]
    assert button["url"] == Secret("https://app.example/work-apps/slack/link?code=1")
    assert desk.runner.asked == []

    assert await desk.link()
    assert not await desk.link()
    assert await desk.work() == [Done()]
    assert desk.the_answer().shown.startswith("Hello Ada.")
    assert desk.runner.asked[0].entry_point == "smart_link_resume"
    assert desk.runner.asked[0].prompt == "What is new?"
    notice = desk.slack.whispers()[1]
    assert "Ada Lovelace" in notice.text
    assert notice.blocks[1]["elements"][0]["action_id"] == answer.UNLINK_ACTION


async def test_resumed_question_uses_the_resume_grant(desk: Desk) -> None:
    """What came with the link is the proof; no other grant is needed."""
    desk.identity.is_linked = False
    await desk.say("Hi")
    await desk.work()
    desk.identity.used.clear()
    await desk.link()
    await desk.work()
    assert {grant for _, grant in desk.identity.used} == {"resume grant"}


async def test_expired_resume_grant_gives_way_to_the_events_own(desk: Desk) -> None:
    """A question that waited in its lane longer than the grant lives still runs."""
    desk.identity.is_linked = False
    await desk.say("Hi")
    await desk.work()
    desk.identity.expired = {"resume grant", "grant of Ev1"}
    desk.vault.expired = {"resume grant", "grant of Ev1"}
    await desk.link()
    assert await desk.work() == [Done()]
    assert ("renew_grant", "grant of Ev1") in desk.identity.used


async def test_person_is_told_of_the_link_once(desk: Desk) -> None:
    """A retry of the resumed question does not repeat the notice."""
    desk.identity.is_linked = False
    await desk.say("Hi")
    await desk.work()
    desk.identity.faults.add("resolve_agent", remote(Kind.UNAVAILABLE, "PEER_UNAVAILABLE"))
    await desk.link()
    assert [type(each) for each in await desk.work()] == [Retry]
    assert await desk.work_after_pause() == [Done()]
    assert desk.runner.asked[0].entry_point == "smart_link_resume"
    assert len(desk.slack.whispers()) == 2


async def test_only_the_newest_question_waits(desk: Desk) -> None:
    """Whoever asks twice before linking gets the newer question answered."""
    desk.identity.is_linked = False
    await desk.say("Old", key="Ev1")
    await desk.say("New", key="Ev2", ts="1700000000.000200")
    await desk.work()
    await desk.link()
    await desk.work()
    assert [ask.prompt for ask in desk.runner.asked] == ["New"]


async def test_missing_profile_does_not_stop_the_link(desk: Desk) -> None:
    """Without the scope for names the link is offered all the same."""
    desk.identity.is_linked = False
    desk.slack.faults.add("profile", SlackRefused("missing_scope"))
    await desk.say("Hi")
    assert await desk.work() == [Done("USER_NOT_LINKED")]
    assert desk.identity.links == 1


async def test_unlinked_direct_message_is_answered_with_a_message(desk: Desk) -> None:
    """In a direct message nothing has to be hidden from others."""
    desk.identity.is_linked = False
    await desk.say("Hi", direct=True)
    await desk.work()
    assert desk.the_answer().place == Place("D1DIRECT", "1700000000.000100")


async def test_whisper_that_slack_refuses_goes_to_the_direct_message(desk: Desk) -> None:
    """A person outside of the channel is still told."""
    desk.identity.is_linked = False
    desk.slack.faults.add("whisper", SlackRefused("user_not_in_channel"))
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().place == Place(USER, "")


async def test_resume_needs_its_purpose(desk: Desk) -> None:
    """Another admin grant of the same workspace resumes nothing."""
    grant = AdminGrant(
        "j", desk.clock.now(), desk.clock.now(), WORKSPACE, "t", "u", AdminPurpose.HEALTH, ""
    )
    with pytest.raises(PurposeNotGranted):
        await resume_after_link(desk.waiting, grant, Secret("grant"))


async def test_sweep_resumes_what_nobody_asked_for(desk: Desk) -> None:
    """A lost ask is repaired, with a renewed grant when the event's has expired."""
    desk.identity.is_linked = False
    await desk.say("Hi")
    await desk.work()
    desk.clock.advance(timedelta(minutes=20))
    assert await repair_lost_asks(desk.waiting, desk.identity) == 0
    desk.identity.is_linked = True
    desk.identity.expired = {"grant of Ev1"}
    desk.clock.advance(timedelta(minutes=20))
    assert await repair_lost_asks(desk.waiting, desk.identity) == 1
    # The renewed grant is what the event carries now.
    desk._grants["renewed grant of Ev1"] = desk._grants["grant of Ev1"]
    assert await desk.work() == [Done()]
    assert len(desk.runner.asked) == 1


async def test_sweep_forgets_what_can_never_run(desk: Desk) -> None:
    """A question whose workspace is gone does not wait on."""
    desk.identity.is_linked = False
    await desk.say("Hi")
    await desk.work()
    desk.clock.advance(timedelta(minutes=20))
    desk.identity.expired = {"grant of Ev1"}
    desk.identity.faults.add("renew_grant", remote(Kind.PRECONDITION, "WORKSPACE_RELEASED"))
    assert await repair_lost_asks(desk.waiting, desk.identity) == 0
    assert await desk.waiting.find_by_user(TEAM, USER) is None


@pytest.mark.parametrize("reason", ["SLACK_STRANGER", "WORKSPACE_NOT_FOUND"])
async def test_refused_person_is_told_why(desk: Desk, reason: str) -> None:
    """Who may not ask is told so, alone, and nothing runs."""
    desk.identity.faults.add("resolve_user", remote(Kind.FORBIDDEN, reason))
    await desk.say("Hi")
    assert await desk.work() == [Done(reason)]
    assert desk.the_whisper().text == answer.failure_text(reason)
    assert desk.runner.asked == []


async def test_unlink_button_unlinks(desk: Desk) -> None:
    """*Not me* removes the link, with the click's own grant, and says so in its place."""
    await desk.click("Click1", {"action_id": answer.UNLINK_ACTION})
    assert await desk.work() == [Done()]
    assert desk.identity.used == [("unlink_self", "grant of Click1")]
    assert not desk.identity.is_linked
    assert "unlinked" in desk.slack.responses[0].text


# Picking an agent.


async def test_missing_default_lets_the_person_pick(desk: Desk) -> None:
    """The picker's choice runs the stored question."""
    desk.identity.default = None
    await desk.say("What is new?")
    assert await desk.work() == [Done("NO_AGENT")]
    assert desk.the_whisper().blocks[1]["block_id"] == "pick:Ev1"
    await desk.pick("1")
    assert await desk.work() == [Done(), Done()]
    assert desk.runner.asked[0].agent == Agent("docs", "poet")
    assert desk.runner.asked[0].prompt == "What is new?"
    assert "Answered by Poet" in desk.the_answer().shown
    assert desk.slack.responses[0].text == "Asking *Poet*…"


async def test_question_is_picked_for_once(desk: Desk) -> None:
    """A second click finds the question gone."""
    desk.identity.default = None
    await desk.say("Hi")
    await desk.work()
    await desk.pick("0", key="Click1")
    await desk.pick("1", key="Click2")
    await desk.work()
    assert len(desk.runner.asked) == 1
    assert desk.slack.responses[1].text == answer.ALREADY_PICKED


@pytest.mark.parametrize(
    ("value", "user"), [("0", "U2OTHER"), ("7", USER), ("-1", USER), ("", USER)]
)
async def test_foreign_or_impossible_pick_runs_nothing(desk: Desk, value: str, user: str) -> None:
    """Nobody picks for another person, or what was not offered."""
    desk.identity.default = None
    await desk.say("Hi")
    await desk.work()
    await desk.pick(value, user=user)
    await desk.work()
    assert desk.runner.asked == []
    assert await desk.waiting.find_by_key("Ev1") is not None


async def test_person_without_agents_is_told(desk: Desk) -> None:
    """There is nothing to pick from."""
    desk.identity.default, desk.runner.projects = None, [Project("Empty", [])]
    await desk.say("Hi")
    await desk.work()
    assert desk.the_whisper().text == answer.NO_AGENTS


# Commands and other requests.


async def test_commands_are_answered_where_they_were_typed(desk: Desk) -> None:
    """`status`, `unlink` and everything else answer through the response URL."""
    for number, word in enumerate(("status", "unlink", "unlink", "", "what is new")):
        await desk.command(word, key=f"Command{number}")
    assert await desk.work() == [Done()] * 5
    texts = [note.text for note in desk.slack.responses]
    assert "Ada Lovelace" in texts[0]
    assert "unlinked" in texts[1]
    assert texts[2] == "No account was linked."
    assert texts[3] == texts[4] == answer.COMMAND_HELP


async def test_link_command_links_and_confirms(desk: Desk) -> None:
    """`link` whispers a link and says later which account was linked."""
    desk.identity.is_linked = False
    await desk.command("link")
    await desk.work()
    assert desk.the_whisper().blocks[1]["elements"][0]["action_id"] == answer.LINK_ACTION
    await desk.link()
    await desk.work()
    assert "Ada Lovelace" in desk.slack.responses[0].text


async def test_a_command_with_the_url_for_links_links_whatever_it_says(desk: Desk) -> None:
    """Edge says so in the grant; the text of such a command is not read."""
    desk.identity.is_linked = False
    await desk.command("unlink", event_type=LINK_COMMAND)
    await desk.work()
    assert desk.the_whisper().blocks[1]["elements"][0]["action_id"] == answer.LINK_ACTION


async def test_dead_response_url_falls_back_to_a_whisper(desk: Desk) -> None:
    """An answer finds its way although its URL has expired."""
    desk.slack.faults.add("respond", SlackRefused("expired_url"))
    await desk.command("help")
    await desk.work()
    assert desk.the_whisper().text == answer.COMMAND_HELP


async def test_revocation_is_judged_by_the_vault(desk: Desk) -> None:
    """The worker hands over what the event says and purges nothing itself."""
    event = {"type": "tokens_revoked", "tokens": {"oauth": ["U1"], "bot": ["U9"]}}
    await desk.put("Ev1", json.dumps({"event": event}).encode(), kind="event", lane="T1:uninstall")
    assert await desk.work() == [Done()]
    assert desk.vault.revocations == [(["U1"], ["U9"])]
    assert desk.news.told.get_nowait() == TEAM


async def test_stale_revocation_ends_no_answers(desk: Desk) -> None:
    """What Slack still takes goes on talking."""
    desk.vault.has_ended = False
    event = {"type": "app_uninstalled"}
    await desk.put("Ev1", json.dumps({"event": event}).encode(), kind="event", lane="T1:uninstall")
    assert await desk.work() == [Done("STALE")]
    assert desk.news.told.empty()


async def test_uninstall_ends_the_answers_of_its_workspace_alone(desk: Desk) -> None:
    """The word of an end closes the run under way; another workspace's would go on."""
    hearing = asyncio.create_task(desk.endings.run(desk.news))
    with desk.endings.following("T0OTHER") as other:
        desk.runner.script = (
            Started(),
            Text("Half an"),
            lambda: desk.news.told.put_nowait(TEAM),
            asyncio.Event(),
        )
        await desk.say("Hi")
        assert await desk.work() == [Done("INTERRUPTED")]
        assert not other.is_set()
    assert desk.runner.closed == 1
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)


async def test_answers_that_have_ended_are_not_followed(desk: Desk) -> None:
    """Nothing is kept of an answer after its end."""
    with desk.endings.following(TEAM):
        assert desk.endings.end(TEAM) == 1
    assert desk.endings.end(TEAM) == 0


async def test_request_that_asks_nothing_ends_quietly(desk: Desk) -> None:
    """Unknown events and clicks on plain links are settled without a word."""
    await desk.put("Ev1", b'{"event": {"type": "team_join"}}', kind="event", lane="T1:x")
    await desk.click("Click1", {"action_id": answer.LINK_ACTION})
    assert {each.reason for each in await desk.work() if isinstance(each, Done)} == {
        "UNHANDLED_EVENT",
        "UNHANDLED_ACTION",
    }
    assert desk.slack.calls == []


async def test_body_that_is_not_its_grants_is_refused(desk: Desk) -> None:
    """A row whose body was exchanged says nothing."""
    await desk.say("Hi")
    desk.inbox.find("Ev1").put = Put(
        "Ev1", "lane", TEAM, b'{"event": {}}', Secret("grant of Ev1"), desk.clock.now()
    )
    assert await desk.work() == [Dead("GRANT_MISMATCH")]
    assert desk.slack.calls == []


# Grants and tokens.


async def test_expired_grant_is_renewed(desk: Desk) -> None:
    """An event that waited longer than its grant lives is answered all the same."""
    desk.vault.expired = desk.identity.expired = {"grant of Ev1"}
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.vault.reads == [("renewed grant of Ev1", 0)]


async def test_grant_that_cannot_be_renewed_ends_the_event(desk: Desk) -> None:
    """An event that is too old is given up, not tried for ever."""
    desk.identity.expired = {"grant of Ev1"}
    too_old = remote(Kind.PRECONDITION, "EVENT_TOO_OLD")
    desk.identity.faults.add("renew_grant", too_old, too_old)
    await desk.say("Hi")
    assert await desk.work() == [Dead("EVENT_TOO_OLD")]


async def test_token_that_slack_refuses_is_read_again_once(desk: Desk) -> None:
    """A rotated token is read anew, of a newer generation."""
    desk.slack.good_tokens = {"xoxb-2"}
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.vault.reads == [("grant of Ev1", 0), ("grant of Ev1", 1)]


async def test_no_run_begins_while_the_vault_is_away(desk: Desk) -> None:
    """A run that nobody could be told of is not begun; the question is answered once it can be."""
    desk.vault.faults.add("read_bot_token", remote(Kind.UNAVAILABLE, "PEER_UNAVAILABLE"))
    await desk.say("Hi")
    assert [type(each) for each in await desk.work()] == [Retry]
    assert desk.runner.asked == []
    assert await desk.work_after_pause() == [Done()]
    assert len(desk.runner.asked) == 1
    assert desk.the_answer().text.startswith("Hello Ada.")


async def test_uninstalled_workspace_ends_quietly(desk: Desk) -> None:
    """Without a bot nobody can be told; nothing is retried."""
    gone = remote(Kind.NOT_FOUND, "INSTALLATION_NOT_FOUND")
    desk.vault.faults.add("read_bot_token", *[gone] * 9)
    await desk.say("Hi")
    assert await desk.work() == [Done("INSTALLATION_NOT_FOUND")]


# Runs that fail.


@pytest.mark.parametrize(
    ("finished", "shown"),
    [
        (
            Finished("failed", "AGENT_FAILED", "model is down"),
            "**The agent failed** (`AGENT_FAILED`)",
        ),
        (Finished("incomplete", "STREAM_CUT"), answer.CUT),
        (Finished("limit_reached", "STREAM_SILENT"), "`STREAM_SILENT`"),
        (ApprovalNeeded(), answer.NEEDS_APPROVAL),
        (remote(Kind.UNAVAILABLE, "PEER_UNAVAILABLE"), answer.CUT),
    ],
)
async def test_failed_run_says_so_below_what_it_said(
    desk: Desk, finished: RunEvent | ServiceError, shown: str
) -> None:
    """A run that does not complete ends visibly, whatever it said before."""
    desk.runner.script = (Started(), Text("Half an"), finished)
    await desk.say("Hi")
    (outcome,) = await desk.work()
    assert isinstance(outcome, Done)
    assert outcome.reason
    assert desk.the_answer().text.startswith("Half an\n\n")
    assert shown in desk.the_answer().text
    assert not desk.the_answer().is_streaming


async def test_run_without_words_says_so(desk: Desk) -> None:
    """An empty answer is never an empty message."""
    desk.runner.script = (Started(), COMPLETED)
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().text == answer.NO_WORDS


async def test_run_that_ends_without_an_end_is_cut(desk: Desk) -> None:
    """A stream that just stops is not taken for a complete answer."""
    desk.runner.script = (Started(), Text("Half an"))
    await desk.say("Hi")
    await desk.work()
    assert answer.CUT in desk.the_answer().text


@pytest.mark.parametrize("reason", ["AGENT_NOT_ALLOWED", "USER_TOKEN_REFUSED", "AGENT_NOT_FOUND"])
async def test_run_that_is_refused_is_explained(desk: Desk, reason: str) -> None:
    """A refusal before the first event is told to the person alone."""
    desk.runner.script = (remote(Kind.FORBIDDEN, reason),)
    await desk.say("Hi")
    assert await desk.work() == [Done(reason)]
    assert desk.the_whisper().text == answer.failure_text(reason)
    assert desk.runs.records == {}


async def test_run_that_did_not_start_is_tried_again(desk: Desk) -> None:
    """A busy platform is asked again later, with the same message id."""
    busy = RemoteError(Kind.EXHAUSTED, "PLATFORM_RATE_LIMITED", retry_after=timedelta(seconds=40))
    desk.runner.script = (busy,)
    await desk.say("Hi")
    assert await desk.work() == [Retry(timedelta(seconds=40), "PLATFORM_RATE_LIMITED")]
    desk.runner.script = (Started(), Text("Hello."), COMPLETED)
    assert await desk.work_after_pause() == [Done()]
    first, second = desk.runner.asked
    assert first.message_id == second.message_id
    assert desk.the_answer().text == "Hello."


async def test_message_the_platform_has_seen_is_not_run_again(desk: Desk) -> None:
    """Where the platform's first answer was lost, the question ends as interrupted."""
    desk.runner.script = (remote(Kind.CONFLICT, "MESSAGE_ALREADY_RUN"),)
    await desk.say("Hi")
    assert await desk.work() == [Done("INTERRUPTED")]
    assert desk.the_answer().text == answer.INTERRUPTED


async def test_last_failure_is_told(desk: Desk) -> None:
    """When no try is left, the person learns of it."""
    down = remote(Kind.UNAVAILABLE, "PLATFORM_UNAVAILABLE")
    desk.runner.script = (down,)
    await desk.say("Hi")
    for _ in range(3):
        await desk.work_after_pause()
    assert desk.inbox.state_of("Ev1") == ("dead", "PLATFORM_UNAVAILABLE")
    assert desk.the_whisper().text == answer.failure_text("PLATFORM_UNAVAILABLE")


async def test_pauses_grow(desk: Desk) -> None:
    """Each retry waits twice as long as the one before."""
    desk.identity.faults.add("resolve_user", *[remote(Kind.UNAVAILABLE, "X")] * 2)
    await desk.say("Hi")
    pauses = [
        each.after
        for _ in range(2)
        for each in await desk.work_after_pause()
        if isinstance(each, Retry)
    ]
    assert pauses == [timedelta(seconds=2), timedelta(seconds=4)]


# Crashes.


async def test_run_cut_by_a_crash_is_ended_and_never_repeated(desk: Desk) -> None:
    """The next worker closes the stream with *interrupted* and runs nothing."""
    await desk.say("Hi")
    await desk.crash(after=(Started(), Text("Half an")))
    assert await desk.work() == [Done("INTERRUPTED")]
    assert desk.the_answer().text == f"Half an\n\n{answer.INTERRUPTED}"
    assert not desk.the_answer().is_streaming
    assert len(desk.runner.asked) == 1


async def test_crash_before_the_first_word_is_told(desk: Desk) -> None:
    """Without a message to close, the thread is told."""
    await desk.say("Hi")
    await desk.crash(after=(Started(),))
    await desk.work()
    assert desk.the_answer().shown == answer.INTERRUPTED
    assert len(desk.runner.asked) == 1


async def test_crash_after_the_end_says_nothing_twice(desk: Desk) -> None:
    """An answer that was complete when its worker died is left as it is."""
    await desk.say("Hi")
    await desk.crash(after=(Started(), Text("Half an")))
    message = desk.the_answer()
    message.is_streaming = False
    message_id = hashlib.sha256(b"Ev1").hexdigest()
    payload = {"message_id": message_id, "part": 1, "is_end": True}
    message.metadata = {"event_type": "interlock_answer", "event_payload": payload}
    assert await desk.work() == [Done("INTERRUPTED")]
    assert desk.the_answer().text == "Half an"


async def test_stream_that_slack_ended_meanwhile_is_followed_by_a_message(desk: Desk) -> None:
    """Where the stream is dead, the end stands in a message of its own."""
    await desk.say("Hi")
    await desk.crash(after=(Started(), Text("Half an")))
    desk.the_answer().is_streaming = False
    await desk.work()
    assert [each.shown for each in desk.slack.messages()] == ["Half an", answer.INTERRUPTED]


async def test_event_that_keeps_crashing_is_given_up_with_a_word(desk: Desk) -> None:
    """After the last crash only the failure is told."""
    await desk.say("Hi")
    for _ in range(3):
        (claim,) = await desk.inbox.claim("doomed", 8, 8)
        await desk.inbox.step(claim, None, keep=True)
        desk.clock.advance(timedelta(minutes=1))
    assert await desk.work() == [Dead("GAVE_UP")]
    assert desk.the_whisper().text == answer.failure_text("GAVE_UP")
    assert desk.runner.asked == []


async def test_worker_that_lost_its_lane_starts_no_run(desk: Desk) -> None:
    """The run record is written under the fence, before the run."""
    await desk.say("Hi")
    (claim,) = await desk.inbox.claim("slow", 8, 8)
    delivery = await desk.inbox.step(claim, None, keep=True)
    assert delivery is not None
    desk.clock.advance(timedelta(minutes=1))
    await desk.inbox.claim("thief", 8, 8)
    with pytest.raises(LaneLost):
        await desk.conversation.handle(delivery)
    assert desk.runner.asked == []


async def test_shutdown_ends_an_answer_as_interrupted(desk: Desk) -> None:
    """A process that must end closes the run and says so."""
    desk.runner.script = (Started(), Text("Half an"), desk.closing.set, asyncio.Event())
    await desk.say("Hi")
    assert await desk.work() == [Done("INTERRUPTED")]
    assert answer.INTERRUPTED in desk.the_answer().text
    assert desk.runner.closed == 1


async def test_bug_is_told_and_given_up(desk: Desk) -> None:
    """What nobody foresaw does not leave a person waiting."""

    def bug() -> None:
        raise ZeroDivisionError

    desk.runner.script = (bug,)
    await desk.say("Hi")
    assert await desk.work() == [Dead("INTERNAL")]
    assert "`INTERNAL`" in desk.the_whisper().text


# Streams, pages and limits.


async def test_app_without_streams_posts_and_updates(desk: Desk) -> None:
    """Where streams are refused, one message is posted and updated; its end has the footer."""
    desk.slack.faults.add("start_stream", SlackRefused("unknown_method"))
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.the_answer().shown == "Hello Ada.\nAnswered by Helper"
    assert desk.slack.calls.count("post") == 1
    assert "append_stream" not in desk.slack.calls


async def test_too_many_streams_fall_back_to_a_message(desk: Desk) -> None:
    """Slack's small limit of streams does not delay an answer."""
    desk.slack.faults.add("start_stream", SlackRateLimited(retry_after=timedelta(seconds=30)))
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().shown.startswith("Hello Ada.")
    assert desk.slept == []


async def test_post_whose_answer_was_lost_is_found_again(desk: Desk) -> None:
    """A message that arrived although Slack's answer did not is not posted twice."""
    desk.slack.faults.add("start_stream", SlackRefused("unknown_method"))
    real, lost = desk.slack.post, [SlackUnavailable()]

    async def post(token: Secret[str], place: Place, note: Note) -> str:
        ts = await real(token, place, note)
        if lost:
            raise lost.pop()
        return ts

    desk.slack.post = post  # type: ignore[method-assign]
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().shown == "Hello Ada.\nAnswered by Helper"


async def test_rate_limit_delays_words_and_loses_none(desk: Desk) -> None:
    """While Slack asks for silence the words pile up; the end waits as long as asked."""
    busy = SlackRateLimited(retry_after=timedelta(seconds=7))
    desk.slack.faults.add("append_stream", busy, busy)
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.the_answer().text == "Hello Ada."
    assert desk.slept == [7.0]


async def test_lost_answer_of_slack_is_repaired_at_the_end(desk: Desk) -> None:
    """Where nobody knows whether a piece arrived, the whole page is written once more."""
    desk.slack.faults.add("append_stream", SlackUnavailable())
    await desk.say("Hi")
    await desk.work()
    assert desk.the_answer().shown == "Hello Ada.\nAnswered by Helper"
    assert desk.slack.calls[-1] == "update"


async def test_stream_that_slack_ends_continues_on_a_new_page(desk: Desk) -> None:
    """Nothing is lost when Slack closes a stream in the middle."""

    def slack_closes() -> None:
        desk.slack.said[0].is_streaming = False

    desk.runner.script = (
        Started(),
        Text("One. " * 60),
        slack_closes,
        Text("Two. " * 60),
        COMPLETED,
    )
    await desk.say("Hi")
    await desk.work()
    first, second = desk.slack.messages()
    assert first.shown == "One. " * 60
    assert second.shown == "Two. " * 60 + "\nAnswered by Helper"


async def test_old_stream_is_left_before_slack_ends_it(desk: Desk) -> None:
    """After less than 4 min the answer goes on in a new message."""
    desk.runner.script = (
        Started(),
        Text("One. " * 60),
        lambda: desk.clock.advance(timedelta(minutes=4)),
        Text("Two. " * 60),
        COMPLETED,
    )
    await desk.say("Hi")
    await desk.work()
    assert [each.text[:4] for each in desk.slack.messages()] == ["One.", "Two."]
    assert desk.slack.calls.count("stop_stream") == 2
    assert "update" not in desk.slack.calls


async def test_long_answer_is_split_and_its_code_block_goes_on() -> None:
    """A page that is full ends its code block; the next one opens it again."""
    desk = Desk(pacing=Pacing(page_chars=100))
    code = "".join(f"line {number}\n" for number in range(20))
    desk.runner.script = (Started(), Text(f"```python\n{code}```\nDone."), COMPLETED)
    await desk.say("Hi")
    await desk.work()
    pages = [each.text for each in desk.slack.messages()]
    assert len(pages) > 1
    for page in pages[:-1]:
        assert page.endswith("\n```")
    for page in pages[1:]:
        assert page.startswith("```python\n")
    assert "".join(pages).count("line ") == 20


async def test_footer_that_slack_refuses_costs_the_footer_alone(desk: Desk) -> None:
    """The stream is ended all the same."""
    desk.slack.faults.add("stop_stream", SlackRefused("invalid_blocks"))
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.the_answer().shown == "Hello Ada."
    assert not desk.the_answer().is_streaming


async def test_stop_whose_answer_was_lost_is_repaired(desk: Desk) -> None:
    """Where the stream's end is in doubt, the page is written once more."""
    real, lost = desk.slack.stop_stream, [SlackUnavailable()]

    async def stop(*arguments: Any, **more: Any) -> None:
        await real(*arguments, **more)
        if lost:
            raise lost.pop()

    desk.slack.stop_stream = stop  # type: ignore[method-assign]
    await desk.say("Hi")
    assert await desk.work() == [Done()]
    assert desk.the_answer().shown == "Hello Ada.\nAnswered by Helper"


async def test_reader_who_stops_the_answer_stops_the_run(desk: Desk) -> None:
    """Slack's stop button ends the run upstream, and the answer says that it was stopped."""
    desk.slack.faults.add("append_stream", SlackRefused("stopped_by_user"))
    desk.runner.script = (Started(), Text("Half an"), asyncio.Event())
    await desk.say("Hi")
    assert await desk.work() == [Done("STOPPED")]
    assert desk.runner.closed == 1
    assert "Stopped" in desk.the_answer().shown
    assert not desk.the_answer().is_streaming


async def test_slow_words_are_shown_without_waiting_for_more() -> None:
    """Words that wait are sent when nothing follows for a moment."""
    desk = Desk(pacing=Pacing(flush_after=timedelta(milliseconds=10)))
    seen = asyncio.Event()
    real = desk.slack.append_stream

    async def append(token: Secret[str], channel: str, ts: str, text: str) -> None:
        await real(token, channel, ts, text)
        if desk.slack.said[0].text == "First. Second.":
            seen.set()

    desk.slack.append_stream = append  # type: ignore[method-assign]
    desk.runner.script = (Started(), Text("First."), Text(" Second."), seen, COMPLETED)
    await desk.say("Hi")
    assert await desk.work() == [Done()]
