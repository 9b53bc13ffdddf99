"""Verify tokens: one strict path, whatever the family.

Size, segments, header, key, signature, and only then the claims. Where one
step fails, the next never sees the token.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from interlock_tokens.claims import Verified, read_claims
from interlock_tokens.errors import InvalidToken, PurposeNotGranted
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.grants import (
    AdminGrant,
    AdminPurpose,
    InstallGrant,
    SlackGrant,
    SlackUserToken,
)
from interlock_tokens.keys import Key
from interlock_tokens.keysets import Keyset
from interlock_tokens.wire import KID, Malformed, Parts, parse_object, take_apart

_T = TypeVar("_T", SlackGrant, AdminGrant, InstallGrant, SlackUserToken)

# `jku`, `jwk`, `x5u` and `crit` would let a token say how it is to be verified; so would any
# field that we do not know.
_HEADER_FIELDS = frozenset({"alg", "typ", "kid"})
_EVENT = (Family.SLACK_GRANT, Family.RENEWED_GRANT)


def verify_slack_grant(
    token: str, keyset: Keyset, *, now: datetime, allow_expired: timedelta | None = None
) -> SlackGrant:
    """Verify a slackGrant or renewedGrant.

    Args:
        token: The token as received.
        keyset: Keys that may have signed it.
        now: The instant of the verification.
        allow_expired: How long after its end it still passes, for renewals only.

    Raises:
        InvalidToken: It does not verify.
    """
    grant = _verify(token, keyset, _EVENT, now, allow_expired or timedelta(0))
    return _only(SlackGrant, grant)


def verify_admin_grant(token: str, keyset: Keyset, *, now: datetime) -> AdminGrant:
    """Verify an adminGrant; its purpose is for `require_purpose`.

    Raises:
        InvalidToken: It does not verify.
    """
    return _only(AdminGrant, _verify(token, keyset, (Family.ADMIN_GRANT,), now))


def verify_install_grant(token: str, keyset: Keyset, *, now: datetime) -> InstallGrant:
    """Verify an installGrant.

    Raises:
        InvalidToken: It does not verify.
    """
    return _only(InstallGrant, _verify(token, keyset, (Family.INSTALL_GRANT,), now))


def verify_user_token(token: str, keyset: Keyset, *, now: datetime) -> SlackUserToken:
    """Verify an as-user token of the agents platform.

    Raises:
        InvalidToken: It does not verify.
    """
    return _only(SlackUserToken, _verify(token, keyset, (Family.SLACK_USER,), now))


def verify_event_or_admin(token: str, keyset: Keyset, now: datetime) -> SlackGrant | AdminGrant:
    """Verify a slackGrant, renewedGrant or adminGrant.

    Raises:
        InvalidToken: It does not verify.
    """
    grant = _verify(token, keyset, (*_EVENT, Family.ADMIN_GRANT), now)
    return grant if isinstance(grant, SlackGrant) else _only(AdminGrant, grant)


def require_purpose(grant: AdminGrant, *purposes: AdminPurpose) -> None:
    """Let a grant pass only for one of the purposes.

    Raises:
        PurposeNotGranted: It was given for something else.
    """
    if grant.purpose not in purposes:
        raise PurposeNotGranted


def _verify(
    token: str,
    keyset: Keyset,
    families: Collection[Family],
    now: datetime,
    allow_expired: timedelta = timedelta(0),
) -> Verified:
    try:
        parts = take_apart(token)
        family, kid = _read_header(parts.header, families)
        _require_signature(parts, keyset.find_verifying(family, kid, now))
        claims = parse_object(parts.payload)
        return read_claims(family, claims, now=now, allow_expired=allow_expired)
    except Malformed as problem:
        # The caller learns nothing; what led here holds the token.
        raise InvalidToken(str(problem)) from None


def _require_signature(parts: Parts, key: Key | None) -> None:
    if key is None:
        raise Malformed("key")
    if not key.material.verifies(parts.signed, parts.signature):
        raise Malformed("signature")


def _read_header(
    header: Mapping[str, Any], families: Collection[Family]
) -> tuple[Family, str | None]:
    """Tell the family by `alg` and `typ`, and the key by `kid`."""
    if not header.keys() <= _HEADER_FIELDS:
        raise Malformed("header")
    kid = header.get("kid")
    if "kid" in header and (type(kid) is not str or not KID.fullmatch(kid)):
        raise Malformed("key")
    for family in families:
        rules = FAMILIES[family]
        if header.get("typ") == rules.header_type and header.get("alg") == rules.algorithm:
            return family, kid
    raise Malformed("family")


def _only(expected: type[_T], verified: Verified) -> _T:
    if not isinstance(verified, expected):
        raise InvalidToken("family")
    return verified
