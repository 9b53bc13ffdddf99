"""The platform's own check of slackUser tokens.

Written apart from the code that issues them, so that a mistake made there is
not made again here. Anything but the exact contract is refused.
"""

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from interlock_sandbox.config import UserTokenKey

MAX_TOKEN_BYTES = 4096
MAX_LIFE_S = 300
# The issuer's clock may run a little ahead of ours.
MAX_EARLY_S = 5
ISSUER, AUDIENCE = "inkeep-auth", "inkeep-api"
TOKEN_USE, ACTOR = "slackUser", "inkeep-work-app-slack"
_HEADER_NAMES = frozenset({"alg", "typ", "kid"})
_CLAIM_NAMES = frozenset(
    {"iss", "aud", "sub", "iat", "exp", "jti", "tokenUse", "act", "tenantId", "slack"}
)
_SLACK_NAMES = frozenset(
    {
        "teamId",
        "userId",
        "enterpriseId",
        "email",
        "authorized",
        "authSource",
        "channelId",
        "authorizedProjectId",
    }
)
_AUTH_SOURCES = frozenset({"channel", "workspace"})


class TokenRefused(Exception):
    """The token does not prove what the platform asks for; the text says what is wrong."""


@dataclass(frozen=True)
class Caller:
    """Whom a token speaks for.

    Attributes:
        authorized_project: A project that an administrator opened to the
            channel or workspace the question came from; None for most.
    """

    user_id: str
    tenant_id: str
    slack_team_id: str
    slack_user_id: str
    slack_enterprise_id: str | None
    authorized_project: str | None


def verify_user_token(token: str, keys: tuple[UserTokenKey, ...], now: float) -> Caller:
    """Return whom a token speaks for.

    Raises:
        TokenRefused: It is malformed, forged, expired, or not a slackUser token.
    """
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        _refuse("longer than 4 KiB, or not ASCII")
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - a JWS in compact form has three parts
        _refuse("not three segments")
    header, claims = _object(parts[0], "header"), _object(parts[1], "claims")
    key = _key(header, keys)
    signed = f"{parts[0]}.{parts[1]}".encode()
    expected = hmac.digest(key.secret.reveal(), signed, hashlib.sha256)
    if not hmac.compare_digest(_segment(parts[2], "signature"), expected):
        _refuse("wrong signature")
    _check_claims(claims, now)
    return _caller(claims)


def _key(header: dict[str, Any], keys: tuple[UserTokenKey, ...]) -> UserTokenKey:
    if header.get("alg") != "HS256":
        _refuse("the algorithm is not HS256")
    if header.get("typ", "JWT") != "JWT":
        _refuse("the type is not JWT")
    if not header.keys() <= _HEADER_NAMES:
        _refuse("unknown header fields")
    if "kid" not in header:
        found = next((key for key in keys if key.legacy), None)
    else:
        found = next((key for key in keys if key.kid == header["kid"]), None)
    return found or _refuse("no such key")


_FIXED_CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "tokenUse": TOKEN_USE, "act": {"sub": ACTOR}}


def _check_claims(claims: dict[str, Any], now: float) -> None:
    if not claims.keys() <= _CLAIM_NAMES:
        _refuse("unknown claims")
    for name, expected in _FIXED_CLAIMS.items():
        if claims.get(name) != expected:
            _refuse(f"wrong {name}")
    issued, expires = claims.get("iat"), claims.get("exp")
    if type(issued) is not int or type(expires) is not int:
        _refuse("times are not whole seconds")
    if not 0 < expires - issued <= MAX_LIFE_S:
        _refuse(f"lives longer than {MAX_LIFE_S} seconds")
    if issued > now + MAX_EARLY_S:
        _refuse("issued in the future")
    if now >= expires:
        _refuse("expired")
    if "jti" in claims:
        _text(claims, "jti")


def _caller(claims: dict[str, Any]) -> Caller:
    slack = claims.get("slack")
    if not isinstance(slack, dict) or not slack.keys() <= _SLACK_NAMES:
        _refuse("wrong slack claims")
    for name in ("email", "channelId"):
        if name in slack:
            _text(slack, name)
    return Caller(
        user_id=_text(claims, "sub"),
        tenant_id=_text(claims, "tenantId"),
        slack_team_id=_text(slack, "teamId"),
        slack_user_id=_text(slack, "userId"),
        slack_enterprise_id=_text(slack, "enterpriseId") if "enterpriseId" in slack else None,
        authorized_project=_authorized_project(slack),
    )


def _authorized_project(slack: dict[str, Any]) -> str | None:
    authorized = slack.get("authorized", False)
    if type(authorized) is not bool:
        _refuse("authorized is not a boolean")
    if not authorized:
        return None
    if slack.get("authSource") not in _AUTH_SOURCES:
        _refuse("authorized without its source")
    return _text(slack, "authorizedProjectId")


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        _refuse(f"{name} is not a text")
    return value


def _object(segment: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(_segment(segment, what), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _refuse(f"the {what} is not JSON")
    if not isinstance(found, dict):
        _refuse(f"the {what} is not an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        _refuse("a name occurs twice")
    return dict(pairs)


def _segment(segment: str, what: str) -> bytes:
    try:
        decoded = base64.b64decode(segment + "=" * (-len(segment) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"the {what} is not base64url")
    # Several texts decode to the same bytes; only one of them is the encoding.
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != segment.encode():
        _refuse(f"the {what} is not canonical base64url")
    return decoded


def _refuse(problem: str) -> NoReturn:
    raise TokenRefused(problem)
