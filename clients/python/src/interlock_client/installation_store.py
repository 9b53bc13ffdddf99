"""Bolt's asynchronous installation store, over gRPC to the token vault."""

import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from logging import Logger
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from slack_sdk.oauth.installation_store import Bot, Installation
from slack_sdk.oauth.installation_store.async_installation_store import AsyncInstallationStore

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1.token_vault_pb2_grpc import InstallationStoreServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.tls import TlsFiles

# The vault's own cap of these calls.
_TIMEOUT_S = 5.0

_BOT_TEXTS = ("app_id", "enterprise_id", "enterprise_name", "team_id", "team_name")
_INSTALLATION_TEXTS = (
    *_BOT_TEXTS,
    "enterprise_url",
    "user_id",
    "user_token",
    "user_refresh_token",
    "incoming_webhook_url",
    "incoming_webhook_channel",
    "incoming_webhook_channel_id",
    "incoming_webhook_configuration_url",
    "token_type",
)
_BOT_PART = ("bot_token", "bot_id", "bot_user_id", "bot_refresh_token")


class VaultInstallationStore(AsyncInstallationStore):
    """An AsyncInstallationStore whose records are in the token vault.

    What is found has no refresh tokens: the vault keeps them.

    Args:
        channel: To the vault, with the app's certificate.
        logger: What Bolt is told to log with.
    """

    def __init__(self, channel: aio.Channel, logger: Logger | None = None) -> None:
        self._vault = InstallationStoreServiceStub(channel)
        self._logger = logger or logging.getLogger(__name__)

    @property
    def logger(self) -> Logger:
        """The logger; tokens never go to it."""
        return self._logger

    async def async_save(self, installation: Installation) -> None:
        """Save an installation, and its bot if it has one.

        Replaces the record of the same place, user and `installed_at`.

        Raises:
            RemoteError: The vault refuses, or does not answer.
        """
        request = pb.SaveInstallationRequest(installation=_installation_message(installation))
        with remote_errors():
            await self._vault.SaveInstallation(request, timeout=_TIMEOUT_S)

    async def async_save_bot(self, bot: Bot) -> None:
        """Save a bot; raises as async_save."""
        request = pb.SaveBotRequest(bot=_bot_message(bot))
        with remote_errors():
            await self._vault.SaveBot(request, timeout=_TIMEOUT_S)

    async def async_find_bot(
        self,
        *,
        enterprise_id: str | None,
        team_id: str | None,
        is_enterprise_install: bool | None = False,
    ) -> Bot | None:
        """Find the newest bot that has a token; raises as async_save."""
        if not (enterprise_id or team_id):
            return None
        request = pb.FindBotRequest(
            enterprise_id=enterprise_id or "",
            team_id=team_id or "",
            is_enterprise_install=bool(is_enterprise_install),
        )
        try:
            with remote_errors():
                answer = await self._vault.FindBot(request, timeout=_TIMEOUT_S)
        except RemoteError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        return _bot(answer.bot)

    async def async_find_installation(
        self,
        *,
        enterprise_id: str | None,
        team_id: str | None,
        user_id: str | None = None,
        is_enterprise_install: bool | None = False,
    ) -> Installation | None:
        """Find the newest installation, of one user or of anybody; raises as async_save."""
        if not (enterprise_id or team_id):
            return None
        request = pb.FindInstallationRequest(
            enterprise_id=enterprise_id or "",
            team_id=team_id or "",
            user_id=user_id or "",
            is_enterprise_install=bool(is_enterprise_install),
        )
        try:
            with remote_errors():
                answer = await self._vault.FindInstallation(request, timeout=_TIMEOUT_S)
        except RemoteError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        return _installation(answer.installation)

    async def async_delete_bot(self, *, enterprise_id: str | None, team_id: str | None) -> None:
        """Delete a bot with its history, leaving installations; raises as async_save."""
        if not (enterprise_id or team_id):
            return
        request = pb.DeleteBotRequest(enterprise_id=enterprise_id or "", team_id=team_id or "")
        with remote_errors():
            await self._vault.DeleteBot(request, timeout=_TIMEOUT_S)

    async def async_delete_installation(
        self, *, enterprise_id: str | None, team_id: str | None, user_id: str | None = None
    ) -> None:
        """Delete installations with their history, leaving bots; raises as async_save."""
        if not (enterprise_id or team_id):
            return
        request = pb.DeleteInstallationRequest(
            enterprise_id=enterprise_id or "", team_id=team_id or "", user_id=user_id or ""
        )
        with remote_errors():
            await self._vault.DeleteInstallation(request, timeout=_TIMEOUT_S)


@asynccontextmanager
async def open_installation_store(
    address: str, tls: TlsFiles, *, logger: Logger | None = None
) -> AsyncIterator[VaultInstallationStore]:
    """Open a store on a channel of its own, closed on leaving.

    Connects at the first call; a renewed certificate is used without a restart.

    Args:
        address: Where the vault is, `host:port`.
        tls: The app's certificate and the authority of the vault's.
        logger: As in VaultInstallationStore.

    Raises:
        ConfigError: A TLS file cannot be read.
    """
    async with open_channel(address, tls, server="token-vault") as channel:
        yield VaultInstallationStore(channel, logger)


def _installation_message(installation: Installation) -> pb.InstallationRecord:
    message = pb.InstallationRecord(
        user_scopes=installation.user_scopes or (),
        user_token_expires_at=_stamp(installation.user_token_expires_at),
        is_enterprise_install=bool(installation.is_enterprise_install),
        installed_at=_stamp(installation.installed_at),
        custom_values_json=_dumped(installation.custom_values),
        **_texts(installation, _INSTALLATION_TEXTS),
    )
    if installation.bot_token or installation.bot_id:
        message.bot.CopyFrom(
            pb.BotRecord(
                bot_scopes=installation.bot_scopes or (),
                bot_token_expires_at=_stamp(installation.bot_token_expires_at),
                **_texts(installation, _BOT_PART),
            )
        )
    return message


def _bot_message(bot: Bot) -> pb.BotRecord:
    return pb.BotRecord(
        bot_scopes=bot.bot_scopes or (),
        bot_token_expires_at=_stamp(bot.bot_token_expires_at),
        is_enterprise_install=bool(bot.is_enterprise_install),
        installed_at=_stamp(bot.installed_at),
        custom_values_json=_dumped(bot.custom_values),
        **_texts(bot, (*_BOT_TEXTS, *_BOT_PART)),
    )


def _installation(message: pb.InstallationRecord) -> Installation:
    bot = message.bot
    return Installation(
        app_id=message.app_id or None,
        enterprise_id=message.enterprise_id or None,
        enterprise_name=message.enterprise_name or None,
        enterprise_url=message.enterprise_url or None,
        team_id=message.team_id or None,
        team_name=message.team_name or None,
        bot_token=bot.bot_token or None,
        bot_id=bot.bot_id or None,
        bot_user_id=bot.bot_user_id or None,
        bot_scopes=list(bot.bot_scopes),
        bot_token_expires_at=_whole_seconds(bot, "bot_token_expires_at"),
        user_id=message.user_id,
        user_token=message.user_token or None,
        user_scopes=list(message.user_scopes),
        user_token_expires_at=_whole_seconds(message, "user_token_expires_at"),
        incoming_webhook_url=message.incoming_webhook_url or None,
        incoming_webhook_channel=message.incoming_webhook_channel or None,
        incoming_webhook_channel_id=message.incoming_webhook_channel_id or None,
        incoming_webhook_configuration_url=message.incoming_webhook_configuration_url or None,
        is_enterprise_install=message.is_enterprise_install,
        token_type=message.token_type or None,
        installed_at=message.installed_at.ToDatetime(UTC).timestamp(),
        custom_values=_loaded(message.custom_values_json),
    )


def _bot(message: pb.BotRecord) -> Bot:
    return Bot(
        app_id=message.app_id or None,
        enterprise_id=message.enterprise_id or None,
        enterprise_name=message.enterprise_name or None,
        team_id=message.team_id or None,
        team_name=message.team_name or None,
        bot_token=message.bot_token,
        bot_id=message.bot_id,
        bot_user_id=message.bot_user_id,
        bot_scopes=list(message.bot_scopes),
        bot_token_expires_at=_whole_seconds(message, "bot_token_expires_at"),
        is_enterprise_install=message.is_enterprise_install,
        installed_at=message.installed_at.ToDatetime(UTC).timestamp(),
        custom_values=_loaded(message.custom_values_json),
    )


def _texts(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) or "" for name in names}


def _stamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return stamp


def _whole_seconds(message: "pb.BotRecord | pb.InstallationRecord", field: str) -> int | None:
    # Both kinds of message have the fields that are asked for.
    return getattr(message, field).seconds if message.HasField(field) else None  # type: ignore[arg-type]


def _dumped(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in (values or {}).items()}


def _loaded(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in values.items()}
