"""What tokens say: the as-user contract to the letter, and every claim there and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from interlock_chassis.errors import Kind
from interlock_chassis.secret import Secret
from interlock_tokens.errors import InvalidToken, MalformedClaims, PurposeNotGranted
from interlock_tokens.families import Family
from interlock_tokens.grants import (
    AdminGrant,
    AdminPurpose,
    AuthorizationSource,
    ChannelAuthorization,
    InstallGrant,
    SlackGrant,
    SlackUserToken,
    Workspace,
)
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import (
    renew_slack_grant,
    sign_admin_grant,
    sign_install_grant,
    sign_slack_grant,
    sign_user_token,
)
from interlock_tokens.verifying import require_purpose, verify_slack_grant, verify_user_token
from interlock_tokens.wire import encode_segment, parse_object, take_apart

if TYPE_CHECKING:
    from libs.tokens.tests.unit.conftest import Ring

PLATFORM_SECRET = "an-example-of-the-platform-secret-of-40-chars"
NOW = datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC)
ISSUED = 1767225600


def platform_keyset() -> Keyset:
    """Return the keyset of a platform that has one old secret."""
    key = encode_segment(PLATFORM_SECRET.encode())
    return Keyset.from_json(
        Secret(
            '{"keys": [{"kid": "platform", "kty": "oct", "legacy": true,'
            f' "families": ["slackUser"], "k": "{key}"}}]}}'
        ),
        variable="INTERLOCK_USER_TOKEN_KEYS_FILE",
    )


def contract_claims() -> dict[str, Any]:
    """Return the claims of the as-user contract, as another issuer writes them."""
    return {
        "iss": "inkeep-auth",
        "aud": "inkeep-api",
        "sub": "user_1",
        "iat": ISSUED,
        "exp": ISSUED + 300,
        "tokenUse": "slackUser",
        "act": {"sub": "inkeep-work-app-slack"},
        "tenantId": "acme",
        "slack": {"teamId": "T0ACME", "userId": "U0MAYA"},
    }


def test_the_as_user_token_is_the_contract_to_the_letter() -> None:
    """Claims, header and order of an ordinary as-user token never change by accident."""
    token = sign_user_token(
        platform_keyset(),
        now=NOW,
        jti="j-1",
        user_id="user_1",
        tenant_id="acme",
        slack_team_id="T0ACME",
        slack_user_id="U0MAYA",
        slack_enterprise_id="E0ACME",
    ).reveal()
    parts = take_apart(token)
    assert parts.header == {"alg": "HS256", "typ": "JWT", "kid": "platform"}
    assert parts.payload == (
        b'{"iss":"inkeep-auth","aud":"inkeep-api","iat":1767225600,"exp":1767225900,"jti":"j-1",'
        b'"tokenUse":"slackUser","sub":"user_1","act":{"sub":"inkeep-work-app-slack"},'
        b'"tenantId":"acme","slack":{"teamId":"T0ACME","userId":"U0MAYA","enterpriseId":"E0ACME"}}'
    )


def test_an_absent_enterprise_is_left_out() -> None:
    """The contract has no null and no empty enterpriseId."""
    token = sign_user_token(
        platform_keyset(),
        now=NOW,
        jti="j-1",
        user_id="user_1",
        tenant_id="acme",
        slack_team_id="T0ACME",
        slack_user_id="U0MAYA",
    ).reveal()
    assert parse_object(take_apart(token).payload) == contract_claims() | {"jti": "j-1"}


def test_another_library_verifies_the_as_user_token() -> None:
    """A platform that knows only the secret reads the token with any JWT library."""
    token = sign_user_token(
        platform_keyset(),
        now=datetime.now(UTC),
        jti="j-1",
        user_id="user_1",
        tenant_id="acme",
        slack_team_id="T0ACME",
        slack_user_id="U0MAYA",
    ).reveal()
    claims = jwt.decode(
        token, PLATFORM_SECRET, algorithms=["HS256"], audience="inkeep-api", issuer="inkeep-auth"
    )
    assert claims["sub"] == "user_1"


@pytest.mark.parametrize("header", [{}, {"kid": "platform"}])
def test_a_token_of_another_issuer_gives_the_contract_context(header: dict[str, str]) -> None:
    """The platform's own token, without `jti` and with or without `kid`, verifies."""
    token = jwt.encode(contract_claims(), PLATFORM_SECRET, algorithm="HS256", headers=header)
    assert verify_user_token(token, platform_keyset(), now=NOW) == SlackUserToken(
        jti="",
        issued_at=datetime(2026, 1, 1, tzinfo=UTC),
        expires_at=datetime(2026, 1, 1, 0, 5, tzinfo=UTC),
        user_id="user_1",
        tenant_id="acme",
        slack_team_id="T0ACME",
        slack_user_id="U0MAYA",
        slack_enterprise_id="",
        authorization=None,
    )


@pytest.mark.parametrize(
    "authorization",
    [
        ChannelAuthorization("project_1", AuthorizationSource.CHANNEL, "C0GENERAL"),
        ChannelAuthorization("project_1", AuthorizationSource.WORKSPACE),
    ],
)
def test_an_authorization_arrives_as_it_was_given(authorization: ChannelAuthorization) -> None:
    """What an administrator gave to channel members is in the token, and nothing else."""
    token = sign_user_token(
        platform_keyset(),
        now=NOW,
        jti="j-1",
        user_id="user_1",
        tenant_id="acme",
        slack_team_id="T0ACME",
        slack_user_id="U0MAYA",
        authorization=authorization,
    ).reveal()
    assert verify_user_token(token, platform_keyset(), now=NOW).authorization == authorization


@pytest.mark.parametrize(
    "slack",
    [
        {"authorized": True},
        {"authorized": True, "authorizedProjectId": "p"},
        {"authorized": True, "authSource": "channel"},
        {"authorized": True, "authSource": "everywhere", "authorizedProjectId": "p"},
        {"authorized": "true", "authSource": "channel", "authorizedProjectId": "p"},
        {"authorized": 1, "authSource": "channel", "authorizedProjectId": "p"},
        {"authorized": True, "authSource": "channel", "authorizedProjectId": ""},
        {"authorized": True, "authSource": "channel", "authorizedProjectId": ["p"]},
        {"enterpriseId": ""},
        {"enterpriseId": None},
    ],
)
def test_half_an_authorization_is_refused(slack: dict[str, Any]) -> None:
    """`authorized` needs a project and a source; null and blank are no absence."""
    claims = contract_claims()
    claims["slack"] |= slack
    token = jwt.encode(claims, PLATFORM_SECRET, algorithm="HS256")
    with pytest.raises(InvalidToken):
        verify_user_token(token, platform_keyset(), now=NOW)


@pytest.mark.parametrize("authorized", [{}, {"authorized": False}])
def test_an_authorization_that_is_not_given_opens_nothing(authorized: dict[str, Any]) -> None:
    """A project and a source without `authorized` authorize nothing."""
    claims = contract_claims()
    claims["slack"] |= {"authorizedProjectId": "p", "authSource": "channel", **authorized}
    token = jwt.encode(claims, PLATFORM_SECRET, algorithm="HS256")
    assert verify_user_token(token, platform_keyset(), now=NOW).authorization is None


def test_a_slack_grant_says_what_was_signed(ring: Ring) -> None:
    """Every field of an event's grant comes back, instants in whole seconds."""
    assert ring.verify(Family.SLACK_GRANT, ring.sign(Family.SLACK_GRANT)) == SlackGrant(
        jti="j-event",
        issued_at=ring.now,
        expires_at=ring.now + timedelta(minutes=15),
        workspace=Workspace("E0ACME", "T0ACME", is_enterprise_install=False, app_id="A0LOCK"),
        slack_user_id="U0MAYA",
        slack_user_team_id="T0ACME",
        event_key="Ev0001",
        event_type="app_mention",
        body_sha256="ab" * 32,
        event_at=ring.now - timedelta(seconds=2),
        renewed=False,
        is_stranger=False,
    )


def test_an_event_of_nobody_has_no_user(ring: Ring) -> None:
    """An org-wide uninstall names an Enterprise, no team and no user; all of it comes back."""
    workspace = Workspace("E0ACME", "", is_enterprise_install=True, app_id="A0LOCK")
    token = sign_slack_grant(
        ring.keyset,
        now=ring.now,
        jti="j",
        workspace=workspace,
        slack_user_id="",
        slack_user_team_id="",
        event_key="Ev1",
        event_type="app_uninstalled",
        body_sha256="00" * 32,
        event_at=ring.now,
        is_stranger=True,
    ).reveal()
    grant = ring.verify(Family.SLACK_GRANT, token)
    assert isinstance(grant, SlackGrant)
    assert (grant.workspace, grant.slack_user_id, grant.slack_user_team_id) == (workspace, "", "")
    assert grant.is_stranger


def test_an_admin_grant_says_what_was_signed(ring: Ring) -> None:
    """Every field of an administrator's grant comes back."""
    assert ring.verify(Family.ADMIN_GRANT, ring.sign(Family.ADMIN_GRANT)) == AdminGrant(
        jti="j-admin",
        issued_at=ring.now,
        expires_at=ring.now + timedelta(minutes=5),
        workspace=Workspace("E0ACME", "T0ACME", is_enterprise_install=False, app_id="A0LOCK"),
        tenant_id="acme",
        user_id="user_1",
        purpose=AdminPurpose.HEALTH,
        slack_user_id="",
    )


def test_an_install_grant_says_what_was_signed(ring: Ring) -> None:
    """Every field of an install's grant comes back."""
    assert ring.verify(Family.INSTALL_GRANT, ring.sign(Family.INSTALL_GRANT)) == InstallGrant(
        jti="j-install",
        issued_at=ring.now,
        expires_at=ring.now + timedelta(minutes=15),
        tenant_id="acme",
        user_id="user_1",
        state_sha256="cd" * 32,
        source="direct",
    )


def test_a_renewal_adds_nothing(ring: Ring) -> None:
    """A renewed grant differs in its id, its time and the fact of its renewal alone."""
    first = ring.verify(Family.SLACK_GRANT, ring.sign(Family.SLACK_GRANT))
    assert isinstance(first, SlackGrant)
    later = ring.now + timedelta(hours=3)
    token = renew_slack_grant(ring.keyset, now=later, jti="j-2", grant=first).reveal()
    assert verify_slack_grant(token, ring.keyset, now=later) == replace(
        first,
        jti="j-2",
        issued_at=later,
        expires_at=later + timedelta(minutes=15),
        renewed=True,
    )


def test_a_grant_past_its_end_passes_only_for_its_renewal(ring: Ring) -> None:
    """An expired grant verifies up to the time allowed after its end, and not a second longer."""
    token, end = ring.sign(Family.SLACK_GRANT), ring.now + timedelta(minutes=15)
    day, second = timedelta(hours=24), timedelta(seconds=1)
    with pytest.raises(InvalidToken):
        verify_slack_grant(token, ring.keyset, now=end)
    verify_slack_grant(token, ring.keyset, now=end + day - second, allow_expired=day)
    with pytest.raises(InvalidToken):
        verify_slack_grant(token, ring.keyset, now=end + day, allow_expired=day)


@pytest.mark.parametrize(
    "workspace",
    [
        Workspace("", "", is_enterprise_install=False, app_id="A0LOCK"),
        Workspace("E0ACME", "", is_enterprise_install=False, app_id="A0LOCK"),
        Workspace("", "T0ACME", is_enterprise_install=True, app_id="A0LOCK"),
        Workspace("E0ACME", "T0ACME", is_enterprise_install=True, app_id="A0LOCK"),
        Workspace("", "T0ACME", is_enterprise_install=False, app_id=""),
        Workspace("", "t0acme", is_enterprise_install=False, app_id="A0LOCK"),
        Workspace("", "T0ACME\n", is_enterprise_install=False, app_id="A0LOCK"),
        Workspace("T0ACME", "T0ACME", is_enterprise_install=False, app_id="A0LOCK"),
    ],
)
def test_a_grant_names_exactly_one_installation(ring: Ring, workspace: Workspace) -> None:
    """An org-wide install is its Enterprise, any other its team; nothing else is signed."""
    with pytest.raises(MalformedClaims):
        sign_admin_grant(
            ring.keyset,
            now=ring.now,
            jti="j",
            workspace=workspace,
            tenant_id="acme",
            user_id="user_1",
            purpose=AdminPurpose.HEALTH,
        )


def test_only_a_resumed_question_acts_as_a_slack_user(ring: Ring) -> None:
    """`resume` names a Slack user and no other purpose does, when signed and when forged."""
    claims = ring.claims(Family.ADMIN_GRANT)
    for purpose in AdminPurpose:
        for user in ("", "U0MAYA"):
            fits = (purpose is AdminPurpose.RESUME) == bool(user)
            forged = {"purpose": purpose.value} | ({"slackUserId": user} if user else {})
            token = ring.forge(Family.ADMIN_GRANT, claims=claims | forged)
            if fits:
                grant = ring.verify(Family.ADMIN_GRANT, token)
                assert isinstance(grant, AdminGrant)
                assert (grant.purpose, grant.slack_user_id) == (purpose, user)
                continue
            with pytest.raises(InvalidToken):
                ring.verify(Family.ADMIN_GRANT, token)
            with pytest.raises(MalformedClaims):
                sign_admin_grant(
                    ring.keyset,
                    now=ring.now,
                    jti="j",
                    workspace=Workspace("", "T0ACME", is_enterprise_install=False, app_id="A0LOCK"),
                    tenant_id="acme",
                    user_id="user_1",
                    purpose=purpose,
                    slack_user_id=user,
                )


def test_a_purpose_opens_nothing_else(ring: Ring) -> None:
    """A grant passes for its own purpose and is forbidden, not unauthenticated, for others."""
    grant = ring.verify(Family.ADMIN_GRANT, ring.sign(Family.ADMIN_GRANT))
    assert isinstance(grant, AdminGrant)
    require_purpose(grant, AdminPurpose.HEALTH)
    require_purpose(grant, AdminPurpose.AUDIT, AdminPurpose.HEALTH)
    others = [purpose for purpose in AdminPurpose if purpose is not AdminPurpose.HEALTH]
    with pytest.raises(PurposeNotGranted) as refusal:
        require_purpose(grant, *others)
    assert (refusal.value.kind, refusal.value.reason) == (Kind.FORBIDDEN, "PURPOSE_NOT_GRANTED")
    with pytest.raises(PurposeNotGranted):
        require_purpose(grant)


def test_an_event_from_the_future_makes_no_grant(ring: Ring) -> None:
    """An event far ahead of its grant could be renewed for ever; it is refused."""
    at = int(ring.now.timestamp())
    ring.verify(Family.SLACK_GRANT, ring.forge(Family.SLACK_GRANT, claims={"eventAt": at + 300}))
    with pytest.raises(InvalidToken):
        ring.verify(
            Family.SLACK_GRANT, ring.forge(Family.SLACK_GRANT, claims={"eventAt": at + 301})
        )


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "ab" * 33, "zz" * 32])
def test_nothing_is_signed_that_would_be_refused(ring: Ring, digest: str) -> None:
    """Signing reads its claims as a verifier does, and refuses before the key is used."""
    with pytest.raises(MalformedClaims) as refusal:
        sign_install_grant(
            ring.keyset,
            now=ring.now,
            jti="j",
            tenant_id="acme",
            user_id="user_1",
            state_sha256=digest,
            source="nango",
        )
    assert refusal.value.kind is Kind.INVALID


def test_every_token_of_ours_has_an_id(ring: Ring) -> None:
    """Without a `jti` the audit could not name the token, so none is signed."""
    with pytest.raises(MalformedClaims):
        sign_user_token(
            ring.keyset,
            now=ring.now,
            jti="",
            user_id="user_1",
            tenant_id="acme",
            slack_team_id="T0ACME",
            slack_user_id="U0MAYA",
        )
