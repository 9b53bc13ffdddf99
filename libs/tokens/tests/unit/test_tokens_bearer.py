"""The as-user token of an HTTP request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from interlock_tokens.bearer import AmbiguousAuthorization, verify_request
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import Family

if TYPE_CHECKING:
    from libs.tokens.tests.unit.conftest import Ring


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_a_token_is_found_whatever_the_case(ring: Ring, scheme: str, name: str) -> None:
    """Neither the header's name nor the scheme's case counts."""
    token = ring.sign(Family.SLACK_USER)
    headers = [("Host", "api"), (name, f"{scheme} {token}")]
    assert verify_request(headers, ring.keyset, now=ring.now).user_id == "user_1"


@pytest.mark.parametrize("value", ["{}", "Bearer  {}", "Bearer {} ", " Bearer {}", "Basic {}", ""])
def test_anything_but_one_bearer_and_one_space_is_no_token(ring: Ring, value: str) -> None:
    """Nothing is trimmed or guessed."""
    header = value.format(ring.sign(Family.SLACK_USER))
    with pytest.raises(InvalidToken):
        verify_request([("Authorization", header)], ring.keyset, now=ring.now)
    with pytest.raises(InvalidToken):
        verify_request([], ring.keyset, now=ring.now)


def test_two_authorizations_are_neither(ring: Ring) -> None:
    """The same header twice is refused, even with the same content."""
    header = ("Authorization", f"Bearer {ring.sign(Family.SLACK_USER)}")
    for second in (header, ("authorization", "")):
        with pytest.raises(AmbiguousAuthorization):
            verify_request([header, second], ring.keyset, now=ring.now)


def test_the_token_names_the_tenant(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    """A header that names another one is ignored, and said to have been there."""
    headers = [
        ("Authorization", f"Bearer {ring.sign(Family.SLACK_USER)}"),
        ("X-Inkeep-Tenant-Id", "contoso"),
    ]
    assert verify_request(headers, ring.keyset, now=ring.now).tenant_id == "acme"
    (line,) = caplog.messages
    assert line == "tenant_header_ignored: the token is of acme"
