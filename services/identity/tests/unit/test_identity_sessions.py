"""Who gets which grant, and what it says."""

import json
from dataclasses import replace
from itertools import count
from uuid import UUID

import pytest

from interlock_chassis.secret import Secret
from interlock_identity.adapters.memory import FakeAuthServer, ManualClock, MemoryStore
from interlock_identity.domain.audit import Origin
from interlock_identity.domain.people import (
    Person,
    Role,
    RoleNotSufficient,
    Session,
    SessionProof,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.workspaces import Claim, Workspace, WorkspaceId, WorkspaceKey
from interlock_identity.sessions import (
    AuthServerUnavailable,
    NotSignedIn,
    Sessions,
)
from interlock_identity.workspaces import WorkspaceNotFound
from interlock_tokens.families import Family
from interlock_tokens.grants import IMPORT_STATE, AdminPurpose
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.verifying import verify_admin_grant, verify_install_grant

NORTHWIND = Tenant(TenantId("northwind"), "Northwind")
CONTOSO = Tenant(TenantId("contoso"), "Contoso")
OWNER = Session(
    Person(UserId("user_ada"), "Ada", "ada@northwind.example"), NORTHWIND, Role.OWNER, "ref"
)
KEY = WorkspaceKey("", "T0TEAM", "A0APP")
INSTALLATION = UUID("00000000-0000-4000-8000-000000000001")
ORIGIN = Origin("gateway-edge", "/test", "request", actor_id="user_ada")


class _House:
    """Sessions around fakes, with the keys to read what they sign."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.auth = FakeAuthServer()
        key = generate_ed25519_key("k1", [Family.ADMIN_GRANT, Family.INSTALL_GRANT])
        self.keys = Keyset.from_json(Secret(json.dumps({"keys": [key]})), variable="KEYS")
        ids = count(1)
        self.sessions = Sessions(
            source=self.auth,
            people=self.store,
            workspaces=self.store,
            audit=self.store,
            grant_keys=self.keys,
            clock=self.clock,
            new_id=lambda: f"id{next(ids)}",
        )

    async def claim(self, session: Session) -> Workspace:
        await self.store.remember(session.person, session.tenant)
        claimed = await self.store.claim(
            Claim(
                workspace_id=WorkspaceId("wsw_1"),
                tenant_id=session.tenant.tenant_id,
                key=KEY,
                name="Acme",
                installation_id=INSTALLATION,
                installed_by=session.person.user_id,
                nango=None,
            ),
            ORIGIN,
        )
        return claimed.workspace.workspace


@pytest.fixture
def house() -> _House:
    """Give sessions around fresh fakes."""
    return _House()


async def test_a_session_is_what_the_auth_server_says_now(house: _House) -> None:
    """Nothing is remembered between two calls."""
    proof = SessionProof(Secret("cookie=ada"), "")
    house.auth.sessions["cookie=ada"] = OWNER
    assert await house.sessions.authenticate(proof) == OWNER
    house.auth.fail_next(AuthServerUnavailable())
    with pytest.raises(AuthServerUnavailable):
        await house.sessions.authenticate(proof)
    del house.auth.sessions["cookie=ada"]
    with pytest.raises(NotSignedIn):
        await house.sessions.authenticate(proof)


@pytest.mark.parametrize("role", [Role.OWNER, Role.ADMIN])
async def test_an_administrator_gets_a_grant_for_one_purpose(house: _House, role: Role) -> None:
    """The grant names the workspace, the tenant, the account and the purpose, for 5 minutes."""
    workspace = await house.claim(OWNER)
    token, found = await house.sessions.issue_admin_grant(
        replace(OWNER, role=role), workspace.workspace_id, AdminPurpose.HEALTH, ORIGIN
    )
    assert found == workspace
    grant = verify_admin_grant(token.reveal(), house.keys, now=house.clock.now())
    assert (grant.tenant_id, grant.user_id) == ("northwind", "user_ada")
    assert (grant.workspace.team_id, grant.workspace.app_id) == ("T0TEAM", "A0APP")
    assert (grant.purpose, grant.slack_user_id) == (AdminPurpose.HEALTH, "")
    assert (grant.expires_at - grant.issued_at).total_seconds() == 300
    assert grant.jti == "id1"


@pytest.mark.parametrize("role", [Role.MEMBER, Role.NONE])
async def test_others_get_no_grant(house: _House, role: Role) -> None:
    """Members, and roles that we do not know, neither administer nor install."""
    workspace = await house.claim(OWNER)
    session = replace(OWNER, role=role)
    with pytest.raises(RoleNotSufficient):
        await house.sessions.issue_admin_grant(
            session, workspace.workspace_id, AdminPurpose.UNINSTALL, ORIGIN
        )
    with pytest.raises(RoleNotSufficient):
        await house.sessions.issue_install_grant(session, "0" * 64, "direct", ORIGIN)


async def test_another_tenants_workspace_looks_absent(house: _House) -> None:
    """An administrator of one tenant cannot tell whether another's workspace exists."""
    workspace = await house.claim(OWNER)
    outsider = replace(OWNER, tenant=CONTOSO)
    refusals = []
    for workspace_id in (workspace.workspace_id, WorkspaceId("wsw_none")):
        with pytest.raises(WorkspaceNotFound) as refusal:
            await house.sessions.issue_admin_grant(
                outsider, workspace_id, AdminPurpose.AUDIT, ORIGIN
            )
        refusals.append(refusal.value.message)
    assert refusals[0] == refusals[1]


async def test_an_install_grant_prepares_the_claim(house: _House) -> None:
    """The organization is known once its administrator starts an install."""
    token = await house.sessions.issue_install_grant(OWNER, "ab" * 32, "nango", ORIGIN)
    grant = verify_install_grant(token.reveal(), house.keys, now=house.clock.now())
    assert (grant.tenant_id, grant.user_id) == ("northwind", "user_ada")
    assert (grant.state_sha256, grant.source) == ("ab" * 32, "nango")
    assert await house.store.forget_organization(NORTHWIND.tenant_id, ORIGIN) == 0
    await house.claim(OWNER)


async def test_an_import_grant_prepares_the_claim_of_a_stranger(house: _House) -> None:
    """An operator names tenant and account; both are known from then on, and it is on record."""
    tenant_id, user_id = TenantId("fabrikam"), UserId("user_fay")
    token = await house.sessions.issue_import_grant(tenant_id, user_id, "direct", ORIGIN)
    grant = verify_install_grant(token.reveal(), house.keys, now=house.clock.now())
    assert (grant.tenant_id, grant.user_id) == ("fabrikam", "user_fay")
    assert (grant.state_sha256, grant.source) == (IMPORT_STATE, "direct")
    assert house.store.audit[-1].purpose == "import"
    assert await house.store.forget_organization(tenant_id, ORIGIN) == 0


async def test_every_grant_is_recorded(house: _House) -> None:
    """The record names who got which grant for what; a refusal leaves none here."""
    workspace = await house.claim(OWNER)
    token, _ = await house.sessions.issue_admin_grant(
        OWNER, workspace.workspace_id, AdminPurpose.AUDIT, ORIGIN
    )
    admin = verify_admin_grant(token.reveal(), house.keys, now=house.clock.now())
    install = verify_install_grant(
        (await house.sessions.issue_install_grant(OWNER, "0" * 64, "direct", ORIGIN)).reveal(),
        house.keys,
        now=house.clock.now(),
    )
    issued = [each for each in house.store.audit if each.event == "grant.issued"]
    assert [(each.token_jti, each.purpose) for each in issued] == [
        (admin.jti, "audit"),
        (install.jti, "install"),
    ]
    assert {(each.tenant_id, each.user_id, each.origin) for each in issued} == {
        ("northwind", "user_ada", ORIGIN)
    }
