"""A backup: two files, kept apart, that open nothing without each other and the KMS.

One holds installations and sealed tokens, the other the wrapped data keys.
Each is lines of JSON between a line that says what it is and a last one with
a MAC over everything before it: what was cut, changed, or made elsewhere is
refused before anything is written.
"""

import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from interlock_chassis.errors import Kind, ServiceError

_FORMAT = "interlock vault backup/1"

SEALED_TABLES = ("installation", "sealed_token", "app_place", "app_record", "app_secret")
KEY_TABLES = ("wrapped_dek",)


class BackupPart(Enum):
    """Which half of a backup."""

    SEALED = "sealed"
    KEYS = "keys"

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that it holds."""
        return SEALED_TABLES if self is BackupPart.SEALED else KEY_TABLES


class BackupRefused(ServiceError):
    """The backup is not one that this vault may restore; nothing was written."""

    kind = Kind.PRECONDITION
    reason = "BACKUP_REFUSED"


class Mac(Protocol):
    """A MAC in the making."""

    def update(self, piece: bytes, /) -> None:
        """Add what comes next."""
        ...

    def hexdigest(self) -> str:
        """Return the MAC of everything so far."""
        ...


@dataclass(frozen=True, slots=True)
class BackupRow:
    """One row, as Postgres writes it in JSON."""

    table: str
    row: Mapping[str, Any]


def backup_head(part: BackupPart, environment: str, client_id: str) -> bytes:
    """Write the first line of a part."""
    return _line(
        {
            "format": _FORMAT,
            "part": part.value,
            "environment": environment,
            "client_id": client_id,
        }
    )


def backup_line(table: str, row: str) -> bytes:
    """Write a row that is JSON already as one line."""
    return b'{"table":' + json.dumps(table).encode() + b',"row":' + row.encode() + b"}\n"


def backup_tail(count: int, mac: str) -> bytes:
    """Write the last line of a part."""
    return _line({"end": True, "rows": count, "mac": mac})


@dataclass(slots=True)
class BackupReader:
    """Check a part from its first line to its last, giving its rows.

    What it gives is only to be trusted once it has given all of it.

    Args:
        lines: Of the file.
        part: Which half it must be.
        environment: Where it must come from.
        client_id: Whose app's it must be.
        mac: A MAC to compute over what is read.

    Raises:
        BackupRefused: Of another part, environment or app; cut or changed.
    """

    lines: Iterator[bytes]
    part: BackupPart
    environment: str
    client_id: str
    mac: Mac

    def rows(self) -> list[BackupRow]:
        """Read and check everything."""
        line = self._next()
        self._check_head(_parse(line))
        rows: list[BackupRow] = []
        while True:
            self.mac.update(line)
            line = self._next()
            document = _parse(line)
            if document.get("end") is True:
                break
            table, row = document.get("table"), document.get("row")
            if table not in self.part.tables or not isinstance(row, dict):
                raise BackupRefused("a line is no row of this part")
            rows.append(BackupRow(table, row))
        written, expected = str(document.get("mac", "")), self.mac.hexdigest()
        is_whole = document.get("rows") == len(rows) and next(self.lines, None) is None
        if not hmac.compare_digest(written.encode(), expected.encode()) or not is_whole:
            raise BackupRefused("the file was changed, or made with another fingerprint key")
        return rows

    def _next(self) -> bytes:
        line = next(self.lines, b"")
        if not line.endswith(b"\n"):
            raise BackupRefused("the file was cut")
        return line

    def _check_head(self, head: Mapping[str, Any]) -> None:
        if head.get("format") != _FORMAT or head.get("part") != self.part.value:
            raise BackupRefused(f"the file is no backup of {self.part.value}")
        if head.get("environment") != self.environment:
            raise BackupRefused("the backup is of another environment")
        if head.get("client_id") != self.client_id:
            raise BackupRefused("the backup is of another Slack app")


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        raise BackupRefused("a line is not JSON") from None
    if not isinstance(document, dict):
        raise BackupRefused("a line is not a JSON object")
    return document
