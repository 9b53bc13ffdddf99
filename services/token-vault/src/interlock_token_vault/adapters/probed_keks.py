"""The Keks port over a KMS that manages its keys itself: the primary one is found by asking."""

import secrets
from collections.abc import Sequence

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import Kms
from interlock_token_vault.domain.envelope import DEK_BYTES
from interlock_token_vault.key_lifecycle import KekManagedElsewhere

# Bound to nothing that is ever stored.
_PROBE = b"interlock probe for the primary key version"


class ProbedKeks:
    """Keks that a remote KMS alone decides about."""

    def __init__(self, kms: Kms) -> None:
        self._kms = kms

    async def find_primary(self) -> str:
        """Wrap a key that is thrown away, and see which version did it; see Keks."""
        answer = await self._kms.wrap(Secret(secrets.token_bytes(DEK_BYTES)), _PROBE)
        return answer.kek_version

    async def list_versions(self) -> Sequence[str]:
        """List none: the others show by what they wrap; see Keks."""
        return ()

    async def make_primary(self, version: str) -> None:
        """Refuse; see Keks."""
        if version != await self.find_primary():
            raise KekManagedElsewhere

    async def retire(self, version: str) -> None:
        """Do nothing: that it wraps nothing was checked, to disable it is the KMS's; see Keks."""
