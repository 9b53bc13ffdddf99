"""Converse: a person's turn in, an answer in Slack out, with one visible end each.

The worker cannot say whose token it wants. Everything it asks of the vault and
of identity, it asks with the grant of the event in hand. A run is recorded
before it is started; a second delivery of the same event finds the record and
ends the answer as interrupted, it never runs again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import structlog

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.logs import describe_exception
from interlock_chassis.secret import Secret
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import Choice
from interlock_gateway.worker.endings import Endings
from interlock_gateway.worker.lanes import Dead, Delivery, Done, LaneLost, Outcome, Retry
from interlock_gateway.worker.ports import Agent, Ask, Identity, Ports, RunRecord, UserToken
from interlock_gateway.worker.slack import (
    Bot,
    BotToken,
    Note,
    Place,
    Profile,
    SlackRefused,
    ThreadMessage,
)
from interlock_gateway.worker.speech import Pacing, Scene, Speech, end_cut_answer
from interlock_gateway.worker.talk import Talk
from interlock_gateway.worker.turns import (
    AgentPicked,
    Command,
    NothingToDo,
    Question,
    Revoked,
    UnlinkClicked,
    compose_prompt,
    read_turn,
)
from interlock_tokens.grants import SlackGrant

# First pauses of a back-off that doubles: 2, 4, 8, 16 s, then the event is given up.
FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(minutes=2)

# Slack takes a response URL five times within 30 minutes:
# docs.slack.dev/interactivity/handling-user-interaction#message_responses
RESPONSE_URL_LIFE = timedelta(minutes=30)
RESPONSE_URL_USES = 5

# The app is gone, and with it every way to tell anybody.
_UNINSTALLED = "INSTALLATION_NOT_FOUND"
_TRANSIENT = frozenset({Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.LOST_RACE})

T = TypeVar("T")
_log = structlog.get_logger()


class Proof:
    """The right to act for one event; renewed when it has run out.

    A question that was resumed has two grants: the one that came with the link
    and the event's own. Where the first is not taken, the second is renewed.
    """

    def __init__(self, identity: Identity, delivery: Delivery) -> None:
        self._identity = identity
        self._event_grant = delivery.grant
        self._grant = delivery.resume_grant or delivery.grant
        self._is_renewed = False

    async def use(self, call: Callable[[Secret[str]], Awaitable[T]]) -> T:
        """Call with the grant, and once more with a renewed one if it is refused."""
        try:
            return await call(self._grant)
        except ServiceError as error:
            has_better = self._grant is not self._event_grant and not self._is_renewed
            is_worth_it = error.reason == "INVALID_TOKEN" or (
                error.reason == "PURPOSE_NOT_GRANTED" and has_better
            )
            if not is_worth_it:
                raise
        self._grant = await self._identity.renew_grant(self._event_grant)
        self._is_renewed = True
        return await call(self._grant)


@dataclass(frozen=True, slots=True)
class _Context:
    """One delivery being acted upon."""

    delivery: Delivery
    grant: SlackGrant
    proof: Proof
    bot: Bot

    @property
    def team(self) -> str:
        return self.grant.workspace.team_id or self.grant.workspace.enterprise_id


class _Unanswerable(Exception):
    """There is nothing to run; the person was told."""


class Conversation:
    """Act upon deliveries of the inbox.

    Args:
        ports: Everyone it talks to.
        endings: Tells running answers when to end as interrupted.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        ports: Ports,
        *,
        pacing: Pacing,
        clock: Clock,
        endings: Endings,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._ports = ports
        self._pacing = pacing
        self._clock = clock
        self._endings = endings
        self._sleep = sleep

    async def handle(self, delivery: Delivery) -> Outcome:
        """Act upon one delivery; return what became of it.

        Raises:
            LaneLost: Another worker holds the lane now.
        """
        try:
            context = self._context(delivery)
            return await self._act(context)
        except LaneLost:
            raise
        except ServiceError as error:
            _log.warning("turn_failed", reason=error.reason, attempt=delivery.attempt)
            outcome = _judge(error, delivery)
            if isinstance(outcome, Dead) or (isinstance(outcome, Retry) and delivery.is_last):
                await self._apologise(delivery, error.reason)
            return outcome
        except Exception as error:  # noqa: BLE001 - A person waits; tell before giving up.
            _log.error("turn_crashed", error=describe_exception(error))
            await self._apologise(delivery, "INTERNAL")
            return Dead("INTERNAL")

    def _context(self, delivery: Delivery) -> _Context:
        proof = Proof(self._ports.identity, delivery)

        async def read_token(newer_than: int) -> BotToken:
            return await proof.use(
                lambda grant: self._ports.vault.read_bot_token(grant, newer_than)
            )

        grant = self._ports.open_grant(delivery.grant)
        return _Context(delivery, grant, proof, Bot(read_token, self._sleep))

    async def _act(self, context: _Context) -> Outcome:
        turn = read_turn(context.delivery, context.grant)
        match turn:
            case Question():
                return await self._answer(context, turn)
            case AgentPicked():
                return await self._pick(context, turn)
            case UnlinkClicked():
                return await self._unlink(context, turn)
            case Command():
                return await self._obey(context, turn)
            case Revoked():
                return await self._let_go(context, turn)
            case NothingToDo():
                return Done(turn.why)

    async def _let_go(self, context: _Context, revoked: Revoked) -> Outcome:
        """Have the vault ask Slack whether it is true, and end what runs if it is."""
        vault, at = self._ports.vault, context.delivery.event_at
        has_ended = await context.proof.use(
            lambda grant: vault.apply_revocation(grant, at, revoked.user_ids, revoked.bot_user_ids)
        )
        if has_ended:
            await self._ports.endings.tell(context.team)
        return Done("" if has_ended else "STALE")

    # Questions.

    async def _answer(self, context: _Context, question: Question) -> Outcome:
        record = await self._ports.runs.find(context.delivery.event_key)
        if record is not None:
            return await self._conclude(context, question, record)
        if context.delivery.is_given_up:
            await self._apologise(context.delivery, "GAVE_UP")
            return Dead("GAVE_UP")
        try:
            agent, token = await self._prepare(context, question)
            return await self._run(context, question, agent, token)
        except _Unanswerable as why:
            return Done(str(why))
        except ServiceError as error:
            return await self._refuse(context, question, error)

    async def _conclude(self, context: _Context, question: Question, record: RunRecord) -> Outcome:
        """End an answer that was begun before; it is never run again."""
        if record.has_ended:
            return Done()
        scene = self._scene(context, question)
        await end_cut_answer(scene, record.messages, answer.INTERRUPTED)
        await self._ports.runs.end(context.delivery, "interrupted")
        return Done("INTERRUPTED")

    async def _refuse(self, context: _Context, question: Question, error: ServiceError) -> Outcome:
        """Tell a person why there is no answer, where that is final; else raise the error."""
        if not answer.is_refusal(error.reason):
            raise error
        note = answer.plain_note(answer.failure_text(error.reason))
        await self._tell(context, question, note)
        return Done(error.reason)

    async def _prepare(self, context: _Context, question: Question) -> tuple[Choice, UserToken]:
        """Find out who asks, and whom.

        Raises:
            _Unanswerable: There is nothing to run; the person was told.
        """
        identity, proof, channel = self._ports.identity, context.proof, question.place.channel
        try:
            user_name = await proof.use(identity.resolve_user)
        except ServiceError as error:
            if error.reason != "USER_NOT_LINKED":
                raise
            await self._invite(context, question.aside, is_direct=question.is_direct)
            raise _Unanswerable("USER_NOT_LINKED") from None
        if context.delivery.cause == "linked":
            await self._tell(context, question, answer.linked_note(user_name))
            await self._ports.runs.greeted(context.delivery)
        if not question.text and not question.is_in_thread:
            await self._tell(context, question, answer.plain_note(answer.HINT))
            raise _Unanswerable("NO_QUESTION")
        chosen = context.delivery
        agent: Agent | None = Agent(chosen.project_id, chosen.agent_id)
        if not chosen.agent_id:
            agent = await proof.use(lambda grant: identity.resolve_agent(grant, channel))
        token = await proof.use(lambda grant: identity.issue_user_token(grant, agent, channel))
        if agent is None:
            await self._offer_agents(context, question, token)
            raise _Unanswerable("NO_AGENT")
        name = chosen.agent_name or await self._name_of(token, agent)
        return Choice(agent.project_id, agent.agent_id, name), token

    async def _name_of(self, token: UserToken, agent: Agent) -> str:
        try:
            return await self._ports.runner.agent_name(token, agent)
        except ServiceError:
            # Only a name; the run itself will tell what is wrong.
            return agent.agent_id

    async def _invite(self, context: _Context, place: Place, *, is_direct: bool) -> None:
        """Whisper a link that links the account; the question waits meanwhile."""
        user = context.grant.slack_user_id
        try:
            profile = await context.bot.insist(self._ports.slack.profile, user)
        except SlackRefused:
            # Without the scope the confirm page shows less; linking works all the same.
            profile = Profile("", "")
        link = await context.proof.use(
            lambda grant: self._ports.identity.create_link(grant, profile)
        )
        await self._ports.waiting.await_link(context.delivery, context.team, user)
        await self._whisper(context, place, answer.link_note(link), is_direct=is_direct)

    async def _offer_agents(self, context: _Context, question: Question, token: UserToken) -> None:
        projects = await self._ports.runner.list_projects(token)
        choices = answer.choices_of(projects)
        if not choices:
            await self._tell(context, question, answer.plain_note(answer.NO_AGENTS))
            return
        delivery = context.delivery
        await self._ports.waiting.await_agent(
            delivery, context.team, context.grant.slack_user_id, choices
        )
        await self._tell(context, question, answer.picker_note(projects, delivery.event_key))

    async def _run(
        self, context: _Context, question: Question, choice: Choice, token: UserToken
    ) -> Outcome:
        """Run the agent and say its answer, once."""
        delivery, runs = context.delivery, self._ports.runs
        # A run whose answer cannot be said is begun in vain, and never again.
        await context.bot.token()
        prompt = compose_prompt(question, await self._thread_before(context, question))
        agent = Agent(choice.project_id, choice.agent_id)
        ask = Ask(
            agent=agent,
            conversation_id=_conversation_id(context.team, question.place, agent),
            message_id=_message_id(delivery),
            prompt=prompt,
            entry_point=_entry_point(delivery, question),
        )
        await self._show_status(context, question, "is thinking…")
        await runs.begin(delivery, ask.message_id, question.place)
        with self._endings.following(context.team) as ending:
            talk = Talk(
                speech=Speech(
                    self._scene(context, question), pacing=self._pacing, clock=self._clock
                ),
                show_status=lambda status: self._show_status(context, question, status),
                closing=ending,
            )
            words, outcome = await self._listen(context, question, talk, token, ask)
        await talk.speech.close(words, answer.footer(choice.agent_name, talk.sources))
        await runs.end(delivery, outcome)
        return Done("" if outcome == "completed" else outcome.upper())

    async def _listen(
        self, context: _Context, question: Question, talk: Talk, token: UserToken, ask: Ask
    ) -> tuple[str, str]:
        """Let the run be said; return our last words and the outcome."""
        try:
            return await self._listen_with(context, question, talk, token, ask)
        except ServiceError as error:
            await self._show_status(context, question, "")
            if talk.has_started:
                raise
            if error.reason != "MESSAGE_ALREADY_RUN":
                await self._ports.runs.withdraw(context.delivery)
                raise
            # An earlier try reached the platform although its answer did not reach us.
            return answer.INTERRUPTED, "interrupted"

    async def _listen_with(
        self, context: _Context, question: Question, talk: Talk, token: UserToken, ask: Ask
    ) -> tuple[str, str]:
        """Let the run be said; where the token is refused before anything was, try one new one."""
        try:
            return await talk.listen(self._ports.runner.run(token, ask))
        except ServiceError as error:
            if error.reason != "USER_TOKEN_REFUSED" or talk.has_started:
                raise
        # It ended on the way, or its key went: the platform has begun nothing.
        _log.info("user_token_issued_anew")
        channel = question.place.channel
        token = await context.proof.use(
            lambda grant: self._ports.identity.issue_user_token(grant, ask.agent, channel)
        )
        return await talk.listen(self._ports.runner.run(token, ask))

    async def _thread_before(
        self, context: _Context, question: Question
    ) -> Sequence[ThreadMessage]:
        if not question.is_in_thread:
            return ()
        try:
            return await context.bot.insist(self._ports.slack.thread, question.place)
        except ServiceError as error:
            # Some apps may look once a minute only; the question itself still stands.
            _log.warning("thread_unread", reason=error.reason)
            return ()

    async def _show_status(self, context: _Context, question: Question, status: str) -> None:
        try:
            await context.bot.call(self._ports.slack.set_status, question.place, status)
        except ServiceError as error:
            # A nicety that not every app and channel has.
            _log.debug("status_not_shown", reason=error.reason)

    def _scene(self, context: _Context, question: Question) -> Scene:
        async def on_open(ts: str) -> None:
            await self._ports.runs.add_message(context.delivery, ts)

        return Scene(
            slack=self._ports.slack,
            bot=context.bot,
            place=question.place,
            aside=question.aside,
            reader=question.reader,
            message_id=_message_id(context.delivery),
            is_private=question.is_private,
            on_open=on_open,
        )

    # Clicks and commands.

    async def _pick(self, context: _Context, picked: AgentPicked) -> Outcome:
        waiting = self._ports.waiting
        question = await waiting.find_by_key(picked.question_key)
        owner = (context.team, context.grant.slack_user_id)
        if question is None or (question.team, question.slack_user_id) != owner:
            await self._respond(context, picked, answer.plain_note(answer.ALREADY_PICKED))
            return Done("NOT_WAITING")
        if not 0 <= picked.choice < len(question.choices):
            await self._respond(context, picked, answer.plain_note(answer.UNKNOWN_CHOICE))
            return Done("UNKNOWN_CHOICE")
        choice = question.choices[picked.choice]
        if not await waiting.resume_picked(picked.question_key, choice):
            await self._respond(context, picked, answer.plain_note(answer.ALREADY_PICKED))
            return Done("NOT_WAITING")
        name = answer.escape(choice.agent_name, 100)
        await self._respond(context, picked, answer.plain_note(f"Asking *{name}*…"))
        return Done()

    async def _unlink(self, context: _Context, click: UnlinkClicked) -> Outcome:
        was_linked = await context.proof.use(self._ports.identity.unlink_self)
        await self._respond(context, click, answer.unlinked_note(was_linked=was_linked))
        return Done()

    async def _obey(self, context: _Context, command: Command) -> Outcome:
        match command.word:
            case "unlink" | "logout" | "disconnect":
                was_linked = await context.proof.use(self._ports.identity.unlink_self)
                note = answer.unlinked_note(was_linked=was_linked)
            case "link" | "connect" | "status":
                try:
                    name = await context.proof.use(self._ports.identity.resolve_user)
                    note = answer.linked_note(name)
                except ServiceError as error:
                    if error.reason == "USER_NOT_LINKED":
                        await self._invite(context, command.aside, is_direct=False)
                        return Done()
                    if not answer.is_refusal(error.reason):
                        raise
                    note = answer.plain_note(answer.failure_text(error.reason))
            case _:
                note = answer.plain_note(answer.COMMAND_HELP)
        await self._respond(context, command, note)
        return Done()

    # Saying things.

    async def _tell(self, context: _Context, question: Question, note: Note) -> None:
        await self._whisper(context, question.aside, note, is_direct=question.is_direct)

    async def _whisper(
        self, context: _Context, place: Place, note: Note, *, is_direct: bool
    ) -> None:
        """Tell the acting person alone: here unseen by others, else in the direct message."""
        slack, user = self._ports.slack, context.grant.slack_user_id
        if is_direct:
            await context.bot.insist(slack.post, place, note)
            return
        try:
            await context.bot.insist(slack.whisper, place, user, note)
        except SlackRefused:
            # The bot, or the person, is not in the channel.
            await context.bot.insist(slack.post, Place(user, ""), note)

    async def _respond(
        self, context: _Context, turn: AgentPicked | UnlinkClicked | Command, note: Note
    ) -> None:
        """Answer where the person clicked or typed; elsewhere when that is not possible."""
        delivery = context.delivery
        is_old = self._clock.now() - delivery.event_at >= RESPONSE_URL_LIFE
        if is_old or delivery.attempt > RESPONSE_URL_USES:
            await self._whisper(context, turn.aside, note, is_direct=False)
            return
        try:
            await self._ports.slack.respond(turn.response_url, context.team, note)
        except ServiceError as error:
            _log.warning("response_url_failed", reason=error.reason)
            await self._whisper(context, turn.aside, note, is_direct=False)

    async def _apologise(self, delivery: Delivery, reason: str) -> None:
        """Say that a question failed, if there is a way to say it at all."""
        try:
            context = self._context(delivery)
            turn = read_turn(delivery, context.grant)
            if isinstance(turn, Question | Command | AgentPicked | UnlinkClicked):
                note = answer.plain_note(answer.failure_text(reason))
                is_direct = isinstance(turn, Question) and turn.is_direct
                await self._whisper(context, turn.aside, note, is_direct=is_direct)
        except ServiceError as error:
            _log.warning("failure_not_shown", reason=error.reason, failure=reason)


def _judge(error: ServiceError, delivery: Delivery) -> Outcome:
    """Try again what may help and can double nothing; give up the rest."""
    if error.reason == _UNINSTALLED:
        return Done(error.reason)
    if error.kind not in _TRANSIENT:
        return Dead(error.reason)
    pause = min(FIRST_PAUSE * 2 ** (delivery.attempt - 1), LONGEST_PAUSE)
    return Retry(max(pause, error.retry_after or timedelta()), error.reason)


def _message_id(delivery: Delivery) -> str:
    """Derive the platform's idempotency key; 64 hex digits."""
    return hashlib.sha256(delivery.event_key.encode()).hexdigest()


def _conversation_id(team: str, place: Place, agent: Agent) -> str:
    """Name the platform's conversation: one for each thread and agent."""
    digest = hashlib.sha256(f"{agent.project_id}/{agent.agent_id}".encode()).hexdigest()[:16]
    return f"slack-{team}-{place.channel}-{place.thread_ts}-{digest}"


def _entry_point(delivery: Delivery, question: Question) -> str:
    if delivery.cause in {"linked", "greeted"}:
        return "smart_link_resume"
    return "direct_message" if question.is_direct else "app_mention"
