"""OperatorService: what operators do to the vault. No method returns a token."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from typing_extensions import override

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.errors import InvalidArgument
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.restore_staging import RestoreStaging
from interlock_token_vault.app_keys import AppKeys, KeptPlace
from interlock_token_vault.auditing import AuditExport
from interlock_token_vault.domain.app_record import AppPlace
from interlock_token_vault.domain.backup import BackupPart
from interlock_token_vault.domain.installation import ClientId, InstallationId
from interlock_token_vault.installing import Installing
from interlock_token_vault.key_lifecycle import KeyLifecycle, SlackPlace
from interlock_token_vault.restoring import Restoring
from interlock_token_vault.rpc import GrantReader, call_origin, installation_message
from interlock_token_vault.vault import TokenVault

if TYPE_CHECKING:
    from typing import TypeVar

    _Q = TypeVar("_Q")
    _A = TypeVar("_A")
    # Generic in the stubs only.
    _Context = aio.ServicerContext[_Q, Awaitable[_A]]
    _Stream = aio.ServicerContext[_Q, AsyncIterator[_A]]


_PARTS = {
    pb.BACKUP_PART_SEALED: BackupPart.SEALED,
    pb.BACKUP_PART_KEYS: BackupPart.KEYS,
}


class OperatorRpc(services.OperatorServiceServicer):
    """OperatorService."""

    def __init__(
        self,
        vault: TokenVault,
        export: AuditExport,
        keys: KeyLifecycle,
        restoring: Restoring,
        staging: RestoreStaging,
        *,
        app_keys: AppKeys,
        installing: Installing,
        grants: GrantReader,
    ) -> None:
        self._vault = vault
        self._export = export
        self._keys = keys
        self._app_keys = app_keys
        self._installing = installing
        self._grants = grants
        self._restoring = restoring
        self._staging = staging

    @override
    async def ImportToken(
        self,
        request: pb.ImportTokenRequest,
        context: "_Context[pb.ImportTokenRequest, pb.ImportTokenResponse]",
    ) -> pb.ImportTokenResponse:
        ask = await self._grants.for_install(request.grant)
        is_direct = ask.source == "direct"
        if bool(request.bot_token) != is_direct or bool(request.connection_id) == is_direct:
            raise InvalidArgument
        token = Secret(request.bot_token) if is_direct else None
        if request.dry_run:
            found = await self._installing.inspect(ask, token, request.connection_id)
            return pb.ImportTokenResponse(installation=installation_message(found))
        installed = (
            await self._installing.import_token(ask, token)
            if token
            else await self._installing.import_connection(ask, request.connection_id)
        )
        return pb.ImportTokenResponse(
            installation=installation_message(installed.installation),
            is_reinstall=installed.is_reinstall,
        )

    @override
    async def Backup(
        self,
        request: pb.BackupRequest,
        context: "_Stream[pb.BackupRequest, pb.BackupResponse]",
    ) -> AsyncIterator[pb.BackupResponse]:
        async with aclosing(self._restoring.backup(_PARTS[request.part], call_origin())) as chunks:
            async for chunk in chunks:
                yield pb.BackupResponse(chunk=chunk)

    @override
    async def StageRestore(
        self,
        request: pb.StageRestoreRequest,
        context: "_Context[pb.StageRestoreRequest, pb.StageRestoreResponse]",
    ) -> pb.StageRestoreResponse:
        restore_id, part = UUID(request.restore_id), _PARTS[request.part]
        self._staging.put(restore_id, part, request.offset, request.chunk)
        return pb.StageRestoreResponse()

    @override
    async def Restore(
        self,
        request: pb.RestoreRequest,
        context: "_Stream[pb.RestoreRequest, pb.RestoreResponse]",
    ) -> AsyncIterator[pb.RestoreResponse]:
        with self._staging.taken(UUID(request.restore_id)) as files:
            progresses = self._restoring.restore(
                files[BackupPart.SEALED],
                files[BackupPart.KEYS],
                call_origin(),
                dry_run=request.dry_run,
            )
            async with aclosing(progresses):
                async for progress in progresses:
                    yield pb.RestoreResponse(
                        done=progress.done,
                        total=progress.total,
                        skipped=progress.skipped,
                        lost=progress.lost,
                    )

    @override
    async def BuryInstallations(
        self,
        request: pb.BuryInstallationsRequest,
        context: "_Context[pb.BuryInstallationsRequest, pb.BuryInstallationsResponse]",
    ) -> pb.BuryInstallationsResponse:
        ids = [_installation_id(each) for each in request.installation_ids]
        return pb.BuryInstallationsResponse(buried=await self._restoring.bury(ids, call_origin()))

    @override
    async def ReleaseHold(
        self,
        request: pb.ReleaseHoldRequest,
        context: "_Stream[pb.ReleaseHoldRequest, pb.ReleaseHoldResponse]",
    ) -> AsyncIterator[pb.ReleaseHoldResponse]:
        async with aclosing(self._restoring.release_hold(call_origin())) as probes:
            async for probed in probes:
                yield pb.ReleaseHoldResponse(
                    installation_id=str(probed.installation_id),
                    enterprise_id=probed.enterprise_id,
                    team_id=probed.team_id,
                    name=probed.name,
                    released=probed.is_released,
                    reason=probed.reason,
                )

    @override
    async def ListKeys(
        self,
        request: pb.ListKeysRequest,
        context: "_Context[pb.ListKeysRequest, pb.ListKeysResponse]",
    ) -> pb.ListKeysResponse:
        return pb.ListKeysResponse(
            keys=[
                pb.KekStatus(
                    version=use.version, primary=use.is_primary, wrapped_deks=use.wrapped_deks
                )
                for use in await self._keys.list_keks()
            ]
        )

    @override
    async def PromoteKey(
        self,
        request: pb.PromoteKeyRequest,
        context: "_Context[pb.PromoteKeyRequest, pb.PromoteKeyResponse]",
    ) -> pb.PromoteKeyResponse:
        await self._keys.promote(request.version, call_origin())
        return pb.PromoteKeyResponse()

    @override
    async def RetireKey(
        self,
        request: pb.RetireKeyRequest,
        context: "_Context[pb.RetireKeyRequest, pb.RetireKeyResponse]",
    ) -> pb.RetireKeyResponse:
        await self._keys.retire(request.version, call_origin())
        return pb.RetireKeyResponse()

    @override
    async def RewrapKeys(
        self,
        request: pb.RewrapKeysRequest,
        context: "_Stream[pb.RewrapKeysRequest, pb.RewrapKeysResponse]",
    ) -> AsyncIterator[pb.RewrapKeysResponse]:
        # Closed with the call: who hangs up gives the right to re-wrap back.
        async with aclosing(
            self._keys.rewrap(call_origin(), dry_run=request.dry_run)
        ) as progresses:
            async for progress in progresses:
                yield pb.RewrapKeysResponse(
                    done=progress.done, total=progress.total, failed=progress.failed
                )

    @override
    async def RotateDataKey(
        self,
        request: pb.RotateDataKeyRequest,
        context: "_Context[pb.RotateDataKeyRequest, pb.RotateDataKeyResponse]",
    ) -> pb.RotateDataKeyResponse:
        where, origin = _installation_id(request.installation_id), call_origin()
        is_apps = await self._app_keys.is_apps(where)
        keys = self._app_keys if is_apps else self._keys
        return pb.RotateDataKeyResponse(tokens=await keys.rotate_dek(where, origin))

    @override
    async def RekeyInstallation(
        self,
        request: pb.RekeyInstallationRequest,
        context: "_Context[pb.RekeyInstallationRequest, pb.RekeyInstallationResponse]",
    ) -> pb.RekeyInstallationResponse:
        where = _installation_id(request.installation_id)
        tokens = await self._keys.rekey(where, request.enterprise_id, call_origin())
        return pb.RekeyInstallationResponse(tokens=tokens)

    @override
    async def ShredInstallation(
        self,
        request: pb.ShredInstallationRequest,
        context: "_Context[pb.ShredInstallationRequest, pb.ShredInstallationResponse]",
    ) -> pb.ShredInstallationResponse:
        place = SlackPlace(request.enterprise_id, request.team_id)
        if bool(request.installation_id) == (place != SlackPlace("", "")):
            raise InvalidArgument("name the installation by its id, or as Slack does")
        if request.client_id and request.installation_id:
            raise InvalidArgument("an id needs no client")
        if (app := await self._find_apps(request)) is not None:
            kept = await self._app_keys.shred(app, call_origin(), dry_run=request.dry_run)
            return pb.ShredInstallationResponse(installation=_place_message(kept))
        name = _installation_id(request.installation_id) if request.installation_id else place
        shredded = await self._keys.shred(name, call_origin(), dry_run=request.dry_run)
        return pb.ShredInstallationResponse(installation=installation_message(shredded))

    async def _find_apps(
        self, request: pb.ShredInstallationRequest
    ) -> InstallationId | AppPlace | None:
        """Tell a place of another app from an installation of Interlock's own."""
        if request.client_id:
            client_id = ClientId(request.client_id)
            return AppPlace(client_id, request.enterprise_id, request.team_id)
        if not request.installation_id:
            return None
        where = _installation_id(request.installation_id)
        return where if await self._app_keys.is_apps(where) else None

    @override
    async def SetFreeze(
        self,
        request: pb.SetFreezeRequest,
        context: "_Context[pb.SetFreezeRequest, pb.SetFreezeResponse]",
    ) -> pb.SetFreezeResponse:
        where = _installation_id(request.installation_id) if request.installation_id else None
        change = self._vault.freeze if request.frozen else self._vault.unfreeze
        await change(where, request.note, call_origin())
        return pb.SetFreezeResponse()

    @override
    async def ExportAudit(
        self,
        request: pb.ExportAuditRequest,
        context: "_Stream[pb.ExportAuditRequest, pb.ExportAuditResponse]",
    ) -> AsyncIterator[pb.ExportAuditResponse]:
        lines = self._export.lines(
            _instant(request, "from"), _instant(request, "to"), request.tenant_id, call_origin()
        )
        async for chunk in lines:
            yield pb.ExportAuditResponse(ndjson=chunk)


def _place_message(kept: KeptPlace) -> pb.Installation:
    return pb.Installation(
        installation_id=str(kept.installation_id),
        enterprise_id=kept.place.enterprise_id,
        team_id=kept.place.team_id,
        is_enterprise_install=not kept.place.team_id,
    )


def _instant(request: pb.ExportAuditRequest, field: Literal["from", "to"]) -> datetime | None:
    if not request.HasField(field):
        return None
    stamp: Timestamp = getattr(request, field)
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} is not an instant") from None


def _installation_id(text: str) -> InstallationId:
    try:
        return InstallationId(UUID(text))
    except ValueError:
        raise InvalidArgument("installation_id is not a UUID") from None
