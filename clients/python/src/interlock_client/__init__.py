"""Keep a Bolt for Python app's installations in Interlock's token vault."""

from interlock_chassis.errors import RemoteError
from interlock_chassis.tls import TlsFiles
from interlock_client.installation_store import VaultInstallationStore, open_installation_store

__all__ = ["RemoteError", "TlsFiles", "VaultInstallationStore", "open_installation_store"]
