"""What the claims of each family must be, and the typed value they make.

Signing reads its own claims through here too: nothing is signed that a
verifier would refuse.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, get_args

from interlock_tokens.families import CLOCK_LEEWAY, FAMILIES, Family, FamilyRules
from interlock_tokens.grants import (
    AdminGrant,
    AdminPurpose,
    AuthorizationSource,
    ChannelAuthorization,
    InstallGrant,
    InstallSource,
    SlackGrant,
    SlackUserToken,
    Workspace,
)
from interlock_tokens.wire import Malformed

Verified = SlackGrant | AdminGrant | InstallGrant | SlackUserToken

# Who acts in an as-user token; fixed by the platform's contract.
ACTOR = "inkeep-work-app-slack"

# How far an event's own time may lie ahead of its grant: Slack's signature window.
_EVENT_LEEWAY = timedelta(minutes=5)
# The first second of the year 10000, which a datetime cannot hold.
_END_OF_TIME = 253_402_300_800

# Slack documents no length; the longest ids known have 11 characters.
_ENTERPRISE = re.compile(r"E[A-Z0-9]{2,20}", re.ASCII)
_TEAM = re.compile(r"T[A-Z0-9]{2,20}", re.ASCII)
_TEAM_OR_ENTERPRISE = re.compile(r"[TE][A-Z0-9]{2,20}", re.ASCII)
_APP = re.compile(r"A[A-Z0-9]{2,20}", re.ASCII)
_SLACK_USER = re.compile(r"[UW][A-Z0-9]{2,20}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PURPOSES = {purpose.value: purpose for purpose in AdminPurpose}
_SOURCES: dict[str, InstallSource] = {source: source for source in get_args(InstallSource)}
_AUTHORIZATIONS = {source.value: source for source in AuthorizationSource}
# Ids of the platform are at most 256 characters, and so are the event keys of the inbox.
_MAX_TEXT_CHARS = 256


def read_claims(
    family: Family,
    claims: Mapping[str, Any],
    *,
    now: datetime,
    allow_expired: timedelta = timedelta(0),
) -> Verified:
    """Read the claims of a token whose signature has been verified.

    Args:
        family: What its header says it is.
        claims: The payload's members.
        now: The instant of the verification.
        allow_expired: How long after its end a token still passes.

    Raises:
        Malformed: A claim is missing, unknown, of the wrong type or value, or
            the token does not live at `now`.
    """
    rules = FAMILIES[family]
    if not rules.required_claims <= claims.keys():
        raise Malformed("missing claim")
    members = _Members(claims)
    standard = _read_standard(members, family, now, allow_expired)
    verified = _READERS[family](members, standard)
    if not rules.allows_unknown_claims:
        members.require_empty()
    return verified


@dataclass(frozen=True, slots=True)
class _Standard:
    """The claims that every family has."""

    jti: str
    issued_at: datetime
    expires_at: datetime


class _Members:
    """The members of an untrusted JSON object, taken one by one, each of its exact type."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise Malformed("claim type")
        self._rest = dict(value)

    def text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        """Take a text: not blank, printable, no spaces around it."""
        value = self._rest.pop(name, None)
        if type(value) is not str:
            raise Malformed("claim type")
        if pattern is not None:
            fits = pattern.fullmatch(value) is not None
        else:
            fits = 0 < len(value) <= _MAX_TEXT_CHARS and _is_clean(value)
        if not fits:
            raise Malformed("claim value")
        return value

    def optional_text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        """Take a text, "" when it is absent; present but empty is refused."""
        return self.text(name, pattern) if name in self._rest else ""

    def one_of(self, name: str, choices: Mapping[str, Any]) -> Any:
        """Take a text that names one of the choices; return the choice."""
        value = self.text(name)
        if value not in choices:
            raise Malformed("claim value")
        return choices[value]

    def exactly(self, name: str, expected: str) -> None:
        """Take a text that must be `expected`."""
        if self.text(name) != expected:
            raise Malformed("claim value")

    def second(self, name: str) -> int:
        """Take an epoch second: an integer, neither a float nor a truth value."""
        value = self._rest.pop(name, None)
        if type(value) is not int:
            raise Malformed("claim type")
        if not 0 <= value < _END_OF_TIME:
            raise Malformed("claim value")
        return value

    def optional_second(self, name: str) -> int:
        """Take an epoch second, 0 when it is absent."""
        return self.second(name) if name in self._rest else 0

    def flag(self, name: str) -> bool:
        """Take a truth value."""
        value = self._rest.pop(name, None)
        if type(value) is not bool:
            raise Malformed("claim type")
        return value

    def optional_flag(self, name: str) -> bool:
        """Take a truth value, False when it is absent."""
        return self.flag(name) if name in self._rest else False

    def members(self, name: str) -> "_Members":
        """Take an object."""
        return _Members(self._rest.pop(name, None))

    def require_empty(self) -> None:
        """Refuse members that nobody took."""
        if self._rest:
            raise Malformed("unknown claim")


def _is_clean(text: str) -> bool:
    return text.isprintable() and text == text.strip()


def _read_standard(
    members: _Members, family: Family, now: datetime, allow_expired: timedelta
) -> _Standard:
    rules = FAMILIES[family]
    members.exactly("iss", rules.issuer)
    members.exactly("aud", rules.audience)
    members.exactly("tokenUse", family.value)
    issued, expires = _read_life(members, rules)
    latest_start = (now + CLOCK_LEEWAY).timestamp()
    if issued > latest_start or members.optional_second("nbf") > latest_start:
        raise Malformed("not yet")
    if expires <= (now - allow_expired).timestamp():
        raise Malformed("expired")
    return _Standard(members.optional_text("jti"), _instant(issued), _instant(expires))


def _read_life(members: _Members, rules: FamilyRules) -> tuple[int, int]:
    issued, expires = members.second("iat"), members.second("exp")
    if not 0 < expires - issued <= rules.max_life.total_seconds():
        raise Malformed("life")
    return issued, expires


def _instant(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def _read_workspace(members: _Members) -> Workspace:
    workspace = Workspace(
        enterprise_id=members.optional_text("enterpriseId", _ENTERPRISE),
        team_id=members.optional_text("teamId", _TEAM),
        is_enterprise_install=members.flag("isEnterpriseInstall"),
        app_id=members.text("appId", _APP),
    )
    members.require_empty()
    # An org-wide install is keyed by its Enterprise alone, any other by its team.
    named = (workspace.enterprise_id != "", workspace.team_id != "")
    if workspace.is_enterprise_install and named != (True, False):
        raise Malformed("claim value")
    if not workspace.is_enterprise_install and not workspace.team_id:
        raise Malformed("claim value")
    return workspace


def _read_event(members: _Members, standard: _Standard, *, renewed: bool) -> SlackGrant:
    event_at = _instant(members.second("eventAt"))
    if event_at > standard.issued_at + _EVENT_LEEWAY:
        raise Malformed("claim value")
    return SlackGrant(
        jti=standard.jti,
        issued_at=standard.issued_at,
        expires_at=standard.expires_at,
        workspace=_read_workspace(members.members("workspace")),
        slack_user_id=members.optional_text("slackUserId", _SLACK_USER),
        slack_user_team_id=members.optional_text("slackUserTeamId", _TEAM_OR_ENTERPRISE),
        event_key=members.text("eventKey"),
        event_type=members.text("eventType"),
        body_sha256=members.text("bodySha256", _SHA256),
        event_at=event_at,
        renewed=renewed,
        is_stranger=members.flag("isStranger"),
    )


def _read_slack_grant(members: _Members, standard: _Standard) -> SlackGrant:
    return _read_event(members, standard, renewed=False)


def _read_renewed_grant(members: _Members, standard: _Standard) -> SlackGrant:
    return _read_event(members, standard, renewed=True)


def _read_admin_grant(members: _Members, standard: _Standard) -> AdminGrant:
    grant = AdminGrant(
        jti=standard.jti,
        issued_at=standard.issued_at,
        expires_at=standard.expires_at,
        workspace=_read_workspace(members.members("workspace")),
        tenant_id=members.text("tenantId"),
        user_id=members.text("userId"),
        purpose=members.one_of("purpose", _PURPOSES),
        slack_user_id=members.optional_text("slackUserId", _SLACK_USER),
    )
    # A resumed question is somebody's; no other purpose may act as a Slack user.
    if (grant.purpose is AdminPurpose.RESUME) != (grant.slack_user_id != ""):
        raise Malformed("claim value")
    return grant


def _read_install_grant(members: _Members, standard: _Standard) -> InstallGrant:
    return InstallGrant(
        jti=standard.jti,
        issued_at=standard.issued_at,
        expires_at=standard.expires_at,
        tenant_id=members.text("tenantId"),
        user_id=members.text("userId"),
        state_sha256=members.text("stateSha256", _SHA256),
        source=members.one_of("source", _SOURCES),
    )


def _read_user_token(members: _Members, standard: _Standard) -> SlackUserToken:
    actor = members.members("act")
    actor.exactly("sub", ACTOR)
    actor.require_empty()
    slack = members.members("slack")
    return SlackUserToken(
        jti=standard.jti,
        issued_at=standard.issued_at,
        expires_at=standard.expires_at,
        user_id=members.text("sub"),
        tenant_id=members.text("tenantId"),
        slack_team_id=slack.text("teamId"),
        slack_user_id=slack.text("userId"),
        slack_enterprise_id=slack.optional_text("enterpriseId"),
        authorization=_read_authorization(slack),
    )


def _read_authorization(slack: _Members) -> ChannelAuthorization | None:
    is_authorized = slack.optional_flag("authorized")
    project_id = slack.optional_text("authorizedProjectId")
    channel_id = slack.optional_text("channelId")
    if not is_authorized:
        return None
    if not project_id:
        raise Malformed("missing claim")
    source = slack.one_of("authSource", _AUTHORIZATIONS)
    return ChannelAuthorization(project_id, source, channel_id)


_READERS: Mapping[Family, Callable[[_Members, _Standard], Verified]] = MappingProxyType(
    {
        Family.SLACK_USER: _read_user_token,
        Family.SLACK_GRANT: _read_slack_grant,
        Family.RENEWED_GRANT: _read_renewed_grant,
        Family.ADMIN_GRANT: _read_admin_grant,
        Family.INSTALL_GRANT: _read_install_grant,
    }
)
