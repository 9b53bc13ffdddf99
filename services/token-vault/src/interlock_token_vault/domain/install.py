"""One attempt to install the app: what Slack answered, and what it is worth.

An attempt is written down before anything happens at Slack. It moves only
forward: started, exchanging, pending, and then done or dropped.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationId,
    InstallationKey,
    MalformedInstallationKey,
    TenantId,
    is_slack_user_id,
)

# A rotated token lives 43,200 s, always (Slack's rotation guide). A shorter
# life than a minute, or one of days, is not a life that Slack gives.
_LEAST_LIFE = timedelta(seconds=60)
_MOST_LIFE = timedelta(hours=24)
_MAX_NAME_CHARS = 320


class InstallNotOpen(ServiceError):
    """No install is open for this grant; start again."""

    kind = Kind.PRECONDITION
    reason = "INSTALL_NOT_OPEN"


class InstallInProgress(ServiceError):
    """Another call is completing this install."""

    kind = Kind.LOST_RACE
    reason = "INSTALL_IN_PROGRESS"


class OAuthCodeRefused(ServiceError):
    """Slack does not take the code; start again."""

    kind = Kind.PRECONDITION
    reason = "OAUTH_CODE_REFUSED"


class SlackAnswerUnusable(ServiceError):
    """Slack's answer is not one that an installation can be made of."""

    kind = Kind.UNAVAILABLE
    reason = "SLACK_ANSWER_UNUSABLE"


class ScopesMissing(ServiceError):
    """Slack granted fewer scopes than the app needs."""

    kind = Kind.PRECONDITION
    reason = "SCOPES_MISSING"


class WorkspaceTaken(ServiceError):
    """The workspace belongs to another tenant."""

    kind = Kind.CONFLICT
    reason = "WORKSPACE_TAKEN"


_REFUSALS: tuple[type[ServiceError], ...] = (
    OAuthCodeRefused,
    SlackAnswerUnusable,
    ScopesMissing,
    WorkspaceTaken,
)


def refusal_of(reason: str) -> ServiceError:
    """Make again the error that an attempt was dropped with."""
    for refusal in _REFUSALS:
        if refusal.reason == reason:
            return refusal()
    return InstallNotOpen()


class AttemptState(Enum):
    """How far an attempt came."""

    STARTED = "started"
    """The grant is known; nothing happened at Slack."""

    EXCHANGING = "exchanging"
    """The code may have been sent; a data key is ready for the answer."""

    PENDING = "pending"
    """The token is sealed; the workspace is not known to be the tenant's."""

    DONE = "done"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class InstallAttempt:
    """One attempt, named by its installGrant.

    Attributes:
        grant_id: The grant's `jti`.
        grant: The grant itself, for the claim; None once the attempt has ended.
        tenant_id: Who wants the workspace.
        user_id: The platform user who started it.
        code_ref: Keyed fingerprint of the OAuth code it was completed with; empty before.
        installation_id: What it made, or is about to make.
        is_reinstall: Whether the tenant had the workspace before; once done.
        extra_scopes: Scopes granted beyond those asked for; once done.
        outcome: Reason of the refusal; once dropped.
    """

    grant_id: str
    grant: Secret[str] | None
    tenant_id: TenantId
    user_id: str
    state_sha256: str
    source: Literal["direct", "nango"]
    grant_expires_at: datetime
    state: AttemptState = AttemptState.STARTED
    code_ref: str = ""
    installation_id: InstallationId | None = None
    is_reinstall: bool = False
    extra_scopes: tuple[str, ...] = ()
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class UserGrant:
    """What `oauth.v2.access` gave of the person who installed.

    Attributes:
        user_id: Slack's id of the person, as the answer says it.
        token_type: `user` for a person's.
        refresh_token: Present where rotation is on.
        expires_in_s: Seconds, present where rotation is on.
    """

    user_id: str
    token: Secret[str]
    token_type: str
    refresh_token: Secret[str] | None = None
    expires_in_s: int | None = None


@dataclass(frozen=True, slots=True)
class ExchangeAnswer:
    """What `oauth.v2.access` said; texts are empty where it said nothing.

    Attributes:
        bot_token: The top-level access token, whatever its type.
        token_type: `bot` for a bot's.
        refresh_token: Present where rotation is on.
        expires_in_s: Seconds, present where rotation is on.
        installed_by: Who allowed it, Slack `U…` or `W…`.
        user: The person's own token, where Slack gave one.
        webhook_url: Of an incoming webhook, where Slack made one; a secret.
    """

    bot_token: Secret[str] | None
    token_type: str
    app_id: str
    team_id: str
    team_name: str
    enterprise_id: str
    enterprise_name: str
    is_enterprise_install: bool
    bot_user_id: str
    scopes: tuple[str, ...]
    refresh_token: Secret[str] | None = None
    expires_in_s: int | None = None
    installed_by: str = ""
    user: UserGrant | None = None
    webhook_url: Secret[str] | None = None


@dataclass(frozen=True, slots=True)
class BotIdentity:
    """What `auth.test` says of a living token; texts are empty where it said nothing.

    Attributes:
        user_id: Of the bot, or of the person whose token it is.
        scopes: What the token may do, as its answer's header says.
    """

    team_id: str
    enterprise_id: str
    user_id: str
    is_enterprise_install: bool
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserFacts:
    """A person's own token, as it came with the bot's.

    Attributes:
        life: How long the token lives; None for a long-lived one.
    """

    user_id: str
    token: Secret[str]
    refresh_token: Secret[str] | None
    life: timedelta | None


@dataclass(frozen=True, slots=True)
class BotFacts:
    """An answer of Slack's that an installation can be made of.

    Attributes:
        name: Display name of the workspace or Enterprise; untrusted text.
        life: How long the token lives; None for a long-lived one.
        installed_by: Slack `U…` or `W…` of who allowed it; empty when it is not known.
        user: The token of the person who installed, where Slack gave one.
        webhook_url: Of an incoming webhook, where Slack made one; a secret.
    """

    key: InstallationKey
    name: str
    bot_user_id: str
    scopes: tuple[str, ...]
    token: Secret[str]
    refresh_token: Secret[str] | None
    life: timedelta | None
    installed_by: str
    user: UserFacts | None = None
    webhook_url: Secret[str] | None = None


def read_facts(answer: ExchangeAnswer, client_id: ClientId) -> BotFacts:
    """Take from an answer what an installation is made of.

    An org-wide install is keyed by its Enterprise alone, whatever team the
    answer names.

    Raises:
        SlackAnswerUnusable: No bot token, no place to install it, a person's
            token without its person, or values that Slack does not give.
    """
    if answer.bot_token is None or answer.token_type != "bot":  # noqa: S105 - A type, no token.
        raise SlackAnswerUnusable
    is_org = answer.is_enterprise_install
    if (not is_org and not answer.team_id) or not is_slack_user_id(answer.bot_user_id):
        raise SlackAnswerUnusable
    try:
        key = InstallationKey(
            client_id=client_id,
            app_id=answer.app_id,
            enterprise_id=answer.enterprise_id,
            team_id="" if is_org else answer.team_id,
        )
    except MalformedInstallationKey:
        raise SlackAnswerUnusable from None
    name = answer.enterprise_name if is_org else answer.team_name
    return BotFacts(
        key=key,
        name=name[:_MAX_NAME_CHARS].replace("\0", ""),
        bot_user_id=answer.bot_user_id,
        scopes=answer.scopes,
        token=answer.bot_token,
        refresh_token=answer.refresh_token,
        life=_read_life(answer),
        # Nothing hangs on it but whom to write to, so that no install fails for it.
        installed_by=answer.installed_by if is_slack_user_id(answer.installed_by) else "",
        user=None if answer.user is None else _read_user(answer.user),
        webhook_url=answer.webhook_url,
    )


def _read_user(grant: UserGrant) -> UserFacts:
    if grant.token_type != "user" or not is_slack_user_id(grant.user_id):  # noqa: S105 - A type.
        raise SlackAnswerUnusable
    return UserFacts(grant.user_id, grant.token, grant.refresh_token, _read_life(grant))


def _read_life(answer: ExchangeAnswer | UserGrant) -> timedelta | None:
    if answer.refresh_token is None and answer.expires_in_s is None:
        return None
    if answer.refresh_token is None or answer.expires_in_s is None:
        # Such a token would end and could not be renewed, or never be renewed.
        raise SlackAnswerUnusable
    if answer.expires_in_s <= _LEAST_LIFE.total_seconds():
        raise SlackAnswerUnusable
    return min(timedelta(seconds=min(answer.expires_in_s, 10**6)), _MOST_LIFE)


def require_same_user(identity: BotIdentity, key: InstallationKey, user_id: str) -> None:
    """Check that a living token belongs where the exchange said it does.

    Args:
        identity: What the token itself says.
        key: Where it is to be of.
        user_id: Of the bot, or of the person whose token it is.

    Raises:
        SlackAnswerUnusable: `auth.test` names another place, or another user.
    """
    if identity.user_id != user_id:
        raise SlackAnswerUnusable
    if identity.enterprise_id and identity.enterprise_id != key.enterprise_id:
        raise SlackAnswerUnusable
    # Of an org-wide token Slack names the Enterprise, or any of its teams.
    if not key.is_enterprise_install and identity.team_id != key.team_id:
        raise SlackAnswerUnusable
    if identity.is_enterprise_install and not key.is_enterprise_install:
        raise SlackAnswerUnusable


def require_scopes(granted: Iterable[str], asked: Iterable[str]) -> tuple[str, ...]:
    """Check that every scope asked for was granted.

    Returns:
        The scopes granted beyond those, sorted.

    Raises:
        ScopesMissing: Its metadata `missing_scopes` names them.
    """
    granted_set, asked_set = set(granted), set(asked)
    if missing := sorted(asked_set - granted_set):
        raise ScopesMissing(metadata={"missing_scopes": ",".join(missing)})
    return tuple(sorted(granted_set - asked_set))
