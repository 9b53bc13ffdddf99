"""One ring of keys that could sign every family, and a forger's tools."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from interlock_chassis.secret import Secret
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, SlackGrant, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import (
    renew_slack_grant,
    sign_admin_grant,
    sign_install_grant,
    sign_slack_grant,
    sign_user_token,
)
from interlock_tokens.verifying import (
    verify_admin_grant,
    verify_event_or_admin,
    verify_install_grant,
    verify_slack_grant,
    verify_user_token,
)
from interlock_tokens.wire import encode_segment, parse_object, take_apart

GRANTS = tuple(family for family in Family if family is not Family.SLACK_USER)
WORKSPACE = Workspace("E0ACME", "T0ACME", is_enterprise_install=False, app_id="A0LOCK")


class Ring:
    """Keys that could sign every family, one instant, and a forger's tools."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.rows = [
            generate_ed25519_key("ed", GRANTS),
            generate_hs256_key("hs", [Family.SLACK_USER]) | {"legacy": True},
        ]
        self.keyset = Keyset.from_json(
            Secret(json.dumps({"keys": self.rows})), variable="INTERLOCK_KEYS_FILE"
        )

    def sign(self, family: Family) -> str:
        """Sign a token of the family with ordinary claims."""
        signers: dict[Family, Callable[[], Secret[str]]] = {
            Family.SLACK_USER: self._user_token,
            Family.SLACK_GRANT: self._slack_grant,
            Family.RENEWED_GRANT: self._renewed_grant,
            Family.ADMIN_GRANT: self._admin_grant,
            Family.INSTALL_GRANT: self._install_grant,
        }
        return signers[family]().reveal()

    def verify(self, family: Family, token: str, *, after: timedelta = timedelta(0)) -> object:
        """Verify a token where tokens of the family are taken."""
        now = self.now + after
        match family:
            case Family.SLACK_USER:
                return verify_user_token(token, self.keyset, now=now)
            case Family.SLACK_GRANT | Family.RENEWED_GRANT:
                return verify_slack_grant(token, self.keyset, now=now)
            case Family.ADMIN_GRANT:
                return verify_admin_grant(token, self.keyset, now=now)
            case Family.INSTALL_GRANT:
                return verify_install_grant(token, self.keyset, now=now)

    def verify_either(self, token: str) -> object:
        """Verify a token where events and administrators are both welcome."""
        return verify_event_or_admin(token, self.keyset, self.now)

    def claims(self, family: Family) -> dict[str, Any]:
        """Return ordinary claims of the family."""
        return parse_object(take_apart(self.sign(family)).payload)

    def header(self, family: Family) -> dict[str, Any]:
        """Return the family's ordinary header."""
        return dict(take_apart(self.sign(family)).header)

    def forge(
        self,
        family: Family,
        *,
        header: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        drop: str = "",
    ) -> str:
        """Sign, with the right key, a token with some of its members changed or dropped."""
        head = self.header(family) | dict(header or {})
        body = self.claims(family) | dict(claims or {})
        head.pop(drop, None)
        body.pop(drop, None)
        return self.seal(family, json.dumps(head).encode(), json.dumps(body).encode())

    def seal(self, family: Family, header: bytes, payload: bytes) -> str:
        """Sign any bytes with the family's right key."""
        key = self.keyset.get_signing(family, self.now)
        signed = f"{encode_segment(header)}.{encode_segment(payload)}"
        return f"{signed}.{encode_segment(key.material.sign(signed.encode()))}"

    def _user_token(self) -> Secret[str]:
        return sign_user_token(
            self.keyset,
            now=self.now,
            jti="j-user",
            user_id="user_1",
            tenant_id="acme",
            slack_team_id="T0ACME",
            slack_user_id="U0MAYA",
        )

    def _slack_grant(self) -> Secret[str]:
        return sign_slack_grant(
            self.keyset,
            now=self.now,
            jti="j-event",
            workspace=WORKSPACE,
            slack_user_id="U0MAYA",
            slack_user_team_id="T0ACME",
            event_key="Ev0001",
            event_type="app_mention",
            body_sha256="ab" * 32,
            event_at=self.now - timedelta(seconds=2),
            is_stranger=False,
        )

    def _renewed_grant(self) -> Secret[str]:
        grant = self.verify(Family.SLACK_GRANT, self._slack_grant().reveal())
        assert isinstance(grant, SlackGrant)
        return renew_slack_grant(self.keyset, now=self.now, jti="j-renewed", grant=grant)

    def _admin_grant(self) -> Secret[str]:
        return sign_admin_grant(
            self.keyset,
            now=self.now,
            jti="j-admin",
            workspace=WORKSPACE,
            tenant_id="acme",
            user_id="user_1",
            purpose=AdminPurpose.HEALTH,
        )

    def _install_grant(self) -> Secret[str]:
        return sign_install_grant(
            self.keyset,
            now=self.now,
            jti="j-install",
            tenant_id="acme",
            user_id="user_1",
            state_sha256="cd" * 32,
            source="direct",
        )


@pytest.fixture(scope="session")
def ring() -> Ring:
    """Give every test the same ring; it never changes."""
    return Ring()
