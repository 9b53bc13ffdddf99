"""Tell an administrator in Slack that the app must be installed again, while it still can."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from yarl import URL

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.worker.answer import plain_note
from interlock_gateway.worker.ports import Vault
from interlock_gateway.worker.slack import Bot, BotToken, Place, Slack, SlackRefused

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Notice:
    """What an administrator has to be told.

    Attributes:
        grant: An adminGrant of purpose `notice`.
        slack_user_id: Whom to tell.
    """

    grant: Secret[str]
    slack_user_id: str


class NoticeSource(Protocol):
    """Identity, as it hands out notices."""

    async def take_notices(self) -> Sequence[Notice]:
        """Take the notices that are due; each is handed out once."""
        ...


async def send_notices(
    source: NoticeSource,
    vault: Vault,
    slack: Slack,
    *,
    dashboard: URL,
    sleep: Callable[[float], Awaitable[None]],
) -> int:
    """Send the notices that are due, each as a direct message; return how many went out.

    One that fails is not sent again: the dashboard says the same.

    Args:
        source: Hands them out.
        vault: Gives the bot's token for a notice's grant.
        slack: Posts.
        dashboard: Where the app can be installed again.
        sleep: Waits, in seconds.
    """
    sent = 0
    try:
        due = await source.take_notices()
    except ServiceError as error:
        # They are handed out the next time.
        _log.warning("notices_not_taken", reason=error.reason)
        return 0
    for notice in due:
        try:
            await _send(notice, vault, slack, dashboard, sleep)
        except (ServiceError, SlackRefused) as error:
            _log.warning("notice_not_sent", cause=type(error).__name__)
        else:
            sent += 1
    return sent


async def _send(
    notice: Notice,
    vault: Vault,
    slack: Slack,
    dashboard: URL,
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    async def read_token(newer_than: int) -> BotToken:
        return await vault.read_bot_token(notice.grant, newer_than)

    text = (
        "Slack no longer renews this app's access to your workspace. It stops to answer within"
        f" twelve hours. Please install it again: <{dashboard}|open the dashboard>. Linked"
        " accounts and default agents stay."
    )
    bot = Bot(read_token, sleep)
    await bot.call(slack.post, Place(notice.slack_user_id, ""), plain_note(text))
