"""Take the as-user token out of an HTTP request, for the platform's own APIs."""

import logging
import re
from collections.abc import Iterable
from datetime import datetime

from interlock_chassis.errors import Kind, ServiceError
from interlock_tokens.errors import InvalidToken
from interlock_tokens.grants import SlackUserToken
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import verify_user_token

# RFC 6750, with the one space that it asks for; the scheme's case does not count (RFC 9110).
_BEARER = re.compile(r"bearer ([A-Za-z0-9._~+/=-]+)", re.IGNORECASE | re.ASCII)
_TENANT_HEADER = "x-inkeep-tenant-id"

_log = logging.getLogger(__name__)


class AmbiguousAuthorization(ServiceError):
    """The request carries more than one Authorization header."""

    kind = Kind.INVALID
    reason = "AMBIGUOUS_AUTHORIZATION"


def verify_request(
    headers: Iterable[tuple[str, str]], keyset: Keyset, *, now: datetime
) -> SlackUserToken:
    """Verify the as-user token of an HTTP request.

    The token alone says whose request it is; a tenant named by a header is
    logged and ignored.

    Args:
        headers: As they were received: a name as often as it came, in any case.
        keyset: With the platform's secret.
        now: The time of the request.

    Raises:
        AmbiguousAuthorization: Two Authorization headers; answer 400.
        InvalidToken: No token, or one that does not verify; answer 401.
    """
    received = [(name.lower(), value) for name, value in headers]
    given = [value for name, value in received if name == "authorization"]
    if len(given) > 1:
        raise AmbiguousAuthorization
    bearer = _BEARER.fullmatch(given[0]) if given else None
    if bearer is None:
        raise InvalidToken("bearer")
    token = verify_user_token(bearer[1], keyset, now=now)
    if any(name == _TENANT_HEADER for name, _ in received):
        _log.warning("tenant_header_ignored: the token is of %s", token.tenant_id)
    return token
