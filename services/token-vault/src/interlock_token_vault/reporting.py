"""Say loudly, to who can do something about it, that a workspace needs a reinstall.

Identity keeps what administrators see of a workspace. It is told once of each
change, whichever process finds it, and again until it has answered.
"""

from collections.abc import Sequence
from typing import Protocol

import structlog

from interlock_token_vault.domain.installation import ClientId, InstallationId, InstallationKey
from interlock_token_vault.domain.rotation import Chain, Standing
from interlock_token_vault.install_ports import IdentityUnavailable
from interlock_token_vault.rotation_ports import HeldChain

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
