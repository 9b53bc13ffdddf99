"""Say an answer in Slack while it arrives: streamed, else updated, else whispered at the end.

An answer is written on pages, one Slack message each. A page is left for a new
one when it is full, when Slack's patience with a stream runs out, or when Slack
ended the stream by itself; nothing said so far is lost then.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from interlock_chassis.clock import Clock
from interlock_chassis.errors import ServiceError
from interlock_gateway.worker.answer import (
    PAGE_CHARS,
    Neutraliser,
    open_fence,
    page_note,
    split_page,
)
from interlock_gateway.worker.slack import (
    Block,
    Bot,
    Note,
    Place,
    Reader,
    Slack,
    SlackRateLimited,
    SlackRefused,
    SlackUnavailable,
)

METADATA_TYPE = "interlock_answer"

_ENDED_BY_SLACK = frozenset({"message_not_in_streaming_state", "streaming_state_conflict"})
_ENDED_BY_READER = frozenset({"stopped_by_user", "message_not_found"})


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often and how much is sent.

    Attributes:
        flush_after, flush_chars: Whichever comes first sends the next piece of a stream.
        update_after: Slack takes some 50 updates a minute.
        stream_life: Slack ends streams after about 5 minutes, also busy ones.
        page_chars: When a page is full.
    """

    flush_after: timedelta = timedelta(milliseconds=300)
    flush_chars: int = 256
    update_after: timedelta = timedelta(milliseconds=1500)
    stream_life: timedelta = timedelta(seconds=225)
    page_chars: int = PAGE_CHARS


class StoppedByReader(Exception):
    """The reader stopped the answer, or deleted it."""


class _PageOver(Exception):
    """This page takes no more; the piece was not written."""


class _NoStreams(Exception):
    """Streams cannot be had here."""


class _Page(Protocol):
    """One message being written."""

    text: str

    async def append(self, piece: str) -> None:
        """Write a piece.

        Raises:
            _PageOver, _NoStreams, StoppedByReader, SlackRateLimited: The piece
                was not written.
        """

    async def finish(self, closing: str, blocks: Sequence[Block], *, is_end: bool) -> None:
        """Write the last words and leave the page as it is to stay."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where an answer is said, to whom, and as what.

    Attributes:
        aside: Where whispers go.
        message_id: The run; the messages' metadata name it, so that they are found again.
        is_private: Only the asking person may see the answer.
        on_open: Told the ts of every message, before anything is added to it.
    """

    slack: Slack
    bot: Bot
    place: Place
    aside: Place
    reader: Reader
    message_id: str
    is_private: bool
    on_open: Callable[[str], Awaitable[None]]

    def metadata(self, part: int, *, is_end: bool) -> dict[str, Any]:
        """Return a message's metadata."""
        payload = {"message_id": self.message_id, "part": part, "is_end": is_end}
        return {"event_type": METADATA_TYPE, "event_payload": payload}


class Speech:
    """An answer, from its first words to its visible end.

    Args:
        clock: Tells when a piece or a new page is due.
    """

    def __init__(self, scene: Scene, *, pacing: Pacing, clock: Clock) -> None:
        self._scene = scene
        self._pacing = pacing
        self._clock = clock
        self._neutraliser = Neutraliser()
        self._streams = not scene.is_private
        self._page: _Page | None = None
        self._page_until = 0.0
        self._pages = 0
        self._pending = ""
        self._due_at = 0.0
        self._quiet_until = 0.0

    @property
    def has_words(self) -> bool:
        """Whether anything was said, or is about to be."""
        return self._page is not None or bool(self._pending.strip())

    def due(self) -> float | None:
        """Tell in how many seconds `flush` is to be called; None when nothing waits."""
        if not self._pending or not self.has_words:
            return None
        at = max(self._due_at, self._quiet_until)
        return max(0.0, at - self._clock.monotonic())

    async def say(self, text: str) -> None:
        """Add text of the agent's. May send it, or wait for more.

        Raises:
            StoppedByReader: The reader wants no more.
            ServiceError: Slack refused the message as such.
        """
        self._pending += self._neutraliser.feed(text)
        is_much = self._streams and len(self._pending) >= self._pacing.flush_chars
        if is_much or self.due() == 0:
            await self.flush()

    async def flush(self) -> None:
        """Send what waits, unless Slack asked for silence; raises as `say`."""
        now = self._clock.monotonic()
        if self.due() is None or now < self._quiet_until:
            return
        pause = self._pacing.flush_after if self._streams else self._pacing.update_after
        self._due_at = now + pause.total_seconds()
        try:
            await self._write_pending()
        except SlackRateLimited as limit:
            silence = limit.retry_after or timedelta(seconds=1)
            self._quiet_until = self._clock.monotonic() + silence.total_seconds()

    async def close(self, last_words: str, blocks: Sequence[Block]) -> None:
        """Say the rest and our own last words, and end the answer.

        Raises:
            ServiceError: Slack could not be told.
        """
        self._pending += self._neutraliser.finish()
        if last_words:
            _, marker = open_fence((self._page.text if self._page else "") + self._pending)
            gap = "\n\n" if self.has_words else ""
            self._pending += (f"\n{marker}" if marker else "") + gap + last_words
        closing = ""
        try:
            await self._scene.bot.patiently(self._write_pending)
        except StoppedByReader:
            # What waited is not wanted any more, but that it ends here is to be seen.
            self._pending = ""
            has_text = self._page is not None and self._page.text
            closing = f"\n\n{last_words}" if has_text else last_words
        if self._page is not None:
            await self._page.finish(closing, blocks, is_end=True)

    async def _write_pending(self) -> None:
        if self._page is None:
            self._pending = self._pending.lstrip()
        while self._pending:
            page = await self._page_with_room()
            piece, rest = split_page(self._pending, self._pacing.page_chars - len(page.text))
            try:
                await page.append(piece)
            except _NoStreams:
                self._streams, self._page = False, None
                continue
            except _PageOver:
                await self._turn_page(page)
                continue
            self._pending = rest
            if rest:
                # What room there is left was no good place to break the text.
                await self._turn_page(page)

    async def _page_with_room(self) -> _Page:
        page = self._page
        if page is not None:
            is_full = len(page.text) >= self._pacing.page_chars
            is_old = self._streams and self._clock.monotonic() >= self._page_until
            if is_full or is_old:
                await self._turn_page(page)
        if self._page is None:
            life = self._pacing.stream_life.total_seconds()
            self._page_until = self._clock.monotonic() + life
            self._pages += 1
            self._page = self._new_page()
        return self._page

    async def _turn_page(self, page: _Page) -> None:
        """Finish a page; a code block that runs over is closed here and opened there."""
        opening, marker = open_fence(page.text)
        await page.finish(f"\n{marker}" if opening else "", (), is_end=False)
        if opening:
            self._pending = f"{opening}\n{self._pending}"
        self._page = None

    def _new_page(self) -> _Page:
        scene, part = self._scene, self._pages
        if scene.is_private:
            return _WhisperedPage(scene, part)
        return _StreamedPage(scene, part) if self._streams else _PostedPage(scene, part)


class _StreamedPage:
    """A message written with Slack's streams.

    When Slack's answer to a call was lost, nobody knows what the reader sees;
    then the whole page is written once more at its end.
    """

    def __init__(self, scene: Scene, part: int) -> None:
        self.text = ""
        self._scene = scene
        self._part = part
        self._ts = ""
        self._is_doubtful = False
        self._is_over = False

    async def append(self, piece: str) -> None:
        scene = self._scene
        if not self._ts:
            await self._start()
        try:
            await scene.bot.call(scene.slack.append_stream, scene.place.channel, self._ts, piece)
        except SlackUnavailable:
            self._is_doubtful = True
        except SlackRefused as refusal:
            if refusal.code in _ENDED_BY_READER:
                raise StoppedByReader from None
            if refusal.code in _ENDED_BY_SLACK:
                self._is_over = True
                raise _PageOver from None
            raise
        self.text += piece

    async def _start(self) -> None:
        scene = self._scene
        try:
            self._ts = await scene.bot.call(scene.slack.start_stream, scene.place, scene.reader)
        except (SlackRefused, SlackRateLimited, SlackUnavailable):
            # Streams are few a minute for a workspace, and not for every app; a plain
            # message says the same. A stream that began unseen is empty and ends by itself.
            raise _NoStreams from None
        await scene.on_open(self._ts)

    async def finish(self, closing: str, blocks: Sequence[Block], *, is_end: bool) -> None:
        if not self._ts:
            return
        scene, metadata = self._scene, self._scene.metadata(self._part, is_end=is_end)
        is_stopped = not self._is_over and await self._stop(closing, blocks, metadata)
        if is_stopped and not self._is_doubtful:
            return
        note = page_note(self.text + closing, blocks, metadata)
        try:
            await scene.bot.insist(scene.slack.update, scene.place.channel, self._ts, note)
        except SlackRefused as refusal:
            # Nobody reads what its reader deleted.
            if refusal.code != "message_not_found":
                raise

    async def _stop(
        self, closing: str, blocks: Sequence[Block], metadata: Mapping[str, Any]
    ) -> bool:
        """Stop the stream; tell whether Slack says that it did."""
        scene = self._scene
        # An answer without its footer is better than a stream left open.
        for below in (blocks, ()):
            try:
                await scene.bot.insist(
                    scene.slack.stop_stream,
                    scene.place.channel,
                    self._ts,
                    text=closing,
                    blocks=below,
                    metadata=metadata,
                )
            except SlackUnavailable:
                return False
            except SlackRefused as refusal:
                if refusal.code in _ENDED_BY_SLACK | _ENDED_BY_READER:
                    return False
            else:
                return True
        return False


class _PostedPage:
    """A message that is posted once and then updated."""

    def __init__(self, scene: Scene, part: int) -> None:
        self.text = ""
        self._scene = scene
        self._part = part
        self._ts = ""

    async def append(self, piece: str) -> None:
        scene = self._scene
        note = page_note(self.text + piece, (), scene.metadata(self._part, is_end=False))
        if not self._ts:
            self._ts = await self._post(note)
            await scene.on_open(self._ts)
        else:
            try:
                await scene.bot.call(scene.slack.update, scene.place.channel, self._ts, note)
            except SlackUnavailable:
                # The next update says it all again.
                pass
            except SlackRefused as refusal:
                if refusal.code in _ENDED_BY_READER:
                    raise StoppedByReader from None
                raise
        self.text += piece

    async def _post(self, note: Note) -> str:
        scene = self._scene
        try:
            return await scene.bot.call(scene.slack.post, scene.place, note)
        except SlackUnavailable:
            # It may have been posted; then it carries our metadata.
            for message in await scene.bot.insist(scene.slack.thread, scene.place):
                payload = message.metadata
                if (payload.get("message_id"), payload.get("part")) == (
                    scene.message_id,
                    self._part,
                ):
                    return message.ts
        return await scene.bot.insist(scene.slack.post, scene.place, note)

    async def finish(self, closing: str, blocks: Sequence[Block], *, is_end: bool) -> None:
        if not self._ts:
            return
        scene = self._scene
        note = page_note(self.text + closing, blocks, scene.metadata(self._part, is_end=is_end))
        try:
            await scene.bot.insist(scene.slack.update, scene.place.channel, self._ts, note)
        except SlackRefused as refusal:
            if refusal.code != "message_not_found":
                raise


class _WhisperedPage:
    """A message that only the asking person sees, all at once."""

    def __init__(self, scene: Scene, part: int) -> None:
        self.text = ""
        self._scene = scene
        self._part = part

    async def append(self, piece: str) -> None:
        self.text += piece

    async def finish(self, closing: str, blocks: Sequence[Block], *, is_end: bool) -> None:
        scene = self._scene
        note = page_note(self.text + closing, blocks, scene.metadata(self._part, is_end=is_end))
        await scene.bot.insist(scene.slack.whisper, scene.aside, scene.reader.user_id, note)


async def end_cut_answer(scene: Scene, messages: Sequence[str], words: str) -> None:
    """End an answer whose writer died, once.

    Closes the stream left open, else says the words in the thread; does nothing
    where the thread already holds the answer's end.

    Args:
        scene: Where it was said.
        messages: The ts of the answer's messages, oldest first.
        words: What to say.

    Raises:
        ServiceError: Slack could not be told.
    """
    if scene.is_private:
        note = page_note(words, (), scene.metadata(0, is_end=True))
        await scene.bot.insist(scene.slack.whisper, scene.aside, scene.reader.user_id, note)
        return
    if await _has_end(scene):
        return
    metadata = scene.metadata(0, is_end=True)
    if messages:
        try:
            await scene.bot.insist(
                scene.slack.stop_stream,
                scene.place.channel,
                messages[-1],
                text=f"\n\n{words}",
                blocks=(),
                metadata=metadata,
            )
        except SlackRefused:
            # Not a stream, or Slack ended it; say it below.
            pass
        else:
            return
    await scene.bot.insist(scene.slack.post, scene.place, page_note(words, (), metadata))


async def _has_end(scene: Scene) -> bool:
    try:
        thread = await scene.bot.insist(scene.slack.thread, scene.place)
    except ServiceError:
        # Without the scope or the right to look, saying it twice beats not saying it.
        return False
    return any(
        message.metadata.get("message_id") == scene.message_id and message.metadata.get("is_end")
        for message in thread
    )
