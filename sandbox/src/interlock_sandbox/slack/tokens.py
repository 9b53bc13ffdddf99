"""Tokens: how Slack issues them, rotates them and ends them.

Without rotation a token lives until it is revoked, and a reinstall gives the
same one out again. With rotation every token lives twelve hours and comes with
a refresh token for its successor. A chain is what one installation issued for
its bot, or for one person; the two never mix.

Source: docs.slack.dev/authentication/using-token-rotation.
"""

import base64
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass

from interlock_sandbox.slack.model import JSON
from interlock_sandbox.slack.refusal import SlackError

# Slack: 12 hours, always.
TOKEN_LIFE_S = 43_200
# Slack: past two active tokens of a chain the oldest is revoked.
MAX_ACTIVE = 2
BOT, USER, APP = "bot", "user", "app"
_PREFIXES = {BOT: "xoxb", USER: "xoxp"}
# Rotated tokens of the real Slack have some 170 characters.
_ROTATED_BYTES = 120


@dataclass
class Rotation:
    """The app's settings of token rotation.

    Attributes:
        grace_s: How long a used refresh token works again. Slack says "a short
            grace period" and no number.
    """

    on: bool
    grace_s: float


@dataclass
class Token:
    """A token that Slack issued. Dead ones stay, so that they stay refused.

    Attributes:
        holder: The Workspace or Enterprise whose installation it belongs to.
        expires_at: When it expires by itself; None for never.
        exchanged: It was exchanged for a pair, and dies when that is refreshed.
    """

    value: str
    kind: str
    holder: str
    user: str
    scopes: list[str]
    expires_at: float | None = None
    revoked: bool = False
    exchanged: bool = False

    @property
    def chain(self) -> tuple[str, str, str]:
        """What its successors and it have in common."""
        return self.holder, self.kind, self.user


@dataclass
class RefreshToken:
    """The right to the next token of a chain, to be used once."""

    value: str
    kind: str
    holder: str
    user: str
    scopes: list[str]
    used_at: float | None = None
    revoked: bool = False

    @property
    def chain(self) -> tuple[str, str, str]:
        """The chain that it continues."""
        return self.holder, self.kind, self.user


@dataclass(frozen=True)
class Issued:
    """A token, and with rotation what belongs to it."""

    token: Token
    refresh_token: str | None = None

    def show(self) -> JSON:
        """Return the fields that every answer with a token has."""
        shown: JSON = {
            "access_token": self.token.value,
            "token_type": self.token.kind,
            "scope": ",".join(self.token.scopes),
        }
        if self.refresh_token:
            shown |= {"refresh_token": self.refresh_token, "expires_in": TOKEN_LIFE_S}
        return shown


class Tokens:
    """Every token that Slack ever issued for the app.

    Args:
        saved: What `snapshot` returned in an earlier run.
        rotation: The app's settings, read anew at every call.
        now: The clock, in seconds of the epoch.
    """

    def __init__(
        self, saved: JSON | None, rotation: Rotation, now: Callable[[], float], app_id: str
    ) -> None:
        rows = saved or {}
        self._rotation = rotation
        self._now = now
        self._tokens = {row["value"]: Token(**row) for row in rows.get("tokens", [])}
        self._refresh = {row["value"]: RefreshToken(**row) for row in rows.get("refresh", [])}
        if not any(each.kind == APP for each in self._tokens.values()):
            value = f"xapp-1-{app_id}-{secrets.randbelow(10**13):013}-{secrets.token_hex(32)}"
            self._keep(Token(value, APP, "", "", ["authorizations:read"]))

    def snapshot(self) -> JSON:
        """Return what a restart needs."""
        return {
            "tokens": [asdict(each) for each in self._tokens.values()],
            "refresh": [asdict(each) for each in self._refresh.values()],
        }

    def values(self) -> list[str]:
        """List the text of every token ever issued, of every kind."""
        return [*self._tokens, *self._refresh]

    @property
    def app_token(self) -> Token:
        """The app-level token, which belongs to no installation."""
        return next(each for each in self._tokens.values() if each.kind == APP)

    def keep_app_token(self, value: str) -> None:
        """Let the app-level token be one that the configuration names."""
        old = self.app_token
        del self._tokens[old.value]
        self._keep(Token(value, APP, "", "", old.scopes))

    def find(self, value: str) -> Token | None:
        """Find a token, dead or alive."""
        return self._tokens.get(value)

    def find_refresh(self, value: str) -> RefreshToken | None:
        """Find a refresh token, spent or not."""
        return self._refresh.get(value)

    def live(self, holder: str) -> list[Token]:
        """List the tokens of an installation that work now, oldest first."""
        return [
            each for each in self._tokens.values() if each.holder == holder and self._works(each)
        ]

    def standing(self, holder: str) -> list[Token]:
        """List the tokens of an installation that nobody revoked, expired or not."""
        return [e for e in self._tokens.values() if e.holder == holder and not e.revoked]

    def scopes(self, holder: str, kind: str = BOT) -> list[str]:
        """Return what an installation may do; nothing when it has no token."""
        held = [each for each in self.standing(holder) if each.kind == kind]
        return held[-1].scopes if held else []

    # Issuing.

    def grant(self, holder: str, kind: str, user: str, scopes: list[str]) -> Issued:
        """Issue what an install gives: the old token again, or the next pair of its chain.

        Scopes add up over installs.
        """
        chain = (holder, kind, user)
        held = [each for each in self.standing(holder) if each.chain == chain]
        every = sorted({*scopes, *(scope for each in held for scope in each.scopes)})
        if self._rotation.on:
            for each in held:
                each.exchanged = each.exchanged or each.expires_at is None
            return self._next_pair(chain, every)
        lasting = next((each for each in held if each.expires_at is None), None)
        if lasting:
            lasting.scopes = every
            return Issued(lasting)
        numbers = f"{secrets.randbelow(10**12):012}-{secrets.randbelow(10**13):013}"
        value = f"{_PREFIXES[kind]}-{numbers}-{secrets.token_hex(12)}"
        return Issued(self._keep(Token(value, kind, holder, user, every)))

    def refresh(self, value: str) -> Issued:
        """Spend a refresh token; the access tokens before go on until they expire.

        Inside the grace period a spent one gives another pair.

        Raises:
            SlackError: It is unknown, revoked, or spent for longer than the grace period.
        """
        found = self._refresh.get(value)
        if found is None or found.revoked:
            raise SlackError("invalid_refresh_token")
        now = self._now()
        if found.used_at is not None and now >= found.used_at + self._rotation.grace_s:
            raise SlackError("invalid_refresh_token")
        if found.used_at is None:
            found.used_at = now
        for token in self._tokens.values():
            if token.chain == found.chain and token.exchanged:
                token.revoked = True
        held = [each.scopes for each in self.standing(found.holder) if each.chain == found.chain]
        every = sorted({*found.scopes, *(scope for scopes in held for scope in scopes)})
        return self._next_pair(found.chain, every)

    def exchange(self, value: str) -> Issued:
        """Give a pair for a token that never expires; once.

        Raises:
            SlackError: Rotation is off, or the token is no such token, dead, or
                was exchanged before.
        """
        token = self._tokens.get(value)
        if token is None or token.kind == APP or token.expires_at is not None:
            raise SlackError("invalid_token")
        if not self._rotation.on:
            raise SlackError("token_rotation_not_enabled")
        if token.revoked:
            raise SlackError("authorization_not_found")
        if token.exchanged:
            raise SlackError("token_already_exchanged")
        token.exchanged = True
        return self._next_pair(token.chain, token.scopes)

    # Ending.

    def check(self, token: Token) -> None:
        """Refuse a token that is dead.

        Raises:
            SlackError: It was revoked, or it expired.
        """
        if token.revoked:
            raise SlackError("token_revoked")
        if not self._works(token):
            raise SlackError("token_expired")

    def revoke_all(self, holder: str) -> list[Token]:
        """End everything of an installation; return the tokens that this ended."""
        ended = self.standing(holder)
        for token in ended:
            token.revoked = True
        for refresh in self._refresh.values():
            refresh.revoked = refresh.revoked or refresh.holder == holder
        return ended

    def _next_pair(self, chain: tuple[str, str, str], scopes: list[str]) -> Issued:
        holder, kind, user = chain
        value = f"xoxe.{_PREFIXES[kind]}-1-{_random_text()}"
        token = self._keep(
            Token(value, kind, holder, user, scopes, expires_at=self._now() + TOKEN_LIFE_S)
        )
        refresh = RefreshToken(f"xoxe-1-{_random_text()}", kind, holder, user, scopes)
        self._refresh[refresh.value] = refresh
        active = [each for each in self.live(holder) if each.chain == chain and each.expires_at]
        for old in active[:-MAX_ACTIVE]:
            old.revoked = True
        return Issued(token, refresh.value)

    def _keep(self, token: Token) -> Token:
        self._tokens[token.value] = token
        return token

    def _works(self, token: Token) -> bool:
        return not token.revoked and (token.expires_at is None or self._now() < token.expires_at)


def _random_text() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(_ROTATED_BYTES)).decode().rstrip("=")
