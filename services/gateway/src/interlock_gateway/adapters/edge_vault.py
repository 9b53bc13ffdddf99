"""The token vault over gRPC, as edge may call it. No method of it answers a token."""

from collections.abc import Mapping
from datetime import UTC

from grpc import aio

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import (
    AuditServiceStub,
    InstallServiceStub,
)
from interlock_chassis.client import remote_errors
from interlock_chassis.secret import Secret
from interlock_gateway.edge.ports import AuditEvent, ConnectSession, Installed, Page, Workspace

_SECONDS = 5.0
# The vault caps an install at 30 s: Slack is asked twice in it, and identity once.
_INSTALL_SECONDS = 30.0
# Nango waits 20 s, and what is completed by a hint takes as long as an install.
_WEBHOOK_SECONDS = 18.0


class GrpcVault:
    """`interlock.token_vault.v1` behind edge's port."""

    def __init__(self, channel: aio.Channel) -> None:
        self._installs = InstallServiceStub(channel)
        self._audit = AuditServiceStub(channel)

    async def start_install(self, grant: Secret[str]) -> str:
        """Open an install; see `Vault`."""
        request = pb.StartInstallRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._installs.StartInstall(request, timeout=_SECONDS)
        return answer.authorize_url

    async def complete_install(
        self, grant: Secret[str], code: Secret[str], redirect_uri: str
    ) -> Installed:
        """Exchange the code and activate the installation; see `Vault`."""
        request = pb.CompleteOAuthInstallRequest(
            grant=grant.reveal(), code=code.reveal(), redirect_uri=redirect_uri
        )
        with remote_errors():
            answer = await self._installs.CompleteOAuthInstall(request, timeout=_INSTALL_SECONDS)
        installation = answer.installation
        return Installed(
            slack_team_id=installation.team_id or installation.enterprise_id,
            is_reinstall=answer.is_reinstall,
            extra_scopes=tuple(answer.extra_scopes),
        )

    async def start_connecting(
        self, grant: Secret[str], renews: Workspace | None
    ) -> ConnectSession:
        """Open an install by Nango; see `Vault`."""
        request = pb.StartInstallRequest(grant=grant.reveal(), renews=_renewed(renews))
        with remote_errors():
            answer = await self._installs.StartInstall(request, timeout=_SECONDS)
        return ConnectSession(
            Secret(answer.connect_session_token),
            Secret(answer.connect_link),
            answer.connect_expires_at.ToDatetime(tzinfo=UTC),
        )

    async def complete_connection(
        self, grant: Secret[str], provider_config_key: str, connection_id: str
    ) -> Installed:
        """Take a connection and activate the installation; see `Vault`."""
        request = pb.CompleteNangoInstallRequest(
            grant=grant.reveal(),
            provider_config_key=provider_config_key,
            connection_id=connection_id,
        )
        with remote_errors():
            answer = await self._installs.CompleteNangoInstall(request, timeout=_INSTALL_SECONDS)
        return _by_nango(answer)

    async def find_connected(self, grant: Secret[str]) -> Installed:
        """Say what came of an install by Nango; see `Vault`."""
        request = pb.FindNangoInstallRequest(grant=grant.reveal())
        with remote_errors():
            answer = await self._installs.FindNangoInstall(request, timeout=_SECONDS)
        return _by_nango(answer)

    async def receive_nango_webhook(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Hand a webhook over; see `Vault`."""
        request = pb.ReceiveNangoWebhookRequest(body=body, headers=headers)
        with remote_errors():
            await self._installs.ReceiveNangoWebhook(request, timeout=_WEBHOOK_SECONDS)

    async def list_audit_events(self, grant: Secret[str], page_token: str) -> Page[AuditEvent]:
        """List a workspace's audit events; see `Vault`."""
        request = pb.ListAuditEventsRequest(grant=grant.reveal(), page_token=page_token)
        with remote_errors():
            answer = await self._audit.ListAuditEvents(request, timeout=_SECONDS)
        return Page(tuple(_event(each) for each in answer.events), answer.next_page_token)


def _by_nango(
    answer: pb.CompleteNangoInstallResponse | pb.FindNangoInstallResponse,
) -> Installed:
    installation = answer.installation
    return Installed(
        slack_team_id=installation.team_id or installation.enterprise_id,
        is_reinstall=answer.is_reinstall,
        extra_scopes=(),
    )


def _renewed(workspace: Workspace | None) -> pb.Installation | None:
    if workspace is None:
        return None
    return pb.Installation(
        enterprise_id=workspace.slack_enterprise_id,
        team_id="" if workspace.is_enterprise_install else workspace.slack_team_id,
        is_enterprise_install=workspace.is_enterprise_install,
        app_id=workspace.slack_app_id,
    )


def _event(message: pb.AuditEvent) -> AuditEvent:
    return AuditEvent(
        chain_id=message.chain_id,
        seq=message.seq,
        at=message.at.ToDatetime(tzinfo=UTC),
        action=message.action,
        actor=message.actor,
        rpc=message.rpc,
        purpose=message.purpose,
        grant_id=message.grant_id,
        token_kind=message.token_kind,
        outcome=message.outcome,
        token_ref=message.token_ref,
        generation=message.generation,
        kek_version=message.kek_version,
        dek_source=message.dek_source,
        request_id=message.request_id,
        subject=message.subject,
        count=message.count,
    )
