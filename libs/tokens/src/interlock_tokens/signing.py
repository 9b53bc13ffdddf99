"""Sign tokens. The life of each family is fixed by its table.

Every function raises `MalformedClaims` for claims that no verifier would take,
and `NoSigningKey` when no key of the keyset signs the family at this time.
Instants are written in whole seconds, rounded down.
"""

from datetime import datetime
from typing import Any

from interlock_chassis.secret import Secret
from interlock_tokens.claims import ACTOR, read_claims
from interlock_tokens.errors import MalformedClaims
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.grants import (
    AdminPurpose,
    ChannelAuthorization,
    InstallSource,
    SlackGrant,
    Workspace,
)
from interlock_tokens.keysets import Keyset
from interlock_tokens.wire import MAX_TOKEN_CHARS, Malformed, encode_segment, put_together


def sign_slack_grant(
    keyset: Keyset,
    *,
    now: datetime,
    jti: str,
    workspace: Workspace,
    slack_user_id: str,
    slack_user_team_id: str,
    event_key: str,
    event_type: str,
    body_sha256: str,
    event_at: datetime,
    is_stranger: bool,
) -> Secret[str]:
    """Sign the proof that Slack sent an event; see `SlackGrant` for the claims.

    Raises:
        MalformedClaims, NoSigningKey: As the module says.
    """
    claims = {
        "workspace": _workspace(workspace),
        "slackUserId": slack_user_id,
        "slackUserTeamId": slack_user_team_id,
        "eventKey": event_key,
        "eventType": event_type,
        "bodySha256": body_sha256,
        "eventAt": _second(event_at),
        "isStranger": is_stranger,
    }
    return _sign(keyset, Family.SLACK_GRANT, now, jti, claims)


def renew_slack_grant(keyset: Keyset, *, now: datetime, jti: str, grant: SlackGrant) -> Secret[str]:
    """Sign a renewedGrant that says what `grant` says, and nothing more.

    Whether the event may still be renewed is the caller's to decide.

    Raises:
        MalformedClaims, NoSigningKey: As the module says.
    """
    claims = {
        "workspace": _workspace(grant.workspace),
        "slackUserId": grant.slack_user_id,
        "slackUserTeamId": grant.slack_user_team_id,
        "eventKey": grant.event_key,
        "eventType": grant.event_type,
        "bodySha256": grant.body_sha256,
        "eventAt": _second(grant.event_at),
        "isStranger": grant.is_stranger,
    }
    return _sign(keyset, Family.RENEWED_GRANT, now, jti, claims)


def sign_admin_grant(
    keyset: Keyset,
    *,
    now: datetime,
    jti: str,
    workspace: Workspace,
    tenant_id: str,
    user_id: str,
    purpose: AdminPurpose,
    slack_user_id: str = "",
) -> Secret[str]:
    """Sign leave for one purpose in one workspace; see `AdminGrant` for the claims.

    The purpose `resume` needs a `slack_user_id`; no other purpose takes one.

    Raises:
        MalformedClaims, NoSigningKey: As the module says.
    """
    claims = {
        "workspace": _workspace(workspace),
        "tenantId": tenant_id,
        "userId": user_id,
        "purpose": purpose.value,
        "slackUserId": slack_user_id,
    }
    return _sign(keyset, Family.ADMIN_GRANT, now, jti, claims)


def sign_install_grant(
    keyset: Keyset,
    *,
    now: datetime,
    jti: str,
    tenant_id: str,
    user_id: str,
    state_sha256: str,
    source: InstallSource,
) -> Secret[str]:
    """Sign leave to complete one install for one tenant; see `InstallGrant` for the claims.

    Raises:
        MalformedClaims, NoSigningKey: As the module says.
    """
    claims = {
        "tenantId": tenant_id,
        "userId": user_id,
        "stateSha256": state_sha256,
        "source": source,
    }
    return _sign(keyset, Family.INSTALL_GRANT, now, jti, claims)


def sign_user_token(
    keyset: Keyset,
    *,
    now: datetime,
    jti: str,
    user_id: str,
    tenant_id: str,
    slack_team_id: str,
    slack_user_id: str,
    slack_enterprise_id: str = "",
    authorization: ChannelAuthorization | None = None,
) -> Secret[str]:
    """Sign an as-user token of the agents platform; see `SlackUserToken` for the claims.

    Raises:
        MalformedClaims, NoSigningKey: As the module says.
    """
    slack: dict[str, Any] = {"teamId": slack_team_id, "userId": slack_user_id}
    if slack_enterprise_id:
        slack["enterpriseId"] = slack_enterprise_id
    if authorization is not None:
        slack["authorized"] = True
        slack["authSource"] = authorization.source.value
        slack["authorizedProjectId"] = authorization.project_id
        if authorization.channel_id:
            slack["channelId"] = authorization.channel_id
    claims = {"sub": user_id, "act": {"sub": ACTOR}, "tenantId": tenant_id, "slack": slack}
    return _sign(keyset, Family.SLACK_USER, now, jti, claims)


def _sign(
    keyset: Keyset, family: Family, now: datetime, jti: str, claims: dict[str, Any]
) -> Secret[str]:
    rules = FAMILIES[family]
    issued = _second(now)
    # Our own values "" stand for absent, and absent claims are left out.
    payload = {
        "iss": rules.issuer,
        "aud": rules.audience,
        "iat": issued,
        "exp": issued + int(rules.max_life.total_seconds()),
        "jti": jti,
        "tokenUse": family.value,
        **claims,
    }
    payload = {name: value for name, value in payload.items() if value != ""}
    try:
        read_claims(family, payload, now=now)
    except Malformed as problem:
        raise MalformedClaims(f"the claims of a {family.value} are refused: {problem}") from None
    key = keyset.get_signing(family, now)
    header = {"alg": rules.algorithm, "typ": rules.header_type, "kid": key.kid}
    signed = put_together(header, payload)
    token = f"{signed}.{encode_segment(key.material.sign(signed.encode()))}"
    # Other issuers may leave out the `jti` of a slackUser; ours is in the audit.
    if not jti or len(token) > MAX_TOKEN_CHARS:
        raise MalformedClaims(f"the claims of a {family.value} are refused: jti or size")
    return Secret(token)


def _workspace(workspace: Workspace) -> dict[str, Any]:
    members = {
        "enterpriseId": workspace.enterprise_id,
        "teamId": workspace.team_id,
        "isEnterpriseInstall": workspace.is_enterprise_install,
        "appId": workspace.app_id,
    }
    return {name: value for name, value in members.items() if value != ""}


def _second(instant: datetime) -> int:
    return int(instant.timestamp())
