"""Listen to a run and say what it says, as it comes."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import structlog

from interlock_chassis.errors import ServiceError
from interlock_gateway.worker import answer
from interlock_gateway.worker.answer import Source
from interlock_gateway.worker.ports import (
    ApprovalNeeded,
    Finished,
    RunEvent,
    Started,
    Text,
    ToolStarted,
)
from interlock_gateway.worker.speech import Speech, StoppedByReader

_log = structlog.get_logger()


class Talk:
    """Listen to a run and say what it says.

    Attributes:
        has_started: The platform accepted the run.
        sources: The answer's sources so far.
    """

    def __init__(
        self,
        *,
        speech: Speech,
        show_status: Callable[[str], Awaitable[None]],
        closing: asyncio.Event,
    ) -> None:
        self.speech = speech
        self.sources: list[Source] = []
        self.has_started = False
        self._show_status = show_status
        self._closing = closing

    async def listen(self, events: AsyncGenerator[RunEvent, None]) -> tuple[str, str]:
        """Say the run until its end; return our last words and the outcome.

        Raises:
            ServiceError: The run was not started, or Slack refused the answer.
        """
        try:
            async with aclosing(events):
                return await self._listen(events)
        except StoppedByReader:
            return answer.STOPPED, "stopped"

    async def _listen(self, events: AsyncGenerator[RunEvent, None]) -> tuple[str, str]:
        closing = asyncio.create_task(self._closing.wait())
        coming = asyncio.create_task(_next(events))
        try:
            while True:
                due = self.speech.due()
                await asyncio.wait(
                    {closing, coming}, timeout=due, return_when=asyncio.FIRST_COMPLETED
                )
                if closing.done():
                    return answer.INTERRUPTED, "interrupted"
                if not coming.done():
                    await self.speech.flush()
                    continue
                end = await self._hear(coming)
                if end is not None:
                    return end
                coming = asyncio.create_task(_next(events))
        finally:
            # The generator can be closed only when nobody is inside of it.
            closing.cancel()
            coming.cancel()
            await asyncio.gather(closing, coming, return_exceptions=True)

    async def _hear(self, coming: "asyncio.Task[RunEvent | None]") -> tuple[str, str] | None:
        """Take one event; return the end if it is one."""
        try:
            event = coming.result()
        except ServiceError as error:
            if not self.has_started:
                raise
            _log.warning("run_lost", reason=error.reason)
            event = None
        self.has_started = True
        match event:
            case Text():
                await self.speech.say(event.text)
            case ToolStarted():
                await self._show_status(f"is using {answer.shorten(event.name, 40)}…")
            case Source():
                self.sources.append(event)
            case Started():
                pass
            case ApprovalNeeded() | Finished() | None:
                return self._end(event)
        return None

    def _end(self, event: ApprovalNeeded | Finished | None) -> tuple[str, str]:
        if event is None:
            return answer.CUT, "incomplete"
        if isinstance(event, ApprovalNeeded):
            return answer.NEEDS_APPROVAL, "needs_approval"
        if event.outcome == "completed":
            return ("" if self.speech.has_words else answer.NO_WORDS), event.outcome
        words = answer.run_failure(event.outcome, event.reason, event.detail)
        return words, event.outcome


async def _next(events: AsyncGenerator[RunEvent, None]) -> RunEvent | None:
    return await anext(events, None)
