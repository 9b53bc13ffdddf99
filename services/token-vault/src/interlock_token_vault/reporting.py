"""Say loudly, to who can do something about it, that a workspace needs a reinstall.

Identity keeps what administrators see of a workspace. It is told once of each
change, whichever process finds it, and again until it has answered.

One person is written to in Slack, from here: the token never leaves for it, and
nobody but identity and the vault has a say in whom it reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog
from prometheus_client import Gauge

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import REGISTRY
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.installation import ClientId, InstallationId, InstallationKey
from interlock_token_vault.domain.rotation import HARD_LIMIT, Chain, Standing
from interlock_token_vault.install_ports import IdentityUnavailable
from interlock_token_vault.keeping import Keeper, event_of
from interlock_token_vault.rotation_ports import HeldChain

ENDED_CHAINS = Gauge(
    "interlock_vault_chains_needing_reinstall",
    "Chains of Slack tokens that only a reinstall revives.",
    registry=REGISTRY,
)

SCOPE_DRIFT = Gauge(
    "interlock_vault_installations_with_scope_drift",
    "Installations that lack a scope that is asked for, or have one that is not.",
    ("kind",),
    registry=REGISTRY,
)

_BATCH = 50

_log = structlog.get_logger()


class Reports(Protocol):
    """Identity's side of a chain's end."""

    async def report(
        self, installation_id: InstallationId, key: InstallationKey, *, needs_reinstall: bool
    ) -> None:
        """Say whether an installation needs a reinstall; idempotent.

        Raises:
            IdentityUnavailable: Identity does not answer.
        """
        ...


class ReportStore(Protocol):
    """The vault's database, as reporting needs it; all raise DatabaseUnavailable."""

    async def list_unreported(self, client_id: ClientId, limit: int) -> Sequence[Chain]:
        """List bots' chains of which identity does not know that they ended, or go on again."""
        ...

    async def mark_reported(self, chain: Chain, *, needs_reinstall: bool) -> None:
        """Remember what identity knows of a chain."""
        ...

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """Find a chain of an active installation."""
        ...


class Reporting:
    """Tell identity which bots' chains have come to their end, and which have not after all.

    Args:
        client_id: Of Interlock's own app.
    """

    def __init__(self, *, store: ReportStore, reports: Reports, client_id: ClientId) -> None:
        self._store = store
        self._reports = reports
        self._client_id = client_id

    async def run(self) -> None:
        """Tell identity of what has changed; what it does not take is told again next time.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        for chain in await self._store.list_unreported(self._client_id, _BATCH):
            held = await self._store.find_chain(chain)
            if held is None:
                continue
            needs_reinstall = held.state.standing is Standing.NEEDS_REINSTALL
            installation = held.installation
            try:
                await self._reports.report(
                    installation.id, installation.key, needs_reinstall=needs_reinstall
                )
            except IdentityUnavailable as error:
                _log.warning("reinstall_not_reported", reason=error.reason)
                return
            await self._store.mark_reported(chain, needs_reinstall=needs_reinstall)


@dataclass(frozen=True, slots=True)
class GrantedScopes:
    """How what Slack granted to a bot differs from what the app asks for.

    Attributes:
        installed_at: Of the install that it was granted with.
        missing: Asked for and not granted, sorted.
        extra: Granted and not asked for, sorted.
    """

    installation_id: InstallationId
    key: InstallationKey
    installed_at: datetime
    missing: tuple[str, ...]
    extra: tuple[str, ...]


class ScopeReports(Protocol):
    """Identity, as it hears of scopes."""

    async def report_scopes(self, granted: GrantedScopes) -> None:
        """Say how an installation's scopes differ; idempotent.

        Raises:
            IdentityUnavailable: Identity does not answer.
        """
        ...


class ScopeStore(Protocol):
    """The vault's database, as scopes need it; all raise DatabaseUnavailable."""

    async def list_untold(
        self, client_id: ClientId, asked: Sequence[str], limit: int
    ) -> Sequence[GrantedScopes]:
        """List active installations of whose scopes identity knows something else, or nothing."""
        ...

    async def count_drift(self, client_id: ClientId, asked: Sequence[str]) -> tuple[int, int]:
        """Count installations with scopes missing, and those with scopes too many."""
        ...

    async def mark_told(self, granted: GrantedScopes) -> None:
        """Remember what identity knows of an installation's scopes."""
        ...


class ScopeReporting:
    """Tell identity where granted scopes differ from those asked for, and where no longer.

    They come to differ when Slack grants more than it was asked for, and when
    the app is configured to ask for others than the installs of before have.

    Args:
        client_id: Of Interlock's own app.
        asked: The bot's scopes as they are configured now.
    """

    def __init__(
        self,
        *,
        store: ScopeStore,
        reports: ScopeReports,
        client_id: ClientId,
        asked: Sequence[str],
    ) -> None:
        self._store = store
        self._reports = reports
        self._client_id = client_id
        self._asked = tuple(sorted(set(asked)))

    async def run(self) -> None:
        """Count what differs, and tell of what has changed; what is not taken is told again.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        missing, extra = await self._store.count_drift(self._client_id, self._asked)
        SCOPE_DRIFT.labels("missing").set(missing)
        SCOPE_DRIFT.labels("extra").set(extra)
        # Whoever asks for one scope more has every workspace to tell of, not only the first few.
        while untold := await self._store.list_untold(self._client_id, self._asked, _BATCH):
            for granted in untold:
                try:
                    await self._reports.report_scopes(granted)
                except IdentityUnavailable as error:
                    _log.warning("scopes_not_reported", reason=error.reason)
                    return
                await self._store.mark_told(granted)


@dataclass(frozen=True, slots=True)
class Notice:
    """Somebody to be told that an installation needs a reinstall.

    Attributes:
        user_id: Slack `U…` or `W…` of an administrator who is linked there; empty
            when there is none.
    """

    installation_id: InstallationId
    user_id: str


class Notices(Protocol):
    """Identity, as it hands out notices."""

    async def take_notices(self) -> Sequence[Notice]:
        """Take the notices that are due; each is handed out once.

        Raises:
            IdentityUnavailable: Identity does not answer.
        """
        ...


class Messenger(Protocol):
    """Slack, as a person is written to."""

    async def tell(self, token: Secret[str], user_id: str, text: str) -> None:
        """Write to a user directly.

        Raises:
            TokenDead: Slack no longer takes the token.
            SlackUnavailable: It is not known to have been written; also a user that is gone.
        """
        ...


class NoticeStore(Protocol):
    """The vault's database, as telling needs it; all raise DatabaseUnavailable."""

    async def count_ended(self, client_id: ClientId) -> int:
        """Count the chains that need a reinstall."""
        ...

    async def find_chain(self, chain: Chain) -> HeldChain | None:
        """Find a chain of an active installation."""
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Commit audit records alone."""
        ...


class Telling:
    """Write to one person of each workspace that needs a reinstall, once.

    To the administrator whom identity names; where none is linked, to the Slack
    user who installed the app. At most once: a process that ends between taking
    a notice and sending it sends none, and the dashboard is left.

    Args:
        keeper: Opens tokens.
        client_id: Of Interlock's own app.
        dashboard: Where the app can be installed again; empty when it is not known.
    """

    def __init__(
        self,
        *,
        notices: Notices,
        store: NoticeStore,
        keeper: Keeper,
        messenger: Messenger,
        client_id: ClientId,
        dashboard: str,
    ) -> None:
        self._notices = notices
        self._store = store
        self._keeper = keeper
        self._messenger = messenger
        self._client_id = client_id
        self._text = _text(dashboard)

    async def run(self) -> None:
        """Tell who is to be told now; one that fails keeps no other from being told.

        Shows in the metric how many chains need a reinstall, and asks identity only
        while one does.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        ended = await self._store.count_ended(self._client_id)
        ENDED_CHAINS.set(ended)
        if not ended:
            return
        try:
            due = await self._notices.take_notices()
        except IdentityUnavailable as error:
            # They are handed out the next time.
            _log.warning("notices_not_taken", reason=error.reason)
            return
        for notice in due:
            try:
                await self._tell(notice)
            except ServiceError as error:
                _log.warning(
                    "notice_not_sent",
                    reason=error.reason,
                    installation_id=str(notice.installation_id),
                )

    async def _tell(self, notice: Notice) -> None:
        chain = Chain(notice.installation_id)
        held = await self._store.find_chain(chain)
        if held is None:
            return
        user_id = notice.user_id or held.installation.installed_by
        obstacle = _obstacle(held, user_id)
        event = event_of(
            "notice.dropped" if obstacle else "notice.sent", chain, held.installation.key
        )
        event = replace(event, origin=replace(event.origin, subject=user_id))
        if obstacle:
            _log.warning(
                "notice_dropped", reason=obstacle, installation_id=str(chain.installation_id)
            )
            await self._store.record([replace(event, outcome=obstacle)])
            return
        # On record before it is opened, as every use of a token.
        await self._store.record([replace(event, token_ref=held.access.ref)])
        token = await self._keeper.open(held, self._keeper.open_key(held), held.access)
        await self._messenger.tell(token, user_id, self._text)


def _obstacle(held: HeldChain, user_id: str) -> str:
    """Say why nobody is written to; empty when nothing is in the way."""
    ends = held.access.expires_at
    in_the_way = (
        (held.state.standing is not Standing.NEEDS_REINSTALL, "NOT_NEEDED"),
        (not user_id, "NOBODY_KNOWN"),
        (held.facts.is_stopped, "RELEASES_STOPPED"),
        (ends is not None and held.at >= ends - HARD_LIMIT, "TOKEN_ENDED"),
    )
    return next((reason for is_there, reason in in_the_way if is_there), "")


def _text(dashboard: str) -> str:
    where = f" on <{dashboard}|the dashboard>" if dashboard else ""
    return (
        "Slack no longer renews this app's access to your workspace. It stops to answer within"
        f" twelve hours. Please have it installed again{where}. Linked accounts and default agents"
        " stay."
    )
