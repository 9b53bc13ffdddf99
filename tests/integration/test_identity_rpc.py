"""Identity over real mTLS gRPC, with a real Postgres and a stand-in auth server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock_chassis.client import remote_errors
from interlock_chassis.errors import Kind, RemoteError
from interlock_cli.identity_house import (
    INSTALLATION,
    PEERS,
    STATE,
    TEAM,
    TIMEOUT_S,
    House,
    open_house,
)
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.domain.agents import Agent
from interlock_identity.rpc import CALLERS
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.signing import (
    renew_slack_grant,
    sign_admin_grant,
    sign_install_grant,
    sign_user_token,
)
from interlock_tokens.verifying import (
    verify_admin_grant,
    verify_install_grant,
    verify_slack_grant,
    verify_user_token,
)

TRIAGE = Agent("support", "triage")


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Start identity with everything around it."""
    async with open_house(cluster, tmp_path) as house:
        yield house


@asynccontextmanager
async def _refused(kind: Kind, reason: str) -> AsyncIterator[None]:
    """Expect a peer's refusal by its kind and reason."""
    with pytest.raises(RemoteError) as refusal, remote_errors():
        yield
    assert (refusal.value.kind, refusal.value.reason) == (kind, reason)


async def _outcome(work: Awaitable[object]) -> str:
    try:
        with remote_errors():
            await work
    except RemoteError as error:
        return error.reason
    return "OK"


# The way through.


async def test_a_mention_becomes_a_token(house: House) -> None:
    """Install, mention, link, resume, run: each step proves itself to the next."""
    claimed = await house.claim()
    assert not claimed.was_claimed
    assert claimed.workspace.slack_team_id == "T0NORTHWIND"
    mention = house.event_grant()
    async with _refused(Kind.PRECONDITION, "USER_NOT_LINKED"):
        await house.subjects().ResolveUser(pb.ResolveUserRequest(grant=mention), timeout=TIMEOUT_S)
    code = await house.code()
    offer = await house.links().DescribeLinkCode(
        pb.DescribeLinkCodeRequest(session=await house.session("user_mia"), link_code=code),
        timeout=TIMEOUT_S,
    )
    assert (offer.slack_user_id, offer.slack_display_name) == ("U0MIA", "Mia")
    assert not offer.emails_differ
    redeemed = await house.redeem("user_mia", code)
    assert not redeemed.was_linked
    for grant in (redeemed.resume_grant, mention):
        resolved = await house.subjects().ResolveUser(
            pb.ResolveUserRequest(grant=grant), timeout=TIMEOUT_S
        )
        assert resolved.user_name == "Mia Castellanos"
        agent = await house.subjects().ResolveAgent(
            pb.ResolveAgentRequest(grant=grant, channel_id="C0HELP"), timeout=TIMEOUT_S
        )
        assert (agent.project_id, agent.source) == ("home", pb.AGENT_SOURCE_OPERATOR)
        issued = await house.token(grant)
        token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
        assert (token.user_id, token.tenant_id) == ("user_mia", "northwind")
        assert (token.slack_team_id, token.slack_user_id) == ("T0NORTHWIND", "U0MIA")
        assert issued.tenant_id == "northwind"
        assert issued.expires_at.ToDatetime(tzinfo=UTC) == token.expires_at


async def test_a_session_says_who_and_what_role(house: House) -> None:
    """The role is the one held now; the reference is stable and not the cookie."""
    request = pb.AuthenticateSessionRequest(session=await house.session("user_ben"))
    first = await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)
    assert (first.user_id, first.email) == ("user_ben", "ben@northwind.example")
    assert (first.tenant_id, first.tenant_name) == ("northwind", "Northwind")
    assert first.role == pb.ROLE_ADMIN
    assert first.session_ref not in request.session.cookie
    await house.control("memberships", person="user_ben", organization="northwind", role="member")
    second = await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)
    assert (second.role, second.session_ref) == (pb.ROLE_MEMBER, first.session_ref)


async def test_an_admin_grant_names_the_workspace_and_one_purpose(house: House) -> None:
    """Edge gets what it asked for, for a workspace that the session's tenant owns."""
    workspace = (await house.claim()).workspace
    issued = await house.sessions().IssueAdminGrant(
        pb.IssueAdminGrantRequest(
            session=await house.session("user_ben"),
            workspace_id=workspace.workspace_id,
            purpose=pb.ADMIN_PURPOSE_AUDIT,
        ),
        timeout=TIMEOUT_S,
    )
    grant = verify_admin_grant(issued.grant, house.keys.identity, now=datetime.now(UTC))
    assert (grant.purpose, grant.workspace) == (AdminPurpose.AUDIT, TEAM)
    assert (grant.tenant_id, grant.user_id) == ("northwind", "user_ben")
    assert issued.workspace == workspace
    listed = await house.workspaces().ListWorkspaces(
        pb.ListWorkspacesRequest(session=await house.session("user_mia")), timeout=TIMEOUT_S
    )
    assert list(listed.workspaces) == [workspace]
    for person, reason in [
        ("user_mia", "ROLE_NOT_SUFFICIENT"),
        ("user_olga", "WORKSPACE_NOT_FOUND"),
    ]:
        request = pb.IssueAdminGrantRequest(
            session=await house.session(person),
            workspace_id=workspace.workspace_id,
            purpose=pb.ADMIN_PURPOSE_AUDIT,
        )
        call = house.sessions().IssueAdminGrant(request, timeout=TIMEOUT_S)
        assert await _outcome(call) == reason


async def test_a_workspace_goes_to_another_tenant_only_after_its_release(house: House) -> None:
    """The second tenant is refused while the first one holds it, and welcome after."""
    first = (await house.claim("user_ada")).workspace
    other = "0d5d9c52-9a7c-4f40-8d43-6a7d7d6c0001"
    async with _refused(Kind.CONFLICT, "WORKSPACE_TAKEN"):
        await house.claim("user_olga", installation_id=other)
    assert (await house.claim("user_ada")).was_claimed
    release = pb.ReleaseWorkspaceRequest(installation_id=INSTALLATION, slack_team_id="T0NORTHWIND")
    vault = house.workspaces("token-vault")
    assert (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed
    assert not (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed
    claimed = await house.claim("user_olga", installation_id=other)
    assert claimed.workspace.workspace_id != first.workspace_id
    # What the vault says late about the first install ends nothing of the second.
    assert not (await vault.ReleaseWorkspace(release, timeout=TIMEOUT_S)).was_claimed


async def test_the_vault_says_which_workspace_needs_a_reinstall(house: House) -> None:
    """The list that edge shows says so, until the app is installed again."""
    await house.claim()
    vault = house.workspaces("token-vault")
    report = pb.ReportWorkspaceRequest(
        installation_id=INSTALLATION, slack_team_id="T0NORTHWIND", needs_reinstall=True
    )
    assert (await vault.ReportWorkspace(report, timeout=TIMEOUT_S)).was_claimed

    async def status() -> str:
        request = pb.ListWorkspacesRequest(session=await house.session("user_ada"))
        [shown] = (
            await house.workspaces("gateway-edge").ListWorkspaces(request, timeout=TIMEOUT_S)
        ).workspaces
        return str(shown.status)

    assert await status() == "needs_reinstall"
    await house.claim()
    assert await status() == "active"
    async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
        await house.workspaces("gateway-edge").ReportWorkspace(report, timeout=TIMEOUT_S)


async def test_the_vault_says_which_scopes_differ(house: House) -> None:
    """The list that edge shows says so; nobody else may say it, and not in any length."""
    await house.claim()
    vault = house.workspaces("token-vault")
    report = pb.ReportScopesRequest(
        installation_id=INSTALLATION,
        slack_team_id="T0NORTHWIND",
        missing_scopes=["files:write"],
        extra_scopes=["im:read", "im:write"],
    )
    assert (await vault.ReportScopes(report, timeout=TIMEOUT_S)).was_claimed
    request = pb.ListWorkspacesRequest(session=await house.session("user_ada"))
    [shown] = (
        await house.workspaces("gateway-edge").ListWorkspaces(request, timeout=TIMEOUT_S)
    ).workspaces
    assert shown.missing_scopes == report.missing_scopes
    assert shown.extra_scopes == report.extra_scopes
    for caller in ("gateway-edge", "gateway-worker"):
        async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
            await house.workspaces(caller).ReportScopes(report, timeout=TIMEOUT_S)
    for scopes in ([""], ["x" * 101], ["x"] * 101):
        report.missing_scopes[:] = scopes
        assert await _outcome(vault.ReportScopes(report, timeout=TIMEOUT_S)) == "INVALID_ARGUMENT"


async def test_the_vault_takes_a_notice_once(house: House) -> None:
    """RF-09: whom to tell of which install; then nothing more, and to nobody else."""
    await house.claim("user_ada")
    await house.redeem("user_ada", await house.code(), confirmed=True)
    report = pb.ReportWorkspaceRequest(
        installation_id=INSTALLATION, slack_team_id="T0NORTHWIND", needs_reinstall=True
    )
    vault, request = house.workspaces("token-vault"), pb.TakeNoticesRequest()
    await vault.ReportWorkspace(report, timeout=TIMEOUT_S)
    async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
        await house.workspaces("gateway-worker").TakeNotices(request, timeout=TIMEOUT_S)
    [notice] = (await vault.TakeNotices(request, timeout=TIMEOUT_S)).notices
    assert (notice.installation_id, notice.slack_user_id) == (INSTALLATION, "U0MIA")
    assert not (await vault.TakeNotices(request, timeout=TIMEOUT_S)).notices


async def test_a_claim_moves_into_the_enterprise_its_workspace_joined(house: House) -> None:
    """Without a grant the vault moves the claim of an install, and can make or take none."""
    before = (await house.claim()).workspace
    vault = house.workspaces("token-vault")

    def move(**changes: Any) -> Awaitable[pb.ClaimWorkspaceResponse]:
        named = {
            "installation_id": INSTALLATION,
            "slack_enterprise_id": "E0GRID",
            "slack_team_id": "T0NORTHWIND",
            "slack_app_id": "A0INTERLOCK",
        }
        return vault.ClaimWorkspace(
            pb.ClaimWorkspaceRequest(**(named | changes)), timeout=TIMEOUT_S
        )

    async with _refused(Kind.NOT_FOUND, "WORKSPACE_NOT_FOUND"):
        await move(installation_id="0d5d9c52-9a7c-4f40-8d43-6a7d7d6c0001")
    async with _refused(Kind.NOT_FOUND, "WORKSPACE_NOT_FOUND"):
        await move(slack_team_id="T0CONTOSO")
    async with _refused(Kind.INVALID, "MALFORMED_WORKSPACE_KEY"):
        await move(slack_enterprise_id="")
    for _ in range(2):
        moved = (await move()).workspace
        assert (moved.slack_enterprise_id, moved.slack_team_id) == ("E0GRID", "T0NORTHWIND")
        assert moved.workspace_id == before.workspace_id


async def test_an_org_wide_install_has_no_team(house: House) -> None:
    """The Enterprise stands where a team would, and a half-named install is refused."""
    grid: dict[str, Any] = {
        "slack_enterprise_id": "E0GRID",
        "slack_team_id": "",
        "is_enterprise_install": True,
    }
    claimed = await house.claim(**grid)
    assert claimed.workspace.slack_team_id == "E0GRID"
    assert claimed.workspace.is_enterprise_install
    async with _refused(Kind.INVALID, "MALFORMED_WORKSPACE_KEY"):
        await house.claim(**{**grid, "is_enterprise_install": False})
    async with _refused(Kind.INVALID, "MALFORMED_WORKSPACE_KEY"):
        await house.claim(is_enterprise_install=True)
    workspace = Workspace("E0GRID", "", is_enterprise_install=True, app_id="A0INTERLOCK")
    grant: dict[str, Any] = {"workspace": workspace, "slack_user_team_id": "T0GRID1"}
    await house.redeem("user_mia", await house.code(**grant))
    seen_elsewhere = house.event_grant(workspace=workspace, slack_user_team_id="T0GRID2")
    issued = await house.token(seen_elsewhere)
    token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
    assert (token.slack_enterprise_id, token.slack_team_id) == ("E0GRID", "T0GRID2")


async def test_defaults_are_set_and_read(house: House) -> None:
    """What an administrator sets answers the worker, with access where it was given."""
    workspace_id = (await house.claim()).workspace.workspace_id
    await house.redeem("user_mia", await house.code())
    house.manage.agents.add(("northwind", TRIAGE))
    chosen = pb.AgentDefault(project_id="support", agent_id="triage", grant_access_to_members=True)
    await house.workspaces().SetAgentDefault(
        pb.SetAgentDefaultRequest(
            session=await house.session("user_ben"),
            workspace_id=workspace_id,
            channel_id="C0HELP",
            agent_default=chosen,
        ),
        timeout=TIMEOUT_S,
    )
    listed = await house.workspaces().GetAgentDefaults(
        pb.GetAgentDefaultsRequest(
            session=await house.session("user_mia"), workspace_id=workspace_id
        ),
        timeout=TIMEOUT_S,
    )
    assert [(each.channel_id, each.agent_id) for each in listed.defaults] == [("C0HELP", "triage")]
    resolved = await house.subjects().ResolveAgent(
        pb.ResolveAgentRequest(grant=house.event_grant(), channel_id="C0HELP"),
        timeout=TIMEOUT_S,
    )
    assert (resolved.agent_id, resolved.source) == ("triage", pb.AGENT_SOURCE_CHANNEL)
    issued = await house.token(
        house.event_grant(), project_id="support", agent_id="triage", channel_id="C0HELP"
    )
    token = verify_user_token(issued.user_token, house.keys.user_tokens, now=datetime.now(UTC))
    assert token.authorization is not None
    assert token.authorization.project_id == "support"


# Link codes.


async def test_an_expired_code_links_nobody(house: House) -> None:
    """A code whose hour is over, by the database's clock, is spent."""
    await house.claim()
    code = await house.code()
    await house.owner.execute(
        "UPDATE identity.work_app_slack_account_link_codes SET expires_at = now()"
    )
    async with _refused(Kind.PRECONDITION, "LINK_CODE_SPENT"):
        await house.redeem("user_mia", code)
    assert await house.count("work_app_slack_user_mappings") == 0


async def test_a_code_works_once(house: House) -> None:
    """The second redeem is refused, also for the same person."""
    await house.claim()
    code = await house.code()
    await house.redeem("user_mia", code)
    for person in ("user_mia", "user_ben"):
        async with _refused(Kind.PRECONDITION, "LINK_CODE_SPENT"):
            await house.redeem(person, code, confirmed=True)
    assert await house.count("work_app_slack_user_mappings") == 1


async def test_of_many_redeems_at_once_one_links(house: House) -> None:
    """Fifty browsers of two people with one code make one link."""
    await house.claim()
    code = await house.code()
    people = ["user_mia", "user_ben"] * 25
    for person in set(people):
        await house.session(person)
    outcomes = await asyncio.gather(
        *(_outcome(house.redeem(person, code, confirmed=True)) for person in people)
    )
    assert sorted(outcomes) == ["LINK_CODE_SPENT"] * 49 + ["OK"]
    assert await house.count("work_app_slack_user_mappings") == 1


async def test_a_member_of_another_tenant_cannot_redeem(house: House) -> None:
    """The code of one tenant is worth nothing in another, and stays usable in its own."""
    await house.claim()
    code = await house.code()
    async with _refused(Kind.FORBIDDEN, "NOT_YOUR_TENANT"):
        await house.redeem("user_olga", code, confirmed=True)
    async with _refused(Kind.FORBIDDEN, "NOT_YOUR_TENANT"):
        await house.links().DescribeLinkCode(
            pb.DescribeLinkCodeRequest(session=await house.session("user_olga"), link_code=code),
            timeout=TIMEOUT_S,
        )
    await house.redeem("user_mia", code)


async def test_different_addresses_take_a_second_confirmation(house: House) -> None:
    """The first redeem is refused and spends nothing."""
    await house.claim()
    code = await house.code(email="someone@northwind.example")
    async with _refused(Kind.PRECONDITION, "EMAIL_MISMATCH"):
        await house.redeem("user_mia", code)
    await house.redeem("user_mia", code, confirmed=True)


async def test_codes_are_rationed_and_say_for_how_long(house: House) -> None:
    """The sixth code of ten minutes is refused with the time to wait."""
    await house.claim()
    for _ in range(5):
        await house.code()
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await house.code()
    assert refusal.value.reason == "TOO_MANY_LINK_CODES"
    assert refusal.value.retry_after is not None
    assert timedelta(minutes=9) < refusal.value.retry_after <= timedelta(minutes=10)


async def test_the_database_never_holds_a_code(house: House) -> None:
    """Only the hash is stored, and what the confirm page showed is erased on use."""
    await house.claim()
    code = await house.code()
    table = "SELECT c::text FROM identity.work_app_slack_account_link_codes AS c"
    before = await house.owner.fetchval(table)
    assert code not in before
    assert "mia@northwind.example" in before
    await house.redeem("user_mia", code)
    after = await house.owner.fetchval(table)
    assert code not in after
    assert "mia@northwind.example" not in after


# Who may do what.


@pytest.mark.parametrize("peer", PEERS)
async def test_a_peer_calls_its_own_rpcs_only(house: House, peer: str) -> None:
    """Edge cannot issue a user token, the worker no grant; whoever is not listed is refused."""
    for method, allowed in CALLERS.items():
        if peer in allowed:
            continue
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = house.channels[peer].unary_unary(method)
        async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
            await call(b"", timeout=TIMEOUT_S)


async def test_the_worker_needs_a_grant(house: House) -> None:
    """A call without one does not reach the use case."""
    await house.claim()
    async with _refused(Kind.INVALID, "INVALID_ARGUMENT"):
        await house.token("")


async def test_a_grant_of_another_family_is_refused(house: House) -> None:
    """What was signed for one purpose opens no other door."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    now = datetime.now(UTC)
    install = sign_install_grant(
        house.keys.identity,
        now=now,
        jti="j1",
        tenant_id="northwind",
        user_id="user_mia",
        state_sha256=STATE,
        source="direct",
    )
    slack_user = sign_user_token(
        house.keys.user_tokens,
        now=now,
        jti="j2",
        user_id="user_mia",
        tenant_id="northwind",
        slack_team_id="T0NORTHWIND",
        slack_user_id="U0MIA",
    )
    for token in (install, slack_user):
        assert await _outcome(house.token(token.reveal())) == "INVALID_TOKEN"
    for purpose in AdminPurpose:
        admin = sign_admin_grant(
            house.keys.identity,
            now=now,
            jti="j3",
            workspace=TEAM,
            tenant_id="northwind",
            user_id="user_mia",
            purpose=purpose,
            slack_user_id="U0MIA" if purpose is AdminPurpose.RESUME else "",
        ).reveal()
        expected = "OK" if purpose is AdminPurpose.RESUME else "PURPOSE_NOT_GRANTED"
        assert await _outcome(house.token(admin)) == expected
        made = house.links("gateway-worker").CreateLinkCode(
            pb.CreateLinkCodeRequest(grant=admin), timeout=TIMEOUT_S
        )
        assert await _outcome(made) == "PURPOSE_NOT_GRANTED"


async def test_the_vault_needs_an_install_grant(house: House) -> None:
    """An event of a workspace does not claim it."""
    claim = pb.ClaimWorkspaceRequest(
        grant=house.event_grant(),
        installation_id=INSTALLATION,
        slack_team_id="T0NORTHWIND",
        slack_app_id="A0INTERLOCK",
    )
    async with _refused(Kind.UNAUTHENTICATED, "INVALID_TOKEN"):
        await house.workspaces("token-vault").ClaimWorkspace(claim, timeout=TIMEOUT_S)
    assert await house.count("work_app_slack_workspaces") == 0


async def test_a_forged_or_expired_grant_is_refused(house: House) -> None:
    """Another key of the same name, an altered text and yesterday's grant all fail alike."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    genuine = house.event_grant()
    assert await _outcome(house.token(genuine)) == "OK"
    head, payload, signature = genuine.split(".")
    swapped = house.event_grant(slack_user_id="U0BEN").split(".")[1]
    yesterday = datetime.now(UTC) - timedelta(minutes=16)
    for token in (
        house.event_grant(house.keys.forger),
        f"{head}.{swapped}.{signature}",
        f"{head}.{payload}.",
        house.event_grant(now=yesterday),
        "x",
    ):
        assert await _outcome(house.token(token)) == "INVALID_TOKEN"


async def test_an_unknown_field_is_refused(house: House) -> None:
    """A request cannot smuggle in a team, for this version or a later one to believe."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    request = pb.IssueUserTokenRequest(grant=house.event_grant()).SerializeToString()
    # Field 5, a text: "T0CONTOSO".
    smuggled = request + b"\x2a\x09T0CONTOSO"
    call: aio.UnaryUnaryMultiCallable[bytes, bytes] = house.channels["gateway-worker"].unary_unary(
        "/interlock.identity.v1.SubjectService/IssueUserToken"
    )
    assert await _outcome(call(request, timeout=TIMEOUT_S)) == "OK"
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await call(smuggled, timeout=TIMEOUT_S)
    assert refusal.value.kind is Kind.INVALID


async def test_strangers_get_neither_code_nor_token(house: House) -> None:
    """Guests and users of connected workspaces are named as such to the worker, and recorded."""
    await house.claim()
    subjects = house.subjects()
    mention = pb.ResolveUserRequest(grant=house.event_grant(is_stranger=True))
    assert await _outcome(subjects.ResolveUser(mention, timeout=TIMEOUT_S)) == "SLACK_STRANGER"
    unlinked = pb.ResolveUserRequest(grant=house.event_grant())
    assert await _outcome(subjects.ResolveUser(unlinked, timeout=TIMEOUT_S)) == "USER_NOT_LINKED"
    refused = pb.ListAuditEventsRequest(event="call.refused")
    [only] = (await house.audit().ListAuditEvents(refused, timeout=TIMEOUT_S)).events
    assert (only.outcome, only.tenant_id) == ("SLACK_STRANGER", "northwind")
    for changes in ({"is_stranger": True}, {"slack_user_team_id": "T0ELSEWHERE"}):
        async with _refused(Kind.FORBIDDEN, "SLACK_STRANGER"):
            await house.code(**changes)
        async with _refused(Kind.FORBIDDEN, "SLACK_STRANGER"):
            await house.token(house.event_grant(**changes))


async def test_another_tenants_grant_reaches_its_own_workspace_only(house: House) -> None:
    """The same Slack user id under another team is somebody else."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    contoso = Workspace("", "T0CONTOSO", is_enterprise_install=False, app_id="A0INTERLOCK")
    grant: dict[str, Any] = {"workspace": contoso, "slack_user_team_id": "T0CONTOSO"}
    async with _refused(Kind.NOT_FOUND, "WORKSPACE_NOT_FOUND"):
        await house.token(house.event_grant(**grant))
    await house.claim("user_olga", slack_team_id="T0CONTOSO", installation_id=str(uuid4()))
    async with _refused(Kind.PRECONDITION, "USER_NOT_LINKED"):
        await house.token(house.event_grant(**grant))


async def test_a_browser_without_a_session_is_nobody(house: House) -> None:
    """Cookies that are absent, forged, of another name, or more than one prove nothing."""
    genuine = await house.session("user_ada")
    name, _, value = genuine.cookie.partition("=")
    for cookie in (
        f"{name}=forged.c2lnbmF0dXJl",
        f"other={value}",
        f"{name}={value}; admin=1",
        f"{name}={value}\r\nX-Admin: 1",
        "none",
    ):
        request = pb.AuthenticateSessionRequest(session=pb.BrowserSession(cookie=cookie))
        async with _refused(Kind.UNAUTHENTICATED, "NOT_SIGNED_IN"):
            await house.sessions().AuthenticateSession(request, timeout=TIMEOUT_S)


# Off-boarding.


async def test_a_removed_member_is_out(house: House) -> None:
    """The session still names the organization, but neither it nor a grant is worth anything."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    await house.control("memberships", person="user_mia", organization="northwind", role=None)
    async with _refused(Kind.FORBIDDEN, "NOT_A_MEMBER"):
        await house.sessions().AuthenticateSession(
            pb.AuthenticateSessionRequest(session=await house.session("user_mia")),
            timeout=TIMEOUT_S,
        )
    async with _refused(Kind.FORBIDDEN, "NO_LONGER_A_MEMBER"):
        await house.token(house.event_grant())


async def test_unlinking_ends_tokens_at_once(house: House) -> None:
    """Unlinked in the browser or in Slack, the next token is refused."""
    workspace_id = (await house.claim()).workspace.workspace_id
    await house.redeem("user_mia", await house.code())
    listed = await house.links().ListUserMappings(
        pb.ListUserMappingsRequest(
            session=await house.session("user_mia"), workspace_id=workspace_id
        ),
        timeout=TIMEOUT_S,
    )
    (mapping,) = listed.mappings
    assert (mapping.user_email, mapping.HasField("last_used_at")) == (
        "mia@northwind.example",
        False,
    )
    unlink = pb.UnlinkRequest(
        session=await house.session("user_mia"), mapping_id=mapping.mapping_id
    )
    await house.links().Unlink(unlink, timeout=TIMEOUT_S)
    assert await _outcome(house.token(house.event_grant())) == "USER_NOT_LINKED"
    assert await _outcome(house.links().Unlink(unlink, timeout=TIMEOUT_S)) == "MAPPING_NOT_FOUND"
    await house.redeem("user_mia", await house.code())
    itself = pb.UnlinkSelfRequest(grant=house.event_grant())
    worker = house.links("gateway-worker")
    assert (await worker.UnlinkSelf(itself, timeout=TIMEOUT_S)).was_linked
    assert not (await worker.UnlinkSelf(itself, timeout=TIMEOUT_S)).was_linked
    assert await _outcome(house.token(house.event_grant())) == "USER_NOT_LINKED"


async def test_links_are_listed_in_pages(house: House) -> None:
    """A page token leads on, and only one that was given out does."""
    workspace_id = (await house.claim()).workspace.workspace_id
    for number, person in enumerate(("user_mia", "user_ben", "user_mia")):
        user = {"slack_user_id": f"U0USER{number}"}
        await house.redeem(person, await house.code(**user), confirmed=True)

    async def page(token: str) -> pb.ListUserMappingsResponse:
        request = pb.ListUserMappingsRequest(
            session=await house.session("user_ada"),
            workspace_id=workspace_id,
            page_size=2,
            page_token=token,
        )
        return await house.links().ListUserMappings(request, timeout=TIMEOUT_S)

    first = await page("")
    second = await page(first.next_page_token)
    shown = [each.slack_user_id for each in (*first.mappings, *second.mappings)]
    assert shown == ["U0USER2", "U0USER1", "U0USER0"]
    assert second.next_page_token == ""
    for token in ("x", "e30=", "WzEsMl0=", "W10=", "\u00e9"):
        assert await _outcome(page(token)) == "INVALID_PAGE_TOKEN"


async def test_an_operator_forgets_a_person_and_an_organization(house: House) -> None:
    """Nothing of them is left."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    forgotten = await house.offboarding().ForgetUser(
        pb.ForgetUserRequest(user_id="user_mia"), timeout=TIMEOUT_S
    )
    assert forgotten.mappings_removed == 1
    await house.redeem("user_mia", await house.code())
    forgotten_all = await house.offboarding().ForgetOrganization(
        pb.ForgetOrganizationRequest(tenant_id="northwind"), timeout=TIMEOUT_S
    )
    assert forgotten_all.mappings_removed == 1
    for table in ("workspaces", "account_link_codes", "user_mappings", "agent_defaults"):
        assert await house.count(f"work_app_slack_{table}") == 0


async def test_what_stands_on_an_account_or_an_organization_goes_with_it(house: House) -> None:
    """The foreign keys of the specification, whoever removes the row that they stand on."""
    await house.claim("user_ada")
    await house.redeem("user_mia", await house.code())
    installed_by = "SELECT installed_by_user_id FROM identity.work_app_slack_workspaces"
    used_by = "SELECT used_by_user_id FROM identity.work_app_slack_account_link_codes"
    assert await house.owner.fetchval(installed_by) == "user_ada"
    assert await house.owner.fetchval(used_by) == "user_mia"
    await house.owner.execute("""DELETE FROM identity."user" WHERE id = 'user_ada'""")
    assert await house.owner.fetchval(installed_by) is None
    assert await house.count("work_app_slack_user_mappings") == 1
    await house.owner.execute("""DELETE FROM identity."user" WHERE id = 'user_mia'""")
    assert await house.count("work_app_slack_user_mappings") == 0
    assert await house.owner.fetchval(used_by) is None
    assert await house.count("work_app_slack_account_link_codes") == 1
    await house.redeem("user_mia", await house.code())
    await house.owner.execute("DELETE FROM identity.organization WHERE id = 'northwind'")
    for table in ("workspaces", "account_link_codes", "user_mappings", "agent_defaults"):
        assert await house.count(f"work_app_slack_{table}") == 0


# Renewals.


async def test_a_renewed_grant_is_as_good_as_the_event(house: House) -> None:
    """An expired grant of a young event is renewed, an old one is not, a forged one never."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    now = datetime.now(UTC)

    async def renew(grant: str) -> pb.RenewGrantResponse:
        request = pb.RenewGrantRequest(grant=grant)
        return await house.subjects().RenewGrant(request, timeout=TIMEOUT_S)

    expired = house.event_grant(now=now - timedelta(hours=23))
    renewed = await renew(expired)
    keys = house.keys.identity
    assert verify_slack_grant(renewed.grant, keys, now=datetime.now(UTC)).renewed
    assert await _outcome(house.token(expired)) == "INVALID_TOKEN"
    assert await _outcome(house.token(renewed.grant)) == "OK"
    assert await _outcome(renew(renewed.grant)) == "OK"
    old = house.event_grant(now=now - timedelta(hours=24))
    assert await _outcome(renew(old)) == "EVENT_TOO_OLD"
    forged = house.event_grant(house.keys.forger)
    assert await _outcome(renew(forged)) == "INVALID_TOKEN"
    release = pb.ReleaseWorkspaceRequest(installation_id=INSTALLATION, slack_team_id="T0NORTHWIND")
    await house.workspaces("token-vault").ReleaseWorkspace(release, timeout=TIMEOUT_S)
    assert await _outcome(renew(house.event_grant())) == "WORKSPACE_RELEASED"


async def test_an_install_grant_says_what_edge_may_complete(house: House) -> None:
    """Tenant, account, state and source come out as they went in; members get none."""
    request = pb.IssueInstallGrantRequest(
        session=await house.session("user_ada"),
        state_sha256=STATE,
        source=pb.INSTALL_SOURCE_NANGO,
    )
    issued = await house.sessions().IssueInstallGrant(request, timeout=TIMEOUT_S)
    grant = verify_install_grant(issued.grant, house.keys.identity, now=datetime.now(UTC))
    assert (grant.tenant_id, grant.user_id) == (issued.tenant_id, "user_ada")
    assert (grant.state_sha256, grant.source) == (STATE, "nango")
    request.session.CopyFrom(await house.session("user_mia"))
    call = house.sessions().IssueInstallGrant(request, timeout=TIMEOUT_S)
    assert await _outcome(call) == "ROLE_NOT_SUFFICIENT"


# Default agents, as the platform shows them to an administrator.


async def test_a_default_is_checked_as_the_administrator(house: House) -> None:
    """The platform is asked with the browser's own session; what it does not show is refused."""
    workspace_id = (await house.claim()).workspace.workspace_id
    asked = house.manage.asked

    async def choose(person: str, agent: Agent | None) -> str:
        request = pb.SetAgentDefaultRequest(
            session=await house.session(person), workspace_id=workspace_id
        )
        if agent:
            request.agent_default.project_id = agent.project_id
            request.agent_default.agent_id = agent.agent_id
        return await _outcome(house.workspaces().SetAgentDefault(request, timeout=10))

    assert await choose("user_ben", TRIAGE) == "AGENT_NOT_FOUND"
    assert await choose("user_mia", TRIAGE) == "ROLE_NOT_SUFFICIENT"
    assert await choose("user_ben", Agent("../../support", "triage")) == "AGENT_NOT_FOUND"
    assert house.manage.asked == asked + 1
    assert house.manage.tokens == []
    house.manage.agents |= {("northwind", Agent("support", f"a{number}")) for number in range(150)}
    house.manage.agents.add(("northwind", TRIAGE))
    assert await choose("user_ben", TRIAGE) == "OK"
    for status in (401, 302, 500, 503):
        house.manage.status = status
        assert await choose("user_ben", TRIAGE) == "PLATFORM_UNAVAILABLE"
    for status in (403, 404):
        house.manage.status = status
        assert await choose("user_ben", TRIAGE) == "AGENT_NOT_FOUND"
    assert await choose("user_ben", None) == "OK"


async def test_the_operators_agent_is_offered_where_it_exists(house: House) -> None:
    """An installing administrator who cannot see it takes it from the tenant's offer."""
    house.manage.agents.clear()
    await house.claim()
    await house.redeem("user_mia", await house.code())
    request = pb.ResolveAgentRequest(grant=house.event_grant(), channel_id="C0HELP")
    resolved = await house.subjects().ResolveAgent(request, timeout=TIMEOUT_S)
    assert resolved.source == pb.AGENT_SOURCE_UNSPECIFIED
    house.manage.status = 503
    await house.install_grant()
    resolved = await house.subjects().ResolveAgent(request, timeout=TIMEOUT_S)
    assert resolved.source == pb.AGENT_SOURCE_UNSPECIFIED
    house.manage.status = 0
    house.manage.agents.add(("northwind", Agent("home", "any")))
    await house.install_grant()
    resolved = await house.subjects().ResolveAgent(request, timeout=TIMEOUT_S)
    assert (resolved.agent_id, resolved.source) == ("any", pb.AGENT_SOURCE_OPERATOR)


async def test_without_a_platform_no_default_can_be_set(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """Nobody knows the agent, so nobody is sent to it."""
    async with open_house(cluster, tmp_path, manage_url=None) as house:
        workspace_id = (await house.claim()).workspace.workspace_id
        request = pb.SetAgentDefaultRequest(
            session=await house.session("user_ben"),
            workspace_id=workspace_id,
            agent_default=pb.AgentDefault(project_id="support", agent_id="triage"),
        )
        call = house.workspaces().SetAgentDefault(request, timeout=10)
        assert await _outcome(call) == "PLATFORM_UNAVAILABLE"


# Policies and records.


async def test_a_strict_tenant_refuses_other_addresses(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """The confirm page learns it at once, and no confirmation helps."""
    async with open_house(cluster, tmp_path, emails_must_match=("northwind",)) as house:
        await house.claim()
        for email in ("someone@northwind.example", ""):
            code = await house.code(email=email)
            assert (await house.describe("user_mia", code)).email_refused
            redeemed = house.redeem("user_mia", code, confirmed=True)
            assert await _outcome(redeemed) == "EMAIL_MUST_MATCH"
        code = await house.code()
        assert not (await house.describe("user_mia", code)).email_refused
        await house.redeem("user_mia", code)


async def test_links_tokens_and_refusals_are_on_record(house: House) -> None:
    """Who, whom, with which proof, when by the database's clock; and no text or token."""
    workspace_id = (await house.claim()).workspace.workspace_id
    code = await house.code()
    await _outcome(house.redeem("user_olga", code))
    redeemed = await house.redeem("user_mia", code)
    issued = await house.token(house.event_grant())
    renewed = await house.renew(house.event_grant())
    edge = house.subjects("gateway-edge").IssueUserToken(
        pb.IssueUserTokenRequest(grant="x"), timeout=TIMEOUT_S
    )
    assert await _outcome(edge) == "CALLER_NOT_ALLOWED"
    await house.links("gateway-worker").UnlinkSelf(
        pb.UnlinkSelfRequest(grant=house.event_grant()), timeout=TIMEOUT_S
    )
    rows = await house.owner.fetch("SELECT * FROM identity.audit_events ORDER BY id")
    assert [(row["event"], row["outcome"], row["caller"]) for row in rows] == [
        ("grant.issued", "allowed", "gateway-edge"),
        ("workspace.claimed", "allowed", "token-vault"),
        ("call.refused", "NOT_YOUR_TENANT", "gateway-edge"),
        ("user.linked", "allowed", "gateway-edge"),
        ("token.issued", "allowed", "gateway-worker"),
        ("grant.renewed", "allowed", "gateway-worker"),
        ("call.refused", "CALLER_NOT_ALLOWED", "gateway-edge"),
        ("user.unlinked", "allowed", "gateway-worker"),
    ]
    now = datetime.now(UTC)
    token = verify_user_token(issued.user_token, house.keys.user_tokens, now=now)
    resume = verify_admin_grant(redeemed.resume_grant, house.keys.identity, now=now)
    again = verify_slack_grant(renewed.grant, house.keys.identity, now=now)
    assert [row["token_jti"] for row in rows[3:6]] == [resume.jti, token.jti, again.jti]
    assert all(row["grant_jti"] for row in (rows[1], *rows[4:6], rows[7]))
    assert [row["actor_id"] for row in rows[2:4]] == ["user_olga", "user_mia"]
    for row in (rows[3], rows[4], rows[7]):
        found = (row["tenant_id"], row["workspace_id"], row["user_id"], row["slack_user_id"])
        assert found == ("northwind", workspace_id, "user_mia", "U0MIA")
    written = " ".join(str(value) for row in rows for value in row.values())
    for secret in (code, issued.user_token, redeemed.resume_grant, renewed.grant, "Mia", "@"):
        assert secret not in written


async def test_an_operator_reads_the_record(house: House) -> None:
    """In pages, narrowed to a tenant, an account or an event; nobody else reads it."""
    await house.claim()
    await _outcome(house.redeem("user_olga", await house.code()))
    await house.redeem("user_mia", await house.code())

    async def listed(**sought: Any) -> pb.ListAuditEventsResponse:
        request = pb.ListAuditEventsRequest(**sought)
        return await house.audit().ListAuditEvents(request, timeout=TIMEOUT_S)

    everything = (await listed()).events
    assert [each.number for each in everything] == sorted(
        (each.number for each in everything), reverse=True
    )
    newest = everything[0]
    assert (newest.event, newest.outcome, newest.user_id) == ("user.linked", "allowed", "user_mia")
    await house.owner.execute(
        "UPDATE identity.audit_events SET outcome = 'ok' WHERE outcome = 'allowed'"
    )
    # A record of before reads the same.
    assert (await listed()).events == everything
    assert (newest.caller, newest.actor_id) == ("gateway-edge", "user_mia")
    assert abs(newest.at.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    first = await listed(page_size=1)
    assert list(first.events) == [newest]
    second = await listed(page_size=200, page_token=first.next_page_token)
    assert [newest, *second.events] == list(everything)
    assert second.next_page_token == ""
    [refused] = (await listed(event="call.refused")).events
    assert (refused.outcome, refused.actor_id) == ("NOT_YOUR_TENANT", "user_olga")
    assert not (await listed(tenant_id="nobody")).events
    for token in ("x", "-1", "9" * 19, "\u0661"):
        assert await _outcome(listed(page_token=token)) == "INVALID_PAGE_TOKEN"
    for caller, reason in (
        ("gateway-edge", "INVALID_TOKEN"),
        ("gateway-worker", "CALLER_NOT_ALLOWED"),
        ("token-vault", "CALLER_NOT_ALLOWED"),
    ):
        call = house.audit(caller).ListAuditEvents(pb.ListAuditEventsRequest(), timeout=TIMEOUT_S)
        assert await _outcome(call) == reason


async def test_an_administrator_reads_the_record_of_a_workspace(house: House) -> None:
    """Their tenant's alone, whatever tenant is asked for, with the names of today."""
    workspace_id = (await house.claim()).workspace.workspace_id
    other = {
        "installation_id": "0d5d9c52-9a7c-4f40-8d43-6a7d7d6c0001",
        "slack_team_id": "T0CONTOSO",
    }
    await house.claim("user_olga", **other)
    await _outcome(house.redeem("user_olga", await house.code()))
    await _outcome(house.token(house.event_grant()))
    await house.redeem("user_mia", await house.code())
    await house.token(house.event_grant())

    async def grant(purpose: pb.AdminPurpose.ValueType) -> str:
        request = pb.IssueAdminGrantRequest(
            session=await house.session("user_ben"), workspace_id=workspace_id, purpose=purpose
        )
        return (await house.sessions().IssueAdminGrant(request, timeout=TIMEOUT_S)).grant

    shown = await grant(pb.ADMIN_PURPOSE_AUDIT)

    async def listed(**sought: Any) -> pb.ListAuditEventsResponse:
        request = pb.ListAuditEventsRequest(**{"grant": shown, **sought})
        return await house.audit("gateway-edge").ListAuditEvents(request, timeout=TIMEOUT_S)

    part = await listed(tenant_id="contoso")
    assert [(each.event, each.outcome) for each in part.events] == [
        ("grant.issued", "allowed"),
        ("token.issued", "allowed"),
        ("user.linked", "allowed"),
        ("call.refused", "USER_NOT_LINKED"),
        ("workspace.claimed", "allowed"),
        ("grant.issued", "allowed"),
    ]
    assert {each.tenant_id for each in part.events} == {"northwind"}
    assert {each.workspace_id for each in part.events} == {workspace_id, ""}
    linked = part.events[2]
    assert (linked.user_id, linked.user_name, linked.actor_name) == (
        "user_mia",
        "Mia Castellanos",
        "Mia Castellanos",
    )
    refused = part.events[3]
    assert (refused.workspace_id, refused.slack_user_id) == (workspace_id, "U0MIA")
    first = await listed(page_size=4)
    assert [*first.events, *(await listed(page_token=first.next_page_token)).events] == list(
        part.events
    )
    [only] = (await listed(event="user.linked")).events
    assert only == linked
    assert await _outcome(listed(grant=await grant(pb.ADMIN_PURPOSE_HEALTH))) == (
        "PURPOSE_NOT_GRANTED"
    )
    for forged in ("", "x", house.event_grant()):
        assert await _outcome(listed(grant=forged)) == "INVALID_TOKEN"
    release = pb.ReleaseWorkspaceRequest(installation_id=INSTALLATION, slack_team_id="T0NORTHWIND")
    await house.workspaces("token-vault").ReleaseWorkspace(release, timeout=TIMEOUT_S)
    assert await _outcome(listed()) == "WORKSPACE_NOT_FOUND"


async def test_the_service_cannot_change_the_record(house: House) -> None:
    """Its role adds rows, without choosing their time, and takes away old ones at most."""
    await house.claim()
    service = await asyncpg.connect(house.urls.roles["interlock_identity"].reveal())
    try:
        for statement in (
            "UPDATE identity.audit_events SET outcome = 'ok'",
            "DELETE FROM identity.audit_events",
            "TRUNCATE identity.audit_events",
            "INSERT INTO identity.audit_events (at) VALUES (now() - interval '1 year')",
            "ALTER TABLE identity.audit_events DISABLE TRIGGER ALL",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
        before = await house.count("audit_events")
        await house.owner.execute(
            "UPDATE identity.audit_events SET at = at - interval '89 days' WHERE id = 1"
        )
        prune = "SELECT identity.prune_audit(interval '0 days', 100)"
        assert await service.fetchval(prune) == 0
        await house.owner.execute(
            "UPDATE identity.audit_events SET at = at - interval '2 days' WHERE id = 1"
        )
        assert await service.fetchval(prune) == 1
        assert await house.count("audit_events") == before - 1
    finally:
        await service.close()


async def test_no_record_no_token(house: House) -> None:
    """Where the record cannot be written nothing is given out, and nothing was done."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    code = await house.code(slack_user_id="U0BEN")
    await house.owner.execute("ALTER TABLE identity.audit_events RENAME TO lost")
    for work in (
        house.token(house.event_grant()),
        house.renew(house.event_grant()),
        house.redeem("user_ben", code, confirmed=True),
        house.install_grant(),
    ):
        assert await _outcome(work) == "INTERNAL"
    used = await house.owner.fetchval(
        "SELECT max(last_used_at) FROM identity.work_app_slack_user_mappings"
    )
    assert used is None
    assert await house.count("work_app_slack_user_mappings") == 1
    await house.owner.execute("ALTER TABLE identity.lost RENAME TO audit_events")
    await house.redeem("user_ben", code, confirmed=True)


# Sweeping.


async def test_the_sweep_ends_the_links_of_those_who_left(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """Whoever is gone loses their links; a second replica does not sweep again meanwhile."""
    async with open_house(cluster, tmp_path, absence_minutes=0) as house:
        await house.claim()
        await house.redeem("user_mia", await house.code())
        await house.redeem("user_ben", await house.code(slack_user_id="U0BEN"), confirmed=True)
        await house.leave("user_mia")
        await house.identity.upkeep.run_due()
        assert await house.count("work_app_slack_user_mappings") == 2
        await house.owner.execute("DELETE FROM identity.upkeep")
        await house.identity.upkeep.run_due()
        left = await house.owner.fetch(
            "SELECT inkeep_user_id FROM identity.work_app_slack_user_mappings"
        )
        assert [row["inkeep_user_id"] for row in left] == ["user_ben"]
        assert await _outcome(house.token(house.event_grant())) == "USER_NOT_LINKED"


async def test_the_platform_can_say_who_is_a_member(
    cluster: ScratchDatabases, tmp_path: Path
) -> None:
    """Without a member table the platform is asked as the person, before every token."""
    changes: dict[str, Any] = {
        "membership_source": "platform",
        "membership_database_url_file": None,
        "membership_cache_seconds": 0,
    }
    async with open_house(cluster, tmp_path, **changes) as house:
        await house.claim()
        await house.redeem("user_mia", await house.code())
        assert await _outcome(house.token(house.event_grant())) == "NO_LONGER_A_MEMBER"
        house.manage.members.add(("northwind", "user_mia"))
        issued = await house.token(house.event_grant())
        assert issued.user_token not in house.manage.tokens
        house.manage.status = 503
        assert await _outcome(house.token(house.event_grant())) == "MEMBERSHIP_UNAVAILABLE"


# Who may show what.


async def test_every_rpc_takes_the_proofs_that_it_names(house: House) -> None:
    """Each kind of token at each RPC that takes one: a no is final, nothing falls through."""
    await house.claim()
    await house.redeem("user_mia", await house.code())
    tokens = _one_token_of_each_kind(house)
    event = {"slackGrant": "OK", "renewedGrant": "OK"}
    subject = {**event, "resume": "OK", "adminGrant": "PURPOSE_NOT_GRANTED"}
    admin = {"resume": "PURPOSE_NOT_GRANTED", "adminGrant": "PURPOSE_NOT_GRANTED"}
    linking = {**admin, "slackGrant": "USER_ALREADY_LINKED", "renewedGrant": "USER_ALREADY_LINKED"}
    services = "interlock.identity.v1"
    expected = {
        f"/{services}.SubjectService/ResolveUser": subject,
        f"/{services}.SubjectService/ResolveAgent": subject,
        f"/{services}.SubjectService/IssueUserToken": subject,
        f"/{services}.SubjectService/RenewGrant": event,
        f"/{services}.LinkService/CreateLinkCode": linking,
        f"/{services}.WorkspaceService/ClaimWorkspace": {"installGrant": "OK"},
        f"/{services}.LinkService/UnlinkSelf": {**admin, **event},
    }
    for method, outcomes in expected.items():
        (caller,) = CALLERS[method]
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = house.channels[caller].unary_unary(method)
        for kind, token in tokens.items():
            request = pb.ClaimWorkspaceRequest(grant=token)
            if method.endswith("ClaimWorkspace"):
                request.installation_id = INSTALLATION
                request.slack_team_id, request.slack_app_id = "T0NORTHWIND", "A0INTERLOCK"
            outcome = await _outcome(call(request.SerializeToString(), timeout=TIMEOUT_S))
            assert (method, kind, outcome) == (method, kind, outcomes.get(kind, "INVALID_TOKEN"))


def _one_token_of_each_kind(house: House) -> dict[str, str]:
    now = datetime.now(UTC)
    event = verify_slack_grant(house.event_grant(), house.keys.edge, now=now)
    renewed = renew_slack_grant(house.keys.identity, now=now, jti="j1", grant=event)
    admin: dict[str, Any] = {"tenant_id": "northwind", "user_id": "user_mia", "workspace": TEAM}
    tokens = {
        "slackGrant": house.event_grant(),
        "renewedGrant": renewed.reveal(),
        "resume": sign_admin_grant(
            house.keys.identity,
            now=now,
            jti="j2",
            purpose=AdminPurpose.RESUME,
            slack_user_id="U0MIA",
            **admin,
        ).reveal(),
        "adminGrant": sign_admin_grant(
            house.keys.identity, now=now, jti="j3", purpose=AdminPurpose.HEALTH, **admin
        ).reveal(),
        "installGrant": sign_install_grant(
            house.keys.identity,
            now=now,
            jti="j4",
            tenant_id="northwind",
            user_id="user_ada",
            state_sha256=STATE,
            source="direct",
        ).reveal(),
        "slackUser": sign_user_token(
            house.keys.user_tokens,
            now=now,
            jti="j5",
            user_id="user_mia",
            tenant_id="northwind",
            slack_team_id="T0NORTHWIND",
            slack_user_id="U0MIA",
        ).reveal(),
        "nothing": "x",
    }
    assert {*tokens} >= {family.value for family in Family}
    return tokens
