"""How Slack issues, rotates and ends tokens."""

from dataclasses import dataclass

import pytest

from interlock_sandbox.slack.refusal import SlackError
from interlock_sandbox.slack.tokens import (
    BOT,
    MAX_ACTIVE,
    TOKEN_LIFE_S,
    USER,
    Issued,
    Rotation,
    Tokens,
)

TEAM, ROBOT, ADA = "T0NORTHWIND", "U0BOTNORTHWIND", "U0ADA"
GRACE_S = 30


@dataclass
class Stage:
    """Tokens, and what decides about them."""

    rotation: Rotation
    now: float = 1_800_000_000

    def __post_init__(self) -> None:
        self.tokens = Tokens(None, self.rotation, lambda: self.now, "A0INTERLOCK")

    def install(self, *scopes: str) -> Issued:
        """Issue what an install gives the bot."""
        return self.tokens.grant(TEAM, BOT, ROBOT, list(scopes))

    def state_of(self, issued: Issued) -> str:
        """Return `alive`, or why a token is dead."""
        try:
            self.tokens.check(issued.token)
        except SlackError as error:
            return error.code
        return "alive"


@pytest.fixture
def lasting() -> Stage:
    """Return tokens of an app without rotation."""
    return Stage(Rotation(on=False, grace_s=GRACE_S))


@pytest.fixture
def rotating() -> Stage:
    """Return tokens of an app with rotation."""
    return Stage(Rotation(on=True, grace_s=GRACE_S))


def _refresh(stage: Stage, issued: Issued) -> Issued:
    assert issued.refresh_token is not None
    return stage.tokens.refresh(issued.refresh_token)


def test_without_rotation_a_reinstall_returns_the_same_token(lasting: Stage) -> None:
    """Slack gives the bot token out again, its scopes added up, and it never expires."""
    first = lasting.install("chat:write")
    again = lasting.install("users:read")
    assert again.token is first.token
    assert again.token.scopes == ["chat:write", "users:read"]
    assert again.refresh_token is None
    assert "expires_in" not in again.show()
    lasting.now += 10 * TOKEN_LIFE_S
    assert lasting.state_of(again) == "alive"


def test_with_rotation_tokens_live_twelve_hours(rotating: Stage) -> None:
    """An access token says how long it lives, and is refused after that."""
    issued = rotating.install("chat:write")
    assert issued.token.value.startswith("xoxe.xoxb-1-")
    assert (issued.refresh_token or "").startswith("xoxe-1-")
    assert issued.show()["expires_in"] == 43_200
    rotating.now += TOKEN_LIFE_S - 1
    assert rotating.state_of(issued) == "alive"
    rotating.now += 1
    assert rotating.state_of(issued) == "token_expired"
    assert rotating.state_of(_refresh(rotating, issued)) == "alive"


def test_refresh_leaves_the_old_token_alive(rotating: Stage) -> None:
    """Two access tokens work side by side after a refresh."""
    first = rotating.install("chat:write")
    second = _refresh(rotating, first)
    assert [rotating.state_of(each) for each in (first, second)] == ["alive", "alive"]


def test_third_active_token_revokes_the_oldest(rotating: Stage) -> None:
    """No more than two access tokens of a chain work at once."""
    issued = [rotating.install("chat:write")]
    for _ in range(MAX_ACTIVE):
        issued.append(_refresh(rotating, issued[-1]))
    states = [rotating.state_of(each) for each in issued]
    assert states == ["token_revoked", "alive", "alive"]


def test_refresh_token_is_used_once_and_a_little_longer(rotating: Stage) -> None:
    """Within the grace period a used one gives another pair; after it, nothing."""
    first = rotating.install("chat:write")
    second = _refresh(rotating, first)
    rotating.now += GRACE_S - 1
    third = _refresh(rotating, first)
    assert third.token.value != second.token.value
    rotating.now += 1
    with pytest.raises(SlackError, match="invalid_refresh_token"):
        _refresh(rotating, first)
    assert rotating.state_of(_refresh(rotating, third)) == "alive"


def test_without_grace_the_second_use_is_refused(rotating: Stage) -> None:
    """Single use is single use when the grace period is nothing."""
    rotating.rotation.grace_s = 0
    first = rotating.install("chat:write")
    _refresh(rotating, first)
    with pytest.raises(SlackError, match="invalid_refresh_token"):
        _refresh(rotating, first)


def test_bot_and_user_rotate_apart(rotating: Stage) -> None:
    """Refreshing one chain neither gives nor ends tokens of the other."""
    bot = rotating.install("chat:write")
    user = rotating.tokens.grant(TEAM, USER, ADA, ["chat:write"])
    assert user.token.value.startswith("xoxe.xoxp-1-")
    for _ in range(MAX_ACTIVE + 1):
        bot = _refresh(rotating, bot)
        assert bot.token.kind == BOT
    assert rotating.state_of(user) == "alive"
    assert _refresh(rotating, user).show()["token_type"] == "user"


def test_reinstall_with_rotation_gives_a_new_pair(rotating: Stage) -> None:
    """Nothing is given out twice; scopes add up."""
    first = rotating.install("chat:write")
    again = rotating.install("users:read")
    assert again.token.value != first.token.value
    assert again.refresh_token != first.refresh_token
    assert again.token.scopes == ["chat:write", "users:read"]


def test_lasting_token_is_exchanged_once_and_dies_at_the_first_refresh(lasting: Stage) -> None:
    """Turning rotation on moves an installation over without ending it."""
    old = lasting.install("chat:write")
    with pytest.raises(SlackError, match="token_rotation_not_enabled"):
        lasting.tokens.exchange(old.token.value)
    lasting.rotation.on = True
    pair = lasting.tokens.exchange(old.token.value)
    assert lasting.state_of(old) == "alive"
    with pytest.raises(SlackError, match="token_already_exchanged"):
        lasting.tokens.exchange(old.token.value)
    with pytest.raises(SlackError, match="invalid_token"):
        lasting.tokens.exchange(pair.token.value)
    _refresh(lasting, pair)
    assert lasting.state_of(old) == "token_revoked"


def test_revoked_token_cannot_be_exchanged(lasting: Stage) -> None:
    """An authorization that is gone does not come back by exchange."""
    old = lasting.install("chat:write")
    lasting.rotation.on = True
    lasting.tokens.revoke_all(TEAM)
    with pytest.raises(SlackError, match="authorization_not_found"):
        lasting.tokens.exchange(old.token.value)


def test_uninstall_ends_refresh_tokens_too(rotating: Stage) -> None:
    """After an uninstall no refresh token brings an installation back."""
    issued = rotating.install("chat:write")
    rotating.tokens.revoke_all(TEAM)
    with pytest.raises(SlackError, match="invalid_refresh_token"):
        _refresh(rotating, issued)
    assert rotating.tokens.scopes(TEAM) == []


def test_scopes_outlive_the_access_token(rotating: Stage) -> None:
    """A refresh after an expiry, or a revocation, gives what the chain had."""
    issued = rotating.install("chat:write")
    issued.token.revoked = True
    rotating.now += TOKEN_LIFE_S
    assert _refresh(rotating, issued).token.scopes == ["chat:write"]
