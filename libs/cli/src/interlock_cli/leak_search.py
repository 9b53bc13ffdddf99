"""Look for secrets where they must not be: in databases and logs, in any common disguise."""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg

from interlock_chassis.secret import Secret

# A shorter text would be found by accident.
_MIN_LENGTH = 12
_USER_TABLES = """
SELECT n.nspname, c.relname
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND n.nspname NOT LIKE 'pg_toast%'
 ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Finding:
    """A secret in a place where it must not be.

    Attributes:
        what: The kind of secret.
        disguise: How it was written there.
        place: The table or file.
    """

    what: str
    disguise: str
    place: str

    def __str__(self) -> str:
        return f"{self.what} ({self.disguise}) in {self.place}"


class LeakSearch:
    """Search for a set of secrets, each as it is and in every usual encoding.

    Args:
        secrets: By kind, such as `bot token`.

    Raises:
        ValueError: A secret is too short to be searched for.
    """

    def __init__(self, secrets: Mapping[str, Iterable[str]]) -> None:
        self._meanings: dict[bytes, tuple[str, str]] = {}
        for what, values in secrets.items():
            for value in values:
                if len(value) < _MIN_LENGTH:
                    raise ValueError(f"a {what} is too short to search for")
                for disguise, form in disguises_of(value.encode()):
                    self._meanings.setdefault(form, (what, disguise))
        # Longer forms first, so that a form inside another does not hide it.
        forms = sorted(self._meanings, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, forms))) if forms else None
        self.searched_bytes = 0

    def search(self, place: str, content: bytes) -> list[Finding]:
        """Return what is found in some content."""
        self.searched_bytes += len(content)
        if self._pattern is None:
            return []
        found = {self._meanings[match] for match in self._pattern.findall(content)}
        return [Finding(what, disguise, place) for what, disguise in sorted(found)]

    def search_files(self, folder: Path) -> list[Finding]:
        """Search every file under a folder."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [found for path in files for found in self.search(str(path), path.read_bytes())]


async def read_tables(url: Secret[str]) -> dict[str, bytes]:
    """Return the content of every table of a database, by its name.

    The rows come in Postgres's binary form: texts and bytes as they are.

    Args:
        url: The database, as a superuser: row-level security hides rows from others.
    """
    connection = await asyncpg.connect(url.reveal())
    contents: dict[str, bytes] = {}
    try:
        for schema, name in await connection.fetch(_USER_TABLES):
            content = bytearray()

            async def keep(data: bytes, into: bytearray = content) -> None:
                into.extend(data)

            await connection.copy_from_table(name, schema_name=schema, output=keep, format="binary")
            contents[f"{schema}.{name}"] = bytes(content)
    finally:
        await connection.close()
    return contents


def disguises_of(value: bytes) -> list[tuple[str, bytes]]:
    """Return the forms a value may take in a dump or a log, with their names.

    Base64 depends on what stands before the value: all three alignments are
    given, without the characters at the ends that neighbours decide.
    """
    forms = [("plain", value), ("percent-encoded", quote(value, safe="").encode())]
    forms += [("hex", value.hex().encode()), ("hex", value.hex().upper().encode())]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + value)
        # The first characters carry bits of what stands before, the last of what follows.
        whole = encoded[(offset * 8 + 5) // 6 : (offset + len(value)) // 3 * 4]
        forms.append(("base64", whole))
        forms.append(("base64url", whole.translate(bytes.maketrans(b"+/", b"-_"))))
    return forms
