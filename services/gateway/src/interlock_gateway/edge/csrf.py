"""Forms that only a page of ours can send, and only for whom it was made.

A token names no one; it is the MAC of the session, of what the form does, and of
when it was shown. Forms are also held to the Origin and Sec-Fetch-Site headers.
"""

import base64
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import timedelta

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError

# A page may stay open over a working day.
TOKEN_LIFE = timedelta(hours=12)
# The replica that showed the form may be a moment ahead.
_CLOCK_LEEWAY_S = 60

_TOKEN = re.compile(r"([0-9]{10})\.([A-Za-z0-9_-]{43})", re.ASCII)


class FormRefused(ServiceError):
    """The form was not sent from a page of ours, or the page is too old."""

    kind = Kind.FORBIDDEN
    reason = "FORM_REFUSED"


class CsrfTokens:
    """Issue and verify form tokens.

    Args:
        mac: HMAC-SHA256 under the CSRF key.
        clock: The time, for their life.
    """

    def __init__(self, mac: Callable[[bytes], bytes], clock: Clock) -> None:
        self._mac = mac
        self._clock = clock

    def issue(self, session_ref: str, action: str) -> str:
        """Make the token of a form that does `action` in a session."""
        return self._token(int(self._clock.now().timestamp()), session_ref, action)

    def verify(self, token: str, session_ref: str, action: str) -> None:
        """Let a form pass that was shown in this session, for this action.

        Raises:
            FormRefused: It was not, or more than 12 h ago.
        """
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise FormRefused
        shown_at, now = int(parts[1]), int(self._clock.now().timestamp())
        is_live = -_CLOCK_LEEWAY_S <= now - shown_at < TOKEN_LIFE.total_seconds()
        expected = self._token(shown_at, session_ref, action)
        if not hmac.compare_digest(expected, token) or not is_live:
            raise FormRefused

    def _token(self, shown_at: int, session_ref: str, action: str) -> str:
        parts = [
            b"interlock-form-v1",
            str(shown_at).encode(),
            session_ref.encode(),
            action.encode(),
        ]
        # Lengths in front, so that no two lists of parts have one encoding.
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        mac = base64.urlsafe_b64encode(self._mac(message)).rstrip(b"=").decode()
        return f"{shown_at}.{mac}"


def require_own_page(headers: Mapping[str, str], own_origin: str) -> None:
    """Refuse a form that the browser says was sent from elsewhere.

    Our pages send no referrer, and then browsers also hide the origin of a form
    (`Origin: null`); only Sec-Fetch-Site can vouch for such a one.

    Args:
        headers: The request's headers, names in any case.
        own_origin: `https://host`, as browsers write it.

    Raises:
        FormRefused: Another site sent it, or nothing says that we did.
    """
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None and site != "same-origin":
        raise FormRefused
    if origin == own_origin or (origin == "null" and site == "same-origin"):
        return
    raise FormRefused


def require_no_other_page(headers: Mapping[str, str], own_origin: str) -> None:
    """Refuse a program's request that a browser sent for a page of another site.

    For requests that no form can make (PUT, DELETE, a JSON body): browsers ask before
    they send one across origins, and are told no. Programs send neither header.

    Raises:
        FormRefused: Another site sent it.
    """
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None and site != "same-origin":
        raise FormRefused
    if origin is not None and origin != own_origin and not (origin == "null" and site):
        raise FormRefused
