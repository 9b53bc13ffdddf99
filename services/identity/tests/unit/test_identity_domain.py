"""Roles, addresses, codes, defaults, and what a grant says of its bearer."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from interlock_identity.domain.agents import (
    Agent,
    AgentDefault,
    AgentSource,
    find_default,
    resolve_agent,
)
from interlock_identity.domain.linking import (
    LINK_CODE_BYTES,
    SlackUser,
    emails_differ,
    hash_link_code,
    mint_link_code,
)
from interlock_identity.domain.people import Account, Role, strongest_role
from interlock_identity.domain.requester import (
    SlackStranger,
    key_of,
    requester_of,
    workspace_of,
)
from interlock_identity.domain.workspaces import MalformedWorkspaceKey, WorkspaceKey
from interlock_tokens.errors import PurposeNotGranted
from interlock_tokens.grants import AdminGrant, AdminPurpose, SlackGrant, Workspace

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
TEAM = Workspace("", "T0TEAM", is_enterprise_install=False, app_id="A0APP")
GRID_TEAM = Workspace("E0GRID", "T0GRID", is_enterprise_install=False, app_id="A0APP")
ORG = Workspace("E0GRID", "", is_enterprise_install=True, app_id="A0APP")
EVENT = SlackGrant(
    jti="jti",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=15),
    workspace=TEAM,
    slack_user_id="U0MIA",
    slack_user_team_id="T0TEAM",
    event_key="Ev1",
    event_type="app_mention",
    body_sha256="0" * 64,
    event_at=NOW,
    renewed=False,
    is_stranger=False,
)
RESUME = AdminGrant(
    jti="jti",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=5),
    workspace=TEAM,
    tenant_id="northwind",
    user_id="user_mia",
    purpose=AdminPurpose.RESUME,
    slack_user_id="U0MIA",
)


@pytest.mark.parametrize(
    ("roles", "strongest"),
    [
        ("owner", Role.OWNER),
        ("member,admin", Role.ADMIN),
        (" member , owner ", Role.OWNER),
        ("billing,member", Role.MEMBER),
        ("billing", Role.NONE),
        ("Owner", Role.NONE),
        ("owner;admin", Role.NONE),
        ("", Role.NONE),
    ],
)
def test_the_strongest_known_role_counts(roles: str, strongest: Role) -> None:
    """A list gives its best role, and a word that we do not know gives nothing."""
    assert strongest_role(roles) is strongest


@pytest.mark.parametrize(
    ("slack", "account", "differ"),
    [
        ("mia@northwind.example", "mia@northwind.example", False),
        ("Mia@Northwind.example ", "mia@northwind.example", False),
        ("mia@northwind.example", "eve@northwind.example", True),
        ("mia@northwind.example", "", True),
        ("", "mia@northwind.example", False),
    ],
)
def test_addresses_differ_only_where_both_sides_are_known(
    slack: str, account: str, differ: bool
) -> None:
    """Slack may not tell an address; an account without one matches nobody's."""
    assert emails_differ(slack, account) is differ


def test_a_link_code_carries_all_its_entropy_and_is_kept_as_a_hash() -> None:
    """Different bytes make different codes of 256 bits; the hash is SHA-256 in hex."""
    code, code_hash = mint_link_code(bytes(range(32)))
    other, other_hash = mint_link_code(bytes(range(1, 33)))
    assert code != other
    assert code_hash != other_hash
    assert len(code.reveal()) == 43
    assert hash_link_code(code.reveal()) == code_hash
    assert hash_link_code("abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_link_code_is_not_made_from_less_entropy() -> None:
    """A source that gives too few bytes makes no code."""
    with pytest.raises(ValueError, match="random bytes"):
        mint_link_code(bytes(LINK_CODE_BYTES - 1))


def test_a_default_of_the_channel_comes_before_the_others() -> None:
    """Channel, then workspace, then operator, then nobody."""
    channel = AgentDefault("C0HELP", Agent("support", "triage"), grants_access=False)
    workspace = AgentDefault("", Agent("docs", "helper"), grants_access=False)
    operator = Agent("home", "any")
    both = [workspace, channel]
    assert resolve_agent(find_default(both, "C0HELP"), operator).source is AgentSource.CHANNEL
    assert resolve_agent(find_default(both, "C0ELSE"), operator).agent == workspace.agent
    assert resolve_agent(find_default(both, ""), operator).source is AgentSource.WORKSPACE
    assert resolve_agent(find_default([channel], "C0ELSE"), operator).agent == operator
    nobody = resolve_agent(find_default([channel], "C0ELSE"), None)
    assert (nobody.agent, nobody.source) == (None, AgentSource.NOWHERE)


def test_an_install_has_a_team_or_an_enterprise() -> None:
    """A key that names nothing would match anything, so there is none."""
    with pytest.raises(MalformedWorkspaceKey):
        WorkspaceKey("", "", "A0APP")


def test_an_org_wide_grant_names_the_enterprise_alone() -> None:
    """The team that an org-wide install's event came from is not part of its key."""
    seen_in_team = replace(ORG, team_id="T0GRID")
    assert key_of(seen_in_team) == key_of(ORG) == WorkspaceKey("E0GRID", "", "A0APP")
    assert workspace_of(key_of(seen_in_team)) == ORG
    assert workspace_of(key_of(GRID_TEAM)) == GRID_TEAM


def test_an_event_names_its_slack_user() -> None:
    """The user's own team stands; without one the installation's does."""
    assert requester_of(EVENT).slack_user == SlackUser("T0TEAM", "", "U0MIA")
    untold = requester_of(replace(EVENT, slack_user_team_id=""))
    assert untold.slack_user == SlackUser("T0TEAM", "", "U0MIA")
    in_grid = requester_of(replace(EVENT, workspace=ORG, slack_user_team_id=""))
    assert in_grid.slack_user == SlackUser("E0GRID", "E0GRID", "U0MIA")
    assert in_grid.resumed_for is None


@pytest.mark.parametrize(
    "grant",
    [
        replace(EVENT, slack_user_id=""),
        replace(EVENT, event_type="app_uninstalled"),
        replace(EVENT, event_type="tokens_revoked"),
        *(
            replace(RESUME, purpose=purpose)
            for purpose in AdminPurpose
            if purpose is not AdminPurpose.RESUME
        ),
    ],
)
def test_other_grants_name_nobody(grant: SlackGrant | AdminGrant) -> None:
    """An event that ends an installation, or another purpose, acts for no Slack user."""
    with pytest.raises(PurposeNotGranted):
        requester_of(grant)


def test_a_resumed_question_names_its_account_too() -> None:
    """A resume grant is bound to the account that redeemed the code."""
    requester = requester_of(RESUME)
    assert requester.slack_user == SlackUser("T0TEAM", "", "U0MIA")
    assert requester.resumed_for == Account("northwind", "user_mia")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "grant",
    [
        replace(EVENT, is_stranger=True),
        replace(EVENT, slack_user_team_id="T0FOREIGN"),
        replace(EVENT, slack_user_team_id="E0FOREIGN"),
        replace(EVENT, workspace=GRID_TEAM, slack_user_team_id="E0FOREIGN"),
        replace(EVENT, workspace=ORG, slack_user_team_id="T0GRID", is_stranger=True),
    ],
)
def test_strangers_are_refused(grant: SlackGrant) -> None:
    """Whoever edge marked, or whose team cannot belong to the installation, stays outside."""
    with pytest.raises(SlackStranger):
        requester_of(grant).require_local()


@pytest.mark.parametrize(
    "grant",
    [
        EVENT,
        replace(EVENT, workspace=GRID_TEAM, slack_user_team_id="T0OTHERGRID"),
        replace(EVENT, workspace=GRID_TEAM, slack_user_team_id="E0GRID"),
        replace(EVENT, workspace=ORG, slack_user_team_id="T0GRID"),
        RESUME,
    ],
)
def test_members_of_the_installation_pass(grant: SlackGrant | AdminGrant) -> None:
    """Any team of the installation's Enterprise is home."""
    requester_of(grant).require_local()
