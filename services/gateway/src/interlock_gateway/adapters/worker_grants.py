"""Grants read with the public keys of those who sign them."""

from datetime import timedelta

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_tokens.grants import AdminGrant, SlackGrant
from interlock_tokens.keysets import Keyset
from interlock_tokens.verifying import verify_admin_grant, verify_slack_grant

# A dead letter may be replayed after 7 days. What a grant still opens, its
# receivers decide; here it only says what the event was.
_READABLE_FOR = timedelta(days=8)


class KeysetGrants:
    """Verify grants with a public keyset."""

    def __init__(self, keyset: Keyset, clock: Clock) -> None:
        self._keyset = keyset
        self._clock = clock

    def open_event(self, grant: Secret[str]) -> SlackGrant:
        """Read an event's grant, also one that has expired.

        Raises:
            InvalidToken: Neither edge nor identity signed it.
        """
        return verify_slack_grant(
            grant.reveal(), self._keyset, now=self._clock.now(), allow_expired=_READABLE_FOR
        )

    def open_admin(self, grant: Secret[str]) -> AdminGrant:
        """Read an administrator's grant; its purpose is for the caller to judge.

        Raises:
            InvalidToken: Identity did not sign it, or it has expired.
        """
        return verify_admin_grant(grant.reveal(), self._keyset, now=self._clock.now())
