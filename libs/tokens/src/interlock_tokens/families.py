"""The token families: one table that signing and verifying both read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from types import MappingProxyType
from typing import Literal

# How far the clocks of a signer and of a verifier may differ.
CLOCK_LEEWAY = timedelta(seconds=60)

Algorithm = Literal["HS256", "EdDSA"]


class Family(Enum):
    """A kind of token; the value is its `tokenUse` claim."""

    SLACK_USER = "slackUser"
    """As-user token of the agents platform."""

    SLACK_GRANT = "slackGrant"
    """Proof that Slack sent an event; signed by the gateway's edge."""

    RENEWED_GRANT = "renewedGrant"
    """The same for an event still open when its slackGrant ended; signed by identity."""

    ADMIN_GRANT = "adminGrant"
    """Leave for one purpose in one workspace; signed by identity."""

    INSTALL_GRANT = "installGrant"
    """Leave to complete one install for one tenant; signed by identity."""


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """What every token of a family must say.

    Attributes:
        algorithm: The one `alg` taken; also decides the kind of key.
        header_type: The exact `typ` of the header.
        issuer: The exact `iss`.
        audience: The exact `aud`, always a single string.
        max_life: The longest time from `iat` to `exp`; also the life of ours.
        required_claims: Claims without which a token is refused.
        allows_unknown_claims: Whether the issuer may say more than we know.
    """

    algorithm: Algorithm
    header_type: str
    issuer: str
    audience: str
    max_life: timedelta
    required_claims: frozenset[str]
    allows_unknown_claims: bool = False


_ALWAYS = frozenset({"iss", "aud", "iat", "exp", "tokenUse"})
_EVENT = _ALWAYS | {
    "jti", "workspace", "eventKey", "eventType", "bodySha256", "eventAt", "isStranger",
}  # fmt: skip

# A grant must outlive a queue that is behind, and no more: 15 min. An admin's click is
# acted upon at once: 5 min. The as-user token's 300 s are the platform's contract.
_GRANT_LIFE = timedelta(minutes=15)
_ADMIN_LIFE = timedelta(minutes=5)
_USER_LIFE = timedelta(seconds=300)

FAMILIES: Mapping[Family, FamilyRules] = MappingProxyType(
    {
        Family.SLACK_USER: FamilyRules(
            algorithm="HS256",
            header_type="JWT",
            issuer="inkeep-auth",
            audience="inkeep-api",
            max_life=_USER_LIFE,
            required_claims=_ALWAYS | {"sub", "act", "tenantId", "slack"},
            # The platform's own issuers set claims that we do not know.
            allows_unknown_claims=True,
        ),
        Family.SLACK_GRANT: FamilyRules(
            algorithm="EdDSA",
            header_type="slack-grant+jwt",
            issuer="interlock-edge",
            audience="interlock",
            max_life=_GRANT_LIFE,
            required_claims=_EVENT,
        ),
        Family.RENEWED_GRANT: FamilyRules(
            algorithm="EdDSA",
            header_type="renewed-grant+jwt",
            issuer="interlock-identity",
            audience="interlock",
            max_life=_GRANT_LIFE,
            required_claims=_EVENT,
        ),
        Family.ADMIN_GRANT: FamilyRules(
            algorithm="EdDSA",
            header_type="admin-grant+jwt",
            issuer="interlock-identity",
            audience="interlock",
            max_life=_ADMIN_LIFE,
            required_claims=_ALWAYS | {"jti", "workspace", "tenantId", "userId", "purpose"},
        ),
        Family.INSTALL_GRANT: FamilyRules(
            algorithm="EdDSA",
            header_type="install-grant+jwt",
            issuer="interlock-identity",
            audience="interlock",
            max_life=_GRANT_LIFE,
            required_claims=_ALWAYS | {"jti", "tenantId", "userId", "stateSha256", "source"},
        ),
    }
)
