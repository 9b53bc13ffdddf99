"""Identity's word on whose a workspace is, over gRPC."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from grpc import aio

from interlock.identity.v1 import identity_pb2, identity_pb2_grpc
from interlock_chassis.client import remote_errors
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_token_vault.credential_sources import ConnectionRef
from interlock_token_vault.domain.install import InstallNotOpen, WorkspaceTaken
from interlock_token_vault.domain.installation import InstallationId, InstallationKey
from interlock_token_vault.install_ports import IdentityUnavailable
from interlock_token_vault.key_lifecycle import NotClaimed
from interlock_token_vault.reporting import GrantedScopes, Notice

# Identity caps its calls at 5 s.
_BUDGET = timedelta(seconds=5)
# What identity takes of Slack's words: of more, or of longer ones, the first suffice.
_MOST_SCOPES = 100
_LONGEST_SCOPE = 100


class IdentityClaims:
    """Identity's WorkspaceService as the ports that the vault has for it."""

    def __init__(self, channel: aio.Channel) -> None:
        self._workspaces = identity_pb2_grpc.WorkspaceServiceStub(channel)

    async def claim(
        self,
        grant: Secret[str],
        installation_id: InstallationId,
        key: InstallationKey,
        name: str,
        connection: ConnectionRef | None = None,
    ) -> bool:
        """Claim a workspace for the grant's tenant; see Claims."""
        request = identity_pb2.ClaimWorkspaceRequest(
            grant=grant.reveal(),
            installation_id=str(installation_id),
            slack_enterprise_id=key.enterprise_id,
            slack_team_id=key.team_id,
            is_enterprise_install=key.is_enterprise_install,
            slack_app_id=key.app_id,
            name=name,
            nango_provider_config_key=connection.provider_config_key if connection else "",
            nango_connection_id=connection.connection_id if connection else "",
        )
        try:
            with remote_errors():
                answer = await self._workspaces.ClaimWorkspace(
                    request, timeout=_BUDGET.total_seconds()
                )
        except RemoteError as error:
            if error.reason == WorkspaceTaken.reason:
                raise WorkspaceTaken from error
            if error.kind is Kind.UNAUTHENTICATED and error.reason == "INVALID_TOKEN":
                raise InstallNotOpen from error
            # Anything else is a fault between the two services, which may pass.
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error
        return answer.was_claimed

    async def move(self, installation_id: InstallationId, key: InstallationKey, name: str) -> None:
        """Move a claim to the Enterprise that its workspace joined; see ClaimMover."""
        request = identity_pb2.ClaimWorkspaceRequest(
            installation_id=str(installation_id),
            slack_enterprise_id=key.enterprise_id,
            slack_team_id=key.team_id,
            slack_app_id=key.app_id,
            name=name,
        )
        try:
            with remote_errors():
                await self._workspaces.ClaimWorkspace(request, timeout=_BUDGET.total_seconds())
        except RemoteError as error:
            if error.reason == WorkspaceTaken.reason:
                raise WorkspaceTaken from error
            if error.reason == "WORKSPACE_NOT_FOUND":
                raise NotClaimed from error
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error

    async def release(self, installation_id: InstallationId, key: InstallationKey) -> None:
        """End the claim that an installation holds; see Releases."""
        request = identity_pb2.ReleaseWorkspaceRequest(
            installation_id=str(installation_id),
            slack_enterprise_id=key.enterprise_id,
            slack_team_id=key.team_id,
        )
        try:
            with remote_errors():
                await self._workspaces.ReleaseWorkspace(request, timeout=_BUDGET.total_seconds())
        except RemoteError as error:
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error

    async def report(
        self, installation_id: InstallationId, key: InstallationKey, *, needs_reinstall: bool
    ) -> None:
        """Say whether an installation needs a reinstall; see Reports."""
        request = identity_pb2.ReportWorkspaceRequest(
            installation_id=str(installation_id),
            slack_enterprise_id=key.enterprise_id,
            slack_team_id=key.team_id,
            needs_reinstall=needs_reinstall,
        )
        try:
            with remote_errors():
                await self._workspaces.ReportWorkspace(request, timeout=_BUDGET.total_seconds())
        except RemoteError as error:
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error

    async def report_scopes(self, granted: GrantedScopes) -> None:
        """Say how an installation's scopes differ; see ScopeReports."""
        request = identity_pb2.ReportScopesRequest(
            installation_id=str(granted.installation_id),
            slack_enterprise_id=granted.key.enterprise_id,
            slack_team_id=granted.key.team_id,
            missing_scopes=_cut(granted.missing),
            extra_scopes=_cut(granted.extra),
        )
        try:
            with remote_errors():
                await self._workspaces.ReportScopes(request, timeout=_BUDGET.total_seconds())
        except RemoteError as error:
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error

    async def take_notices(self) -> list[Notice]:
        """Take the notices that are due; see Notices."""
        request = identity_pb2.TakeNoticesRequest()
        try:
            with remote_errors():
                answer = await self._workspaces.TakeNotices(
                    request, timeout=_BUDGET.total_seconds()
                )
        except RemoteError as error:
            raise IdentityUnavailable(metadata={"cause": error.reason}) from error
        return [
            Notice(InstallationId(UUID(each.installation_id)), each.slack_user_id)
            for each in answer.notices
        ]


def _cut(scopes: Sequence[str]) -> list[str]:
    return [each[:_LONGEST_SCOPE] for each in scopes[:_MOST_SCOPES]]
