"""The platform stand-in's own check of slackUser tokens."""

import base64
import json
from typing import Any

import jwt
import pytest

from interlock_chassis.secret import Secret
from interlock_sandbox.config import UserTokenKey
from interlock_sandbox.platform.user_tokens import Caller, TokenRefused, verify_user_token
from interlock_sandbox.testing import USER_TOKEN_KEY, sign_user_token, user_token_claims

NOW = 1_800_000_000.0
KEYS = (USER_TOKEN_KEY,)
SLACK = {"teamId": "T0NORTHWIND", "userId": "U0MIA"}


def _check(token: str, keys: tuple[UserTokenKey, ...] = KEYS) -> Caller:
    return verify_user_token(token, keys, NOW)


def _signed(**changes: Any) -> str:
    return sign_user_token(user_token_claims(NOW, **changes))


def _with_header(header: dict[str, Any], claims: dict[str, Any] | None = None) -> str:
    secret = USER_TOKEN_KEY.secret.reveal()
    body = user_token_claims(NOW) if claims is None else claims
    return jwt.encode(body, secret, algorithm="HS256", headers=header)


def test_token_of_the_contract_names_its_caller() -> None:
    """The user, the tenant and the Slack ids come from the claims."""
    caller = _check(_signed(slack={**SLACK, "enterpriseId": "E0"}))
    assert caller == Caller("user_mia", "northwind", "T0NORTHWIND", "U0MIA", "E0", None)


def test_administrators_opening_of_a_project_is_understood() -> None:
    """Channel access travels in the token, with its source and project."""
    opened = {"authorized": True, "authSource": "channel", "authorizedProjectId": "finance"}
    assert _check(_signed(slack={**SLACK, **opened})).authorized_project == "finance"


def test_legacy_secret_verifies_tokens_without_a_key_id() -> None:
    """A token that names no key is checked with the legacy one, if there is one."""
    token = _with_header({})
    legacy = UserTokenKey("old", USER_TOKEN_KEY.secret, legacy=True)
    assert _check(token, (legacy,)).user_id == "user_mia"
    with pytest.raises(TokenRefused, match="no such key"):
        _check(token)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"iss": "somebody"}, id="issuer"),
        pytest.param({"aud": "interlock"}, id="audience"),
        pytest.param({"aud": ["inkeep-api"]}, id="audience as a list"),
        pytest.param({"tokenUse": "slackGrant"}, id="token use"),
        pytest.param({"act": {"sub": "somebody"}}, id="actor"),
        pytest.param({"act": None}, id="no actor"),
        pytest.param({"sub": ""}, id="empty subject"),
        pytest.param({"sub": None}, id="no subject"),
        pytest.param({"tenantId": None}, id="no tenant"),
        pytest.param({"tenantId": 7}, id="tenant is a number"),
        pytest.param({"exp": int(NOW)}, id="expired now"),
        pytest.param({"exp": int(NOW) + 301}, id="lives too long"),
        pytest.param({"exp": None}, id="lives forever"),
        pytest.param({"iat": int(NOW) - 301}, id="issued too long ago for its life"),
        pytest.param({"iat": int(NOW) + 60}, id="issued in the future"),
        pytest.param({"iat": NOW + 0.5}, id="fraction of a second"),
        pytest.param({"iat": True}, id="time is a boolean"),
        pytest.param({"jti": ""}, id="empty token id"),
        pytest.param({"scope": "admin"}, id="unknown claim"),
        pytest.param({"slack": {"teamId": "T0"}}, id="no Slack user"),
        pytest.param({"slack": {**SLACK, "enterpriseId": ""}}, id="empty enterprise"),
        pytest.param({"slack": {**SLACK, "x": "y"}}, id="unknown Slack claim"),
        pytest.param({"slack": {**SLACK, "authorized": True}}, id="authorized for nothing"),
        pytest.param({"slack": {**SLACK, "authorized": "yes"}}, id="authorized is a text"),
    ],
)
def test_claims_of_any_other_form_are_refused(changes: dict[str, Any]) -> None:
    """Nothing but the contract passes, however well it is signed."""
    with pytest.raises(TokenRefused):
        _check(_signed(**changes))


def test_another_secret_is_refused() -> None:
    """A token signed with another key proves nothing."""
    other = UserTokenKey(USER_TOKEN_KEY.kid, Secret(b"x" * 32), legacy=False)
    with pytest.raises(TokenRefused, match="wrong signature"):
        _check(sign_user_token(user_token_claims(NOW), other))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"kid": "user-2"}, id="unknown key"),
        pytest.param({"kid": "user-1", "typ": "interlock-grant+jwt"}, id="another type"),
        pytest.param({"kid": "user-1", "crit": ["x"], "x": 1}, id="unknown header field"),
    ],
)
def test_headers_of_another_form_are_refused(header: dict[str, Any]) -> None:
    """The header has to be the contract's as well."""
    with pytest.raises(TokenRefused):
        _check(_with_header(header))


def test_unsigned_tokens_are_refused() -> None:
    """The algorithm `none` is no algorithm."""
    header = json.dumps({"alg": "none", "kid": "user-1"}).encode()
    segments = [_encode(header), _signed().split(".")[1], ""]
    with pytest.raises(TokenRefused, match="HS256"):
        _check(".".join(segments))


@pytest.mark.parametrize(
    "token",
    ["", "a.b", "a.b.c.d", "é.é.é", "x" * 5000, "!.!.!"],
    ids=["empty", "two segments", "four segments", "not ASCII", "too long", "not base64url"],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    """Garbage is refused without an accident."""
    with pytest.raises(TokenRefused):
        _check(token)


def test_repeated_names_are_refused() -> None:
    """A claim that occurs twice could mean two things to two readers."""
    header = _with_header({"kid": "user-1"}).split(".")[0]
    claims = json.dumps(user_token_claims(NOW)).replace("{", '{"sub": "user_ada", ', 1)
    with pytest.raises(TokenRefused, match="occurs twice"):
        _check(f"{header}.{_encode(claims.encode())}.AAAA")


def test_padded_segments_are_refused() -> None:
    """Only the one canonical encoding of a signature is taken."""
    with pytest.raises(TokenRefused):
        _check(_signed() + "=")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
