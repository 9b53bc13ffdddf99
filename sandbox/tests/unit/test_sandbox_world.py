"""Slack's world without any network."""

import asyncio
import json

import pytest

from interlock_sandbox.slack.feed import MAX_BEHIND, Feed
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.views import TRIGGER_LIFE_S, Views
from interlock_sandbox.slack.world import Code, Message, World
from interlock_sandbox.testing import example_config

TEAM = "T0NORTHWIND"
HELP = "C0NOHELP"
VIEW = {"type": "modal", "title": {"type": "plain_text", "text": "Ask"}, "blocks": []}


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    """Return a world that starts for the first time."""
    return World(None, clock, lambda: None)


def _code(world: World, scopes: list[str]) -> Code:
    made = Code(
        value="code",
        team=TEAM,
        user="U0ADA",
        scopes=scopes,
        user_scopes=[],
        redirect_uri="http://x/",
        redirect_uri_sent=True,
        issued_at=world.now(),
    )
    world.issue_code(made)
    return made


def test_message_timestamps_never_repeat(world: World) -> None:
    """A ts names one message, even within a microsecond."""
    stamps = [world.next_ts() for _ in range(100)]
    assert stamps == sorted(set(stamps))


def test_reinstall_returns_the_same_token_with_scopes_added(world: World) -> None:
    """Without rotation Slack gives the bot token out again."""
    first, _ = world.install(_code(world, ["chat:write"]))
    again, _ = world.install(_code(world, ["users:read"]))
    assert first is not None
    assert again is first
    assert again.scopes == ["chat:write", "users:read"]


def test_app_leaves_with_its_last_token(world: World) -> None:
    """Revoking the only token uninstalls the app; installing again issues a new one."""
    token, _ = world.install(_code(world, ["chat:write"]))
    assert token is not None
    world.revoke(token)
    assert world.workspaces[TEAM].active_installation() is None
    again, _ = world.install(_code(world, ["chat:write"]))
    assert again is not None
    assert again.value != token.value


def test_snapshot_survives_json(world: World, clock: Clock) -> None:
    """A restart finds messages, tokens and the verification token again."""
    world.install(_code(world, ["chat:write"]))
    world.add(TEAM, Message(world.next_ts(), HELP, "U0MIA", "hello"))
    saved = json.loads(json.dumps(world.snapshot()))
    again = World(saved, clock, lambda: None)
    assert again.snapshot() == world.snapshot()


def test_whispers_and_direct_messages_reach_only_their_readers(world: World) -> None:
    """The feed of one person never holds what only another may see."""
    world.install(_code(world, ["chat:write"]))
    bot = "U0BOTNORTHWIND"
    talk = world.open_im(TEAM, bot, "U0MIA")
    with (
        world.feed.reading(TEAM, "U0MIA") as mia,
        world.feed.reading(TEAM, "U0BEN") as ben,
    ):
        whisper = Message(world.next_ts(), HELP, bot, "psst", ephemeral_to="U0MIA")
        world.add(TEAM, whisper)
        world.add(TEAM, Message(world.next_ts(), talk.id, bot, "in private"))
        world.add(TEAM, Message(world.next_ts(), HELP, bot, "to all"))
    assert _texts(mia) == ["psst", "in private", "to all"]
    assert _texts(ben) == ["to all"]


def test_reader_who_falls_behind_is_told_to_load_anew() -> None:
    """A page that does not read cannot fill the memory, and others miss nothing."""
    feed = Feed()
    with feed.reading(TEAM, "U0MIA") as slow, feed.reading(TEAM, "U0BEN") as fast:
        for number in range(MAX_BEHIND):
            feed.publish(TEAM, {"type": "message", "number": number}, ["U0MIA"])
        feed.publish(TEAM, {"type": "message", "number": -1})
    assert slow.get_nowait() == {"type": "reload"}
    assert slow.empty()
    assert fast.get_nowait() == {"type": "message", "number": -1}


def test_trigger_opens_one_modal_and_not_for_long(world: World, clock: Clock) -> None:
    """A trigger is used once, within three seconds, in its own workspace."""
    views = Views(example_config().app, world)
    trigger = views.issue_trigger(TEAM, "U0MIA")
    with pytest.raises(SlackError, match="invalid_trigger_id"):
        views.open("T0CONTOSO", trigger, VIEW)
    view = views.open(TEAM, trigger, VIEW)
    assert view.user == "U0MIA"
    with pytest.raises(SlackError, match="exchanged_trigger_id"):
        views.open(TEAM, trigger, VIEW)
    late = views.issue_trigger(TEAM, "U0MIA")
    clock.seconds += TRIGGER_LIFE_S
    with pytest.raises(SlackError, match="expired_trigger_id"):
        views.open(TEAM, late, VIEW)


def test_modal_changes_only_from_the_state_its_app_saw(world: World) -> None:
    """An update with an old hash is refused."""
    views = Views(example_config().app, world)
    view = views.open(TEAM, views.issue_trigger(TEAM, "U0MIA"), VIEW)
    old = view.hash
    views.update(TEAM, view.id, VIEW, old)
    with pytest.raises(SlackError, match="hash_conflict"):
        views.update(TEAM, view.id, VIEW, old)


def test_modal_with_a_missing_title_is_refused(world: World) -> None:
    """A modal that Slack would not show is not shown, and its trigger stays good."""
    views = Views(example_config().app, world)
    trigger = views.issue_trigger(TEAM, "U0MIA")
    with pytest.raises(SlackError, match="invalid_arguments"):
        views.open(TEAM, trigger, {"type": "modal", "blocks": []})
    assert views.open(TEAM, trigger, VIEW).user == "U0MIA"


def _texts(queue: "asyncio.Queue[dict[str, object] | None]") -> list[str]:
    found = []
    while not queue.empty():
        event = queue.get_nowait()
        message = event["message"] if event and event["type"] == "message" else None
        if isinstance(message, dict):
            found.append(message["text"])
    return found
