"""Browser sessions, and the grants that signed-in people get.

A person is proved by the auth server's cookie, never by a user id, and the
auth server is asked each time: a role that ended a moment ago is worth nothing.
"""

from collections.abc import Callable
from typing import Protocol

from interlock_chassis.clock import Clock
from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_identity.auditing import AuditLog
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.people import Person, Session, SessionProof, Tenant, TenantId, UserId
from interlock_identity.domain.requester import workspace_of
from interlock_identity.domain.workspaces import Workspace, WorkspaceId
from interlock_identity.workspaces import WorkspaceStore
from interlock_tokens.grants import IMPORT_STATE, AdminPurpose, InstallSource
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_admin_grant, sign_install_grant


class NotSignedIn(ServiceError):
    """The browser is not signed in."""

    kind = Kind.UNAUTHENTICATED
    reason = "NOT_SIGNED_IN"


class NotAMember(ServiceError):
    """The session has no active organization, or its person is not a member of it."""

    kind = Kind.FORBIDDEN
    reason = "NOT_A_MEMBER"


class AuthServerUnavailable(ServiceError):
    """The auth server does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "AUTH_SERVER_UNAVAILABLE"


class SessionSource(Protocol):
    """The auth server."""

    async def authenticate(self, proof: SessionProof) -> Session:
        """Say who is signed in, with the role held at this moment.

        Raises:
            NotSignedIn: The cookie is absent, forged, expired or signed out.
            NotAMember: No organization is active, or the person left it.
            AuthServerUnavailable: The auth server does not answer, or not as agreed.
        """
        ...


class PeopleStore(Protocol):
    """Identity's own rows of accounts and organizations, which other rows stand on."""

    async def remember(self, person: Person, tenant: Tenant) -> None:
        """Keep an account and an organization, as a verified session names them.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...

    async def note(self, user_id: UserId, tenant_id: TenantId) -> None:
        """Keep an account and an organization without their names; known ones stay as they are.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ...


class Sessions:
    """Say who is signed in, and sign what they may do."""

    def __init__(
        self,
        *,
        source: SessionSource,
        people: PeopleStore,
        workspaces: WorkspaceStore,
        audit: AuditLog,
        grant_keys: Keyset,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._source = source
        self._people = people
        self._workspaces = workspaces
        self._audit = audit
        self._grant_keys = grant_keys
        self._clock = clock
        self._new_id = new_id

    async def authenticate(self, proof: SessionProof) -> Session:
        """Say who is signed in; see `SessionSource`. Writes nothing."""
        return await self._source.authenticate(proof)

    async def issue_admin_grant(
        self, session: Session, workspace_id: WorkspaceId, purpose: AdminPurpose, origin: Origin
    ) -> tuple[Secret[str], Workspace]:
        """Sign an adminGrant for one purpose on one workspace of the tenant.

        Commits the record of it first.

        Raises:
            RoleNotSufficient: The person is neither owner nor admin.
            WorkspaceNotFound: The tenant has no such workspace.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_administrator()
        tenant_id, user_id = session.tenant.tenant_id, session.person.user_id
        found = await self._workspaces.get_workspace(tenant_id, workspace_id)
        jti = self._new_id()
        grant = sign_admin_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=jti,
            workspace=workspace_of(found.key),
            tenant_id=tenant_id,
            user_id=user_id,
            purpose=purpose,
        )
        event = AuditEvent(
            "grant.issued", origin, user_id=user_id, token_jti=jti, purpose=purpose.value
        )
        await self._audit.record([event.of_workspace(tenant_id, workspace_id)])
        return grant, found

    async def issue_install_grant(
        self, session: Session, state_sha256: str, source: InstallSource, origin: Origin
    ) -> Secret[str]:
        """Sign an installGrant for the session's tenant.

        Keeps the account and the organization, which the coming claim stands
        on, and commits the record of the grant first.

        Raises:
            RoleNotSufficient: The person is neither owner nor admin.
            DatabaseUnavailable: The database does not answer.
        """
        session.require_administrator()
        await self._people.remember(session.person, session.tenant)
        tenant_id, user_id = session.tenant.tenant_id, session.person.user_id
        jti = self._new_id()
        grant = sign_install_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=jti,
            tenant_id=tenant_id,
            user_id=user_id,
            state_sha256=state_sha256,
            source=source,
        )
        event = AuditEvent(
            "grant.issued",
            origin,
            tenant_id=tenant_id,
            user_id=user_id,
            token_jti=jti,
            purpose="install",
        )
        await self._audit.record([event])
        return grant

    async def issue_import_grant(
        self, tenant_id: TenantId, user_id: UserId, source: InstallSource, origin: Origin
    ) -> Secret[str]:
        """Sign an installGrant for a tenant whose workspace an operator moves in.

        Keeps account and organization where they are not known yet, and commits
        the record of the grant first.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        await self._people.note(user_id, tenant_id)
        jti = self._new_id()
        grant = sign_install_grant(
            self._grant_keys,
            now=self._clock.now(),
            jti=jti,
            tenant_id=tenant_id,
            user_id=user_id,
            # The same in every import: there is no browser to come back.
            state_sha256=IMPORT_STATE,
            source=source,
        )
        event = AuditEvent(
            "grant.issued",
            origin,
            tenant_id=tenant_id,
            user_id=user_id,
            token_jti=jti,
            purpose="import",
        )
        await self._audit.record([event])
        return grant
