"""What operators do to the data keys of other apps' installations: rotate, and shred."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from interlock_token_vault.app_installations import SealedSecret, StoredRecord, secret_context
from interlock_token_vault.domain.app_record import AppPlace, SecretName
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import KeyContext, WrappedDek
from interlock_token_vault.domain.installation import InstallationId
from interlock_token_vault.vault import InstallationNotFound, Keys


@dataclass(frozen=True, slots=True)
class KeptPlace:
    """A place of another app with everything that is sealed there.

    Attributes:
        wrapped: Its data key; None where somebody deleted it.
    """

    installation_id: InstallationId
    place: AppPlace
    wrapped: WrappedDek | None
    records: tuple[StoredRecord, ...]


class AppKeyStore(Protocol):
    """The vault's database, as the keys of other apps need it; all raise DatabaseUnavailable."""

    async def find_kept(self, name: InstallationId | AppPlace) -> KeptPlace | None:
        """Find a place with its history."""
        ...

    async def reseal(
        self,
        before: KeptPlace,
        wrapped: WrappedDek,
        records: Sequence[StoredRecord],
        event: AuditEvent,
    ) -> None:
        """Put a new data key, and what is sealed under it, in the place of the old ones.

        Raises:
            StaleGeneration: The place changed meanwhile.
        """
        ...

    async def shred(self, installation_id: InstallationId, event: AuditEvent) -> None:
        """Delete a place with its records and its data key.

        Raises:
            InstallationNotFound: It is gone already.
        """
        ...


class AppKeys:
    """The data keys of other apps' places, one a place."""

    def __init__(self, *, store: AppKeyStore, keys: Keys, environment: str) -> None:
        self._store = store
        self._keys = keys
        self._environment = environment

    async def is_apps(self, installation_id: InstallationId) -> bool:
        """Tell whether an id is that of another app's place.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        return await self._store.find_kept(installation_id) is not None

    async def rotate_dek(self, installation_id: InstallationId, origin: Origin) -> int:
        """Give a place a new data key, and seal every secret of its history under it.

        Returns:
            How many secrets were sealed anew.

        Raises:
            InstallationNotFound: There is no such place, or its data key is gone.
            StaleGeneration: It changed meanwhile; nothing is written.
            CannotOpen, KekDisabled, KmsUnavailable: As a read; nothing is written.
        """
        kept = await self._store.find_kept(installation_id)
        if kept is None or kept.wrapped is None:
            raise InstallationNotFound
        context = KeyContext(self._environment, kept.place.client_id, installation_id)
        old_key = self._keys.take(kept.wrapped, context)
        wrapped, new_key = await self._keys.make(context)
        records: list[StoredRecord] = []
        for record in kept.records:
            secrets: dict[SecretName, SealedSecret] = {}
            for name, secret in record.secrets.items():
                bound = secret_context(
                    self._environment,
                    kept.place,
                    record,
                    name,
                    installation_id=installation_id,
                    dek_id=secret.dek_id,
                )
                opened = await old_key.open_value(secret.sealed, bound)
                sealed = await new_key.seal_value(opened, replace(bound, dek_id=wrapped.dek_id))
                secrets[name] = replace(secret, dek_id=wrapped.dek_id, sealed=sealed)
            records.append(replace(record, secrets=secrets))
        event = _event("dek.rotated", kept, origin)
        await self._store.reseal(
            kept, wrapped, records, replace(event, kek_version=wrapped.kek_version)
        )
        return sum(len(record.secrets) for record in records)

    async def shred(
        self, name: InstallationId | AppPlace, origin: Origin, *, dry_run: bool
    ) -> KeptPlace:
        """Destroy a place's data key, and delete it with its history.

        Returns:
            What was, or in a dry run would be, shredded.

        Raises:
            InstallationNotFound: There is no such place.
        """
        kept = await self._store.find_kept(name)
        if kept is None:
            raise InstallationNotFound
        if not dry_run:
            event = _event("installation.purged", kept, origin)
            await self._store.shred(kept.installation_id, event)
        return kept


def _event(action: str, kept: KeptPlace, origin: Origin) -> AuditEvent:
    return AuditEvent(
        action,
        origin,
        installation_id=kept.installation_id,
        enterprise_id=kept.place.enterprise_id,
        team_id=kept.place.team_id,
    )
