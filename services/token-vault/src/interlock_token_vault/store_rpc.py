"""InstallationStoreService: Bolt's records in and out; the caller's certificate says whose.

Refresh tokens are taken in and never given out, so that no app rotates a token
that the vault holds.
"""

import json
from collections.abc import Awaitable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from typing_extensions import override

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.errors import InvalidArgument
from interlock_chassis.secret import Secret
from interlock_chassis.server import current_call
from interlock_token_vault.adapters.registered_apps import AppNotRegistered, RegisteredApps
from interlock_token_vault.app_installations import AppInstallations
from interlock_token_vault.domain.app_record import AppPlace, AppRecord, RecordKind, SecretName
from interlock_token_vault.domain.installation import is_slack_user_id
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.rpc import call_origin, timestamp

if TYPE_CHECKING:
    from typing import TypeVar

    _Q = TypeVar("_Q")
    _A = TypeVar("_A")
    # Generic in the stubs only.
    _Context = aio.ServicerContext[_Q, Awaitable[_A]]

# What is no secret, by field of the record; a bot's fields are kept under its own names.
_INSTALLATION_TEXTS = (
    "app_id",
    "enterprise_name",
    "enterprise_url",
    "team_name",
    "incoming_webhook_channel",
    "incoming_webhook_channel_id",
    "token_type",
)
_BOT_TEXTS = ("app_id", "enterprise_name", "team_name", "bot_id", "bot_user_id")
_INSTALLATION_SECRETS = {
    SecretName.USER_TOKEN: "user_token",
    SecretName.USER_REFRESH_TOKEN: "user_refresh_token",
    SecretName.WEBHOOK_URL: "incoming_webhook_url",
    SecretName.WEBHOOK_CONFIGURATION_URL: "incoming_webhook_configuration_url",
}
_BOT_SECRETS = {
    SecretName.BOT_TOKEN: "bot_token",
    SecretName.BOT_REFRESH_TOKEN: "bot_refresh_token",
}


class StoreRpc(services.InstallationStoreServiceServicer):
    """InstallationStoreService."""

    def __init__(
        self, installations: AppInstallations, apps: RegisteredApps, refusals: Refusals
    ) -> None:
        self._installations = installations
        self._apps = apps
        self._refusals = refusals

    @override
    async def FindInstallation(
        self,
        request: pb.FindInstallationRequest,
        context: "_Context[pb.FindInstallationRequest, pb.FindInstallationResponse]",
    ) -> pb.FindInstallationResponse:
        is_org = request.is_enterprise_install
        place = await self._place(request.enterprise_id, request.team_id, is_org=is_org)
        record = await self._installations.find_installation(place, request.user_id, call_origin())
        return pb.FindInstallationResponse(installation=_installation_of(place, record))

    @override
    async def FindBot(
        self,
        request: pb.FindBotRequest,
        context: "_Context[pb.FindBotRequest, pb.FindBotResponse]",
    ) -> pb.FindBotResponse:
        is_org = request.is_enterprise_install
        place = await self._place(request.enterprise_id, request.team_id, is_org=is_org)
        record = await self._installations.find_bot(place, call_origin())
        return pb.FindBotResponse(bot=_bot_of(place, record))

    @override
    async def SaveInstallation(
        self,
        request: pb.SaveInstallationRequest,
        context: "_Context[pb.SaveInstallationRequest, pb.SaveInstallationResponse]",
    ) -> pb.SaveInstallationResponse:
        given = request.installation
        is_org = given.is_enterprise_install
        place = await self._place(given.enterprise_id, given.team_id, is_org=is_org)
        records = [_installation_record(given)]
        if given.bot.bot_token:
            records.append(_bot_record(given.bot, given))
        await self._installations.save(place, records, call_origin())
        return pb.SaveInstallationResponse()

    @override
    async def SaveBot(
        self,
        request: pb.SaveBotRequest,
        context: "_Context[pb.SaveBotRequest, pb.SaveBotResponse]",
    ) -> pb.SaveBotResponse:
        given = request.bot
        is_org = given.is_enterprise_install
        place = await self._place(given.enterprise_id, given.team_id, is_org=is_org)
        await self._installations.save(place, [_bot_record(given, given)], call_origin())
        return pb.SaveBotResponse()

    @override
    async def DeleteInstallation(
        self,
        request: pb.DeleteInstallationRequest,
        context: "_Context[pb.DeleteInstallationRequest, pb.DeleteInstallationResponse]",
    ) -> pb.DeleteInstallationResponse:
        place = await self._place(request.enterprise_id, request.team_id, is_org=False)
        kind = RecordKind.INSTALLATION
        await self._installations.delete(place, kind, request.user_id, call_origin())
        return pb.DeleteInstallationResponse()

    @override
    async def DeleteBot(
        self,
        request: pb.DeleteBotRequest,
        context: "_Context[pb.DeleteBotRequest, pb.DeleteBotResponse]",
    ) -> pb.DeleteBotResponse:
        place = await self._place(request.enterprise_id, request.team_id, is_org=False)
        await self._installations.delete(place, RecordKind.BOT, "", call_origin())
        return pb.DeleteBotResponse()

    async def _place(self, enterprise_id: str, team_id: str, *, is_org: bool) -> AppPlace:
        """Take the app from the caller, and the place as Slack keys it."""
        try:
            client_id = self._apps.client_of(current_call().caller)
        except AppNotRegistered as refusal:
            await self._refusals.note(call_origin(), refusal.reason)
            raise
        place = AppPlace(client_id, enterprise_id, "" if is_org else team_id)
        if not place.enterprise_id and not place.team_id:
            raise InvalidArgument("neither an Enterprise nor a team is named")
        return place


def _installation_record(given: pb.InstallationRecord) -> AppRecord:
    if given.user_id and not is_slack_user_id(given.user_id):
        raise InvalidArgument("user_id is not a Slack user's")
    details: dict[str, object] = {name: getattr(given, name) for name in _INSTALLATION_TEXTS}
    details["user_scopes"] = list(given.user_scopes)
    details["user_token_expires_at"] = _seconds(given, "user_token_expires_at")
    secrets = _secrets(given, _INSTALLATION_SECRETS, given.custom_values_json)
    if given.HasField("bot"):
        details |= _bot_details(given.bot)
        secrets |= _secrets(given.bot, _BOT_SECRETS, {})
    return AppRecord(RecordKind.INSTALLATION, given.user_id, _installed_at(given), details, secrets)


def _bot_record(bot: pb.BotRecord, source: "pb.BotRecord | pb.InstallationRecord") -> AppRecord:
    """Make a bot's record; saved with an installation it takes that one's time and values."""
    details: dict[str, object] = {name: getattr(source, name) for name in _BOT_TEXTS[:3]}
    details |= _bot_details(bot)
    secrets = _secrets(bot, _BOT_SECRETS, source.custom_values_json)
    return AppRecord(RecordKind.BOT, "", _installed_at(source), details, secrets)


def _bot_details(bot: pb.BotRecord) -> dict[str, object]:
    return {
        "bot_id": bot.bot_id,
        "bot_user_id": bot.bot_user_id,
        "bot_scopes": list(bot.bot_scopes),
        "bot_token_expires_at": _seconds(bot, "bot_token_expires_at"),
    }


def _secrets(
    given: object, names: Mapping[SecretName, str], custom_values: Mapping[str, str]
) -> dict[SecretName, Secret[str]]:
    secrets = {
        name: Secret(value) for name, field in names.items() if (value := getattr(given, field))
    }
    if custom_values:
        # An app may keep secrets of its own there.
        secrets[SecretName.CUSTOM_VALUES] = Secret(json.dumps(dict(custom_values)))
    return secrets


def _installed_at(given: "pb.BotRecord | pb.InstallationRecord") -> datetime:
    if not given.HasField("installed_at"):
        raise InvalidArgument("installed_at is missing")
    try:
        return given.installed_at.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument("installed_at is not an instant") from None


def _seconds(given: Any, field: str) -> float | None:
    if not given.HasField(field):
        return None
    stamp: Timestamp = getattr(given, field)
    return stamp.seconds + stamp.nanos / 1e9


def _installation_of(place: AppPlace, record: AppRecord) -> pb.InstallationRecord:
    installation = pb.InstallationRecord(
        enterprise_id=place.enterprise_id,
        team_id=place.team_id,
        user_id=record.user_id,
        is_enterprise_install=not place.team_id,
        installed_at=timestamp(record.installed_at),
        user_scopes=_scopes(record, "user_scopes"),
        user_token_expires_at=_stamp(record, "user_token_expires_at"),
        **_texts(record, _INSTALLATION_TEXTS),
    )
    _reveal(installation, record, _INSTALLATION_SECRETS)
    _reveal_values(installation.custom_values_json, record)
    if SecretName.BOT_TOKEN in record.secrets or record.details.get("bot_id"):
        installation.bot.CopyFrom(_bot_of(place, record))
        installation.bot.custom_values_json.clear()
    return installation


def _bot_of(place: AppPlace, record: AppRecord) -> pb.BotRecord:
    bot = pb.BotRecord(
        enterprise_id=place.enterprise_id,
        team_id=place.team_id,
        is_enterprise_install=not place.team_id,
        installed_at=timestamp(record.installed_at),
        bot_scopes=_scopes(record, "bot_scopes"),
        bot_token_expires_at=_stamp(record, "bot_token_expires_at"),
        **_texts(record, _BOT_TEXTS),
    )
    _reveal(bot, record, {SecretName.BOT_TOKEN: "bot_token"})
    _reveal_values(bot.custom_values_json, record)
    return bot


def _reveal(message: object, record: AppRecord, names: Mapping[SecretName, str]) -> None:
    for name, field in names.items():
        if name in record.secrets:
            setattr(message, field, record.secrets[name].reveal())


def _reveal_values(values: MutableMapping[str, str], record: AppRecord) -> None:
    kept = record.secrets.get(SecretName.CUSTOM_VALUES)
    if kept is not None:
        values.update(json.loads(kept.reveal()))


def _texts(record: AppRecord, names: Iterable[str]) -> dict[str, Any]:
    return {name: str(record.details.get(name) or "") for name in names}


def _scopes(record: AppRecord, name: str) -> list[str]:
    scopes = record.details.get(name)
    return [str(scope) for scope in scopes] if isinstance(scopes, list) else []


def _stamp(record: AppRecord, name: str) -> Timestamp | None:
    seconds = record.details.get(name)
    if not isinstance(seconds, int | float):
        return None
    return timestamp(datetime.fromtimestamp(seconds, UTC))
