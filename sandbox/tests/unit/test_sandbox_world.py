"""Slack's world without any network."""

import asyncio
import json

import pytest

from interlock_sandbox.slack.feed import MAX_BEHIND, Feed
from interlock_sandbox.slack.model import Code, Message
from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.tokens import Issued, Rotation
from interlock_sandbox.slack.views import MAX_STACK, TRIGGER_LIFE_S, View, Views
from interlock_sandbox.slack.world import World
from interlock_sandbox.testing import example_config

TEAM, ENTERPRISE, SALES, OPERATIONS = "T0NORTHWIND", "E0MERIDIAN", "T0MERSALES", "T0MEROPS"
HELP = "C0NOHELP"
MIA = "U0MIA"
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
    return _world(clock)


def _world(clock: Clock, saved: dict[str, object] | None = None) -> World:
    off = Rotation(on=False, grace_s=0)
    return World(saved, clock, lambda: None, rotation=off, app_id="A0INTERLOCK")


def _installed(
    world: World, scopes: list[str], holder: str = TEAM, granted: tuple[str, ...] = ()
) -> Issued:
    code = Code(
        value="code",
        holder=holder,
        user="U0ADA",
        scopes=scopes,
        user_scopes=[],
        redirect_uri="http://x/",
        redirect_uri_sent=True,
        issued_at=world.now(),
        granted=list(granted),
    )
    world.issue_code(code)
    issued, _ = world.install(code)
    assert issued is not None
    return issued


def _message(world: World, text: str, user: str = MIA, channel: str = HELP) -> Message:
    return Message(world.next_ts(), channel, user, text, TEAM)


def test_message_timestamps_never_repeat(world: World) -> None:
    """A ts names one message, even within a microsecond."""
    stamps = [world.next_ts() for _ in range(100)]
    assert stamps == sorted(set(stamps))


def test_app_leaves_with_its_last_token(world: World) -> None:
    """Revoking the only token uninstalls the app; installing again issues a new one."""
    issued = _installed(world, ["chat:write"])
    assert world.revoke(issued.token) is True
    assert world.workspaces[TEAM].active_installation() is None
    assert _installed(world, ["chat:write"]).token.value != issued.token.value


def test_snapshot_survives_json(world: World, clock: Clock) -> None:
    """A restart finds places, messages, tokens and the verification token again."""
    _installed(world, ["chat:write"])
    _installed(world, ["chat:write"], ENTERPRISE, (SALES,))
    world.add(_message(world, "hello"))
    saved = json.loads(json.dumps(world.snapshot()))
    again = _world(clock, saved)
    assert again.snapshot() == world.snapshot()
    sales, everybody = again.workspaces[SALES].users, again.enterprises[ENTERPRISE].users
    assert sales["U0GRETA"] is everybody["U0GRETA"]


def test_whispers_and_direct_messages_reach_only_their_readers(world: World) -> None:
    """The feed of one person never holds what only another may see."""
    _installed(world, ["chat:write"])
    bot = "U0BOTNORTHWIND"
    talk = world.open_direct([TEAM], [bot, MIA])
    with world.feed.reading(TEAM, MIA) as mia, world.feed.reading(TEAM, "U0BEN") as ben:
        whisper = _message(world, "psst", bot)
        whisper.ephemeral_to = MIA
        world.add(whisper)
        world.add(_message(world, "in private", bot, talk.id))
        world.add(_message(world, "to all", bot))
    assert _texts(mia) == ["psst", "in private", "to all"]
    assert _texts(ben) == ["to all"]


def test_shared_channel_is_news_in_both_workspaces(world: World) -> None:
    """What is said in a channel of Slack Connect is read on both sides."""
    with (
        world.feed.reading(TEAM, MIA) as mia,
        world.feed.reading("T0CONTOSO", "U0CARL") as carl,
    ):
        world.add(_message(world, "hello, partners", channel="C0PARTNERS"))
    assert _texts(mia) == _texts(carl) == ["hello, partners"]


def test_org_wide_install_acts_only_where_it_was_let_in(world: World) -> None:
    """An Enterprise's installation reaches the workspaces granted, and each as its own."""
    _installed(world, ["chat:write"], ENTERPRISE, (SALES,))
    receiver = world.receiver_in(SALES)
    assert receiver is not None
    assert receiver.authorization() == {
        "enterprise_id": ENTERPRISE,
        "team_id": SALES,
        "user_id": "U0BOTMERIDIAN",
        "is_bot": True,
        "is_enterprise_install": True,
    }
    assert world.receiver_in(OPERATIONS) is None
    world.grant_workspaces(ENTERPRISE, [SALES, OPERATIONS])
    assert [each.id for each in world.reach(ENTERPRISE)] == [SALES, OPERATIONS]


def test_install_in_one_workspace_of_an_enterprise_is_that_workspaces(world: World) -> None:
    """Not org-wide, it names the Enterprise and reaches its own workspace only."""
    _installed(world, ["chat:write"], SALES)
    receiver = world.receiver_in(SALES)
    assert receiver is not None
    assert (receiver.is_org_wide, receiver.authorization()["enterprise_id"]) == (False, ENTERPRISE)
    assert world.receiver_in(OPERATIONS) is None


def test_reader_who_falls_behind_is_told_to_load_anew() -> None:
    """A page that does not read cannot fill the memory, and others miss nothing."""
    feed = Feed()
    with feed.reading(TEAM, MIA) as slow, feed.reading(TEAM, "U0BEN") as fast:
        for number in range(MAX_BEHIND):
            feed.publish(TEAM, {"type": "message", "number": number}, [MIA])
        feed.publish(TEAM, {"type": "message", "number": -1})
    assert slow.get_nowait() == {"type": "reload"}
    assert slow.empty()
    assert fast.get_nowait() == {"type": "message", "number": -1}


@pytest.fixture
def views(world: World) -> Views:
    """Return the views of an app that is installed."""
    _installed(world, ["chat:write"])
    return Views(example_config().app, world)


def _trigger(world: World, views: Views, view: View | None = None) -> str:
    receiver = world.receiver_in(TEAM)
    assert receiver is not None
    return views.issue_trigger(receiver, TEAM, MIA, view.id if view else None)


def test_trigger_opens_one_modal_and_not_for_long(world: World, views: Views, clock: Clock) -> None:
    """A trigger is used once, within three seconds, by its own installation."""
    trigger = _trigger(world, views)
    with pytest.raises(SlackError, match="invalid_trigger_id"):
        views.open("T0CONTOSO", trigger, VIEW)
    view = views.open(TEAM, trigger, VIEW)
    assert view.user == MIA
    with pytest.raises(SlackError, match="exchanged_trigger_id"):
        views.open(TEAM, trigger, VIEW)
    late = _trigger(world, views)
    clock.seconds += TRIGGER_LIFE_S
    with pytest.raises(SlackError, match="expired_trigger_id"):
        views.open(TEAM, late, VIEW)


def test_modal_changes_only_from_the_state_its_app_saw(world: World, views: Views) -> None:
    """An update with an old hash is refused."""
    view = views.open(TEAM, _trigger(world, views), VIEW)
    old = view.hash
    views.update(TEAM, VIEW, view_id=view.id, external_id="", expected=old)
    with pytest.raises(SlackError, match="hash_conflict"):
        views.update(TEAM, VIEW, view_id=view.id, external_id="", expected=old)


def test_modal_with_a_missing_title_is_refused(world: World, views: Views) -> None:
    """A modal that Slack would not show is not shown, and its trigger stays good."""
    trigger = _trigger(world, views)
    with pytest.raises(SlackError, match="invalid_arguments"):
        views.open(TEAM, trigger, {"type": "modal", "blocks": []})
    assert views.open(TEAM, trigger, VIEW).user == MIA


def test_modals_stack_three_high_and_close_from_the_top(world: World, views: Views) -> None:
    """A pushed view knows what is below it, and a fourth one is refused."""
    below = view = root = views.open(TEAM, _trigger(world, views), VIEW)
    for _ in range(MAX_STACK - 1):
        below, view = view, views.push(TEAM, _trigger(world, views, view), VIEW)
        assert views.show(view)["previous_view_id"] == below.id
        assert views.show(view)["root_view_id"] == root.id
    with pytest.raises(SlackError, match="push_limit_reached"):
        views.push(TEAM, _trigger(world, views, view), VIEW)
    with pytest.raises(SlackError, match="not_found"):
        views.push(TEAM, _trigger(world, views), VIEW)
    views.close(view)
    assert [each["id"] for each in views.list_open(TEAM, MIA)] == [root.id, below.id]
    views.close_all(root)
    assert views.list_open(TEAM, MIA) == []


def test_external_id_names_one_view(world: World, views: Views) -> None:
    """A second view of the same external id is refused; the id finds the first."""
    named = VIEW | {"external_id": "ours"}
    view = views.open(TEAM, _trigger(world, views), named)
    with pytest.raises(SlackError, match="duplicate_external_id"):
        views.open(TEAM, _trigger(world, views), named)
    same = views.update(TEAM, named, view_id="", external_id="ours", expected=None)
    assert same is view


def test_home_tab_is_one_per_person(world: World, views: Views) -> None:
    """Publishing again replaces it, unless it is not what the app last saw."""
    content = {"type": "home", "blocks": []}
    first = views.publish(TEAM, TEAM, MIA, content, None)
    old = first.hash
    assert views.publish(TEAM, TEAM, MIA, content, old) is first
    with pytest.raises(SlackError, match="hash_conflict"):
        views.publish(TEAM, TEAM, MIA, content, old)
    assert views.list_open(TEAM, MIA) == []


def _texts(queue: "asyncio.Queue[dict[str, object] | None]") -> list[str]:
    found = []
    while not queue.empty():
        event = queue.get_nowait()
        message = event["message"] if event and event["type"] == "message" else None
        if isinstance(message, dict):
            found.append(message["text"])
    return found
