"""Backups on their way in: pieces in nameless files, until they are restored or forgotten."""

import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from uuid import UUID

from interlock_token_vault.domain.backup import BackupPart, BackupRefused

# One under way and one that was given up.
_MOST = 2

_Files = dict[BackupPart, BinaryIO]


class RestoreStaging:
    """Keep staged backups in files without a name, which end with the process.

    They hold nothing that opens without the KMS.
    """

    def __init__(self) -> None:
        self._staged: OrderedDict[UUID, _Files] = OrderedDict()

    def put(self, restore_id: UUID, part: BackupPart, offset: int, chunk: bytes) -> None:
        """Add a piece.

        Raises:
            BackupRefused: It does not begin where the one before ended.
        """
        if restore_id not in self._staged:
            while len(self._staged) >= _MOST:
                self._close(self._staged.popitem(last=False)[1])
            self._staged[restore_id] = {}
        files = self._staged[restore_id]
        if part not in files:
            files[part] = tempfile.TemporaryFile()  # noqa: SIM115 - Closed with its restore.
        file = files[part]
        if file.seek(0, 2) != offset:
            raise BackupRefused("a piece of the file is missing or came twice")
        file.write(chunk)

    @contextmanager
    def taken(self, restore_id: UUID) -> Iterator[_Files]:
        """Take a staged backup out; its files end with the block.

        Raises:
            BackupRefused: Not both halves were staged.
        """
        files = self._staged.pop(restore_id, {})
        try:
            if len(files) != len(BackupPart):
                raise BackupRefused("both halves of the backup must be staged first")
            yield files
        finally:
            self._close(files)

    def _close(self, files: _Files) -> None:
        for file in files.values():
            file.close()
